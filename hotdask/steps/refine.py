"""Batched least squares of all labels with per-pixel networks, from labels already near.

A network with one output gives its derivatives to all labels in one pass backward, at the price of the pass forward.
Spectra are the last, contiguous axis of all activations: a matrix product is of a network's weights, as they are
stored, with a block of spectra, and a chunk of pixels is worked while its activations lie in the cache. Only the
12 x 12 Gram matrix of [residual; derivatives] is kept of a spectrum: χ², half its gradient, half its Gauss-Newton
Hessian.

Pixels cost so much that a fit's price is its number of evaluations. Where labels are weakly determined the networks
bend within their errors, and Gauss-Newton steps shrink slowly; what its Hessian lacks is learned from how the gradient
changes. The last step, once it is small, is taken without looking where it led.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hotdask import windows
from hotdask.emulator.perpixel import PerPixelEmulator
from hotdask.labels import N_LABELS
from hotdask.steps.fit import RIDGE, Solution, fit_limits
from hotdask.steps.systems import factor, invert, solve

_ROWS = {"cpu": 96, "cuda": 1024}
"""Spectra worked together, at most."""
_TILE = 16
"""The last ones are worked in multiples of this. The BLAS gives the columns of a product the same bits whatever their
number, as long as that is a multiple of its tiles; `tests/steps/test_refine.py` holds it to that."""
_SMALL = 400
"""Multiplications in a product below which torch does without the BLAS, and rounds otherwise."""
_CHUNK = {"cpu": 24, "cuda": 256}
"""Pixels worked together; on a CPU, few enough that a layer's activations stay in the cache."""
_PANEL = 512
"""Pixels summed in single precision; sums of panels are in double."""
_TOLERANCE = 2e-5
"""Gain in χ² that may be left: a fit ends within 0.005 σ of its minimum."""
_UNSEEN = 1e-2
"""Predicted gain in χ² of the largest step that is taken without an evaluation at its end."""
_DAMPING = 1e-2
"""At the start, and at least after a step that led uphill."""
_ROUNDING = 5e-6
"""Relative error of χ² in single precision."""


