"""The shards of a feature store: whole or not at all, and never somebody else's."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from dho_plugin.engine.feature_store import FeatureStore, Shard
from dho_plugin.errors import CacheError

N, DIM, ROWS = 10, 3, 4
KEYS = np.array([50, 7, 99, 2**63 + 5, 1, 3, 8, 60, 2**64 - 1, 12], dtype=np.uint64)


def description(dtype: str = "float16") -> dict:
    return {"weights": "abc", "dtype": dtype, "dim": DIM}


def features(view: int) -> np.ndarray:
    return (np.arange(N * DIM).reshape(N, DIM) + 100 * view).astype(np.float16)


@pytest.fixture
def store(tmp_path):
    return FeatureStore.create(tmp_path / "s", description(), KEYS, np.arange(N), ROWS)


def write(store: FeatureStore, *shards: Shard) -> None:
    for shard in shards:
        store.write(shard, features(shard.view)[shard.start : shard.stop])


def test_shards_cover_every_view_of_every_image_once(store):
    shards = store.shards(2)
    assert [tuple(s) for s in shards] == [(0, 0, 4), (0, 4, 8), (0, 8, 10), (1, 0, 4), (1, 4, 8), (1, 8, 10)]
    assert store.missing(2) == shards
    write(store, shards[1])
    assert store.missing(2) == [shards[0], *shards[2:]]
    assert store.missing(0) == []


def test_what_is_read_is_what_was_written_and_more_views_can_follow(store):
    write(store, *store.shards(1))
    write(store, *store.missing(3))
    again = FeatureStore.open(store.folder)
    assert len(again) == N
    assert again.missing(3) == []
    rows, views = np.array([9, 0, 5, 5, 3, 8]), np.array([2, 0, 1, 0, 1, 2])
    expected = np.stack([features(view)[row] for row, view in zip(rows, views, strict=True)])
    found = again.read(rows, views)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected)
    assert again.read(rows[:0], views[:0]).shape == (0, DIM)


def test_rows_are_found_by_key(store):
    wanted = np.array([3, 2**64 - 1, 4, 50, 2**63 + 5, 2**63], dtype=np.uint64)
    assert store.rows(wanted).tolist() == [5, 8, -1, 0, 3, -1]
    assert FeatureStore.open(store.folder).rows(wanted).tolist() == [5, 8, -1, 0, 3, -1]


def test_a_store_goes_to_a_worker_process_without_what_it_has_mapped(store):
    write(store, *store.shards(1))
    store.read(np.arange(N), np.zeros(N, dtype=np.int64))
    assert store._maps
    there = pickle.loads(pickle.dumps(store))
    assert not there._maps
    np.testing.assert_array_equal(there.read(np.arange(N), np.zeros(N, dtype=np.int64)), features(0))


def test_reading_does_not_load_the_files(store):
    write(store, *store.shards(1))
    store.read(np.array([0]), np.array([0]))
    mapped = Path("/proc/self/maps").read_text()
    assert [str(store.path(shard)) in mapped for shard in store.shards(1)] == [True, False, False]


def test_no_file_stays_open(tmp_path):
    """Ten views of ImageNet are a thousand files, as many as a process may have open."""
    many = FeatureStore.create(tmp_path / "many", description(), KEYS, np.arange(N), 1)
    write(many, *many.shards(5))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for view in range(5):
        found = many.read(np.arange(N), np.full(N, view))
        np.testing.assert_array_equal(found, features(view))
    assert len(many._maps) == 5 * N
    assert len(list(Path("/proc/self/fd").iterdir())) < before + N  # what other tests left may close in between


def test_the_room_is_known_beforehand(store):
    needed = store.room_needed(2)
    assert needed == store.room(2)
    write(store, *store.shards(2))
    assert needed == sum(path.stat().st_size for path in store.folder.glob("view*"))
    assert store.room_needed(2) == 0
    assert store.room_needed(3) == needed / 2


def test_a_truncated_shard_is_named_and_stays(store):
    write(store, *store.shards(1))
    path = store.path(store.shards(1)[1])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CacheError, match=re.escape(path.name) + r" is damaged: 147 bytes in the place of 152\. Delete"):
        FeatureStore.open(store.folder).missing(1)
    assert path.stat().st_size == 147
    path.unlink()
    assert [shard.start for shard in store.missing(1)] == [4]


def test_a_shard_of_other_values_in_as_many_bytes_is_not_read(store):
    write(store, *store.shards(1))
    path = store.path(store.shards(1)[0])
    np.save(path, np.zeros((2, DIM), dtype=np.float32))
    with pytest.raises(CacheError, match=r"holds float32 \(2, 3\)"):
        FeatureStore.open(store.folder).read(np.array([0]), np.array([0]))


def test_a_shard_is_never_unpickled(store):
    path = store.path(store.shards(1)[0])
    np.save(path, np.array([{"a": 1}] * 4, dtype=object), allow_pickle=True)
    with pytest.raises(CacheError, match="cannot be read"):
        store.read(np.array([0]), np.array([0]))


@pytest.mark.parametrize("name", ["manifest.json", "images.npy"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1", None])
def test_a_damaged_store_is_named(store, name, content):
    if content is None:
        (store.folder / name).unlink()
    else:
        (store.folder / name).write_bytes(content)
    with pytest.raises(CacheError, match="the feature cache is damaged"):
        FeatureStore.open(store.folder)


def test_a_list_that_does_not_belong_to_the_manifest_is_found(store):
    np.save(store.folder / "images.npy", np.zeros((N - 1, 2), dtype=np.int64))
    with pytest.raises(CacheError, match="9 images of 10"):
        FeatureStore.open(store.folder)


def test_what_is_there_is_opened_not_made_anew(store):
    write(store, *store.shards(1))
    again = FeatureStore.create(store.folder, description(), KEYS, np.arange(N), 7)
    assert again.shard_rows == ROWS
    assert again.missing(1) == []


def test_one_process_has_a_shard(store):
    shard, other = store.shards(1)[:2]
    lock = store.claim(shard)
    assert store.claim(shard) is None
    with store.claim(other):
        pass
    lock.close()  # as a process that ends, however it ends
    with store.claim(shard):
        write(store, shard)
    assert store.claim(shard) is None  # there is nothing left to do


def test_what_a_killed_process_left_is_removed_by_the_next(store):
    shard = store.shards(1)[0]
    left = store.folder / f".{store.path(shard).name}.123.tmp"
    left.write_bytes(b"half")
    of_other = store.folder / ".view000-00002.npy.124.tmp"
    of_other.write_bytes(b"half")
    store.claim(shard).close()
    assert not left.exists()
    assert of_other.exists()


def test_a_full_disk_leaves_no_shard(store, monkeypatch):
    def full(file, array):
        file.write(b"x" * 10)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write(store, store.shards(1)[0])
    assert not list(store.folder.glob("*view*"))
