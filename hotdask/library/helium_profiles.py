"""He I Stark profiles of Tremblay et al. 2026, a file of the user's, onto the grids of `hotdask.library.starktables`.

The tables hold the thermal motion of helium, the fine structure of the lower level 2 3P (J = 2, 1, 0 with weights
5/9, 3/9, 1/9; offsets count from J = 2) and the forbidden components. They step by 0.05 to 0.1 Å at the center, as much
as a thermal width, so that not a profile is interpolated but its ratio to a Voigt profile of the same thermal width,
the file's electron-impact width and the same fine structure. That ratio at 10 000 K, times the Voigt profile of 5000 K,
makes a colder column; beyond 40 000 K `hotdask.library.helium` adds the missing thermal motion. Densities out of range
and wings beyond the last offset are continued as those of the older tables.

References
----------
Tremblay et al. 2026, ApJ 1000, 253; energies: NIST Atomic Spectra Database.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import constants
from scipy.interpolate import Akima1DInterpolator

from hotdask.errors import InputError
from hotdask.library.arrays import sha256
from hotdask.library.linelist import HC
from hotdask.library.starktables import (
    THERMAL,
    StarkLine,
    continue_wings,
    offset_grid,
    onto_grid,
    voigt_multiplet,
)
from hotdask.windows import air_to_vacuum

_REMEDY = "give the file of He I Stark profiles of Tremblay et al. 2026 (ApJ 1000, 253) as it was published"
_COLD = 5e3
_CORE = 2.4
"""Half width of the even part of the offsets at 4500 Å [Å]; in proportion to wavelength elsewhere."""
_STEP = 0.02

_LEVELS = {"2 3S": (19.81961, 3), "2 1S": (20.61577, 1), "2 3P": (20.96409, 9), "2 1P": (21.21802, 3)}
"""Energy above the ground state [eV] (2 3P: J = 2) and statistical weight of the lower levels."""
_SPLITTING = 0.0763, 1.0643
"""Energy of 2 3P J = 1 and J = 0 above J = 2 [1/cm]."""
# The file's name of a line; air wavelength [Å] of the transition from J = 2 where the lower level is 2 3P; terms. The
# file's own wavelengths are off by up to 1.1 Å (2 3P - 7 3S).
_LINES = {
    "3705": (3704.997, "2 3P", "7 3D"),
    "3734": (3732.863, "2 3P", "7 3S"),
    "3820": (3819.603, "2 3P", "6 3D"),
    "3867": (3867.472, "2 3P", "6 3S"),
    "3872": (3871.791, "2 1P", "9 1D"),
    "3889": (3888.643, "2 3S", "3 3P"),
    "3927": (3926.544, "2 1P", "8 1D"),
    "3936": (3935.945, "2 1P", "8 1S"),
    "3965": (3964.729, "2 1S", "4 1P"),
    "4009": (4009.257, "2 1P", "7 1D"),
    "4024": (4023.980, "2 1P", "7 1S"),
    "4026": (4026.186, "2 3P", "5 3D"),
    "4121": (4120.811, "2 3P", "5 3S"),
    "4144": (4143.759, "2 1P", "6 1D"),
    "4169": (4168.972, "2 1P", "6 1S"),
    "4388": (4387.929, "2 1P", "5 1D"),
    "4438": (4437.553, "2 1P", "5 1S"),
    "4471": (4471.474, "2 3P", "4 3D"),
    "4713": (4713.139, "2 3P", "4 3S"),
    "4922": (4921.931, "2 1P", "4 1D"),
    "5016": (5015.678, "2 1S", "3 1P"),
    "5048": (5047.738, "2 1P", "4 1S"),
    "5876": (5875.614, "2 3P", "3 3D"),
    "6678": (6678.152, "2 1P", "3 1D"),
    "7065": (7065.177, "2 3P", "3 3S"),
    "7281": (7281.350, "2 1P", "3 1S"),
}
# Drake 1996 (Atomic, Molecular & Optical Physics Handbook, ch. 11); the file has 0.160.
_OSCILLATOR_STRENGTHS = {"5016": 0.1513}


@dataclass(frozen=True)
class HeliumProfiles:
    """Stark profiles of He I lines from one file.

    Attributes
    ----------
    name, identity : str
        Name and SHA-256 of the file.
    lines : tuple of StarkLine
        Ascending in wavelength.
    """

    name: str
    identity: str
    lines: tuple[StarkLine, ...]


@dataclass(frozen=True)
class ProfileTable:
    """One line as it is in the file.

    Attributes
    ----------
    name : str
        Wavelength in whole Å, "4471".
    wavelength, f : float
        Air above 2000 Å [Å]; absorption oscillator strength of the multiplet.
    half_width, shift : (n_temperature,) float64
        Of broadening by electron impacts, at `density`: half of the width at half maximum; shift over half width.
    density : float
        Electrons that `half_width` belongs to [1/cm³]; both are in proportion.
    log_ne : (n_density,) float64
        log10 of the electron densities [1/cm³] of the profiles.
    offset : (n_offset,) float64
        From the line center [Å], increasing.
    profile : (n_density, n_temperature, n_offset) float64
        [1/Å]; all three axes are empty of a line of which the file has no more than widths.
    """

    name: str
    wavelength: float
    f: float
    half_width: np.ndarray
    shift: np.ndarray
    density: float
    log_ne: np.ndarray
    offset: np.ndarray
    profile: np.ndarray


def read_helium_profiles(path: str | Path) -> HeliumProfiles:
    """Read the profiles of the 26 multiplets between 3705 and 7281 Å.

    Parameters
    ----------
    path : path
        The file of Tremblay et al. 2026; see `read_profile_tables` for its format.

    Raises
    ------
    InputError
        If the file is missing or damaged, with the line of the damage, or another one.
    """
    path = Path(path)
    temperature, tables = read_profile_tables(path)
    found = {table.name: table for table in tables if table.profile.size}
    missing = [name for name in _LINES if name not in found]
    if missing:
        raise InputError(f"{path}: no profiles of the lines {', '.join(missing)}; {_REMEDY}")
    lines = tuple(stark_line(found[name], temperature) for name in _LINES)
    return HeliumProfiles(path.name, sha256(path), lines)


def read_profile_tables(path: str | Path) -> tuple[np.ndarray, list[ProfileTable]]:
    """Read all lines of the file as they are.

    Parameters
    ----------
    path : path
        Text. Three lines: number of spectral lines, number of temperatures, temperatures [K]. Then, of each spectral
        line: numbers of offsets and of densities in 4 and 3 columns, and at the end ``LAMBDA`` and its name; lower
        level, upper level, f, wavelength [Å]; half width, shift, ion parameter, one value for each temperature;
        density of the half width; two rows to skip; densities and offsets, 9 a row in 8 columns each; for each density
        and each temperature the profile [1/Å], 6 a row in 12 columns each. A line without profiles has an empty row in
        their place.

    Returns
    -------
    temperature : (n_temperature,) float64
        [K].
    tables : list of ProfileTable

    Raises
    ------
    InputError
        If the file is missing, damaged or another one, with the line of the damage.
    """
    try:
        text = Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
    rows = _Rows(path, text.splitlines())
    n_line, n_temperature = rows.count(), rows.count()
    temperature = rows.increasing(rows.numbers(n_temperature, 0, n_temperature), "temperatures")
    return temperature, [_table(rows, n_temperature) for _ in range(n_line)]


class _Rows:
    """Rows of a text with their numbers, for messages."""

    def __init__(self, path: str | Path, rows: list[str]):
        self._path, self._rows, self._next = path, rows, 0

    def error(self, what: str) -> InputError:
        return InputError(f"{self._path}, line {self._next}: {what}; {_REMEDY}")

    def row(self) -> str:
        self._next += 1
        if self._next > len(self._rows):
            raise self.error("the file ends too early")
        return self._rows[self._next - 1]

    def count(self) -> int:
        row = self.row()
        if not row.strip().isdigit() or not 0 < int(row) < 1000:
            raise self.error(f"{row.strip()[:40]!r} is no number of lines or temperatures")
        return int(row)

    def numbers(self, n: int, columns: int, per_row: int) -> np.ndarray:
        """n numbers, each in so many columns; between blanks if 0."""
        values: list[float] = []
        while len(values) < n:
            row = self.row().rstrip()
            words = [row[i : i + columns] for i in range(0, len(row), columns)] if columns else row.split()
            values += self._floats(words, min(per_row, n - len(values)))
        return np.array(values)

    def _floats(self, words: list[str], n: int) -> Iterator[float]:
        if len(words) != n:
            raise self.error(f"{len(words)} instead of {n} numbers")
        for word in words:
            try:
                value = float(word)
            except ValueError as error:
                raise self.error(f"{word.strip()[:40]!r} is no number") from error
            if not np.isfinite(value):
                raise self.error(f"{word.strip()} is not finite")
            yield value

    def increasing(self, values: np.ndarray, what: str) -> np.ndarray:
        if np.any(np.diff(values) <= 0):
            raise self.error(f"the {what} do not increase")
        return values


def _table(rows: _Rows, n_temperature: int) -> ProfileTable:
    head = rows.row()
    sizes, (_, mark, name) = (head[:4].strip(), head[4:7].strip()), head.partition("LAMBDA")
    if not mark or not all(size.isdigit() for size in sizes):
        raise rows.error(f"{head.strip()[:40]!r} is not the head of a spectral line (numbers, LAMBDA and a name)")
    n_offset, n_density = map(int, sizes)
    _, _, f, wavelength = rows.numbers(4, 0, 4)
    half_width, shift, _ = (rows.numbers(n_temperature, 0, n_temperature) for _ in range(3))
    density, _ = rows.numbers(2, 0, 2)
    for _ in range(2):
        rows.row()
    if n_offset:
        log_ne = rows.numbers(n_density, 8, 9)
        if np.any(log_ne <= 0):
            raise rows.error("a density is not positive")
        log_ne = rows.increasing(np.log10(log_ne), "densities")
        offset = rows.increasing(rows.numbers(n_offset, 8, 9), "offsets")
        profile = np.empty((n_density, n_temperature, n_offset))
        for i, t in np.ndindex(n_density, n_temperature):
            profile[i, t] = rows.numbers(n_offset, 12, 6)
            if np.any(profile[i, t] <= 0):
                raise rows.error("a profile is not positive")
    else:
        rows.row()
        log_ne, offset, profile = np.empty(0), np.empty(0), np.empty((0, 0, 0))
    return ProfileTable(name.strip(), wavelength, f, half_width, shift, density, log_ne, offset, profile)


def stark_line(table: ProfileTable, temperature: np.ndarray) -> StarkLine:
    """Profiles of one line on the grids that `hotdask.library.helium` interpolates.

    Parameters
    ----------
    table : ProfileTable
        One of the 26 between 3705 and 7281 Å.
    temperature : (n_temperature,) float64
        Of the table [K].

    Returns
    -------
    StarkLine
        With a column of 5000 K besides the table's temperatures.
    """
    air, lower, upper = _LINES[table.name]
    energy, weight = _LEVELS[lower]
    wavelength = float(air_to_vacuum(air))
    groups = fine_structure(wavelength) if lower == "2 3P" else ((1.0, 0.0),)
    # Some tables have far forbidden components at one end only.
    reach = min(-table.offset[0], table.offset[-1])
    inside = np.abs(table.offset) <= reach
    nodes, profile = table.offset[inside], table.profile[..., inside]
    core = _CORE * wavelength / 4500
    offset, ends = offset_grid(nodes, -core, core, _STEP * wavelength / 4500)
    columns = np.concatenate([[_COLD], temperature])
    out = np.empty((len(table.log_ne), len(columns), len(offset)))
    beyond = (offset < nodes[0], offset > nodes[-1])
    for i, log_ne in enumerate(table.log_ne):
        for t, kelvin in enumerate(columns):
            source = max(t - 1, 0)
            damping = table.half_width[source] * 10**log_ne / table.density
            sigma, sigma_of_table = (
                np.sqrt(k * THERMAL / 2) / (constants.c * 100) * wavelength for k in (kelvin, temperature[source])
            )
            ratio = np.log(profile[i, source] / voigt_multiplet(nodes, sigma_of_table, damping, groups))
            ratio = Akima1DInterpolator(nodes, ratio, method="makima")(np.clip(offset, nodes[0], nodes[-1]))
            out[i, t] = np.exp(ratio) * voigt_multiplet(offset, sigma, damping, groups)
        for side, outside in zip((slice(0, 2), slice(-1, -3, -1)), beyond, strict=True):
            hot = profile[i][:, side]
            out[i][:, outside] = continue_wings(nodes[side], hot[[0, *range(len(temperature))]], offset[outside])
    return StarkLine(
        name=f"He I {table.name}",
        ion=1,
        wavelength=wavelength,
        elo_ev=energy,
        g_lower=weight,
        f=_OSCILLATOR_STRENGTHS.get(table.name, table.f),
        offset=offset,
        core_start=ends[0],
        core_stop=ends[1],
        temperature=columns,
        log_profile=onto_grid(table.log_ne, columns, out, offset, wavelength, groups),
        groups=groups,
        terms=(lower, upper),
        eup_ev=energy + HC / wavelength,
    )


def fine_structure(wavelength: float) -> tuple[tuple[float, float], ...]:
    """Weights and offsets [Å] of the three groups of a multiplet whose lower level is 2 3P; the first has J = 2.

    Examples
    --------
    >>> [round(offset, 2) for _, offset in fine_structure(7067.1)]
    [0.0, 0.04, 0.53]
    """
    return ((5 / 9, 0.0), *((w, 1e-8 * s * wavelength**2) for w, s in zip((3 / 9, 1 / 9), _SPLITTING, strict=True)))
