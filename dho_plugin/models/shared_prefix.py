"""The text transformer where all prompts begin alike: the beginning runs once, each class adds its own few tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, arange, cat, nn
from torch.nn.functional import scaled_dot_product_attention

from dho_plugin.models.blocks import finish, heads_of, own_precision, projected, run_layer
from dho_plugin.models.buckets import Bucket, by_length
from dho_plugin.models.prompts import PromptLearner
from dho_plugin.models.text_tower import TextTower, behind_start


class SharedPrefix(nn.Module):
    """Features of prompts [start, context, kept words, name, end] with one context for all classes, exactly.

    A token sees only those before it, so the P tokens with which all prompts begin are the same in every layer, with
    deep prompts as well: they run once. The T further tokens of all classes up to their ends are one sequence (T, W),
    class after class from short to long. In attention they see the prefix and their own class; all else works on each
    token alone. Of the last layer only the ends are computed.

    Under autocast the prefix stays in the weights' precision: it costs nothing, and since every class and every
    gradient passes through it, both come out more exact than those of the plain path.

    Args:
        tower: a causal text tower with plain multi-head attention.
        prompts: the prompts; the class names stand behind the one context.
        most: how many buckets of equal length to make at most; None: one for each length, which needs no padding.
    """

    def __init__(self, tower: TextTower, prompts: PromptLearner, most: int | None = None):
        super().__init__()
        self.tower, self.prompts = tower, prompts
        first, eot, device = 1 + prompts.n_ctx, prompts.eot.cpu(), prompts.eot.device
        kept = _alike(prompts.token_suffix[:, : int(eot.min()) - first])  # not the end: each class needs a token
        self.prefix_length = first + kept
        order, self.buckets = by_length(eot + 1 - self.prefix_length, most)
        lengths = torch.tensor([length for length, start, stop in self.buckets for _ in range(start, stop)])
        names = prompts.token_suffix[order.to(device), kept:]
        suffix = [names[start:stop, :length].flatten(0, 1) for length, start, stop in self.buckets]
        buffers = {
            "kept": prompts.token_suffix[0, :kept].clone(),  # (P - 1 - M, W)
            "suffix": cat(suffix),  # (T, W)
            "positions": cat([self.prefix_length + arange(length) for length in lengths.tolist()]),  # (T,)
            "ends": eot[order] - self.prefix_length,  # (C,), within the class
            "end_rows": eot[order] - self.prefix_length + lengths.cumsum(0) - lengths,  # (C,), within the sequence
            "inverse": order.argsort(),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values.to(device), persistent=False)

    def forward(self, deep: Sequence[Tensor] = ()) -> Tensor:
        """Return the prompts' features (C, D), not normalized; `deep` as in `TextTower`."""
        positions, transformer = self.tower.positional_embedding, self.tower.transformer
        prefix = cat([self.prompts.token_prefix[0], self.prompts.ctx, self.kept]) + positions[: self.prefix_length]
        x = self.suffix + positions[self.positions]  # constant: in the first layer no gradient flows into it
        *blocks, last = transformer.resblocks
        for layer, block in enumerate(blocks):
            prefix, x = run_layer(transformer, self._layer, block, prefix, x)
            prefix = prefix if layer >= len(deep) else behind_start(prefix[None], deep[layer])[0]
        ends = run_layer(transformer, self._ends, last, prefix, x)
        return self.tower.project(self.tower.ln_final(ends))[self.inverse]

    def _layer(self, block: nn.Module, prefix: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a block makes of the prefix (P, W) and of the classes' tokens (T, W)."""
        mask = self.tower.attn_mask
        with own_precision(prefix):
            q, k, v = heads_of(block, projected(block, block.ln_1(prefix)))
            prefix = finish(block, prefix, scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0])
        attended = [
            attend(*heads_of(block, rows), k, v, mask[: bucket.length, : bucket.length])
            for bucket, rows in self._by_bucket(projected(block, block.ln_1(x)))
        ]
        return prefix, finish(block, x, cat(attended, dim=1))

    def _ends(self, block: nn.Module, prefix: Tensor, x: Tensor) -> Tensor:
        """Return what a block makes of the end-of-text tokens, (C, W)."""
        with own_precision(prefix):
            k, v = heads_of(block, projected(block, block.ln_1(prefix), "kv"))
        normed, mask, attended = block.ln_1(x), self.tower.attn_mask, []
        q = projected(block, normed[self.end_rows], "q")
        for bucket, rows in self._by_bucket(projected(block, normed, "kv")):
            classes = slice(bucket.start, bucket.stop)
            own_mask = mask[self.ends[classes], : bucket.length].unsqueeze(1)
            attended.append(attend(*heads_of(block, q[classes]), *heads_of(block, rows), k, v, own_mask))
        return finish(block, x[self.end_rows], cat(attended, dim=1))

    def _by_bucket(self, rows: Tensor) -> Iterator[tuple[Bucket, Tensor]]:
        """Yield each bucket with its rows."""
        sizes = [length * (stop - start) for length, start, stop in self.buckets]
        return zip(self.buckets, rows.split(sizes), strict=True)


def attend(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, mask: Tensor) -> Tensor:
    """Attend to a shared prefix and to one's own class in one softmax, without a copy of the prefix for each class.

    Args:
        q: (H, n * Q, d), H heads, Q tokens of each of n classes.
        k: (H, n * L, d), L tokens of each class.
        v: (H, n * L, d).
        prefix_k: (H, P, d), seen by all.
        prefix_v: (H, P, d).
        mask: (Q, L) or (n, Q, L), added to the scores within a class.

    Returns:
        (H, n * Q, d).
    """
    (heads, rows, width), (queries, length), seen = q.shape, mask.shape[-2:], prefix_k.shape[1]
    scale, mask = width**-0.5, mask.to(q.dtype)
    mask = mask.repeat(heads, 1, 1) if mask.dim() == 3 else mask
    own_scores = torch.baddbmm(mask, q.reshape(-1, queries, width), k.reshape(-1, length, width).mT, alpha=scale)
    scores = torch.bmm(q, (prefix_k * scale).mT)
    weights = cat([scores, own_scores.view(heads, rows, length)], dim=-1).softmax(dim=-1)
    own_weights = weights[..., seen:].reshape(-1, queries, length)  # a view, as are all of these
    from_prefix = torch.bmm(weights[..., :seen], prefix_v).view(-1, queries, width)
    return torch.baddbmm(from_prefix, own_weights, v.reshape(-1, length, width)).view(heads, rows, width)


def _alike(tokens: Tensor) -> int:
    """Return how many tokens (C, L, W) all classes have in common from the first on."""
    same = (tokens == tokens[:1]).all(dim=2).all(dim=0)
    return int(same.long().cumprod(dim=0).sum())
