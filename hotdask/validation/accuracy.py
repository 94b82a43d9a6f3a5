"""Labels of real stars held against the literature: median difference and scatter, by kind of star and temperature."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hotdask import config, windows
from hotdask.emulator.broadening import mean_lsf
from hotdask.errors import InputError
from hotdask.labels import ABUNDANCES, INDEX, LABEL_NAMES, LABELS
from hotdask.spectra.arms import degrade_arms
from hotdask.spectra.normalize import Normalizer
from hotdask.steps.label import Labeler
from hotdask.validation.bibliography import Bibliography, known_labels, plain_name
from hotdask.validation.kinds import KINDS, kind_of
from hotdask.validation.libraries import Spectra
from hotdask.validation.recovery import robust_sigma

BINS: tuple[tuple[float, float], ...] = (
    (7e3, 11e3),
    (11e3, 13e3),
    (13e3, 16e3),
    (16e3, 20e3),
    (20e3, 30e3),
    (16e3, 30e3),
    (30e3, 40e3),
    (40e3, np.inf),
)
"""Ranges of the literature's Teff [K]; one holds two others."""

FITS: dict[str, str] = {"": "merged", "_all": "all lines", "_hmasked": "hydrogen masked"}
"""Ending of a fit's columns, and its name."""

SNR = 100.0
"""Assumed, the same in every pixel of the continuum: the libraries give no errors."""


@dataclass(frozen=True, eq=False)
class Stars:
    """Real stars, ready to be labeled, and what is known of them.

    Attributes
    ----------
    table : pandas.DataFrame
        One row a spectrum: ``name``, ``library``, ``spectral_type``, ``kind``, ``reference`` (where Teff is from),
        and ``<label>_ref`` in the units and on the scale of `hotdask.labels`; NaN where unknown.
    flux, ivar : (n, 3909) float32
        On `hotdask.windows.observed_wavelength`, at rest; S/N is `SNR`.
    lsf : (n, 6) float64
        Line-spread coefficients [Å].
    """

    table: pd.DataFrame
    flux: np.ndarray
    ivar: np.ndarray
    lsf: np.ndarray


def prepare_stars(
    libraries: Sequence[Spectra], known: Bibliography, *, powers: tuple[float, float] = (1400.0, 2300.0)
) -> Stars:
    """Bring library spectra to the observed grid, and put beside them what is known of the stars.

    Each arm gets one resolving power, 1800 or as much of it as the library's line spread allows. Pixels with much less
    than the emulators know are left out.

    Parameters
    ----------
    libraries : sequence of Spectra
    known : Bibliography
    powers : (low, high)
        Resolving powers that the emulators know.

    Raises
    ------
    InputError
        If there is no star.
    """
    if not libraries:
        raise InputError("no star to label: the libraries hold none over 7000 K; give others")
    normalizer = Normalizer(windows.rest_wavelength(), **config.Normalize().model_dump())
    pieces = [_prepare(spectra, normalizer, powers[0]) for spectra in libraries]
    table = pd.concat([_table(spectra, known) for spectra in libraries], ignore_index=True)
    return Stars(table, *map(np.concatenate, zip(*pieces, strict=True)))


