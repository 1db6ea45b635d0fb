"""The hosts' YAML files load as they are, and ours of the same name mean the same."""

from pathlib import Path

import pytest
import yaml

from dho_plugin.engine.config import flatten, get_cfg_default, merge_file, without_effect

CONFIGS = Path(__file__).parent.parent / "configs" / "trainers"
# What the hosts' files say of images; here it comes with the weights.
PIXELS = {
    "INPUT.INTERPOLATION": "bicubic",
    "INPUT.PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073],
    "INPUT.PIXEL_STD": [0.26862954, 0.26130258, 0.27577711],
}
COMMON = {
    "DATALOADER.TEST.BATCH_SIZE": 100,
    "DATALOADER.NUM_WORKERS": 8,
    "INPUT.TRANSFORMS": ["random_resized_crop", "random_flip", "normalize"],
    "OPTIM.NAME": "sgd",
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_TYPE": "constant",
    "OPTIM.WARMUP_CONS_LR": 1e-5,
    "MODEL.BACKBONE.NAME": "ViT-B/16",
}
COOP = {**COMMON, "DATALOADER.TRAIN_X.BATCH_SIZE": 32, "OPTIM.LR": 0.002, "OPTIM.MAX_EPOCH": 50, "TRAIN.PRINT_FREQ": 5}
PROMPTSRC = {**COMMON, "DATALOADER.TRAIN_X.BATCH_SIZE": 4, "OPTIM.LR": 0.0025, "TRAIN.PRINT_FREQ": 20}


def promptsrc(epochs: int, depth: int, mean: int, std: int) -> dict:
    node = {
        "N_CTX_VISION": 4,
        "N_CTX_TEXT": 4,
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "PROMPT_DEPTH_VISION": depth,
        "PROMPT_DEPTH_TEXT": depth,
        "TEXT_LOSS_WEIGHT": 25,
        "IMAGE_LOSS_WEIGHT": 10,
        "GPA_MEAN": mean,
        "GPA_STD": std,
    }
    return {
        **PROMPTSRC,
        "OPTIM.MAX_EPOCH": epochs,
        **{f"TRAINER.PROMPTSRC.{key}": value for key, value in node.items()},
    }


PUBLISHED = {
    "CoOp/vit_b16_ep50": COOP,
    "CoOp/vit_b16_ep50_ctxv1": {**COOP, "TRAINER.COOP.CTX_INIT": "a photo of a"},
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx": promptsrc(20, 9, 15, 1),
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets": promptsrc(20, 3, 6, 10),
    "PromptSRC/vit_b16_c2_ep50_batch4_4+4ctx_few_shot": promptsrc(50, 9, 30, 30),
}
# Dassl's and the hosts' own defaults, on which these files build.
DEFAULTS = {
    "OPTIM.WEIGHT_DECAY": 5e-4,
    "OPTIM.MOMENTUM": 0.9,
    "OPTIM.SGD_NESTEROV": False,
    "OPTIM.WARMUP_RECOUNT": True,
    "INPUT.RRCROP_SCALE": (0.08, 1.0),
    "TRAIN.COUNT_ITER": "train_x",
    "TEST.FINAL_MODEL": "last_step",
    "TRAINER.COOP.N_CTX": 16,
    "TRAINER.COOP.CSC": False,
    "TRAINER.COOP.PREC": "fp16",
    "TRAINER.COOP.CLASS_TOKEN_POSITION": "end",
}


def nested(flat: dict) -> dict:
    tree: dict = {}
    for key, value in flat.items():
        *nodes, name = key.split(".")
        inner = tree
        for node in nodes:
            inner = inner.setdefault(node, {})
        inner[name] = value
    return tree


def merged(path: Path) -> dict:
    cfg = get_cfg_default()
    merge_file(cfg, path)
    return dict(flatten(cfg))


