"""The distance to the library's border: at, within and beyond it, by known amounts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.spatial import ConvexHull

from hotdask.emulator import LowRankEmulator, load_emulator
from hotdask.emulator.base import polygon_corners, polygon_distance
from hotdask.emulator.training import label_limits
from hotdask.labels import ABUNDANCES, INDEX, N_LABELS

SHIPPED = load_emulator()
LOW = np.array([10000, 2, 0, -np.inf, 0.05, -1, -1, -1, -1, -1, -2.0])
HIGH = np.array([40000, 5, 10, 500, 0.25, 1, 1, 1, 1, 1, 0.5])
MIDDLE = np.array([20000, 3.5, 5, 200, 0.15, -0.75, -0.75, -0.75, -0.75, -0.75, -0.75])
PENTAGON = np.array(
    [[1, 0, -np.log10(40000)], [-1, 0, 4], [0, 1, -5], [0, -1, 2], [4, -1, -np.log10(40000) * 4 + 3.2]], dtype=float
)
"""a·log10 Teff + b·log g + c ≤ 0: the box less its corner of hot giants."""
UNIT = np.sqrt(12)
"""Range of a label over its unit of distance."""


@pytest.fixture(scope="module")
def square() -> LowRankEmulator:
    """A library that is a box in all labels, Teff 10000-40000 K in its logarithm."""
    hull = np.array([[1, 0, -np.log10(40000)], [-1, 0, 4], [0, 1, -5], [0, -1, 2]])
    arrays = SHIPPED.arrays | {"hull": hull, "label_low": LOW, "label_high": HIGH}
    return LowRankEmulator(arrays, SHIPPED.card)


def moved(**changes: float) -> np.ndarray:
    out = MIDDLE.copy()
    for name, value in changes.items():
        out[INDEX[name]] = value
    return out


class TestBox:
    @pytest.mark.parametrize(
        ("changes", "distance"),
        [
            ({}, -0.5 * UNIT),
            # Edges, and a quarter and more of the range beyond them.
            ({"teff": 40000}, 0),
            ({"teff": 10000}, 0),
            ({"logg": 5}, 0),
            ({"logg": 5.75}, 0.25 * UNIT),
            ({"teff": 40000 * 4**0.25}, 0.25 * UNIT),
            ({"teff": 10000 / 4**0.5}, 0.5 * UNIT),
            # Corners of the hull, and beyond one along both labels.
            ({"teff": 40000, "logg": 5}, 0),
            ({"teff": 40000 * 4**0.3, "logg": 5 + 3 * 0.4}, 0.5 * UNIT),
            # The other labels.
            ({"vmic": 12}, 0.2 * UNIT),
            ({"vmic": 9}, -0.1 * UNIT),
            ({"n_he": 0.03}, 0.1 * UNIT),
            ({"vsini": 550}, 0.1 * UNIT),
            ({"vsini": 490}, -0.02 * UNIT),
            ({"vsini": -50}, -0.5 * UNIT),
            ({"o_h": -0.75 + 1.2}, 0.1 * UNIT),
            # Beyond in three labels at once.
            ({"vmic": 12, "n_he": 0.03, "logg": 5.6}, 0.3 * UNIT),
        ],
    )
    def test_known_amounts(self, square, changes, distance):
        found = square.distance(moved(**changes))
        assert found.shape == (1,)
        assert found[0] == pytest.approx(distance, abs=1e-9)
        assert square.outside(moved(**changes)).tolist() == [distance > 0]

    def test_iron_carries_the_other_abundances_along(self, square):
        labels = MIDDLE.copy()
        labels[[INDEX[name] for name in ABUNDANCES]] += 0.25
        # [X/Fe] stay in the middle of their ranges; [Fe/H] is now 1 dex of 2.5 from its end.
        assert square.distance(labels)[0] == pytest.approx(-0.4 * UNIT)
        labels[[INDEX[name] for name in ABUNDANCES]] = 1.0
        assert square.distance(labels)[0] == pytest.approx(0.2 * UNIT)

    def test_unknown_labels_have_no_distance(self, square):
        assert np.isnan(square.distance(moved(teff=np.nan))).all()
        assert not square.outside(moved(vmic=np.nan)).any()


def made_up_labels(n: int = 400) -> np.ndarray:
    """Labels in a blob of log Teff and log g, the others even in their ranges."""
    rng = np.random.default_rng(5)
    labels = MIDDLE + rng.uniform(-0.5, 0.5, (n, N_LABELS)) * [1, 1, 6, 0, 0.1, *[1] * 6]
    labels[:, 0] = 10 ** rng.normal(4.2, 0.15, n)
    labels[:, 1] = 4 + 0.4 * rng.normal(size=n) - (np.log10(labels[:, 0]) - 4.2)
    return labels


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return made_up_labels()


@pytest.fixture(scope="module")
def limited(labels) -> LowRankEmulator:
    return LowRankEmulator(SHIPPED.arrays | label_limits(labels, 450.0), SHIPPED.card)


class TestLimits:
    """The limits a training derives from labels, and the distance to them."""

    def test_every_synthesis_is_inside(self, labels, limited):
        assert not limited.outside(labels).any()
        assert (limited.distance(labels) < 1e-9).all()

    def test_ranges_end_at_the_last_syntheses(self, labels, limited):
        for name in ("vmic", "n_he", "fe_h"):
            column = labels[:, INDEX[name]]
            assert limited.arrays["label_low"][INDEX[name]] == column.min()
            assert limited.arrays["label_high"][INDEX[name]] == column.max()
        for name in ("c_h", "n_h", "o_h", "si_h", "s_h"):
            relative = labels[:, INDEX[name]] - labels[:, INDEX["fe_h"]]
            assert limited.arrays["label_low"][INDEX[name]] == relative.min()
            assert limited.arrays["label_high"][INDEX[name]] == relative.max()
        vsini = INDEX["vsini"]
        assert (limited.arrays["label_low"][vsini], limited.arrays["label_high"][vsini]) == (-np.inf, 450)

    def test_corners_are_those_of_the_syntheses(self, labels, limited):
        plane = np.column_stack([np.log10(labels[:, 0]), labels[:, 1]])
        corners = plane[ConvexHull(plane).vertices]
        found = polygon_corners(limited.arrays["hull"])
        assert len(found) == len(corners)
        start = np.argmin(np.abs(corners - found[0]).sum(axis=1))
        np.testing.assert_allclose(found, np.roll(corners, -start, axis=0), atol=1e-9)
        # On corners and on the middles of sides the distance is 0; the other labels are in the middle of their ranges.
        middles = (corners + np.roll(corners, 1, axis=0)) / 2
        for points in (corners, middles):
            stars = np.tile(MIDDLE, (len(points), 1))
            stars[:, 0], stars[:, 1] = 10 ** points[:, 0], points[:, 1]
            np.testing.assert_allclose(limited.distance(stars), 0, atol=1e-9)
            assert not limited.outside(stars).any()
            # A millionth of the way further from the middle of the hull.
            stars[:, 0] *= 10 ** (1e-6 * (points[:, 0] - plane[:, 0].mean()))
            stars[:, 1] += 1e-6 * (points[:, 1] - plane[:, 1].mean())
            assert limited.outside(stars).all()


def test_outside_is_beyond_a_half_plane_or_a_range():
    limited = LowRankEmulator(SHIPPED.arrays | {"hull": PENTAGON, "label_low": LOW, "label_high": HIGH}, SHIPPED.card)
    low = np.array([9000, 1.8, -0.3, 0, 0.045, *[-1.05] * 5, -2.1])
    high = np.array([42000, 5.2, 10.3, 510, 0.255, *[1.05] * 5, 0.6])
    relative = np.random.default_rng(8).uniform(low, high, (3000, N_LABELS))
    labels = relative.copy()
    labels[:, INDEX["c_h"] : INDEX["fe_h"]] += relative[:, [INDEX["fe_h"]]]
    within = ((relative >= LOW) & (relative <= HIGH))[:, 2:].all(axis=1)
    log_teff, logg = np.log10(relative[:, 0]), relative[:, 1]
    for a, b, c in PENTAGON:
        within &= a * log_teff + b * logg + c <= 0
    assert 800 < within.sum() < 2200
    np.testing.assert_array_equal(limited.outside(labels), ~within)


@given(
    points=st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=4, max_size=12, unique=True),
    star=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
)
@settings(max_examples=60, deadline=None)
def test_distance_to_a_polygon_is_the_least_distance(points, star):
    points = np.round(points, 2)
    spread = points - points.mean(axis=0)
    if np.linalg.svd(spread, compute_uv=False)[-1] < 0.2:
        return
    hull = ConvexHull(points)
    star = np.array(star)
    found = polygon_distance(star[None], polygon_corners(hull.equations))[0]
    depth = (hull.equations[:, :2] @ star + hull.equations[:, 2]).max()
    if depth <= 0:
        # Within, the nearest side's line is the nearest border.
        assert found == pytest.approx(depth, abs=1e-7)
        return
    # Outside, the nearest convex mixture of the points.
    constraint = {"type": "ineq", "fun": lambda x: -(hull.equations[:, :2] @ x + hull.equations[:, 2])}
    nearest = minimize(lambda x: ((x - star) ** 2).sum(), points.mean(axis=0), constraints=constraint, tol=1e-12)
    assert found == pytest.approx(np.linalg.norm(nearest.x - star), abs=1e-5)
