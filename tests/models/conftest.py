"""A tiny CLIP in OpenAI's format, and CLIP's text transformer written again in float64."""

import math

import open_clip
import pytest
import torch

from dho_plugin.models.clip import load_clip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
VIT = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2}
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
def reference_text(tiny_state):
    """Text features by the published formulas: (N, L, W) float64 prompts, (N,) end positions -> (N, D)."""
    state = {k: v.double() for k, v in tiny_state.items()}

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * state[name + ".weight"] + state[name + ".bias"]

    def block(x, name):
        qkv = norm(x, name + "ln_1") @ state[name + "attn.in_proj_weight"].T + state[name + "attn.in_proj_bias"]
        q, k, v = qkv.chunk(3, dim=-1)  # the tiny tower has one head
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        x = x + mixed @ state[name + "attn.out_proj.weight"].T + state[name + "attn.out_proj.bias"]
        hidden = norm(x, name + "ln_2") @ state[name + "mlp.c_fc.weight"].T + state[name + "mlp.c_fc.bias"]
        hidden = hidden / (1 + torch.exp(-1.702 * hidden))  # QuickGELU
        return x + hidden @ state[name + "mlp.c_proj.weight"].T + state[name + "mlp.c_proj.bias"]

    def features(prompts, eot):
        x = prompts + state["positional_embedding"]
        for layer in range(TEXT["layers"]):
            x = block(x, f"transformer.resblocks.{layer}.")
        return norm(x, "ln_final")[torch.arange(len(x)), eot] @ state["text_projection"]

    return features
