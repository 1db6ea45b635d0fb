"""Checkpoints: what goes in comes out, and every failure leaves the old file and a clear message."""

import errno
import os
from collections import OrderedDict
from datetime import date
from pathlib import Path

import pytest
import torch
from torch import nn

from dho_plugin.engine import files
from dho_plugin.engine.checkpoint import load_checkpoint, model_path, save_checkpoint, saved_epochs
from dho_plugin.engine.files import atomic_write_text
from dho_plugin.errors import CheckpointError


def trained_state():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "state_dict": model.state_dict(),
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"last_epoch": 3, "base_lrs": [0.002]},
        "val_result": None,
        "rng": (torch.get_rng_state(), "a", 1.5, True),
    }


def assert_same(left, right):
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_makes_the_folder_and_leaves_no_other_file(tmp_path):
    state, path = trained_state(), model_path(tmp_path, "prompt_learner", 3)
    save_checkpoint(state, path)
    assert_same(load_checkpoint(path), state)
    assert names(path.parent) == ["model.pth.tar-3"]


def test_mode_follows_the_umask(tmp_path):
    atomic_write_text(tmp_path / "atomic", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def fail_with_full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "model.pth.tar-1"
    save_checkpoint({"epoch": 1}, path)
    monkeypatch.setattr(files.os, call, fail_with_full_disk)
    with pytest.raises(CheckpointError, match=r"model\.pth\.tar-1.*No space left.*Free space there: \d+ MB.*resume"):
        save_checkpoint({"epoch": 2}, path)
    assert load_checkpoint(path) == {"epoch": 1}
    assert names(tmp_path) == ["model.pth.tar-1"]


class FullDisk:
    """A file that takes the first 1000 bytes, as a disk that fills up does."""

    def __init__(self, file):
        self.file = file
        self.room = 1000

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            fail_with_full_disk()
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_disk_that_fills_up_while_torch_writes(tmp_path, monkeypatch):
    """torch reports this one as a RuntimeError about positions; the message must still name the cause."""
    path = tmp_path / "model.pth.tar-1"
    save_checkpoint({"epoch": 1}, path)
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args: FullDisk(real_open(self, *args)))
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint({"weight": torch.zeros(100_000)}, path)
    monkeypatch.undo()
    assert load_checkpoint(path) == {"epoch": 1}
    assert names(tmp_path) == ["model.pth.tar-1"]


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "results.json"
    atomic_write_text(path, '{"η": 1}')
    assert path.read_bytes() == '{"η": 1}'.encode()
    monkeypatch.setattr(files.os, "replace", fail_with_full_disk)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_text(path, "new")
    assert path.read_bytes() == '{"η": 1}'.encode()
    assert names(path.parent) == ["results.json"]


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [1, {"b": date(2020, 1, 1)}]}, r"state\['a'\]\[1\]\['b'\] is a date"),
        ({"scheduler": nn.Linear(1, 1)}, r"state\['scheduler'\] is a Linear"),
        ({"lr": torch.tensor([0.5]).double().numpy()[0]}, r"state\['lr'\] is a float64"),
        ({"cfg": type("CfgNode", (dict,), {})()}, r"state\['cfg'\] is a CfgNode"),
        ({("a", 1): 2}, r"the key \('a', 1\)"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, state, where):
    with pytest.raises(CheckpointError, match=where):
        save_checkpoint(state, tmp_path / "model.pth.tar-1")
    assert names(tmp_path) == []


def test_ordered_state_dicts_are_plain(tmp_path):
    save_checkpoint({"state_dict": OrderedDict(a=torch.ones(2))}, tmp_path / "x")
    assert torch.equal(load_checkpoint(tmp_path / "x")["state_dict"]["a"], torch.ones(2))


def test_missing_checkpoint_lists_the_stored_epochs(tmp_path):
    for epoch in (10, 2):
        save_checkpoint({"epoch": epoch}, model_path(tmp_path, "m", epoch))
    with pytest.raises(CheckpointError, match=r"no checkpoint .*model\.pth\.tar-7.*: 2, 10\."):
        load_checkpoint(model_path(tmp_path, "m", 7))
    with pytest.raises(CheckpointError, match="none"):
        load_checkpoint(model_path(tmp_path, "other", 7))


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_checkpoint(tmp_path, keep):
    path = tmp_path / "model.pth.tar-1"
    save_checkpoint(trained_state(), path)
    size = path.stat().st_size
    os.truncate(path, int(keep * size) if keep < 1 else keep)
    with pytest.raises(CheckpointError, match=r"model\.pth\.tar-1 is damaged.*earlier epoch"):
        load_checkpoint(path)


class Harmful:
    def __reduce__(self):
        return os.mkdir, (os.environ["DHO_TEST_HARM"],)


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_never_unpickled(tmp_path, monkeypatch, zipped):
    harm = tmp_path / "harm"
    monkeypatch.setenv("DHO_TEST_HARM", str(harm))
    path = tmp_path / "model.pth.tar-1"
    torch.save({"scheduler": Harmful()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="trust its origin" if zipped else "is damaged or not"):
        load_checkpoint(path)
    assert not harm.exists()


def test_not_a_dict(tmp_path):
    torch.save([1, 2], tmp_path / "x")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(tmp_path / "x")


def test_model_path_is_dassls(tmp_path):
    assert model_path(tmp_path, "prompt_learner", 50) == tmp_path / "prompt_learner" / "model.pth.tar-50"
    assert model_path(str(tmp_path), "prompt_learner") == tmp_path / "prompt_learner" / "model-best.pth.tar"


def test_stored_epochs_are_listed_by_number(tmp_path):
    assert saved_epochs(tmp_path / "m") == []
    (tmp_path / "m" / "model.pth.tar-4").mkdir(parents=True)  # a folder is no checkpoint
    for name in ("model.pth.tar-10", "model.pth.tar-9", "model-best.pth.tar", ".model.pth.tar-11.7.tmp", "checkpoint"):
        (tmp_path / "m" / name).write_bytes(b"")
    assert saved_epochs(tmp_path / "m") == [9, 10]
