"""A zoo of broken and odd spectrum files: one small function a kind, and the reasons that are true for it.

Every specimen starts from a good file with an identity of its own, as the survey writes it.
"""

import bz2
import gzip
import io
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits
from isal import igzip

from hotdask.readers.lamost import MAX_BYTES
from hotdask.simulation.lamost_writer import write_lamost
from hotdask.windows import N_OBSERVED, observed_wavelength

READ = "read"
"""Stands among the reasons of kinds that are odd but can be read."""

N = N_OBSERVED
IMAGE, TABLE = ("dr1", "dr5"), ("dr9",)
EVERY = (*IMAGE, *TABLE)


@dataclass(frozen=True)
class Kind:
    """How to make a specimen of a file that is good so far, and what may be said of it."""

    name: str
    make: Callable[[Path, str], Path | None]
    reasons: frozenset[str]
    layouts: tuple[str, ...]
    twin: str | None = field(default=None)
    """Reason the run, which sees all files, must give for it instead."""


@dataclass(frozen=True)
class Specimen:
    """One file of the zoo."""

    kind: str
    path: Path
    reasons: frozenset[str]
    twin: str | None


KINDS: dict[str, Kind] = {}


def kind(*reasons: str, layouts: tuple[str, ...] = ("dr5",), twin: str | None = None):
    def add(make: Callable[[Path, str], Path | None]):
        KINDS[make.__name__] = Kind(make.__name__, make, frozenset(reasons), layouts, twin)
        return make

    return add


def build(folder: Path) -> list[Specimen]:
    """Write the zoo, a folder a kind; returns a specimen for each kind and layout."""
    specimens = []
    for one in KINDS.values():
        for layout in one.layouts:
            path = write_good(folder / one.name, len(specimens), layout)
            path = one.make(path, layout) or path
            specimens.append(Specimen(one.name, path, one.reasons, one.twin))
    return specimens


def write_good(folder: Path, number: int, layout: str, *, n: int = N, first: int = 0, **changed) -> Path:
    """A good file; ``number`` gives it name and identity."""
    folder.mkdir(parents=True, exist_ok=True)
    spid, fiberid = number // 200 + 1, number % 200 + 1
    path = folder / f"spec-58000-ZOO_sp{spid:02d}-{fiberid:03d}.fits"
    meta = {"lmjd": 58000, "planid": "ZOO", "spid": spid, "fiberid": fiberid, "obsid": 700_000_000 + number}
    meta |= {"ra": 10 + 0.5 * number, "dec": 20.0, "rv": 30.0, "rv_err": 4.0}
    meta |= {"class": "STAR", "subclass": "B6", "release": "LAMOST DR7"}
    meta |= {f"snr_{band}": 60.0 for band in "ugriz"}
    rng = np.random.default_rng(number)
    wavelength = observed_wavelength()[first : first + n]
    level = 1000 * (5000 / wavelength) ** 2
    arrays = {
        "flux": level * (1 + rng.normal(0, 1 / 60, n)),
        "ivar": (60 / level) ** 2,
        "andmask": np.zeros(n),
        "ormask": np.zeros(n),
        "wavelength": wavelength,
    }
    write_lamost(path, layout=layout, meta=meta, **(arrays | changed))
    return path


# Tools


def card(key: str, value: str) -> bytes:
    return f"{key:<8}= {value}".ljust(80)[:80].encode("latin-1")


