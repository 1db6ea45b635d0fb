import os
from pathlib import Path

import pytest

from dho_plugin.data.matching import find, locate, relative_path
from dho_plugin.engine.data import Datum, ImageList
from dho_plugin.errors import DataError

DIR = Path("/data/photos")
NAMES = ["b/1.jpg", "a/1.jpg", "1.jpg", "deep/er/Größe 例.jpg", "x/b/1.jpg", os.fsdecode(b"bad\xff.jpg")]
OUTSIDE = "/data/photos2/a/9.jpg"
IMAGES = ImageList.of([Datum(str(DIR / name), 0) for name in NAMES] + [Datum(OUTSIDE, 0)])
SOURCE = Path("list.txt")


def test_paths_are_relative_to_the_image_folder_and_whole_elsewhere():
    assert [relative_path(IMAGES, place, DIR) for place in range(7)] == [*NAMES, OUTSIDE]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("a/1.jpg", 1),
        ("/home/else/photos/a/1.jpg", 1),
        ("/home/else/b/1.jpg", 0),
        ("/home/x/b/1.jpg", 4),  # the longest end counts
        ("/home/q/1.jpg", 2),
        ("C:\\data\\photos/deep/er/Größe 例.jpg", 3),
        (OUTSIDE, 6),
        (NAMES[5], 5),
        ("photos2/a/9.jpg", -1),  # an image elsewhere is known by its whole path
        ("a/11.jpg", -1),
        ("a\\1.jpg", -1),
        ("Größe 例.jpg", -1),
        ("no\ud800text.jpg", -1),
        ("", -1),
        ("a/", -1),
    ],
)
def test_images_are_found_by_the_ends_of_paths(path, place):
    assert find(IMAGES, [path], DIR).tolist() == [place]


def test_names_with_folders_in_them_are_found():
    flat = ImageList([str(DIR)], [0, 0], [b"a/1.jpg", b"b/1.jpg"], [[0, 0, 0], [0, 0, 1]], ["c"])
    assert find(flat, ["/else/b/1.jpg", "a/1.jpg", "/else/1.jpg"], DIR).tolist() == [1, 0, -1]


def test_nothing_is_found_in_nothing():
    assert find(IMAGES, [], DIR).tolist() == []
    assert find(ImageList.of([]), ["a"], DIR).tolist() == [-1]


def test_missing_images_are_counted_and_some_shown():
    with pytest.raises(DataError) as error:
        locate(IMAGES, ["a/1.jpg", *[f"gone/{n}\udcff.jpg" for n in range(5)]], DIR, SOURCE, "Mend it.")
    assert str(error.value) == (
        "list.txt names 5 of 6 images that are not among the 7 listed below /data/photos: "
        r"'gone/0\udcff.jpg', 'gone/1\udcff.jpg', 'gone/2\udcff.jpg', .... Mend it."
    )


@pytest.mark.parametrize("again", ["a/1.jpg", "/elsewhere/a/1.jpg"])
def test_an_image_that_is_named_twice_is_refused(again):
    with pytest.raises(DataError, match=r"names 1 images more than once: '/data/photos/a/1.jpg'\. Mend it"):
        locate(IMAGES, ["a/1.jpg", "b/1.jpg", again], DIR, SOURCE, "Mend it")
    assert locate(IMAGES, ["b/1.jpg", "a/1.jpg"], DIR, SOURCE, "").tolist() == [0, 1]
