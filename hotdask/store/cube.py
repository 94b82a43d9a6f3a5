"""The cube: all good spectra as one sharded Zarr v3 store, opened with xarray.

A partition is a contiguous block of rows, one shard file a variable, written by one task. Two writers in one shard lose
rows in silence, so a write that is not exactly one partition is refused. A shard is encoded in memory and renamed into
place: it is whole or absent, the same input always gives the same bytes, and what lay there before, sound or damaged,
is never read.

Strings do not live in the cube but in its sidecar, one Parquet file a partition (``RUN/spectra``).
"""

import warnings
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
import zarr
from zarr.buffer import cpu
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from hotdask import __version__
from hotdask.errors import RunError
from hotdask.schema import (
    CUBE,
    CUBE_COORDINATES,
    FORMAT_VERSION,
    SPECTRA,
    SPECTRUM,
    WAVELENGTH,
    Variable,
    to_frame,
    to_table,
)
from hotdask.store.atomic import write_bytes
from hotdask.store.parquet import part_path, read_table, write_table
from hotdask.store.places import is_url, place, read_bytes, run_places, stamp, zarr_store
from hotdask.windows import N_OBSERVED, observed_wavelength

INNER_ROWS = 128
"""Rows of a chunk inside a shard, at most: reading one spectrum need not read a partition."""

FOLDER, SIDECAR = "spectra.zarr", "spectra"

_VARIABLES = (*CUBE, *CUBE_COORDINATES)
_ATTRIBUTE_VERSION, _ATTRIBUTE_SIZE, _ATTRIBUTE_BATCHES = "hotdask_format_version", "partition_size", "batches"


def _compressors() -> list:
    # Measured on 1024 spectra: as fast as lz4, smaller than either alone; neither codec of Zarr's default sees a
    # flipped byte, CRC-32C does.
    return [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), Crc32cCodec()]


def _fill(variable: Variable) -> float | int:
    """What an unwritten row reads as: no value where the type has one, no weight, no mask bit."""
    dtype = np.dtype(variable.dtype)
    if variable.name == "ivar" or dtype.kind == "u":
        return dtype.type(0)
    return dtype.type(np.nan) if dtype.kind == "f" else dtype.type(-1)


def _inner_rows(partition_size: int) -> int:
    """Largest divisor of the partition size up to `INNER_ROWS`; the whole partition if it divides badly."""
    best = max(rows for rows in range(1, INNER_ROWS + 1) if partition_size % rows == 0)
    return best if best >= 16 else partition_size


