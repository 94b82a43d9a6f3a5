"""Columns of a user's table: found whatever the case of their names, in our units, with one spelling of "none".

Surveys write "none" as -9999, -999, 99.99 magnitudes, null or nothing at all, and positions as degrees, radians or
sexagesimal text. What is none of these and no number is refused by name: a value that is dropped in silence is a star
that is lost in silence.
"""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
from astropy import units as u
from astropy.coordinates import Angle

from hotdask.errors import InputError

NAMES: dict[str, tuple[str, ...]] = {
    "ra": ("_raj2000", "raj2000", "ra_icrs", "_ra_icrs", "ra_j2000", "radeg", "ra_deg", "ra2000", "alpha_j2000"),
    "dec": (
        *("_dej2000", "dej2000", "de_icrs", "_de_icrs", "dec_icrs", "dec_j2000", "decj2000", "dedeg", "decdeg"),
        *("de_deg", "dec_deg", "dec2000", "de2000", "delta_j2000"),
    ),
}
"""Other names of columns, in lower case; the first that a table has is taken."""

_WORDS = frozenset(("", "null", "nan", "none", "n/a", "na", "<na>", "--", "-", "...", "masked", "nodata"))
_NINES = np.unique([round(10.0**k - 10.0**-j, 4) for k in range(3, 8) for j in range(5)])
_HUNDRED = np.unique([round(100 - 10.0**-j, 4) for j in range(5)])
_LOWEST = np.array([-(2.0**15), -(2.0**31), -(2.0**63)])
"""What integers without a value are filled with."""
_SEXAGESIMAL = re.compile(r"[+-]?\d{1,3}(?:[:hd°]|\s+)\s*\d{1,2}(?:[:m'′]|\s+)?\s*(?:\d{1,2}(?:\.\d*)?)?\s*[s\"″]?")
_COMMA = re.compile(r"[+-]?\d+,\d+")
_GAIA = re.compile(r"(?:gaia)?\s*(?:e?dr\s*\d)?\s*(\d{1,19})(?:\.0*)?", re.IGNORECASE)
_USUAL = {"degrees": "deg", "radians": "rad", "km/sec": "km/s", "kms-1": "km/s", "mas/year": "mas/yr", "parsec": "pc"}
"""Units that astropy does not know by these names."""
_SHOWN = 3
_EXACT = 2.0**53
"""Integers beyond this do not survive a float."""


def find_column(names: Iterable[str], wanted: str) -> str | None:
    """The column of a table that is meant by a name.

    Parameters
    ----------
    names : iterable of str
        Columns of the table.
    wanted : str
        Found as it is, else in any case, else (right ascension and declination) by another usual name.

    Returns
    -------
    str or None

    Raises
    ------
    InputError
        If several columns have that name but for their case, and none exactly.

    Examples
    --------
    >>> find_column(["RAJ2000", "DEJ2000"], "ra"), find_column(["RV"], "rv"), find_column(["RV"], "dec")
    ('RAJ2000', 'RV', None)
    """
    names = list(names)
    if wanted in names:
        return wanted
    for name in (wanted.lower(), *NAMES.get(wanted.lower(), ())):
        found = [n for n in names if n.strip().lower() == name]
        if len(found) > 1:
            raise InputError(f"the columns {' and '.join(found)} differ only in case; keep one of them")
        if found:
            return found[0]
    return None


def is_none(values: np.ndarray, *, bounded: bool = False) -> np.ndarray:
    """Where numbers stand for "none": -999, -9999 and their like, and what integers are filled with.

    Parameters
    ----------
    values : (n,) float64
    bounded : bool
        Whether they are magnitudes or errors, for which surveys also write 99, 99.99, 999 and -99.

    Returns
    -------
    (n,) bool

    Examples
    --------
    >>> is_none(np.array([-9999.0, -999.99, 99.99, 5.0])).tolist()
    [True, True, False, False]
    >>> is_none(np.array([99.99, -99.0, 999.0, 15.2]), bounded=True).tolist()
    [True, True, True, False]
    """
    marks = [-_NINES, _LOWEST]
    if bounded:
        marks += [_NINES, _HUNDRED, -_HUNDRED]
    marks = np.sort(np.concatenate(marks))
    values = np.asarray(values, dtype=np.float64)
    above = np.searchsorted(marks, values)
    # Many surveys write single precision.
    near = (np.abs(values - marks[np.clip(above - k, 0, len(marks) - 1)]) <= 2e-7 * np.abs(values) for k in (0, 1))
    return np.logical_or(*near) & np.isfinite(values)


def numbers(column: pd.Series, where: str, *, unit: str = "", stored: str = "") -> np.ndarray:
    """Numbers of a column.

    Parameters
    ----------
    column : (n,) pandas.Series
        Of any type.
    where : str
        What errors call its table.
    unit : str
        Wanted, in astropy's spelling; empty: as they are.
    stored : str
        What the table says its unit is; empty if nothing.

    Returns
    -------
    (n,) float64
        NaN where there is none (`is_none`, or a gap).

    Raises
    ------
    InputError
        If values are no numbers, or the unit is not understood or of another kind.

    Examples
    --------
    >>> numbers(pd.Series(["1500", "null", "-9999"], name="rv"), "t.csv", unit="km/s", stored="m/s").tolist()
    [1.5, nan, nan]
    """
    values, wrong = _parse(column)
    _refuse(column, wrong, where)
    bounded = unit == "mag" or str(column.name).lower().endswith(("err", "error"))
    values[is_none(values, bounded=bounded)] = np.nan
    return values * _factor(unit, stored, f"{where}, column '{column.name}'")


