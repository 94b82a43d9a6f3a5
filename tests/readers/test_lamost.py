"""LAMOST files against plain astropy, real files, and whatever bytes hypothesis can think of."""

import csv
import gzip
import io
import os
import pickle
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotdask import schema
from hotdask.errors import InputError, SpectrumError
from hotdask.labels import LSF_NAMES
from hotdask.readers import lamost
from hotdask.readers.lamost import OVERRIDES, REASONS, read_spectra, read_spectrum
from hotdask.report.spectrum import page_name
from hotdask.simulation.lamost_writer import write_lamost
from hotdask.windows import observed_wavelength

C = 299792.458
LAYOUTS = ("dr1", "dr5", "dr9")
N = 3909
META = {
    "obsid": 101005,
    "ra": 332.535456,
    "dec": -2.116436,
    "rv": -75.0801234567,
    "rv_err": 7.9,
    "snr_u": np.nan,
    "snr_g": 8.08,
    "snr_r": 16.61,
    "snr_i": 23.05,
    "snr_z": 11.99,
    "mjd": 55858,
    "lmjd": 55859,
    "planid": "EG0126_F_2",
    "spid": 1,
    "fiberid": 5,
    "class": "STAR",
    "subclass": "A1V",
    "release": "LAMOST DR5",
}
NAME = "spec-55859-EG0126_F_2_sp01-005.fits"


def pixels(n=N, first=0, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "flux": (1000 + 50 * rng.standard_normal(n)).astype(np.float32),
        "ivar": rng.uniform(0.1, 2, n).astype(np.float32),
        "andmask": rng.choice([0, 0, 0, 1, 4, 64], n).astype(np.uint16),
        "ormask": rng.choice([0, 0, 1, 4, 0x8001], n).astype(np.uint16),
        "wavelength": observed_wavelength()[first : first + n],
    }


def write(folder, layout="dr5", *, name=NAME, meta=META, n=N, first=0, **changed):
    path = folder / name
    data = pixels(n, first)
    data.update(changed)
    write_lamost(path, layout=layout, meta=meta, **data)
    return path


def edit(path, *, remove=(), data=None, **cards):
    """Rewrite a file through astropy with other header cards or another image."""
    with fits.open(path) as hdus:
        header = hdus[0].header
        for key in remove:
            del header[key]
        for key, value in cards.items():
            header[key.replace("__", "-")] = value
        if data is not None:
            hdus[0].data = data(np.array(hdus[0].data))
        out = io.BytesIO()
        hdus.writeto(out)
    path.write_bytes(out.getvalue())
    return path


def raw_card(path, key, value, start=0):
    """Put any text behind ``KEY     =``, valid FITS or not."""
    raw = path.read_bytes()
    at = next(i for i in range(start, len(raw), 80) if raw[i : i + 10] == f"{key:<8}= ".encode()) + 10
    path.write_bytes(raw[:at] + f"{value:<70}".encode() + raw[at + 70 :])
    return path


def reason(path, overrides=lamost._NO_OVERRIDES, **kwargs):
    with pytest.raises(SpectrumError) as caught:
        read_spectrum(path, overrides, **kwargs)
    assert str(path) in str(caught.value)
    return caught.value.reason


def same_meta(found, expected):
    assert set(found) == {c.name for c in schema.SPECTRA}
    for key, value in expected.items():
        if isinstance(value, float):
            np.testing.assert_allclose(found[key], value, rtol=1e-13, atol=1e-250, err_msg=key)
        else:
            assert found[key] == value, key


# Real files


