"""Tables of which a task reads its own rows and nothing else: a Parquet row group for each partition."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hotdask.errors import RunError
from hotdask.store.atomic import atomic_path


def write_grouped(path: Path, frame: pd.DataFrame, sizes: Iterable[int]) -> None:
    """Parquet with a row group for each of ``sizes``: a task reads its own group and nothing else."""
    table, start = pa.Table.from_pandas(frame, preserve_index=False), 0
    with atomic_path(path) as partial, pq.ParquetWriter(partial, table.schema) as writer:
        for size in sizes:
            writer.write_table(table.slice(start, size), row_group_size=size)
            start += size


def read_group(paths: str | Path | Iterable[str | Path], group: int, columns: list[str] | None = None) -> pd.DataFrame:
    """One row group, counted through files written by `write_grouped`.

    Raises
    ------
    RunError
        If a file is damaged, or there is no such group.
    """
    before = 0
    for path in [paths] if isinstance(paths, str | Path) else paths:
        try:
            with pq.ParquetFile(path) as file:
                if group - before < file.num_row_groups:
                    return file.read_row_group(group - before, columns=columns).to_pandas()
                before += file.num_row_groups
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path}: the file is damaged ({error}); run the command again") from error
    raise RunError(f"no row group {group}: there are {before}; run the command again")


def split(n: int, size: int) -> list[int]:
    """Rows of each group when ``n`` rows are put in groups of ``size``.

    Examples
    --------
    >>> split(70, 32)
    [32, 32, 6]
    """
    return [min(size, n - start) for start in range(0, n, size)]
