"""Other catalogs joined to a finished run, and the cut of cool stars they allow, against a plain double loop."""

import os
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord, angular_separation, offset_by

from hotdask import config
from hotdask.crossmatch.join import check_tables
from hotdask.errors import InputError, SettingsError
from hotdask.flags import Flag
from hotdask.pipeline import tables
from hotdask.schema import JOINED
from hotdask.store.catalog import read_catalog
from hotdask.store.cube import Layout
from hotdask.store.parquet import list_parts

BIG = 2**61 + 1
"""Too large for a float."""


@pytest.fixture(scope="module")
def sky(finished, tmp_path_factory):
    """Tables in the manner of Gaia, Bailer-Jones, Rybizki, 2MASS, a map and DD-Payne around the stars of the run."""
    folder = tmp_path_factory.mktemp("sky")
    rng = np.random.default_rng(5)
    spectra = read_catalog(finished.folder, columns=["specid", "ra", "dec", "uniqflag", "teff"])
    stars = spectra[spectra["uniqflag"] == 1].reset_index(drop=True)
    n = len(stars)
    angle, distance = rng.uniform(0, 2 * np.pi, n), np.radians(rng.choice([0.4, 2.5, 3.5], n) / 3600)
    place = offset_by(*np.radians(stars[["ra", "dec"]].to_numpy().T), angle, distance)
    ra, dec = (a.deg for a in place)
    gaia = pd.DataFrame({"source_id": BIG + np.arange(n), "ra": ra % 360, "dec": dec, "ref_epoch": 2000.0})
    for name, low, high in (
        ("parallax", -0.1, 3),
        ("parallax_error", 0.01, 0.1),
        ("pmra", -9, 9),
        ("pmra_error", 0, 1),
    ):
        gaia[name] = rng.uniform(low, high, n)
    for name, low, high in (
        ("pmdec", -9, 9),
        ("pmdec_error", 0, 1),
        ("ruwe", 0.8, 2),
        ("g", 9, 16),
        ("bp", 12, 13),
        ("rp", 11, 12),
    ):
        gaia[f"phot_{name}_mean_mag" if len(name) < 3 else name] = rng.uniform(low, high, n)
    gaia.to_parquet(folder / "gaia.parquet", index=False, row_group_size=40)
    pd.DataFrame(
        {"source_id": gaia["source_id"], "r_med_geo": 1e3 / gaia["parallax"].abs(), "r_lo_geo": 1.0, "r_hi_geo": 2.0}
    ).sample(frac=0.8, random_state=1).to_csv(folder / "distances.csv", index=False)
    pd.DataFrame({"source_id": gaia["source_id"], "fidelity_v2": rng.uniform(0, 1, n)}).to_parquet(
        folder / "fid.parquet"
    )
    pd.DataFrame({"source_id": gaia["source_id"], "ebv": rng.uniform(0, 1, n)}).to_parquet(folder / "ebv.parquet")
    twomass = pd.DataFrame({"RAJ2000": stars["ra"], "DEJ2000": stars["dec"] + 1 / 3600})
    for band in "jhk":
        twomass[f"{band}_m"] = rng.uniform(9, 14, n)
    twomass.to_parquet(folder / "twomass.parquet")
    other = pd.DataFrame({"specid": spectra["specid"], "teff": rng.choice([6000.0, 8000.0, np.nan], len(spectra))})
    other.to_csv(folder / "ddpayne.csv", index=False)
    return folder


def _join(folder, **changes):
    here = {"twomass": {"ra": "RAJ2000", "dec": "DEJ2000"}}
    names = {
        "gaia": "gaia.parquet",
        "distances": "distances.csv",
        "fidelity": "fid.parquet",
        "twomass": "twomass.parquet",
    }
    names |= {"reddening": "ebv.parquet", "independent": "ddpayne.csv"}
    found = {name: {"table": str(folder / file)} | here.get(name, {}) for name, file in names.items()}
    return config.Join(**(found | changes))


@pytest.fixture(scope="module")
def joined(finished, sky, client, tmp_path_factory):
    """The catalog of the finished run, made again with all tables."""
    settings = finished.copy(tmp_path_factory.mktemp("joined") / "RUN").model_copy(update={"join": _join(sky)})
    with client.as_current():
        summary = tables.build_catalog(settings.out, settings, Layout(32, (240,)), {"test": 1})
    return read_catalog(settings.out), summary, Path(settings.out)


