import json
import os
import pickle
import shutil

import pytest
from PIL import Image

import dho_plugin.data.imagenet as readers
from dho_plugin.data.subsets import columns
from dho_plugin.engine.config import get_cfg_default
from dho_plugin.engine.data import DatasetBase
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.errors import DataError

SHIFTED = {
    "ImageNetV2": "imagenetv2/imagenetv2-matched-frequency-format-val",
    "ImageNetSketch": "imagenet-sketch/images",
    "ImageNetA": "imagenet-adversarial/imagenet-a",
    "ImageNetR": "imagenet-rendition/imagenet-r",
}


def read(name, root, *, prefix="", shots=-1, val_shots=0, seed=1, classes="all") -> DatasetBase:
    cfg = get_cfg_default()
    cfg.SEED, cfg.DATASET.ROOT, cfg.DATASET.PREFIX = seed, str(root), prefix
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.NUM_VAL_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = shots, val_shots, classes
    return DATASET_REGISTRY.get(name)(cfg)


def wnid(item):
    return os.path.basename(os.path.dirname(item.impath))


def test_all_five_sets_are_registered_under_the_hosts_names():
    assert {"ImageNet", *SHIFTED} <= set(DATASET_REGISTRY.registered_names())
    names = [getattr(readers, name).test_name for name in ("ImageNet", *SHIFTED)]
    assert names == ["val", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]


@pytest.mark.parametrize("prefix", ["", "mini"])
def test_imagenet_is_read_with_shots_and_pool(imagenet_tree, prefix):
    tree = imagenet_tree(prefix=prefix)
    data = read("ImageNet", tree.root, prefix=prefix, shots=2, val_shots=1)
    assert (data.class_keys, data.classnames) == (tree.wnids, tree.names)
    assert [len(part) for part in (data.train_x, data.train_u, data.val, data.test)] == [8, 8, 4, 8]
    trained = data.train_x + data.train_u + data.val
    assert sorted(item.index for item in trained) == list(range(20))
    for item in trained + data.test:
        assert data.class_keys[item.label] == wnid(item)
        assert data.classnames[item.label] == item.classname
        assert os.path.isabs(item.impath)
    listing = sorted(trained, key=lambda item: item.index)
    assert [item.impath for item in listing] == sorted(item.impath for item in trained)
    assert [item.index for item in data.test] == list(range(8))
    data.require_training()


def test_an_image_keeps_its_index_whatever_is_drawn(imagenet_tree):
    tree = imagenet_tree()
    whole = {item.impath: item.index for item in read("ImageNet", tree.root).train_x}
    assert len(whole) == 20
    for seed in (1, 2):
        data = read("ImageNet", tree.root, shots=1, seed=seed)
        assert all(whole[item.impath] == item.index for item in data.train_x + data.train_u)


def test_imagenet_without_training_folder_is_a_test_set(imagenet_tree):
    tree = imagenet_tree()
    before = read("ImageNet", tree.root).test
    shutil.rmtree(tree.root / "imagenet/images/train")
    data = read("ImageNet", tree.root, shots=16)
    assert (data.train_x, data.train_u, data.val, data.test) == ([], [], [], before)
    with pytest.raises(DataError) as error:
        data.require_training()
    assert str(tree.root / "imagenet/images/train") in str(error.value)


@pytest.mark.parametrize("name", SHIFTED)
def test_shifted_sets_only_test(imagenet_tree, name):
    tree = imagenet_tree()
    shutil.rmtree(tree.root / "imagenet/images")
    data = read(name, tree.root, shots=16)
    assert (data.train_x, data.train_u, data.val) == ([], [], [])
    keys = {"ImageNetA": tree.wnids_a, "ImageNetR": tree.wnids_r}.get(name, tree.wnids)
    assert data.class_keys == keys
    assert data.classnames == [tree.names[tree.wnids.index(key)] for key in keys]
    assert len(data.test) == 2 * len(keys)
    assert {item.label for item in data.test} == set(range(len(keys)))
    with pytest.raises(DataError, match="test set only"):
        data.require_training()


@pytest.mark.parametrize("name", ["ImageNetSketch", "ImageNetA", "ImageNetR"])
def test_labels_of_shifted_sets_follow_their_own_folders(imagenet_tree, name):
    data = read(name, imagenet_tree().root)
    assert all(data.class_keys[item.label] == wnid(item) for item in data.test)


def test_numbers_of_v2_are_places_in_the_sorted_wnids(imagenet_tree):
    tree = imagenet_tree(classes=12, train=1, test=1)
    data = read("ImageNetV2", tree.root)
    assert [(item.label, wnid(item)) for item in data.test] == [(n, str(n)) for n in range(12)]
    assert data.class_keys == sorted(tree.wnids)


