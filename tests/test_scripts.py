"""The shell scripts, run as README says, on a tiny tree with tiny CLIPs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*words: str, **settings: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run(["bash", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_bash_can_read_them(script):
    assert run("-n", str(script)).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "usage: bash scripts/coop_dho.sh DATASET SHOTS"),
        (("imagnet", "16"), "unknown data set 'imagnet'; there are: imagenet.yaml"),
        (("imagenet", "many"), "SHOTS is 'many'"),
    ],
)
def test_bad_words_are_one_message(words, said):
    done = run("scripts/coop_dho.sh", *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_machine_without_imagenet_is_told_what_must_lie_where(tmp_path):
    done = run("scripts/coop_dho.sh", "imagenet", "16", DATA=str(tmp_path), OUTPUT=str(tmp_path / "out"))
    assert done.returncode != 0
    assert f"{tmp_path}/imagenet/images/val: no such folder" in done.stderr
    assert "DATASETS.md" in done.stderr


def test_the_real_data_s_path_from_images_to_table(imagenet_tree, tiny_weights, tmp_path):
    tree = imagenet_tree(classes=4, train=6, test=2)
    settings = {
        "DATA": str(tree.root), "OUTPUT": str(tmp_path / "out"), "SEEDS": "1 2", "JOBS": "2",
        "STUDENT_CKPT": tiny_weights[0], "TEACHER_CKPT": tiny_weights[1],
    }  # fmt: skip
    words = ("scripts/coop_dho.sh", "imagenet", "2", "OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0")
    done = run(*words, **settings)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("Method") :]
    assert "CLIP zero-shot ViT-B/16" in table
    assert "CLIP zero-shot ViT-L/14@336px" in table
    assert "CoOp + DHO" in table
    assert (tmp_path / "out/imagenet/CoOp_DHO/vit_b16_ep50_ctxv1_2shots/seed2/results.json").exists()
    again = run(*words, **settings)
    assert again.stdout.count("skipped") == 4
    assert again.stdout[again.stdout.rindex("Method") :] == table


def command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has ended
        return ""


@pytest.mark.parametrize("end", ["exit 0", "false", "kill -TERM $$; sleep 1"])
def test_no_run_goes_on_behind_a_script_that_has_ended(end, tmp_path):
    mark = f"300.{os.getpid()}{len(end)}"
    started = f"background one sh -c 'touch {tmp_path}/started; sleep {mark}'; "
    waited = f"while [ ! -f {tmp_path}/started ]; do sleep 0.1; done; "
    assert "one: started" in run("-c", f"source scripts/lib.sh; JOBS=2; {started}{waited}{end}").stdout
    for _ in range(50):
        left = [
            line for line in map(command_line, Path("/proc").glob("[0-9]*")) if mark in line and "source" not in line
        ]
        if not left:
            return
        time.sleep(0.1)
    pytest.fail(f"still running: {left}")


def test_runs_side_by_side_are_bounded_and_a_failing_one_ends_the_script():
    each = "background run$k sh -c 'echo is complete; %s'"
    ask = f"source scripts/lib.sh; JOBS=2; for k in 1 2 3 4; do {each}; done; finish_jobs; echo end"
    done = run("-c", ask % "sleep 0.1")
    assert done.stdout.count("is complete") == 4
    assert done.stdout.endswith("end\n")
    failed = run("-c", ask % "exit 3")
    assert failed.returncode != 0
    assert "end" not in failed.stdout


def test_a_python_without_the_package_is_not_taken_for_one_that_has_it(tmp_path):
    """Started in this folder, any Python finds `dho_plugin`; only an installed package has `dho_plugin.trainers`."""
    ask = "source scripts/lib.sh; has && echo taken || echo refused"
    assert run("-c", ask).stdout.strip() == "taken"
    # Without site no installed package is seen; a stand-in for torch and this folder's own dho_plugin are.
    (tmp_path / "torch").mkdir()
    bare = f'bare() {{ {sys.executable} -S "$@"; }}; PYTHON=bare; '
    found = run("-c", bare + '$PYTHON -c "import dho_plugin, torch" && echo here', PYTHONPATH=str(tmp_path))
    assert found.stdout == "here\n"
    assert run("-c", bare + ask, PYTHONPATH=str(tmp_path)).stdout.strip() == "refused"
