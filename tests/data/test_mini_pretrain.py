import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dho_plugin.data.mini import pretrain, reference
from dho_plugin.data.mini.learning import (
    augment,
    learning_rate,
    losses,
    make_optimizer,
    resize,
    train_step,
    word_targets,
)
from dho_plugin.data.mini.pretrain import Recipe, Stage, train
from dho_plugin.data.mini.render import render
from dho_plugin.data.mini.sets import SET_BY_NAME, adversarial_indices
from dho_plugin.data.mini.world import A_LABELS
from dho_plugin.models.mini import build_mini, mini_tokenizer
from dho_plugin.models.mini.resnet import build_resnet


@pytest.fixture(scope="module")
def images():
    return render(SET_BY_NAME["val"].parameters(np.arange(32)))


def test_resize_is_pils_bicubic(images):
    ours = resize(torch.from_numpy(images).permute(0, 3, 1, 2), 32).permute(0, 2, 3, 1).numpy()
    pil = np.stack([np.asarray(Image.fromarray(i).resize((32, 32), Image.Resampling.BICUBIC)) for i in images])
    difference = np.abs(ours.astype(int) - pil)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


def test_augment_flips_crops_and_repeats(images):
    batch = torch.from_numpy(images)
    whole = batch.permute(0, 3, 1, 2)
    seen = [augment(batch, 48, 1 / 3, torch.Generator().manual_seed(k)) for k in range(60)]
    kinds = ["whole" if torch.equal(x, whole) else "flip" if torch.equal(x, whole.flip(-1)) else "crop" for x in seen]
    assert all(x.shape == whole.shape for x in seen)
    assert all(abs(kinds.count(kind) - 20) < 14 for kind in ("whole", "flip", "crop"))
    never = [augment(batch, 48, 0.0, torch.Generator().manual_seed(k)) for k in range(20)]
    assert all(torch.equal(x, whole) or torch.equal(x, whole.flip(-1)) for x in never)
    first, second = (augment(batch, 32, 1 / 3, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_learning_rate_warms_up_and_anneals():
    rates = [learning_rate(step, 1000, 2e-3) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-3 / 150)
    assert max(rates) == pytest.approx(2e-3, rel=0.06)
    assert rates[-1] == pytest.approx(2e-5, rel=0.01)
    assert rates[575] == pytest.approx(2e-3 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 0.575))))


def test_word_targets_leave_fillers_out():
    tokenizer = mini_tokenizer()
    targets = word_targets(tokenizer(["a photo of a red striped disc.", "a photo of a"]), tokenizer.vocab_size)
    said = tokenizer.encode("red striped disc")
    assert sorted(torch.nonzero(targets[0])[:, 0].tolist()) == sorted(said)
    assert targets[0, said].tolist() == pytest.approx([1 / 3] * 3)
    assert targets[1].sum() == 0


def test_losses_against_numpy(images):
    torch.manual_seed(0)
    model, tokenizer = build_mini("mini-student").eval(), mini_tokenizer()
    words = nn.Linear(128, model.vocab_size)
    x = torch.randn(6, 3, 32, 32)
    tokens = tokenizer([f"a {w} disc" for w in ("red", "green", "blue", "solid", "striped", "dotted")])
    targets = word_targets(tokens, model.vocab_size)
    contrastive, bag = losses(model, words, x, tokens, targets)
    with torch.no_grad():
        f, t = model.encode_image(x).double().numpy(), model.encode_text(tokens).double().numpy()
        scale, w, b = model.logit_scale.exp().item(), words.weight.double().numpy(), words.bias.double().numpy()
    log_softmax = lambda z: z - np.log(np.exp(z).sum(-1, keepdims=True))  # noqa: E731
    unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)  # noqa: E731
    logits = scale * unit(f) @ unit(t).T
    expected = -(np.trace(log_softmax(logits)) + np.trace(log_softmax(logits.T))) / 12
    assert contrastive.item() == pytest.approx(expected, rel=0.02), "bf16"
    assert bag.item() == pytest.approx(-(targets.numpy() * log_softmax(f @ w.T + b)).sum(1).mean(), rel=0.02)


