"""One table from the runs' results.json; ImageNet's columns are those of the paper's Table 13."""

import argparse
import csv
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import replace

from tabulate import tabulate

from dho_plugin.errors import run_command
from dho_plugin.head_rows import compare_heads, with_heads
from dho_plugin.paired import compare, format_comparisons
from dho_plugin.paper import beside_the_papers
from dho_plugin.paper_distill import OWN, TABLES, beside_the_papers_table, with_means
from dho_plugin.results import find_evaluations, find_results
from dho_plugin.rows import Row, Score, build_rows, shown_columns
from dho_plugin.wide import widen, widen_comparisons

FORMATS = {"plain": "simple", "markdown": "github", "latex": "latex_raw", "csv": ""}
PAIRED_FORMATS = ("plain", "markdown")


def format_table(rows: Sequence[Row], style: str = "plain", decimals: int = 1) -> str:
    """Format rows as text.

    Args:
        rows: what `build_rows` returned.
        style: "plain", "markdown", "latex", "html" or "csv" (there mean and standard deviation have a column each).
        decimals: digits after the point.

    Returns:
        The table.
    """
    labels, titles = _shown_labels(rows), list(dict.fromkeys(title for row in rows for title in row.scores))
    if style == "csv":
        return _format_csv(rows, labels, titles, decimals)
    escape = _escape_latex if style == "latex" else str
    body = [
        [
            *(escape(row.labels[name]) for name in labels),
            *(_format_score(row.scores.get(title), style, decimals) for title in titles),
            _format_seeds(row.seeds),
        ]
        for row in rows
    ]
    headers = [*labels, *map(escape, titles), "Seeds"]
    align = ["left"] * len(labels) + ["right"] * (len(headers) - len(labels))
    return tabulate(body, headers, tablefmt=FORMATS.get(style, style), disable_numparse=True, colalign=align)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of all runs below some folders.

    Args:
        argv: command line; None reads `sys.argv`.

    Returns:
        0, or 2 where there is nothing to show.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.paired and args.format not in PAIRED_FORMATS:
        parser.error(f"--paired is a second table: use --format {' or '.join(PAIRED_FORMATS)}")
    return run_command(lambda: print(report(args)))


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(prog="python -m dho_plugin.tables", description=__doc__)
    parser.add_argument("directories", nargs="+", metavar="DIR", help="folder with runs; every results.json counts")
    parser.add_argument("--format", choices=FORMATS, default="plain")
    parser.add_argument("--decimals", type=int, choices=range(7), default=1, metavar="0-6")
    parser.add_argument("--paired", action="store_true", help="add what DHO and unlabeled images change, seed by seed")
    parser.add_argument("--heads", action="store_true", help="add what each of two heads reaches alone")
    parser.add_argument(
        "--wide",
        action="store_true",
        help="one row a method: the numbers of labels become columns, of Val and OOD alone",
    )
    parser.add_argument("--paper", action="store_true", help="put the paper's rows beside ours (runs on imagenet only)")
    parser.add_argument(
        "--paper-table",
        choices=(*TABLES, OWN),
        help="put this table of the paper beside ours, in the place of Table 13; own: those rows of 1 and 12 that have "
        "one of ours beside them",
    )
    parser.add_argument("--mean", action="store_true", help="add the means over the data sets, the paper's beside them")
    parser.add_argument(
        "--evaluations", action="store_true", help="show what trained runs reached in later evaluations, instead"
    )
    return parser


def report(args: argparse.Namespace) -> str:
    """Return all that a command line asks for.

    Raises:
        DHOError: nothing to show, or rows that the paper's do not fit.
    """
    results = (find_evaluations if args.evaluations else find_results)(args.directories)
    rows = build_rows(results)
    if args.evaluations:  # of the shifted sets only
        rows = [replace(row, scores={k: v for k, v in row.scores.items() if k != "Val"} or row.scores) for row in rows]
    if args.paper_table:
        rows = beside_the_papers_table(rows, args.paper_table)
    elif args.paper:
        rows = beside_the_papers(rows)
    rows = with_means(rows) if args.mean else rows
    shown = with_heads(rows) if args.heads else rows
    table = format_table(widen(shown) if args.wide else shown, args.format, args.decimals)
    if not args.paired:
        return table
    comparisons = compare(results) + (compare_heads(rows) if args.heads else [])
    comparisons = widen_comparisons(comparisons) if args.wide else comparisons
    return table + "\n\n" + format_comparisons(comparisons, FORMATS[args.format], args.decimals, ranges=not args.wide)


def _shown_labels(rows: Sequence[Row]) -> list[str]:
    """Source is a column beside the paper's rows, Config where rows are alike without it."""
    source = ["Source"] if len({row.labels["Source"] for row in rows}) > 1 else []
    return shown_columns(
        [row.labels for row in rows], [*source, "Method", "Labeled", "Teacher", "Unlabeled"], ["Config"]
    )


def _format_seeds(seeds: int | None) -> str:
    return "-" if seeds is None else str(seeds)


def _format_score(score: Score | None, style: str, decimals: int) -> str:
    if score is None:
        return "-"
    mean = f"{score.mean:.{decimals}f}"
    if score.std is None:
        return mean
    std = f"{score.std:.{decimals}f}"
    return rf"${mean} \pm {std}$" if style == "latex" else f"{mean} ± {std}"


def _escape_latex(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _format_csv(rows: Sequence[Row], labels: list[str], titles: list[str], decimals: int) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*labels, *(column for name in titles for column in (name, f"{name} std")), "Seeds"])
    for row in rows:
        pairs = [(score.mean, score.std) if score else (None, None) for score in map(row.scores.get, titles)]
        texts = ["" if number is None else f"{number:.{decimals}f}" for pair in pairs for number in pair]
        writer.writerow([*(row.labels[name] for name in labels), *texts, _format_seeds(row.seeds)])
    return stream.getvalue().rstrip("\n")


if __name__ == "__main__":
    sys.exit(main())
