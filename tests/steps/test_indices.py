"""Line indices against closed forms, an independent polynomial and real spectra."""

import csv

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from hotdask.errors import RunError
from hotdask.spectra.restframe import to_rest_frame
from hotdask.steps.indices import INDICES, guess_teff, line_indices, teff_from_indices
from hotdask.windows import LOG_STEP, N_OBSERVED, OBSERVED_LOG_START, SPEED_OF_LIGHT, air_to_vacuum, rest_wavelength

WAVELENGTH = rest_wavelength()
CENTERS = air_to_vacuum([3934.0, 3968.0, 4102.0])
CONTINUUM = 3.0 - 0.9 * (WAVELENGTH - 4000) / 100


def indices_of(flux, bad=()):
    flux = np.atleast_2d(flux).copy()
    ivar = np.ones_like(flux)
    for low, high in bad:
        gap = slice(*np.searchsorted(WAVELENGTH, (low, high)))
        flux[:, gap] = np.nan
        ivar[:, gap] = 0
    return line_indices(flux, ivar, WAVELENGTH)


@given(
    depth=st.tuples(*[st.floats(-0.5, 0.95)] * 3),
    sigma=st.tuples(*[st.floats(1.0, 2.2)] * 3),
    slope=st.floats(-0.002, 0.002),
    scale=st.floats(1e-3, 1e5),
)
@settings(max_examples=50, deadline=None)
def test_gaussian_lines_on_a_sloped_continuum(depth, sigma, slope, scale):
    depth, sigma = np.array(depth), np.array(sigma)
    lines = np.exp(-0.5 * ((WAVELENGTH - CENTERS[:, None]) / sigma[:, None]) ** 2)
    flux = scale * (1 + slope * (WAVELENGTH - 4000)) * (1 - depth @ lines)
    np.testing.assert_allclose(indices_of(flux)[0], depth * sigma * np.sqrt(2 * np.pi), atol=2e-3)


def test_triangular_line():
    """Base 16 Å, depth 0.7: 5.6 Å."""
    triangle = np.clip(1 - np.abs(WAVELENGTH - CENTERS[2]) / 8, 0, None)
    width = indices_of(CONTINUUM * (1 - 0.7 * triangle))[0]
    np.testing.assert_allclose(width, [0, 0, 5.6], atol=0.02)


def test_integration_ends_at_the_inner_edges():
    """A step continuum line as wide as the gap: the whole gap, 24 Å of air, counts, windows untouched."""
    for k, index in enumerate(INDICES):
        low, high = air_to_vacuum([index.blue[1], index.red[0]])
        fine = np.linspace(3900, 4200, 300_001)
        flux = np.where((fine > low) & (fine < high), 0.25, 1.0)
        width = line_indices(flux[None], np.ones((1, fine.size)), fine)[0, k]
        assert width == pytest.approx(0.75 * (high - low), abs=2e-3)


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 4))
@settings(max_examples=25, deadline=None)
def test_partial_pixels_at_the_edges(seed, step):
    """On any grid: flux in the windows, and f/c in the line, are the integrals of the points joined by lines."""
    wavelength = np.arange(3890.0, 4150.0, step)
    flux = np.random.default_rng(seed).uniform(0.5, 1.5, wavelength.size)
    widths = line_indices(flux[None], np.ones((1, wavelength.size)), wavelength)[0]
    for index, width in zip(INDICES, widths, strict=True):
        (a, b), (c, d) = air_to_vacuum(index.blue), air_to_vacuum(index.red)
        blue, line, red = (np.linspace(low, high, 20001) for low, high in ((a, b), (b, c), (c, d)))
        low, high = (np.trapezoid(np.interp(x, wavelength, flux), x) / np.ptp(x) for x in (blue, red))
        continuum = low + (high - low) * (wavelength - (a + b) / 2) / ((c + d) / 2 - (a + b) / 2)
        expected = np.trapezoid(np.interp(line, wavelength, 1 - flux / continuum), line)
        assert width == pytest.approx(expected, abs=1e-4)


