"""SDSS and BOSS spectra, ``spec-PLATE-MJD-FIBER.fits`` and SDSS-V's ``spec-FIELD-MJD-CATALOGID.fits``, as LAMOST's.

HDU 1 is a table of one row a pixel, HDU 2 one row about the spectrum. The survey's pixels, vacuum and heliocentric, lie
at whole multiples of 1e-4 dex, as LAMOST's do: they are taken over, not resampled.

References
----------
https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html
https://www.sdss4.org/dr17/algorithms/bitmasks/#SPPIXMASK and #ZWARNING
https://www.sdss3.org/dr10/algorithms/bitmask_zwarning.php (what the bits mean for stars)
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

from hotdask.errors import SpectrumError
from hotdask.labels import LSF_NAMES
from hotdask.windows import BLUE_RED_BREAK, LOG_STEP, LSF_PIVOT

COLUMNS = ("FLUX", "LOGLAM", "IVAR", "AND_MASK", "OR_MASK")
"""By which the table of pixels is known."""

_NOT_PIXELS = 0xFFFF
"""Bits 0-15 of SPPIXMASK mark whole fibers; where that is bad the pipeline has set ivar to 0 already."""

_NO_DATA = 1 << 24
"""Deprecated in favor of ivar = 0."""

NO_TARGET_BITS = {0: "SKY", 7: "UNPLUGGED", 8: "BAD_TARGET"}
"""Bits of ZWARNING of fibers that looked at the sky, were broken and saw at most the sky, or were put elsewhere."""
NO_DATA_BITS = {9: "NODATA"}
NO_REDSHIFT_BITS = {1: "LITTLE_COVERAGE", 2: "SMALL_DELTA_CHI2", 3: "NEGATIVE_MODEL", 5: "Z_FITLIMIT"}
"""Bits of ZWARNING with which the redshift may be another: SMALL_DELTA_CHI2 says that one over 1000 km/s away fits as
well, NEGATIVE_MODEL that the best star fits upside down. The two others are harmless: MANY_OUTLIERS (4) mostly marks
high S/N or lines the templates lack, as of hot stars, and NEGATIVE_EMISSION (6) is about quasars.
"""
_SKY = re.compile(r"(?:.*_)?(?:SKY|BLANK)(?:_.*)?", re.DOTALL)
_NOTHING = ("NA", "UNASSIGNED", "GUIDE", "LIGHT_TRAP")
_NO_WORD = re.compile(r"[^\w.+-]", re.ASCII)
_FIBERS = 1000
_LSF_RANGE = (3800.0, 9000.0)
_LSF_PIXELS = 200
_N_PIXELS = (2, 100_000)


def is_sdss(names) -> bool:
    """Whether a table with these columns (upper case) is the COADD table of an SDSS spectrum.

    Examples
    --------
    >>> is_sdss(["FLUX", "LOGLAM", "IVAR", "AND_MASK", "OR_MASK", "WDISP"]), is_sdss(["FLUX", "IVAR", "WAVELENGTH"])
    (True, False)
    """
    return set(COLUMNS) <= set(names)


def sdss_rows(pixels: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Flux, ivar, wavelength, andmask and ormask of a COADD table, as a LAMOST file has them.

    Parameters
    ----------
    pixels : mapping of str to (n,) array
        `COLUMNS`, by upper-case name.

    Returns
    -------
    tuple of (n,) array
        Wavelength in vacuum Å. Masks are `pixel_bits`.

    Raises
    ------
    SpectrumError
        If the columns are not numbers, or the wavelengths do not increase.
    """
    columns = [np.asarray(pixels[name]) for name in COLUMNS]
    columns = [c.astype(c.dtype.newbyteorder("="), copy=False) for c in columns]
    numbers = all(c.dtype.kind in "fiu" and c.ndim == 1 for c in columns)
    if not numbers or not _N_PIXELS[0] <= len(columns[0]) <= _N_PIXELS[1]:
        found = ", ".join(f"{name} {c.dtype.str}{c.shape}" for name, c in zip(COLUMNS, columns, strict=True))
        raise SpectrumError("bad_shape", f"the COADD columns are not numbers, one a pixel: {found}")
    flux, log_wavelength, ivar, andmask, ormask = columns
    log_wavelength = log_wavelength.astype(np.float64)
    if not (np.diff(log_wavelength) > 0).all() or not 0 < log_wavelength[0] <= log_wavelength[-1] < 6:
        raise SpectrumError("bad_wavelength", "loglam does not increase; fetch the file again")
    return flux, ivar, 10**log_wavelength, pixel_bits(andmask), pixel_bits(ormask)


