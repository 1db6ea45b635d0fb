"""Batches of stored features."""

import numpy as np
import pytest
import torch

from dho_plugin.engine.data import Datum
from dho_plugin.engine.decode import UnreadableImageError
from dho_plugin.engine.feature_sets import FeatureBatches, StoredFeatures
from dho_plugin.engine.feature_store import FeatureStore

N = 6


def value(row: int, view: int) -> float:
    return 10.0 * row + view


@pytest.fixture
def stored(tmp_path):
    """Features of N images in 3 views; the store has their rows in reverse, and image 2 could not be read."""
    store = FeatureStore.create(
        tmp_path, {"dtype": "float32", "dim": 2}, np.arange(N, dtype=np.uint64), np.zeros(N, dtype=np.int64), 4
    )
    for shard in store.shards(3):
        rows = np.arange(shard.start, shard.stop)
        values = np.column_stack([value(rows, shard.view), -value(rows, shard.view)])
        values[rows == N - 1 - 2] = np.nan
        store.write(shard, values)
    return StoredFeatures(store, np.arange(N)[::-1].copy())


ITEMS = [Datum(f"/x/{i}.png", label=i % 3, domain=1, index=20 + i) for i in range(N)]


def test_a_batch_has_the_features_of_its_images_in_their_views(stored):
    batch = FeatureBatches(ITEMS, {"features": stored, "teacher_features": stored})(
        np.array([0, 5, 1]), np.array([2, 0, 1])
    )
    expected = torch.tensor([[value(5, 2), -value(5, 2)], [value(0, 0), -value(0, 0)], [value(4, 1), -value(4, 1)]])
    assert batch["features"].dtype == torch.float32
    assert torch.equal(batch["features"], expected)
    assert torch.equal(batch["teacher_features"], expected)
    assert batch["label"].tolist() == [0, 2, 1]
    assert batch["index"].tolist() == [20, 25, 21]
    assert batch["domain"].tolist() == [1, 1, 1]
    assert "img" not in batch


def test_an_unreadable_image_is_an_error_or_the_next_one_or_marked(stored):
    keys = np.array([1, 2]), np.array([0, 1])
    with pytest.raises(UnreadableImageError, match=r"/x/2\.png"):
        FeatureBatches(ITEMS, {"features": stored})(*keys)
    batch = FeatureBatches(ITEMS, {"features": stored}, unreadable="next")(*keys)
    assert batch["index"].tolist() == [21, 23]
    assert batch["features"][:, 0].tolist() == [value(4, 0), value(2, 1)]
    assert batch["label"].tolist() == [1, 0]
    batch = FeatureBatches(ITEMS, {"features": stored}, unreadable="mark")(*keys)
    assert batch["label"].tolist() == [1, -1]
    assert batch["features"][1].tolist() == [0.0, 0.0]


def test_where_no_image_can_be_read_nothing_goes_round_for_ever(stored):
    only = StoredFeatures(stored.store, np.full(N, 3))
    with pytest.raises(UnreadableImageError):
        FeatureBatches(ITEMS, {"features": only}, unreadable="next")(np.array([0]), np.array([0]))


def test_features_of_images_that_must_be_readable(stored):
    assert stored.readable(np.array([0]), np.array([1])).tolist() == [[value(5, 1), -value(5, 1)]]
    with pytest.raises(UnreadableImageError, match="image 2 of"):
        stored.readable(np.array([0, 2]), np.array([0, 0]))


def test_the_bytes_of_an_image_are_those_of_all_stores(stored):
    assert FeatureBatches(ITEMS, {"features": stored, "teacher_features": stored}).bytes_each() == 2 * 2 * 4
