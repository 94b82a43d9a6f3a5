"""DESI coadds, ``coadd-*.fits``, in the terms of the LAMOST reader: many spectra in a file, each with its address.

An address is ``PATH#TARGETID``. Spectra of three cameras (b, r, z; pixels of 0.8 Å, vacuum, barycentric) are brought to
the observed grid by `hotdask.readers.degrade`. Velocity and class are Redrock's, from the file ``redrock-*`` beside.

References
----------
https://desidatamodel.readthedocs.io/en/latest/DESI_SPECTRO_REDUX/SPECPROD/index.html (coadd, redrock)
https://desidatamodel.readthedocs.io/en/latest/bitmasks.html (FIBERSTATUS, SPECMASK, ZWARN)
"""

import os
import re
from collections.abc import Iterable, Mapping

import numpy as np
from astropy.io import fits

from hotdask.errors import SpectrumError
from hotdask.readers.degrade import Arm, degrade, native_variance
from hotdask.readers.fitsfile import open_fits
from hotdask.readers.sdss import line_spread
from hotdask.spectra.degrade import Degraded
from hotdask.windows import LOG_STEP, N_OBSERVED, observed_wavelength

CAMERAS = ("B", "R", "Z")
STEP = 0.8
"""Of the pixels [Å]."""
_DIMENSIONS = {"WAVELENGTH": 1, "FLUX": 2, "IVAR": 2, "MASK": 2, "RESOLUTION": 3}
_KEYS = ("TILEID", "SURVEY", "PROGRAM", "SPECPROD")
_ADDRESS = re.compile(r"(.+\.fits(?:\.gz)?)#(-?[0-9]{1,19})", re.DOTALL)
_PIXEL_NAME = re.compile(r"coadd-([a-z0-9]+)-([a-z]+)-[0-9]+\.fits(?:\.gz)?")
_COADD = re.compile(r"coadd-[^/]+\.fits(?:\.gz)?")
_EXPOSURES = re.compile(r"spectra-[^/]+\.fits(?:\.gz)?")
_AT_ONCE = 256
"""Spectra held at once as the cameras have them, 0.15 MB each; for more the file is gone through again."""
_MATRICES = 32
_FORM = re.compile(r"1?[LBIJKED]|[0-9]{0,4}A")
"""Of columns of single values."""
_MAX_ROWS = {"FIBERMAP": 100_000, "REDSHIFTS": 100_000, "EXP_FIBERMAP": 1_000_000}
"""Coadds have some thousand spectra of some exposures each."""
_MAX_TABLE = 2**28
_MAX_PIXELS = 10_000
_MAX_DIAGONALS = 99
_FIBERMAP = ("TARGETID", "OBJTYPE", "COADD_FIBERSTATUS", "MEAN_MJD", "PETAL_LOC", "FIBER", "TARGET_RA", "TARGET_DEC")
_EXP_FIBERMAP = ("TARGETID", "MJD", "PETAL_LOC", "FIBER")
_REDSHIFTS = ("TARGETID", "Z", "ZERR", "ZWARN", "SPECTYPE")
_WAVELENGTH = observed_wavelength()
_NO_BITS = np.zeros(N_OBSERVED, np.float32)

SINGLE_EXPOSURES = "a spectra- file: single exposures; give the coadd- file of it"
"""What there is to say of the file a coadd is made of."""
FIBER_BITS = {
    0: "UNASSIGNED",
    2: "BROKENFIBER",
    8: "MISSINGPOSITION",
    9: "BADPOSITION",
    16: "BADFIBER",
    17: "BADTRACE",
    18: "BADFLAT",
    19: "BADARC",
    20: "MANYBADCOL",
    21: "MANYREJECTED",
}
"""Bits of COADD_FIBERSTATUS with which no exposure of a fiber enters a coadd, and 0; the others inform."""
AMPLIFIER_BITS = {"B": 22, "R": 23, "Z": 24}
"""Bits that mark one camera of a fiber."""
BANDS = {"U": (3557, 599), "G": (4825, 1379), "R": (6261, 1382), "I": (7672, 1535), "Z": (9097, 1370)}
"""Effective wavelength and FWHM [Å] of SDSS's filters (Fukugita et al. 1996, Table 2)."""


