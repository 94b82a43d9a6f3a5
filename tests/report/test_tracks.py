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


MIST = """# MIST version number  = 1.2
# MESA revision number =     7503
#  EEP log10_isochrone_age_yr initial_mass star_mass log_Teff log_g 2MASS_Ks Gaia_BP_EDR3 Gaia_RP_EDR3 phase
   300  7.0  2.0  2.0   3.960  4.30  1.30  1.50  1.45  0
   310  7.0  9.0  9.0   4.380  4.20 -1.60 -1.90 -1.70  0
   1500 7.0  9.5  0.65  4.390  4.90  2.60 -1.90 -1.70  6

# the next isochrone
   300  8.0  2.0  2.0   3.955  4.28  1.28  1.52  1.46  0
   310  8.0  3.0  3.0   4.080  4.10  0.10  0.00  0.02  0
"""


@pytest.mark.parametrize("kind", ["own", "csv", "parquet"])
def test_isochrones_of_mist_are_lines_of_one_age(tmp_path, kind):
    """As MIST gives them, and as a table made of them: initial masses do not tell lines apart, ages do."""
    path = tmp_path / "MIST_v1.2.iso.cmd"
    path.write_text(MIST)
    if kind != "own":
        rows = [line.split() for line in MIST.splitlines() if line.strip() and not line.startswith("#")]
        table = pd.DataFrame(rows, columns=MIST.splitlines()[2][1:].split()).astype(float)
        path = tmp_path / f"mist.{kind}"
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    tracks = read_tracks(path)
    assert tracks["track"].tolist() == ["7.0"] * 3 + ["8.0"] * 2
    np.testing.assert_allclose(tracks["teff"], 10 ** np.array([3.96, 4.38, 4.39, 3.955, 4.08]))
    np.testing.assert_allclose(tracks["m_ks"], [1.3, -1.6, 2.6, 1.28, 0.1])
    np.testing.assert_allclose(tracks["bp_rp_0"], [0.05, -0.2, -0.2, 0.06, -0.02])
    # A core without its envelope has a log g above the main sequence's and is none of it.
    curve = critical_curve(tracks)
    np.testing.assert_allclose(curve["velocity"].iloc[-1], critical_velocity(9.0, 4.2))
    assert not np.isclose(curve["velocity"], critical_velocity(0.65, 4.9)).any()


def test_a_track_of_mist_and_isochrones_of_parsec(tmp_path):
    path = tmp_path / "00500M.track.eep"
    head = "# initial_mass\n# 5.0\n#  star_age star_mass log_Teff log_g\n"
    path.write_text(head + " 1e7 5.0 4.22 4.25\n 9e7 4.9 4.0 3.4\n 1e8 0.9 4.9 4.9\n")
    tracks = read_tracks(path)
    assert tracks["track"].tolist() == ["5"] * 3
    np.testing.assert_allclose(critical_curve(tracks)["velocity"].max(), critical_velocity(5.0, 4.25))
    path = tmp_path / "parsec.dat"
    head = "# PARSEC\n# Zini logAge Mini Mass logTe logg Ksmag G_BPmag G_RPmag\n"
    path.write_text(head + " 0.01 8.0 3 2.99 4.1 4.0 0.1 0.0 0.1\n")
    row = read_tracks(path).iloc[0]
    assert row["track"] == "8.0"
    assert row["mass"] == 2.99
    assert row["initial_mass"] == 3
    assert row["bp_rp_0"] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a,b\n1,2\n", r"no column teff and logg; name it in the first line \(teff as teff, Teff, log.*It has a, b"),
        ("teff,b\n1,2\n", r"no column logg; .*logg as logg, log_g"),
        ("teff,logg\n,4\n,3\n", "no row of the column teff"),
        ("log_Teff,log_g\nhot,4\n", "no row of the column log_Teff"),
        (None, "cannot be read"),
    ],
)
def test_a_table_of_no_use_is_named(tmp_path, text, named):
    path = tmp_path / "tracks.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=named) as caught:
        read_tracks(path)
    assert f"report.tracks = {path}" in str(caught.value)


def test_a_file_whose_comment_names_other_columns_is_named(tmp_path):
    path = tmp_path / "tracks.iso"
    path.write_text("# teff logg mass\n 9000 4.0\n")
    with pytest.raises(InputError, match="2 columns of numbers under 3 names"):
        read_tracks(path)


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


def test_other_catalogs_bring_the_papers_other_diagrams():
    """Figs 2, 14, 15 and 18: magnitudes, parallaxes, colors as observed, latitudes."""
    catalog = fake_catalog(2000).assign(flags=np.int32(0), in_sample=True)
    plain = len(diagrams.survey_diagrams(catalog))
    rng = np.random.default_rng(7)
    columns = {"g": 10 + 8 * rng.random(2000), "m_ks": 1.0 + rng.random(2000), "bp_rp": rng.random(2000)}
    columns |= {"parallax_over_error": np.where(np.arange(2000) < 900, 9.0, 2.0), "abs_b": 90 * rng.random(2000)}
    joined = catalog.assign(**columns, fe_h=np.where(np.arange(2000) < 60, -1.5, -0.3))
    drawn = diagrams.survey_diagrams(joined)
    assert len(drawn) == plain + 5
    first = drawn[0].figure.axes[0]
    assert first.get_xlabel() == "Gaia $G$  [mag]"
    assert first.collections[0].get_array().sum() == 2000
    bright = next(d for d in drawn if "parallax over error above 5" in d.caption)
    near = joined.iloc[:900]
    assert f"{(near['snr_g'] > diagrams.KIEL_SNR).sum():,} spectra" in bright.caption
    halo = next(d for d in drawn if "horizontal" in d.caption)
    rows = joined[(joined["snr_g"] > 50) & (joined["abs_b"] > 15)]
    expected = rows[rows["fe_h"] < -1.2]
    assert 10 < len(expected) < 60
    upper, lower = halo.figure.axes
    assert len(upper.lines[0].get_xdata()) == len(expected)
    assert halo.caption.startswith(f"{len(expected)} spectra")
    assert sum(bar.get_height() for bar in lower.patches) == (rows["fe_h"] < -0.5).sum()
    # Without stars of the halo there is nothing to show of them.
    assert len(diagrams.survey_diagrams(joined.assign(fe_h=-0.3))) == plain + 4


def test_temperatures_of_both_fits_stand_against_each_other():
    catalog = fake_catalog(2000)
    rows = diagrams.clean(catalog, ["teff_all", "teff_hmasked"], min_snr=diagrams.KIEL_SNR)
    last = diagrams.two_fits(catalog).axes[-1]
    assert last.collections[0].get_array().sum() == len(rows)
    np.testing.assert_array_equal(*last.lines[0].get_data())
    assert last.get_xlim()[0] < last.get_xlim()[1]


def test_cells_count_the_clean_sample():
    catalog = fake_catalog(2000)
    rows = diagrams.clean(catalog, ["teff", "fe_h"], min_snr=50)
    assert rows["in_sample"].all()
    assert (rows["snr_g"] > 50).all()
    axes = diagrams.plane(catalog, "teff", "fe_h", min_snr=50).axes[0]
    assert axes.collections[0].get_array().sum() == len(rows)
