"""Tables of model errors: wavelength and error, one row a pixel of the rest grid or coarser."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hotdask.errors import InputError
from hotdask.readers.columns import numbers
from hotdask.readers.usertables import read_user_table
from hotdask.schema import MODEL_ERROR, to_table
from hotdask.store.parquet import write_table
from hotdask.windows import rest_wavelength

_LARGEST = 1.0


@dataclass(frozen=True)
class ModelError:
    """Error of the models in each pixel.

    Attributes
    ----------
    values : (3801,) float32
        In units of the continuum.
    id : str
        SHA-256 of the values, 16 hex digits.
    """

    values: np.ndarray
    id: str


def read_model_error(path: str | Path) -> ModelError:
    """Read a table of model errors.

    Parameters
    ----------
    path : path
        .parquet, .csv or .fits with columns ``wavelength`` [vacuum Å, rest frame, increasing] and ``model_error``
        [continuum = 1]; in between it is interpolated, outside it is 0.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a column, or holds what cannot be an error.
    """
    where = f"fit.model_error = '{path}'"
    table, units = read_user_table(str(path), where)
    missing = [name for name in ("wavelength", "model_error") if name not in table.columns]
    if missing:
        raise InputError(f"{where} lacks the column {', '.join(missing)}; make one with `hotdask model-error RUN`")
    wavelength, error = (
        numbers(table[name], where, unit=unit, stored=units[name])
        for name, unit in (("wavelength", "Angstrom"), ("model_error", ""))
    )
    if not len(table) or not (np.isfinite(wavelength).all() and (np.diff(wavelength) > 0).all()):
        raise InputError(f"{where}: wavelength must be numbers that increase [vacuum Å]; sort or mend the table")
    if not ((error >= 0) & (error <= _LARGEST)).all():
        raise InputError(f"{where}: model_error must lie between 0 and {_LARGEST:g}, the continuum; mend the table")
    values = np.interp(rest_wavelength(), wavelength, error, left=0.0, right=0.0).astype(np.float32)
    return ModelError(values, hashlib.sha256(values.tobytes()).hexdigest()[:16])


def write_model_error(path: str | Path, error: np.ndarray, n: np.ndarray) -> None:
    """Write a table of model errors as Parquet.

    Parameters
    ----------
    path : path
    error : (3801,) float
        In units of the continuum.
    n : (3801,) int
        Residuals each rests on.
    """
    frame = pd.DataFrame({"wavelength": rest_wavelength(), "model_error": error, "n": n})
    write_table(path, to_table(frame, MODEL_ERROR))
