import os
import pickle

import numpy as np
import pytest

from dho_plugin.engine.data import ClassInfo, DatasetBase, Datum, ImageList
from dho_plugin.errors import DataError

DATA = [
    Datum("/data/ä/1.jpg", 2, 0, "owl", 10),
    Datum("/data/b/längerer name.jpg", 0, 1, "cat", 11),
    Datum("/data/ä/2.jpg", 2, 0, "owl", 12),
    Datum("/data/b/" + os.fsdecode(b"\xff\xfe.jpg"), 1, 3, "dog", -1),
]


def test_a_list_of_images_reads_as_the_data_it_was_made_of():
    images = ImageList.of(DATA)
    assert (len(images), list(images)) == (4, DATA)
    assert [images[i] for i in range(-4, 4)] == DATA * 2
    assert (images == DATA, images == DATA) == (True, True)
    assert ImageList.of(images) is images
    assert images.labels.tolist() == [2, 0, 2, 1]
    assert images.numbers.tolist() == [[2, 0, 10], [0, 1, 11], [2, 0, 12], [1, 3, -1]]
    assert images.classnames == ("cat", "dog", "owl")
    assert images.folders == ("/data/ä", "/data/b")
    assert repr(images) == "ImageList of 4 images in 2 folders"


def test_any_file_name_comes_back_as_it_was():
    images = ImageList.of(DATA)
    assert list(images.paths()) == [item.impath for item in DATA]
    assert images.path(1) == "/data/b/längerer name.jpg"
    assert os.fsencode(images.path(3)) == b"/data/b/\xff\xfe.jpg"
    assert ImageList.of([Datum("plain.jpg", 0)]).path(0) == "plain.jpg"
    assert ImageList.of([Datum("/root.jpg", 0)]).path(0) == "/root.jpg"


@pytest.mark.parametrize("position", [4, -5, 100])
def test_a_position_outside_of_the_list_is_an_index_error(position):
    with pytest.raises(IndexError, match=f"image {position} of 4"):
        ImageList.of(DATA)[position]


@pytest.mark.parametrize("key", [slice(None), slice(1, 3), slice(None, None, -1), slice(-2, None), slice(3, 1)])
def test_a_slice_is_a_list_of_images(key):
    part = ImageList.of(DATA)[key]
    assert isinstance(part, ImageList)
    assert list(part) == DATA[key]


def test_images_are_taken_by_position_or_mask():
    images = ImageList.of(DATA)
    assert list(images.take([3, 0, 0, -2])) == [DATA[3], DATA[0], DATA[0], DATA[2]]
    assert list(images.take(images.labels == 2)) == [DATA[0], DATA[2]]
    assert list(images.take(range(1, 3))) == DATA[1:3]
    assert list(images.take([])) == []
    assert list(images.take(np.zeros(4, dtype=bool))) == []
    with pytest.raises(IndexError):
        images.take([4])


def test_two_lists_follow_each_other():
    other = [Datum("/data/b/a name longer than all the others.jpg", 3, 0, "newt", 5)]
    both = ImageList.of(DATA[:2]) + other
    assert list(both) == [*DATA[:2], *other]
    assert list(ImageList.of(DATA) + other + DATA[:2]) == [*DATA, *other, *DATA[:2]]
    assert list(ImageList.of(DATA[:2]) + DATA[2:]) == DATA, "a class name that the first list lacks"
    renamed = [Datum("a.jpg", 2, classname="eule")]
    assert (ImageList.of(DATA[:1]) + renamed)[1].classname == "owl"
    nothing = ImageList.of([])
    assert (list(nothing + other), list(ImageList.of(other) + nothing)) == (other, other)
    assert len(nothing + nothing) == 0


def test_relabeled_images_keep_everything_else():
    images = ImageList.of(DATA)
    new = images.relabeled(np.array([0, 1, 0, -1]), ["bird", "cat"])
    assert [(item.label, item.classname) for item in new] == [(0, "bird"), (1, "cat"), (0, "bird"), (-1, "")]
    assert [(item.impath, item.domain, item.index) for item in new] == [(d.impath, d.domain, d.index) for d in DATA]
    assert list(images) == DATA


def test_lists_are_equal_where_every_image_is():
    images = ImageList.of(DATA)
    assert images == ImageList.of(list(reversed(DATA)))[::-1]
    assert images != DATA[:3]
    assert images != [*DATA[:3], Datum(DATA[3].impath, 1, 3, "dog", 99)]
    assert images != 4
    assert images != "four"
    assert images != [1, 2, 3, 4]


def test_an_empty_list_is_false_and_has_columns():
    nothing = ImageList.of([])
    assert not nothing
    assert (len(nothing), list(nothing), list(nothing.paths())) == (0, [], [])
    assert (nothing == [], nothing.labels.shape, nothing.numbers.shape) == (True, (0,), (0, 3))
    assert len(nothing[:]) == 0


def test_a_list_of_images_reaches_another_process_unchanged():
    images = pickle.loads(pickle.dumps(ImageList.of(DATA)))
    assert list(images) == DATA


def test_dataset_offers_its_classes_as_dassl_does():
    classes = [ClassInfo("n2", "missile"), ClassInfo("n7", "missile")]
    data = DatasetBase(train_x=[Datum("a.png", 0)], test=[Datum("b.png", 1)], classes=classes)
    assert (data.num_classes, data.classnames, data.class_keys) == (2, ["missile", "missile"], ["n2", "n7"])
    assert data.lab2cname == {0: "missile", 1: "missile"}
    assert (data.train_u, data.val, len(data.train_x), len(data.test)) == ([], [], 1, 1)
    data.require_training()


def test_the_summary_leaves_out_what_is_empty_and_names_further_test_sets():
    data = DatasetBase(train_x=DATA, test=DATA[:2], classes=[ClassInfo("a", "cat")] * 3)
    assert data.summary("Pets").splitlines()[1:-1] == [
        "Dataset    Pets",
        "# classes  3",
        "# train_x  4",
        "# test     2",
    ]
    night = DatasetBase(test=DATA[:1], classes=data.classes)
    night.test_name = "night"
    data.extra_tests, data.train_u = [night], ImageList.of(DATA[:3] * 400)
    assert data.summary("Pets").splitlines()[4:-1] == ["# train_u  1,200", "# test     2", "# night    1"]


def test_dataset_without_training_images_says_so():
    class OnlyTests(DatasetBase):
        no_training = "Train elsewhere."

    with pytest.raises(DataError, match=r"OnlyTests has no training images\. Train elsewhere."):
        OnlyTests(test=[Datum("b.png", 0)], classes=[ClassInfo("n2", "missile")]).require_training()
