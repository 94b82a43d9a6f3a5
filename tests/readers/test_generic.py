"""Files of every common kind hold the same spectrum, written here by astropy as instruments write it."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import Table

from hotdask.errors import InputError
from hotdask.readers.generic import read
from hotdask.windows import FWHM

LINEAR = 3800 + 0.5 * np.arange(6000)
LOG = 10 ** (3.58 + 4e-5 * np.arange(9000))


def flux_of(wavelength: np.ndarray) -> np.ndarray:
    return 100 * (1 - 0.4 * np.exp(-0.5 * ((wavelength - 4861) / 8) ** 2))


def image(path: Path, flux: np.ndarray, cards: dict, *more) -> Path:
    hdu = fits.PrimaryHDU(flux.astype(np.float32))
    hdu.header.update(cards)
    fits.HDUList([hdu, *more]).writeto(path)
    return path


def check(found, wavelength: np.ndarray, *, medium: str, error: float | None = 2.0) -> None:
    assert found.wavelength == pytest.approx(wavelength, rel=1e-7)
    assert found.flux == pytest.approx(flux_of(wavelength), rel=1e-5)
    assert found.medium == medium
    if error is not None:
        assert found.uncertainty == pytest.approx(error, rel=1e-5)


LN = np.exp(8.25 + 1e-4 * np.arange(7000))
IMAGES = {
    "MILES, STELIB, ELODIE": ({"CRVAL1": 3800.0, "CDELT1": 0.5}, LINEAR, "air"),
    "a later reference pixel": ({"CRVAL1": 3849.5, "CDELT1": 0.5, "CRPIX1": 100}, LINEAR, "air"),
    "reference pixel 0": ({"CRVAL1": 3799.5, "CDELT1": 0.5, "CRPIX1": 0}, LINEAR, "air"),
    "a matrix": ({"CRVAL1": 3800.0, "CD1_1": 0.5, "CRPIX1": 1, "CTYPE1": "LINEAR"}, LINEAR, "air"),
    "nm, in air by its type": ({"CRVAL1": 380.0, "CDELT1": 0.05, "CTYPE1": "AWAV", "CUNIT1": "nm"}, LINEAR, "air"),
    "m, in vacuum": ({"CRVAL1": 3.8e-7, "CDELT1": 5e-11, "CTYPE1": "WAVE", "CUNIT1": "m"}, LINEAR, "vacuum"),
    "a keyword for vacuum": ({"CRVAL1": 3800.0, "CDELT1": 0.5, "VACUUM": True}, LINEAR, "vacuum"),
    "IRAF's logarithm": ({"CRVAL1": 3.58, "CD1_1": 4e-5, "DC-FLAG": 1, "CTYPE1": "LINEAR"}, LOG, "air"),
    "a logarithm nobody mentions": ({"CRVAL1": 3.58, "CDELT1": 4e-5}, LOG, "air"),
    "a natural logarithm": ({"CRVAL1": 8.25, "CDELT1": 1e-4, "AIRORVAC": "vac"}, LN, "vacuum"),
    "SDSS's logarithm": ({"COEFF0": 3.58, "COEFF1": 4e-5, "VACUUM": 1}, LOG, "vacuum"),
    "the standard's logarithm": (
        {"CRVAL1": 3800.0, "CDELT1": 0.35, "CTYPE1": "AWAV-LOG", "CUNIT1": "Angstrom"},
        3800 * np.exp(0.35 * np.arange(7000) / 3800),
        "air",
    ),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_with_a_world_coordinate_system(tmp_path, kind) -> None:
    cards, wavelength, medium = IMAGES[kind]
    noise = fits.ImageHDU(np.full(len(wavelength), 2.0, np.float32), name="ERR")
    found = read(image(tmp_path / "a.fits", flux_of(wavelength), {**cards, "OBJECT": "HD 1"}, noise))
    check(found, wavelength, medium=medium)
    assert found.name == "HD 1"
    assert found.rv is None
    said = {"AIRORVAC", "VACUUM"} & cards.keys() or cards.get("CTYPE1", "") in ("AWAV", "WAVE", "AWAV-LOG")
    assert any("wavelengths are taken for those in air" in note for note in found.notes) == (not said)


def test_what_is_said_here_comes_before_what_a_file_says(tmp_path) -> None:
    path = image(tmp_path / "a.fits", flux_of(LINEAR), {"CRVAL1": 3800.0, "CDELT1": 0.5, "SPEC_RES": 9000.0})
    assert read(path).resolving_power == pytest.approx(9000)
    found = read(path, medium="vacuum", fwhm=2.5, rv=-12)
    assert (found.medium, found.rv) == ("vacuum", -12)
    assert found.resolving_power == pytest.approx(LINEAR / 2.5)
    # All that is left to be assumed.
    assert [note[:17] for note in found.notes] == ["uncertainties are"]


def test_iraf_bands_and_padded_ends(tmp_path) -> None:
    flux = flux_of(LINEAR)
    flux[:5] = flux[-3:] = 0
    cube = np.stack([flux, flux * 1.1, np.full(6000, 2.0)])[:, None]
    bands = {"BANDID1": "spectrum - background fit", "BANDID2": "raw - background", "BANDID3": "sigma - background"}
    found = read(image(tmp_path / "a.fits", cube, {"CRVAL1": 3800.0, "CD1_1": 0.5, **bands}))
    assert found.flux[5:-3] == pytest.approx(flux[5:-3])
    assert np.flatnonzero(np.isinf(found.uncertainty)).tolist() == [0, 1, 2, 3, 4, 5997, 5998, 5999]
    assert found.uncertainty[5:-3] == pytest.approx(2)


def test_an_eso_phase_3_table(tmp_path) -> None:
    n = len(LINEAR)
    quality = np.zeros(n, np.int32)
    quality[7] = 1
    columns = [
        fits.Column("WAVE", f"{n}D", unit="nm", array=[LINEAR / 10]),
        fits.Column("FLUX", f"{n}E", unit="erg/cm2/s/angstrom", array=[flux_of(LINEAR)]),
        fits.Column("ERR", f"{n}E", unit="erg/cm2/s/angstrom", array=[np.full(n, 2.0)]),
        fits.Column("QUAL", f"{n}J", array=[quality]),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    table.header["TUCD1"] = "em.wl;obs.atmos"
    primary = fits.PrimaryHDU()
    primary.header.update({"SPEC_RES": 9760.0, "SPECSYS": "TOPOCENT", "OBJECT": "HD 2", "RA": 10.0, "DEC": -5.0})
    fits.HDUList([primary, table]).writeto(tmp_path / "adp.fits")
    found = read(tmp_path / "adp.fits")
    assert np.isinf(found.uncertainty[7])
    keep = np.arange(n) != 7
    assert found.uncertainty[keep] == pytest.approx(2)
    assert found.wavelength == pytest.approx(LINEAR)
    assert found.medium == "air"
    assert found.resolving_power == pytest.approx(9760)
    assert dict(found.meta) == {"ra": 10.0, "dec": -5.0}
    assert "wavelengths are topocentric: the velocity holds that of the observer" in found.notes


TABLES = {
    "LAMBDA, SIGMA": {"LAMBDA": LINEAR * units.AA, "flux": flux_of(LINEAR), "Sigma": np.full(6000, 2.0)},
    "WAVE in µm, IVAR": {"wave": LINEAR / 1e4 * units.um, "flux": flux_of(LINEAR), "ivar": np.full(6000, 0.25)},
    "no unit, VAR": {"Wavelength": LINEAR / 10, "FLUX": flux_of(LINEAR), "VAR": np.full(6000, 4.0)},
    "LOGLAM": {"LOGLAM": np.log10(LINEAR), "FLUX": flux_of(LINEAR), "IVAR": np.full(6000, 0.25)},
    "CALSPEC": {
        "WAVELENGTH": LINEAR * units.AA,
        "FLUX": flux_of(LINEAR),
        "STATERROR": np.full(6000, 2.0),
        "SYSERROR": np.full(6000, 9.0),
        "FWHM": np.full(6000, 2.0),
    },
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_one_row_a_pixel(tmp_path, kind) -> None:
    Table(TABLES[kind]).write(tmp_path / "a.fits")
    found = read(tmp_path / "a.fits")
    check(found, LINEAR, medium="vacuum")
    if kind == "CALSPEC":
        assert found.resolving_power == pytest.approx(LINEAR / 2)
    # Whatever it is called, and gzipped.
    with open(tmp_path / "a.fits", "rb") as plain, gzip.open(tmp_path / "b", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    assert np.array_equal(read(tmp_path / "b").flux, found.flux)


def test_tables_of_text(tmp_path) -> None:
    columns = np.column_stack([LINEAR, flux_of(LINEAR), np.full(6000, 2.0)])
    np.savetxt(tmp_path / "plain.dat", columns, header="a comment")
    np.savetxt(tmp_path / "plain.csv", columns, delimiter=",")
    np.savetxt(tmp_path / "named.csv", columns, delimiter=",", header="lambda,flux,err", comments="")
    np.savetxt(tmp_path / "swapped.csv", columns[:, ::-1], delimiter=",", header="error,flux,wavelength", comments="")
    named = Table({"wavelength": LINEAR / 10 * units.nm, "flux": flux_of(LINEAR), "uncertainty": np.full(6000, 2.0)})
    named.write(tmp_path / "a.ecsv")
    for name in ("plain.dat", "plain.csv", "named.csv", "swapped.csv", "a.ecsv"):
        found = read(tmp_path / name)
        check(found, LINEAR, medium="vacuum")
        assert found.name == name
    np.savetxt(tmp_path / "two", columns[:, :2])
    found = read(tmp_path / "two", medium="air")
    check(found, LINEAR, medium="air", error=None)
    assert "uncertainties are estimated" in found.notes[0]


def test_a_survey_keeps_its_velocity_position_and_masks(lamost_files) -> None:
    path = lamost_files / "dr5"
    path = sorted(path.glob("*.fits*"))[0]
    found = read(path)
    assert found.name == "55859-F5902-01-005"
    assert found.rv == pytest.approx(-75.08, abs=0.01)
    assert found.rv_err > 0
    assert {"ra", "dec", "snr_g"} == found.meta.keys()
    assert found.resolving_power == pytest.approx(1800)
    assert read(path, rv=3).rv == 3


def test_masked_pixels_of_a_survey_are_bad(lamost_files, tmp_path) -> None:
    path = sorted((lamost_files / "dr5").glob("*.fits*"))[0]
    place = tmp_path / path.name.removesuffix(".gz")
    with fits.open(path) as hdus:
        first = round((hdus[0].header["COEFF0"] - 3.5682) / 1e-4)
        assert hdus[0].data[1, 1000] > 0
        hdus[0].data[3, 1000] = 4
        hdus.writeto(place, output_verify="ignore")
    before, after = read(path).uncertainty, read(place).uncertainty
    assert np.flatnonzero(np.isfinite(before) & np.isinf(after)).tolist() == [1000 + first]


def test_a_survey_without_velocity_is_read(lamost_files, tmp_path) -> None:
    path = sorted((lamost_files / "dr5").glob("*.fits*"))[0]
    with fits.open(path) as hdus:
        hdus[0].header["Z"] = -9999.0
        hdus.writeto(tmp_path / path.name.removesuffix(".gz"), output_verify="ignore")
    found = read(tmp_path / path.name.removesuffix(".gz"))
    assert found.rv is None
    assert np.isnan(found.rv_err)


def test_a_row_of_a_length_of_its_own(tmp_path) -> None:
    columns = [fits.Column(name, "PD()", array=[values]) for name, values in (("WAVE", LINEAR), ("FLUX", LINEAR))]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "a.fits")
    found = read(tmp_path / "a.fits", rv=1, resolving_power=9000)
    assert np.array_equal(found.flux, LINEAR)


def test_files_of_surveys_that_lack_something_say_what(lamost_files, tmp_path) -> None:
    path = sorted((lamost_files / "dr5").glob("*.fits*"))[0]
    with fits.open(path) as hdus:
        hdus[0].header["HELIO"] = False
        hdus.writeto(tmp_path / "a.fits", output_verify="ignore")
    with pytest.raises(InputError, match="HELIO = F in the header"):
        read(tmp_path / "a.fits")


def test_what_is_no_spectrum_is_named_with_a_remedy(tmp_path) -> None:
    (tmp_path / "page.html").write_text("<html>no file</html>\n<p>at all")
    fits.PrimaryHDU(np.ones((30, 50))).writeto(tmp_path / "picture.fits")
    image(tmp_path / "bare.fits", flux_of(LINEAR), {})
    image(tmp_path / "multispec.fits", flux_of(LINEAR), {"CTYPE1": "MULTISPE", "CRVAL1": 1.0, "CDELT1": 1.0})
    Table({"a": LINEAR, "b": LINEAR}).write(tmp_path / "other.fits")
    Table({"WAVE": [LINEAR, LINEAR], "FLUX": [LINEAR, LINEAR]}).write(tmp_path / "many.fits")
    (tmp_path / "names.csv").write_text("star,teff\nVega,9550\n")
    whole = (tmp_path / "bare.fits").read_bytes()
    (tmp_path / "cut.fits").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.fits").write_bytes(b"")
    for name, told in {
        "page.html": "name them wavelength, flux and error",
        "picture.fits": "its image has the shape \\(30, 50\\)",
        "bare.fits": "no CRVAL1 with CDELT1",
        "multispec.fits": "multispec.*onedspec",
        "other.fits": "holds no spectrum that is understood|specutils",
        "many.fits": "its table holds 2 spectra; give one as",
        "names.csv": "has the columns star, teff; name them wavelength, flux and error",
        "cut.fits": "fetch it again|truncated|cut",
        "empty.fits": "has 0 bytes",
        "absent.fits": "no such file; check the path",
    }.items():
        with pytest.raises(InputError, match=told) as error:
            read(tmp_path / name)
        assert str(error.value).count(f"{tmp_path / name}: ") == 1


def test_line_spread_of_sdss_is_taken(tmp_path) -> None:
    wavelength = 10 ** (3.58 + 1e-4 * np.arange(3700))
    columns = {"flux": flux_of(wavelength), "loglam": np.log10(wavelength), "ivar": np.full(3700, 0.25)}
    Table(columns | {"wdisp": np.full(3700, 1.1)}).write(tmp_path / "a.fits")
    found = read(tmp_path / "a.fits")
    assert found.resolving_power == pytest.approx(1 / (1.1 * 1e-4 * np.log(10) * FWHM))


def test_specutils_reads_what_is_not_known_here(tmp_path) -> None:
    pytest.importorskip("specutils", reason="specutils is not installed")
    Table({"a": LINEAR}).write(tmp_path / "a.fits")
    with pytest.raises(InputError, match="neither hotdask nor specutils reads it"):
        read(tmp_path / "a.fits")
