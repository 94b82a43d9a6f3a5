"""Model atmospheres: what the interpolation promises, and decks as Kurucz publishes them."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hotdask.errors import InputError, SynthesisError
from hotdask.library.abundances import abundances
from hotdask.library.atmospheres import Atmosphere, AtmosphereGrid, read_atmospheres, rosseland_depth
from hotdask.library.hydrostatic import extend_grid
from hotdask.library.state import ATOMIC_MASS, K_ERG, solve_state

SOME = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
QUANTITIES = ("rhox", "temperature", "pressure", "electron_density", "kappa_rosseland")


def ragged_grid(structure=None) -> AtmosphereGrid:
    """Models at (Teff, floor of log g) and two [M/H], the floors ragged as ATLAS9's; one log g besides the half steps.

    `structure` gives log10 of a quantity from log Teff, log g and [M/H]; a plane that interpolation must return.
    """
    structure = structure or (lambda t, g, m: 0.7 * t - 0.3 * g + 0.2 * m)
    floors = {10000.0: 2.0, 12000.0: 2.5, 14000.0: 2.0, 20000.0: 3.0, 27000.0: 3.5, 32000.0: 4.5, 50000.0: 5.0}
    nodes = [
        (teff, logg, mh)
        for mh in (-0.5, 0.0)
        for teff, floor in floors.items()
        for logg in np.arange(floor, 5.01, 0.5)
        if (teff, mh) != (14000.0, -0.5)
    ] + [(20000.0, 3.3, 0.0)]
    teff, logg, mh = np.array(nodes).T
    log_tau = np.linspace(-4, 1, 6)
    layers = structure(np.log10(teff), logg, mh)[:, None] + 0.4 * log_tau
    return AtmosphereGrid("ragged", teff, logg, mh, log_tau, *(layers + i for i in range(5)), identity="")


labels = st.tuples(st.floats(9000, 55000), st.floats(1.5, 5.5), st.floats(-0.7, 0.2))


@SOME
@given(labels)
@example((23000.0, 3.3, 0.0))  # below the floor of the hotter column
@example((13000.0, 2.3, -0.2))  # not covered at [M/H] -0.5, where 14000 K starts higher
@example((13000.0, 2.3, 0.0))  # below the floor of the cooler column
def test_a_plane_is_returned_wherever_covered(label):
    grid = ragged_grid()
    teff, logg, mh = label
    if not grid.covers(teff, logg, mh):
        with pytest.raises(SynthesisError, match=rf"ragged has no model .* {teff:.0f} K, log g {logg:.2f}"):
            grid.interpolate(teff, logg, mh)
        return
    atmosphere = grid.interpolate(teff, logg, mh)
    expected = 0.7 * np.log10(teff) - 0.3 * logg + 0.2 * mh + 0.4 * grid.log_tau
    for i, name in enumerate(QUANTITIES):
        # Labels up to 1e-6 outside count as those of the edge.
        np.testing.assert_allclose(np.log10(getattr(atmosphere, name)), expected + i, rtol=0, atol=1e-6)


@SOME
@given(labels, st.integers(0, 2**32 - 1))
def test_interpolation_is_continuous(label, seed):
    """Values of a rough grid differ little between neighboring points, across all edges of cells."""
    grid = ragged_grid(lambda t, g, m: np.sin(40 * t) + np.cos(7 * g) + np.sin(11 * m))
    rng = np.random.default_rng(seed)
    # Half of the points start on an edge: at a model's own Teff, log g or [M/H].
    start = np.array(label)
    for i, nodes in enumerate((grid.teff, grid.logg, grid.mh)):
        if rng.random() < 0.5:
            start[i] = rng.choice(nodes)
    near = start + 1e-7 * np.array([1e4, 1.0, 1.0]) * rng.uniform(-1, 1, 3)
    if grid.covers(*start) and grid.covers(*near):
        one, two = (np.log10(grid.interpolate(*point).temperature) for point in (start, near))
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_models_are_returned_exactly():
    grid = ragged_grid(lambda t, g, m: np.sin(40 * t) + np.cos(7 * g) + np.sin(11 * m))
    for i in range(len(grid.teff)):
        assert grid.covers(grid.teff[i], grid.logg[i], grid.mh[i])
        atmosphere = grid.interpolate(grid.teff[i], grid.logg[i], grid.mh[i])
        np.testing.assert_allclose(np.log10(atmosphere.temperature), grid.log_temperature[i], atol=1e-12)
        np.testing.assert_array_equal(atmosphere.log_tau, grid.log_tau)


def test_the_covered_region_ends_at_the_lowest_models():
    """Between 20000 K (floor 3.0) and 27000 K (3.5) the floor runs straight in log Teff."""
    grid = ragged_grid()
    teff = np.array([20000.0, np.sqrt(20000.0 * 27000.0), 27000.0])
    floor = np.array([3.0, 3.25, 3.5])
    assert grid.covers(teff, floor + 0.001, 0.0).all()
    assert not grid.covers(teff, floor - 0.001, 0.0).any()
    assert grid.covers(teff, 5.0, 0.0).all()
    assert not grid.covers(teff, 5.001, 0.0).any()
    assert grid.covers(20000.0, 4.0, [-0.5, -0.25, 0.0]).all()
    assert not grid.covers(20000.0, 4.0, [-0.501, 0.001]).any()
    # Of two [M/H], each must reach: at 14000 K log g 2.0 exists at solar metallicity only.
    assert grid.covers(14000.0, 2.1, [0.0, -0.1, -0.5]).tolist() == [True, False, False]
    assert not grid.covers(np.nan, 4.0, 0.0)
    assert grid.covers(np.full((2, 3), 20000.0), 4.0, 0.0).shape == (2, 3)


def test_the_nearest_model_is_named():
    with pytest.raises(SynthesisError, match=r"Teff 32000 K, log g 3.00, \[M/H\] \+0.00; .*32000 K, 4.50, \+0.00"):
        ragged_grid().interpolate(32000.0, 3.0, 0.0)


@pytest.fixture(scope="module")
def real_file(synthesis):
    return synthesis / "atlas9_hot.npz"


@pytest.fixture(scope="module")
def real_grid(real_file):
    return read_atmospheres(real_file)


def without(grid: AtmosphereGrid, keep: np.ndarray) -> AtmosphereGrid:
    arrays = {"teff": grid.teff, "logg": grid.logg, "mh": grid.mh}
    arrays |= {f"log_{name}": getattr(grid, f"log_{name}") for name in QUANTITIES}
    return AtmosphereGrid(
        name=grid.name, log_tau=grid.log_tau, identity="", **{name: array[keep] for name, array in arrays.items()}
    )


def test_real_models_are_returned_exactly(real_grid):
    for i in range(0, len(real_grid.teff), 97):
        atmosphere = real_grid.interpolate(real_grid.teff[i], real_grid.logg[i], real_grid.mh[i])
        np.testing.assert_allclose(np.log10(atmosphere.temperature), real_grid.log_temperature[i], atol=1e-12)


def test_real_models_are_predicted_by_their_neighbors(real_grid):
    """Without a column of models its temperatures come out within 1 % of the truth, over twice the grid's step."""
    errors = []
    for teff in (8000.0, 9500.0, 12000.0, 15000.0, 18000.0, 22000.0, 26000.0, 30000.0):
        grid = without(real_grid, real_grid.teff != teff)
        for i in np.flatnonzero((real_grid.teff == teff) & (real_grid.mh >= -1) & (real_grid.logg >= 3.5)):
            point = teff, real_grid.logg[i], real_grid.mh[i]
            if grid.covers(*point):
                error = np.log(grid.interpolate(*point).temperature) - np.log(10) * real_grid.log_temperature[i]
                errors.append(np.sqrt(np.mean(error**2)))
    assert len(errors) > 80
    assert np.median(errors) < 0.004
    assert np.max(errors) < 0.02


