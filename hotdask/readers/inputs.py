"""Which files a run reads: patterns, or a table that may also carry better positions and velocities."""

import glob
import os
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pyarrow as pa

from hotdask import schema
from hotdask.config import Input
from hotdask.errors import InputError
from hotdask.readers.columns import angles, find_column, ids, numbers
from hotdask.readers.desi import addresses, file_of, is_coadd_name, redrock_names
from hotdask.readers.lamost import OVERRIDES
from hotdask.readers.usertables import REMOTE, read_user_table

_WRITTEN = (schema.SPECTRA, schema.FITS, schema.CATALOG, *schema.COMPARED.values())
RESERVED = {c.name for columns in _WRITTEN for c in columns} - set(OVERRIDES)
"""Columns a run writes itself; an input table must call its own otherwise."""
_UNITS = {c.name: c.unit for c in (*schema.SPECTRA, *schema.JOINED) if c.type == pa.float64()}
_FLOATS = {c.name for c in schema.JOINED if c.type == pa.float64()}
_BOOLEANS = {c.name for c in schema.SOURCES}
"""Columns that a catalog declares: they must be what it says they are."""
_IDS = {c.name for c in schema.JOINED if c.type == pa.int64()}
_KNOWN = ("path", *OVERRIDES, *sorted(_FLOATS | _BOOLEANS | _IDS))
_SHOWN = 3
SIZE, TIME = f"{schema.INTERNAL}size", f"{schema.INTERNAL}mtime_ns"
"""Columns of `input_signature`."""


