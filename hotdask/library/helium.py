"""Opacity of the helium lines that have Stark tables; the others stay Voigt lines of the list.

The tables are those of `hotdask.library.starktables`, or for He I those of `hotdask.library.helium_profiles`.

He II 4-n lines from n = 16 to the limit at 3644 Å and the 5-n series in the red have no tables in reach; they stay in
the list too. `replaced_lines` tells which lines of a list must not be counted twice.
"""

import math

import numpy as np
from numba import njit

from hotdask.library.starktables import (
    LOG_NE_START,
    LOG_NE_STEP,
    N_NE,
    THERMAL,
    StarkLine,
    replaced_lines,
    stark_tables,
)

__all__ = ["add_helium_line", "helium_profile", "replaced_lines", "stark_tables"]

_C = 2.99792458e10


def add_helium_line(
    opacity: np.ndarray,
    wavelength: np.ndarray,
    amplitude: np.ndarray,
    log_ne: np.ndarray,
    temperature: np.ndarray,
    doppler_velocity: np.ndarray,
    line: StarkLine,
    cutoff: np.ndarray,
    factors: np.ndarray | None = None,
) -> None:
    """Add amplitude times profile of one line to the opacity, in place.

    Parameters
    ----------
    opacity : (n_set, n_wavelength, n_layer) float64
        [any unit].
    wavelength : (n_wavelength,) float64
        Vacuum [Å], increasing.
    amplitude : (n_layer,) float64
        π e²/(m c) f n_lower (1 - exp(-hν/kT)) in the unit of the opacity times Hz; of the whole multiplet.
    log_ne, temperature : (n_layer,) float64
        log10 of the electron density [1/cm³]; [K]. Beyond 9-18 the nearest is taken.
    doppler_velocity : (n_layer,) float64
        √(2kT/m + microturbulence²) [cm/s].
    line : StarkLine
        One of `stark_tables`, or of a file's `HeliumProfiles`.
    cutoff : (n_layer,) float64
        Opacity below which a wing is left out; 1e-4 of the continuum does no harm.
    factors : (n_set, n_layer) float64, optional
        What the line counts in each set; one if None.

    Examples
    --------
    >>> line = stark_tables()[0]
    >>> wavelength = line.wavelength + np.arange(-300, 300, 0.04)
    >>> opacity = np.zeros((1, len(wavelength), 1))
    >>> layer = np.array([15.0]), np.array([2e4]), np.array([9.2e5])
    >>> add_helium_line(opacity, wavelength, np.array([1.0]), *layer, line, np.zeros(1))
    >>> frequency = 2.99792458e18 / wavelength
    >>> round(float(-np.trapezoid(opacity[0, :, 0], frequency)), 2)
    1.0
    """
    profile = helium_profile(log_ne, temperature, doppler_velocity, line)
    low, high = _reach(line.offset, profile, amplitude, cutoff)
    if low > high:
        return
    start, stop = np.searchsorted(wavelength, [line.wavelength + low, line.wavelength + high])
    if factors is None:
        factors = np.ones((len(opacity), len(amplitude)))
    _add(opacity, wavelength, start, stop, line.wavelength, line.offset, profile, amplitude, cutoff, factors)


def helium_profile(
    log_ne: np.ndarray, temperature: np.ndarray, doppler_velocity: np.ndarray, line: StarkLine
) -> np.ndarray:
    """Natural logarithm of the profile [1/Hz] at ``line.offset``, (n_offset, n_layer) float64.

    The tables hold the thermal motion of helium at up to 40 000 K (He I) or 320 000 K (He II); a Gaussian makes up for
    the rest of `doppler_velocity`. See `add_helium_line` for the parameters.
    """
    return _profile(
        log_ne, temperature, doppler_velocity, line.wavelength, line.offset, line.core_start, line.core_stop,
        line.temperature, line.log_profile,
    )  # fmt: skip


