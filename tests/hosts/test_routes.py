"""The gradient that a host's optimizer sees is that of one graph of lambda CE + (1 - lambda) KD."""

import pytest
import torch
from torch import nn

from dho_plugin.errors import ConfigError, TrainingError
from dho_plugin.hosts.routes import choose_route

ETA = 2.0


def batches(trainer):
    labeled = next(iter(trainer.train_loader_x))
    further = next(trainer._images)
    trainer._images = iter([further] * 3)
    return labeled, further


def kd_by_hand(student, teacher):
    """eta^2 KL[p || q], mean over the batch, in float64, by its definition."""
    p = (teacher.double() / ETA).exp()
    p = p / p.sum(1, keepdim=True)
    q = (student.double() / ETA).exp()
    q = q / q.sum(1, keepdim=True)
    return ETA**2 * (p * (p.log() - q.log())).sum(1).mean()


def head_by_hand(head, features, zeta):
    weight = head.head.weight.double()
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    return unit @ (weight / weight.norm(dim=1, keepdim=True)).t() / zeta


def one_graph(trainer, labeled, further, lambda_):
    """Return the gradients of prompts and head from one graph of the combined loss, and the KD loss."""
    model, n = trainer.model, len(labeled["label"])
    features = model.image_encoder(torch.cat([labeled["img"], further["img"]]), *model.extra())
    teacher = torch.cat([trainer.teacher.model(trainer.teacher.model.features(b["img2"])) for b in (labeled, further)])
    logits = head_by_hand(trainer.kd_head, features, trainer.kd_head.zeta)
    kd = kd_by_hand(logits[:n], teacher[:n]) + kd_by_hand(logits[n:], teacher[n:])
    host = nn.functional.cross_entropy(model.logits(features[:n]), labeled["label"])
    if trainer.joint:
        host = host + 0.1 * model.prompt_learner.ctx.square().sum()
    learns = [p for p in model.parameters() if p.requires_grad]
    loss = lambda_ * host.double() + (1 - lambda_) * kd
    grads = torch.autograd.grad(loss, [*learns, *trainer.kd_head.parameters()])
    clip = trainer.cfg.TRAINER.SMALL.CLIP
    if clip and trainer.joint:
        norm = torch.cat([g.flatten() for g in grads[: len(learns)]]).norm()
        assert norm > clip
        grads = [g * clip / (norm + 1e-6) for g in grads[: len(learns)]] + list(grads[len(learns) :])
    return grads, kd


def seen_gradients(trainer):
    """Return a list that fills with what both optimizers see at a step."""
    seen, learns = {}, [p for p in trainer.model.parameters() if p.requires_grad]

    def note(name, parameters):
        def hook(*_):
            if name not in seen:
                seen[name] = [p.grad.clone() for p in parameters]

        return hook

    trainer.optim.register_step_pre_hook(note("host", learns))
    trainer._optims["kd_head"].register_step_pre_hook(note("head", list(trainer.kd_head.parameters())))
    return seen


def close(found, expected):
    scale = max(e.abs().max().item() for e in expected)
    worst = max((f.double() - e.double()).abs().max().item() for f, e in zip(found, expected, strict=True))
    assert worst <= 1e-5 * scale, f"{worst:.2e} of {scale:.2e}"


