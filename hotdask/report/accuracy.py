"""Labels of real stars against the literature: as text, and as a page of figures and tables."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from hotdask.labels import LABEL_NAMES
from hotdask.report.compare import range_text

_SHOWN = ("teff", "logg", "fe_h")
"""Labels whose differences the table of text has; of others it has the median found."""
_MEDIANS = ("vmic", "vsini", "n_he")
_STANDARD = ("teff", "logg", "vmic", "vsini", "n_he", "c_h", "n_h", "o_h", "si_h", "fe_h")


def accuracy_lines(
    stars: pd.DataFrame,
    found: Mapping[str, pd.DataFrame],
    summary: Mapping[str, pd.DataFrame],
    judged: Mapping[str, pd.DataFrame],
) -> list[str]:
    """What the accuracy of emulators is, as lines of text.

    Parameters
    ----------
    stars : pandas.DataFrame
        `hotdask.validation.accuracy.Stars.table`.
    found, summary, judged : mapping of str to pandas.DataFrame
        By emulator, what `label_stars`, `summarize` and `targets` of `hotdask.validation.accuracy` give.
    """
    return [
        "Normal stars, merged labels: median and robust scatter (Δ: found − literature)",
        *_target_lines(judged),
        "",
        "Standards (non-LTE): found by each emulator, below the literature on hotdask's scale of abundances",
        *_standard_lines(stars, found),
        "",
        "By kind and literature Teff: median ± robust scatter of found − literature; medians of vmic, vsini, N_He",
        *_summary_lines(summary),
    ]


def _target_lines(judged: Mapping[str, pd.DataFrame]) -> list[str]:
    first = next(iter(judged.values()))
    lines = [f"{'':44}{'n':>4}" + "".join(f"{name:>24.22}" for name in judged)]
    for i, row in enumerate(first.itertuples()):
        what = f"{row.what}{f' [{row.unit}]' if row.unit else ''}"
        values = (table.iloc[i] for table in judged.values())
        lines.append(
            f"{what:44}{row.n:>4}" + "".join(f"{_pair(v.value, v.scatter, v.n, v.digits):>24}" for v in values)
        )
    return lines


def _standard_lines(stars: pd.DataFrame, found: Mapping[str, pd.DataFrame]) -> list[str]:
    rows = np.flatnonzero((stars["reference"] != stars["library"]).to_numpy())
    lines = [f"{'star':12}{'':24}" + "".join(f"{name:>8}" for name in _STANDARD) + f"{'chi2':>8}"]
    for i in rows[np.argsort(-stars["teff_ref"].to_numpy()[rows])]:
        star = stars.iloc[i]
        values = [star[f"{name}_ref"] for name in _STANDARD]
        lines.append(f"{star['name']:12}{'literature':24}" + "".join(map(_cell, _STANDARD, values)))
        for emulator, table in found.items():
            values = [table[name].iloc[i] for name in _STANDARD]
            cells = "".join(map(_cell, _STANDARD, values)) + f"{table['chi2_red'].iloc[i]:>8.2f}"
            lines.append(f"{'':12}{emulator:24.23}{cells}")
    return lines


def _pair(value: float, scatter: float, n: int, digits: int) -> str:
    """Median ± scatter; one star has no scatter."""
    if not np.isfinite(value):
        return "–"
    beside = f" ± {scatter:.{digits}f}" if n > 1 else "    " + " " * digits
    return f"{value:.{digits}f}{beside}".replace("-", "−")


def _cell(name: str, value: float) -> str:
    if not np.isfinite(value):
        return f"{'–':>8}"
    digits = {"teff": 0, "vsini": 0, "vmic": 1, "n_he": 3}.get(name, 2)
    return f"{value:>8.{digits}f}"


def _summary_lines(summary: Mapping[str, pd.DataFrame]) -> list[str]:
    heads = ("Teff [%]", "log g", "[Fe/H]")
    lines = [
        f"{'kind':12}{'Teff [K]':18}{'emulator':18}{'fit':17}{'n':>3}"
        + "".join(f"{head:>17}" for head in heads)
        + "".join(f"{head:>8}" for head in ("vmic", "vsini", "N_He"))
    ]
    tables = {
        name: table.set_index(["kind", "teff_low", "teff_high", "fit", "label"]) for name, table in summary.items()
    }
    cells = dict.fromkeys(index[:4] for table in tables.values() for index in table.index)
    for kind, low, high, fit in cells:
        for emulator, table in tables.items():
            rows = {name: table.loc[(kind, low, high, fit, name)] for name in LABEL_NAMES}
            texts = [
                _pair(rows[name].bias, rows[name].scatter, rows[name].n, 1 if name == "teff" else 2) for name in _SHOWN
            ]
            medians = "".join(_cell(name, rows[name]["median"]) for name in _MEDIANS)
            lines.append(
                f"{kind:12}{range_text(low, high):18}{emulator:18.17}{fit:17}{rows['teff'].n:>3}"
                + "".join(f"{text:>17}" for text in texts)
                + medians
            )
    return lines
