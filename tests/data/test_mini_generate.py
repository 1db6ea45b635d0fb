import errno
import json
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dho_plugin.data.mini import generate as generator
from dho_plugin.data.mini.generate import generate
from dho_plugin.data.mini.render import render
from dho_plugin.data.mini.sets import SET_BY_NAME, SETS
from dho_plugin.data.mini.world import A_LABELS, CLASSES, R_LABELS
from dho_plugin.errors import ConfigError, DataError

FRACTION = 0.01
WNIDS = [c.wnid for c in CLASSES]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    assert generate(root, fraction=FRACTION) == tuple(s.name for s in SETS)
    return root


def pixels(folder):
    return {str(p.relative_to(folder)): Image.open(p).tobytes() for p in sorted(folder.rglob("*.png"))}


def subfolders(folder):
    return sorted(p.name for p in folder.iterdir() if p.is_dir())


def test_layout_is_imagenets(world):
    assert subfolders(world / "imagenet/images") == ["train", "val"]
    assert subfolders(world / "imagenet/images/train") == subfolders(world / "imagenet/images/val") == WNIDS
    v2 = world / "imagenetv2/imagenetv2-matched-frequency-format-val"
    assert subfolders(v2) == sorted(str(k) for k in range(100))
    assert subfolders(world / "imagenet-sketch/images") == WNIDS
    assert subfolders(world / "imagenet-adversarial/imagenet-a") == [WNIDS[k] for k in A_LABELS]
    assert subfolders(world / "imagenet-rendition/imagenet-r") == [WNIDS[k] for k in R_LABELS]


def test_classnames_hold_all_classes_everywhere(world):
    files = sorted(world.glob("*/classnames.txt"))
    assert len(files) == 5
    assert {f.read_text() for f in files} == {"".join(f"{c.wnid} {c.name}\n" for c in CLASSES)}


def test_twenty_training_images_a_class_stay_in_a_small_world(world):
    counts = [len(list(f.iterdir())) for f in (world / "imagenet/images/train").iterdir()]
    assert counts == [20] * 100


def test_files_hold_the_images_of_their_class(world):
    image_set = SET_BY_NAME["imagenetv2"]
    index = np.array([37])
    label = int(image_set.label_of(index)[0])
    file = world / image_set.folder / str(label) / f"{WNIDS[label]}_00001.png"
    np.testing.assert_array_equal(np.asarray(Image.open(file)), render(image_set.parameters(index))[0])


def test_marker_tells_version_and_counts(world):
    marker = json.loads((world / "mini.json").read_text())
    assert marker["version"] == generator.VERSION
    assert marker["images"] == {s.name: len(list((world / s.folder).rglob("*.png"))) for s in SETS}


def test_nothing_but_the_world_is_left(world):
    assert [p for p in world.rglob("*") if "partial" in p.name] == []


def test_second_call_writes_nothing(world):
    before = {p: p.stat().st_mtime_ns for p in world.rglob("*.png")}
    assert generate(world, fraction=FRACTION) == ()
    assert {p: p.stat().st_mtime_ns for p in world.rglob("*.png")} == before


def test_workers_do_not_change_the_pixels(world, tmp_path):
    assert generate(tmp_path, fraction=FRACTION, workers=2, sets=["val", "imagenet_a"]) == ("val", "imagenet_a")
    for name in ("val", "imagenet_a"):
        assert pixels(tmp_path / SET_BY_NAME[name].folder) == pixels(world / SET_BY_NAME[name].folder)


def test_a_larger_world_contains_the_smaller_one(world, tmp_path):
    generate(tmp_path, fraction=0.05, sets=["imagenet_r"])
    small, large = (pixels(root / SET_BY_NAME["imagenet_r"].folder) for root in (world, tmp_path))
    assert small.items() < large.items()


def test_a_killed_run_goes_on_with_the_missing_sets(world, tmp_path, monkeypatch):
    def dies(folder, name, indices):
        if name == "imagenetv2":
            raise KeyboardInterrupt
        return write(folder, name, indices)

    write, names = generator._write_block, ["val", "imagenetv2", "imagenet_r"]
    monkeypatch.setattr(generator, "_write_block", dies)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, fraction=FRACTION, sets=names)
    v2 = SET_BY_NAME["imagenetv2"].folder
    assert not (tmp_path / v2).exists()
    stray = (tmp_path / v2).with_name(f".{(tmp_path / v2).name}.partial") / "0" / "stray.png"
    stray.touch()
    monkeypatch.undo()
    assert generate(tmp_path, fraction=FRACTION, sets=names) == ("imagenetv2", "imagenet_r")
    assert pixels(tmp_path / v2) == pixels(world / v2)