MODES = {
    "fp32": (),
    "scaler": ("TRAINER.SMALL.PREC", "amp"),
    "clip": ("TRAINER.SMALL.CLIP", "0.01"),
    "scaler and clip": ("TRAINER.SMALL.PREC", "amp", "TRAINER.SMALL.CLIP", "0.01"),
}


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("route", ["A", "B"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["Frozen_DHO", "Prompted_DHO"])
def test_gradients_are_those_of_one_graph(host_trainer, name, mode, route, lambda_):
    route = "auto" if lambda_ == 0 and route == "B" else route
    trainer = host_trainer(name, "TRAINER.DHO.LAMBDA", str(lambda_), "TRAINER.DHO.ROUTE", route, *MODES[mode])
    labeled, further = batches(trainer)
    expected, kd = one_graph(trainer, labeled, further, lambda_)
    seen = seen_gradients(trainer)
    summary = trainer.forward_backward(labeled)
    hosts = len(expected) - 1
    close(seen["host"], expected[:hosts])
    close(seen["head"], expected[hosts:]) if lambda_ < 1 else close(seen["head"], [torch.zeros_like(expected[-1])])
    assert summary["loss_kd"] == pytest.approx(kd.item(), rel=1e-5)


def test_the_host_sees_its_own_batch_only(host_trainer):
    with_kd, without = host_trainer("Frozen_DHO"), host_trainer("Frozen")
    labeled, _ = batches(with_kd)
    assert with_kd.forward_backward(labeled)["loss"] == pytest.approx(without.forward_backward(labeled)["loss"], 1e-6)


@pytest.mark.parametrize("route", ["A", "B"])
def test_without_unlabeled_images_only_the_labeled_ones_teach(host_trainer, route):
    trainer = host_trainer("Prompted_DHO", "TRAINER.DHO.UNLABELED", "False", "TRAINER.DHO.ROUTE", route)
    labeled = next(iter(trainer.train_loader_x))
    features = trainer.model.image_encoder(labeled["img"], *trainer.model.extra())
    teacher = trainer.teacher.model(trainer.teacher.model.features(labeled["img2"]))
    kd = kd_by_hand(head_by_hand(trainer.kd_head, features, trainer.kd_head.zeta), teacher)
    assert trainer.forward_backward(labeled)["loss_kd"] == pytest.approx(kd.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["Frozen_DHO", "Prompted_DHO"])
def test_the_head_is_stepped_once_a_step(host_trainer, name):
    trainer = host_trainer(name, "OPTIM.MOMENTUM", "0.0", "OPTIM.WEIGHT_DECAY", "0.0")
    labeled, further = batches(trainer)
    expected, _ = one_graph(trainer, labeled, further, 0.5)
    before = trainer.kd_head.head.weight.detach().clone()
    trainer.forward_backward(labeled)
    close([before - trainer.kd_head.head.weight.detach()], [0.05 * expected[-1]])


def test_a_step_that_the_scaler_leaves_out_leaves_the_head_alone(host_trainer):
    trainer = host_trainer("Prompted_DHO", "TRAINER.SMALL.PREC", "amp")
    labeled, _ = batches(trainer)
    before = [p.detach().clone() for p in (*trainer.kd_head.parameters(), trainer.model.prompt_learner.ctx)]
    trainer.model.prompt_learner.ctx.register_hook(lambda grad: grad * float("inf"))
    trainer.forward_backward(labeled)
    after = [*trainer.kd_head.parameters(), trainer.model.prompt_learner.ctx]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_evaluation_and_the_hosts_own_steps_are_left_alone(host_trainer):
    trainer = host_trainer("Prompted_DHO")
    images = next(iter(trainer.train_loader_x))["img"]
    assert len(trainer.model.image_encoder(images, *trainer.model.extra())) == len(images)
    trainer.model(images).sum().backward()
    own = trainer.model.prompt_learner.ctx.grad.clone()
    trainer.optim.zero_grad()
    trainer.model.logits(trainer.model.image_encoder(images, *trainer.model.extra())).sum().backward()
    assert torch.equal(own, trainer.model.prompt_learner.ctx.grad)


def test_a_kd_loss_that_is_not_finite_is_an_error(host_trainer):
    trainer = host_trainer("Frozen_DHO")
    labeled, _ = batches(trainer)
    with torch.no_grad():
        trainer.kd_head.head.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="the KD loss is nan"):
        trainer.forward_backward(labeled)


def test_a_host_that_does_not_call_its_encoder(host_trainer):
    trainer = host_trainer("StoredFeatures_DHO")
    labeled, _ = batches(trainer)
    with pytest.raises(ConfigError, match=r"did not call self\.model\.image_encoder"):
        trainer.forward_backward(labeled)


def test_an_encoder_that_returns_something_else(host_trainer):
    trainer = host_trainer("Frozen_DHO")
    labeled, _ = batches(trainer)
    trainer.model.image_encoder.out = nn.Linear(24, 7)
    with pytest.raises(ConfigError, match=r"returned \(8, 7\); looked for features \(images, 32\)"):
        trainer.forward_backward(labeled)


def test_an_encoder_that_gets_other_images(host_trainer):
    trainer = host_trainer("Frozen_DHO")
    labeled, _ = batches(trainer)
    with pytest.raises(ConfigError, match=r"called with \(3, 3, 32, 32\); looked for the batch's 4 images"):
        trainer.forward_backward({**labeled, "img": labeled["img"][:3], "label": labeled["label"]})


@pytest.mark.parametrize(
    ("name", "lambda_", "message"),
    [("C", 0.5, "'C'; allowed: auto, A, B"), ("B", 0.0, "divides by TRAINER.DHO.LAMBDA")],
)
def test_wrong_routes(name, lambda_, message):
    with pytest.raises(ConfigError, match=message):
        choose_route(name, lambda_)
