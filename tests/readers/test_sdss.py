"""SDSS spectra, written here in their data model: pixels, masks, line spread, identity, and labels that come back."""

import contextlib
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from hotdask import config, windows
from hotdask.emulator import load_emulator
from hotdask.emulator.broadening import lsf_sigma, mean_lsf
from hotdask.errors import SpectrumError
from hotdask.labels import INDEX, LABEL_NAMES, LSF_NAMES
from hotdask.readers.lamost import read_spectra, read_spectrum
from hotdask.simulation.visits import emergent
from hotdask.spectra.normalize import Normalizer
from hotdask.steps.label import Labeler
from hotdask.windows import LOG_STEP, N_OBSERVED, OBSERVED_LOG_START, SPEED_OF_LIGHT

START, N = 3.5523, 4620
"""log10 of the first wavelength and the pixels of a BOSS spectrum."""
FIRST = round((OBSERVED_LOG_START - START) / LOG_STEP)
"""Pixel of the file that is pixel 0 of the observed grid."""
WAVELENGTH = 10 ** (START + LOG_STEP * np.arange(N))


def write_sdss(path: Path, *, pixels: dict | None = None, row: dict | None = None, header: dict | None = None) -> Path:
    """A spec file: HDU 1 COADD, HDU 2 SPALL, as in the survey's data model (float32 columns, int32 masks)."""
    one = np.ones(N)
    columns = {"flux": 3 * one, "loglam": np.log10(WAVELENGTH), "ivar": 4 * one, "and_mask": 0 * one}
    columns |= {"or_mask": 0 * one, "wdisp": 1.0 * one, "sky": one, "model": one} | (pixels or {})
    kinds = {name: ("J", np.int32) if "mask" in name else ("E", np.float32) for name in columns}
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column(name, kinds[name][0], array=np.asarray(values).astype(kinds[name][1]))
            for name, values in columns.items()
            if values is not None
        ],
        name="COADD",
    )
    about = {"PLATE": 4055, "MJD": 55359, "FIBERID": 610, "PLUG_RA": 241.5, "PLUG_DEC": 5.25, "Z": 1e-4, "Z_ERR": 1e-5}
    about |= {"CLASS": "STAR", "SUBCLASS": "A0", "RUN2D": "v5_13_2", "SN_MEDIAN": [5.0, 20.0, 25.0, 22.0, 12.0]}
    about |= row or {}
    formats = {int: "K", float: "D", str: "20A", list: "5E"}
    described = fits.BinTableHDU.from_columns(
        [fits.Column(k, formats[type(v)], array=[v]) for k, v in about.items() if v is not None], name="SPALL"
    )
    primary = fits.PrimaryHDU()
    primary.header.update({"COEFF0": START, "COEFF1": LOG_STEP, "VACUUM": True} | (header or {}))
    fits.HDUList([primary, table, described]).writeto(path, overwrite=True)
    return path


def test_pixels_are_taken_over_by_wavelength(tmp_path):
    """SDSS coadds lie on whole multiples of 1e-4 dex, as LAMOST's grid: bit for bit, no resampling."""
    rng = np.random.default_rng(2)
    flux, ivar = rng.normal(5, 1, N).astype(np.float32), rng.uniform(1, 2, N).astype(np.float32)
    found = read_spectrum(write_sdss(tmp_path / "any.fits", pixels={"flux": flux, "ivar": ivar}))
    np.testing.assert_array_equal(found.flux, flux[FIRST : FIRST + N_OBSERVED])
    np.testing.assert_array_equal(found.ivar, ivar[FIRST : FIRST + N_OBSERVED])
    assert np.abs(WAVELENGTH[FIRST : FIRST + N_OBSERVED] / windows.observed_wavelength() - 1).max() < 1e-10


