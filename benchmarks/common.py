"""What the benchmarks share: CLIPs with random weights, generated images, a run's config, clocks and counters."""

import argparse
import io
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from photographs import photograph
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dho_plugin.train import build_parser as train_parser
from dho_plugin.train import build_trainer, check_names, setup_cfg

logging.getLogger("dho_plugin.models").setLevel(logging.ERROR)  # that these are no published model's sizes
CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = open_clip.IMAGENET_CLASSNAMES
CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}


class Encoder(NamedTuple):
    """A CLIP by its sizes: the image transformer's, the features', the text transformer's; heads are 64 wide."""

    width: int
    layers: int
    patch: int
    size: int
    dim: int
    text_width: int
    text_layers: int


ENCODERS = {
    "Ti/32": Encoder(192, 12, 32, 224, 512, 128, 12),
    "Ti/48@336": Encoder(192, 12, 48, 336, 512, 128, 12),
    "Ti/16": Encoder(192, 12, 16, 224, 512, 128, 12),
    "S/16": Encoder(384, 12, 16, 224, 512, 256, 12),
    "S/32": Encoder(384, 12, 32, 224, 512, 256, 12),
    "B/16": Encoder(768, 12, 16, 224, 512, 512, 12),
    "L/14": Encoder(1024, 24, 14, 224, 768, 768, 12),
    "L/14@336": Encoder(1024, 24, 14, 336, 768, 768, 12),
}


def base_parser(doc: str, json_help: str = "file for the figures") -> argparse.ArgumentParser:
    """Return a command line that has what every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help=json_help)
    return made


def build_clip(encoder: Encoder) -> nn.Module:
    """Return open_clip's CLIP of these sizes with freshly drawn weights and OpenAI's scale."""
    size = {"image_size": encoder.size, "patch_size": encoder.patch}
    vision = open_clip.CLIPVisionCfg(**size, width=encoder.width, layers=encoder.layers, head_width=64)
    text = {"width": encoder.text_width, "heads": encoder.text_width // 64, "layers": encoder.text_layers}
    clip = open_clip.CLIP(encoder.dim, vision, open_clip.CLIPTextCfg(77, 49408, **text), quick_gelu=True)
    clip.logit_scale.data.fill_(math.log(100))
    return clip


def write_weights(path: Path, name: str) -> None:
    """Write random weights under OpenAI's keys."""
    torch.manual_seed(0)
    torch.save(build_clip(ENCODERS[name]).state_dict(), path)


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
    names = NAMES[:: max(1, len(NAMES) // classes)]  # spread over ImageNet's
    lines = [f"{wnid} {names[label % len(names)]}\n" for label, wnid in enumerate(wnids)]
    (root / "imagenet/classnames.txt").write_text("".join(lines))


def run_words(root: Path, trainer: str, config: str, *options: str) -> list[str]:
    """Return the command line of a run on the images and weights below `root`; `options` are KEY VALUE pairs."""
    return [
        *("--root", str(root), "--trainer", trainer, "--seed", "1", "--output-dir", str(root / "run")),
        *("--dataset-config-file", str(CONFIGS / "datasets/imagenet.yaml")),
        *("--config-file", str(CONFIGS / "trainers" / trainer / f"{config}.yaml")),
        *("MODEL.BACKBONE.CKPT", str(root / "student.pt"), "TRAINER.DHO.TEACHER.CKPT", str(root / "teacher.pt")),
        *("DATASET.TEMPLATES", "('a photo of a {}.',)", "TEST.SHIFTED", "()", "DATASET.NUM_SHOTS", "1"),
        *("OPTIM.WARMUP_STEPS", "0", "OPTIM.MAX_EPOCH", "1000", *options),
    ]


def run_config(words: Sequence[str]):
    """Return the frozen config of a command line."""
    cfg = setup_cfg(train_parser().parse_args(list(words)))
    check_names(cfg)
    return cfg


def start(cfg):
    """Return the config's trainer, ready for its first step."""
    with redirect_stdout(io.StringIO()):
        trainer = build_trainer(cfg)
        trainer.before_train()
        trainer.bar.close()
        trainer.before_epoch()
    return trainer


def synchronize(device: torch.device | str) -> float:
    """Return the time once the device has done all that it was given."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def seconds(runs: Sequence[Callable], device: str, repeats: int) -> list[float]:
    """Return the median time of each run, taken in turns: CPU time of one thread, or a GPU's."""
    clock = CLOCKS[torch.device(device).type]
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + (device != "cpu")):  # the first one on a GPU loads kernels
        for taken, run in zip(times, runs, strict=True):
            synchronize(device)
            before = clock()
            run()
            synchronize(device)
            taken.append(clock() - before)
    return [statistics.median(taken[-repeats:]) for taken in times]


def flops(run: Callable) -> int:
    """Return the FLOPs that torch's counter finds in a run; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def saved_bytes(forward: Callable, module: nn.Module) -> int:
    """Return what a forward keeps for the backward, each storage counted once, the module's own tensors not."""
    own = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
