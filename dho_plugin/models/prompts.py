"""Learnable text prompts: CoOp's context vectors around the class names."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dho_plugin.errors import CheckpointError, ConfigError
from dho_plugin.models.deep_prompts import draw
from dho_plugin.models.text_tower import TextTower

POSITIONS = ("end", "middle", "front")


class PromptLearner(nn.Module):
    """Context vectors learned in the place of a prompt's words (CoOp, Eq. 2-4).

    `state_dict` has the original's keys `ctx`, `token_prefix` and `token_suffix`; when loading, the latter two are
    ignored, because they follow from the class names of this run.

    Args:
        classnames: C names; "_" reads as a space.
        tower: the text tower, for its tokenizer and token embeddings.
        n_ctx: number of context vectors; None: as many as `ctx_init` has words, else 16.
        ctx_init: words whose first `n_ctx` tokens the context starts from; further tokens stay as they are, between
            context and name. "" draws from N(0, 0.02^2).
        class_specific: one context per class instead of one for all.
        position: where the class name stands: "end", "middle" (after n_ctx // 2 vectors) or "front".
        key: config key of `n_ctx`, for messages.

    Raises:
        ConfigError: a prompt does not fit the context length, or an argument is not allowed.
    """

    def __init__(
        self,
        classnames: Sequence[str],
        tower: TextTower,
        *,
        n_ctx: int | None = None,
        ctx_init: str = "",
        class_specific: bool = False,
        position: str = "end",
        key: str = "TRAINER.COOP.N_CTX",
    ):
        super().__init__()
        self.key = key
        n_ctx = len(_words(ctx_init)) or 16 if n_ctx is None else n_ctx
        check_prompts(n_ctx, ctx_init, class_specific, position)
        names = [name.replace("_", " ") for name in classnames]
        words = _embedded(_words(ctx_init), tower)
        if ctx_init and len(words) < n_ctx:
            raise ConfigError(f"{key} is {n_ctx}, but CTX_INIT {ctx_init!r} has {len(words)} tokens: lower it")
        drawn = draw(*([len(names)] if class_specific else []), n_ctx, tower.width)
        self.ctx = nn.Parameter(words[:n_ctx].clone()) if ctx_init else drawn
        self._register_tokens(names, tower, words[n_ctx:], position)
        self.register_load_state_dict_pre_hook(_keep_own_tokens)

    def _register_tokens(self, names: list[str], tower: TextTower, kept: Tensor, position: str) -> None:
        """Register what surrounds the context: the start, then the kept words (K, W), name, stop and end."""
        length, device = tower.context_length, tower.positional_embedding.device
        tokens = tower.tokenizer([f"{name}." for name in names])
        eot = tower.eot(tokens) + self.n_ctx + len(kept)
        _check_length(names, eot, length, self.n_ctx, self.key)
        with torch.no_grad():
            embedding = tower.embed(tokens.to(device))
        suffix = torch.cat([kept.expand(len(names), -1, -1), embedding[:, 1:]], dim=1)[:, : length - 1 - self.n_ctx]
        self.register_buffer("token_prefix", embedding[:, :1].clone())
        self.register_buffer("token_suffix", suffix.clone())
        self.register_buffer("eot", eot.to(device), persistent=False)
        name_lengths = tower.eot(tower.tokenizer(names)) - 1  # without the kept words, as in the original
        order = None if position == "end" else _order(name_lengths, self.n_ctx, length, position).to(device)
        self.register_buffer("order", order, persistent=False)

    @property
    def n_ctx(self) -> int:
        """Number of context vectors."""
        return self.ctx.shape[-2]

    def forward(self) -> Tensor:
        """Return the prompts' embeddings (C, L, W), without positions; the feature is read at `self.eot` (C,)."""
        n_classes = self.token_prefix.shape[0]
        ctx = self.ctx if self.ctx.dim() == 3 else self.ctx.expand(n_classes, -1, -1)
        prompts = torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)
        if self.order is None:
            return prompts
        return prompts.gather(1, self.order.unsqueeze(-1).expand_as(prompts))


def check_prompts(n_ctx: int, ctx_init: str, class_specific: bool, position: str) -> None:
    """Check the settings of `PromptLearner`, which need no model to be checked.

    Raises:
        ConfigError: names the key, the value and what is allowed.
    """
    if position not in POSITIONS:
        raise ConfigError(f"TRAINER.COOP.CLASS_TOKEN_POSITION is {position!r}; allowed: {', '.join(POSITIONS)}")
    if n_ctx < 1:
        raise ConfigError(f"TRAINER.COOP.N_CTX: {n_ctx}; it must be at least 1")
    if ctx_init and class_specific:
        raise ConfigError("TRAINER.COOP.CSC is True, but CTX_INIT starts one context for all classes: set one of them")


def _words(ctx_init: str) -> list[str]:
    return ctx_init.replace("_", " ").split()


@torch.no_grad()
def _embedded(words: list[str], tower: TextTower) -> Tensor:
    """Return the token embeddings (T, W) of the words, which may have several tokens each."""
    tokens = tower.tokenizer([" ".join(words)])
    return tower.embed(tokens.to(tower.positional_embedding.device))[0, 1 : tower.eot(tokens).item()]


def _check_length(names: list[str], eot: Tensor, context_length: int, n_ctx: int, key: str) -> None:
    longest = int(eot.argmax())
    if eot[longest] >= context_length:
        raise ConfigError(
            f"{key}: {n_ctx} context tokens and class {names[longest]!r} do not fit the context length of "
            f"{context_length} tokens: lower it (or shorten CTX_INIT)"
        )


def _order(name_lengths: Tensor, n_ctx: int, length: int, position: str) -> Tensor:
    """Return (C, L) int64: where each token of the prompt lies in [start, context, name, rest]."""
    before = 0 if position == "front" else n_ctx // 2
    slot = torch.arange(length).expand(len(name_lengths), -1)
    name_end = 1 + before + name_lengths.unsqueeze(1)
    in_name = (slot > before) & (slot < name_end)
    after_name = (slot >= name_end) & (slot < name_end + n_ctx - before)
    moved = torch.where(in_name, slot + n_ctx - before, slot)
    return torch.where(after_name, slot - name_lengths.unsqueeze(1), moved)


def _keep_own_tokens(module: PromptLearner, state: dict[str, Tensor], prefix: str, *_) -> None:
    ctx = state.get(prefix + "ctx")
    if ctx is not None and ctx.shape != module.ctx.shape:
        raise CheckpointError(
            f"the checkpoint's ctx is {tuple(ctx.shape)}, this run's {tuple(module.ctx.shape)}: {module.key}, "
            f"CSC, CTX_INIT, MODEL.BACKBONE.NAME and (with CSC) the classes must be those of the checkpoint"
        )
    for name in ("token_prefix", "token_suffix"):
        state[prefix + name] = getattr(module, name)
