"""The report's figures: a catalog frame or plain arrays in, a matplotlib `Figure` out.

Nothing here touches pyplot or its global state, so figures can be drawn in any thread. `svg_uri` and `png_uri` turn a
figure into text for an ``<img>``. Colors are Okabe & Ito's for lines, cividis for values and one
hue of falling lightness for counts: all can be told apart with any color vision.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from hotdask import windows
from hotdask.errors import RunError
from hotdask.labels import INDEX, LABELS
from hotdask.windows import Window, air_to_vacuum

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
"""Okabe & Ito's palette, distinguishable with any color vision (its yellow is too faint for lines)."""

GRAY, PALE = "#666666", "#D9D9D9"
COLOR_MAP = "cividis"
DENSITY_MAP = LinearSegmentedColormap.from_list("density", ["#D3DFE8", "#6FA8CF", BLUE, "#06243A"])
HEXBIN_ABOVE = 3000
"""More marks than this are binned."""

CSS_PIXELS = 96
"""CSS pixels per inch: a figure of 4.8 inches is laid out 461 pixels wide."""

SMALL = (4.8, 3.7)
"""Size of a figure that stands beside others [inch]; its 9 pt text is still legible on a phone."""

DENSE = (3.9, 2.9)
"""Size of a figure that is one of three in a row [inch]."""

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "figure.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "hotdask",
}
styled = matplotlib.rc_context(_STYLE)
"""Decorates whatever builds or draws a figure: legends and ticks take their style when they are made."""

_UNITS = {"dex(cm/s2)": "dex(cm s$^{-2}$)", "km/s": "km s$^{-1}$", "Angstrom": "Å"}
_TEFF_TICKS = (10000, 20000, 40000, 7000, 30000, 15000, 60000, 8000, 12000, 25000, 50000, 9000, 6000)
"""In the order in which they are worth a label [K]."""

PAIRED = ("star_id", "uniqflag", "mjd", "snr_g", "in_sample", *(lb.name for lb in LABELS))
"""Columns that tell of repeat visits."""

_WHITE = 252
"""Colors above this in all channels are white."""
_TOO_FEW = 8
"""A bin with fewer values than this has no median worth drawing."""

_HELIUM_METALS_AIR = (
    (3933.66, "Ca II"),
    (4026.19, "He I"),
    (4120.82, "He I"),
    (4130.88, "Si II"),
    (4143.76, "He I"),
    (4233.17, "Fe II"),
    (4267.18, "C II"),
    (4387.93, "He I"),
    (4471.48, "He I"),
    (4481.23, "Mg II"),
    (4541.59, "He II"),
    (4583.84, "Fe II"),
    (4685.70, "He II"),
    (4713.15, "He I"),
    (4921.93, "He I"),
    (5015.68, "He I"),
    (5169.03, "Fe II"),
    (5316.62, "Fe II"),
    (5411.52, "He II"),
    (5875.62, "He I"),
    (5891.58, "Na I"),
    (6347.11, "Si II"),
    (6371.37, "Si II"),
    (6678.15, "He I"),
    (7065.19, "He I"),
    (7774.17, "O I"),
    (8446.36, "O I"),
    (8498.02, "Ca II"),
    (8542.09, "Ca II"),
)
STRONG_LINES: tuple[tuple[float, str], ...] = tuple(
    sorted(
        (float(air_to_vacuum(air)), name)
        for air, name in (
            *_HELIUM_METALS_AIR,
            *((air, name) for name, air in {**windows.BALMER_AIR, **windows.PASCHEN_AIR}.items()),
        )
    )
)
"""Vacuum wavelength [Å] and name of the lines named over a spectrum (air wavelengths: NIST ASD)."""

PANELS: tuple[tuple[float, float], ...] = ((3745.0, 4700.0), (4680.0, 6480.0), (6460.0, 9005.0))
"""The three stretches a spectrum is drawn in, vacuum Å; narrow in the blue, where the lines are."""


def pretty_unit(unit: str) -> str:
    """A unit as an axis prints it.

    Examples
    --------
    >>> pretty_unit("km/s")
    'km s$^{-1}$'
    """
    return _UNITS.get(unit, unit)


