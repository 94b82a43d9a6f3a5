"""The velocity of a star of which nothing is known: cross-correlation with models of hot stars of all kinds.

Data and models are divided by their continua and correlated at every whole pixel (`hotdask.steps.velocity.scan`). The
windows of the continuum lie at rest wavelengths, so the star is normalized again at the velocity found, and correlated
once more.

References
----------
Tonry & Davis 1979, AJ 84, 1511; Zucker 2003, MNRAS 342, 1291.
"""

from dataclasses import dataclass

import numpy as np

from hotdask.emulator.base import Emulator
from hotdask.labels import INDEX
from hotdask.spectra.normalize import Normalizer
from hotdask.spectra.restframe import to_rest_frame
from hotdask.steps.fit import plain_start
from hotdask.steps.velocity import gains
from hotdask.windows import LOG_STEP, SPEED_OF_LIGHT

FARTHEST = 1000.0
"""Velocities looked for [km/s], either way."""
CONFUSED = 83.5
"""What wavelengths in air, taken for those in vacuum, do to a velocity [km/s] with a minus: c·(n − 1) of air."""
_CONFUSED_WITHIN = 20.0
"""How far stars move, and how well it must be known [km/s]."""
_PIXEL = SPEED_OF_LIGHT * np.log(10) * LOG_STEP
_REACH = int(np.ceil(FARTHEST / _PIXEL)) + 1
_ROUNDS = 3
_CLOSE = 10.0
"""Change [km/s] below which another round would be none."""
_SIGNIFICANT = 25.0
"""Δχ² over reduced χ² that a velocity needs: 5 σ."""
_KINDS = tuple(
    (teff, logg, vsini)
    for teff, gravities in (
        (7500.0, (4.0,)),
        (8500.0, (2.5, 4.0)),
        (9500.0, (2.0, 4.0)),
        (11000.0, (2.5, 4.0)),
        (14000.0, (2.5, 4.0)),
        (18000.0, (3.0, 4.0)),
        (23000.0, (3.2, 4.0)),
        (30000.0, (3.6, 4.2)),
        (40000.0, (4.0,)),
    )
    for logg in gravities
    for vsini in (30.0, 200.0)
)
"""Teff [K], log g and vsini [km/s] of the models."""


@dataclass(frozen=True, eq=False)
class Velocity:
    """Velocities that were found.

    Attributes
    ----------
    rv, error : (n,) float64
        [km/s]; NaN where no velocity stands out.
    significance : (n,) float64
        Δχ² by the lines of the best model, over reduced χ².
    """

    rv: np.ndarray
    error: np.ndarray
    significance: np.ndarray


def template_labels() -> np.ndarray:
    """Labels of the models that spectra are correlated with, (m, 11) float64.

    Examples
    --------
    >>> len(template_labels())
    32
    """
    labels = plain_start(np.array([kind[0] for kind in _KINDS]))
    for column, name in ((1, "logg"), (2, "vsini")):
        labels[:, INDEX[name]] = [kind[column] for kind in _KINDS]
    return labels