def test_real_structures_are_in_hydrostatic_equilibrium(real_grid):
    """Between models too, dP/drhox stays near gravity less radiation: gas pressure does not outweigh the column."""
    atmosphere = real_grid.interpolate(11111.0, 3.77, -0.22)
    ratio = atmosphere.pressure[10:40] / (atmosphere.rhox[10:40] * 10**3.77)
    assert np.all((ratio > 0.8) & (ratio < 1.02))


def test_what_the_real_grid_covers(real_grid):
    dwarfs = np.linspace(7000, 45000, 300)
    assert real_grid.covers(dwarfs, 4.5, 0.0).all()
    assert not real_grid.covers(dwarfs[dwarfs > 30000], 3.0, 0.0).any()
    assert re.fullmatch("[0-9a-f]{64}", real_grid.identity)


def deck(atmosphere: Atmosphere, teff: float, logg: float, scale: float, layers: int | None = None) -> str:
    """One model as ATLAS9 prints it."""
    n = len(atmosphere.rhox)
    head = (
        f"TEFF {teff:7.0f}.  GRAVITY {logg:7.5f} LTE \n"
        "TITLE  [0.0] VTURB=2  L/H=1.25 NOVER NEW ODF                                     \n"
        " OPACITY IFOP 1 1 1 1 1 1 1 1 1 1 1 1 1 0 1 0 0 0 0 0\n"
        " CONVECTION ON   1.25 TURBULENCE OFF  0.00  0.00  0.00  0.00\n"
        f"ABUNDANCE SCALE {scale:9.5f} ABUNDANCE CHANGE 1 0.92040 2 0.07834\n"
        " ABUNDANCE CHANGE  3 -10.94  4 -10.64  5  -9.49  6  -3.52  7  -4.12  8  -3.21\n"
        f"READ DECK6 {n} RHOX,T,P,XNE,ABROSS,ACCRAD,VTURB, FLXCNV,VCONV,VELSND\n"
    )
    # ACCRAD may be negative and fill its columns; numbers then touch.
    rows = [
        f"{r:15.8E}{t:9.1f}{p:10.3E}{e:10.3E}{k:10.3E}{-0.01234:10.3E}{2e5:10.3E}{0:10.3E}{0:10.3E}{1e6:10.3E}\n"
        for r, t, p, e, k in zip(*(getattr(atmosphere, name) for name in QUANTITIES), strict=True)
    ]
    return head + "".join(rows[:layers]) + "PRADK 1.4875E+00\nBEGIN                    ITERATION  15 COMPLETED\n"


