"""Fits with per-pixel networks against scipy's least squares on the same networks in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from hotdask import windows
from hotdask.emulator import PerPixelEmulator, load_emulator
from hotdask.labels import INDEX, LABELS, N_LABELS
from hotdask.steps import refine
from hotdask.steps.refine import Refiner

N = 130
"""More than are worked together, so that spectra queue."""
SHIPPED = load_emulator()
WAVELENGTH = windows.rest_wavelength()
USED = {"all": ~windows.inside(WAVELENGTH, windows.FIT_MASK)}
USED["hmasked"] = USED["all"] & ~windows.inside(WAVELENGTH, windows.HYDROGEN)


@pytest.fixture(scope="module")
def emulator(perpixel):
    return perpixel


class Network:
    """All networks for one spectrum's line spread, in float64 from the arrays of the file; labels scaled."""

    def __init__(self, emulator: PerPixelEmulator, lsf: np.ndarray):
        a = {name: value.astype(np.float64) for name, value in emulator.arrays.items()}
        self.w1, self.w2, self.w3, self.b2, self.b3 = (
            a[k] for k in ("weight1", "weight2", "weight3", "bias2", "bias3")
        )
        scaled = (lsf - a["input_center"][N_LABELS:]) / a["input_scale"][N_LABELS:]
        self.b1 = a["bias1"] + self.w1[..., N_LABELS:] @ scaled
        self.w1 = self.w1[..., :N_LABELS]

    def activations(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        one = 1 / (1 + np.exp(-(self.w1 @ x + self.b1)))
        return one, 1 / (1 + np.exp(-(np.einsum("pij,pj->pi", self.w2, one) + self.b2)))

    def flux(self, x: np.ndarray) -> np.ndarray:
        return np.einsum("pi,pi->p", self.w3, self.activations(x)[1]) + self.b3

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        # Forward, label by label, as the fit does not do it.
        one, two = self.activations(x)
        tangents = self.w2 @ ((one * (1 - one))[..., None] * self.w1)
        return np.einsum("pi,pil->pl", self.w3 * two * (1 - two), tangents)


class Case:
    """Noisy spectra of the emulator itself, and labels near theirs."""

    def __init__(self, emulator: PerPixelEmulator, labels: np.ndarray, lsf: np.ndarray, seed: int = 5):
        rng = np.random.default_rng(seed)
        self.emulator, self.truth, self.lsf = emulator, labels, lsf
        snr = rng.uniform(40, 200, len(labels))[:, None]
        flux = emulator.flux(labels, lsf)
        self.ivar = np.where(rng.random(flux.shape) < 0.02, 0, snr**2).astype(np.float32)
        flux += rng.normal(size=flux.shape) / snr
        self.flux = np.where(self.ivar > 0, flux, np.nan).astype(np.float32)
        self.start = labels + rng.normal(size=labels.shape) * 0.02 * emulator.arrays["input_scale"][:N_LABELS]
        self.start[:, 0] = labels[:, 0] * np.exp(rng.normal(0, 0.01, len(labels)))

    def data(self, rows=slice(None)) -> tuple[np.ndarray, ...]:
        return self.flux[rows], self.ivar[rows], self.lsf[rows], self.start[rows]

    def used(self, which: str, i: int) -> np.ndarray:
        return np.flatnonzero(USED[which] & (self.ivar[i] > 0))

    def scipy(self, which: str, i: int, start: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        """Scaled labels at the minimum within the limits, χ² there, and the Gauss-Newton Hessian."""
        network, good = Network(self.emulator, self.lsf[i]), self.used(which, i)
        root, data = np.sqrt(self.ivar[i, good].astype(np.float64)), self.flux[i, good].astype(np.float64)
        end = least_squares(
            lambda x: root * (network.flux(x)[good] - data),
            self.emulator.scale_labels(start).numpy(),
            jac=lambda x: root[:, None] * network.jacobian(x)[good],
            bounds=limits(self.emulator),
            x_scale="jac",
            ftol=1e-12,
            xtol=1e-12,
            gtol=1e-12,
        )
        return end.x, 2 * end.cost, end.jac.T @ end.jac


def limits(emulator: PerPixelEmulator) -> tuple[np.ndarray, np.ndarray]:
    floor, ceiling = np.array([lb.floor for lb in LABELS]), np.array([lb.ceiling for lb in LABELS])
    # A tenth beyond the library, in temperature.
    floor[0], ceiling[0] = emulator.arrays["label_low"][0] / 1.1, emulator.arrays["label_high"][0] * 1.1
    return tuple(emulator.scale_labels(end).numpy() for end in (floor, ceiling))


@pytest.fixture(scope="module")
def case(emulator, draw):
    return Case(emulator, *draw(N, 7))


@pytest.fixture(scope="module")
def solution(case):
    return {which: Refiner(case.emulator).refine(which, *case.data()) for which in ("all", "hmasked")}


@pytest.mark.parametrize("which", ["all", "hmasked"])
def test_the_minimum_is_scipy_s(case, solution, which):
    found = solution[which]
    assert found.converged.mean() > 0.97
    inner = np.flatnonzero(found.converged & ~found.at_bound)[:20]
    assert len(inner) == 20
    for i in inner:
        x, chi2, hessian = case.scipy(which, i, case.start[i])
        sigma = np.sqrt(np.diagonal(np.linalg.inv(hessian)))
        ours = case.emulator.scale_labels(found.labels[i]).numpy()
        assert np.abs((ours - x) / sigma).max() < 0.01
        assert found.chi2[i] == pytest.approx(chi2, abs=0.03)
        assert found.n_pixel[i] == len(case.used(which, i))


def test_covariance_is_the_inverse_hessian(case, solution):
    for i in range(4):
        network, good = Network(case.emulator, case.lsf[i]), case.used("all", i)
        labels = solution["all"].labels[i]
        # Per unit of the labels themselves: Teff enters by its logarithm.
        slope = 1 / case.emulator.arrays["input_scale"][:N_LABELS].astype(np.float64)
        slope[0] /= labels[0] * np.log(10)
        jacobian = network.jacobian(case.emulator.scale_labels(labels).numpy())[good] * slope
        expected = np.linalg.inv(jacobian.T @ (case.ivar[i, good, None] * jacobian))
        sigma = np.sqrt(np.diagonal(expected))
        # The Hessian is that of the last point looked at, a step of at most 0.1 σ before the end.
        np.testing.assert_allclose(
            solution["all"].covariance[i] / np.outer(sigma, sigma), expected / np.outer(sigma, sigma), atol=0.02
        )


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=2 * N))
def test_a_spectrum_knows_nothing_of_its_batch(case, solution, rows):
    again = Refiner(case.emulator).refine("all", *case.data(rows))
    for name in ("labels", "covariance", "chi2", "n_pixel", "iterations", "converged", "at_bound"):
        np.testing.assert_array_equal(getattr(again, name), getattr(solution["all"], name)[rows], err_msg=name)


