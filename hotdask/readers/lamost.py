"""LAMOST low-resolution spectra, any release, and those of SDSS and DESI, read onto the observed grid.

Layouts are told apart by what a file holds, never by its release, its name or a failed attempt: five image rows whose
third is a wavelength (DR2-DR8), five rows whose third is flux over continuum (DR1), a one-row table (DR9 on), or a
table of one row a pixel (`hotdask.readers.sdss`). Spectra that share a file have addresses (`hotdask.readers.desi`).
"""

import io
import math
import os
import re
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from astropy.io import fits
from isal import isal_zlib

from hotdask import schema
from hotdask.errors import SpectrumError
from hotdask.labels import LSF_NAMES
from hotdask.readers.classes import is_selected
from hotdask.readers.desi import (
    SINGLE_EXPOSURES,
    has_single_exposures,
    is_coadd_name,
    is_exposures_name,
    read_coadd,
    split_address,
)
from hotdask.readers.fitsfile import PASSING_ERRORS, check_regular, check_sizes, read_header
from hotdask.readers.sdss import is_sdss, line_spread, sdss_cards, sdss_rows
from hotdask.readers.strictfits import parse_strict
from hotdask.windows import LOG_STEP, N_OBSERVED, OBSERVED_LOG_START, SPEED_OF_LIGHT

REASONS: dict[str, str] = {
    "not_found": "There is no file at this path.",
    "unreadable": "The operating system refused to read the file.",
    "io_error": "The operating system could not read the file just now; the next command tries again.",
    "empty_file": "The file holds no bytes.",
    "too_large": "The file is far larger than any spectrum.",
    "not_fits": "The bytes are not a FITS file.",
    "damaged": "The file breaks the rules of gzip or FITS somewhere inside.",
    "truncated": "The file ends before its data do.",
    "unknown_layout": "The file holds no layout that is read (LAMOST's image or table, SDSS's table, DESI's coadd).",
    "not_in_file": "The file holds no spectrum of this TARGETID.",
    "not_unique": "The file holds several spectra of this TARGETID.",
    "not_a_target": "The fiber looked at the sky, or at nothing.",
    "bad_shape": "The layout is known but its arrays have an impossible shape.",
    "bad_wavelength": "The wavelengths are missing, do not increase, or contradict the header by over 2 km/s.",
    "air_wavelength": "The header says that the wavelengths are in air; only vacuum is read.",
    "not_heliocentric": "The header says that the wavelengths are not heliocentric.",
    "off_grid": "The pixels lie more than 0.05 pixel off the survey's grid, or wholly outside it.",
    "no_position": "Right ascension or declination is missing or impossible.",
    "no_velocity": "The pipeline measured no redshift, or doubts it, so the rest frame is unknown.",
    "no_good_pixels": "Not one pixel has a flux and a positive inverse variance.",
    "no_identity": "Date, plate, spectrograph or fiber is in neither header nor file name, or could name no file.",
    "bad_override": "A value that the input table gives for this spectrum is impossible.",
    "class_not_selected": "The pipeline class and subclass are not among those the settings ask for.",
    "duplicate": "The same spectrum was already read from another file.",
}
"""Why a spectrum is not used, a sentence per code."""

PASSING = ("io_error", "not_found")
"""Reasons that may have passed when the next command comes, though the file is the same."""

OVERRIDES: tuple[str, ...] = ("ra", "dec", "rv", "rv_err", *LSF_NAMES)
"""Columns of an input table that replace what a file says."""

MAX_BYTES = 64 * 2**20
"""A LAMOST spectrum has 0.1 MB; a gzip bomb must not take a worker's memory."""

