"""The small host: a toolbox with Dassl's protocol and trainers in the hosts' styles, in this process."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dho_plugin.hosts import twin

SMALL_HOST = Path(__file__).parent / "small_host"
MODULES = ("dassl", "small_datasets", "small_trainers", "dho_plugin.register")


def forget_host():
    for name in [name for name in sys.modules if name.startswith(MODULES)]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def small_host():
    """Import the small host, and the plugin in it."""
    forget_host()
    sys.path.insert(0, str(SMALL_HOST))
    spec = importlib.util.spec_from_file_location("small_train", SMALL_HOST / "train.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    import dho_plugin.register  # noqa: F401

    yield SimpleNamespace(train=train, trainers=sys.modules["small_trainers"], folder=SMALL_HOST)
    sys.path.remove(str(SMALL_HOST))
    forget_host()


@pytest.fixture(scope="session")
def host_root(shared_command):
    """Return the folder of a tiny ImageNet of 4 classes with its shifted sets, which nobody changes."""
    return Path(shared_command("CoOp", "unused")[1])


@pytest.fixture(scope="session")
def host_line(host_root, tiny_weights):
    """Return a function that writes the small host's command line."""

    def line(trainer: str, out: Path, *options: str, flags: tuple[str, ...] = ()) -> list[str]:
        return [
            *("--root", str(host_root), "--output-dir", str(out), "--trainer", trainer, *flags),
            *("DATASET.NAME", "ImageNet", "DATASET.NUM_SHOTS", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"),
            *("MODEL.BACKBONE.NAME", "ViT-B/16", "MODEL.BACKBONE.CKPT", tiny_weights[0]),
            *("TRAINER.DHO.TEACHER.CKPT", tiny_weights[1], *options),
        ]

    return line


@pytest.fixture(scope="session")
def loaded_once():
    """Load the CLIPs of all small runs once."""

    def once(load):
        loaded = {}

        def get(cfg, *more):
            key = (cfg.MODEL.BACKBONE.CKPT, cfg.TRAINER.DHO.TEACHER.TYPE, cfg.TRAINER.DHO.TEACHER.CKPT)
            if key not in loaded:
                loaded[key] = load(cfg, *more)
            return loaded[key]

        return get

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin, "load_teacher", once(twin.load_teacher))
        patch.setattr(twin, "student_clip", once(twin.student_clip))
        yield


@pytest.fixture
def host_run(small_host, host_line, loaded_once, tmp_path):
    """Return a function that runs the small host's train.py in this process and returns its trainer."""

    def run(trainer: str, out: str, *options: str, flags: tuple[str, ...] = ()):
        args = small_host.train.build_parser().parse_args(host_line(trainer, tmp_path / out, *options, flags=flags))
        return small_host.train.main(args)

    return run


@pytest.fixture
def host_trainer(small_host, host_line, loaded_once, tmp_path):
    """Return a function that builds a trainer of the small host, ready for its first step."""
    from dassl.engine import build_trainer

    def build(trainer: str, *options: str):
        args = small_host.train.build_parser().parse_args(host_line(trainer, tmp_path / "out", *options))
        built = build_trainer(small_host.train.setup_cfg(args))
        built.before_train()
        built.set_model_mode("train")
        built.batch_idx, built.num_batches = 0, 2
        return built

    return build
