"""Eq. 11 and Algorithm 2 against float64 numpy, and the grid search against one evaluation per point."""

import numpy as np
import pytest
import torch

from dho_plugin.core import inference
from dho_plugin.core.inference import ALPHAS, BETAS, interpolate, interpolate_log, search_alpha_beta
from dho_plugin.errors import ConfigError


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture
def stored():
    """Logits of two heads that are each right in a part of the cases, so that the grid is not flat."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 7, size=400)
    hints = np.eye(7)[labels]
    return rng.normal(size=(400, 7)) * 2 + 2 * hints, rng.normal(size=(400, 7)) * 0.6 + hints, labels


def tensors(stored):
    return [torch.from_numpy(array) for array in stored]


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (0.4, 0.5), (0.0, 2.0), (1.0, 0.1)])
def test_interpolate_is_eq_11(stored, alpha, beta):
    logits_ce, logits_kd, _ = tensors(stored)
    expected = alpha * softmax(stored[0]) + (1 - alpha) * softmax(stored[1] / beta)
    probs = interpolate(logits_ce, logits_kd, alpha, beta)
    np.testing.assert_allclose(probs.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(probs.sum(dim=1).numpy(), 1, rtol=1e-12)


def test_without_a_kd_head_the_ce_head_answers(stored):
    probs = interpolate(torch.from_numpy(stored[0]), None, alpha=0.2, beta=0.5)
    np.testing.assert_allclose(probs.numpy(), softmax(stored[0]), rtol=1e-12)


def test_half_precision_logits_give_fp32(stored):
    logits_ce, logits_kd, _ = tensors(stored)
    assert interpolate(logits_ce.half(), logits_kd.bfloat16(), 0.5, 1.0).dtype == torch.float32


@pytest.mark.parametrize("block", [1 << 22, 1000])
def test_search_equals_one_evaluation_a_point(stored, monkeypatch, block):
    monkeypatch.setattr(inference, "_MAX_ELEMENTS", block)
    logits_ce, logits_kd, labels = tensors(stored)
    found = search_alpha_beta(logits_ce.float(), logits_kd.float(), labels)
    assert [point[:2] for point in found.grid] == [(alpha, beta) for alpha in ALPHAS for beta in BETAS]
    for alpha, beta, accuracy in found.grid:
        answers = interpolate(logits_ce.float(), logits_kd.float(), alpha, beta).argmax(dim=1)
        assert accuracy == pytest.approx(100 * (answers == labels).double().mean().item())
    assert found.accuracy == max(point[2] for point in found.grid)
    assert (found.alpha, found.beta, found.accuracy) in found.grid
    assert len({point[2] for point in found.grid}) > 20


def test_search_finds_the_mixture_that_helps(stored):
    logits_ce, logits_kd, labels = tensors(stored)
    found = search_alpha_beta(logits_ce, logits_kd, labels)
    for logits in (logits_ce, logits_kd):
        assert found.accuracy > 100 * (logits.argmax(dim=1) == labels).double().mean().item() + 1


def test_default_grid_holds_the_papers_points():
    assert {0.0, 0.2, 0.4, 0.5, 1.0} <= set(ALPHAS)
    assert {0.5, 1.0} <= set(BETAS)


def test_ties_go_to_the_untuned_point():
    same = torch.eye(4).repeat(3, 1) * 5
    labels = torch.arange(4).repeat(3)
    found = search_alpha_beta(same, same, labels)
    assert (found.alpha, found.beta, found.accuracy) == (0.5, 1.0, 100.0)
    assert search_alpha_beta(same, same, labels, alphas=[0.6, 0.4], betas=[2.0])[:2] == (0.4, 2.0)
    assert search_alpha_beta(same, same, labels, alphas=np.array([0.5]), betas=np.array([2.0, 0.5]))[:2] == (0.5, 0.5)


@pytest.mark.parametrize(("alpha", "beta", "key"), [(1.1, 1.0, "ALPHA"), (0.5, 0.0, "BETA"), (0.5, -1.0, "BETA")])
def test_out_of_range_names_the_key(stored, alpha, beta, key):
    logits_ce, logits_kd, labels = tensors(stored)
    with pytest.raises(ConfigError, match=f"TRAINER.DHO.{key}"):
        interpolate(logits_ce, logits_kd, alpha, beta)
    with pytest.raises(ConfigError, match=f"TRAINER.DHO.{key}"):
        search_alpha_beta(logits_ce, logits_kd, labels, [alpha], [beta])


def test_shapes_that_do_not_fit_are_refused(stored):
    logits_ce, logits_kd, labels = tensors(stored)
    with pytest.raises(ConfigError, match=r"\(400, 7\).*\(400, 6\)"):
        interpolate(logits_ce, logits_kd[:, :6], 0.5, 1.0)
    with pytest.raises(ConfigError, match=r"400 validation images.*399"):
        search_alpha_beta(logits_ce, logits_kd, labels[:-1])
    with pytest.raises(ConfigError, match="at least one"):
        search_alpha_beta(logits_ce[:0], logits_kd[:0], labels[:0])
    with pytest.raises(ConfigError, match="ALPHA is empty"):
        search_alpha_beta(logits_ce, logits_kd, labels, alphas=[])


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (0.2, 0.5), (0.0, 2.0), (1.0, 1.0)])
def test_the_log_of_the_mix_is_that_of_the_mix(alpha, beta):
    ce, kd = torch.randn(2, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(interpolate_log(ce, kd, alpha, beta), interpolate(ce, kd, alpha, beta).log())
    torch.testing.assert_close(interpolate_log(ce, None, alpha, beta), ce.log_softmax(1))


def test_the_log_of_the_mix_stays_finite_where_probabilities_vanish():
    far = torch.tensor([[0.0, 500.0]])
    assert interpolate(far, far, 0.5, 0.5)[0, 0] == 0
    assert interpolate_log(far, far, 0.5, 0.5)[0, 0] == pytest.approx(-500, abs=1)
