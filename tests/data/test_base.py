import random
from collections import defaultdict

import pytest

from dho_plugin.data.base import SplitDataset
from dho_plugin.data.splits import draw_shots
from dho_plugin.engine.config import get_cfg_default
from dho_plugin.engine.data import ClassInfo, Datum, ImageList
from dho_plugin.errors import ConfigError, DataError

LABELS = [(place * 3 + 1) % 5 for place in range(50)]
VAL_LABELS = [place % 5 for place in range(30)]
CLASSES = [ClassInfo(f"key {label}", f"name {label}") for label in range(5)]


@pytest.fixture
def build(tmp_path, listing):
    """Return a function that builds a data set of 50 training, 30 own validation and 10 test images."""

    def build(val=None, seed=1, unlabeled=None, **settings):
        cfg = get_cfg_default()
        cfg.SEED = seed
        for key, value in settings.items():
            cfg.DATASET[key] = value
        train, test = listing(tmp_path / "images/train", LABELS), listing(tmp_path / "images/test", VAL_LABELS[:10])
        own_val = None if val is None else listing(tmp_path / "images/val", val)
        return SplitDataset(cfg, tmp_path, CLASSES, train, test, own_val, tmp_path / "images", unlabeled)

    return build


def indices(images):
    return [item.index for item in images]


def counts(images):
    return [sum(item.label == label for item in images) for label in range(5)]


