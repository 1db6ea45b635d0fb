"""Run a host's train.py with or without `import dho_plugin.register`, as a user would who has never heard of patches.

python scripts/host_plain.py plain|plugin WEIGHTS train.py ARGS...: prints, behind what the host prints, a sum over the
weights that it saved. Both runs must print the same (scripts/try_hosts.sh compares them).
"""

import hashlib
import importlib
import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

import torch


def prepare(script: str, weights: str) -> None:
    """Let Dassl be imported without wilds and gdown, and the host's CLIP be loaded from a file."""
    sys.path.insert(0, str(Path(script).resolve().parent))
    sys.modules["dassl.data.datasets.dg.wilds"] = ModuleType("dassl.data.datasets.dg.wilds")
    if importlib.util.find_spec("gdown") is None:
        sys.modules["gdown"] = ModuleType("gdown")
    importlib.import_module("clip.clip")._download = lambda *_, **__: weights


def digest(folder: str) -> str:
    """Return a sum over all weights that a run saved, to the last bit."""
    total = hashlib.sha256()
    for path in sorted(Path(folder).glob("*/model.pth.tar-*")):
        for name, value in sorted(torch.load(path)["state_dict"].items()):
            total.update(f"{path.relative_to(folder)} {name}".encode() + value.numpy().tobytes())
    return total.hexdigest()[:16]


if __name__ == "__main__":
    kind, weights, script, *args = sys.argv[1:]
    prepare(script, weights)
    if kind == "plugin":
        importlib.import_module("dho_plugin.register")
    sys.argv = [script, *args]
    runpy.run_path(script, run_name="__main__")
    here = any(name.startswith("dho_plugin") for name in sys.modules)
    if here != (kind == "plugin"):
        sys.exit(f"{kind}: dho_plugin was {'not ' * (not here)}imported")
    print(f"saved weights: {digest(args[args.index('--output-dir') + 1])}")
