"""The images of the cases (DHO, Fig. 9 and 16 to 19), read from the data that a run was tested on."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from dho_plugin.analysis.case_figures import case_rows
from dho_plugin.engine.data import DatasetBase
from dho_plugin.engine.decode import read_image
from dho_plugin.engine.identity import data_identity
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.errors import DataError, DHOError
from dho_plugin.exhibits import Exhibit
from dho_plugin.findings import Findings, folder
from dho_plugin.run_features import run_config

SIDE = 72  # pixels of a shown image


def pictured_cases(found: Findings, root: str, count: int = 3) -> Iterator[Exhibit]:
    """Yield a figure a kind of case: the images with the three best answers of each head and of the mix.

    Args:
        found: the runs of a row.
        root: where the data lie.
        count: how many cases of a kind.

    Raises:
        DHOError: the data cannot be read, or are not those that the run was tested on.
    """
    kinds = found.cases(count)
    if not any(cases for _, cases in kinds.values()):
        return
    upright = run_config(folder(found.runs[0]), root).INPUT.UPRIGHT
    items = run_data(found, root).test
    for number, (kind, (_, cases)) in enumerate(kinds.items()):
        if cases:
            pictures = [thumbnail(items[case.index].impath, upright=upright) for case in cases]
            caption = f"Right: {kind}. Images of {found.main_set}, seed {found.first_read.get('seed')}."
            yield Exhibit(f"cases-{number + 1}", caption, case_rows(list(zip(pictures, cases, strict=True))))


def shown_cases(found: Findings, root: str, count: int = 3) -> list[Exhibit]:
    """Return what `pictured_cases` yields, or nothing where the data are not those of the row, which is noted."""
    try:
        return list(pictured_cases(found, root, count))
    except DHOError as error:
        found.leave_out(f"images of the cases: {error}")
        return []


def run_data(found: Findings, root: str) -> DatasetBase:
    """Return the data set of a row's first run.

    Raises:
        DHOError: the data cannot be read, or its test images are not those that the run was tested on.
    """
    run = found.runs[0]
    cfg = run_config(folder(run), root)
    data = DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
    if list(data_identity(data)["test"]) != list((run.get("data") or {}).get("test") or ()):
        raise DataError(f"the test images below {root} are not those of {folder(run)}: name the folder with its data")
    return data


def thumbnail(path: str, *, upright: bool = False) -> Image.Image:
    """Return an image's middle as a small square, turned as its EXIF data say if it is to be upright."""
    image = read_image(path, upright)
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
