"""Visual prompts against a vision transformer written from the published formulas, in float64."""

import copy
import dataclasses

import open_clip
import pytest
import torch

from dho_plugin.engine.views import Preprocess
from dho_plugin.errors import ConfigError
from dho_plugin.models.clip import LoadedCLIP, load_clip
from dho_plugin.models.deep_prompts import VisualPrompts, check_depth
from dho_plugin.models.image_tower import (
    PromptedImageTower,
    channels_last,
    checkpoint_images,
    vision_layers,
    vision_width,
)
from dho_plugin.models.mini import MINI_MODELS, build_mini, mini_preprocess, mini_tokenizer

WAYS = ("plain", "auto")
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def tower_of(clip, n_ctx=4, depth=3, dropout=0.0):
    torch.manual_seed(3)
    prompts = VisualPrompts(n_ctx, vision_width(clip), depth)
    with torch.no_grad():  # far from zero, so that they matter
        for p in prompts.parameters():
            p.mul_(20)
    return PromptedImageTower(clip, prompts, dropout)


def changed(clip, **fields):
    """Return a copy of a CLIP with its own weights, in float64, and some of its fields."""
    return dataclasses.replace(clip, model=copy.deepcopy(clip.model).double(), **fields)


def outcome(tower, dropped=False):
    """Return the features, and the gradients of a fixed function of them."""
    torch.manual_seed(4)
    features = tower.train(dropped)(IMAGES.double())
    direction = torch.randn(features.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    learned = [tower.prompts.VPT, *tower.prompts.layers()]
    return [features.detach(), *torch.autograd.grad((features * direction).sum(), learned)]


def in_float64(prompts):
    return [p.detach().double().requires_grad_() for p in (prompts.VPT, *prompts.layers())]


def assert_features_and_gradients(tower, reference, pool="tok"):
    ours, theirs = tower(IMAGES), in_float64(tower.prompts)
    expected = reference.image(IMAGES, theirs, pool)
    assert (ours.double() - expected).norm() < 1e-5 * expected.norm()
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected * direction).sum().backward()
    (ours * direction.float()).sum().backward()
    for own, other in zip((tower.prompts.VPT, *tower.prompts.layers()), theirs, strict=True):
        assert other.grad.norm() > 1e-3
        assert (own.grad.double() - other.grad).norm() < 1e-5 * other.grad.norm()


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("n_ctx", [1, 4])
def test_features_and_gradients_as_published(tiny_clip, reference, n_ctx, depth):
    tower = tower_of(tiny_clip, n_ctx, depth)
    assert len(tower.prompts.layers()) == depth - 1
    assert_features_and_gradients(tower, reference)
    assert all(p.grad is None for p in tiny_clip.model.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_class_token_alone_gives_the_features_and_gradients_of_all_tokens(tiny_clip, depth, dropout):
    plain, fast = (tower_of(changed(tiny_clip, image_tower=way), depth=depth, dropout=dropout).double() for way in WAYS)
    assert (plain.class_alone, fast.class_alone) == (False, True)
    for own, other in zip(outcome(fast, dropout > 0), outcome(plain, dropout > 0), strict=True):
        assert other.norm() > 1e-3
        assert (own - other).norm() < 1e-12 * other.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("image_tower", WAYS)
def test_checkpointing_changes_nothing_but_what_is_kept(tiny_clip, image_tower, dropout):
    clip, kept = changed(tiny_clip, image_tower=image_tower), []
    tower = tower_of(clip, dropout=dropout).double()
    whole = outcome(tower, dropout > 0)
    for on in (False, True):
        checkpoint_images(clip, on)
        kept.append(saved_numbers(tower))
    assert kept[1] < kept[0] / 4
    for own, other in zip(outcome(tower, dropout > 0), whole, strict=True):
        assert torch.equal(own, other)


def saved_numbers(tower):
    """Return how many numbers the forward keeps for the backward; a layer that is computed again keeps its input."""
    kept = {}
    own = {p.untyped_storage().data_ptr() for p in tower.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tower(IMAGES.double())
    return sum(tensor.numel() for place, tensor in kept.items() if place not in own)


def test_checkpointing_leaves_an_encoder_without_a_transformer_alone(tiny_resnet_state, tmp_path):
    torch.save(tiny_resnet_state, tmp_path / "resnet.pt")
    clip = load_clip("RN50", ckpt=str(tmp_path / "resnet.pt"))
    checkpoint_images(clip)
    assert not hasattr(clip.model.visual, "transformer")
    with pytest.raises(ConfigError, match="RN50 has BatchNorm"):  # loaded for evaluation, and about to learn
        checkpoint_images(clip, learns=True)


def test_batch_norm_outside_of_what_is_computed_again_is_no_obstacle():
    checkpoint_images(load_clip("mini-student"), learns=True)  # it stands below the transformer


def test_channels_last_changes_the_order_of_the_numbers_and_not_the_features(tiny_resnet_state, tmp_path):
    torch.save(tiny_resnet_state, tmp_path / "resnet.pt")
    clip = load_clip("RN50", ckpt=str(tmp_path / "resnet.pt"))
    before, seen = clip.encode_image(IMAGES), []
    clip.model.visual.layer3.register_forward_hook(lambda _, inputs, output: seen.extend((*inputs, output)))
    channels_last(clip)
    torch.testing.assert_close(clip.encode_image(IMAGES), before, rtol=1e-5, atol=1e-6)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    assert not any(x.is_contiguous() for x in seen)


def test_layers_above_the_depth_go_on_with_what_the_prompts_became(tiny_clip, reference):
    """Neither dropped nor put in again: both other readings give other features."""
    tower = tower_of(tiny_clip, depth=1)
    with torch.no_grad():
        ours, (prompts,) = tower(IMAGES).double(), in_float64(tower.prompts)
        again = reference.image(IMAGES, [prompts] * 3)
        dropped = reference.image(IMAGES, [prompts, prompts[:0]])
    for other in (again, dropped):
        assert (ours - other).norm() > 1e-2 * ours.norm()


def test_a_feature_that_is_a_mean_leaves_the_prompts_out(reference, tiny_state):
    """With average pooling the patches' mean is the feature, as the CLIP itself has it; prompts are no patches."""
    vision = open_clip.CLIPVisionCfg(image_size=32, patch_size=8, width=64, layers=3, pool_type="avg")
    vision.final_ln_after_pool = False
    text = open_clip.CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=3)
    model = open_clip.CLIP(32, vision, text, quick_gelu=True)
    model.load_state_dict(tiny_state)
    pre = Preprocess(32, (0,) * 3, (1,) * 3)
    clip = LoadedCLIP("avg", model.eval().requires_grad_(False), open_clip.SimpleTokenizer(), pre)
    plain = reference.image(IMAGES, [], "avg")
    assert (clip.model.encode_image(IMAGES).double() - plain).norm() < 1e-5 * plain.norm()
    assert_features_and_gradients(tower_of(clip), reference, "avg")


def test_the_reference_is_clip_where_there_are_no_prompts(tiny_clip, reference):
    expected = reference.image(IMAGES, [])
    assert (tiny_clip.model.encode_image(IMAGES).double() - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("name", MINI_MODELS)
def test_mini(name):
    torch.manual_seed(0)
    model = build_mini(name).eval().requires_grad_(False)
    clip = LoadedCLIP(name, model, mini_tokenizer(), mini_preprocess(name))
    images = torch.randn(2, 3, clip.preprocess.size, clip.preprocess.size)
    tower = tower_of(clip, depth=vision_layers(clip))
    features = tower(images)
    assert features.shape == model.encode_image(images).shape
    features.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in tower.prompts.parameters())


def test_dropout_falls_on_the_prompts_of_each_image_and_only_in_training(tiny_clip):
    tower, plain = tower_of(tiny_clip, dropout=0.5), tower_of(tiny_clip)
    seen = []
    tower.dropout.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    same = IMAGES[:1].expand(3, -1, -1, -1)
    features = tower.train()(same)
    assert [tuple(before.shape) for before, _ in seen] == [(3, 4, 64)] * 3  # the prompts of three layers, nothing else
    for before, after in seen:
        kept = after != 0
        assert 0.4 < kept.float().mean() < 0.6
        torch.testing.assert_close(after[kept], 2 * before[kept])
        assert not torch.equal(kept[0], kept[1])
    assert not torch.allclose(features[0], features[1])
    torch.testing.assert_close(tower.eval()(same), plain.train()(same), rtol=0, atol=0)


def test_keys_are_those_of_promptsrc_and_maple():
    prompts = VisualPrompts(2, 8, depth=3)
    deep = [f"transformer.resblocks.{layer}.VPT_shallow" for layer in (1, 2)]
    assert sorted(prompts.state_dict()) == sorted(["VPT", *deep])
    assert all(p.shape == (2, 8) for p in prompts.parameters())


def test_prompts_of_ten_and_more_layers_stand_in_the_layers_order():
    prompts = VisualPrompts(1, 1, depth=12)
    with torch.no_grad():
        for layer in range(1, 12):
            prompts.state_dict()[f"transformer.resblocks.{layer}.VPT_shallow"].fill_(layer)
    assert [p.item() for p in prompts.layers()] == list(range(1, 12))


def test_prompts_are_drawn_as_the_originals_draw_them():
    torch.manual_seed(0)
    for p in VisualPrompts(50, 200, depth=2).parameters():
        assert p.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(p.mean().item()) < 1e-3


def test_a_resnet_is_refused(tiny_resnet_state, tmp_path):
    torch.save(tiny_resnet_state, tmp_path / "resnet.pt")
    clip = load_clip("RN50", ckpt=str(tmp_path / "resnet.pt"))
    for build in (vision_width, vision_layers, lambda c: PromptedImageTower(c, VisualPrompts(2, 8, 1))):
        with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE\.NAME.*RN50.*ModifiedResNet.*ViT-B/16"):
            build(clip)


@pytest.mark.parametrize(("depth", "lowest"), [(0, 1), (13, 1), (-1, 0)])
def test_a_depth_outside_of_the_transformer_is_refused(depth, lowest):
    with pytest.raises(ConfigError, match=rf"TRAINER\.VPT\.DEPTH is {depth}; allowed: {lowest} to 12"):
        check_depth("TRAINER.VPT.DEPTH", depth, 12, lowest)
    for good in (lowest, 12):
        check_depth("TRAINER.VPT.DEPTH", good, 12, lowest)
