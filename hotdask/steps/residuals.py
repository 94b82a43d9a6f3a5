"""What the pixels say beyond the labels: emission in Balmer cores, a velocity that is off, a second star's lines.

All from one model, the fit of all lines. A pattern t is added to it with amplitude a, all labels free to follow: with
r the residual, W the inverse variances, J the derivatives to the labels and C = (JᵀWJ)⁻¹ their covariance,

    M = tᵀWt − tᵀWJ·C·JᵀWt,   g = tᵀWr − tᵀWJ·C·JᵀWr,   a = g/M ± 1/√M,   Δχ² = g²/M.

In the emulator's coefficients JᵀWt is TᵀΦWt, with T their derivatives to the labels: a pattern costs one product.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from hotdask import windows
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.steps.compress import blocks, rows_at_once
from hotdask.windows import BALMER_AIR, SPEED_OF_LIGHT, air_to_vacuum

CORE = 4.0
"""Half width of a Balmer core [pixel, 69 km/s]."""
COMPANION_SHIFTS = (-5, -3, 3, 5)
"""Velocities of a second star relative to the first [pixel, 69 km/s]."""
_REACH = max(abs(k) for k in COMPANION_SHIFTS)
PIXEL = SPEED_OF_LIGHT * windows.LOG_STEP * np.log(10)
"""km/s."""
_LINES = (("Hα",), ("Hβ", "Hγ", "Hδ"))
# Derivative of samples, exact to eighth order: the line spread is one pixel, which central differences do not resolve.
_DERIVATIVE = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}


@dataclass(frozen=True)
class Residuals:
    """What was found in n spectra; NaN where nothing was fitted or no pixel tells.

    Attributes
    ----------
    halpha_excess, halpha_excess_err : (n,) float64
        Equivalent width of data above model in the core of Hα [Å], positive = emission, and its error.
    balmer_excess, balmer_excess_err : (n,) float64
        The same, Hβ to Hδ together.
    rv_shift, rv_shift_err : (n,) float64
        Velocity [km/s] that a linear fit adds to the one given, all labels free.
    binary_score : (n,) float64
        Gain in χ² by lines of a second star like the first, at the best of four velocities, over the reduced χ² of
        the fit (or 1 if that is less); velocity and labels of the first are free. 0 where none has a positive share.
    """

    halpha_excess: np.ndarray
    halpha_excess_err: np.ndarray
    balmer_excess: np.ndarray
    balmer_excess_err: np.ndarray
    rv_shift: np.ndarray
    rv_shift_err: np.ndarray
    binary_score: np.ndarray


class ResidualJudge:
    """Judges residuals of fits with one emulator.

    Parameters
    ----------
    emulator : LowRankEmulator
    mask : sequence of Window or (low, high)
        Air windows [Å] never fitted.
    device : torch.device
    """

    def __init__(self, emulator: LowRankEmulator, mask: Sequence, device: torch.device):
        self._emulator, self._device = emulator, device
        self._mean, self._basis = emulator.mean.to(device), emulator.basis.to(device)
        wavelength = windows.rest_wavelength()
        fitted = ~windows.inside(wavelength, mask)
        edges = np.flatnonzero(np.diff(fitted, prepend=False, append=False))
        self._stretches = [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
        self._basis_t = self._fitted(self._basis).T.contiguous()
        step = np.gradient(wavelength)
        self._cores = []
        for names in _LINES:
            offset = np.stack([np.log10(wavelength / air_to_vacuum(BALMER_AIR[n])) / windows.LOG_STEP for n in names])
            core = np.flatnonzero((np.abs(offset) <= CORE).any(axis=0))
            steps = torch.from_numpy(step[core].astype(np.float32))
            self._cores.append((torch.from_numpy(core).to(device), steps.to(device)))

    def judge(
        self,
        flux: np.ndarray,
        ivar: np.ndarray,
        lsf: np.ndarray,
        labels: np.ndarray,
        covariance: np.ndarray,
        chi2_red: np.ndarray,
    ) -> Residuals:
        """Judge the residuals of fits of all lines.

        Parameters
        ----------
        flux, ivar : (n, 3801) float32
            Normalized flux and inverse variance, rest frame.
        lsf : (n, 6) float64
            Line-spread coefficients [Å].
        labels, covariance, chi2_red : (n, 11), (n, 11, 11), (n,) float64
            Of the fit.

        Returns
        -------
        Residuals
        """
        emulator, device = self._emulator, self._device
        out = np.full((len(labels), len(fields(Residuals))), np.nan)
        known = np.flatnonzero(np.isfinite(labels).all(axis=1) & np.isfinite(covariance).all(axis=(1, 2)))
        slope = emulator.label_slope(labels[known])
        # In the network's units, of order one, so that doubles suffice.
        scaled = torch.from_numpy(covariance[known] * slope[:, :, None] * slope[:, None, :]).to(device)
        inputs = emulator.inputs(labels[known], lsf[known]).to(device)
        excess_scale = torch.from_numpy(np.maximum(chi2_red[known], 1.0)).to(device)
        for part, padded in blocks(len(known), rows_at_once(device), device=device):
            index = np.arange(len(known))[padded.numpy(force=True) if isinstance(padded, torch.Tensor) else padded]
            y, w = (torch.from_numpy(a[known[index]]).to(device) for a in (flux, ivar))
            found = self._block(y, w, inputs[padded], scaled[padded], excess_scale[padded])
            out[known[part]] = found[: part.stop - part.start].cpu().numpy()
        return Residuals(*out.T)

    def _block(self, flux, ivar, inputs, covariance, scale) -> torch.Tensor:
        stack = self._emulator.coefficients_and_tangents(inputs)
        tangents = stack[:, 1:]
        model = torch.addmm(self._mean, stack[:, 0].float(), self._basis)
        residual = torch.where(ivar > 0, flux - model, 0.0)
        seen = self._fitted(model)
        # What enters repeats the edge.
        wide = torch.nn.functional.pad(model, (_REACH, _REACH), mode="replicate")
        # A core with a pixel missing has no equivalent width.
        excess, error = (torch.full((len(flux), 2), torch.nan, dtype=torch.float64, device=flux.device) for _ in "12")
        for i, (core, step) in enumerate(self._cores):
            variance = step**2 @ (1 / ivar[:, core]).T
            whole = variance.isfinite()
            excess[whole, i] = (residual[:, core] @ step)[whole].double()
            error[whole, i] = variance[whole].sqrt().double()

        # Toward the red by v: the model takes the value it had at a shorter wavelength. The residual comes last.
        companions = (self._fitted(wide, _REACH - k) - seen for k in COMPANION_SHIFTS)
        patterns = [self._fitted(_derivative(model)) / -PIXEL, *companions, self._fitted(residual)]
        patterns = torch.stack(patterns, dim=1)
        weighted = patterns * self._fitted(ivar)[:, None]
        toward = (weighted.flatten(0, 1) @ self._basis_t).view(*weighted.shape[:2], -1)
        slope = toward.double() @ tangents.double().transpose(1, 2)
        matrix = (weighted @ patterns.transpose(1, 2)).double() - slope @ covariance @ slope.transpose(1, 2)
        right, matrix = matrix[:, :-1, -1], matrix[:, :-1, :-1]

        own = matrix[:, 0, 0]
        shift = torch.where(own > 0, right[:, 0] / own, torch.nan)
        # The companion's pattern, less what a shift of the whole spectrum would do.
        cross = matrix[:, 1:, 0] / own[:, None]
        rest = right[:, 1:] - cross * right[:, :1]
        size = matrix[:, 1:, 1:].diagonal(dim1=1, dim2=2) - cross * matrix[:, 1:, 0]
        gain = torch.where((rest > 0) & (size > 0), rest**2 / size, 0.0)
        score = torch.where(own > 0, gain.amax(dim=1), torch.nan) / scale
        own_error = torch.where(own > 0, own.rsqrt(), torch.nan)
        columns = (excess[:, 0], error[:, 0], excess[:, 1], error[:, 1], shift, own_error, score)
        return torch.stack(columns, dim=1)

    def _fitted(self, values: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Fitted pixels of (n, 3801 or more) values that begin at column ``first``, one stretch behind the other."""
        return torch.cat([values[:, first + a : first + b] for a, b in self._stretches], dim=1)


def _derivative(flux: torch.Tensor) -> torch.Tensor:
    """Change of (n, p) samples per pixel."""
    out = torch.zeros_like(flux)
    for k, weight in _DERIVATIVE.items():
        out[:, 4:-4] += weight * (flux[:, 4 + k : flux.shape[1] - 4 + k] - flux[:, 4 - k : -4 - k])
    return out
