"""Flag bad fits: chi2ratio compares chi2_red with spectra of like Teff and S/N; flags and sample cuts follow."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from astropy.stats import biweight_scale

from hotdask.flags import CUTS, Flag
from hotdask.labels import LABEL_NAMES
from hotdask.schema import RESIDUALS
from hotdask.steps.polynomial import Polynomial, assign_cells, fit_polynomial
from hotdask.steps.velocity import SIGNIFICANT, is_suspect
from hotdask.windows import SPEED_OF_LIGHT

MIN_CELL = 15
"""Spectra a cell must hold to be measured."""

TUNING = 6 / 0.6745
"""c of the biweight that IDL's robust_sigma uses."""

FLOOR = 0.05
"""Misfit of a cubic, in units of the dispersion, that is let pass: crowded cells must not bend it everywhere else."""

MAX_Z = 0.02
"""No star of the Galaxy moves this fast (6000 km/s): the velocity is wrong."""

EMISSION_WIDTH = 0.5
"""Excess of light in the core of Hα [Å] from which on it may be emission. Models err there by up to 0.3: of 28 spectra
of A stars by LAMOST the excess is -0.3 to 0.4, with a median of 0.2 at 7000-8000 K. In the cores of Hβ to Hδ together
they err by 0.4 below 8000 K, and by 0.7 below 6500 K."""
BINARY_SCORE = 50.0
"""binary_score above this is a second star. Single stars of a simulation stay below 12, but models err: of 133 LAMOST
spectra (over 6300 K and S/N 50, no B stars among them) the highest is 32, and of 28 ordinary B and A stars of a
template library, at S/N 100, three lie above 50 and ten more above 25. Simulated companions with 15 % of the light,
150 to 400 km/s away, are found in 18 % (S/N 20-50), 56 % (50-100) and 83 % (100-250) of the cases."""
NLTE_LIMIT = 30000.0
"""Teff [K] of the hottest models whose level populations ours take; beyond, departures from LTE are those there."""
_POLE = np.radians([192.85948, 27.12825])
"""North Galactic pole, J2000 (Hipparcos catalogue, vol. 1, §1.5.3)."""

_COLUMNS = {"cell": "int32", "n": "int64"} | dict.fromkeys(("teff", "snr_g", "median", "sigma"), "float64")
_STEPS = 20


