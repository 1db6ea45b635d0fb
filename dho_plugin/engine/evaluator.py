"""Scoring of stored logits, and the log lines that the hosts' parsers read."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dho_plugin.core.inference import interpolate
from dho_plugin.engine.files import atomic_write
from dho_plugin.errors import CacheError, DataError

CHUNK = 4096  # rows scored at once: bounds memory at 1000 classes


def compact(logits: Tensor) -> Tensor:
    """Return logits (B, C) of any float width as float16, less each row's largest.

    No softmax sees the difference of a constant, at any temperature. float16 is finest around 0, so what lies near the
    largest keeps its order and small probabilities a relative precision of 2^-11 times their logit.
    """
    logits = logits.float()
    return (logits - logits.amax(dim=1, keepdim=True)).half()


@dataclass(frozen=True)
class TestLogits:
    """Both heads' logits on one test set, in the order of its images.

    Attributes:
        logits_ce: (N, C) float16 as `compact` makes them (runs of older versions: float32).
        logits_kd: the same, or None for a model without a KD head.
        labels: (N,) int64; -1 marks an image that could not be read.
        classnames: C names, for the per-class report.
    """

    logits_ce: Tensor
    logits_kd: Tensor | None
    labels: Tensor
    classnames: tuple[str, ...]
    __test__ = False  # pytest: a record, not a test case

    def save(self, path: str | Path) -> None:
        """Write the logits to a safetensors file, atomically."""
        tensors = {"logits_ce": self.logits_ce, "labels": self.labels}
        if self.logits_kd is not None:
            tensors["logits_kd"] = self.logits_kd
        content = save({k: v.contiguous() for k, v in tensors.items()}, {"names": "\n".join(self.classnames)})
        atomic_write(path, lambda file: file.write(content))

    @classmethod
    def load(cls, path: str | Path) -> TestLogits:
        """Read what `save` wrote.

        Raises:
            CacheError: the file is missing or damaged.
        """
        try:
            with safe_open(str(path), "pt") as file:
                t = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
                names = tuple(file.metadata()["names"].split("\n"))
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise CacheError(f"stored logits {path} cannot be read ({error}); evaluate the run again") from error
        return cls(t["logits_ce"], t.get("logits_kd"), t["labels"], names)

    def readable(self) -> TestLogits:
        """Return the same logits without the rows of unreadable images."""
        keep = self.labels >= 0
        if keep.all():
            return self
        kd = None if self.logits_kd is None else self.logits_kd[keep]
        return TestLogits(self.logits_ce[keep], kd, self.labels[keep], self.classnames)


def predictions(stored: TestLogits, alpha: float, beta: float) -> Tensor:
    """Return the argmax of Eq. 11 for every row, shape (N,) int64; the CE head's where there is no KD head."""
    rows = []
    for i in range(0, len(stored.labels), CHUNK):
        kd = None if stored.logits_kd is None else stored.logits_kd[i : i + CHUNK]
        rows.append(interpolate(stored.logits_ce[i : i + CHUNK], kd, alpha, beta).argmax(1))
    return torch.cat(rows)


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return 100.0 * (predicted == labels).double().mean().item()


def macro_f1(predicted: Tensor, labels: Tensor) -> float:
    """Return the unweighted mean F1 over the classes present in `labels`, in percent, as Dassl computes it."""
    from sklearn.metrics import f1_score  # here: its import costs more than most runs of this module

    return 100.0 * float(f1_score(labels, predicted, average="macro", labels=torch.unique(labels), zero_division=0))


def score(stored: TestLogits, alpha: float, beta: float) -> dict[str, float]:
    """Score stored logits at one (alpha, beta); DHO, Eq. 11 and Algorithm 2.

    Returns:
        accuracy, macro_f1 (of the mix), ce_head_accuracy and, with a KD head, kd_head_accuracy, in percent;
        n images scored, n_unreadable left out, alpha and beta.

    Raises:
        DataError: no image of the set could be read.
    """
    kept = stored.readable()
    if len(kept.labels) == 0:
        raise DataError(f"none of the {len(stored.labels)} test images could be read: nothing to score")
    mixed = predictions(kept, alpha, beta)
    metrics = {
        "accuracy": _accuracy(mixed, kept.labels),
        "macro_f1": macro_f1(mixed, kept.labels),
        "ce_head_accuracy": _accuracy(kept.logits_ce.argmax(1), kept.labels),
        "n": len(kept.labels),
        "n_unreadable": len(stored.labels) - len(kept.labels),
    }
    if kept.logits_kd is not None:
        metrics["kd_head_accuracy"] = _accuracy(kept.logits_kd.argmax(1), kept.labels)
        metrics.update(alpha=alpha, beta=beta)
    return metrics


def result_lines(metrics: dict[str, float], name: str = "") -> str:
    """Format metrics as the hosts' log lines.

    CoOp's `parse_test_res.py` takes the last `* accuracy:` of a log, so only the main test set has unprefixed names.
    """
    prefix = f"{name}_" if name else ""
    lines = [f"=> result{f' ({name})' if name else ''}"]
    correct = round(metrics["accuracy"] * metrics["n"] / 100)
    lines += [f"* {prefix}total: {metrics['n']:,}", f"* {prefix}correct: {correct:,}"]
    if metrics["n_unreadable"]:
        lines.append(f"* {prefix}unreadable: {metrics['n_unreadable']:,} (left out of every figure)")
    for key in ("ce_head_accuracy", "kd_head_accuracy"):
        if key in metrics:
            lines.append(f"* {prefix}{key}: {metrics[key]:.1f}%")
    lines += [
        f"* {prefix}accuracy: {metrics['accuracy']:.1f}%",
        f"* {prefix}error: {100 - metrics['accuracy']:.1f}%",
        f"* {prefix}macro_f1: {metrics['macro_f1']:.1f}%",
    ]
    return "\n".join(lines)


def per_class_lines(stored: TestLogits, alpha: float, beta: float) -> tuple[str, float]:
    """Return Dassl's per-class report and the mean of the classes' accuracies, in percent."""
    kept = stored.readable()
    hit = (predictions(kept, alpha, beta) == kept.labels).double()
    by_class = OrderedDict((int(c), hit[kept.labels == c]) for c in torch.unique(kept.labels))
    lines = ["=> per-class result"]
    for label, hits in by_class.items():
        lines.append(
            f"* class: {label} ({stored.classnames[label]})\ttotal: {len(hits):,}\t"
            f"correct: {int(hits.sum()):,}\tacc: {100 * hits.mean().item():.1f}%"
        )
    average = 100 * sum(hits.mean().item() for hits in by_class.values()) / len(by_class)
    return "\n".join([*lines, f"* average: {average:.1f}%"]), average


def confusion_matrix(stored: TestLogits, alpha: float, beta: float) -> Tensor:
    """Return the (C, C) float64 confusion matrix, rows (true classes) summing to 1 where the class occurs."""
    kept, classes = stored.readable(), len(stored.classnames)
    flat = kept.labels * classes + predictions(kept, alpha, beta)
    counts = torch.bincount(flat, minlength=classes * classes).reshape(classes, classes).double()
    return counts / counts.sum(1, keepdim=True).clamp(min=1)
