"""The low-rank emulator: labels and line spread → a small network → K coefficients → a basis of 3801 pixels.

All of a spectrum's dependence on its labels passes through K numbers, which is what makes fitting fast: χ² is an exact
quadratic form of them, and pixels need to be read only once (see `hotdask.steps.fit`).
"""

import functools
from collections.abc import Mapping

import numpy as np
import torch

from hotdask import windows
from hotdask.emulator.broadening import FWHM, lsf_sigma, mean_lsf
from hotdask.labels import ABUNDANCES, INDEX, N_LABELS

ARRAYS = (
    *("mean", "basis", "input_center", "input_scale"),
    *(f"{kind}{layer}" for layer in (1, 2, 3) for kind in ("weight", "bias")),
    *("hull", "label_low", "label_high"),
)


class LowRankEmulator:
    """Normalized flux of a star as a function of its labels.

    Parameters
    ----------
    arrays : mapping of str to array
        `ARRAYS`, float32 (hull and label ranges float64).
    card : mapping
        What it was trained on and how well it does; JSON values.
    id : str
        Hash of the file it came from; empty if it was never stored.

    Notes
    -----
    Network inputs are labels and line-spread coefficients, Teff as log10, minus a center, over a scale.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], card: Mapping, *, id: str = ""):
        self.arrays = {name: np.asarray(arrays[name]) for name in ARRAYS}
        self.card = dict(card)
        self.id = id
        self.mean = torch.from_numpy(self.arrays["mean"].astype(np.float32))
        self.basis = torch.from_numpy(self.arrays["basis"].astype(np.float32))
        self._center = torch.from_numpy(self.arrays["input_center"].astype(np.float64))
        self._scale = torch.from_numpy(self.arrays["input_scale"].astype(np.float64))

    @property
    def n_basis(self) -> int:
        """K, the number of coefficients."""
        return self.basis.shape[0]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - an emulator lives as long as the process
    def _layers(self, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            (torch.from_numpy(self.arrays[f"weight{i}"]).to(dtype), torch.from_numpy(self.arrays[f"bias{i}"]).to(dtype))
            for i in (1, 2, 3)
        ]

    def scale_labels(self, labels: np.ndarray) -> torch.Tensor:
        """(n, 11) labels [K, dex, km/s, …] as float64 network inputs."""
        labels = torch.from_numpy(np.array(labels, dtype=np.float64))
        labels[..., 0] = torch.log10(labels[..., 0])
        return (labels - self._center[:N_LABELS]) / self._scale[:N_LABELS]

    def unscale_labels(self, x: torch.Tensor) -> np.ndarray:
        """Inverse of `scale_labels`."""
        labels = x.double() * self._scale[:N_LABELS] + self._center[:N_LABELS]
        labels[..., 0] = 10 ** labels[..., 0]
        return labels.numpy()

    def scale_lsf(self, lsf: np.ndarray) -> torch.Tensor:
        """(n, 6) line-spread coefficients [Å] as float64 network inputs."""
        lsf = torch.from_numpy(np.array(lsf, dtype=np.float64))
        return (lsf - self._center[N_LABELS:]) / self._scale[N_LABELS:]

    def label_slope(self, labels: np.ndarray) -> np.ndarray:
        """d(network input)/d(label), (n, 11): turns scaled Jacobians and covariances into physical ones."""
        slope = np.broadcast_to(1 / self._scale[:N_LABELS].numpy(), np.shape(labels)).copy()
        slope[..., 0] /= np.log(10) * np.asarray(labels)[..., 0]
        return slope

    def coefficients(self, inputs: torch.Tensor) -> torch.Tensor:
        """(n, K) coefficients of (n, 17) scaled inputs, in the inputs' precision."""
        (w1, b1), (w2, b2), (w3, b3) = self._layers(inputs.dtype)
        hidden = torch.nn.functional.silu(torch.addmm(b1, inputs, w1.T))
        hidden = torch.nn.functional.silu(torch.addmm(b2, hidden, w2.T))
        return torch.addmm(b3, hidden, w3.T)

    def coefficients_and_tangents(self, inputs: torch.Tensor) -> torch.Tensor:
        """(n, 12, K): the coefficients, then their derivatives to each scaled label.

        One matrix product a layer carries the value and its eleven tangents together.
        """
        (w1, b1), (w2, b2), (w3, b3) = self._layers(inputs.dtype)
        value, slope = _silu(torch.addmm(b1, inputs, w1.T))
        stack = value.new_empty(len(value), 1 + N_LABELS, value.shape[1])
        stack[:, 0] = value
        torch.mul(slope[:, None], w1.T[:N_LABELS], out=stack[:, 1:])
        stack = stack @ w2.T
        value, slope = _silu(stack[:, 0] + b2)
        stack[:, 0] = value
        stack[:, 1:] *= slope[:, None]
        stack = stack @ w3.T
        stack[:, 0] += b3
        return stack

    def _inputs(self, labels: np.ndarray, lsf: np.ndarray | None) -> torch.Tensor:
        labels = np.atleast_2d(labels)
        lsf = np.broadcast_to(mean_lsf() if lsf is None else lsf, (len(labels), 6))
        return torch.cat([self.scale_labels(labels), self.scale_lsf(lsf)], dim=1)

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
        return (self.mean + self.coefficients(self._inputs(labels, lsf)).float() @ self.basis).numpy()

    def flux_and_jacobian(self, labels: np.ndarray, lsf: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Normalized flux, and its exact derivative to each label.

        Returns
        -------
        flux : (n, 3801) float32
        jacobian : (n, 11, 3801) float32
            Per unit of each label (K, dex, km/s, …).
        """
        labels = np.atleast_2d(labels)
        stack = self.coefficients_and_tangents(self._inputs(labels, lsf))
        slope = torch.from_numpy(self.label_slope(labels))
        flux = self.mean + stack[:, 0].float() @ self.basis
        return flux.numpy(), ((stack[:, 1:] * slope[..., None]).float() @ self.basis).numpy()

    def outside_lsf(self, lsf: np.ndarray) -> np.ndarray:
        """Whether line-spread coefficients (n, 6) [Å] are sharper or broader than any learned, (n,) bool."""
        low, high = self.card["training"]["resolving_power"]
        wavelength = windows.rest_wavelength()[::100]
        power = wavelength / (FWHM * lsf_sigma(wavelength, lsf))
        # A hundredth of grace: R = 2300 as the user computes it is still R = 2300.
        return ((power < 0.99 * low) | (power > 1.01 * high)).any(axis=1)

    def outside(self, labels: np.ndarray, lsf: np.ndarray | None = None) -> np.ndarray:
        """Whether labels lie outside the library: an extrapolation.

        Teff and log g are judged together by the convex hull of the library in (log Teff, log g); [X/Fe], vmic and
        helium by their ranges; vsini by its upper end (a negative one has a flag of its own).

        Parameters
        ----------
        labels : (n, 11) float64
        lsf : (n, 6) float64, optional
            Line-spread coefficients [Å]; beyond those learned is outside too.

        Returns
        -------
        (n,) bool; NaN labels are not outside.
        """
        labels = np.atleast_2d(np.asarray(labels, dtype=np.float64))
        a, b, c = self.arrays["hull"].T
        plane = np.log10(labels[:, :1]) * a + labels[:, 1:2] * b + c
        judged = relative_to_iron(labels)
        beyond = (judged < self.arrays["label_low"]) | (judged > self.arrays["label_high"])
        outside = (plane > 1e-9).any(axis=1) | beyond.any(axis=1)
        return outside if lsf is None else outside | self.outside_lsf(lsf)


def relative_to_iron(labels: np.ndarray) -> np.ndarray:
    """Labels with [X/H] turned into [X/Fe], the scale on which a library is sampled; [Fe/H] stays.

    Examples
    --------
    >>> relative_to_iron(np.full((1, 11), -1.0))[0, -6:].tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, -1.0]
    """
    out = np.array(labels, dtype=np.float64)
    relative = [INDEX[name] for name in ABUNDANCES if name != "fe_h"]
    out[..., relative] -= out[..., [INDEX["fe_h"]]]
    return out


def _silu(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """z·sigmoid(z) and its derivative."""
    sigmoid = torch.sigmoid(z)
    value = z * sigmoid
    return value, sigmoid + value * (1 - sigmoid)


def pixel_grid() -> dict[str, float]:
    """The grid an emulator is made for, as stored in its file."""
    return {"log_start": windows.REST_LOG_START, "log_step": windows.LOG_STEP, "n_pixel": windows.N_REST}