def test_full_disk_is_a_clear_error_and_leaves_no_rubbish(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(generator, "_write_block", full)
    with pytest.raises(DataError, match=r"No space left on device.*make room"):
        generate(tmp_path, fraction=FRACTION, sets=["val"])
    assert list(tmp_path.rglob("*.png")) == []
    assert list((tmp_path / "imagenet/images").iterdir()) == []
    monkeypatch.undo()
    assert generate(tmp_path, fraction=FRACTION, sets=["val"]) == ("val",)


def test_unwritable_root_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the mini world below"):
        generate(tmp_path / "file" / "data", fraction=FRACTION)


def test_changed_folder_is_named(tmp_path):
    generate(tmp_path, fraction=FRACTION, sets=["imagenet_r"])
    next((tmp_path / "imagenet-rendition").rglob("*.png")).unlink()
    with pytest.raises(DataError, match=r"imagenet-r holds 39 images, the generator wrote 40.*Delete"):
        generate(tmp_path, fraction=FRACTION, sets=["imagenet_r"])


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "imagenet/images/train/n01440764").mkdir(parents=True)
    with pytest.raises(DataError, match=r"imagenet/images/train exists.*Choose another folder"):
        generate(tmp_path, fraction=FRACTION)
    assert not (tmp_path / "mini.json").exists()


@pytest.mark.parametrize("change", [{"version": 0}, {"fraction": 1.0}, {"images": {"val": 3}}])
def test_another_world_is_named(tmp_path, change):
    generate(tmp_path, fraction=FRACTION, sets=[])
    marker = tmp_path / "mini.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | change))
    with pytest.raises(DataError, match=f"another mini world: {next(iter(change))} is"):
        generate(tmp_path, fraction=FRACTION)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_damaged_marker_is_an_error(tmp_path, text):
    (tmp_path / "mini.json").write_text(text)
    with pytest.raises(DataError, match=r"mini\.json"):
        generate(tmp_path, fraction=FRACTION)


def test_bad_arguments(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown set.*imagenet_v2.*imagenetv2"):
        generate(tmp_path, sets=["imagenet_v2"])
    for fraction in (0, 1.5):
        with pytest.raises(ConfigError, match="fraction"):
            generate(tmp_path, fraction=fraction)
    assert list(tmp_path.iterdir()) == []


def run_module(monkeypatch, *arguments):
    """What `python -m dho_plugin.data.mini ARGUMENTS` exits with."""
    monkeypatch.setattr(sys, "argv", ["mini", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("dho_plugin.data.mini", run_name="__main__")
    return stop.value.code


def test_command_line(tmp_path, monkeypatch, capsys):
    arguments = ["--root", tmp_path, "--workers", 0, "--fraction", FRACTION, "--sets", "imagenet_a"]
    assert run_module(monkeypatch, *arguments) == 0
    assert "wrote imagenet_a" in capsys.readouterr().out
    assert run_module(monkeypatch, *arguments) == 0
    assert "is complete" in capsys.readouterr().out
    (tmp_path / "mini.json").write_text("{}")
    assert run_module(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith(("ConfigError: ", "DataError: "))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_workers_end_with_a_killed_parent(tmp_path):
    """A SIGKILL must not leave processes behind."""
    code = (
        "import os, sys, time\n"
        "from dho_plugin.data.mini.pool import block_map\n"
        "if __name__ == '__main__':\n"
        "    with block_map(1) as run:\n"
        "        print(*run(os.path.getsize, ['/']), flush=True)\n"
        "        children = open(f'/proc/self/task/{os.getpid()}/children').read().split()\n"
        "        print(*children, flush=True)\n"
        "        time.sleep(60)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    parent.stdout.readline()
    children = parent.stdout.readline().split()
    assert children
    assert all(map(is_running, children))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, children))
