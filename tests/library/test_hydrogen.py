"""Hydrogen against quantum mechanics in closed form, published tables, and sum rules."""

import re

import numpy as np
import pytest
from scipy import constants

from hotdask.library import hydrogen
from hotdask.library.atoms import data_folder
from hotdask.library.hydrogen import (
    RYDBERG_H,
    bound_free,
    kramers_gaunt,
    level_population,
    line_absorption,
    line_nodes,
    occupation,
    oscillator_strength,
    stark_tables,
)
from hotdask.library.state import State, solve_state

C = constants.c * 1e10
CLASSICAL = np.pi * constants.e**2 / (4 * np.pi * constants.epsilon_0) / (constants.m_e * constants.c) * 1e4
"""π e²/(m c) [cm² Hz]."""


def gas(kelvin, electrons, hydrogen=0.0):
    """One layer of given electron density; its ions have unit density over partition function."""
    one = np.ones(1)
    number = one * electrons
    ions = np.ones((2, 6, 1))
    return State(one * kelvin, number, one, ions, one * hydrogen, number, np.zeros((6, 1)))


def star(kelvin, pressure):
    return solve_state(np.array([float(kelvin)]), np.array([float(pressure)]), np.array([0.91, 0.09]))


@pytest.mark.parametrize(
    ("lower", "upper", "value"),
    # NIST (Wiese & Fuhr 2009); 3-n after Menzel & Pekeris 1935.
    [
        (1, 2, 0.41641),
        (1, 3, 0.079142),
        (2, 3, 0.64108),
        (2, 4, 0.11938),
        (2, 5, 0.044694),
        (2, 6, 0.022105),
        (2, 7, 0.012711),
        (3, 4, 0.84254),
        (3, 5, 0.15067),
        (3, 6, 0.055872),
        (3, 10, 0.0069836),
    ],
)
def test_oscillator_strengths(lower, upper, value):
    # NIST's are of the real atom, 6e-4 higher by its reduced mass.
    assert oscillator_strength(lower, upper) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("lower", [2, 3, 4])
def test_strengths_pass_into_the_continuum(lower):
    # df/dE is continuous across the limit: strengths of high lines over Kramers' are the bound-free Gaunt factor there.
    uppers = np.array([40, 60])
    kramers = 32 / (3 * np.pi * np.sqrt(3)) / (lower**5 * uppers**3.0) / (1 / lower**2 - 1 / uppers**2) ** 3
    gaunt = np.array([oscillator_strength(lower, int(n)) for n in uppers]) / kramers
    limit = gaunt[1] + (gaunt[1] - gaunt[0]) * 40**2 / (60**2 - 40**2)
    assert kramers_gaunt(lower, 0.0) == pytest.approx(limit, rel=0.006)


@pytest.mark.parametrize(("lower", "gaunt"), [(2, 0.876), (3, 0.907), (4, 0.925), (5, 0.935)])
def test_threshold_gaunt_factors(lower, gaunt):
    # Karzas & Latter 1961.
    assert kramers_gaunt(lower, 0.0) == pytest.approx(gaunt, rel=0.006)


def test_bound_free_at_the_paschen_limit():
    state = gas(10000, 1e10)
    limit = 9e8 / RYDBERG_H
    blue, red = bound_free(C / np.array([limit - 0.01, limit + 0.01]), 1, state, dissolved=False)[:, 0]
    # 7.907e-18 n g cm² per atom in the level (Mihalas 1978, §4-4).
    expected = 7.907e-18 * 3 * 0.907 * level_population(3.0, 1, state)[0]
    assert blue - red == pytest.approx(expected, rel=0.005)


def test_ionized_helium_is_hydrogen_scaled():
    # σ(n, Z) = σ(n, 1)/Z² at frequencies Z² higher.
    sparse = gas(20000 * hydrogen.RYDBERG_HE / RYDBERG_H, 1e6)
    frequency = C / np.array([8000.0, 12000.0])
    heavy = bound_free(4 * frequency * hydrogen.RYDBERG_HE / RYDBERG_H, 2, sparse, dissolved=False)
    cold = gas(5000, 1e6)
    light = bound_free(frequency, 1, cold, dissolved=False)
    np.testing.assert_allclose(heavy / light, 1 / 4, rtol=5e-3)


def test_levels_follow_boltzmann():
    state = gas(10000, 1e12)
    ratio = level_population(3.0, 1, state)[0] / level_population(2.0, 1, state)[0]
    assert ratio == pytest.approx(9 / 4 * np.exp(-1.8887 / (8.617333e-5 * 10000)), rel=1e-3)