def find_velocity(
    flux: np.ndarray,
    ivar: np.ndarray,
    lsf: np.ndarray,
    *,
    emulator: Emulator,
    normalizer: Normalizer,
    fitted: np.ndarray,
) -> Velocity:
    """Find velocities within ±1000 km/s.

    Parameters
    ----------
    flux, ivar : (n, 3909) float32
        On `hotdask.windows.observed_wavelength`; ivar = 0 marks a bad pixel.
    lsf : (n, 6) float64
        Line-spread coefficients [Å].
    emulator : hotdask.emulator.Emulator
    normalizer : Normalizer
        On `hotdask.windows.rest_wavelength`.
    fitted : (3801,) bool
        Pixels that count.

    Returns
    -------
    Velocity
        The error is that of photon noise, √(2/|d²Δχ²/dv²|), times the root of reduced χ² where that is over 1.

    Examples
    --------
    >>> from hotdask import windows
    >>> from hotdask.emulator import load_emulator, mean_lsf
    >>> emulator, wavelength = load_emulator(), windows.rest_wavelength()
    >>> flux = np.ones((1, windows.N_OBSERVED), dtype=np.float32)
    >>> flux[:, 62 : 62 + windows.N_REST] = emulator.flux(plain_start(np.array([12500.0])))
    >>> tools = {"emulator": emulator, "normalizer": Normalizer(wavelength), "fitted": wavelength > 3830}
    >>> found = find_velocity(flux, np.full_like(flux, 1e4), mean_lsf()[None], **tools)
    >>> bool(abs(found.rv[0] - 276.3) < 3), bool(found.error[0] < 3)
    (True, True)
    """
    templates = template_labels()
    rv, error, significance = (np.full(len(flux), np.nan) for _ in range(3))
    here, rows = np.zeros(len(flux)), np.arange(len(flux))
    for _ in range(_ROUNDS):
        # At once, because the normalizer's matrices have room for many.
        normalized, weight, _ = normalizer.normalize(*to_rest_frame(flux[rows], ivar[rows], here[rows]))
        models, of = None, None
        moving = []
        for i, values, weights in zip(rows, normalized, weight * fitted, strict=True):
            if models is None or not np.array_equal(of, lsf[i]):
                models, of = emulator.flux(templates, np.tile(lsf[i], (len(templates), 1))), lsf[i]
            shift, error[i], significance[i] = _correlate(values, weights, models)
            rv[i] = (1 + here[i] / SPEED_OF_LIGHT) * (SPEED_OF_LIGHT + shift) - SPEED_OF_LIGHT
            moving.append(abs(shift) > _CLOSE and abs(rv[i]) < FARTHEST)
        rows = rows[moving]
        if not rows.size:
            break
        here[rows] = rv[rows]
    unseen = ~(np.abs(rv) < FARTHEST) | ~(significance > _SIGNIFICANT)
    rv[unseen] = error[unseen] = np.nan
    return Velocity(rv, error, significance)


def _correlate(flux: np.ndarray, ivar: np.ndarray, models: np.ndarray) -> tuple[float, float, float]:
    """Shift [km/s] of one spectrum by the best of several models, its error, and Δχ² over reduced χ²."""
    many = np.broadcast_to(flux, models.shape), np.broadcast_to(ivar, models.shape)
    gain = gains(*many, models, _REACH)
    best, at = np.unravel_index(gain.argmax(), gain.shape)
    n = np.count_nonzero(ivar > 0)
    if n < 2 or not 0 < at < gain.shape[1] - 1:
        return np.nan, np.nan, 0.0
    left, middle, right = gain[best, at - 1 : at + 2]
    bend = left - 2 * middle + right
    empty = float((ivar.astype(np.float64) * (1.0 - flux) ** 2).sum())
    excess = max((empty - middle) / n, 1.0)
    pixel = at - _REACH + (left - right) / (2 * bend)
    shift = SPEED_OF_LIGHT * (10 ** (LOG_STEP * pixel) - 1)
    return shift, _PIXEL * np.sqrt(2 * excess / -bend), middle / excess


def air_or_vacuum(shift: float, error: float, medium: str) -> str:
    """A sentence if a shift is that of wavelengths of the wrong kind; empty otherwise.

    Parameters
    ----------
    shift : float
        How far lines lie redward of where they should [km/s].
    error : float
        Its error [km/s].
    medium : {"vacuum", "air"}
        What the wavelengths were taken for.

    Examples
    --------
    >>> air_or_vacuum(-81.0, 2.0, "vacuum")[:62]
    'lines lie at -81 km/s, as they do where wavelengths in air are'
    >>> air_or_vacuum(81.0, 2.0, "vacuum"), air_or_vacuum(20.0, 2.0, "air")
    ('', '')
    """
    expected = -CONFUSED if medium == "vacuum" else CONFUSED
    other = "air" if medium == "vacuum" else "vacuum"
    if not (abs(shift - expected) < _CONFUSED_WITHIN and error < _CONFUSED_WITHIN):
        return ""
    return (
        f"lines lie at {shift:.0f} km/s, as they do where wavelengths in {other} are taken for those in {medium}; if "
        f"these are in {other}, say medium={other!r} (--{other})"
    )
