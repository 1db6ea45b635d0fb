"""Exported runs: the same probabilities as the run's, in a process that has nothing of this package."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps

from dho_plugin import export as exporting
from dho_plugin.engine.image_sets import EvalDataset
from dho_plugin.errors import ExportError
from dho_plugin.export import answers, export, main, metadata, output_names
from dho_plugin.predict import Photos, find_images
from dho_plugin.runs import load_run

MLP = ("TRAINER.DHO.KD_HEAD", "mlp", "TRAINER.DHO.INIT", "kaiming")
MIXED = ("--alpha", "0.1", "--beta", "0.3")
# Each kind of student and head once, as a trace takes seconds: (trainer, options), further words, whether ONNX as well.
CASES = {
    "LinearProbe_DHO": (("LinearProbe_DHO", *MLP), MIXED, False),
    "VPT_DHO": (("VPT_DHO",), (), False),
    "CoOp": (("CoOp",), (), True),
    "PromptSRC_DHO": (("PromptSRC_DHO",), MIXED, True),
    "Distill_DHO": (("Distill_DHO",), MIXED, False),
    "Distill_SSKD": (("Distill_SSKD",), (), True),
    "TipAdapterF": (("TipAdapterF",), (), False),
}
FILES = [(case, kind) for case, (*_, onnx) in CASES.items() for kind in ("torch", *(["onnx"] if onnx else []))]

# What a user's own program does with the files: nothing of this package, of open_clip or timm can be imported.
ELSEWHERE = """
import json, pathlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dho_plugin", "open_clip", "timm", "accelerate"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import torch

for folder in map(pathlib.Path, sys.argv[1:]):
    images = torch.load(folder / "images.pt", weights_only=True)
    facts = {"metadata.json": ""}
    model = torch.export.load(folder / "model.pt2", extra_files=facts).module()
    torch.save([list(model(x)) for x in (images, images[:1])], folder / "from_torch.pt")
    (folder / "from_torch.json").write_text(facts["metadata.json"])
    if not (folder / "model.onnx").exists():
        continue
    import onnxruntime
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    found = [session.run(None, {"images": x.numpy()}) for x in (images, images[:1])]
    torch.save([[torch.from_numpy(out) for out in outs] for outs in found], folder / "from_onnx.pt")
    facts = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    (folder / "from_onnx.json").write_text(json.dumps(facts))
assert "dho_plugin" not in sys.modules
"""


def evaluation_images(trainer, folder: Path) -> torch.Tensor:
    """Return a run's test images as it sees them."""
    photos = EvalDataset(find_images([str(folder)]), trainer.student_preprocess)
    return torch.stack([photos[n]["img"] for n in range(len(photos))])


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    """Every trainer's files, written by the command line and used in a process of their own."""
    home, folders = tmp_path_factory.mktemp("exported"), {}
    for case, (run, words, onnx) in CASES.items():
        (run, images), out = finished_run(*run), home / case
        words = [str(run), "--torch-export", str(out / "model.pt2"), *words]
        assert main([*words, *(["--onnx", str(out / "model.onnx")] if onnx else [])]) == 0
        torch.save(evaluation_images(load_run(run), images), out / "images.pt")
        folders[case] = out, run
    folders_of = [str(out) for out, _ in folders.values()]
    subprocess.run([sys.executable, "-c", ELSEWHERE, *folders_of], check=True, cwd=home, timeout=300)
    return folders


def mixing(case: str) -> tuple[float, float]:
    return (0.1, 0.3) if CASES[case][1] else (0.5, 1.0)


@pytest.mark.parametrize(("case", "kind"), FILES)
def test_the_files_answer_as_the_run_without_this_package(exported, case, kind):
    folder, run = exported[case]
    trainer, images = load_run(run), torch.load(folder / "images.pt", weights_only=True)
    with torch.no_grad():
        ce, kd, _ = trainer.net(images)
    alpha, beta = mixing(case)
    expected = ce.double().softmax(1)
    if kd is not None:
        expected = alpha * expected + (1 - alpha) * (kd.double() / beta).softmax(1)
    assert len(images) == 8
    for found, n in zip(torch.load(folder / f"from_{kind}.pt", weights_only=True), (8, 1), strict=True):
        assert len(found) == (2 if kd is None else 3)
        torch.testing.assert_close(found[0].double(), expected[:n], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[1], ce[:n], rtol=1e-4, atol=1e-3)
        if kd is not None:
            torch.testing.assert_close(found[2], kd[:n], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("case", "kind"), FILES)
def test_the_files_say_how_they_are_used(exported, case, kind):
    folder, run = exported[case]
    trainer, about = load_run(run), json.loads((folder / f"from_{kind}.json").read_text())
    assert about["classes"] == [info.name for info in trainer.classes]
    assert about["class_keys"] == [info.key for info in trainer.classes]
    two = case not in ("CoOp", "TipAdapterF", "Distill_SSKD")  # SSKD's second head is of training alone
    assert (about["alpha"], about["beta"]) == (mixing(case) if two else (None, None))
    pre = trainer.student_preprocess
    assert about["preprocess"]["size"] == pre.size == 32
    assert about["preprocess"]["mean"] == list(pre.mean)
    assert about["preprocess"]["std"] == list(pre.std)
    assert about["preprocess"]["interpolation"] == "bicubic"
    assert about["outputs"] == ["probabilities", "logits_ce", "logits_kd"][: 3 if two else 2]


