"""Libraries of real stars' spectra, as they are published: names, types and labels of the stars, and their pixels.

Read are MILES and STELIB as the wheel ``sdss-mangadap`` has them (its folder ``spectral_templates``), ``.npz`` files of
the same, and a table of your own that names a file of pixels for each star.
"""

import re
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from hotdask.errors import InputError
from hotdask.labels import INDEX, LABEL_NAMES, LABELS, N_LABELS
from hotdask.readers.columns import numbers
from hotdask.readers.usertables import read_user_table

FWHM: dict[str, float] = {"miles": 2.5, "stelib": 3.0}
"""Line spread of the libraries [Å] (Sánchez-Blázquez et al. 2006; Le Borgne et al. 2003)."""

SOURCES: dict[str, str] = {"miles": "MILES (Cenarro et al. 2007)", "stelib": "STELIB (Le Borgne et al. 2003)"}
"""What to call where a library's labels are from."""

HOTTEST_COOL = 7000.0
"""Stars the library says are cooler are left out [K]."""
_HOT_TYPES = re.compile(r"^(sd)?[OBA]|^W[NC]")


@dataclass(frozen=True, eq=False)
class Spectra:
    """Stars of one library that share wavelengths.

    Attributes
    ----------
    name, spectral_type : (n,) str
    labels : (n, 11) float64
        As the library gives them, [X/H] relative to the Sun; NaN where it gives none.
    source : str
        What to call the library.
    wavelength : (n_pixel,) float64
        [Å], increasing, at rest.
    flux : (n, n_pixel) float
        [any unit]; NaN where nothing was observed.
    fwhm : float or (n_pixel,) float
        Of the line spread [Å].
    air : bool
        Whether wavelengths are those in air.
    rv : float
        Velocity still to be taken out [km/s].
    """

    name: np.ndarray
    spectral_type: np.ndarray
    labels: np.ndarray
    source: str
    wavelength: np.ndarray
    flux: np.ndarray
    fwhm: float | np.ndarray
    air: bool
    rv: float = 0.0


def read_stars(path: str | Path) -> list[Spectra]:
    """Hot stars of the libraries in a folder, or of a table.

    Parameters
    ----------
    path : path
        A folder ``spectral_templates`` of the wheel ``sdss-mangadap``; a folder of ``miles*.npz`` and ``stelib*.npz``;
        or a .csv, .parquet or .fits table, one row a star: ``name``, ``path`` of its pixels (relative to the table),
        ``fwhm`` [Å] or ``resolving_power``, and where known ``spectral_type``, ``air`` (true or false; default: true),
        ``rv`` [km/s], ``source``, and labels as in `hotdask.labels`, [X/H] relative to today's Sun. Pixels are a text
        table of wavelength [Å] and flux, or a FITS image of one spectrum with CRVAL1 and CDELT1.

    Returns
    -------
    list of Spectra

    Raises
    ------
    InputError
        If there is nothing of the kind, or a file cannot be read.
    """
    path = Path(path)
    if path.is_file():
        return _read_table(path)
    if not path.is_dir():
        raise InputError(f"library '{path}' does not exist; give a folder of spectra or a table of them")
    readers = {"miles": _read_miles, "stelib": _read_stelib}
    found = [s for name, read in readers.items() if (path / name).is_dir() for s in read(path / name)]
    found += [_read_npz(file) for file in sorted(path.glob("*.npz")) if _library_of(file)]
    if not found:
        raise InputError(
            f"library '{path}' holds neither folders miles and stelib nor miles*.npz and stelib*.npz; unpack the wheel "
            "sdss-mangadap and give its mangadap/data/spectral_templates, or give a table"
        )
    return found


def _library_of(file: Path) -> str:
    return next((name for name in FWHM if file.name.lower().startswith(name)), "")


def _hot(spectra: Spectra) -> Spectra:
    teff = spectra.labels[:, INDEX["teff"]]
    typed = np.array([bool(_HOT_TYPES.match(t)) for t in spectra.spectral_type])
    rows = np.flatnonzero((teff >= HOTTEST_COOL) | (np.isnan(teff) & typed))
    chosen = {key: getattr(spectra, key)[rows] for key in ("name", "spectral_type", "labels", "flux")}
    return replace(spectra, **chosen)


def _labels(teff: Sequence[float], logg: Sequence[float], fe_h: Sequence[float]) -> np.ndarray:
    labels = np.full((len(teff), N_LABELS), np.nan)
    for name, values in (("teff", teff), ("logg", logg), ("fe_h", fe_h)):
        labels[:, INDEX[name]] = values
    return labels


def _read_npz(file: Path) -> Spectra:
    library = _library_of(file)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            needed = ("wavelength_air", "flux", "name", "spectral_type", "teff", "logg", "fe_h")
            wavelength, flux, name, spectral_type, *labels = (arrays[key] for key in needed)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"'{file}' cannot be read as a library of spectra ({error}); check that it is one") from error
    # Wavelengths of both libraries are at rest, whatever velocity is noted beside them.
    return _hot(
        Spectra(name, spectral_type, _labels(*labels), SOURCES[library], wavelength, flux, FWHM[library], air=True)
    )


