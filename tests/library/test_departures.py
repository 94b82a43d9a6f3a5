"""Departure coefficients: from TLUSTY's populations, interpolated, joined to lines, and what they do to spectra."""

import numpy as np
import pytest
from scipy import constants
from scipy.ndimage import gaussian_filter1d

from hotdask.errors import InputError
from hotdask.labels import INDEX, N_LABELS
from hotdask.library.departures import Departures, Levels, match_lines, read_departures
from hotdask.library.linelist import HC, read_lines
from hotdask.library.synthesis import HotdaskEngine, sample_wavelength
from hotdask.windows import air_to_vacuum

CLOSE = 0.02


@pytest.fixture(scope="module")
def populations(synthesis):
    path = synthesis.parent / "nlte" / "bstar2006_z1.npz"
    if not path.exists():
        pytest.skip(f"the populations are not here: {path}")
    return path


@pytest.fixture(scope="module")
def departures(populations):
    return read_departures(populations)


@pytest.fixture(scope="module")
def engine(synthesis, populations):
    return HotdaskEngine(synthesis / "atlas9_hot.npz", synthesis / "lines_hot.npz", nlte=populations)


def row(departures: Departures, z: int, charge: int, number: int) -> int:
    return departures.levels.of(z, charge)[number]


@pytest.mark.parametrize(("z", "charge"), [(1, 0), (2, 0), (6, 1), (8, 1), (14, 2), (26, 2)])
def test_at_depth_populations_are_those_of_lte(departures, z, charge):
    # Where log column mass is 0.3 the continuum of such stars is formed.
    for teff in (15000, 20000, 25000):
        b = departures.interpolate(teff, 4.0, np.array([0.6]))[departures.levels.of(z, charge), 0]
        np.testing.assert_allclose(b, 1, atol=CLOSE)


def test_saha_and_boltzmann_written_out(departures, populations):
    """Of He I 2p 3P° at one depth of one model, from the numbers of the file."""
    with np.load(populations) as data:
        model = int(np.flatnonzero((data["teff"] == 20000) & (data["logg"] == 4.0))[0])
        layer = 22
        kt = constants.k / constants.e * data["temperature"][model, layer]
        saha = 2 * (2 * np.pi * constants.m_e * constants.k * data["temperature"][model, layer] / constants.h**2) ** 1.5
        saha *= 1e-6 / data["electron_density"][model, layer]
        number = 10.0 ** data["log10_population"][model, layer].astype(float)
        helium = np.flatnonzero(np.isin(data["level_ion"], np.flatnonzero(data["ion_z"] == 2)))
        energy = data["level_binding_hz"] * constants.h / constants.e
        neutral = data["level_g"] * np.exp(-(energy[10] - energy) / kt)
        ionized = data["level_g"] * np.exp(-(energy[34] - energy) / kt)
        first, second = neutral[10:34].sum(), ionized[34:54].sum()
        # N(II)/N(I) = 2/n_e (2πmkT/h²)^1.5 U(II)/U(I) exp(-χ/kT); He III is 1e-7 of it here.
        ratio = saha * second / first * np.exp(-energy[10] / kt)
        share = neutral[13] / first / (1 + ratio)
        expected = number[13] / number[helium].sum() / share
        log_column = np.log10(data["column_mass"][model, layer])
    b = departures.interpolate(20000, 4.0, np.array([log_column]))
    assert b[row(departures, 2, 0, 3), 0] == pytest.approx(expected, rel=1e-3)


def test_models_come_back_from_their_own_labels(departures):
    for model in (0, 50, 162):
        teff, logg = departures.teff[model], departures.logg[model]
        b = departures.interpolate(teff, logg, departures.log_column[model])
        np.testing.assert_allclose(b[:-1], np.exp(departures.ln_b[model]).T, rtol=1e-4)
        assert np.all(b[-1] == 1)


