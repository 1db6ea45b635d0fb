"""What all scripts share: runs side by side that end with the script, and the set-up of Python."""

import os
import sys
import time
from pathlib import Path

import pytest

from dho_plugin.engine.logger import locked

ROOT = Path(__file__).parent.parent.parent


def command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has ended
        return ""


def test_a_run_by_itself_ends_with_its_script_too(run, tmp_path):
    mark = f"301.{os.getpid()}"
    (tmp_path / "ask.sh").write_text(f"source {ROOT}/scripts/lib.sh; JOBS=1; background one sleep {mark}; echo end")
    done = run("-c", f"bash {tmp_path}/ask.sh & sleep 1; kill $!; wait $!", timeout=60)
    assert done.returncode == 143
    assert "end" not in done.stdout
    assert not [line for line in map(command_line, Path("/proc").glob("[0-9]*")) if line.startswith(f"sleep {mark}")]


def test_a_loss_that_is_not_finite_ends_a_script_but_not_one_of_many_tries(run):
    ask = "source scripts/lib.sh; %s background one sh -c 'exit 4'; background two echo second; finish_jobs; echo end"
    done = run("-c", ask % "TRIES=yes;")
    assert done.returncode == 0, done.stderr
    assert "one: its loss was no longer finite: a try without a result" in done.stdout
    assert done.stdout.endswith("second\nend\n")
    assert run("-c", ask % "").returncode == 2


def test_a_failing_run_whose_folder_somebody_has_locked_is_left_to_them(run, tmp_path):
    """torchrun makes a 1 of the code that says so."""
    ask = f"source scripts/lib.sh; background {tmp_path} sh -c 'exit 1'; echo left to ${{LEFT[*]}}"
    with locked(tmp_path):
        done = run("-c", ask, PROCESSES="2")
        assert run("-c", ask).returncode == 2  # one process says 3
    assert done.stdout.endswith(f"left to {tmp_path}\n"), done.stderr
    assert run("-c", ask, PROCESSES="2").returncode == 2


def test_a_folder_s_name_may_have_any_sign(run, tmp_path):
    label = f"{tmp_path}/a|b & c"
    ask = f"source scripts/lib.sh; JOBS=2; background '{label}' echo 'epoch [1/1]'; finish_jobs"
    done = run("-c", ask)
    assert f"{label}: epoch [1/1]\n" in done.stdout, done.stderr


def test_a_relative_python_is_the_callers(run, tmp_path):
    ask = f"cd {tmp_path}; source {ROOT}/scripts/lib.sh; echo $PYTHON"
    assert run("-c", ask, PYTHON="./venv/bin/python").stdout.strip() == f"{tmp_path}/./venv/bin/python"
    assert run("-c", ask, PYTHON="python3").stdout.strip() == "python3"


@pytest.mark.parametrize("end", ["exit 0", "false", "kill -TERM $$; sleep 1", "kill ${PIDS[0]}; sleep 1; exit 0"])
def test_no_run_goes_on_behind_a_script_that_has_ended(run, end, tmp_path):
    mark = f"300.{os.getpid()}{len(end)}"
    started = f"background one sh -c 'touch {tmp_path}/started; sleep {mark}'; "
    waited = f"while [ ! -f {tmp_path}/started ]; do sleep 0.1; done; "
    ask = f"source scripts/lib.sh; JOBS=2; {started}{waited}{end}"
    done = run("-c", ask, timeout=60)  # a run that is left over holds the output open
    assert "one: started" in done.stdout
    for _ in range(50):
        left = [
            line for line in map(command_line, Path("/proc").glob("[0-9]*")) if mark in line and "source" not in line
        ]
        if not left:
            return
        time.sleep(0.1)
    pytest.fail(f"still running: {left}")


def test_an_old_bash_is_named(run, tmp_path):
    """As if it were one: the script reads the version elsewhere."""
    (tmp_path / "scripts").mkdir()
    text = (ROOT / "scripts/lib.sh").read_text().replace("BASH_VERSINFO", "VERSION")
    (tmp_path / "scripts/lib.sh").write_text(text)
    for version, code in (("3 2", 2), ("4 3", 2), ("4 4", 0), ("5 0", 0)):
        done = run("-c", f"VERSION=({version}); source {tmp_path}/scripts/lib.sh")
        assert done.returncode == code, version
        assert ("start the scripts with 4.4 or newer" in done.stderr) == (code == 2)


def test_a_script_says_how_far_it_is(run):
    count = 'source scripts/lib.sh; JOBS=2 SEEDS="1 2 3"; count_runs 2 "base labeled"; '
    done = run("-c", count + "background one true; background two true; finish_jobs")
    assert "one: started (1 of 14)" in done.stdout  # two zero-shot rows, and two methods of two kinds over three seeds
    assert "two: started (2 of 14)" in done.stdout


