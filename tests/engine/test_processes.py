import pytest
import torch
from accelerate import PartialState

from dho_plugin.engine import processes
from dho_plugin.engine.config import get_cfg_default
from dho_plugin.engine.device import build_accelerator
from dho_plugin.engine.processes import check_divides, gather_rows, only_main_prints, share
from dho_plugin.errors import ConfigError


class Process:
    """What `share` and `gather_rows` use of an Accelerator, with the other processes' tensors at hand."""

    device = torch.device("cpu")

    def __init__(self, index: int, world: int):
        self.process_index, self.num_processes = index, world
        self.sent: list[torch.Tensor] = []
        self.others: list[list[torch.Tensor]] = []

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        self.sent.append(part)
        everyone = self.others or [self.sent] * self.num_processes
        return torch.cat([sent[len(self.sent) - 1] for sent in everyone])


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [0, 1, 2, 6, 10])
def test_shares_cover_every_row_once_in_order(total, world):
    shares = [share(total, Process(index, world)) for index in range(world)]
    assert [row for one in shares for row in range(total)[one]] == list(range(total))


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize(("total", "world"), [(10, 3), (4, 3), (1, 2), (6, 2)])
def test_all_rows_come_back_in_order(total, world, at_once, monkeypatch):
    monkeypatch.setattr(processes, "ROWS_AT_ONCE", at_once)
    rows = torch.arange(total * 2, dtype=torch.float16).reshape(total, 2)
    members = [Process(index, world) for index in range(world)]
    for member in members:  # first what each sends, then what each receives
        gather_rows(rows[share(total, member)], total, member)
    for member in members:
        receiver = Process(member.process_index, world)
        receiver.others = [other.sent for other in members]
        assert torch.equal(gather_rows(rows[share(total, receiver)], total, receiver), rows)


def test_one_process_keeps_its_rows():
    rows = torch.arange(3)
    assert gather_rows(rows, 3, Process(0, 1)) is rows


def test_only_the_main_process_prints(monkeypatch, capsys):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with only_main_prints():
            print("by", rank)
    assert capsys.readouterr().out == "by 0\n"


@pytest.mark.parametrize(("batch", "parts"), [(4, 3), (2, 4), (1, 2)])
def test_a_batch_that_cannot_be_shared_equally_is_refused(batch, parts):
    with pytest.raises(ConfigError, match=f"SIZE is {batch}.*among {parts}"):
        check_divides("SIZE", batch, parts)
    check_divides("SIZE", batch * parts, parts)


def test_a_second_trainer_of_a_process_has_a_device_and_precision_of_its_own():
    cfg = get_cfg_default()
    cfg.USE_CUDA = False
    first = build_accelerator(cfg, "bf16")
    assert first.mixed_precision == "bf16"
    PartialState().device = torch.device("meta")  # as if it had computed on a GPU
    second = build_accelerator(cfg, "fp32")
    assert (second.device.type, second.mixed_precision) == ("cpu", "no")