class Refiner:
    """Fits normalized spectra with per-pixel networks, from labels found by a faster emulator.

    Parameters
    ----------
    emulator : PerPixelEmulator
        Fits run on its device.
    mask, hydrogen : sequence of Window or (low, high)
        Air windows [Å] never fitted; and masked besides in the fit without hydrogen.
    max_iterations : int
        Levenberg-Marquardt steps; as many evaluations.

    Attributes
    ----------
    pixels : dict of str to (k,) int
        Those fitted with all lines and with hydrogen masked.
    limits : ((11,), (11,)) float64
        Labels no fit goes beyond.
    n_rows : int
        Spectra worked together, at most.

    References
    ----------
    Xiang et al. 2022, §4.2-4.5.
    """

    def __init__(
        self,
        emulator: PerPixelEmulator,
        *,
        mask: Sequence = windows.FIT_MASK,
        hydrogen: Sequence = windows.HYDROGEN,
        max_iterations: int = 30,
    ):
        self.emulator = emulator
        self.max_iterations = max_iterations
        self.n_rows, self._n_chunk = _ROWS[emulator.device.type], _CHUNK[emulator.device.type]
        # The smallest product is that of a last layer with the block.
        self._tile = _TILE * -(-_SMALL // (_TILE * emulator.layers[1].shape[1]))
        wavelength = windows.rest_wavelength()
        used = ~windows.inside(wavelength, mask)
        self.pixels = {
            "all": np.flatnonzero(used),
            "hmasked": np.flatnonzero(used & ~windows.inside(wavelength, hydrogen)),
        }
        self.limits = fit_limits(emulator)
        self._floor, self._ceiling = (emulator.scale_labels(end).to(emulator.device) for end in self.limits)

    def refine(self, which: str, flux: np.ndarray, ivar: np.ndarray, lsf: np.ndarray, labels: np.ndarray) -> Solution:
        """Fit all labels.

        Parameters
        ----------
        which : {"all", "hmasked"}
            All lines, or hydrogen masked.
        flux, ivar : (n, 3801) float32
            Normalized flux and inverse variance, rest frame; ivar = 0 marks a bad pixel.
        lsf : (n, 6) float64
            Line-spread coefficients [Å].
        labels : (n, 11) float64
            Labels to start from; a spectrum with NaN, or with no more good pixels than labels, is not fitted.

        Returns
        -------
        Solution
            χ² at the labels is what the last step promised: it is off by less than 0.01.
        """
        spectra = _Spectra(self, which, flux, ivar, lsf, labels)
        n = len(labels)
        out = Solution(
            labels=np.full((n, N_LABELS), np.nan),
            covariance=np.full((n, N_LABELS, N_LABELS), np.nan),
            chi2=np.full(n, np.nan),
            n_pixel=spectra.n_pixel,
            iterations=np.zeros(n, dtype=np.int32),
            converged=np.zeros(n, dtype=bool),
            at_bound=np.zeros(n, dtype=bool),
        )
        todo = np.flatnonzero(np.isfinite(labels).all(axis=1) & (spectra.n_pixel > N_LABELS))
        slots, n_taken = np.full(self._width(len(todo)), -1), 0
        spectra.allocate(len(slots))
        fits = _Fits(len(slots), self._floor, self._ceiling)
        while True:
            # The slot of a finished spectrum goes to the next in the queue; at its end, idle slots are given up.
            idle = np.flatnonzero(slots < 0)[: len(todo) - n_taken]
            slots[idle] = todo[n_taken : n_taken + len(idle)]
            n_taken += len(idle)
            spectra.load(idle, slots[idle])
            fits.begin(idle, spectra.start[slots[idle]])
            if (slots < 0).all():
                return out
            width = self._width(np.count_nonzero(slots >= 0))
            if width < len(slots):
                kept = np.argsort(slots < 0, kind="stable")[:width]
                slots = slots[kept]
                spectra.keep(kept)
                fits.keep(kept)
            fits.update(spectra.gram(fits.trial))
            converged = fits.converged()
            ended = converged | (fits.iterations >= self.max_iterations)
            ended = np.flatnonzero(ended.cpu().numpy() & (slots >= 0))
            if len(ended):
                self._store(out, slots[ended], fits.take(ended), converged[ended])
                slots[ended] = -1

    def chi2_at(
        self, which: str, flux: np.ndarray, ivar: np.ndarray, lsf: np.ndarray, labels: np.ndarray
    ) -> np.ndarray:
        """χ² of given labels, (n,) float64, good to 5e-6 of itself; NaN where a label is. Parameters as in `refine`."""
        spectra = _Spectra(self, which, flux, ivar, lsf, labels)
        out = np.full(len(labels), np.nan)
        todo = np.flatnonzero(np.isfinite(labels).all(axis=1))
        width = self._width(len(todo))
        spectra.allocate(width)
        for begin in range(0, len(todo), self.n_rows):
            rows = todo[begin : begin + self.n_rows]
            x = self._floor.repeat(width, 1)
            x[: len(rows)] = spectra.start[rows]
            spectra.load(np.arange(len(rows)), rows)
            out[rows] = spectra.chi2(x)[: len(rows)].cpu().numpy()
        return out

    def _width(self, n: int) -> int:
        """Slots for n spectra."""
        return min(self.n_rows, -(-n // self._tile) * self._tile)

    def _store(self, out: Solution, rows: np.ndarray, end: "_End", converged: torch.Tensor) -> None:
        x = end.x.cpu()
        labels = np.clip(self.emulator.unscale_labels(x), *self.limits)
        slope = self.emulator.label_slope(labels)
        unit = torch.eye(N_LABELS, dtype=torch.float64).expand_as(end.hessian)
        inverse = invert(end.hessian.cpu() + RIDGE * unit).numpy()
        out.labels[rows] = labels
        out.covariance[rows] = inverse / (slope[:, :, None] * slope[:, None, :])
        out.chi2[rows] = end.chi2.cpu().numpy()
        out.iterations[rows] = end.iterations.cpu().numpy()
        out.converged[rows] = converged.cpu().numpy()
        out.at_bound[rows] = ((x <= self._floor.cpu()) | (x >= self._ceiling.cpu())).any(dim=1).numpy()


class _Spectra:
    """The pixels to be fitted of n spectra, a block of which at a time lies ready on the device."""

    def __init__(self, refiner: Refiner, which: str, flux, ivar, lsf, labels):
        emulator = refiner.emulator
        device = emulator.device
        self._layers, self._n_chunk = emulator.layers, refiner._n_chunk
        self._flux, self._ivar, self._pixels = flux, ivar, refiner.pixels[which]
        self.n_pixel = (ivar[:, self._pixels] > 0).sum(axis=1).astype(np.int32)
        self.start = emulator.scale_labels(labels).to(device)
        self._all_lsf = emulator.scale_lsf(lsf).to(device)
        self._index = torch.from_numpy(self._pixels).to(device)
        self._networks = [layer.new_empty(self._n_chunk, *layer.shape[1:]) for layer in emulator.layers]

    def allocate(self, n: int) -> None:
        """Make a block of n slots."""
        device = self._index.device
        self._lsf = torch.zeros(n, 6, dtype=torch.float64, device=device)
        self._data, self._root = torch.zeros(2, len(self._pixels), n, device=device).unbind()
        self._make_room()

    def keep(self, slots: np.ndarray) -> None:
        """Reduce the block to some of its slots."""
        self._lsf = self._lsf[slots]
        self._data, self._root = self._data[:, slots].contiguous(), self._root[:, slots].contiguous()
        self._make_room()

    def _make_room(self) -> None:
        # Memory that is fresh for every chunk would cost a tenth of the time.
        shape = (3, self._n_chunk, self._layers[1].shape[1], len(self._lsf))
        self._one, self._two, self._back = torch.empty(shape, device=self._index.device).unbind()

    def load(self, slots: np.ndarray, rows: np.ndarray) -> None:
        """Put spectra into slots of the block."""
        weight = torch.from_numpy(self._ivar[np.ix_(rows, self._pixels)]).to(self._root.device)
        data = torch.from_numpy(self._flux[np.ix_(rows, self._pixels)]).to(self._root.device)
        self._data[:, slots] = torch.where(weight > 0, data, 0.0).T
        self._root[:, slots] = weight.sqrt().T
        self._lsf[slots] = self._all_lsf[rows]

    def _chunks(self, x: torch.Tensor, low: int, high: int) -> Iterator[tuple[slice, list[torch.Tensor], torch.Tensor]]:
        """Pixels from low to high in chunks: where they lie, their networks' weights and their values (p, rows)."""
        inputs = torch.cat([x, self._lsf], dim=1).float().T.contiguous()
        for start in range(low, high, self._n_chunk):
            here = slice(start, min(start + self._n_chunk, high))
            index = self._index[here]
            networks = [buffer[: len(index)] for buffer in self._networks]
            for network, layer in zip(networks, self._layers, strict=True):
                torch.index_select(layer, 0, index, out=network)
            yield here, networks, self._forward(networks, inputs)

    def _forward(self, networks: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Values (p, rows) of p networks on inputs (17, rows); keeps the activations."""
        weight1, bias1, weight2, bias2, weight3, bias3 = networks
        one, two = self._one[: len(bias3)], self._two[: len(bias3)]
        torch.baddbmm(bias1[..., None], weight1, inputs.expand(len(bias3), -1, -1), out=one).sigmoid_()
        torch.baddbmm(bias2[..., None], weight2, one, out=two).sigmoid_()
        return torch.baddbmm(bias3[:, None, None], weight3[:, None], two)[:, 0]

    def _backward(self, networks: list[torch.Tensor]) -> torch.Tensor:
        """Derivatives (p, 11, rows) of the values to scaled labels; overwrites the activations."""
        weight1, _, weight2, _, weight3, _ = networks
        one, two, back = (activations[: len(weight3)] for activations in (self._one, self._two, self._back))
        two.addcmul_(two, two, value=-1).mul_(weight3[..., None])
        torch.bmm(weight2.transpose(1, 2), two, out=back)
        back.mul_(one.addcmul_(one, one, value=-1))
        return torch.bmm(weight1[..., :N_LABELS].transpose(1, 2), back)

    def gram(self, x: torch.Tensor) -> torch.Tensor:
        """Gram matrices of [residual; derivatives] at scaled labels, (rows, 12, 12) float64."""
        out = torch.zeros(len(x), 1 + N_LABELS, 1 + N_LABELS, dtype=torch.float64, device=x.device)
        for low in range(0, len(self._pixels), _PANEL):
            high = min(low + _PANEL, len(self._pixels))
            stack = torch.empty(len(x), 1 + N_LABELS, high - low, device=x.device)
            for here, networks, value in self._chunks(x, low, high):
                root, panel = self._root[here], stack[:, :, here.start - low : here.stop - low]
                panel[:, 0] = ((value - self._data[here]) * root).T
                panel[:, 1:] = (self._backward(networks) * root[:, None]).permute(2, 1, 0)
            out += torch.bmm(stack, stack.transpose(1, 2))
        return out

    def chi2(self, x: torch.Tensor) -> torch.Tensor:
        """χ² at scaled labels, (rows,) float64."""
        out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for here, _, value in self._chunks(x, 0, len(self._pixels)):
            residual = (value - self._data[here]) * self._root[here]
            # Summed along memory: across it, the order would depend on how many spectra there are.
            out += residual.T.contiguous().square().sum(dim=1, dtype=torch.float64)
        return out


@dataclass
class _End:
    x: torch.Tensor
    chi2: torch.Tensor
    hessian: torch.Tensor
    iterations: torch.Tensor


class _Fits:
    """Levenberg-Marquardt of a block of spectra, each at its own step and with its own damping."""

    def __init__(self, n: int, floor: torch.Tensor, ceiling: torch.Tensor):
        self._floor, self._ceiling = floor, ceiling
        self.trial = floor.repeat(n, 1)
        self._x = self.trial.clone()
        self._chi2, self._predicted, self._damping = floor.new_zeros(3, n).unbind()
        self._gradient = floor.new_zeros(n, N_LABELS)
        self._hessian, self._curvature = floor.new_zeros(2, n, N_LABELS, N_LABELS).unbind()
        self.iterations = torch.zeros(n, dtype=torch.int32, device=floor.device)

    def keep(self, slots: np.ndarray) -> None:
        """Go on with some of the fits only."""
        for name in (
            "trial",
            "iterations",
            "_x",
            "_chi2",
            "_gradient",
            "_hessian",
            "_curvature",
            "_damping",
            "_predicted",
        ):
            setattr(self, name, getattr(self, name)[slots])

    def begin(self, slots: np.ndarray, x: torch.Tensor) -> None:
        """Start fits anew."""
        self.trial[slots] = torch.clamp(x, self._floor, self._ceiling)
        self._chi2[slots] = float("inf")
        self._damping[slots] = _DAMPING
        self._curvature[slots] = 0
        self.iterations[slots] = 0

    def update(self, gram: torch.Tensor) -> None:
        """Learn what the trials are worth, and make the next."""
        value, gradient, hessian = gram[:, 0, 0], gram[:, 1:, 0], gram[:, 1:, 1:]
        first = torch.isinf(self._chi2)
        accept = value <= self._chi2 * (1 + _ROUNDING)
        gain = (self._chi2 - value + _ROUNDING * value) / self._predicted
        factor = torch.where(gain > 0.75, 0.1, torch.where(gain > 0.25, 1.0, 10.0))
        damping = torch.where(accept, self._damping * factor, (10 * self._damping).clamp(min=_DAMPING))
        self._damping = torch.where(first, self._damping, damping.clamp(1e-9, 1e9))
        self._curvature = torch.where(
            (accept & ~first)[:, None, None],
            _secant(self._curvature, self.trial - self._x, gradient - self._gradient, hessian),
            self._curvature,
        )
        self._x = torch.where(accept[:, None], self.trial, self._x)
        self._chi2 = torch.where(accept, value, self._chi2)
        self._gradient = torch.where(accept[:, None], gradient, self._gradient)
        self._hessian = torch.where(accept[:, None, None], hessian, self._hessian)

        before = self._predicted
        self.trial, self._predicted = self._step()
        # Steps that shrink by a constant factor, and their gains by its square, leave a geometric series to come.
        shrinks = torch.where(first | ~accept, 0.5, (self._predicted / before).clamp(0, 1).sqrt())
        self._left = self._predicted * (shrinks / (1 - shrinks)) ** 2
        self.iterations += 1

    def converged(self) -> torch.Tensor:
        """Whether the trials, unseen, are the ends."""
        # A gain may be small because the step was damped.
        close = (self._left < _TOLERANCE) & (self._damping < 1e-3) & (self._predicted < _UNSEEN)
        return (close | (self._predicted < 1e-3 * _TOLERANCE)) & (self._predicted >= 0)

    def take(self, slots: np.ndarray) -> _End:
        """Ends of fits: their trials, and what the quadratic form says of them."""
        chi2 = self._chi2 - self._predicted
        return _End(self.trial[slots], chi2[slots], self._hessian[slots], self.iterations[slots])

    def _step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where damped steps within the limits end, and the gain in χ² they promise."""
        x, gradient = self._x, self._gradient
        diagonal = self._hessian.diagonal(dim1=1, dim2=2)
        ridge = self._damping[:, None] * (diagonal + 1e-2 * diagonal.amax(dim=1, keepdim=True)) + RIDGE
        hessian = self._hessian + self._curvature
        _, fail = factor(hessian + torch.diag_embed(ridge))
        hessian = torch.where((fail > 0)[:, None, None], self._hessian, hessian)
        # A label at its limit whose gradient points out stays; one whose step leads out stops at its limit. The others
        # step as is best then.
        free = ~((x <= self._floor) & (gradient > 0) | (x >= self._ceiling) & (gradient < 0))
        step = torch.zeros_like(x)
        for _ in range(N_LABELS):
            slope = (gradient + (hessian * torch.where(free, 0.0, step)[:, None]).sum(dim=2)) * free
            damped = hessian * free[:, :, None] * free[:, None, :] + torch.diag_embed(torch.where(free, ridge, 1.0))
            step = torch.where(free, -solve(factor(damped)[0], slope[..., None])[..., 0], step)
            beyond = free & ((x + step < self._floor) | (x + step > self._ceiling))
            if not beyond.any():
                break
            step = torch.where(beyond, (x + step).clamp(self._floor, self._ceiling) - x, step)
            free &= ~beyond
        trial = (x + step).clamp(self._floor, self._ceiling)
        step = trial - x
        return trial, -(step * (2 * gradient + (hessian * step[:, None]).sum(dim=2))).sum(dim=1)


def _secant(curvature: torch.Tensor, step: torch.Tensor, change: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """What the Gauss-Newton Hessian lacks, by how the gradient changed over a step.

    The update of Dennis, Gay and Welsch and its sizing; but since Jacobians are not kept, the change of the gradient
    less that foretold by the Hessian at the new point stands for (J₊ − J)ᵀ r₊.

    References
    ----------
    Dennis, Gay & Welsch 1981, ACM Trans. Math. Softw. 7, 348 (NL2SOL).
    """

    def times(matrix: torch.Tensor) -> torch.Tensor:
        return (matrix * step[:, None]).sum(dim=2)

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).sum(dim=1, keepdim=True)

    lacks = change - times(hessian)
    size = (dot(step, lacks) / dot(step, times(curvature))).abs().nan_to_num(nan=1.0).clamp(max=1.0)
    curvature = curvature * size[..., None]
    along = dot(change, step)
    rest, change = lacks - times(curvature), change / along
    update = rest[:, :, None] * change[:, None, :]
    update = update + update.transpose(1, 2) - dot(rest, step)[..., None] * change[:, :, None] * change[:, None, :]
    return torch.where(along[..., None] > 0, curvature + update, curvature)
