"""A library of syntheses as one Zarr v3 store: labels, flux, continuum, and why a synthesis failed.

A part is `PART` rows, one chunk file a variable, written by one task. Chunks are encoded in memory and renamed into
place, the status last: a part half written is a part not made, and nothing that lay there before is ever read.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import zarr
from zarr.buffer import cpu
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from hotdask.errors import InputError, RunError
from hotdask.labels import INDEX, LABEL_NAMES, LABELS, N_LABELS
from hotdask.library.spectra import LOG_START, LOG_STEP, N_FINE, Library
from hotdask.library.synthe import read_npz
from hotdask.store.atomic import atomic_folder, write_bytes

PART = 32
"""Rows of a part: one chunk of every variable, one task."""

PLANNED, MADE, FAILED = 0, 1, 2
"""Values of ``status``."""

FORMAT = 2
"""Version of the store's layout."""

_GRID = {"log_start": LOG_START, "log_step": LOG_STEP, "n": N_FINE}
_WRITTEN = ("flux", "flux_lte", "continuum", "seconds", "reason", "status")
"""What `write_part` writes, in this order."""

# dims, dtype, fill value, unit, what it is
_VARIABLES: dict[str, tuple[tuple[str, ...], str, object, str, str]] = {
    "labels": (("synthesis", "label"), "float64", np.nan, "see label_units", "labels, planned"),
    "flux": (("synthesis", "wavelength"), "float32", np.nan, "erg/s/cm2/Angstrom, or relative", "emergent flux"),
    "flux_lte": (("synthesis", "wavelength"), "float32", np.nan, "that of flux", "flux of the same structure in LTE"),
    "continuum": (("synthesis", "wavelength"), "float32", np.nan, "that of flux", "emergent flux without lines"),
    "status": (("synthesis",), "uint8", PLANNED, "", "0 planned, 1 made, 2 failed"),
    "seconds": (("synthesis",), "float32", np.nan, "s", "time the synthesis took"),
    "reason": (("synthesis",), "str", "", "", "why it failed; empty if it did not"),
}
_SIZE = {"label": N_LABELS, "wavelength": N_FINE}


def _compressors() -> list:
    # As in the cube: zstd after shuffling, and a checksum, which no codec of Zarr's default has.
    return [BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()]


