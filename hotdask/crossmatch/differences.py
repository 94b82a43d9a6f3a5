"""Compare a catalog with labels from elsewhere: which spectrum is which star, and how far labels differ."""

from itertools import pairwise

import numpy as np
import pandas as pd
from astropy import units as u
from astropy.coordinates import SkyCoord, search_around_sky
from astropy.stats import mad_std

from hotdask.errors import InputError
from hotdask.labels import LABEL_NAMES, LABELS

TEFF_EDGES = (11000.0, 15000.0, 25000.0)
"""Temperatures at which the paper's own comparison changes its character [K] (§4.7)."""


def match_names(catalog, table) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a catalog and of a table that have the same name.

    Parameters
    ----------
    catalog, table : sequence of str
        Names; upper and lower case, spaces and underscores make no difference, and an empty one matches nothing.

    Returns
    -------
    catalog_row, table_row : (n,) int64
        Pairs, in the catalog's order. Every spectrum of a star is in one.

    Raises
    ------
    InputError
        If a name stands in the table twice.

    Examples
    --------
    >>> [rows.tolist() for rows in match_names(["HD 36512", "x", "hd36512"], ["HD_36512", ""])]
    [[0, 2], [0, 0]]
    """
    known, sought = _plain(table), _plain(catalog)
    known = known[known != ""]
    twice = known[known.duplicated()]
    if len(twice):
        raise InputError(
            f"the table has {len(twice)} name(s) more than once, first '{twice.iloc[0]}'; keep one row each"
        )
    where = sought.map(pd.Series(known.index, index=known.to_numpy())).to_numpy(dtype=np.float64)
    rows = np.flatnonzero(np.isfinite(where))
    return rows, where[rows].astype(np.int64)


def _plain(names) -> pd.Series:
    names = pd.Series(np.asarray(names, dtype=object))
    return names.fillna("").astype("str").str.replace(r"[\s_]", "", regex=True).str.upper()


def match_positions(catalog: np.ndarray, table: np.ndarray, *, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a catalog and of a table that lie within a radius; each spectrum goes to its nearest star.

    Parameters
    ----------
    catalog, table : (n, 2) float64
        Right ascension and declination [deg]; what is not finite matches nothing.
    radius : float
        [arcsec].

    Returns
    -------
    catalog_row, table_row : (n,) int64
        Pairs, in the catalog's order.

    Raises
    ------
    InputError
        If a declination is beyond ±90 deg.

    Examples
    --------
    >>> [rows.tolist() for rows in match_positions([[10, 20], [50, 0]], [[10.0002, 20.0], [10.001, 20.0]], radius=5)]
    [[0], [0]]
    """
    places = [np.asarray(place, dtype=np.float64).reshape(-1, 2) for place in (catalog, table)]
    if any((np.abs(place[:, 1]) > 90).any() for place in places):
        raise InputError("a declination is beyond ±90 deg; give dec in degrees")
    rows = [np.flatnonzero(np.isfinite(place).all(axis=1)) for place in places]
    if not all(map(len, rows)):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    sky = [SkyCoord(*place[row].T * u.deg) for place, row in zip(places, rows, strict=True)]
    first, second, distance, _ = search_around_sky(*sky, radius * u.arcsec)
    order = np.lexsort((second, distance.arcsec, first))
    first, second = first[order], second[order]
    nearest = np.r_[True, first[1:] != first[:-1]] if len(first) else np.empty(0, bool)
    return rows[0][first[nearest]], rows[1][second[nearest]]


def best_visits(star: np.ndarray, snr: np.ndarray) -> np.ndarray:
    """Of several spectra of a star the one of highest S/N.

    Parameters
    ----------
    star : (n,) int
        Number of each spectrum's star.
    snr : (n,) float
        S/N; NaN ranks last.

    Returns
    -------
    (k,) int64
        Rows, one a star, in the order of the stars' numbers.

    Examples
    --------
    >>> best_visits([7, 3, 7, 7], [10.0, float("nan"), 30.0, 20.0]).tolist()
    [1, 2]
    """
    star, snr = np.asarray(star), np.nan_to_num(np.asarray(snr, dtype=np.float64), nan=-np.inf)
    order = np.lexsort((np.arange(len(star)), -snr, star))
    return order[np.r_[True, np.diff(star[order]) != 0]] if len(order) else order


