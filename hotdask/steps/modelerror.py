"""How far models are from spectra beyond the noise: one number a pixel, learned from a survey's own residuals.

With r the residual of a fit, σ the noise that resampling has left and s the error of the models, r² ≤ σ² + s² must
hold for 68.27 % of the spectra in each pixel. The s² that a residual wants, r² − σ², is sorted into levels; levels are
counted, so that what is learned does not depend on how a survey is divided, and the s that 68.27 % of them want is the
error of the models.

Xiang et al. 2022 fit with the noise alone.
"""

from math import erf, sqrt

import numpy as np

LEVELS = np.concatenate([[0.0], np.geomspace(3e-4, 0.3, 61)])
"""Errors of models that are told apart, in units of the continuum."""

MIN_RESIDUALS = 300
"""A pixel with fewer residuals is taken together with its neighbors."""

_MAX_NEIGHBORS = 100
_SHARE = erf(1 / sqrt(2))


def count_levels(residual: np.ndarray, ivar: np.ndarray, smoothing: np.ndarray) -> np.ndarray:
    """Count, in each pixel, the least level of model error that a residual wants.

    Parameters
    ----------
    residual : (n, p) float
        Normalized flux less model.
    ivar : (n, p) float
        Inverse variance of the noise; pixels where it is 0 do not count.
    smoothing : (n,) float
        Share of the noise's power that resampling has left (`hotdask.spectra.restframe.noise_power`).

    Returns
    -------
    (len(LEVELS) + 1, p) int64
        Counts; the last row is of residuals beyond the largest level. Counts of several blocks are to be added.

    Examples
    --------
    >>> counts = count_levels(np.array([[0.01, 0.0, 0.5]]), np.array([[1e6, 1e4, 1e4]]), np.ones(1))
    >>> [round(float(level), 4) for level in LEVELS[counts[:-1].argmax(axis=0)[:2]]], int(counts[-1, 2])
    ([0.0106, 0.0], 1)
    """
    used = ivar > 0
    n_pixel = residual.shape[1]
    wanted = residual.astype(np.float64) ** 2 - np.asarray(smoothing)[:, None] / np.where(used, ivar, 1.0)
    level = np.searchsorted(LEVELS**2, wanted)
    place = level * n_pixel + np.arange(n_pixel)
    return np.bincount(place[used], minlength=(len(LEVELS) + 1) * n_pixel).reshape(-1, n_pixel)


def solve_model_error(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Model error in each pixel from `count_levels`.

    Parameters
    ----------
    counts : (len(LEVELS) + 1, p) int64

    Returns
    -------
    model_error : (p,) float64
        In units of the continuum; 0 where the noise explains the residuals, or nothing is known.
    n : (p,) int64
        Residuals each rests on, those of neighbors included.
    """
    n_pixel = counts.shape[1]
    running = np.zeros((len(counts), n_pixel + 1), dtype=np.int64)
    np.cumsum(counts, axis=1, out=running[:, 1:])
    pooled = counts.astype(np.int64)
    n = pooled.sum(axis=0)
    pixel = np.arange(n_pixel)
    for reach in range(1, min(_MAX_NEIGHBORS, n_pixel) + 1):
        few = np.flatnonzero(n < MIN_RESIDUALS)
        if not few.size:
            break
        low, high = np.maximum(pixel[few] - reach, 0), np.minimum(pixel[few] + reach + 1, n_pixel)
        pooled[:, few] = running[:, high] - running[:, low]
        n[few] = pooled[:, few].sum(axis=0)
    within = np.cumsum(pooled[:-1], axis=0) / np.maximum(n, 1)
    above = np.argmax(within >= _SHARE, axis=0)
    never = within[-1] < _SHARE
    below = np.maximum(above - 1, 0)
    first, last = within[below, pixel], within[above, pixel]
    part = np.divide(_SHARE - first, last - first, out=np.zeros(n_pixel), where=last > first)
    error = LEVELS[below] + part * (LEVELS[above] - LEVELS[below])
    error = np.where(above == 0, 0.0, error)
    return np.where(never & (n > 0), LEVELS[-1], error), n


def smoothing_with(smoothing: np.ndarray, ivar: np.ndarray, model_error: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Share of the variance in ``ivar`` that residuals of a perfect fit have, if noise was smoothed and models err.

    Mean over pixels of (pσ² + s²)/(σ² + s²), p the share of the noise's power that smoothing left: errors of models are
    not smoothed.

    Parameters
    ----------
    smoothing : (n,) float64
        p.
    ivar : (n, k) float32
        As `add_model_error` gives it: 1/(σ² + s²); 0 where a pixel is bad.
    model_error : (k,) float32
        s, in units of the continuum.
    used : (k,) bool
        Pixels that count.

    Returns
    -------
    (n,) float64

    Examples
    --------
    >>> ivar, used = np.full((1, 2), 5e3, dtype=np.float32), np.array([True, True])
    >>> smoothing_with(np.array([0.5]), ivar, np.full(2, 0.01, dtype=np.float32), used).round(3).tolist()
    [0.75]
    """
    good = (ivar > 0) & used
    share = np.where(good, ivar * model_error**2, 0.0).sum(axis=1) / np.maximum(good.sum(axis=1), 1)
    return smoothing + (1 - smoothing) * share


def add_model_error(ivar: np.ndarray, model_error: np.ndarray) -> np.ndarray:
    """Inverse variance of noise and model error together: 1 / (σ² + s²).

    Parameters
    ----------
    ivar : (n, p) float32
        Of the noise, normalized flux; 0 stays 0.
    model_error : (p,) float32
        In units of the continuum.

    Returns
    -------
    (n, p) float32

    Examples
    --------
    >>> add_model_error(np.array([[1e4, 0.0]], dtype=np.float32), np.array([0.01, 0.01], dtype=np.float32)).tolist()
    [[5000.0, 0.0]]
    """
    return ivar / (1 + ivar * model_error**2)
