"""What a library holds, how evenly it fills its labels, and what is wrong with it."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from hotdask.errors import InputError
from hotdask.labels import LABEL_NAMES, RELATIVE
from hotdask.library.spectra import fine_wavelength

STATUS = {0: "planned", 1: "made", 2: "failed"}
"""What the numbers on disk mean."""

MAX_RESIDUAL = 1.5
"""Flux over continuum above which a synthesis is suspect; emission in LTE is far weaker."""

MIN_RESIDUAL = 1e-3
"""Flux over continuum below which a synthesis is suspect: the outermost layers of a star still shine; a saturated core
that falls to nothing has lost its first optical depths in the transfer."""

MAX_FAILED = 0.05
"""Share of failures above which a library has holes."""

TEFF_EDGES = np.array([7000, 8000, 9000, 10000, 12000, 14500, 17500, 21000, 25000, 30000, 37000, 60000.0])
"""Edges of the bins of Teff that trends are told in [K]."""

SHOWN_TEFF = (7500, 9000, 12000, 16000, 22000, 30000, 40000)
"""Of the spectra kept to be drawn [K]; the closest dwarfs of solar iron are taken."""

# Vacuum Å: a line between two stretches of continuum. That of He I stops short of Mg II 4481.
LINES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "h_beta": ((4780, 4795), (4795, 4930), (4930, 4945)),
    "he_i_4471": ((4448, 4458), (4458, 4479), (4488, 4498)),
}

_AXES = ("teff", "logg", "fe_h", "vmic", "n_he", *RELATIVE)


@dataclass(frozen=True)
class LibraryCheck:
    """What `check_library` found.

    Attributes
    ----------
    name : str
        Of the library.
    provenance : mapping
        As stored.
    rows : pandas.DataFrame
        One row a synthesis: ``row``, the 11 labels, ``c_fe`` ... ``s_fe``, ``status`` (a value of `STATUS`),
        ``seconds`` [s], ``reason``, ``lowest`` and ``highest`` flux/continuum (NaN where there is no continuum),
        equivalent widths ``h_beta`` and ``he_i_4471`` [Å], ``nearest`` (see `nearest`).
    trends : pandas.DataFrame
        Median Teff [K] and equivalent widths [Å] by bin of Teff.
    wavelength : (19216,) float64
        Of the spectra, vacuum [Å].
    spectra : list of (int, (19216,) float32)
        Row and flux/continuum of a few syntheses; flux over its median if there is no continuum.
    problems : list of str
        Sentences; empty if nothing is wrong.
    """

    name: str
    provenance: Mapping
    rows: pd.DataFrame
    trends: pd.DataFrame
    wavelength: np.ndarray
    spectra: list[tuple[int, np.ndarray]]
    problems: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """How many syntheses there are, by status; ``planned`` are still to be made."""
        found = self.rows["status"].value_counts()
        return {
            "all": len(self.rows),
            **{status: int(found.get(status, 0)) for status in ("made", "failed", "planned")},
        }

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason made a synthesis fail, the most frequent first."""
        return dict(Counter(self.rows.loc[self.rows["status"] == "failed", "reason"]).most_common())


