"""PromptSRC's Gaussian-weighted prompt aggregation: its weights, its sums and its state."""

import math

import pytest
import torch
from torch import nn

from dho_plugin.engine.averaging import WeightedSum, gaussian_weights
from dho_plugin.engine.checkpoint import load_checkpoint, save_checkpoint
from dho_plugin.errors import CheckpointError, ConfigError


def density(epoch, mean, std):
    return math.exp(-((epoch - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))


# GPA_MEAN, GPA_STD and MAX_EPOCH of PromptSRC's three configs, and what its few-shot config names for other data sets.
@pytest.mark.parametrize(("mean", "std", "epochs"), [(15, 1, 20), (6, 10, 20), (30, 30, 50), (45, 5, 50)])
def test_weights_are_the_normal_density_of_the_epochs_from_1(mean, std, epochs):
    raw = [density(epoch, mean, std) for epoch in range(1, epochs + 1)]
    weights = gaussian_weights(epochs, mean, std)
    assert weights == pytest.approx([w / sum(raw) for w in raw], rel=1e-12)
    assert sum(weights) == pytest.approx(1, rel=1e-12)
    assert weights.index(max(weights)) == mean - 1


def test_weights_of_a_few_epochs():
    assert gaussian_weights(1, 15, 1) == [1.0]
    assert gaussian_weights(0, 15, 1) == []
    early = gaussian_weights(3, 15, 1)  # a mean behind the end: nearly all on the last epoch
    assert early[2] == pytest.approx(1, abs=1e-5)
    assert early[1] / early[2] == pytest.approx(density(2, 15, 1) / density(3, 15, 1), rel=1e-12)


@pytest.mark.parametrize(("mean", "std", "said"), [
    (15, 0, "GPA_STD is 0; it must be greater than 0"),
    (15, -1.5, "GPA_STD is -1.5"),
    (1000, 1, "GPA_MEAN is 1000, too far from the epochs 1 to 20 for a GPA_STD of 1"),
])  # fmt: skip
def test_weights_that_cannot_be(mean, std, said):
    with pytest.raises(ConfigError, match=rf"TRAINER\.PROMPTSRC\.{said}"):
        gaussian_weights(20, mean, std)


class Tower(nn.Module):
    """A prompt that learns beside a frozen weight and a buffer."""

    def __init__(self):
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(3, 4))
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.register_buffer("token_prefix", torch.randn(2))


def after_epochs(average, model, draws, weights):
    """Add the epochs after which the prompt was each of `draws`."""
    for draw, weight in zip(draws, weights, strict=True):
        with torch.no_grad():
            model.prompt.copy_(draw)
        average.add(weight)


def test_the_sum_of_the_epochs_replaces_what_learns_and_nothing_else():
    torch.manual_seed(0)
    tower, head = Tower(), nn.Linear(2, 2)
    untouched = {k: v.clone() for k, v in tower.state_dict().items() if k != "prompt"}
    weights, average = gaussian_weights(4, 3, 1), WeightedSum({"tower": tower, "kd_head": head})
    expected = {"prompt": torch.zeros(3, 4, dtype=torch.float64), "weight": torch.zeros(2, 2, dtype=torch.float64)}
    for weight in weights:
        with torch.no_grad():
            tower.prompt.normal_()
            head.weight.normal_()
        last = tower.prompt.detach().clone()
        average.add(weight)
        assert torch.equal(tower.prompt, last)  # training goes on from its own weights
        expected["prompt"] += weight * tower.prompt.detach().double()
        expected["weight"] += weight * head.weight.detach().double()
    assert set(average.state_dict()["sums"]) == {"tower.prompt", "kd_head.weight", "kd_head.bias"}
    assert average.state_dict()["total"] == pytest.approx(1)
    average.copy_to_parameters()
    torch.testing.assert_close(tower.prompt.double(), expected["prompt"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(head.weight.double(), expected["weight"], rtol=1e-6, atol=1e-6)
    for key, value in untouched.items():
        assert torch.equal(tower.state_dict()[key], value)
    assert tower.prompt.requires_grad


def test_an_average_that_goes_on_from_its_file_ends_as_if_it_had_never_stopped(tmp_path):
    weights, draws = gaussian_weights(5, 3, 2), torch.randn(5, 3, 4)
    averages = []
    for stops in ([5], [2, 5]):
        model, done, path = Tower(), 0, tmp_path / f"model.pth.tar-{len(stops)}"
        average = WeightedSum({"tower": model})
        for stop in stops:
            if done:
                average = WeightedSum({"tower": model})
                average.load_state_dict(load_checkpoint(path)["meta"]["gpa"], sum(weights[:done]))
            after_epochs(average, model, draws[done:stop], weights[done:stop])
            save_checkpoint({"meta": {"gpa": average.state_dict()}}, path)
            done = stop
        averages.append(average.state_dict())
    assert torch.equal(*(average["sums"]["tower.prompt"] for average in averages))
    assert averages[0]["total"] == averages[1]["total"]


def test_stored_sums_are_copied_in():
    average = WeightedSum({"tower": Tower()})
    stored = {"total": 0.5, "sums": {"tower.prompt": torch.ones(3, 4)}}
    average.load_state_dict(stored, 0.5)
    average.add(0.5)
    assert torch.equal(stored["sums"]["tower.prompt"], torch.ones(3, 4))
    assert average.state_dict()["total"] == 1


def test_sums_of_other_weights_are_refused():
    average = WeightedSum({"tower": Tower()})
    average.add(0.25)
    with pytest.raises(
        CheckpointError, match=r"add up to 0\.250000, this run's add up to 0\.300000.*GPA_MEAN, GPA_STD"
    ):
        WeightedSum({"tower": Tower()}).load_state_dict(average.state_dict(), 0.3)


@pytest.mark.parametrize("sums", [
    None,
    {},
    {"tower.prompt": torch.zeros(4, 4)},
    {"tower.prompt": torch.zeros(3, 4), "kd_head.weight": torch.zeros(2, 2)},
    {"tower.ctx": torch.zeros(3, 4)},
])  # fmt: skip
def test_sums_of_another_model_are_refused(sums):
    state = {} if sums is None else {"total": 0.5, "sums": sums}
    with pytest.raises(CheckpointError, match=r"no running average.*needed are \['tower.prompt'\]"):
        WeightedSum({"tower": Tower()}).load_state_dict(state, 0.5)
