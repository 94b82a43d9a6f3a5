"""FITS files too large to be taken in whole, as astropy opens them; what is wrong with one is a `SpectrumError`.

Headers are looked at before astropy sees them: it makes lists as long as they say, and reads on until one ends.
"""

import errno
import math
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from astropy.io import fits
from isal import igzip

from hotdask.errors import SpectrumError
from hotdask.readers.strictfits import MAX_HEADER_BYTES

PASSING_ERRORS = frozenset(
    getattr(errno, f"E{name}")
    for name in (
        *("IO", "STALE", "MFILE", "NFILE", "AGAIN", "INTR", "BUSY", "NOMEM", "TIMEDOUT"),
        *("CONNRESET", "CONNABORTED", "NOTCONN", "HOSTDOWN", "HOSTUNREACH", "NETUNREACH"),
    )
)
"""What the operating system could not do just now, and may do later."""
_BLOCK = 2880
_MAX_HDUS = 100
"""A coadd has 20."""
_MAX_ALL_HEADERS = 2 * MAX_HEADER_BYTES
_MAX_FILE = 2**40
_MAX_TILE = 2**24
_DEFLATED = 1032
"""Bytes that one of deflate's can stand for; no header is believed that claims more."""
_INFLATED = (2**28, 50)
"""Bytes that a gzipped file may hold whatever its size, and for each of its own: coadds have 2 to 10."""
_STRUCTURE = re.compile(
    rb"(NAXIS[0-9]{0,3}|TFIELDS|PCOUNT|GCOUNT|ZNAXIS[0-9]{0,3}|ZTILE[0-9]{1,3}) *=([^/]*)", re.IGNORECASE
)
_LIMITS = {b"NAXIS": 9, b"ZNAXIS": 9, b"TFIELDS": 999}
_CUT = ("EOFError", "Header size is not multiple", "Header missing END")
"""Words of errors about files that end too early."""
_SHOWN = 200
_KINDS = (fits.PrimaryHDU, fits.ImageHDU, fits.BinTableHDU, fits.TableHDU)


def read_header(read: Callable[[int], bytes]) -> bytes:
    """The next header, whole blocks of it, as far as its END.

    Parameters
    ----------
    read : callable
        Gives the next bytes, as many as it is asked for if there are as many.

    Raises
    ------
    SpectrumError
        If the file ends first, or the header has over `hotdask.readers.strictfits.MAX_HEADER_BYTES`.
    """
    blocks = []
    while len(blocks) * _BLOCK < MAX_HEADER_BYTES:
        block = read(_BLOCK)
        blocks.append(block)
        if any(block[at : at + 8].rstrip() == b"END" for at in range(0, len(block) - 2, 80)):
            return b"".join(blocks)
        if len(block) < _BLOCK:
            raise SpectrumError("truncated", "the file ends within a header; fetch it again")
    raise SpectrumError("damaged", f"a header has over {MAX_HEADER_BYTES} bytes; fetch it again")


def check_sizes(header: bytes, largest: int) -> dict[bytes, int]:
    """See that the sizes a header claims are possible: TFIELDS = 10^11 or NAXIS = 10^9 keep astropy busy.

    Parameters
    ----------
    header : bytes
        Cards of 80 bytes.
    largest : int
        That an axis, or what lies behind a table, may be.

    Returns
    -------
    dict
        Keywords, in capitals, and their values.

    Raises
    ------
    SpectrumError
        If one is no whole number, or too large.
    """
    found = {}
    for at in range(0, len(header), 80):
        card = header[at : at + 80]
        if card[:8].rstrip() == b"END":
            break
        if match := _STRUCTURE.match(card):
            key, value = match[1].upper(), match[2].strip()
            # Python refuses to make numbers of thousands of digits, a card holds 70.
            if not value.isdigit() or int(value) > _LIMITS.get(key, largest):
                text = value.decode("ascii", "replace")
                raise SpectrumError("damaged", f"{key.decode()} = {text} in the header; fetch it again")
            # As astropy does, the first of several is taken.
            found.setdefault(key, int(value))
    return found


def check_regular(path: str) -> int:
    """Size [bytes] of a regular file that holds something.

    Raises
    ------
    SpectrumError
        If it is another kind of place, or empty: a pipe or a device would be waited for, or read, forever.
    OSError, ValueError
        If it cannot be looked at.
    """
    found = os.stat(path)
    regular = stat.S_ISREG(found.st_mode)
    # The system's own files look regular and empty, whatever they give.
    if not regular or (not found.st_size and os.path.realpath(path).startswith(("/proc/", "/sys/"))):
        raise SpectrumError("unreadable", "is no regular file; take it off the inputs")
    if not found.st_size:
        raise SpectrumError("empty_file", "has 0 bytes; fetch it again")
    return found.st_size


class _Gzip(igzip.IGzipFile):
    """Goes to a place only to read there: astropy returns after each section, and there is no way back but anew.

    A header that was looked at is kept, so that it can be read again.
    """

    _at = 0
    _kept = (0, b"")
    furthest = 0
    limit = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def keep(self, at: int, data: bytes) -> None:
        self._kept = (at, data)

    def read(self, size: int = -1) -> bytes:
        size = self.limit if size < 0 else size
        start = self._at - self._kept[0]
        data = self._kept[1][start : start + size] if start >= 0 else b""
        self._at += len(data)
        if len(data) < size:
            super().seek(self._at)
            rest = super().read(size - len(data))
            self._at += len(rest)
            data += rest
        self.furthest = max(self.furthest, self._at)
        if self._at > self.limit:
            raise SpectrumError("too_large", f"inflates to over {self.limit} bytes; take it off the inputs")
        return data


