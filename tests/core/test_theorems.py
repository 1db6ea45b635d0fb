"""Theorems A.1 and A.3 of the paper as properties of the code's own loss and interpolation."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dho_plugin.core.inference import interpolate
from dho_plugin.core.losses import dho_loss, teacher_probs

SEEDS = st.integers(0, 2**32 - 1)
CLASSES = st.integers(2, 12)
LAMBDAS = st.floats(0.01, 0.99)
TAUS = st.floats(0.5, 4.0)


def single_head_loss(probs, label, teacher_logits, lambda_, tau):
    """Eq. 12 of one head with output `probs`: lambda CE + (1 - lambda) KL[p_tau || probs], by the code's own loss.

    The KD branch divides its logits by eta = tau, so the head's logits are multiplied by tau there.
    """
    logits = probs.log()[None]
    loss = dho_loss(
        logits, torch.tensor([label]), logits * tau, teacher_logits[None], lambda_=lambda_, eta=tau, eta2=False
    )
    return loss.total


def draw_case(seed, classes, tau):
    rng = np.random.default_rng(seed)
    teacher_logits = torch.from_numpy(rng.normal(size=classes) * 3)
    return rng, int(rng.integers(classes)), teacher_logits, teacher_probs(teacher_logits[None], tau)[0]


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, classes=CLASSES, lambda_=LAMBDAS, tau=TAUS)
def test_a1_the_mixture_minimises_the_single_head_loss(seed, classes, lambda_, tau):
    rng, label, teacher_logits, p_tau = draw_case(seed, classes, tau)
    best = lambda_ * torch.eye(classes, dtype=torch.float64)[label] + (1 - lambda_) * p_tau
    lowest = single_head_loss(best, label, teacher_logits, lambda_, tau)
    others = [torch.from_numpy(rng.dirichlet(np.ones(classes))).clamp_min(1e-12) for _ in range(20)]
    others += [0.99 * best + 0.01 * other for other in others]
    for other in others:
        assert single_head_loss(other / other.sum(), label, teacher_logits, lambda_, tau) >= lowest - 1e-12


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, classes=CLASSES, lambda_=LAMBDAS, tau=TAUS)
def test_a1_the_gradient_in_the_logits_vanishes_at_the_mixture_only(seed, classes, lambda_, tau):
    """On the simplex a constant gradient in the probabilities is a zero gradient in the logits (Eq. 21, mu = 1)."""
    rng, label, teacher_logits, p_tau = draw_case(seed, classes, tau)
    best = lambda_ * torch.eye(classes, dtype=torch.float64)[label] + (1 - lambda_) * p_tau
    elsewhere = torch.from_numpy(rng.dirichlet(np.ones(classes))).clamp_min(1e-12)
    for probs, is_best in ((best, True), (elsewhere / elsewhere.sum(), False)):
        logits = probs.log().requires_grad_()
        single_head_loss(logits.softmax(dim=0), label, teacher_logits, lambda_, tau).backward()
        np.testing.assert_allclose(logits.grad.numpy(), (probs - best).numpy(), atol=1e-9)
        assert is_best or logits.grad.abs().max() > 0


def move(rng, target, epsilon):
    """A distribution at l1 distance at most epsilon from the target: a convex step towards a random one."""
    other = rng.dirichlet(np.ones(len(target)))
    distance = np.abs(other - target).sum()
    return target + min(1.0, epsilon / distance) * (other - target)


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, classes=CLASSES, lambda_=st.floats(0, 1), tau=TAUS, epsilon=st.floats(1e-6, 0.5))
def test_a3_heads_close_to_their_targets_give_a_mixture_as_close(seed, classes, lambda_, tau, epsilon):
    rng, label, _, p_tau = draw_case(seed, classes, tau)
    y = np.eye(classes)[label]
    best = lambda_ * y + (1 - lambda_) * p_tau.numpy()
    ce, kd = move(rng, y, epsilon), move(rng, p_tau.numpy(), epsilon)
    # the KD head answers at beta = tau, so its logits are tau times the log-probabilities
    logits_ce, logits_kd = (torch.from_numpy(np.log(np.maximum(p, 1e-300)))[None] for p in (ce, kd))
    mixed = interpolate(logits_ce, logits_kd * tau, alpha=lambda_, beta=tau)[0].numpy()
    assert np.abs(mixed - best).sum() <= epsilon + 1e-9


def test_a3_the_bound_is_attained():
    """Both heads wrong by epsilon in the same direction: the mixture is wrong by exactly epsilon."""
    epsilon, y, p_tau = 0.2, np.array([1.0, 0.0, 0.0]), np.array([0.6, 0.3, 0.1])
    step = epsilon / 2 * np.array([-1.0, 1.0, 0.0])
    logits = [torch.from_numpy(np.log(np.maximum(p + step, 1e-300)))[None] for p in (y, p_tau)]
    mixed = interpolate(*logits, alpha=0.5, beta=1.0)[0].numpy()
    np.testing.assert_allclose(np.abs(mixed - (0.5 * y + 0.5 * p_tau)).sum(), epsilon, atol=1e-12)
