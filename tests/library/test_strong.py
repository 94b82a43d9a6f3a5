"""Strengths of single lines against the engine's own spectra, and the report of widths that are assumed."""

import numpy as np
import pytest

from hotdask.labels import INDEX, N_LABELS
from hotdask.library.abundances import abundances
from hotdask.library.atmospheres import read_atmospheres
from hotdask.library.atoms import N_STAGES, ionization_energy
from hotdask.library.linelist import LineList, default_damping
from hotdask.library.state import solve_state
from hotdask.library.strong import STRONG, assumed_widths, equivalent_widths
from hotdask.library.synthesis import HotdaskEngine
from hotdask.windows import air_to_vacuum

ROWS = {
    # z, ion, wavelength in air, loggf, elo, grad, gstark, gvdw
    "Mg II 4481": (12, 2, 4481.126, 0.98, 8.864, 8.0, -4.8, -7.6),
    "Si II 6347": (14, 2, 6347.109, 0.17, 8.121, 9.0, -5.3, -7.7),
    "weak": (14, 2, 5055.984, -2.0, 10.074, 9.0, -4.9, -7.6),
}


def line_list(rows, unknown=()):
    table = [np.array(column, dtype=float) for column in zip(*rows, strict=True)]
    names = ("z", "ion", "wavelength", "loggf", "elo", "log_grad", "log_gstark", "log_gvdw")
    columns = dict(zip(names, table, strict=True))
    columns |= {name: np.full(len(rows), np.nan) for name in unknown}
    columns["z"], columns["ion"] = columns["z"].astype(int), columns["ion"].astype(int)
    return LineList(**(columns | {"wavelength": air_to_vacuum(columns["wavelength"])}), name="some", identity="")


def prepared(lines):
    gammas = dict(
        zip(("gamma_rad", "gamma_stark", "gamma_vdw"), default_damping(lines, ionization_energy), strict=True)
    )
    return {
        "wavelength": lines.wavelength,
        "strength": 10**lines.loggf,
        "energy": lines.elo,
        "ion": (lines.z - 1) * N_STAGES + lines.ion - 1,
        "element": lines.z - 1,
        **gammas,
    }


def sun(teff, logg):
    labels = np.zeros(N_LABELS)
    for name, value in (("teff", teff), ("logg", logg), ("vmic", 2.0), ("n_he", 0.0889)):
        labels[INDEX[name]] = value
    return labels


@pytest.fixture(scope="module")
def grid(synthesis):
    return read_atmospheres(synthesis / "atlas9_hot.npz")


def widths(grid, lines, teff, logg):
    atmosphere = grid.interpolate(teff, logg, 0.0)
    state = solve_state(atmosphere.temperature, atmosphere.pressure, abundances(sun(teff, logg)))
    return equivalent_widths(state, atmosphere.rhox, 2.0, prepared(lines), 0.0)


def test_equivalent_widths_are_those_of_the_engine(synthesis, grid, tmp_path):
    # Far from hydrogen's lines and from each other; the engine's spectrum without the lines is the second one.
    names = ("z", "ion", "wl_air", "loggf", "elo_ev", "grad", "gstark", "gvdw")
    spectra = []
    for shift in (0.0, -9.0):
        table = np.array(list(ROWS.values()))
        table[:, 3] += shift
        path = tmp_path / f"lines{shift:g}.npz"
        np.savez(path, **dict(zip(names, table.T, strict=True)))
        spectra.append(HotdaskEngine(synthesis / "atlas9_hot.npz", path)(sun(12000, 4.0)))
    with_lines, without = spectra
    expected = []
    for row in ROWS.values():
        near = np.abs(with_lines.wavelength - air_to_vacuum(row[2])) < 12
        depth = 1 - with_lines.flux[near] / without.flux[near]
        expected.append(np.trapezoid(depth, with_lines.wavelength[near]))
    found = widths(grid, line_list(list(ROWS.values())), 12000, 4.0)
    np.testing.assert_allclose(found, expected, rtol=0.06)


def test_weak_lines_grow_with_their_strength(grid):
    weak = ROWS["weak"]
    rows = [(*weak[:3], weak[3] - dex, *weak[4:]) for dex in (1.0, 1.3)]
    strong, half = widths(grid, line_list(rows), 12000, 4.0)
    assert strong / half == pytest.approx(10**0.3, rel=0.01)


def test_what_is_surely_weak_is_not_computed(grid):
    lines = line_list([(*ROWS["weak"][:3], -9.0, *ROWS["weak"][4:])])
    atmosphere = grid.interpolate(12000.0, 4.0, 0.0)
    state = solve_state(atmosphere.temperature, atmosphere.pressure, abundances(sun(12000, 4.0)))
    assert equivalent_widths(state, atmosphere.rhox, 2.0, prepared(lines), 1e-6)[0] == 0
    assert equivalent_widths(state, atmosphere.rhox, 2.0, prepared(lines), 0.0)[0] > 0


def test_strong_lines_with_assumed_widths_are_told(grid):
    lines = line_list(list(ROWS.values()), unknown=("log_gstark", "log_grad"))
    found = assumed_widths(lines, grid)
    assert [(line.element, line.ion) for line in found] == [("Mg", 2), ("Si", 2)]
    magnesium = found[0]
    assert magnesium.wavelength == pytest.approx(4481.126, abs=1e-3)
    assert magnesium.assumed == ("radiative", "Stark")
    assert magnesium.depth > STRONG
    assert magnesium.change > 0
    assert 8000 <= magnesium.teff <= 9500
    assert str(magnesium).startswith("Mg II 4481.13: radiative, Stark assumed;")
    assert assumed_widths(lines, grid) == found


def test_nothing_is_told_of_measured_weak_or_skipped_lines(grid):
    assert assumed_widths(line_list(list(ROWS.values())), grid) == []
    unknown = line_list(list(ROWS.values()), unknown=("log_gvdw",))
    assert assumed_widths(unknown, grid, skip=np.ones(3, dtype=bool)) == []
