import json
import random
import re
from pathlib import Path

import pytest
from PIL import Image
from scipy.io import savemat

import dho_plugin.data.fine_grained as readers
from dho_plugin.data import makers
from dho_plugin.data.zhou import Entry, read_split
from dho_plugin.engine.config import get_cfg_default
from dho_plugin.errors import DataError

# What CoOp's own code made of the trees of the fixture, its folders listed in sorted order, after random.seed(1): the
# numbers in the names of the images of train and val.
FOLDERS = [28, 36, 40, 32, 24, 19, 35, 11, 27, 23, 30, 34, 26, 38, 22, 29, 9, 33, 5, 17], [16, 4, 39, 3, 2, 10, 1, 21]
UNPADDED = [36, 40, 8, 4, 32, 27, 39, 19, 31, 3, 34, 38, 30, 6, 26, 37, 17, 5, 13, 25], [24, 12, 7, 11, 10, 18, 1, 29]
TABLE = [25, 33, 37, 29, 21, 18, 34, 10, 26, 22, 31, 35, 27, 39, 23, 32, 12, 36, 8, 20], [13, 1, 38, 2, 3, 11, 4, 24]
TRAINVAL = (
    [25, 21, 9, 1, 17, 5, 10, 2, 18, 22, 14, 26, 23, 11, 19, 27, 3, 15, 4, 20, 8, 12, 16, 24],
    [13, 6, 7, 28],
)
COOP = {
    "Caltech101": FOLDERS,
    "DescribableTextures": FOLDERS,
    "Food101": UNPADDED,  # 10.jpg comes before 2.jpg
    "EuroSAT": UNPADDED,
    "OxfordFlowers": TABLE,
    "OxfordPets": TRAINVAL,
    "StanfordCars": TRAINVAL,
    "SUN397": TRAINVAL,
    "UCF101": TRAINVAL,
}
LISTS = {name: found for name, found in COOP.items() if found is TRAINVAL}


def make(name, tree, seed=1):
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.SEED = str(tree.root), seed
    return getattr(readers, name)(cfg)


def number(path: str) -> int:
    return int(re.search(r"(\d+)(_c01)?\.jpg$", path)[1])


@pytest.mark.parametrize("name", COOP)
def test_a_split_is_made_as_coop_makes_it(fine_grained_tree, name):
    tree = fine_grained_tree(name, split=False)
    data = make(name, tree)
    split = read_split(tree.split)
    assert ([number(e.path) for e in split.train], [number(e.path) for e in split.val]) == COOP[name]
    listed = {path: label for items in tree.parts.values() for path, label in items}
    assert sorted((e.path, e.label) for part in split for e in part) == sorted(listed.items())
    assert all(e.name == tree.names[e.label] for part in split for e in part)
    if name in LISTS:
        assert [(e.path, e.label) for e in split.test] == tree.parts["test"]
    assert data.class_keys == tree.names
    assert [item.impath for item in data.test] == [str(tree.images / e.path) for e in split.test]


@pytest.mark.parametrize("name", COOP)
def test_the_file_has_coops_form(fine_grained_tree, name):
    """Dassl writes JSON indented by 4, with ASCII only, which a reader in any locale understands."""
    tree = fine_grained_tree(name, split=False)
    make(name, tree)
    text = tree.split.read_text(encoding="ascii")
    content = json.loads(text)
    assert list(content) == ["train", "val", "test"]
    assert text == json.dumps(content, indent=4, separators=(",", ": "))


def test_a_split_does_not_depend_on_the_run_and_is_made_once(fine_grained_tree, capsys):
    tree = fine_grained_tree("DescribableTextures", split=False)
    random.seed(5)
    before = random.getstate()
    make("DescribableTextures", tree, seed=7)
    assert random.getstate() == before
    made = tree.split.read_bytes()
    assert [number(e.path) for e in read_split(tree.split).train] == FOLDERS[0]
    out = capsys.readouterr().out
    assert f"{tree.split}: there was none; made as CoOp makes it, from the sorted listing with seed 1" in out
    assert "(20 train, 8 val, 12 test)" in out
    make("DescribableTextures", tree, seed=8)
    assert capsys.readouterr().out.count("there was none") == 0
    assert tree.split.read_bytes() == made


