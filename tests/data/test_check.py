import json
import os
import shutil

import pytest

import dho_plugin.data.__main__ as command
from dho_plugin.data.check import FOUND, look_for
from dho_plugin.data.fine_grained import FineGrained
from dho_plugin.data.sources import BY_NAME, SOURCES, as_printed, registered_names
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.errors import ConfigError


@pytest.fixture
def check(capsys):
    """Return a function that runs the command and returns its exit code and what it printed."""

    def run(*line) -> tuple[int, str, str]:
        code = command.main(["check", *map(str, line)])
        return code, *capsys.readouterr()

    return run


def rows(printed: str) -> dict[str, list[str]]:
    """Return the cells of the table, by set."""
    lines = (line.split("  ") for line in printed.splitlines())
    cells = ([cell.strip() for cell in line if cell.strip()] for line in lines)
    return {line[0]: line[1:] for line in cells if len(line) == 6}


def below(root) -> dict[str, int]:
    return {str(path.relative_to(root)): path.lstat().st_mtime_ns for path in root.rglob("*")}


def test_the_counts_add_up_to_the_published_data_sets():
    fine_grained = {
        source.name: sum(int(count.replace(",", "")) for count in source.published[1:])
        for source in SOURCES
        if not source.name.startswith("ImageNet")
    }
    assert fine_grained == {
        "Caltech101": 9_144 - 467 - 435,  # without the background and the second copy of the faces
        "OxfordPets": 7_349,
        "StanfordCars": 16_185,
        "OxfordFlowers": 8_189,
        "Food101": 101_000,
        "FGVCAircraft": 10_000,
        "SUN397": 397 * 100,
        "DescribableTextures": 47 * 120,
        "EuroSAT": 27_000,
        "UCF101": 13_320,
    }


def test_the_sources_are_the_registered_sets_in_their_folders():
    assert len(SOURCES) == 15
    for source in SOURCES:
        reader = DATASET_REGISTRY.get(source.name)
        if issubclass(reader, FineGrained):
            assert source.folder == reader.layout.home
    assert sum(issubclass(DATASET_REGISTRY.get(source.name), FineGrained) for source in SOURCES) == 10


@pytest.mark.parametrize(
    ("count", "published", "printed"),
    [
        (1_281_167, "1.28M", "1.28M"),
        (1_274_999, "1.28M", "1.27M"),
        (50_000, "50,000", "50,000"),
        (0, "-", "-"),
        (7, "-", "7"),
    ],
)
def test_counts_are_compared_as_the_table_prints_them(count, published, printed):
    assert as_printed(count, published) == printed


def test_sets_go_by_their_names_and_those_of_config_files_and_the_paper():
    names = ["imagenet_a", "OxfordPets", "oxford_pets", "dtd", "flowers102", "imagenetv2", "folder", "fgvc_aircraft"]
    assert registered_names(names) == [
        *("ImageNetA", "OxfordPets", "DescribableTextures", "OxfordFlowers", "ImageNetV2", "ImageFolder"),
        "FGVCAircraft",
    ]
    assert registered_names(None) == [source.name for source in SOURCES]


def test_an_unknown_set_is_answered_with_close_ones(check, tmp_path):
    with pytest.raises(ConfigError, match=r"'oxford_pet'\. Did you mean oxfordpets"):
        registered_names(["imagenet", "oxford_pet"])
    assert check("--root", tmp_path, "--sets", "mnist")[0] == 2


def test_what_is_there_stands_beside_table_10_and_what_is_missing_says_where_to_get_it(
    check, imagenet_tree, fine_grained_tree
):
    root = imagenet_tree().root
    fine_grained_tree("OxfordPets")
    shutil.rmtree(root / "imagenet-rendition")
    before = below(root)
    code, printed, errors = check("--root", root)
    table = rows(printed)
    assert (code, errors) == (0, "")
    assert [*table][2:] == [source.name for source in SOURCES]
    assert table["ImageNet"] == ["found", "4 != 1,000", "20 != 1.28M", "-", "8 != 50,000"]
    assert table["ImageNetA"] == ["found", "2 != 200", "-", "-", "4 != 7,500"]
    assert table["OxfordPets"] == ["found", "4 != 37", "20 != 2,944", "8 != 736", "12 != 3,669"]
    assert table["ImageNetR"] == ["missing", "(200)", "-", "-", "(30,000)"]
    assert table["SUN397"] == ["missing", "(397)", "(15,880)", "(3,970)", "(19,850)"]
    assert f"ImageNetR: missing. {root}/imagenet-rendition/imagenet-r: no such folder" in printed
    assert "get it: https://github.com/hendrycks/imagenet-r\n" in printed
    assert "DATASETS.md#sun397\n" in printed
    assert "natural-adv-examples" not in printed
    assert below(root) == before