def list_inputs(settings: Input, *, echo: Callable[[str], None] = lambda line: None) -> pd.DataFrame:
    """The files of a run.

    Parameters
    ----------
    settings : Input
        ``spectra``, glob patterns (``**`` for any depth, relative to the working directory), or ``table``, a file of
        any of `hotdask.readers.usertables.KINDS` with a column ``path`` (relative to the table's folder); ``limit``.
    echo : callable
        Told which columns of a table are left out.

    Returns
    -------
    pandas.DataFrame
        ``path`` (str, absolute; ``FILE#TARGETID`` for each spectrum of a DESI coadd), the columns of
        `hotdask.readers.lamost.OVERRIDES` the table has (float64, in our units; NaN where there is none), and every
        other column of the table as it is, but for columns of arrays. Known columns are found whatever their case.
        Files of patterns are sorted; a table keeps its order. A coadd is known by its name, ``coadd-*.fits*``, and
        opened for its list of targets; a row of a table that names it stands for all of them. Redrock's files beside
        coadds that a pattern matches are no inputs of their own.

    Raises
    ------
    InputError
        If a pattern matches nothing, or a table cannot be read, has no usable ``path`` column, names a file twice,
        has an override that is no number or of another unit, or a column named like one that hotdask writes.

    Examples
    --------
    >>> list_inputs(Input(spectra=("nowhere/*.fits",)))
    Traceback (most recent call last):
    ...
    hotdask.errors.InputError: input.spectra = 'nowhere/*.fits' matches no file; check the pattern
    """
    frame = _from_patterns(settings.spectra) if settings.table is None else _from_table(settings.table, echo)
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
        ``path``, `SIZE` [bytes] and `TIME` [ns] (int64) of the file, in the same order; -1 if it is not there. Of a
        coadd and Redrock's file beside it, the sums.

    Examples
    --------
    >>> input_signature(pd.DataFrame({"path": ["/nowhere"]}))[SIZE].tolist()
    [-1]
    """
    files = [file_of(path) if "#" in path else path for path in frame["path"]]
    seen = {file: _with_redrock(file) if is_coadd_name(file) else _stat(file) for file in dict.fromkeys(files)}
    found = np.array([seen[file] for file in files], dtype=np.int64).reshape(-1, 2)
    return pd.DataFrame({"path": frame["path"].to_numpy(), SIZE: found[:, 0], TIME: found[:, 1]}).astype(
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


def _from_patterns(patterns: tuple[str, ...]) -> pd.DataFrame:
    paths = sorted({path for pattern in patterns for path in _matches(pattern)})
    beside = {name for path in paths if is_coadd_name(path) for name in redrock_names(path)}
    paths = [one for path in paths if path not in beside for one in _spectra(path)]
    return pd.DataFrame({"path": pd.Series(paths, dtype="str")})


def _matches(pattern: str) -> list[str]:
    _check_local(pattern, "input.spectra")
    pattern = os.path.expanduser(pattern)
    _check_folders(pattern)
    matches = set(_expand(pattern))
    # A link that leads nowhere, or a pipe, is rejected by name when it is read; only folders are no files.
    paths = sorted(os.path.abspath(match) for match in matches if not os.path.isdir(match))
    if not paths:
        folder = f"; for the files in that folder add /**/*.fits*, keep the quotes: '{pattern.rstrip('/')}/**/*.fits*'"
        raise InputError(f"input.spectra = '{pattern}' matches no file{folder if matches else '; check the pattern'}")
    for path in paths:
        if not _encodes(path):
            raise InputError(f"input.spectra: the file name {path!r} is not UTF-8; rename the file")
    return paths


def _expand(pattern: str) -> Iterator[str]:
    """What glob matches, but each folder below a ``**`` once: links in circles have no end."""
    before, mark, after = pattern.partition("**")
    alone = mark and before[-1:] in ("", "/") and after[:1] in ("", "/")
    if not alone:
        yield from glob.iglob(pattern)
        return
    for top in sorted(glob.glob(before)) if before else [""]:
        for folder in _folders(top):
            if after == "/":
                yield folder
            else:
                # Escaped, since names of folders may look like patterns.
                yield from _expand(f"{glob.escape(folder)}{after.lstrip('/') or '*'}")


def _folders(top: str) -> Iterator[str]:
    """A folder and all below it, links followed, each once and with a slash behind it."""
    seen, linked = set(), [top]
    while linked:
        waiting = [linked.pop(0)]
        while waiting:
            folder = waiting.pop()
            try:
                found = os.stat(folder or ".")
            except OSError:
                continue
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
            yield folder
            try:
                inside = sorted(e.name for e in os.scandir(folder or ".") if _leads_on(e))
            except OSError:
                # Whoever looks into it is told.
                continue
            below = [f"{folder}{name}/" for name in inside]
            # Under its own name a folder is found before it is under that of a link to it.
            linked += [path for path in below if os.path.islink(path[:-1])]
            waiting += [path for path in reversed(below) if not os.path.islink(path[:-1])]


def _leads_on(entry: os.DirEntry) -> bool:
    """Whether a folder's entry is a folder that ``**`` goes into."""
    try:
        return entry.is_dir() and not entry.name.startswith(".")
    except OSError:
        # A link to itself.
        return False


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
    for folder in sorted({f for p in looked_through for f in (_expand(p) if p else ["."])}):
        try:
            os.scandir(folder).close()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise InputError(
                f"input.spectra: the folder {os.path.abspath(folder)} cannot be listed ({error.strerror}); "
                "mend its permissions, or give a pattern that leaves it out"
            ) from error


