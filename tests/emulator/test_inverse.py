"""The network that starts fits: what it is given, what it changes of an emulator, what it learns."""

import numpy as np
import pytest
import torch

from hotdask import windows
from hotdask.emulator import LowRankEmulator, load_emulator
from hotdask.emulator.inverse import _draw_labels, _observe, learn_inverse, untrained
from hotdask.emulator.source import draw_lsf
from hotdask.labels import INDEX, N_LABELS, RELATIVE
from hotdask.windows import HYDROGEN_MAXIMUM

SHIPPED = load_emulator()
K = SHIPPED.n_basis


@pytest.fixture(scope="module")
def twisted() -> LowRankEmulator:
    """The shipped emulator on another basis, that knows nothing of starts."""
    rng = np.random.default_rng(1)
    turn = rng.normal(size=(K, K))
    a = {name: array.astype(np.float64) for name, array in SHIPPED.arrays.items()}
    arrays = SHIPPED.arrays | {
        "basis": (np.linalg.inv(turn).T @ a["basis"]).astype(np.float32),
        "weight3": (turn @ a["weight3"]).astype(np.float32),
        "bias3": (turn @ a["bias3"]).astype(np.float32),
        **untrained(K),
    }
    return LowRankEmulator(arrays, SHIPPED.card)


@pytest.fixture(scope="module")
def learned(twisted) -> LowRankEmulator:
    return learn_inverse(twisted, draws=20_000, passes=3, seed=5)


def test_the_flux_stays_what_it_was(twisted, learned):
    labels = _draw_labels(SHIPPED, np.random.default_rng(2), 50)
    np.testing.assert_allclose(learned.flux(labels), twisted.flux(labels), atol=2e-5)


def test_coefficients_of_the_shipped_one_are_uncorrelated_with_unit_variance():
    rng = np.random.default_rng(3)
    labels = _draw_labels(SHIPPED, rng, 20_000)
    inputs = SHIPPED.inputs(labels, draw_lsf(rng, len(labels), *SHIPPED.card["training"]["resolving_power"]))
    covariance = np.cov(SHIPPED.coefficients(inputs).numpy().T)
    # Heavy tails: the sample's own scatter is some percent, of some of the variances a third.
    np.testing.assert_allclose(covariance, np.eye(K), atol=0.4)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=0.3)


def test_labels_are_drawn_from_all_of_the_library():
    labels = _draw_labels(SHIPPED, np.random.default_rng(4), 5000)
    assert labels.shape == (5000, N_LABELS)
    assert not SHIPPED.outside(labels).any()
    low, high = (np.log10(SHIPPED.arrays[f"label_{end}"][0]) for end in ("low", "high"))
    counts, _ = np.histogram(np.log10(labels[:, 0]), np.linspace(low, high, 6))
    assert counts.min() > 250
    near = np.abs(labels[:, [INDEX[name] for name in RELATIVE.values()]] - labels[:, [INDEX["fe_h"]]]) < 0.3
    # Half at random over 3 to 5 dex, half normal with 0.3: 34 % and a tenth of the rest.
    assert 0.38 < near.mean() < 0.48


def test_what_it_learns_from_is_what_data_give():
    # The shrunken coefficients of spectra with noise, pixel by pixel, against those drawn in the diagonal of G.
    rng = np.random.default_rng(6)
    n = 4000
    labels = np.tile(_draw_labels(SHIPPED, rng, 1), (n, 1))
    inputs = SHIPPED.inputs(labels)
    truth = SHIPPED.coefficients(inputs)
    drawn = _observe(SHIPPED, truth, inputs, rng)
    masked, snr = drawn[:, K + 1] > 0, 10 ** drawn[:, K]
    assert 0.4 < masked.float().mean() < 0.6
    # Where S/N is high little is shrunk; where it is low the estimate stays near 0, the mean of all stars.
    error = (drawn[:, :K] - truth).norm(dim=1)
    assert error[snr > 200].median() < 0.7 * error[snr < 20].median()
    assert drawn[snr < 10, :K].norm(dim=1).median() < truth[0].norm()


def test_a_short_training_already_finds_the_side(learned):
    rng = np.random.default_rng(7)
    labels = _draw_labels(SHIPPED, rng, 2000)
    inputs = learned.inputs(labels)
    wavelength = windows.rest_wavelength()
    ivar = torch.from_numpy(np.where(windows.inside(wavelength, windows.FIT_MASK), 0, 1e4))
    basis = learned.basis.double()
    information = (basis * ivar) @ basis.T
    right = learned.coefficients(inputs) @ information
    shrunk = torch.linalg.solve(information + torch.eye(K), right.T).T
    used = float((ivar > 0).sum())
    level = torch.full((len(labels),), float(ivar.sum()) / used)
    features = learned.inverse_features(shrunk, level, torch.zeros(len(labels)), inputs[:, N_LABELS:])
    guess = learned.read_off(features.float()).double()
    border = learned.scaled_teff(HYDROGEN_MAXIMUM)
    hot = inputs[:, 0] > border
    mine = torch.where(hot[:, None], guess[:, 1], guess[:, 0])
    error = (mine - inputs[:, :N_LABELS]).abs().median(dim=0).values
    spread = inputs[:, :N_LABELS].std(dim=0)
    assert (error < 0.45 * spread).all()
    assert (error[:2] < 0.15 * spread[:2]).all()


def test_same_seed_same_network(twisted, learned):
    again = learn_inverse(twisted, draws=20_000, passes=3, seed=5)
    for name, array in learned.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array, err_msg=name)
    assert again.card == learned.card
