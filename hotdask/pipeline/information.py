"""What spectra can tell of a star, printed, and as JSON and a page."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hotdask import __version__
from hotdask.config import Fit, Normalize, load_library_settings
from hotdask.emulator import load_emulator, mean_lsf
from hotdask.emulator.base import Emulator
from hotdask.errors import InputError, SynthesisError
from hotdask.labels import INDEX, LABEL_NAMES, LABELS
from hotdask.report.information import strongest, write_information_page
from hotdask.steps.information import (
    A_STAR,
    B_STAR,
    REGIONS,
    Information,
    anchor_table,
    bound_from_gradients,
    compare_gradients,
    correlations,
    engine_spectrum,
    gradients,
    information_by_region,
    noise,
    signal_to_noise_curve,
    star_information,
)
from hotdask.store.atomic import write_text

_TEFF_GRADIENTS = (8000.0, 9000.0, 9500.0, 10000.0, 12000.0)
"""Where the page shows how hydrogen changes sign [K]."""
_TOLD_EVERY = 10.0
"""Seconds between two lines of progress."""
_TEFF_CURVE = np.geomspace(7800.0, 28000.0, 40)
_TEFF_ENGINE = (8500.0, 9500.0, 12000.0, 18000.0)
"""Where an engine's bounds are put beside the emulator's [K]: 21 syntheses each."""


def describe(
    labels: Mapping[str, float],
    *,
    snr: float = 100.0,
    curve: str = "lamost",
    mask_hydrogen: bool = False,
    mask: Sequence[tuple[float, float]] = (),
    fit: Fit | None = None,
    emulator: str | None = None,
    engine: str | None = None,
    page: str | Path | None = None,
    json_file: str | Path | None = None,
    echo: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda line: None,
) -> dict:
    """Bounds and correlations of one star, told in a table; a page and JSON if asked for.

    Parameters
    ----------
    labels : mapping of str to float
        Labels that differ from the fiducial B star's.
    snr : float
        S/N per pixel at 4650 Å.
    curve : str
        As `hotdask.steps.information.signal_to_noise_curve` takes it.
    mask_hydrogen : bool
        Tell the bounds of the fit with hydrogen masked; the page shows both anyway.
    mask : sequence of (low, high)
        Air windows [Å] left out besides those of ``fit``.
    fit : hotdask.config.Fit, optional
        Its windows, line spread and emulator.
    emulator : str, optional
        A shipped emulator by name, or a file; default: that of ``fit``.
    engine : str, optional
        TOML file of a library's settings: spectra and gradients from its engine by finite differences, and on the page
        the emulator's beside them.
    page, json_file : path, optional
        Files to write.
    echo : callable
        Told the table, a line at a time.
    progress : callable
        Told now and then how many syntheses an engine has made.

    Returns
    -------
    dict
        What the JSON file holds.

    Raises
    ------
    HotdaskError
        If the star, the curve, the windows, the emulator or the engine cannot be used, or a file's folder is missing.
    """
    for path in (page, json_file):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise InputError(f"{path}: there is no folder {Path(path).parent}; make it first")
    star = _star_labels(labels)
    fit = fit or Fit()
    windows = {"mask": (*fit.mask, *_windows(mask)), "hydrogen": fit.hydrogen}
    model = load_emulator(emulator or fit.emulator)
    lsf = mean_lsf(fit.resolving_power_blue, fit.resolving_power_red)
    source, spectrum, made_by = _source(model, engine, lsf, progress)

    def look(name: str, at: np.ndarray, snr: float = snr) -> Information:
        flux, gradient = source(at)
        return star_information(flux, gradient, at, snr=snr, curve=curve, name=name, **windows)

    found = look("Your star", star)
    covariance = found.masked if mask_hydrogen else found.covariance
    correlation = correlations(covariance)
    beyond = _beyond(model, star, lsf)
    result = {
        "star": dict(zip(LABEL_NAMES, star.tolist(), strict=True)),
        "snr": snr,
        "snr_curve": str(curve),
        "hydrogen_masked": mask_hydrogen,
        "mask": [list(window) for window in windows["mask"]],
        "resolving_power": [fit.resolving_power_blue, fit.resolving_power_red],
        "distance": float(model.distance(star[None])[0]),
        "outside": bool(beyond),
        "made_by": made_by,
        "hotdask": __version__,
        "sigma": {n: _finite(v) for n, v in zip(LABEL_NAMES, np.sqrt(np.diag(covariance)), strict=True)},
        "correlations": [[_finite(v) for v in row] for row in correlation],
    }
    _tell(result, correlation, echo)
    if beyond:
        echo(beyond)
    if page is not None:
        b_star, a_star = look("B star", np.array(B_STAR), 100.0), look("A star", np.array(A_STAR), 100.0)
        anchors = anchor_table(b_star, a_star)
        result["anchors"] = [_row(row) for row in anchors.to_dict("records")]
        same = snr == b_star.snr and np.array_equal(star, b_star.labels)
        stars = [b_star, a_star] if same else [found, b_star, a_star]
        emulated = checks = None
        if spectrum is not None:
            emulated = [model.flux_and_jacobian(s.labels[None], lsf)[1][0] for s in stars]
            checks = [
                compare_gradients(e, s.gradient, mask=windows["mask"]) for e, s in zip(emulated, stars, strict=True)
            ]
            result["gradient_check"] = {
                s.name: {n: _row(row) for n, row in check.to_dict("index").items()}
                for s, check in zip(stars, checks, strict=True)
            }
        usual = emulator is None and curve == "lamost" and fit == Fit() and not mask
        write_information_page(
            page,
            stars=stars,
            notes=[_beyond(model, s.labels, lsf) for s in stars],
            shares=[information_by_region(s.gradient, s.ivar, mask=windows["mask"]) for s in stars],
            regions=REGIONS,
            against_teff=_against_teff(stars[0], model, source, spectrum is not None, curve, lsf, **windows),
            teff_gradients=_teff_gradients(model, lsf),
            engine_teff_gradients=None if spectrum is None else _engine_teff_gradients(spectrum),
            anchors=anchors,
            explain=usual and same,
            emulated=emulated,
            checks=checks,
            about=_about(model, fit, curve, made_by),
            **windows,
        )
        echo(f"page: {page}")
    if json_file is not None:
        write_text(json_file, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def _finite(value: float) -> float | None:
    """JSON has no infinity: None is a label the spectrum does not answer to."""
    return float(value) if np.isfinite(value) else None


def _row(row: Mapping) -> dict:
    return {name: value if isinstance(value, str) else _finite(value) for name, value in row.items()}


def _windows(mask: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    wrong = [f"{low:g}-{high:g}" for low, high in mask if not 0 < low < high < np.inf]
    if wrong:
        raise InputError(f"mask {', '.join(wrong)}: give the lower wavelength first, in Å")
    return [(float(low), float(high)) for low, high in mask]


def _beyond(model: Emulator, labels: np.ndarray, lsf: np.ndarray) -> str:
    """A warning if the emulator extrapolates; else empty."""
    if model.outside(labels[None])[0]:
        distance = model.distance(labels[None])[0]
        return f"Outside the emulator's library by {distance:.2g} spreads: what the emulator says is extrapolated."
    if model.outside_lsf(lsf[None])[0]:
        return "The line spread is beyond those the emulator learned: what it says is extrapolated."
    return ""


def _star_labels(labels: Mapping[str, float]) -> np.ndarray:
    unknown = sorted(set(labels) - set(LABEL_NAMES))
    if unknown:
        raise InputError(f"no label is called {', '.join(unknown)}; there are {', '.join(LABEL_NAMES)}")
    star = np.array(B_STAR)
    for name, value in labels.items():
        label = LABELS[INDEX[name]]
        if not label.floor <= value <= label.ceiling:
            raise InputError(f"{name} = {value:g} is not between {label.floor:g} and {label.ceiling:g}")
        star[INDEX[name]] = value
    return star


def _source(model: Emulator, engine: str | None, lsf: np.ndarray, progress: Callable[[str], None]):
    """Functions labels → flux and gradients, and labels → flux of an engine if there is one; and what they rest on."""
    if engine is None:

        def emulated(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            flux, jacobian = model.flux_and_jacobian(labels[None], lsf)
            return flux[0], jacobian[0]

        return emulated, None, f"emulator {model.id}"
    # Here, because the factory brings Dask along.
    from hotdask.pipeline.library import make_engine

    made = make_engine(load_library_settings(engine).engine)
    began = told = time.monotonic()
    count = 0

    def counted(labels: np.ndarray):
        nonlocal count, told
        synthesis = made(labels)
        count += 1
        if time.monotonic() - told > _TOLD_EVERY:
            told = time.monotonic()
            progress(f"engine  {count} syntheses  {(told - began) / count:.2g} s each")
        return synthesis

    spectrum = engine_spectrum(counted, Normalize(**model.card.get("normalization", {})), lsf)

    def synthesized(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return spectrum(labels)[0], gradients(spectrum, labels)

    return synthesized, spectrum, f"engine {made.name}, finite differences"


def _tell(result: dict, correlation: np.ndarray, echo: Callable[[str], None]) -> None:
    masked = ", hydrogen masked" if result["hydrogen_masked"] else ""
    echo(f"S/N {result['snr']:g} at 4650 Å ({result['snr_curve']}){masked}; {result['made_by']}")
    echo(f"{'label':8}{'value':>10}{'sigma':>10}  {'unit':<12}most correlated with")
    for label, partners in zip(LABELS, strongest(correlation), strict=True):
        sigma = result["sigma"][label.name]
        told = "-" if sigma is None else f"{sigma:.3g}"
        named = ", ".join(f"{name} {value:+.2f}" for name, value in partners)
        echo(f"{label.name:8}{result['star'][label.name]:>10g}{told:>10}  {label.unit:<12}{named}".rstrip())


def _about(model: Emulator, fit: Fit, curve: str, made_by: str) -> dict[str, str]:
    return {
        "spectra and gradients": made_by,
        "emulator": model.id or "not stored",
        "S/N curve": {
            "lamost": "LAMOST spectra, scaled by a black body’s photons to the star’s Teff; lines have their own "
            "photon noise",
            "photons": "photons of a black body in a pixel",
            "flat": "the same at all wavelengths in the continuum",
        }.get(str(curve), str(curve)),
        "pixels": "independent, 69 km/s each; the fit’s windows are left out",
        "line spread": f"R = {fit.resolving_power_blue:g} in the blue arm, {fit.resolving_power_red:g} in the red one",
        "hotdask": __version__,
    }


def _against_teff(
    star: Information, model: Emulator, source: Callable, engine: bool, curve: str, lsf: np.ndarray, *, mask, hydrogen
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Temperatures and σ, by the emulator with and without hydrogen, and by the engine if there is one."""

    def at(teff: Sequence[float]) -> np.ndarray:
        labels = np.repeat(star.labels[None], len(teff), axis=0)
        labels[:, INDEX["teff"]] = teff
        return labels

    def bound(labels: np.ndarray, flux: np.ndarray, jacobian: np.ndarray, masked) -> np.ndarray:
        ivar = noise(star.snr, signal_to_noise_curve(curve, labels[INDEX["teff"]]), flux)
        return np.sqrt(np.diag(bound_from_gradients(jacobian, ivar, mask=masked)))

    # Beyond the library a bound is a guess of the network.
    labels = at(_TEFF_CURVE)
    labels = labels[~model.outside(labels)]
    if not len(labels):
        labels = star.labels[None]
    fits = {"all lines": mask, "hydrogen masked": (*mask, *hydrogen)}
    spectra = [(x, *y) for x, *y in zip(labels, *model.flux_and_jacobian(labels, lsf), strict=True)]
    out = {name: (labels[:, 0], np.array([bound(*s, masked) for s in spectra])) for name, masked in fits.items()}
    if engine:
        spectra = []
        for x in at(_TEFF_ENGINE):
            try:
                spectra.append((x, *source(x)))
            except SynthesisError:
                # An engine may lack atmospheres of that gravity; then the page shows the others.
                continue
        if spectra:
            teff = np.array([x[INDEX["teff"]] for x, *_ in spectra])
            out["all lines, engine"] = teff, np.array([bound(*s, mask) for s in spectra])
    return out


def _near_maximum() -> np.ndarray:
    labels = np.repeat(np.array(A_STAR)[None], len(_TEFF_GRADIENTS), axis=0)
    labels[:, INDEX["teff"]], labels[:, INDEX["logg"]] = _TEFF_GRADIENTS, 4.5
    return labels


def _teff_gradients(model: Emulator, lsf: np.ndarray) -> dict[float, np.ndarray]:
    jacobian = model.flux_and_jacobian(_near_maximum(), lsf)[1]
    return dict(zip(_TEFF_GRADIENTS, jacobian[:, INDEX["teff"]], strict=True))


def _engine_teff_gradients(spectrum: Callable[[np.ndarray], np.ndarray]) -> dict[float, np.ndarray]:
    out = {}
    for teff, labels in zip(_TEFF_GRADIENTS, _near_maximum(), strict=True):
        try:
            out[teff] = gradients(spectrum, labels, names=["teff"])[0]
        except SynthesisError:
            continue
    return out
