"""One matrix over all methods: train, save, load, resume, evaluate, class subsets, precision, edge cases, gradients.

What each method is run with (its published config, and what tiny CLIPs need) stands in CONFIGS of conftest.py.
"""

import json
from functools import cache
from pathlib import Path

import dho_plugin.trainers  # noqa: F401 (fills the registry)
import pytest
import timm
import torch
from torch import nn

from dho_plugin.data.imagenet import ImageNetR
from dho_plugin.engine.checkpoint import load_checkpoint
from dho_plugin.engine.evaluator import TestLogits as StoredLogits
from dho_plugin.engine.registry import DATASET_REGISTRY, TRAINER_REGISTRY
from dho_plugin.engine.trainer import TrainerX
from dho_plugin.models.image_tower import PromptedImageTower
from dho_plugin.models.student import CLIPStudent
from dho_plugin.train import main

CE_HEAD = {"ce_head.weight", "ce_head.bias"}
VISUAL = {"image_encoder.VPT", "image_encoder.transformer.resblocks.1.VPT_shallow"}
TEXTUAL = {"prompt_learner.ctx", "text_encoder.transformer.resblocks.1.VPT_shallow"}
# Method -> everything that learns, as <checkpoint folder>.<parameter>; the tiny CLIPs have two layers a tower.
METHODS = {
    "LinearProbe": CE_HEAD,
    "VPT": CE_HEAD | {f"prompt_learner.{key}" for key in VISUAL},
    "CoOp": {"prompt_learner.ctx"},
    "PromptSRC": {f"VLPromptLearner.{key}" for key in VISUAL | TEXTUAL},
}
LEARNS = METHODS | {f"{name}_DHO": keys | {"kd_head.weight"} for name, keys in METHODS.items()}
BACKBONE = {f"backbone.{key}" for key, _ in timm.create_model("test_resnet", num_classes=0).named_parameters()}
TWO_HEADS = BACKBONE | CE_HEAD | {"kd_head.weight", "kd_head.bias"}
PROJECTION = {"projection.weight", "projection.bias"}
DISTILL = {
    **dict.fromkeys(("Distill_CE", "Distill_KD", "Distill_CEKD"), BACKBONE | CE_HEAD),
    **dict.fromkeys(("Distill_DHO", "Distill_SSKD", "Distill_DHKD"), TWO_HEADS),
    "Distill_KDFeature": BACKBONE | PROJECTION,
    "Distill_CEKDFeature": BACKBONE | CE_HEAD | PROJECTION,
}
LEARNS |= DISTILL
PROMPTED = ("VPT", "VPT_DHO", "PromptSRC", "PromptSRC_DHO")

ZERO_SHOT = ("ZeroshotCLIP", "ZeroshotCLIP2")
FEW_SHOT = ("TipAdapter", "TipAdapterF")  # see test_tip_adapter.py
SETS = {"val", "imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a"}

every_method = pytest.mark.parametrize("trainer", LEARNS)


def run(line: list[str]) -> Path:
    """Run a command line that must succeed; return its output folder."""
    assert main(line) == 0
    return Path(line[line.index("--output-dir") + 1])


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def folders(trainer: str) -> set[str]:
    return {key.split(".")[0] for key in LEARNS[trainer]}


def checkpoints(folder: Path, trainer: str) -> dict:
    """Return everything that a run saved after its last epoch, but the time it took."""
    saved = {name: load_checkpoint(folder / name / "model.pth.tar-3") for name in sorted(folders(trainer))}
    for checkpoint in saved.values():
        checkpoint["meta"].pop("seconds")
        checkpoint["meta"].pop("data_wait")
    return saved


def leaves(value, path: str = "") -> dict:
    """Return the tensors and plain values of nested containers by their path."""
    if not isinstance(value, dict | list | tuple):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, inner in items for k, v in leaves(inner, f"{path}/{key}").items()}


def assert_identical(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key], key


