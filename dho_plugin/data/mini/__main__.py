"""Generate the mini world: `python -m dho_plugin.data.mini --root DIR [--workers N]`."""

import argparse
import os
import sys
from pathlib import Path

from dho_plugin.data.mini.generate import generate
from dho_plugin.errors import run_command


def main() -> int:
    """Read the command line, generate, and say what was done."""
    parser = argparse.ArgumentParser(prog="python -m dho_plugin.data.mini", description="Generate the mini world.")
    parser.add_argument("--root", type=Path, required=True, help="folder of the data sets (DATASET.ROOT)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; 0: none besides this one")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the images, for a smaller world")
    parser.add_argument("--sets", nargs="+", help="write these sets only")
    args = parser.parse_args()
    return run_command(lambda: _generate(args))


def _generate(args: argparse.Namespace) -> None:
    written = generate(args.root, workers=args.workers, fraction=args.fraction, sets=args.sets)
    print(f"mini world: wrote {', '.join(written)}" if written else f"mini world: {args.root} is complete")


if __name__ == "__main__":
    sys.exit(main())
