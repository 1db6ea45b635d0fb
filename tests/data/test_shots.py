import json
import pickle
from multiprocessing import get_context

import pytest

from dho_plugin.data.shots import ShotStore
from dho_plugin.data.splits import draw_shots
from dho_plugin.engine.data import ClassInfo
from dho_plugin.errors import ConfigError, DataError

LABELS = [2, 0, 1, 0, 2, 1, 1, 0, 2, 0, 1, 2, 0]
VAL_LABELS = [0, 1, 2, 2, 1, 0, 0]
CLASSES = [ClassInfo(f"key {label}", f"name {label}") for label in range(3)]


@pytest.fixture
def train(listing, tmp_path):
    return listing(tmp_path / "images/train", LABELS)


@pytest.fixture
def own_val(listing, tmp_path):
    return listing(tmp_path / "images/val", VAL_LABELS)


@pytest.fixture
def store(tmp_path):
    return ShotStore(tmp_path, tmp_path / "images", CLASSES, 2, 1)


@pytest.fixture
def coops_pickle(store, host_datum):
    """Return a function that writes shots as CoOp does, with the paths of another machine."""

    def write(part_of, change=lambda path, label: (path, label)):
        content = {
            part: [
                host_datum(
                    *change(images.path(place).replace(str(store.image_dir), "/there/data"), images[place].label)
                )
                for place in places
            ]
            for part, (images, places) in part_of.items()
        }
        store.pickle.parent.mkdir(exist_ok=True)
        store.pickle.write_bytes(pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL))

    return write


def test_shots_are_drawn_once_and_then_read(store, train, own_val, capsys):
    assert store.json.name == "shot_2-seed_1.json"
    drawn = draw_shots(train, own_val, 2, 1)
    for said in (f"drawn, stored in {store.json}", str(store.json)):
        shots = store.shots(train, own_val, "auto")
        assert [part.tolist() for part in shots] == [part.tolist() for part in drawn]
        assert capsys.readouterr().out == f"Shots: 2 a class, seed 1, {said}\n"


def test_the_file_can_be_read_by_people(store, train, own_val):
    shots = store.shots(train, own_val, "auto")
    content = json.loads(store.json.read_text(encoding="utf-8"))
    assert (content["shots"], content["seed"], content["classes"]) == (2, 1, 3)
    for images, places, groups in ((train, shots.train, content["train"]), (own_val, shots.val, content["val"])):
        folder = "train" if images is train else "val"
        named = [
            f"{folder}/folder {key.removeprefix('key ')}/{path.split('/')[-1]}"
            for key in groups
            for path in groups[key]
        ]
        assert named == [f"{folder}/folder {images[p].label}/{p}.jpg" for p in places.tolist()]
        assert [path for key in groups for path in groups[key]] == named


def test_sets_without_validation_images_store_none(store, train):
    assert store.shots(train, None, "auto").val is None
    assert "val" not in json.loads(store.json.read_text())
    assert store.shots(train, None, "auto").val is None


def test_the_stored_shots_count_and_not_todays_draw(store, train):
    content = {"shots": 2, "seed": 1, "classes": 3}
    places = [12, 0, 2, 4, 5, 1]
    content["train"] = {
        f"key {label}": [f"train/folder {label}/{p}.jpg" for p in places if LABELS[p] == label] for label in (0, 2, 1)
    }
    store.json.parent.mkdir()
    store.json.write_text(json.dumps(content))
    assert store.shots(train, None, "auto").train.tolist() == [12, 1, 0, 4, 2, 5]
    assert store.shots(train, None, "draw").train.tolist() == draw_shots(train, None, 2, 1).train.tolist()


def test_coops_pickle_comes_first_and_keeps_its_order(store, train, own_val, coops_pickle, capsys):
    store.shots(train, own_val, "auto")
    coops_pickle({"train": (train, [12, 0, 2, 4, 5, 1]), "val": (own_val, [6, 2])})
    capsys.readouterr()
    shots = store.shots(train, own_val, "auto")
    assert [shots.train.tolist(), shots.val.tolist()] == [[12, 0, 2, 4, 5, 1], [6, 2]]
    assert capsys.readouterr().out == f"Shots: 2 a class, seed 1, {store.pickle}\n"


def test_validation_images_of_the_pickle_need_a_set_with_its_own(store, train, own_val, coops_pickle):
    coops_pickle({"train": (train, [12, 0, 2, 4, 5, 1]), "val": (own_val, [6, 2])})
    assert store.shots(train, None, "auto").val is None
    coops_pickle({"train": (train, [12, 0, 2, 4, 5, 1])})
    assert store.shots(train, own_val, "auto").val is None


def test_draw_neither_reads_nor_writes(store, train, capsys):
    store.shots(train, None, "draw")
    assert capsys.readouterr().out == "Shots: 2 a class, seed 1, drawn\n"
    assert not store.json.parent.exists()
    store.json.parent.mkdir()
    store.json.write_text("damaged")
    store.pickle.write_text("damaged")
    store.shots(train, None, "draw")
    assert store.json.read_text() == "damaged"


def test_images_elsewhere_are_stored_by_their_whole_path(store, train, listing, tmp_path):
    outside = listing(tmp_path / "images2", LABELS)
    shots = store.shots(outside, None, "auto")
    stored = json.loads(store.json.read_text())["train"]
    assert all(path.startswith(str(tmp_path / "images2")) for paths in stored.values() for path in paths)
    assert store.shots(outside, None, "auto").train.tolist() == shots.train.tolist()