def test_occupation_limits():
    n = np.arange(1.0, 15.0)
    assert occupation(n, 1, gas(1e4, 1e5)).min() > 0.9999
    assert occupation(n[2:], 1, gas(1e4, 1e22)).max() < 1e-2
    assert occupation(n[:4], 1, gas(1e4, 1e15)).min() > 0.99


@pytest.mark.parametrize("electrons", [1e11, 1e13, 1e15, 1e17])
def test_occupation_falls_with_level_and_density(electrons):
    n = np.linspace(1, 60, 600)
    here, denser = occupation(n, 1, gas(1e4, electrons))[:, 0], occupation(n, 1, gas(1e4, 3 * electrons))[:, 0]
    assert np.all(np.diff(here) <= 0)
    assert np.all(denser <= here)
    assert occupation(10.0, 2, gas(1e4, electrons))[0] > occupation(10.0, 1, gas(1e4, electrons))[0]


@pytest.mark.parametrize("log_electrons", [11, 12, 13, 14, 15, 16])
def test_last_line_is_that_of_inglis_and_teller(log_electrons):
    # Inglis & Teller 1939: log ne = 23.26 - 7.5 log n of the last line.
    n = np.linspace(3, 100, 20000)
    half = n[np.argmin(np.abs(occupation(n, 1, gas(1e4, 10.0**log_electrons))[:, 0] - 0.5))]
    assert half == pytest.approx(10 ** ((23.26 - log_electrons) / 7.5), rel=0.1)


def test_neutral_neighbors_dissolve_levels():
    # Hummer & Mihalas 1988, eq 3.4: exp(-4π/3 N (r_n + r_1)³).
    n, hydrogen_atoms = 10.0, 1e17
    radius = 5.29177e-9 * (n**2 + 1)
    ratio = occupation(n, 1, gas(7000, 1e8, hydrogen_atoms))[0] / occupation(n, 1, gas(7000, 1e8))[0]
    assert ratio == pytest.approx(np.exp(-4 * np.pi / 3 * hydrogen_atoms * radius**3), rel=1e-4)


def test_stark_tables_have_unit_area():
    for (lower, upper), table in stark_tables().items():
        alpha = 10 ** (table.log_start + 0.05 * np.arange(table.log_profile.shape[2]))
        profile = 10**table.log_profile
        area = 2 * (profile[..., 0] * alpha[0] + np.trapezoid(profile * alpha, np.log(alpha), axis=2))
        area += 2 * profile[..., -1] * alpha[-1] / 1.5
        np.testing.assert_allclose(area, 1, rtol=1e-6, err_msg=f"{lower}-{upper}")


