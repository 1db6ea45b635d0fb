"""Tip-Adapter and Tip-Adapter-F as trainers, and as the few-shot teacher of DHO-F."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from dho_plugin.engine.checkpoint import load_checkpoint
from dho_plugin.engine.evaluator import TestLogits as StoredLogits
from dho_plugin.errors import CheckpointError, ConfigError
from dho_plugin.train import main

SMALL = ("TRAINER.TIPADAPTER.PASSES", "3", "INPUT.VIEWS", "2")


@pytest.fixture(scope="module")
def finished(shared_command, tiny_weights):
    """Return a function that gives the folder of a finished run of a trainer; each run is made once."""

    def run(trainer: str, *options: str):
        weights = ("MODEL.BACKBONE.CKPT", tiny_weights[1]) if trainer.startswith("Tip") else ()
        small = SMALL if trainer.startswith("Tip") else ()
        line = shared_command(trainer, f"tip_{trainer}_{len(options)}", *small, *weights, *options)
        assert main(line) == 0
        return line[line.index("--output-dir") + 1]

    return cache(run)


def results(folder) -> dict:
    with open(f"{folder}/results.json", encoding="utf-8") as file:
        return json.load(file)


def ce_logits(folder, name: str = "val") -> torch.Tensor:
    return StoredLogits.load(f"{folder}/logits/{name}.safetensors").logits_ce.double()


def raw(folder) -> dict:
    return torch.load(f"{folder}/tip_adapter.pt", weights_only=True)


def released_formula(state: dict, features: torch.Tensor) -> torch.Tensor:
    """The teacher's logits as the released training code of DHO computes them, in float64."""
    f = features.double() / features.double().norm(dim=-1, keepdim=True)
    affinity = f @ state["adapter_weight"].double().t()
    cached = (-(state["best_beta"] - state["best_beta"] * affinity)).exp() @ state["cache_values"].double()
    return 100.0 * f @ state["clip_weights"].double() + cached * state["best_alpha"]


# The trainers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["fill", "online"])
def test_the_keys_are_the_mean_features_of_the_first_views(shared_command, started, tmp_path, features):
    trainer = started(shared_command("TipAdapter", tmp_path / "run", *SMALL, "MODEL.FEATURES", features))
    items, adapter = trainer.dataset.train_x, trainer.student.adapter
    dataset = trainer.fill_dataset(trainer.clip(), items)
    for position in (0, 5):
        views = [trainer.student.features(dataset[position, view]["img"][None])[0].double() for view in (0, 1, 0)]
        mean = torch.stack(views).mean(0)
        torch.testing.assert_close(adapter.keys[position].double(), mean / mean.norm(), rtol=1e-4, atol=1e-5)
    assert torch.equal(adapter.values.argmax(1), torch.from_numpy(items.labels))
    assert adapter.values.sum() == len(items)


def test_stored_and_computed_keys_are_the_same(shared_command, started, tmp_path):
    runs = [
        started(shared_command("TipAdapterF", tmp_path / mode, *SMALL, "MODEL.FEATURES", mode))
        for mode in ("fill", "online")
    ]
    torch.testing.assert_close(*(run.student.adapter.keys for run in runs), rtol=1e-4, atol=1e-6)


def test_only_tip_adapter_f_learns(finished):
    first, learned = raw(finished("TipAdapter")), raw(finished("TipAdapterF"))
    assert torch.equal(first["adapter_weight"].T, first["cache_keys"])
    torch.testing.assert_close(learned["cache_keys"], first["cache_keys"])
    assert not torch.allclose(learned["adapter_weight"], first["adapter_weight"], atol=1e-4)
    assert (first["best_alpha"], first["best_beta"]) == (1.17, 1.0)  # no validation split: the config's


def gradient_by_hand(trainer, batch, keys):
    """Return the keys' gradient of the mean cross-entropy by the chain rule, in float64."""
    node, student = trainer.cfg.TRAINER.TIPADAPTER, trainer.student
    z, keys, text = batch["features"].double(), keys.double(), student.text.double()
    z, one_hot = z / z.norm(dim=1, keepdim=True), student.adapter.values.double()
    labels = torch.nn.functional.one_hot(batch["label"], len(text))
    affinity = (-node.BETA * (1 - z @ keys.T)).exp()
    logits = z @ text.T / student.zeta + node.ALPHA * affinity @ one_hot
    wrong = (logits.softmax(1) - labels) / len(z)
    return node.ALPHA * node.BETA * (affinity * (wrong @ one_hot.T)).T @ z


