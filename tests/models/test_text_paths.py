"""Every way to text features gives those of the plain one, and its gradients; and which way is taken when."""

import copy
import math
import re
import statistics

import open_clip
import pytest
import torch

from dho_plugin.errors import ConfigError
from dho_plugin.models.deep_prompts import DeepPrompts
from dho_plugin.models.mini import MINI_MODELS, build_mini, mini_tokenizer
from dho_plugin.models.prompts import PromptLearner
from dho_plugin.models.shared_prefix import SharedPrefix
from dho_plugin.models.text_paths import Plain, Truncated, choose_path, class_path, text_features
from dho_plugin.models.text_tower import TextTower, checkpoint_text

NAMES = ["dog", "great_white_shark", "sunglasses, dark glasses, shades", "cat", "missile", "great grey owl"]
SIXTY = "dog " * 60
TOWERS = {
    "OpenAI": (open_clip.CLIP, {"quick_gelu": True}),
    "CLIP": (open_clip.CLIP, {}),
    "CustomTextCLIP": (open_clip.CustomTextCLIP, {}),
    "eos": (open_clip.CustomTextCLIP, {"pool_type": "eos", "eos_id": 49407}),
    "LayerScale": (open_clip.CLIP, {"ls_init_value": 0.5}),
    "proj_bias": (open_clip.CustomTextCLIP, {"proj_bias": True}),
    "no projection": (open_clip.CustomTextCLIP, {"proj_type": "none"}),
    "context of 32": (open_clip.CLIP, {"context_length": 32}),
    "one layer": (open_clip.CLIP, {"layers": 1}),
}
PATHS = {"shared": SharedPrefix, "truncated": Truncated, "plain": Plain}
CUSTOM_BLOCKS = {"block_type": "custom", "qk_norm": True}


@pytest.fixture
def tower_of(text_clip):
    """Return a function that builds a text tower, in float64 unless told otherwise."""

    def build(kind=open_clip.CLIP, dtype=torch.float64, tokenizer=None, path="auto", **text):
        clip = text_clip(kind, tokenizer, path, **text)
        clip.model.to(dtype)
        return TextTower(clip)

    return build


def prompted(tower, names=NAMES, depth=1, **options):
    """Return prompts, and deep prompts that are far from zero, in the tower's precision."""
    torch.manual_seed(1)
    learner = PromptLearner(names, tower, **({} if options.get("ctx_init") else {"n_ctx": 3}) | options)
    deep = DeepPrompts(learner.n_ctx, tower.width, depth)
    for values in [*([] if options.get("ctx_init") else [learner.ctx]), *deep.layers()]:
        torch.nn.init.normal_(values, std=0.5)
    dtype = tower.positional_embedding.dtype
    return learner.to(dtype), deep.to(dtype)


