import math

import pytest
import torch

from dho_plugin.data.subsets import columns, half, keep_classes
from dho_plugin.engine.data import ClassInfo, Datum, ImageList
from dho_plugin.errors import DataError

# "missile" and "sunglasses" stand twice in ImageNet's class names.
NAMES = {"n02001": "missile", "n02002": "tench", "n02003": "missile", "n02004": "sunglasses", "n02005": "sunglasses"}
KEYS = list(NAMES)


def test_columns_go_by_key_where_names_repeat():
    assert columns(KEYS, ["n02003", "n02005"]).tolist() == [2, 4]
    assert columns(KEYS, ["n02001", "n02004"]).tolist() == [0, 3]


@pytest.mark.parametrize("trained", [KEYS, KEYS[::-1], [KEYS[i] for i in (3, 0, 4, 1, 2)]])
def test_sliced_logits_belong_to_the_target_classes_in_any_order(trained):
    target = ["n02005", "n02001", "n02003"]
    logits = torch.tensor([[float(key[1:]) for key in trained]])
    index = columns(trained, target)
    assert index.dtype == torch.int64
    assert logits[:, index].tolist() == [[2005.0, 2001.0, 2003.0]]


def test_the_same_classes_map_to_themselves():
    assert columns(KEYS, KEYS).tolist() == [0, 1, 2, 3, 4]


def test_missing_classes_are_named_and_counted():
    with pytest.raises(DataError, match="trained on 5 classes and lacks 7 of the 8 classes") as error:
        columns(KEYS, ["n02001", *[f"n09{i:03d}" for i in range(7)]])
    assert "n09000, n09001, n09002, n09003, n09004, ..." in str(error.value)
    for advice in ("know only the classes they were trained on", "--trainer CoOp --model-dir"):
        assert advice in str(error.value)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 37, 1000])
def test_the_halves_are_coops(count):
    """CoOp: m = ceil(n / 2); base is the first m of the sorted labels, new is the others."""
    labels, m = list(range(count)), math.ceil(count / 2)
    assert list(half(count, "all")) == labels
    assert list(half(count, "base")) == labels[:m]
    if count > 1:
        assert list(half(count, "new")) == labels[m:]


def test_an_empty_half_is_refused():
    with pytest.raises(DataError, match=r"DATASET\.SUBSAMPLE_CLASSES new: of 1 classes none .* Set it to all"):
        half(1, "new")
    with pytest.raises(DataError, match="of 0 classes"):
        half(0, "base")


def test_kept_classes_are_numbered_anew_and_images_without_a_class_stay():
    classes = [ClassInfo(key, NAMES[key]) for key in KEYS]
    labels = [4, 0, -1, 3, 2, 4]
    images = ImageList.of(
        [Datum(f"/d/{i}.jpg", y, 7, NAMES[KEYS[y]] if y >= 0 else "", i) for i, y in enumerate(labels)]
    )
    kept = keep_classes(images, [4, 2], classes)
    assert kept == [
        Datum("/d/0.jpg", 0, 7, "sunglasses", 0),
        Datum("/d/2.jpg", -1, 7, "", 2),
        Datum("/d/4.jpg", 1, 7, "missile", 4),
        Datum("/d/5.jpg", 0, 7, "sunglasses", 5),
    ]
    assert keep_classes(images, range(5), classes) == images
    assert keep_classes(ImageList.of([]), [1], classes) == []
