"""Line by line: equivalent widths and depths of named lines in a real star's spectrum and in a synthesis of it.

A fit hides which lines a model has wrong; here each is looked at, star and synthesis measured in the same way: on the
same pixels, at the same line spread, against the same windows beside the line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.interpolate import CubicSpline

from hotdask import windows
from hotdask.emulator.broadening import Broadener, lsf_sigma, mean_lsf
from hotdask.library.regrid import to_fine
from hotdask.library.spectra import LOG_START, N_FINE, Synthesis
from hotdask.spectra.normalize import Normalizer
from hotdask.windows import FWHM, SPEED_OF_LIGHT, air_to_vacuum

RESOLVING_POWERS = (1500.0, 1800.0)
"""λ/FWHM in the blue and in the red at which lines are measured: what MILES allows everywhere."""
_REACH = 5.0
_FINER = 4
_CORE = 150.0
"""The deepest pixel within this of a line's center gives its depth [km/s]: velocities at rest err by some 20 km/s."""


@dataclass(frozen=True)
class NamedLine:
    """A line, or a blend that R = 1800 does not resolve, with the windows that make its continuum; air [Å].

    Attributes
    ----------
    name : str
    center : float
        Of the strongest component.
    low, high : float
        Limits of the integration.
    blue, red : (low, high)
        Windows beside it; a straight line through their means is its continuum.
    """

    name: str
    center: float
    low: float
    high: float
    blue: tuple[float, float]
    red: tuple[float, float]


LINES: tuple[NamedLine, ...] = (
    NamedLine("Hα", 6562.79, 6510, 6615, (6480, 6500), (6622, 6642)),
    NamedLine("Hβ", 4861.35, 4825, 4898, (4812, 4822), (4900, 4910)),
    NamedLine("Hγ", 4340.47, 4310, 4374, (4298, 4308), (4375, 4382)),
    NamedLine("Hδ", 4101.73, 4066, 4134, (4052, 4062), (4134, 4139)),
    NamedLine("He I 3820", 3819.62, 3813, 3827, (3810, 3813), (3827, 3830)),
    NamedLine("He I 4009", 4009.26, 4004, 4014, (4001, 4004), (4014, 4017)),
    NamedLine("He I 4026", 4026.19, 4019, 4034, (4016, 4019), (4034, 4037)),
    NamedLine("He I 4144", 4143.76, 4138, 4148, (4134, 4138), (4148, 4151)),
    NamedLine("He I 4388", 4387.93, 4380, 4397, (4376, 4379), (4398, 4402)),
    NamedLine("He I 4471", 4471.48, 4462, 4477, (4456, 4460), (4487, 4492)),
    NamedLine("He I 4713", 4713.15, 4709.5, 4717, (4692, 4696), (4720, 4726)),
    NamedLine("He I 4922", 4921.93, 4913, 4931, (4906, 4911), (4935, 4940)),
    NamedLine("He I 5016", 5015.68, 5010, 5021, (4985, 4991), (5023, 5027)),
    NamedLine("He I 5876", 5875.62, 5868, 5884, (5856, 5866), (5884.5, 5887.5)),
    NamedLine("He I 6678", 6678.15, 6668, 6688, (6650, 6662), (6692, 6705)),
    NamedLine("He II 4200", 4199.83, 4192, 4208, (4178, 4184), (4211, 4216)),
    NamedLine("He II 4542", 4541.59, 4534, 4549, (4524, 4530), (4558.5, 4563)),
    NamedLine("He II 4686", 4685.70, 4680, 4691, (4664, 4669), (4692, 4697)),
    NamedLine("He II 5411", 5411.52, 5403, 5420, (5386, 5396), (5421, 5426)),
    NamedLine("C II 4267", 4267.26, 4262, 4272, (4256, 4261), (4271.5, 4274)),
    NamedLine("C II 6578, 6583", 6578.05, 6574, 6587, (6570, 6574), (6588, 6594)),
    NamedLine("N II 3995", 3994.99, 3991.5, 3998.5, (3986, 3991), (3999, 4002)),
    NamedLine("N II 5001, 5005", 5001.47, 4997, 5009, (4985, 4991), (5023, 5027)),
    NamedLine("O II 4070, 4076", 4075.86, 4066, 4079.5, (4062, 4065), (4079.8, 4082.5)),
    NamedLine("O II 4415, 4417, Fe III 4420", 4414.90, 4411, 4421.5, (4405, 4410), (4422, 4427)),
    NamedLine("O II, C III 4650", 4649.14, 4637, 4653.5, (4624, 4627), (4655, 4659)),
    NamedLine("Mg II 4481", 4481.23, 4477.5, 4485.5, (4456, 4460), (4487, 4492)),
    NamedLine("Si II 4128, 4131", 4130.89, 4125, 4134, (4122.8, 4125), (4134.5, 4137.5)),
    NamedLine("Si II 6347", 6347.11, 6342, 6353, (6332, 6340), (6354, 6364)),
    NamedLine("Si III 4553", 4552.62, 4549.8, 4556, (4546, 4549.5), (4556.5, 4561)),
    NamedLine("Si IV 4089", 4088.86, 4085.5, 4092, (4080, 4082.5), (4093.5, 4095)),
    NamedLine("S II 5454", 5453.86, 5450, 5458, (5443, 5449), (5458.5, 5463)),
    NamedLine("Fe II 5169", 5169.03, 5164, 5173.5, (5158, 5162.5), (5174, 5180)),
    NamedLine("Fe III 5127", 5127.39, 5123, 5130.5, (5115, 5122), (5136.5, 5141)),
    NamedLine("Fe III 5156", 5156.11, 5153, 5160, (5136.5, 5141), (5161, 5166)),
)


