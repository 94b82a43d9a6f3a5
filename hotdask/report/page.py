"""The report of a run: one HTML page that needs no network and no other file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hotdask import schema, windows
from hotdask.errors import RunError
from hotdask.flags import DESCRIPTIONS, Flag
from hotdask.labels import INDEX, LABEL_NAMES, LABELS
from hotdask.report import figures
from hotdask.report.formats import format_measurement, format_number, symbol_html, unit_html
from hotdask.report.render import Picture, fact_groups, picture, render

_MIN_PAIRS = 10
"""Fewer repeat pairs than this say nothing about the errors."""


@dataclass(frozen=True)
class SpectrumView:
    """One spectrum with its fits, ready to be drawn.

    Parameters
    ----------
    specid, title : str
        Identifier, and a heading for people.
    wavelength : (n_pixel,) float64
        Rest-frame vacuum wavelength [Å].
    flux, ivar : (n_pixel,) float
        Normalized flux and its inverse variance; ivar = 0 marks no data.
    model_all, model_hmasked : (n_pixel,) float
        Normalized models of the all-lines fit and of the fit with hydrogen masked; NaN where there is none.
    used : (n_pixel,) bool
        Pixels of the all-lines fit.
    labels, errors : dict of str to float
        Label name to value and to 1-sigma error, in the units of `hotdask.labels`; absent or NaN = unknown.
    chi2_red : float
        Reduced chi-square.
    flags : int
        Bits of `hotdask.flags.Flag`.
    """

    specid: str
    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    model_all: np.ndarray
    model_hmasked: np.ndarray
    used: np.ndarray
    labels: Mapping[str, float]
    errors: Mapping[str, float]
    chi2_red: float
    flags: int
    title: str


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
    mask: Sequence = windows.FIT_MASK,
    hydrogen: Sequence = windows.HYDROGEN,
    max_chi2ratio: float = 10.0,
    snr_tolerance: float = 0.2,
    title: str = "hotdask report",
) -> str:
    """The report of a run as one HTML page.

    Parameters
    ----------
    catalog : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG`, one row a spectrum; may be empty.
    rejects : pandas.DataFrame, optional
        Columns of `hotdask.schema.REJECTS`, one row a file that could not be used.
    provenance : mapping, optional
        What made the catalog (content of ``run.json``); nested mappings become groups of rows.
    spectra : sequence of SpectrumView
        Spectra to draw.
    truth : pandas.DataFrame, optional
        Columns of `hotdask.schema.TRUTH`, for a simulated survey.
    scaling : mapping, optional
        What the error scaling found; shown as it is.
    reasons : mapping of str to str, optional
        A sentence per reason code of the rejects.
    mask, hydrogen : sequence of Window or of (low, high)
        Air windows [Å] of the fits, to be shaded.
    max_chi2ratio : float
        chi2ratio above which a fit was flagged as bad.
    snr_tolerance : float
        Repeat visits whose S/N differ by more than this share are no pair.
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
    context = {
        "title": title,
        "simulated": truth is not None,
        "counts": _counts(catalog, rejects),
        "sample_figures": _sample_figures(catalog, max_chi2ratio=max_chi2ratio),
        "error_figures": _error_figures(catalog, snr_tolerance=snr_tolerance),
        "scaling": fact_groups(scaling or {}, scalars_named="error scaling"),
        "recovery": recovery,
        "recovered": recovered,
        "spectra": [_spectrum(view, i, mask=mask, hydrogen=hydrogen) for i, view in enumerate(spectra, 1)],
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


def _sample_figures(catalog: pd.DataFrame, *, max_chi2ratio: float) -> list[Picture]:
    n = int(catalog["in_sample"].sum())
    if not len(catalog):
        return []
    ratio = catalog.loc[catalog["in_sample"].to_numpy(bool), "chi2ratio"].to_numpy(np.float64)
    missing = int(np.isnan(ratio).sum())
    binned = n > figures.HEXBIN_ABOVE
    snr = catalog["snr_g"].to_numpy(np.float64)
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
            figures.vsini_teff(catalog),
            alt=f"Projected rotation velocity against effective temperature of {n} spectra; "
            f"median {format_number(_sample_median(catalog, 'vsini'))} km/s.",
            caption="Projected rotation velocity against effective temperature. Negative fits are given as 0.",
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
    ]


def _unseen(n: int, what: str) -> str:
    return f" {n:,} {what}." if n else ""


def _sample_median(catalog: pd.DataFrame, name: str) -> float:
    return _median(catalog.loc[catalog["in_sample"].to_numpy(bool), name].to_numpy(np.float64))


def _error_figures(catalog: pd.DataFrame, *, snr_tolerance: float) -> list[Picture]:
    if not catalog["in_sample"].any():
        return []
    out = []
    for names in figures.ERROR_GROUPS:
        what = LABELS[INDEX[names[0]]].doc if len(names) == 1 else "the abundances"
        medians = ", ".join(f"{n} {format_number(_sample_median(catalog, n + '_err'))}" for n in names)
        out.append(
            picture(
                figures.error_against_snr(catalog, names),
                alt=f"Median error of {what} against signal-to-noise ratio; median over the sample: {medians}.",
                caption=f"Median error of {what}" + (", with the 16-84 % band." if len(names) == 1 else "."),
            )
        )
    pulls = figures.repeat_pulls(catalog, snr_tolerance=snr_tolerance)
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


def _spectrum(view: SpectrumView, number: int, *, mask: Sequence, hydrogen: Sequence) -> dict:
    figure = figures.spectrum_figure(
        view.wavelength,
        view.flux,
        view.ivar,
        view.model_all,
        view.model_hmasked,
        view.used,
        mask=mask,
        hydrogen=hydrogen,
    )
    nan = float("nan")
    return {
        "id": f"spectrum-{number}",
        "title": view.title,
        "specid": view.specid,
        "chi2_red": view.chi2_red,
        "n_pixel": int(np.sum(view.used)),
        "flags": [{"name": flag.name, "sentence": DESCRIPTIONS[flag]} for flag in Flag if int(view.flags) & flag.value],
        "labels": [
            {
                "symbol": symbol_html(name),
                "unit": unit_html(name),
                "text": format_measurement(float(view.labels.get(name, nan)), float(view.errors.get(name, nan))),
            }
            for name in LABEL_NAMES
        ],
        "picture": picture(
            figure,
            alt=f"Normalized spectrum {view.specid} from 3745 to 9005 Å with the all-lines fit, the fit with hydrogen "
            f"masked, residuals and masked windows; reduced chi-square {format_number(view.chi2_red)}.",
            many=True,
        ),
    }
