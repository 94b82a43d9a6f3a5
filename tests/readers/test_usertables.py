"""Tables of users in the formats of the field, whole and in pieces."""

import gzip
import os
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, Table

from hotdask.errors import InputError
from hotdask.readers import usertables
from hotdask.readers.usertables import column_units, list_pieces, read_pieces, read_user_table

IDS = [2**62 + 1, 2**62 + 3, 2**62 + 5]
VIZIER = """#RESOURCE=yCat
#Name: J/A+A/1/1

RAJ2000\tDEJ2000\tname\trv
deg\tdeg\t \tm/s
-------\t-------\t----\t-----
10.5\t-20.25\tHD 1\t1500
11.5\t-21.25\tHD 2\t
12.5\t-22.25\tHD é\t2500
"""


def table() -> Table:
    found = Table({"source_id": IDS, "ra": [10.5, 11.5, 12.5], "name": ["a", "b c", "d"]})
    found["ra"].unit = u.deg
    found["rv"] = MaskedColumn([1500.0, 0.0, 2500.0], mask=[False, True, False], unit="m/s")
    return found


def write(path, ending) -> str:
    path = str(path / f"t{ending}")
    bare = path.removesuffix(".gz")
    if bare.endswith(".parquet"):
        fields = [pa.field("source_id", pa.int64()), pa.field("ra", pa.float64(), metadata={"unit": "deg"})]
        fields += [pa.field("name", pa.string()), pa.field("rv", pa.float64(), metadata={"unit": "m/s"})]
        rows = [IDS, [10.5, 11.5, 12.5], ["a", "b c", "d"], [1500.0, None, 2500.0]]
        pq.write_table(pa.table(rows, schema=pa.schema(fields)), bare, row_group_size=2)
    elif bare.endswith(".vot"):
        table().write(bare, format="votable", overwrite=True)
    elif bare.endswith(".fits"):
        table().write(bare, format="fits", overwrite=True)
    else:
        kinds = {".ecsv": ("ascii.ecsv", " "), ".csv": ("ascii.ecsv", ","), ".tsv": ("ascii.csv", "\t")}
        kind, delimiter = next((v for k, v in kinds.items() if bare.endswith(k)), ("ascii.csv", "|"))
        table().write(bare, format=kind, delimiter=delimiter, overwrite=True)
    if path != bare:
        with open(bare, "rb") as plain, gzip.open(path, "wb") as packed:
            shutil.copyfileobj(plain, packed)
        os.unlink(bare)
    return path


