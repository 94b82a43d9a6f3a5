"""Velocities that are off: found again from simulated spectra, and the labels with them."""

import numpy as np
import pandas as pd
import pytest

from hotdask import config
from hotdask.emulator import load_emulator
from hotdask.flags import Flag
from hotdask.labels import LABEL_NAMES, LSF_NAMES
from hotdask.simulation.visits import Simulation, draw_stars, draw_visits, make_spectra
from hotdask.steps.flag import catalog_flags
from hotdask.steps.label import Labeler
from hotdask.steps.velocity import REACH, is_suspect, scan

EMULATOR = load_emulator()
PLAIN, REFITTING = (Labeler(EMULATOR, config.Fit(refit_rv=on)) for on in (False, True))
OFFSETS = np.array([0.0, 50.0, -50.0, 150.0, -150.0, 400.0, -400.0, 1000.0, -1000.0, 1500.0])
"""True velocity less the one given [km/s], star by star."""
PIXEL = 69.04


@pytest.fixture(scope="module")
def spectra():
    n = 10 * len(OFFSETS)
    simulation = Simulation(stars=n, spectra=n, seed=12, snr=(25.0, 150.0))
    visits = draw_visits(simulation, draw_stars(simulation, EMULATOR))
    arrays, _ = make_spectra(visits, EMULATOR, simulation)
    ivar = PLAIN.usable(arrays["ivar"], arrays["andmask"], arrays["ormask"])
    offset = np.tile(OFFSETS, 10)
    rv = visits["rv_true"].to_numpy() - offset
    return visits, offset, (arrays["flux"], ivar, rv, visits[list(LSF_NAMES)].to_numpy())


@pytest.fixture(scope="module")
def plain(spectra):
    return PLAIN.label(*spectra[2])


@pytest.fixture(scope="module")
def refitted(spectra):
    return REFITTING.label(*spectra[2])


def suspect(found: dict) -> np.ndarray:
    left = found["rv_shift"] - found["rv_refit"]
    return is_suspect(left, found["rv_shift_err"], found["chi2_red"])


def was_refitted(found: dict) -> np.ndarray:
    return found["flags"] & int(Flag.RV_REFITTED) != 0


def test_wrong_velocities_are_corrected(spectra, plain, refitted):
    visits, offset, _ = spectra
    wrong, done = offset != 0, was_refitted(refitted)
    # A linear fit sees shifts of some pixels; those of 1000 km/s it may take for nothing.
    assert suspect(plain)[wrong & (np.abs(offset) < 500)].mean() > 0.95
    assert done[wrong].mean() > 0.98
    pull = (refitted["rv_shift"] - offset)[done] / refitted["rv_shift_err"][done]
    low, middle, high = np.percentile(pull, [15.87, 50, 84.13])
    assert abs(middle) < 0.5
    assert 0.7 < (high - low) / 2 < 1.4
    assert (np.abs(pull) > 5).mean() < 0.02
    # Lines at the wrong place look blurred.
    for name, before, after in (("vsini", 20, 6), ("teff", 0, 100)):
        error = [np.median((f[name] - visits[f"{name}_true"])[done]) for f in (plain, refitted)]
        assert abs(error[0]) > before, name
        assert abs(error[1]) < after, name


def test_the_rest_is_left_as_it_was(plain, refitted):
    same = ~was_refitted(refitted)
    assert same.sum() >= 10
    for name, values in plain.items():
        np.testing.assert_array_equal(refitted[name][same], values[same], err_msg=name)
    assert (refitted["rv_refit"][same] == 0).all()
    assert (refitted["rv_refit"][~same] != 0).all()


