"""Match positions on the sky: which cell a position is in, which cells it may have a neighbor in, and who is nearest.

Tables too large for memory are matched cell by cell: each object of one table goes to its own cell, each of the other
to every cell it may have a neighbor in. No pair is lost at a border then, and none is found twice.
"""

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord, match_coordinates_sky
from astropy_healpix import HEALPix

from hotdask.errors import InputError

_CELL = 64
"""Width of a cell, in radii, at least: few objects are near a border then."""
_FINE = 4
"""Width of the pixels whose neighbors say what is near, in radii; the narrowest pixel is half as wide as the mean."""
_MAX_ORDER = 10
_MAX_RADIUS = 1800.0
_MAS = np.pi / 180 / 3.6e6


def cell_order(radius: float) -> int:
    """HEALPix order of the cells for a match within a radius [arcsec].

    Raises
    ------
    InputError
        If the radius is not between 0 and 1800 arcsec.

    Examples
    --------
    >>> cell_order(3.0), cell_order(60.0)
    (10, 5)
    """
    if not 0 < radius <= _MAX_RADIUS:
        raise InputError(f"a match radius of {radius} arcsec; give one above 0, up to {_MAX_RADIUS:g}")
    return min(_order(_CELL * radius), _MAX_ORDER)


def _order(width: float) -> int:
    """The finest order whose pixels are at least that wide [arcsec] in the mean."""
    whole = np.degrees(np.sqrt(np.pi / 3)) * 3600
    return max(int(np.log2(whole / width)), 0)


def cells(ra, dec, *, order: int) -> np.ndarray:
    """The HEALPix cell (nested) of each position.

    Parameters
    ----------
    ra, dec : (n,) float64
        [deg].
    order : int

    Returns
    -------
    (n,) int64
        -1 where a position is not finite or no declination.

    Examples
    --------
    >>> cells([0.0, 45.0, np.nan], [0.0, 90.0, 0.0], order=0).tolist()
    [4, 0, -1]
    """
    ra, dec = (np.asarray(a, dtype=np.float64) for a in (ra, dec))
    good = _usable(ra, dec)
    out = np.full(ra.size, -1, dtype=np.int64)
    out[good] = _sky(order).lonlat_to_healpix(np.mod(ra[good], 360) * u.deg, dec[good] * u.deg)
    return out


def _usable(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    return np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)


def _sky(order: int) -> HEALPix:
    return HEALPix(nside=2**order, order="nested")


def cells_within(ra, dec, *, order: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Every cell that may hold something within a radius of each position, its own among them.

    Parameters
    ----------
    ra, dec : (n,) float64
        [deg]; unusable ones are in no cell.
    order : int
        As from `cell_order`.
    radius : float
        [arcsec].

    Returns
    -------
    row, cell : (m,) int64
        Pairs, each once.

    Examples
    --------
    >>> cells_within([45.0, 1e-5], [10.0, 45.0], order=0, radius=3.0)
    (array([0, 1, 1]), array([0, 0, 3]))
    """
    ra, dec = (np.asarray(a, dtype=np.float64) for a in (ra, dec))
    fine = max(min(_order(_FINE * radius), 29), order)
    own = np.flatnonzero(_usable(ra, dec))
    pixel = cells(ra[own], dec[own], order=fine)
    # A pixel at least as wide as the radius everywhere: what is that near is in it or in one of its eight neighbors.
    with np.errstate(invalid="ignore"):
        around = np.concatenate([pixel[None], _sky(fine).neighbours(pixel)])
    cell = np.where(around >= 0, around >> (2 * (fine - order)), -1)
    row = np.broadcast_to(own, cell.shape)
    found = np.unique(np.stack([row[cell >= 0], cell[cell >= 0]]), axis=1)
    return found[0].astype(np.int64), found[1].astype(np.int64)


def nearest(ra, dec, ra_other, dec_other, *, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The nearest object of another table within a radius.

    Parameters
    ----------
    ra, dec : (n,) float64
        [deg]; unusable ones have no match.
    ra_other, dec_other : (m,) float64
        [deg]. Of several at one position the first is taken.
    radius : float
        [arcsec].

    Returns
    -------
    index : (n,) int64
        Into the other table; -1 where nothing is that near.
    separation : (n,) float64
        [arcsec]; NaN where nothing is that near.

    Examples
    --------
    >>> nearest([359.9999, 20.0], [0.0, 0.0], [0.0001], [0.0], radius=3.0)
    (array([ 0, -1]), array([0.72,  nan]))
    """
    ra, dec, ra_other, dec_other = (np.asarray(a, dtype=np.float64) for a in (ra, dec, ra_other, dec_other))
    index, separation = np.full(ra.size, -1, dtype=np.int64), np.full(ra.size, np.nan)
    here = np.flatnonzero(_usable(ra, dec))
    there = np.flatnonzero(_usable(ra_other, dec_other))
    there = there[np.lexsort((dec_other[there], ra_other[there]))]
    if here.size and there.size:
        catalog = SkyCoord(ra_other[there] * u.deg, dec_other[there] * u.deg)
        found, distance, _ = match_coordinates_sky(SkyCoord(ra[here] * u.deg, dec[here] * u.deg), catalog)
        # Objects at one position: the tree takes any.
        first = _first_of_equals(ra_other[there], dec_other[there])[found]
        near = distance.arcsec <= radius
        index[here[near]], separation[here[near]] = there[first[near]], np.round(distance.arcsec[near], 9)
    return index, separation


def _first_of_equals(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """For rows in order of position, the first row at the same position."""
    new = np.concatenate([[True], (np.diff(ra) != 0) | (np.diff(dec) != 0)])
    return np.flatnonzero(new)[np.cumsum(new) - 1]


def move(ra, dec, pmra, pmdec, years) -> tuple[np.ndarray, np.ndarray]:
    """Positions some years later, by their proper motions along great circles.

    Parameters
    ----------
    ra, dec : (n,) float64
        [deg].
    pmra, pmdec : (n,) float64
        Proper motions, that in RA with the factor cos(Dec) [mas/yr]; where one is not finite the object stays.
    years : float or (n,) float64
        [yr]; where not finite the object stays.

    Returns
    -------
    ra, dec : (n,) float64
        [deg], RA in 0 to 360.

    Examples
    --------
    >>> ra, dec = move([0.0], [60.0], [-1000.0], [0.0], -16.0)
    >>> round(float(ra[0] * 3600 * 0.5), 3)
    16.0
    """
    ra, dec, pmra, pmdec = (np.asarray(a, dtype=np.float64) for a in (ra, dec, pmra, pmdec))
    years = np.broadcast_to(np.asarray(years, dtype=np.float64), ra.shape)
    known = _usable(ra, dec) & np.isfinite(pmra) & np.isfinite(pmdec) & np.isfinite(years)
    lon, lat = np.radians(ra[known]), np.radians(dec[known])
    outward = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    east = np.stack([-np.sin(lon), np.cos(lon), np.zeros_like(lon)])
    north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    x, y, z = outward + (east * pmra[known] + north * pmdec[known]) * years[known] * _MAS
    new_ra, new_dec = ra.copy(), dec.copy()
    new_ra[known], new_dec[known] = np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arctan2(z, np.hypot(x, y)))
    return new_ra, new_dec
