"""Spectra of any sampling and line spread, brought to the observed grid."""

import numpy as np
import pytest

from hotdask.errors import InputError
from hotdask.spectra.degrade import degrade
from hotdask.windows import FIT_MASK, FWHM, SPEED_OF_LIGHT, air_to_vacuum, inside, observed_wavelength

GRID = observed_wavelength()


def _gaussian(wavelength, center, sigma):
    """Of area 1 [Å]."""
    return np.exp(-0.5 * ((wavelength - center) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))


def _irregular():
    return 3600 + np.cumsum(0.5 + 0.2 * np.sin(np.arange(11300) / 200))


SAMPLINGS = {
    "fine": (np.arange(3600, 9200, 0.05), 0.2),
    "logarithmic, R = 20000": (np.exp(np.arange(np.log(3600), np.log(9200), 1 / 60000)), None),
    "0.9 Å": (np.arange(3540.5, 9200, 0.9), 2.5),
    "irregular": (_irregular(), 1.65),
}


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("center", [3850.3, 4861.35, 6500.0, 8700.0])
def test_a_gaussian_line_keeps_its_area_and_gets_the_width_told(name, center):
    wavelength, fwhm = SAMPLINGS[name]
    width = {"resolving_power": 20000} if fwhm is None else {"fwhm": fwhm}
    native = (center / 20000 if fwhm is None else fwhm) / FWHM
    found = degrade(wavelength, 1 - _gaussian(wavelength, center, native), **width)
    told = np.interp(center, GRID, found.sigma[0])
    assert told == pytest.approx(max(center / 1800 / FWHM, native), rel=1e-3)
    expected = _gaussian(GRID, center, told)
    near = np.abs(GRID - center) < 20
    assert 1 - found.flux[0, near] == pytest.approx(expected[near], abs=6e-3 * expected.max())
    assert ((1 - found.flux[0]) * np.gradient(GRID))[near].sum() == pytest.approx(1, rel=1e-3)


def test_a_line_spread_may_vary_and_the_target_too():
    wavelength = np.arange(3600, 9200, 0.4)
    fwhm = np.linspace(1.0, 4.0, len(wavelength))
    target = np.where(GRID < 5900, 1500, 1700)
    found = degrade(wavelength, np.ones_like(wavelength), fwhm=fwhm, target=target)
    wanted = np.maximum(GRID / target, np.interp(GRID, wavelength, fwhm))
    assert found.sigma[0] * FWHM == pytest.approx(wanted, rel=1e-3)
    assert found.flux[0] == pytest.approx(np.ones(len(GRID)))


def test_velocity_and_air_are_taken_out():
    rest, rv = 4481.23, 217.0
    air = np.arange(3600, 9200, 0.2)
    seen = air_to_vacuum(air) / (1 + rv / SPEED_OF_LIGHT)
    found = degrade(air, _gaussian(seen, air_to_vacuum(rest), 0.5), fwhm=0.5 * FWHM, air=True, rv=rv)
    near = np.abs(GRID - air_to_vacuum(rest)) < 12
    centroid = (found.flux[0] * GRID * np.gradient(GRID))[near].sum() / (found.flux[0] * np.gradient(GRID))[near].sum()
    assert centroid == pytest.approx(air_to_vacuum(rest), abs=0.01)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_noise_of_the_output_is_what_is_told(name):
    wavelength, fwhm = SAMPLINGS[name]
    width = {"resolving_power": 20000} if fwhm is None else {"fwhm": fwhm}
    scale = 1 + wavelength / 9000
    noise = scale * np.random.default_rng(5).standard_normal((24, len(wavelength)))
    found = degrade(wavelength, noise, np.broadcast_to(scale**2, noise.shape), **width)
    fitted = ~inside(GRID, FIT_MASK)
    measured = (found.flux.astype(float) ** 2 * found.ivar)[:, fitted].mean()
    assert measured == pytest.approx(found.noise_power[0], rel=0.06)


def test_the_information_of_a_wide_feature_is_kept():
    # Depth of a feature much wider than both samplings: its error must not depend on which pixels it is fitted in.
    wavelength = np.arange(3600, 9200, 0.3)
    variance = np.full(len(wavelength), 0.04)
    found = degrade(wavelength, np.ones(len(wavelength)), variance, fwhm=0.8)
    before = (_gaussian(wavelength, 5200, 30) ** 2 / variance).sum()
    after = (_gaussian(GRID, 5200, 30) ** 2 * found.ivar[0]).sum()
    assert after == pytest.approx(before, rel=1e-3)


def test_bad_pixels_and_what_is_beyond_are_lost_and_nothing_else():
    wavelength = np.arange(4000.0, 6000.0, 0.5)
    flux = np.ones((2, len(wavelength)))
    flux[0, np.abs(wavelength - 5000) < 4] = np.nan
    variance = np.ones_like(flux)
    variance[0, np.abs(wavelength - 5500) < 4] = 0
    found = degrade(wavelength, flux, variance, fwhm=1.2)
    bad = found.ivar == 0
    assert bad[:, (GRID < 4000) | (GRID > 6000)].all()
    assert not bad[:, (GRID > 4010) & (GRID < 4985)].any()
    assert bad[0, np.abs(GRID - 5000) < 3].all()
    assert bad[0, np.abs(GRID - 5500) < 3].all()
    assert not bad[1, (GRID > 4010) & (GRID < 5990)].any()
    assert found.flux[~bad] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fwhm": None}, "line spread"),
        ({"resolving_power": 2000}, "not both"),
        ({"wavelength": np.arange(5000.0, 4000, -1)}, "increase"),
        ({"flux": np.ones(7)}, "column for each"),
        ({"variance": np.ones(7)}, "shape of flux"),
    ],
)
def test_what_makes_no_sense_is_refused(change, told):
    given = {"wavelength": np.arange(4000.0, 5000), "flux": np.ones(1000), "variance": None, "fwhm": 2.0} | change
    with pytest.raises(InputError, match=told):
        degrade(given.pop("wavelength"), given.pop("flux"), given.pop("variance"), **given)