def angles(column: pd.Series, where: str, *, stored: str = "", hours: bool = False) -> np.ndarray:
    """Right ascension or declination.

    Parameters
    ----------
    column : (n,) pandas.Series
        Numbers, or sexagesimal text.
    where : str
        What errors call its table.
    stored : str
        What the table says its unit is; empty: degrees.
    hours : bool
        Whether sexagesimal text counts hours where the unit does not say.

    Returns
    -------
    (n,) float64
        [deg]; NaN where there is none.

    Raises
    ------
    InputError
        As `numbers`.

    Examples
    --------
    >>> angles(pd.Series(["10:00:00", ""], name="ra"), "t.csv", hours=True).round(6).tolist()
    [150.0, nan]
    """
    values, wrong = _parse(column)
    unit = stored.lower().replace('"', "").strip()
    if wrong.any():
        text = column.astype(object).where(column.notna(), "").astype(str).str.strip()[wrong]
        _refuse(column, wrong & ~column.astype(str).str.strip().map(_is_sexagesimal).to_numpy(), where)
        in_hours = hours if unit in ("", "h:m:s") else unit in ("h", "hr", "hour", "hourangle")
        try:
            found = Angle(text.to_list(), u.hourangle if in_hours else u.deg)
        except (ValueError, TypeError) as error:
            raise InputError(f"{where}, column '{column.name}': {error}; give degrees") from error
        values[~wrong & is_none(values)] = np.nan
        if np.isfinite(values).any():
            raise InputError(f"{where}, column '{column.name}': numbers and sexagesimal text; give one of both")
        values[wrong] = found.deg
        return values
    values[is_none(values)] = np.nan
    unit = "hourangle" if hours and unit in ("h", "hr", "hour") else unit
    return values * _factor("deg", "" if ":" in unit else unit, f"{where}, column '{column.name}'")


def _is_sexagesimal(text: str) -> bool:
    return _SEXAGESIMAL.fullmatch(text) is not None


def ids(column: pd.Series) -> pd.Series:
    """Identifiers that are integers, as text of digits; empty where there is none.

    Parameters
    ----------
    column : (n,) pandas.Series
        Integers, text of digits with or without ``Gaia DR3`` before them, or floats.

    Returns
    -------
    (n,) pandas.Series of str
        Floats too large to be told from their neighbors count as none.

    Examples
    --------
    >>> ids(pd.Series(["Gaia DR3 123", " 45", "x"])).tolist(), ids(pd.Series([7.0, 1e18])).tolist()
    (['123', '45', ''], ['7', ''])
    """
    if pd.api.types.is_float_dtype(column):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        whole = np.isfinite(values) & (values >= 0) & (values < _EXACT) & (values == np.floor(values))
        return pd.Series([str(int(v)) if w else "" for v, w in zip(values, whole, strict=True)], index=column.index)
    text = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    found = text.map(_GAIA.fullmatch)
    return found.map(lambda match: str(int(match[1])) if match else "").astype("str")


def _parse(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Values, NaN for gaps, and where something stands that is no number."""
    given = column.notna().to_numpy(copy=True)
    if pd.api.types.is_bool_dtype(column):
        return np.full(len(column), np.nan), given
    if pd.api.types.is_numeric_dtype(column):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan).copy()
        return values, np.zeros(len(column), dtype=bool)
    text = column.astype(object)
    text = text.map(lambda v: v.decode("latin-1") if isinstance(v, bytes) else v)
    given &= ~text.map(lambda v: isinstance(v, str) and v.strip().lower() in _WORDS).to_numpy(bool)
    values = pd.to_numeric(text.where(given), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan).copy()
    wrong = given & np.isnan(values) | text.map(lambda v: isinstance(v, bool | np.bool_)).to_numpy(bool)
    return values, wrong


def _refuse(column: pd.Series, wrong: np.ndarray, where: str) -> None:
    rows = np.flatnonzero(wrong)
    if rows.size:
        shown = ", ".join(f"row {i + 1}: {column.astype(object).iloc[i]!r}" for i in rows[:_SHOWN])
        comma = any(_COMMA.fullmatch(str(column.iloc[i]).strip()) for i in rows[:_SHOWN])
        remedy = "write decimals with a point" if comma else "correct them or leave them empty"
        raise InputError(f"{where}, column '{column.name}': {rows.size} value(s) are not numbers ({shown}); {remedy}")


def _factor(unit: str, stored: str, where: str) -> float:
    """What to multiply by."""
    stored = stored.strip()
    if not unit or not stored or stored == unit or stored.lower() in ("none", "-", "---", "null"):
        return 1.0
    if unit == "mag" and "mag" in stored.lower():
        return 1.0
    try:
        return _unit(stored).to(unit)
    except (u.UnitConversionError, ValueError, TypeError) as error:
        raise InputError(
            f"{where}: its unit is '{stored}', wanted is {unit}; convert it, correct the unit, or rename the column"
        ) from error


def _unit(text: str) -> u.UnitBase:
    text = _USUAL.get(text.lower(), text)
    for style in ("generic", "cds", "vounit"):
        try:
            return u.Unit(text, format=style)
        except (ValueError, TypeError):
            continue
    raise ValueError(f"'{text}' is no unit")
