"""Tables of users, whatever the format: Parquet, text with any separator, ECSV, FITS, VOTable, HATS catalogs.

Small ones are read whole, large ones a piece at a time.
"""

import csv
import gzip
import io
import itertools
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.table import Table

from hotdask.errors import InputError
from hotdask.schema import to_frame

KINDS = {
    "parquet": (".parquet", ".parq", ".pq"),
    "text": (".csv", ".tsv", ".txt", ".dat"),
    "ecsv": (".ecsv",),
    "fits": (".fits", ".fit", ".fts"),
    "votable": (".vot", ".vo", ".votable", ".xml"),
}
"""Endings of each kind of table; all but Parquet may be gzipped (.gz)."""

_ENDINGS = ", ".join(ends[0] for ends in KINDS.values())
_ROWS = 500_000
_BYTES = 64 << 20
_SEPARATORS = "|\t;,"
_MAX_HEAD = 1 << 20
_MAX_COLUMNS = 5000
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
"""How the address of something that is no local file begins."""
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Piece:
    """A row group, rows of a FITS table or bytes of a text file, from ``start`` to ``stop``; about how many rows."""

    path: str
    kind: str
    start: int = 0
    stop: int = 0
    rows: int = 0


def kind_of(path: str | Path) -> str | None:
    """What a table is by its name: a key of `KINDS`; None if it is none.

    Examples
    --------
    >>> kind_of("a/GaiaSource_000.csv.gz"), kind_of("a.fits"), kind_of("a.xlsx")
    ('text', 'fits', None)
    """
    name = str(path).lower()
    bare = name.removesuffix(".gz")
    found = next((kind for kind, ends in KINDS.items() if bare.endswith(ends)), None)
    return None if found == "parquet" and name != bare else found


def list_pieces(table: str | Path) -> list[tuple[Piece, ...]]:
    """The pieces of a table: of any of `KINDS`, or the folder of a HATS catalog or collection.

    Small ones come together, as one task should read them.

    Raises
    ------
    InputError
        If it is not there, is none of these, or cannot be read.
    """
    groups, rows = [], 0
    for piece in _list(table):
        if not groups or rows + piece.rows > _ROWS:
            groups, rows = [*groups, []], 0
        groups[-1].append(piece)
        rows += piece.rows
    return [tuple(group) for group in groups]


def column_units(table: str | Path) -> dict[str, str]:
    """Columns of a table, and the unit it says each has; empty where it says none.

    Raises
    ------
    InputError
        As `list_pieces`.
    """
    with _explained(f"table '{table}'"):
        path, kind = _files(table)[0]
        if kind == "parquet":
            schema = pq.read_schema(path)
            return {f.name: (f.metadata or {}).get(b"unit", b"").decode("utf-8", "replace") for f in schema}
        if kind == "fits":
            with fits.open(path) as file:
                return {c.name: str(c.unit or "") for c in _fits_table(file).columns}
        if kind == "votable":
            return _units(_votable(str(path)))
        return _dialect(str(path)).units


def first_piece(table: str | Path) -> Piece:
    """A piece at the beginning of a table, to see what it holds; raises as `list_pieces`."""
    path, kind = _files(table)[0]
    with _explained(f"table '{table}'"):
        return _pieces(path, kind)[0]


