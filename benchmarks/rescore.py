"""Time, disk and memory of scoring stored logits anew: `python benchmarks/rescore.py`.

Stores random logits of both heads for 50,000 images and 1000 classes as a run does, then runs
`python -m dho_plugin.ood` on them.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from dho_plugin.engine.evaluator import TestLogits, compact, predictions


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def write_run(folder: Path, images: int, classes: int) -> dict:
    """Write a run with one test set; return its size on disk and how many decisions float16 changes."""
    generator = torch.Generator().manual_seed(0)
    ce, kd = (20 + 3 * torch.randn(images, classes, generator=generator) for _ in range(2))
    labels = torch.randint(0, classes, (images,), generator=generator)
    names = tuple(f"class {number}" for number in range(classes))
    stored = TestLogits(compact(ce), compact(kd), labels, names)
    path = folder / "logits/val.safetensors"
    stored.save(path)
    (folder / "results.json").write_text(json.dumps({"alpha": 0.5, "beta": 1.0}))
    changed = (predictions(stored, 0.5, 1.0) != predictions(TestLogits(ce, kd, labels, names), 0.5, 1.0)).sum().item()
    return {"disk_mb": path.stat().st_size / 1e6, "decisions_changed_by_float16": changed}


def main() -> None:
    """Run the command line."""
    args = build_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = write_run(Path(folder), args.images, args.classes)
        before = time.perf_counter()
        command = [sys.executable, "-m", "dho_plugin.ood", folder, "--alpha", "0.4", "--beta", "0.5"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        figures["command_s"] = time.perf_counter() - before
        figures["command_peak_memory_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print("\n".join(f"{name}: {value:.4g}" for name, value in figures.items()))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
