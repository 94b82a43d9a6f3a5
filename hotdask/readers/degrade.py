"""Spectra of higher resolution, evenly sampled in wavelength, onto the observed grid at about R = 1800.

One fixed linear filter for each arm, w_ij ∝ exp(−(λ_j − λ_i)²/2s_i²) from pixels j to the observed grid's i. Its
Gaussian, s_i² = [(λ_i/1800)² − (1.65 Å)²]/8 ln 2, would bring a line of `NATIVE_FWHM` to R = 1800. It is the same for
every spectrum, so that none depends on its neighbors; what a fiber's own line spread makes of it is told with the
spectrum (`Degraded.sigma`), and goes into the fit.

A line spread is here all that widens a narrow line: optics, fiber and detector pixel. A resolution matrix R, with
``data = R · (spectrum at the wavelengths of the pixels)``, holds the three of them, its second moment their variance.
What it does not hold is the averaging over a pixel that some codes apply to models before R (0.05 Å² for pixels of
0.8 Å, 1-4 % in the width at R = 1800); our models are samples, not averages, so it is not added.

At 3720 Å, where s is 0.7 pixel, sampling errs by up to 0.3 % of the depth of a line turned at 100 km/s; from 4300 Å on
by 0.02 %.

References
----------
Bolton & Schlegel 2010, PASP 122, 248 (resolution matrix; pixels of uncorrelated noise); Guy et al. 2023, AJ 165, 144
(DESI's pipeline, and its coadds).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from hotdask.spectra.degrade import BAD_SHARE, RESOLVING_POWER, Degraded, bridge
from hotdask.windows import FIT_MASK, FWHM, LOG_STEP, N_OBSERVED, inside, observed_wavelength

NATIVE_FWHM = 1.65
"""FWHM [Å] of a line before the filter, by the matrices of real coadds 1.6 (b), 1.5 (r) and 1.8 (z)."""
_REACH = 5.0
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


def filter_variance(wavelength: np.ndarray) -> np.ndarray:
    """Variance [Å²] of the filter's Gaussian at wavelengths [Å].

    Examples
    --------
    >>> filter_variance(np.array([3700.0, 5000.0, 9000.0])).round(2).tolist()
    [0.27, 0.9, 4.02]
    """
    wanted = np.asarray(wavelength) / (RESOLVING_POWER * FWHM)
    return np.maximum(wanted**2 - (NATIVE_FWHM / FWHM) ** 2, 0.0)


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
    total, first, second = np.zeros((3, m, n))
    with np.errstate(all="ignore"):
        for k in range(n_diagonal):
            rows = np.roll(resolution[:, k], k - half, axis=-1)
            total += rows
            first += (half - k) * rows
            second += (half - k) ** 2 * rows
        variance = second / total - (first / total) ** 2
        sane = (total > 0.5) & (total < 1.5) & (variance > 0.05) & (variance < 9.0)
    # The first and last rows are cut off.
    sane[:, :half] = sane[:, n - half :] = False
    n_bin = n // _BIN
    bins = np.where(sane, variance, np.nan)[:, : n_bin * _BIN].reshape(m, n_bin, _BIN)
    bins = np.sort(bins, axis=2)
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
    With v_j the variance of an arm's pixels δλ wide, a pixel Δλ_i wide has the flux Σ_j w_ij f_j, the information
    Δλ_i/(δλ Σ_j w_ij v_j), and noise of variance Σ_j w_ij² v_j. Arms are weighted by their information. The filter's
    weights are not those of inverse variance: lines are darker than the continuum and have less noise, so that such
    weights would move and narrow them.

    Examples
    --------
    >>> arm = Arm(3600 + 0.8 * np.arange(2751), np.full((1, 2751), 7.0), np.full((1, 2751), 4.0), None)
    >>> found, i = degrade([arm]), np.argmin(abs(observed_wavelength() - 5000))
    >>> round(float(found.flux[0, i]), 3), round(float(found.ivar[0, i] / 4 * 0.8), 3)
    (7.0, 1.151)
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
    n = len(arm.wavelength)
    step = float(arm.wavelength[-1] - arm.wavelength[0]) / (n - 1)
    weights, whole = _weights(float(arm.wavelength[0]), step, n)
    # What a bad pixel holds may be no number that can be converted.
    with np.errstate(all="ignore"):
        flux, ivar = (np.array(a[part], dtype=np.float64) for a in (arm.flux, arm.ivar))
        variance = 1 / ivar
        good = np.isfinite(flux) & (variance > 0) & np.isfinite(variance)
    flux, variance = bridge(flux, good), bridge(variance, good)
    pairs = ((weights, good.astype(np.float64)), (weights, flux), (weights, variance), (weights**2, variance))
    share, filtered, mean, noise = ((matrix @ values.T).T for matrix, values in pairs)
    used = share >= 1 - BAD_SHARE
    size = np.log(10) * LOG_STEP * observed_wavelength()
    with np.errstate(all="ignore"):
        found = filtered / whole, size / step * whole / mean, noise / whole**2
    return tuple(np.where(used, values, 0.0) for values in found)


def _spread(arm: Arm, part: slice) -> np.ndarray:
    """Variance of the line spread after the filter [Å²]; NaN where the native one is unknown. Spectrum by pixel."""
    wavelength = observed_wavelength()
    m = len(arm.flux[part])
    out = np.full((m, N_OBSERVED), np.nan)
    if arm.variance is None:
        return out
    center = arm.wavelength[_BIN // 2 :: _BIN][: arm.variance.shape[1]]
    for i, variance in enumerate(arm.variance[part]):
        known = np.isfinite(variance)
        if known.any():
            out[i] = np.interp(wavelength, center[known], variance[known])
    return out + filter_variance(wavelength)


@functools.lru_cache(maxsize=1)
def _fitted() -> np.ndarray:
    return ~inside(observed_wavelength(), FIT_MASK)


@functools.lru_cache(maxsize=8)
def _weights(start: float, step: float, n: int) -> tuple[csr_array, np.ndarray]:
    """A camera's filter, (3909, n), and the share of it that lies on the camera's pixels: what a row adds up to."""
    wavelength = observed_wavelength()
    position = (wavelength - start) / step
    sigma = np.sqrt(filter_variance(wavelength)) / step
    reach = int(np.ceil(_REACH * sigma.max()))
    column = np.rint(position)[:, None].astype(np.int64) + np.arange(-reach, reach + 1)
    distance = (column - position[:, None]) / sigma[:, None]
    weight = np.where(np.abs(distance) <= _REACH, np.exp(-0.5 * distance**2), 0.0)
    weight /= weight.sum(axis=1, keepdims=True)
    row, at = np.nonzero((column >= 0) & (column < n) & (weight > 0))
    matrix = csr_array((weight[row, at], (row, column[row, at])), shape=(N_OBSERVED, n))
    return matrix, matrix.sum(axis=1)
