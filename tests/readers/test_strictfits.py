"""The direct parse of FITS against astropy: the same numbers and the same refusals, or no answer at all."""

import io
import os

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotdask.errors import SpectrumError
from hotdask.readers import lamost
from hotdask.readers.lamost import read_spectrum
from hotdask.readers.strictfits import parse_strict
from hotdask.simulation.lamost_writer import write_lamost
from hotdask.windows import observed_wavelength

LAYOUTS = ("dr1", "dr5", "dr9")
NAME = "spec-55859-EG0126_F_2_sp01-005.fits"
N = 120
META = {
    "obsid": 101005,
    "ra": 332.535456,
    "dec": -2.116436,
    "rv": -75.08,
    "rv_err": 7.9,
    "snr_g": 8.08,
    "lmjd": 55859,
    "planid": "EG0126_F_2",
    "spid": 1,
    "fiberid": 5,
    "class": "STAR",
    "subclass": "A1V",
    "release": "LAMOST DR5",
}
STRUCTURE = ("SIMPLE", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "EXTEND", "PCOUNT", "GCOUNT", "TFIELDS")
# Keywords astropy looks at, or that change what others mean.
SPECIAL = (
    *("BSCALE", "BZERO", "BLANK", "GROUPS", "CHECKSUM", "DATASUM", "THEAP", "ZIMAGE", "INHERIT", "XTENSION"),
    *("EXTNAME", "EXTVER", "TTYPE1", "TTYPE3", "TTYPE7", "TFORM1", "TFORM3", "TFORM6"),
    *("TSCAL1", "TZERO1", "TNULL1", "TDIM1", "TUNIT1", "TDISP1"),
    *("END", "CONTINUE", "COMMENT", "HISTORY", "HIERARCH", ""),
)
VALUES = (
    *("T", "F", "1", "-1", "+1", "007", "0", "2", "5", "8", "16", "-32", "-64", "99999999999", "123456789012345678901"),
    *("1.5", "1.", "-.5", "1E5", "1e5", "1D5", "1d-5", "1E 5", "- 5", "1E400", "-0.0", "nan", "0x1", "1_0", "(1,2)"),
    *("'a'", "''", "'   '", "'a''b'", "'a'' / b'", "'A.B: 3'", "'a: 1'", "'a", "'x' c", "'x'/c", "'x' / it's"),
    *("'' / it's x' / y", "5/", "5 6", "T/", "TRUE", "", "= =", "'abc&'", "\0", "1\0", "\x7f", "\xe9", "'\xe9'", "1\t"),
    *("'IMAGE'", "'BINTABLE'", "'FLUX'", "'flux'", "'WAVELENGTH'", f"'{N}E'", f"'{N}D'", f"'{N}J'", "'E'", "'1PE(5)'"),
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return Originals((layout, written(folder, layout)) for layout in LAYOUTS)


class Originals(dict):
    def __repr__(self):
        return "files"  # hypothesis prints its arguments


def written(folder, layout, n=N):
    rng = np.random.default_rng(7)
    path = folder / NAME
    write_lamost(
        path,
        layout=layout,
        meta=META,
        flux=rng.normal(1000, 50, n),
        ivar=rng.uniform(0, 2, n),
        andmask=rng.choice([0, 4], n),
        ormask=rng.choice([0, 4, 64], n),
        wavelength=observed_wavelength()[:n],
    )
    return path.read_bytes()


def card(key, value):
    return f"{key:<8}= {value}".ljust(80)[:80].encode("latin-1")


def replaced(raw, key, value, start=0):
    at = next(i for i in range(start, len(raw), 80) if raw[i : i + 10] == f"{key:<8}= ".encode())
    return raw[:at] + card(key, value) + raw[at + 80 :]


def inserted(raw, image, start=0):
    """The image in place of a header's END, which moves into the padding."""
    end = raw.index(b"END".ljust(80), start)
    assert (end - start) % 2880 + 80 + len(image) <= 2880
    return raw[:end] + image + b"END".ljust(80) + raw[end + 80 + len(image) :]


def outcome(read, *args):
    try:
        return read(*args)
    except SpectrumError as error:
        return error.reason, error.detail


def same_file(found, expected):
    """Equal refusals, or cards and rows equal in value, type and order, bit by bit."""
    if not isinstance(expected[0], dict):
        assert found == expected
        return
    assert repr(found[0]) == repr(expected[0])
    assert len(found[1]) == len(expected[1]) == 5
    for row, other in zip(found[1], expected[1], strict=True):
        assert (row is None) == (other is None)
        if row is not None:
            assert row.dtype == other.dtype
            assert row.shape == other.shape
            assert row.tobytes() == other.tobytes()


def same_reading(raw):
    """Whether the direct parse answered; if so as astropy does."""
    direct = outcome(lamost._read_strictly, raw)
    if direct is not None:
        same_file(direct, outcome(lamost._read_with_astropy, raw))
    return direct is not None


# What the survey and the writer write


def test_every_real_file_is_read_directly_and_as_by_astropy(lamost_files):
    paths = sorted(path for path in lamost_files.glob("dr*/*") if ".fits" in path.name)
    assert len(paths) == 362
    for path in paths:
        assert same_reading(lamost._read_bytes(os.fspath(path))), path


@pytest.mark.parametrize("n", [2, N, 3909])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_written_files_are_read_directly_and_as_by_astropy(tmp_path, layout, n):
    assert same_reading(written(tmp_path, layout, n))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reading_is_that_of_plain_astropy(originals, layout):
    cards, data = parse_strict(originals[layout], ("RA", "FILENAME", "SPID", "VACUUM", "NOTHERE"))
    assert {key: type(value) for key, value in cards.items()} == {
        "RA": float,
        "FILENAME": str,
        "SPID": int,
        "VACUUM": bool,
        "NOTHERE": type(None),
    }
    with fits.open(io.BytesIO(originals[layout])) as hdus:
        for key in ("RA", "FILENAME", "SPID", "VACUUM"):
            assert cards[key] == hdus[0].header[key]
        if layout == "dr9":
            assert list(data) == hdus[1].columns.names
            for name, column in data.items():
                np.testing.assert_array_equal(column, hdus[1].data[name][0])
        else:
            np.testing.assert_array_equal(data, hdus[0].data)


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("                   1 / one", 1),
        ("-007", -7),
        ("123456789012345678901", 123456789012345678901),
        ("1.", 1.0),
        ("-.5/half", -0.5),
        ("1E-05", 1e-5),
        ("1E400", float("inf")),
        ("-0.0", -0.0),
        ("T", True),
        ("                   F / not / it", False),
        ("'  a b  ' / c", "  a b"),
        ("''", ""),
        ("'        '           /", ""),
        ("'1.5'", "1.5"),
    ],
)
def test_plain_values(originals, text, value):
    raw = replaced(originals["dr5"], "Z_ERR", text)
    (cards, _) = parse_strict(raw, ("Z_ERR",))
    assert repr(cards["Z_ERR"]) == repr(value)
    assert type(cards["Z_ERR"]) is type(value)
    assert same_reading(raw)