def inventory(folder):
    with open(folder / "inventory.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_real_file_agrees_with_the_inventory(lamost_files):
    rows = inventory(lamost_files)
    entries = pd.DataFrame({"path": [str(lamost_files / r["file"]) for r in rows], "number": range(len(rows))})
    block, rejects = read_spectra(entries)
    # The three files without a redshift are rejected for that reason, all others are read.
    assert sorted(rejects["path"]) == sorted(str(lamost_files / r["file"]) for r in rows if float(r["z"]) == -9999)
    assert set(rejects["reason"]) == {"no_velocity"}
    assert len(block.meta) == len(rows) - 3 == 359
    for i, meta in enumerate(block.meta.to_dict("records")):
        row = rows[meta["number"]]
        assert meta["path"].endswith(row["file"])
        assert meta["ra"] == float(row["ra"])
        assert meta["dec"] == float(row["dec"])
        assert meta["rv"] / C == pytest.approx(float(row["z"]), abs=5e-9)
        snr = float(row["snr_g"])
        assert meta["snr_g"] == np.float32(snr)
        assert meta["obsid"] == int(row["obsid"] or -1)
        assert meta["release"] == row["data_v"].replace("v2.6.4", "pipeline v2.6.4")
        assert (meta["class"], meta["subclass"]) == (row["cls"], row["subclass"])
        npix, bad = int(row["npix"]), float(row["frac_ivar0"])
        first = round((np.log10(float(row["wmin"])) - 3.5682) / 1e-4)
        held = np.flatnonzero((block.flux[i] != 0) | (block.ivar[i] > 0))
        assert first <= held[0]
        assert held[-1] < first + npix
        # Masked beyond the file's own ivar = 0: only ends padded with flux 0.
        assert meta["n_good"] == (block.ivar[i] > 0).sum() <= round(npix * (1 - bad)) + 2
        assert meta["mjd"] == meta["lmjd"] - 1


REAL = (
    "dr1/spec-55862-B6212_sp06-003.fits",
    "dr5/spec-55859-F5902_sp01-005.fits.gz",
    "dr7/101008.fits",
    "dr8/spec-55859-F5902_sp03-232.fits.gz",
    "dr9/spec-55859-F5902_sp01-001.fits.gz",
    "dr13/spec-60591-LN042429N340750BM01_sp01-001.fits.gz",
)


def plain(path):
    """The five arrays and the wavelength by astropy alone, layout known from the folder."""
    with fits.open(path) as hdus:
        header = hdus[0].header
        if path.parent.name in ("dr9", "dr13"):
            names = ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK")
            rows = [np.array(hdus["COADD"].data[n][0]) for n in names]
        else:
            rows = [np.array(row) for row in hdus[0].data]
        if path.parent.name == "dr1":
            rows[2] = 10 ** (header["COEFF0"] + header["COEFF1"] * np.arange(rows[0].size))
        return header.copy(), rows


def compare_bits(path):
    header, (flux, ivar, wavelength, andmask, ormask) = plain(path)
    spectrum = read_spectrum(path)
    grid = observed_wavelength()
    nearest = np.searchsorted((grid[1:] + grid[:-1]) / 2, wavelength)
    assert np.abs(grid[nearest] / wavelength - 1).max() * C < 3
    ends = np.flatnonzero((flux != 0) & (ivar > 0))
    ivar[: ends[0]] = 0
    ivar[ends[-1] + 1 :] = 0
    missing = np.setdiff1d(np.arange(N), nearest)
    for found, expected in ((spectrum.flux, flux), (spectrum.ivar, ivar)):
        assert found.dtype == np.dtype("=f4")
        np.testing.assert_array_equal(found[nearest].view(np.uint32), expected.astype("=f4").view(np.uint32))
        assert not found[missing].any()
    for found, expected in ((spectrum.andmask, andmask), (spectrum.ormask, ormask)):
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found[nearest], expected)
    assert spectrum.meta["rv"] == C * header["Z"]
    assert spectrum.meta["rv_err"] == C * header["Z_ERR"]
    return spectrum, header


@pytest.mark.parametrize("name", REAL)
def test_real_pixels_bit_by_bit(lamost_files, name):
    spectrum, header = compare_bits(lamost_files / name)
    for band in "ugriz":
        snr = header.get(f"SNR{band.upper()}", header.get(f"SN_{band.upper()}"))
        np.testing.assert_equal(spectrum.meta[f"snr_{band}"], snr if snr > 0 else np.nan)


def test_real_odd_grids_and_lengths_bit_by_bit(lamost_files):
    rows = {(r["npix"], r["wmin"]): r["file"] for r in inventory(lamost_files) if r["file"].startswith("dr8")}
    assert len(rows) >= 9
    for (npix, wmin), name in rows.items():
        spectrum, _ = compare_bits(lamost_files / name)
        if npix == "3751":
            # This one begins at 10^3.584: by index its pixels would land 158 too early.
            assert float(wmin) > 3800
            assert not spectrum.flux[:158].any()
            assert spectrum.flux[158:].any()


def test_gzip_is_told_by_content(lamost_files):
    zipped = [p for p in sorted((lamost_files / "dr7").glob("*.fits")) if p.read_bytes()[:2] == b"\x1f\x8b"]
    assert zipped
    for path in zipped:
        spectrum = read_spectrum(path)
        # Such files are named by OBSID: the identity comes from the header.
        assert spectrum.meta["fitsname"] == path.name
        header = fits.getheader(path)
        assert lamost.parse_name(header["FILENAME"]) == tuple(
            spectrum.meta[key] for key in ("lmjd", "planid", "spid", "fiberid")
        )


def test_a_real_file_cut_anywhere_is_refused(lamost_files):
    for name in (REAL[0], REAL[1], REAL[4]):
        raw = (lamost_files / name).read_bytes()
        for share in (0.01, 0.2, 0.5, 0.9, 0.97):
            with pytest.raises(SpectrumError) as caught:
                _read_raw(raw[: int(share * len(raw))])
            assert caught.value.reason in ("truncated", "damaged", "not_fits")


