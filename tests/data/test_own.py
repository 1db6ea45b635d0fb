"""Own photos: both ways to give them lead to the same data set, and every mistake has its message."""

import json
import os
import random
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from dho_plugin.data import own_folders
from dho_plugin.data.own import ImageFolder
from dho_plugin.data.subsets import columns
from dho_plugin.engine.config import get_cfg_default, merge_file
from dho_plugin.engine.evaluator import TestLogits
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.errors import ConfigError, DataError
from dho_plugin.ood import stored_sets
from dho_plugin.tables import main as tables
from dho_plugin.train import main as train

TREE = {  # images of each folder
    "train/cat": 5,
    "train/dog": 4,
    "train/snow_owl": 6,
    "unlabeled": 2,
    "unlabeled/2024/may": 3,
    "val/cat": 2,
    "val/dog": 2,
    "val/snow_owl": 2,
    "test/cat": 3,
    "test/snow_owl": 2,
    "night/dog": 2,
    "night/snow_owl": 1,
    "sketches/snow_owl": 4,
}
SETS = ("night", "sketches")


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (len(str(path)) % 256, 0, 0)).save(path, format="PNG")


def write(home, tree=TREE):
    for folder, count in tree.items():
        for number in range(count):
            photo(home / folder / f"{folder.replace('/', '-')}_{number}.jpg")
    return home


@pytest.fixture
def home(tmp_path):
    return write(tmp_path / "photos")


def read(home, *, shots=-1, seed=1, **changes):
    cfg = get_cfg_default()
    merge_file(cfg, "configs/datasets/folder.yaml")
    cfg.SEED, cfg.DATASET.ROOT, cfg.DATASET.PREFIX = seed, str(home.parent), home.name
    cfg.DATASET.NUM_SHOTS = shots
    for key, value in changes.items():
        node = cfg.TEST if key in cfg.TEST else cfg.DATASET
        node[key] = value
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)


def names(images):
    return [os.path.basename(item.impath) for item in images]


def csv_lines(home, tree=TREE):
    """Return the lines of a CSV of the tree, mixed, the first column's paths relative to `home`."""
    lines = []
    for folder, count in tree.items():
        split, _, label = folder.partition("/")
        label = "" if split == "unlabeled" else label
        lines += [f"{folder}/{folder.replace('/', '-')}_{number}.jpg,{label},{split}" for number in range(count)]
    random.Random(0).shuffle(lines)
    return lines


def write_csv(home, lines, header="path,label,split", name="labels.csv", encoding="utf-8"):
    home.mkdir(parents=True, exist_ok=True)
    (home / name).write_text("\n".join([header, *lines]) + "\n", encoding=encoding)
    return name


def test_folders_become_a_data_set(home):
    data = read(home, shots=2, TEST_SETS=SETS)
    assert isinstance(data, ImageFolder)
    assert (data.class_keys, data.classnames) == (["cat", "dog", "snow_owl"], ["cat", "dog", "snow owl"])
    assert [len(part) for part in (data.train_x, data.train_u, data.test)] == [6, 9 + 5, 5]
    assert sorted(item.label for item in data.train_x) == [0, 0, 1, 1, 2, 2]
    assert data.test_name == "test"
    for item in data.train_x + data.val + data.test:
        assert data.class_keys[item.label] == os.path.basename(os.path.dirname(item.impath))
        assert item.classname == data.classnames[item.label]
        assert os.path.isfile(item.impath)
    data.require_training()


def test_unlabeled_images_of_any_depth_are_in_the_pool_without_a_label(home):
    for shots in (-1, 2):
        data = read(home, shots=shots)
        unlabeled = [item for item in data.train_u if item.label < 0]
        assert names(unlabeled) == [
            *(f"unlabeled_{n}.jpg" for n in range(2)),
            *(f"unlabeled-2024-may_{n}.jpg" for n in range(3)),
        ]
        assert {item.label for item in unlabeled} == {-1}
        assert {item.classname for item in unlabeled} == {""}
        assert [item.index for item in unlabeled] == [15, 16, 17, 18, 19]
        assert len(data.train_x + data.train_u) == 20
        assert sorted(item.index for item in data.train_x + data.train_u) == list(range(20))
        assert all(item.label >= 0 for item in data.train_x + data.val + data.test)


