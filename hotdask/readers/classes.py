"""Which pipeline classes are among those asked for: one rule for spectra that are read and for tables of a survey."""

import re
from collections.abc import Sequence

import pandas as pd

_OF_STARS = re.compile(r"\s*(?:star.*|unknown|non|none|nan|n/a|<na>)?\s*", re.IGNORECASE | re.DOTALL)
"""Classes whose subclass may be a type of star: that of stars, and no class."""


def class_pattern(classes: Sequence[str]) -> re.Pattern[str]:
    """What the name of a class or subclass begins with if it is one of these.

    Parameters
    ----------
    classes : sequence of str
        How names begin. A single letter is a spectral type: A is that of A5V and Am, not of AGN.

    Examples
    --------
    >>> begins = class_pattern(["O", "B", "WD"])
    >>> [bool(begins.match(name)) for name in ("OB", "B9.5V", " Be", "WDhotter", "Binary", "BROADLINE", "A0")]
    [True, True, True, True, False, False, False]
    """
    words = (re.escape(name) + ("(?![A-Za-z]{2})" if len(name) == 1 else "") for name in classes)
    return re.compile(rf"\s*(?:{'|'.join(words)})")


def is_selected(class_: str, subclass: str, classes: Sequence[str]) -> bool:
    """Whether a spectrum is of one of the classes.

    Parameters
    ----------
    class_, subclass : str
        As the pipeline says. The subclass counts only if the class is STAR, or unknown: those of galaxies and quasars
        say something else.
    classes : sequence of str
        See `class_pattern`.

    Examples
    --------
    >>> is_selected("STAR", "A5V", ("A",)), is_selected("GALAXY", "A", ("A",)), is_selected("QSO", "", ("QSO",))
    (True, False, True)
    """
    begins = class_pattern(classes)
    return bool(begins.match(class_) or (_OF_STARS.fullmatch(class_) and begins.match(subclass)))


def are_selected(frame: pd.DataFrame, columns: Sequence[str], classes: Sequence[str]) -> pd.Series:
    """Which rows of a table are of one of the classes.

    Parameters
    ----------
    frame : pandas.DataFrame
    columns : sequence of str
        Its columns of classes. Beside one named ``class`` the others are subclasses; without one each counts.
    classes : sequence of str
        See `class_pattern`.

    Returns
    -------
    pandas.Series
        bool, with the table's index.
    """
    texts = {name: frame[name].astype("str").fillna("") for name in columns}
    begins = class_pattern(classes)
    star = pd.Series(True, index=frame.index)
    for name, text in texts.items():
        if name.lower() == "class":
            star &= text.str.fullmatch(_OF_STARS).astype(bool)
    found = pd.Series(False, index=frame.index)
    for name, text in texts.items():
        one = text.str.match(begins).astype(bool)
        found |= one if name.lower() == "class" else one & star
    return found
