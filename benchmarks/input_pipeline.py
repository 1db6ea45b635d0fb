"""How fast images reach a training step, and what share of it waits for them: `python benchmarks/input_pipeline.py`.

Generated JPEGs of ImageNet's usual size, views of 224 pixels for the student and of 336 for the teacher. plain is what
most training code does: each model has the file opened by Pillow and prepared by torchvision for itself, and the
loader's processes are started anew each epoch. ours are the streams of a trainer. They take turns, epoch by epoch; each
figure is the best epoch's, for other programs can only take time away. Small on a CPU, full size with `--device cuda`.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import torch
from common import ENCODERS, base_parser, run_config, run_words, start, synchronize, write_images, write_weights
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from dho_plugin import cache
from dho_plugin.engine.data import ImageList
from dho_plugin.engine.files import write_json
from dho_plugin.engine.views import Preprocess

SMALL = {
    "student": "Ti/32",
    "teacher": "Ti/48@336",
    "batch": 8,
    "steps": 12,
    "classes": 50,
    "workers": [0, 1, 2],
    "beside": 1,
}
FULL = {
    "student": "B/16",
    "teacher": "L/14@336",
    "batch": 32,
    "steps": 60,
    "classes": 1000,
    "workers": [0, 4, 12],
    "beside": 12,
}
CACHED = {
    "images for both": ("online", "online"),
    "teacher cached": ("cached", "online"),
    "teacher and student cached": ("cached", "cached"),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = base_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--student", choices=ENCODERS, help="default: Ti/32 on a CPU, B/16 on a GPU")
    parser.add_argument("--teacher", choices=ENCODERS, help="default: Ti/48@336 on a CPU, L/14@336 on a GPU")
    parser.add_argument("--trainer", default="LinearProbe_DHO")
    parser.add_argument("--config", default="vit_b16_ep20", help="of the trainer")
    parser.add_argument("--precision", default="amp", help="fp32, amp or bf16; a CPU computes fp16 and amp in fp32")
    parser.add_argument("--batch", type=int, help="labeled images a step, and as many unlabeled; default: 8 or 32")
    parser.add_argument("--steps", type=int, help="measured steps of an epoch; default: 12 or 60")
    parser.add_argument("--classes", type=int, help="classes of four images; default: 50 or 1000")
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of processes; default: 0 1 2, or 0 4 12")
    parser.add_argument("--beside", type=int, help="processes beside training steps; default: 1 on a CPU, 12 on a GPU")
    parser.add_argument("--rounds", type=int, default=2, help="epochs of each way")
    return parser


class PlainImages(Dataset):
    """Images that are opened once for each model, and prepared by torchvision.

    Args:
        items: the images.
        models: size and normalization of the models that look at them, by the key of a batch.
    """

    def __init__(self, items: ImageList, models: dict[str, Preprocess]):
        self.items = [(item.impath, item.label) for item in items]
        self.transforms = {key: self.transform(pre) for key, pre in models.items()}

    @staticmethod
    def transform(pre: Preprocess) -> T.Compose:
        """Return CLIP's usual training view."""
        crop = T.RandomResizedCrop(pre.size, scale=(0.5, 1.0), interpolation=T.InterpolationMode.BICUBIC)
        return T.Compose([crop, T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(pre.mean, pre.std)])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> dict:
        path, label = self.items[position]
        return {"label": label} | {key: view(Image.open(path).convert("RGB")) for key, view in self.transforms.items()}


def plain_stream(trainer, items: ImageList, steps: int, *, teacher: bool) -> Iterator[dict]:
    """Yield batches for ever; the loader's processes end with each epoch of so many steps."""
    models = {"img": trainer.student_preprocess}
    models |= {"img_teacher": trainer.teacher_preprocess} if teacher else {}
    batch, workers = trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE, trainer.cfg.DATALOADER.NUM_WORKERS
    dataset, pin = PlainImages(items, models), trainer.device.type == "cuda"
    while True:
        drawn = torch.randint(len(dataset), ((queued(trainer) + steps) * batch,)).tolist()
        loader = DataLoader(dataset, batch, sampler=drawn, num_workers=workers, pin_memory=pin)
        yield from map(trainer.to_device, loader)


def queued(trainer) -> int:
    """Return how many steps the clock leaves out: what processes have ready before they are asked, and one more."""
    return 2 * trainer.cfg.DATALOADER.NUM_WORKERS + 1


def epoch(streams: list[Iterator[dict]], trainer, steps: int, *, learn: bool) -> dict[str, float]:
    """Return the seconds of so many steps once no batch is left from before, those of the first batch, and the waits.

    With `learn`, steps are taken. Without, and without processes of the loader, seconds are CPU time.
    """
    alone = not learn and trainer.cfg.DATALOADER.NUM_WORKERS == 0
    clock, waits = time.process_time if alone else time.perf_counter, []
    ahead = queued(trainer)
    for number in range(ahead + steps):
        before = clock()
        given = [next(stream) for stream in streams]
        waits.append(clock() - before)
        if learn:
            trainer.forward_backward(*given)
        if number + 1 == ahead:
            synchronize(trainer.device)
            begun = clock()
    synchronize(trainer.device)
    return {"seconds": clock() - begun, "first": waits[0], "waited": sum(waits[ahead:])}


