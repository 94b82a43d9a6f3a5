"""What a library's flux calibration does to all its spectra alike, as its A stars show it.

A spectrum over the model of its star at the literature's Teff and log g is noise, errors of the labels, and the
calibration's own features. The median over A stars keeps the last: their models are the best known ones, in LTE, and
share no line strengths with those of B stars.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter1d

from hotdask import windows
from hotdask.labels import INDEX, LABEL_NAMES
from hotdask.steps.label import Labeler
from hotdask.validation.accuracy import Stars, fitted_spectra

STANDARDS = (8200.0, 11000.0)
"""Teff [K] of the stars that calibrate."""
FEWEST = 10
"""Fewer stars calibrate nothing."""
_FARTHEST = 0.08
"""A star counts if its fitted Teff differs by less from the literature's."""
_SMOOTH = 8.0
"""Gaussian σ [pixels] of the response: wider than a metal line, narrower than the wing of a Balmer line."""

_PASSES = 2
"""Normalization hides the smoothest part of a response, most of which the next pass finds."""


def take_out_response(stars: Stars, labeler: Labeler, found: pd.DataFrame) -> tuple[Stars, dict[str, int]]:
    """Divide spectra by the response of their library.

    Parameters
    ----------
    stars : Stars
    labeler : hotdask.steps.label.Labeler
        That labeled them.
    found : pandas.DataFrame
        Of `hotdask.validation.accuracy.label_stars`.

    Returns
    -------
    Stars
        Spectra of a library with fewer than `FEWEST` standards are as they were.
    dict
        Number of standards by library, of those corrected.

    Notes
    -----
    What the standards' models and literature share of errors goes into the response too. So the result is no news of
    stars of `STANDARDS`, but of hotter ones.
    """
    table = stars.table
    standard = (table["kind"] == "normal") & table["teff_ref"].between(*STANDARDS) & table["logg_ref"].notna()
    standard &= (found["teff"] / table["teff_ref"] - 1).abs() < _FARTHEST
    flux, used = stars.flux.copy(), {}
    for library in table["library"].unique():
        rows = np.flatnonzero(standard & (table["library"] == library))
        if len(rows) < FEWEST:
            continue
        used[library] = len(rows)
        members = (table["library"] == library).to_numpy()
        for _ in range(_PASSES):
            response = _response(replace(stars, flux=flux), labeler, found, rows)
            factor = 1 + np.interp(windows.observed_wavelength(), windows.rest_wavelength(), response)
            flux[members] = (flux[members] / factor).astype(flux.dtype)
    return replace(stars, flux=flux), used


def _response(stars: Stars, labeler: Labeler, found: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """Median of the stars' flux over that of their models, minus one, (3801,)."""
    labels = found[[f"{name}_all" for name in LABEL_NAMES]].to_numpy(dtype=np.float64, copy=True)
    for name in ("teff", "logg"):
        labels[rows, INDEX[name]] = stars.table[f"{name}_ref"].to_numpy()[rows]
    at = found.assign(**{f"{name}_all": labels[:, i] for i, name in enumerate(LABEL_NAMES)})
    seen = fitted_spectra(stars, labeler, at, rows)
    ratio = np.ma.masked_array(seen["flux"] / seen["model_all"] - 1, seen["ivar"] <= 0)
    return gaussian_filter1d(np.ma.median(ratio, axis=0).filled(0.0).astype(np.float64), _SMOOTH)
