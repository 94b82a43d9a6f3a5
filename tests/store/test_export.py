"""The exported catalog, read back by astropy and pandas."""

import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits, votable
from astropy.io.votable.ucd import check_ucd
from astropy.table import Table
from astropy.units import UnitsWarning

from hotdask.errors import InputError
from hotdask.schema import CATALOG, COMPARED, JOINED, arrow_schema, to_table
from hotdask.store.catalog import publish_catalog
from hotdask.store.export import PAPER, UCD, export_catalog

N = 7
BIG = 2**61 + 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A published catalog of two parts with all joined columns, and gaps."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(1)
    columns = {}
    for field in arrow_schema((*CATALOG, *JOINED)):
        if pa.types.is_boolean(field.type):
            columns[field.name] = rng.random(N) > 0.5
        elif pa.types.is_integer(field.type):
            columns[field.name] = np.arange(N).astype(field.type.to_pandas_dtype())
        elif pa.types.is_floating(field.type):
            columns[field.name] = rng.normal(size=N).astype(field.type.to_pandas_dtype())
        else:
            columns[field.name] = [f"{field.name}{i}" for i in range(N)]
    frame = pd.DataFrame(columns)
    frame.loc[2, ["parallax", "teff"]] = np.nan
    frame["gaia_id"] = np.where(np.arange(N) == 2, -1, BIG + np.arange(N))
    extra = tuple(c.name for c in JOINED)
    publish_catalog(folder, [to_table(part, CATALOG, extra=extra) for part in (frame[:4], frame[4:])], {"a": 1})
    return folder, frame


def test_every_column_has_a_valid_ucd():
    assert UCD.keys() == {c.name for columns in (CATALOG, JOINED, *COMPARED.values()) for c in columns}
    assert [ucd for ucd in UCD.values() if not check_ucd(ucd, check_controlled_vocabulary=True)] == []


def test_fits_has_units_and_ucds(run, tmp_path):
    folder, frame = run
    assert export_catalog(folder, tmp_path / "all.fits") == N
    with fits.open(tmp_path / "all.fits") as file:
        hdu = file[1]
        assert hdu.columns.names == list(frame.columns)
        for number, column in enumerate((*CATALOG, *JOINED), 1):
            assert hdu.header.get(f"TUNIT{number}", "") == column.unit
            assert hdu.header[f"TUCD{number}"] == UCD[column.name]
            assert hdu.header[f"TCOMM{number}"]
        file.verify("exception")
    with warnings.catch_warnings(action="ignore", category=UnitsWarning):
        read = Table.read(tmp_path / "all.fits")
    assert read["gaia_id"].tolist() == [None if i == 2 else BIG + i for i in range(N)]
    np.testing.assert_array_equal(np.ma.filled(read["teff"], np.nan), frame["teff"])
    assert read["star_id"].tolist() == frame["star_id"].tolist()
    assert read["in_sample"].tolist() == frame["in_sample"].tolist()


def test_votable_has_units_and_ucds(run, tmp_path):
    folder, frame = run
    export_catalog(folder, tmp_path / "paper.vot", columns="paper")
    with warnings.catch_warnings(action="ignore"):
        table = votable.parse_single_table(tmp_path / "paper.vot")
    fields = {field.name: field for field in table.fields}
    assert list(fields) == list(PAPER)
    assert {name: field.ucd for name, field in fields.items()} == {theirs: UCD[ours] for theirs, ours in PAPER.items()}
    assert str(fields["Teff"].unit) == "K"
    array = table.to_table(use_names_over_ids=True)
    assert array["gaia_id"].tolist() == [None if i == 2 else BIG + i for i in range(N)]
    np.testing.assert_array_equal(np.ma.filled(array["[Si/H]"], np.nan), frame["si_h"])
    assert table.to_table()["Si_H", "Teff"].colnames == ["Si_H", "Teff"]


def test_paper_columns_are_those_of_table_5(run, tmp_path):
    folder, frame = run
    export_catalog(folder, tmp_path / "paper.csv", columns="paper")
    read = pd.read_csv(tmp_path / "paper.csv")
    assert list(read) == list(PAPER)
    assert read["source_Liu19"].tolist() == frame["source_ob"].astype(int).tolist()
    np.testing.assert_allclose(read["K"], frame["ks"])
    export_catalog(folder, tmp_path / "sample.parquet", columns="paper", sample=True)
    schema = pq.read_schema(tmp_path / "sample.parquet")
    assert schema.field("r_geo").metadata[b"unit"] == b"pc"
    assert pq.read_metadata(tmp_path / "sample.parquet").num_rows == frame["in_sample"].sum()


