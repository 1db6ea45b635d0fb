"""Filling a store: what is stored, what survives a kill and a full disk, and several processes at once."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

import dho_plugin.engine.feature_store as feature_store
from dho_plugin.engine.data import Datum, ImageList
from dho_plugin.engine.decode import UnreadableImageError
from dho_plugin.engine.feature_fill import fill
from dho_plugin.engine.feature_store import FeatureStore
from dho_plugin.engine.image_sets import EvalDataset, ViewDataset
from dho_plugin.engine.views import Preprocess, ViewSpec
from dho_plugin.errors import CacheError

N, VIEWS = 23, 2
PRE = Preprocess(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SPEC = ViewSpec(seed=3)


@pytest.fixture
def items(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return ImageList.of([Datum(f"{tmp_path}/{i}.png", i % 4, 0, f"c{i % 4}", i) for i in range(N)])


def encode(images: torch.Tensor) -> torch.Tensor:
    return torch.stack([images.mean((1, 2, 3)), images[:, 0, 0, 0], images.amax((1, 2, 3))], dim=1)


def store_in(folder, rows: int = 4, dtype: str = "float16") -> FeatureStore:
    keys = np.arange(N, dtype=np.uint64)
    return FeatureStore.create(folder, {"dtype": dtype, "dim": 3}, keys, np.zeros(N, dtype=np.int64), rows)


def dataset(items, unreadable: str = "error") -> ViewDataset:
    return ViewDataset(items, PRE, views=SPEC, unreadable=unreadable)


def everything(store: FeatureStore, views: int = VIEWS) -> np.ndarray:
    return np.stack([store.read(np.arange(N), np.full(N, view)) for view in range(views)])


def expected(items) -> np.ndarray:
    data = dataset(items)
    views = [torch.stack([data[i, view]["img"] for i in range(N)]) for view in range(VIEWS)]
    return np.stack([encode(images).numpy().astype(np.float16) for images in views])


@pytest.mark.parametrize("workers", [0, 2])
def test_every_view_of_every_image_is_stored_as_the_encoder_says(items, tmp_path, workers):
    store = store_in(tmp_path / "s")
    assert fill(store, VIEWS, dataset(items), encode, batch_size=3, workers=workers) == VIEWS * N
    assert store.missing(VIEWS) == []
    np.testing.assert_array_equal(everything(store), expected(items))
    assert not np.array_equal(*everything(store))
    assert list((store.folder / "locks").iterdir()) == []
    # A second time there is nothing to do; a third view is added to what is there.
    assert fill(store, VIEWS, dataset(items), encode, batch_size=3) == 0
    assert fill(store, VIEWS + 1, dataset(items), encode, batch_size=30) == N
    np.testing.assert_array_equal(everything(store), expected(items))


def test_images_of_an_evaluation(items, tmp_path):
    store, data = store_in(tmp_path / "s", dtype="float32"), EvalDataset(items, PRE)
    assert fill(store, 1, data, encode, batch_size=5) == N
    wanted = encode(torch.stack([data[i]["img"] for i in range(N)])).numpy()
    np.testing.assert_array_equal(everything(store, 1)[0], wanted)


def test_unreadable_images_stop_it_or_are_marked_in_every_view(items, tmp_path):
    Image.open(items.path(5)).save(items.path(5), format="PNG")
    with open(items.path(5), "r+b") as file:
        file.truncate(60)
    store = store_in(tmp_path / "s")
    with pytest.raises(UnreadableImageError, match=r"5\.png"):
        fill(store, VIEWS, dataset(items), encode, batch_size=3)
    assert next(shard.start for shard in store.missing(1)) == 4  # what was complete before is kept
    fill(store, VIEWS, dataset(items, "skip"), encode, batch_size=3)
    lost = np.isnan(everything(store)).any(2)
    assert [np.flatnonzero(view).tolist() for view in lost] == [[5], [5]]
    one = store_in(tmp_path / "e")
    fill(one, 1, EvalDataset(items, PRE, unreadable="skip"), encode, batch_size=3)
    assert np.flatnonzero(np.isnan(everything(one, 1)).any(2)).tolist() == [5]


def test_features_that_do_not_fit_are_refused(items, tmp_path):
    store = store_in(tmp_path / "s")
    with pytest.raises(CacheError, match="do not fit into float16"):
        fill(store, 1, dataset(items), lambda images: 1e6 * encode(images), batch_size=3)
    assert len(store.missing(1)) == len(store.shards(1))


def test_a_full_disk_loses_nothing_that_is_complete(items, tmp_path, monkeypatch):
    store, real, calls = store_in(tmp_path / "s"), feature_store.atomic_write, []

    def full(path, write):
        calls.append(path)
        if len(calls) > 3:
            raise OSError(28, "No space left on device", str(path))
        real(path, write)

    monkeypatch.setattr(feature_store, "atomic_write", full)
    with pytest.raises(OSError, match="No space left"):
        fill(store, VIEWS, dataset(items), encode, batch_size=3)
    monkeypatch.undo()
    assert len(store.missing(VIEWS)) == len(store.shards(VIEWS)) - 3
    times = {path: path.stat().st_mtime_ns for path in store.folder.glob("view*")}
    assert fill(store, VIEWS, dataset(items), encode, batch_size=3) == VIEWS * N - 12
    assert {path: path.stat().st_mtime_ns for path in times} == times
    np.testing.assert_array_equal(everything(store), expected(items))


def _slow_fill(folder, items, seconds: float) -> None:
    def slow(images):
        time.sleep(seconds)
        return encode(images)

    fill(store_in(folder), VIEWS, dataset(items), slow, batch_size=2)


def test_a_killed_fill_goes_on_where_it_stopped(items, tmp_path):
    store = store_in(tmp_path / "s")
    process = multiprocessing.get_context("fork").Process(target=_slow_fill, args=(store.folder, items, 0.1))
    process.start()
    while len(list(store.folder.glob("view*"))) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    whole = {path: path.stat().st_mtime_ns for path in store.folder.glob("view*")}
    assert 2 <= len(whole) < len(store.shards(VIEWS))
    (store.folder / f".{store.path(store.missing(1)[0]).name}.99.tmp").write_bytes(b"half a shard")
    own = fill(store, VIEWS, dataset(items), encode, batch_size=3)
    assert own < VIEWS * N
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert not list(store.folder.glob(".*"))
    np.testing.assert_array_equal(everything(store), expected(items))


def test_two_processes_share_the_work(items, tmp_path, monkeypatch):
    monkeypatch.setattr("dho_plugin.engine.feature_fill.WAIT", 0.02)
    store, written = store_in(tmp_path / "s"), []
    real = FeatureStore.write
    monkeypatch.setattr(
        FeatureStore, "write", lambda self, shard, rows: (written.append(shard), real(self, shard, rows))
    )
    process = multiprocessing.get_context("fork").Process(target=_slow_fill, args=(store.folder, items, 0.03))
    process.start()
    while not list(store.folder.glob("view*")):
        time.sleep(0.01)
    own = fill(store, VIEWS, dataset(items), encode, batch_size=2)
    process.join()
    assert process.exitcode == 0
    assert 0 < own < VIEWS * N
    assert len(written) == len(set(written)) < len(store.shards(VIEWS))
    np.testing.assert_array_equal(everything(store), expected(items))


def test_the_shards_of_a_process_that_dies_are_taken_over(items, tmp_path, monkeypatch):
    monkeypatch.setattr("dho_plugin.engine.feature_fill.WAIT", 0.02)
    store = store_in(tmp_path / "s")
    process = multiprocessing.get_context("fork").Process(target=_slow_fill, args=(store.folder, items, 0.5))
    process.start()
    while not list((store.folder / "locks").glob("*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)  # holding a lock
    process.join()
    assert list((store.folder / "locks").glob("*"))
    assert fill(store, VIEWS, dataset(items), encode, batch_size=2) == VIEWS * N
