"""Simulated surveys: what is put in must be what the files hold."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hotdask import schema, windows
from hotdask.emulator import load_emulator, mean_lsf
from hotdask.errors import SpectrumError
from hotdask.labels import INDEX, LABEL_NAMES, LSF_NAMES
from hotdask.readers.lamost import read_spectra, read_spectrum
from hotdask.simulation.visits import (
    BREAKAGES,
    LAYOUTS,
    Simulation,
    draw_stars,
    draw_visits,
    emergent,
    extinction,
    make_spectra,
    visit_path,
    write_broken,
    write_visits,
)
from hotdask.spectra.normalize import Normalizer
from hotdask.spectra.restframe import to_rest_frame

EMULATOR = load_emulator()
REST = windows.rest_wavelength()
FITTED = ~windows.inside(REST, windows.FIT_MASK)
NORMALIZER = Normalizer(REST)
SURVEY = Simulation(stars=30, spectra=40, broken=18)
TRUE = [f"{name}_true" for name in LABEL_NAMES]


@pytest.fixture(scope="module")
def visits():
    out = draw_visits(SURVEY, draw_stars(SURVEY, EMULATOR))
    # So small a survey fits one plate; let it have all layouts.
    out["layout"] = np.array(LAYOUTS)[np.arange(len(out)) // 6 % 3]
    out["obsid"] = np.where(out["layout"] == "dr1", -1, out["obsid"].abs() + np.arange(len(out)))
    return out


@pytest.fixture(scope="module")
def spectra(visits):
    return make_spectra(visits, EMULATOR, SURVEY)


@pytest.fixture(scope="module")
def noiseless(visits):
    """The same draws of bad pixels, with noise a billion times smaller."""
    return make_spectra(visits.assign(snr=1e9 * visits["snr"]), EMULATOR, SURVEY)[0]


class TestPhysics:
    def test_normalizing_an_emergent_spectrum_gives_back_the_emulators(self, visits):
        flux = EMULATOR.flux(visits[TRUE].to_numpy(), visits[list(LSF_NAMES)].to_numpy())
        star = emergent(flux, visits["teff_true"].to_numpy(), NORMALIZER)
        back, ivar, _ = NORMALIZER.normalize(star, np.ones_like(flux))
        assert (ivar[:, FITTED] > 0).all()
        assert np.abs(back - flux)[:, FITTED].max() < 2e-3

    def test_its_slope_is_that_of_a_black_body(self):
        # Wien against Rayleigh-Jeans: the ratio of blue to red light grows with Teff, as Planck's law has it.
        labels = np.array([[8000, 4, 2, 50, 0.09, 0, 0, 0, 0, 0, 0], [25000, 4, 2, 50, 0.09, 0, 0, 0, 0, 0, 0]])
        flux = EMULATOR.flux(labels)
        continuum = emergent(flux, labels[:, 0], NORMALIZER) / flux
        planck = REST**-5.0 / np.expm1(1.4388e8 / REST / labels[:, :1])
        ratio = continuum / planck
        # The Balmer jump, which the mean of few pixels at the blue edge partly follows, costs the A star 15 %.
        np.testing.assert_allclose(ratio / ratio.mean(axis=1, keepdims=True), 1, atol=0.16)
        assert np.abs(ratio[1] / ratio[1].mean() - 1).max() < 0.065

    @pytest.mark.parametrize(
        ("inverse_micron", "relative"), [(2.78, 1.569), (2.27, 4.1 / 3.1), (1.82, 1.000), (1.43, 0.751), (1.11, 0.479)]
    )
    def test_extinction_is_the_published_table(self, inverse_micron, relative):
        # Cardelli, Clayton & Mathis 1989, Table 3: A(λ)/A(V) for R_V = 3.1 in U, V, R, I. At B its 1.337 would not give
        # back E(B−V); A(B) = A(V) + E(B−V) by definition.
        ebv = np.array([0.3, 1.0, 2.0])
        found = -2.5 * np.log10(extinction(np.array([1e4 / inverse_micron]), ebv))[:, 0]
        np.testing.assert_allclose(found, 3.1 * ebv * relative, rtol=5e-3)

    def test_no_dust_no_extinction(self):
        np.testing.assert_array_equal(extinction(REST, np.zeros(2)), 1)
        assert (np.diff(extinction(REST, np.ones(1))[0]) > 0).all()


class TestStars:
    def test_they_lie_inside_the_library(self, visits):
        assert not EMULATOR.outside(visits[TRUE].to_numpy()).any()
        assert visits["teff_true"].between(*SURVEY.teff).all()
        assert (visits["ebv"] >= 0).all()

    def test_another_seed_is_another_survey(self):
        one, two = (draw_stars(dataclasses.replace(SURVEY, seed=s), EMULATOR) for s in (1, 2))
        assert (one["teff_true"] != two["teff_true"]).all()
        pd.testing.assert_frame_equal(one, draw_stars(SURVEY, EMULATOR))

    def test_visits_of_a_star_are_near_each_other_on_different_nights(self):
        survey = Simulation(stars=500, spectra=800)
        visits = draw_visits(survey, draw_stars(survey, EMULATOR))
        assert len(visits) == 800
        assert set(visits["star"]) == set(range(500))
        key = visits[["lmjd", "planid", "spid", "fiberid"]]
        assert not key.duplicated().any()
        assert visits["spid"].between(1, 16).all()
        assert visits["fiberid"].between(1, 250).all()
        assert set(visits["layout"]) == set(LAYOUTS)
        assert not visits.loc[visits["layout"] != "dr1", "obsid"].duplicated().any()
        first, again = visits.iloc[:500], visits.iloc[500:]
        first = first.iloc[again["star"]].reset_index(drop=True)
        again = again.reset_index(drop=True)
        cosine = np.cos(np.radians(again["dec"]))
        separation = 3600 * np.hypot((again["ra"] - first["ra"]) * cosine, again["dec"] - first["dec"])
        assert separation.max() < 3.0
        assert separation.median() > 0.05
        assert (again["lmjd"] != first["lmjd"]).all()
        np.testing.assert_array_equal(again[TRUE], first[TRUE])

    def test_errors_of_the_survey_are_those_asked_for(self):
        survey = Simulation(stars=1500, spectra=2000, velocity_error=7.0, lsf_scatter=0.05)
        visits = draw_visits(survey, draw_stars(survey, EMULATOR))
        assert (visits["rv"] - visits["rv_true"]).std() == pytest.approx(7.0, rel=0.06)
        width = visits[list(LSF_NAMES)].to_numpy()[:, [0, 3]] / mean_lsf()[[0, 3]]
        assert width.std(axis=0) == pytest.approx([0.05, 0.05], rel=0.06)
        assert abs(np.corrcoef(width.T)[0, 1]) < 0.08
        assert visits["snr"].between(10, 400).all()


class TestSpectra:
    def test_a_spectrum_does_not_feel_its_company(self, visits, spectra):
        rows = [33, 5, 12]
        alone, bound = make_spectra(visits.iloc[rows], EMULATOR, SURVEY)
        for name in ("andmask", "ormask"):
            np.testing.assert_array_equal(alone[name], spectra[0][name][rows])
        np.testing.assert_allclose(alone["ivar"], spectra[0]["ivar"][rows], rtol=2e-4)
        sigma = 1 / np.sqrt(np.where(alone["ivar"] > 0, alone["ivar"], np.inf))
        assert (np.abs(alone["flux"] - spectra[0]["flux"][rows]) <= 0.02 * sigma + 1e-6).all()
        np.testing.assert_allclose(bound, spectra[1][rows], rtol=1e-2)

    def test_noise_is_what_ivar_says(self, spectra, noiseless):
        good = spectra[0]["ivar"] > 0
        np.testing.assert_array_equal(good, noiseless["ivar"] > 0)
        pull = ((spectra[0]["flux"] - noiseless["flux"]) * np.sqrt(spectra[0]["ivar"]))[good]
        assert pull.mean() == pytest.approx(0, abs=0.01)
        assert pull.std() == pytest.approx(1, abs=0.01)
        assert stats.kstest(pull[::29], "norm").pvalue > 1e-3
        # White: no pixel knows its neighbor.
        assert abs(np.corrcoef(pull[:-1], pull[1:])[0, 1]) < 0.02

    def test_signal_to_noise_is_the_one_stated(self, visits, spectra, noiseless):
        near = np.abs(windows.observed_wavelength() - 4750) < 15
        good = (spectra[0]["ivar"] > 0)[:, near]
        ratio = np.where(good, noiseless["flux"][:, near] * np.sqrt(spectra[0]["ivar"][:, near]), np.nan)
        np.testing.assert_allclose(np.nanmedian(ratio, axis=1) / visits["snr"], 1, atol=0.06)

    def test_bad_pixels(self, spectra):
        arrays = spectra[0]
        bad = arrays["ivar"] == 0
        assert 0.5 * SURVEY.bad_pixels < bad.mean() < 1.6 * SURVEY.bad_pixels
        assert (arrays["flux"][bad] == 0).all()
        assert (arrays["ormask"][bad] != 0).all()
        assert 0 < (arrays["andmask"] != 0).mean() < SURVEY.bad_pixels
        assert (arrays["ormask"][arrays["andmask"] != 0] != 0).all()
        assert np.isfinite(arrays["flux"]).all()

    def test_at_the_true_velocity_the_star_is_the_emulators(self, visits, noiseless):
        flux, ivar = to_rest_frame(noiseless["flux"], noiseless["ivar"], visits["rv_true"].to_numpy())
        model = EMULATOR.flux(visits[TRUE].to_numpy(), visits[list(LSF_NAMES)].to_numpy())
        seen, seen_ivar, _ = NORMALIZER.normalize(flux, ivar)
        use = FITTED & (seen_ivar > 0)
        residual = np.abs(seen - model)[use]
        # Reddening costs up to some 0.1 %, the missing pixels and the resampling as much.
        assert np.median(residual) < 6e-4
        assert np.percentile(residual, 99) < 5e-3
        # With the header's velocity, off by 4 km/s, it is not.
        shifted, _ = to_rest_frame(noiseless["flux"], noiseless["ivar"], visits["rv_true"].to_numpy() + 69)
        wrong = np.abs(NORMALIZER.normalize(shifted, ivar)[0] - model)[use]
        assert np.percentile(wrong, 99) > 0.03

    def test_bound_goes_with_the_noise(self, visits, spectra):
        _, bound = make_spectra(visits.iloc[:6].assign(snr=2 * visits["snr"][:6]), EMULATOR, SURVEY)
        np.testing.assert_allclose(2 * bound, spectra[1][:6], rtol=2e-3)
        assert (spectra[1] > 0).all()
        assert np.median(spectra[1][:, INDEX["teff"]] / visits["teff_true"]) < 0.05


@pytest.fixture(scope="module")
def folder(visits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    truth = write_visits(folder, visits, EMULATOR, SURVEY)
    broken = write_broken(folder, visits, SURVEY)
    return folder, truth, broken


class TestFiles:
    def test_they_hold_what_was_made(self, folder, visits, spectra):
        block, rejects = read_spectra(
            pd.DataFrame({"path": [str(visit_path(folder[0], v)) for v in visits.to_dict("records")]})
        )
        assert len(rejects) == 0
        assert set(visits["layout"]) == set(LAYOUTS)
        # The reader takes the ends off where nothing was measured.
        first = np.argmax(spectra[0]["ivar"] > 0, axis=1)
        assert (first < 60).all()
        for name in ("flux", "ivar", "andmask", "ormask"):
            np.testing.assert_array_equal(getattr(block, name), spectra[0][name], err_msg=name)
        meta = block.meta
        assert meta["specid"].tolist() == folder[1]["specid"].tolist()
        np.testing.assert_allclose(meta["rv"], visits["rv"], atol=5e-3)
        np.testing.assert_allclose(meta["rv_err"], visits["rv_err"], atol=5e-3)
        np.testing.assert_allclose(meta["snr_g"], visits["snr"], rtol=1e-2)
        assert (3600 * np.abs(meta["ra"] - visits["ra"]) < 0.01).all()
        assert (3600 * np.abs(meta["dec"] - visits["dec"]) < 0.01).all()
        assert (meta["mjd"] == visits["lmjd"] - 1).all()
        assert (meta["obsid"] == visits["obsid"]).all()
        assert [r[:10] for r in meta["release"]] == [
            {"dr1": "pipeline v", "dr5": "LAMOST DR5", "dr9": "LAMOST DR9"}[k] for k in visits["layout"]
        ]
        # What the survey does not tell, the files do not tell.
        assert meta[list(LSF_NAMES)].isna().all().all()

    def test_truth_is_what_the_schema_says(self, folder, visits):
        truth = folder[1]
        table = schema.to_table(truth, schema.TRUTH)
        assert table.num_rows == len(visits)
        assert set(truth.columns) == {c.name for c in schema.TRUTH}
        for name in LABEL_NAMES:
            np.testing.assert_array_equal(truth[f"{name}_true"], visits[f"{name}_true"])
            assert (truth[f"{name}_crb"] > 0).all()
        assert truth["specid"].is_unique
        assert (truth["star"] == visits["star"]).all()

    def test_writing_again_writes_the_same_bytes(self, folder, visits, tmp_path):
        write_visits(tmp_path, visits, EMULATOR, SURVEY)
        for visit in visits.to_dict("records"):
            assert visit_path(tmp_path, visit).read_bytes() == visit_path(folder[0], visit).read_bytes()


EXPECTED = {
    "empty": {"empty_file"},
    "truncated": {"truncated"},
    "not_fits": {"not_fits"},
    "no_good_pixels": {"no_good_pixels"},
    "no_velocity": {"no_velocity"},
}


class TestBroken:
    def test_all_kinds_in_all_layouts(self, folder, visits):
        broken = folder[2]
        assert len(broken) == SURVEY.broken
        made = set(zip(broken["breakage"], visits["layout"].iloc[: len(broken)], strict=True))
        assert made == {(b, layout) for b in BREAKAGES for layout in LAYOUTS}
        assert broken["path"].is_unique

    @pytest.mark.parametrize("breakage", EXPECTED)
    def test_each_is_rejected_for_its_reason(self, folder, breakage):
        broken = folder[2]
        for path in broken.loc[broken["breakage"] == breakage, "path"]:
            with pytest.raises(SpectrumError) as caught:
                read_spectrum(path)
            assert caught.value.reason in EXPECTED[breakage]

    def test_a_duplicate_is_a_good_spectrum_seen_twice(self, folder, visits):
        broken = folder[2]
        rows = np.flatnonzero(broken["breakage"] == "duplicate")
        assert rows.size == 3
        for row in rows:
            twin = read_spectrum(broken["path"].iloc[row])
            original = read_spectrum(visit_path(folder[0], visits.iloc[row].to_dict()))
            assert twin.meta["specid"] == original.meta["specid"]
            np.testing.assert_array_equal(twin.flux, original.flux)

    def test_no_broken_file_takes_a_good_ones_name(self, folder):
        specids = set(folder[1]["specid"])
        broken = folder[2]
        _, rejects = read_spectra(broken[broken["breakage"] != "duplicate"])
        assert len(rejects) == 15
        assert not specids & set(rejects["specid"])
