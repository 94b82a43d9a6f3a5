"""The steps in order, on simulated observations whose labels, velocity and line spread are known."""

import numpy as np
import pandas as pd
import pytest
import torch

from hotdask import config, schema, windows
from hotdask.emulator import LowRankEmulator, PerPixelEmulator, load_emulator, mean_lsf
from hotdask.errors import EmulatorError, InputError
from hotdask.flags import Flag
from hotdask.labels import COMPARED_LABELS, INDEX, LABEL_NAMES, LABELS, LSF_NAMES, N_LABELS
from hotdask.simulation.visits import Simulation, draw_stars, draw_visits, make_spectra
from hotdask.spectra.restframe import noise_power
from hotdask.steps.label import Labeler, fit_both
from hotdask.steps.merge import MAX_RISE, NOISE_GAIN, hydrogen_weight, merge_fits
from hotdask.steps.refine import Refiner

EMULATOR = load_emulator()
LABELER = Labeler(EMULATOR)
TRUE = [f"{name}_true" for name in LABEL_NAMES]
PIXEL = windows.SPEED_OF_LIGHT * (10**windows.LOG_STEP - 1)  # km/s


class Observed:
    """Simulated spectra with what is known of them."""

    def __init__(self, visits: pd.DataFrame, simulation: Simulation):
        self.visits = visits
        arrays, self.bound = make_spectra(visits, EMULATOR, simulation)
        self.flux = arrays["flux"]
        self.ivar = LABELER.usable(arrays["ivar"], arrays["andmask"], arrays["ormask"])
        self.rv = visits["rv_true"].to_numpy()
        self.lsf = visits[list(LSF_NAMES)].to_numpy()
        self.labels = visits[TRUE].to_numpy()

    def label(self, rows=slice(None), labeler=LABELER, **changes) -> dict[str, np.ndarray]:
        given = {"flux": self.flux, "ivar": self.ivar, "rv": self.rv, "lsf": self.lsf, **changes}
        return labeler.label(**{k: None if v is None else v[rows] for k, v in given.items()})


def stack(result: dict, which: str = "all") -> tuple[np.ndarray, np.ndarray]:
    """Labels and their errors of one of the fits."""
    labels = np.stack([result[f"{name}_{which}"] for name in LABEL_NAMES], axis=1)
    return labels, np.sqrt(np.diagonal(result[f"covariance_{which}"], axis1=1, axis2=2))


def simulate(n: int, change=lambda visits: visits, **settings) -> Observed:
    simulation = Simulation(stars=n, spectra=n, **{"snr": (60.0, 200.0), **settings})
    return Observed(change(draw_visits(simulation, draw_stars(simulation, EMULATOR))), simulation)


@pytest.fixture(scope="module")
def survey():
    return simulate(96)


@pytest.fixture(scope="module")
def labelled(survey):
    return survey.label()


def test_columns_are_those_of_the_schema(labelled):
    expected = {c.name for c in schema.FITS} - {"specid", "row"} | {*LABEL_NAMES, "covariance"}
    assert set(labelled) == expected
    for name, values in labelled.items():
        shape = (96, N_LABELS, N_LABELS) if name.startswith("covariance") else (96,)
        assert values.shape == shape, name
    assert labelled["flags"].dtype == np.int32


def test_merged_labels_are_those_of_the_two_fits(labelled):
    both = [
        (np.column_stack([labelled[f"{n}_{which}"] for n in LABEL_NAMES]), labelled[f"covariance_{which}"])
        for which in ("all", "hmasked")
    ]
    weight = labelled["hydrogen_weight"]
    labels, covariance = merge_fits(*both[0], *both[1], weight)
    np.testing.assert_array_equal(np.column_stack([labelled[n] for n in LABEL_NAMES]), labels)
    np.testing.assert_array_equal(labelled["covariance"], covariance)
    # Hot stars owe nothing to the fit without hydrogen, so its limits are no flag of theirs.
    floor, ceiling = (EMULATOR.scale_labels(end) for end in LABELER.fitter.limits)
    scaled = EMULATOR.scale_labels(both[0][0])
    at_limit = ((scaled <= floor) | (scaled >= ceiling)).any(dim=1).numpy()
    hot = weight == 0
    assert hot.any()
    np.testing.assert_array_equal(labelled["flags"][hot] & Flag.AT_BOUND != 0, at_limit[hot])