def axis_title(name: str, *, prefix: str = "") -> str:
    """Symbol and unit of a label, as an axis title.

    Parameters
    ----------
    name : str
        A label of `hotdask.labels`.
    prefix : str
        Set before the symbol, e.g. ``"Δ"``.

    Examples
    --------
    >>> axis_title("vsini", prefix="Δ")
    'Δ$v\\\\,\\\\sin i$  [km s$^{-1}$]'
    """
    label = LABELS[INDEX[name]]
    return f"{prefix}{label.symbol}" + (f"  [{pretty_unit(label.unit)}]" if label.unit else "")


def robust_scatter(values: np.ndarray) -> float:
    """1.4826 × the median absolute deviation from the median, of the finite values; NaN if there are none.

    Examples
    --------
    >>> round(robust_scatter(np.array([1.0, 2.0, 3.0, 4.0, np.nan])), 4)
    1.4826
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if values.size else float("nan")


def need_columns(frame: pd.DataFrame, names: Sequence[str], what: str) -> None:
    """Refuse a frame that lacks columns.

    Raises
    ------
    RunError
        If any column is missing; the message names them.
    """
    missing = [n for n in names if n not in frame.columns]
    if missing:
        raise RunError(f"the {what} lacks the columns {missing}; write it with this version of hotdask")


@styled
def svg_text(figure: Figure) -> str:
    """The figure as an SVG element; the same figure always gives the same text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.S)
    # matplotlib writes six decimals of a point; two are finer than any screen.
    svg = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]).replace(" \n", " "), svg)
    return svg.strip()


def svg_uri(figure: Figure) -> str:
    """The figure as an SVG data URI, for figures of few marks."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg_text(figure).encode()).decode()


def inline_svg(figure: Figure, titles: Mapping[str, str], *, prefix: str, alt: str) -> str:
    """The figure as an SVG element of a page, whose marks say what they are when pointed at.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    titles : mapping of str to str
        What to say of a mark, by its ``gid``.
    prefix : str
        Of the ids, that must differ from those of other figures of the page.
    alt : str
        The words for those who cannot see it.
    """
    svg = svg_text(figure)
    svg = re.sub(
        r'<g id="([^"]*)">', lambda m: f"<g><title>{escape(titles[m[1]])}</title>" if m[1] in titles else "<g>", svg
    )
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)


@styled
def png_uri(figure: Figure) -> str:
    """The figure as a PNG data URI at twice the layout resolution, for figures of many marks."""
    figure.set_dpi(2 * CSS_PIXELS)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    return "data:image/png;base64," + base64.b64encode(shrink_png(image)).decode()


def shrink_png(image: Image.Image) -> bytes:
    """A PNG of 256 colors, which hold these drawings without a visible loss at a third of the size."""
    buffer = io.BytesIO()
    few = image.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    # Colors are means of their cells; the paper must not be gray.
    palette = np.array(few.getpalette(), dtype=np.uint8).reshape(-1, 3)
    palette[(palette >= _WHITE).all(axis=1)] = 255
    few.putpalette(palette.tobytes())
    few.save(buffer, format="png", compress_level=6)
    return buffer.getvalue()


@styled
def blank_figure(size: tuple[float, float], *, panels: int = 1, bar: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with its panels one below the other and, last in the list, the axes of a color bar if there is one.

    Margins are set in inches: an automatic layout draws everything three times, and this way the frames of figures
    that stand side by side line up.
    """
    width, height = size
    left, right, bottom, top, gap = 0.78, (0.98 if bar else 0.14), 0.52, 0.26, 0.62
    tall = (height - bottom - top - gap * (panels - 1)) / panels
    figure = Figure(figsize=size)
    axes = [
        figure.add_axes(
            (left / width, 1 - (top + tall + i * (tall + gap)) / height, 1 - (left + right) / width, tall / height)
        )
        for i in range(panels)
    ]
    if bar:
        axes.append(figure.add_axes((1 - (right - 0.1) / width, bottom / height, 0.12 / width, tall / height)))
    return figure, axes


def note(axes: Axes, text: str = "nothing to draw") -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GRAY)


def grouped(value: float, _position=None) -> str:
    """A whole number with its thousands apart; also what an axis calls for its ticks."""
    return f"{value:,.0f}".replace(",", "\u2009")