def test_a_shorter_spectrum_leaves_the_rest_empty(tmp_path):
    """SDSS-I/II begin at 3800 Å."""
    cut = slice(300, 4000)
    every = {"flux": 3.0, "loglam": np.log10(WAVELENGTH), "ivar": 4.0, "and_mask": 0, "or_mask": 0, "wdisp": 1.0}
    pixels = {k: np.broadcast_to(v, N)[cut] for k, v in every.items()} | {"sky": None, "model": None}
    found = read_spectrum(write_sdss(tmp_path / "old.fits", pixels=pixels))
    assert found.meta["n_good"] == np.count_nonzero(found.ivar) == 4000 - 300
    assert np.flatnonzero(found.ivar)[0] == 300 - FIRST


def test_what_is_said_of_the_spectrum(tmp_path):
    path = tmp_path / "x.fits.gz"
    path.write_bytes(gzip.compress(write_sdss(tmp_path / "x.fits").read_bytes()))
    meta = read_spectrum(path).meta
    expected = {"specid": "55359-SDSS4055-02-610", "obsid": -1, "ra": 241.5, "dec": 5.25, "mjd": 55359, "fiberid": 610}
    expected |= {"class": "STAR", "subclass": "A0", "release": "SDSS v5_13_2", "snr_g": 20.0, "snr_z": 12.0}
    assert {key: meta[key] for key in expected} == expected
    assert meta["rv"] == pytest.approx(1e-4 * SPEED_OF_LIGHT)
    assert meta["rv_err"] == pytest.approx(1e-5 * SPEED_OF_LIGHT)


def test_elodie_steps_in_where_the_pipeline_failed(tmp_path):
    row = {"Z": 3.0, "Z_ERR": -1.0, "ELODIE_Z": 2e-4, "ELODIE_Z_ERR": 1e-5}
    assert read_spectrum(write_sdss(tmp_path / "e.fits", row=row)).meta["rv"] == pytest.approx(2e-4 * SPEED_OF_LIGHT)
    path = write_sdss(tmp_path / "n.fits", row={**row, "ELODIE_Z_ERR": 0.0})
    with pytest.raises(SpectrumError) as caught:
        read_spectrum(path)
    assert caught.value.reason == "no_velocity"
    assert read_spectrum(path, {"rv": 12.0}).meta["rv"] == 12.0


def test_masks_of_single_pixels_are_kept_and_those_of_fibers_are_not(tmp_path):
    andmask, ormask = np.zeros(N), np.zeros(N)
    andmask[FIRST + 10] = 1 << 23  # BRIGHTSKY
    andmask[FIRST + 11] = 1 << 2  # BADFLAT, of the whole fiber
    ormask[FIRST + 12] = (1 << 25) | (1 << 24)  # COMBINEREJ, and NODATA, which is deprecated
    found = read_spectrum(write_sdss(tmp_path / "m.fits", pixels={"and_mask": andmask, "or_mask": ormask}))
    assert found.andmask[9:13].tolist() == [0, 1 << 7, 0, 0]
    assert found.ormask[9:14].tolist() == [0, 0, 0, 1 << 9, 0]


def test_line_spread_follows_wdisp(tmp_path):
    """A dispersion that drifts and jumps at the arms' border, as BOSS's does, comes back at every wavelength."""
    blue = WAVELENGTH < windows.BLUE_RED_BREAK
    power = np.where(blue, 1560 + 0.25 * (WAVELENGTH - 3700), 1850 + 0.2 * (WAVELENGTH - 6000))
    wdisp = 1 / (2.3548 * power * LOG_STEP * np.log(10))
    wdisp[50:60] = 0
    meta = read_spectrum(write_sdss(tmp_path / "l.fits", pixels={"wdisp": wdisp})).meta
    wavelength = windows.rest_wavelength()[100:-100]
    sigma = lsf_sigma(wavelength, np.array([meta[n] for n in LSF_NAMES]))
    np.testing.assert_allclose(wavelength / (2.3548 * sigma), np.interp(wavelength, WAVELENGTH, power), rtol=0.01)


