"""Evolutionary tracks or isochrones of the user's own, drawn under the stars, and the critical velocity they give."""

from pathlib import Path

import numpy as np
import pandas as pd

from hotdask.errors import InputError
from hotdask.steps.rotation import critical_velocity

COLUMNS: dict[str, tuple[str, ...]] = {
    # Isochrones have initial masses too, another for each point: their age comes first.
    "track": ("track", "log10_isochrone_age_yr", "logAge", "initial_mass", "Mini", "age"),
    "teff": ("teff", "Teff"),
    "log_teff": ("log_teff", "log_Teff", "logTe"),
    "logg": ("logg", "log_g"),
    "mass": ("mass", "star_mass", "Mass"),
    "initial_mass": ("initial_mass", "Mini"),
    "m_ks": ("m_ks", "2MASS_Ks", "Ksmag"),
    "bp_rp_0": ("bp_rp_0",),
}
"""Names a column may have, the first found counts; Teff may be given as its log10 instead. MIST's and PARSEC's."""
_COLORS = (("Gaia_BP_EDR3", "Gaia_RP_EDR3"), ("Gaia_BP_DR2Rev", "Gaia_RP_DR2Rev"), ("G_BPmag", "G_RPmag"))
"""Pairs of columns whose difference is a color that is not there by itself: MIST's and PARSEC's."""
_UNCHANGED = 0.9
"""A star on the zero-age main sequence has this share of its first mass at least; what lost its envelope has less."""
_OTHERS = (".iso", ".cmd", ".eep", ".dat", ".txt")
"""Endings of MIST's and PARSEC's own files: columns between spaces, named in a comment."""


def read_tracks(path: str | Path) -> pd.DataFrame:
    """A table of evolutionary tracks or isochrones.

    Parameters
    ----------
    path : path
        ``.csv`` or ``.parquet``, or a file as MIST and PARSEC give it (`_OTHERS`: columns between spaces, their names
        in the last comment before the numbers). Columns ``teff`` [K] (or ``log_teff``) and ``logg``; ``track`` (what
        tells one line from another, e.g. the initial mass), ``mass`` and ``initial_mass`` [solar masses], ``m_ks`` and
        ``bp_rp_0`` [mag] if they are known. Names of MIST and PARSEC are understood (`COLUMNS`).

    Returns
    -------
    pandas.DataFrame
        ``track`` (str), ``teff``, ``logg``, and what is there of ``mass``, ``initial_mass``, ``m_ks``, ``bp_rp_0``;
        float64. Points keep their order.

    Raises
    ------
    InputError
        If the file cannot be read, or lacks a column or any usable row.
    """
    path = Path(path)
    try:
        table = _read(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"report.tracks = {path}: cannot be read ({error}); give a .csv or .parquet table, or MIST's or PARSEC's "
            f"own file ({', '.join(_OTHERS)})"
        ) from error
    found = {name: next((c for c in names if c in table.columns), None) for name, names in COLUMNS.items()}
    missing = [name for name in ("teff", "logg") if found[name] is None and not (name == "teff" and found["log_teff"])]
    if missing:
        names = {"logg": COLUMNS["logg"], "teff": COLUMNS["teff"] + COLUMNS["log_teff"]}
        known = "; ".join(f"{name} as {', '.join(names[name])}" for name in missing)
        raise InputError(
            f"report.tracks = {path}: no column {' and '.join(missing)}; name it in the first line ({known}). It has "
            f"{', '.join(map(str, [*table][:12]))}{', …' if table.shape[1] > 12 else ''}"
        )
    out = pd.DataFrame(index=table.index)
    out["track"] = "" if found["track"] is None else table[found["track"]].map("{}".format)
    for name in ("teff", "logg", "mass", "initial_mass", "m_ks", "bp_rp_0"):
        if found[name] is not None:
            out[name] = _numbers(table[found[name]])
    if found["teff"] is None:
        out["teff"] = 10 ** _numbers(table[found["log_teff"]])
    if path.suffix == ".eep" and "mass" in out:
        # One star from its birth, whose first mass is named in a comment only.
        out["initial_mass"] = out["mass"].iloc[0]
        out["track"] = f"{out['mass'].iloc[0]:g}"
    pair = next((pair for pair in _COLORS if {*pair} <= {*table.columns}), None)
    if "bp_rp_0" not in out and pair is not None:
        out["bp_rp_0"] = _numbers(table[pair[0]]) - _numbers(table[pair[1]])
    out = out[np.isfinite(out["teff"]) & (out["teff"] > 0)].reset_index(drop=True)
    if out.empty:
        what = found["teff"] or found["log_teff"]
        raise InputError(
            f"report.tracks = {path}: no row of the column {what} is a Teff; give it in K as teff, or as log_teff"
        )
    return out


def _numbers(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce").astype(np.float64)


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix not in _OTHERS:
        return pd.read_csv(path, comment="#")
    names: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith("#"):
                break
            names = line.lstrip("#").split()
    table = pd.read_csv(path, comment="#", sep=r"\s+", header=None)
    if table.shape[1] != len(names):
        raise ValueError(f"{table.shape[1]} columns of numbers under {len(names)} names in the comment before them")
    table.columns = names
    return table


def critical_curve(tracks: pd.DataFrame, *, bins: int = 40) -> pd.DataFrame:
    """Critical velocity along the zero-age main sequence.

    The paper's reading: at each Teff the star of highest log g is of zero age. Of tracks that are one star each, it is
    the highest log g of each track.

    Parameters
    ----------
    tracks : pandas.DataFrame
        What `read_tracks` returns, with ``mass``. Stars that have lost a tenth of their ``initial_mass`` are none of
        the main sequence and left out.
    bins : int
        Steps of log Teff from which one star each is taken, of isochrones.

    Returns
    -------
    pandas.DataFrame
        ``teff`` [K], rising, and ``velocity`` [km/s]; empty where masses are unknown.

    References
    ----------
    Xiang et al. 2022, §5.4.
    """
    if "mass" not in tracks:
        return pd.DataFrame({"teff": [], "velocity": []})
    # Above 5 lie white dwarfs and subdwarfs, which are older, not younger.
    known = tracks[tracks[["logg", "mass"]].notna().all(axis=1) & (tracks["logg"] < 5)]
    if "initial_mass" in known:
        known = known[~(known["mass"] < _UNCHANGED * known["initial_mass"])]
    known = known.reset_index(drop=True)
    mass = known.groupby("track")["mass"]
    if len(mass) > 1 and (mass.max() < 1.5 * mass.min()).all():
        # Tracks of one star each: between them only evolved stars would be found.
        group = known["track"]
    else:
        group = pd.cut(np.log10(known["teff"]), bins, labels=False) if len(known) > 1 else np.zeros(len(known))
    zero_age = known.loc[known.groupby(group)["logg"].idxmax()].sort_values("teff")
    velocity = critical_velocity(zero_age["mass"], zero_age["logg"])
    return pd.DataFrame({"teff": zero_age["teff"].to_numpy(), "velocity": velocity})
