"""The entry point with the hosts' flags: `python -m dho_plugin.train`, installed as `dho-train`."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path

from dho_plugin.engine.config import (
    as_plain,
    dataset_label,
    differing_keys,
    get_cfg_default,
    merge_file,
    merge_pairs,
    without_effect,
)
from dho_plugin.engine.files import read_json
from dho_plugin.engine.processes import agreed, only_main_prints
from dho_plugin.errors import ConfigError, run_command

# Flags that set one config key each.
FLAG_KEYS = {
    "root": "DATASET.ROOT",
    "output_dir": "OUTPUT_DIR",
    "resume": "RESUME",
    "seed": "SEED",
    "source_domains": "DATASET.SOURCE_DOMAINS",
    "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS",
    "trainer": "TRAINER.NAME",
    "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of exactly the hosts' flags."""
    parser = argparse.ArgumentParser(prog="dho-train", description="Train or evaluate a method, with or without DHO.")
    parser.add_argument("--output-dir", help="output directory")
    parser.add_argument("--resume", help="directory of the checkpoint from which training resumes")
    parser.add_argument("--eval-only", action="store_true", help="evaluation only")
    parser.add_argument("--model-dir", default="", help="directory of the model to evaluate, or a released DHO file")
    parser.add_argument(
        "--load-epoch", type=int, help="epoch of the model to evaluate; default: the best one, else the last"
    )
    parser.add_argument("--no-train", action="store_true", help="build everything, train nothing")
    add_config_flags(parser)
    return parser


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add the hosts' flags that say what a run is, and the trailing pairs."""
    parser.add_argument("--root", help="path to the data sets")
    parser.add_argument("--seed", type=int, help="0 or more fixes the seed")
    parser.add_argument("--source-domains", nargs="+", help="source domains for DA/DG")
    parser.add_argument("--target-domains", nargs="+", help="target domains for DA/DG")
    parser.add_argument("--transforms", nargs="+", help="data augmentation methods")
    parser.add_argument("--config-file", default="", help="config file of the method")
    parser.add_argument("--dataset-config-file", default="", help="config file of the data set")
    parser.add_argument("--trainer", help="name of the trainer, such as CoOp_DHO")
    parser.add_argument("--backbone", help="name of the backbone, such as ViT-B/16")
    parser.add_argument("--head", help="name of the head")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change config options")


def setup_cfg(args: argparse.Namespace):
    """Return the frozen config: defaults < dataset YAML < method YAML < flags < trailing pairs.

    Raises:
        ConfigError: see `merge_file` and `merge_pairs`.
    """
    cfg = get_cfg_default()
    for path in (args.dataset_config_file, args.config_file):
        if path:
            merge_file(cfg, path)
    for flag, key in FLAG_KEYS.items():
        value = getattr(args, flag, None)
        if value is not None:
            *nodes, name = key.split(".")
            reduce(getitem, nodes, cfg)[name] = tuple(value) if isinstance(value, list) else value
    merge_pairs(cfg, args.opts)
    if cfg.DATASET.NAME == "ImageFolder":  # its place says which data it is: the same from any working folder
        cfg.DATASET.ROOT = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
    if cfg.SEED < 0:
        cfg.SEED = draw_seed(cfg.OUTPUT_DIR)
    cfg.freeze()
    return cfg


def draw_seed(output_dir: str) -> int:
    """Return a random seed, or the one that an interrupted run in `output_dir` had drawn."""
    path = Path(output_dir) / "config.json"
    return read_json(path)["SEED"] if path.exists() else secrets.randbelow(2**31)


def differences(cfg) -> list[str]:
    """Return in which keys the run that OUTPUT_DIR holds differs from this one; [] for a new folder or the same run."""
    path = Path(cfg.OUTPUT_DIR) / "config.json"
    return differing_keys(as_plain(cfg), read_json(path)) if path.exists() else []


def check_output(cfg) -> None:
    """Check that OUTPUT_DIR is new or belongs to this very run.

    Raises:
        ConfigError: the folder holds a run of another configuration; the message lists what differs.
    """
    if differ := differences(cfg):
        raise ConfigError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} belongs to another configuration; choose another --output-dir "
            "(OUTPUT=... before a script), or delete it to start over. They differ in:\n  " + "\n  ".join(differ)
        )


def print_header(args: argparse.Namespace, cfg) -> None:
    """Print what the run is, as the hosts do."""
    from dho_plugin.engine.logger import versions

    print("***************\n** Arguments **\n***************")
    for name, value in sorted(vars(args).items()):
        print(f"{name}: {value}")
    print(f"************\n** Config **\n************\n{cfg}")
    if idle := without_effect(cfg):
        print(f"Without effect (size, mean, std and interpolation come with the weights): {'; '.join(idle)}")
    print("Versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()))


def build_trainer(cfg):
    """Return the trainer that TRAINER.NAME asks for, data and models loaded."""
    from dho_plugin.engine.registry import TRAINER_REGISTRY

    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)


def check_names(cfg) -> None:
    """Check the names that the registries must know.

    Raises:
        ConfigError: unknown trainer or data set; the message lists the known ones.
    """
    import dho_plugin.data.fine_grained
    import dho_plugin.data.imagenet
    import dho_plugin.data.own
    import dho_plugin.trainers  # noqa: F401 (all fill the registries)
    from dho_plugin.engine.registry import DATASET_REGISTRY, TRAINER_REGISTRY

    TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    for name in (cfg.DATASET.NAME, *cfg.TEST.SHIFTED):
        DATASET_REGISTRY.get(name)


def skipped(args: argparse.Namespace, cfg) -> bool:
    """Say whether OUTPUT_DIR holds this very run, complete, and print that it is skipped.

    An evaluation of a trained model is never skipped: the config does not say which model it was.
    """
    if args.model_dir or not (Path(cfg.OUTPUT_DIR) / "results.json").exists() or differences(cfg):
        return False
    print(f"{cfg.OUTPUT_DIR} is complete (results.json is there): skipped. Delete the folder to run it again.")
    return True


def run(args: argparse.Namespace) -> None:
    """Carry out one command line.

    Raises:
        DHOError: anything that the user can mend.
    """
    cfg = setup_cfg(args)
    if skipped(args, cfg):
        return
    check_names(cfg)

    from dho_plugin.engine.logger import locked, logged_to  # here: skipping a complete run must not wait for torch

    with locked(cfg.OUTPUT_DIR):
        cfg, complete = agree(cfg, skipped(args, cfg))  # another process may have finished it in the meantime
        if complete:
            return
        with logged_to(cfg.OUTPUT_DIR):
            carry_out(args, cfg)


def agree(cfg, complete: bool):
    """Return the config with the main process's seed, and whether it found the run complete, on all processes."""
    from dho_plugin.engine.device import check_devices, on_cpu

    check_devices(cfg)  # before they speak to each other over them
    seed, complete = agreed((cfg.SEED, complete), on_cpu=on_cpu(cfg))
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed  # below 0 in the command: each process has drawn one
    cfg.freeze()
    return cfg, complete


def carry_out(args: argparse.Namespace, cfg) -> None:
    """Train or evaluate in an output folder that belongs to this run."""
    check_output(cfg)
    print_header(args, cfg)
    trainer = build_trainer(cfg)
    trainer.config_name = Path(args.config_file).stem or dataset_label(cfg)
    if args.eval_only:
        trainer.evaluate_only(args.model_dir, args.load_epoch)
    elif not args.no_train:
        trainer.train()
    trainer.accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    with only_main_prints():
        return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
