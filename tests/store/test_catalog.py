"""Fits on disk, and a catalog that readers see whole."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest

from hotdask.errors import RunError
from hotdask.labels import LABELS
from hotdask.schema import CATALOG, FITS, arrow_schema, to_table, unpack_covariance
from hotdask.store.catalog import (
    catalog_folder,
    publish_catalog,
    read_catalog,
    read_fits_part,
    read_provenance,
    write_catalog_part,
    write_fits_part,
)

pytestmark = pytest.mark.usefixtures("fast_disk")
META = {"version": "1", "settings": {"ß": [1.5, None]}, "emulator": "abc"}


@pytest.fixture
def fast_disk(monkeypatch):
    # What fsync is for is tested in test_atomic.py.
    monkeypatch.setattr("os.fsync", lambda handle: None)


def make_fits(n: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    columns = {}
    for c in FITS:
        if pa.types.is_fixed_size_list(c.type):
            half = rng.standard_normal((n, 11, 11))
            columns[c.name] = half @ half.swapaxes(1, 2)
        elif pa.types.is_integer(c.type):
            columns[c.name] = rng.integers(0, 1000, n)
        elif pa.types.is_floating(c.type):
            columns[c.name] = np.where(rng.random(n) < 0.3, np.nan, rng.standard_normal(n))
        else:
            columns[c.name] = np.array([f"2012-B-{i}" for i in range(n)])
    return columns


def make_table(start: int, stop: int, generation: int = 0, **carried) -> pa.Table:
    frame = pd.DataFrame({c.name: np.zeros(stop - start) for c in CATALOG})
    for c in CATALOG:
        if pa.types.is_large_string(c.type):
            frame[c.name] = [f"{c.name}-{i}" for i in range(start, stop)]
        elif pa.types.is_boolean(c.type):
            frame[c.name] = True
    frame["teff"] = np.arange(start, stop) + 10000.0
    frame["obsid"] = generation
    return to_table(frame.assign(**carried), CATALOG, extra=tuple(carried))


def visible(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- fits -----------------------------------------------------------------------------------------------------------


def test_fits_come_back(tmp_path):
    columns = make_fits()
    path = write_fits_part(tmp_path, 12, columns)
    assert path == tmp_path / "fits" / "part-00012.parquet"
    table = read_fits_part(path)
    assert table.schema.equals(arrow_schema(FITS))
    assert [f.metadata for f in table.schema] == [f.metadata for f in arrow_schema(FITS)]
    for name, values in columns.items():
        if values.ndim == 3:
            np.testing.assert_array_equal(unpack_covariance(table[name]), values)
        else:
            assert table[name].null_count == 0
            np.testing.assert_array_equal(table[name].to_numpy(), values)
    some = read_fits_part(path, ["flags", "specid"])
    assert some.column_names == ["flags", "specid"]


def test_empty_fits_part(tmp_path):
    table = read_fits_part(write_fits_part(tmp_path, 0, {k: v[:0] for k, v in make_fits().items()}))
    assert table.num_rows == 0
    assert table.schema.equals(arrow_schema(FITS))


def test_same_fits_same_bytes(tmp_path):
    first = write_fits_part(tmp_path, 0, make_fits()).read_bytes()
    assert write_fits_part(tmp_path, 0, make_fits()).read_bytes() == first


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"missing \['teff_all'\]", lambda c: c.pop("teff_all")),
        (r"unknown \['teff'\]", lambda c: c.update(teff=c["teff_all"])),
        (r"logg_all has shape \(4,\) for 5 rows", lambda c: c.update(logg_all=c["logg_all"][1:])),
        (r"covariance_all has shape \(5, 121\)", lambda c: c.update(covariance_all=c["covariance_all"].reshape(5, -1))),
        (r"flags is not int32", lambda c: c.update(flags=np.full(5, 2**40))),
        (r"flags is not int32", lambda c: c.update(flags=np.full(5, 1.5))),
        (r"row is not int64", lambda c: c.update(row=np.full(5, "a"))),
    ],
)
def test_wrong_fits_are_refused(tmp_path, message, change):
    columns = make_fits()
    change(columns)
    with pytest.raises(RunError, match=message):
        write_fits_part(tmp_path, 0, columns)
    assert not (tmp_path / "fits").exists()


def test_damaged_fits_are_named(tmp_path):
    path = write_fits_part(tmp_path, 0, make_fits(200))
    good = path.read_bytes()
    # Amid the values of a column, where Parquet alone would return another number.
    column = pq.ParquetFile(path).metadata.row_group(0).column(10)
    middle = column.dictionary_page_offset + column.total_compressed_size // 2
    for bad in (good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :], good[:-5], b"", b"PAR1" * 10):
        path.write_bytes(bad)
        with pytest.raises(RunError, match=r"part-00000\.parquet: the file is damaged"):
            read_fits_part(path)


# --- publication ----------------------------------------------------------------------------------------------------


def test_catalog_is_read_by_pandas_through_the_link(tmp_path):
    done = publish_catalog(tmp_path, [make_table(0, 4), make_table(4, 10)], META, rows=10)
    assert (done.version, done.rows) == ("v0001", 10)
    assert (tmp_path / "catalog").is_symlink()
    assert not (tmp_path / "catalog").readlink().is_absolute()
    assert len(list((tmp_path / "catalog").glob("part-*.parquet"))) == 2
    frame = pd.read_parquet(tmp_path / "catalog", columns=["specid", "teff"], filters=[("teff", ">=", 10003)])
    assert frame["specid"].tolist() == [f"specid-{i}" for i in range(3, 10)]
    pd.testing.assert_frame_equal(
        read_catalog(tmp_path, columns=["specid", "teff"], filters=[("teff", ">=", 10003)]), frame
    )
    assert pds.dataset(tmp_path / "catalog").count_rows() == 10


def test_units_meanings_and_provenance_survive(tmp_path):
    publish_catalog(tmp_path, [make_table(0, 2, gaia=[1, 2]), make_table(2, 3, gaia=[3])], META)
    for path in (tmp_path / "catalog").iterdir():
        schema = pq.read_schema(path)
        assert schema.names == [*(c.name for c in CATALOG), "gaia"]
        for label in LABELS:
            field = schema.field(label.name)
            assert field.metadata[b"unit"].decode() == label.unit
            assert field.metadata[b"description"].decode() == label.doc
    assert read_provenance(tmp_path) == META
    assert b"settings" in pds.dataset(tmp_path / "catalog").schema.metadata[b"hotdask"]


def test_callback_may_write_the_parts(tmp_path):
    def write(folder):
        assert not (tmp_path / "catalog").exists()
        for part in (1, 0):
            write_catalog_part(folder, part, make_table(part * 3, part * 3 + 3), META)

    done = publish_catalog(tmp_path, write, META, rows=6)
    assert [name[:10] for name in done.files] == ["part-00000", "part-00001"]
    assert read_catalog(tmp_path)["teff"].tolist() == [10000.0 + i for i in range(6)]


def test_same_tables_same_names_and_bytes(tmp_path):
    first = publish_catalog(tmp_path / "a", [make_table(0, 4)], META)
    publish_catalog(tmp_path / "b", [make_table(0, 3)], META)
    second = publish_catalog(tmp_path / "b", [make_table(0, 4)], META)
    assert (first.version, second.version) == ("v0001", "v0002")
    assert first.files == second.files
    again = publish_catalog(tmp_path / "b", [make_table(0, 4)], META)
    assert again == second
    assert visible(tmp_path / "b" / "catalog_versions") == ["v0001", "v0002"]


def test_two_versions_are_kept(tmp_path):
    for generation in range(4):
        publish_catalog(tmp_path, [make_table(0, 2, generation)], META)
    assert visible(tmp_path / "catalog_versions") == ["v0003", "v0004"]
    assert read_catalog(tmp_path)["obsid"].tolist() == [3, 3]
    assert catalog_folder(tmp_path) == tmp_path / "catalog_versions" / "v0004"


def _without(name):
    return make_table(0, 2).drop_columns([name])


def _retyped(name):
    table = make_table(0, 2)
    i = table.schema.get_field_index(name)
    return table.set_column(i, name, table[name].cast(pa.float32()))


@pytest.mark.parametrize(
    ("message", "tables", "rows"),
    [
        ("10 rows, should have 11", lambda: [make_table(0, 10)], 11),
        ("repeated specid .*specid-3", lambda: [make_table(0, 5), make_table(3, 8)], 10),
        ("column teff_err should be double", lambda: [_without("teff_err")], 2),
        ("column teff should be double", lambda: [make_table(2, 4), _retyped("teff")], 4),
        ("columns differ", lambda: [make_table(0, 2), make_table(2, 4, gaia=[1, 2])], 4),
        ("no parts", list, 0),
        ("column specid", lambda: [pa.table({"a": [1]})], 1),
    ],
)
def test_a_wrong_catalog_is_not_published(tmp_path, message, tables, rows):
    publish_catalog(tmp_path, [make_table(0, 2)], META)
    with pytest.raises(RunError, match=message):
        publish_catalog(tmp_path, tables(), META, rows=rows)
    assert visible(tmp_path / "catalog_versions") == ["v0001"]
    assert len(read_catalog(tmp_path)) == 2


def test_missing_specid_is_not_published(tmp_path):
    table = make_table(0, 2)
    table = table.set_column(0, table.schema.field("specid"), pa.array(["a", None], pa.large_string()))
    with pytest.raises(RunError, match="missing or repeated specid"):
        publish_catalog(tmp_path, [table], META)


def test_other_provenance_is_not_published(tmp_path):
    with pytest.raises(RunError, match="provenance"):
        publish_catalog(tmp_path, lambda f: write_catalog_part(f, 0, make_table(0, 2), META | {"version": "2"}), META)
    assert visible(tmp_path / "catalog_versions") == []


@pytest.mark.parametrize("error", [ZeroDivisionError, FileExistsError, KeyboardInterrupt])
def test_interrupted_publication_leaves_the_version_before(tmp_path, error):
    publish_catalog(tmp_path, [make_table(0, 2)], META)

    def tables():
        yield make_table(0, 3)
        raise error

    with pytest.raises(error):
        publish_catalog(tmp_path, tables(), META)
    with pytest.raises(error):
        publish_catalog(tmp_path, lambda _: list(tables()), META)
    assert visible(tmp_path / "catalog_versions") == ["v0001"]
    assert len(read_catalog(tmp_path)) == 2


def test_nothing_published_yet(tmp_path):
    with pytest.raises(RunError, match="no catalog is published yet"):
        read_catalog(tmp_path)
