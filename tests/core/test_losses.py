"""Eq. 2, 3, 6, 7 and Algorithm 1, and PromptSRC's regularisers, against float64 numpy."""

import numpy as np
import pytest
import torch

from dho_plugin.core.losses import ce_loss, dho_loss, kd_loss, self_consistency_loss, teacher_probs
from dho_plugin.errors import ConfigError


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def numpy_ce(logits, labels):
    return -np.mean([np.log(row[label]) for row, label in zip(softmax(logits), labels, strict=True)])


def numpy_kl(logits_kd, teacher_logits, eta):
    p, q = softmax(teacher_logits / eta), softmax(logits_kd / eta)
    return np.mean(np.sum(p * np.log(p / q), axis=1))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    draw = {name: rng.normal(size=(6, 5)) * 4 for name in ("ce", "kd_x", "teacher_x")}
    draw |= {name: rng.normal(size=(9, 5)) * 4 for name in ("kd_u", "teacher_u")}
    return draw | {"labels": rng.integers(0, 5, size=6)}


def as_tensors(batch, dtype=torch.float32):
    names = ("ce", "labels", "kd_x", "teacher_x", "kd_u", "teacher_u")
    tensors = [torch.from_numpy(batch[name]) for name in names]
    return [t if t.dtype == torch.int64 else t.to(dtype) for t in tensors]


def test_teacher_probs_divides_by_eta(batch):
    probs = teacher_probs(torch.from_numpy(batch["teacher_x"]), eta=2.0)
    np.testing.assert_allclose(probs.numpy(), softmax(batch["teacher_x"] / 2), rtol=1e-12)


def test_ce_loss_is_the_batch_mean(batch):
    loss = ce_loss(torch.from_numpy(batch["ce"]), torch.from_numpy(batch["labels"]))
    assert loss.item() == pytest.approx(numpy_ce(batch["ce"], batch["labels"]), rel=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("eta2", [True, False])
def test_kd_loss_has_the_teacher_first(batch, eta, eta2):
    kd, teacher = torch.from_numpy(batch["kd_x"]), torch.from_numpy(batch["teacher_x"])
    expected = numpy_kl(batch["kd_x"], batch["teacher_x"], eta) * (eta**2 if eta2 else 1)
    assert kd_loss(kd, teacher, eta, eta2).item() == pytest.approx(expected, rel=1e-12)
    assert expected != pytest.approx(numpy_kl(batch["teacher_x"], batch["kd_x"], eta) * (eta**2 if eta2 else 1))


def test_kd_gradient_is_eq_8_and_none_reaches_the_teacher(batch):
    """d KL / d logits = (p_hat - p) / B at eta = 1."""
    kd = torch.from_numpy(batch["kd_x"]).requires_grad_()
    teacher = torch.from_numpy(batch["teacher_x"]).requires_grad_()
    kd_loss(kd, teacher, eta=1.0).backward()
    expected = (softmax(batch["kd_x"]) - softmax(batch["teacher_x"])) / len(batch["kd_x"])
    np.testing.assert_allclose(kd.grad.numpy(), expected, atol=1e-14)
    assert teacher.grad is None


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("unlabeled", [True, False])
def test_dho_loss(batch, lambda_, unlabeled):
    tensors = as_tensors(batch, torch.float64)
    loss = dho_loss(*(tensors if unlabeled else tensors[:4]), lambda_=lambda_, eta=2.0, eta2=True)
    ce = numpy_ce(batch["ce"], batch["labels"])
    kd = 4 * numpy_kl(batch["kd_x"], batch["teacher_x"], 2.0)
    if unlabeled:
        kd += 4 * numpy_kl(batch["kd_u"], batch["teacher_u"], 2.0)
    assert loss.ce.item() == pytest.approx(ce, rel=1e-12)
    assert loss.kd.item() == pytest.approx(kd, rel=1e-12)
    assert loss.total.item() == pytest.approx(lambda_ * ce + (1 - lambda_) * kd, rel=1e-12)


def test_without_a_kd_head_the_loss_is_the_cross_entropy(batch):
    logits, labels = as_tensors(batch)[:2]
    loss = dho_loss(logits, labels, lambda_=1, eta=2.0)
    assert torch.equal(loss.total, ce_loss(logits, labels))
    assert loss.kd.item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(batch, dtype):
    tensors = as_tensors(batch, dtype)
    loss = dho_loss(*tensors, lambda_=0.5, eta=2.0)
    exact = dho_loss(*[t.double() if t.is_floating_point() else t for t in tensors], lambda_=0.5, eta=2.0)
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(exact.total.item(), rel=1e-6)


def test_confident_logits_give_finite_losses():
    logits = torch.tensor([[1e4, -1e4]], dtype=torch.float32, requires_grad=True)
    loss = dho_loss(logits, torch.tensor([1]), logits, -logits.detach(), lambda_=0.5, eta=2.0)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert torch.isfinite(logits.grad).all()


def test_other_class_count_names_both():
    with pytest.raises(ConfigError, match=r"100 classes.*98.*SUBSAMPLE_CLASSES"):
        kd_loss(torch.zeros(2, 100), torch.zeros(2, 98), eta=2.0)


def test_other_batch_is_refused():
    with pytest.raises(ConfigError, match="same batch"):
        kd_loss(torch.zeros(2, 5), torch.zeros(1, 5), eta=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"lambda_": 1.5, "eta": 2.0}, "LAMBDA is 1.5"), ({"lambda_": 0.5, "eta": 0.0}, "ETA is 0.0")],
)
def test_settings_out_of_range(settings, message):
    zeros, labels = torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ConfigError, match=message):
        dho_loss(zeros, labels, zeros, zeros, **settings)


