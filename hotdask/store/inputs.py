"""Which files a run reads: a pattern, or a table that may also carry better positions and velocities."""

import glob
import itertools
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from astropy.table import Table

from hotdask import schema
from hotdask.config import Input
from hotdask.errors import InputError
from hotdask.store.desi import addresses, file_of, is_coadd_name, redrock_names
from hotdask.store.lamost import OVERRIDES

_WRITTEN = (schema.SPECTRA, schema.FITS, schema.CATALOG, *schema.COMPARED.values())
RESERVED = {c.name for columns in _WRITTEN for c in columns} - set(OVERRIDES)
"""Columns a run writes itself; an input table must call its own otherwise."""
_FLOATS = {c.name for c in schema.JOINED if c.type == pa.float64()}
_BOOLEANS = {c.name for c in schema.SOURCES}
"""Columns that a catalog declares: they must be what it says they are."""
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SHOWN = 3


def list_inputs(settings: Input) -> pd.DataFrame:
    """The files of a run.

    Parameters
    ----------
    settings : Input
        ``spectra``, a glob pattern (``**`` for any depth, relative to the working directory), or ``table``, a .csv,
        .parquet or .fits file with a column ``path`` (relative to the table's folder); ``limit``.

    Returns
    -------
    pandas.DataFrame
        ``path`` (str, absolute; ``FILE#TARGETID`` for each spectrum of a DESI coadd), the columns of
        `hotdask.store.lamost.OVERRIDES` the table has (float64), and every other column of the table as it is.
        Files of a pattern are sorted; a table keeps its order. A coadd is known by its name, ``coadd-*.fits*``, and
        opened for its list of targets; a row of a table that names it stands for all of them. Redrock's files beside
        coadds that a pattern matches are no inputs of their own.

    Raises
    ------
    InputError
        If a pattern matches nothing, or a table cannot be read, has no usable ``path`` column, names a file twice,
        has an override that is no number, or a column named like one that hotdask writes.

    Examples
    --------
    >>> list_inputs(Input(spectra="nowhere/*.fits"))
    Traceback (most recent call last):
    ...
    hotdask.errors.InputError: input.spectra = 'nowhere/*.fits' matches no file; check the pattern
    """
    frame = _from_pattern(settings.spectra) if settings.table is None else _from_table(settings.table)
    return frame if settings.limit is None else frame.head(settings.limit)


def input_signature(frame: pd.DataFrame) -> pd.DataFrame:
    """Size and time of every input, to tell whether one changed between runs.

    Parameters
    ----------
    frame : pandas.DataFrame
        As `list_inputs` gives it.

    Returns
    -------
    pandas.DataFrame
        ``path``, ``size`` [bytes] and ``mtime_ns`` (int64) of the file, in the same order; -1 if it is not there. Of a
        coadd and Redrock's file beside it, the sums.

    Examples
    --------
    >>> input_signature(pd.DataFrame({"path": ["/nowhere"]}))["size"].tolist()
    [-1]
    """
    files = [file_of(path) if "#" in path else path for path in frame["path"]]
    seen = {file: _with_redrock(file) if is_coadd_name(file) else _stat(file) for file in dict.fromkeys(files)}
    found = np.array([seen[file] for file in files], dtype=np.int64).reshape(-1, 2)
    return pd.DataFrame({"path": frame["path"].to_numpy(), "size": found[:, 0], "mtime_ns": found[:, 1]}).astype(
        {"path": "str"}
    )


