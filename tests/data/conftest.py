"""Fixtures of the data tests."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from dho_plugin.engine.data import Datum, ImageList


@pytest.fixture
def listing():
    """Return a function that lists images with given labels, in a folder a class; no file need be there."""

    def build(folder: Path, labels: list[int]) -> ImageList:
        return ImageList.of(
            [
                Datum(str(folder / f"folder {label}" / f"{index}.jpg"), label, classname=f"name {label}", index=index)
                for index, label in enumerate(labels)
            ]
        )

    return build


@pytest.fixture
def host_datum(monkeypatch):
    """Return a class that pickles as Dassl's Datum; its modules are there, and empty, for this test."""

    class Datum:
        def __init__(self, impath="", label=0, domain=0, classname=""):
            self._impath, self._label, self._domain, self._classname = impath, label, domain, classname

    module = "dassl.data.datasets.base_dataset"
    for dots in range(4):
        name = ".".join(module.split(".")[: dots + 1])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    Datum.__module__, Datum.__qualname__, sys.modules[module].Datum = module, "Datum", Datum
    return Datum
