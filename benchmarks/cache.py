"""What storing features brings: the fill against the encoder's own speed, and an epoch on stored features.

Both encoders have random weights, the images are generated photographs in ImageNet's layout. Small by default; the full
size is `--device cuda --student B/16 --teacher L/14@336 --classes 1000 --per-class 16 --batch 256 --workers 12`.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import (
    CONFIGS,
    ENCODERS,
    base_parser,
    run_config,
    run_words,
    start,
    synchronize,
    write_images,
    write_weights,
)
from tabulate import tabulate

from dho_plugin import cache
from dho_plugin.engine.feature_fill import fill
from dho_plugin.engine.files import write_json
from dho_plugin.train import build_trainer

MODES = {
    "plain, online teacher": ("online", "online"),
    "teacher cached": ("cached", "online"),
    "teacher and student cached": ("cached", "cached"),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = base_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--student", choices=ENCODERS, default="Ti/16")
    parser.add_argument("--teacher", choices=ENCODERS, default="S/16")
    parser.add_argument("--trainer", default="LinearProbe_DHO")
    parser.add_argument("--precision", default="amp", help="fp32, amp or bf16; a CPU computes fp16 and amp in fp32")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--per-class", type=int, default=2, help="images a class, of which one is labeled")
    parser.add_argument("--batch", type=int, default=8, help="labeled images a step, and as many unlabeled ones")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of the plain run")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--views", type=int, default=1)
    return parser


def config(args: argparse.Namespace, root: Path, *options: str):
    """Return the config of a run."""
    method = sorted((CONFIGS / "trainers" / args.trainer).glob("vit*.yaml"))[0].stem
    node = args.trainer.removesuffix("_DHO").upper()
    return run_config(run_words(
        root, args.trainer, method, f"TRAINER.{node}.PREC", args.precision, "USE_CUDA", str(args.device == "cuda"),
        "DATALOADER.TRAIN_X.BATCH_SIZE", str(args.batch), "DATALOADER.NUM_WORKERS", str(args.workers),
        "INPUT.VIEWS", str(args.views), *options,
    ))  # fmt: skip


def forward_rate(encode, size: int, batch: int, device: torch.device, seconds: float = 5.0) -> float:
    """Return how many images a second an encoder takes where they lie ready."""
    images, done = torch.randn(batch, 3, size, size), 0
    encode(images).cpu()
    start = synchronize(device)
    while time.perf_counter() - start < seconds:
        encode(images).cpu()
        done += batch
    return done / (synchronize(device) - start)


def fill_rates(args: argparse.Namespace, trainer) -> list[dict]:
    """Fill what the runs read, and return each encoder's speed alone and in the fill."""
    words = cache.build_parser().parse_args(["--views", str(args.views)])
    return [fill_rate(args, part, trainer.device) for part in cache.parts(words, trainer)]


def fill_rate(args: argparse.Namespace, part, device: torch.device) -> dict:
    """Fill one part; return the encoder's speed alone, in the fill, and its share of the process's own CPU time."""
    size = part.dataset[(0, 0) if part.wanted.views else 0]["img"].shape[-1]
    todo, batch, inside = len(part.store) * part.wanted.shown, 2 * args.batch, 0.0

    def encode(images: torch.Tensor) -> torch.Tensor:
        nonlocal inside
        begin = time.thread_time()
        features = part.encode(images)
        inside += time.thread_time() - begin
        return features

    alone = [forward_rate(part.encode, size, batch, device)]
    start, cpu = synchronize(device), time.thread_time()
    fill(part.store, part.wanted.shown, part.dataset, encode, batch_size=batch, workers=args.workers)
    cpu = time.thread_time() - cpu
    rate = todo / (synchronize(device) - start)
    alone.append(forward_rate(part.encode, size, batch, device))
    mean = sum(alone) / 2  # before and after: other programs come and go
    shares = {"share": rate / mean, "cpu_share": inside / cpu if device.type == "cpu" else None}
    return {"what": part.title, "images": todo, "forward": mean, "fill": rate, **shares}


def epoch(args: argparse.Namespace, root: Path, teacher: str, student: str) -> dict:
    """Return the seconds of an epoch, and the share of them that waited for data."""
    modes = ("TRAINER.DHO.TEACHER.MODE", teacher, "MODEL.FEATURES", student)
    trainer = start(config(args, root, *modes))
    steps = max(args.steps, 4 * args.workers) if student == "online" else 1000  # many batches are read at once
    waited, begun, ahead = 0.0, 0.0, 2 * args.workers + 2
    for step in range(steps + ahead):
        if step == ahead:  # before: two that warm up, and what the loader's processes have ready
            waited, begun = 0.0, synchronize(trainer.device)
        before = time.perf_counter()
        batches = [next(stream) for stream in trainer.streams]
        waited += time.perf_counter() - before
        trainer.forward_backward(*batches)
    spent = synchronize(trainer.device) - begun
    each = trainer.num_batches
    return {"steps": each, "step_s": spent / steps, "epoch_s": each * spent / steps, "data_wait": waited / spent}


def main() -> None:
    """Measure and print."""
    args = build_parser().parse_args()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2) if args.device == "cpu" else torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["DHO_CACHE"] = str(root / "cache")
        write_images(root, args.classes, args.per_class)
        for name in ("student", "teacher"):
            write_weights(root / f"{name}.pt", getattr(args, name))
        fills = fill_rates(args, build_trainer(config(args, root)))
        epochs = {name: epoch(args, root, *modes) for name, modes in MODES.items()}
    report(fills, epochs)
    if args.json:
        write_json(args.json, {"args": {k: str(v) for k, v in vars(args).items()}, "fill": fills, "epoch": epochs})


def report(fills: list[dict], epochs: dict[str, dict]) -> None:
    """Print both tables."""
    sys.stdout.flush()
    rows = [[r["what"], r["images"], r["forward"], r["fill"], 100 * r["share"],
             r["cpu_share"] and 100 * r["cpu_share"]] for r in fills]  # fmt: skip
    names = ["fill", "images", "forward alone, images/s", "fill, images/s", "share %", "encoder, % of CPU time"]
    print("\n" + tabulate(rows, names, floatfmt=("", "", ".1f", ".1f", ".0f", ".1f"), tablefmt="github"))
    plain = next(iter(epochs.values()))["epoch_s"]
    rows = [[k, 1e3 * e["step_s"], e["epoch_s"], plain / e["epoch_s"], 100 * e["data_wait"]] for k, e in epochs.items()]
    names = ["epoch", "step, ms", "epoch, s", "plain / this", "data wait %"]
    print("\n" + tabulate(rows, names, floatfmt=("", ".1f", ".2f", ".1f", ".1f"), tablefmt="github"))


if __name__ == "__main__":
    main()
