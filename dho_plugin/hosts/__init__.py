"""Inside other codebases: a host's own trainers with DHO, our trainers in a host's registry, and the launcher."""

from dho_plugin.hosts.twin import dhoify  # noqa: F401