# The writer


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip(tmp_path, layout, ending):
    data = pixels()
    path = write(tmp_path, layout, name=NAME + ending)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == bool(ending)
    spectrum = read_spectrum(path)
    for key in ("flux", "ivar", "andmask", "ormask"):
        np.testing.assert_array_equal(getattr(spectrum, key), data[key])
        assert getattr(spectrum, key).dtype == data[key].dtype
    expected = {**META, "path": str(path), "fitsname": NAME + ending, "specid": "55859-EG0126_F_2-01-005"}
    expected["n_good"] = N
    if layout == "dr1":
        expected.update(obsid=-1, release="pipeline v2.6.4")
    same_meta(spectrum.meta, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_written_files_are_fits_to_astropy(tmp_path, layout):
    data = pixels()
    with fits.open(write(tmp_path, layout)) as hdus:
        # The stale NAXIS1/2 cards of the empty primary are the survey's own offence.
        hdus[-1].verify("exception")
        assert hdus[0].header["FILENAME"] == NAME
        assert hdus[0].header["PLANID"] == "EG0126_F_2"
        assert hdus[0].header["MJD"] == (55860 if layout == "dr1" else 55858)
        assert ("SN_G" in hdus[0].header) == (layout == "dr1")
        assert ("OBSID" in hdus[0].header) == (layout != "dr1")
        if layout == "dr9":
            assert hdus[1].name == "COADD"
            flux, wavelength = hdus["COADD"].data["FLUX"][0], hdus["COADD"].data["WAVELENGTH"][0]
        else:
            assert hdus[0].data.dtype == ">f4"
            flux, wavelength = hdus[0].data[0], hdus[0].data[2]
        np.testing.assert_array_equal(flux, data["flux"])
        if layout == "dr1":
            assert np.median(wavelength) == pytest.approx(1, abs=0.05)
        else:
            np.testing.assert_allclose(wavelength, data["wavelength"], rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_written_headers_hold_the_cards_of_real_files(lamost_files, tmp_path, layout):
    folder = {"dr1": "dr1", "dr5": "dr5", "dr9": "dr9"}[layout]
    real = fits.getheader(sorted((lamost_files / folder).iterdir())[0])
    ours = fits.getheader(write(tmp_path, layout))
    assert set(ours) <= set(real)
    assert [k for k in ours if k != "COMMENT"] == [k for k in real if k in ours and k != "COMMENT"]
    for key in ("BITPIX", "NAXIS", "NAXIS2", "N_EXTEN", "COEFF0", "COEFF1", "VACUUM", "HELIO"):
        assert ours[key] == real[key]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    first = write(tmp_path, name=NAME + ".gz").read_bytes()
    assert write(tmp_path, name=NAME + ".gz").read_bytes() == first
    assert first[4:8] == b"\0\0\0\0"
    assert gzip.decompress(first) == write(tmp_path).read_bytes()


def test_writer_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(InputError, match="lacks ra"):
        write(tmp_path, meta={k: v for k, v in META.items() if k != "ra"})
    with pytest.raises(InputError, match="one length"):
        write(tmp_path, flux=np.ones(5))
    with pytest.raises(InputError, match="log-linear"):
        write(tmp_path, wavelength=np.linspace(3700, 9000, N))
    with pytest.raises(InputError, match="layout 'dr99'"):
        write(tmp_path, "dr99")
    for bad in ({"planid": "Ä"}, {"subclass": "A" * 90}, {"dec": np.nan}, {"class": "A\nB"}):
        with pytest.raises(InputError, match="FITS cards"):
            write(tmp_path, meta=META | bad)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(LAYOUTS),
    first=st.integers(0, 300),
    n=st.integers(3000, 3609),
    rv=st.floats(-1500, 1500),
    ra=st.floats(0, 360),
    dec=st.floats(-90, 90),
    planid=st.from_regex(r"[A-Z0-9]{1,9}(_[A-Z0-9]{1,3}){0,2}", fullmatch=True),
    subclass=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip),
)
def test_round_trip_of_anything(tmp_path, layout, first, n, rv, ra, dec, planid, subclass):
    meta = META | {"rv": rv, "ra": ra, "dec": dec, "planid": planid, "subclass": subclass}
    path = write(tmp_path, layout, n=n, first=first, meta=meta)
    spectrum = read_spectrum(path)
    data = pixels(n)
    for key in ("flux", "ivar", "andmask", "ormask"):
        expected = np.zeros(N, data[key].dtype)
        expected[first : first + n] = data[key]
        np.testing.assert_array_equal(getattr(spectrum, key), expected)
    same_meta(
        spectrum.meta,
        {"rv": rv, "ra": ra, "dec": dec, "planid": planid, "subclass": subclass, "n_good": n},
    )


# What other readers get wrong


