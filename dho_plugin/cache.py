"""Store the features of a run's frozen image encoders: `python -m dho_plugin.cache`, with the flags of the run.

Any number of processes and machines may fill the same cache at the same time, each on a device of its own; one that was
killed goes on where it stopped when it is started again. `DHO_CACHE` says where it lies.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from dho_plugin.engine.processes import only_main_prints
from dho_plugin.errors import ConfigError, run_command
from dho_plugin.train import add_config_flags, build_trainer, check_names, setup_cfg

ENCODERS = ("teacher", "student")


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
    student = trainer.student
    can = {"teacher": trainer.dho, "student": student.storable or student.wants_frozen}
    # Features that only the labeled images need are stored where they are asked for: a run stores its own (`fill`).
    usual = [word for word in ENCODERS if can[word] and (word == "teacher" or student.storable)]
    asked = usual if args.what is None else args.what.split(",")
    for word in asked:
        if word not in ENCODERS:
            raise ConfigError(f"--what {word!r} is not one of {', '.join(ENCODERS)}")
        if not can[word]:
            why = "it has no teacher" if word == "teacher" else "its image features change as it learns"
            raise ConfigError(f"--what {word}: {trainer.cfg.TRAINER.NAME} can read none, {why}")
    if not asked and student.wants_frozen:
        raise ConfigError(
            f"{trainer.cfg.TRAINER.NAME} can read the frozen features of its labeled images alone: --what student "
            "stores those of all images; MODEL.FEATURES fill lets the run store its own"
        )
    if not asked:
        raise ConfigError(f"{trainer.cfg.TRAINER.NAME} can read no stored features: it has no frozen image encoder")
    return asked


def parts(args: argparse.Namespace, trainer) -> Iterator:
    """Yield what is to be stored: the training images of each encoder, and a student's evaluations."""
    from dho_plugin.filling import part, whole_parts
    from dho_plugin.teachers import storable

    asked, (train, evaluated) = encoders(args, trainer), whole_parts(trainer)
    teacher = trainer.load_teacher() if trainer.dho else None  # also for the student: images are decoded for both
    if "teacher" in asked and not storable(teacher):
        raise ConfigError(
            f"the image encoder of the run {teacher.directory} is no frozen CLIP, so there is nothing of the teacher "
            "to store: --what student"
        )
    for who in asked if len(train) and trainer.get_model_names() else ():
        clip = teacher if who == "teacher" else trainer.clip()
        yield part(trainer, who, "train", number_of_views(args, trainer), clip, train)
    if "student" in asked and trainer.student.storable:
        for name, items in evaluated.items():
            yield part(trainer, "student", name, 0, trainer.clip(), items)


def fill_all(args: argparse.Namespace, trainer) -> None:
    """Say how much room is needed, check that it is there, and fill.

    Raises:
        CacheError: the disk has too little room, or what is there is damaged.
    """
    from dho_plugin.filling import check_room, fill_part, size

    todo = list(parts(args, trainer))
    for p in todo:
        views, room, needed = p.wanted.shown, p.store.room(p.wanted.shown), p.store.room_needed(p.wanted.shown)
        print(f"{p.title}: {len(p.store):,} images x {views} views x {p.store.dim} {p.store.dtype}, "
              f"{size(room)}, {size(needed)} of it to fill: {p.store.folder}")  # fmt: skip
    if args.size:
        return
    check_room(todo)
    for p in todo:
        own = fill_part(trainer, p, args.batch_size)
        print(f"{p.title}: complete, {own:,} features by this process")


def run(args: argparse.Namespace) -> None:
    """Carry out one command line.

    Raises:
        DHOError: anything that the user can mend.
    """
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size {args.batch_size}: 1 or more")
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
