"""Typed errors: every message names the key or path, what was found, what is allowed and what to do next."""


class DHOError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(DHOError):
    """A configuration key, flag or combination of them is wrong."""


class DataError(DHOError):
    """A data folder, file, split or class list is missing or wrong."""


class CacheError(DHOError):
    """A stored teacher or feature cache does not belong to this run, or is damaged."""


class CheckpointError(DHOError):
    """A checkpoint is missing, damaged, or belongs to another model."""