def split_address(path: str) -> tuple[str, int | None]:
    """The file of an address and its TARGETID, None if the path is that of a file.

    Examples
    --------
    >>> split_address("a/coadd-main-dark-7.fits.gz#39627652591521181")
    ('a/coadd-main-dark-7.fits.gz', 39627652591521181)
    >>> split_address("run#7/spec-55859-F5902_sp01-005.fits")
    ('run#7/spec-55859-F5902_sp01-005.fits', None)
    """
    match = _ADDRESS.fullmatch(path)
    # A file of that very name is meant, however odd.
    if match is None or os.path.lexists(path):
        return path, None
    return match[1], int(match[2])


def file_of(path: str) -> str:
    """The file that an address, or a path, is about."""
    return split_address(path)[0]


def is_coadd_name(path: str) -> bool:
    """Whether a file is called as DESI calls its coadds.

    Examples
    --------
    >>> is_coadd_name("x/coadd-main-dark-27258.fits"), is_coadd_name("x/spec-1.fits")
    (True, False)
    """
    return _COADD.fullmatch(os.path.basename(path)) is not None


def is_exposures_name(path: str) -> bool:
    """Whether a file is called as DESI calls its single exposures.

    Examples
    --------
    >>> is_exposures_name("x/spectra-5-169-thru20210419.fits"), is_exposures_name("x/coadd-main-dark-27258.fits")
    (True, False)
    """
    return _EXPOSURES.fullmatch(os.path.basename(path)) is not None


def has_single_exposures(columns: Iterable[str]) -> bool:
    """Whether a FIBERMAP with these columns (upper case) has a row for each exposure.

    Examples
    --------
    >>> has_single_exposures(["TARGETID", "EXPID", "MJD"]), has_single_exposures(["TARGETID", "COADD_NUMEXP"])
    (True, False)
    """
    columns = set(columns)
    return "EXPID" in columns and not any(name.startswith("COADD_") for name in columns)


def redrock_names(path: str) -> tuple[str, ...]:
    """Where the redshifts of a coadd may lie.

    Examples
    --------
    >>> redrock_names("x/coadd-0-1-thru20210505.fits")
    ('x/redrock-0-1-thru20210505.fits', 'x/redrock-0-1-thru20210505.fits.gz')
    """
    folder, name = os.path.split(path)
    if not is_coadd_name(name):
        return ()
    stem = re.sub(r"\.gz$", "", name.replace("coadd-", "redrock-", 1))
    return tuple(os.path.join(folder, stem + end) for end in ("", ".gz"))


def addresses(path: str) -> list[str]:
    """An address for every TARGETID of a coadd, in the order of the file.

    Parameters
    ----------
    path : str

    Returns
    -------
    list of str
        The path itself where the file is no coadd that can be read: the reader then says what is wrong with it.
    """
    try:
        ids = _fibermap(path)[1]
    except SpectrumError:
        return [path]
    return [f"{path}#{number}" for number in dict.fromkeys(ids["TARGETID"].tolist())] or [path]


def read_coadd(path: str, targets: Iterable[int]) -> dict[int, "tuple[dict, tuple] | SpectrumError"]:
    """Some spectra of a coadd.

    Parameters
    ----------
    path : str
        A local file, gzipped or not, of any name; Redrock's is looked for beside it if it has DESI's name.
    targets : iterable of int
        TARGETID of each.

    Returns
    -------
    dict
        For each target its cards, under the names that LAMOST's headers use, and the five rows of a LAMOST file on the
        observed grid; or why there are none.

    Raises
    ------
    SpectrumError
        If nothing of the file can be used.
    """
    targets = list(dict.fromkeys(targets))
    header, fibermap = _fibermap(path)
    ids = fibermap["TARGETID"]
    out, rows = {}, {}
    for target in targets:
        found = np.flatnonzero(ids == target)
        try:
            if not len(found):
                raise SpectrumError("not_in_file", f"none of its {len(ids)} rows has TARGETID {target}; correct it")
            if len(found) > 1:
                raise SpectrumError("not_unique", f"{len(found)} rows have TARGETID {target}; take it off the inputs")
            row = {name: column[found[0]] for name, column in fibermap.items()}
            _check_fiber(row)
            rows[target] = (int(found[0]), row)
        except SpectrumError as error:
            out[target] = error
    if not rows:
        return out
    wanted, redshifts = sorted(rows, key=lambda target: rows[target][0]), _redshifts(path)
    for start in range(0, len(wanted), _AT_ONCE):
        part = wanted[start : start + _AT_ONCE]
        exposures, arms = _arms(path, np.array([rows[target][0] for target in part]), len(ids))
        for camera, arm in arms.items():
            broken = [i for i, t in enumerate(part) if _status(rows[t][1]) >> AMPLIFIER_BITS[camera] & 1]
            arm.ivar[broken] = 0
        found = degrade(list(arms.values()))
        for i, target in enumerate(part):
            try:
                cards = _cards(target, rows[target][1], header, exposures, redshifts)
            except SpectrumError as error:
                out[target] = error
                continue
            rows_of_file = (found.flux[i], found.ivar[i], _WAVELENGTH, _NO_BITS, _NO_BITS)
            out[target] = cards | _measured(found, i), rows_of_file
    return out


