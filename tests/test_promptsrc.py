"""One whole step of PromptSRC and its aggregation over epochs, against float64 from the published formulas."""

import json
import math

import pytest
import torch
from dho_plugin.trainers import promptsrc
from torch.nn.functional import normalize

from dho_plugin.engine.averaging import WeightedSum
from dho_plugin.engine.checkpoint import load_checkpoint
from dho_plugin.engine.trainer import TrainerX
from dho_plugin.evaluation import HeadEvaluation
from dho_plugin.models.templates import IMAGENET_TEMPLATES, PROMPTSRC_TEMPLATES
from dho_plugin.train import main

LR, DECAY = 0.0025, 5e-4
KEYS = (
    "prompt_learner.ctx",
    "text_encoder.transformer.resblocks.1.VPT_shallow",
    "image_encoder.VPT",
    "image_encoder.transformer.resblocks.1.VPT_shallow",
)


@pytest.fixture
def start(shared_command, started, tmp_path):
    """Return a function that gives a trainer whose prompts have moved, and its first batches."""

    def build(trainer: str, *options: str):
        built = started(shared_command(trainer, tmp_path / "run", "OPTIM.WARMUP_EPOCH", "0", *options))
        with torch.no_grad():  # away from "a photo of a" and from zero
            for p in built.student.learnable()["VLPromptLearner"].parameters():
                p.add_(torch.randn(p.shape) * 0.1)
        return built, [next(stream) for stream in built.streams]

    return build


def log_probs(logits):
    return logits - logits.exp().sum(1, keepdim=True).log()


def kl(p, q):
    return (p.exp() * (p - q)).sum()


class Expected:
    """The published losses of one step, of float64 copies of what learns."""

    def __init__(self, built, student, teacher):
        self.clip, self.teacher, self.built = student, teacher, built
        learnable = dict(built.student.learnable()["VLPromptLearner"].named_parameters())
        if built.dho:
            learnable["kd_head"] = built.kd_head.weight
        self.own = learnable
        self.parameters = {k: p.detach().double().requires_grad_() for k, p in learnable.items()}
        self.names = [info.name for info in built.classes]

    def texts(self, clip, template):
        tokens = self.built.clip().tokenizer([template.format(name) for name in self.names])
        return clip.state["token_embedding.weight"][tokens], tokens.argmax(1)

    def fixed_text(self, clip, templates, each):
        features = [clip.text(*self.texts(clip, template)) for template in templates]
        return normalize(sum(normalize(f, dim=1) if each else f for f in features) / len(templates), dim=1)

    def promptsrc(self, images, labels):
        """CE + 25 L1(text) + 10 L1(image) + KL of the frozen logits to the prompted ones (PromptSRC, eq. 3 to 7)."""
        ctx, deep_text, *visual = (self.parameters[key] for key in KEYS)
        prompts, eot = self.texts(self.clip, "a photo of a {}.")
        prompts = torch.stack([torch.cat([row[:1], ctx, row[5:]]) for row in prompts])
        text = normalize(self.clip.text(prompts, eot, [deep_text]), dim=1)
        z, z0 = (normalize(self.clip.image(images, p), dim=1) for p in (visual, []))
        text0 = self.fixed_text(self.clip, PROMPTSRC_TEMPLATES, each=False)
        logits, logits0 = log_probs(100 * z @ text.T), log_probs(100 * z0 @ text0.T)
        ce = -logits[range(len(labels)), labels].mean()
        scl = 25 * (text - text0).abs().mean() + 10 * (z - z0).abs().mean() + kl(logits0, logits) / logits.numel()
        return ce, scl

    def kd(self, batches, eta):
        """The KL of DHO, Eq. 7, on labeled and unlabeled images, with the released code's eta^2."""
        visual, total = [self.parameters[key] for key in KEYS[2:]], 0
        head = normalize(self.parameters["kd_head"], dim=1)
        teacher_text = self.fixed_text(self.teacher, IMAGENET_TEMPLATES, each=True)
        for batch in batches:
            teacher = 100 * normalize(self.teacher.image(batch["img_teacher"], []), dim=1) @ teacher_text.T
            ours = 100 * normalize(self.clip.image(batch["img"], visual), dim=1) @ head.T
            total = total + kl(log_probs(teacher / eta), log_probs(ours / eta)) / len(ours) * eta**2
        return total

    def assert_step(self, before):
        """Compare gradients, and the parameters after one step of SGD with the published decay."""
        for key, expected in self.parameters.items():
            grad = expected.grad
            assert grad.norm() > 1e-4, key
            assert (self.own[key].grad.double() - grad).norm() < 1e-4 * grad.norm(), key
            after = before[key].double() - LR * (grad + DECAY * before[key].double())
            assert (self.own[key].double() - after).norm() < 1e-5 * after.norm(), key
            moved = self.own[key].detach().double() - before[key].double()
            assert (moved - (after - before[key].double())).norm() < 1e-2 * moved.norm(), key


@pytest.fixture(scope="session")
def references(tiny_weights, reference_clip):
    """The tiny student and teacher in float64."""
    return tuple(reference_clip(torch.load(path, weights_only=True)) for path in tiny_weights)


