"""Rates of excitation and ionization of hydrogen and helium by electrons.

All are rate coefficients [cm³/s], upward; times the electron density they are rates per atom. Downward rates follow
from detailed balance.
"""

import numpy as np
from scipy import constants
from scipy.special import exp1, expn

from hotdask.library.hydrogen import RYDBERG_H
from hotdask.library.state import C_CGS, H_ERG, K_ERG

_UPSILON = 8.629e-6
"""Rate coefficient downward is this over the upper weight and √T, times the effective collision strength."""
_RYDBERG = H_ERG * C_CGS * RYDBERG_H / K_ERG
"""Ionization energy of hydrogen [K]."""
_REGEMORTER = 8 * np.pi / np.sqrt(3)
_BOHR_RADIUS = constants.physical_constants["Bohr radius"][0] * 100
_JOHNSON = 2 * np.sqrt(8 * K_ERG / (np.pi * constants.m_e * 1e3)) * np.pi * _BOHR_RADIUS**2
"""2 √(8k/πm) π a₀² [cm³/s K^-½], Johnson's unit of rates."""

# fmt: off
_HELIUM_UPSILON = np.array([
    (0.0719, 0.0727, 0.0714), (0.0367, 0.0416, 0.0472), (2.39, 2.31, 1.96), (0.0217, 0.0305, 0.0424),
    (20.6, 38.1, 65.7), (1.66, 1.76, 1.7), (0.0143, 0.0221, 0.0396), (0.905, 1.07, 1.12), (13.8, 25.5, 43),
    (1.98, 2.84, 3.56), (0.018, 0.0193, 0.0216), (2.51, 2.56, 2.97), (0.641, 0.489, 0.358), (5.96, 6.37, 7.73),
    (1.24, 1.01, 0.796), (0.00931, 0.011, 0.0143), (0.425, 0.362, 0.304), (0.622, 0.754, 1.11), (1.08, 0.96, 0.758),
    (0.837, 1.07, 1.57), (3.19, 2.38, 1.67), (0.0077, 0.0108, 0.0162), (1.82, 1.97, 2.28), (0.575, 0.513, 0.425),
    (13.1, 15.6, 19.1), (1.81, 1.65, 1.39), (84.6, 155, 279), (3.38, 2.76, 2.04), (0.00252, 0.00284, 0.00329),
    (1.83, 3.11, 5.4), (0.331, 0.419, 0.495), (13, 23.4, 44.4), (1.44, 1.73, 1.92), (73.3, 102, 144),
    (1.73, 1.77, 1.54), (1010, 1490, 2380), (0.00526, 0.00613, 0.00784), (0.311, 0.339, 0.349), (1.09, 1.82, 3.3),
    (1.62, 1.69, 1.72), (6.31, 10.6, 20.1), (2.91, 2.51, 1.99), (37.5, 52.8, 79.2), (11.1, 9.41, 7.31),
    (13, 13.7, 12.9), (0.00336, 0.00769, 0.0178), (0.162, 0.183, 0.194), (0.337, 0.431, 0.623), (0.887, 0.957, 0.941),
    (1.95, 3.15, 5.63), (1.49, 1.45, 1.22), (48.7, 88.3, 152), (5.17, 5.22, 4.59), (5.36, 5.75, 5.23),
    (1520, 2410, 3950),
])
# fmt: on
"""Effective collision strengths of He I between its eleven levels up to n = 3 (1 1S, 2 3S, 2 1S, 2 3P, 2 1P, 3 3S,
3 1S, 3 3P, 3 3D, 3 1D, 3 1P), at 8000, 16 000 and 32 000 K; by upper, then by lower level."""


def _johnson(n: int) -> tuple[float, float]:
    """Johnson's r_n and b_n."""
    if n == 1:
        return 0.45, -0.603
    return 1.94 * n**-1.57, (4.0 - 18.63 / n + 36.24 / n**2 - 28.09 / n**3) / n


def hydrogen_excitation(lower: int, upper: int, strength: float, temperature: np.ndarray) -> np.ndarray:
    """Excitation of hydrogen by electrons.

    Parameters
    ----------
    lower, upper : int
        Principal quantum numbers.
    strength : float
        Oscillator strength of the line.
    temperature : (n,) float64
        [K].

    References
    ----------
    Johnson 1972, ApJ 174, 227.

    Examples
    --------
    >>> rate = hydrogen_excitation(1, 2, 0.4162, np.array([20000.0]))  # Anderson et al. 2002: collision strength 0.98
    >>> round(float(rate[0] * 2 * 20000**0.5 / 8.629e-6 * np.exp(118352 / 20000)), 1)
    0.9
    """
    n, m = float(lower), float(upper)
    x = 1 - (n / m) ** 2
    y = _RYDBERG / n**2 * x / temperature
    r, b = _johnson(lower)
    z = r * x + y
    dipole = 2 * n**2 / x * strength
    short = 4 * n**4 / m**3 / x**2 * (1 + 4 / (3 * x) + b / x**2)
    first = (1 / y + 0.5) * exp1(y) - (1 / z + 0.5) * exp1(z)
    second = expn(2, y) / y - expn(2, z) / z
    unit = _JOHNSON * np.sqrt(temperature) * n**2 / x * y**2
    return unit * (dipole * first + (short - dipole * np.log(2 * n**2 / x)) * second)


