"""One run on several processes, as `torchrun -m dho_plugin.train` starts it, against the same run on one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dho_plugin.engine.checkpoint import load_checkpoint
from dho_plugin.engine.evaluator import TestLogits as StoredLogits
from dho_plugin.train import main

METHODS = ("LinearProbe", "VPT", "CoOp", "PromptSRC")
# A whole student without BatchNorm, whose statistics are each process's. Some of its gradients are 0 but for rounding,
# which AdamW would make steps of.
COMPACT = ("MODEL.BACKBONE.NAME", "test_vit", "OPTIM.NAME", "sgd", "OPTIM.LR", "0.01")
PROBED = ("TRAINER.DHO.PROBE_GRADIENTS", "2")
OPTIONS = {"Distill_DHO": (*COMPACT, *PROBED), "VPT_DHO": PROBED}
TRAINERS = [*METHODS, *(f"{name}_DHO" for name in METHODS), *OPTIONS]
SETS = {"val": 8, "imagenetv2": 8, "imagenet_sketch": 8, "imagenet_r": 4, "imagenet_a": 4}
WORKER = Path(__file__).parent / "train_lines.py"


def torchrun(processes: int, *command: str) -> subprocess.CompletedProcess:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    return subprocess.run([*launcher, *command], capture_output=True, text=True, check=False)


def together(processes: int, lines: list[list[str]], folder: Path) -> subprocess.CompletedProcess:
    """Carry out command lines that must succeed, each on so many processes."""
    (folder / "lines.json").write_text(json.dumps(lines))
    done = torchrun(processes, str(WORKER), str(folder / "lines.json"))
    assert done.returncode == 0, done.stderr
    return done


def output(line: list[str]) -> Path:
    return Path(line[line.index("--output-dir") + 1])


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def learned(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*/model.pth.tar-3"))
    return {f"{f.parent.name}.{k}": v for f in files for k, v in load_checkpoint(f)["state_dict"].items()}


def assert_close(ours: Path, theirs: Path) -> None:
    """Check that two runs differ by the order of summation only: what they learned, and all logits."""
    one, two = learned(ours), learned(theirs)
    assert one
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    for name, count in SETS.items():
        a, b = (StoredLogits.load(run / "logits" / f"{name}.safetensors") for run in (ours, theirs))
        assert torch.equal(a.labels, b.labels)
        assert len(a.labels) == count
        for x, y in ((a.logits_ce, b.logits_ce), (a.logits_kd, b.logits_kd)):
            assert (x is None) == (y is None)
            if x is not None:
                torch.testing.assert_close(x.float(), y.float(), rtol=2e-3, atol=2e-3)
        assert results(ours)["metrics"][name]["n"] == count


@pytest.fixture(scope="module")
def pairs(shared_command, tmp_path_factory) -> dict[str, tuple[list[str], list[str]]]:
    """The finished runs of every method on one process and on two, as their command lines."""
    options = ("TRAIN.PRINT_FREQ", "1", "TRAIN.CHECKPOINT_FREQ", "1", "DATALOADER.TEST.BATCH_SIZE", "3")
    lines = {
        t: tuple(shared_command(t, f"{n}_processes_{t}", *options, *OPTIONS.get(t, ())) for n in (1, 2))
        for t in TRAINERS
    }
    for one, _ in lines.values():
        assert main(one) == 0
    normed = shared_command("Distill_DHO", "2_processes_batch_norm", *options)
    together(2, [*(two for _, two in lines.values()), normed], tmp_path_factory.mktemp("lines"))
    return lines | {"batch norm": (normed, normed)}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_two_processes_learn_and_answer_as_one(pairs, trainer):
    one, two = map(output, pairs[trainer])
    assert_close(two, one)
    assert (results(one)["processes"], results(two)["processes"]) == (1, 2)


def test_batch_norms_running_statistics_are_those_of_all_processes(pairs, shared_command, tmp_path):
    """Each process evaluates a share of the images, with statistics that are the saved ones."""
    run = output(pairs["batch norm"][1])
    line = shared_command("Distill_DHO", tmp_path / "again", flags=("--eval-only", "--model-dir", str(run)))
    assert main(line) == 0
    for name in SETS:
        a, b = (StoredLogits.load(folder / "logits" / f"{name}.safetensors") for folder in (run, tmp_path / "again"))
        torch.testing.assert_close(a.logits_ce.float(), b.logits_ce.float(), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(a.logits_kd.float(), b.logits_kd.float(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("trainer", ["VPT_DHO", "Distill_DHO"])
def test_gradients_are_recorded_once_a_step_by_the_main_process(pairs, trainer):
    one, two = (
        [json.loads(record) for record in (output(line) / "gradients.jsonl").read_text().splitlines()]
        for line in pairs[trainer]
    )
    steps = [record["step"] for record in one]
    assert steps == list(range(0, steps[-1] + 1, 2))
    assert [record["step"] for record in two] == steps
    assert all(-1 <= record["cosine_parameters"] <= 1 for record in one + two)


def test_the_log_shows_the_mean_over_the_processes(pairs):
    one, two = ((output(line) / "log.txt").read_text() for line in pairs["CoOp_DHO"])
    shown = [[word for word in text.split("\n") if word.startswith("epoch [")] for text in (one, two)]
    losses = [[float(line.split(" loss ")[1].split()[0]) for line in lines] for lines in shown]
    assert len(losses[0]) == len(losses[1]) == 6  # 3 epochs of 2 steps, each line once
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def test_one_process_goes_on_where_two_have_stopped(pairs):
    one, two = map(output, pairs["PromptSRC_DHO"])
    (two / "results.json").unlink()
    for path in two.glob("*/model.pth.tar-[23]"):
        path.unlink()
    assert main(pairs["PromptSRC_DHO"][1]) == 0
    assert "will resume training" in (two / "log.txt").read_text()
    assert_close(two, one)


def test_shares_that_are_unequal_or_empty_count_every_image_once(pairs, shared_command, tmp_path):
    folder = output(pairs["VPT_DHO"][0])
    flags = ("--eval-only", "--model-dir", str(folder))
    line = shared_command("VPT_DHO", tmp_path / "evaluated", flags=flags)
    zero_shot = [shared_command("ZeroshotCLIP", tmp_path / f"zero_shot{n}", flags=("--eval-only",)) for n in (1, 3)]
    assert main(zero_shot[0]) == 0
    together(3, [line, zero_shot[1]], tmp_path)  # 8 images go as 3, 3, 2 and 4 as 2, 2, 0
    for one, three in ((folder, tmp_path / "evaluated"), (tmp_path / "zero_shot1", tmp_path / "zero_shot3")):
        for name, metrics in results(one)["metrics"].items():
            assert results(three)["metrics"][name] == pytest.approx(metrics)


def test_what_every_process_finds_wrong_is_said_once(shared_command, tmp_path):
    line = shared_command("CoOp_DHO", tmp_path / "run", "DATALOADER.TRAIN_X.BATCH_SIZE", "5")
    done = torchrun(2, "-m", "dho_plugin.train", *line)
    assert done.returncode != 0
    assert done.stderr.count("ConfigError: DATALOADER.TRAIN_X.BATCH_SIZE is 5") == 1
    assert "cannot be shared equally among 2" in done.stderr


def test_a_complete_run_is_skipped_by_all(pairs):
    done = torchrun(2, "-m", "dho_plugin.train", *pairs["LinearProbe"][1])
    assert done.returncode == 0
    assert done.stdout.count("is complete") == 1


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_step_in_parts_is_the_same_step(shared_command, started, tmp_path, trainer):
    gradients = []
    for count in ("1", "2"):
        options = ("TRAIN.ACCUMULATION", count, *OPTIONS.get(trainer, ()))
        built = started(shared_command(trainer, tmp_path / "run", *options))
        shown = built.forward_backward(*[next(stream) for stream in built.streams])
        modules = built._models.items()
        learned = {f"{n}.{k}": p.grad for n, m in modules for k, p in m.named_parameters() if p.requires_grad}
        gradients.append({**learned, **shown})
    for key, whole in gradients[0].items():
        assert (gradients[1][key] - whole).norm() <= 2e-5 * whole.norm() + 1e-7, key


def test_a_batch_that_parts_cannot_share_is_refused(shared_command, tmp_path, capsys):
    assert main(shared_command("CoOp", tmp_path / "run", "TRAIN.ACCUMULATION", "3")) == 2
    message = capsys.readouterr().err
    assert "DATALOADER.TRAIN_X.BATCH_SIZE is 4" in message
    assert "allowed: 1, 2, 4" in message


def test_the_processes_of_a_run_store_what_it_reads_together(shared_command, tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path / "cache"))
    options = ("INPUT.VIEWS", "1", "DATALOADER.TEST.BATCH_SIZE", "3")
    modes = ("TRAINER.DHO.TEACHER.MODE", "MODEL.FEATURES")
    one = shared_command("CoOp_DHO", tmp_path / "one", *options, modes[0], "online", modes[1], "online")
    two = shared_command("CoOp_DHO", tmp_path / "two", *options, modes[0], "fill", modes[1], "fill")
    assert main(one) == 0
    together(2, [two], tmp_path)
    assert_close(tmp_path / "two", tmp_path / "one")
    log = (tmp_path / "two/log.txt").read_text()
    assert log.count("The teacher's features (train) are read from") == 1
    assert log.count("The student's features (imagenet_r) are read from") == 1
    stored = [path.name[:-22] for path in (tmp_path / "cache/features").iterdir()]
    students = [f"imagenet-{part}-ViT-B_16" for part in ("train", *SETS)]
    assert sorted(stored) == sorted([*students, "imagenet-train-ViT-L_14@336px"])