@njit(cache=True, nogil=True, fastmath=True)
def _profile(log_ne, temperature, velocity, center, offset, core_start, core_stop, grid, table):
    n_offset, n_layer = len(offset), len(log_ne)
    out = np.empty((n_offset, n_layer))
    one = np.empty(n_offset)
    per_hertz = _C * 1e8 / center**2
    step = offset[core_start + 1] - offset[core_start]
    for layer in range(n_layer):
        position = min(max((log_ne[layer] - LOG_NE_START) / LOG_NE_STEP, 0.0), N_NE - 1.0)
        i = min(int(position), N_NE - 2)
        u = position - i
        kelvin = min(max(temperature[layer], grid[0]), grid[-1])
        j = min(max(np.searchsorted(grid, kelvin) - 1, 0), len(grid) - 2)
        # In 1/T, for the center of a thermal line is exp(-const/T)/√T.
        v = (1 / kelvin - 1 / grid[j]) / (1 / grid[j + 1] - 1 / grid[j])
        root = 0.5 * math.log(kelvin)
        for k in range(n_offset):
            cold = (1 - u) * table[i, j, k] + u * table[i + 1, j, k]
            hot = (1 - u) * table[i, j + 1, k] + u * table[i + 1, j + 1, k]
            one[k] = (1 - v) * cold + v * hot - root
        excess = math.sqrt(max(velocity[layer] ** 2 - THERMAL * kelvin, 0.0)) / _C * center
        if excess > 0.5 * step:
            _smooth(one, offset, core_start, core_stop, step, excess)
        # The wings and the center depend on temperature in different ways; the area says what is lost between nodes.
        area = (-offset[0] * math.exp(one[0]) + offset[-1] * math.exp(one[-1])) / 1.25
        before = math.exp(one[0])
        for k in range(1, n_offset):
            after = math.exp(one[k])
            area += 0.5 * (before + after) * (offset[k] - offset[k - 1])
            before = after
        shift = math.log(area * per_hertz)
        for k in range(n_offset):
            out[k, layer] = one[k] - shift
    return out


@njit(cache=True, nogil=True, fastmath=True)
def _smooth(log_profile, offset, core_start, core_stop, step, width):
    """Convolve the even part with exp(-(x/width)²), in place; farther out the wings are too smooth to change."""
    pad = math.ceil(3.5 * width / step)
    n = core_stop - core_start + 1
    values = np.empty(n + 2 * pad)
    k = 0
    for i in range(n + 2 * pad):
        if pad <= i < pad + n:
            values[i] = math.exp(log_profile[core_start + i - pad])
            continue
        x = offset[core_start] + (i - pad) * step
        while k < len(offset) - 2 and offset[k + 1] < x:
            k += 1
        f = (x - offset[k]) / (offset[k + 1] - offset[k])
        values[i] = math.exp((1 - f) * log_profile[k] + f * log_profile[k + 1])
    kernel = np.empty(2 * pad + 1)
    total = 0.0
    for i in range(2 * pad + 1):
        kernel[i] = math.exp(-(((i - pad) * step / width) ** 2))
        total += kernel[i]
    for i in range(n):
        smooth = 0.0
        for j in range(2 * pad + 1):
            smooth += kernel[j] * values[i + j]
        log_profile[core_start + i] = math.log(smooth / total)


@njit(cache=True, nogil=True)
def _reach(offset, profile, amplitude, cutoff):
    """First and last offset [Å] at which any layer matters; the first is the larger one if none does."""
    low, high = np.inf, -np.inf
    last = len(offset) - 1
    for layer in range(len(amplitude)):
        if amplitude[layer] <= 0:
            continue
        limit = math.log(max(cutoff[layer], 1e-300) / amplitude[layer])
        a, b = 0, last
        while a <= last and profile[a, layer] < limit:
            a += 1
        if a > last:
            continue
        while profile[b, layer] < limit:
            b -= 1
        # One node more, for the profile crosses the cutoff beyond the last node above it.
        low = min(low, offset[max(a - 1, 0)])
        high = max(high, offset[min(b + 1, last)])
    return low, high


@njit(cache=True, nogil=True, fastmath=True)
def _add(opacity, wavelength, start, stop, center, offset, profile, amplitude, cutoff, factors):
    n_layer = len(amplitude)
    logs = np.empty(n_layer)
    limits = np.empty(n_layer)
    for layer in range(n_layer):
        logs[layer] = math.log(amplitude[layer]) if amplitude[layer] > 0 else -1e30
        limits[layer] = math.log(max(cutoff[layer], 1e-300))
    k = 0
    for i in range(start, stop):
        x = wavelength[i] - center
        while k < len(offset) - 2 and offset[k + 1] < x:
            k += 1
        f = (x - offset[k]) / (offset[k + 1] - offset[k])
        for layer in range(n_layer):
            value = logs[layer] + (1 - f) * profile[k, layer] + f * profile[k + 1, layer]
            if value > limits[layer]:
                value = math.exp(value)
                for j in range(len(opacity)):
                    opacity[j, i, layer] += factors[j, layer] * value
