"""The house's floors: a file imports only from its own floor or from floors below, and never `trainers`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Longest match wins. Modules of one floor may import each other, except the methods in dho_plugin.trainers.
FLOORS = {
    "dho_plugin": 0,
    "dho_plugin.errors": 0,
    "dho_plugin.core": 1,
    "dho_plugin.engine": 2,
    "dho_plugin.data": 3,
    "dho_plugin.models": 3,
    "dho_plugin.teachers": 3,
    "dho_plugin.caching": 4,
    "dho_plugin.filling": 4,
    "dho_plugin.passes": 4,
    "dho_plugin.evaluation": 4,
    "dho_plugin.dho_trainer": 4,
    "dho_plugin.distill_trainer": 4,
    "dho_plugin.trainers": 5,
    "dho_plugin.analysis": 5,
    "dho_plugin.train": 6,
    "dho_plugin.cache": 6,
    "dho_plugin.ood": 6,
    "dho_plugin.runs": 6,
    "dho_plugin.predict": 6,
    "dho_plugin.export": 6,
    "dho_plugin.tables": 6,
    "dho_plugin.results": 6,
    "dho_plugin.rows": 6,
    "dho_plugin.paired": 6,
    "dho_plugin.wide": 6,
    "dho_plugin.head_rows": 6,
    "dho_plugin.paper": 6,
    "dho_plugin.hosts": 6,
    "dho_plugin.findings": 6,
    "dho_plugin.case_images": 6,
    "dho_plugin.exhibits": 6,
    "dho_plugin.report": 6,
    "dho_plugin.run_features": 6,
    "dho_plugin.analyze": 6,
    "dho_plugin.register": 6,
    "dho_plugin.paper_distill": 6,
}


def floor(module: str) -> int:
    known = [name for name in FLOORS if module == name or module.startswith(f"{name}.")]
    name = max(known, key=len)
    assert name != "dho_plugin" or module == "dho_plugin", f"{module} has no floor: add it to FLOORS"
    return FLOORS[name]


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write dho_plugin...."
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("dho_plugin", *parts) if parts[0] == "trainers" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted([*ROOT.glob("dho_plugin/**/*.py"), *ROOT.glob("trainers/*.py")])


def upward(module: str, imported: list[str]) -> list[str]:
    return [name for name in imported if name.startswith("dho_plugin.") and floor(name) > floor(module)]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_upward_import(path):
    imported = imports(path)
    assert upward(module_name(path), imported) == []
    assert not [name for name in imported if name.split(".")[0] == "trainers"], "import dho_plugin.trainers instead"


@pytest.mark.parametrize("path", sorted(ROOT.glob("trainers/*.py")), ids=module_name)
def test_methods_do_not_import_each_other(path):
    if path.name != "__init__.py":
        assert not [name for name in imports(path) if name.startswith("dho_plugin.trainers")]


def test_an_upward_import_is_found():
    assert upward("dho_plugin.core.losses", ["dho_plugin.engine.optim.x", "dho_plugin.errors.DHOError"])


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_sizes(path):
    limit = 150 if path.parent.name == "trainers" else 300
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= limit, f"{path}: {lines} lines; split it at {limit}"
