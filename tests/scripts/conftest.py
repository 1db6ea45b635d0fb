"""How the tests of the scripts run them: as they are, or with a stand-in for Python that only notes what is asked."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# A stand-in for Python: notes what it is asked to train, and pretends to. $FAIL names runs that fail with $CODE, $GOOD
# those that end with a higher accuracy.
STAND_IN = """#!/usr/bin/env bash
case "$2" in
  dho_plugin.train | torch.distributed.run) ;;
  dho_plugin.tables | dho_plugin.ood) name=${{2#*.}}; shift 2; echo "$name $*"; exit 0 ;;
  dho_plugin.data.mini) exit 0 ;;
  *) exec {python} "$@" ;;
esac
while [ $# -gt 0 ]; do
  case $1 in
    --trainer) trainer=$2 ;;
    --config-file) config=$(basename "$2" .yaml) ;;
    --output-dir) dir=$2 ;;
  esac
  line="${{line:-}} $1"
  shift
done
mkdir -p "$dir"
exec 8>"$dir/.lock"
flock -n 8 || exit 3
[[ "$line" == *--model-dir* || ! -f "$dir/results.json" ]] || exit 0
echo "start ${{CUDA_VISIBLE_DEVICES:-none}} $trainer $config $dir $line" >>"$CALLS"
sleep "${{SECONDS_A_RUN:-0}}"
echo "end ${{CUDA_VISIBLE_DEVICES:-none}} $dir" >>"$CALLS"
case "$dir" in ${{FAIL:-none}}) echo "something happened" >"$dir/log.txt"; exit "$CODE" ;; esac
case "$dir" in ${{GOOD:-none}}) accuracy=60.5 ;; *) accuracy=9.5 ;; esac
echo "* accuracy: $accuracy%" >"$dir/log.txt"
echo "{{}}" >"$dir/results.json"
"""


def run_bash(*words: str, timeout: float | None = None, **settings: str) -> subprocess.CompletedProcess:
    """Run bash in the repository's root with some settings in its environment, for at most `timeout` seconds.

    Ctrl-C reaches it as in a terminal, also where the tests run in the background, which are deaf to it.
    """
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **settings}
    hearing = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.run(
        ["bash", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=timeout,
        preexec_fn=hearing,
    )  # fmt: skip


@pytest.fixture(scope="session")
def run():
    """Return the function that runs bash."""
    return run_bash


@pytest.fixture
def pretend(tmp_path):
    """Return a function that runs a script with the stand-in, and returns what it did and what it asked for."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    calls.write_text("")
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(0o755)

    def go(*words: str, **settings: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        before = len(calls.read_text().splitlines())
        environment = {"PYTHON": str(python), "CALLS": str(calls), "OUTPUT": str(tmp_path / "out"), "JOBS": "1"}
        done = run_bash(*words, **{**environment, **settings})
        return done, [line.split() for line in calls.read_text().splitlines()[before:]]

    return go
