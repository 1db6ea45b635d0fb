"""Which stored features a run may use, and what is said of the others."""

import numpy as np
import pytest

from dho_plugin.engine import feature_lookup
from dho_plugin.engine.data import Datum, ImageList
from dho_plugin.engine.feature_lookup import Wanted, stores_named
from dho_plugin.errors import CacheError, NoCacheError

DESCRIPTION = {"weights": "abc", "precision": "no", "size": 32, "view_seed": 0, "dtype": "float16", "dim": 2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def items(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(b"x" * (10 + i))
    return ImageList.of([Datum(f"{tmp_path}/{i}.png", i % 2, 0, f"c{i % 2}", i) for i in range(9)])


@pytest.fixture
def wanted(tmp_path):
    return lambda views=2, **parts: Wanted("mini-train-[x]", {**DESCRIPTION, **parts}, tmp_path, views)


def filled(wanted: Wanted, items, views: int | None = None):
    store = wanted.create(items, 4)
    for shard in store.missing(wanted.shown if views is None else views):
        store.write(shard, np.full((shard.stop - shard.start, 2), shard.view))
    return store


def test_a_complete_store_serves_any_of_its_images_in_any_order(wanted, items):
    store = filled(wanted(), items)
    assert wanted().find(items).store.folder == store.folder
    some = items.take([7, 0, 3])
    assert wanted().find(some).rows.tolist() == [7, 0, 3]
    assert wanted(1).find(some).rows.tolist() == [7, 0, 3]


def test_without_any_there_is_none(wanted, items):
    assert stores_named("mini-train-[x]") == []
    with pytest.raises(NoCacheError, match="no features named mini-train"):
        wanted().find(items)


@pytest.mark.parametrize(
    "parts", [{"weights": "xyz"}, {"precision": "fp16"}, {"view_seed": 7}, {"size": 48, "jpeg_gap": 2.0}]
)
def test_the_part_that_differs_is_named(wanted, items, parts):
    filled(wanted(), items)
    with pytest.raises(NoCacheError) as raised:
        wanted(**parts).find(items)
    for key, value in parts.items():
        assert f"{key}: {DESCRIPTION.get(key)!r} there, {value!r} here" in str(raised.value)
    assert str(raised.value).count(" there, ") == len(parts)


def test_of_several_the_nearest_is_named(wanted, items):
    filled(wanted(weights="q", precision="fp16"), items)
    filled(wanted(weights="q"), items)
    with pytest.raises(NoCacheError) as raised:
        wanted().find(items)
    assert "precision" not in str(raised.value)
    assert "weights: 'q' there, 'abc' here" in str(raised.value)


def test_an_incomplete_one_is_not_used(wanted, items):
    filled(wanted(), items, views=1)
    with pytest.raises(NoCacheError, match="incomplete: of 6 files for 2 views 3 are missing"):
        wanted().find(items)
    assert wanted(1).find(items)


def test_images_that_are_not_in_it_are_named(wanted, items, tmp_path):
    filled(wanted(), items.take(range(7)))
    with pytest.raises(NoCacheError, match=r"2 of 9 are not in it, the first .*7\.png"):
        wanted().find(items)
    filled(wanted(), items)  # a store of its own for the longer list
    assert len(stores_named("mini-train-[x]")) == 2
    assert len(wanted().find(items).store) == 9


def test_files_that_have_changed_are_named(wanted, items, tmp_path):
    store = filled(wanted(), items)
    (tmp_path / "3.png").write_bytes(b"another picture altogether")
    with pytest.raises(NoCacheError, match=r"files: .* 1 of 9 .*3\.png has 26 bytes in the place of 13"):
        wanted().find(items)
    assert wanted().find(items.take([0, 1])).rows.tolist() == [0, 1]
    again = filled(wanted(), items)  # it gets a store of its own, and nothing is overwritten
    assert again.folder != store.folder
    assert wanted().find(items).store.folder == again.folder


def test_of_many_files_a_part_is_looked_at_and_of_few_all(wanted, items, tmp_path, monkeypatch):
    store = filled(wanted(), items)
    (tmp_path / "3.png").write_bytes(b"another picture altogether")
    monkeypatch.setattr(feature_lookup, "LOOKED_AT", 2)
    with pytest.raises(NoCacheError, match=r"files: .* 1 of 9 "):
        wanted().find(items)
    monkeypatch.setattr(feature_lookup, "ALL_UP_TO", 8)
    assert wanted().find(items).store.folder == store.folder  # only the first and the last one


def test_a_damaged_one_is_an_error_not_a_miss(wanted, items):
    store = filled(wanted(), items)
    path = store.path(store.shards(1)[1])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CacheError, match="is damaged") as raised:
        wanted().find(items)
    assert not isinstance(raised.value, NoCacheError)


def test_names_that_begin_alike_are_apart(wanted, items, tmp_path):
    filled(wanted(), items)
    assert stores_named("mini-train-x") == []
    assert stores_named("mini-train") == []
    assert len(stores_named("mini-train-[x]")) == 1
