import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from dho_plugin.engine.views import (
    Preprocess,
    View,
    ViewSpec,
    apply_view,
    draw_view,
    eval_transform,
    possible_reduction,
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def normalized(image, pre):
    pixels = np.asarray(image, dtype=np.float64) / 255
    return ((pixels - np.array(pre.mean)) / np.array(pre.std)).transpose(2, 0, 1)


def test_drawn_views_follow_the_law_of_random_resized_crop():
    width, height, n = 500, 375, 4000
    views = [draw_view(3, i, 0, width, height, scale=(0.08, 1.0)) for i in range(n)]
    left, top, w, h, flip = np.array(views, dtype=np.float64).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + w <= width).all()
    assert (top + h <= height).all()
    # One pixel of rounding on each side.
    area, ratio = w * h / (width * height), w / h
    assert area.min() > 0.08 * 0.97
    assert area.max() <= 1.0
    assert ratio.min() > 3 / 4 * 0.98
    assert ratio.max() < 4 / 3 * 1.02
    assert abs(flip.mean() - 0.5) < 4 * 0.5 / np.sqrt(n)

    torch.manual_seed(0)
    canvas = torch.zeros(3, height, width)
    boxes = [T.RandomResizedCrop.get_params(canvas, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(n)]
    top_t, left_t, h_t, w_t = np.array(boxes, dtype=np.float64).T
    pairs = [(w, w_t), (h, h_t), (left, left_t), (top, top_t), (w * h, w_t * h_t), (np.log(w / h), np.log(w_t / h_t))]
    for mine, theirs in pairs:
        error = np.sqrt((mine.var() + theirs.var()) / n)
        assert abs(mine.mean() - theirs.mean()) < 4.5 * error
        assert mine.std() == pytest.approx(theirs.std(), rel=0.06)


def test_a_view_is_a_function_of_seed_index_and_number():
    keys = [(seed, index, view) for seed in (0, 1) for index in (0, 1, 10**7) for view in (0, 1, 999)]
    options = {"width": 320, "height": 240, "scale": (0.08, 1.0)}
    forward = {key: draw_view(*key, **options) for key in keys}
    backward = {key: draw_view(*key, **options) for key in reversed(keys)}
    assert forward == backward
    assert len(set(forward.values())) == len(keys)
    spec = ViewSpec(1, scale=(0.08, 1.0))
    assert spec.draw(10**7, 999, 320, 240) == forward[1, 10**7, 999]


def test_known_views_stay_what_they_were():
    """Stored teacher outputs rely on it: a change here makes every cache worthless."""
    assert draw_view(0, 0, 0, 500, 375, scale=(0.08, 1.0)) == View(162, 55, 213, 266, True)
    assert draw_view(1, 1281166, 7, 333, 500, scale=(0.5, 1.0)) == View(0, 65, 331, 259, False)


def test_views_of_one_image_and_of_neighbours_are_uncorrelated():
    options = {"width": 4000, "height": 4000, "scale": (0.08, 1.0)}
    n = 2000
    grid = np.array([[draw_view(5, i, v, **options).width for v in (0, 1)] for i in range(n + 1)], dtype=float)
    assert abs(np.corrcoef(grid[:, 0], grid[:, 1])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(grid[:-1, 0], grid[1:, 0])[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize(
    ("size", "box"),
    [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13)), ((1, 1), (0, 0, 1, 1))],
)
def test_too_long_images_fall_back_to_a_central_crop(size, box):
    assert draw_view(0, 0, 0, *size, scale=(0.9, 1.0), flip=False) == View(*box, False)


def test_without_crop_the_central_square_is_taken_and_without_flip_none_is_mirrored():
    views = {draw_view(0, i, 0, 50, 40, scale=(0.08, 1.0), crop=False) for i in range(40)}
    assert views == {View(5, 0, 40, 40, False), View(5, 0, 40, 40, True)}
    assert not any(draw_view(0, i, 0, 50, 40, scale=(0.08, 1.0), flip=False).flip for i in range(40))


def test_the_flip_does_not_depend_on_the_crop():
    options = {"width": 64, "height": 48, "scale": (0.08, 1.0)}
    flips = [draw_view(2, i, 1, **options).flip for i in range(50)]
    assert flips == [draw_view(2, i, 1, crop=False, **options).flip for i in range(50)]
    assert flips == [draw_view(2, i, 1, 500, 20, scale=(0.9, 1.0)).flip for i in range(50)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("flip", [False, True])
def test_applied_view_equals_pillow_crop_resize_and_mirror(interpolation, flip):
    image, pre = noise(90, 70), Preprocess(32, MEAN, STD, interpolation)
    view = View(11, 7, 61, 50, flip)
    plain = image.crop((11, 7, 72, 57)).resize((32, 32), FILTERS[interpolation])
    if flip:
        plain = plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    out = apply_view(image, view, pre)
    assert (out.shape, out.dtype) == ((3, 32, 32), torch.float32)
    np.testing.assert_allclose(out.numpy(), normalized(plain, pre), atol=1e-5)


def test_pixels_outside_the_view_do_not_matter():
    image, pre = noise(90, 70), Preprocess(16, MEAN, STD)
    other = Image.new("RGB", image.size)
    other.paste(image.crop((20, 10, 70, 60)), (20, 10))
    view = View(20, 10, 50, 50, False)
    assert torch.equal(apply_view(image, view, pre), apply_view(other, view, pre))


def test_student_and_teacher_see_the_same_part():
    """A smooth picture looks the same at two sizes if, and only if, the crop and the flip are the same."""
    x, y = np.meshgrid(np.linspace(0, 1, 200), np.linspace(0, 1, 160))
    image = Image.fromarray((255 * np.stack([x, y, (x + y) / 2], axis=-1)).astype(np.uint8))
    student, teacher = Preprocess(32, MEAN, STD), Preprocess(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")

    def pixels(tensor, pre):
        return tensor * torch.tensor(pre.std).view(3, 1, 1) + torch.tensor(pre.mean).view(3, 1, 1)

    for index in range(5):
        view = ViewSpec(0).draw(index, 0, *image.size)
        small = pixels(apply_view(image, view, student), student)
        large = pixels(apply_view(image, view, teacher), teacher)
        assert (small - torch.nn.functional.avg_pool2d(large, 2)).abs().max() < 0.02


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (224, 20), (16, 16), (9, 31)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_equals_the_transform_of_clip(size, interpolation):
    image, pre = noise(*size), Preprocess(24, MEAN, STD, interpolation)
    mode = T.InterpolationMode(interpolation)
    clip = T.Compose([T.Resize(24, mode), T.CenterCrop(24), T.ToTensor(), T.Normalize(MEAN, STD)])
    torch.testing.assert_close(eval_transform(image, pre), clip(image), atol=1e-6, rtol=0)


def test_squashed_evaluation_ignores_the_aspect_ratio():
    image, pre = noise(50, 37), Preprocess(24, MEAN, STD, "bicubic", "squash")
    plain = image.resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(eval_transform(image, pre).numpy(), normalized(plain, pre), atol=1e-5)


@pytest.mark.parametrize(
    "view", [View(0, 0, 400, 304, False), View(13, 7, 301, 290, True), View(301, 200, 99, 104, False)]
)
def test_a_view_of_a_smaller_copy_stays_where_it_is(view):
    """On a smooth picture the values follow the place; only at the edge a coarser pixel tells."""
    x, y = np.meshgrid(np.arange(400) / 399, np.arange(304) / 303)
    full = (255 * np.stack([x, y, (x + y) / 2], axis=-1)).round()
    pre = Preprocess(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    exact = apply_view(Image.fromarray(full.astype(np.uint8)), view, pre)
    for scale in (2, 4, 8):
        blocks = full.reshape(304 // scale, scale, 400 // scale, scale, 3).mean(axis=(1, 3)).round().astype(np.uint8)
        small = apply_view(Image.fromarray(blocks), view, pre, scale)
        assert small.shape == exact.shape
        assert (small - exact)[:, 2:-2, 2:-2].abs().max() * 255 < 1.5
        assert (small - exact).abs().max() * 255 < 1 + scale / 2


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_pixels_outside_the_view_do_not_matter_in_a_smaller_copy(scale):
    image, pre = noise(90, 70), Preprocess(16, MEAN, STD)
    box = (3, 2, 41, 30)
    other = Image.new("RGB", image.size)
    other.paste(image.crop(box), box)
    # Less than a pixel of the copy more than the box.
    view = View(3 * scale + 1, 2 * scale + scale - 1, 38 * scale - 2, 28 * scale - scale, False)
    assert torch.equal(apply_view(image, view, pre, scale), apply_view(other, view, pre, scale))


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("size", [(331, 203), (205, 333), (256, 200)])
def test_evaluation_of_a_smaller_copy_knows_the_true_size(mode, size):
    """The copy is rounded up; where its last pixel reaches out of the original, it must not be squeezed in."""
    pre = Preprocess(20, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic", mode)
    width, height = size
    x, y = np.meshgrid(np.arange(-(-width // 8) * 8), np.arange(-(-height // 8) * 8))
    wide = np.stack([x * 0.7, y * 0.7, (x + y) / 3], axis=-1)
    exact = eval_transform(Image.fromarray(wide[:height, :width].round().astype(np.uint8)), pre)
    for scale in (2, 4, 8):
        rows, columns = -(-height // scale), -(-width // scale)
        blocks = wide[: rows * scale, : columns * scale].reshape(rows, scale, columns, scale, 3).mean(axis=(1, 3))
        small = eval_transform(Image.fromarray(blocks.round().astype(np.uint8)), pre, scale, size)
        assert (small - exact)[:, 2:-2, 2:-2].abs().max() * 255 < 1.5


def test_the_possible_reduction_keeps_the_gap_on_the_shorter_side():
    assert possible_reduction(1344, 2000, 224, 3.0) == 2.0
    assert possible_reduction(2000, 1344, 224, 1.0) == 6.0
    assert possible_reduction(100, 2000, 224, 1.0) < 1
    assert possible_reduction(9000, 9000, 224, 0.0) == 1.0
