"""What the value of a key may be, whatever the others are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dho_plugin.errors import ConfigError

SUPPORTED_TRANSFORMS = ("random_resized_crop", "random_flip", "center_crop", "normalize")
INITS = ("language", "kaiming")  # what a head's rows start from
FEATURE_MODES = ("online", "cached", "auto", "fill")  # where an encoder's features come from


class Rule(NamedTuple):
    """Whether a value is allowed, and what is, as an error says it."""

    holds: Callable[[Any], bool]
    allowed: str


def one_of(*choices: str) -> Rule:
    """Return the rule that a value is one of some words."""
    return Rule(lambda value: value in choices, " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]])))


def at_least(least: int, note: str = "") -> Rule:
    """Return the rule that a number has a lower bound."""
    return Rule(lambda value: value >= least, f"{least} or more{note}")


SHARE = Rule(lambda value: 0 <= value <= 1, "a number in [0, 1]")
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "a number in [0, 1)")
POSITIVE = Rule(lambda value: value > 0, "a number above 0")
_TEMPLATES = Rule(
    lambda value: all(re.fullmatch(r"[^{}]*{}[^{}]*", str(template)) for template in value),
    "texts with one {} each, where the class name goes",
)

RULES: Mapping[str, Rule] = {
    "SEED": Rule(lambda value: value < 2**32, "below 2^32"),
    "OPTIM.MAX_EPOCH": at_least(0),
    "DATALOADER.TRAIN_X.BATCH_SIZE": at_least(1),
    "DATALOADER.TRAIN_U.BATCH_SIZE": at_least(1),
    "DATALOADER.TEST.BATCH_SIZE": at_least(1),
    "DATALOADER.NUM_WORKERS": at_least(0),
    "DATASET.SUBSAMPLE_CLASSES": one_of("all", "base", "new"),
    "DATASET.UNREADABLE": one_of("error", "skip"),
    "DATASET.LABELED_PERCENT": Rule(lambda value: 0 <= value <= 100, "a number in [0, 100]"),
    "DATASET.SHOTS_FROM": one_of("auto", "draw"),
    "DATASET.TEMPLATES": _TEMPLATES,
    "INPUT.VIEWS": at_least(0),
    "INPUT.VIEW_SEED": at_least(0),
    "INPUT.KEEP_MB": at_least(0),
    "INPUT.JPEG_GAP": Rule(lambda value: value == 0 or value >= 1, "0, or 1 and above"),
    "INPUT.TRANSFORMS": Rule(
        lambda value: set(value) <= set(SUPPORTED_TRANSFORMS), f"some of {', '.join(SUPPORTED_TRANSFORMS)}"
    ),
    "MODEL.FEATURES": one_of(*FEATURE_MODES),
    "MODEL.TEXT_TOWER": one_of("auto", "plain", "truncated", "shared"),
    "MODEL.IMAGE_TOWER": one_of("auto", "plain"),
    "MODEL.TOME_R": at_least(0),
    "MODEL.INIT_WEIGHTS": Rule(lambda value: not value, "only empty (it is not supported)"),
    "TRAIN.ACCUMULATION": at_least(1),
    "TRAIN.COUNT_ITER": one_of("train_x", "train_u", "smaller_one"),
    "TEST.FINAL_MODEL": one_of("last_step", "best_val"),
    "TEST.SPLIT": one_of("test", "val"),
    "TRAINER.DHO.LAMBDA": SHARE,
    "TRAINER.DHO.ALPHA": SHARE,
    "TRAINER.DHO.BETA": POSITIVE,
    "TRAINER.DHO.ETA": POSITIVE,
    "TRAINER.DHO.ZETA": Rule(lambda value: value >= 0, "a number above 0, or 0 for the weights' own"),
    "TRAINER.DHO.KD_HEAD": one_of("cosine", "linear", "unit", "mlp"),
    "TRAINER.DHO.INIT": one_of(*INITS),
    "TRAINER.DHO.MLP.HIDDEN": Rule(lambda value: value >= 0, "1 or more, or 0 for the features' width"),
    "TRAINER.DHO.MLP.DROPOUT": BELOW_ONE,
    "TRAINER.DHO.PROBE_GRADIENTS": at_least(0, "; 0 is never"),
    "TRAINER.DHO.TEACHER.MODE": one_of(*FEATURE_MODES),
    "TRAINER.PROMPTSRC.TEMPLATES": _TEMPLATES,
}


def check_rules(values: Mapping[str, Any], rules: Mapping[str, Rule] = RULES, prefix: str = "") -> None:
    """Check each value that has a rule.

    Args:
        values: by key, as `dict(flatten(cfg))`, or a node of a config; all keys of the rules.
        rules: by key.
        prefix: what a message says before the key: the node's own name.

    Raises:
        ConfigError: names the key, the value and what is allowed.
    """
    for key, rule in rules.items():
        check_rule(prefix + key, values[key], rule)


def check_rule(key: str, value: Any, rule: Rule) -> None:
    """Check one value.

    Raises:
        ConfigError: names the key, the value and what is allowed.
    """
    if not rule.holds(value):
        raise broken(key, value, rule.allowed)


def broken(key: str, value: Any, allowed: str) -> ConfigError:
    """Return the error of a value that is not allowed."""
    return ConfigError(f"{key} is {value!r}; allowed: {allowed}")
