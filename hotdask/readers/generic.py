"""One spectrum from a file of any common kind, told by what the file holds.

FITS images of one dimension with a world coordinate system (linear or logarithmic), tables of one row a pixel or of
one row with arrays (ESO's phase 3), tables of text; LAMOST, SDSS and DESI by their own reader; and whatever specutils
reads, where it is installed.

References
----------
Greisen et al. 2006, A&A 446, 747 (spectral coordinates in FITS; AWAV is in air, WAVE in vacuum);
https://www.eso.org/sci/observing/phase3/p3sdpstd.pdf (ESO phase 3);
https://www.stsci.edu/hst/instrumentation/reference-data-for-calibration-and-tools/astronomical-catalogs/calspec
"""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from astropy import units
from astropy.io import fits

from hotdask import config
from hotdask.errors import InputError, SpectrumError
from hotdask.labels import LSF_NAMES
from hotdask.readers.lamost import Spectrum as SurveySpectrum
from hotdask.readers.lamost import read_spectrum
from hotdask.spectra.spectrum import ASSUMED_MEDIUM, Spectrum
from hotdask.windows import BLUE_RED_BREAK, LOG_STEP, LSF_PIVOT, observed_wavelength

_WAVELENGTH = ("WAVELENGTH", "WAVE", "LAMBDA", "WAVE_AIR", "WAVE_VAC", "AWAV", "WL", "LAM", "SPECTRAL_AXIS")
_LOG_WAVELENGTH = ("LOGLAM", "LOGLAMBDA", "LOG_LAMBDA", "LOGWAVE", "LOG_WAVE")
_FLUX = (
    *("FLUX", "FLUX_REDUCED", "FLUX_EL", "FLUXES", "FLAM", "F_LAMBDA", "FLUX_LAMBDA", "SPECTRUM", "SPEC", "INTENSITY"),
    *("COUNTS", "NORM_FLUX", "NORMFLUX", "FLUX_NORM", "FNU"),
)
_ERRORS: dict[str, tuple[str, ...]] = {
    "uncertainty": (
        *("ERR", "ERROR", "ERRS", "ERRORS", "SIGMA", "SIG", "UNCERTAINTY", "UNCERT", "STD", "NOISE", "STATERROR"),
        *("ERR_FLUX", "FLUX_ERR", "FLUXERR", "FLUX_ERROR", "E_FLUX", "ERR_REDUCED", "EFLUX", "SIGMA_FLUX"),
    ),
    "ivar": ("IVAR", "INVVAR", "FLUX_IVAR", "IVAR_FLUX"),
    "variance": ("VAR", "VARIANCE", "STAT", "FLUX_VAR"),
}
_BAD = ("QUAL", "QUALITY")
"""Columns that are 0 where a pixel is good."""
_WIDTHS = {"FWHM": "fwhm", "RESOLVING_POWER": "resolving_power", "RESOLUTION": "resolving_power"}
_POWERS = ("SPEC_RES", "SPECRES", "RESOLVING", "R_POWER")
"""Cards that say λ/FWHM."""
_INSTRUMENTS = {"HARPS": 115000.0, "FEROS": 48000.0, "ELODIE": 42000.0}
"""λ/FWHM of instruments of one mode."""
_UNIT_NAMES = {
    **dict.fromkeys(("A", "ANG", "ANGSTROM", "ANGSTROMS", "0.1NM", "ÅNGSTRÖM", "Å"), units.AA),
    **dict.fromkeys(("NM", "NANOMETER", "NANOMETERS"), units.nm),
    **dict.fromkeys(("UM", "MICRON", "MICRONS", "MICROMETER", "µM", "ΜM"), units.um),
    **dict.fromkeys(("M", "METER", "METERS"), units.m),
}
_TEXT = (".txt", ".dat", ".csv", ".ecsv", ".ascii", ".asc", ".tsv", ".spec", ".tab", ".xy")
_ASSUMED_POWER = "resolving power taken"
_FEW = 4
"""Columns of a table of text, at most, whose order says what they are."""
_SURVEY = ("not_a_target", "no_good_pixels", "class_not_selected", "not_in_file")
_LOST = ("not_found", "unreadable", "io_error", "empty_file", "too_large", "damaged", "truncated", "not_unique")
_REMEDY = "give the pixels as a text table of wavelength, flux and error, or as hotdask.Spectrum(wavelength, flux, …)"