def test_a_folder_that_cannot_be_written_is_only_noted(store, train, capsys):
    store.json.parent.write_text("a file in the way")
    assert store.shots(train, None, "auto").train.tolist() == draw_shots(train, None, 2, 1).train.tolist()
    said = capsys.readouterr().out
    assert said.startswith("Shots: 2 a class, seed 1, drawn (not stored: ")
    assert str(store.json.parent) in said


def test_a_file_name_that_is_no_text_is_only_noted(store, listing, tmp_path, capsys):
    store.shots(listing(tmp_path / "bad\udcff", LABELS), None, "auto")
    assert "drawn (not stored: " in capsys.readouterr().out
    assert not store.json.exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda path, label: (path.replace("folder 1/2.", "folder 1/99."), label),
            "'/there/data/train/folder 1/99.jpg'",
        ),
        (lambda path, label: (path.replace("folder 1/2.", "folder 1/5."), label), "more than once"),
        (lambda path, label: (path, 0 if path.endswith("/2.jpg") else label), "the label 0; in the data set it has 1"),
        (lambda path, label: (path, label + 1), "the label 1; in the data set it has 0"),
        (lambda path, label: (path.replace("folder 1/2.", "folder 0/3."), min(label, 2)), "the label 1"),
    ],
)
def test_a_pickle_that_does_not_fit_is_refused(store, train, coops_pickle, change, named):
    coops_pickle({"train": (train, [12, 0, 2, 4, 5, 1])}, change)
    with pytest.raises(DataError) as error:
        store.shots(train, None, "auto")
    assert str(error.value).startswith(str(store.pickle))
    assert named in str(error.value)
    assert str(error.value).endswith(f"Delete {store.pickle}, or set DATASET.SHOTS_FROM draw")


@pytest.mark.parametrize(
    ("places", "named"),
    [
        ([12, 0, 2, 4, 1], r"has 1 shots of class 'key 1' \(label 1\), which has 4 training images, where 2"),
        ([12, 0, 2, 4, 5, 1, 6], "has 3 shots of class 'key 1'"),
        ([0, 2, 4, 5], "has 0 shots of class 'key 0'"),
        ([], "so for 3 classes in all"),
    ],
)
def test_another_number_of_shots_is_refused(store, train, coops_pickle, places, named):
    coops_pickle({"train": (train, places)})
    with pytest.raises(DataError, match=named):
        store.shots(train, None, "auto")


def test_a_class_with_fewer_images_has_them_all(train, tmp_path):
    store = ShotStore(tmp_path, tmp_path / "images", CLASSES, 5, 1)
    small = train.take(range(12))  # 4 images of every class
    with pytest.raises(DataError, match=r"fewer than DATASET\.NUM_SHOTS 5"):
        store.shots(small, None, "auto")
    store.shots(train, None, "auto")
    assert len(store.shots(train, None, "auto").train) == 13
    with pytest.raises(DataError, match=r"names 1 of 13 images that are not among the 12"):
        store.shots(small, None, "auto")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("damaged", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ([], "has None under 'shots', where this run has 2"),
        ({"shots": 4}, "has 4 under 'shots', where this run has 2"),
        ({"shots": 2, "seed": 2}, "has 2 under 'seed', where this run has 1"),
        ({"shots": 2, "seed": 1, "classes": 4}, "has 4 under 'classes', where this run has 3"),
        ({"shots": 2, "seed": 1, "classes": 3}, "is no list of image paths a class"),
        ({"shots": 2, "seed": 1, "classes": 3, "train": {"key 0": "a.jpg"}}, "is no list of image paths a class"),
        ({"shots": 2, "seed": 1, "classes": 3, "train": {"key 0": [1]}}, "is no list of image paths a class"),
        ({"shots": 2, "seed": 1, "classes": 3, "train": {"key 9": ["a.jpg"]}}, "names the class 'key 9'"),
        ({"shots": 2, "seed": 1, "classes": 3, "train": {"key 0": ["a.jpg"]}}, "'a.jpg'"),
        ({"shots": 2, "seed": 1, "classes": 3, "train": {"key 0": ["train/folder 1/2.jpg"]}}, "the label 0; in the"),
        ({"shots": 2, "seed": 1, "classes": 3, "train": {}, "val": []}, "is no list of image paths a class"),
    ],
)
def test_a_json_that_does_not_fit_is_refused(store, train, content, named):
    store.json.parent.mkdir()
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    store.json.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(DataError) as error:
        store.shots(train, None, "auto")
    assert str(error.value).startswith(str(store.json))
    assert named in str(error.value)
    assert str(error.value).endswith(f"Delete {store.json}, or set DATASET.SHOTS_FROM draw")


def test_a_seed_that_fixes_nothing_is_refused(train, tmp_path):
    with pytest.raises(ConfigError, match="SEED: -1"):
        ShotStore(tmp_path, tmp_path, CLASSES, 2, -1).shots(train, None, "auto")
    assert not (tmp_path / "split_fewshot").exists()


def test_two_runs_may_write_at_the_same_time(store, train, own_val):
    shots = draw_shots(train, own_val, 2, 1)
    context = get_context("fork")
    writers = [context.Process(target=_write_often, args=(store, shots, train, own_val)) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if store.json.exists():
            assert store.read(store.json, train, own_val).train.tolist() == shots.train.tolist()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [path.name for path in store.json.parent.iterdir()] == [store.json.name]


def _write_often(store, shots, train, own_val):
    for _ in range(30):
        store.write(shots, train, own_val)
