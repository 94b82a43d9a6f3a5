"""Distances, magnitudes and reddening from other catalogs, joined to the spectra of a run."""

import io
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from astropy import units as u
from astropy.coordinates import SkyCoord

from hotdask import config
from hotdask.crossmatch.match import cell_order, cells
from hotdask.crossmatch.neighbors import SEPARATION, check_sky, match_nearest, need_columns, read_sky
from hotdask.crossmatch.photometry import absolute_ks, intrinsic_bp_rp
from hotdask.errors import InputError, SettingsError
from hotdask.readers.columns import ids as ids_of
from hotdask.readers.columns import numbers
from hotdask.readers.usertables import Piece, column_units, first_piece, list_pieces, read_pieces
from hotdask.schema import JOINED, empty_frame
from hotdask.store.cube import Layout, read_sidecar
from hotdask.store.grouped import write_grouped

JOIN = "joined.parquet"
_DERIVED = {
    "m_ks": ("ks", "r_geo", "ebv"),
    "bp_rp_0": ("bp", "rp", "ebv"),
    "parallax_over_error": ("parallax", "parallax_error"),
}
_TYPES = empty_frame(JOINED).dtypes
_UNITS = {c.name: c.unit for c in JOINED}
_CHUNK = 100_000


def join_tables(
    run: str | Path,
    groups: Iterable[Iterable[int]],
    layout: Layout,
    settings: config.Join,
    carried: tuple[str, ...],
    *,
    echo: Callable[[str], None] = print,
) -> tuple[str, ...]:
    """Join the tables of ``[join]`` to all spectra; writes ``RUN/joined.parquet``, on the current Dask client.

    Tables are read on the workers, a piece a task, and never held whole; the columns that join are, for every spectrum.

    Parameters
    ----------
    run : path
    groups : iterable of iterable of int
        Partitions of the cube that one task reads.
    layout : hotdask.store.cube.Layout
        Partitions of the cube.
    settings : hotdask.config.Join
    carried : tuple of str
        Columns of the input table; magnitudes and reddening among them serve as well.
    echo : callable
        Told how many spectra found a row in each table.

    Returns
    -------
    tuple of str
        The columns joined, in the order of `hotdask.schema.JOINED`; empty if there are none.

    Raises
    ------
    InputError
        If a table cannot be read or lacks a column.
    SettingsError
        If two sources give one column, or a table is joined by an id that nothing gives.
    """
    tables = settings.tables()
    names = _given(settings, tables, carried)
    helpful = [c for c in carried if c in _TYPES.index]
    if not names and not _derivable(helpful):
        return ()
    columns = ["specid", "obsid", "ra", "dec"]
    options = {"run": str(run), "size": layout.partition_size, "wanted": [*columns, *helpful]}
    groups = [list(map(int, group)) for group in groups]
    spectra = dd.from_map(
        _positions, groups, **options, meta=_positions(groups[0], **options).iloc[:0], label="positions"
    )
    frame = spectra.compute().sort_values("row").reset_index(drop=True)

    by_place = {name: table for name, table in tables.items() if table.on == "position"}
    if by_place:
        found = _by_position(spectra[["row", "ra", "dec"]], frame, by_place, settings)
        for name in by_place:
            _tell(echo, name, tables[name], found[f"{name}_{SEPARATION}"].notna())
        others = [f"{name}_{SEPARATION}" for name in by_place if name != "gaia"]
        frame = pd.concat([frame, found.drop(columns=["row", "ra", "dec", *others])], axis=1)
    for name, table in tables.items():
        if table.on != "position":
            found, matched = _by_id(frame[table.on], table, f"join.{name}")
            _tell(echo, name, table, matched)
            frame = pd.concat([frame, found], axis=1)
    if settings.map is not None:
        frame["ebv"] = _reddening(frame, settings)
    frame = derive(frame)
    names = [c.name for c in JOINED if c.name in frame and c.name not in helpful]
    if "gaia_id" in names:
        # Most readers turn integers with gaps into floats, which are too short for such ids.
        frame["gaia_id"] = frame["gaia_id"].fillna(-1).astype("int64")
    write_grouped(Path(run, JOIN), frame[names], layout.counts)
    return tuple(names)


