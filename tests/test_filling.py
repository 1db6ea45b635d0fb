"""Runs that store the features they need before their first step: MODE and FEATURES `fill`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

import dho_plugin.engine.feature_store as feature_store
import dho_plugin.engine.image_sets as image_sets
from dho_plugin import cache
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.student import CLIPStudent
from dho_plugin.teachers.zeroshot import ZeroShotTeacher
from dho_plugin.train import main

# 24 training images, 8 of them labeled; 3 epochs of 6 steps of 4: 9 passes over the labeled ones, 3 over all.
FEW = ("TRAIN.COUNT_ITER", "train_u", "DATASET.TEMPLATES", "('a {}',)", "TEST.SHIFTED", "()")
VIEWS = ("INPUT.VIEWS", "2", *FEW)
ONLINE = ("TRAINER.DHO.TEACHER.MODE", "online", "MODEL.FEATURES", "online")
TEACHER = ("TRAINER.DHO.TEACHER.MODE", "fill", "MODEL.FEATURES", "online")
BOTH = ("TRAINER.DHO.TEACHER.MODE", "fill", "MODEL.FEATURES", "fill")
CACHED = ("TRAINER.DHO.TEACHER.MODE", "cached", "MODEL.FEATURES", "cached")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path / "own_cache"))
    return tmp_path / "own_cache" / "features"


@pytest.fixture
def seen(monkeypatch):
    """Return how many images each encoder has seen, by their size: 48 the teacher's, 32 the student's."""
    counts, inside = Counter(), []

    def counted(kind, name):
        real = getattr(kind, name)

        def count(self, images):
            if not inside:  # one of them may call another
                counts[images.shape[-1]] += len(images)
            inside.append(name)
            try:
                return real(self, images)
            finally:
                inside.pop()

        monkeypatch.setattr(kind, name, count)

    counted(LoadedCLIP, "encode_image")  # a fill
    counted(ZeroShotTeacher, "features")  # an online teacher
    counted(CLIPStudent, "frozen_features")  # an online student
    return counts


def elsewhere(line: list[str], out: Path, *options: str) -> list[str]:
    line = list(line)
    line[line.index("--output-dir") + 1] = str(out)
    return [*line, *options]


def run(line: list[str]) -> dict:
    assert main(line) == 0
    return json.loads((Path(line[line.index("--output-dir") + 1]) / "results.json").read_text())["metrics"]


def command_fill(line: list[str], *flags: str) -> int:
    out = line.index("--output-dir")
    return cache.main([*flags, *line[:out], *line[out + 2 :]])


def stores(folder: Path) -> dict[str, list[tuple[int, int]]]:
    """Return of each store, by its name, the images and complete views of each."""
    found: dict[str, list[tuple[int, int]]] = {}
    for path in sorted(folder.iterdir()):
        views = sorted(path.glob("view*"))
        found.setdefault(path.name[:-22], []).append((len(np.load(path / "images.npy")), len(views)))
    return {name: sorted(sizes) for name, sizes in found.items()}


def losses(trainer, steps: int = 12) -> list[float]:
    taken = []
    for _ in range(steps):
        taken.append(trainer.forward_backward(*[next(stream) for stream in trainer.streams])["loss"].item())
        trainer.update_lr(per_step=True)
    return taken


def test_a_run_that_fills_has_the_numbers_of_an_online_run_and_of_one_on_a_filled_cache(
    command, tmp_path, own_cache, seen, monkeypatch
):
    line = command("LinearProbe_DHO", "online", *VIEWS)
    online = run([*line, *ONLINE])
    assert (seen[48], not own_cache.exists()) == (18 * 2 * 4, True)
    seen.clear()
    filled = run(elsewhere(line, tmp_path / "filled", *BOTH))
    assert dict(seen) == {48: 2 * 24, 32: 2 * 24 + 8}  # each view of each image once, and the test images
    log = (tmp_path / "filled" / "log.txt").read_text()
    assert (
        "The teacher's features (train) are stored first, 24 images x 2 views (the whole run shows it 144 images)"
        in log
    )
    assert "The student's features (val) are read from" in log
    stored = stores(own_cache)
    assert stored == {
        "imagenet-train-ViT-B_16": [(24, 2)],
        "imagenet-train-ViT-L_14@336px": [(24, 2)],
        "imagenet-val-ViT-B_16": [(8, 1)],
    }
    # The command finds nothing left to do, and the next run decodes nothing.
    seen.clear()
    assert command_fill(line) == 0
    monkeypatch.setattr(image_sets, "ImageFile", None)
    for number, modes in enumerate((CACHED, BOTH, ())):
        assert run(elsewhere(line, tmp_path / f"again{number}", *modes)) == online
    assert not seen
    assert filled == online
    assert stores(own_cache) == stored


@pytest.mark.parametrize(
    ("options", "teacher"),
    [
        # views of the labeled images and of all: as many as passes, and at most INPUT.VIEWS
        (("INPUT.VIEWS", "2"), [(24, 2)]),
        (("INPUT.VIEWS", "3"), [(24, 3)]),
        (("INPUT.VIEWS", "5"), [(8, 5), (24, 3)]),
        (("INPUT.VIEWS", "0"), [(8, 9), (24, 3)]),
        # no unlabeled images: only the shots; half of the classes: only theirs; a few kept aside: all, for other seeds
        (("INPUT.VIEWS", "2", "TRAINER.DHO.UNLABELED", "False"), [(8, 2)]),
        (("INPUT.VIEWS", "2", "DATASET.SUBSAMPLE_CLASSES", "base"), [(12, 2)]),
        (("INPUT.VIEWS", "2", "DATASET.NUM_VAL_SHOTS", "1"), [(24, 2)]),
        (("INPUT.VIEWS", "2", "DATASET.NUM_VAL_SHOTS", "2"), [(16, 2)]),
    ],
)
def test_only_what_a_run_shows_is_stored_and_no_more_than_it_would_compute(
    command, started, own_cache, seen, options, teacher
):
    trainer = started([*command("CoOp_DHO", "run", *FEW), *TEACHER, *options])
    assert stores(own_cache)["imagenet-train-ViT-L_14@336px"] == teacher
    assert seen[48] == sum(images * views for images, views in teacher)
    steps = min(12, trainer.total_steps())
    filled = losses(trainer, steps)
    if "0" not in options:  # online features are rounded as stored ones where the views are a fixed number
        online = started([*command("CoOp_DHO", "run", *FEW), *ONLINE, *options])
        assert filled == pytest.approx(losses(online, steps), rel=1e-4)


def test_a_run_without_a_step_stores_nothing_of_the_training_images(command, tmp_path, own_cache):
    run(command("CoOp", "run", *VIEWS, "OPTIM.MAX_EPOCH", "0", "MODEL.FEATURES", "fill"))
    assert stores(own_cache) == {"imagenet-val-ViT-B_16": [(8, 1)]}


def test_a_store_made_by_one_seed_serves_another(command, started, tmp_path):
    line = command("CoOp_DHO", "run", *VIEWS)
    started([*line, *BOTH])
    other = [*line, "SEED", "5"]
    assert losses(started([*other, *CACHED])) == pytest.approx(losses(started([*other, *ONLINE])), rel=1e-4)


def test_what_the_command_has_begun_is_completed(command, started, own_cache, seen):
    line = command("CoOp_DHO", "run", *VIEWS)
    assert command_fill(line, "--views", "1", "--what", "teacher") == 0
    seen.clear()
    started([*line, *TEACHER])
    assert seen[48] == 24
    assert stores(own_cache) == {"imagenet-train-ViT-L_14@336px": [(24, 2)]}


def test_promptsrc_stores_the_frozen_features_of_its_labeled_images(command, started, own_cache, seen):
    line = command("PromptSRC_DHO", "run", *VIEWS)
    expected = losses(started([*line, *ONLINE]))
    assert seen[32] == 12 * 4
    seen.clear()
    trainer = started([*line, *BOTH])
    assert stores(own_cache) == {"imagenet-train-ViT-B_16": [(8, 2)], "imagenet-train-ViT-L_14@336px": [(24, 2)]}
    assert dict(seen) == {48: 24 * 2, 32: 8 * 2}
    assert losses(trainer) == pytest.approx(expected, rel=1e-4)
    assert dict(seen) == {48: 24 * 2, 32: 8 * 2}
    # With an online teacher the labeled batches have images for both, beside the features.
    batch = next(started([*line, "TRAINER.DHO.TEACHER.MODE", "online", "MODEL.FEATURES", "cached"]).streams[0])
    assert {"img", "img_teacher", "features_frozen"} <= batch.keys()
    assert "features_frozen" not in next(trainer.streams[1])


def test_promptsrcs_stored_features_are_those_of_its_images(command, started):
    trainer = started([*command("PromptSRC", "run", *VIEWS), "MODEL.FEATURES", "fill"])
    batch = next(trainer.streams[0])
    fresh = trainer.student.frozen_features(batch["img"])
    torch.testing.assert_close(batch["features_frozen"], fresh, rtol=1e-4, atol=1e-5)


def test_a_student_that_changes_says_so_and_is_computed(command, started, own_cache, capsys):
    trainer = started([*command("VPT_DHO", "run", *VIEWS), *BOTH])
    assert set(trainer.stored) == {"teacher"}
    assert (
        "MODEL.FEATURES fill: VPT_DHO's image features change as it learns: they are computed"
        in capsys.readouterr().out
    )


def test_a_validation_at_every_epoch_is_stored_once(command, tmp_path, seen):
    line = command("CoOp", "run", *VIEWS, "DATASET.NUM_VAL_SHOTS", "2", "TEST.FINAL_MODEL", "best_val")
    expected = run([*line, *ONLINE])
    seen.clear()
    assert run(elsewhere(line, tmp_path / "filled", "MODEL.FEATURES", "fill")) == expected
    assert dict(seen) == {32: 8 * 2 + 8 + 8}  # labeled in two views, validation, test


def test_a_disk_that_fills_up_is_one_message_and_the_run_goes_on_there(command, own_cache, seen, capsys, monkeypatch):
    line = [*command("CoOp_DHO", "run", *VIEWS), *TEACHER]
    real = feature_store.atomic_write

    def full(path, write):
        if path.name.startswith("view001"):
            raise OSError(28, "No space left on device", str(path))
        real(path, write)

    monkeypatch.setattr(feature_store, "atomic_write", full)
    assert main(line) == 2
    assert re.search(
        r"No space left on device: '\S*view001-00000.npy'. What is complete stays", capsys.readouterr().err
    )
    assert stores(own_cache) == {"imagenet-train-ViT-L_14@336px": [(24, 1)]}
    monkeypatch.setattr(feature_store, "atomic_write", real)
    seen.clear()
    run(line)
    assert seen[48] == 24


def test_a_disk_with_too_little_room_is_refused_before_anything_is_computed(command, seen, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 3000, 3000))
    assert main([*command("CoOp_DHO", "run", *VIEWS), *TEACHER]) == 2
    assert re.search(r"3\.\d\d kB are needed and 3\.00 kB are free", capsys.readouterr().err)
    assert not seen[48]


def _processes(lines: list[list[str]]) -> list[subprocess.Popen]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "dho_plugin.train"]
    return [subprocess.Popen([*start, *line], stdout=subprocess.PIPE, text=True, env=env) for line in lines]


def test_a_run_killed_while_it_fills_goes_on_where_it_stopped(command, tmp_path, own_cache):
    line = [*command("CoOp_DHO", "run", "INPUT.VIEWS", "60", *FEW), "OPTIM.MAX_EPOCH", "60", *TEACHER]
    line += ["TRAINER.DHO.UNLABELED", "False", "TEST.NO_TEST", "True"]
    (process,) = _processes([line])
    while len(list(own_cache.glob("*/view*"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    there = {path: path.stat().st_mtime_ns for path in own_cache.glob("*/view*")}
    assert 3 <= len(there) < 60
    assert not list((tmp_path / "run").glob("prompt_learner/*"))
    assert main([*line, "OPTIM.MAX_EPOCH", "60"]) == 0
    assert stores(own_cache) == {"imagenet-train-ViT-L_14@336px": [(8, 60)]}
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_two_runs_fill_one_store_together(command, tmp_path, own_cache):
    line = command("CoOp_DHO", "run", "INPUT.VIEWS", "2", *FEW)
    lines = [elsewhere(line, tmp_path / f"seed{seed}", "SEED", str(seed), *TEACHER) for seed in (1, 2)]
    processes = _processes(lines)
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    assert stores(own_cache) == {"imagenet-train-ViT-L_14@336px": [(24, 2)]}
    for seed, one in ((1, lines[0]), (2, lines[1])):
        stored = json.loads((tmp_path / f"seed{seed}/results.json").read_text())["metrics"]
        assert stored == run(elsewhere(one, tmp_path / f"online{seed}", *ONLINE))
