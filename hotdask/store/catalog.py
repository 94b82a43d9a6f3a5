"""The tables a run ends with: one part of fits a partition, and the published catalog.

A catalog version is a folder of Parquet parts, built under a hidden name, checked, renamed, and then shown by swapping
the link ``RUN/catalog``. Parts are named by their content: a reader that lists one version and opens another can only
find the very same part or none, never a mixture.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hotdask.errors import RunError
from hotdask.labels import N_LABELS
from hotdask.schema import CATALOG, FITS, Column, arrow_schema, pack_covariance
from hotdask.store.atomic import atomic_folder, publish_link, remove_folder
from hotdask.store.parquet import list_parts, part_path, read_table, write_table
from hotdask.store.receipts import hash_file

FITS_FOLDER, LINK, VERSIONS = "fits", "catalog", "catalog_versions"

PROVENANCE = b"hotdask"
"""Key of the provenance (JSON) in the metadata of every catalog part's schema."""

KEEP = 2
"""Versions kept: the one shown, and the one before for those still reading it."""


def write_fits_part(run: str | Path, partition: int, columns: Mapping[str, np.ndarray]) -> Path:
    """Write the fits of one partition (``RUN/fits``), whole or not at all.

    Parameters
    ----------
    run : path
        Directory of the run.
    partition : int
        Its number.
    columns : mapping of str to (n,) array
        Every column of `hotdask.schema.FITS`; covariances as (n, 11, 11) float64.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    RunError
        If a column is missing, unknown, or of another length or kind than declared.
    """
    names = [c.name for c in FITS]
    missing, unknown = sorted(set(names) - set(columns)), sorted(set(columns) - set(names))
    if missing or unknown:
        raise RunError(f"fits of partition {partition}: missing {missing}, unknown {unknown}; a bug in the fit task")
    rows = len(columns["specid"])
    table = pa.table([_fits_column(c, columns[c.name], rows, partition) for c in FITS], schema=arrow_schema(FITS))
    return write_table(part_path(Path(run, FITS_FOLDER), partition), table)


def _fits_column(column: Column, values: np.ndarray, rows: int, partition: int) -> pa.Array:
    matrix = pa.types.is_fixed_size_list(column.type)
    shape = np.shape(values)
    if shape != ((rows, N_LABELS, N_LABELS) if matrix else (rows,)):
        raise RunError(f"fits of partition {partition}: {column.name} has shape {shape} for {rows} rows")
    try:
        if matrix:
            return pack_covariance(np.asarray(values, dtype=np.float64)).cast(column.type)
        # Safe: a flag too large for its type raises rather than wraps.
        return pa.array(values, from_pandas=False).cast(column.type)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise RunError(f"fits of partition {partition}: {column.name} is not {column.type} ({error})") from error


