"""Voigt function against scipy's Faddeeva function; lines against the sum written out."""

import numpy as np
import pytest
from scipy import constants
from scipy.special import wofz

from hotdask.library.metals import add_lines, voigt

A = np.concatenate([[0.0], np.geomspace(1e-4, 100, 43)])
V = np.concatenate([np.linspace(0, 16, 321), np.linspace(16.1, 50, 40)])


def test_voigt_is_the_faddeeva_function():
    got = np.array([[voigt(a, v) for v in V] for a in A])
    exact = wofz(V[None, :] + 1j * A[:, None]).real
    # Measured: 4e-4 of the peak and 1.5e-3 locally, with 0.6 % where a > 10.
    peak = exact[:, :1]
    narrow = A < 5
    assert np.max(np.abs(got - exact)[narrow] / peak[narrow]) < 5e-4
    relative = np.abs(got[1:] / exact[1:] - 1)
    assert relative[narrow[1:]].max() < 2e-3
    assert relative.max() < 8e-3


@pytest.mark.parametrize("a", [0.0, 1e-3, 0.05, 0.5, 3.0])
def test_area_is_root_pi(a):
    v = np.concatenate([np.arange(0, 20, 0.01), np.geomspace(20, 1e5, 4000)])
    area = 2 * np.trapezoid([voigt(a, x) for x in v], v) + 2 * a / np.sqrt(np.pi) / v[-1]
    assert area == pytest.approx(np.sqrt(np.pi), rel=1e-3)


@pytest.mark.parametrize("border", [(0.05, 6.0), (0.05, 14.95), (0.5, 14.5), (3.0, 12.0)])
def test_no_steps_where_approximations_change(border):
    a, v = border
    assert voigt(a, v - 1e-6) == pytest.approx(voigt(a, v + 1e-6), rel=1e-3)


N_LAYER, N_PIXEL = 11, 400
LN_STEP = 1e-5


def inputs(rng, n=6, cut=1e-12):
    """Lines of two elements in three ions, some beyond the ends."""
    position = np.array([-30.5, 0.0, 120.3, 120.9, 399.0, 420.2])[:n]
    return {
        "threshold": np.full((2, N_LAYER), cut),
        "threshold_index": rng.integers(0, 2, n),
        "position": position,
        "ln_step": LN_STEP,
        "frequency": constants.c * 1e10 / (5000 * np.exp(LN_STEP * position)),
        "strength": 10.0 ** rng.uniform(-2, 0, n),
        "energy": rng.uniform(0, 8, n),
        "ion": rng.integers(0, 3, n),
        "element": rng.integers(0, 2, n),
        "lower": np.zeros(n, dtype=np.int64),
        "upper": np.zeros(n, dtype=np.int64),
        "departure": np.ones((1, N_LAYER)),
        "gamma_rad": np.full(n, 1e8),
        "gamma_stark": np.full(n, 1e-6),
        "gamma_vdw": np.full(n, 1e-8),
        "population": rng.uniform(1e17, 1e18, (3, N_LAYER)),
        "doppler": np.array([1.0, 2.5])[:, None] * 1e-5 * np.linspace(1, 1.4, N_LAYER),
        "inverse_kt": 1 / (8.617333e-5 * np.linspace(7000, 30000, N_LAYER)),
        "electrons": np.geomspace(1e12, 1e16, N_LAYER),
        "perturbers": np.geomspace(1e14, 1e17, N_LAYER),
    }


def directly(p):
    """(n_layer, n_pixel): π e²/mc · gf · population · Boltzmann · stimulated emission · Voigt profile."""
    pixel = np.arange(N_PIXEL)
    total = np.zeros((N_LAYER, N_PIXEL))
    strength_unit = constants.e**2 / (4 * constants.epsilon_0 * constants.m_e * constants.c) * 1e4
    for i in range(len(p["position"])):
        nu, beta = p["frequency"][i], p["inverse_kt"]
        doppler = p["doppler"][p["element"][i]]
        gamma = p["gamma_rad"][i] + p["gamma_stark"][i] * p["electrons"] + p["gamma_vdw"][i] * p["perturbers"]
        a = gamma / (4 * np.pi * doppler * nu)
        v = (pixel[None, :] - p["position"][i]) * p["ln_step"] / doppler[:, None]
        profile = wofz(np.abs(v) + 1j * a[:, None]).real / (np.sqrt(np.pi) * doppler[:, None] * nu)
        number = p["population"][p["ion"][i]] * np.exp(-p["energy"][i] * beta)
        number *= 1 - np.exp(-constants.h * nu / constants.e * beta)
        total += strength_unit * p["strength"][i] * number[:, None] * profile
    return total


