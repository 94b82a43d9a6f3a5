"""Libraries of spectra as they are published, written here in miniature; and the real ones where they are at hand."""

import numpy as np
import pytest
from astropy.io import fits

from hotdask.errors import InputError
from hotdask.labels import INDEX
from hotdask.validation.libraries import read_stars

# Lines of the table as published; columns are of fixed width, and not all stars have a number of CaT.
MILES = """Name                  MILES   CaT   SpT            Teff   log g   [Fe/H]  Refs   Libraries
                      s????
 - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - --
HD000249               0005   158   K1IV            4717   2.40    -0.35   232     J   I
HD000886               0011         B2IV           21581   3.86     0.06   333         I E
HD013267               0078   197   B5Ia           13800   2.44      --    66            E
HD098468               0407         K0                --     --      --     --
HD161817               0647   497   A2 VI (HB)      7783   2.95    -0.95   331   L   S
HD 029375         Cl   0910   032   F0 V            7164   4.17     0.13   2     L
"""


def _image(path, flux, **header):
    hdu = fits.PrimaryHDU(np.asarray(flux))
    hdu.header.update(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    hdu.writeto(path)


@pytest.fixture
def wheel(tmp_path):
    miles, stelib = tmp_path / "miles", tmp_path / "stelib"
    for number in ("0005", "0011", "0078", "0910"):
        _image(miles / f"MILES_res2.50_star_m{number}V.fits", np.full(50, float(number)), CRVAL1=3540.5, CDELT1=0.9)
    (miles / "paramsMILES_v9.1.txt").write_text(MILES, encoding="latin-1")
    stars = {
        "HD036512": ("B0V", "32200", "4.13", "0.25"),
        "HD030739": ("A1Vn", "-", "-", "-"),
        "HD064090": ("sdG2", "5413", "4.53", "-1.7"),
        "HD020000": ("K0III", "-", "-", "-"),
        "HD053929lp": ("B9.5III", "14011", "3.63", "0.29"),
    }
    for i, (name, (spectral_type, teff, logg, fe_h)) in enumerate(stars.items()):
        header = {"SPECTYPE": spectral_type, "TEFF": teff, "LOG_G": logg, "FE_H": fe_h, "CRVAL1": 3199.0 + i}
        _image(stelib / f"STELIB_v3.2_{name}.fits", [1, 2, -1, 3], CDELT1=0.5, CRPIX1=2, **header)
    return tmp_path


def test_the_wheel_is_read(wheel):
    miles, *stelib = read_stars(wheel)
    assert miles.name.tolist() == ["HD000886", "HD013267", "HD 029375         Cl"]
    assert miles.spectral_type.tolist() == ["B2IV", "B5Ia", "F0 V"]
    assert miles.labels[:, :2].tolist() == [[21581, 3.86], [13800, 2.44], [7164, 4.17]]
    assert np.isnan(miles.labels[1, INDEX["fe_h"]])
    assert miles.flux[:, 0].tolist() == [11, 78, 910]
    assert miles.wavelength[:2].tolist() == [3540.5, 3541.4]
    assert (miles.fwhm, miles.air, miles.rv) == (2.5, True, 0)

    found = {s.name[0]: s for s in stelib}
    assert set(found) == {"HD036512", "HD030739", "HD053929"}
    star = found["HD036512"]
    assert star.labels[0, [0, 1, INDEX["fe_h"]]].tolist() == [32200, 4.13, 0.25]
    assert star.wavelength.tolist() == [3198.5, 3199, 3199.5, 3200]
    assert np.isnan(star.flux[0]).tolist() == [False, False, True, False]
    assert np.isnan(found["HD030739"].labels).all()


def test_archives_are_read_by_name(tmp_path):
    arrays = {
        "wavelength_air": np.arange(4000.0, 4010),
        "flux": np.ones((2, 10)),
        "name": np.array(["HD 1", "HD 2"]),
        "spectral_type": np.array(["B2V", "F5V"]),
        "teff": np.array([20000.0, 6500]),
        "logg": np.array([4.0, 4]),
        "fe_h": np.array([0.0, 0]),
    }
    np.savez(tmp_path / "stelib_some.npz", **arrays)
    np.savez(tmp_path / "other.npz", **arrays)
    (found,) = read_stars(tmp_path)
    assert (found.name.tolist(), found.fwhm) == (["HD 1"], 3.0)


def test_a_table_of_ones_own_is_read(tmp_path):
    np.savetxt(tmp_path / "one.txt", np.column_stack([np.arange(4000.0, 4005), np.arange(5.0)]))
    _image(tmp_path / "two.fits", np.ones(5), CRVAL1=4000.0, CDELT1=1.0)
    (tmp_path / "stars.csv").write_text(
        "name,path,spectral_type,air,fwhm,resolving_power,rv,teff,vsini\n"
        "HD 1,one.txt,B2V,false,0.3,,12.5,20000,\n"
        "HD 2,two.fits,,,,2000,,,150\n",
        encoding="utf-8",
    )
    one, two = read_stars(tmp_path / "stars.csv")
    assert (one.air, one.fwhm, one.rv, one.spectral_type[0]) == (False, 0.3, 12.5, "B2V")
    assert one.flux.tolist() == [[0, 1, 2, 3, 4]]
    assert one.labels[0, 0] == 20000
    assert (two.air, two.rv, two.source) == (True, 0.0, "stars.csv")
    assert two.fwhm == pytest.approx(two.wavelength / 2000)
    assert two.labels[0, INDEX["vsini"]] == 150


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name,path\nHD 1,one.txt\n", "fwhm"),
        ("path,fwhm\none.txt,1\n", "no column name"),
        ("name,path,fwhm\nHD 1,absent.txt,1\n", "absent.txt"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, told):
    (tmp_path / "stars.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_stars(tmp_path / "stars.csv")


def test_what_is_no_library_is_refused(tmp_path):
    with pytest.raises(InputError, match="sdss-mangadap"):
        read_stars(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_stars(tmp_path / "absent")
    (tmp_path / "miles_x.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be read"):
        read_stars(tmp_path)


def test_the_real_ones(reference_stars):
    miles, stelib = sorted(read_stars(reference_stars), key=lambda s: s.source)
    assert (len(miles.name), len(stelib.name)) == (86, 41)
    # Rest wavelengths, in air: the core of Hβ is at 4861.3 Å, also of a star that recedes by -363 km/s (5.9 Å).
    for library, name in ((miles, "HD160762"), (stelib, "HD161817")):
        near = np.flatnonzero(np.abs(library.wavelength - 4861.3) < 12)
        core = near[np.argmin(library.flux[list(library.name).index(name), near])]
        assert library.wavelength[core] == pytest.approx(4861.3, abs=2.5)
