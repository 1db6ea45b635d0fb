"""The worked example of CONTRIBUTING.md is taken from the page and executed."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import dho_plugin.trainers  # noqa: F401 (fills the registry, which the example's test then copies)
import pytest
import torch
import yaml

from dho_plugin.engine.checkpoint import load_checkpoint
from dho_plugin.engine.defaults import DEFAULTS
from dho_plugin.engine.registry import TRAINER_REGISTRY
from dho_plugin.train import main

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = re.search(r"^## A fifth method\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE).group(1)
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE))
KEYS = re.search(r"`(\"TASKRES\": .*),`", SECTION).group(1)
CASE = re.search(r"`(TaskRes\) .*;;)`", SECTION).group(1)


@pytest.fixture
def taskres(tmp_path, monkeypatch):
    """Put the example in its places, for one test: registry, defaults and a YAML file."""
    monkeypatch.setattr(TRAINER_REGISTRY, "_entries", dict(TRAINER_REGISTRY._entries))
    for name, node in ast.literal_eval("{" + KEYS + "}").items():
        monkeypatch.setitem(DEFAULTS["TRAINER"], name, node)
    (tmp_path / "taskres.py").write_text(BLOCKS["python"])
    spec = importlib.util.spec_from_file_location("taskres", tmp_path / "taskres.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    (tmp_path / "mini_ep10.yaml").write_text(BLOCKS["yaml"])
    return tmp_path / "mini_ep10.yaml"


@pytest.fixture
def line(taskres, shared_command, tmp_path):
    """Return a function that writes a command line of the example on the tiny tree."""
    models = (
        "MODEL.BACKBONE.NAME",
        "ViT-B/16",
        "TRAINER.DHO.TEACHER.NAME",
        "ViT-L/14@336px",
        "OPTIM.WARMUP_EPOCH",
        "0",
    )

    def build(trainer: str, out: str, *flags: str) -> list[str]:
        return shared_command(trainer, tmp_path / out, *models, flags=("--config-file", str(taskres), *flags))

    return build


def test_the_example_is_short_and_keeps_the_rules_of_the_house():
    assert set(BLOCKS) == {"python", "yaml", "bash"}
    assert sum(len(block.splitlines()) for block in BLOCKS.values()) + 3 < 60
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", "trainers/taskres.py", "-"]
    for words in (command, [*command[:3], "format", "--check", *command[4:]]):
        done = subprocess.run(words, input=BLOCKS["python"], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("trainer", ["TaskRes", "TaskRes_DHO"])
def test_it_trains_is_evaluated_and_learns_what_it_says(line, tmp_path, trainer):
    assert main(line(trainer, "run")) == 0
    names = ["residual", *(["kd_head"] if trainer.endswith("_DHO") else [])]
    for name in names:
        state = load_checkpoint(tmp_path / "run" / name / "model.pth.tar-3")["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())
    assert load_checkpoint(tmp_path / "run/residual/model.pth.tar-3")["state_dict"]["x"].abs().max() > 0
    assert main(line(trainer, "eval", "--eval-only", "--model-dir", str(tmp_path / "run"))) == 0
    runs = [yaml.safe_load((tmp_path / out / "results.json").read_text()) for out in ("run", "eval")]
    assert runs[0]["metrics"] == runs[1]["metrics"]
    assert runs[0]["method"] == trainer.replace("_DHO", " + DHO")


@pytest.mark.parametrize("trainer", ["TaskRes", "TaskRes_DHO"])
def test_it_starts_at_zero_shot_and_its_gradients_stay_with_it(line, started, trainer):
    built = started(line(trainer, "run"))
    batches = [next(stream) for stream in built.streams]
    with torch.no_grad():
        z, text = built.student.features(batches[0]["img"]), built.student.text
        start = 100 * torch.nn.functional.normalize(z, dim=1) @ text.T
        torch.testing.assert_close(built.student.logits_ce(z), start, rtol=1e-4, atol=1e-4)
    built.forward_backward(*batches)
    learned = {name for name, p in built.net.named_parameters() if p.grad is not None}
    assert learned == {"student.residual.x", *(["kd_head.weight"] if trainer.endswith("_DHO") else [])}


def test_without_its_keys_it_says_what_is_missing(line, monkeypatch, capsys):
    monkeypatch.delitem(DEFAULTS["TRAINER"], "TASKRES")
    assert main(line("TaskRes", "run")) == 2
    assert re.search(r"needs TRAINER\.TASKRES\.PREC: .*dho_plugin/engine/defaults\.py", capsys.readouterr().err)


def test_its_script_runs_both_of_its_trainers(tmp_path):
    for folder in ("scripts", "configs/datasets", "configs/trainers/TaskRes", "configs/trainers/TaskRes_DHO"):
        (tmp_path / folder).mkdir(parents=True)
    lib = (ROOT / "scripts/lib.sh").read_text()
    with_case = re.sub(r"(\n)(\s*)(CoOp\) config=)", lambda m: f"{m[1]}{m[2]}{CASE}{m[1]}{m[2]}{m[3]}", lib)
    assert with_case != lib, "config_of of scripts/lib.sh looks otherwise than CONTRIBUTING.md says"
    (tmp_path / "scripts/lib.sh").write_text(with_case)
    (tmp_path / "scripts/taskres_dho.sh").write_text(BLOCKS["bash"])
    (tmp_path / "configs/datasets/mini.yaml").touch()
    for folder in ("TaskRes", "TaskRes_DHO"):
        (tmp_path / "configs/trainers" / folder / "mini_ep10.yaml").touch()
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/bash\necho "$@" >> "{tmp_path}/calls"\n')
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", str(tmp_path / "scripts/taskres_dho.sh"), "mini", "16", "--compare"],
        env={**os.environ, "PYTHON": str(stub), "SEEDS": "1", "JOBS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text()
    for trainer in ("TaskRes", "TaskRes_DHO"):
        assert re.search(rf"dho_plugin.train .*--trainer {trainer} .*configs/trainers/{trainer}/mini_ep10.yaml", calls)


def test_every_file_that_the_page_names_is_there():
    names = re.findall(r"`((?:dho_plugin|trainers|tests|scripts|configs)/[\w/]+\.\w+)`", PAGE)
    example = {"scripts/taskres_dho.sh", "configs/trainers/TaskRes/mini_ep10.yaml"}
    assert example < set(names)
    assert [name for name in names if name not in example and not (ROOT / name).exists()] == []
