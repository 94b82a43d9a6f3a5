"""Hydrogen (and hydrogenic He II): levels that dissolve, bound-free continua that go over into lines, Stark profiles.

A level n survives in a plasma with a probability w_n. What a dissolved level no longer absorbs in its line appears as
bound-free absorption beyond the series limit, so that lines run into the continuum without a step.
"""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit
from scipy import constants
from scipy.interpolate import PchipInterpolator

from hotdask.library.atoms import data_folder
from hotdask.library.state import C_CGS, H_ERG, K_ERG, K_EV, State

RYDBERG_H = 109677.576
RYDBERG_HE = 109722.267
"""Rydberg constants [1/cm] of H and He II."""
_N_TOP = 60
"""Highest level kept; at log g = 0 it is dissolved all through the photosphere."""
_N_TABLE = 22
"""Highest upper level of the Stark tables."""
_DISSOLVED = 1e-3
"""Levels that survive more rarely than this make no line."""
_CUT_POWER = 4
"""How sharply a line ends half way to where the next level begins."""
_FARTHEST = 8
"""Distances to the next line beyond which nothing is left of a line (1e-8 of what it is half way there)."""
_HOLTSMARK = 1.25e-9
_MASS = 1.00784 * constants.atomic_mass * 1e3


def occupation(n: np.ndarray, charge: int, state: State) -> np.ndarray:
    """Probability that a hydrogenic level survives its neighbors, (..., n_layer).

    Parameters
    ----------
    n : (...,) float64
        Principal quantum number; between whole numbers too, for the pseudo-continuum.
    charge : int
        1 for H I, 2 for He II.

    References
    ----------
    Hummer & Mihalas 1988, ApJ 331, 794; fit of Hubeny, Hummer & Lanz 1994, A&A 282, 151, Appendix A.
    """
    n = np.asarray(n, dtype=np.float64)[..., None]
    electrons, temperature = state.electron_density, state.temperature
    quantum = np.where(n > 3, 16 / 3 * n / (n + 1) ** 2 * (n + 7 / 6) / (n**2 + n + 0.5) * n, 1.0)
    beta = 8.3e14 * electrons ** (-2 / 3) * quantum * charge**3 / n**4
    correlation = 0.09 * electrons ** (1 / 6) / np.sqrt(temperature)
    x = (1 + correlation) ** 3.15
    f = 0.1402 * (x + 4 * (charge - 1) * correlation**3) * beta**3 / (1 + 0.1285 * x * beta**1.5)
    # Neutral hydrogen atoms push out whatever overlaps with them.
    radius = constants.physical_constants["Bohr radius"][0] * 100
    excluded = 4 * np.pi / 3 * state.hydrogen * (radius * (n**2 / charge + 1)) ** 3
    return f / (1 + f) * np.exp(-excluded)


