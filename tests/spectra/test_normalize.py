"""Normalization against the direct sums of Eqs 1-2, reddening and real syntheses."""

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from hotdask.spectra.normalize import Normalizer, normalize
from hotdask.windows import CONTINUUM_EXCLUDE, FIT_MASK, inside, rest_wavelength

WAVELENGTH = rest_wavelength()
FITTED = ~inside(WAVELENGTH, FIT_MASK)
KEPT = ~inside(WAVELENGTH, CONTINUUM_EXCLUDE)
SLOPED = Normalizer(WAVELENGTH)
PLAIN = Normalizer(WAVELENGTH, slope=False)


@lru_cache(maxsize=2)
def kernel(cutoff=np.inf, scale=50.0):
    """ω_ij of Eq 2, written out."""
    delta = WAVELENGTH[:, None] - WAVELENGTH
    return np.where(np.abs(delta) <= cutoff * scale, np.exp(-((delta / scale) ** 2)), 0.0)


def direct(flux, good, weights):
    """f̄ of Eq 1 and the effective number of pixels (Σω)²/Σω², in float64."""
    use = (good & KEPT).astype(np.float64)
    total = use @ weights
    with np.errstate(invalid="ignore"):
        return (flux * use) @ weights / total, total**2 / (use @ weights**2)


def noisy_spectra(n=6, seed=0):
    """Lines and noise on a curved continuum; 3 % of bad pixels and a gap of 60 Å."""
    rng = np.random.default_rng(seed)
    x = (WAVELENGTH - 6000) / 3000
    curve = 2 + rng.uniform(-0.8, 0.8, (n, 1)) * x + rng.uniform(-0.5, 0.5, (n, 1)) * x**2
    lines = sum(0.4 * np.exp(-(((WAVELENGTH - c) / 8) ** 2)) for c in rng.uniform(3800, 8900, 25))
    flux = curve * (1 - lines) * rng.normal(1, 0.05, (n, WAVELENGTH.size))
    ivar = rng.uniform(100, 900, flux.shape)
    ivar[rng.random(flux.shape) < 0.03] = 0
    ivar[::2, (WAVELENGTH > 4600) & (WAVELENGTH < 4660)] = 0
    return flux.astype(np.float32), ivar.astype(np.float32)


@pytest.fixture(scope="module")
def syntheses(library_file):
    """Emergent spectra on the rest grid, sigma 1 pixel: the coolest, the hottest and a sample between."""
    with np.load(library_file) as library:
        teff = library["labels"][:, list(library["label_names"]).index("teff")]
        order = np.argsort(teff)
        chosen = np.unique([*order[:6], *order[::30], *order[-6:]])
        fine = library["residual_intensity"][chosen] / 60000.0
        nodes = library["continuum"][chosen]
    log_fine = 3.5710 + 2e-5 * np.arange(fine.shape[1])
    continuum = np.array([np.interp(log_fine, np.linspace(3.5710, 3.9553, 257), c) for c in nodes])
    smooth = uniform_filter1d(gaussian_filter1d(fine * continuum, 5.0, axis=1), 5, axis=1)
    flux = smooth[:, 150 : 150 + 5 * WAVELENGTH.size : 5]
    assert flux.shape[1] == WAVELENGTH.size
    return teff[chosen], flux.astype(np.float32)


def smooth_dust(ebv):
    """Transmission of dust whose extinction is a power law, A ∝ λ^-1.3."""
    return 10 ** (-0.4 * 3.1 * ebv * (WAVELENGTH / 5500) ** -1.3)


def ccm_dust(ebv, r_v=3.1):
    """Transmission of dust after Cardelli, Clayton & Mathis 1989, their optical polynomials."""
    y = 1e4 / WAVELENGTH - 1.82
    a = [1, 0.17699, -0.50447, -0.02427, 0.72085, 0.01979, -0.77530, 0.32999]
    b = [0, 1.41338, 2.28305, 1.07233, -5.38434, -0.62251, 5.30260, -2.09002]
    law = np.polynomial.polynomial.polyval(y, a) + np.polynomial.polynomial.polyval(y, b) / r_v
    return 10 ** (-0.4 * law * r_v * ebv)


@pytest.mark.parametrize(("scale", "cutoff"), [(50.0, 5.0), (50.0, 3.0), (30.0, 4.0)])
def test_equation_1_summed_directly(scale, cutoff):
    flux, ivar = noisy_spectra()
    result, result_ivar, continuum = Normalizer(WAVELENGTH, slope=False, scale=scale, cutoff=cutoff).normalize(
        flux, ivar
    )
    expected, support = direct(flux.astype(float), ivar > 0, kernel(cutoff, scale))
    firm = support > 15
    assert firm[:, FITTED].mean() > 0.95
    np.testing.assert_allclose(continuum[firm], expected[firm], rtol=1e-5)
    np.testing.assert_allclose(result[firm], (flux / expected)[firm], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result_ivar[firm], (ivar * expected**2)[firm], rtol=3e-5)


