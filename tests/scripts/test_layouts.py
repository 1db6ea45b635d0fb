"""Every data set's layout through the scripts, with real trainers, tiny CLIPs and small generated images."""

import json

import numpy as np
import pytest
from PIL import Image

from dho_plugin.train import main

CONFIGS = {
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "oxford_flowers": "OxfordFlowers",
    "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft",
    "sun397": "SUN397",
    "dtd": "DescribableTextures",
    "eurosat": "EuroSAT",
    "ucf101": "UCF101",
}
SMALL = ("OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0")


@pytest.fixture
def settings(tmp_path, tiny_weights):
    """Return the environment of a small run whose data lies in this test's folder."""
    return {
        "DATA": str(tmp_path), "OUTPUT": str(tmp_path / "out"), "SEEDS": "1", "JOBS": "2",
        "STUDENT_CKPT": tiny_weights[0], "TEACHER_CKPT": tiny_weights[1],
    }  # fmt: skip


@pytest.fixture
def asked(pretend, tmp_path):
    """Return a function that gives the command line of the CoOp_DHO run that a script would start, to write into `run`.

    It is for this process: Python's start is most of such a run.
    """

    def words(*script, **settings):
        done, calls = pretend(*script, **settings)
        assert done.returncode == 0, done.stderr
        line = next(call for call in calls if call[2] == "CoOp_DHO")
        line = line[line.index("--root") :]
        line[line.index("--output-dir") + 1] = str(tmp_path / "run")
        return line

    return words


def check_run(folder, name, tested):
    """Check what a run on a fine-grained set has left, and return it."""
    result = json.loads((folder / "results.json").read_text())
    assert result["dataset"] == CONFIGS[name].lower()
    assert result["metrics"]["test"]["n"] == tested
    assert result["metrics"]["test"]["alpha"] == result["alpha"]  # chosen on the set's own validation images
    assert (folder / "logits/validation.safetensors").exists()
    return result


@pytest.mark.parametrize("name", CONFIGS)
def test_the_scripts_command_trains_on_each_fine_grained_set(asked, fine_grained_tree, settings, tmp_path, name):
    made = name == "dtd"  # its split; of the others there is the file
    tree = fine_grained_tree(CONFIGS[name], split=not made)
    assert main(asked("scripts/coop_dho.sh", name, "2", *SMALL, **settings)) == 0
    check_run(tmp_path / "run", name, 12 if made else len(tree.parts["test"]))


@pytest.fixture
def photos(tmp_path):
    """Write a user's folder of photos: three classes, a heap of unsorted ones, test photos and a night set."""
    rng, home = np.random.default_rng(0), tmp_path / "my photos"
    counts = {f"train/{c}": 4 for c in ("cat", "snow_owl", "größe")} | {f"test/{c}": 2 for c in ("cat", "größe")}
    for folder, count in (counts | {"unlabeled/2024": 5, "night/cat": 1, "night/snow_owl": 2}).items():
        (home / folder).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8))
            image.save(home / folder / f"{number}.jpg")
    return home


def as_csv(home):
    """Write the CSV that says of a folder of photos what its folders say."""
    lines = ["path,label,split"]
    for path in sorted(home.rglob("*.jpg")):
        split, name = path.relative_to(home).parts[:2]
        lines.append(f"{path.relative_to(home)},{'' if split == 'unlabeled' else name},{split}")
    (home / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return home / "labels.csv"


def read_photos(folder):
    """Check what a run has read of the photos, and return what it scored."""
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    assert {key: value["n"] for key, value in metrics.items()} == {"test": 4, "night": 3}
    assert "# train_x  6\n# train_u  11\n# test     4\n# night    3\n" in (folder / "log.txt").read_text()
    return metrics


def test_a_folder_of_photos_and_its_csv_give_the_same_numbers(run, asked, photos, settings, tmp_path):
    options = ("DATASET.TEST_SETS", "('night',)", *SMALL, "DATALOADER.TRAIN_X.BATCH_SIZE", "4")
    settings["DATA"] = "/nowhere"
    done = run("scripts/coop_dho.sh", str(photos), "2", *options, **settings)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("Method") :]
    assert table.split("\n")[0].split()[-3:] == ["Test", "night", "Seeds"]
    assert "CLIP zero-shot ViT-L/14@336px" in table
    metrics = read_photos(tmp_path / "out/my_photos/CoOp_DHO/vit_b16_ep50_ctxv1_2shots/seed1")
    assert f"{metrics['night']['accuracy']:.1f}" in table.splitlines()[-1]
    csv = as_csv(photos.rename(tmp_path / "photos"))  # `asked` divides words at spaces
    assert main(asked("scripts/coop_dho.sh", str(csv), "2", *options, **settings)) == 0
    assert read_photos(tmp_path / "run") == metrics