def test_between_and_beyond_models(departures):
    depth = np.linspace(-3, 1, 9)
    low, middle, high = (np.log(departures.interpolate(t, 4.0, depth)) for t in (20000, 20500, 21000))
    np.testing.assert_allclose(middle, (low + high) / 2, atol=1e-5)
    edge, beyond = (departures.interpolate(t, 4.0, depth) for t in (30000, 45000))
    np.testing.assert_array_equal(edge, beyond)
    np.testing.assert_array_equal(departures.interpolate(15000, 9.0, depth), departures.interpolate(13000, 4.75, depth))
    half = np.log(departures.interpolate(11000, 4.0, depth)) * 2
    np.testing.assert_allclose(half, np.log(departures.interpolate(12000, 4.0, depth)), atol=1e-5)
    assert np.all(departures.interpolate(9000, 4.0, depth) == 1)


def levels_of(energies, parity, multiplicity, momentum, limit=20.0):
    n = len(energies)
    values = [np.full(n, 6), np.ones(n), energies, np.full(n, limit), np.full(n, 77), parity, multiplicity, momentum]
    return Levels(*(np.array(v, dtype=np.float64 if i in (2, 3) else np.int64) for i, v in enumerate(values)))


def test_terms_decide_between_levels_of_like_energy():
    levels = levels_of([0, 9.00, 9.02, 12.00, 12.03, 12.01], [1, 0, 0, 1, 1, 0], [2, 2, 4, 2, 4, 2], [1, 2, 2, 3, 3, 2])
    ions = np.full(3, 6), np.full(3, 2)
    lower, upper = match_lines(levels, *ions, np.array([9.0, 9.02, 9.01]), np.array([12.02, 12.02, 12.005]))
    assert list(zip(lower.tolist(), upper.tolist(), strict=True)) == [(1, 3), (2, 4), (1, 3)]


def test_upper_levels_above_the_limit_go_with_the_next_ion():
    levels = levels_of([0, 9.0], [1, 0], [2, 2], [1, 1], limit=10.0)
    lower, upper = match_lines(levels, np.array([6, 6, 8]), np.array([2, 3, 2]), np.full(3, 0.1), np.full(3, 10.5))
    assert lower.tolist() == [0, 2, 2]
    assert upper.tolist() == [77, 2, 2]


@pytest.mark.parametrize(
    ("z", "ion", "air", "below", "above"),
    [
        (6, 2, 4267.26, (18.046, 2, 2), (20.951, 2, 3)),
        (2, 1, 6678.15, (21.218, 1, 1), (23.074, 1, 2)),
        (2, 1, 5875.62, (20.964, 3, 1), (23.074, 3, 2)),
        (14, 3, 4552.62, (19.016, 3, 0), (21.739, 3, 1)),
        (8, 2, 4649.13, (22.999, 4, 1), (25.665, 4, 2)),
        (12, 2, 4481.13, (8.864, 2, 2), (11.629, 2, 3)),
    ],
)
def test_known_lines_find_their_terms(synthesis, departures, z, ion, air, below, above):
    """Energies [eV], multiplicity and L by NIST."""
    lines = read_lines(synthesis / "lines_hot.npz")
    near = (lines.z == z) & (lines.ion == ion) & (np.abs(lines.wavelength - air_to_vacuum(np.array([air]))[0]) < 0.3)
    strongest = np.flatnonzero(near)[[np.argmax(lines.loggf[near])]]
    elo = lines.elo[strongest]
    eup = elo + HC / lines.wavelength[strongest]
    found = match_lines(departures.levels, lines.z[strongest], lines.ion[strongest], elo, eup)
    levels = departures.levels
    for (level,), (energy, multiplicity, momentum) in zip(found, (below, above), strict=True):
        assert levels.energy[level] == pytest.approx(energy, abs=0.03)
        assert (levels.multiplicity[level], levels.momentum[level]) == (multiplicity, momentum)


