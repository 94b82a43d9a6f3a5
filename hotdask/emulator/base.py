"""What every emulator offers, and what all architectures share: scaled inputs and the bounds of the library."""

import functools
from collections.abc import Mapping
from typing import ClassVar, Protocol

import numpy as np
import torch

from hotdask import windows
from hotdask.emulator.broadening import lsf_sigma, mean_lsf
from hotdask.errors import InputError
from hotdask.labels import INDEX, N_LABELS, RELATIVE
from hotdask.windows import FWHM

SHARED_ARRAYS = {
    "input_center": (17,),
    "input_scale": (17,),
    "hull": ("plane", 3),
    "label_low": (N_LABELS,),
    "label_high": (N_LABELS,),
}
"""Arrays of every emulator file and their shapes; a name stands for a size that the arrays must agree on."""
_ROUNDING = 1e-9
"""Distance [spreads] that is still the border: the hull's corners are known no better."""


class Emulator(Protocol):
    """Normalized flux of a star as a function of its labels, whatever computes it.

    Attributes
    ----------
    card : dict
        What it was trained on and how well it does; JSON values.
    id : str
        First 16 hex digits of the SHA-256 of its file; empty if it was never stored.
    """

    card: dict
    id: str

    def flux(self, labels: np.ndarray, lsf: np.ndarray | None = None) -> np.ndarray:
        """(n, 3801) float32 normalized flux of (n, 11) labels and (n, 6) or (6,) line-spread coefficients [Å]."""

    def flux_and_jacobian(self, labels: np.ndarray, lsf: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The flux, and (n, 11, 3801) float32 its exact derivative per unit of each label."""

    def label_slope(self, labels: np.ndarray) -> np.ndarray:
        """d(network input)/d(label), (n, 11)."""

    def distance(self, labels: np.ndarray) -> np.ndarray:
        """Signed distance to the border of the library, (n,) float64, negative inside."""

    def outside(self, labels: np.ndarray, lsf: np.ndarray | None = None) -> np.ndarray:
        """Whether labels lie outside the library, (n,) bool."""

    def outside_lsf(self, lsf: np.ndarray) -> np.ndarray:
        """Whether line-spread coefficients (n, 6) lie outside those learned, (n,) bool."""


class LibraryEmulator:
    """Scaling of labels and line spread, and the bounds of the library; architectures derive from it.

    Parameters
    ----------
    arrays : mapping of str to array
        Those named in ``ARRAYS``.
    card : mapping
        What it was trained on and how well it does; JSON values.
    id : str
        Hash of the file it came from; empty if it was never stored.

    Notes
    -----
    Network inputs are labels and line-spread coefficients, Teff as log10, minus a center, over a scale.
    """

    FORMAT: ClassVar[str]
    ARRAYS: ClassVar[dict[str, tuple]]

    def __init__(self, arrays: Mapping[str, np.ndarray], card: Mapping, *, id: str = ""):
        self.arrays = {name: np.asarray(arrays[name]) for name in self.ARRAYS}
        self.card = dict(card)
        self.id = id
        self._center = torch.from_numpy(self.arrays["input_center"].astype(np.float64))
        self._scale = torch.from_numpy(self.arrays["input_scale"].astype(np.float64))

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

    def scaled_teff(self, teff: float) -> float:
        """Where a temperature [K] lies among network inputs."""
        return float((np.log10(teff) - self._center[0]) / self._scale[0])

    def scale_lsf(self, lsf: np.ndarray) -> torch.Tensor:
        """(n, 6) line-spread coefficients [Å] as float64 network inputs."""
        lsf = torch.from_numpy(np.array(lsf, dtype=np.float64))
        return (lsf - self._center[N_LABELS:]) / self._scale[N_LABELS:]

    def label_slope(self, labels: np.ndarray) -> np.ndarray:
        """d(network input)/d(label), (n, 11): turns scaled Jacobians and covariances into physical ones."""
        slope = np.broadcast_to(1 / self._scale[:N_LABELS].numpy(), np.shape(labels)).copy()
        slope[..., 0] /= np.log(10) * np.asarray(labels)[..., 0]
        return slope

    def inputs(self, labels: np.ndarray, lsf: np.ndarray | None = None) -> torch.Tensor:
        """(n, 17) float64 network inputs; the line spread defaults to R = 1800 in both arms."""
        labels = np.atleast_2d(labels)
        lsf = np.broadcast_to(mean_lsf() if lsf is None else lsf, (len(labels), 6))
        return torch.cat([self.scale_labels(labels), self.scale_lsf(lsf)], dim=1)

    def outside_lsf(self, lsf: np.ndarray) -> np.ndarray:
        """Whether line-spread coefficients (n, 6) [Å] are sharper or broader than any learned, (n,) bool."""
        low, high = self.card["training"]["resolving_power"]
        wavelength = windows.rest_wavelength()[::100]
        power = wavelength / (FWHM * lsf_sigma(wavelength, lsf))
        # A hundredth of grace: R = 2300 as the user computes it is still R = 2300.
        return ((power < 0.99 * low) | (power > 1.01 * high)).any(axis=1)

    @functools.cached_property
    def _spread(self) -> np.ndarray:
        low, high = self.arrays["label_low"].copy(), self.arrays["label_high"].copy()
        low[INDEX["vsini"]] = 0
        low[0], high[0] = np.log10([low[0], high[0]])
        # The standard deviation of a uniform distribution; a label the library does not vary has no scale of its own.
        return np.where(high > low, (high - low) / np.sqrt(12), 1.0)

    @functools.cached_property
    def _corners(self) -> np.ndarray:
        return polygon_corners(self.arrays["hull"] * [*self._spread[:2], 1.0])

    def distance(self, labels: np.ndarray) -> np.ndarray:
        """Signed distance of labels to the border of the library.

        The library is the product of the convex hull in (log Teff, log g) and of the ranges of the other labels, with
        [X/Fe] for abundances; vsini ends at its upper end only (a negative one has a flag of its own). The unit is the
        library's spread of each label: its range over √12, the standard deviation if it is uniform.

        Parameters
        ----------
        labels : (n, 11) float64

        Returns
        -------
        (n,) float64
            0 on the border; outside, the Euclidean distance to the nearest point of the library; inside, minus the
            distance to the nearest border. NaN where a label is.
        """
        labels = np.atleast_2d(np.asarray(labels, dtype=np.float64))
        judged = relative_to_iron(labels)
        below = (self.arrays["label_low"] - judged)[:, 2:] / self._spread[2:]
        above = (judged - self.arrays["label_high"])[:, 2:] / self._spread[2:]
        plane = np.column_stack([np.log10(labels[:, 0]), labels[:, 1]]) / self._spread[:2]
        parts = np.column_stack([polygon_distance(plane, self._corners), np.maximum(below, above)])
        farthest = parts.max(axis=1)
        return np.where(farthest > 0, np.linalg.norm(np.clip(parts, 0, None), axis=1), farthest)

    def outside(self, labels: np.ndarray, lsf: np.ndarray | None = None) -> np.ndarray:
        """Whether labels lie outside the library, `distance` > 0: an extrapolation.

        Parameters
        ----------
        labels : (n, 11) float64
        lsf : (n, 6) float64, optional
            Line-spread coefficients [Å]; beyond those learned is outside too.

        Returns
        -------
        (n,) bool; NaN labels are not outside.
        """
        outside = self.distance(labels) > _ROUNDING
        return outside if lsf is None else outside | self.outside_lsf(lsf)


def relative_to_iron(labels: np.ndarray) -> np.ndarray:
    """Labels with [X/H] turned into [X/Fe], the scale on which a library is sampled; [Fe/H] stays.

    Examples
    --------
    >>> relative_to_iron(np.full((1, 11), -1.0))[0, -6:].tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, -1.0]
    """
    out = np.array(labels, dtype=np.float64)
    relative = [INDEX[name] for name in RELATIVE.values()]
    out[..., relative] -= out[..., [INDEX["fe_h"]]]
    return out


def polygon_corners(half_planes: np.ndarray) -> np.ndarray:
    """Corners, counterclockwise, of the convex polygon a·x + b·y + c ≤ 0.

    Parameters
    ----------
    half_planes : (m, 3) float64
        a, b, c of each side; every one must be a side of the polygon.

    Returns
    -------
    (k, 2) float64, k ≤ m: parallel copies of a side count once.

    Examples
    --------
    >>> polygon_corners(np.array([[1, 0, -1], [-1, 0, 0], [0, 1, -1], [0, -1, 0.0]])).round(9).tolist()
    [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    """
    sides = half_planes / np.hypot(half_planes[:, 0], half_planes[:, 1])[:, None]
    angle = np.arctan2(sides[:, 1], sides[:, 0])
    order = np.argsort(angle)
    sides, angle = sides[order], angle[order]
    # Where a hull's corner touches a side, the side may come in two pieces whose crossing is anywhere along it.
    sides = sides[np.diff(angle, prepend=angle[-1] - 2 * np.pi) > 1e-7]
    following = np.roll(sides, -1, axis=0)
    corners = np.linalg.solve(
        np.stack([sides[:, :2], following[:, :2]], axis=1), -np.stack([sides[:, 2], following[:, 2]], axis=1)[..., None]
    )[..., 0]
    return np.roll(corners, -int(np.argmin(corners.sum(axis=1))), axis=0)


def polygon_distance(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed Euclidean distance of (n, 2) points to a convex polygon of counterclockwise corners, negative inside.

    Examples
    --------
    >>> square = np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]])
    >>> polygon_distance(np.array([[0.5, 0.5], [2, 0.5], [4, 5], [1, 1]]), square).tolist()
    [-0.5, 1.0, 5.0, 0.0]
    """
    side = np.roll(corners, -1, axis=0) - corners
    offset = points[:, None] - corners
    share = np.clip((offset * side).sum(axis=-1) / (side**2).sum(axis=-1), 0, 1)
    nearest = np.linalg.norm(offset - share[..., None] * side, axis=-1).min(axis=1)
    right_of = offset[..., 0] * side[:, 1] - offset[..., 1] * side[:, 0]
    # Plus zero, because minus zero prints as such.
    return np.where((right_of <= 0).all(axis=1), -nearest, nearest) + 0.0


def require_device(device: str) -> None:
    """Refuse a device that torch does not have.

    Raises
    ------
    InputError
        If a CUDA device is asked for and there is none.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: torch sees no CUDA device here; use 'cpu'")


def pixel_grid() -> dict[str, float]:
    """The grid an emulator is made for, as stored in its file."""
    return {"log_start": windows.REST_LOG_START, "log_step": windows.LOG_STEP, "n_pixel": windows.N_REST}
