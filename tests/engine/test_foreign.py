"""Files of Dassl's hosts: their weights are read, objects beside them are never built, and none of their code runs."""

import builtins
import io
import math
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from dho_plugin import train
from dho_plugin.engine.checkpoint import load_checkpoint
from dho_plugin.engine.foreign import ForeignObject, read_foreign
from dho_plugin.errors import CheckpointError

MARK = "DHO_TEST_RAN"


class WarmUp(LRScheduler):
    """Like Dassl's: the scheduler that follows is an attribute, and so is in its state."""

    def __init__(self, optimizer, successor):
        self.successor = successor
        super().__init__(optimizer)

    def get_lr(self):
        return [1e-5 for _ in self.base_lrs]


def normal(*shape, dtype=torch.float16):
    return torch.randn(*shape).to(dtype)


def blocks(prefix, layers, width):
    return {
        f"{prefix}.transformer.resblocks.{layer}.{key}": normal(*shape)
        for layer in range(layers)
        for key, shape in {"attn.in_proj_weight": (3 * width, width), "ln_1.bias": (width,)}.items()
    }


def coop_weights(n_ctx=16, classes=3, width=512):
    """The keys and shapes of CoOp's prompt_learner/model.pth.tar-50."""
    suffix = normal(classes, 77 - 1 - n_ctx, width)
    return OrderedDict(ctx=normal(n_ctx, width), token_prefix=normal(classes, 1, width), token_suffix=suffix)


def promptsrc_weights(depth=9, layers=12, text=512, vision=768, classes=3):
    """The keys and shapes of PromptSRC's VLPromptLearner/model.pth.tar-20, with some of the frozen keys."""
    deep = {
        f"{tower}_encoder.transformer.resblocks.{layer}.VPT_shallow": normal(4, width)
        for tower, width in (("image", vision), ("text", text))
        for layer in range(1, depth)
    }
    return OrderedDict(
        {
            "prompt_learner.ctx": normal(4, text),
            "prompt_learner.token_prefix": normal(classes, 1, text),
            "prompt_learner.token_suffix": normal(classes, 72, text),
            "prompt_learner.ZS_image_encoder.class_embedding": normal(vision),
            **blocks("prompt_learner.ZS_image_encoder", 1, vision),
            "image_encoder.VPT": normal(4, vision),
            "image_encoder.conv1.weight": normal(vision, 3, 16, 16),
            **blocks("image_encoder", 1, vision),
            "text_encoder.positional_embedding": normal(77, text),
            **blocks("text_encoder", 1, text),
            **deep,
            "logit_scale": torch.tensor(4.6055),
        }
    )


def dassl_state(weights, epoch, val_result=71.5):
    """What Dassl's save_checkpoint writes: the scheduler's state holds a scheduler and an optimizer with momentum."""
    prompts = nn.Parameter(weights[next(iter(weights))].clone())
    optimizer = torch.optim.SGD([prompts], lr=0.002, momentum=0.9, weight_decay=5e-4)
    prompts.grad = torch.ones_like(prompts)
    optimizer.step()
    scheduler = WarmUp(optimizer, CosineAnnealingLR(optimizer, float(epoch)))
    return {
        "state_dict": weights,
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "val_result": val_result,
    }


@pytest.mark.parametrize(("weights", "epoch"), [(coop_weights, 50), (promptsrc_weights, 20)])
def test_a_released_file_gives_its_weights(tmp_path, capsys, weights, epoch):
    path, stored = tmp_path / f"model.pth.tar-{epoch}", dassl_state(weights(), epoch)
    torch.save(stored, path)
    with pytest.raises(pickle.UnpicklingError):  # otherwise this file would test nothing
        torch.load(path, weights_only=True)
    allowed = set(torch.serialization.get_safe_globals())
    loaded = load_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == allowed
    assert list(loaded) == ["state_dict", "epoch", "optimizer", "val_result"]
    assert list(loaded["state_dict"]) == list(stored["state_dict"])
    for key, value in stored["state_dict"].items():
        assert loaded["state_dict"][key].dtype == value.dtype
        assert torch.equal(loaded["state_dict"][key], value)
    assert (loaded["epoch"], loaded["val_result"]) == (epoch, 71.5)
    assert loaded["optimizer"]["param_groups"][0]["momentum"] == 0.9
    momentum = [state["optimizer"]["state"][0]["momentum_buffer"] for state in (loaded, stored)]
    assert torch.equal(*momentum)
    assert "scheduler left out: holds objects (torch.optim.lr_scheduler.CosineAnnealingLR, " in capsys.readouterr().out


