"""A whole training step of every method: `python benchmarks/step.py`.

Counted: FLOPs of the step (student, teacher, heads, losses, backward) at full size, and the bytes that its forward
keeps for the backward, by the project's own trainers on the meta device; see counting.py. The same on every machine.
Measured: the same trainers' steps, optimizer included, on batches that lie ready; the ways of a method take turns.
Small on a CPU, full size with `--device cuda`.

plain: all 77 tokens of every prompt, all tokens of every image layer, the teacher looks at every image. default: what
the package takes by itself. cached: features are read where the encoder that gives them is frozen.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from common import (
    ENCODERS,
    base_parser,
    run_config,
    run_words,
    seconds,
    start,
    write_images,
    write_weights,
)
from counting import BARE, batches, counted, replaced, tower_options, ways, without_weights
from tabulate import tabulate

from dho_plugin.engine.files import write_json
from dho_plugin.models.buckets import MOST_ON_A_GPU


class Case(NamedTuple):
    """A method as it is measured: its config, how many images a step where that is not the config's, its student."""

    method: str
    config: str
    batch: int | None = None
    student: str = "B/16"


# CoOp with 32 images and PromptSRC with 4, as their authors run them; the others' 256 only multiply the numbers.
CASES = {
    "LinearProbe": Case("LinearProbe", "vit_b16_ep20", 32),
    "VPT-3": Case("VPT", "vit_b16_ep20_depth3", 32),
    "CoOp": Case("CoOp", "vit_b16_ep50_ctxv1"),
    "PromptSRC": Case("PromptSRC", "vit_b16_c2_ep20_batch4_4+4ctx"),
    "PromptSRC, ViT-L/14": Case("PromptSRC", "vit_b16_c2_ep20_batch4_4+4ctx", student="L/14"),
}
# Times fewer FLOPs than the plain step, required and aimed at.
WANTED = {
    ("CoOp + DHO", "teacher cached"): (12, 14),
    ("CoOp + DHO", "teacher and student cached"): (50, 65),
    ("PromptSRC", "default"): (11, 14),
    ("PromptSRC", "frozen CLIP cached"): (11, 14),
}
SMALL = {"student": "Ti/32", "teacher": "S/32", "classes": 50, "batch": 4}
FULL = {"student": "B/16", "teacher": "L/14@336", "classes": 1000, "batch": None}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = base_parser(__doc__)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the measured times")
    made.add_argument("--student", choices=ENCODERS, help="measured; default: Ti/32 on a CPU, B/16 on a GPU")
    made.add_argument("--teacher", choices=ENCODERS, help="measured; default: S/32 on a CPU, L/14@336 on a GPU")
    made.add_argument("--classes", type=int, help="measured; default: 50 on a CPU, 1000 on a GPU")
    made.add_argument("--batch", type=int, help="labeled images, measured; default: 4 on a CPU, as counted on a GPU")
    made.add_argument("--precision", default="amp", help="fp32, amp or bf16; a CPU computes fp16 and amp in fp32")
    made.add_argument("--repeats", type=int, default=3, help="how often each time is taken")
    made.add_argument("--only", choices=("counted", "measured"), help="leave the other part out")
    made.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="methods")
    return made


def row_names(case: str) -> dict[str, str]:
    """Return the trainers of a case by their rows' names."""
    method = CASES[case].method
    return {case: method} if "," in case else {case: method, f"{case} + DHO": f"{method}_DHO"}


def options(case: str, batch: int | None = None) -> list[str]:
    """Return the KEY VALUE pairs of a case's runs."""
    batch = batch or CASES[case].batch
    return ["DATALOADER.TRAIN_X.BATCH_SIZE", str(batch)] if batch else []


