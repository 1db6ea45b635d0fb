"""Students that learn as a whole: what each method's step computes, which head predicts, and CLIP students."""

import json
import math
from pathlib import Path

import pytest
import torch
from dho_plugin.trainers.distill_features import FeatureDistillation
from torch import nn

from dho_plugin.engine.checkpoint import load_checkpoint
from dho_plugin.engine.evaluator import TestLogits as StoredLogits
from dho_plugin.errors import ConfigError
from dho_plugin.runs import load_run
from dho_plugin.train import main

CLIP = ("MODEL.BACKBONE.NAME", "ViT-B/16", "MODEL.BACKBONE.PRETRAINED", "True", "MODEL.BACKBONE.SIZE", "0")


@pytest.fixture
def build(shared_command, started, tmp_path):
    """Return a function that gives a trainer before its first step."""

    def go(trainer: str, *options: str):
        return started(shared_command(trainer, tmp_path / f"run{len(list(tmp_path.iterdir()))}", *options))

    return go


def clip_options(tiny_weights, *more: str) -> tuple[str, ...]:
    return (*CLIP, "MODEL.BACKBONE.CKPT", tiny_weights[0], *more)


def step(trainer) -> tuple[list[dict], float]:
    """Return a step's batches and its loss, before anything has changed."""
    batches = [next(stream) for stream in trainer.streams]
    with torch.no_grad():
        return batches, trainer.loss(*batches)[0].item()


# Losses of a step, computed anew from the modules' outputs ---------------------------------------------------------


def kl(teacher, student, eta=2.0):
    p, q = (torch.softmax(logits.double() / eta, dim=1) for logits in (teacher, student))
    return eta**2 * (p * (p / q).log()).sum(1).mean()


def outputs(trainer, batches):
    """Return features, CE logits, teacher's features and logits of a step's 4 + 4 images, in float64."""
    images = torch.cat([batch["img"] for batch in batches])
    seen = torch.cat([batch["img_teacher"] for batch in batches])
    z = trainer.student.backbone(images)  # in training mode: BatchNorm sees all of them
    t = trainer.teacher.model.model.encode_image(seen)
    text = trainer.teacher.model.head.weight
    cos = nn.functional.normalize(t.double(), dim=1) @ nn.functional.normalize(text.double(), dim=1).T
    return z, t.double(), 100 * cos


def cross_entropy(logits, labels):
    return -torch.log_softmax(logits.double(), dim=1)[range(len(labels)), labels].mean()


def linear(head, z):
    return z.double() @ head.weight.double().T + head.bias.double()


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def features_apart(kd, t):
    """Return CLIP-KD's loss of both batches; a mean over all 8 images counts twice, as each batch has 4."""
    return 2 * 2000 / 512 * ((unit(kd) - unit(t)) ** 2).sum(1).mean()


def binary_apart(kd, p):
    both = torch.log(4 * torch.sigmoid((kd - p) / 2) * torch.sigmoid((p - kd) / 2))
    return 2 * 0.1 * 4 * -(0.5 * both).sum(1).mean()


# The teacher's part of each method's loss; those without a label have no other.
TAUGHT = {
    "Distill_CEKD": lambda ce, kd, t, p: kl(p[:4], ce[:4]) + kl(p[4:], ce[4:]),
    "Distill_DHO": lambda ce, kd, t, p: kl(p[:4], kd[:4]) + kl(p[4:], kd[4:]),
    "Distill_SSKD": lambda ce, kd, t, p: kl(p[:4], ce[:4]) + kl(p[4:], kd[4:]),
    "Distill_KD": lambda ce, kd, t, p: kl(p[:4], ce[:4]) + kl(p[4:], ce[4:]),
    "Distill_CEKDFeature": lambda ce, kd, t, p: features_apart(kd, t),
    "Distill_KDFeature": lambda ce, kd, t, p: features_apart(kd, t),
    "Distill_DHKD": lambda ce, kd, t, p: binary_apart(kd, p),
}


