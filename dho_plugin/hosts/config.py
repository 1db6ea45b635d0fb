"""The keys that this package adds to a host's defaults; a host's own keys and values stay."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from dho_plugin.engine.config import check_choice
from dho_plugin.engine.defaults import DEFAULTS
from dho_plugin.errors import ConfigError
from dho_plugin.hosts.protocol import dassl
from dho_plugin.hosts.routes import choose_route

ROUTE = "auto"  # TRAINER.DHO.ROUTE, of host trainers turned into DHO ones: auto | A | B


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
    add_missing(defaults, DEFAULTS)
    add_missing(defaults.TRAINER.DHO, {"ROUTE": ROUTE})


def require_dho(cfg) -> None:
    """Check that a host's config has TRAINER.DHO.

    Raises:
        ConfigError: it has not.
    """
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
    check_choice("TRAINER.DHO.KD_HEAD", dho.KD_HEAD, ("cosine", "linear"))
    check_choice("TRAINER.DHO.INIT", dho.INIT, ("language", "kaiming"))
    for key in ("LAMBDA", "ALPHA"):
        if not 0 <= dho[key] <= 1:
            raise ConfigError(f"TRAINER.DHO.{key} is {dho[key]!r}; allowed: a number in [0, 1]")
    for key in ("BETA", "ETA"):
        if not dho[key] > 0:
            raise ConfigError(f"TRAINER.DHO.{key} is {dho[key]!r}; allowed: a number above 0")
    if dho.TEACHER.MODE == "cached":
        raise ConfigError(
            "TRAINER.DHO.TEACHER.MODE cached: a host's views are drawn anew, nothing can be stored; use auto"
        )
    if dho.SEARCH:
        raise ConfigError(
            "TRAINER.DHO.SEARCH is not supported for a host's own trainer: many hosts validate on test images. Set "
            "TRAINER.DHO.ALPHA and BETA at the evaluation instead"
        )
