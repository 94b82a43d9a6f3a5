"""Stark profiles of He I from a file: against the file, Voigt profiles, the installed tables and a real line list."""

import numpy as np
import pytest
from scipy import constants
from scipy.special import voigt_profile

from hotdask.errors import InputError
from hotdask.library.helium import helium_profile, replaced_lines, stark_tables
from hotdask.library.helium_profiles import (
    ProfileTable,
    fine_structure,
    read_helium_profiles,
    read_profile_tables,
    stark_line,
)
from hotdask.library.starktables import THERMAL
from hotdask.windows import air_to_vacuum

C = constants.c * 1e10
FILE = "he1_stark_tremblay2026.dat"
# Broadened by electrons alone, nearly: upper levels far from those that ions mix them with.
ISOLATED = ("4121", "4713", "5048", "5016", "5876", "6678", "7065", "7281")


@pytest.fixture(scope="module")
def profiles(synthesis):
    return read_helium_profiles(synthesis / FILE)


@pytest.fixture(scope="module")
def lines(profiles):
    return {line.name.removeprefix("He I "): line for line in profiles.lines}


@pytest.fixture(scope="module")
def tables(synthesis):
    temperature, tables = read_profile_tables(synthesis / FILE)
    return temperature, {table.name: table for table in tables}


def profile(line, log_ne, kelvin, offset):
    """Profile per Å of one layer without turbulence."""
    velocity = np.array([np.sqrt(THERMAL * kelvin)])
    log = helium_profile(np.array([log_ne]), np.array([kelvin]), velocity, line)[:, 0]
    return np.exp(np.interp(offset, line.offset, log)) * C / line.wavelength**2


def sigma(line, kelvin):
    return np.sqrt(THERMAL * kelvin / 2) / (constants.c * 100) * line.wavelength


def test_the_file_is_read_whole(tables):
    temperature, found = tables
    assert temperature.tolist() == [1e4, 2e4, 4e4]
    assert len(found) == 44
    # 584 has profiles as well, in the far ultraviolet.
    assert sum(table.profile.size > 0 for table in found.values()) == 37
    table = found["4471"]
    assert (table.wavelength, table.f, table.density) == (4471.48, 0.123, 1e16)
    assert table.half_width.tolist() == [1.239, 1.059, 0.8852]
    assert (len(table.log_ne), table.log_ne[0], table.offset[0], table.offset[-1]) == (11, 13.0, -200, 200)
    assert table.profile[0, 0, [0, -1]].tolist() == [0.41276e-8, 0.49955e-8]
    assert found["20581"].profile.size == 0


@pytest.mark.parametrize("kelvin", [1e4, 1.4e4, 4e4])
@pytest.mark.parametrize("log_ne", [11.0, 13.0, 14.3, 15.7])
def test_area_is_one(lines, log_ne, kelvin):
    x = np.concatenate([-np.geomspace(395, 3, 2000), np.arange(-3, 3, 0.005), np.geomspace(3, 395, 2000)])
    for name, line in lines.items():
        got = profile(line, log_ne, kelvin, x)
        wings = 395 / 1.35 * (got[0] + got[-1])
        assert np.trapezoid(got, x) + wings == pytest.approx(1, abs=0.03), name


def test_tabulated_values_come_back(lines, tables):
    temperature, found = tables
    for name, line in lines.items():
        table = found[name]
        near = np.abs(table.offset) < 30
        for i in np.flatnonzero((table.log_ne > 12.9) & (table.log_ne < 16.1)):
            for t, kelvin in enumerate(temperature):
                got = profile(line, table.log_ne[i], kelvin, table.offset[near])
                error = np.abs(got / table.profile[i, t, near] - 1)
                # Far from the center the grid is a little coarser than the table where a forbidden component is.
                assert error.max() < 0.12, name
                assert np.quantile(error, 0.95) < 0.03, name


def test_the_tables_hold_thermal_motion_and_fine_structure(lines, tables):
    # The sparsest tables of lines that electrons hardly broaden there are thermal profiles of the multiplet.
    temperature, found = tables
    for name in ("3889", "5016", "5876", "6678", "7065", "7281"):
        table, line = found[name], lines[name]
        near = np.abs(table.offset) < 0.3
        for t, kelvin in enumerate(temperature):
            width = table.half_width[t] * 1e13 / table.density
            expected = sum(
                w * voigt_profile(table.offset[near] - s, sigma(line, kelvin), width) for w, s in line.groups
            )
            assert np.abs(table.profile[0, t, near] - expected).max() < 0.02 * expected.max(), name