def check_library(
    read: Callable[[int], Mapping[str, np.ndarray]], n_parts: int, *, name: str, provenance: Mapping
) -> LibraryCheck:
    """Look at every synthesis of a library, one part in memory at a time.

    Parameters
    ----------
    read : callable
        Takes a part's number, returns its variables as `hotdask.store.library.read_part` does. A part that cannot be
        read (InputError) is a problem like another.
    n_parts : int
    name : str
        Of the library.
    provenance : mapping
        What made it.

    Returns
    -------
    LibraryCheck
        A library that is not finished is one with a problem, no error.

    Examples
    --------
    >>> from hotdask.library.spectra import N_FINE
    >>> flux = np.ones((2, N_FINE), np.float32)
    >>> part = {"row": np.arange(2), "labels": np.array([[9e3, 4] + [0] * 9, [2e4, 4] + [0] * 9]), "flux": flux,
    ...         "continuum": flux, "status": np.array([1, 0]), "seconds": np.ones(2), "reason": np.array(["", ""])}
    >>> check_library(lambda number: part, 1, name="two", provenance={}).problems
    ['1 of 2 syntheses are not made yet; `hotdask library build` goes on']
    """
    problems, tables, hashes = [], [], {}
    best: dict[int, tuple[float, int, np.ndarray]] = {}
    for number in range(n_parts):
        try:
            part = read(number)
        except InputError as error:
            problems.append(str(error))
            continue
        table, residual = _look(part)
        tables.append(table)
        for row, i in zip(part["row"], range(len(table)), strict=True):
            if table["status"].iloc[i] == "made":
                hashes.setdefault(hash(part["flux"][i].tobytes()), []).append(int(row))
        _keep(best, table, residual)
    rows = pd.concat(tables, ignore_index=True) if tables else _look(_EMPTY)[0]
    made = rows["status"] == "made"
    rows["nearest"] = np.nan
    sound = made & np.isfinite(rows[list(LABEL_NAMES)]).all(axis=1) & (rows["teff"] > 0)
    if sound.sum() > 1:
        rows.loc[sound, "nearest"] = nearest(rows[sound])
    problems += _problems(rows) + [
        f"the same flux in rows {twins[:5]} of different labels; the engine may have read an old file"
        for twins in hashes.values()
        if len(twins) > 1 and len(rows.set_index("row").loc[twins, list(LABEL_NAMES)].drop_duplicates()) > 1
    ]
    spectra = {row: flux for _, row, flux in (best[teff] for teff in sorted(best))}
    return LibraryCheck(name, provenance, rows, _trends(rows[made]), fine_wavelength(), list(spectra.items()), problems)


_EMPTY = {
    "row": np.empty(0, np.int64),
    "labels": np.empty((0, len(LABEL_NAMES))),
    "flux": np.empty((0, len(fine_wavelength())), np.float32),
    "continuum": np.empty((0, len(fine_wavelength())), np.float32),
    "status": np.empty(0, np.uint8),
    "seconds": np.empty(0, np.float32),
    "reason": np.empty(0, object),
}


def _look(part: Mapping[str, np.ndarray]) -> tuple[pd.DataFrame, np.ndarray]:
    """Numbers about each row of a part, and its flux/continuum."""
    table = pd.DataFrame(part["labels"], columns=list(LABEL_NAMES))
    for relative, absolute in RELATIVE.items():
        table[relative] = table[absolute] - table["fe_h"]
    table.insert(0, "row", part["row"])
    table["status"] = [STATUS.get(int(number), "unknown") for number in part["status"]]
    table["seconds"], table["reason"] = part["seconds"], np.asarray(part["reason"], dtype=object)
    flux, continuum = part["flux"], part["continuum"]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        residual = flux / continuum
    table["flux_finite"] = np.isfinite(flux).all(axis=1)
    table["flux_given"] = np.isfinite(flux).any(axis=1)
    table["flux_negative"] = (flux < 0).any(axis=1)
    table["continuum_given"] = np.isfinite(continuum).any(axis=1)
    table["continuum_good"] = (np.isfinite(continuum) & (continuum > 0)).all(axis=1)
    table["lowest"], table["highest"] = residual.min(axis=1, initial=np.inf), residual.max(axis=1, initial=-np.inf)
    for name, windows in LINES.items():
        table[name] = equivalent_width(flux, *windows)
    bare = ~table["continuum_given"].to_numpy() & table["flux_finite"].to_numpy()
    residual[bare] = flux[bare] / np.median(flux[bare], axis=1, keepdims=True)
    return table, residual


def equivalent_width(
    flux: np.ndarray, blue: tuple[float, float], line: tuple[float, float], red: tuple[float, float]
) -> np.ndarray:
    """Equivalent width below a straight continuum through the medians of two stretches.

    It needs no continuum of the engine's. The steep continua of hot stars, which are no straight lines, add up to
    0.2 Å to Hβ.

    Parameters
    ----------
    flux : (n, 19216) float
        On `hotdask.library.spectra.fine_wavelength`, any unit.
    blue, line, red : (low, high)
        Vacuum wavelengths [Å].

    Returns
    -------
    (n,) float64
        [Å]; positive for absorption; NaN where the flux is.
    """
    wavelength = fine_wavelength()
    sides, centers = [], []
    for low, high in (blue, red):
        here = slice(*np.searchsorted(wavelength, (low, high)))
        sides.append(np.median(flux[:, here].astype(np.float64), axis=1))
        centers.append(wavelength[here].mean())
    here = slice(*np.searchsorted(wavelength, line))
    x = (wavelength[here] - centers[0]) / (centers[1] - centers[0])
    continuum = sides[0][:, None] * (1 - x) + sides[1][:, None] * x
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.trapezoid(1 - flux[:, here] / continuum, wavelength[here], axis=1)