def test_one_step_is_the_published_one(start, references):
    built, batches = start("PromptSRC")
    expected = Expected(built, *references)
    before = {key: p.detach().clone() for key, p in expected.own.items()}
    ce, scl = expected.promptsrc(batches[0]["img"], batches[0]["label"])
    (ce + scl).backward()
    summary = built.forward_backward(*batches)
    assert summary["loss"].item() == pytest.approx((ce + scl).item(), rel=1e-4)
    assert summary["loss_extra"].item() == pytest.approx(scl.item(), rel=1e-4)
    expected.assert_step(before)


@pytest.mark.parametrize("unlabeled", ["True", "False"])
def test_lambda_weighs_the_whole_loss_of_promptsrc_against_the_distillation(start, references, unlabeled):
    options = ("TRAINER.DHO.LAMBDA", "0.3", "TRAINER.DHO.ETA", "1.5", "TRAINER.DHO.UNLABELED", unlabeled)
    built, batches = start("PromptSRC_DHO", *options)
    assert len(batches) == (2 if unlabeled == "True" else 1)
    expected = Expected(built, *references)
    before = {key: p.detach().clone() for key, p in expected.own.items()}
    ce, scl = expected.promptsrc(batches[0]["img"], batches[0]["label"])
    kd = expected.kd(batches, 1.5)
    total = 0.3 * (ce + scl) + 0.7 * kd
    total.backward()
    summary = built.forward_backward(*batches)
    for name, value in (("loss", total), ("loss_ce", ce), ("loss_extra", scl), ("loss_kd", kd)):
        assert summary[name].item() == pytest.approx(value.item(), rel=1e-4), name
    expected.assert_step(before)


@pytest.mark.parametrize(("text", "image"), [("0.0", "0.0"), ("3.0", "0.5")])
def test_the_weights_are_the_configs(start, text, image):
    built, batches = start(
        "PromptSRC", "TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT", text, "TRAINER.PROMPTSRC.IMAGE_LOSS_WEIGHT", image
    )
    student, images = built.student, batches[0]["img"]
    features = student.features(images)
    logits = student.logits_ce(features)
    with torch.no_grad():
        found = student.extra_loss(images, features, logits).item()
        z, z0, t, t0 = (
            normalize(f, dim=1)
            for f in (features, student.frozen_features(images), student.text_classifier(), student.fixed_text)
        )
        p, q = (100 * z0 @ t0.T).log_softmax(1), (100 * z @ t.T).log_softmax(1)
    expected = float(text) * (t - t0).abs().mean() + float(image) * (z - z0).abs().mean() + kl(p, q) / logits.numel()
    assert found == pytest.approx(expected.item(), rel=1e-3)


# The aggregation -----------------------------------------------------------------------------------------------------

GPA = ("OPTIM.MAX_EPOCH", "4", "TRAINER.PROMPTSRC.GPA_MEAN", "3", "TRAINER.PROMPTSRC.GPA_STD", "1")
GPA += ("OPTIM.WARMUP_EPOCH", "0", "TRAIN.CHECKPOINT_FREQ", "1", "OPTIM.LR", "0.1")


def state(folder, name, epoch):
    return load_checkpoint(folder / name / f"model.pth.tar-{epoch}")["state_dict"]


@pytest.mark.parametrize("trainer", ["PromptSRC", "PromptSRC_DHO"])
def test_the_last_epoch_leaves_the_weighted_average_of_all(shared_command, tmp_path, monkeypatch, trainer):
    seen, add = [], WeightedSum.add

    def watched(self, weight):
        seen.append({key: p.detach().clone() for key, p in self._parameters.items()})
        add(self, weight)

    monkeypatch.setattr(WeightedSum, "add", watched)
    assert main(shared_command(trainer, tmp_path / "run", *GPA)) == 0
    raw = [math.exp(-((epoch - 3) ** 2) / 2) for epoch in (1, 2, 3, 4)]
    names = [f"VLPromptLearner.{key}" for key in KEYS] + (["kd_head.weight"] if trainer.endswith("_DHO") else [])
    assert sorted(seen[0]) == sorted(names)
    for name in names:
        folder, key = name.split(".", 1)
        average = sum(w / sum(raw) * epoch[name].double() for w, epoch in zip(raw, seen, strict=True))
        last = state(tmp_path / "run", folder, 4)[key].double()
        assert (last - average).norm() < 1e-6 * average.norm()
        assert (last - seen[3][name].double()).norm() > 1e-4 * average.norm()
        for epoch in (1, 2, 3):  # until then training goes on from its own weights
            assert torch.equal(state(tmp_path / "run", folder, epoch)[key], seen[epoch - 1][name])