def test_each_spectrum_has_its_neighbor(joined, sky):
    catalog, _, _ = joined
    gaia = pd.read_parquet(sky / "gaia.parquet")
    places = (np.radians(frame[["ra", "dec"]].to_numpy().T) for frame in (catalog, gaia))
    (ra, dec), (lon, lat) = places
    separation = np.degrees(angular_separation(ra[:, None], dec[:, None], lon, lat)) * 3600
    nearest = separation.argmin(axis=1)
    match = separation.min(axis=1) <= 3
    assert 0.4 < match.mean() < 0.9
    assert (catalog["gaia_id"] >= 0).tolist() == match.tolist()
    assert catalog["gaia_id"][match].tolist() == gaia["source_id"][nearest[match]].tolist()
    np.testing.assert_allclose(catalog["gaia_separation"][match], separation.min(axis=1)[match], atol=1e-6)
    for name, theirs in config.GaiaTable(table="x").columns.items():
        if name != "gaia_id":
            np.testing.assert_array_equal(catalog[name], np.where(match, gaia[theirs].to_numpy()[nearest], np.nan))
    assert catalog["ks"].notna().all()


def test_columns_by_id_and_what_follows_from_them(joined, sky):
    catalog, _, _ = joined
    distances = pd.read_csv(sky / "distances.csv").set_index("source_id")["r_med_geo"]
    ids = catalog["gaia_id"]
    expected = [distances.get(i, np.nan) for i in ids]
    np.testing.assert_array_equal(catalog["r_geo"], expected)
    assert 0 < catalog["r_geo"].isna().sum() < len(catalog)
    ebv = catalog["ebv"].to_numpy()
    np.testing.assert_allclose(catalog["m_ks"], catalog["ks"] + 5 - 5 * np.log10(expected) - 0.34 * ebv)
    np.testing.assert_allclose(catalog["bp_rp_0"], catalog["bp"] - 3.24 * ebv - (catalog["rp"] - 1.91 * ebv))
    np.testing.assert_allclose(catalog["parallax_over_error"], catalog["parallax"] / catalog["parallax_error"])
    teff = pd.read_csv(sky / "ddpayne.csv").set_index("specid")["teff"]
    np.testing.assert_array_equal(catalog["teff_independent"], teff[catalog["specid"]])


def test_cool_stars_are_cut_and_counted_and_stay(joined, finished):
    catalog, summary, folder = joined
    cool = (catalog["bp_rp_0"] > 0.4) & (catalog["teff_independent"] < 7000)
    assert 5 < cool.sum() < 200
    flagged = catalog["flags"] & int(Flag.INTRINSICALLY_COOL) != 0
    assert flagged.tolist() == cool.tolist()
    before = read_catalog(finished.folder)
    assert catalog["in_sample"].tolist() == (before["in_sample"] & ~cool).tolist()
    assert summary["cuts"]["intrinsically_cool"] == cool.sum()
    assert summary["cuts"]["all"] == 240 - catalog["in_sample"].sum()
    assert finished.summary["catalog"]["cuts"]["intrinsically_cool"] == 0
    pd.testing.assert_series_equal(catalog["teff"], before["teff"])
    fits = [pq.read_table(p, columns=["specid"]).num_rows for p in list_parts(folder / "fits")]
    assert sum(fits) == len(catalog) == 240


def test_joined_columns_have_units(joined):
    schema = pq.read_schema(list_parts(joined[2] / "catalog")[0])
    for column in JOINED:
        if column.name in schema.names:
            assert schema.field(column.name).equals(column.field(), check_metadata=True)
    assert {c.name for c in JOINED} - set(schema.names) == {"source_class", "source_hot", "source_ob"}


def test_the_ob_catalog_is_spared(finished):
    frame = pd.DataFrame({"bp_rp_0": [0.5, 0.5], "teff_independent": [6e3, 6e3], "source_ob": [True, False]})
    assert tables._contaminant(frame, finished.settings.catalog).tolist() == [False, True]


def test_joins_that_cannot_be_are_refused(finished, sky, client, tmp_path):
    settings = finished.copy(tmp_path / "RUN")

    def refused(error, match, carried=(), **join):
        with pytest.raises(error, match=match), client.as_current():
            tables.join_tables(settings.out, [[0]], Layout(32, (32,)), config.Join(**join), carried)

    gaia = {"table": str(sky / "gaia.parquet")}
    fidelity = {"table": str(sky / "fid.parquet")}
    refused(SettingsError, r"both the input table and join\.gaia give the column parallax", ("parallax",), gaia=gaia)
    refused(SettingsError, r"join\.fidelity\.on = 'gaia_id', but nothing gives", fidelity=fidelity)
    refused(InputError, "lacks the columns ra_deg", gaia=gaia | {"ra": "ra_deg"})
    refused(InputError, r"lacks the columns fid", gaia=gaia, fidelity=fidelity | {"columns": {"fidelity": "fid"}})
    with pytest.raises(ValueError, match="unknown fidelty"):
        config.Join(fidelity=fidelity | {"columns": {"fidelty": "x"}})