@pytest.mark.parametrize("wdisp", [None, np.zeros(N), np.full(N, np.nan)])
def test_no_wdisp_is_the_mean_line_spread(tmp_path, wdisp):
    meta = read_spectrum(write_sdss(tmp_path / "l.fits", pixels={"wdisp": wdisp})).meta
    assert all(np.isnan(meta[n]) for n in LSF_NAMES)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"row": {"PLUG_RA": None}}, "no_position"),
        ({"row": {"PLATE": None}}, "no_identity"),
        ({"row": {"Z": None}}, "no_velocity"),
        ({"pixels": {"ivar": np.zeros(N)}}, "no_good_pixels"),
        ({"pixels": {"loglam": START + 1e-4 * (np.arange(N) + 0.3)}}, "off_grid"),
        ({"pixels": {"loglam": np.full(N, 3.6)}}, "bad_wavelength"),
        ({"pixels": {"loglam": None}}, "unknown_layout"),
        ({"header": {"VACUUM": False}}, "air_wavelength"),
    ],
)
def test_what_cannot_be_used_has_its_reason(tmp_path, changes, reason):
    with pytest.raises(SpectrumError) as caught:
        read_spectrum(write_sdss(tmp_path / "bad.fits", **changes))
    assert caught.value.reason == reason


def reason(path, **options) -> tuple[str, str]:
    with pytest.raises(SpectrumError) as caught:
        read_spectrum(path, **options)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize(
    ("row", "expected", "why"),
    [
        ({"ZWARNING": 1, "OBJTYPE": "SKY"}, "not_a_target", "ZWARNING says SKY"),
        ({"ZWARNING": 1 | 4, "OBJTYPE": "STAR"}, "not_a_target", "ZWARNING says SKY"),
        ({"ZWARNING": 128, "OBJTYPE": "NA"}, "not_a_target", "UNPLUGGED"),
        ({"ZWARNING": 256}, "not_a_target", "BAD_TARGET"),
        ({"ZWARNING": 512, "OBJTYPE": "STAR"}, "no_good_pixels", "NODATA"),
        ({"ZWARN": 512}, "no_good_pixels", "NODATA"),
        *(
            ({"ZWARNING": 0, "OBJTYPE": kind}, "not_a_target", f"'{kind}'")
            for kind in ("SKY", "NA", "BLANK", "ops_sky")
        ),
        ({"OBJTYPE": "COHERENT_SKY"}, "not_a_target", "COHERENT_SKY"),
        ({"TARGETTYPE": "SKY"}, "not_a_target", "take it off"),
    ],
)
def test_fibers_without_a_star_are_rejected_whatever_a_table_gives(tmp_path, row, expected, why):
    path = write_sdss(tmp_path / "sky.fits", row=row)
    for options in ({}, {"overrides": {"rv": 3.0}}, {"classes": ("G",)}):
        found, detail = reason(path, **options)
        assert found == expected
        assert why in detail


@pytest.mark.parametrize(
    "kind", ["STAR", "GALAXY", "SPECTROPHOTO_STD", "science", "QA", "", "STAR_WHITE_DWARF", "SKYLARK"]
)
def test_fibers_on_targets_are_read(tmp_path, kind):
    assert read_spectrum(write_sdss(tmp_path / "s.fits", row={"ZWARNING": 0, "OBJTYPE": kind})).meta["n_good"] > 0


def test_a_target_of_no_type_is_one_by_its_source(tmp_path):
    row = {"OBJTYPE": "NA", "SOURCETYPE": "TDSS_TARGET"}
    assert read_spectrum(write_sdss(tmp_path / "s.fits", row=row)).meta["n_good"] > 0