@pytest.mark.parametrize(
    "text",
    [
        *("", "/ undefined", "'a''b'", "'a'' / b'", "'a: 1'", "'a", "a'", "'x' y", "'x' / it's", "1D5", "1e5", "1E 5"),
        *("- 5", "1 2", "TRUE", "t", "nan", "0x1", "1_0", "(1, 2)", ".", "E5", "= 1"),
        *("1\0", "\0", "\xe9", "1\t", "1 / \xe9"),
    ],
)
def test_other_values_are_left_to_astropy(originals, text):
    assert parse_strict(replaced(originals["dr5"], "Z_ERR", text), ("Z_ERR",)) is None
    # Where nobody asks for the value it does no harm, unless astropy reads bytes that are not ASCII otherwise.
    asked_not = parse_strict(replaced(originals["dr5"], "Z_ERR", text), ("RA",))
    assert (asked_not is None) == (not text.isprintable() or not text.isascii())


# Structure


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize(
    "image",
    [
        card("Z", 0.001),
        card("z", 0.001),
        card("Z", "'A: 1'"),
        b" Z      = 0.001".ljust(80),
        b"Z= 0.001".ljust(80),
        b"Z       =0.001".ljust(80),
        b"Z".ljust(80),
        b"HIERARCH Z = 0.001".ljust(80),
        b"CONTINUE  'more'".ljust(80),
        card("CONTINUE", "'more'"),
        b"END    x".ljust(80),
        card("END", 1),
        b"\0".ljust(80),
        b"COMMENT \xe9".ljust(80),
        b"COMMENTS go on".ljust(80),
        *(card(key, 1) for key in ("GROUPS", "BSCALE", "BZERO", "BLANK", "PCOUNT", "GCOUNT", "NAXIS3", "NAXIS")),
        *(card(key, 0) for key in ("TFIELDS", "THEAP", "CHECKSUM", "DATASUM", "ZIMAGE", "EXTEND")),
    ],
)
def test_odd_cards_are_left_to_astropy(originals, image, start):
    raw = originals["dr9" if start else "dr5"]
    assert parse_strict(inserted(raw, image, raw.index(b"XTENSION") if start else 0), ()) is None