ENDINGS = [".parquet", ".fits", ".fits.gz", ".vot", ".vot.gz", ".ecsv", ".ecsv.gz", ".csv", ".csv.gz", ".tsv", ".txt"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_holds_the_same(tmp_path, ending) -> None:
    path = write(tmp_path, ending)
    frame, units = read_user_table(path, "table")
    assert frame["source_id"].tolist() == IDS
    assert frame["name"].tolist() == ["a", "b c", "d"]
    np.testing.assert_array_equal(frame["rv"].to_numpy(dtype=float, na_value=np.nan), [1500, np.nan, 2500])
    assert units == column_units(path)
    if ending not in (".tsv", ".txt"):
        assert (units["ra"], u.Unit(units["rv"]), units["name"]) == ("deg", u.m / u.s, "")
    pieces = list_pieces(path)
    back = pd.concat(read_pieces(group, ["ra", "source_id"]) for group in pieces)
    assert list(back.columns) == ["ra", "source_id"]
    assert back["source_id"].astype(str).tolist() == [str(i) for i in IDS]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("ending", [".tsv", ".tsv.gz"])
def test_vizier_writes_units_and_dashes_below_the_names(tmp_path, ending, encoding) -> None:
    path = tmp_path / f"asu{ending}"
    data = VIZIER.encode(encoding)
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    frame, units = read_user_table(path, "table")
    assert frame["name"].tolist() == ["HD 1", "HD 2", "HD é"]
    assert units == {"RAJ2000": "deg", "DEJ2000": "deg", "name": "", "rv": "m/s"}
    assert read_pieces(list_pieces(path)[0], ["DEJ2000"])["DEJ2000"].tolist() == ["-20.25", "-21.25", "-22.25"]


def test_gaia_writes_null(tmp_path) -> None:
    path = tmp_path / "GaiaSource.csv.gz"
    head = "# %ECSV 1.0\n# ---\n# delimiter: ','\n# datatype:\n# - {name: source_id, datatype: int64}\n"
    head += "# - {name: parallax, unit: mas, datatype: float64}\nsource_id,parallax\n"
    path.write_bytes(gzip.compress(f'{head}{IDS[0]},2.5\n{IDS[1]},"null"\n'.encode()))
    frame, units = read_user_table(path, "table")
    assert (frame["source_id"].tolist(), units["parallax"]) == (IDS[:2], "mas")
    assert read_pieces(list_pieces(path)[0], ["parallax"])["parallax"].isna().tolist() == [False, True]


def test_long_text_tables_come_in_pieces_that_lose_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(usertables, "_BYTES", 100)
    monkeypatch.setattr(usertables, "_ROWS", 5)
    path = tmp_path / "t.csv"
    path.write_text("# said by hand\nid;x\n" + "".join(f"{i};{i * i}\n" for i in range(200)))
    pieces = list_pieces(path)
    assert len(pieces) > 10
    back = pd.concat([read_pieces(group, ["x"]) for group in pieces])["x"]
    assert back.astype(int).tolist() == [i * i for i in range(200)]


@pytest.mark.parametrize(("suffix", "inside"), [(".parquet", ""), (".snap.pq", ""), ("/", "/part0.parquet")])
def test_hats_catalogs_of_any_suffix_and_collections(tmp_path, suffix, inside) -> None:
    catalog = tmp_path / "collection" / "gaia"
    for pixel in (3, 7):
        name = f"Npix={pixel}" + (suffix if suffix != "/" else "")
        file = catalog / "dataset" / "Norder=1" / "Dir=0" / f"{name}{inside}"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"source_id": [pixel]}), file)
    pq.write_table(pa.table({"source_id": [0]}), catalog / "dataset" / "_metadata.parquet")
    (catalog / "hats.properties").write_text(f"#HATS\nobs_collection=gaia\nhats_npix_suffix={suffix}\n")
    margin = tmp_path / "collection" / "gaia_10arcs" / "dataset" / "Norder=1" / "Dir=0"
    margin.mkdir(parents=True)
    pq.write_table(pa.table({"source_id": [99]}), margin / "Npix=3.parquet")
    (tmp_path / "collection" / "collection.properties").write_text(
        "hats_primary_table_url=gaia\nall_margins=gaia_10arcs\n"
    )
    for folder in (catalog, catalog.parent):
        found = pd.concat(read_pieces(group, ["source_id"]) for group in list_pieces(folder))
        assert sorted(found["source_id"]) == [3, 7]
        assert column_units(folder) == {"source_id": ""}


def test_text_in_bytes_and_categories_is_text(tmp_path) -> None:
    path = tmp_path / "t.parquet"
    text = pa.array(["a", "b", "a"])
    table = pa.table({"path": text.cast(pa.binary()), "kind": text.dictionary_encode(), "raw": pa.array([b"\xff"] * 3)})
    pq.write_table(table, path)
    frame, _ = read_user_table(path, "table")
    assert frame["path"].tolist() == frame["kind"].tolist() == ["a", "b", "a"]
    assert frame["raw"].tolist() == [b"\xff"] * 3
    assert read_pieces(list_pieces(path)[0], ["path"])["path"].tolist() == ["a", "b", "a"]


def test_what_has_no_end_is_refused(tmp_path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    endless = tmp_path / "zero.parquet"
    endless.symlink_to("/dev/zero")
    wide = tmp_path / "wide.csv"
    wide.write_text(",".join(f"c{i}" for i in range(10**5)) + "\n1\n")
    long = tmp_path / "long.csv"
    long.write_bytes(b"x" * (3 << 20))
    for path, says in (
        (pipe, "no regular file"),
        (endless, "no regular file"),
        (wide, "100000 columns"),
        (long, "cannot"),
    ):
        for read in (column_units, list_pieces, lambda path: read_user_table(path, "table")):
            with pytest.raises(InputError, match=says):
                read(path)
    with pytest.raises(InputError, match="not a local path"):
        list_pieces("https://a.org/t.csv")
    with pytest.raises(InputError, match="does not exist"):
        column_units(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"unknown ending '\.xlsx'"):
        read_user_table(tmp_path / "t.xlsx", "table")