@pytest.mark.parametrize("bit", range(10))
def test_a_redshift_in_doubt_is_no_velocity(tmp_path, bit):
    """As with Redrock's ZWARN: a velocity from a table makes the spectrum usable. Two bits are harmless for stars."""
    path = write_sdss(tmp_path / "z.fits", row={"ZWARNING": 1 << bit})
    if bit in (4, 6):
        assert read_spectrum(path).meta["rv"] == pytest.approx(1e-4 * SPEED_OF_LIGHT)
    elif bit in (1, 2, 3, 5):
        name = {1: "LITTLE_COVERAGE", 2: "SMALL_DELTA_CHI2", 3: "NEGATIVE_MODEL", 5: "Z_FITLIMIT"}[bit]
        found, detail = reason(path)
        assert found == "no_velocity"
        assert f"ZWARNING says {name}; give rv" in detail
        assert read_spectrum(path, {"rv": 12.0}).meta["rv"] == 12.0
    else:
        assert reason(path)[0] in {"not_a_target", "no_good_pixels"}


def test_classes_take_no_galaxy_that_begins_like_a_star(tmp_path):
    kinds = [("STAR", "A0"), ("GALAXY", "AGN"), ("GALAXY", "BROADLINE"), ("QSO", "AGN BROADLINE"), ("STAR", "OB")]
    files = [
        write_sdss(tmp_path / f"{i}.fits", row={"CLASS": c, "SUBCLASS": s, "FIBERID": i + 1})
        for i, (c, s) in enumerate(kinds)
    ]
    block, rejects = read_spectra(pd.DataFrame({"path": [str(f) for f in files]}), classes=("O", "B", "A"))
    assert block.meta["subclass"].tolist() == ["A0", "OB"]
    assert rejects["reason"].tolist() == ["class_not_selected"] * 3


# SDSS-V: spec-FIELD-MJD-CATALOGID.fits has no plate and no fiber of its own

FIFTH = {"PLATE": None, "FIBERID": None, "MJD": 59281, "TARGET_INDEX": 8, "FIBERID_LIST": "8 8 8", "RUN2D": "v6_1_3"}


def test_fields_of_a_night_are_told_apart(tmp_path):
    rows = [{"FIELD": 15173, "CATALOGID": 4544940698}, {"FIELD": 102345, "CATALOGID": 27021600949}]
    # The same star in both fields, and one that only the newer number names.
    rows += [{"FIELD": 102345, "CATALOGID": 4544940698}, {"FIELD": 102345, "CATALOGID": -999, "SDSS_ID": 44940698}]
    found = [
        read_spectrum(write_sdss(tmp_path / f"{i}.fits", row=FIFTH | row, header={"PLATEID": ""})).meta["specid"]
        for i, row in enumerate(rows)
    ]
    assert found == [
        "59281-SDSS15173-4544940698-01-008",
        "59281-SDSS102345-27021600949-01-008",
        "59281-SDSS102345-4544940698-01-008",
        "59281-SDSS102345-44940698-01-008",
    ]


def test_a_field_may_be_in_the_header_and_the_target_index_beyond_a_thousand(tmp_path):
    row = FIFTH | {"CATALOGID": 7, "TARGET_INDEX": 5000}
    meta = read_spectrum(write_sdss(tmp_path / "x.fits", row=row, header={"FIELDID": 15173})).meta
    assert meta["specid"] == "59281-SDSS15173-7-01-001"


def test_a_field_alone_is_no_identity(tmp_path):
    path = write_sdss(tmp_path / "x.fits", row=FIFTH | {"FIELD": 15173})
    assert reason(path)[0] == "no_identity"
    path = write_sdss(tmp_path / "y.fits", row=FIFTH | {"CATALOGID": 7}, header={"PLATEID": ""})
    assert reason(path)[0] == "no_identity"


def test_the_field_of_an_image_is_no_part_of_an_older_identity(tmp_path):
    path = write_sdss(tmp_path / "x.fits", row={"FIELD": 312})
    assert read_spectrum(path).meta["specid"] == "55359-SDSS4055-02-610"


