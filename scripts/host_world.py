"""Write what a trial of real hosts needs: a tiny ImageNet, -A and -R in CoOp's layout, tiny CLIPs of random weights."""

import math
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

CLASSES, TRAIN, TEST = 12, 4, 2
SETS = {  # folder: its classes, images a class
    "imagenet/images/train": (range(CLASSES), TRAIN),
    "imagenet/images/val": (range(CLASSES), TEST),
    "imagenet-adversarial/imagenet-a": ((1, 4, 7, 10), TEST),
    "imagenet-rendition/imagenet-r": ((0, 4, 5, 11), TEST),
}


def write_tree(root: Path) -> None:
    """Write the images, and classnames.txt beside each set, as CoOp's DATASETS.md wants them."""
    rng = np.random.default_rng(0)
    wnids = [f"n{1_000_000 + 37 * number:08d}" for number in range(CLASSES)]
    names = "".join(f"{wnid} thing number {number}\n" for number, wnid in enumerate(wnids))
    for folder, (classes, count) in SETS.items():
        for label in classes:
            home = root / folder / wnids[label]
            home.mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(0, 90, (40, 48, 3))
                color = np.array([80 + 13 * label, 255 - 20 * label, 25 * (label % 5)])
                pixels = np.clip(noise + color // 2, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(home / f"{wnids[label]}_{number}.JPEG")
        (root / folder.split("/")[0] / "classnames.txt").write_text(names)


def write_clip(path: Path, image_size: int, width: int) -> None:
    """Write a CLIP of two layers a tower in OpenAI's format, in half precision as theirs; its text width is 512."""
    torch.manual_seed(image_size)
    vision = open_clip.CLIPVisionCfg(image_size=image_size, patch_size=16, width=width, layers=2)
    text = open_clip.CLIPTextCfg(context_length=77, vocab_size=49408, width=512, heads=8, layers=2)
    model = open_clip.CLIP(512, vision, text, quick_gelu=True).half()
    torch.save({**model.state_dict(), "logit_scale": torch.tensor(math.log(100.0))}, path)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    write_tree(home / "data")
    write_clip(home / "student.pt", 32, 768)  # MaPLe's code has the widths 768 and 512 in it
    write_clip(home / "teacher.pt", 48, 128)
