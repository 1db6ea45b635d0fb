import numpy as np
import pytest

from dho_plugin.data.labeled import LIST_FOLDERS, labeled_percent
from dho_plugin.engine.data import Datum, ImageList
from dho_plugin.errors import DataError

COUNTS = {2: 130, 0: 49, 1: 3}
LABELS = [label for label, count in COUNTS.items() for _ in range(count)]


@pytest.fixture
def wnids(tmp_path):
    """Return a listing of files like n2/n2_0.JPEG; none of them is there."""
    paths = [(f"n{label}/n{label}_{place}.JPEG", label) for place, label in enumerate(LABELS)]
    return ImageList.of([Datum(str(tmp_path / "train" / path), label) for path, label in paths])


def chosen(train, percent, home):
    return labeled_percent(percent, home, train, home / "train").tolist()


@pytest.mark.parametrize(
    ("percent", "counts"), [(1, [1, 0, 1]), (10, [5, 0, 13]), (0.5, [0, 0, 1]), (100, [49, 3, 130])]
)
def test_the_draw_is_stratified_and_takes_at_least_one(tmp_path, wnids, percent, counts, capsys):
    labels = [LABELS[place] for place in chosen(wnids, float(percent), tmp_path)]
    assert [labels.count(label) for label in range(3)] == [max(1, count) for count in counts]
    said = capsys.readouterr().out
    assert said.startswith(f"Labeled images: {len(labels)} of 182 ({percent}%), drawn by class")
    assert f"{tmp_path / f'{percent}percent.txt'} is not there" in said


def test_the_draw_is_the_same_anywhere_and_rises(tmp_path, wnids):
    first = chosen(wnids, 10.0, tmp_path)
    assert first == chosen(wnids, 10.0, tmp_path / "elsewhere") == sorted(set(first))
    # Philox with key (0, 2^32 + 1) and counter (0, label): the places of the smallest words.
    for label in COUNTS:
        places = np.flatnonzero(np.array(LABELS) == label)
        words = np.random.Philox(
            key=np.array([0, 2**32 + 1], dtype=np.uint64), counter=np.array([0, label, 0, 0], dtype=np.uint64)
        ).random_raw(len(places))
        mine = [place for place in first if LABELS[place] == label]
        assert mine == sorted(places[np.argsort(words)[: len(mine)]].tolist())


def test_a_class_draws_the_same_whatever_other_classes_there_are(tmp_path, wnids):
    alone = wnids.take(wnids.labels == 0)
    names = [wnids.path(place) for place in chosen(wnids, 10.0, tmp_path) if LABELS[place] == 0]
    assert [alone.path(place) for place in chosen(alone, 10.0, tmp_path)] == names


@pytest.mark.parametrize("folder", LIST_FOLDERS)
@pytest.mark.parametrize(
    "lines",
    [["n1_181.JPEG", "n2_7.JPEG"], ["n1/n1_181.JPEG", "n2/n2_7.JPEG"], ["n1_181.JPEG", "", "\ttrain/n2/n2_7.JPEG "]],
)
def test_the_usual_list_is_taken_where_it_lies(tmp_path, wnids, folder, lines, capsys):
    path = tmp_path / folder / "1percent.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    assert chosen(wnids, 1.0, tmp_path) == [7, 181]
    assert capsys.readouterr().out == f"Labeled images: 2 of 182 (1%), {path}; 1 classes have no labeled image\n"
    assert len(chosen(wnids, 10.0, tmp_path)) > 2  # which has no list


def test_a_list_may_name_files_that_lie_in_no_folder(tmp_path):
    flat = ImageList.of([Datum(str(tmp_path / "train" / name), 0) for name in ("a_1.jpg", "b_2.jpg")])
    (tmp_path / "2.5percent.txt").write_text("b_2.jpg")
    assert chosen(flat, 2.5, tmp_path) == [1]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["n2_0.JPEG", "n2_999.JPEG", "n9/x.JPEG"], "names 2 of 3 images that are not among the 182"),
        (["n2_0.JPEG", "n2_1.JPEG", "n2_0.JPEG"], "names 1 images more than once"),
        (["n2_0.JPEG", "n2/n2_0.JPEG"], "names 1 images more than once"),
        (["", " "], "names no image"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path, wnids, lines, named):
    (tmp_path / "1percent.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=named) as error:
        chosen(wnids, 1.0, tmp_path)
    assert str(error.value).startswith(str(tmp_path / "1percent.txt"))
    assert "or remove it: the labeled images are then drawn" in str(error.value)
