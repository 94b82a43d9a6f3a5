"""The merge of both fits against the closed form, the paper's limits and a simulated pair of fits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotdask.labels import INDEX, N_LABELS
from hotdask.steps.merge import (
    IMPOSSIBLE_ERROR,
    MAX_RISE,
    NOISE_GAIN,
    PLAUSIBLE_ERROR,
    bounded_weight,
    checked_weight,
    hydrogen_error,
    hydrogen_gain,
    hydrogen_weight,
    merge_fits,
)

TEFF = st.floats(6000, 40000)


@given(TEFF, TEFF)
def test_paper_weight_is_the_hann_function_of_equation_6(masked, full):
    length = 5000 if full > 9500 else 3000
    x = masked - 9500
    hann = (1 + np.cos(2 * np.pi * x / length)) / 2 if abs(x) <= length / 2 else 0
    assert hydrogen_weight([masked], [full], "paper")[0] == pytest.approx(hann, abs=1e-12)


@given(TEFF, TEFF)
def test_weight_is_that_of_the_paper_where_both_fits_are_near_the_maximum_and_never_more(masked, full):
    ours, paper = (hydrogen_weight([masked], [full], rule)[0] for rule in ("checked", "paper"))
    distance = abs(full - 9500) / (5000 if full > 9500 else 3000)
    assert ours <= paper
    if distance <= 1 / 3:
        assert ours == paper
    if distance >= 1 / 2:
        assert ours == 0
    # As far out as it goes, the weight ends without a jump.
    nearly = hydrogen_weight([9500.0], [12000.0 - 1e-3])[0]
    assert 0 <= nearly < 1e-10


@given(st.floats(12000, 60000), TEFF)
def test_masked_fit_is_without_weight_above_12000_k(masked, full):
    assert hydrogen_weight([masked], [full])[0] == 0


@given(st.floats(5000, 8000), st.floats(5000, 9500))
def test_masked_fit_is_without_weight_below_8000_k(masked, full):
    assert hydrogen_weight([masked], [full])[0] == 0


@pytest.mark.parametrize("full", [9400.0, 9600.0])
def test_masked_fit_takes_all_the_weight_at_the_hydrogen_maximum(full):
    assert hydrogen_weight([9500.0], [full])[0] == 1


@pytest.mark.parametrize(("masked", "full", "half"), [(10750.0, 11000.0, 0.5), (8750.0, 9000.0, 0.5)])
def test_weight_is_half_at_a_quarter_of_the_length(masked, full, half):
    assert hydrogen_weight([masked], [full])[0] == pytest.approx(half)


def _regression(rng, n_visits):
    """Fits of one linear model to all pixels and to a part of them: labels and covariances of both."""
    n_pixel, n_kept = 60, 40
    gradient = rng.normal(size=(n_pixel, N_LABELS)) * np.linspace(0.5, 2, N_LABELS)
    sigma = rng.uniform(0.5, 2, n_pixel)
    truth = np.zeros(N_LABELS)
    noise = rng.normal(size=(n_visits, n_pixel)) * sigma
    fits = []
    for part in (slice(None), slice(n_kept)):
        whitened = gradient[part] / sigma[part, None]
        covariance = np.linalg.inv(whitened.T @ whitened)
        fits.append((truth + (noise[:, part] / sigma[part]) @ whitened @ covariance, covariance))
    return fits


@pytest.mark.parametrize("shift", [0.0, 600.0, 1100.0])
def test_merged_covariance_is_the_scatter_of_simulated_merges(shift):
    n = 40000
    (full, c_full), (masked, c_masked) = _regression(np.random.default_rng(1), n)
    # Teff noise of about 1 K: the weight is the same for all, as the formula supposes.
    offset = np.zeros(N_LABELS)
    offset[INDEX["teff"]] = 9500 + shift
    full, masked = full + offset, masked + offset
    weight = hydrogen_weight(masked[:, 0], full[:, 0])
    labels, covariance = merge_fits(
        full, np.repeat(c_full[None], n, 0), masked, np.repeat(c_masked[None], n, 0), weight
    )
    # Right at the maximum the all-lines fit picks one length or the other; the weight is 1 for both.
    assert np.ptp(weight) < 0.01
    measured = np.cov(labels, rowvar=False)
    expected = covariance.mean(axis=0)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(measured / scale, expected / scale, atol=6 / np.sqrt(n))
    if shift:
        independent = weight[0] ** 2 * c_masked + (1 - weight[0]) ** 2 * c_full
        assert np.abs(measured / scale - independent / scale).max() > 10 / np.sqrt(n)


def _fits(teff_all, teff_hmasked):
    n = len(teff_all)
    full, masked = np.full((n, N_LABELS), 1.0), np.full((n, N_LABELS), 2.0)
    full[:, 0], masked[:, 0] = teff_all, teff_hmasked
    return full, np.repeat(np.eye(N_LABELS)[None], n, 0), masked, np.repeat(4 * np.eye(N_LABELS)[None], n, 0)


@given(TEFF, TEFF, st.floats(0, 1e6))
def test_masked_fit_counts_as_far_as_it_tells_more_than_noise(full, masked, gain):
    temperatures = hydrogen_weight([masked], [full])
    weight = checked_weight(temperatures, [gain], [0.0])
    expected = temperatures[0] * (1 - NOISE_GAIN / gain if gain > NOISE_GAIN else 0)
    assert weight[0] == pytest.approx(expected, abs=1e-12)
    labels, covariance = merge_fits(*_fits([full], [masked]), weight)
    assert labels[0, 1] == pytest.approx(1 + expected)
    assert covariance[0, 1, 1] == pytest.approx(1 + 3 * expected**2)
    # A little more gain moves weights by as little: nothing jumps where they end.
    assert abs(checked_weight(temperatures, [gain + 1e-3], [0.0]) - weight)[0] <= 1e-3 / NOISE_GAIN


@given(st.floats(0, 1))
def test_masked_fit_ends_to_count_where_hydrogen_lines_would_be_too_wrong(error):
    weight = checked_weight([1.0], [1e12], [error])[0]
    if error <= PLAUSIBLE_ERROR:
        assert weight == pytest.approx(1)
    if error >= IMPOSSIBLE_ERROR:
        assert weight == 0
    # The steepest slope of cos² over its range.
    slope = np.pi / 2 / (IMPOSSIBLE_ERROR - PLAUSIBLE_ERROR)
    assert -1e-3 * slope <= checked_weight([1.0], [1e12], [error + 1e-3])[0] - weight <= 1e-9


def test_without_numbers_to_check_the_weight_stands():
    weight = np.array([0.3, 1.0, np.nan])
    np.testing.assert_array_equal(checked_weight(weight, np.full(3, np.nan), np.full(3, np.nan)), weight)


@pytest.mark.parametrize("snr", [20.0, 100.0, 1000.0])
@pytest.mark.parametrize("error", [0.0, 0.05, -0.12, 0.3])
def test_error_of_hydrogen_lines_is_what_they_are_wrong_by(snr, error):
    rng = np.random.default_rng(2)
    depth = rng.uniform(0, 0.7, (5, 300))
    ivar = np.full(depth.shape, snr**2, dtype=np.float32) * (rng.random(depth.shape) < 0.9)
    chi2 = (ivar * (error * depth) ** 2).sum(axis=1)
    flux = (1 - depth).astype(np.float32)
    flux[ivar == 0] = np.nan
    np.testing.assert_allclose(hydrogen_error(np.full(5, 2600.0), 2600.0 + chi2, flux, ivar), abs(error), atol=1e-5)


def test_error_of_lines_that_are_not_there_is_without_bound():
    nothing = np.zeros((2, 30), dtype=np.float32)
    assert np.isinf(hydrogen_error([10.0, 10.0], [20.0, 10.0], nothing, nothing)).all()


@given(st.floats(0.01, 1), st.floats(0, 1e6))
def test_chi2_of_merged_labels_is_bounded(weight, cost):
    chi2 = 2600.0
    bounded = bounded_weight([weight], [chi2], [chi2 + cost * weight**2])[0]
    # χ² is a parabola of the weight here.
    after = chi2 + cost * bounded**2
    assert after <= MAX_RISE * chi2 * (1 + 1e-9)
    assert bounded == weight or after == pytest.approx(MAX_RISE * chi2)


def _two_fits_of_one_line(rng, n, shift):
    """Fits of all pixels, half of which are off by a pattern of size ``shift`` that no label describes, and of the
    other half: labels and covariances of both, true labels 0, and the gain."""
    n_kept, n_label = 40, N_LABELS
    gradient = rng.normal(size=(2 * n_kept, n_label))
    pattern = np.concatenate([np.zeros(n_kept), rng.normal(size=n_kept)])
    data = rng.normal(size=(n, 2 * n_kept)) + shift * pattern / np.linalg.norm(pattern)
    (full, c_full), (kept, c_kept) = (
        (data[:, part] @ gradient[part] @ (inverse := np.linalg.inv(gradient[part].T @ gradient[part])), inverse)
        for part in (slice(None), slice(n_kept))
    )
    at_full, at_kept = (((data - fit @ gradient.T)[:, :n_kept] ** 2).sum(axis=1) for fit in (full, kept))
    return full, c_full, kept, c_kept, hydrogen_gain(at_full, at_kept, at_kept / (n_kept - n_label))


@pytest.mark.parametrize(("shift", "share"), [(0.0, 0.75), (3.0, 0.85), (6.0, 0.97), (12.0, 1.01), (50.0, 1.01)])
def test_merged_labels_err_less_than_those_of_the_masked_fit_whatever_misleads_hydrogen(shift, share):
    """Risk in units of the masked fit's own errors, as Green & Strawderman 1991 prove it for normal deviates."""
    full, c_full, kept, c_kept, gain = _two_fits_of_one_line(np.random.default_rng(3), 20_000, shift)
    offset = np.zeros(N_LABELS)
    # All at the hydrogen maximum.
    offset[0] = 9500
    weight = checked_weight(np.ones(len(gain)), gain, np.full(len(gain), np.nan))
    labels, _ = merge_fits(full + offset, np.broadcast_to(c_full, (20_000, 11, 11)), kept + offset, c_kept, weight)
    weight = np.linalg.inv(c_kept)
    merged, masked = (np.mean(np.sum((a - offset) @ weight * (a - offset), axis=1)) for a in (labels, kept + offset))
    assert masked == pytest.approx(N_LABELS, rel=0.03)
    assert merged < share * masked
    if shift == 50:
        # What misleads the fit of all lines by much is left out of the result.
        everything = np.mean(np.sum(full @ weight * full, axis=1))
        assert everything > 5 * merged


