"""The keys that this package adds to a host's defaults; a host's own keys and values stay."""

from __future__ import annotations

import os
from typing import Any

from yacs.config import CfgNode

from dho_plugin.engine.config import flatten, get_cfg_default
from dho_plugin.engine.defaults import DEFAULTS
from dho_plugin.engine.rules import RULES, check_rules, one_of
from dho_plugin.errors import ConfigError
from dho_plugin.hosts.protocol import dassl
from dho_plugin.hosts.routes import choose_route

ROUTE = "auto"  # TRAINER.DHO.ROUTE, of host trainers turned into DHO ones: auto | A | B
# Of the keys that Dassl lacks, those that a host's own trainer with DHO reads; SUBSAMPLE_CLASSES is the hosts' own.
READ = ("TRAINER.", "MODEL.BACKBONE.", "MODEL.TEXT_TOWER", "DATASET.TEMPLATES", "DATASET.SUBSAMPLE_CLASSES")
_added: dict[str, Any] = {}  # the keys that Dassl lacks, and their defaults
KD_HEAD = one_of("cosine", "linear")  # fewer than beside our own trainers


def add_missing(node: CfgNode, wanted: dict[str, Any]) -> None:
    """Add the keys of `wanted` that a config node lacks."""
    for key, value in wanted.items():
        if key not in node:
            node[key] = CfgNode(value) if isinstance(value, dict) else value
        elif isinstance(value, dict) and isinstance(node[key], CfgNode):
            add_missing(node[key], value)


def extend_defaults() -> None:
    """Add our keys to Dassl's defaults: TRAINER.DHO, our trainers' nodes, and the keys elsewhere that Dassl lacks.

    A host's own extend_cfg comes later and puts its nodes in the place of ours.

    Raises:
        ConfigError: there is no Dassl.
    """
    defaults = dassl("dassl.config.defaults")._C
    theirs = dict(flatten(defaults))
    _added.update((key, value) for key, value in flatten(get_cfg_default()) if key not in theirs)
    add_missing(defaults, DEFAULTS)
    add_missing(defaults.TRAINER.DHO, {"ROUTE": ROUTE})


def require_dho(cfg) -> None:
    """Check that a host's config has TRAINER.DHO, and that it runs as one process.

    Raises:
        ConfigError: it has not, or torchrun started several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes (WORLD_SIZE), and a host's train.py knows one: "
            "start it without torchrun. Our own `python -m dho_plugin.train` runs on several GPUs"
        )
    if "DHO" not in cfg.TRAINER:
        raise ConfigError(
            "the host's config has no TRAINER.DHO: import dho_plugin.register in its train.py, or start that with "
            "dho-host. Dassl's own tools/train.py takes the node away again (clean_cfg): use another train.py"
        )


def check_dho(cfg) -> None:
    """Check TRAINER.DHO in a host's config.

    Raises:
        ConfigError: names the key, the value and what is allowed.
    """
    require_dho(cfg)
    dho = cfg.TRAINER.DHO
    choose_route(dho.get("ROUTE", ROUTE), dho.LAMBDA)
    keys = ("LAMBDA", "ALPHA", "BETA", "ETA", "INIT")
    rules = {key: RULES[f"TRAINER.DHO.{key}"] for key in keys} | {"KD_HEAD": KD_HEAD}
    check_rules(dho, rules, "TRAINER.DHO.")
    if dho.TEACHER.MODE not in ("auto", "online"):
        raise ConfigError(
            f"TRAINER.DHO.TEACHER.MODE {dho.TEACHER.MODE}: a host's views are drawn anew, nothing can be stored; "
            "use auto"
        )
    if dho.SEARCH:
        raise ConfigError(
            "TRAINER.DHO.SEARCH is not supported for a host's own trainer: many hosts validate on test images. Set "
            "TRAINER.DHO.ALPHA and BETA at the evaluation instead"
        )
    if dho.PROBE_GRADIENTS:
        raise ConfigError(
            f"TRAINER.DHO.PROBE_GRADIENTS is {dho.PROBE_GRADIENTS}: a host's own trainer takes its step itself, and "
            "nothing of it is recorded; leave it 0"
        )
    if ignored := _not_read(cfg):
        raise ConfigError(
            f"{', '.join(ignored)}: only our own trainers read that, a host's with DHO does not; leave it out"
        )


def _not_read(cfg) -> list[str]:
    """Return the keys that are set although only our own trainers read them."""
    values = dict(flatten(cfg))
    ours = [key for key in _added if not key.startswith(READ)]
    return [key for key in ours if values.get(key, _added[key]) != _added[key]]
