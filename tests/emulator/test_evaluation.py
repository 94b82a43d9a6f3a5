"""Residual tables and error budgets of emulators whose errors are known because they were put there."""

import numpy as np
import pytest

from hotdask import windows
from hotdask.emulator import load_emulator
from hotdask.emulator.evaluation import TEFF_BINS, WINDOWS, error_budget, held_out_residuals, pixel_weight, project
from hotdask.labels import INDEX, N_LABELS
from hotdask.windows import FIT_MASK, N_REST, inside, rest_wavelength

SHIPPED = load_emulator()
FITTED = ~inside(rest_wavelength(), FIT_MASK)


class Source:
    """Spectra of the shipped emulator plus noise of known σ, for which the emulator is then exact up to the noise."""

    def __init__(self, sigma, teff=15000.0):
        self.sigma, self.teff = sigma, teff

    def draw(self, members, rng):
        labels = np.zeros((len(members), N_LABELS))
        labels[:] = [self.teff, 4, 3, 50, 0.09, 0, 0, 0, 0, 0, 0]
        labels[:, INDEX["vsini"]] += members
        lsf = np.tile([1.12, 0.236, 0, 1.76, 0.236, 0], (len(members), 1))
        flux = SHIPPED.flux(labels, lsf)
        sigma = self.sigma(members)[:, None] if callable(self.sigma) else self.sigma
        return labels, lsf, (flux + sigma * rng.normal(size=flux.shape)).astype(np.float32)


def test_the_dispersion_is_the_sigma_of_gaussian_residuals():
    out = held_out_residuals(SHIPPED, Source(2e-3), np.arange(20), 3, np.random.default_rng(0))
    for name in ("all", "lines", "every", "every_lines", "rms"):
        assert out[name] == pytest.approx(2e-3, rel=0.03), name
    assert list(out["windows"]) == list(WINDOWS)
    for name, row in out["windows"].items():
        assert row["all"] == pytest.approx(2e-3, rel=0.1), name


def test_each_place_has_its_own_residual():
    # 1 % within the Balmer cores and 3 % where nothing is fitted, 0.1 % elsewhere.
    core = inside(rest_wavelength(), WINDOWS["Balmer cores"])
    sigma = np.where(core, 1e-2, np.where(FITTED, 1e-3, 3e-2))
    out = held_out_residuals(SHIPPED, Source(sigma), np.arange(20), 2, np.random.default_rng(0))
    assert out["windows"]["Balmer cores"]["all"] == pytest.approx(1e-2, rel=0.05)
    assert out["windows"]["He II"]["all"] == pytest.approx(1e-3, rel=0.05)
    assert out["rms"] == pytest.approx(np.sqrt((sigma[FITTED] ** 2).mean()), rel=0.03)
    assert out["every"] > 1.2 * out["all"]


def test_bins_of_teff():
    out = held_out_residuals(SHIPPED, Source(1e-3), np.arange(5), 1, np.random.default_rng(0))["teff_bins"]
    assert len(out) == len(TEFF_BINS) - 1
    filled = {name for name, row in out.items() if row["all"] is not None}
    assert filled == {"12000-20000"}
    assert out["12000-20000"]["every"] == pytest.approx(1e-3, rel=0.05)


def test_windows_lie_on_the_grid():
    for name, parts in WINDOWS.items():
        for part in parts:
            assert inside(rest_wavelength(), [part]).sum() >= 3, (name, part)
    alpha = windows.air_to_vacuum(windows.BALMER_AIR["Hα"])
    assert inside(np.array([alpha]), WINDOWS["Balmer cores"]).all()


def test_projection_is_the_weighted_least_squares_fit():
    flux = 1 - 0.1 * np.random.default_rng(1).random((3, N_REST))
    basis, mean = SHIPPED.basis.numpy().astype(float), SHIPPED.mean.numpy().astype(float)
    weight = pixel_weight().astype(float)
    coefficients = np.linalg.lstsq((basis * weight).T, ((flux - mean) * weight).T, rcond=None)[0]
    np.testing.assert_allclose(project(SHIPPED, flux), mean + coefficients.T @ basis, atol=2e-5)
    # What the basis can make stays as it is.
    able = SHIPPED.flux([[15000, 4, 3, 50, 0.09, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_allclose(project(SHIPPED, able), able, atol=2e-5)


class TestBudget:
    def test_white_noise_is_the_basis(self):
        # No basis of 64 holds noise of 3801 pixels.
        out = error_budget(SHIPPED, Source(1e-3), np.arange(20), np.arange(20, 30), 2, np.random.default_rng(0))
        for name in ("basis", "learned", "held_out"):
            assert out[name]["all"] == pytest.approx(1e-3, rel=0.05), name
        assert out["limit"] == "basis"

    def test_a_false_offset_within_the_basis_is_the_network(self):
        direction = SHIPPED.basis.numpy()[0]
        offset = 5e-3 * direction / np.abs(direction).mean()

        class Shifted(Source):
            def draw(self, members, rng):
                labels, lsf, flux = super().draw(members, rng)
                return labels, lsf, flux + offset

        out = error_budget(SHIPPED, Shifted(1e-4), np.arange(20), np.arange(20, 30), 2, np.random.default_rng(0))
        assert out["basis"]["all"] == pytest.approx(1e-4, rel=0.1)
        assert out["learned"]["all"] == pytest.approx(out["held_out"]["all"], rel=0.1)
        assert out["limit"] == "network"

    def test_what_held_out_ones_add_is_the_library(self):
        direction = SHIPPED.basis.numpy()[0]
        offset = 5e-3 * direction / np.abs(direction).mean()

        class Unseen(Source):
            def draw(self, members, rng):
                labels, lsf, flux = super().draw(members, rng)
                return labels, lsf, flux + offset * (members[:, None] >= 20)

        out = error_budget(SHIPPED, Unseen(1e-4), np.arange(20), np.arange(20, 30), 2, np.random.default_rng(0))
        assert out["limit"] == "library"