def test_stark_tables_are_the_printed_ones():
    # The first row of lemke.dat for Hβ, as printed, before normalization to unit area.
    text = (data_folder() / "lemke.dat").read_text()
    block = re.split(r"nl=\d+ nu=\d+", text)[re.findall(r"nl= *(\d+) nu= *(\d+)", text).index(("02", "04")) + 1]
    table = stark_tables()[2, 4]
    printed = np.array(block.split()[1 : (table.log_profile.shape[2] - 1) // 4 + 2], dtype=float)
    difference = table.log_profile[0, 0, ::4] - printed
    assert np.ptp(difference) < 1e-9
    assert abs(difference[0]) < 0.02


@pytest.mark.parametrize(("lower", "upper"), [(2, 3), (2, 4), (2, 6), (2, 12), (3, 8), (3, 14)])
def test_far_wings_are_quasi_static(lower, upper):
    # Holtsmark: 1.5 β^-5/2 of the ions, twice that where electrons are quasi-static too; β = α/K with
    # K = 5.5e-5 (ij)⁴/(j² - i²) (Griem 1960, ApJ 132, 883).
    table = stark_tables()[lower, upper]
    unit = 5.5e-5 * (lower * upper) ** 4 / (upper**2 - lower**2)
    alpha = 10 ** (table.log_start + 0.05 * (table.log_profile.shape[2] - 1))
    last = 10 ** table.log_profile[4:, :, -1] * unit * (alpha / unit) ** 2.5 / 1.5
    slope = (table.log_profile[4:, :, -1] - table.log_profile[4:, :, -5]) / 0.2
    assert last.min() > 0.85
    assert last.max() < 2.2
    np.testing.assert_allclose(slope, -2.5, atol=0.12)


@pytest.mark.parametrize(
    ("lower", "upper", "half"), [(2, 3, 300), (2, 4, 250), (2, 5, 150), (2, 6, 80), (3, 10, 60), (3, 12, 25)]
)
@pytest.mark.parametrize("kelvin", [8000, 20000])
def test_a_line_absorbs_what_its_strength_says(lower, upper, half, kelvin):
    state = gas(kelvin, 1e12)
    center = 1e8 / RYDBERG_H / (1 / lower**2 - 1 / upper**2)
    low, high = max(center - half, 3725.0), min(center + half, 9040.0)
    nodes, absorbed = line_nodes(low, high), line_absorption(low, high, state, 2.0)[0, 0]
    area = -np.trapezoid(absorbed, C / nodes)
    expected = CLASSICAL * oscillator_strength(lower, upper) * level_population(float(lower), 1, state)[0]
    # Trapezoids through a Gaussian core on these nodes, and the farthest wings.
    assert area == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(("kelvin", "vmic"), [(8000, 0.0), (12000, 15.0)])
def test_cores_are_doppler_profiles(kelvin, vmic):
    state = gas(kelvin, 1e10)
    center = hydrogen._vacuum(2, 3)
    nodes = line_nodes(6500.0, 6630.0)
    absorbed = line_absorption(6500.0, 6630.0, state, vmic)[0, 0]
    half = np.interp(0.5 * absorbed.max(), absorbed[nodes > center][::-1], nodes[nodes > center][::-1]) - center
    doppler = np.sqrt(2 * constants.k * kelvin / (1.00784 * constants.atomic_mass) + (1e3 * vmic) ** 2)
    # Hα's fine structure is not resolved; the tables' first temperatures are those of the gas.
    assert half == pytest.approx(np.sqrt(np.log(2)) * doppler / constants.c * center, rel=0.06)


def test_lines_are_resolved_to_high_levels_in_thin_gas_only():
    def contrast(n, state):
        centers = [1e8 / RYDBERG_H / (1 / 9 - 1 / k**2) for k in (n, n + 1)]
        at = np.interp([centers[0], sum(centers) / 2], nodes, line_absorption(8100.0, 8700.0, state, 2.0)[0, 0])
        return at[0] / max(at[1], 1e-99)

    nodes = line_nodes(8100.0, 8700.0)
    thin, dense = gas(10000, 3e10), gas(10000, 3e14)
    assert contrast(30, thin) > 3
    assert contrast(16, thin) > 30
    assert contrast(16, dense) < 2


@pytest.mark.parametrize(("kelvin", "pressure"), [(8000, 3e2), (10000, 3e0), (10000, 3e3), (20000, 3e2), (20000, 3e4)])
def test_lines_run_into_the_continuum(kelvin, pressure):
    """What lines and dissolved levels absorb, averaged from line to line, goes on from the bound-free absorption.

    df/dE is smooth across the limit, so that opacity of n = 3 times ν³ stays nearly the same. Here it exceeds that
    by up to 26 % where a level survives to 3-30 %: lines are cut half way to the next, which leaves them more area
    than w.
    """
    state = star(kelvin, pressure)
    limit = 9e8 / RYDBERG_H
    nodes = line_nodes(7900.0, 9045.0)
    lines = line_absorption(7900.0, 9045.0, state, 2.0)[0, 0]
    continuum = bound_free(C / nodes, 1, state, dissolved=True)[:, 0]
    beyond = bound_free(np.array([C / (limit + 0.01)]), 1, state, dissolved=False)[0, 0]
    others = np.where(
        nodes > limit,
        bound_free(C / nodes, 1, state, dissolved=False)[:, 0],
        beyond * (nodes / limit) ** 3,
    )
    series = (lines + continuum - others) / nodes**3
    edge = np.interp(limit - 0.1, nodes, series)
    for n in range(11, 45):
        ends = [1e8 / RYDBERG_H / (1 / 9 - 1 / k**2) for k in (n + 0.5, n - 0.5)]
        mean = np.interp(np.linspace(*ends, 4001), nodes, series).mean() / edge
        assert 0.91 < mean < 1.28, n


def test_nodes_are_dense_in_cores():
    nodes = line_nodes(4800.0, 4920.0)
    center = hydrogen._vacuum(2, 4)
    near = nodes[np.abs(nodes - center) < 1]
    assert np.all(np.diff(nodes) > 0)
    assert np.diff(near).max() < 0.2
    assert np.abs(nodes - center).min() < 1e-6
    assert nodes[0] == 4800.0
    assert nodes[-1] == 4920.0
