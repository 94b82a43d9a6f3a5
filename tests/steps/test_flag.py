"""chi2ratio on simulated chi-squares with outliers, and flags against a table of cases."""

import json

import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import SkyCoord
from astropy.stats import biweight_scale
from hypothesis import given
from hypothesis import strategies as st

from hotdask.flags import Flag
from hotdask.labels import LABEL_NAMES
from hotdask.schema import RESIDUALS
from hotdask.steps.flag import Chi2Model, catalog_flags, chi2_statistics, fit_chi2_model, galactic_latitude
from hotdask.steps.polynomial import assign_cells

LIMITS = {"min_teff": 7000.0, "min_snr": 5.0, "max_chi2ratio": 10.0}


def true_median(teff, snr):
    """Photon noise, then calibration and, for hot stars, the models."""
    return 0.9 + (np.asarray(snr) / 100) ** 2 * (np.asarray(teff) / 9000) ** 0.5


def simulate(rng, n, share=0.06):
    teff = 7000 * (1 + rng.exponential(0.35, n)).clip(max=6)
    snr = 10 ** rng.normal(1.75, 0.3, n).clip(0.7, 2.7)
    median = true_median(teff, snr)
    chi2 = median * (1 + share * rng.normal(size=n))
    bad = rng.random(n) < 0.02
    chi2[bad] = median[bad] * (1 + share * rng.uniform(25, 300, bad.sum()))
    frame = pd.DataFrame({"teff": teff, "snr_g": snr, "chi2_red": chi2, "cell": assign_cells(teff, snr)})
    return frame, bad


def test_ratio_is_the_deviate_that_was_drawn():
    frame, bad = simulate(np.random.default_rng(20), 40_000)
    model = fit_chi2_model(chi2_statistics(frame))
    ratio = model.ratio(frame["teff"], frame["snr_g"], frame["chi2_red"])
    cells = [g for g in frame.groupby("cell").indices.values() if len(g) >= 300]
    assert len(cells) >= 20
    for g in cells:
        good = ratio[g][~bad[g]]
        assert abs(np.median(good)) < 0.6
        assert np.std(good) == pytest.approx(1, abs=0.15)
    # All that were drawn beyond 25 sigma are found, and of the others at most a hair's breadth.
    assert (ratio[bad] > 10).mean() > 0.99
    assert (ratio[~bad] > 10).mean() < 1e-3


@pytest.mark.parametrize("n", [300, 1500])
def test_small_survey_accuses_nobody_and_says_whom_it_cannot_judge(n):
    frame, bad = simulate(np.random.default_rng(21), n)
    cells = chi2_statistics(frame)
    model = fit_chi2_model(cells)
    ratio = model.ratio(frame["teff"], frame["snr_g"], frame["chi2_red"])
    judged = frame["cell"].isin(cells["cell"]).to_numpy()
    assert judged.mean() > 0.4
    np.testing.assert_array_equal(np.isfinite(ratio), judged)
    assert (ratio[bad & judged] > 10).all()
    assert not (ratio[~bad & judged] > 10).any()


def test_dispersion_of_a_cell_is_the_biweight():
    rng = np.random.default_rng(22)
    chi2 = rng.standard_t(3, size=500) * 0.1 + 2
    frame = pd.DataFrame({"cell": 31, "teff": 9000.0, "snr_g": 50.0, "chi2_red": chi2})
    row = chi2_statistics(frame).iloc[0]
    assert row["sigma"] == pytest.approx(biweight_scale(chi2, c=8.9), rel=1e-3)
    assert row["median"] == np.median(chi2)


def test_trend_inside_a_cell_is_not_dispersion():
    rng = np.random.default_rng(23)
    snr = rng.uniform(300, 400, 400)
    chi2 = (snr / 100) ** 2 * (1 + 0.02 * rng.normal(size=400))
    chi2[:8] *= 5
    row = chi2_statistics(pd.DataFrame({"cell": 31, "teff": 9000.0, "snr_g": snr, "chi2_red": chi2})).iloc[0]
    assert row["median"] == pytest.approx((row["snr_g"] / 100) ** 2, rel=0.01)
    assert row["sigma"] / row["median"] == pytest.approx(0.02, rel=0.2)


