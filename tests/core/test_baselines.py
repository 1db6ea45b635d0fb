"""The losses of the methods that DHO is compared with, against float64 numpy."""

import numpy as np
import pytest
import torch

from dho_plugin.core.baselines import binary_kd_loss, feature_loss, sskd_loss
from dho_plugin.core.losses import ce_loss, kd_loss
from dho_plugin.errors import ConfigError

RNG = np.random.default_rng(3)
STUDENT, TEACHER = RNG.normal(size=(6, 5)) * 4, RNG.normal(size=(6, 5)) * 4 + 20  # a CLIP's logits lie far above 0
LABELS = RNG.integers(0, 5, size=6)


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bernoulli_kl(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def softmax_kl(teacher, student, eta):
    p, q = (np.exp(x / eta) / np.exp(x / eta).sum(axis=1, keepdims=True) for x in (teacher, student))
    return np.mean(np.sum(p * np.log(p / q), axis=1))


def test_feature_loss_is_the_mean_square_over_all_entries_of_unit_features():
    a, b = RNG.normal(size=(4, 8)) * 3, RNG.normal(size=(4, 8)) * 7
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    expected = ((units[0] - units[1]) ** 2).sum() / (4 * 8)
    assert feature_loss(*tensors(a, b)).item() == pytest.approx(expected, rel=1e-12)
    assert feature_loss(*tensors(5 * b, b)).item() == pytest.approx(0, abs=1e-20)


def test_other_widths_are_refused():
    with pytest.raises(ConfigError, match=r"\(2, 8\).*\(2, 6\).*project"):
        feature_loss(torch.zeros(2, 8), torch.zeros(2, 6))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_binary_kl_adds_up_one_problem_a_class(temperature):
    a, b = RNG.normal(size=(4, 5)) * 3, RNG.normal(size=(4, 5)) * 3
    kl = bernoulli_kl(sigmoid(b / temperature), sigmoid(a / temperature))
    expected = temperature**2 * kl.sum() / 4
    assert binary_kd_loss(*tensors(a, b), temperature, norm=False).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_binary_kl_norm_looks_at_the_difference_alone(temperature):
    kl = bernoulli_kl(0.5, sigmoid((STUDENT - TEACHER) / temperature))
    expected = temperature**2 * kl.sum() / 6
    assert binary_kd_loss(*tensors(STUDENT, TEACHER), temperature).item() == pytest.approx(expected, rel=1e-12)
    moved = binary_kd_loss(*tensors(STUDENT + 9, TEACHER + 9), temperature)
    assert moved.item() == pytest.approx(expected, rel=1e-12)


def test_binary_gradients():
    """d/ds of BinaryKL is T (sigmoid(s/T) - sigmoid(t/T)) / B, of BinaryKL-Norm T (sigmoid((s-t)/T) - 1/2) / B."""
    a, b = RNG.normal(size=(4, 5)), RNG.normal(size=(4, 5))
    expected = {False: sigmoid(a / 2) - sigmoid(b / 2), True: sigmoid((a - b) / 2) - 0.5}
    for norm, difference in expected.items():
        student, teacher = (t.requires_grad_() for t in tensors(a.copy(), b.copy()))
        binary_kd_loss(student, teacher, 2.0, norm).backward()
        np.testing.assert_allclose(student.grad.numpy(), 2 * difference / 4, atol=1e-14)
        assert teacher.grad is None


@pytest.mark.parametrize("norm", [True, False])
def test_far_logits_give_finite_losses(norm):
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = binary_kd_loss(student, -student.detach(), norm=norm)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_a_temperature_of_0_is_refused():
    with pytest.raises(ConfigError, match=r"BINARY_T is 0"):
        binary_kd_loss(torch.zeros(1, 2), torch.zeros(1, 2), 0)


@pytest.mark.parametrize("unlabeled", [True, False])
@pytest.mark.parametrize("soft", [True, False])
def test_sskd(soft, unlabeled):
    ce, t_x, t_u, kd_u = STUDENT, TEACHER, RNG.normal(size=(9, 5)), RNG.normal(size=(9, 5)) * 2
    more = tensors(kd_u, t_u) if unlabeled else []
    loss = sskd_loss(*tensors(ce, LABELS, t_x), *more, lambda_=0.3, eta=2.0, eta2=False, soft=soft)
    q = np.exp(ce) / np.exp(ce).sum(axis=1, keepdims=True)
    supervised = -np.log(q[np.arange(6), LABELS]).mean()
    taught = soft * softmax_kl(t_x, ce, 2.0) + unlabeled * softmax_kl(t_u, kd_u, 2.0)
    assert loss.ce.item() == pytest.approx(supervised, rel=1e-12)
    assert loss.kd.item() == pytest.approx(taught, rel=1e-12)
    assert loss.total.item() == pytest.approx(0.3 * supervised + 0.7 * taught, rel=1e-12)


def test_half_precision_is_computed_in_fp32():
    a, b = (t.half() for t in tensors(STUDENT, TEACHER))
    labels = torch.from_numpy(LABELS)
    pairs = [
        (feature_loss(a, b), feature_loss(a.double(), b.double())),
        (binary_kd_loss(a, b), binary_kd_loss(a.double(), b.double())),
        (
            sskd_loss(a, labels, b, lambda_=0.5, eta=2.0).total,
            0.5 * ce_loss(a.double(), labels) + 0.5 * kd_loss(a.double(), b.double(), 2.0),
        ),
    ]
    for half, exact in pairs:
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(exact.item(), rel=1e-5)
