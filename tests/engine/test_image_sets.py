import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dho_plugin.engine.data import Datum
from dho_plugin.engine.decode import ImageFile
from dho_plugin.engine.feature_sets import StoredFeatures
from dho_plugin.engine.feature_store import FeatureStore
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


def test_a_training_row_has_dassls_keys_and_one_view_for_both_models(items):
    row = ViewDataset(items, STUDENT, TEACHER, views=VIEWS)[4, 7]
    image = Image.open(items[4].impath)
    view = draw_view(3, 104, 7, 40, 30, scale=(0.3, 0.9))
    assert torch.equal(row.pop("img"), apply_view(image, view, STUDENT))
    assert torch.equal(row.pop("img_teacher"), apply_view(image, view, TEACHER))
    assert row == {"label": 1, "domain": 1, "impath": items[4].impath, "index": 104}
    assert "img_teacher" not in ViewDataset(items, STUDENT, views=VIEWS)[0, 0]


def test_stored_features_stand_beside_the_image_that_is_shown(items, tmp_path):
    keys, ones = np.arange(6, dtype=np.uint64), np.ones(6, dtype=np.int64)
    store = FeatureStore.create(tmp_path / "store", {"dtype": "float16", "dim": 2}, keys, ones, 4)
    for shard in store.shards(3):
        store.write(shard, [[row, shard.view] for row in range(shard.start, shard.stop)])
    stored = {"teacher_features": StoredFeatures(store, np.array([5, 4, 3, 2, 1, 0]))}
    truncate(items[4])
    data = ViewDataset(items, STUDENT, views=VIEWS, unreadable="skip", stored=stored)
    assert data[1, 2]["teacher_features"].tolist() == [4.0, 2.0]
    row = data[4, 1]  # the next image stands in, with its own features
    assert row["index"] == 105
    assert row["teacher_features"].tolist() == [0.0, 1.0]
    assert torch.equal(data[1, 2]["img"], ViewDataset(items, STUDENT, views=VIEWS)[1, 2]["img"])


def test_an_image_is_decoded_for_a_model_whose_features_are_stored(tmp_path):
    path = tmp_path / "large.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (600, 600, 3), dtype=np.uint8)).resize((1200, 1200)).save(path)
    large, whole = [Datum(str(path), 0, index=0)], ViewSpec(seed=0, crop=False)
    options, teacher = {"views": whole, "jpeg_gap": 2.0}, Preprocess(300, STUDENT.mean, STUDENT.std)
    online = ViewDataset(large, STUDENT, teacher, **options)[0, 0]["img"]
    assert torch.equal(ViewDataset(large, STUDENT, size=300, **options)[0, 0]["img"], online)
    assert not torch.equal(ViewDataset(large, STUDENT, **options)[0, 0]["img"], online)


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


def test_training_and_evaluation_name_a_bad_file(items, bad_file):
    with_bad = [Datum(bad_file, 2, index=7), *items]
    for read in (lambda: ViewDataset(with_bad, STUDENT, views=VIEWS)[0, 0], lambda: EvalDataset(with_bad, STUDENT)[0]):
        with pytest.raises(DataError, match=r"DATASET\.UNREADABLE skip") as error:
            read()
        assert bad_file in str(error.value)


def test_training_and_evaluation_can_go_on_without_a_bad_file(items, bad_file, caplog):
    with_bad = [Datum(bad_file, 2, index=7), *items]
    data = ViewDataset(with_bad, STUDENT, views=VIEWS, unreadable="skip")
    rows = data[0, 0], data[0, 1]
    assert [row["impath"] for row in rows] == [items[0].impath] * 2
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [bad_file]
    row = EvalDataset(with_bad, STUDENT, unreadable="skip")[0]
    assert (row["label"], row["impath"]) == (-1, bad_file)


def coloured(path, mode):
    """Write an image of one colour in some mode, and return the red, green and blue that must be read."""
    if mode == "I;16":
        Image.fromarray(np.full((30, 40), 90 * 257, dtype=np.uint16)).save(path)
        return (90, 90, 90)
    image = Image.new("RGBA", (40, 30), (200, 30, 40, 128)).convert("RGB" if mode == "CMYK" else "RGBA").convert(mode)
    image.save(path)
    gray = round(0.299 * 200 + 0.587 * 30 + 0.114 * 40)
    return {"L": (gray,) * 3, "LA": (gray,) * 3, "1": None}.get(mode, (200, 30, 40))


