"""A first guess of Teff from three line indices (Eq 4)."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from hotdask.errors import RunError
from hotdask.windows import air_to_vacuum


@dataclass(frozen=True)
class LineIndex:
    """A line and the two continuum windows beside it; air wavelengths [Å]. The line is what lies between them."""

    name: str
    blue: tuple[float, float]
    red: tuple[float, float]


INDICES: tuple[LineIndex, ...] = (
    LineIndex("C3933", (3912.0, 3922.0), (3946.0, 3956.0)),
    LineIndex("C3967", (3946.0, 3956.0), (3980.0, 3990.0)),
    LineIndex("C4101", (4080.0, 4090.0), (4114.0, 4124.0)),
)
"""Ca II K, Hε with Ca II H, and Hδ (Xiang et al. 2022, §4.4)."""

MIN_WINDOW = 0.5
"""Share of a continuum window that must be good."""

MAX_INTERPOLATED = 0.2
"""Share of a line that may be bad and interpolated."""

TEFF_POLYNOMIAL: dict[tuple[int, int, int], float] = {
    (0, 0, 0): 4.71047,
    (1, 0, 0): -4.43455e-2,
    (0, 1, 0): -5.37380e-2,
    (0, 0, 1): 3.46889e-2,
    (2, 0, 0): -5.68345e-3,
    (0, 2, 0): -1.26749e-2,
    (0, 0, 2): -2.40555e-2,
    (1, 1, 0): 1.26779e-2,
    (1, 0, 1): -4.19722e-2,
    (0, 1, 1): 2.34087e-2,
    (1, 1, 1): 8.44885e-4,
    (2, 1, 0): -9.98430e-4,
    (2, 0, 1): 2.23513e-3,
    (1, 2, 0): 6.24433e-4,
    (1, 0, 2): 1.40913e-3,
    (0, 2, 1): -1.78560e-3,
    (0, 1, 2): 1.85542e-3,
    (3, 0, 0): 5.01277e-4,
    # Printed as a second C3967² term in the paper; the cubic gives real F and B stars their temperatures.
    (0, 3, 0): 5.10836e-4,
    (0, 0, 3): 1.52060e-4,
}
"""log10 Teff = Σ coefficient · C3933^i C3967^j C4101^k, equivalent widths in Å (Eq 4)."""


def line_indices(flux: np.ndarray, ivar: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
    """Equivalent widths of Ca II K, Hε with Ca II H, and Hδ.

    ∫ (1 − f/c) dλ between the inner edges of the two windows; c is the straight line through the windows' mean points.

    Parameters
    ----------
    flux, ivar : (n_spectrum, n_pixel) float32
        Rest-frame flux F_λ [any unit], not normalized, and inverse variance; ivar = 0 marks a bad pixel.
    wavelength : (n_pixel,) float64
        Vacuum wavelength [Å], strictly increasing, covering 3912-4124 Å (air).

    Returns
    -------
    (n_spectrum, 3) float64
        Equivalent widths [Å], positive in absorption. NaN where less than half of a window is good, where over a
        fifth of the line is bad (less is interpolated in f/c), or where the continuum is not positive.

    Raises
    ------
    RunError
        If the wavelengths do not cover the windows, or the shapes differ.

    References
    ----------
    Xiang et al. 2022, §4.4.

    Examples
    --------
    >>> wavelength = np.arange(3900.0, 4200.0)
    >>> flux = np.where(np.abs(wavelength - 4103) < 2.5, 0.0, 1.0)[None, :]
    >>> line_indices(flux, np.ones_like(flux), wavelength).round(6).tolist()
    [[0.0, 0.0, 5.0]]
    """
    flux, ivar, wavelength = np.asarray(flux), np.asarray(ivar), np.asarray(wavelength, dtype=np.float64)
    if flux.ndim != 2 or flux.shape != ivar.shape or wavelength.shape != flux.shape[1:]:
        raise RunError(
            f"line indices: flux {flux.shape}, ivar {ivar.shape} and wavelength {wavelength.shape} must be "
            "(n, n_pixel), (n, n_pixel) and (n_pixel,); pass spectra of one grid as rows"
        )
    widths = np.empty((len(flux), len(INDICES)))
    for column, (pixels, blue, line, red) in enumerate(_weights(wavelength.tobytes())):
        x = wavelength[pixels]
        values = flux[:, pixels].astype(np.float64, order="C")
        good = np.ascontiguousarray(ivar[:, pixels] > 0) & np.isfinite(values)
        values[~good] = 0.0
        in_line = line > 0
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            blue_x, blue_y = _mean_point(x, values, good * blue)
            red_x, red_y = _mean_point(x, values, good * red)
            slope = (red_y - blue_y) / (red_x - blue_x)
            continuum = blue_y[:, None] + slope[:, None] * (x - blue_x[:, None])
            depth = 1.0 - values / continuum
        bad_share = (~good * line).sum(axis=1) / line.sum()
        # Comparisons with NaN are False: a window without any good pixel fails here too.
        usable = (
            ((good * blue).sum(axis=1) >= MIN_WINDOW * blue.sum())
            & ((good * red).sum(axis=1) >= MIN_WINDOW * red.sum())
            & (bad_share <= MAX_INTERPOLATED)
            & (continuum[:, in_line] > 0).all(axis=1)
        )
        for row in np.flatnonzero(usable & (bad_share > 0)):
            depth[row] = np.interp(x, x[good[row]], depth[row, good[row]])
        # Contiguous rows summed one by one, no matrix product: bits must not depend on the batch.
        total = (np.where(in_line, depth, 0.0) * line).sum(axis=1)
        widths[:, column] = np.where(usable, total, np.nan)
    return widths


def teff_from_indices(widths: np.ndarray) -> np.ndarray:
    """Teff of the cubic polynomial in the three equivalent widths.

    Parameters
    ----------
    widths : (n_spectrum, 3) float64
        Equivalent widths [Å] of `line_indices`.

    Returns
    -------
    (n_spectrum,) float64
        Teff [K], not limited to any range: the polynomial runs away outside the stars it was made from (it may give 0
        or infinity). NaN where a width is NaN.

    References
    ----------
    Xiang et al. 2022, Eq 4, with its second C3967² term read as C3967³.

    Examples
    --------
    >>> teff_from_indices(np.array([[0.0, 0.0, 0.0], [0.3, 4.0, 6.0]])).round().tolist()
    [51342.0, 20369.0]
    """
    a, b, c = np.asarray(widths, dtype=np.float64).T
    with np.errstate(over="ignore", under="ignore"):
        return 10.0 ** sum(k * a**i * b**j * c**m for (i, j, m), k in TEFF_POLYNOMIAL.items())


def guess_teff(
    flux: np.ndarray, ivar: np.ndarray, wavelength: np.ndarray, *, low: float, high: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First guess of Teff from the line indices: rough, so a fit must not depend on it.

    Parameters
    ----------
    flux, ivar, wavelength
        As in `line_indices`.
    low, high : float
        Range of the library [K]; guesses are clipped to it.

    Returns
    -------
    teff : (n_spectrum,) float64
        Guess [K]; NaN where it could not be made.
    clipped, missing : (n_spectrum,) bool
        Where the guess was clipped; where there is none.

    Raises
    ------
    RunError
        As `line_indices`.

    References
    ----------
    Xiang et al. 2022, §4.4 and Eq 4.

    Examples
    --------
    >>> wavelength = np.arange(3900.0, 4200.0)
    >>> flux = np.ones((1, 300))
    >>> teff, clipped, missing = guess_teff(flux, flux, wavelength, low=7500, high=40000)
    >>> float(teff[0]), bool(clipped[0]), bool(missing[0])
    (40000.0, True, False)
    """
    teff = teff_from_indices(line_indices(flux, ivar, wavelength))
    return np.clip(teff, low, high), (teff < low) | (teff > high), np.isnan(teff)