@contextmanager
def open_fits(path: str) -> Iterator[Iterator[fits.hdu.base.ExtensionHDU]]:
    """The HDUs of a local file, gzipped or not, one after another, each if the file has room for what it claims.

    Of ``hdu.section`` only what is asked for is read; of a gzipped file in one pass, if asked in the file's order.
    Headers of megabytes, sizes no file has, and gzip that inflates to hundreds of times its size are refused before
    astropy sees them.

    Raises
    ------
    SpectrumError
        Whatever is wrong with the file, also from within the ``with`` block.

    Examples
    --------
    >>> with open_fits("nowhere.fits") as hdus:
    ...     names = [hdu.name for hdu in hdus]
    Traceback (most recent call last):
    ...
    hotdask.errors.SpectrumError: no such file; check the path
    """
    try:
        size = check_regular(path)
        with open(path, "rb") as plain, warnings.catch_warnings(action="ignore"):
            # Where astropy would take a damaged header for the end of the file.
            warnings.filterwarnings("error", "Error validating header")
            gzipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            stream = plain
            if gzipped:
                stream = _Gzip(fileobj=plain, mode="rb")
                stream.limit = _INFLATED[0] + _INFLATED[1] * size
            if not (start := stream.read(6)):
                raise SpectrumError("empty_file", "has 0 bytes; fetch it again")
            if start != b"SIMPLE":
                raise SpectrumError("not_fits", f"starts with {start!r}, not with SIMPLE; is it another kind of file?")
            first = _look(stream, 0)
            stream.seek(0)
            with fits.open(stream, memmap=False, lazy_load_hdus=True) as hdus:
                yield _walk(hdus, stream, first, size)
    except (SpectrumError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise SpectrumError("not_found", "no such file; check the path") from error
    # astropy raises whatever numpy does on garbage; all of it is this file's fault.
    except Exception as error:
        # To seek where no file can reach is an invalid argument.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            if error.errno in PASSING_ERRORS:
                why = f"cannot be read just now ({error.strerror}); run the command again"
                raise SpectrumError("io_error", why) from error
            why = f"cannot be read ({error.strerror}); check the path and its permissions"
            raise SpectrumError("unreadable", why) from error
        text = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
        reason = "truncated" if any(sign in text for sign in _CUT) else "damaged"
        raise SpectrumError(reason, f"astropy cannot read it ({text}); fetch it again") from error


def _look(stream, at: int, before: str = "") -> int:
    """Bytes of the header at a place, if its sizes are possible; 0 at the end of the file."""
    gzipped = isinstance(stream, _Gzip)
    if gzipped and stream.furthest < at:
        stream.seek(at - 1)
        if not stream.read(1):
            raise SpectrumError("truncated", f"the file ends within HDU '{before}'; fetch it again")
    stream.seek(at)
    start = stream.read(_BLOCK)
    if not start:
        return 0
    if at and not start.startswith(b"XTENSION"):
        raise SpectrumError("damaged", f"what begins at byte {at} is no header; fetch it again")
    # There is no way back in gzip.
    read = [start]
    header = read_header(lambda size: read.pop() if read else stream.read(size))
    if gzipped:
        stream.keep(at, header)
    sizes = check_sizes(header, _MAX_FILE)
    tile = math.prod(value for key, value in sizes.items() if key.startswith(b"ZTILE"))
    if tile > _MAX_TILE:
        raise SpectrumError("damaged", f"a header claims tiles of {tile} pixels; fetch it again")
    return len(header)


def _walk(hdus: fits.HDUList, stream, looked_at: int, size: int) -> Iterator[fits.hdu.base.ExtensionHDU]:
    gzipped = isinstance(stream, _Gzip)
    number = 0
    while looked_at:
        try:
            hdu = hdus[number]
        except IndexError:
            break
        if not isinstance(hdu, _KINDS) or hdu.size < 0 or hdu.header.get("TFIELDS", 0) > 999:
            raise SpectrumError("damaged", f"the header of HDU '{hdu.name}' is impossible; fetch it again")
        place = hdu.fileinfo()
        end = place["datLoc"] + place["datSpan"]
        if end > size * (_DEFLATED if gzipped else 1) or hdu.size > size * _DEFLATED:
            raise SpectrumError("truncated", f"the file ends within HDU '{hdu.name}'; fetch it again")
        if gzipped and end > stream.limit:
            raise SpectrumError("too_large", f"claims {end} bytes; take it off the inputs")
        yield hdu
        number += 1
        if number == _MAX_HDUS:
            raise SpectrumError("damaged", f"has over {_MAX_HDUS} HDUs; fetch it again")
        found = _look(stream, end, hdu.name)
        total = looked_at + found
        if total > _MAX_ALL_HEADERS:
            raise SpectrumError("damaged", f"its headers have over {_MAX_ALL_HEADERS} bytes; fetch it again")
        looked_at = total if found else 0
    # To astropy a stream that is cut ends there, but it says so when asked again.
    while stream.read(2**20):
        pass