def teff_axis(axes: Axes, teff: np.ndarray, *, reverse: bool = True) -> None:
    """Make the x axis one of temperature: logarithmic, around the values, hot stars to the left unless told not to."""
    axes.set_xscale("log")
    if teff.size:
        low, high = float(teff.min()) / 1.03, float(teff.max()) * 1.03
        inches = axes.get_position().width * axes.figure.get_figwidth() / np.log(high / low)
        ticks: list[float] = []
        for tick in _TEFF_TICKS:
            if low <= tick <= high and all(abs(np.log(tick / t)) * inches > 0.44 for t in ticks):
                ticks.append(tick)
        axes.set_xticks(sorted(ticks) or [float(np.sqrt(low * high))])
        axes.set_xlim((high, low) if reverse else (low, high))
    axes.xaxis.set_major_formatter(FuncFormatter(grouped))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(axis_title("teff"))


def snr_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("S/N per pixel in g")


def _sample(catalog: pd.DataFrame, *names: str) -> tuple[np.ndarray, ...]:
    """The named columns of the rows in the sample in which all of them are finite, as float64."""
    need_columns(catalog, (*names, "in_sample"), "catalog")
    values = catalog.loc[catalog["in_sample"].to_numpy(bool), list(names)].to_numpy(np.float64)
    return tuple(values[np.isfinite(values).all(axis=1)].T)


def robust_limits(values: np.ndarray, *, tail: float = 0.5, pad: float = 0.08) -> tuple[float, float]:
    low, high = np.percentile(values, [tail, 100 - tail])
    width = (high - low) or max(abs(high), 1.0)
    return float(low - pad * width), float(high + pad * width)


def color_bar(figure: Figure, marks, axes: Axes, title: str, **options) -> None:
    bar = figure.colorbar(marks, cax=axes, **options)
    bar.set_label(title)
    bar.outline.set_visible(False)


def _density(axes: Axes, x: np.ndarray, y: np.ndarray) -> PolyCollection:
    """Hexagons colored by the number of spectra in them, x in logarithm."""
    return axes.hexbin(x, y, gridsize=(46, 30), xscale="log", bins="log", mincnt=1, cmap=DENSITY_MAP, linewidths=0.15)


@styled
def kiel_diagram(catalog: pd.DataFrame) -> Figure:
    """Kiel diagram of the sample: log g against Teff, both reversed, colored by [Fe/H].

    Parameters
    ----------
    catalog : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG`; only rows in the sample are drawn.

    Returns
    -------
    matplotlib.figure.Figure
        Points, or cells with the median [Fe/H] above `HEXBIN_ABOVE` spectra.
    """
    teff, logg, fe_h = _sample(catalog, "teff", "logg", "fe_h")
    figure, (axes, bar) = blank_figure((4.8, 4.2), bar=True)
    axes.set_ylabel(axis_title("logg"))
    if not teff.size:
        note(axes, "no spectrum in the sample")
        bar.remove()
    else:
        low, high = np.percentile(fe_h, [5, 95])
        color = {"cmap": COLOR_MAP, "vmin": low, "vmax": max(high, low + 0.1)}
        if teff.size > HEXBIN_ABOVE:
            marks = axes.hexbin(
                teff,
                logg,
                C=fe_h,
                reduce_C_function=np.median,
                gridsize=(60, 44),
                xscale="log",
                linewidths=0.15,
                **color,
            )
        else:
            marks = axes.scatter(teff, logg, c=fe_h, s=9, linewidths=0, alpha=0.85, **color)
        color_bar(
            figure, marks, bar, axis_title("fe_h", prefix="median " if teff.size > HEXBIN_ABOVE else ""), extend="both"
        )
    teff_axis(axes, teff)
    axes.invert_yaxis()
    return figure


