"""Batched least squares of all labels, in the emulator's coefficient space.

The emulator is linear in K coefficients c, f = μ + Φᵀc, so for a spectrum with inverse variances W

    χ²(c) = χ²₀ − 2 bᵀ(c − c₀) + (c − c₀)ᵀ G (c − c₀),   G = ΦWΦᵀ,   b = ΦW(y − Φᵀc₀)

exactly. G comes from one matrix product of W with the pair products of Φ, for all spectra at once; after that a
Levenberg-Marquardt step costs a small network evaluation and a K x K product, whatever the number of pixels. Pixels
ordered [no hydrogen | hydrogen] give both fits' G in that one pass. A fit ends with b taken afresh in pixel space at
the solution: there c − c₀ is small, and rounding no longer matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hotdask import windows
from hotdask.emulator.broadening import mean_lsf
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.labels import INDEX, LABELS, N_LABELS

_ALIGN = 16
"""Pixel counts are padded to this: unaligned rows cost the matrix product almost half its speed."""
_BATCH = 1024
"""Spectra iterated together: enough that the last few to converge do not set the pace."""
_ROWS = 128
"""Spectra per matrix product in pixel space, always this many."""
_POLISH_BATCH = 256
"""In double precision the K x K matrices of more would not stay in the cache."""
_COMPACT = 0.7
"""Finished spectra leave the batch when no more than this share is left; leaving costs a copy."""
_RIDGE = 1e-8
"""Information every label is granted beyond the data's, in units of the library's spread: a σ of 10⁴ spreads."""
_EXPLORE, _POLISH = 1e-3, 1e-7
"""Predicted gain in χ² at which a fit stops: while starts are compared, and at the end."""
_TEFF_MARGIN = 1.1
"""How far a fit may leave the library in Teff, as a factor."""
_SCAN_TEFF = (7200, 7800, 8400, 9000, 9500, 10200, 11500, 13500, 16000, 19000, 23000, 28000, 33000, 38000)
_SCAN_LOGG = (2.5, 3.5, 4.4)
_SCAN_VSINI = (30.0, 120.0, 300.0)
_SCAN_IRON = (-1.0, 0.0)


@dataclass(frozen=True)
class Solution:
    """Result of one fit of n spectra.

    Attributes
    ----------
    labels : (n, 11) float64
        Best labels; NaN where nothing could be fitted.
    covariance : (n, 11, 11) float64
        Inverse Hessian of χ²/2.
    chi2 : (n,) float64
        χ² at the labels, summed over the pixels used.
    n_pixel : (n,) int32
        Pixels used.
    iterations : (n,) int32
        Levenberg-Marquardt steps, all starts together.
    converged, at_bound : (n,) bool
        Whether the fit ended by itself; whether a label sits at the limit of extrapolation.
    """

    labels: np.ndarray
    covariance: np.ndarray
    chi2: np.ndarray
    n_pixel: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    at_bound: np.ndarray

    @property
    def chi2_red(self) -> np.ndarray:
        """χ² per degree of freedom, (n,)."""
        return self.chi2 / (self.n_pixel - N_LABELS)


class Fitter:
    """Fits normalized spectra with one emulator and one set of masks.

    Parameters
    ----------
    emulator : LowRankEmulator
    mask, hydrogen : sequence of Window or (low, high)
        Air windows [Å] never fitted; and masked besides in the second fit.
    max_iterations : int
        Levenberg-Marquardt steps per start.
    min_pixels : int
        Spectra with fewer good pixels (hydrogen masked) are not fitted.

    References
    ----------
    Xiang et al. 2022, §4.3-4.5.
    """

    def __init__(
        self,
        emulator: LowRankEmulator,
        *,
        mask: Sequence = windows.FIT_MASK,
        hydrogen: Sequence = windows.HYDROGEN,
        max_iterations: int = 60,
        min_pixels: int = 300,
    ):
        self.emulator = emulator
        self.max_iterations = max_iterations
        self.min_pixels = min_pixels
        wavelength = windows.rest_wavelength()
        used = ~windows.inside(wavelength, mask)
        is_hydrogen = windows.inside(wavelength, hydrogen)
        self._segments = [_Segment(emulator, np.flatnonzero(used & ~is_hydrogen))]
        self._segments.append(_Segment(emulator, np.flatnonzero(used & is_hydrogen)))
        row, column = torch.triu_indices(emulator.n_basis, emulator.n_basis)
        self._square = torch.empty(emulator.n_basis, emulator.n_basis, dtype=torch.long)
        self._square[row, column] = self._square[column, row] = torch.arange(row.numel())

        floor, ceiling = np.array([lb.floor for lb in LABELS]), np.array([lb.ceiling for lb in LABELS])
        # Temperature rules everything: a network led far beyond its coolest and hottest models invents minima there.
        coolest, hottest = (emulator.arrays[f"label_{end}"][INDEX["teff"]] for end in ("low", "high"))
        floor[INDEX["teff"]], ceiling[INDEX["teff"]] = coolest / _TEFF_MARGIN, hottest * _TEFF_MARGIN
        self._floor, self._ceiling = emulator.scale_labels(floor), emulator.scale_labels(ceiling)
        self._scan_labels = _scan_grid(emulator)
        scan = emulator.coefficients(
            torch.cat(
                [
                    emulator.scale_labels(self._scan_labels),
                    emulator.scale_lsf(mean_lsf()).expand(len(self._scan_labels), 6),
                ],
                dim=1,
            )
        )
        twice = torch.where(row == column, 1.0, 2.0)
        self._scan_pairs = (scan[:, row] * scan[:, column] * twice).float().T.contiguous()
        self._scan = scan.float().T.contiguous()

    def load(self, flux: np.ndarray, ivar: np.ndarray, lsf: np.ndarray | None = None) -> "Block":
        """Reduce normalized spectra to what fits need.

        Parameters
        ----------
        flux, ivar : (n, 3801) float32
            Normalized flux and inverse variance; ivar = 0 marks a bad pixel.
        lsf : (n, 6) float64, optional
            Line-spread coefficients [Å]; default: resolving power 1800.
        """
        return Block(self, flux, ivar, lsf)


class _Segment:
    """A set of pixels with its part of the basis, padded to a multiple of 16."""

    def __init__(self, emulator: LowRankEmulator, pixels: np.ndarray):
        self.pixels = torch.from_numpy(pixels)
        padded = -(-pixels.size // _ALIGN) * _ALIGN
        basis = torch.zeros(emulator.n_basis, padded)
        basis[:, : pixels.size] = emulator.basis[:, self.pixels]
        self.mean = emulator.mean[self.pixels]
        self.bases = {dtype: basis.to(dtype) for dtype in (torch.float32, torch.float64)}
        row, column = torch.triu_indices(emulator.n_basis, emulator.n_basis)
        self.pairs = (basis[row] * basis[column]).T.contiguous()

    def take(self, array: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(array), len(self.pairs))
        out[:, : self.pixels.numel()] = array[:, self.pixels]
        return out


class Block:
    """Normalized spectra ready to be fitted, with and without hydrogen.

    Made by `Fitter.load`.
    """

    def __init__(self, fitter: Fitter, flux: np.ndarray, ivar: np.ndarray, lsf: np.ndarray | None):
        self._fitter = fitter
        emulator = fitter.emulator
        n = len(flux)
        flux, ivar = torch.from_numpy(np.ascontiguousarray(flux)), torch.from_numpy(np.ascontiguousarray(ivar))
        self._ivar, self._data, packed = [], [], []
        for segment in fitter._segments:
            weight = segment.take(ivar)
            data = torch.where(weight > 0, segment.take(flux), 0.0)
            data[:, : segment.pixels.numel()] -= segment.mean
            self._ivar.append(weight)
            self._data.append(data)
            packed.append(weight @ segment.pairs)
        # Both fits' matrices: hydrogen masked, and all lines.
        self._packed = {"hmasked": packed[0], "all": packed[0] + packed[1]}
        self._n_segments = {"hmasked": 1, "all": 2}
        self.n_pixel = {
            which: sum((w > 0).sum(dim=1) for w in self._ivar[:k]).numpy().astype(np.int32)
            for which, k in self._n_segments.items()
        }
        lsf = np.broadcast_to(mean_lsf() if lsf is None else lsf, (n, 6))
        self._lsf = emulator.scale_lsf(lsf)
        self.fittable = self.n_pixel["hmasked"] >= fitter.min_pixels

    def __len__(self) -> int:
        return len(self._lsf)

    def scan(self, which: str) -> tuple[np.ndarray, np.ndarray]:
        """The best nodes of a coarse label grid on the cool and the hot side of the hydrogen maximum.

        Parameters
        ----------
        which : {"all", "hmasked"}

        Returns
        -------
        cool, hot : (n, 11) float64
            Labels to start from.
        """
        zero = torch.zeros(len(self), self._fitter.emulator.n_basis)
        _, linear = self._reference(which, zero, np.arange(len(self)))
        chi2 = self._packed[which] @ self._fitter._scan_pairs - 2 * linear.float() @ self._fitter._scan
        labels = self._fitter._scan_labels
        cool = labels[:, 0] < windows.HYDROGEN_MAXIMUM
        best = []
        for side in (cool, ~cool):
            members = np.flatnonzero(side)
            best.append(labels[members[chi2[:, members].argmin(dim=1).numpy()]])
        return best[0], best[1]

    def fit(self, which: str, starts: Sequence[np.ndarray], rows: np.ndarray | None = None) -> Solution:
        """Fit all labels from each start and keep the lowest χ².

        Parameters
        ----------
        which : {"all", "hmasked"}
            All lines, or hydrogen masked.
        starts : sequence of (n, 11) float64
            Labels to start from; a row with NaN is skipped.
        rows : (m,) int, optional
            Fit only these spectra; starts and result then have m rows.

        Returns
        -------
        Solution
        """
        rows = np.arange(len(self)) if rows is None else np.asarray(rows)
        out = Solution(
            labels=np.full((len(rows), N_LABELS), np.nan),
            covariance=np.full((len(rows), N_LABELS, N_LABELS), np.nan),
            chi2=np.full(len(rows), np.nan),
            n_pixel=self.n_pixel[which][rows],
            iterations=np.zeros(len(rows), dtype=np.int32),
            converged=np.zeros(len(rows), dtype=bool),
            at_bound=np.zeros(len(rows), dtype=bool),
        )
        todo = np.flatnonzero(self.fittable[rows])
        for begin in range(0, len(todo), _BATCH):
            part = todo[begin : begin + _BATCH]
            x, iterations = self._explore(which, [s[part] for s in starts], rows[part])
            for start in range(0, len(part), _POLISH_BATCH):
                some = slice(start, start + _POLISH_BATCH)
                self._polish(which, x[some], iterations[some], rows[part[some]], out, part[some])
        return out

    def _matrices(self, which: str, rows: np.ndarray) -> torch.Tensor:
        size = self._fitter.emulator.n_basis
        return self._packed[which][rows][:, self._fitter._square.reshape(-1)].reshape(len(rows), size, size)

    def _explore(self, which: str, starts: list[np.ndarray], rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled labels of the best end of all starts, and the steps taken."""
        fitter, emulator, lsf = self._fitter, self._fitter.emulator, self._lsf[rows]
        # Single precision is enough to walk, as long as it measures from somewhere near; the end is in double.
        near = starts[0]
        for start in starts[1:]:
            near = np.where(np.isnan(near), start, near)
        center = emulator.coefficients(torch.cat([emulator.scale_labels(near).nan_to_num(), lsf], dim=1))
        constant, linear = self._reference(which, center.float(), rows)
        problem = _Problem(
            emulator, self._matrices(which, rows), linear, center, constant, lsf, fitter._floor, fitter._ceiling
        ).to(torch.float32)
        best_x = torch.full((len(rows), N_LABELS), float("nan"), dtype=torch.float64)
        best_chi2 = torch.full((len(rows),), float("inf"), dtype=torch.float64)
        iterations = torch.zeros(len(rows), dtype=torch.int32)
        for start in starts:
            x0 = emulator.scale_labels(start)
            valid = torch.isfinite(x0).all(dim=1).nonzero()[:, 0]
            if not len(valid):
                continue
            end = problem.take(valid).minimize(x0[valid].float(), _EXPLORE, fitter.max_iterations)
            iterations[valid] += end.iterations
            # A start must win clearly, or rounding would decide between two roads to the same minimum.
            better = end.chi2 < best_chi2[valid] - 1e-6
            best_x[valid[better]], best_chi2[valid[better]] = end.x[better].double(), end.chi2[better].double()
        return best_x, iterations

    def _polish(
        self, which: str, x: torch.Tensor, iterations: torch.Tensor, rows: np.ndarray, out: Solution, into: np.ndarray
    ) -> None:
        fitter, emulator, lsf = self._fitter, self._fitter.emulator, self._lsf[rows]
        center = emulator.coefficients(torch.cat([x, lsf], dim=1))
        constant, linear = self._reference(which, center, rows)
        floor, ceiling = fitter._floor, fitter._ceiling
        matrix = self._matrices(which, rows).double()
        problem = _Problem(emulator, matrix, linear, center, constant, lsf, floor, ceiling)
        end = problem.minimize(x, _POLISH, fitter.max_iterations)

        labels = emulator.unscale_labels(end.x)
        slope = emulator.label_slope(labels)
        ridge = _RIDGE * torch.eye(N_LABELS, dtype=torch.float64)
        inverse = torch.linalg.inv(end.hessian + ridge).numpy()
        out.labels[into] = labels
        out.covariance[into] = inverse / (slope[:, :, None] * slope[:, None, :])
        out.chi2[into] = end.chi2.numpy()
        out.iterations[into] = (iterations + end.iterations).numpy()
        out.converged[into] = end.converged.numpy()
        out.at_bound[into] = ((end.x <= floor) | (end.x >= ceiling)).any(dim=1).numpy()

    def _reference(self, which: str, center: torch.Tensor, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """χ² in pixel space at coefficients ``center``, and the linear term b there (both float64).

        Pixels are worked in the precision of ``center``: single is enough to compare starts; a result takes double,
        or χ² would depend in its sixth digit on the road that led to it.
        """
        chi2 = torch.zeros(len(rows), dtype=torch.float64)
        linear = torch.zeros(len(rows), self._fitter.emulator.n_basis, dtype=torch.float64)
        dtype = center.dtype
        for k in range(self._n_segments[which]):
            basis = self._fitter._segments[k].bases[dtype]
            for start in range(0, len(rows), _ROWS):
                part = slice(start, start + _ROWS)
                some = rows[part]
                # The BLAS rounds differently for other shapes, and a spectrum's χ² must not depend on its batch.
                padded = np.pad(some, (0, _ROWS - len(some)), mode="edge")
                model = torch.nn.functional.pad(center[part], (0, 0, 0, _ROWS - len(some)))
                residual = torch.addmm(self._data[k][padded].to(dtype), model, basis, alpha=-1)
                weighted = self._ivar[k][padded].to(dtype) * residual
                linear[part] += (weighted @ basis.T)[: len(some)].double()
                chi2[part] += weighted.mul_(residual).sum(dim=1, dtype=torch.float64)[: len(some)]
        return chi2, linear

    def chi2_at(
        self, labels: np.ndarray, which: str = "all", rows: np.ndarray | None = None, *, exact: bool = False
    ) -> np.ndarray:
        """χ² of given labels in pixel space, (n,) float64; NaN where a label is NaN.

        Parameters
        ----------
        labels : (n, 11) float64
        which : {"all", "hmasked"}
        rows : (n,) int, optional
            Spectra the labels are for; default: all.
        exact : bool
            In double precision; otherwise good to 1e-5 of itself.
        """
        rows = np.arange(len(self)) if rows is None else rows
        known = np.flatnonzero(np.isfinite(labels).all(axis=1))
        x = torch.cat([self._fitter.emulator.scale_labels(labels[known]), self._lsf[rows[known]]], dim=1)
        out = np.full(len(labels), np.nan)
        center = self._fitter.emulator.coefficients(x)
        out[known] = self._reference(which, center if exact else center.float(), rows[known])[0].numpy()
        return out


@dataclass
class _End:
    x: torch.Tensor
    chi2: torch.Tensor
    hessian: torch.Tensor
    iterations: torch.Tensor
    converged: torch.Tensor


@dataclass(frozen=True)
class _Problem:
    """Quadratic forms of m spectra, and their minimization over scaled labels, in one precision."""

    emulator: LowRankEmulator
    matrix: torch.Tensor
    linear: torch.Tensor
    center: torch.Tensor
    constant: torch.Tensor
    lsf: torch.Tensor
    floor: torch.Tensor
    ceiling: torch.Tensor

    def to(self, dtype: torch.dtype) -> "_Problem":
        tensors = (self.matrix, self.linear, self.center, self.constant, self.lsf, self.floor, self.ceiling)
        return _Problem(self.emulator, *(t.to(dtype) for t in tensors))

    def take(self, rows: torch.Tensor) -> "_Problem":
        if len(rows) == len(self.linear):
            return self
        arrays = (self.matrix, self.linear, self.center, self.constant, self.lsf)
        return _Problem(self.emulator, *(a[rows] for a in arrays), self.floor, self.ceiling)

    def evaluate(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """χ², half its gradient and half its Gauss-Newton Hessian at scaled labels."""
        stack = self.emulator.coefficients_and_tangents(torch.cat([x, self.lsf], dim=1))
        stack[:, 0] -= self.center
        # One 12 x 12 Gram matrix of [offset; tangents] holds value, gradient and Hessian.
        gram = (stack @ self.matrix) @ stack.transpose(1, 2)
        linear = (stack @ self.linear[..., None])[..., 0]
        chi2 = self.constant + gram[:, 0, 0] - 2 * linear[:, 0]
        return chi2, gram[:, 1:, 0] - linear[:, 1:], gram[:, 1:, 1:]

    def _step(
        self, x: torch.Tensor, gradient: torch.Tensor, hessian: torch.Tensor, damping: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Damped step within the limits: where it ends, the gain in χ² it promises, whether no limit was met."""
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        scale = diagonal + 1e-2 * diagonal.amax(dim=1, keepdim=True)
        ridge = (damping[:, None] + 4 * torch.finfo(x.dtype).eps) * scale
        low, high = x <= self.floor, x >= self.ceiling
        # A label at its limit takes no part if the step would carry it out; without it, the others step differently.
        held = (low & (gradient > 0)) | (high & (gradient < 0))
        for _ in range(N_LABELS):
            free = (~held).to(x.dtype)
            damped = hessian * free[:, :, None] * free[:, None, :] + torch.diag_embed(ridge + (1 - free))
            root, _ = torch.linalg.cholesky_ex(damped)
            step = -torch.cholesky_solve((gradient * free)[..., None], root)[..., 0]
            outward = (low & (step < 0)) | (high & (step > 0))
            if not outward.any():
                break
            held |= outward
        # A step beyond limits is cut to the box, or ends where the first limit is met: the former goes further, but the
        # latter alone is sure to lead downhill.
        limit = torch.where(step < 0, self.floor, self.ceiling)
        room = torch.where(step == 0, float("inf"), (limit - x) / step)
        share = room.amin(dim=1, keepdim=True).clamp(max=1.0)
        boxed = (x + step).clamp(self.floor, self.ceiling)
        short = torch.where(room <= share, limit, x + share * step)
        gains = [_gain(trial - x, gradient, hessian) for trial in (boxed, short)]
        trial = torch.where((gains[0] >= gains[1])[:, None], boxed, short)
        return trial, torch.maximum(*gains), share[:, 0] >= 1

    def minimize(self, x: torch.Tensor, tolerance: float, max_iterations: int) -> _End:
        """Levenberg-Marquardt from x, each spectrum on its own damping; finished ones leave the batch."""
        m = len(x)
        x = x.clamp(self.floor, self.ceiling)
        chi2, gradient, hessian = self.evaluate(x)
        end = _End(x, chi2, hessian, torch.zeros(m, dtype=torch.int32), torch.zeros(m, dtype=torch.bool))
        damping = torch.full((m,), 1e-3, dtype=x.dtype)
        rounding = 4 * torch.finfo(x.dtype).eps
        active, work, alive = torch.arange(m), self, torch.ones(m, dtype=torch.bool)
        x = x.clone()
        for _ in range(max_iterations):
            trial, predicted, whole = self._step(x, gradient, hessian, damping)
            trial_chi2, trial_gradient, trial_hessian = work.evaluate(trial)
            gain = (chi2 - trial_chi2) / predicted.clamp(min=torch.finfo(x.dtype).tiny)
            accept = trial_chi2 <= chi2
            x = torch.where(accept[:, None], trial, x)
            chi2 = torch.where(accept, trial_chi2, chi2)
            gradient = torch.where(accept[:, None], trial_gradient, gradient)
            hessian = torch.where(accept[:, None, None], trial_hessian, hessian)
            end.iterations[active] += alive.int()
            # A small gain counts as the end only if the step was not small for being damped.
            done = whole & (predicted < tolerance) & ((damping < 0.1) | (predicted < 1e-3 * tolerance))
            # Neither does a rejected step that rounding alone explains.
            done |= ~accept & (predicted.abs() < rounding * chi2.abs())
            # Where the quadratic form foretells the gain badly, shorter steps: full ones would circle the minimum.
            factor = torch.where(gain > 0.75, 1 / 6, torch.where(gain > 0.25, 1.0, 5.0))
            damping = (damping * factor).clamp(1e-8, 1e8)
            done &= alive
            if done.any():
                finished = active[done]
                end.x[finished], end.chi2[finished], end.hessian[finished] = x[done], chi2[done], hessian[done]
                end.converged[finished] = True
                alive &= ~done
                left = alive.nonzero()[:, 0]
                if not len(left):
                    return end
                if len(left) < _COMPACT * len(alive):
                    active, work = active[left], work.take(left)
                    x, chi2, gradient, hessian, damping, alive = (
                        a[left] for a in (x, chi2, gradient, hessian, damping, alive)
                    )
        left = active[alive]
        end.x[left], end.chi2[left], end.hessian[left] = x[alive], chi2[alive], hessian[alive]
        return end


def _gain(step: torch.Tensor, gradient: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """How much χ² the quadratic form says a step gains."""
    return -(step * (2 * gradient + (hessian @ step[..., None])[..., 0])).sum(dim=1)


def start_at(teff: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Labels of ``template`` (n, 11) with Teff replaced; rows with NaN stay NaN.

    Examples
    --------
    >>> start_at(np.array([9000.0]), np.full((1, 11), 2.0))[0, :2].tolist()
    [9000.0, 2.0]
    """
    out = np.array(template, dtype=np.float64)
    out[:, INDEX["teff"]] = teff
    return out


def _scan_grid(emulator: LowRankEmulator) -> np.ndarray:
    """Plain stars over Teff, log g, vsini and metallicity, inside the library only."""
    base = np.array([lb.start for lb in LABELS])
    nodes = []
    for teff in _SCAN_TEFF:
        for logg in _SCAN_LOGG:
            for vsini in _SCAN_VSINI:
                for iron in _SCAN_IRON:
                    labels = base.copy()
                    labels[[INDEX["teff"], INDEX["logg"], INDEX["vsini"]]] = teff, logg, vsini
                    labels[INDEX["c_h"] :] = iron
                    nodes.append(labels)
    nodes = np.array(nodes)
    inside = nodes[~emulator.outside(nodes)]
    cool = inside[:, 0] < windows.HYDROGEN_MAXIMUM
    # A library on one side of the maximum only still needs a start on either side.
    return inside if cool.any() and (~cool).any() else nodes