def test_windows_are_converted_from_air():
    """A narrow spike just inside the vacuum position of a window edge moves the continuum; just outside it does not."""
    fine = np.arange(3900, 4200, 0.01)
    edge = float(air_to_vacuum(3912.0))
    for offset, counts in ((0.1, True), (-0.1, False)):
        flux = 1 + 5 * (np.abs(fine - edge - offset) < 0.05)
        width = line_indices(flux[None], np.ones((1, fine.size)), fine)[0, 0]
        assert bool(abs(width) > 0.1) is counts


@pytest.mark.parametrize(
    ("bad", "missing"),
    [
        ((3932, 3936), [False, False, False]),
        ((3931, 3941), [True, False, False]),
        ((3947, 3950), [False, False, False]),
        ((3946, 3958), [True, True, False]),
        ((4115, 4121.5), [False, False, True]),
        ((4116, 4119.5), [False, False, False]),
        ((4100, 4104), [False, False, False]),
    ],
)
def test_gaps(bad, missing):
    """Short gaps change little, long ones give NaN, and only for the index they lie in."""
    lines = np.exp(-0.5 * ((WAVELENGTH - CENTERS[:, None]) / 4) ** 2)
    flux = CONTINUUM * (1 - np.array([0.3, 0.3, 0.3]) @ lines)
    whole, gapped = indices_of(flux)[0], indices_of(flux, [bad])[0]
    assert np.isnan(gapped).tolist() == missing
    kept = ~np.array(missing)
    np.testing.assert_allclose(gapped[kept], whole[kept], atol=0.25)


def test_gap_on_a_flat_spectrum_is_exact():
    """Interpolation in f/c: on a pure continuum nothing changes, however steep it is."""
    np.testing.assert_allclose(indices_of(CONTINUUM, [(3932, 3936), (3914, 3917), (4118, 4121)]), 0, atol=1e-12)


@pytest.mark.parametrize("flux", [np.zeros(3801), -np.ones(3801), np.full(3801, np.nan)])
def test_no_continuum_gives_nan(flux):
    assert np.isnan(indices_of(flux)).all()


def test_rows_do_not_depend_on_their_batch():
    rng = np.random.default_rng(2)
    flux = rng.normal(1, 0.2, (50, 3801)).astype(np.float32)
    ivar = (rng.random(flux.shape) > 0.05).astype(np.float32)
    whole = line_indices(flux, ivar, WAVELENGTH)
    assert np.isfinite(whole).mean() > 0.5
    for rows in (slice(0, 1), slice(7, 8), slice(3, 33), slice(None, None, -1)):
        for layout in (np.ascontiguousarray, np.asfortranarray):
            part = line_indices(layout(flux[rows]), layout(ivar[rows]), WAVELENGTH)
            np.testing.assert_array_equal(part, whole[rows])


# Eq 4 once more, typed from the paper in its own order: constant, linear, squares, products, and so on.
EQUATION_4 = np.zeros((4, 4, 4))
for _powers, _value in (
    ("000", 4.71047), ("100", -4.43455e-2), ("010", -5.37380e-2), ("001", 3.46889e-2), ("200", -5.68345e-3),
    ("020", -1.26749e-2), ("002", -2.40555e-2), ("110", 1.26779e-2), ("101", -4.19722e-2), ("011", 2.34087e-2),
    ("111", 8.44885e-4), ("210", -9.98430e-4), ("201", 2.23513e-3), ("120", 6.24433e-4), ("102", 1.40913e-3),
    ("021", -1.78560e-3), ("012", 1.85542e-3), ("300", 5.01277e-4), ("030", 5.10836e-4), ("003", 1.52060e-4),
):  # fmt: skip
    EQUATION_4[tuple(int(p) for p in _powers)] = _value


@given(st.lists(st.tuples(st.floats(-5, 15), st.floats(-5, 20), st.floats(-5, 15)), min_size=1, max_size=5))
def test_polynomial(widths):
    widths = np.array(widths)
    expected = 10 ** np.polynomial.polynomial.polyval3d(*widths.T, EQUATION_4)
    np.testing.assert_allclose(teff_from_indices(widths), expected, rtol=1e-9)


