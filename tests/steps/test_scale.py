"""Error scaling on simulated pulls of known dispersion; the polynomial against least squares it must reproduce."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotdask.errors import RunError
from hotdask.labels import INDEX, LABEL_NAMES, LABELS, N_LABELS
from hotdask.steps.polynomial import (
    LOG_SNR_EDGES,
    LOG_TEFF_EDGES,
    N_CELLS,
    TURN_SNR,
    Polynomial,
    assign_cells,
    fit_polynomial,
)
from hotdask.steps.repeats import make_pairs
from hotdask.steps.scale import (
    ErrorScale,
    _log_sigma,
    fit_error_scale,
    limit_errors,
    pull_statistics,
    scale_covariance,
)

MAD = 1.4826022185056018
POPULATED = 400
"""Pairs from which on a cell counts as populated: factors of all labels are right to 5 % there, in ten simulated
surveys of 40 000 stars (of 4000 factors the worst was off by 4.8 %). A cubic of the true factors is never off by more
than 2.4 % there, and by 4.2 % in any cell with ten pairs; the rest is luck. So many pulls tell a dispersion to 3.7 %;
with fewer, at the rim of a survey, where neighbors help little, factors err by 2.5 % (rms) from 100 pairs on, 9 % at
worst."""


def true_factor(teff, snr):
    """Too small errors at high S/N and for hot stars, as calibration and models make them."""
    return np.sqrt(1 + (np.asarray(snr) / 120) ** 2) * (np.asarray(teff) / 9000) ** 0.3


def simulate(rng, n):
    teff = 7000 * (1 + rng.exponential(0.35, n)).clip(max=6)
    snr = 10 ** rng.normal(1.75, 0.3, n).clip(0.7, 2.7)
    pulls = rng.normal(size=(n, N_LABELS)) * true_factor(teff, snr)[:, None]
    wild = rng.random(n) < 0.02
    pulls[wild] *= 10
    frame = pd.DataFrame({"teff": teff, "snr_g": snr, "cell": assign_cells(teff, snr)})
    return frame.assign(**{f"{name}_pull": pulls[:, k] for name, k in INDEX.items()})


def test_scaled_pulls_have_unit_dispersion_in_every_populated_cell():
    rng = np.random.default_rng(7)
    scale = fit_error_scale(pull_statistics(simulate(rng, 60_000)))
    assert scale.unscaled == ()
    # Judged on other pairs than it was made from.
    fresh = simulate(rng, 60_000)
    pulls = fresh[[f"{n}_pull" for n in LABEL_NAMES]].to_numpy() / scale.factors(fresh["teff"], fresh["snr_g"])
    cells = [g for g in fresh.groupby("cell").indices.values() if len(g) >= POPULATED]
    assert len(cells) >= 24
    # Labels share the factor here; together they give 11 n pulls a cell.
    dispersion = np.array([MAD * np.median(np.abs(pulls[g])) for g in cells])
    np.testing.assert_allclose(dispersion, 1, atol=0.05)
    # And label by label without the luck of a new draw.
    ratio = scale.factors(fresh["teff"], fresh["snr_g"]) / true_factor(fresh["teff"], fresh["snr_g"])[:, None]
    for g in cells:
        np.testing.assert_allclose(np.sqrt(np.mean(ratio[g] ** 2, axis=0)), 1, atol=0.05)


def test_a_small_survey_is_scaled_to_a_tenth():
    errors = []
    for seed in range(12):
        scale = fit_error_scale(pull_statistics(simulate(np.random.default_rng(seed), 400)))
        ratio = scale.factors([8500.0, 9500.0], [40.0, 90.0]) / true_factor([8500.0, 9500.0], [40.0, 90.0])[:, None]
        errors.append(np.log(ratio))
    # 144 independent fits: no bias from small cells, and a scatter that few pairs explain.
    assert abs(np.mean(errors)) < 0.06
    assert np.std(errors) < 0.2


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 20, 29, 30, 40, 70, 199, 500])
def test_log_dispersion_is_unbiased_however_small_the_cell(n):
    rng = np.random.default_rng(n)
    trials = 4000
    measured = np.array([_log_sigma(row) for row in 3 * rng.normal(size=(trials, n))])
    spread = measured[:, 0].std()
    assert measured[:, 0].mean() == pytest.approx(np.log(3), abs=5 * spread / np.sqrt(trials))
    assert spread**2 == pytest.approx(measured[0, 1], rel=0.15)


def test_many_pulls_are_used_well_and_wild_ones_not():
    rng = np.random.default_rng(4)
    pulls = rng.normal(size=(2000, 400))
    measured = np.array([_log_sigma(row)[0] for row in pulls])
    # The median of absolute values has a variance of 1.36 / n, the best estimate 0.5 / n.
    assert measured.var() * 400 < 0.65
    pulls[:, :8] *= 10
    wild = np.array([_log_sigma(row)[0] for row in pulls])
    assert abs(wild.mean()) < 0.005
    assert np.log(MAD * np.median(np.abs(pulls))) > 0.015


def test_statistics_and_scale_do_not_depend_on_row_order():
    pairs = simulate(np.random.default_rng(8), 3000)
    cells = pull_statistics(pairs)
    pd.testing.assert_frame_equal(cells, pull_statistics(pairs.sample(frac=1, random_state=2)), check_exact=True)
    assert fit_error_scale(cells) == fit_error_scale(cells.sample(frac=1, random_state=3))


def test_cells_measured_apart_are_cells_measured_together():
    pairs = simulate(np.random.default_rng(9), 3000)
    part = pairs["cell"] % 3
    apart = pd.concat([pull_statistics(pairs[part == k]) for k in range(3)])
    pd.testing.assert_frame_equal(apart.sort_values("cell", ignore_index=True), pull_statistics(pairs))


def test_too_few_pairs_scale_nothing():
    pairs = simulate(np.random.default_rng(10), 199)
    empty = pull_statistics(pairs.iloc[:0])
    assert (empty.dtypes == pull_statistics(pairs).dtypes).all()
    for few in (empty, pull_statistics(pairs.iloc[:1]), pull_statistics(pairs)):
        assert fit_error_scale(few, min_pairs=200) is None
    assert fit_error_scale(pull_statistics(pairs), min_pairs=199) is not None
    missing = pairs.assign(**{f"{name}_pull": np.nan for name in LABEL_NAMES})
    assert fit_error_scale(pull_statistics(missing), min_pairs=0) is None


def test_a_label_that_never_repeats_keeps_its_errors():
    pairs = simulate(np.random.default_rng(11), 1000).assign(s_h_pull=np.nan, c_h_pull=0.0)
    scale = fit_error_scale(pull_statistics(pairs))
    assert scale.unscaled == ("c_h", "s_h")
    factors = scale.factors([9000.0, np.nan, 9000.0], [300.0, 300.0, np.nan])
    assert (factors[:, [INDEX["c_h"], INDEX["s_h"]]] == 1).all()
    assert (factors[1:] == 1).all()
    assert factors[0, INDEX["teff"]] > 1.5


@given(st.floats(1000, 1e6), st.floats(0, 1e5))
def test_factors_are_positive_and_bounded_everywhere(teff, snr):
    factors = SCALE.factors([teff], [snr])
    assert factors.shape == (1, N_LABELS)
    # The truth spans 0.9 to 6 over the simulated stars.
    assert ((factors > 0.4) & (factors < 12)).all()


SCALE = fit_error_scale(pull_statistics(simulate(np.random.default_rng(12), 5000)))


def test_scale_survives_json():
    assert ErrorScale.from_dict(json.loads(json.dumps(SCALE.to_dict()))) == SCALE


def test_scaling_a_covariance_keeps_correlations():
    rng = np.random.default_rng(13)
    root = rng.normal(size=(5, N_LABELS, N_LABELS))
    covariance = root @ root.transpose(0, 2, 1)
    factors = rng.uniform(0.5, 3, size=(5, N_LABELS))
    scaled = scale_covariance(covariance, factors)
    for before, after, factor in zip(covariance, scaled, factors, strict=True):
        np.testing.assert_allclose(after, np.diag(factor) @ before @ np.diag(factor), rtol=1e-12)
        np.testing.assert_allclose(np.sqrt(np.diag(after)), factor * np.sqrt(np.diag(before)))
        np.testing.assert_array_equal(after, after.T)
    assert scale_covariance(covariance[:0], factors[:0]).shape == (0, N_LABELS, N_LABELS)


def test_cells_are_a_histogram_of_the_logs():
    rng = np.random.default_rng(14)
    teff, snr = 10 ** rng.uniform(3.7, 4.8, 5000), 10 ** rng.uniform(0.5, 3.05, 5000)
    counts, _, _ = np.histogram2d(np.log10(teff), np.log10(snr), bins=[LOG_TEFF_EDGES, LOG_SNR_EDGES])
    np.testing.assert_array_equal(np.bincount(assign_cells(teff, snr), minlength=N_CELLS), counts.ravel())


def test_cells_take_in_whatever_is_finite():
    assert assign_cells([1.0, 1e9], [1e-9, 1e9]).tolist() == [0, N_CELLS - 1]
    unusable = assign_cells([np.nan, 9000, -1, np.inf, 9000], [50, np.nan, 50, 50, 0])
    assert unusable.tolist() == [-1] * 5
    assert assign_cells([], []).dtype == np.int32


def _grid(rows=slice(3, 9), columns=slice(5, 11)):
    a, b = np.meshgrid(np.array(LOG_TEFF_EDGES)[rows] + 0.04, np.array(LOG_SNR_EDGES)[columns] + 0.11)
    teff, snr = 10 ** a.ravel(), 10 ** b.ravel()
    return assign_cells(teff, snr), teff, snr


def _cubic(teff, snr):
    a, b = np.log10(teff) - 4, np.log10(1 + snr / TURN_SNR) - 0.6
    return 1 + a - b + 3 * a**2 - 2 * a * b + b**2 + 5 * a**3 - a**2 * b + 2 * a * b**2 + b**3


def test_a_cubic_is_found_exactly():
    cell, teff, snr = _grid()
    polynomial = fit_polynomial(cell, teff, snr, _cubic(teff, snr), np.full(cell.size, 1e-6))
    assert len(polynomial.coefficients) == 10
    np.testing.assert_allclose(polynomial.evaluate(teff, snr), _cubic(teff, snr), rtol=1e-10)


def test_weights_are_those_of_least_squares():
    rng = np.random.default_rng(15)
    cell, teff, snr = _grid()
    variance = rng.uniform(0.1, 10, cell.size) * 1e-3
    value = _cubic(teff, snr) + rng.normal(size=cell.size) * np.sqrt(variance)
    a, b = np.log10(teff), np.log10(1 + snr / TURN_SNR)
    design = np.stack([a**i * b**j for i in range(4) for j in range(4 - i)], axis=1)
    normal = design.T / variance
    expected = design @ np.linalg.solve(normal @ design, normal @ value)
    polynomial = fit_polynomial(cell, teff, snr, value, variance)
    np.testing.assert_allclose(polynomial.evaluate(teff, snr), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "columns", "terms"),
    [
        (slice(3, 4), slice(5, 6), 1),
        (slice(3, 4), slice(5, 11), 3),
        (slice(3, 5), slice(5, 6), 1),
        (slice(3, 5), slice(5, 8), 3),
        (slice(3, 6), slice(5, 9), 6),
        (slice(3, 8), slice(5, 9), 10),
    ],
)
def test_fewer_cells_hold_fewer_terms(rows, columns, terms):
    cell, teff, snr = _grid(rows, columns)
    value = _cubic(teff, snr)
    polynomial = fit_polynomial(cell, teff, snr, value, np.full(cell.size, 1e-12))
    assert len(polynomial.coefficients) == terms
    fitted = polynomial.evaluate(teff, snr)
    assert np.sum((fitted - value) ** 2) <= np.sum((value - value.mean()) ** 2) + 1e-12


@pytest.mark.parametrize(("curvature", "terms"), [(0.0, 3), (5.0, 6)])
def test_noise_does_not_call_for_a_cubic(curvature, terms):
    cell, teff, snr = _grid()
    counts = []
    for seed in range(20):
        value = np.log10(teff) + curvature * (np.log10(1 + snr / TURN_SNR) - 0.6) ** 2
        value += np.random.default_rng(seed).normal(0, 0.05, cell.size)
        counts.append(len(fit_polynomial(cell, teff, snr, value, np.full(cell.size, 0.05**2)).coefficients))
    assert np.median(counts) == terms


def test_only_firm_cells_mark_the_support():
    cell, teff, snr = _grid()
    firm = teff < 1.3e4
    polynomial = fit_polynomial(cell, teff, snr, teff / 1e4, np.full(cell.size, 0.1), firm=firm)
    assert polynomial.log_teff == pytest.approx((4.0, 4.1))
    np.testing.assert_array_equal(polynomial.evaluate(1e5, snr), polynomial.evaluate(10**4.1, snr))
    # The others still tell the slope.
    assert polynomial.evaluate(10**4.1, 100.0) > polynomial.evaluate(1e4, 100.0)
    assert fit_polynomial(cell, teff, snr, teff, teff, firm=teff < 0) == fit_polynomial(cell, teff, snr, teff, teff)


def test_cells_along_a_line_do_not_make_a_wild_surface():
    step = np.arange(11)
    a, b = np.meshgrid(np.geomspace(4000, 60000, 40), np.geomspace(1, 2000, 40))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        teff = 10 ** (np.array(LOG_TEFF_EDGES)[step] + 0.05 + 1e-3 * rng.normal(size=11))
        snr = 10 ** (np.array(LOG_SNR_EDGES)[step] + 0.1 + 1e-3 * rng.normal(size=11))
        value = rng.normal(0, 0.3, step.size)
        polynomial = fit_polynomial(assign_cells(teff, snr), teff, snr, value, np.full(step.size, 0.01))
        assert np.abs(polynomial.evaluate(a, b)).max() < 1


def test_nothing_is_extrapolated():
    cell, teff, snr = _grid()
    polynomial = fit_polynomial(cell, teff, snr, _cubic(teff, snr), np.full(cell.size, 1e-6))
    low, high = (10 ** np.array(polynomial.log_teff), 10 ** np.array(polynomial.log_snr))
    assert polynomial.evaluate(1e6, 1e5) == polynomial.evaluate(low[1], high[1])
    assert polynomial.evaluate(1e6, 0.0) == polynomial.evaluate(low[1], high[0])
    assert np.isnan(polynomial.evaluate([np.nan, 9000.0], [50.0, np.nan])).all()


def test_a_cell_in_parts_is_refused():
    cell, teff, snr = _grid()
    with pytest.raises(RunError, match=rf"\[{cell[0]}\] come more than once"):
        fit_polynomial(np.append(cell, cell[0]), *(np.append(a, a[0]) for a in (teff, snr, snr, snr)))


def test_polynomial_survives_json_and_nothing_makes_none():
    cell, teff, snr = _grid()
    polynomial = fit_polynomial(cell, teff, snr, _cubic(teff, snr), np.full(cell.size, 1e-6))
    assert Polynomial.from_dict(json.loads(json.dumps(polynomial.to_dict()))) == polynomial
    assert fit_polynomial([], [], [], [], []) is None
    assert fit_polynomial(cell, teff, snr, np.full(cell.size, np.nan), np.ones(cell.size)) is None


def catalog_of_visits(rng, n_star):
    """A survey as its catalog knows it: stars with two to four visits, and labels off by f times the formal errors."""
    visits = rng.integers(2, 5, n_star)
    star = np.repeat(np.arange(n_star), visits)
    teff_true = (7000 * (1 + rng.exponential(0.45, n_star)).clip(max=5))[star]
    snr = 10 ** (rng.normal(1.75, 0.3, n_star).clip(0.8, 2.6)[star] + rng.normal(0, 0.03, star.size))
    night = np.concatenate([np.arange(v) for v in visits])
    factor = true_factor(teff_true, snr)[:, None] ** np.linspace(0.4, 1.2, N_LABELS)
    spread = np.array([6000.0, *np.linspace(0.5, 3, N_LABELS - 1)])
    error = spread / snr[:, None] * rng.lognormal(0, 0.2, (star.size, N_LABELS))
    true = np.column_stack([teff_true, np.zeros((star.size, N_LABELS - 1))])
    labels = true + factor * error * rng.normal(size=error.shape)
    frame = pd.DataFrame({"star_id": star.astype(str), "mjd": night, "snr_g": snr})
    frame["specid"] = [f"{s}-{v}" for s, v in zip(star, night, strict=True)]
    frame[list(LABEL_NAMES)] = labels
    frame[[f"{name}_err" for name in LABEL_NAMES]] = error
    return frame, true, factor


def test_labels_that_cannot_be_seen_do_not_shrink_the_errors_of_others():
    """Of half the visits a label may be anything between its limits, with a formal error of many dex."""
    frame, *_ = catalog_of_visits(np.random.default_rng(8), 10_000)
    k, label = INDEX["n_h"], LABELS[INDEX["n_h"]]
    rng = np.random.default_rng(9)
    error = np.full(len(frame), 0.3)
    frame["n_h"] = error * rng.normal(size=len(frame))
    unseen = rng.random(len(frame)) < 0.5
    frame.loc[unseen, "n_h"] = rng.uniform(label.floor, label.ceiling, unseen.sum())
    frame["n_h_err"] = np.where(unseen, 20.0, error)

    def factors(frame):
        pairs = make_pairs(frame)
        pairs["cell"] = assign_cells(pairs["teff"], pairs["snr_g"])
        return fit_error_scale(pull_statistics(pairs)).factors(frame["teff"], frame["snr_g"])[:, k]

    assert np.median(factors(frame)) < 0.5
    errors = [f"{name}_err" for name in LABEL_NAMES]
    limited = frame.assign(**dict(zip(errors, limit_errors(frame[errors]).T, strict=True)))
    assert limited.loc[unseen, "n_h_err"].to_numpy() == pytest.approx(np.sqrt(np.var([0, 1]) / 3) * 8.5)
    # Differences of even values have short tails, and a robust dispersion 6 % above the usual one.
    np.testing.assert_allclose(np.median(factors(limited)), 1, atol=0.1)


def test_errors_of_a_survey_are_right_after_scaling():
    rng = np.random.default_rng(31)
    frame, true, factor = catalog_of_visits(rng, 40_000)
    pairs = make_pairs(frame)
    pairs["cell"] = assign_cells(pairs["teff"], pairs["snr_g"])
    statistics = pull_statistics(pairs)
    scale = fit_error_scale(statistics)
    error = frame[[f"{n}_err" for n in LABEL_NAMES]].to_numpy() * scale.factors(frame["teff"], frame["snr_g"])
    pull = (frame[list(LABEL_NAMES)].to_numpy() - true) / error
    # The dispersion without the luck of the draw, for each label in each cell.
    over = factor * frame[[f"{n}_err" for n in LABEL_NAMES]].to_numpy() / error
    cell = assign_cells(frame["teff"], frame["snr_g"])
    # Where pairs are few, at the rim of the survey, their luck shows.
    for n_pair, n_cell, tolerance in ((POPULATED, 34, 0.05), (100, 48, 0.1), (30, 58, 0.15)):
        populated = statistics.loc[statistics["n"] >= n_pair, "cell"]
        assert len(populated) >= n_cell
        for here in (cell == c for c in populated):
            np.testing.assert_allclose(np.sqrt(np.mean(over[here] ** 2, axis=0)), 1, atol=tolerance)
            assert np.std(pull[here]) == pytest.approx(1, abs=tolerance)
