"""The recorded gradients against finite differences, and that looking at them changes nothing."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dho_plugin.core.losses import ce_loss, dho_loss, kd_loss
from dho_plugin.engine.probing import GradientProbing, unchanged
from dho_plugin.errors import ConfigError

N, U, C, D = 4, 3, 5, 6


class Student(nn.Module):
    """A small extractor with one head; its feature scale does not learn."""

    def __init__(self):
        super().__init__()
        self.body, self.ce_head = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, D)), nn.Linear(D, C)

    def features(self, images):
        return self.body(images)

    def logits_ce(self, z):
        return self.ce_head(z)


class Trainer(GradientProbing):
    """What the probe needs of a trainer."""

    def __init__(self, targets):
        node = SimpleNamespace(ETA=2.0, KD_ETA2=True, PROBE_GRADIENTS=1)
        self.cfg, self.targets = SimpleNamespace(TRAINER=SimpleNamespace(DHO=node)), targets

    def teacher_targets(self, batches):
        return self.targets[: sum(len(batch["img"]) for batch in batches)]

    def objective(self, logits_ce, labels, taught, targets):
        parts = taught[:N], targets[:N], *((taught[N:], targets[N:]) if len(taught) > N else ())
        return dho_loss(logits_ce, labels, *parts, lambda_=0.5, eta=2.0, eta2=True)


@pytest.fixture(params=["one head", "two heads"])
def world(request):
    torch.manual_seed(0)
    student = Student().double()
    head = student.ce_head if request.param == "one head" else nn.Linear(D, C).double()
    net = nn.ModuleDict({"student": student, "kd_head": head})
    net.student, net.kd_head = student, head
    x, u, targets = (torch.randn(shape, dtype=torch.float64) for shape in ((N, 2), (U, 2), (N + U, C)))
    batches = [{"img": x, "label": torch.tensor([0, 1, 2, 0])}, {"img": u}]
    return net, batches, targets


def numeric(loss, parameters, step=1e-6):
    """Return the gradient of a loss with respect to all parameters as one vector, by central differences."""
    found = []
    with torch.no_grad():
        for parameter in parameters:
            flat = parameter.view(-1)
            for place in range(len(flat)):
                kept = flat[place].item()
                flat[place] = kept + step
                up = loss().item()
                flat[place] = kept - step
                found.append((up - loss().item()) / (2 * step))
                flat[place] = kept
    return np.array(found)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_record_is_that_of_finite_differences(world):
    net, batches, targets = world
    images, labels = torch.cat([batch["img"] for batch in batches]), batches[0]["label"]
    body = list(net.student.body.parameters())

    def logits():
        z = net.student.body(images)
        return net.student.ce_head(z[:N]), net.kd_head(z)

    def kd(part):
        return kd_loss(logits()[1][part], targets[part], 2.0)

    ce = numeric(lambda: ce_loss(logits()[0], labels), body)
    labeled = numeric(lambda: kd(slice(0, N)), body)
    full = labeled + numeric(lambda: kd(slice(N, None)), body)
    found = Trainer(targets).gradient_record(net, batches)
    assert found["cosine_parameters"] == pytest.approx(cosine(ce, full), abs=1e-6)
    assert found["inner_parameters"] == pytest.approx(ce @ full, abs=1e-6)
    assert found["cosine_parameters_labeled"] == pytest.approx(cosine(ce, labeled), abs=1e-6)
    assert found["inner_parameters_labeled"] == pytest.approx(ce @ labeled, abs=1e-6)

    # Eq. 5 and 9 in numpy; the factor eta of the KD gradient has no part in a cosine
    z = net.student.body(images)[:N].detach().numpy()
    w = [head.weight.detach().numpy() for head in (net.student.ce_head, net.kd_head)]
    b = [head.bias.detach().numpy() for head in (net.student.ce_head, net.kd_head)]
    p = torch.softmax(targets[:N] / 2, 1).numpy()
    p_ce, p_kd = (torch.softmax(torch.tensor((z @ w[i].T + b[i]) / (1, 2)[i]), 1).numpy() for i in (0, 1))
    a, d = p_ce - np.eye(C)[labels.numpy()], p_kd - p
    want = [cosine(w[0].T @ a[i], w[1].T @ d[i]) for i in range(N)]
    assert found["cosine_features"] == pytest.approx(np.mean(want), abs=1e-9)
    assert found["inner_features"] == pytest.approx(2 * np.mean([(a[i] @ w[0]) @ (d[i] @ w[1]) for i in range(N)]))
    assert found["discrepancy"] == pytest.approx(np.mean((a * d).sum(1)))
    values = np.linalg.eigvals(w[0] @ w[1].T)
    assert found["eigenvalue"] == pytest.approx(values[abs(values).argmax()].real)


def test_random_state_and_buffers_come_back():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    with unchanged(net):
        net(torch.randn(8, 3))
        assert not torch.equal(net.state_dict()["0.running_mean"], before["0.running_mean"])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def train(trainer, steps):
    for number in range(steps):
        trainer.batch_idx = number
        trainer.forward_backward(*[next(stream) for stream in trainer.streams])
    return [p.detach().clone() for p in trainer.net.parameters() if p.requires_grad]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_is_the_same_to_the_last_bit(started, shared_command, tmp_path, precision):
    options = "TRAINER.VPT.DROPOUT", "0.5", "TRAINER.VPT.PREC", precision
    trainers = [
        started(shared_command("VPT_DHO", tmp_path / every, *options, "TRAINER.DHO.PROBE_GRADIENTS", every))
        for every in ("0", "2")
    ]
    without, with_probe = (train(trainer, 4) for trainer in trainers)
    assert all(torch.equal(a, b) for a, b in zip(without, with_probe, strict=True))
    assert not (tmp_path / "0" / "gradients.jsonl").exists()
    lines = [json.loads(line) for line in (tmp_path / "2" / "gradients.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2]
    assert all(np.isfinite(list(line.values())).all() for line in lines)


def test_record_of_a_real_trainer_is_that_of_its_own_loss(started, shared_command, tmp_path):
    """lambda = 1 and lambda = 0 leave L_CE and L_KD of the training's own loss."""
    trainer = started(shared_command("VPT_DHO", tmp_path, "TRAINER.DHO.PROBE_GRADIENTS", "1"))
    batches = [next(stream) for stream in trainer.streams]
    found = trainer.gradient_record(trainer.net, batches)
    prompts = [p for p in trainer.student.prompt_learner.parameters() if p.requires_grad]
    logits_ce, logits_kd, _ = trainer.net(torch.cat([b["img"] for b in batches]), len(batches[0]["label"]))
    n, targets = len(batches[0]["label"]), trainer.teacher_logits(batches)
    parts = logits_kd[:n], targets[:n], logits_kd[n:], targets[n:]
    grads = []
    for weight in (1.0, 0.0):
        loss = dho_loss(logits_ce, batches[0]["label"], *parts, lambda_=weight, eta=2.0, eta2=True).total
        grad = torch.autograd.grad(loss, prompts, retain_graph=True)
        grads.append(torch.cat([g.flatten() for g in grad]).double().numpy())
    assert found["cosine_parameters"] == pytest.approx(cosine(*grads), abs=1e-4)