def check_tables(settings: config.Join, carried: tuple[str, ...]) -> None:
    """See that the tables of ``[join]`` can be read and have their columns, before anything is fitted.

    Raises
    ------
    InputError, SettingsError
        As `join_tables`.
    """
    tables = settings.tables()
    _given(settings, tables, carried)
    for name, table in tables.items():
        section = f"join.{name}"
        rename = Renamed(table, section)
        if table.on == "position":
            check_sky(table, columns=list(table.columns.values()), radius=settings.radius, section=section)
        else:
            _keyed((first_piece(table.table),), table, rename, pd.Index([]))


def signature(settings: config.Join) -> list[list]:
    """Size and time of every file joined, to tell whether one changed: the catalog is made again then."""
    files = []
    for table in settings.tables().values():
        path = Path(table.table)
        for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
            found = file.stat() if file.exists() else None
            files.append([str(file), found and found.st_size, found and found.st_mtime_ns])
    return files


def _given(settings: config.Join, tables: dict[str, config.JoinTable], carried: tuple[str, ...]) -> list[str]:
    """Columns the tables give; refuses one from two sources."""
    sources = [("the input table", name) for name in carried]
    sources += [(f"join.{name}", ours) for name, table in tables.items() for ours in table.columns]
    sources += [("join.map", "ebv")] if settings.map is not None else []
    first: dict[str, str] = {}
    for source, column in sources:
        if first.setdefault(column, source) != source:
            raise SettingsError(f"both {first[column]} and {source} give the column {column}; leave it out of one")
    known = {"specid", "obsid", *first}
    for name, table in tables.items():
        if table.on != "position" and table.on not in known:
            raise SettingsError(f"join.{name}.on = '{table.on}', but nothing gives {table.on}; give join.gaia too")
    return [column for source, column in sources if source != "the input table"]


def _derivable(names: Iterable[str]) -> list[str]:
    return [name for name, needed in _DERIVED.items() if set(needed) <= set(names)]


def derive(frame: pd.DataFrame) -> pd.DataFrame:
    """Absolute magnitude, intrinsic color and parallax over its error, where their columns are there."""
    for name in _derivable(frame.columns):
        values = [frame[column].to_numpy(dtype=np.float64, na_value=np.nan) for column in _DERIVED[name]]
        if name == "parallax_over_error":
            frame[name] = values[0] / np.where(values[1] > 0, values[1], np.nan)
        else:
            frame[name] = {"m_ks": absolute_ks, "bp_rp_0": intrinsic_bp_rp}[name](*values)
    return frame


def _positions(group: list[int], *, run: str, size: int, wanted: list[str]) -> pd.DataFrame:
    parts = []
    for partition in group:
        part = read_sidecar(run, partition, columns=wanted)[wanted]
        parts.append(part.assign(row=partition * size + np.arange(len(part))))
    return pd.concat(parts, ignore_index=True)


def _by_position(spectra: dd.DataFrame, frame: pd.DataFrame, tables, settings: config.Join) -> pd.DataFrame:
    radius, others = settings.radius, {}
    occupied = np.unique(cells(frame["ra"], frame["dec"], order=cell_order(radius)))
    for name, table in tables.items():
        options = {"epoch": settings.epoch, "radius": radius, "occupied": occupied, "section": f"join.{name}"}
        read = read_sky(table, columns=list(table.columns.values()), **options)
        rename = Renamed(table, f"join.{name}")
        others[name] = read.map_partitions(rename, meta=rename(read._meta))
    return match_nearest(spectra, others, radius=radius).compute().sort_values("row").reset_index(drop=True)


def _tell(echo: Callable[[str], None], name: str, table: config.JoinTable, matched: pd.Series) -> None:
    """Say how many spectra found a row; that none did is mostly a mistake."""
    n = int(matched.sum())
    echo(f"{name}: {n} of {len(matched)} matched")
    if not n and len(matched):
        what = "positions and their epoch" if table.on == "position" else f"the ids in '{table.key}' against {table.on}"
        echo(f"WARNING: no spectrum found a row in join.{name}.table = '{table.table}'; check {what}")


