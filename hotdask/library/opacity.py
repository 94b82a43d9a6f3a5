"""Continuous opacity of hot stars between 3700 and 9050 Å.

Absorption: H I and He II bound-free with dissolving levels, He I bound-free, H⁻, H₂⁺, free-free. Scattering: Thomson
and Rayleigh.
"""

import numpy as np
from scipy import constants

from hotdask.library import hydrogen
from hotdask.library.state import C_CGS, H_ERG, K_ERG, K_EV, State

_THOMSON = constants.physical_constants["Thomson cross section"][0] * 1e4

# John 1988, A&A 193, 189: bound-free (Table 1) and free-free (λ > 0.3645 μm, Table 3a) absorption of H⁻.
_HMINUS_BF = (152.519, 49.534, -118.858, 92.536, -34.194, 4.982)
_HMINUS_FF = np.array(
    [
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [2483.346, 285.827, -2054.291, 2827.776, -1341.537, 208.952],
        [-3449.889, -1158.382, 8746.523, -11485.632, 5303.609, -812.939],
        [2200.040, 2427.719, -13651.105, 16755.524, -7510.494, 1132.738],
        [-696.271, -1841.400, 8624.970, -10051.530, 4400.067, -655.020],
        [88.283, 444.517, -1863.864, 2095.288, -901.788, 132.985],
    ]
)
# He I: energies of the levels n = 3 above the ground [eV] and their weights; the lower ones absorb below 3680 Å only.
_HELIUM_LEVELS = (
    (22.7185, 3.0),
    (22.9203, 1.0),
    (23.0071, 9.0),
    (23.0737, 15.0),
    (23.0741, 5.0),
    (23.0870, 3.0),
)
_HELIUM_IONIZATION = 24.5874


def hminus(wavelength: np.ndarray, state: State) -> np.ndarray:
    """Bound-free (with stimulated emission taken off) and free-free absorption of H⁻, (n, n_layer) [1/cm].

    References
    ----------
    John 1988, A&A 193, 189.

    Examples
    --------
    >>> from hotdask.library.state import solve_state
    >>> sun = solve_state(np.array([6400.0]), np.array([1.2e5]), np.array([0.92, 0.08]))
    >>> kappa = hminus(np.array([5000.0, 8500.0, 16000.0]), sun)[:, 0]
    >>> bool(kappa[1] > kappa[0] > kappa[2])  # highest near 8500 Å, least at 1.6 μm
    True
    """
    micron = wavelength[:, None] / 1e4
    temperature = state.temperature
    electron_pressure = state.electron_density * K_ERG * temperature
    x = np.maximum(1 / micron - 1 / 1.6419, 0.0)
    cross_section = 1e-18 * micron**3 * x**1.5 * sum(c * x ** (i / 2) for i, c in enumerate(_HMINUS_BF))
    photon = 14387.77 / (micron * temperature)
    bound_free = 0.750 * temperature**-2.5 * np.exp(14387.77 / (1.6419 * temperature)) * (1 - np.exp(-photon))
    powers = np.stack([micron**2, micron**0, 1 / micron, 1 / micron**2, 1 / micron**3, 1 / micron**4])
    terms = np.einsum("nk,kpl->npl", _HMINUS_FF, powers)
    theta = 5040 / temperature
    free_free = 1e-29 * sum(theta ** ((n + 2) / 2) * terms[n] for n in range(6))
    return (cross_section * bound_free + free_free) * electron_pressure * state.hydrogen


def molecular_ion(frequency: np.ndarray, state: State) -> np.ndarray:
    """Absorption of H₂⁺ (colliding H and H⁺), stimulated emission not yet taken off, (n, n_layer) [1/cm].

    References
    ----------
    Bates 1952, MNRAS 112, 40, in the fit of Kurucz 1970, SAO SR 309.
    """
    log = np.log(frequency)
    strength = -3.0233e3 + (3.7797e2 + (-1.82496e1 + (3.9207e-1 - 3.1672e-3 * log) * log) * log) * log
    f = frequency
    energy = -7.342e-3 + (-2.409e-15 + (1.028e-30 + (-4.230e-46 + (1.224e-61 - 1.351e-77 * f) * f) * f) * f) * f
    exponent = -energy[:, None] / (K_EV * state.temperature) + strength[:, None]
    return np.where(frequency[:, None] < 3.28e15, np.exp(exponent) * state.ions[0, 0] * 2 * state.protons, 0.0)