def nearest(rows: pd.DataFrame) -> np.ndarray:
    """Distance of each row to the nearest other one.

    Parameters
    ----------
    rows : pandas.DataFrame
        With teff, logg, fe_h, vmic, n_he and c_fe, n_fe, o_fe, si_fe, s_fe.

    Returns
    -------
    (n,) float64
        Euclidean, each label (Teff in logarithm) in units of its range over the library.
    """
    values = rows[list(_AXES)].to_numpy(np.float64, copy=True)
    values[:, 0] = np.log(values[:, 0])
    width = np.ptp(values, axis=0)
    values /= np.where(width > 0, width, 1)
    return cKDTree(values).query(values, k=2)[0][:, 1]


def _keep(best: dict, table: pd.DataFrame, residual: np.ndarray) -> None:
    """Remember for each Teff to be shown the spectrum closest to a dwarf of solar iron."""
    made = (table["status"] == "made").to_numpy() & table["flux_finite"].to_numpy()
    for teff in SHOWN_TEFF:
        away = abs(np.log(table["teff"].to_numpy() / teff))
        distance = away / 0.05 + abs(table["logg"].to_numpy() - 4) / 0.5 + abs(table["fe_h"].to_numpy()) / 0.5
        distance = np.where(made & (away < 0.12), distance, np.inf)
        i = int(distance.argmin())
        if distance[i] < best.get(teff, (np.inf,))[0]:
            best[teff] = (float(distance[i]), int(table["row"].iloc[i]), residual[i].copy())


def _trends(made: pd.DataFrame) -> pd.DataFrame:
    """Median Teff and equivalent widths by bin of Teff; bins without a synthesis are left out."""
    which = np.digitize(made["teff"], TEFF_EDGES) - 1
    table = made[["teff", *LINES]].groupby(which).median()
    table.insert(0, "n", made.groupby(which).size())
    inside = table[(table.index >= 0) & (table.index < len(TEFF_EDGES) - 1)]
    inside.insert(0, "teff_low", TEFF_EDGES[inside.index])
    inside.insert(1, "teff_high", TEFF_EDGES[inside.index + 1])
    return inside.reset_index(drop=True)


def _problems(rows: pd.DataFrame) -> list[str]:
    made, failed, left = (rows["status"] == status for status in ("made", "failed", "planned"))
    given = rows["continuum_given"]
    values = rows[list(LABEL_NAMES)]
    finite = np.isfinite(values).all(axis=1)
    no_reason = rows["reason"] == ""
    comparable = made & rows["flux_finite"] & ~rows["flux_negative"] & rows["continuum_good"]
    wrong = {
        "have labels that are not finite": ~finite,
        "have a vsini, which should be 0": finite & (values["vsini"] != 0),
        "have the labels of another row": finite & values.duplicated(keep=False),
        "have a status that does not exist": ~(made | failed | left),
        "are called made but their flux is absent or not finite": made & ~rows["flux_finite"],
        "have negative flux": made & rows["flux_negative"],
        "have a continuum that is not finite and positive": made & given & ~rows["continuum_good"],
        "lack the continuum that others have": made & ~given & bool((made & given).any()),
        f"fall below {MIN_RESIDUAL:g} of their continuum": comparable & (rows["lowest"] < MIN_RESIDUAL),
        f"rise above {MAX_RESIDUAL:g} times their continuum": comparable & (rows["highest"] > MAX_RESIDUAL),
        "are called made but have a reason for failure": made & ~no_reason,
        "failed without a reason": failed & no_reason,
        "failed but have flux": failed & rows["flux_given"],
    }
    out = []
    if left.any():
        out.append(f"{left.sum()} of {len(rows)} syntheses are not made yet; `hotdask library build` goes on")
    if not made.any():
        out.append("no synthesis is made")
    if failed.sum() > MAX_FAILED * len(rows):
        out.append(f"{failed.sum()} of {len(rows)} syntheses failed: the library has holes there")
    for what, which in wrong.items():
        if which.any():
            first = ", ".join(str(r) for r in rows.loc[which, "row"][:5])
            out.append(f"{which.sum()} rows {what}: {first}{', ...' if which.sum() > 5 else ''}")
    return out
