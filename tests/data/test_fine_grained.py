import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

import dho_plugin.data.fine_grained as readers
from dho_plugin.data import zhou
from dho_plugin.engine.config import get_cfg_default, merge_file, merge_pairs
from dho_plugin.engine.data import DatasetBase
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.errors import DataError

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "datasets"
# CoOp's names: of the class, of its config file, of the data set's folder.
NAMES = {
    "Caltech101": ("caltech101", "caltech-101"),
    "OxfordPets": ("oxford_pets", "oxford_pets"),
    "StanfordCars": ("stanford_cars", "stanford_cars"),
    "OxfordFlowers": ("oxford_flowers", "oxford_flowers"),
    "Food101": ("food101", "food-101"),
    "FGVCAircraft": ("fgvc_aircraft", "fgvc_aircraft"),
    "SUN397": ("sun397", "sun397"),
    "DescribableTextures": ("dtd", "dtd"),
    "EuroSAT": ("eurosat", "eurosat"),
    "UCF101": ("ucf101", "ucf101"),
}


def read(name, root, *, prefix="", shots=-1, seed=1) -> DatasetBase:
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.PREFIX, cfg.DATASET.NUM_SHOTS, cfg.SEED = str(root), prefix, shots, seed
    return getattr(readers, name)(cfg)


@pytest.fixture
def pets(fine_grained_tree):
    """Return OxfordPets' tree, and a function that changes its split file by a function of the JSON content."""
    tree = fine_grained_tree("OxfordPets", raw=False)

    def change(edit):
        content = json.loads(tree.split.read_text())
        edited = edit(content)
        tree.split.write_text(json.dumps(content if edited is None else edited))
        return tree

    return change


def refused(tree, match: str) -> None:
    with pytest.raises(DataError, match=match) as error:
        read("OxfordPets", tree.root)
    assert str(tree.split) in str(error.value)


def test_all_ten_are_registered_under_coops_names():
    assert set(NAMES) <= set(DATASET_REGISTRY.registered_names())
    assert {name: getattr(readers, name).layout.home for name in NAMES} == {name: n[1] for name, n in NAMES.items()}
    assert {getattr(readers, name).test_name for name in NAMES} == {"test"}


@pytest.mark.parametrize("name", NAMES)
def test_the_config_names_the_set_and_searches_alpha_and_beta_on_its_validation_images(name):
    cfg = get_cfg_default()
    merge_file(cfg, CONFIGS / f"{NAMES[name][0]}.yaml")
    assert name == cfg.DATASET.NAME
    assert cfg.TRAINER.DHO.SEARCH is True
    assert cfg.DATASET.NUM_VAL_SHOTS == -1


@pytest.mark.parametrize("prefix", ["", "below"])
@pytest.mark.parametrize("name", NAMES)
def test_a_split_is_read_as_it_stands(fine_grained_tree, name, prefix):
    tree = fine_grained_tree(name, prefix=prefix, raw=name == "FGVCAircraft")
    data = read(name, tree.root, prefix=prefix)
    assert tree.home == tree.root / prefix / NAMES[name][1]
    assert data.class_keys == tree.names
    assert data.classnames == [key.replace("_", " ") for key in tree.names]
    for part, items in (("train", data.train_x), ("val", data.val), ("test", data.test)):
        assert [(item.impath, item.label) for item in items] == [(str(tree.images / p), y) for p, y in tree.parts[part]]
        assert [item.index for item in items] == list(range(len(items)))
        assert [item.classname for item in items] == [data.classnames[item.label] for item in items]
        assert all(os.path.isfile(item.impath) for item in items)
    assert len(data.train_u) == 0
    data.require_training()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_drawn_is_the_pool_and_validation_is_coops(fine_grained_tree, name):
    tree = fine_grained_tree(name, train=8, val=6)
    data = read(name, tree.root, shots=2)
    trained = {item.impath: item for item in data.train_x + data.train_u}
    assert sorted(trained) == sorted(str(tree.images / path) for path, _ in tree.parts["train"])
    assert len(data.train_x) == 8
    assert {item.impath for item in data.val} < {str(tree.images / path) for path, _ in tree.parts["val"]}
    places = {str(tree.images / path): place for place, (path, _) in enumerate(tree.parts["train"])}
    assert {path: item.index for path, item in trained.items()} == places


