"""Stark widths of He I by level, against those that line lists hold and against hydrogen's growth with n."""

import numpy as np
import pytest

from hotdask.library.atoms import ionization_energy
from hotdask.library.corrections import correct
from hotdask.library.heliumwidths import helium_stark
from hotdask.library.linelist import HC, LineList, default_damping, read_lines
from hotdask.windows import air_to_vacuum


@pytest.mark.parametrize(
    "wavelength", [3888.649, 3964.729, 4026.187, 4120.811, 4387.929, 4437.551, 4471.473, 4713.139, 5015.678, 7065.176]
)
def test_the_widths_that_lists_know_come_out(synthesis, wavelength):
    lines = read_lines(synthesis / "lines_hot.npz")
    rows = (lines.z == 2) & (lines.ion == 1) & (np.abs(lines.wavelength - air_to_vacuum(wavelength)) < 0.005)
    found = np.log10(helium_stark((lines.elo + HC / lines.wavelength)[rows]))
    np.testing.assert_allclose(found, lines.log_gstark[rows], atol=0.08)


def test_diffuse_lines_grow_as_those_of_hydrogen():
    """Between n = 10 and 14 by n^3 to n^4.5; the interval between hydrogen's Stark components grows as n(n - 1)."""
    n = np.arange(8, 15)
    widths = helium_stark(24.587389 - 13.60383 / (n - 0.002) ** 2)
    slope = np.diff(np.log(widths)) / np.diff(np.log(n))
    assert np.all((slope > 3) & (slope < 4.5))


@pytest.mark.parametrize(("wavelength", "elo"), [(4143.761, 21.218), (4009.258, 21.218), (3833.552, 21.218)])
def test_a_list_without_widths_gets_them(wavelength, elo):
    unknown = np.array([np.nan])
    arrays = (np.array([x]) for x in (air_to_vacuum(wavelength), 0.0, elo))
    line = LineList(np.array([2]), np.array([1]), *arrays, unknown, unknown, unknown, "one", "")
    _, unsold, _ = default_damping(line, ionization_energy)
    _, stark, _ = default_damping(correct(line)[0], ionization_energy)
    assert stark[0] > 10 * unsold[0]


def test_beyond_the_limit_widths_stay_finite():
    widths = helium_stark(np.array([20.0, 24.58, 24.5874, 25.0]))
    assert np.isfinite(widths).all()
    assert widths[-1] == widths[-2] == widths.max()