def outcome(module, learner, deep):
    """Return the features and the gradients of a fixed function of them."""
    features = module(deep.layers())
    direction = torch.randn(features.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    loss = (features.double() * direction).sum() + features.double().square().sum()
    return [features.detach(), *torch.autograd.grad(loss, [learner.ctx, *deep.layers()])]


def errors(own, other):
    return [((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in zip(own, other, strict=True)]


def assert_exact(tower, learner, deep, path, most=None, bound=1e-12):
    plain = outcome(Plain(tower, learner), learner, deep)
    fast = outcome(PATHS[path](tower, learner, most), learner, deep)
    assert max(errors(fast, plain)) < bound
    assert all(values.norm() > 1e-3 for values in plain)
    assert len(plain[0].unique(dim=0)) == len(learner.token_suffix.unique(dim=0))  # the classes are told apart


@pytest.mark.parametrize("path", ["shared", "truncated"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("tower", TOWERS)
def test_exact_on_every_tower(tower_of, tower, depth, path):
    kind, text = TOWERS[tower]
    tower = tower_of(kind, **text)
    learner, deep = prompted(tower, depth=min(depth, tower.layers))
    assert choose_path(tower, learner, deep).name == "shared"
    assert_exact(tower, learner, deep, path)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(
    ("options", "path", "prefix"),
    [
        ({"n_ctx": 1}, "shared", 2),
        ({"n_ctx": 16}, "shared", 17),
        ({"ctx_init": "a_photo_of a"}, "shared", 5),
        ({"n_ctx": 2, "ctx_init": "a_photo_of a"}, "shared", 5),  # two kept words between context and name
        ({"ctx_init": "a sunglasses photo of zebrafish"}, "shared", 7),  # five words of six tokens
        ({"names": ["great grey owl", "great_white_shark"]}, "shared", 5),  # the names begin alike, too
        ({"names": ["great owl", "great"]}, "shared", 5),  # but only one of them goes on
        ({"names": ["dog", "dog"]}, "shared", 6),  # the end alone is left
        ({"names": ["dog"]}, "shared", 6),
        ({"names": ["dog", "cat", "owl"]}, "shared", 4),
        ({"names": ["dog", SIXTY, "cat"]}, "shared", 4),
        ({"names": [SIXTY, "cat"], "n_ctx": 14}, "shared", 15),  # the end is the 77th token
        ({"class_specific": True}, "truncated", None),
        ({"class_specific": True, "names": [SIXTY, "cat"], "n_ctx": 14}, "truncated", None),
        ({"position": "middle"}, "truncated", None),
        ({"position": "front", "n_ctx": 4}, "truncated", None),
        ({"position": "middle", "class_specific": True}, "truncated", None),
        ({"position": "front", "n_ctx": 2, "ctx_init": "a_photo_of a"}, "truncated", None),
    ],
)
def test_exact_with_all_prompts(tower_of, options, path, prefix, depth):
    tower = tower_of()
    learner, deep = prompted(tower, depth=depth, **options)
    assert choose_path(tower, learner, deep).name == path
    assert prefix is None or SharedPrefix(tower, learner).prefix_length == prefix
    assert_exact(tower, learner, deep, path)


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("path", ["shared", "truncated"])
def test_exact_in_padded_buckets(tower_of, path, most):
    tower = tower_of()
    names = [*NAMES, SIXTY]
    learner, deep = prompted(tower, names, depth=2, n_ctx=14)  # the longest ends at the edge of the context
    assert_exact(tower, learner, deep, path, most)


@pytest.mark.parametrize("name", MINI_MODELS)
@pytest.mark.parametrize("path", ["shared", "truncated"])
def test_exact_on_the_mini_models(tower_of, name, path):
    torch.manual_seed(0)
    tower = tower_of(build_mini(name), tokenizer=mini_tokenizer())
    assert_exact(tower, *prompted(tower, ["striped disc", "star"], depth=2), path)


@pytest.mark.parametrize("path", ["shared", "truncated"])
def test_gradients_in_float32(tower_of, path):
    tower = tower_of(dtype=torch.float32)
    assert_exact(tower, *prompted(tower, depth=3), path, bound=1e-5)


def test_bfloat16_errs_no_more_than_the_plain_path(tower_of):
    """Errors are random, so those of 160 classes are taken together."""
    tower = tower_of(dtype=torch.float32, layers=6, quick_gelu=True)
    ratios = {"shared": [], "truncated": []}
    for first in range(0, 160, 40):
        learner, deep = prompted(tower, open_clip.IMAGENET_CLASSNAMES[first : first + 40], depth=3)
        exact = outcome(Plain(tower, learner), learner, deep)
        with torch.autocast("cpu", torch.bfloat16):
            plain = errors(outcome(Plain(tower, learner), learner, deep), exact)
            assert min(plain) > 1e-3
            for path, to in ratios.items():
                own = errors(outcome(PATHS[path](tower, learner), learner, deep), exact)
                to += [math.log(a / b) for a, b in zip(own, plain, strict=True)]
    assert math.exp(statistics.mean(ratios["shared"])) < 1
    assert math.exp(statistics.mean(ratios["truncated"])) < 1.1


@pytest.mark.parametrize("path", ["shared", "truncated"])
def test_exact_with_checkpointing(text_clip, path):
    clip = text_clip()
    clip.model.double()
    checkpoint_text(clip)
    tower = TextTower(clip)
    assert_exact(tower, *prompted(tower, depth=2), path)


@pytest.mark.parametrize("path", ["shared", "truncated", "plain"])
def test_all_that_a_path_needs_moves_with_it_to_another_device(tower_of, path):
    tower = tower_of(path=path)
    learner, deep = prompted(tower, depth=2)
    moved, deep = copy.deepcopy(text_features(tower, learner)[0]).to("meta"), deep.to("meta")
    features = moved(deep.layers())
    features.sum().backward()
    assert (features.device.type, features.shape) == ("meta", (6, 32))
    assert all(values.grad.device.type == "meta" for values in (moved.prompts.ctx, *deep.layers()))


@pytest.mark.parametrize(
    ("text", "options", "path", "reason"),
    [
        ({}, {}, "shared", "one context in front of all class names"),
        ({}, {"class_specific": True}, "truncated", r"context of its own \(CSC\)"),
        ({}, {"position": "middle"}, "truncated", "CLASS_TOKEN_POSITION"),
        (CUSTOM_BLOCKS, {}, "truncated", "not plain multi-head attention"),
        ({"no_causal_mask": True}, {}, "plain", "not causal"),
        ({"no_causal_mask": True}, {"position": "front"}, "plain", "not causal"),
    ],
)
def test_the_cheapest_exact_path_is_taken(tower_of, text, options, path, reason):
    tower = tower_of(open_clip.CustomTextCLIP, **text)
    module, chosen = text_features(tower, prompted(tower, **options)[0])
    assert chosen.name == path
    assert type(module) is PATHS[path]
    assert re.search(reason, chosen.reason)


def test_the_mask_itself_decides(tower_of):
    tower = tower_of()
    learner, _ = prompted(tower)
    tower.attn_mask = tower.attn_mask.clone()
    tower.attn_mask[3, 60] = 0  # one token sees one that stands behind it
    assert choose_path(tower, learner) == ("plain", "its attention is not causal")
    tower.attn_mask = None
    assert choose_path(tower, learner) == ("plain", "its attention is not causal")


def test_blocks_that_nobody_knows_run_as_they_are(tower_of):
    class Mixing(type(tower_of().transformer.resblocks[0])):
        pass

    tower = tower_of()
    tower.transformer.resblocks[1].__class__ = Mixing
    assert choose_path(tower, prompted(tower)[0]) == ("plain", "its blocks are not open_clip's")


def test_deep_prompts_that_reach_into_the_names_are_not_shared(tower_of):
    tower = tower_of()
    learner, _ = prompted(tower)
    _, deep = prompted(tower, n_ctx=4, depth=2)
    assert choose_path(tower, learner, deep).name == "truncated"
    assert_exact(tower, learner, deep, "truncated")


def test_truncation_is_exact_with_custom_blocks(tower_of):
    tower = tower_of(open_clip.CustomTextCLIP, **CUSTOM_BLOCKS)
    assert_exact(tower, *prompted(tower, depth=3), "truncated")


@pytest.mark.parametrize("path", ["plain", "truncated", "shared"])
def test_a_path_can_be_forced(tower_of, path):
    tower = tower_of(path=path)
    assert text_features(tower, prompted(tower)[0])[1] == (path, "MODEL.TEXT_TOWER asks for it")


@pytest.mark.parametrize(
    ("path", "text", "options", "reason"),
    [
        ("shared", {}, {"class_specific": True}, r"CSC\); choose auto \(which takes truncated\) or plain"),
        ("shared", {}, {"position": "front"}, "CLASS_TOKEN_POSITION"),
        ("shared", CUSTOM_BLOCKS, {}, "multi-head attention"),
        ("shared", {"no_causal_mask": True}, {}, r"not causal; choose auto \(which takes plain\)"),
        ("truncated", {"no_causal_mask": True}, {}, "not causal"),
    ],
)
def test_a_path_that_is_not_exact_cannot_be_forced(tower_of, path, text, options, reason):
    tower = tower_of(open_clip.CustomTextCLIP, path=path, **text)
    with pytest.raises(ConfigError, match=rf"MODEL\.TEXT_TOWER is '{path}'.*{reason}"):
        text_features(tower, prompted(tower, **options)[0])


@pytest.mark.parametrize(
    ("text_tower", "text", "expected"),
    [
        ("auto", {}, "truncated"),
        ("shared", {}, "truncated"),  # of class names in templates, nothing is learned
        ("plain", {}, "plain"),
        ("auto", {"no_causal_mask": True}, "plain"),
        ("auto", {"pool_type": "last"}, "plain"),
    ],
)
def test_path_of_class_features(text_clip, text_tower, text, expected):
    assert class_path(text_clip(open_clip.CustomTextCLIP, text_tower=text_tower, **text)).name == expected


def test_class_features_cannot_be_forced_either(text_clip):
    clip = text_clip(open_clip.CustomTextCLIP, text_tower="truncated", pool_type="last")
    with pytest.raises(ConfigError, match=r"MODEL\.TEXT_TOWER is 'truncated'.*pooled by 'last'"):
        class_path(clip)