def test_all_validation_images_may_be_taken(fine_grained_tree):
    tree = fine_grained_tree("OxfordPets", train=8, val=6)
    cfg = get_cfg_default()
    merge_pairs(
        cfg, ["DATASET.NUM_SHOTS", "2", "DATASET.NUM_VAL_SHOTS", "-1", "SEED", "1", "DATASET.ROOT", str(tree.root)]
    )
    data = readers.OxfordPets(cfg)
    assert [item.impath for item in data.val] == [str(tree.images / path) for path, _ in tree.parts["val"]]
    assert len(data.train_x) == 8


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_set_is_asked_for(tmp_path, name):
    with pytest.raises(DataError) as error:
        read(name, tmp_path)
    folder = tmp_path / NAMES[name][1] / getattr(readers, name).layout.images
    assert str(error.value).startswith(f"{folder}: no such folder; the images of {name}")
    assert "DATASETS.md" in str(error.value)


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("OxfordPets", ["annotations/trainval.txt", "annotations/test.txt"]),
        (
            "StanfordCars",
            ["devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat", "devkit/cars_meta.mat"],
        ),
        ("OxfordFlowers", ["imagelabels.mat", "cat_to_name.json"]),
        ("SUN397", ["ClassName.txt", "Training_01.txt", "Testing_01.txt"]),
        ("UCF101", [f"ucfTrainTestlist/{name}.txt" for name in ("classInd", "trainlist01", "testlist01")]),
        (
            "FGVCAircraft",
            ["variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt"],
        ),
    ],
)
def test_a_missing_split_names_what_it_is_made_of(fine_grained_tree, name, needed):
    tree = fine_grained_tree(name, split=False, raw=False)
    with pytest.raises(DataError) as error:
        read(name, tree.root)
    message = str(error.value)
    assert f"{', '.join(str(tree.home / path) for path in needed)}. Set DATA=" in message
    assert "DATASETS.md" in message
    if name == "FGVCAircraft":
        assert message.startswith("no such file: ")
    else:
        assert message.startswith(f"{tree.split}: no such file, and it cannot be made without ")


def test_only_the_missing_source_is_named(fine_grained_tree):
    tree = fine_grained_tree("OxfordFlowers", split=False)
    (tree.home / "cat_to_name.json").unlink()
    with pytest.raises(DataError) as error:
        read("OxfordFlowers", tree.root)
    assert "imagelabels.mat" not in str(error.value)


def test_broken_json_is_named(pets):
    tree = pets(lambda content: None)
    tree.split.write_text(tree.split.read_text()[:-20])
    refused(tree, r"cannot be read as JSON: .* DATASETS.md")
    tree.split.write_bytes(b'{"train": "\xff\xfe"}')
    refused(tree, "cannot be read as JSON")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([], "list"),
        ({"train": [], "val": []}, r"keys \['train', 'val'\]"),
        ({"train": {}, "val": [], "test": []}, "keys"),
    ],
)
def test_another_structure_is_refused(pets, content, found):
    refused(pets(lambda _: content), rf"is not a split \({found}.*it must be \{{\"train\": \[\[path, label")


@pytest.mark.parametrize(
    "entry",
    [
        ["pug_1.jpg", 3],
        ["pug_1.jpg", "3", "pug"],
        ["pug_1.jpg", True, "pug"],
        ["pug_1.jpg", 3.0, "pug"],
        [3, 3, "pug"],
        "pug_1.jpg",
        None,
    ],
)
def test_a_malformed_entry_is_quoted_with_its_place(pets, entry):
    tree = pets(lambda content: content["val"].insert(2, entry))
    refused(tree, r"val\[2\] is .*; it must be \[path, label, class name\]")


@pytest.mark.parametrize("path", ["/etc/pug_1.jpg", "../pug_1.jpg", "a/../../pug_1.jpg", "", "pug\0.jpg"])
def test_a_path_out_of_the_image_folder_is_refused(pets, path):
    tree = pets(lambda content: content["test"].insert(0, [path, 3, "pug"]))
    refused(tree, r"test\[0\] has the path .* stay in it")


def test_dots_within_a_name_are_no_way_out(pets):
    tree = pets(lambda content: content["test"].insert(0, ["..pug..1.jpg", 3, "pug"]))
    Image.new("RGB", (4, 4)).save(tree.images / "..pug..1.jpg")
    assert os.path.basename(read("OxfordPets", tree.root).test[0].impath) == "..pug..1.jpg"


@pytest.mark.parametrize("label", [-1, 5, 10**12])
def test_labels_with_a_gap_are_refused(pets, label):
    def edit(content):
        for part in content.values():
            part += [[f"cat_{label}.jpg", label, "cat"]]

    refused(pets(edit), rf"has 5 labels from {min(label, 0)} to {max(label, 3)}; they must be 0, 1, \.\.\.")


def test_a_label_with_two_names_is_refused(pets):
    tree = pets(lambda content: content["test"].append(["cat_1.jpg", 2, "cat"]))
    refused(tree, r"label 2 is named 'beagle' and, of cat_1\.jpg, 'cat'; a label has one name")


def test_a_class_without_a_training_image_is_refused(pets):
    def edit(content):
        content["train"] = [entry for entry in content["train"] if entry[1] != 1]

    refused(pets(edit), r"1 of 4 classes have no training image, for example 'american_bulldog' \(label 1\)")


def test_an_empty_split_is_refused(pets):
    refused(pets(lambda _: {"train": [], "val": [], "test": []}), "lists no image")


