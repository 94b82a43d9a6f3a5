"""Large tables with positions, read a piece at a time: Parquet, CSV, FITS, or a HATS catalog (a folder of Parquet)."""

import gzip
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.table import Table

from hotdask.errors import InputError
from hotdask.store.atomic import atomic_path
from hotdask.store.parquet import to_frame

_ROWS = 500_000
_BYTES = 64 << 20
_SEPARATORS = "|\t;,"


@dataclass(frozen=True)
class Piece:
    """A row group, rows of a FITS table or bytes of a CSV file, from ``start`` to ``stop``; about how many rows."""

    path: str
    kind: str
    start: int = 0
    stop: int = 0
    rows: int = 0


def list_pieces(table: str | Path) -> list[tuple[Piece, ...]]:
    """The pieces of a table: .parquet, .csv, .fits (the latter two gzipped too), or the folder of a HATS catalog.

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


def _list(table: str | Path) -> list[Piece]:
    path = Path(table).expanduser().absolute()
    where = f"table '{table}'"
    if not path.exists():
        raise InputError(f"{where} does not exist; check the path")
    try:
        if path.is_dir():
            # Other Parquet in a catalog's folder (_metadata, margins) has other names.
            files = sorted(p for p in path.rglob("*.parquet") if not p.name.startswith("_"))
            files = [p for p in files if p.name not in ("data_thumbnail.parquet", "point_map.parquet")]
            if not files:
                raise InputError(f"{where} is a folder without Parquet files; give the folder of one HATS catalog")
            return [piece for file in files for piece in _groups(file)]
        name = path.name.lower()
        if name.endswith(".parquet"):
            return _groups(path)
        if name.endswith((".csv", ".txt")):
            return _lines(path)
        if name.endswith((".fits", ".fit", ".fits.gz", ".fit.gz")):
            rows = _fits_rows(path)
            # Each piece of a gzipped file would unpack all of it.
            step = rows if name.endswith(".gz") else _ROWS
            starts = range(0, max(rows, 1), max(step, 1))
            return [Piece(str(path), "fits", a, min(a + step, rows), min(step, rows - a)) for a in starts]
        if name.endswith(".csv.gz"):
            return [Piece(str(path), "csv.gz")]
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where} cannot be read ({error}); check that it is what its name says") from error
    raise InputError(f"{where} has an unknown ending; give .parquet, .csv, .fits, or the folder of a HATS catalog")


def _groups(path: Path) -> list[Piece]:
    found = pq.read_metadata(path)
    rows = [found.row_group(g).num_rows for g in range(found.num_row_groups)]
    return [Piece(str(path), "parquet", g, g + 1, n) for g, n in enumerate(rows or [0])]


def _lines(path: Path) -> list[Piece]:
    """Ranges of bytes that end where lines do."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.readline()
        start, pieces = file.tell(), []
        while start < size:
            file.seek(min(start + _BYTES, size))
            file.readline()
            pieces.append(Piece(str(path), "csv", start, file.tell(), (file.tell() - start) * _ROWS // _BYTES))
            start = file.tell()
    return pieces or [Piece(str(path), "csv", size, size)]


def _fits_rows(path: Path) -> int:
    with fits.open(path) as file:
        return _fits_table(file).header["NAXIS2"]


def _fits_table(file: fits.HDUList) -> fits.BinTableHDU | fits.TableHDU:
    for hdu in file:
        if isinstance(hdu, fits.BinTableHDU | fits.TableHDU):
            return hdu
    raise ValueError("no table in it")


def _csv_options(path: str) -> dict:
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8-sig") as file:
        head = file.readline()
    separator = max(_SEPARATORS, key=head.count)
    return {"sep": separator, "names": [name.strip().strip('"') for name in head.rstrip("\r\n").split(separator)]}


def column_names(table: str | Path) -> list[str]:
    """Names of the columns of a table.

    Raises
    ------
    InputError
        As `list_pieces`.
    """
    piece = _list(table)[0]
    if piece.kind == "parquet":
        return pq.read_schema(piece.path).names
    if piece.kind == "fits":
        with fits.open(piece.path) as file:
            return list(_fits_table(file).columns.names)
    return _csv_options(piece.path)["names"]


def read_pieces(pieces: Sequence[Piece], columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of pieces of a table; columns of a CSV file are text, since a piece does not know their type.

    Raises
    ------
    InputError
        If it lacks a column or cannot be read.
    """
    return pd.concat([_read(piece, list(dict.fromkeys(columns))) for piece in pieces], ignore_index=True)


def _read(piece: Piece, wanted: list[str]) -> pd.DataFrame:
    try:
        if piece.kind == "parquet":
            with pq.ParquetFile(piece.path) as file:
                if piece.start < file.num_row_groups:
                    return to_frame(file.read_row_group(piece.start, columns=wanted))[wanted]
                return to_frame(file.schema_arrow.empty_table().select(wanted))
        if piece.kind == "fits":
            with fits.open(piece.path) as file, warnings.catch_warnings(action="ignore"):
                hdu = _fits_table(file)
                data = {name: np.asarray(hdu.data[name][piece.start : piece.stop]) for name in wanted}
                table = Table({name: v.astype(v.dtype.newbyteorder("=")) for name, v in data.items()})
                return table.to_pandas()[wanted]
        options = _csv_options(piece.path) | {"header": None, "dtype": "str", "usecols": wanted}
        if piece.kind == "csv.gz":
            return pd.read_csv(piece.path, skiprows=1, **options)[wanted]
        with open(piece.path, "rb") as file:
            file.seek(piece.start)
            return pd.read_csv(io.BytesIO(file.read(piece.stop - piece.start)), **options)[wanted]
    except Exception as error:
        raise InputError(f"{piece.path}: the columns {wanted} cannot be read ({error})") from error


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


def write_sky_table(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write a table as .parquet, .csv or .fits, by its ending, whole or not at all.

    Raises
    ------
    InputError
        If the ending is none of these.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".parquet", ".csv", ".fits"):
        raise InputError(f"{path}: unknown ending '{kind}'; give .parquet, .csv or .fits")
    with atomic_path(path) as partial:
        if kind == ".parquet":
            frame.to_parquet(partial, index=False)
        elif kind == ".csv":
            frame.to_csv(partial, index=False)
        else:
            with warnings.catch_warnings(action="ignore"):
                Table.from_pandas(frame).write(partial, format="fits", overwrite=True)
    return path
