"""The recovery page: how well labels come back from spectra the emulator never saw, as one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hotdask import windows
from hotdask.labels import INDEX, LABEL_NAMES, LABELS
from hotdask.report import figures
from hotdask.report.formats import format_count, format_number, symbol_html, unit_html
from hotdask.report.render import fact_rows, picture, render

_FITS = {"single": "all lines, one start", "all": "all lines, catalog’s starts", "catalog": "catalog"}
_WHICH = {"all": "All lines", "hmasked": "Hydrogen masked"}


def write_recovery_page(result: Any, out: str | Path) -> None:
    """Write the page of a recovery test: HTML that loads nothing from anywhere.

    Parameters
    ----------
    result : hotdask.validation.recovery.Recovery
    out : path
        The file to write.
    """
    Path(out).write_text(recovery_page(result), encoding="utf-8")


def recovery_page(result: Any) -> str:
    """The page as text; see `write_recovery_page`."""
    numbers = result.numbers
    experiments = numbers["experiments"]
    reference = numbers["about"]["design"]["reference_snr"]
    shown = [e for e in experiments if e["snr"] == reference] or experiments[-1:]
    main = shown[0]
    stars = result.stars[result.stars["experiment"] == main["name"]]
    about = numbers["about"]
    context = {
        "title": "Recovery of labels from unseen syntheses",
        "about": about,
        "shown": [{"name": e["name"], "rows": _rows(e["catalog"])} for e in shown],
        "label_figures": [_label_picture(stars, name, main["name"]) for name in LABEL_NAMES],
        "experiment_names": [e["name"] for e in experiments],
        "snr_rows": [
            {**row, "found": [_number(e["catalog"][i]["gaussian"]) for e in experiments]}
            for i, row in enumerate(_rows(main["catalog"]))
        ],
        "sampling": main["sampling"],
        "iron_rows": [
            {**row, **{name: _number(main[name][i]["gaussian"]) for name in ("metal_rich", "metal_poor")}}
            for i, row in enumerate(_rows(main["catalog"]))
        ],
        "iron_counts": {name: main[name][0]["n"] for name in ("metal_rich", "metal_poor")},
        "ratio_figures": _ratio_pictures(main, numbers["fiducial"]),
        "fiducial": {**numbers["fiducial"], "rows": _rows(numbers["fiducial"]["table"])},
        "near_name": main["name"],
        "near_rows": _rows(main["near_fiducial"]),
        "desert_figures": [
            _desert_picture(found, result.desert.query("source == @found['source'] and snr == @found['snr']"))
            for found in numbers["desert"]
        ],
        "desert_rows": [
            {"source": found["source"], "snr": found["snr"], "how": name}
            | {key: _number(value) for key, value in found[how].items() if key not in ("edges", "true", "found")}
            for found in numbers["desert"]
            for how, name in _FITS.items()
        ],
        "minima_snr": numbers["minima"]["snr"],
        "minima_figures": [
            picture(
                minima_figure(rows),
                alt=f"{_WHICH[which]}: share of fits in a local minimum against CPU time a spectrum.",
                caption=f"{_WHICH[which]}: share of fits over 1 in χ² above the best known, against what they cost.",
            )
            for which, rows in numbers["minima"]["strategies"].items()
        ],
        "minima": [
            {"name": _WHICH[which], "rows": rows, "note": _minima_note(numbers["minima"]["facts"][which])}
            for which, rows in numbers["minima"]["strategies"].items()
        ],
        "about_rows": fact_rows(
            {
                "emulator": about["emulator"] or "not stored",
                "library": f"{about['library']}, {about['syntheses']} syntheses, {about['held_out']} held out",
                "spectra of each experiment": about["design"]["spectra"],
                "noise": "Gaussian, the same S/N per pixel of the continuum at every wavelength",
                "line spread, varied": f"σ of its width {100 * about['design']['lsf_scatter']:g} %, arm by arm",
                "seed": about["design"]["seed"],
            }
        ),
    }
    return render("recovery.html", context)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _rows(table: Sequence[Mapping]) -> list[dict]:
    """Rows of a residual table as the page prints them."""
    return [
        {key: _number(value) for key, value in row.items()}
        | {"symbol": symbol_html(row["label"]), "unit": "%" if row["unit"] == "%" else unit_html(row["label"])}
        for row in table
    ]


def _label_picture(stars: pd.DataFrame, name: str, experiment: str):
    return picture(
        figures.recovered_against_true(stars, name),
        alt=f"Fitted minus true {name} of {len(stars)} stars against their true Teff, {experiment}.",
        caption=f"{LABELS[INDEX[name]].doc.capitalize()}: fitted − true, {experiment}.",
        many=True,
    )


def _ratio_pictures(main: Mapping, fiducial: Mapping) -> list:
    paper = {row["label"]: _number(row["gaussian"]) / row["paper"] for row in main["catalog"]}
    bounds = {
        "held-out stars": {row["label"]: _number(row["pull_gaussian"]) for row in main["catalog"]},
        "those like the B star": {row["label"]: _number(row["pull_gaussian"]) for row in main["near_fiducial"]},
        "fiducial B star": {row["label"]: _number(row["pull_gaussian"]) for row in fiducial["table"]},
    }
    worst = max(paper, key=lambda name: np.nan_to_num(paper[name]))
    return [
        picture(
            ratio_figure({"held-out stars": paper}, "Gaussian σ / the paper’s", goal=1.0),
            alt=f"Scatter of each label over the paper’s; highest for {worst}, {paper[worst]:.2g}.",
            caption=f"Scatter of each label over the paper’s, {main['name']}. Left of the line is better.",
        ),
        picture(
            ratio_figure(bounds, "Gaussian σ of residual / bound", goal=1.5),
            alt="Scatter of each label over the Cramér-Rao bound, for all stars and for the fiducial B star.",
            caption="Gaussian σ of residuals in units of each star’s own bound; the line is the fiducial star’s goal."
            + (" Its spectrum is the emulator’s own." if fiducial["source"] == "emulator" else ""),
        ),
    ]


@figures.styled
def ratio_figure(series: Mapping[str, Mapping[str, float]], title: str, *, goal: float) -> Figure:
    """One row a label, one mark a series: a ratio, beside the value it should stay below.

    Parameters
    ----------
    series : mapping of str to mapping of label name to float
        Ratios; NaN is not drawn.
    title : str
        Of the axis.
    goal : float
        Marked by a line.
    """
    figure, (axes,) = figures.blank_figure((4.8, 3.9))
    rows = np.arange(len(LABELS))
    for (name, values), color, marker in zip(
        series.items(), (figures.BLUE, figures.ORANGE, figures.GREEN), "osD", strict=False
    ):
        axes.plot([values[n] for n in LABEL_NAMES], rows, marker, color=color, ms=5, ls="", label=name)
    axes.axvline(goal, color=figures.BLACK, lw=0.9)
    axes.set_yticks(rows, [lb.symbol for lb in LABELS])
    axes.set_ylim(len(LABELS) - 0.5, -0.5)
    found = [v for values in series.values() for v in values.values() if np.isfinite(v)]
    axes.set_xlim(0, 1.08 * max((1.3 * goal, *found)))
    axes.set_xlabel(title)
    axes.grid(axis="y", color=figures.PALE, lw=0.5)
    if len(series) > 1:
        axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


def _desert_picture(found: Mapping, rows: pd.DataFrame):
    source = found["source"]
    made = "made from syntheses the emulator never saw" if source == "syntheses" else f"made by the {source}"
    return picture(
        desert_figure(rows, found["catalog"]["edges"]),
        alt=f"Histograms of Teff of {len(rows)} stars {made}, S/N {found['snr']:g}: true, all lines from one start, "
        "and catalog.",
        caption=f"{format_count(len(rows))} stars {made}, S/N {found['snr']:g}. The line marks 9500 K.",
    )


@figures.styled
def desert_figure(rows: pd.DataFrame, edges: Sequence[float]) -> Figure:
    """Histograms of Teff around 9500 K: true, all lines from one start, as cataloged.

    Parameters
    ----------
    rows : pandas.DataFrame
        ``teff_true``, ``teff_single`` and ``teff`` [K].
    edges : (n,) float
        Of the bins [K], as `hotdask.validation.recovery.desert_numbers` gives them.
    """
    figure, (axes,) = figures.blank_figure(figures.SMALL)
    axes.hist(rows["teff_true"], edges, color=figures.PALE, label="true")
    for column, color, name in (
        ("teff_single", figures.VERMILION, "all lines, one start (Eq 4)"),
        ("teff", figures.BLUE, "catalog"),
    ):
        axes.hist(rows[column].dropna(), edges, histtype="step", color=color, lw=1.5, label=name)
    axes.axvline(windows.HYDROGEN_MAXIMUM, ymax=0.76, color=figures.BLACK, lw=0.8, ls=":")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xticks(np.arange(1000 * np.ceil(edges[0] / 1000), edges[-1], 1000))
    axes.xaxis.set_major_formatter(lambda v, _: format_number(v, 4))
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.legend(loc="upper left", ncols=2)
    axes.set_xlabel(figures.axis_title("teff"))
    axes.set_ylabel(f"stars per {edges[1] - edges[0]:g} K")
    return figure


def _minima_note(facts: Mapping) -> str:
    text = (
        f"Of {facts['spectra']:,} spectra, {100 * facts['best_outside']:.1f} % have their best minimum outside the "
        f"library; in {100 * facts['catalog_better']:.1f} % the catalog’s is the better one."
    ).replace(",", "\u2009", 1)
    if facts["refitted"]:
        text += (
            f" The catalog made {100 * facts['refitted']:.1f} % of its all-lines fits again from the masked one, on "
            f"purpose; {100 * facts['worse_refitted']:.1f} % of all spectra are so above the best χ²."
        )
    return text


@figures.styled
def minima_figure(rows: Sequence[Mapping]) -> Figure:
    """Share of fits above the best χ² known against CPU time, for each way to start.

    Parameters
    ----------
    rows : sequence of mapping
        ``kind``, ``seconds``, ``worse_any`` of `hotdask.validation.recovery.count_minima`.
    """
    figure, (axes,) = figures.blank_figure(figures.SMALL)
    groups = {
        "catalog + space-filling": ("catalog", "both"),
        "space-filling": ("filling",),
        "one start, Eq 4": ("single",),
    }
    for (name, kinds), color, marker in zip(
        groups.items(), (figures.BLUE, figures.ORANGE, figures.VERMILION), "osD", strict=True
    ):
        members = [r for r in rows if r["kind"] in kinds]
        axes.plot(
            [1000 * r["seconds"] for r in members],
            [100 * r["worse_any"] for r in members],
            marker=marker,
            color=color,
            ms=5,
            lw=1.2,
            label=name,
        )
    axes.axhline(1, color=figures.BLACK, lw=0.9, ls=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("CPU ms a spectrum")
    axes.set_ylabel("above the best $\\chi^2$  [%]")
    axes.legend(loc="upper right")
    return figure
