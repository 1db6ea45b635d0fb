"""Fixtures that several test folders share."""

import importlib.util
import io
import itertools
import json
import math
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from dho_plugin.train import build_parser, build_trainer, check_names, main, setup_cfg

torch.set_num_threads(1)

# Files that take half a minute or more. Two processes share the files; begun last, one would leave the other idle.
LONG = (
    "tests/data/test_mini_pretrain", "tests/models/test_text_paths", "tests/scripts/", "tests/test_analyze",
    "tests/test_cach", "tests/test_export", "tests/test_filling", "tests/test_matrix", "tests/test_mini_world",
    "tests/test_several_processes", "tests/test_train",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Begin with the long files."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Keep what the package stores between runs in a folder of the session's, never in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DHO_CACHE", str(folder))
        yield folder


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


def write_imagenet_tree(
    root: Path,
    classes: int = 4,
    train: int = 5,
    test: int = 2,
    *,
    prefix: str = "",
    size: tuple[int, int] = (40, 32),
    seed: int = 0,
) -> ImageNetTree:
    """Write a tiny tree of ImageNet, V2, Sketch, A and R in the layout of CoOp's DATASETS.md.

    Two classes share their name, A and R hold other classes each, and README.txt and hidden files lie about, as on real
    disks. With one class there is no A.
    """
    home, rng = root / prefix, np.random.default_rng(seed)
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
        if keys:
            (home / folder / "README.txt").write_text("not a class")
            (home / folder / ".hidden").mkdir()
    lines = [f"{wnid} {name}" for wnid, name in zip(wnids, names, strict=True)]
    (home / "imagenet" / "classnames.txt").write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")
    return ImageNetTree(root, wnids, names, sets["imagenet-adversarial/imagenet-a"][0], wnids[classes // 2 :])


@pytest.fixture
def imagenet_tree(tmp_path):
    """Return a function that writes a tiny tree of ImageNet and its shifted sets into this test's folder."""
    return partial(write_imagenet_tree, tmp_path)


# Of each data set: its folder, the image folder in it, the path of image number n of a class, and its classes: what the
# publisher calls them, and what CoOp's split file does. Cars' images lie in two folders, by part.
FINE_GRAINED = {
    "Caltech101": (
        "caltech-101",
        "101_ObjectCategories",
        "{key}/image_{n:04d}.jpg",
        {"Faces": "face", "accordion": "accordion", "airplanes": "airplane", "wild_cat": "wild_cat"},
    ),
    "OxfordPets": (
        "oxford_pets",
        "images",
        "{key}_{n}.jpg",
        {"Abyssinian": "abyssinian", "American_Bulldog": "american_bulldog", "beagle": "beagle", "pug": "pug"},
    ),
    "StanfordCars": (
        "stanford_cars",
        "",
        "{cars}/{n:05d}.jpg",
        {name: f"{name[-4:]} {name[:-5]}" for name in ("Acura RL 2012", "Audi S4 2007", "Ram C/V 2012", "BMW 2010")},
    ),
    "OxfordFlowers": (
        "oxford_flowers",
        "jpg",
        "image_{n:05d}.jpg",
        {"1": "pink primrose", "2": "hard-leaved pocket orchid", "3": "canterbury bells", "4": "bird's-foot trefoil"},
    ),
    "Food101": ("food-101", "images", "{key}/{n}.jpg", {k: k for k in ("apple_pie", "bibimbap", "pho", "waffles")}),
    "FGVCAircraft": (
        "fgvc_aircraft",
        "images",
        "{n:07d}.jpg",
        {name: name for name in ("707-320", "A340-200", "F/A-18", "Yak-42")},
    ),
    "SUN397": (
        "sun397",
        "SUN397",
        "{key}/sun_{n:08d}.jpg",
        {
            "a/abbey": "abbey",
            "a/apse/indoor": "indoor apse",
            "b/bow_window/indoor": "indoor bow_window",
            "y/yard": "yard",
        },
    ),
    "DescribableTextures": (
        "dtd",
        "images",
        "{key}/{key}_{n:04d}.jpg",
        {key: key for key in ("banded", "blotchy", "polka-dotted", "zigzagged")},
    ),
    "EuroSAT": (
        "eurosat",
        "2750",
        "{key}/{key}_{n}.jpg",
        {"AnnualCrop": "Annual Crop Land", "Forest": "Forest", "Highway": "Highway or Road", "SeaLake": "Sea or Lake"},
    ),
    "UCF101": (
        "ucf101",
        "UCF-101-midframes",
        "{name}/v_{key}_g{n:02d}_c01.jpg",
        {"ApplyEyeMakeup": "Apply_Eye_Makeup", "Archery": "Archery", "TaiChi": "Tai_Chi", "YoYo": "Yo_Yo"},
    ),
}


@dataclass(frozen=True)
class FineGrainedTree:
    """A tiny fine-grained data set on disk.

    Attributes:
        root: what DATASET.ROOT names.
        home: the data set's own folder.
        images: its image folder.
        keys: what the publisher calls the classes, in label order.
        names: what CoOp's split file calls them.
        parts: paths below `images` with their labels, by part, in the order of the publisher's lists.
        split: the path of CoOp's split file, whether or not it is there.
    """

    root: Path
    home: Path
    images: Path
    keys: list[str]
    names: list[str]
    parts: dict[str, list[tuple[str, int]]]
    split: Path


def write_fine_grained_tree(
    root: Path,
    dataset: str,
    classes: int = 4,
    train: int = 5,
    val: int = 2,
    test: int = 3,
    *,
    prefix: str = "",
    split: bool = True,
    raw: bool = True,
    size: tuple[int, int] = (40, 32),
    seed: int = 0,
) -> FineGrainedTree:
    """Write a tiny fine-grained data set in the layout of CoOp's DATASETS.md.

    The lists mix the classes, and the last class comes first in them.

    Args:
        root: where to; `prefix` is a folder below it.
        dataset: name of the data set, a key of FINE_GRAINED.
        classes: number of classes, at most 4.
        train, val, test: images a class.
        prefix: DATASET.PREFIX.
        split: write CoOp's split file (FGVCAircraft has none).
        raw: write the publisher's annotation files, of which the split can be made.
        size: width and height of the images.
        seed: of their content.
    """
    folder, images, pattern, names = FINE_GRAINED[dataset]
    keys, home, number = list(names)[:classes], root / prefix / folder, itertools.count(1)
    counts, parts = {"train": train, "val": val, "test": test}, {}
    for part, many in counts.items():
        where = {"cars": "cars_test" if part == "test" else "cars_train"}
        parts[part] = [
            (pattern.format(key=keys[label], name=names[keys[label]], n=next(number), **where), label)
            for _ in range(many)
            for label in reversed(range(classes))
        ]
    shown = [names[key] for key in keys]
    tree = FineGrainedTree(root, home, home / images, keys, shown, parts, home / f"split_zhou_{dataset}.json")
    rng = np.random.default_rng(seed)
    extra = ["BACKGROUND_Google/image_0001.jpg", "Faces_easy/image_0001.jpg"] if dataset == "Caltech101" else []
    for path in [*(path for items in parts.values() for path, _ in items), *extra]:
        (tree.images / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(tree.images / path)
    if split and dataset != "FGVCAircraft":
        entries = {part: [[path, label, shown[label]] for path, label in items] for part, items in parts.items()}
        tree.split.write_text(json.dumps(entries))
    for path, content in _annotations(dataset, tree).items() if raw else ():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(content)
    return tree


def _annotations(dataset: str, tree: FineGrainedTree) -> dict[str, bytes]:
    """Return the publisher's annotation files; a data set of class folders has none."""
    trainval, test, keys = tree.parts["train"] + tree.parts["val"], tree.parts["test"], tree.keys

    def text(line: str, items, end: str = "\n") -> bytes:
        fields = ({"path": p, "stem": Path(p).stem, "name": Path(p).name, "key": keys[y], "y": y + 1} for p, y in items)
        return "".join(line.format(**one) + end for one in fields).encode()

    every = [("", label) for label in range(len(keys))]
    if dataset == "OxfordPets":
        return {f"annotations/{n}.txt": text("{stem} {y} 1 1", i) for n, i in (("trainval", trainval), ("test", test))}
    if dataset == "SUN397":
        lists = {"ClassName.txt": text("/{key}", every), "Training_01.txt": text("/{path}", trainval, "\r\n")}
        return lists | {"Testing_01.txt": text("/{path}", test)}
    if dataset == "UCF101":
        lists = {"classInd.txt": text("{y} {key}", every), "trainlist01.txt": text("{key}/{stem}.avi {y}", trainval)}
        lists |= {"testlist01.txt": text("{key}/{stem}.avi", test, "\r\n")}
        return {f"ucfTrainTestlist/{name}": content for name, content in lists.items()}
    if dataset == "FGVCAircraft":
        lists = {f"images_variant_{part}.txt": text("{stem} {key}", items) for part, items in tree.parts.items()}
        return {"variants.txt": text("{key}", every)} | lists
    if dataset == "OxfordFlowers":
        labels = {int(Path(path).stem[6:]): label + 1 for path, label in trainval + test}
        labels = np.array([[labels[number] for number in sorted(labels)]], dtype=np.uint8)
        names = dict(zip(keys, tree.names, strict=True))
        return {"imagelabels.mat": _mat(labels=labels), "cat_to_name.json": json.dumps(names).encode()}
    if dataset == "StanfordCars":
        fields = [("class", "O"), ("fname", "O")]
        train, test = (
            _mat(annotations=np.array([(y + 1, Path(p).name) for p, y in i], fields)) for i in (trainval, test)
        )
        names = {"devkit/cars_meta.mat": _mat(class_names=np.array([keys], dtype="O"))}
        return names | {"devkit/cars_train_annos.mat": train, "cars_test_annos_withlabels.mat": test}
    return {}


def _mat(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


@pytest.fixture
def fine_grained_tree(tmp_path):
    """Return a function that writes a tiny fine-grained data set into this test's folder."""
    return partial(write_fine_grained_tree, tmp_path)


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


class ReferenceCLIP:
    """CLIP by its published formulas, from a state dict in OpenAI's keys, in float64; both towers have one head.

    Args:
        state: the weights.
    """

    def __init__(self, state: dict[str, torch.Tensor]):
        self.state = {k: v.double() for k, v in state.items()}
        self.layers = sum(key.startswith("transformer.resblocks.") and key.endswith("ln_1.weight") for key in state)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * self.state[name + ".weight"] + self.state[name + ".bias"]

    def linear(self, x: torch.Tensor, weight: str, bias: str) -> torch.Tensor:
        return x @ self.state[weight].T + self.state[bias]

    def block(self, x: torch.Tensor, name: str, causal: bool) -> torch.Tensor:
        q, k, v = self.linear(
            self.norm(x, name + "ln_1"), name + "attn.in_proj_weight", name + "attn.in_proj_bias"
        ).chunk(3, dim=-1)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -math.inf)
        x = x + self.linear(scores.softmax(-1) @ v, name + "attn.out_proj.weight", name + "attn.out_proj.bias")
        hidden = self.linear(self.norm(x, name + "ln_2"), name + "mlp.c_fc.weight", name + "mlp.c_fc.bias")
        hidden = hidden / (1 + torch.exp(-1.702 * hidden))  # QuickGELU
        return x + self.linear(hidden, name + "mlp.c_proj.weight", name + "mlp.c_proj.bias")

    def text(self, prompts, eot, deep=()):
        """Return (N, D) features of (N, L, W) prompts; `deep[i]` replaces the tokens 1 ... M before layer i + 1."""
        x = prompts + self.state["positional_embedding"]
        for layer in range(self.layers):
            if 1 <= layer <= len(deep):
                m = len(deep[layer - 1])
                x = torch.stack([torch.cat([row[:1], deep[layer - 1], row[1 + m :]]) for row in x])
            x = self.block(x, f"transformer.resblocks.{layer}.", causal=True)
        return self.norm(x, "ln_final")[torch.arange(len(x)), eot] @ self.state["text_projection"]

    def image(self, images, prompts, pool="tok"):
        """Return (B, D) features of (B, 3, H, W) images; `prompts[i]` stand behind the patches in layer i."""
        size = self.state["visual.conv1.weight"].shape[-1]
        patches = images.double().unfold(2, size, size).unfold(3, size, size)  # (B, 3, rows, columns, size, size)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        tokens = patches @ self.state["visual.conv1.weight"].flatten(1).T
        first = self.state["visual.class_embedding"].expand(len(images), 1, -1)
        x = torch.cat([first, tokens], dim=1) + self.state["visual.positional_embedding"]
        n = x.shape[1]
        for layer in range(self.layers):
            if layer < len(prompts):
                x = torch.stack([torch.cat([row[:n], prompts[layer]]) for row in x])
            if layer == 0:
                x = self.norm(x, "visual.ln_pre")
            x = self.block(x, f"visual.transformer.resblocks.{layer}.", causal=False)
        x = self.norm(x, "visual.ln_post")
        return (x[:, 0] if pool == "tok" else x[:, 1:n].mean(dim=1)) @ self.state["visual.proj"]


@pytest.fixture(scope="session")
def reference_clip() -> type[ReferenceCLIP]:
    """The class that computes a CLIP, with prompts in both towers, from the published formulas in float64."""
    return ReferenceCLIP


# The published config of each method, and what it needs on tiny CLIPs of two layers and on a dozen images.
CONFIGS = {
    "LinearProbe": ("vit_b16_ep20", ("OPTIM.WARMUP_STEPS", "2")),
    "VPT": ("vit_b16_ep20_depth3", ("OPTIM.WARMUP_STEPS", "2", "TRAINER.VPT.PROMPT_DEPTH_VISION", "2")),
    "CoOp": ("vit_b16_ep50_ctxv1", ()),
    "PromptSRC": (
        "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets",
        ("TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", "2", "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", "2"),
    ),
    "TipAdapter": ("vit_b16", ()),
    "TipAdapterF": ("vit_b16", ()),
    "ZeroshotCLIP": ("vit_b16", ()),
    "ZeroshotCLIP2": ("vit_l14_336", ()),
}
NODES = {"LinearProbe": "LINEARPROBE", "VPT": "VPT", "CoOp": "COOP", "PromptSRC": "PROMPTSRC"}
NODES |= {"TipAdapter": "TIPADAPTER", "TipAdapterF": "TIPADAPTER"}


def command_line(
    tree: ImageNetTree,
    weights: tuple[str, str],
    out: Path,
    trainer: str,
    *options: str,
    dataset: str = "imagenet",
    flags: tuple[str, ...] = (),
) -> list[str]:
    """Return the command line of a small run of a trainer's published config; an unknown trainer gets CoOp's."""
    root, twin = Path(__file__).parent.parent / "configs", trainer.removesuffix("_DHO")
    distill = trainer.startswith("Distill_")  # all of them share their configs
    twin = "Distill" if distill else twin
    folder = twin if distill else trainer if twin in CONFIGS else "CoOp"
    name, needed = CONFIGS[folder.removesuffix("_DHO")]
    student, teacher = weights
    student = "" if distill else student
    return [
        *("--root", str(tree.root), "--trainer", trainer, "--output-dir", str(out), "--seed", "1"),
        *("--dataset-config-file", str(root / f"datasets/{dataset}.yaml")),
        *("--config-file", str(root / f"trainers/{folder}/{name}.yaml"), *flags),
        *("MODEL.BACKBONE.CKPT", teacher if trainer == "ZeroshotCLIP2" else student),
        *("TRAINER.DHO.TEACHER.NAME", "ViT-L/14@336px") * distill,
        *("TRAINER.DHO.TEACHER.CKPT", teacher, f"TRAINER.{NODES.get(twin, 'COOP')}.PREC", "fp32", *needed),
        *("DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "3", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"),
        *("DATALOADER.NUM_WORKERS", "0", *options),
    ]


CONFIGS["Distill"] = "resnet18_scratch_ep20", ("MODEL.BACKBONE.NAME", "test_resnet", "MODEL.BACKBONE.SIZE", "32")
NODES["Distill"] = "DISTILL"


@pytest.fixture
def command(imagenet_tree, tiny_weights, tmp_path):
    """Return a function that writes the command line of a small run on a tiny tree of this test's own."""
    tree = imagenet_tree(classes=4, train=6, test=2)
    return lambda trainer, out, *options, **more: command_line(
        tree, tiny_weights, tmp_path / out, trainer, *options, **more
    )


@pytest.fixture(scope="session")
def shared_command(tiny_weights, tmp_path_factory):
    """Return the same on one tree for all tests, which nobody may change; runs go into a folder of the session's."""
    trees, home = {}, tmp_path_factory.mktemp("shared")

    def build(trainer: str, out: str | Path, *options: str, classes: int = 4, **more) -> list[str]:
        if classes not in trees:
            trees[classes] = write_imagenet_tree(home / f"data{classes}", classes=classes, train=6, test=2)
        return command_line(trees[classes], tiny_weights, home / out, trainer, *options, **more)

    return build


@pytest.fixture(scope="session")
def finished_run(shared_command):
    """Return a function that gives the folders of a trainer's run of one epoch and of its test images; made once."""

    @cache
    def run(trainer: str, *options: str) -> tuple[Path, Path]:
        quick = ("OPTIM.MAX_EPOCH", "1", "OPTIM.WARMUP_STEPS", "0", "OPTIM.LR", "0.01", "TEST.SHIFTED", "()")
        flags = ("--eval-only",) if trainer.startswith("Zeroshot") else ()
        line = shared_command(trainer, f"finished_{trainer}{len(options)}", *quick, *options, flags=flags)
        assert main(line) == 0
        root = Path(line[line.index("--root") + 1])
        return Path(line[line.index("--output-dir") + 1]), root / "imagenet/images/val"

    return run


@pytest.fixture
def started():
    """Return a function that builds a command line's trainer and brings it to its first step."""

    def build(line: list[str]):
        cfg = setup_cfg(build_parser().parse_args(line))
        check_names(cfg)
        trainer = build_trainer(cfg)
        trainer.before_train()
        trainer.before_epoch()
        return trainer

    return build


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own; return the folder of its feature stores."""
    monkeypatch.setenv("DHO_CACHE", str(tmp_path / "own_cache"))
    return tmp_path / "own_cache" / "features"


@pytest.fixture(scope="session")
def write_run():
    """Return the benchmark's function that writes a finished run's folder with stored logits, curves and gradients."""
    path = Path(__file__).parent.parent / "benchmarks" / "report.py"
    spec = importlib.util.spec_from_file_location("benchmarks_report_runs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_run