@pytest.mark.parametrize("image", [card("NEW", "unparsable ="), b"COMMENT Z       = 5".ljust(80), b" " * 80])
def test_cards_nobody_asks_for_do_no_harm(originals, image):
    assert same_reading(inserted(originals["dr5"], image))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("SIMPLE", "F"), ("EXTEND", "F"), ("BITPIX", -64), ("BITPIX", 16), ("BITPIX", "-32.0"), ("NAXIS", 1)),
        *(("NAXIS1", N + 25), ("NAXIS1", -N), ("NAXIS1", f"+{N}"), ("NAXIS1", f"{N}.0"), ("NAXIS2", 99999999999)),
    ],
)
def test_other_images_are_left_to_astropy(originals, key, value):
    assert parse_strict(replaced(originals["dr5"], key, value), ()) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("BITPIX", 16), ("NAXIS", 1), ("NAXIS1", 4), ("NAXIS1", 24 * N + 1), ("NAXIS2", 2), ("NAXIS2", "+1")),
        *(("PCOUNT", 4), ("GCOUNT", 2), ("TFIELDS", 5), ("TFIELDS", 7), ("TFIELDS", 9999999), ("EXTNAME", 1)),
        *(("TTYPE1", "'IVAR'"), ("TTYPE1", "'flux'"), ("TTYPE1", "''"), ("TTYPE1", "'FL UX'"), ("XTENSION", "'IMAGE'")),
        *(("TFORM1", f"'{N}J'"), ("TFORM1", f"'{N}D'"), ("TFORM1", "'E'"), ("TFORM1", f"'{N}E  x'"), ("TFORM1", N)),
    ],
)
def test_other_tables_are_left_to_astropy(originals, key, value):
    raw = originals["dr9"]
    assert parse_strict(replaced(raw, key, value, raw.index(b"XTENSION")), ()) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_short_or_long_are_left_to_astropy(originals, layout):
    raw = originals[layout]
    for other in (raw[:-1], raw[:-2880], raw[:2880], raw[:80], b"", raw + b"\0", raw + b"\0" * 2880):
        assert parse_strict(other, ()) is None


def test_stale_axes_of_an_empty_primary_must_be_small(originals):
    # 'NAXIS1 = 99999999999' is damage to astropy's path, even where NAXIS = 0.
    raw = replaced(originals["dr9"], "NAXIS1", 99999999999)
    assert parse_strict(raw, ()) is None
    assert same_reading(replaced(originals["dr9"], "NAXIS1", 9999999))


# Whatever the bytes are


def both_ways(folder, raw):
    """read_spectrum with the direct parse and without."""
    path = folder / NAME
    path.write_bytes(raw)
    found = outcome(read_spectrum, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lamost, "parse_strict", lambda raw, keys: None)
        expected = outcome(read_spectrum, path)
    return found, expected


def same_spectrum(found, expected):
    if isinstance(expected, tuple):
        assert found == expected
        return
    for name in ("flux", "ivar", "andmask", "ormask"):
        array, other = getattr(found, name), getattr(expected, name)
        assert array.dtype == other.dtype
        assert array.tobytes() == other.tobytes()
    assert repr(found.meta) == repr(expected.meta)


_KEYS = st.sampled_from((*lamost._CARDS, *STRUCTURE, *SPECIAL))
_FORMS = st.sampled_from(("{:<8}= ",) * 4 + ("{}= ", " {:<7}= ", "{:<8}=", "{:<8}  ", "HIERARCH {} = ", "{:<9}= "))
_TEXTS = st.one_of(
    st.sampled_from(VALUES),
    st.sampled_from(VALUES).map("{:>20} / of it".format),
    st.floats().map(str),
    st.integers().map(str),
    st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=70),
)
_IMAGES = st.tuples(_FORMS, _KEYS, _TEXTS).map(
    lambda parts: (parts[0].format(parts[1]) + parts[2]).ljust(80)[:80].encode("latin-1")
)
_SPOTS = st.floats(0, 0.9999)
_CHANGES = st.one_of(
    st.tuples(st.just("value"), _SPOTS, _TEXTS),
    st.tuples(st.just("card"), _SPOTS, _IMAGES),
    st.tuples(st.just("new"), _SPOTS, _IMAGES),
    st.tuples(st.just("copy"), _SPOTS, _SPOTS),
    st.tuples(st.just("byte"), _SPOTS, st.integers(0, 255)),
    st.tuples(st.just("cut"), _SPOTS, st.sampled_from((1, 80, 2880))),
    st.tuples(st.just("fill"), _SPOTS, st.sampled_from((b"\0", b" " * 80, b" " * 2880))),
    st.tuples(st.just("end"), _SPOTS, st.sampled_from((-2880, -100, -1, 1, 2880))),
)


def changed(raw, changes):
    raw = bytearray(raw)
    for kind, spot, what in changes:
        second = raw.find(b"XTENSION")
        start = second if second > 0 and spot > 0.6 else 0
        end = max(raw.find(b"END".ljust(80), start), start + 80)
        at = start + int(spot * 1000) % max((end - start) // 80, 1) * 80
        if kind == "value":
            raw[at + 10 : at + 80] = what.ljust(70)[:70].encode("latin-1")
        elif kind == "card":
            raw[at : at + 80] = what
        elif kind == "new":
            raw[end : end + 160] = what + b"END".ljust(80)
        elif kind == "copy":
            other = start + int(what * (end - start) / 80) * 80
            raw[at : at + 80] = raw[other : other + 80]
        elif kind == "byte":
            raw[min(start + int(spot * (end - start + 200)), len(raw) - 1)] = what
        elif kind == "cut":
            del raw[at : at + what]
        elif kind == "fill":
            raw[at:at] = what
        elif what < 0:
            del raw[what:]
        else:
            raw += bytes(what)
    return bytes(raw)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(LAYOUTS), st.lists(_CHANGES, max_size=3))
def test_changed_files_read_the_same_with_and_without_the_direct_parse(tmp_path, originals, layout, changes):
    same_spectrum(*both_ways(tmp_path, changed(originals[layout], changes)))
