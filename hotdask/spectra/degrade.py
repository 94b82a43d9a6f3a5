"""Any spectrum, as fine or coarse as it comes, onto the observed grid at R = 1800.

Two linear steps. The integral of a cubic spline through the samples gives the mean flux of cells a tenth of an observed
pixel wide, which conserves flux whatever the sampling. A Gaussian then smooths the cells, at each wavelength as wide as
the native line spread lacks. Where that is the coarser one already nothing is smoothed, and the line spread that is
left goes into the fit (`Degraded.sigma`).

A line spread is here all that widens a narrow line: optics, fiber and detector pixel. Lines must be sampled, as those
of an FWHM of two pixels are.

References
----------
Bolton & Schlegel 2010, PASP 122, 248 (why what smoothing does to noise is told apart from the information left).
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.sparse import csr_array

from hotdask.errors import InputError
from hotdask.windows import (
    FIT_MASK,
    FWHM,
    LOG_STEP,
    N_OBSERVED,
    OBSERVED_LOG_START,
    SPEED_OF_LIGHT,
    air_to_vacuum,
    inside,
    observed_wavelength,
)

RESOLVING_POWER = 1800.0
"""λ/FWHM of a degraded line."""
BAD_SHARE = 0.05
"""A value is lost if bad pixels, bridged by straight lines, and what is beyond the spectrum bear more of its filter."""
_FINE = 10
"""Cells per observed pixel."""
_REACH = 5.0
_FEWEST = 5


@dataclass(frozen=True, eq=False)
class Degraded:
    """Spectra on the observed grid (`hotdask.windows.observed_wavelength`).

    Attributes
    ----------
    flux, ivar : (m, 3909) float32
        The inverse variance holds the information of the input: Δλ/(δλ·v) for pixels of Δλ from pixels of δλ and
        variance v. Smoothing correlates noise and leaves it all on scales wider than the filter, so a fit that takes
        pixels as independent has the right errors with it (a quarter too large for what rests on the narrowest lines),
        and χ² falls short by `noise_power`.
    noise_power : (m,) float64
        Mean of ivar times the variance that the noise really has, over fitted pixels; NaN where there is none.
    sigma : (m, 3909) float64
        Gaussian σ of the line spread [Å]; NaN where it is not known.
    """

    flux: np.ndarray
    ivar: np.ndarray
    noise_power: np.ndarray
    sigma: np.ndarray


def degrade(
    wavelength: np.ndarray,
    flux: np.ndarray,
    variance: np.ndarray | None = None,
    *,
    fwhm: float | np.ndarray | None = None,
    resolving_power: float | np.ndarray | None = None,
    target: float | np.ndarray = RESOLVING_POWER,
    air: bool = False,
    rv: float = 0.0,
) -> Degraded:
    """Bring spectra of one sampling and line spread to the observed grid.

    Parameters
    ----------
    wavelength : (n,) float64
        Of the pixels [Å], strictly increasing, otherwise as you like: linear, logarithmic or neither.
    flux : (m, n) or (n,) float
        Per Å [any unit]; a pixel that is not finite is bad.
    variance : (m, n) or (n,) float, optional
        Of the flux; a pixel without a positive one is bad. Default: 1 everywhere.
    fwhm, resolving_power : float or (n,) float
        Of the native line spread, one of the two: full width at half maximum [Å], or λ/FWHM. ``fwhm=0`` is a spectrum
        of lines not broadened at all.
    target : float or (3909,) float
        λ/FWHM wanted.
    air : bool
        Whether wavelengths are those in air. Default: vacuum.
    rv : float
        Velocity that is taken out [km/s], positive = receding: λ/(1 + rv/c). Default: wavelengths are left as they are.

    Returns
    -------
    Degraded
        One row a spectrum, also of a single one.

    Raises
    ------
    InputError
        If shapes do not fit, wavelengths do not increase, or not exactly one of the two widths is given.

    Notes
    -----
    Variances are carried with the information they hold, as `Degraded` says, but never as more than that of a single
    value: where nothing is smoothed, values between those of the observed grid are lost.

    Examples
    --------
    >>> wavelength = np.arange(3600.0, 9200.0, 0.1)
    >>> line = 1 - 0.5 * np.exp(-0.5 * ((wavelength - 5000) / 0.1) ** 2)
    >>> found = degrade(wavelength, line, fwhm=0.1 * FWHM)
    >>> grid = observed_wavelength()
    >>> before, after = (1 - line).sum() * 0.1, ((1 - found.flux[0]) * np.gradient(grid)).sum()
    >>> bool(abs(after / before - 1) < 1e-3), round(float(found.sigma[0, 1308] * FWHM), 2)
    (True, 2.78)
    """
    wavelength, flux, variance = _checked(wavelength, flux, variance)
    if (fwhm is None) == (resolving_power is None):
        raise InputError("degrade: the native line spread must be given, as fwhm [Å] or as resolving_power, not both")
    native = np.broadcast_to(wavelength / resolving_power if fwhm is None else fwhm, wavelength.shape)
    shifted = (air_to_vacuum(wavelength) if air else wavelength) / (1 + rv / SPEED_OF_LIGHT)
    edges = _edges(shifted)
    size = np.diff(edges)

    grid = observed_wavelength()
    spread = np.interp(grid, shifted, (native * shifted / wavelength / FWHM) ** 2)
    spread += (np.log(10) * LOG_STEP / _FINE * grid) ** 2 / 12
    smoothed = np.maximum((grid / (np.asarray(target) * FWHM)) ** 2 - spread, 0)
    matrix, cells = _filter(np.sqrt(smoothed))

    good = np.isfinite(flux) & (variance > 0) & np.isfinite(variance)
    covered = _pixel_means(np.ones((1, len(size))), edges, cells) @ matrix.T
    share = _pixel_means(good.astype(np.float64), edges, cells) @ matrix.T
    with np.errstate(all="ignore"):
        filtered = _spline_means(bridge(flux, good), shifted, edges, cells) @ matrix.T / covered
        # Power of the noise per Å, which smoothing leaves as it is.
        power = _pixel_means(bridge(variance, good) * size, edges, cells) @ matrix.T / covered
        width = np.interp(grid, shifted, size)
        noise = power / np.sqrt(width**2 + 4 * np.pi * smoothed)
        ivar = np.minimum(np.log(10) * LOG_STEP * grid / power, 1 / noise)
        used = (share >= 1 - BAD_SHARE) & np.isfinite(filtered) & (ivar > 0)
        fitted = used & ~inside(grid, FIT_MASK)
        noise_power = np.where(fitted, ivar * noise, 0).sum(axis=1) / fitted.sum(axis=1)
    sigma = np.broadcast_to(np.sqrt(spread + smoothed), filtered.shape)
    kept = (np.where(used, values, 0).astype(np.float32) for values in (filtered, ivar))
    return Degraded(*kept, noise_power, sigma)


def bridge(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Straight lines over bad pixels of (m, n) values; zeros in a row that has no others.

    Examples
    --------
    >>> bridge(np.array([[1.0, np.nan, 3.0]]), np.array([[True, False, True]])).tolist()
    [[1.0, 2.0, 3.0]]
    """
    out = np.where(good, values, 0.0)
    pixel = np.arange(values.shape[1])
    for i in np.flatnonzero(good.any(axis=1) & ~good.all(axis=1)):
        out[i] = np.interp(pixel, pixel[good[i]], out[i, good[i]])
    return out


