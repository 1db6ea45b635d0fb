"""The methods, one file each; importing this package registers them all."""

from dho_plugin.trainers import coop, linear_probe, promptsrc, tip_adapter, vpt, zsclip  # noqa: F401
