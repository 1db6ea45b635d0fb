"""Stored logits for the analyses, and the same answers in numpy."""

import numpy as np
import pytest
import torch

from dho_plugin.engine.evaluator import TestLogits


@pytest.fixture
def make_logits():
    """Return a function that draws stored logits of two heads that are right about half of the time."""

    def make(images=200, classes=7, seed=0, unreadable=0, heads=2):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, classes, images)
        right = 2.0 * np.eye(classes)[labels]
        ce, kd = (torch.tensor(right + rng.normal(size=(images, classes)) * 1.5, dtype=torch.float64) for _ in "ab")
        labels[:unreadable] = -1
        names = tuple(f"class {number}" for number in range(classes))
        return TestLogits(ce, kd if heads == 2 else None, torch.from_numpy(labels), names)

    return make