def _checked(
    wavelength: np.ndarray, flux: np.ndarray, variance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    wavelength = np.asarray(wavelength, dtype=np.float64)
    flux = np.atleast_2d(np.asarray(flux, dtype=np.float64))
    variance = np.ones_like(flux) if variance is None else np.atleast_2d(np.asarray(variance, dtype=np.float64))
    if wavelength.ndim != 1 or len(wavelength) < _FEWEST or flux.shape[1:] != wavelength.shape:
        raise InputError(
            f"degrade: flux {flux.shape} must have a column for each of the wavelengths {wavelength.shape}, at least "
            f"{_FEWEST} of them"
        )
    if variance.shape != flux.shape:
        raise InputError(f"degrade: variance {variance.shape} must have the shape of flux, {flux.shape}")
    if not (wavelength[0] > 0 and (np.diff(wavelength) > 0).all()):
        raise InputError("degrade: wavelengths must be positive and increase from pixel to pixel; sort them first")
    return wavelength, flux, variance


def _edges(wavelength: np.ndarray) -> np.ndarray:
    """Edges of pixels, halfway between their centers, (n + 1,)."""
    middle = (wavelength[1:] + wavelength[:-1]) / 2
    return np.concatenate([[2 * wavelength[0] - middle[0]], middle, [2 * wavelength[-1] - middle[-1]]])


def _spline_means(flux: np.ndarray, wavelength: np.ndarray, edges: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Means over cells of the spline through samples (m, n), (m, n_cell); 0 beyond the pixels."""
    integral = CubicSpline(wavelength, flux, axis=1).antiderivative()
    return np.diff(integral(np.clip(cells, edges[0], edges[-1])), axis=1) / np.diff(cells)


def _pixel_means(values: np.ndarray, edges: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Means over cells of what is the same all over a pixel, (m, n_cell); 0 beyond the pixels."""
    total = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values * np.diff(edges), axis=1)], axis=1)
    found = np.array([np.interp(cells, edges, row) for row in total])
    return np.diff(found, axis=1) / np.diff(cells)


def _filter(sigma: np.ndarray) -> tuple[csr_array, np.ndarray]:
    """Gaussians of σ (3909,) [Å] over fine cells, (3909, n_cell), and the edges of those cells [Å]."""
    grid = observed_wavelength()
    step = LOG_STEP / _FINE
    reach = int(np.ceil(_REACH * (sigma / grid).max() / (np.log(10) * step)))
    position = np.arange(-reach, _FINE * (N_OBSERVED - 1) + reach + 1)
    center = 10 ** (OBSERVED_LOG_START + step * position)
    cells = 10 ** (OBSERVED_LOG_START + step * (np.append(position, position[-1] + 1) - 0.5))
    column = _FINE * np.arange(N_OBSERVED)[:, None] + np.arange(2 * reach + 1)
    # Where nothing is smoothed only the cell in the middle is left.
    distance = (center[column] - grid[:, None]) / np.maximum(sigma, 1e-9)[:, None]
    weight = np.where(np.abs(distance) <= _REACH, np.exp(-0.5 * distance**2) * np.diff(cells)[column], 0)
    weight /= weight.sum(axis=1, keepdims=True)
    row, at = np.nonzero(weight)
    return csr_array((weight[row, at], (row, column[row, at])), shape=(N_OBSERVED, len(center))), cells
