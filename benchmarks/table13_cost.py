"""GPU hours and disk for the whole of the paper's Table 13, plain against ours: `python benchmarks/table13_cost.py`.

Five methods, each without DHO, with DHO on labeled images and with DHO on all, by three seeds, each scored on the five
test sets. Epochs, batches and the length of an epoch are those of configs/trainers/*/vit_b16*.yaml, the same files as
scripts/table13.sh takes. FLOPs are counted in the trainers' own steps (counting.py), ViT-B/16 under ViT-L/14@336px.

Assumed: a device computes so many FLOPs a second whatever the step (--flops-per-second; --gpu takes a published peak
times --utilisation; else this machine is measured), and its loader reads so many images a second (--images-per-second;
else --cores times a core of this machine). Reading and computing overlap: a step takes the longer of both, and never
less than --step-seconds. plain: 77 tokens a prompt, the teacher online, files decoded once for each model. ours: the
default paths, V views of every training image stored once and read by all runs (--views), the student's features, too,
where its encoder is frozen. Left out: class features, checkpoints and starts, some minutes a run.
"""

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from common import CONFIGS, ENCODERS, base_parser, build_clip, flops, run_config, seconds, write_images
from counting import Way, counted_step, loaded_clip, meta_trainer, tower_options, ways, without_weights
from decode import seconds_each
from decode import ways as decode_ways
from photographs import photograph
from tabulate import tabulate

from dho_plugin.data.sources import SOURCES
from dho_plugin.engine.data import Datum
from dho_plugin.engine.files import write_json
from dho_plugin.engine.streams import TrainingStreams
from dho_plugin.models.image_encoder import encode_image, image_path

TRAINING_IMAGES, CLASSES, SEEDS = 1_281_167, 1000, 3
# FLOPs a second in half precision with dense matrices, as the vendor's data sheets print them.
PEAKS = {"V100": 125e12, "A100": 312e12, "L40S": 362e12, "H100": 989e12, "H200": 989e12}


CASES = ("view 224", "view 336", "views 224 + 336", "evaluation 224")


class Method(NamedTuple):
    """A row of Table 13: trainer, config and how many training images are labeled."""

    trainer: str
    config: str
    labeled: int = 16 * CLASSES


METHODS = {
    "LinearProbe": Method("LinearProbe", "vit_b16_ep20", round(0.01 * TRAINING_IMAGES)),
    "VPT-3": Method("VPT", "vit_b16_ep20_depth3"),
    "VPT-9": Method("VPT", "vit_b16_ep20_depth9"),
    "CoOp": Method("CoOp", "vit_b16_ep50_ctxv1"),
    "PromptSRC": Method("PromptSRC", "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets"),
}
KINDS = {
    "": ("", ()),
    " + DHO, labeled": ("_DHO", ("TRAINER.DHO.UNLABELED", "False")),
    " + DHO": ("_DHO", ()),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = base_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="that is measured")
    parser.add_argument("--flops-per-second", type=float, help="of one device; default: measured")
    parser.add_argument("--gpu", choices=PEAKS, help="a published peak in half precision, in place of a measurement")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that is reached (assumed)")
    parser.add_argument("--images-per-second", type=float, help="views of 224 from 500x375 for one device")
    parser.add_argument("--cores", type=int, default=1, help="cores that read for one device, where it is measured")
    parser.add_argument("--step-seconds", type=float, default=0.005, help="the shortest step (assumed)")
    parser.add_argument("--views", type=int, default=10, help="V, views of a training image that are stored")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    return parser


class Lengths(TrainingStreams):
    """The length of a run by the trainers' own rule, without data.

    Args:
        cfg: the run's config.
        labeled: number of labeled images.
    """

    def __init__(self, cfg, labeled: int):
        self.cfg = cfg
        self.dataset = argparse.Namespace(train_x=range(labeled), train_u=range(TRAINING_IMAGES - labeled))


def test_images() -> int:
    """Return the images of the five test sets, as the paper's Table 10 counts them."""
    names = ("ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetR", "ImageNetA")
    return sum(int(source.published[-1].replace(",", "")) for source in SOURCES if source.name in names)