def _stat(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _with_redrock(path: str) -> tuple[int, int]:
    """A coadd's spectra take their velocities from the file beside it."""
    size, time = _stat(path)
    beside = [found for found in map(_stat, redrock_names(path)) if found != (-1, -1)]
    if time < 0 or not beside:
        return size, time
    # Sums, so that either file may change: the later of two times would hide an older one.
    return size + sum(found[0] for found in beside), time + sum(found[1] for found in beside)


def _from_pattern(pattern: str) -> pd.DataFrame:
    _check_local(pattern, "input.spectra")
    # A set, since a pattern with ** twice may match a file twice.
    pattern = os.path.expanduser(pattern)
    _check_folders(pattern)
    matches = set(glob.glob(pattern, recursive=True))
    # A link that leads nowhere, or a pipe, is rejected by name when it is read; only folders are no files.
    paths = sorted(os.path.abspath(match) for match in matches if not os.path.isdir(match))
    if not paths:
        folder = f"; for the files in that folder add /**/*.fits*, keep the quotes: '{pattern.rstrip('/')}/**/*.fits*'"
        raise InputError(f"input.spectra = '{pattern}' matches no file{folder if matches else '; check the pattern'}")
    for path in paths:
        if not _encodes(path):
            raise InputError(f"input.spectra: the file name {path!r} is not UTF-8; rename the file")
    beside = {name for path in paths if is_coadd_name(path) for name in redrock_names(path)}
    paths = [one for path in paths if path not in beside for one in _spectra(path)]
    return pd.DataFrame({"path": pd.Series(paths, dtype="str")})


def _spectra(path: str) -> list[str]:
    """The spectra of a file: itself, unless it is a DESI coadd."""
    return addresses(path) if is_coadd_name(path) else [path]


def _check_folders(pattern: str) -> None:
    """See that every folder the pattern looks through can be listed: glob leaves out those that cannot, in silence."""
    parts = pattern.split("/")
    looked_through = set()
    for i, part in enumerate(parts):
        if glob.has_magic(part):
            looked_through.add("/".join([*parts[:i], "**", ""] if part == "**" else [*parts[:i], ""]))
    for folder in sorted({f for p in looked_through for f in (glob.glob(p, recursive=True) if p else ["."])}):
        try:
            os.scandir(folder).close()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(
                f"input.spectra: the folder {os.path.abspath(folder)} cannot be listed ({error.strerror}); "
                "mend its permissions, or give a pattern that leaves it out"
            ) from error


def _from_table(name: str) -> pd.DataFrame:
    _check_local(name, "input.table")
    path = os.path.abspath(os.path.expanduser(name))
    where = f"input.table = '{name}'"
    table = read_user_table(path, where)
    table.columns = [str(column).strip() for column in table.columns]
    _check_columns(table, where)
    paths, rows = _paths(table["path"], os.path.dirname(path), where)
    table = table.iloc[rows].reset_index(drop=True)
    frame = pd.DataFrame({"path": paths})
    for column in table.columns:
        if column in OVERRIDES or column in _FLOATS:
            frame[column] = _numbers(table[column], where)
        elif column in _BOOLEANS:
            frame[column] = _numbers(_as_numbers(table[column]), where) > 0
        elif column != "path":
            frame[column] = _plain(table[column])
    return frame


def read_user_table(path: str, where: str) -> pd.DataFrame:
    """A table a user gives, with nullable types, so that a 19-digit id next to a gap does not turn into a float.

    Parameters
    ----------
    path : path
        .csv (lines that begin with # above its header are skipped), .parquet or .fits file.
    where : str
        What errors call it.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".csv", ".parquet", ".fits"):
        raise InputError(f"{where} has the unknown ending '{kind}'; give a .csv, .parquet or .fits table")
    try:
        if kind == ".csv":
            # A plate or file name of digits stays text.
            with open(path, encoding="utf-8") as file:
                above = sum(1 for _ in itertools.takewhile(lambda line: line.startswith("#"), file))
            table = pd.read_csv(path, dtype={"path": "string"}, dtype_backend="numpy_nullable", skiprows=above)
            if not isinstance(table.index, pd.RangeIndex):
                # pandas takes the first column as row names then, and every other one slips.
                raise ValueError("rows have more values than the header has names")
            return table
        if kind == ".parquet":
            return pd.read_parquet(path, dtype_backend="numpy_nullable").reset_index(drop=True)
        with warnings.catch_warnings(action="ignore"):
            table = Table.read(path, format="fits")
            table.convert_bytestring_to_unicode()
            return table.to_pandas().convert_dtypes(convert_floating=False)
    except FileNotFoundError as error:
        raise InputError(f"{where} does not exist; check the path") from error
    # Three libraries, each with its own idea of what to raise on a file that is not what its name says.
    except Exception as error:
        raise InputError(f"{where} cannot be read as a {kind} table ({error}); check that it is one") from error


def _check_columns(table: pd.DataFrame, where: str) -> None:
    columns = list(table.columns)
    if "path" not in columns:
        raise InputError(f"{where} has no column 'path', only {', '.join(columns)}; name the column of files 'path'")
    twice = sorted({c for c in columns if columns.count(c) > 1})
    if twice:
        raise InputError(f"{where} has the columns {', '.join(twice)} twice; keep one of each")
    if not len(table):
        raise InputError(f"{where} has no rows; list at least one file")
    taken = [c for c in columns if c in RESERVED - {"path"}]
    if taken:
        raise InputError(
            f"{where} has columns that hotdask writes itself: {', '.join(taken)}; "
            f"rename them (e.g. '{taken[0]}' to 'input_{taken[0]}') or leave them out"
        )


def _paths(column: pd.Series, folder: str, where: str) -> tuple[pd.Series, np.ndarray]:
    """Paths, and the row of the table that each comes from."""
    out, rows = [], []
    for row, value in enumerate(column.astype(object), 1):
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}, column 'path', row {row}: {value!r} is not a file name; correct it")
        value = value.strip()
        _check_local(value, f"{where}, column 'path', row {row}")
        if not _encodes(value) or "\0" in value:
            raise InputError(f"{where}, column 'path', row {row}: {value!r} is not a possible name; correct it")
        found = _spectra(os.path.normpath(os.path.join(folder, value)))
        out += found
        rows += [row - 1] * len(found)
    paths, rows = pd.Series(out, dtype="str"), np.array(rows)
    repeated = paths.duplicated(keep=False)
    if repeated.any():
        first = paths[repeated].iloc[0]
        named = ", ".join(str(i + 1) for i in rows[paths == first][:_SHOWN])
        raise InputError(
            f"{where} names {paths[repeated].nunique()} file(s) more than once, first '{first}' (rows {named}); "
            "keep one row per file"
        )
    return paths, rows


def _numbers(column: pd.Series, where: str) -> np.ndarray:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    given = column.notna().to_numpy()
    wrong = given & ~np.isfinite(values) if not pd.api.types.is_bool_dtype(column) else given
    # A NaN in a float column is a gap like any other.
    if pd.api.types.is_float_dtype(column):
        wrong &= ~np.isnan(values)
    rows = np.flatnonzero(wrong)
    if rows.size:
        shown = ", ".join(f"row {i + 1}: {column.astype(object).iloc[i]!r}" for i in rows[:_SHOWN])
        raise InputError(
            f"{where}, column '{column.name}': {rows.size} value(s) are not numbers ({shown}); "
            "correct them, leave them empty, or rename the column if it is no override"
        )
    return values


def _as_numbers(column: pd.Series) -> pd.Series:
    return column.astype("Int8") if pd.api.types.is_bool_dtype(column) else column


def _plain(column: pd.Series) -> pd.Series:
    """Plain NumPy types where nothing is missing; nullable ones stay where something is."""
    column = column.reset_index(drop=True)
    if pd.api.types.is_string_dtype(column):
        return column.astype("str")
    if pd.api.types.is_float_dtype(column):
        return pd.Series(column.to_numpy(dtype=np.float64, na_value=np.nan))
    plain = getattr(column.dtype, "numpy_dtype", None)
    return column if plain is None or column.isna().any() else column.astype(plain)


def _check_local(path: str, where: str) -> None:
    if _REMOTE.match(path):
        raise InputError(f"{where} = '{path}' is not a local path; copy the files to a disk every worker sees")


def _encodes(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
