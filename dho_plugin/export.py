"""A trained run as one file that needs nothing of this package: `python -m dho_plugin.export RUN_DIR --onnx FILE`.

The file has the image encoder, both heads, alpha and beta. It takes normalized images (B, 3, S, S), any B, and gives
the probabilities of Eq. 11 and the heads' logits; class names, the images' size and normalization are its metadata.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from dho_plugin.core.inference import interpolate
from dho_plugin.dho_trainer import DHOTrainer
from dho_plugin.engine.config import as_plain
from dho_plugin.engine.files import atomic_write
from dho_plugin.engine.logger import versions
from dho_plugin.errors import ConfigError, ExportError, run_command
from dho_plugin.models.text_classifier import TextClassifier
from dho_plugin.runs import add_run_flags, described, run_of

TOLERANCE = 1e-5  # of probabilities, between the file and the run
LOGITS_TOLERANCE = 1e-4  # of logits, as a share of the largest one
INPUT = (
    "images: float32 (B, 3, size, size). Where preprocess.upright is true, turn an image by its EXIF orientation; with "
    "antialiasing resize its shorter side (resize_mode shortest) or both sides (squash) to preprocess.resize pixels, "
    "cut out the central size x size, scale RGB to 0..1, subtract mean, divide by std"
)
METADATA = "metadata.json"  # name of the metadata within a file of torch.export
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_LIMIT = 2**31 - 2**20  # bytes of one protobuf message

Outputs = Callable[[Tensor], Sequence[Tensor]]


class Fixed(nn.Module):
    """What a text classifier gives in evaluation: the same class features (C, D) always."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.register_buffer("features", features.detach().clone())

    def forward(self) -> Tensor:
        """Return the features."""
        return self.features


class Answers(nn.Module):
    """Normalized images (B, 3, S, S) -> probabilities of Eq. 11, CE logits and, with two heads, KD logits, (B, C) each.

    Args:
        net: student and KD head.
        alpha: weight of the CE head.
        beta: temperature of the KD head.
    """

    def __init__(self, net: nn.Module, alpha: float, beta: float):
        super().__init__()
        self.net, self.alpha, self.beta = net, alpha, beta

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what the file gives."""
        logits_ce, logits_kd, _ = self.net(images)
        mixed = interpolate(logits_ce, logits_kd, self.alpha, self.beta)
        return (mixed, logits_ce) if logits_kd is None else (mixed, logits_ce, logits_kd)


def answers(trainer: DHOTrainer) -> Answers:
    """Return a copy of a loaded run's model, on its own, with its prompts' class features in the text tower's place."""
    net = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.net))
    with torch.no_grad():
        for module in list(net.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, TextClassifier):
                    setattr(module, name, Fixed(child()))
    return Answers(net, *trainer.mixing()).eval().requires_grad_(False)


def traced(model: Answers, size: int) -> ExportedProgram:
    """Return a model's graph for any number of images of `size` pixels, with those of its tensors that it uses.

    Raises:
        ExportError: the model does something that cannot be traced.
    """
    shapes = {"images": {0: Dim("batch", min=1)}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what a forward leaves behind on the model is not looked at again
        try:
            program = torch.export.export(model, (torch.zeros(2, 3, size, size),), dynamic_shapes=shapes)
        except Exception as error:  # torch.export raises what the model's own code does on tensors without values
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ExportError(f"this model cannot be traced for an export: {type(error).__name__}: {reason}") from error
    _drop_unused(program)
    return program


def _drop_unused(program: ExportedProgram) -> None:
    """Take the tensors off a graph that nothing in it looks at: a CLIP's text tower is most of it."""
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    kept = []
    for spec, node in zip(program.graph_signature.input_specs, inputs, strict=True):
        if node.users or spec.kind is InputKind.USER_INPUT:
            kept.append(spec)
            continue
        program.graph.erase_node(node)
        for tensors in (program.state_dict, program.constants):
            tensors.pop(spec.target, None)
    program.graph_signature.input_specs = kept
    program.graph_module.recompile()


def metadata(trainer: DHOTrainer, outputs: Sequence[str]) -> dict[str, Any]:
    """Return what a file says of itself."""
    pre, (alpha, beta), two = trainer.student_preprocess, trainer.mixing(), trainer.kd_head is not None
    return {
        "format": "dho-plugin 1",
        "method": trainer.display_name(),
        "classes": [info.name for info in trainer.classes],
        "class_keys": [info.key for info in trainer.classes],
        "alpha": alpha if two else None,
        "beta": beta if two else None,
        "input": INPUT,
        "outputs": list(outputs),
        "preprocess": {
            "size": pre.size,
            "mean": list(pre.mean),
            "std": list(pre.std),
            "interpolation": pre.interpolation,
            "resize": pre.resized,
            "resize_mode": pre.resize_mode,
            "upright": trainer.cfg.INPUT.UPRIGHT,
        },
        "config": as_plain(trainer.cfg)["MODEL"]["BACKBONE"],
        "versions": versions(),
    }


def output_names(trainer: DHOTrainer) -> list[str]:
    """Return the names of a file's outputs, in order."""
    return ["probabilities", "logits_ce", *([] if trainer.kd_head is None else ["logits_kd"])]


# The two formats ----------------------------------------------------------------------------------------------------


def to_torch(program: ExportedProgram, about: dict[str, Any]) -> bytes:
    """Return a file for `torch.export.load`, the metadata as JSON under METADATA."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(about)})
    return buffer.getvalue()


def from_torch(content: bytes) -> Outputs:
    """Return what a file of `to_torch` computes."""
    return torch.export.load(io.BytesIO(content)).module()


def to_onnx(program: ExportedProgram, about: dict[str, Any]) -> bytes:
    """Return an ONNX file, its metadata as JSON by name.

    Raises:
        ExportError: it would be larger than one ONNX file can be.
    """
    if sum(tensor.nbytes for tensor in program.state_dict.values()) > ONNX_LIMIT:
        raise ExportError(
            "--onnx: the weights take more than 2 GB, which one ONNX file cannot hold; use --torch-export"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program, input_names=["images"], output_names=about["outputs"], dynamo=True, verbose=False
        )
    made.model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    return made.model_proto.SerializeToString()


def from_onnx(content: bytes) -> Outputs:
    """Return what a file of `to_onnx` computes, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(out) for out in session.run(None, {"images": images.numpy()})]


