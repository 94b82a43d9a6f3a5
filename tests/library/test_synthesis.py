"""The LTE engine against SYNTHE, Vega, and what is known of how lines change along the main sequence."""

import functools
import json

import numpy as np
import pytest

from hotdask import windows
from hotdask.emulator.broadening import Broadener, mean_lsf
from hotdask.errors import InputError, SynthesisError
from hotdask.labels import INDEX, N_LABELS
from hotdask.library.arrays import sha256
from hotdask.library.regrid import to_fine
from hotdask.library.spectra import LOG_START, LOG_STEP, N_FINE, Synthesis, fine_wavelength
from hotdask.library.synthe import read_npz
from hotdask.library.synthesis import SAMPLES, HotdaskEngine, planck, sample_wavelength

METALS = ("c_h", "n_h", "o_h", "si_h", "s_h", "fe_h")


def star(teff, logg=4.0, vmic=2.0, n_he=0.0889, metals=0.0, **others):
    labels = np.zeros(N_LABELS)
    values = {"teff": teff, "logg": logg, "vmic": vmic, "n_he": n_he, **dict.fromkeys(METALS, metals), **others}
    for name, value in values.items():
        labels[INDEX[name]] = value
    return labels


@pytest.fixture(scope="module")
def engine(synthesis):
    return HotdaskEngine(synthesis / "atlas9_hot.npz", synthesis / "lines_hot.npz")


@pytest.fixture(scope="module")
def voigt_engine(synthesis):
    return HotdaskEngine(synthesis / "atlas9_hot.npz", synthesis / "lines_hot.npz", helium="voigt")


@pytest.fixture(scope="module")
def helium_engine(synthesis):
    profiles = synthesis / "he1_stark_tremblay2026.dat"
    return HotdaskEngine(synthesis / "atlas9_hot.npz", synthesis / "lines_hot.npz", helium_profiles=profiles)


@pytest.fixture(scope="module")
def like_synthe(synthesis):
    return HotdaskEngine(synthesis / "atlas9_hot.npz", synthesis / "lines_hot.npz", helium="voigt", corrected=False)


@pytest.fixture(scope="module")
def main_sequence(engine):
    """Solar stars of log g 4 by Teff, each made once."""
    return functools.cache(lambda teff: engine(star(teff)))


def width(synthesis, low, high, *, local=False):
    """Equivalent width [Å]; local: against a straight line through the ends, for lines in the wings of others."""
    use = (synthesis.wavelength > low) & (synthesis.wavelength < high)
    wavelength, residual = synthesis.wavelength[use], synthesis.flux[use] / synthesis.continuum[use]
    if local:
        ends = [wavelength[:5].mean(), wavelength[-5:].mean()], [residual[:5].mean(), residual[-5:].mean()]
        residual = residual / np.interp(wavelength, *ends)
    return np.trapezoid(1 - residual, wavelength)


def test_a_synthesis_fits_the_library(main_sequence):
    made = main_sequence(9500)
    assert made.wavelength.shape == made.flux.shape == made.continuum.shape == (N_FINE * SAMPLES,)
    flux, continuum = to_fine(made)
    assert np.median(np.abs(flux / made.flux.reshape(N_FINE, SAMPLES).mean(axis=1) - 1)) < 1e-3
    assert np.all((flux > 0) & (continuum > 0))
    # No line emits in LTE below a temperature that falls outward.
    assert (made.flux / made.continuum).max() < 1.02


def test_samples_lie_in_their_pixels():
    wavelength = sample_wavelength()
    centers = np.log10(wavelength).reshape(N_FINE, SAMPLES)
    np.testing.assert_allclose(centers.mean(axis=1), np.log10(fine_wavelength()), atol=1e-12)
    np.testing.assert_allclose(np.diff(np.log10(wavelength)), LOG_STEP / SAMPLES, rtol=1e-6)
    assert np.log10(wavelength[0]) == pytest.approx(LOG_START - 0.4 * LOG_STEP, abs=1e-12)


def test_planck_function():
    # Stefan-Boltzmann and Wien.
    wavelength = np.geomspace(300, 1e6, 20000)
    b = planck(wavelength, np.array([10000.0]))[:, 0]
    assert np.pi * np.trapezoid(b, wavelength) == pytest.approx(5.670374e-5 * 1e16, rel=1e-3)
    assert wavelength[np.argmax(b)] == pytest.approx(2897.77, rel=1e-3)


