"""Diagrams of a survey: the paper's planes for whatever catalog is given."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from hotdask.flags import Flag
from hotdask.labels import INDEX, LABELS
from hotdask.report import figures
from hotdask.report.figures import BLACK, BLUE, COLOR_MAP, GREEN, ORANGE, SKY, SMALL, VERMILION, axis_title
from hotdask.report.tracks import critical_curve

ROTATION_SNR = 50.0
"""S/N above which rotation and abundances are drawn (Xiang et al. 2022, Figs 16-17)."""
KIEL_SNR = 30.0
"""S/N above which the diagrams of Teff are drawn (Figs 13-15)."""
TEFF_RANGES = ((7000, 8500), (8500, 10000), (10000, 16000), (16000, 25000), (25000, np.inf))
"""Ranges whose vsini are compared [K]."""

MIN_PARALLAX = 5.0
"""Parallax over its error above which absolute magnitudes are drawn (Fig 14), where the catalog has it."""
HALO_LATITUDE, HALO_IRON = 15.0, -1.2
"""Galactic latitude [deg] above which, and [Fe/H] below which, a star is likely one of the halo (Fig 18)."""

_FEWEST = 5
"""Fewer stars of the halo than this are no group."""
_TITLES = {
    "m_ks": "$M_{K_s}$  [mag]",
    "bp_rp_0": "$(BP-RP)_0$  [mag]",
    "bp_rp": "observed $BP-RP$  [mag]",
    "abs_b": "Galactic latitude $|b|$  [deg]",
}


def _cells(n: int, height: float = 0.75) -> dict:
    """Hexagons of which a survey of n spectra fills many; height is that of the axes in widths."""
    across = int(np.clip(np.sqrt(n) / 1.6, 12, 50))
    return {"gridsize": (across, max(round(0.75 * height * across), 4)), "mincnt": 1, "linewidths": 0.15}


def title(name: str, **options) -> str:
    """Axis title of a label, or of a column of another catalog that the diagrams know."""
    return _TITLES.get(name) or axis_title(name, **options)


def clean(catalog: pd.DataFrame, names: Sequence[str], *, min_snr: float = 0.0) -> pd.DataFrame:
    """Rows of the sample without a bad fit, above an S/N, in which the named columns are finite."""
    figures.need_columns(catalog, (*names, "snr_g", "flags", "in_sample"), "catalog")
    values = catalog[list(names)].to_numpy(np.float64)
    good = catalog["in_sample"].to_numpy(bool) & (catalog["flags"].to_numpy(np.int64) & Flag.BAD_CHI2.value == 0)
    return catalog[good & (catalog["snr_g"].to_numpy(np.float64) > min_snr) & np.isfinite(values).all(axis=1)]


def _density(axes: Axes, x: np.ndarray, y: np.ndarray, *, log: bool, height: float = 1.0):
    """Hexagons in y and x (log10 where the axis is), colored by the number of spectra in them."""
    return axes.hexbin(
        x, y, xscale="log" if log else "linear", bins="log", cmap=figures.DENSITY_MAP, **_cells(len(x), height)
    )


@figures.styled
def plane(
    catalog: pd.DataFrame,
    x: str,
    y: str,
    *,
    color: str | None = None,
    tracks: pd.DataFrame | None = None,
    reverse: bool = False,
    min_snr: float = 0.0,
) -> Figure:
    """Two columns of the clean sample against each other.

    Parameters
    ----------
    catalog : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG`, and x, y and color if they are others.
    x, y : str
        Columns.
    color : str, optional
        A column whose median colors the cells; without it they show the number of spectra.
    tracks : pandas.DataFrame, optional
        Lines to draw over it, of `hotdask.report.tracks.read_tracks`; left out where they lack x or y.
    reverse : bool
        Whether y falls upward, as log g and magnitudes do.
    min_snr : float
        S/N above which spectra are drawn.
    """
    rows = clean(catalog, [x, y, *([color] if color else [])], min_snr=min_snr)
    figure, (axes, bar) = figures.blank_figure((4.8, 4.2), bar=True)
    first, second = rows[x].to_numpy(np.float64), rows[y].to_numpy(np.float64)
    log = x == "teff"
    many = len(rows) > figures.HEXBIN_ABOVE or (color is None and len(rows) > 400)
    if not len(rows):
        figures.note(axes, "no spectrum to draw")
        bar.remove()
    else:
        if color is None:
            if many:
                marks = _density(axes, first, second, log=log)
                _count_bar(figure, marks, bar)
            else:
                axes.scatter(first, second, s=9, color=BLUE, alpha=0.6, linewidths=0)
                bar.remove()
        else:
            value = rows[color].to_numpy(np.float64)
            low, high = np.percentile(value, [5, 95])
            scale = {"cmap": COLOR_MAP, "vmin": low, "vmax": max(high, low + 1e-3)}
            if many:
                marks = axes.hexbin(
                    first,
                    second,
                    C=value,
                    reduce_C_function=np.median,
                    xscale="log" if log else "linear",
                    **_cells(len(rows)),
                    **scale,
                )
            else:
                marks = axes.scatter(first, second, c=value, s=9, alpha=0.85, linewidths=0, **scale)
            figures.color_bar(figure, marks, bar, title(color, prefix="median " if many else ""), extend="both")
        axes.set_ylim(figures.robust_limits(second, tail=0.1))
    if log:
        figures.teff_axis(axes, first)
    elif len(rows):
        axes.set_xlim(figures.robust_limits(first, tail=0.1))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(title(x))
    axes.set_ylabel(title(y))
    if reverse:
        axes.invert_yaxis()
    if tracks is not None and len(rows) and {x, y} <= {*tracks.columns}:
        _draw_tracks(axes, tracks, x, y)
    return figure


def _draw_tracks(axes: Axes, tracks: pd.DataFrame, x: str, y: str) -> None:
    """Lines within the frame of what is drawn already, each named where it enters."""
    (left, right), (bottom, top) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
    for name, line in tracks.groupby("track", sort=False):
        inside = line[x].between(left, right) & line[y].between(bottom, top)
        if inside.any():
            axes.plot(line[x], line[y], color=VERMILION, lw=0.9, scalex=False, scaley=False)
            first = line[inside].iloc[0]
            axes.annotate(str(name), (first[x], first[y]), fontsize=7, color=VERMILION, ha="right", va="top")


@figures.styled
def vsini_histogram(catalog: pd.DataFrame) -> Figure:
    """Distributions of vsini, of all and by Teff, each of unit area."""
    rows = clean(catalog, ["teff", "vsini", "logg"], min_snr=ROTATION_SNR)
    rows = rows[rows["logg"] < 5]
    figure, (axes,) = figures.blank_figure(SMALL)
    if len(rows):
        top = max(100.0, float(np.percentile(rows["vsini"], 99.5)))
        bins = np.arange(0, top + 20, 20)
        weights = np.full(len(rows), 1 / (len(rows) * 20))
        axes.hist(rows["vsini"], bins, weights=weights, color=figures.PALE, label=f"all ({figures.grouped(len(rows))})")
        styles = zip(TEFF_RANGES, (ORANGE, GREEN, BLUE, VERMILION, BLACK), ("-", "--", "-.", ":", "-"), strict=True)
        for (low, high), color, style in styles:
            part = rows.loc[rows["teff"].between(low, high, inclusive="left"), "vsini"]
            if len(part) >= 20:
                name = f"{low / 1000:g}–{high / 1000:g} kK" if np.isfinite(high) else f"above {low / 1000:g} kK"
                weights = np.full(len(part), 1 / (len(part) * 20))
                axes.hist(
                    part,
                    bins,
                    weights=weights,
                    histtype="step",
                    color=color,
                    ls=style,
                    lw=1.3,
                    label=f"{name} ({figures.grouped(len(part))})",
                )
        axes.legend(loc="upper right")
    else:
        figures.note(axes, f"no spectrum of S/N above {ROTATION_SNR:g}")
    axes.set_xlabel(axis_title("vsini"))
    axes.set_ylabel("share of spectra  [(km s$^{-1}$)$^{-1}$]")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    return figure


@figures.styled
def rotation_diagram(catalog: pd.DataFrame, tracks: pd.DataFrame | None = None) -> Figure:
    """The sample's vsini against Teff and, where tracks give masses, the critical velocity (Eq 8)."""
    rows = clean(catalog, ["teff", "vsini", "logg"], min_snr=ROTATION_SNR)
    rows = rows[rows["logg"] < 5]
    figure = plane(rows, "teff", "vsini")
    axes = figure.axes[0]
    if len(rows):
        axes.set_ylim(0, max(1.05 * float(rows["vsini"].quantile(0.999)), 100))
    curve = critical_curve(tracks) if tracks is not None else pd.DataFrame()
    if len(curve) and len(rows):
        within = curve["teff"].between(*sorted(axes.get_xlim()))
        axes.plot(curve["teff"], curve["velocity"], color=VERMILION, lw=1.6, scalex=False, label="critical velocity")
        top = float(curve.loc[within, "velocity"].max()) if within.any() else 0.0
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.05 * top))
        axes.legend(loc="upper right")
    return figure


@figures.styled
def precision_against_bound(
    catalog: pd.DataFrame, name: str, snr_bound: np.ndarray | None = None, bound: np.ndarray | None = None
) -> Figure:
    """A label's error against S/N, beside the Cramér-Rao bound.

    Parameters
    ----------
    catalog : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG`.
    name : str
        The label.
    snr_bound, bound : (n,) float64, optional
        S/N of some spectra of the sample and the label's bound in each, in its unit.
    """
    rows = clean(catalog, ["snr_g", f"{name}_err"])
    snr, error = rows["snr_g"].to_numpy(np.float64), rows[f"{name}_err"].to_numpy(np.float64)
    keep = (snr > 0) & (error > 0)
    figure, (axes,) = figures.blank_figure(figures.DENSE)
    center, (low, middle, high) = figures.running_quantiles(snr[keep], error[keep])
    if center.size:
        axes.fill_between(center, low, high, color=SKY, alpha=0.35, lw=0)
        axes.plot(center, middle, "o-", color=BLUE, ms=4, lw=1.3, label="error, median and 16–84 %")
        least, most = low.min(), high.max()
        if bound is not None:
            near, (_, typical, _) = figures.running_quantiles(snr_bound, bound)
            axes.plot(near, typical, color=VERMILION, lw=1.3, ls="--", label="Cramér-Rao bound, median")
            least, most = min([least, *typical]), max([most, *typical])
        axes.set_ylim(0.8 * least, 2.5 * most)
        axes.set_xlim(center.min() / 1.15, center.max() * 1.15)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="upper right")
    else:
        figures.note(axes)
    figures.snr_axis(axes)
    axes.set_ylabel(axis_title(name, prefix="error of "))
    return figure


def bar_figure(names: Sequence[str], values: Sequence[float], xlabel: str) -> Figure:
    """Horizontal bars with their values, the first on top."""
    return _bars(names, values, xlabel)


@figures.styled
def _bars(names: Sequence[str], values: Sequence[float], xlabel: str) -> Figure:
    height = 0.75 + 0.24 * max(len(names), 2)
    figure = Figure(figsize=(4.8, height))
    axes = figure.add_axes((1.65 / 4.8, 0.52 / height, 2.7 / 4.8, 1 - 0.65 / height))
    rows = np.arange(len(names))
    axes.barh(rows, values, color=BLUE, height=0.68)
    for row, value in zip(rows, values, strict=True):
        axes.annotate(f"{value:.3g}", (value, row), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(rows, names, fontsize=8.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max([*values, 1e-9]))
    axes.set_xlabel(xlabel)
    return figure


@dataclass(frozen=True)
class Diagram:
    """A figure with its caption."""

    figure: Figure
    caption: str


def survey_diagrams(catalog: pd.DataFrame, tracks: pd.DataFrame | None = None) -> list[Diagram]:
    """The paper's diagrams (Figs 2, 9 and 13-18), those for which the catalog has columns.

    Parameters
    ----------
    catalog : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG`; of `hotdask.schema.JOINED` ``m_ks``, ``bp_rp_0``, ``g`` and
        ``parallax_over_error``; ``bp_rp``, the observed color [mag], and ``abs_b``, the distance from the
        Galactic plane [deg].
    tracks : pandas.DataFrame, optional
        As `plane` takes it.
    """

    def shown(names: Sequence[str], min_snr: float) -> str:
        return f" {len(clean(catalog, names, min_snr=min_snr)):,} spectra of S/N above {min_snr:g}."

    lines = "" if tracks is None else " Lines: the tracks given."
    kiel = {"tracks": tracks, "reverse": True, "min_snr": KIEL_SNR}
    out = [
        Diagram(
            plane(catalog, "teff", "logg", **kiel),
            "Stellar density in the Kiel diagram." + lines + shown(["teff", "logg"], KIEL_SNR),
        )
    ]
    if "g" in catalog:
        out.insert(0, Diagram(magnitude_diagram(catalog), "S/N against Gaia's G, all spectra of the catalog."))
    if "m_ks" in catalog:
        near = catalog
        if "parallax_over_error" in catalog:
            near = catalog[catalog["parallax_over_error"].to_numpy(np.float64) > MIN_PARALLAX]
        out += [
            Diagram(
                plane(near, "teff", "m_ks", color=color, **kiel),
                f"Absolute magnitude against temperature, colored by {LABELS[INDEX[color]].doc}."
                + lines
                + f" {len(clean(near, ['teff', 'm_ks', color], min_snr=KIEL_SNR)):,} spectra of S/N above {KIEL_SNR:g}"
                + (f", parallax over error above {MIN_PARALLAX:g}." if near is not catalog else "."),
            )
            for color in ("logg", "vsini")
        ]
    if "bp_rp" in catalog and "abs_b" in catalog:
        out.append(
            Diagram(
                plane(catalog, "teff", "bp_rp", color="abs_b", min_snr=KIEL_SNR),
                "Observed color against temperature, colored by Galactic latitude: dust reddens what is near the plane."
                + shown(["teff", "bp_rp", "abs_b"], KIEL_SNR),
            )
        )
    if "bp_rp_0" in catalog:
        out.append(
            Diagram(
                plane(catalog, "teff", "bp_rp_0", color="logg", tracks=tracks, min_snr=KIEL_SNR),
                "Dereddened color against temperature, colored by surface gravity."
                + lines
                + shown(["teff", "bp_rp_0", "logg"], KIEL_SNR),
            )
        )
    limited = f" S/N above {ROTATION_SNR:g}, log g below 5."
    critical = tracks is not None and len(critical_curve(tracks)) > 0
    hotter = catalog[catalog["teff"].to_numpy(np.float64) > 8000]
    out += [
        Diagram(
            vsini_histogram(catalog),
            "Distribution of projected rotation velocities, each of unit area."
            + limited
            + " Negative fits count as 0.",
        ),
        Diagram(
            rotation_diagram(catalog, tracks),
            "Rotation against temperature."
            + (" Line: critical velocity of the zero-age main sequence (Eq 8)." if critical else "")
            + limited,
        ),
        Diagram(
            plane(catalog[catalog["logg"].to_numpy(np.float64) < 5], "fe_h", "vsini", min_snr=ROTATION_SNR),
            "Rotation against iron abundance." + limited,
        ),
        Diagram(
            plane(catalog, "teff", "fe_h", min_snr=ROTATION_SNR),
            "Iron abundance against temperature." + shown(["teff", "fe_h"], ROTATION_SNR),
        ),
        Diagram(
            plane(hotter, "fe_h", "si_h", min_snr=ROTATION_SNR),
            "Silicon against iron, above 8000 K."
            + f" {len(clean(hotter, ['fe_h', 'si_h'], min_snr=ROTATION_SNR)):,} spectra of S/N above {ROTATION_SNR:g}.",
        ),
        Diagram(
            two_fits(catalog),
            "The fit to all lines and that with hydrogen masked, and their temperatures against each other: near 9500 "
            "K the first may pile up on either side, the catalog merges both."
            + shown(["teff_all", "teff_hmasked"], KIEL_SNR),
        ),
    ]
    halo = halo_stars(catalog)
    if len(halo) >= _FEWEST:
        out.append(
            Diagram(
                halo_diagram(catalog),
                f"{len(halo):,} spectra of S/N above {ROTATION_SNR:g}, more than {HALO_LATITUDE:g}° from the Galactic "
                f"plane, have [Fe/H] below −{-HALO_IRON:g} (points; the shade is the sample): mostly stars of the "
                "halo's blue horizontal branch and blue stragglers. Below, [Fe/H] of all at that latitude.",
            )
        )
    return out


def halo_stars(catalog: pd.DataFrame) -> pd.DataFrame:
    """Rows of the clean sample that are poor in iron and far from the Galactic plane (the paper's Fig 18)."""
    if "abs_b" not in catalog:
        return catalog.head(0)
    rows = clean(catalog, ["teff", "logg", "fe_h", "abs_b"], min_snr=ROTATION_SNR)
    return rows[(rows["abs_b"] > HALO_LATITUDE) & (rows["fe_h"] < HALO_IRON)]


@figures.styled
def halo_diagram(catalog: pd.DataFrame) -> Figure:
    """Stars of the halo in the Kiel diagram, and [Fe/H] of all at their latitude (the paper's Fig 18)."""
    rows, halo = clean(catalog, ["teff", "logg", "fe_h", "abs_b"], min_snr=ROTATION_SNR), halo_stars(catalog)
    figure, (upper, lower) = figures.blank_figure((4.8, 5.4), panels=2)
    teff, logg = rows["teff"].to_numpy(np.float64), rows["logg"].to_numpy(np.float64)
    upper.hexbin(teff, logg, xscale="log", bins="log", cmap="Greys", **_cells(len(rows), 0.6))
    upper.plot(halo["teff"], halo["logg"], "o", color=VERMILION, ms=3, mew=0)
    upper.set_ylim(figures.robust_limits(np.append(logg, halo["logg"].to_numpy(np.float64)), tail=0.1))
    figures.teff_axis(upper, teff)
    upper.invert_yaxis()
    upper.set_ylabel(axis_title("logg"))
    iron = rows.loc[(rows["abs_b"] > HALO_LATITUDE) & (rows["fe_h"] < -0.5), "fe_h"]
    bins = np.arange(np.floor(10 * iron.min()) / 10, -0.45, 0.1)
    lower.hist(iron, bins, color=figures.PALE, edgecolor="#888888", lw=0.5)
    lower.axvline(HALO_IRON, color=VERMILION, lw=1.2, ls="--")
    lower.set_xlabel(axis_title("fe_h"))
    lower.set_ylabel(f"spectra at |b| > {HALO_LATITUDE:g}°")
    return figure


@figures.styled
def magnitude_diagram(catalog: pd.DataFrame) -> Figure:
    """S/N of all spectra against Gaia's G (the paper's Fig 2)."""
    figures.need_columns(catalog, ("g", "snr_g"), "catalog")
    magnitude, snr = (catalog[name].to_numpy(np.float64) for name in ("g", "snr_g"))
    known = np.isfinite(magnitude) & (snr > 0)
    magnitude, snr = magnitude[known], snr[known]
    figure, (axes, bar) = figures.blank_figure((4.8, 4.2), bar=True)
    if snr.size:
        marks = axes.hexbin(magnitude, snr, yscale="log", bins="log", cmap=figures.DENSITY_MAP, **_cells(snr.size, 1.0))
        _count_bar(figure, marks, bar)
        axes.set_xlim(figures.robust_limits(magnitude, tail=0.1))
    else:
        figures.note(axes, "no spectrum with a magnitude")
        bar.remove()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_xlabel("Gaia $G$  [mag]")
    axes.set_ylabel("S/N per pixel in g")
    return figure


def _count_bar(figure: Figure, marks, bar: Axes) -> None:
    figures.color_bar(figure, marks, bar, "spectra per cell", format=FuncFormatter(figures.grouped))
    bar.yaxis.set_minor_formatter(NullFormatter())
    bar.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


@figures.styled
def two_fits(catalog: pd.DataFrame) -> Figure:
    """Kiel diagrams of both fits, and their temperatures against each other (the paper's Fig 9)."""
    figure, (*panels, last) = figures.blank_figure((4.8, 9.0), panels=3)
    names = ("all", "fit to all lines"), ("hmasked", "fit with hydrogen masked")
    for axes, (which, what) in zip(panels, names, strict=True):
        rows = clean(catalog, [f"teff_{which}", f"logg_{which}"], min_snr=KIEL_SNR)
        teff, logg = (rows[f"{n}_{which}"].to_numpy(np.float64) for n in ("teff", "logg"))
        if len(rows):
            _density(axes, teff, logg, log=True, height=0.6)
            axes.set_ylim(figures.robust_limits(logg, tail=0.1))
        else:
            figures.note(axes, "no spectrum to draw")
        figures.teff_axis(axes, teff)
        axes.invert_yaxis()
        axes.set_ylabel(axis_title("logg"))
        axes.set_title(what, fontsize=8.5, loc="left")
    rows = clean(catalog, ["teff_all", "teff_hmasked"], min_snr=KIEL_SNR)
    masked, full = (rows[f"teff_{which}"].to_numpy(np.float64) for which in ("hmasked", "all"))
    if len(rows):
        last.hexbin(
            masked, full, xscale="log", yscale="log", bins="log", cmap=figures.DENSITY_MAP, **_cells(len(rows), 0.6)
        )
        low, high = min(masked.min(), full.min()), max(masked.max(), full.max())
        last.plot([low, high], [low, high], color=BLACK, lw=0.7)
        figures.teff_axis(last, masked, reverse=False)
        last.set_yticks(last.get_xticks())
        last.set_ylim(low / 1.03, high * 1.03)
        last.yaxis.set_major_formatter(FuncFormatter(figures.grouped))
        last.yaxis.set_minor_formatter(NullFormatter())
        last.minorticks_off()
    else:
        figures.note(last, "no spectrum to draw")
    last.set_xlabel(axis_title("teff") + ", hydrogen masked")
    last.set_ylabel(axis_title("teff") + ", all lines")
    return figure