def test_only_the_parts_with_objects_are_left_out(tmp_path, capsys):
    stored = {
        "state_dict": coop_weights(width=4),
        "epoch": 3,
        "rates": {"a": [0.1, {"b": (1, WarmUp)}]},
        "val_result": torch.tensor(0.5).numpy()[()],
        "notes": [1, ["two", {3.0}]],
    }
    torch.save(stored, tmp_path / "x")
    loaded = load_checkpoint(tmp_path / "x")
    assert list(loaded) == ["state_dict", "epoch", "notes"]
    assert loaded["notes"] == [1, ["two", {3.0}]]
    assert "x: rates, val_result left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "stored", [{"ctx": WarmUp}, {"ctx": defaultdict}, {"a": torch.ones(1), "b": [nn.ReLU()]}, nn.Linear(1, 1)]
)
def test_weights_that_are_no_plain_tensors(tmp_path, stored):
    torch.save({"state_dict": stored, "epoch": 1}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"x: its state_dict holds objects \(.+where only tensors"):
        load_checkpoint(tmp_path / "x")


@pytest.mark.parametrize("stored", [nn.ReLU(), [WarmUp]])
def test_a_model_instead_of_its_weights(tmp_path, stored):
    torch.save(stored, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"holds a (ForeignObject|list), not a checkpoint's dict"):
        load_checkpoint(tmp_path / "x")


def test_circles_and_depth_end(tmp_path):
    circle, deep = [], []
    circle.append(circle)
    for _ in range(300):
        deep = [deep]
    torch.save({"state_dict": {"a": torch.ones(1)}, "circle": circle, "deep": deep, "object": WarmUp}, tmp_path / "x")
    loaded = load_checkpoint(tmp_path / "x")
    assert list(loaded) == ["state_dict", "circle", "deep"]
    assert loaded["circle"][0] is loaded["circle"]


