"""Observed grid to rest grid: on log-linear grids a velocity is one fractional-pixel shift per spectrum."""

import numpy as np

from hotdask.errors import RunError
from hotdask.windows import LOG_STEP, N_OBSERVED, N_REST, REST_OFFSET, SPEED_OF_LIGHT

N_TAPS = 6
_LEFT = N_TAPS // 2 - 1
_WIDTH = N_REST + N_TAPS - 1

CORRELATION_WIDTH = 1.5
"""Gaussian sigma [pixel] of the structure the filter is optimal for: R = 1800 gives 1.0, plus some rotation.

Measured on 60 syntheses at sigma 1.0-1.5: this width matches scipy's cubic spline in error against the truth.
"""

WHOLE = 1e-4
"""A shift this close to a whole pixel (7 m/s, far below any velocity error) is taken as whole, and copies."""

_BLOCK = 16


def pixel_shift(rv: np.ndarray) -> np.ndarray:
    """Shift of a spectrum in pixels of 1e-4 dex: log10(1 + rv/c) / 1e-4.

    Parameters
    ----------
    rv : (n_spectrum,) float64
        Radial velocity [km/s], positive = receding.

    Returns
    -------
    (n_spectrum,) float64
        Pixels by which features lie redward of the rest frame; NaN where rv is not finite or not above -c.
        Within `WHOLE` of an integer it is that integer.

    Examples
    --------
    >>> pixel_shift(np.array([0.0, 69.0394])).round(3).tolist()
    [0.0, 1.0]
    """
    ratio = 1.0 + np.asarray(rv, dtype=np.float64) / SPEED_OF_LIGHT
    shift = np.log10(np.where((ratio > 0) & np.isfinite(ratio), ratio, np.nan)) / LOG_STEP
    whole = np.rint(shift)
    return np.where(np.abs(shift - whole) < WHOLE, whole, shift)


def filter_taps(fraction: np.ndarray) -> np.ndarray:
    """Six interpolation weights for each fractional shift.

    The least-squares linear predictor (ordinary kriging) of a signal whose autocorrelation is that of Gaussian lines
    of sigma `CORRELATION_WIDTH`; the weights sum to 1, so that a constant stays what it is.

    Parameters
    ----------
    fraction : (n,) float64
        Where to interpolate, 0 <= fraction < 1, between taps 2 and 3 (counted from 0).

    Returns
    -------
    (n, 6) float64

    Examples
    --------
    >>> filter_taps(np.array([0.5])).round(3).tolist()
    [[0.021, -0.12, 0.6, 0.6, -0.12, 0.021]]
    """
    tap = np.arange(N_TAPS) - _LEFT
    system = np.ones((N_TAPS + 1, N_TAPS + 1))
    system[:-1, :-1] = _correlation(tap[:, None] - tap)
    system[-1, -1] = 0.0
    fraction = np.asarray(fraction, dtype=np.float64)
    # The bordered system inverted once and applied by a sum: a batched solve might round differently with n.
    right = np.ones((fraction.size, N_TAPS + 1))
    right[:, :-1] = _correlation(fraction[:, None] - tap)
    return (right[:, None, :] * np.linalg.inv(system)[:-1]).sum(axis=2)