def logits(folder: Path, name: str) -> StoredLogits:
    return StoredLogits.load(folder / "logits" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def finished(shared_command):
    """Return a function that gives the folder of a method's finished run; each run is made once."""
    return cache(lambda trainer: run(shared_command(trainer, trainer)))


@pytest.fixture
def evaluated(finished, shared_command, tmp_path):
    """Return a function that evaluates a method's finished run and gives the folder of that."""

    def build(trainer: str, *options: str, dataset: str = "imagenet", flags: tuple[str, ...] = ()) -> Path:
        flags = ("--eval-only", "--model-dir", str(finished(trainer)), *flags)
        return run(shared_command(trainer, tmp_path / f"{dataset}{len(flags)}", *options, dataset=dataset, flags=flags))

    return build


@pytest.fixture
def start(shared_command, started, tmp_path):
    """Return a function that gives a trainer before its first step, and that step's batches."""

    def build(trainer: str, *options: str):
        built = started(shared_command(trainer, tmp_path / "started", *options))
        return built, [next(stream) for stream in built.streams]

    return build


# Train and save -----------------------------------------------------------------------------------------------------


@every_method
def test_a_run_trains_tests_and_saves_what_learns(finished, trainer):
    metrics = results(finished(trainer))["metrics"]
    assert set(metrics) == SETS
    assert all(0 <= m["accuracy"] <= 100 for m in metrics.values())
    assert ("kd_head_accuracy" in metrics["val"]) == trainer.endswith("_DHO")
    saved = checkpoints(finished(trainer), trainer)
    derived = ("token_prefix", "token_suffix")  # of the class names, kept in the files as the originals keep them
    derived += ("running_mean", "running_var", "num_batches_tracked", "ce_head.text")
    keys = {f"{name}.{key}" for name, checkpoint in saved.items() for key in checkpoint["state_dict"]}
    assert {key for key in keys if not key.endswith(derived)} == LEARNS[trainer]
    assert all(checkpoint["epoch"] == 3 for checkpoint in saved.values())


@every_method
def test_gradients_reach_exactly_what_learns(start, trainer):
    built, batches = start(trainer)
    learnable = {f"{n}.{k}": p for n, m in built._models.items() for k, p in m.named_parameters()}
    assert set(learnable) == LEARNS[trainer]
    everything = {**dict(built.net.named_parameters()), **dict(built.clip().model.named_parameters())}
    if built.teacher:
        everything |= {f"teacher.{k}": p for k, p in built.teacher.model.named_parameters()}
    for module in built.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # 0 at the end of a new ResNet's branches: nothing gets through at first
    before = {key: p.detach().clone() for key, p in everything.items()}
    for schedule in filter(None, built._scheds.values()):  # a warm-up in steps starts at a rate of 0
        schedule.optimizer.param_groups[0]["lr"] = 0.1
    built.forward_backward(*batches)
    meant = {id(p) for p in learnable.values()}
    assert meant <= {id(p) for p in everything.values()}
    for key, p in everything.items():
        assert (p.grad is not None and p.grad.abs().sum() > 0) == (id(p) in meant), key
        assert torch.equal(p, before[key]) == (id(p) not in meant), key


@pytest.mark.parametrize("trainer", DISTILL)
def test_all_images_go_through_a_compact_student_in_one_batch(start, trainer):
    built, batches = start(trainer)
    sizes = []
    built.clip().model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    built.forward_backward(*batches)
    assert sizes == [4 if trainer == "Distill_CE" else 8]


@pytest.mark.parametrize("trainer", sorted(LEARNS.keys() - DISTILL.keys()))
def test_images_go_through_the_image_tower_once_a_step(start, monkeypatch, trainer):
    built, batches = start(trainer, "MODEL.FEATURES", "online")  # other tests store those of the same images
    calls = {"prompted": [], "frozen": []}
    visual, forward, frozen = built.clip().model.visual, PromptedImageTower.forward, CLIPStudent.frozen_features
    blocks = []
    hook = visual.transformer.resblocks[0].register_forward_hook(lambda _, inputs, __: blocks.append(len(inputs[0])))
    monkeypatch.setattr(PromptedImageTower, "forward", lambda s, x: calls["prompted"].append(len(x)) or forward(s, x))
    monkeypatch.setattr(CLIPStudent, "frozen_features", lambda s, x: calls["frozen"].append(len(x)) or frozen(s, x))
    built.forward_backward(*batches)
    hook.remove()
    stacked = 8 if trainer.endswith("_DHO") else 4  # 4 labeled, 4 unlabeled
    assert calls["prompted"] == ([stacked] if trainer in PROMPTED else [])
    reference = [4] if trainer.startswith("PromptSRC") else []  # its regularisers look at the frozen CLIP
    assert calls["frozen"] == (reference if trainer in PROMPTED else [stacked])
    assert sorted(blocks) == sorted(calls["prompted"] + calls["frozen"])


# Load, resume, evaluate ---------------------------------------------------------------------------------------------


class InterruptedRunError(Exception):
    pass


@every_method
def test_an_interrupted_run_ends_as_an_undisturbed_one(finished, shared_command, monkeypatch, trainer):
    line, report = shared_command(trainer, f"{trainer}_interrupted"), TrainerX.report_step

    def stop(self, *meters):
        report(self, *meters)
        if self.epoch == 2:  # one step after the last checkpoint
            raise InterruptedRunError

    with monkeypatch.context() as patch:
        patch.setattr(TrainerX, "report_step", stop)
        with pytest.raises(InterruptedRunError):
            main(line)
    folder, whole = run(line), finished(trainer)
    assert "will resume training" in (folder / "log.txt").read_text()
    assert results(folder)["metrics"] == results(whole)["metrics"]
    assert_identical(checkpoints(folder, trainer), checkpoints(whole, trainer))
    if trainer.startswith("PromptSRC"):
        sums = next(iter(checkpoints(folder, trainer).values()))["meta"]["gpa"]["sums"]
        assert set(sums) == LEARNS[trainer]


@every_method
def test_evaluation_gives_the_runs_own_numbers(finished, evaluated, trainer):
    for flags in ((), ("--load-epoch", "3")):
        assert results(evaluated(trainer, flags=flags))["metrics"] == results(finished(trainer))["metrics"]


@every_method
@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_a_set_with_some_of_the_classes_is_scored_with_the_trained_model(finished, evaluated, trainer, name):
    folder = evaluated(trainer, dataset=name)
    assert results(folder)["metrics"] == {name: results(finished(trainer))["metrics"][name]}
    assert logits(folder, name).logits_ce.shape == (4, 2)  # 2 of 4 classes, 2 images each


class Backwards(ImageNetR):
    """ImageNet-R with its classes in the other order."""

    test_name = "backwards"

    def _label_order(self, folder, found, names):
        return found[::-1], found[::-1]


@every_method
def test_classes_in_another_order_meet_their_own_columns(finished, evaluated, monkeypatch, trainer):
    monkeypatch.setitem(DATASET_REGISTRY._entries, "Backwards", Backwards)
    ours = logits(evaluated(trainer, "DATASET.NAME", "Backwards", dataset="imagenet_r"), "backwards")
    forwards = logits(finished(trainer), "imagenet_r")
    for there, here in ((forwards.logits_ce, ours.logits_ce), (forwards.logits_kd, ours.logits_kd)):
        if there is not None:  # the classes' images come in the classes' order, two of each
            assert_identical(here, torch.cat([there[2:], there[:2]]).flip(1))


# Settings that hold for all -----------------------------------------------------------------------------------------


def step(start, trainer: str, precision: str = "fp32"):
    """Take one step; return its loss and all gradients in a row."""
    built, batches = start(trainer, f"TRAINER.{TRAINER_REGISTRY.get(trainer).cfg_node}.PREC", precision)
    loss = built.forward_backward(*batches)["loss"].item()
    return loss, torch.cat([p.grad.flatten() for m in built._models.values() for p in m.parameters()])


@every_method
def test_bf16_stays_close_to_fp32(start, trainer):
    (exact, gradient), (loss, half) = step(start, trainer), step(start, trainer, "bf16")
    assert loss == pytest.approx(exact, rel=0.1)  # logits of up to 100 from features of 8 bits
    assert loss != exact
    assert torch.cosine_similarity(half, gradient, dim=0) > (0.85 if trainer in DISTILL else 0.95)  # BatchNorm over 4


@every_method
def test_fp16_autocast_stays_close_to_fp32(start, trainer):
    """What a GPU computes with fp16 or amp, on a CPU's autocast; the gradient scaler is left out."""
    exact, gradient = step(start, trainer)
    with torch.autocast("cpu", torch.float16):
        loss, half = step(start, trainer)
    assert loss == pytest.approx(exact, rel=0.01)
    assert loss != exact
    assert torch.cosine_similarity(half, gradient, dim=0) > (0.95 if trainer in DISTILL else 0.99)


@every_method
@pytest.mark.parametrize("precision", ["fp16", "amp"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_half_precision_falls_back_to_fp32_on_a_cpu(start, capsys, trainer, precision):
    loss, gradient = step(start, trainer, precision)
    assert f"Precision {precision} needs a GPU: computing in fp32" in capsys.readouterr().out
    assert_identical([loss, gradient], step(start, trainer))


@every_method
@pytest.mark.parametrize("classes", [1, 2])
def test_one_and_two_classes(shared_command, trainer, classes):
    folder = run(shared_command(trainer, f"{trainer}_{classes}_classes", classes=classes))
    metrics = results(folder)["metrics"]
    assert set(metrics) == (SETS if classes == 2 else SETS - {"imagenet_a"})
    assert metrics["imagenet_r"]["accuracy"] == 100  # it has one class, in either world
    if classes == 1:
        assert metrics["val"]["accuracy"] == 100
        assert "ImageNetA is left out" in (folder / "log.txt").read_text()
    for checkpoint in checkpoints(folder, trainer).values():
        assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())


@pytest.mark.parametrize("trainer", ["VPT_DHO", "PromptSRC_DHO"])
def test_the_number_of_workers_does_not_matter(finished, shared_command, trainer):
    folder = run(shared_command(trainer, f"{trainer}_workers", "DATALOADER.NUM_WORKERS", "2"))
    assert_identical(checkpoints(folder, trainer), checkpoints(finished(trainer), trainer))


@every_method
def test_another_seed_is_another_run(finished, shared_command, trainer):
    folder = run(shared_command(trainer, f"{trainer}_seed", flags=("--seed", "2")))
    own, other = checkpoints(finished(trainer), trainer), checkpoints(folder, trainer)
    for name in own:
        state = other[name]["state_dict"]
        assert not all(torch.equal(value, state[key]) for key, value in own[name]["state_dict"].items())


# Nothing learns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ZERO_SHOT)
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_zero_shot(shared_command, trainer, classes):
    folder = run(shared_command(trainer, f"{trainer}_{classes}", classes=classes, flags=("--eval-only",)))
    found = results(folder)
    assert set(found["metrics"]) == (SETS if classes > 1 else SETS - {"imagenet_a"})
    assert (found["shots"], found["seed"], found["teacher"]) == (None, None, None)


@pytest.mark.parametrize("trainer", ZERO_SHOT)
def test_zero_shot_on_a_subset_is_cut_out_of_its_own_classes(shared_command, trainer):
    whole = run(shared_command(trainer, f"{trainer}_whole", flags=("--eval-only",)))
    part = run(shared_command(trainer, f"{trainer}_part", dataset="imagenet_r", flags=("--eval-only",)))
    torch.testing.assert_close(
        logits(part, "imagenet_r").logits_ce, logits(whole, "imagenet_r").logits_ce, rtol=1e-4, atol=1e-3
    )


def test_every_registered_method_is_in_the_matrix():
    assert {*LEARNS, *ZERO_SHOT, *FEW_SHOT} == set(TRAINER_REGISTRY.registered_names())
