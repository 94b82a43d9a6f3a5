"""The batched fit against scipy's least squares on the same emulator, and against what noise must do."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import least_squares

from hotdask.emulator import LowRankEmulator, load_emulator, mean_lsf
from hotdask.labels import INDEX, LABEL_NAMES, LABELS, N_LABELS
from hotdask.steps.fit import Fitter, start_at
from hotdask.windows import FIT_MASK, HYDROGEN, HYDROGEN_MAXIMUM, N_REST, inside, rest_wavelength

EMULATOR = load_emulator()
FITTER = Fitter(EMULATOR)
WAVELENGTH = rest_wavelength()
USED = {
    "all": ~inside(WAVELENGTH, FIT_MASK),
    "hmasked": ~inside(WAVELENGTH, (*FIT_MASK, *HYDROGEN)),
}
ARRAYS = {name: value.astype(np.float64) for name, value in EMULATOR.arrays.items()}


def draw_labels(rng: np.random.Generator, n: int, low: float = 8000, high: float = 26000) -> np.ndarray:
    """Stars well inside the library."""
    labels = np.empty((0, N_LABELS))
    while len(labels) < n:
        iron = rng.normal(-0.1, 0.2, (4 * n, 1))
        drawn = np.hstack(
            [
                np.exp(rng.uniform(np.log(low), np.log(high), (4 * n, 1))),
                rng.normal(4.0, 0.2, (4 * n, 1)),
                rng.uniform(1, 6, (4 * n, 1)),
                rng.uniform(20, 250, (4 * n, 1)),
                rng.normal(0.09, 0.01, (4 * n, 1)),
                iron + rng.normal(0, 0.15, (4 * n, 5)),
                iron,
            ]
        )
        labels = np.vstack([labels, drawn[~EMULATOR.outside(drawn)]])
    return labels[:n]


def observe(rng, labels, snr, lsf=None):
    """Emulated spectra with noise of an S/N that varies over the range, and 3 % of bad pixels filled with rubbish."""
    n = len(labels)
    sigma = 1 / (np.asarray(snr).reshape(-1, 1) * np.linspace(0.6, 1.2, N_REST) * rng.uniform(0.9, 1.1, (n, N_REST)))
    flux = exact_flux(labels, mean_lsf() if lsf is None else lsf) + sigma * rng.normal(size=sigma.shape)
    ivar = sigma**-2.0
    bad = rng.random(flux.shape) < 0.03
    flux[bad], ivar[bad] = rng.choice([0.0, 1e6, np.nan], bad.sum()), 0
    return flux.astype(np.float32), ivar.astype(np.float32)


def network(x: np.ndarray, lsf: np.ndarray) -> np.ndarray:
    """Coefficients of scaled labels x (n, 11), in float64 and written out."""
    hidden = np.hstack([x, (lsf - ARRAYS["input_center"][N_LABELS:]) / ARRAYS["input_scale"][N_LABELS:]])
    for layer in (1, 2):
        z = hidden @ ARRAYS[f"weight{layer}"].T + ARRAYS[f"bias{layer}"]
        hidden = z / (1 + np.exp(-z))
    return hidden @ ARRAYS["weight3"].T + ARRAYS["bias3"]


def scaled(labels: np.ndarray) -> np.ndarray:
    raw = np.hstack([np.log10(labels[:, :1]), labels[:, 1:]])
    return (raw - ARRAYS["input_center"][:N_LABELS]) / ARRAYS["input_scale"][:N_LABELS]


def exact_flux(labels: np.ndarray, lsf: np.ndarray) -> np.ndarray:
    lsf = np.broadcast_to(lsf, (len(labels), 6))
    return ARRAYS["mean"] + network(scaled(labels), lsf) @ ARRAYS["basis"]


def direct_chi2(labels, flux, ivar, which, lsf=None) -> np.ndarray:
    """χ² pixel by pixel, in float64."""
    residual = np.where(ivar > 0, flux, 0) - exact_flux(labels, mean_lsf() if lsf is None else lsf)
    return (np.where(USED[which], ivar, 0).astype(np.float64) * residual**2).sum(axis=1)


def scipy_fit(flux, ivar, start, lsf, which):
    """One spectrum with scipy in scaled labels: χ², and J^T J per unit of the scaled labels, there."""
    keep = USED[which] & (ivar > 0)
    root, data, basis = np.sqrt(ivar[keep].astype(np.float64)), flux[keep].astype(np.float64), ARRAYS["basis"][:, keep]
    mean = ARRAYS["mean"][keep]
    # Bounds of the fit, on labels whose scaling is monotonic.
    floor, ceiling = (scaled(end[None])[0] for end in FITTER.limits)

    def residuals(x):
        return root * (mean + network(x[None], lsf[None])[0] @ basis - data)

    def jacobian(x):
        # Complex steps: exact derivatives without the package's own.
        nudged = x + 1j * 1e-30 * np.eye(N_LABELS)
        slope = network(nudged, np.tile(lsf, (N_LABELS, 1))).imag / 1e-30
        return ((slope @ basis) * root).T

    found = least_squares(
        residuals, scaled(start[None])[0], jac=jacobian, bounds=(floor, ceiling), xtol=1e-10, ftol=1e-10, gtol=1e-10
    )
    return 2 * found.cost, found.x, found.jac.T @ found.jac


@pytest.fixture(scope="module")
def survey():
    """40 spectra, their line spreads, and starts off by a few hundred K and some tenths of a dex."""
    rng = np.random.default_rng(11)
    labels = draw_labels(rng, 40)
    lsf = mean_lsf() * rng.normal(1, 0.03, (40, 1))
    flux, ivar = observe(rng, labels, rng.uniform(30, 150, 40), lsf)
    starts = labels + rng.normal(0, 1, labels.shape) * [0, 0.2, 1, 30, 0.01, *[0.2] * 6]
    starts[:, 0] *= np.exp(rng.normal(0, 0.06, 40))
    return labels, lsf, flux, ivar, starts


@pytest.mark.parametrize("which", ["all", "hmasked"])
def test_against_scipy(survey, which):
    _, lsf, flux, ivar, starts = survey
    block = FITTER.load(flux, ivar, lsf)
    found = block.fit(which, [starts])
    assert found.converged.all()
    reference = [scipy_fit(flux[i], ivar[i], starts[i], lsf[i], which) for i in range(len(flux))]
    chi2 = np.array([r[0] for r in reference])
    assert np.mean(found.chi2 <= chi2 * (1 + 1e-4)) >= 0.95
    # Where both stand in the same minimum: labels and covariance, in units of scipy's.
    same = np.abs(found.chi2 - chi2) < 1e-3
    assert same.sum() >= 30
    off = []
    for i in np.flatnonzero(same):
        covariance = np.linalg.inv(reference[i][2])
        sigma = np.sqrt(np.diag(covariance))
        assert (np.abs(scaled(found.labels[i : i + 1])[0] - reference[i][1]) < 0.05 * sigma).all()
        slope = EMULATOR.label_slope(found.labels[i])
        ours = found.covariance[i] * slope[:, None] * slope / np.outer(sigma, sigma)
        off.append(np.abs(ours - covariance / np.outer(sigma, sigma)).max())
        np.testing.assert_array_equal(found.n_pixel[i], (USED[which] & (ivar[i] > 0)).sum())
    # Of 121 variances and correlations the worst. Weights are binned, and of a label that hangs on few pixels the 3 %
    # that are bad here, one by one, take or give some.
    assert np.median(off) < 0.04
    assert np.max(off) < 0.2


@pytest.mark.parametrize("which", ["all", "hmasked"])
def test_chi2_is_the_sum_over_pixels(survey, which):
    labels, lsf, flux, ivar, starts = survey
    block = FITTER.load(flux, ivar, lsf)
    found = block.fit(which, [starts])
    direct = direct_chi2(found.labels, flux, ivar, which, lsf)
    np.testing.assert_allclose(found.chi2, direct, rtol=2e-6, atol=1e-3)
    np.testing.assert_allclose(block.chi2_at(found.labels, which), direct, rtol=2e-6, atol=1e-3)
    np.testing.assert_allclose(
        block.chi2_at(labels, which), direct_chi2(labels, flux, ivar, which, lsf), rtol=2e-6, atol=1e-3
    )
    np.testing.assert_allclose(found.chi2_red, direct / (found.n_pixel - 11), rtol=1e-5)


def test_chi2_far_from_any_fit(survey):
    # A model that is wrong everywhere: χ² of millions, where a compressed form in single precision would drown.
    _, lsf, flux, ivar, _ = survey
    wrong = np.tile([[30000, 3.5, 2, 10, 0.2, 0, 0, 0, 0, 0, -2]], (len(flux), 1))
    found = FITTER.load(flux, ivar, lsf).chi2_at(wrong)
    np.testing.assert_allclose(found, direct_chi2(wrong, flux, ivar, "all", lsf), rtol=1e-5)


@pytest.fixture(scope="module")
def noise():
    """700 B and A stars at S/N 150, fitted from their true labels."""
    rng = np.random.default_rng(8)
    labels = draw_labels(rng, 700, 9800, 22000)
    flux, ivar = observe(rng, labels, np.full(len(labels), 150.0))
    block = FITTER.load(flux, ivar)
    return labels, block, {which: block.fit(which, [labels]) for which in ("all", "hmasked")}


@pytest.mark.parametrize("which", ["all", "hmasked"])
def test_gain_over_the_truth_is_a_chi2_of_eleven(noise, which):
    labels, block, found = noise
    gain = block.chi2_at(labels, which) - found[which].chi2
    assert (gain > -1e-3).all()
    assert 9 < np.median(gain) < 12.5
    assert stats.kstest(gain, stats.chi2(N_LABELS).cdf).pvalue > 1e-3


@pytest.mark.parametrize("which", ["all", "hmasked"])
def test_reduced_chi2_is_one(noise, which):
    chi2 = noise[2][which]
    dof = chi2.n_pixel - N_LABELS
    assert stats.kstest((chi2.chi2 - dof) / np.sqrt(2 * dof), "norm").pvalue > 1e-3


@pytest.mark.parametrize("which", ["all", "hmasked"])
@pytest.mark.parametrize("name", LABEL_NAMES)
def test_errors_are_the_scatter(noise, which, name):
    labels, _, found = noise
    i = INDEX[name]
    pull = (found[which].labels[:, i] - labels[:, i]) / np.sqrt(found[which].covariance[:, i, i])
    # Of 700 normal numbers the half width of the central 68 % scatters by 4 %, the median by 5 %.
    low, middle, high = np.percentile(pull, [15.87, 50, 84.13])
    assert 0.85 < (high - low) / 2 < 1.18
    assert abs(middle) < 0.25


def test_correlations_are_those_of_the_scatter(noise):
    labels, _, found = noise
    solution = found["all"]
    pull = np.linalg.solve(np.linalg.cholesky(solution.covariance), (solution.labels - labels)[..., None])[..., 0]
    # Whitened with the full covariance, the labels are independent.
    rho = stats.spearmanr(pull).statistic
    assert np.abs(rho[~np.eye(N_LABELS, dtype=bool)]).max() < 0.2


def same_bits(one, two, rows):
    """Nothing of what a star's company may change."""
    for field in fields(one):
        np.testing.assert_array_equal(getattr(two, field.name), getattr(one, field.name)[rows], err_msg=field.name)


