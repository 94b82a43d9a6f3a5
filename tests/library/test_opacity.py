"""Continuous opacity against published fits other than the ones in use, closed forms and limits."""

import numpy as np
import pytest
from scipy import constants

from hotdask.library import hydrogen, opacity
from hotdask.library.state import K_ERG, solve_state

C = constants.c * 1e10


def gas(kelvin, pressure, mixture=(0.91, 0.09)):
    return solve_state(np.array([float(kelvin)]), np.array([float(pressure)]), np.array(mixture))


def gray_hminus(wavelength, kelvin, electron_pressure):
    """H⁻ absorption per H atom [cm²] of Gray 2005, eqs 8.11-8.13 (after Wishart 1979, Bell & Berrington 1987)."""
    theta = 5040 / kelvin
    bound_free = np.polyval(
        [2.78701e-23, -1.39568e-18, 3.23992e-14, -4.40524e-10, 2.64243e-6, -1.18267e-5, 1.99654], wavelength
    )
    bound_free *= 1e-18 * 4.158e-10 * electron_pressure * theta**2.5 * 10 ** (0.754 * theta)
    bound_free *= 1 - 10 ** (-1.2398e4 / wavelength * theta)
    log = np.log10(wavelength)
    f0 = np.polyval([-0.0533464, 0.76661, -1.6850, -2.2763], log)
    f1 = np.polyval([-0.142631, 1.99381, -9.2846, 15.2827], log)
    f2 = np.polyval([-0.625151, 10.6913, -67.9775, 190.266, -197.789], log)
    free_free = 1e-26 * electron_pressure * 10 ** (f0 + f1 * np.log10(theta) + f2 * np.log10(theta) ** 2)
    return np.where(wavelength < 16419, bound_free, 0.0) + free_free


@pytest.mark.parametrize("kelvin", [5040, 6300, 8000, 10000])
def test_negative_hydrogen_ion_agrees_with_another_fit(kelvin):
    wavelength = np.array([4000.0, 5000, 6000, 8000, 9000, 12000, 16000, 20000])
    state = gas(kelvin, 1e4)
    expected = gray_hminus(wavelength, kelvin, state.electron_density[0] * K_ERG * kelvin)
    got = opacity.hminus(wavelength, state)[:, 0] / state.hydrogen[0]
    np.testing.assert_allclose(got, expected, rtol=0.008)


def test_negative_hydrogen_ion_is_most_transparent_at_its_threshold():
    wavelength = np.arange(5000.0, 22000.0, 50.0)
    kappa = opacity.hminus(wavelength, gas(6000, 1e5))[:, 0]
    assert wavelength[np.argmax(kappa)] == pytest.approx(8500, abs=200)
    assert wavelength[np.argmin(kappa)] == pytest.approx(16400, abs=100)


def test_hot_gas_scatters_by_electrons():
    state = gas(35000, 10, (0.91, 0.09))
    per_electron = opacity.scattering(np.array([4000.0, 9000.0]), state)[:, 0] / state.electron_density[0]
    np.testing.assert_allclose(per_electron, 6.6524587e-25, rtol=1e-5)


def test_cool_gas_scatters_as_rayleigh():
    state = gas(6000, 1e3)
    wavelength = np.array([4000.0, 6000.0, 8000.0])
    rest = opacity.scattering(wavelength, state)[:, 0] - 6.6524587e-25 * state.electron_density[0]
    # Thomson's cross section times (polarizability)² ω⁴ in atomic units; hydrogen's is 9/2 + 319/12 ω² + ...
    omega = 0.5 * 911.267 / wavelength
    # 1.383 is the static polarizability of helium (Pachucki & Sapirstein 2000).
    by_helium = (1.383 / 4.5) ** 2 * state.ions[1, 0, 0] / state.hydrogen[0]
    expected = 6.6524587e-25 * omega**4 * ((4.5 + 319 / 12 * omega**2) ** 2 + 4.5**2 * by_helium)
    np.testing.assert_allclose(rest / state.hydrogen[0], expected, rtol=0.02)


