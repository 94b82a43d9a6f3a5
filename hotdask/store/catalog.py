"""The tables a run ends with: one part of fits a partition, and the published catalog.

A catalog version is a folder of Parquet parts, built where nobody looks, checked, and then shown at once, all of it:
`hotdask.store.versions`. Parts are named by their content: a reader that lists one version and opens another can only
find the very same part or none, never a mixture.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
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
from hotdask.store.parquet import count_rows, list_parts, part_path, read_schema, read_table, write_table
from hotdask.store.places import key_and_files
from hotdask.store.receipts import hash_all, hash_file
from hotdask.store.versions import Shown, catalog_versions

FITS_FOLDER = "fits"

_LOOKS = 3
"""How often a reader looks for the version that is shown."""
PROVENANCE = b"hotdask"
"""Key of the provenance (JSON) in the metadata of every catalog part's schema."""


def write_fits_part(
    run: str | Path, partition: int, columns: Mapping[str, np.ndarray], *, declared: tuple[Column, ...] = FITS
) -> Path:
    """Write the fits of one partition (``RUN/fits``), whole or not at all.

    Parameters
    ----------
    run : path
        Directory of the run.
    partition : int
        Its number.
    columns : mapping of str to (n,) array
        Every column declared; covariances as (n, 11, 11) float64.
    declared : tuple of Column
        `hotdask.schema.FITS`, or with the columns of a second emulator (`hotdask.schema.fits_columns`).

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    RunError
        If a column is missing, unknown, or of another length or kind than declared.
    """
    names = [c.name for c in declared]
    missing, unknown = sorted(set(names) - set(columns)), sorted(set(columns) - set(names))
    if missing or unknown:
        raise RunError(f"fits of partition {partition}: missing {missing}, unknown {unknown}; a bug in the fit task")
    rows = len(columns["specid"])
    arrays = [_fits_column(c, columns[c.name], rows, partition) for c in declared]
    table = pa.table(arrays, schema=arrow_schema(declared))
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
    folder : path or URL
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
    declared: tuple[Column, ...] = CATALOG,
) -> Published:
    """Write a catalog version, check it, and show it: as ``RUN/catalog``, or where the run's settings say.

    Parameters
    ----------
    run : path or URL
        Directory of the run, or where on an object store its catalog lies.
    tables : iterable of pyarrow.Table, or callable
        One table a part; or a function that fills the folder it is given by `write_catalog_part`, from any process.
    metadata : mapping
        Provenance, JSON values without times: the same run then gives the same bytes.
    rows : int, optional
        How many rows there must be.
    declared : tuple of Column
        Columns that every part must have: `hotdask.schema.CATALOG`, or with those of a second emulator
        (`hotdask.schema.catalog_columns`).

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
    versions = catalog_versions(run)
    while True:
        final = versions.following()
        try:
            with versions.build(final) as folder:
                if callable(tables):
                    tables(folder)
                else:
                    for part, table in enumerate(tables):
                        write_catalog_part(folder, part, table, metadata)
                found = _check(folder, metadata, rows, declared)
                files = _name_by_content(folder)
                shown = versions.shown()
                if shown is not None and files == _contents(shown):
                    raise _AlreadyShown
        except _AlreadyShown:
            return Published(shown.folder.name, shown.folder, found, files)
        except FileExistsError:
            # Either the callback's own error, or another publisher took the number; tables can be iterated only once.
            if not final.exists():
                raise
            if not callable(tables):
                raise RunError(f"{final} was published by someone else meanwhile; run the command again") from None
            continue
        break
    versions.show(final, {"rows": found, "files": files, "fingerprint": metadata.get("fingerprint")})
    return Published(final.name, final, found, files)


class _AlreadyShown(Exception):  # noqa: N818
    """Leaves the block that builds a version, so that what it built is removed."""


def _contents(shown: Shown) -> dict[str, str] | None:
    """SHA-256 of each part by file name, as it is now; None if one is gone."""
    try:
        return dict(zip([part.name for part in shown.parts], hash_all(shown.parts), strict=True))
    except OSError:
        return None


def _check(folder: Path, metadata: Mapping, rows: int | None, columns: tuple[Column, ...]) -> int:
    """Hold a finished version to what a catalog must be; returns its rows."""
    parts = list_parts(folder)
    if not parts:
        raise RunError("the catalog has no parts; nothing was published")
    declared = arrow_schema(columns)
    provenance = provenance_metadata(metadata)[PROVENANCE]
    first = read_schema(parts[0])
    for part in parts:
        schema = read_schema(part)
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
    parts = list_parts(folder)
    for part, digest in zip(parts, hash_all(parts), strict=True):
        name = f"{part.stem}-{digest[:12]}.parquet"
        part.rename(folder / name)
        files[name] = digest
    return files


def catalog_folder(run: str | Path) -> Path:
    """Folder of the catalog version shown now, not the link to it; a ``UPath`` if it lies on an object store.

    A reader at work while a new version is published keeps reading this one; through the link it would either see one
    version or fail with a missing file.

    Raises
    ------
    RunError
        If nothing is published yet.
    """
    return shown_catalog(run).folder


def shown_catalog(run: str | Path) -> Shown:
    """The catalog version shown now, and the parts it consists of.

    Raises
    ------
    RunError
        If nothing is published yet.
    """
    shown = catalog_versions(run).shown()
    if shown is None:
        raise RunError(
            f"{run}: no catalog is published yet; finish the run first (hotdask status tells what is missing)"
        )
    return shown


def is_sound(run: str | Path, rows: int) -> bool:
    """Whether a catalog of so many rows is published, each part with the content its name says."""
    shown = catalog_versions(run).shown()
    if shown is None:
        return False
    try:
        return not damaged_parts(shown) and sum(map(count_rows, shown.parts)) == rows
    except OSError:
        return False


def damaged_parts(shown: Shown) -> list[Path]:
    """Parts of a version that are missing, or whose content is not what their names say."""
    return [part for part in shown.parts if not _is_named_by_its_content(part)]


def _is_named_by_its_content(part: Path) -> bool:
    try:
        return Path(part.name).stem.rpartition("-")[2] == hash_file(part)[:12]
    except OSError:
        return False


def read_catalog(run: str | Path, *, columns: Sequence[str] | None = None, filters: list | None = None) -> pd.DataFrame:
    """Read the published catalog, or some columns and rows of it, from one version.

    Parameters
    ----------
    run : path or URL
        Directory of the run, or where on an object store its catalog lies (``s3://…``).
    columns : sequence of str, optional
        Which columns.
    filters : list, optional
        As in `pandas.read_parquet`, e.g. ``[("teff", ">", 20000)]``.

    Raises
    ------
    RunError
        If nothing is published yet.
    """
    columns = None if columns is None else list(columns)
    for _ in range(_LOOKS - 1):
        # So slow a reader that its version was replaced more than once looks again.
        with suppress(FileNotFoundError):
            return _read_shown(run, columns, filters)
    return _read_shown(run, columns, filters)


def _read_shown(run: str | Path, columns: list[str] | None, filters: list | None) -> pd.DataFrame:
    located = [key_and_files(part) for part in shown_catalog(run).parts]
    keys, files = [key for key, _ in located], located[0][1]
    return pq.read_table(keys, columns=columns, filters=filters, filesystem=files).to_pandas()


def read_provenance(run: str | Path) -> dict:
    """Provenance of the published catalog."""
    return json.loads(read_schema(shown_catalog(run).parts[0]).metadata[PROVENANCE])
