"""Figures of how well labels repeat and fit: precision over S/N (Fig 10 of the paper), pulls, and chi2 over S/N."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from hotdask.labels import LABELS
from hotdask.report.figures import (
    BLACK,
    BLUE,
    DENSITY_MAP,
    GRAY,
    PAIRED,
    PALE,
    SMALL,
    VERMILION,
    blank_figure,
    need_columns,
    neighbors,
    pretty_unit,
    robust_scatter,
    styled,
)
from hotdask.report.formats import format_number

_BIN = 0.1
"""Width of a bin of S/N [dex]."""
_TOO_FEW = 20
"""A bin with fewer pairs has no dispersion worth drawing."""
HOT = 10000.0
"""Teff above which differences of repeats are drawn [K] (Xiang et al. 2022, Fig 10)."""
_RANGES = ((0.0, 50.0), (50.0, 100.0), (100.0, np.inf))
"""Ranges of S/N whose precision is written down, as there."""


def _over_snr(snr: np.ndarray, measure) -> tuple[np.ndarray, np.ndarray]:
    """Median S/N of each bin with enough spectra, and what ``measure`` finds for its rows."""
    number = np.floor(np.log10(snr) / _BIN).astype(int)
    rows = [np.flatnonzero(number == k) for k in np.unique(number)]
    rows = [r for r in rows if r.size >= _TOO_FEW]
    return np.array([np.median(snr[r]) for r in rows]), np.array([measure(r) for r in rows])


def _snr_ticks(axes) -> None:
    axes.set_xscale("log")
    axes.set_xticks([10, 20, 50, 100, 200, 500])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _eleven_panels(snr: np.ndarray) -> tuple[Figure, list[Axes]]:
    """A panel over S/N for each label, four rows of three with the last place free.

    Margins are set in inches, since an automatic layout draws everything several times.
    """
    width, height = 9.6, 9.0
    left, bottom, wide, tall, across, down = 0.78, 0.52, 2.3, 1.72, 0.78, 0.4
    figure = Figure(figsize=(width, height))
    panels = []
    for i in range(len(LABELS)):
        row, column = divmod(i, 3)
        x, y = left + column * (wide + across), bottom + (3 - row) * (tall + down)
        axes = figure.add_axes((x / width, y / height, wide / width, tall / height))
        _snr_ticks(axes)
        known = snr[np.isfinite(snr) & (snr > 0)]
        if known.size:
            axes.set_xlim(known.min() / 1.1, known.max() * 1.1)
        if i >= len(LABELS) - 3:
            axes.set_xlabel("S/N per pixel in g")
        else:
            axes.tick_params(labelbottom=False)
        panels.append(axes)
    return figure, panels


@styled
def repeat_precision(catalog: pd.DataFrame, *, snr_tolerance: float = 0.2) -> Figure:
    """Precision of each label from repeat visits, over S/N, beside the errors of the catalog.

    Parameters
    ----------
    catalog : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG`; only rows in the sample are drawn.
    snr_tolerance : float
        Largest difference in S/N of a pair, as a share of the mean of the two.

    Returns
    -------
    matplotlib.figure.Figure
        Eleven panels. Dots: robust dispersion of the differences, over √2. Line: median error of one visit.

    Raises
    ------
    RunError
        If a column is missing.

    References
    ----------
    Xiang et al. 2022, §4.6 and Fig 10.
    """
    need_columns(catalog, [*PAIRED, *(f"{lb.name}_err" for lb in LABELS)], "catalog")
    catalog = catalog[catalog["in_sample"].to_numpy(bool)]
    one, two, snr = neighbors(catalog, snr_tolerance)
    figure, panels = _eleven_panels(snr)
    for label, axes in zip(LABELS, panels, strict=True):
        value, error = (catalog[c].to_numpy(np.float64) for c in (label.name, f"{label.name}_err"))
        difference, sigma = (value[one] - value[two]) / np.sqrt(2), np.hypot(error[one], error[two]) / np.sqrt(2)
        usable = (snr > 0) & np.isfinite(difference) & np.isfinite(sigma)
        x, d, s = snr[usable], difference[usable], sigma[usable]
        at, scatter = _over_snr(x, lambda r, d=d: robust_scatter(d[r]))
        _, error = _over_snr(x, lambda r, s=s: np.median(s[r]))
        axes.plot(at, error, color=BLUE, linewidth=1.4, label="error in the catalog")
        axes.plot(at, scatter, "o", color=VERMILION, markersize=4, label="scatter of repeats / √2")
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"σ {label.symbol}" + (f"  [{pretty_unit(label.unit)}]" if label.unit else ""))
        if not at.size:
            axes.text(0.5, 0.5, "too few pairs", transform=axes.transAxes, ha="center", va="center", color=GRAY)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="center", bbox_to_anchor=(0.84, 0.13))
    return figure


@styled
def repeat_differences(catalog: pd.DataFrame, *, snr_tolerance: float = 0.2) -> Figure:
    """Differences of each label between two visits of a hot star, over S/N (the paper's Fig 10).

    Parameters
    ----------
    catalog, snr_tolerance
        As `repeat_precision` takes them.

    Returns
    -------
    matplotlib.figure.Figure
        Eleven panels. Cells: pairs, both visits above `HOT`. Lines: median, and median ± robust dispersion. Above each:
        the dispersion over √2 in three ranges of S/N.

    Raises
    ------
    RunError
        If a column is missing.

    References
    ----------
    Xiang et al. 2022, §4.6 and Fig 10.
    """
    need_columns(catalog, PAIRED, "catalog")
    catalog = catalog[catalog["in_sample"].to_numpy(bool) & (catalog["teff"].to_numpy(np.float64) > HOT)]
    one, two, snr = neighbors(catalog, snr_tolerance)
    figure, panels = _eleven_panels(snr)
    limits = panels[0].get_xlim()
    for label, panel in zip(LABELS, panels, strict=True):
        panel.set_ylabel(f"Δ {label.symbol}" + (f"  [{pretty_unit(label.unit)}]" if label.unit else ""))
        value = catalog[label.name].to_numpy(np.float64)
        difference = value[one] - value[two]
        usable = (snr > 0) & np.isfinite(difference)
        x, d = snr[usable], difference[usable]
        if x.size < _TOO_FEW:
            panel.text(0.5, 0.5, "too few pairs", transform=panel.transAxes, ha="center", va="center", color=GRAY)
            continue
        reach = 6 * robust_scatter(d)
        shown = np.abs(d - np.median(d)) <= reach
        extent = (*np.log10([x.min(), max(x.max(), 1.01 * x.min())]), *(np.median(d) + np.array([-reach, reach])))
        cells = {"gridsize": (34, 14), "mincnt": 1, "linewidths": 0.1, "extent": extent}
        panel.hexbin(x[shown], d[shown], xscale="log", bins="log", cmap=DENSITY_MAP, **cells)
        # Which brings ticks of its own.
        _snr_ticks(panel)
        panel.set_xlim(limits)
        at, middle = _over_snr(x, lambda r, d=d: np.median(d[r]))
        _, scatter = _over_snr(x, lambda r, d=d: robust_scatter(d[r]))
        for offset, style in ((0, "-"), (-1, "--"), (1, "--")):
            panel.plot(at, middle + offset * scatter, color=VERMILION, lw=1.3, ls=style)
        numbers = [robust_scatter(d[(x >= low) & (x < high)]) / np.sqrt(2) for low, high in _RANGES]
        panel.set_title(" | ".join(format_number(n, 2) for n in numbers), fontsize=8, loc="right")
        panel.set_ylim(np.median(d) - reach, np.median(d) + reach)
    return figure


@styled
def chi2_ridge(frame: pd.DataFrame, model, *, limit: float = 10.0, teff: float = 9000.0) -> Figure:
    """Reduced chi-square of all fits over S/N, with the survey's median and the limit of chi2ratio.

    Parameters
    ----------
    frame : pandas.DataFrame
        ``snr_g``, ``chi2_red`` and ``chi2ratio``.
    model : object with ``log_median`` and ``log_sigma``
        The `hotdask.steps.flag.Chi2Model` of the survey.
    limit : float
        chi2ratio above which a fit is bad.
    teff : float
        Where the lines are drawn for [K].

    References
    ----------
    Xiang et al. 2022, §5.2.
    """
    need_columns(frame, ["snr_g", "chi2_red", "chi2ratio"], "table of fits")
    snr, chi2, ratio = (frame[c].to_numpy(dtype=np.float64) for c in ("snr_g", "chi2_red", "chi2ratio"))
    bad = ratio > limit
    figure, (axes,) = blank_figure(SMALL)
    axes.plot(snr[~bad], chi2[~bad], ".", color=PALE, markersize=2, zorder=1, rasterized=True)
    axes.plot(snr[bad], chi2[bad], "x", color=VERMILION, markersize=4, label=f"chi2ratio > {limit:g}")
    known = snr[np.isfinite(snr) & (snr > 0)]
    if known.size:
        at = np.geomspace(known.min(), known.max(), 100)
        median, sigma = (np.exp(p.evaluate(teff, at)) for p in (model.log_median, model.log_sigma))
        axes.plot(at, median, color=BLACK, linewidth=1.2, label=f"median at {teff:g} K")
        axes.plot(at, median + limit * sigma, color=BLUE, linewidth=1.2, label=f"median + {limit:g} σ")
    _snr_ticks(axes)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("S/N per pixel in g")
    axes.set_ylabel("reduced χ²")
    axes.legend()
    return figure
