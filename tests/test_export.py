"""Exported runs: the same probabilities as the run's, in a process that has nothing of this package."""

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

from dho_plugin import export as exporting
from dho_plugin.core.inference import interpolate
from dho_plugin.engine.image_sets import EvalDataset
from dho_plugin.errors import ExportError
from dho_plugin.export import answers, export, main, metadata, output_names, traced
from dho_plugin.predict import find_images
from dho_plugin.runs import load_run

METHODS = ("LinearProbe", "VPT", "CoOp", "PromptSRC")
TRAINERS = (*METHODS, *(f"{name}_DHO" for name in METHODS), "ZeroshotCLIP", "ZeroshotCLIP2")
MLP = ("TRAINER.DHO.KD_HEAD", "mlp", "TRAINER.DHO.INIT", "kaiming")

# What a user's own program does with the files: nothing of this package, of open_clip or timm can be imported.
ELSEWHERE = """
import json, sys
import numpy as np

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dho_plugin", "open_clip", "timm", "accelerate"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import torch

found = {}
for folder in sys.argv[1:]:
    images = torch.load(folder + "/images.pt", weights_only=True)
    facts = {"metadata.json": ""}
    program = torch.export.load(folder + "/model.pt2", extra_files=facts)
    outputs = program.module()(images)
    one = program.module()(images[:1])
    torch.save([list(outputs), list(one)], folder + "/from_torch.pt")
    open(folder + "/from_torch.json", "w").write(facts["metadata.json"])
    import onnxruntime
    session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
    run = lambda x: [torch.from_numpy(out) for out in session.run(None, {"images": x.numpy()})]
    torch.save([run(images), run(images[:1])], folder + "/from_onnx.pt")
    facts = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    open(folder + "/from_onnx.json", "w").write(json.dumps(facts))
assert "dho_plugin" not in sys.modules
"""


def evaluation_images(trainer, folder: Path) -> torch.Tensor:
    """Return a run's test images as it sees them."""
    photos = EvalDataset(find_images([str(folder)]), trainer.student_preprocess)
    return torch.stack([photos[n]["img"] for n in range(len(photos))])


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    """Every trainer's files, written by the command line and used in a process of their own."""
    home = tmp_path_factory.mktemp("exported")
    cases = {name: (name, ()) for name in TRAINERS} | {"mlp": ("LinearProbe_DHO", MLP)}
    for case, (name, options) in cases.items():
        run, images = finished_run(name, *options)
        out = home / case
        assert main([str(run), "--onnx", str(out / "model.onnx"), "--torch-export", str(out / "model.pt2")]) == 0
        torch.save(evaluation_images(load_run(run), images), out / "images.pt")
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *(str(home / case) for case in cases)], check=True, cwd=home, timeout=300
    )
    return {case: (home / case, finished_run(name, *options)[0]) for case, (name, options) in cases.items()}


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("case", [*TRAINERS, "mlp"])
def test_the_files_answer_as_the_run_without_this_package(exported, case, kind):
    folder, run = exported[case]
    trainer, images = load_run(run), torch.load(folder / "images.pt", weights_only=True)
    with torch.no_grad():
        ce, kd, _ = trainer.net(images)
        expected = interpolate(ce, kd, *trainer.mixing())
    assert len(images) == 8
    for found, n in zip(torch.load(folder / f"from_{kind}.pt", weights_only=True), (8, 1), strict=True):
        assert len(found) == (2 if kd is None else 3)
        torch.testing.assert_close(found[0], expected[:n], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[1], ce[:n], rtol=1e-4, atol=1e-3)
        if kd is not None:
            torch.testing.assert_close(found[2], kd[:n], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("case", ["CoOp_DHO", "LinearProbe"])
def test_the_files_say_how_they_are_used(exported, case, kind):
    folder, run = exported[case]
    trainer, about = load_run(run), json.loads((folder / f"from_{kind}.json").read_text())
    assert about["classes"] == [info.name for info in trainer.classes]
    assert about["class_keys"] == [info.key for info in trainer.classes]
    assert (about["alpha"], about["beta"]) == ((0.5, 1.0) if trainer.dho else (None, None))
    pre = trainer.student_preprocess
    assert about["preprocess"]["size"] == pre.size == 32
    assert about["preprocess"]["mean"] == list(pre.mean)
    assert about["preprocess"]["std"] == list(pre.std)
    assert about["preprocess"]["interpolation"] == "bicubic"
    assert about["outputs"] == ["probabilities", "logits_ce", "logits_kd"][: 3 if trainer.dho else 2]


def test_the_text_tower_is_left_out(exported):
    folder, run = exported["CoOp_DHO"]
    clip = load_run(run).clip().model
    towers = 4 * sum(p.numel() for p in clip.visual.parameters())
    heads = 2 * 4 * 4 * 32
    text = 4 * clip.token_embedding.weight.numel()
    assert text > 10 * towers
    for name in ("model.pt2", "model.onnx"):
        assert towers + heads < (folder / name).stat().st_size < 2 * towers + 200_000


def test_outputs_have_their_names(exported):
    folder, _ = exported["VPT_DHO"]
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert [out.name for out in session.get_outputs()] == ["probabilities", "logits_ce", "logits_kd"]
    (given,) = session.get_inputs()
    assert (given.name, given.shape[1:]) == ("images", [3, 32, 32])
    assert isinstance(given.shape[0], str)  # any number of images


def test_alpha_and_beta_of_the_command_line_are_inside(finished_run, tmp_path, capsys):
    run, images = finished_run("LinearProbe_DHO")
    words = [str(run), "--torch-export", str(tmp_path / "m.pt2"), "--alpha", "0.1", "--beta", "0.3"]
    assert main(words) == 0
    assert "probabilities differ from the run's by" in capsys.readouterr().out
    facts = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=facts)
    about = json.loads(facts["metadata.json"])
    assert (about["alpha"], about["beta"]) == (0.1, 0.3)
    mixed, ce, kd = program.module()(evaluation_images(load_run(run), images))
    expected = 0.1 * ce.double().softmax(1) + 0.9 * (kd.double() / 0.3).softmax(1)
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=1e-6)