def read(
    path: str | os.PathLike,
    *,
    medium: str | None = None,
    resolving_power: float | Callable | None = None,
    fwhm: float | None = None,
    rv: float | None = None,
) -> Spectrum:
    """Read one spectrum from a file.

    Parameters
    ----------
    path : path
        FITS, gzipped or not, a table of text, or ``COADD#TARGETID`` of DESI.
    medium : {"vacuum", "air"}, optional
        Of the wavelengths. Default: as the file says; an image that does not is taken for air, as IRAF has it, a table
        for vacuum, and `Spectrum.notes` says so.
    resolving_power, fwhm : float, optional
        λ/FWHM, or FWHM [Å], of a narrow line. Default: as the file says.
    rv : float, optional
        Velocity [km/s]. Default: that of the survey's pipeline where there is one; else it is to be found.

    Returns
    -------
    hotdask.Spectrum

    Raises
    ------
    InputError
        If the file holds no spectrum that is understood.

    Examples
    --------
    >>> read("nowhere.fits")
    Traceback (most recent call last):
    ...
    hotdask.errors.InputError: nowhere.fits: no such file; check the path
    """
    name = os.fspath(path)
    given = {"medium": medium, "resolving_power": resolving_power, "fwhm": fwhm, "rv": rv}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        fields = _survey(name)
    except SpectrumError as error:
        # It names the file.
        if error.reason in _LOST or error.reason in _SURVEY or "#TARGETID" in error.detail:
            raise InputError(str(error)) from error
        fields = _other(name, error)
    # What is said here is no longer assumed.
    settled = [ASSUMED_MEDIUM] if "medium" in given else []
    if {"fwhm", "resolving_power"} & given.keys():
        settled.append(_ASSUMED_POWER)
        fields = {key: value for key, value in fields.items() if key not in ("fwhm", "resolving_power", "lsf_sigma")}
    if "rv" in given:
        fields.pop("rv_err", None)
    fields["notes"] = tuple(note for note in fields.get("notes", ()) if not note.startswith(tuple(settled)))
    try:
        return Spectrum(**{"name": Path(name).name, **fields, **given})
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _other(name: str, survey: SpectrumError) -> dict:
    """Fields of a file that no survey made."""
    try:
        return (_text(name) if _is_text(name) else _fits(name)) or _specutils(name)
    except InputError as error:
        # One that is nearly a survey's is told what it lacks to be that.
        if survey.reason not in ("unknown_layout", "not_fits", "bad_shape"):
            raise InputError(str(survey)) from error
        raise InputError(f"{name}: {error}") from error


# Surveys


def _survey(path: str) -> dict:
    """Fields of a spectrum of LAMOST, SDSS or DESI."""
    overrides: dict[str, float] = {}
    while True:
        try:
            return _survey_fields(read_spectrum(path, overrides), overrides)
        except SpectrumError as error:
            # A velocity is found, and a position is not needed.
            lacking = {"no_velocity": ("rv",), "no_position": ("ra", "dec")}.get(error.reason)
            if lacking is None or lacking[0] in overrides:
                raise
            overrides |= dict.fromkeys(lacking, 0.0)


def _survey_fields(found: SurveySpectrum, unknown: Mapping[str, float]) -> dict:
    meta = found.meta
    settings = config.Fit()
    bad = (found.andmask & settings.andmask_bits != 0) | (found.ormask & settings.ormask_bits != 0)
    wavelength = observed_wavelength()
    lsf = [meta[name] for name in LSF_NAMES]
    fields = {"wavelength": wavelength, "flux": found.flux, "ivar": found.ivar, "mask": bad, "name": meta["specid"]}
    if np.isfinite(lsf).all():
        fields["lsf_sigma"] = _line_spread(wavelength, np.array(lsf))
    else:
        fields["resolving_power"] = settings.resolving_power_blue
        fields["notes"] = (f"{_ASSUMED_POWER} as {settings.resolving_power_blue:.0f}: the file does not say",)
    if "rv" not in unknown:
        fields |= {"rv": meta["rv"], "rv_err": meta["rv_err"]}
    position = {} if "ra" in unknown else {"ra": meta["ra"], "dec": meta["dec"]}
    return fields | {"noise_power": meta["noise_power"], "meta": {**position, "snr_g": meta["snr_g"]}}