def test_wide_gaps_are_summed_as_exactly():
    """Where few pixels carry the continuum, across gaps and in the widest windows, it is the direct sum still."""
    flux, ivar = noisy_spectra(12)
    for i, width in enumerate(np.linspace(50, 900, 12)):
        ivar[i, np.abs(WAVELENGTH - 4000 - 350 * i) < width / 2] = 0
    expected, support = direct(flux.astype(float), ivar > 0, kernel(5.0))
    _, result_ivar, continuum = PLAIN.normalize(flux, ivar)
    carried = support > 10.01
    assert ((ivar == 0) & carried).any()
    np.testing.assert_allclose(continuum[carried], expected[carried], rtol=2e-5)
    used = result_ivar > 0
    np.testing.assert_allclose(continuum[used], expected[used], rtol=1e-5)


def test_a_pixel_out_of_reach_has_no_continuum():
    flux, ivar = noisy_spectra(2)
    near = Normalizer(WAVELENGTH, slope=False, exclude=[(3000.0, 5000.0), (5600.0, 9999.0)])
    result, result_ivar, continuum = near.normalize(flux, ivar)
    beyond = (WAVELENGTH < 4740) | (WAVELENGTH > 5860)
    assert np.isnan(continuum[:, beyond]).all()
    np.testing.assert_array_equal(result[:, beyond], 1)
    np.testing.assert_array_equal(result_ivar[:, beyond], 0)
    assert np.isfinite(continuum[:, (WAVELENGTH > 5000) & (WAVELENGTH < 5600)]).all()


def test_slope_divides_out_and_comes_back():
    """With the slope the smoothing acts on flux/trend; for flux = trend · g it is Eq 1 of g, times the trend."""
    flux, ivar = noisy_spectra()
    trend = (WAVELENGTH / 5000) ** (-3.0 + np.log(WAVELENGTH / 5000))
    tilted = (flux * trend).astype(np.float32)
    ours = SLOPED.normalize(tilted, ivar)
    untilted = SLOPED.normalize(flux, ivar)
    firm = direct(flux, ivar > 0, kernel(5.0))[1] > 15
    np.testing.assert_allclose(ours[0][firm & FITTED], untilted[0][firm & FITTED], atol=1e-3)
    np.testing.assert_allclose(ours[2][firm] * ours[0][firm], tilted[firm], rtol=1e-5, atol=1e-5)


def test_a_log_log_polynomial_becomes_one():
    x = np.log(WAVELENGTH / 5500)
    flux = np.exp(0.3 - 2.5 * x + np.array([[0.0], [1.5], [-2.0]]) * x**2).astype(np.float32)
    assert np.abs(SLOPED.normalize(flux, np.ones_like(flux))[0] - 1).max() < 1e-3
    assert np.abs(PLAIN.normalize(flux, np.ones_like(flux))[0] - 1)[:, FITTED].max() > 1e-3


def test_the_cutoff_costs_less_than_single_precision(syntheses):
    _, flux = syntheses
    expected, _ = direct(flux.astype(float), np.ones(flux.shape, bool), kernel())
    _, _, continuum = PLAIN.normalize(flux, np.ones_like(flux))
    np.testing.assert_allclose(continuum[:, FITTED], expected[:, FITTED], rtol=1e-5)


# What a polynomial cannot follow of a real dust law is what is left.
@pytest.mark.parametrize(
    ("dust", "ebv", "rms", "most"),
    [(smooth_dust, 1.0, 5e-4, 2e-3), (ccm_dust, 0.3, 5e-4, 2e-3), (ccm_dust, 1.0, 5e-4, 3e-3)],
)
def test_reddening_hardly_matters(syntheses, dust, ebv, rms, most):
    _, flux = syntheses
    ivar = np.ones_like(flux)
    dusty = (flux * dust(ebv)).astype(np.float32)
    change = (SLOPED.normalize(dusty, ivar)[0] - SLOPED.normalize(flux, ivar)[0])[:, FITTED]
    assert np.sqrt(np.mean(change**2)) <= rms
    assert np.abs(change).max() <= most
    without = (PLAIN.normalize(dusty, ivar)[0] - PLAIN.normalize(flux, ivar)[0])[:, FITTED]
    assert np.sqrt(np.mean(without**2)) > 5 * np.sqrt(np.mean(change**2))