def counted_rows(cases: list[str]) -> list[dict]:
    """Count the steps of these methods at full size."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, FULL["classes"], 2)
        for case in cases:
            with without_weights(ENCODERS[CASES[case].student], ENCODERS[FULL["teacher"]]):
                for name, trainer in row_names(case).items():
                    rows += ratio_rows(name, counted(root, trainer, CASES[case].config, *options(case)))
                if case == "CoOp":
                    rows += ratio_rows(f"{name}, {MOST_ON_A_GPU} buckets", counted_on_gpu(root, case, trainer))
    return rows


def counted_on_gpu(root: Path, case: str, trainer: str) -> dict[str, dict]:
    """Return what a step takes with the padding of prompts that a GPU gets."""

    def most_buckets(where: torch.device) -> int:
        return MOST_ON_A_GPU

    with replaced(most_buckets):
        return counted(root, trainer, CASES[case].config, *options(case))


def ratio_rows(name: str, found: dict[str, dict]) -> list[dict]:
    """Return a row of each way, with how many times less it takes than the plain one."""
    rows = []
    for way, own in found.items():
        ratios = {f"{key}_ratio": value and found["plain"][key] / value for key, value in own.items()}
        rows.append({"step": name, "way": way, **own, **ratios, "required_aim": WANTED.get((name, way))})
    return rows


def measured_rows(args: argparse.Namespace) -> list[dict]:
    """Take the times of these methods' steps."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, args.classes, 2)
        for who in ("student", "teacher"):
            write_weights(root / f"{who}.pt", getattr(args, who))
        for case in args.cases:
            if CASES[case].student != "B/16":
                continue  # the student is that of the command line
            for name, trainer in row_names(case).items():
                found = measured(root, trainer, case, args)
                rows += ratio_rows(name, {way: {"seconds": taken} for way, taken in found.items()})
    return rows


def measured(root: Path, name: str, case: str, args: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of a trainer's step in each of its ways."""
    node, trainers = CASES[case].method.upper(), {}
    here = [
        "USE_CUDA",
        str(args.device == "cuda"),
        f"TRAINER.{node}.PREC",
        args.precision,
        "DATALOADER.NUM_WORKERS",
        "0",
    ]
    for towers in ("plain", "auto"):
        words = (*here, *BARE, *tower_options(towers), *options(case, args.batch))
        trainers[towers] = start(run_config(run_words(root, name, CASES[case].config, *words)))
    taken = ways(trainers["auto"])
    steps = [step(trainers[way.towers], way.cached) for way in taken]
    return dict(zip([way.name for way in taken], seconds(steps, args.device, args.repeats), strict=True))


def step(trainer, cached: tuple[str, ...]):
    """Return a function that takes a trainer's step on images or features that lie ready."""
    given = batches(trainer, cached, trainer.device)
    return lambda: trainer.forward_backward(*given)


def main() -> None:
    """Count, measure and print."""
    args = build_parser().parse_args()
    for name, value in (SMALL if args.device == "cpu" else FULL).items():
        setattr(args, name, getattr(args, name) or value)
    os.environ["DHO_CACHE"] = tempfile.mkdtemp()  # nothing that lies about is read
    torch.set_num_threads(1)
    result = {}
    if args.only != "measured":
        result["counted"] = counted_rows(args.cases)
        print("Counted, full size:\n\n" + counted_table(result["counted"]), flush=True)
    if args.only != "counted":
        result["measured"] = measured_rows(args)
        print(f"\nMeasured, {args.student}, {args.teacher}, {args.classes} classes, {args.device}:\n")
        print(measured_table(result["measured"]))
    if args.json:
        write_json(args.json, {"args": {k: str(v) for k, v in vars(args).items()}, **result})


def counted_table(rows: list[dict]) -> str:
    """Return FLOPs and activation memory as a table."""
    lines = []
    for r in rows:
        wanted = "{}x, {}x".format(*r["required_aim"]) if r["required_aim"] else "-"
        kept = r["kept_bytes"] / 1e9, r["kept_bytes_ratio"]
        lines.append([r["step"], r["way"], r["flops"] / 1e12, r["flops_ratio"], wanted, *kept])
    names = ["step", "way", "TFLOPs", "plain / this", "required, aim", "kept for the backward, GB", "plain / this"]
    return tabulate(lines, names, floatfmt=("", "", ".4g", ".1f", "", ".3g", ".1f"), tablefmt="github")


def measured_table(rows: list[dict]) -> str:
    """Return times as a table."""
    lines = [[r["step"], r["way"], 1e3 * r["seconds"], r["seconds_ratio"]] for r in rows]
    return tabulate(lines, ["step", "way", "ms", "plain / this"], floatfmt=("", "", ".1f", ".1f"), tablefmt="github")


if __name__ == "__main__":
    main()
