"""What README says is true: its example runs, its keys, files and commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from dho_plugin import ood, tables
from dho_plugin.engine.config import flatten, get_cfg_default
from dho_plugin.train import build_parser, setup_cfg

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_example_runs(code):
    scope = {}
    exec(code, scope)
    assert scope["features"].grad.abs().sum() > 0
    assert scope["probabilities"].shape == (4, 10)


def test_every_key_in_the_table_exists_with_that_default():
    defaults = dict(flatten(get_cfg_default().TRAINER.DHO))
    table = README[README.index("### The keys of DHO") :].split("\n\n")[0]
    named = set()
    for row in table.splitlines()[3:]:
        keys, _, default = (cell.strip() for cell in row.strip("|").split(" | "))
        first, *rest = re.findall(r"`([^`]+)`", keys)
        keys = [first, *(first.rsplit(".", 1)[0] + key if key.startswith(".") else key for key in rest)]
        named |= set(keys)
        for key, value in zip(keys, default.split(", "), strict=False):
            if value != "-":
                assert str(defaults[key]).removesuffix(".0") == value, key
    assert named == set(defaults)


def test_the_commands_exist():
    commands = re.findall(r"^(bash scripts/\S+|python -m \S+)", README, re.MULTILINE)
    assert commands
    for command in commands:
        what = command.split()[-1]
        file = ROOT / what if command.startswith("bash") else ROOT / (what.replace(".", "/") + ".py")
        assert file.exists(), command
    long = README[README.index("python -m dho_plugin.train") :].split("```")[0].replace("\\\n", " ")
    cfg = setup_cfg(build_parser().parse_args(shlex.split(long)[3:]))
    assert cfg.TRAINER.NAME == "CoOp_DHO"
    ood.build_parser().parse_args(shlex.split("--alpha 0.4 --beta 0.5 output/my_run"))
    assert callable(tables.main)