def test_a_line_spread_beyond_the_emulators_is_flagged_or_refused(survey, labelled):
    rows = np.arange(8)
    for power, outside in ((1500, False), (2250, False), (1000, True), (4000, True)):
        assert EMULATOR.outside_lsf(mean_lsf(power, power)[None])[0] == outside
    broad = survey.label(rows, lsf=np.tile(mean_lsf(1000, 1000), (8, 1)))
    assert (broad["flags"] & Flag.OUTSIDE_LIBRARY != 0).all()
    with pytest.raises(EmulatorError, match="resolving_power_blue = 300"):
        Labeler(EMULATOR, config.Fit(resolving_power_blue=300))


@pytest.mark.parametrize("which", ["all", "hmasked"])
def test_labels_come_back_within_their_errors(survey, labelled, which):
    found, sigma = stack(labelled, which)
    # Fits that ended in a side valley, and stars of which a label says next to nothing, are not what is tested here.
    pull = (found - survey.labels) / sigma
    for i, name in enumerate(LABEL_NAMES):
        low, middle, high = np.percentile(pull[:, i], [15.87, 50, 84.13])
        assert 0.65 < (high - low) / 2 < 1.5, name
        # Medians of 96 scatter by 0.13; errors of the velocities blur lines, and vsini takes that for rotation.
        assert abs(middle) < (0.7 if name == "vsini" else 0.5), name
    # The fit's errors are the Cramér-Rao bound but for where noise has led it.
    if which == "all":
        assert np.abs(np.log(np.median(sigma / survey.bound, axis=0))).max() < 0.2


@pytest.mark.parametrize("fraction", [0.0, 0.13, 0.25, 0.5, 0.75])
def test_chi2_is_one_whatever_the_shift(fraction):
    def move(visits):
        return visits.assign(rv_true=(3 + fraction) * PIXEL - 5 * PIXEL * (np.arange(len(visits)) % 2))

    observed = simulate(32, move, snr=(40.0, 80.0), seed=3)
    result = observed.label()
    for name in ("chi2_red", "chi2_red_all", "chi2_red_hmasked"):
        # The continuum follows some 60 slow modes of the noise, which takes 2 to 3 % off. One spectrum scatters by
        # 2.6-3.7 %, the median of 32 by 0.7 %.
        assert np.median(result[name]) == pytest.approx(0.976, abs=0.027), name


def test_chi2_of_a_wrong_velocity_is_not_one(survey, labelled):
    wrong = survey.label(rv=survey.rv + 2 * PIXEL)
    assert np.median(wrong["chi2_red"]) > 1.2 * np.median(labelled["chi2_red"])


def test_merged_chi2(survey, labelled):
    (all_lines, _), (masked, _) = stack(labelled), stack(labelled, "hmasked")
    both = all_lines, labelled["covariance_all"], masked, labelled["covariance_hmasked"]
    weight = labelled["hydrogen_weight"]
    merged, _ = merge_fits(*both, weight)
    # Without weight of the masked fit the merged labels are those of all lines, and so is χ².
    alone = weight == 0
    assert 0 < alone.sum() < len(alone)
    np.testing.assert_allclose(labelled["chi2_red"][alone], labelled["chi2_red_all"][alone], rtol=1e-6)
    # Nothing fits all lines better than the fit of all lines.
    assert (labelled["chi2_red"] >= labelled["chi2_red_all"] * (1 - 1e-6)).all()
    outside = EMULATOR.outside(merged)
    np.testing.assert_array_equal(outside, labelled["flags"] & Flag.OUTSIDE_LIBRARY != 0)


