"""Evolutionary tracks or isochrones of the user's own, drawn under the stars, and the critical velocity they give."""

from pathlib import Path

import numpy as np
import pandas as pd

from hotdask.errors import InputError
from hotdask.steps.rotation import critical_velocity

COLUMNS: dict[str, tuple[str, ...]] = {
    "track": ("track", "initial_mass", "Mini", "age", "log10_isochrone_age_yr", "logAge"),
    "teff": ("teff", "Teff"),
    "log_teff": ("log_teff", "log_Teff", "logTe"),
    "logg": ("logg", "log_g"),
    "mass": ("mass", "star_mass", "Mass"),
    "m_ks": ("m_ks", "2MASS_Ks", "Ksmag"),
    "bp_rp_0": ("bp_rp_0",),
}
"""Names a column may have, the first found counts; Teff may be given as its log10 instead. MIST's and PARSEC's."""


def read_tracks(path: str | Path) -> pd.DataFrame:
    """A table of evolutionary tracks or isochrones.

    Parameters
    ----------
    path : path
        ``.csv`` or ``.parquet`` with columns ``teff`` [K] (or ``log_teff``) and ``logg``; ``track`` (what tells one
        line from another, e.g. the initial mass), ``mass`` [solar masses], ``m_ks`` and ``bp_rp_0`` [mag] if they
        are known. Names of MIST and PARSEC are understood (`COLUMNS`).

    Returns
    -------
    pandas.DataFrame
        ``track`` (str), ``teff``, ``logg``, and what is there of ``mass``, ``m_ks``, ``bp_rp_0``; float64. Points keep
        their order.

    Raises
    ------
    InputError
        If the file cannot be read, or lacks a column or any usable row.
    """
    path = Path(path)
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, comment="#")
    except (OSError, ValueError) as error:
        raise InputError(f"report.tracks = {path}: cannot be read ({error}); give a .csv or .parquet table") from error
    found = {name: next((c for c in names if c in table.columns), None) for name, names in COLUMNS.items()}
    missing = [name for name in ("teff", "logg") if found[name] is None and not (name == "teff" and found["log_teff"])]
    if missing:
        raise InputError(f"report.tracks = {path}: no column {' and '.join(missing)} (in K, dex); it has {[*table]}")
    out = pd.DataFrame(index=table.index)
    out["track"] = "" if found["track"] is None else table[found["track"]].map("{}".format)
    for name in ("teff", "logg", "mass", "m_ks", "bp_rp_0"):
        if found[name] is not None:
            out[name] = pd.to_numeric(table[found[name]], errors="coerce").astype(np.float64)
    if found["teff"] is None:
        out["teff"] = 10 ** pd.to_numeric(table[found["log_teff"]], errors="coerce").astype(np.float64)
    out = out[np.isfinite(out["teff"]) & (out["teff"] > 0)].reset_index(drop=True)
    if out.empty:
        raise InputError(f"report.tracks = {path}: no row has a Teff; give it in K as teff, or as log_teff")
    return out


def critical_curve(tracks: pd.DataFrame, *, bins: int = 40) -> pd.DataFrame:
    """Critical velocity along the zero-age main sequence.

    The paper's reading: at each Teff the star of highest log g is of zero age. Of tracks that are one star each, it is
    the highest log g of each track.

    Parameters
    ----------
    tracks : pandas.DataFrame
        What `read_tracks` returns, with ``mass``.
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
    known = tracks[tracks[["logg", "mass"]].notna().all(axis=1) & (tracks["logg"] < 5)].reset_index(drop=True)
    mass = known.groupby("track")["mass"]
    if len(mass) > 1 and (mass.max() < 1.5 * mass.min()).all():
        # Tracks of one star each: between them only evolved stars would be found.
        group = known["track"]
    else:
        group = pd.cut(np.log10(known["teff"]), bins, labels=False) if len(known) > 1 else np.zeros(len(known))
    zero_age = known.loc[known.groupby(group)["logg"].idxmax()].sort_values("teff")
    velocity = critical_velocity(zero_age["mass"], zero_age["logg"])
    return pd.DataFrame({"teff": zero_age["teff"].to_numpy(), "velocity": velocity})
