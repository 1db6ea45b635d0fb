import os
import time

import numpy as np
import pytest

from dho_plugin.data import listing
from dho_plugin.data.listing import list_images
from dho_plugin.engine.data import ClassInfo
from dho_plugin.errors import DataError

CLASSES = [ClassInfo(f"n{i}", f"class {i}") for i in range(4)]
NAMES = [info.key for info in CLASSES]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Return a tree of four class folders that changed a minute ago, and store even small listings."""
    monkeypatch.setenv("DHO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "STORE_FROM", 1)
    for name in NAMES:
        (tmp_path / "tree" / name).mkdir(parents=True)
        for number in (10, 9, 11):
            (tmp_path / "tree" / name / f"{name}_{number}.JPEG").touch()
    settle(tmp_path / "tree")
    return tmp_path / "tree"


def settle(tree, seconds=60):
    for folder in tree.iterdir():
        os.utime(folder, (time.time() - seconds,) * 2)


@pytest.fixture
def scanned(monkeypatch):
    """Return the list of folders that are read from now on."""
    folders, plain = [], listing.image_names
    monkeypatch.setattr(
        listing, "image_names", lambda folder: folders.append(os.path.basename(folder)) or plain(folder)
    )
    return folders


def stored_files(tree):
    return list((tree.parent / "cache" / "listings").glob("*"))


def test_images_come_in_label_order_sorted_by_name(tree):
    images = list_images(tree, NAMES, CLASSES)
    expected = [str(tree / name / f"{name}_{number}.JPEG") for name in NAMES for number in (10, 11, 9)]
    assert list(images.paths()) == expected
    assert [item.label for item in images] == [label for label in range(4) for _ in range(3)]
    assert [item.index for item in images] == list(range(12))
    assert images[4].classname == "class 1"


def test_a_second_start_reads_no_folder(tree, scanned):
    first = list_images(tree, NAMES, CLASSES)
    assert sorted(scanned) == NAMES
    scanned.clear()
    assert list_images(tree, NAMES, CLASSES) == first
    assert scanned == []


def test_only_a_folder_that_changed_is_read_again(tree, scanned):
    list_images(tree, NAMES, CLASSES)
    scanned.clear()
    (tree / "n2" / "new.png").touch()
    assert len(list_images(tree, NAMES, CLASSES)) == 13
    assert scanned == ["n2"]
    (tree / "n1" / "n1_9.JPEG").unlink()
    (tree / "n3" / "n3_9.JPEG").rename(tree / "n3" / "renamed.JPEG")
    images = list_images(tree, NAMES, CLASSES)
    assert len(images) == 12
    assert str(tree / "n3" / "renamed.JPEG") in images.paths()


def test_a_folder_in_the_place_of_another_is_read_though_it_looks_as_old(tree):
    list_images(tree, NAMES, CLASSES)
    before = (tree / "n0").stat().st_mtime_ns
    (tree / "n0").rename(tree.parent / "old")
    (tree / "n0").mkdir()
    (tree / "n0" / "other.jpg").touch()
    os.utime(tree / "n0", ns=(before, before))
    assert len(list_images(tree, NAMES, CLASSES)) == 10


def test_a_folder_that_has_just_changed_is_not_trusted(tree, scanned):
    os.utime(tree / "n1")
    list_images(tree, NAMES, CLASSES)
    scanned.clear()
    stamp = (tree / "n1").stat().st_mtime_ns
    (tree / "n1" / "in_the_same_tick.png").touch()
    os.utime(tree / "n1", ns=(stamp, stamp))  # a clock too coarse to tell
    assert len(list_images(tree, NAMES, CLASSES)) == 13
    assert scanned == ["n1"]


def test_a_folder_without_a_time_of_change_is_not_trusted(tree, scanned):
    os.utime(tree / "n1", ns=(0, 0))
    list_images(tree, NAMES, CLASSES)
    scanned.clear()
    (tree / "n1" / "new.png").touch()
    os.utime(tree / "n1", ns=(0, 0))
    assert len(list_images(tree, NAMES, CLASSES)) == 13
    assert scanned == ["n1"]


def test_other_classes_or_another_order_use_the_same_listing(tree, scanned):
    list_images(tree, NAMES, CLASSES)
    scanned.clear()
    images = list_images(tree, NAMES[::-1][:2], CLASSES[::-1][:2])
    assert [os.path.basename(item.impath) for item in images][:2] == ["n3_10.JPEG", "n3_11.JPEG"]
    assert images[3].classname == "class 2"
    list_images(tree, NAMES, CLASSES)
    assert scanned == []


def test_two_trees_do_not_share_a_listing(tree):
    list_images(tree, NAMES, CLASSES)
    other = tree.parent / "other"
    for name in NAMES:
        (other / name).mkdir(parents=True)
        (other / name / "x.png").touch()
    assert len(list_images(other, NAMES, CLASSES)) == 4
    assert len(stored_files(tree)) == 2


def test_a_small_listing_is_not_stored(tree, monkeypatch):
    monkeypatch.setattr(listing, "STORE_FROM", 13)
    list_images(tree, NAMES, CLASSES)
    assert stored_files(tree) == []


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "pickle"])
def test_a_damaged_listing_is_made_anew(tree, damage, capsys):
    first = list_images(tree, NAMES, CLASSES)
    (path,) = stored_files(tree)
    whole = path.read_bytes()
    if damage == "pickle":
        np.savez(path, folders=np.array([{"a": 1}], dtype=object), stamps=[], counts=[], files=[])
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[: len(whole) // 2]}[damage])
    assert list_images(tree, NAMES, CLASSES) == first
    assert "listed anew" in capsys.readouterr().out
    assert len(path.read_bytes()) == len(whole)


def test_a_cache_that_cannot_be_written_costs_no_run(tree, monkeypatch, capsys):
    blocker = tree.parent / "file"
    blocker.write_text("")
    monkeypatch.setenv("DHO_CACHE", str(blocker))
    assert len(list_images(tree, NAMES, CLASSES)) == 12
    assert "cannot be stored" in capsys.readouterr().out


def test_an_empty_and_a_missing_folder_are_named(tree):
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match="empty: class folder without an image"):
        list_images(tree, ["n0", "empty"], CLASSES[:2])
    with pytest.raises(DataError, match="gone: no such class folder"):
        list_images(tree, ["n0", "gone"], CLASSES[:2])


def test_links_foreign_letters_and_bytes_that_are_no_text(tree):
    target = tree.parent / "elsewhere"
    target.mkdir()
    names = ["Größe 例.jpg", os.fsdecode(b"bytes\xff.png")]
    for name in names:
        (target / name).touch()
    (tree / "linked").symlink_to(target, target_is_directory=True)
    images = list_images(tree, ["linked"], CLASSES[:1])
    assert sorted(os.path.basename(path) for path in images.paths()) == sorted(names)
    assert list_images(tree, ["linked"], CLASSES[:1]) == images
    assert all(os.path.exists(path) for path in images.paths())
