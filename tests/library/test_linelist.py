"""Line lists: both formats, what is left out, and damping against numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotdask.errors import InputError
from hotdask.library.atoms import ionization_energy
from hotdask.library.linelist import HC, LineList, default_damping, read_lines
from hotdask.windows import air_to_vacuum

SOME = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def record(
    wavelength=500.0,
    loggf=-1.0,
    code=26.01,
    first=20000.0,
    second=40000.0,
    grad=8.19,
    gstark=-5.38,
    gvdw=-7.59,
    hyperfine=0.0,
    isotope=0.0,
    kind="   ",
    label="4p y2G",
):
    """One line, as kurucz.harvard.edu/linelists.html describes it."""
    return (
        f"{wavelength:11.4f}{loggf:7.3f}{code:6.2f}{first:12.3f}{3.5:5.1f} {'(3F)5s e2F':10}{second:12.3f}{4.5:5.1f} "
        f"{label:10}{grad:6.2f}{gstark:6.2f}{gvdw:6.2f}{'K88':4}{0:2d}{0:2d}{59:3d}{hyperfine:6.3f}{59:3d}{isotope:6.3f}"
        f"{104:5d}{-77:5d}{'F6 -5 0':7}{kind:3}{1140:5d}{1165:5d}{0:6d}"
    )


def write(path, records):
    path.write_text("".join(line + "\n" for line in records))
    return path


def test_a_record_has_160_columns():
    assert len(record()) == 160


def test_a_published_record(tmp_path):
    # The example of kurucz.harvard.edu/linelists.html, rebuilt; Co I.
    example = record(800.7110, 0.116, 27.00, 45924.947, 33439.661, 8.19, -5.38, -7.59, -2.584, 0.0)
    lines = read_lines(write(tmp_path / "gf0800.100", [example]))
    assert (lines.z[0], lines.ion[0]) == (27, 1)
    # In vacuum, from the levels and their hyperfine shifts of 0.104 and -0.077 1/cm.
    assert lines.wavelength[0] == pytest.approx(1e8 / (45924.947 + 0.104 - 33439.661 + 0.077), abs=1e-3)
    assert lines.elo[0] == pytest.approx(33439.661 / 8065.544, abs=1e-5)
    assert lines.loggf[0] == pytest.approx(0.116 - 2.584)
    assert (lines.log_grad[0], lines.log_gstark[0], lines.log_gvdw[0]) == (8.19, -5.38, -7.59)


@SOME
@given(
    st.lists(
        st.tuples(
            st.floats(200.1, 2000.0),
            st.floats(-9.9, 2.0),
            st.integers(2, 92),
            st.integers(0, 5),
            st.floats(0.0, 90000.0),
            st.booleans(),
            st.sampled_from([-1, 1]),
            st.floats(-9.9, 9.9).filter(lambda x: abs(x) > 0.01),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_what_is_written_is_read(tmp_path, rows):
    """Levels in either order, predicted ones negative; sorted by wavelength; zero damping is unknown."""
    records, expected = [], []
    for air, loggf, z, charge, low, swap, sign, grad in rows:
        air, low, loggf, grad = round(air, 4), round(low, 3), round(loggf, 3), round(grad, 2)
        charge = min(charge, z - 1)
        vacuum = float(air_to_vacuum(10 * air))
        levels = (low, sign * (low + 1e8 / vacuum))
        records.append(record(air, loggf, z + charge / 100, *levels[:: -1 if swap else 1], grad, 0.0, 0.0))
        expected.append((vacuum, z, charge + 1, loggf, low * HC * 1e-8, grad))
    lines = read_lines(write(tmp_path / "list.dat", records))
    order = np.argsort([row[0] for row in expected], kind="stable")
    columns = zip(*(expected[i] for i in order), strict=True)
    for name, column in zip(("wavelength", "z", "ion", "loggf", "elo", "log_grad"), columns, strict=True):
        np.testing.assert_allclose(getattr(lines, name), column, rtol=1e-12, atol=1e-9, err_msg=name)
    assert np.isnan(lines.log_gstark).all()
    assert np.isnan(lines.log_gvdw).all()


def test_fractions_of_isotopes_and_hyperfine_components_are_part_of_the_strength(tmp_path):
    lines = read_lines(write(tmp_path / "gfall.dat", [record(loggf=-1.0, hyperfine=-0.301, isotope=-0.602)]))
    assert lines.loggf[0] == pytest.approx(-1.903)


def test_a_list_in_vacuum_is_known_by_its_levels(tmp_path):
    low, vacuum = 10000.0, np.array([4000.0, 5000.0, 6000.0])
    air = read_lines(
        write(
            tmp_path / "gfall.dat",
            [record(w / 10 / (air_to_vacuum(w) / w), first=low, second=low + 1e8 / w) for w in vacuum],
        )
    )
    same = read_lines(
        write(tmp_path / "gfallvac.dat", [record(w / 10, first=low, second=low + 1e8 / w) for w in vacuum])
    )
    np.testing.assert_allclose(same.wavelength, vacuum, atol=1e-9)
    np.testing.assert_allclose(air.wavelength, vacuum, atol=2e-3)


def test_below_2000_angstrom_all_lists_are_in_vacuum(tmp_path):
    lines = read_lines(write(tmp_path / "uv.dat", [record(154.8187, code=6.03, first=0.0, second=64591.35)]))
    assert lines.wavelength[0] == pytest.approx(1548.187)


def test_what_no_engine_can_use_is_left_out_and_counted(tmp_path):
    records = [
        record(),
        "",
        record(code=1.00),
        record(code=106.00),
        record(code=94.00),
        record(code=26.06),
        record(kind="AUT"),
        record(kind="COR"),
        record(label="CONTINUUM "),
    ]
    lines = read_lines(write(tmp_path / "gfall.dat", records))
    assert len(lines.z) == 1
    assert lines.left_out == 7


@SOME
@given(
    st.integers(0, 4),
    st.sampled_from([(0, 11), (11, 18), (18, 24), (24, 36), (52, 64), (80, 86), (92, 98)]),
    st.binary(min_size=1, max_size=6).filter(
        lambda b: not (set(b) & set(b"\r\n\0 0123456789_\t\v\f\x1c\x1d\x1e\x1f\x85\xa0")) and b.strip()
    ),
)
def test_damage_is_found_where_it_is(tmp_path, row, columns, garbage):
    records = [record().encode() for _ in range(5)]
    start, stop = columns
    records[row] = records[row][:start] + garbage.rjust(stop - start) + records[row][stop:]
    path = tmp_path / "gfall.dat"
    path.write_bytes(b"\n".join(records))
    with pytest.raises(InputError, match=rf"gfall.dat, line {row + 1}: .* in columns {start + 1}-{stop} .*kurucz"):
        read_lines(path)


@SOME
@given(st.binary(max_size=400))
def test_garbage_is_refused(tmp_path, content):
    for name in ("list.dat", "list.npz"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_lines(path)


def test_a_missing_file_says_where_to_get_one(tmp_path):
    for name in ("gfall.dat", "lines.npz"):
        with pytest.raises(InputError, match=rf"{name}.*linelists.html"):
            read_lines(tmp_path / name)


def arrays(n=3, **changes):
    out = {"z": np.full(n, 26), "ion": np.full(n, 2), "wl_air": np.linspace(4000, 5000, n), "loggf": np.zeros(n)}
    return out | {"elo_ev": np.ones(n), "grad": np.zeros(n), "gstark": np.zeros(n), "gvdw": np.zeros(n)} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loggf": np.zeros(2)}, "loggf has the shape"),
        ({"loggf": np.array([0, np.nan, 0])}, r"loggf\[1\] is not finite"),
        ({"wl_air": np.array([4000.0, 0, 5000])}, r"wl_air\[1\] is 0"),
        ({"elo_ev": np.array([1, 1, -2.0])}, r"elo_ev\[2\] is -2"),
        ({"z": np.ones(3)}, "no line of an atom"),
        ({"z": np.array(["Fe", "Fe", "Fe"])}, "cannot be read"),
    ],
)
def test_a_damaged_npz_is_refused(tmp_path, changes, message):
    np.savez(tmp_path / "lines.npz", **arrays(**changes))
    with pytest.raises(InputError, match=message):
        read_lines(tmp_path / "lines.npz")


def test_an_npz_without_an_array_is_refused(tmp_path):
    given_arrays = arrays()
    del given_arrays["gvdw"]
    np.savez(tmp_path / "lines.npz", **given_arrays)
    with pytest.raises(InputError, match=r"arrays \['gvdw'\] are missing"):
        read_lines(tmp_path / "lines.npz")


def test_exact_repetitions_in_an_npz_count_once(tmp_path):
    wave = np.array([4000.0, 4000, 4000, 4000, 4000])
    strength, energy = np.array([0.1, 0.1, 0.2, 0.1, 0.1]), np.array([1.0, 1, 1, 2, 1])
    np.savez(tmp_path / "lines.npz", **arrays(5, wl_air=wave, loggf=strength, elo_ev=energy))
    lines = read_lines(tmp_path / "lines.npz")
    assert sorted(zip(lines.loggf.tolist(), lines.elo.tolist(), strict=True)) == [(0.1, 1), (0.1, 2), (0.2, 1)]
    assert lines.left_out == 2


def test_the_real_list(synthesis):
    lines = read_lines(synthesis / "lines_hot.npz")
    assert len(lines.z) > 160_000
    # Lines of the stretches of 40 Å around 4000, 5000 ... Å, where its parts overlap.
    assert lines.left_out == 2890
    assert np.all(np.diff(lines.wavelength) >= 0)
    # Mg II 4481.126 + 4481.325 and He I 4471 (NIST, air).
    for wave, z, ion, elo in ((4481.126, 12, 2, 8.864), (4471.48, 2, 1, 20.964)):
        near = (lines.z == z) & (lines.ion == ion) & (np.abs(lines.wavelength - air_to_vacuum(wave)) < 0.02)
        assert near.any()
        np.testing.assert_allclose(lines.elo[near], elo, atol=2e-3)
    for gamma in default_damping(lines, ionization_energy):
        assert np.isfinite(gamma).all()
        assert (gamma >= 0).all()


def one_line(z, ion, wavelength, elo) -> LineList:
    unknown = np.array([np.nan])
    values = (np.array([x]) for x in (wavelength, 0.0, elo))
    return LineList(np.array([z]), np.array([ion]), *values, unknown, unknown, unknown, name="one", identity="")


def test_damping_of_hydrogenic_levels():
    """He II 4686: levels 3 and 4 exactly, so that every constant follows from the numbers 3 and 4."""
    energy = 54.4228
    wavelength = HC / (energy * (1 / 9 - 1 / 16))
    rad, stark, vdw = default_damping(
        one_line(2, 2, wavelength, energy * (1 - 1 / 9)), lambda z, ion: np.full(1, energy)
    )
    assert rad[0] == pytest.approx(2.223e15 / wavelength**2)
    assert stark[0] == pytest.approx(1e-8 * 4**5, rel=1e-3)
    assert vdw[0] == pytest.approx(4.5e-9 * (2.5 * (4**4 - 3**4) / 4) ** 0.4, rel=1e-3)


def test_radiative_damping_is_that_of_a_classical_electron():
    # 8 π² e² / (3 m c λ²), cgs.
    rad, _, _ = default_damping(one_line(26, 1, 5000.0, 1.0), ionization_energy)
    assert rad[0] == pytest.approx(
        8 * np.pi**2 * 4.80320e-10**2 / (3 * 9.10938e-28 * 2.997925e10 * (5e-5) ** 2), rel=1e-3
    )


def test_van_der_waals_of_the_iron_group_depends_on_the_electrons_alone():
    """Fe II has 25 electrons: mean square radius (45 - 25)/2."""
    for wavelength in (4000.0, 6000.0):
        _, _, vdw = default_damping(one_line(26, 2, wavelength, 2.8), ionization_energy)
        assert vdw[0] == pytest.approx(4.5e-9 * 10**0.4)


def test_levels_above_the_limit_or_without_one():
    for line, energy in ((one_line(12, 1, 3000.0, 5.0), 7.646), (one_line(12, 1, 3000.0, 5.0), np.inf)):
        _, stark, vdw = default_damping(line, lambda z, ion, energy=energy: np.full(1, energy))
        assert stark[0] == pytest.approx(1e-8 * 25**2.5)
        assert np.isfinite(vdw[0])


def test_what_the_list_knows_is_kept():
    line = one_line(12, 2, 4482.4, 8.864)
    known = replace(line, log_gstark=np.array([-4.7]))
    assumed = default_damping(line, ionization_energy)
    given_damping = default_damping(known, ionization_energy)
    assert given_damping[1][0] == pytest.approx(10**-4.7)
    assert given_damping[0] == assumed[0]
    assert given_damping[2] == assumed[2]