def test_a_step_of_the_trainer_is_adamw_with_the_published_epsilon(shared_command, started, tmp_path):
    trainer = started(shared_command("TipAdapterF", tmp_path / "run", *SMALL))
    adapter, batch = trainer.student.adapter, next(trainer.streams[0])
    before = adapter.keys.detach().clone()
    trainer.forward_backward(batch)
    gradient = gradient_by_hand(trainer, batch, before)
    torch.testing.assert_close(adapter.keys.grad.double(), gradient, rtol=1e-3, atol=1e-7)
    gradient = adapter.keys.grad  # its sign decides a step where it is tiny
    wanted = before * (1 - 0.001 * 0.01) - 0.001 * gradient / (gradient.abs() + 1e-4)
    torch.testing.assert_close(adapter.keys.detach(), wanted, rtol=1e-5, atol=1e-7)


def test_the_rate_falls_by_a_cosine_step_by_step(shared_command, started, tmp_path):
    trainer = started(shared_command("TipAdapterF", tmp_path / "run", *SMALL, "OPTIM.MAX_EPOCH", "5"))
    trainer._optims["adapter"].step()  # else torch warns of the order
    total, rates = trainer.total_steps(), []
    for _ in range(total):
        rates.append(trainer.get_current_lr())
        trainer.update_lr(per_step=True)
    np.testing.assert_allclose(rates, 0.001 * (1 + np.cos(np.pi * np.arange(total) / total)) / 2, rtol=1e-9)


@pytest.mark.parametrize(("batch", "steps"), [(3, 3), (4, 2), (8, 1), (256, 1)])
def test_an_epoch_has_the_steps_of_a_loader_that_keeps_its_last_batch(shared_command, started, tmp_path, batch, steps):
    options = (*SMALL, "DATALOADER.TRAIN_X.BATCH_SIZE", str(batch))
    trainer = started(shared_command("TipAdapterF", tmp_path / "run", *options))
    assert len(trainer.dataset.train_x) == 8
    assert trainer.steps_per_epoch() == steps


@pytest.mark.parametrize("trainer", ["TipAdapter", "TipAdapterF"])
def test_a_run_tests_all_sets_and_saves_its_cache_model(finished, trainer):
    folder = finished(trainer)
    assert set(results(folder)["metrics"]) == {"val", "imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a"}
    assert results(folder)["method"] == {"F": "Tip-Adapter-F"}.get(trainer[-1], "Tip-Adapter") + " ViT-B/16"
    weights = load_checkpoint(f"{folder}/adapter/model.pth.tar-3")["state_dict"]
    assert set(weights) == {"keys", "first_keys", "values", "alpha", "beta"}


def test_evaluation_gives_the_runs_own_numbers_whatever_is_labeled(finished, shared_command, tiny_weights, tmp_path):
    folder = finished("TipAdapterF")
    flags = ("--eval-only", "--model-dir", folder)
    line = shared_command("TipAdapterF", tmp_path / "again", "DATASET.NUM_SHOTS", "3", flags=flags)
    assert main([*line, "MODEL.BACKBONE.CKPT", tiny_weights[1]]) == 0
    assert results(tmp_path / "again")["metrics"] == results(folder)["metrics"]
    assert not (tmp_path / "again" / "tip_adapter.pt").exists()


def test_an_interrupted_run_goes_on_with_its_keys(finished, shared_command, tiny_weights, tmp_path):
    whole = finished("TipAdapterF")
    line = shared_command("TipAdapterF", tmp_path / "run", *SMALL, "MODEL.BACKBONE.CKPT", tiny_weights[1])
    assert main([*line, "TRAIN.CHECKPOINT_FREQ", "1"]) == 0
    for name in ("adapter/model.pth.tar-3", "results.json"):
        (tmp_path / "run" / name).unlink()
    assert main(line) == 0
    assert "will resume training" in (tmp_path / "run/log.txt").read_text()
    assert torch.equal(raw(tmp_path / "run")["adapter_weight"], raw(whole)["adapter_weight"])


