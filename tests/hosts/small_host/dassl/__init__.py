"""A small host's toolbox, written from the protocol that trainers of Dassl-based codebases rely on."""

__version__ = "0.6.3"
