"""Isochrones as a place to draw labels from, uniform in evolutionary phase."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.table import Table

from hotdask.errors import InputError, SettingsError

COLUMNS: dict[str, tuple[str, ...]] = {
    "log_teff": ("log_teff", "log_Teff", "logTe"),
    "teff": ("teff", "Teff"),
    "logg": ("logg", "log_g"),
    "fe_h": ("fe_h", "[Fe/H]_init", "[Fe/H]", "MH"),
    "eep": ("eep", "EEP", "phase", "label"),
}
"""Names a column may have, the first found counts; Teff may be given as its log10 instead. MIST's and PARSEC's."""


@dataclass(frozen=True)
class Isochrones:
    """Points of isochrones.

    Attributes
    ----------
    points : (n, 3) float64
        log10 Teff [K], log g [dex(cm/s2)], [Fe/H] [dex].
    eep : (n,) float64
        Equivalent evolutionary point, or another number that says the phase.
    """

    points: np.ndarray
    eep: np.ndarray

    def within(self, ranges: Mapping[str, tuple[float, float]]) -> "Isochrones":
        """The points within ranges of teff, logg and fe_h.

        Raises
        ------
        SettingsError
            If there are none.
        """
        values = np.column_stack([10 ** self.points[:, 0], self.points[:, 1:]])
        low, high = np.array([ranges[name] for name in ("teff", "logg", "fe_h")]).T
        inside = ((values >= low) & (values <= high)).all(axis=1)
        if not inside.any():
            raise SettingsError(
                f"none of {len(inside)} points of the isochrones lies within sampling.ranges; widen them, or give "
                "isochrones of hot stars"
            )
        return Isochrones(self.points[inside], self.eep[inside])

    def pick(self, u: np.ndarray) -> np.ndarray:
        """Points for numbers in 0-1: every phase alike, and every point of one phase alike.

        Isochrones with even steps of log age are so sampled evenly in log age, those of many masses as the table has
        them.

        Parameters
        ----------
        u : (m,) float64
            Between 0 and 1.

        Returns
        -------
        (m, 3) float64
            log10 Teff, log g, [Fe/H].

        Examples
        --------
        >>> table = Isochrones(np.array([[4.0, 4, 0], [4.1, 4, 0], [4.2, 4, 0], [4.3, 3, 0]]), np.array([1, 1, 1, 2]))
        >>> table.pick(np.array([0.1, 0.4, 0.6, 0.9]))[:, 0].tolist()
        [4.0, 4.2, 4.3, 4.3]
        """
        # Neighbors in the order are neighbors in the diagram, so that a sequence without gaps leaves none here.
        order = np.lexsort((self.points[:, 0], self.points[:, 2], self.eep))
        _, phase, members = np.unique(self.eep, return_inverse=True, return_counts=True)
        weight = 1 / members[phase][order]
        edges = np.cumsum(weight)
        rows = np.searchsorted(edges / edges[-1], u, side="right")
        return self.points[order[np.minimum(rows, len(order) - 1)]]


def read_isochrones(path: str | Path) -> Isochrones:
    """Read a table of isochrones.

    Parameters
    ----------
    path : path
        ``.csv``, ``.parquet``, ``.ecsv`` or ``.fits`` with one row a point, of any number of isochrones; columns as in
        `COLUMNS`. Rows that are not finite are left out.

    Raises
    ------
    InputError
        If it is missing, no such table, lacks a column, or has no finite row.
    """
    path = Path(path)
    try:
        if path.suffix == ".csv":
            frame = pd.read_csv(path)
        elif path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        elif path.suffix in (".ecsv", ".fits"):
            frame = Table.read(path).to_pandas()
        else:
            raise InputError(f"{path}: give isochrones as .csv, .parquet, .ecsv or .fits")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a table of isochrones ({error})") from error
    named = {name: next((n for n in names if n in frame.columns), None) for name, names in COLUMNS.items()}
    if named["log_teff"] is None:
        named["log_teff"] = named["teff"]
    missing = {name: COLUMNS[name] for name in ("log_teff", "logg", "fe_h", "eep") if named[name] is None}
    if missing:
        raise InputError(
            f"{path}: lacks columns, any of "
            + "; ".join("/".join(names) for names in missing.values())
            + f"; it has {list(frame.columns)}"
        )
    columns = [named[name] for name in ("log_teff", "logg", "fe_h", "eep")]
    values = frame[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64, copy=True)
    if named["log_teff"] == named["teff"]:
        with np.errstate(divide="ignore", invalid="ignore"):
            values[:, 0] = np.log10(values[:, 0])
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        raise InputError(f"{path}: no row has a finite Teff, log g, [Fe/H] and phase")
    return Isochrones(values[:, :3], values[:, 3])