def test_lines_are_the_sum_written_out():
    p = inputs(np.random.default_rng(1))
    opacity = np.full((1, N_LAYER, N_PIXEL), 0.5)
    add_lines(opacity, **p)
    np.testing.assert_allclose(opacity[0] - 0.5, directly(p), rtol=3e-3, atol=1e-9)


def test_wings_end_at_the_threshold():
    p = inputs(np.random.default_rng(2), n=1)
    p["position"] = np.array([200.4])
    p["frequency"] = constants.c * 1e10 / (5000 * np.exp(LN_STEP * p["position"]))
    exact = directly(p)
    cut = exact[:, 200] / 1e3
    p["threshold"] = np.tile(cut, (2, 1))
    (opacity,) = drawn_lines = np.zeros((1, N_LAYER, N_PIXEL))
    add_lines(drawn_lines, **p)
    drawn = opacity > 0
    assert np.all(drawn[exact > 1.05 * cut[:, None]])
    # One pixel beyond at either end.
    assert np.all(drawn.sum(axis=1) <= (exact > 0.95 * cut[:, None]).sum(axis=1) + 2)
    np.testing.assert_allclose(opacity[drawn], exact[drawn], rtol=3e-3)


def test_faint_lines_are_not_drawn():
    p = inputs(np.random.default_rng(3))
    p["threshold"] = np.full((2, N_LAYER), 1.01 * directly(p).max() * 10)
    (opacity,) = drawn_lines = np.zeros((1, N_LAYER, N_PIXEL))
    add_lines(drawn_lines, **p)
    assert not opacity.any()


def test_a_line_of_one_layer_only_is_drawn():
    # Of layers skipped in the first look, the neighbors decide.
    p = inputs(np.random.default_rng(4), n=3)
    peak = directly(p).max(axis=1)
    p["threshold"] = np.tile(np.where(np.arange(N_LAYER) == 3, peak * 1e-3, peak * 10), (2, 1))
    p["threshold"][:, 5] = peak[5] * 0.5
    (opacity,) = drawn_lines = np.zeros((1, N_LAYER, N_PIXEL))
    add_lines(drawn_lines, **p)
    assert opacity[3].any()
    assert not opacity[8].any()


def test_lines_out_of_lte():
    """Absorption (b_l - b_u e^-x)/(1 - e^-x) and emission b_u times that of LTE; without coefficients as in LTE."""
    rng = np.random.default_rng(5)
    p = inputs(rng)
    p["departure"] = np.concatenate([rng.uniform(0.3, 3, (4, N_LAYER)), np.ones((1, N_LAYER))])
    p["lower"], p["upper"] = np.array([0, 1, 2, 4, 4, 0]), np.array([1, 3, 3, 4, 2, 4])
    opacity = np.zeros((3, N_LAYER, N_PIXEL))
    add_lines(opacity, **p)
    absorbed, emitted = np.zeros((2, N_LAYER, N_PIXEL))
    for i in range(len(p["position"])):
        one = {name: values[i : i + 1] if np.shape(values)[:1] == (6,) else values for name, values in p.items()}
        x = constants.h * p["frequency"][i] / constants.e * p["inverse_kt"]
        below, above = p["departure"][p["lower"][i]], p["departure"][p["upper"][i]]
        lte = directly(one)
        absorbed += lte * ((below - above * np.exp(-x)) / (1 - np.exp(-x)))[:, None]
        emitted += lte * above[:, None]
    np.testing.assert_allclose(opacity[0], directly(p), rtol=3e-3, atol=1e-9)
    np.testing.assert_allclose(opacity[0] + opacity[1], absorbed, rtol=4e-3, atol=1e-9)
    np.testing.assert_allclose(opacity[0] + opacity[2], emitted, rtol=4e-3, atol=1e-9)