def _line_spread(wavelength: np.ndarray, lsf: np.ndarray) -> np.ndarray:
    """Gaussian σ [Å] of line-spread coefficients (6,)."""
    blue = wavelength < BLUE_RED_BREAK
    arms = zip(LSF_PIVOT, lsf.reshape(2, 3), strict=True)
    parts = [np.polynomial.polynomial.polyval((wavelength - pivot) / 1000, c) for pivot, c in arms]
    return np.where(blue, *parts)


# FITS


def _fits(path: str) -> dict | None:
    try:
        with warnings.catch_warnings(action="ignore"), fits.open(path, memmap=False) as hdus:
            return _from_hdus(hdus)
    except (InputError, MemoryError):
        raise
    # astropy raises whatever numpy does on garbage; all of it is this file's fault.
    except Exception as error:
        raise InputError(f"astropy cannot read it ({type(error).__name__}: {error}); fetch it again") from error


def _from_hdus(hdus: fits.HDUList) -> dict | None:
    header = hdus[0].header
    for hdu in hdus:
        if isinstance(hdu, fits.BinTableHDU | fits.TableHDU) and hdu.data is not None and len(hdu.data):
            columns = {name.upper().strip(): hdu.data.field(name) for name in hdu.columns.names}
            stored = {c.name.upper().strip(): c.unit or "" for c in hdu.columns}
            said = {k: _table_keyword(hdu, k) for k in columns}
            fields = _from_columns(columns, stored, said, _cards(header, hdu.header))
            if fields is not None:
                return fields
    images = [hdu for hdu in hdus if hdu.is_image and hdu.data is not None and hdu.data.size > 1]
    return _from_images(images, header) if images else None


def _table_keyword(hdu: fits.BinTableHDU, column: str) -> str:
    """What ESO's keyword TUCDn or TUTYPn says of a column."""
    names = [name.upper().strip() for name in hdu.columns.names]
    n = names.index(column) + 1
    return " ".join(str(hdu.header.get(f"{key}{n}", "")) for key in ("TUCD", "TUTYP"))


def _cards(*headers: fits.Header) -> dict[str, object]:
    return {
        key: header[key]
        for header in headers
        for key in header
        if key and not isinstance(header[key], fits.card.Undefined)
    }


