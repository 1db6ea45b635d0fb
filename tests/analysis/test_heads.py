"""Outcomes, agreement, cases and the surface against numpy."""

import numpy as np
import pytest
import torch

from dho_plugin.analysis.agreement import agreement
from dho_plugin.analysis.cases import KINDS, case_masks, pick_cases
from dho_plugin.analysis.outcomes import CE, KD, MIX, Outcome, outcomes
from dho_plugin.analysis.surface import surface
from dho_plugin.engine import evaluator
from dho_plugin.errors import ConfigError, DataError


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def expected(stored, alpha, beta):
    ce, kd = stored.logits_ce.numpy(), stored.logits_kd.numpy()
    return {CE: softmax(ce), KD: softmax(kd), MIX: alpha * softmax(ce) + (1 - alpha) * softmax(kd / beta)}


def test_outcomes_are_those_of_numpy_in_chunks_too(make_logits, monkeypatch):
    stored = make_logits()
    monkeypatch.setattr("dho_plugin.analysis.outcomes.CHUNK", 64)  # 200 images are three and a bit
    found = outcomes(stored, 0.3, 0.7)
    for name, probs in expected(stored, 0.3, 0.7).items():
        order = np.argsort(-probs, axis=1)
        assert found[name].prediction.tolist() == order[:, 0].tolist()
        assert found[name].top.tolist() == order[:, :3].tolist()
        np.testing.assert_allclose(found[name].top_probs, np.take_along_axis(probs, order[:, :3], 1), rtol=1e-6)
        np.testing.assert_allclose(found[name].accuracy, 100 * (order[:, 0] == stored.labels.numpy()).mean())
    assert evaluator.score(stored, 0.3, 0.7)["accuracy"] == pytest.approx(found[MIX].accuracy)


def test_one_head_and_two_classes(make_logits):
    found = outcomes(make_logits(classes=2, heads=1), 0.5, 1.0)
    assert list(found) == [CE]
    assert found[CE].top.shape == (200, 2)


def test_unreadable_images_are_left_out(make_logits):
    assert len(outcomes(make_logits(unreadable=30), 0.5, 1.0)[CE].labels) == 170
    with pytest.raises(DataError, match="none of the 5"):
        outcomes(make_logits(images=5, unreadable=5), 0.5, 1.0)


def test_joined_runs_follow_each_other(make_logits):
    parts = [outcomes(make_logits(seed=seed), 0.5, 1.0)[MIX] for seed in (0, 1)]
    both = Outcome.joined(parts)
    assert both.accuracy == pytest.approx((parts[0].accuracy + parts[1].accuracy) / 2)
    assert torch.equal(both.prediction[200:], parts[1].prediction)


def test_agreement_is_that_of_sets(make_logits):
    stored = make_logits()
    probs = expected(stored, 0.5, 0.5)
    answers = {name: p.argmax(1) for name, p in probs.items()}
    right = {name: set(np.flatnonzero(a == stored.labels.numpy())) for name, a in answers.items()}
    everything = set(range(200))
    found = agreement(outcomes(stored, 0.5, 0.5))
    want = {
        "both": right[CE] & right[KD],
        "ce_only": right[CE] - right[KD],
        "kd_only": right[KD] - right[CE],
        "neither": everything - right[CE] - right[KD],
        "same": set(np.flatnonzero(answers[CE] == answers[KD])),
        "ce_only_left": right[CE] - right[KD] - right[MIX],
        "kd_only_left": right[KD] - right[CE] - right[MIX],
        "mix_alone": right[MIX] - right[CE] - right[KD],
    }
    assert found._asdict() == pytest.approx({name: 100 * len(images) / 200 for name, images in want.items()})
    assert found.both + found.ce_only + found.kd_only + found.neither == pytest.approx(100)


def test_cases_are_what_they_are_called_and_the_most_certain_first(make_logits):
    stored = make_logits(images=2000)
    found = outcomes(stored, 0.5, 0.5)
    probs = expected(stored, 0.5, 0.5)
    for name, mask in case_masks(found).items():
        cases = pick_cases(found, mask, stored.classnames)
        certain = [probs[MIX][case.index].max() for case in cases]
        assert certain == sorted(certain, reverse=True), name
        assert len(cases) == min(3, int(mask.sum()))
        for case in cases:
            label = int(stored.labels[case.index])
            assert case.label == f"class {label}"
            assert KINDS[name] == tuple(int(probs[head][case.index].argmax()) == label for head in (CE, KD, MIX))
            for head, top in case.top.items():
                best = np.argsort(-probs[head][case.index])[:3]
                assert [entry[0] for entry in top] == [f"class {number}" for number in best]
                np.testing.assert_allclose([p for _, p in top], 100 * probs[head][case.index][best], rtol=1e-5)
    assert int(case_masks(found)["only the mix"].sum()) > 0


def test_surface_is_the_accuracy_at_every_point(make_logits):
    stored = make_logits(unreadable=20)
    found = surface(stored, alphas=(0.0, 0.4, 1.0), betas=(0.5, 2.0))
    labels = stored.labels.numpy()
    want = [
        [100 * (expected(stored, a, b)[MIX].argmax(1) == labels)[20:].mean() for b in (0.5, 2.0)] for a in (0, 0.4, 1)
    ]
    np.testing.assert_allclose(found.accuracy, want)
    assert found.accuracy[found.alphas.index(found.best[0]), found.betas.index(found.best[1])] == found.accuracy.max()
    assert found.n == 180


def test_surface_needs_two_heads(make_logits):
    with pytest.raises(ConfigError, match="no second head"):
        surface(make_logits(heads=1))