@styled
def snr_histogram(catalog: pd.DataFrame) -> Figure:
    """Distribution of the S/N per pixel in g, of all spectra and of the sample."""
    need_columns(catalog, ("snr_g", "in_sample"), "catalog")
    snr = catalog["snr_g"].to_numpy(np.float64)
    usable = np.isfinite(snr) & (snr > 0)
    figure, (axes,) = blank_figure(SMALL)
    if not usable.any():
        note(axes)
    else:
        sample = catalog["in_sample"].to_numpy(bool)
        low, high = snr[usable].min(), snr[usable].max()
        bins = np.geomspace(low / 1.001, max(high * 1.001, low * 1.1), 41)
        axes.hist(snr[usable], bins, color=PALE, label=f"all ({grouped(usable.sum())})")
        inside = usable & sample
        axes.hist(
            snr[inside], bins, histtype="step", color=BLUE, lw=1.4, label=f"in the sample ({grouped(inside.sum())})"
        )
        axes.legend(loc="upper left")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.18)
    snr_axis(axes)
    axes.set_ylabel("spectra")
    return figure


@styled
def chi2_distribution(catalog: pd.DataFrame, *, limit: float = 10.0) -> Figure:
    """Distributions of the reduced chi-square and of chi2ratio, of the sample.

    Parameters
    ----------
    catalog : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG`.
    limit : float
        chi2ratio above which a fit is flagged as bad; marked by a line.
    """
    (chi2,) = _sample(catalog, "chi2_red")
    (ratio,) = _sample(catalog, "chi2ratio")
    figure, (upper, lower) = blank_figure((4.8, 4.8), panels=2)
    chi2 = chi2[chi2 > 0]
    if chi2.size:
        low, high = np.log10(chi2.min()), np.log10(chi2.max())
        upper.hist(chi2, np.logspace(low - 0.02, high + 0.02, 51), color=SKY)
        upper.axvline(1, color=BLACK, lw=0.9)
        upper.axvline(np.median(chi2), color=VERMILION, lw=1.2, ls="--", label=f"median {np.median(chi2):.2f}")
        upper.legend(loc="upper right")
        upper.set_xscale("log")
        upper.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 2.5 else (1,)))
        upper.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        upper.xaxis.set_minor_formatter(NullFormatter())
    else:
        note(upper)
    if ratio.size:
        top = 1.5 * limit
        above = int((ratio > limit).sum())
        # The last bin holds everything beyond the axis, so that no bad fit goes unseen.
        lower.hist(np.clip(ratio, -5, top - 1e-9), np.linspace(-5, top, 61), color=SKY, log=True)
        lower.axvline(limit, color=VERMILION, lw=1.2, ls="--")
        lower.set_xlim(-5, top)
        lower.set_title(f"limit {limit:g}: {grouped(above)} above", fontsize=8, color=VERMILION, loc="right")
    else:
        note(lower)
    upper.set_xlabel("reduced $\\chi^2$")
    lower.set_xlabel("$\\chi^2$ ratio (dispersions above the median at this $T_{\\rm eff}$ and S/N)")
    for axes in (upper, lower):
        axes.set_ylabel("spectra")
    return figure