def read_fits_part(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a part of the fits table, or some of its columns; `hotdask.schema.unpack_covariance` unpacks the matrices.

    Raises
    ------
    RunError
        If the file is missing, damaged, or lacks a column.
    """
    return read_table(path, columns)


@dataclass(frozen=True)
class Published:
    """A catalog version: its name, folder, rows, and the SHA-256 of each part by file name."""

    version: str
    folder: Path
    rows: int
    files: dict[str, str]


def provenance_metadata(metadata: Mapping) -> dict[bytes, bytes]:
    """Schema metadata for provenance; the same provenance always gives the same bytes.

    Examples
    --------
    >>> provenance_metadata({"b": 1, "a": 2})
    {b'hotdask': b'{"a": 2, "b": 1}'}
    """
    return {PROVENANCE: json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False, allow_nan=False).encode()}


def write_catalog_part(folder: str | Path, part: int, table: pa.Table, metadata: Mapping) -> Path:
    """Write one part of a catalog version under construction, with provenance in its schema.

    Parameters
    ----------
    folder : path
        The folder `publish_catalog` handed to its callback.
    part : int
        Number of the part.
    table : pyarrow.Table
        The columns of `hotdask.schema.CATALOG`, then carried ones.
    metadata : mapping
        Provenance, JSON values; the same for every part.
    """
    return write_table(part_path(folder, part), table.replace_schema_metadata(provenance_metadata(metadata)))


def publish_catalog(
    run: str | Path,
    tables: Iterable[pa.Table] | Callable[[Path], object],
    metadata: Mapping,
    *,
    rows: int | None = None,
) -> Published:
    """Write a catalog version, check it, and show it as ``RUN/catalog``.

    Parameters
    ----------
    run : path
        Directory of the run.
    tables : iterable of pyarrow.Table, or callable
        One table a part; or a function that fills the folder it is given by `write_catalog_part`, from any process.
    metadata : mapping
        Provenance, JSON values without times: the same run then gives the same bytes.
    rows : int, optional
        How many rows there must be.

    Returns
    -------
    Published
        The version shown now. If its parts equal those already shown, nothing changes.

    Raises
    ------
    RunError
        If a part lacks a column or its provenance, the number of rows is wrong, or a ``specid`` occurs twice. What was
        published before stays.
    """
    run = Path(run)
    versions = run / VERSIONS
    versions.mkdir(parents=True, exist_ok=True)
    while True:
        final = versions / f"v{_last_version(versions) + 1:04d}"
        try:
            with atomic_folder(final) as folder:
                if callable(tables):
                    tables(folder)
                else:
                    for part, table in enumerate(tables):
                        write_catalog_part(folder, part, table, metadata)
                found = _check(folder, metadata, rows)
                files = _name_by_content(folder)
                shown = _shown(run)
                if shown is not None and files == {p.name: hash_file(p) for p in list_parts(shown)}:
                    raise _AlreadyShown
        except _AlreadyShown:
            return Published(shown.name, shown, found, files)
        except FileExistsError:
            # Either the callback's own error, or another publisher took the number; tables can be iterated only once.
            if not final.exists():
                raise
            if not callable(tables):
                raise RunError(f"{final} was published by someone else meanwhile; run the command again") from None
            continue
        break
    publish_link(run / LINK, Path(VERSIONS, final.name))
    _remove_old(run, versions)
    return Published(final.name, final, found, files)


class _AlreadyShown(Exception):  # noqa: N818
    """Leaves the block that builds a version, so that what it built is removed."""


def _numbered(versions: Path) -> list[Path]:
    return sorted(p for p in versions.glob("v[0-9]*") if p.is_dir())


def _last_version(versions: Path) -> int:
    return max((int(p.name[1:]) for p in _numbered(versions)), default=0)


def _shown(run: Path) -> Path | None:
    link = run / LINK
    return run / link.readlink() if link.is_symlink() and link.exists() else None


def _remove_old(run: Path, versions: Path) -> None:
    shown = _shown(run)
    for folder in _numbered(versions)[:-KEEP]:
        if folder != shown:
            remove_folder(folder)


def _check(folder: Path, metadata: Mapping, rows: int | None) -> int:
    """Hold a finished version to what a catalog must be; returns its rows."""
    parts = list_parts(folder)
    if not parts:
        raise RunError("the catalog has no parts; nothing was published")
    declared = arrow_schema(CATALOG)
    provenance = provenance_metadata(metadata)[PROVENANCE]
    first = pq.read_schema(parts[0])
    for part in parts:
        schema = pq.read_schema(part)
        for field in declared:
            found = schema.field(field.name) if field.name in schema.names else None
            if found is None or not found.equals(field, check_metadata=True):
                raise RunError(
                    f"catalog {part.name}: column {field.name} should be {field.type} with its unit, is {found}; "
                    "nothing was published"
                )
        if not schema.equals(first):
            raise RunError(f"catalog {part.name}: columns differ from those of {parts[0].name}; nothing was published")
        if (schema.metadata or {}).get(PROVENANCE) != provenance:
            raise RunError(f"catalog {part.name}: provenance is missing or another run's; nothing was published")
    specid = pa.chunked_array([c for p in parts for c in read_table(p, ["specid"])["specid"].chunks], pa.large_string())
    if rows is not None and len(specid) != rows:
        raise RunError(f"the catalog has {len(specid)} rows, should have {rows}; nothing was published")
    if specid.null_count or pc.count_distinct(specid).as_py() != len(specid):
        counts = specid.value_counts().to_pylist()
        twice = sorted(str(c["values"]) for c in counts if c["counts"] > 1 or c["values"] is None)[:5]
        raise RunError(f"the catalog has missing or repeated specid ({', '.join(twice)}, …); nothing was published")
    return len(specid)


def _name_by_content(folder: Path) -> dict[str, str]:
    files = {}
    for part in list_parts(folder):
        digest = hash_file(part)
        name = f"{part.stem}-{digest[:12]}.parquet"
        part.rename(folder / name)
        files[name] = digest
    return files


def catalog_folder(run: str | Path) -> Path:
    """Folder of the catalog version shown now, not the link to it.

    A reader at work while a new version is published keeps reading this one; through the link it would either see one
    version or fail with a missing file.

    Raises
    ------
    RunError
        If nothing is published yet.
    """
    shown = _shown(Path(run))
    if shown is None:
        raise RunError(
            f"{run}: no catalog is published yet; finish the run first (hotdask status tells what is missing)"
        )
    return shown


def is_sound(run: str | Path, rows: int) -> bool:
    """Whether a catalog of so many rows is published, each part with the content its name says."""
    shown = _shown(Path(run))
    if shown is None:
        return False
    parts = list_parts(shown)
    whole = all(part.stem.rpartition("-")[2] == hash_file(part)[:12] for part in parts)
    return whole and sum(pq.read_metadata(part).num_rows for part in parts) == rows


def read_catalog(run: str | Path, *, columns: Sequence[str] | None = None, filters: list | None = None) -> pd.DataFrame:
    """Read the published catalog, or some columns and rows of it, from one version.

    Parameters
    ----------
    run : path
        Directory of the run.
    columns : sequence of str, optional
        Which columns.
    filters : list, optional
        As in `pandas.read_parquet`, e.g. ``[("teff", ">", 20000)]``.

    Raises
    ------
    RunError
        If nothing is published yet.
    """
    return pd.read_parquet(catalog_folder(run), columns=None if columns is None else list(columns), filters=filters)


def read_provenance(run: str | Path) -> dict:
    """Provenance of the published catalog."""
    part = list_parts(catalog_folder(run))[0]
    return json.loads(pq.read_schema(part).metadata[PROVENANCE])
