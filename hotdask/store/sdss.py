"""SDSS and BOSS spectra, ``spec-PLATE-MJD-FIBER.fits``, in the terms of the LAMOST reader.

HDU 1 is a table of one row a pixel, HDU 2 one row about the spectrum. The survey's pixels, vacuum and heliocentric, lie
at whole multiples of 1e-4 dex, as LAMOST's do: they are taken over, not resampled.

References
----------
https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html
https://www.sdss4.org/dr17/algorithms/bitmasks/#SPPIXMASK
"""

from collections.abc import Mapping

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
        identifier meets one of LAMOST's. Z is that of the pipeline; where its error says that it failed, ELODIE's.
    """

    def first(*names: str) -> object:
        return next((source[n] for n in names for source in (row, header) if source.get(n) is not None), None)

    plate, fiber = first("PLATE", "PLATEID"), first("FIBERID")
    z, z_err = first("Z"), first("Z_ERR")
    if not _positive(z_err):
        z, z_err = (first("ELODIE_Z"), first("ELODIE_Z_ERR")) if _positive(first("ELODIE_Z_ERR")) else (None, None)
    cards = {
        "LMJD": first("MJD"),
        "MJD": first("MJD"),
        "PLANID": None if plate is None else f"SDSS{plate}",
        "SPID": first("SPECTROGRAPHID") or (1 if fiber is None else 1 + int(fiber > 500)),
        "FIBERID": fiber,
        "RA": first("PLUG_RA", "RA"),
        "DEC": first("PLUG_DEC", "DEC"),
        "Z": z,
        "Z_ERR": z_err,
        "CLASS": first("CLASS"),
        "SUBCLASS": first("SUBCLASS"),
        "DATA_V": f"SDSS {str(first('RUN2D') or '').strip()}".strip(),
        "VACUUM": header.get("VACUUM"),
    }
    snr = np.asarray(row.get("SN_MEDIAN", ()))
    if snr.shape == (5,):
        cards |= {f"SNR{band}": value for band, value in zip("UGRIZ", snr, strict=True)}
    return cards


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
