"""Configuration: yacs nodes with Dassl's keys, so the hosts' own YAML files load unchanged, plus `TRAINER.DHO.*`.

Precedence as in the hosts: defaults < dataset YAML < method YAML < flags < trailing KEY VALUE pairs, then frozen.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from yacs.config import CfgNode

from dho_plugin.engine.defaults import DEFAULTS
from dho_plugin.engine.rules import broken, check_rules
from dho_plugin.errors import ConfigError

PRECISIONS = ("fp32", "fp16", "amp", "bf16")
# Keys that say where and how a run is executed, not what it computes: two runs that differ only here are the same run.
EXECUTION_KEYS = frozenset({
    "TRAINER.DHO.PROBE_GRADIENTS",
    "OUTPUT_DIR", "RESUME", "VERBOSE", "DATASET.ROOT", "DATASET.UNREADABLE", "DATALOADER.NUM_WORKERS",
    "TRAIN.PRINT_FREQ", "TRAIN.CHECKPOINT_FREQ", "TRAIN.ACCUMULATION", "TEST.PER_CLASS_RESULT", "TEST.COMPUTE_CMAT",
    "USE_CUDA", "INPUT.KEEP_MB", "MODEL.FEATURES", "TRAINER.DHO.TEACHER.MODE", "MODEL.TEXT_TOWER",
    "MODEL.TEXT_CHECKPOINTING", "MODEL.IMAGE_TOWER", "MODEL.IMAGE_CHECKPOINTING", "MODEL.CHANNELS_LAST",
    "MODEL.COMPILE",
})  # fmt: skip

# The hosts' keys (or beginnings of keys) that nothing here reads: size and normalization come with the weights, views
# have their own augmentation, and the rest belongs to other trainers of Dassl.
WITHOUT_EFFECT = (
    "INPUT.SIZE", "INPUT.INTERPOLATION", "INPUT.PIXEL_", "INPUT.NO_TRANSFORM", "INPUT.CROP_PADDING", "INPUT.CUTOUT_",
    "INPUT.GN_", "INPUT.RANDAUGMENT_", "INPUT.COLORJITTER_", "INPUT.RGS_P", "INPUT.GB_", "DATASET.SOURCE_DOMAINS",
    "DATASET.TARGET_DOMAINS", "DATASET.NUM_LABELED", "DATASET.VAL_PERCENT", "DATASET.STL10_FOLD", "DATASET.CIFAR_C_",
    "DATASET.ALL_AS_UNLABELED", "DATALOADER.K_TRANSFORMS", "DATALOADER.RETURN_IMG0", "DATALOADER.TRAIN_X.SAMPLER",
    "DATALOADER.TRAIN_U.SAMPLER", "DATALOADER.TEST.SAMPLER", "DATALOADER.TRAIN_X.N_", "DATALOADER.TRAIN_U.N_",
    "MODEL.BACKBONE.PRETRAINED", "MODEL.BACKBONE.SIZE", "MODEL.HEAD.", "TEST.EVALUATOR",
)  # fmt: skip


def get_cfg_default() -> CfgNode:
    """Return a fresh, unfrozen copy of the defaults (Dassl's keys and values, and ours)."""
    return CfgNode(DEFAULTS).clone()


def flatten(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a config as (`A.B.C`, value)."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def as_plain(cfg: CfgNode) -> dict[str, Any]:
    """Return a config as nested plain dicts and lists, ready for JSON."""
    plain = {k: as_plain(v) if isinstance(v, CfgNode) else v for k, v in cfg.items()}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def differing_keys(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the keys, `A.B: mine != other`, in which two plain configs describe different computations.

    A key that one of them lacks, because it was stored before that key was there, has its default. A published data set
    is the same wherever it lies; of one's own data the place says which data it is.
    """
    defaults = dict(flatten(CfgNode(as_plain(get_cfg_default()))))
    a, b = (defaults | dict(flatten(CfgNode(plain))) for plain in (mine, other))
    own = "ImageFolder" in (a["DATASET.NAME"], b["DATASET.NAME"])
    keys = sorted((a.keys() | b.keys()) - (EXECUTION_KEYS - {"DATASET.ROOT"} if own else EXECUTION_KEYS))
    return [f"{k}: {b.get(k)!r} there, {a.get(k)!r} here" for k in keys if a.get(k) != b.get(k)]


def _check_known(cfg: CfgNode, pairs: Iterator[tuple[str, Any]], source: str) -> None:
    known = dict(flatten(cfg))
    nodes = {key.rsplit(".", i)[0] for key in known for i in range(1, key.count(".") + 1)}
    for key, _ in pairs:
        if key in known or key in nodes:
            continue
        near = difflib.get_close_matches(key, [*known, *nodes], n=3, cutoff=0.6)
        siblings = sorted(k for k in known if k.rsplit(".", 1)[0] == key.rsplit(".", 1)[0])
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known beside it: {', '.join(siblings) or 'nothing'}"
        raise ConfigError(f"{source}: unknown config key {key!r}. {hint}")


def merge_file(cfg: CfgNode, path: str | Path) -> None:
    """Merge a YAML file, a host's own ones included, into `cfg`.

    Raises:
        ConfigError: missing file, broken YAML, an unknown key (close matches are listed) or a value of another type.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        loaded = CfgNode(yaml.safe_load(text) or {})
    except FileNotFoundError as error:
        found = ", ".join(sorted(p.stem for p in Path(path).parent.glob("*.yaml"))) or "no YAML file"
        raise ConfigError(f"config file {str(path)!r} does not exist; its folder holds: {found}") from error
    except (yaml.YAMLError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r} is not readable as YAML: {error}") from error
    _check_known(cfg, flatten(loaded), str(path))
    _fit_types(loaded, cfg)
    try:
        cfg.merge_from_other_cfg(loaded)
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"config file {str(path)!r}: {error}") from error


def _fit_types(loaded: CfgNode, cfg: CfgNode) -> None:
    """Make 25 a 25.0 where the key holds a float, and keep texts: yacs reads a folder named "2024" as a number."""
    for key, value in loaded.items():
        if isinstance(value, CfgNode):
            _fit_types(value, cfg[key])
        elif type(value) is int and isinstance(cfg[key], float):
            loaded[key] = float(value)
        elif isinstance(value, str) and isinstance(cfg[key], str):
            loaded[key] = repr(value)


def merge_pairs(cfg: CfgNode, pairs: Sequence[str]) -> None:
    """Merge trailing `KEY VALUE KEY VALUE ...` pairs into `cfg`.

    Raises:
        ConfigError: an odd number of words, a flag, an unknown key (close matches are listed) or a value of another
            type.
    """
    if flags := [word for word in pairs if word.startswith("--")]:
        raise ConfigError(f"flags come before KEY VALUE pairs; found behind them: {', '.join(flags)}")
    if len(pairs) % 2:
        raise ConfigError(f"trailing options come as KEY VALUE pairs; got {len(pairs)} words: {' '.join(pairs)}")
    _check_known(cfg, ((key, None) for key in pairs[::2]), "command line")
    known = dict(flatten(cfg))
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if isinstance(known.get(key), float) and re.fullmatch(r"[+-]?\d+", value):
            value = f"{value}.0"
        if isinstance(known.get(key), tuple) and not any(isinstance(item, float | int) for item in known[key]):
            value = repr(_names(value))
        if isinstance(known.get(key), str) and not re.fullmatch(r"""(['"]).*\1""", value):
            value = repr(value)  # else a folder named 2024 would be a number
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError, SyntaxError) as error:
            kind = type(known.get(key, {})).__name__
            raise ConfigError(f"{key}: {value!r} is not a {kind} ({error})") from error


def _names(value: str) -> tuple[str, ...]:
    """Return the names in `night,sketches`, `('night', 'sketches')` or `[night, sketches]`, or one prompt template."""
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        found = value
    if isinstance(found, tuple | list):
        return tuple(map(str, found))
    if "{" in str(found):  # one template, whatever commas it has
        return (str(found),)
    return tuple(name for part in str(found).strip("()[]").split(",") if (name := part.strip().strip("'\"")))


def without_effect(cfg: CfgNode) -> list[str]:
    """Return the settings, `A.B = value`, that differ from the defaults although nothing here reads them."""
    defaults, idle = dict(flatten(get_cfg_default())), WITHOUT_EFFECT
    if cfg.TRAINER.NAME.startswith("Distill_"):
        idle = tuple(key for key in idle if key not in ("MODEL.BACKBONE.PRETRAINED", "MODEL.BACKBONE.SIZE"))
    return [f"{k} = {v}" for k, v in flatten(cfg) if k.startswith(idle) and v != defaults[k]]


def check_cfg(cfg: CfgNode) -> None:
    """Check what holds for every trainer; what only one trainer knows is checked by its own `check_cfg`.

    Raises:
        ConfigError: names the key, the value and what is allowed.
    """
    check_rules(dict(flatten(cfg)))
    dho, data = cfg.TRAINER.DHO, cfg.DATASET
    if dho.KD_HEAD == "mlp" and dho.INIT != "kaiming":
        allowed = "only kaiming beside KD_HEAD mlp: class features fit none of its layers"
        raise broken("TRAINER.DHO.INIT", dho.INIT, allowed)
    if data.NUM_SHOTS >= 1 and data.LABELED_PERCENT:
        allowed = "only -1 beside DATASET.LABELED_PERCENT: the one or the other says what is labeled"
        raise broken("DATASET.NUM_SHOTS", data.NUM_SHOTS, allowed)
    for key in ("CSV", "TEST_SETS"):
        if data[key] and data.NAME != "ImageFolder":
            raise broken(f"DATASET.{key}", data[key], "only empty, but for ImageFolder")


def dataset_label(cfg: CfgNode) -> str:
    """Return the short name of a run's data as folders and tables show it: the data set's name, such as `oxfordpets`.

    A world in ImageNet's layout is called as its folder, `mini`, and so are one's own data, with their CSV if there is
    one: `photos_labels`.
    """
    data = cfg.DATASET
    if data.NAME != "ImageFolder":
        return (data.NAME.startswith("ImageNet") and data.PREFIX) or data.NAME.lower()
    folder = PurePath(data.PREFIX or data.ROOT).name or data.NAME.lower()
    return f"{folder}_{PurePath(data.CSV).stem}" if data.CSV else folder
