"""Parts of a residual attention block of open_clip: what the fast ways through both towers are made of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def run_layer(transformer: nn.Module, layer: Callable[..., T], *args, **kwargs) -> T:
    """Call a layer; with `transformer.grad_checkpointing`, open_clip's switch, the backward computes it once more."""
    if transformer.grad_checkpointing and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    return layer(*args, **kwargs)


def is_plain(block: nn.Module) -> bool:
    """Return whether the functions below compute what a block does: plain multi-head attention, nothing else."""
    attn = getattr(block, "attn", None)
    return (
        type(block) is ResidualAttentionBlock
        and type(attn) is nn.MultiheadAttention
        and not hasattr(block, "ln_1_kv")
        and attn.in_proj_weight is not None
        and attn.in_proj_bias is not None
        and attn.bias_k is None
        and not attn.add_zero_attn
        and not attn.dropout
    )


def projected(block: nn.Module, rows: Tensor, which: str = "qkv") -> Tensor:
    """Return queries, keys and values, or those named, (R, n * W) of normed rows (R, W)."""
    first, width = "qkv".index(which), rows.shape[1]
    own = slice(first * width, (first + len(which)) * width)
    return linear(rows, block.attn.in_proj_weight[own], block.attn.in_proj_bias[own])


def heads_of(block: nn.Module, rows: Tensor) -> Tensor:
    """Return (n, H, R, d) of projected rows (R, n * W): each head's rows together, as attention needs them."""
    attn = block.attn
    return rows.view(rows.shape[0], -1, attn.num_heads, attn.head_dim).permute(1, 2, 0, 3).contiguous()


def finish(block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
    """Return what a block makes of x (R, W) and of what its attention gave, (H, R, d)."""
    x = x + block.ls_1(block.attn.out_proj(attended.transpose(0, 1).flatten(1)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def first_token(block: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what a block makes of each sequence's first token, (N, W), which sees all of x (N, L, W).

    One query needs no keys: with q K^T = (q W_k) n^T, n the normed tokens, and weights V = (weights n) W_v^T, two
    products a head replace 2 W^2 L multiplications. The keys' bias moves all scores of a query alike: it drops out.

    `bias`, (N, 1, L), is added to the scores of all heads.

    Under autocast this stays in the weights' precision: it costs next to nothing, and the scores are more exact.
    """
    attn, normed = block.attn, block.ln_1(x)
    with own_precision(x):
        normed = normed.to(attn.in_proj_weight.dtype)
        q = heads_of(block, projected(block, normed[:, 0], "q"))[0] * attn.head_dim**-0.5  # (H, N, d)
        _, of_keys, of_values = attn.in_proj_weight.view(3, attn.num_heads, attn.head_dim, -1)  # (H, d, W) each
        scores = (q @ of_keys).transpose(0, 1) @ normed.mT  # (N, H, L)
        scores = scores if bias is None else scores + bias
        seen = (scores.softmax(dim=-1) @ normed).transpose(0, 1)  # (H, N, W)
        bias = attn.in_proj_bias.view(3, attn.num_heads, 1, -1)[2]
        attended = torch.baddbmm(bias, seen, of_values.mT)  # (H, N, d)
    return finish(block, x[:, 0], attended)


def own_precision(x: Tensor) -> AbstractContextManager:
    """Switch autocast off."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
