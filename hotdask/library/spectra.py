"""What a synthesis gives, the grid a library keeps it on, and a library in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

LOG_START = 3.5710
"""log10 of the first wavelength [Å, vacuum] of the fine grid."""
LOG_STEP = 2e-5
N_FINE = 19216


def fine_wavelength() -> np.ndarray:
    """Centers [Å, vacuum] of the pixels a library keeps: 13.8 km/s each, 3724-9020 Å, (19216,) float64.

    Examples
    --------
    >>> fine_wavelength()[[0, -1]].round(1).tolist()
    [3723.9, 9021.9]
    """
    return 10 ** (LOG_START + LOG_STEP * np.arange(N_FINE))


@dataclass(frozen=True)
class Synthesis:
    """Spectrum of one star, without rotation or instrument.

    Attributes
    ----------
    wavelength : (n,) float64
        Vacuum wavelength [Å], increasing, covering `fine_wavelength`.
    flux : (n,) float64
        Emergent flux per unit wavelength: at the surface [erg/s/cm²/Å], or relative.
    continuum : (n,) float64 or None
        The same without lines.
    converged : bool
        False if the engine knows that its own criteria were not met.
    flux_lte : (n,) float64 or None
        Of an engine out of LTE, what it gives in LTE on the same structure.
    """

    wavelength: np.ndarray
    flux: np.ndarray
    continuum: np.ndarray | None = None
    converged: bool = True
    flux_lte: np.ndarray | None = None


@dataclass(frozen=True)
class Library:
    """Unbroadened emergent spectra of many stars.

    Attributes
    ----------
    flux : (n, n_fine) float32
        Emergent flux [any unit], at log10 λ_vacuum = log_start + 2e-5·i.
    labels : (n, 11) float64
        In the order of `hotdask.labels.LABEL_NAMES`; vsini is 0.
    log_start : float
        log10 of the first wavelength [Å].
    name : str
        The name of the file or store.
    provenance : mapping
        Engine, its data and the sampling, as `hotdask library build` wrote them; empty if unknown.
    """

    flux: np.ndarray
    labels: np.ndarray
    log_start: float
    name: str
    provenance: Mapping = field(default_factory=dict)