def test_alpha_and_beta_are_searched_on_validation_images_alone(shared_command, tmp_path):
    line = shared_command("TipAdapterF", tmp_path / "run", *SMALL, "DATASET.NUM_VAL_SHOTS", "1")
    assert main([*line, "TRAINER.TIPADAPTER.SEARCH_STEP", "(4,3)"]) == 0
    state = raw(tmp_path / "run")
    assert state["best_beta"] in [i * 6.9 / 4 + 0.1 for i in range(4)]
    assert state["best_alpha"] in [i * 2.9 / 3 + 0.1 for i in range(3)]
    assert "4 validation images" in (tmp_path / "run/log.txt").read_text()
    assert main([*line, "TEST.SPLIT", "val", "OUTPUT_DIR", str(tmp_path / "val")]) == 0
    assert raw(tmp_path / "val")["best_alpha"] == 1.17  # the images that are scored choose nothing


@pytest.mark.parametrize(
    ("key", "value"), [("ALPHA", "0"), ("PASSES", "0"), ("SEARCH_SCALE", "(7.0,)"), ("SEARCH_STEP", "(0, 20)")]
)
def test_a_slip_is_one_message(shared_command, started, tmp_path, key, value):
    with pytest.raises(ConfigError, match=f"TRAINER.TIPADAPTER.{key} is "):
        started(shared_command("TipAdapterF", tmp_path / "run", f"TRAINER.TIPADAPTER.{key}", value))


# DHO-F --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def taught(shared_command, started, tmp_path):
    """Return a function that starts a run whose teacher is made of a file."""

    def build(file, *options: str, trainer: str = "CoOp_DHO", name: str = "run"):
        teacher = ("TRAINER.DHO.TEACHER.TYPE", "few_shot", "TRAINER.DHO.TEACHER.ADAPTER", str(file))
        return started(shared_command(trainer, tmp_path / name, *teacher, *options))

    return build


def as_released(state: dict, path) -> str:
    """Save a file's parts as the released implementation does: half precision, and no word of the classes."""
    names = ("adapter_weight", "cache_keys", "cache_values", "clip_weights")
    torch.save({k: state[k].half() for k in names} | {k: state[k] for k in ("best_alpha", "best_beta")}, path)
    return str(path)


@pytest.mark.parametrize("released", [False, True])
def test_the_teacher_s_logits_are_the_released_formula(taught, finished, tmp_path, released):
    folder = finished("TipAdapterF")
    file = as_released(raw(folder), tmp_path / "best_tip_adapter_F.pt") if released else folder
    trainer = taught(file)
    batches = [next(stream) for stream in trainer.streams]
    images = torch.cat([batch["img_teacher"] for batch in batches])
    state = torch.load(file, weights_only=True) if released else raw(folder)
    wanted = released_formula(state, trainer.teacher.model.model.encode_image(images))
    torch.testing.assert_close(trainer.teacher_logits(batches).double(), wanted, rtol=1e-4, atol=1e-3)
    assert trainer.teacher_label == "ViT-L/14@336px (few-shot)"
    loss = trainer.forward_backward(*batches)["loss"]
    assert torch.isfinite(loss)


def test_the_teacher_answers_as_the_run_it_comes_from(taught, finished):
    """On the test images the few-shot teacher's logits are those that Tip-Adapter-F stored."""
    trainer, folder = taught(finished("TipAdapterF")), finished("TipAdapterF")
    teacher, clip = trainer.teacher.model, trainer.teacher
    dataset = trainer.eval_dataset(trainer.dataset.test)
    dataset.pre = clip.preprocess
    images = torch.stack([dataset[i]["img"] for i in range(len(dataset))])
    ours = teacher(teacher.features(images)).double()
    ours -= ours.max(1, keepdim=True).values
    torch.testing.assert_close(ours, ce_logits(folder), rtol=2e-3, atol=2e-2)  # stored in half precision


@pytest.mark.parametrize("student", ["LinearProbe_DHO", "VPT_DHO"])
def test_cached_and_online_teachers_are_the_same(taught, finished, student):
    options = ("INPUT.VIEWS", "2", "MODEL.FEATURES", "online", "OPTIM.MAX_EPOCH", "1", "OPTIM.WARMUP_STEPS", "0")
    runs = [
        taught(finished("TipAdapterF"), *options, "TRAINER.DHO.TEACHER.MODE", mode, trainer=student, name=mode)
        for mode in ("online", "fill")
    ]
    first, stored = (next(run.streams[1]) for run in runs)
    assert "img_teacher" in first
    assert "img_teacher" not in stored
    assert runs[1].teacher.model.model is None
    pair = [run.teacher_logits([batch]) for run, batch in zip(runs, (first, stored), strict=True)]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-3)