def analytic(gravity: float, teff: float, power: float = 0.5, low: float = -5.0) -> Atmosphere:
    """Opacity ∝ column mass^power, a gray temperature; rosseland depth = kappa·rhox/(1 + power) but for the top."""
    rhox = np.logspace(low, 2, 72)
    kappa = 0.5 * rhox**power
    tau = kappa * rhox / (1 + power)
    tau += kappa[0] * rhox[0] - tau[0]
    temperature = teff * (0.75 * (tau + 2 / 3)) ** 0.25
    pressure = rhox * 10**gravity
    return Atmosphere(np.log10(tau), rhox, temperature, pressure, pressure / (2.2 * 1.380649e-16 * temperature), kappa)


def test_rosseland_depth_of_a_published_model():
    """First layers of Castelli & Kurucz's model at 3500 K, log g 0, [-1.5a]: ATLAS9's depths are -6.875 + 0.125 i."""
    rhox = [1.38766901e-2, 1.82614569e-2, 2.35913549e-2, 3.02354341e-2, 3.85670716e-2, 4.90024248e-2]
    kappa = [9.610e-6, 1.068e-5, 1.158e-5, 1.223e-5, 1.309e-5, 1.387e-5]
    depth = np.log10(rosseland_depth(np.array(rhox), np.array(kappa)))
    np.testing.assert_allclose(depth, -6.875 + 0.125 * np.arange(6), atol=1e-3)


@SOME
@given(st.floats(-1.5, 1.5), st.floats(0.05, 0.3))
def test_rosseland_depth_of_power_laws(power, step):
    x = np.exp(step * np.arange(40)) * 1e-3
    expected = (
        np.log(x / x[0]) if abs(power + 1) < 1e-12 else (x ** (power + 1) - x[0] ** (power + 1)) / (power + 1)
    ) + x[0] ** (power + 1)
    np.testing.assert_allclose(rosseland_depth(x, x**power), expected, rtol=1e-6)


@pytest.fixture
def folder(tmp_path):
    """Two files of decks, [M/H] 0 and -0.5, two Teff and two log g each."""
    for name, scale in (("ap00k2odfnew.dat", 1.0), ("am05k2odfnew.dat", 0.31623)):
        decks = [deck(analytic(g, t), t, g, scale) for t in (9000, 12000) for g in (3.5, 4.0)]
        (tmp_path / name).write_text("".join(decks))
    (tmp_path / "notes.txt").write_text("not a deck\n")
    return tmp_path