def test_further_test_sets_have_their_own_classes(home):
    data = read(home, TEST_SETS=SETS)
    night, sketches = data.extra_tests
    assert (night.test_name, night.class_keys, night.classnames) == ("night", ["dog", "snow_owl"], ["dog", "snow owl"])
    assert [(item.label, item.classname) for item in night.test] == [(0, "dog"), (0, "dog"), (1, "snow owl")]
    assert (sketches.test_name, sketches.class_keys, len(sketches.test)) == ("sketches", ["snow_owl"], 4)
    assert columns(data.class_keys, night.class_keys).tolist() == [1, 2]
    with pytest.raises(DataError, match="test set only"):
        night.require_training()
    assert read(home).extra_tests == ()


def test_half_of_the_classes(home, capsys):
    base = read(home, shots=1, TEST_SETS=SETS, SUBSAMPLE_CLASSES="base")
    assert base.class_keys == ["cat", "dog"]
    assert (len(base.train_x), len(base.test)) == (2, 3)
    assert [item.label for item in base.train_u].count(-1) == 5
    assert [(extra.test_name, extra.class_keys, len(extra.test)) for extra in base.extra_tests] == [
        ("night", ["dog"], 2)
    ]
    assert "sketches is left out" in capsys.readouterr().out
    new = read(home, shots=1, TEST_SETS=SETS, SUBSAMPLE_CLASSES="new")
    assert [(extra.class_keys, extra.test.labels.tolist()) for extra in new.extra_tests] == [
        (["snow_owl"], [0]),
        (["snow_owl"], [0] * 4),
    ]


def test_a_csv_of_the_same_photos_is_the_same_data_set(home, tmp_path):
    """The order of the lines does not matter, nor whether paths are relative or absolute, nor further columns."""
    lines = csv_lines(home)
    write_csv(home, lines)
    far = [line.split(",") for line in lines]
    write_csv(
        tmp_path / "lists", [f"{split},x,{home / path},{label}" for path, label, split in far], "Split,by, PATH,label"
    )
    for shots in (-1, 2):
        expected = read(home, shots=shots, TEST_SETS=SETS)
        for table in ("labels.csv", str(tmp_path / "lists/labels.csv")):
            found = read(home, shots=shots, TEST_SETS=SETS, CSV=table)
            assert found.classes == expected.classes
            for part in ("train_x", "train_u", "val", "test"):
                assert getattr(found, part) == getattr(expected, part)
            for one, other in zip(found.extra_tests, expected.extra_tests, strict=True):
                assert (one.test_name, one.classes, one.test) == (other.test_name, other.classes, other.test)


def test_a_label_of_an_unlabeled_line_is_never_one(home):
    lines = [line.replace(",,unlabeled", ",no such class,unlabeled") for line in csv_lines(home)]
    data = read(home, CSV=write_csv(home, lines), TEST_SETS=SETS)
    assert len(data.train_u) == 5
    assert set(data.train_u.labels.tolist()) == {-1}
    assert data.class_keys == ["cat", "dog", "snow_owl"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_from_a_spreadsheet(tmp_path, encoding):
    home = tmp_path / "photos"
    photo(home / "a, b.jpg")
    photo(home / "Größe 例.jpg")
    lines = ['"a, b.jpg","café, old",train\r', "", 'Größe 例.jpg , "café, old",test\r']
    name = write_csv(home, lines, header='"path",label,split\r', encoding=encoding)
    data = read(home, CSV=name)
    assert data.class_keys == ["café, old"]
    assert (names(data.train_x), names(data.test)) == (["a, b.jpg"], ["Größe 例.jpg"])


GOOD = ["a.jpg,cat,train", "b.jpg,dog,train", "c.jpg,cat,test"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [*GOOD, "d.jpg,cat,tset"],
            r"labels.csv, line 5: unknown split 'tset'; .*train, unlabeled, val, test; .*TEST_SETS",
        ),
        ([*GOOD, "d.jpg,dogg,test"], r"line 5: unknown class 'dogg': no line of split train .*mean 'dog'\?"),
        ([*GOOD, "d.jpg,horse,val"], r"line 5: unknown class 'horse'.*known: cat, dog$"),
        ([*GOOD, ",cat,test"], "line 5: the path is empty"),
        ([*GOOD, "d.jpg,,test"], "line 5: d.jpg has no label; only lines of split unlabeled"),
        ([*GOOD, "d.jpg, ,train"], "line 5: d.jpg has no label"),
        ([*GOOD, "d.jpg,cat"], "line 5: 2 columns"),
        ([*GOOD, "./a.jpg,cat,test"], r"line 5: .*photos/a.jpg stands already in line 2"),
        (["a.jpg,cat,train", "", "x/../a.jpg,,unlabeled"], "line 4: .*a.jpg stands already in line 2"),
        (
            [*GOOD, "gone.jpg,cat,test", "no/such/d.jpg,cat,test"],
            r"2 of 5 files .*line 5: .*gone.jpg, line 6: .*such/d.jpg",
        ),
        (["a.jpg,,unlabeled"], "no line's split is train and test"),
        ([], "no line's split is train and test"),
        ([*GOOD, 'd.jpg,"cat,test'], "labels.csv, line 5: "),
    ],
)
def test_a_bad_line_is_named(tmp_path, lines, said):
    home = tmp_path / "photos"
    for name in "abcd":
        photo(home / f"{name}.jpg")
    with pytest.raises(DataError, match=said):
        read(home, CSV=write_csv(home, lines))


