"""Spectra of higher resolution, evenly sampled in wavelength, onto the observed grid at about R = 1800.

One fixed linear filter for each arm: a Gaussian that would bring a line of `NATIVE_FWHM` to R = 1800, sampled where the
observed grid wants values. The same for every spectrum, so that none depends on its neighbors; what a fiber's own line
spread makes of it is told with the spectrum (`Degraded.sigma`), and goes into the fit.

A line spread is here all that widens a narrow line: optics, fiber and detector pixel. A resolution matrix R, with
``data = R · (spectrum at the wavelengths of the pixels)``, holds the three of them, its second moment their variance.
What it does not hold is the averaging over a pixel that some codes apply to models before R (0.05 Å² for pixels of
0.8 Å, 1-4 % in the width at R = 1800); our models are samples, not averages, so it is not added.

References
----------
Bolton & Schlegel 2010, PASP 122, 248 (resolution matrix; pixels of uncorrelated noise).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.special import ndtr

from hotdask.windows import FIT_MASK, LOG_STEP, N_OBSERVED, inside, observed_wavelength

RESOLVING_POWER = 1800.0
"""λ/FWHM of the filtered line."""
NATIVE_FWHM = 1.65
"""FWHM [Å] of a line before the filter, by the matrices of real coadds 1.6 (b), 1.5 (r) and 1.8 (z)."""
BAD_SHARE = 0.05
"""A value is lost if bad pixels, which are bridged by straight lines, bear more of its filter than this."""
_FWHM = 2 * np.sqrt(2 * np.log(2))
# The filter's first factor interpolates: sinc times a Gaussian of this many pixels, flat to 0.3 cycles a pixel, where
# the line spread of a DESI pixel's light leaves 20 %.
_SINC_WIDTH = 2.5
_REACH, _REACH_SIGMA = 7.0, 5.0
_BIN = 64
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Arm:
    """Spectra of one camera.

    Attributes
    ----------
    wavelength : (n,) float64
        Vacuum [Å], evenly spaced.
    flux, ivar : (m, n) float32
        ivar = 0 marks a bad pixel, whatever its flux.
    variance : (m, n_bin) float32 or None
        Of the native line spread, as `native_variance` has it [Å²].
    """

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    variance: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Degraded:
    """Spectra on the observed grid (`hotdask.windows.observed_wavelength`).

    Attributes
    ----------
    flux, ivar : (m, 3909) float32
        The inverse variance holds the information of the input: Δλ/(δλ·v) for pixels of Δλ from pixels of δλ and
        variance v. Smoothing correlates noise and leaves it all on scales wider than the filter, so a fit that takes
        pixels as independent has the right errors with it (up to a fifth too large for what rests on the narrowest
        lines), and χ² falls short by `noise_power`.
    noise_power : (m,) float64
        Mean of ivar times the variance that the noise really has, over fitted pixels; NaN where there is none.
    sigma : (m, 3909) float64
        Gaussian σ of the line spread [Å]; NaN where it is not known.
    """

    flux: np.ndarray
    ivar: np.ndarray
    noise_power: np.ndarray
    sigma: np.ndarray


def filter_variance(wavelength: np.ndarray) -> np.ndarray:
    """Variance [Å²] of the filter's Gaussian at wavelengths [Å].

    Examples
    --------
    >>> filter_variance(np.array([3700.0, 5000.0, 9000.0])).round(2).tolist()
    [0.27, 0.9, 4.02]
    """
    wanted = np.asarray(wavelength) / (RESOLVING_POWER * _FWHM)
    return np.maximum(wanted**2 - (NATIVE_FWHM / _FWHM) ** 2, 0.0)


def native_variance(resolution: np.ndarray, step: float) -> np.ndarray:
    """Variance of the native line spread, from the bands of a resolution matrix.

    Parameters
    ----------
    resolution : (m, n_diagonal, n) float
        Diagonals from the uppermost down, each aligned by column, as in `scipy.sparse.dia_array`.
    step : float
        Of the pixels [Å].

    Returns
    -------
    (m, n_bin) float32
        Medians of 64 pixels [Å²]; NaN where fewer than 16 rows of the matrix make sense.

    Examples
    --------
    >>> band = np.exp(-0.5 * (np.arange(5, -6, -1) / 1.2) ** 2)
    >>> found = native_variance(np.tile((band / band.sum())[None, :, None], (1, 1, 256)), 0.8)
    >>> bool(abs(found - (1.2 * 0.8) ** 2).max() < 1e-3)
    True
    """
    resolution = np.asarray(resolution, dtype=np.float64)
    m, n_diagonal, n = resolution.shape
    half = n_diagonal // 2
    moments = np.zeros((3, m, n))
    with np.errstate(all="ignore"):
        for k in range(n_diagonal):
            offset = half - k
            row = slice(max(0, -offset), n - max(0, offset))
            band = resolution[:, k, max(0, offset) : n + min(0, offset)]
            for power in range(3):
                moments[power, :, row] += band * float(offset) ** power
        total, first, second = moments
        variance = second / total - (first / total) ** 2
        sane = (total > 0.5) & (total < 1.5) & (variance > 0.05) & (variance < 9.0)
    # The first and last rows are cut off.
    sane[:, :half] = sane[:, n - half :] = False
    n_bin = -(-n // _BIN)
    padded = np.full((m, n_bin * _BIN), np.nan)
    padded[:, :n] = np.where(sane, variance, np.nan)
    bins = np.sort(padded.reshape(m, n_bin, _BIN), axis=2)
    count = np.isfinite(bins).sum(axis=2)
    # NaN is sorted to the end.
    median = np.take_along_axis(bins, np.maximum(count - 1, 0)[..., None] // 2, axis=2)[..., 0]
    return np.where(count >= _BIN // 4, median * step**2, np.nan).astype(np.float32)


def degrade(arms: Sequence[Arm]) -> Degraded:
    """Filter each arm, and join them by inverse variance.

    Parameters
    ----------
    arms : sequence of Arm
        Of the same m spectra.

    Returns
    -------
    Degraded

    Notes
    -----
    The filter's weights are not those of inverse variance: lines are darker than the continuum and have less noise, so
    that such weights would move and narrow them.
    """
    m = len(arms[0].flux)
    out = Degraded(
        *(np.zeros((m, N_OBSERVED), np.float32) for _ in range(2)), np.full(m, np.nan), np.full((m, N_OBSERVED), np.nan)
    )
    for start in range(0, m, _CHUNK):
        part = slice(start, start + _CHUNK)
        _degrade(arms, part, out)
    return out


def _degrade(arms: Sequence[Arm], part: slice, out: Degraded) -> None:
    m = len(out.noise_power[part])
    flux, ivar, noise, spread = np.zeros((4, m, N_OBSERVED))
    for arm in arms:
        filtered, weight, variance = _filter(arm, part)
        flux += weight * filtered
        ivar += weight
        noise += weight**2 * variance
        spread += np.where(weight > 0, weight * _spread(arm, part), 0)
    with np.errstate(all="ignore"):
        good = ivar > 0
        out.flux[part] = np.where(good, flux / ivar, 0)
        out.ivar[part] = ivar
        out.sigma[part] = np.sqrt(spread / ivar)
        fitted = good & _fitted()
        out.noise_power[part] = np.where(fitted, noise / ivar, 0).sum(axis=1) / fitted.sum(axis=1)


def _filter(arm: Arm, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux, information and variance of the noise, each (m, 3909); information 0 where there is nothing."""
    step = (arm.wavelength[-1] - arm.wavelength[0]) / (len(arm.wavelength) - 1)
    weights, squares, sizes, whole = _filters(float(arm.wavelength[0]), float(step), len(arm.wavelength))
    flux, ivar = (np.array(a[part], dtype=np.float64) for a in (arm.flux, arm.ivar))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        variance = 1 / ivar
        bad = ~(np.isfinite(flux) & (variance > 0) & np.isfinite(variance))
    share = np.zeros((len(flux), N_OBSERVED))
    rows = np.flatnonzero(bad.any(axis=1))
    share[rows] = (sizes @ bad[rows].T.astype(np.float64)).T
    pixel = np.arange(flux.shape[1])
    for i in rows:
        good = ~bad[i]
        if not good.any():
            flux[i], variance[i] = 0.0, 1.0
            continue
        for values in (flux[i], variance[i]):
            values[bad[i]] = np.interp(pixel[bad[i]], pixel[good], values[good])
    pairs = ((weights, flux), (squares, variance), (sizes, variance))
    filtered, noise, mean = ((matrix @ values.T).T for matrix, values in pairs)
    used = whole & (share <= BAD_SHARE)
    size = np.log(10) * LOG_STEP * observed_wavelength()
    with np.errstate(all="ignore"):
        information = np.where(used, size / (step * mean), 0.0)
    return np.where(used, filtered, 0.0), information, np.where(used, noise, 0.0)