def test_a_run_interrupted_in_its_test_is_not_averaged_again(shared_command, tmp_path, monkeypatch):
    line = shared_command("PromptSRC_DHO", tmp_path / "run", *GPA)
    with monkeypatch.context() as patch:
        patch.setattr(HeadEvaluation, "test", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(line)
    before = {name: state(tmp_path / "run", name, 4) for name in ("VLPromptLearner", "kd_head")}
    assert main(line) == 0
    for name, saved in before.items():
        assert all(torch.equal(value, state(tmp_path / "run", name, 4)[key]) for key, value in saved.items())
    assert main(shared_command("PromptSRC_DHO", tmp_path / "whole", *GPA)) == 0
    metrics = [json.loads((tmp_path / out / "results.json").read_text())["metrics"] for out in ("run", "whole")]
    assert metrics[0] == metrics[1]


def test_a_run_without_its_running_average_cannot_go_on(shared_command, tmp_path, capsys):
    line = shared_command("PromptSRC", tmp_path / "run", *GPA)
    assert main(line) == 0
    path = tmp_path / "run/VLPromptLearner/model.pth.tar-4"
    checkpoint = load_checkpoint(path)
    del checkpoint["meta"]["gpa"]
    torch.save(checkpoint, path)
    (tmp_path / "run/results.json").unlink()
    assert main(line) == 2
    assert "no running average" in capsys.readouterr().err


@pytest.mark.parametrize("change", [("OPTIM.MAX_EPOCH", "6"), ("TRAINER.PROMPTSRC.GPA_STD", "2")])
def test_an_average_does_not_go_on_with_other_weights(shared_command, tmp_path, capsys, monkeypatch, change):
    """From a complete run its own average would count as one more epoch."""
    source = shared_command("PromptSRC", tmp_path / "source", *GPA)
    with monkeypatch.context() as patch:
        patch.setattr(
            promptsrc.PromptSRC, "before_epoch", lambda self: 1 / 0 if self.epoch == 2 else TrainerX.before_epoch(self)
        )
        with pytest.raises(ZeroDivisionError):
            main(source)
    flags = ("--resume", str(tmp_path / "source"))
    assert main(shared_command("PromptSRC", tmp_path / "same", *GPA, flags=flags)) == 0
    assert main(shared_command("PromptSRC", tmp_path / "other", *GPA, *change, flags=flags)) == 2
    assert "GPA_MEAN, GPA_STD" in capsys.readouterr().err


def test_evaluation_does_without_the_fixed_text_features(shared_command, tmp_path, monkeypatch):
    assert main(shared_command("PromptSRC", tmp_path / "run")) == 0
    monkeypatch.setattr(promptsrc, "class_features", None)
    assert (
        main(shared_command("PromptSRC", tmp_path / "e", flags=("--eval-only", "--model-dir", str(tmp_path / "run"))))
        == 0
    )


# Settings ------------------------------------------------------------------------------------------------------------


def test_depth_0_leaves_the_image_tower_as_it_is(start, tmp_path):
    built, batches = start("PromptSRC", "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", "0")
    assert sorted(built.student.learnable()["VLPromptLearner"]) == ["prompt_learner", "text_encoder"]
    images = batches[0]["img"]
    torch.testing.assert_close(built.student.features(images), built.clip().model.encode_image(images))
    assert torch.isfinite(built.forward_backward(*batches)["loss"])


@pytest.mark.parametrize(
    ("n_text", "init", "shape"), [("2", "a photo of a", 2), ("4", "", 4), ("6", "a photo of a", 6)]
)
def test_lengths_of_the_text_prompts(start, n_text, init, shape):
    built, batches = start("PromptSRC", "TRAINER.PROMPTSRC.N_CTX_TEXT", n_text, "TRAINER.PROMPTSRC.CTX_INIT", init)
    prompts = dict(built.student.learnable()["VLPromptLearner"].named_parameters())
    assert [prompts[key].shape[0] for key in KEYS] == [shape, shape, 4, 4]
    assert torch.isfinite(built.forward_backward(*batches)["loss"])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("PROMPT_DEPTH_TEXT", "0", "PROMPT_DEPTH_TEXT is 0; allowed: 1 to 2"),
        ("PROMPT_DEPTH_TEXT", "3", "PROMPT_DEPTH_TEXT is 3; allowed: 1 to 2"),
        ("PROMPT_DEPTH_VISION", "9", "PROMPT_DEPTH_VISION is 9; allowed: 0 to 2"),
        ("N_CTX_TEXT", "3", ""),
        ("CTX_INIT", "a photo", "N_CTX_TEXT is 4, but CTX_INIT 'a photo' has 2 tokens"),
        ("N_CTX_TEXT", "0", "TRAINER.PROMPTSRC.N_CTX_TEXT is 0; it must be at least 1"),
        ("N_CTX_VISION", "0", "TRAINER.PROMPTSRC.N_CTX_VISION is 0; it must be at least 1"),
        ("N_CTX_TEXT", "74", "N_CTX_TEXT: 74 context tokens"),
        ("GPA_STD", "0", "GPA_STD is 0"),
    ],
)
def test_settings_that_cannot_be(shared_command, tmp_path, capsys, key, value, said):
    code = main(shared_command("PromptSRC", tmp_path / "run", f"TRAINER.PROMPTSRC.{key}", value, flags=("--no-train",)))
    assert code == (2 if said else 0)
    assert said in capsys.readouterr().err
