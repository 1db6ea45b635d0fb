import argparse
import random

import small_datasets  # noqa: F401
import small_trainers  # noqa: F401
import torch
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from yacs.config import CfgNode


def extend_cfg(cfg):
    cfg.TRAINER.SMALL = CfgNode({"PREC": "fp32", "CLIP": 0.0})


def setup_cfg(args):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    for path in (args.dataset_config_file, args.config_file):
        if path:
            cfg.merge_from_file(path)
    cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.SEED, cfg.TRAINER.NAME = args.root, args.output_dir, args.seed, args.trainer
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


def build_parser():
    parser = argparse.ArgumentParser()
    for flag in ("--root", "--output-dir", "--trainer", "--model-dir", "--dataset-config-file", "--config-file"):
        parser.add_argument(flag, default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--load-epoch", type=int)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    return parser


def main(args):
    cfg = setup_cfg(args)
    random.seed(cfg.SEED)
    torch.manual_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
    else:
        trainer.train()
    return trainer


if __name__ == "__main__":
    main(build_parser().parse_args())
