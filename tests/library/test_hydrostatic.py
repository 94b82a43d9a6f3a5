"""Structures below the grid's lowest gravities: closed forms, models of the grid left out, and TLUSTY's."""

import numpy as np
import pytest
from scipy import constants

from hotdask.library.atmospheres import AtmosphereGrid, read_atmospheres
from hotdask.library.hydrostatic import (
    EDDINGTON,
    GasTable,
    describe,
    extend_grid,
    fit_gas,
    flux_mean_ratio,
    stratify,
)

LAYERS = ("log_rhox", "log_temperature", "log_pressure", "log_electron_density", "log_kappa_rosseland")
DEPTH = np.linspace(-5, 2, 64)


def radiation(teff: float) -> float:
    """σTeff⁴/c [erg/cm³]."""
    return constants.Stefan_Boltzmann * teff**4 / constants.c * 10


def power_law_gas(power: float, opacity: float) -> GasTable:
    """Opacity ∝ pressure^power, anywhere between 10⁻⁴ and 10⁷ dyn/cm²."""
    t, p = (x.ravel() for x in np.meshgrid(np.linspace(4.3, 4.7, 10), np.linspace(-4, 7, 60)))
    return fit_gas(t, p, power * p + np.log10(opacity), np.full(len(t), -0.3))


@pytest.mark.parametrize(("teff", "logg", "ratio"), [(20000.0, 4.0, 1.0), (40000.0, 4.2, 1.5), (15000.0, 2.5, 0.7)])
def test_constant_opacity(teff, logg, ratio):
    """P = (g - ratio κ σTeff⁴/c) m and m = τ/κ."""
    one = np.full((1, 64), 4.5), np.full((1, 64), ratio)
    mass, pressure, kappa, share = stratify(np.array([teff]), np.array([logg]), DEPTH, *one, power_law_gas(0.0, 0.35))
    pull = 10**logg - ratio * 0.35 * radiation(teff)
    np.testing.assert_allclose(10 ** kappa[0], 0.35, rtol=1e-4)
    np.testing.assert_allclose(10 ** mass[0], 10**DEPTH / 0.35, rtol=1e-3)
    np.testing.assert_allclose(10 ** pressure[0], pull * 10**DEPTH / 0.35, rtol=1e-3)
    np.testing.assert_allclose(share[0], 1 - pull / 10**logg, rtol=1e-3)
    np.testing.assert_allclose(flux_mean_ratio(teff, logg, mass[0], pressure[0], kappa[0]), ratio, rtol=0.01)


def test_opacity_that_grows_with_pressure():
    """Without radiation P^(1+a) = (1+a) g τ/κ₀ far below the top."""
    one = np.full((1, 64), 4.5), np.zeros((1, 64))
    _, pressure, kappa, _ = stratify(np.array([2e4]), np.array([4.0]), DEPTH, *one, power_law_gas(0.5, 1e-2))
    deep = DEPTH > -1
    expected = (1.5 * 1e4 / 1e-2 * 10 ** DEPTH[deep]) ** (1 / 1.5)
    np.testing.assert_allclose(10 ** pressure[0, deep], expected, rtol=5e-3)
    np.testing.assert_allclose(10 ** kappa[0, deep], 1e-2 * np.sqrt(expected), rtol=5e-3)


def test_radiation_never_outweighs_gravity():
    """Beyond the Eddington limit pressure still grows; the ratio that is returned tells."""
    one = np.full((1, 64), 4.5), np.ones((1, 64))
    _, pressure, _, share = stratify(np.array([5e4]), np.array([3.5]), DEPTH, *one, power_law_gas(0.0, 0.35))
    assert share.min() > 1
    np.testing.assert_allclose(10 ** pressure[0], (1 - EDDINGTON) * 10**3.5 * 10**DEPTH / 0.35, rtol=1e-3)


def part(grid: AtmosphereGrid, keep: np.ndarray) -> AtmosphereGrid:
    arrays = {name: getattr(grid, name)[keep] for name in ("teff", "logg", "mh", *LAYERS)}
    return AtmosphereGrid(name=grid.name, log_tau=grid.log_tau, identity="", **arrays)


@pytest.fixture(scope="module")
def real_grid(synthesis):
    return read_atmospheres(synthesis / "atlas9_hot.npz")


@pytest.fixture(scope="module")
def extended(real_grid):
    return extend_grid(real_grid)