def _from_table(name: str, echo: Callable[[str], None]) -> pd.DataFrame:
    _check_local(name, "input.table")
    path = os.path.abspath(os.path.expanduser(name))
    where = f"input.table = '{name}'"
    table, units = read_user_table(path, where)
    table.columns = [str(column).strip() for column in table.columns]
    units = {str(column).strip(): unit for column, unit in units.items()}
    table, theirs = _ours(table, where)
    _check_columns(table, where)
    paths, rows = _paths(table["path"], os.path.dirname(path), where)
    table = table.iloc[rows].reset_index(drop=True)
    frame, left_out = {"path": paths}, []
    for column in table.columns:
        values = table[column].rename(theirs.get(column, column))
        if column in ("ra", "dec"):
            frame[column] = _finite(angles, values, where, stored=units.get(values.name, ""), hours=column == "ra")
        elif column in OVERRIDES or column in _FLOATS:
            stored = units.get(values.name, "")
            frame[column] = _finite(numbers, values, where, unit=_UNITS[column], stored=stored)
        elif column in _BOOLEANS:
            frame[column] = numbers(_as_numbers(values), where) > 0
        elif column in _IDS:
            found = pd.to_numeric(ids(values).replace("", None), dtype_backend="numpy_nullable").astype("Int64")
            frame[column] = found.reset_index(drop=True)
        elif _is_plain(values):
            frame[column] = _plain(values)
        elif column != "path":
            left_out.append(column)
    if left_out:
        echo(f"{where}: columns of arrays, or of bytes that are no text, are not carried along: {', '.join(left_out)}")
    return pd.DataFrame(frame)


def _ours(table: pd.DataFrame, where: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table with known columns by our names, and what it calls them."""
    theirs = {}
    for wanted in _KNOWN:
        try:
            found = find_column(table.columns, wanted)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        others = [c for c in table.columns if c != found and c.lower() == wanted]
        if others and found is not None:
            raise InputError(f"{where} has the columns {found} and {', '.join(others)}; keep the one that is meant")
        if found is not None:
            theirs[wanted] = found
    return table.rename(columns={found: wanted for wanted, found in theirs.items()}), theirs


def _finite(convert: Callable[..., np.ndarray], column: pd.Series, where: str, **options) -> np.ndarray:
    values = convert(column, where, **options)
    rows = np.flatnonzero(np.isinf(values))
    if rows.size:
        raise InputError(f"{where}, column '{column.name}': row {rows[0] + 1}: {values[rows[0]]:g}; leave it empty")
    return values


def _check_columns(table: pd.DataFrame, where: str) -> None:
    columns = list(table.columns)
    if "path" not in columns:
        shown = ", ".join(columns[:20]) + (", …" if len(columns) > 20 else "")
        raise InputError(f"{where} has no column 'path', only {shown}; name the column of files 'path'")
    twice = sorted({c for c in columns if columns.count(c) > 1})
    if twice:
        raise InputError(f"{where} has the columns {', '.join(twice)} twice; keep one of each")
    if not len(table):
        raise InputError(f"{where} has no rows; list at least one file")
    taken = [c for c in columns if c in RESERVED - {"path"} or c.startswith(schema.INTERNAL)]
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


def _as_numbers(column: pd.Series) -> pd.Series:
    return column.astype("Int8") if pd.api.types.is_bool_dtype(column) else column


def _is_plain(column: pd.Series) -> bool:
    """Whether a column holds single values that a catalog can carry."""
    if column.name == "path" or column.dtype != object:
        return column.name != "path"
    return column.map(lambda v: v is None or v is pd.NA or isinstance(v, str | float | int | bool)).all()


def _plain(column: pd.Series) -> pd.Series:
    """Plain NumPy types where nothing is missing; nullable ones stay where something is, no type where all is."""
    column = column.reset_index(drop=True)
    if len(column) and column.isna().all() and column.dtype != np.float64:
        return pd.Series([None] * len(column), dtype=object)
    if pd.api.types.is_string_dtype(column):
        return column.astype("str")
    if pd.api.types.is_float_dtype(column):
        return pd.Series(column.to_numpy(dtype=np.float64, na_value=np.nan))
    plain = getattr(column.dtype, "numpy_dtype", None)
    return column if plain is None or column.isna().any() else column.astype(plain)


def _check_local(path: str, where: str) -> None:
    if REMOTE.match(path):
        raise InputError(f"{where} = '{path}' is not a local path; copy the files to a disk every worker sees")


def _encodes(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
