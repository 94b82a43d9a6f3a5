"""The information page: what spectra can tell of labels, as one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hotdask import windows
from hotdask.labels import INDEX, LABEL_NAMES, LABELS, N_LABELS
from hotdask.report import figures
from hotdask.report.figures import BLACK, BLUE, GRAY, GREEN, ORANGE, PALE, VERMILION
from hotdask.report.formats import symbol_html, unit_html
from hotdask.report.render import Picture, fact_rows, picture, render

SCALES = {
    "teff": (1000.0, "1000 K"),
    "vmic": (5.0, "5 km s$^{-1}$"),
    "vsini": (20.0, "20 km s$^{-1}$"),
    "n_he": (0.05, "0.05"),
}
"""What gradients are multiplied with to be drawn, as in the paper's Fig 3; the others are for one dex."""
REASONS = (
    "On the B star, with Voigt profiles of helium, one step after the other. From the photons of a black body to the "
    "S/N of real LAMOST spectra, which falls to half at 3950 Å: "
    "Teff 90 to 115 K, log g 0.015 to 0.020, He 0.0029 to 0.0038.",
    "The paper’s atmospheres answer to helium (ATLAS12); ours keep the structure of the solar mixture. With T kept "
    "at each Rosseland depth and hydrostatic equilibrium solved again as helium changes: Teff 137 K, log g 0.024, "
    "He 0.0057, and He correlates with Teff and log g by −0.60 and −0.71 instead of −0.31 and −0.53 (the paper "
    "speaks of a strong anticorrelation).",
    "The paper’s bound is over some 55 elements, ours over 11 labels. With Ne, Mg, Al, Ca, Ar, P, Cr, Ti, Ni and Mn "
    "free besides: Teff 144 K, log g 0.025, He 0.0059, [Fe/H] 0.088 to 0.103. If lines have the continuum’s noise "
    "and not their own photons’: Teff 160 K, log g 0.027, He 0.0062.",
    "Every label of the B star but Teff is then within a factor of 1.7 of the paper’s rounded values. The factor of "
    "1.9 left in Teff is not explained. It would take hydrogen lines that weigh less: with their photons’ noise, "
    "Teff goes from 144 to 197 K without the Paschen lines and all below 4000 Å, and to 576 K without any hydrogen. "
    "Of little effect are Stark profiles of helium (He 0.0038 to 0.0034, Teff the same), the slope of the "
    "normalization (0.1 %), the emulator instead of the engine (3 % in Teff) and, with the emulator, R = 1400 "
    "instead of 1800 (10 % in Teff) and the star’s vmic (0-5 km/s: 5 %).",
    "The A star’s bounds lie within a factor of 2.1 of the paper’s, with the emulator and with the engine, most of "
    "them below.",
)
"""Why our bounds differ from the paper's; text, since none of it is computed with the page.

Measured once with version 0.1 at S/N 100 on the fiducial B star (`hotdask.steps.information.B_STAR`). Gradients are
central finite differences of normalized spectra of `hotdask.library.synthesis.HotdaskEngine` with ``helium="voigt"``,
R = 1800, half steps of 200 K, 0.05 in log g, 0.5 and 5 km/s in vmic and vsini, 0.01 in helium and 0.1 dex in every
abundance. Bounds are of `hotdask.steps.information.bound_from_gradients` with photon noise
(`hotdask.steps.information.noise`), first for the ``photons`` curve, then for the ``lamost`` curve. Then one thing
after another is changed, the earlier changes kept: helium's gradient from atmospheres whose temperature at each
Rosseland depth is kept while hydrostatic equilibrium is solved with the new opacity; ten more elements as free
labels; and, each by itself, the noise of the continuum in lines or windows masked. The A star's bounds are of the
shipped emulator and of the engine.
"""
_WIDE = 10.4
_STRONG = 0.3
"""Correlations weaker than this are not named."""


def write_information_page(out: str | Path, **content) -> None:
    """Write the page, HTML that loads nothing from anywhere; ``content`` as `information_page` takes it."""
    Path(out).write_text(information_page(**content), encoding="utf-8")


