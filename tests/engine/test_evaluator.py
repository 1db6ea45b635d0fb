"""Scores of stored logits against an independent float64 computation; the log lines against CoOp's parser."""

import re

import numpy as np
import pytest
import torch

from dho_plugin.core.inference import interpolate
from dho_plugin.engine import evaluator
from dho_plugin.engine.evaluator import TestLogits, compact
from dho_plugin.errors import CacheError, DataError


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def f1_of(predicted, labels):
    scores = []
    for c in np.unique(labels):
        hit = ((predicted == c) & (labels == c)).sum()
        scores.append(2 * hit / ((predicted == c).sum() + (labels == c).sum()))
    return 100 * np.mean(scores)


@pytest.fixture
def stored():
    g = torch.Generator().manual_seed(0)
    ce, kd = (3 * torch.randn(5000, 7, generator=g) for _ in range(2))
    labels = torch.randint(0, 7, (5000,), generator=g)
    labels[::50] = -1
    return TestLogits(ce, kd, labels, tuple(f"class {c}" for c in range(7)))


@pytest.mark.parametrize(("alpha", "beta"), [(0.4, 0.5), (0.5, 1.0), (1.0, 1.0), (0.0, 2.0)])
def test_scores_equal_an_independent_computation(stored, alpha, beta):
    keep = stored.labels.numpy() >= 0
    ce, kd = (t.double().numpy()[keep] for t in (stored.logits_ce, stored.logits_kd))
    labels = stored.labels.numpy()[keep]
    mixed = (alpha * softmax(ce) + (1 - alpha) * softmax(kd / beta)).argmax(1)
    found = evaluator.score(stored, alpha, beta)
    assert found["accuracy"] == pytest.approx(100 * (mixed == labels).mean(), abs=1e-9)
    assert found["macro_f1"] == pytest.approx(f1_of(mixed, labels), abs=1e-9)
    assert found["ce_head_accuracy"] == pytest.approx(100 * (ce.argmax(1) == labels).mean(), abs=1e-9)
    assert found["kd_head_accuracy"] == pytest.approx(100 * (kd.argmax(1) == labels).mean(), abs=1e-9)
    assert (found["n"], found["n_unreadable"]) == (4900, 100)


def test_a_model_of_one_head_is_scored_by_it(stored):
    single = TestLogits(stored.logits_ce, None, stored.labels, stored.classnames)
    found = evaluator.score(single, 0.1, 0.1)
    assert found["accuracy"] == found["ce_head_accuracy"]
    assert "kd_head_accuracy" not in found
    assert "alpha" not in found


def test_nothing_readable_is_an_error(stored):
    nothing = TestLogits(stored.logits_ce, None, torch.full_like(stored.labels, -1), stored.classnames)
    with pytest.raises(DataError, match="none of the 5000 test images"):
        evaluator.score(nothing, 0.5, 1.0)


def test_logits_survive_the_disk(stored, tmp_path):
    stored.save(tmp_path / "logits" / "val.safetensors")
    again = TestLogits.load(tmp_path / "logits" / "val.safetensors")
    assert torch.equal(again.logits_ce, stored.logits_ce)
    assert torch.equal(again.logits_kd, stored.logits_kd)
    assert torch.equal(again.labels, stored.labels)
    assert again.classnames == stored.classnames


def test_damaged_logits_are_named(stored, tmp_path):
    stored.save(tmp_path / "val.safetensors")
    content = (tmp_path / "val.safetensors").read_bytes()
    (tmp_path / "val.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CacheError, match=r"val\.safetensors"):
        TestLogits.load(tmp_path / "val.safetensors")


def test_the_hosts_parser_reads_the_main_set_and_it_alone(stored):
    metrics = evaluator.score(stored, 0.5, 1.0)
    text = evaluator.result_lines(metrics) + "\n" + evaluator.result_lines({**metrics, "accuracy": 1.0}, "imagenet_a")
    accuracies = re.findall(r"\* accuracy: ([\.\deE+-]+)%", text)  # CoOp's parse_test_res.py takes the last one
    assert accuracies == [f"{metrics['accuracy']:.1f}"]
    assert text.startswith("=> result\n")
    assert "* unreadable: 100" in text
    assert "* kd_head_accuracy:" in text


def test_per_class_report_and_confusion_matrix(stored):
    labels, predicted = stored.readable().labels, evaluator.predictions(stored.readable(), 0.5, 1.0)
    lines, average = evaluator.per_class_lines(stored, 0.5, 1.0)
    expected = np.mean([100 * (predicted[labels == c] == c).double().mean().item() for c in range(7)])
    assert average == pytest.approx(expected)
    assert "* class: 3 (class 3)\ttotal: " in lines
    matrix = evaluator.confusion_matrix(stored, 0.5, 1.0)
    both = ((labels == 2) & (predicted == 5)).sum() / (labels == 2).sum()
    assert matrix[2, 5].item() == pytest.approx(both.item())
    assert matrix.sum(1).tolist() == pytest.approx([1.0] * 7)


def test_compact_logits_keep_every_argmax_and_nearly_every_probability():
    """At the scale of CLIP's logits, plain float16 would tie values that lie 0.01 apart."""
    generator = torch.Generator().manual_seed(0)
    logits = 25 + 3 * torch.randn(400, 50, generator=generator)
    logits[:, 1] = logits[:, 0] + torch.rand(400, generator=generator) / 100
    small = compact(logits)
    assert small.dtype == torch.float16
    assert torch.equal(small.argmax(1), logits.argmax(1))
    assert not torch.equal(logits.half().argmax(1), logits.argmax(1))
    for beta in (0.5, 1.0, 2.0):
        exact, stored = ((values.double() / beta).softmax(1) for values in (logits, small))
        assert (stored - exact).abs().max() < 1e-3
        assert ((stored - exact).abs() <= 0.01 * exact + 1e-7).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_compact_takes_any_width_and_the_widest_range(dtype):
    small = compact(torch.tensor([[1.0, -2.0, 3.0], [-1e5, 0.0, 2.0]]).to(dtype))
    assert small[0].tolist() == [-2.0, -5.0, 0.0]
    assert small[1].tolist() == [-torch.inf, -2.0, 0.0]
    assert torch.isfinite(interpolate(small, small, 0.5, 0.5)).all()
