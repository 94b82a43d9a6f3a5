"""The fits one would make without hotdask: scipy on one spectrum at a time, and where its valleys end."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit, least_squares

from hotdask.emulator import LowRankEmulator
from hotdask.labels import N_LABELS

PAYNE_TOLERANCE = 5e-4
"""ftol and xtol in The_Payne's fitting.py."""
HONEST_TOLERANCE = 1e-8
REFERENCE_TOLERANCE = 1e-10


class Model(Protocol):
    """A star's normalized flux at some pixels as a function of scaled labels, and its derivatives (n_pixel, 11)."""

    def flux(self, x: np.ndarray) -> np.ndarray: ...
    def jacobian(self, x: np.ndarray) -> np.ndarray: ...
    def only(self, pixels: np.ndarray) -> "Model": ...


class Network:
    """The emulator's forward pass for one spectrum, as one would write it in numpy; LSF fixed."""

    def __init__(self, emulator: LowRankEmulator, lsf: np.ndarray, pixels: np.ndarray):
        a = {name: array.astype(np.float64) for name, array in emulator.arrays.items()}
        self.w1, self.w2, self.w3 = a["weight1"][:, :N_LABELS].copy(), a["weight2"], a["weight3"]
        self.b1 = a["bias1"] + a["weight1"][:, N_LABELS:] @ emulator.scale_lsf(lsf).numpy()
        self.b2, self.b3 = a["bias2"], a["bias3"]
        self.mean, self.basis = a["mean"][pixels], a["basis"][:, pixels].copy()

    def only(self, pixels: np.ndarray) -> "Network":
        """The same network for a part of its pixels."""
        other = object.__new__(Network)
        other.__dict__ = {**self.__dict__, "mean": self.mean[pixels], "basis": self.basis[:, pixels]}
        return other

    def flux(self, x: np.ndarray) -> np.ndarray:
        """Flux at scaled labels, (n_pixel,)."""
        hidden = silu(self.w1 @ x + self.b1)
        hidden = silu(self.w2 @ hidden + self.b2)
        return self.mean + (self.w3 @ hidden + self.b3) @ self.basis

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        """d flux / d scaled label, (n_pixel, 11)."""
        z1 = self.w1 @ x + self.b1
        z2 = self.w2 @ silu(z1) + self.b2
        tangents = silu_slope(z2)[:, None] * (self.w2 @ (silu_slope(z1)[:, None] * self.w1))
        return ((self.w3 @ tangents).T @ self.basis).T


def silu(z: np.ndarray) -> np.ndarray:
    return z / (1 + np.exp(-z))


def silu_slope(z: np.ndarray) -> np.ndarray:
    sigmoid = 1 / (1 + np.exp(-z))
    return sigmoid * (1 + z * (1 - sigmoid))


def payne_fit(network: Model, flux: np.ndarray, ivar: np.ndarray, x0: np.ndarray, *, method: str = "lm") -> np.ndarray:
    """Finite differences, all pixels, loose tolerance; the default method is curve_fit's own without bounds."""
    with np.errstate(divide="ignore"), warnings.catch_warnings(action="ignore", category=OptimizeWarning):
        sigma = 1 / np.sqrt(ivar)
        try:
            return curve_fit(
                lambda _, *x: network.flux(np.array(x)),
                xdata=[],
                ydata=flux,
                p0=x0,
                sigma=sigma,
                absolute_sigma=True,
                method=method,
                ftol=PAYNE_TOLERANCE,
                xtol=PAYNE_TOLERANCE,
            )[0]
        except RuntimeError:
            return np.full(N_LABELS, np.nan)


def honest_fit(
    network: Model, flux: np.ndarray, ivar: np.ndarray, x0: np.ndarray, *, tolerance: float = HONEST_TOLERANCE, **how
) -> np.ndarray:
    """Analytic Jacobian, bad pixels dropped, tight tolerance."""
    good = np.flatnonzero(ivar > 0)
    network, weight = network.only(good), np.sqrt(ivar[good])
    return least_squares(
        lambda x: weight * (network.flux(x) - flux[good]),
        x0,
        jac=lambda x: weight[:, None] * network.jacobian(x),
        ftol=tolerance,
        xtol=tolerance,
        gtol=tolerance,
        **how,
    ).x


@dataclass(frozen=True)
class Peers:
    """The first spectra as the peers take them: the fitted pixels only, in double precision.

    ``limits`` are of scaled labels.
    """

    network: Model
    flux: np.ndarray
    ivar: np.ndarray
    limits: tuple[np.ndarray, np.ndarray]

    def each(self, fit: Callable[..., np.ndarray], start: np.ndarray, **options) -> np.ndarray:
        """Scaled labels where fits of each spectrum end, from scaled labels."""
        return np.array(
            [fit(self.network, *spectrum, **options) for spectrum in zip(self.flux, self.ivar, start, strict=True)]
        )

    def chi2(self, x: np.ndarray) -> np.ndarray:
        """χ² of each spectrum at scaled labels."""
        models = np.array([self.network.flux(row) for row in x])
        return np.sum(self.ivar * (models - self.flux) ** 2, axis=1)

    def only(self, rows: np.ndarray) -> "Peers":
        return Peers(self.network, self.flux[rows], self.ivar[rows], self.limits)


def make_peers(network: Model, pixels: np.ndarray, flux, ivar, limits, emulator, n: int) -> Peers:
    """Peers of the first n of normalized spectra (…, 3801), with limits of labels as `Fitter.limits` has them."""
    flux, ivar = (array[np.ix_(np.arange(n), pixels)].astype(np.float64) for array in (flux, ivar))
    return Peers(network, flux, ivar, tuple(emulator.scale_labels(limit).numpy() for limit in limits))


def reference_fit(network: Model, flux, ivar, x0, *, limits) -> np.ndarray:
    """As tight as it gets, within limits."""
    x0 = np.clip(x0, *limits)
    return honest_fit(network, flux, ivar, x0, tolerance=REFERENCE_TOLERANCE, bounds=limits, x_scale="jac")


def distance_to_minimum(peers: Peers, end: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Largest distance over the labels to the minimum reached from ``end`` by scipy, in σ of the label."""
    distance = []
    for i in np.flatnonzero(judged):
        bottom = honest_fit(peers.network, peers.flux[i], peers.ivar[i], end[i], tolerance=1e-12)
        jacobian = peers.network.jacobian(bottom) * np.sqrt(peers.ivar[i])[:, None]
        sigma = np.sqrt(np.diagonal(np.linalg.inv(jacobian.T @ jacobian)))
        distance.append(np.max(np.abs(end[i] - bottom) / sigma))
    return np.array(distance or [np.nan])
