"""Tracks of the user's own: read as they are named, and the critical velocity against astropy."""

import numpy as np
import pandas as pd
import pytest
from astropy import constants, units
from fakes import fake_catalog

from hotdask.errors import InputError
from hotdask.report import diagrams
from hotdask.report.tracks import critical_curve, read_tracks
from hotdask.steps.rotation import critical_velocity


def test_critical_velocity_against_astropy():
    mass, radius = 2.5 * constants.M_sun, 1.8 * constants.R_sun
    gravity = (constants.G * mass / radius**2).to_value(units.cm / units.s**2)
    expected = np.sqrt(2 * constants.G * mass / (3 * radius)).to_value(units.km / units.s)
    assert critical_velocity(2.5, np.log10(gravity)) == pytest.approx(expected, rel=1e-4)


def test_a_main_sequence_has_the_papers_critical_velocities():
    # Round numbers for zero age. The paper: from about 300 km/s at 7000 K to over 600 km/s at 40 000 K.
    table = pd.DataFrame(
        {"teff": [7100, 10500, 18000, 40500], "logg": [4.3, 4.3, 4.27, 4.2], "mass": [1.5, 2.5, 6, 32]}
    )
    curve = critical_curve(table.assign(track=""))
    assert curve["velocity"].is_monotonic_increasing
    assert 280 < curve["velocity"].iloc[0] < 400
    assert curve["velocity"].iloc[-1] > 600


def test_the_star_of_highest_gravity_is_of_zero_age():
    old = pd.DataFrame({"teff": np.geomspace(8000, 30000, 200)}).assign(track="", logg=3.5, mass=9.0)
    young = old.assign(logg=4.2, mass=3.0)
    dwarf = old.assign(logg=7.8, mass=0.6)
    curve = critical_curve(pd.concat([old, young, dwarf]))
    np.testing.assert_allclose(curve["velocity"], critical_velocity(3.0, 4.2))
    assert critical_curve(old.drop(columns="mass")).empty
    # Tracks with gaps between them: one point each, no evolved star in the gaps.
    tracks = pd.concat([young.head(50).assign(track="3"), old.tail(50).assign(track="9")])
    np.testing.assert_allclose(critical_curve(tracks)["velocity"], critical_velocity([3.0, 9.0], [4.2, 3.5]))


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_names_of_mist_are_understood(tmp_path, ending):
    table = pd.DataFrame({"initial_mass": [2.0, 2.0, 5.0], "log_Teff": [4.0, 3.9, 4.2], "log_g": [4.0, 3.5, np.nan]})
    path = tmp_path / f"tracks{ending}"
    table.to_csv(path, index=False) if ending == ".csv" else table.to_parquet(path)
    tracks = read_tracks(path)
    assert tracks["track"].tolist() == ["2.0", "2.0", "5.0"]
    np.testing.assert_allclose(tracks["teff"], [1e4, 10**3.9, 10**4.2])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a,b\n1,2\n", "teff and logg"),
        ("teff,b\n1,2\n", "logg"),
        ("teff,logg\n,4\n,3\n", "no row"),
        (None, "cannot be read"),
    ],
)
def test_a_table_of_no_use_is_named(tmp_path, text, named):
    path = tmp_path / "tracks.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=named) as caught:
        read_tracks(path)
    assert "report.tracks" in str(caught.value)


def test_diagrams_draw_what_the_catalog_and_the_tracks_have():
    catalog = fake_catalog(900)
    teff = np.geomspace(7500, 30000, 50)
    tracks = pd.DataFrame({"track": "3", "teff": teff, "logg": 4.1, "mass": 3.0, "m_ks": 0.5})
    without = diagrams.survey_diagrams(catalog)
    joined = catalog.assign(m_ks=np.linspace(-2, 3, len(catalog)), bp_rp_0=np.linspace(-0.4, 0.4, len(catalog)))
    drawn = diagrams.survey_diagrams(joined, tracks)
    assert len(drawn) == len(without) + 3
    titles = [d.figure.axes[0].get_ylabel() for d in drawn]
    assert sum("M_{K_s}" in t for t in titles) == 2
    kiel = drawn[0].figure.axes[0]
    np.testing.assert_array_equal(kiel.lines[-1].get_ydata(), tracks["logg"])
    assert kiel.xaxis_inverted()
    assert kiel.yaxis_inverted()
    rotation = next(d.figure.axes[0] for d in drawn if "critical" in d.caption)
    velocity = rotation.lines[-1].get_ydata()
    np.testing.assert_allclose(velocity, critical_velocity(3.0, 4.1))
    # A track without colors has no line in the color diagram.
    color = next(d.figure.axes[0] for d in drawn if "color against" in d.caption)
    assert not color.lines


def test_cells_count_the_clean_sample():
    catalog = fake_catalog(2000)
    rows = diagrams.clean(catalog, ["teff", "fe_h"], min_snr=50)
    assert rows["in_sample"].all()
    assert (rows["snr_g"] > 50).all()
    axes = diagrams.plane(catalog, "teff", "fe_h", min_snr=50).axes[0]
    assert axes.collections[0].get_array().sum() == len(rows)