@pytest.mark.parametrize("weight", [0.5, 0.3])
@pytest.mark.parametrize("name", TAUGHT)
def test_the_loss_of_a_step(build, name, weight):
    trainer = build(name, "TRAINER.DHO.LAMBDA", str(weight))
    batches, loss = step(trainer)
    with torch.no_grad():
        z, t, p = outputs(trainer, batches)
        ce = None if name == "Distill_KDFeature" else linear(trainer.student.ce_head, z)
        expected = TAUGHT[name](ce, linear(trainer.net.kd_head, z), t, p)
        if name not in ("Distill_KD", "Distill_KDFeature"):
            expected = weight * cross_entropy(ce[:4], batches[0]["label"]) + (1 - weight) * expected
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_ce_learns_from_labels_alone_whatever_lambda_is(build):
    trainer = build("Distill_CE", "TRAINER.DHO.LAMBDA", "0.3")
    batches, loss = step(trainer)
    assert len(batches) == 1
    with torch.no_grad():
        logits = linear(trainer.student.ce_head, trainer.student.backbone(batches[0]["img"]))
    assert loss == pytest.approx(cross_entropy(logits, batches[0]["label"]).item(), rel=1e-5)


def binary_kl(kd, p):
    """Return DHKD's loss of one batch, class by class, at temperature 3 and weight 0.2."""
    s, t = torch.sigmoid(kd / 3), torch.sigmoid(p / 3)
    divergence = t * (t / s).log() + torch.special.xlogy(1 - t, (1 - t) / (1 - s))
    return 0.2 * 9 * divergence.sum(1).mean()


SWITCHED = [
    ("Distill_DHO", "TRAINER.DHO.KD_ETA2 False", lambda kd, p: kl(p[:4], kd[:4]) / 4 + kl(p[4:], kd[4:]) / 4),
    (
        "Distill_DHO",
        "TRAINER.DHO.KD_ETA2 False TRAINER.DHO.ETA 5",
        lambda kd, p: (kl(p[:4], kd[:4], 5) + kl(p[4:], kd[4:], 5)) / 25,
    ),
    ("Distill_SSKD", "TRAINER.DISTILL.SOFT_LABELS False", lambda kd, p: kl(p[4:], kd[4:])),
    (
        "Distill_DHKD",
        "TRAINER.DISTILL.BINARY_NORM False TRAINER.DISTILL.BINARY_T 3 TRAINER.DISTILL.BINARY_WEIGHT 0.2",
        lambda kd, p: binary_kl(kd[:4], p[:4]) + binary_kl(kd[4:], p[4:]),
    ),
]


@pytest.mark.parametrize(("name", "options", "taught"), SWITCHED)
def test_the_loss_of_a_step_with_other_settings(build, name, options, taught):
    trainer = build(name, "TRAINER.DHO.LAMBDA", "0.3", *options.split())
    batches, loss = step(trainer)
    with torch.no_grad():
        z, _, p = outputs(trainer, batches)
        ce = cross_entropy(linear(trainer.student.ce_head, z)[:4], batches[0]["label"])
        expected = 0.3 * ce + 0.7 * taught(linear(trainer.net.kd_head, z), p)
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_feature_distillation_without_labels_is_classified_by_the_teachers_text_features(build):
    trainer = build("Distill_KDFeature")
    batches, _ = step(trainer)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        z = trainer.student.backbone(batches[0]["img"])
        cos = unit(linear(trainer.student.projection, z)) @ unit(trainer.teacher.model.head.weight.double()).T
        torch.testing.assert_close(trainer.net(batches[0]["img"])[0].double(), 100 * cos, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["Distill_KD", "Distill_KDFeature"])
def test_a_method_without_labels_sees_all_images_and_no_label(build, name):
    trainer = build(name)
    assert len(trainer.first_stream()) == 24  # of which 8 are labeled
    batches, loss = step(trainer)
    for batch in batches:
        batch["label"] = torch.zeros_like(batch["label"])
    with torch.no_grad():
        assert trainer.loss(*batches)[0].item() == pytest.approx(loss, rel=1e-6)


def test_equal_widths_need_no_projection(build, tiny_weights):
    trainer = build("Distill_CEKDFeature", *clip_options(tiny_weights))  # both have 32
    assert trainer.get_model_names() == ["backbone", "ce_head"]
    assert isinstance(trainer.net.kd_head, nn.Identity)


