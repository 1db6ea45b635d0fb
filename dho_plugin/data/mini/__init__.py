"""The mini world: a small benchmark in ImageNet's layout, generated on the spot."""
