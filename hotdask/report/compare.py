"""Catalog against labels from elsewhere: one figure, and a page around it."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hotdask.labels import INDEX, LABELS
from hotdask.report import figures
from hotdask.report.formats import format_number, symbol_html, unit_html
from hotdask.report.render import fact_rows, picture, render

_COLUMNS = 3
_PANEL = (3.4, 2.5)
_FEW = 60
"""With more stars than this their error bars would hide them."""


@figures.styled
def comparison_figure(
    teff: np.ndarray, difference: Mapping[str, np.ndarray], error: Mapping[str, np.ndarray], summary: pd.DataFrame
) -> Figure:
    """Catalog − reference of every label against Teff.

    Parameters
    ----------
    teff : (n,) float64
        [K].
    difference, error : mapping of str to (n,) float64
        By label, in its unit; NaN where unknown.
    summary : pandas.DataFrame
        As `hotdask.crossmatch.differences.label_differences` gives it: offsets of the ranges are drawn as steps, with
        the scatter around them.

    Returns
    -------
    matplotlib.figure.Figure

    References
    ----------
    Xiang et al. 2022, Figs 11-12.
    """
    names = list(difference)
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(_PANEL[0] * min(_COLUMNS, len(names)), _PANEL[1] * rows), layout="constrained")
    panels = figure.subplots(rows, min(_COLUMNS, len(names)), squeeze=False).ravel()
    for axes in panels[len(names) :]:
        axes.remove()
    shown = teff[np.isfinite(teff)]
    for axes, name in zip(panels, names, strict=False):
        good = np.isfinite(teff) & np.isfinite(difference[name])
        x, y = teff[good], difference[name][good]
        axes.axhline(0, color=figures.BLACK, lw=0.9)
        if x.size > figures.HEXBIN_ABOVE:
            axes.hexbin(x, y, gridsize=(40, 26), xscale="log", bins="log", mincnt=1, cmap=figures.DENSITY_MAP, lw=0.1)
        elif x.size > _FEW:
            axes.scatter(x, y, s=7, color=figures.BLUE, alpha=0.5, linewidths=0)
        else:
            bars = np.nan_to_num(error[name][good])
            axes.errorbar(x, y, bars, fmt="o", ms=4, color=figures.BLUE, ecolor=figures.SKY, elinewidth=1)
        figures.teff_axis(axes, shown)
        _steps(axes, summary[summary["label"] == name])
        axes.set_ylabel(figures.axis_title(name, prefix="Δ"))
    return figure


def _steps(axes, ranges: pd.DataFrame) -> None:
    left, right = sorted(axes.get_xlim())
    # The row over all stars is not drawn, unless it is the only one.
    for row in ranges.iloc[1 if len(ranges) > 1 else 0 :].itertuples():
        low, high = max(row.teff_low, left), min(row.teff_high, right)
        if row.n > 1 and low < high:
            axes.plot([low, high], [row.offset] * 2, color=figures.VERMILION, lw=1.8)
            axes.fill_between(
                [low, high], row.offset - row.scatter, row.offset + row.scatter, color=figures.ORANGE, alpha=0.25, lw=0
            )


def comparison_page(figure: Figure, summary: pd.DataFrame, *, title: str, about: Mapping, n: int) -> str:
    """The page as text: HTML that loads nothing from anywhere.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Of `comparison_figure`.
    summary : pandas.DataFrame
        As `hotdask.crossmatch.differences.label_differences` gives it.
    title : str
        Heading.
    about : mapping
        What was compared with what.
    n : int
        Stars.
    """
    drawn = picture(
        figure,
        alt=f"Differences of {summary['label'].nunique()} labels of {n} stars against their Teff.",
        caption="Catalog − reference. Red: the median of each range of Teff, with the scatter around it.",
        many=n > _FEW,
    )
    rows = [
        {
            "symbol": symbol_html(row.label),
            "unit": unit_html(row.label),
            "doc": LABELS[INDEX[row.label]].doc,
            "range": range_text(row.teff_low, row.teff_high),
            **{key: getattr(row, key) for key in ("n", "offset", "offset_err", "scatter", "pull")},
        }
        for row in summary.itertuples()
    ]
    return render("compare.html", {"title": title, "figure": drawn, "rows": rows, "about": fact_rows(about)})


def range_text(low: float, high: float) -> str:
    """A range of Teff in words.

    Examples
    --------
    >>> range_text(0, float("inf")), range_text(0, 11000), range_text(25000, float("inf"))
    ('all', '< 11\\u2009000 K', '≥ 25\\u2009000 K')
    >>> range_text(11000, 15000)
    '11\\u2009000–15\\u2009000 K'
    """
    if low <= 0 and np.isinf(high):
        return "all"
    if low <= 0:
        return f"< {figures.grouped(high)} K"
    return f"≥ {figures.grouped(low)} K" if np.isinf(high) else f"{figures.grouped(low)}–{figures.grouped(high)} K"


def comparison_lines(summary: pd.DataFrame) -> Sequence[str]:
    """The table as lines of text."""
    lines = [f"{'label':8}{'Teff':>18}{'n':>8}{'offset':>10}{'±':>9}{'scatter':>10}{'/error':>8}  unit"]
    for row in summary.itertuples():
        numbers = (format_number(getattr(row, key)) for key in ("offset", "offset_err", "scatter", "pull"))
        offset, offset_err, scatter, pull = numbers
        where = range_text(row.teff_low, row.teff_high)
        line = f"{row.label:8}{where:>18}{row.n:>8}{offset:>10}{offset_err:>9}{scatter:>10}{pull:>8}  {row.unit}"
        lines.append(line.rstrip())
    return lines
