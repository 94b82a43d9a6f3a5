"""Broadening against quadrature of Gray's profile and Gaussian sums in Å, in double precision."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline

from hotdask.emulator.broadening import FINE_STEP, LIMB_DARKENING, Broadener, lsf_sigma, mean_lsf
from hotdask.library.synthe import read_npz
from hotdask.windows import REST_LOG_START, SPEED_OF_LIGHT, rest_wavelength

LOG_START, N_FINE = 3.5710, 19216
FINE_LOG = LOG_START + FINE_STEP * np.arange(N_FINE)
FINE = 10**FINE_LOG
REST = rest_wavelength()
FWHM = 2 * np.sqrt(2 * np.log(2))
BROADENER = Broadener(LOG_START, N_FINE)

LINES = np.random.default_rng(5).uniform(3780, 8950, 60)
DEPTHS = np.random.default_rng(6).uniform(0.1, 0.8, LINES.size)
LINE_SIGMA = 30.0  # km/s: two fine pixels, narrow against any line spread
MIXED = np.array([[1.25, 0.20, 0.05, 2.1, 0.3, -0.08], [0.95, 0.24, -0.02, 1.5, 0.15, 0.03]])


def rotation_nodes(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Velocities in units of vsini, and weights, that integrate over Gray's rotational profile (his Eq 17.12)."""
    angle = (np.arange(n) + 0.5) * np.pi / n
    u = np.cos(angle)
    eps = LIMB_DARKENING
    profile = (2 * (1 - eps) * np.sqrt(1 - u**2) + np.pi * eps / 2 * (1 - u**2)) / (np.pi * (1 - eps / 3))
    weight = profile * np.sin(angle) * np.pi / n
    return u, weight / weight.sum()


def rotated(spectrum, vsini: float) -> np.ndarray:
    """Rotational broadening of a function of log10 λ on the fine grid, by quadrature."""
    if vsini == 0:
        return spectrum(FINE_LOG)
    u, weight = rotation_nodes()
    return sum(w * spectrum(FINE_LOG - x * vsini / SPEED_OF_LIGHT / np.log(10)) for x, w in zip(u, weight, strict=True))


