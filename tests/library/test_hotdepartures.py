"""Departure coefficients above 30 kK: our solution joined to BSTAR2006's, level by level."""

from dataclasses import replace

import numpy as np
import pytest

from hotdask.library.departures import Departures, read_departures
from hotdask.library.hotdepartures import TABLE, add_hot_models

COLUMN = np.linspace(-3, 0.5, 30)
"""log10 [g/cm²]: where lines of hot stars form."""


@pytest.fixture(scope="module")
def departures(synthesis) -> Departures:
    path = synthesis.parent / "nlte" / "bstar2006_z1.npz"
    if not path.exists():
        pytest.skip(f"the populations are not here: {path}")
    return read_departures(path)


@pytest.fixture(scope="module")
def joined(departures):
    return add_hot_models(departures)


def test_all_levels_of_hydrogen_and_helium_find_their_own(departures):
    with np.load(TABLE) as data:
        levels = departures.levels
        rows = np.flatnonzero((levels.z == 1) | (levels.z == 2))
        # Both follow TLUSTY's model atoms.
        np.testing.assert_array_equal(levels.z[rows], data["z"])
        np.testing.assert_array_equal(levels.charge[rows], data["charge"])
        np.testing.assert_allclose((levels.limit - levels.energy)[rows], data["binding"], atol=1e-4)


def test_nothing_changes_up_to_30_kk(departures, joined):
    for teff, logg in ((15000, 4.0), (27500, 3.6), (30000, 4.25)):
        np.testing.assert_array_equal(
            joined.interpolate(teff, logg, COLUMN), departures.interpolate(teff, logg, COLUMN)
        )


@pytest.mark.parametrize("logg", [3.5, 3.8, 4.5])
def test_coefficients_are_continuous_at_30_kk(joined, logg):
    at, above = (np.log(joined.interpolate(teff, logg, COLUMN)) for teff in (30000, 30000.1))
    # In 2500 K the ground state of He I may lose a factor of ten, in 0.1 K nothing.
    assert np.abs(above - at).max() < 5e-4


def test_metals_keep_those_of_30_kk(departures, joined):
    metals = departures.levels.z > 2
    found = joined.interpolate(40000, 4.0, COLUMN)[:-1][metals]
    ratio = np.abs(np.log(found / departures.interpolate(30000, 4.0, COLUMN)[:-1][metals]))
    # Their layers are those of our models.
    assert np.quantile(ratio, 0.99) < 0.02


def test_at_depth_populations_are_those_of_lte(joined):
    for teff in (35000, 40000, 45000):
        b = joined.interpolate(teff, 4.0, np.array([0.9]))
        for z, charge in ((1, 0), (2, 0), (2, 1)):
            np.testing.assert_allclose(b[joined.levels.of(z, charge), 0], 1, atol=0.02)


def test_excited_helium_is_underpopulated_far_out_in_o_stars(joined):
    """Line centers far out scatter: the upper level of 5876 is emptier than the lower, as in Auer & Mihalas 1972."""
    levels = joined.levels
    b = joined.interpolate(35000, 4.0, np.array([-1.5]))[:, 0]
    helium = levels.of(2, 0)
    upper = next(k for k in helium if levels.multiplicity[k] == 3 and levels.momentum[k] == 2)
    lower = next(k for k in helium if levels.multiplicity[k] == 3 and levels.momentum[k] == 1)
    assert b[upper] < b[lower]


def test_a_grid_that_ends_elsewhere_is_left_alone(departures):
    cool = departures.teff <= 25000
    few = replace(
        departures, **{name: getattr(departures, name)[cool] for name in ("teff", "logg", "log_column", "ln_b")}
    )
    assert add_hot_models(few) is few
