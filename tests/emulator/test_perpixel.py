"""Per-pixel networks against a plain double-precision forward pass and finite differences."""

import numpy as np
import pytest

from hotdask.emulator import PerPixelEmulator, load_emulator, mean_lsf, save_emulator
from hotdask.emulator import perpixel as module
from hotdask.errors import EmulatorError
from hotdask.labels import INDEX, LABEL_NAMES, N_LABELS
from hotdask.windows import N_REST

HIDDEN = 5
SHIPPED = load_emulator()
STARS = np.array(
    [
        [9550, 3.95, 2, 22, 0.09, -0.2, -0.1, -0.1, -0.6, -0.1, -0.5],
        [18000, 4.0, 2, 100, 0.09, 0, 0, 0, 0, 0, 0],
        [31000, 3.8, 8, 250, 0.12, -0.3, 0.5, -0.1, 0.2, 0.0, -0.2],
    ]
)
LSF = np.stack([mean_lsf(), mean_lsf(1500, 2200), mean_lsf(2200, 1500)])
STEPS = dict(zip(LABEL_NAMES, (3.0, 2e-3, 5e-3, 0.1, 2e-4, *[2e-3] * 6), strict=True))


def make(hidden: int = HIDDEN) -> PerPixelEmulator:
    rng = np.random.default_rng(2)
    shapes = {
        "weight1": (N_REST, hidden, 17),
        "bias1": (N_REST, hidden),
        "weight2": (N_REST, hidden, hidden),
        "bias2": (N_REST, hidden),
        "weight3": (N_REST, hidden),
        "bias3": (N_REST,),
    }
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    shared = ("input_center", "input_scale", "hull", "label_low", "label_high")
    return PerPixelEmulator(arrays | {name: SHIPPED.arrays[name] for name in shared}, SHIPPED.card)


@pytest.fixture(scope="module")
def emulator():
    return make()


def forward(emulator: PerPixelEmulator, labels: np.ndarray, lsf: np.ndarray) -> np.ndarray:
    """Flux in float64 from the arrays of the file, written out pixel by pixel."""
    a = {name: value.astype(np.float64) for name, value in emulator.arrays.items()}
    inputs = np.hstack([np.log10(labels[:, :1]), labels[:, 1:], lsf])
    hidden = np.broadcast_to((inputs - a["input_center"]) / a["input_scale"], (N_REST, len(labels), 17))
    for layer in (1, 2):
        z = np.einsum("pni,phi->pnh", hidden, a[f"weight{layer}"]) + a[f"bias{layer}"][:, None]
        hidden = 1 / (1 + np.exp(-z))
    return np.einsum("pnh,ph->np", hidden, a["weight3"]) + a["bias3"]


def test_flux_is_each_pixel_s_own_network(emulator):
    flux = emulator.flux(STARS, LSF)
    assert (flux.shape, flux.dtype) == ((3, N_REST), np.float32)
    np.testing.assert_allclose(flux, forward(emulator, STARS, LSF), atol=1e-5)


@pytest.mark.parametrize("name", LABEL_NAMES)
def test_jacobian_is_the_finite_difference(emulator, name):
    flux, jacobian = emulator.flux_and_jacobian(STARS, LSF)
    np.testing.assert_array_equal(flux, emulator.flux(STARS, LSF))
    step = np.zeros(N_LABELS)
    step[INDEX[name]] = STEPS[name]
    # Fourth order, so that the step may be large against rounding.
    one = forward(emulator, STARS + step, LSF) - forward(emulator, STARS - step, LSF)
    two = forward(emulator, STARS + 2 * step, LSF) - forward(emulator, STARS - 2 * step, LSF)
    numeric = (8 * one - two) / (12 * STEPS[name])
    found = jacobian[:, INDEX[name]]
    assert np.abs(numeric).max() > 0
    assert (np.abs(found - numeric).max(axis=1) < 2e-5 * np.abs(numeric).max(axis=1)).all()


def test_chunks_do_not_show(emulator, monkeypatch):
    labels, lsf = np.tile(STARS, (500, 1)), np.tile(LSF, (500, 1))
    flux, jacobian = emulator.flux_and_jacobian(labels[:6], lsf[:6])
    monkeypatch.setattr(module, "_ACTIVATIONS", 6 * HIDDEN * 100)
    small, small_jacobian = emulator.flux_and_jacobian(labels[:6], lsf[:6])
    np.testing.assert_allclose(small, flux, atol=2e-6)
    np.testing.assert_allclose(small_jacobian, jacobian, atol=1e-5 * np.abs(jacobian).max())
    monkeypatch.undo()
    # More rows than one product takes.
    np.testing.assert_allclose(emulator.flux(labels, lsf)[-3:], flux[3:], atol=2e-6)


def test_line_spread_defaults_to_the_mean(emulator):
    np.testing.assert_array_equal(emulator.flux(STARS), emulator.flux(STARS, np.tile(mean_lsf(), (3, 1))))
    assert emulator.flux(STARS[0]).shape == (1, N_REST)


def test_round_trip(emulator, tmp_path):
    path = tmp_path / "pixels.safetensors"
    identity = save_emulator(emulator, path)
    again = load_emulator(path)
    assert isinstance(again, PerPixelEmulator)
    assert again.id == identity
    np.testing.assert_array_equal(again.flux(STARS, LSF), emulator.flux(STARS, LSF))


def test_an_emulator_of_fewer_pixels_is_refused(emulator, tmp_path):
    path = tmp_path / "pixels.safetensors"
    fewer = make()
    fewer.arrays["weight2"] = fewer.arrays["weight2"][:-1]
    save_emulator(fewer, path)
    with pytest.raises(EmulatorError, match=r"'weight2' has shape \(3800, 5, 5\), not \(3801, 5, 5\)"):
        load_emulator(path)
