"""Broadening of synthetic spectra: stellar rotation, then the instrument's line spread.

Both act on spectra sampled evenly in log λ, finely enough that neither needs care about pixels. Rotation is a product
in Fourier space. The line spread varies with wavelength, so each spectrum is smoothed with a few fixed Gaussians, and
every pixel interpolates between them in σ² (smoothing obeys the heat equation: in σ² it is close to a polynomial).
"""

import functools

import numpy as np
import torch
from scipy.special import j1

from hotdask import windows

LIMB_DARKENING = 0.6
OVERSAMPLING = 5
FINE_STEP = windows.LOG_STEP / OVERSAMPLING
_NODES = 5
_CHUNK = 16
"""Spectra broadened at once: their intermediate arrays fit the second-level cache."""
_PAD = 400
"""Edge pixels repeated on either side against the wrap-around of the Fourier transform (5500 km/s)."""


def mean_lsf(resolving_power_blue: float = 1800.0, resolving_power_red: float = 1800.0) -> np.ndarray:
    """Line-spread coefficients of a constant resolving power in each arm.

    Parameters
    ----------
    resolving_power_blue, resolving_power_red : float
        λ/FWHM.

    Returns
    -------
    (6,) float64
        In the order of `hotdask.labels.LSF_NAMES` [Å].

    Examples
    --------
    >>> sigma = lsf_sigma(np.array([5000.0]), mean_lsf(1800, 1800))
    >>> round(float(sigma[0] * 2.3548), 2)
    2.78
    """
    return np.array(
        [
            value / (windows.FWHM * power)
            for power, pivot in zip((resolving_power_blue, resolving_power_red), windows.LSF_PIVOT, strict=True)
            for value in (pivot, 1000.0, 0.0)
        ]
    )


