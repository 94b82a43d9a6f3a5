"""Velocities that are off: when a shift is suspect, and where a spectrum resembles its model most."""

import numpy as np

from hotdask.windows import LOG_STEP, SPEED_OF_LIGHT

RV_SHIFT = 30.0
"""rv_shift [km/s] above which a velocity may be wrong. From visit to visit of LAMOST, rv + rv_shift scatters by 4.4."""
SIGNIFICANT = 5.0
"""Sigmas it must have, and any other excess."""
REACH = 30
"""Farthest shift that `scan` looks for [pixel, 69 km/s]."""
_PADDED = 4096
"""Samples of a Fourier transform: what is shifted by `REACH` must not come in again at the other end."""


def is_suspect(shift: np.ndarray, error: np.ndarray, chi2_red: np.ndarray) -> np.ndarray:
    """Whether a fit wants another velocity.

    Parameters
    ----------
    shift, error : (n,) float64
        Shift that a fit wants and its error from photon noise [km/s].
    chi2_red : (n,) float64
        Reduced χ², which says how far to trust the error.

    Returns
    -------
    (n,) bool
        False where a number is missing.

    Examples
    --------
    >>> is_suspect(np.array([31.0, 31, 29, np.nan]), np.array([6.0, 6, 1, 1]), np.array([1.0, 4, 1, 1])).tolist()
    [True, False, False, False]
    """
    size = np.abs(shift)
    return (size > RV_SHIFT) & (size > SIGNIFICANT * np.sqrt(np.maximum(chi2_red, 1.0)) * error)


def scan(flux: np.ndarray, ivar: np.ndarray, model: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift at which a model resembles spectra most, by least squares of a contrast at every whole pixel.

    With d and m the depths of data and model below the continuum and W the inverse variances, contrast a and gain are

        a(k) = Σ_i W_i d_i m_(i-k) / Σ_i W_i m_(i-k)²,   Δχ²(k) = (Σ_i W_i d_i m_(i-k))² / Σ_i W_i m_(i-k)²,

    both sums correlations that a Fourier transform gives for all k at once. A parabola through the highest gain and
    its neighbors gives the fraction of a pixel.

    Parameters
    ----------
    flux, ivar : (n, 3801) float32
        Normalized; ivar = 0 is left out.
    model : (n, 3801) float32

    Returns
    -------
    velocity : (n,) float64
        What the model lacks [km/s], positive = the lines lie redward; within 2000 km/s. NaN where no shift within reach
        is better than its neighbors.
    gain : (n,) float64
        Δχ² there, 0 where velocity is NaN.

    References
    ----------
    Tonry & Davis 1979; weighted as by Zucker 2003.

    Examples
    --------
    >>> model = 1 - np.exp(-(((np.arange(3801) - 2000) / 5.0) ** 2))[None].astype(np.float32)
    >>> scan(np.roll(model, 6, axis=1), np.ones_like(model), model)[0].round(1).tolist()
    [414.5]
    """
    depth = 1.0 - model.astype(np.float64)
    weight = ivar.astype(np.float64)
    seen = np.where(ivar > 0, weight * (1.0 - flux), 0.0)
    top, size = (
        np.fft.irfft(np.fft.rfft(a, _PADDED) * np.fft.rfft(b, _PADDED).conj(), _PADDED)
        for a, b in ((seen, depth), (weight, depth**2))
    )
    lag = np.arange(-REACH, REACH + 1)
    top, size = top[:, lag], size[:, lag]
    gain = np.divide(top.clip(min=0) ** 2, size, out=np.zeros_like(top), where=size > 0)
    best = gain.argmax(axis=1)
    inner = best.clip(1, lag.size - 2)
    left, middle, right = (gain[np.arange(len(gain)), inner + k] for k in (-1, 0, 1))
    bend = left - 2 * middle + right
    peak = (best == inner) & (bend < 0)
    fraction = np.divide(left - right, 2 * bend, out=np.zeros_like(bend), where=peak)
    velocity = SPEED_OF_LIGHT * (10 ** (LOG_STEP * (lag[inner] + fraction)) - 1)
    return np.where(peak, velocity, np.nan), np.where(peak, middle, 0.0)