@pytest.mark.parametrize("val", [None, VAL_LABELS])
@pytest.mark.parametrize("num_val_shots", [0, 3])
@pytest.mark.parametrize(("num_shots", "percent"), [(-1, 0), (0, 0), (1, 0), (6, 0), (-1, 20), (-1, 1)])
def test_parts_are_disjoint_and_complete(build, num_shots, percent, num_val_shots, val):
    data = build(val, NUM_SHOTS=num_shots, NUM_VAL_SHOTS=num_val_shots, LABELED_PERCENT=float(percent))
    from_train = [data.train_x, data.train_u, *([data.val] if val is None else [])]
    assert sorted(index for part in from_train for index in indices(part)) == list(range(50))
    every = num_shots < 1 and not percent
    labeled = 10 - (num_val_shots if val is None else 0) if every else max(num_shots, percent // 10, 1)
    assert counts(data.train_x) == [labeled] * 5
    assert indices(data.train_u) == sorted(indices(data.train_u))
    assert bool(data.train_u) != every
    own = 0 if val is None else min(num_shots, 4) if num_shots > 0 else 6
    assert counts(data.val) == [num_val_shots or own] * 5
    assert indices(data.test) == list(range(10))
    assert data.class_keys == [f"key {label}" for label in range(5)]
    assert all(item.classname == data.classnames[item.label] for part in (*from_train, data.test) for item in part)


def published(shots, val_shots, seed):
    """CoOp's procedure over lists: the training shots, then those of the validation images."""
    generator, drawn = random.Random(seed), []
    for labels, count in ((LABELS, shots), (VAL_LABELS, val_shots)):
        groups = defaultdict(list)
        for place, label in enumerate(labels):
            groups[label].append(place)
        drawn.append([place for group in groups.values() for place in generator.sample(group, count)])
    return drawn


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("shots", [1, 2, 8])
def test_shots_and_validation_images_are_coops(build, shots, seed):
    for _ in ("drawn", "read"):
        data = build(VAL_LABELS, seed, NUM_SHOTS=shots)
        assert [indices(data.train_x), indices(data.val)] == published(shots, min(shots, 4), seed)


def test_the_number_of_validation_images_may_be_another(build):
    for _ in ("drawn", "read"):
        data = build(VAL_LABELS, 2, NUM_SHOTS=2, NUM_VAL_SHOTS=5)
        assert [indices(data.train_x), indices(data.val)] == published(2, 5, 2)
    assert indices(build(VAL_LABELS, 2, NUM_SHOTS=2).val) == published(2, 2, 2)[1]


def test_validation_shots_change_neither_the_labeled_ones_nor_with_a_stored_file(build, tmp_path, capsys):
    alone = build(NUM_SHOTS=4)
    read = build(NUM_SHOTS=4, NUM_VAL_SHOTS=3)
    drawn = build(NUM_SHOTS=4, NUM_VAL_SHOTS=3, SHOTS_FROM="draw")
    assert (read.train_x, read.train_u, read.val) == (drawn.train_x, drawn.train_u, drawn.val)
    assert indices(read.train_x) == indices(alone.train_x)
    generator = random.Random(1)
    groups = [[place for place in range(50) if LABELS[place] == label] for label in dict.fromkeys(LABELS)]
    shots = [place for group in groups for place in generator.sample(group, 4)]
    rest = [[place for place in range(50) if LABELS[place] == y and place not in shots] for y in range(5)]
    order = sorted(rest, key=min)  # of first appearance among what is left
    assert indices(read.val) == [place for group in order for place in generator.sample(group, 3)]
    whence = [line.rpartition(", ")[2] for line in capsys.readouterr().out.splitlines()]
    path = tmp_path / "split_fewshot/shot_4-seed_1.json"
    assert whence == [f"stored in {path}", str(path), "drawn"]


def test_a_stored_file_without_validation_images_leaves_them_to_the_draw(build):
    build(NUM_SHOTS=2)
    assert indices(build(VAL_LABELS, NUM_SHOTS=2).val) == published(2, 2, 1)[1]


def test_percent_does_not_depend_on_the_seed_and_stores_nothing(build, tmp_path):
    draws = [indices(build(VAL_LABELS, seed, LABELED_PERCENT=20.0).train_x) for seed in (1, 2)]
    assert draws[0] == draws[1]
    assert not (tmp_path / "split_fewshot").exists()


def test_a_list_file_decides_what_is_labeled(build, tmp_path):
    (tmp_path / "10percent.txt").write_text("train/folder 1/0.jpg\ntrain/folder 4/1.jpg\n")
    data = build(LABELED_PERCENT=10.0)
    assert (indices(data.train_x), len(data.train_u)) == ([0, 1], 48)


def test_an_empty_validation_split_is_none(build):
    assert indices(build([], NUM_SHOTS=2, NUM_VAL_SHOTS=1).val) == indices(build(NUM_SHOTS=2, NUM_VAL_SHOTS=1).val)


@pytest.mark.parametrize("which", ["base", "new"])
@pytest.mark.parametrize("val", [None, VAL_LABELS])
def test_half_of_the_classes_is_taken_after_the_draw(build, which, val):
    chosen = {"base": [0, 1, 2], "new": [3, 4]}[which]  # CoOp: ceil(5 / 2) base classes
    whole = build(val, NUM_SHOTS=2, NUM_VAL_SHOTS=1)
    data = build(val, NUM_SHOTS=2, NUM_VAL_SHOTS=1, SUBSAMPLE_CLASSES=which)
    assert data.class_keys == [f"key {label}" for label in chosen]
    for part in ("train_x", "train_u", "val", "test"):
        expected = [
            Datum(item.impath, chosen.index(item.label), 0, item.classname, item.index)
            for item in getattr(whole, part)
            if item.label in chosen
        ]
        assert getattr(data, part) == expected
        assert len(expected) > 0


@pytest.mark.parametrize("settings", [{"NUM_SHOTS": 2}, {"LABELED_PERCENT": 20.0}, {}])
@pytest.mark.parametrize("which", ["all", "base", "new"])
def test_images_without_a_class_join_the_pool_and_nothing_else(build, tmp_path, settings, which):
    unlabeled = ImageList.of([Datum(str(tmp_path / f"unlabeled/{n}.jpg"), -1, index=50 + n) for n in range(3)])
    data = build(unlabeled=unlabeled, SUBSAMPLE_CLASSES=which, NUM_VAL_SHOTS=1, **settings)
    without = build(SUBSAMPLE_CLASSES=which, NUM_VAL_SHOTS=1, **settings)
    assert data.train_u == [*without.train_u, *unlabeled]
    assert (data.train_x, data.val) == (without.train_x, without.val)


def test_without_training_images_there_are_only_tests(build, tmp_path, listing):
    cfg = get_cfg_default()
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = 16, "new"
    test = listing(tmp_path / "test", VAL_LABELS)
    data = SplitDataset(cfg, tmp_path, CLASSES, ImageList.of([]), test)
    assert (data.train_x, data.train_u, data.val) == ([], [], [])
    assert counts(data.test) == [6, 6, 0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_the_second_half_of_one_class_is_refused(tmp_path, listing):
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "new"
    images = listing(tmp_path, [0, 0])
    with pytest.raises(DataError, match="SUBSAMPLE_CLASSES new: of 1 classes none"):
        SplitDataset(cfg, tmp_path, CLASSES[:1], images, images)


def test_more_than_there_is_is_refused(build):
    with pytest.raises(DataError, match=r"NUM_SHOTS 11; ask for at most 10"):
        build(NUM_SHOTS=11)
    with pytest.raises(DataError, match=r"2 beside the labeled ones, fewer than DATASET\.NUM_VAL_SHOTS 3"):
        build(NUM_SHOTS=8, NUM_VAL_SHOTS=3)
    with pytest.raises(ConfigError, match="SEED: -1"):
        build(seed=-1, NUM_SHOTS=1)
    assert len(build(seed=-1).train_x) == 50


def test_the_stored_shots_are_relative_to_the_image_folder(build, tmp_path, listing):
    expected = indices(build(NUM_SHOTS=2).train_x)
    stored = tmp_path / "split_fewshot/shot_2-seed_1.json"
    assert '"train/folder' in stored.read_text()
    moved = listing(tmp_path / "elsewhere/train", LABELS)
    assert draw_shots(moved, None, 2, 1).train.tolist() == expected
    cfg = get_cfg_default()
    cfg.SEED, cfg.DATASET.NUM_SHOTS = 1, 2
    data = SplitDataset(cfg, tmp_path, CLASSES, moved, moved, image_dir=tmp_path / "elsewhere")
    assert indices(data.train_x) == expected


def test_a_half_without_test_images_is_named(tmp_path, listing):
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "new"
    train, test = listing(tmp_path / "train", LABELS), listing(tmp_path / "test", [0, 1, 2])
    with pytest.raises(DataError, match=r"SUBSAMPLE_CLASSES new: none of the 3 test images is of these 2 classes"):
        SplitDataset(cfg, tmp_path, CLASSES, train, test)
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    assert len(SplitDataset(cfg, tmp_path, CLASSES, train, test).test) == 3