@pytest.mark.parametrize(
    ("trainer", "why"), [("CoOp_DHO", "features that do not learn|stored ones"), ("VPT", "no KD loss")]
)
def test_what_has_no_two_gradients_says_so(started, shared_command, tmp_path, trainer, why):
    run = started(shared_command(trainer, tmp_path, "TRAINER.DHO.PROBE_GRADIENTS", "1"))
    with pytest.raises(ConfigError, match=f"PROBE_GRADIENTS is 1, but {trainer} has .*({why})"):
        train(run, 1)


@pytest.mark.parametrize("trainer", ["CEKD", "DHO", "SSKD", "DHKD", "CEKDFeature"])
def test_every_method_that_learns_from_both_is_recorded(started, shared_command, tmp_path, trainer):
    run = started(shared_command(f"Distill_{trainer}", tmp_path, "TRAINER.DHO.PROBE_GRADIENTS", "1"))
    train(run, 1)
    (found,) = (json.loads(line) for line in (tmp_path / "gradients.jsonl").read_text().splitlines())
    missing = {"discrepancy", "eigenvalue"} if trainer == "CEKDFeature" else set()
    assert {name for name, value in found.items() if value is None} == missing
    assert -1 <= found["cosine_parameters"] <= 1


@pytest.mark.parametrize(("trainer", "why"), [("KD", "learns no labels"), ("CE", "no KD loss")])
def test_a_method_that_learns_from_one_says_so(started, shared_command, tmp_path, trainer, why):
    run = started(shared_command(f"Distill_{trainer}", tmp_path, "TRAINER.DHO.PROBE_GRADIENTS", "1"))
    with pytest.raises(ConfigError, match=why):
        train(run, 1)