def label_differences(pairs: pd.DataFrame, *, edges=TEFF_EDGES) -> pd.DataFrame:
    """Offset and robust scatter of every label, over all stars and in ranges of Teff.

    Parameters
    ----------
    pairs : pandas.DataFrame
        One row a star: labels as ``<name>`` and ``<name>_ref`` and, where known, their errors as ``<name>_err`` and
        ``<name>_ref_err``, in the units of `hotdask.labels`. Labels without ``<name>_ref`` are left out.
    edges : sequence of float
        Of the ranges of Teff [K], increasing; below the first and above the last lies one more each. Ranges go by
        ``teff_ref``, or by ``teff`` where there is none.

    Returns
    -------
    pandas.DataFrame
        One row a label and range, that of all stars first: ``label``, ``unit``, ``teff_low`` and ``teff_high`` [K] (0
        and infinity if open), ``n`` stars with a difference; ``offset``, the median of catalog − reference, and
        ``offset_err``, √(π/2)·scatter/√n; ``scatter``, 1.4826 times the median absolute deviation from it; ``pull``,
        that scatter in units of both errors together (a reference without any counts as exact). NaN where
        there is too little.

    Raises
    ------
    InputError
        If the edges do not increase.

    References
    ----------
    Xiang et al. 2022, §4.7, Figs 11-12.

    Examples
    --------
    >>> pairs = pd.DataFrame({"teff": [9100.0, 9300.0, 20500.0], "teff_ref": [9000.0, 9000.0, 20000.0]})
    >>> label_differences(pairs, edges=[10000])[["teff_low", "n", "offset"]].values.tolist()
    [[0.0, 3.0, 300.0], [0.0, 2.0, 200.0], [10000.0, 1.0, 500.0]]
    """
    edges = np.asarray(edges, dtype=np.float64)
    if (np.diff(edges) <= 0).any() or not np.isfinite(edges).all():
        raise InputError(f"edges of Teff {edges.tolist()} do not increase; correct them")
    bounds = np.r_[0.0, edges, np.inf]
    ranges = list(pairwise(bounds))
    if len(ranges) > 1:
        ranges.insert(0, (0.0, np.inf))
    teff = reference_teff(pairs)
    rows = []
    for label in (lb for lb in LABELS if f"{lb.name}_ref" in pairs):
        difference, error = differences(pairs, label.name)
        for low, high in ranges:
            chosen = np.isfinite(difference) & (teff >= low) & (teff < high)
            here = difference[chosen]
            pull = (here / error[chosen])[np.isfinite(error[chosen])]
            scatter = float(mad_std(here)) if here.size > 1 else np.nan
            rows.append(
                {
                    "label": label.name,
                    "unit": label.unit,
                    "teff_low": low,
                    "teff_high": high,
                    "n": here.size,
                    "offset": float(np.median(here)) if here.size else np.nan,
                    "offset_err": np.sqrt(np.pi / 2) * scatter / np.sqrt(max(here.size, 1)),
                    "scatter": scatter,
                    "pull": float(mad_std(pull)) if pull.size > 1 else np.nan,
                }
            )
    return pd.DataFrame(rows)


def reference_teff(pairs: pd.DataFrame) -> np.ndarray:
    """(n,) Teff [K] against which differences are looked at: the reference's, the catalog's where it gives none."""
    teff = pairs["teff"].to_numpy(dtype=np.float64)
    if "teff_ref" not in pairs:
        return teff
    known = pairs["teff_ref"].to_numpy(dtype=np.float64)
    return np.where(np.isfinite(known), known, teff)


def differences(pairs: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Catalog − reference of one label and the error of that, both (n,), in the label's unit; NaN where unknown.

    A reference that gives no error counts as exact.
    """
    if name not in LABEL_NAMES:
        raise InputError(f"no label is called {name}; there are {', '.join(LABEL_NAMES)}")

    def column(key: str) -> np.ndarray:
        return pairs[key].to_numpy(dtype=np.float64) if key in pairs else np.full(len(pairs), np.nan)

    error = np.hypot(column(f"{name}_err"), np.nan_to_num(column(f"{name}_ref_err")))
    return column(name) - column(f"{name}_ref"), np.where(error > 0, error, np.nan)
