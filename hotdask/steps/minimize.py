"""Least χ² of many spectra at once, where χ² is a quadratic form of coefficients and these are a network of labels.

Newton's method, held back as Levenberg and Marquardt do, each spectrum by a damping of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.labels import N_LABELS
from hotdask.steps.compress import blocks, rows_at_once
from hotdask.steps.systems import factor, solve

_ROUNDING = 0.02
"""Differences of χ² smaller than this may be rounding of the network, seen against all that a model leaves unexplained.
Gradients, which see no more than the model's own directions, are better, and so are the promises made of them."""
_NOTHING = 0.03
"""Share of the tolerance at which a walk also ends where no promise can be believed: at limits, or where χ² is not
convex, as on the plain that begins where a line has vanished."""
_CRAWL = 10.0
"""Gain of a free step over that of a damped one from which the free one is taken."""
_STIFF = 1e3
"""Information to which damping is relative at least: labels that data hardly tell take short steps, in spreads of the
library, while the others find their place."""
_DAMPING = 1e-3
"""At the start of a walk."""
_TILE = 16
"""The last spectra to converge are worked on in multiples of this. The BLAS gives the rows of a product the same bits
whatever their number, as long as that is a multiple of its tiles; `tests/steps/test_fit.py` holds it to that."""


@dataclass(frozen=True)
class Minimum:
    """Where minimizations end.

    Attributes
    ----------
    x : (m, 11) float32
        Scaled labels.
    gain : (m,) float32
        How far χ² fell below that at the center.
    information : (m, 11, 11) float32
        As in `Slopes`, at the last point but one.
    stride : (m,) float32
        Largest change of a label in the last step.
    iterations : (m,) int32
    converged : (m,) bool
    """

    x: torch.Tensor
    gain: torch.Tensor
    information: torch.Tensor
    stride: torch.Tensor
    iterations: torch.Tensor
    converged: torch.Tensor


@dataclass(frozen=True)
class Slopes:
    """χ² of m spectra and its derivatives to scaled labels, float32.

    Attributes
    ----------
    value : (m,)
        χ² less χ² at the center.
    gradient : (m, 11)
        Half of it.
    information : (m, 11, 11)
        Half of Gauss and Newton's Hessian, whose inverse is the labels' covariance.
    hessian : (m, 11, 11)
        Half the Hessian. It differs by how the model bends along what it leaves unexplained; with it, steps square the
        distance to the minimum, without it they shorten it by a factor, and along bent valleys hardly that.
    """

    value: torch.Tensor
    gradient: torch.Tensor
    information: torch.Tensor
    hessian: torch.Tensor

    def take(self, rows: torch.Tensor) -> "Slopes":
        return Slopes(self.value[rows], self.gradient[rows], self.information[rows], self.hessian[rows])

    def put(self, rows: torch.Tensor, other: "Slopes") -> None:
        for name in ("value", "gradient", "information", "hessian"):
            getattr(self, name)[rows] = getattr(other, name)


