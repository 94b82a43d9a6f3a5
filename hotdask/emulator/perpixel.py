"""The per-pixel emulator: for each of 3801 pixels its own small network of labels and line spread.

Pixels know nothing of one another, so all is done for a chunk of pixels at a time, whose networks are three batched
matrix products.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from hotdask import windows
from hotdask.emulator.base import SHARED_ARRAYS, LibraryEmulator, require_device
from hotdask.labels import N_LABELS

_ACTIVATIONS = 2**22
"""Numbers a layer's activations may hold at once: 16 MB."""


class PerPixelEmulator(LibraryEmulator):
    """Normalized flux of a star as a function of its labels, pixel by pixel.

    Parameters
    ----------
    arrays : mapping of str to array
        `ARRAYS`, float32 (hull and label ranges float64).
    card : mapping
        What it was trained on and how well it does; JSON values.
    id : str
        Hash of the file it came from; empty if it was never stored.
    device : str
        Where the networks are evaluated, ``cpu`` or ``cuda``.

    Attributes
    ----------
    layers : list of tensor
        weight1, bias1, weight2, bias2, weight3, bias3 on the device, float32, shapes as in `forward`.

    Raises
    ------
    InputError
        If there is no such device.

    References
    ----------
    Xiang et al. 2022, §4.2: 17 → 100 → 100 → 1 with sigmoids.
    """

    FORMAT = "hotdask-perpixel-1"
    ARRAYS = {  # noqa: RUF012 - declared in the base class
        "weight1": (windows.N_REST, "hidden", 17),
        "bias1": (windows.N_REST, "hidden"),
        "weight2": (windows.N_REST, "hidden", "hidden"),
        "bias2": (windows.N_REST, "hidden"),
        "weight3": (windows.N_REST, "hidden"),
        "bias3": (windows.N_REST,),
        **SHARED_ARRAYS,
    }

    def __init__(self, arrays: Mapping[str, np.ndarray], card: Mapping, *, id: str = "", device: str = "cpu"):
        super().__init__(arrays, card, id=id)
        require_device(device)
        self.device = torch.device(device)
        layers = [torch.from_numpy(self.arrays[f"{kind}{i}"]) for i in (1, 2, 3) for kind in ("weight", "bias")]
        self.layers = [layer.to(self.device, torch.float32) for layer in layers]

    def _chunks(self, labels: np.ndarray, lsf: np.ndarray | None) -> Iterator[tuple[slice, slice, list, list]]:
        """Rows, pixels, their layers, and what `_forward` gives there."""
        inputs = self.inputs(labels, lsf).to(self.device, torch.float32)
        n_pixel, hidden = self.layers[1].shape
        # Enough spectra per product to keep it busy; the rest of the room goes to pixels.
        n_row = min(len(inputs), 1024)
        n_chunk = max(1, _ACTIVATIONS // (n_row * hidden))
        for row in range(0, len(inputs), n_row):
            rows = slice(row, row + n_row)
            for start in range(0, n_pixel, n_chunk):
                pixels = slice(start, start + n_chunk)
                layers = [layer[pixels] for layer in self.layers]
                yield rows, pixels, layers, forward(layers, inputs[rows])

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
        """
        out = np.empty((len(np.atleast_2d(labels)), windows.N_REST), dtype=np.float32)
        for rows, pixels, _, (_, _, value) in self._chunks(labels, lsf):
            out[rows, pixels] = value.cpu().numpy()
        return out

    def flux_and_jacobian(self, labels: np.ndarray, lsf: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Normalized flux, and its exact derivative to each label.

        Returns
        -------
        flux : (n, 3801) float32
        jacobian : (n, 11, 3801) float32
            Per unit of each label (K, dex, km/s, …).
        """
        labels = np.atleast_2d(labels)
        flux = np.empty((len(labels), windows.N_REST), dtype=np.float32)
        jacobian = np.empty((len(labels), N_LABELS, windows.N_REST), dtype=np.float32)
        slope = self.label_slope(labels).astype(np.float32)[..., None]
        for rows, pixels, layers, (one, two, value) in self._chunks(labels, lsf):
            weight1, _, weight2, _, weight3, _ = layers
            # One output per network: backward costs one product a layer, forward one for each of eleven labels.
            back = torch.bmm(weight3[:, None] * two * (1 - two), weight2) * one * (1 - one)
            back = torch.bmm(back, weight1[..., :N_LABELS]).permute(1, 2, 0)
            flux[rows, pixels] = value.cpu().numpy()
            jacobian[rows, :, pixels] = back.cpu().numpy() * slope[rows]
        return flux, jacobian


def forward(layers: list[torch.Tensor], inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations of many networks of one shape on the same inputs.

    Parameters
    ----------
    layers : list of tensor
        weight1 (p, h, 17), bias1 (p, h), weight2 (p, h, h), bias2 (p, h), weight3 (p, h), bias3 (p,).
    inputs : (n, 17) tensor

    Returns
    -------
    one, two : (p, n, h)
        After the first and the second sigmoid.
    value : (n, p)
    """
    weight1, bias1, weight2, bias2, weight3, bias3 = layers
    one = torch.baddbmm(bias1[:, None], inputs.expand(len(bias3), -1, -1), weight1.transpose(1, 2)).sigmoid()
    two = torch.baddbmm(bias2[:, None], one, weight2.transpose(1, 2)).sigmoid()
    value = torch.baddbmm(bias3[:, None, None], two, weight3[..., None])[..., 0].T
    return one, two, value