def test_refitted_labels_are_those_at_the_velocity_the_column_says(spectra, refitted):
    flux, ivar, rv, lsf = spectra[2]
    rows = np.flatnonzero(was_refitted(refitted))[:8]
    again = PLAIN.label(flux[rows], ivar[rows], (rv + refitted["rv_refit"])[rows], lsf[rows])
    sigma = np.sqrt(np.diagonal(again["covariance"], axis1=1, axis2=2))
    for i, name in enumerate(LABEL_NAMES):
        np.testing.assert_array_less(np.abs(again[name] - refitted[name][rows]), 0.01 * sigma[:, i])
    np.testing.assert_allclose(again["chi2_red"], refitted["chi2_red"][rows], rtol=1e-4)
    total = again["rv_shift"] + refitted["rv_refit"][rows]
    np.testing.assert_allclose(total, refitted["rv_shift"][rows], atol=0.01 * again["rv_shift_err"].max())


def test_company_does_not_matter(spectra, refitted):
    sigma = np.sqrt(np.diagonal(refitted["covariance"], axis1=1, axis2=2))
    for rows in (np.array([7]), np.arange(88, 40, -3)):
        some = REFITTING.label(*(a[rows] for a in spectra[2]))
        np.testing.assert_array_equal(was_refitted(some), was_refitted(refitted)[rows])
        for i, name in enumerate(LABEL_NAMES):
            np.testing.assert_array_less(np.abs(some[name] - refitted[name][rows]), 0.01 * sigma[rows, i])


def test_only_what_is_left_is_suspect(refitted, spectra):
    frame = pd.DataFrame({k: v for k, v in refitted.items() if v.ndim == 1})
    frame = frame.assign(ra=0.0, dec=0.0, snr_g=50.0, rv=spectra[2][2], chi2ratio=0.0)
    flags = catalog_flags(frame, min_teff=7000, min_snr=5, max_chi2ratio=10)["flags"].to_numpy()
    done = was_refitted(refitted)
    assert (np.abs(refitted["rv_shift"][done]) > 100).any()
    assert (flags[done] & int(Flag.VELOCITY_SUSPECT) == 0).all()
    assert (flags[done] & int(Flag.RV_REFITTED) != 0).all()


def test_scan_is_least_squares_of_a_contrast():
    """Against every shift tried with its own contrast."""
    rng = np.random.default_rng(3)
    labels = np.tile([[9000, 4, 2, 80, 0.09, 0, 0, 0, 0, 0, 0], [18000, 4, 2, 250, 0.09, 0, 0, 0, 0, 0, 0.0]], (4, 1))
    model = EMULATOR.flux(labels)
    shift = rng.uniform(-REACH + 2, REACH - 2, len(model))
    pixel = np.arange(model.shape[1])
    flux = np.stack([np.interp(pixel - s, pixel, m) for s, m in zip(shift, model, strict=True)]).astype(np.float32)
    flux += rng.normal(0, 0.01, flux.shape).astype(np.float32)
    ivar = np.full_like(flux, 1e4)
    ivar[:, 1000:1050] = 0
    flux[:, 1000:1050] = np.nan
    found = scan(flux, ivar, model)[0] / PIXEL
    np.testing.assert_allclose(found, shift, atol=0.4)
    for row in range(len(model)):
        chi2 = []
        for k in range(-REACH, REACH + 1):
            moved = np.zeros(model.shape[1])
            here, there = slice(max(k, 0), min(k, 0) or None), slice(max(-k, 0), min(-k, 0) or None)
            moved[here] = 1 - model[row][there]
            use = ivar[row] > 0
            contrast = (moved * (1 - flux[row]))[use].sum() / (moved[use] ** 2).sum()
            chi2.append((((1 - flux[row]) - contrast * moved)[use] ** 2).sum())
        assert abs(found[row] - (np.argmin(chi2) - REACH)) <= 0.5


def test_a_scan_without_a_peak_finds_nothing():
    model = EMULATOR.flux(np.array([[9000, 4, 2, 80, 0.09, 0, 0, 0, 0, 0, 0.0]]))
    for flux, ivar in ((np.ones_like(model), 0 * model), (np.roll(model, REACH + 8, axis=1), np.ones_like(model))):
        velocity, gain = scan(flux, ivar, model)
        assert np.isnan(velocity).all()
        assert (gain == 0).all()
