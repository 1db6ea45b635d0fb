"""Store the features of a run's frozen image encoders: `python -m dho_plugin.cache`, with the flags of the run.

Any number of processes and machines may fill the same cache at the same time, each on a device of its own; one that was
killed goes on where it stopped when it is started again. `DHO_CACHE` says where it lies.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dho_plugin.engine.processes import only_main_prints
from dho_plugin.errors import CacheError, ConfigError, run_command
from dho_plugin.train import add_config_flags, build_trainer, check_names, setup_cfg

ENCODERS = ("teacher", "student")


class Part(NamedTuple):
    """The features of one encoder for one list of images.

    Attributes:
        title: for messages.
        wanted: what the features are.
        store: where they go.
        dataset: the images, in the order of the store's rows.
        encode: images (B, 3, S, S) -> features (B, D).
    """

    title: str
    wanted: object
    store: object
    dataset: object
    encode: Callable


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser: the flags of `dho_plugin.train` that say what a run is, and its own."""
    parser = argparse.ArgumentParser(
        prog="python -m dho_plugin.cache", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, help="views of each training image to store; default: INPUT.VIEWS")
    parser.add_argument("--what", help="teacher, student or teacher,student; default: what the run can read")
    parser.add_argument("--batch-size", type=int, default=128, help="images that an encoder sees at once")
    parser.add_argument("--size", action="store_true", help="say how much room it takes, and fill nothing")
    add_config_flags(parser)
    return parser


def number_of_views(args: argparse.Namespace, trainer) -> int:
    """Return how many views of a training image are to be stored.

    Raises:
        ConfigError: nobody has said.
    """
    views = trainer.cfg.INPUT.VIEWS if args.views is None else args.views
    if views < 1:
        raise ConfigError(
            f"--views {args.views}: say how many views of an image to store, and give the run INPUT.VIEWS of as many; "
            f"without INPUT.VIEWS this run would show {trainer.views_needed()}"
        )
    return views


def encoders(args: argparse.Namespace, trainer) -> list[str]:
    """Return whose features are to be stored.

    Raises:
        ConfigError: the run has no such encoder, or one whose features change.
    """
    can = {"teacher": trainer.dho, "student": trainer.student.storable}
    asked = [word for word in ENCODERS if can[word]] if args.what is None else args.what.split(",")
    for word in asked:
        if word not in ENCODERS:
            raise ConfigError(f"--what {word!r} is not one of {', '.join(ENCODERS)}")
        if not can[word]:
            why = "it has no teacher" if word == "teacher" else "its image features change as it learns"
            raise ConfigError(f"--what {word}: {trainer.cfg.TRAINER.NAME} can read none, {why}")
    if not asked:
        raise ConfigError(f"{trainer.cfg.TRAINER.NAME} can read no stored features: it has no frozen image encoder")
    return asked


def parts(args: argparse.Namespace, trainer) -> Iterator[Part]:
    """Yield what is to be stored: the training images of each encoder, and a student's evaluations."""
    from dho_plugin.caching import whole_parts

    asked, (train, evaluated) = encoders(args, trainer), whole_parts(trainer)
    teacher = trainer.load_teacher() if trainer.dho else None  # also for the student: images are decoded for both
    for who in asked if len(train) and trainer.get_model_names() else ():
        clip = teacher if who == "teacher" else trainer.clip()
        yield part(trainer, who, "train", number_of_views(args, trainer), clip, train)
    if "student" in asked:
        for name, items in evaluated.items():
            yield part(trainer, "student", name, 0, trainer.clip(), items)


def part(trainer, who: str, name: str, views: int, clip, items) -> Part:
    """Return one list of images, and all that is needed to store its features."""
    import torch

    wanted = trainer.wanted(who, name, views, clip)
    dataset = trainer.fill_dataset(clip, items) if views else trainer.eval_dataset(items)

    @torch.no_grad()
    def encode(images):
        with trainer.accelerator.autocast():
            return clip.encode_image(images.to(trainer.device, non_blocking=True))

    return Part(f"{who}, {name}", wanted, wanted.create(items), dataset, encode)


def fill_all(args: argparse.Namespace, trainer) -> None:
    """Say how much room is needed, check that it is there, and fill.

    Raises:
        CacheError: the disk has too little room, or what is there is damaged.
    """
    import shutil

    from dho_plugin.engine.feature_fill import fill

    todo = list(parts(args, trainer))
    rows = [(p, p.wanted.shown, p.store.room_needed(p.wanted.shown)) for p in todo]
    for p, views, needed in rows:
        print(f"{p.title}: {len(p.store):,} images x {views} views x {p.store.dim} {p.store.dtype}, "
              f"{size(p.store.room(views))}, {size(needed)} of it to fill: {p.store.folder}")  # fmt: skip
    total = sum(needed for *_, needed in rows)
    free = shutil.disk_usage(todo[0].store.folder).free if todo else 0
    if args.size:
        return
    if total > free:
        raise CacheError(
            f"{todo[0].store.folder.parent}: {size(total)} are needed and {size(free)} are free. Make room, store "
            "fewer --views, or set DHO_CACHE to a folder on a larger disk"
        )
    workers, pin = trainer.cfg.DATALOADER.NUM_WORKERS, trainer.device.type == "cuda"
    for p, views, _ in rows:
        options = {"batch_size": args.batch_size, "workers": workers, "pin_memory": pin, "title": p.title}
        own = fill(p.store, views, p.dataset, p.encode, **options)
        print(f"{p.title}: complete, {own:,} features by this process")


def size(count: int) -> str:
    """Return a number of bytes as a text."""
    unit = max(0, min(4, (len(str(count)) - 1) // 3))
    return f"{count / 1000**unit:.{2 if unit else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[unit]}"


def run(args: argparse.Namespace) -> None:
    """Carry out one command line.

    Raises:
        DHOError: anything that the user can mend.
    """
    cfg = setup_cfg(args)
    check_names(cfg)
    trainer = build_trainer(cfg)
    fill_all(args, trainer)
    trainer.accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    with only_main_prints():
        return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
