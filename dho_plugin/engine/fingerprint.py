"""What stored features belong to: fingerprints of weights and of image files."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dho_plugin.engine.data import ImageList

THREADS = 8  # a network disk answers several questions at once


def digest(content: Any) -> str:
    """Return ten hexadecimal digits that stand for plain values, whatever the order of a dict's keys."""
    text = json.dumps(content, sort_keys=True).encode("utf-8")
    return hashlib.blake2b(text, digest_size=5).hexdigest()


@torch.no_grad()
def weights_fingerprint(module: nn.Module) -> str:
    """Return what tells two encoders apart: the names, shapes and values of all tensors, and the kinds of layers.

    The kinds are in it because an activation has no tensor: QuickGELU and GELU are other encoders on the same weights.
    """
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        state.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        state.update(values.reshape(-1).view(torch.uint8).numpy())
    kinds = [f"{name} {type(layer).__name__}" for name, layer in module.named_modules()]
    state.update("\n".join(kinds[1:]).encode())
    return state.hexdigest()


def image_keys(items: ImageList, root: Path, *, indexed: bool) -> np.ndarray:
    """Return a number for each image file, the same wherever the data lies.

    Args:
        items: n images.
        root: folder that the paths are taken relative to.
        indexed: whether `Datum.index` is part of it, as training views are drawn by it.

    Returns:
        uint64 (n,): digests of the relative path and, if `indexed`, the index.
    """
    folders = [os.fsencode(os.path.relpath(folder, root)) + b"/" for folder in items.folders]
    indices = items.numbers[:, 2].tolist() if indexed else [-1] * len(items)
    parts = zip(items.folder_ids.tolist(), items.names.tolist(), indices, strict=True)
    keys = (
        hashlib.blake2b(b"%s%s\0%d" % (folders[i], name, index), digest_size=8).digest() for i, name, index in parts
    )
    return np.frombuffer(b"".join(keys), dtype="<u8").astype(np.uint64)


def file_sizes(paths: Sequence[str]) -> np.ndarray:
    """Return the sizes of files in bytes, int64 (n,); -1 for one that is not there."""

    def size(path: str) -> int:
        try:
            return os.stat(path).st_size
        except OSError:
            return -1

    each = max(1, math.ceil(len(paths) / THREADS))  # a task for every file takes ten times as long as the file
    parts = [paths[start : start + each] for start in range(0, len(paths), each)]
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = chain.from_iterable(pool.map(lambda part: list(map(size, part)), parts))
        return np.fromiter(sizes, dtype=np.int64, count=len(paths))
