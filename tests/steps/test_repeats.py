"""Grouping against astropy's separations and angle strings; pairs against a plain double loop."""

import time
import tracemalloc
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.coordinates import Angle, SkyCoord, search_around_sky
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hotdask.errors import InputError
from hotdask.labels import LABEL_NAMES
from hotdask.steps.repeats import assign_stars, make_pairs

CENTERS = ((0.0, 0.0), (180.0, 89.9999), (0.0, 90.0), (77.0, -90.0), (359.9999, 45.0), (120.0, -0.0003))


@st.composite
def fields(draw):
    """A crowd within some 20 arcsec of a pole, of RA 0, or elsewhere, with S/N that repeats."""
    lon, lat = draw(st.sampled_from(CENTERS))
    n = draw(st.integers(2, 12))
    offsets = draw(st.lists(st.tuples(st.floats(0, 360), st.floats(0, 10)), min_size=n, max_size=n))
    angle, distance = np.array(offsets).T
    sky = SkyCoord(lon * u.deg, lat * u.deg).directional_offset_by(angle * u.deg, distance * u.arcsec)
    snr = draw(st.lists(st.sampled_from([10.0, 20.0, 30.0, np.nan]), min_size=n, max_size=n))
    specid = [f"20130101-plan-01-{i:03d}" for i in draw(st.permutations(range(n)))]
    return sky.ra.deg, np.clip(sky.dec.deg, -90, 90), np.array(snr), np.array(specid)


def _astropy_stars(ra, dec, radius):
    """Stars by astropy's own neighbor search, joined one pair at a time."""
    sky = SkyCoord(ra * u.deg, dec * u.deg)
    separation = sky[:, None].separation(sky[None]).arcsec
    assume((np.abs(separation - radius) > 1e-4).all())
    star = np.arange(len(ra))
    for i, j in zip(*search_around_sky(sky, sky, radius * u.arcsec)[:2], strict=True):
        star[star == star[j]] = star[i]
    return star


def _truncated(ra, dec):
    """astropy's strings cut, not rounded, at the second."""
    a, d = (Angle(x + 0.0, u.deg).to_string(sep="", pad=True, precision=6) for x in (ra, dec))
    sign = "-" if d.startswith("-") else "+"
    return f"S{a.split('.')[0].zfill(7)}{sign}{d.split('.')[0].lstrip('-')}"


@settings(max_examples=60, deadline=None)
@given(fields())
def test_stars_are_those_of_astropy(field):
    ra, dec, snr, specid = field
    out = assign_stars(ra, dec, snr, specid, radius=3.0)
    star = _astropy_stars(ra, dec, 3.0)
    same = out["star_id"].to_numpy()
    np.testing.assert_array_equal(same[:, None] == same[None], star[:, None] == star[None])
    for members in out.groupby("star_id").indices.values():
        ranked = sorted(members, key=lambda i: (-np.nan_to_num(snr[i], nan=-1), specid[i]))
        assert out["uniqflag"].iloc[ranked].tolist() == list(range(1, len(members) + 1))
        assert out["star_id"].iloc[ranked[0]] == _truncated(ra[ranked[0]], dec[ranked[0]])


@settings(max_examples=30, deadline=None)
@given(fields(), st.randoms(use_true_random=False), st.sampled_from([0.4, 3.0]))
def test_order_of_the_spectra_does_not_matter(field, random, radius):
    order = np.array(random.sample(range(len(field[0])), len(field[0])))
    out = assign_stars(*field, radius=radius)
    shuffled = assign_stars(*(column[order] for column in field), radius=radius)
    pd.testing.assert_frame_equal(shuffled, out.iloc[order].reset_index(drop=True))