def published(trainer: str, config: str):
    """Return the config of a run on ImageNet as its files have it."""
    files = {"--dataset-config-file": "datasets/imagenet.yaml", "--config-file": f"trainers/{trainer}/{config}.yaml"}
    return run_config(["--trainer", trainer, *(word for k, v in files.items() for word in (k, str(CONFIGS / v)))])


# What a run takes ------------------------------------------------------------------------------------------------


def run_work(root: Path, name: str, kind: str) -> dict:
    """Return the work of one run: steps, images a step, FLOPs a step and a test image, what is read from caches."""
    (twin, options), method = KINDS[kind], METHODS[name]
    trainer_name = method.trainer + twin
    cfg = published(trainer_name, method.config)
    trainers = {
        t: meta_trainer(root, trainer_name, method.config, *tower_options(t), *options) for t in ("plain", "auto")
    }
    plain, ours = trainers["plain"], trainers["auto"]
    way: Way = ways(ours)[-1]
    streams = 1 + ours.uses_unlabeled()
    return {
        "run": name + kind,
        "steps": Lengths(cfg, method.labeled).total_steps(),
        "images": cfg.DATALOADER.TRAIN_X.BATCH_SIZE * streams,
        "teacher": ours.dho,
        "cached": list(way.cached),
        "plain": {"step": counted_step(plain, Way("plain"))["flops"], "test_image": test_flops(plain)},
        "ours": {"step": counted_step(ours, way)["flops"], "test_image": test_flops(ours)},
    }


def test_flops(trainer) -> int:
    """Return the FLOPs of the student's features of one image in evaluation."""
    trainer.set_model_mode("eval")
    image = torch.randn(1, 3, *[trainer.student_preprocess.size] * 2, device="meta")
    count = flops(lambda: trainer.student.features(image))
    trainer.set_model_mode("train")
    return count


def fill_work(views: int, dims: dict[str, int]) -> dict:
    """Return the work of filling both caches once: all training images, and the test sets for the student.

    Args:
        views: of each training image.
        dims: numbers of a feature, by encoder; each takes two bytes.
    """
    shown = {"teacher": views * TRAINING_IMAGES, "student": views * TRAINING_IMAGES + test_images()}
    each = {who: encoder_flops(name) for who, name in (("teacher", "L/14@336"), ("student", "B/16"))}
    return {
        "images": shown,
        "flops": sum(shown[who] * each[who] for who in shown),
        "bytes": {who: 2 * dims[who] * shown[who] for who in shown},
    }


@torch.no_grad()
def encoder_flops(name: str) -> int:
    """Return the FLOPs of an image encoder on one image, by the path that is taken by default."""
    clip = loaded_clip(ENCODERS[name])
    clip.model.to("meta")
    return flops(lambda: clip.encode_image(torch.randn(1, 3, *[ENCODERS[name].size] * 2, device="meta")))


# How fast a device is --------------------------------------------------------------------------------------------


def flop_rate(args: argparse.Namespace) -> tuple[float, str]:
    """Return a device's FLOPs a second, and where the number is from."""
    if args.flops_per_second:
        return args.flops_per_second, "given"
    if args.gpu:
        return PEAKS[args.gpu] * args.utilisation, f"{args.gpu}'s peak of {PEAKS[args.gpu]:.3g} x {args.utilisation:g}"
    clip, batch = build_clip(ENCODERS["B/16"]).to(args.device).eval(), 4 if args.device == "cpu" else 256
    images = torch.randn(batch, 3, 224, 224, device=args.device)

    @torch.no_grad()
    def run() -> None:
        with torch.autocast(args.device, torch.float16, enabled=args.device != "cpu"):
            encode_image(clip, image_path(clip), images)  # the way that encoder_flops counts

    return batch * encoder_flops("B/16") / seconds([run], args.device, 3)[0], f"ViT-B/16's forward, {args.device}"


