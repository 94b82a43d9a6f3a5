"""One way of writing and reading Parquet: whole files, page checksums, errors that name the file."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hotdask.errors import RunError
from hotdask.store.atomic import atomic_path, write_bytes
from hotdask.store.places import is_url, key_and_files, place

PARQUET_OPTIONS = {"compression": "zstd", "write_page_checksum": True}
"""How every file is written."""


def part_path(folder: str | Path, partition: int) -> Path:
    """Where part number ``partition`` of a table lies, on a disk or below a URL.

    Examples
    --------
    >>> part_path("RUN/fits", 7).as_posix()
    'RUN/fits/part-00007.parquet'
    """
    return place(folder) / part_name(partition)


def part_name(partition: int) -> str:
    """Name of part number ``partition`` of a table."""
    return f"part-{partition:05d}.parquet"


def list_parts(folder: str | Path) -> list[Path]:
    """The parts of a table, in order."""
    return sorted(place(folder).glob("part-*.parquet"))


def write_table(path: str | Path, table: pa.Table) -> Path:
    """Write a table as one Parquet file, whole or not at all."""
    path = place(path)
    if is_url(path):
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, **PARQUET_OPTIONS)
        write_bytes(path, buffer.getvalue().to_pybytes())
    else:
        with atomic_path(path) as partial:
            pq.write_table(table, partial, **PARQUET_OPTIONS)
    return path


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file, metadata included.

    Raises
    ------
    RunError
        If the file is missing, damaged, or lacks a column.
    """
    key, files = key_and_files(path)
    try:
        with pq.ParquetFile(key, page_checksum_verification=True, filesystem=files) as file:
            absent = sorted(set(columns or ()) - set(file.schema_arrow.names))
            if absent:
                raise RunError(f"{path}: lacks the columns {absent}; it holds {file.schema_arrow.names}")
            return file.read(columns=None if columns is None else list(columns))
    except FileNotFoundError as error:
        raise RunError(f"{path}: the file is missing; run the step that writes it again") from error
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: the file is damaged ({error}); remove it and run the command again") from error


def read_schema(path: str | Path) -> pa.Schema:
    """Columns and metadata of a Parquet file, read from its footer.

    Raises
    ------
    RunError
        If the file is missing or damaged.
    """
    key, files = key_and_files(path)
    try:
        return pq.read_schema(key, filesystem=files)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: missing or damaged ({error}); remove it and run the command again") from error


def count_rows(path: str | Path) -> int:
    """Rows of a Parquet file, read from its footer.

    Raises
    ------
    RunError
        If the file is missing or damaged.
    """
    key, files = key_and_files(path)
    try:
        return pq.read_metadata(key, filesystem=files).num_rows
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: missing or damaged ({error}); remove it and run the command again") from error
