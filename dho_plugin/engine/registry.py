"""Registries with Dassl's protocol: `@TRAINER_REGISTRY.register()` over a class, `.get(name)` to look it up."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from dho_plugin.errors import ConfigError


class Registry:
    """A table of names and the classes behind them.

    Args:
        kind: what is registered, as messages call it ("trainer").
        key: the config key that selects an entry ("TRAINER.NAME").
    """

    def __init__(self, kind: str, key: str):
        self.kind, self.key = kind, key
        self._entries: dict[str, Any] = {}

    def register(self, entry: Any = None, *, force: bool = False) -> Any:
        """Register a class under its own name; usable as `@R.register()` or `R.register(cls)`.

        Raises:
            ConfigError: the name is taken by another class and `force` is not set.
        """
        if entry is None:
            return lambda cls: self.register(cls, force=force)
        name = entry.__name__
        if not force and self._entries.get(name, entry) is not entry:
            raise ConfigError(f"{self.kind} {name!r} is registered twice; rename one or pass force=True")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> Callable[..., Any]:
        """Return the class registered under `name`.

        Raises:
            ConfigError: nothing of that name; the message lists what there is.
        """
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(name, self._entries, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(self.registered_names())
        raise ConfigError(f"{self.key}: unknown {self.kind} {name!r}.{hint} Known: {known}")

    def registered_names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._entries)


TRAINER_REGISTRY = Registry("trainer", "TRAINER.NAME")
DATASET_REGISTRY = Registry("dataset", "DATASET.NAME")