def image_rates(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return a device's images a second, plain and ours, by what is seen of them.

    The ratios are measured here; --images-per-second says how fast our view of 224 is.
    """
    with tempfile.TemporaryDirectory() as folder:
        items = [Datum(f"{folder}/{number}.jpg", 0, index=number) for number in range(3)]
        for number, item in enumerate(items):
            photograph(500, 375, 3.0, number).save(item.impath, quality=95)
        spent = {case: seconds_each(decode_ways(items, case, 3.0), 3, 2.0) for case in CASES}
    scale = args.images_per_second * spent["view 224"]["gap 3"] if args.images_per_second else args.cores
    return {
        "plain": {case: scale / own["plain"] for case, own in spent.items()},
        "ours": {case: scale / own["gap 3"] for case, own in spent.items()},
    }


# What it costs ---------------------------------------------------------------------------------------------------


def hours(work: dict, way: str, flop: float, rates: dict[str, dict[str, float]], shortest: float) -> float:
    """Return the device hours of a run and its evaluation."""
    looks, own = work["teacher"] and (way == "plain" or "teacher" not in work["cached"]), work[way]
    case = "views 224 + 336" if looks else "view 224"
    stored = way == "ours" and "student" in work["cached"]
    read = 0.0 if stored else work["images"] / rates[way][case]
    step = max(own["step"] / flop, read, shortest)
    test = 0.0 if stored else test_images() * max(own["test_image"] / flop, 1 / rates[way]["evaluation 224"])
    return (work["steps"] * step + test) / 3600


def fill_hours(work: dict, flop: float, rates: dict[str, dict[str, float]]) -> float:
    """Return the device hours of filling both caches."""
    read = work["images"]["teacher"] / rates["ours"]["view 336"] + work["images"]["student"] / rates["ours"]["view 224"]
    return max(work["flops"] / flop, read) / 3600


def main() -> None:
    """Count, measure and print."""
    args = build_parser().parse_args()
    torch.set_num_threads(1)
    flop, source = flop_rate(args)
    rates, works = image_rates(args), []
    with tempfile.TemporaryDirectory() as folder, without_weights(ENCODERS["B/16"], ENCODERS["L/14@336"]):
        write_images(Path(folder), CLASSES, 2)
        for name in args.methods:
            works += [run_work(Path(folder), name, kind) for kind in KINDS]
    fill = fill_work(args.views, {"teacher": ENCODERS["L/14@336"].dim, "student": ENCODERS["B/16"].dim})
    for work in works:
        for way in ("plain", "ours"):
            work[f"{way}_hours"] = SEEDS * hours(work, way, flop, rates, args.step_seconds)
    fill["hours"] = fill_hours(fill, flop, rates)
    print(f"{flop:.3g} FLOPs a second ({source}); our views of 224: {rates['ours']['view 224']:.0f} a second\n")
    print(report(works, fill))
    if args.json:
        rest = {"flops_per_second": flop, "images_per_second": rates, "fill": fill}
        write_json(args.json, {"args": {k: str(v) for k, v in vars(args).items()}, **rest, "runs": works})


def report(works: list[dict], fill: dict) -> str:
    """Return the costs as a table, and the disk below it."""
    lines = []
    for w in works:
        step = w["plain"]["step"] / 1e12, w["ours"]["step"] / 1e12
        both = w["plain_hours"], w["ours_hours"]
        lines.append([w["run"], w["steps"], w["images"], *step, *both, both[0] / both[1]])
    plain, ours = sum(w["plain_hours"] for w in works), sum(w["ours_hours"] for w in works) + fill["hours"]
    lines.append(["both caches, filled once", None, None, None, None, None, fill["hours"], None])
    lines.append(["total", None, None, None, None, plain, ours, plain / ours])
    names = [
        f"{SEEDS} runs of",
        "steps",
        "images a step",
        "plain, TFLOPs a step",
        "ours",
        "plain, hours",
        "ours",
        "ratio",
    ]
    table = tabulate(lines, names, floatfmt=("", ",", "", ".4g", ".4g", ".1f", ".1f", ".1f"), tablefmt="github")
    disk = ", ".join(f"{who} {count / 1e9:.1f} GB" for who, count in fill["bytes"].items())
    return f"{table}\n\nDisk: {disk}"


if __name__ == "__main__":
    main()