def _mean_point(x: np.ndarray, values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total = weight.sum(axis=1)
    return (weight * x).sum(axis=1) / total, (weight * values).sum(axis=1) / total


@lru_cache(maxsize=8)
def _weights(grid: bytes) -> tuple[tuple[slice, np.ndarray, np.ndarray, np.ndarray], ...]:
    """For each index the pixels it needs and the weights [Å] of blue window, line and red window on them."""
    wavelength = np.frombuffer(grid)
    rows = []
    for index in INDICES:
        edges = [float(air_to_vacuum(w)) for w in (*index.blue, *index.red)]
        if wavelength.size < 2 or wavelength[0] > edges[0] or wavelength[-1] < edges[-1]:
            raise RunError(
                f"line indices: {index.name} needs {edges[0]:.1f}-{edges[-1]:.1f} Å (vacuum), which the wavelengths do "
                "not cover; pass spectra on windows.rest_wavelength()"
            )
        first = np.searchsorted(wavelength, edges[0], side="right") - 1
        pixels = slice(first, np.searchsorted(wavelength, edges[-1]) + 1)
        rows.append((pixels, *(_integral_weights(wavelength[pixels], low, high) for low, high in pairwise(edges))))
    return tuple(rows)


def _integral_weights(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Weights whose product with f(x) is ∫ f from low to high, f being linear between its points."""
    left, right = x[:-1], x[1:]
    start, stop = np.clip(left, low, high), np.clip(right, low, high)
    # The share of the interval's right point is the mean of (x − left)/(right − left) over [start, stop].
    share = ((start + stop) / 2 - left) / (right - left)
    weights = np.zeros(x.size)
    weights[:-1] += (stop - start) * (1 - share)
    weights[1:] += (stop - start) * share
    return weights