def test_a_file_that_computes_something_else_is_not_written(finished_run, tmp_path, monkeypatch):
    trainer = load_run(finished_run("LinearProbe_DHO")[0], exact=True)
    path, read = tmp_path / "m.pt2", exporting.from_torch

    def wrong(content):
        right = read(content)
        return lambda images: [right(images)[0] + (2e-5 if len(images) > 1 else 0)]

    path.write_text("old")
    monkeypatch.setattr(exporting, "from_torch", wrong)
    with pytest.raises(ExportError, match="differ from the run's by up to 2"):
        export(trainer, torch_export=str(path))
    assert path.read_text() == "old"


def test_the_run_s_own_model_is_left_as_it_was(finished_run):
    trainer = load_run(finished_run("PromptSRC_DHO")[0], exact=True)
    before = {name: value.clone() for name, value in trainer.net.state_dict().items()}
    traced(answers(trainer), trainer.student_preprocess.size)
    after = trainer.net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_run_in_half_precision_is_exported_in_full(finished_run):
    run, _ = finished_run("VPT_DHO")
    trainer = load_run(run, ["TRAINER.VPT.PREC", "bf16"], exact=True)
    assert trainer.cfg.TRAINER.VPT.PREC == "fp32"
    assert trainer.device.type == "cpu"
    assert metadata(trainer, output_names(trainer))["preprocess"]["size"] == 32


def test_slips_are_one_message(finished_run, tmp_path, monkeypatch, capsys):
    run = str(finished_run("LinearProbe_DHO")[0])
    assert main([run]) == 2
    assert "--onnx FILE, --torch-export FILE" in capsys.readouterr().err
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    assert main([run, "--onnx", str(tmp_path / "m.onnx")]) == 2
    assert "dho-plugin[export]" in capsys.readouterr().err
    assert main([str(tmp_path), "--torch-export", str(tmp_path / "m.pt2")]) == 2
    assert "no config.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
