"""Fingerprints: what changes them, and what must not."""

import numpy as np
import pytest
import torch
from torch import nn

from dho_plugin.engine.data import Datum, ImageList
from dho_plugin.engine.fingerprint import digest, file_sizes, image_keys, weights_fingerprint


def encoder(activation: type[nn.Module] = nn.GELU) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), activation(), nn.BatchNorm1d(4))


def test_the_same_weights_have_the_same_fingerprint_and_any_change_another():
    first = weights_fingerprint(encoder())
    assert weights_fingerprint(encoder()) == first
    changed = encoder()
    with torch.no_grad():
        changed[0].weight[2, 1] = torch.nextafter(changed[0].weight[2, 1], torch.tensor(9.0))
    statistics = encoder()
    statistics[2].running_mean[0] = 1e-3
    others = [changed, statistics, encoder(nn.ReLU), encoder().half(), nn.Sequential(*encoder()[:2])]
    assert len({first, *map(weights_fingerprint, others)}) == 6


def test_a_fingerprint_holds_whether_or_not_anything_is_learned_or_trained():
    module = encoder()
    first = weights_fingerprint(module)
    assert weights_fingerprint(module.requires_grad_(False).train()) == first


def images(folder: str, *indices: int) -> ImageList:
    return ImageList.of([Datum(f"{folder}/a/{i}.png", 0, 0, "a", i) for i in indices])


def test_image_keys_follow_the_relative_path_and_the_index(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    keys = image_keys(images(str(here), 0, 1, 2), here, indexed=True)
    assert keys.dtype == np.uint64
    assert len(set(keys.tolist())) == 3
    assert (keys == image_keys(images(str(there), 0, 1, 2), there, indexed=True)).all()
    assert (keys[1:] == image_keys(images(str(here), 1, 2), here, indexed=True)).all()
    moved = ImageList.of([Datum(f"{here}/a/0.png", 0, 0, "a", 5)])
    assert image_keys(moved, here, indexed=True)[0] != keys[0]
    assert image_keys(moved, here, indexed=False)[0] == image_keys(images(str(here), 0), here, indexed=False)[0]
    assert not set(image_keys(images(f"{here}/a", 0, 1, 2), here, indexed=True).tolist()) & set(keys.tolist())


def test_sizes_of_files_and_of_one_that_is_not_there(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert file_sizes([str(tmp_path / "a"), str(tmp_path / "b")]).tolist() == [5, -1]


@pytest.mark.parametrize(("a", "b", "same"), [({"x": 1, "y": 2}, {"y": 2, "x": 1}, True), ({"x": 1}, {"x": 2}, False)])
def test_a_digest_stands_for_values(a, b, same):
    assert (digest(a) == digest(b)) == same
    assert len(digest(a)) == 10