def read_pieces(pieces: Sequence[Piece], columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of pieces of a table; columns of a text file are text, since a piece does not know their type.

    Raises
    ------
    InputError
        If it lacks a column or cannot be read.
    """
    return pd.concat([_read(piece, list(dict.fromkeys(columns))) for piece in pieces], ignore_index=True)


def read_user_table(path: str | Path, where: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """A whole table, with nullable types, so that a 19-digit id next to a gap does not turn into a float.

    Parameters
    ----------
    path : path
        A file of any of `KINDS`.
    where : str
        What errors call it.

    Returns
    -------
    pandas.DataFrame
        One row a row of the table. A column ``path`` of text stays text, whatever its names look like. Columns of
        arrays have type object.
    dict of str to str
        As `column_units` gives them.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    kind = kind_of(path)
    if kind is None:
        raise InputError(f"{where} has the unknown ending '{Path(path).suffix}'; give one of {_ENDINGS}, or gzipped")
    with _explained(where):
        _check_file(Path(path), where)
        if kind == "parquet":
            table = pq.read_table(path, partitioning=None)
            frame = _decoded(table.to_pandas(types_mapper=_nullable)).reset_index(drop=True)
            return frame, column_units(path)
        if kind == "fits":
            with fits.open(path) as file:
                hdu = _fits_table(file)
                table = Table.read(hdu)
            return _from_astropy(table), column_units(path)
        if kind == "votable":
            table = _votable(str(path))
            return _from_astropy(table), _units(table)
        dialect = _dialect(str(path))
        with _open(str(path)) as file:
            frame = pd.read_csv(
                io.StringIO(_text(file.read()[dialect.start :])),
                **dialect.options,
                dtype={name: "string" for name in dialect.names if name.strip().lower() == "path"},
                dtype_backend="numpy_nullable",
                low_memory=False,
            )
        if not isinstance(frame.index, pd.RangeIndex):
            # pandas takes the first column as row names then, and every other one slips.
            raise ValueError("rows have more values than the header has names")
        return frame, dialect.units


# What is there


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Say which table it was, of whatever the libraries raise on a file that is not what its name says."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{where} does not exist; check the path") from error
    except Exception as error:
        raise InputError(f"{where} cannot be read ({error}); check that it is what its name says") from error


