"""Better values for lines of a list: what lists are known to have wrong, twice, or not at all."""

import csv
import functools
from dataclasses import dataclass, replace
from importlib.resources import files

import numpy as np

from hotdask.errors import InputError
from hotdask.library.arrays import sha256
from hotdask.library.atoms import ATOMIC_NUMBER
from hotdask.library.heliumwidths import helium_stark
from hotdask.library.linelist import HC, LineList
from hotdask.windows import air_to_vacuum

TABLE = files("hotdask") / "references" / "lines.csv"
"""The table that comes with the package; its head says what its columns mean."""

_FIELDS = {"loggf": "loggf", "grad": "log_grad", "gstark": "log_gstark", "gvdw": "log_gvdw"}
_WAVELENGTH, _ENERGY, _VALUE = 0.006, 0.008, 0.02
"""How closely a line must agree in wavelength [Å], energy [eV] and the value to be replaced [dex]."""


@dataclass(frozen=True)
class Correction:
    """One line of the table.

    Attributes
    ----------
    z, ion : int
        Atomic number; 1 for the neutral atom.
    wavelength, elo : float
        In vacuum [Å]; energy of the lower level [eV].
    quantity : str
        "loggf", "grad", "gstark" or "gvdw" as in `LineList`, or "remove".
    old, new : float
        Value in the list, NaN if unknown, and the better one [dex]. Of a line to remove: its loggf, and the vacuum
        wavelength of the line that it repeats, without which it stays; NaN: it goes in any case.
    source, reason : str
    """

    z: int
    ion: int
    wavelength: float
    elo: float
    quantity: str
    old: float
    new: float
    source: str
    reason: str


@functools.cache
def read_corrections(path: str | None = None) -> tuple[Correction, ...]:
    """Read a table of corrections.

    Parameters
    ----------
    path : str, optional
        A table in the format of `TABLE`; that one if None.

    Raises
    ------
    InputError
        If a row cannot be read, with its number.

    Examples
    --------
    >>> silicon = [c for c in read_corrections() if (c.z, c.ion, c.quantity) == (14, 3, "loggf")]
    >>> round(max(c.new for c in silicon), 3)
    0.673
    """
    source = path or str(TABLE)
    found = []
    try:
        with open(source, newline="", encoding="utf-8") as file:
            rows = [(number, row) for number, row in enumerate(file, start=1) if not row.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot be read ({error}); install hotdask anew") from error
    reader = csv.DictReader(row for _, row in rows)
    for (number, _), row in zip(rows[1:], reader, strict=False):
        try:
            quantity = row["quantity"]
            if quantity not in (*_FIELDS, "remove"):
                raise ValueError(f"quantity {quantity!r} is none of {[*_FIELDS, 'remove']}")
            new = _number(row["new"])
            found.append(
                Correction(
                    ATOMIC_NUMBER[row["element"]],
                    int(row["ion"]),
                    float(air_to_vacuum(float(row["wavelength"]))),
                    float(row["elo"]),
                    quantity,
                    _number(row["old"]),
                    float(air_to_vacuum(new)) if quantity == "remove" and np.isfinite(new) else new,
                    row["source"],
                    row["reason"],
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source}, line {number}: {error}; see the head of {TABLE.name}") from error
    return tuple(found)


def _number(word: str) -> float:
    return float(word) if word else np.nan


@functools.cache
def identity() -> str:
    """SHA-256 of `TABLE`."""
    return sha256(str(TABLE))


def correct(lines: LineList, corrections: tuple[Correction, ...] | None = None) -> tuple[LineList, np.ndarray]:
    """Apply corrections to a list, and give its He I lines of unknown Stark width those of `helium_stark`.

    A value is replaced only where the list holds the old one, so that a list with a third value keeps it.

    Parameters
    ----------
    lines : LineList
    corrections : tuple of Correction, optional
        `read_corrections` if None.

    Returns
    -------
    lines : LineList
        With better values, and without the lines removed.
    applied : (n_correction,) bool
        Which corrections found their line.
    """
    corrections = read_corrections() if corrections is None else corrections
    values = {name: getattr(lines, name).copy() for name in _FIELDS.values()}
    kept = np.ones(len(lines.z), dtype=bool)
    applied = np.zeros(len(corrections), dtype=bool)

    def near(correction: Correction, wavelength: float) -> np.ndarray:
        start, stop = np.searchsorted(lines.wavelength, [wavelength - _WAVELENGTH, wavelength + _WAVELENGTH])
        rows = np.arange(start, stop)
        same = (lines.z[rows] == correction.z) & (lines.ion[rows] == correction.ion)
        return rows[same & (np.abs(lines.elo[rows] - correction.elo) < _ENERGY)]

    for i, correction in enumerate(corrections):
        rows = near(correction, correction.wavelength)
        removed = correction.quantity == "remove"
        present = getattr(lines, _FIELDS["loggf" if removed else correction.quantity])[rows]
        unknown = np.isnan(present) & np.isnan(correction.old)
        rows = rows[unknown | (np.abs(present - correction.old) < _VALUE)]
        if len(rows) > 1 and correction.quantity in ("loggf", "remove"):
            rows = rows[[np.argmin(np.abs(lines.loggf[rows] - correction.old))]]
        if removed and np.isfinite(correction.new):
            others = near(correction, correction.new)
            rows = rows if len(others[kept[others] & ~np.isin(others, rows)]) else rows[:0]
        if removed:
            kept[rows] = False
        else:
            values[_FIELDS[correction.quantity]][rows] = correction.new
        applied[i] = len(rows) > 0
    helium = (lines.z == 2) & (lines.ion == 1) & np.isnan(values["log_gstark"])
    values["log_gstark"][helium] = np.log10(helium_stark((lines.elo + HC / lines.wavelength)[helium]))
    arrays = {name: getattr(lines, name) for name in ("z", "ion", "wavelength", "elo")} | values
    return replace(lines, **{name: array[kept] for name, array in arrays.items()}), applied