def _read_miles(folder: Path) -> list[Spectra]:
    table = folder / "paramsMILES_v9.1.txt"
    try:
        lines = table.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise InputError(f"MILES: '{table}', the names and labels of its stars, cannot be read ({error})") from error
    stars = [star for star in map(_miles_star, lines) if star and star[3] >= HOTTEST_COOL]
    there = {star: folder / f"MILES_res2.50_star_m{star[1]}V.fits" for star in stars}
    there = {star: file for star, file in there.items() if file.exists()}
    if not there:
        raise InputError(f"MILES: '{folder}' has no spectrum of a star of its table over {HOTTEST_COOL:g} K")
    name, _, spectral_type, *labels = map(np.array, zip(*there, strict=True))
    wavelength, flux = _read_images(list(there.values()))
    return [Spectra(name, spectral_type, _labels(*labels), SOURCES["miles"], wavelength, flux, FWHM["miles"], air=True)]


def _miles_star(line: str) -> tuple | None:
    """Name, number, type, Teff, log g and [Fe/H] of a line of the table, whose columns are of fixed width."""
    values = [_number(text) for text in line[50:].split()[:3]]
    return (line[:22].strip(), line[22:28].strip(), line[35:50].strip(), *values) if len(values) == 3 else None


def _read_stelib(folder: Path) -> list[Spectra]:
    found = []
    for file in sorted(folder.glob("STELIB*.fits")):
        wavelength, flux, header = _read_image(file)
        labels = _labels(*([_number(header.get(key))] for key in ("TEFF", "LOG_G", "FE_H")))
        # Some stars were observed twice: HD053929lp, HD053929ss.
        name = file.stem.split("_")[-1].removesuffix("lp").removesuffix("ss")
        spectral_type = str(header.get("SPECTYPE", "")).strip()
        # STELIB marks what was not observed with a value below zero.
        flux = np.where(flux > 0, flux, np.nan)
        named = (np.array([name]), np.array([spectral_type]))
        found.append(Spectra(*named, labels, SOURCES["stelib"], wavelength, flux[None], FWHM["stelib"], air=True))
    if not found:
        raise InputError(f"STELIB: '{folder}' has no files STELIB*.fits; unpack the whole folder")
    return [s for s in map(_hot, found) if len(s.name)]


def _read_table(path: Path) -> list[Spectra]:
    where = f"table '{path}'"
    table, units = read_user_table(str(path), where)
    missing = [c for c in ("name", "path") if c not in table] or (
        [] if {"fwhm", "resolving_power"} & set(table) else ["fwhm (or resolving_power)"]
    )
    if missing:
        raise InputError(f"table '{path}' has no column {', '.join(missing)}; add it")
    known = {lb.name: lb.unit for lb in LABELS} | {"fwhm": "Angstrom", "resolving_power": "", "rv": "km/s"}
    for name, unit in known.items():
        if name in table:
            table[name] = numbers(table[name], where, unit=unit, stored=units[name])
    found = []
    for row in table.to_dict("records"):
        wavelength, flux = _read_pixels(path.parent / str(row["path"]))
        labels = np.array([[_number(row.get(name)) for name in LABEL_NAMES]])
        fwhm, power, rv = (_number(row.get(key)) for key in ("fwhm", "resolving_power", "rv"))
        found.append(
            Spectra(
                np.array([str(row["name"])]),
                np.array([_text(row.get("spectral_type"))]),
                labels,
                _text(row.get("source")) or path.name,
                wavelength,
                flux[None],
                fwhm if np.isfinite(fwhm) else wavelength / power,
                air=str(row.get("air", True)).lower() not in ("false", "0"),
                rv=rv if np.isfinite(rv) else 0.0,
            )
        )
    return found


def _read_pixels(file: Path) -> tuple[np.ndarray, np.ndarray]:
    if file.suffix.lower() in (".fits", ".fit", ".gz"):
        return _read_image(file)[:2]
    try:
        columns = np.loadtxt(file, delimiter="," if file.suffix == ".csv" else None, usecols=(0, 1), unpack=True)
    except (OSError, ValueError, IndexError) as error:
        raise InputError(
            f"'{file}' cannot be read as two columns of numbers ({error}); check that it is that"
        ) from error
    return columns[0], columns[1]


def _read_images(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Spectra that share their wavelengths, (n_pixel,) and (n, n_pixel)."""
    wavelength, first, _ = _read_image(files[0])
    flux = [first]
    for file in files[1:]:
        own, values, _ = _read_image(file)
        if not np.array_equal(own, wavelength):
            raise InputError(f"'{file}' has other wavelengths than '{files[0]}'; the library is not what it should be")
        flux.append(values)
    return wavelength, np.array(flux)


def _read_image(file: Path) -> tuple[np.ndarray, np.ndarray, fits.Header]:
    """Wavelength, flux and header of a FITS image of one spectrum."""
    try:
        # Headers of old libraries break rules that matter nothing here.
        with warnings.catch_warnings(action="ignore", category=AstropyWarning), fits.open(file) as hdus:
            flux, header = np.asarray(hdus[0].data, dtype=np.float64), hdus[0].header.copy()
            start, step, pivot = (float(header.get(k, 1)) for k in ("CRVAL1", "CDELT1", "CRPIX1"))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"'{file}' cannot be read as a FITS image of a spectrum ({error}); check it") from error
    if flux.ndim != 1 or "CRVAL1" not in header:
        raise InputError(f"'{file}' is no FITS image of one spectrum with CRVAL1 and CDELT1; give it as text instead")
    return start + step * (np.arange(len(flux)) + 1 - pivot), flux, header


def _number(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _text(value) -> str:
    return value.strip() if isinstance(value, str) else ""
