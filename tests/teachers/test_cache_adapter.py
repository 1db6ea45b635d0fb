"""Files of Tip-Adapter: ours and the released implementation's, and what is said of those that are none."""

import pickle

import pytest
import torch

from dho_plugin.engine.data import ClassInfo
from dho_plugin.errors import CheckpointError
from dho_plugin.teachers.cache_adapter import CacheAdapter, read_adapter, write_adapter

N, D, C = 6, 8, 3


@pytest.fixture
def released():
    """What the released implementation saves: half-precision tensors, a Parameter among them."""
    torch.manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(N, D), dim=1).half()
    return {
        "adapter_weight": torch.nn.Parameter(keys + 0.1),
        "best_alpha": 1.245,
        "best_beta": 2.1,
        "cache_keys": keys.T,
        "cache_values": torch.eye(C)[[0, 0, 1, 1, 2, 2]].half(),
        "clip_weights": torch.nn.functional.normalize(torch.randn(C, D), dim=1).T.half(),
    }


@pytest.fixture
def saved(tmp_path):
    def save(state):
        torch.save(state, tmp_path / "best.pt")
        return tmp_path / "best.pt"

    return save


def test_a_released_file_is_read_as_it_is(released, saved):
    read = read_adapter(saved(released))
    assert torch.equal(read.keys, released["adapter_weight"].detach().float())
    assert torch.equal(read.text, released["clip_weights"].T.float())
    assert torch.equal(read.values, released["cache_values"])
    assert (read.alpha, read.beta, read.zeta, read.classes, read.weights) == (1.245, 2.1, None, (), "")
    assert not read.keys.requires_grad


def test_our_file_has_the_released_names_and_comes_back(released, tmp_path):
    adapter = CacheAdapter(N, D, C, alpha=1.17, beta=5.5)
    first = released["cache_keys"].T.float()
    adapter.fill(first, torch.tensor([0, 0, 1, 1, 2, 2]))
    with torch.no_grad():
        adapter.keys += 1
    text = released["clip_weights"].T.float()
    facts = {"zeta": 0.01, "classes": [["n1", "a"], ["n2", "b"], ["n3", "c"]], "weights": "abc", "backbone": "RN50"}
    write_adapter(tmp_path / "tip_adapter.pt", adapter, text, **facts)
    raw = torch.load(tmp_path / "tip_adapter.pt", weights_only=True)
    assert released.keys() <= raw.keys()
    assert all(raw[k].shape == v.shape for k, v in released.items() if isinstance(v, torch.Tensor))
    assert torch.equal(raw["cache_keys"].T, first)
    read = read_adapter(tmp_path)  # the run's folder
    assert torch.equal(read.keys, first + 1)
    assert torch.equal(read.values, released["cache_values"])
    assert torch.equal(read.text, text)
    assert (read.alpha, read.beta, read.zeta, read.weights, read.backbone) == (1.17, 5.5, 0.01, "abc", "RN50")
    assert read.classes == (ClassInfo("n1", "a"), ClassInfo("n2", "b"), ClassInfo("n3", "c"))


def test_a_missing_file_says_which_script_makes_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"ADAPTER: there is no .*tip_adapter\.pt.*scripts/tip_adapter\.sh"):
        read_adapter(tmp_path)


WRONG = [
    ({"cache_keys": None}, "cache_keys of another kind"),
    ({"best_beta": torch.ones(2)}, "best_beta of another kind"),
    ({"adapter_weight": torch.randn(N + 1, D)}, r"do not fit together: adapter_weight \(7, 8\)"),
    ({"clip_weights": torch.randn(C, D)}, r"clip_weights \(3, 8\).*clip_weights \(D, C\)"),
    ({"cache_values": torch.randn(N)}, r"cache_values \(6,\)"),
    ({"cache_values": torch.full((N, C), 1 / 3)}, "one 1 in each row"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_parts_that_do_not_fit_are_named(released, saved, change, said):
    with pytest.raises(CheckpointError, match=said):
        read_adapter(saved({**released, **change}))


def test_another_checkpoint_is_no_adapter(saved):
    with pytest.raises(
        CheckpointError, match=r"no file of Tip-Adapter: adapter_weight, .*best_alpha, best_beta missing"
    ):
        read_adapter(saved({"state_dict": {}, "epoch": 3}))


class Hostile:
    """Would write a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_object_of_a_file_is_built(released, saved, tmp_path):
    path = saved({**released, "extra": Hostile(tmp_path / "written")})
    assert read_adapter(path).alpha == 1.245
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({**released, "extra": Hostile(tmp_path / "written")}, protocol=2))
    with pytest.raises(CheckpointError):
        read_adapter(tmp_path / "plain.pt")
    assert not (tmp_path / "written").exists()