@pytest.mark.parametrize("kelvin", [5e3, 1e4, 2e4, 9e4])
def test_sparse_gas_gives_voigt_profiles(lines, tables, kelvin):
    temperature, found = tables
    for name, line in lines.items():
        x = np.linspace(-0.4, 0.4, 81) * line.wavelength / 4500
        width = np.interp(kelvin, temperature, found[name].half_width) * 1e11 / found[name].density
        expected = sum(weight * voigt_profile(x - shift, sigma(line, kelvin), width) for weight, shift in line.groups)
        assert np.abs(profile(line, 11.0, kelvin, x) - expected).max() < 0.04 * expected.max(), name


def test_sparse_wings_are_in_proportion_to_density(lines):
    x = np.array([-15.0, -6.0, 6.0, 15.0])
    for name, line in lines.items():
        growth = profile(line, 12.0, 2e4, x) / profile(line, 11.0, 2e4, x)
        np.testing.assert_allclose(growth, 10, rtol=0.05, err_msg=name)


@pytest.mark.parametrize("kelvin", [1e4, 2e4, 4e4])
def test_isolated_lines_in_dense_gas_have_the_half_width_of_electron_impacts(lines, tables, kelvin):
    # The file's second account of them. Ions add A of it, 0.06 to 0.3 at 1e16, less in a gas that is denser.
    temperature, found = tables
    x = np.arange(-60, 60, 0.01)
    for name in ISOLATED:
        got = profile(lines[name], 17.0, kelvin, x)
        above = x[got > got.max() / 2]
        expected = 10 * found[name].half_width[temperature.tolist().index(kelvin)]
        assert 0.93 < (above[-1] - above[0]) / 2 / expected < 1.25, name


def test_wings_fall_without_a_cliff(lines):
    # Where no forbidden component is in the way.
    for name in ("3705", "3872", "3927", "4009", "4144", "4388", "4922", "7065", "7281"):
        for log_ne in (11.0, 14.0, 16.0):
            for side in (-1, 1):
                x = side * np.geomspace(60, 390, 30)
                slope = np.diff(np.log(profile(lines[name], log_ne, 2e4, x))) / np.diff(np.log(np.abs(x)))
                assert slope.min() > -3.1, (name, log_ne)
                assert slope.max() < -1.3, (name, log_ne)


@pytest.mark.parametrize("name", ["3889", "4009", "4471", "5876"])
def test_profiles_are_continuous_in_density_and_temperature(lines, name):
    x = np.concatenate([-np.geomspace(40, 0.05, 60), [0.0], np.geomspace(0.05, 40, 60)])
    by_density = np.log([profile(lines[name], n, 1.9e4, x) for n in np.arange(9.0, 18.6, 0.02)])
    assert np.abs(np.diff(by_density, axis=0)).max() < 0.2
    by_temperature = np.log([profile(lines[name], 14.5, t, x) for t in np.geomspace(4e3, 1.2e5, 300)])
    assert np.abs(np.diff(by_temperature, axis=0)).max() < 0.2


@pytest.mark.parametrize("name", ["4026", "4388", "4471", "4922"])
def test_wings_agree_with_the_older_tables(lines, name):
    line = lines[name]
    older = next(table for table in stark_tables() if table.name == f"He I {name}")
    # Not where the older tables lack the forbidden 2 1P - n 1P, 5 and 11 Å to the blue.
    x = np.array([-20.0, -8.0, -3.0, 3.0, 5.0, 15.0])
    for log_ne in (14.0, 15.0, 16.0):
        for kelvin in (1e4, 2e4, 4e4):
            ratio = profile(line, log_ne, kelvin, x + older.wavelength - line.wavelength) / profile(
                older, log_ne, kelvin, x
            )
            assert np.abs(np.log(ratio)).max() < 0.35, (log_ne, kelvin)
            assert abs(np.log(ratio).mean()) < 0.2, (log_ne, kelvin)


def test_strengths_and_levels_agree_with_the_line_list(lines, synthesis):
    with np.load(synthesis / "lines_hot.npz") as data:
        helium = (data["z"] == 2) & (data["ion"] == 1)
        air, loggf, elo = (data[k][helium] for k in ("wl_air", "loggf", "elo_ev"))
    vacuum = air_to_vacuum(air)
    # Drake's f fall smoothly with n, as the file's; those of the list do not, in these series.
    loose = {"3705": 0.06, "3820": 0.04, "3872": 0.03, "4009": 0.03, "4713": 0.05}
    taken = np.zeros(len(air), dtype=int)
    for name, line in lines.items():
        own = replaced_lines(np.full(len(air), 2), np.ones(len(air)), vacuum, [line])
        taken += own
        assert own.sum() == {"2 3P": 6 if line.terms[1].endswith("D") else 3, "2 3S": 3}.get(line.terms[0], 1), name
        assert np.log10(line.g_lower * line.f) == pytest.approx(
            np.log10(np.sum(10 ** loggf[own])), abs=loose.get(name, 0.021)
        ), name
        # Strong lines, by the mean over their fine structure; offsets count from J = 2.
        mean = np.average(vacuum[own], weights=10 ** loggf[own])
        assert mean == pytest.approx(line.wavelength + sum(w * s for w, s in line.groups), abs=0.035), name
        np.testing.assert_allclose(elo[own], line.elo_ev, atol=0.001)
        assert line.eup_ev - line.elo_ev == pytest.approx(12398.42 / line.wavelength, rel=1e-6)
        assert line.terms[0][2] == line.terms[1][2], name
    assert taken.max() == 1
    # Nothing as strong as the weakest of the multiplets is left within reach of one.
    left = taken == 0
    for line in lines.values():
        near = left & (np.abs(vacuum - line.wavelength) < 1.2) & (loggf > np.log10(line.g_lower * line.f) - 1.5)
        assert not near.any(), line.name