def information_page(
    *,
    stars: Sequence[Any],
    shares: Sequence[np.ndarray],
    regions: Sequence,
    against_teff: Mapping[str, tuple[np.ndarray, np.ndarray]],
    teff_gradients: Mapping[float, np.ndarray],
    anchors: pd.DataFrame,
    about: Mapping[str, str],
    engine_teff_gradients: Mapping[float, np.ndarray] | None = None,
    notes: Sequence[str] | None = None,
    explain: bool = False,
    emulated: Sequence[np.ndarray] | None = None,
    checks: Sequence[pd.DataFrame] | None = None,
    mask: Sequence = windows.FIT_MASK,
    hydrogen: Sequence = windows.HYDROGEN,
) -> str:
    """The page as text.

    Parameters
    ----------
    stars : sequence of hotdask.steps.information.Information
    shares : sequence of (11, n_region) float64
        For each star, by how much σ of each label grows without a region.
    regions : sequence of Window
    against_teff : mapping of str to ((n,), (n, 11)) float64
        Name of a fit to temperatures [K] and σ of each label there.
    teff_gradients : mapping of float to (3801,) float64
        Temperature [K] to the emulator's derivative of the flux by it [1/K].
    anchors : pandas.DataFrame
        Of `hotdask.steps.information.anchor_table`.
    about : mapping of str to str
        How it was computed.
    engine_teff_gradients : mapping of float to (3801,) float64, optional
        The same by an engine, drawn over it.
    notes : sequence of str, optional
        For each star, what the reader should be warned of; may be empty.
    explain : bool
        Whether `REASONS` stands below the paper's bounds: they are of the fiducial stars with default settings.
    emulated : sequence of (11, 3801) float64, optional
        The emulator's gradients, drawn over the stars' own, and with ``checks`` (`compare_gradients`) beside them.
    mask, hydrogen : sequence of Window or (low, high)
        Air windows [Å] not used, and those masked besides in the second fit.
    """
    sections = []
    for i, star in enumerate(stars):
        check = None if checks is None else checks[i]
        sections.append(
            {
                "id": f"star-{i + 1}",
                "name": star.name,
                "what": f"{_describe(star.labels)}; S/N {star.snr:g} at 4650 Å.",
                "note": "" if notes is None else notes[i],
                "checked": check is not None,
                "rows": _rows(star, check, mask),
                "small": _small_pictures(star, anchors),
                "wide": _wide_pictures(
                    star, shares[i], regions, None if emulated is None else emulated[i], mask, hydrogen
                ),
            }
        )
    context = {
        "title": "What spectra of hot stars can tell",
        "stars": sections,
        "against": _against_pictures(against_teff, teff_gradients, engine_teff_gradients, mask),
        "anchors": [
            {**row, "symbol": symbol_html(row["label"]), "unit": unit_html(row["label"])}
            for row in anchors.to_dict("records")
        ],
        "reasons": REASONS if explain else (),
        "about": fact_rows(about),
    }
    return render("information.html", context)


def _describe(labels: np.ndarray) -> str:
    """The labels in a line, for an introduction; zero abundances are left out.

    Examples
    --------
    >>> _describe(np.array([9500, 4, 2, 100, 0.09, 0, 0, 0, 0.5, 0, 0]))
    'teff 9500 K, logg 4, vmic 2 km/s, vsini 100 km/s, n_he 0.09, si_h 0.5'
    """
    shown = [lb for lb, value in zip(LABELS, labels, strict=True) if value or INDEX[lb.name] < INDEX["c_h"]]
    return ", ".join(
        f"{lb.name} {labels[INDEX[lb.name]]:g}" + (f" {lb.unit}" if lb.unit in ("K", "km/s") else "") for lb in shown
    )


def _sigma(covariance: np.ndarray) -> np.ndarray:
    return np.sqrt(np.diagonal(covariance))


