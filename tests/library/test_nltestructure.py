"""Temperatures of NLTE models in LTE structures: TLUSTY's where it has models, none below, balance kept everywhere."""

import numpy as np
import pytest

from hotdask.library.atmospheres import AtmosphereGrid, read_atmospheres
from hotdask.library.hydrostatic import extend_grid, flux_mean_ratio
from hotdask.library.nltestructure import FADE, correct_temperature

PHOTOSPHERE = (-3.0, 1.0)
"""log10 of the Rosseland depth within which lines and continuum form."""


@pytest.fixture(scope="module")
def atlas(synthesis):
    return extend_grid(read_atmospheres(synthesis / "atlas9_hot.npz"))


@pytest.fixture(scope="module")
def tlusty(synthesis):
    path = synthesis.parent / "nlte" / "bstar2006_z1.npz"
    if not path.exists():
        pytest.skip(f"the populations are not here: {path}")
    return read_atmospheres(path)


@pytest.fixture(scope="module")
def corrected(atlas, tlusty):
    return correct_temperature(atlas, tlusty)


def layers(grid: AtmosphereGrid) -> np.ndarray:
    return (grid.log_tau > PHOTOSPHERE[0]) & (grid.log_tau < PHOTOSPHERE[1])


@pytest.mark.parametrize(("teff", "logg"), [(15000, 4.0), (20000, 3.5), (25000, 4.5), (30000, 4.0)])
def test_solar_models_have_the_temperatures_of_tlusty(corrected, tlusty, teff, logg):
    made, known = corrected.interpolate(teff, logg, 0.0), tlusty.interpolate(teff, logg, 0.0)
    expected = np.interp(np.log10(made.rhox), np.log10(known.rhox), known.temperature)
    np.testing.assert_allclose(made.temperature[layers(corrected)], expected[layers(corrected)], rtol=0.012)


def test_cool_models_are_as_they_were(atlas, corrected):
    cool = atlas.teff <= FADE[0]
    assert cool.sum() > 500
    for name in ("log_rhox", "log_temperature", "log_pressure", "log_electron_density", "log_kappa_rosseland"):
        np.testing.assert_array_equal(getattr(corrected, name)[cool], getattr(atlas, name)[cool])
        assert np.isfinite(getattr(corrected, name)).all()


def test_every_composition_gets_the_same_ratio(atlas, corrected):
    change = corrected.log_temperature - atlas.log_temperature
    for teff, logg in ((20000, 4.0), (40000, 4.5)):
        rows = np.flatnonzero((atlas.teff == teff) & (atlas.logg == logg))
        assert len(rows) > 5
        np.testing.assert_allclose(change[rows], change[rows[:1]].repeat(len(rows), axis=0), atol=1e-9)
        assert np.abs(change[rows]).max() > 0.003


@pytest.mark.parametrize(("teff", "logg"), [(16000, 4.0), (22000, 3.5), (30000, 4.5), (40000, 4.5)])
def test_gas_carries_what_radiation_does_not(atlas, corrected, teff, logg):
    """The flux mean over the Rosseland mean that balance asks for is that of the LTE model."""
    row = int(np.flatnonzero((atlas.teff == teff) & (atlas.logg == logg) & (atlas.mh == 0))[0])
    found, known = (
        flux_mean_ratio(teff, logg, grid.log_rhox[row], grid.log_pressure[row], grid.log_kappa_rosseland[row])
        for grid in (corrected, atlas)
    )
    deep = (atlas.log_tau > -1) & (atlas.log_tau < 1)
    push = 10 ** (4 * np.log10(teff / 3e4) - logg + 3.2)
    # Where radiation carries little, so little says nothing.
    np.testing.assert_allclose(found[deep], known[deep], rtol=0.05, atol=0.03 / push)