def test_continuum_is_defined_wherever_spectra_are_fitted(syntheses):
    teff, flux = syntheses
    assert teff.min() < 7500
    assert teff.max() > 35000
    for normalizer in (SLOPED, PLAIN):
        result, ivar, continuum = normalizer.normalize(flux, np.ones_like(flux))
        assert (ivar[:, FITTED] > 0).all()
        assert (continuum[:, FITTED] > 0).all()
        assert (result[:, FITTED] < 1.5).all()
    # Between the lines the spectrum of a hot star lies near its pseudo-continuum.
    assert np.median(np.abs(result[teff > 15000][:, FITTED & KEPT] - 1)) < 0.01


@given(st.floats(-12, 12))
@settings(max_examples=15, deadline=None)
def test_the_unit_of_flux_does_not_matter(exponent):
    flux, ivar = noisy_spectra(3)
    factor = np.float32(10.0**exponent)
    once = SLOPED.normalize(flux, ivar)
    scaled = SLOPED.normalize(flux * factor, ivar / factor**2)
    defined = once[1] > 0
    np.testing.assert_array_equal(scaled[1] > 0, defined)
    np.testing.assert_allclose(scaled[0][defined], once[0][defined], rtol=2e-5)
    np.testing.assert_allclose(scaled[1][defined], once[1][defined], rtol=1e-4)


def test_signal_to_noise_survives():
    flux, ivar = noisy_spectra()
    result, result_ivar, _ = SLOPED.normalize(flux, ivar)
    defined = result_ivar > 0
    assert defined[:, FITTED].mean() > 0.9
    np.testing.assert_allclose((result**2 * result_ivar)[defined], (flux**2 * ivar)[defined], rtol=1e-5)


@pytest.mark.parametrize("normalizer", [SLOPED, PLAIN])
def test_a_continuum_below_zero_masks(normalizer):
    flux = np.ones((1, WAVELENGTH.size), dtype=np.float32)
    below = (WAVELENGTH > 6400) & (WAVELENGTH < 6800)
    flux[0, below] = -1
    result, ivar, continuum = normalizer.normalize(flux, np.ones_like(flux))
    center = (WAVELENGTH > 6500) & (WAVELENGTH < 6700)
    assert (continuum[0, center] < 0).all()
    np.testing.assert_array_equal(ivar[0, continuum[0] <= 0], 0)
    np.testing.assert_array_equal(result[0, continuum[0] <= 0], 1)
    far = FITTED & ((WAVELENGTH < 6100) | (WAVELENGTH > 7100))
    assert (ivar[0, far] > 0).all()


@pytest.mark.parametrize("least", [10.0, 40.0])
def test_too_little_support_masks(least):
    """Masked exactly where the direct sum has fewer effective pixels, at the pixels where it is evaluated."""
    rng = np.random.default_rng(4)
    flux = np.ones((20, WAVELENGTH.size), dtype=np.float32)
    ivar = (rng.random(flux.shape) < np.linspace(0, 0.6, 20)[:, None]).astype(np.float32)
    _, expected = direct(flux, ivar > 0, kernel(5.0))
    normalizer = Normalizer(WAVELENGTH, slope=False, min_pixels=least)
    result, result_ivar, _ = normalizer.normalize(flux, ivar)
    at = np.zeros(WAVELENGTH.size, dtype=bool)
    at[::8] = True
    sure = at & (np.abs(expected / least - 1) > 1e-4) & (ivar > 0)
    np.testing.assert_array_equal((result_ivar > 0)[sure], (expected >= least)[sure])
    assert 0.1 < (expected[:, ::8] >= least).mean() < 0.9
    np.testing.assert_array_equal(result[~(result_ivar > 0) & (ivar > 0)], 1)


def test_spectra_without_data_are_masked():
    flux = np.zeros((2, WAVELENGTH.size), dtype=np.float32)
    flux[1] = np.nan
    for normalizer in (SLOPED, PLAIN):
        result, ivar, _ = normalizer.normalize(flux, np.array([[0.0], [1.0]]) * np.ones(WAVELENGTH.size))
        np.testing.assert_array_equal(ivar, 0)
        np.testing.assert_array_equal(result, 1)


def test_what_bad_pixels_hold_does_not_matter():
    flux, ivar = noisy_spectra()
    junk = flux.copy()
    junk[ivar == 0] = np.nan
    clean, dirty = SLOPED.normalize(flux, ivar), SLOPED.normalize(junk, ivar)
    np.testing.assert_array_equal(clean[2], dirty[2])
    np.testing.assert_array_equal(clean[1], dirty[1])
    np.testing.assert_array_equal(clean[0][ivar > 0], dirty[0][ivar > 0])
    assert np.isfinite(dirty[0]).all()


