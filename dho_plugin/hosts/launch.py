"""`dho-host train.py ARGS...`: run a host's script, not one line of it edited, with `--trainer X_DHO`."""

from __future__ import annotations

import argparse
import importlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from dho_plugin.errors import ConfigError, run_command
from dho_plugin.hosts.patches import PATCHES, apply_patches
from dho_plugin.hosts.protocol import dassl


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of what stands before the host's script."""
    parser = argparse.ArgumentParser(
        prog="dho-host",
        description="Run the train.py of a Dassl-based host with --trainer X_DHO, without editing it.",
        epilog="Patches: " + "; ".join(f"{patch.name} ({patch.what})" for patch in PATCHES),
    )
    parser.add_argument("--dassl", default="", help="folder of Dassl.pytorch, where it is not installed")
    parser.add_argument("--weights", default="", help="file from which the host loads CLIP, in place of its download")
    parser.add_argument("--no-patch", action="append", default=[], metavar="NAME", help="leave a patch out")
    parser.add_argument("script", metavar="train.py", help="the host's script")
    parser.add_argument("args", metavar="ARGS", nargs=argparse.REMAINDER, help="the host's own arguments")
    return parser


def set_path(script: Path, dassl: str) -> None:
    """Put the host in front of everything and Dassl behind: both have a package `datasets`, ours a `trainers`.

    Raises:
        ConfigError: a file or folder is missing.
    """
    if not script.is_file():
        raise ConfigError(f"dho-host: {script} is missing; name the host's train.py")
    sys.path.insert(0, str(script.resolve().parent))
    if not dassl:
        return
    if not (Path(dassl) / "dassl" / "__init__.py").is_file():
        raise ConfigError(f"--dassl {dassl}: looked for dassl/__init__.py below it; name the folder of Dassl.pytorch")
    sys.path.append(str(Path(dassl).resolve()))


def use_weights(file: str) -> None:
    """Let the host's CLIP load a local file in place of its download.

    Raises:
        ConfigError: there is no such file, or the host has no clip/clip.py.
    """
    if not Path(file).is_file():
        raise ConfigError(f"--weights {file}: no such file")
    try:
        clip = importlib.import_module("clip.clip")
    except ImportError as error:
        raise ConfigError(f"--weights: looked for the host's clip/clip.py ({error})") from error
    path = os.path.abspath(file)
    clip._download = lambda *_, **__: path


def launch(args: argparse.Namespace) -> None:
    """Prepare the host and run its script in this process.

    Raises:
        ConfigError: see `set_path`, `use_weights`, `apply_patches`; or there is no Dassl.
    """
    set_path(Path(args.script), args.dassl)
    dassl("dassl.config.defaults")  # before the patches: they look at Dassl
    applied = apply_patches(args.no_patch)
    importlib.import_module("dho_plugin.register")
    for patch in applied:
        print(f"dho-host: patch {patch.name}: {patch.what}", flush=True)
    if args.weights:
        use_weights(args.weights)
        print(f"dho-host: the host's CLIP is loaded from {args.weights}", flush=True)
    sys.argv = [args.script, *args.args]
    runpy.run_path(args.script, run_name="__main__")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: launch(args))
