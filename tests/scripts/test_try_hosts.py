"""scripts/try_hosts.sh says what it lacks; with real hosts it is run by hand, see docs/HOSTS.md."""

import subprocess

import pytest


@pytest.mark.parametrize("words", [(), ("nowhere",)])
def test_a_wrong_command(run, words):
    done = run("scripts/try_hosts.sh", *words)
    assert done.returncode == 2
    assert "usage: bash scripts/try_hosts.sh HOSTS_DIR" in done.stderr if not words else "no such folder" in done.stderr


def test_a_trainer_that_is_not_tried(run, tmp_path):
    done = run("scripts/try_hosts.sh", str(tmp_path), "CoOp_DHO", "CoOp")
    assert done.returncode == 2
    assert "nothing to try is called 'CoOp'; there are: CoOp_DHO CoOp_DHO_twin CoCoOp_DHO" in done.stderr


def test_missing_and_edited_clones(run, tmp_path):
    done = run("scripts/try_hosts.sh", str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path}/CoOp is missing: clone it there" in done.stderr
    subprocess.run(["git", "init", "-q", str(tmp_path / "CoOp")], check=True)
    (tmp_path / "CoOp/train.py").touch()
    subprocess.run(["git", "-C", str(tmp_path / "CoOp"), "add", "train.py"], check=True)
    done = run("scripts/try_hosts.sh", str(tmp_path))
    assert f"{tmp_path}/CoOp is edited" in done.stderr