@dataclass(frozen=True)
class Strengths:
    """Strengths of lines; NaN where a spectrum does not hold the line and its windows.

    Attributes
    ----------
    width : (n_line,) float64
        Equivalent width [Å]; negative in emission.
    depth : (n_line,) float64
        Of the deepest pixel near the center, as a share of the continuum.
    """

    width: np.ndarray
    depth: np.ndarray


def line_strengths(wavelength: np.ndarray, flux: np.ndarray, lines: Sequence[NamedLine] = LINES) -> Strengths:
    """Equivalent widths and depths, each line against a straight line through the windows beside it.

    Parameters
    ----------
    wavelength : (n_pixel,) float64
        Vacuum, at rest [Å], increasing.
    flux : (n_pixel,) float
        [any unit]; NaN where nothing was observed.
    lines : sequence of NamedLine

    Examples
    --------
    >>> wavelength = np.arange(4200.0, 4350.0, 0.5)
    >>> center = air_to_vacuum(4267.26)
    >>> flux = 1 - 0.1 * np.exp(-(((wavelength - center) / 2) ** 2))
    >>> made = line_strengths(wavelength, flux, [line for line in LINES if line.name == "C II 4267"])
    >>> round(float(made.width[0]), 2), round(float(made.depth[0]), 2)
    (0.35, 0.1)
    """
    wavelength, flux = np.asarray(wavelength, dtype=np.float64), np.asarray(flux, dtype=np.float64)
    width, depth = np.full((2, len(lines)), np.nan)
    for i, line in enumerate(lines):
        sides = [_mean(wavelength, flux, *air_to_vacuum(side)) for side in (line.blue, line.red)]
        low, high, center = air_to_vacuum((line.low, line.high, line.center))
        inside = (wavelength > low) & (wavelength < high)
        if not np.isfinite(sides).all() or inside.sum() < 3 or wavelength[0] > low or wavelength[-1] < high:
            continue
        (x, y), (x_red, y_red) = sides
        continuum = y + (wavelength - x) * (y_red - y) / (x_red - x)
        absorbed = 1 - flux / continuum
        grid = np.concatenate([[low], wavelength[inside], [high]])
        width[i] = np.trapezoid(np.interp(grid, wavelength, absorbed), grid)
        core = np.abs(wavelength / center - 1) < _CORE / SPEED_OF_LIGHT
        depth[i] = absorbed[core].max() if core.any() else np.nan
    return Strengths(width, depth)