def _from_columns(
    columns: Mapping[str, np.ndarray], stored: Mapping[str, str], said: Mapping[str, str], cards: Mapping[str, object]
) -> dict | None:
    wave = next((c for c in (*_WAVELENGTH, *_LOG_WAVELENGTH) if c in columns), None)
    flux = next((c for c in _FLUX if c in columns), None)
    if wave is None or flux is None:
        return None
    rows = {name: _array(values) for name, values in columns.items()}
    # One row of arrays, as ESO has it, or a number a row.
    if rows[wave].ndim == 2:
        if len(rows[wave]) != 1:
            raise InputError(
                f"its table holds {len(rows[wave])} spectra; give one as hotdask.Spectrum(wavelength, flux, …)"
            )
        rows = {name: values[0] for name, values in rows.items() if values.ndim == 2}
    rows = {name: v for name, v in rows.items() if v.dtype.kind in "fiub" and v.shape == rows[wave].shape}
    if not {wave, flux} <= rows.keys() or rows[wave].ndim != 1:
        return None
    wavelength = rows[wave].astype(np.float64)
    unit = _unit(stored.get(wave, ""))
    log = wave in _LOG_WAVELENGTH or "LOG" in stored.get(wave, "").upper()
    wavelength = 10**wavelength if log else wavelength
    wavelength = wavelength * (unit or _guessed_unit(wavelength))
    fields = {"wavelength": wavelength, "flux": _with_unit(rows[flux], stored.get(flux, ""))}
    for kind, names in _ERRORS.items():
        column = next((c for c in names if c in rows), None)
        if column is not None and "uncertainty" not in fields and (rows[column] > 0).any():
            # Errors share the unit of the flux, also where their own column forgets it.
            values = rows[column].astype(np.float64)
            flux_unit = getattr(fields["flux"], "unit", None)
            power = {"uncertainty": 1, "ivar": -2, "variance": 2}[kind]
            fields[kind] = values if flux_unit is None else values * flux_unit**power
            break
    bad = next((c for c in _BAD if c in rows), None)
    if bad is not None:
        fields["mask"] = rows[bad] != 0
    width = next((c for c in _WIDTHS if c in rows and (rows[c] > 0).any()), None)
    if width is not None:
        fields[_WIDTHS[width]] = rows[width].astype(np.float64)
    elif "WDISP" in rows:
        plain = wavelength.to_value(units.AA)
        fields["lsf_sigma"] = rows["WDISP"] * LOG_STEP * np.log(10) * plain
    medium = {"WAVE_AIR": "air", "AWAV": "air", "WAVE_VAC": "vacuum"}.get(wave)
    if medium is None and "obs.atmos" in said.get(wave, "").lower():
        medium = "air"
    return fields | _from_cards(cards, fields, medium, default="vacuum")


def _array(values: np.ndarray) -> np.ndarray:
    """A column as an array, also if its one row has a length of its own."""
    values = np.asarray(values)
    return np.asarray(values[0])[None] if values.dtype == object and len(values) == 1 else values


def _from_images(images: list, header: fits.Header) -> dict | None:
    named = {hdu.name.upper(): hdu for hdu in images}
    main = next((named[n] for n in ("PRIMARY", "FLUX", "SCI", "SPECTRUM", "DATA") if n in named), images[0])
    cards = _cards(header, main.header)
    data = np.asarray(main.data, dtype=np.float64)
    n = data.shape[-1]
    planes = data.reshape(-1, n)
    fields: dict = {}
    if len(planes) > 1:
        bands = [str(cards.get(f"BANDID{i + 1}", "")) for i in range(len(planes))]
        if not any(bands):
            raise InputError(f"its image has the shape {data.shape}: {len(planes)} spectra or more; {_REMEDY}")
        noise = next((i for i, band in enumerate(bands) if "sigma" in band), None)
        if noise is not None:
            fields["uncertainty"] = planes[noise]
    beside = {name: hdu.data for name, hdu in named.items() if hdu is not main and hdu.data.size == n}
    for kind, names in _ERRORS.items():
        name = next((c for c in names if c in beside), None)
        if name is not None and not fields:
            fields[kind] = np.asarray(beside[name], dtype=np.float64).ravel()
    wave = next((c for c in (*_WAVELENGTH, *_LOG_WAVELENGTH) if c in beside), None)
    if wave is not None:
        values = np.asarray(beside[wave], dtype=np.float64).ravel()
        values = 10**values if wave in _LOG_WAVELENGTH else values
        wavelength = values * (_unit(str(named[wave].header.get("BUNIT", ""))) or _guessed_unit(values))
    else:
        wavelength = _world(cards, n)
    flux = planes[0]
    # Zeros at the ends are padding.
    mask = np.zeros(n, dtype=bool)
    seen = np.flatnonzero(flux)
    if seen.size:
        mask[: seen[0]] = mask[seen[-1] + 1 :] = True
    fields |= {"wavelength": wavelength, "flux": flux, "mask": mask}
    return fields | _from_cards(cards, fields, None, default="air")


