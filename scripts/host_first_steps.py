"""Compare two ways to the same first steps in a real host: weights, batches and settings are the same.

`own`: our CoOp_DHO and the host's own CoOp turned into its DHO version; `routes TRAINER`: a twin by route B and by A.
Run by scripts/try_hosts.sh through dho-host: these words stand behind the flags of the host's train.py, in front of its
KEY VALUE pairs.
"""

import argparse
import itertools
import random
import sys

import torch
import train  # the host's
from dassl.engine import build_trainer

STEPS, TOLERANCE = 6, 1e-4


def parse() -> argparse.Namespace:
    """Return the arguments as a host's train.py has them; the words behind the flags are `opts`."""
    parser = argparse.ArgumentParser()
    flags = ("root", "output-dir", "resume", "source-domains", "target-domains", "transforms", "backbone", "head")
    for flag in (*flags, "config-file", "dataset-config-file"):
        parser.add_argument(f"--{flag}", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    return parser.parse_args()


def build(name: str, opts: list[str], route: str = "auto"):
    """Return a trainer of the host at its first step."""
    args = parse()
    args.trainer, args.opts = name, [*opts, "TRAINER.DHO.ROUTE", route]
    args.output_dir = f"{args.output_dir}/{name}_{route}"
    random.seed(1)
    torch.manual_seed(1)
    trainer = build_trainer(train.setup_cfg(args))
    trainer.before_train()
    trainer.set_model_mode("train")
    trainer.batch_idx, trainer.num_batches = 0, STEPS + 1
    return trainer


def twin_step(twin, batch: dict, further: dict) -> tuple[float, float]:
    """Take a step of a twin and return its losses."""
    twin._images = iter([further])
    summary = twin.forward_backward(batch)
    return summary["loss"], summary["loss_kd"]


def own_step(own, batch: dict, further: dict) -> tuple[float, float]:
    """Take a step of our own trainer and return its losses."""
    summary = own.forward_backward(*({**part, "img_teacher": part["img2"]} for part in (batch, further)))
    return summary["loss_ce"].item(), summary["loss_kd"].item()


def pair(words: list[str]):
    """Return two trainers with the same weights, each with the function that takes its step."""
    kind, *opts = words
    if kind == "routes":
        name, *opts = opts
        return [(build(name, opts, route), twin_step) for route in "BA"]
    twin, own = build("CoOp_DHO_twin", opts), build("CoOp_DHO", opts)
    with torch.no_grad():
        own.student.prompt_learner.ctx.copy_(twin.model.prompt_learner.ctx)
    return [(twin, twin_step), (own, own_step)]


def main() -> None:
    """Take a few steps with both and compare their losses."""
    both, worst = pair(parse().opts), 0.0
    batches = itertools.chain.from_iterable(itertools.repeat(both[0][0].train_loader_x))
    for step, batch, further in zip(range(STEPS), batches, both[0][0]._images, strict=False):
        (loss, kd), (other_loss, other_kd) = (take(trainer, batch, further) for trainer, take in both)
        worst = max(worst, abs(loss - other_loss) / max(1.0, abs(loss)), abs(kd - other_kd) / max(1.0, abs(kd)))
        print(f"step {step + 1}: host's loss {loss:.6f} and {other_loss:.6f}, KD {kd:.6f} and {other_kd:.6f}")
    print(f"first steps: largest relative difference {worst:.1e} (allowed {TOLERANCE})")
    if worst > TOLERANCE:
        sys.exit(1)


if __name__ == "__main__":
    main()
