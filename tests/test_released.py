"""Checkpoints as the authors of DHO released them (`vit_b_1.pt`): evaluated, scored again, predicted with, exported."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dho_plugin import ood
from dho_plugin.engine.evaluator import TestLogits as StoredLogits
from dho_plugin.engine.image_sets import EvalDataset
from dho_plugin.export import export
from dho_plugin.predict import find_images, predict
from dho_plugin.runs import load_run
from dho_plugin.train import main

MIXED = ("TRAINER.DHO.ALPHA", "0.5", "TRAINER.DHO.BETA", "0.5")
STUDENT = (
    *("MODEL.BACKBONE.NAME", "ViT-B/16", "MODEL.BACKBONE.PRETRAINED", "True", "MODEL.BACKBONE.SIZE", "0"),
    *("TRAINER.DHO.KD_HEAD", "unit", "TRAINER.DHO.INIT", "kaiming", "TEST.SHIFTED", "('ImageNetA',)"),
)


@pytest.fixture(scope="module")
def released(tiny_weights):
    """What such a file holds, of a tiny CLIP and 4 classes: weights far from those of the CLIP it began as."""
    torch.manual_seed(7)
    clip = torch.load(tiny_weights[0], weights_only=True)
    visual = {k.removeprefix("visual."): v for k, v in clip.items() if k.startswith("visual.")}
    state = {f"backbone.{k}": v + 0.02 * torch.randn_like(v) for k, v in visual.items()}
    for head in ("ce_head", "kd_head"):
        state |= {f"{head}.weight": torch.randn(4, 32), f"{head}.bias": torch.randn(4) / 100}
    return {"model_state_dict": state, "epoch": 31, "acc": 81.6, "alpha": 0.5, "beta": 0.5}


@pytest.fixture
def evaluate(shared_command, tiny_weights, tmp_path):
    """Return a function that evaluates a file and gives the exit code and the folder of that."""

    def go(content: dict, *options: str) -> tuple[int, Path]:
        torch.save(content, tmp_path / "vit_b_1.pt")
        flags = ("--eval-only", "--model-dir", str(tmp_path / "vit_b_1.pt"))
        words = (*STUDENT, "MODEL.BACKBONE.CKPT", tiny_weights[0], *MIXED, *options)
        return main(shared_command("Distill_DHO", tmp_path / "out", *words, flags=flags)), tmp_path / "out"

    return go


def published_logits(state, reference_clip, images):
    """Return both heads' logits as the released code computes them, in float64: h_KD sees features of unit length."""
    visual = {"visual." + k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    clip, w = reference_clip(visual), {k: v.double() for k, v in state.items()}
    clip.layers = 2  # counted by its text tower's, which is not in the file
    z = clip.image(images, [])
    unit = z / z.norm(dim=1, keepdim=True)
    ce = z @ w["ce_head.weight"].T + w["ce_head.bias"]
    return ce.numpy(), (100 * (unit @ w["kd_head.weight"].T + w["kd_head.bias"])).numpy()


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_released_file_is_evaluated_predicted_with_and_exported(evaluate, released, reference_clip, tmp_path, prefix):
    named = {**released, "model_state_dict": {prefix + k: v for k, v in released["model_state_dict"].items()}}
    code, out = evaluate(named)
    assert code == 0
    assert "(it says: epoch 31, acc 81.6, alpha 0.5, beta 0.5)" in (out / "log.txt").read_text()
    results = json.loads((out / "results.json").read_text())
    assert set(results["metrics"]) == {"val", "imagenet_a"}
    trainer = load_run(out, exact=True)
    photos = EvalDataset(trainer_images(results), trainer.student_preprocess)
    images = torch.stack([photos[n]["img"] for n in range(len(photos))])
    ce, kd = published_logits(released["model_state_dict"], reference_clip, images)
    stored = StoredLogits.load(out / "logits/val.safetensors")
    for own, published in ((stored.logits_ce, ce), (stored.logits_kd, kd)):
        np.testing.assert_allclose(
            own.double().numpy(), published - published.max(1, keepdims=True), rtol=1e-3, atol=0.02
        )
    mixed = 0.5 * softmax(ce) + 0.5 * softmax(kd / 0.5)
    found = list(predict(trainer, trainer_images(results)))
    assert [one.best[0].probability for one in found] == pytest.approx(mixed.max(1).tolist(), abs=1e-4)
    assert ood.rescore(out)["val"]["accuracy"] == results["metrics"]["val"]["accuracy"]
    if not prefix:
        assert max(export(trainer, torch_export=str(tmp_path / "m.pt2")).values()) <= 1e-5


def trainer_images(results):
    root = Path(results["config"]["DATASET"]["ROOT"])
    return find_images([str(root / "imagenet/images/val")])


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, ("TRAINER.DHO.KD_HEAD", "cosine"), "kd_head has no bias"),
        ({"kd_head.weight": None, "kd_head.bias": None}, (), "holds backbone, ce_head"),
        ({"ce_head.weight": torch.zeros(9, 32)}, (), "ce_head has (4, 32)"),
        ({"backbone.proj": None}, (), "holds no ['proj']"),
    ],
)
def test_a_file_that_does_not_fit_is_named(evaluate, released, capsys, change, options, said):
    state = {k: v for k, v in (released["model_state_dict"] | change).items() if v is not None}
    assert evaluate({"model_state_dict": state}, *options)[0] == 2
    assert said in capsys.readouterr().err
