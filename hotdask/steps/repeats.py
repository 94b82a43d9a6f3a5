"""Which spectra are of one star, and pairs of them that tell how well labels repeat."""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from hotdask.errors import InputError
from hotdask.labels import LABEL_NAMES

_CIRCLE = 360 * 3600
_NEAREST = 16
"""Visits of higher S/N that a visit is paired with, where a star has so many that all pairs would be too many."""
_FEW = 2 * _NEAREST + 1
"""Visits of a star that are all paired with each other."""
_REACH = 1024
"""Visits of higher S/N among which those of other nights are looked for."""
_ROUNDING = 6
"""Decimals of an arcsecond: a position written as a round number of them must not fall below it in binary."""


def assign_stars(ra, dec, snr, specid, *, radius: float = 3.0) -> pd.DataFrame:
    """Group spectra into stars by position, and number the spectra of each.

    Spectra closer than the radius are of one star, and so are those that a chain of such neighbors joins. The answer
    does not depend on the order of the spectra.

    Parameters
    ----------
    ra, dec : (n,) float64
        J2000 position [deg].
    snr : (n,) float
        S/N per pixel in g; NaN ranks last.
    specid : (n,) str
        Decides between equal S/N.
    radius : float
        [arcsec].

    Returns
    -------
    pandas.DataFrame
        In the order given: ``star_id``, "Sdddmmss±ddmmss" of the star's best spectrum, RA and Dec in degrees, minutes
        and seconds of arc, truncated; ``uniqflag`` (int32), 1 for the star's highest S/N, then 2, 3, … Different stars
        with the same truncated position (possible below a radius of 1.5 arcsec only) get b, c, … appended to all but
        the one with the best spectrum.

    Raises
    ------
    InputError
        If a position is not finite, or a declination is beyond ±90 deg.

    References
    ----------
    Xiang et al. 2022, §5.6, Table 5.

    Examples
    --------
    >>> assign_stars([359.9999, 0.0001, 10.5], [-1.5, -1.5, 20.0], [10, 30, 5], ["a", "b", "c"]).values.tolist()
    [['S0000000-013000', 2], ['S0000000-013000', 1], ['S0103000+200000', 1]]
    """
    ra, dec, snr = (np.asarray(a, dtype=np.float64) for a in (ra, dec, snr))
    specid = np.asarray(specid, dtype=object)
    bad = ~(np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90))
    if bad.any():
        which = ", ".join(f"{s} ({a}, {d})" for s, a, d in zip(specid[bad][:5], ra[bad], dec[bad], strict=False))
        raise InputError(
            f"{bad.sum()} spectra have no usable position (ra, dec in degrees): {which}; correct or drop them"
        )
    if not ra.size:
        return pd.DataFrame({"star_id": pd.Series(dtype="str"), "uniqflag": pd.Series(dtype="int32")})

    component = _components(np.mod(ra, 360.0), dec, radius)
    rank = pd.factorize(pd.Series(specid), sort=True)[0]
    falling = np.where(np.isnan(snr), np.inf, -snr)
    order = np.lexsort((dec, ra, rank, falling, component))
    first = np.flatnonzero(np.diff(component[order], prepend=-1))
    star = np.cumsum(np.isin(np.arange(ra.size), first)) - 1
    uniqflag = np.empty(ra.size, dtype=np.int32)
    uniqflag[order] = np.arange(ra.size) - first[star] + 1

    best = order[first]
    names = _truncated(ra[best], dec[best])
    by_rank = np.lexsort((dec[best], ra[best], rank[best], falling[best]))
    namesake = pd.Series(names[by_rank]).groupby(names[by_rank]).cumcount().to_numpy()
    for k, i in zip(namesake, by_rank, strict=True):
        if k:
            names[i] += _letters(k)
    star_id = np.empty(ra.size, dtype=object)
    star_id[order] = names[star]
    return pd.DataFrame({"star_id": pd.Series(star_id, dtype="str"), "uniqflag": uniqflag})


def _components(ra: np.ndarray, dec: np.ndarray, radius: float) -> np.ndarray:
    # Visits of a target mostly share one catalog position; without merging those a star of n visits makes n² pairs.
    position, inverse = np.unique(ra + 1j * dec, return_inverse=True)
    lon, lat = np.radians(position.real), np.radians(position.imag)
    vectors = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    chord = 2 * np.sin(np.radians(radius / 3600) / 2)
    i, j = cKDTree(vectors).query_pairs(chord, output_type="ndarray").T
    graph = coo_array((np.ones(i.size, dtype=bool), (i, j)), shape=(len(position), len(position)))
    return connected_components(graph, directed=False)[1][inverse].astype(np.int64)