def check_packages() -> None:
    """Check that the packages for ONNX are there.

    Raises:
        ConfigError: some are not.
    """
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        raise ConfigError(f"--onnx needs {', '.join(missing)}: install dho-plugin[export], or use --torch-export")


@torch.no_grad()
def differences(trainer: DHOTrainer, outputs: Outputs) -> tuple[float, float]:
    """Compare what a file gives with the run's own outputs, on batches of 1 and of 5 images.

    Returns:
        The largest difference of probabilities, and that of logits as a share of the largest logit.

    Raises:
        ExportError: the file has more or fewer outputs.
    """
    size, found = trainer.student_preprocess.size, []
    own = Answers(trainer.accelerator.unwrap_model(trainer.net), *trainer.mixing())
    noise = torch.Generator().manual_seed(0)
    for count in (1, 5):
        images = torch.randn(count, 3, size, size, generator=noise)
        expected, given = own(images), outputs(images)
        if len(given) != len(expected):
            raise ExportError(f"the file gives {len(given)} outputs; the run has {len(expected)}")
        errors = [(a - b).abs().max() for a, b in zip(given, expected, strict=True)]
        shares = [error / logits.abs().max() for error, logits in zip(errors[1:], expected[1:], strict=True)]
        found.append(torch.stack([errors[0], torch.stack(shares).max()]))
    return tuple(torch.stack(found).amax(0).tolist())  # not Python's max: of a number that is none it says nothing


def export(trainer: DHOTrainer, *, onnx: str = "", torch_export: str = "") -> dict[str, float]:
    """Write a loaded run into one file of each format that is asked for, once it has been compared with the run.

    Args:
        trainer: a run of `load_run` on the CPU in fp32.
        onnx: path of an ONNX file, or "".
        torch_export: path of a file for `torch.export.load`, or "".

    Returns:
        For each path the largest difference of probabilities from the run's own.

    Raises:
        ExportError: the model cannot be exported, or a file computes something else; then it is not written.
    """
    about, found = metadata(trainer, output_names(trainer)), {}
    program = traced(answers(trainer), trainer.student_preprocess.size)
    for path, write, read in ((torch_export, to_torch, from_torch), (onnx, to_onnx, from_onnx)):
        if path:
            content = write(program, about)
            found[path], share = differences(trainer, read(content))
            if not (found[path] <= TOLERANCE and share <= LOGITS_TOLERANCE):
                raise ExportError(
                    f"{path} is not written: its probabilities differ from the run's by up to {found[path]:.1e} "
                    f"(allowed: {TOLERANCE:.0e}), its logits by {share:.1e} of the largest ({LOGITS_TOLERANCE:.0e})"
                )
            atomic_write(path, lambda file, content=content: file.write(content))
    return found


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m dho_plugin.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_flags(parser)
    parser.add_argument("--onnx", default="", help="write an ONNX file (needs the packages of dho-plugin[export])")
    parser.add_argument("--torch-export", default="", help="write a file for torch.export.load, by custom a .pt2")
    return parser


def report(args: argparse.Namespace) -> None:
    """Carry out one command line.

    Raises:
        DHOError: anything that the user can mend.
    """
    if not (args.onnx or args.torch_export):
        raise ConfigError("name a file: --onnx FILE, --torch-export FILE, or both")
    if args.onnx:
        check_packages()
    trainer = run_of(args, exact=True)
    print(described(trainer))
    for path, differs in export(trainer, onnx=args.onnx, torch_export=args.torch_export).items():
        print(f"{path}: probabilities differ from the run's by {differs:.1e} at most")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
