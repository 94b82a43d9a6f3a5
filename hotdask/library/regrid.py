"""From an engine's own sampling to the pixels a library keeps."""

import numpy as np

from hotdask.errors import SynthesisError
from hotdask.library.spectra import LOG_START, LOG_STEP, N_FINE, Synthesis, fine_wavelength

_SAME = 1e-6
"""Relative difference of wavelengths that rounding may cause: a fiftieth of a pixel."""


def fine_edges() -> np.ndarray:
    """Borders [Å, vacuum] of the pixels a library keeps, (19217,) float64.

    Examples
    --------
    >>> fine_edges()[:2].round(3).tolist()
    [3723.831, 3724.003]
    """
    return 10 ** (LOG_START + LOG_STEP * (np.arange(N_FINE + 1) - 0.5))


def to_fine(synthesis: Synthesis) -> tuple[np.ndarray, np.ndarray]:
    """Average a finely sampled spectrum over each pixel of the fine grid, keeping the flux.

    The spectrum is taken as linear between samples; its integral over a pixel, divided by the pixel's width, is exact.
    A spectrum sampled at `fine_wavelength` itself is taken as averages already and kept. The outer halves of the first
    and last pixel may be missing.

    Parameters
    ----------
    synthesis : Synthesis
        Wavelengths [Å, vacuum] from 3723.9 to 9021.9 Å at least, no step longer than the pixel it falls in.

    Returns
    -------
    flux, continuum : (19216,) float32
        In the unit of the synthesis; the continuum is NaN where the engine gave none.

    Raises
    ------
    SynthesisError
        If wavelengths do not increase, do not cover the fine grid or are coarser than it, or a value is not finite.

    Examples
    --------
    >>> wavelength = np.arange(3700, 9050, 0.1)
    >>> flux, continuum = to_fine(Synthesis(wavelength, 2 * wavelength))
    >>> bool(np.allclose(flux, 2 * fine_wavelength(), rtol=1e-6)), bool(np.isnan(continuum).all())
    (True, True)
    """
    wavelength = np.asarray(synthesis.wavelength, dtype=np.float64)
    rows = [np.asarray(synthesis.flux, dtype=np.float64)]
    if synthesis.continuum is not None:
        rows.append(np.asarray(synthesis.continuum, dtype=np.float64))
    _check(wavelength, rows)
    centers = fine_wavelength()
    if wavelength.shape == centers.shape and np.allclose(wavelength, centers, rtol=_SAME, atol=0):
        means = rows
    else:
        _check_sampling(wavelength, centers)
        means = [_average(wavelength, row) for row in rows]
    flux, continuum = (*means, np.full(N_FINE, np.nan))[:2]
    return flux.astype(np.float32), continuum.astype(np.float32)


def _check(wavelength: np.ndarray, rows: list[np.ndarray]) -> None:
    if wavelength.ndim != 1 or any(row.shape != wavelength.shape for row in rows):
        shapes = ", ".join(str(row.shape) for row in rows)
        raise SynthesisError(f"wavelengths {wavelength.shape} and flux or continuum ({shapes}) differ in length")
    if not np.all(np.isfinite(wavelength)) or np.any(np.diff(wavelength) <= 0):
        raise SynthesisError("wavelengths do not increase; sort them and drop repeated ones")
    for name, row in zip(("flux", "continuum"), rows, strict=False):
        wrong = np.flatnonzero(~np.isfinite(row))
        if wrong.size:
            raise SynthesisError(
                f"{name} is not finite at {wrong.size} wavelengths, first {wavelength[wrong[0]]:.2f} Å"
            )


def _check_sampling(wavelength: np.ndarray, centers: np.ndarray) -> None:
    first, last = centers[[0, -1]]
    if not wavelength.size or wavelength[0] > first * (1 + _SAME) or wavelength[-1] < last * (1 - _SAME):
        covered = f"{wavelength[0]:.2f}-{wavelength[-1]:.2f} Å" if wavelength.size else "nothing"
        raise SynthesisError(f"the spectrum covers {covered}, not {first:.2f}-{last:.2f} Å (vacuum); widen its range")
    inside = slice(max(np.searchsorted(wavelength, first, "right") - 1, 0), np.searchsorted(wavelength, last) + 1)
    inner = wavelength[inside]
    pixels = np.diff(inner) / inner[:-1] / np.expm1(LOG_STEP * np.log(10))
    # Rounded wavelengths of a table jitter a little around an even step.
    if pixels.max() > 1.05:
        worst = int(np.argmax(pixels))
        raise SynthesisError(
            f"sampled too coarsely: steps of up to {pixels[worst]:.1f} pixels, near {inner[worst]:.1f} Å; make the "
            "spectrum again with steps of at most 2e-5 dex (0.17 Å at 3724 Å), without rotation or instrument"
        )


def _average(wavelength: np.ndarray, flux: np.ndarray) -> np.ndarray:
    edges = np.clip(fine_edges(), wavelength[0], wavelength[-1])
    step = np.diff(wavelength)
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * step * (flux[1:] + flux[:-1]))])
    left = np.clip(np.searchsorted(wavelength, edges, "right") - 1, 0, len(step) - 1)
    rest = edges - wavelength[left]
    slope = (flux[left + 1] - flux[left]) / step[left]
    integral = cumulative[left] + rest * (flux[left] + 0.5 * slope * rest)
    return np.diff(integral) / np.diff(edges)