@pytest.mark.parametrize(
    ("mode", "ending"),
    [*[(mode, "png") for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "I;16")]]
    + [(mode, "jpg") for mode in ("RGB", "L", "CMYK")],
)
def test_every_colour_mode_trains_and_evaluates(tmp_path, mode, ending):
    path = tmp_path / f"x.{ending}"
    colour = coloured(path, mode)
    items, gap = [Datum(str(path), 0, index=0)], {"jpeg_gap": 1.0}
    small = Preprocess(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    views = ViewSpec(seed=3, scale=(0.9, 1.0))
    for row in (ViewDataset(items, small, views=views, **gap)[0, 0], EvalDataset(items, small, **gap)[0]):
        assert row["img"].shape == (3, 8, 8)
        if mode == "1":  # black and white dots
            assert 0 < row["img"].mean() < 1
            continue
        # The web palette of mode P has steps of 51.
        tolerance = 26 if mode == "P" else 5
        assert (row["img"] * 255 - torch.tensor(colour).view(3, 1, 1)).abs().max() <= tolerance


@pytest.fixture
def photo(tmp_path):
    """A large JPEG with detail of all sizes, as on a photograph: noise of several octaves, discs and lines."""
    rng = np.random.default_rng(5)
    pixels = np.full((703, 1001, 3), 120.0)
    for step in (1, 2, 4, 8, 16, 32, 64):
        coarse = rng.normal(0, 10, (703 // step + 2, 1001 // step + 2, 3)).repeat(step, 0).repeat(step, 1)
        pixels += coarse[:703, :1001]
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, radius = rng.integers(0, 1001), rng.integers(0, 703), rng.integers(20, 120)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(rng.integers(0, 256, 3).tolist()))
        pen.line((x, y, *rng.integers(0, 1001, 2).tolist()), fill=tuple(rng.integers(0, 256, 3).tolist()), width=3)
    path = tmp_path / "photo.jpg"
    image.save(path, quality=90)
    return [Datum(str(path), 0, index=0)]


@pytest.fixture
def scales(monkeypatch):
    """The scales at which images were decoded."""
    used, decode = [], ImageFile.decode

    def note(self, reduction=1.0):
        image, scale = decode(self, reduction)
        used.append(scale)
        return image, scale

    monkeypatch.setattr(ImageFile, "decode", note)
    return used


def sized(size, **options):
    return Preprocess(size, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), **options)


def test_a_jpeg_is_decoded_smaller_where_the_gap_allows(photo, scales):
    """The shorter side has 703 pixels: 703 / (3 * 58) = 4.04."""
    central = ViewSpec(seed=3, crop=False)
    for gap, size in ((0, 8), (3, 8), (3, 58), (3, 59), (3, 118), (1, 59)):
        ViewDataset(photo, sized(size), views=central, jpeg_gap=gap)[0, 0]
        EvalDataset(photo, sized(size), jpeg_gap=gap)[0]
    assert scales == [1, 1, 8, 8, 4, 4, 2, 2, 1, 1, 8, 8]


def test_the_larger_of_two_inputs_decides_the_scale(photo, scales):
    central = ViewSpec(seed=3, crop=False)
    ViewDataset(photo, sized(8), sized(59), views=central, jpeg_gap=3)[0, 0]
    ViewDataset(photo, sized(59), sized(8), views=central, jpeg_gap=3)[0, 0]
    assert scales == [2, 2]


def test_a_view_decides_the_scale_by_its_own_size(photo, scales):
    data, views = ViewDataset(photo, sized(40), views=VIEWS, jpeg_gap=2), range(30)
    for view in views:
        data[0, view]
    boxes = [draw_view(3, 0, view, 1001, 703, scale=(0.3, 0.9)) for view in views]
    expected = [max(s for s in (1, 2, 4, 8) if min(box.width, box.height) / s >= 80) for box in boxes]
    assert scales == expected
    assert len(set(expected)) > 1


def test_a_smaller_decoding_gives_the_numbers_of_a_plain_crop_and_resize_of_it(photo):
    """The central square starts at pixel 149: with scale 4 at 37.25."""
    with Image.open(photo[0].impath) as image:
        image.draft("RGB", (250, 175))
        assert image.size == (251, 176)
        plain = image.crop((37, 0, 213, 176)).resize((50, 50), Image.Resampling.BICUBIC, box=(0.25, 0, 176, 175.75))
    row = ViewDataset(photo, sized(50), views=ViewSpec(seed=3, crop=False, flip=False), jpeg_gap=3)[0, 0]
    expected = torch.from_numpy(np.array(plain)).permute(2, 0, 1) / 255 - 0.5
    torch.testing.assert_close(row["img"], expected, atol=1e-6, rtol=0)


def test_an_upright_view_is_that_of_the_turned_photo(tmp_path):
    image, exif = Image.effect_noise((96, 64), 80).convert("RGB"), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "lying.jpg", exif=exif)
    Image.open(tmp_path / "lying.jpg").transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    lying, upright = ([Datum(str(tmp_path / name), 0, index=0)] for name in ("lying.jpg", "upright.png"))
    views = ViewSpec(seed=2, scale=(0.3, 0.6))
    for view in range(4):
        rows = ViewDataset(lying, sized(20), views=views, upright=True), ViewDataset(upright, sized(20), views=views)
        assert torch.equal(rows[0][0, view]["img"], rows[1][0, view]["img"])
    assert torch.equal(EvalDataset(lying, sized(20), upright=True)[0]["img"], EvalDataset(upright, sized(20))[0]["img"])
    assert not torch.equal(EvalDataset(lying, sized(20))[0]["img"], EvalDataset(upright, sized(20))[0]["img"])


