"""A tiny CLIP in OpenAI's format, of three layers, and the same written again in float64."""

import math

import open_clip
import pytest
import torch

from dho_plugin.engine.views import Preprocess
from dho_plugin.models.clip import LoadedCLIP, load_clip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3}
VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3}
RESNET = {"image_size": 32, "width": 8, "layers": (1, 1, 1, 1), "head_width": 64}


def _state(vision: dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = open_clip.CLIP(32, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**TEXT), quick_gelu=True)
    torch.nn.init.normal_(model.positional_embedding, std=0.3)  # far from zero, so that positions matter in the tests
    torch.nn.init.normal_(model.token_embedding.weight, std=0.3)
    return {**model.state_dict(), "logit_scale": torch.tensor(math.log(100.0))}


@pytest.fixture(scope="session")
def tiny_state() -> dict[str, torch.Tensor]:
    """State dict of a ViT of 32 px with patch 8, in OpenAI's keys."""
    return _state(VIT)


@pytest.fixture(scope="session")
def tiny_resnet_state() -> dict[str, torch.Tensor]:
    """State dict of a ModifiedResNet, in OpenAI's keys."""
    return _state(RESNET)


@pytest.fixture(scope="session")
def tiny_file(tiny_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(tiny_state, path)
    return path


@pytest.fixture(scope="session")
def tiny_clip(tiny_file):
    return load_clip("ViT-B/16", ckpt=str(tiny_file))


@pytest.fixture(scope="session")
def reference(tiny_state, reference_clip):
    """The tiny CLIP by the published formulas, with prompts in both towers."""
    return reference_clip(tiny_state)


@pytest.fixture(scope="session")
def reference_text(reference):
    """Text features by the published formulas: (N, L, W) float64 prompts, (N,) end positions -> (N, D)."""
    return reference.text


@pytest.fixture(scope="session")
def text_clip():
    """Return a function that builds a CLIP, random unless it is given, with a text tower of some kind in float32."""

    def build(model=open_clip.CLIP, tokenizer=None, text_tower="auto", *, quick_gelu=False, **text):
        if isinstance(model, type):
            torch.manual_seed(0)
            cfg = open_clip.CLIPTextCfg(**{**TEXT, "heads": 2, **text})
            model = model(32, open_clip.CLIPVisionCfg(**{**VIT, "layers": 1}), cfg, quick_gelu=quick_gelu)
            own = getattr(model, "text", model)
            for values in (own.positional_embedding, own.token_embedding.weight):
                torch.nn.init.normal_(values, std=0.3)
        tokenizer = tokenizer or open_clip.SimpleTokenizer(context_length=text.get("context_length", 77))
        pre = Preprocess(32, (0,) * 3, (1,) * 3)
        return LoadedCLIP("some-clip", model.eval().requires_grad_(False), tokenizer, pre, text_tower)

    return build