def helium_bound_free(frequency: np.ndarray, state: State) -> np.ndarray:
    """Bound-free absorption of He I from n ≥ 3 (hydrogenic), stimulated emission not yet taken off [1/cm]."""
    rydberg = hydrogen.RYDBERG_HE * C_CGS
    levels = [*_HELIUM_LEVELS, *((_HELIUM_IONIZATION - 13.6033 / n**2, 4.0 * n**2) for n in range(4, 16))]
    out = np.zeros((len(frequency), len(state.temperature)))
    for energy, weight in levels:
        threshold = (_HELIUM_IONIZATION - energy) * constants.e / constants.h
        n = np.sqrt(rydberg / threshold)
        u = frequency / threshold - 1
        cross_section = 2.815e29 / n**5 / frequency**3 * hydrogen.kramers_gaunt(n, np.maximum(u, 0.0))
        number = state.ions[1, 0] * weight * np.exp(-energy / (K_EV * state.temperature))
        out += np.where(u > 0, cross_section, 0.0)[:, None] * number
    return out


def free_free(frequency: np.ndarray, state: State) -> np.ndarray:
    """Free-free absorption of electrons at all ions, stimulated emission not yet taken off [1/cm].

    References
    ----------
    Mihalas 1978, eq 4-122; Gaunt factor of Menzel & Pekeris 1935 to second order, averaged over the electrons'
    energies: within 2 % of Karzas & Latter 1961.
    """
    wavelength = 1e8 * C_CGS / frequency[:, None]
    out = np.zeros((len(frequency), len(state.temperature)))
    energy = wavelength * 1e-8 * K_ERG * state.temperature / (H_ERG * C_CGS)
    # He II has the partition function 2, the bare nuclei 1; metals hardly count.
    for charge, number in ((1, state.protons + 2 * state.ions[1, 1]), (2, state.ions[1, 2])):
        x = 1 / (wavelength * 1.0973731e-3 * charge**2)
        gaunt = 1 + 0.1728 * x ** (1 / 3) * (1 + 2 * energy)
        gaunt -= 0.0496 * x ** (2 / 3) * (1 + 2 / 3 * energy + 4 / 3 * energy**2)
        out += 3.692e8 * charge**2 * gaunt * number * state.electron_density / np.sqrt(state.temperature)
    return out / frequency[:, None] ** 3


def metal_continuum(frequency: np.ndarray, state: State) -> np.ndarray:
    """Free-free and high-level bound-free absorption of metals, taken as hydrogenic [1/cm].

    It counts only where carbon, nitrogen or oxygen is as common as helium. Stimulated emission not yet taken off.

    References
    ----------
    Kramers' law with levels n ≥ Z √(Ry/hν) (Kurucz 1970, SAO SR 309, HOTOP).
    """
    out = np.zeros((len(frequency), len(state.temperature)))
    kt = K_EV * state.temperature
    photon = H_ERG * frequency / (constants.e * 1e7)
    for charge in range(1, len(state.metals)):
        energy = 13.606 * charge**2
        levels = np.arange(3, 16)[:, None]
        term = 2 * energy / kt * np.exp(energy / levels**2 / kt) / levels**3
        # Levels above the last one merge into an integral that free-free absorption continues.
        absorbing = (energy / levels**2 < photon).astype(float)
        gaunt = 1.1 + absorbing.T @ term
        out += 3.692e8 * charge**2 * gaunt * state.metals[charge] * state.electron_density / np.sqrt(state.temperature)
    return out / frequency[:, None] ** 3


def scattering(wavelength: np.ndarray, state: State) -> np.ndarray:
    """Thomson scattering and Rayleigh scattering by hydrogen and helium, (n, n_layer) [1/cm].

    References
    ----------
    Dalgarno 1962 and Dalgarno & Kingston 1960 (Kurucz 1970, SAO SR 309).
    """
    inverse = 1 / wavelength[:, None] ** 2
    by_hydrogen = (5.799e-13 + (1.422e-6 + 2.784 * inverse) * inverse) * inverse**2
    by_helium = 5.484e-14 * inverse**2 * (1 + (2.44e5 + 5.94e10 * inverse / (1 - 2.90e5 * inverse)) * inverse) ** 2
    helium = state.ions[1, 0]
    return _THOMSON * state.electron_density + by_hydrogen * state.hydrogen + by_helium * helium


def absorption(wavelength: np.ndarray, state: State, *, dissolved: bool) -> np.ndarray:
    """True continuous absorption, stimulated emission taken off.

    Parameters
    ----------
    wavelength : (n,) float64
        Vacuum wavelength [Å].
    dissolved : bool
        With what dissolved levels absorb below their thresholds; without, the continuum has edges.

    Returns
    -------
    (n, n_layer) float64
        [1/cm].
    """
    frequency = 1e8 * C_CGS / wavelength
    total = hydrogen.bound_free(frequency, 1, state, dissolved=dissolved)
    total += hydrogen.bound_free(frequency, 2, state, dissolved=dissolved)
    total += helium_bound_free(frequency, state) + free_free(frequency, state)
    total += metal_continuum(frequency, state) + molecular_ion(frequency, state)
    stimulated = 1 - np.exp(-H_ERG * frequency[:, None] / (K_ERG * state.temperature))
    return total * stimulated + hminus(wavelength, state)
