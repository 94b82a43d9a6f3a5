"""The report of a run: one HTML page that needs no network and no other file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from hotdask import schema
from hotdask.errors import RunError
from hotdask.flags import CUTS, DESCRIPTIONS, Flag
from hotdask.labels import LABEL_NAMES, LABELS, PAPER_LABELS, Label
from hotdask.report import diagrams, errors, figures
from hotdask.report.formats import format_number, symbol_html, unit_html
from hotdask.report.render import Picture, fact_groups, picture, render
from hotdask.report.spectrum import SpectrumView, page_address, view_facts

_MIN_PAIRS = 10
"""Fewer repeat pairs than this say nothing about the errors."""


@dataclass(frozen=True)
class Throughput:
    """What a step cost: spectra, seconds of the clock (NaN if unknown), and CPU seconds of its kernels by name."""

    step: str
    rows: int
    seconds: float
    kernels: Mapping[str, float] = field(default_factory=dict)


def join_truth(catalog: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Catalog rows of the sample without a bad fit, beside the truth of the same spectra.

    Parameters
    ----------
    catalog, truth : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG` and of `hotdask.schema.TRUTH`.

    Raises
    ------
    RunError
        If a column is missing, or the truth holds a spectrum twice.
    """
    columns = ["specid", *(f"{n}_{kind}" for kind in ("true", "crb") for n in LABEL_NAMES)]
    figures.need_columns(truth, columns, "table of true labels")
    figures.need_columns(catalog, ["specid", "flags", "in_sample", *LABEL_NAMES], "catalog")
    twice = truth.loc[truth["specid"].duplicated(), "specid"]
    if len(twice):
        raise RunError(f"the table of true labels holds {twice.iloc[0]} twice; keep one row a spectrum")
    bad = (catalog["flags"].to_numpy(np.int64) & Flag.BAD_CHI2.value) != 0
    return catalog[catalog["in_sample"].to_numpy(bool) & ~bad].merge(truth[columns], on="specid", how="inner")


