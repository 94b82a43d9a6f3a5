"""Spectra to learn from: syntheses of a library, each with a vsini and a line spread drawn for the occasion."""

from collections.abc import Iterator

import numpy as np
import torch

from hotdask import windows
from hotdask.config import Normalize
from hotdask.emulator.broadening import Broadener
from hotdask.labels import INDEX
from hotdask.library.spectra import Library
from hotdask.spectra.normalize import Normalizer
from hotdask.windows import FWHM

_CHUNK = 128
"""Syntheses transformed at once: the padded copy of a whole library would double its memory."""


def draw_vsini(rng: np.random.Generator, n: int, high: float) -> np.ndarray:
    """Rotation velocities [km/s], somewhat denser where lines are sharp and change fast."""
    return high * rng.uniform(size=n) ** 1.3


def draw_lsf(rng: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    """Line-spread coefficients (n, 6) [Å] with resolving power between ``low`` and ``high``.

    Each arm has its own resolving power, bent by up to 4 % at its ends and middle.
    """
    coefficients = []
    for pivot, (start, stop) in zip(windows.LSF_PIVOT, ((3750.0, 5900.0), (5900.0, 9000.0)), strict=True):
        wavelength = np.array([start, (start + stop) / 2, stop])
        bend = np.exp(rng.uniform(-0.04, 0.04, (n, 3)))
        power = np.exp(rng.uniform(np.log(low / 0.96), np.log(high * 0.96), (n, 1))) * bend
        sigma = wavelength / (FWHM * power)
        powers = np.vander((wavelength - pivot) / 1000, 3, increasing=True)
        coefficients.append(np.linalg.solve(powers, sigma.T).T)
    return np.hstack(coefficients)


def raw_inputs(labels: np.ndarray, lsf: np.ndarray) -> np.ndarray:
    """(n, 17) network inputs before they are centered and scaled: labels with log10 Teff, then the line spread."""
    inputs = np.hstack([labels, lsf])
    inputs[:, 0] = np.log10(inputs[:, 0])
    return inputs


class SpectrumSource:
    """Broadened, normalized spectra of a library, with fresh vsini and line spread at every draw.

    Keeps the library's Fourier transform, 32 KB a synthesis, and not its flux.

    Parameters
    ----------
    library : Library
        Unbroadened syntheses.
    normalization : hotdask.config.Normalize
        The continuum.
    resolving_power : (low, high)
        Range of λ/FWHM.
    max_vsini : float
        Upper end of vsini [km/s].
    """

    def __init__(
        self,
        library: Library,
        normalization: Normalize,
        *,
        resolving_power: tuple[float, float] = (1400.0, 2300.0),
        max_vsini: float = 500.0,
    ):
        self.labels = np.array(library.labels, dtype=np.float64)
        self._resolving_power = resolving_power
        self._max_vsini = max_vsini
        self._broadener = Broadener(library.log_start, library.flux.shape[1])
        parts = (slice(start, start + _CHUNK) for start in range(0, len(library.flux), _CHUNK))
        self._transformed = torch.cat([self._broadener.transform(library.flux[part]) for part in parts])
        self._normalizer = Normalizer(windows.rest_wavelength(), **normalization.model_dump())

    def draw(self, members: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels (n, 11), line spread (n, 6) and normalized flux (n, 3801) of library members."""
        labels = self.labels[members].copy()
        labels[:, INDEX["vsini"]] = draw_vsini(rng, len(members), self._max_vsini)
        lsf = draw_lsf(rng, len(members), *self._resolving_power)
        flux = self._broadener.broaden(self._transformed[members], labels[:, INDEX["vsini"]], lsf)
        return labels, lsf, self._normalizer.normalize(flux, np.ones_like(flux))[0]

    def draw_many(
        self, members: np.ndarray, n: int, rng: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """``n`` spectra in batches, every member as often as any other: network inputs (m, 17) and flux (m, 3801)."""
        chosen = np.concatenate([rng.permutation(members) for _ in range(-(-n // len(members)))])[:n]
        for start in range(0, n, 1024):
            labels, lsf, flux = self.draw(chosen[start : start + 1024], rng)
            yield raw_inputs(labels, lsf), flux
