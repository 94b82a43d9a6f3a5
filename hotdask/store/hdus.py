"""FITS files that hold many arrays, read from front to back: what is wanted of each, and no more of it in memory.

For files too large to be taken in whole (hundreds of megabytes, gzipped or not). Whatever is wrong with one is a
`hotdask.errors.SpectrumError`.
"""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from astropy.io import fits
from isal import igzip, isal_zlib

from hotdask.errors import SpectrumError
from hotdask.store.strictfits import MAX_HEADER_BYTES

MAX_TABLE = 256 * 2**20
"""Bytes of a table, or of a compressed image, which are taken in whole."""
MAX_IMAGE = 16 * 2**30
"""Bytes of an image; a gzip bomb must not keep a worker busy for long."""
_MAX_HDUS = 200
_BLOCK = 2880
_PIECE = 2**20
_DTYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


class Hdu:
    """One header and, until the next is asked for, its data.

    Attributes
    ----------
    name : str
        EXTNAME in upper case; empty if there is none.
    header : astropy.io.fits.Header
    shape : tuple of int
        Of the array, slowest axis first.
    """

    def __init__(self, header: fits.Header, stream):
        self.header, self._stream = header, stream
        self.name = str(header.get("EXTNAME", "")).strip().upper()
        axes = [_count(header, f"NAXIS{i + 1}") for i in range(_count(header, "NAXIS", most=9))]
        bits = header.get("BITPIX")
        if bits not in _DTYPES:
            raise SpectrumError("damaged", f"BITPIX = {bits} in the header of {self._called}; fetch it again")
        self.shape = tuple(reversed(axes))
        self._dtype = np.dtype(_DTYPES[bits])
        size = int(np.prod([int(axis) for axis in axes], dtype=object)) if axes else 0
        extra = _count(header, "PCOUNT", default=0) if header.get("XTENSION") else 0
        self.size = self._dtype.itemsize * (size + extra)
        if self.size > MAX_IMAGE:
            raise SpectrumError("damaged", f"{self._called} has {self.size} bytes by its header; fetch it again")
        self._at = 0

    @property
    def _called(self) -> str:
        return f"HDU {self.name}" if self.name else "the first HDU"

    def whole(self) -> "fits.hdu.base.ExtensionHDU":
        """The HDU as astropy reads it: a table, or an image that may be compressed."""
        if self.size > MAX_TABLE:
            raise SpectrumError("too_large", f"{self._called} has {self.size} bytes; take it off the inputs")
        # astropy would begin to list them.
        _count(self.header, "TFIELDS", most=999, default=0)
        shown = self.shape
        if self.header.get("ZIMAGE"):
            shown = [_count(self.header, f"ZNAXIS{i + 1}") for i in range(_count(self.header, "ZNAXIS", most=9))]
            if np.prod(shown, dtype=object) * 4 > MAX_TABLE:
                raise SpectrumError("damaged", f"{self._called} is {shown} by its header; fetch it again")
        data = self._read(self.size)
        first = fits.PrimaryHDU().header.tostring()
        raw = first + self.header.tostring()
        raw = raw.encode("latin-1") + data + bytes(-len(data) % _BLOCK)
        return fits.open(io.BytesIO(raw), memmap=False)[1]

    def image(self) -> np.ndarray:
        """All of an image, in the machine's byte order."""
        if self.header.get("ZIMAGE"):
            return np.asarray(self.whole().data)
        values = np.frombuffer(self._read(self.size), self._dtype, int(np.prod(self.shape, dtype=np.int64)))
        return self._scaled(values.reshape(self.shape))

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        """Some rows of an image (its slowest axis), in increasing order; only they are held in memory."""
        if self.header.get("ZIMAGE"):
            return np.asarray(self.whole().data)[wanted]
        out = np.empty((len(wanted), *self.shape[1:]), self._dtype)
        for i, row in self._each(wanted):
            out[i] = row
        return self._scaled(out)

    def _each(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        n = int(np.prod(self.shape[1:], dtype=np.int64))
        for i, row in enumerate(wanted):
            self._skip_to(int(row) * n * self._dtype.itemsize)
            yield i, np.frombuffer(self._read(n * self._dtype.itemsize), self._dtype, n).reshape(self.shape[1:])

    def batches(self, wanted: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """`rows`, some at a time."""
        for start in range(0, len(wanted), size):
            yield self.rows(wanted[start : start + size])

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        values = values.astype(values.dtype.newbyteorder("="))
        zero, scale = self.header.get("BZERO", 0), self.header.get("BSCALE", 1)
        return values if (zero, scale) == (0, 1) else values * float(scale) + float(zero)

    def _read(self, n: int) -> bytes:
        data = self._stream.read(n)
        self._at += len(data)
        if len(data) < n:
            raise SpectrumError("truncated", f"the file ends within {self._called}; fetch it again")
        return data

    def _skip_to(self, at: int) -> None:
        if at > self._at:
            self._stream.skip(at - self._at, self._called)
            self._at = at

    def leave(self) -> None:
        """Go to the next header."""
        self._skip_to(self.size)
        self._stream.pad(-self.size % _BLOCK)


class _Stream:
    """Bytes of a file, inflated if need be, that can be skipped forward."""

    def __init__(self, path: str):
        self._plain = open(path, "rb")  # noqa: SIM115
        gzipped = self._plain.read(2) == b"\x1f\x8b"
        self._plain.seek(0)
        self._file = igzip.IGzipFile(fileobj=self._plain, mode="rb") if gzipped else self._plain
        self._left = None if gzipped else os.fstat(self._plain.fileno()).st_size

    def close(self) -> None:
        self._plain.close()

    def read(self, n: int) -> bytes:
        if self._left is not None:
            # A header that claims more than the file has must not reserve it.
            n = min(n, self._left)
            self._left -= n
            return self._file.read(n)
        pieces = []
        while n > 0 and (piece := self._file.read(min(n, _PIECE))):
            pieces.append(piece)
            n -= len(piece)
        return b"".join(pieces)

    def skip(self, n: int, called: str) -> None:
        if self._left is not None and n <= self._left:
            self._left -= n
            self._file.seek(n, os.SEEK_CUR)
            return
        while n > 0 and self._left is None and (piece := self._file.read(min(n, _PIECE))):
            n -= len(piece)
        if n > 0:
            raise SpectrumError("truncated", f"the file ends within {called}; fetch it again")

    def pad(self, n: int) -> None:
        """Skip what fills a block; the last one may lack it."""
        self.read(n)


@contextmanager
def opened(path: str) -> Iterator[Iterator[Hdu]]:
    """The HDUs of a file, one after another.

    Parameters
    ----------
    path : str
        A local file, gzipped or not.

    Yields
    ------
    iterator of Hdu
        Data of an HDU can be read until the next is asked for.

    Raises
    ------
    SpectrumError
        If the file cannot be had, is cut, or is no FITS file; also from within the ``with`` block, whatever astropy or
        numpy raise there.

    Examples
    --------
    >>> with opened("nowhere.fits") as hdus:
    ...     names = [hdu.name for hdu in hdus]
    Traceback (most recent call last):
    ...
    hotdask.errors.SpectrumError: no such file; check the path
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SpectrumError("unreadable", "is no regular file; take it off the inputs")
        stream = _Stream(path)
    except FileNotFoundError as error:
        raise SpectrumError("not_found", "no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise _unreadable(error) from error
    try:
        with warnings.catch_warnings(action="ignore"):
            yield _walk(stream)
    except (SpectrumError, MemoryError):
        raise
    except EOFError as error:
        raise SpectrumError("truncated", "the gzip stream ends too early; fetch it again") from error
    except (igzip.BadGzipFile, isal_zlib.error) as error:
        raise SpectrumError("damaged", f"the gzip stream is damaged ({error}); fetch it again") from error
    except OSError as error:
        raise _unreadable(error) from error
    # astropy raises whatever numpy does on garbage; all of it is this file's fault.
    except Exception as error:
        raise SpectrumError(
            "damaged", f"astropy cannot read it ({type(error).__name__}: {error}); fetch it again"
        ) from error
    finally:
        stream.close()


def _unreadable(error: Exception) -> SpectrumError:
    text = getattr(error, "strerror", None) or error
    return SpectrumError("unreadable", f"cannot be read ({text}); check the path and its permissions")


def _walk(stream: _Stream) -> Iterator[Hdu]:
    for number in range(_MAX_HDUS):
        header = _header(stream, number)
        if header is None:
            return
        hdu = Hdu(header, stream)
        yield hdu
        hdu.leave()
    raise SpectrumError("damaged", f"has over {_MAX_HDUS} HDUs; fetch it again")


def _header(stream: _Stream, number: int) -> fits.Header | None:
    raw = bytearray()
    while True:
        block = stream.read(_BLOCK)
        if not raw and not number and not block:
            raise SpectrumError("empty_file", "has 0 bytes; fetch it again")
        # What stands behind the last HDU is none.
        if not raw and number and not block.startswith(b"XTENSION"):
            return None
        if not raw and not number and not block.startswith(b"SIMPLE"):
            raise SpectrumError("not_fits", f"starts with {block[:8]!r}, not with SIMPLE; is it another kind of file?")
        if len(block) < _BLOCK:
            raise SpectrumError("truncated", "the file ends within a header; fetch it again")
        raw += block
        if any(block[i : i + 80].rstrip() == b"END" for i in range(0, _BLOCK, 80)):
            return fits.Header.fromstring(bytes(raw).decode("latin-1"))
        if len(raw) >= MAX_HEADER_BYTES:
            raise SpectrumError("damaged", f"a header has over {MAX_HEADER_BYTES} bytes; fetch it again")


def _count(header: fits.Header, key: str, *, most: int = 2**40, default: int | None = None) -> int:
    value = header.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise SpectrumError("damaged", f"{key} = {value} in a header; fetch it again")
    return value