# What hostile files try. Each is a list of pickle instructions whose result is put under "scheduler".
def glob(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(kind, key="0"):
    return b"(" + text("storage") + kind + text(key) + text("cpu") + b"K\x01tQ"


TOUCH = "import os, pathlib; pathlib.Path(os.environ['DHO_TEST_RAN']).touch()"
SHELL = text('touch "$DHO_TEST_RAN"')
ATTACKS = {
    "os.system": call(glob("os", "system"), SHELL),
    "posix.system": call(glob("posix", "system"), SHELL),
    "subprocess": call(glob("subprocess", "getoutput"), SHELL),
    "builtins.eval": call(glob("builtins", "eval"), text(f"exec({TOUCH!r})")),
    "builtins.exec": call(glob("builtins", "exec"), text(TOUCH)),
    "python 2's name": call(glob("__builtin__", "eval"), text(f"exec({TOUCH!r})")),
    "import": call(glob("builtins", "__import__"), text("dho_test_harm")),
    "nested name": b"\x80\x04" + call(glob("torch.serialization", "os.system"), SHELL),
    "nested module": call(glob("torch.serialization.os", "system"), SHELL),
    "name of a name": b"\x80\x04"
    + call(glob("dho_plugin.engine.foreign", "ForeignObject.__init__.__globals__"), SHELL),
    "torch.load": call(glob("torch", "load"), text("harm.pt"), b"NN\x89"),
    "torch.hub.load": call(glob("torch.hub", "load"), text("."), text("f")),
    "torch.jit": call(glob("torch.jit", "load"), text("harm.pt")),
    "torch's exec": call(glob("torch._inductor.codecache", "PyCodeCache.load"), text(TOUCH)),
    "functools.partial": call(call(glob("functools", "partial"), glob("subprocess", "getoutput"), SHELL)),
    "getattr": call(call(glob("builtins", "getattr"), glob("subprocess", "Popen"), text("__init__")), SHELL),
    "getattr of a stand-in": call(
        call(glob("builtins", "getattr"), glob("a", "B"), text("__init__")), glob("subprocess", "getoutput"), SHELL
    ),
    "__setstate__": glob("harm", "Setter") + b")\x81" + text(TOUCH) + b"b",
    "state of two": glob("harm", "Setter") + b")\x81(}" + text("__class__") + text("x") + b"stb",
    "a class of its own": call(glob("builtins", "type"), text("x"), b")", b"}"),
    "__new__": glob("subprocess", "Popen") + b"(" + SHELL + b"t\x81",
    "append": glob("harm", "List") + b")\x81(" + text("x") + b"e",
    "set item": glob("harm", "Dict") + b")\x81(" + text("x") + text("y") + b"u",
    "an allowed function with a strange one": call(
        glob("torch._tensor", "_rebuild_from_type_v2"),
        glob("subprocess", "getoutput"),
        glob("a", "B"),
        b"(",
        SHELL,
        b"tN",
    ),
    "a subclass of tensors": call(glob("torch._utils", "_rebuild_wrapper_subclass"), glob("os.path", "exists"), SHELL),
    "INST": b"(" + SHELL + b"isubprocess\ngetoutput\n",
    "OBJ": b"(" + glob("subprocess", "getoutput") + SHELL + b"o",
    "STACK_GLOBAL": call(text("subprocess") + text("getoutput") + b"\x93", SHELL),
    "EXT": b"\x82\x01",
    "a storage's class": storage(glob("os", "system")),
    "a storage's strange class": storage(glob("harm", "Storage")),
    "a storage that is missing": storage(glob("torch", "FloatStorage"), "../x"),
    "a module id": b"(" + text("module") + glob("harm", "Net") + text("harm.py") + text("x") + b"tQ",
    "an empty id": b")Q",
    "no text": b"c\xff\xfe\nx\n",
    "an empty stack": b"000",
}


def write_attack(path, instructions, zipped):
    """Write {"state_dict": {}, "scheduler": <instructions>} in torch's zip or its older format."""
    body = b"\x80\x02}(" + text("state_dict") + b"}" + text("scheduler") + instructions + b"u."
    if not zipped:
        plain = io.BytesIO()
        torch.save({}, plain, _use_new_zipfile_serialization=False)
        head = plain.getvalue().split(b"\x80\x02}q\x00.")[0]
        path.write_bytes(head + body + b"\x80\x02]q\x00.")
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A folder on the import path with modules that leave a mark when they are imported; returns the mark's path."""
    mark, folder = tmp_path / "mark", tmp_path / "modules"
    folder.mkdir()
    for name in ("harm", "dho_test_harm", "hubconf"):
        (folder / f"{name}.py").write_text(TOUCH)
    monkeypatch.setenv(MARK, str(mark))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.chdir(tmp_path)
    write_attack(tmp_path / "harm.pt", call(glob("builtins", "exec"), text(TOUCH)), zipped=True)
    return mark


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.filterwarnings("ignore")
def test_no_code_of_a_file_runs(tmp_path, trap, monkeypatch, name, zipped):
    """Each file is refused, or read without its object; nothing that it names is imported, called or built."""
    write_attack(tmp_path / "x", ATTACKS[name], zipped)
    imported, real = [], builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest: imported.append(name) or real(name, *rest))
    try:
        loaded = load_checkpoint(tmp_path / "x")
    except CheckpointError:
        loaded = {}
    monkeypatch.undo()
    assert "scheduler" not in loaded
    assert not trap.exists()
    assert not {"harm", "dho_test_harm", "hubconf", "subprocess"} & {name.split(".")[0] for name in imported}
    assert not {"harm", "dho_test_harm", "hubconf"} & sys.modules.keys()


LOAD_ALL = """
import os, sys, torch
for path in sys.argv[1:]:
    try:
        torch.load(path, weights_only=False)
    except Exception:
        pass
    os.remove(os.environ["DHO_TEST_RAN"])  # fails if the file left no mark
"""


