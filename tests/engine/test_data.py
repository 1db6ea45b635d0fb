import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dho_plugin.engine.data import ClassInfo, DatasetBase, Datum
from dho_plugin.engine.decode import read_image
from dho_plugin.engine.image_sets import EvalDataset, ViewDataset
from dho_plugin.engine.views import Preprocess, ViewSpec, apply_view, draw_view, eval_transform
from dho_plugin.errors import ConfigError, DataError

STUDENT = Preprocess(16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
TEACHER = Preprocess(24, (0.4, 0.5, 0.6), (0.3, 0.2, 0.1), "bilinear")
VIEWS = ViewSpec(seed=3, scale=(0.3, 0.9))


@pytest.fixture
def items(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for number in range(6):
        path = tmp_path / f"bild ä {number}.png"
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
        found.append(Datum(str(path), number % 3, domain=1, index=100 + number))
    return found


def truncate(item):
    with open(item.impath, "r+b") as file:
        file.truncate(600)


def test_dataset_offers_its_classes_as_dassl_does():
    classes = [ClassInfo("n2", "missile"), ClassInfo("n7", "missile")]
    data = DatasetBase(train_x=[Datum("a.png", 0)], test=[Datum("b.png", 1)], classes=classes)
    assert (data.num_classes, data.classnames, data.class_keys) == (2, ["missile", "missile"], ["n2", "n7"])
    assert data.lab2cname == {0: "missile", 1: "missile"}
    assert (data.train_u, data.val, len(data.train_x), len(data.test)) == ([], [], 1, 1)
    data.require_training()


def test_dataset_without_training_images_says_so():
    class OnlyTests(DatasetBase):
        no_training = "Train elsewhere."

    with pytest.raises(DataError, match=r"OnlyTests has no training images\. Train elsewhere."):
        OnlyTests(test=[Datum("b.png", 0)], classes=[ClassInfo("n2", "missile")]).require_training()


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_colour_mode_is_read_as_rgb(tmp_path, mode):
    bars = np.tile(np.arange(20) % 3 // 2 * 255, (20, 1)).astype(np.uint8)
    image = Image.fromarray(bars).convert("RGB").convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png")
    image.save(path)
    read = read_image(str(path))
    assert (read.mode, read.size) == ("RGB", (20, 20))
    assert np.abs(np.asarray(read).astype(int) - bars[..., None]).max() <= 2


def test_palette_with_transparency_keeps_its_colours_and_warns_of_nothing(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 30, 40])
    image.save(tmp_path / "x.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(str(tmp_path / "x.png")).getpixel((0, 0)) == (200, 30, 40)


def test_sixteen_bit_gray_is_scaled_and_not_clipped(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 50).astype(np.uint16), (3, 1))
    Image.fromarray(ramp).save(tmp_path / "x.png")
    read = np.asarray(read_image(str(tmp_path / "x.png")))
    np.testing.assert_array_equal(read[..., 0], ramp // 257)
    assert read[0, -1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "missing"])
def test_an_unreadable_file_is_named_with_the_choice_to_skip_it(items, kind, tmp_path):
    path = tmp_path / "damaged.png"
    whole = Path(items[0].impath).read_bytes()
    path.write_bytes({"truncated": whole[:600], "text": b"hello"}.get(kind, b""))
    if kind == "missing":
        path.unlink()
    with pytest.raises(DataError) as error:
        read_image(str(path))
    assert str(path) in str(error.value)
    assert "DATASET.UNREADABLE skip" in str(error.value)


def test_a_training_row_has_dassls_keys_and_one_view_for_both_models(items):
    row = ViewDataset(items, STUDENT, TEACHER, views=VIEWS)[4, 7]
    image = Image.open(items[4].impath)
    view = draw_view(3, 104, 7, 40, 30, scale=(0.3, 0.9))
    assert torch.equal(row.pop("img"), apply_view(image, view, STUDENT))
    assert torch.equal(row.pop("img_teacher"), apply_view(image, view, TEACHER))
    assert row == {"label": 1, "domain": 1, "impath": items[4].impath, "index": 104}
    assert "img_teacher" not in ViewDataset(items, STUDENT, views=VIEWS)[0, 0]


def test_a_view_belongs_to_the_image_and_not_to_its_place_in_the_list(items):
    all_of_them, some = ViewDataset(items, STUDENT, views=VIEWS), ViewDataset(items[3:], STUDENT, views=VIEWS)
    assert torch.equal(all_of_them[4, 2]["img"], some[1, 2]["img"])
    assert not torch.equal(all_of_them[4, 2]["img"], some[1, 3]["img"])


def test_a_damaged_training_image_stops_the_run(items):
    truncate(items[1])
    with pytest.raises(DataError, match=r"DATASET\.UNREADABLE skip") as error:
        ViewDataset(items, STUDENT, views=VIEWS)[1, 0]
    assert items[1].impath in str(error.value)


def test_skipping_takes_the_next_readable_image_and_says_it_once(items, caplog):
    truncate(items[5])
    truncate(items[0])
    data = ViewDataset(items, STUDENT, views=VIEWS, unreadable="skip")
    with caplog.at_level(logging.WARNING):
        first, again, plain = data[5, 4], data[5, 4], data[1, 4]
    assert first["impath"] == items[1].impath
    assert (first["label"], first["index"]) == (1, 101)
    assert torch.equal(first["img"], plain["img"])
    assert torch.equal(first["img"], again["img"])
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [items[5].impath, items[0].impath]
    assert data.damaged.tolist() == [True, False, False, False, False, True]


def test_skipping_ends_where_nothing_can_be_read(items):
    for item in items:
        truncate(item)
    with pytest.raises(DataError, match="none of the 6 images can be read"):
        ViewDataset(items, STUDENT, views=VIEWS, unreadable="skip")[2, 0]


def test_training_data_must_exist_and_have_an_index(items):
    with pytest.raises(DataError, match="no images to train on"):
        ViewDataset([], STUDENT, views=VIEWS)
    with pytest.raises(DataError, match="index"):
        ViewDataset([Datum("a.png", 0)], STUDENT, views=VIEWS)
    with pytest.raises(ConfigError, match=r"DATASET\.UNREADABLE: 'ignore' is not one of error, skip"):
        ViewDataset(items, STUDENT, views=VIEWS, unreadable="ignore")


def test_an_evaluation_row_is_the_centre_of_the_image(items):
    row = EvalDataset(items, TEACHER)[2]
    assert torch.equal(row.pop("img"), eval_transform(Image.open(items[2].impath), TEACHER))
    assert row == {"label": 2, "domain": 1, "impath": items[2].impath, "index": 102}


def test_a_damaged_test_image_stops_or_comes_back_with_label_minus_one(items):
    truncate(items[1])
    with pytest.raises(DataError, match=r"DATASET\.UNREADABLE skip"):
        EvalDataset(items, STUDENT)[1]
    data = EvalDataset(items, STUDENT, unreadable="skip")
    row = data[1]
    assert (row["label"], row["impath"], row["img"].abs().max().item()) == (-1, items[1].impath, 0)
    assert row["img"].shape == data[0]["img"].shape
    assert (len(data), data[0]["label"]) == (6, 0)
