"""Radiative transfer against exact solutions: Eddington-Barbier, Chandrasekhar, Hopf, and a dense solution."""

import numpy as np
import pytest

from hotdask.library.transfer import eddington_factors, emergent_flux

TAU = np.geomspace(1e-7, 200, 72)


def flux(tau, thermal, planck, factor=None, surface=None):
    """Emergent flux over π of one wavelength, continuum alone."""
    if factor is None:
        factor, surface = eddington_factors(tau, thermal, planck)
    n = len(tau)
    twice = [np.tile(np.asarray(x, dtype=float), (2, 1)) for x in (thermal, 0 * tau, 1 - thermal, planck, factor)]
    first, start = np.zeros(1, dtype=np.int64), np.zeros(1)
    # Unit opacity, so that column mass is optical depth.
    none = np.zeros((1, n, 1)), np.zeros((1, 2, n))
    return emergent_flux(*none, first, start, *twice, np.full(2, surface), first, start, np.asarray(tau))[0, 0]


def h_function_moments(albedo):
    """∫H dμ and ∫μH dμ of Chandrasekhar's H function for isotropic scattering."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    mu, weights = (nodes + 1) / 2, weights / 2
    kernel = weights * mu / (mu + mu[:, None])
    h = np.ones_like(mu)
    for _ in range(5000):
        new = 1 / (np.sqrt(1 - albedo) + albedo / 2 * kernel @ h)
        if np.abs(new - h).max() < 1e-13:
            break
        h = new
    return weights @ h, weights @ (mu * h)


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (1.0, 1.5), (0.0, 1.0), (0.2, 5.0)])
def test_linear_source_function(a, b):
    # Eddington-Barbier: the flux is π S(2/3), exactly.
    thermal = np.ones_like(TAU)
    assert flux(TAU, thermal, a + b * TAU) == pytest.approx(a + 2 / 3 * b, rel=1e-6)
    factor, surface = eddington_factors(TAU, thermal, a + b * TAU)
    # J = a/2 + b/4, H = a/4 + b/6, K = a/6 + b/8.
    assert surface == pytest.approx((a / 4 + b / 6) / (a / 2 + b / 4), rel=6e-4)
    assert factor[0] == pytest.approx((a / 6 + b / 8) / (a / 2 + b / 4), rel=6e-4)
    assert factor[-1] == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize("thermal", [0.9, 0.5, 0.1, 0.01, 1e-3])
def test_isothermal_scattering_atmosphere(thermal):
    # Emergent intensity √ε B H(μ) (Chandrasekhar 1950, §38, by reciprocity); so J = √ε B ∫H dμ/2.
    zeroth, first = h_function_moments(1 - thermal)
    one = np.ones_like(TAU)
    _, surface = eddington_factors(TAU, thermal * one, one)
    assert surface == pytest.approx(first / zeroth, rel=1e-3)
    assert flux(TAU, thermal * one, one) == pytest.approx(2 * np.sqrt(thermal) * first, rel=0.01)


def test_conservative_scattering_is_milnes_problem():
    # H/J = 1/√3 at the surface (Hopf-Bronstein), K = q(∞) H with q(∞) = 0.710446.
    tau = np.geomspace(1e-5, 1e4, 120)
    factor, surface = eddington_factors(tau, np.full(120, 1e-9), 1 + 1e9 * tau)
    assert surface == pytest.approx(1 / np.sqrt(3), rel=3e-4)
    assert factor[0] == pytest.approx(0.710446 / np.sqrt(3), rel=5e-4)
    np.testing.assert_allclose(factor[tau > 20], 1 / 3, rtol=1e-3)


def mixed(tau):
    """An atmosphere that scatters more toward its surface."""
    return np.clip(0.05 + 0.3 * np.log10(1 + tau), 0, 1), 1 + 2 * tau


def test_flux_is_that_of_a_dense_solution():
    """64 layers, as the atmospheres have, against Feautrier's equations on 500."""
    fine = np.geomspace(1e-6, 300, 500)
    thermal, planck = mixed(fine)
    _, surface = eddington_factors(fine, thermal, planck)
    # J of the integral equation, whose quadrature and formal solution are other ones.
    expected = 4 * surface * mean_at_surface(fine, thermal, planck)
    coarse = np.geomspace(1e-6, 300, 64)
    assert flux(coarse, *mixed(coarse)) == pytest.approx(expected, rel=2e-3)