@pytest.mark.parametrize(
    ("ra", "dec", "name"),
    [
        (332.535456, -2.116436, "S3323207-020659"),
        (10.1, 20.7, "S0100600+204200"),
        (0.0, -0.0001, "S0000000-000000"),
        (359.9999999999, 89.99999999999, "S0000000+900000"),
        (-0.5, 0.0, "S3593000+000000"),
    ],
)
def test_star_id_is_the_truncated_position(ra, dec, name):
    assert assign_stars([ra], [dec], [1.0], ["a"])["star_id"].tolist() == [name]


def test_a_star_id_seen_on_both_sides_of_ra_0():
    out = assign_stars([359.9998, 0.0002], [0.0, 0.0], [1.0, 2.0], ["a", "b"])
    assert out["star_id"].nunique() == 1
    assert out["uniqflag"].tolist() == [2, 1]


def test_neighbors_within_one_second_of_arc_stay_apart():
    second = 1 / 3600
    ra = 100 + second * np.array([0.1, 0.5, 0.9, 0.9])
    out = assign_stars(ra, [0.0] * 4, [5.0, 50.0, 20.0, 10.0], list("abcd"), radius=0.1)
    assert out["star_id"].tolist() == [f"S1000000+000000{s}" for s in ("c", "", "b", "b")]
    assert out["uniqflag"].tolist() == [1, 1, 1, 2]


def test_letters_do_not_run_out():
    ra = 100 + (np.arange(30) + 0.5) / 30 / 3600
    ids = assign_stars(ra, np.zeros(30), 100.0 - np.arange(30), [f"{i:02d}" for i in range(30)], radius=0.01)["star_id"]
    assert ids.is_unique
    assert [i.removeprefix("S1000000+000000") for i in ids[[0, 1, 25, 26, 27]]] == ["", "b", "z", "aa", "ab"]


def test_many_visits_at_one_position_are_cheap():
    n = 50_000
    out = assign_stars(np.full(n, 10.0), np.full(n, 10.0), np.arange(n), [f"{i:06d}" for i in range(n)])
    assert out["star_id"].nunique() == 1
    assert out["uniqflag"].tolist() == list(range(n, 0, -1))


def test_no_spectra_and_bad_positions():
    out = assign_stars([], [], [], [])
    assert out.dtypes.astype(str).to_dict() == assign_stars([1.0], [1.0], [1.0], ["a"]).dtypes.astype(str).to_dict()
    assert len(out) == 0
    with pytest.raises(InputError, match=r"1 spectra have no usable position.*second"):
        assign_stars([1.0, np.nan], [1.0, 2.0], [1.0, 1.0], ["first", "second"])
    with pytest.raises(InputError, match=r"91\.0"):
        assign_stars([1.0], [91.0], [1.0], ["first"])


def _visits(rng, n, n_stars):
    frame = pd.DataFrame(
        {
            "star_id": [f"S{i}" for i in rng.integers(n_stars, size=n)],
            "specid": [f"{i:05d}" for i in range(n)],
            "mjd": rng.integers(56000, 56004, size=n),
            "snr_g": rng.uniform(20, 60, size=n),
        }
    )
    for name in LABEL_NAMES:
        frame[name] = rng.normal(9000, 100, size=n)
        frame[f"{name}_err"] = rng.uniform(1, 3, size=n)
    return frame


def test_pairs_are_those_of_a_double_loop():
    frame = _visits(np.random.default_rng(2), 150, 20)
    expected = []
    for _, visits in frame.groupby("star_id"):
        for (_, a), (_, b) in combinations(visits.iterrows(), 2):
            mean = (a.snr_g + b.snr_g) / 2
            if a.mjd != b.mjd and abs(a.snr_g - b.snr_g) <= 0.2 * mean:
                pulls = [(a[x] - b[x]) / np.sqrt(a[f"{x}_err"] ** 2 + b[f"{x}_err"] ** 2) for x in LABEL_NAMES]
                expected.append([(a.teff + b.teff) / 2, mean, *pulls])
    out = make_pairs(frame)
    assert len(out) > 30
    assert list(out.columns) == ["teff", "snr_g", *(f"{x}_pull" for x in LABEL_NAMES)]
    np.testing.assert_allclose(out.to_numpy(), expected, rtol=1e-12)


