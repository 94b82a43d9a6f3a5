"""Tables matched by position, cell by cell on Dask: neither has to fit in memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import dask.dataframe as dd
import numpy as np
import pandas as pd

from hotdask import config
from hotdask.errors import InputError
from hotdask.steps.match import cell_order, cells, cells_within, move, nearest
from hotdask.store.skytables import column_names, list_pieces, read_pieces

SEPARATION = "separation"


def read_sky(
    table: config.SkyTable,
    *,
    columns: Sequence[str] = (),
    epoch: float,
    radius: float,
    select: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
    occupied: np.ndarray | None = None,
    section: str,
) -> dd.DataFrame:
    """A table to find neighbors in: ``ra``, ``dec`` [deg] at an epoch, other columns, and ``cell``.

    Objects near the border of a cell occur in each cell they may have a neighbor in.

    Parameters
    ----------
    table : hotdask.config.SkyTable
    columns : sequence of str
        Other columns.
    epoch : float
        Where the table has proper motions, positions are brought to this epoch [yr].
    radius : float
        [arcsec]
    select : callable, optional
        What of a piece is wanted.
    occupied : (n,) int64, optional
        Cells that anything is wanted in, sorted.
    section : str
        Its name in the settings, for messages.

    Raises
    ------
    InputError
        If it cannot be read, lacks a column, or has proper motions of no known epoch.
    """
    names = column_names(table.table)
    moving = [table.pmra, table.pmdec] if {table.pmra, table.pmdec} <= set(names) else []
    dated = [table.epoch] if moving and isinstance(table.epoch, str) else []
    if dated and dated[0] not in names:
        raise InputError(
            f"{section}.table = '{table.table}' has proper motions but no column '{table.epoch}'; set {section}.epoch "
            "to the epoch of its positions (2016.0 for Gaia DR3, 2015.5 for DR2)"
        )
    need_columns(names, [table.ra, table.dec, *columns], table, section)
    options = {
        "table": table,
        # Dask takes arguments called columns for its own.
        "payload": list(columns),
        "moving": moving,
        "epoch": epoch,
        "radius": radius,
        "select": select,
        "occupied": occupied,
    }
    pieces = list_pieces(table.table)
    meta = _sky_piece(pieces[0], **options).iloc[:0]
    return dd.from_map(_sky_piece, pieces, **options, meta=meta, label=f"read-{section}")


def need_columns(names: Iterable[str], wanted: Iterable[str], table: config.SkyTable, section: str) -> None:
    """See that a table has columns.

    Raises
    ------
    InputError
        If not.
    """
    missing = sorted(set(wanted) - set(names))
    if missing:
        raise InputError(
            f"{section}.table = '{table.table}' lacks the columns {', '.join(missing)}; it has {', '.join(names)}; "
            f"say in [{section}] how they are called"
        )


def numbers(column: pd.Series) -> np.ndarray:
    """Numbers of a column, NaN where there is none."""
    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def _sky_piece(pieces, *, table, payload, moving, epoch, radius, select, occupied) -> pd.DataFrame:
    dated = [table.epoch] if moving and isinstance(table.epoch, str) else []
    frame = read_pieces(pieces, [table.ra, table.dec, *moving, *dated, *payload])
    if select is not None:
        frame = select(frame)
    ra, dec = numbers(frame[table.ra]), numbers(frame[table.dec])
    if moving:
        years = epoch - (numbers(frame[table.epoch]) if dated else table.epoch)
        ra, dec = move(ra, dec, *(numbers(frame[name]) for name in moving), years)
    row, cell = cells_within(ra, dec, order=cell_order(radius), radius=radius)
    if occupied is not None:
        wanted = np.isin(cell, occupied)
        row, cell = row[wanted], cell[wanted]
    out = frame[payload].iloc[row].reset_index(drop=True)
    return pd.concat([pd.DataFrame({"cell": cell, "_ra": ra[row], "_dec": dec[row]}), out], axis=1)


def match_nearest(
    left: dd.DataFrame, others: Mapping[str, dd.DataFrame], *, radius: float, partitions: int | None = None
) -> dd.DataFrame:
    """For each object the nearest one of each other table.

    Parameters
    ----------
    left : dask.dataframe.DataFrame
        ``ra``, ``dec`` [deg] and other columns.
    others : mapping of str to dask.dataframe.DataFrame
        As from `read_sky`, for the same radius.
    radius : float
        [arcsec]
    partitions : int, optional
        Of the result; default: as many as the largest table has.

    Returns
    -------
    dask.dataframe.DataFrame
        The columns of ``left``; for each other table NAME, ``NAME_separation`` [arcsec], NaN where there is no
        neighbor, and its columns. Rows come in another order.
    """
    order = cell_order(radius)
    n = partitions or max(frame.npartitions for frame in (left, *others.values()))
    meta = left._meta.assign(cell=np.empty(0, dtype=np.int64))
    left = left.map_partitions(_with_cell, order, meta=meta)
    # Equal cells hash to equal partitions, whichever table they come from.
    left, *right = (frame.shuffle("cell", npartitions=n) for frame in (left, *others.values()))
    result = _match(meta, *(frame._meta for frame in right), names=list(others), radius=radius)
    return dd.map_partitions(
        _match, left, *right, names=list(others), radius=radius, meta=result, align_dataframes=False
    )


def _with_cell(frame: pd.DataFrame, order: int) -> pd.DataFrame:
    return frame.assign(cell=cells(frame["ra"], frame["dec"], order=order))


def _match(left: pd.DataFrame, *others: pd.DataFrame, names: list[str], radius: float) -> pd.DataFrame:
    out = left.drop(columns="cell").reset_index(drop=True)
    for name, other in zip(names, others, strict=True):
        # Rows arrive in any order, and those in two cells come twice.
        payload = list(other.columns.drop("cell"))
        other = other[payload].sort_values(payload).reset_index(drop=True)
        index, separation = nearest(out["ra"], out["dec"], other["_ra"], other["_dec"], radius=radius)
        found = other.drop(columns=["_ra", "_dec"]).reindex(index).reset_index(drop=True)
        out = pd.concat([out.assign(**{f"{name}_{SEPARATION}": separation}), found], axis=1)
    return out