def n_partitions(n_spectrum: int, partition_size: int) -> int:
    """How many partitions hold ``n_spectrum`` rows.

    Examples
    --------
    >>> n_partitions(2049, 1024)
    3
    """
    return -(-n_spectrum // partition_size)


@dataclass(frozen=True)
class Layout:
    """Which rows of a cube belong to which partition.

    A survey grows by batches. Each begins with a partition of its own, so that no shard is ever written twice; rows
    that the last partition of an earlier batch does not fill are never written.

    Parameters
    ----------
    partition_size : int
        Rows of a partition = of a shard. Partition p begins at row ``p * partition_size``.
    batches : tuple of int
        Spectra of each batch.

    Examples
    --------
    >>> layout = Layout(1024, (2049, 10))
    >>> layout.counts, layout.n_spectrum, layout.n_row, layout.bounds(3)
    ((1024, 1024, 1, 10), 2059, 3082, (3072, 3082))
    """

    partition_size: int
    batches: tuple[int, ...]

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Spectra of each partition."""
        size = self.partition_size
        return tuple(min(size, n - start) for n in self.batches for start in range(0, n, size))

    @property
    def n_spectrum(self) -> int:
        """Spectra in all."""
        return sum(self.batches)

    @property
    def n_row(self) -> int:
        """Rows of the cube, with those between batches that hold nothing."""
        return (len(self.counts) - 1) * self.partition_size + self.counts[-1] if self.counts else 0

    def first(self, batch: int) -> int:
        """First partition of a batch."""
        return sum(n_partitions(n, self.partition_size) for n in self.batches[:batch])

    def bounds(self, partition: int) -> tuple[int, int]:
        """First row of a partition and the row after its last.

        Raises
        ------
        RunError
            If there is no such partition.
        """
        if not 0 <= partition < len(self.counts):
            raise RunError(f"no partition {partition}: the cube has {len(self.counts)}, numbered from 0")
        start = partition * self.partition_size
        return start, start + self.counts[partition]

    def rows(self) -> np.ndarray:
        """Rows that hold a spectrum, (n_spectrum,) int64."""
        return np.concatenate([np.arange(*self.bounds(p)) for p in range(len(self.counts))] or [np.empty(0, np.int64)])


def _describe(group: zarr.Group, n_row: int, partition_size: int) -> None:
    # Straight to Zarr: a template through xarray must be a Dask graph, and Dask copies an array of 18 GB to make one.
    shape = {SPECTRUM: n_row, WAVELENGTH: N_OBSERVED}
    chunk, shard = (_inner_rows(partition_size), N_OBSERVED), (partition_size, N_OBSERVED)
    for v in _VARIABLES:
        flat = len(v.dims) == 1
        group.create_array(
            v.name,
            shape=tuple(shape[d] for d in v.dims),
            dtype=v.dtype,
            chunks=(partition_size,) if flat else chunk,
            shards=None if flat else shard,
            compressors=_compressors(),
            fill_value=_fill(v),
            dimension_names=v.dims,
            attributes={"units": v.unit, "long_name": v.doc},
        )
    wavelength = group.create_array(
        WAVELENGTH,
        shape=(N_OBSERVED,),
        dtype="float64",
        chunks=(N_OBSERVED,),
        compressors=_compressors(),
        fill_value=np.nan,
        dimension_names=(WAVELENGTH,),
        attributes={
            "units": "Angstrom",
            "long_name": "wavelength, observed frame, heliocentric",
            "medium": "vacuum",
        },
    )
    wavelength[:] = observed_wavelength()


def cube_place(run: str | Path) -> Path:
    """Where the cube of a run lies: in its folder, or at the URL its settings give (a ``UPath``)."""
    return place(run_places(run).cube or Path(run, FOLDER))


def create_cube(path: str | Path, layout: Layout) -> None:
    """Make an empty cube, metadata and the wavelengths but no spectrum; or make room for more batches in one.

    Spectra already in it stay as they are.

    Parameters
    ----------
    path : path or URL
        Where. Until its last file, ``zarr.json``, is written, there is no cube, or the one before.
    layout : Layout

    Raises
    ------
    RunError
        If there are no rows, or the cube that is there holds other batches.
    """
    path = place(path)
    if layout.n_spectrum < 1:
        raise RunError(f"{path}: a cube of 0 spectra cannot be made; look into the rejects table")
    if (path / "zarr.json").exists():
        found = read_layout(path)
        if (found.partition_size, found.batches) != (layout.partition_size, layout.batches[: len(found.batches)]):
            raise RunError(
                f"{path}: there is a cube already, of {found.batches} spectra in partitions of {found.partition_size} "
                f"(wanted: {layout.batches} in {layout.partition_size}); remove it or choose another run directory"
            )
    memory: dict[str, cpu.Buffer] = {}
    attributes = {
        "Conventions": "CF-1.11",
        "title": "spectra of a hotdask run",
        "source": f"hotdask {__version__}, format {FORMAT_VERSION}",
        "references": "Xiang et al. 2022, A&A 662, A66",
        _ATTRIBUTE_VERSION: FORMAT_VERSION,
        _ATTRIBUTE_SIZE: layout.partition_size,
        _ATTRIBUTE_BATCHES: list(layout.batches),
        # How xarray tells coordinates from data.
        "coordinates": " ".join(v.name for v in CUBE_COORDINATES),
    }
    group = zarr.create_group(MemoryStore(memory), zarr_format=3, attributes=attributes)
    _describe(group, layout.n_row, layout.partition_size)
    # One file then tells xarray of all arrays. Zarr warns that version 3 of its format does not specify this yet.
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(MemoryStore(memory), zarr_format=3)
    for name in sorted(memory, key=lambda name: name == "zarr.json"):
        data = memory[name].to_bytes()
        if not (path / name).exists() or read_bytes(path / name) != data:
            write_bytes(path / name, data)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@lru_cache(maxsize=8)
def _layout_of(path: Path, _changed: str) -> Layout:
    try:
        group = zarr.open_group(zarr_store(path), mode="r", zarr_format=3)
        version, size = group.attrs.get(_ATTRIBUTE_VERSION), group.attrs.get(_ATTRIBUTE_SIZE)
        batches = group.attrs.get(_ATTRIBUTE_BATCHES)
    # Of damaged metadata Zarr raises whatever it stumbles over.
    except Exception as error:
        raise RunError(f"{path}: not a hotdask cube ({_said(error)}); run the ingest again") from error
    if version != FORMAT_VERSION or not isinstance(size, int) or not isinstance(batches, list):
        raise RunError(
            f"{path}: format version {version}, this hotdask reads {FORMAT_VERSION}; run the ingest again with this one"
        )
    return Layout(size, tuple(batches))


def read_layout(path: str | Path) -> Layout:
    """Layout of a cube.

    Raises
    ------
    RunError
        If there is no cube, or it has another format version.
    """
    path = place(path)
    try:
        changed = stamp(path / "zarr.json")
    except OSError as error:
        raise RunError(f"{path}: there is no cube; run the ingest first") from error
    return _layout_of(path, changed)


def read_variables(path: str | Path) -> dict[str, tuple[np.dtype, int, str]]:
    """Type, rows and unit of each variable of a cube, as its metadata say.

    Raises
    ------
    RunError
        If there is no cube, or metadata are damaged.
    """
    path, found = place(path), {}
    read_layout(path)
    group = zarr.open_group(zarr_store(path), mode="r", zarr_format=3)
    for v in _VARIABLES:
        try:
            array = group[v.name]
            found[v.name] = array.dtype, array.shape[0], array.attrs.get("units")
        # As above.
        except Exception as error:
            raise RunError(
                f"{path / v.name}/zarr.json is damaged ({_said(error)}); run the same command again"
            ) from error
    return found


def _shard(path: Path, variable: Variable, partition: int) -> Path:
    return path.joinpath(variable.name, "c", str(partition), *["0"] * (len(variable.dims) - 1))


def layout_files(path: str | Path) -> list[Path]:
    """The files that say what a cube is, its wavelengths among them, for hashing."""
    names = [*(v.name for v in _VARIABLES), WAVELENGTH]
    path = place(path)
    return [path / "zarr.json", *(path / name / "zarr.json" for name in names), path / WAVELENGTH / "c" / "0"]


def partition_files(path: str | Path, partition: int) -> list[Path]:
    """The files one partition consists of, for hashing; whether or not they are there."""
    read_layout(path).bounds(partition)
    return [_shard(place(path), v, partition) for v in _VARIABLES]


@lru_cache(maxsize=8)
def _metadata_of(path: Path, _changed: str) -> dict[str, bytes]:
    return {v.name: read_bytes(path / v.name / "zarr.json") for v in _VARIABLES}


def _metadata(path: Path) -> dict[str, bytes]:
    """What Zarr has written about each variable."""
    try:
        return _metadata_of(path, stamp(path / "zarr.json"))
    except OSError as error:
        raise RunError(f"{path}: not a hotdask cube ({error}); remove it and run the ingest again") from error


def _encode(variable: Variable, metadata: bytes, start: int, stop: int, values: np.ndarray) -> bytes:
    """The bytes Zarr would write for one whole shard, whatever lies on disk."""
    key = f"{variable.name}/zarr.json"
    memory = {key: cpu.Buffer.from_bytes(metadata)}
    store = MemoryStore(memory)
    # Empty chunks are written too: a partition always consists of the same files, for its receipt to list.
    array = zarr.open_array(store, path=variable.name, mode="r+", zarr_format=3)
    array.with_config({"write_empty_chunks": True})[start:stop] = values
    (shard,) = (buffer for name, buffer in memory.items() if name != key)
    return shard.to_bytes()


def _decode(variable: Variable, metadata: bytes, key: str, shard: bytes, start: int, stop: int) -> np.ndarray:
    """Rows of one shard, whose key in the cube is ``key``."""
    # Zarr takes a file of no bytes for one that was never written, and reads fill values.
    if not shard:
        raise ValueError("the file is empty")
    files = {f"{variable.name}/zarr.json": metadata, key: shard}
    store = MemoryStore({name: cpu.Buffer.from_bytes(data) for name, data in files.items()})
    return zarr.open_array(store, path=variable.name, mode="r", zarr_format=3)[start:stop]


def _checked(variable: Variable, values: np.ndarray, rows: int) -> np.ndarray:
    shape = (rows, N_OBSERVED)[: len(variable.dims)]
    values = np.asarray(values)
    if values.shape != shape:
        raise RunError(f"{variable.name}: shape {values.shape}, should be {shape}; this is a bug in the step before")
    if len(variable.dims) > 1 and values.dtype != variable.dtype:
        raise RunError(f"{variable.name}: {values.dtype}, should be {variable.dtype}; this is a bug in the step before")
    return np.ascontiguousarray(values, dtype=variable.dtype)


def write_rows(path: str | Path, start: int, arrays: Mapping[str, np.ndarray], meta: pd.DataFrame) -> None:
    """Write the rows of exactly one partition.

    Parameters
    ----------
    path : path
        The cube.
    start : int
        First row.
    arrays : mapping of str to (n, 3909) array
        ``flux`` [relative] and ``ivar`` float32, ``andmask`` and ``ormask`` uint16.
    meta : pandas.DataFrame
        n rows with at least the numeric columns of `hotdask.schema.SPECTRA`.

    Raises
    ------
    RunError
        If the rows are not exactly one partition: a block that straddles shards would lose its neighbor's rows.
        If an array is missing, or has another shape or type than the cube's.
    """
    path = place(path)
    layout = read_layout(path)
    rows = len(meta)
    partition, offset = divmod(start, layout.partition_size)
    if offset or not 0 <= partition < len(layout.counts):
        raise RunError(
            f"{path}: refused to write at row {start}: a partition begins at a multiple of {layout.partition_size} "
            f"below {layout.n_row}; pass whole partitions"
        )
    start, stop = layout.bounds(partition)
    if rows != stop - start:
        raise RunError(
            f"{path}: refused to write {rows} rows at row {start}: partition {partition} has {stop - start}; "
            "pass whole partitions"
        )
    missing = [v.name for v in CUBE if v.name not in arrays] + [v.name for v in CUBE_COORDINATES if v.name not in meta]
    if missing:
        raise RunError(f"{path}: {missing} missing for partition {partition}; this is a bug in the step before")
    # All are looked at before the first is written.
    checked = {v: _checked(v, arrays[v.name] if v in CUBE else meta[v.name].to_numpy(), rows) for v in _VARIABLES}

    metadata = _metadata(path)

    def write(variable: Variable) -> None:
        shard = _encode(variable, metadata[variable.name], start, stop, checked[variable])
        write_bytes(_shard(path, variable, partition), shard)

    # Side by side, since each of the small files waits for the disk.
    with ThreadPoolExecutor(8) as pool:
        deque(pool.map(write, checked), maxlen=0)


def write_partition(path: str | Path, partition: int, arrays: Mapping[str, np.ndarray], meta: pd.DataFrame) -> None:
    """Write one partition; see `write_rows`, which refuses anything but a whole one."""
    start, _ = read_layout(path).bounds(partition)
    write_rows(path, start, arrays, meta)


def read_partition(path: str | Path, partition: int, *, coordinates: bool = True) -> dict[str, np.ndarray]:
    """Read one partition.

    Parameters
    ----------
    path : path
        The cube.
    partition : int
        Its number.
    coordinates : bool
        Whether to read the numeric per-spectrum columns too.

    Returns
    -------
    dict of str to array
        ``flux``, ``ivar`` (n, 3909) float32; ``andmask``, ``ormask`` (n, 3909) uint16; coordinates (n,).

    Raises
    ------
    RunError
        If the partition was never written, or a checksum fails.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> n = 3
    >>> pixels = {v.name: np.ones((n, N_OBSERVED), v.dtype) for v in CUBE}
    >>> meta = pd.DataFrame({v.name: np.arange(n, dtype=v.dtype) for v in CUBE_COORDINATES})
    >>> with TemporaryDirectory() as folder:
    ...     create_cube(f"{folder}/cube.zarr", Layout(16, (n,)))
    ...     write_partition(f"{folder}/cube.zarr", 0, pixels, meta)
    ...     back = read_partition(f"{folder}/cube.zarr", 0)
    >>> back["flux"].shape, back["mjd"].tolist()
    ((3, 3909), [0, 1, 2])
    """
    path = place(path)
    start, stop = read_layout(path).bounds(partition)
    metadata = _metadata(path)

    def read(variable: Variable) -> np.ndarray:
        shard = _shard(path, variable, partition)
        try:
            key = shard.relative_to(path).as_posix()
            return _decode(variable, metadata[variable.name], key, read_bytes(shard), start, stop)
        except FileNotFoundError as error:
            raise RunError(f"{shard}: partition {partition} was never written; run the ingest again") from error
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise RunError(
                f"{shard}: partition {partition} is damaged ({error}); remove its receipt and run the ingest again"
            ) from error

    wanted = _VARIABLES if coordinates else CUBE
    if not is_url(path):
        return {variable.name: read(variable) for variable in wanted}
    # Side by side, since each object waits for the network.
    with ThreadPoolExecutor(8) as pool:
        return dict(zip([variable.name for variable in wanted], pool.map(read, wanted), strict=True))


def open_cube(path: str | Path) -> xr.Dataset:
    """Open a cube lazily, one Dask chunk a partition; rows that hold no spectrum are left out.

    ``path`` may be a URL (``s3://…``).

    Raises
    ------
    RunError
        If there is no cube, or it has another format version.
    """
    layout, size = read_layout(path), read_layout(path).partition_size
    # A sharded array would open with its inner chunks as Dask chunks.
    cube = xr.open_zarr(
        zarr_store(path), consolidated=False, zarr_format=3, chunks={SPECTRUM: size, WAVELENGTH: N_OBSERVED}
    )
    cube = cube[[v.name for v in CUBE]]
    return cube if layout.n_row == layout.n_spectrum else cube.isel({SPECTRUM: layout.rows()})


def write_sidecar(run: str | Path, partition: int, meta: pd.DataFrame) -> Path:
    """Write the table of a partition's spectra: columns of `hotdask.schema.SPECTRA`, then all others of ``meta``."""
    declared = {c.name for c in SPECTRA}
    extra = tuple(str(name) for name in meta.columns if name not in declared)
    return write_table(part_path(Path(run, SIDECAR), partition), to_table(meta, SPECTRA, extra=extra))


def read_sidecar(run: str | Path, partition: int, columns: list[str] | None = None) -> pd.DataFrame:
    """The table of a partition's spectra, one row a cube row, in order."""
    return to_frame(read_table(part_path(Path(run, SIDECAR), partition), columns))
