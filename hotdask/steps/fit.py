"""Least squares of all labels: every spectrum of a block at once, in the emulator's coefficient space.

A fit alternates between pixels, where χ² and its slope are exact, and their compressed form
(`hotdask.steps.compress`), in which a Levenberg-Marquardt step costs a small network evaluation and a K x K product
whatever the number of pixels (`hotdask.steps.minimize`). It ends when what the compressed form had left to gain is too
little to matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hotdask import windows
from hotdask.emulator.base import LibraryEmulator, require_device
from hotdask.emulator.broadening import mean_lsf
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.labels import INDEX, LABELS, N_LABELS
from hotdask.steps.compress import Compressed, Pixels, blocks, compress, rows_at_once
from hotdask.steps.minimize import Valley
from hotdask.steps.systems import invert

_BATCH = 1024
"""Spectra iterated together: enough that the last few to converge do not set the pace."""
RIDGE = 1e-8
"""Information every label is granted beyond the data's, in units of the library's spread: a σ of 10⁴ spreads."""
_EXPLORE, _POLISH = 1.0, 1e-2
"""Promised gain in χ² of a walk's last step, which lands the closer the smaller it is: on the way, and at the end."""
_SETTLED = 0.1
"""A walk from an exact slope that gained less than this in χ² is the last: of it, the compressed form may be wrong by
1 %."""
_STALE = 0.02
"""Last step of a label, in spreads of the library, after which its information is taken anew."""
_RIVAL = 1.2
"""A start on the other side of the hydrogen maximum is tried if its χ² is below this times where the best one led..."""
_TRIAL, _CHANCE = 2, 20.0
"""... and followed if after so many steps it is no more than this above that (this times χ²/pixel for bad fits)."""
_TEFF_MARGIN = 1.1
"""How far a fit may leave the library in Teff, as a factor."""


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
        Levenberg-Marquardt steps per walk.
    min_pixels : int
        Spectra with fewer good pixels (hydrogen masked) are not fitted.
    device : str
        Where fits run, ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        If there is no such device.

    Attributes
    ----------
    limits : ((11,), (11,)) float64
        Labels no fit goes beyond.

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
        device: str = "cpu",
    ):
        require_device(device)
        self.device = torch.device(device)
        self.emulator = emulator
        self.max_iterations = max_iterations
        self.min_pixels = min_pixels
        self.pixels = Pixels(emulator, mask, hydrogen, self.device)
        self.limits = fit_limits(emulator)
        self.floor, self.ceiling = (emulator.scale_labels(end).float().to(self.device) for end in self.limits)
        self.border = emulator.scaled_teff(windows.HYDROGEN_MAXIMUM)

    def load(self, flux: np.ndarray, ivar: np.ndarray, lsf: np.ndarray | None = None) -> "Block":
        """Reduce normalized spectra to what fits need.

        Parameters
        ----------
        flux, ivar : (n, 3801) float32
            Normalized flux and inverse variance; ivar = 0 marks a bad pixel.
        lsf : (n, 6) float64, optional
            Line-spread coefficients [Å]; default: resolving power 1800.
        """
        lsf = self.emulator.scale_lsf(np.broadcast_to(mean_lsf() if lsf is None else lsf, (len(flux), 6)))
        spectra = compress(self.pixels, self._tensor(flux), self._tensor(ivar))
        return Block(self, spectra, lsf.to(self.device))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self.device)


@dataclass(frozen=True)
class _Place:
    """Points in label space, and χ² and its slope there."""

    x: torch.Tensor
    center: torch.Tensor
    chi2: torch.Tensor
    linear: torch.Tensor

    def take(self, rows: torch.Tensor) -> "_Place":
        return _Place(self.x[rows], self.center[rows], self.chi2[rows], self.linear[rows])

    def put(self, rows: torch.Tensor, other: "_Place") -> None:
        for name in ("x", "center", "chi2", "linear"):
            getattr(self, name)[rows] = getattr(other, name)


