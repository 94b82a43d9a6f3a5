"""Continuum normalization: each spectrum divided by its Gaussian-smoothed self (Eqs 1-2).

The same operation is applied to models and data; that is what makes them comparable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from hotdask import windows

_BLOCK = 104
"""Output pixels per banded product: as many as a kernel of 50 Å carries with `_RANK_STEP` degrees of freedom."""
_RANK_STEP = 16
"""The BLAS is fast at multiples of its registers; between them, it is slower than with zeros added."""
_ROWS = 256
"""Spectra per matrix product, always this many: the BLAS rounds differently for other shapes, and a spectrum's result
must not depend on its batch."""
_WEAK_ROWS = 8
"""The same for spectra that need the whole kernel."""
_TOLERANCE = 3e-7
"""A kernel that smooths over many pixels has few degrees of freedom; those left out weigh less than this in a mean."""
_LEAST_SHARE = 0.1
"""Below this share of a pixel's full weight, rounding and truncation would show; the whole kernel takes over."""
_SUPPORT_STEP = 8
"""The effective number of pixels varies over hundreds of pixels; it is evaluated at every eighth."""
_SLOPE_BINS = 48
_SLOPE_GROUP = 16
"""Bins summed per matrix product: each holds one stretch of pixels, so that most of a wider product is zeros."""
_SLOPE_DEGREE = 6
"""Real dust curves bend more than a quadratic: at E(B-V) = 1 degree 2 leaves 0.12-0.16 % rms in the normalized flux
for the usual laws, degree 6 leaves 0.02-0.04 %."""