def _world(cards: Mapping[str, object], n: int) -> units.Quantity:
    """Wavelengths of n pixels from the cards of a world coordinate system."""
    start, step = (_number(cards.get(key)) for key in ("CRVAL1", "CDELT1"))
    step = step if step is not None and cards.get("CD1_1") is None else _number(cards.get("CD1_1"))
    if start is None and _number(cards.get("COEFF0")) is not None:
        start, step = (_number(cards.get(key)) for key in ("COEFF0", "COEFF1"))
        cards = {**cards, "DC-FLAG": 1, "CRPIX1": 1}
    if start is None or not step:
        raise InputError(
            f"its image has no CRVAL1 with CDELT1 or CD1_1, so the wavelengths of its pixels are not known; {_REMEDY}"
        )
    pixel = np.arange(n) + 1 - (_number(cards.get("CRPIX1")) or (1.0 if "CRPIX1" not in cards else 0.0))
    kind = str(cards.get("CTYPE1", "")).upper().strip()
    unit = _unit(str(cards.get("CUNIT1", "")))
    if kind in ("MULTISPE", "MULTISPEC"):
        raise InputError(
            f"its wavelengths are IRAF's multispec; write it with IRAF's scopy format=onedspec, or {_REMEDY}"
        )
    if kind in ("WAVE-LOG", "AWAV-LOG") and start > 100:
        return start * np.exp(step * pixel / start) * (unit or _guessed_unit(np.array([start])))
    values = start + step * pixel
    small = abs(step) < 0.01
    if "LN" in kind or (small and 8.0 < start < 9.4):
        values = np.exp(values)
    elif (
        str(cards.get("DC-FLAG", "")).strip() == "1" or "LOG" in kind or (small and 3.3 < start < 4.2 and unit is None)
    ):
        values = 10**values
    return values * (unit or _guessed_unit(values))


def _from_cards(cards: Mapping[str, object], fields: Mapping[str, object], medium: str | None, *, default: str) -> dict:
    """Medium, resolving power, name and notes from the header."""
    out: dict = {}
    notes: list[str] = []
    medium = medium or _medium(cards)
    if medium is None:
        medium = default
        notes.append(f"{ASSUMED_MEDIUM} in {default}: the file does not say")
    out["medium"] = medium
    if not {"fwhm", "resolving_power", "lsf_sigma"} & fields.keys():
        power = next((p for p in (_number(cards.get(k)) for k in _POWERS) if p and p > 100), None)
        if power is None:
            instrument = str(cards.get("INSTRUME", "")).upper().strip()
            power = _INSTRUMENTS.get(instrument)
            if power is not None:
                notes.append(f"{_ASSUMED_POWER} as {power:.0f}, that of {instrument}")
        if power is not None:
            out["resolving_power"] = power
    if str(cards.get("SPECSYS", "")).upper().startswith("TOPO"):
        notes.append("wavelengths are topocentric: the velocity holds that of the observer")
    if isinstance(cards.get("OBJECT"), str) and cards["OBJECT"].strip():
        out["name"] = cards["OBJECT"].strip()
    position = {key.lower(): _number(cards.get(key)) for key in ("RA", "DEC")}
    if None not in position.values():
        out["meta"] = position
    return out | {"notes": tuple(notes)}


def _medium(cards: Mapping[str, object]) -> str | None:
    kind = str(cards.get("CTYPE1", "")).upper()
    if kind.startswith("AWAV"):
        return "air"
    said = str(cards.get("AIRORVAC", "")).lower().strip()
    if said:
        return "air" if said.startswith("air") else "vacuum"
    if "VACUUM" in cards:
        return "vacuum" if str(cards["VACUUM"]).strip().upper() in ("T", "TRUE", "1") else "air"
    # Many call a wavelength in air WAVE; only with its unit beside is it meant as the standard has it.
    return "vacuum" if kind in ("WAVE", "WAVE-LOG") and cards.get("CUNIT1") else None


def _unit(text: str) -> units.UnitBase | None:
    """Unit of length that a text names, None if it names none."""
    plain = re.sub(r"^LOG(10)?\s*\(?|\)$", "", text.strip().upper()).strip()
    if plain in _UNIT_NAMES:
        return _UNIT_NAMES[plain]
    try:
        unit = units.Unit(text)
    except (ValueError, TypeError):
        return None
    return unit if unit.is_equivalent(units.m) else None