def recovery_table(catalog: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """How well the labels of a simulated survey come back, over the sample without bad fits.

    Parameters
    ----------
    catalog, truth : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG` and of `hotdask.schema.TRUTH`.

    Returns
    -------
    pandas.DataFrame
        One row a label, the index its name: ``unit``; ``n`` spectra with a finite difference; ``scatter`` = 1.4826
        times the median absolute deviation of fitted − true and ``bias``, its median, in the label's unit; ``crb``,
        the median Cramér-Rao bound in the label's unit; ``ratio``, the scatter of (fitted − true)/bound; ``pull``,
        the scatter of (fitted − true)/error. NaN where there is nothing to average.

    Raises
    ------
    RunError
        If a column is missing, or the truth holds a spectrum twice.

    References
    ----------
    Xiang et al. 2022, §3 (bound) and §4.3 (recovery).
    """
    merged = join_truth(catalog, truth)
    figures.need_columns(merged, [f"{n}_err" for n in LABEL_NAMES], "catalog")
    rows = []
    for label in LABELS:
        fit, true, bound, error = (
            merged[label.name + suffix].to_numpy(np.float64) for suffix in ("", "_true", "_crb", "_err")
        )
        difference = fit - true
        finite = np.isfinite(difference)
        rows.append(
            {
                "label": label.name,
                "unit": label.unit,
                "n": int(finite.sum()),
                "scatter": figures.robust_scatter(difference),
                "bias": _median(difference),
                "crb": _median(bound[finite]),
                "ratio": figures.robust_scatter(difference / _positive(bound)),
                "pull": figures.robust_scatter(difference / _positive(error)),
            }
        )
    return pd.DataFrame(rows).set_index("label")


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _median(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else float("nan")


def build_report(
    *,
    catalog: pd.DataFrame,
    rejects: pd.DataFrame | None = None,
    provenance: Mapping | None = None,
    spectra: Sequence[SpectrumView] = (),
    truth: pd.DataFrame | None = None,
    scaling: Mapping | None = None,
    reasons: Mapping[str, str] | None = None,
    chi2: object | None = None,
    max_chi2ratio: float = 10.0,
    snr_tolerance: float = 0.2,
    tracks: pd.DataFrame | None = None,
    bounds: pd.DataFrame | None = None,
    throughput: Sequence[Throughput] = (),
    compared: Picture | None = None,
    site: bool = False,
    run: str = "RUN",
    title: str = "hotdask report",
) -> str:
    """The first page of a run's report.

    Parameters
    ----------
    catalog : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG`, one row a spectrum; may be empty.
    rejects : pandas.DataFrame, optional
        Columns of `hotdask.schema.REJECTS`, one row a file that could not be used.
    provenance : mapping, optional
        What made the catalog (content of ``run.json``); nested mappings become groups of rows.
    spectra : sequence of SpectrumView
        Spectra that have a page (`hotdask.report.spectrum.spectrum_page`), to be listed.
    truth : pandas.DataFrame, optional
        Columns of `hotdask.schema.TRUTH`, for a simulated survey.
    scaling : mapping, optional
        What the error scaling found; shown as it is.
    reasons : mapping of str to str, optional
        A sentence per reason code of the rejects.
    chi2 : hotdask.steps.flag.Chi2Model, optional
        Median and dispersion of chi2_red over the survey, to be drawn over its fits.
    max_chi2ratio : float
        chi2ratio above which a fit was flagged as bad.
    snr_tolerance : float
        Repeat visits whose S/N differ by more than this share are no pair.
    tracks : pandas.DataFrame, optional
        Of `hotdask.report.tracks.read_tracks`, to be drawn over the stars.
    bounds : pandas.DataFrame, optional
        ``specid`` of some spectra and ``<label>_crb``, the Cramér-Rao bound of each, to set errors beside.
    throughput : sequence of Throughput
        What each step cost.
    compared : Picture, optional
        Differences from the labels of a second emulator.
    site : bool
        Whether explorer and method lie beside the page, to be linked.
    run : str
        The run's folder, as a command would name it.
    title : str
        Title of the page.

    Returns
    -------
    str
        HTML that loads nothing from anywhere. Every string given is escaped.

    Raises
    ------
    RunError
        If a table lacks a column.
    """
    figures.need_columns(catalog, [c.name for c in schema.CATALOG], "catalog")
    if rejects is None:
        rejects = schema.empty_frame(schema.REJECTS)
    figures.need_columns(rejects, [c.name for c in schema.REJECTS], "table of rejects")
    recovery, recovered = _recovery(catalog, truth)
    pulls = figures.repeat_pulls(catalog, snr_tolerance=snr_tolerance)
    context = {
        "title": title,
        "simulated": truth is not None,
        "counts": _counts(catalog, rejects),
        "cuts": _cut_rows(catalog),
        "site": site,
        "run": run,
        "diagrams": _diagrams(catalog, tracks),
        "bounded": len(_bounded(catalog, bounds)),
        "reject_figures": _reject_figures(rejects),
        "throughput": [_throughput_row(step) for step in throughput],
        "kernel_figures": _kernel_figures(throughput),
        "sample_figures": _sample_figures(catalog, chi2, max_chi2ratio=max_chi2ratio),
        "error_figures": _error_figures(catalog, bounds, pulls),
        "repeat_figures": _repeat_figures(catalog, snr_tolerance=snr_tolerance) if len(pulls) >= _MIN_PAIRS else [],
        "compared": compared,
        "scaling": fact_groups(scaling or {}, scalars_named="error scaling"),
        "recovery": recovery,
        "recovered": recovered,
        "shown_labels": [{"symbol": symbol_html(n), "unit": unit_html(n)} for n in PAPER_LABELS],
        "spectra": [{**view_facts(view, PAPER_LABELS), "page": page_address(view.specid)} for view in spectra],
        "rejects": _reject_rows(rejects, reasons or {}),
        "flags": _flag_rows(catalog),
        "provenance": fact_groups(provenance or {}),
    }
    return render("run.html", context)


def _counts(catalog: pd.DataFrame, rejects: pd.DataFrame) -> list[dict]:
    n, sample = len(catalog), catalog["in_sample"].to_numpy(bool)
    bad = (catalog["flags"].to_numpy(np.int64) & Flag.BAD_CHI2.value) != 0
    rows = [
        ("read", n + len(rejects), "files read"),
        ("rejected", len(rejects), "rejected, with a reason each"),
        ("catalog", n, "spectra in the catalog"),
        ("fitted", int(np.isfinite(catalog["teff"].to_numpy(np.float64)).sum()), "with labels"),
        ("sample", int(sample.sum()), "in the sample"),
        ("cut", n - int(sample.sum()), "cut from the sample, kept with a flag"),
        ("stars", int(catalog.loc[sample, "star_id"].nunique()), "stars in the sample"),
        ("good", int((sample & ~bad).sum()), "in the sample without a bad fit"),
    ]
    return [{"id": key, "n": value, "what": what} for key, value, what in rows]


def _flag_rows(catalog: pd.DataFrame) -> list[dict]:
    bits = catalog["flags"].to_numpy(np.int64)
    sample = catalog["in_sample"].to_numpy(bool)
    return [
        {
            "name": flag.name,
            "bit": flag.value,
            "n": int(has.sum()),
            "share": float(has.mean()) if len(has) else 0.0,
            "in_sample": int((has & sample).sum()),
            "sentence": DESCRIPTIONS[flag],
        }
        for flag in Flag
        for has in ((bits & flag.value) != 0,)
    ]


def _cut_rows(catalog: pd.DataFrame) -> list[dict]:
    """Spectra that each cut takes, and that it alone takes."""
    bits = catalog["flags"].to_numpy(np.int64)
    every = sum(flag.value for flag in CUTS.values())
    return [
        {
            "name": flag.name,
            "n": int(((bits & flag.value) != 0).sum()),
            "alone": int(((bits & every) == flag.value).sum()),
            "sentence": DESCRIPTIONS[flag],
        }
        for flag in CUTS.values()
        if (bits & flag.value).any()
    ]


def _diagrams(catalog: pd.DataFrame, tracks: pd.DataFrame | None) -> list[Picture]:
    if not catalog["in_sample"].any():
        return []
    return [
        picture(d.figure, alt="Diagram of the survey. " + d.caption, caption=d.caption, many=True)
        for d in diagrams.survey_diagrams(catalog, tracks)
    ]


def _reject_figures(rejects: pd.DataFrame) -> list[Picture]:
    counts = rejects["reason"].value_counts()
    if len(counts) < 2:
        return []
    figure = diagrams.bar_figure([str(r) for r in counts.index], counts.tolist(), "files rejected")
    said = ", ".join(f"{reason} {n}" for reason, n in counts.items())
    return [picture(figure, alt=f"Bars of rejected files by reason: {said}.", caption="Rejected files by reason.")]


def _throughput_row(step: Throughput) -> dict:
    cpu = sum(step.kernels.values()) if step.kernels else float("nan")
    return {
        "step": step.step,
        "rows": step.rows,
        "seconds": step.seconds,
        "rate": step.rows / step.seconds if step.seconds > 0 else float("nan"),
        "cpu": cpu,
        "each": 1e3 * cpu / step.rows if step.rows else float("nan"),
    }


def _kernel_figures(throughput: Sequence[Throughput]) -> list[Picture]:
    out = []
    for step in throughput:
        costs = sorted(((cpu, name) for name, cpu in step.kernels.items() if cpu > 0), reverse=True)[:12]
        if costs and step.rows:
            each = [1e3 * cpu / step.rows for cpu, _ in costs]
            names = [name for _, name in costs]
            said = ", ".join(f"{name} {format_number(value)}" for name, value in zip(names, each, strict=True))
            out.append(
                picture(
                    diagrams.bar_figure(names, each, "CPU ms a spectrum"),
                    alt=f"CPU milliseconds a spectrum of the kernels of {step.step}: {said}.",
                    caption=f"What {step.step} costs, by kernel.",
                )
            )
    return out


def _reject_rows(rejects: pd.DataFrame, reasons: Mapping[str, str]) -> list[dict]:
    rows = []
    for reason, group in rejects.groupby("reason", dropna=False):
        example = group.iloc[0]
        code = "unknown" if pd.isna(reason) else str(reason)
        rows.append(
            {
                "reason": code,
                "n": len(group),
                "sentence": str(reasons.get(code, "")),
                "file": "" if pd.isna(example["fitsname"]) else str(example["fitsname"]),
                "detail": "" if pd.isna(example["detail"]) else str(example["detail"]),
            }
        )
    return sorted(rows, key=lambda row: (-row["n"], row["reason"]))


def _sample_figures(catalog: pd.DataFrame, chi2: object | None, *, max_chi2ratio: float) -> list[Picture]:
    n = int(catalog["in_sample"].sum())
    if not len(catalog):
        return []
    ratio = catalog.loc[catalog["in_sample"].to_numpy(bool), "chi2ratio"].to_numpy(np.float64)
    missing = int(np.isnan(ratio).sum())
    binned = n > figures.HEXBIN_ABOVE
    snr = catalog["snr_g"].to_numpy(np.float64)
    ridge = [] if chi2 is None else [_ridge_picture(catalog, chi2, max_chi2ratio=max_chi2ratio)]
    return [
        picture(
            figures.kiel_diagram(catalog),
            alt=f"Kiel diagram of {n} spectra: surface gravity against effective temperature, colored by [Fe/H]; "
            f"median Teff {format_number(_sample_median(catalog, 'teff'), 4)} K, "
            f"median log g {format_number(_sample_median(catalog, 'logg'))}.",
            caption="Kiel diagram of the sample. "
            + ("Cells are colored by their median [Fe/H]." if binned else "Each point is a spectrum."),
            many=True,
        ),
        picture(
            figures.snr_histogram(catalog),
            alt=f"Histogram of the signal-to-noise ratio in g; median {format_number(_median(snr))}.",
            caption="Signal-to-noise ratio per pixel in g, of all spectra and of the sample."
            + _unseen(int((~(snr > 0)).sum()), "without a positive S/N not shown"),
        ),
        picture(
            figures.chi2_distribution(catalog, limit=max_chi2ratio),
            alt="Histograms of the reduced chi-square, "
            f"median {format_number(_sample_median(catalog, 'chi2_red'))}, and of chi2ratio, "
            f"{int((ratio > max_chi2ratio).sum())} above {max_chi2ratio:g}.",
            caption="Reduced χ² of the merged labels, and how many dispersions it lies above the median at the same "
            f"temperature and S/N; beyond {max_chi2ratio:g} a fit counts as bad. The end bins hold what lies outside."
            + _unseen(missing, "without chi2ratio not shown"),
        ),
        *ridge,
    ]


def _ridge_picture(catalog: pd.DataFrame, chi2: object, *, max_chi2ratio: float) -> Picture:
    return picture(
        errors.chi2_ridge(catalog, chi2, limit=max_chi2ratio),
        alt="Reduced chi-square against signal-to-noise ratio, with the survey's median and the limit of chi2ratio.",
        caption="Reduced χ² of all fits over S/N, with the median and the limit of chi2ratio as they are at 9000 K.",
        many=True,
    )


def _unseen(n: int, what: str) -> str:
    return f" {n:,} {what}." if n else ""


def _sample_median(catalog: pd.DataFrame, name: str) -> float:
    return _median(catalog.loc[catalog["in_sample"].to_numpy(bool), name].to_numpy(np.float64))


def _bounded(catalog: pd.DataFrame, bounds: pd.DataFrame | None) -> pd.DataFrame:
    """S/N, errors and bounds of the spectra of the clean sample whose bounds are known."""
    if bounds is None:
        return catalog.head(0)
    rows = diagrams.clean(catalog, ["snr_g", "teff_err"])
    return rows[rows["snr_g"] > 0].merge(bounds, on="specid")


def _precision_picture(catalog: pd.DataFrame, bounded: pd.DataFrame, label: Label) -> Picture:
    caption = label.doc[0].upper() + label.doc[1:] + "."
    known: list[np.ndarray] = []
    if len(bounded):
        error, bound = (bounded[f"{label.name}_{kind}"].to_numpy(np.float64) for kind in ("err", "crb"))
        snr = bounded["snr_g"].to_numpy(np.float64)
        usable = np.isfinite(bound) & (bound > 0) & (error > 0)
        known = [snr[usable], bound[usable]] if usable.any() else []
        caption += (
            f" An error is {_median(error[usable] / bound[usable]):.2f} times its bound (median)." if known else ""
        )
    return picture(
        diagrams.precision_against_bound(catalog, label.name, *known),
        alt=f"Error of {label.doc} against signal-to-noise ratio; median over the sample "
        f"{format_number(_sample_median(catalog, label.name + '_err'))}.",
        caption=caption,
    )


def _error_figures(catalog: pd.DataFrame, bounds: pd.DataFrame | None, pulls: pd.DataFrame) -> list[Picture]:
    if not catalog["in_sample"].any():
        return []
    bounded = _bounded(catalog, bounds)
    out = [_precision_picture(catalog, bounded, label) for label in LABELS]
    if len(pulls) >= _MIN_PAIRS:
        out.append(
            picture(
                figures.repeat_figure(pulls),
                alt="Scatter of repeat visits in units of the error: "
                + ", ".join(f"{n} {format_number(figures.robust_scatter(pulls[n].to_numpy()))}" for n in pulls)
                + ".",
                caption=f"Scatter of {len(pulls):,} pairs of visits to one star on different nights, divided by their "
                "combined error: 1 where the errors say what repeat visits do.",
            )
        )
    return out


def _repeat_figures(catalog: pd.DataFrame, *, snr_tolerance: float) -> list[Picture]:
    """Figures of eleven panels each."""
    return [
        picture(
            errors.repeat_precision(catalog, snr_tolerance=snr_tolerance),
            alt="Scatter of repeat visits of each label over signal-to-noise ratio, beside the catalog's error.",
            caption="Precision of one visit, label by label: scatter of repeats over √2, and the catalog's error.",
        ),
        picture(
            errors.repeat_differences(catalog, snr_tolerance=snr_tolerance),
            alt="Differences of repeat visits of each label over signal-to-noise ratio, with median and scatter.",
            caption=f"Differences between two visits of a star above {errors.HOT:,.0f} K (Fig 10 of the paper). Lines: "
            "median and scatter. Numbers: precision of one visit, the scatter over √2, at S/N below 50, 50 to 100, and "
            "above 100.",
            many=True,
        ),
    ]


def _recovery(catalog: pd.DataFrame, truth: pd.DataFrame | None) -> tuple[list[dict], list[Picture]]:
    if truth is None:
        return [], []
    table = recovery_table(catalog, truth)
    rows = [
        {"name": name, "symbol": symbol_html(name), "unit": unit_html(name), **table.loc[name].drop("unit").to_dict()}
        for name in table.index
    ]
    merged = join_truth(catalog, truth)
    if merged.empty:
        return rows, []
    pictures = [
        picture(
            figures.recovered_against_true(merged, lb.name),
            alt=f"Fitted minus true {lb.doc} against true effective temperature: scatter "
            f"{format_number(table.loc[lb.name, 'scatter'])} {lb.unit}, bias "
            f"{format_number(table.loc[lb.name, 'bias'])} {lb.unit}, {table.loc[lb.name, 'n']} spectra.",
            caption=lb.doc.capitalize() if lb.doc.islower() else lb.doc[0].upper() + lb.doc[1:],
            many=True,
        )
        for lb in LABELS
    ]
    return rows, pictures
