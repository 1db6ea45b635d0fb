"""The benchmarks' command lines, what their README says of them, and how they count."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parent.parent / "benchmarks"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if "__main__" in p.read_text(encoding="utf-8"))
COMMANDS = re.findall(r"`python benchmarks/(\w+)\.py([^`]*)`", README)


@pytest.fixture(scope="module")
def benchmark():
    """Return a function that imports a file of benchmarks/ as it imports its siblings."""

    def load(name: str):
        title = f"benchmarks_{name}"
        if title not in sys.modules:
            spec = importlib.util.spec_from_file_location(title, FOLDER / f"{name}.py")
            sys.modules[title] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[title])
        return sys.modules[title]

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        known = set(sys.modules)
        yield load
        for name in set(sys.modules) - known:
            if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@pytest.fixture(scope="module")
def tiny(benchmark):
    """A tiny student and a tiny teacher by their sizes."""
    encoder = benchmark("common").Encoder
    return encoder(64, 2, 16, 32, 32, 64, 2), encoder(64, 3, 16, 48, 48, 64, 2)


@pytest.fixture(scope="module")
def steps(benchmark, tiny, tmp_path_factory):
    """Return a function that counts a trainer's steps with tiny CLIPs, 6 classes and 8 labeled images."""
    root, done = tmp_path_factory.mktemp("images"), {}
    benchmark("common").write_images(root, 6, 2)
    counting = sys.modules["counting"] if "counting" in sys.modules else benchmark("counting")

    def count(trainer: str, config: str):
        if trainer not in done:
            with counting.without_weights(*tiny):
                done[trainer] = counting.counted(root, trainer, config, "DATALOADER.TRAIN_X.BATCH_SIZE", "8")
        return {way: found["flops"] for way, found in done[trainer].items()}

    return count


def encoder_flops(encoder) -> int:
    """Two for each multiplication: the patches' projection, all layers, the projection of the class token."""
    n, w = (encoder.size // encoder.patch) ** 2 + 1, encoder.width
    layer = n * (4 + 4 + 4) * w * w + 2 * n * n * w  # q, k, v, out; the MLP's two; scores and their sums
    return 2 * ((n - 1) * 3 * encoder.patch**2 * w + encoder.layers * layer + w * encoder.dim)


# Command lines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_help_json_and_a_command_in_the_readme(benchmark, name):
    text = benchmark(name).build_parser().format_help()
    assert "--json" in text
    assert name in {command for command, _ in COMMANDS}


@pytest.mark.parametrize(("name", "words"), COMMANDS)
def test_the_readme_s_commands_are_understood(benchmark, name, words):
    benchmark(name).build_parser().parse_args(shlex.split(words))


# Counting ---------------------------------------------------------------------------------------------------------


def test_a_linear_layer_is_counted_as_by_hand(benchmark):
    layer, x = nn.Linear(5, 7, device="meta"), torch.randn(3, 5, device="meta")
    flops = benchmark("common").flops
    assert flops(lambda: layer(x)) == 2 * 3 * 5 * 7
    assert flops(lambda: layer(x).sum().backward()) == 2 * 2 * 3 * 5 * 7  # no gradient of x


def test_what_a_forward_keeps_is_counted_once_and_without_the_weights(benchmark):
    layer, x = nn.Linear(5, 7), torch.randn(3, 5)
    kept = benchmark("common").saved_bytes(lambda: (layer(x).exp() + layer(x)).sum(), layer)
    assert kept == 4 * (3 * 5 + 3 * 7)  # x, though both calls keep it, and the exponential


def test_runs_take_turns(benchmark):
    order = []
    taken = benchmark("common").seconds([lambda: order.append("a"), lambda: order.append("b")], "cpu", 3)
    assert order == ["a", "b"] * 3
    assert len(taken) == 2


def test_a_linear_probe_s_step_is_counted_as_by_hand(steps, tiny):
    student, teacher = tiny
    head, base, dho = 2 * 8 * 32 * 6, steps("LinearProbe", "vit_b16_ep20"), steps("LinearProbe_DHO", "vit_b16_ep20")
    assert base["student cached"] == 2 * head  # forward and the weights' gradient
    assert base["plain"] == 8 * encoder_flops(student) + 2 * head
    both = 3 * 2 * head + 2 * 16 * 48 * 6  # h_CE on 8, h_KD on 16, and the teacher's classifier
    assert dho["teacher and student cached"] == both
    assert dho["plain"] == 16 * (encoder_flops(student) + encoder_flops(teacher)) + both
    assert dho["plain"] - dho["default"] >= 0
    assert dho["teacher cached"] <= 16 * encoder_flops(student) + both


def test_each_way_of_coop_is_cheaper_than_the_one_before(steps):
    found = steps("CoOp_DHO", "vit_b16_ep50_ctxv1")
    assert list(found) == ["plain", "default", "teacher cached", "teacher and student cached"]
    counts = list(found.values())
    assert counts == sorted(set(counts), reverse=True)


def test_the_plain_step_of_coop_runs_77_tokens_of_every_prompt(steps, tiny):
    student, n, w = tiny[0], 77, 64
    found = steps("CoOp_DHO", "vit_b16_ep50_ctxv1")
    layer = n * 12 * w * w + 2 * n * n * w
    forward = 6 * 2 * (student.text_layers * layer) + 6 * 2 * w * student.dim
    text = found["plain"] - steps("LinearProbe_DHO", "vit_b16_ep20")["plain"]
    # Forward and the gradient of what comes in, for which attention computes its scores once more.
    assert 2 * forward <= text <= 2.2 * forward


def test_counting_leaves_nothing_replaced(steps):
    steps("LinearProbe", "vit_b16_ep20")
    from dho_plugin import dho_trainer
    from dho_plugin.models import clip, zeroshot

    assert dho_trainer.load_clip is clip.load_clip
    assert clip.load_clip.__module__ == "dho_plugin.models.clip"
    assert zeroshot.class_features.__module__ == "dho_plugin.models.zeroshot"
    assert torch.autocast.__module__.startswith("torch")


# The cost of Table 13 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "steps"),
    [("LinearProbe", 20 * 5004), ("VPT-3", 20 * 5004), ("CoOp", 50 * 500), ("PromptSRC", 20 * 4000)],
)
def test_the_length_of_a_run_is_that_of_its_config(benchmark, method, steps):
    cost = benchmark("table13_cost")
    row = cost.METHODS[method]
    for trainer in (row.trainer, f"{row.trainer}_DHO"):
        assert cost.Lengths(cost.published(trainer, row.config), row.labeled).total_steps() == steps