def _truncated(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Names "Sdddmmss±ddmmss"."""
    a = np.floor(np.round(np.mod(ra, 360.0) * 3600, _ROUNDING)).astype(np.int64) % _CIRCLE
    d = np.floor(np.round(np.abs(dec) * 3600, _ROUNDING)).astype(np.int64)
    sign = np.where(dec < 0, "-", "+")
    return np.array(
        [
            f"S{p // 3600:03d}{p // 60 % 60:02d}{p % 60:02d}{s}{q // 3600:02d}{q // 60 % 60:02d}{q % 60:02d}"
            for p, q, s in zip(a.tolist(), d.tolist(), sign, strict=True)
        ],
        dtype=object,
    )


def _letters(k: int) -> str:
    """1 → b, 2 → c, … 25 → z, 26 → aa, as columns of a spreadsheet are named."""
    text, k = "", k + 1
    while k:
        k, digit = divmod(k - 1, 26)
        text = chr(ord("a") + digit) + text
    return text


def _all_pairs(star: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Pairs of visits of one star, as places in ``star``, which is sorted; ``here``: all visits of some stars."""
    found, lag = [np.empty((0, 2), dtype=np.int64)], 1
    # Lag by lag: at lag k only those stay that still have a k-th successor of the same star.
    while here.size:
        here = here[here + lag < star.size]
        here = here[star[here] == star[here + lag]]
        found.append(np.stack([here, here + lag], axis=1))
        lag += 1
    return np.concatenate(found)


def _nearest_pairs(
    star: np.ndarray, mjd: np.ndarray, snr: np.ndarray, here: np.ndarray, tolerance: float
) -> list[np.ndarray]:
    """Pairs of each visit of ``here`` with the next above it in S/N, then time, of other nights, lag by lag."""
    here = here[np.isfinite(snr[here])]
    here = here[np.lexsort((here, mjd[here], snr[here], star[here]))]
    first, left, found = np.arange(here.size), np.full(here.size, _NEAREST), []
    for lag in range(1, _REACH + 1):
        first = first[(first + lag < here.size) & (left[first] > 0)]
        one, two = here[first], here[first + lag]
        near = (star[one] == star[two]) & (snr[two] - snr[one] <= tolerance * (snr[one] + snr[two]) / 2)
        # What comes behind one that is too far off is farther.
        first, one, two = first[near], one[near], two[near]
        other = mjd[one] != mjd[two]
        left[first[other]] -= 1
        found.append(np.sort(np.stack([one[other], two[other]], axis=1), axis=1))
        if not first.size:
            break
    return found


def make_pairs(frame: pd.DataFrame, *, snr_tolerance: float = 0.2) -> pd.DataFrame:
    """Pairs of spectra of one star from different nights with similar S/N.

    All such pairs of a star of up to 33 visits. Of more (a calibration star, or positions that are all 0, 0), each
    visit is paired with the 16 next above it in S/N, then in time, so that pairs grow with the visits, not their
    square.

    Parameters
    ----------
    frame : pandas.DataFrame
        ``star_id``, ``specid``, ``mjd`` [d], ``snr_g``, and the labels with their formal errors ``*_err``. All spectra
        of a star must be in the same frame. vsini must be as fitted: set to 0 where negative it would repeat too well.
    snr_tolerance : float
        Largest difference in S/N, as a share of the mean of the two.

    Returns
    -------
    pandas.DataFrame
        One row a pair, in order of star_id and specid: ``teff`` [K] and ``snr_g``, means of the two, and for each label
        ``<label>_pull`` = (l1 − l2) / √(e1² + e2²), NaN where a label is missing or its errors are not positive. Pairs
        without both Teff and S/N are left out.

    References
    ----------
    Xiang et al. 2022, §4.6.

    Examples
    --------
    >>> visits = pd.DataFrame({"star_id": "S1", "specid": ["a", "b", "c"], "mjd": [1, 2, 2], "snr_g": [50.0, 55, 99]})
    >>> for name in LABEL_NAMES:
    ...     visits[name], visits[f"{name}_err"] = [1000.0, 1070.0, 0.0], [30.0, 40.0, 1.0]
    >>> make_pairs(visits)[["teff", "snr_g", "teff_pull"]].values.tolist()
    [[1035.0, 52.5, -1.4]]
    """
    mjd, snr, teff = (frame[c].to_numpy(dtype=np.float64) for c in ("mjd", "snr_g", "teff"))
    star = pd.factorize(frame["star_id"], sort=True)[0]
    order = np.lexsort((teff, snr, mjd, pd.factorize(frame["specid"], sort=True)[0], star))
    order = order[star[order] >= 0]
    star = star[order]

    few = np.bincount(star, minlength=1)[star] <= _FEW
    found = [_all_pairs(star, np.flatnonzero(few))]
    found += _nearest_pairs(
        star, mjd[order], snr[order], np.flatnonzero(~few & np.isfinite(teff[order])), snr_tolerance
    )
    pairs = np.concatenate(found)
    one, two = order[pairs[np.lexsort(pairs.T[::-1])]].T

    mean = (snr[one] + snr[two]) / 2
    keep = (mjd[one] != mjd[two]) & (np.abs(snr[one] - snr[two]) <= snr_tolerance * mean)
    keep &= np.isfinite(teff[one] + teff[two])
    one, two = one[keep], two[keep]
    out = {"teff": (teff[one] + teff[two]) / 2, "snr_g": mean[keep]}
    for name in LABEL_NAMES:
        value, error = (frame[c].to_numpy(dtype=np.float64) for c in (name, f"{name}_err"))
        usable = np.where(np.isfinite(error) & (error > 0), error, np.nan)
        out[f"{name}_pull"] = (value[one] - value[two]) / np.hypot(usable[one], usable[two])
    return pd.DataFrame(out)
