"""What a CSV of photos may look like, and what is said of one that cannot be read."""

import csv

import pytest

from dho_plugin.data.csv_list import read_csv
from dho_plugin.errors import DataError

PHOTOS = ("train/a.jpg", "train/b.png", "test/c.JPG", "d.webp")
HEADER, A, B, C, D = (
    "path,label,split",
    "train/a.jpg,cat,train",
    "train/b.png,dog,train",
    "test/c.JPG,cat,test",
    "d.webp,,unlabeled",
)


@pytest.fixture
def found(tmp_path):
    """Return a function that reads a CSV beside the photos, given as its text or lines, and returns what it names."""
    for photo in PHOTOS:
        (tmp_path / photo).parent.mkdir(exist_ok=True)
        (tmp_path / photo).touch()

    def read(*lines: str, test_sets=()) -> dict[str, list[str]]:
        (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8", newline="")
        images = read_csv(tmp_path / "labels.csv", test_sets)
        parts = {**images.parts, "unlabeled": images.unlabeled}
        return {name: [path.removeprefix(f"{tmp_path}/") for path in part.paths()] for name, part in parts.items()}

    return read


ALL = {"train": ["train/a.jpg", "train/b.png"], "test": ["test/c.JPG"], "unlabeled": ["d.webp"]}


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n ,\n"])
def test_blank_lines_and_the_end_of_the_file_do_not_matter(found, end):
    assert found("", " ", ",,", HEADER, A, "", B, C, D + end) == ALL


def test_splits_are_known_in_any_letters(found):
    assert found(HEADER, A.replace(",train", ",Train"), B, C.replace(",test", ",TEST"), D) == ALL
    night = found(HEADER, A, B, C.replace(",test", ",NIGHT"), D, test_sets=("Night",))
    assert night == {"train": ALL["train"], "Night": ["test/c.JPG"], "unlabeled": ["d.webp"]}
    both = found(
        HEADER,
        A,
        C.replace(",test", ",night"),
        A.replace("a.jpg,cat,train", "b.png,cat,Night"),
        test_sets=("Night", "night"),
    )
    assert (both["night"], both["Night"]) == (["test/c.JPG"], ["train/b.png"])


def test_a_label_that_cannot_be_printed_is_refused(found):
    with pytest.raises(
        DataError, match=r"labels.csv, line 3: the label 'd\\tog' has characters that cannot be printed"
    ):
        found(HEADER, A, B.replace("dog", "d\tog"), C)
    assert found(HEADER, A, B, C, D.replace(",,", ",what\tever,")) == ALL


@pytest.mark.parametrize(
    "line",
    [
        '"train/b.png,dog,train',
        'train/b.png,"dog,train',
        'train/b.png,dog,"train',
        'train/b.png,dog,train,"a note',  # in a column that is not used it would swallow all that follows
    ],
)
def test_a_quote_that_is_not_closed_is_named_by_its_line(found, line):
    with pytest.raises(DataError, match=r"labels.csv, line 3: a quote is opened and not closed: ") as error:
        found(f"{HEADER},note", A, line, *[C] * 40)
    assert len(str(error.value).partition(", line")[2]) < 200
    assert "\n" not in str(error.value)


def test_a_field_larger_than_the_readers_limit_is_named_by_its_line(found):
    with pytest.raises(DataError, match=r"labels.csv, line 3: .*field limit"):
        found(HEADER, A, '"train/b.png,dog,train', "x" * csv.field_size_limit(), C)


def test_two_stray_quotes_are_found_by_the_line_break_between_them(found):
    with pytest.raises(DataError, match=r"labels.csv, line 3: a line break in ") as error:
        found(HEADER, A, B.replace("dog", '"dog'), C, D.replace(",,", ',",'))
    assert len(str(error.value).partition(", line")[2]) < 200


def test_line_breaks_in_other_columns_count_as_lines(found):
    note = '"two\nlines"'
    assert found(f"{HEADER},note", f"{A},{note}", f"{B},{note}", f"{C},", f"{D},") == ALL
    with pytest.raises(DataError, match=r"labels.csv, line 4: unknown split 'tset'"):
        found(f"{HEADER},note", f"{A},{note}", f"{B.replace(',train', ',tset')},")


def test_a_long_line_is_not_shown_whole(found):
    for line in (",".join(["x" * 5000]), f"train/b.png,dog,{'x' * 5000}", f"train/b.png,{chr(7) * 5000},train"):
        with pytest.raises(DataError, match=r"labels.csv, line 3: ") as error:
            found(HEADER, A, line)
        assert len(str(error.value).partition(", line")[2]) < 300


@pytest.mark.parametrize("name", ["train", "labels.csv", "d.gif"])
def test_only_files_with_the_endings_of_images_are_images(found, tmp_path, name):
    (tmp_path / "d.gif").touch()
    with pytest.raises(
        DataError, match=rf"1 of 3 files are no images by their endings: line 4: .*/{name}. Images are .jpg"
    ):
        found(HEADER, A, B, f"{name},dog,test")


def test_separators_of_windows_are_said_to_be_none(found):
    with pytest.raises(DataError, match=r"1 of 2 files do not exist: line 3: .*, and / stands between folders, not \\"):
        found(HEADER, A, "train\\b.png,dog,train")
    with pytest.raises(DataError, match="1 of 2 files do not exist: ") as error:
        found(HEADER, A, "train/x.png,dog,train")
    assert "\\" not in str(error.value)


@pytest.mark.parametrize("folder", ["round", "x" * 300, "zero\0"], ids=["link to itself", "too long", "byte 0"])
def test_a_path_that_no_disk_can_have_does_not_exist(found, tmp_path, folder):
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(DataError, match=r"labels.csv.* line 3"):  # before Python 3.11 a byte 0 is not readable as CSV
        found(HEADER, A, f"{folder}/b.png,dog,train")
