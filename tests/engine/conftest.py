"""Fixtures that several tests of the engine share."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BAD_FILES = (
    *("truncated", "truncated jpeg", "empty", "text", "unsupported", "missing"),
    *("folder", "dangling link", "link to itself", "forbidden"),
)


def _forbid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything
        plain = open

        def refuse(file, *args, **kwargs):
            if file == str(path):
                raise PermissionError(13, "Permission denied", file)
            return plain(file, *args, **kwargs)

        monkeypatch.setattr("builtins.open", refuse)


@pytest.fixture(params=BAD_FILES)
def bad_file(request, tmp_path, monkeypatch):
    """Return the path of something that stands in the place of an image and is none."""
    path = tmp_path / "bad bild ä.png"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    formats = {"truncated jpeg": "JPEG", "unsupported": "DDS"}
    noise.save(path, formats.get(request.param, "PNG"))
    whole = path.read_bytes()
    if request.param.startswith("truncated"):
        path.write_bytes(whole[: len(whole) // 2])
    elif request.param in ("empty", "text"):
        path.write_bytes(b"" if request.param == "empty" else b"hello")
    elif request.param == "unsupported":
        path.write_bytes(whole[:80] + bytes(4) + whole[84:])  # a pixel format that Pillow does not know
    elif request.param == "forbidden":
        _forbid(path, monkeypatch)
    else:
        path.unlink()
    if request.param == "folder":
        path.mkdir()
    elif request.param.endswith(("link", "itself")):
        path.symlink_to(path if request.param == "link to itself" else tmp_path / "nothing.png")
    return str(path)