def test_runs_side_by_side_are_bounded_and_a_failing_one_ends_the_script(run):
    each = "background run$k sh -c 'echo is complete; %s'"
    ask = f"source scripts/lib.sh; JOBS=2; for k in 1 2 3 4; do {each}; done; finish_jobs; echo end"
    done = run("-c", ask % "sleep 0.1")
    assert done.stdout.count("is complete") == 4
    assert done.stdout.endswith("end\n")
    failed = run("-c", ask % "exit 1")
    assert failed.returncode == 2
    assert "failed (exit code 1)" in failed.stderr
    assert "end" not in failed.stdout


INSTALLER = """#!/usr/bin/env bash
here=$(dirname "${BASH_SOURCE[0]}")
case "$*" in
  *find_spec*) [ -f "$here/installed" ] ;;
  "-m venv .venv") sleep 0.3; mkdir -p .venv/bin; cp "${BASH_SOURCE[0]}" .venv/bin/python; echo venv >>calls ;;
  "-m pip --version") ;;
  "-m pip "*) sleep 0.3; touch "$here/installed"; echo pip >>calls ;;
esac
"""


def test_scripts_started_side_by_side_set_python_up_once(run, tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/lib.sh").write_text((ROOT / "scripts/lib.sh").read_text())
    (tmp_path / "python").write_text(INSTALLER)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "ask.sh").write_text('source scripts/lib.sh; setup_python ""; echo "$PYTHON"')
    both = run("-c", f"cd {tmp_path}; bash ask.sh & bash ask.sh; wait", PYTHON=str(tmp_path / "python"))
    assert both.stdout.count(f"{tmp_path}/.venv/bin/python") == 2, both.stderr
    assert (tmp_path / "calls").read_text() == "venv\npip\n"


def test_an_environment_that_has_everything_is_taken_without_pip(run, tmp_path):
    """As uv makes it; nothing in it is touched."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/lib.sh").write_text((ROOT / "scripts/lib.sh").read_text())
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env bash\ncase "$*" in *find_spec*) exit 0 ;; esac\nexit 1\n')
    python.chmod(0o755)
    bare = f'bare() {{ {sys.executable} -S "$@"; }}; PYTHON=bare; '
    done = run("-c", f'{bare}cd {tmp_path}; source scripts/lib.sh; setup_python ""; echo "$PYTHON"')
    assert done.stdout.strip() == str(python), done.stderr


def test_what_an_interrupted_set_up_left_is_mended(run, tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/lib.sh").write_text((ROOT / "scripts/lib.sh").read_text())
    (tmp_path / "python").write_text(INSTALLER)
    (tmp_path / "python").chmod(0o755)
    left = tmp_path / ".venv/bin/python"
    left.parent.mkdir(parents=True)
    left.write_text("#!/usr/bin/env bash\nexit 1\n")  # no pip yet
    left.chmod(0o755)
    ask = f'cd {tmp_path}; source scripts/lib.sh; setup_python ""; echo "$PYTHON"'
    assert run("-c", ask, PYTHON=str(tmp_path / "python")).stdout.endswith(f"{left}\n")
    assert (tmp_path / "calls").read_text() == "venv\npip\n"


def test_ctrl_c_reaches_a_run_that_has_something_to_say(run, tmp_path):
    (tmp_path / "long.py").write_text(
        "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('kept')\n"
    )
    (tmp_path / "ask.sh").write_text(
        f"source {ROOT}/scripts/lib.sh; JOBS=1; background one {sys.executable} {tmp_path}/long.py"
    )
    done = run("-c", f"set -m; bash {tmp_path}/ask.sh & sleep 2; kill -INT $!; wait $!", timeout=60)
    assert done.returncode == 130
    assert done.stdout.endswith("kept\n")


def test_a_python_without_the_package_is_not_taken_for_one_that_has_it(run, tmp_path):
    """Started in this folder, any Python finds `dho_plugin`; only an installed package has `dho_plugin.trainers`."""
    ask = "source scripts/lib.sh; has && echo taken || echo refused"
    assert run("-c", ask).stdout.strip() == "taken"
    # Without site no installed package is seen; a stand-in for torch and this folder's own dho_plugin are.
    (tmp_path / "torch").mkdir()
    bare = f'bare() {{ {sys.executable} -S "$@"; }}; PYTHON=bare; '
    found = run("-c", bare + '$PYTHON -c "import dho_plugin, torch" && echo here', PYTHONPATH=str(tmp_path))
    assert found.stdout == "here\n"
    assert run("-c", bare + ask, PYTHONPATH=str(tmp_path)).stdout.strip() == "refused"
