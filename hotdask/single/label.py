"""Spectra of any kind in, labels out: the steps of a run, for one spectrum or a few, in this process."""

import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hotdask import config, windows
from hotdask.emulator import load_emulator, mean_lsf
from hotdask.labels import LABEL_NAMES
from hotdask.readers.generic import read
from hotdask.schema import FITS
from hotdask.single.result import Model, Result, Results
from hotdask.spectra.arms import Placed, place
from hotdask.spectra.spectrum import Spectrum, SpectrumWarning, as_spectrum
from hotdask.steps.crosscorrelation import air_or_vacuum, find_velocity
from hotdask.steps.flag import catalog_flags
from hotdask.steps.label import Labeler
from hotdask.steps.scale import limit_errors
from hotdask.windows import BLUE_RED_BREAK, LSF_PIVOT

_REACH = 150.0
"""Correction [km/s] of a velocity by a fit, which is linear, that is believed."""
_G_BAND = (4000.0, 5500.0)


def label(
    spectra,
    *,
    rv: float | None = None,
    find_rv: bool = False,
    medium: str | None = None,
    resolving_power: float | None = None,
    emulator: str | Path | None = None,
) -> Result | Results:
    """Label one spectrum, or several.

    Spectra are brought to the observed grid at R = 1800, or what they allow of it, and labeled as in a run: rest frame,
    continuum, both fits, merger. Velocities that are not given are found by cross-correlation with models, and
    corrected by the fit.

    Parameters
    ----------
    spectra : hotdask.Spectrum, spectrum of specutils, path, or a sequence of such
    rv, medium, resolving_power
        To use instead of what the spectra say; see `hotdask.Spectrum`.
    find_rv : bool
        Find velocities that are given, too.
    emulator : str or path, optional
        A shipped emulator by name, or a file. Default: the shipped one.

    Returns
    -------
    Result, or Results (a list of them) for a sequence

    Raises
    ------
    InputError
        If a spectrum cannot be labeled.

    Warns
    -----
    SpectrumWarning
        If lines lie where wavelengths in air, taken for those in vacuum, would put them, or the other way round; or if
        no velocity stands out.

    Examples
    --------
    >>> from hotdask import Spectrum
    >>> model = load_emulator().flux([[12000, 4, 2, 50, 0.09, 0, 0, 0, 0, 0, 0]])[0]
    >>> result = label(Spectrum(windows.rest_wavelength(), model, np.full(3801, 0.005), resolving_power=1800, rv=0))
    >>> bool(abs(result.labels.loc["teff", "value"] - 12000) < 300), result.labels.loc["teff", "unit"]
    (True, 'K')
    """
    several = isinstance(spectra, Sequence) and not isinstance(spectra, str)
    changed = {"rv": rv, "medium": medium, "resolving_power": resolving_power}
    given = [_as_spectrum(one, changed) for one in (spectra if several else [spectra])]
    with one_thread():
        results = Results(_label(given, _labeler(emulator), find_rv)) if given else Results()
    return results if several else results[0]


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread in the block: the arrays of a few spectra are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _as_spectrum(thing: object, changed: dict) -> Spectrum:
    if isinstance(thing, str | os.PathLike):
        return read(thing, **changed)
    return as_spectrum(thing, **changed)


@functools.lru_cache(maxsize=2)
def _labeler(emulator: str | Path | None) -> Labeler:
    return Labeler(load_emulator(emulator))