def test_half_of_the_classes_are_cut_out_of_the_file(taught, finished, tmp_path):
    folder, half = finished("TipAdapterF"), ("DATASET.SUBSAMPLE_CLASSES", "new")
    own = taught(folder, *half)
    released = taught(as_released(raw(folder), tmp_path / "f.pt"), *half, name="released")
    assert len(own.classes) == 2
    batches = [next(stream) for stream in own.streams]
    images = torch.cat([batch["img_teacher"] for batch in batches])
    wanted = released_formula(raw(folder), own.teacher.model.model.encode_image(images))[:, 2:]
    torch.testing.assert_close(own.teacher_logits(batches).double(), wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(released.teacher_logits(batches).double(), wanted, rtol=1e-2, atol=5e-2)


def test_a_few_shot_teacher_without_a_file_is_an_error(shared_command, started, tmp_path):
    line = shared_command("CoOp_DHO", tmp_path / "run", "TRAINER.DHO.TEACHER.TYPE", "few_shot")
    with pytest.raises(ConfigError, match=r"TEACHER\.ADAPTER is empty.*scripts/tip_adapter\.sh"):
        started(line)


def test_the_seed_stands_for_itself_in_the_path(taught, tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no .*/seed1"):
        taught(tmp_path / "seed{seed}")


def test_a_file_of_other_classes_order_or_encoder_is_refused(taught, finished, tiny_weights, tmp_path):
    state, path = raw(finished("TipAdapterF")), tmp_path / "f.pt"
    with pytest.raises(CheckpointError, match="made on the image encoder of ViT-B/16"):
        taught(finished("TipAdapterF"), "TRAINER.DHO.TEACHER.CKPT", tiny_weights[0])
    torch.save({**state, "classes": [["n1", "a"], *state["classes"][1:]]}, path)
    with pytest.raises(CheckpointError, match="1 of 4 are missing"):
        taught(path)
    turned = {**state, "clip_weights": state["clip_weights"].roll(1, 1)}
    with pytest.raises(CheckpointError, match="in another order"):
        taught(as_released(turned, path))
    fewer = {k: state[k][:, :3] for k in ("cache_values", "clip_weights")}
    kept = fewer["cache_values"].any(1)
    fewer |= {"cache_values": fewer["cache_values"][kept], "adapter_weight": state["adapter_weight"][kept]}
    with pytest.raises(CheckpointError, match=r"has 3 classes, the student 4"):
        taught(as_released({**state, **fewer, "cache_keys": state["cache_keys"][:, kept]}, path))


def test_dho_f_is_named_in_its_results_and_evaluated_without_its_file(finished, shared_command, tmp_path):
    shutil.copytree(finished("TipAdapterF"), tmp_path / "teacher")
    teacher = ("TRAINER.DHO.TEACHER.TYPE", "few_shot", "TRAINER.DHO.TEACHER.ADAPTER", str(tmp_path / "teacher"))
    assert main(shared_command("CoOp_DHO", tmp_path / "run", *teacher)) == 0
    shutil.rmtree(tmp_path / "teacher")
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    assert main(shared_command("CoOp_DHO", tmp_path / "again", *teacher, flags=flags)) == 0
    run, again = results(tmp_path / "run"), results(tmp_path / "again")
    assert run["teacher"] == again["teacher"] == "ViT-L/14@336px (few-shot)"
    assert run["metrics"] == again["metrics"]


def test_names_beside_a_file_that_has_its_own_classifier_are_refused(finished, shared_command, tmp_path, capsys):
    teacher = ("TRAINER.DHO.TEACHER.TYPE", "few_shot", "TRAINER.DHO.TEACHER.ADAPTER", str(finished("TipAdapterF")))
    line = shared_command("CoOp_DHO", tmp_path / "run", *teacher)
    names = Path(line[line.index("--root") + 1]) / "imagenet/classnames.txt"
    assert main([*line, "TRAINER.DHO.TEACHER.CLASSNAMES", str(names)]) == 2
    assert "has its own classifier; leave it empty" in capsys.readouterr().err