def best(streams: dict[str, list], trainers: dict[str, object], args: argparse.Namespace, *, learn: bool) -> dict:
    """Return the best epoch of each way; they take turns, and a first epoch warms up."""
    found: dict[str, list[dict]] = {name: [] for name in streams}
    for _ in range(args.rounds + 1):
        for name, own in streams.items():
            found[name].append(epoch(own, trainers[name], args.steps, learn=learn))
    return {name: min(epochs[1:], key=lambda one: one["seconds"]) for name, epochs in found.items()}


def trainer_for(args: argparse.Namespace, root: Path, workers: int, teacher: str, student: str):
    """Return a trainer, ready for its first step."""
    node = args.trainer.removesuffix("_DHO").upper()
    return start(run_config(run_words(
        root, args.trainer, args.config, "USE_CUDA", str(args.device == "cuda"), f"TRAINER.{node}.PREC", args.precision,
        "DATALOADER.TRAIN_X.BATCH_SIZE", str(args.batch), "DATALOADER.NUM_WORKERS", str(workers), "INPUT.VIEWS", "1",
        "TRAINER.DHO.TEACHER.MODE", teacher, "MODEL.FEATURES", student,
    )))  # fmt: skip


def both_streams(trainer, steps: int, *, teacher: bool) -> list[Iterator[dict]]:
    """Return the plain way's labeled and unlabeled stream."""
    union = trainer.dataset.train_x + trainer.dataset.train_u
    return [plain_stream(trainer, items, steps, teacher=teacher) for items in (trainer.dataset.train_x, union)]


def loader_rows(args: argparse.Namespace, root: Path) -> list[dict]:
    """Measure images a second without any model."""
    rows = []
    for workers in args.workers:
        for title, mode in (("views 224 + 336", "online"), ("view 224", "cached")):
            trainer = trainer_for(args, root, workers, mode, "online")
            plain = both_streams(trainer, args.steps, teacher=mode == "online")
            streams = {"plain": plain, "ours": trainer.streams}
            found = best(streams, dict.fromkeys(streams, trainer), args, learn=False)
            images = 2 * args.batch * args.steps
            rates = {name: images / own["seconds"] for name, own in found.items()}
            firsts = {f"{name}_first_batch_s": own["first"] for name, own in found.items()}
            rows.append(
                {"images": title, "workers": workers, **rates, "ratio": rates["ours"] / rates["plain"], **firsts}
            )
    return rows


def wait_rows(args: argparse.Namespace, root: Path) -> list[dict]:
    """Measure what share of a step waits for data, of the plain way and of ours with more and more stored."""
    trainers = {name: trainer_for(args, root, args.beside, *modes) for name, modes in CACHED.items()}
    plain = trainers["images for both"]
    streams = {"plain": both_streams(plain, args.steps, teacher=True)}
    streams |= {name: trainer.streams for name, trainer in trainers.items()}
    rows = []
    for name, own in best(streams, {"plain": plain, **trainers}, args, learn=True).items():
        step = own["seconds"] / args.steps
        rows.append({"step": name, "workers": args.beside, "step_s": step, "data_wait": own["waited"] / own["seconds"]})
    return rows


def fill(args: argparse.Namespace, root: Path) -> None:
    """Store the features of both encoders."""
    with redirect_stdout(sys.stderr):
        trainer = trainer_for(args, root, 0, "online", "online")
        cache.fill_all(cache.build_parser().parse_args(["--views", "1"]), trainer)


def main() -> None:
    """Measure and print."""
    args = build_parser().parse_args()
    for name, value in (SMALL if args.device == "cpu" else FULL).items():
        setattr(args, name, getattr(args, name) or value)
    if args.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["DHO_CACHE"] = str(root / "cache")
        write_images(root, args.classes, 4)
        for who in ("student", "teacher"):
            write_weights(root / f"{who}.pt", getattr(args, who))
        fill(args, root)
        result = {"loader": loader_rows(args, root), "wait": wait_rows(args, root)}
    report(result)
    if args.json:
        write_json(args.json, {"args": {k: str(v) for k, v in vars(args).items()}, **result})


def report(result: dict[str, list[dict]]) -> None:
    """Print both tables."""
    keys = ("images", "workers", "plain", "ours", "ratio", "plain_first_batch_s", "ours_first_batch_s")
    lines = [[row[key] for key in keys] for row in result["loader"]]
    names = [
        "images",
        "workers",
        "plain, images/s",
        "ours, images/s",
        "ours / plain",
        "first batch, plain, s",
        "ours, s",
    ]
    print(tabulate(lines, names, floatfmt=("", "", ".0f", ".0f", ".2f", ".3f", ".3f"), tablefmt="github"))
    lines = [[row["step"], row["workers"], 1e3 * row["step_s"], 100 * row["data_wait"]] for row in result["wait"]]
    print(
        "\n"
        + tabulate(lines, ["step", "workers", "ms", "data wait %"], floatfmt=("", "", ".1f", ".1f"), tablefmt="github")
    )


if __name__ == "__main__":
    main()