def test_flux_of_vega(engine):
    # 3.44e-9 erg/s/cm²/Å at 5556 Å (Hayes 1985) from a disk of 3.24 mas (Hanbury Brown et al. 1974); Castelli & Kurucz
    # 1994: Teff 9550 K, log g 3.95, [M/H] -0.5.
    vega = engine(star(9550, logg=3.95, metals=-0.5))
    near = np.abs(vega.wavelength - 5558) < 15
    surface = 3.44e-9 * (2 / (3.24e-3 / 206264.8)) ** 2
    assert vega.flux[near].mean() == pytest.approx(surface, rel=0.04)


def test_hydrogen_is_strongest_in_early_a_stars(main_sequence):
    # Hβ, ± 60 Å.
    beta = {teff: width(main_sequence(teff), 4802.7, 4922.7) for teff in (8000, 8500, 9500, 12000)}
    assert max(beta, key=beta.get) == 8500
    assert beta[8500] == pytest.approx(22.6, abs=1.0)
    assert beta[12000] < 0.6 * beta[8500]


def test_helium_is_strongest_at_twenty_thousand_kelvin(main_sequence):
    # He I 4471, ± 5 Å.
    helium = {teff: width(main_sequence(teff), 4467.7, 4477.7) for teff in (12000, 15000, 20000, 25000, 32000)}
    assert max(helium, key=helium.get) == 20000
    assert helium[12000] < 0.4 * helium[20000]
    assert helium[32000] < 0.6 * helium[20000]


@pytest.mark.parametrize("teff", [20000, 25000])
def test_stark_profiles_strengthen_helium(main_sequence, voigt_engine, teff):
    # The tables hold forbidden components and quasi-static wings; 30-40 % where He I is strongest.
    voigt = width(voigt_engine(star(teff)), 4467.7, 4477.7)
    assert 1.25 < width(main_sequence(teff), 4467.7, 4477.7) / voigt < 1.5


@pytest.mark.parametrize(
    ("name", "labels", "tolerance"),
    [
        # Labels of Nieva & Przybilla 2012, A&A 539, A143, from NLTE.
        ("HD160762", {"teff": 17500, "logg": 3.80, "vmic": 1.0}, 0.15),
        ("HD000886", {"teff": 22000, "logg": 3.95, "vmic": 2.0}, 0.20),
    ],
)
def test_blue_helium_lines_are_as_strong_as_in_real_stars(helium_engine, synthesis, name, labels, tolerance):
    path = synthesis.parent / "data/reference_stars/miles_hot.npz"
    if not path.exists():
        pytest.skip("needs the reference stars of ../shared/data, which are not part of the project")
    with np.load(path) as data:
        observed = data["flux"][data["name"].tolist().index(name)]
        wavelength = windows.air_to_vacuum(data["wavelength_air"])
    made = helium_engine(star(**labels))
    # MILES has a FWHM of 2.5 Å.
    even = np.arange(3750, 5000, 0.05)
    kernel = np.exp(-0.5 * (np.arange(-120, 121) * 0.05 / (2.5 / 2.3548)) ** 2)
    flux = np.convolve(np.interp(even, made.wavelength, made.flux), kernel / kernel.sum(), mode="same")
    for low, high in ((4002, 4018), (4135, 4155), (4379, 4399), (4913, 4933), (4707, 4721)):
        ours, theirs = (
            width(Synthesis(wave, star, np.ones_like(star)), low, high, local=True)
            for wave, star in ((even, flux), (wavelength, observed))
        )
        assert ours == pytest.approx(theirs, rel=tolerance), low


def test_profiles_of_a_file_take_the_place_of_the_installed_ones(main_sequence, helium_engine, like_synthe):
    made = helium_engine(star(20000))
    # Lines without installed tables: far too narrow in the list, and still too narrow with widths of their series.
    listed = like_synthe(star(20000))
    for low, high in ((4002, 4018), (4135, 4155), (3919, 3935)):
        tables, series, bare = (
            width(spectrum, low, high, local=True) for spectrum in (made, main_sequence(20000), listed)
        )
        assert tables > 2 * bare
        assert tables > series > bare
    # And those with: about as strong, not twice as strong.
    for low, high in ((4463, 4479), (4379, 4399), (4913, 4933)):
        assert width(made, low, high, local=True) == pytest.approx(
            width(main_sequence(20000), low, high, local=True), rel=0.08
        )
    # Away from helium nothing changes.
    np.testing.assert_array_equal(*(s.flux[np.abs(s.wavelength - 8850) < 20] for s in (made, main_sequence(20000))))


def test_ionized_helium_appears_in_the_hottest(main_sequence):
    widths = {teff: width(main_sequence(teff), 4680, 4694) for teff in (15000, 20000, 25000, 32000)}
    assert widths[20000] < 0.05 < 0.1 < widths[25000] < 0.3 < widths[32000]


