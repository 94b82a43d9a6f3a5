"""Departure coefficients of H, He I and He II of stars hotter than those of BSTAR2006, by our own solution.

`scripts/departures` solves statistical equilibrium on the engine's own structures, 30-45 kK, and writes the table that
is installed with hotdask. At 30 kK it differs from BSTAR2006 by what the two codes differ; that difference is added to
hotter models too, ever less with Teff, so that coefficients are continuous. Metals have those of 30 kK throughout.
"""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np

from hotdask.library.arrays import read_arrays, sha256
from hotdask.library.departures import DEEP, LARGEST, MERGED, Departures

TABLE = Path(__file__).parents[1] / "references" / "departures.npz"
FADE = 5000.0
"""How far above the join the difference between the two solutions is gone [K]."""
_SAME_LEVEL = 1e-3
_ARRAYS = ("teff", "logg", "log_column", "temperature", "ln_b", "z", "charge", "binding")


@functools.cache
def identity() -> str:
    """SHA-256 of the installed table."""
    return sha256(TABLE)


def add_hot_models(departures: Departures, table: Path = TABLE) -> Departures:
    """Coefficients with models of a table above their hottest one.

    Parameters
    ----------
    departures : Departures
    table : path
        As `scripts/departures` writes it.

    Returns
    -------
    Departures
        As given, if the table has no model at their highest Teff to join it there.
    """
    data = read_arrays(table, _ARRAYS, remedy="install hotdask again")
    edge = departures.teff.max()
    join = np.flatnonzero(data["teff"] == edge)
    if not len(join):
        return departures
    own = _as_read(data)
    pairs = _same_levels(departures, data)
    level, column = np.array(list(pairs)), np.array(list(pairs.values()))
    added = np.flatnonzero(data["teff"] > edge)
    ln_b = np.empty((len(added), departures.log_column.shape[1], departures.ln_b.shape[2]), dtype=np.float32)
    log_column = np.empty(ln_b.shape[:2])
    for i, row in enumerate(added):
        layers = data["log_column"][row]
        log_column[i] = np.interp(np.linspace(0, 1, ln_b.shape[1]), np.linspace(0, 1, len(layers)), layers)
        ln_b[i] = np.log(departures.interpolate(edge, data["logg"][row], log_column[i])[:-1].T)
        nearest = join[np.argmin(np.abs(data["logg"][join] - data["logg"][row]))]
        share = max(0.0, 1 - (data["teff"][row] - edge) / FADE)
        for k, j in zip(level, column, strict=True):
            at_edge = np.interp(log_column[i], data["log_column"][nearest], own[nearest, :, j])
            here = np.interp(log_column[i], layers, own[row, :, j])
            ln_b[i, :, k] = here + share * (ln_b[i, :, k] - at_edge)
    return replace(
        departures,
        teff=np.concatenate([departures.teff, data["teff"][added]]),
        logg=np.concatenate([departures.logg, data["logg"][added]]),
        log_column=np.concatenate([departures.log_column, log_column]),
        ln_b=np.concatenate([departures.ln_b, ln_b]),
    )


def _as_read(data: dict[str, np.ndarray]) -> np.ndarray:
    """ln b as `hotdask.library.departures.read_departures` treats it: merged levels alike, one in deep layers."""
    ln_b = np.clip(data["ln_b"].astype(np.float64), -LARGEST, LARGEST)
    for (z, charge), last in MERGED.items():
        rows = np.flatnonzero((data["z"] == z) & (data["charge"] == charge))
        ln_b[:, :, rows[last:]] = ln_b[:, :, rows[last - 1], None]
    hot, deep = DEEP
    return ln_b * np.clip((deep - data["temperature"] / data["teff"][:, None]) / (deep - hot), 0, 1)[:, :, None]


def _same_levels(departures: Departures, data: dict[str, np.ndarray]) -> dict[int, int]:
    """Level of the coefficients to level of the table, where ion and energy are the same."""
    levels = departures.levels
    binding, pairs = levels.limit - levels.energy, {}
    for j, (z, charge, energy) in enumerate(zip(data["z"], data["charge"], data["binding"], strict=True)):
        here = np.flatnonzero((levels.z == z) & (levels.charge == charge) & (np.abs(binding - energy) < _SAME_LEVEL))
        # Terms of one energy come in the same order in both.
        free = [int(k) for k in here if int(k) not in pairs]
        if free:
            pairs[free[0]] = j
    return pairs