@pytest.mark.parametrize(
    ("teff", "logg", "above", "temperature", "pressure"),
    [
        (12000, 2.5, 0.5, 0.005, 0.01),
        (15000, 2.5, 1.0, 0.01, 0.02),
        (20000, 3.0, 0.5, 0.005, 0.01),
        (20000, 3.0, 1.0, 0.01, 0.02),
        (30000, 3.5, 0.5, 0.02, 0.03),
        (35000, 4.0, 0.5, 0.01, 0.03),
        (39000, 4.0, 0.5, 0.01, 0.03),
    ],
)
def test_models_left_out_are_rebuilt(real_grid, teff, logg, above, temperature, pressure):
    """From models at least as far from the Eddington limit as the one `above` it [dex]; rms over what is seen."""
    kept = real_grid.logg - 4 * np.log10(real_grid.teff) > logg + above - 4 * np.log10(teff) - 0.02
    made = extend_grid(part(real_grid, kept & (real_grid.mh == 0))).interpolate(teff, logg, 0.0)
    true = real_grid.interpolate(teff, logg, 0.0)
    seen = (true.log_tau > -3) & (true.log_tau < 1)

    def rms(name):
        return np.sqrt(np.mean(np.log(getattr(made, name) / getattr(true, name))[seen] ** 2))

    assert rms("temperature") < temperature
    assert max(rms("pressure"), rms("electron_density")) < pressure
    assert rms("rhox") < 0.01


def test_what_is_added_lies_below_what_was_read(real_grid, extended):
    n = len(real_grid.teff)
    assert extended.added == len(extended.teff) - n > 1000
    for name in ("teff", "logg", "mh", *LAYERS):
        np.testing.assert_array_equal(getattr(extended, name)[:n], getattr(real_grid, name))
        assert np.isfinite(getattr(extended, name)).all()
    assert not real_grid.covers(extended.teff[n:], extended.logg[n:], extended.mh[n:]).any()
    assert (np.diff(extended.log_pressure[n:], axis=1) > 0).all()
    assert (np.diff(extended.log_rhox[n:], axis=1) > 0).all()
    assert describe(extended)["models"] == extended.added
    assert describe(real_grid) == {"models": 0}


def test_o_dwarfs_are_covered(real_grid, extended):
    teff = np.linspace(30000, 42000, 200)
    assert not real_grid.covers(teff[teff > 36500], 3.9, 0.0).any()
    for mh in (-1.0, -0.3, 0.0, 0.2):
        assert extended.covers(teff, 3.9, mh).all()
    assert extended.covers(47000.0, 4.0, 0.0)
    # Nothing near the Eddington limit, nothing cool.
    assert not extended.covers([40000.0, 30000.0, 20000.0], [3.5, 3.0, 2.2], 0.0).any()
    cool = np.linspace(7000, 11500, 50)
    np.testing.assert_array_equal(extended.covers(cool, 1.8, 0.0), real_grid.covers(cool, 1.8, 0.0))


@pytest.mark.parametrize("teff", [20000.0, 30000.0, 36000.0, 40000.0, 45000.0])
def test_old_and_new_models_join(real_grid, extended, teff):
    """Across the old floor slopes along log g change no more than between the grid's own two intervals above."""
    floor = real_grid.logg[(real_grid.mh == 0) & (real_grid.teff == teff)].min()
    below, at, above = (extended.interpolate(teff, floor + d, 0.0) for d in (-0.1, 0.0, 0.1))
    seen = (at.log_tau > -2) & (at.log_tau < 0.5)
    # [1/dex]: what a step of 0.1 dex leaves between chord and curve is a twentieth of this.
    for name, limit in (("temperature", 1e-6), ("rhox", 0.15), ("kappa_rosseland", 0.2), ("pressure", 0.9)):
        low, middle, high = (np.log(getattr(a, name)) for a in (below, at, above))
        assert np.abs((high - middle) - (middle - low))[seen].max() / 0.1 < limit, name


def test_tlusty_agrees_below_the_old_floor_as_it_does_above(real_grid, extended, nlte):
    """Models of Lanz & Hubeny 2007 at equal column mass: temperature where light comes from, electrons there."""
    with np.load(nlte / "bstar2006_z1.npz") as file:
        tlusty = {name: file[name] for name in ("teff", "logg", "column_mass", "temperature", "electron_density")}
    found = {True: [], False: []}
    for i, (teff, logg) in enumerate(zip(tlusty["teff"], tlusty["logg"], strict=True)):
        if extended.covers(teff, logg, 0.0):
            ours = extended.interpolate(teff, logg, 0.0)
            seen = (ours.log_tau > -1) & (ours.log_tau < 0.5)
            x, mass = np.log(ours.rhox[seen]), np.log(tlusty["column_mass"][i])
            temperature = np.interp(x, mass, np.log(tlusty["temperature"][i])) - np.log(ours.temperature[seen])
            electrons = np.interp(x, mass, np.log(tlusty["electron_density"][i])) - np.log(ours.electron_density[seen])
            found[bool(real_grid.covers(teff, logg, 0.0))].append((temperature.mean(), electrons.mean()))
    new, old = np.array(found[False]), np.array(found[True])
    assert len(new) >= 10
    assert np.all(np.abs(new[:, 0]) < 0.035)
    assert np.all(np.abs(new[:, 1]) < 0.20)
    assert abs(np.median(new[:, 0]) - np.median(old[:, 0])) < 0.01


def test_a_cool_grid_is_left_as_it_is(real_grid):
    cool = part(real_grid, real_grid.teff < 11000)
    assert extend_grid(cool) is cool