def test_flux_over_continuum_is_never_a_wavelength(tmp_path):
    # Even if its own wavelengths begin elsewhere, DR1's third row says nothing about them.
    spectrum = read_spectrum(write(tmp_path, "dr1", n=3000, first=500))
    assert not spectrum.flux[:500].any()
    assert spectrum.flux[500] == pixels(3000)["flux"][0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_short_spectra_are_placed_by_wavelength(tmp_path, layout):
    spectrum = read_spectrum(write(tmp_path, layout, n=3751, first=158))
    np.testing.assert_array_equal(spectrum.flux[158:], pixels(3751)["flux"])
    assert not spectrum.flux[:158].any()
    assert not spectrum.ivar[:158].any()
    assert spectrum.meta["n_good"] == 3751


def test_layout_is_told_by_structure_not_by_release(tmp_path):
    path = write(tmp_path, "dr9", meta=META | {"release": "LAMOST DR1"})
    assert read_spectrum(path).meta["release"] == "LAMOST DR1"


def test_double_precision_images(tmp_path):
    path = edit(write(tmp_path), data=lambda d: d.astype(np.float64))
    assert fits.getval(path, "BITPIX") == -64
    spectrum = read_spectrum(path)
    assert spectrum.flux.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(spectrum.flux, pixels()["flux"])


def test_wavelengths_win_over_the_header_and_may_stand_alone(tmp_path):
    path = edit(write(tmp_path, n=3000, first=100), remove=("COEFF0", "COEFF1"))
    assert read_spectrum(path).flux[100] == pixels(3000)["flux"][0]
    for kms, fits_in in ((1.2, True), (2.5, False)):
        shift = kms / C / np.log(10)
        path = edit(write(tmp_path), COEFF0=3.5682 + shift)
        if fits_in:
            np.testing.assert_array_equal(read_spectrum(path).flux, pixels()["flux"])
        else:
            assert reason(path) == "bad_wavelength"


def test_pixels_outside_the_grid_are_dropped(tmp_path):
    wavelength = 10 ** (3.5682 + 1e-4 * np.arange(-5, 3904))
    spectrum = read_spectrum(write(tmp_path, wavelength=wavelength))
    np.testing.assert_array_equal(spectrum.flux[:3904], pixels()["flux"][5:])
    assert not spectrum.flux[3904:].any()


def test_gaps_between_pixels_stay_empty(tmp_path):
    kept = np.r_[:1000, 1010:N]
    spectrum = read_spectrum(edit(write(tmp_path), remove=("COEFF0", "COEFF1"), data=lambda d: d[:, kept]))
    for key in ("flux", "ivar", "andmask", "ormask"):
        np.testing.assert_array_equal(getattr(spectrum, key)[kept], pixels()[key][kept])
        assert not getattr(spectrum, key)[1000:1010].any()


def test_bad_pixels_have_no_weight(tmp_path):
    data = pixels()
    flux, ivar = data["flux"].astype(np.float64), data["ivar"].astype(np.float64)
    flux[10], flux[11], flux[12], ivar[13], ivar[14], ivar[15] = np.nan, np.inf, 1e300, np.nan, -1, np.inf
    flux[20], ivar[21] = -3, 0
    flux[100] = 0
    flux[:3] = 0
    flux[-4:] = 0
    path = edit(write(tmp_path), data=lambda d: np.array([flux, ivar, *d[2:]]))
    spectrum = read_spectrum(path)
    for i in range(10, 16):
        assert spectrum.flux[i] == spectrum.ivar[i] == 0
    # Negative flux is a measurement, and so is a zero between others; ivar = 0 hides a flux but keeps it.
    assert (spectrum.flux[20], spectrum.ivar[20]) == (-3, np.float32(ivar[20]))
    assert (spectrum.flux[21], spectrum.ivar[21]) == (np.float32(flux[21]), 0)
    assert spectrum.ivar[100] > 0
    assert not spectrum.ivar[:3].any()
    assert not spectrum.ivar[-4:].any()
    assert spectrum.ivar[3] > 0
    assert spectrum.ivar[-5] > 0
    assert spectrum.meta["n_good"] == N - 6 - 1 - 3 - 4


@pytest.mark.parametrize(
    ("stored", "bits"),
    [
        (0, 0),
        (1, 1),
        (64, 64),
        (65535, 65535),
        (65536, 65535),
        (1e30, 65535),
        (-1, 65535),
        (0.5, 65535),
        (np.nan, 65535),
        (np.inf, 65535),
    ],
)
def test_mask_values(tmp_path, stored, bits):
    mask = np.zeros(N)
    mask[7] = stored
    spectrum = read_spectrum(write(tmp_path, andmask=mask, ormask=mask))
    assert spectrum.andmask[7] == spectrum.ormask[7] == bits
    assert not spectrum.andmask[8:].any()


def test_a_failed_file_does_not_shift_the_others(tmp_path):
    paths, expected = [], []
    for i in range(6):
        name = NAME.replace("005", f"{i + 1:03d}")
        path = write(tmp_path, name=name, meta=META | {"fiberid": i + 1}, flux=np.full(N, i + 1.0))
        if i in (0, 3):
            path.write_bytes(path.read_bytes()[:9000])
        else:
            expected.append(i)
        paths.append(str(path))
    entries = pd.DataFrame({"path": paths, "rv": [10.0, np.nan, 30.0, 40.0, np.nan, 60.0], "tag": list("abcdef")})
    block, rejects = read_spectra(entries)
    assert block.flux[:, 0].tolist() == [i + 1 for i in expected]
    assert block.meta["fiberid"].tolist() == [i + 1 for i in expected]
    assert block.meta["tag"].tolist() == [entries["tag"][i] for i in expected]
    assert block.meta["rv"].tolist() == pytest.approx([META["rv"], 30, META["rv"], 60], rel=1e-13)
    assert rejects["path"].tolist() == [paths[0], paths[3]]
    assert rejects["reason"].tolist() == ["truncated", "truncated"]
    assert rejects["specid"].tolist() == ["55859-EG0126_F_2-01-001", "55859-EG0126_F_2-01-004"]


def test_block_columns_follow_the_schema(tmp_path):
    entries = pd.DataFrame({"path": [str(write(tmp_path)), "nowhere"], "note": ["x", "y"]})
    full = read_spectra(entries)
    for block, rejects in (full, read_spectra(entries.iloc[:0]), read_spectra(entries.iloc[1:])):
        assert list(block.meta.columns) == [c.name for c in schema.SPECTRA] + ["note"]
        assert list(rejects.columns) == [c.name for c in schema.REJECTS]
        assert (block.meta.dtypes[:-1] == schema.empty_frame(schema.SPECTRA).dtypes).all()
        assert block.flux.shape == (len(block.meta), N)
        table = schema.to_table(block.meta, schema.SPECTRA, extra=("note",))
        assert table.schema.field("spid").type == pa.int16()
        schema.to_table(rejects, schema.REJECTS)
    assert len(full[0].meta) == len(full[1]) == 1
    # The header was read where the file name is no name of the survey.
    odd = write(tmp_path, name="101005.fits", meta=META | {"rv": np.nan})
    _, rejects = read_spectra(pd.DataFrame({"path": [str(odd)]}))
    assert rejects.loc[0, ["specid", "reason", "fitsname"]].tolist() == [
        "55859-EG0126_F_2-01-005",
        "no_velocity",
        "101005.fits",
    ]


# Header values


def test_overrides(tmp_path):
    path = write(tmp_path, meta=META | {"rv": np.nan})
    assert reason(path) == "no_velocity"
    assert reason(path, {"rv": np.nan, "ra": 3.0}) == "no_velocity"
    spectrum = read_spectrum(path, {"rv": 12, "ra": 1.5, "dec": None, "lsf_r2": np.float32("nan")})
    same_meta(spectrum.meta, {"rv": 12.0, "rv_err": np.nan, "ra": 1.5, "dec": META["dec"]})
    assert np.isnan(spectrum.meta["lsf_r2"])
    assert read_spectrum(path, {"rv": 12.0, "rv_err": 2.0}).meta["rv_err"] == 2.0
    assert reason(path, {"rv": 12.0, "lsf_b0": 1.2}) == "bad_override"
    every = {name: float(i + 1) for i, name in enumerate(OVERRIDES)}
    same_meta(read_spectrum(path, every).meta, every)
    assert set(OVERRIDES) == {"ra", "dec", "rv", "rv_err", *LSF_NAMES}


def test_large_velocities_are_kept(tmp_path):
    path = edit(write(tmp_path), Z=0.308259)
    assert read_spectrum(path).meta["rv"] == C * 0.308259


@pytest.mark.parametrize(
    ("cards", "column", "expected"),
    [
        ({"RA": " 12.5 "}, "ra", 12.5),
        ({"Z_ERR": -9999}, "rv_err", np.nan),
        ({"Z_ERR": "none"}, "rv_err", np.nan),
        ({"Z_ERR": 0.0}, "rv_err", np.nan),
        ({"SNRG": 0.0}, "snr_g", np.nan),
        ({"SNRG": -9999.0}, "snr_g", np.nan),
        ({"SNRG": "12.25"}, "snr_g", 12.25),
        ({"SNRG": True}, "snr_g", np.nan),
        ({"OBSID": "many"}, "obsid", -1),
        ({"OBSID": 10**30}, "obsid", -1),
        ({"OBSID": 9007199254740993}, "obsid", 9007199254740993),
        ({"LMJD": "55859"}, "lmjd", 55859),
        ({"LMJD": 55859.25}, "lmjd", 55859),
        ({"MJD": 55860}, "mjd", 55858),
        ({"MJD": "x"}, "mjd", 55858),
        ({"PLANID": 77}, "planid", "77"),
        ({"PLANID": ""}, "planid", "EG0126_F_2"),
        ({"SPID": 99999}, "spid", 1),
        ({"FIBERID": None}, "fiberid", 5),
        ({"CLASS": 3}, "class", "3"),
        ({"CLASS": None}, "class", ""),
        ({"DATA_V": ""}, "release", "pipeline v2.9.7"),
        ({"X_VALUE": ""}, "ra", META["ra"]),
    ],
)
def test_anything_may_stand_in_a_card(tmp_path, cards, column, expected):
    np.testing.assert_equal(read_spectrum(edit(write(tmp_path), **cards)).meta[column], expected)


@pytest.mark.parametrize("value", ["'unclosed", "1.2.3.4 / x", "= = =", "(1.0, 2.0)", "T", "", "\x01", "1e99999"])
def test_cards_that_break_fits_count_as_absent(tmp_path, value):
    path = raw_card(write(tmp_path), "SNRG", value)
    assert np.isnan(read_spectrum(path).meta["snr_g"])
    assert reason(raw_card(write(tmp_path), "Z", value)) in ("no_velocity", "damaged")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("spec-55859-F5902_sp01-005.fits", (55859, "F5902", 1, 5)),
        ("spec-56591-EG01_F_2_sp16-250.fits.gz", (56591, "EG01_F_2", 16, 250)),
        ("spec-56591-A_sp01-001_sp16-250.fits.gz", (56591, "A_sp01-001", 16, 250)),
        ("101008.fits", None),
        ("spec-55859-F5902_sp01-005.fits.bz2", None),
        ("spec-5585-F5902_sp01-005.fits", None),
    ],
)
def test_names_are_parsed_from_the_right(name, expected):
    assert lamost.parse_name(name) == expected


