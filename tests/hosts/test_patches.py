"""Run-time patches: applied where something is broken, and only there; the launcher runs a host's script unedited."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dho_plugin.errors import ConfigError
from dho_plugin.hosts import patches
from dho_plugin.hosts.launch import build_parser, main, set_path, use_weights


@pytest.fixture
def scheduler(small_host, monkeypatch):
    """The small host's broken warm-up scheduler, mended or not for one test."""
    from dassl.optim import lr_scheduler

    base = lr_scheduler._BaseWarmupScheduler
    for name in ("__init__", "state_dict", "load_state_dict"):
        monkeypatch.setattr(base, name, getattr(base, name))  # restored after the test
    yield lr_scheduler
    torch.serialization.clear_safe_globals()


def patch(name):
    return next(patch for patch in patches.PATCHES if patch.name == name)


def rates(scheduler, steps, state=None):
    """Return the learning rates of `steps` epochs, with a restart in between where there is a state to go on from."""
    parameter = nn.Parameter(torch.zeros(1))
    optim = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    warm = scheduler.ConstantWarmupScheduler(optim, torch.optim.lr_scheduler.CosineAnnealingLR(optim, 6.0), 1, 1e-5)
    if state:
        optim.load_state_dict(state["optimizer"])
        warm.load_state_dict(state["scheduler"])
    found = []
    for _ in range(steps):
        parameter.grad = torch.ones(1)
        optim.step()
        found.append(optim.param_groups[0]["lr"])
        warm.step()
    return found, {"optimizer": optim.state_dict(), "scheduler": warm.state_dict()}


def test_the_warm_up_is_mended_where_it_fails(scheduler):
    assert patch("warmup").needed()
    patch("warmup").apply()
    assert not patch("warmup").needed()
    # CosineAnnealingLR's own recursion, started after one epoch at the constant rate
    lr = rates(scheduler, 6)[0]
    assert lr[:2] == [1e-5, 0.1]
    assert lr[1:] == sorted(lr[1:], reverse=True)


def test_without_the_warm_ups_patch_the_others_find_nothing_to_look_at(scheduler):
    assert not patch("checkpoints").needed()
    assert not patch("resume-lr").needed()


def through_a_file(state, tmp_path):
    torch.save(state, tmp_path / "state.pt")
    return torch.load(tmp_path / "state.pt")


def test_a_resumed_schedule_goes_on(scheduler, tmp_path):
    patch("warmup").apply()
    whole, _ = rates(scheduler, 6)
    assert patch("resume-lr").needed()
    patch("resume-lr").apply()
    assert not patch("resume-lr").needed()
    _, state = rates(scheduler, 3)
    resumed, _ = rates(scheduler, 3, through_a_file(state, tmp_path))
    assert resumed == pytest.approx(whole[3:], rel=1e-9)


def test_checkpoints_written_without_the_patch_are_read(scheduler, tmp_path):
    patch("warmup").apply()
    whole, _ = rates(scheduler, 6)
    _, state = rates(scheduler, 3)
    torch.save(state, tmp_path / "state.pt")
    assert patch("checkpoints").needed()
    with pytest.raises(Exception, match=r"ConstantWarmupScheduler|CosineAnnealingLR|weights_only"):
        torch.load(tmp_path / "state.pt")
    patch("checkpoints").apply()
    assert not patch("checkpoints").needed()
    patch("resume-lr").apply()
    resumed, _ = rates(scheduler, 3, torch.load(tmp_path / "state.pt"))
    assert resumed == pytest.approx(whole[3:], rel=1e-9)


def test_nothing_else_is_read(scheduler, tmp_path):
    patch("warmup").apply()
    patch("checkpoints").apply()
    torch.save({"scheduler": SimpleNamespace(a=1)}, tmp_path / "bad.pt")
    with pytest.raises(Exception, match="SimpleNamespace"):
        torch.load(tmp_path / "bad.pt")


@pytest.mark.parametrize(("name", "module"), [("wilds", "dassl.data.datasets.dg.wilds"), ("gdown", "gdown")])
def test_a_missing_package_gets_a_stand_in(monkeypatch, name, module):
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(patches.importlib.util, "find_spec", lambda found: None)
    assert patch(name).needed()
    monkeypatch.setitem(sys.modules, module, None)  # so that what is put there is taken away again
    patch(name).apply()
    assert sys.modules[module].__name__ == module
    if name == "gdown":
        with pytest.raises(ConfigError, match="pip install gdown"):
            sys.modules["gdown"].download("url", "file", quiet=False)
    monkeypatch.setattr(patches.importlib.util, "find_spec", lambda found: object())
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert not patch(name).needed()


