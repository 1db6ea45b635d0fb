"""What the hosts' pages say is true: every patch is named, and their commands run, in the small host."""

import re
import shlex
from pathlib import Path

import dho_plugin.trainers  # noqa: F401 (fills the registry)
import pytest
import yaml

from dho_plugin.engine.registry import DATASET_REGISTRY, TRAINER_REGISTRY
from dho_plugin.hosts.launch import build_parser
from dho_plugin.hosts.patches import PATCHES

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = sorted((DOCS / "hosts").glob("*.md"))
TRIALS = (DOCS.parent / "scripts/try_hosts.sh").read_text(encoding="utf-8")


def commands(page, root):
    """Return what stands behind train.py in a page's commands, for data in `root`."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line.split("dho-host ")[1].replace("$DATA", root)) for line in lines if "dho-host " in line]
    parsed = [build_parser().parse_args(line) for line in words]
    assert all((args.script, args.dassl) == ("train.py", "../Dassl.pytorch") for args in parsed)
    return [args.args for args in parsed]


def test_every_patch_is_named():
    page = (DOCS / "HOSTS.md").read_text(encoding="utf-8")
    table = page[page.index("## What `dho-host` mends") :]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == [patch.name for patch in PATCHES]


@pytest.fixture
def configs(small_host, tiny_weights, monkeypatch, tmp_path):
    """Return a function that writes the config files that a command names, small; the working folder is the host's."""
    from dassl.engine import TRAINER_REGISTRY as HOSTS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(HOSTS._obj_map, "MaPLe", small_host.trainers.Prompted)
    monkeypatch.setattr(DATASET_REGISTRY, "_entries", dict(DATASET_REGISTRY._entries))
    method = {
        "DATALOADER": {"TRAIN_X": {"BATCH_SIZE": 8}},
        "OPTIM": {"MAX_EPOCH": 1},
        "MODEL": {"BACKBONE": {"NAME": "ViT-B/16", "CKPT": tiny_weights[0]}},
        "TRAINER": {
            "COOP": {"N_CTX": 2, "PREC": "fp32"},
            "PROMPTSRC": {"PROMPT_DEPTH_VISION": 1, "PROMPT_DEPTH_TEXT": 1, "PREC": "fp32"},
            "DHO": {"TEACHER": {"CKPT": tiny_weights[1]}},
        },
    }

    def write(args):
        names = {"imagenet": "ImageNet", "imagenet_r": "ImageNetR"}
        dataset = {"DATASET": {"NAME": names[Path(args.dataset_config_file).stem]}}
        for path, content in ((args.dataset_config_file, dataset), (args.config_file, method)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(yaml.safe_dump(content))

    return write


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_train_and_evaluate(page, configs, small_host, host_root, tmp_path):
    parser = small_host.train.build_parser()
    train, evaluate = (parser.parse_args(words) for words in commands(page, str(host_root)))
    assert (train.eval_only, evaluate.eval_only) == (False, True)
    assert evaluate.model_dir == train.output_dir != evaluate.output_dir
    assert f"ep{evaluate.load_epoch}_" in f"{Path(train.config_file).stem}_"
    assert train.opts == ["DATASET.NUM_SHOTS", "16"]
    configs(train)
    trained = small_host.train.main(train)
    assert type(trained).__name__.endswith("_DHO")
    configs(evaluate)
    evaluate.load_epoch = 1
    tested = small_host.train.main(evaluate)
    images = tested.dm.dataset.test if hasattr(tested, "dm") else tested.dataset.test
    assert [item.impath.split("/")[-3] for item in images] == ["imagenet-r"] * 4
    assert (tmp_path / train.output_dir / "kd_head/model.pth.tar-1").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_was_run_is_what_the_script_runs(page):
    table = page.read_text(encoding="utf-8").split("## What was run")[1]
    rows = re.findall(r"^\| `(\w+)` \| (ours|the host)", table, re.MULTILINE)
    assert len(rows) >= 2
    for trainer, kind in rows:
        assert f'"{trainer} ' in TRIALS
        assert (kind == "ours") == (trainer in TRAINER_REGISTRY.registered_names()), trainer
