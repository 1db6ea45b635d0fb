import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from dho_plugin.engine.decode import ImageFile, UnreadableImageError, read_image
from dho_plugin.errors import DataError


def ramp(width, height):
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((255 * np.stack([x, y, (x + y) / 2], axis=-1)).astype(np.uint8))


def saved(path, image, **options):
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_colour_mode_is_read_as_rgb(tmp_path, mode):
    bars = np.tile(np.arange(20) % 3 // 2 * 255, (20, 1)).astype(np.uint8)
    image = Image.fromarray(bars).convert("RGB").convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png")
    read = read_image(saved(path, image))
    assert (read.mode, read.size) == ("RGB", (20, 20))
    assert np.abs(np.asarray(read).astype(int) - bars[..., None]).max() <= 2


def test_palette_with_transparency_keeps_its_colours_and_warns_of_nothing(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 30, 40])
    path = saved(tmp_path / "x.png", image, transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).getpixel((0, 0)) == (200, 30, 40)


def test_sixteen_bit_gray_is_scaled_and_not_clipped(tmp_path):
    values = np.tile(np.linspace(0, 65535, 50).astype(np.uint16), (3, 1))
    read = np.asarray(read_image(saved(tmp_path / "x.png", Image.fromarray(values))))
    np.testing.assert_array_equal(read[..., 0], values // 257)
    assert read[0, -1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_whose_black_and_white_nobody_knows_are_refused(tmp_path, kind):
    path = saved(tmp_path / "x.tif", Image.fromarray(np.linspace(0, 1, 12).reshape(3, 4).astype(kind)))
    with pytest.raises(UnreadableImageError, match=r"32-bit numbers .*save it as 8 bits"):
        read_image(path)


def test_an_unreadable_file_is_named_with_the_choice_to_skip_it(bad_file):
    with pytest.raises(UnreadableImageError) as error:
        read_image(bad_file)
    assert isinstance(error.value, DataError)
    assert str(error.value).startswith(f"{bad_file}: cannot be read as an image (")
    assert "DATASET.UNREADABLE skip" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_jpeg_is_truncated_at_any_scale(tmp_path):
    path = tmp_path / "x.jpg"
    ramp(600, 400).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    assert ImageFile(str(path)).size == (600, 400)
    for reduction in (1, 8):
        with pytest.raises(UnreadableImageError, match=r"x\.jpg: cannot be read as an image \(.*truncated"):
            ImageFile(str(path)).decode(reduction)


@pytest.mark.parametrize(
    ("reduction", "scale"), [(0.3, 1), (1, 1), (1.99, 1), (2, 2), (3.9, 2), (4, 4), (7.9, 4), (8, 8), (1000, 8)]
)
def test_a_jpeg_comes_at_the_smallest_size_that_is_allowed(tmp_path, reduction, scale):
    file = ImageFile(saved(tmp_path / "x.jpg", ramp(331, 203)))
    image, used = file.decode(reduction)
    assert (file.size, used, image.size) == ((331, 203), scale, (-(-331 // scale), -(-203 // scale)))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_smaller_jpeg_has_the_same_colours_in_the_same_places(tmp_path, mode, progressive):
    path = saved(tmp_path / "x.jpg", ramp(331, 203).convert(mode), quality=92, progressive=progressive)
    full = np.asarray(read_image(path), dtype=float)
    for scale in (2, 4, 8):
        small, used = ImageFile(path).decode(scale)
        height, width = 203 // scale, 331 // scale
        blocks = full[: height * scale, : width * scale].reshape(height, scale, width, scale, 3).mean(axis=(1, 3))
        assert (used, small.mode) == (scale, "RGB")
        assert np.abs(np.asarray(small)[:height, :width] - blocks).max() < 3


def test_a_jpeg_of_several_pictures_is_decoded_smaller_too(tmp_path):
    first, second = ramp(331, 203), Image.new("RGB", (331, 203))
    path = saved(tmp_path / "x.jpg", first, format="MPO", save_all=True, append_images=[second])
    image, scale = ImageFile(path).decode(4)
    assert (scale, image.size) == (4, (83, 51))
    assert np.abs(np.asarray(image.resize((331, 203))).astype(int) - np.asarray(first)).mean() < 3


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 2)])
def test_a_tiny_jpeg_is_read_at_any_reduction(tmp_path, size):
    path = saved(tmp_path / "x.jpg", Image.new("RGB", size, (200, 20, 20)))
    for reduction in (1, 2, 4, 8):
        image, scale = ImageFile(path).decode(reduction)
        assert image.size == tuple(-(-side // scale) for side in size)
        assert np.abs(np.asarray(image).astype(int) - (200, 20, 20)).max() <= 4


def test_other_formats_come_as_they_are(tmp_path):
    for ending in ("png", "bmp", "tif", "webp"):
        file = ImageFile(saved(tmp_path / f"x.{ending}", ramp(80, 60)))
        image, scale = file.decode(8)
        assert (file.size, image.size, scale) == ((80, 60), (80, 60), 1)


def test_the_file_is_closed_and_the_pixels_stay(tmp_path):
    for ending in ("jpg", "png", "gif", "tif"):
        path = tmp_path / f"x.{ending}"
        image = read_image(saved(path, ramp(40, 30)))
        path.unlink()
        assert image.resize((20, 10)).getpixel((19, 9)) != (0, 0, 0)
        assert getattr(image, "fp", None) is None


def test_the_orientation_in_exif_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    file = ImageFile(saved(tmp_path / "x.jpg", ramp(40, 30), exif=exif))
    assert (file.size, file.decode()[0].size) == ((40, 30), (40, 30))


# What a viewer has to do with the stored pixels (EXIF 2.3, 4.6.4: where the 0th row and the 0th column are).
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p[::-1].swapaxes(0, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: p.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_photo_can_be_turned_as_its_exif_data_say(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"x.{ending}", ramp(40, 24), exif=exif)
    expected = UPRIGHT[orientation](np.asarray(read_image(path)))
    file = ImageFile(path, upright=True)
    image, scale = file.decode()
    assert (scale, image.size) == (1, file.size)
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_a_turned_jpeg_is_decoded_smaller_only_where_the_border_stays_in_place(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for size, scales in (((80, 48), (8, (6, 10))), ((84, 44), (4, (11, 21))), ((81, 48), (1, (48, 81)))):
        image, scale = ImageFile(saved(tmp_path / "x.jpg", ramp(*size), exif=exif), upright=True).decode(8)
        assert (scale, image.size) == scales


@pytest.mark.parametrize("value", [0, 9, 99, b"6", "x"])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path, value, monkeypatch):
    path = saved(tmp_path / "x.jpg", ramp(40, 24))
    monkeypatch.setattr(Image.Image, "getexif", lambda self: {0x0112: value})
    assert ImageFile(path, upright=True).decode()[0].size == (40, 24)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_turn_nothing(tmp_path):
    path = saved(tmp_path / "x.jpg", ramp(40, 24), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f\x01")
    assert ImageFile(path, upright=True).decode()[0].size == (40, 24)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_image_is_read_up_to_pillows_error_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    small, large = Image.new("RGB", (40, 30), (9, 8, 7)), Image.new("1", (1201, 1))
    assert read_image(saved(tmp_path / "x.png", small)).getpixel((39, 29)) == (9, 8, 7)
    image, scale = ImageFile(saved(tmp_path / "x.jpg", small)).decode(8)
    assert (scale, image.size) == (8, (5, 4))
    path = saved(tmp_path / "y.png", large)
    with pytest.raises(UnreadableImageError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: cannot be read as an image (Image size (1201 pixels)")
    assert "Make it smaller: up to 1,200 pixels are read, or set DATASET.UNREADABLE skip" in str(error.value)


def test_a_huge_image_and_damaged_exif_data_warn_of_nothing(tmp_path):
    """In a process of its own: pytest has its own warning filters."""
    damaged = b"Exif\0\0MM\0*\0\0\0\x08\0\x03\x01\x1a\0\x05\0\0\0\1\0\0\x40\0"
    path = saved(tmp_path / "x.jpg", ramp(40, 30), exif=damaged)
    look = f"from PIL import Image; Image.MAX_IMAGE_PIXELS = 600; Image.open({path!r}).getexif()"
    read = f"from dho_plugin.engine.decode import read_image; read_image({path!r})"
    said = []
    for command in (look, f"{read}; {look}; {read}"):
        run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
        said.append(run.stderr)
    assert "DecompressionBombWarning" in said[0]
    assert "UserWarning" in said[0]
    assert said[1] == ""