def _guessed_unit(values: np.ndarray) -> units.UnitBase:
    """Unit of optical wavelengths by their size."""
    middle = float(np.median(values))
    for low, high, unit in ((0.1, 3.0, units.um), (100.0, 2000.0, units.nm), (2000.0, 50000.0, units.AA)):
        if low <= middle < high:
            return unit
    raise InputError(f"its wavelengths are about {middle:.4g} and have no unit; {_REMEDY}")


def _with_unit(values: np.ndarray, text: str):
    """Flux with its unit where that matters: per frequency."""
    values = values.astype(np.float64)
    try:
        unit = units.Unit(text)
    except (ValueError, TypeError):
        return values
    return values * unit if unit.is_equivalent(units.Jy) else values


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


# Text


def _is_text(path: str) -> bool:
    if Path(path).suffix.lower() in _TEXT:
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError:
        return False
    return b"\0" not in start and not start.startswith((b"SIMPLE", b"\x1f\x8b"))


def _text(path: str) -> dict | None:
    """Fields of a table of text: columns by name, or two or three without: wavelength, flux, error."""
    # Half a second to import, for those who need it.
    from astropy.io import ascii as text_tables
    from astropy.table import Table

    try:
        with warnings.catch_warnings(action="ignore"):
            if path.lower().endswith(".ecsv"):
                table = Table.read(path, format="ascii.ecsv")
            else:
                table = _plain(path) or text_tables.read(path)
    except Exception as error:
        raise InputError("cannot be read as a table of text; give columns of wavelength, flux and error") from error
    columns = {
        name.upper().strip(): np.ma.filled(np.ma.asarray(table[name].data), _missing(table[name]))
        for name in table.colnames
    }
    stored = {name.upper().strip(): str(table[name].unit or "") for name in table.colnames}
    numbers = [name for name, values in columns.items() if values.dtype.kind in "fiu"]
    if not any(c in columns for c in (*_WAVELENGTH, *_LOG_WAVELENGTH)) and 2 <= len(numbers) <= _FEW:
        known = ("WAVELENGTH", "FLUX", "ERROR")
        columns = {new: columns[old] for new, old in zip(known, numbers, strict=False)}
        stored = {new: stored[old] for new, old in zip(known, numbers, strict=False)}
    fields = _from_columns(
        columns, stored, {}, {k.upper(): v for k, v in (table.meta or {}).items() if isinstance(k, str)}
    )
    if fields is None:
        raise InputError(f"has the columns {', '.join(table.colnames)}; name them wavelength, flux and error")
    fields.pop("name", None)
    return fields


def _missing(column) -> float | None:
    return np.nan if column.dtype.kind == "f" else None


def _plain(path: str):
    """Table of columns of numbers without a header; None if it is another kind of table."""
    from astropy.table import Table

    try:
        values = np.loadtxt(path, delimiter="," if path.lower().endswith(".csv") else None, ndmin=2)
    except ValueError:
        return None
    return Table(values, names=[f"COL{i + 1}" for i in range(values.shape[1])]) if values.shape[1] > 1 else None


# Others


def _specutils(path: str) -> dict:
    """What specutils makes of a file, where it is installed."""
    try:
        import specutils
    except ImportError as error:
        raise InputError(
            "holds no spectrum that is understood (a FITS image with CRVAL1, a table with columns of wavelength and "
            f"flux, text); install specutils to read what it reads, or {_REMEDY}"
        ) from error
    reader = getattr(specutils, "Spectrum", None) or specutils.Spectrum1D
    try:
        found = reader.read(path)
    except Exception as error:
        raise InputError(f"neither hotdask nor specutils reads it ({error}); {_REMEDY}") from error
    fields = {
        "wavelength": found.spectral_axis,
        "flux": found.flux,
        "uncertainty": found.uncertainty,
        "mask": found.mask,
    }
    return fields | {"notes": (f"{ASSUMED_MEDIUM} in vacuum: the file does not say",)}