def test_decks_are_read(folder):
    grid = read_atmospheres(folder)
    assert sorted(set(grid.mh)) == [-0.5, 0.0]
    assert len(grid.teff) == 8
    truth = analytic(4.0, 12000.0)
    found = grid.interpolate(12000.0, 4.0, 0.0)
    np.testing.assert_allclose(grid.log_tau[[0, -1]], truth.log_tau[[0, -1]], atol=2e-3)
    for name in QUANTITIES:
        expected = np.interp(grid.log_tau, truth.log_tau, np.log10(getattr(truth, name)))
        np.testing.assert_allclose(np.log10(getattr(found, name)), expected, atol=3e-3, err_msg=name)
    single = read_atmospheres(folder / "ap00k2odfnew.dat")
    np.testing.assert_allclose(single.interpolate(12000.0, 4.0, 0.0).temperature, found.temperature, rtol=1e-12)
    assert single.identity != grid.identity


def test_models_of_different_depth_meet_where_all_are(tmp_path):
    shallow, deep = analytic(4.0, 9000.0, low=-4.0), analytic(4.0, 12000.0, low=-6.0)
    (tmp_path / "ap00.dat").write_text(deck(shallow, 9000, 4.0, 1.0) + deck(deep, 12000, 4.0, 1.0))
    grid = read_atmospheres(tmp_path)
    np.testing.assert_allclose(grid.log_tau[0], shallow.log_tau[0], atol=2e-3)
    assert len(grid.log_tau) == 72


@pytest.mark.parametrize(
    ("scale", "mh"), [(1.0, 0.0), (0.31623, -0.5), (3.16228, 0.5), (0.00032, -3.5), (1.58489, 0.2), (0.5, -0.301)]
)
def test_metallicity_of_an_abundance_scale(tmp_path, scale, mh):
    (tmp_path / "deck.dat").write_text(deck(analytic(4.0, 9000.0), 9000, 4.0, scale))
    assert read_atmospheres(tmp_path / "deck.dat").mh[0] == pytest.approx(mh, abs=1e-4)


def test_touching_numbers_and_long_exponents(tmp_path):
    text = deck(analytic(4.0, 9000.0), 9000, 4.0, 1.0)
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("READ DECK6")) + 1
    lines[first] = f"  1.00000000-105{'1234.5':>9}+1.000D-02+1.000E+12+1.000-101-1.234E-02"
    (tmp_path / "deck.dat").write_text("\n".join(lines))
    grid = read_atmospheres(tmp_path / "deck.dat")
    assert grid.log_rhox[0, 0] == pytest.approx(-105)
    assert grid.log_temperature[0, 0] == pytest.approx(np.log10(1234.5))
    assert grid.log_kappa_rosseland[0, 0] == pytest.approx(-101)


@SOME
@given(st.integers(0, 71), st.sampled_from(["", "*" * 60, "1.0 2.0", "nan nan nan nan nan", "-1.0 1.0 1.0 1.0 1.0"]))
def test_a_bad_row_is_named(tmp_path, row, text):
    lines = deck(analytic(4.0, 9000.0), 9000, 4.0, 1.0).splitlines()
    lines[7 + row] = text
    path = tmp_path / "ap00.dat"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"ap00.dat, line {8 + row}: .*kurucz.harvard.edu.*castelli"):
        read_atmospheres(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s[: len(s) // 2], r"line \d+: .*layer \d+ of 72 should be, of the model at Teff 9000 K, log g 4.00"),
        (lambda s: "TEFF   9000.  GRAVITY 4.00000 LTE\n", "line 1: the file ends within a model"),
        (lambda s: s.replace("GRAVITY", "       "), "line 1: .* gives no effective temperature"),
        (lambda s: s.replace("SCALE   1.00000", "SCALE   ?"), "line 5: .* gives no abundance scale"),
        (lambda s: s.replace("ABUNDANCE SCALE", "ABUNDANCE      "), "line 7: layers without TEFF"),
        (lambda s: s.replace("RHOX,T,P", "TAU,T,P"), "line 7: .* does not announce layers"),
        (lambda s: s + s, "2 models at Teff 9000 K"),
        (lambda s: "", "no model atmosphere"),
        (lambda s: s + "é", "cannot be read"),
    ],
)
def test_a_damaged_deck_is_refused(tmp_path, damage, message):
    path = tmp_path / "ap00.dat"
    path.write_text(damage(deck(analytic(4.0, 9000.0), 9000, 4.0, 1.0)), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_atmospheres(path)


def test_a_missing_file_or_an_empty_folder_says_where_to_get_one(tmp_path):
    for path in (tmp_path / "gone.npz", tmp_path / "gone.dat", tmp_path):
        with pytest.raises(InputError, match=rf"{re.escape(str(path))}: .*castelli/grids.html"):
            read_atmospheres(path)


def write_npz(path, **changes):
    arrays = {"teff": np.array([9000.0, 12000.0]), "logg": np.full(2, 4.0), "mh": np.zeros(2)}
    arrays["log_tau_rosseland"] = np.linspace(-4, 1, 5)
    arrays |= {name: np.ones((2, 5)) for name in ("log_rhox", "log_t_over_teff", "log_p", "log_xne")}
    arrays["log_kappa_rosseland"] = np.ones((2, 5))
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_p": None}, r"arrays \['log_p'\] are missing"),
        ({"log_p": np.ones((2, 4))}, "log_p has the shape"),
        ({"log_xne": np.full((2, 5), np.nan)}, r"log_xne\[0, 0\] is not finite"),
        ({"log_tau_rosseland": np.zeros(5)}, "does not ascend"),
        ({"teff": np.array([9000.0, 9000.0])}, "2 models at Teff 9000 K"),
        ({"teff": np.array([9000.0, 0.0])}, "Teff not positive"),
    ],
)
def test_a_damaged_npz_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_atmospheres(write_npz(tmp_path / "grid.npz", **changes))