@pytest.mark.parametrize("name", ["no-gpu", "no-half"])
def test_without_a_gpu(monkeypatch, name):
    for kind in (torch.Tensor, nn.Module):
        for method in ("cuda", "half"):
            monkeypatch.setattr(kind, method, getattr(kind, method))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not patch(name).needed()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert patch(name).needed()
    patch(name).apply()
    module, tensor = nn.Linear(2, 2), torch.ones(2)
    method = {"no-gpu": "cuda", "no-half": "half"}[name]
    assert getattr(module, method)() is module
    assert getattr(tensor, method)() is tensor
    assert module.weight.dtype is torch.float32


def test_patches_can_be_left_out(monkeypatch):
    done = []
    fakes = [patches.Patch(name, "", lambda: True, lambda name=name: done.append(name)) for name in "abc"]
    fakes.append(patches.Patch("works", "", lambda: False, lambda: done.append("works")))
    monkeypatch.setattr(patches, "PATCHES", fakes)
    assert [p.name for p in patches.apply_patches(["b"])] == ["a", "c"]
    assert done == ["a", "c"]
    with pytest.raises(ConfigError, match="there is no x; there are: a, b, c, works"):
        patches.apply_patches(["x"])


# The launcher -------------------------------------------------------------------------------------------------------


def test_a_hosts_script_is_run_unedited(small_host, host_line, tmp_path):
    words = host_line("Prompted_DHO", tmp_path / "run", "OPTIM.WARMUP_EPOCH", "1", "OPTIM.MAX_EPOCH", "1")
    script = [str(small_host.folder / "train.py"), *words]
    command = [sys.executable, "-W", "ignore", "-m", "dho_plugin.hosts", "--no-patch", "resume-lr", *script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "dho-host: patch warmup: " in done.stdout
    assert "Prompted_DHO: Prompted with a cosine KD head, RouteB" in done.stdout
    assert (tmp_path / "run/kd_head/model.pth.tar-1").is_file()
    assert "patch resume-lr" not in done.stdout


def test_the_host_stands_in_front_and_dassl_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["first", "last"])
    (tmp_path / "Dassl/dassl").mkdir(parents=True)
    (tmp_path / "Dassl/dassl/__init__.py").touch()
    (tmp_path / "host").mkdir()
    (tmp_path / "host/train.py").touch()
    set_path(tmp_path / "host/train.py", str(tmp_path / "Dassl"))
    assert sys.path == [str(tmp_path / "host"), "first", "last", str(tmp_path / "Dassl")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/train.py"], "dho-host: nowhere/train.py is missing; name the host's train.py"),
        (["--dassl", "nowhere", __file__], "--dassl nowhere: looked for dassl/__init__.py below it"),
    ],
)
def test_a_wrong_command_is_one_message(capsys, monkeypatch, words, message):
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_dassl_with_other_schedulers_is_one_message(tmp_path):
    for file in ("config/defaults.py", "optim/lr_scheduler.py", "config/__init__.py", "optim/__init__.py"):
        (tmp_path / "dassl" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dassl" / file).write_text("_C = ConstantWarmupScheduler = None\n")
    (tmp_path / "dassl/__init__.py").write_text("__version__ = '0.9'\n")
    (tmp_path / "train.py").touch()
    command = [sys.executable, "-m", "dho_plugin.hosts", "--dassl", str(tmp_path), str(tmp_path / "train.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    expected = "Dassl 0.9: dassl.optim.lr_scheduler has no _BaseWarmupScheduler, LinearWarmupScheduler; written for"
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert expected in done.stderr


def test_a_local_file_of_weights(monkeypatch, tmp_path):
    clip = SimpleNamespace(_download=lambda url: "downloaded")
    monkeypatch.setitem(sys.modules, "clip", SimpleNamespace(clip=clip))
    monkeypatch.setitem(sys.modules, "clip.clip", clip)
    with pytest.raises(ConfigError, match="--weights nowhere: no such file"):
        use_weights("nowhere")
    (tmp_path / "tiny.pt").touch()
    use_weights(str(tmp_path / "tiny.pt"))
    assert clip._download("any", root="where") == str(tmp_path / "tiny.pt")


def test_a_host_without_clip(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "clip", None)
    (tmp_path / "tiny.pt").touch()
    with pytest.raises(ConfigError, match=r"looked for the host's clip/clip\.py"):
        use_weights(str(tmp_path / "tiny.pt"))


def test_the_hosts_arguments_are_its_own():
    args = build_parser().parse_args(["--no-patch", "wilds", "train.py", "--trainer", "X_DHO", "A.B", "1"])
    assert (args.no_patch, args.script, args.args) == (["wilds"], "train.py", ["--trainer", "X_DHO", "A.B", "1"])
