"""Gradient quantities against finite differences, a second autograd path and numpy."""

import numpy as np
import pytest
import torch

from dho_plugin.core.gradients import alignment, discrepancy, dominant_eigenvalue, image_alignment, residuals
from dho_plugin.core.losses import ce_loss, kd_loss

B, C, D = 5, 4, 3


def numbers(seed=0):
    """Return z, W_CE, W_KD, b, labels and teacher's logits."""
    rng = np.random.default_rng(seed)
    shapes = {"z": (B, D), "ce": (C, D), "kd": (C, D), "b": (C,), "teacher": (B, C)}
    drawn = {name: torch.tensor(rng.normal(size=shape)) for name, shape in shapes.items()}
    return drawn | {"labels": torch.tensor(rng.integers(0, C, B))}


def differences(loss, z, step=1e-6):
    """Return the gradient of a loss with respect to z by central differences."""
    found = torch.zeros_like(z)
    for place in np.ndindex(*z.shape):
        move = torch.zeros_like(z)
        move[place] = step
        found[place] = (loss(z + move) - loss(z - move)) / (2 * step)
    return found


@pytest.mark.parametrize("heads", ["one", "two"])
def test_feature_gradients_are_equation_4_and_8(heads):
    n = numbers()
    w_kd = n["ce"] if heads == "one" else n["kd"]
    p_ce, p_kd = residuals(n["z"] @ n["ce"].T + n["b"], n["labels"], n["z"] @ w_kd.T, n["teacher"])
    want_ce = differences(lambda z: B * ce_loss(z @ n["ce"].T + n["b"], n["labels"]), n["z"])
    want_kd = differences(lambda z: B * kd_loss(z @ w_kd.T, n["teacher"], 1.0), n["z"])
    torch.testing.assert_close(p_ce @ n["ce"], want_ce, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(p_kd @ w_kd, want_kd, atol=1e-7, rtol=1e-6)
    # Eq. 5 and 9, image by image
    a, b = p_ce.numpy(), p_kd.numpy()
    w_a, w_b = n["ce"].numpy(), w_kd.numpy()
    inner = [a[i] @ w_a @ w_b.T @ b[i] for i in range(B)]
    cosine = [inner[i] / np.linalg.norm(w_a.T @ a[i]) / np.linalg.norm(w_b.T @ b[i]) for i in range(B)]
    found = image_alignment(want_ce, want_kd)
    assert found.cosine == pytest.approx(np.mean(cosine), abs=1e-6)
    assert found.inner == pytest.approx(np.mean(inner), abs=1e-6)


def test_with_eta_the_kd_residual_has_the_direction_of_its_gradient():
    n = numbers()
    _, p_kd = residuals(n["z"] @ n["ce"].T, n["labels"], n["z"] @ n["kd"].T, n["teacher"], eta=2.0)
    want = differences(lambda z: B * kd_loss(z @ n["kd"].T, n["teacher"], 2.0, eta2=True), n["z"])
    torch.testing.assert_close(2.0 * p_kd @ n["kd"], want, atol=1e-7, rtol=1e-6)  # eta^2 / eta


def test_discrepancy_is_the_mean_of_inner_products():
    n = numbers(1)
    a, b = residuals(n["z"] @ n["ce"].T, n["labels"], n["z"] @ n["kd"].T, n["teacher"])
    assert discrepancy(a, b) == pytest.approx(np.mean([a[i].numpy() @ b[i].numpy() for i in range(B)]))
    assert discrepancy(a, -a) < 0


def test_alignment_is_that_of_the_long_vectors():
    rng = np.random.default_rng(2)
    first, second = ([torch.tensor(rng.normal(size=shape)) for shape in ((3, 2), (4,), (1,))] for _ in "ab")
    second[2] = None
    long = [np.concatenate([np.zeros(1) if t is None else t.numpy().ravel() for t in side]) for side in (first, second)]
    found = alignment(first, second)
    assert found.inner == pytest.approx(long[0] @ long[1])
    assert found.cosine == pytest.approx(long[0] @ long[1] / np.linalg.norm(long[0]) / np.linalg.norm(long[1]))
    assert alignment([None], [torch.ones(2)]) == (0.0, 0.0)
    assert image_alignment(torch.zeros(2, 3), torch.ones(2, 3)) == (0.0, 0.0)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_dominant_eigenvalue_is_numpys(shape):
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=shape), rng.normal(size=shape)
    assert dominant_eigenvalue(torch.tensor(a)) == pytest.approx(np.linalg.eigvalsh(a @ a.T).max())
    values = np.linalg.eigvals(a @ b.T)
    assert dominant_eigenvalue(torch.tensor(a), torch.tensor(b)) == pytest.approx(values[abs(values).argmax()].real)
    assert dominant_eigenvalue(torch.tensor(a), torch.tensor(a)) == pytest.approx(dominant_eigenvalue(torch.tensor(a)))