@pytest.mark.parametrize("header", ["path,label", "path;label;split", "", "path,label,split,label"])
def test_a_bad_header_is_shown(tmp_path, header):
    home = tmp_path / "photos"
    photo(home / "a.jpg")
    with pytest.raises(DataError, match=r"labels.csv, line [12]: the columns are .*path, label and split") as error:
        read(home, CSV=write_csv(home, GOOD, header=header))
    assert header.split(",")[0] in str(error.value)


def test_a_csv_that_is_not_there_or_not_utf8(tmp_path):
    home = tmp_path / "photos"
    with pytest.raises(DataError, match=r"DATASET.CSV: there is no file .*photos/labels.csv"):
        read(home, CSV="labels.csv")
    write_csv(home, ["a.jpg,größe,train"], encoding="latin-1")
    with pytest.raises(DataError, match=r"labels.csv is not UTF-8"):
        read(home, CSV="labels.csv")


def test_a_set_that_no_line_names(home):
    lines = [line for line in csv_lines(home) if not line.endswith("night")]
    with pytest.raises(DataError, match=r"line 2: unknown split|no line's split is night"):
        read(home, CSV=write_csv(home, lines), TEST_SETS=SETS)


def test_class_names_of_a_file(home):
    for folder in ("train", "val", "test"):
        (home / folder / "dog").mkdir(exist_ok=True)
        (home / folder / "dog").rename(home / folder / "big dog")
    photo(home / "test/big dog/x.jpg")
    (home / "classnames.txt").write_text("\ufeffbig dog\tDogge\nsnow_owl Schnee-Eule, weiß\ncat  Katze\nhorse Pferd\n")
    data = read(home)
    assert [(info.key, info.name) for info in data.classes] == [
        ("big dog", "Dogge"), ("cat", "Katze"), ("snow_owl", "Schnee-Eule, weiß")
    ]  # fmt: skip


def test_classnames_must_know_every_class(home):
    (home / "classnames.txt").write_text("cat Katze\ndog Hund\n")
    with pytest.raises(DataError, match=r"classnames.txt has no name for 1 of 3 class folders: snow_owl.* tab"):
        read(home)
    with pytest.raises(DataError, match=r"line \d+: unknown class 'snow_owl': classnames.txt lacks it"):
        read(home, CSV=write_csv(home, csv_lines(home)), TEST_SETS=SETS)
    (home / "classnames.txt").write_text("cat Katze\ndog Hund\ncat Kater\n")
    with pytest.raises(DataError, match="line 3: 'cat' is 'Kater' here and 'Katze' above"):
        read(home)


def test_accents_written_in_one_or_in_two_characters_are_the_same(tmp_path):
    """Macs write é in two characters (NFD), editors in one (NFC)."""
    home = tmp_path / "photos"
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != apart
    write(home, {f"train/{apart}": 2, f"test/{composed}": 1, "train/tea": 2})
    (home / "classnames.txt").write_text(f"{composed} a {apart}\ntea a tea\n", encoding="utf-8")
    data = read(home)
    assert [(info.key, info.name) for info in data.classes] == [(composed, f"a {composed}"), ("tea", "a tea")]
    assert data.test.labels.tolist() == [0]
    assert all(os.path.isfile(path) for path in data.train_x.paths())
    lines = [
        f"train/{composed}/train-{apart}_0.jpg,{apart},train",
        f"test/{composed}/test-{apart}_0.jpg,{composed},test",
    ]
    listed = read(home, CSV=write_csv(home, lines))
    assert listed.class_keys == [composed]
    assert all(os.path.isfile(path) for path in [*listed.train_x.paths(), *listed.test.paths()])
    with pytest.raises(DataError, match=r"line 3: .* stands already in line 2"):
        read(home, CSV=write_csv(home, [lines[0], unicodedata.normalize("NFD", lines[0])]))
    write(home, {f"train/{composed}": 1})
    with pytest.raises(DataError, match=r"two folders are named .*accents"):
        read(home)


