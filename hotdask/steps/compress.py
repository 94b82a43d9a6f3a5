"""Spectra reduced to quadratic forms of the emulator's coefficients.

The emulator is linear in K coefficients c, f = μ + Φᵀc, so for a spectrum y with inverse variances W

    χ²(c) = χ²(c₀) − 2 bᵀ(c − c₀) + (c − c₀)ᵀ G (c − c₀),   G = ΦWΦᵀ,   b = ΦW(y − μ − Φᵀc₀).

χ²(c₀) and b are taken in pixels, without approximation, wherever a fit asks for them. G, which only says how far to
step, takes W as constant over four neighboring pixels: all G of a block are then one matrix product of W with the
pair products of Φ, and a quarter as large. Pixels are ordered [no hydrogen | hydrogen], so that one pass gives the
matrices of both fits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hotdask import windows
from hotdask.emulator.lowrank import LowRankEmulator

BIN = 4
"""Pixels of one weight in G. Errors of labels in a simulated survey are then right within 0.05 % (1 σ; worst 2 %; with
3 % isolated bad pixels 1 %, worst 7 %), and a step ends within 1 % of its length (99th percentile 7 %) of where the
exact G would take it."""
FITS = ("hmasked", "all")
"""The two fits, in the order in which they take up the parts of the pixels."""


def rows_at_once(device: torch.device) -> int:
    """Spectra per matrix product, always this many: the BLAS rounds differently for other shapes, and a spectrum's
    result must not depend on its batch. On a CPU few enough for the cache."""
    return 128 if device.type == "cpu" else 1024


class Pixels:
    """The pixels of the two fits, and the emulator there.

    Parameters
    ----------
    emulator : LowRankEmulator
    mask, hydrogen : sequence of Window or (low, high)
        Air windows [Å] never fitted; and left out of the second fit besides.
    device : torch.device

    Attributes
    ----------
    count : dict of str to int
        Pixels of each fit, at most.
    """

    def __init__(self, emulator: LowRankEmulator, mask: Sequence, hydrogen: Sequence, device: torch.device):
        wavelength = windows.rest_wavelength()
        used, is_hydrogen = ~windows.inside(wavelength, mask), windows.inside(wavelength, hydrogen)
        parts = [np.flatnonzero(used & ~is_hydrogen), np.flatnonzero(used & is_hydrogen)]
        self.device = device
        self.count = {"hmasked": parts[0].size, "all": parts[0].size + parts[1].size}
        # Bins align with the rows of a matrix product: unaligned ones cost it almost half its speed.
        padded = [np.pad(part, (0, -part.size % (16 * BIN)), constant_values=-1) for part in parts]
        index = np.concatenate(padded)
        self._index = torch.from_numpy(index.clip(0)).to(device)
        self._real = torch.from_numpy((index >= 0).astype(np.float32)).to(device)
        self.end = {"hmasked": padded[0].size, "all": index.size}
        self.mean = self.take(emulator.mean[None].to(device))[0]
        self.basis = self.take(emulator.basis.to(device))
        self.basis_t = self.basis.T.contiguous()
        size = emulator.n_basis
        row, column = torch.triu_indices(size, size)
        binned = (self.basis[row] * self.basis[column]).view(row.numel(), -1, BIN).sum(dim=2)
        # The mean of a padded bin divides by its real pixels only.
        self._share = 1 / self._real.view(-1, BIN).sum(dim=1).clamp(min=1)
        self.pairs = (binned * self._share).T.contiguous()
        square = torch.empty(size, size, dtype=torch.long)
        square[row, column] = square[column, row] = torch.arange(row.numel())
        self._square = square.reshape(-1).to(device)
        self._size = size

    def take(self, array: torch.Tensor) -> torch.Tensor:
        """Columns of (n, 3801) in this order, 0 in the padding."""
        return array.index_select(1, self._index) * self._real

    def pack(self, ivar: torch.Tensor, which: int) -> torch.Tensor:
        """Upper triangles of G of one part of the pixels, (n, K(K+1)/2)."""
        begin, end = (0, self.end["hmasked"]) if which == 0 else (self.end["hmasked"], self.end["all"])
        weight = ivar[:, begin:end]
        total = weight[:, ::BIN].clone()
        for i in range(1, BIN):
            total += weight[:, i::BIN]
        return total @ self.pairs[begin // BIN : end // BIN]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """(n, K, K) of upper triangles."""
        return packed.index_select(1, self._square).view(-1, self._size, self._size)


@dataclass(frozen=True)
class Compressed:
    """Normalized spectra as data for both fits.

    Attributes
    ----------
    pixels : Pixels
    data, ivar : (n, P) float32
        Flux less the emulator's mean, and inverse variance, in the order of ``pixels``; both 0 where there is none.
    packed : dict of str to (n, K(K+1)/2) float32
        G of each fit.
    linear : dict of str to (n, K) float32
        b of each fit at c₀ = 0.
    n_pixel : dict of str to (n,) int32
        Good pixels of each fit.
    level : dict of str to (n,) float32
        Inverse variance of each fit, summed over its pixels, over the pixels a fit of all lines has.
    """

    pixels: Pixels
    data: torch.Tensor
    ivar: torch.Tensor
    packed: dict[str, torch.Tensor]
    linear: dict[str, torch.Tensor]
    n_pixel: dict[str, np.ndarray]
    level: dict[str, torch.Tensor]

    def at(self, which: str, center: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """χ² (m,) float64 and b (m, K) float32 of spectra ``rows`` at coefficients ``center`` (m, K), in pixels."""
        pixels, end = self.pixels, self.pixels.end[which]
        basis, basis_t = pixels.basis[:, :end], pixels.basis_t[:end]
        chi2 = torch.empty(len(rows), dtype=torch.float64, device=pixels.device)
        linear = torch.empty(len(rows), center.shape[1], device=pixels.device)
        center = center.float()
        # All rows in their order need no copy.
        whole = len(rows) == len(self.data) and bool((rows.diff() == 1).all())
        for part, padded in blocks(len(rows), rows_at_once(pixels.device), device=pixels.device):
            some = padded if whole else rows[padded]
            residual = torch.addmm(self.data[some, :end], center[padded], basis, alpha=-1)
            weighted = self.ivar[some, :end] * residual
            n = part.stop - part.start
            linear[part] = (weighted @ basis_t)[:n]
            chi2[part] = weighted.mul_(residual).sum(dim=1, dtype=torch.float64)[:n]
        return chi2, linear

    def replaced(self, flux: torch.Tensor, ivar: torch.Tensor) -> "Compressed":
        """Other data for the same G: normalized spectra (n, 3801) over a slightly different continuum."""
        pixels = self.pixels
        data, weight = torch.empty_like(self.data), torch.empty_like(self.ivar)
        for part, padded in blocks(len(flux), rows_at_once(pixels.device), device=pixels.device):
            w = pixels.take(ivar[padded])
            n = part.stop - part.start
            data[part] = torch.where(w > 0, pixels.take(flux[padded]) - pixels.mean, 0.0)[:n]
            weight[part] = w[:n]
        return replace(self, data=data, ivar=weight)


def compress(pixels: Pixels, flux: torch.Tensor, ivar: torch.Tensor) -> Compressed:
    """Reduce normalized spectra to what fits need.

    Parameters
    ----------
    pixels : Pixels
    flux, ivar : (n, 3801) float32 tensors
        Normalized flux and inverse variance; ivar = 0 marks a bad pixel.
    """
    n, end = len(flux), pixels.end["all"]
    device = pixels.device
    data, weight = (torch.empty(n, end, device=device) for _ in range(2))
    packed, linear = (
        {which: torch.empty(n, columns, device=device) for which in FITS}
        for columns in (pixels.pairs.shape[1], pixels.basis.shape[0])
    )
    n_pixel = {which: torch.empty(n, dtype=torch.int32, device=device) for which in FITS}
    level = {which: torch.empty(n, device=device) for which in FITS}
    border = pixels.end["hmasked"]
    for part, padded in blocks(n, rows_at_once(device), device=device):
        k = part.stop - part.start
        w = pixels.take(ivar[padded])
        d = torch.where(w > 0, pixels.take(flux[padded]) - pixels.mean, 0.0)
        data[part], weight[part] = d[:k], w[:k]
        weighted = w * d
        for i, (which, columns) in enumerate(zip(FITS, (slice(0, border), slice(border, end)), strict=True)):
            new = (
                (packed, pixels.pack(w, i)),
                (linear, weighted[:, columns] @ pixels.basis_t[columns]),
                (n_pixel, (w[:, columns] > 0).sum(dim=1, dtype=torch.int32)),
                (level, w[:, columns].sum(dim=1) / pixels.count["all"]),
            )
            for store, value in new:
                store[which][part] = value[:k] if i == 0 else value[:k] + store["hmasked"][part]
    counts = {which: count.cpu().numpy() for which, count in n_pixel.items()}
    return Compressed(pixels, data, weight, packed, linear, counts, level)


def blocks(
    n: int, size: int, *, tile: int | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[slice, slice | torch.Tensor]]:
    """Slices of at most ``size`` rows that cover ``n``, each with the rows to work on.

    These are the slice itself, or, where rows run out, those that are left with the last one repeated until they are
    ``size``, or a multiple of ``tile``.
    """
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        count = part.stop - start
        padded = size if tile is None else -(-count // tile) * tile
        rows = torch.arange(start, start + padded, device=device).clamp(max=part.stop - 1)
        yield part, part if count == padded else rows
