"""Tip-Adapter's equations against loops in float64, and one step of Tip-Adapter-F against one by hand."""

import itertools

import numpy as np
import pytest
import torch

from dho_plugin.core.tip_adapter import cache_logits, mean_keys, search_cache, tip_logits
from dho_plugin.errors import ConfigError

N, D, C, B = 6, 5, 3, 4


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def world():
    """Features, unit text, unit keys, one-hot values and labels, float64."""
    rng = np.random.default_rng(0)
    values = np.eye(C)[[0, 0, 1, 1, 2, 2]]
    draws = rng.normal(size=(B, D)), unit(rng.normal(size=(C, D))), unit(rng.normal(size=(N, D)))
    return *draws, values, rng.integers(0, C, B)


def by_hand(features, text, keys, values, alpha, beta, zeta):
    """The published formula, entry by entry."""
    logits = np.zeros((len(features), text.shape[0]))
    for b, c in itertools.product(range(len(features)), range(text.shape[0])):
        f = features[b] / np.sqrt((features[b] ** 2).sum())
        votes = sum(np.exp(-beta * (1 - f @ keys[n])) for n in range(len(keys)) if values[n, c])
        logits[b, c] = f @ text[c] / zeta + alpha * votes
    return logits


def tensors(*arrays):
    return [torch.tensor(array) for array in arrays]


def test_logits_are_the_published_formula(world):
    features, text, keys, values, _ = world
    keys = keys * np.linspace(0.5, 2, N)[:, None]  # learned keys have any length
    ours = tip_logits(*tensors(features, text, keys, values), alpha=1.17, beta=5.5, zeta=0.01)
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours.numpy(), by_hand(features, text, keys, values, 1.17, 5.5, 0.01), rtol=1e-12)
    half = tip_logits(*(t.half() for t in tensors(features, text, keys, values)), alpha=1.17, beta=5.5, zeta=0.01)
    assert half.dtype == torch.float32


def test_logits_are_exact_under_autocast(world):
    features, text, keys, values, _ = (torch.tensor(part).float() if part.dtype == float else part for part in world)
    exact = tip_logits(features, text, keys, values, alpha=2.0, beta=3.0, zeta=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tip_logits(features, text, keys, values, alpha=2.0, beta=3.0, zeta=0.01), exact)


def test_one_step_of_tip_adapter_f_is_the_published_one(world):
    """Gradient of the mean cross-entropy by the chain rule, then AdamW (eps 1e-4, decay 0.01) in numpy."""
    features, text, keys, values, labels = world
    alpha, beta, zeta, rate = 1.17, 1.0, 0.01, 1e-3
    logits = by_hand(features, text, keys, values, alpha, beta, zeta)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    error = (p - np.eye(C)[labels]) / B  # d loss / d logits
    f = unit(features)
    inner = (error @ values.T) * alpha * beta * np.exp(-beta * (1 - f @ keys.T))  # d loss / d affinity
    gradient = inner.T @ f
    first, second = 0.1 * gradient / (1 - 0.9), 0.001 * gradient**2 / (1 - 0.999)
    wanted = keys * (1 - rate * 0.01) - rate * first / (np.sqrt(second) + 1e-4)

    parameter = torch.nn.Parameter(torch.tensor(keys))
    optimizer = torch.optim.AdamW([parameter], lr=rate, eps=1e-4)
    x, w, v = tensors(features, text, values)
    ours = tip_logits(x, w, parameter, v, alpha=alpha, beta=beta, zeta=zeta)
    torch.nn.functional.cross_entropy(ours, torch.tensor(labels)).backward()
    np.testing.assert_allclose(parameter.grad.numpy(), gradient, rtol=1e-9, atol=1e-15)
    optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), wanted, rtol=1e-9)


def test_keys_are_unit_means_over_the_passes():
    passes = np.random.default_rng(1).normal(size=(3, N, D))
    np.testing.assert_allclose(mean_keys(torch.tensor(passes)).numpy(), unit(passes.sum(0)), rtol=1e-12)


def test_the_search_finds_the_first_best_point_of_the_published_grid(world):
    _, text, keys, values, _ = world
    rng = np.random.default_rng(2)
    images, labels = unit(rng.normal(size=(40, D))), rng.integers(0, C, 40)
    zero_shot, affinity = images @ text.T / 0.1, images @ keys.T
    best = (-1, None, None)
    for i, j in itertools.product(range(7), range(5)):
        beta, alpha = i * (7 - 0.1) / 7 + 0.1, j * (3 - 0.1) / 5 + 0.1
        right = (by_hand(images, text, keys, values, alpha, beta, 0.1).argmax(1) == labels).sum()
        if right > best[0]:
            best = right, alpha, beta
    found = search_cache(*tensors(zero_shot, affinity, values, labels), scale=(7.0, 3.0), steps=(7, 5))
    assert (found.alpha, found.beta) == pytest.approx(best[1:])
    assert found.accuracy == pytest.approx(100 * best[0] / 40)
    with pytest.raises(ConfigError, match="validation image"):
        search_cache(*tensors(zero_shot[:0], affinity[:0], values, labels[:0]), scale=(7.0, 3.0), steps=(7, 5))


def test_a_key_s_vote_is_largest_at_the_key_itself(world):
    keys = world[2]
    votes = cache_logits(torch.tensor(keys @ keys.T), torch.eye(N, dtype=torch.float64), 5.5)
    assert torch.equal(votes.argmax(1), torch.arange(N))
    assert torch.allclose(votes.diagonal(), torch.ones(N, dtype=torch.float64))
