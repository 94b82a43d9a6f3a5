"""Candidates of a made survey against all pairs, from every kind of table; the result is the input of a run."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from astropy.time import Time

from hotdask.config import CandidateSettings, Input, load_candidate_settings
from hotdask.crossmatch.candidates import find_candidates
from hotdask.crossmatch.match import cells
from hotdask.errors import InputError, SettingsError
from hotdask.readers.inputs import list_inputs

N = 1500


@pytest.fixture(scope="module")
def sky():
    """A survey (epoch 2000), a list of hot stars in the manner of Gaia (2016), a catalog of OB stars."""
    rng = np.random.default_rng(8)
    ra, dec = rng.uniform(0, 360, N), np.degrees(np.arcsin(rng.uniform(-1, 1, N)))
    ra[:200], dec[:200] = rng.uniform(-0.001, 0.001, 200) % 360, rng.uniform(-0.001, 0.001, 200)
    dec[200:300] = rng.choice([-1, 1], 100) * rng.uniform(89.999, 90, 100)
    survey = pd.DataFrame(
        {
            "obsid": np.arange(N) + 10**9,
            "designation": [f"J{i:04d}" for i in range(N)],
            "planid": rng.choice(["HD1", "007"], N),
            "fiberid": rng.integers(1, 251, N),
            "ra": ra,
            "dec": dec,
            "class": "STAR",
            "subclass": rng.choice(
                ["A5V", "B6", "OB", "F2", "G5", "Binary", "AGN"], N, p=[0.1, 0.05, 0.01, *[0.21] * 4]
            ),
        }
    )
    survey["path"] = [f"spectra/{i:05d}.fits" for i in rng.permutation(N)]
    then = SkyCoord(ra * u.deg, dec * u.deg).directional_offset_by(
        rng.uniform(0, 360, N) * u.deg, rng.choice([0.5, 2.9, 3.1, 8.0], N) * u.arcsec
    )
    years = Time([2016.0, 2000.0], format="jyear", scale="tcb")
    pmra, pmdec = rng.normal(0, 100, (2, N))
    moving = SkyCoord(
        then.ra,
        then.dec,
        pm_ra_cosdec=pmra * u.mas / u.yr,
        pm_dec=pmdec * u.mas / u.yr,
        distance=10 * u.pc,
        radial_velocity=0 * u.km / u.s,
        obstime=years[0],
    )
    near = moving.apply_space_motion(new_obstime=years[1])
    near = SkyCoord(near.ra, near.dec)
    hot = pd.DataFrame({"source_id": np.arange(N) + 2**60 + 1, "ra": then.ra.deg, "dec": then.dec.deg})
    hot = hot.assign(pmra=pmra, pmdec=pmdec, ref_epoch=2016.0, k_m=11.0, parallax=rng.uniform(-0.2, 4, N))
    ob = pd.DataFrame({"RAJ2000": ra[::7] + 1e-4, "DEJ2000": dec[::7]})
    return survey, hot.sample(frac=0.6, random_state=1), ob, near


def _expected(sky):
    survey, hot, ob, near = sky
    here = SkyCoord(survey["ra"].to_numpy() * u.deg, survey["dec"].to_numpy() * u.deg)
    bright = hot[(hot["parallax"] > 0) & (hot["k_m"] + 5 * np.log10(hot["parallax"].clip(1e-9) / 100) < 3)]
    there = near[bright.index.to_numpy()]
    other = SkyCoord(ob["RAJ2000"].to_numpy() * u.deg, ob["DEJ2000"].to_numpy() * u.deg)
    return pd.DataFrame(
        {
            "path": survey["path"],
            "source_class": survey["subclass"].isin(["A5V", "B6", "OB"]),
            "source_hot": (here[:, None].separation(there[None]).arcsec <= 3).any(axis=1),
            "source_ob": (here[:, None].separation(other[None]).arcsec <= 3).any(axis=1),
        }
    )


def _write_hats(folder, frame, order=1):
    """The standard layout, all pixels of one order."""
    frame = frame.assign(_healpix_29=cells(frame["ra"], frame["dec"], order=29))
    for pixel, part in frame.groupby(frame["_healpix_29"].to_numpy() >> (2 * (29 - order))):
        path = folder / "dataset" / f"Norder={order}" / f"Dir={pixel // 10000 * 10000}" / f"Npix={pixel}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.to_parquet(path, index=False)
    pq.write_metadata(pa.schema([]), folder / "dataset" / "_metadata")
    (folder / "hats.properties").write_text("hats_col_ra=ra\nhats_col_dec=dec\n")
    return folder


def _write(folder, name, frame):
    path = folder / name
    if name.endswith(".fits"):
        Table.from_pandas(frame).write(path)
    elif name.endswith(".parquet"):
        frame.to_parquet(path, index=False, row_group_size=300)
    elif name.endswith((".csv", ".csv.gz")):
        frame.to_csv(path, index=False, sep="|")
    else:
        _write_hats(path, frame)
    return str(path)


@pytest.mark.parametrize(
    ("survey", "hot", "ob", "out"),
    [
        ("dr6.csv", "hot.parquet", "ob.fits", "out.csv"),
        ("dr6.parquet", "hot_hats", "ob.csv", "out.fits"),
        ("dr6.fits", "hot.csv.gz", "ob.parquet", "out.parquet"),
    ],
)
def test_candidates_are_those_of_all_pairs(tmp_path, client, sky, monkeypatch, survey, hot, ob, out):
    monkeypatch.setattr("hotdask.readers.usertables._BYTES", 60_000)
    monkeypatch.setattr("hotdask.readers.usertables._ROWS", 800)
    settings = CandidateSettings(
        out=str(tmp_path / out),
        survey={"table": _write(tmp_path, survey, sky[0]), "keep": ["obsid", "designation", "planid"]},
        hot={"table": _write(tmp_path, hot, sky[1])},
        # Its columns are RAJ2000 and DEJ2000.
        ob={"table": _write(tmp_path, ob, sky[2])},
    )
    counts = find_candidates(settings, client=client, echo=lambda line: None)
    expected = _expected(sky)
    flags = list(expected.columns[1:])
    expected = expected[expected[flags].any(axis=1)].sort_values("path").reset_index(drop=True)
    found = list_inputs(Input(table=settings.out))
    assert counts == {"spectra": N, "candidates": len(expected)} | {f: int(expected[f].sum()) for f in flags}
    assert found["path"].tolist() == [str(tmp_path / path) for path in expected["path"]]
    pd.testing.assert_frame_equal(found[flags].astype(bool), expected[flags])
    merged = expected.merge(sky[0], on="path")
    assert found["input_obsid"].tolist() == merged["obsid"].tolist()
    assert found["designation"].tolist() == merged["designation"].tolist()
    np.testing.assert_array_equal(found["ra"], merged["ra"])
    assert found["hot_separation"].max() <= 3


def test_paths_from_columns_and_classes_alone(tmp_path, client, sky):
    table = _write(tmp_path, "dr6.csv", sky[0])
    survey = {"table": table, "path": "plates/{planid}/spec-{planid}-{fiberid:03d}-{obsid}.fits.gz"}
    settings = CandidateSettings(out=str(tmp_path / "out.parquet"), survey=survey)
    assert find_candidates(settings, client=client, echo=lambda line: None)["source_hot"] == 0
    first = list_inputs(Input(table=settings.out))["path"].iloc[0]
    row = sky[0].set_index("obsid").loc[int(first.split("-")[-1].split(".")[0])]
    assert first == str(tmp_path / f"plates/{row.planid}/spec-{row.planid}-{row.fiberid:03d}-{row.name}.fits.gz")


def test_spectra_that_a_pattern_confuses_are_counted(tmp_path, client, sky):
    table = _write(tmp_path, "dr6.csv", sky[0])
    settings = CandidateSettings(out=str(tmp_path / "out.csv"), survey={"table": table, "path": "{subclass}.fits"})
    lines: list[str] = []
    counts = find_candidates(settings, client=client, echo=lines.append)
    hot = sky[0]["subclass"].isin(["A5V", "B6", "OB"])
    assert counts["candidates"] == 3 == len(list_inputs(Input(table=settings.out)))
    assert f"{hot.sum() - 3} rows of {table} name the file of another candidate" in lines[-1]


def test_what_cannot_be_used_is_said(tmp_path, client, sky):
    table = _write(tmp_path, "dr6.parquet", sky[0])
    hot = _write(tmp_path, "hot.parquet", sky[1].drop(columns="ref_epoch"))

    def refused(match, survey=None, **other):
        settings = {"out": str(tmp_path / "out.csv"), "survey": {"table": table} | (survey or {})} | other
        with pytest.raises(InputError, match=match):
            find_candidates(CandidateSettings(**settings), client=client, echo=lambda line: None)

    refused("lacks the columns filename", {"path": "{filename}"})
    refused("does not exist", {"table": str(tmp_path / "dr7.csv")})
    refused("is no pattern", {"path": "{planid"})
    refused("proper motions but no column 'ref_epoch'", hot={"table": hot})
    refused("neither 'm_ks' nor 'ks'", hot={"table": hot, "epoch": 2016, "ks": "ks"})
    refused("none of 1500 spectra", {"classes": ["W"]})
    (tmp_path / "empty").mkdir()
    refused("folder without Parquet", hot={"table": str(tmp_path / "empty")})
    (tmp_path / "bad.parquet").write_text("no")
    refused("cannot be read", {"table": str(tmp_path / "bad.parquet")})
    refused(
        "unknown ending", {"table": str(tmp_path / "empty" / ".." / "dr6.parquet") + ""}, out=str(tmp_path / "x.txt")
    )
    with pytest.raises(SettingsError, match=r"survey\.tabel: unknown setting"):
        load_candidate_settings(None, out="x.csv", survey__tabel="y")
