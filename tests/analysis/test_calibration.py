"""Calibration against its definition, in plain Python."""

import math

import pytest
import torch

from dho_plugin.analysis.calibration import confidence_histogram, expected_calibration_error, reliability
from dho_plugin.errors import ConfigError


def by_definition(confidence, correct, bins):
    """Guo et al.: B_m holds the samples with confidence in ((m - 1) / M, m / M]."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, c in enumerate(confidence) if (m - 1) / bins < c <= m / bins]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return 100 * total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_ece_is_its_definition(bins):
    generator = torch.Generator().manual_seed(3)
    confidence = torch.rand(500, generator=generator, dtype=torch.float64)
    correct = torch.rand(500, generator=generator) < confidence.float() ** 2
    found = expected_calibration_error(confidence, correct, bins)
    assert found == pytest.approx(by_definition(confidence.tolist(), correct.tolist(), bins), abs=1e-10)
    assert found > 1


def test_ece_of_hand_made_answers():
    confidence = torch.tensor([0.95, 0.95, 0.55, 0.55])
    assert expected_calibration_error(confidence, torch.tensor([True, True, True, False]), 10) == pytest.approx(5.0)


def test_edges_belong_to_the_lower_bin_and_empty_bins_are_nan():
    found = reliability(torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64), torch.tensor([False, True] * 2), 4)
    assert found.count.tolist() == [2, 1, 0, 1]
    assert found.accuracy[0] == 0.5
    assert math.isnan(found.accuracy[2])
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_histogram_is_in_percent():
    edges, shares = confidence_histogram(torch.tensor([0.1, 0.6, 0.61, 0.9]), 2)
    assert edges.tolist() == [0, 0.5, 1]
    assert shares.tolist() == [25, 75]


def test_nothing_and_unequal_lengths_are_refused():
    for confidence, correct in ((torch.zeros(0), torch.zeros(0)), (torch.zeros(3), torch.zeros(2))):
        with pytest.raises(ConfigError, match="shapes"):
            expected_calibration_error(confidence, correct.bool())
    with pytest.raises(ConfigError, match="bins is 0"):
        expected_calibration_error(torch.zeros(2), torch.zeros(2).bool(), 0)