def test_csv_has_no_text_that_a_spreadsheet_would_calculate(run, tmp_path):
    _, frame = run
    names = ["=1+1.fits", "+1.fits", "-2.fits", "@SUM(A1)", "spec-1.fits", "a=b", "x"]
    changed = frame.assign(fitsname=names)
    extra = tuple(c.name for c in JOINED)
    publish_catalog(tmp_path / "run", [to_table(changed, CATALOG, extra=extra)], {"a": 1})
    export_catalog(tmp_path / "run", tmp_path / "all.csv")
    read = pd.read_csv(tmp_path / "all.csv")
    assert read["fitsname"].tolist() == ["'" + name for name in names[:4]] + names[4:]
    # Numbers keep their signs.
    np.testing.assert_allclose(read["rv"], frame["rv"])


def test_what_a_run_lacks_is_empty(tmp_path):
    schema = arrow_schema(CATALOG)
    values = [pa.array(["a"] if field.name == "specid" else [None], field.type) for field in schema]
    table = pa.table(values, schema=schema)
    publish_catalog(tmp_path, [table], {"a": 1})
    assert export_catalog(tmp_path, tmp_path / "paper.fits", columns="paper") == 1
    with warnings.catch_warnings(action="ignore", category=UnitsWarning):
        read = Table.read(tmp_path / "paper.fits")
    plain = {"[Fe/H]": "Fe_H", "corr_[Fe/H]_[Si/H]": "corr_Fe_H_Si_H", "Teff": "Teff"}
    assert {name: read.colnames[list(PAPER).index(name)] for name in plain} == plain
    assert read["gaia_id"].mask.all()
    assert np.isnan(np.ma.filled(read["parallax"], np.nan)).all()
    with pytest.raises(InputError, match="unknown ending"):
        export_catalog(tmp_path, tmp_path / "paper.txt")


@pytest.mark.parametrize("ending", [".fits", ".vot"])
def test_carried_columns_of_any_type_and_name(run, tmp_path, ending):
    _, frame = run
    numbers = {
        "int8": [-1, None, 3],
        "uint8": [1, None, 255],
        "uint16": [1, None, 65535],
        "uint32": [1, None, 2**32 - 1],
    }
    carried = {name: pa.array(v, getattr(pa, name)()) for name, v in numbers.items()}
    carried |= {
        "yes": pa.array([True, None, False]),
        "big": pa.array([1, None, 2**64 - 1], pa.uint64()),
        "nom_é": pa.array(["é", None, "x"]),
        "Teff": pa.array([1.5, None, 2.0]),
        "2 words/m": pa.array([1, 2, 3]),
        "minus": pa.array([-1, None, 7]),
        "nothing": pa.nulls(3, pa.large_string()),
    }
    table = to_table(frame[:3], CATALOG)
    for name, values in carried.items():
        table = table.append_column(name, values)
    publish_catalog(tmp_path / "run", [table], {"a": 1})
    assert export_catalog(tmp_path / "run", tmp_path / f"all{ending}") == 3
    with warnings.catch_warnings(action="ignore"):
        read = Table.read(tmp_path / f"all{ending}")
    lower = [name.lower() for name in read.colnames]
    assert len(set(lower)) == len(lower)
    assert all(name.isascii() and name.isidentifier() for name in read.colnames) or ending == ".vot"
    back = dict(zip(carried, read.colnames[len(CATALOG) :], strict=True))
    for name, values in carried.items():
        found = [None if v is np.ma.masked or v in ("", b"") else v for v in read[back[name]].tolist()]
        wanted = [None if v is None else v for v in values.to_pylist()]
        if name == "big":
            wanted = [None if v is None else str(v) for v in wanted]
        elif name == "Teff":
            found = [None if v is None or np.isnan(v) else v for v in found]
        assert [v.decode() if isinstance(v, bytes) else v for v in found] == wanted, name


def test_csv_neutralizes_names_and_categories(run, tmp_path):
    _, frame = run
    table = to_table(frame[:3], CATALOG)
    table = table.append_column("=HYPERLINK(1)", pa.array(["=1", "a", "@b"]).dictionary_encode())
    publish_catalog(tmp_path / "run", [table], {"a": 1})
    export_catalog(tmp_path / "run", tmp_path / "all.csv")
    read = pd.read_csv(tmp_path / "all.csv")
    assert read["'=HYPERLINK(1)"].tolist() == ["'=1", "a", "'@b"]