def kramers_gaunt(lower: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Bound-free Gaunt factor of level n for a free electron of energy u Z²Ry/n²; good to 0.5 % for n > 1.

    References
    ----------
    Seaton 1959, MNRAS 119, 81 (expansion of Menzel & Pekeris 1935).

    Examples
    --------
    >>> round(float(kramers_gaunt(3, 0.0)), 3)  # Karzas & Latter 1961: 0.907
    0.905
    """
    x = lower * (u + 1)
    return 1 + 0.1728 * (u - 1) / x ** (2 / 3) - 0.0496 * (u**2 + 4 / 3 * u + 1) / x ** (4 / 3)


def oscillator_strength(lower: int, upper: int) -> float:
    """Absorption oscillator strength of a hydrogen line, exact.

    References
    ----------
    Menzel & Pekeris 1935, MNRAS 96, 77.

    Examples
    --------
    >>> [round(oscillator_strength(2, n), 4) for n in (3, 4, 5)]
    [0.6407, 0.1193, 0.0447]
    """
    argument = -4 * lower * upper / (upper - lower) ** 2

    def hypergeometric(a: int, b: int) -> float:
        total = term = 1.0
        for k in range(min(-a, -b)):
            term *= (a + k) * (b + k) / (k + 1) ** 2 * argument
            total += term
        return total

    delta = hypergeometric(1 - upper, -lower) ** 2 - hypergeometric(1 - lower, -upper) ** 2
    ratio = ((upper - lower) / (upper + lower)) ** (2 * (upper + lower))
    gaunt = math.pi * math.sqrt(3) * abs(ratio * upper * lower / (upper - lower) * delta)
    kramers = 32 / (3 * math.pi * math.sqrt(3)) / (lower**5 * upper**3) / (1 / lower**2 - 1 / upper**2) ** 3
    return kramers * gaunt


def level_population(n: np.ndarray, charge: int, state: State) -> np.ndarray:
    """Atoms in level n, were none dissolved, (..., n_layer) [1/cm³]."""
    n = np.asarray(n, dtype=np.float64)[..., None]
    rydberg = (RYDBERG_H if charge == 1 else RYDBERG_HE) * charge**2
    energy = rydberg * (1 - 1 / n**2) * H_ERG * C_CGS / (constants.e * 1e7)
    return state.ions[charge - 1, charge - 1] * 2 * n**2 * np.exp(-energy / (K_EV * state.temperature))


def bound_free(
    frequency: np.ndarray, charge: int, state: State, *, dissolved: bool, weights: np.ndarray | None = None
) -> np.ndarray:
    """Absorption of all hydrogenic levels, stimulated emission not yet taken off.

    Parameters
    ----------
    frequency : (n_frequency,) float64
        [Hz].
    dissolved : bool
        With what dissolved levels absorb below their thresholds.
    weights : (n_level, n_layer) float64, optional
        What levels 1, 2, 3, … count; those above count nothing. All count one if None.

    Returns
    -------
    (n_frequency, n_layer) float64
        [1/cm].

    References
    ----------
    Mihalas 1978, eq 4-114; Däppen, Anderson & Mihalas 1987, ApJ 319, 195 (below the thresholds).
    """
    rydberg = (RYDBERG_H if charge == 1 else RYDBERG_HE) * C_CGS * charge**2
    out = np.zeros((len(frequency), len(state.temperature)))
    for n in range(1, (_N_TOP if weights is None else len(weights)) + 1):
        threshold = rydberg / n**2
        cross_section = 2.815e29 * charge**4 / n**5 / frequency**3
        cross_section *= kramers_gaunt(n, np.maximum(frequency / threshold - 1, 0.0))
        survives = occupation(float(n), charge, state)
        below = frequency < threshold
        share = np.where(below[:, None], 0.0, np.ones_like(out))
        if dissolved and below.any():
            reached = (1 / n**2 - frequency[below] / rydberg) ** -0.5
            # Between n and n + 1 no photon can be absorbed but by the line itself.
            share[below] = np.where(
                reached[:, None] > n + 1, 1 - occupation(reached, charge, state) / np.maximum(survives, 1e-30), 0.0
            )
            share[below] = np.clip(share[below], 0.0, 1.0)
        population = survives * level_population(float(n), charge, state)
        out += cross_section[:, None] * share * (population if weights is None else population * weights[n - 1])
    return out


_ELECTRON_START, _ELECTRON_STEP = 10.0, 0.5
_TEMPERATURE_START, _TEMPERATURE_STEP = 3.39794, 0.30103
_COARSE_STEP, _STEP = 0.2, 0.05
"""log10 steps of the tables in wavelength, as printed and as used."""
_OFFSET_START, _N_OFFSET = -2.8, 140
"""Profiles are laid out at log10 |Δλ/Å| from here on, in steps of `_STEP`."""


@dataclass(frozen=True)
class StarkTable:
    """Stark profile of one line, convolved with thermal motion.

    Attributes
    ----------
    log_profile : (n_electron, n_temperature, n_alpha) float64
        log10 of the profile over α = Δλ/F₀ (F₀ = 1.25e-9 n_e^2/3), of unit area, in steps of 0.05 dex of α.
    log_start : float
        log10 of the first α.
    """

    log_profile: np.ndarray
    log_start: float


@functools.cache
def stark_tables(path: Path | None = None) -> dict[tuple[int, int], StarkTable]:
    """Lemke's tables by (lower, upper) level.

    References
    ----------
    Lemke 1997, A&AS 122, 285.
    """
    text = (path or data_folder() / "lemke.dat").read_text()
    head, *blocks = re.split(r"nl=\d+ nu=\d+", text)
    # Each series says how many lines it has, then eleven numbers a line; what follows a title is its line's table.
    tables, pending = {}, _heads(head.split()[1:])
    for block in blocks:
        lower, upper, first, n_alpha, n_electron, n_temperature = pending.pop(0)
        values = np.array(block.split(), dtype=np.float64)
        size = n_electron * n_temperature * (n_alpha + 1)
        # A zero opens every row.
        rows = values[:size].reshape(n_electron, n_temperature, n_alpha + 1)[:, :, 1:]
        if lower in (2, 3):
            tables[lower, upper] = _resample(rows, first)
        pending += _heads(values[size:])
    return tables


def _heads(numbers: Sequence[float | str]) -> list[tuple]:
    """(lower, upper, first log α, counts of α, electron densities, temperatures) of the lines of one series."""
    rows = np.array(numbers[1:], dtype=np.float64).reshape(-1, 11)
    return [(int(r[0]), int(r[1]), float(r[2]), int(r[8]), int(r[9]), int(r[10])) for r in rows]


def _resample(rows: np.ndarray, first: float) -> StarkTable:
    """The printed steps are too wide for straight lines through a Doppler core: they lose 5 % of the area."""
    n = rows.shape[2]
    fine = np.arange(round((n - 1) * _COARSE_STEP / _STEP) + 1) * _STEP
    log_profile = PchipInterpolator(np.arange(n) * _COARSE_STEP, rows, axis=2)(fine)
    alpha, profile = 10 ** (first + fine), 10**log_profile
    area = profile[..., 0] * alpha[0] + np.trapezoid(profile * alpha, np.log(alpha), axis=2)
    area += profile[..., -1] * alpha[-1] / 1.5
    return StarkTable(log_profile - np.log10(2 * area)[..., None], first)


@njit(cache=True)
def _lookup(table, start, log_alpha):
    """log10 profile at log α: flat toward the center, falling as α^-2.5 beyond the table."""
    x = (log_alpha - start) / _STEP
    n = table.shape[0]
    if x <= 0:
        return table[0]
    if x >= n - 1:
        return table[n - 1] - 2.5 * _STEP * (x - (n - 1))
    i = int(x)
    return table[i] + (x - i) * (table[i + 1] - table[i])


@njit(cache=True)
def _at_temperature(table, start, stretch, log_electrons, log_temperature, log_offset):
    """log10 of the profile per Å, at one wavelength offset.

    Interpolated at fixed Δλ, not at fixed α: there both the Doppler core and the Stark wing follow the electron density
    along straight lines.
    """
    e = (log_electrons - _ELECTRON_START) / _ELECTRON_STEP
    t = (log_temperature - _TEMPERATURE_START) / _TEMPERATURE_STEP
    i = min(max(math.floor(e), 0), table.shape[0] - 2)
    j = min(max(math.floor(t), 0), table.shape[1] - 2)
    t = min(max(t, 0.0), table.shape[1] - 1.0)
    out = 0.0
    for k in range(2):
        log_field = math.log10(_HOLTSMARK) + 2 / 3 * (_ELECTRON_START + (i + k) * _ELECTRON_STEP) + stretch
        x = log_offset - log_field
        cool, hot = _lookup(table[i + k, j], start, x), _lookup(table[i + k, j + 1], start, x)
        weight = e - i if k == 1 else 1 - (e - i)
        out += weight * (cool + (t - j) * (hot - cool) - log_field)
    return out


@njit(cache=True)
def _profile(table, start, stretch, log_electrons, log_temperature, log_turbulent, log_doppler, out):
    """log10 of the profile per Å of one layer, at all offsets.

    Turbulence acts like a higher temperature on the Doppler core, and not at all on the wings.
    """
    for i in range(_N_OFFSET):
        log_offset = _OFFSET_START + i * _STEP
        # 1 up to three Doppler widths, 0 from six.
        core = min(max((log_doppler + 0.778 - log_offset) / 0.301, 0.0), 1.0)
        value = 0.0
        if core < 1:
            value += (1 - core) * _at_temperature(table, start, stretch, log_electrons, log_temperature, log_offset)
        if core > 0:
            value += core * _at_temperature(table, start, stretch, log_electrons, log_turbulent, log_offset)
        out[i] = value


@njit(cache=True, fastmath=True)
def _add_line(opacity, log_amplitude, weights, profiles, start, index, fraction):
    """Add one line to opacity (n_set, n_layer, n_node) from ``start`` on, times the weights (n_set, n_layer)."""
    for layer in range(opacity.shape[1]):
        if log_amplitude[layer] < -90:
            continue
        row = profiles[layer]
        for node in range(len(index)):
            i = index[node]
            value = row[i] + fraction[node] * (row[i + 1] - row[i])
            value = math.exp(2.302585092994046 * (value + log_amplitude[layer]))
            for k in range(opacity.shape[0]):
                opacity[k, layer, start + node] += weights[k, layer] * value


def _vacuum(lower: int, upper: int) -> float:
    """Wavelength [Å] of a hydrogen line: the mean of its fine structure, 3-4 km/s blueward of Rydberg's formula.

    Examples
    --------
    >>> round(_vacuum(2, 3), 2), round(_vacuum(2, 4), 2)  # NIST: 6564.61, 4862.69
    (6564.61, 4862.68)
    """
    # Dirac's shift of a level, over its sublevels: -α² R/n⁴ (5/4 - 1/n).
    alpha = constants.fine_structure
    shift = alpha**2 * RYDBERG_H * ((1.25 - 1 / lower) / lower**4 - (1.25 - 1 / upper) / upper**4)
    return 1e8 / (RYDBERG_H * (1 / lower**2 - 1 / upper**2) + shift)


@functools.cache
def _lines() -> tuple[tuple[int, int, float, float], ...]:
    """(lower, upper, vacuum wavelength [Å], f) of the Balmer and Paschen lines that reach into 3700-9050 Å."""
    pairs = [(2, n) for n in range(3, _N_TOP + 1)] + [(3, n) for n in range(7, _N_TOP + 1)]
    return tuple((lower, upper, _vacuum(lower, upper), oscillator_strength(lower, upper)) for lower, upper in pairs)


@functools.cache
def line_nodes(low: float, high: float) -> np.ndarray:
    """Wavelengths [Å] that follow every hydrogen line: dense in its core, wide in its wings."""
    offset = np.concatenate([[0.0], np.geomspace(0.05, 400, 100)])
    centers = np.array([line[2] for line in _lines()])
    nodes = [np.arange(low, high, 4.0), [low, high]]
    for center in centers[(centers > low - 50) & (centers < high + 50)]:
        gap = np.sort(np.abs(centers - center))[1]
        reach = offset[offset < max(gap, 0.5)]
        nodes += [center - reach, center + reach]
    nodes = np.unique(np.concatenate(nodes))
    nodes = nodes[(nodes >= low) & (nodes <= high)]
    return nodes[np.concatenate([[True], np.diff(nodes) > 0.01])]


@functools.cache
def _positions(low: float, high: float) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """For each line, the first node it reaches and where those from there on lie on the grid of offsets."""
    nodes, out = line_nodes(low, high), []
    for lower, upper, center, _ in _lines():
        reach = _FARTHEST * (center - _vacuum(lower, upper + 1))
        start, stop = np.searchsorted(nodes, [center - reach, center + reach])
        # Profiles are symmetric in frequency: Δλ stands for λ₀² Δν/c.
        offset = np.abs(nodes[start:stop] - center) * center / nodes[start:stop]
        x = np.log10(np.maximum(offset, 10**_OFFSET_START))
        x = (x - _OFFSET_START) / _STEP
        index = np.minimum(x.astype(np.int64), _N_OFFSET - 2)
        out.append((start, index, x - index))
    return out


def decay_rate(n: int) -> float:
    """Spontaneous decays of a level [1/s], all its sublevels alike populated.

    Examples
    --------
    >>> round(decay_rate(2) / 1e8, 2), round(decay_rate(3) / 1e7, 2)  # NIST: 4.70 and 9.99
    (4.7, 9.98)
    """
    return sum(
        6.6702e15 * lower**2 / n**2 * oscillator_strength(lower, n) / _vacuum(lower, n) ** 2 for lower in range(1, n)
    )


@functools.cache
def _radiative_width(lower: int, upper: int) -> float:
    """Half width [Å] of a line by the decay of its levels; high levels add nothing."""
    decays = decay_rate(lower) + decay_rate(min(upper, 12))
    return decays / (4 * np.pi) * _vacuum(lower, upper) ** 2 / (C_CGS * 1e8)


def _radiative(lower: int, upper: int, offsets: np.ndarray, doppler: np.ndarray) -> np.ndarray:
    """What radiative damping adds to a profile [1/Å], (n_layer, n_offset): Stark's theory leaves it out.

    In thin gas it, not Stark broadening, makes the wings of Hα. Within two Doppler widths it is lost in the core.
    """
    width = _radiative_width(lower, upper)
    return width / np.pi / (offsets**2 + width**2) * np.clip(offsets / doppler[:, None] - 2, 0, 1)


def line_absorption(
    low: float, high: float, state: State, vmic: float, departure: np.ndarray | None = None
) -> np.ndarray:
    """Absorption of the Balmer and Paschen lines, stimulated emission not yet taken off.

    Parameters
    ----------
    low, high : float
        Range [Å, vacuum] within 3700-9050; sampled at `line_nodes`.
    vmic : float
        Microturbulent velocity [km/s].
    departure : (n_level, n_layer) float64, optional
        Departure coefficients of levels 1, 2, 3, …; those above have the last one's.

    Returns
    -------
    (n_set, n_layer, n_node) float64
        [1/cm], in LTE; with departure coefficients, after it the same times those of the lower and of the upper level.

    References
    ----------
    Lemke 1997, A&AS 122, 285; Tremblay & Bergeron 2009, ApJ 696, 1755 (fields strong enough to dissolve the upper
    level make no wing of its line: what they absorb is in `bound_free`). Lines above n = 22 have the profile of n = 22,
    stretched by the Stark splitting n⁴. The area of a line is at most its upper level's
    chance to survive.
    """
    temperature = state.temperature
    thermal = 2 * K_ERG * temperature / _MASS
    doppler = np.sqrt(thermal + (vmic * 1e5) ** 2)
    log_temperature = np.log10(temperature)
    log_turbulent = np.log10(temperature * doppler**2 / thermal)
    log_electrons = np.log10(state.electron_density)
    ones = np.ones((1, len(temperature)))
    out = np.zeros((1 if departure is None else 3, len(temperature), len(line_nodes(low, high))))
    profiles = np.empty((len(temperature), _N_OFFSET))
    offsets = 10 ** (_OFFSET_START + _STEP * np.arange(_N_OFFSET))
    tables = stark_tables()
    for (lower, upper, center, strength), where in zip(_lines(), _positions(low, high), strict=True):
        survives = occupation(float(upper), 1, state)
        number = level_population(float(lower), 1, state) * (survives > _DISSOLVED)
        # π e²/mc f n, times λ²/c from the profile per Å to that per Hz.
        amplitude = 0.02654008 * strength * number * center**2 / (C_CGS * 1e8)
        tabulated = min(upper, _N_TABLE)
        table, stretch = tables[lower, tabulated], 0.0
        if upper > tabulated:
            stretch = math.log10(upper**4 / (upper**2 - lower**2) / (_N_TABLE**4 / (_N_TABLE**2 - lower**2)))
        log_doppler = np.log10(center * doppler / C_CGS)
        for layer in range(len(temperature)):
            _profile(
                table.log_profile,
                table.log_start,
                stretch,
                log_electrons[layer],
                log_temperature[layer],
                log_turbulent[layer],
                log_doppler[layer],
                profiles[layer],
            )
        density = 10**profiles + _radiative(lower, upper, offsets, 10**log_doppler)
        # Stronger fields than shift the level half way to the next one have dissolved it.
        density /= 1 + (offsets / ((center - _vacuum(lower, upper + 1)) / 2)) ** _CUT_POWER
        area = 2 * (density[:, 0] * offsets[0] + np.trapezoid(density * offsets, np.log(offsets), axis=1))
        # No line has more strength than its level's chance to survive leaves it.
        profiles = np.log10(density * np.clip(survives / area, 1e-30, 1.0)[:, None])
        weights = ones
        if departure is not None:
            weights = np.concatenate([ones, departure[[lower - 1, min(upper, len(departure)) - 1]]])
        _add_line(out, np.log10(np.maximum(amplitude, 1e-99)), weights, profiles, *where)
    return out