def test_equal_counts_are_marked_as_equal(check, fine_grained_tree, monkeypatch):
    root = fine_grained_tree("DescribableTextures").root
    source = BY_NAME["DescribableTextures"]
    changed = type(source)(source.name, source.folder, ("4", "20", "9", "12"), source.home, source.section)
    monkeypatch.setitem(BY_NAME, source.name, changed)
    assert rows(check("--root", root, "--sets", "dtd")[1])[source.name] == [
        *("found", "4 = 4", "20 = 20", "8 != 9", "12 = 12"),
    ]
    assert look_for("DescribableTextures", root).differing == ["val"]


def test_a_missing_split_is_made_and_not_stored(check, fine_grained_tree):
    tree = fine_grained_tree("UCF101", split=False)
    before = below(tree.root)
    code, printed, _ = check("--root", tree.root, "--sets", "ucf101")
    assert code == 0
    assert rows(printed)["UCF101"][0] == "found"
    assert f"UCF101: {tree.split}: there is none; a run makes it" in printed
    assert below(tree.root) == before


def test_a_set_without_files_of_its_split_is_incomplete(check, fine_grained_tree):
    tree = fine_grained_tree("EuroSAT")
    gone = [tree.images / path for path, _ in tree.parts["test"][-2:]]
    for path in gone:
        path.unlink()
    code, printed, errors = check("--root", tree.root)
    assert code == 1
    assert rows(printed)["EuroSAT"][0] == "incomplete"
    assert "EuroSAT: incomplete. 2 of 40 images are not there, for example" in printed
    assert any(str(path) in printed for path in gone)
    assert "github.com/phelber/EuroSAT" in printed
    assert errors.startswith("UnsoundDataError: ")
    assert "EuroSAT (incomplete)" in errors


def test_a_set_that_its_reader_refuses_is_an_error(check, fine_grained_tree):
    tree = fine_grained_tree("Food101")
    tree.split.write_text("{")
    code, printed, errors = check("--root", tree.root)
    assert code == 1
    assert rows(printed)["Food101"][:2] == ["error", "(101)"]
    assert f"Food101: error. {tree.split} cannot be read as JSON" in printed
    assert "Food101 (error)" in errors


def test_a_missing_set_counts_where_it_was_asked_for(check, tmp_path):
    assert check("--root", tmp_path)[0] == 0
    code, _, errors = check("--root", tmp_path, "--sets", "sun397")
    assert code == 1
    assert "SUN397 (missing)" in errors


def test_a_folder_of_another_name_and_a_dead_link_are_recognized(fine_grained_tree, tmp_path):
    tree = fine_grained_tree("StanfordCars")
    tree.home.rename(tmp_path / "StanfordCars")
    assert f"Is it {tmp_path}/StanfordCars?" in look_for("StanfordCars", tmp_path).message
    (tmp_path / "dtd").symlink_to(tmp_path / "elsewhere")
    assert f"is a link to {tmp_path}/elsewhere" in look_for("DescribableTextures", tmp_path).message
    assert "Is it" not in look_for("ImageNet", tmp_path).message


def test_sets_lie_below_a_prefix(check, imagenet_tree):
    root = imagenet_tree(prefix="mini").root
    code, printed, _ = check("--root", root, "--prefix", "mini", "--sets", "imagenet")
    assert (code, rows(printed)["ImageNet"][0]) == (0, "found")
    assert check("--root", root, "--sets", "imagenet")[0] == 1


def own_photos(root, imagenet_tree):
    photos = root / "photos"
    shutil.copytree(imagenet_tree().root / "imagenet" / "images", photos)
    (photos / "val").rename(photos / "test")
    shutil.copytree(photos / "test", photos / "winter")
    (photos / "unlabeled").mkdir()
    for number, path in enumerate(sorted(photos.glob("train/*/*.JPEG"))[:6]):
        shutil.copyfile(path, photos / "unlabeled" / f"{number}.JPEG")
    return photos


def test_own_folders_are_checked_too(check, imagenet_tree, tmp_path):
    photos = own_photos(tmp_path, imagenet_tree)
    code, printed, _ = check("--root", photos, "--sets", "folder", "--test-sets", "winter", "--verify", "--workers", 0)
    assert code == 0
    assert rows(printed)["ImageFolder"] == ["found", "4", "20", "-", "8"]
    assert "ImageFolder: test set winter: 8 images" in printed
    assert "ImageFolder: unlabeled: 6 images" in printed
    assert "Table 10" not in printed
    assert "ImageFolder: 42 images read; 0 cannot be decoded" in printed


def test_an_own_list_is_checked_too(check, imagenet_tree, tmp_path):
    photos = own_photos(tmp_path, imagenet_tree)
    paths = sorted(photos.glob("t*/*/*.JPEG"))
    lines = [f"{path.relative_to(photos)},{path.parent.name},{path.parts[-3]}" for path in paths]
    (photos / "labels.csv").write_text("\n".join(["path,label,split", *lines]))
    code, printed, _ = check("--root", photos, "--sets", "folder", "--csv", "labels.csv")
    assert (code, rows(printed)["ImageFolder"]) == (0, ["found", "4", "20", "-", "8"])
    assert check("--root", photos, "--csv", "labels.csv")[0] == 2
    code, _, errors = check("--root", photos / "labels.csv")
    assert f"a list of your own images is --root {photos} --sets folder --csv labels.csv" in errors