def mean_at_surface(tau, thermal, planck):
    """J at the top from the integral equation J = Λ S, sources linear between depths, by its own quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    mu, weights = (nodes + 1) / 2, weights / 2
    n = len(tau)
    up, down = np.zeros((n, n)), np.zeros((n, n))
    mean = np.zeros((n, n))
    for m, w in zip(mu, weights, strict=True):
        step = np.diff(tau) / m
        through = np.exp(-step)
        share = -np.expm1(-step) / step
        # I⁺ at the bottom: S + μ dS/dτ.
        up[:] = 0
        up[-1, -1], up[-1, -2] = 1 + 1 / step[-1], -1 / step[-1]
        for i in range(n - 2, -1, -1):
            up[i] = through[i] * up[i + 1]
            up[i, i] += 1 - share[i]
            up[i, i + 1] += share[i] - through[i]
        down[:] = 0
        for i in range(1, n):
            down[i] = through[i - 1] * down[i - 1]
            down[i, i] += 1 - share[i - 1]
            down[i, i - 1] += share[i - 1] - through[i - 1]
        mean += w / 2 * (up + down)
    return np.linalg.solve(np.eye(n) - mean * (1 - thermal), mean @ (thermal * planck))[0]


def test_factors_of_the_continuum_serve_where_lines_absorb():
    """What the engine assumes: with line opacity the factors of the continuum still give the flux."""
    tau = np.geomspace(1e-6, 300, 64)
    thermal, planck = mixed(tau)
    factor, surface = eddington_factors(tau, thermal, planck)
    strength = 3.0
    total = tau * (1 + strength)
    with_line = (thermal + strength) / (1 + strength)
    exact = flux(total, with_line, planck)
    n = len(tau)
    twice = [np.tile(x, (2, 1)) for x in (thermal, 0 * tau, 1 - thermal, planck, factor)]
    first, start = np.zeros(1, dtype=np.int64), np.zeros(1)
    lines = np.full((1, n, 1), strength)
    got = emergent_flux(lines, np.zeros((1, 2, n)), first, start, *twice, np.full(2, surface), first, start, tau)[0, 0]
    assert got == pytest.approx(exact, rel=0.01)
    by_hydrogen = emergent_flux(
        np.zeros((1, n, 1)), np.full((1, 2, n), strength), first, start, *twice, np.full(2, surface), first, start, tau
    )[0, 0]
    assert by_hydrogen == pytest.approx(got, rel=1e-12)


def test_wavelengths_are_interpolated():
    n = len(TAU)
    planck = np.stack([1 + 0 * TAU, 3 + 0 * TAU])
    one = np.ones((2, n))
    factor, surface = eddington_factors(TAU, one[0], planck[0])
    index, fraction = np.zeros(3, dtype=np.int64), np.array([0.0, 0.5, 1.0])
    out = emergent_flux(
        np.zeros((1, n, 3)), 0 * one[None], index, fraction, one, 0 * one, 0 * one, planck, np.stack([factor, factor]),
        np.full(2, surface), index, fraction, TAU,
    )  # fmt: skip
    np.testing.assert_allclose(out[0], [1, 2, 3], rtol=1e-6)


def test_an_atmosphere_that_lets_light_through():
    # The last layer passes light from below, where the source grows on.
    tau = np.geomspace(1e-4, 0.5, 40)
    assert flux(tau, np.ones(40), 1 + tau) == pytest.approx(1 + 2 / 3, rel=1e-3)


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0])
def test_a_source_out_of_lte_is_the_ratio_of_emission_to_absorption(gain):
    """Lines alone, both twice as strong or half: another optical depth; emission alone: another source."""
    n = len(TAU)
    one, nothing = np.ones((2, n)), np.zeros((2, n))
    planck = 1 + 1.5 * TAU
    factor, surface = eddington_factors(TAU, one[0], planck)
    tables = [1e-12 * one, nothing, nothing, np.stack([planck, planck]), np.stack([factor, factor])]
    first, start = np.zeros(1, dtype=np.int64), np.zeros(1)
    lines = np.ones((3, n, 1))

    def both(absorbed, emitted):
        lines[1], lines[2] = absorbed - 1, emitted - 1
        hydrogen = np.zeros((3, 2, n))
        return emergent_flux(lines, hydrogen, first, start, *tables, np.full(2, surface), first, start, TAU)[:, 0]

    lte, stronger = both(gain, gain)
    assert lte == pytest.approx(2.0, rel=1e-5)
    assert stronger == pytest.approx(1 + 1 / gain, rel=1e-5)
    assert both(1.0, gain)[1] == pytest.approx(2.0 * gain, rel=1e-5)
    assert both(1.0, 1.0)[1] == both(1.0, 1.0)[0]
