"""Prompt vectors for several layers of a transformer, and the loop over its blocks that puts them in their places."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dho_plugin.errors import ConfigError
from dho_plugin.models.blocks import run_layer


class DeepPrompts(nn.Module):
    """Prompt vectors of the layers 1 to depth - 1 (layer 0 has its own), drawn from N(0, 0.02^2).

    The keys in `state_dict` are PromptSRC's: `transformer.resblocks.<layer>.VPT_shallow`.

    Args:
        n_ctx: M, prompts a layer.
        width: W of a token.
        depth: number of layers with prompts, layer 0 included.
    """

    def __init__(self, n_ctx: int, width: int, depth: int):
        super().__init__()
        layers = {str(layer): nn.ParameterDict({"VPT_shallow": draw(n_ctx, width)}) for layer in range(1, depth)}
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleDict(layers)})

    def layers(self) -> list[Tensor]:
        """Return the prompts (M, W) of layer 1, 2, ..."""
        return [layer["VPT_shallow"] for layer in self.transformer["resblocks"].values()]


class VisualPrompts(DeepPrompts):
    """Prompt vectors of an image transformer: `VPT` for layer 0, and those of the deeper layers.

    Args:
        n_ctx: M, prompts a layer.
        width: W of a token.
        depth: number of layers with prompts, at least 1 ("shallow").
    """

    def __init__(self, n_ctx: int, width: int, depth: int):
        super().__init__(n_ctx, width, depth)
        self.VPT = draw(n_ctx, width)


def draw(*shape: int) -> nn.Parameter:
    """Return prompts of a shape, (M, W) or (C, M, W), from N(0, 0.02^2), as CoOp, MaPLe and PromptSRC draw them."""
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=0.02))


def run_blocks(
    transformer: nn.Module,
    x: Tensor,
    deep: Sequence[Tensor] = (),
    place: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    attn_mask: Tensor | None = None,
    last: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> Tensor:
    """Run open_clip's transformer over (N, L, W), with the prompts of layer i put in by `place` before block i.

    Args:
        transformer: open_clip's `Transformer`.
        x: (N, L, W).
        deep: prompts (M, W) of layer 1, 2, ...; layer 0's are in `x`.
        place: (x, prompts) -> x with the prompts in the place of those of the layer before; None without `deep`.
        attn_mask: (L, L) additive mask or None.
        last: (last block, x) -> what is wanted of it, where that is less than all tokens; it takes no mask.

    Returns:
        (N, L, W), or what `last` returns.
    """
    *blocks, top = [partial(block, attn_mask=attn_mask) for block in transformer.resblocks]
    top = top if last is None else partial(last, transformer.resblocks[-1])
    for layer, block in enumerate([*blocks, top]):
        if 0 < layer <= len(deep):
            x = place(x, deep[layer - 1])
        x = run_layer(transformer, block, x)
    return x


def check_depth(key: str, depth: int, layers: int, lowest: int = 1) -> None:
    """Check a prompt depth against the transformer it is meant for.

    Raises:
        ConfigError: names the key, the value and what is allowed.
    """
    if not lowest <= depth <= layers:
        raise ConfigError(f"{key} is {depth}; allowed: {lowest} to {layers}, the layers of this transformer")
