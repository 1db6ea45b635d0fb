"""The DHO step against an independent float64 computation, and what learns in it."""

import math

import numpy as np
import pytest
import torch

from dho_plugin.errors import ConfigError
from dho_plugin.models.zeroshot import class_features


def log_softmax(x):
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def expected_loss(ce, kd_x, kd_u, teacher_x, teacher_u, labels, lambda_, eta):
    """Eq. 6 and 7 as printed, with the released code's eta^2."""
    loss_ce = -log_softmax(ce)[np.arange(len(labels)), labels].mean()
    loss_kd = 0.0
    for student, teacher in ((kd_x, teacher_x), (kd_u, teacher_u)):
        if student is not None:
            p, q = log_softmax(teacher / eta), log_softmax(student / eta)
            loss_kd += (np.exp(p) * (p - q)).sum(1).mean() * eta**2
    return lambda_ * loss_ce + (1 - lambda_) * loss_kd


@pytest.fixture
def build(command, started):
    return lambda trainer, *options: started(command(trainer, "run", *options))


def first_batches(trainer):
    return [next(stream) for stream in trainer.streams]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("unlabeled", ["True", "False"])
def test_one_step_is_algorithm_1(build, unlabeled):
    options = ("TRAINER.DHO.UNLABELED", unlabeled, "TRAINER.DHO.LAMBDA", "0.3", "TRAINER.DHO.ETA", "1.5")
    trainer = build("CoOp_DHO", *options)
    batches = first_batches(trainer)
    assert len(batches) == (2 if unlabeled == "True" else 1)
    student, teacher, kd_head = trainer.student, trainer.teacher.model, trainer.kd_head
    with torch.no_grad():
        z = [student.features(batch["img"]).double().numpy() for batch in batches]
        t = [teacher.model.encode_image(batch["img_teacher"]).double().numpy() for batch in batches]
        text = student.text_classifier().double().numpy()
    w_kd, w_teacher = kd_head.weight.detach().double().numpy(), teacher.head.weight.double().numpy()
    kd = [unit(x) @ unit(w_kd).T / 0.01 for x in z]
    from_teacher = [unit(x) @ unit(w_teacher).T / 0.01 for x in t]
    ce = unit(z[0]) @ unit(text).T / 0.01
    parts = ce, kd[0], *kd[1:2], *([None] if len(kd) == 1 else []), from_teacher[0]
    wanted = expected_loss(*parts, from_teacher[1] if len(t) > 1 else None, batches[0]["label"].numpy(), 0.3, 1.5)
    assert trainer.forward_backward(*batches)["loss"].item() == pytest.approx(wanted, rel=1e-4)


def test_gradients_reach_what_learns_and_nothing_else(build):
    trainer = build("CoOp_DHO")
    before = {name: p.detach().clone() for name, p in trainer.net.named_parameters()}
    trainer.forward_backward(*first_batches(trainer))
    changed = {name for name, p in trainer.net.named_parameters() if not torch.equal(p, before[name])}
    with_grad = {name for name, p in trainer.net.named_parameters() if p.grad is not None}
    assert changed == with_grad == {"student.prompt_learner.ctx", "kd_head.weight"}
    assert all(p.grad is None for p in trainer.teacher.model.parameters())


def test_a_frozen_encoder_keeps_the_distillation_out_of_the_prompts(build):
    """What MINI.md says of CoOp + DHO: the prompts' step is lambda times CoOp's own."""
    plain, dho = build("CoOp"), build("CoOp_DHO", "INPUT.RRCROP_SCALE", "(0.08, 1.0)")
    batch_x, batch_u = first_batches(dho)
    plain.forward_backward(first_batches(plain)[0])
    dho.forward_backward(batch_x, batch_u)
    a, b = plain.student.prompt_learner.ctx.grad, dho.student.prompt_learner.ctx.grad
    torch.testing.assert_close(b, 0.5 * a, rtol=1e-4, atol=1e-6)


def test_student_and_teacher_see_the_same_view(build):
    trainer = build("CoOp_DHO")
    batch = first_batches(trainer)[0]
    assert batch["img"].shape[-1] == 32
    assert batch["img_teacher"].shape[-1] == 48
    small = torch.nn.functional.interpolate(batch["img_teacher"], size=32, mode="bilinear", antialias=True)
    pairs = zip(small.flatten(1), batch["img"].flatten(1), strict=True)
    assert all(torch.corrcoef(torch.stack(pair))[0, 1] > 0.8 for pair in pairs)  # noise images: other views are near 0