def _spread(arm: Arm, part: slice) -> np.ndarray:
    """Variance of the line spread after the filter [Å²]; NaN where the native one is unknown. Spectrum by pixel."""
    wavelength = observed_wavelength()
    m = len(arm.flux[part])
    out = np.full((m, N_OBSERVED), np.nan)
    if arm.variance is None:
        return out
    n = len(arm.wavelength)
    center = np.interp(
        np.minimum(np.arange(arm.variance.shape[1]) * _BIN + _BIN / 2, n - 1), np.arange(n), arm.wavelength
    )
    for i, variance in enumerate(arm.variance[part]):
        known = np.isfinite(variance)
        if known.any():
            out[i] = np.interp(wavelength, center[known], variance[known])
    return out + filter_variance(wavelength)


@functools.lru_cache(maxsize=1)
def _fitted() -> np.ndarray:
    return ~inside(observed_wavelength(), FIT_MASK)


@functools.lru_cache(maxsize=8)
def _filters(start: float, step: float, n: int) -> tuple[csr_array, csr_array, csr_array, np.ndarray]:
    """Weights of a camera's filter, their squares, and their sizes as shares, each (3909, n); and which are whole."""
    wavelength = observed_wavelength()
    position = (wavelength - start) / step
    sigma = np.sqrt(filter_variance(wavelength)) / step
    reach = np.maximum(_REACH, _REACH_SIGMA * sigma)
    rows = np.flatnonzero((position > -reach.max()) & (position < n - 1 + reach.max()))
    first = np.ceil(position[rows] - reach.max()).astype(np.int64)
    column = first[:, None] + np.arange(int(2 * reach.max()) + 1)
    distance = column - position[rows, None]
    weight = np.where(np.abs(distance) <= reach[rows, None], _kernel(distance, sigma[rows, None]), 0.0)
    there = (column >= 0) & (column < n) & (weight != 0)
    size = np.abs(weight)
    whole = np.zeros(N_OBSERVED, dtype=bool)
    whole[rows] = np.where(there, size, 0).sum(axis=1) >= (1 - BAD_SHARE) * size.sum(axis=1)
    there &= whole[rows, None]
    weight, size = np.where(there, weight, 0.0), np.where(there, size, 0.0)
    with np.errstate(invalid="ignore"):
        weight /= weight.sum(axis=1, keepdims=True)
        size /= size.sum(axis=1, keepdims=True)
    places = (np.broadcast_to(rows[:, None], column.shape)[there], column[there])
    shape = (N_OBSERVED, n)
    return *(csr_array((w[there], places), shape=shape) for w in (weight, weight**2, size)), whole


def _kernel(distance: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Interpolating kernel smoothed by a Gaussian, all in pixels.

    From its Fourier transform, a box of one cycle a pixel smoothed by the sinc's window, times the Gaussian's.
    """
    nodes, lengths = np.polynomial.legendre.leggauss(96)
    edge = 1 / (2 * np.pi * _SINC_WIDTH)
    top = 0.5 + 6 * edge
    frequency, lengths = top * (nodes + 1) / 2, lengths * top / 2
    out = np.zeros(np.broadcast_shapes(distance.shape, sigma.shape))
    for nu, length in zip(frequency, lengths, strict=True):
        response = ndtr((nu + 0.5) / edge) - ndtr((nu - 0.5) / edge)
        out += 2 * length * response * np.exp(-2 * (np.pi * sigma * nu) ** 2) * np.cos(2 * np.pi * nu * distance)
    return out