def create_library(path: str | Path, labels: np.ndarray, *, provenance: Mapping) -> None:
    """Make a library of which all rows are planned and none is made.

    Parameters
    ----------
    path : path
        Where; appears whole or not at all.
    labels : (n, 11) float64
        What to synthesize, in the order of `hotdask.labels.LABEL_NAMES`; vsini is 0.
    provenance : mapping
        What makes the spectra, with which settings; JSON values.

    Raises
    ------
    InputError
        If something is there already; if the labels are no finite (n, 11) array with vsini 0; if the provenance is
        not JSON.
    """
    path, labels = Path(path), np.asarray(labels, dtype=np.float64)
    if labels.ndim != 2 or labels.shape[1] != N_LABELS or not len(labels):
        raise InputError(f"{path}: labels have shape {labels.shape}, should be (n, {N_LABELS}) with n > 0")
    if not np.isfinite(labels).all() or labels[:, INDEX["vsini"]].any():
        raise InputError(f"{path}: labels must be finite and vsini 0; rotation is applied after the synthesis")
    try:
        provenance = json.loads(json.dumps(provenance, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the provenance is not JSON ({error}); give numbers, texts, lists, dicts") from error
    taken = f"{path} exists already; remove it or choose another path"
    if path.exists():
        raise InputError(taken)
    attributes = {
        "title": "hotdask library of syntheses",
        "hotdask_library_format": FORMAT,
        "labels": list(LABEL_NAMES),
        "label_units": [label.unit for label in LABELS],
        "grid": _GRID,
        "medium": "vacuum; log10 of the wavelength [Angstrom] is log_start + log_step * i",
        "provenance": provenance,
    }
    try:
        with atomic_folder(path) as partial:
            group = zarr.create_group(partial, zarr_format=3, attributes=attributes)
            for name, (dims, dtype, fill, unit, doc) in _VARIABLES.items():
                group.create_array(
                    name,
                    shape=(len(labels), *(_SIZE[d] for d in dims[1:])),
                    dtype=dtype,
                    chunks=(PART, *(_SIZE[d] for d in dims[1:])),
                    compressors=_compressors(),
                    fill_value=fill,
                    dimension_names=dims,
                    attributes={"units": unit, "long_name": doc},
                )
            group["labels"][:] = labels
    except FileExistsError as error:
        raise InputError(taken) from error


def _open(path: str | Path) -> zarr.Group:
    path = Path(path)
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
        attributes = dict(group.attrs)
        absent = sorted(_VARIABLES.keys() - set(group.array_keys()))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a library store ({error}); make one with `hotdask library build`") from error
    found = attributes.get("hotdask_library_format")
    if found != FORMAT:
        raise InputError(f"{path}: library format {found}, this hotdask reads {FORMAT}; build it again with this one")
    if attributes.get("labels") != list(LABEL_NAMES):
        raise InputError(f"{path}: has the labels {attributes.get('labels')}, should be {list(LABEL_NAMES)}")
    if attributes.get("grid") != _GRID:
        raise InputError(f"{path}: has the wavelength grid {attributes.get('grid')}, should be {_GRID}")
    if absent:
        raise InputError(f"{path}: the variables {absent} are missing; build it again")
    return group


def _read(group: zarr.Group, path: str | Path, name: str, rows: slice | None = None) -> np.ndarray:
    try:
        return group[name][rows if rows is not None else slice(None)]
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        if rows is None:
            # The same again part by part, to tell which one it is.
            n = group[name].shape[0]
            return np.concatenate([_read(group, path, name, slice(i, min(i + PART, n))) for i in range(0, n, PART)])
        remedy = "build the library again" if name == "labels" else _again(rows.start // PART)
        raise InputError(f"{path}: {name} of part {rows.start // PART} is damaged ({error}); {remedy}") from error


def _again(part: int) -> str:
    # A part without a status is a part not made.
    return f"remove its file status/c/{part} and run `hotdask library build` again, which makes that part only"


def library_provenance(path: str | Path) -> dict:
    """What made a library, as it was given to `create_library`.

    Raises
    ------
    InputError
        If ``path`` is no library store of this format, these labels and this grid.
    """
    return dict(_open(path).attrs["provenance"])


def library_labels(path: str | Path) -> np.ndarray:
    """Labels of all planned syntheses, (n, 11) float64.

    Raises
    ------
    InputError
        As `library_provenance`; if the labels are damaged.
    """
    return _read(_open(path), path, "labels")


def n_parts(path: str | Path) -> int:
    """How many parts a library has."""
    return -(-_open(path)["labels"].shape[0] // PART)


def _bounds(group: zarr.Group, path: str | Path, part: int) -> slice:
    n = group["labels"].shape[0]
    if not 0 <= part < -(-n // PART):
        raise RunError(f"{path}: no part {part}: there are {-(-n // PART)}, numbered from 0")
    return slice(part * PART, min((part + 1) * PART, n))


def _encode(path: Path, name: str, rows: slice, values: np.ndarray) -> bytes:
    """The bytes Zarr would write for one whole chunk."""
    key = f"{name}/zarr.json"
    memory = {key: cpu.Buffer.from_bytes((path / key).read_bytes())}
    array = zarr.open_array(MemoryStore(memory), path=name, mode="r+", zarr_format=3)
    # All chunks of a part exist once it is made, also those that hold nothing but the fill value.
    array.with_config({"write_empty_chunks": True})[rows] = values
    (chunk,) = (buffer for other, buffer in memory.items() if other != key)
    return chunk.to_bytes()


def write_part(
    path: str | Path,
    part: int,
    *,
    flux: np.ndarray,
    flux_lte: np.ndarray,
    continuum: np.ndarray,
    seconds: np.ndarray,
    reasons: Sequence[str],
) -> None:
    """Write one part, whatever lies there; other parts may be written at the same time.

    Parameters
    ----------
    path : path
        The store.
    part : int
        Its number: rows ``part * PART`` to ``(part + 1) * PART``, fewer in the last.
    flux, flux_lte, continuum : (m, 19216) float32
        On `hotdask.library.spectra.fine_wavelength`; NaN in rows that failed. The last two may be NaN everywhere: not
        every engine gives them.
    seconds : (m,) float32
        What each synthesis took [s].
    reasons : sequence of m str
        Why it failed; empty for those made.

    Raises
    ------
    InputError
        As `library_provenance`.
    RunError
        If there is no such part, the arrays do not fit it, or a synthesis is called made whose flux is not finite.
    """
    path = Path(path)
    group = _open(path)
    rows = _bounds(group, path, part)
    m = rows.stop - rows.start
    reason = np.array([str(r) for r in reasons], dtype=object)
    status = np.where(reason == "", MADE, FAILED).astype(np.uint8)
    values = {
        "flux": np.asarray(flux, dtype=np.float32),
        "flux_lte": np.asarray(flux_lte, dtype=np.float32),
        "continuum": np.asarray(continuum, dtype=np.float32),
        "seconds": np.asarray(seconds, dtype=np.float32),
        "reason": reason,
        "status": status,
    }
    for name in _WRITTEN:
        wanted = (m, *group[name].shape[1:])
        if values[name].shape != wanted:
            raise RunError(f"{path}: {name} of part {part} has shape {values[name].shape}, should be {wanted}")
    empty = (status == MADE) & ~np.isfinite(values["flux"]).all(axis=1)
    if empty.any():
        raise RunError(
            f"{path}: rows {(rows.start + np.flatnonzero(empty)).tolist()} have flux that is not finite and no reason; "
            "give the reason why the engine failed"
        )
    for name in _WRITTEN:
        chunk = path.joinpath(name, "c", str(part), *["0"] * (len(_VARIABLES[name][0]) - 1))
        write_bytes(chunk, _encode(path, name, rows, values[name]))


def missing_parts(path: str | Path) -> list[int]:
    """Numbers of the parts that are not made.

    Raises
    ------
    InputError
        As `library_provenance`; if the status is damaged.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = f"{folder}/library.zarr"
    ...     create_library(path, np.zeros((40, 11)), provenance={"engine": "none"})
    ...     none = dict.fromkeys(("flux", "flux_lte", "continuum"), np.full((8, N_FINE), np.nan))
    ...     write_part(path, 1, **none, seconds=np.zeros(8), reasons=["none"] * 8)
    ...     missing_parts(path), len(rejects(path))
    ([0], 8)
    """
    status = _read(_open(path), path, "status")
    return np.unique(np.flatnonzero(status == PLANNED) // PART).tolist()


def read_part(path: str | Path, part: int) -> dict[str, np.ndarray]:
    """All variables of one part, made or not.

    Returns
    -------
    dict of str to array
        ``row`` (m,) int64 in the library; ``labels`` (m, 11) float64; ``flux``, ``flux_lte``, ``continuum``
        (m, 19216) float32;
        ``status`` (m,) uint8; ``seconds`` (m,) float32; ``reason`` (m,) object.

    Raises
    ------
    InputError
        As `library_provenance`; if a variable is damaged.
    RunError
        If there is no such part.
    """
    group = _open(path)
    rows = _bounds(group, path, part)
    return {"row": np.arange(rows.start, rows.stop), **{name: _read(group, path, name, rows) for name in _VARIABLES}}


def read_library(path: str | Path, *, lte: bool = False) -> Library:
    """Read what is made of a library.

    Parameters
    ----------
    path : path
        A Zarr store, or an ``.npz`` file as of `hotdask.library.synthe`.
    lte : bool
        The spectra in LTE that lie beside those out of LTE.

    Returns
    -------
    Library
        The rows made, in order; those that failed or are still planned are left out.

    Raises
    ------
    InputError
        If nothing is made yet, a chunk is damaged or absent, or the file is another format, of other labels or another
        grid; if spectra in LTE are wanted and there are none beside the others.
    """
    path = Path(path)
    alone = f"{path}: has one set of spectra, none in LTE beside those out of LTE; leave out --lte"
    if path.suffix == ".npz":
        if lte:
            raise InputError(alone)
        return read_npz(path)
    group, name = _open(path), "flux_lte" if lte else "flux"
    made = _read(group, path, "status") == MADE
    if not made.any():
        raise InputError(f"{path}: none of {len(made)} syntheses is made; run `hotdask library build`")
    flux = np.empty((int(made.sum()), N_FINE), dtype=np.float32)
    done = 0
    # Part by part into its place: the whole is never in memory twice.
    for part in np.unique(np.flatnonzero(made) // PART):
        rows = _bounds(group, path, int(part))
        good = _read(group, path, name, rows)[made[rows]]
        # Zarr reads an absent chunk as fill values, without a word.
        if not np.isfinite(good).all():
            if lte and np.isnan(good).all():
                raise InputError(alone)
            raise InputError(f"{path}: {name} of part {part} is absent or not finite; {_again(part)}")
        flux[done : done + len(good)] = good
        done += len(good)
    labels = _read(group, path, "labels")[made]
    if not np.isfinite(labels).all():
        raise InputError(f"{path}: labels are absent; build the library again")
    provenance = library_provenance(path) | ({"spectra": "in LTE"} if lte else {})
    return Library(flux=flux, labels=labels, log_start=LOG_START, name=path.name, provenance=provenance)


def rejects(path: str | Path) -> pd.DataFrame:
    """The syntheses that failed.

    Returns
    -------
    pandas.DataFrame
        ``row`` in the library, the 11 labels, ``reason``.

    Raises
    ------
    InputError
        As `library_provenance`; if a variable is damaged.
    """
    group = _open(path)
    rows = np.flatnonzero(_read(group, path, "status") == FAILED)
    table = pd.DataFrame(_read(group, path, "labels")[rows], columns=list(LABEL_NAMES))
    table.insert(0, "row", rows)
    table["reason"] = np.asarray(_read(group, path, "reason"), dtype=object)[rows]
    return table