@given(order=st.permutations(range(40)), size=st.integers(1, 40), which=st.sampled_from(["all", "hmasked"]))
@settings(max_examples=8, deadline=None)
def test_company_and_order_change_nothing(survey, order, size, which):
    _, lsf, flux, ivar, _ = survey
    rows = np.array(order[:size])

    def fit(chosen):
        block = FITTER.load(flux[chosen], ivar[chosen], lsf[chosen])
        return block.fit(which, list(block.guess(which)))

    same_bits(fit(np.arange(40)), fit(rows), rows)


def test_the_same_block_gives_the_same_bits(survey):
    _, lsf, flux, ivar, starts = survey
    one, two = (FITTER.load(flux.copy(), ivar.copy(), lsf).fit("all", [starts]) for _ in range(2))
    for name in ("labels", "covariance", "chi2", "iterations", "converged", "at_bound"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_chosen_rows_are_those_rows(survey):
    _, lsf, flux, ivar, starts = survey
    block = FITTER.load(flux, ivar, lsf)
    rows = np.array([31, 4, 17])
    same_bits(block.fit("all", [starts]), block.fit("all", [starts[rows]], rows), rows)
    assert block.fit("all", [starts[:0]], rows[:0]).labels.shape == (0, N_LABELS)


def test_more_spectra_than_a_batch(survey):
    _, lsf, flux, ivar, starts = survey
    # 280 spectra cross the internal batch of 256.
    tiled = [np.tile(a, (7, 1)) for a in (flux, ivar, lsf, starts)]
    many = FITTER.load(*tiled[:3]).fit("all", [tiled[3]])
    same_bits(FITTER.load(flux, ivar, lsf).fit("all", [starts]), many, np.tile(np.arange(40), 7))


def test_values_under_bad_pixels_do_not_matter(survey):
    _, lsf, flux, ivar, starts = survey
    other = np.where(ivar > 0, flux, np.float32(-3e8))
    one, two = (FITTER.load(f, ivar, lsf).fit("all", [starts]) for f in (flux, other))
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_array_equal(one.chi2, two.chi2)


def test_masked_windows_do_not_matter(survey):
    _, lsf, flux, ivar, starts = survey
    for which, used in USED.items():
        other = np.where(used, flux, np.float32(7))
        one, two = (FITTER.load(f, ivar, lsf).fit(which, [starts]) for f in (flux, other))
        np.testing.assert_array_equal(one.labels, two.labels)


def test_a_better_start_wins(survey):
    labels, lsf, flux, ivar, _ = survey
    block = FITTER.load(flux, ivar, lsf)
    far = start_at(np.where(labels[:, 0] < HYDROGEN_MAXIMUM, 20000.0, 7600.0), labels)
    alone = block.fit("all", [far])
    for starts in ([far, labels], [labels, far], [np.full_like(labels, np.nan), far, labels]):
        # Along a valley of weak abundances two fits of a star may end some tenths of χ² apart.
        assert (block.fit("all", starts).chi2 <= alone.chi2 + 1).all()
    # A start that is unknown costs nothing and gives nothing.
    skipped = block.fit("all", [labels, np.full_like(labels, np.nan)])
    same_bits(block.fit("all", [labels]), skipped, np.arange(40))
    assert (block.fit("all", [labels, far]).iterations >= skipped.iterations).all()


@pytest.mark.parametrize("which", ["all", "hmasked"])
def test_guesses_are_near_where_fits_end(noise, which):
    _, block, found = noise
    cool, hot = block.guess(which)
    assert (cool[:, 0] <= HYDROGEN_MAXIMUM * (1 + 1e-6)).all()
    assert (hot[:, 0] >= HYDROGEN_MAXIMUM * (1 - 1e-6)).all()
    # All these stars are hot. Stars of the library scatter by 30 % in Teff and 0.9 in log g.
    assert np.median(np.abs(np.log(hot[:, 0] / found[which].labels[:, 0]))) < 0.03
    assert np.median(np.abs(hot[:, 1] - found[which].labels[:, 1])) < 0.1
    # A fit from there ends where one from the truth does, or lower.
    again = block.fit(which, [hot])
    assert np.mean(again.chi2 < found[which].chi2 + 0.1) > 0.95


class TestUnusable:
    def test_few_pixels(self, survey):
        labels, lsf, flux, ivar, _ = (a[:4].copy() for a in survey)
        kept = np.flatnonzero(USED["hmasked"] & (ivar > 0).all(axis=0))
        for row, n in enumerate((0, 299, 300)):
            ivar[row, np.setdiff1d(np.arange(N_REST), kept[:: len(kept) // 300][:n])] = 0
        block = FITTER.load(flux, ivar, lsf)
        assert block.n_pixel["hmasked"][:3].tolist() == [0, 299, 300]
        assert block.fittable.tolist() == [False, False, True, True]
        for which in ("all", "hmasked"):
            found = block.fit(which, [labels])
            assert np.isnan(found.labels[:2]).all()
            assert np.isnan(found.covariance[:2]).all()
            assert np.isnan(found.chi2[:2]).all()
            assert not found.converged[:2].any()
            assert np.isfinite(found.labels[2:]).all()
            assert np.isfinite(found.chi2_red[2:]).all()

    def test_everything_masked(self, survey):
        labels, lsf, flux, ivar, _ = survey
        block = FITTER.load(np.full_like(flux, np.nan), np.zeros_like(ivar), lsf)
        assert not block.fittable.any()
        block.guess("all")
        assert np.isnan(block.fit("all", [labels]).labels).all()
        np.testing.assert_array_equal(block.chi2_at(labels), 0)

    def test_no_spectra(self):
        nothing = np.empty((0, N_REST), dtype=np.float32)
        block = FITTER.load(nothing, nothing)
        assert len(block) == 0
        assert block.fit("all", list(block.guess("all"))).labels.shape == (0, N_LABELS)

    def test_unknown_labels_have_no_chi2(self, survey):
        labels, lsf, flux, ivar, _ = survey
        asked = labels.copy()
        asked[3, 5] = np.nan
        found = FITTER.load(flux, ivar, lsf).chi2_at(asked)
        assert np.flatnonzero(np.isnan(found)).tolist() == [3]


class TestLimits:
    def test_a_star_beyond_the_limits_stops_there(self):
        # Data of a star that rotates faster than any fit may go: the label must stop at its limit and say so.
        rng = np.random.default_rng(0)
        i = INDEX["vsini"]
        labels = draw_labels(rng, 6, 10000, 14000)
        labels[:, i] = 700.0
        flux, ivar = observe(rng, labels, np.full(6, 300.0))
        start = labels.copy()
        start[:, i] = 200.0
        found = FITTER.load(flux, ivar).fit("all", [start])
        assert (found.labels <= [[lb.ceiling + 1e-9 * max(1, abs(lb.ceiling)) for lb in LABELS]]).all()
        assert found.at_bound.all()
        np.testing.assert_allclose(found.labels[:, i], LABELS[i].ceiling, rtol=1e-9)
        # The other labels take the least χ² there is with that one held: no gradient is left along them.
        free = [k for k in range(N_LABELS) if k != i]
        sigma = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))
        block = FITTER.load(flux, ivar)
        held = np.array(
            [
                ~np.isclose(found.labels[:, k], LABELS[k].floor) & ~np.isclose(found.labels[:, k], LABELS[k].ceiling)
                for k in free
            ]
        )
        for inner, k in zip(held, free, strict=True):
            for sign in (-1, 1):
                moved = found.labels.copy()
                moved[:, k] += sign * 0.05 * sigma[:, k]
                # Single precision: of thousands, a few thousandths are rounding.
                assert (block.chi2_at(moved) > found.chi2 * (1 - 1e-6))[inner].all()

    def test_ordinary_stars_are_not_at_a_limit(self, noise):
        # One of 700 has noise that asks for no nitrogen at all.
        assert noise[2]["all"].at_bound.sum() <= 1

    def test_temperature_may_leave_the_library_by_a_tenth(self):
        low, high = (EMULATOR.arrays[f"label_{end}"][0] for end in ("low", "high"))
        limits = [end[0] for end in FITTER.limits]
        np.testing.assert_allclose(limits, [low / 1.1, high * 1.1], rtol=1e-12)

    def test_iteration_limit_is_told(self, survey):
        _, lsf, flux, ivar, starts = survey
        short = Fitter(EMULATOR, max_iterations=1).load(flux, ivar, lsf).fit("all", [starts])
        assert not short.converged.all()
        assert np.isfinite(short.labels).all()
        assert short.iterations.max() == 2


def test_other_masks_and_limits():
    fitter = Fitter(EMULATOR, mask=[(0, 4000), (5000, 99999)], hydrogen=[(4300, 4400)], min_pixels=200)
    rng = np.random.default_rng(1)
    labels = draw_labels(rng, 3)
    flux, ivar = observe(rng, labels, np.full(3, 100.0))
    block = fitter.load(flux, ivar)
    used = ~inside(WAVELENGTH, [(0, 4000), (5000, 99999)])
    np.testing.assert_array_equal(block.n_pixel["all"], (used & (ivar > 0)).sum(axis=1))
    used &= ~inside(WAVELENGTH, [(4300, 4400)])
    np.testing.assert_array_equal(block.n_pixel["hmasked"], (used & (ivar > 0)).sum(axis=1))


def test_an_emulator_of_hot_stars_only_still_starts_on_both_sides():
    arrays = dict(EMULATOR.arrays)
    arrays["label_low"] = arrays["label_low"].copy()
    arrays["label_low"][0] = 12000
    fitter = Fitter(LowRankEmulator(arrays, EMULATOR.card))
    labels = draw_labels(np.random.default_rng(2), 2, 13000, 20000)
    flux, ivar = observe(np.random.default_rng(2), labels, np.full(2, 100.0))
    cool, hot = fitter.load(flux, ivar).guess("all")
    assert (cool[:, 0] < HYDROGEN_MAXIMUM).all()
    assert (hot[:, 0] > HYDROGEN_MAXIMUM).all()


def test_start_at_keeps_unknown_rows_unknown():
    template = np.arange(22.0).reshape(2, 11)
    out = start_at(np.array([9000.0, np.nan]), template)
    np.testing.assert_array_equal(out[0], [9000, *range(1, 11)])
    assert np.isnan(out[1, 0])
    assert template[0, 0] == 0
