"""Score stored logits again at any alpha and beta, without the model: `python -m dho_plugin.ood RUN_DIR...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tabulate import tabulate

from dho_plugin.core.inference import search_alpha_beta
from dho_plugin.engine.evaluator import TestLogits, score
from dho_plugin.engine.files import read_json, write_json
from dho_plugin.errors import CacheError, ConfigError, DataError, run_command
from dho_plugin.results import SHIFTED, find_results
from dho_plugin.rows import build_rows
from dho_plugin.tables import format_table

COLUMNS = ("accuracy", "ce_head_accuracy", "kd_head_accuracy", "macro_f1", "n")


def stored_sets(run_dir: str | Path) -> dict[str, Path]:
    """Return the stored logits of a run by test set: its own, ImageNet's shifted ones, others by name.

    Raises:
        CacheError: the run has none.
    """
    found = {path.stem: path for path in sorted((Path(run_dir) / "logits").glob("*.safetensors"))}
    found.pop("validation", None)
    if not found:
        raise CacheError(f"{run_dir} holds no stored logits (logits/*.safetensors): train or evaluate it first")
    first = ("test", "val", *SHIFTED)
    return {name: found[name] for name in dict.fromkeys((*first, *found)) if name in found}


def search(run_dir: str | Path) -> tuple[float, float]:
    """Return the (alpha, beta) that are best on the run's stored VALIDATION logits.

    Raises:
        ConfigError: the run kept no validation split, or has one head only; nothing is chosen on test data.
    """
    path = Path(run_dir) / "logits" / "validation.safetensors"
    if not path.exists():
        raise ConfigError(
            f"--search: {path} does not exist. alpha and beta are never chosen on test data: train with "
            "DATASET.NUM_VAL_SHOTS above 0 and TRAINER.DHO.SEARCH True, or give --alpha and --beta"
        )
    stored = TestLogits.load(path).readable()
    if stored.logits_kd is None:
        raise ConfigError(f"--search: {run_dir} has no KD head, so there is nothing to mix")
    found = search_alpha_beta(stored.logits_ce, stored.logits_kd, stored.labels)
    return found.alpha, found.beta


def rescore(run_dir: str | Path, alpha: float | None = None, beta: float | None = None) -> dict[str, dict[str, float]]:
    """Score every stored test set of a run.

    Args:
        run_dir: a run's folder.
        alpha: weight of the CE head; None takes the run's own.
        beta: temperature of the KD head; None takes the run's own.

    Returns:
        The metrics of each test set, as in results.json.

    Raises:
        DHOError: no stored logits, or alpha or beta out of range.
    """
    if not (Path(run_dir) / "results.json").is_file():
        raise CacheError(f"{run_dir} holds no results.json: it is not a finished run's folder (those end in seed<S>)")
    own = read_json(Path(run_dir) / "results.json")
    alpha = next(a for a in (alpha, own["alpha"], 1.0) if a is not None)
    beta = next(b for b in (beta, own["beta"], 1.0) if b is not None)
    return {name: score(TestLogits.load(path), alpha, beta) for name, path in stored_sets(run_dir).items()}


def table(metrics: dict[str, dict[str, float]]) -> str:
    """Return the metrics as a plain table, with the mean of the shifted sets' accuracies where all four are there."""
    unread = any(m.get("n_unreadable") for m in metrics.values())
    columns = [*COLUMNS, *(["n_unreadable"] if unread else [])]
    rows = [[name, *(m.get(column) for column in columns)] for name, m in metrics.items()]
    if all(name in metrics for name in SHIFTED):
        rows.append(["OOD mean", sum(metrics[name]["accuracy"] for name in SHIFTED) / len(SHIFTED)])
    headers = ["test set", "accuracy", "CE head", "KD head", "macro F1", "n", "unreadable"][: 1 + len(columns)]
    return tabulate(rows, headers=headers, floatfmt=".1f", missingval="-")


def over_seeds(scored: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the table of several runs, one row for those that differ in their seed only: mean and deviation.

    Args:
        scored: folder of a run -> what `rescore` returned.

    Raises:
        DataError: none of them is a trained run; later evaluations of runs have no place in a table of runs.
    """
    metrics = {Path(name): found for name, found in scored.items()}
    found = [(run, Path(run["path"]).parent) for run in find_results(scored)]  # a folder of others may lie in a run's
    return format_table(build_rows([{**run, "metrics": metrics[home]} for run, home in found if home in metrics]))


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(prog="python -m dho_plugin.ood", description=__doc__)
    parser.add_argument("run_dir", nargs="+", help="folders of runs (they hold results.json and logits/)")
    parser.add_argument("--alpha", type=float, help="weight of the CE head in [0, 1]; default: the run's own")
    parser.add_argument("--beta", type=float, help="temperature of the KD head above 0; default: the run's own")
    parser.add_argument("--search", action="store_true", help="choose both on the run's stored validation logits")
    parser.add_argument("--json", help="also write the metrics to this file")
    return parser


def report(args: argparse.Namespace) -> None:
    """Score the runs of a command line, print their tables and write the metrics where asked."""
    results = {}
    for run_dir in args.run_dir:
        alpha, beta = search(run_dir) if args.search else (args.alpha, args.beta)
        results[run_dir] = rescore(run_dir, alpha, beta)
        first = next(iter(results[run_dir].values()))
        mixed = f"alpha {first['alpha']}, beta {first['beta']}" if "alpha" in first else "no KD head"
        print(f"{run_dir}: {mixed}\n{table(results[run_dir])}\n")
    if args.json:
        write_json(args.json, results)
    if len(results) > 1:
        with suppress(DataError):
            print(over_seeds(results))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    return run_command(lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