def _mean(wavelength: np.ndarray, flux: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Mean wavelength and flux in a window; NaN if the spectrum does not reach over it."""
    inside = (wavelength >= low) & (wavelength <= high)
    if not inside.any() or wavelength[0] > low or wavelength[-1] < high:
        return np.nan, np.nan
    return float(wavelength[inside].mean()), float(flux[inside].mean())


def smear(
    wavelength: np.ndarray, flux: np.ndarray, fwhm: float | np.ndarray, powers: tuple[float, float] = RESOLVING_POWERS
) -> np.ndarray:
    """A spectrum on the rest grid, at given resolving powers.

    Parameters
    ----------
    wavelength : (n_pixel,) float64
        Vacuum, at rest [Å], increasing, finer than the line spread.
    flux : (n_pixel,) float
        [any unit]; NaN where nothing was observed.
    fwhm : float or (n_pixel,) float64
        Of the spectrum's own line spread [Å]. Where it is the wider one, it stays.
    powers : (blue, red)
        λ/FWHM to reach.

    Returns
    -------
    (3801,) float64
        On `hotdask.windows.rest_wavelength`; NaN where nothing was observed.
    """
    rest = windows.rest_wavelength()
    wavelength, flux = np.asarray(wavelength, dtype=np.float64), np.asarray(flux, dtype=np.float64)
    own = np.interp(rest, wavelength, np.broadcast_to(fwhm, wavelength.shape)) / FWHM
    sigma = np.sqrt(np.maximum(lsf_sigma(rest, mean_lsf(*powers)) ** 2 - own**2, 0.0))
    good = np.isfinite(flux)
    # Pixels of a third of the line spread hold all of it; between them a spline errs less than a straight line.
    curve = CubicSpline(wavelength[good], flux[good])
    fine = np.linspace(wavelength[0], wavelength[-1], _FINER * (len(wavelength) - 1) + 1)
    size, values = np.gradient(fine), curve(fine)
    out = curve(rest)
    for i in np.flatnonzero(sigma > fine[1] - fine[0]):
        start, stop = np.searchsorted(fine, rest[i] + sigma[i] * np.array([-_REACH, _REACH]))
        weight = size[start:stop] * np.exp(-0.5 * ((fine[start:stop] - rest[i]) / sigma[i]) ** 2)
        out[i] = weight @ values[start:stop] / weight.sum() if stop > start else np.nan
    nearest = np.clip(np.searchsorted((wavelength[1:] + wavelength[:-1]) / 2, rest), 0, len(wavelength) - 1)
    out[(rest < wavelength[0]) | (rest > wavelength[-1]) | ~good[nearest]] = np.nan
    return out


def seen(synthesis: Synthesis, vsini: float, powers: tuple[float, float] = RESOLVING_POWERS) -> np.ndarray:
    """A synthesis as a spectrograph sees it: rotating [km/s], at given resolving powers, (3801,) on the rest grid."""
    flux, _ = to_fine(synthesis)
    broadener = Broadener(LOG_START, N_FINE)
    # Single precision, in Fourier space: any unit, but of order one.
    transformed = broadener.transform((flux / np.median(flux))[None].astype(np.float32))
    return broadener.broaden(transformed, np.array([vsini]), mean_lsf(*powers)[None])[0].astype(np.float64)


def compare_lines(
    observed: np.ndarray, synthetic: np.ndarray, lines: Sequence[NamedLine] = LINES, *, smooth: bool = False
) -> pd.DataFrame:
    """Strengths of lines in two spectra on the rest grid.

    Parameters
    ----------
    observed, synthetic : (3801,) float64
        From `smear` and `seen`. The synthesis is looked at where there is an observation.
    lines : sequence of NamedLine
    smooth : bool
        Depths below the spectrum smoothed over 50 Å, as fits see it, instead of below the windows.

    Returns
    -------
    pandas.DataFrame
        A row a line: ``line``, ``width`` and ``width_model`` [Å], ``depth`` and ``depth_model``.
    """
    rest = windows.rest_wavelength()
    both = [np.where(np.isfinite(observed), flux, np.nan) for flux in (observed, synthetic)]
    made = [line_strengths(rest[np.isfinite(flux)], flux[np.isfinite(flux)], lines) for flux in both]
    table = pd.DataFrame({"line": [line.name for line in lines]})
    for suffix, flux, strengths in zip(("", "_model"), both, made, strict=True):
        table[f"width{suffix}"] = strengths.width
        table[f"depth{suffix}"] = _smoothed_depth(flux, lines) if smooth else strengths.depth
    return table


def _smoothed_depth(flux: np.ndarray, lines: Sequence[NamedLine]) -> np.ndarray:
    rest = windows.rest_wavelength()
    good = np.isfinite(flux)
    scaled = np.where(good, flux / np.nanmedian(flux), 0)[None].astype(np.float32)
    normalized, _, _ = Normalizer(rest).normalize(scaled, good[None].astype(np.float32) * 1e4)
    out = np.full(len(lines), np.nan)
    for i, line in enumerate(lines):
        core = np.abs(rest / air_to_vacuum(line.center) - 1) < _CORE / SPEED_OF_LIGHT
        if good[core].all():
            out[i] = 1 - normalized[0, core].min()
    return out
