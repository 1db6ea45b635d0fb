import numpy as np
import pytest
import torch

from dho_plugin.data.mini.hashing import normal, permutation, uniform
from dho_plugin.data.mini.params import sample
from dho_plugin.data.mini.render import render
from dho_plugin.data.mini.sets import SET_BY_NAME, SETS
from dho_plugin.data.mini.world import (
    A_LABELS,
    CLASSES,
    PATTERNS,
    R_LABELS,
    SIZE,
    STYLES,
    SYNONYMS,
    shapes_and_patterns,
)

EXPECTED_MEANS = {
    "train": [[45, 116, 75], [151, 210, 217], [65, 74, 91]],
    "val": [[142, 184, 175], [123, 51, 47], [86, 129, 91]],
    "imagenetv2": [[171, 162, 117], [193, 111, 153], [181, 155, 128]],
    "imagenet_sketch": [[228, 229, 229], [224, 224, 224], [221, 222, 221]],
    "imagenet_a": [[177, 149, 149], [173, 181, 85], [92, 155, 103]],
    "imagenet_r": [[197, 213, 180], [141, 145, 141], [79, 60, 39]],
}


def splitmix(seed, index, slot):
    """The same hash in Python's unbounded integers."""
    mask = 2**64 - 1
    x = (index * 0x9E3779B97F4A7C15 + slot * 0xD1B54A32D192ED03 + seed * 0x2545F4914F6CDD1D) & mask
    for _ in range(2):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        x ^= x >> 31
    return (x >> 40) / 2**24


def mixed_images(index, batch=None):
    """Images of all styles, rendered in batches of a given size."""
    batches = [index] if batch is None else [index[k : k + batch] for k in range(0, len(index), batch)]
    return np.concatenate([render(sample(3, i, i % 20, i % 5, i // 20 % len(STYLES), "web")) for i in batches])


def test_uniform_is_the_documented_hash():
    index = np.array([0, 1, 7, 2**40])
    for seed, slot in ((0, 1), (17, 3), (1000, 63)):
        assert uniform(seed, index, slot).tolist() == [splitmix(seed, int(i), slot) for i in index]


def test_random_numbers_look_random():
    index = np.arange(100_000)
    u, z = uniform(5, index, 1), normal(5, index, 2)
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(u, uniform(5, index, 2))[0, 1]) < 0.01
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.01
    assert abs(z.mean()) < 0.015
    assert abs(z.std() - 1) < 0.015
    assert sorted(permutation(1, 50)) == list(range(50))


def test_classes_are_all_pairs_with_distinct_names_and_wnids():
    assert len({(c.shape, c.pattern) for c in CLASSES}) == len(CLASSES) == 100
    assert len({c.name for c in CLASSES}) == 100
    wnids = [c.wnid for c in CLASSES]
    assert wnids == sorted(wnids)
    assert len(set(wnids)) == 100
    assert all(len(w) == 9 and w[0] == "n" for w in wnids)


def test_order_of_wnids_is_not_that_of_names():
    names = [c.name for c in CLASSES]
    assert sum(a == b for a, b in zip(names, sorted(names), strict=True)) < 10


def test_subsets_are_disjoint_and_have_forty_classes():
    assert len(R_LABELS) == len(A_LABELS) == 40
    assert not set(R_LABELS) & set(A_LABELS)
    assert list(R_LABELS) == sorted(R_LABELS)
    assert list(A_LABELS) == sorted(A_LABELS)


def test_synonyms_are_distinct_words():
    words = [w for group in SYNONYMS.values() for w in group]
    assert len(set(words) | set(SYNONYMS)) == 5 * len(SYNONYMS) == 100


def test_labels_to_shapes_and_patterns():
    shape, pattern = shapes_and_patterns(np.array([3, 99]))
    assert (shape[0], pattern[0]) == (CLASSES[3].shape, CLASSES[3].pattern)
    assert CLASSES[99].name.split()[0] == PATTERNS[pattern[1]]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_pixels_do_not_depend_on_the_batch(batch):
    index = np.arange(140)
    np.testing.assert_array_equal(mixed_images(index, batch), mixed_images(index))


def test_pixels_do_not_depend_on_order_or_threads():
    index, threads = np.arange(140), torch.get_num_threads()
    straight = mixed_images(index)
    np.testing.assert_array_equal(mixed_images(index[::-1].copy())[::-1], straight)
    torch.set_num_threads(2)
    try:
        np.testing.assert_array_equal(mixed_images(index), straight)
        assert torch.get_num_threads() == 2, "render gives the threads back"
    finally:
        torch.set_num_threads(threads)


def test_images_differ_and_use_the_range():
    images = mixed_images(np.arange(140))
    assert images.shape == (140, SIZE, SIZE, 3)
    assert images.dtype == np.uint8
    assert len(np.unique(images.reshape(140, -1), axis=0)) == 140
    assert images.std(axis=(1, 2, 3)).min() > 3


def test_the_world_looks_as_it_did():
    """Mean colours of the first images of each set; a change of the world must raise generate.VERSION."""
    means = {s.name: render(s.parameters(np.arange(3))).mean((1, 2)) for s in SETS}
    for name, expected in EXPECTED_MEANS.items():
        np.testing.assert_allclose(means[name], expected, atol=1.0, err_msg=name)


def test_sets_hold_what_they_should():
    sizes = {s.name: len(s.indices()) for s in SETS}
    assert {k: v for k, v in sizes.items() if k != "imagenet_a"} == {
        "train": 14_800,
        "val": 3_000,
        "imagenetv2": 2_000,
        "imagenet_sketch": 2_000,
        "imagenet_r": 2_000,
    }
    assert 2_500 < sizes["imagenet_a"] < 4_500
    assert len({s.seed for s in SETS}) == len(SETS)


@pytest.mark.parametrize("image_set", SETS, ids=lambda s: s.name)
def test_every_class_of_a_set_has_images_and_a_small_world_is_a_part(image_set):
    whole, part = image_set.indices(), image_set.indices(0.01)
    assert set(part) <= set(whole)
    counts = np.bincount(image_set.label_of(part), minlength=100)
    assert set(np.nonzero(counts)[0]) == set(image_set.labels)
    assert counts.max() == image_set.floor if image_set.name == "train" else counts.max() <= 2


def test_labels_and_styles_of_a_set():
    image_set = SET_BY_NAME["imagenet_r"]
    index = np.arange(80)
    params = image_set.parameters(index)
    assert image_set.label_of(index).tolist() == list(R_LABELS) * 2
    assert params["shape"].tolist() == [CLASSES[k].shape for k in R_LABELS] * 2
    assert set(params["style"]) <= set(range(2, len(STYLES)))
    assert set(SET_BY_NAME["imagenet_sketch"].parameters(index)["style"]) == {STYLES.index("sketch")}


def test_v2_folders_are_numbers_and_others_are_wnids():
    assert SET_BY_NAME["imagenetv2"].class_folder(7) == "7"
    assert SET_BY_NAME["val"].class_folder(7) == CLASSES[7].wnid


def test_clutter_and_bars_only_on_photos():
    index = np.arange(2000)
    params = sample(1, index, index % 20, index % 5, index % len(STYLES), "hard")
    drawn = params["style"] != STYLES.index("photo")
    for name in ("bar", "clutter0", "clutter1", "backdrop", "light"):
        assert (params[name][drawn] == 0).all()
        assert (params[name][~drawn] > 0).any()
