"""Emulators on disk: one safetensors file, its card in the header, checked before it is used."""

import hashlib
import json
from importlib import resources
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hotdask.emulator.lowrank import ARRAYS, LowRankEmulator, pixel_grid
from hotdask.errors import EmulatorError
from hotdask.labels import LABEL_NAMES, LSF_NAMES

FORMAT = "hotdask-lowrank-1"
_EXPECTED = {"format": FORMAT, "labels": list(LABEL_NAMES), "lsf": list(LSF_NAMES), "grid": pixel_grid()}


def default_emulator() -> Path:
    """Path of the emulator shipped with the package."""
    return Path(str(resources.files("hotdask.emulator") / "default" / "emulator.safetensors"))


def save_emulator(emulator: LowRankEmulator, path: str | Path) -> str:
    """Write an emulator and return its id (the first 16 hex digits of the file's SHA-256).

    Parameters
    ----------
    emulator : LowRankEmulator
    path : path
        ``.safetensors`` file.
    """
    # One entry: safetensors writes several in any order, and the id is a hash of the file.
    header = {"hotdask": json.dumps({**_EXPECTED, "card": emulator.card}, sort_keys=True, allow_nan=False)}
    content = save({name: np.ascontiguousarray(array) for name, array in emulator.arrays.items()}, metadata=header)
    Path(path).write_bytes(content)
    return _identify(content)


def load_emulator(path: str | Path | None = None) -> LowRankEmulator:
    """Read an emulator.

    Parameters
    ----------
    path : path, optional
        ``.safetensors`` file written by `save_emulator`; default: the one shipped.

    Raises
    ------
    EmulatorError
        If the file is missing, damaged, of another format, or made for other labels or another grid.

    Examples
    --------
    >>> load_emulator().n_basis
    64
    """
    path = default_emulator() if path is None else Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EmulatorError(f"{path}: cannot read the emulator ({error.strerror}); check fit.emulator") from error
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise EmulatorError(f"{path}: not an emulator file ({error}); make one with `hotdask train`") from error
    try:
        found = json.loads(header["hotdask"])
        card = found["card"]
    except (KeyError, ValueError) as error:
        raise EmulatorError(f"{path}: not an emulator of hotdask (no header); make one with `hotdask train`") from error
    for field, value in _EXPECTED.items():
        if found.get(field) != value:
            raise EmulatorError(
                f"{path}: emulator {field} is {found.get(field)!r}, this version needs {value!r}; "
                "train one with `hotdask train`"
            )
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise EmulatorError(f"{path}: emulator lacks the arrays {missing}; make it again with `hotdask train`")
    return LowRankEmulator(arrays, card, id=_identify(content))


def _identify(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