@pytest.mark.parametrize("name", ["OxfordPets", "EuroSAT"])
def test_where_the_disk_refuses_the_run_goes_on(fine_grained_tree, name, monkeypatch, capsys):
    tree = fine_grained_tree(name, split=False)

    def refuse(path, text):
        raise OSError(30, "Read-only file system", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("dho_plugin.data.zhou.atomic_write_text", refuse)
        data = make(name, tree)
    assert f"{tree.split} cannot be written ([Errno 30] Read-only file system" in capsys.readouterr().out
    assert not tree.split.exists()
    stored = make(name, tree)
    assert (data.train_x, data.val, data.test) == (stored.train_x, stored.val, stored.test)


def test_a_reader_may_refrain_from_writing(fine_grained_tree):
    tree = fine_grained_tree("UCF101", split=False)
    before = set(tree.root.rglob("*"))
    kept = []

    class Looking(readers.UCF101):
        def store_split(self, path, split):
            kept.append((path, split))

    cfg = get_cfg_default()
    cfg.DATASET.ROOT = str(tree.root)
    data = Looking(cfg)
    assert set(tree.root.rglob("*")) == before
    assert [item.impath for item in data.val] == [str(tree.images / entry.path) for entry in kept[0][1].val]


def test_caltechs_background_and_easy_faces_are_no_classes(fine_grained_tree):
    tree = fine_grained_tree("Caltech101", split=False)
    assert (tree.images / "BACKGROUND_Google").is_dir()
    data = make("Caltech101", tree)
    assert data.class_keys == ["face", "accordion", "airplane", "wild_cat"]
    assert data.classnames == ["face", "accordion", "airplane", "wild cat"]
    assert not any("BACKGROUND" in item.impath or "easy" in item.impath for item in data.train_x + data.val + data.test)


def test_all_renamed_classes_of_eurosat_and_caltech():
    folders = (
        "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake"
    )
    assert [readers.EUROSAT_NAMES.get(folder, folder) for folder in folders.split()] == [
        "Annual Crop Land",
        "Forest",
        "Herbaceous Vegetation Land",
        "Highway or Road",
        "Industrial Buildings",
        "Pasture Land",
        "Permanent Crop Land",
        "Residential Buildings",
        "River",
        "Sea or Lake",
    ]
    assert readers.CALTECH_NAMES == {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    }


def test_strange_files_and_hidden_ones_are_not_images(fine_grained_tree):
    tree = fine_grained_tree("Food101", split=False)
    for name in (".DS_Store", "Thumbs.db", "pho/.pho_1.jpg", "pho/Thumbs.db"):
        (tree.images / name).write_text("no image")
    make("Food101", tree)
    assert [number(e.path) for e in read_split(tree.split).train] == UNPADDED[0]


def test_rounding_and_order_of_a_split_of_trainval():
    """round(n / 5) of each class validates, and classes come in the order of their first image."""
    counts = {2: 3, 0: 13, 1: 7}  # 0.6, 2.6 and 1.4 validate
    entries = [Entry(f"{label}/{i}.jpg", label, str(label)) for label, count in counts.items() for i in range(count)]
    train, val = makers.split_trainval(entries, random.Random(1), Path("list.txt"))
    assert [e.label for e in val] == [2, 0, 0, 0, 1]
    assert [e.label for e in train] == [2] * 2 + [0] * 10 + [1] * 6
    assert sorted(train + val) == sorted(entries)


@pytest.mark.parametrize(("count", "parts"), [(4, (2, 1, 1)), (5, (2, 1, 2)), (7, (4, 1, 2)), (13, (6, 3, 4))])
def test_rounding_of_a_split_of_folders(tmp_path, count, parts):
    """Python rounds halves to the even number: 50% of 5 are 2, of 7 are 4, of 13 are 6."""
    for place in range(count):
        path = tmp_path / "images" / "only" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    split = makers.from_folders(tmp_path, random.Random(1), "images")
    assert tuple(map(len, split)) == parts


@pytest.mark.parametrize(
    ("name", "many", "message"),
    [
        ("Food101", (1, 1, 1), r"images: class apple_pie has 3 images; 50% train, 20% val, 30% test need 4"),
        ("OxfordFlowers", (1, 1, 1), r"imagelabels\.mat: class 4 has 3 images"),
        ("OxfordPets", (1, 1, 1), r"trainval\.txt: class 'pug' has 2 images; 80% train, 20% val need 3"),
        ("StanfordCars", (1, 1, 1), r"cars_train_annos\.mat: class '2010 BMW' has 2 images"),
    ],
)
def test_a_class_with_too_few_images_is_named(fine_grained_tree, name, many, message):
    tree = fine_grained_tree(name, 4, *many, split=False)
    with pytest.raises(DataError, match=message):
        make(name, tree)
    assert not tree.split.exists()


@pytest.mark.parametrize("name", ["OxfordPets", "StanfordCars", "OxfordFlowers", "SUN397", "UCF101"])
def test_a_listed_image_that_is_missing_is_named_before_anything_is_written(fine_grained_tree, name):
    tree = fine_grained_tree(name, split=False)
    path = tree.images / tree.parts["train"][7][0]
    path.unlink()
    with pytest.raises(DataError) as error:
        make(name, tree)
    assert str(error.value).startswith(f"{path}: no such file")
    assert "(1 of the 40 images" in str(error.value)
    assert not tree.split.exists()


def test_a_split_that_would_be_refused_is_not_stored(fine_grained_tree):
    tree = fine_grained_tree("OxfordPets", split=False)
    for path in (tree.home / "annotations").iterdir():
        path.write_text("".join(line for line in path.read_text().splitlines(True) if "beagle" not in line))
    with pytest.raises(DataError, match=r"made for .*: has 3 labels from 0 to 3; they must be 0, 1, \.\.\."):
        make("OxfordPets", tree)
    assert not tree.split.exists()


BROKEN = {
    ("OxfordPets", "annotations/trainval.txt"): b"Abyssinian_1 1 1\n",
    ("OxfordPets", "annotations/test.txt"): b"Abyssinian_1 one 1 1\n",
    ("SUN397", "Testing_01.txt"): b"\n/z/zoo/sun_1.jpg\n",
    ("SUN397", "Training_01.txt"): b"\n/a/abb\xff\xfe.jpg\n",
    ("UCF101", "ucfTrainTestlist/classInd.txt"): b"ApplyEyeMakeup\n",
    ("UCF101", "ucfTrainTestlist/trainlist01.txt"): b"v_ApplyEyeMakeup.avi 1\n",
    ("UCF101", "ucfTrainTestlist/testlist01.txt"): b"Unknown/v_ApplyEyeMakeup.avi 1\n",
    ("FGVCAircraft", "images_variant_val.txt"): b"0000001 Concorde\n",
    ("OxfordFlowers", "imagelabels.mat"): b"this is no MATLAB file at all" * 20,
    ("OxfordFlowers", "cat_to_name.json"): b'{"1": ',
    ("StanfordCars", "devkit/cars_meta.mat"): b"",
    ("StanfordCars", "cars_test_annos_withlabels.mat"): b"MATLAB 5.0 MAT-file" + b" " * 200,
}


@pytest.mark.parametrize(("name", "path"), BROKEN)
def test_a_damaged_annotation_file_is_named(fine_grained_tree, name, path):
    tree = fine_grained_tree(name, split=False)
    (tree.home / path).write_bytes(BROKEN[name, path])
    with pytest.raises(DataError) as error:
        make(name, tree)
    assert str(error.value).startswith(str(tree.home / path))
    assert not tree.split.exists()


def test_a_line_is_quoted_with_an_example(fine_grained_tree):
    tree = fine_grained_tree("SUN397", split=False)
    (tree.home / "Testing_01.txt").write_text("\n/z/zoo/sun_1.jpg\n")
    with pytest.raises(DataError, match=r"line 2: '/z/zoo/sun_1\.jpg'; lines must be like: /a/abbey/.* of ClassName"):
        make("SUN397", tree)


def test_a_flower_without_a_name_and_a_car_without_a_class_are_named(fine_grained_tree):
    tree = fine_grained_tree("OxfordFlowers", split=False)
    (tree.home / "cat_to_name.json").write_text('{"1": "pink primrose"}')
    with pytest.raises(DataError, match=r"cat_to_name\.json: has no name for class 4 of .*imagelabels\.mat"):
        make("OxfordFlowers", tree)
    tree = fine_grained_tree("StanfordCars", split=False)
    savemat(tree.home / "devkit/cars_meta.mat", {"class_names": [["Acura RL 2012"]]})
    with pytest.raises(DataError, match=r"cars_train_annos\.mat is not its publisher's MATLAB file"):
        make("StanfordCars", tree)
