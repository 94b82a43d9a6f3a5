"""Whatever a file or an input table holds: a spectrum or a reason, a frame or an InputError."""

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotdask.config import Input
from hotdask.errors import InputError, SpectrumError
from hotdask.readers.inputs import list_inputs
from hotdask.readers.lamost import REASONS, read_spectrum

LAYOUTS = ("dr1", "dr5", "dr9")
_OPTIONS = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
_TYPES = st.sampled_from((">f4", ">f8", ">i2", ">i4", ">u1"))
_SPECIAL = st.sampled_from((np.nan, np.inf, -np.inf, 0.0, -1.0, 1e300, 3e38, 1e-45, 65535, 0.5))


def spectrum_or_reason(path) -> None:
    try:
        spectrum, refused = read_spectrum(path), None
    except SpectrumError as error:
        spectrum, refused = None, error.reason
    if spectrum is None:
        assert refused in REASONS
        return
    for name in ("flux", "ivar", "andmask", "ormask"):
        array = getattr(spectrum, name)
        assert array.shape == (3909,)
        assert array.dtype == (np.uint16 if "mask" in name else np.float32)
    assert np.isfinite(spectrum.flux).all()
    assert np.isfinite(spectrum.ivar).all()
    assert (spectrum.ivar >= 0).all()
    assert spectrum.meta["n_good"] == (spectrum.ivar > 0).sum() > 0


_CONTENT = given(
    layout=st.sampled_from(LAYOUTS),
    types=st.lists(_TYPES, min_size=5, max_size=5),
    spots=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3908), st.integers(1, 3909), _SPECIAL), max_size=5),
    sizes=st.lists(st.sampled_from((0, 1, 2, 3000, 3908, 3909)), min_size=5, max_size=5),
    equal=st.booleans(),
)


def check_content(zoo, folder, layout, types, spots, sizes, equal) -> None:
    path = zoo.write_good(folder, 1, layout)

    def odd(data):
        data = np.array(data, dtype=np.float64)
        for row, start, n, value in spots:
            data[row, start : start + n] = value
        return data

    with np.errstate(all="ignore"):
        if layout == "dr9":
            names = ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK")

            def change(arrays):
                rows = odd([arrays[name] for name in names])
                # astropy cannot write a table without any bytes.
                lengths = [sizes[0] or 3909] * 5 if equal or not any(sizes) else sizes
                forms = {">f4": "E", ">f8": "D", ">i2": "I", ">i4": "J", ">u1": "B"}
                made = [
                    zoo.fits.Column(name, f"{n}{forms[t]}", array=row[None, :n].astype(t))
                    for name, row, n, t in zip(names, rows, lengths, types, strict=True)
                ]
                return zoo.fits.BinTableHDU.from_columns(made, name="COADD")

            zoo.table(path, change)
        else:
            zoo.image(path, lambda data: odd(data)[:, : sizes[0] or 3909].astype(types[0]))
    spectrum_or_reason(path)


@settings(max_examples=40, **_OPTIONS)
@_CONTENT
def test_random_arrays(zoo, tmp_path, **drawn) -> None:
    check_content(zoo, tmp_path, **drawn)


@pytest.mark.long
@settings(max_examples=4000, **_OPTIONS)
@_CONTENT
def test_random_arrays_long(zoo, tmp_path, **drawn) -> None:
    check_content(zoo, tmp_path, **drawn)


_BYTES = given(
    layout=st.sampled_from(LAYOUTS),
    zipped=st.booleans(),
    changes=st.lists(st.tuples(st.floats(0, 0.9999), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6),
    header=st.booleans(),
)


def check_bytes(zoo, folder, layout, zipped, changes, header) -> None:
    path = zoo.write_good(folder, 1, layout)
    raw = path.read_bytes()
    raw = bytearray(gzip.compress(raw, 1) if zipped else raw)
    for spot, content in changes:
        at = int(spot * (min(8640, len(raw)) if header else len(raw)))
        raw[at : at + len(content)] = content
    path.write_bytes(raw)
    spectrum_or_reason(path)


@settings(max_examples=60, **_OPTIONS)
@_BYTES
def test_random_bytes_inside_files(zoo, tmp_path, **drawn) -> None:
    check_bytes(zoo, tmp_path, **drawn)


@pytest.mark.long
@settings(max_examples=5000, **_OPTIONS)
@_BYTES
def test_random_bytes_inside_files_long(zoo, tmp_path, **drawn) -> None:
    check_bytes(zoo, tmp_path, **drawn)


def frame_or_error(table) -> None:
    try:
        frame = list_inputs(Input(table=str(table)))
    except InputError:
        return
    assert frame["path"].is_unique
    assert len(frame)


@settings(max_examples=100, **_OPTIONS)
@given(st.text(st.sampled_from('path,rv"\n\r;\t 1.5aé\0#nan-'), max_size=60), st.booleans())
def test_random_csv(tmp_path, text, header) -> None:
    table = tmp_path / "t.csv"
    table.write_text(("path,rv,note\n" if header else "") + text, encoding="utf-8", newline="")
    frame_or_error(table)


def test_rows_longer_than_the_header_are_refused(tmp_path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,rv\nx/a.fits,1.5,2\nx/b.fits,2.5,3\n")
    with pytest.raises(InputError, match="more values than the header"):
        list_inputs(Input(table=str(table)))


_CELLS = st.one_of(st.none(), st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=5), st.booleans())


@settings(max_examples=60, **_OPTIONS)
@given(st.lists(st.tuples(_CELLS, _CELLS), min_size=1, max_size=4), st.sampled_from(("path", "rv", "ra", "x")))
def test_random_parquet(tmp_path, rows, name) -> None:
    frame = pd.DataFrame(rows, columns=["path", name] if name != "path" else ["path", "y"], dtype=object)
    for column in frame:
        if frame[column].map(type).nunique() > 1:
            frame[column] = frame[column].map(str)
    frame.to_parquet(tmp_path / "t.parquet")
    frame_or_error(tmp_path / "t.parquet")
