"""Columns and variables: documented, in units astropy reads, and kept by what is written."""

import keyword
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hotdask import schema
from hotdask.errors import RunError
from hotdask.labels import ABUNDANCES, COMPARED_LABELS, CORRELATION_PAIRS, LABEL_NAMES, LABELS, LSF_NAMES, PAPER_LABELS

WITH_SECOND = {"FITS": schema.fits_columns, "CATALOG": schema.catalog_columns}
TABLES = {name: getattr(schema, name) for name in ("SPECTRA", "REJECTS", "FITS", "CATALOG", "TRUTH")}
TABLES |= {f"{table}-{suffix}": columns(suffix) for table, columns in WITH_SECOND.items() for suffix in schema.COMPARED}
EVERYTHING = [(name, c) for name, columns in TABLES.items() for c in columns] + [
    (name, v) for name in ("CUBE", "CUBE_COORDINATES") for v in getattr(schema, name)
]


@pytest.mark.parametrize(("where", "column"), EVERYTHING, ids=[f"{w}.{c.name}" for w, c in EVERYTHING])
def test_documented_with_a_unit_astropy_reads(where, column):
    assert len(column.doc) > 5
    assert column.doc == column.doc.strip()
    assert re.fullmatch(r"[a-z][a-z0-9_]*", column.name)
    unit = u.Unit(column.unit)
    assert unit.to_string() == column.unit or u.Unit(unit.to_string()) == unit


@pytest.mark.parametrize("table", [*TABLES, "CUBE", "CUBE_COORDINATES"])
def test_names_are_unique(table):
    names = [c.name for c in TABLES.get(table) or getattr(schema, table)]
    assert len(names) == len(set(names))


def test_units_are_of_the_right_kind():
    column = {c.name: c for c in schema.CATALOG}
    assert u.Unit(column["teff"].unit).is_equivalent("K")
    assert u.Unit(column["logg"].unit) == u.dex(u.cm / u.s**2)
    for name in ("vmic", "vsini", "rv", "rv_err", "vsini_err", "vmic_all"):
        assert u.Unit(column[name].unit) == u.km / u.s
    for name in ABUNDANCES:
        assert u.Unit(column[f"{name}_hmasked"].unit) == u.dex
    assert u.Unit(column["ra"].unit) == u.deg
    assert u.Unit({c.name: c for c in schema.TRUTH}["lsf_b0"].unit) == u.AA


def test_catalog_has_every_column_it_promises():
    names = [c.name for c in schema.CATALOG]
    promised = ["specid", "obsid", "fitsname", "ra", "dec", "star_id", "uniqflag", "snr_g", "rv", "rv_err"]
    assert [n for n in names if n in promised] == promised
    labels = ["teff", "logg", "vmic", "vsini", "n_he", "c_h", "n_h", "o_h", "si_h", "s_h", "fe_h"]
    assert list(LABEL_NAMES) == labels
    for label in labels:
        assert {label, f"{label}_err", f"{label}_all", f"{label}_hmasked"} <= set(names)
    assert sum(n.startswith("corr_") for n in names) == len(CORRELATION_PAIRS) == 10
    assert {p for pair in CORRELATION_PAIRS for p in pair} == set(PAPER_LABELS)
    assert {"chi2_red", "chi2ratio", "flags", "in_sample"} <= set(names)


def test_labels_of_a_second_emulator_are_of_the_kind_of_the_first():
    first = {c.name: c for c in schema.CATALOG}
    assert COMPARED_LABELS == ("teff", "logg", "vsini", "n_he", "fe_h")
    for suffix, columns in schema.COMPARED.items():
        second = {c.name: c for c in columns}
        for name in COMPARED_LABELS:
            for theirs, ours in ((f"{name}_{suffix}", name), (f"{name}_{suffix}_err", f"{name}_err")):
                assert (second[theirs].type, second[theirs].unit) == (first[ours].type, first[ours].unit)
        assert {f"chi2_red_{suffix}", f"flags_{suffix}"} <= second.keys()