def test_spectra_that_cannot_be_fitted_stay_unfitted(case, solution):
    flux, ivar, lsf, start = (array[:5].copy() for array in case.data())
    start[1, INDEX["vmic"]] = np.nan
    ivar[2] = 0
    # As many good pixels as labels leave nothing to judge by.
    ivar[3] = 0
    ivar[3, np.flatnonzero(USED["all"])[:N_LABELS]] = 1
    found = Refiner(case.emulator).refine("all", flux, ivar, lsf, start)
    for i in (1, 2, 3):
        assert np.isnan(found.labels[i]).all()
        assert np.isnan(found.covariance[i]).all()
        assert np.isnan(found.chi2[i])
        assert not found.converged[i]
        assert not found.at_bound[i]
        assert found.iterations[i] == 0
    assert found.n_pixel[2:4].tolist() == [0, N_LABELS]
    np.testing.assert_array_equal(found.labels[[0, 4]], solution["all"].labels[[0, 4]])


def test_nothing_to_fit(case):
    found = Refiner(case.emulator).refine("all", *case.data(slice(0, 0)))
    assert found.labels.shape == (0, N_LABELS)


def test_hydrogen_does_not_enter_where_it_is_masked(case, solution):
    flux, ivar, lsf, start = (array[:3].copy() for array in case.data())
    flux[:, USED["all"] & ~USED["hmasked"]] = 0.3
    found = Refiner(case.emulator).refine("hmasked", flux, ivar, lsf, start)
    np.testing.assert_array_equal(found.labels, solution["hmasked"].labels[:3])