def test_silicon_ionizes(main_sequence):
    # Si II 4131, Si III 4553, Si IV 4116 (4132.1, 4553.9, 4117.3 in vacuum).
    windows_of = {2: (4131.2, 4133.1), 3: (4552.9, 4554.9), 4: (4116.3, 4118.3)}
    grid = (9500, 12000, 15000, 20000, 25000, 32000)
    widths = {
        ion: {teff: width(main_sequence(teff), *ends, local=True) for teff in grid} for ion, ends in windows_of.items()
    }
    peaks = [max(of, key=of.get) for of in widths.values()]
    assert peaks[0] in (12000, 15000)
    assert peaks[1:] == [25000, 32000]


def test_labels_do_what_they_say(engine, main_sequence):
    normal = main_sequence(12000)
    silicon = engine(star(12000, si_h=0.7))
    helium = engine(star(12000, n_he=0.2))
    turbulent = engine(star(12000, vmic=10.0))
    assert width(silicon, 4131.2, 4133.1, local=True) > 1.3 * width(normal, 4131.2, 4133.1, local=True)
    # Mg II 4481 stays.
    assert width(silicon, 4481, 4484, local=True) == pytest.approx(width(normal, 4481, 4484, local=True), rel=0.02)
    assert width(helium, 4467.7, 4477.7) > 1.4 * width(normal, 4467.7, 4477.7)
    # Saturated lines grow with turbulence.
    assert width(turbulent, 4480, 4485, local=True) > 1.2 * width(normal, 4480, 4485, local=True)


def test_gravity_broadens_hydrogen(engine, main_sequence):
    assert width(engine(star(12000, logg=3.0)), 4802.7, 4922.7) < 0.7 * width(main_sequence(12000), 4802.7, 4922.7)


# Rows of the library from 7770 to 26540 K and log g 2.5 to 4.8.
ROWS = (63, 95, 255, 300, 351, 479, 415, 287)


@pytest.fixture(scope="module")
def against_synthe(like_synthe, library_file):
    """Wavelengths, and differences of flux over continuum at R = 1800 (n, 3801)."""
    library = read_npz(library_file)
    with np.load(library_file) as data:
        synthe = data["residual_intensity"][list(ROWS)] / 60000
    made = [to_fine(like_synthe(library.labels[row])) for row in ROWS]
    ours = np.stack([flux / continuum for flux, continuum in made])
    broadener = Broadener(LOG_START, N_FINE)

    def smooth(residual):
        still, lsf = np.zeros(len(residual)), np.tile(mean_lsf(), (len(residual), 1))
        return broadener.broaden(broadener.transform(residual.astype(np.float32)), still, lsf)

    return windows.rest_wavelength(), smooth(ours) - smooth(synthe)


def rms(difference, use):
    return np.sqrt(np.mean(difference[:, use] ** 2, axis=1))


def test_agrees_with_synthe(against_synthe):
    """Away from the Paschen limit: median rms 0.0022, the worst pixels Hα of giants (0.033)."""
    wavelength, difference = against_synthe
    use = (wavelength > 3820) & (wavelength < 8040)
    assert np.median(rms(difference, use)) < 0.0026
    assert rms(difference, use).max() < 0.0047
    assert rms(difference, use & (wavelength > 4400)).max() < 0.003
    assert np.median(rms(difference, use & (wavelength > 4400))) < 0.0013
    assert rms(difference, use & (wavelength < 4400)).max() < 0.009
    assert np.mean(np.abs(difference[:, use]) < 0.02) > 0.9985
    # SYNTHE counted twice what the list holds twice, around 4000, 5000 ... Å.
    assert np.abs(difference[:, use]).max() < 0.042


def test_agrees_with_synthe_at_the_paschen_limit_as_far_as_levels_dissolve(against_synthe):
    """SYNTHE's levels never dissolve: its lines end near n = 30, their wings reach beyond the limit to 8040 Å."""
    wavelength, difference = against_synthe
    use = (wavelength > 8040) & (wavelength < 8880)
    assert rms(difference, use).max() < 0.022
    assert np.median(rms(difference, use)) < 0.017
    assert np.abs(difference[:, use]).max() < 0.08
    whole = (wavelength > 3820) & (wavelength < 8880)
    assert np.median(rms(difference, whole)) < 0.0062
    assert np.mean(np.abs(difference[:, whole]) < 0.02) > 0.98