def _measured(found: Degraded, i: int) -> dict[str, float]:
    """Cards that tell of the pixels: line spread, S/N, noise left by the filter."""
    flux, ivar = found.flux[i], found.ivar[i]
    out = {"noise_power": float(found.noise_power[i])}
    # What is fitted there in Å is told by SDSS in pixels.
    out |= line_spread(_WAVELENGTH, found.sigma[i] / (LOG_STEP * np.log(10) * _WAVELENGTH), ivar)
    with np.errstate(all="ignore"):
        snr = flux * np.sqrt(ivar)
    for band, (center, width) in BANDS.items():
        used = (np.abs(_WAVELENGTH - center) <= width / 2) & (ivar > 0)
        if used.any():
            out[f"SNR{band}"] = float(np.median(snr[used]))
    return out


# Tables


def _columns(table: fits.BinTableHDU, wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """Some columns, those of single values, by upper-case name."""
    name, header = table.name.upper(), table.header
    if not isinstance(table, fits.BinTableHDU):
        raise SpectrumError("unknown_layout", f"its {name} is no binary table; is it a DESI coadd?")
    width, rows = header["NAXIS1"], header["NAXIS2"]
    if rows > _MAX_ROWS[name] or width * rows > _MAX_TABLE or table.size > _MAX_TABLE:
        raise SpectrumError("too_large", f"its {name} has {rows} rows of {width} bytes; take it off the inputs")
    if table.columns.dtype.itemsize != width:
        raise SpectrumError("damaged", f"the columns of its {name} do not fill rows of {width} bytes; fetch it again")
    forms = {column.name.upper(): column for column in table.columns if _FORM.fullmatch(str(column.format).strip())}
    found = {key: np.asarray(table.data[forms[key].name]) for key in wanted if key in forms}
    return {key: values for key, values in found.items() if values.shape == (rows,)}


def _fibermap(path: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """What the primary header says of a coadd, and its FIBERMAP."""
    with open_fits(path) as hdus:
        header = None
        for hdu in hdus:
            header = {key: _card(hdu.header, key) for key in _KEYS} if header is None else header
            if hdu.name.upper() == "FIBERMAP":
                columns = _columns(hdu, _FIBERMAP)
                if has_single_exposures(name.upper() for name in hdu.columns.names):
                    raise SpectrumError("unknown_layout", SINGLE_EXPOSURES)
                if columns.get("TARGETID", np.empty(0)).dtype.kind != "i":
                    raise SpectrumError("unknown_layout", "its FIBERMAP has no TARGETID; is it a DESI coadd?")
                named = _PIXEL_NAME.fullmatch(os.path.basename(path))
                if named and not header["SURVEY"]:
                    header |= {"SURVEY": named[1], "PROGRAM": named[2]}
                return header, columns
    raise SpectrumError("unknown_layout", "holds no FIBERMAP; is it a DESI coadd?")


def _card(header: fits.Header, key: str) -> str:
    # A card that cannot be parsed is the same as a card that is not there.
    try:
        return _text(header.get(key))
    except (fits.VerifyError, ValueError):
        return ""


def _redshifts(path: str) -> dict[str, np.ndarray] | str:
    """Columns of Redrock's table, or why there is none."""
    names = redrock_names(path)
    found = next((name for name in names if os.path.exists(name)), None)
    if found is None:
        return f"no {os.path.basename(names[0])} lies beside it" if names else "Redrock's file is not known"
    name = os.path.basename(found)
    columns = None
    try:
        # To its end: of a file that is damaged anywhere nothing is believed.
        with open_fits(found) as hdus:
            for hdu in hdus:
                if columns is None and hdu.name.upper() == "REDSHIFTS":
                    columns = _columns(hdu, (*_REDSHIFTS, "SUBTYPE"))
    except SpectrumError as error:
        if error.reason == "io_error":
            raise
        return f"{name}: {error.detail}"
    if columns is None:
        return f"{name} holds no REDSHIFTS"
    lacking = [key for key in _REDSHIFTS if key not in columns]
    return f"{name} lacks {', '.join(lacking)}" if lacking else columns


def _status(row: Mapping[str, object]) -> int:
    return int(_finite(row.get("COADD_FIBERSTATUS")) or 0)


def _check_fiber(row: Mapping[str, object]) -> None:
    kind = _text(row.get("OBJTYPE", "TGT"))
    if kind != "TGT":
        raise SpectrumError("not_a_target", f"OBJTYPE is '{kind}', not 'TGT'; take it off the inputs")
    status = _status(row)
    bad = [name for bit, name in FIBER_BITS.items() if status >> bit & 1]
    if bad:
        raise SpectrumError("no_good_pixels", f"COADD_FIBERSTATUS says {', '.join(bad)}; take it off the inputs")


# Cards


def _cards(
    target: int,
    row: Mapping[str, object],
    header: Mapping[str, str],
    exposures: Mapping[str, np.ndarray],
    redshifts: Mapping[str, np.ndarray] | str,
) -> dict[str, object]:
    """What FIBERMAP, EXP_FIBERMAP and Redrock say of a spectrum, under the names LAMOST's headers use.

    The plate's name is "DESI", what was coadded (survey and program, or tile) and the TARGETID, so that no identifier
    meets another survey's, nor that of another coadd of the same target.
    """
    own = np.flatnonzero(exposures.get("TARGETID", np.empty(0)) == target)
    first = {name: values[own[0]] for name, values in exposures.items()} if len(own) else {}
    mjd = _finite(row.get("MEAN_MJD"))
    if mjd is None and "MJD" in exposures:
        dates = [date for date in map(_finite, exposures["MJD"][own]) if date is not None]
        mjd = sum(dates) / len(dates) if dates else None
    petal, fiber = (_finite(row.get(name, first.get(name))) for name in ("PETAL_LOC", "FIBER"))
    missing = [name for name, value in (("MJD", mjd), ("PETAL_LOC", petal), ("FIBER", fiber)) if value is None]
    if missing:
        raise SpectrumError(
            "no_identity",
            f"TARGETID {target}: neither FIBERMAP nor EXP_FIBERMAP gives {', '.join(missing)}; fetch the file again",
        )
    tile, survey, program = (header[key] for key in ("TILEID", "SURVEY", "PROGRAM"))
    group = f"tile{tile}" if tile else "-".join(word for word in (survey, program) if word)
    cards = {
        "LMJD": int(mjd),
        "MJD": int(mjd),
        "PLANID": "-".join(word for word in ("DESI", re.sub(r"[^\w.+-]", "", group), str(target)) if word),
        "SPID": int(petal) + 1,
        "FIBERID": int(fiber) % 500 + 1,
        "RA": row.get("TARGET_RA"),
        "DEC": row.get("TARGET_DEC"),
        "DATA_V": f"DESI {header['SPECPROD']}".strip(),
        "VACUUM": True,
    }
    return cards | _velocity(target, redshifts)


def _velocity(target: int, redshifts: Mapping[str, np.ndarray] | str) -> dict[str, object]:
    if isinstance(redshifts, str):
        return {"NO_Z": redshifts}
    found = np.flatnonzero(redshifts["TARGETID"] == target)
    if len(found) != 1:
        return {"NO_Z": f"Redrock's file has {len(found)} rows of TARGETID {target}"}
    row = {name: values[found[0]] for name, values in redshifts.items()}
    kind = _text(row["SPECTYPE"])
    cards = {"CLASS": kind, "SUBCLASS": _text(row.get("SUBTYPE"))}
    if row["ZWARN"] != 0:
        return cards | {"NO_Z": f"Redrock's ZWARN is {row['ZWARN']}"}
    if kind != "STAR":
        return cards | {"NO_Z": f"Redrock's SPECTYPE is '{kind}'"}
    return cards | {"Z": row["Z"], "Z_ERR": row["ZERR"]}


def _finite(value: object) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if np.isfinite(number) else None


def _text(value: object) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return "" if text is None else str(text).strip()


# Pixels


def _arms(path: str, wanted: np.ndarray, n_spectrum: int) -> tuple[dict[str, np.ndarray], dict[str, Arm]]:
    """EXP_FIBERMAP, and some spectra of each camera that is there."""
    exposures: dict[str, np.ndarray] = {}
    cameras: dict[str, dict[str, np.ndarray]] = {}
    pixels: dict[str, set[int]] = {}
    with open_fits(path) as hdus:
        for hdu in hdus:
            name = hdu.name.upper()
            camera, _, part = name.partition("_")
            if name == "EXP_FIBERMAP":
                exposures = _columns(hdu, _EXP_FIBERMAP)
            elif camera in CAMERAS and part in _DIMENSIONS:
                _check_shape(hdu, part, n_spectrum)
                pixels.setdefault(camera, set()).add(hdu.shape[-1])
                cameras.setdefault(camera, {})[part] = _read_part(hdu, part, wanted)
    for camera, found in pixels.items():
        if len(found) > 1:
            raise SpectrumError("bad_shape", f"camera {camera} has {sorted(found)} pixels; fetch it again")
    if not cameras:
        raise SpectrumError("unknown_layout", "has a FIBERMAP and no spectra of the cameras b, r, z; fetch it again")
    return exposures, {camera: _arm(camera, cameras[camera]) for camera in CAMERAS if camera in cameras}


def _check_shape(hdu: fits.ImageHDU, part: str, n_spectrum: int) -> None:
    shape = hdu.shape
    possible = len(shape) == _DIMENSIONS[part] and 1 < shape[-1] <= _MAX_PIXELS
    possible = possible and (part == "WAVELENGTH" or shape[0] == n_spectrum)
    # A matrix has as many diagonals above the middle one as below.
    if not possible or (part == "RESOLUTION" and (shape[1] % 2 == 0 or shape[1] > _MAX_DIAGONALS)):
        raise SpectrumError(
            "bad_shape", f"{hdu.name} is {shape}, for {n_spectrum} spectra in the FIBERMAP; fetch it again"
        )


def _read_part(hdu: fits.ImageHDU, part: str, wanted: np.ndarray) -> np.ndarray:
    if part == "WAVELENGTH":
        return hdu.section[:].astype(np.float64)
    if part == "RESOLUTION":
        # A hundred times the spectra; no more of it is kept than a width every few pixels.
        batches = (wanted[i : i + _MATRICES] for i in range(0, len(wanted), _MATRICES))
        return np.concatenate([native_variance(_rows_of(hdu, batch), STEP) for batch in batches])
    values = _rows_of(hdu, wanted)
    return values != 0 if part == "MASK" else values.astype(np.float32)


def _rows_of(hdu: fits.ImageHDU, wanted: np.ndarray) -> np.ndarray:
    """Some rows of an image, in increasing order; neighbors are read as one."""
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
    return np.concatenate([hdu.section[int(run[0]) : int(run[-1]) + 1] for run in runs])


def _arm(camera: str, parts: Mapping[str, np.ndarray]) -> Arm:
    lacking = [f"{camera}_{part}" for part in ("WAVELENGTH", "FLUX", "IVAR") if part not in parts]
    if lacking:
        raise SpectrumError("bad_shape", f"lacks {', '.join(lacking)} beside others of that camera; fetch it again")
    wavelength, flux, ivar = (parts[part] for part in ("WAVELENGTH", "FLUX", "IVAR"))
    even = wavelength[0] + STEP * np.arange(len(wavelength))
    if not np.allclose(wavelength, even, rtol=0, atol=1e-3):
        raise SpectrumError(
            "bad_wavelength", f"{camera}_WAVELENGTH is not evenly spaced by {STEP} Å; fetch the file again"
        )
    with np.errstate(invalid="ignore"):
        good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0) & ~parts.get("MASK", np.False_)
    return Arm(even, flux, np.where(good, ivar, np.float32(0)), parts.get("RESOLUTION"))
