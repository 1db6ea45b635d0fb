"""Of the last layer only the class token: the features of the plain way, and which towers allow it."""

import open_clip
import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from dho_plugin.models.image_encoder import ImagePath, compiled, encode_image, image_path
from dho_plugin.models.mini import MINI_MODELS, build_mini, mini_preprocess

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
TOWERS = {
    "OpenAI": ({}, {"quick_gelu": True}),
    "GELU": ({}, {}),
    "CustomTextCLIP": ({}, {"kind": open_clip.CustomTextCLIP}),
    "LayerScale": ({"ls_init_value": 0.5}, {}),
    "no first norm": ({"no_ln_pre": True}, {}),
    "norm behind the pooling": ({"final_ln_after_pool": True}, {}),
    "fixed positions": ({"pos_embed_type": "sin_cos_2d"}, {}),
    "several heads": ({"head_width": 16}, {"quick_gelu": True}),
    "one layer": ({"layers": 1}, {}),
    "patch dropout": ({"patch_dropout": 0.5}, {}),
}
REFUSED = {
    "mean": ({"pool_type": "avg"}, {}, "pooled by 'avg'"),
    "attention": ({"attentional_pool": True}, {}, "pooled by attention"),
    "qk norm": ({"block_type": "custom", "qk_norm": True}, {}, "not plain multi-head attention"),
    "custom block": ({"block_type": "custom"}, {}, "not plain multi-head attention"),
    "all tokens": ({"output_tokens": True}, {"kind": open_clip.CustomTextCLIP}, "all its tokens are wanted"),
    "ResNet": ({"layers": (1, 1, 1, 1), "width": 8, "head_width": 64}, {}, "ModifiedResNet"),
    "timm": ({"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear"}, {}, "TimmModel"),
}
PLAIN = ImagePath("plain", "")


def model_of(vision, kind=open_clip.CLIP, quick_gelu=False):
    torch.manual_seed(0)
    cfg = open_clip.CLIPVisionCfg(
        **{"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 3} | vision
    )
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=9, width=64, heads=1, layers=1)
    model = kind(32, cfg, text, quick_gelu=quick_gelu).double().eval().requires_grad_(False)
    for name, values in model.visual.named_parameters():  # far from what they start at: every term is to matter
        if "bias" in name or "ln_" in name:
            values.add_(torch.randn_like(values), alpha=0.3)
    return model


def assert_exact(model, images, bound=1e-12):
    assert image_path(model).name == "class token"
    own, other = (encode_image(model, path, images) for path in (image_path(model), PLAIN))
    assert own.shape == other.shape
    assert (own - other).norm() < bound * other.norm()
    assert len(other.unique(dim=0)) == len(images)


@pytest.mark.parametrize("tower", TOWERS)
def test_exact(tower):
    vision, options = TOWERS[tower]
    assert_exact(model_of(vision, **options), IMAGES.double())


def test_exact_without_a_projection():
    model = model_of({})
    model.visual.proj = None
    assert_exact(model, IMAGES.double())


@pytest.mark.parametrize("name", MINI_MODELS)
def test_exact_on_the_mini_models(name):
    torch.manual_seed(0)
    size = mini_preprocess(name).size
    model, images = build_mini(name).double().eval().requires_grad_(False), torch.randn(3, 3, size, size).double()
    assert_exact(model, images)


def test_exact_in_float32_and_in_evaluation_of_open_clips_own_kernels():
    model = model_of({}, quick_gelu=True).float()
    for grad in (torch.enable_grad, torch.no_grad):  # without gradients the plain way takes a fused kernel
        with grad():
            assert_exact(model, IMAGES, bound=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_errs_no_more_than_the_plain_way(dtype):
    model, images = model_of({"layers": 2}, quick_gelu=True).float(), torch.randn(200, 3, 32, 32)
    exact = encode_image(model, PLAIN, images)
    with torch.autocast("cpu", dtype):
        own, other = (encode_image(model, path, images) for path in (image_path(model), PLAIN))
    own, other = ((features - exact).norm() / exact.norm() for features in (own, other))
    assert other > 1e-4
    assert own < 1.1 * other


@pytest.mark.parametrize("tower", REFUSED)
def test_other_towers_run_as_they_are(tower):
    vision, options, reason = REFUSED[tower]
    model = model_of(vision, **options)
    path = image_path(model)
    assert path.name == "plain"
    assert reason in path.reason
    if "timm" not in tower and "all" not in tower:
        assert torch.equal(encode_image(model, path, IMAGES.double()), model.encode_image(IMAGES.double()))


def test_a_model_that_encodes_in_a_way_of_its_own_keeps_it():
    class Doubled(open_clip.CLIP):
        def encode_image(self, image, normalize=False):
            return 2 * super().encode_image(image, normalize)

    model = model_of({}, kind=Doubled)
    assert image_path(model) == ("plain", "Doubled encodes images in a way of its own")
    assert torch.equal(encode_image(model, image_path(model), IMAGES.double()), 2 * model.visual(IMAGES.double()))


def test_the_plain_way_can_be_forced():
    assert image_path(model_of({}), "plain") == ("plain", "MODEL.IMAGE_TOWER asks for it")


def test_the_last_layer_works_for_the_class_token_alone():
    model, rows = model_of({}), []
    hidden = model.visual.transformer.resblocks[-1].mlp.c_fc
    hidden.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].numel() // 64))
    for path in (image_path(model), PLAIN):
        encode_image(model, path, IMAGES.double())
    assert rows == [3, 3 * 17]


class FailingCompilerError(TorchDynamoException):
    pass


@pytest.mark.parametrize("works", [True, False])
def test_an_encoder_that_cannot_be_compiled_says_so_once_and_runs_as_it_is(monkeypatch, capsys, works):
    calls = []

    def compile_(encode):
        def run(images):
            calls.append(len(images))
            if not works:
                raise FailingCompilerError("no compiler\nand many lines")
            return 2 * encode(images)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    run = compiled(lambda images: images.sum(), "some-clip")
    assert [run(torch.ones(3)), run(torch.ones(3))] == ([6, 6] if works else [3, 3])
    assert calls == ([3, 3] if works else [3])
    said = "MODEL.COMPILE: some-clip's image encoder cannot be compiled here and runs as it is: no compiler\n"
    assert capsys.readouterr().out == ("" if works else said)