def _check_file(path: Path, where: str) -> None:
    """See that reading will end: a pipe or a device never does."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise InputError(f"{where} is no regular file; give a table on a disk")


def _files(table: str | Path) -> list[tuple[Path, str]]:
    """Files of a table, and what they are: a key of `KINDS`."""
    where = f"table '{table}'"
    if REMOTE.match(str(table)):
        raise InputError(f"{where} is not a local path; copy it to a disk every worker sees")
    path = Path(table).expanduser().absolute()
    with _explained(where):
        if path.is_dir():
            files = _catalog_files(path)
            if not files:
                raise InputError(f"{where} is a folder without Parquet files; give the folder of one HATS catalog")
            return [(file, "parquet") for file in files]
        _check_file(path, where)
        kind = kind_of(path)
        if kind is None:
            raise InputError(f"{where} has an unknown ending; give one of {_ENDINGS}, or the folder of a HATS catalog")
        return [(path, kind)]


def _list(table: str | Path) -> list[Piece]:
    with _explained(f"table '{table}'"):
        return [piece for path, kind in _files(table) for piece in _pieces(path, kind)]


def _pieces(path: Path, kind: str) -> list[Piece]:
    if kind == "parquet":
        return _groups(path)
    packed = path.name.lower().endswith(".gz")
    if kind == "fits":
        rows = _fits_rows(path)
        # Each piece of a gzipped file would unpack all of it.
        step = rows if packed else _ROWS
        starts = range(0, max(rows, 1), max(step, 1))
        return [Piece(str(path), kind, a, min(a + step, rows), min(step, rows - a)) for a in starts]
    if kind == "votable":
        return [Piece(str(path), kind)]
    return [Piece(str(path), "text.gz")] if packed else _lines(path)


def _catalog_files(folder: Path) -> list[Path]:
    """Parquet files of a HATS catalog, of the main catalog of a HATS collection, or of any folder."""
    collection = _properties(folder / "collection.properties")
    if collection:
        folder = folder / collection.get("hats_primary_table_url", collection.get("obs_collection", ""))
    found = _properties(folder / "hats.properties") or _properties(folder / "properties")
    ending = found.get("hats_npix_suffix", ".parquet").strip()
    if ending == "/":
        files = [p for p in folder.rglob("Npix=*/*") if p.is_file()]
    elif found:
        files = list(folder.rglob(f"Npix=*{ending}"))
    else:
        files = [p for end in KINDS["parquet"] for p in folder.rglob(f"*{end}")]
    # Other Parquet in a catalog's folder (_metadata, margins, previews) has other names.
    others = ("data_thumbnail.parquet", "point_map.parquet")
    return sorted(p for p in files if not p.name.startswith(("_", ".")) and p.name not in others)


def _properties(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = (line.partition("=") for line in path.read_text(encoding="utf-8").splitlines())
    return {key.strip(): value.strip() for key, mark, value in lines if mark and not key.startswith("#")}


# Parquet, FITS, VOTable


def _groups(path: Path) -> list[Piece]:
    found = pq.read_metadata(path)
    rows = [found.row_group(g).num_rows for g in range(found.num_row_groups)]
    return [Piece(str(path), "parquet", g, g + 1, n) for g, n in enumerate(rows or [0])]


def _nullable(kind: pa.DataType):
    numpy_nullable = {
        **{pa.from_numpy_dtype(f"{s}int{b}"): f"{s.upper()}Int{b}" for s in ("", "u") for b in (8, 16, 32, 64)},
        pa.bool_(): "boolean",
        pa.string(): "string",
        pa.large_string(): "string",
    }
    name = numpy_nullable.get(kind)
    return None if name is None else pd.api.types.pandas_dtype(name)


def _fits_rows(path: Path) -> int:
    with fits.open(path) as file:
        return _fits_table(file).header["NAXIS2"]


def _fits_table(file: fits.HDUList) -> fits.BinTableHDU | fits.TableHDU:
    for hdu in file:
        if isinstance(hdu, fits.BinTableHDU | fits.TableHDU):
            return hdu
    raise ValueError("no table in it")


@lru_cache(maxsize=1)
def _votable_of(path: str, _changed: int) -> Table:
    with warnings.catch_warnings(action="ignore"):
        return Table.read(path, format="votable")


def _votable(path: str) -> Table:
    return _votable_of(path, os.stat(path).st_mtime_ns)


def _units(table: Table) -> dict[str, str]:
    return {name: str(table[name].unit or "") for name in table.colnames}


def _from_astropy(table: Table) -> pd.DataFrame:
    out = {}
    table.convert_bytestring_to_unicode()
    for name in table.colnames:
        column = table[name]
        if column.ndim > 1:
            out[name] = pd.Series(list(np.asarray(column)), dtype=object)
        else:
            frame = Table({"c": column}).to_pandas()["c"]
            out[name] = frame if frame.dtype == object else frame.convert_dtypes(convert_floating=False)
            if frame.dtype == object and all(isinstance(v, str | type(None)) or v is pd.NA for v in frame):
                out[name] = frame.astype("string")
    return pd.DataFrame(out)


def _decoded(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of bytes as the text they mostly are, categories as what they stand for."""
    for name in frame.columns:
        column = frame[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            frame[name] = column.astype(column.cat.categories.dtype)
        if column.dtype == object and len(column) and column.map(lambda v: isinstance(v, bytes) or v is None).all():
            try:
                frame[name] = column.map(lambda v: None if v is None else v.decode().rstrip("\0 ")).astype("string")
            except UnicodeDecodeError:
                continue
    return frame


# Text


@dataclass(frozen=True)
class _Dialect:
    """How a text table is written."""

    separator: str
    names: list[str]
    units: dict[str, str]
    start: int
    """Bytes before the first row."""

    @property
    def options(self) -> dict:
        """For pandas."""
        return {"sep": self.separator, "names": self.names, "header": None, "skipinitialspace": self.separator == " "}


def _open(path: str) -> BinaryIO:
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _head(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Lines at the beginning of a file, each with where it ends."""
    at = 0
    while at <= _MAX_HEAD:
        line = file.readline(_MAX_HEAD + 1)
        at += len(line)
        if not line:
            return
        yield _text(line).rstrip("\r\n"), at
    raise ValueError(f"no row in its first {_MAX_HEAD} bytes")


def _dialect(path: str) -> _Dialect:
    """Names, units and separator from the lines above the first row."""
    with _open(path) as file:
        lines = _head(file)
        comments = []
        header, start = next(lines, ("", 0))
        while start and (not header.strip() or header.startswith("#")):
            comments.append(header)
            header, start = next(lines, ("", 0))
        if not start:
            raise ValueError("the file is empty")
        if "\0" in header:
            raise ValueError("it is no text")
        if comments and comments[0].startswith("# %ECSV"):
            empty = Table.read("\n".join([*comments, header]), format="ascii.ecsv")
            separator = "," if any("delimiter: ','" in line for line in comments) else " "
            return _Dialect(separator, _checked(empty.colnames), _units(empty), start)
        separator = max(_SEPARATORS, key=header.count)
        names = _checked([name.strip() for name in next(csv.reader([header], delimiter=separator))])
        units = dict.fromkeys(names, "")
        following = list(itertools.islice(lines, 2))
        # VizieR: a line of units, which may be left out, and one of dashes.
        for i, (line, end) in enumerate(following):
            if re.fullmatch(rf"-[-{re.escape(separator)} ]*", line):
                if i:
                    given = next(csv.reader([following[0][0]], delimiter=separator))
                    units |= dict(zip(names, (unit.strip() for unit in given), strict=False))
                start = end
    return _Dialect(separator, names, units, start)


def _checked(names: list[str]) -> list[str]:
    if len(names) > _MAX_COLUMNS:
        raise ValueError(f"it has {len(names)} columns, {_MAX_COLUMNS} are the most")
    return names


def _lines(path: Path) -> list[Piece]:
    """Ranges of bytes that end where lines do."""
    size, start, pieces = path.stat().st_size, _dialect(str(path)).start, []
    with path.open("rb") as file:
        while start < size:
            file.seek(min(start + _BYTES, size))
            file.readline()
            pieces.append(Piece(str(path), "text", start, file.tell(), (file.tell() - start) * _ROWS // _BYTES))
            start = file.tell()
    return pieces or [Piece(str(path), "text", size, size)]


def _read(piece: Piece, wanted: list[str]) -> pd.DataFrame:
    with _explained(f"{piece.path}, columns {wanted}"):
        if piece.kind == "parquet":
            with pq.ParquetFile(piece.path) as file:
                if piece.start < file.num_row_groups:
                    return _decoded(to_frame(file.read_row_group(piece.start, columns=wanted)))[wanted]
                return to_frame(file.schema_arrow.empty_table().select(wanted))
        if piece.kind == "fits":
            with fits.open(piece.path) as file:
                hdu = _fits_table(file)
                return pd.DataFrame({name: _fits_column(hdu, name, piece) for name in wanted})
        if piece.kind == "votable":
            return _from_astropy(_votable(piece.path)[wanted])
        dialect = _dialect(piece.path)
        with _open(piece.path) as file:
            if piece.kind == "text":
                file.seek(piece.start)
                data = file.read(piece.stop - piece.start)
            else:
                data = file.read()[dialect.start :]
        return pd.read_csv(io.StringIO(_text(data)), **dialect.options, dtype="str", usecols=wanted)[wanted]


def _fits_column(hdu: fits.BinTableHDU | fits.TableHDU, name: str, piece: Piece) -> pd.Series:
    values = np.asarray(hdu.data[name][piece.start : piece.stop])
    values = values.astype(values.dtype.newbyteorder("="))
    if values.dtype.kind == "S":
        return pd.Series(np.char.decode(values, "ascii", "replace")).astype("str")
    column = pd.Series(list(values) if values.ndim > 1 else values)
    null = hdu.columns[name].null
    return column if null is None or values.dtype.kind not in "iu" else column.astype("Int64").where(values != null)


def plain_types(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of text that hold numbers only as numbers, integers where all are."""
    out = frame.copy()
    for name in out.columns:
        if pd.api.types.is_string_dtype(out[name]) and name != "path":
            text = out[name].str.strip()
            # A leading zero belongs to a name, not to a number.
            if text.str.match(r"^-?0\d").any():
                continue
            try:
                out[name] = pd.to_numeric(text.where(text != ""), dtype_backend="numpy_nullable")
            except (ValueError, TypeError):
                continue
    return out
