"""Any spectrum as the labels are fitted: on the observed grid, each arm at one resolving power that the models know."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hotdask.errors import InputError
from hotdask.spectra.degrade import RESOLVING_POWER, Degraded, degrade
from hotdask.spectra.spectrum import Spectrum
from hotdask.windows import (
    BLUE_RED_BREAK,
    FIT_MASK,
    FWHM,
    LOG_STEP,
    N_OBSERVED,
    OBSERVED_LOG_START,
    inside,
    observed_wavelength,
)

ARMS = ((3820.0, BLUE_RED_BREAK), (BLUE_RED_BREAK, 9000.0))
"""Ranges of the arms [Å] whose coarsest pixel decides."""
_STEP = 50.0
GRACE = 1.15
"""How much wider than its arm's a pixel's line spread may be. Below 4200 Å that of STELIB is up to a tenth wider than
any emulator knows; without those pixels its log g err more than with them."""
_GAP = 3.0
"""Steps of the usual size that pixels may lie apart; more is a gap."""
_ON_GRID = 0.05
"""Pixels that lie so close to the grid are its own."""


@dataclass(frozen=True, eq=False)
class Placed:
    """A spectrum on the observed grid (`hotdask.windows.observed_wavelength`).

    Attributes
    ----------
    flux, ivar : (3909,) float32
        ivar = 0 marks a bad pixel.
    noise_power : float
        Share of the variance in ``ivar`` that the noise really has.
    powers : (blue, red) of float, or None
        λ/FWHM of each arm; None where pixels were taken over and ``sigma`` says it.
    sigma : (3909,) float64
        Gaussian σ of the line spread [Å].
    """

    flux: np.ndarray
    ivar: np.ndarray
    noise_power: float
    powers: tuple[float, float] | None
    sigma: np.ndarray


def arm_power(native: np.ndarray, least: float) -> float:
    """Resolving power to bring an arm to: 1800, or what its coarsest pixels leave, in steps of 50, but not too little.

    Parameters
    ----------
    native : (n,) float64
        λ/FWHM of its pixels.
    least : float
        λ/FWHM.

    Examples
    --------
    >>> wavelength = np.array([3820.0, 5800.0])
    >>> [arm_power(wavelength / fwhm, 1400) for fwhm in (0.1, 2.5, 3.0)]
    [1800.0, 1500.0, 1400.0]
    """
    return float(np.clip(_STEP * np.floor(native.min() / _STEP + 0.01), least, RESOLVING_POWER))


def degrade_arms(
    wavelength: np.ndarray,
    flux: np.ndarray,
    variance: np.ndarray | None = None,
    *,
    fwhm: float | np.ndarray,
    least: float,
    air: bool = False,
    rv: float = 0.0,
) -> tuple[Degraded, np.ndarray, tuple[float, float]]:
    """`hotdask.spectra.degrade.degrade` to the resolving power that each arm allows.

    Parameters
    ----------
    wavelength, flux, variance, fwhm, air, rv
        As there.
    least : float
        Lowest λ/FWHM that the emulators know.

    Returns
    -------
    Degraded
    known : (m, 3909) bool
        Pixels that have a value and a line spread that the emulators know.
    powers : (blue, red)
        λ/FWHM of the arms.

    Examples
    --------
    >>> wavelength = np.arange(3600.0, 9200.0, 0.9)
    >>> _, known, powers = degrade_arms(wavelength, np.ones_like(wavelength), fwhm=2.5, least=1400.0)
    >>> powers, int(known.sum())
    ((1500.0, 1800.0), 3909)
    """
    grid = observed_wavelength()
    native = np.interp(grid, wavelength, wavelength / fwhm)
    powers = tuple(arm_power(native[(grid >= low) & (grid < high)], least) for low, high in ARMS)
    target = np.where(grid < BLUE_RED_BREAK, *powers)
    found = degrade(wavelength, flux, variance, fwhm=fwhm, target=target, air=air, rv=rv)
    known = (found.ivar > 0) & (found.sigma * FWHM * target < GRACE * grid)
    return found, known, powers


def place(spectrum: Spectrum, known: Sequence[float] = (1400.0, 2300.0)) -> Placed:
    """Bring a spectrum to the observed grid, in the frame it was observed in.

    Pixels that lie on the grid already, with a line spread that the emulators know, are taken over as they are.

    Parameters
    ----------
    spectrum : Spectrum
    known : (low, high)
        Resolving powers that the emulators know.

    Raises
    ------
    InputError
        If the resolving power is not known, or lower than that over most of the spectrum.

    Examples
    --------
    >>> wavelength = np.arange(3600.0, 9200.0, 0.1)
    >>> placed = place(Spectrum(wavelength, np.ones(56000), np.full(56000, 0.1), resolving_power=20000))
    >>> placed.powers, bool(np.allclose(placed.flux, 1))
    ((1800.0, 1800.0), True)
    """
    where = f"spectrum {spectrum.name}".strip()
    if spectrum.resolving_power is None:
        raise InputError(
            f"{where}: its resolving power is not known; give resolving_power (λ/FWHM), or fwhm [Å] of a narrow line"
        )
    _check_power(spectrum, known, where)
    return _taken_over(spectrum, known) or _degraded(spectrum, known, where)


def _check_power(spectrum: Spectrum, known: Sequence[float], where: str) -> None:
    wavelength, power = spectrum.wavelength, spectrum.resolving_power
    here = np.isfinite(spectrum.uncertainty) & (wavelength > ARMS[0][0]) & (wavelength < ARMS[1][1])
    coarse = power[here] < known[0] / GRACE
    if coarse.size and coarse.mean() > 0.5:
        raise InputError(
            f"{where}: its resolving power is {np.median(power[here]):.0f}, and the emulators know {known[0]:.0f} to "
            f"{known[1]:.0f} (finer spectra are degraded); labels cannot be told from coarser ones"
        )


def _taken_over(spectrum: Spectrum, known: Sequence[float]) -> Placed | None:
    """The pixels themselves, if they are those of the grid."""
    position = (np.log10(spectrum.wavelength) - OBSERVED_LOG_START) / LOG_STEP
    nearest = np.rint(position).astype(np.int64)
    here = (nearest >= 0) & (nearest < N_OBSERVED)
    power = spectrum.resolving_power[here]
    steps = np.diff(nearest[here])
    if (
        spectrum.medium == "air"
        or here.sum() < 2
        or np.abs(position - nearest)[here].max() > _ON_GRID
        or (steps < 1).any()
        or 2 * np.count_nonzero(steps == 1) < steps.size
        or power.min() < 0.99 * known[0]
        or power.max() > 1.01 * known[1]
    ):
        return None
    flux, ivar = np.zeros((2, N_OBSERVED), dtype=np.float32)
    at = nearest[here]
    good = np.isfinite(spectrum.uncertainty[here])
    level = _level(spectrum)
    flux[at] = np.where(good, spectrum.flux[here] / level, 0)
    ivar[at] = (level / spectrum.uncertainty[here]) ** 2
    grid = observed_wavelength()
    # An array of one value is a number, and no polynomial needs to be fitted to it.
    powers = (float(power[0]),) * 2 if np.ptp(power) == 0 else None
    sigma = grid / (FWHM * np.interp(grid, grid[at], power))
    return Placed(flux, ivar, spectrum.noise_power, powers, sigma)


def _level(spectrum: Spectrum) -> float:
    """What to divide fluxes by: single precision cannot hold the squares of 1e-20."""
    good = np.isfinite(spectrum.uncertainty)
    level = float(np.median(np.abs(spectrum.flux[good])))
    return level if level > 0 and not 1e-4 < level < 1e8 else 1.0


def _degraded(spectrum: Spectrum, known: Sequence[float], where: str) -> Placed:
    good = np.isfinite(spectrum.uncertainty)
    level = float(np.median(np.abs(spectrum.flux[good]))) or 1.0
    flux = np.where(good, spectrum.flux / level, np.nan)
    variance = np.where(good, (spectrum.uncertainty / level) ** 2, 0.0)
    wavelength, columns = _with_gaps(
        spectrum.wavelength, flux, variance, spectrum.wavelength / spectrum.resolving_power
    )
    flux, variance, fwhm = columns
    found, used, powers = degrade_arms(
        wavelength, flux, variance, fwhm=fwhm, least=known[0], air=spectrum.medium == "air"
    )
    grid = observed_wavelength()
    fitted = ~inside(grid, FIT_MASK)
    if not (used[0] & fitted).any():
        raise InputError(f"{where}: no pixel is left on the grid of the models; check wavelengths and uncertainties")
    ivar = np.where(used[0], found.ivar[0], np.float32(0))
    return Placed(found.flux[0], ivar, float(found.noise_power[0]) * spectrum.noise_power, powers, found.sigma[0])


def _with_gaps(
    wavelength: np.ndarray, flux: np.ndarray, variance: np.ndarray, fwhm: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The same with bad pixels in the gaps: a spline would bridge them, and a pixel reach over half of one."""
    step = np.diff(wavelength)
    ratio = step / wavelength[:-1]
    # Steps may change along a spectrum, but not by much from one pixel to the next.
    usual = np.minimum(np.append(ratio[:1], ratio[:-1]), np.append(ratio[1:], ratio[-1:]))
    gaps = np.flatnonzero(ratio > _GAP * usual)
    if not gaps.size:
        return wavelength, (flux, variance, fwhm)
    where, filled = [], []
    for i in gaps:
        n = min(int(ratio[i] / usual[i]), 100_000)
        filled.append(np.linspace(wavelength[i], wavelength[i + 1], n + 1)[1:-1])
        where.append(np.full(n - 1, i + 1))
    at, added = np.concatenate(where), np.concatenate(filled)
    out = (np.insert(flux, at, np.nan), np.insert(variance, at, 0.0))
    return np.insert(wavelength, at, added), (*out, np.insert(fwhm, at, np.interp(added, wavelength, fwhm)))
