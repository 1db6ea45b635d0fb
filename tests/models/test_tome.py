"""Token merging against loops over single tokens in float64, written from the paper."""

import copy
import dataclasses
import math

import open_clip
import pytest
import torch
from timm.models.vision_transformer import ResPostBlock, VisionTransformer

from dho_plugin.errors import ConfigError
from dho_plugin.models.backbones import LoadedBackbone, load_backbone, merging
from dho_plugin.models.clip import load_clip
from dho_plugin.models.deep_prompts import VisualPrompts
from dho_plugin.models.image_encoder import encode_image, image_path
from dho_plugin.models.image_tower import PromptedImageTower
from dho_plugin.models.tome import bipartite_matching, merged, merging_tower, timm_obstacle

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def pairs_of(keys, r):
    """Return the pairs (token of A, token of B) of the r largest similarities; the class token 0 has none."""
    most = {}
    for a in range(2, len(keys), 2):
        most[a] = max((cosine(keys[a], keys[b]), b) for b in range(1, len(keys), 2))
    return [(a, most[a][1]) for a in sorted(most, key=lambda a: -most[a][0])[: min(r, (len(keys) - 1) // 2)]]


def groups_of(keys, r):
    """Return, for each token behind the merging, the places of those that it is made of: A's first, then all of B."""
    pairs = pairs_of(keys, r)
    gone = {a for a, _ in pairs}
    stay = [[a] for a in range(0, len(keys), 2) if a not in gone]
    return stay + [[b, *(a for a, target in pairs if target == b)] for b in range(1, len(keys), 2)]


@pytest.mark.parametrize(("length", "r"), [(17, 1), (17, 5), (17, 8), (17, 30), (10, 3), (4, 1), (3, 1)])
def test_the_r_most_similar_pairs_merge_and_the_class_token_stays(length, r):
    g = torch.Generator().manual_seed(length + r)
    keys, values = (torch.randn(4, length, width, generator=g, dtype=torch.float64) for width in (6, 9))
    keys[:, 0] = keys[:, 1]  # the class token's own pair would be the best
    found = merged(values, bipartite_matching(keys, r))
    for n in range(4):
        groups = groups_of(keys[n].tolist(), r)
        assert groups[0] == [0]
        expected = torch.stack([values[n, places].sum(0) for places in groups])
        torch.testing.assert_close(found[n], expected, rtol=1e-12, atol=1e-12)
    assert found.shape[1] == length - min(r, (length - 1) // 2)


class MergingReference:
    """ToMe over a CLIP by the published formulas, image by image; the CLIP has one head."""

    def __init__(self, clip, r):
        self.clip, self.r = clip, r

    def __call__(self, images):
        clip, state = self.clip, self.clip.state
        size, out = state["visual.conv1.weight"].shape[-1], []
        for image in images.double():
            patches = image.unfold(1, size, size).unfold(2, size, size).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
            tokens = patches @ state["visual.conv1.weight"].flatten(1).T
            x = torch.cat([state["visual.class_embedding"][None], tokens]) + state["visual.positional_embedding"]
            out.append(self.tower(clip.norm(x, "visual.ln_pre")))
        return torch.stack(out)

    def tower(self, x):
        clip, sizes = self.clip, [1.0] * len(x)
        for layer in range(clip.layers):
            x, sizes = self.block(x, sizes, f"visual.transformer.resblocks.{layer}.")
        return clip.norm(x, "visual.ln_post")[0] @ clip.state["visual.proj"]

    def block(self, x, sizes, name):
        clip = self.clip
        h = clip.norm(x, name + "ln_1")
        q, k, v = clip.linear(h, name + "attn.in_proj_weight", name + "attn.in_proj_bias").chunk(3, dim=-1)
        weights = (q @ k.T / math.sqrt(q.shape[-1])).exp() * torch.tensor(sizes, dtype=torch.float64)
        attended = weights / weights.sum(1, keepdim=True) @ v
        x = x + clip.linear(attended, name + "attn.out_proj.weight", name + "attn.out_proj.bias")
        groups = groups_of(k.tolist(), self.r)
        x = torch.stack([sum(sizes[i] * x[i] for i in g) / sum(sizes[i] for i in g) for g in groups])
        hidden = clip.linear(clip.norm(x, name + "ln_2"), name + "mlp.c_fc.weight", name + "mlp.c_fc.bias")
        x = x + clip.linear(
            hidden * torch.sigmoid(1.702 * hidden), name + "mlp.c_proj.weight", name + "mlp.c_proj.bias"
        )
        return x, [sum(sizes[i] for i in g) for g in groups]


@pytest.fixture
def tiny_vit():
    """Return timm's transformer with LayerScale and all norms that a plain block may have."""
    torch.manual_seed(3)
    norms = dict.fromkeys(("pre_norm", "qk_norm", "scale_attn_norm", "scale_mlp_norm"), True)
    model = VisionTransformer(32, 8, embed_dim=24, depth=3, num_heads=2, init_values=0.7, num_classes=0, **norms)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return LoadedBackbone("tiny", model.double().eval(), None, 24, "from scratch")


def timm_reference(model, image, r):
    """Return the feature of one image by the published formulas, from the parts of a transformer of timm."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))[0]
    sizes = [1.0] * len(x)
    for block in model.blocks:
        rows = block.attn.qkv(block.norm1(x)).view(len(x), 3, 2, -1)  # (L, 3, heads, d)
        attended, keys = [], []
        for head in range(2):
            q, k, v = (rows[:, part, head] for part in range(3))
            q, k = block.attn.q_norm(q), block.attn.k_norm(k)
            weights = (q @ k.T / math.sqrt(q.shape[1])).exp() * torch.tensor(sizes, dtype=torch.float64)
            attended.append(weights / weights.sum(1, keepdim=True) @ v)
            keys.append(k)
        x = x + block.ls1.gamma * block.attn.proj(block.attn.norm(torch.cat(attended, 1)))
        groups = groups_of((sum(keys) / 2).tolist(), r)
        x = torch.stack([sum(sizes[i] * x[i] for i in g) / sum(sizes[i] for i in g) for g in groups])
        x = x + block.ls2.gamma * block.mlp(block.norm2(x))
        sizes = [sum(sizes[i] for i in g) for g in groups]
    return model.norm(x)[0]


@torch.no_grad()
@pytest.mark.parametrize("r", [1, 3, 8])
def test_features_of_timm_s_transformers_as_published(tiny_vit, r):
    images = IMAGES.double()
    found = merging(tiny_vit, r).encode_image(images)
    expected = torch.stack([timm_reference(tiny_vit.model, image, r) for image in images])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    whole = tiny_vit.encode_image(images)
    assert (found - whole).abs().max() > 1e-5
    assert merging(tiny_vit, 0).encode_image(images).equal(whole)
    assert merging(tiny_vit, r).image_path.name == "token merging"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test_resnet", "it is a ResNet, no plain vision transformer"),
        ("mini-resnet", "it is a ResNet, no plain vision transformer"),
        ("test_vit", ""),
        ("test_vit2", "its feature is pooled by 'avg'"),
        ("test_vit3", "its feature is pooled by attention"),
    ],
)
def test_which_encoders_of_timm_merge(name, said):
    loaded = load_backbone(name, pretrained=False)
    if not said:
        assert merging(loaded, 2).tome_r == 2
        return
    with pytest.raises(ConfigError, match=rf"TOME_R is 2: tokens cannot be merged in {name}: .*{said}"):
        merging(loaded, 2)
    assert merging(loaded, 0).image_path.name == "plain"


@pytest.mark.parametrize(
    ("options", "said"), [({"reg_tokens": 2}, "3 of its tokens are no part"), ({"block_fn": ResPostBlock}, "not plain")]
)
def test_which_transformers_of_timm_do_not(options, said):
    model = VisionTransformer(32, 8, embed_dim=8, depth=1, num_heads=1, num_classes=0, **options)
    assert said in timm_obstacle(model)


def in_float64(clip):
    return copy.deepcopy(clip.model).double()


@pytest.mark.parametrize("r", [1, 3, 8])
def test_features_as_published(tiny_clip, reference, r):
    model = in_float64(tiny_clip)
    path = image_path(model, "auto", r)
    assert path.name == "token merging"
    found = encode_image(model, path, IMAGES.double(), r)
    expected = MergingReference(reference, r)(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (found - model.encode_image(IMAGES.double())).abs().max() > 1e-3


def test_nothing_is_merged_at_0(tiny_clip):
    assert image_path(tiny_clip.model, "auto", 0) == image_path(tiny_clip.model)
    assert image_path(tiny_clip.model, "plain", 0).name == "plain"
    model = in_float64(tiny_clip)
    visual = model.visual
    token = merging_tower(visual.transformer, visual._embeds(IMAGES.double()), 0)
    expected = visual._pool(visual.transformer(visual._embeds(IMAGES.double())))[0]
    torch.testing.assert_close(visual.ln_post(token), expected, rtol=1e-12, atol=1e-12)


def test_each_layer_has_r_tokens_fewer_and_at_most_half(tiny_clip):
    seen = []
    visual = tiny_clip.model.visual
    hooks = [
        b.mlp.register_forward_hook(lambda _, x, __: seen.append(x[0].shape[1])) for b in visual.transformer.resblocks
    ]
    for r in (5, 100):
        encode_image(tiny_clip.model, image_path(tiny_clip.model, "auto", r), IMAGES, r)
    for hook in hooks:
        hook.remove()
    assert seen == [17 - 5, 17 - 10, 64, 17 - 8, 9 - 4, 64]  # the last layer has the class token alone, of width 64


@pytest.mark.parametrize("name", ["mini-student", "mini-teacher"])
def test_the_mini_world_s_transformers_merge(name):
    clip = load_clip(name, tome_r=4)
    size = clip.preprocess.size
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    whole = clip.encode_image(images)
    alone = torch.cat([clip.encode_image(images[n : n + 1]) for n in range(4)])
    torch.testing.assert_close(whole, alone, rtol=1e-3, atol=1e-4)  # no image sees another's tokens
    plain = dataclasses.replace(clip, tome_r=0).encode_image(images)
    assert torch.cosine_similarity(whole, plain).min() > 0.8
    assert not torch.allclose(whole, plain, atol=1e-3)


def test_half_precision(tiny_clip):
    path = image_path(tiny_clip.model, "auto", 3)
    exact = encode_image(tiny_clip.model, path, IMAGES, 3)
    with torch.autocast("cpu", torch.bfloat16):
        half = encode_image(tiny_clip.model, path, IMAGES, 3)
    assert torch.cosine_similarity(half.float(), exact).min() > 0.95


def test_what_cannot_merge_says_so(tiny_clip, tiny_resnet_state, tmp_path):
    torch.save(tiny_resnet_state, tmp_path / "rn.pt")
    with pytest.raises(ConfigError, match=r"TOME_R is 4: its image encoder is a ModifiedResNet"):
        load_clip("RN50", ckpt=str(tmp_path / "rn.pt"), tome_r=4).encode_image(IMAGES)
    with pytest.raises(ConfigError, match=r"TOME_R is 4.*visual prompts"):
        PromptedImageTower(dataclasses.replace(tiny_clip, tome_r=4), VisualPrompts(2, 64, 1))
    pooled = open_clip.CLIP(
        32,
        open_clip.CLIPVisionCfg(layers=1, width=64, image_size=32, patch_size=8, pool_type="avg"),
        open_clip.CLIPTextCfg(77, 100, width=64, heads=1, layers=1),
    )
    with pytest.raises(ConfigError, match=r"pooled by 'avg'"):
        image_path(pooled, "auto", 2)
