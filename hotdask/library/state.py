"""The LTE gas: electrons and ions of every element at the temperatures and pressures of an atmosphere."""

from dataclasses import dataclass

import numpy as np
from scipy import constants

from hotdask.errors import SynthesisError
from hotdask.library.atoms import MASSES, N_STAGES, ionization_energy, partition_function

C_CGS = constants.c * 100
H_ERG = constants.h * 1e7
K_ERG = constants.k * 1e7
K_EV = constants.k / constants.e
ATOMIC_MASS = constants.atomic_mass * 1e3
_E2 = constants.e**2 / (4 * np.pi * constants.epsilon_0) * 1e9
"""Charge squared [erg cm]."""
SAHA = 2 * (2 * np.pi * constants.m_e * constants.k / constants.h**2) ** 1.5 * 1e-6
"""2 (2πmk/h²)^1.5 [cm⁻³ K^-1.5]."""
_NEGLIGIBLE = 1e-13
"""Elements rarer than this [N/N_tot] give no electrons worth counting."""


@dataclass(frozen=True)
class State:
    """The gas in each layer.

    Attributes
    ----------
    temperature, electron_density, density : (n_layer,) float64
        [K], [1/cm³], [g/cm³].
    ions : (n_element, N_STAGES, n_layer) float64
        Number density of each ion over its partition function [1/cm³]; element i has atomic number i + 1.
    hydrogen, protons : (n_layer,) float64
        Number densities of H I and H II [1/cm³].
    metals : (N_STAGES, n_layer) float64
        Number density of metals by charge [1/cm³].
    """

    temperature: np.ndarray
    electron_density: np.ndarray
    density: np.ndarray
    ions: np.ndarray
    hydrogen: np.ndarray
    protons: np.ndarray
    metals: np.ndarray


def solve_state(temperature: np.ndarray, pressure: np.ndarray, abundances: np.ndarray) -> State:
    """Ionization equilibrium (Saha) with charge conservation.

    Parameters
    ----------
    temperature, pressure : (n_layer,) float64
        [K] and gas pressure [dyn/cm²].
    abundances : (n_element,) float64
        Number fractions N/N_tot, hydrogen first; their sum is taken as one.

    Raises
    ------
    SynthesisError
        If the electron density does not converge.

    References
    ----------
    Mihalas 1978, Stellar Atmospheres, ch. 5; ionization energies lowered by z e²/r_Debye (Kurucz 1970, SAO SR 309).

    Examples
    --------
    >>> pure_hydrogen = np.array([1.0])
    >>> state = solve_state(np.array([20000.0]), np.array([1e3]), pure_hydrogen)
    >>> bool(abs(state.electron_density[0] / state.protons[0] - 1) < 1e-6)
    True
    """
    abundances = np.asarray(abundances, dtype=np.float64) / np.sum(abundances)
    n_element, n_layer = len(abundances), len(temperature)
    z = np.arange(1, n_element + 1)
    functions = np.ones((n_element, N_STAGES, n_layer))
    for i in range(n_element):
        for stage in range(min(N_STAGES, i + 2)):
            functions[i, stage] = partition_function(i + 1, stage, temperature)
    energy = np.stack([ionization_energy(z, np.full(n_element, stage)) for stage in range(1, N_STAGES)], axis=1)
    counted = abundances > _NEGLIGIBLE
    total = pressure / (K_ERG * temperature)
    factor = SAHA * temperature**1.5

    def fractions(electrons: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(n, N_STAGES, n_layer) share of each ion of its element."""
        # H II and the bare nuclei screen too; twice the electrons is their usual count.
        debye = np.sqrt(K_ERG * temperature / (4 * np.pi * _E2 * 2 * electrons))
        lowering = np.minimum(1.0, _E2 / debye / (constants.e * 1e7))
        charge = np.arange(1, N_STAGES)[None, :, None]
        exponent = -(energy[rows][:, :, None] - charge * lowering) / (K_EV * temperature)
        log_ratio = exponent + np.log(factor / electrons * functions[rows, 1:] / functions[rows, :-1])
        log_share = np.concatenate([np.zeros((len(rows), 1, n_layer)), np.cumsum(log_ratio, axis=1)], axis=1)
        share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
        return share / share.sum(axis=1, keepdims=True)

    donors = np.flatnonzero(counted)
    stages = np.arange(N_STAGES)[None, :, None]
    # Bisection in the logarithm: electrons per nucleus grow monotonically as their density falls.
    low, high = np.log(total * 1e-8), np.log(total * (1 - 1e-9))
    for _ in range(60):
        middle = (low + high) / 2
        electrons = np.exp(middle)
        given = (fractions(electrons, donors) * stages * abundances[donors, None, None]).sum(axis=(0, 1))
        more = given * (total - electrons) > electrons
        low, high = np.where(more, middle, low), np.where(more, high, middle)
        if np.max(high - low) < 1e-9:
            break
    else:
        raise SynthesisError("the electron density does not converge; the atmosphere's temperatures are out of range")
    electrons = np.exp((low + high) / 2)
    nuclei = total - electrons
    numbers = fractions(electrons, np.arange(n_element)) * abundances[:, None, None] * nuclei
    return State(
        temperature=np.asarray(temperature, dtype=np.float64),
        electron_density=electrons,
        density=nuclei * (abundances @ MASSES[:n_element]) * ATOMIC_MASS,
        ions=numbers / functions,
        hydrogen=numbers[0, 0],
        protons=numbers[0, 1],
        metals=numbers[2:].sum(axis=0),
    )
