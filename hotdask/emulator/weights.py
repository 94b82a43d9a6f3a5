"""Emulators on disk: one safetensors file, its card in the header, checked before it is used."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hotdask.emulator.base import pixel_grid
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.emulator.perpixel import PerPixelEmulator
from hotdask.errors import EmulatorError
from hotdask.labels import LABEL_NAMES, LSF_NAMES
from hotdask.shipped import SHIPPED, emulator_path

ARCHITECTURES = {"lowrank": LowRankEmulator, "perpixel": PerPixelEmulator}
_BY_FORMAT = {kind.FORMAT: kind for kind in ARCHITECTURES.values()}
_EXPECTED = {"labels": list(LABEL_NAMES), "lsf": list(LSF_NAMES), "grid": pixel_grid()}
_MAY_BE_INFINITE = {"label_low", "label_high"}
"""A label the library does not bound ends at infinity."""


def save_emulator(emulator: LowRankEmulator | PerPixelEmulator, path: str | Path) -> str:
    """Write an emulator and return its id (the first 16 hex digits of the file's SHA-256).

    Parameters
    ----------
    emulator : LowRankEmulator or PerPixelEmulator
    path : path
        ``.safetensors`` file.
    """
    # One entry: safetensors writes several in any order, and the id is a hash of the file.
    content = {**_EXPECTED, "format": emulator.FORMAT, "card": emulator.card}
    header = {"hotdask": json.dumps(content, sort_keys=True, allow_nan=False)}
    content = save({name: np.ascontiguousarray(array) for name, array in emulator.arrays.items()}, metadata=header)
    write_whole(path, content)
    return _identify(content)


def load_emulator(emulator: str | Path | None = None, *, device: str = "cpu") -> LowRankEmulator | PerPixelEmulator:
    """Read an emulator of any architecture.

    Parameters
    ----------
    emulator : str or path, optional
        Name of a shipped one (`hotdask.shipped`), or a ``.safetensors`` file written by `save_emulator`; default: the
        shipped one that is the default.
    device : str
        Where per-pixel networks are evaluated, ``cpu`` or ``cuda``; a low-rank one is always on the CPU.

    Raises
    ------
    EmulatorError
        If the file is missing, damaged, of another format, or made for other labels or another grid; if an array is
        missing, of another shape, or not finite.
    InputError
        If there is no such device.

    Examples
    --------
    >>> load_emulator().flux([[9550, 3.95, 2, 22, 0.09, -0.2, -0.1, -0.1, -0.6, -0.1, -0.5]]).shape
    (1, 3801)
    """
    path = emulator_path(emulator)
    if path.exists() and not path.is_file():
        # A pipe or a device has no end.
        raise EmulatorError(f"{path}: is no regular file; give the path of a file (.safetensors)")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EmulatorError(
            f"{path}: cannot read the emulator ({error.strerror}); give the name of a shipped one "
            f"({', '.join(SHIPPED)}) or the path of a file"
        ) from error
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise EmulatorError(f"{path}: not an emulator file ({error}); make one with `hotdask train`") from error
    try:
        found = json.loads(header["hotdask"])
        card = dict(found["card"])
    except (KeyError, ValueError, TypeError) as error:
        raise EmulatorError(f"{path}: not an emulator of hotdask (no header); make one with `hotdask train`") from error
    kind = _BY_FORMAT.get(found.get("format"))
    if kind is None:
        raise EmulatorError(
            f"{path}: emulator format is {found.get('format')!r}, this version reads {sorted(_BY_FORMAT)}; "
            "train one with `hotdask train`"
        )
    for field, value in _EXPECTED.items():
        if found.get(field) != value:
            raise EmulatorError(
                f"{path}: emulator {field} is {found.get(field)!r}, this version needs {value!r}; "
                "train one with `hotdask train`"
            )
    _check_arrays(path, arrays, kind.ARRAYS)
    options = {"device": device} if kind is PerPixelEmulator else {}
    return kind(arrays, card, id=_identify(content), **options)


def _check_arrays(path: Path, arrays: dict[str, np.ndarray], shapes: dict[str, tuple]) -> None:
    missing = [name for name in shapes if name not in arrays]
    if missing:
        raise EmulatorError(f"{path}: emulator lacks the arrays {missing}; make it again with `hotdask train`")
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        array = arrays[name]
        if array.ndim == len(shape):
            # The first array that holds a named size sets it for the others.
            for size, wanted in zip(array.shape, shape, strict=True):
                if isinstance(wanted, str):
                    sizes.setdefault(wanted, size)
        expected = tuple(sizes.get(size, size) for size in shape)
        if array.shape != expected:
            raise EmulatorError(
                f"{path}: array {name!r} has shape {array.shape}, not {expected}; make it again with `hotdask train`"
            )
        if array.ndim > 1 and not array.any():
            raise EmulatorError(f"{path}: array {name!r} is all zeros; make it again with `hotdask train`")
        bad = np.isnan(array) if name in _MAY_BE_INFINITE else ~np.isfinite(array)
        if bad.any():
            raise EmulatorError(
                f"{path}: array {name!r} holds {int(bad.sum())} values that are not finite; "
                "make it again with `hotdask train`"
            )


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _identify(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