def test_v2_with_a_wrong_number_of_folders_is_refused(imagenet_tree):
    tree = imagenet_tree()
    folder = tree.root / SHIFTED["ImageNetV2"]
    shutil.rmtree(folder / "2")
    with pytest.raises(DataError, match=r"has 3 class folders; the 4 classes .* missing: 2"):
        read("ImageNetV2", tree.root)
    (folder / "02").mkdir()
    with pytest.raises(DataError, match="02"):
        read("ImageNetV2", tree.root)


def test_a_shifted_set_may_bring_its_own_class_names(imagenet_tree):
    tree = imagenet_tree()
    lines = [f"{key} own {key}" for key in tree.wnids_a]
    (tree.root / "imagenet-adversarial/classnames.txt").write_text("\n".join(lines))
    assert read("ImageNetA", tree.root).classnames == [f"own {key}" for key in tree.wnids_a]


@pytest.mark.parametrize("name", ["ImageNet", *SHIFTED])
def test_a_missing_folder_is_named_with_what_must_lie_there(tmp_path, name):
    with pytest.raises(DataError) as error:
        read(name, tmp_path / "nowhere")
    folder = SHIFTED.get(name, "imagenet/images/val")
    assert str(error.value).startswith(f"{tmp_path / 'nowhere' / folder}: no such folder; a folder a class")
    assert "DATA=" in str(error.value)
    assert "DATASETS.md" in str(error.value)


def test_a_flat_val_folder_is_named(imagenet_tree):
    tree = imagenet_tree()
    val = tree.root / "imagenet/images/val"
    shutil.rmtree(val)
    val.mkdir()
    Image.new("RGB", (4, 4)).save(val / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="images/val: holds no class folders"):
        read("ImageNet", tree.root)


@pytest.mark.parametrize("name", ["ImageNet", "ImageNetA"])
def test_missing_class_names_are_asked_for(imagenet_tree, name):
    tree = imagenet_tree()
    (tree.root / "imagenet/classnames.txt").unlink()
    with pytest.raises(DataError, match=r"imagenet/classnames.txt: no such file; .* 'n01440764 tench'"):
        read(name, tree.root)


def test_a_folder_without_a_name_is_named(imagenet_tree):
    tree = imagenet_tree()
    path = tree.root / "imagenet/classnames.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if tree.wnids[1] not in line))
    with pytest.raises(DataError, match=f"no name for 1 of 4 class folders: {tree.wnids[1]}"):
        read("ImageNet", tree.root)


def test_a_line_without_a_name_is_quoted(imagenet_tree):
    tree = imagenet_tree()
    (tree.root / "imagenet/classnames.txt").write_text("n01000000 tench\nn01000037\n")
    with pytest.raises(DataError, match="line 2: 'n01000037' has no class name"):
        read("ImageNet", tree.root)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_folder_is_named(imagenet_tree, split):
    tree = imagenet_tree()
    folder = tree.root / "imagenet/images" / split / tree.wnids[2]
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=f"{tree.wnids[2]}: class folder without an image"):
        read("ImageNet", tree.root)


def test_train_and_val_with_different_classes_are_refused(imagenet_tree):
    tree = imagenet_tree()
    shutil.rmtree(tree.root / "imagenet/images/train" / tree.wnids[3])
    with pytest.raises(DataError, match=f"3 class folders .* 4; .* only: {tree.wnids[3]}"):
        read("ImageNet", tree.root)


def test_more_shots_than_a_class_has_are_refused(imagenet_tree):
    with pytest.raises(DataError, match=r"has 5 training images, fewer than DATASET\.NUM_SHOTS 16"):
        read("ImageNet", imagenet_tree().root, shots=16)


def test_links_and_foreign_letters_are_followed_and_strange_files_are_not_images(imagenet_tree):
    tree = imagenet_tree()
    folder = tree.root / "imagenet/images/val" / tree.wnids[0]
    moved = tree.root / "elsewhere"
    folder.rename(moved)
    folder.symlink_to(moved, target_is_directory=True)
    for name in ("Größe 例.jpeg", "UPPER.JPG", ".hidden.png", "notes.txt", "archive.tar"):
        Image.new("RGB", (4, 4)).save(moved / name, format="PNG")
    names = [os.path.basename(item.impath) for item in read("ImageNet", tree.root).test if item.label == 0]
    assert names == sorted(["Größe 例.jpeg", "UPPER.JPG", f"{tree.wnids[0]}_0.JPEG", f"{tree.wnids[0]}_1.JPEG"])


def test_a_home_folder_may_be_written_with_a_tilde(imagenet_tree, monkeypatch):
    tree = imagenet_tree(prefix="mini")
    monkeypatch.setenv("HOME", str(tree.root))
    assert len(read("ImageNet", "~/mini").test) == 8


# Two pairs of classes with one name, as in ImageNet; A has one of each pair, R the other ones.
NAMES = {
    "n01440764": "tench",
    "n03773504": "missile",
    "n04008634": "missile",
    "n04355933": "sunglasses",
    "n04356056": "sunglasses",
    "n15075141": "toilet paper",
}
WNIDS_A, WNIDS_R = ["n03773504", "n04356056", "n15075141"], ["n01440764", "n04008634", "n04355933"]


