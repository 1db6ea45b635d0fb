"""What is said of folders of photos that do not lie as they should."""

import os
import shutil

import pytest

from dho_plugin.data.own_folders import read_folders
from dho_plugin.errors import DataError

PHOTOS = ("train/cat/a.jpg", "train/dog/b.jpg", "test/cat/c.jpg", "unlabeled/d.jpg")


@pytest.fixture
def home(tmp_path):
    for photo in PHOTOS:
        (tmp_path / photo).parent.mkdir(parents=True)
        (tmp_path / photo).touch()
    return tmp_path


def counts(home, test_sets=()):
    images = read_folders(home, test_sets)
    return {**{name: len(part) for name, part in images.parts.items()}, "unlabeled": len(images.unlabeled)}


@pytest.mark.parametrize("place", ["train", "train/cat", "unlabeled", ""])
def test_a_link_to_itself_is_no_folder(home, place):
    """Linux refuses to say what it leads to."""
    link = home / place / "self"
    link.symlink_to(link)
    if place in ("train", "unlabeled"):
        with pytest.raises(DataError, match=rf"{place}/self is a broken link: .*self is not there"):
            counts(home)
    else:
        assert counts(home) == {"train": 2, "test": 1, "unlabeled": 1}


@pytest.mark.parametrize("place", ["train", "train/dog", "unlabeled", "unlabeled/more", "test", "val", "night/dog"])
def test_a_link_that_leads_nowhere_is_refused(home, place):
    """The class, or the part of the pool, would be missing without a word."""
    shutil.rmtree(home / place, ignore_errors=True)
    (home / place).parent.mkdir(exist_ok=True)
    (home / place).symlink_to("/no/such/disk")
    with pytest.raises(DataError, match=rf"{place} is a broken link: /no/such/disk is not there; connect the disk"):
        counts(home, ("night",) if place.startswith("night") else ())


def test_broken_links_that_are_no_folders_are_let_be(home):
    """One to a photo is a photo that cannot be read; for those there is DATASET.UNREADABLE."""
    for name in ("train/.hidden", "train/stray.jpg", "unlabeled/gone.jpg"):
        (home / name).symlink_to("/no/such/disk")
    assert counts(home) == {"train": 2, "test": 1, "unlabeled": 2}


@pytest.mark.parametrize("name", ["train", "unlabeled", "val", "test"])
def test_a_file_with_the_name_of_a_split_is_refused(home, name):
    shutil.rmtree(home / name, ignore_errors=True)
    (home / name).touch()
    with pytest.raises(DataError, match=rf"{name} is no folder; .*rename it"):
        counts(home)


@pytest.mark.parametrize(
    ("name", "split"), [("Train", "train"), ("training", "train"), ("validation", "val"), ("Unlabelled", "unlabeled")]
)
def test_a_folder_named_nearly_as_a_split_is_pointed_at(home, capsys, name, split):
    if (home / split).exists():
        (home / split).rename(home / name)
    else:
        (home / name).mkdir()
    read_folders(home, ())
    assert f"{home}: not used: {name}/; if it is meant as {split}/, rename it to {split}\n" in capsys.readouterr().out


def test_a_folder_that_is_used_or_not_needed_is_not_pointed_at(home, capsys):
    (home / "Testing").mkdir()
    for photo in ("valid/cat/e.jpg", "other/cat/f.jpg"):
        (home / photo).parent.mkdir(parents=True)
        (home / photo).touch()
    read_folders(home, ("valid",))
    assert capsys.readouterr().out == ""


def test_photos_below_a_class_folder_are_pointed_at(home):
    (home / "train/dog/2024/may").mkdir(parents=True)
    (home / "train/dog/b.jpg").rename(home / "train/dog/2024/may/b.jpg")
    with pytest.raises(DataError, match="train/dog: class folder without an image") as error:
        read_folders(home, ())
    assert f"; there are images in {os.path.join(home, 'train/dog/2024/may')}, but only" in str(error.value)
    shutil.rmtree(home / "train/dog/2024/may")
    with pytest.raises(DataError, match="train/dog: class folder without an image") as error:
        read_folders(home, ())
    assert "there are images" not in str(error.value)
