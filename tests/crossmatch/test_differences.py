"""Matching and differences, against closed forms and astropy."""

import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from hypothesis import given
from hypothesis import strategies as st

from hotdask.crossmatch.differences import best_visits, differences, label_differences, match_names, match_positions
from hotdask.errors import InputError


def test_names_match_whatever_their_spelling():
    rows = match_names(["HD 36512", "hd_36512", None, "HD 1", "vega"], ["Vega", None, "HD36512"])
    assert [r.tolist() for r in rows] == [[0, 1, 4], [2, 2, 0]]


def test_a_name_that_repeats_is_refused():
    with pytest.raises(InputError, match="HD1'; keep one row"):
        match_names(["HD 1"], ["HD 1", "hd1"])


def test_positions_match_the_nearest_within_the_radius():
    rng = np.random.default_rng(3)
    stars = np.column_stack([rng.uniform(0, 360, 300), np.degrees(np.arcsin(rng.uniform(-1, 1, 300)))])
    # Across 0 h, at the pole, and a pair of stars an arcsecond apart.
    stars = np.vstack([stars, [[359.9999, 10.0], [15.0, 89.9999], [40.0, 0.0], [40.0, 1 / 3600]]])
    sky = SkyCoord(*stars.T * u.deg)
    off = rng.choice([1.0, 5.0], len(stars))
    seen = sky.directional_offset_by(rng.uniform(0, 360, len(stars)) * u.deg, off * u.arcsec)
    spectra = np.vstack([np.column_stack([seen.ra.deg, seen.dec.deg]), [[np.nan, 0.0]]])
    found = match_positions(spectra, stars, radius=3.0)
    nearest, distance, _ = seen.match_to_catalog_sky(sky)
    within = np.flatnonzero(distance.arcsec <= 3.0)
    assert found[0].tolist() == within.tolist()
    assert found[1].tolist() == nearest[within].tolist()
    assert 100 < len(within) < 250


@pytest.mark.parametrize("empty", [np.empty((0, 2)), [[np.nan, 1.0]]])
def test_nothing_matches_nothing(empty):
    for rows in (match_positions(empty, [[1, 1]], radius=3), match_positions([[1, 1]], empty, radius=3)):
        assert [len(r) for r in rows] == [0, 0]
    assert len(best_visits([], [])) == 0


def test_a_declination_beyond_the_pole_is_refused():
    with pytest.raises(InputError, match="declination"):
        match_positions([[0.0, 91.0]], [[0.0, 1.0]], radius=3)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1.0, 2.0, 9.0, np.nan])), max_size=20))
def test_one_spectrum_a_star_is_kept_and_it_is_the_best(visits):
    star, snr = (np.array([v[i] for v in visits]) for i in (0, 1))
    rows = best_visits(star, snr)
    assert star[rows].tolist() == sorted(set(star.tolist()))
    for row in rows:
        assert np.nan_to_num(snr[row]) == np.nan_to_num(snr[star == star[row]]).max()


def test_offset_and_scatter_are_those_drawn():
    """Gaussian differences of known mean and sigma, a tenth of them spoiled: robust numbers hold, means would not."""
    rng = np.random.default_rng(1)
    n = 20000
    teff = rng.uniform(8000, 40000, n)
    offset = np.where(teff < 15000, 100.0, -300.0)
    error, reference_error = 40.0, 30.0
    found = teff + offset + rng.normal(0, 50.0, n)
    spoiled = found.copy()
    spoiled[:400] += 1e5
    pairs = pd.DataFrame({"teff": spoiled, "teff_err": error, "teff_ref": teff, "teff_ref_err": reference_error})
    table = label_differences(pairs, edges=[15000.0]).set_index("teff_low")
    everything, cool, hot = table.iloc[0], table.iloc[1], table.loc[15000.0]
    assert everything["n"] == n
    assert cool["n"] + hot["n"] == n
    assert cool["offset"] == pytest.approx(100, abs=5)
    assert hot["offset"] == pytest.approx(-300, abs=5)
    assert hot["scatter"] == pytest.approx(50, rel=0.05)
    # √(40² + 30²) = 50: the pull is 1, and the median of n Gaussians scatters by √(π/2n)·σ.
    assert hot["pull"] == pytest.approx(1, rel=0.05)
    assert hot["offset_err"] == pytest.approx(np.sqrt(np.pi / 2 / hot["n"]) * 50, rel=0.05)


def test_what_a_reference_does_not_give_stays_unknown():
    pairs = pd.DataFrame({"teff": [9000.0, 20000.0], "s_h": [0.1, 0.2], "s_h_ref": [np.nan, 0.0], "logg": 4.0})
    table = label_differences(pairs, edges=[10000.0])
    assert table["label"].unique().tolist() == ["s_h"]
    assert table["n"].tolist() == [1, 0, 1]
    assert table["offset"].tolist()[::2] == pytest.approx([0.2, 0.2])
    assert np.isnan(table["offset"][1])
    assert table[["scatter", "pull"]].isna().all(axis=None)


def test_impossible_edges_and_labels_are_refused():
    pairs = pd.DataFrame({"teff": [9000.0], "teff_ref": [9000.0]})
    with pytest.raises(InputError, match="do not increase"):
        label_differences(pairs, edges=[2.0, 1.0])
    with pytest.raises(InputError, match="no label is called mass"):
        differences(pairs, "mass")