# Which head predicts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Distill_SSKD", "Distill_DHKD", "Distill_CEKD"])
def test_the_ce_head_predicts_alone(shared_command, tmp_path, name):
    line = shared_command(name, tmp_path / "run", "TRAINER.DHO.ALPHA", "0.0", "TRAINER.DHO.SEARCH", "True")
    assert main(line) == 0
    found = json.loads((tmp_path / "run/results.json").read_text())
    assert (found["alpha"], found["beta"]) == (None, None)
    stored = StoredLogits.load(tmp_path / "run/logits/val.safetensors")
    assert stored.logits_kd is None
    correct = (stored.logits_ce.argmax(1) == stored.labels).float().mean().item()
    assert found["metrics"]["val"]["accuracy"] == pytest.approx(100 * correct)
    assert "kd_head_accuracy" not in found["metrics"]["val"]
    assert (tmp_path / "run/kd_head").exists() == (name != "Distill_CEKD")  # it is trained all the same


def test_names_in_tables(build, tiny_weights):
    assert build("Distill_CEKD").display_name() == "test_resnet from scratch CE + KD (logit)"
    keys = ("TRAINER.DISTILL.INIT", "TRAINER.DHO.INIT", "TRAINER.DHO.KD_HEAD")
    for values, heads in (
        ("language language cosine", ""),
        ("language language linear", " (h_KD linear)"),
        ("language kaiming linear", " (h_KD kaiming linear)"),
        ("kaiming kaiming linear", " (h_CE kaiming, h_KD kaiming linear)"),
    ):
        options = [word for pair in zip(keys, values.split(), strict=True) for word in pair]
        trainer = build("Distill_DHO", *clip_options(tiny_weights), *options)
        assert trainer.display_name() == f"ViT-B/16{heads} DHO"
    mlp = build("Distill_DHO", "TRAINER.DHO.KD_HEAD", "mlp")
    assert mlp.display_name() == "test_resnet from scratch (h_KD mlp) DHO"


# BatchNorm ---------------------------------------------------------------------------------------------------------


def test_batch_norm_sees_labeled_and_unlabeled_images_stacked(build):
    trainer = build("Distill_DHO")
    batches = [next(stream) for stream in trainer.streams]
    norm, seen = next(m for m in trainer.student.modules() if isinstance(m, nn.BatchNorm2d)), []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    trainer.forward_backward(*batches)
    assert len(seen) == 1
    assert len(seen[0]) == 8
    expected = 0.1 * seen[0].mean(dim=(0, 2, 3))  # momentum 0.1, from 0
    torch.testing.assert_close(norm.running_mean, expected)


# CLIP students -----------------------------------------------------------------------------------------------------


def test_a_clip_student_learns_as_a_whole_but_for_its_text_tower(build, tiny_weights):
    trainer = build("Distill_DHO", *clip_options(tiny_weights))
    model = trainer.clip().model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.forward_backward(*[next(stream) for stream in trainer.streams])
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("visual.")}