def test_the_test_sets_are_those_of_the_paper(benchmark):
    assert benchmark("table13_cost").test_images() == 50_000 + 10_000 + 50_889 + 30_000 + 7_500


def test_hours_are_the_longer_of_reading_and_computing(benchmark):
    hours, tests = benchmark("table13_cost").hours, 148_389
    rates = {"view 224": 100.0, "views 224 + 336": 50.0, "evaluation 224": 200.0}
    work = {"steps": 3600, "images": 10, "teacher": True, "cached": ["teacher", "student"]}
    work |= {"plain": {"step": 3e9, "test_image": 1e6}, "ours": {"step": 1e6, "test_image": 1e6}}
    both = {"plain": rates, "ours": rates}
    assert hours(work, "plain", 1e9, both, 0.0) == pytest.approx(3 + tests / 200 / 3600)  # computing
    assert hours(work, "plain", 1e12, both, 0.0) == pytest.approx(10 / 50 + tests / 200 / 3600)  # reading both views
    assert hours(work, "ours", 1e9, both, 0.0) == pytest.approx(0.001)  # nothing is read, the tests neither
    assert hours(work, "ours", 1e9, both, 0.25) == pytest.approx(0.25)  # the shortest step
    images = {**work, "cached": ["teacher"]}
    assert hours(images, "ours", 1e12, both, 0.0) == pytest.approx(10 / 100 + tests / 200 / 3600)


# The second head --------------------------------------------------------------------------------------------------


def test_a_second_head_is_counted_as_by_hand(benchmark):
    heads = benchmark("heads")
    one, two = heads.counted(heads.MODELS["ResNet-18"], 1000)
    assert one["params"] == pytest.approx(11.689512)  # torchvision's own number
    assert two["params"] - one["params"] == pytest.approx(513 * 1000 / 1e6)
    assert two["macs"] - one["macs"] == pytest.approx(512 * 1000 / 1e9)


# The plain input pipeline -----------------------------------------------------------------------------------------


def test_the_plain_loader_opens_an_image_for_each_model(benchmark, tmp_path, monkeypatch):
    pipeline, common = benchmark("input_pipeline"), benchmark("common")
    common.write_images(tmp_path, 2, 1)
    from dho_plugin.engine.data import Datum
    from dho_plugin.engine.views import Preprocess

    paths = sorted((tmp_path / "imagenet/images/train").rglob("*.JPEG"))
    sizes = {"img": Preprocess(32, (0.0,) * 3, (1.0,) * 3), "img_teacher": Preprocess(48, (0.0,) * 3, (1.0,) * 3)}
    data = pipeline.PlainImages([Datum(str(path), label, index=label) for label, path in enumerate(paths)], sizes)
    opened, plain = [], pipeline.Image.open
    monkeypatch.setattr(pipeline.Image, "open", lambda path: opened.append(path) or plain(path))
    row = data[1]
    assert opened == [str(paths[1])] * 2
    assert row["img"].shape == (3, 32, 32)
    assert row["img_teacher"].shape == (3, 48, 48)
    assert row["label"] == 1
