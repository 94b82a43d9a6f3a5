"""The gas: against Saha's equation in closed form, conservation laws, and ATLAS9's own electron densities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import constants

from hotdask.errors import SynthesisError
from hotdask.labels import INDEX, N_LABELS
from hotdask.library.abundances import abundances
from hotdask.library.atmospheres import read_atmospheres
from hotdask.library.atoms import MASSES, N_STAGES, partition_function
from hotdask.library.state import _NEGLIGIBLE, K_ERG, solve_state

FEW = settings(max_examples=25, deadline=None)
layers = st.tuples(st.floats(5000, 50000), st.floats(0, 6))


def one(kelvin, pressure, mixture):
    return solve_state(np.array([float(kelvin)]), np.array([float(pressure)]), np.asarray(mixture, dtype=float))


def sun(n_he=0.0889, fe_h=0.0):
    labels = np.zeros(N_LABELS)
    labels[INDEX["n_he"]] = n_he
    for name in ("c_h", "n_h", "o_h", "si_h", "s_h", "fe_h"):
        labels[INDEX[name]] = fe_h
    return abundances(labels)


def ions(state):
    """Number density of each ion, from that over its partition function."""
    functions = np.zeros_like(state.ions)
    for i in range(len(functions)):
        for stage in range(min(N_STAGES, i + 2)):
            functions[i, stage] = partition_function(i + 1, stage, state.temperature)
    return state.ions * functions


@pytest.mark.parametrize(
    ("kelvin", "pressure"), [(6000, 1e4), (8000, 1e3), (10000, 1e1), (10000, 1e3), (15000, 1e4), (20000, 1e2)]
)
def test_pure_hydrogen_solves_the_quadratic(kelvin, pressure):
    nuclei_and_electrons = pressure / (K_ERG * kelvin)
    mass = 2 * np.pi * constants.m_e * constants.k * kelvin / constants.h**2
    function = partition_function(1, 0, np.array([float(kelvin)]))[0]
    saha = 2 * mass**1.5 * 1e-6 / function * np.exp(-13.598 * constants.e / (constants.k * kelvin))
    # ne²/(N - 2 ne) = saha, without the lowering of the ionization energy.
    expected = np.sqrt(saha**2 + saha * nuclei_and_electrons) - saha
    got = one(kelvin, pressure, [1.0]).electron_density[0]
    assert expected * (1 - 1e-9) < got < expected * 1.003


def test_ionization_is_lowered_by_the_debye_energy():
    # 1e17 electrons at 20 000 K: lowering z e²/r_Debye = 0.0295 eV, half the squared ratio at trace ionization.
    state = one(20000, 3e5, [1.0])
    n_e, kelvin = state.electron_density[0], 20000.0
    debye = np.sqrt(constants.epsilon_0 * constants.k * kelvin / (2 * n_e * 1e6 * constants.e**2))
    lowering = constants.e / (4 * np.pi * constants.epsilon_0 * debye)
    mass = 2 * np.pi * constants.m_e * constants.k * kelvin / constants.h**2
    function = partition_function(1, 0, np.array([kelvin]))[0]
    saha = 2 * mass**1.5 * 1e-6 / function * np.exp(-(13.598 - lowering) * constants.e / (constants.k * kelvin))
    assert state.protons[0] * n_e / state.hydrogen[0] == pytest.approx(saha, rel=1e-4)
    assert 0.02 < lowering < 0.1


@FEW
@given(layers, st.floats(0.001, 0.4), st.floats(-3, 0.5))
def test_charge_and_particles_are_conserved(layer, n_he, fe_h):
    kelvin, log_pressure = layer
    mixture = sun(n_he, fe_h)
    state = one(kelvin, 10**log_pressure, mixture)
    numbers = ions(state)[:, :, 0]
    n_e = state.electron_density[0]
    # Elements too rare to count may give an electron each, which matters where metals are few and hydrogen neutral.
    share = mixture / mixture.sum()
    uncounted = share[share <= _NEGLIGIBLE].sum() * numbers.sum()
    assert (numbers * np.arange(N_STAGES)).sum() == pytest.approx(n_e, rel=1e-7, abs=1e-7 * n_e + uncounted)
    assert numbers.sum() + n_e == pytest.approx(10**log_pressure / (K_ERG * kelvin), rel=1e-9)
    np.testing.assert_allclose(numbers.sum(axis=1), mixture / mixture.sum() * numbers.sum(), rtol=1e-9)
    assert state.density[0] == pytest.approx((numbers.sum(axis=1) @ MASSES) * constants.atomic_mass * 1e3, rel=1e-9)
    assert state.hydrogen[0] + state.protons[0] == pytest.approx(numbers[0].sum(), rel=1e-12)
    np.testing.assert_allclose(state.metals[:, 0], numbers[2:].sum(axis=0), rtol=1e-9)


@pytest.mark.parametrize("teff", [8000, 12000, 20000, 30000])
def test_electron_density_of_atlas9(synthesis, teff):
    atmosphere = read_atmospheres(synthesis / "atlas9_hot.npz").interpolate(teff, 4.0, 0.0)
    state = solve_state(atmosphere.temperature, atmosphere.pressure, sun())
    ratio = state.electron_density / atmosphere.electron_density
    forming = (atmosphere.log_tau > -4) & (atmosphere.log_tau < 1.5)
    np.testing.assert_allclose(ratio[forming], 1, atol=0.015)
    assert abs(np.median(ratio) - 1) < 0.003


def test_ionized_helium_gives_two_electrons():
    assert one(50000, 1.0, [1e-6, 1.0]).electron_density[0] == pytest.approx(2 / 3 / (K_ERG * 50000), rel=1e-4)
    assert one(22000, 1e2, [1e-6, 1.0]).electron_density[0] == pytest.approx(50 / (K_ERG * 22000), rel=0.02)


def test_more_helium_means_fewer_electrons_and_heavier_gas():
    # Here hydrogen is ionized and helium is not.
    normal, rich = one(12000, 300, sun(0.09)), one(12000, 300, sun(0.25))
    ionized = [(1 - he) / (2 - he) for he in (0.09, 0.25)]
    ratio = rich.electron_density[0] / normal.electron_density[0]
    assert ratio == pytest.approx(ionized[1] / ionized[0], rel=0.02)
    assert rich.density[0] / normal.density[0] == pytest.approx(1.75 / 1.27 * (1.91 / 1.75), rel=0.02)


def test_metals_give_the_electrons_of_a_cool_gas():
    state = one(5000, 1e3, sun())
    numbers = ions(state)[:, :, 0]
    donors = {z: numbers[z - 1, 1] for z in (1, 11, 12, 14, 26)}
    assert sum(donors[z] for z in (11, 12, 14, 26)) > donors[1]


def test_impossible_layers_are_refused():
    with pytest.raises(SynthesisError, match="electron density does not converge"):
        one(np.nan, 1e3, [0.9, 0.1])
