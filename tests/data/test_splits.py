import random

import pytest

from dho_plugin.data.splits import few_shot_split
from dho_plugin.engine.data import Datum
from dho_plugin.errors import ConfigError, DataError

# Labels come mixed and class 2 comes first.
TRAIN = [Datum(f"{i}.png", (i * 7 + 2) % 3, classname=f"class {(i * 7 + 2) % 3}", index=i) for i in range(30)]


def test_shots_are_drawn_as_dassl_draws_them():
    """One `random.sample` a class, classes in order of first appearance, after `random.seed(seed)`."""
    random.seed(5)
    expected = [
        item for label in (2, 0, 1) for item in random.sample([datum for datum in TRAIN if datum.label == label], 4)
    ]
    assert few_shot_split(TRAIN, 4, seed=5).train_x == expected


def test_a_known_draw_stays_what_it_was():
    assert [item.index for item in few_shot_split(TRAIN, 2, seed=1).train_x] == [6, 3, 13, 4, 23, 29]


def test_drawing_leaves_the_global_generator_alone():
    random.seed(0)
    before = random.getstate()
    few_shot_split(TRAIN, 4, seed=5)
    assert random.getstate() == before


@pytest.mark.parametrize("num_val_shots", [0, 3])
@pytest.mark.parametrize("num_shots", [-1, 0, 1, 7])
def test_parts_are_disjoint_and_complete(num_shots, num_val_shots):
    split = few_shot_split(TRAIN, num_shots, 1, num_val_shots)
    parts = [item.index for part in split for item in part]
    assert sorted(parts) == list(range(30))
    for label in range(3):
        assert sum(item.label == label for item in split.val) == num_val_shots
        labeled = sum(item.label == label for item in split.train_x)
        assert labeled == (num_shots if num_shots > 0 else 10 - num_val_shots)
    assert [item.index for item in split.train_u] == sorted(item.index for item in split.train_u)
    assert bool(split.train_u) == (num_shots in (1, 7) and num_shots + num_val_shots < 10)


def test_validation_shots_do_not_change_the_labeled_ones():
    assert few_shot_split(TRAIN, 4, 1).train_x == few_shot_split(TRAIN, 4, 1, 3).train_x


def test_seeds_differ_and_zero_is_a_seed():
    draws = [few_shot_split(TRAIN, 4, seed).train_x for seed in (0, 1, 2)]
    assert draws[0] != draws[1] != draws[2] != draws[0]


@pytest.mark.parametrize(("num_shots", "num_val_shots"), [(11, 0), (8, 3)])
def test_more_shots_than_a_class_has_are_refused(num_shots, num_val_shots):
    with pytest.raises(DataError, match=r"class 'class 2' .* has 10 training images") as error:
        few_shot_split(TRAIN, num_shots, 1, num_val_shots)
    assert f"DATASET.NUM_SHOTS {num_shots}" in str(error.value)
    assert ("NUM_VAL_SHOTS 3" in str(error.value)) == (num_val_shots == 3)
    assert "at most 10" in str(error.value)


def test_a_seed_that_fixes_nothing_is_refused_only_where_something_is_drawn():
    with pytest.raises(ConfigError, match="SEED: -1"):
        few_shot_split(TRAIN, 4, -1)
    assert len(few_shot_split(TRAIN, -1, -1).train_x) == 30
