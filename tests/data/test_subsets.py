import pytest
import torch

from dho_plugin.data.subsets import columns
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