def test_no_step_where_levels_dissolve(main_sequence):
    """The flux passes the limit at 8206 Å without the edge that the continuum without lines has."""
    made = main_sequence(12000)

    def rise(values):
        blue, red = (np.median(values[(made.wavelength > low) & (made.wavelength < low + 9)]) for low in (8186, 8216))
        return red / blue - 1

    assert rise(made.continuum) > 0.08
    assert abs(rise(made.flux)) < 0.015


def test_same_labels_same_spectrum(engine):
    labels = star(11000, vmic=5.0)
    first, second = engine(labels), engine(labels)
    np.testing.assert_array_equal(first.flux, second.flux)
    np.testing.assert_array_equal(first.continuum, second.continuum)


def test_rotation_is_left_to_the_emulator_and_negative_turbulence_is_none(engine):
    plain = engine(star(11000, vmic=0.0))
    np.testing.assert_array_equal(engine(star(11000, vmic=-2.0, vsini=300.0)).flux, plain.flux)


def test_coverage_is_that_of_the_atmospheres(engine):
    labels = np.stack([star(9500), star(9500, logg=1.0), star(60000, logg=5.0), star(20000, metals=-2.9)])
    assert engine.covers(labels).tolist() == [True, False, False, True]
    assert engine.covers(labels[1]).tolist() == [False]
    with pytest.raises(SynthesisError, match=r"no model atmosphere at Teff 9500 K, log g 1\.00"):
        engine(labels[1])


def test_provenance_tells_engines_apart(engine, voigt_engine, helium_engine, like_synthe, synthesis):
    ours, other = engine.provenance(), voigt_engine.provenance()
    assert json.loads(json.dumps(ours)) == ours
    assert (ours["helium"], other["helium"]) == ("stark", "voigt")
    assert {k: v for k, v in ours.items() if k != "helium"} == {k: v for k, v in other.items() if k != "helium"}
    assert ours["engine"] == "hotdask-lte"
    assert ours["atmospheres"]["name"] == "atlas9_hot.npz"
    assert len(ours["lines"]["sha256"]) == len(ours["atmospheres"]["sha256"]) == 64
    assert (ours["corrections"]["name"], len(ours["corrections"]["sha256"])) == ("lines.csv", 64)
    assert ours["corrections"]["applied"] > 300
    assert like_synthe.provenance()["corrections"] is None
    assert ours["helium_profiles"] is None
    named = helium_engine.provenance()["helium_profiles"]
    assert named == {
        "name": "he1_stark_tremblay2026.dat",
        "sha256": sha256(synthesis / "he1_stark_tremblay2026.dat"),
    }


def test_o_dwarfs_below_the_atmospheres(engine, synthesis):
    """At 40000 K ATLAS9 ends at log g 4.5; Hγ narrows evenly across."""
    bare = HotdaskEngine(synthesis / "atlas9_hot.npz", synthesis / "lines_hot.npz", extend=False)
    labels = np.stack([star(40000, logg=logg) for logg in (3.9, 4.2, 4.5, 4.8)])
    assert engine.covers(labels).all()
    assert bare.covers(labels).tolist() == [False, False, True, True]
    assert (engine.provenance()["atmospheres_added"]["models"], bare.provenance()["atmospheres_added"]["models"]) == (
        engine.provenance()["atmospheres"]["models"] - bare.provenance()["atmospheres"]["models"],
        0,
    )
    np.testing.assert_array_equal(engine(labels[2]).flux, bare(labels[2]).flux)
    widths = np.array([width(engine(label), 4270, 4420) for label in labels])
    steps = np.diff(widths)
    assert np.all(steps > 0)
    assert steps.max() < 1.7 * steps.min()


def test_unknown_helium_profiles(synthesis):
    with pytest.raises(SynthesisError, match="'stark' or 'voigt', not 'holtsmark'"):
        HotdaskEngine(synthesis / "atlas9_hot.npz", synthesis / "lines_hot.npz", helium="holtsmark")
    with pytest.raises(SynthesisError, match="no use for helium_profiles"):
        HotdaskEngine(synthesis / "atlas9_hot.npz", synthesis / "lines_hot.npz", helium="voigt", helium_profiles="a")


def test_missing_files(synthesis, tmp_path):
    with pytest.raises(InputError, match=r"atmospheres\.npz"):
        HotdaskEngine(tmp_path / "atmospheres.npz", synthesis / "lines_hot.npz")
    with pytest.raises(InputError, match=r"lines\.npz"):
        HotdaskEngine(synthesis / "atlas9_hot.npz", tmp_path / "lines.npz")
    with pytest.raises(InputError, match=r"profiles\.dat"):
        HotdaskEngine(
            synthesis / "atlas9_hot.npz", synthesis / "lines_hot.npz", helium_profiles=tmp_path / "profiles.dat"
        )