def test_the_attacks_are_real(tmp_path, trap):
    """Without restriction files of that kind do leave the mark."""
    files = []
    for name in ("builtins.exec", "nested name", "INST", "__setstate__"):
        for zipped in (True, False)[: 1 if name == "__setstate__" else 2]:  # a module is imported once
            files.append(str(tmp_path / f"{name} {zipped}"))
            write_attack(tmp_path / files[-1], ATTACKS[name], zipped)
    done = subprocess.run([sys.executable, "-c", LOAD_ALL, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_stand_ins_take_and_keep_nothing():
    item = ForeignObject(1, [2], None)
    item.__setstate__({"a": 1})
    assert not hasattr(item, "__dict__")
    with pytest.raises(AttributeError):
        item.a = 1


def test_an_optimizers_kind_of_dict_is_read_as_a_plain_one(tmp_path):
    torch.save({"state_dict": {}, "optimizer": defaultdict(dict, {0: {"a": 1}}), "x": WarmUp}, tmp_path / "x")
    assert read_foreign(tmp_path / "x") == {"state_dict": {}, "optimizer": {0: {"a": 1}}}


# Whole runs on files that are laid out as the released ones are.
COOP = ("CoOp", "prompt_learner", 50)
PROMPTSRC = ("PromptSRC", "VLPromptLearner", 20)
SIXTEEN = ("TRAINER.COOP.CTX_INIT", "")
TINY = {"text": 64, "vision": 64, "classes": 7}  # other classes than the run's: token_prefix and token_suffix go unread


@pytest.fixture
def evaluate(shared_command, tmp_path, monkeypatch):
    """Return a function that evaluates weights as a released file and gives the exit code and the trainer."""
    built, real = [], train.build_trainer
    monkeypatch.setattr(train, "build_trainer", lambda cfg: built.append(real(cfg)) or built[-1])

    def run(method, weights, *options):
        trainer, folder, epoch = method
        (tmp_path / folder).mkdir()
        torch.save(dassl_state(weights, epoch), tmp_path / folder / f"model.pth.tar-{epoch}")
        flags = ("--eval-only", "--model-dir", str(tmp_path), "--load-epoch", str(epoch))
        code = train.main(shared_command(trainer, tmp_path / "evaluation", *options, flags=flags))
        return code, built[-1]

    return run


def test_a_released_coop_is_evaluated(evaluate, tmp_path):
    weights = coop_weights(classes=7, width=64)
    code, trainer = evaluate(COOP, weights, *SIXTEEN)
    assert code == 0
    learner = trainer.student.prompt_learner
    assert torch.equal(learner.ctx, weights["ctx"].float())
    assert learner.token_prefix.shape[0] == 4
    assert (tmp_path / "evaluation" / "results.json").exists()


def test_a_released_promptsrc_is_evaluated(evaluate, tmp_path):
    weights = promptsrc_weights(depth=2, **TINY)
    code, trainer = evaluate(PROMPTSRC, weights)
    assert code == 0
    learned = {key: value for key, value in trainer.student.prompts.named_parameters() if value.requires_grad}
    assert sorted(learned) == sorted(key for key in weights if key.endswith(("ctx", "VPT", "VPT_shallow")))
    for key, value in learned.items():
        assert torch.equal(value, weights[key].float())
    frozen = trainer.clip().model.state_dict()
    assert not torch.equal(frozen["visual.class_embedding"], weights["prompt_learner.ZS_image_encoder.class_embedding"])
    assert frozen["logit_scale"].item() == pytest.approx(math.log(100))
    assert (tmp_path / "evaluation" / "results.json").exists()


@pytest.mark.parametrize(
    ("method", "weights", "options", "said"),
    [
        (COOP, coop_weights(n_ctx=4, width=64), SIXTEEN, r"ctx has shape \(4, 64\), .*prompt_learner has \(16, 64\)"),
        (COOP, coop_weights(width=32), SIXTEEN, r"ctx has shape \(16, 32\), .*prompt_learner has \(16, 64\)"),
        (PROMPTSRC, promptsrc_weights(depth=1, **TINY), (), r"holds no .*resblocks\.1\.VPT_shallow"),
        (PROMPTSRC, promptsrc_weights(depth=3, **TINY), (), r"resblocks\.2\.VPT_shallow"),
        (
            *(PROMPTSRC, promptsrc_weights(depth=2, **TINY), ("TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", "0")),
            r"image_encoder\.VPT",
        ),
        (
            *(PROMPTSRC, promptsrc_weights(depth=2, **TINY), ("TRAINER.PROMPTSRC.N_CTX_VISION", "2")),
            r"image_encoder\..*VPT.* has shape \(4, 64\), this model's VLPromptLearner has \(2, 64\)",
        ),
        (
            *(PROMPTSRC, promptsrc_weights(depth=2, **TINY), ("TRAINER.PROMPTSRC.N_CTX_TEXT", "3")),
            r"prompt_learner\.ctx has shape \(4, 64\), this model's VLPromptLearner has \(3, 64\)",
        ),
    ],
    ids=["length", "width", "shallower", "deeper", "no visual", "visual length", "text length"],
)
def test_a_file_of_other_settings_is_one_message(evaluate, tmp_path, capsys, method, weights, options, said):
    code, _ = evaluate(method, weights, *options)
    assert code == 2
    assert re.search(f"CheckpointError: .*model.pth.tar-{method[2]}.*{said}", capsys.readouterr().err)
    assert not (tmp_path / "evaluation" / "results.json").exists()
