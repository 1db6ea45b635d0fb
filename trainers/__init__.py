"""The methods, one file each; importing this package registers them all."""

from dho_plugin.trainers import coop, distill, distill_baselines, distill_features, linear_probe, promptsrc, vpt, zsclip  # noqa: F401