def _level(chi2: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """chi2 divided by its robust power law of `slopes` (n, k), which are 0 at the center of the cell."""
    value = np.log(chi2)
    design = np.column_stack([np.ones(value.size), slopes])
    trend = np.zeros(slopes.shape[1])
    for _ in range(_STEPS):
        residual = value - slopes @ trend
        residual = residual - np.median(residual)
        mad = np.median(np.abs(residual))
        if mad == 0:
            break
        root = np.clip(1 - (residual / (TUNING * mad)) ** 2, 0, None)
        trend = np.linalg.lstsq(design * root[:, None], value * root, rcond=None)[0][1:]
    return chi2 * np.exp(-slopes @ trend)


def chi2_statistics(frame: pd.DataFrame, *, min_count: int = MIN_CELL) -> pd.DataFrame:
    """Median and robust dispersion of chi2_red in each cell.

    chi2_red rises with S/N within a cell too; that trend (a power law) is taken out first, else it would
    pass for dispersion.

    Parameters
    ----------
    frame : pandas.DataFrame
        ``cell`` (from `hotdask.steps.polynomial.assign_cells`), ``teff`` [K], ``snr_g``, ``chi2_red``. All spectra of
        a cell must be in the same frame. Rows with chi2_red not positive and finite are left out.
    min_count : int
        Cells with fewer spectra are left out.

    Returns
    -------
    pandas.DataFrame
        One row a cell: ``cell``, number of spectra ``n``, medians of ``teff`` and ``snr_g``, ``median`` of chi2_red
        there, and its dispersion ``sigma`` (biweight, c = 8.9).

    References
    ----------
    Xiang et al. 2022, §5.2; Beers, Flynn & Gebhardt 1990 for the biweight.

    Examples
    --------
    >>> frame = pd.DataFrame({"cell": 31, "teff": 9000.0, "snr_g": 50.0, "chi2_red": 1 + 0.1 * np.arange(15)})
    >>> chi2_statistics(frame)[["cell", "n", "median"]].values.round(6).tolist()
    [[31.0, 15.0, 1.7]]
    """
    good = (frame["cell"] >= 0) & np.isfinite(frame["chi2_red"]) & (frame["chi2_red"] > 0)
    # Sums depend on the order of their terms in the last digit, and rows arrive in any.
    frame = frame.loc[good, ["cell", "chi2_red", "teff", "snr_g"]].sort_values(["cell", "chi2_red", "teff", "snr_g"])
    rows = []
    for cell, group in frame.groupby("cell", sort=True):
        n = len(group)
        if n < min_count:
            continue
        teff, snr = group["teff"].median(), group["snr_g"].median()
        slopes = np.log(group[["teff", "snr_g"]].to_numpy(dtype=np.float64) / [teff, snr])
        slopes = slopes[:, np.ptp(slopes, axis=0) > 0]
        level = _level(group["chi2_red"].to_numpy(dtype=np.float64), slopes)
        # The slopes were fitted to the same spectra.
        freedom = np.sqrt(n / max(n - slopes.shape[1], 1))
        sigma = float(biweight_scale(level, c=TUNING)) * freedom
        rows.append({"cell": cell, "n": n, "teff": teff, "snr_g": snr, "median": np.median(level), "sigma": sigma})
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


def count_cuts(frame: pd.DataFrame) -> dict[str, int]:
    """Rows that each cut of the sample takes, one row perhaps by several; nothing is deleted.

    Parameters
    ----------
    frame : pandas.DataFrame
        ``flags``, ``in_sample``, ``teff`` of the catalog.

    Returns
    -------
    dict
        Rows by cut: ``no_fit``, those of `CUTS`, and ``all``, rows cut by any.

    References
    ----------
    Xiang et al. 2022, §5.1.

    Examples
    --------
    >>> rows = {"teff": [np.nan, 9000.0], "flags": [int(Flag.LOW_SNR), 0], "in_sample": [False, True]}
    >>> count_cuts(pd.DataFrame(rows))
    {'no_fit': 1, 'low_snr': 1, 'cool': 0, 'intrinsically_cool': 0, 'all': 1}
    """
    flags = frame["flags"].to_numpy()
    counts = {"no_fit": frame["teff"].isna(), **{name: flags & int(flag) != 0 for name, flag in CUTS.items()}}
    return {name: int(np.sum(cut)) for name, cut in (counts | {"all": ~frame["in_sample"]}).items()}


@dataclass(frozen=True)
class Chi2Model:
    """Median and dispersion of chi2_red as a function of Teff and S/N; both positive everywhere.

    Attributes
    ----------
    log_median, log_sigma : Polynomial
        Natural logs of both.
    cells : tuple of int
        Cells it rests on.
    n_spectra : int
        Spectra it rests on.
    """

    log_median: Polynomial
    log_sigma: Polynomial
    cells: tuple[int, ...]
    n_spectra: int

    def ratio(self, teff, snr, chi2_red) -> np.ndarray:
        """chi2ratio at (n,) Teff [K], S/N and chi2_red, (n,) float64.

        NaN where one of them is, and in cells with too few spectra to compare with: chi2_red rises so steeply with S/N
        that a guess from the next cell would accuse good fits.
        """
        median = np.exp(self.log_median.evaluate(teff, snr))
        ratio = (np.asarray(chi2_red, dtype=np.float64) - median) / np.exp(self.log_sigma.evaluate(teff, snr))
        return np.where(np.isin(assign_cells(teff, snr), self.cells), ratio, np.nan)

    def to_dict(self) -> dict:
        """As plain lists and numbers, for JSON."""
        return {
            "log_median": self.log_median.to_dict(),
            "log_sigma": self.log_sigma.to_dict(),
            "cells": list(self.cells),
            "n_spectra": self.n_spectra,
        }

    @classmethod
    def from_dict(cls, data: dict) -> "Chi2Model":
        """The model that `to_dict` described."""
        polynomials = (Polynomial.from_dict(data[name]) for name in ("log_median", "log_sigma"))
        return cls(*polynomials, tuple(data["cells"]), data["n_spectra"])


def fit_chi2_model(cells: pd.DataFrame) -> Chi2Model | None:
    """Smooth the medians and dispersions of `chi2_statistics` over Teff and S/N.

    Parameters
    ----------
    cells : pandas.DataFrame
        As from `chi2_statistics`, each cell once.

    Returns
    -------
    Chi2Model or None
        None where no cell has a median and a dispersion: chi2ratio is NaN then, with ``Flag.NO_CHI2RATIO``.

    Raises
    ------
    RunError
        If a cell comes twice.

    References
    ----------
    Xiang et al. 2022, §5.2. The paper models both directly; their logs span decades of S/N with the same cubic and
    cannot become negative.

    Examples
    --------
    >>> cells = pd.DataFrame({"cell": [31], "n": 50, "teff": 9000.0, "snr_g": 50.0, "median": 1.2, "sigma": 0.1})
    >>> round(float(fit_chi2_model(cells).ratio(9000.0, 50.0, 2.2)), 6)
    10.0
    """
    usable = cells[(cells["n"] > 0) & (cells["median"] > 0) & (cells["sigma"] > 0)]
    if not len(usable):
        return None
    place = [usable[c] for c in ("cell", "teff", "snr_g")]
    n, median, sigma = (usable[c].to_numpy(dtype=np.float64) for c in ("n", "median", "sigma"))
    log_median = fit_polynomial(*place, np.log(median), (sigma / median) ** 2 * (np.pi / 2 / n + FLOOR**2))
    log_sigma = fit_polynomial(*place, np.log(sigma), 1 / (2 * n) + FLOOR**2)
    if log_median is None or log_sigma is None:
        return None
    return Chi2Model(log_median, log_sigma, tuple(sorted(usable["cell"].tolist())), int(n.sum()))


def catalog_flags(
    frame: pd.DataFrame,
    *,
    min_teff: float,
    min_snr: float,
    max_chi2ratio: float,
    errors_scaled: bool = True,
    contaminant: np.ndarray | bool = False,
) -> pd.DataFrame:
    """Flags of the catalog, and whether a spectrum belongs to the sample.

    Parameters
    ----------
    frame : pandas.DataFrame
        The 11 labels as merged (vsini not yet set to 0), ``ra``, ``dec`` [deg], ``snr_g``, ``rv`` [km/s],
        ``chi2_red``, ``chi2ratio`` and `hotdask.schema.RESIDUALS`; ``flags`` of the fit, if there, are kept.
    min_teff : float
        Limit of the sample [K].
    min_snr : float
        Limit of the sample; an unknown S/N is below it.
    max_chi2ratio : float
        chi2ratio above this is a bad fit. It does not cut the sample.
    errors_scaled : bool
        Whether the errors were scaled to repeats. They are not where the S/N is unknown.
    contaminant : (n,) bool
        As from `hotdask.crossmatch.photometry.intrinsically_cool`.

    Returns
    -------
    pandas.DataFrame
        With the frame's index: ``flags`` (int32) bits of `hotdask.flags.Flag`, ``in_sample`` (bool): all labels
        finite, Teff ≥ min_teff, S/N ≥ min_snr, no contaminant.

    References
    ----------
    Xiang et al. 2022, §5.1-5.6.

    Examples
    --------
    >>> row = dict.fromkeys([*LABEL_NAMES, "ra", "dec", *(c.name for c in RESIDUALS)], [0.0])
    >>> row |= {"teff": 6800.0, "logg": 4.0, "vsini": -3.0, "snr_g": 40.0}
    >>> row |= {"rv": 12.0, "chi2_red": 1.0, "chi2ratio": 0.5}
    >>> out = catalog_flags(pd.DataFrame(row), min_teff=7000, min_snr=5, max_chi2ratio=10)
    >>> Flag(int(out["flags"][0])) == Flag.COOL | Flag.NEGATIVE_VSINI, bool(out["in_sample"][0])
    (True, False)
    """
    labels = frame[list(LABEL_NAMES)].to_numpy(dtype=np.float64)
    teff, vsini, snr, rv, ratio = (
        frame[c].to_numpy(dtype=np.float64) for c in ("teff", "vsini", "snr_g", "rv", "chi2ratio")
    )
    fitted = np.isfinite(labels).all(axis=1)
    enough = snr >= min_snr
    raised = {
        Flag.LOW_SNR: ~enough,
        Flag.COOL: teff < min_teff,
        Flag.BAD_CHI2: ratio > max_chi2ratio,
        # Without labels there is nothing to judge; FEW_PIXELS says so already.
        Flag.NO_CHI2RATIO: fitted & np.isnan(ratio),
        Flag.UNSCALED_ERRORS: fitted & (np.isnan(snr) | (not errors_scaled)),
        Flag.LARGE_VELOCITY: np.abs(rv) > MAX_Z * SPEED_OF_LIGHT,
        Flag.NEGATIVE_VSINI: vsini < 0,
        **_residual_flags(frame),
        **_kind_flags(frame),
        Flag.INTRINSICALLY_COOL: np.broadcast_to(contaminant, teff.shape),
    }
    flags = frame["flags"].to_numpy(dtype=np.int32) if "flags" in frame else np.zeros(len(frame), dtype=np.int32)
    for flag, where in raised.items():
        flags = flags | np.where(where, int(flag), 0).astype(np.int32)
    return pd.DataFrame(
        {"flags": flags, "in_sample": fitted & (teff >= min_teff) & enough & ~np.asarray(contaminant)},
        index=frame.index,
    )


def _residual_flags(frame: pd.DataFrame) -> dict[Flag, np.ndarray]:
    """What the pixels say."""
    value = {c.name: frame[c.name].to_numpy(dtype=np.float64) for c in RESIDUALS}
    # Emission is strongest in Hα. Where that was not seen the other lines tell, whose models err by twice as much.
    unseen = np.isnan(value["halpha_excess"])
    width = EMISSION_WIDTH * np.where(unseen, 2, 1)
    excess, error = (np.where(unseen, value[f"balmer_excess{e}"], value[f"halpha_excess{e}"]) for e in ("", "_err"))
    # Not stretched by chi2_red: it is the emission that makes it large.
    emission = (excess > width) & (excess > SIGNIFICANT * error)
    # A shift that the labels were fitted with is none of them.
    left = value["rv_shift"] - value["rv_refit"]
    return {
        Flag.EMISSION: emission,
        # Emission fills line cores, which a second star seems to explain; no pair of stars is taken for emission.
        Flag.BINARY: (value["binary_score"] > BINARY_SCORE) & ~emission,
        Flag.VELOCITY_SUSPECT: is_suspect(left, value["rv_shift_err"], frame["chi2_red"].to_numpy(dtype=np.float64)),
    }


def _kind_flags(frame: pd.DataFrame) -> dict[Flag, np.ndarray]:
    """Kinds of stars whose labels want caution."""
    teff, logg, vsini, fe_h, si_h = (
        frame[name].to_numpy(dtype=np.float64) for name in ("teff", "logg", "vsini", "fe_h", "si_h")
    )
    high = np.abs(galactic_latitude(frame["ra"].to_numpy(), frame["dec"].to_numpy())) > 15
    return {
        Flag.PECULIAR: (fe_h > 0.2) & (si_h > 0.4) & (vsini < 150) & (teff > 7000) & (teff < 20000),
        Flag.SUBDWARF: (logg > 5) & (teff > 7000),
        Flag.NLTE: (teff > NLTE_LIMIT) | (logg < 2),
        Flag.HALO: (fe_h < -1.2) & high & (teff > 7000) & (teff < 13000),
    }


def galactic_latitude(ra, dec) -> np.ndarray:
    """Galactic latitude b [deg] of J2000 positions [deg].

    Examples
    --------
    >>> galactic_latitude(266.405, -28.936).round(2) + 0.0
    np.float64(0.0)
    """
    ra, dec = np.radians(ra), np.radians(dec)
    sine = np.sin(dec) * np.sin(_POLE[1]) + np.cos(dec) * np.cos(_POLE[1]) * np.cos(ra - _POLE[0])
    return np.degrees(np.arcsin(np.clip(sine, -1, 1)))
