import numpy as np
import pytest

from hotdask.errors import InputError
from hotdask.library.atoms import data_folder
from hotdask.library.modelatoms import read_model_ion


def test_helium_has_its_lines_and_thresholds():
    helium = read_model_ion(data_folder() / "he1.dat", 0)
    # NIST: 24.587 eV, and 5875.6 Å (air) between 2 3P and 3 3D with f = 0.61.
    assert helium.binding[0] * 4.135667696e-15 == pytest.approx(24.587, abs=0.003)
    line = (helium.lower == 3) & (helium.upper == 8)
    assert helium.strength[line] == pytest.approx(0.610, abs=0.002)
    wavelength = 2.99792458e18 / (helium.binding[3] - helium.binding[8])
    assert wavelength == pytest.approx(5877.2, abs=2)


def test_tabulated_cross_section_is_that_of_the_opacity_project():
    helium = read_model_ion(data_folder() / "he1.t", 0)
    # Samson et al. 1994 measured 7.40 Mb at the threshold of the ground state.
    edge = helium.photoionization(0, helium.binding[:1] * 1.001)
    assert edge == pytest.approx(7.4e-18, rel=0.03)
    assert helium.photoionization(0, helium.binding[:1] * 0.999) == 0


def test_hydrogenic_cross_section_scales_with_charge():
    hydrogen, ionized = read_model_ion(data_folder() / "h1.dat", 0), read_model_ion(data_folder() / "he2.dat", 1)
    for level in (0, 2, 5):
        ours = ionized.photoionization(level, ionized.binding[level : level + 1] * 1.5)
        assert ours * 4 == pytest.approx(
            hydrogen.photoionization(level, hydrogen.binding[level : level + 1] * 1.5), rel=1e-3
        )


def test_every_exponent_of_fortran_is_read():
    text = (data_folder() / "n4_34+14lev.dat").read_text()
    assert "9.825-20" in text
    assert np.isfinite(read_model_ion(data_folder() / "n4_34+14lev.dat", 3).ionization_value).all()


def test_damaged_file_is_named(tmp_path):
    path = tmp_path / "x1.dat"
    path.write_text(
        "****** Levels\n 1.0D15 2. 1 'ground' 0 0. 0\n****** Continuum transitions\n 1 2 1 105 0 0 0 1.0 0.\n 0.0\n"
    )
    with pytest.raises(InputError, match=r"x1\.dat"):
        read_model_ion(path, 0)
