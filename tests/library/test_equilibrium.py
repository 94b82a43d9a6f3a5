from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hotdask.library.abundances import SOLAR
from hotdask.library.collisions import allowed_excitation
from hotdask.library.departuregrid import departures
from hotdask.library.elements import hydrogen_and_helium, lte_fractions, model_element
from hotdask.library.equilibrium import Background, frequency_grid, planck, solve_equilibrium
from hotdask.library.metalions import ionization_balance, metal_absorption, metal_gas
from hotdask.library.modelatoms import CrossSection
from hotdask.library.radiation import transfer
from hotdask.library.state import H_ERG, K_ERG

N_LAYER = 40


def _isothermal(temperature: float, deepest: float):
    """Structure of 40 layers with constant density."""
    column = np.geomspace(1e-6, deepest, N_LAYER)
    layers = np.ones(N_LAYER)
    return temperature * layers, 1e14 * layers, 2.3e-10 * layers, column


def _gray(frequency, electrons, opacity):
    return Background(absorption=np.full((len(frequency), N_LAYER), opacity), scattering=6.65e-25 * electrons)


def test_transfer_meets_the_square_root_law():
    # Isothermal half-space with scattering: S(0) = √ε B, exactly, whatever the phase of the iteration.
    for epsilon in (1e-1, 1e-2, 1e-4):
        tau = np.concatenate([[0.0], np.geomspace(1e-4, 1e5, 120)])
        n = len(tau)
        eddington, surface, mean, diagonal = np.full(n, 1 / 3), np.array([0.5]), np.empty(n), np.empty(n)
        for _ in range(30):
            transfer(np.diff(tau), np.full(n, epsilon), np.full(n, epsilon), 1.0, eddington, surface, mean, diagonal)
        source = epsilon + (1 - epsilon) * mean[0]
        assert source == pytest.approx(np.sqrt(epsilon), rel=0.02)


def test_diagonal_is_the_response_of_the_mean_intensity():
    generator = np.random.default_rng(3)
    n = 30
    step, share = generator.uniform(1e-3, 3.0, n - 1), generator.uniform(0.05, 1.0, n)
    source = share * generator.uniform(0.5, 2.0, n)

    def solve(source):
        mean, diagonal = np.empty(n), np.empty(n)
        transfer(step, share, source, 1.0, np.full(n, 0.4), np.array([0.5]), mean, diagonal)
        return mean, diagonal

    mean, diagonal = solve(source)
    for i in (0, 1, 13, n - 2):
        changed = source.copy()
        changed[i] *= 1.1
        assert (solve(changed)[0] - mean)[i] == pytest.approx(diagonal[i] * 0.1 * source[i], rel=1e-9)


def _two_levels():
    """An atom with two levels, one line, and an ion that nothing leads to."""
    hydrogen = hydrogen_and_helium()[0].ions[0]
    closed = CrossSection(np.array([0.0, 1.0]), np.array([-1.0, -4.0]))
    none = np.zeros(1)
    ion = replace(
        hydrogen, charge=0, binding=np.array([3.0e15, 2.5e15]), weight=np.array([2.0, 2.0]),
        quantum_number=np.array([1, 2]), label=np.array(["lower", "upper"]), lower=np.array([0]), upper=np.array([1]),
        strength=np.array([0.4]), radiative=np.array([True]), collision=none.astype(int), collision_value=none,
        stark=none, cross_sections=(closed, closed), ionization_value=np.zeros(2),
    )  # fmt: skip
    return model_element(3, [ion])


def test_two_level_atom_has_the_square_root_of_its_coupling_at_the_surface():
    temperature, electrons, density, column = _isothermal(8000.0, 1e4)
    electrons = 0.1 * electrons
    element = _two_levels()
    frequency = frequency_grid([element], 8000.0, 2.0)
    result = solve_equilibrium(
        [element], [1e4 * np.ones(N_LAYER)], frequency, _gray(frequency, electrons, 1e-30),
        temperature, electrons, density, column, tolerance=1e-3,
    )  # fmt: skip
    x = H_ERG * 5e14 / (K_ERG * 8000.0)
    # Downward rates: by electrons, and A of the line (8π²e²/mc³ ν² g_l/g_u f).
    collisions = 1e13 * allowed_excitation(5e14, 0.4, temperature, neutral=True)[0] * np.exp(x) * (1 - np.exp(-x))
    epsilon = collisions / (collisions + 7.4215e-22 * 5e14**2 * 0.4)
    lower, upper = result.b[0][0], result.b[0][1]
    # S/B of a line is (e^x - 1) / (b_l/b_u e^x - 1).
    source = np.expm1(x) / (lower / upper * np.exp(x) - 1)
    assert source[0] == pytest.approx(np.sqrt(epsilon), rel=0.02)
    assert source[-2] == pytest.approx(1.0, abs=0.01)


