"""FITS bytes to cards and numbers, if they are strictly well formed; None where astropy might read them otherwise.

Nine tenths of the time astropy needs for a small file go into objects for a hundred header cards of which few are
wanted. What is accepted here is far less than FITS allows, so that there is nothing to interpret: unique keywords in
capitals, structure in the order of the standard, 32-bit floats, nothing scaled, the file neither short nor long. On
everything else astropy decides, what is wrong with it as well.
"""

import re
from collections.abc import Iterable

import numpy as np

MAX_HEADER_BYTES = 2**20
"""A header of the survey has 0.02 MB; one without an end must not be parsed forever."""

_CARD_LENGTH = 80
_BLOCK = 2880
_END = b"END".ljust(_CARD_LENGTH)
_END_BLOCK = b"END".ljust(_BLOCK)
# Keyword and the rest of a card, or (two empty groups) a comment. Either alternative is 80 characters long.
_CARD = re.compile(rb"(?=.{8}= )([A-Z0-9_-]+) *= ([ -~]{70})|(?:COMMENT |HISTORY | {8})[ -~]{72}")
# One kind of value a group, in the order of `_TYPES`. A colon could make a string a record of keywords, a second pair
# of quotes could end it elsewhere.
_VALUE = re.compile(
    rb" *(?:'([^':]*)'|([TF])|([+-]?[0-9]+)|([+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=E))(?:E[+-]?[0-9]+)?))"
    rb" *(?:/[^']*)?"
)
_TYPES = (lambda text: text.rstrip(b" ").decode("ascii"), lambda text: text == b"T", int, float)
_PRIMARY = (b"SIMPLE", b"BITPIX", b"NAXIS", b"NAXIS1", b"NAXIS2")
_TABLE = (b"XTENSION", b"BITPIX", b"NAXIS", b"NAXIS1", b"NAXIS2", b"PCOUNT", b"GCOUNT", b"TFIELDS")
# Whatever else astropy looks at in a primary header, and keywords that are no keywords.
_DENIED = frozenset(
    b"BSCALE BZERO BLANK PCOUNT GCOUNT GROUPS TFIELDS THEAP CHECKSUM DATASUM XTENSION ZIMAGE".split()
    + b"HIERARCH CONTINUE COMMENT HISTORY END".split()
)
_SIZE = re.compile(rb" *([0-9]{1,7}) *(?:/.*)?")
_FORM = re.compile(r"([1-9][0-9]{0,6})E")
_ITEM = 4


def parse_strict(raw: bytes, keys: Iterable[str]) -> tuple[dict, np.ndarray | dict[str, np.ndarray]] | None:
    """Cards and data of a file that is a 2-D image, or a table of one row after an empty primary array.

    Parameters
    ----------
    raw : bytes
        The whole file, inflated.
    keys : iterable of str
        Keywords of the primary header to read.

    Returns
    -------
    cards : dict
        str, bool, int or float per key; None where the header has no such card.
    data : (NAXIS2, NAXIS1) >f4, or dict of (n,) >f4
        The image, or the columns by name; read-only views of ``raw``.

    Instead of both None, where the bytes leave any doubt how astropy reads them.

    References
    ----------
    FITS Standard 4.0 (Pence et al. 2010, A&A 524, A42, and later), sections 4 and 7.3.
    """
    found = _header(raw, 0, _PRIMARY)
    if found is None or not _DENIED.isdisjoint(found[0]):
        return None
    header, at = found
    # Not one NAXISn beyond those two.
    if raw.find(b"NAXIS", len(_PRIMARY) * _CARD_LENGTH, at) >= 0:
        return None
    cards = {}
    for key in keys:
        text = header.get(key.encode("ascii"))
        value = None if text is None else _value(text)
        if value is None and text is not None:
            return None
        cards[key] = value
    simple, bitpix, extend = (_value(header.get(key, b"")) for key in (b"SIMPLE", b"BITPIX", b"EXTEND"))
    naxis, width, height = sizes = [_size(header[key]) for key in _PRIMARY[2:]]
    if simple is not True or extend is not True or type(bitpix) is not int or None in sizes:
        return None
    if (bitpix, naxis) == (-32, 2):
        n = width * height
        if n == 0 or len(raw) != _padded(at + _ITEM * n):
            return None
        return cards, np.frombuffer(raw, ">f4", n, at).reshape(height, width)
    if (bitpix, naxis) in ((8, 0), (16, 0)) and (columns := _columns(raw, at)) is not None:
        return cards, columns
    return None


def _header(raw: bytes, start: int, first: tuple[bytes, ...]) -> tuple[dict[bytes, bytes], int] | None:
    """Text behind each keyword, and where the header's last block ends; the first keywords must be these."""
    end = raw.find(_END, start, start + MAX_HEADER_BYTES)
    n_cards, rest = divmod(end - start, _CARD_LENGTH)
    stop = _padded(end + _CARD_LENGTH)
    if end < 0 or rest or raw[end:stop] != _END_BLOCK[: stop - end]:
        return None
    pairs = _CARD.findall(raw, start, end)
    named = [pair for pair in pairs if pair[0]]
    header = dict(named)
    if len(pairs) != n_cards or len(header) != len(named):
        return None
    in_order = tuple(key for key, _ in pairs[: len(first)]) == first
    return (header, stop) if in_order else None


def _value(text: bytes) -> str | bool | int | float | None:
    match = _VALUE.fullmatch(text)
    return _TYPES[match.lastindex - 1](match[match.lastindex]) if match else None


def _size(text: bytes) -> int | None:
    match = _SIZE.fullmatch(text)
    return int(match[1]) if match else None


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // _BLOCK) * _BLOCK


def _columns(raw: bytes, start: int) -> dict[str, np.ndarray] | None:
    found = _header(raw, start, _TABLE)
    if found is None:
        return None
    header, at = found
    kind, *sizes = _value(header.pop(b"XTENSION")), *(_size(header.pop(key)) for key in _TABLE[1:])
    bitpix, naxis, width, height, heap, groups, n_columns = sizes
    if kind != "BINTABLE" or None in sizes or (bitpix, naxis, height, heap, groups) != (8, 2, 1, 0, 1):
        return None
    if len(header) != 1 + 2 * n_columns:
        return None
    numbers = range(1, n_columns + 1)
    texts = {key: _value(text) for key, text in header.items()}
    wanted = {b"EXTNAME", *(b"%s%d" % (stem, i) for stem in (b"TTYPE", b"TFORM") for i in numbers)}
    if texts.keys() != wanted or not all(type(text) is str for text in texts.values()):
        return None
    # Medium resolution has tables of like columns, called otherwise.
    if texts[b"EXTNAME"] != "COADD":
        return None
    columns, end = {}, at + width
    for i in numbers:
        form = _FORM.fullmatch(texts[b"TFORM%d" % i])
        name = texts[b"TTYPE%d" % i]
        # A column of one number is a scalar to astropy.
        if form is None or form[1] == "1" or not name.isalpha() or not name.isupper() or name in columns:
            return None
        size = int(form[1])
        if at + _ITEM * size > min(end, len(raw)):
            return None
        columns[name] = np.frombuffer(raw, ">f4", size, at)
        at += _ITEM * size
    return columns if at == end and len(raw) == _padded(end) else None