def test_a_split_without_validation_images_takes_none(pets):
    data = read("OxfordPets", pets(lambda content: content | {"val": []}).root)
    assert (len(data.train_x), len(data.val), len(data.test)) == (20, 0, 12)


def test_a_file_listed_again_counts_once_and_never_in_training(pets, capsys):
    def edit(content):
        content["train"] += [content["test"][3], content["val"][1], ["./" + content["train"][0][0], 3, "pug"]]
        content["val"].insert(0, content["test"][0])

    tree = pets(edit)
    data = read("OxfordPets", tree.root)
    assert f"{tree.split}: entries that list a file again: 4, for example " in capsys.readouterr().out
    for part, items in (("train", data.train_x), ("val", data.val), ("test", data.test)):
        assert [item.impath for item in items] == [str(tree.images / path) for path, _ in tree.parts[part]]
        assert [item.index for item in items] == list(range(len(items)))


def test_nothing_is_said_of_a_clean_split(pets, capsys):
    read("OxfordPets", pets(lambda content: None).root)
    assert "again" not in capsys.readouterr().out


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_the_first_image_of_each_class_must_be_there_in_each_part(pets, part):
    tree = pets(lambda content: None)
    first = next(path for path, label in tree.parts[part] if label == 1)
    (tree.images / first).unlink()
    refused(tree, rf"^{tree.images / first}: no such file, .* \(1 of the 12 images that were looked for")


def test_not_every_image_is_looked_for_at_every_start(pets):
    tree = pets(lambda content: None)
    (tree.images / tree.parts["train"][-1][0]).unlink()
    assert len(read("OxfordPets", tree.root).train_x) == 20


def test_a_missing_folder_of_cars_is_found(fine_grained_tree):
    tree = fine_grained_tree("StanfordCars")
    shutil.rmtree(tree.home / "cars_test")
    with pytest.raises(DataError, match=r"cars_test/00029\.jpg: no such file, .* \(4 of the 12 images"):
        read("StanfordCars", tree.root)


def test_the_lists_of_aircraft_are_checked_like_a_split(fine_grained_tree, capsys):
    tree = fine_grained_tree("FGVCAircraft")
    lists = tree.home / "images_variant_train.txt"
    first = (tree.home / "images_variant_test.txt").read_text().splitlines(True)[0]
    lists.write_text(lists.read_text() + first)
    assert len(read("FGVCAircraft", tree.root).train_x) == 20
    assert "entries that list a file again: 1, for example " in capsys.readouterr().out
    lists.write_text("".join(line for line in lists.read_text().splitlines(True) if "Yak" not in line))
    with pytest.raises(DataError, match=r"1 of 4 classes have no training image, for example 'Yak-42'"):
        read("FGVCAircraft", tree.root)


def test_foreign_letters_are_read_in_names_and_paths(pets):
    def edit(content):
        for part in content.values():
            for entry in part:
                if entry[1] == 0:
                    entry[:] = [entry[0].replace("Abyssinian", "Löwchen 犬"), 0, "löwchen_犬"]

    tree = pets(edit)
    for path in tree.images.glob("Abyssinian_*"):
        path.rename(tree.images / path.name.replace("Abyssinian", "Löwchen 犬"))
    data = read("OxfordPets", tree.root)
    assert (data.class_keys[0], data.classnames[0]) == ("löwchen_犬", "löwchen 犬")
    assert {os.path.basename(item.impath)[:9] for item in data.test if item.label == 0} == {"Löwchen 犬"}
    assert all(os.path.isfile(item.impath) for item in data.train_x)


def test_two_classes_of_one_name_keep_unique_keys(pets):
    def edit(content):
        for part in content.values():
            for entry in part:
                entry[2] = "pug" if entry[1] == 2 else entry[2]

    data = read("OxfordPets", pets(edit).root)
    assert data.classnames[2:] == ["pug", "pug"]
    assert data.class_keys[2:] == ["pug (label 2)", "pug (label 3)"]
    assert data.class_keys[:2] == ["abyssinian", "american_bulldog"]


def test_links_are_followed(fine_grained_tree):
    tree = fine_grained_tree("DescribableTextures")
    moved = tree.root / "elsewhere"
    tree.home.rename(moved)
    tree.home.symlink_to(moved, target_is_directory=True)
    assert len(read("DescribableTextures", tree.root).train_x) == 20


def test_a_split_that_was_written_is_read_back(tmp_path):
    split = zhou.Split([zhou.Entry("ä/1.jpg", 0, "ä b_c")], [], [zhou.Entry("ä/2.jpg", 0, "ä b_c")])
    zhou.write_split(tmp_path / "split.json", split)
    assert zhou.read_split(tmp_path / "split.json") == split
    assert (tmp_path / "split.json").read_bytes().isascii()  # CoOp reads it in the locale's encoding