def as_told(about: dict, image: Image.Image) -> torch.Tensor:
    """Prepare an image as a file's metadata says, with nothing of this package."""
    pre = about["preprocess"]
    image = ImageOps.exif_transpose(image) if pre["upright"] else image
    sides = [pre["resize"] * side // min(image.size) for side in image.size]
    if pre["resize_mode"] == "squash":
        sides = [pre["resize"]] * 2
    image = image.resize(sides, Image.Resampling[pre["interpolation"].upper()])
    left, top = ((side - pre["size"]) // 2 for side in sides)
    pixels = np.asarray(image.crop((left, top, left + pre["size"], top + pre["size"])), dtype=np.float32) / 255
    return torch.from_numpy((pixels - pre["mean"]) / pre["std"]).permute(2, 0, 1).float()


@pytest.mark.parametrize("changes", [{}, {"crop_pct": 0.8}, {"resize_mode": "squash"}, {"interpolation": "bilinear"}])
@pytest.mark.parametrize("upright", ["True", "False"])
def test_the_metadata_tells_how_images_are_prepared(finished_run, tmp_path, changes, upright):
    trainer = load_run(finished_run("VPT_DHO")[0], ["INPUT.UPRIGHT", upright])
    trainer.student_preprocess = replace(trainer.student_preprocess, **changes)
    pixels, lying = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8), Image.Exif()
    lying[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "lying.png", exif=lying)
    seen = Photos(find_images([str(tmp_path)]), trainer.student_preprocess, upright=trainer.cfg.INPUT.UPRIGHT)[0]["img"]
    told = as_told(metadata(trainer, output_names(trainer)), Image.open(tmp_path / "lying.png"))
    torch.testing.assert_close(told, seen, rtol=0, atol=1e-5)


def test_the_text_tower_is_left_out(exported):
    folder, run = exported["PromptSRC_DHO"]
    clip = load_run(run).clip().model
    towers = 4 * sum(p.numel() for p in clip.visual.parameters())
    heads = 2 * 4 * 4 * 32
    text = 4 * clip.token_embedding.weight.numel()
    assert text > 10 * towers
    assert towers + heads < (folder / "model.pt2").stat().st_size < 2 * towers + 200_000


def test_outputs_have_their_names(exported):
    folder, _ = exported["PromptSRC_DHO"]
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert [out.name for out in session.get_outputs()] == ["probabilities", "logits_ce", "logits_kd"]
    (given,) = session.get_inputs()
    assert (given.name, given.shape[1:]) == ("images", [3, 32, 32])
    assert isinstance(given.shape[0], str)  # any number of images


def test_a_file_that_computes_something_else_is_not_written(finished_run, tmp_path, monkeypatch):
    trainer = load_run(finished_run("VPT_DHO")[0], exact=True)
    path, right = tmp_path / "m.pt2", answers(trainer)
    path.write_text("old")
    monkeypatch.setattr(exporting, "traced", lambda *_: None)
    monkeypatch.setattr(exporting, "to_torch", lambda *_: b"new")
    for wrong in (2e-5, float("nan")):  # on one of the two batches
        for place in range(3):  # probabilities and both heads' logits

            def outputs(images, wrong=wrong, place=place):
                given = list(right(images))
                wrong = wrong * (1 if place == 0 else 10 * given[place].abs().max())
                given[place] = given[place] + (wrong if len(images) > 1 else 0)
                return given

            monkeypatch.setattr(exporting, "from_torch", lambda _, outputs=outputs: outputs)
            with pytest.raises(ExportError, match="differ from the run's by"):
                export(trainer, torch_export=str(path))
            assert path.read_text() == "old"
    monkeypatch.setattr(exporting, "from_torch", lambda _: lambda images: right(images)[:2])
    with pytest.raises(ExportError, match="2 outputs; the run has 3"):
        export(trainer, torch_export=str(path))
    monkeypatch.setattr(exporting, "from_torch", lambda _: right)
    assert export(trainer, torch_export=str(path)) == {str(path): 0}
    assert path.read_text() == "new"


def test_the_run_s_own_model_is_left_as_it_was(finished_run):
    trainer = load_run(finished_run("PromptSRC_DHO")[0], exact=True)
    kinds = [type(module) for module in trainer.net.modules()]
    copied = {value.data_ptr() for value in answers(trainer).state_dict().values()}
    assert [type(module) for module in trainer.net.modules()] == kinds
    assert not copied & {value.data_ptr() for value in trainer.net.state_dict().values()}


def test_what_cannot_be_traced_is_named(finished_run, monkeypatch):
    trainer = load_run(finished_run("VPT_DHO")[0], exact=True)
    model = answers(trainer)
    monkeypatch.setattr(type(model), "forward", lambda _, images: images if images.sum() > 0 else -images)
    with pytest.raises(ExportError, match="cannot be traced"):
        exporting.traced(model, 32)


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
