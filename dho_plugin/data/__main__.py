"""Check data sets: `python -m dho_plugin.data check --root DIR [--sets NAME ...] [--verify]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dho_plugin.data.check import FOUND, MISSING, Check, UnsoundDataError, look_for, remarks, table
from dho_plugin.data.own_folders import SPLITS
from dho_plugin.data.sources import OWN, registered_names
from dho_plugin.data.verify import Verification, printable
from dho_plugin.engine.files import write_json
from dho_plugin.errors import ConfigError, DHOError, run_command

_WHAT = """Say which of the paper's fifteen data sets are there, with their counts beside Table 10's, what is missing
and where to get it. Each set is read as a run reads it; nothing below --root is written."""
_CODES = """exit codes:
  0  all that is there is sound; sets that are missing do not count unless --sets names them
  1  a set is incomplete or refused, one that --sets names is missing, or --verify met images that cannot be decoded;
     files of equal content and counts other than Table 10's are shown and do not count
  2  the command itself is wrong
130  interrupted; what was found until then is shown"""


class CheckInterruptedError(DHOError):
    """Ctrl-C."""

    exit_code = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, look for the data sets, and say what there is.

    Args:
        argv: the command line; None: this process's.

    Returns:
        The exit code, see `--help`.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 2
    return run_command(lambda: check(args))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m dho_plugin.data", description="Look after data sets.")
    add = (
        parser.add_subparsers(dest="command")
        .add_parser(
            "check",
            help="say which data sets are there and sound",
            description=_WHAT,
            epilog=_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        .add_argument
    )
    add("--root", type=Path, metavar="DIR", required=True, help="folder of the data sets (DATASET.ROOT)")
    add("--sets", nargs="+", metavar="NAME", help="these only, such as imagenet oxford_pets; folder: your own images")
    add(
        "--prefix",
        default="",
        metavar="NAME",
        help="folder below --root that holds the sets (DATASET.PREFIX): mini",
    )
    add("--csv", default="", metavar="FILE", help="of your own images: the list path,label,split (DATASET.CSV)")
    add("--test-sets", nargs="+", default=(), metavar="NAME", help="of your own images (DATASET.TEST_SETS)")
    add("--verify", action="store_true", help="read every image, and look for files of equal content")
    add("--workers", type=int, metavar="N", default=os.cpu_count(), help="processes that read; 0: this one only")
    add("--json", type=Path, metavar="FILE", help="write all that was found there, with every unreadable image")
    return parser


def check(args: argparse.Namespace) -> None:
    """Look for data sets, say what there is, and read all images if that is asked for.

    Raises:
        ConfigError: a flag is wrong.
        UnsoundDataError: data that is there cannot be used as it is, or a set that was asked for is missing.
        CheckInterruptedError: Ctrl-C while images were read.
    """
    names = registered_names(args.sets)
    _check_flags(args, names)
    checks = [look_for(name, args.root, args.prefix, args.csv, args.test_sets) for name in names]
    print(table(checks), "", *(line for check in checks for line in remarks(check)), *_own_photos(args), sep="\n")
    verified: dict[str, Verification] = {}
    _store(args, checks, verified)
    if args.verify:
        verified = {check.name: Verification(check.parts) for check in checks if check.parts}
        complete = _verify(verified, args.workers)
        _store(args, checks, verified)
        if not complete:
            raise CheckInterruptedError(
                "what was read until then is shown above; the next check reads all images again"
            )
    _require_sound(checks, verified, named=args.sets is not None)


def _check_flags(args: argparse.Namespace, names: list[str]) -> None:
    args.root = args.root.expanduser()
    home = args.root / args.prefix
    if not home.is_dir():
        own = f"; a list of your own images is --root {home.parent} --sets folder --csv {home.name}"
        raise ConfigError(
            f"{home} is no folder; --root must be the folder that holds the data sets{own if home.is_file() else ''}"
        )
    if (args.csv or args.test_sets) and OWN not in names:
        raise ConfigError("--csv and --test-sets are for your own images: add --sets folder")
    if args.workers < 0:
        raise ConfigError(f"--workers is {args.workers}; it must be 0 or more")


def _own_photos(args: argparse.Namespace) -> list[str]:
    """Return a hint where the fifteen sets were looked for in a folder that looks like somebody's own images."""
    home = args.root / args.prefix
    splits = [f"{name}/" for name in SPLITS if (home / name).is_dir()]
    return [f"{home} holds {', '.join(splits)}: your own images? Add --sets folder"] if splits and not args.sets else []


def _verify(verified: dict[str, Verification], workers: int) -> bool:
    """Read all images and say what was found; False after Ctrl-C."""
    total, complete = sum(map(len, verified.values())), True
    try:
        with tqdm(total=total, desc="reading", unit="image", mininterval=0.5, disable=None) as bar:
            for name, verification in verified.items():
                bar.set_description(f"reading {name}")
                verification.run(workers, bar.update)
    except KeyboardInterrupt:
        complete = False
    for name, verification in verified.items():
        print(*(f"{name}: {line}" for line in verification.report()), sep="\n")
    return complete


def _store(args: argparse.Namespace, checks: list[Check], verified: dict[str, Verification]) -> None:
    if args.json:
        sets = {check.name: check.as_plain() for check in checks}
        for name, verification in verified.items():
            sets[name]["verify"] = verification.as_plain()
        write_json(args.json, {"root": printable(str(args.root)), "prefix": args.prefix, "sets": sets})


def _require_sound(checks: list[Check], verified: dict[str, Verification], named: bool) -> None:
    unsound = [check for check in checks if check.state not in (FOUND, MISSING) or (named and check.state == MISSING)]
    wrong = [f"{check.name} ({check.state})" for check in unsound]
    wrong += [f"{name} ({len(v.reasons):,} unreadable)" for name, v in verified.items() if v.reasons]
    if wrong:
        raise UnsoundDataError(f"not as it should be: {', '.join(wrong)}. See above what to do")


if __name__ == "__main__":
    sys.exit(main())
