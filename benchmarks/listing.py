"""Time and memory of a start over a tree of ImageNet's size: `python benchmarks/listing.py --root EMPTY_FOLDER`.

Writes a training tree of empty files (1,281,167 in 1000 folders unless told otherwise), then starts Python three
times: the first reads the tree, the others the stored listing. Each start makes the data set of a 16-shot run.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from tabulate import tabulate


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, required=True, help="folder for the tree; one that is complete is used again"
    )
    parser.add_argument("--files", type=int, default=1_281_167, help="training files")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--start", action="store_true", help=argparse.SUPPRESS)
    return parser


def write_tree(root: Path, files: int, classes: int) -> None:
    """Write the tree of empty files; ten validation files a class."""
    home = root / "imagenet"
    if (home / "complete").exists():
        return
    wnids = [f"n{10_000_000 + 13 * number:08d}" for number in range(classes)]
    for number, wnid in enumerate(wnids):
        count = files // classes + (number < files % classes)
        for split, images in (("train", count), ("val", 10)):
            folder = home / "images" / split / wnid
            folder.mkdir(parents=True, exist_ok=True)
            for image in range(images):
                os.close(os.open(folder / f"{wnid}_{image}.JPEG", os.O_CREAT | os.O_WRONLY))
    (home / "classnames.txt").write_text("".join(f"{wnid} class {wnid}\n" for wnid in wnids))
    (home / "complete").touch()
    time.sleep(3)  # a folder that has just changed is not trusted yet


def start(root: Path) -> None:
    """Make the data set as a run's start does, and print what it took."""
    before = time.perf_counter()
    from dho_plugin.data.imagenet import ImageNet
    from dho_plugin.engine.config import get_cfg_default

    imported = time.perf_counter()
    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.ROOT", str(root), "DATASET.NUM_SHOTS", 16, "SEED", 1])
    data = ImageNet(cfg)
    print(json.dumps({
        "images": len(data.train_x) + len(data.train_u),
        "import_s": imported - before,
        "data_set_s": time.perf_counter() - imported,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }))  # fmt: skip


def measure(root: Path, cache: Path) -> dict:
    """Return the figures of one start in a fresh process."""
    before = time.perf_counter()
    command = [sys.executable, __file__, "--start", "--root", str(root)]
    done = subprocess.run(command, env={**os.environ, "DHO_CACHE": str(cache)}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]) | {"process_s": time.perf_counter() - before}


def main() -> None:
    """Run the command line."""
    args = build_parser().parse_args()
    if args.start:
        start(args.root)
        return
    before = time.perf_counter()
    write_tree(args.root, args.files, args.classes)
    print(f"tree of {args.files:,} files: {time.perf_counter() - before:.0f} s", flush=True)
    cache = args.root / "cache"
    for stored in (*cache.glob("listings/*"), *args.root.glob("imagenet/split_fewshot/*")):
        stored.unlink()
    figures = {name: measure(args.root, cache) for name in ("first start", "second start", "third start")}
    print(tabulate([[k, *v.values()] for k, v in figures.items()], ["", *figures["first start"]], floatfmt=".2f"))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