def test_identity_from_the_name_alone(tmp_path):
    gone = ("LMJD", "PLANID", "SPID", "FIBERID", "FILENAME")
    same_meta(read_spectrum(edit(write(tmp_path), remove=gone)).meta, {"specid": "55859-EG0126_F_2-01-005"})
    other = write(tmp_path, name="101005.fits")
    assert reason(edit(other, remove=gone)) == "no_identity"
    # Named otherwise by whoever fetched it, FILENAME still knows.
    other = edit(write(tmp_path, name="101005.fits"), remove=gone[:4], FILENAME=NAME)
    same_meta(read_spectrum(other).meta, {"specid": "55859-EG0126_F_2-01-005", "fitsname": "101005.fits"})


def test_classes(tmp_path):
    path = write(tmp_path)
    for wanted in (("A",), ("O", "A1"), ("STAR",), ()):
        assert read_spectrum(path, classes=wanted).meta["subclass"] == "A1V"
    for wanted in (("B", "O"), ("a",), ("A1V+",)):
        assert reason(path, classes=wanted) == "class_not_selected"
    _, rejects = read_spectra(pd.DataFrame({"path": [str(path)]}), classes=("B", "O"))
    assert rejects["reason"].tolist() == ["class_not_selected"]
    assert "'A1V'" in rejects["detail"][0]