def test_helium_absorbs_as_hydrogen_does_at_high_levels():
    # n = 4 and up of He I are nearly hydrogenic: per atom in a level the same cross section and threshold.
    state = gas(15000, 1e3, (1e-6, 1.0))
    frequency = C / np.array([8300.0, 9000.0])
    got = opacity.helium_bound_free(frequency, state)[:, 0]
    n = np.arange(4, 16)[:, None]
    sigma = 7.907e-18 * n * (109722 * 2.99792458e10 / n**2 / frequency) ** 3
    population = state.ions[1, 0, 0] * 4 * n**2 * np.exp(-(24.5874 - 13.6033 / n**2) / (8.617333e-5 * 15000))
    # Gaunt factors there are 0.92 to 1.0.
    np.testing.assert_allclose(got, (sigma * population).sum(axis=0), rtol=0.06)


def test_helium_has_its_edges():
    # Ionization limits of 3 ³S, 3 ¹S, 3 ³P, 3 ¹P (NIST) [Å].
    state = gas(15000, 1e3)
    for edge in (6634.0, 7438.0, 7846.0, 8263.0):
        blue, red = opacity.helium_bound_free(C / np.array([edge - 8, edge + 8]), state)[:, 0]
        assert blue > 1.02 * red


@pytest.mark.parametrize(
    ("kelvin", "wavelength", "gaunt", "tolerance"),
    # Karzas & Latter 1961, eqs 17-20, averaged over Maxwell's distribution with mpmath. The expansion in use is
    # too large in hot gas.
    [
        (8000, 9000.0, 1.1379, 0.03),
        (10000, 4000.0, 1.1327, 0.03),
        (20000, 5000.0, 1.1884, 0.05),
        (30000, 9000.0, 1.2921, 0.08),
        (50000, 4000.0, 1.2907, 0.09),
    ],
)
def test_free_free_is_kramers_times_the_gaunt_factor(kelvin, wavelength, gaunt, tolerance):
    state = gas(kelvin, 10.0, (1.0, 1e-9))
    got = opacity.free_free(np.array([C / wavelength]), state)[0, 0]
    # Rybicki & Lightman 1979, eq 5.18a.
    kramers = 3.692e8 * state.protons[0] * state.electron_density[0] / np.sqrt(kelvin) / (C / wavelength) ** 3
    assert got / kramers == pytest.approx(gaunt, rel=tolerance)


def test_bound_free_of_metals_matters_only_where_they_are_common():
    poor = gas(12000, 1e3)
    rich = gas(12000, 1e3, (0.5, 0.1, *[1e-12] * 3, 0.4))
    frequency = C / np.array([4000.0, 8000.0])
    for state, low, high in ((poor, 0.0, 1e-30), (rich, 0.3, 10.0)):
        helium_and_hydrogen = opacity.free_free(frequency, state)
        share = opacity.metal_continuum(frequency, state) / helium_and_hydrogen
        assert np.all((share >= low) & (share <= high))


def test_stimulated_emission_is_taken_off():
    # Where hν << kT, absorption at fixed populations falls by hν/kT.
    state = gas(40000, 1.0)
    wavelength = np.array([9000.0])
    x = constants.h * constants.c / (9e-7 * constants.k * 40000)
    frequency = C / wavelength
    parts = hydrogen.bound_free(frequency, 1, state, dissolved=True) + hydrogen.bound_free(
        frequency, 2, state, dissolved=True
    )
    parts = parts + opacity.helium_bound_free(frequency, state) + opacity.free_free(frequency, state)
    got = opacity.absorption(wavelength, state, dissolved=True)
    assert got[0, 0] == pytest.approx(parts[0, 0] * -np.expm1(-x), rel=1e-3)


def test_balmer_and_paschen_edges():
    state = gas(10000, 1e2)
    edges = 1e8 * np.array([4, 9]) / hydrogen.RYDBERG_H
    np.testing.assert_allclose(edges, [3647.0, 8205.9], atol=0.1)
    for edge in edges:
        sharp = opacity.absorption(np.array([edge - 1, edge + 1]), state, dissolved=False)[:, 0]
        smooth = opacity.absorption(np.array([edge - 1, edge + 1]), state, dissolved=True)[:, 0]
        assert sharp[0] > 2 * sharp[1]
        assert smooth[0] == pytest.approx(smooth[1], rel=2e-3)
        assert smooth[0] == pytest.approx(sharp[0], rel=1e-3)
