"""A host's TRAINER_REGISTRY answers for `X_DHO`: our own trainer of that name, else the DHO twin of the host's X."""

from __future__ import annotations

from typing import Any

from dho_plugin.errors import ConfigError
from dho_plugin.hosts.protocol import dassl
from dho_plugin.hosts.twin import dhoify

SUFFIX = "_DHO"
TWIN = "_DHO_twin"  # the host's own trainer with DHO, also where we have one of that name


class Resolver:
    """Looks trainers up for a host: the host's own registrations always come first and stay as they are.

    Args:
        registry: the host's TRAINER_REGISTRY, an object of Dassl's Registry.
        own: our trainers by the names under which a host finds them.
    """

    def __init__(self, registry: Any, own: dict[str, type]):
        self.registry, self.own = registry, own
        self.names, self.find = registry.registered_names, registry.get  # the host's own methods
        self.twins: dict[str, type] = {}

    def registered_names(self) -> list[str]:
        """Return the host's names, then ours, then those of all possible twins."""
        hosts = list(self.names())
        bases = [name for name in hosts if not name.endswith((SUFFIX, TWIN))]
        twins = [name + suffix for suffix in (SUFFIX, TWIN) for name in bases]
        return list(dict.fromkeys([*hosts, *self.own, *twins]))

    def get(self, name: str) -> Any:
        """Return the host's trainer of that name, else ours, else the twin of the host's.

        Raises:
            KeyError: there is none of them, as Dassl raises it.
            ConfigError: the host's trainer can have no twin; the message says why.
        """
        if name in self.names():
            return self.find(name)
        if name in self.own:
            return self.own[name]
        base = name.removesuffix(TWIN).removesuffix(SUFFIX)
        if base == name or base not in self.names():
            return self.find(name)
        if name not in self.twins:
            self.twins[name] = dhoify(self.find(base))
        return self.twins[name]


def resolve_trainers(own: dict[str, type]) -> None:
    """Let the host's TRAINER_REGISTRY answer for our trainers and for twins; a second call changes nothing.

    Raises:
        ConfigError: there is no Dassl, or its registry is of another kind.
    """
    registry = dassl("dassl.engine").TRAINER_REGISTRY
    missing = [name for name in ("registered_names", "get") if not callable(getattr(registry, name, None))]
    if missing:
        raise ConfigError(f"Dassl's TRAINER_REGISTRY has no {', '.join(missing)}; written for Dassl 0.6.3")
    if isinstance(getattr(registry.get, "__self__", None), Resolver):
        return
    resolver = Resolver(registry, own)
    registry.registered_names, registry.get = resolver.registered_names, resolver.get