def strongest(correlation: np.ndarray, *, least: float = _STRONG, at_most: int = 3) -> list[list[tuple[str, float]]]:
    """For each label, the labels its error is most correlated with, and how much.

    Parameters
    ----------
    correlation : (11, 11) float64
        Of `hotdask.steps.information.correlations`; NaN names nothing.
    least : float
        Weaker correlations are left out.
    at_most : int
        Labels named.

    Examples
    --------
    >>> correlation = np.eye(11)
    >>> correlation[0, 1] = correlation[1, 0] = -0.5
    >>> strongest(correlation)[0]
    [('logg', -0.5)]
    """
    out = []
    for i, row in enumerate(correlation):
        order = [j for j in np.argsort(-np.abs(row)) if j != i and abs(row[j]) >= least]
        out.append([(LABEL_NAMES[j], round(float(row[j]), 3)) for j in order[:at_most]])
    return out


def _rows(star: Any, check: pd.DataFrame | None, mask: Sequence) -> list[dict]:
    used = ~windows.inside(windows.rest_wavelength(), mask)
    with np.errstate(divide="ignore"):
        alone = 1 / np.sqrt((star.gradient[:, used] ** 2 * star.ivar[used]).sum(axis=1))
    partners = strongest(star.correlation)
    rows = []
    for i, name in enumerate(LABEL_NAMES):
        row = {
            "symbol": symbol_html(name),
            "unit": unit_html(name),
            "value": float(star.labels[i]),
            "sigma": float(_sigma(star.covariance)[i]),
            "masked": float(_sigma(star.masked)[i]),
            "alone": float(alone[i]),
            "partners": Markup(", ").join(
                Markup("{} {}").format(symbol_html(n), f"{c:+.2f}".replace("-", "−")) for n, c in partners[i]
            ),
        }
        rows.append(row | ({} if check is None else check.loc[name].to_dict()))
    return rows


def _small_pictures(star: Any, anchors: pd.DataFrame) -> list[Picture]:
    at_100 = abs(star.snr - 100) < 1e-9
    paper = anchors[anchors["star"] == star.name].set_index("label")["paper"] if at_100 else {}
    correlation = star.correlation
    pairs = sorted(
        (
            (LABEL_NAMES[i], LABEL_NAMES[j], correlation[i, j])
            for i in range(N_LABELS)
            for j in range(i)
            if np.isfinite(correlation[i, j])
        ),
        key=lambda pair: -abs(pair[2]),
    )
    return [
        picture(
            bound_figure({"all lines": _sigma(star.covariance), "hydrogen masked": _sigma(star.masked)}, dict(paper)),
            alt=f"Cramér-Rao bound of each label of the {star.name} on a logarithmic axis, with and without hydrogen.",
            caption=f"Bounds at S/N {star.snr:g}, the temperature’s in 1000 K."
            + (" Black: the paper’s, rounded." if len(paper) else ""),
        ),
        picture(
            correlation_figure(correlation),
            alt=f"Matrix of correlations of the {star.name}’s labels; strongest "
            + ", ".join(f"{a} with {b} {c:.2f}" for a, b, c in pairs[:3]),
            caption="Correlations of the errors, all lines.",
        ),
    ]


def _wide_pictures(
    star: Any, share: np.ndarray, regions: Sequence, emulated: np.ndarray | None, mask: Sequence, hydrogen: Sequence
) -> list[Picture]:
    most = [regions[i].name for i in np.argmax(np.where(np.isnan(share), -1, share), axis=1)]
    known = ~np.isnan(share).all(axis=1)
    return [
        picture(
            gradient_figure(star.gradient, star.flux, emulated, mask=mask, hydrogen=hydrogen),
            alt=f"Gradient spectra of the {star.name}, one panel a label, below its spectrum.",
            caption="Spectrum, and its derivative by each label"
            + (": engine black, emulator red." if emulated is not None else ".")
            + " Orange: hydrogen, masked in the second fit; gray: never fitted.",
            many=True,
        ),
        picture(
            region_figure(share, [w.name for w in regions]),
            alt=f"Growth of each label’s error without a region of the spectrum, {star.name}; most for "
            + ", ".join(f"{n} {m}" for n, m, k in zip(LABEL_NAMES, most, known, strict=True) if k),
            caption="By how many percent σ grows if a region is masked (wavelengths in air, Å).",
        ),
    ]