def test_own_photos_among_which_the_published_sets_are_looked_for_are_pointed_at(check, imagenet_tree, tmp_path):
    photos = own_photos(tmp_path, imagenet_tree)
    hint = f"{photos} holds train/, unlabeled/, test/: your own images? Add --sets folder"
    code, printed, _ = check("--root", tmp_path, "--prefix", "photos")
    assert (code, printed.splitlines()[-1]) == (0, hint)
    for line in (("--root", photos, "--sets", "folder"), ("--root", tmp_path), ("--root", photos, "--sets", "dtd")):
        assert "your own images?" not in check(*line)[1]


def spoil(tree) -> dict[str, str]:
    """Cut a test image short, and copy a training image among the test images; return their paths."""
    paths = {part: [str(tree.images / path) for path, _ in items] for part, items in tree.parts.items()}
    os.truncate(paths["test"][0], 200)
    shutil.copyfile(paths["train"][0], paths["test"][-1])
    return {"cut": paths["test"][0], "original": paths["train"][0], "leak": paths["test"][-1]}


def test_verifying_finds_the_same_with_any_number_of_processes(check, fine_grained_tree, tmp_path):
    tree, told, stored = fine_grained_tree("OxfordPets"), [], []
    bad = spoil(tree)
    for workers in (0, 2):
        file = tmp_path / f"found{workers}.json"
        line = ("--root", tree.root, "--sets", "oxford_pets", "--verify", "--workers", workers, "--json", file)
        code, printed, errors = check(*line)
        assert (code, "OxfordPets (1 unreadable)" in errors) == (1, True)
        told.append(printed)
        stored.append(json.loads(file.read_text()))
    assert told[0] == told[1]
    assert stored[0] == stored[1]
    found = stored[0]["sets"]["OxfordPets"]
    assert (found["state"], found["folder"], found["message"]) == (FOUND, str(tree.home), "")
    assert found["counts"] == {"classes": 4, "train": 20, "unlabeled": 0, "val": 8, "test": 12}
    assert found["table10"] == {"classes": "37", "train": "2,944", "val": "736", "test": "3,669"}
    assert found["differing"] == ["classes", "train", "val", "test"]
    assert [(image["part"], image["path"]) for image in found["verify"]["unreadable"]] == [("test", bad["cut"])]
    assert found["verify"]["equal_files"] == {"in train and in test": [[bad["original"], bad["leak"]]]}
    assert f"in train and in test: 1, for example {bad['original']} and {bad['leak']}" in told[0]


def test_equal_files_alone_are_no_error(check, fine_grained_tree):
    tree = fine_grained_tree("OxfordPets")
    paths = [tree.images / path for path, _ in tree.parts["train"][:2]]
    shutil.copyfile(*paths)
    code, printed, _ = check("--root", tree.root, "--sets", "oxford_pets", "--verify", "--workers", "0")
    assert code == 0
    assert "equal files in several classes of train: 1, for example" in printed


def test_without_verify_no_image_is_read(check, fine_grained_tree, tmp_path):
    tree = fine_grained_tree("OxfordPets")
    spoil(tree)
    code, printed, _ = check("--root", tree.root, "--sets", "oxford_pets", "--json", tmp_path / "found.json")
    assert code == 0
    assert "images read" not in printed
    assert "verify" not in json.loads((tmp_path / "found.json").read_text())["sets"]["OxfordPets"]


def test_after_an_interruption_the_report_is_of_what_was_read(check, imagenet_tree, tmp_path, monkeypatch):
    root, run = imagenet_tree().root, command.Verification.run

    def interrupted(self, workers, progress):
        if len(self.parts["test"]) == 4:  # ImageNet-A, the fourth of the sets
            raise KeyboardInterrupt
        run(self, workers, progress)

    monkeypatch.setattr(command.Verification, "run", interrupted)
    file = tmp_path / "found.json"
    code, printed, _ = check("--root", root, "--verify", "--workers", "0", "--json", file)
    assert code == 130
    assert "ImageNetSketch: 8 images read; 0 cannot be decoded" in printed
    assert "ImageNetA: 0 images read of 4, then interrupted" in printed
    assert json.loads(file.read_text())["sets"]["ImageNet"]["verify"]["read"] == 28


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--root", "{root}/nowhere"), "nowhere is no folder"),
        (("--root", "{root}/file"), "file is no folder"),
        (("--root", "{root}", "--prefix", "mini"), "mini is no folder"),
        (("--root", "{root}", "--workers", "-1"), "--workers is -1"),
        (("--root", "{root}", "--test-sets", "winter"), "--sets folder"),
    ],
)
def test_a_wrong_command_is_one_message(check, tmp_path, line, message):
    (tmp_path / "file").touch()
    code, printed, errors = check(*(word.format(root=tmp_path) for word in line))
    assert (code, printed) == (2, "")
    assert errors.startswith("ConfigError: ")
    assert message in errors


def test_without_a_command_there_is_help(capsys):
    assert command.main([]) == 2
    assert "check" in capsys.readouterr().out
