"""Token merging at inference (ToMe, Bolya et al., ICLR 2023): each layer makes one token of each of the r best pairs.

The published library patches timm's transformers alone, and leaves out their LayerScale, so this is written anew, from
the paper, for open_clip's and timm's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from open_clip.transformer import Transformer
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from dho_plugin.models.blocks import first_token, projected


class Matching(NamedTuple):
    """Which tokens of set A (places 0, 2, ...) go into which of set B (places 1, 3, ...).

    Attributes:
        kept: (N, A - r) places in A of the tokens that stay, ascending; the class token is the first of them.
        source: (N, r) places in A of those that are merged.
        target: (N, r) places in B that they are merged into.
    """

    kept: Tensor
    source: Tensor
    target: Tensor


def bipartite_matching(metric: Tensor, r: int) -> Matching:
    """Bipartite soft matching (ToMe, section 3): each token of A and the most similar one of B; the r best pairs merge.

    Args:
        metric: (N, L, d), what tokens are compared by, by its cosine; the class token's, at place 0, is never merged.
        r: tokens to merge; of L at most half of all but the class token are.
    """
    r = min(r, (metric.shape[1] - 1) // 2)
    unit = normalize(metric, dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].mT
    best, partner = similarity.max(dim=-1)
    best[:, 0] = -torch.inf
    order = best.argsort(dim=-1, descending=True)
    source = order[:, :r]
    return Matching(order[:, r:].sort(dim=-1).values, source, partner.gather(1, source))


def merged(values: Tensor, matching: Matching) -> Tensor:
    """Return the sums (N, L - r, W) of the tokens (N, L, W) that become one: A's that are kept, then all of B's."""
    a, b = values[:, ::2], values[:, 1::2]
    rows = [places.unsqueeze(-1).expand(-1, -1, values.shape[-1]) for places in matching]
    return torch.cat([a.gather(1, rows[0]), b.scatter_add(1, rows[2], a.gather(1, rows[1]))], dim=1)


class BlockParts(NamedTuple):
    """What merging needs of a transformer's block, whoever wrote it.

    Attributes:
        project: tokens (N, L, W) -> their queries, keys and values, (3, N, H, L, d).
        out: what attention gave, (N, L, W) -> what is added to the tokens.
        mlp: tokens (N, L, W) -> what is added to them behind the merging.
    """

    project: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]


def of_open_clip(block: nn.Module) -> BlockParts:
    """Return the parts of a plain block of open_clip."""
    attn = block.attn

    def project(x: Tensor) -> Tensor:
        rows = projected(block, block.ln_1(x).flatten(0, 1))
        return rows.view(*x.shape[:2], 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)

    return BlockParts(project, lambda y: block.ls_1(attn.out_proj(y)), lambda x: block.ls_2(block.mlp(block.ln_2(x))))


def of_timm(block: nn.Module) -> BlockParts:
    """Return the parts of a plain block of timm, as it is in evaluation: nothing is dropped."""
    attn = block.attn

    def project(x: Tensor) -> Tensor:
        rows = attn.qkv(block.norm1(x))
        q, k, v = rows.view(*x.shape[:2], 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        return torch.stack([attn.q_norm(q), attn.k_norm(k), v])

    return BlockParts(
        project, lambda y: block.ls1(attn.proj(attn.norm(y))), lambda x: block.ls2(block.mlp(block.norm2(x)))
    )


def merging_block(parts: BlockParts, x: Tensor, sizes: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Run a block with proportional attention and merge r tokens between attention and MLP.

    Args:
        parts: the block's.
        x: (N, L, W) tokens, the class token first.
        sizes: (N, L, 1), of how many tokens each one is the mean.
        r: tokens to merge.

    Returns:
        Tokens (N, L - r, W) and sizes (N, L - r, 1).
    """
    q, k, v = parts.project(x)
    attended = scaled_dot_product_attention(q, k, v, attn_mask=_weights(sizes).unsqueeze(1).to(q.dtype))
    x = x + parts.out(attended.transpose(1, 2).flatten(2))
    if r and x.shape[1] > 2:
        matching = bipartite_matching(k.mean(dim=1), r)
        total = merged(sizes, matching)
        x, sizes = merged(x * sizes, matching) / total, total
    return x + parts.mlp(x), sizes


def merging_tower(transformer: Transformer, x: Tensor, r: int) -> Tensor:
    """Return the class token (N, W) behind all blocks, each of which merges r of the tokens (N, L, W).

    The last block works for the class token alone, which no merging behind its attention changes.
    """
    *blocks, last = transformer.resblocks
    sizes = torch.ones_like(x[..., :1])
    for block in blocks:
        x, sizes = merging_block(of_open_clip(block), x, sizes, r)
    return first_token(last, x, _weights(sizes))


def timm_obstacle(model: nn.Module) -> str:
    """Return why tokens of an image encoder of timm cannot be merged, or ""."""
    if type(model) is not VisionTransformer:
        return f"it is a {type(model).__name__}, no plain vision transformer"
    if model.attn_pool is not None or model.global_pool != "token":
        return f"its feature is pooled by {'attention' if model.attn_pool is not None else repr(model.global_pool)}"
    if model.num_prefix_tokens != 1:
        return f"{model.num_prefix_tokens} of its tokens are no part of the image, where one, the class token, is known"
    plain = (type(b) is Block and type(b.attn) is Attention for b in model.blocks)
    if not all(plain) or any(getattr(b.attn, "gate", None) is not None for b in model.blocks):
        return "its attention is not plain multi-head attention"
    return ""


def merging_timm(model: VisionTransformer, images: Tensor, r: int) -> Tensor:
    """Return the features (B, D) of images (B, 3, H, W); each layer of timm's transformer but the last merges r tokens.

    The feature is the class token's, which no merging behind the last attention changes.
    """
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    sizes, last = torch.ones_like(x[..., :1]), len(model.blocks) - 1
    for layer, block in enumerate(model.blocks):
        x, sizes = merging_block(of_timm(block), x, sizes, r if layer < last else 0)
    return model.forward_head(model.norm(x))


def _weights(sizes: Tensor) -> Tensor:
    """Return what proportional attention adds to the keys' scores, (N, 1, L): a token counts for all that it is of."""
    return sizes.log().mT
