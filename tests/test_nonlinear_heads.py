"""The four combinations of linear and non-linear heads of the paper's Table 14, on LinearProbe."""

import pytest
import torch

from dho_plugin.engine.checkpoint import load_checkpoint
from dho_plugin.train import main

KD_MLP = ("TRAINER.DHO.KD_HEAD", "mlp", "TRAINER.DHO.INIT", "kaiming", "TRAINER.DHO.MLP.HIDDEN", "20")
CE_MLP = ("TRAINER.LINEARPROBE.HEAD", "mlp", "TRAINER.LINEARPROBE.INIT", "kaiming")
MLP_KEYS = {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"}


@pytest.mark.parametrize(
    ("options", "ce", "kd"),
    [
        ((), {"weight", "bias"}, {"weight"}),
        (CE_MLP, MLP_KEYS, {"weight"}),
        (KD_MLP, {"weight", "bias"}, MLP_KEYS),
        ((*CE_MLP, *KD_MLP), MLP_KEYS, MLP_KEYS),
    ],
)
def test_a_combination_trains_and_is_saved(shared_command, started, tmp_path, options, ce, kd):
    built = started(shared_command("LinearProbe_DHO", tmp_path / "run", *options))
    before = {name: {k: p.clone() for k, p in m.state_dict().items()} for name, m in built._models.items()}
    for schedule in built._scheds.values():  # a warm-up in steps starts at a rate of 0
        schedule.optimizer.param_groups[0]["lr"] = 0.01
    built.forward_backward(*[next(stream) for stream in built.streams])
    built.save_model(1, tmp_path, built.checkpoint_meta())
    for name, keys in (("ce_head", ce), ("kd_head", kd)):
        saved = load_checkpoint(tmp_path / name / "model.pth.tar-1")["state_dict"]
        assert set(saved) == keys
        assert not any(torch.equal(saved[key], before[name][key]) for key in keys), name
    if kd == MLP_KEYS:
        assert saved["0.weight"].shape == (20, 32)


def test_a_distilled_student_has_them_too(shared_command, started, tmp_path):
    sizes = ("TRAINER.DHO.MLP.HIDDEN", "24", "TRAINER.DHO.MLP.DROPOUT", "0.3")
    options = ("TRAINER.DISTILL.CE_HEAD", "mlp", "TRAINER.DHO.KD_HEAD", "mlp", *sizes)
    built = started(shared_command("Distill_DHO", tmp_path / "run", *options))
    for head in (built.student.ce_head, built.kd_head):
        assert set(head.state_dict()) == MLP_KEYS
        assert (head[0].out_features, head[3].p, head[4].out_features) == (24, 0.3, 4)
    built.forward_backward(*[next(stream) for stream in built.streams])


@pytest.mark.parametrize(
    ("options", "key"),
    [(KD_MLP[:2], "TRAINER.DHO.INIT"), (CE_MLP[:2], "TRAINER.LINEARPROBE.INIT")],
)
def test_a_non_linear_head_does_not_start_from_class_features(shared_command, tmp_path, capsys, options, key):
    assert main(shared_command("LinearProbe_DHO", tmp_path / "run", *options)) == 2
    assert f"{key} is 'language'" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("MLP.DROPOUT", "1.0"), ("MLP.HIDDEN", "-1")])
def test_bad_sizes_are_named(shared_command, tmp_path, capsys, option):
    assert main(shared_command("LinearProbe_DHO", tmp_path / "run", f"TRAINER.DHO.{option[0]}", option[1])) == 2
    assert f"TRAINER.DHO.{option[0]} is {option[1]}" in capsys.readouterr().err