@dataclass(frozen=True)
class Valley:
    """χ² of m spectra around a center, as a function of scaled labels, float32.

    Attributes
    ----------
    emulator : LowRankEmulator
    matrix : (M, K, K)
        G of these and perhaps other spectra.
    rows : (m,) int64
        Which of them these are, in increasing order: copies of matrices would cost as much as evaluations.
    linear, center : (m, K)
        b there, and c₀.
    lsf : (m, 6)
        Scaled line spread.
    floor, ceiling : (11,)
        Limits of the scaled labels.
    """

    emulator: LowRankEmulator
    matrix: torch.Tensor
    rows: torch.Tensor
    linear: torch.Tensor
    center: torch.Tensor
    lsf: torch.Tensor
    floor: torch.Tensor
    ceiling: torch.Tensor

    def take(self, some: torch.Tensor) -> "Valley":
        arrays = (a[some] for a in (self.rows, self.linear, self.center, self.lsf))
        return Valley(self.emulator, self.matrix, *arrays, self.floor, self.ceiling)

    def _blocks(self, x: torch.Tensor) -> Iterator[tuple[slice, slice | torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Rows of a block among all and to work on, their matrices, and the network's inputs."""
        # Where no spectrum is missing, matrices need not be gathered.
        whole = len(self.rows) == len(self.matrix)
        for part, padded in blocks(len(x), rows_at_once(x.device), tile=_TILE, device=x.device):
            matrix = self.matrix[padded] if whole else self.matrix.index_select(0, self.rows[padded])
            yield part, padded, matrix, torch.cat([x[padded], self.lsf[padded]], dim=1)

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """χ² at scaled labels less χ² at the center, (m,)."""
        out = torch.empty(len(x), device=x.device)
        for part, padded, matrix, inputs in self._blocks(x):
            offset = self.emulator.coefficients(inputs) - self.center[padded]
            # As a row: a product with a column takes the BLAS eight times as long.
            slope = (offset[:, None] @ matrix)[:, 0] - 2 * self.linear[padded]
            out[part] = (offset * slope).sum(dim=1)[: part.stop - part.start]
        return out

    def slopes(self, x: torch.Tensor) -> "Slopes":
        """χ² and its derivatives at scaled labels x (m, 11)."""
        m, device = len(x), x.device
        shapes = {"value": (m,), "gradient": (m, N_LABELS), "information": (m, N_LABELS, N_LABELS)}
        out = Slopes(*(torch.empty(shape, device=device) for shape in (*shapes.values(), shapes["information"])))
        for part, padded, matrix, inputs in self._blocks(x):
            stack, bends = self.emulator.expand(inputs)
            stack[:, 0] -= self.center[padded]
            # One 12 x 12 Gram matrix of [offset; tangents] holds value, gradient and Gauss-Newton's Hessian.
            half = stack @ matrix
            gram = half @ stack.transpose(1, 2)
            linear = (self.linear[padded][:, None] @ stack.transpose(1, 2))[:, 0]
            curvature = self.emulator.curvature(bends, half[:, 0] - self.linear[padded])
            n = part.stop - part.start
            out.value[part] = (gram[:, 0, 0] - 2 * linear[:, 0])[:n]
            out.gradient[part] = (gram[:, 1:, 0] - linear[:, 1:])[:n]
            out.information[part] = gram[:n, 1:, 1:]
            out.hessian[part] = (gram[:, 1:, 1:] + curvature)[:n]
        return out

    def _step(
        self, x: torch.Tensor, slopes: "Slopes", damping: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Damped step within the limits: where it ends, the gain in χ² it promises, and whether that can be believed,
        because χ² is convex there and no limit was met."""
        gradient = slopes.gradient
        diagonal = slopes.information.diagonal(dim1=1, dim2=2)
        scale = diagonal + _STIFF
        ridge = (damping[:, None] + 4 * torch.finfo(x.dtype).eps) * scale
        # Where χ² is not convex, Gauss and Newton know a way down, Newton alone does not.
        convex = factor(slopes.hessian + torch.diag_embed(ridge))[1] == 0
        hessian = torch.where(convex[:, None, None], slopes.hessian, slopes.information)
        low, high = x <= self.floor, x >= self.ceiling
        # A label at its limit takes no part if the step would carry it out; without it, the others step differently.
        held = (low & (gradient > 0)) | (high & (gradient < 0))
        for _ in range(N_LABELS):
            free = (~held).to(x.dtype)
            damped = hessian * free[:, :, None] * free[:, None, :] + torch.diag_embed(ridge + (1 - free))
            step = solve(factor(damped)[0], -(gradient * free)[..., None])[..., 0]
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
        gains = [_promise(trial - x, gradient, hessian) for trial in (boxed, short)]
        trial = torch.where((gains[0] >= gains[1])[:, None], boxed, short)
        return trial, torch.maximum(*gains), convex & (share[:, 0] >= 1)

    def minimize(self, x: torch.Tensor, tolerance: float, max_iterations: int) -> Minimum:
        """Walk down from x (m, 11) until a step promises less than ``tolerance`` in χ²; that step is the last."""
        m, device = len(x), x.device
        x = x.clamp(self.floor, self.ceiling)
        slopes = self.slopes(x)
        end = Minimum(
            x.clone(),
            -slopes.value,
            slopes.information.clone(),
            torch.zeros(m, device=device),
            torch.zeros(m, dtype=torch.int32, device=device),
            torch.zeros(m, dtype=torch.bool, device=device),
        )
        work, active = self, torch.arange(m, device=device)
        damping = torch.full((m,), _DAMPING, device=device)
        tame = torch.ones(m, dtype=torch.bool, device=device)
        for step in range(1, max_iterations + 1):
            trial, promised, _ = work._step(x, slopes, damping)
            # What is left to gain is what a step promises that nothing holds back: never less than a damped one does.
            near = (tame & (promised < tolerance)).nonzero()[:, 0]
            free, left_over, sound = work._step(x[near], slopes.take(near), torch.zeros_like(damping[near]))
            small = torch.zeros_like(tame)
            small[near] = sound & (left_over < tolerance)
            # Along labels the data hardly tell, damped steps would crawl.
            taken = sound & ((left_over < tolerance) | (left_over > _CRAWL * promised[near]))
            trial[near[taken]], promised[near[taken]] = free[taken], left_over[taken]
            last, going = small.nonzero()[:, 0], (~small).nonzero()[:, 0]
            found = torch.empty_like(slopes.value)
            found[last] = work.take(last).value(trial[last])
            further = work.take(going).slopes(trial[going])
            found[going] = further.value
            gained = slopes.value - found
            accept = gained >= -_ROUNDING
            done = small & (accept | (promised < _ROUNDING))
            accept |= done
            # Held by limits, or damped for good: there is nothing left to gain.
            done |= promised < _NOTHING * tolerance
            # Where the quadratic form foretells the gain badly, shorter steps: full ones would circle the minimum.
            ratio = gained / promised.clamp(min=1e-30)
            factor = torch.where(ratio > 0.75, 1 / 6, torch.where(ratio > 0.25, 1.0, 5.0))
            damping = (damping * factor).clamp(1e-8, 1e8)
            end.stride[active] = (trial - x).abs().amax(dim=1)
            x = torch.where(accept[:, None], trial, x)
            end.iterations[active] += 1
            end.x[active], end.gain[active] = x, -torch.where(accept, found, slopes.value)
            end.information[active] = slopes.information
            end.converged[active] = done
            slopes.put(going[accept[going]], further.take(accept[going]))
            left = (~done).nonzero()[:, 0]
            if not len(left) or step == max_iterations:
                break
            if len(left) < len(active):
                work, slopes = work.take(left), slopes.take(left)
                active, x, damping, accept = active[left], x[left], damping[left], accept[left]
            # A free step that led uphill is not tried again before another has led down.
            tame = accept
        return end


def _promise(step: torch.Tensor, gradient: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """How much χ² the quadratic form says a step gains."""
    return -(step * (2 * gradient + (hessian @ step[..., None])[..., 0])).sum(dim=1)
