"""Time, size and memory of the report of runs of ImageNet's size: `python benchmarks/report.py`.

Stores random logits of both heads as a run does, with training curves and recorded gradients, then runs
`python -m dho_plugin.report` on them.
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
from torch.utils.tensorboard import SummaryWriter

from dho_plugin.engine.config import as_plain, get_cfg_default
from dho_plugin.engine.evaluator import TestLogits, compact, score

SHIFTED = {"imagenetv2": 10_000, "imagenet_sketch": 50_889, "imagenet_r": 30_000, "imagenet_a": 7_500}
QUANTITIES = ("cosine_parameters", "inner_parameters", "cosine_features", "discrepancy", "eigenvalue")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=10_000, help="validation images; 0: none")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shifted", action="store_true", help="also the four shifted sets, each of its own size")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def draw_logits(images: int, classes: int, seed: int, heads: int = 2) -> TestLogits:
    """Return stored logits that are right more often than not."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images,), generator=generator)
    drawn = []
    for _ in range(heads):
        logits = 2 * torch.randn(images, classes, generator=generator)
        logits[torch.arange(images), labels] += 5
        drawn.append(compact(logits))
    names = tuple(f"class {number} <of> {classes}" for number in range(classes))  # a page must escape it
    return TestLogits(drawn[0], drawn[1] if heads == 2 else None, labels, names)


def write_run(
    folder: Path, sets: dict[str, int], classes: int, *, seed: int = 1, heads: int = 2, validation: int = 0, **changes
) -> Path:
    """Write a finished run's folder.

    Args:
        folder: the run's folder.
        sets: images by test set.
        classes: number of classes.
        seed: of the run and its logits.
        heads: 1 or 2.
        validation: images of stored validation logits; 0: none.
        changes: other entries of results.json.
    """
    alpha, beta = (0.4, 0.5) if heads == 2 else (None, None)
    metrics = {}
    for place, (name, images) in enumerate(sets.items()):
        stored = draw_logits(images, classes, 100 * seed + place, heads)
        stored.save(folder / "logits" / f"{name}.safetensors")
        metrics[name] = score(stored, alpha or 1.0, beta or 1.0)
    if validation:
        draw_logits(validation, classes, 100 * seed + 99, heads).save(folder / "logits/validation.safetensors")
    config = as_plain(get_cfg_default())
    twin = "_DHO" if heads == 2 else ""
    result = {
        "trainer": f"VPT{twin}",
        "method": "VPT-3" + twin.replace("_", " + "),
        "dataset": "synthetic",
        "shots": 16,
        "seed": seed,
        "unlabeled": heads == 2,
        "teacher": "a teacher" if heads == 2 else None,
        "alpha": alpha,
        "beta": beta,
        "metrics": metrics,
        "config": config,
        "config_name": "synthetic",
        "seconds": 100.0 + seed,
        "processes": 1,
        "data_wait": {"seconds": 3.0, "share": 0.03},
        "peak_memory_mb": 1000.0 + seed,
        "versions": {"python": "3", "torch": torch.__version__},
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    _write_curves(folder, seed, heads)
    (folder / "results.json").write_text(json.dumps(result))
    return folder


def _write_curves(folder: Path, seed: int, heads: int) -> None:
    """Write training curves, and with two heads the recorded gradients."""
    writer = SummaryWriter(str(folder / "tensorboard"))
    tags = ("train/loss", "train/acc", *(("train/loss_ce", "train/loss_kd") if heads == 2 else ()))
    for step in range(0, 1000, 20):
        for place, tag in enumerate(tags):
            writer.add_scalar(tag, place + seed + 100 / (step + 50), step)
    writer.close()
    if heads == 2:
        lines = [{"step": step, **dict.fromkeys(QUANTITIES, seed / (step + 10))} for step in range(0, 1000, 50)]
        (folder / "gradients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    """Run the command line."""
    args = build_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sets = {"val": args.images, **(SHIFTED if args.shifted else {})}
        for seed in range(1, args.seeds + 1):
            run = Path(folder) / f"seed{seed}"
            write_run(run, sets, args.classes, seed=seed, validation=args.validation)
        page, before = Path(folder) / "report.html", time.perf_counter()
        command = [sys.executable, "-m", "dho_plugin.report", folder, "--out", str(page)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        figures = {
            "command_s": time.perf_counter() - before,
            "command_peak_memory_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
            "page_mb": page.stat().st_size / 1e6,
        }
    print("\n".join(f"{name}: {value:.4g}" for name, value in figures.items()))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