@pytest.fixture
def named_tree(tmp_path):
    """Write a tree of ImageNet, V2, A and R with these classes; return its root."""
    sets = {"imagenet/images/train": NAMES, "imagenet/images/val": NAMES, SHIFTED["ImageNetV2"]: "012345"}
    for folder, keys in {**sets, SHIFTED["ImageNetA"]: WNIDS_A, SHIFTED["ImageNetR"]: WNIDS_R}.items():
        for key in keys:
            (tmp_path / folder / key).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / folder / key / f"{key}_0.JPEG")
    (tmp_path / "imagenet/classnames.txt").write_text("".join(f"{key} {name}\n" for key, name in NAMES.items()))
    return tmp_path


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 1, 5, 0, 2, 4]])
@pytest.mark.parametrize("name", ["ImageNetA", "ImageNetR", "ImageNetV2"])
def test_classes_with_one_name_are_told_apart_whatever_the_order(named_tree, name, order):
    trained = [read("ImageNet", named_tree).class_keys[place] for place in order]
    data = read(name, named_tree)
    index = columns(trained, data.class_keys).tolist()
    folders = sorted(NAMES)
    for item in data.test:
        folder = wnid(item)
        expected = folders[int(folder)] if folder.isdigit() else folder
        assert trained[index[item.label]] == expected
        assert item.classname == NAMES[expected]
    assert len(set(index)) == len(data.test) == len(data.classes)


@pytest.mark.parametrize(("which", "wnids"), [("base", sorted(NAMES)[:3]), ("new", sorted(NAMES)[3:])])
def test_shifted_sets_keep_their_classes_of_the_half(named_tree, which, wnids):
    trained = read("ImageNet", named_tree, classes=which)
    assert trained.class_keys == wnids
    assert [wnid(item) for item in trained.test] == wnids
    for name, own in {"ImageNetV2": sorted(NAMES), "ImageNetA": WNIDS_A, "ImageNetR": WNIDS_R}.items():
        data = read(name, named_tree, classes=which)
        expected = [key for key in own if key in wnids]
        assert data.class_keys == expected
        folders = [str(sorted(NAMES).index(key)) if name == "ImageNetV2" else key for key in expected]
        assert [(item.label, wnid(item)) for item in data.test] == list(enumerate(folders))
        assert [trained.class_keys[c] for c in columns(trained.class_keys, data.class_keys)] == expected


def test_a_shifted_set_without_a_class_of_the_half_is_refused(named_tree):
    for key in WNIDS_R[:2]:
        shutil.rmtree(named_tree / SHIFTED["ImageNetR"] / key)
    with pytest.raises(DataError, match=r"imagenet-r: none of its 1 classes is in the half .* base of the 6 classes"):
        read("ImageNetR", named_tree, classes="base")
    assert read("ImageNetR", named_tree, classes="new").class_keys == ["n04355933"]


def test_own_class_names_do_not_change_the_half(named_tree):
    lines = [f"{key} own {key}" for key in WNIDS_A]
    (named_tree / "imagenet-adversarial/classnames.txt").write_text("\n".join(lines))
    assert read("ImageNetA", named_tree, classes="new").classnames == ["own n04356056", "own n15075141"]


def test_shots_are_stored_by_class_folder_and_file(imagenet_tree):
    tree = imagenet_tree()
    drawn = read("ImageNet", tree.root, shots=2).train_x
    stored = json.loads((tree.root / "imagenet/split_fewshot/shot_2-seed_1.json").read_text())
    assert [path for paths in stored["train"].values() for path in paths] == [
        f"{wnid(item)}/{os.path.basename(item.impath)}" for item in drawn
    ]
    assert list(stored["train"]) == tree.wnids
    assert read("ImageNet", tree.root, shots=2).train_x == drawn


def test_coops_pickle_of_another_machine_is_followed(imagenet_tree, host_datum):
    tree = imagenet_tree()
    names = [f"{key}/{key}_{number}.JPEG" for key in reversed(tree.wnids) for number in (4, 1)]
    there = "/home/else/data/imagenet/images/train/"
    content = {"train": [host_datum(there + name, tree.wnids.index(name.split("/")[0])) for name in names]}
    path = tree.root / "imagenet/split_fewshot/shot_2-seed_1.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(content))
    data = read("ImageNet", tree.root, shots=2)
    assert [item.impath for item in data.train_x] == [str(tree.root / "imagenet/images/train" / name) for name in names]
    assert len(data.train_u) == 12
    base = read("ImageNet", tree.root, shots=2, classes="base")  # its labels are those of all classes
    assert [wnid(item) for item in base.train_x] == [tree.wnids[1]] * 2 + [tree.wnids[0]] * 2
