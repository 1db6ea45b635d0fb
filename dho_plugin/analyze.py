"""Figures of runs as PDF and PNG: `python -m dho_plugin.analyze KIND RUN_DIR ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tabulate import tabulate

from dho_plugin import exhibits
from dho_plugin.analysis.curves import quarters
from dho_plugin.analysis.style import save_figure
from dho_plugin.case_images import shown_cases
from dho_plugin.engine.files import atomic_write_text
from dho_plugin.errors import DataError, run_command
from dho_plugin.exhibits import Exhibit
from dho_plugin.findings import Findings, find, folder, gradients_over_sets
from dho_plugin.results import find_results, is_zero_shot
from dho_plugin.run_features import evaluate_features

EACH: dict[str, Callable[[Findings], Iterator[Exhibit]]] = {
    "heads": exhibits.heads,
    "surface": exhibits.surface,
    "gradients": exhibits.gradients,
}
KINDS = (*EACH, "features", "cases", "curves")
# In gradients.jsonl: what is printed of it.
QUANTITIES = {
    "cosine_parameters": "cosine, parameters",
    "cosine_parameters_labeled": "cosine, parameters, labeled images",
    "cosine_features": "cosine, features",
    "discrepancy": "prediction discrepancy",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(prog="dho-analyze", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("directories", nargs="+", metavar="RUN_DIR", help="runs, or folders with runs")
    parser.add_argument("--out", default="figures", help="folder for the figures (default: figures)")
    parser.add_argument("--count", type=int, default=3, help="cases: how many of each kind (default: 3)")
    words = "where the data lie: for the images of cases; for features, if not where they lay in training"
    parser.add_argument("--root", default="", help=words)
    parser.add_argument("--classes", type=int, default=10, help="features: the first so many classes in t-SNE's plane")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the figures of a command line.

    Args:
        argv: command line; None reads `sys.argv`.

    Returns:
        0, or 2 where there is nothing to draw; the message says why.
    """
    args = build_parser().parse_args(argv)
    return run_command(lambda: _carry_out(args))


def _carry_out(args: argparse.Namespace) -> None:
    findings, out = find(find_results(args.directories)), Path(args.out)
    if args.kind == "cases":
        written = list(_write_cases(findings, out, args.count))
        for found in findings if args.root else ():
            written += _write(shown_cases(found, args.root, args.count), out, found.slug)
    elif args.kind == "features":
        written = _evaluate_features([one for one in findings if not is_zero_shot(one.runs[0])], args, out)
    elif args.kind == "curves":
        written = _write([*exhibits.overviews(findings), *exhibits.curves(findings)], out, "curves")
        for found in findings:
            written += _write(exhibits.training(found), out, found.slug)
    else:
        written = _compare_gradients(findings, out) if args.kind == "gradients" else []
        written += [path for found in findings for path in _write(EACH[args.kind](found), out, found.slug)]
    if not written:
        raise DataError(f"{args.kind}: nothing to draw. {_reasons(findings)}")
    print("\n".join(map(str, written)))


def _write(shown: Iterator[Exhibit] | Sequence[Exhibit], out: Path, name: str) -> list[Path]:
    return [path for one in shown for path in save_figure(one.figure, out / f"{name}-{one.name}")]


def _compare_gradients(findings: Sequence[Findings], out: Path) -> list[Path]:
    """Print what the gradients were in each quarter of the training, and write the rows beside each other."""
    lines = []
    for found in (*findings, *gradients_over_sets(findings)):
        for key, words in QUANTITIES.items():
            series = [one[key] for one in found.gradients if len(one.get(key, ())) >= 4]
            if series:
                parts, negative = quarters(series)
                texts = [f"{q.mean:+.3f}" + (f" ± {q.std:.3f}" if q.std is not None else "") for q in parts]
                lines.append([found.name, words, *texts, f"{negative:.0f}", len(series)])
    if lines:
        headers = ["method", "quantity", *(f"quarter {k}" for k in (1, 2, 3, 4)), "below 0 (%)", "seeds"]
        print(tabulate(lines, headers, disable_numparse=True) + "\n")
    return _write([*exhibits.compared_gradients(findings), *exhibits.mean_gradients(findings)], out, "all")


def _evaluate_features(findings: Sequence[Findings], args: argparse.Namespace, out: Path) -> list[Path]:
    """Print the linear evaluation of all runs (DHO, Table 3), and write t-SNE's plane of every row (Fig. 7)."""
    lines, written = [], []
    for found in findings:
        for run in found.runs:
            lines.append([found.name, run.get("seed"), *evaluate_features(folder(run), args.root)])
        written += _write(exhibits.features(found, args.classes), out, found.slug)
    written += _write(exhibits.compared_features(findings, args.classes), out, "all")
    headers = ["method", "seed", "top-1 (%)", "top-5 (%)", "test images"]
    print(tabulate(lines, headers, floatfmt=".1f", missingval="-") + "\n")
    return written


def _write_cases(findings: Sequence[Findings], out: Path, count: int) -> Iterator[Path]:
    """Write the cases of every row with two heads as text."""
    for found in findings:
        if kinds := found.cases(count):
            path = out / f"{found.slug}-cases.txt"
            parts = [f"Cases on {found.main_set}, first seed; the number is the image's place in the test set, from 0."]
            for kind, (total, cases) in kinds.items():
                lines = [[case.index, case.label, *map(_top, case.top.values())] for case in cases]
                headers = ["image", "class", *next((case.top for case in cases), ())]
                parts.append(f"Right: {kind} ({total:,} images)\n{tabulate(lines, headers) if cases else 'none'}")
            atomic_write_text(path, "\n\n".join(parts) + "\n")
            yield path


def _top(answers: Sequence[tuple[str, float]]) -> str:
    return "\n".join(f"{name} {percent:.1f}%" for name, percent in answers)


def _reasons(findings: Sequence[Findings]) -> str:
    return "; ".join(dict.fromkeys(reason for found in findings for reason in found.explain()))


if __name__ == "__main__":
    sys.exit(main())