@SOME
@given(st.binary(max_size=300))
def test_garbage_is_refused(tmp_path, content):
    for name in ("grid.npz", "deck.dat"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_atmospheres(tmp_path / name)


def test_real_models_survive_as_decks(real_grid, tmp_path):
    """Three models written as decks and read again; the topmost layers hang on what lies above the npz scale."""
    text = ""
    for teff, logg in ((8000.0, 4.0), (18000.0, 4.0), (35000.0, 4.5)):
        text += deck(real_grid.interpolate(teff, logg, 0.0), teff, logg, 1.0)
    (tmp_path / "ap00k2odfnew.dat").write_text(text)
    grid = read_atmospheres(tmp_path)
    for teff, logg in ((8000.0, 4.0), (18000.0, 4.0), (35000.0, 4.5)):
        one, two = (g.interpolate(teff, logg, 0.0) for g in (real_grid, grid))
        inner = two.log_tau > -3
        for name in QUANTITIES:
            expected = np.interp(two.log_tau, one.log_tau, np.log10(getattr(one, name)))
            np.testing.assert_allclose(np.log10(getattr(two, name))[inner], expected[inner], atol=0.02, err_msg=name)


@pytest.fixture(scope="module")
def nlte_file(nlte):
    return nlte / "bstar2006_z1.npz"


@pytest.fixture(scope="module")
def nlte_grid(nlte_file):
    return read_atmospheres(nlte_file)


def test_structures_out_of_lte_are_those_of_the_file(nlte_grid, nlte_file):
    """Temperature and electrons at a column mass; the gas pressure is that of the density, at 1.3 u a nucleus."""
    with np.load(nlte_file) as data:
        for i in np.flatnonzero(data["logg"] >= 3.25)[::17]:
            ours = nlte_grid.interpolate(data["teff"][i], data["logg"][i], 0.0)
            mass = np.log(data["column_mass"][i])
            light = (mass > np.log(ours.rhox[1])) & (mass < np.log(ours.rhox[-2]))
            theirs = {name: data[name][i][light] for name in ("temperature", "electron_density", "density")}
            at = {
                name: np.exp(np.interp(mass[light], np.log(ours.rhox), np.log(getattr(ours, name))))
                for name in ("temperature", "electron_density", "pressure")
            }
            np.testing.assert_allclose(at["temperature"], theirs["temperature"], rtol=3e-3)
            np.testing.assert_allclose(at["electron_density"], theirs["electron_density"], rtol=2e-2)
            # He/H = 0.1 and metals of 1.3 % by mass.
            nuclei = theirs["density"] / (1.31 * ATOMIC_MASS)
            expected = (nuclei + theirs["electron_density"]) * K_ERG * theirs["temperature"]
            np.testing.assert_allclose(at["pressure"], expected, rtol=2e-2)


def test_flux_means_are_rosseland_means_at_depth(nlte_grid, real_grid):
    """Opacities of two codes, one of them known only from how its gas pressure grows, for the same iron (7.50)."""
    for teff, logg in ((15000, 3.0), (15000, 4.5), (20000, 3.5), (20000, 4.0), (25000, 4.0), (30000, 4.25)):
        ours, theirs = (grid.interpolate(teff, logg, -0.17) for grid in (nlte_grid, real_grid))
        deep = (theirs.log_tau > 0.8) & (theirs.log_tau < 1.4)
        at = np.interp(theirs.log_tau, ours.log_tau, np.log(ours.kappa_rosseland))
        np.testing.assert_allclose(at[deep], np.log(theirs.kappa_rosseland[deep]), atol=0.1)


def test_structures_out_of_lte_have_the_electrons_of_our_gas(nlte_grid):
    labels = np.array([20000.0, 4.0, 2.0, 0.0, 0.0909, *np.zeros(6)])
    atmosphere = nlte_grid.interpolate(20000.0, 4.0, 0.0)
    state = solve_state(atmosphere.temperature, atmosphere.pressure, abundances(labels))
    light = (atmosphere.log_tau > -2) & (atmosphere.log_tau < 1)
    np.testing.assert_allclose(state.electron_density[light], atmosphere.electron_density[light], rtol=5e-3)


def test_structures_out_of_lte_are_predicted_by_their_neighbors(nlte_grid):
    """Without a temperature or a gravity, so over twice the grid's step, temperatures come out within 1 %."""
    errors = []
    for label, values in (("teff", (16000.0, 20000.0, 25000.0, 29000.0)), ("logg", (3.5, 4.0, 4.5))):
        for value in values:
            keep = getattr(nlte_grid, label) != value
            arrays = ("teff", "logg", "mh", *(f"log_{name}" for name in QUANTITIES))
            grid = replace(nlte_grid, **{name: getattr(nlte_grid, name)[keep] for name in arrays})
            for i in np.flatnonzero(~keep & (nlte_grid.logg >= 3.5)):
                point = nlte_grid.teff[i], nlte_grid.logg[i], 0.0
                if grid.covers(*point):
                    light = (grid.log_tau > -3) & (grid.log_tau < 1)
                    error = np.log10(grid.interpolate(*point).temperature) - nlte_grid.log_temperature[i]
                    errors.append(np.log(10) * np.abs(error[light]).max())
    assert len(errors) > 50
    assert np.median(errors) < 2e-3
    assert max(errors) < 1e-2


def test_structures_out_of_lte_hold_at_every_metallicity(nlte_grid):
    assert nlte_grid.covers([14990, 15000, 30000, 30010], 4.0, 0.0).tolist() == [False, True, True, False]
    assert nlte_grid.covers(20000, 4.0, [-3.0, 0.5, np.nan]).tolist() == [True, True, False]
    solar, poor = (nlte_grid.interpolate(20500, 3.9, mh) for mh in (0.0, -1.3))
    np.testing.assert_array_equal(solar.temperature, poor.temperature)
    assert extend_grid(nlte_grid) is nlte_grid


def write_nlte(path, **changes):
    mass = np.geomspace(1e-6, 100, 30)
    temperature = 20000 * (0.75 * (3 * mass + 0.67)) ** 0.25
    # Of hydrogen alone, ionized: half of the particles are electrons. Radiation carries 5 % of the weight.
    electrons = 0.95 * mass * 1e4 / (2 * K_ERG * temperature)
    arrays = {"teff": np.full(2, 20000.0), "logg": np.array([4.0, 4.2]), "column_mass": np.stack([mass, mass])}
    arrays |= {"temperature": np.stack(2 * [temperature]), "electron_density": np.stack(2 * [electrons])}
    arrays["density"] = arrays["electron_density"] * ATOMIC_MASS
    arrays["log10_population"] = np.log10(arrays["electron_density"])[:, :, None]
    np.savez(path, **(arrays | {name: change(arrays[name]) for name, change in changes.items()}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": lambda a: a[:, 1:]}, "temperature has the shape"),
        ({"log10_population": lambda a: a[1:]}, "log10_population has the shape"),
        ({"column_mass": lambda a: a[:, ::-1]}, "column_mass does not ascend"),
        ({"density": lambda a: -a}, "not positive"),
        ({"electron_density": lambda a: 2 * a}, "20000 K, log g 4.00 is not in hydrostatic equilibrium"),
        ({"teff": lambda a: np.full(2, 20000.0), "logg": lambda a: np.full(2, 4.0)}, "2 models at Teff 20000 K"),
    ],
)
def test_a_damaged_file_out_of_lte_is_refused(tmp_path, changes, message):
    assert read_atmospheres(write_nlte(tmp_path / "whole.npz")).nlte
    with pytest.raises(InputError, match=message):
        read_atmospheres(write_nlte(tmp_path / "nlte.npz", **changes))