def test_a_missing_fit_leaves_the_other_one():
    full, c_full, masked, c_masked = _fits([9000.0] * 3, [9100.0] * 3)
    full[0] = full[2] = masked[1] = masked[2] = np.nan
    c_full[0], c_masked[1] = np.nan, np.nan
    weight = hydrogen_weight(np.array([9100, np.nan, np.nan]), np.array([np.nan, 9000, np.nan]))
    labels, covariance = merge_fits(full, c_full, masked, c_masked, weight)
    np.testing.assert_array_equal(labels[0], masked[0])
    np.testing.assert_array_equal(covariance[0], c_masked[0])
    np.testing.assert_array_equal(labels[1], full[1])
    np.testing.assert_array_equal(covariance[1], c_full[1])
    assert np.isnan(labels[2]).all()
    assert np.isnan(covariance[2]).all()
    np.testing.assert_array_equal(weight, [1, 0, np.nan])


def test_a_fit_without_weight_leaks_nothing():
    full, c_full, masked, c_masked = _fits([20000.0], [20000.0])
    c_masked[:] = np.nan
    labels, covariance = merge_fits(full, c_full, masked, c_masked, [0.0])
    np.testing.assert_array_equal(labels, full)
    np.testing.assert_array_equal(covariance, c_full)


def test_no_spectra():
    weight = checked_weight(hydrogen_weight([], []), [], [])
    labels, covariance = merge_fits(*_fits([], []), weight)
    assert labels.shape == (0, N_LABELS)
    assert covariance.shape == (0, N_LABELS, N_LABELS)
    assert weight.shape == (0,)
