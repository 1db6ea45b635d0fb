"""Token merging in runs: at evaluation and prediction, never in training, never with stored features."""

import json
from pathlib import Path

import pytest
import torch

from dho_plugin.engine.evaluator import TestLogits as StoredLogits
from dho_plugin.export import export
from dho_plugin.predict import find_images, predict
from dho_plugin.runs import load_run
from dho_plugin.train import main


def logits(folder: Path) -> torch.Tensor:
    return StoredLogits.load(folder / "logits" / "val.safetensors").logits_ce.float()


def test_a_run_is_evaluated_with_fewer_tokens(finished_run, shared_command, tmp_path):
    run, images = finished_run("LinearProbe_DHO")
    folders = {}
    for name, r, mode in (("plain", "0", "online"), ("few", "5", "fill"), ("auto", "5", "auto")):
        flags, options = ("--eval-only", "--model-dir", str(run)), ("TEST.SHIFTED", "()", "MODEL.FEATURES", mode)
        line = shared_command("LinearProbe_DHO", tmp_path / name, *options, "MODEL.TOME_R", r, flags=flags)
        assert main(line) == 0
        folders[name] = tmp_path / name
    assert torch.equal(logits(folders["plain"]), logits(run))
    assert not torch.equal(logits(folders["few"]), logits(run))
    assert torch.equal(logits(folders["few"]), logits(folders["auto"]))
    assert "Image tower: token merging" in (folders["few"] / "log.txt").read_text()
    assert json.loads((folders["few"] / "results.json").read_text())["config"]["MODEL"]["TOME_R"] == 5
    merged, plain = (load_run(run, ["MODEL.TOME_R", r]) for r in ("5", "0"))
    a, b, c = (list(predict(t, find_images([str(images)]))) for t in (merged, plain, load_run(folders["few"])))
    assert a != b
    assert a == c


def test_a_merging_model_is_exported(finished_run, tmp_path):
    trainer = load_run(finished_run("LinearProbe_DHO")[0], ["MODEL.TOME_R", "5"], exact=True)
    assert max(export(trainer, torch_export=str(tmp_path / "m.pt2")).values()) <= 1e-5


def test_a_transformer_of_timm_answers_with_fewer_tokens(shared_command, finished_run, tmp_path):
    _, images = finished_run("LinearProbe_DHO")
    words = ("MODEL.BACKBONE.NAME", "test_vit", "MODEL.BACKBONE.SIZE", "64", "TEST.SHIFTED", "()")
    assert main(shared_command("Distill_DHO", tmp_path / "run", *words)) == 0
    plain, few = (load_run(tmp_path / "run", ["MODEL.TOME_R", r], exact=True) for r in ("0", "3"))
    assert few.clip().image_path.name == "token merging"
    a, b = (list(predict(trainer, find_images([str(images)]))) for trainer in (plain, few))
    assert [guess.best for guess in a] != [guess.best for guess in b]
    assert max(export(few, torch_export=str(tmp_path / "m.pt2")).values()) <= 1e-5


@pytest.mark.parametrize(
    ("trainer", "options", "said"),
    [
        ("LinearProbe_DHO", ("MODEL.TOME_R", "4"), "train with 0, tokens are merged at inference"),
        ("VPT", ("MODEL.TOME_R", "4"), "beside visual prompts no tokens are merged"),
        ("Distill_CE", ("MODEL.TOME_R", "4"), "tokens cannot be merged in test_resnet"),
        ("LinearProbe", ("MODEL.TOME_R", "-1"), "MODEL.TOME_R is -1"),
    ],
)
def test_wrong_settings_are_named(shared_command, tmp_path, capsys, trainer, options, said):
    assert main(shared_command(trainer, tmp_path / "run", *options)) == 2
    assert said in capsys.readouterr().err
