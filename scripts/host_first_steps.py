"""Compare our CoOp_DHO with the host's own CoOp turned into its DHO version, on the same weights and batches.

Run by scripts/try_hosts.sh through dho-host, in CoOp's folder: its arguments are those of the host's train.py.
"""

import argparse
import itertools
import random
import sys

import torch
import train  # the host's
from dassl.engine import build_trainer

STEPS, TOLERANCE = 6, 1e-4


def build(name: str, words: list[str]):
    """Return a trainer of the host at its first step."""
    parser = argparse.ArgumentParser()
    flags = ("root", "output-dir", "resume", "source-domains", "target-domains", "transforms", "backbone", "head")
    for flag in (*flags, "config-file", "dataset-config-file"):
        parser.add_argument(f"--{flag}", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args(words)
    args.trainer = name
    args.output_dir = f"{args.output_dir}/{name}"
    random.seed(1)
    torch.manual_seed(1)
    trainer = build_trainer(train.setup_cfg(args))
    trainer.before_train()
    trainer.set_model_mode("train")
    trainer.batch_idx, trainer.num_batches = 0, STEPS + 1
    return trainer


def main() -> None:
    """Take a few steps with both and compare their losses."""
    twin, own = build("CoOp_DHO_twin", sys.argv[1:]), build("CoOp_DHO", sys.argv[1:])
    with torch.no_grad():
        own.student.prompt_learner.ctx.copy_(twin.model.prompt_learner.ctx)
    unlabeled, worst = twin._images, 0.0
    batches = itertools.chain.from_iterable(itertools.repeat(twin.train_loader_x))
    for step, batch, further in zip(range(STEPS), batches, unlabeled, strict=False):
        twin._images = iter([further])
        theirs = twin.forward_backward(batch)
        ours = own.forward_backward(*({**b, "img_teacher": b["img2"]} for b in (batch, further)))
        pairs = [(theirs["loss"], ours["loss_ce"].item()), (theirs["loss_kd"], ours["loss_kd"].item())]
        worst = max(worst, *(abs(a - b) / max(1.0, abs(b)) for a, b in pairs))
        print(
            f"step {step + 1}: CE {pairs[0][0]:.6f} and {pairs[0][1]:.6f}, KD {pairs[1][0]:.6f} and {pairs[1][1]:.6f}"
        )
    print(f"first steps: largest relative difference {worst:.1e} (allowed {TOLERANCE})")
    if worst > TOLERANCE:
        sys.exit(1)


if __name__ == "__main__":
    main()
