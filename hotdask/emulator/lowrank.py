"""The low-rank emulator: labels and line spread → a small network → K coefficients → a basis of 3801 pixels.

All of a spectrum's dependence on its labels passes through K numbers, which is what makes fitting fast: χ² is an exact
quadratic form of them, and pixels need to be read only once (see `hotdask.steps.fit`).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from hotdask import windows
from hotdask.emulator.base import SHARED_ARRAYS, LibraryEmulator
from hotdask.labels import N_LABELS

N_FEATURES = 8
"""Inputs of the inverse network besides the coefficients: level of S/N, whether hydrogen is masked, line spread."""


class LowRankEmulator(LibraryEmulator):
    """Normalized flux of a star as a function of its labels, through K coefficients of a basis.

    Parameters
    ----------
    arrays : mapping of str to array
        `ARRAYS`, float32 (hull and label ranges float64).
    card : mapping
        What it was trained on and how well it does; JSON values.
    id : str
        Hash of the file it came from; empty if it was never stored.
    """

    FORMAT = "hotdask-lowrank-1"
    ARRAYS = {  # noqa: RUF012 - declared in the base class
        "mean": (windows.N_REST,),
        "basis": ("basis", windows.N_REST),
        "weight1": ("hidden", 17),
        "bias1": ("hidden",),
        "weight2": ("hidden", "hidden"),
        "bias2": ("hidden",),
        "weight3": ("basis", "hidden"),
        "bias3": ("basis",),
        "inverse_weight1": ("inverse", "feature"),
        "inverse_bias1": ("inverse",),
        "inverse_weight2": ("inverse", "inverse"),
        "inverse_bias2": ("inverse",),
        "inverse_weight3": (2 * N_LABELS, "inverse"),
        "inverse_bias3": (2 * N_LABELS,),
        **SHARED_ARRAYS,
    }

    def __init__(self, arrays: Mapping[str, np.ndarray], card: Mapping, *, id: str = ""):
        super().__init__(arrays, card, id=id)
        self.mean = torch.from_numpy(self.arrays["mean"].astype(np.float32))
        self.basis = torch.from_numpy(self.arrays["basis"].astype(np.float32))

    @property
    def n_basis(self) -> int:
        """K, the number of coefficients."""
        return self.basis.shape[0]

    @functools.lru_cache(maxsize=8)  # noqa: B019 - an emulator lives as long as the process
    def _layers(
        self, dtype: torch.dtype, device: torch.device, prefix: str = ""
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            tuple(
                torch.from_numpy(self.arrays[f"{prefix}{kind}{i}"]).to(device, dtype, copy=True)
                for kind in ("weight", "bias")
            )
            for i in (1, 2, 3)
        ]

    def coefficients(self, inputs: torch.Tensor) -> torch.Tensor:
        """(n, K) coefficients of (n, 17) scaled inputs, in the inputs' precision."""
        (w1, b1), (w2, b2), (w3, b3) = self._layers(inputs.dtype, inputs.device)
        hidden = torch.nn.functional.silu(torch.addmm(b1, inputs, w1.T))
        hidden = torch.nn.functional.silu(torch.addmm(b2, hidden, w2.T))
        return torch.addmm(b3, hidden, w3.T)

    def coefficients_and_tangents(self, inputs: torch.Tensor) -> torch.Tensor:
        """(n, 12, K): the coefficients, then their derivatives to each scaled label."""
        return self.expand(inputs)[0]

    def expand(self, inputs: torch.Tensor) -> tuple[torch.Tensor, "Bends"]:
        """Coefficients to second order.

        Parameters
        ----------
        inputs : (n, 17) tensor

        Returns
        -------
        (n, 12, K) tensor
            The coefficients, then their derivatives to each scaled label. One matrix product a layer carries the value
            and its eleven tangents together.
        Bends
            What `curvature` needs.
        """
        (w1, b1), (w2, b2), (w3, b3) = self._layers(inputs.dtype, inputs.device)
        value, slope, bend1 = _silu(torch.addmm(b1, inputs, w1.T))
        stack = value.new_empty(len(value), 1 + N_LABELS, value.shape[1])
        stack[:, 0] = value
        torch.mul(slope[:, None], w1.T[:N_LABELS], out=stack[:, 1:])
        inner = stack @ w2.T
        value, slope, bend2 = _silu(inner[:, 0] + b2)
        torch.mul(inner, slope[:, None], out=stack)
        stack[:, 0] = value
        out = stack @ w3.T
        out[:, 0] += b3
        return out, Bends(inner[:, 1:], slope, bend1, bend2)

    def curvature(self, bends: "Bends", along: torch.Tensor) -> torch.Tensor:
        """Second derivatives (n, 11, 11) to scaled labels of coefficients, summed with weights ``along`` (n, K)."""
        (w1, _), (w2, _), (w3, _) = self._layers(along.dtype, along.device)
        outer = along @ w3
        inner = (outer * bends.slope) @ w2 * bends.bend1
        first = w1.T[:N_LABELS]
        pairs = (first[:, None] * first).view(N_LABELS**2, -1)
        out = (bends.tangents * (outer * bends.bend2)[:, None]) @ bends.tangents.transpose(1, 2)
        return out + (inner @ pairs.T).view(-1, N_LABELS, N_LABELS)

    @staticmethod
    def inverse_features(
        shrunk: torch.Tensor, level: torch.Tensor, masked: torch.Tensor, lsf: torch.Tensor
    ) -> torch.Tensor:
        """Inputs of `read_off`, (n, K + N_FEATURES).

        Parameters
        ----------
        shrunk : (n, K) tensor
            (G + 1)⁻¹ b: coefficients of data, as far as their noise leaves them.
        level : (n,) tensor
            Inverse variance, averaged over the pixels a fit of all lines uses.
        masked : (n,) bool tensor
            Whether hydrogen is masked.
        lsf : (n, 6) tensor
            Scaled line spread.
        """
        level = level.clamp(min=1e-3).log10() / 2
        return torch.cat([shrunk, level[:, None], masked[:, None].to(shrunk.dtype), lsf], dim=1)

    def read_off(self, features: torch.Tensor) -> torch.Tensor:
        """Scaled labels (n, 2, 11) guessed from `inverse_features`: if the star is cool, and if it is hot."""
        (w1, b1), (w2, b2), (w3, b3) = self._layers(features.dtype, features.device, "inverse_")
        hidden = torch.nn.functional.silu(torch.addmm(b1, features, w1.T))
        hidden = torch.nn.functional.silu(torch.addmm(b2, hidden, w2.T))
        return torch.addmm(b3, hidden, w3.T).view(-1, 2, N_LABELS)

    def flux(self, labels: np.ndarray, lsf: np.ndarray | None = None) -> np.ndarray:
        """Normalized flux.

        Parameters
        ----------
        labels : (n, 11) float64
            In the order and units of `hotdask.labels.LABELS`.
        lsf : (n, 6) or (6,) float64, optional
            Line-spread coefficients [Å]; default R = 1800 in both arms.

        Returns
        -------
        (n, 3801) float32
            On `hotdask.windows.rest_wavelength`.

        Examples
        --------
        >>> from hotdask.emulator import load_emulator
        >>> vega = [[9550, 3.95, 2, 22, 0.09, -0.2, -0.1, -0.1, -0.6, -0.1, -0.5]]
        >>> load_emulator().flux(vega).shape
        (1, 3801)
        """
        return (self.mean + self.coefficients(self.inputs(labels, lsf)).float() @ self.basis).numpy()

    def flux_and_jacobian(self, labels: np.ndarray, lsf: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Normalized flux, and its exact derivative to each label.

        Returns
        -------
        flux : (n, 3801) float32
        jacobian : (n, 11, 3801) float32
            Per unit of each label (K, dex, km/s, …).
        """
        labels = np.atleast_2d(labels)
        stack = self.coefficients_and_tangents(self.inputs(labels, lsf))
        slope = torch.from_numpy(self.label_slope(labels))
        flux = self.mean + stack[:, 0].float() @ self.basis
        return flux.numpy(), ((stack[:, 1:] * slope[..., None]).float() @ self.basis).numpy()


@dataclass(frozen=True)
class Bends:
    """How a network bends at some points: tangents before the second activation, and derivatives of activations."""

    tangents: torch.Tensor
    slope: torch.Tensor
    bend1: torch.Tensor
    bend2: torch.Tensor


def _silu(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z·sigmoid(z) and its first two derivatives."""
    sigmoid = torch.sigmoid(z)
    value = z * sigmoid
    rest = 1 - sigmoid
    return value, sigmoid + value * rest, rest * (2 * sigmoid + value * (1 - 2 * sigmoid))
