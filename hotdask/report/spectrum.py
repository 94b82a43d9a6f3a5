"""The page of one spectrum: data, both fits, residuals, masks, labels with errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from hotdask import windows
from hotdask.flags import DESCRIPTIONS, Flag
from hotdask.labels import LABEL_NAMES, LABELS
from hotdask.report import figures
from hotdask.report.formats import format_measurement, format_number, symbol_html, unit_html
from hotdask.report.render import picture, render


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


def page_name(specid: str) -> str:
    """Name of the page of a spectrum in the folder ``spectra``; safe on any disk.

    Examples
    --------
    >>> page_name("55859-F5902-01-011"), page_name("a/b")
    ('55859-F5902-01-011.html', 'a%2Fb.html')
    """
    return quote(specid, safe="+ ") + ".html"


def page_address(specid: str) -> str:
    """Where a link from the report leads to the page of a spectrum.

    Examples
    --------
    >>> page_address("a/b")
    'spectra/a%252Fb.html'
    """
    return "spectra/" + quote(page_name(specid))


def draw_spectrum(
    view: SpectrumView, *, mask: Sequence = windows.FIT_MASK, hydrogen: Sequence = windows.HYDROGEN
) -> Figure:
    """`hotdask.report.figures.spectrum_figure` of a view."""
    arrays = (view.wavelength, view.flux, view.ivar, view.model_all, view.model_hmasked, view.used)
    return figures.spectrum_figure(*arrays, mask=mask, hydrogen=hydrogen)


def labels_text(view: SpectrumView) -> str:
    """Title, labels and errors of a spectrum in three lines, for a figure that stands alone."""
    nan = float("nan")
    labels = [
        f"{label.symbol} {format_measurement(view.labels.get(label.name, nan), view.errors.get(label.name, nan))} "
        f"{figures.pretty_unit(label.unit)}".rstrip()
        for label in LABELS
    ]
    half = (len(labels) + 1) // 2
    # A dollar in a name begins no formula.
    name = f"{view.specid} · {view.title}".replace("$", r"\$")
    first = f"{name} · $\\chi^2_{{red}}$ {format_number(view.chi2_red)}"
    return "\n".join([first, "   ".join(labels[:half]), "   ".join(labels[half:])])


def view_facts(view: SpectrumView, names: Sequence[str] = LABEL_NAMES) -> dict:
    """What a template says of a spectrum besides its figure: title, labels with errors, flags."""
    nan = float("nan")
    return {
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
            for name in names
        ],
    }


def spectrum_page(
    view: SpectrumView,
    *,
    mask: Sequence = windows.FIT_MASK,
    hydrogen: Sequence = windows.HYDROGEN,
    home: str = "",
) -> str:
    """A spectrum as one HTML page.

    Parameters
    ----------
    view : SpectrumView
        What to draw.
    mask, hydrogen : sequence of Window or of (low, high)
        Air windows [Å] of the fits, to be shaded.
    home : str
        Way to the report's folder, ``"../"`` from ``spectra``; without it the page links nowhere.
    """
    drawn = picture(
        draw_spectrum(view, mask=mask, hydrogen=hydrogen),
        alt=f"Normalized spectrum {view.specid} from 3745 to 9005 Å with the all-lines fit, the fit with hydrogen "
        f"masked, residuals and masked windows; reduced chi-square {format_number(view.chi2_red)}.",
        many=True,
    )
    return render("spectrum.html", {"title": view.title, "home": home, "s": {**view_facts(view), "picture": drawn}})
