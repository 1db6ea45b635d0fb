"""CLIP's text transformer on prompt embeddings, as the CLIP itself runs it: the plain path."""

from collections.abc import Sequence

import open_clip
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, arange, cat, nn

from dho_plugin.errors import ConfigError
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.deep_prompts import run_blocks


class TextTower(nn.Module):
    """The frozen text tower of a CLIP, taking embeddings instead of tokens; it shares the CLIP's parameters.

    Args:
        clip: a CLIP whose text feature is read at the end-of-text token.

    Raises:
        ConfigError: the tower has no such token.
    """

    def __init__(self, clip: LoadedCLIP):
        super().__init__()
        if reason := unsuited(clip):
            raise ConfigError(
                f"MODEL.BACKBONE.NAME: prompts cannot be learned for {clip.name}: {reason}. "
                "Choose a CLIP such as ViT-B/16"
            )
        text = getattr(clip.model, "text", clip.model)
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.transformer = text.transformer
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)
        self.eos_id = _eos_id(text)
        self.tokenizer = clip.tokenizer
        self.requested_path = clip.text_tower

    @property
    def context_length(self) -> int:
        """Longest prompt L in tokens, with start and end."""
        return self.positional_embedding.shape[0]

    @property
    def layers(self) -> int:
        """Number of transformer layers."""
        return len(self.transformer.resblocks)

    @property
    def width(self) -> int:
        """Width W of a token embedding."""
        return self.positional_embedding.shape[1]

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the token embeddings (N, L, W), without positions, of tokens (N, L) int64."""
        return self.token_embedding(tokens)

    def eot(self, tokens: Tensor) -> Tensor:
        """Return the position (N,) int64 of the end-of-text token in tokens (N, L) int64."""
        marks = tokens if self.eos_id is None else (tokens == self.eos_id).int()
        return marks.argmax(dim=-1)

    def forward(self, prompts: Tensor, eot: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
        """Encode prompt embeddings as the CLIP encodes text.

        Args:
            prompts: (N, L, W) embeddings without positions; L up to the context length.
            eot: (N,) int64, position of the end-of-text token.
            deep: (M, W) prompts of the layers from the second on, each in the place of the M tokens behind the start
                token (PromptSRC, "independent vision-language prompting"); no positions are added to them.

        Returns:
            (N, D) text features, not normalized.
        """
        length = prompts.shape[1]
        x, mask = prompts + self.positional_embedding[:length], self.attn_mask
        mask = None if mask is None else mask[:length, :length]
        x = run_blocks(self.transformer, x, deep, behind_start, attn_mask=mask)
        return self.project(self.ln_final(x)[arange(len(x), device=x.device), eot])

    def project(self, x: Tensor) -> Tensor:
        """Return the features (N, D) of normed end-of-text tokens (N, W)."""
        if self.text_projection is None:
            return x
        return self.text_projection(x) if isinstance(self.text_projection, nn.Linear) else x @ self.text_projection


def checkpoint_text(clip: LoadedCLIP, on: bool = True) -> None:
    """Keep only each layer's input for the backward through the text tower; the rest is computed once more."""
    getattr(clip.model, "text", clip.model).transformer.grad_checkpointing = on


def unsuited(clip: LoadedCLIP) -> str:
    """Return why no `TextTower` can be made of a CLIP's text tower, or ""."""
    text = getattr(clip.model, "text", clip.model)
    if isinstance(text, HFTextEncoder):
        return "its text tower comes from another library"
    if isinstance(clip.model, open_clip.CoCa) or getattr(text, "cls_emb", None) is not None:
        return "its text tower appends a class token"
    if _pool_type(text) not in ("argmax", "eos"):
        return f"its text feature is pooled by {_pool_type(text)!r}, not at the end-of-text token"
    return ""


def behind_start(x: Tensor, prompts: Tensor) -> Tensor:
    """Return (N, L, W) with prompts (M, W) in the place of the M tokens behind the start."""
    return cat([x[:, :1], prompts.expand(len(x), -1, -1), x[:, 1 + len(prompts) :]], dim=1)


def _pool_type(text: nn.Module) -> str:
    return text.text_pool_type if hasattr(text, "text_pool_type") else text.pool_type


def _eos_id(text: nn.Module) -> int | None:
    """Return the end token's id, or None where it is the highest id of each prompt."""
    if _pool_type(text) == "argmax":
        return None
    return text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id