def data_start(raw: bytes, second: bool = False) -> int:
    """Where the data behind the first header begin, or those behind the second."""
    end = raw.index(b"END".ljust(80), raw.index(b"XTENSION") if second else 0)
    return -(-(end + 80) // 2880) * 2880


def put(path: Path, key: str, value: str, *, second: bool = False) -> None:
    """Any text behind a keyword, in the header it stands in."""
    raw = path.read_bytes()
    start = raw.index(b"XTENSION") if second else 0
    at = next(i for i in range(start, len(raw), 80) if raw[i : i + 10] == f"{key:<8}= ".encode())
    path.write_bytes(raw[:at] + card(key, value) + raw[at + 80 :])


def insert(path: Path, *cards: bytes) -> None:
    """More cards at the end of the first header, which may grow by a block."""
    raw = path.read_bytes()
    end = raw.index(b"END".ljust(80))
    header = raw[:end] + b"".join(cards) + b"END".ljust(80)
    path.write_bytes(header + b" " * (-len(header) % 2880) + raw[data_start(raw) :])


def drop(path: Path, *keys: str) -> None:
    """Blank cards of the first header."""
    raw = bytearray(path.read_bytes())
    for at in range(0, data_start(raw), 80):
        if raw[at : at + 8].rstrip().decode() in keys:
            raw[at : at + 80] = b" " * 80
    path.write_bytes(raw)


def rows(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Another image, or other first five columns of the table, of the same shape."""
    raw = path.read_bytes()
    start = data_start(raw, second=b"XTENSION" in raw)
    data = np.frombuffer(raw, ">f4", 5 * N, start).reshape(5, N)
    changed = np.asarray(change(data.astype(np.float64)))
    path.write_bytes(raw[:start] + changed.astype(">f4").tobytes() + raw[start + data.nbytes :])


def image(path: Path, change: Callable[[np.ndarray], np.ndarray], **cards) -> None:
    """Another image of any shape and type, written by astropy."""
    with fits.open(path) as hdus:
        header, data = hdus[0].header.copy(), change(np.array(hdus[0].data))
    header.update(cards)
    save(path, fits.PrimaryHDU(data, header))


def table(path: Path, change: Callable[[dict[str, np.ndarray]], fits.hdu.base.ExtensionHDU | None]) -> None:
    """Another extension, made of the columns."""
    with fits.open(path) as hdus:
        primary = fits.PrimaryHDU(header=hdus[0].header.copy())
        extension = change({name: np.array(hdus[1].data[name][0]) for name in hdus[1].columns.names})
    save(path, primary, *([] if extension is None else [extension]))


def save(path: Path, *hdus) -> None:
    out = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(out, output_verify="ignore")
    path.write_bytes(out.getvalue())


def columns(arrays: dict[str, np.ndarray], form: str | None = None, kind=fits.BinTableHDU, **options):
    made = [
        fits.Column(name, form or f"{len(array)}E", array=array if form else array[None], **options)
        for name, array in arrays.items()
    ]
    return kind.from_columns(made, name="COADD")


def zipped(path: Path, change: Callable[[bytearray], bytes] = bytes) -> None:
    path.write_bytes(change(bytearray(gzip.compress(path.read_bytes(), 1, mtime=0))))


def level(path: Path, row: int, value: float) -> None:
    def change(data):
        data[row] = value
        return data

    rows(path, change)


def remove(path: Path) -> None:
    path.unlink()


@kind(READ, layouts=EVERY)
def good(path, layout):
    """Nothing is wrong with these."""


# Bytes that are no FITS


@kind("empty_file")
def empty(path, layout):
    path.write_bytes(b"")


@kind("empty_file")
def gzip_of_nothing(path, layout):
    path.write_bytes(gzip.compress(b""))


@kind("not_fits")
def one_byte(path, layout):
    path.write_bytes(b"S")


@kind("not_fits")
def zero_bytes(path, layout):
    path.write_bytes(bytes(100_800))


@kind("not_fits")
def noise(path, layout):
    path.write_bytes(b"\x93" + np.random.default_rng(0).bytes(100_799))


@kind("not_fits")
def text(path, layout):
    path.write_text("Zażółć gęślą jaźń. " * 3000)


@kind("not_fits")
def web_page(path, layout):
    path.write_bytes(b"<!DOCTYPE html><html><title>404 Not Found</title></html>\n")


@kind("not_fits")
def gzip_of_garbage(path, layout):
    path.write_bytes(gzip.compress(np.random.default_rng(1).bytes(5000)))


@kind("not_fits")
def gzip_of_gzip(path, layout):
    zipped(path)
    zipped(path)


@kind("not_fits")
def bzip2(path, layout):
    path.write_bytes(bz2.compress(path.read_bytes()))


@kind("not_fits", layouts=("dr5", "dr9"))
def simple_is_false(path, layout):
    put(path, "SIMPLE", f"{'F':>20}")


@kind("not_fits", layouts=("dr5", "dr9"))
def first_header_lost(path, layout):
    raw = path.read_bytes()
    path.write_bytes(raw[data_start(raw) :])


# Gzip


@kind("truncated", layouts=EVERY)
def gzip_cut(path, layout):
    zipped(path, lambda raw: raw[: len(raw) // 2])


@kind("truncated")
def gzip_header_only(path, layout):
    zipped(path, lambda raw: raw[:10])


@kind("truncated")
def gzip_without_checksum(path, layout):
    zipped(path, lambda raw: raw[:-8])


@kind("damaged")
def gzip_wrong_checksum(path, layout):
    zipped(path, lambda raw: raw[:-8] + bytes([raw[-8] ^ 1]) + raw[-7:])


@kind("damaged")
def gzip_wrong_length(path, layout):
    zipped(path, lambda raw: raw[:-4] + bytes([raw[-4] ^ 1]) + raw[-3:])


@kind("damaged", "truncated")
def gzip_damaged_inside(path, layout):
    zipped(path, lambda raw: raw[:9000] + bytes(200) + raw[9200:])


@kind("damaged")
def gzip_unknown_method(path, layout):
    zipped(path, lambda raw: raw[:2] + b"\x07" + raw[3:])


@kind(READ)
def gzip_with_garbage_behind(path, layout):
    zipped(path, lambda raw: raw + b"garbage")


@kind("too_large")
def gzip_bomb(path, layout):
    path.write_bytes(igzip.compress(path.read_bytes() + bytes(4 * MAX_BYTES), 1))


@kind("too_large")
def gzip_bomb_of_many_members(path, layout):
    # 4 GB.
    path.write_bytes(igzip.compress(path.read_bytes(), 1) + 128 * igzip.compress(bytes(MAX_BYTES // 2), 1))


@kind("damaged")
def gzip_of_endless_empty_members(path, layout):
    path.write_bytes(gzip.compress(b"") * 1_000_000)


@kind("too_large")
def far_too_large(path, layout):
    # Sparse: takes no room on the disk.
    os.truncate(path, 40 * MAX_BYTES)


# Files cut, lengthened or without a header's end


@kind("truncated", layouts=EVERY)
def cut_in_header(path, layout):
    os.truncate(path, 4000)


@kind("truncated", layouts=("dr5", "dr9"))
def cut_within_first_card(path, layout):
    os.truncate(path, 30)


@kind("truncated", layouts=EVERY)
def cut_before_data(path, layout):
    raw = path.read_bytes()
    os.truncate(path, data_start(raw, second=layout in TABLE))


@kind("truncated", layouts=EVERY)
def cut_inside_data(path, layout):
    os.truncate(path, path.stat().st_size // 2 // 2880 * 2880 + 1000)


@kind("truncated", layouts=EVERY)
def one_block_short(path, layout):
    os.truncate(path, path.stat().st_size - 2880)


@kind(READ, layouts=EVERY)
def one_byte_of_padding_short(path, layout):
    os.truncate(path, path.stat().st_size - 1)


@kind(READ, layouts=EVERY)
def garbage_behind_the_data(path, layout):
    path.write_bytes(path.read_bytes() + b"garbage" * 1000)


@kind("truncated", "damaged", layouts=EVERY)
def header_without_end(path, layout):
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"END".ljust(80), b" " * 80))


@kind("truncated", "damaged")
def card_of_120_bytes(path, layout):
    raw = path.read_bytes()
    at = raw.index(b"SUBCLASS")
    path.write_bytes(raw[:at] + b"SUBCLASS= '" + b"B" * 107 + b"' " + raw[at + 80 :])


@kind("damaged", "truncated")
def lines_instead_of_cards(path, layout):
    raw = path.read_bytes()
    start = data_start(raw)
    lines = b"\n".join(raw[i : i + 80].rstrip() for i in range(0, start, 80))
    path.write_bytes(lines + raw[start:])


@kind("damaged", layouts=("dr5", "dr9"))
def header_of_millions_of_cards(path, layout):
    insert(path, b"COMMENT and so on".ljust(80) * (MAX_BYTES // 80 - 4000))


# Sizes and types that lie


@kind("damaged", layouts=("dr5", "dr9"))
def naxis1_absurd(path, layout):
    put(path, "NAXIS1", "99999999999", second=layout in TABLE)


@kind("damaged", layouts=("dr5", "dr9"))
def naxis1_negative(path, layout):
    put(path, "NAXIS1", "-3909", second=layout in TABLE)


@kind("damaged", layouts=("dr5", "dr9"))
def naxis_absurd(path, layout):
    put(path, "NAXIS", "999999999", second=layout in TABLE)


@kind("bad_shape", "truncated", "damaged", layouts=("dr5", "dr9"))
def naxis1_of_gigabytes(path, layout):
    put(path, "NAXIS1", "60000000", second=layout in TABLE)
    put(path, "NAXIS2", "60000000" if layout in TABLE else "5", second=layout in TABLE)


@kind("truncated")
def naxis1_too_long(path, layout):
    put(path, "NAXIS1", "9000")


@kind("bad_wavelength", "unknown_layout")
def naxis1_too_short(path, layout):
    put(path, "NAXIS1", "3900")


@kind("damaged", layouts=IMAGE)
def bitpix_unknown(path, layout):
    put(path, "BITPIX", "7")


@kind(READ, layouts=TABLE)
def bitpix_of_a_table(path, layout):
    """Its columns have types of their own."""
    put(path, "BITPIX", "7", second=True)


@kind("truncated")
def bitpix_too_wide(path, layout):
    put(path, "BITPIX", "-64")


@kind("bad_wavelength", "unknown_layout")
def bitpix_too_narrow(path, layout):
    put(path, "BITPIX", "16")


@kind("damaged", "bad_shape")
def bitpix_missing(path, layout):
    drop(path, "BITPIX")


@kind("bad_shape")
def one_dimension(path, layout):
    image(path, lambda data: data[0])


@kind("bad_shape")
def three_dimensions(path, layout):
    image(path, lambda data: data[None])


@kind("bad_shape")
def transposed(path, layout):
    image(path, lambda data: data.T)


@kind("bad_shape")
def three_rows(path, layout):
    image(path, lambda data: data[:3])


@kind("bad_shape")
def no_pixels(path, layout):
    image(path, lambda data: data[:, :0])


@kind("bad_shape")
def one_pixel(path, layout):
    image(path, lambda data: data[:, :1])


@kind(READ)
def double_precision(path, layout):
    image(path, lambda data: data.astype(">f8"))


@kind("unknown_layout", layouts=("dr5",))
def no_data_at_all(path, layout):
    save(path, fits.PrimaryHDU(header=fits.getheader(path)))


# Pixels


@kind("no_good_pixels", layouts=EVERY)
def flux_nan(path, layout):
    level(path, 0, np.nan)


@kind("no_good_pixels", layouts=EVERY)
def flux_infinite(path, layout):
    level(path, 0, -np.inf)


@kind("no_good_pixels")
def flux_zero(path, layout):
    level(path, 0, 0)


@kind("no_good_pixels", layouts=EVERY)
def ivar_zero(path, layout):
    level(path, 1, 0)


@kind("no_good_pixels", layouts=EVERY)
def ivar_negative(path, layout):
    level(path, 1, -1)


@kind("no_good_pixels")
def ivar_nan(path, layout):
    level(path, 1, np.nan)


@kind("no_good_pixels")
def ivar_infinite(path, layout):
    level(path, 1, np.inf)


@kind("no_good_pixels")
def flux_beyond_single_precision(path, layout):
    image(path, lambda data: np.array([1e300 * data[0].astype(float), *data[1:]]))


@kind(READ, layouts=EVERY)
def every_second_pixel_nan(path, layout):
    def change(data):
        data[0, ::2] = np.nan
        return data

    rows(path, change)


@kind(READ)
def a_single_good_pixel(path, layout):
    def change(data):
        data[1, : N // 2] = data[1, N // 2 + 1 :] = 0
        return data

    rows(path, change)


@kind(READ, layouts=EVERY)
def flux_huge(path, layout):
    rows(path, lambda data: np.array([data[0] * 1e35, *data[1:]]))


@kind(READ)
def flux_tiny(path, layout):
    rows(path, lambda data: np.array([data[0] * 1e-40, *data[1:]]))


@kind(READ)
def flux_negative(path, layout):
    rows(path, lambda data: np.array([-data[0], *data[1:]]))


@kind(READ)
def flux_of_noise(path, layout):
    rows(path, lambda data: np.array([np.random.default_rng(3).normal(0, 1e4, N), *data[1:]]))


@kind(READ)
def ivar_huge(path, layout):
    level(path, 1, 3e38)


@kind(READ)
def ivar_tiny(path, layout):
    level(path, 1, 1e-45)


@kind(READ, layouts=EVERY)
def masks_out_of_range(path, layout):
    def change(data):
        data[3:, ::4], data[3:, 1::4], data[3:, 2::4] = 1e30, -1, np.nan
        return data

    rows(path, change)


@kind(READ)
def every_pixel_masked(path, layout):
    level(path, 3, 65535)


# Wavelengths


@kind("bad_wavelength", layouts=("dr1",))
def coeff0_missing(path, layout):
    drop(path, "COEFF0")


@kind("bad_wavelength", layouts=("dr1",))
def coeff1_missing(path, layout):
    drop(path, "COEFF1")


@kind("bad_wavelength", layouts=("dr1", "dr5"))
def coeff1_zero(path, layout):
    put(path, "COEFF1", "0.0")


@kind("bad_wavelength", layouts=("dr1", "dr5"))
def coeff1_reversed(path, layout):
    put(path, "COEFF1", "-0.0001")


@kind("off_grid", "bad_wavelength", layouts=EVERY)
def coeff0_absurd(path, layout):
    put(path, "COEFF0", "1E300")


@kind("off_grid", "bad_wavelength", layouts=EVERY)
def coeff1_absurd(path, layout):
    put(path, "COEFF1", "1.0E+300")


@kind("bad_wavelength", layouts=("dr1",))
def coeff0_text(path, layout):
    put(path, "COEFF0", "'blue'")


@kind("bad_wavelength", layouts=("dr5", "dr9"))
def wavelength_reversed(path, layout):
    rows(path, lambda data: np.array([*data[:2], data[2, ::-1], *data[3:]]))


@kind("bad_wavelength", layouts=("dr5", "dr9"))
def wavelength_nan(path, layout):
    def change(data):
        data[2, 77] = np.nan
        return data

    rows(path, change)


@kind("bad_wavelength", layouts=("dr5", "dr9"))
def wavelength_zero(path, layout):
    level(path, 2, 0)


@kind("bad_wavelength")
def wavelength_negative(path, layout):
    rows(path, lambda data: np.array([*data[:2], data[2] - 9000, *data[3:]]))


@kind("bad_wavelength")
def wavelength_in_nanometers(path, layout):
    rows(path, lambda data: np.array([*data[:2], data[2] / 10, *data[3:]]))


@kind("off_grid")
def wavelength_in_nanometers_without_header(path, layout):
    rows(path, lambda data: np.array([*data[:2], data[2] / 10, *data[3:]]))
    drop(path, "COEFF0", "COEFF1")


@kind("off_grid", layouts=("dr5", "dr9"))
def wavelength_linear(path, layout):
    rows(path, lambda data: np.array([*data[:2], np.linspace(3700, 9000, N), *data[3:]]))
    drop(path, "COEFF0", "COEFF1")


@kind("off_grid", layouts=EVERY)
def half_a_pixel_off(path, layout):
    put(path, "COEFF0", "3.56825")
    if layout != "dr1":
        rows(path, lambda data: np.array([*data[:2], data[2] * 10**0.00005, *data[3:]]))


@kind("air_wavelength", layouts=EVERY)
def wavelength_in_air(path, layout):
    put(path, "VACUUM", f"{'F':>20}")


@kind("not_heliocentric")
def not_heliocentric(path, layout):
    put(path, "HELIO", f"{'F':>20}")


# Header values


@kind("no_velocity", layouts=EVERY)
def z_none(path, layout):
    put(path, "Z", "-9999.0")


@kind("no_velocity", layouts=EVERY)
def z_missing(path, layout):
    drop(path, "Z")


@kind("no_velocity", layouts=("dr5", "dr9"))
def z_text(path, layout):
    put(path, "Z", "'unknown'")


@kind("no_velocity", "damaged")
def z_nan(path, layout):
    put(path, "Z", "NaN")


@kind("no_velocity")
def z_infinite(path, layout):
    put(path, "Z", "'Infinity'")


@kind("no_velocity")
def z_overflows(path, layout):
    put(path, "Z", "1E400")


@kind("no_velocity", layouts=("dr5", "dr9"))
def z_absurd(path, layout):
    put(path, "Z", "123456.0")


@kind("no_velocity")
def z_minus_one(path, layout):
    put(path, "Z", "-1.0")


@kind("no_velocity", "damaged")
def z_not_ascii(path, layout):
    put(path, "Z", "0.001\xb5")


@kind(READ, "no_velocity")
def z_of_a_quasar(path, layout):
    put(path, "Z", "4.5")


@kind(READ, "no_velocity")
def z_near_minus_one(path, layout):
    put(path, "Z", "-0.9999999")


@kind("no_position", layouts=EVERY)
def position_missing(path, layout):
    drop(path, "RA", "DEC")


@kind("no_position")
def ra_out_of_range(path, layout):
    put(path, "RA", "400.0")


@kind("no_position")
def dec_out_of_range(path, layout):
    put(path, "DEC", "-90.5")


@kind("no_position")
def ra_none(path, layout):
    put(path, "RA", "-9999.0")


@kind("no_position")
def ra_in_hours(path, layout):
    put(path, "RA", "'05:35:17.3'")


@kind("no_position")
def ra_overflows(path, layout):
    put(path, "RA", "1E999")


@kind("no_identity", layouts=("dr5", "dr9"))
def nameless(path, layout):
    drop(path, "LMJD", "SPID", "FILENAME")
    return path.rename(path.with_name(f"{layout}.fits"))


@kind(READ)
def obsid_missing(path, layout):
    drop(path, "OBSID")


@kind(READ)
def obsid_absurd(path, layout):
    put(path, "OBSID", "9" * 40)


@kind(READ)
def card_given_twice(path, layout):
    insert(path, card("Z", "0.5"), card("OBSID", "1"))


@kind(READ)
def comment_not_ascii(path, layout):
    insert(path, "COMMENT  observé à 5 µm".encode("latin-1").ljust(80))


@kind(READ)
def continue_without_string(path, layout):
    insert(path, b"CONTINUE  'and more".ljust(80), b"CONTINUE".ljust(80), b"CONTINUE= 5".ljust(80))


@kind(READ)
def keywords_of_nonsense(path, layout):
    insert(path, b"\x01\x02 ?! = (".ljust(80), b"=" * 80, b"hierarch a.b = 'x".ljust(80), b"'" * 80)


@kind(READ)
def cards_in_reverse(path, layout):
    raw = path.read_bytes()
    end = raw.index(b"END".ljust(80))
    first = raw.index(b"EXTEND  =") + 80
    rest = [raw[i : i + 80] for i in range(first, end, 80)]
    path.write_bytes(raw[:first] + b"".join(rest[::-1]) + raw[end:])


@kind("bad_wavelength")
def scaled_by_bscale(path, layout):
    insert(path, card("BSCALE", "2.0"), card("BZERO", "10.0"))


@kind("damaged", READ)
def bscale_is_text(path, layout):
    insert(path, card("BSCALE", "'two'"))


@kind("unknown_layout", layouts=("dr1",))
def third_row_undeclared(path, layout):
    drop(path, "EXTEN0")


# Tables


@kind("unknown_layout", layouts=TABLE)
def extension_missing(path, layout):
    table(path, lambda arrays: None)


@kind("unknown_layout", layouts=TABLE)
def image_instead_of_table(path, layout):
    table(path, lambda arrays: fits.ImageHDU(np.array([arrays["FLUX"], arrays["IVAR"]]), name="COADD"))


@kind("unknown_layout", layouts=TABLE)
def compressed_image(path, layout):
    table(path, lambda arrays: fits.CompImageHDU(np.array([*arrays.values()][:5]), compression_type="RICE_1"))


@kind("unknown_layout", layouts=TABLE)
def text_table(path, layout):
    table(path, lambda arrays: columns(arrays, "E15.7", fits.TableHDU))


@kind("unknown_layout", layouts=TABLE)
def column_missing(path, layout):
    table(path, lambda arrays: columns({k: v for k, v in arrays.items() if k != "IVAR"}))


@kind("no_position", layouts=TABLE)
def sdss_without_its_object(path, layout):
    names = ("flux", "loglam", "ivar", "and_mask", "or_mask", "wdisp")
    table(path, lambda arrays: columns(dict(zip(names, arrays.values(), strict=True)), "E"))


@kind("bad_shape", layouts=TABLE)
def columns_of_text(path, layout):
    table(path, lambda arrays: columns({k: np.array([str(v[0])]) for k, v in arrays.items()}, "20A"))


@kind("bad_shape", layouts=TABLE)
def columns_complex(path, layout):
    table(path, lambda arrays: columns({k: v[None].astype(complex) for k, v in arrays.items()}, f"{N}C"))


@kind("bad_shape", layouts=TABLE)
def columns_of_single_numbers(path, layout):
    table(path, lambda arrays: columns({k: v[:1] for k, v in arrays.items()}, "E"))


@kind("bad_shape", layouts=TABLE)
def a_pixel_a_row(path, layout):
    table(path, lambda arrays: columns(arrays, "E"))


@kind("bad_shape", layouts=TABLE)
def columns_of_unequal_length(path, layout):
    table(path, lambda arrays: columns(arrays | {"IVAR": arrays["IVAR"][:-1]}))


@kind("bad_shape", layouts=TABLE)
def columns_of_two_dimensions(path, layout):
    table(path, lambda arrays: columns({k: v[:3900] for k, v in arrays.items()}, None, dim="(1950,2)"))


@kind("bad_shape", layouts=TABLE)
def two_spectra(path, layout):
    table(path, lambda arrays: columns({k: np.array([v, v]) for k, v in arrays.items()}, f"{N}E"))


@kind("bad_shape", layouts=TABLE)
def table_without_rows(path, layout):
    table(path, lambda arrays: columns({k: v[None][:0] for k, v in arrays.items()}, f"{N}E"))


@kind("damaged", "truncated", "bad_shape", layouts=TABLE)
def tform_absurd(path, layout):
    put(path, "TFORM1", "'99999999999E'", second=True)


@kind("damaged", "unknown_layout", layouts=TABLE)
def tform_unknown(path, layout):
    put(path, "TFORM1", "'3909Q Q'", second=True)


@kind("unknown_layout", layouts=TABLE)
def ttype_twice(path, layout):
    put(path, "TTYPE2", "'FLUX'", second=True)


@kind("damaged", layouts=TABLE)
def tfields_absurd(path, layout):
    put(path, "TFIELDS", "99999999", second=True)


@kind(READ, layouts=TABLE)
def columns_of_variable_length(path, layout):
    def change(arrays):
        made = [fits.Column(k, "PE()", array=np.array([v, None], dtype=object)[:1]) for k, v in arrays.items()]
        return fits.BinTableHDU.from_columns(made, name="COADD")

    table(path, change)


@kind(READ, layouts=TABLE)
def columns_in_lower_case_and_double(path, layout):
    table(path, lambda arrays: columns({k.lower(): v[None] for k, v in reversed(arrays.items())}, f"{N}D"))


# Identities that could not name a file


@kind("no_identity", layouts=EVERY)
def planid_of_300_characters(path, layout):
    drop(path, "PLANID")
    text = "F" * 300
    parts = [text[at : at + 60] for at in range(0, 300, 60)]
    insert(
        path,
        f"PLANID  = '{parts[0]}&'".ljust(80).encode(),
        *(f"CONTINUE  '{part}&'".ljust(80).encode() for part in parts[1:-1]),
        f"CONTINUE  '{parts[-1]}'".ljust(80).encode(),
    )


@kind("no_identity", layouts=("dr5", "dr9"))
def planid_of_a_folder(path, layout):
    put(path, "PLANID", "'../../F5902'")


@kind("no_identity")
def planid_of_200_characters_in_the_name(path, layout):
    drop(path, "PLANID")
    return path.rename(path.with_name(f"spec-55859-{'F' * 200}_sp01-005.fits"))


# Medium resolution: a table for each arm, coadded or of one exposure


def arm(path, name, rows=1):
    with fits.open(path) as hdus:
        pixels = {key: np.array(hdus[1].data[key][0])[:3000] for key in ("FLUX", "IVAR", "WAVELENGTH")}
    made = [fits.Column(key, "3000E", array=np.repeat(values[None], rows, axis=0)) for key, values in pixels.items()]
    made.append(fits.Column("PIXMASK", "3000I", array=np.zeros((rows, 3000), np.int16)))
    return fits.BinTableHDU.from_columns(made, name=name)


def header_alone(path):
    with fits.open(path) as hdus:
        return fits.PrimaryHDU(header=hdus[0].header.copy())


@kind("unknown_layout", layouts=TABLE)
def medium_resolution(path, layout):
    save(path, header_alone(path), *(arm(path, name) for name in ("COADD_B", "COADD_R", "B-84000012", "R-84000012")))


@kind("unknown_layout", layouts=TABLE)
def medium_resolution_of_single_exposures(path, layout):
    save(path, header_alone(path), *(arm(path, name) for name in ("B-84000012", "R-84000012")))


@kind("unknown_layout", layouts=TABLE)
def medium_resolution_with_the_columns_of_low(path, layout):
    table(path, lambda arrays: columns(arrays))
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"'COADD   '", b"'COADD_B '"))


# Files that are none, or cannot be had


@kind("unreadable")
def directory(path, layout):
    remove(path)
    path.mkdir()


@kind("unreadable")
def pipe(path, layout):
    remove(path)
    os.mkfifo(path)


@kind("unreadable")
def unix_socket(path, layout):
    remove(path)
    # A bound name is limited to about 100 characters, a file's is not.
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


@kind("unreadable")
def link_to_the_kernels_messages(path, layout):
    """To the system it is a regular file of no bytes, and reading it waits forever."""
    remove(path)
    path.symlink_to("/proc/kmsg")


@kind("unreadable")
def link_to_a_device(path, layout):
    remove(path)
    path.symlink_to("/dev/zero")


@kind("not_found")
def broken_link(path, layout):
    remove(path)
    path.symlink_to(path.with_name("gone"))


@kind("unreadable")
def link_to_itself(path, layout):
    remove(path)
    path.symlink_to(path.name)


# Files that are good alone; of two that hold one exposure the run keeps the path that comes first


@kind(READ, twin="duplicate")
def twin(path, layout):
    path.write_bytes(next(path.parents[1].glob("good/*")).read_bytes())


@kind(READ, twin="duplicate")
def twin_by_obsid(path, layout):
    put(path, "OBSID", "700000001")  # of the good DR5 file; DR1 has no OBSID
