"""Labels and kinds of stars from the literature, on the scale of hotdask's own labels.

[X/H] is a number only with a Sun. That of hotdask's is the mixture of the model atmospheres
(`hotdask.library.abundances.SOLAR`, Fe 7.67 on the scale of hydrogen = 12); the literature's is today's (`SUN`,
Fe 7.50). So a star with the Sun's own iron has [Fe/H] = 0.00 there and −0.17 here, and every abundance taken from a
paper is converted before it is compared.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pandas as pd

from hotdask.errors import InputError
from hotdask.labels import ABUNDANCES, INDEX, LABEL_NAMES, N_LABELS
from hotdask.library.abundances import SOLAR
from hotdask.library.atoms import ATOMIC_NUMBER
from hotdask.readers.usertables import read_user_table
from hotdask.validation.kinds import KINDS

SUN: dict[str, float] = {"c_h": 8.43, "n_h": 7.83, "o_h": 8.69, "si_h": 7.51, "s_h": 7.12, "fe_h": 7.50}
"""log10(N_X/N_H) + 12 of the Sun that [X/H] in the literature refers to (Asplund et al. 2009, ARA&A 47, 481)."""

_ELEMENT = {name: name.removesuffix("_h").capitalize() for name in ABUNDANCES}
_OWN = "nlte"
_OWN_REFERENCE = "Xiang et al. 2022, Tables 3 and 4"


@dataclass(frozen=True, eq=False)
class Bibliography:
    """What is known of stars by name.

    Attributes
    ----------
    labels, errors : mapping of str to (11,) float64
        By `plain_name`, in the units and on the scale of `hotdask.labels`; NaN where unknown.
    reference : mapping of str to str
        Where a star's Teff is from.
    kind : mapping of str to str
        One of `hotdask.validation.kinds.KINDS`.
    """

    labels: Mapping[str, np.ndarray]
    errors: Mapping[str, np.ndarray]
    reference: Mapping[str, str]
    kind: Mapping[str, str]


def plain_name(name: str) -> str:
    """A star's name without what catalogs write in different ways.

    Examples
    --------
    >>> [plain_name(n) for n in ("HD000886", "HD 886", "HD 029375         Cl", "bd+30 2431", "BD+302431")]
    ['HD886', 'HD886', 'HD29375', 'BD+302431', 'BD+302431']
    """
    name = re.sub(r"\s+Cl$", "", name.strip())
    name = re.sub(r"[\s_]", "", name).upper()
    return re.sub(r"^(HD|HR)0+", r"\1", name)


def zero_point(name: str) -> float:
    """log10(N_X/N_H) + 12 of a star whose [X/H] is 0 in hotdask.

    Parameters
    ----------
    name : str
        A label of `hotdask.labels.ABUNDANCES`.

    Examples
    --------
    >>> [round(zero_point(name), 2) for name in ("fe_h", "o_h", "c_h", "si_h")]
    [7.67, 8.93, 8.56, 7.55]
    """
    return float(12 + SOLAR[ATOMIC_NUMBER[_ELEMENT[name]] - 1] - SOLAR[0])


def from_solar(labels: np.ndarray) -> np.ndarray:
    """Labels (..., 11) whose [X/H] refer to `SUN`, on the scale of hotdask.

    Examples
    --------
    >>> sun = np.array([9500, 4, 2, 0, 0.09, 0, 0, 0, 0, 0, 0.0])
    >>> from_solar(sun)[INDEX["c_h"] :].round(2).tolist()
    [-0.13, -0.22, -0.24, -0.04, -0.09, -0.17]
    """
    labels = np.array(labels, dtype=np.float64)
    for name, step in conversion().items():
        labels[..., INDEX[name]] += step
    return labels


def conversion() -> dict[str, float]:
    """What is added to each [X/H] of the literature: `SUN` less `zero_point` [dex].

    Examples
    --------
    >>> round(conversion()["fe_h"], 2)
    -0.17
    """
    return {name: SUN[name] - zero_point(name) for name in ABUNDANCES}


def read_bibliography(folder=None) -> Bibliography:
    """The tables that come along: ``standards.csv``, ``nlte.csv`` and ``kinds.csv`` of ``hotdask/references``.

    Parameters
    ----------
    folder : path, optional
        Another folder of the same three tables.

    Raises
    ------
    InputError
        If a table cannot be read, or names a label or kind that does not exist.

    Examples
    --------
    >>> known = read_bibliography()
    >>> known.labels["HD886"][[0, 1, INDEX["fe_h"]]].round(2).tolist(), known.kind["HD27295"]
    ([22000.0, 3.95, -0.15], 'peculiar')
    """
    folder = files("hotdask") / "references" if folder is None else folder
    standards, wide, kinds = (_read(folder, name) for name in ("standards", _OWN, "kinds"))
    labels: dict[str, np.ndarray] = {}
    errors: dict[str, np.ndarray] = {}
    reference: dict[str, str] = {}
    for row in wide.itertuples():
        name = plain_name(row.name)
        values = np.array([[getattr(row, f"{lb}{end}") for lb in LABEL_NAMES] for end in ("", "_err")], dtype=float)
        labels[name], errors[name], reference[name] = from_solar(values[0]), values[1], _OWN_REFERENCE
    for row in standards.itertuples():
        name = plain_name(row.name)
        index, value = _label(row.label, float(row.value))
        for table in (labels, errors):
            table.setdefault(name, np.full(N_LABELS, np.nan))
        labels[name][index], errors[name][index] = value, row.error
        if row.label == "teff":
            reference[name] = row.reference
    unknown = set(kinds["kind"]) - set(KINDS)
    if unknown:
        raise InputError(f"kinds.csv: no kind is called {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    kind = {plain_name(name): kind for name, kind in zip(kinds["name"], kinds["kind"], strict=True)}
    return Bibliography(labels, errors, reference, kind)


def known_labels(
    names: Sequence[str], own: np.ndarray, source: Sequence[str], known: Bibliography
) -> tuple[np.ndarray, list[str]]:
    """Labels to compare with: the bibliography's of its stars, all others as their library gives them.

    Parameters
    ----------
    names : sequence of str
        Of the stars.
    own : (n, 11) float64
        Labels by the library, [X/H] relative to `SUN`; NaN where it gives none.
    source : sequence of str
        What to call the library.
    known : Bibliography

    Returns
    -------
    labels : (n, 11) float64
        On the scale of hotdask.
    reference : list of str
        Where Teff is from.
    """
    labels, reference = from_solar(own), list(source)
    for i, name in enumerate(map(plain_name, names)):
        if name in known.labels:
            labels[i], reference[i] = known.labels[name], known.reference.get(name, reference[i])
    return labels, reference


def _read(folder, name: str) -> pd.DataFrame:
    table, _ = read_user_table(str(folder / f"{name}.csv"), f"bibliography '{name}.csv'")
    # Missing numbers as NaN, not as pandas' NA, which no array holds.
    return table.astype({c: "float64" for c in table.columns if pd.api.types.is_numeric_dtype(table[c])})


def _label(name: str, value: float) -> tuple[int, float]:
    """Index of a label, and its value on hotdask's scale, from a row of ``standards.csv``."""
    for label, element in _ELEMENT.items():
        if name == f"eps_{element}":
            return INDEX[label], value - zero_point(label)
    if name not in INDEX or name in ABUNDANCES:
        raise InputError(f"standards.csv: '{name}' is neither a label of hotdask.labels nor eps_C, eps_N …; correct it")
    return INDEX[name], value
