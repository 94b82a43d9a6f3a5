"""Matching by cells against all pairs of astropy's separations; motions against astropy's space motion."""

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord, angular_separation, offset_by
from astropy.time import Time
from astropy_healpix import HEALPix
from hypothesis import given, settings
from hypothesis import strategies as st

from hotdask.crossmatch.match import cell_order, cells, cells_within, move, nearest
from hotdask.errors import InputError


def _corners() -> list[tuple[float, float]]:
    """Places where cells meet: corners of cells, those where only three meet among them, poles and RA 0."""
    lon, lat = HEALPix(nside=1, order="nested").boundaries_lonlat(np.arange(12), 1)
    fine_lon, fine_lat = HEALPix(nside=1024, order="nested").boundaries_lonlat(np.arange(0, 12 * 1024**2, 1_234_567), 1)
    lon, lat = (np.concatenate([a.deg.ravel(), b.deg.ravel()]) for a, b in ((lon, fine_lon), (lat, fine_lat)))
    poles = [(0.0, 90.0), (123.0, 89.9999), (0.0, -90.0), (0.0, 0.0), (359.9999, 12.0), (0.0, -41.8103)]
    return [*zip(lon.tolist(), lat.tolist(), strict=True), *poles]


CORNERS = _corners()


@st.composite
def crowds(draw):
    """Two tables around a corner of cells, within some radii of it."""
    lon, lat = draw(st.sampled_from(CORNERS))
    radius = draw(st.sampled_from([0.5, 3.0, 40.0, 1200.0]))
    places = st.tuples(st.floats(0, 360), st.floats(0, 4))
    out = [radius]
    for n in (draw(st.integers(1, 8)), draw(st.integers(1, 8))):
        angle, distance = np.array(draw(st.lists(places, min_size=n, max_size=n))).T
        place = offset_by(*np.radians([lon, lat]), np.radians(angle), np.radians(distance * radius / 3600))
        ra, dec = (a.deg for a in place)
        out += [ra % 360, np.clip(dec, -90, 90)]
    return out


@settings(max_examples=100, deadline=None)
@given(crowds())
def test_no_pair_is_lost_at_a_border(crowd):
    radius, ra, dec, ra_other, dec_other = crowd
    one, two = np.radians([ra, dec])[:, :, None], np.radians([ra_other, dec_other])[:, None, :]
    separation = np.degrees(angular_separation(*one, *two)) * 3600
    near = separation < radius * (1 - 1e-6)
    order = cell_order(radius)
    home = cells(ra, dec, order=order)
    row, cell = cells_within(ra_other, dec_other, order=order, radius=radius)
    together = np.zeros_like(near)
    for r, c in zip(row, cell, strict=True):
        together[home == c, r] = True
    assert (together | ~near).all()
    index, found = nearest(ra, dec, ra_other, dec_other, radius=radius)
    best = separation.min(axis=1)
    clear = np.abs(best - radius) > 1e-6 * radius
    np.testing.assert_array_equal((index >= 0)[clear], (best <= radius)[clear])
    np.testing.assert_allclose(found[index >= 0], best[index >= 0], atol=1e-6)


def test_few_are_in_two_cells_and_none_in_many():
    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, 20_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 20_000)))
    row, _ = cells_within(ra, dec, order=cell_order(3.0), radius=3.0)
    assert len(row) < 1.6 * ra.size
    assert np.bincount(row).max() <= 4
    assert set(row) == set(range(ra.size))


def test_the_first_of_several_at_one_place_and_unusable_positions():
    index, separation = nearest([10.0, np.nan, 10.0], [5.0, 0.0, 95.0], [np.nan, 10.0, 10.0], [5.0, 5.0, 5.0], radius=1)
    assert index.tolist() == [1, -1, -1]
    assert separation[0] == 0
    assert np.isnan(separation[1:]).all()
    assert nearest([1.0], [1.0], [], [], radius=1)[0].tolist() == [-1]
    assert cells_within([np.nan], [0.0], order=3, radius=3.0)[0].size == 0


@pytest.mark.parametrize("radius", [0, -1, np.nan, 1801])
def test_absurd_radii_are_refused(radius):
    with pytest.raises(InputError, match="match radius"):
        cell_order(radius)


def test_moved_as_astropy_moves():
    rng = np.random.default_rng(4)
    ra, dec = (
        rng.uniform(0, 360, 100),
        np.concatenate([np.degrees(np.arcsin(rng.uniform(-1, 1, 97))), [89.9999, -89.9999, 0]]),
    )
    pmra, pmdec = rng.normal(0, 2000, (2, 100))
    sky = SkyCoord(
        ra * u.deg,
        dec * u.deg,
        pm_ra_cosdec=pmra * u.mas / u.yr,
        pm_dec=pmdec * u.mas / u.yr,
        distance=10 * u.pc,
        radial_velocity=0 * u.km / u.s,
        obstime=Time(2016.0, format="jyear", scale="tcb"),
    )
    there = sky.apply_space_motion(new_obstime=Time(2000.0, format="jyear", scale="tcb"))
    moved = SkyCoord(*(x * u.deg for x in move(ra, dec, pmra, pmdec, -16.0)))
    assert moved.separation(SkyCoord(there.ra, there.dec)).to_value(u.mas).max() < 1
    still = move(ra, dec, np.full(100, np.nan), pmdec, -16.0)
    np.testing.assert_array_equal(still, (ra, dec))