def running_quantiles(x: np.ndarray, y: np.ndarray, *, bins: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Median x and the 16th, 50th and 84th percentiles of y in bins of equally many values.

    Parameters
    ----------
    x, y : (n,) float64
        Finite values.
    bins : int
        As many bins at most; fewer where a bin would hold too few values for a median.

    Returns
    -------
    center : (n_bin,) float64
    quantiles : (3, n_bin) float64

    Examples
    --------
    >>> center, q = running_quantiles(np.arange(100.0), np.arange(100.0), bins=2)
    >>> center.tolist(), q[1].tolist()
    ([24.5, 74.5], [24.5, 74.5])
    """
    bins = min(bins, len(x) // _TOO_FEW)
    if bins < 1:
        return np.empty(0), np.empty((3, 0))
    groups = np.array_split(np.argsort(x, kind="stable"), bins)
    center = np.array([np.median(x[g]) for g in groups])
    return center, np.array([np.percentile(y[g], [16, 50, 84]) for g in groups]).T


@styled
def recovered_against_true(merged: pd.DataFrame, name: str) -> Figure:
    """Fitted minus true value of one label against the true Teff, of a simulated survey.

    Parameters
    ----------
    merged : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG` and, for the same spectra, ``teff_true`` and ``<name>_true``; already
        restricted to the spectra that count.
    name : str
        The label.

    Returns
    -------
    matplotlib.figure.Figure
        Differences, their running median with the 16-84 % band, and their scatter (1.4826 MAD) in words.
    """
    need_columns(merged, (name, f"{name}_true", "teff_true"), "catalog joined with the truth")
    teff = merged["teff_true"].to_numpy(np.float64)
    difference = merged[name].to_numpy(np.float64) - merged[f"{name}_true"].to_numpy(np.float64)
    finite = np.isfinite(teff) & np.isfinite(difference)
    teff, difference = teff[finite], difference[finite]
    many = teff.size > HEXBIN_ABOVE
    figure, (axes,) = blank_figure(DENSE)
    if not teff.size:
        note(axes)
    else:
        limits = robust_limits(difference, tail=1.0, pad=0.15)
        shown = (difference >= limits[0]) & (difference <= limits[1])
        if many:
            # No color bar: in eleven panels side by side it would say eleven times that dark is many.
            _density(axes, teff[shown], difference[shown])
        else:
            axes.scatter(teff, difference, s=6, color=SKY, alpha=0.6, linewidths=0)
        axes.axhline(0, color=BLACK, lw=0.9)
        center, (low, middle, high) = running_quantiles(teff, difference)
        axes.plot(center, middle, color=VERMILION, lw=1.8)
        for edge in (low, high):
            axes.plot(center, edge, color=VERMILION, lw=1, ls="--")
        axes.set_ylim(limits)
        unit = pretty_unit(LABELS[INDEX[name]].unit)
        beyond = int((~shown).sum())
        axes.set_title(
            f"scatter {robust_scatter(difference):.3g} {unit}".rstrip()
            + (f"; {grouped(beyond)} beyond the axis" if beyond else ""),
            fontsize=8.5,
            loc="left",
        )
    teff_axis(axes, teff)
    axes.set_xlabel("true " + axis_title("teff"))
    axes.set_ylabel(axis_title(name, prefix="fitted − true "))
    return figure


def neighbors(catalog: pd.DataFrame, tolerance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of two visits of a star next to one another in S/N, of different nights and similar S/N, and its mean."""
    order = catalog.reset_index(drop=True).sort_values(["star_id", "uniqflag"])
    one, two = order.iloc[:-1], order.iloc[1:]
    star, night = (one[c].to_numpy() == two[c].to_numpy() for c in ("star_id", "mjd"))
    snr = [part["snr_g"].to_numpy(dtype=np.float64) for part in (one, two)]
    mean = (snr[0] + snr[1]) / 2
    pair = star & ~night & (np.abs(snr[0] - snr[1]) <= tolerance * mean)
    return one.index.to_numpy()[pair], two.index.to_numpy()[pair], mean[pair]


def repeat_pulls(catalog: pd.DataFrame, *, snr_tolerance: float = 0.2) -> pd.DataFrame:
    """Differences between successive visits of one star on different nights, in units of their combined error.

    Parameters
    ----------
    catalog : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG`; only rows in the sample count.
    snr_tolerance : float
        Visits whose S/N differ by more than this share of their mean are no pair.

    Returns
    -------
    pandas.DataFrame
        One row a pair, one column a label: Δ/√(err₁² + err₂²), float64.

    References
    ----------
    Xiang et al. 2022, §4.6.
    """
    names = [lb.name for lb in LABELS]
    errors = [f"{n}_err" for n in names]
    need_columns(catalog, [*PAIRED, *errors], "catalog")
    rows = catalog[catalog["in_sample"].to_numpy(bool)]
    one, two, _ = neighbors(rows, snr_tolerance)
    value, error = (rows[columns].to_numpy(np.float64) for columns in (names, errors))
    combined = np.hypot(error[one], error[two])
    combined[combined == 0] = np.nan
    difference = value[one] - value[two]
    return pd.DataFrame(difference / combined, columns=names)


@styled
def repeat_figure(pulls: pd.DataFrame) -> Figure:
    """Scatter of `repeat_pulls` per label: 1 where the errors describe the repeat visits."""
    figure, (axes,) = blank_figure((3.9, 3.3))
    scatter = np.array([robust_scatter(pulls[lb.name].to_numpy()) for lb in LABELS])
    rows = np.arange(len(LABELS))
    axes.hlines(rows, 1, np.nan_to_num(scatter, nan=1.0), color=SKY, lw=2)
    axes.plot(scatter, rows, "o", color=BLUE, ms=5)
    axes.axvline(1, color=BLACK, lw=0.9)
    axes.set_yticks(rows, [lb.symbol for lb in LABELS])
    axes.set_ylim(len(LABELS) - 0.5, -0.5)
    axes.set_xlim(0, max(2.0, 1.1 * float(np.nanmax(scatter, initial=0.0))))
    axes.set_xlabel("scatter of repeat visits / error")
    return figure


def vacuum_bounds(window) -> tuple[float, float, str]:
    """Vacuum bounds [Å] and name of a window, given as `Window` or as the air (low, high) of one."""
    if not isinstance(window, Window):
        low, high = window
        known = (*windows.FIT_MASK, *windows.HYDROGEN)
        window = next((w for w in known if (w.low, w.high) == (low, high)), Window(low, high, "masked", ""))
    # As in windows.inside: the dispersion formula has poles in the far ultraviolet; open ends stay open.
    low = float(air_to_vacuum(window.low)) if window.low > 2000 else window.low
    return low, float(air_to_vacuum(window.high)), window.name


def _rows_without_overlap(centers: Sequence[float], widths: Sequence[float], *, rows: int) -> list[int | None]:
    """For texts in order of position: the lowest row each fits in beside those before it, None where none is free."""
    ends = [-np.inf] * rows
    out: list[int | None] = []
    for center, width in zip(centers, widths, strict=True):
        row = next((i for i, end in enumerate(ends) if center - width / 2 >= end), None)
        if row is not None:
            ends[row] = center + width / 2
        out.append(row)
    return out


def _name_lines(axes: Axes, low: float, high: float, width: float) -> None:
    """Names of the strong lines above the axes, staggered in up to three rows, a tick down to each."""
    lines = [(w, name) for w, name in STRONG_LINES if low + 3 < w < high - 3]
    scale = width * 72 / (high - low)
    extents = [4.3 * len(name) + 3 for _, name in lines]
    placed = _rows_without_overlap([w * scale for w, _ in lines], extents, rows=3)
    for (wavelength, name), row in zip(lines, placed, strict=True):
        if row is not None:
            axes.annotate(
                name,
                (wavelength, 1.0),
                (0, 4 + 9 * row),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
                color="#333333",
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "#999999", "shrinkA": 0, "shrinkB": 0},
                annotation_clip=False,
            )


def _name_windows(axes: Axes, spans: list[tuple[float, float, str, str]], low: float, high: float, width: float):
    """Names of the shaded windows along the lower edge of the axes, in as many rows as they need."""
    named_above = {name for _, name in STRONG_LINES}
    shown = sorted(
        ((max(a, low) + min(b, high)) / 2, name, color)
        for a, b, name, color in spans
        if min(b, high) - max(a, low) > 1 and name not in named_above
    )
    scale = width * 72 / (high - low)
    extents = [4.1 * len(name) + 4 for _, name, _ in shown]
    # A name at the border of a panel is moved inward, not cut.
    centers = [
        float(np.clip((c - low) * scale, e / 2, width * 72 - e / 2))
        for (c, _, _), e in zip(shown, extents, strict=True)
    ]
    for (_, name, color), center, row in zip(
        shown, centers, _rows_without_overlap(centers, extents, rows=3), strict=True
    ):
        if row is not None:
            axes.annotate(
                name,
                (center / (width * 72), 0.0),
                (0, 3 + 8.5 * row),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=6.5,
                color=color,
            )


@styled
def spectrum_figure(
    wavelength: np.ndarray,
    flux: np.ndarray,
    ivar: np.ndarray,
    model_all: np.ndarray,
    model_hmasked: np.ndarray,
    used: np.ndarray,
    *,
    mask: Sequence = windows.FIT_MASK,
    hydrogen: Sequence = windows.HYDROGEN,
) -> Figure:
    """One normalized spectrum with both fits, the residuals and the masks, in three panels.

    Parameters
    ----------
    wavelength : (n_pixel,) float64
        Rest-frame vacuum wavelength [Å], increasing.
    flux, ivar : (n_pixel,) float
        Normalized flux and its inverse variance; ivar = 0 marks no data.
    model_all, model_hmasked : (n_pixel,) float
        Normalized best models of the all-lines fit and of the fit with hydrogen masked; NaN where there is none.
    used : (n_pixel,) bool
        Pixels of the all-lines fit.
    mask, hydrogen : sequence of Window or of (low, high)
        Air windows [Å] never fitted, and masked in the second fit.

    Returns
    -------
    matplotlib.figure.Figure
        Per panel: data, fits and shaded windows above; (data − all-lines model)/σ below.
    """
    width, left, right = 10.4, 0.62, 0.22
    legend, names_above, tall, short, ticks, title = 0.26, 0.45, 1.75, 0.55, 0.22, 0.3
    height = legend + len(PANELS) * (names_above + tall + short + ticks) + title - ticks + 0.2
    figure = Figure(figsize=(width, height))
    pairs = []
    for i in range(len(PANELS)):
        top = height - legend - names_above - i * (names_above + tall + short + ticks)
        box = (left / width, (top - tall) / height, 1 - (left + right) / width, tall / height)
        upper = figure.add_axes(box)
        lower = figure.add_axes((box[0], (top - tall - short) / height, box[2], short / height), sharex=upper)
        pairs.append((upper, lower))
    data = np.where(ivar > 0, flux, np.nan).astype(np.float64)
    used = np.asarray(used, bool) & np.isfinite(data)
    with np.errstate(invalid="ignore"):
        residual = (data - model_all) * np.sqrt(np.maximum(ivar, 0))
    spans = [
        *((*vacuum_bounds(w), "#A04000") for w in hydrogen),
        *((*vacuum_bounds(w), "#555555") for w in mask),
    ]
    for i, ((upper, lower), (low, high)) in enumerate(zip(pairs, PANELS, strict=True)):
        here = (wavelength >= low) & (wavelength <= high)
        for axes in (upper, lower):
            for windows_, color, alpha in ((hydrogen, ORANGE, 0.16), (mask, "#808080", 0.24)):
                for a, b, _ in map(vacuum_bounds, windows_):
                    if b > low and a < high:
                        axes.axvspan(max(a, low), min(b, high), color=color, alpha=alpha, lw=0)
        x = wavelength[here]
        upper.plot(x, data[here], color="#A6A6A6", lw=0.7, drawstyle="steps-mid", label="data, not fitted")
        upper.plot(
            x, np.where(used, data, np.nan)[here], color="#333333", lw=0.7, drawstyle="steps-mid", label="data, fitted"
        )
        upper.plot(x, model_hmasked[here], color=ORANGE, lw=1.5, label="fit with hydrogen masked")
        upper.plot(x, model_all[here], color=BLUE, lw=1.1, label="fit to all lines")
        lower.axhline(0, color=BLACK, lw=0.6)
        lower.plot(x, residual[here], color="#BDBDBD", lw=0.6, drawstyle="steps-mid")
        lower.plot(x, np.where(used, residual, np.nan)[here], color=BLUE, lw=0.6, drawstyle="steps-mid")
        visible = np.concatenate([v[here & np.isfinite(v)] for v in (np.where(used, data, np.nan), model_all)])
        if visible.size:
            bottom, top = np.percentile(visible, [0.2, 99.8])
            room = max(top - bottom, 0.05)
            upper.set_ylim(bottom - 0.30 * room, top + 0.12 * room)
        else:
            note(upper, "no pixel fitted")
        lower.set_ylim(-6, 6)
        lower.set_yticks((-4, 0, 4))
        upper.set_xlim(low, high)
        upper.tick_params(axis="x", labelbottom=False, length=0)
        upper.set_ylabel("normalized flux", fontsize=8.5)
        lower.set_ylabel("Δ/σ", fontsize=8.5)
        for axes in (upper, lower):
            axes.tick_params(labelsize=8)
            axes.yaxis.set_label_coords(-0.042, 0.5)
        _name_lines(upper, low, high, width - left - right)
        _name_windows(upper, spans, low, high, width - left - right)
        if i == 0:
            handles, names = upper.get_legend_handles_labels()
            figure.legend(
                handles, names, loc="upper right", ncols=4, bbox_to_anchor=(1 - right / width, 1.0), borderaxespad=0.2
            )
    pairs[-1][1].set_xlabel("rest wavelength, vacuum  [Å]")
    return figure
