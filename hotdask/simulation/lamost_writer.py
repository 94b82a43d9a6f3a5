"""LAMOST files written as the survey writes them, in three layouts: for simulated surveys and for tests.

Header cards, their order and their quirks (DR1's MJD, stale NAXIS cards from DR9 on, -9999 for "none") follow real
files; ORIGIN says that the spectrum is simulated. The same input gives the same bytes.
"""

import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from isal import igzip
from scipy.ndimage import uniform_filter1d

from hotdask.errors import InputError
from hotdask.windows import SPEED_OF_LIGHT

Layout = Literal["dr1", "dr5", "dr9"]

_BLOCK = 2880
_REQUIRED = ("ra", "dec", "lmjd", "planid", "spid", "fiberid")
_CONTINUUM_PIXELS = 301
_ROWS = {
    "dr1": "Flux Inverse Subcontinuum Andmask Ormask",
    "dr5": "Flux, Inverse, Wavelength, Andmask, Ormask",
}
_COLUMNS = ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK", "NORMALIZATION")


def write_lamost(
    path: str | os.PathLike,
    *,
    layout: Layout,
    flux: np.ndarray,
    ivar: np.ndarray,
    andmask: np.ndarray,
    ormask: np.ndarray,
    wavelength: np.ndarray,
    meta: Mapping[str, object],
) -> None:
    """Write one spectrum in the format of a LAMOST release.

    Parameters
    ----------
    path : path
        The file; gzipped if the name ends in ``.gz``. Replaced if it exists.
    layout : {"dr1", "dr5", "dr9"}
        Image with flux over continuum (DR1), image with wavelength (DR2-DR8), or COADD table (DR9 on).
    flux, ivar : (n_pixel,) float
        Relative flux and inverse variance, observed frame; written as float32.
    andmask, ormask : (n_pixel,) int
        Pixel bits; written as float32, as the survey does.
    wavelength : (n_pixel,) float
        Vacuum, heliocentric wavelength [Å], log-linear with a step of 1e-4 dex.
    meta : mapping
        Values by the names of `hotdask.schema.SPECTRA`. Needed: ra, dec [deg], lmjd, planid, spid, fiberid. A missing
        or NaN rv, rv_err [km/s] or S/N is written as the survey's sentinel. obsid and release are not written for
        "dr1", which had neither.

    Raises
    ------
    InputError
        If arrays or layout do not fit each other, or something needed is missing or cannot be written in FITS.

    Examples
    --------
    >>> import tempfile
    >>> from hotdask.readers.lamost import read_spectrum
    >>> from hotdask.windows import observed_wavelength
    >>> one = np.ones(3909)
    >>> meta = dict(ra=80.0, dec=-5.0, rv=20.0, lmjd=56000, planid="SIM", spid=1, fiberid=7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     name = f"{folder}/spec-56000-SIM_sp01-007.fits.gz"
    ...     write_lamost(name, layout="dr5", flux=one, ivar=one, andmask=0 * one, ormask=0 * one,
    ...                  wavelength=observed_wavelength(), meta=meta)
    ...     read_spectrum(name).meta["specid"]
    '56000-SIM-01-007'
    """
    name = os.path.basename(path)
    start, step = _check(name, layout, meta, wavelength, (flux, ivar, andmask, ormask))
    n = len(wavelength)
    with np.errstate(all="ignore"):
        continuum = uniform_filter1d(np.nan_to_num(np.asarray(flux, dtype=np.float64)), _CONTINUUM_PIXELS)
        normalized = np.nan_to_num(np.asarray(flux) / continuum, posinf=0, neginf=0)
        rows = [flux, ivar, normalized if layout == "dr1" else wavelength, andmask, ormask]
        data = np.array([*rows, normalized] if layout == "dr9" else rows, dtype=">f4")
    try:
        header = _header(name.removesuffix(".gz"), layout, n, meta, start, step)
        if layout == "dr9":
            # One row of six vectors has the bytes of six image rows.
            header += _table_header(n)
        raw = header.encode("ascii") + _padded(data.tobytes(), b"\0")
    except (ValueError, TypeError, UnicodeEncodeError) as error:
        raise InputError(f"{name}: meta cannot be written as FITS cards ({error}); correct that value") from error
    # No time in the gzip header: a simulated survey made twice must be the same files.
    Path(path).write_bytes(igzip.compress(raw, 2, mtime=0) if name.endswith(".gz") else raw)