def _against_pictures(
    against_teff: Mapping[str, tuple[np.ndarray, np.ndarray]],
    teff_gradients: Mapping[float, np.ndarray],
    engine_teff_gradients: Mapping[float, np.ndarray] | None,
    mask: Sequence,
) -> list[Picture]:
    by_engine = any("engine" in name for name in against_teff)
    return [
        picture(
            against_teff_figure(against_teff),
            alt="Cramér-Rao bound of each label against Teff, with and without hydrogen, one panel a label.",
            caption="Bounds against temperature by the emulator, other labels as the first star’s."
            + (" Dots: the engine." if by_engine else ""),
        ),
        picture(
            teff_gradient_figure(teff_gradients, engine_teff_gradients, mask=mask),
            alt="Derivative of the spectrum by Teff at "
            + ", ".join(f"{t:.0f} K" for t in teff_gradients)
            + "; in hydrogen lines it changes sign near 9500 K.",
            caption="The emulator’s derivative by temperature around 9500 K, where hydrogen lines are strongest "
            "(log g 4.5): there it changes sign, and a fit of all lines has little to hold on to."
            + (" Black: the engine’s." if engine_teff_gradients else ""),
            many=True,
        ),
    ]


@figures.styled
def gradient_figure(
    gradient: np.ndarray,
    flux: np.ndarray,
    other: np.ndarray | None = None,
    *,
    mask: Sequence = windows.FIT_MASK,
    hydrogen: Sequence = windows.HYDROGEN,
) -> Figure:
    """Spectrum and gradient spectra, one panel a label (the paper's Fig 3).

    Parameters
    ----------
    gradient : (11, 3801) float64
        Derivative of the flux by each label; drawn in percent, times `SCALES`.
    flux : (3801,) float64
        Normalized flux.
    other : (11, 3801) float64, optional
        Drawn over it.
    mask, hydrogen : sequence of Window or (low, high)
        Shaded.
    """
    wavelength = windows.rest_wavelength()
    fitted = ~windows.inside(wavelength, mask)
    left, right, top, bottom, panel, gap = 1.2, 0.15, 0.12, 0.48, 0.82, 0.09
    height = top + bottom + (N_LABELS + 1) * panel + N_LABELS * gap
    figure = Figure(figsize=(_WIDE, height))
    for i in range(N_LABELS + 1):
        low = height - top - (i + 1) * panel - i * gap
        axes = figure.add_axes((left / _WIDE, low / height, 1 - (left + right) / _WIDE, panel / height))
        for spans, color, alpha in ((hydrogen, ORANGE, 0.16), (mask, "#808080", 0.24)):
            for a, b, _ in map(figures.vacuum_bounds, spans):
                if b > wavelength[0] and a < wavelength[-1]:
                    axes.axvspan(max(a, wavelength[0]), min(b, wavelength[-1]), color=color, alpha=alpha, lw=0)
        axes.set_xlim(wavelength[0], wavelength[-1])
        axes.tick_params(labelsize=8, labelbottom=i == N_LABELS)
        if i == 0:
            axes.plot(wavelength, flux, color=BLACK, lw=0.7)
            axes.set_ylabel("flux", rotation=0, ha="right", va="center")
            continue
        label = LABELS[i - 1]
        scale, _ = SCALES.get(label.name, (1.0, ""))
        axes.axhline(0, color=GRAY, lw=0.5)
        axes.plot(wavelength, 100 * scale * gradient[i - 1], color=BLACK, lw=0.8)
        drawn = [gradient[i - 1]]
        if other is not None:
            axes.plot(wavelength, 100 * scale * other[i - 1], color=VERMILION, lw=0.7)
            drawn.append(other[i - 1])
        shown = 100 * scale * np.concatenate([d[fitted] for d in drawn])
        reach = max(float(shown.max() - shown.min()), 1e-3)
        axes.set_ylim(shown.min() - 0.08 * reach, shown.max() + 0.08 * reach)
        unit = f"\n/ {SCALES[label.name][1]}" if label.name in SCALES else "\n/ dex"
        axes.set_ylabel(f"{label.symbol}{unit}", rotation=0, ha="right", va="center", fontsize=8.5)
        axes.yaxis.set_label_coords(-0.045, 0.5)
        axes.locator_params(axis="y", nbins=4)
    figure.axes[0].yaxis.set_label_coords(-0.045, 0.5)
    figure.axes[-1].set_xlabel("rest wavelength, vacuum  [Å];  derivatives in percent of the continuum")
    return figure


