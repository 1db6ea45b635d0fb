import numpy as np
import pytest

from dho_plugin.data.mini.shapes import EXTENT, RESOLUTION, SHAPE_NAMES, distance_tables, polygon_distance

POINTS = np.random.default_rng(0).uniform(-1.4, 1.4, (400, 2))


def winding_number(point, vertices):
    """How often the polygon goes around the point, from the sum of the angles between its corners."""
    a = vertices - point
    b = np.roll(a, -1, axis=0)
    return round(np.arctan2(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], (a * b).sum(1)).sum() / (2 * np.pi))


@pytest.mark.parametrize("corners", [3, 7])
def test_polygon_distance_against_a_densely_sampled_border(corners):
    rng = np.random.default_rng(corners)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners)) + np.arange(corners) * 1e-3
    vertices = rng.uniform(0.3, 1.2, (corners, 1)) * np.stack([np.cos(angles), np.sin(angles)], -1)
    along = np.linspace(0, 1, 4001)[:, None, None]
    border = (vertices * (1 - along) + np.roll(vertices, -1, axis=0) * along).reshape(-1, 2)
    unsigned = np.array([np.sqrt(((border - p) ** 2).sum(1)).min() for p in POINTS])
    sign = np.array([-1 if winding_number(p, vertices) else 1 for p in POINTS])
    np.testing.assert_allclose(polygon_distance(POINTS, vertices), sign * unsigned, atol=5e-4)


def test_polygon_distance_of_a_box_is_the_closed_form():
    box = np.array([(-0.5, -0.8), (0.5, -0.8), (0.5, 0.8), (-0.5, 0.8)])
    q = np.abs(POINTS) - np.array([0.5, 0.8])
    expected = np.sqrt((np.maximum(q, 0) ** 2).sum(1)) + np.minimum(q.max(1), 0)
    np.testing.assert_allclose(polygon_distance(POINTS, box), expected, atol=1e-12)


def test_tables_hold_every_shape_within_the_unit_circle():
    tables = distance_tables()
    assert tables.shape == (len(SHAPE_NAMES), RESOLUTION, RESOLUTION)
    assert tables.dtype == np.float32
    ticks = ((np.arange(RESOLUTION) + 0.5) / RESOLUTION * 2 - 1) * EXTENT
    outside = np.hypot(*np.meshgrid(ticks, ticks)) > 1.2
    share = (tables < 0).mean((1, 2))
    assert (tables[:, outside] > 0).all()
    assert (share > 0.05).all()
    assert (share < 0.45).all()


def test_shapes_differ_from_each_other_and_stand_upright():
    tables = distance_tables()
    masks = (tables < 0).reshape(len(tables), -1)
    overlap = (masks[:, None] & masks[None]).sum(-1) / (masks[:, None] | masks[None]).sum(-1)
    assert (overlap - np.eye(len(tables))).max() < 0.95
    triangle = tables[SHAPE_NAMES.index("triangle")] < 0
    assert triangle[: RESOLUTION // 2].sum() < triangle[RESOLUTION // 2 :].sum(), "the first row is the top"


def test_a_circle_with_a_hole_keeps_its_distances():
    crescent, circle = (distance_tables()[SHAPE_NAMES.index(n)] for n in ("crescent", "circle"))
    centre = RESOLUTION // 2
    assert circle[centre, centre] == pytest.approx(-0.88, abs=0.03)
    assert crescent[centre, centre + 14] > 0, "the bite is outside"
    assert crescent[centre, centre - 24] < 0
