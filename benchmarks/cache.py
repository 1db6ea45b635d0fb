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

import open_clip
import torch
from photographs import photograph
from tabulate import tabulate

from dho_plugin import cache
from dho_plugin.engine.feature_fill import fill
from dho_plugin.engine.files import write_json
from dho_plugin.train import build_parser as train_parser
from dho_plugin.train import build_trainer, check_names, setup_cfg

# Width, layers, patch and input of the image transformer, numbers of a feature.
ENCODERS = {
    "Ti/16": (192, 12, 16, 224, 512),
    "S/16": (384, 12, 16, 224, 512),
    "B/16": (768, 12, 16, 224, 512),
    "L/14@336": (1024, 24, 14, 336, 768),
}
MODES = {
    "plain, online teacher": ("online", "online"),
    "teacher cached": ("cached", "online"),
    "teacher and student cached": ("cached", "cached"),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser


def write_images(root: Path, classes: int, per_class: int) -> None:
    """Write ImageNet's layout: eight photographs of 500x375, each linked to as often as it is needed."""
    pool = []
    for number in range(8):
        pool.append(root / f"photograph{number}.jpg")
        photograph(500, 375, 3.0, seed=number).save(pool[-1], quality=95)
    wnids = [f"n{number:08d}" for number in range(classes)]
    for split, count in (("train", per_class), ("val", 1)):
        for label, wnid in enumerate(wnids):
            folder = root / "imagenet/images" / split / wnid
            folder.mkdir(parents=True)
            for image in range(count):
                os.link(pool[(label + image) % len(pool)], folder / f"{wnid}_{image}.JPEG")
    (root / "imagenet/classnames.txt").write_text("".join(f"{wnid} thing {wnid}\n" for wnid in wnids))


def write_weights(path: Path, name: str) -> None:
    """Write random weights of an image transformer beside a small text transformer, under OpenAI's keys."""
    torch.manual_seed(0)
    width, layers, patch, size, dim = ENCODERS[name]
    vision = open_clip.CLIPVisionCfg(image_size=size, patch_size=patch, width=width, layers=layers, head_width=64)
    text = open_clip.CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=2)
    state = open_clip.CLIP(dim, vision, text, quick_gelu=True).state_dict()
    torch.save({**state, "logit_scale": torch.tensor(100.0).log()}, path)


def config(args: argparse.Namespace, root: Path, *options: str):
    """Return the config of a run."""
    here = Path(__file__).parent.parent / "configs"
    method = sorted((here / "trainers" / args.trainer).glob("vit*.yaml"))[0]
    node = args.trainer.removesuffix("_DHO").upper()
    words = [
        *("--root", str(root), "--trainer", args.trainer, "--seed", "1", "--output-dir", str(root / "run")),
        *("--dataset-config-file", str(here / "datasets/imagenet.yaml"), "--config-file", str(method)),
        *("MODEL.BACKBONE.CKPT", str(root / "student.pt"), "TRAINER.DHO.TEACHER.CKPT", str(root / "teacher.pt")),
        *(f"TRAINER.{node}.PREC", args.precision, "USE_CUDA", str(args.device == "cuda"), "TEST.SHIFTED", "()"),
        *("DATASET.TEMPLATES", "('a photo of a {}.',)", "DATASET.NUM_SHOTS", "1", "OPTIM.WARMUP_STEPS", "0"),
        *("DATALOADER.TRAIN_X.BATCH_SIZE", str(args.batch), "DATALOADER.NUM_WORKERS", str(args.workers)),
        *("INPUT.VIEWS", str(args.views), "OPTIM.MAX_EPOCH", "1000", *options),
    ]
    return setup_cfg(train_parser().parse_args(words))


def synchronize(device: torch.device) -> float:
    """Return the time once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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
    trainer = build_trainer(config(args, root, *modes))
    trainer.before_train()
    trainer.before_epoch()
    steps = args.steps if student == "online" else 1000  # many batches are read at once
    waited, start = 0.0, 0.0
    for step in range(steps + 2):
        if step == 2:  # the first two warm up
            waited, start = 0.0, synchronize(trainer.device)
        before = time.perf_counter()
        batches = [next(stream) for stream in trainer.streams]
        waited += time.perf_counter() - before
        trainer.forward_backward(*batches)
    spent = synchronize(trainer.device) - start
    trainer.bar.close()
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
        cfg = config(args, root)
        check_names(cfg)
        fills = fill_rates(args, build_trainer(cfg))
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
