"""Patterns and tables of inputs, against the folders and tables they were made from."""

import os

import numpy as np
import pandas as pd
import pytest
from astropy.table import MaskedColumn, Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotdask.config import Input
from hotdask.errors import InputError
from hotdask.readers.columns import is_none
from hotdask.readers.inputs import SIZE, TIME, input_signature, list_inputs


@pytest.fixture
def tree(tmp_path):
    names = ["b.fits", "a.fits.gz", "x/c.fits", "x/y/d.fits", "x/notes.txt"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def save(frame, path):
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        Table.from_pandas(frame).write(path, overwrite=True)
    return str(path)


def refused(table, match):
    with pytest.raises(InputError, match=match) as caught:
        list_inputs(Input(table=str(table)))
    assert str(table) in str(caught.value)


def test_pattern_of_any_depth_sorted(tree):
    frame = list_inputs(Input(spectra=f"{tree}/**/*.fits*"))
    assert list(frame.columns) == ["path"]
    assert frame["path"].tolist() == [str(tree / n) for n in ("a.fits.gz", "b.fits", "x/c.fits", "x/y/d.fits")]
    assert list_inputs(Input(spectra=f"{tree}/*.fits"))["path"].tolist() == [str(tree / "b.fits")]
    # ** matches folders too, and twice may match a file twice.
    assert len(list_inputs(Input(spectra=f"{tree}/**"))) == 5
    assert len(list_inputs(Input(spectra=f"{tree}/**/**/*.fits"))) == 3


def test_several_patterns_are_one_sorted_list(tree):
    found = list_inputs(Input(spectra=[f"{tree}/x/**/*.fits", f"{tree}/*.fits", f"{tree}/b.*"]))["path"].tolist()
    assert found == [str(tree / name) for name in ("b.fits", "x/c.fits", "x/y/d.fits")]
    with pytest.raises(InputError, match=r"none/\*' matches no file"):
        list_inputs(Input(spectra=[f"{tree}/*.fits", f"{tree}/none/*"]))


def test_links_in_circles_end(tree):
    for name in ("x/loop", "x/y/loop", "x/y/again"):
        (tree / name).symlink_to(tree / "x")
    (tree / "elsewhere").symlink_to(tree / "x/y")
    found = list_inputs(Input(spectra=f"{tree}/**/*.fits"))["path"].tolist()
    assert found == [str(tree / name) for name in ("b.fits", "x/c.fits", "x/y/d.fits")]
    # What a pattern names by its link is found by it.
    assert list_inputs(Input(spectra=f"{tree}/elsewhere/**/*.fits"))["path"].tolist() == [
        str(tree / "elsewhere" / name) for name in ("again/c.fits", "d.fits")
    ]


def test_relative_patterns_and_limit(tree, monkeypatch):
    monkeypatch.chdir(tree)
    frame = list_inputs(Input(spectra="x/**/*.fits", limit=1))
    assert frame["path"].tolist() == [str(tree / "x/c.fits")]


def test_pattern_that_matches_nothing(tree):
    with pytest.raises(InputError, match=r"nothing.*matches no file; check the pattern"):
        list_inputs(Input(spectra=f"{tree}/nothing*"))
    with pytest.raises(InputError, match=r"add /\*\*/\*\.fits\*"):
        list_inputs(Input(spectra=f"{tree}/x/y/"))
    with pytest.raises(InputError, match="not a local path"):
        list_inputs(Input(spectra="s3://bucket/*.fits"))


def test_file_names_that_are_no_text(tree):
    try:
        open(os.fsencode(tree) + b"/\xff.fits", "w").close()
    except OSError:
        pytest.skip("this file system holds UTF-8 names only")
    with pytest.raises(InputError, match="not UTF-8; rename"):
        list_inputs(Input(spectra=f"{tree}/*.fits"))


@pytest.mark.parametrize("kind", ["csv", "parquet", "fits"])
def test_tables(tree, kind):
    given_frame = pd.DataFrame(
        {
            "path": ["x/c.fits", str(tree / "b.fits"), "x/../a.fits.gz"],
            "rv": [10.5, np.nan, -3.0],
            "ra": [1, 2, 3],
            "source_id": [2**60 + 1, 2**60 + 3, 5],
            "parallax": [0.5, np.nan, 1.5],
            "survey": ["OB", "hot", "OB"],
            "known": [True, False, True],
        }
    )
    table = save(given_frame, tree / f"list.{kind}")
    frame = list_inputs(Input(table=table))
    assert frame["path"].tolist() == [str(tree / n) for n in ("x/c.fits", "b.fits", "a.fits.gz")]
    expected = given_frame.drop(columns="path").astype({"ra": "float64"})
    pd.testing.assert_frame_equal(frame.drop(columns="path"), expected)
    assert len(list_inputs(Input(table=table, limit=2))) == 2


@pytest.mark.parametrize("kind", ["csv", "parquet", "fits"])
def test_long_ids_next_to_gaps_keep_their_digits(tree, kind):
    path = tree / f"list.{kind}"
    if kind == "fits":
        ids = MaskedColumn([2**60 + 1, 0], mask=[False, True])
        Table({"path": ["a", "b"], "source_id": ids}).write(path)
    else:
        save(pd.DataFrame({"path": ["a", "b"], "source_id": pd.array([2**60 + 1, None], dtype="Int64")}), path)
    found = list_inputs(Input(table=str(path)))["source_id"]
    assert found[0] == 2**60 + 1
    assert found.isna().tolist() == [False, True]


def test_tables_that_cannot_be_used(tree):
    refused(tree / "none.csv", "does not exist")
    (tree / "x/notes.doc").write_text("path")
    refused(tree / "x/notes.doc", "unknown ending '.doc'")
    for kind in ("csv", "parquet", "fits"):
        bad = tree / f"bad.{kind}"
        bad.write_bytes(b'"\x00\xff\n\xfe"' * 50 if kind == "csv" else b"no table")
        refused(bad, "cannot be read")
    empty = tree / "empty.csv"
    empty.write_text("")
    refused(empty, "cannot be read")
    refused(save(pd.DataFrame({"file": ["a"], "rv": [1.0]}), tree / "t.csv"), "no column 'path', only file, rv")
    refused(save(pd.DataFrame({"path": []}), tree / "t.csv"), "no rows")
    refused(save(pd.DataFrame({"path": ["a", None]}), tree / "t.csv"), "'path', row 2")
    refused(save(pd.DataFrame({"path": ["a", " "], "rv": 1.0}), tree / "t.csv"), "'path', row 2")
    refused(save(pd.DataFrame({"path": [1.5]}), tree / "t.parquet"), "'path', row 1: 1.5")
    refused(save(pd.DataFrame({"path": ["https://a/b.fits"]}), tree / "t.csv"), "not a local path")
    refused(
        save(pd.DataFrame({"path": ["a", "b", "x/../a"]}), tree / "t.csv"), r"more than once, first .*/a' \(rows 1, 3"
    )


def test_overrides_that_are_no_numbers(tree):
    frame = pd.DataFrame({"path": list("abc"), "rv": ["1.5", "fast", "2"], "dec": [1, 2, 3]})
    refused(save(frame, tree / "t.csv"), r"column 'rv': 1 value\(s\) are not numbers \(row 2: 'fast'\); correct")
    refused(save(frame, tree / "t.parquet"), "row 2: 'fast'")
    refused(save(frame.assign(rv=[1.0, np.inf, 2.0]), tree / "t.parquet"), "row 2: inf")
    refused(save(frame.assign(rv=[True, False, True]), tree / "t.parquet"), "row 1: ")
    # Numbers written as text are numbers, and gaps are gaps.
    found = list_inputs(Input(table=save(frame.assign(rv=["1.5", None, "2"]), tree / "t.parquet")))["rv"]
    np.testing.assert_array_equal(found, [1.5, np.nan, 2])
    assert found.dtype == np.float64


def test_known_columns_are_found_in_any_case_and_unit(tree):
    table = Table(
        {"PATH": ["a", "b"], "RV": [1500.0, -9999.0], "RAJ2000": [1.0, 2.0], "Dec": [0.5, -0.5], "Note": [1, 2]}
    )
    for name, unit in (("RV", "m/s"), ("RAJ2000", "rad"), ("Dec", "arcsec")):
        table[name].unit = unit
    table.write(tree / "t.fits")
    found = list_inputs(Input(table=str(tree / "t.fits")))
    assert list(found.columns) == ["path", "rv", "ra", "dec", "Note"]
    np.testing.assert_allclose(found["rv"], [1.5, np.nan])
    np.testing.assert_allclose(found["ra"], np.degrees([1.0, 2.0]))
    np.testing.assert_allclose(found["dec"], [0.5 / 3600, -0.5 / 3600])
    table["RV"].unit = "kpc"
    table.write(tree / "t.fits", overwrite=True)
    refused(tree / "t.fits", "column 'RV': its unit is 'kpc', wanted is km/s")
    refused(save(pd.DataFrame({"path": ["a"], "rv": [1.0], "RV": [2.0]}), tree / "t.csv"), "columns rv and RV; keep")


def test_ids_of_gaia_in_any_form(tree):
    frame = pd.DataFrame({"path": list("abc"), "Gaia_ID": [f"Gaia DR3 {2**62 + 1}", None, "-9999"]})
    for name in ("t.csv", "t.parquet"):
        found = list_inputs(Input(table=save(frame, tree / name)))["gaia_id"]
        assert found.dtype == "Int64"
        assert found.isna().tolist() == [False, True, True]
        assert found[0] == 2**62 + 1


def test_columns_of_arrays_are_left_out_by_name(tree):
    table = Table({"path": ["a", "b"], "mags": np.ones((2, 5)), "ok": [1, 2]})
    table.write(tree / "t.fits")
    lines = []
    found = list_inputs(Input(table=str(tree / "t.fits")), echo=lines.append)
    assert list(found.columns) == ["path", "ok"]
    assert lines[0].endswith(": mags")


@pytest.mark.parametrize("name", ["specid", "obsid", "class", "snr_g", "teff", "chi2ratio", "in_sample", "flags"])
def test_columns_that_hotdask_writes_itself(tree, name):
    frame = pd.DataFrame({"path": ["a"], name: [1]})
    refused(save(frame, tree / "t.csv"), f"'{name}' to 'input_{name}'")
    assert list_inputs(Input(table=save(frame.rename(columns={name: f"input_{name}"}), tree / "t.csv"))).shape == (1, 2)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.from_regex(r"[a-z0-9_ ,\"']{1,12}", fullmatch=True).map(str.strip).filter(bool), unique=True, min_size=1
    ),
    kind=st.sampled_from(["csv", "parquet"]),
    data=st.data(),
)
def test_any_names_and_values_come_back(tmp_path, names, kind, data):
    n = len(names)
    values = data.draw(st.lists(st.floats(allow_infinity=False), min_size=n, max_size=n))
    frame = pd.DataFrame({"path": [f"{name}.fits" for name in names], "rv": values, "extra": values})
    found = list_inputs(Input(table=save(frame, tmp_path / f"t.{kind}")))
    assert found["path"].tolist() == [str(tmp_path / p) for p in frame["path"]]
    np.testing.assert_array_equal(found["rv"], np.where(is_none(np.array(values)), np.nan, values))
    np.testing.assert_array_equal(found["extra"].astype("float64"), values)


def test_signature_tells_whether_inputs_changed(tree):
    frame = list_inputs(Input(spectra=f"{tree}/*.fits*"))
    before = input_signature(frame)
    assert before["path"].tolist() == frame["path"].tolist()
    assert before[SIZE].tolist() == [len("a.fits.gz"), len("b.fits")]
    assert (before.dtypes[[SIZE, TIME]] == np.int64).all()
    pd.testing.assert_frame_equal(input_signature(frame), before)
    os.utime(tree / "b.fits", ns=(1, 1))
    (tree / "a.fits.gz").unlink()
    after = input_signature(frame)
    assert after[SIZE].tolist() == [-1, len("b.fits")]
    assert after[TIME].tolist() == [-1, 1]
    assert input_signature(frame.iloc[:0]).shape == (0, 3)