@pytest.mark.parametrize("options", [{}, {"interpolation": "bilinear"}, {"resize_mode": "squash"}])
def test_a_smaller_decoding_shows_the_same_almost_exactly(photo, scales, options):
    """At gap 3: below half a level of 255 in the mean; rounded to whole pixels, the box would cost several."""
    errors, pre = [], sized(75, **options)
    views = ViewSpec(seed=1, scale=(0.5, 1.0))
    for view in range(8):
        full, small = (ViewDataset(photo, pre, views=views, jpeg_gap=gap)[0, view] for gap in (0, 3))
        errors.append((full["img"] - small["img"]).abs().mean() * 255)
    full, small = (EvalDataset(photo, pre, jpeg_gap=gap)[0]["img"] for gap in (0, 3))
    errors.append((full - small).abs().mean() * 255)
    assert max(errors) < 0.5
    assert scales[1::2].count(2) >= 5
    assert min(errors[i] for i, scale in enumerate(scales[1::2]) if scale == 2) > 0
    assert scales[-2:] == [1, 2]


def test_a_gap_changes_no_number_of_small_and_of_other_images(items, photo, tmp_path):
    path = tmp_path / "photo.png"
    Image.open(photo[0].impath).save(path)
    for found, pre in ((items, STUDENT), ([Datum(str(path), 0, index=0)], STUDENT), (photo, sized(200))):
        plain, gapped = (ViewDataset(found, pre, TEACHER, views=VIEWS, jpeg_gap=gap)[0, 5] for gap in (0, 3))
        assert torch.equal(plain["img"], gapped["img"])
        assert torch.equal(plain["img_teacher"], gapped["img_teacher"])
        plain, gapped = (EvalDataset(found, pre, jpeg_gap=gap)[0]["img"] for gap in (0, 2))
        assert torch.equal(plain, gapped)


@pytest.mark.parametrize("keep_mb", [0, 1])
def test_a_batch_has_the_rows_of_its_images(items, keep_mb):
    data = ViewDataset(items, STUDENT, TEACHER, views=VIEWS, keep_mb=keep_mb)
    keys = [(4, 7), (1, 0), (4, 8)]
    for _ in range(2):  # the second time with decoded images in memory
        for key, row in zip(keys, data.__getitems__(keys), strict=True):
            alone = ViewDataset(items, STUDENT, TEACHER, views=VIEWS)[key]
            assert row.keys() == alone.keys()
            for name, value in row.items():
                assert torch.equal(value, alone[name]) if isinstance(value, torch.Tensor) else value == alone[name]


def test_what_stays_decoded_changes_no_pixel_of_any_view(photo):
    """A small view is decoded in full and kept; a large one is decoded smaller all the same."""
    pre = replace(STUDENT, size=96)
    fresh, keeping = (ViewDataset(photo, pre, views=VIEWS, jpeg_gap=3.0, keep_mb=mb) for mb in (0, 100))
    scales = {fresh._decode(0, view)[2] for view in range(40)}
    assert 1 in scales
    assert len(scales) > 1
    for view in [*range(40), *range(40)]:
        assert torch.equal(fresh[0, view]["img"], keeping[0, view]["img"]), view
    assert keeping.kept


def test_so_many_images_stay_decoded_as_there_is_room_for(items):
    data = ViewDataset(items, STUDENT, views=VIEWS, keep_mb=1)
    data.room = 2 * 3 * 30 * 40
    rows = data.__getitems__([(position, 0) for position in range(3)])
    for position in range(3):
        truncate(items[position])
    assert torch.equal(data[1, 0]["img"], rows[1]["img"])
    with pytest.raises(DataError):  # it was not kept
        data[2, 0]