def test_the_short_way_through_the_last_layer_has_the_plain_ways_gradients(build, tiny_weights):
    grads = []
    for tower in ("auto", "plain"):
        trainer = build("Distill_DHO", *clip_options(tiny_weights, "MODEL.IMAGE_TOWER", tower))
        assert (trainer.clip().image_path.name == "plain") == (tower == "plain")
        loss, _ = trainer.loss(*[next(stream) for stream in trainer.streams])
        loss.backward()
        grads.append({name: p.grad for name, p in trainer.student.backbone.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("ce", ["kaiming", "language"])
@pytest.mark.parametrize("kd", ["kaiming", "language"])
@pytest.mark.parametrize("align", ["linear", "cosine"])
def test_table_5s_switches(build, tiny_weights, ce, kd, align):
    words = ("TRAINER.DISTILL.INIT", ce, "TRAINER.DHO.INIT", kd, "TRAINER.DHO.KD_HEAD", align)
    trainer = build("Distill_DHO", *clip_options(tiny_weights, *words))
    text = trainer.head_init(trainer.clip(), "language")
    images = torch.rand(3, 3, 32, 32)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        z = trainer.student.features(images)
        logits_ce, logits_kd, _ = trainer.net(images)
    if ce == "language":
        torch.testing.assert_close(logits_ce, z @ text.T, rtol=1e-4, atol=1e-4)
    else:
        assert trainer.student.ce_head.weight.abs().max() <= 1 / math.sqrt(32)
    starts = torch.allclose(unit(trainer.kd_head.weight), text, atol=1e-5)
    assert starts == (kd == "language")
    if kd == "language":
        expected = (100 * unit(z) if align == "cosine" else z) @ text.T
        torch.testing.assert_close(logits_kd, expected, rtol=1e-4, atol=2e-3)


# Wrong settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TRAINER.DISTILL.INIT", "language"), r"TRAINER.DISTILL.INIT language: test_resnet has no text encoder"),
        (("TRAINER.DHO.INIT", "language"), r"TRAINER.DHO.INIT language: test_resnet has no text"),
        (("TRAINER.DHO.TEACHER.TYPE", "placebo"), "placebo.*learns as a whole"),
        (("TRAINER.DISTILL.CE_HEAD", "round"), "CE_HEAD is 'round'"),
        (("TRAINER.DISTILL.BINARY_T", "0"), "BINARY_T is 0"),
        (("MODEL.BACKBONE.NAME", "ViT-B/16"), "PRETRAINED False: ViT-B/16 is a CLIP"),
        (
            ("MODEL.BACKBONE.NAME", "ViT-B/16", "MODEL.BACKBONE.PRETRAINED", "True", "MODEL.BACKBONE.SIZE", "96"),
            "SIZE 96: ViT-B/16 is a CLIP, whose weights say its size",
        ),
        (
            ("TRAINER.DHO.TEACHER.TYPE", "run", "TRAINER.DHO.TEACHER.RUN", "x", "TRAINER.DHO.TEACHER.CLASSNAMES", "y"),
            "CLASSNAMES: a run has its own names",
        ),
        (("MODEL.BACKBONE.NAME", "resnet81"), r"neither timm nor open_clip has a model 'resnet81'; close.* resnet18,"),
        (("MODEL.FEATURES", "cached"), "image features change as it learns"),
    ],
)
def test_wrong_settings_are_named(build, options, message):
    with pytest.raises(ConfigError, match=message):
        build("Distill_DHO", *options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "Distill_KDFeature",
            ("TRAINER.DHO.TEACHER.TYPE", "few_shot"),
            "few_shot: Distill_KDFeature learns the teacher's",
        ),
        ("Distill_CEKDFeature", ("TRAINER.DHO.TEACHER.TYPE", "few_shot"), "lies behind them; use zero_shot"),
        ("Distill_KDFeature", ("TRAINER.DHO.TEACHER.TYPE", "run"), "which a run does not have"),
        ("Distill_SSKD", ("TRAINER.DHO.UNLABELED", "False"), "second head learns from unlabeled images alone"),
        ("Distill_DHO", ("MODEL.IMAGE_CHECKPOINTING", "True"), "test_resnet has BatchNorm"),
    ],
)
def test_what_a_method_cannot_do_is_refused(build, name, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, *options)


def test_an_answer_needs_no_teacher(finished_run, monkeypatch):
    run, _ = finished_run("Distill_CEKDFeature")
    monkeypatch.setattr(FeatureDistillation, "load_teacher", lambda self: pytest.fail("the teacher is loaded"))
    trainer = load_run(run)
    saved = load_checkpoint(run / "backbone/model.pth.tar-1")["state_dict"]
    for key, value in trainer.student.backbone.state_dict().items():
        assert torch.equal(value, saved[key]), key


def test_one_headed_methods_do_not_ask_how_a_kd_head_starts(build):
    assert build("Distill_CEKD", "TRAINER.DHO.INIT", "language").kd_head is None


# Stored features ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Distill_DHO", "Distill_KDFeature"])
def test_a_stored_teacher_teaches_the_same(shared_command, tmp_path, name):
    options = ("INPUT.VIEWS", "1", "TRAIN.COUNT_ITER", "train_x")
    folders = []
    for mode in ("online", "fill"):
        line = shared_command(name, tmp_path / mode, *options, "TRAINER.DHO.TEACHER.MODE", mode)
        assert main(line) == 0
        folders.append(Path(line[line.index("--output-dir") + 1]))
    assert "The teacher's features (train) are read from" in (tmp_path / "fill/log.txt").read_text()
    online, stored = (load_checkpoint(folder / "backbone/model.pth.tar-3")["state_dict"] for folder in folders)
    for key, value in online.items():
        torch.testing.assert_close(value, stored[key], rtol=1e-3, atol=1e-4, msg=lambda text, k=key: f"{k}: {text}")