def _label(spectra: list[Spectrum], labeler: Labeler, find_rv: bool) -> list[Result]:
    known = labeler.emulator.card["training"]["resolving_power"]
    placed = [place(spectrum, known) for spectrum in spectra]
    flux, ivar = (np.array([getattr(p, name) for p in placed]) for name in ("flux", "ivar"))
    noise = np.array([p.noise_power for p in placed])
    lsf = np.array([_line_spread(p) for p in placed])
    fitted = ~windows.inside(labeler.wavelength, labeler.settings.mask)
    tools = {"emulator": labeler.emulator, "normalizer": labeler.normalizer, "fitted": fitted}
    seen = find_velocity(flux, ivar, lsf, **tools)
    wanted = np.array([find_rv or s.rv is None for s in spectra])
    rv = np.array([np.nan if s.rv is None or find_rv else s.rv for s in spectra])
    rv_err = np.array([np.nan if find_rv else s.rv_err for s in spectra])
    # Without a velocity at rest, for what it is worth; a warning says so.
    rv[wanted], rv_err[wanted] = np.nan_to_num(seen.rv[wanted]), seen.error[wanted]
    out = labeler.label(flux, ivar, rv, lsf, noise)
    # A fit with all labels free knows the velocity better than any of the models it was found with.
    excess = np.sqrt(np.maximum(out["chi2_red_all"], 1))
    shift, error = out["rv_shift"], out["rv_shift_err"] * excess
    rows = np.flatnonzero(wanted & np.isfinite(seen.rv) & (np.abs(shift) < _REACH) & np.isfinite(error))
    if rows.size:
        rv[rows], rv_err[rows] = rv[rows] + shift[rows], error[rows]
        again = labeler.label(flux[rows], ivar[rows], rv[rows], lsf[rows], noise[rows])
        for name, values in again.items():
            out[name][rows] = values
    prepared = labeler.prepare(flux, ivar, rv + np.nan_to_num(out["rv_refit"]), lsf)
    frame = _judged(spectra, out, rv, flux, ivar)
    results = []
    for i, spectrum in enumerate(spectra):
        notes = spectrum.notes + _warned(spectrum, seen.rv[i], seen.error[i], rv[i], bool(wanted[i]))
        columns = {c.name: float(out[c.name][i]) for c in FITS if c.name in out and np.ndim(out[c.name]) == 1}
        columns = {name: value for name, value in columns.items() if name not in ("flags", "chi2_red", *LABEL_NAMES)}
        flags = int(frame["flags"].iloc[i])
        labels = {w: np.array([[out[f"{n}{w}"][i] for n in LABEL_NAMES]]) for w in ("", "_all", "_hmasked")}
        models = [labeler.model.flux(values, prepared.lsf[i : i + 1])[0] for values in labels.values()]
        pixels = (labeler.wavelength, prepared.flux[i], prepared.ivar[i], fitted & (prepared.ivar[i] > 0))
        values = labels[""][0]
        values[LABEL_NAMES.index("vsini")] = max(values[LABEL_NAMES.index("vsini")], 0.0)
        results.append(
            Result(
                name=spectrum.name,
                values=values,
                errors=limit_errors(np.sqrt(np.diagonal(out["covariance"][i]))[None])[0],
                covariance=out["covariance"][i],
                rv=float(rv[i]),
                rv_err=float(rv_err[i]),
                rv_found=bool(wanted[i]),
                chi2=float(out["chi2_red"][i]),
                flag_bits=flags,
                model=Model(*pixels, *models),
                columns=columns,
                notes=notes,
                emulator=labeler.model.id,
            )
        )
    return results


def _line_spread(placed: Placed) -> np.ndarray:
    """Line-spread coefficients (6,) [Å] of a spectrum."""
    if placed.powers is not None:
        return mean_lsf(*placed.powers)
    grid = windows.observed_wavelength()
    arms = (grid < BLUE_RED_BREAK, LSF_PIVOT[0]), (grid >= BLUE_RED_BREAK, LSF_PIVOT[1])
    parts = (np.polynomial.polynomial.polyfit((grid[a] - pivot) / 1000, placed.sigma[a], 2) for a, pivot in arms)
    return np.concatenate(list(parts))


def _judged(
    spectra: list[Spectrum], out: dict[str, np.ndarray], rv: np.ndarray, flux: np.ndarray, ivar: np.ndarray
) -> pd.DataFrame:
    """Flags as the catalog of a run of these spectra alone would have them."""
    settings = config.Catalog()
    frame = pd.DataFrame({name: values for name, values in out.items() if np.ndim(values) == 1})
    grid = windows.observed_wavelength()
    band = (grid > _G_BAND[0]) & (grid < _G_BAND[1])
    snr = [float(s.meta.get("snr_g", np.nan)) for s in spectra]
    for i, row in enumerate(ivar):
        good = band & (row > 0)
        if np.isnan(snr[i]) and good.any():
            snr[i] = float(np.median(np.abs(flux[i, good]) * np.sqrt(row[good])))
    position = {key: [float(s.meta.get(key, np.nan)) for s in spectra] for key in ("ra", "dec")}
    frame = frame.assign(snr_g=snr, rv=rv, chi2ratio=np.nan, **position)
    return catalog_flags(
        frame,
        min_teff=settings.min_teff,
        min_snr=settings.min_snr,
        max_chi2ratio=settings.max_chi2ratio,
        errors_scaled=False,
    )


def _warned(spectrum: Spectrum, found: float, error: float, rv: float, wanted: bool) -> tuple[str, ...]:
    """What is wrong with a velocity, as notes; also said as warnings."""
    said = ""
    if wanted and np.isnan(found):
        said = "no velocity stands out within ±1000 km/s: labels are those at 0 km/s; give rv"
    elif np.isfinite(found):
        said = air_or_vacuum(found if wanted else found - rv, error, spectrum.medium)
    if said:
        warnings.warn(f"{spectrum.name or 'spectrum'}: {said}", SpectrumWarning, stacklevel=4)
    return (said,) if said else ()