class Renamed:
    """Columns by our names, with the types declared for them."""

    def __init__(self, table: config.JoinTable, section: str):
        units = column_units(table.table)
        key = [] if table.on == "position" else [table.key]
        self.theirs = need_columns(units, [*key, *table.columns.values()], table, section)
        self.columns = table.columns
        self.units = {name: units[theirs] for name, theirs in self.theirs.items()}
        self.where = f"{section}.table = '{table.table}'"

    def __call__(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Those columns, and what places the rows."""
        out = {name: frame[name] for name in ("cell", "_ra", "_dec") if name in frame}
        return pd.DataFrame(out | {ours: self._typed(frame[theirs], ours) for ours, theirs in self.columns.items()})

    def _typed(self, column: pd.Series, name: str) -> pd.Series:
        if _TYPES[name] == np.float64:
            values = numbers(column, self.where, unit=_UNITS[name], stored=self.units[column.name])
            return pd.Series(np.where(np.isfinite(values), values, np.nan), index=column.index)
        # A 19-digit id does not survive a float.
        return pd.to_numeric(ids_of(column).replace("", None), dtype_backend="numpy_nullable").astype("Int64")


def _by_id(ids: pd.Series, table: config.JoinTable, section: str) -> tuple[pd.DataFrame, pd.Series]:
    """The columns of a table for each id, and whether it has a row of it."""
    ids = _as_text(ids, table.on)
    wanted = pd.Index(ids[ids != ""].unique())
    rename = Renamed(table, section)
    read = [dask.delayed(_keyed)(pieces, table, rename, wanted) for pieces in list_pieces(table.table)]
    found = pd.concat(dask.compute(*read), ignore_index=True)
    # Of several rows of one object the same one is taken, however the pieces come.
    found = found.sort_values(list(found.columns)).drop_duplicates("_id").set_index("_id")
    return found.reindex(ids).reset_index(drop=True), ids.isin(found.index).reset_index(drop=True)


def _as_text(column: pd.Series, on: str) -> pd.Series:
    if on == "specid":
        return column.astype(object).where(column.notna(), "").astype("str").str.strip()
    return ids_of(column)


def _keyed(pieces: tuple[Piece, ...], table: config.JoinTable, rename: Renamed, wanted: pd.Index) -> pd.DataFrame:
    frame = read_pieces(pieces, list(rename.theirs.values()))
    frame = pd.DataFrame({name: frame[theirs] for name, theirs in rename.theirs.items()})
    ids = _as_text(frame[table.key], table.on)
    here = ids.isin(wanted).to_numpy()
    return rename(frame[here]).assign(_id=ids[here])


def _reddening(frame: pd.DataFrame, settings: config.Join) -> np.ndarray:
    """E(B-V) at the distance of each star, from a 3D map."""
    try:
        from dustmaps.bayestar import BayestarQuery
    except ImportError as error:
        raise SettingsError(
            "join.map needs the package dustmaps and its map; `pip install 'hotdask[dust]'`, then fetch the map as its "
            "documentation says, or give E(B-V) as a column"
        ) from error
    if "r_geo" not in frame:
        raise SettingsError("join.map needs distances (r_geo); give join.distances")
    try:
        # It tells on the terminal what it loads.
        with redirect_stdout(io.StringIO()):
            query = BayestarQuery(version=settings.map)
    except Exception as error:
        raise InputError(f"join.map = '{settings.map}': the map cannot be read ({error}); fetch it first") from error
    out = np.full(len(frame), np.nan)
    distance = frame["r_geo"].to_numpy(dtype=np.float64)
    known = np.flatnonzero(distance > 0)
    for rows in np.array_split(known, max(1, len(known) // _CHUNK)):
        place = frame[["ra", "dec"]].to_numpy()[rows].T * u.deg
        out[rows] = query(SkyCoord(*place, distance=distance[rows] * u.pc), mode="median")
    return out * settings.map_scale
