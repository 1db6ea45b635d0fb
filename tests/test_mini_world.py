"""The embedded benchmark through the entry point: real images, really trained CLIPs, a smaller world."""

import json
from pathlib import Path

import pytest

from dho_plugin.data.mini.generate import generate
from dho_plugin.train import main

CONFIGS = Path(__file__).parent.parent / "configs"
SETS = ("val", "imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    generate(root / "mini", fraction=0.1)
    return root


def run(root: Path, trainer: str, config: str, *words: str) -> dict:
    out = root / "out" / trainer
    files = ("--dataset-config-file", f"{CONFIGS}/datasets/mini.yaml")
    method = ("--config-file", f"{CONFIGS}/trainers/{trainer}/{config}.yaml", "--trainer", trainer)
    line = ["--root", str(root), "--seed", "1", "--output-dir", str(out), *files, *method, *words]
    assert main([*line, "DATALOADER.NUM_WORKERS", "0"]) == 0
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def student(root):
    """What the student knows before it learns, by test set."""
    return run(root, "ZeroshotCLIP", "mini", "--eval-only")["metrics"]


def test_the_students_zero_shot_leaves_room_and_the_teacher_knows_more(root, student):
    teacher = run(root, "ZeroshotCLIP2", "mini", "--eval-only")["metrics"]
    assert set(student) == set(SETS)
    for name in SETS:
        assert teacher[name]["accuracy"] > student[name]["accuracy"] + 5, name
    assert 35 < student["val"]["accuracy"] < 65


def test_a_short_run_learns(root, student):
    result = run(root, "CoOp_DHO", "mini_ep10", "DATASET.NUM_SHOTS", "8", "OPTIM.MAX_EPOCH", "3")
    metrics = result["metrics"]["val"]
    assert result["dataset"] == "mini"
    assert result["teacher"] == "mini-teacher (zero-shot)"
    assert metrics["accuracy"] > 1.1 * student["val"]["accuracy"]
    epochs = [line for line in (root / "out/CoOp_DHO/log.txt").read_text().splitlines() if line.startswith("epoch [")]
    losses = [float(line.split(" loss ")[1].split()[1].strip("()")) for line in epochs]
    assert losses[-1] < losses[0]
