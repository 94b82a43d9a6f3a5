"""The star's mixture against the one its model atmospheres were made with."""

import csv

import numpy as np
import pytest

from hotdask.labels import INDEX, N_LABELS
from hotdask.library.abundances import SOLAR, abundances
from hotdask.library.atoms import ATOMIC_NUMBER


def labels(**values) -> np.ndarray:
    out = np.zeros(N_LABELS)
    out[INDEX["n_he"]] = 0.0889
    for name, value in values.items():
        out[INDEX[name]] = value
    return out


def test_mixture_of_the_atmospheres(synthesis):
    with (synthesis / "solar_abundances.csv").open() as file:
        published = {int(row["z"]): float(row["log10_n_over_ntot"]) for row in csv.DictReader(file)}
    assert SOLAR.tolist() == [published[z] for z in range(1, len(SOLAR) + 1)]


def test_the_sun_comes_back():
    assert np.log10(abundances(labels())[:1]) == pytest.approx(SOLAR[:1], abs=1e-3)
    np.testing.assert_allclose(np.log10(abundances(labels())[2:]), SOLAR[2:], atol=1e-3)


def test_fractions_sum_to_one():
    assert abundances(labels(fe_h=0.5, n_h=3.5, n_he=0.25)).sum() == pytest.approx(1)


@pytest.mark.parametrize(("name", "symbol"), [("c_h", "C"), ("n_h", "N"), ("o_h", "O"), ("si_h", "Si"), ("s_h", "S")])
def test_a_free_element_moves_alone(name, symbol):
    base, changed = abundances(labels(fe_h=-1)), abundances(labels(fe_h=-1, **{name: 0.5}))
    ratio = changed / base
    here = ATOMIC_NUMBER[symbol] - 1
    # Relative to the Sun, whatever iron has: [X/H], not [X/Fe].
    assert changed[here] / changed[0] == pytest.approx(10 ** (SOLAR[here] + 0.5) / (1 - 0.0889), rel=1e-3)
    np.testing.assert_allclose(np.delete(ratio, here), ratio[0], rtol=1e-12)


def test_iron_scales_the_other_metals_and_helium_takes_from_hydrogen():
    base, poor, rich = abundances(labels()), abundances(labels(fe_h=-2)), abundances(labels(n_he=0.25))
    for symbol in ("Mg", "Fe", "Ba"):
        z = ATOMIC_NUMBER[symbol] - 1
        assert poor[z] / base[z] == pytest.approx(0.01, rel=2e-3)
        assert rich[z] / base[z] == pytest.approx(1, rel=1e-3)
    assert poor[5] / base[5] == pytest.approx(1, rel=2e-3)
    assert rich[1] == pytest.approx(0.25, rel=2e-3)
    assert rich[0] + rich[1] == pytest.approx(1, rel=2e-3)