class TestMergerOfWrongModels:
    """Late B stars whose metal and helium lines no label describes, so that the fit without hydrogen goes astray."""

    @pytest.fixture(scope="class")
    @classmethod
    def results(cls):
        def change(visits):
            return visits.assign(teff_true=np.linspace(9700, 12500, len(visits)), logg_true=4.0)

        observed = simulate(160, change, snr=(80.0, 120.0), seed=8)
        # Patterns as wide as lines, of 1 % of the light, everywhere but in hydrogen lines.
        pattern = np.random.default_rng(9).normal(size=observed.flux.shape)
        kernel = np.exp(-0.5 * (np.arange(-12, 13) / 3.0) ** 2)
        pattern = np.apply_along_axis(np.convolve, 1, pattern, kernel / np.linalg.norm(kernel), "same")
        hydrogen = windows.inside(windows.observed_wavelength(), windows.HYDROGEN)
        observed.flux *= np.where(hydrogen, 1, 1 + 0.01 * pattern).astype(np.float32)
        rules = ("checked", "paper")
        return observed, {rule: observed.label(labeler=Labeler(EMULATOR, config.Fit(merge=rule))) for rule in rules}

    def test_rules_differ_in_the_weight_alone(self, results):
        ours, paper = results[1].values()
        merged = {*LABEL_NAMES, "covariance", "chi2_red", "hydrogen_weight", "hydrogen_gain", "hydrogen_error", "flags"}
        for name in ours.keys() - merged:
            np.testing.assert_array_equal(ours[name], paper[name])
        expected = hydrogen_weight(paper["teff_hmasked"], paper["teff_all"], "paper")
        np.testing.assert_array_equal(paper["hydrogen_weight"], expected)
        assert (ours["hydrogen_weight"] <= expected).all()
        assert (paper["flags"] & Flag.MASKED_SET_ASIDE == 0).all()

    def test_merged_labels_fit_the_spectrum(self, results):
        ours, paper = (result["chi2_red"] / result["chi2_red_all"] for result in results[1].values())
        # Both are per the same degrees of freedom. By temperatures alone, some would be far off.
        assert paper.max() > 1.5 * MAX_RISE
        assert ours.max() < MAX_RISE * 1.001

    def test_good_fits_of_late_b_stars_are_not_overwritten(self, results):
        observed, found = results
        hot = observed.labels[:, INDEX["teff"]] > 10500
        error = {
            rule: {n: np.std((result[n] - observed.labels[:, INDEX[n]])[hot]) for n in ("teff", "logg")}
            for rule, result in found.items()
        }
        least = {n: np.std((found["paper"][f"{n}_all"] - observed.labels[:, INDEX[n]])[hot]) for n in ("teff", "logg")}
        for name in ("teff", "logg"):
            assert error["checked"][name] < 2 * least[name]
            assert error["paper"][name] > 2 * error["checked"][name]


class TestGaps:
    GAPS = ((4480.0, 4620.0), (6380.0, 6480.0))

    @pytest.fixture(scope="class")
    @classmethod
    def gapped(cls, survey):
        """The survey with two wide gaps; labelled so, and with the same pixels taken out only after the continuum."""
        wavelength = windows.observed_wavelength()
        ivar = survey.ivar.copy()
        for low, high in cls.GAPS:
            ivar[:, (wavelength > low) & (wavelength < high)] = 0
        result = survey.label(ivar=ivar)
        whole = LABELER.prepare(survey.flux, survey.ivar, survey.rv, survey.lsf)
        good = LABELER.prepare(survey.flux, ivar, survey.rv, survey.lsf).ivar > 0
        block = LABELER.fitter.load(whole.flux, np.where(good, whole.ivar, np.float32(0)), whole.lsf)
        return result, fit_both(block, whole.starts)[0]

    def test_flag(self, gapped, labelled):
        corrected = gapped[0]["flags"] & Flag.CONTINUUM_CORRECTED != 0
        assert corrected.mean() > 0.2
        assert corrected.sum() > (labelled["flags"] & Flag.CONTINUUM_CORRECTED != 0).sum()

    def test_a_gap_takes_pixels_and_nothing_else(self, gapped):
        result, reference = gapped
        found, sigma = stack(result)
        shift = np.abs(found - reference.labels) / sigma
        assert np.median(shift) < 0.05
        assert np.percentile(shift, 95) < 0.5

    def test_whole_spectra_need_nothing(self, survey):
        good = survey.ivar.copy()
        level = np.median(good, axis=1, keepdims=True)
        flags = LABELER.prepare(survey.flux, np.where(good > 0, good, level), survey.rv, survey.lsf).flags
        assert (flags & Flag.CONTINUUM_CORRECTED == 0).all()

    def test_the_tolerance_is_a_setting(self, survey):
        strict, lax = (Labeler(EMULATOR, config.Fit(continuum_tolerance=t)) for t in (1e-7, 10.0))
        share = [
            np.mean(lb.prepare(survey.flux, survey.ivar, survey.rv).flags & Flag.CONTINUUM_CORRECTED != 0)
            for lb in (strict, lax)
        ]
        assert share == [1, 0]


