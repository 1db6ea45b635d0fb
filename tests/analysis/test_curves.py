"""Curves from runs' files."""

import json

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from dho_plugin.analysis.curves import (
    band,
    gain_over_second,
    mean_over_sets,
    over_progress,
    quarters,
    read_gradients,
    training_scalars,
)
from dho_plugin.errors import DataError


def test_band_over_seeds_that_miss_a_place():
    found = band([{1: 10.0, 2: 20.0}, {1: 14.0, 2: 30.0}, {1: 12.0}])
    np.testing.assert_allclose(found, [[1, 2], [12, 25], [10, 20], [14, 30], [3, 2]])
    with pytest.raises(DataError, match="at least one"):
        band([{}])


def test_gain_over_the_second_best():
    scores = {"DHO": 60.0, "CE": 40.0, "SHO": 58.5}
    assert gain_over_second(scores, "DHO") == pytest.approx(1.5)
    assert gain_over_second(scores, "CE") == pytest.approx(-20)
    assert gain_over_second({"DHO": 60.0}, "DHO") is None


def test_trainings_of_different_length_are_averaged_by_their_progress():
    long = {step: 2.0 * step for step in range(0, 401, 50)}  # 0 to 800
    short = {0: 1.0, 10: 3.0, 40: 3.0}
    found = over_progress(short, points=9)
    assert list(found) == [12.5 * k for k in range(9)]
    assert list(found.values()) == pytest.approx([1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0])
    both = [{3: {"a": long}, 1: {"a": long, "b": short}}, {1: {"a": short}, 2: {"a": short}, 3: {"a": long}}]
    two, one = mean_over_sets(both)  # seeds 3 and 1
    assert list(one) == list(two) == ["a"]
    assert [one["a"][x] for x in (0.0, 25.0, 50.0, 100.0)] == pytest.approx([0.5, 101.5, 201.5, 401.5])
    assert two["a"][75.0] == pytest.approx(600.0)
    assert over_progress({7: 0.25})[100.0] == 0.25
    with pytest.raises(DataError, match="at least one value"):
        over_progress({})


def test_quarters_of_a_training():
    """In the order of the steps, whatever the order of the records; each seed counts once."""
    one = {30: -4.0, 0: 1.0, 10: 2.0, 20: 3.0, 40: -6.0}  # five records: the first quarter has two
    two = dict.fromkeys(range(8), 1.0)
    found, negative = quarters([one, two])
    assert [quarter.mean for quarter in found] == [1.25, 2.0, -1.5, -2.5]
    assert [quarter.std for quarter in found] == pytest.approx([0.25 * 2**0.5, 2**0.5, 2.5 * 2**0.5, 3.5 * 2**0.5])
    assert negative == pytest.approx((40 + 0) / 2)
    assert [quarter.std for quarter in quarters([one])[0]] == [None] * 4
    for too_few in ([], [{1: 1.0, 2: 1.0, 3: 1.0}]):
        with pytest.raises(DataError, match="four records"):
            quarters(too_few)


def test_scalars_of_a_resumed_run(tmp_path):
    for start, offset in ((0, 0.0), (2, 100.0)):
        writer = SummaryWriter(str(tmp_path / "tensorboard"), filename_suffix=f".{start}")
        for step in range(start, start + 3):
            writer.add_scalar("train/loss", offset + step, step)
        writer.close()
    assert training_scalars(tmp_path) == {"train/loss": {0: 0.0, 1: 1.0, 2: 102.0, 3: 103.0, 4: 104.0}}
    assert training_scalars(tmp_path / "nothing") == {}


def test_gradients_of_a_killed_and_resumed_run(tmp_path):
    lines = [{"step": 0, "a": 1.0, "b": None}, {"step": 5, "a": 2.0}, {"step": 5, "a": 3.0}]
    (tmp_path / "gradients.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 10, "a"')
    assert read_gradients(tmp_path) == {"a": {0: 1.0, 5: 3.0}}
    assert read_gradients(tmp_path / "nothing") == {}
