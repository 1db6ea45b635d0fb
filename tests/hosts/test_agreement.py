"""Two independent ways to the same training: our CoOp_DHO, and a host's own CoOp turned into its DHO version."""

import pytest
import torch

from dho_plugin.engine.registry import DATASET_REGISTRY

OPTIONS = ("TRAINER.COOP.N_CTX", "4", "TRAINER.COOP.PREC", "fp32", "OPTIM.LR", "0.02", "OPTIM.MAX_EPOCH", "4")


@pytest.fixture
def both(host_trainer, monkeypatch):
    """Return the host's twin and our own trainer with the same first context."""
    monkeypatch.setattr(DATASET_REGISTRY, "_entries", dict(DATASET_REGISTRY._entries))

    def build(*options):
        twin, own = (host_trainer(name, *OPTIONS, *options) for name in ("ContextOnCLIP_DHO", "CoOp_DHO"))
        with torch.no_grad():
            own.student.prompt_learner.ctx.copy_(twin.model.prompt_learner.ctx)
        return twin, own

    return build


@pytest.mark.parametrize("lambda_", ["0.0", "0.3", "1.0"])
@pytest.mark.parametrize("head", ["cosine", "linear"])
def test_the_first_steps_agree(both, lambda_, head):
    twin, own = both("TRAINER.DHO.LAMBDA", lambda_, "TRAINER.DHO.KD_HEAD", head)
    labeled, unlabeled, first = list(twin.train_loader_x), twin._images, None
    for step in range(6):
        batch, further = labeled[step % len(labeled)], next(unlabeled)
        twin._images = iter([further])
        theirs = twin.forward_backward(batch)
        ours = own.forward_backward(*({**b, "img_teacher": b["img2"]} for b in (batch, further)))
        first = first or theirs
        assert theirs["loss"] == pytest.approx(ours["loss_ce"].item(), rel=1e-4)
        assert theirs["loss_kd"] == pytest.approx(ours["loss_kd"].item(), rel=1e-4, abs=1e-5)
    moved = (twin.model.prompt_learner.ctx - own.student.prompt_learner.ctx).abs().max()
    assert moved < 1e-4
    assert torch.allclose(twin.kd_head.head.weight, own.kd_head.weight, atol=1e-4)
    assert theirs["loss_kd"] != pytest.approx(first["loss_kd"], rel=1e-2) or lambda_ == "1.0"


def test_both_heads_give_the_same_answers(both):
    twin, own = both("TRAINER.DHO.ALPHA", "0.3", "TRAINER.DHO.BETA", "0.5")
    twin.set_model_mode("eval")
    own.set_model_mode("eval")
    images = torch.cat([batch["img"] for batch in twin.test_loader])
    with torch.no_grad():
        assert torch.allclose(twin.model_inference(images), own.model_inference(images), atol=1e-4)