class TestMaskBits:
    def test_the_bits_chosen_exclude(self):
        andmask = np.array([[0, 1, 4, 0, 5, 0x8000]], dtype=np.uint16)
        ormask = np.array([[0, 0, 0, 2, 2, 0]], dtype=np.uint16)
        ivar = np.arange(1, 7, dtype=np.float32)[None]

        def kept(**bits):
            usable = Labeler(EMULATOR, config.Fit(**bits)).usable(ivar, andmask, ormask)
            assert usable.dtype == np.float32
            np.testing.assert_array_equal(usable[usable > 0], ivar[usable > 0])
            return np.flatnonzero(usable[0]).tolist()

        assert kept() == [0, 3]
        assert kept(andmask_bits=4) == [0, 1, 3, 5]
        assert kept(andmask_bits=0) == [0, 1, 2, 3, 4, 5]
        assert kept(andmask_bits=0, ormask_bits=2) == [0, 1, 2, 5]
        assert kept(ormask_bits=0xFFFF) == [0]


class TestLineSpread:
    @pytest.fixture(scope="class")
    @classmethod
    def broad(cls):
        """Slow rotators seen through a line spread 8 % broader than the mean."""

        def change(visits):
            visits[list(LSF_NAMES)] = 1.08 * mean_lsf()
            return visits.assign(vsini_true=60.0, teff_true=np.linspace(8000, 14000, len(visits)))

        return simulate(48, change, snr=(100.0, 200.0), seed=5)

    def test_its_own_takes_the_bias_from_vsini(self, broad):
        i = INDEX["vsini"]
        own, mean = (stack(broad.label(lsf=lsf))[0][:, i] - 60 for lsf in (broad.lsf, None))
        assert abs(np.median(own)) < 5
        assert np.median(mean) > 12

    @pytest.mark.parametrize(("power", "sign"), [(1500, 1), (2200, -1)])
    def test_arms_of_another_resolving_power(self, power, sign):
        def change(visits):
            visits[list(LSF_NAMES)] = mean_lsf(power, power)
            return visits.assign(vsini_true=120.0, teff_true=np.linspace(8000, 14000, len(visits)))

        observed = simulate(32, change, snr=(100.0, 200.0), seed=7)
        found, sigma = stack(observed.label())
        pull = (found - observed.labels) / sigma
        assert np.abs(np.median(pull, axis=0)).max() < 0.9
        i = INDEX["vsini"]
        assert abs(np.median(found[:, i]) - 120) < 5
        blind, formal = stack(observed.label(lsf=None))
        assert sign * np.median(blind[:, i] - 120) > 10
        assert sign * np.median((blind[:, i] - 120) / formal[:, i]) > 2

    def test_unknown_rows_take_the_mean(self, survey):
        lsf = survey.lsf.copy()
        lsf[::2, 4] = np.nan
        prepared = LABELER.prepare(survey.flux, survey.ivar, survey.rv, lsf)
        np.testing.assert_array_equal(prepared.lsf[::2], np.tile(mean_lsf(), (48, 1)))
        np.testing.assert_array_equal(prepared.lsf[1::2], survey.lsf[1::2])
        assert np.isfinite(prepared.flux).all()
        assert np.isfinite(prepared.ivar).all()

    def test_all_unknown_is_the_same_as_none_given(self, survey):
        rows = slice(0, 12)
        none = survey.label(rows, lsf=None)
        unknown = survey.label(rows, lsf=np.full_like(survey.lsf, np.nan))
        for name in none:
            np.testing.assert_array_equal(none[name], unknown[name], err_msg=name)

    def test_the_mean_is_a_setting(self):
        labeler = Labeler(EMULATOR, config.Fit(resolving_power_blue=1700, resolving_power_red=1950))
        np.testing.assert_array_equal(labeler.lsf, mean_lsf(1700, 1950))