def test_statistics_and_model_do_not_depend_on_row_order():
    frame, _ = simulate(np.random.default_rng(24), 3000)
    cells = chi2_statistics(frame)
    pd.testing.assert_frame_equal(cells, chi2_statistics(frame.sample(frac=1, random_state=1)), check_exact=True)
    assert fit_chi2_model(cells) == fit_chi2_model(cells.sample(frac=1, random_state=2))


@pytest.mark.parametrize("n", [0, 1, 14])
def test_too_few_spectra_make_no_model(n):
    frame = pd.DataFrame({"cell": 31, "teff": 9000.0, "snr_g": 50.0, "chi2_red": 1 + 0.1 * np.arange(20)})
    cells = chi2_statistics(frame.iloc[:n])
    assert len(cells) == 0
    assert (cells.dtypes == chi2_statistics(frame).dtypes).all()
    assert fit_chi2_model(cells) is None
    assert fit_chi2_model(chi2_statistics(frame)) is not None


@pytest.mark.parametrize("value", [np.nan, 1.0, 0.0, -1.0, np.inf])
def test_chi_squares_without_dispersion_make_no_model(value):
    frame = pd.DataFrame({"cell": 31, "teff": 9000.0, "snr_g": 50.0, "chi2_red": np.full(100, value)})
    assert fit_chi2_model(chi2_statistics(frame)) is None


def test_unplaced_spectra_are_left_out():
    frame = pd.DataFrame({"cell": -1, "teff": np.nan, "snr_g": 50.0, "chi2_red": 1 + 0.1 * np.arange(20)})
    assert len(chi2_statistics(frame)) == 0


MODEL = fit_chi2_model(chi2_statistics(simulate(np.random.default_rng(25), 5000)[0]))


@given(st.floats(1000, 1e6), st.floats(0, 1e5))
def test_dispersion_is_positive_everywhere(teff, snr):
    one, two = MODEL.ratio([teff, teff], [snr, snr], [1.0, 2.0])
    assert np.isnan([one, two]).all() if assign_cells(teff, snr) not in MODEL.cells else 0 < two - one < 1e3


def test_model_survives_json_and_missing_values_stay_missing():
    assert Chi2Model.from_dict(json.loads(json.dumps(MODEL.to_dict()))) == MODEL
    assert np.isnan(MODEL.ratio([np.nan, 9000, 9000], [50, np.nan, 50], [1, 1, np.nan])).all()


GOOD = dict.fromkeys([*LABEL_NAMES, *(c.name for c in RESIDUALS)], 0.1) | {
    "teff": 9000.0,
    "logg": 4.0,
    "ra": 266.4,
    "dec": -28.9,
    "snr_g": 50.0,
    "rv": 10.0,
    "chi2_red": 1.0,
    "chi2ratio": 0.0,
}
POLE = {"ra": 192.9, "dec": 27.1}


