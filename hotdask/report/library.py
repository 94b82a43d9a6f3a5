"""The page of a library: how its syntheses fill label space, what they look like, what is wrong; one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hotdask.labels import INDEX, LABEL_NAMES, LABELS
from hotdask.report import figures
from hotdask.report.formats import format_number, symbol_html, unit_html
from hotdask.report.render import Picture, fact_groups, picture, render

PAIRS = (("fe_h", "vmic"), ("n_he", "teff"), ("c_fe", "n_fe"), ("o_fe", "c_fe"), ("si_fe", "s_fe"), ("fe_h", "logg"))
"""Labels drawn against one another."""

_NAMES = {
    "all": "planned in all",
    "made": "made",
    "failed": "failed, with a reason each",
    "planned": "still to be made",
}
_LINE_TITLES = {"h_beta": "Hβ", "he_i_4471": "He I 4471"}
_REASONS = 20
_BLUE, _RED = (3730.0, 5000.0), (5000.0, 9000.0)
_STEP = 5
"""Pixels averaged for drawing: 69 km/s, of which no eye sees more."""


def write_library_page(check: Any, out: str | Path) -> None:
    """Write the page of a library: HTML that loads nothing from anywhere.

    Parameters
    ----------
    check : hotdask.library.coverage.LibraryCheck
    out : path
        The file to write.
    """
    Path(out).write_text(library_page(check), encoding="utf-8")


def library_page(check: Any) -> str:
    """The page as text; see `write_library_page`."""
    rows = check.rows
    drawn = rows[np.isfinite(rows[list(LABEL_NAMES)]).all(axis=1)]
    made = rows[rows["status"] == "made"]
    reasons = list(check.reasons.items())
    context = {
        "title": f"Library {check.name}",
        "counts": [{"id": status, "n": n, "what": _NAMES[status]} for status, n in check.counts.items()],
        "reasons": reasons[:_REASONS],
        "more_reasons": len(reasons[_REASONS:]),
        "problems": check.problems,
        "coverage_figures": _coverage_pictures(drawn) if len(drawn) else [],
        "pair_figures": [_pair_picture(drawn, *pair) for pair in PAIRS] if len(drawn) else [],
        "ranges": [_range(name, rows, made) for name in LABEL_NAMES if name != "vsini"],
        "nearest": dict(zip(("low", "median", "high"), _extent(made["nearest"]), strict=True)),
        "spectra_figure": _spectra_picture(check) if check.spectra else None,
        "spectrum_figures": _spectrum_pictures(made, check.trends) if len(made) else [],
        "provenance": fact_groups(check.provenance, scalars_named="library"),
    }
    return render("library.html", context)


def _extent(values: pd.Series) -> list[float]:
    """Lowest, median and highest finite value."""
    finite = values[np.isfinite(values)]
    return [float(finite.min()), float(finite.median()), float(finite.max())] if len(finite) else [np.nan] * 3


def _range(name: str, rows: pd.DataFrame, made: pd.DataFrame) -> dict:
    low, _, high = _extent(rows[name])
    return {"symbol": symbol_html(name), "unit": unit_html(name), "found": [low, high, *_extent(made[name])]}


def _title(name: str) -> str:
    if name in INDEX:
        return figures.axis_title(name)
    return f"[{name.removesuffix('_fe').capitalize()}/Fe]  [dex]"


def _plain(name: str) -> str:
    return LABELS[INDEX[name]].doc.split(" relative")[0].capitalize() if name in INDEX else _title(name).split("  ")[0]


def _coverage_pictures(rows: pd.DataFrame) -> list[Picture]:
    failed, left = int((rows["status"] == "failed").sum()), int((rows["status"] == "planned").sum())
    low, _, high = _extent(rows["teff"])
    out = [
        picture(
            coverage_figure(rows),
            alt=f"Log g against Teff of {len(rows)} syntheses, {format_number(low)} to {format_number(high)} K; "
            f"{failed} failed, {left} not made.",
            caption="Gravity and temperature, colored by [Fe/H]. Crosses failed; open circles are still to be made.",
            many=True,
        )
    ]
    seconds = rows.loc[rows["status"] != "planned", "seconds"]
    if np.isfinite(seconds).any():
        _, median, slowest = _extent(seconds)
        out.append(
            picture(
                seconds_figure(rows),
                alt=f"Histogram of seconds a synthesis took: median {median:.3g}, longest {slowest:.3g}.",
                caption=f"Time each synthesis took: {format_number(seconds.sum() / 3600)} hours in all.",
            )
        )
    return out


@figures.styled
def coverage_figure(rows: pd.DataFrame) -> Figure:
    """Log g against Teff, both reversed: made colored by [Fe/H], failed as crosses, those to be made as open circles.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``teff``, ``logg``, ``fe_h``, ``status``.
    """
    figure, (axes, bar) = figures.blank_figure((4.8, 4.2), bar=True)
    made, failed, left = (rows[rows["status"] == status] for status in ("made", "failed", "planned"))
    axes.scatter(left["teff"], left["logg"], s=9, facecolors="none", edgecolors=figures.GRAY, linewidths=0.4)
    if len(made):
        size = float(np.clip(6000 / len(made), 2.5, 12))
        marks = axes.scatter(
            made["teff"], made["logg"], c=made["fe_h"], s=size, linewidths=0, cmap=figures.COLOR_MAP, alpha=0.9
        )
        figures.color_bar(figure, marks, bar, figures.axis_title("fe_h"))
    else:
        bar.remove()
    axes.scatter(failed["teff"], failed["logg"], s=30, marker="x", color=figures.VERMILION, linewidths=1.3)
    figures.teff_axis(axes, rows["teff"].to_numpy())
    axes.set_ylabel(figures.axis_title("logg"))
    axes.invert_yaxis()
    return figure


@figures.styled
def seconds_figure(rows: pd.DataFrame) -> Figure:
    """Histogram of what each synthesis took [s], made and failed."""
    figure, (axes,) = figures.blank_figure(figures.SMALL)
    seconds = {s: rows.loc[rows["status"] == s, "seconds"].dropna().to_numpy() for s in ("made", "failed")}
    # Beyond the 99.5th percentile all share the last bin, so that one hanging program does not hide the rest.
    top = float(np.percentile(np.concatenate(list(seconds.values())), 99.5)) or 1.0
    bins = np.linspace(0, 1.05 * top, 41)
    for status, color in (("made", figures.SKY), ("failed", figures.VERMILION)):
        if len(seconds[status]):
            axes.hist(np.minimum(seconds[status], top), bins, color=color, label=f"{status} ({len(seconds[status])})")
    axes.legend(loc="upper right")
    axes.set_xlabel("time a synthesis took  [s]")
    axes.set_ylabel("syntheses")
    return figure


def _pair_picture(rows: pd.DataFrame, x: str, y: str) -> Picture:
    return picture(
        pair_figure(rows, x, y),
        alt=f"Syntheses made over {x} and {y}, in 20 by 20 bins; failed ones as crosses.",
        caption=f"{_plain(x)} and {_plain(y)}.",
        many=True,
    )


@figures.styled
def pair_figure(rows: pd.DataFrame, x: str, y: str) -> Figure:
    """Number of syntheses made over two labels; failed ones as crosses.

    Parameters
    ----------
    rows : pandas.DataFrame
        The labels (or ``c_fe`` ...) and ``status``.
    x, y : str
        Columns.
    """
    figure, (axes, bar) = figures.blank_figure(figures.DENSE, bar=True)
    made, failed = (rows[rows["status"] == status] for status in ("made", "failed"))
    edges = [_edges(rows[name].to_numpy(), log=name == "teff") for name in (x, y)]
    counts = np.histogram2d(made[x], made[y], bins=edges)[0]
    marks = axes.pcolormesh(*edges, np.where(counts > 0, counts, np.nan).T, cmap=figures.DENSITY_MAP, vmin=0)
    figures.color_bar(figure, marks, bar, "syntheses made")
    axes.scatter(failed[x], failed[y], s=22, marker="x", color=figures.VERMILION, linewidths=1.2)
    axes.set_xlabel(_title(x))
    axes.set_ylabel(_title(y))
    if y == "teff":
        axes.set_yscale("log")
        ticks = [t for t in (8000, 10000, 15000, 20000, 30000, 40000, 60000) if edges[1][0] <= t <= edges[1][-1]]
        axes.set_yticks(ticks, [figures.grouped(t) for t in ticks])
        axes.minorticks_off()
    return figure


def _edges(values: np.ndarray, *, log: bool, bins: int = 20) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if low == high:
        # One value, as in a grid of finished spectra, still needs a bin of some width.
        low, high = low - 0.02 * abs(low) - 1e-3, high + 0.02 * abs(high) + 1e-3
    return np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)


def _spectra_picture(check: Any) -> Picture:
    stars = check.rows.set_index("row").loc[[row for row, _ in check.spectra]]
    stars = [star for _, star in stars.iterrows()]
    return picture(
        spectra_figure(check.wavelength, [flux for _, flux in check.spectra], stars),
        alt="Spectra at " + ", ".join(f"{format_number(star['teff'])} K" for star in stars) + ", one above the other.",
        caption="Flux over continuum of the syntheses nearest to dwarfs of solar iron at several temperatures, "
        "without rotation, averaged over 69 km/s; each is drawn 1 above the last.",
        many=True,
    )


@figures.styled
def spectra_figure(wavelength: np.ndarray, spectra: Sequence[np.ndarray], stars: Sequence[Mapping]) -> Figure:
    """Spectra one above the other, the coolest lowest, in two stretches of wavelength.

    Parameters
    ----------
    wavelength : (n,) float64
        Vacuum [Å].
    spectra : sequence of (n,) float32
        Flux over continuum.
    stars : sequence of mapping
        Their ``teff``, ``logg``, ``fe_h``.
    """
    figure = Figure(figsize=(10.4, 1.2 + 2 * (0.8 + 0.42 * len(spectra))), layout="constrained")
    n = len(wavelength) // _STEP * _STEP
    x = wavelength[:n].reshape(-1, _STEP).mean(axis=1)
    for axes, (low, high) in zip(figure.subplots(2, 1), (_BLUE, _RED), strict=True):
        here = (x >= low) & (x <= high)
        for i, (flux, star) in enumerate(zip(spectra, stars, strict=True)):
            y = flux[:n].reshape(-1, _STEP).mean(axis=1, dtype=np.float64)
            axes.plot(x[here], y[here] + i, color=(figures.BLUE, figures.BLACK)[i % 2], lw=0.6)
            iron = f"{round(star['fe_h'], 1) + 0.0:+.1f}".replace("-", "−")
            text = f"{figures.grouped(star['teff'])} K, {star['logg']:.1f}, {iron}"
            axes.annotate(
                text,
                (1.0, 1 + i),
                (4, -2),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                fontsize=7.5,
                va="center",
                annotation_clip=False,
            )
        axes.set_xlim(low, high)
        axes.set_ylim(-0.05, len(spectra) + 0.2)
        axes.set_ylabel("flux / continuum + i")
        axes.set_title("$T_{\\rm eff}$, $\\log g$, [Fe/H]", fontsize=8, loc="right")
    axes.set_xlabel("wavelength, vacuum  [Å]")
    return figure


def _spectrum_pictures(made: pd.DataFrame, trends: pd.DataFrame) -> list[Picture]:
    return [
        picture(
            trend_figure(made, trends, line),
            alt=f"Equivalent width of {title} against Teff, with the median in bins.",
            caption=f"Equivalent width of {title} below a straight continuum, with the median by bin of temperature. "
            "A wild point is a synthesis worth a look.",
            many=True,
        )
        for line, title in _LINE_TITLES.items()
    ]


@figures.styled
def trend_figure(made: pd.DataFrame, trends: pd.DataFrame, line: str) -> Figure:
    """Equivalent width of a line [Å] against Teff, colored by log g, with medians in bins.

    Parameters
    ----------
    made : pandas.DataFrame
        ``teff``, ``logg`` and a column named as the line.
    trends : pandas.DataFrame
        Medians of the same columns.
    line : str
        ``h_beta`` or ``he_i_4471``.
    """
    figure, (axes, bar) = figures.blank_figure(figures.SMALL, bar=True)
    size = float(np.clip(6000 / max(len(made), 1), 2.5, 12))
    marks = axes.scatter(made["teff"], made[line], c=made["logg"], s=size, linewidths=0, cmap=figures.COLOR_MAP)
    axes.plot(trends["teff"], trends[line], "o-", color=figures.VERMILION, ms=4, lw=1.3)
    figures.color_bar(figure, marks, bar, figures.axis_title("logg"))
    figures.teff_axis(axes, made["teff"].to_numpy(), reverse=False)
    axes.set_ylabel(f"equivalent width of {_LINE_TITLES[line]}  [Å]")
    return figure
