"""`python -m dho_plugin.cache`, as a user runs it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest

from dho_plugin.cache import build_parser, main
from dho_plugin.filling import size

PARTS = {
    "imagenet-train-ViT-L_14@336px": (24, 2, "float16"),
    "imagenet-train-ViT-B_16": (24, 2, "float32"),
    "imagenet-val-ViT-B_16": (8, 1, "float32"),
}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def words(command):
    """Return a function that gives the command line that fills the cache of a training."""

    def build(trainer: str, *options: str, flags: tuple[str, ...] = ("--views", "2")) -> list[str]:
        line = command(trainer, "run", "DATASET.TEMPLATES", "('a {}',)", "TEST.SHIFTED", "()", *options)
        out = line.index("--output-dir")
        return [*flags, *line[:out], *line[out + 2 :]]

    return build


def shards(own_cache) -> dict[str, list]:
    return {path.name[:-22]: sorted(path.glob("view*.npy")) for path in sorted(own_cache.iterdir())}


def test_everything_that_a_run_can_read_is_stored_and_said(words, own_cache, tmp_path, capsys):
    assert main(words("CoOp_DHO")) == 0
    out = capsys.readouterr().out
    found = shards(own_cache)
    assert set(found) == set(PARTS)
    for name, (images, views, dtype) in PARTS.items():
        arrays = [np.load(path) for path in found[name]]
        assert [(a.shape, a.dtype.name) for a in arrays] == [((images, 32), dtype)] * views
        assert f"{images} images x {views} views x 32 {dtype}" in out
    assert "teacher, train: complete, 48 features by this process" in out
    assert not (tmp_path / "run").exists()
    assert main(words("CoOp_DHO")) == 0
    again = capsys.readouterr().out
    assert again.count(", 0 bytes of it to fill") == again.count("complete, 0 features by this process") == 3


@pytest.mark.parametrize(
    ("trainer", "flags", "stored"),
    [
        ("CoOp_DHO", ("--what", "teacher"), ["imagenet-train-ViT-L_14@336px"]),
        ("CoOp_DHO", ("--what", "student"), ["imagenet-train-ViT-B_16", "imagenet-val-ViT-B_16"]),
        ("VPT_DHO", (), ["imagenet-train-ViT-L_14@336px"]),
        ("PromptSRC_DHO", (), ["imagenet-train-ViT-L_14@336px"]),
        ("PromptSRC", ("--what", "student"), ["imagenet-train-ViT-B_16"]),
        ("LinearProbe", (), ["imagenet-train-ViT-B_16", "imagenet-val-ViT-B_16"]),
        ("ZeroshotCLIP", (), ["imagenet-val-ViT-B_16"]),
    ],
)
def test_what_is_stored(words, own_cache, trainer, flags, stored):
    assert main(words(trainer, flags=("--views", "1", *flags))) == 0
    assert sorted(shards(own_cache)) == stored


@pytest.mark.parametrize(
    ("trainer", "flags", "said"),
    [
        ("CoOp_DHO", (), "--views None: say how many.*this run would show"),
        ("CoOp_DHO", ("--views", "0"), "--views 0: say how many"),
        ("CoOp_DHO", ("--views", "2", "--batch-size", "-1"), "--batch-size -1: 1 or more"),
        ("VPT", ("--views", "2"), "VPT can read no stored features"),
        ("PromptSRC", ("--views", "2"), "PromptSRC can read .* labeled images alone: --what student"),
        ("VPT_DHO", ("--views", "2", "--what", "student"), "its image features change as it learns"),
        (
            "CoOp",
            ("--views", "2", "--what", "teacher,student"),
            "--what teacher: CoOp can read none, it has no teacher",
        ),
        ("CoOp", ("--views", "2", "--what", "tests"), "'tests' is not one of teacher, student"),
    ],
)
def test_slips_are_one_message(words, own_cache, capsys, trainer, flags, said):
    assert main(words(trainer, flags=flags)) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not own_cache.exists()


def test_the_number_of_views_may_be_the_configs(words, own_cache):
    assert main(words("CoOp_DHO", "INPUT.VIEWS", "3", flags=("--what", "teacher"))) == 0
    assert [len(paths) for paths in shards(own_cache).values()] == [3]


def test_a_disk_with_too_little_room_is_refused_before_anything_is_computed(words, own_cache, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    assert main(words("CoOp_DHO", flags=("--views", "2", "--size"))) == 0
    assert "images x 2 views" in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 7000, 7000))
    assert main(words("CoOp_DHO")) == 2
    assert re.search(r"(10|11)\.\d\d kB are needed and 7\.00 kB are free. Make room", capsys.readouterr().err)
    assert not any(shards(own_cache).values())
    assert main(words("CoOp_DHO", flags=("--views", "2", "--what", "teacher"))) == 0  # 2 x 24 x 32 x 2 bytes


def test_a_disk_that_fills_up_is_one_message_and_the_same_command_goes_on(words, own_cache, capsys, monkeypatch):
    import dho_plugin.engine.feature_store as module

    real = module.atomic_write

    def full(path, write):
        if path.name.startswith("view001"):
            raise OSError(28, "No space left on device", str(path))
        real(path, write)

    monkeypatch.setattr(module, "atomic_write", full)
    assert main(words("CoOp_DHO")) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "view001-00000.npy" in error
    monkeypatch.undo()
    monkeypatch.setenv("DHO_CACHE", str(own_cache.parent))
    assert main(words("CoOp_DHO")) == 0
    assert "teacher, train: complete, 24 features by this process" in capsys.readouterr().out


def test_two_processes_fill_one_cache_and_one_of_them_may_be_killed(words, own_cache, monkeypatch):
    line = words("CoOp_DHO", "DATALOADER.NUM_WORKERS", "0", flags=("--views", "40", "--what", "teacher"))
    start = [sys.executable, "-m", "dho_plugin.cache", "--batch-size", "2", *line]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    while len(list(own_cache.glob("*/view*"))) < 3:
        time.sleep(0.01)
    processes[0].send_signal(signal.SIGKILL)
    assert processes[0].wait() == -signal.SIGKILL
    out, _ = processes[1].communicate()
    processes[0].stdout.close()
    assert processes[1].returncode == 0
    assert 0 < int(re.search(r"complete, (\d+) features", out)[1]) <= 40 * 24
    (paths,) = shards(own_cache).values()
    assert len(paths) == 40
    assert main(line) == 0
    found = np.stack([np.load(path) for path in paths])
    shutil.rmtree(own_cache)
    assert main(line) == 0
    (paths,) = shards(own_cache).values()
    np.testing.assert_allclose(found, np.stack([np.load(path) for path in paths]), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.00 kB"), (1_967_872_512, "1.97 GB"), (10**16, "10000.00 TB")],
)
def test_sizes_are_read_easily(count, text):
    assert size(count) == text


def test_the_flags_are_those_of_a_run():
    args = build_parser().parse_args(["--root", "data", "--trainer", "CoOp_DHO", "--seed", "0", "INPUT.VIEWS", "4"])
    assert (args.root, args.trainer, args.seed, args.opts) == ("data", "CoOp_DHO", 0, ["INPUT.VIEWS", "4"])
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--eval-only"])