def test_classes_of_stars_are_told_from_names_that_begin_like_them(tmp_path):
    for kind, subclass, wanted in (
        ("GALAXY", "A", "A"),
        ("STAR", "Binary", "B"),
        ("QSO", "", "Q"),
        ("STAR", "A1V", "AGN"),
    ):
        assert reason(edit(write(tmp_path), CLASS=kind, SUBCLASS=subclass), classes=(wanted,)) == "class_not_selected"
    for kind, subclass, wanted in (
        ("Unknown", "B6", "B"),
        ("STAR", "sdB1", "sdB"),
        ("STAR", "WD", "WD"),
        ("QSO", "x", "QSO"),
    ):
        path = edit(write(tmp_path), CLASS=kind, SUBCLASS=subclass)
        assert read_spectrum(path, classes=(wanted,)).meta["subclass"] == subclass


@pytest.mark.parametrize("planid", ["F" * 65, "a/b", "../F5902"])
def test_a_planid_that_could_name_no_file_is_none(tmp_path, planid):
    with pytest.raises(SpectrumError, match=f"PLANID.*{len(planid)} characters.*correct the header") as caught:
        read_spectrum(edit(write(tmp_path), PLANID=(planid, "")))
    assert caught.value.reason == "no_identity"
    assert len(caught.value.detail) < 300


def test_a_reject_quotes_no_more_than_a_line_of_a_header(tmp_path):
    path = edit(write(tmp_path), SUBCLASS="A" * 5000)
    _, rejects = read_spectra(pd.DataFrame({"path": [str(path)]}), classes=("B",))
    assert rejects["reason"].tolist() == ["class_not_selected"]
    assert 400 < len(rejects["detail"][0]) < 600


@pytest.mark.parametrize("planid", ["F" * 64, "EG012606S021203_F_2", "HD1+2.3-N:4", "%" * 64])
def test_a_planid_that_is_read_names_a_page_of_the_report(tmp_path, planid):
    specid = read_spectrum(edit(write(tmp_path), PLANID=(planid, ""))).meta["specid"]
    (tmp_path / page_name(specid)).write_bytes(b"")
    (tmp_path / f".{page_name(specid)}.partial").write_bytes(b"")


