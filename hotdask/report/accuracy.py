"""Labels of real stars against the literature: as text, and as a page of figures and tables."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from hotdask.flags import DESCRIPTIONS, Flag
from hotdask.labels import INDEX, LABELS
from hotdask.report import figures
from hotdask.report.compare import range_text
from hotdask.report.formats import symbol_html
from hotdask.report.render import fact_rows, render

COLORS: dict[str, str] = {
    "normal": figures.BLUE,
    "peculiar": figures.ORANGE,
    "metal-poor": figures.GREEN,
    "supergiant": figures.VERMILION,
    "subdwarf": figures.PURPLE,
    "other": figures.GRAY,
}
"""By kind of star (`hotdask.validation.kinds.KINDS`)."""

_ONE_TO_ONE = ("teff", "logg", "vsini")
_AGAINST_TEFF = ("vmic", "n_he", "c_h", "n_h", "o_h", "si_h", "s_h", "fe_h")
_DIFFERENCES = ("teff", "logg", "fe_h")
"""Labels whose differences the table by kind has; of the next it has the median found."""
_MEDIANS = ("vmic", "vsini", "n_he")
_STANDARD = ("teff", "logg", "vmic", "vsini", "n_he", "c_h", "n_h", "o_h", "si_h", "fe_h")
_STAR = ("teff", "logg", "vmic", "vsini", "n_he", "fe_h")
_DIGITS = {"teff": 0, "vsini": 0, "vmic": 1, "n_he": 3}
_DASH = "–"


def accuracy_lines(
    stars: pd.DataFrame,
    found: Mapping[str, pd.DataFrame],
    summary: Mapping[str, pd.DataFrame],
    judged: Mapping[str, pd.DataFrame],
) -> list[str]:
    """How right the labels of each emulator are, as lines of text.

    Parameters
    ----------
    stars : pandas.DataFrame
        `hotdask.validation.accuracy.Stars.table`.
    found, summary, judged : mapping of str to pandas.DataFrame
        By emulator, what `label_stars`, `summarize` and `targets` of `hotdask.validation.accuracy` give.
    """
    lines = ["Normal stars, merged labels: median ± robust scatter (Δ: found − literature)"]
    lines.append(f"{'':44}{'n':>4}" + "".join(f"{name:>24.22}" for name in judged))
    for row in _target_rows(judged):
        unit = f" [{row['unit']}]" if row["unit"] else ""
        lines.append(f"{row['what'] + unit:44}{row['n']:>4}" + "".join(f"{text:>24}" for text in row["cells"]))
    lines += ["", "Standards (non-LTE): the literature, on hotdask's scale of abundances, and what each emulator finds"]
    lines.append(f"{'star':12}{'':24}" + "".join(f"{name:>8}" for name in (*_STANDARD, "chi2")))
    for row in _standard_rows(stars, found):
        lines.append(f"{row['name']:12.11}{row['by']:24.23}" + "".join(f"{cell:>8}" for cell in row["cells"]))
    lines += [
        "",
        "By kind and literature Teff: median ± robust scatter of found − literature; medians of vmic, vsini, N_He",
    ]
    heads = "".join(f"{head:>17}" for head in ("Teff [%]", "log g", "[Fe/H]"))
    heads += "".join(f"{head:>8}" for head in ("vmic", "vsini", "N_He", "chi2"))
    lines.append(f"{'kind':12}{'Teff':18}{'emulator':18}{'fit':17}{'n':>3}{heads}")
    for row in _summary_rows(summary):
        pairs, rest = row["cells"][: len(_DIFFERENCES)], row["cells"][len(_DIFFERENCES) :]
        cells = "".join(f"{cell:>17}" for cell in pairs) + "".join(f"{cell:>8}" for cell in rest)
        lines.append(f"{row['kind']:12}{row['range']:18}{row['emulator']:18.17}{row['fit']:17}{row['n']:>3}{cells}")
    return lines


def accuracy_page(
    stars: pd.DataFrame,
    found: Mapping[str, pd.DataFrame],
    summary: Mapping[str, pd.DataFrame],
    judged: Mapping[str, pd.DataFrame],
    *,
    about: Mapping,
) -> str:
    """The same as a page with figures: HTML that loads nothing from anywhere.

    Parameters
    ----------
    stars, found, summary, judged
        As `accuracy_lines` takes them.
    about : mapping
        What was labeled with what.
    """
    drawn = []
    for i, (emulator, labels) in enumerate(found.items()):
        for name, draw in (("Found against known", known_figure), ("Found − known", difference_figure)):
            figure, titles = draw(stars, labels)
            alt = f"{name}, emulator {emulator}, {len(stars)} spectra."
            svg = figures.inline_svg(figure, titles, prefix=f"f{i}{draw.__name__[0]}", alt=alt)
            drawn.append({"title": f"{name}: {emulator}", "svg": Markup(svg)})
    shown = [name for name in COLORS if (stars["kind"] == name).any()]
    context = {
        "title": "Labels of real stars",
        "emulators": list(found),
        "targets": list(_target_rows(judged)),
        "kinds": [{"name": name, "color": COLORS[name]} for name in shown],
        "figures": drawn,
        "standards": list(_standard_rows(stars, found)),
        "standard_symbols": [symbol_html(name) for name in _STANDARD],
        "summary": list(_summary_rows(summary)),
        "summary_heads": [
            *(symbol_html(name) + (" [%]" if name == "teff" else "") for name in _DIFFERENCES),
            *map(symbol_html, _MEDIANS),
            Markup("χ²<sub>red</sub>"),
        ],
        "stars": list(_star_rows(stars, found)),
        "star_symbols": [symbol_html(name) for name in _STAR],
        "about": fact_rows(about),
    }
    return render("accuracy.html", context)


def known_figure(stars: pd.DataFrame, found: pd.DataFrame) -> tuple[Figure, dict[str, str]]:
    """Teff, log g and vsini found against those of the literature.

    Parameters
    ----------
    stars, found : pandas.DataFrame
        `hotdask.validation.accuracy.Stars.table`, and the labels found.

    Returns
    -------
    figure : matplotlib.figure.Figure
    titles : dict of str to str
        What each point is, by its ``gid``.

    References
    ----------
    Xiang et al. 2022, Fig 11.
    """
    return _panels(stars, found, _ONE_TO_ONE, columns=3, one_to_one=True)


def difference_figure(stars: pd.DataFrame, found: pd.DataFrame) -> tuple[Figure, dict[str, str]]:
    """Found − literature of the other labels against the literature's Teff; otherwise as `known_figure`.

    References
    ----------
    Xiang et al. 2022, Fig 12.
    """
    return _panels(stars, found, _AGAINST_TEFF, columns=4, one_to_one=False)


@figures.styled
def _panels(
    stars: pd.DataFrame, found: pd.DataFrame, names: Sequence[str], *, columns: int, one_to_one: bool
) -> tuple[Figure, dict[str, str]]:
    rows = -(-len(names) // columns)
    width, height = 12.0, rows * (4.1 if one_to_one else 2.7)
    figure = Figure(figsize=(width, height))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    # In inches: an automatic layout would draw everything three times.
    gap, tall = 0.75, height / rows - 0.6
    figure.subplots_adjust(0.85 / width, 0.5 / height, 1 - 0.1 / width, 1 - 0.1 / height)
    figure.subplots_adjust(wspace=gap * columns / (width - gap * columns), hspace=0.6 / tall)
    teff = stars["teff_ref"].to_numpy(dtype=np.float64)
    titles: dict[str, str] = {}
    for axes, name in zip(panels, names, strict=True):
        known, here = (table.to_numpy(dtype=np.float64) for table in (stars[f"{name}_ref"], found[name]))
        x, y = (known, here) if one_to_one else (teff, here - known)
        points = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        axes.set_xlabel(figures.axis_title(name, prefix="literature " if one_to_one else ""))
        axes.set_ylabel(figures.axis_title(name, prefix="" if one_to_one else "Δ"))
        if not points.size:
            figures.note(axes, "no star with a literature value")
            continue
        for i in points:
            gid = f"point-{len(titles)}"
            star = stars.iloc[i]
            titles[gid] = _title(star, found.iloc[i], name)
            axes.plot(x[i], y[i], "o", ms=4.5, color=COLORS[star["kind"]], alpha=0.8, mew=0, gid=gid)
        if one_to_one:
            ends = (min(x[points].min(), y[points].min()), max(x[points].max(), y[points].max()))
            axes.plot(ends, ends, color=figures.BLACK, lw=0.9, zorder=0)
            if name == "teff":
                axes.set_xscale("log")
                axes.set_yscale("log")
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_ticks([t for t in (7000, 10000, 15000, 25000, 50000) if ends[0] <= t <= ends[1]])
                    axis.set_major_formatter(figures.grouped)
                    axis.set_minor_formatter("")
        else:
            axes.axhline(0, color=figures.BLACK, lw=0.9, zorder=0)
            figures.teff_axis(axes, teff[points])
    return figure, titles


def _title(star: pd.Series, found: pd.Series, name: str) -> str:
    label = LABELS[INDEX[name]]
    unit = f" {label.unit}" if label.unit else ""
    return (
        f"{star['name']} ({star['spectral_type'] or 'no type'}, {star['kind']}): {label.doc} "
        f"{_cell(name, found[name])}{unit}, literature {_cell(name, star[f'{name}_ref'])} ({star['reference']})"
    )


def _target_rows(judged: Mapping[str, pd.DataFrame]) -> Iterator[dict]:
    tables = list(judged.values())
    for i, row in enumerate(tables[0].itertuples()):
        values = [_pair(t["value"][i], t["scatter"][i], t["n"][i], t["digits"][i]) for t in tables]
        yield {"what": row.what, "unit": row.unit, "n": row.n, "cells": values}


def _standard_rows(stars: pd.DataFrame, found: Mapping[str, pd.DataFrame]) -> Iterator[dict]:
    rows = np.flatnonzero((stars["reference"] != stars["library"]).to_numpy())
    for i in rows[np.argsort(-stars["teff_ref"].to_numpy()[rows], kind="stable")]:
        star = stars.iloc[i]
        known = [_cell(name, star[f"{name}_ref"]) for name in _STANDARD]
        yield {"name": star["name"], "by": "literature", "cells": [*known, ""]}
        for emulator, table in found.items():
            yield {"name": "", "by": emulator, "cells": _found_cells(table.iloc[i], _STANDARD)}


def _star_rows(stars: pd.DataFrame, found: Mapping[str, pd.DataFrame]) -> Iterator[dict]:
    for i in np.lexsort((stars["teff_ref"], stars["kind"].map(list(COLORS).index))):
        star = stars.iloc[i]
        row = {"name": star["name"], "type": star["spectral_type"], "kind": star["kind"], "by": star["reference"]}
        yield row | {"cells": [*(_cell(name, star[f"{name}_ref"]) for name in _STAR), ""], "flags": []}
        for emulator, table in found.items():
            bits = int(table["flags"].iloc[i])
            flags = [{"name": f.name, "sentence": DESCRIPTIONS[f]} for f in Flag if bits & f]
            empty = dict.fromkeys(row, "")
            yield empty | {"by": emulator, "cells": _found_cells(table.iloc[i], _STAR), "flags": flags}


def _summary_rows(summary: Mapping[str, pd.DataFrame]) -> Iterator[dict]:
    keys = ["kind", "teff_low", "teff_high", "fit"]
    grouped = {emulator: dict(list(table.groupby(keys, sort=False))) for emulator, table in summary.items()}
    for key in dict.fromkeys(key for groups in grouped.values() for key in groups):
        kind, low, high, fit = key
        for emulator, groups in grouped.items():
            rows = groups[key].set_index("label")
            pairs = [_pair(*rows.loc[n, ["bias", "scatter", "n"]], 1 if n == "teff" else 2) for n in _DIFFERENCES]
            medians = [_cell(name, rows.loc[name, "median"]) for name in (*_MEDIANS, "chi2_red")]
            row = {"kind": kind, "range": range_text(low, high), "emulator": emulator, "fit": fit}
            yield row | {"n": int(rows.loc["teff", "n"]), "cells": [*pairs, *medians]}


def _found_cells(found: pd.Series, names: Sequence[str]) -> list[str]:
    return [_cell(name, found[name]) for name in (*names, "chi2_red")]


def _cell(name: str, value: float) -> str:
    return f"{value:.{_DIGITS.get(name, 2)}f}".replace("-", "−") if np.isfinite(value) else _DASH


def _pair(value: float, scatter: float, n: int, digits: int) -> str:
    """Median ± scatter; one star has no scatter."""
    if not np.isfinite(value):
        return _DASH
    beside = f" ± {scatter:.{digits}f}" if n > 1 else ""
    return f"{value:.{digits}f}{beside}".replace("-", "−")