def noise_power(rv: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """Share of the variance that `to_rest_frame` returns which the noise really has.

    The variance counts smoothed noise in full (that keeps the errors of labels right), so the χ² of a perfect model
    falls short of its degrees of freedom by this factor.

    Parameters
    ----------
    rv : (n_spectrum,) float64
        Radial velocity [km/s].
    before : (n_spectrum,) float64, optional
        The same of the spectra given to it, if their reader has smoothed them: ``noise_power`` of
        `hotdask.schema.SPECTRA`. Default, and where not finite: 1, white noise.

    Returns
    -------
    (n_spectrum,) float64
        Of white noise 1 for a shift by whole pixels, 0.75 halfway between them; NaN where rv is unusable.

    Notes
    -----
    Smoothing that leaves the share p is taken as that of a Gaussian of 1/(2p√π) pixels. Its noise correlates by
    exp(−πp²k²) over k pixels; less what that still is at p = 1, so that white noise is white.

    Examples
    --------
    >>> noise_power(np.array([0.0, 34.5])).round(2).tolist()
    [1.0, 0.75]
    >>> noise_power(np.array([0.0, 34.5]), np.array([0.5, 0.5])).round(2).tolist()
    [0.5, 0.46]
    """
    taps = filter_taps(np.mod(pixel_shift(rv), 1.0))
    if before is None:
        return (taps**2).sum(axis=1)
    before = np.where(np.isfinite(before), before, 1.0)
    white = np.exp(-np.pi)
    neighbor = np.clip((np.exp(-np.pi * before**2) - white) / (1 - white), 0.0, 1.0)
    distance = np.arange(N_TAPS)[:, None] - np.arange(N_TAPS)
    correlation = neighbor[:, None, None] ** (distance**2)
    return before * (taps[:, :, None] * taps[:, None, :] * correlation).sum(axis=(1, 2))


def _correlation(distance: np.ndarray) -> np.ndarray:
    return np.exp(-((distance / (2.0 * CORRELATION_WIDTH)) ** 2))


def to_rest_frame(flux: np.ndarray, ivar: np.ndarray, rv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift spectra from the observed to the rest grid.

    λ_rest = λ_obs / (1 + rv/c): rest pixel i lies at observed index 58 + i + log10(1 + rv/c)/1e-4.

    Parameters
    ----------
    flux, ivar : (n_spectrum, 3909) float32
        Flux [any unit] and inverse variance [1/unit²] on `windows.observed_wavelength`. A pixel is bad where ivar is
        not positive and finite or flux is not finite.
    rv : (n_spectrum,) float64
        Radial velocity [km/s], positive = receding. A spectrum whose velocity is not finite is returned all bad.

    Returns
    -------
    flux, ivar : (n_spectrum, 3801) float32
        On `windows.rest_wavelength`. Pixels with a bad pixel among their six taps, or beyond the observed grid, have
        flux = ivar = 0. A whole-pixel shift copies, bit for bit. Otherwise the variance is interpolated linearly and
        not lowered by the filter's smoothing: smoothing correlates neighbors, and a fit that takes pixels as
        independent gets the right errors only if that correlation is counted as noise.

    Raises
    ------
    RunError
        If the shapes do not fit the observed grid or each other.

    References
    ----------
    Xiang et al. 2022, §2.

    Examples
    --------
    >>> flux = np.ones((1, N_OBSERVED), dtype=np.float32)
    >>> rest, ivar = to_rest_frame(flux, 100 * flux, np.array([30.0]))
    >>> rest.shape, bool(np.allclose(rest, 1)), bool(np.allclose(ivar, 100))
    ((1, 3801), True, True)
    """
    flux = np.asarray(flux, dtype=np.float32)
    ivar = np.asarray(ivar, dtype=np.float32)
    rv = np.asarray(rv, dtype=np.float64)
    n = len(rv) if rv.ndim == 1 else -1
    if flux.shape != (n, N_OBSERVED) or ivar.shape != (n, N_OBSERVED):
        raise RunError(
            f"rest frame: flux {flux.shape}, ivar {ivar.shape} and rv {rv.shape} must be (n, {N_OBSERVED}), "
            f"(n, {N_OBSERVED}) and (n,); place the spectra on windows.observed_wavelength() first"
        )
    shift = pixel_shift(rv)
    whole = np.floor(np.where(np.isnan(shift), 0.0, shift))
    fraction = np.where(np.isnan(shift), 0.0, shift - whole)
    # Beyond the grid every shift is the same: nothing is left.
    first = np.clip(whole, -N_OBSERVED, N_OBSERVED).astype(np.int64) + (REST_OFFSET - _LEFT)
    first[np.isnan(shift)] = N_OBSERVED
    taps = filter_taps(fraction)

    out_flux = np.empty((n, N_REST), dtype=np.float32)
    out_ivar = np.empty((n, N_REST), dtype=np.float32)
    # Blocks small enough for the second-level cache; every operation is elementwise, so rows do not feel each other.
    for start in range(0, n, _BLOCK):
        rows = slice(start, min(start + _BLOCK, n))
        _shift_block(flux[rows], ivar[rows], first[rows], fraction[rows], taps[rows], out_flux[rows], out_ivar[rows])
    return out_flux, out_ivar


def _shift_block(flux, ivar, first, fraction, taps, out_flux, out_ivar) -> None:
    aligned = _align(flux, first)
    weight = _align(ivar, first)
    taps = taps.astype(np.float32)
    right = fraction.astype(np.float32)[:, None]
    center, following = slice(_LEFT, _LEFT + N_REST), slice(_LEFT + 1, _LEFT + 1 + N_REST)
    # Whatever a bad pixel holds (NaN, infinity, ivar = 0) reaches touched pixels only, and those are zeroed below.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        variance = np.reciprocal(weight)
        # A subnormal ivar has an infinite variance: no information either.
        bad = ~((variance > 0) & (variance < np.inf) & np.isfinite(aligned))
        scratch = np.empty_like(out_flux)
        np.multiply(aligned[:, :N_REST], taps[:, :1], out=out_flux)
        for t in range(1, N_TAPS):
            np.multiply(aligned[:, t : t + N_REST], taps[:, t, None], out=scratch)
            out_flux += scratch
        np.multiply(variance[:, center], 1 - right, out=out_ivar)
        np.multiply(variance[:, following], right, out=scratch)
        out_ivar += scratch
        np.reciprocal(out_ivar, out=out_ivar)

    pair = bad[:, :-1] | bad[:, 1:]
    touched = pair[:, :N_REST] | pair[:, 2 : 2 + N_REST] | pair[:, 4 : 4 + N_REST]
    # A copy is exact and touches one pixel only: 1/(1/x) is not x in float32, and 0 · NaN is not 0.
    for row in np.flatnonzero(fraction == 0):
        out_flux[row], out_ivar[row], touched[row] = aligned[row, center], weight[row, center], bad[row, center]
    out_flux[touched] = 0.0
    out_ivar[touched] = 0.0


def _align(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Rows cut so that column t + i is tap t of rest pixel i; 0 beyond the observed grid."""
    out = np.zeros((len(values), _WIDTH), dtype=np.float32)
    for row, start in enumerate(first):
        low, high = max(start, 0), min(start + _WIDTH, N_OBSERVED)
        if low < high:
            out[row, low - start : high - start] = values[row, low:high]
    return out
