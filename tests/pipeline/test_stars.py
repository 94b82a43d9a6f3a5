"""Stars found across partitions against all pairs, wherever partitions and cells of the sky end."""

from pathlib import Path
from tempfile import TemporaryDirectory

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
from astropy.coordinates import angular_separation, offset_by
from astropy_healpix import HEALPix
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hotdask.pipeline.plan import sky_order
from hotdask.pipeline.tables import STARS, find_stars
from hotdask.store.cube import SIDECAR
from hotdask.store.grouped import read_group, split
from hotdask.store.parquet import part_path, write_table

RADIUS = 3.0
_LON, _LAT = HEALPix(nside=4096, order="nested").boundaries_lonlat(np.array([0, 4095, 10**7, 10**8, 2 * 10**8 + 1]), 1)
PLACES = [
    *((180.0, 90.0), (0.0, -90.0), (77.0, 89.9995), (0.0, 0.0), (0.0, 45.0), (359.9999, -12.0), (45.0, 41.8103149)),
    *zip(_LON.deg.ravel().tolist(), _LAT.deg.ravel().tolist(), strict=True),
]
SPREAD = st.lists(st.tuples(st.floats(0, 2 * np.pi), st.floats(0, 12)), min_size=1, max_size=12)
CHAIN = st.tuples(st.floats(0, 2 * np.pi), st.sampled_from([1.0, 2.5, 2.99, 3.01]), st.integers(2, 9))


@st.composite
def surveys(draw):
    """Crowds and chains within some radii of a pole, RA 0 or a corner of cells, and how they are cut into parts."""
    lon, lat = np.radians(draw(st.sampled_from(PLACES)))
    angle, distance = np.array(draw(SPREAD)).T
    for direction, step, links in draw(st.lists(CHAIN, max_size=2)):
        # Links of a great circle through the place: A is near B and B near C, but A not near C.
        along = (np.arange(links) - links // 2) * step
        angle = np.concatenate([angle, np.where(along < 0, direction + np.pi, direction)])
        distance = np.concatenate([distance, np.abs(along)])
    x, y = offset_by(lon, lat, angle, np.radians(distance / 3600))
    ra, dec = x.deg % 360, np.clip(y.deg, -90, 90)
    snr = draw(st.lists(st.sampled_from([10.0, 20.0, np.nan]), min_size=len(ra), max_size=len(ra)))
    return ra, dec, np.array(snr), draw(st.integers(1, len(ra))), draw(st.integers(1, 4))


def all_pairs(ra, dec):
    """Which spectra are of one star: near one another, or joined by others."""
    lon, lat = np.radians([ra, dec])
    separation = np.degrees(angular_separation(lon[:, None], lat[:, None], lon, lat)) * 3600
    assume((np.abs(separation - RADIUS) > 1e-6).all())
    joined = separation < RADIUS
    for _ in range(len(ra)):
        joined = joined @ joined
    return joined


@settings(max_examples=40, deadline=None)
@given(surveys())
def test_stars_are_those_of_all_pairs(survey):
    ra, dec, snr, size, groups = survey
    names = np.array([f"{i:03d}" for i in range(len(ra))])
    order = sky_order(pd.DataFrame({"ra": ra, "dec": dec, "specid": names}))
    ra, dec, snr, names = ra[order], dec[order], snr[order], names[order]
    n = -(-len(ra) // size)
    with TemporaryDirectory() as run, dask.config.set(scheduler="synchronous"):
        for part in range(n):
            here = slice(part * size, (part + 1) * size)
            columns = {"specid": pa.array(names[here].tolist(), pa.large_string()), "ra": ra[here], "dec": dec[here]}
            table = pa.table(columns | {"snr_g": snr[here].astype(np.float32)})
            write_table(part_path(Path(run, SIDECAR), part), table)
        n_star = find_stars(run, np.array_split(range(n), min(groups, n)), split(len(ra), size), RADIUS)
        stars = [read_group(Path(run, STARS), part) for part in range(n)]
    assert [len(s) for s in stars] == [min(size, len(ra) - p * size) for p in range(n)]
    star = np.concatenate([s["star_id"] for s in stars])
    flag = np.concatenate([s["uniqflag"] for s in stars])
    repeated = np.concatenate([s["hotdask:repeated"] for s in stars])
    joined = all_pairs(ra, dec)
    np.testing.assert_array_equal(star[:, None] == star[None], joined)
    assert n_star == len(set(star.tolist()))
    np.testing.assert_array_equal(repeated, joined.sum(axis=1) > 1)
    rank = np.nan_to_num(snr, nan=-1)
    before = (rank[None] > rank[:, None]) | ((rank[None] == rank[:, None]) & (names[None] < names[:, None]))
    np.testing.assert_array_equal(flag, 1 + (joined & before).sum(axis=1))