def test_a_class_whose_name_cannot_be_printed_is_refused_at_once(tmp_path):
    """Not by the first file that should hold it, after the training."""
    for name in (b"gr\xf6\xdfe", b"two\nlines"):
        home = write(tmp_path / f"photos{len(name)}", {"train/cat": 1})
        os.mkdir(os.path.join(os.fsencode(home / "train"), name))
        with pytest.raises(DataError, match=r"photos\d/train: the class folder .* cannot be printed; rename it"):
            read(home)


def test_links_to_folders_and_files_are_followed(home, tmp_path):
    (home / "train/cat").rename(tmp_path / "elsewhere")
    (home / "train/cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    photo(tmp_path / "one.png")
    (home / "train/dog/link.png").symlink_to(tmp_path / "one.png")
    (home / "unlabeled/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (home / "unlabeled/round").symlink_to(home / "unlabeled", target_is_directory=True)
    data = read(home)
    assert data.class_keys == ["cat", "dog", "snow_owl"]
    assert len(data.train_x) == 16
    assert "link.png" in names(data.train_x)
    assert len(data.train_u) == 5 + 5


def test_of_two_links_to_a_folder_the_first_by_name_counts(home, tmp_path):
    for target, links in (("one", "az"), ("two", "yb")):  # whichever of the links the disk lists first
        photo(tmp_path / target / "photo.png")
        for link in links:
            (home / "unlabeled" / link).symlink_to(tmp_path / target, target_is_directory=True)
    linked = [path for path in read(home).train_u.paths() if path.endswith("photo.png")]
    assert linked == [str(home / f"unlabeled/{link}/photo.png") for link in "ab"]


def test_an_unknown_class_of_a_test_set_is_refused(home):
    write(home, {"night/snow owl": 1})
    with pytest.raises(DataError, match=r"photos/night: unknown class 'snow owl': train/ has .*mean 'snow_owl'\?"):
        read(home, TEST_SETS=SETS)
    write(home, {"test/zebra": 1})
    with pytest.raises(DataError, match=r"photos/test: unknown class 'zebra'.*known: cat, dog, snow_owl"):
        read(home)


@pytest.mark.parametrize("folder", ["train/empty", "test/empty", "night/dog"])
def test_an_empty_class_folder_is_named(home, folder):
    shutil.rmtree(home / folder, ignore_errors=True)
    (home / folder).mkdir()
    if folder == "test/empty":
        write(home, {"train/empty": 1})
    with pytest.raises(DataError, match=f"photos/{folder}: class folder without an image"):
        read(home, TEST_SETS=SETS)


def test_what_is_not_used_is_said(home, capsys):
    photo(home / "train/stray.jpg")
    photo(home / "test/cat/more/deep.jpg")
    for name in ("train/cat/a.HEIC", "train/dog/b.heic", "unlabeled/2024/list", "train/cat/.hidden", "val/README.txt"):
        (home / name).write_text("x")
    data = read(home)
    out = capsys.readouterr().out
    assert "photos/train: not used: 1 image(s) beside the class folders, such as stray.jpg;" in out
    assert "photos/test/cat: not used: 1 folder(s) in a class's folder, such as more;" in out
    assert "photos: not used: files that are no images by their endings (.heic 2, " in out
    assert ".txt 1" in out
    assert "no ending 1" in out
    assert len(data.train_x) == 15


def test_a_tidy_or_a_big_folder_is_not_commented(home, capsys, monkeypatch):
    read(home)
    assert capsys.readouterr().out == ""
    photo(home / "train/stray.jpg")
    monkeypatch.setattr(own_folders, "STRANGE_UP_TO", 30)
    read(home)
    assert "stray" not in capsys.readouterr().out


def test_without_a_test_split_validation_images_are_scored_and_choose_nothing(home, capsys):
    """As ImageNet's do."""
    shutil.rmtree(home / "test")
    data = read(home, NUM_VAL_SHOTS=1, TEST_SETS=SETS)
    assert data.test_name == "val"
    assert {os.path.relpath(path, home).split("/")[0] for path in data.test.paths()} == {"val"}
    assert len(data.test) == 6
    assert {os.path.relpath(path, home).split("/")[0] for path in data.val.paths()} == {"train"}
    assert "no test split, so the val split is what is scored" in capsys.readouterr().out
    assert data.no_validation == "Its val split is scored in the place of the test split, which is not there."
    kept = read(home, SPLIT="val")
    assert (len(kept.test), len(kept.val), kept.no_validation) == (0, 6, "")


def test_without_test_and_validation_images_there_is_nothing_to_score(home):
    shutil.rmtree(home / "test")
    shutil.rmtree(home / "val")
    with pytest.raises(DataError, match=r"no test images; put some into test/<class>/.*TEST.SPLIT val"):
        read(home)
    data = read(home, SPLIT="val", NUM_VAL_SHOTS=1)
    assert (len(data.val), len(data.test)) == (3, 0)
    assert len(read(home, NO_TEST=True).train_x) == 15


def test_without_training_images_it_is_a_test_set(home):
    shutil.rmtree(home / "train")
    data = read(home, shots=16, TEST_SETS=SETS)
    assert (data.train_x, data.train_u) == ([], [])
    assert data.class_keys == ["cat", "dog", "snow_owl"]
    assert len(data.test) == 5
    with pytest.raises(DataError, match=r"ImageFolder has no training images. train/ in .*photos has none"):
        data.require_training()


def test_a_folder_of_something_else_is_described(tmp_path):
    with pytest.raises(DataError, match=r"nowhere holds neither train/ nor test/. There is no such folder"):
        read(tmp_path / "nowhere")
    write(tmp_path / "photos", {"cat": 1, "dog": 1})
    with pytest.raises(
        DataError, match=r"neither train/ nor test/. Its folders: cat, dog. Photos lie in train/<class>"
    ):
        read(tmp_path / "photos")
    write(tmp_path / "flat", {"train": 2})
    with pytest.raises(DataError, match=r"flat/train: holds no class folders; .*train/<class>"):
        read(tmp_path / "flat")
    write(tmp_path / "good", {"train/a": 1, "test/a": 1})
    with pytest.raises(DataError, match=r"good/night: no such folder"):
        read(tmp_path / "good", TEST_SETS=("night",))


@pytest.mark.parametrize(
    "sets", [("test",), ("validation",), ("OOD",), ("",), ("a/b",), ("..",), (2024,), ("night", "night")]
)
def test_names_of_test_sets(home, sets):
    with pytest.raises(ConfigError, match=r"DATASET.TEST_SETS has "):
        read(home, TEST_SETS=sets)


@pytest.mark.parametrize("table", ["", "labels.csv"])
def test_own_photos_are_trained_on_and_scored_on_every_set(home, command, tmp_path, table):
    """Among them further sets that have only some of the classes; the unlabeled photos change the KD head."""
    write_csv(home, csv_lines(home))
    for folder in ("run", "labeled"):
        options = ["DATASET.TEST_SETS", str(SETS), "DATASET.CSV", table, "OPTIM.MAX_EPOCH", "1"]
        options += ["DATASET.ROOT", str(home), "DATASET.TEMPLATES", "('a photo of a {}, a kind of pet.',)"]
        options += ["TRAINER.DHO.UNLABELED", str(folder == "run")]
        assert train(command("CoOp_DHO", folder, *options, dataset="folder")) == 0
    found = json.loads((tmp_path / "run/results.json").read_text())["metrics"]
    assert {name: metrics["n"] for name, metrics in found.items()} == {"test": 5, "night": 3, "sketches": 4}
    assert found["sketches"]["accuracy"] == 100  # of one class
    assert stored_sets(tmp_path / "run").keys() == found.keys()
    one, other = (TestLogits.load(stored_sets(tmp_path / folder)["test"]) for folder in ("run", "labeled"))
    assert not one.logits_kd.equal(other.logits_kd)
    assert tables([str(tmp_path / "run"), "--format", "csv"]) == 0


def test_nothing_is_written_into_the_users_folder(home):
    before = sorted(home.rglob("*"))
    read(home, shots=2, TEST_SETS=SETS)
    assert sorted(home.rglob("*")) == before


def test_photos_are_scored_upright_however_they_lie(command, tmp_path):
    """Once stored as they are seen, once lying on their side with the EXIF word that says so."""
    rng, lying = np.random.default_rng(0), Image.Exif()
    lying[0x0112] = 6
    for number, place in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        image = Image.fromarray(rng.integers(0, 256, (40, 64, 3), dtype=np.uint8))
        for folder in ("seen", "stored"):
            (tmp_path / folder / place).mkdir(parents=True)
        image.save(tmp_path / f"seen/{place}/{number}.png")
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"stored/{place}/{number}.png", exif=lying)
    found = []
    for folder in ("seen", "stored"):
        options = ("DATASET.ROOT", str(tmp_path), "DATASET.PREFIX", folder, "DATASET.NUM_SHOTS", "1")
        line = command("ZeroshotCLIP", f"run_{folder}", *options, flags=("--eval-only",), dataset="folder")
        assert train(line) == 0
        found.append(TestLogits.load(tmp_path / f"run_{folder}/logits/test.safetensors").logits_ce)
    assert len(found[0]) == 2
    assert torch.equal(*found)
