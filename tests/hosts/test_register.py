"""`import dho_plugin.register` adds names and keys to a host, and changes nothing that is there."""

import json
import shutil
import subprocess
import sys

import pytest
from yacs.config import CfgNode

from dho_plugin.errors import ConfigError
from dho_plugin.hosts import protocol
from dho_plugin.hosts.config import add_missing, check_dho
from dho_plugin.hosts.own import InHost, own_cfg
from dho_plugin.hosts.registry import resolve_trainers
from dho_plugin.hosts.twin import HostDHO

# Runs the small host's train.py before and after the plugin is imported, and prints exactly what training gives.
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import train

def run(out):
    trainer = train.main(train.build_parser().parse_args([*sys.argv[2:], "OUTPUT_DIR", sys.argv[1] + out]))
    state = {k: v.tolist() for k, v in trainer.model.state_dict().items()}
    return [[loss["loss"] for loss in trainer.losses], state, [o.tolist() for o in trainer.outputs]]

runs = [run(".plain")]
assert not any(name.startswith("dho_plugin") for name in sys.modules)
import dho_plugin.register
runs.append(run(".plugin"))
print(json.dumps(runs))
"""


def test_a_hosts_own_trainer_gives_identical_numbers(small_host, host_root, tmp_path):
    line = ("--root", host_root, "--trainer", "Prompted", "DATASET.NAME", "ImageNet", "DATASET.NUM_SHOTS", "2")
    line += ("DATALOADER.TRAIN_X.BATCH_SIZE", "4")
    host = shutil.copytree(small_host.folder, tmp_path / "host")
    words = [sys.executable, "-W", "ignore", "-c", SCRIPT, *map(str, (host, *line))]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain, with_plugin = json.loads(done.stdout.splitlines()[-1])
    assert len(plain[0]) == 4
    assert plain == with_plugin


def test_names_and_keys_are_added(small_host):
    from dassl.config import get_cfg_default
    from dassl.engine import TRAINER_REGISTRY

    cfg, names = get_cfg_default(), TRAINER_REGISTRY.registered_names()
    assert (cfg.TRAINER.DHO.LAMBDA, cfg.TRAINER.DHO.ROUTE, cfg.MODEL.BACKBONE.CKPT) == (0.5, "auto", "")
    assert cfg.OPTIM.LR == 0.05  # the host's, not ours
    assert names[0] == "Frozen"
    assert {"CoOp_DHO", "LinearProbe", "Frozen_DHO", "Frozen_DHO_twin"} <= set(names)
    assert len(names) == len(set(names))


def test_which_trainer_a_name_means(small_host):
    from dassl.engine import TRAINER_REGISTRY

    trainers = small_host.trainers
    assert TRAINER_REGISTRY.get("Frozen") is trainers.Frozen
    twin = TRAINER_REGISTRY.get("Frozen_DHO")
    assert issubclass(twin, HostDHO)
    assert issubclass(twin, trainers.Frozen)
    assert TRAINER_REGISTRY.get("Frozen_DHO") is twin
    assert issubclass(TRAINER_REGISTRY.get("LinearProbe_DHO"), InHost)
    with pytest.raises(KeyError, match="Nothing_DHO does not exist"):
        TRAINER_REGISTRY.get("Nothing_DHO")


def test_the_hosts_own_registrations_come_first(small_host, monkeypatch):
    from dassl.engine import TRAINER_REGISTRY

    own = type("LinearProbe_DHO", (small_host.trainers.Frozen,), {})
    base = type("CoOp", (small_host.trainers.Frozen,), {})
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "LinearProbe_DHO", own)
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "CoOp", base)
    assert TRAINER_REGISTRY.get("LinearProbe_DHO") is own
    assert TRAINER_REGISTRY.get("CoOp") is base
    assert issubclass(TRAINER_REGISTRY.get("CoOp_DHO"), InHost)  # ours, as we have one
    assert issubclass(TRAINER_REGISTRY.get("CoOp_DHO_twin"), base)


def test_a_second_import_changes_nothing(small_host):
    from dassl.engine import TRAINER_REGISTRY

    before = TRAINER_REGISTRY.get
    resolve_trainers({})
    assert TRAINER_REGISTRY.get == before


def test_values_that_are_there_stay():
    node = CfgNode({"A": {"B": 1}, "C": 2})
    add_missing(node, {"A": {"B": 9, "D": 3}, "C": {"E": 4}, "F": {"G": 5}})
    assert node == {"A": {"B": 1, "D": 3}, "C": 2, "F": {"G": 5}}
    assert isinstance(node.F, CfgNode)


# Wrong hosts --------------------------------------------------------------------------------------------------------


def test_without_dassl(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "dassl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if "small_host" not in folder])
    with pytest.raises(ConfigError, match=r"no Dassl: looked for dassl\.engine with TRAINER_REGISTRY.*--dassl"):
        protocol.dassl("dassl.engine")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("SimpleTrainer = 1", r"Dassl 0\.1: dassl\.engine has no TRAINER_REGISTRY; written for Dassl 0\.6\.3"),
        ("import wilds_of_ours", r"importing dassl\.engine needs the package 'wilds_of_ours'.*dho-host"),
    ],
)
def test_with_another_dassl(tmp_path, monkeypatch, code, message):
    for name in [name for name in sys.modules if name.partition(".")[0] == "dassl"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "dassl").mkdir()
    (tmp_path / "dassl/__init__.py").write_text("__version__ = '0.1'\n")
    (tmp_path / "dassl/engine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        protocol.dassl("dassl.engine")
    for name in [name for name in sys.modules if name.partition(".")[0] == "dassl"]:
        monkeypatch.delitem(sys.modules, name)


def test_a_config_without_our_keys(small_host):
    for check in (check_dho, own_cfg):
        with pytest.raises(ConfigError, match=r"no TRAINER\.DHO: import dho_plugin\.register in its train\.py"):
            check(CfgNode({"TRAINER": {}}))