def lsf_sigma(wavelength: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Gaussian σ [Å] of the line spread at each wavelength.

    Parameters
    ----------
    wavelength : (n_pixel,) float64
        Vacuum wavelength [Å].
    coefficients : (..., 6) float64
        Blue c0 c1 c2, red c0 c1 c2 [Å].

    Returns
    -------
    (..., n_pixel) float64

    References
    ----------
    Xiang et al. 2022, §4.1: a second-order polynomial for each arm.
    """
    coefficients = np.asarray(coefficients, dtype=np.float64)
    blue, red = ((wavelength - pivot) / 1000 for pivot in windows.LSF_PIVOT)
    c = coefficients[..., None]
    return np.where(
        wavelength < windows.BLUE_RED_BREAK,
        c[..., 0, :] + blue * (c[..., 1, :] + blue * c[..., 2, :]),
        c[..., 3, :] + red * (c[..., 4, :] + red * c[..., 5, :]),
    )


@functools.lru_cache(maxsize=1)
def _rotation_table() -> tuple[torch.Tensor, float]:
    """Fourier transform of the rotational profile at s = 0, step, 2·step, … (closed form).

    The profile is that of Gray 1992, ch. 17, with linear limb darkening.
    """
    step = 2e-3
    s = np.arange(step, 500, step)
    eps = LIMB_DARKENING
    disk = 2 * (1 - eps) * j1(s) / s + 2 * eps * (np.sin(s) - s * np.cos(s)) / s**3
    return torch.from_numpy(np.concatenate([[1.0], disk / (1 - eps / 3)]).astype(np.float32)), step


class Broadener:
    """Turns fine spectra (steps of 2e-5 dex) into the 3801 pixels of the rest grid.

    Parameters
    ----------
    log_start : float
        log10 of the first fine wavelength [Å, vacuum]; the rest grid must fall on fine pixels.
    n_fine : int
        Number of fine pixels.

    Raises
    ------
    ValueError
        If the rest grid does not fall on fine pixels, or is not covered.
    """

    def __init__(self, log_start: float, n_fine: int):
        offset = (windows.REST_LOG_START - log_start) / FINE_STEP
        first = round(offset)
        if abs(offset - first) > 1e-3 or first < 0 or first + OVERSAMPLING * (windows.N_REST - 1) >= n_fine:
            raise ValueError(
                f"fine grid from log λ = {log_start} with {n_fine} steps of {FINE_STEP} does not sample the rest grid"
            )
        # Left padding aligns the first rest pixel with a multiple of the oversampling.
        self._left = _PAD + (-(first + _PAD)) % OVERSAMPLING
        self._first = (first + self._left) // OVERSAMPLING
        self._n = OVERSAMPLING * int(np.ceil((self._left + n_fine + _PAD) / OVERSAMPLING))
        self._coarse = self._n // OVERSAMPLING
        # Beyond twice the output's Nyquist frequency the line spread leaves nothing (3e-6 at R = 2300).
        self._nu = torch.arange(self._coarse + 1, dtype=torch.float32) / self._n
        self._wavelength = windows.rest_wavelength()

    def transform(self, flux: np.ndarray) -> torch.Tensor:
        """Fourier transform of fine spectra, done once and reused by `broaden`.

        Parameters
        ----------
        flux : (n_spectrum, n_fine) float32
            Emergent flux [any unit].

        Returns
        -------
        (n_spectrum, n_frequency) complex64
        """
        right = self._n - self._left - flux.shape[-1]
        padded = np.pad(np.asarray(flux, dtype=np.float32), ((0, 0), (self._left, right)), mode="edge")
        return torch.fft.rfft(torch.from_numpy(padded))[:, : self._coarse + 1].contiguous()

    def broaden(self, transformed: torch.Tensor, vsini: np.ndarray, lsf: np.ndarray) -> np.ndarray:
        """Rotate, smooth and sample.

        Parameters
        ----------
        transformed : (n_spectrum, n_frequency) complex64
            From `transform`.
        vsini : (n_spectrum,) float64
            Projected rotation velocity [km/s], ≥ 0.
        lsf : (n_spectrum, 6) float64
            Line-spread coefficients [Å]; 3 to 10 fine pixels of σ keep the interpolation exact to 1e-5.

        Returns
        -------
        (n_spectrum, 3801) float32
            Flux on `windows.rest_wavelength`.

        References
        ----------
        Gray 1992, ch. 17 (rotation); Xiang et al. 2022, §4.1.
        """
        out = np.empty((len(transformed), windows.N_REST), dtype=np.float32)
        for start in range(0, len(out), _CHUNK):
            part = slice(start, start + _CHUNK)
            out[part] = self._broaden(transformed[part], vsini[part], lsf[part])
        return out

    def _broaden(self, transformed: torch.Tensor, vsini: np.ndarray, lsf: np.ndarray) -> np.ndarray:
        to_pixels = 1 / (np.log(10) * FINE_STEP)
        sigma = lsf_sigma(self._wavelength, np.asarray(lsf)) / self._wavelength * to_pixels
        variance = torch.from_numpy((sigma**2).astype(np.float32))
        low, high = variance.min(dim=1).values, variance.max(dim=1).values
        high = torch.maximum(high, low * 1.01)
        # Chebyshev nodes between the narrowest and the widest σ² of each spectrum.
        cosine = torch.cos(torch.pi * (torch.arange(_NODES) + 0.5) / _NODES)
        nodes = (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * cosine

        table, step = _rotation_table()
        speed = torch.from_numpy(np.asarray(vsini, dtype=np.float32)) * (to_pixels / windows.SPEED_OF_LIGHT)
        position = 2 * torch.pi * speed[:, None] * self._nu / step
        index = position.long().clamp(max=table.numel() - 2)
        rotation = torch.lerp(table[index], table[index + 1], position - index)

        gaussian = torch.exp(-2 * torch.pi**2 * nodes[:, :, None] * self._nu**2)
        product = (transformed * rotation)[:, None, :] * gaussian
        # Sampling every fifth pixel folds the upper half of the spectrum onto the lower one.
        half = self._coarse // 2 + 1
        folded = product[..., :half] + product.flip(-1)[..., :half].conj()
        smoothed = torch.fft.irfft(folded, n=self._coarse) / OVERSAMPLING
        smoothed = smoothed[..., self._first : self._first + windows.N_REST]

        unit = (2 * variance - (low + high)[:, None]) / (high - low)[:, None]
        # Barycentric Lagrange interpolation on Chebyshev nodes of the first kind.
        signs = (-1.0) ** torch.arange(_NODES) * torch.sin(torch.pi * (torch.arange(_NODES) + 0.5) / _NODES)
        difference = unit[:, None, :] - cosine[None, :, None]
        difference = torch.where(difference.abs() < 1e-6, 1e-6, difference)
        weight = signs[None, :, None] / difference
        return ((weight * smoothed).sum(1) / weight.sum(1)).numpy()