@pytest.mark.parametrize(
    ("change", "flags", "in_sample"),
    [
        ({}, Flag(0), True),
        ({"snr_g": 4.99}, Flag.LOW_SNR, False),
        ({"snr_g": 5.0}, Flag(0), True),
        ({"snr_g": np.nan, "chi2ratio": np.nan}, Flag.LOW_SNR | Flag.NO_CHI2RATIO | Flag.UNSCALED_ERRORS, False),
        ({"teff": 6999.0}, Flag.COOL, False),
        ({"teff": 7000.0}, Flag(0), True),
        ({"chi2ratio": 10.0}, Flag(0), True),
        ({"chi2ratio": 10.1}, Flag.BAD_CHI2, True),
        ({"chi2ratio": np.nan}, Flag.NO_CHI2RATIO, True),
        ({"rv": 5990.0}, Flag(0), True),
        ({"rv": -6000.0}, Flag.LARGE_VELOCITY, True),
        ({"rv": np.nan}, Flag(0), True),
        ({"vsini": -0.1}, Flag.NEGATIVE_VSINI, True),
        ({"s_h": np.nan}, Flag(0), False),
        ({"halpha_excess": 0.6}, Flag.EMISSION, True),
        ({"halpha_excess": 0.4}, Flag(0), True),
        ({"halpha_excess": 0.25, "halpha_excess_err": 0.01}, Flag(0), True),
        ({"balmer_excess": 0.6}, Flag(0), True),
        ({"halpha_excess": np.nan, "balmer_excess": 0.6}, Flag(0), True),
        ({"halpha_excess": np.nan, "balmer_excess": 1.1}, Flag.EMISSION, True),
        ({"balmer_excess": -0.6}, Flag(0), True),
        ({"binary_score": 51.0}, Flag.BINARY, True),
        ({"binary_score": 49.0}, Flag(0), True),
        ({"binary_score": 51.0, "halpha_excess": 0.6}, Flag.EMISSION, True),
        ({"rv_shift": -31.0, "rv_shift_err": 6.0}, Flag.VELOCITY_SUSPECT, True),
        ({"rv_shift": -31.0, "rv_shift_err": 6.0, "chi2_red": 4.0}, Flag(0), True),
        ({"rv_shift": 29.0}, Flag(0), True),
        ({"fe_h": 0.3, "si_h": 0.5}, Flag.PECULIAR, True),
        ({"fe_h": 0.3, "si_h": 0.5, "vsini": 151.0}, Flag(0), True),
        ({"fe_h": 0.3, "si_h": 0.3}, Flag(0), True),
        ({"logg": 2.9}, Flag(0), True),
        ({"logg": 5.1}, Flag.SUBDWARF, True),
        ({"logg": 5.1, "teff": 6999.0}, Flag.COOL, False),
        ({"logg": 1.9}, Flag.NLTE, True),
        ({"teff": 30001.0}, Flag.NLTE, True),
        ({"fe_h": -1.3} | POLE, Flag.HALO, True),
        ({"fe_h": -1.3}, Flag(0), True),
        (dict.fromkeys((c.name for c in RESIDUALS), np.nan), Flag(0), True),
        (dict.fromkeys((*LABEL_NAMES, "chi2ratio"), np.nan), Flag(0), False),
    ],
)
def test_flags_case_by_case(change, flags, in_sample):
    out = catalog_flags(pd.DataFrame([GOOD | change], index=[7]), **LIMITS).loc[7]
    assert Flag(int(out["flags"])) == flags
    assert out["in_sample"] == in_sample


def test_flags_of_the_fit_are_kept():
    frame = pd.DataFrame([GOOD | {"teff": 6000.0, "flags": int(Flag.REFITTED)}, GOOD | {"flags": 0}])
    out = catalog_flags(frame, **LIMITS, errors_scaled=False)
    unscaled = Flag.UNSCALED_ERRORS
    assert [Flag(f) for f in out["flags"].tolist()] == [Flag.REFITTED | Flag.COOL | unscaled, unscaled]
    assert out["flags"].dtype == np.int32
    assert out["in_sample"].dtype == bool


def test_flags_of_no_spectra():
    out = catalog_flags(pd.DataFrame([GOOD]).iloc[:0], **LIMITS)
    assert out.dtypes.astype(str).to_dict() == {"flags": "int32", "in_sample": "bool"}
    assert len(out) == 0


def test_galactic_latitude_is_that_of_astropy():
    rng = np.random.default_rng(26)
    ra, dec = rng.uniform(0, 360, 500), np.degrees(np.arcsin(rng.uniform(-1, 1, 500)))
    expected = SkyCoord(ra, dec, unit="deg", frame="icrs").galactic.b.deg
    np.testing.assert_allclose(galactic_latitude(ra, dec), expected, atol=1e-3)