class TestRefused:
    @pytest.mark.parametrize("change", [{"scale": 40.0}, {"slope": False}, {"exclude": ((4000.0, 4100.0),)}])
    def test_another_normalization(self, change):
        with pytest.raises(EmulatorError, match=r"normalize.*hotdask train"):
            Labeler(EMULATOR, normalization=config.Normalize(**change))

    def test_an_emulator_that_does_not_say(self):
        card = {k: v for k, v in EMULATOR.card.items() if k != "normalization"}
        with pytest.raises(EmulatorError, match="hotdask train"):
            Labeler(LowRankEmulator(EMULATOR.arrays, card))

    def test_networks_of_single_pixels(self):
        sizes = {"hidden": 1, "plane": 4}
        arrays = {n: np.ones([sizes.get(s, s) for s in shape]) for n, shape in PerPixelEmulator.ARRAYS.items()}
        with pytest.raises(EmulatorError, match=r"low-rank emulator, this is a PerPixelEmulator.*hotdask train"):
            Labeler(PerPixelEmulator(arrays, EMULATOR.card))


class TestRefined:
    """Fits taken on by another emulator."""

    def test_it_has_the_last_word(self, survey, perpixel):
        rows = slice(0, 24)
        labeler = Labeler(EMULATOR, refining=perpixel)
        result = survey.label(rows, labeler)
        prepared = labeler.prepare(survey.flux[rows], survey.ivar[rows], survey.rv[rows], survey.lsf[rows])
        everything, masked, _ = fit_both(prepared.block, prepared.starts)
        spectra = prepared.flux, prepared.ivar, prepared.lsf
        refiner = Refiner(perpixel)
        smoothing = noise_power(survey.rv[rows])
        for which, start in (("all", everything), ("hmasked", masked)):
            expected = refiner.refine(which, *spectra, start.labels)
            labels = np.column_stack([result[f"{name}_{which}"] for name in LABEL_NAMES])
            np.testing.assert_array_equal(labels, expected.labels)
            np.testing.assert_array_equal(result[f"covariance_{which}"], expected.covariance)
            np.testing.assert_allclose(result[f"chi2_red_{which}"], expected.chi2_red / smoothing, rtol=1e-12)
        # Merged labels are judged by the same emulator as those they were merged from.
        merged = np.column_stack([result[name] for name in LABEL_NAMES])
        chi2 = refiner.chi2_at("all", *spectra, merged) / (result["n_pixel_all"] - N_LABELS) / smoothing
        np.testing.assert_allclose(result["chi2_red"], chi2, rtol=1e-4)
        np.testing.assert_array_equal(
            perpixel.outside(merged, prepared.lsf), result["flags"] & Flag.OUTSIDE_LIBRARY != 0
        )

    def test_only_networks_of_single_pixels_refine(self):
        with pytest.raises(EmulatorError, match=r"fit.refine needs a per-pixel emulator.*--architecture perpixel"):
            Labeler(EMULATOR, refining=EMULATOR)


