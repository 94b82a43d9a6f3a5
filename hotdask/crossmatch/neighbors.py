"""Tables matched by position, cell by cell on Dask: neither has to fit in memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import dask.dataframe as dd
import numpy as np
import pandas as pd

from hotdask import config
from hotdask.crossmatch.match import cell_order, cells, cells_within, move, nearest
from hotdask.errors import InputError
from hotdask.readers.columns import angles, find_column, numbers
from hotdask.readers.usertables import column_units, first_piece, list_pieces, read_pieces

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
        If it cannot be read, lacks a column, has positions that are none, or proper motions of no known epoch.
    """
    options = _options(table, columns, epoch=epoch, radius=radius, select=select, occupied=occupied, section=section)
    pieces = list_pieces(table.table)
    meta = _sky_piece(pieces[0], **options).iloc[:0]
    return dd.from_map(_sky_piece, pieces, **options, meta=meta, label=f"read-{section}")


def check_sky(table: config.SkyTable, *, columns: Sequence[str], radius: float, section: str) -> None:
    """See that `read_sky` can read a table, by its first rows; raises as it does."""
    options = _options(table, columns, epoch=2000.0, radius=radius, select=None, occupied=None, section=section)
    _sky_piece((first_piece(table.table),), **options)


def _options(table: config.SkyTable, columns: Sequence[str], *, epoch, radius, select, occupied, section) -> dict:
    """How the pieces of a table are read."""
    units = column_units(table.table)
    moving = [name for name in (find_column(units, wanted) for wanted in (table.pmra, table.pmdec)) if name]
    moving = moving if len(moving) == 2 else []
    dated = [find_column(units, table.epoch)] if moving and isinstance(table.epoch, str) else []
    if dated and dated[0] is None:
        raise InputError(
            f"{section}.table = '{table.table}' has proper motions but no column '{table.epoch}'; set {section}.epoch "
            "to the epoch of its positions (2016.0 for Gaia DR3, 2015.5 for DR2)"
        )
    named = need_columns(units, [table.ra, table.dec, *columns], table, section)
    return {
        "where": f"{section}.table = '{table.table}'",
        "places": [named[table.ra], named[table.dec]],
        # Dask takes arguments called columns for its own.
        "payload": {name: named[name] for name in columns},
        "units": units,
        "moving": moving,
        "dated": dated[0] if dated else table.epoch,
        "epoch": epoch,
        "radius": radius,
        "select": select,
        "occupied": occupied,
    }


def need_columns(names: Iterable[str], wanted: Iterable[str], table: config.SkyTable, section: str) -> dict[str, str]:
    """What a table calls the columns that are needed of it, see `hotdask.readers.columns.find_column`.

    Raises
    ------
    InputError
        If it lacks one.
    """
    found = {name: find_column(names, name) for name in wanted}
    missing = sorted(name for name, theirs in found.items() if theirs is None)
    if missing:
        raise InputError(
            f"{section}.table = '{table.table}' lacks the columns {', '.join(missing)}; it has {', '.join(names)}; "
            f"say in [{section}] how they are called"
        )
    return found


def _sky_piece(
    pieces, *, where, places, payload, units, moving, dated, epoch, radius, select, occupied
) -> pd.DataFrame:
    years = [dated] if moving and isinstance(dated, str) else []
    frame = read_pieces(pieces, [*places, *moving, *years, *payload.values()])
    if select is not None:
        frame = select(frame)
    ra, dec = (angles(frame[name], where, stored=units.get(name, ""), hours=not i) for i, name in enumerate(places))
    if moving:
        since = epoch - (numbers(frame[dated], where) if years else dated)
        motions = (numbers(frame[name], where, unit="mas/yr", stored=units.get(name, "")) for name in moving)
        ra, dec = move(ra, dec, *motions, since)
    row, cell = cells_within(ra, dec, order=cell_order(radius), radius=radius)
    if occupied is not None:
        wanted = np.isin(cell, occupied)
        row, cell = row[wanted], cell[wanted]
    frame = frame.iloc[row].reset_index(drop=True)
    out = pd.DataFrame({name: frame[theirs] for name, theirs in payload.items()}, index=frame.index)
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