def test_truth_stands_beside_the_catalog():
    truth = {c.name: c for c in schema.TRUTH}
    for label in LABELS:
        assert truth[f"{label.name}_true"].unit == truth[f"{label.name}_crb"].unit == label.unit
    assert set(LSF_NAMES) <= truth.keys()


def test_cube_coordinates_are_the_numeric_columns():
    numeric = [c.name for c in schema.SPECTRA if not pa.types.is_large_string(c.type)]
    assert [v.name for v in schema.CUBE_COORDINATES] == numeric
    frame = schema.empty_frame(schema.SPECTRA)
    for variable in schema.CUBE_COORDINATES:
        assert variable.dims == ("spectrum",)
        assert frame[variable.name].dtype == np.dtype(variable.dtype)


def test_labels_are_consistent():
    for label in LABELS:
        assert label.floor <= label.low < label.high <= label.ceiling
        assert label.floor < label.start < label.ceiling
        assert not keyword.iskeyword(label.name)


@pytest.mark.parametrize("table", TABLES)
def test_arrow_metadata_survives_a_file(table, tmp_path):
    columns = TABLES[table]
    arrow = schema.arrow_schema(columns)
    pq.write_table(arrow.empty_table(), tmp_path / "t.parquet")
    back = pq.read_schema(tmp_path / "t.parquet")
    assert back.names == [c.name for c in columns]
    for column in columns:
        field = back.field(column.name)
        assert field.type == column.type
        assert field.metadata[b"unit"].decode() == column.unit
        assert field.metadata[b"description"].decode() == column.doc


@pytest.mark.parametrize("table", TABLES)
def test_empty_frame(table):
    frame = schema.empty_frame(TABLES[table])
    assert list(frame.columns) == [c.name for c in TABLES[table]]
    assert len(frame) == 0


def rejects(n: int) -> pd.DataFrame:
    return pd.DataFrame({c.name: [f"{c.name}{i}" for i in range(n)] for c in schema.REJECTS})


class TestToTable:
    def test_order_and_types_are_the_declared_ones(self):
        frame = rejects(2)[[c.name for c in schema.REJECTS][::-1]]
        frame["note"] = [1.5, 2.5]
        table = schema.to_table(frame, schema.REJECTS, extra=("note",))
        assert table.column_names == [*(c.name for c in schema.REJECTS), "note"]
        assert table.schema.field("note").metadata[b"description"] == b"carried from the input table"
        assert table.column("note").to_pylist() == [1.5, 2.5]
        # Undeclared columns nobody asked for are left behind; pandas' own metadata too.
        assert schema.to_table(frame, schema.REJECTS).column_names == [c.name for c in schema.REJECTS]
        assert table.schema.metadata is None

    def test_missing_columns_are_named(self):
        with pytest.raises(RunError, match=r"lacks the columns \['reason', 'detail'\]"):
            schema.to_table(rejects(1).drop(columns=["reason", "detail"]), schema.REJECTS)

    def test_numbers_are_cast(self):
        frame = schema.empty_frame(schema.TRUTH).reindex(range(2)).assign(specid="a", star=[1.0, 2.0])
        table = schema.to_table(frame, schema.TRUTH)
        assert table.schema.field("star").type == pa.int64()
        assert table.column("star").to_pylist() == [1, 2]

    def test_a_number_that_does_not_fit_is_refused(self):
        frame = schema.empty_frame(schema.TRUTH).reindex(range(1)).assign(specid="a", star=1.5)
        with pytest.raises(pa.ArrowInvalid):
            schema.to_table(frame, schema.TRUTH)


@given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(0, 5), st.just(11), st.just(11)), elements=st.floats(width=64, allow_nan=True)
    )
)
@settings(max_examples=30, deadline=None)
def test_covariances_pack_and_unpack(covariance):
    packed = schema.pack_covariance(covariance)
    assert len(packed) == len(covariance)
    cut = len(covariance) // 2
    column = pa.chunked_array([packed[:cut], packed[cut:]], type=packed.type)
    np.testing.assert_array_equal(schema.unpack_covariance(column), covariance)
