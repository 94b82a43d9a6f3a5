"""The error of models, learned from residuals: known errors are found again, and fits become honest by them."""

import numpy as np
import pytest

from hotdask import windows
from hotdask.emulator import load_emulator
from hotdask.labels import LABEL_NAMES, LSF_NAMES
from hotdask.simulation.visits import Simulation, draw_stars, draw_visits, make_spectra
from hotdask.spectra.restframe import noise_power
from hotdask.steps.label import Labeler
from hotdask.steps.modelerror import (
    LEVELS,
    MIN_RESIDUALS,
    add_model_error,
    count_levels,
    smoothing_with,
    solve_model_error,
)

EMULATOR = load_emulator()


def residuals(rng, n: int, error: np.ndarray, noise: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    sigma = noise * rng.uniform(0.5, 2.0, size=(n, error.size))
    return rng.normal(size=sigma.shape) * np.hypot(sigma, error), 1 / sigma**2


@pytest.mark.parametrize("error", [0.002, 0.01, 0.05, 0.2])
def test_known_errors_are_found(error: float) -> None:
    residual, ivar = residuals(np.random.default_rng(1), 40_000, np.full(4, error))
    found, n = solve_model_error(count_levels(residual, ivar, np.ones(len(ivar))))
    np.testing.assert_allclose(found, error, rtol=0.3 if error < 0.005 else 0.03)
    assert (n == 40_000).all()


def test_noise_alone_is_no_model_error() -> None:
    residual, ivar = residuals(np.random.default_rng(2), 20_000, np.zeros(50))
    # Resampling smooths noise, and says by how much.
    found, _ = solve_model_error(count_levels(residual * np.sqrt(0.75), ivar, np.full(len(ivar), 0.75)))
    assert np.median(found) < 5e-4
    assert found.max() < 2e-3
    smoothed, _ = solve_model_error(count_levels(residual, ivar, np.full(len(ivar), 0.75)))
    assert smoothed.min() > 3e-3


@pytest.mark.parametrize("smoothing", [1.0, 0.75, 0.35])
def test_smoothing_is_of_the_noise_and_not_of_the_models(smoothing: float) -> None:
    rng = np.random.default_rng(5)
    sigma, error = 0.005, 0.01
    ivar = np.full((40_000, 3), sigma**-2, dtype=np.float32)
    residual = rng.normal(size=ivar.shape) * np.sqrt(smoothing * sigma**2 + error**2)
    found, _ = solve_model_error(count_levels(residual, ivar, np.full(len(ivar), smoothing)))
    np.testing.assert_allclose(found, error, rtol=0.02)
    both = add_model_error(ivar, np.float32(found))
    expected = smoothing_with(np.full(len(ivar), smoothing), both, np.float32(found), np.ones(3, dtype=bool))
    assert (residual**2 * both).mean() == pytest.approx(expected.mean(), rel=0.02)


def test_counts_add_up_and_outliers_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    residual, ivar = residuals(rng, 4000, np.full(20, 0.02))
    smoothing = np.ones(len(ivar))
    whole = count_levels(residual, ivar, smoothing)
    parts = [count_levels(residual[i::3], ivar[i::3], smoothing[i::3]) for i in range(3)]
    np.testing.assert_array_equal(whole, sum(parts))
    clean, _ = solve_model_error(whole)
    residual[rng.random(residual.shape) < 0.02] = 5.0
    spoiled, _ = solve_model_error(count_levels(residual, ivar, smoothing))
    assert (np.abs(spoiled / clean - 1) < 0.1).all()


def test_few_spectra_are_pooled_with_neighbors() -> None:
    error = np.where(np.arange(400) < 200, 0.01, 0.03)
    residual, ivar = residuals(np.random.default_rng(4), 30, error, noise=0.002)
    ivar[:, 300:] = 0
    found, n = solve_model_error(count_levels(residual, ivar, np.ones(30)))
    assert (n[:305] >= MIN_RESIDUALS).all()
    np.testing.assert_allclose(found[[50, 100, 150]], 0.01, rtol=0.2)
    np.testing.assert_allclose(found[[230, 260]], 0.03, rtol=0.2)
    empty, none = solve_model_error(np.zeros((len(LEVELS) + 1, 5), dtype=np.int64))
    assert (empty == 0).all()
    assert (none == 0).all()


def test_variances_add() -> None:
    ivar = np.array([[4e4, 0.0, 1e4]], dtype=np.float32)
    error = np.array([0.005, 0.1, 0.0], dtype=np.float32)
    np.testing.assert_allclose(add_model_error(ivar, error), [[1 / (0.005**2 + 0.005**2), 0, 1e4]], rtol=1e-6)


def test_fits_become_honest() -> None:
    """Spectra that differ from models by an error of their own in each pixel, as they would if models were wrong."""
    simulation = Simulation(stars=240, spectra=240, broken=0, seed=11, snr=(60.0, 250.0))
    # At rest, so that errors of models are not moved, and smoothed, as if they were noise.
    visits = draw_visits(simulation, draw_stars(simulation, EMULATOR)).assign(rv_true=0.0)
    arrays, _ = make_spectra(visits, EMULATOR, simulation)
    lsf = visits[list(LSF_NAMES)].to_numpy()
    rv = visits["rv_true"].to_numpy()
    observed = windows.observed_wavelength()
    true_error = np.where(observed < 5000, 0.02, 0.004)
    rng = np.random.default_rng(7)
    flux = (arrays["flux"] * (1 + rng.normal(size=arrays["flux"].shape) * true_error)).astype(np.float32)
    plain = Labeler(EMULATOR)
    ivar = plain.usable(arrays["ivar"], arrays["andmask"], arrays["ormask"])
    before = plain.label(flux, ivar, rv, lsf)
    prepared = plain.prepare(flux, ivar, rv, lsf)
    labels = np.column_stack([before[f"{name}_all"] for name in LABEL_NAMES])
    residual = prepared.flux - EMULATOR.flux(labels, prepared.lsf)
    known = np.isfinite(labels).all(axis=1)
    counts = count_levels(residual[known], prepared.ivar[known], noise_power(rv)[known])
    error, _ = solve_model_error(counts)
    rest = windows.rest_wavelength()
    blue, red = (rest > 4000) & (rest < 4900), (rest > 5200) & (rest < 5700)
    # Normalized flux is in units of the continuum; lines are less deep than that.
    np.testing.assert_allclose(np.median(error[blue]), 0.0185, rtol=0.1)
    np.testing.assert_allclose(np.median(error[red]), 0.004, rtol=0.2)

    after = Labeler(EMULATOR, model_error=error.astype(np.float32)).label(flux, ivar, rv, lsf)
    assert np.nanmedian(before["chi2_red"]) > 2
    assert abs(np.nanmedian(after["chi2_red"]) - 1) < 0.05

    def pulls(found, name: str) -> float:
        index = LABEL_NAMES.index(name)
        sigma = np.sqrt(found["covariance"][:, index, index])
        good = known & np.isfinite(sigma) & (found["teff"] < 9000)
        return 1.4826 * np.median(np.abs(found[name] - visits[f"{name}_true"])[good] / sigma[good])

    for name in ("teff", "logg", "fe_h"):
        assert pulls(before, name) > 1.4
        assert 0.75 < pulls(after, name) < 1.3
