"""`import dho_plugin.register` in a host's train.py: its `--trainer` knows `X_DHO`, its config `TRAINER.DHO`.

Nothing that a host's own trainers do is changed: names and keys are added, none is replaced.
"""

from dho_plugin.hosts.config import extend_defaults
from dho_plugin.hosts.own import own_trainers
from dho_plugin.hosts.registry import resolve_trainers

extend_defaults()
resolve_trainers(own_trainers())
