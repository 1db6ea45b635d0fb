"""Heads: Eq. 10 and h(z) = W z + b against float64 numpy, and both initializations."""

import math

import numpy as np
import pytest
import torch

from dho_plugin.core.heads import CosineHead, LinearHead, MLPHead, UnitHead, build_head
from dho_plugin.errors import ConfigError

RNG = np.random.default_rng(1)
FEATURES = RNG.normal(size=(7, 16)) * 10
CLASSES = RNG.normal(size=(5, 16)) * 3


def numpy_cosine(features, rows):
    norms = np.outer(np.linalg.norm(features, axis=1), np.linalg.norm(rows, axis=1))
    return features @ rows.T / norms


def test_linear_head():
    head = LinearHead(16, 5).double()
    weight, bias = (p.detach().numpy() for p in (head.weight, head.bias))
    logits = head(torch.from_numpy(FEATURES)).detach().numpy()
    np.testing.assert_allclose(logits, FEATURES @ weight.T + bias, rtol=1e-10)


def test_kaiming_uniform_bounds_without_init():
    torch.manual_seed(0)
    head, cosine = LinearHead(400, 300), CosineHead(400, 300, zeta=0.01)
    bound = 1 / math.sqrt(400)
    for weight in (head.weight, cosine.weight):
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_language_aware_linear_head_starts_from_unit_class_features():
    head = LinearHead(16, 5, init=torch.from_numpy(7 * CLASSES)).double()
    logits, lengths = head(torch.from_numpy(FEATURES)).detach().numpy(), np.linalg.norm(FEATURES, axis=1, keepdims=True)
    np.testing.assert_allclose(logits, lengths * numpy_cosine(FEATURES, CLASSES), atol=1e-5)
    assert not head.bias.any()


@pytest.mark.parametrize("zeta", [0.01, 0.04])
def test_cosine_head_is_eq_10(zeta):
    head = CosineHead(16, 5, zeta).double()
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(CLASSES))
    logits = head(torch.from_numpy(FEATURES)).detach().numpy()
    np.testing.assert_allclose(logits, numpy_cosine(FEATURES, CLASSES) / zeta, rtol=1e-10)


def test_cosine_head_ignores_lengths():
    small, large = (CosineHead(16, 5, 0.01, init=torch.from_numpy(CLASSES * factor)) for factor in (1, 50))
    features = torch.from_numpy(FEATURES).float()
    torch.testing.assert_close(small(features), large(features * 30))
    assert torch.allclose(large.weight.norm(dim=1), torch.ones(5))


def test_cosine_head_under_autocast_stays_in_fp32():
    head = CosineHead(16, 5, 0.01, init=torch.from_numpy(CLASSES))
    features = torch.from_numpy(FEATURES).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(
        logits.detach().numpy(), 100 * numpy_cosine(features.double().numpy(), CLASSES), atol=1e-3
    )


def test_zero_rows_give_zero_logits_and_zero_gradients():
    head = CosineHead(16, 5, 0.01)
    with torch.no_grad():
        head.weight[2] = 0
    features = torch.randn(3, 16)
    features[1] = 0
    features.requires_grad_()
    logits = head(features)
    logits.sum().backward()
    assert not logits[1].any()
    assert not logits[:, 2].any()
    assert not features.grad[1].any()
    assert not head.weight.grad[2].any()
    assert torch.isfinite(features.grad).all()
    assert features.grad[0].any()


def test_cosine_head_trains_its_rows_only():
    head = CosineHead(16, 5, 0.02)
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    assert head.zeta == 0.02
    assert "zeta=0.02" in repr(head)


def numpy_gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


@pytest.mark.parametrize("hidden", [0, 24])
def test_non_linear_head_is_linear_norm_gelu_linear(hidden):
    torch.manual_seed(0)
    head = MLPHead(16, 5, hidden, dropout=0.5).double().eval()
    with torch.no_grad():  # away from 1 and 0, so that the norm's own parameters matter
        head[1].weight.uniform_(0.5, 2)
        head[1].bias.normal_()
    p = {name: value.detach().numpy() for name, value in head.named_parameters()}
    assert p["0.weight"].shape == (hidden or 16, 16)
    x = FEATURES @ p["0.weight"].T + p["0.bias"]
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    expected = numpy_gelu(x * p["1.weight"] + p["1.bias"]) @ p["4.weight"].T + p["4.bias"]
    np.testing.assert_allclose(head(torch.from_numpy(FEATURES)).detach().numpy(), expected, rtol=1e-10)


def test_non_linear_head_drops_hidden_values_in_training_only():
    torch.manual_seed(0)
    head, features = MLPHead(16, 5, 4000, dropout=0.3), torch.from_numpy(FEATURES)
    seen = []
    head[4].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head.train()(features)
    head.eval()(features)
    assert (seen[0] == 0).double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert (seen[1] == 0).double().mean().item() < 0.01
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], seen[1][kept] / 0.7)


def test_unit_head_is_the_released_code_s():
    head = UnitHead(16, 5, 0.02).double()
    weight, bias = (p.detach().numpy() for p in (head.weight, head.bias))
    unit = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    logits = head(torch.from_numpy(FEATURES)).detach().numpy()
    np.testing.assert_allclose(logits, (unit @ weight.T + bias) / 0.02, rtol=1e-10)
    start = build_head("unit", 16, 5, zeta=0.01, init=torch.from_numpy(CLASSES)).double()
    np.testing.assert_allclose(
        start(torch.from_numpy(FEATURES)).detach().numpy(), 100 * numpy_cosine(FEATURES, CLASSES), atol=1e-4
    )


def test_non_linear_head_under_autocast_stays_in_fp32():
    head = MLPHead(16, 5).eval()
    features = torch.from_numpy(FEATURES).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head(features.float()))


def test_build_head():
    classes = torch.from_numpy(CLASSES)
    linear = build_head("linear", 16, 5, zeta=0.01, init=classes)
    cosine = build_head("cosine", 16, 5, zeta=0.03, init=classes)
    assert isinstance(linear, LinearHead)
    assert torch.allclose(linear.weight.norm(dim=1), torch.ones(5))
    assert isinstance(cosine, CosineHead)
    assert cosine.zeta == 0.03
    mlp = build_head("mlp", 16, 5, zeta=0.01, hidden=9, dropout=0.2)
    assert isinstance(mlp, MLPHead)
    assert (mlp[0].out_features, mlp[3].p, mlp[4].out_features) == (9, 0.2, 5)


def test_bad_heads_are_refused():
    with pytest.raises(ConfigError, match=r"'bilinear'.*linear, cosine, unit, mlp"):
        build_head("bilinear", 16, 5, zeta=0.01)
    with pytest.raises(ConfigError, match="INIT kaiming"):
        build_head("mlp", 16, 5, zeta=0.01, init=torch.from_numpy(CLASSES))
    with pytest.raises(ConfigError, match="ZETA"):
        CosineHead(16, 5, 0.0)
    for kind in ("linear", "cosine"):
        with pytest.raises(ConfigError, match=r"\(4, 16\).*\(5, 16\)"):
            build_head(kind, 16, 5, zeta=0.01, init=torch.zeros(4, 16))