@pytest.mark.parametrize("normalizer", [SLOPED, PLAIN])
def test_filled_is_the_same_where_nothing_is_missing(normalizer):
    flux, ivar = noisy_spectra()
    ivar = np.maximum(ivar, 50)
    for filled, plain in zip(
        normalizer.normalize_filled(flux, ivar, np.full_like(flux, np.pi)),
        normalizer.normalize(flux, ivar),
        strict=True,
    ):
        np.testing.assert_allclose(filled, plain, rtol=3e-6)


@pytest.mark.parametrize("normalizer", [SLOPED, PLAIN])
def test_a_model_fills_holes_without_a_trace(syntheses, normalizer):
    """A spectrum with holes, filled from itself, is normalized like the whole spectrum; unfilled it is not."""
    _, flux = syntheses
    ones = np.ones_like(flux)
    rng = np.random.default_rng(5)
    good = rng.random(flux.shape) > 0.03
    for row, start in enumerate(rng.integers(0, WAVELENGTH.size - 60, len(flux))):
        good[row, start : start + 60] = False
    whole = normalizer.normalize(flux, ones)
    holed = np.where(good, flux, np.where(rng.random(flux.shape) < 0.5, np.nan, -1e3)).astype(np.float32)
    filled = normalizer.normalize_filled(holed, good, flux)
    np.testing.assert_allclose(filled[0][good], whole[0][good], rtol=1e-6)
    np.testing.assert_allclose(filled[2], whole[2], rtol=1e-6)
    np.testing.assert_allclose(filled[1][good], whole[1][good], rtol=2e-6)
    np.testing.assert_array_equal(filled[1][~good], 0)
    np.testing.assert_array_equal(filled[0][np.isnan(holed)], 1)
    unfilled = normalizer.normalize(holed, good)
    usable = good & FITTED & (unfilled[1] > 0)
    assert np.abs(unfilled[0] / whole[0] - 1)[usable].max() > 1e-3


def test_filled_is_equation_1_of_the_filled_spectrum():
    flux, ivar = noisy_spectra()
    star, _ = noisy_spectra(seed=1)
    filled = np.where(ivar > 0, flux, star).astype(float)
    expected, _ = direct(filled, np.ones(flux.shape, bool), kernel(5.0))
    result, result_ivar, continuum = PLAIN.normalize_filled(flux, ivar, star)
    np.testing.assert_allclose(continuum, expected, rtol=1e-5)
    np.testing.assert_allclose(result, flux / expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result_ivar, ivar * expected**2, rtol=3e-5)


@pytest.mark.parametrize("size", [1, 2, 5, 64, 70])
def test_rows_do_not_depend_on_their_batch(size):
    flux, ivar = noisy_spectra(70)
    rows = np.random.default_rng(size).permutation(70)[:size]
    for part, whole in zip(SLOPED.normalize(flux[rows], ivar[rows]), SLOPED.normalize(flux, ivar), strict=True):
        np.testing.assert_array_equal(part, whole[rows])
    star, _ = noisy_spectra(70, seed=1)
    for part, whole in zip(
        SLOPED.normalize_filled(flux[rows], ivar[rows], star[rows]),
        SLOPED.normalize_filled(flux, ivar, star),
        strict=True,
    ):
        np.testing.assert_array_equal(part, whole[rows])


def test_a_row_does_not_depend_on_the_gaps_of_others():
    """Gaps need the whole kernel; how many other spectra need it in the same place must not show."""
    flux, ivar = noisy_spectra(300)
    ivar[::3, (WAVELENGTH > 5100) & (WAVELENGTH < 5500)] = 0
    ivar[1::7, WAVELENGTH < 6000] = 0
    order = np.random.default_rng(2).permutation(300)
    for shuffled, straight in zip(
        SLOPED.normalize(flux[order], ivar[order]), SLOPED.normalize(flux, ivar), strict=True
    ):
        np.testing.assert_array_equal(shuffled, straight[order])
    for alone, straight in zip(SLOPED.normalize(flux[:1], ivar[:1]), SLOPED.normalize(flux, ivar), strict=True):
        np.testing.assert_array_equal(alone, straight[:1])


def test_result_types_and_empty_input():
    flux, ivar = noisy_spectra(2)
    before = flux.copy(), ivar.copy()
    for array in normalize(flux, ivar, WAVELENGTH):
        assert array.dtype == np.float32
        assert array.shape == flux.shape
    np.testing.assert_array_equal(flux, before[0])
    np.testing.assert_array_equal(ivar, before[1])
    assert SLOPED.normalize(flux[:0], ivar[:0])[0].shape == (0, WAVELENGTH.size)


def test_impossible_grids_and_windows_are_refused():
    with pytest.raises(ValueError, match="increase"):
        Normalizer(WAVELENGTH[::-1])
    with pytest.raises(ValueError, match="no pixel"):
        Normalizer(WAVELENGTH, exclude=[(3000.0, 9999.0)])