def _check(name: str, layout: str, meta: Mapping, wavelength, arrays) -> tuple[float, float]:
    """Start and step of the log-linear grid."""
    if layout not in (*_ROWS, "dr9"):
        raise InputError(f"{name}: layout '{layout}' is unknown; use dr1, dr5 or dr9")
    missing = [key for key in _REQUIRED if meta.get(key) is None]
    if missing:
        raise InputError(f"{name}: meta lacks {', '.join(missing)}; give them")
    shapes = {np.shape(a) for a in (wavelength, *arrays)}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or shape[0] < 2:
        raise InputError(f"{name}: flux, ivar, masks and wavelength must be vectors of one length")
    with np.errstate(all="ignore"):
        log_wavelength = np.log10(wavelength)
    n = len(log_wavelength)
    start, step = round(float(log_wavelength[0]), 6), 1e-4
    if not np.abs(log_wavelength - start - step * np.arange(n)).max() < 1e-6:
        raise InputError(f"{name}: wavelengths are not log-linear with a step of 1e-4 dex; resample them first")
    return start, step


def _header(filename: str, layout: Layout, n: int, meta: Mapping, start: float, step: float) -> str:
    dr1, dr9 = layout == "dr1", layout == "dr9"
    lmjd = int(meta["lmjd"])
    mjd = int(meta.get("mjd") or lmjd - 1)
    cards = [
        _card("SIMPLE", True),
        _card("BITPIX", 16 if dr9 else -32),
        _card("NAXIS", 0 if dr9 else 2, "Number of array dimensions"),
        _card("NAXIS1", n),
        _card("NAXIS2", 5),
        _card("EXTEND", True),
        _comment("--------FILE INFORMATION"),
        _card("FILENAME", filename),
    ]
    if not dr1:
        obsid = meta.get("obsid")
        if obsid is not None and int(obsid) >= 0:
            cards.append(_card("OBSID", int(obsid), "Unique number ID of this spectrum"))
        cards.append(_card("DATA_V", str(meta.get("release") or ""), "Data release version"))
    extensions = _card("N_EXTEN", 2 if dr9 else 1, "The extension number")
    if dr1:
        cards += [extensions, _card("EXTEN0", _ROWS[layout])]
    else:
        cards += [extensions] if dr9 else [_card("EXTEN0", _ROWS[layout]), extensions]
    cards += [
        _common("head"),
        _card("LMJD", lmjd, "Local Modified Julian Day"),
        _card("MJD", lmjd + 1 if dr1 else mjd, "Modified Julian Day"),
        _card("PLANID", str(meta["planid"]), "Plan ID in use"),
        _card("RA", float(meta["ra"]), "[deg] Right ascension of object"),
        _card("DEC", float(meta["dec"]), "[deg] Declination of object"),
        _card("FIBERID", int(meta["fiberid"]), "Fiber ID of Object"),
        _common(layout),
        _common("frame"),
        _card("SPID", int(meta["spid"]), "Spectrograph ID"),
        _common("reduction"),
        _card("COEFF0", start, "Central wavelength (log10) of first pixel"),
        _card("COEFF1", step, "Log10 dispersion per pixel"),
        _card("CRVAL1", start, "Central wavelength (log10) of first pixel"),
        _card("CD1_1", step, "Log10 dispersion per pixel"),
        _common("analysis"),
        _card("VERSPIPE", {"dr1": "v2.6.4", "dr5": "v2.9.7", "dr9": "v2.9.8"}[layout], "Version of Pipeline"),
        _card("CLASS", str(meta.get("class") or ""), "Class of object"),
        _card("SUBCLASS", str(meta.get("subclass") or ""), "Subclass of object"),
        _card("Z", _per_light(meta.get("rv")), "Redshift of object"),
        _card("Z_ERR", _per_light(meta.get("rv_err")), "Redshift error of object"),
    ]
    stem = "SN_" if dr1 else "SNR"
    for band in "ugriz":
        snr = meta.get(f"snr_{band}")
        value = 0.0 if snr is None or math.isnan(snr) else float(f"{snr:.9g}")
        cards.append(_card(f"{stem}{band.upper()}", value, f"SNR of {band} filter"))
    return _ended(cards)


def _per_light(velocity) -> float | int:
    """Redshift, or the survey's sentinel."""
    return -9999 if velocity is None or math.isnan(velocity) else float(velocity) / SPEED_OF_LIGHT