class Normalizer:
    """Eqs 1-2 on one wavelength grid: kernels built once, applied to any number of spectra.

    Parameters
    ----------
    wavelength : (n_pixel,) float64
        Vacuum wavelength [Å], strictly increasing.
    exclude : sequence of Window or (low, high)
        Air windows [Å] with weight 0.
    scale : float
        L of the kernel exp(−Δλ²/L²) [Å].
    cutoff : float
        The kernel ends at ``cutoff · scale``. At 5 the error is below 3e-6 on fitted pixels.
    slope : bool
        Divide by a log-log polynomial first, so that reddening does not change the result (Eq 1 alone if False).
    min_pixels : float
        A continuum that rests on fewer effective pixels, (Σω)²/Σω², is not used.

    Raises
    ------
    ValueError
        If the wavelengths do not increase, or no pixel is left to define a continuum.

    References
    ----------
    Xiang et al. 2022, Eqs 1-2.

    Examples
    --------
    >>> wavelength = windows.rest_wavelength()
    >>> flux = (wavelength / 5000)[None, :].astype(np.float32) ** -2
    >>> normalized, _, _ = Normalizer(wavelength).normalize(flux, np.ones_like(flux))
    >>> bool(np.abs(normalized - 1).max() < 2e-3)
    True
    """

    def __init__(
        self,
        wavelength: np.ndarray,
        *,
        exclude: Sequence = windows.CONTINUUM_EXCLUDE,
        scale: float = 50.0,
        cutoff: float = 5.0,
        slope: bool = True,
        min_pixels: float = 10.0,
    ):
        wavelength = np.asarray(wavelength, dtype=np.float64)
        if np.any(np.diff(wavelength) <= 0):
            raise ValueError("wavelengths must increase strictly")
        kept = np.flatnonzero(~windows.inside(wavelength, exclude))
        if kept.size == 0:
            raise ValueError("the excluded windows leave no pixel to define a continuum; give fewer or narrower ones")
        self.n_pixel = wavelength.size
        self.min_pixels = min_pixels
        self._runs = _runs(kept)
        self._blocks = []
        for start in range(0, self.n_pixel, _BLOCK):
            stop = min(start + _BLOCK, self.n_pixel)
            low = np.searchsorted(wavelength[kept], wavelength[start] - cutoff * scale)
            high = np.searchsorted(wavelength[kept], wavelength[stop - 1] + cutoff * scale, side="right")
            delta = wavelength[kept][low:high, None] - wavelength[None, start:stop]
            kernel = np.where(np.abs(delta) <= cutoff * scale, np.exp(-((delta / scale) ** 2)), 0.0)
            self._blocks.append(_Block.of(kernel, slice(start, stop), slice(int(low), int(high)), min_pixels))
        self._full = torch.cat([block.full for block in self._blocks])
        self._slope = _Slope(wavelength, kept) if slope else None

    def normalize(self, flux: np.ndarray, ivar: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normalize spectra by a continuum that rests on their good pixels.

        Parameters
        ----------
        flux, ivar : (n_spectrum, n_pixel) float32
            Flux [any unit] and inverse variance [1/unit²]; ivar = 0 marks a bad pixel.

        Returns
        -------
        flux, ivar : (n_spectrum, n_pixel) float32
            Normalized flux and its inverse variance, ivar·f̄². Where the continuum is not positive or rests on too
            little, or flux is not finite, flux is 1 and ivar 0.
        continuum : (n_spectrum, n_pixel) float32
            f̄ [unit of flux]; NaN where no pixel is within the kernel.
        """
        return self._normalize(flux, ivar, None)

    def normalize_filled(
        self, flux: np.ndarray, ivar: np.ndarray, star: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normalize spectra by a continuum that rests on all pixels, the bad ones taken from a model.

        A model's continuum rests on all its pixels, the data's on the good ones only; where lines are lost among the
        bad ones the two differ. Filled in, data and model are normalized alike.

        Parameters
        ----------
        flux, ivar : (n_spectrum, n_pixel) float32
            As in `normalize`; bad is a pixel whose ivar is not positive or whose flux is not finite.
        star : (n_spectrum, n_pixel) float32
            A model of each spectrum [unit of flux], finite everywhere; used at bad pixels only.

        Returns
        -------
        flux, ivar, continuum : (n_spectrum, n_pixel) float32
            As `normalize` returns them, but nothing is asked of the support: where good pixels alone would carry too
            little, the continuum is the model's, and it is for the caller to drop those pixels.
        """
        return self._normalize(flux, ivar, np.asarray(star, dtype=np.float32))

    def _normalize(self, flux: np.ndarray, ivar: np.ndarray, star: np.ndarray | None) -> tuple[np.ndarray, ...]:
        flux, ivar = np.asarray(flux, dtype=np.float32), np.asarray(ivar, dtype=np.float32)
        results = tuple(np.empty(flux.shape, dtype=np.float32) for _ in range(3))
        scratch = _Scratch(self.n_pixel, self._runs, self._blocks)
        for start in range(0, len(flux), _ROWS):
            rows = slice(start, min(start + _ROWS, len(flux)))
            count = rows.stop - rows.start
            for block, source in ((scratch.flux, flux), (scratch.ivar, ivar)):
                block.numpy()[:count] = source[rows]
                # A flat spectrum: one without data would need the whole kernel everywhere.
                block[count:] = 1
            bad = ~np.isfinite(scratch.flux.numpy())
            if bad.any():
                scratch.flux.numpy()[bad] = 0
                scratch.ivar.numpy()[bad] = 0
            trend = self._smooth(scratch, bad) if star is None else self._smooth_filled(scratch, star[rows])
            smooth = scratch.smooth
            # Also true of NaN, where there is no continuum.
            if not smooth.amin() > 0:
                bad |= ~(smooth.numpy() > 0)
            out_flux, out_ivar, continuum = (torch.from_numpy(result[rows]) for result in results)
            if trend is None:
                continuum.copy_(smooth[:count])
            else:
                torch.mul(smooth[:count], trend[:count], out=continuum)
            torch.div(scratch.flux[:count], continuum, out=out_flux)
            torch.mul(scratch.ivar[:count], continuum, out=out_ivar).mul_(continuum)
            undefined = np.flatnonzero(bad[:count])
            out_flux.numpy().reshape(-1)[undefined] = 1
            out_ivar.numpy().reshape(-1)[undefined] = 0
        return results

    def _smooth(self, scratch: "_Scratch", bad: np.ndarray) -> torch.Tensor | None:
        """Smoothed flux/trend of good pixels into ``scratch.smooth``; marks pixels with too little support bad."""
        for run in scratch.runs:
            torch.gt(run.ivar, 0, out=run.weight)
            torch.mul(run.flux, run.weight, out=run.kept_flux)
        trend = None
        if self._slope is not None:
            trend = self._slope.divide(scratch, *self._slope.bins(scratch.weight))
        least = torch.empty(len(self._blocks), _ROWS)
        for block, views, lowest in zip(self._blocks, scratch.blocks, least, strict=True):
            torch.mm(views.kept @ block.left, block.right, out=views.sums)
            torch.amin(views.total, dim=1, out=lowest)
        torch.div(scratch.smooth, scratch.total, out=scratch.smooth)
        weak = (least < 1).numpy()
        for i in np.flatnonzero(weak.any(axis=1)):
            block, rows = self._blocks[i], np.flatnonzero(weak[i])
            for first in range(0, len(rows), _WEAK_ROWS):
                chosen = rows[first : first + _WEAK_ROWS]
                smooth, support = block.whole(scratch.kept, torch.from_numpy(chosen))
                scratch.smooth.numpy()[chosen, block.pixels] = smooth
                bad[chosen, block.pixels] |= ~(support >= self.min_pixels)
        return trend

    def _smooth_filled(self, scratch: "_Scratch", star: np.ndarray) -> torch.Tensor | None:
        """Smoothed flux/trend into ``scratch.smooth``, bad pixels taken from ``star``."""
        # The sums of weights are known, so their memory is free.
        filled = scratch.total.copy_(scratch.flux).numpy()
        fill = np.flatnonzero(~(scratch.ivar.numpy()[: len(star)] > 0))
        filled.reshape(-1)[fill] = star.reshape(-1)[fill]
        for run in scratch.runs:
            run.kept_flux.copy_(run.total)
        trend = None
        if self._slope is not None:
            trend = self._slope.divide(scratch, *self._slope.all_bins)
        for block, views in zip(self._blocks, scratch.blocks, strict=True):
            torch.mm(views.kept_flux @ block.left, block.right, out=views.smooth)
        torch.div(scratch.smooth, self._full, out=scratch.smooth)
        return trend


def _runs(kept: np.ndarray) -> list[tuple[slice, slice]]:
    """Stretches of neighboring kept pixels: where they lie among all pixels, and among the kept ones."""
    borders = [0, *(np.flatnonzero(np.diff(kept) > 1) + 1).tolist(), kept.size]
    return [(slice(int(kept[low]), int(kept[high - 1]) + 1), slice(low, high)) for low, high in pairwise(borders)]


@dataclass(frozen=True)
class _Block:
    """The kernel towards some neighboring pixels, whole and as the product of two thin matrices.

    The thin product is in units of the weight that a pixel needs: where it gives 1 or more, the support is sure to
    suffice and the result is exact to single precision.
    """

    pixels: slice
    kept: slice
    left: torch.Tensor
    right: torch.Tensor
    full: torch.Tensor
    kernel: torch.Tensor
    squared: torch.Tensor

    @classmethod
    def of(cls, kernel: np.ndarray, pixels: slice, kept: slice, min_pixels: float) -> "_Block":
        total, squares = kernel.sum(axis=0), (kernel**2).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            # A share s of the weight has (Σω)² = s²·all and Σω² at most all; and since ω <= 1, Σω² <= Σω.
            share = np.minimum(np.sqrt(min_pixels * squares) / total, min_pixels / total)
            needed = total * np.maximum(share, _LEAST_SHARE)
            # Pixels beyond the kernel's reach keep columns of zeros: never enough.
            relative = np.where(total > 0, kernel / needed, 0.0)
        # Not NumPy's, whose threads nothing in this process can limit: on busy cores they took seconds.
        u, s, v = (part.numpy() for part in torch.linalg.svd(torch.from_numpy(relative), full_matrices=False))
        # What is left out has column sums below its largest singular value times this root.
        rank = int(np.count_nonzero(s * np.sqrt(len(relative)) > _TOLERANCE))
        rank = min(-(-rank // _RANK_STEP) * _RANK_STEP, len(s))
        kernel = torch.from_numpy(kernel.astype(np.float32))
        return cls(
            pixels,
            kept,
            torch.from_numpy((u[:, :rank] * s[:rank]).astype(np.float32)),
            torch.from_numpy(v[:rank].astype(np.float32)),
            torch.from_numpy(relative.sum(axis=0).astype(np.float32)),
            kernel,
            kernel[:, ::_SUPPORT_STEP] ** 2,
        )

    def whole(self, kept: torch.Tensor, rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Smoothed flux and effective pixels of some rows, at most `_WEAK_ROWS`, by the whole kernel."""
        chosen = torch.zeros(2, _WEAK_ROWS, len(self.kernel))
        chosen[:, : len(rows)] = kept[:, rows, self.kept]
        smooth, total = (chosen.flatten(0, 1) @ self.kernel).split(_WEAK_ROWS)
        effective = total[:, ::_SUPPORT_STEP] ** 2 / (chosen[1] @ self.squared)
        support = effective.repeat_interleave(_SUPPORT_STEP, dim=1)[:, : self.kernel.shape[1]]
        return (smooth / total)[: len(rows)].numpy(), support[: len(rows)].numpy()


class _RunViews(NamedTuple):
    """A run of kept pixels in the arrays of all pixels, and in those of the kept ones."""

    flux: torch.Tensor
    ivar: torch.Tensor
    trend: torch.Tensor
    total: torch.Tensor
    kept_flux: torch.Tensor
    weight: torch.Tensor


class _BlockViews(NamedTuple):
    """What a block's kernel takes and gives: flux above weight, and each by itself."""

    kept: torch.Tensor
    sums: torch.Tensor
    kept_flux: torch.Tensor
    smooth: torch.Tensor
    total: torch.Tensor


class _Scratch:
    """Memory for `_ROWS` spectra and its views: fresh pages, and slicing, would cost as much as the arithmetic."""

    def __init__(self, n_pixel: int, runs: list[tuple[slice, slice]], blocks: list[_Block]):
        # One array, because numpy asks for huge pages where an array is large enough.
        memory = torch.from_numpy(np.empty((7, _ROWS, n_pixel), dtype=np.float32))
        self.flux, self.ivar, self.trend = memory[:3]
        self.kept, self.sums = memory[3:5, :, : runs[-1][1].stop], memory[5:]
        self.kept_flux, self.weight = self.kept
        self.smooth, self.total = self.sums
        self.runs = [
            _RunViews(
                *(array[:, pixels] for array in (self.flux, self.ivar, self.trend, self.total)),
                *(array[:, kept] for array in self.kept),
            )
            for pixels, kept in runs
        ]
        self.blocks = [
            _BlockViews(
                self.kept.flatten(0, 1)[:, block.kept],
                self.sums.flatten(0, 1)[:, block.pixels],
                self.kept_flux[:, block.kept],
                self.smooth[:, block.pixels],
                self.total[:, block.pixels],
            )
            for block in blocks
        ]


class _Slope:
    """Log-log polynomial through binned means: robust at any S/N, and the same for models and data."""

    def __init__(self, wavelength: np.ndarray, kept: np.ndarray):
        log_wavelength = np.log(wavelength)
        x = 2 * (log_wavelength - log_wavelength[0]) / (log_wavelength[-1] - log_wavelength[0]) - 1
        edges = np.linspace(-1, 1, _SLOPE_BINS + 1)[1:-1]
        bins = np.digitize(x[kept], edges)
        self._groups = []
        for first in range(0, _SLOPE_BINS, _SLOPE_GROUP):
            pixels = slice(*np.searchsorted(bins, [first, first + _SLOPE_GROUP]).tolist())
            member = (bins[pixels, None] == np.arange(first, first + _SLOPE_GROUP)).astype(np.float32)
            moments = np.hstack([member, member * x[kept][pixels, None]]).astype(np.float32)
            self._groups.append((pixels, torch.from_numpy(member), torch.from_numpy(moments)))
        self._powers = torch.from_numpy(np.vander(x, _SLOPE_DEGREE + 1, increasing=True).T.astype(np.float32))
        self.all_bins = self.bins(torch.ones(_ROWS, kept.size))

    def bins(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Good pixels in each bin, and their mean x; (n_spectrum, n_bin) float64."""
        moments = [(weight[:, pixels] @ moments).split(_SLOPE_GROUP, dim=1) for pixels, _, moments in self._groups]
        count, sums = (torch.cat(part, dim=1).double() for part in zip(*moments, strict=True))
        return count, sums / count.clamp(min=1)

    def divide(self, scratch: "_Scratch", count: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
        """Divide ``scratch.kept_flux`` (0 at bad pixels) by exp(polynomial); return that, (n_spectrum, n_pixel)."""
        sums = torch.cat([scratch.kept_flux[:, pixels] @ member for pixels, member, _ in self._groups], dim=1).double()
        usable = sums > 0
        w = torch.where(usable, count, 0.0)
        y = torch.where(usable, sums / count, 1.0).log()
        # The normal equations hold sums of w·x^(i+j): thirteen different ones.
        term = torch.stack([w, w * y], dim=1)
        moments = torch.empty(_ROWS, 2, 2 * _SLOPE_DEGREE + 1, dtype=torch.float64)
        for k in range(2 * _SLOPE_DEGREE + 1):
            torch.sum(term, dim=2, out=moments[:, :, k])
            term *= center[:, None]
        moments, right = moments.unbind(dim=1)
        order = torch.arange(_SLOPE_DEGREE + 1)
        normal = moments[:, order[:, None] + order]
        # A trace of ridge keeps spectra with few usable bins solvable: they get a lower degree.
        normal += 1e-9 * (1 + normal[:, :1, :1]) * torch.eye(_SLOPE_DEGREE + 1, dtype=torch.float64)
        coefficients = torch.linalg.solve(normal, right[:, : _SLOPE_DEGREE + 1])
        exponent = torch.mm(coefficients.float(), self._powers, out=scratch.trend).clamp_(-60, 60).numpy()
        np.exp(exponent, out=exponent)
        for run in scratch.runs:
            torch.div(run.kept_flux, run.trend, out=run.kept_flux)
        return scratch.trend


def normalize(
    flux: np.ndarray, ivar: np.ndarray, wavelength: np.ndarray, **options
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide each spectrum by its Gaussian-smoothed self: `Normalizer` built and applied once.

    Parameters and results are those of `Normalizer` and `Normalizer.normalize`.

    Examples
    --------
    >>> wavelength = windows.rest_wavelength()
    >>> flux = np.full((2, wavelength.size), 7, dtype=np.float32)
    >>> normalized, ivar, continuum = normalize(flux, np.ones_like(flux), wavelength)
    >>> [round(float(a[0, 100]), 4) for a in (normalized, ivar, continuum)]
    [1.0, 49.0, 7.0]
    """
    return Normalizer(wavelength, **options).normalize(flux, ivar)
