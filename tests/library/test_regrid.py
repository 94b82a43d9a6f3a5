"""Averages over pixels: against closed forms and quadrature, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from hotdask.errors import SynthesisError
from hotdask.library.regrid import fine_edges, to_fine
from hotdask.library.spectra import LOG_START, LOG_STEP, N_FINE, Synthesis, fine_wavelength

EDGES = fine_edges()


def test_a_straight_line_has_its_value_at_the_middle_of_each_pixel() -> None:
    wavelength = np.arange(3720, 9025, 0.05)
    flux, continuum = to_fine(Synthesis(wavelength, 3 + 2e-3 * wavelength, 5 - 1e-4 * wavelength))
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    assert flux.dtype == continuum.dtype == np.float32
    assert flux.shape == continuum.shape == (N_FINE,)
    np.testing.assert_allclose(flux, 3 + 2e-3 * middle, rtol=1e-6)
    np.testing.assert_allclose(continuum, 5 - 1e-4 * middle, rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_integral_is_kept_and_pixels_agree_with_quadrature(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Uneven samples, rough flux: the piecewise-linear spectrum is still averaged exactly.
    wavelength = 3720 + np.cumsum(rng.uniform(0.01, 0.16, 70000))
    flux = rng.uniform(0.1, 2.0, len(wavelength))
    fine, _ = to_fine(Synthesis(wavelength, flux))
    for pixel in rng.integers(0, N_FINE, 3):
        low, high = EDGES[pixel : pixel + 2]
        knots = wavelength[(wavelength > low) & (wavelength < high)]
        exact, _ = quad(np.interp, low, high, args=(wavelength, flux), points=knots, limit=200)
        assert fine[pixel] == pytest.approx(exact / (high - low), rel=1e-6)
    inside = np.concatenate([[EDGES[0]], wavelength[(wavelength > EDGES[0]) & (wavelength < EDGES[-1])], [EDGES[-1]]])
    total = np.trapezoid(np.interp(inside, wavelength, flux), inside)
    assert np.sum(fine.astype(np.float64) * np.diff(EDGES)) == pytest.approx(total, rel=1e-7)


def test_five_samples_per_pixel() -> None:
    # Samples from the first pixel's second fifth on: the grid's outermost tenths of a pixel are not covered.
    offsets = np.arange(-2, 5 * (N_FINE - 1) + 3) / 5
    wavelength = 10 ** (LOG_START + LOG_STEP * offsets)
    flux = 1 - 0.6 * np.exp(-0.5 * ((wavelength - 4471.5) / 0.5) ** 2) + 1e-5 * wavelength
    fine, _ = to_fine(Synthesis(wavelength, flux))
    np.testing.assert_allclose(fine, flux.reshape(N_FINE, 5).mean(axis=1), atol=2e-3)
    smooth = np.abs(fine_wavelength() - 4471.5) > 5
    np.testing.assert_allclose(fine[smooth], flux.reshape(N_FINE, 5).mean(axis=1)[smooth], rtol=1e-6)


def test_a_line_s_equivalent_width_does_not_change() -> None:
    wavelength = np.arange(3720, 9025, 0.02)
    depth, sigma = 0.7, 0.08
    fine, _ = to_fine(Synthesis(wavelength, 1 - depth * np.exp(-0.5 * ((wavelength - 6000) / sigma) ** 2)))
    width = np.sum((1 - fine.astype(np.float64)) * np.diff(EDGES))
    assert width == pytest.approx(depth * sigma * np.sqrt(2 * np.pi), rel=1e-4)


def test_a_spectrum_on_the_grid_is_kept() -> None:
    flux = np.random.default_rng(1).uniform(0.5, 1, N_FINE)
    fine, continuum = to_fine(Synthesis(fine_wavelength(), flux))
    np.testing.assert_array_equal(fine, flux.astype(np.float32))
    assert np.isnan(continuum).all()


GRID = np.arange(3720, 9025, 0.1)


def spoiled(position: int, value: float) -> np.ndarray:
    array = np.ones_like(GRID)
    array[position] = value
    return array


@pytest.mark.parametrize(
    ("synthesis", "says"),
    [
        (Synthesis(GRID + 10, np.ones_like(GRID)), "not 3723.92-9021.94 Å"),
        (Synthesis(GRID - 10, np.ones_like(GRID)), "widen its range"),
        (Synthesis(np.array([]), np.array([])), "covers nothing"),
        (Synthesis(GRID[::-1], np.ones_like(GRID)), "do not increase"),
        (Synthesis(np.repeat(GRID, 2), np.ones(2 * len(GRID))), "drop repeated"),
        (Synthesis(spoiled(5, np.nan), np.ones_like(GRID)), "do not increase"),
        (Synthesis(GRID, spoiled(100, np.nan)), "flux is not finite at 1 wavelengths, first 3730.00"),
        (Synthesis(GRID, np.ones_like(GRID), spoiled(0, np.inf)), "continuum is not finite"),
        (Synthesis(GRID, np.ones(5)), "differ in length"),
        (Synthesis(GRID, np.ones_like(GRID), np.ones(5)), "differ in length"),
        (Synthesis(GRID[::3], np.ones_like(GRID)[::3]), "too coarsely: steps of up to 1.7 pixels, near 3723.9"),
        (Synthesis(np.delete(GRID, slice(40000, 40010)), np.ones(len(GRID) - 10)), "near 7719.9"),
    ],
)
def test_refused(synthesis: Synthesis, says: str) -> None:
    with pytest.raises(SynthesisError, match=says):
        to_fine(synthesis)


def test_gaps_outside_the_grid_do_not_matter() -> None:
    wavelength = np.concatenate([[100.0, 3000.0], GRID, [20000.0]])
    fine, _ = to_fine(Synthesis(wavelength, np.ones_like(wavelength)))
    np.testing.assert_allclose(fine, 1, rtol=1e-7)