def test_the_placebo_is_the_students_own_zero_shot_classifier(build):
    trainer = build("CoOp_DHO", "TRAINER.DHO.TEACHER.TYPE", "placebo")
    batch = first_batches(trainer)[0]
    assert "img_teacher" not in batch
    # The KD head starts at the same class features, so at first there is nothing to learn from a placebo.
    kd = trainer.kd_head(trainer.student.features(batch["img"]))
    torch.testing.assert_close(trainer.teacher_logits([batch]), kd, rtol=1e-4, atol=1e-3)


def test_the_kd_head_may_have_an_optimizer_of_its_own(build):
    trainer = build("CoOp_DHO", "TRAINER.DHO.OPTIM.NAME", "adamw", "TRAINER.DHO.OPTIM.LR", "0.123")
    assert isinstance(trainer._optims["kd_head"], torch.optim.AdamW)
    assert trainer._optims["kd_head"].defaults["lr"] == 0.123
    assert isinstance(trainer._optims["prompt_learner"], torch.optim.SGD)
    assert build("CoOp_DHO")._optims["kd_head"].defaults["lr"] == 0.002


def test_the_templates_of_the_config_make_the_class_features(build):
    templates = ("a sketch of {}.", "the {} in snow.")
    trainer = build("LinearProbe_DHO", "DATASET.TEMPLATES", str(templates))
    names = [info.name for info in trainer.classes]
    heads = {"own": (trainer.clip(), trainer.kd_head), "teacher": (trainer.load_teacher(), trainer.teacher.model.head)}
    for name, (clip, head) in heads.items():
        rows = head.weight.detach() / head.weight.detach().norm(dim=1, keepdim=True)
        torch.testing.assert_close(rows, class_features(clip, names, templates), rtol=1e-4, atol=1e-5, msg=name)
        assert not torch.allclose(rows, class_features(clip, names, ("a photo of a {}.",)), atol=1e-3), name


SETTINGS = [
    "TRAINER.COOP.PREC bf16",
    "TRAINER.COOP.PREC fp16",
    "TRAINER.DHO.KD_HEAD linear",
    "TRAINER.DHO.INIT kaiming",
    "TRAINER.COOP.CSC True TRAINER.COOP.CTX_INIT ",
    "TRAINER.COOP.CLASS_TOKEN_POSITION middle",
    "TRAINER.COOP.CLASS_TOKEN_POSITION front",
    "DATALOADER.TRAIN_U.SAME_AS_X False DATALOADER.TRAIN_U.BATCH_SIZE 7",
]


@pytest.mark.parametrize("options", SETTINGS)
def test_every_setting_takes_a_finite_step(build, options):
    trainer = build("CoOp_DHO", *options.split(" "))
    summary = trainer.forward_backward(*first_batches(trainer))
    assert torch.isfinite(summary["loss"])
    assert torch.isfinite(trainer.student.prompt_learner.ctx.grad).all()


def test_the_classifier_of_an_evaluation_is_computed_once_and_follows_training(build):
    trainer = build("CoOp_DHO")
    images = first_batches(trainer)[0]["img"]
    trainer.set_model_mode("eval")
    with torch.no_grad():
        first = trainer.model_inference(images)
        assert torch.equal(first, trainer.model_inference(images))
        assert trainer.student.text_classifier() is trainer.student.text_classifier()
    trainer.set_model_mode("train")
    with torch.no_grad():
        trainer.student.prompt_learner.ctx.normal_()
    trainer.set_model_mode("eval")
    with torch.no_grad():
        second = trainer.model_inference(images)
    assert not torch.allclose(first, second)
    assert torch.allclose(second.exp().sum(1), torch.ones(len(images)), atol=1e-5)


def test_the_classifier_of_an_evaluation_follows_a_loaded_file(build, tmp_path):
    """Without a word to the module's mode, as a notebook does it."""
    trainer = build("CoOp")
    images = first_batches(trainer)[0]["img"]
    trainer.save_model(1, tmp_path / "saved", {})
    trainer.set_model_mode("eval")
    with torch.no_grad():
        first = trainer.model_inference(images)
        trainer.student.prompt_learner.ctx.normal_()
        assert not torch.allclose(first, trainer.model_inference(images))
        trainer.load_model(tmp_path / "saved", 1)
        assert torch.equal(first, trainer.model_inference(images))


def test_both_heads_start_from_text_features_that_are_encoded_once(build, monkeypatch):
    import dho_plugin.dho_trainer as module

    calls, real = [], module.class_features
    monkeypatch.setattr(module, "class_features", lambda *args: calls.append(args) or real(*args))
    trainer = build("LinearProbe_DHO")
    assert len(calls) == 1
    text = trainer.student.ce_head.weight.detach()
    torch.testing.assert_close(text.norm(dim=1), torch.ones(4))
    assert torch.equal(text, trainer.kd_head.weight)
    assert trainer.student.ce_head.weight.data_ptr() != trainer.kd_head.weight.data_ptr()