@figures.styled
def teff_gradient_figure(
    gradients: Mapping[float, np.ndarray],
    other: Mapping[float, np.ndarray] | None = None,
    *,
    mask: Sequence = windows.FIT_MASK,
) -> Figure:
    """Derivative by temperature at several temperatures, one below the other (the paper's Fig A.1).

    Parameters
    ----------
    gradients : mapping of float to (3801,) float64
        Teff [K] to d flux/d Teff [1/K]; drawn in percent a 1000 K.
    other : mapping of float to (3801,) float64, optional
        Drawn below it, where it has that Teff.
    mask : sequence of Window or (low, high)
        Air windows [Å] shaded, and ignored by the axes' limits.
    """
    wavelength = windows.rest_wavelength()
    fitted = ~windows.inside(wavelength, mask)
    top = max(float(np.abs(1e5 * g[fitted]).max()) for g in gradients.values())
    left, right, above, bottom, panel, gap = 0.95, 0.15, 0.12, 0.48, 0.95, 0.09
    height = above + bottom + len(gradients) * panel + (len(gradients) - 1) * gap
    figure = Figure(figsize=(_WIDE, height))
    for i, (teff, gradient) in enumerate(gradients.items()):
        low = height - above - (i + 1) * panel - i * gap
        axes = figure.add_axes((left / _WIDE, low / height, 1 - (left + right) / _WIDE, panel / height))
        for a, b, _ in map(figures.vacuum_bounds, mask):
            if b > wavelength[0] and a < wavelength[-1]:
                axes.axvspan(max(a, wavelength[0]), min(b, wavelength[-1]), color="#808080", alpha=0.24, lw=0)
        axes.axhline(0, color=GRAY, lw=0.5)
        if other is not None and teff in other:
            axes.plot(wavelength, 1e5 * other[teff], color=BLACK, lw=0.8)
        axes.plot(wavelength, 1e5 * gradient, color=BLUE, lw=0.8)
        axes.set_xlim(wavelength[0], wavelength[-1])
        axes.set_ylim(-1.05 * top, 1.05 * top)
        axes.tick_params(labelsize=8, labelbottom=i == len(gradients) - 1)
        axes.set_ylabel(f"{figures.grouped(teff)} K", rotation=0, ha="right", va="center", fontsize=8.5)
        axes.yaxis.set_label_coords(-0.045, 0.5)
    figure.axes[-1].set_xlabel("rest wavelength, vacuum  [Å];  derivatives in percent of the continuum a 1000 K")
    return figure


@figures.styled
def bound_figure(series: Mapping[str, np.ndarray], paper: Mapping[str, float]) -> Figure:
    """Bound of each label on one logarithmic axis, Teff in 1000 K (the paper's Figs 4 and B.1).

    Parameters
    ----------
    series : mapping of str to (11,) float64
        Name of a fit to σ of each label.
    paper : mapping of str to float
        Label name to the paper's bound.
    """
    unit = np.where(np.arange(N_LABELS) == INDEX["teff"], 1e-3, 1.0)
    figure, (axes,) = figures.blank_figure((4.8, 3.9))
    rows = np.arange(N_LABELS)
    for (name, sigma), color, marker in zip(series.items(), (BLUE, ORANGE, GREEN), "osD", strict=False):
        axes.plot(
            np.where(np.isfinite(sigma), sigma * unit, np.nan), rows, marker, color=color, ms=5.5, ls="", label=name
        )
    if paper:
        at = [INDEX[name] for name in paper]
        axes.plot(unit[at] * list(paper.values()), at, "|", color=BLACK, ms=11, mew=1.6, ls="", label="paper")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_yticks(rows, [lb.symbol for lb in LABELS])
    axes.set_ylim(N_LABELS - 0.5, -0.5)
    axes.set_xlabel("bound  [1000 K, dex, km s$^{-1}$]")
    axes.grid(axis="y", color=PALE, lw=0.5)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


