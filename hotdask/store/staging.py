"""Staged parts: what ingest has read, in input order, before it is put in sky order.

A staged part is one ``.npy`` file of one structured type, a row a spectrum with its checksum, so that any row can be
fetched through a memory map, and be trusted, without reading its neighbors; beside it lie the table of its spectra and
the table of its rejects. A run removes them once the cube is complete.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from hotdask.errors import RunError
from hotdask.schema import CUBE, INTERNAL, REJECTS, SPECTRA, Column, arrow_schema, to_frame, to_table
from hotdask.store.atomic import atomic_path, remove_folder
from hotdask.store.parquet import read_table, write_table
from hotdask.windows import N_OBSERVED

if TYPE_CHECKING:
    from hotdask.readers.lamost import Block

FOLDER = "staging"
STAGED_PART, STAGED_INDEX = f"{INTERNAL}staged_part", f"{INTERNAL}staged_index"
"""Columns that say where `gather` finds the pixels of a spectrum."""

_CHECKSUM = np.dtype("<u4")
ROW = np.dtype([(v.name, np.dtype(v.dtype).newbyteorder("<"), (N_OBSERVED,)) for v in CUBE] + [("checksum", _CHECKSUM)])
"""One spectrum on disk: the variables of the cube, side by side, and the CRC-32 of their bytes."""


def staged_path(run: str | Path, part: int, suffix: str) -> Path:
    """Where a file of a staged part lies; suffix is ``npy``, ``parquet`` or ``rejects.parquet``."""
    return Path(run, FOLDER, f"part-{part:05d}.{suffix}")


def write_staged(run: str | Path, part: int, block: "Block", rejects: pd.DataFrame) -> list[Path]:
    """Write one staged part, each file whole or not at all.

    Parameters
    ----------
    run : path
        Directory of the run.
    part : int
        Number of the part.
    block : hotdask.readers.lamost.Block
        ``flux``, ``ivar`` (n, 3909) float32, ``andmask``, ``ormask`` (n, 3909) uint16, ``meta`` with n rows.
    rejects : pandas.DataFrame
        Columns of `hotdask.schema.REJECTS`.

    Returns
    -------
    list of pathlib.Path
        The files, for the receipt.

    Raises
    ------
    RunError
        If an array does not have a row for each row of ``meta``.
    """
    rows = np.empty(len(block.meta), dtype=ROW)
    for v in CUBE:
        values = getattr(block, v.name)
        if values.shape != (len(rows), N_OBSERVED):
            raise RunError(
                f"staged part {part}: {v.name} has shape {values.shape}, should be {(len(rows), N_OBSERVED)}; "
                "this is a bug in the reader"
            )
        rows[v.name] = values
    rows["checksum"] = _checksums(rows)
    declared = {c.name for c in SPECTRA}
    extra = tuple(str(name) for name in block.meta.columns if name not in declared)
    pixels, meta, rejected = (staged_path(run, part, s) for s in ("npy", "parquet", "rejects.parquet"))
    with atomic_path(pixels) as path, open(path, "wb") as handle:
        # np.save does not say that a disk is full, only that it wrote too little.
        np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(rows))
        handle.write(rows.view(np.uint8).data)
    write_table(meta, to_table(block.meta, SPECTRA, extra=extra))
    write_table(rejected, to_table(rejects, REJECTS))
    return [pixels, meta, rejected]


def _checksums(rows: np.ndarray) -> np.ndarray:
    data = rows.view(np.uint8).reshape(len(rows), ROW.itemsize)[:, : -_CHECKSUM.itemsize]
    return np.array([zlib.crc32(row) for row in data], dtype=_CHECKSUM)


def _stack(tables: list[pa.Table], columns: tuple[Column, ...]) -> pa.Table:
    # A carried column that is empty in one part has no type there; the others decide.
    try:
        return pa.concat_tables([arrow_schema(columns).empty_table(), *tables], promote_options="permissive")
    except pa.ArrowException as error:
        raise RunError(
            f"staged parts disagree about a carried column ({error}); give the column one type in the input table"
        ) from error


def read_staged_meta(run: str | Path, parts: Iterable[int]) -> pd.DataFrame:
    """Tables of staged spectra, one below the other.

    Parameters
    ----------
    run : path
        Directory of the run.
    parts : iterable of int
        Which parts, in the order wanted.

    Returns
    -------
    pandas.DataFrame
        Columns of `hotdask.schema.SPECTRA`, carried columns, then `STAGED_PART` and `STAGED_INDEX` (int64).

    Raises
    ------
    RunError
        If a part is missing or damaged.
    """
    parts = list(parts)
    tables = [read_table(staged_path(run, part, "parquet")) for part in parts]
    frame = to_frame(_stack(tables, SPECTRA))
    sizes = [len(table) for table in tables]
    frame[STAGED_PART] = np.repeat(np.asarray(parts, dtype=np.int64), sizes)
    frame[STAGED_INDEX] = np.concatenate([np.arange(n, dtype=np.int64) for n in sizes] or [np.empty(0, np.int64)])
    return frame


def read_staged_rejects(run: str | Path, parts: Iterable[int]) -> pd.DataFrame:
    """Tables of rejected files (`hotdask.schema.REJECTS`) of staged parts, one below the other."""
    return _stack([read_table(staged_path(run, part, "rejects.parquet")) for part in parts], REJECTS).to_pandas()


def _map(path: Path) -> np.ndarray:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path}: the staged part is missing or damaged ({error}); run the ingest again") from error
    if rows.dtype != ROW or rows.ndim != 1:
        raise RunError(f"{path}: holds {rows.dtype}, not staged spectra; remove {path.parent} and run the ingest again")
    return rows


def is_staged(run: str | Path, parts: Iterable[int]) -> bool:
    """Whether the pixels of all these staged parts are there."""
    return all(staged_path(run, part, "npy").exists() for part in np.unique(np.asarray(parts)).tolist())


def gather(run: str | Path, parts: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Fetch single spectra out of staged parts.

    Parameters
    ----------
    run : path
        Directory of the run.
    parts, indices : (n,) int
        Part and row in it of each spectrum wanted; any order, repeats allowed.

    Returns
    -------
    dict of str to array
        ``flux``, ``ivar`` (n, 3909) float32; ``andmask``, ``ormask`` (n, 3909) uint16, in the order asked for.

    Raises
    ------
    RunError
        If a part is missing or damaged, has no such row, or one is not what was written.
    """
    parts, indices = np.asarray(parts, dtype=np.int64), np.asarray(indices, dtype=np.int64)
    if parts.shape != indices.shape or parts.ndim != 1:
        raise RunError(
            f"gather: {parts.shape} parts and {indices.shape} rows; give one row number for each part number"
        )
    out = {v.name: np.empty((len(parts), N_OBSERVED), dtype=v.dtype) for v in CUBE}
    # Each part is mapped once, its rows read in the order they lie on disk.
    order = np.lexsort((indices, parts))
    wanted, first = np.unique(parts[order], return_index=True)
    for part, places in zip(wanted.tolist(), np.split(order, first[1:]), strict=False):
        path = staged_path(run, part, "npy")
        rows = _map(path)
        low, high = indices[places[0]], indices[places[-1]]
        if low < 0 or high >= len(rows):
            raise RunError(f"{path}: no row {low if low < 0 else high}, it has {len(rows)}; run the ingest again")
        picked = rows[indices[places]]
        wrong = np.flatnonzero(_checksums(picked) != picked["checksum"])
        if wrong.size:
            row = indices[places][wrong[0]]
            raise RunError(f"{path}: row {row} is not what was written; the same command reads its files again")
        for name, values in out.items():
            values[places] = picked[name]
    return out


def clear_staging(run: str | Path) -> None:
    """Remove all staged parts."""
    remove_folder(Path(run, FOLDER))
