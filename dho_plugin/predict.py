"""What a trained run says of images: `python -m dho_plugin.predict RUN_DIR IMAGES...`."""

from __future__ import annotations

import argparse
import csv
import glob
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from dho_plugin.core.inference import interpolate
from dho_plugin.data.listing import IMAGE_ENDINGS
from dho_plugin.data.own_folders import images_below
from dho_plugin.dho_trainer import DHOTrainer
from dho_plugin.engine.data import ClassInfo, Datum, ImageList
from dho_plugin.engine.decode import UnreadableImageError
from dho_plugin.engine.files import atomic_write
from dho_plugin.engine.image_sets import EvalDataset
from dho_plugin.engine.loaders import eval_loader
from dho_plugin.errors import ConfigError, DataError, run_command
from dho_plugin.runs import add_run_flags, described, run_of


class Guess(NamedTuple):
    """A class and its probability in [0, 1]."""

    info: ClassInfo
    probability: float


class Prediction(NamedTuple):
    """What a model says of one image.

    Attributes:
        path: the image's file.
        best: the likeliest classes by Eq. 11, in order; none of an image that cannot be read.
        ce: what the CE head alone says.
        kd: what the KD head alone says, at beta; None without one.
        error: why the image cannot be read, or "".
    """

    path: str
    best: tuple[Guess, ...] = ()
    ce: Guess | None = None
    kd: Guess | None = None
    error: str = ""


def find_images(words: Sequence[str]) -> ImageList:
    """Return the images that words name, each once: files, folders with all folders below them, patterns with * and ?.

    Raises:
        DataError: a word names nothing, or a folder without an image.
    """
    groups: list[list[Datum] | ImageList] = [[]]
    for word in words:
        paths = [word] if Path(word).exists() else sorted(glob.glob(word, recursive=True))
        if not paths:
            raise DataError(f"{word}: no such file or folder, and no pattern that fits one")
        own = [Datum(path, -1) for path in paths if not Path(path).is_dir()]
        parts = [images_below(Path(path)) for path in paths if Path(path).is_dir()]
        if not own and not any(map(len, parts)):
            raise DataError(f"{word}: no image in it or below it ({', '.join(IMAGE_ENDINGS)})")
        if own and not isinstance(groups[-1], list):
            groups.append([])
        groups[-1] += own
        groups += parts
    found = sum(groups, ImageList.of([]))
    first = dict.fromkeys(found.paths())
    return found if len(first) == len(found) else ImageList.of([Datum(path, -1) for path in first])


class Photos(EvalDataset):
    """Images as an evaluation shows them; a row's "error" says why one cannot be read, and is "" otherwise."""

    def __getitem__(self, position: int) -> dict:
        try:
            return super().__getitem__(position) | {"error": ""}
        except UnreadableImageError as error:
            reason = " ".join(str(error.__cause__ or error).split()) or type(error.__cause__).__name__
            return self.row(position, img=torch.zeros(3, self.pre.size, self.pre.size)) | {"error": reason}