def star(teff, logg, vmic=2.0):
    labels = np.zeros(N_LABELS)
    labels[[INDEX[name] for name in ("teff", "logg", "vmic", "n_he")]] = teff, logg, vmic, 0.0889
    return labels


def depth(synthesis, flux, air):
    """Central depth of a line at R = 1800."""
    (center,) = air_to_vacuum(np.array([air]))
    low, high = np.searchsorted(sample_wavelength(), [center - 15, center + 15])
    pixels = slice(low - 500, high + 500)
    return 1 - observed((flux / synthesis.continuum)[pixels])[500:-500].min()


def observed(residual):
    """At R = 1800."""
    wavelength = sample_wavelength()
    return gaussian_filter1d(residual, 1 / 1800 / 2.3548 / np.log(wavelength[1] / wavelength[0]))


def test_coefficients_of_one_are_lte_exactly(engine, monkeypatch):
    monkeypatch.setattr(Departures, "interpolate", lambda self, *_: np.ones((self.ln_b.shape[2] + 1, 64)))
    made = engine(star(20000, 4.0))
    np.testing.assert_allclose(made.flux, made.flux_lte, rtol=1e-12)


def test_lte_beside_is_that_of_an_engine_in_lte(engine, synthesis):
    # Structures below the edge of the NLTE temperatures are the same.
    alone = HotdaskEngine(synthesis / "atlas9_hot.npz", synthesis / "lines_hot.npz")(star(11000, 4.0))
    assert alone.flux_lte is None
    np.testing.assert_allclose(engine(star(11000, 4.0)).flux_lte, alone.flux, rtol=1e-12)


def test_classical_lines_out_of_lte(engine):
    """He I 6678 grows and C II 4267 weakens, as in B stars (Nieva & Przybilla 2007, A&A 467, 295)."""
    made = engine(star(22000, 3.95))
    assert depth(made, made.flux, 6678.15) > 1.3 * depth(made, made.flux_lte, 6678.15)
    assert depth(made, made.flux, 4267.2) < 0.85 * depth(made, made.flux_lte, 4267.2)
    assert depth(made, made.flux, 6562.8) > 1.15 * depth(made, made.flux_lte, 6562.8)


@pytest.mark.parametrize(("teff", "logg"), [(15000, 3.0), (17500, 4.0), (22000, 3.95), (28000, 4.2)])
def test_no_line_of_normal_stars_is_in_emission(engine, teff, logg):
    made = engine(star(teff, logg))
    # What weak emission lines B stars have is below 1 % (Sigut 2001, ApJ 546, L115).
    assert observed(made.flux / made.continuum).max() < 1.012


@pytest.mark.parametrize(("teff", "logg"), [(16000, 3.0), (20000, 3.5), (28000, 4.0)])
def test_the_balmer_series_goes_into_its_limit_without_a_jump(engine, teff, logg):
    made = engine(star(teff, logg))
    ratio = observed(made.flux / made.continuum) / observed(made.flux_lte / made.continuum)
    centers = 911.763 / (0.25 - 1.0 / np.arange(5, 19) ** 2)
    cores = np.interp(centers, sample_wavelength(), ratio)
    assert np.abs(np.diff(cores)).max() < 0.025
    # And toward the limit lines have merged, so that there is no more to tell cores from what lies between.
    between = np.interp((centers[-4:-1] + centers[-3:]) / 2, sample_wavelength(), ratio)
    np.testing.assert_allclose(between, cores[-4:-1], atol=0.01)


@pytest.mark.parametrize("fault", ["missing", "an array", "labels"])
def test_a_damaged_file_is_named(tmp_path, populations, fault):
    path = tmp_path / "nlte.npz"
    if fault != "missing":
        with np.load(populations) as data:
            arrays = {name: data[name] for name in data.files}
        arrays.pop("column_mass" if fault == "an array" else "level_label")
        np.savez(path, **arrays)
    with pytest.raises(InputError, match=r"nlte\.npz.*give an \.npz file"):
        read_departures(path)