@pytest.mark.parametrize(
    ("trainer", "options", "line"),
    [
        ("CoOp_DHO", (), "Text tower: shared (causal attention, and one context in front of all class names)"),
        ("PromptSRC", (), "Text tower: shared (causal"),
        (
            "CoOp",
            ("TRAINER.COOP.CSC", "True", "TRAINER.COOP.CTX_INIT", ""),
            "Text tower: truncated (causal attention; each class has a context",
        ),
        ("VPT", (), "Text tower: truncated (causal attention)"),
        ("PromptSRC", ("MODEL.TEXT_TOWER", "plain"), "Text tower: plain (MODEL.TEXT_TOWER asks for it)"),
        ("CoOp_DHO", (), "Image tower: class token (only it is read behind the last layer)"),
        ("VPT", ("MODEL.IMAGE_TOWER", "plain"), "Image tower: plain (MODEL.IMAGE_TOWER asks for it)"),
    ],
)
def test_the_log_says_how_text_and_images_are_encoded(build, capsys, trainer, options, line):
    build(trainer, *options)
    assert capsys.readouterr().out.count(line) == 1


def test_a_text_path_that_is_not_exact_is_refused(build):
    with pytest.raises(ConfigError, match=r"MODEL\.TEXT_TOWER is 'shared'.*CSC"):
        build("CoOp", "TRAINER.COOP.CSC", "True", "TRAINER.COOP.CTX_INIT", "", "MODEL.TEXT_TOWER", "shared")


def test_the_text_path_is_not_forced_on_the_teacher(build):
    assert build("CoOp_DHO", "MODEL.TEXT_TOWER", "shared").teacher is not None


@pytest.mark.parametrize(
    ("trainer", "tower"), [("CoOp", "TEXT"), ("PromptSRC", "TEXT"), ("PromptSRC_DHO", "IMAGE"), ("VPT_DHO", "IMAGE")]
)
def test_plain_and_fast_towers_take_the_same_step(build, trainer, tower):
    """Also where the fast one computes its activations anew."""
    learned = []
    for options in ((f"MODEL.{tower}_TOWER", "plain"), (), (f"MODEL.{tower}_CHECKPOINTING", "True")):
        run = build(trainer, *options)
        clip = run.student.clip_model
        transformer = clip.transformer if tower == "TEXT" else clip.visual.transformer
        assert transformer.grad_checkpointing == ("True" in options)
        run.forward_backward(*first_batches(run))
        modules = run.student.learnable().values()
        learned.append(torch.cat([p.detach().flatten() for module in modules for p in module.parameters()]))
    for fast in learned[1:]:
        torch.testing.assert_close(fast, learned[0], atol=2e-6, rtol=1e-5)


def test_all_frozen_encoders_compute_only_the_class_token_of_their_last_layer(build):
    """The student's prompted and plain one, and the teacher's."""
    run, rows = build("PromptSRC_DHO"), []
    for visual in (run.clip().model.visual, run.teacher.model.model.visual):
        last = visual.transformer.resblocks[-1]
        last.mlp.register_forward_hook(lambda _, inputs, __: rows.append(tuple(inputs[0].shape)))
    run.forward_backward(*first_batches(run))
    assert rows == [(8, 64), (4, 64), (8, 64)]


def test_channels_last_reaches_student_and_teacher(build):
    run = build("LinearProbe_DHO", "MODEL.CHANNELS_LAST", "True")
    for visual in (run.clip().model.visual, run.teacher.model.model.visual):
        assert visual.conv1.weight.is_contiguous(memory_format=torch.channels_last)
        assert not visual.conv1.weight.is_contiguous()


def test_compiling_reaches_student_and_teacher_and_nothing_by_default(build, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda encode: lambda images: seen.append(len(images)) or encode(images))
    for options in ((), ("MODEL.COMPILE", "True")):
        run = build("LinearProbe_DHO", *options)
        run.forward_backward(*first_batches(run))
        assert seen == ([8, 8] if options else [])


def test_each_clip_has_its_own_temperature_unless_one_is_named(shared_command, started, tiny_weights, tmp_path):
    softer = torch.load(tiny_weights[1], weights_only=True) | {"logit_scale": torch.tensor(math.log(50.0))}
    torch.save(softer, tmp_path / "teacher.pt")
    options = ("TRAINER.DHO.TEACHER.CKPT", str(tmp_path / "teacher.pt"))
    own = started(shared_command("LinearProbe_DHO", tmp_path / "run", *options))
    assert (own.teacher.model.head.zeta, own.kd_head.zeta) == (pytest.approx(0.02), pytest.approx(0.01))
    named = started(shared_command("LinearProbe_DHO", tmp_path / "run", *options, "TRAINER.DHO.ZETA", "0.04"))
    assert named.teacher.model.head.zeta == 0.04
