"""Streams of stored features: order, groups, and a thread that never outlives its stream."""

import threading
import time

import numpy as np
import pytest
import torch

import dho_plugin.engine.feature_stream as feature_stream
from dho_plugin.engine.data import Datum
from dho_plugin.engine.decode import UnreadableImageError
from dho_plugin.engine.feature_sets import FeatureBatches, StoredFeatures
from dho_plugin.engine.feature_store import FeatureStore
from dho_plugin.engine.feature_stream import features_in_order, one_ahead, training_features
from dho_plugin.engine.loaders import StepBatches

N = 11
ITEMS = [Datum(f"/x/{i}.png", label=i % 3, domain=1, index=20 + i) for i in range(N)]


@pytest.fixture
def stored(tmp_path):
    """Features (row, view) of N images in 3 views, in shards of 4; image 2 could not be read."""
    description = {"dtype": "float32", "dim": 2}
    store = FeatureStore.create(tmp_path, description, np.arange(N, dtype=np.uint64), np.zeros(N, dtype=np.int64), 4)
    for shard in store.shards(3):
        rows = np.arange(shard.start, shard.stop, dtype=float)
        rows[rows == 2] = np.nan
        store.write(shard, np.column_stack([rows, np.full(len(rows), shard.view)]))
    return StoredFeatures(store, np.arange(N))


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())  # other tests' trainers may still hold some
    yield
    for _ in range(200):
        left = [one for one in threading.enumerate() if one.name.startswith("features") and one not in before]
        if not left:
            return
        time.sleep(0.01)
    pytest.fail(f"threads are left: {left}")


def group_of(monkeypatch, steps: int, size: int = 2**22) -> None:
    monkeypatch.setattr(feature_stream, "GROUP_STEPS", steps)
    monkeypatch.setattr(feature_stream, "GROUP_BYTES", size)


@pytest.mark.parametrize("group", [1, 2, 7, 100])
@pytest.mark.parametrize("options", [{}, {"start_step": 5}, {"rank": 1, "world": 2}, {"rank": 2, "world": 3}])
def test_training_batches_are_those_of_the_steps_however_many_are_read_at_once(stored, monkeypatch, group, options):
    group_of(monkeypatch, group)
    data = FeatureBatches(ITEMS, {"features": stored}, unreadable="next")
    batches = StepBatches(N, 4, 17, seed=1, stream="x", views=3, **options)
    expected = [[(3 if position == 2 else position, view) for position, view in batch] for batch in batches]
    found = list(training_features(data, batches))
    assert [list(map(tuple, batch["features"].int().tolist())) for batch in found] == expected
    assert [batch["index"].tolist() for batch in found] == [[20 + position for position, _ in b] for b in expected]
    assert {batch["label"].dtype for batch in found} == {torch.int64}


@pytest.mark.parametrize(("size", "batch"), [(2**22, 4), (8 * 4, 4), (1, 4), (2**22, 100)])
def test_an_evaluation_goes_through_every_image_once_in_order(stored, monkeypatch, size, batch):
    group_of(monkeypatch, 64, size)
    data = FeatureBatches(ITEMS, {"features": stored}, unreadable="mark")
    found = list(features_in_order(data, batch))
    assert [len(b["label"]) for b in found] == ([4, 4, 3] if batch == 4 else [N])
    assert torch.cat([b["index"] for b in found]).tolist() == list(range(20, 20 + N))
    assert torch.cat([b["features"][:, 0] for b in found]).tolist() == [0, 1, 0, *range(3, N)]
    assert torch.cat([b["label"] for b in found]).tolist() == [-1 if i == 2 else i % 3 for i in range(N)]


def test_nothing_to_evaluate_is_no_batch(stored):
    assert (
        list(features_in_order(FeatureBatches([], {"features": StoredFeatures(stored.store, np.arange(0))}), 4)) == []
    )


def test_an_error_of_the_thread_arrives_where_its_batch_would(stored, monkeypatch):
    group_of(monkeypatch, 1)
    batches = StepBatches(N, 4, 30, seed=1, stream="x", views=3)
    first = next(number for number, batch in enumerate(batches) if 2 in dict(batch))
    assert first > 0
    stream = training_features(FeatureBatches(ITEMS, {"features": stored}), batches)
    for _ in range(first):
        next(stream)
    with pytest.raises(UnreadableImageError, match=r"/x/2\.png"):
        next(stream)


def test_one_is_fetched_ahead_and_not_two():
    fetched, held = [], threading.Event()

    def source():
        for number in range(5):
            fetched.append(number)
            if number == 1:
                held.set()
            yield number

    stream = one_ahead(source())
    assert next(stream) == 0
    assert held.wait(10)
    time.sleep(0.05)
    assert fetched == [0, 1]
    assert list(stream) == [1, 2, 3, 4]


def test_a_stream_that_is_given_up_ends_its_thread():
    def endless():
        while True:
            yield threading.current_thread().name

    stream = one_ahead(endless())
    assert next(stream).startswith("features")
    stream.close()
    forgotten = one_ahead(endless())
    next(forgotten)
    del forgotten  # `no_thread_is_left` looks