def different(a: dict, b: dict) -> set[str]:
    assert a.keys() == b.keys()
    return {key for key in a if a[key] != b[key]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_hosts_file_loads_and_ours_means_the_same(tmp_path, name):
    host = tmp_path / "host.yaml"
    host.write_text(yaml.safe_dump(nested({"INPUT.SIZE": "(224, 224)", **PIXELS, **PUBLISHED[name]})))
    theirs, ours = merged(host), merged(CONFIGS / f"{name}.yaml")
    assert different(theirs, ours) == set(PIXELS)
    assert theirs["INPUT.SIZE"] == (224, 224)
    for key, value in {**DEFAULTS, **PUBLISHED[name]}.items():
        assert ours[key] == (tuple(value) if isinstance(value, list) else value), key


def test_what_the_hosts_say_of_pixels_is_named_as_without_effect(tmp_path):
    host = tmp_path / "host.yaml"
    host.write_text(yaml.safe_dump(nested({"INPUT.SIZE": "(336, 336)", **PIXELS})))
    cfg = get_cfg_default()
    merge_file(cfg, host)
    assert {line.split(" = ")[0] for line in without_effect(cfg)} == {"INPUT.SIZE", *PIXELS}


TWINS = sorted(path.relative_to(CONFIGS) for path in CONFIGS.glob("*_DHO/*.yaml"))


@pytest.mark.parametrize("twin", TWINS, ids=str)
def test_a_twin_changes_nothing_but_the_crop_and_the_keys_of_dho(twin):
    """Table 11 crops 50 to 100 % of the image for every method."""
    base = CONFIGS / twin.parent.name.removesuffix("_DHO") / twin.name
    changed = different(merged(CONFIGS / twin), merged(base))
    assert {key for key in changed if not key.startswith("TRAINER.DHO.")} <= {"INPUT.RRCROP_SCALE"}
    node = get_cfg_default().TRAINER.DHO
    ours = merged(CONFIGS / twin)
    assert (ours["TRAINER.DHO.LAMBDA"], ours["TRAINER.DHO.ETA"]) == (0.5, 2.0) == (node.LAMBDA, node.ETA)
    if twin.name.startswith("vit"):
        assert tuple(ours["INPUT.RRCROP_SCALE"]) == (0.5, 1.0)
        assert ours["TRAINER.DHO.TEACHER.NAME"] == "ViT-L/14@336px"
    else:
        assert ours["TRAINER.DHO.TEACHER.NAME"] == "mini-teacher"


def test_every_method_has_the_same_files_with_and_without_dho():
    for folder in CONFIGS.iterdir():
        if folder.name.endswith("_DHO"):
            names = {path.name for path in folder.iterdir()}
            assert names <= {path.name for path in (CONFIGS / folder.name.removesuffix("_DHO")).iterdir()}


# Table 6 of DHO: epochs, learning rate, weight decay, labeled batch, warm-up steps, student, teacher.
TABLE_6 = {
    "resnet18_scratch_ep20": (20, 1e-3, 1e-2, 256, 0, "resnet18", "RN50"),
    "dino_resnet50_ep20": (20, 1e-3, 1e-2, 256, 0, "dino_resnet50", "RN50"),
    "resnet18_ep200": (200, 1e-3, 1e-2, 64, 0, "resnet18.tv_in1k", "RN50"),
    "mobilenetv2_ep200": (200, 1e-3, 1e-2, 64, 0, "mobilenetv2_100", "RN50"),
    "vit_b16_from_l14_ep32": (32, 5e-5, 5e-2, 256, 5000, "ViT-B/16", "ViT-L/14@336px"),
    "vit_b16_ep32": (32, 5e-5, 5e-2, 256, 5000, "ViT-B/16", "ViT-H-14-378-quickgelu"),
    "vit_l14_336_ep32": (32, 5e-5, 5e-2, 256, 5000, "ViT-L/14@336px", "ViT-H-14-378-quickgelu"),
}


@pytest.mark.parametrize("name", TABLE_6)
def test_the_settings_of_distillation_are_table_6s(name):
    cfg = merged(CONFIGS / f"Distill/{name}.yaml")
    optim = ("OPTIM.MAX_EPOCH", "OPTIM.LR", "OPTIM.WEIGHT_DECAY", "DATALOADER.TRAIN_X.BATCH_SIZE", "OPTIM.WARMUP_STEPS")
    models = ("MODEL.BACKBONE.NAME", "TRAINER.DHO.TEACHER.NAME")
    assert tuple(cfg[key] for key in (*optim, *models)) == TABLE_6[name]
    assert (cfg["OPTIM.NAME"], cfg["OPTIM.LR_SCHEDULER"], cfg["OPTIM.WARMUP_EPOCH"]) == ("adamw", "cosine", -1)
    assert (cfg["OPTIM.ADAM_BETA1"], cfg["OPTIM.ADAM_BETA2"]) == (0.9, 0.999)
    assert (cfg["TRAINER.DHO.LAMBDA"], cfg["TRAINER.DHO.ETA"]) == (0.5, 2.0)
    assert tuple(cfg["INPUT.RRCROP_SCALE"]) == (0.5, 1.0)
    assert cfg["INPUT.TRANSFORMS"] == ("random_resized_crop", "random_flip", "normalize")
    assert cfg["TRAIN.COUNT_ITER"] == "train_u"  # an epoch is all training images
    alpha_beta = {"resnet18_scratch_ep20": (0.4, 0.5), "dino_resnet50_ep20": (0.4, 0.5)}
    if "ep200" not in name:  # there they are chosen on validation images
        assert (cfg["TRAINER.DHO.ALPHA"], cfg["TRAINER.DHO.BETA"]) == alpha_beta.get(name, (0.5, 0.5))
    assert cfg["TRAINER.DISTILL.PREC"] == "amp"
    assert cfg["TRAINER.DHO.TEACHER.TAG"] == ("dfn5b" if "ViT-H" in cfg["TRAINER.DHO.TEACHER.NAME"] else "")
    assert cfg["DATALOADER.TRAIN_U.SAME_AS_X"]  # as many unlabeled images as labeled ones
    assert cfg["TRAIN.ACCUMULATION"] == (4 if name == "vit_l14_336_ep32" else 1)
    heads = ("TRAINER.DHO.KD_HEAD", "TRAINER.DHO.INIT", "TRAINER.DISTILL.INIT")
    expected = ("cosine", "language", "language") if name.startswith("vit") else ("linear", "kaiming", "kaiming")
    assert tuple(cfg[key] for key in heads) == expected
