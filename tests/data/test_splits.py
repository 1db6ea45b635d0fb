import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from dho_plugin.data.splits import by_label, draw, draw_own_val, draw_shots, draw_val, others, shown
from dho_plugin.errors import ConfigError, DataError

# Labels come mixed and class 2 comes first; class 3 is too small for 4 shots.
LABELS = [(i * 7 + 2) % 3 for i in range(54)]
LABELS[5] = LABELS[20] = LABELS[21] = 3
VAL_LABELS = [3, 0, 0, 1, 2, 1, 0, 2, 2, 1, 0, 0, 1, 2, 2, 1, 1]
TRAIN_DIR = Path("/data/train")


@pytest.fixture
def train(listing):
    return listing(TRAIN_DIR, LABELS)


@pytest.fixture
def own_val(listing):
    return listing(Path("/data/val"), VAL_LABELS)


def published(sources, seed):
    """CoOp's procedure, over lists: seed once, then sample every class of every (labels, shots) in turn."""
    before = random.getstate()
    random.seed(seed)
    drawn = []
    for labels, shots in sources:
        tracker = defaultdict(list)
        for place, label in enumerate(labels):
            tracker[label].append(place)
        drawn.append([p for c in tracker.values() for p in (random.sample(c, shots) if len(c) >= shots else c)])
    random.setstate(before)
    return drawn


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 12345])
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_the_shots_are_coops(train, own_val, shots, seed):
    expected = published([(LABELS, shots), (VAL_LABELS, min(shots, 4))], seed)
    both, alone = draw_shots(train, own_val, shots, seed), draw_shots(train, None, shots, seed)
    assert [both.train.tolist(), both.val.tolist()] == expected
    assert alone.train.tolist() == expected[0]
    assert alone.val is None


def test_a_known_draw_stays_what_it_was(train):
    assert draw_shots(train, None, 2, seed=1).train.tolist() == [12, 6, 25, 10, 53, 44, 20, 21]


def test_drawing_leaves_the_global_generator_alone(train, own_val):
    random.seed(0)
    before = random.getstate()
    draw_shots(train, own_val, 4, seed=5)
    assert random.getstate() == before


def test_a_small_class_gives_all_it_has_and_is_said_once(train, capsys):
    shots = draw_shots(train, None, 4, seed=1)
    assert [p for p in shots.train if LABELS[p] == 3] == [5, 20, 21]
    said = capsys.readouterr().out
    assert said == "DATASET.NUM_SHOTS 4: 1 of 4 classes have fewer training images and give all they have: name 3 (3)\n"
    draw_shots(train, None, 3, seed=1)
    assert capsys.readouterr().out == ""


def test_more_shots_than_any_class_has_are_a_slip(train):
    assert len(draw_shots(train, None, 18, seed=1).train) == 3 + sum(min(LABELS.count(label), 18) for label in range(3))
    with pytest.raises(DataError, match=r"has 18 training images, fewer than DATASET\.NUM_SHOTS 19; .* at most 18"):
        draw_shots(train, None, 19, seed=1)


def test_seeds_differ_and_zero_is_a_seed(train):
    draws = [draw_shots(train, None, 4, seed).train.tolist() for seed in (0, 1, 2)]
    assert draws[0] != draws[1] != draws[2] != draws[0]


def test_a_seed_that_fixes_nothing_is_refused_only_where_something_is_drawn(train, own_val):
    nothing = np.array([], dtype=np.int64)
    for attempt in (
        lambda: draw_shots(train, None, 1, -1),
        lambda: draw_val(train, nothing, 0, 1, -1),
        lambda: draw_own_val(train, own_val, 0, 1, -1),
    ):
        with pytest.raises(ConfigError, match="SEED: -1"):
            attempt()
    assert draw_val(train, nothing, 0, 0, -1).tolist() == []


def test_validation_shots_come_from_the_rest_after_all_shots(train):
    labeled = draw_shots(train, None, 2, seed=7).train
    generator = random.Random(7)
    rest = [place for place in range(len(LABELS)) if place not in labeled.tolist()]
    for label in dict.fromkeys(LABELS):
        generator.sample([place for place in range(len(LABELS)) if LABELS[place] == label], 2)
    expected = [
        place
        for label in dict.fromkeys(LABELS[place] for place in rest)
        for place in generator.sample([place for place in rest if LABELS[place] == label], 1)
    ]
    assert draw_val(train, labeled, 2, 1, seed=7).tolist() == expected


def test_validation_shots_avoid_whatever_is_labeled(train):
    labeled = np.array([place for place in range(len(LABELS)) if place % 4 == 0])
    val = draw_val(train, labeled, 2, 2, seed=1)
    assert not set(val.tolist()) & set(labeled.tolist())
    assert [[LABELS[place] for place in val].count(label) for label in range(4)] == [2, 2, 2, 2]


def test_a_class_with_too_few_images_left_is_refused(train):
    labeled = draw_shots(train, None, 2, seed=1).train
    with pytest.raises(DataError, match=r"class 'name 3' \(label 3, e.g. .*5.jpg\) has 3 training images") as error:
        draw_val(train, labeled, 2, 2, seed=1)
    assert "and 1 beside the labeled ones, fewer than DATASET.NUM_VAL_SHOTS 2" in str(error.value)
    assert "at most 1 validation shots" in str(error.value)
    assert len(draw_val(train, labeled, 2, 1, seed=1)) == 4


@pytest.mark.parametrize("shots", [-1, 2])
def test_own_validation_shots_follow_the_training_shots(train, own_val, shots, capsys):
    expected = published([(LABELS, 2), (VAL_LABELS, 3)] if shots > 0 else [(VAL_LABELS, 3)], seed=4)[-1]
    assert draw_own_val(train, own_val, shots, 3, seed=4).tolist() == expected
    assert "NUM_VAL_SHOTS 3: 1 of 4 classes have fewer validation images and give all they have: name 3 (1)" in (
        capsys.readouterr().out
    )
    assert sorted(draw_own_val(train, own_val, shots, 7, seed=4)) == list(range(len(own_val)))  # more than any has


def test_classes_come_in_order_of_first_appearance_and_images_without_one_do_not():
    labels = np.array([5, -1, 0, 5, -1, 2, 0])
    assert [group.tolist() for group in by_label(labels)] == [[0, 3], [2, 6], [5]]
    assert sorted(draw(labels, 9, random.Random(0)).tolist()) == [0, 2, 3, 5, 6]
    assert draw(labels, 0, random.Random(0)).tolist() == []
    assert draw(labels[:0], 2, random.Random(0)).tolist() == []


def test_others_are_those_at_no_taken_position(train):
    left = others(train, np.array([0, 3]), np.array([1]))
    assert np.flatnonzero(~left).tolist() == [0, 1, 3]


def test_long_lists_are_cut():
    assert shown(["a", "b"], 2) == "a, b"
    assert shown(["a", "b", "c"], 2) == "a, b, ..."