def test_collisions_alone_give_lte():
    temperature, electrons, density, column = _isothermal(15000.0, 1.0)
    hydrogen, _ = hydrogen_and_helium()
    frequency = frequency_grid([hydrogen], 15000.0, 2.0)
    result = solve_equilibrium(
        [hydrogen], [1e14 * np.ones(N_LAYER)], frequency, _gray(frequency, electrons, 1e-12),
        temperature, electrons, density, column, collision_scale=1e12,
    )  # fmt: skip
    np.testing.assert_allclose(result.b[0], 1.0, rtol=1e-5)


def test_departures_vanish_at_depth_and_only_there():
    temperature, electrons, density, column = _isothermal(15000.0, 1e4)
    hydrogen, _ = hydrogen_and_helium()
    frequency = frequency_grid([hydrogen], 15000.0, 2.0)
    result = solve_equilibrium(
        [hydrogen], [1e14 * np.ones(N_LAYER)], frequency, _gray(frequency, electrons, 1e-11),
        temperature, electrons, density, column,
    )  # fmt: skip
    np.testing.assert_allclose(result.b[0][:, -6:], 1.0, rtol=2e-3)
    # Light escapes from the top, so that atoms pile up in the ground state.
    assert result.b[0][0, 0] > 2


def test_populations_add_up_to_the_total():
    hydrogen, helium = hydrogen_and_helium()
    for element in (hydrogen, helium):
        share = lte_fractions(element, np.array([8000.0, 40000.0]), np.array([1e12, 1e15]))
        np.testing.assert_allclose(share.sum(axis=0), 1.0)
        # Saha: the ratio of ions times electrons depends on temperature alone.
        other = lte_fractions(element, np.array([8000.0, 40000.0]), np.array([1e13, 1e16]))
        np.testing.assert_allclose(share[-1] / share[0] / (other[-1] / other[0]), 10.0 ** element.charge[-1])


def test_metals_in_black_body_light_are_in_lte():
    temperature, electrons, _, _ = _isothermal(18000.0, 1.0)
    edges = np.geomspace(5e13, 3e16, 201)
    gas = metal_gas(edges, temperature, electrons, 1e14 * np.ones(N_LAYER), 10**SOLAR)
    light = planck(gas.frequency, temperature)
    for b in ionization_balance(gas, light, light):
        np.testing.assert_allclose(b, 1.0, rtol=1e-10)
    # More light than that ionizes.
    for b in ionization_balance(gas, 2 * light, light):
        assert (np.diff(b, axis=0) > 0).any()
    absorbed, emitted = metal_absorption(gas, ionization_balance(gas, light, light))
    assert (absorbed >= emitted * 0.999999).all()


SHARED = Path(__file__).resolve().parents[3] / "shared" / "nlte" / "bstar2006_z1.npz"


@pytest.mark.parametrize(("teff", "logg"), [(20000, 4.0)])
def test_departures_are_those_of_the_line_blanketed_models_of_lanz_and_hubeny(teff, logg):
    if not SHARED.exists():
        pytest.skip("needs the BSTAR2006 populations, ../shared/nlte, which are not part of the project")
    with np.load(SHARED, allow_pickle=False) as data:
        i = int(np.flatnonzero((data["teff"] == teff) & (data["logg"] == logg))[0])
        column, temperature, electrons = (data[name][i] for name in ("column_mass", "temperature", "electron_density"))
        population = 10.0 ** data["log10_population"][i, :, :55].astype(np.float64).T
    abundances = 10**SOLAR
    abundances[0] = 10 * abundances[1]
    nuclei = population[:10].sum(axis=0) * abundances.sum() / abundances[0]
    result = departures(temperature, (nuclei + electrons) * K_ERG * temperature, column, abundances)
    forming = (np.log10(column) > -2) & (np.log10(column) < 0.5)
    limits = ((0, (1, 2, 3), 0.04), (1, (1, 2, 3, 4, 5, 7, 8, 9, 14, 15), 0.12))
    for element, ours, levels, number in zip(
        hydrogen_and_helium(), result.b, limits, (population[:10], population[10:]), strict=True
    ):
        lte = lte_fractions(element, temperature, electrons) * number.sum(axis=0)
        for level in levels[1]:
            difference = np.log(ours[level] / (number[level] / lte[level]))[forming]
            assert np.abs(difference).max() < levels[2], (element.z, level)
