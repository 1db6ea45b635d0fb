"""Registries: Dassl's protocol, and helpful refusals."""

import pytest

from dho_plugin.engine.registry import Registry
from dho_plugin.errors import ConfigError


def test_a_class_is_found_under_its_name():
    registry = Registry("trainer", "TRAINER.NAME")

    @registry.register()
    class CoOp:
        pass

    assert registry.get("CoOp") is CoOp
    assert registry.registered_names() == ["CoOp"]
    registry.register(CoOp)  # a module imported twice does no harm
    with pytest.raises(ConfigError, match=r"TRAINER.NAME: unknown trainer 'Coop'. Did you mean 'CoOp'\? Known: CoOp"):
        registry.get("Coop")


def test_a_taken_name_is_refused_unless_forced():
    registry = Registry("trainer", "TRAINER.NAME")
    first, second = type("A", (), {}), type("A", (), {})
    registry.register(first)
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register(second)
    registry.register(second, force=True)
    assert registry.get("A") is second
