"""What goes wrong with spectra: emission, velocities, cosmic rays, flux calibration, companions.

Each function takes and returns observed spectra (n, 3909) on `hotdask.windows.observed_wavelength`; inverse variances
do not know of what it does, as those of a pipeline do not.
"""

import numpy as np
from scipy.ndimage import median_filter

from hotdask import windows
from hotdask.windows import BALMER_AIR, SPEED_OF_LIGHT, air_to_vacuum

_DECREMENT = {"Hα": 1.0, "Hβ": 0.35, "Hγ": 0.15, "Hδ": 0.08}
"""Equivalent width of the Balmer emission, relative to Hα: typical of classical Be stars."""
_PIXEL = SPEED_OF_LIGHT * windows.LOG_STEP * np.log(10)


def level(flux: np.ndarray, *, width: int = 101) -> np.ndarray:
    """Running median of spectra (n, n_pixel), a stand-in for their continuum.

    Examples
    --------
    >>> float(level(np.full((1, 300), 2.0))[0, 0])
    2.0
    """
    return median_filter(flux, size=(1, width), mode="nearest")


def add_emission(flux: np.ndarray, rv: np.ndarray, width: np.ndarray, *, fwhm: float = 250.0) -> np.ndarray:
    """Fill the Balmer lines with emission, as a disk does.

    Parameters
    ----------
    flux : (n, 3909) float32
    rv : (n,) float64
        Velocity of the lines [km/s].
    width : (n,) float64
        Equivalent width of the emission at Hα [Å], positive.
    fwhm : float
        Of the emission, line spread included [km/s].

    Returns
    -------
    (n, 3909) float32

    Examples
    --------
    >>> flux = np.ones((1, windows.N_OBSERVED), dtype=np.float32)
    >>> wavelength = windows.observed_wavelength()
    >>> added = add_emission(flux, np.zeros(1), np.array([5.0])) - flux
    >>> round(float((added * np.gradient(wavelength))[:, wavelength > 6000].sum()), 2)
    5.0
    """
    wavelength = windows.observed_wavelength()
    out = flux.astype(np.float64)
    continuum = level(flux)
    for name, share in _DECREMENT.items():
        center = air_to_vacuum(BALMER_AIR[name]) * (1 + np.asarray(rv)[:, None] / SPEED_OF_LIGHT)
        sigma = center * fwhm / 2.3548 / SPEED_OF_LIGHT
        profile = np.exp(-(((wavelength - center) / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))
        out += continuum * share * np.asarray(width)[:, None] * profile
    return np.where(flux == 0, 0, out).astype(np.float32)


def add_cosmic_rays(flux: np.ndarray, rng: np.random.Generator, *, hits: int = 30, height: float = 0.5) -> np.ndarray:
    """Spikes of one to three pixels that no mask knows of.

    Parameters
    ----------
    flux : (n, 3909) float32
    rng : numpy.random.Generator
    hits : int
        Spikes a spectrum.
    height : float
        Mean of their exponential distribution, in units of the continuum.

    Examples
    --------
    >>> flux = np.ones((1, windows.N_OBSERVED), dtype=np.float32)
    >>> bool((add_cosmic_rays(flux, np.random.default_rng(1)) >= flux).all())
    True
    """
    out, continuum = flux.copy(), level(flux)
    for row in range(len(flux)):
        for start in rng.integers(0, flux.shape[1] - 3, hits):
            where = slice(start, start + rng.integers(1, 4))
            out[row, where] += continuum[row, where] * np.float32(rng.exponential(height))
    return np.where(flux == 0, 0, out)


def bend_calibration(flux: np.ndarray, rng: np.random.Generator, *, size: float = 0.1, scale: float = 30.0):
    """A wave in the flux calibration, too short for the continuum to follow.

    Parameters
    ----------
    flux : (n, 3909) float32
    rng : numpy.random.Generator
    size : float
        Amplitude, relative.
    scale : float
        Length of the wave over 2π [Å].

    Returns
    -------
    (n, 3909) float32

    Examples
    --------
    >>> flux = np.ones((1, windows.N_OBSERVED), dtype=np.float32)
    >>> round(float(bend_calibration(flux, np.random.default_rng(1)).max()), 2)
    1.1
    """
    phase = rng.uniform(0, 2 * np.pi, (len(flux), 1))
    return (flux * (1 + size * np.sin(windows.observed_wavelength() / scale + phase))).astype(np.float32)


def add_companion(flux: np.ndarray, velocity: np.ndarray, light: float) -> np.ndarray:
    """A second star of the same type at another velocity.

    Parameters
    ----------
    flux : (n, 3909) float32
        Spectra of single stars.
    velocity : (n,) float64
        Of the second star relative to the first [km/s], rounded to whole pixels (69 km/s).
    light : float
        Its share of the light.

    Returns
    -------
    (n, 3909) float32
        The noise of the two is that of flux and its shifted copy, so it is a little lower than that of flux.

    Examples
    --------
    >>> flux = np.ones((1, windows.N_OBSERVED), dtype=np.float32)
    >>> bool(np.allclose(add_companion(flux, np.array([200.0]), 0.4), 1))
    True
    """
    shift = np.rint(np.asarray(velocity) / _PIXEL).astype(int)
    moved = np.stack([np.roll(row, k) for row, k in zip(flux, shift, strict=True)])
    # Its continuum is the first star's: only lines move.
    moved = moved * level(flux) / np.where(level(moved) > 0, level(moved), 1)
    return np.where((flux == 0) | (moved == 0), flux, (1 - light) * flux + light * moved).astype(np.float32)