def pixel_bits(mask: np.ndarray) -> np.ndarray:
    """Bits of SPPIXMASK that say something about single pixels, in the 16 bits of the cube.

    Bit 16 (NEARBADPIXEL) becomes bit 0, bit 23 (BRIGHTSKY) bit 7, and so on. Bits 0-15 are about whole fibers and left
    out, as is 24 (NODATA).

    Parameters
    ----------
    mask : (n,) int32

    Returns
    -------
    (n,) int64

    Examples
    --------
    >>> pixel_bits(np.array([1 << 23, 1 << 2, 1 << 24, (1 << 16) + 1])).tolist()
    [128, 0, 0, 1]
    """
    mask = np.asarray(mask).astype(np.int64) & 0xFFFFFFFF
    return (mask & ~(_NOT_PIXELS | _NO_DATA)) >> 16


def sdss_cards(row: Mapping[str, object], header: Mapping[str, object]) -> dict[str, object]:
    """What HDU 2 says of a spectrum, under the names LAMOST's headers use.

    Parameters
    ----------
    row : mapping
        The row of HDU 2 by upper-case column; empty if there is none.
    header : mapping
        Cards of the primary header, for what the row lacks.

    Returns
    -------
    dict
        Values as they are: they are checked where LAMOST's are. The plate's name is "SDSS" and its number, so that no
        identifier meets one of LAMOST's; that of SDSS-V is "SDSS", field and catalog number, since fields of a night
        share their fibers. Z is that of the pipeline; where its error says that it failed, ELODIE's. ``NO_Z`` says why
        the pipeline's is not to be used, ``NO_TARGET`` (reason and detail) why the spectrum is not.
    """

    def first(*names: str) -> object:
        found = (source.get(name) for name in names for source in (row, header))
        return next((value for value in found if value is not None and _text(value)), None)

    warning = max(0, _whole(first("ZWARNING", "ZWARN")) or 0)
    z, z_err, no_z = first("Z"), first("Z_ERR"), None
    if not _positive(z_err):
        z, z_err = (first("ELODIE_Z"), first("ELODIE_Z_ERR")) if _positive(first("ELODIE_Z_ERR")) else (None, None)
    elif doubts := _names(warning, NO_REDSHIFT_BITS):
        z, z_err, no_z = None, None, f"ZWARNING says {doubts}"
    catalog = _word(first("CATALOGID")) or _word(first("SDSS_ID"))
    fiber = first("FIBERID")
    if fiber is None and catalog:
        # The catalog number alone tells spectra of a field apart.
        index = _whole(first("TARGET_INDEX"))
        fiber = index if index is not None and 1 <= index <= _FIBERS else 1
    cards = {
        "LMJD": first("MJD"),
        "MJD": first("MJD"),
        "PLANID": _planid(first, catalog),
        "SPID": first("SPECTROGRAPHID") or 1 + int((_whole(fiber) or 0) > _FIBERS // 2),
        "FIBERID": fiber,
        "RA": first("PLUG_RA", "RACAT", "RA"),
        "DEC": first("PLUG_DEC", "DECCAT", "DEC"),
        "Z": z,
        "Z_ERR": z_err,
        "NO_Z": no_z,
        "NO_TARGET": _no_target(warning, _text(first("OBJTYPE")), first),
        "CLASS": first("CLASS"),
        "SUBCLASS": first("SUBCLASS"),
        "DATA_V": f"SDSS {_text(first('RUN2D'))}".strip(),
        "VACUUM": header.get("VACUUM"),
    }
    snr = np.asarray(row.get("SN_MEDIAN", ()))
    if snr.shape == (5,):
        cards |= {f"SNR{band}": value for band, value in zip("UGRIZ", snr, strict=True)}
    return cards


def _planid(first: Callable[..., object], catalog: str) -> str | None:
    """SDSS and what tells a spectrum apart from others of the night: plate, or field and catalog number."""
    # Of older surveys, FIELD is that of the images.
    names = ("FIELD", "FIELDID", "PLATE", "PLATEID") if catalog else ("PLATE", "PLATEID", "FIELDID", "FIELD")
    place = next((text for text in (_word(first(name)) for name in names) if text), "")
    return "-".join(part for part in (f"SDSS{place}", catalog) if part) if place else None


def _no_target(warning: int, kind: str, first: Callable[..., object]) -> tuple[str, str] | None:
    """Reason and detail if there is no star in the fiber, or no light of it."""
    if bits := _names(warning, NO_TARGET_BITS):
        return "not_a_target", f"ZWARNING says {bits}; take it off the inputs"
    kinds = [kind.upper(), *(_text(first(name)).upper() for name in ("TARGETTYPE", "SOURCETYPE"))]
    # NA is also the type of targets that had no type yet; what they are for is said elsewhere.
    science = any(other and other not in _NOTHING for other in kinds)
    if any(_SKY.fullmatch(other) for other in kinds) or (kinds[0] in _NOTHING and not science):
        return "not_a_target", f"OBJTYPE is '{kind}'; take it off the inputs"
    if bits := _names(warning, NO_DATA_BITS):
        return "no_good_pixels", f"ZWARNING says {bits}; take it off the inputs"
    return None


def _names(value: int, bits: Mapping[int, str]) -> str:
    return ", ".join(name for bit, name in bits.items() if value >> bit & 1)


def _whole(value: object) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _word(value: object) -> str:
    """A number or name as a part of an identifier; empty where it is none."""
    number = _whole(value)
    if number is not None:
        return str(number) if number > 0 else ""
    return _NO_WORD.sub("", _text(value))


def _positive(value: object) -> bool:
    try:
        return 0 < float(value) < np.inf
    except (TypeError, ValueError):
        return False


def line_spread(wavelength: np.ndarray, wdisp: np.ndarray, ivar: np.ndarray) -> dict[str, float]:
    """Line-spread coefficients of a spectrum from its ``wdisp``.

    Parameters
    ----------
    wavelength : (n,) float64
        Vacuum [Å].
    wdisp : (n,) float
        Gaussian σ of the line spread [pixels of 1e-4 dex]; not positive where unknown.
    ivar : (n,) float
        Pixels without information do not count.

    Returns
    -------
    dict
        The six of `hotdask.labels.LSF_NAMES` [Å], least-squares fits in each arm; empty where an arm has under 200
        pixels that tell.

    Examples
    --------
    >>> wavelength = 10 ** (3.5523 + 1e-4 * np.arange(4600))
    >>> found = line_spread(wavelength, np.full(4600, 1.0), np.ones(4600))
    >>> [round(found[name], 4) for name in ("lsf_b0", "lsf_b1", "lsf_r0")]
    [1.0937, 0.2303, 1.7154]
    """
    with np.errstate(invalid="ignore"):
        known = (wdisp > 0) & np.isfinite(wdisp) & (ivar > 0)
    known &= (wavelength >= _LSF_RANGE[0]) & (wavelength <= _LSF_RANGE[1])
    sigma = np.asarray(wdisp, dtype=np.float64) * LOG_STEP * np.log(10) * wavelength
    found = []
    for arm, pivot in ((wavelength < BLUE_RED_BREAK, LSF_PIVOT[0]), (wavelength >= BLUE_RED_BREAK, LSF_PIVOT[1])):
        used = known & arm
        if np.count_nonzero(used) < _LSF_PIXELS:
            return {}
        found += np.polynomial.polynomial.polyfit((wavelength[used] - pivot) / 1000, sigma[used], 2).tolist()
    return dict(zip(LSF_NAMES, found, strict=True))