class Block:
    """Normalized spectra ready to be fitted, with and without hydrogen.

    Made by `Fitter.load`.

    Attributes
    ----------
    n_pixel : dict of str to (n,) int32
        Good pixels of each fit.
    fittable : (n,) bool
        Whether a spectrum has enough of them.
    """

    def __init__(self, fitter: Fitter, spectra: Compressed, lsf: torch.Tensor):
        self._fitter, self._spectra, self._lsf = fitter, spectra, lsf
        self.n_pixel = spectra.n_pixel
        self.fittable = self.n_pixel["hmasked"] >= fitter.min_pixels

    def __len__(self) -> int:
        return len(self._lsf)

    def renormalized(self, flux: np.ndarray, ivar: np.ndarray) -> "Block":
        """The same spectra over a slightly different continuum; of the compressed form only the slope follows.

        Parameters
        ----------
        flux, ivar : (n, 3801) float32
            As in `Fitter.load`, with the same good pixels.
        """
        fitter = self._fitter
        return Block(fitter, self._spectra.replaced(fitter._tensor(flux), fitter._tensor(ivar)), self._lsf)

    def guess(self, which: str) -> tuple[np.ndarray, np.ndarray]:
        """Labels as the emulator's inverse network reads them off: if the star is cool, and if it is hot.

        Parameters
        ----------
        which : {"all", "hmasked"}

        Returns
        -------
        cool, hot : (n, 11) float64
            On either side of the hydrogen maximum; labels to start from.
        """
        fitter, spectra = self._fitter, self._spectra
        emulator, device = fitter.emulator, fitter.device
        x = torch.empty(len(self), 2, N_LABELS, device=device)
        unit = torch.eye(emulator.n_basis, device=device)
        for part, padded in blocks(len(self), rows_at_once(device), device=device):
            matrix = spectra.pixels.unpack(spectra.packed[which][padded]) + unit
            root, _ = torch.linalg.cholesky_ex(matrix)
            shrunk = torch.cholesky_solve(spectra.linear[which][padded][..., None], root)[..., 0]
            masked = torch.full((len(shrunk),), which == "hmasked", device=device)
            features = emulator.inverse_features(
                shrunk, spectra.level[which][padded], masked, self._lsf[padded].float()
            )
            x[part] = emulator.read_off(features)[: part.stop - part.start]
        x = x.clamp(fitter.floor, fitter.ceiling)
        # A hair off the border, or rounding would put it on the other side.
        x[:, 0, 0].clamp_(max=fitter.border - 1e-5)
        x[:, 1, 0].clamp_(min=fitter.border + 1e-5)
        return tuple(emulator.unscale_labels(side.cpu()) for side in x.unbind(dim=1))

    def fit(self, which: str, starts: Sequence[np.ndarray], rows: np.ndarray | None = None) -> Solution:
        """Fit all labels from each start and keep the lowest χ².

        Parameters
        ----------
        which : {"all", "hmasked"}
            All lines, or hydrogen masked.
        starts : sequence of (n, 11) float64
            Labels to start from, the likeliest first; a row with NaN is skipped. Of several on one side of the
            hydrogen maximum the best is followed, and none that is hopeless beside the best of the other side.
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
        known = np.any([np.isfinite(start).all(axis=1) for start in starts], axis=0)
        todo = np.flatnonzero(self.fittable[rows] & known)
        for begin in range(0, len(todo), _BATCH):
            part = todo[begin : begin + _BATCH]
            self._fit(which, [start[part] for start in starts], torch.from_numpy(rows[part]), out, part)
        return out

    def _fit(self, which: str, starts: list[np.ndarray], rows: torch.Tensor, out: Solution, into: np.ndarray) -> None:
        fitter = self._fitter
        rows = rows.to(fitter.device)
        matrix = self._spectra.pixels.unpack(self._spectra.packed[which][rows])
        best, iterations = self._explore(which, starts, rows, matrix)
        m = len(rows)
        x, information = best.x.clone(), torch.zeros(m, N_LABELS, N_LABELS, device=fitter.device)
        chi2, converged = best.chi2.clone(), torch.zeros(m, dtype=torch.bool, device=fitter.device)
        left = torch.arange(m, device=fitter.device)
        rough, stale = (torch.zeros(m, dtype=torch.bool, device=fitter.device) for _ in range(2))
        for _ in range(fitter.max_iterations):
            place = best if len(left) == m else best.take(left)
            end = self._valley(place, rows, matrix, left).minimize(place.x, _POLISH, fitter.max_iterations)
            x[left], information[left] = end.x, end.information
            chi2[left], converged[left] = place.chi2 - end.gain.double(), end.converged
            iterations[left] += end.iterations
            rough[left], stale[left] = end.iterations > 1, end.stride > _STALE
            left = left[(end.gain > _SETTLED) & end.converged]
            if not len(left):
                break
            best.put(left, self._place(which, x[left], rows[left]))

        # χ² after more than one step has the rounding of the network in it.
        again = rough.nonzero()[:, 0]
        chi2[again] = self._place(which, x[again], rows[again]).chi2
        again = stale.nonzero()[:, 0]
        information[again] = self._valley(best.take(again), rows, matrix, again).slopes(x[again]).information

        labels = fitter.emulator.unscale_labels(x.cpu())
        at_floor, at_ceiling = ((x <= fitter.floor).cpu().numpy(), (x >= fitter.ceiling).cpu().numpy())
        labels = np.where(at_floor, fitter.limits[0], np.where(at_ceiling, fitter.limits[1], labels))
        slope = fitter.emulator.label_slope(labels)
        ridge = RIDGE * torch.eye(N_LABELS, dtype=torch.float64, device=fitter.device)
        inverse = invert(information.double() + ridge).cpu().numpy()
        out.labels[into] = labels
        out.covariance[into] = inverse / (slope[:, :, None] * slope[:, None, :])
        out.chi2[into] = chi2.cpu().numpy()
        out.iterations[into] = iterations.cpu().numpy()
        out.converged[into] = converged.cpu().numpy()
        out.at_bound[into] = (at_floor | at_ceiling).any(axis=1)

    def _explore(
        self, which: str, starts: list[np.ndarray], rows: torch.Tensor, matrix: torch.Tensor
    ) -> tuple[_Place, torch.Tensor]:
        """Where the walk from the best start ends, and the steps taken."""
        fitter = self._fitter
        tried = [fitter.emulator.scale_labels(start).float().to(fitter.device) for start in starts]
        known = torch.stack([x.isfinite().all(dim=1) for x in tried])
        tried = torch.stack(tried).nan_to_num().clamp(fitter.floor, fitter.ceiling)
        row = torch.arange(len(rows), device=fitter.device)
        # Pixels are seen at one start; among the others the compressed form can choose.
        anchor = self._place(which, tried[known.int().argmax(dim=0), row], rows)
        valley = self._valley(anchor, rows, matrix, row)
        chi2 = torch.stack([valley.value(x) for x in tried]).double() + anchor.chi2
        chi2[~known] = float("inf")
        hot = tried[:, :, 0] >= fitter.border
        first = chi2.argmin(dim=0)
        across = torch.where(hot != hot[first, row], chi2, float("inf"))
        second = across.argmin(dim=0)
        x, hope = tried[second, row], across[second, row]

        end = valley.minimize(tried[first, row], _EXPLORE, fitter.max_iterations)
        iterations = end.iterations
        best = self._place(which, end.x, rows)
        # On the other side of the hydrogen maximum, a few steps tell whether more are worth while.
        pixels = torch.from_numpy(self.n_pixel[which]).to(fitter.device)[rows]
        chance = _CHANCE * (best.chi2 / pixels).clamp(min=1.0)
        hope[hope > _RIVAL * best.chi2 + chance] = float("inf")
        for steps in (_TRIAL, fitter.max_iterations):
            some = hope.isfinite().nonzero()[:, 0]
            if not len(some):
                return best, iterations
            end = valley.take(some).minimize(x[some], _EXPLORE, steps)
            iterations[some] += end.iterations
            x[some], hope[some] = end.x, anchor.chi2[some] - end.gain.double()
            hope[hope > best.chi2 + chance] = float("inf")
        some = hope.isfinite().nonzero()[:, 0]
        place = self._place(which, x[some], rows[some])
        # A start must win clearly, or rounding would decide between two roads to the same minimum.
        better = place.chi2 < best.chi2[some] - 1e-2
        best.put(some[better], place.take(better))
        return best, iterations

    def _place(self, which: str, x: torch.Tensor, rows: torch.Tensor) -> _Place:
        center = self._coefficients(x, rows).float()
        return _Place(x, center, *self._spectra.at(which, center, rows))

    def _coefficients(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(m, K) float64: in single precision their rounding would be seen at the highest S/N."""
        emulator = self._fitter.emulator
        out = torch.empty(len(x), emulator.n_basis, dtype=torch.float64, device=x.device)
        for part, padded in blocks(len(x), rows_at_once(x.device), device=x.device):
            inputs = torch.cat([x[padded].double(), self._lsf[rows[padded]]], dim=1)
            out[part] = emulator.coefficients(inputs)[: part.stop - part.start]
        return out

    def _valley(self, place: _Place, rows: torch.Tensor, matrix: torch.Tensor, some: torch.Tensor) -> Valley:
        """χ² around a place of those ``some`` of the rows that have matrices."""
        fitter = self._fitter
        lsf = self._lsf[rows[some]].float()
        return Valley(fitter.emulator, matrix, some, place.linear, place.center, lsf, fitter.floor, fitter.ceiling)

    def nearer(self, *candidates: np.ndarray) -> np.ndarray:
        """Of several labels (n, 11) for each spectrum those with the lowest χ² of all lines."""
        chi2 = np.array([self.chi2_at(labels) for labels in candidates])
        return np.stack(candidates)[chi2.argmin(axis=0), np.arange(len(self))]

    def chi2_at(self, labels: np.ndarray, which: str = "all", rows: np.ndarray | None = None) -> np.ndarray:
        """χ² of given labels, in pixels, (m,) float64; NaN where a label is NaN.

        Parameters
        ----------
        labels : (m, 11) float64
        which : {"all", "hmasked"}
        rows : (m,) int, optional
            Spectra the labels are for; default: all.
        """
        known = np.flatnonzero(np.isfinite(labels).all(axis=1))
        out = np.full(len(labels), np.nan)
        device = self._fitter.device
        x = self._fitter.emulator.scale_labels(labels[known]).to(device)
        some = torch.from_numpy(known if rows is None else rows[known]).to(device)
        out[known] = self._spectra.at(which, self._coefficients(x, some).float(), some)[0].cpu().numpy()
        return out


def fit_limits(emulator: LibraryEmulator) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest labels (11,) of a fit, float64."""
    floor, ceiling = np.array([lb.floor for lb in LABELS]), np.array([lb.ceiling for lb in LABELS])
    # Temperature rules everything: a network led far beyond its coolest and hottest models invents minima there.
    coolest, hottest = (emulator.arrays[f"label_{end}"][INDEX["teff"]] for end in ("low", "high"))
    floor[INDEX["teff"]], ceiling[INDEX["teff"]] = coolest / _TEFF_MARGIN, hottest * _TEFF_MARGIN
    return floor, ceiling


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


def plain_start(teff: np.ndarray) -> np.ndarray:
    """Labels (n, 11) to start from where nothing but a Teff [K] is known.

    Examples
    --------
    >>> plain_start(np.array([9000.0]))[0, :2].tolist()
    [9000.0, 4.0]
    """
    return start_at(teff, np.tile([lb.start for lb in LABELS], (len(teff), 1)))
