"""Fixtures that several test folders share."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)


@dataclass(frozen=True)
class ImageNetTree:
    """A tiny ImageNet on disk: its root, and the classes of its five sets."""

    root: Path
    wnids: list[str]
    names: list[str]
    wnids_a: list[str]
    wnids_r: list[str]


def _write_images(folder: Path, count: int, size: tuple[int, int], rng: np.random.Generator, ending: str) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{folder.name}_{number}.{ending}")


@pytest.fixture
def imagenet_tree(tmp_path):
    """Return a function that writes a tiny tree of ImageNet, V2, Sketch, A and R in the layout of CoOp's DATASETS.md.

    Two classes share their name, A and R hold other classes each, and README.txt and hidden files lie about, as on real
    disks.
    """

    def build(
        classes: int = 4,
        train: int = 5,
        test: int = 2,
        *,
        prefix: str = "",
        size: tuple[int, int] = (40, 32),
        seed: int = 0,
    ) -> ImageNetTree:
        home, rng = tmp_path / prefix, np.random.default_rng(seed)
        wnids = [f"n{1_000_000 + 37 * number:08d}" for number in range(classes)]
        names = [f"thing number {number}" for number in range(classes - 1)] + ["thing number 0"]
        sets = {
            "imagenet/images/train": (wnids, train, "JPEG"),
            "imagenet/images/val": (wnids, test, "JPEG"),
            "imagenetv2/imagenetv2-matched-frequency-format-val": ([str(n) for n in range(classes)], test, "jpeg"),
            "imagenet-sketch/images": (wnids, test, "JPEG"),
            "imagenet-adversarial/imagenet-a": (wnids[: classes // 2], test, "jpg"),
            "imagenet-rendition/imagenet-r": (wnids[classes // 2 :], test, "jpg"),
        }
        for folder, (keys, count, ending) in sets.items():
            for key in keys:
                _write_images(home / folder / key, count, size, rng, ending)
            (home / folder / "README.txt").write_text("not a class")
            (home / folder / ".hidden").mkdir()
        lines = [f"{wnid} {name}" for wnid, name in zip(wnids, names, strict=True)]
        (home / "imagenet" / "classnames.txt").write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")
        return ImageNetTree(tmp_path, wnids, names, sets["imagenet-adversarial/imagenet-a"][0], wnids[classes // 2 :])

    return build


def _tiny_weights(image_size: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(image_size)
    vision = open_clip.CLIPVisionCfg(image_size=image_size, patch_size=8, width=64, layers=2)
    text = open_clip.CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=2)
    model = open_clip.CLIP(32, vision, text, quick_gelu=True)
    return {**model.state_dict(), "logit_scale": torch.tensor(math.log(100.0))}


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> tuple[str, str]:
    """Files of a tiny student (32 px) and a tiny teacher (48 px) in OpenAI's format, random weights."""
    folder = tmp_path_factory.mktemp("weights")
    for name, size in (("student", 32), ("teacher", 48)):
        torch.save(_tiny_weights(size), folder / f"{name}.pt")
    return str(folder / "student.pt"), str(folder / "teacher.pt")


@pytest.fixture
def command(imagenet_tree, tiny_weights, tmp_path):
    """Return a function that writes the command line of a small run on a tiny tree, made at the first call."""
    tree = imagenet_tree(classes=4, train=6, test=2)

    def build(
        trainer: str, out: str, *options: str, dataset: str = "imagenet", flags: tuple[str, ...] = ()
    ) -> list[str]:
        root = Path(__file__).parent.parent / "configs"
        student, teacher = tiny_weights
        folder = "CoOp_DHO" if trainer.endswith("_DHO") else "CoOp"
        return [
            *("--root", str(tree.root), "--trainer", trainer, "--output-dir", str(tmp_path / out), "--seed", "1"),
            *("--dataset-config-file", str(root / f"datasets/{dataset}.yaml")),
            *("--config-file", str(root / f"trainers/{folder}/vit_b16_ep50_ctxv1.yaml"), *flags),
            *("MODEL.BACKBONE.CKPT", student, "TRAINER.DHO.TEACHER.CKPT", teacher, "TRAINER.COOP.PREC", "fp32"),
            *("DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "3", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"),
            *("DATALOADER.NUM_WORKERS", "0", *options),
        ]

    return build
