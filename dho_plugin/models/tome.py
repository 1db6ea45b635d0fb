"""Token merging at inference (ToMe, Bolya et al., ICLR 2023): each layer makes one token of each of the r best pairs.

The published library patches timm's transformers alone, so this is written anew, from the paper, for open_clip's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from open_clip.transformer import Transformer
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


def merging_block(block: nn.Module, x: Tensor, sizes: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Run a plain block of open_clip with proportional attention and merge r tokens between attention and MLP.

    Args:
        block: the block.
        x: (N, L, W) tokens, the class token first.
        sizes: (N, L, 1), of how many tokens each one is the mean.
        r: tokens to merge.

    Returns:
        Tokens (N, L - r, W) and sizes (N, L - r, 1).
    """
    attn, length = block.attn, x.shape[1]
    rows = projected(block, block.ln_1(x).flatten(0, 1))
    q, k, v = rows.view(-1, length, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)  # (N, H, L, d) each
    attended = scaled_dot_product_attention(q, k, v, attn_mask=_weights(sizes).unsqueeze(1).to(q.dtype))
    x = x + block.ls_1(attn.out_proj(attended.transpose(1, 2).flatten(2)))
    if r and length > 2:
        matching = bipartite_matching(k.mean(dim=1), r)
        total = merged(sizes, matching)
        x, sizes = merged(x * sizes, matching) / total, total
    return x + block.ls_2(block.mlp(block.ln_2(x))), sizes


def merging_tower(transformer: Transformer, x: Tensor, r: int) -> Tensor:
    """Return the class token (N, W) behind all blocks, each of which merges r of the tokens (N, L, W).

    The last block works for the class token alone, which no merging behind its attention changes.
    """
    *blocks, last = transformer.resblocks
    sizes = torch.ones_like(x[..., :1])
    for block in blocks:
        x, sizes = merging_block(block, x, sizes, r)
    return first_token(last, x, _weights(sizes))


def _weights(sizes: Tensor) -> Tensor:
    """Return what proportional attention adds to the keys' scores, (N, 1, L): a token counts for all that it is of."""
    return sizes.log().mT