def test_lambda_below_1_needs_a_kd_head():
    with pytest.raises(ConfigError, match="no KD head"):
        dho_loss(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), lambda_=0.5, eta=2.0)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def towers():
    """Text features (5, 8) and image features (6, 8) of any length, prompted and frozen, and their logits."""
    rng = np.random.default_rng(1)
    text, fixed_text = rng.normal(size=(5, 8)) * 3, rng.normal(size=(5, 8))
    image, fixed_image = rng.normal(size=(6, 8)) * 10, rng.normal(size=(6, 8)) * 10
    logits, fixed_logits = 100 * unit(image) @ unit(text).T, 100 * unit(fixed_image) @ unit(fixed_text).T
    return text, fixed_text, image, fixed_image, logits, fixed_logits


def numpy_self_consistency(text, fixed_text, image, fixed_image, logits, fixed_logits):
    p, q = softmax(fixed_logits), softmax(logits)
    kl = sum(p[i, c] * (np.log(p[i, c]) - np.log(q[i, c])) for i in range(6) for c in range(5)) / (6 * 5)
    return np.abs(unit(text) - unit(fixed_text)).mean(), np.abs(unit(image) - unit(fixed_image)).mean(), kl


def test_self_consistency_as_promptsrcs_code_has_it(towers):
    loss = self_consistency_loss(*map(torch.from_numpy, towers))
    for ours, expected in zip(loss, numpy_self_consistency(*towers), strict=True):
        assert ours.item() == pytest.approx(expected, rel=1e-10)
    assert loss.logits.item() != pytest.approx(numpy_self_consistency(*towers[:4], *towers[:3:-1])[2])  # KL has a side


def test_self_consistency_gradients_reach_the_prompted_side_as_finite_differences_say(towers):
    tensors = [torch.from_numpy(part).requires_grad_() for part in (towers[0], towers[2], towers[4])]
    fixed = [torch.from_numpy(towers[i]) for i in (1, 3, 5)]

    def total(text, image, logits):
        loss = self_consistency_loss(text, fixed[0], image, fixed[1], logits, fixed[2])
        return 25 * loss.text + 10 * loss.image + loss.logits

    assert torch.autograd.gradcheck(total, tensors)


def test_features_and_logits_that_agree_cost_nothing(towers):
    text, _, image, _, logits, _ = map(torch.from_numpy, towers)
    loss = self_consistency_loss(text, 7 * text, image, 0.1 * image, logits, logits + 3)
    assert all(abs(part.item()) < 1e-15 for part in loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_self_consistency_of_half_precision_is_computed_in_fp32(towers, dtype):
    halves = [torch.from_numpy(part).to(dtype) for part in towers]
    exact = self_consistency_loss(*[half.double() for half in halves])
    for ours, expected in zip(self_consistency_loss(*halves), exact, strict=True):
        assert ours.dtype == torch.float32
        assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
