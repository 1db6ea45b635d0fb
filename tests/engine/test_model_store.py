"""Registered models: Dassl's layout, and refusals of files that belong to something else."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dho_plugin.engine.checkpoint import save_checkpoint
from dho_plugin.engine.model_store import ModelStore
from dho_plugin.engine.optim import StepSchedule
from dho_plugin.errors import CheckpointError, ConfigError


class Prompt(nn.Module):
    def __init__(self, tokens: int = 4, names: int = 3):
        super().__init__()
        self.ctx = nn.Parameter(torch.randn(tokens, 8))
        self.register_buffer("token_prefix", torch.randn(names, 1, 8))


def store(**models: nn.Module) -> ModelStore:
    made = ModelStore()
    for name, model in models.items():
        optim = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        made.register_model(name, model, optim, torch.optim.lr_scheduler.StepLR(optim, 1, 0.1))
    return made


def step(made: ModelStore) -> None:
    for name, optim in made._optims.items():
        sum(p.square().sum() for p in made._models[name].parameters()).backward()
        optim.step()
        optim.zero_grad()
    made.update_lr()


def test_weights_and_training_state_come_back(tmp_path):
    made = store(prompt_learner=Prompt(), kd_head=nn.Linear(8, 3))
    step(made)
    made.save_model(1, tmp_path, {"classes": [["n1", "one"]]}, val_result=71.5)
    assert (tmp_path / "prompt_learner" / "model.pth.tar-1").exists()
    again = store(prompt_learner=Prompt(), kd_head=nn.Linear(8, 3))
    meta = again.load_model(tmp_path, 1, train_state=True)
    assert (meta["epoch"], meta["val_result"], meta["classes"]) == (1, 71.5, [["n1", "one"]])
    step(made)
    step(again)
    assert torch.equal(made._models["prompt_learner"].ctx, again._models["prompt_learner"].ctx)
    assert torch.equal(made._models["kd_head"].weight, again._models["kd_head"].weight)
    assert made.get_current_lr() == again.get_current_lr() == pytest.approx(0.005)


def test_a_rate_that_went_by_epochs_does_not_go_on_by_steps(tmp_path):
    optim_cfg = SimpleNamespace(MAX_EPOCH=3, WARMUP_STEPS=0)
    head = nn.Linear(8, 3)
    optim = torch.optim.SGD(head.parameters(), lr=0.5)
    made = ModelStore()
    made.register_model("kd_head", head, optim, StepSchedule(optim, optim_cfg, lambda: 6))
    for steps, old, refused in ((1, True, True), (2, True, False), (1, False, False)):
        state = made._scheds["kd_head"].state_dict() | {"last_epoch": steps}
        if old:
            del state["per_step"]
        saved = {"state_dict": head.state_dict(), "epoch": 1, "optimizer": optim.state_dict(), "scheduler": state}
        save_checkpoint(saved, tmp_path / "kd_head/model.pth.tar-1")
        if refused:
            with pytest.raises(CheckpointError, match=r"changed once an epoch.*delete the run's folder"):
                made.load_model(tmp_path, 1, train_state=True)
        made.load_model(tmp_path, 1, train_state=not refused)  # its weights are good all the same


def test_only_an_epoch_saved_for_every_model_counts(tmp_path):
    made = store(prompt_learner=Prompt(), kd_head=nn.Linear(8, 3))
    assert made.common_epoch(tmp_path) is None
    for epoch in (1, 2):
        made.save_model(epoch, tmp_path, {})
    made.drop_checkpoint(1, tmp_path)
    assert made.common_epoch(tmp_path) == 2
    made.save_model(3, tmp_path, {})
    (tmp_path / "kd_head" / "model.pth.tar-3").unlink()  # killed between two saves
    assert made.common_epoch(tmp_path) == 2


def test_tokens_of_other_class_names_do_not_stand_in_the_way(tmp_path):
    made = store(prompt_learner=Prompt(names=5))
    made.save_model(1, tmp_path, {})
    again = store(prompt_learner=Prompt(names=3))
    again.load_model(tmp_path, 1)
    assert torch.equal(made._models["prompt_learner"].ctx, again._models["prompt_learner"].ctx)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {"ctx": torch.zeros(16, 8)}}, r"ctx has shape \(16, 8\).*\(4, 8\)"),
        ({"state_dict": {"weight": torch.zeros(3)}}, r"holds no \['ctx'\]"),
        ({"epoch": 1}, r"holds no \['ctx'\]"),
        ({"state_dict": {"ctx": torch.zeros(4, 8)}}, "optimizer state does not fit"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, content, said):
    save_checkpoint(content, tmp_path / "prompt_learner" / "model.pth.tar-1")
    with pytest.raises(CheckpointError, match=said):
        store(prompt_learner=Prompt()).load_model(tmp_path, 1, train_state=True)


def test_without_an_epoch_the_best_is_loaded_else_the_last_that_is_complete(tmp_path):
    made = store(prompt_learner=Prompt(), kd_head=nn.Linear(2, 2))
    for epoch in (1, 2):
        made.save_model(epoch, tmp_path, {})
    (tmp_path / "kd_head" / "model.pth.tar-2").unlink()
    assert made.load_model(tmp_path)["epoch"] == 1
    made.save_model(7, tmp_path, {}, best=True)
    assert made.load_model(tmp_path)["epoch"] == 7
    other = store(prompt_learner=Prompt(), ce_head=nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"prompt_learner: \[1, 2\], ce_head: none.*another trainer"):
        other.load_model(tmp_path)


def test_best_checkpoints_of_different_epochs_are_no_model(tmp_path):
    made = store(prompt_learner=Prompt(), kd_head=nn.Linear(2, 2))
    made.save_model(3, tmp_path, {}, best=True)
    store(prompt_learner=Prompt()).save_model(7, tmp_path, {}, best=True)  # killed before the other one
    with pytest.raises(CheckpointError, match=r"different epochs \(\{'prompt_learner': 7, 'kd_head': 3\}\)"):
        made.load_model(tmp_path)


def test_a_name_is_registered_once():
    made = store(kd_head=nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="'kd_head' is registered already"):
        made.register_model("kd_head", nn.Linear(2, 2))
    made.forget_models()
    assert made.get_model_names() == []
