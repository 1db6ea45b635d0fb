"""What docs/HOSTS.md says of patches and commands is true."""

import re
import shlex
from pathlib import Path

from dho_plugin.hosts.launch import build_parser
from dho_plugin.hosts.patches import PATCHES

PAGE = (Path(__file__).parent.parent.parent / "docs/HOSTS.md").read_text(encoding="utf-8")


def test_every_patch_is_named():
    table = PAGE[PAGE.index("## What `dho-host` mends") :]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == [patch.name for patch in PATCHES]


def test_the_commands_are_understood():
    lines = re.findall(r"dho-host (.*?[^\\])\n", PAGE, re.DOTALL)
    commands = [shlex.split(line.replace("\\\n", " ")) for line in lines if "train.py --root" in line]
    assert len(commands) == 3
    for words in commands:
        args = build_parser().parse_args(words)
        assert (args.script, args.dassl) == ("train.py", "../Dassl.pytorch")
        assert "--trainer" in args.args
        assert args.args[-2:] == ["DATASET.NUM_SHOTS", "16"]