def test_limits_hold_and_are_flagged(emulator, draw):
    labels, lsf = (array.copy() for array in draw(6, 11))
    # Stars beyond what a fit may say.
    labels[:3, INDEX["n_he"]] = 0.6
    labels[3:, INDEX["teff"]] = 1.25 * emulator.arrays["label_high"][0]
    case = Case(emulator, labels, lsf)
    found = Refiner(emulator).refine("all", *case.data())
    assert found.at_bound.all()
    low, high = limits(emulator)
    x = emulator.scale_labels(found.labels).numpy()
    assert (x >= low - 1e-9).all()
    assert (x <= high + 1e-9).all()
    for i in np.flatnonzero(found.converged):
        _, chi2, _ = case.scipy("all", i, found.labels[i] * (1 - 1e-9))
        assert found.chi2[i] < chi2 + 0.05
    assert found.converged.sum() >= 4


def test_inner_ends_are_not_flagged(case, solution):
    low, high = limits(case.emulator)
    x = case.emulator.scale_labels(solution["all"].labels).numpy()
    touching = (np.minimum(x - low, high - x) < 1e-9).any(axis=1)
    np.testing.assert_array_equal(solution["all"].at_bound, touching)


@pytest.mark.parametrize("which", ["all", "hmasked"])
def test_chi2_at_given_labels(case, which):
    labels = case.start[:100].copy()
    labels[1, 3] = np.nan
    found = Refiner(case.emulator).chi2_at(which, *case.data(slice(100))[:3], labels)
    assert np.isnan(found[1])
    for i in (0, 2, 99):
        good = case.used(which, i)
        model = Network(case.emulator, case.lsf[i]).flux(case.emulator.scale_labels(labels[i]).numpy())[good]
        expected = np.sum(case.ivar[i, good] * (case.flux[i, good].astype(np.float64) - model) ** 2)
        assert found[i] == pytest.approx(expected, rel=5e-6)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=N))
def test_chi2_knows_nothing_of_its_batch(case, rows):
    flux, ivar, lsf, labels = case.data()
    refiner = Refiner(case.emulator)
    whole = refiner.chi2_at("all", flux, ivar, lsf, labels)
    part = refiner.chi2_at("all", flux[rows], ivar[rows], lsf[rows], labels[rows])
    np.testing.assert_array_equal(part, whole[rows])


def test_few_steps_are_not_an_end(case):
    found = Refiner(case.emulator, max_iterations=1).refine("all", *case.data(slice(3)))
    assert not found.converged.any()
    assert (found.iterations == 1).all()
    assert np.isfinite(found.labels).all()


def test_the_secant_sees_curvature_that_gauss_newton_lacks():
    """Steps on a quadratic form of which a part is known teach the rest."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(2, N_LABELS, N_LABELS))
    half = torch.from_numpy(root @ root.transpose(0, 2, 1) + np.eye(N_LABELS))
    curvature = torch.zeros_like(half)
    whole = 1.5 * half
    for _ in range(40):
        step = torch.from_numpy(rng.normal(size=(2, N_LABELS)))
        curvature = refine._secant(curvature, step, (whole @ step[..., None])[..., 0], half)
        # The secant condition holds after every step.
        np.testing.assert_allclose(((half + curvature - whole) @ step[..., None]).numpy(), 0, atol=1e-9)
    assert (curvature - 0.5 * half).norm() < 0.2 * (0.5 * half).norm()
