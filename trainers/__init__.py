"""The methods, one file each; importing this package registers them all."""

from dho_plugin.trainers import (  # noqa: F401
    coop,
    distill,
    distill_baselines,
    distill_features,
    linear_probe,
    promptsrc,
    tip_adapter,
    vpt,
    zsclip,
)