@pytest.fixture
def quick(monkeypatch):
    """Two stages of two steps, judged on few images."""
    monkeypatch.setattr(pretrain, "EVALUATIONS", 1)
    monkeypatch.setattr(pretrain, "zero_shot", partial(pretrain.zero_shot, per_class=1))
    stages = (Stage(64, cropped=0.5, horizon=128), Stage(64, peak=1e-3))
    monkeypatch.setitem(pretrain.RECIPES, "student", Recipe(pretrain.STUDENT_NOISE, 32, stages))
    monkeypatch.setitem(pretrain.RECIPES, "resnet", replace(pretrain.RECIPES["resnet"], batch=32))


def test_training_writes_loadable_weights_that_repeat(tmp_path, quick, capsys):
    written = []
    for _ in range(2):
        train("student", tmp_path, samples=96, corpus_size=4_000)
        written.append((tmp_path / "student.safetensors").read_bytes())
    first, second = written
    assert first == second
    weights = safetensors.torch.load(first)
    assert {v.dtype for v in weights.values()} == {torch.float16, torch.int64}
    build_mini("mini-student").load_state_dict(weights)
    assert "zero-shot on training images" in capsys.readouterr().out


def test_training_the_resnet_writes_its_trunk_alone(tmp_path, quick):
    train("resnet", tmp_path, samples=64, corpus_size=4_000)
    weights = safetensors.torch.load((tmp_path / "resnet.safetensors").read_bytes())
    start = build_resnet()
    assert start.load_state_dict({k: v.float() for k, v in weights.items()})
    assert weights["bn1.num_batches_tracked"] == 2


def test_a_killed_training_goes_on_after_the_last_whole_stage(tmp_path, quick):
    train("student", tmp_path, corpus_size=4_000)
    result = (tmp_path / "student.safetensors").read_bytes()
    stage1 = (tmp_path / "student.stage1.safetensors").read_bytes()
    assert stage1 != result
    (tmp_path / "student.safetensors").unlink()
    train("student", tmp_path, corpus_size=4_000)
    assert (tmp_path / "student.safetensors").read_bytes() == result
    assert (tmp_path / "student.stage1.safetensors").read_bytes() == stage1


def test_contrastive_learning_learns():
    """A few steps on one batch must bring the loss well below chance."""
    torch.manual_seed(0)
    model, tokens = build_mini("mini-student").train(), torch.randint(1, 100, (32, 16))
    words = nn.Linear(128, model.vocab_size)
    optimizer, x = make_optimizer(model, words), torch.randn(32, 3, 32, 32)
    for _ in range(25):
        contrastive, _bag = train_step(model, words, optimizer, x, tokens)
    assert contrastive < 0.6 * math.log(32)


def test_adversarial_images_are_a_part_of_the_hard_pool():
    indices = adversarial_indices()
    pool = SET_BY_NAME["imagenet_a"]
    assert len(set(indices.tolist())) == len(indices)
    assert indices.min() >= 0
    assert indices.max() < pool.per_class * len(pool.labels)
    assert np.bincount(pool.label_of(indices), minlength=100)[list(A_LABELS)].min() > 10


def test_reference_picks_what_its_classifier_gets_wrong(images, monkeypatch):
    labels = SET_BY_NAME["val"].label_of(np.arange(32))
    net = reference.train_reference(images, labels, steps=2)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(0.26e6, rel=0.05)
    first, pool = A_LABELS[0], replace(SET_BY_NAME["imagenet_a"], per_class=12)
    monkeypatch.setitem(reference.SET_BY_NAME, "imagenet_a", pool)
    always = nn.Module()
    always.forward = lambda x: F.one_hot(torch.full((len(x),), first), 100).float()
    wrong = reference.hard_indices(always)
    assert len(wrong) == pool.per_class * (len(pool.labels) - 1)
    assert first not in set(pool.label_of(np.array(wrong)))
    json.dumps(wrong)