@pytest.mark.parametrize("value", [[1.0, 0, 0, 0, 0], "x", float("nan"), -9999])
def test_warnings_of_odd_kinds_are_none(tmp_path, value):
    path = write_sdss(tmp_path / "x.fits", row={"ZWARNING": value, "OBJTYPE": value})
    assert read_spectrum(path).meta["n_good"] > 0


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> bytes:
    return write_sdss(tmp_path_factory.mktemp("raw") / "x.fits").read_bytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_raise_nothing_else(raw, tmp_path_factory, data):
    """Cut anywhere, or with any card of any header overwritten."""
    headers = [i for i in range(0, len(raw), 2880) if raw[i : i + 8].strip() in (b"SIMPLE", b"XTENSION")]
    path = tmp_path_factory.getbasetemp() / "damaged_sdss.fits"
    if data.draw(st.booleans()):
        spoiled = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        at = data.draw(st.sampled_from(headers)) + 80 * data.draw(st.integers(0, 30))
        value = data.draw(st.sampled_from([b"-1", b"99999999999", b"'x'", b"T", b"1.5"])).rjust(20)
        spoiled = raw[:at] + raw[at : at + 10] + value + raw[at + 30 :]
    path.write_bytes(spoiled)
    with contextlib.suppress(SpectrumError):
        assert read_spectrum(path).meta["n_good"] > 0


def test_labels_come_back_from_sdss_spectra(tmp_path):
    """Noisy spectra of known labels, each with its own line spread: labels within errors, and only with that spread."""
    emulator = load_emulator()
    rng = np.random.default_rng(11)
    n, snr = 24, 100.0
    labels = np.tile([[0.0] * len(LABEL_NAMES)], (n, 1))
    labels[:, INDEX["teff"]] = np.geomspace(8500, 20000, n)
    labels[:, INDEX["logg"]], labels[:, INDEX["vmic"]], labels[:, INDEX["n_he"]] = 4.0, 3.0, 0.09
    labels[:, INDEX["vsini"]] = rng.uniform(80, 200, n)
    powers = np.where(np.arange(n) % 2, 1500.0, 2250.0)
    lsf = np.array([mean_lsf(power, power) for power in powers])
    normalizer = Normalizer(windows.rest_wavelength(), **config.Normalize().model_dump())
    star = emergent(emulator.flux(labels, lsf), labels[:, INDEX["teff"]], normalizer)
    shift = rng.integers(-2, 3, n)
    rest = round((windows.REST_LOG_START - START) / LOG_STEP)
    files = []
    for i in range(n):
        observed, ivar = np.zeros((2, N))
        inside = slice(rest + shift[i], rest + shift[i] + windows.N_REST)
        sigma = star[i] / snr
        observed[inside], ivar[inside] = 40 * (star[i] + rng.normal(0, sigma)), 1 / (40 * sigma) ** 2
        wdisp = np.full(N, 1 / (2.3548 * powers[i] * LOG_STEP * np.log(10)))
        row = {"FIBERID": i + 1, "Z": float(10 ** (LOG_STEP * shift[i]) - 1)}
        pixels = {"flux": observed, "ivar": ivar, "wdisp": wdisp}
        files.append(write_sdss(tmp_path / f"spec-{i}.fits", pixels=pixels, row=row))
    block, rejects = read_spectra(pd.DataFrame({"path": [str(path) for path in files]}), classes=("STAR",))
    assert len(rejects) == 0
    labeler = Labeler(emulator)
    ivar = labeler.usable(block.ivar, block.andmask, block.ormask)
    spread = block.meta[list(LSF_NAMES)].to_numpy()
    found = labeler.label(block.flux, ivar, block.meta["rv"].to_numpy(), spread)
    for name in ("teff", "logg", "vsini", "n_he", "fe_h"):
        sigma = np.sqrt(found["covariance_all"][:, INDEX[name], INDEX[name]])
        pull = (found[f"{name}_all"] - labels[:, INDEX[name]]) / sigma
        assert 0.5 < 1.4826 * np.median(np.abs(pull)) < 1.6, name
        assert abs(np.median(pull)) < 0.8, name
    blind = labeler.label(block.flux, ivar, block.meta["rv"].to_numpy())
    error, without = (np.median(np.abs(r["vsini_all"] - labels[:, INDEX["vsini"]])) for r in (found, blind))
    assert without > 1.5 * error
