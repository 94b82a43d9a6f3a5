"""Files of named arrays, checked as they are read."""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hotdask.errors import InputError


def read_arrays(path: Path, names: Sequence[str], *, remedy: str) -> dict[str, np.ndarray]:
    """Read arrays of an ``.npz`` file as float64.

    Parameters
    ----------
    path : path
    names : sequence of str
        Arrays that must be there; others are left alone.
    remedy : str
        What the error tells the user to do.

    Raises
    ------
    InputError
        If the file is missing, damaged, lacks an array or holds a value that is not finite.
    """
    try:
        # Opened here, because numpy leaves the file open when it is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            missing = [name for name in names if name not in data]
            if missing:
                raise InputError(f"{path}: the arrays {missing} are missing; {remedy}")
            arrays = {name: data[name].astype(np.float64) for name in names}
    except (
        OSError,
        ValueError,
        EOFError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
    ) as error:
        raise InputError(f"{path}: cannot be read ({error}); {remedy}") from error
    for name, array in arrays.items():
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            raise InputError(f"{path}: {name}{bad[0].tolist()} is not finite; {remedy}")
    return arrays


def has_arrays(path: Path, names: Sequence[str]) -> bool:
    """Whether a file is an ``.npz`` with these arrays; one that cannot be read has none.

    Parameters
    ----------
    path : path
    names : sequence of str
    """
    try:
        with zipfile.ZipFile(path) as file:
            return {f"{name}.npy" for name in names} <= set(file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