def hydrogen_ionization(n: int, temperature: np.ndarray) -> np.ndarray:
    """Ionization of hydrogen by electrons.

    References
    ----------
    Johnson 1972, ApJ 174, 227.

    Examples
    --------
    >>> float(hydrogen_ionization(2, np.array([20000.0]))[0].round(9))  # Mihalas, Heasley & Auer 1975: 1.9e-8
    2e-08
    """
    y = _RYDBERG / n**2 / temperature
    if n == 1:
        gaunt = (1.1330, -0.4059, 0.07014)
    elif n == 2:
        gaunt = (1.0785, -0.2319, 0.02947)
    else:
        gaunt = (
            0.9935 + 0.2328 / n - 0.1296 / n**2,
            -(0.6282 - 0.5598 / n + 0.5299 / n**2) / n,
            (0.3887 - 1.181 / n + 1.470 / n**2) / n**2,
        )
    r, b = _johnson(n)
    dipole = 32 / (3 * np.sqrt(3) * np.pi) * n * sum(g / (i + 3) for i, g in enumerate(gaunt))
    short = 2 / 3 * n**2 * (5 + b)
    z = r + y

    def xi(t: np.ndarray) -> np.ndarray:
        return expn(0, t) - 2 * expn(1, t) + expn(2, t)

    unit = _JOHNSON * np.sqrt(temperature) * n**2 * y**2
    return unit * (dipole * (exp1(y) / y - exp1(z) / z) + (short - dipole * np.log(2 * n**2)) * (xi(y) - xi(z)))


def allowed_excitation(frequency: float, strength: float, temperature: np.ndarray, *, neutral: bool) -> np.ndarray:
    """Excitation along an allowed line.

    References
    ----------
    van Regemorter 1962, ApJ 136, 906; Gaunt factor of neutral atoms by Auer & Mihalas 1973, ApJ 184, 151.
    """
    u = H_ERG * frequency / (K_ERG * temperature)
    near = 0.276 * np.exp(np.minimum(u, 50.0)) * exp1(np.minimum(u, 50.0))
    gaunt = np.where(u < 14, near, 0.066 * (1 + 1.5 / u) / np.sqrt(u)) if neutral else np.maximum(near, 0.2)
    ratio = _RYDBERG / (u * temperature)
    return _UPSILON / np.sqrt(temperature) * np.exp(-u) * _REGEMORTER * ratio * strength * gaunt


def excitation(frequency: float, weight: float, upsilon: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """Excitation with a given effective collision strength.

    Parameters
    ----------
    frequency : float
        [Hz].
    weight : float
        Statistical weight of the lower level.
    upsilon : float or (n,) float64
    temperature : (n,) float64
        [K].
    """
    u = H_ERG * frequency / (K_ERG * temperature)
    return _UPSILON / np.sqrt(temperature) / weight * upsilon * np.exp(-u)


def ionization(threshold: float, cross_section: float, charge: int, temperature: np.ndarray) -> np.ndarray:
    """Ionization from the photoionization cross section at the threshold.

    References
    ----------
    Seaton 1962, in Mihalas 1978, Stellar Atmospheres, eq 5-79.
    """
    u = H_ERG * threshold / (K_ERG * temperature)
    gaunt = 0.1 * min(charge + 1, 3)
    return 1.55e13 / np.sqrt(temperature) * gaunt * cross_section * np.exp(-u) / u


def helium_ionization(threshold: float, value: float, temperature: np.ndarray) -> np.ndarray:
    """Ionization of neutral helium.

    Parameters
    ----------
    threshold : float
        [Hz].
    value : float
        What the model atom gives with the level.

    References
    ----------
    Mihalas, Heasley & Auer 1975, NCAR-TN/STR-104, whose fit is Mihalas & Stone 1968, ApJ 151, 293.
    """
    u = H_ERG * threshold / (K_ERG * temperature)
    shifted = u + 0.27
    far = (u + 3.43) / (u + 1.43) ** 3
    bracket = exp1(u) - u * (0.728 * exp1(shifted) / shifted + 0.189 * np.exp(-u) * far)
    return 5.465e-11 * np.sqrt(temperature) * value * u * bracket


def helium_strength(lower: int, upper: int, temperature: np.ndarray) -> np.ndarray:
    """Effective collision strength between two levels of He I.

    Parameters
    ----------
    lower, upper : int
        In order of energy, the ground state 0; up to 10 (n = 3) from a table, above that typical of a transition
        without a line.
    temperature : (n,) float64
        [K].

    References
    ----------
    Berrington & Kingston 1987, J. Phys. B 20, 6631, averaged over the electrons' energies by Storey & Hummer.

    Examples
    --------
    >>> helium_strength(1, 3, np.array([8000.0, 16000.0])).round(1).tolist()  # 2 3S to 2 3P
    [20.6, 38.1]
    """
    if upper > 10:
        return np.full(len(temperature), 0.005 if lower == 0 else 2.0)
    table = np.log(_HELIUM_UPSILON[upper * (upper - 1) // 2 + lower])
    octave = np.clip(np.log2(temperature / 8000), -1.0, 3.0)
    step = np.where(octave < 1, table[1] - table[0], table[2] - table[1])
    return np.exp(table[1] + step * (octave - 1))
