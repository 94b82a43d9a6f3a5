"""The emulator against a plain double-precision forward pass and finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hotdask.emulator import load_emulator, mean_lsf
from hotdask.emulator.base import relative_to_iron
from hotdask.labels import INDEX, LABEL_NAMES, LABELS, N_LABELS
from hotdask.windows import N_REST

EMULATOR = load_emulator()
STARS = np.array(
    [
        [9550, 3.95, 2, 22, 0.09, -0.2, -0.1, -0.1, -0.6, -0.1, -0.5],
        [18000, 4.0, 2, 100, 0.09, 0, 0, 0, 0, 0, 0],
        [7600, 4.2, 3, 180, 0.08, 0.1, 0.2, 0.0, 0.1, 0.1, 0.2],
        [31000, 3.8, 8, 250, 0.12, -0.3, 0.5, -0.1, 0.2, 0.0, -0.2],
    ]
)
LSF = np.stack([mean_lsf(), mean_lsf(1500, 2200), mean_lsf(2200, 1500), mean_lsf(1800, 1900)])
STEPS = dict(zip(LABEL_NAMES, (3.0, 2e-3, 5e-3, 0.1, 2e-4, *[2e-3] * 6), strict=True))


def forward(labels: np.ndarray, lsf: np.ndarray) -> np.ndarray:
    """Flux in float64 from the arrays of the file, written out."""
    a = {name: value.astype(np.float64) for name, value in EMULATOR.arrays.items()}
    inputs = np.hstack([np.log10(labels[:, :1]), labels[:, 1:], lsf])
    hidden = (inputs - a["input_center"]) / a["input_scale"]
    for layer in (1, 2):
        z = hidden @ a[f"weight{layer}"].T + a[f"bias{layer}"]
        hidden = z / (1 + np.exp(-z))
    return a["mean"] + (hidden @ a["weight3"].T + a["bias3"]) @ a["basis"]


def test_flux_is_the_network_times_the_basis():
    flux = EMULATOR.flux(STARS, LSF)
    assert flux.shape == (4, N_REST)
    assert flux.dtype == np.float32
    np.testing.assert_allclose(flux, forward(STARS, LSF), atol=3e-6)


def test_line_spread_defaults_to_the_mean():
    np.testing.assert_array_equal(EMULATOR.flux(STARS), EMULATOR.flux(STARS, np.tile(mean_lsf(), (4, 1))))
    np.testing.assert_array_equal(EMULATOR.flux(STARS[0])[0], EMULATOR.flux(STARS[:1], mean_lsf())[0])
    assert np.abs(EMULATOR.flux(STARS, mean_lsf(1500, 1500)) - EMULATOR.flux(STARS)).max() > 1e-3


@pytest.mark.parametrize("name", LABEL_NAMES)
def test_jacobian_is_the_finite_difference(name):
    flux, jacobian = EMULATOR.flux_and_jacobian(STARS, LSF)
    np.testing.assert_allclose(flux, forward(STARS, LSF), atol=3e-6)
    step = np.zeros(N_LABELS)
    step[INDEX[name]] = STEPS[name]
    # Fourth order, so that the step may be large against rounding.
    one = forward(STARS + step, LSF) - forward(STARS - step, LSF)
    two = forward(STARS + 2 * step, LSF) - forward(STARS - 2 * step, LSF)
    numeric = (8 * one - two) / (12 * STEPS[name])
    found = jacobian[:, INDEX[name]]
    assert np.abs(numeric).max() > 0
    assert (np.abs(found - numeric).max(axis=1) < 2e-5 * np.abs(numeric).max(axis=1)).all()


def test_tangents_in_double_precision_agree_to_rounding():
    inputs = torch.cat([EMULATOR.scale_labels(STARS), EMULATOR.scale_lsf(LSF)], dim=1)
    stack = EMULATOR.coefficients_and_tangents(inputs)
    # Spectra do not mix, so the Jacobian of the sum over spectra holds each one's own (reverse mode, K x n x 17).
    exact = torch.autograd.functional.jacobian(lambda x: EMULATOR.coefficients(x).sum(dim=0), inputs)
    np.testing.assert_allclose(stack[:, 0], EMULATOR.coefficients(inputs), atol=1e-12)
    np.testing.assert_allclose(stack[:, 1:], exact.permute(1, 2, 0)[:, :N_LABELS], atol=1e-11)


def test_label_slope_is_the_derivative_of_the_inputs():
    step = np.array([STEPS[name] for name in LABEL_NAMES]) / 10
    numeric = np.stack(
        [
            (EMULATOR.scale_labels(STARS + d) - EMULATOR.scale_labels(STARS - d)).numpy()[:, i] / (2 * step[i])
            for i, d in enumerate(np.diag(step))
        ],
        axis=1,
    )
    np.testing.assert_allclose(EMULATOR.label_slope(STARS), numeric, rtol=1e-7)


@given(share=st.lists(st.floats(0, 1), min_size=N_LABELS, max_size=N_LABELS))
@settings(max_examples=50, deadline=None)
def test_scaling_round_trip(share):
    labels = np.array([[lb.floor + s * (lb.ceiling - lb.floor) for lb, s in zip(LABELS, share, strict=True)]])
    given_labels = labels.copy()
    scaled = EMULATOR.scale_labels(labels)
    assert scaled.dtype == torch.float64
    np.testing.assert_allclose(EMULATOR.unscale_labels(scaled), labels, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(labels, given_labels)


@given(order=st.permutations(range(40)), size=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_a_spectrum_does_not_feel_its_company(order, size):
    rng = np.random.default_rng(3)
    labels = np.repeat(STARS, 10, axis=0) * rng.uniform(0.95, 1.05, (40, N_LABELS))
    lsf = np.repeat(LSF, 10, axis=0)
    flux, jacobian = EMULATOR.flux_and_jacobian(labels, lsf)
    scale = np.abs(jacobian).max(axis=(0, 2))
    rows = np.array(order[:size])
    some, some_jacobian = EMULATOR.flux_and_jacobian(labels[rows], lsf[rows])
    np.testing.assert_allclose(some, flux[rows], atol=2e-6)
    assert (np.abs(some_jacobian - jacobian[rows]).max(axis=(0, 2)) < 1e-5 * scale).all()


class TestOutside:
    def test_ordinary_stars_are_inside(self):
        assert EMULATOR.outside(STARS).tolist() == [False] * 4
        assert EMULATOR.outside(STARS[0]).tolist() == [False]

    @pytest.mark.parametrize("name", [n for n in LABEL_NAMES if n not in ("teff", "logg", "vsini", "fe_h")])
    def test_ranges(self, name):
        i = INDEX[name]
        low, high = EMULATOR.arrays["label_low"][i], EMULATOR.arrays["label_high"][i]
        assert np.isfinite([low, high]).all()
        span = 1e-3 * (high - low)
        labels = np.tile(STARS[1], (4, 1))
        labels[:, i] = [low - span, low + span, high - span, high + span]
        assert EMULATOR.outside(labels).tolist() == [True, False, False, True]

    def test_abundances_are_judged_relative_to_iron(self):
        labels = np.tile(STARS[1], (2, 1))
        labels[0, INDEX["fe_h"]] = -2.5
        labels[1, INDEX["c_h"] :] = -2.5
        # [C/H] = 0 is far from anything made at [Fe/H] = -2.5; everything at -2.5 is not.
        assert EMULATOR.outside(labels).tolist() == [True, False]

    def test_fast_rotation_is_outside_and_a_negative_one_has_its_own_flag(self):
        labels = np.tile(STARS[1], (3, 1))
        labels[:, INDEX["vsini"]] = 501, 499, -20
        assert EMULATOR.outside(labels).tolist() == [True, False, False]

    def test_far_away_and_unknown(self):
        labels = np.tile(STARS[1], (4, 1))
        labels[0, 0], labels[1, 0] = 5000, 60000
        labels[2, 1] = 6.0
        labels[3] = np.nan
        assert EMULATOR.outside(labels).tolist() == [True, True, True, False]


def test_relative_to_iron():
    out = relative_to_iron(STARS)
    for name in ("c_h", "n_h", "o_h", "si_h", "s_h"):
        np.testing.assert_allclose(out[:, INDEX[name]], STARS[:, INDEX[name]] - STARS[:, INDEX["fe_h"]])
    kept = [INDEX[n] for n in ("teff", "logg", "vmic", "vsini", "n_he", "fe_h")]
    np.testing.assert_array_equal(out[:, kept], STARS[:, kept])