def _prepare(spectra: Spectra, normalizer: Normalizer, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux and ivar (n, 3909), and line spread (n, 6), of the stars of one library."""
    found, good, arms = degrade_arms(
        spectra.wavelength, spectra.flux, fwhm=spectra.fwhm, least=least, air=spectra.air, rv=spectra.rv
    )
    # Library fluxes may be as small as 1e-14, whose squares single precision cannot hold.
    level = [np.median(row[use]) if use.any() else 1 for row, use in zip(found.flux, good, strict=True)]
    flux = found.flux / np.array(level, dtype=np.float32)[:, None]
    rest = slice(windows.REST_OFFSET, windows.REST_OFFSET + windows.N_REST)
    _, _, continuum = normalizer.normalize(flux[:, rest], good[:, rest].astype(np.float32))
    ivar = np.zeros_like(flux)
    ivar[:, rest] = np.where(good[:, rest] & (continuum > 0), (SNR / np.maximum(continuum, 1e-6)) ** 2, 0)
    return flux, ivar, np.tile(mean_lsf(*arms), (len(flux), 1))


def _table(spectra: Spectra, known: Bibliography) -> pd.DataFrame:
    names = [" ".join(name.removesuffix(" Cl").split()) for name in spectra.name]
    labels, reference = known_labels(names, spectra.labels, [spectra.source] * len(names), known)
    teff, fe_h = spectra.labels[:, INDEX["teff"]], spectra.labels[:, INDEX["fe_h"]]
    kinds = [
        known.kind.get(plain_name(name)) or kind_of(str(type_), *values)
        for name, type_, *values in zip(names, spectra.spectral_type, teff, fe_h, strict=True)
    ]
    table = {"name": names, "library": spectra.source, "spectral_type": spectra.spectral_type}
    table |= {"kind": kinds, "reference": reference}
    return pd.DataFrame(table | {f"{name}_ref": labels[:, i] for i, name in enumerate(LABEL_NAMES)})


def label_stars(stars: Stars, labeler: Labeler) -> pd.DataFrame:
    """Label stars with one emulator.

    Parameters
    ----------
    stars : Stars
    labeler : hotdask.steps.label.Labeler

    Returns
    -------
    pandas.DataFrame
        One row a spectrum: ``<label>``, ``<label>_err``, ``<label>_all`` and ``<label>_hmasked``, ``chi2_red`` and
        those of both fits, ``rv_shift`` and ``rv_refit`` [km/s], and ``flags``. vsini is its magnitude.
    """
    result = labeler.label(stars.flux, stars.ivar, np.zeros(len(stars.table)), stars.lsf)
    out = {f"{name}{fit}": result[f"{name}{fit}"] for fit in FITS for name in LABEL_NAMES}
    out |= {f"vsini{fit}": np.abs(result[f"vsini{fit}"]) for fit in FITS}
    error = np.sqrt(np.diagonal(result["covariance"], axis1=1, axis2=2))
    out |= {f"{name}_err": error[:, i] for i, name in enumerate(LABEL_NAMES)}
    out |= {f"chi2_red{fit}": result[f"chi2_red{fit}"] for fit in FITS}
    return pd.DataFrame(out | {key: result[key] for key in ("rv_shift", "rv_refit", "flags")})


def fitted_spectra(stars: Stars, labeler: Labeler, found: pd.DataFrame, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What the fits saw of some stars, and what they made of it.

    Parameters
    ----------
    stars : Stars
    labeler : hotdask.steps.label.Labeler
        That labeled them.
    found : pandas.DataFrame
        Of `label_stars`.
    rows : (m,) int
        Which stars.

    Returns
    -------
    dict of arrays
        ``wavelength`` (3801,) [Å, vacuum]; ``flux``, ``ivar``, ``model_all``, ``model_hmasked`` (m, 3801), normalized;
        ``used`` (m, 3801), the pixels of the all-lines fit.
    """
    rv = np.nan_to_num(found["rv_refit"].to_numpy(dtype=np.float64)[rows])
    prepared = labeler.prepare(stars.flux[rows], stars.ivar[rows], rv, stars.lsf[rows])
    wavelength = windows.rest_wavelength()
    fitted = ~windows.inside(wavelength, labeler.settings.mask)
    out = {"wavelength": wavelength, "flux": prepared.flux, "ivar": prepared.ivar}
    out["used"] = fitted & (prepared.ivar > 0)
    for fit in ("all", "hmasked"):
        labels = found[[f"{name}_{fit}" for name in LABEL_NAMES]].to_numpy(dtype=np.float64)[rows]
        out[f"model_{fit}"] = labeler.model.flux(labels, prepared.lsf)
    return out


def differences(stars: pd.DataFrame, found: pd.DataFrame, name: str, fit: str = "") -> np.ndarray:
    """Found − literature of one label, (n,), in its unit; Teff in % of the literature's. NaN where unknown."""
    reference = stars[f"{name}_ref"].to_numpy(dtype=np.float64)
    difference = found[f"{name}{fit}"].to_numpy(dtype=np.float64) - reference
    return 100 * difference / reference if name == "teff" else difference


def summarize(stars: pd.DataFrame, found: pd.DataFrame, *, bins: Sequence[tuple[float, float]] = BINS) -> pd.DataFrame:
    """Median difference from the literature and robust scatter of every label.

    Parameters
    ----------
    stars, found : pandas.DataFrame
        Of `Stars.table` and `label_stars`.
    bins : sequence of (low, high)
        Ranges of the literature's Teff [K].

    Returns
    -------
    pandas.DataFrame
        One row a kind, range, label and fit: ``kind``, ``teff_low``, ``teff_high``, ``label``, ``unit``, ``fit``, ``n``
        stars with a difference, ``bias`` (median of found − literature), ``scatter`` (1.4826 times the median absolute
        deviation), and ``median`` of what was found for the ``n_found`` stars of the cell. NaN where there is nothing.
        Besides the labels, ``chi2_red``.
    """
    teff = stars["teff_ref"].to_numpy(dtype=np.float64)
    rows = []
    for kind in KINDS:
        for low, high in bins:
            here = (stars["kind"].to_numpy() == kind) & (teff >= low) & (teff < high)
            if not here.any():
                continue
            for name, unit in (*((lb.name, lb.unit) for lb in LABELS), ("chi2_red", "")):
                for fit, fit_name in FITS.items():
                    values = found[f"{name}{fit}"].to_numpy(dtype=np.float64)[here]
                    known = name in LABEL_NAMES
                    difference = differences(stars, found, name, fit)[here] if known else np.full(len(values), np.nan)
                    difference = difference[np.isfinite(difference)]
                    row = {"kind": kind, "teff_low": low, "teff_high": high, "label": name}
                    row |= {"unit": "%" if name == "teff" else unit, "fit": fit_name, "n": difference.size}
                    row |= {"bias": median(difference), "scatter": robust_sigma(difference)}
                    rows.append(row | {"n_found": int(np.isfinite(values).sum()), "median": median(values)})
    return pd.DataFrame(rows)


def median(values: np.ndarray) -> float:
    """Median of the finite values; NaN if there are none."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else float("nan")


def targets(stars: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """The lines an emulator is judged by: merged labels of normal stars.

    Parameters
    ----------
    stars, found : pandas.DataFrame
        Of `Stars.table` and `label_stars`.

    Returns
    -------
    pandas.DataFrame
        One row a line: ``what``, ``unit``, ``n`` stars, ``value`` (a median: of found − literature where ``what`` says
        so by Δ, otherwise of what was found), ``scatter`` (1.4826 times the median absolute deviation), and ``digits``
        worth printing.
    """
    normal = stars["kind"].to_numpy() == "normal"
    teff = stars["teff_ref"].to_numpy(dtype=np.float64)
    standard = (stars["reference"] != stars["library"]).to_numpy()
    kelvin = found["teff"].to_numpy() - teff
    rows = []

    def line(what: str, unit: str, digits: int, values: np.ndarray, chosen: np.ndarray) -> None:
        values = values[chosen & np.isfinite(values)]
        rows.append((what, unit, values.size, median(values), robust_sigma(values), digits))

    def range_of(low: float, high: float) -> np.ndarray:
        return normal & (teff >= low) & (teff < high)

    def difference(name: str) -> np.ndarray:
        return differences(stars, found, name)

    early, late, cool = range_of(16e3, 30e3), range_of(11e3, 16e3), range_of(7e3, 11e3)
    line("16-30 kK: Δ Teff", "%", 1, difference("teff"), early)
    line("16-30 kK: Δ log g", "dex", 2, difference("logg"), early)
    line("16-30 kK: vmic", "km/s", 1, found["vmic"].to_numpy(), early)
    for name in ABUNDANCES:
        symbol = LABELS[INDEX[name]].symbol
        line(f"standards over 11 kK: Δ {symbol}", "dex", 2, difference(name), standard & (teff >= 11e3))
    line("11-30 kK: N_He/N_tot", "", 3, found["n_he"].to_numpy(), early | late)
    line("11-16 kK: Δ Teff", "%", 1, difference("teff"), late)
    line("7-11 kK: Δ Teff", "%", 1, difference("teff"), cool)
    line("7-11 kK: Δ log g", "dex", 2, difference("logg"), cool)
    line("7-11 kK: Δ [Fe/H]", "dex", 2, difference("fe_h"), cool)
    line("30-40 kK: Δ Teff", "K", 0, kelvin, range_of(30e3, 40e3))
    line("11-30 kK: reduced χ² at S/N 100", "", 2, found["chi2_red"].to_numpy(), early | late)
    return pd.DataFrame(rows, columns=["what", "unit", "n", "value", "scatter", "digits"])