def test_settings_of_joins_come_back(sky, finished):
    settings = finished.settings.model_copy(update={"join": _join(sky)})
    text = config.dump_settings(settings)
    again = config.make_settings(tomllib.loads(text))
    assert again == settings
    assert again.fingerprint("join") == settings.fingerprint("join") != finished.settings.fingerprint("join")


@pytest.fixture
def odd(finished, sky, tmp_path):
    """Gaia and distances as people also write them."""
    gaia = pd.read_parquet(sky / "gaia.parquet")
    gaia["parallax"] = gaia["parallax"].where(np.arange(len(gaia)) % 3 != 0, -9999.0)
    place = SkyCoord(gaia["ra"].to_numpy() * u.deg, gaia["dec"].to_numpy() * u.deg)
    hours = place.ra.to_string(unit="hourangle", sep=":", precision=6), place.dec.to_string(sep=":", precision=6)
    sexagesimal = gaia.assign(RA=hours[0], DEC=hours[1]).drop(columns=["ra", "dec"])
    sexagesimal.to_csv(tmp_path / "sexagesimal.csv", index=False, sep="|")
    gaia.assign(ra=gaia["ra"].map(lambda v: f"{v}".replace(".", ","))).to_csv(tmp_path / "comma.csv", sep=";")
    distances = pd.read_csv(sky / "distances.csv")
    distances.assign(source_id=distances["source_id"].map("Gaia DR3 {}".format)).to_csv(tmp_path / "prefix.csv")
    distances.astype({"source_id": float}).to_csv(tmp_path / "float.csv")
    return tmp_path


@pytest.mark.parametrize("distances", ["prefix.csv", "float.csv"])
def test_joins_understand_other_forms_and_say_how_many_matched(finished, odd, client, tmp_path, joined, distances):
    settings = finished.copy(tmp_path / "RUN")
    join = config.Join(gaia={"table": str(odd / "sexagesimal.csv")}, distances={"table": str(odd / distances)})
    lines = []
    with client.as_current():
        tables.join_tables(settings.out, [range(8)], Layout(32, (240,)), join, (), echo=lines.append)
    found = pd.read_parquet(tmp_path / "RUN" / "joined.parquet")
    plain = joined[0].set_index("specid").loc[_specids(settings.out)].reset_index()
    assert found["gaia_id"].tolist() == plain["gaia_id"].tolist()
    matched = int((plain["gaia_id"] >= 0).sum())
    assert lines[0] == f"gaia: {matched} of 240 matched"
    if distances == "prefix.csv":
        np.testing.assert_array_equal(found["r_geo"], plain["r_geo"])
        assert lines[1:] == [f"distances: {plain['r_geo'].notna().sum()} of 240 matched"]
    else:
        # 19 digits do not survive a float: no id is better than a wrong one.
        assert found["r_geo"].isna().all()
        assert lines[1] == "distances: 0 of 240 matched"
        assert "WARNING" in lines[2]
        assert "source_id" in lines[2]
    # -9999 is no parallax.
    assert found["parallax"].min() > -1
    assert found["parallax"].notna().sum() < matched


def _specids(run):
    return np.concatenate([pq.read_table(p, columns=["specid"])["specid"] for p in list_parts(Path(run, "spectra"))])


def test_tables_are_opened_before_a_run_begins(finished, odd, sky):
    def refused(match, **join):
        with pytest.raises(InputError, match=match):
            check_tables(config.Join(**join), ())

    check_tables(_join(sky), ())
    check_tables(config.Join(gaia={"table": str(odd / "sexagesimal.csv")}), ())
    refused(
        r"comma\.csv', column 'ra': \d+ value\(s\) are not numbers .*decimals with a point",
        gaia={"table": str(odd / "comma.csv")},
    )
    refused("does not exist", gaia={"table": str(sky / "nothing.csv")})
    refused("not a local path", gaia={"table": "https://a.org/gaia.csv"})
    refused("lacks the columns teff", independent={"table": str(sky / "fid.parquet"), "key": "source_id"})
    os.mkfifo(odd / "pipe.csv")
    refused("no regular file", gaia={"table": str(odd / "pipe.csv")})