def smoothed(flux: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """A Gaussian in Å around every rest pixel, its width from that pixel; direct sums."""
    out = np.empty(REST.size)
    width = np.gradient(FINE)
    for i, (center, sigma) in enumerate(zip(REST, polynomial_sigma(REST, coefficients), strict=True)):
        low, high = np.searchsorted(FINE, [center - 7 * sigma, center + 7 * sigma])
        kernel = np.exp(-0.5 * ((FINE[low:high] - center) / sigma) ** 2) * width[low:high]
        out[i] = flux[low:high] @ kernel / kernel.sum()
    return out


def polynomial_sigma(wavelength: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The convention in words: t = (λ − 4750)/1000 below 5900 Å, (λ − 7450)/1000 above."""
    return np.array(
        [
            c[0] + c[1] * (w - 4750) / 1000 + c[2] * ((w - 4750) / 1000) ** 2
            if w < 5900
            else c[3] + c[4] * (w - 7450) / 1000 + c[5] * ((w - 7450) / 1000) ** 2
            for w in wavelength
        ]
    )


def line_spectrum(log_wavelength: np.ndarray) -> np.ndarray:
    sigma = LINE_SIGMA / SPEED_OF_LIGHT / np.log(10)
    flux = np.ones(log_wavelength.size)
    for line, depth in zip(np.log10(LINES), DEPTHS, strict=True):
        low, high = np.searchsorted(log_wavelength, [line - 8 * sigma, line + 8 * sigma])
        flux[low:high] -= depth * np.exp(-0.5 * ((log_wavelength[low:high] - line) / sigma) ** 2)
    return flux


def broaden(flux: np.ndarray, vsini: float, coefficients: np.ndarray) -> np.ndarray:
    return BROADENER.broaden(BROADENER.transform(flux[None]), np.array([vsini]), np.asarray(coefficients)[None])[0]


@pytest.fixture(scope="module")
def syntheses(library_file):
    """The coolest synthesis, one with sharp metal lines near 10 000 K, and a hot one."""
    library = read_npz(library_file)
    teff = library.labels[:, 0]
    chosen = [np.argmin(np.abs(teff - t)) for t in (7200, 10000, 25000)]
    flux = library.flux[chosen].astype(np.float64)
    return flux / flux.max(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("vsini", "coefficients"),
    [
        (0.0, mean_lsf()),
        (7.0, mean_lsf(2300, 1400)),
        (65.0, MIXED[0]),
        (240.0, MIXED[1]),
        (500.0, mean_lsf(1400, 2300)),
    ],
)
def test_line_spectrum_against_direct_convolution(vsini, coefficients):
    expected = smoothed(rotated(line_spectrum, vsini), coefficients)
    found = broaden(line_spectrum(FINE_LOG), vsini, coefficients)
    assert np.abs(expected - 1).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("member", "vsini", "which"), [(0, 12.0, 0), (1, 90.0, 1), (2, 0.0, 0), (2, 330.0, 1)])
def test_real_synthesis_against_direct_convolution(syntheses, member, vsini, which):
    spectrum = CubicSpline(FINE_LOG, syntheses[member])
    expected = smoothed(rotated(spectrum, vsini), MIXED[which])
    found = broaden(syntheses[member], vsini, MIXED[which])
    # Relative to the flux, which falls steeply over the range; the edges beyond the file are not known to anyone.
    assert np.abs(found / expected - 1)[3:-3].max() < 2e-4


@settings(max_examples=25, deadline=None)
@given(
    vsini=st.floats(0, 500),
    blue=st.floats(1400, 2300),
    red=st.floats(1400, 2300),
    center=st.floats(3.60, 3.94).filter(lambda x: abs(x - np.log10(5900)) > 0.006),
)
def test_equivalent_width_is_conserved(vsini, blue, red, center):
    sigma = LINE_SIGMA / SPEED_OF_LIGHT / np.log(10)
    deep = 1 - 0.7 * np.exp(-0.5 * ((FINE_LOG - center) / sigma) ** 2)
    broadened = broaden(deep, vsini, mean_lsf(blue, red)).astype(np.float64)
    width = (1 - broadened).sum() * 1e-4
    assert width == pytest.approx(0.7 * sigma * np.sqrt(2 * np.pi), rel=2e-3)


def test_no_rotation_leaves_the_gaussian_of_both_widths():
    center, depth = np.log10(4500.0), 0.6
    sigma = LINE_SIGMA / SPEED_OF_LIGHT
    fine = 1 - depth * np.exp(-0.5 * ((FINE_LOG - center) * np.log(10) / sigma) ** 2)
    instrument = 1 / (FWHM * 1800)
    total = np.hypot(sigma, instrument)
    expected = 1 - depth * sigma / total * np.exp(-0.5 * (np.log(REST / 4500) / total) ** 2)
    np.testing.assert_allclose(broaden(fine, 0.0, mean_lsf(1800, 1800)), expected, atol=2e-4, rtol=0)


def test_a_constant_stays_constant():
    assert np.abs(broaden(np.full(N_FINE, 3.0), 200.0, MIXED[0]) - 3).max() < 1e-5


def test_a_spectrum_does_not_feel_its_company():
    rng = np.random.default_rng(1)
    flux = 1 - rng.uniform(0, 0.5, (1, 1)) * (1 - line_spectrum(FINE_LOG)) * rng.uniform(0.2, 1, (37, 1))
    transformed = BROADENER.transform(flux)
    vsini, lsf = rng.uniform(0, 400, 37), np.repeat(MIXED, 19, axis=0)[:37]
    together = BROADENER.broaden(transformed, vsini, lsf)
    for i in (0, 15, 16, 36):
        part = slice(i, i + 1)
        np.testing.assert_allclose(
            BROADENER.broaden(transformed[part], vsini[part], lsf[part])[0], together[i], atol=3e-6
        )


@pytest.mark.parametrize(
    ("log_start", "n_fine"),
    [
        (LOG_START + FINE_STEP / 2, N_FINE),
        (REST_LOG_START + FINE_STEP, N_FINE),
        (LOG_START, N_FINE - 100),
        (3.5523, 1000),
    ],
    ids=["between pixels", "starts too late", "ends too early", "too short"],
)
def test_a_grid_that_does_not_fit_is_refused(log_start, n_fine):
    # The last good length: the rest grid starts 150 fine pixels in and needs 5 · 3800 more.
    with pytest.raises(ValueError, match="does not sample the rest grid"):
        Broadener(log_start, 19150 if n_fine == N_FINE - 100 else n_fine)


def test_the_shortest_grid_that_fits():
    Broadener(LOG_START, 150 + 5 * 3800 + 1)


def test_mean_line_spread_in_closed_form():
    sigma = lsf_sigma(REST, mean_lsf(1800, 1500))
    np.testing.assert_allclose(sigma, REST / FWHM / np.where(REST < 5900, 1800, 1500), rtol=1e-12)
    assert float(lsf_sigma(np.array([5000.0]), mean_lsf())[0]) * FWHM == pytest.approx(2.78, abs=0.005)
    # σ ≈ 71 km/s, as the method states for R = 1800.
    assert SPEED_OF_LIGHT * float(sigma[0]) / REST[0] == pytest.approx(70.7, abs=0.1)


@given(c=st.lists(st.floats(-3, 3), min_size=6, max_size=6))
@settings(max_examples=30, deadline=None)
def test_polynomial_convention(c):
    wavelength = np.array([3750.0, 4750.0, 5899.999, 5900.0, 7450.0, 8990.0])
    np.testing.assert_allclose(lsf_sigma(wavelength, np.array(c)), polynomial_sigma(wavelength, c), atol=1e-12)
    many = lsf_sigma(wavelength, np.tile(c, (2, 3, 1)))
    assert many.shape == (2, 3, 6)
    np.testing.assert_array_equal(many[1, 2], lsf_sigma(wavelength, np.array(c)))