def test_guess_is_clipped_or_missing_and_says_so():
    lines = np.exp(-0.5 * ((WAVELENGTH - CENTERS[:, None]) / 4) ** 2)
    flux = CONTINUUM * np.array([np.ones(3801), 1 - np.array([0.05, 0.45, 0.5]) @ lines, np.ones(3801)])
    ivar = np.ones_like(flux)
    ivar[2, slice(*np.searchsorted(WAVELENGTH, (4080, 4125)))] = 0
    teff, clipped, missing = guess_teff(flux, ivar, WAVELENGTH, low=7500, high=40000)
    raw = teff_from_indices(line_indices(flux, ivar, WAVELENGTH))
    assert raw[0] > 40000
    assert teff[0] == 40000
    assert 7500 < raw[1] < 40000
    assert teff[1] == raw[1]
    assert np.isnan(teff[2])
    assert clipped.tolist() == [True, False, False]
    assert missing.tolist() == [False, False, True]


def test_absurd_widths_are_clipped_without_a_warning():
    teff = teff_from_indices(np.array([[0, 0, 1e6], [0, 0, -1e6], [np.nan, 0, 0]]))
    assert teff[0] == np.inf
    assert teff[1] == 0
    assert np.isnan(teff[2])


def test_wrong_grids_are_refused():
    with pytest.raises(RunError, match="C3933 needs 3913"):
        line_indices(np.ones((1, 100)), np.ones((1, 100)), np.linspace(4000, 4200, 100))
    with pytest.raises(RunError, match="rows"):
        line_indices(np.ones(3801), np.ones(3801), WAVELENGTH)


@pytest.fixture(scope="module")
def real_guesses(lamost_files):
    """Subclass and Teff guess of real spectra, S/N > 30, image layout with wavelengths in row 2."""
    subclass, flux, ivar, rv = [], [], [], []
    with open(lamost_files / "inventory.csv", newline="") as table:
        rows = [r for r in csv.DictReader(table) if r["layout"].endswith("row2=wave") and r["cls"] == "STAR"]
    for row in rows:
        if row["subclass"][:1] not in "AF" or float(row["snr_g"]) < 30:
            continue
        with fits.open(lamost_files / row["file"]) as hdus:
            image = hdus[0].data.astype(float)
        start = round((np.log10(image[2, 0]) - OBSERVED_LOG_START) / LOG_STEP)
        f, w = np.zeros((2, N_OBSERVED))
        pixels = slice(start, start + image.shape[1])
        f[pixels], w[pixels] = image[0], np.where(image[3] == 0, image[1], 0)
        subclass.append(row["subclass"])
        flux.append(f)
        ivar.append(w)
        rv.append(SPEED_OF_LIGHT * float(row["z"]))
    rest, rest_ivar = to_rest_frame(np.array(flux), np.array(ivar), np.array(rv))
    return np.array(subclass), *guess_teff(rest, rest_ivar, WAVELENGTH, low=5500, high=60000)


def test_real_f_stars_come_out_cool(real_guesses):
    subclass, teff, _, missing = real_guesses
    late_f = np.array([s[:2] in ("F5", "F6", "F7", "F8", "F9") for s in subclass]) & ~missing
    assert late_f.sum() >= 20
    assert np.mean((teff[late_f] > 6000) & (teff[late_f] < 7600)) > 0.8


def test_real_a_stars_come_out_hotter_than_f_stars(real_guesses):
    subclass, teff, _, missing = real_guesses
    a = np.char.startswith(subclass, "A") & ~missing
    f = np.char.startswith(subclass, "F") & ~missing
    early = np.isin(subclass, ["A1V", "A1IV", "A2IV", "A2V"]) & ~missing
    assert a.sum() >= 10
    # The chance that a random A star's guess is above a random F star's; 0.5 would be no information.
    assert np.mean(teff[a][:, None] > teff[f]) > 0.85
    assert np.median(teff[a]) > np.median(teff[f]) + 2000
    # Known bias of Eq 4 with straight continua: A1-A2 stars (true 9000-9300 K) at 11000-12000 K.
    assert early.sum() >= 3
    assert 10000 < np.median(teff[early]) < 13000
