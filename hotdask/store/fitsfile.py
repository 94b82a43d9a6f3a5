"""FITS files too large to be taken in whole, as astropy opens them; what is wrong with one is a `SpectrumError`."""

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from astropy.io import fits
from isal import igzip

from hotdask.errors import SpectrumError

_DEFLATED = 1032
"""Bytes that one of deflate's can stand for; no header is believed that claims more."""
_CUT = ("EOFError", "Header size is not multiple", "Header missing END")
"""Words of errors about files that end too early."""
_KINDS = (fits.PrimaryHDU, fits.ImageHDU, fits.BinTableHDU, fits.TableHDU)


class _Gzip(igzip.IGzipFile):
    """Goes to a place only to read there: astropy returns after each section, and there is no way back but anew."""

    _at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        super().seek(self._at)
        data = super().read(size)
        self._at += len(data)
        return data


@contextmanager
def open_fits(path: str) -> Iterator[Iterator[fits.hdu.base.ExtensionHDU]]:
    """The HDUs of a local file, gzipped or not, one after another, each if the file has room for what it claims.

    Of ``hdu.section`` only what is asked for is read; of a gzipped file in one pass, if asked in the file's order.
    Files made to do harm are not guarded against: gigabytes of zeros in gzip where a header belongs, or an image of
    10⁹ axes.

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
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise SpectrumError("unreadable", "is no regular file; take it off the inputs")
        with open(path, "rb") as plain, warnings.catch_warnings(action="ignore"):
            # Where astropy would take a damaged header for the end of the file.
            warnings.filterwarnings("error", "Error validating header")
            gzipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            stream = _Gzip(fileobj=plain, mode="rb") if gzipped else plain
            if not (start := stream.read(6)):
                raise SpectrumError("empty_file", "has 0 bytes; fetch it again")
            if start != b"SIMPLE":
                raise SpectrumError("not_fits", f"starts with {start!r}, not with SIMPLE; is it another kind of file?")
            stream.seek(0)
            with fits.open(stream, memmap=False, lazy_load_hdus=True) as hdus:
                yield _walk(hdus, stream, found.st_size, gzipped)
    except (SpectrumError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise SpectrumError("not_found", "no such file; check the path") from error
    # astropy raises whatever numpy does on garbage; all of it is this file's fault.
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            why = f"cannot be read ({error.strerror}); check the path and its permissions"
            raise SpectrumError("unreadable", why) from error
        text = " ".join(f"{type(error).__name__}: {error}".split())
        reason = "truncated" if any(sign in text for sign in _CUT) else "damaged"
        raise SpectrumError(reason, f"astropy cannot read it ({text}); fetch it again") from error


def _walk(hdus: fits.HDUList, stream, size: int, gzipped: bool) -> Iterator[fits.hdu.base.ExtensionHDU]:
    for hdu in hdus:
        if not isinstance(hdu, _KINDS) or hdu.size < 0 or hdu.header.get("TFIELDS", 0) > 999:
            raise SpectrumError("damaged", f"the header of HDU '{hdu.name}' is impossible; fetch it again")
        place = hdu.fileinfo()
        end = place["datLoc"] + place["datSpan"]
        if end > size * (_DEFLATED if gzipped else 1) or hdu.size > size * _DEFLATED:
            raise SpectrumError("truncated", f"the file ends within HDU '{hdu.name}'; fetch it again")
        yield hdu
    # To astropy a stream that is cut ends there, but it says so when asked again.
    while stream.read(2**20):
        pass