def test_medium_resolution_is_named(tmp_path):
    def table(name):
        made = [fits.Column(key, "9E", array=np.ones((1, 9))) for key in ("FLUX", "IVAR", "WAVELENGTH", "PIXMASK")]
        return fits.BinTableHDU.from_columns(made, name=name)

    for first, name in (
        ("COADD_B", "x.fits"),
        ("R-84000012", "x.fits"),
        ("OTHER", "med-58149-NGC216801_sp09-033.fits"),
    ):
        path = tmp_path / name
        fits.HDUList([fits.PrimaryHDU(), table(first), table("COADD_R")]).writeto(path, overwrite=True)
        with pytest.raises(SpectrumError, match="medium resolution") as caught:
            read_spectrum(path)
        assert caught.value.reason == "unknown_layout"
    with pytest.raises(SpectrumError, match="medium resolution"):
        read_spectrum(f"{path}#5")
    # One that is called so and is not.
    good = write(tmp_path, name="med-58149-NGC216801_sp09-033.fits")
    assert read_spectrum(good).meta["n_good"] > 0


# Every reason


def _bytes(folder, content):
    path = folder / NAME
    path.write_bytes(content)
    return path


def _flipped(folder):
    path = write(folder, name=NAME + ".gz")
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 0xFF  # in the checksum
    path.write_bytes(raw)
    return path


def _coadd(folder, change):
    path = write(folder, "dr9")
    with fits.open(path) as hdus:
        table = fits.BinTableHDU(change(hdus["COADD"].data), name="COADD")
        primary = hdus[0].copy()
        del primary.header["NAXIS?"]
        fits.HDUList([primary, table]).writeto(path, overwrite=True)
    return path


CASES = {
    "not_found": lambda f: f / "spec.fits",
    "unreadable": lambda f: f,
    "empty_file": lambda f: _bytes(f, b""),
    "too_large": lambda f: _bytes(f, gzip.compress(bytes(lamost.MAX_BYTES + 1), 1)),
    "not_fits": lambda f: _bytes(f, b"<html>404</html>" * 500),
    "damaged": _flipped,
    "truncated": lambda f: _bytes(f, write(f).read_bytes()[:-5000]),
    "unknown_layout": lambda f: edit(write(f, "dr1"), remove=("EXTEN0",)),
    "bad_shape": lambda f: edit(write(f), data=lambda d: d[:4]),
    "bad_wavelength": lambda f: edit(write(f, "dr1"), remove=("COEFF0",)),
    "air_wavelength": lambda f: edit(write(f), VACUUM=False),
    "not_heliocentric": lambda f: edit(write(f), HELIO=False),
    "off_grid": lambda f: write(f, wavelength=10 ** (3.56826 + 1e-4 * np.arange(N))),
    "no_position": lambda f: edit(write(f), RA=-9999.0),
    "no_velocity": lambda f: write(f, meta=META | {"rv": None}),
    "no_good_pixels": lambda f: write(f, ivar=np.zeros(N)),
    "no_identity": lambda f: edit(write(f, name="1.fits"), remove=("SPID",)),
}
BY_ARGUMENT = {"bad_override", "class_not_selected"}  # tests above and below
BY_INGEST = {"duplicate"}  # needs more than one file
BY_ADDRESS = {"not_in_file", "not_unique", "not_a_target"}  # of files of many spectra: test_desi.py
BY_SYSTEM = {"io_error"}  # what the operating system cannot do just now: tests/pipeline/test_growing_runs.py


def test_every_reason_has_a_case_and_a_sentence():
    assert set(REASONS) == set(CASES) | BY_ARGUMENT | BY_INGEST | BY_ADDRESS | BY_SYSTEM
    assert all(re.fullmatch(r"[A-Z].*[a-zA-Z)]\.", sentence) for sentence in REASONS.values())


@pytest.mark.parametrize("code", CASES)
def test_reason(tmp_path, code):
    assert reason(CASES[code](tmp_path)) == code


@pytest.mark.parametrize("bad", [{"rv": "fast"}, {"rv": 3e5}, {"rv_err": -1.0}, {"ra": np.inf}, {"teff": 9000.0}])
def test_bad_overrides(tmp_path, bad):
    assert reason(write(tmp_path), bad) == "bad_override"


def test_other_ways_to_fail(tmp_path):
    assert reason(write(tmp_path), {"dec": 91.0}) == "no_position"
    assert reason(edit(write(tmp_path), data=lambda d: d[[0, 1, 1, 3, 4]])) == "bad_wavelength"
    assert reason(edit(write(tmp_path, "dr1"), COEFF1=-1e-4)) == "bad_wavelength"
    assert reason(edit(write(tmp_path, "dr1"), COEFF0=1e300)) == "off_grid"
    assert reason(edit(write(tmp_path, "dr1"), COEFF1=2e-4)) == "off_grid"
    assert reason(edit(write(tmp_path), data=lambda d: d[0])) == "bad_shape"
    assert reason(edit(write(tmp_path), data=lambda d: d[:, :1])) == "bad_shape"
    assert reason(_coadd(tmp_path, lambda t: np.repeat(np.asarray(t), 2))) == "bad_shape"
    assert reason(_bytes(tmp_path, write(tmp_path, name=NAME + ".gz").read_bytes()[:-500])) == "truncated"
    sdss = fits.BinTableHDU.from_columns([fits.Column("loglam", "E", array=np.ones(9))], name="COADD")
    fits.HDUList([fits.PrimaryHDU(), sdss]).writeto(tmp_path / "sdss.fits")
    assert reason(tmp_path / "sdss.fits") == "unknown_layout"
    assert reason("a\0b") == "unreadable"
    os.mkfifo(tmp_path / "pipe")
    assert reason(tmp_path / "pipe") == "unreadable"


