from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dho_plugin.engine.config import get_cfg_default
from dho_plugin.engine.data import Datum
from dho_plugin.engine.image_sets import ViewDataset
from dho_plugin.engine.streams import TrainingStreams
from dho_plugin.engine.views import Preprocess, ViewSpec


def test_a_stream_reads_jpegs_with_the_gap_of_the_config(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(path)
    items = [Datum(str(path), 0, index=0)] * 2
    streams = TrainingStreams()
    streams.device, streams.accelerator = "cpu", SimpleNamespace(process_index=0, num_processes=1)
    streams.student_preprocess = Preprocess(16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    streams.dataset = SimpleNamespace(train_x=items, train_u=[])
    streams.cfg = get_cfg_default()
    settings = ["SEED", 1, "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 2, "OPTIM.MAX_EPOCH", 1]
    streams.cfg.merge_from_list([*settings, "INPUT.TRANSFORMS", ["random_flip"]])
    first = {}
    for gap in (0.0, 4.0):
        streams.cfg.INPUT.JPEG_GAP = gap
        first[gap] = next(streams.train_streams(0)[0])["img"]
        plain = ViewDataset(items, streams.student_preprocess, views=streams.view_spec(), jpeg_gap=gap)
        assert any(torch.equal(first[gap][0], plain[0, view]["img"]) for view in (0, 1))
    assert not torch.equal(first[0.0], first[4.0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], ViewSpec(seed=0, scale=(0.08, 1.0), crop=False, flip=False)),
        (
            ["INPUT.TRANSFORMS", ["random_resized_crop", "normalize"], "INPUT.RRCROP_SCALE", (0.5, 1.0)],
            ViewSpec(seed=0, scale=(0.5, 1.0), crop=True, flip=False),
        ),
        (["INPUT.TRANSFORMS", ["random_flip"], "INPUT.VIEW_SEED", 7], ViewSpec(seed=7, crop=False, flip=True)),
    ],
)
def test_views_are_what_the_config_says(settings, expected):
    streams = TrainingStreams()
    streams.cfg = get_cfg_default()
    streams.cfg.merge_from_list(settings)
    assert streams.view_spec() == expected


@pytest.mark.parametrize(
    ("count", "own_size", "expected"),
    [
        ("train_x", 0, 10 // 4),
        ("train_u", 0, 40 // 4),
        ("smaller_one", 0, 10 // 4),
        ("train_u", 30, 40 // 30),
        ("smaller_one", 30, 40 // 30),
        ("train_u", 50, 1),  # fewer images than a batch: a step all the same
    ],
)
def test_how_many_steps_an_epoch_has(count, own_size, expected):
    streams = TrainingStreams()
    streams.dataset = SimpleNamespace(train_x=range(10), train_u=range(30))
    streams.cfg = get_cfg_default()
    settings = ["TRAIN.COUNT_ITER", count, "DATALOADER.TRAIN_X.BATCH_SIZE", 4, "OPTIM.MAX_EPOCH", 7]
    if own_size:
        settings += ["DATALOADER.TRAIN_U.SAME_AS_X", False, "DATALOADER.TRAIN_U.BATCH_SIZE", own_size]
    streams.cfg.merge_from_list(settings)
    assert streams.steps_per_epoch() == expected
    assert streams.total_steps() == 7 * expected
