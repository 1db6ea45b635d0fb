from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from dho_plugin.engine.data import Datum
from dho_plugin.engine.image_sets import EvalDataset, ViewDataset
from dho_plugin.engine.loaders import StepBatches, eval_loader, train_loader
from dho_plugin.engine.views import Preprocess, ViewSpec
from dho_plugin.errors import DataError

PRE = Preprocess(16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.fixture
def items(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(7):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return [Datum(str(tmp_path / f"{number}.png"), number, index=number) for number in range(7)]


def training(items, workers, start=0, **options):
    data = ViewDataset(items, PRE, Preprocess(24, PRE.mean, PRE.std), views=ViewSpec(seed=1), **options)
    return list(train_loader(data, StepBatches(len(items), 4, 6, 5, "train_u", start), workers=workers))


def equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )


def test_every_pass_shows_each_image_once_in_its_own_order():
    flat = [pair for batch in StepBatches(10, 4, 25, seed=0, stream="x") for pair in batch]
    passes = [flat[start : start + 10] for start in range(0, 100, 10)]
    for number, one in enumerate(passes):
        assert sorted(one) == [(position, number) for position in range(10)]
    assert len({tuple(position for position, _ in one) for one in passes}) == 10


@pytest.mark.parametrize("views", [1, 3])
def test_a_fixed_number_of_views_is_shown_in_turn_and_leaves_the_order_alone(views):
    free = list(StepBatches(5, 4, 15, seed=0, stream="x"))
    fixed = list(StepBatches(5, 4, 15, seed=0, stream="x", views=views))
    assert [[(position, view % views) for position, view in batch] for batch in free] == fixed
    assert {view for batch in fixed for _, view in batch} == set(range(views))
    assert list(StepBatches(5, 4, 15, seed=0, stream="x", start_step=7, views=views)) == fixed[7:]


def test_first_places_are_spread_evenly():
    firsts = Counter(next(iter(StepBatches(5, 1, 1, seed, "x")))[0][0] for seed in range(1000))
    assert set(firsts) == set(range(5))
    assert sum((count - 200) ** 2 / 200 for count in firsts.values()) < 23.5  # chi-squared, 4 degrees, p = 1e-4


def test_a_batch_may_exceed_the_images():
    batches = list(StepBatches(3, 8, 2, seed=0, stream="x"))
    assert [len(batch) for batch in batches] == [8, 8]
    assert Counter(view for batch in batches for _, view in batch) == {0: 3, 1: 3, 2: 3, 3: 3, 4: 3, 5: 1}


def test_a_run_goes_on_at_any_step():
    whole = list(StepBatches(11, 4, 20, seed=2, stream="x"))
    for start in (1, 2, 7, 19, 20):
        rest = StepBatches(11, 4, 20, seed=2, stream="x", start_step=start)
        assert list(rest) == whole[start:]
        assert len(rest) == 20 - start
    assert list(StepBatches(11, 4, 30, seed=2, stream="x"))[:20] == whole


def test_seed_and_stream_change_the_order():
    orders = {
        tuple(position for position, _ in next(iter(StepBatches(20, 20, 1, seed, stream))))
        for seed in (0, 1)
        for stream in ("train_x", "train_u")
    }
    assert len(orders) == 4


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_each_batch(world):
    shares = [list(StepBatches(11, 4, 9, 2, "x", rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(StepBatches(11, 4, 9, seed=2, stream="x")):
        assert sorted(pair for share in shares for pair in share[step]) == sorted(batch)
        assert sum(len(share[step]) for share in shares) == 4


def test_a_stream_without_images_is_refused():
    with pytest.raises(DataError, match="'train_u' has no images"):
        StepBatches(0, 4, 1, seed=0, stream="train_u")


def test_training_numbers_do_not_depend_on_the_workers(items):
    plain = training(items, 0)
    assert plain[0]["img"].shape == (4, 3, 16, 16)
    assert plain[0]["img_teacher"].shape == (4, 3, 24, 24)
    assert plain[0]["label"].dtype == plain[0]["index"].dtype == torch.int64
    assert all(equal(a, b) for a, b in zip(plain, training(items, 2), strict=True))
    assert all(equal(a, b) for a, b in zip(plain[4:], training(items, 2, start=4), strict=True))


def test_skipping_gives_the_same_batches_with_workers(items):
    with open(items[2].impath, "r+b") as file:
        file.truncate(600)
    plain, parallel = training(items, 0, unreadable="skip"), training(items, 2, unreadable="skip")
    assert all(equal(a, b) for a, b in zip(plain, parallel, strict=True))
    assert items[2].impath not in {path for batch in plain for path in batch["impath"]}


def test_workers_share_what_they_know_of_damaged_files(items):
    with open(items[2].impath, "r+b") as file:
        file.truncate(600)
    data = ViewDataset(items, PRE, views=ViewSpec(seed=1), unreadable="skip")
    list(train_loader(data, StepBatches(7, 7, 2, 0, "x"), workers=2))
    assert data.damaged.nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_in_a_worker_gives_the_plain_message(items, workers):
    with open(items[2].impath, "r+b") as file:
        file.truncate(600)
    with pytest.raises(DataError) as error:
        list(eval_loader(EvalDataset(items, PRE), 4, workers=workers))
    assert str(error.value).startswith(items[2].impath)
    assert str(error.value).endswith("or set DATASET.UNREADABLE skip to go on without it.")
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_in_order(items, workers):
    loader = eval_loader(EvalDataset(items, PRE), 3, workers=workers)
    for _ in range(2):
        assert [batch["index"].tolist() for batch in loader] == [[0, 1, 2], [3, 4, 5], [6]]


def test_loading_leaves_the_global_generator_alone(items):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    training(items, 0)
    list(eval_loader(EvalDataset(items, PRE), 4, workers=1))
    assert torch.equal(torch.get_rng_state(), before)
