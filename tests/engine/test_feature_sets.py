"""Batches of stored features."""

import numpy as np
import pytest
import torch

import dho_plugin.engine.loaders as loaders
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
    batch = FeatureBatches(ITEMS, {"features": stored, "teacher_features": stored})([(0, 2), (5, 0), (1, 1)])
    expected = torch.tensor([[value(5, 2), -value(5, 2)], [value(0, 0), -value(0, 0)], [value(4, 1), -value(4, 1)]])
    assert batch["features"].dtype == torch.float32
    assert torch.equal(batch["features"], expected)
    assert torch.equal(batch["teacher_features"], expected)
    assert batch["label"].tolist() == [0, 2, 1]
    assert batch["index"].tolist() == [20, 25, 21]
    assert batch["domain"].tolist() == [1, 1, 1]
    assert "img" not in batch


def test_an_unreadable_image_is_an_error_or_the_next_one_or_marked(stored):
    keys = [(1, 0), (2, 1)]
    with pytest.raises(UnreadableImageError, match=r"/x/2\.png"):
        FeatureBatches(ITEMS, {"features": stored})(keys)
    batch = FeatureBatches(ITEMS, {"features": stored}, unreadable="next")(keys)
    assert batch["index"].tolist() == [21, 23]
    assert batch["features"][:, 0].tolist() == [value(4, 0), value(2, 1)]
    assert batch["label"].tolist() == [1, 0]
    batch = FeatureBatches(ITEMS, {"features": stored}, unreadable="mark")(keys)
    assert batch["label"].tolist() == [1, -1]
    assert batch["features"][1].tolist() == [0.0, 0.0]


def test_where_no_image_can_be_read_nothing_goes_round_for_ever(stored):
    only = StoredFeatures(stored.store, np.full(N, 3))
    with pytest.raises(UnreadableImageError):
        FeatureBatches(ITEMS, {"features": only}, unreadable="next")([(0, 0)])


def test_one_image_alone(stored):
    assert stored.one(0, 1).tolist() == [value(5, 1), -value(5, 1)]
    with pytest.raises(UnreadableImageError):
        stored.one(2, 0)


@pytest.mark.parametrize("handed_over", [0, 2**30])
def test_an_evaluation_goes_through_every_image_once_in_order(stored, monkeypatch, handed_over):
    monkeypatch.setattr(loaders, "HANDED_OVER", handed_over)
    data = FeatureBatches(ITEMS, {"features": stored}, unreadable="mark")
    loader = loaders.feature_loader(data, data.in_order(4), workers=2)
    assert loader.num_workers == (0 if handed_over else 2)
    batches = list(loader)
    assert [len(batch["label"]) for batch in batches] == [4, 2]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [20, 21, 22, 23, 24, 25]
    assert torch.cat([batch["features"][:, 0] for batch in batches]).tolist() == [50, 40, 0, 20, 10, 0]


@pytest.mark.parametrize("handed_over", [0, 2**30])
def test_training_batches_are_those_of_the_steps(stored, monkeypatch, handed_over):
    monkeypatch.setattr(loaders, "HANDED_OVER", handed_over)
    steps = loaders.StepBatches(N, 4, 5, seed=1, stream="x", views=3)
    data = FeatureBatches(ITEMS, {"features": stored}, unreadable="next")
    for keys, batch in zip(steps, loaders.feature_loader(data, steps, workers=1), strict=True):
        taken = [(3 if position == 2 else position, view) for position, view in keys]
        assert batch["features"][:, 0].tolist() == [value(N - 1 - position, view) for position, view in taken]


def test_the_bytes_of_an_image_are_those_of_all_stores(stored):
    assert FeatureBatches(ITEMS, {"features": stored, "teacher_features": stored}).bytes_each() == 2 * 2 * 4