@cache
def _common(part: str) -> str:
    """Cards that do not change from file to file, built once."""
    magnitudes = [_card(f"MAG{i}", 99.0, f"[mag] Mag{i} of object") for i in range(1, 8)]
    cards = {
        "head": [
            _card("ORIGIN", "HOTDASK SIMULATION", "Organization responsible for creating this file"),
            _comment("--------TELESCOPE PARAMETERS"),
            _card("TELESCOP", "LAMOST", "GuoShouJing Telescope"),
            _comment("--------OBSERVATION PARAMETERS"),
        ],
        "dr1": [
            _card("X_VALUE", 0.0, "[mm] X coordinate of object on the focal plane"),
            _card("OBJSOURC", "SIMULATED", "Name of input catalog"),
            _card("T_INFO", "NULL", "Target information"),
            _card("FIBERTYP", "Obj", "Fiber type of object"),
            *magnitudes,
        ],
        "dr5": [
            _card("X_VALUE", "0.0000000000", "[mm] X coordinate of object on the focal plane"),
            _card("TSOURCE", "SIMULATED", "Name of input catalog"),
            _card("FIBERTYP", "Obj", "Fiber type of object"),
            _card("FIBERMAS", 0, "Bitmask of warning values, 0 means all is well"),
            *magnitudes,
        ],
        "dr9": [
            _card("X_VALUE", "0.0000000000", "[mm] X coordinate of object on the focal plane"),
            _card("TSOURCE", "SIMULATED", "Name of input catalog"),
            _card("FIB_TYPE", "Obj", "Fiber type of object"),
            _card("FIB_MASK", 0, "Bitmask of warning values, 0 means good"),
            *(_card(f"MAG_PS_{b}", -999.0, "[mag] Magnitude of object") for b in "GRIZY"),
        ],
        "frame": [
            _card("RADECSYS", "FK5", "Equatorial coordinate system"),
            _card("EQUINOX", 2000.0, "Equinox in years"),
        ],
        "reduction": [
            _comment("--------DATA REDUCTION PARAMETERS"),
            _card("HELIO", True, "Heliocentric correction"),
            _card("HELIO_RV", 0.0, "[km/s] Heliocentric correction"),
            _card("VACUUM", True, "Wavelengths are in vacuum"),
            _card("NWORDER", 2, "Number of linear-log10 coefficients"),
            _card("WFITTYPE", "LOG-LINEAR", "Linear-log10 dispersion"),
        ],
        "analysis": [
            _card("CRPIX1", 1, "Starting pixel (1-indexed)"),
            _card("CTYPE1", "LINEAR"),
            _card("DC-FLAG", 1, "Log-linear flag"),
            _comment("--------SPECTRA ANALYSIS RESULTS"),
        ],
    }
    return "".join(cards[part])


@cache
def _table_header(n: int) -> str:
    return _ended(
        [
            "XTENSION= 'BINTABLE'           /Binary table".ljust(80),
            _card("BITPIX", 8, "Required value"),
            _card("NAXIS", 2, "Required value"),
            _card("NAXIS1", 4 * n * len(_COLUMNS), "Number of bytes per row"),
            _card("NAXIS2", 1, "Number of rows"),
            _card("PCOUNT", 0, "Normally 0 (no varying arrays)"),
            _card("GCOUNT", 1, "Required value"),
            _card("TFIELDS", len(_COLUMNS), "Number of columns in table"),
            _card("EXTNAME", "COADD", "The extension name"),
            *(_card(f"TTYPE{i}", name) for i, name in enumerate(_COLUMNS, 1)),
            *(_card(f"TFORM{i}", f"{n}E") for i in range(1, len(_COLUMNS) + 1)),
        ]
    )


def _card(key: str, value: bool | int | float | str, comment: str = "") -> str:
    """One header card of 80 characters; numbers keep all their digits."""
    if isinstance(value, str):
        quoted = value.replace("'", "''")
        text = f"'{quoted:<8}'"
        text = f"{text:<20}"
        if not value.isprintable() or not value.isascii():
            raise ValueError(f"{key} = {value!r} is not printable ASCII")
    elif isinstance(value, bool):
        text = f"{'T' if value else 'F':>20}"
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{key} = {value} is not finite")
        text = f"{value!r:>20}".upper()
    else:
        text = f"{value:>20}"
    card = f"{key:<8}= {text} /"
    if len(card) - 2 > 80:
        raise ValueError(f"{key} = {value!r} is too long for a card")
    return f"{card} {comment}"[:80].ljust(80) if len(card) <= 80 else card[:-2].ljust(80)


def _comment(text: str) -> str:
    return f"COMMENT {text}".ljust(80)


def _ended(cards: list[str]) -> str:
    text = "".join(cards) + "END".ljust(80)
    return text.ljust(math.ceil(len(text) / _BLOCK) * _BLOCK)


def _padded(data: bytes, fill: bytes) -> bytes:
    return data.ljust(math.ceil(len(data) / _BLOCK) * _BLOCK, fill)