def test_pairs_do_not_depend_on_row_order_or_index():
    frame = _visits(np.random.default_rng(3), 80, 10)
    pd.testing.assert_frame_equal(make_pairs(frame), make_pairs(frame.sample(frac=1, random_state=1)), check_exact=True)


def test_pulls_of_unusable_labels_are_missing():
    frame = _visits(np.random.default_rng(4), 3, 1).assign(mjd=[1, 2, 3], snr_g=50.0)
    frame.loc[0, "logg_err"] = 0.0
    frame.loc[0, "fe_h"] = np.nan
    frame.loc[2, "teff"] = np.nan
    out = make_pairs(frame)
    assert len(out) == 1
    assert out[["logg_pull", "fe_h_pull"]].isna().all(axis=None)
    assert np.isfinite(out["teff_pull"]).all()


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_visits_make_no_pairs(n):
    frame = _visits(np.random.default_rng(5), 5, 1)
    out = make_pairs(frame.iloc[:n])
    assert len(out) == 0
    assert (out.dtypes == make_pairs(frame.assign(mjd=range(5))).dtypes).all()


def test_unknown_snr_makes_no_pairs():
    frame = _visits(np.random.default_rng(6), 4, 1).assign(mjd=range(4), snr_g=np.nan)
    assert len(make_pairs(frame)) == 0


def test_pairs_of_a_star_with_many_visits_grow_with_them():
    n = 20_000
    frame = _visits(np.random.default_rng(7), n, 1).assign(star_id="S0000000+000000")
    tracemalloc.start()
    began = time.monotonic()
    out = make_pairs(frame)
    assert time.monotonic() - began < 10
    assert tracemalloc.get_traced_memory()[1] < 500e6
    tracemalloc.stop()
    # Each has its 16, but those at the top.
    assert 15.9 * n < len(out) <= 16 * n
    # They tell of the scatter what all pairs of few visits tell.
    few = make_pairs(_visits(np.random.default_rng(7), n, n // 4))
    assert out["teff_pull"].std() == pytest.approx(few["teff_pull"].std(), rel=0.05)
    shuffled = make_pairs(frame.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(shuffled, out, check_exact=True)


def test_the_nearest_in_snr_of_other_nights_are_paired():
    frame = _visits(np.random.default_rng(8), 400, 1).assign(star_id="S1")
    got = {tuple(row) for row in make_pairs(frame)[["teff", "snr_g"]].to_numpy().tolist()}
    expected = set()
    visits = frame.sort_values(["snr_g", "mjd", "specid"]).to_dict("records")
    for i, a in enumerate(visits):
        others = [b for b in visits[i + 1 :] if b["mjd"] != a["mjd"]][:16]
        expected |= {
            ((a["teff"] + b["teff"]) / 2, (a["snr_g"] + b["snr_g"]) / 2)
            for b in others
            if b["snr_g"] - a["snr_g"] <= 0.2 * (a["snr_g"] + b["snr_g"]) / 2
        }
    assert got == expected
    # Few visits of other stars beside it are paired as ever.
    few = _visits(np.random.default_rng(2), 150, 20).assign(specid=lambda f: "few" + f["specid"])
    few["star_id"] = "few" + few["star_id"]
    both = make_pairs(pd.concat([frame, few]))
    assert len(both) == len(make_pairs(frame)) + len(make_pairs(few))


def test_many_visits_of_one_night_make_no_pairs_and_cost_little():
    frame = _visits(np.random.default_rng(9), 20_000, 1).assign(star_id="S1", mjd=56000, snr_g=50.0)
    began = time.monotonic()
    assert len(make_pairs(frame)) == 0
    assert time.monotonic() - began < 10