def test_coadd_columns_in_any_order_case_and_precision(tmp_path):
    def change(table):
        return fits.FITS_rec.from_columns(
            [
                fits.Column(n.lower(), f"{N}{'J' if 'MASK' in n else 'D'}", array=table[n])
                for n in table.names[::-1]
                if n != "NORMALIZATION"
            ]
        )

    spectrum = read_spectrum(_coadd(tmp_path, change))
    data = pixels()
    for key in ("flux", "ivar", "andmask", "ormask"):
        np.testing.assert_array_equal(getattr(spectrum, key), data[key])


def test_gzip_of_several_members(tmp_path):
    raw = write(tmp_path).read_bytes()
    path = _bytes(tmp_path, gzip.compress(raw[:50000]) + gzip.compress(raw[50000:]) + b"\0" * 7)
    np.testing.assert_array_equal(read_spectrum(path).flux, pixels()["flux"])


def test_errors_survive_pickling(tmp_path):
    with pytest.raises(SpectrumError) as caught:
        read_spectrum(tmp_path / "none.fits")
    assert pickle.loads(pickle.dumps(caught.value)).reason == "not_found"


# Whatever the bytes are


# In headers where a size is absurd astropy alone allocates without end or never returns.
ABSURD = [
    ("NAXIS", "99999999999"),
    ("NAXIS1", "-9999"),
    ("NAXIS2", "1E400"),
    ("TFIELDS", "999999999"),
    ("PCOUNT", "-1"),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("key", "value"), ABSURD)
@pytest.mark.parametrize("extension", [False, True])
def test_absurd_sizes_neither_hang_nor_fill_memory(tmp_path, key, value, extension):
    path = write(tmp_path, "dr9" if extension else "dr5")
    if not extension and key not in fits.getheader(path):
        key = "NAXIS"
    start = path.read_bytes().index(b"XTENSION") if extension else 0
    assert reason(raw_card(path, key, value, start)) == "damaged"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return Originals((layout, write(folder, layout, name=f"{layout}.fits").read_bytes()) for layout in LAYOUTS)


class Originals(dict):
    def __repr__(self):
        return "files"  # hypothesis prints its arguments


def _read_raw(raw):
    with tempfile.TemporaryDirectory() as folder:
        return read_spectrum(_bytes(Path(folder), raw))


def _spectrum_or_reason(raw):
    try:
        spectrum = _read_raw(raw)
    except SpectrumError as error:
        refused = error.reason
    else:
        refused = None
    if refused:
        assert refused in set(REASONS) - BY_ARGUMENT - BY_INGEST - BY_ADDRESS - BY_SYSTEM - {"not_found", "unreadable"}
        return
    assert spectrum.flux.shape == spectrum.ormask.shape == (N,)
    assert np.isfinite(spectrum.flux).all()
    assert (spectrum.ivar >= 0).all()
    assert np.isfinite(spectrum.ivar).all()
    assert np.isfinite(spectrum.meta["rv"])
    lamost._frame([spectrum.meta], schema.SPECTRA)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=400), st.sampled_from([b"", b"SIMPLE  =                    T", b"\x1f\x8b", b"\x1f\x8b\x08\0"])
)
def test_random_bytes(content, start):
    _spectrum_or_reason(start + content)
    _spectrum_or_reason(gzip.compress(start + content, 1))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(LAYOUTS), st.floats(0, 1), st.booleans())
def test_truncated_files(originals, layout, share, zipped):
    raw = originals[layout]
    if zipped:
        raw = gzip.compress(raw, 1)
    _spectrum_or_reason(raw[: int(share * len(raw))])


_VALUES = st.one_of(
    st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=70),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["T", "F", "", "''", "-9999", "99999999999", "1E400", "'", "(1,2)", "0", "-1", "'P'", "1PE(5)"]),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(LAYOUTS), st.lists(st.tuples(st.floats(0, 0.9999), _VALUES), min_size=1, max_size=4))
def test_random_header_values(originals, layout, changes):
    raw = bytearray(originals[layout])
    cards = [i for i in range(0, 17280, 80) if raw[i + 8 : i + 10] == b"= "]
    for where, value in changes:
        at = cards[int(where * len(cards))]
        raw[at + 10 : at + 80] = f"{value:<70}".encode("latin-1")[:70]
    _spectrum_or_reason(bytes(raw))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(LAYOUTS), st.lists(st.tuples(st.integers(0, 20000), st.binary(min_size=1, max_size=90))))
def test_random_damage(originals, layout, changes):
    raw = bytearray(originals[layout])
    for at, content in changes:
        raw[at : at + len(content)] = content
    _spectrum_or_reason(bytes(raw))