_NO_OVERRIDES: Mapping[str, object] = MappingProxyType({})
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_MEMBERS = 100  # of a gzip file; each costs a copy of what follows it
_MAX_PIXELS = 100_000
_PAUSE = 0.2
"""Seconds before a file is read again that the operating system could not read."""
_GRID_TOLERANCE = 0.05  # pixels; real files stay below 0.02
_HEADER_TOLERANCE = 2.0  # km/s; real files stay below 1.3
_MAX_Z = 20.0
_BLOCK = 2880
_ONE_OF_MANY = "a coadd of many spectra; give one of them, as FILE#TARGETID"
_MEDIUM = "a medium resolution spectrum of LAMOST; only low resolution is read, take it off the inputs"
_MEDIUM_NAME = re.compile(r"med-[0-9]{5}-")
_MEDIUM_HDU = re.compile(r"COADD_[BR]|[BR]-[0-9]+")
_WHETHER = "is it a LAMOST low-resolution file?"
_COADD = ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK")
_CARDS = (
    *("EXTEN0", "COEFF0", "COEFF1", "VACUUM", "HELIO"),
    *("FILENAME", "OBSID", "LMJD", "MJD", "PLANID", "SPID", "FIBERID", "DATA_V", "VERSPIPE"),
    *("RA", "DEC", "Z", "Z_ERR", "CLASS", "SUBCLASS"),
    *(f"{stem}{band}" for band in "UGRIZ" for stem in ("SNR", "SN_")),
)
_NO_NUMBERS = (bool, np.bool_, complex, np.complexfloating)
_MAX_PLANID = 64
_PLANID = re.compile(rf"[ -.0-~]{{1,{_MAX_PLANID}}}")
_SHOWN = 40
_MAX_DETAIL = 500
# PLANID may contain underscores and hyphens: the greedy middle parses the name from the right.
_NAME = re.compile(r"spec-([0-9]{5})-(.+)_sp([0-9]{2})-([0-9]{3})\.fits(?:\.gz)?", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One spectrum on the observed grid (`hotdask.windows.observed_wavelength`).

    Attributes
    ----------
    flux, ivar : (3909,) float32
        Relative flux and its inverse variance; 0 and 0 where the file has no pixel or no finite value.
    andmask, ormask : (3909,) uint16
        Pipeline bits set in every and in any exposure; all bits where the file's value is no 16-bit number.
    meta : dict
        A value for every column of `hotdask.schema.SPECTRA`.
    """

    flux: np.ndarray
    ivar: np.ndarray
    andmask: np.ndarray
    ormask: np.ndarray
    meta: dict


@dataclass(frozen=True, eq=False)
class Block:
    """Spectra stacked in input order.

    Attributes
    ----------
    flux, ivar : (n, 3909) float32
    andmask, ormask : (n, 3909) uint16
    meta : pandas.DataFrame
        n rows: the columns of `hotdask.schema.SPECTRA`, then those carried from the input table.
    """

    flux: np.ndarray
    ivar: np.ndarray
    andmask: np.ndarray
    ormask: np.ndarray
    meta: pd.DataFrame


@dataclass(frozen=True, eq=False)
class _File:
    """What was in a file: header cards and five rows; the third is None where it is no wavelength."""

    path: str
    cards: dict
    rows: tuple


def read_spectrum(
    path: str | os.PathLike, overrides: Mapping[str, object] = _NO_OVERRIDES, *, classes: tuple[str, ...] = ()
) -> Spectrum:
    """Read one LAMOST low-resolution, SDSS or DESI spectrum, plain or gzipped, whatever its name says.

    Pixels are placed by wavelength. Velocity is ``rv = c·Z`` [km/s]; wavelengths are vacuum and heliocentric as the
    survey ships them.

    Parameters
    ----------
    path : path
        A local file, or the address of a spectrum in a DESI coadd, ``FILE#TARGETID``.
    overrides : mapping
        Values of `OVERRIDES` to use instead of the file's; None and NaN are ignored. With ``rv`` but no ``rv_err``
        the error is unknown (NaN), since the header's belongs to the header's velocity.
    classes : tuple of str
        If given, the pipeline's class, or the subclass of a star, must be one of these
        (`hotdask.readers.classes.is_selected`).

    Returns
    -------
    Spectrum

    Raises
    ------
    SpectrumError
        If the spectrum cannot be used; ``reason`` is a key of `REASONS`. Nothing else is raised, whatever the bytes.

    Examples
    --------
    >>> read_spectrum("nowhere.fits")
    Traceback (most recent call last):
    ...
    hotdask.errors.SpectrumError: nowhere.fits: no such file; check the path
    """
    try:
        return _spectrum(_load(os.fspath(path)), overrides, classes)
    except SpectrumError as error:
        raise SpectrumError(error.reason, f"{path}: {error.detail}") from error


def read_spectra(entries: pd.DataFrame, *, classes: tuple[str, ...] = ()) -> tuple[Block, pd.DataFrame]:
    """Read many spectra; those that cannot be used are told apart and named, never padded in.

    Parameters
    ----------
    entries : pandas.DataFrame
        Column ``path``, any of `OVERRIDES` (numeric), and columns to carry (see `hotdask.readers.inputs.list_inputs`).
    classes : tuple of str
        As in `read_spectrum`.

    Returns
    -------
    Block
        The spectra that were read, in the order of ``entries``.
    pandas.DataFrame
        The rest, with the columns of `hotdask.schema.REJECTS`.
    """
    n = len(entries)
    flux, ivar = (np.zeros((n, N_OBSERVED), np.float32) for _ in range(2))
    andmask, ormask = (np.zeros((n, N_OBSERVED), np.uint16) for _ in range(2))
    given = {c: entries[c].to_numpy(dtype=np.float64, na_value=np.nan) for c in OVERRIDES if c in entries}
    kept, metas, rejects = [], [], []
    together = _Together(entries["path"])
    for i, path in enumerate(entries["path"]):
        file = None
        try:
            file = together.load(path)
            spectrum = _spectrum(file, {c: values[i] for c, values in given.items()}, classes)
        except SpectrumError as error:
            rejects.append(_reject(path, file, error))
            continue
        row = len(kept)
        flux[row], ivar[row] = spectrum.flux, spectrum.ivar
        andmask[row], ormask[row] = spectrum.andmask, spectrum.ormask
        kept.append(i)
        metas.append(spectrum.meta)
    meta = _frame(metas, schema.SPECTRA)
    for name in entries.columns:
        if name != "path" and name not in OVERRIDES:
            meta[name] = entries[name].iloc[kept].array
    k = len(kept)
    return Block(flux[:k], ivar[:k], andmask[:k], ormask[:k], meta), _frame(rejects, schema.REJECTS)


def specid_of(lmjd: int, planid: str, spid: int, fiberid: int) -> str:
    """Name of a spectrum, date-planid-spid-fiberid.

    Examples
    --------
    >>> specid_of(55859, "F5902", 1, 5)
    '55859-F5902-01-005'
    """
    return f"{lmjd:05d}-{planid}-{spid:02d}-{fiberid:03d}"


def parse_name(name: str) -> tuple[int, str, int, int] | None:
    """(lmjd, planid, spid, fiberid) from a file name of the survey, None if it is another kind of name.

    Examples
    --------
    >>> parse_name("spec-56591-EG012606S021203_F_2_sp16-250.fits.gz")
    (56591, 'EG012606S021203_F_2', 16, 250)
    """
    match = _NAME.fullmatch(name)
    return (int(match[1]), match[2], int(match[3]), int(match[4])) if match else None


def _frame(rows: list[dict], columns: tuple[schema.Column, ...]) -> pd.DataFrame:
    frame = pd.DataFrame({c.name: [row[c.name] for row in rows] for c in columns})
    return frame.astype(schema.empty_frame(columns).dtypes)


def _reject(path: str, file: _File | None, error: SpectrumError) -> dict:
    name = os.path.basename(path)
    try:
        specid = specid_of(*_identity(file.cards if file else {}, name))
    except SpectrumError:
        specid = ""
    # A detail may quote a header's text, which may be as long as the header.
    detail = error.detail if len(error.detail) <= _MAX_DETAIL else f"{error.detail[:_MAX_DETAIL]}…"
    return {"path": path, "fitsname": name, "specid": specid, "reason": error.reason, "detail": detail}


# From a path to cards and rows


class _Together:
    """Loads files, those that hold several of the spectra wanted once for all of them.

    Parameters
    ----------
    paths : iterable of str
        All that will be asked for.
    """

    def __init__(self, paths: Iterable[str]):
        self._targets: dict[str, list[int]] = {}
        self._loaded: dict[str, dict | SpectrumError] = {}
        self._addresses = {path: split_address(path) for path in paths if "#" in path}
        for file, target in self._addresses.values():
            if target is not None:
                self._targets.setdefault(file, []).append(target)

    def load(self, path: str) -> _File:
        file, target = self._addresses.get(path, (path, None))
        if target is None:
            return _load(path)
        if file not in self._loaded:
            try:
                self._loaded[file] = read_coadd(file, self._targets[file])
            except SpectrumError as error:
                medium = _is_called_medium(file, error)
                self._loaded[file] = SpectrumError("unknown_layout", _MEDIUM) if medium else error
        found = self._loaded[file]
        found = found[target] if isinstance(found, dict) else found
        if isinstance(found, SpectrumError):
            raise SpectrumError(found.reason, found.detail)
        cards, rows = found
        return _File(path, dict.fromkeys(_CARDS) | cards, rows)


def _load(path: str) -> _File:
    if "#" in path and split_address(path)[1] is not None:
        return _Together([path]).load(path)
    if is_coadd_name(path) or is_exposures_name(path):
        _check_listed(path)
    raw = _read_bytes(path)
    if not raw.startswith(b"SIMPLE"):
        raise SpectrumError("not_fits", f"starts with {raw[:8]!r}, not with SIMPLE; is it a web page or another file?")
    try:
        return _File(path, *(_read_strictly(raw) or _read_with_astropy(raw)))
    except SpectrumError as error:
        if _is_called_medium(path, error):
            raise SpectrumError("unknown_layout", _MEDIUM) from error
        raise


def _is_called_medium(path: str, error: SpectrumError) -> bool:
    """Whether a file of no known layout has a name of medium resolution."""
    return error.reason in ("unknown_layout", "bad_shape") and bool(_MEDIUM_NAME.match(os.path.basename(path)))


def _check_listed(path: str) -> None:
    """Say why a coadd was not taken for its spectra; one that is a coadd by its name only is read as what it is."""
    try:
        read_coadd(path, ())
    except SpectrumError as error:
        if error.reason != "unknown_layout" or error.detail == SINGLE_EXPOSURES:
            raise
    else:
        raise SpectrumError("unknown_layout", _ONE_OF_MANY)


def _read_strictly(raw: bytes) -> tuple[dict, tuple] | None:
    """What `_read_with_astropy` gives, ten times faster; None for whatever is not written as the survey writes it."""
    found = parse_strict(raw, _CARDS)
    if found is None:
        return None
    cards, data = found
    if isinstance(data, dict):
        return (cards, _table_rows(data)) if all(name in data for name in _COADD) else None
    return (cards, _image_rows(data, cards)) if _is_image(data.shape) else None


def _read_with_astropy(raw: bytes) -> tuple[dict, tuple]:
    _check_structure(raw)
    # astropy warns of what it mends and raises whatever numpy does on garbage; all of it is this file's fault. Memory
    # that runs out is not: to call a good file damaged then would lose it in silence.
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            fits.open(io.BytesIO(raw), memmap=False, disable_image_compression=True) as hdus,
        ):
            return _parse(hdus, raw)
    except (SpectrumError, MemoryError):
        raise
    except Exception as error:
        raise SpectrumError(
            "damaged", f"astropy cannot read it ({type(error).__name__}: {error}); fetch it again"
        ) from error


def _check_structure(raw: bytes) -> None:
    """Refuse absurd sizes before astropy sees them: TFIELDS = 10^11, NAXIS1 = -1 or a header of 64 MB keep it busy.

    Looks at the headers `_parse` reads: the first and, if that has no data, the next.
    """
    stream = io.BytesIO(raw)
    for _ in range(2):
        sizes = check_sizes(read_header(stream.read), MAX_BYTES)
        if sizes.get(b"NAXIS") != 0 or stream.tell() >= len(raw):
            return


def _read_bytes(path: str, attempts: int = 2) -> bytes:
    try:
        size = check_regular(path)
        raw = b"" if size > MAX_BYTES else Path(path).read_bytes()
    except FileNotFoundError as error:
        raise SpectrumError("not_found", "no such file; check the path") from error
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in PASSING_ERRORS:
            if attempts:
                time.sleep(_PAUSE)
                return _read_bytes(path, attempts - 1)
            raise SpectrumError(
                "io_error", f"cannot be read just now ({error.strerror}); run the command again"
            ) from error
        text = getattr(error, "strerror", None) or error
        raise SpectrumError("unreadable", f"cannot be read ({text}); check the path and its permissions") from error
    if size > MAX_BYTES:
        raise SpectrumError("too_large", f"has {size} bytes where a spectrum has about 100000; take it off the inputs")
    if raw.startswith(_GZIP_MAGIC):
        raw = _inflate(raw)
    if not raw:
        raise SpectrumError("empty_file", "has 0 bytes; fetch it again")
    return raw


def _inflate(raw: bytes) -> bytes:
    """Inflate gzip of one or several members, never beyond `MAX_BYTES`."""
    parts, room = [], MAX_BYTES
    while raw.startswith(_GZIP_MAGIC):
        if len(parts) == _MAX_MEMBERS:
            raise SpectrumError("damaged", f"has over {_MAX_MEMBERS} gzip members where one is usual; fetch it again")
        stream = isal_zlib.decompressobj(wbits=31)
        try:
            parts.append(stream.decompress(raw, room))
        except isal_zlib.error as error:
            raise SpectrumError("damaged", f"the gzip stream is damaged ({error}); fetch it again") from error
        room -= len(parts[-1])
        if not stream.eof and room > 0:
            raise SpectrumError("truncated", "the gzip stream ends too early; fetch it again")
        if room <= 0:
            raise SpectrumError("too_large", f"inflates to over {MAX_BYTES} bytes; take it off the inputs")
        raw = stream.unused_data
    return b"".join(parts)


def _parse(hdus: fits.HDUList, raw: bytes) -> tuple[dict, tuple]:
    n_bytes, primary = len(raw), hdus[0]
    if not isinstance(primary, fits.PrimaryHDU):
        raise SpectrumError("not_fits", "the first header is not that of a FITS primary array; fetch it again")
    cards = {key: _card(primary.header, key) for key in _CARDS}
    shape = primary.shape
    if shape:
        if not _is_image(shape):
            raise SpectrumError("bad_shape", f"the primary image is {shape}, not (5, N); {_WHETHER}")
        _check_complete(primary, n_bytes)
        return cards, _image_rows(primary.data, cards)
    table = _first_extension(hdus)
    if isinstance(table, fits.BinTableHDU):
        names = {name.upper(): name for name in table.columns.names}
        if _MEDIUM_HDU.fullmatch(table.name):
            raise SpectrumError("unknown_layout", _MEDIUM)
        if all(column in names for column in _COADD):
            _check_complete(table, n_bytes)
            if len(table.data) != 1:
                raise SpectrumError(
                    "bad_shape", f"the COADD table has {len(table.data)} rows, not 1; give one spectrum per file"
                )
            return cards, _table_rows({name: np.asarray(table.data.field(names[name]))[0] for name in _COADD})
        if is_sdss(names):
            _check_complete(table, n_bytes)
            return _sdss(hdus, raw, names)
        if table.name == "FIBERMAP":
            raise SpectrumError("unknown_layout", SINGLE_EXPOSURES if has_single_exposures(names) else _ONE_OF_MANY)
    cut = n_bytes % _BLOCK
    why = "its length is no multiple of 2880, so it was cut: fetch it again" if cut else _WHETHER
    raise SpectrumError(
        "truncated" if cut else "unknown_layout",
        f"holds neither a (5, N) image nor a table with the columns {', '.join(_COADD)} or those of SDSS; {why}",
    )


def _sdss(hdus: fits.HDUList, raw: bytes, names: Mapping[str, str]) -> tuple[dict, tuple]:
    """Cards and rows of an SDSS spectrum, and its line spread among the cards."""
    table = hdus[1]
    columns = {key: np.asarray(table.data.field(name)) for key, name in names.items()}
    rows = sdss_rows(columns)
    info = table.fileinfo()
    after, row = info["datLoc"] + info["datSpan"], {}
    if after < len(raw):
        _check_structure(raw[after:])
        about = hdus[2]
        if isinstance(about, fits.BinTableHDU) and len(about.data):
            _check_complete(about, len(raw))
            row = {name.upper(): about.data.field(name)[0] for name in about.columns.names}
    wanted = ("PLATEID", "FIELDID", "MJD", "FIBERID", "PLUG_RA", "PLUG_DEC", "RUN2D", "VACUUM")
    cards = dict.fromkeys(_CARDS) | sdss_cards(row, {key: _card(hdus[0].header, key) for key in wanted})
    if "WDISP" in columns and columns["WDISP"].shape == rows[0].shape:
        cards |= line_spread(rows[2], columns["WDISP"], rows[1])
    return cards, rows


def _first_extension(hdus: fits.HDUList):
    try:
        return hdus[1]
    except IndexError:
        return None


def _check_complete(hdu, n_bytes: int) -> None:
    end = hdu.fileinfo()["datLoc"] + hdu.size
    if end > n_bytes:
        raise SpectrumError("truncated", f"the data need {end} bytes and the file has {n_bytes}; fetch it again")


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] == 5 and 2 <= shape[1] <= _MAX_PIXELS


def _image_rows(image: np.ndarray, cards: dict) -> tuple:
    rows = tuple(_native(image))
    return (*rows[:2], _third_row(rows[2], str(cards["EXTEN0"])), *rows[3:])


def _third_row(row: np.ndarray, claim: str) -> np.ndarray | None:
    """The third row if it is a wavelength, None if it is flux over continuum."""
    if _increases(row):
        return row
    if "wavelength" in claim.lower():
        raise SpectrumError("bad_wavelength", f"EXTEN0 = '{claim}' but the third row does not increase; fetch it again")
    if "continuum" in claim.lower():
        return None
    raise SpectrumError(
        "unknown_layout",
        f"the third row is no wavelength, and EXTEN0 = '{claim}' does not say what else it is; {_WHETHER}",
    )


def _table_rows(columns: Mapping[str, object]) -> tuple:
    rows = tuple(map(_native, (columns[name] for name in _COADD)))
    shapes = {row.shape for row in rows}
    numeric = all(row.dtype.kind in "fiu" for row in rows)
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or not 2 <= shape[0] <= _MAX_PIXELS or not numeric:
        found = ", ".join(f"{name} {row.dtype.str}{row.shape}" for name, row in zip(_COADD, rows, strict=True))
        raise SpectrumError(
            "bad_shape", f"the COADD columns are not five number vectors of one length: {found}; {_WHETHER}"
        )
    if not _increases(rows[2]):
        raise SpectrumError("bad_wavelength", "the WAVELENGTH column does not increase; fetch the file again")
    return rows


def _native(values: object) -> np.ndarray:
    """In the machine's byte order, in which numpy computes several times faster."""
    values = np.asarray(values)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _increases(row: np.ndarray) -> bool:
    return bool(row[0] > 0 and np.isfinite(row[-1]) and (row[1:] > row[:-1]).all())


def _card(header: fits.Header, key: str) -> object:
    # A card that cannot be parsed is the same as a card that is not there.
    try:
        value = header.get(key)
    except (fits.VerifyError, ValueError, OverflowError):
        return None
    return None if isinstance(value, fits.card.Undefined) else value


# From cards and rows to a spectrum


def _spectrum(file: _File, overrides: Mapping[str, object], classes: tuple[str, ...]) -> Spectrum:
    meta = _meta(file, _given(overrides))
    if no_target := file.cards.get("NO_TARGET"):
        raise SpectrumError(*no_target)
    if classes and not is_selected(meta["class"], meta["subclass"], classes):
        raise SpectrumError(
            "class_not_selected",
            f"class '{meta['class']}', subclass '{meta['subclass']}': not of {' or '.join(classes)}",
        )
    _check_position(meta)
    _check_velocity(meta, file.cards)
    with np.errstate(all="ignore"):
        pixels = _pixels(file.rows, file.cards)
    meta["n_good"] = int(np.count_nonzero(pixels[1] > 0))
    if meta["n_good"] == 0:
        raise SpectrumError("no_good_pixels", "no pixel has a flux and ivar > 0; take it off the inputs")
    return Spectrum(*pixels, {column.name: meta[column.name] for column in schema.SPECTRA})


def _given(overrides: Mapping[str, object]) -> dict[str, float]:
    out = {}
    for name, value in overrides.items():
        if name not in OVERRIDES:
            raise SpectrumError("bad_override", f"'{name}' cannot be overridden, only {', '.join(OVERRIDES)}")
        if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
            continue
        number = _number(value)
        if number is None or (name == "rv" and abs(number) >= SPEED_OF_LIGHT) or (name == "rv_err" and number < 0):
            raise SpectrumError("bad_override", f"{name} = {value!r} is impossible; correct it in the input table")
        out[name] = number
    lsf = [name for name in LSF_NAMES if name in out]
    if lsf and len(lsf) < len(LSF_NAMES):
        raise SpectrumError("bad_override", f"{', '.join(lsf)} without the other coefficients; give all six")
    return out


def _meta(file: _File, given: dict[str, float]) -> dict:
    cards, name = file.cards, os.path.basename(file.path)
    lmjd, planid, spid, fiberid = _identity(cards, name)
    z, z_err = _number(cards["Z"]), _number(cards["Z_ERR"])
    # -9999 is the pipeline's "none"; an error of 0 means that none was estimated.
    z = z if z is not None and -1 < z < _MAX_Z else np.nan
    z_err = z_err if z_err is not None and 0 < z_err < _MAX_Z else np.nan
    meta = {
        "specid": specid_of(lmjd, planid, spid, fiberid),
        "obsid": _integer(cards["OBSID"], 0, 2**63 - 1, default=-1),
        "fitsname": name,
        "path": file.path,
        "ra": _number(cards["RA"], np.nan),
        "dec": _number(cards["DEC"], np.nan),
        "rv": SPEED_OF_LIGHT * z,
        "rv_err": np.nan if "rv" in given else SPEED_OF_LIGHT * z_err,
        "mjd": _mjd(cards["MJD"], lmjd),
        "lmjd": lmjd,
        "planid": planid,
        "spid": spid,
        "fiberid": fiberid,
        "class": _text(cards["CLASS"]),
        "subclass": _text(cards["SUBCLASS"]),
        "release": _release(cards),
    }
    for band in "ugriz":
        values = (_number(cards[f"{stem}{band.upper()}"]) for stem in ("SNR", "SN_"))
        # 0 (half of the band bad) and -9999 are sentinels.
        meta[f"snr_{band}"] = next((v for v in values if v is not None and 0 < v < 1e6), np.nan)
    meta.update({name: _number(cards.get(name), np.nan) for name in LSF_NAMES})
    meta["noise_power"] = _number(cards.get("noise_power"), 1.0)
    meta.update(given)
    return meta


def _identity(cards: Mapping[str, object], name: str) -> tuple[int, str, int, int]:
    named = parse_name(name) or parse_name(_text(cards.get("FILENAME"))) or (None, "", None, None)
    planid = _text(cards.get("PLANID")) or named[1]
    if planid and not _PLANID.fullmatch(planid):
        raise SpectrumError(
            "no_identity",
            f"PLANID {planid[:_SHOWN]!r} of {len(planid)} characters cannot be in the name of a file, that takes "
            f"{_MAX_PLANID}, printable ASCII without '/'; correct the header",
        )
    parts = (
        _integer(cards.get("LMJD"), 1, 99999, default=named[0]),
        planid,
        _integer(cards.get("SPID"), 1, 99, default=named[2]),
        _integer(cards.get("FIBERID"), 1, 1000, default=named[3]),
    )
    missing = [
        key for key, part in zip(("LMJD", "PLANID", "SPID", "FIBERID"), parts, strict=True) if part in (None, "")
    ]
    if missing:
        raise SpectrumError(
            "no_identity",
            f"neither header nor file name gives {', '.join(missing)}; name it spec-LMJD-PLANID_spNN-NNN.fits",
        )
    return parts


def _mjd(card: object, lmjd: int) -> int:
    # LMJD is the local date on which the night ends, so the UTC date of the observation is the day before; DATE-OBS
    # says so in every release. DR1's MJD card has the sign wrong (LMJD + 1) and is not believed.
    return _integer(card, lmjd - 1, lmjd, default=lmjd - 1)


def _release(cards: dict) -> str:
    """DATA_V; DR1 has none, and its pipeline version is all that can be said without guessing."""
    pipeline = _text(cards["VERSPIPE"])
    return _text(cards["DATA_V"]) or (f"pipeline {pipeline}" if pipeline else "")


def _check_position(meta: dict) -> None:
    ra, dec = meta["ra"], meta["dec"]
    if not (0 <= ra <= 360 and -90 <= dec <= 90):
        raise SpectrumError("no_position", f"RA {ra}, Dec {dec} [deg]; give ra and dec in an input table")


def _check_velocity(meta: dict, cards: dict) -> None:
    if np.isnan(meta["rv"]):
        why = cards.get("NO_Z") or f"Z = {cards['Z']} in the header"
        raise SpectrumError("no_velocity", f"{why}; give rv [km/s] in an input table")


def _pixels(rows: tuple, cards: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Flux, ivar, andmask and ormask on the observed grid."""
    source, target = _place(_log_wavelength(rows[2], rows[0].size, cards))
    flux, ivar = np.zeros((2, N_OBSERVED), np.float32)
    masks = np.zeros((2, N_OBSERVED), np.uint16)
    # Now float32, a double too large for it is seen as infinite.
    flux[target] = rows[0][source]
    ivar[target] = rows[1][source]
    masks[0, target] = _mask_bits(rows[3][source])
    masks[1, target] = _mask_bits(rows[4][source])
    bad = ~(np.isfinite(flux) & np.isfinite(ivar) & (ivar >= 0))
    if bad.any():
        flux[bad] = 0
        ivar[bad] = 0
    # The ends of some spectra are padded with flux 0 that claims to be measured.
    measured = (flux != 0) & (ivar > 0)
    if measured.any():
        ivar[: measured.argmax()] = 0
        ivar[N_OBSERVED - measured[::-1].argmax() :] = 0
    else:
        ivar[:] = 0
    return flux, ivar, masks[0], masks[1]


def _log_wavelength(row: np.ndarray | None, n: int, cards: dict) -> np.ndarray:
    for key, reason, word in (("VACUUM", "air_wavelength", "vacuum"), ("HELIO", "not_heliocentric", "heliocentric")):
        if cards[key] is False:
            raise SpectrumError(reason, f"{key} = F in the header; only {word} wavelengths are read; convert them")
    start, step = _number(cards["COEFF0"]), _number(cards["COEFF1"])
    header = None if start is None or step is None else start + step * np.arange(n)
    if row is None:
        if header is None or not step > 0:
            raise SpectrumError(
                "bad_wavelength",
                f"COEFF0 = {cards['COEFF0']}, COEFF1 = {cards['COEFF1']} and no wavelength row; fetch it again",
            )
        return header
    log_wavelength = np.log10(row.astype(np.float64))
    if header is not None:
        gap = np.abs(header - log_wavelength).max() * np.log(10) * SPEED_OF_LIGHT
        if not gap <= _HEADER_TOLERANCE:
            raise SpectrumError(
                "bad_wavelength", f"header and wavelengths differ by {gap:.3g} km/s (2 allowed); fetch the file again"
            )
    return log_wavelength


def _place(log_wavelength: np.ndarray) -> tuple[slice, slice | np.ndarray]:
    """Which pixels of the file go where on the grid; wavelengths must increase."""
    position = (log_wavelength - OBSERVED_LOG_START) / LOG_STEP
    inside = (position > -0.5) & (position < N_OBSERVED - 0.5)
    first = int(inside.argmax())
    source = slice(first, first + np.count_nonzero(inside))
    position = position[source]
    # A single pixel tells nothing of the step.
    if position.size < 2:
        raise SpectrumError("off_grid", f"{position.size} pixel(s) lie within 3700-9099 Å; {_WHETHER}")
    nearest = np.rint(position)
    off = np.abs(position - nearest).max()
    steps = np.diff(nearest)
    n_adjacent = np.count_nonzero(steps == 1)
    # Gaps are allowed; a coarser grid, all of whose pixels happen to hit, is not.
    if off > _GRID_TOLERANCE or (steps < 1).any() or 2 * n_adjacent < steps.size:
        raise SpectrumError(
            "off_grid",
            f"the pixels are not those of 10^(3.5682 + 0.0001 i): up to {off:.2f} pixel off (0.05 allowed), "
            f"{np.median(np.r_[1, steps]):g} pixel apart; resample them first",
        )
    # A slice is several times faster than its indices.
    gapless = n_adjacent == steps.size
    return source, slice(int(nearest[0]), int(nearest[-1]) + 1) if gapless else nearest.astype(np.int64)


def _mask_bits(values: np.ndarray) -> np.ndarray:
    """Mask values as 16 bits; what is no whole number of 16 bits sets them all, so that the pixel is not trusted."""
    whole = (values >= 0) & (values <= 0xFFFF) & (values == np.floor(values))
    bits = np.full(values.shape, 0xFFFF, np.uint16)
    np.copyto(bits, values, casting="unsafe", where=whole)
    return bits


# Header values: anything may stand anywhere


def _number(value: object, default: float | None = None) -> float | None:
    """A finite number, also from text that spells one; else the default."""
    if isinstance(value, _NO_NUMBERS):
        return default
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return number if math.isfinite(number) else default


def _integer(value: object, low: int, high: int, *, default: int | None) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if low <= value <= high else default
    number = _number(value)
    return int(number) if number is not None and number.is_integer() and low <= number <= high else default


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