@torch.no_grad()
def predict(
    trainer: DHOTrainer, images: ImageList, *, top: int = 1, batch_size: int = 0, workers: int | None = None
) -> Iterator[Prediction]:
    """Yield what a loaded run says of each image, in order.

    Args:
        trainer: a run of `load_run`.
        images: the images; their labels are not looked at.
        top: how many classes to name, at most all.
        batch_size: images at once; 0 takes the run's own, DATALOADER.TEST.BATCH_SIZE.
        workers: loader processes; None takes the run's own number, none for a single batch.

    Raises:
        ConfigError: `top` or `batch_size` out of range.
    """
    loader, batch_size = trainer.cfg.DATALOADER, batch_size or trainer.cfg.DATALOADER.TEST.BATCH_SIZE
    for name, value in (("--top", top), ("--batch-size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if workers is None:
        workers = loader.NUM_WORKERS if len(images) > batch_size else 0
    photos = Photos(images, trainer.student_preprocess, **trainer.reading() | {"unreadable": "error"})
    with tqdm(total=len(images), desc="predict", unit="image", disable=None) as bar:
        for batch in eval_loader(photos, batch_size, workers=workers, device=trainer.device):
            yield from _answers(trainer, batch, top)
            bar.update(len(batch["impath"]))


def _answers(trainer: DHOTrainer, batch: dict, top: int) -> Iterator[Prediction]:
    net, images = trainer.accelerator.unwrap_model(trainer.net), trainer.to_device(batch)["img"]
    logits_ce, logits_kd, _ = net(images)
    alpha, beta = trainer.mixing()
    mixed = _guesses(trainer, interpolate(logits_ce, logits_kd, alpha, beta), top)
    ce = _guesses(trainer, interpolate(logits_ce, None, alpha, beta), 1)
    kd = [[None]] * len(ce) if logits_kd is None else _guesses(trainer, interpolate(logits_kd / beta, None, 1, 1), 1)
    for path, error, best, (of_ce,), (of_kd,) in zip(batch["impath"], batch["error"], mixed, ce, kd, strict=True):
        yield Prediction(path, error=error) if error else Prediction(path, tuple(best), of_ce, of_kd)


def _guesses(trainer: DHOTrainer, probabilities: Tensor, top: int) -> list[list[Guess]]:
    values, places = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    rows = zip(values.tolist(), places.tolist(), strict=True)
    return [[Guess(trainer.classes[c], p) for p, c in zip(*row, strict=True)] for row in rows]


# What is written ----------------------------------------------------------------------------------------------------


def columns(top: int) -> list[str]:
    """Return the header of the CSV; a class has its number of rank behind it, but for the first."""
    further = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("class", "key", "probability")]
    own = ["image", "class", "key", "probability", "ce_class", "ce_probability", "kd_class", "kd_probability"]
    return [*own, *further, "error"]


def cells(prediction: Prediction, top: int) -> list[str]:
    """Return a row of the CSV."""

    def of(guess: Guess | None, *, key: bool = True) -> list[str]:
        if guess is None:
            return [""] * (2 + key)
        return [guess.info.name, *([guess.info.key] if key else []), f"{guess.probability:.6f}"]

    best = [*prediction.best, *[None] * (top - len(prediction.best))]
    heads = [*of(prediction.ce, key=False), *of(prediction.kd, key=False)]
    further = [cell for guess in best[1:] for cell in of(guess)]
    return [prediction.path, *of(best[0]), *heads, *further, prediction.error]


def write_csv(path: str | Path, predictions: Iterable[Prediction], top: int) -> None:
    """Write predictions as they come into a CSV (UTF-8) that is there only once it is whole."""

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns(top))
        writer.writerows(cells(prediction, top) for prediction in predictions)
        text.detach()

    atomic_write(path, write)


def table(predictions: Iterable[Prediction]) -> str:
    """Return predictions as a table to read: a line for each class that is named, the heads' views in the first."""

    def of(guess: Guess | None) -> list[str]:
        return ["-", "-"] if guess is None else [guess.info.name, f"{100 * guess.probability:.1f}%"]

    rows, heads = [], True
    for one in predictions:
        heads = heads and (one.kd is not None or bool(one.error))
        first = one.best[0] if one.best else None
        rows.append([one.path, *of(first), *of(one.ce), *of(one.kd)])
        rows += [["", *of(guess), "", "", "", ""] for guess in one.best[1:]]
    headers = ["image", "class", "", "CE head", "", "KD head", ""]
    width = len(headers) if heads else 3  # a single head's view is the answer
    return tabulate([row[:width] for row in rows], headers=headers[:width], disable_numparse=True)


def reported(predictions: Iterable[Prediction], unread: list[str]) -> Iterator[Prediction]:
    """Pass predictions on; say on stderr which images cannot be read, and add them to `unread`."""
    for one in predictions:
        if one.error:
            unread.append(f"{one.path}: cannot be read as an image ({one.error})")
            tqdm.write(unread[-1], file=sys.stderr)
        yield one


def report(args: argparse.Namespace) -> None:
    """Carry out one command line.

    Raises:
        DHOError: anything that the user can mend.
    """
    images, unread = find_images(args.images), []
    trainer = run_of(args)
    print(described(trainer), file=sys.stderr)
    found = reported(predict(trainer, images, top=args.top, batch_size=args.batch_size, workers=args.workers), unread)
    if args.csv:
        write_csv(args.csv, found, min(args.top, len(trainer.classes)))
        print(f"{len(images) - len(unread):,} images: {args.csv}")
    else:
        print(table(found))
    if len(unread) == len(images):
        raise DataError(f"none of the {len(images)} images can be read, the first: {unread[0]}")
    if unread:
        print(f"{len(unread):,} of {len(images):,} images could not be read", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(prog="python -m dho_plugin.predict", description=__doc__)
    add_run_flags(parser)
    parser.add_argument("images", nargs="+", help="image files, folders (all images below them), patterns in quotes")
    parser.add_argument("--csv", help="write a CSV file in place of a table")
    parser.add_argument("--top", type=int, default=1, help="how many classes to name for each image")
    parser.add_argument("--batch-size", type=int, default=0, help="images at once; default: the run's TEST.BATCH_SIZE")
    parser.add_argument("--workers", type=int, help="loader processes; default: the run's NUM_WORKERS")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