def test_fine_structure_is_that_of_the_level_2_3p():
    # NIST: 7065.177, 7065.215, 7065.707 Å.
    weights, offsets = zip(*fine_structure(float(air_to_vacuum(7065.177))), strict=True)
    assert sum(weights) == pytest.approx(1)
    np.testing.assert_allclose(offsets, [0, 0.038, 0.530], atol=0.003)


THERMAL_4922 = [np.sqrt(THERMAL * kelvin / 2) / (constants.c * 100) * 4923.305 for kelvin in (1e4, 2e4)]


def small_file():
    """A file of one spectral line at 4922 Å: Voigt profiles at two densities and temperatures."""
    x = np.arange(-5, 5.1, 0.5)
    profiles = [voigt_profile(x, sigma, width) for width in (0.1, 0.2) for sigma in THERMAL_4922]

    def block(values, form, per_row):
        words = [format(v, form) for v in values]
        return ["".join(words[i : i + per_row]) for i in range(0, len(words), per_row)]

    return [
        "    1",
        "    2",
        "  10000.0  20000.0",
        f"{len(x):4d}{2:3d} 0.1E+14 0.6E+18{'LAMBDA':>36s} 4922",
        "  5 16  0.1200E+00  4921.9300",
        "  0.1000E+00  0.1000E+00",
        "  0.0000E+00  0.0000E+00",
        "  0.1000E+00  0.1000E+00",
        "  0.10E+16     2",
        "      0.00     -1.32    -11.19",
        "",
        *block((1e15, 2e15), "8.1E", 9),
        *block(x, "8.3f", 9),
        *(row for values in profiles for row in block(values, "12.5E", 6)),
    ]


def written(tmp_path, rows):
    path = tmp_path / "profiles.dat"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_small_file_is_read(tmp_path):
    temperature, (table,) = read_profile_tables(written(tmp_path, small_file()))
    assert isinstance(table, ProfileTable)
    assert table.profile.shape == (2, 2, 21)
    line = stark_line(table, temperature)
    x = np.linspace(-3, 3, 50)
    # The offsets of the file are 0.5 Å apart, many times the thermal width.
    np.testing.assert_allclose(profile(line, 15.0, 1e4, x), voigt_profile(x, THERMAL_4922[0], 0.1), rtol=0.03)
    with pytest.raises(InputError, match=r"profiles\.dat: no profiles of the lines 3705, 3734.*Tremblay"):
        read_helium_profiles(tmp_path / "profiles.dat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], r"line 1: '' is no number of lines"),
        (lambda rows: ["z,ion,wl_air"], r"line 1: 'z,ion,wl_air' is no number of lines"),
        (lambda rows: rows[:-1], r"line 31: the file ends too early"),
        (lambda rows: [*rows[:2], "  20000.0  10000.0", *rows[3:]], r"line 3: the temperatures do not increase"),
        (lambda rows: [*rows[:3], rows[3].replace("LAMBDA", "LANDA"), *rows[4:]], r"line 4: .* is not the head"),
        (lambda rows: [*rows[:5], "  0.1000E+00", *rows[6:]], r"line 6: 1 instead of 2 numbers"),
        (lambda rows: [*rows[:12], rows[12].replace("-4.5", "-5.5"), *rows[13:]], r"line 15: the offsets do not"),
        (lambda rows: [*rows[:-1], f"{rows[-1][:24]}        what"], r"line 31: .*is no number"),
        (lambda rows: [*rows[:-1], rows[-1].replace(" ", "-", 1)], r"line 31: a profile is not positive"),
        (lambda rows: [*rows[:-1], rows[-1][:12] + "         nan" + rows[-1][24:]], r"line 31: nan is not finite"),
        (lambda rows: ["    2", *rows[1:]], r"line 32: the file ends too early"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path, change, message):
    path = written(tmp_path, change(small_file()))
    with pytest.raises(InputError, match=r"profiles\.dat, " + message + r".*Tremblay et al\. 2026"):
        read_profile_tables(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00\x01"])
def test_missing_and_binary_files(tmp_path, content):
    path = tmp_path / "profiles.dat"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"profiles\.dat: cannot be read.*Tremblay"):
        read_profile_tables(path)