class TestSecondEmulator:
    """Labels of the same pixels by another emulator."""

    @pytest.fixture
    def deeper(self) -> LowRankEmulator:
        """The shipped one, all of its lines 5 % deeper."""
        mean, basis = (EMULATOR.arrays[name] for name in ("mean", "basis"))
        lines = {"mean": (1 + 1.05 * (mean - 1)).astype(np.float32), "basis": (1.05 * basis).astype(np.float32)}
        return LowRankEmulator(EMULATOR.arrays | lines, EMULATOR.card)

    def test_it_finds_what_it_finds_alone_and_the_first_as_well(self, survey, labelled, deeper):
        found = survey.label(labeler=Labeler(EMULATOR, compared=deeper))
        alone = survey.label(labeler=Labeler(deeper))
        beside = {c.name: found.pop(c.name) for c in schema.COMPARED["compare"]}
        assert found.keys() == labelled.keys()
        for name, values in labelled.items():
            np.testing.assert_array_equal(found[name], values)
        for name in (*COMPARED_LABELS, "chi2_red"):
            np.testing.assert_array_equal(beside[f"{name}_compare"], alone[name])
        sigma = np.sqrt(np.diagonal(alone["covariance"], axis1=1, axis2=2))
        for name in COMPARED_LABELS:
            np.testing.assert_array_equal(beside[f"{name}_compare_err"], sigma[:, INDEX[name]])
        assert (beside["teff_compare"] != found["teff"]).mean() > 0.9
        # The first made these spectra.
        assert (beside["chi2_red_compare"] > found["chi2_red"]).mean() > 0.9

    def test_it_follows_a_corrected_velocity(self, survey):
        fit = config.Fit(refit_rv=True, compare="lte")
        rows = slice(0, 24)
        found = survey.label(rows, Labeler(EMULATOR, fit, compared=EMULATOR), rv=survey.rv + 400.0)
        assert (found["rv_refit"] != 0).sum() > 15
        for name in (*COMPARED_LABELS, "chi2_red"):
            np.testing.assert_array_equal(found[f"{name}_lte"], found[name])

    def test_networks_of_single_pixels_do_not_compare(self, perpixel):
        with pytest.raises(EmulatorError, match=r"^fit\.compare: fits need a low-rank emulator"):
            Labeler(EMULATOR, compared=perpixel)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"device 'cuda': torch sees no CUDA device here; use 'cpu'"):
        Labeler(EMULATOR, device="cuda")


class TestRefit:
    @pytest.fixture(scope="class")
    @classmethod
    def desert(cls):
        """A0 stars at low S/N, where hydrogen lines alone cannot tell hot from cool."""

        def change(visits):
            return visits.assign(teff_true=np.linspace(9000, 10300, len(visits)), logg_true=4.0)

        observed = simulate(110, change, snr=(10.0, 30.0), seed=6)
        prepared = LABELER.prepare(observed.flux, observed.ivar, observed.rv, observed.lsf)
        return observed, prepared.block, fit_both(prepared.block, prepared.starts)

    def test_spectra_whose_fits_disagree_start_from_the_masked_one(self, desert):
        _, block, (everything, masked, refitted) = desert
        assert 3 < refitted.sum() < 70
        rows = np.flatnonzero(refitted)
        again = block.fit("all", [masked.labels[rows]], rows)
        for name in ("labels", "covariance", "chi2", "converged", "at_bound"):
            np.testing.assert_array_equal(getattr(everything, name)[rows], getattr(again, name))
        # The others agree on the side, as was asked.
        side = [s.labels[~refitted, 0] < windows.HYDROGEN_MAXIMUM for s in (everything, masked)]
        np.testing.assert_array_equal(*side)

    @pytest.fixture(scope="class")
    @classmethod
    def result(cls, desert):
        return desert[0].label()

    def test_flag(self, desert, result):
        np.testing.assert_array_equal(result["flags"] & Flag.REFITTED != 0, desert[2][2])

    def test_gain_is_what_pixels_without_hydrogen_say(self, desert, result):
        _, block, (everything, masked, _) = desert
        gain = (block.chi2_at(everything.labels, "hmasked") - masked.chi2) / result["chi2_red_hmasked"]
        near = np.isfinite(result["hydrogen_gain"])
        assert near.sum() > 80
        np.testing.assert_allclose(result["hydrogen_gain"][near], np.maximum(gain[near], 0), atol=0.02)
        # The models are perfect here: whatever parts the fits is noise.
        assert np.mean(gain[near]) == pytest.approx(NOISE_GAIN, abs=1.2)

    def test_a_masked_fit_that_tells_noise_is_set_aside_and_flagged(self, result):
        weight, near = result["hydrogen_weight"], np.isfinite(result["hydrogen_gain"])
        aside = near & (weight == 0)
        assert aside[result["hydrogen_gain"] <= NOISE_GAIN].all()
        assert 0.3 < aside.mean() < 0.8
        np.testing.assert_array_equal(result["flags"] & Flag.MASKED_SET_ASIDE != 0, aside)
        np.testing.assert_array_equal(result["flags"] & Flag.LOGG_SUSPECT != 0, (weight > 0) & (result["logg"] < 3))

    def test_log_g_near_the_maximum_is_that_of_the_hydrogen_lines(self, desert, result):
        both = [
            (np.column_stack([result[f"{n}_{which}"] for n in LABEL_NAMES]), result[f"covariance_{which}"])
            for which in ("all", "hmasked")
        ]
        paper = hydrogen_weight(result["teff_hmasked"], result["teff_all"], "paper")
        equation_5 = merge_fits(*both[0], *both[1], paper)[0][:, INDEX["logg"]]
        error, without, least = (
            np.mean(np.abs(logg - desert[0].labels[:, INDEX["logg"]]))
            for logg in (result["logg"], equation_5, result["logg_all"])
        )
        assert error < 0.6 * without
        assert error < 1.3 * least

    def test_the_first_guess_decides_little(self, desert):
        # The masked fit has guesses on both sides of its own: a wrong start, or one less, leaves χ² where it was.
        observed, block, (_, masked, _) = desert
        wrong = np.tile([lb.start for lb in LABELS], (len(observed.rv), 1))
        wrong[::2, 0] = 25000.0
        wrong[1::2, 0] = 7300.0
        moved = np.abs(fit_both(block, [wrong])[1].chi2 - masked.chi2)
        assert np.mean(moved < 0.1) > 0.85
        assert np.mean(moved < 3) > 0.95