@figures.styled
def correlation_figure(correlation: np.ndarray) -> Figure:
    """Matrix of correlations, each number written in its cell (the paper's Fig 5)."""
    figure, (axes,) = figures.blank_figure((4.8, 4.7))
    below = np.tril(np.ones_like(correlation, dtype=bool), -1)
    axes.imshow(np.where(below, correlation, np.nan), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for i, j in zip(*np.nonzero(below), strict=True):
        value = correlation[i, j]
        if not np.isfinite(value):
            continue
        text = f"{value:.2f}".replace("-", "−").replace("0.", ".", 1)
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if abs(value) > 0.65 else BLACK)
    axes.set_xticks(range(N_LABELS), [lb.symbol for lb in LABELS], rotation=55, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(N_LABELS), [lb.symbol for lb in LABELS])
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlim(-0.5, N_LABELS - 1.5)
    axes.set_ylim(N_LABELS - 0.5, 0.5)
    axes.spines[:].set_visible(False)
    return figure


@figures.styled
def region_figure(share: np.ndarray, names: Sequence[str]) -> Figure:
    """By how much each label's bound grows without a region of the spectrum, in percent.

    Parameters
    ----------
    share : (11, n_region) float64
        σ_without/σ − 1.
    names : sequence of str
        Of the regions.
    """
    height = 4.3
    figure = Figure(figsize=(_WIDE, height))
    axes = figure.add_axes((0.8 / _WIDE, 1.05 / height, 1 - 0.95 / _WIDE, 1 - 1.2 / height))
    percent = 100 * share
    axes.imshow(
        np.log10(np.clip(percent, 1, None)), cmap=figures.DENSITY_MAP, vmin=0, vmax=2.2, aspect="auto", alpha=0.9
    )
    for i, j in np.ndindex(percent.shape):
        if percent[i, j] >= 1:
            text = f"{percent[i, j]:.0f}" if np.isfinite(percent[i, j]) else "all"
            axes.text(
                j, i, text, ha="center", va="center", fontsize=7.5, color="white" if percent[i, j] > 15 else BLACK
            )
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(N_LABELS), [lb.symbol for lb in LABELS])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    return figure


@figures.styled
def against_teff_figure(series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Bound of each label against temperature, one panel a label.

    Parameters
    ----------
    series : mapping of str to ((n,), (n, 11)) float64
        Name of a fit to temperatures [K] and σ of each label; an engine's are few, and drawn as dots.
    """
    columns, rows, height = 4, 3, 6.4
    figure = Figure(figsize=(_WIDE, height))
    wide, tall = (_WIDE - 0.2) / columns, (height - 0.15) / rows
    for i, label in enumerate(LABELS):
        x, y = 0.1 + i % columns * wide, height - 0.1 - (i // columns + 1) * tall
        axes = figure.add_axes(((x + 0.62) / _WIDE, (y + 0.46) / height, (wide - 0.72) / _WIDE, (tall - 0.72) / height))
        for (name, (teff, sigma)), color in zip(series.items(), (BLUE, ORANGE, BLACK), strict=False):
            style = {"marker": "o", "ms": 3.5, "ls": ""} if "engine" in name else {"lw": 1.3}
            axes.plot(teff, np.where(np.isfinite(sigma[:, i]), sigma[:, i], np.nan), color=color, label=name, **style)
        figures.teff_axis(axes, np.concatenate([teff for teff, _ in series.values()]), reverse=False)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=7.5)
        axes.set_title(figures.axis_title(label.name, prefix="σ "), fontsize=8.5, loc="left")
        axes.set_xlabel("$T_{\\rm eff}$  [K]", fontsize=8)
        axes.grid(color=PALE, lw=0.5)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="lower right", bbox_to_anchor=(1 - 0.4 / _WIDE, 0.9 / height)
    )
    return figure
