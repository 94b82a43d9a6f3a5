"""The report of a run: one HTML page that needs no network and no other file."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from hotdask import schema, windows
from hotdask.errors import RunError
from hotdask.flags import DESCRIPTIONS, Flag
from hotdask.labels import INDEX, LABEL_NAMES, LABELS
from hotdask.report import figures

_LONG = 160
"""Texts longer than this are folded away."""

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


@dataclass(frozen=True)
class Picture:
    """A figure as the page needs it: data URI, size in CSS pixels, the words for those who cannot see it, a caption."""

    uri: str
    width: int
    height: int
    alt: str
    caption: str


def picture(figure: Figure, *, alt: str, caption: str = "", many: bool = False) -> Picture:
    """Encode a figure: PNG if it has many marks, SVG otherwise."""
    width, height = (round(v * figures.CSS_PIXELS) for v in figure.get_size_inches())
    return Picture((figures.png_uri if many else figures.svg_uri)(figure), width, height, alt, caption)


def symbol_html(name: str) -> Markup:
    """A label's symbol as HTML.

    Examples
    --------
    >>> str(symbol_html("teff")), str(symbol_html("vsini"))
    ('<i>T</i><sub>eff</sub>', '<i>v</i>\u2009sin\u2009<i>i</i>')
    """
    symbol = LABELS[INDEX[name]].symbol
    if "$" not in symbol:
        return escape(symbol)
    text = symbol.replace("$", "").replace("\\,", "\u2009")
    text = re.sub(r"_\{\\rm (\w+)\}", r"<sub>\1</sub>", text)
    text = re.sub(r"\\(log|sin) ?", "<r>\\1</r>\u2009", text)
    # What is left outside tags is variables, set in italics.
    parts = re.split(r"(<sub>.*?</sub>|<r>.*?</r>)", text)
    out = "".join(p if p.startswith("<") else re.sub(r"([A-Za-z])", r"<i>\1</i>", p) for p in parts)
    return Markup(out.replace("<r>", "").replace("</r>", "").replace("\u2009\u2009", "\u2009"))


def unit_html(name: str) -> Markup:
    """A label's unit as HTML, empty for a pure number.

    Examples
    --------
    >>> str(unit_html("vsini"))
    'km\u2009s<sup>−1</sup>'
    """
    known = {
        "km/s": "km\u2009s<sup>−1</sup>",
        "dex(cm/s2)": "dex(cm\u2009s<sup>−2</sup>)",
        "Angstrom": "Å",
    }
    unit = LABELS[INDEX[name]].unit
    return Markup(known[unit]) if unit in known else escape(unit)


def format_number(value: float, digits: int = 3) -> str:
    """A number with some significant digits, thousands apart; a dash if it is not finite.

    Examples
    --------
    >>> format_number(12345.6), format_number(-0.01234), format_number(float("nan"))
    ('12\u2009346', '−0.0123', '–')
    """
    if not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
    return f"{value:,.{decimals}f}".replace(",", "\u2009").replace("-", "−")


def format_beside(value: float, scale: float) -> str:
    """A number to as many decimals as `format_number` gives another one, so that 0.00004 beside 0.1 is 0.

    Examples
    --------
    >>> format_beside(-0.00004, 0.108), format_beside(-12.3, 182.0)
    ('0.000', '−12')
    """
    if not np.isfinite(value) or not np.isfinite(scale) or scale == 0:
        return format_number(value)
    decimals = max(0, 2 - int(np.floor(np.log10(abs(scale)))))
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace(",", "\u2009").replace("-", "−")


def format_measurement(value: float, error: float) -> str:
    """Value ± error, both to two significant digits of the error.

    Examples
    --------
    >>> format_measurement(10234.4, 87.3), format_measurement(-0.1234, 0.0456)
    ('10\u2009234 ± 87', '−0.123 ± 0.046')
    >>> format_measurement(4.12345, float("nan"))
    '4.12'
    """
    if not (np.isfinite(value) and np.isfinite(error) and error > 0):
        return format_number(value)
    decimals = int(np.clip(1 - int(np.floor(np.log10(error))), 0, 6))
    return f"{value:,.{decimals}f} ± {error:,.{decimals}f}".replace(",", "\u2009").replace("-", "−")


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
        "scaling": _provenance(scaling or {}, scalars_named="error scaling"),
        "recovery": recovery,
        "recovered": recovered,
        "spectra": [_spectrum(view, i, mask=mask, hydrogen=hydrogen) for i, view in enumerate(spectra, 1)],
        "rejects": _reject_rows(rejects, reasons or {}),
        "flags": _flag_rows(catalog),
        "provenance": _provenance(provenance or {}),
    }
    return _environment().get_template("template.html").render(context)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda n: f"{n:,}".replace(",", "\u2009")
    environment.filters["number"] = format_number
    environment.filters["beside"] = format_beside
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}\u2009%"
    return environment


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


def _text(value) -> str:
    if isinstance(value, bool | str) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, float | np.floating):
        return f"{float(value):.6g}"
    if isinstance(value, int | np.integer):
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)


def _provenance(mapping: Mapping, *, scalars_named: str = "run") -> list[dict]:
    """Groups of (name, text) rows: scalars first, then one group per nested mapping, deeper names dotted."""
    groups: list[dict] = []

    def rows_of(items: Mapping, prefix: str = "") -> list[dict]:
        rows = []
        for key, value in items.items():
            if isinstance(value, Mapping):
                rows += rows_of(value, f"{prefix}{key}.")
            else:
                text = _text(value)
                rows.append({"name": f"{prefix}{key}", "text": text, "long": "\n" in text or len(text) > _LONG})
        return rows

    scalars = {k: v for k, v in mapping.items() if not isinstance(v, Mapping)}
    if scalars:
        groups.append({"name": scalars_named, "rows": rows_of(scalars)})
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            groups.append({"name": str(key).replace("_", " "), "rows": rows_of(value)})
    return groups


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