class TestUnusable:
    def test_too_few_pixels_and_no_velocity(self, survey, labelled):
        rows = slice(0, 8)
        ivar, rv = survey.ivar[rows].copy(), survey.rv[rows].copy()
        ivar[2, 500:] = 0
        ivar[3] = 0
        rv[5] = np.nan
        result = LABELER.label(survey.flux[rows], ivar, rv, survey.lsf[rows])
        bad = np.isin(np.arange(8), [2, 3, 5])
        np.testing.assert_array_equal(result["flags"] & Flag.FEW_PIXELS != 0, bad)
        for which in ("all", "hmasked"):
            labels, _ = stack(result, which)
            assert np.isnan(labels[bad]).all()
            assert np.isfinite(labels[~bad]).all()
        assert np.isnan(result["chi2_red"][bad]).all()
        # Nothing else is claimed of them.
        assert (result["flags"][bad] & (Flag.NOT_CONVERGED | Flag.AT_BOUND | Flag.OUTSIDE_LIBRARY) == 0).all()
        assert (result["flags"][[3, 5]] & Flag.START_MISSING != 0).all()
        assert np.isnan(result["teff_guess"][[3, 5]]).all()
        # And the good ones do not mind the company.
        found, sigma = stack(result)
        before, _ = stack(labelled)
        assert (np.abs(found[~bad] - before[rows][~bad]) < 0.01 * sigma[~bad]).all()

    def test_nothing(self):
        nothing = np.empty((0, windows.N_OBSERVED), dtype=np.float32)
        result = LABELER.label(nothing, nothing, np.empty(0))
        assert all(len(values) == 0 for values in result.values())

    def test_the_guess_is_clipped_to_the_library(self, labelled):
        low, high = (EMULATOR.arrays[f"label_{end}"][0] for end in ("low", "high"))
        guess = labelled["teff_guess"][np.isfinite(labelled["teff_guess"])]
        assert low <= guess.min() <= guess.max() <= high
        clipped = labelled["flags"] & Flag.START_CLIPPED != 0
        assert np.isin(labelled["teff_guess"][clipped], [low, high]).all()


def test_company_and_order_change_nothing(survey, labelled):
    rng = np.random.default_rng(0)
    reference, sigma = stack(labelled)
    for size in (1, 7, 60):
        rows = rng.permutation(96)[:size]
        result = survey.label(rows)
        found, _ = stack(result)
        assert (np.abs(found - reference[rows]) <= 0.01 * sigma[rows]).all()
        np.testing.assert_allclose(result["chi2_red"], labelled["chi2_red"][rows], rtol=1e-5)
        np.testing.assert_array_equal(result["flags"], labelled["flags"][rows])


def test_the_same_block_gives_the_same_bits(survey, labelled):
    again = survey.label()
    for name, values in labelled.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)


def test_flux_units_do_not_matter(survey, labelled):
    factor = np.float32(2.0**-30)
    result = survey.label(flux=survey.flux * factor, ivar=survey.ivar / factor**2)
    found, sigma = stack(result)
    assert (np.abs(found - stack(labelled)[0]) < 0.01 * sigma).all()
