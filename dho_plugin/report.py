"""One HTML file that shows all runs below some folders: tables, figures, cost, settings; nothing is fetched for it."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from yacs.config import CfgNode

import dho_plugin
from dho_plugin import exhibits
from dho_plugin.analysis.outcomes import CE, KD, MIX
from dho_plugin.analysis.style import to_svg
from dho_plugin.case_images import shown_cases
from dho_plugin.engine.config import as_plain, flatten, get_cfg_default
from dho_plugin.engine.files import atomic_write_text
from dho_plugin.errors import run_command
from dho_plugin.findings import Findings, find, folder
from dho_plugin.paired import compare, format_comparisons
from dho_plugin.results import find_results
from dho_plugin.rows import build_rows
from dho_plugin.tables import format_table

FILES = ("results.json", "config.json", "log.txt", "gradients.jsonl", "features.safetensors", "logits", "tensorboard")
_OF_EACH_RUN = ("OUTPUT_DIR", "SEED")  # keys that say nothing of the method


def write_report(directories: Sequence[str | Path], out: str | Path, root: str = "") -> Path:
    """Write the report of all runs below some folders.

    Args:
        directories: folders to search for results.json.
        out: the HTML file.
        root: where the data lie, for the images of the cases; "" shows none.

    Returns:
        Its path.

    Raises:
        DataError: a directory is missing, or no usable result was found.
    """
    results, out = find_results(directories), Path(out)
    findings = find(results)
    environment = Environment(
        loader=PackageLoader("dho_plugin", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title=_title(findings),
        made=datetime.date.today().isoformat(),
        version=dho_plugin.__version__,
        directories=[str(directory) for directory in directories],
        runs=len(results),
        table=_table(format_table(build_rows(results), "html")),
        paired=_paired(results),
        overviews=[_figure(one, "all") for one in _of_all(findings)],
        rows=[_row(found, out, root) for found in findings],
        versions=_versions(results),
    )
    atomic_write_text(out, page)
    return out


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(prog="dho-report", description=__doc__)
    parser.add_argument("directories", nargs="+", metavar="DIR", help="folder with runs; every results.json counts")
    parser.add_argument("--out", default="report.html", help="the file to write (default: report.html)")
    parser.add_argument("--root", default="", help="where the data lie: also show the images of the cases")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of a command line.

    Args:
        argv: command line; None reads `sys.argv`.

    Returns:
        0, or 2 where there is nothing to show.
    """
    args = build_parser().parse_args(argv)
    return run_command(lambda: _carry_out(args))


def _carry_out(args: argparse.Namespace) -> None:
    path = write_report(args.directories, args.out, args.root)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    if args.open:
        webbrowser.open(path.resolve().as_uri())


def _of_all(findings: Sequence[Findings]) -> list[exhibits.Exhibit]:
    makers = (
        exhibits.overviews,
        exhibits.curves,
        exhibits.compared_gradients,
        exhibits.mean_gradients,
        exhibits.compared_features,
    )
    return [one for maker in makers for one in maker(findings)]


def _title(findings: Sequence[Findings]) -> str:
    return "DHO runs on " + ", ".join(dict.fromkeys(found.row.labels["Dataset"] for found in findings))


def _table(html: str) -> Markup:
    return Markup(html)  # tabulate escapes what stands in the cells


def _paired(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the table of paired tests, or the sentence that stands in its place, and the note below it."""
    text, _, note = format_comparisons(compare(results), "html").partition("\n\n")
    return {"table": Markup(text) if note else None, "note": note or text}


def _figure(one: exhibits.Exhibit, row: str) -> dict[str, Any]:
    svg = to_svg(one.figure, f"{row}-{one.name}", one.caption)
    return {"svg": Markup(svg), "caption": one.caption}


def _row(found: Findings, out: Path, root: str) -> dict[str, Any]:
    """Return what the page shows of one row of the table."""
    makers = (exhibits.heads, exhibits.surface, exhibits.features, exhibits.training, exhibits.gradients)
    figures = [_figure(one, found.slug) for maker in makers for one in maker(found)]
    score = next((score for score in found.row.scores.values() if score is not None), None)
    return {
        "id": found.slug,
        "name": found.name,
        "labels": {name: text for name, text in found.row.labels.items() if name != "Source"},
        "score": f"{score.mean:.1f}%" if score else "",
        "figures": figures,
        "heads": list(_head_lines(found)),
        "cases": found.cases(),
        "pictures": [_figure(one, found.slug) for one in shown_cases(found, root)] if root else [],
        "linear": found.linear_evaluations,
        "n": found.n,
        "main_set": found.main_set,
        "cost": [_cost(run) for run in found.runs],
        "settings": _settings(found.runs[0].get("config") or {}),
        "files": [_links(run, out) for run in found.runs],
        "left_out": found.explain(),
    }


def _head_lines(found: Findings) -> Iterator[list[str]]:
    """Yield, for each test set, its name, and accuracy and calibration error of each head."""
    for name, heads in found.scores.items():
        line = [name]
        for quantity in ("accuracy", "ece"):
            for head in (CE, KD, MIX):
                values = [getattr(score, quantity) for score in heads.get(head, ())]
                line.append(f"{sum(values) / len(values):.1f}" if values else "-")
        yield line


def _cost(run: dict[str, Any]) -> dict[str, str]:
    wait, memory = (run.get("data_wait") or {}).get("share"), run.get("peak_memory_mb")
    return {
        "seed": "-" if run.get("seed") is None else str(run["seed"]),
        "seconds": "-" if run.get("seconds") is None else f"{run['seconds']:,.0f}",
        "wait": "-" if wait is None else f"{100 * wait:.1f}",
        "memory": "-" if memory is None else f"{memory:,.0f}",
        "processes": str(run.get("processes") or "-"),
    }


def _settings(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the keys that are not at their defaults."""
    defaults = dict(flatten(CfgNode(as_plain(get_cfg_default()))))
    mine = dict(flatten(CfgNode(config)))
    return [(k, str(v)) for k, v in sorted(mine.items()) if defaults.get(k) != v and k not in _OF_EACH_RUN]


def _links(run: dict[str, Any], out: Path) -> dict[str, Any]:
    """Return the run's folder and its files, as links from where the page lies."""
    base = folder(run)
    links = [(name, _link(base / name, out)) for name in FILES if (base / name).exists()]
    return {"folder": str(base), "link": _link(base, out), "files": links}


def _link(path: Path, out: Path) -> str:
    return quote(os.path.relpath(path, out.resolve().parent))


def _versions(results: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    found: dict[str, set[str]] = {}
    for run in results:
        for name, version in (run.get("versions") or {}).items():
            found.setdefault(name, set()).add(version)
    return [(name, ", ".join(sorted(versions))) for name, versions in found.items()]


if __name__ == "__main__":
    sys.exit(main())
