"""The Cramér-Rao bound against a Fisher matrix by finite differences, and the paper's anchors."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from hotdask.cli import main
from hotdask.emulator import load_emulator, mean_lsf
from hotdask.errors import InputError
from hotdask.labels import INDEX, LABEL_NAMES, N_LABELS
from hotdask.library.spectra import Synthesis, fine_wavelength
from hotdask.readers.lamost import read_spectrum
from hotdask.steps.information import (
    A_STAR,
    B_STAR,
    REGIONS,
    anchor_table,
    bound_from_gradients,
    compare_gradients,
    correlations,
    cramer_rao_bound,
    engine_spectrum,
    gradients,
    information_by_region,
    noise,
    signal_to_noise_curve,
    star_information,
)
from hotdask.windows import FIT_MASK, HYDROGEN, N_REST, inside, observed_wavelength, rest_wavelength

EMULATOR = load_emulator()
WAVELENGTH = rest_wavelength()
FIDUCIAL = np.array([[18000, 4.0, 2, 100, 0.09, 0, 0, 0, 0, 0, 0]])
VEGA_LIKE = np.array([[9500, 4.0, 2, 100, 0.09, 0, 0, 0, 0, 0, 0]])
STARS = np.vstack([FIDUCIAL, VEGA_LIKE, [[12500, 3.8, 3, 40, 0.1, 0.1, 0.2, 0, -0.2, 0.1, -0.3]]])
STEPS = np.array([20.0, 5e-3, 2e-2, 0.5, 1e-3, *[1e-2] * 6])


def flux(labels: np.ndarray, lsf: np.ndarray) -> np.ndarray:
    """The emulator in float64, from its arrays."""
    a = {name: value.astype(np.float64) for name, value in EMULATOR.arrays.items()}
    hidden = (np.hstack([np.log10(labels[:, :1]), labels[:, 1:], lsf]) - a["input_center"]) / a["input_scale"]
    for layer in (1, 2):
        z = hidden @ a[f"weight{layer}"].T + a[f"bias{layer}"]
        hidden = z / (1 + np.exp(-z))
    return a["mean"] + (hidden @ a["weight3"].T + a["bias3"]) @ a["basis"]


def sigma(labels, snr=100.0, **options) -> np.ndarray:
    """Formal errors at an S/N that is the same at every pixel."""
    ivar = np.full((len(labels), N_REST), snr**2, dtype=np.float32)
    return np.sqrt(np.diagonal(cramer_rao_bound(EMULATOR, labels, ivar, **options), axis1=1, axis2=2))


@pytest.mark.parametrize("mask", [FIT_MASK, (*FIT_MASK, *HYDROGEN)], ids=["all", "hmasked"])
def test_against_finite_differences(mask):
    rng = np.random.default_rng(0)
    lsf = np.stack([mean_lsf(1700, 1900), mean_lsf(1800, 1800), mean_lsf(2000, 1500)])
    ivar = (rng.uniform(50, 200, (3, N_REST)) ** 2 * (rng.random((3, N_REST)) > 0.05)).astype(np.float32)
    gradient = np.stack(
        [(flux(STARS + step, lsf) - flux(STARS - step, lsf)) / (2 * np.abs(step).max()) for step in np.diag(STEPS)],
        axis=1,
    )[:, :, ~inside(WAVELENGTH, mask)]
    weight = ivar[:, None, ~inside(WAVELENGTH, mask)].astype(np.float64)
    expected = np.linalg.inv((gradient * weight) @ gradient.transpose(0, 2, 1))
    found = cramer_rao_bound(EMULATOR, STARS, ivar, lsf=lsf, mask=mask)
    scale = np.sqrt(np.diagonal(expected, axis1=1, axis2=2))
    np.testing.assert_allclose(np.sqrt(np.diagonal(found, axis1=1, axis2=2)), scale, rtol=5e-3)
    np.testing.assert_allclose(
        found / scale[:, :, None] / scale[:, None, :], expected / scale[:, :, None] / scale[:, None, :], atol=1e-2
    )


@given(factor=st.floats(0.2, 10))
@settings(max_examples=20, deadline=None)
def test_variance_goes_with_the_noise(factor):
    # The ridge of 1e-8 caps an error at 1e4 times the library's spread; it must not be felt here.
    np.testing.assert_allclose(sigma(STARS, 100 * factor) * factor, sigma(STARS, 100), rtol=1e-3)


def test_covariance_is_symmetric_and_positive():
    found = cramer_rao_bound(EMULATOR, STARS, np.full((3, N_REST), 1e4, dtype=np.float32))
    assert found.shape == (3, N_LABELS, N_LABELS)
    scale = np.sqrt(np.diagonal(found, axis1=1, axis2=2))
    correlation = found / scale[:, :, None] / scale[:, None, :]
    np.testing.assert_allclose(correlation, correlation.transpose(0, 2, 1), atol=1e-9)
    assert (np.linalg.eigvalsh(correlation) > 0).all()


def test_fewer_pixels_never_tell_more():
    everything, masked = sigma(STARS), sigma(STARS, mask=(*FIT_MASK, *HYDROGEN))
    assert (masked >= everything).all()
    # Hydrogen is where gravity shows.
    assert (masked[:, INDEX["logg"]] > 1.3 * everything[:, INDEX["logg"]]).all()
    ivar = np.full((3, N_REST), 1e4, dtype=np.float32)
    ivar[:, ::3] = 0
    thinned = np.sqrt(np.diagonal(cramer_rao_bound(EMULATOR, STARS, ivar), axis1=1, axis2=2))
    assert (thinned >= everything).all()


def test_bad_pixels_only_leave_what_the_ridge_grants():
    found = cramer_rao_bound(EMULATOR, FIDUCIAL, np.zeros((1, N_REST), dtype=np.float32))
    spread = 1e4 / EMULATOR.label_slope(FIDUCIAL)
    np.testing.assert_allclose(np.sqrt(np.diagonal(found[0])), spread[0], rtol=1e-9)


def test_many_stars_are_the_same_as_one():
    rng = np.random.default_rng(2)
    labels = np.repeat(STARS, 60, axis=0)
    labels[:, 0] *= rng.uniform(0.97, 1.03, len(labels))
    ivar = rng.uniform(1e3, 1e4, (len(labels), N_REST)).astype(np.float32)
    together = cramer_rao_bound(EMULATOR, labels, ivar)
    for i in (0, 127, 128, 179):
        alone = cramer_rao_bound(EMULATOR, labels[i], ivar[i : i + 1])[0]
        scale = np.sqrt(np.outer(np.diag(alone), np.diag(alone)))
        np.testing.assert_allclose(together[i] / scale, alone / scale, atol=2e-3)


# Xiang et al. 2022, §3, at S/N = 100 (at 4650 Å): "about" and "within". Another library and another noise curve make
# a factor of 3 upward; a bound may lie a little further below, since the paper rounds and its figure is logarithmic.
B_STAR_SIGMA = {"teff": 300, "logg": 0.03, "n_he": 0.01, "vmic": 1.0, "vsini": 8.0}
A_STAR_SIGMA = {"teff": 100, "logg": 0.1, "vmic": 0.3, "vsini": 15.0}


def observed_sigma(labels, **options) -> np.ndarray:
    """Formal errors where photons are few in the blue: a black body through an efficiency that falls to either end."""
    light = (5000 / WAVELENGTH) ** 3 / np.expm1(1.4388e8 / WAVELENGTH / labels[0, 0])
    light *= np.exp(-(((WAVELENGTH - 6500) / 2800) ** 2))
    ivar = 1e4 * light / light[np.argmin(np.abs(WAVELENGTH - 4650))]
    bound = cramer_rao_bound(EMULATOR, labels, ivar[None].astype(np.float32), **options)
    return np.sqrt(np.diag(bound[0]))


@pytest.mark.parametrize("name", B_STAR_SIGMA)
def test_anchor_of_a_b_star(name):
    assert B_STAR_SIGMA[name] / 4 < observed_sigma(FIDUCIAL)[INDEX[name]] < 3 * B_STAR_SIGMA[name]


@pytest.mark.parametrize(("name", "limit"), [("c_h", 0.1), ("o_h", 0.1), ("si_h", 0.1), ("fe_h", 0.1), ("n_h", 0.2)])
def test_abundances_of_a_b_star(name, limit):
    assert limit / 10 < observed_sigma(FIDUCIAL)[INDEX[name]] < 2 * limit


@pytest.mark.parametrize("name", A_STAR_SIGMA)
def test_anchor_of_an_a_star_without_hydrogen(name):
    found = observed_sigma(VEGA_LIKE, mask=(*FIT_MASK, *HYDROGEN))[INDEX[name]]
    assert A_STAR_SIGMA[name] / 4 < found < 3 * A_STAR_SIGMA[name]


@pytest.mark.parametrize("name", ["c_h", "o_h", "fe_h"])
def test_abundances_of_an_a_star_without_hydrogen(name):
    assert 0.01 < observed_sigma(VEGA_LIKE, mask=(*FIT_MASK, *HYDROGEN))[INDEX[name]] < 0.2


def test_labels_are_in_order():
    assert LABEL_NAMES[0] == "teff"
    assert sigma(FIDUCIAL).argmax() == 0


# Gradients by finite differences


def test_gradients_of_a_function_with_known_derivatives():
    x = np.linspace(0, 1, 50)
    star = np.array([20000, 4, 3, 100, 0.1, 0.2, 0, -0.3, 0, 0.1, 0.0])
    weights = np.arange(1.0, N_LABELS + 1)[:, None] * np.cos(np.arange(1.0, N_LABELS + 1)[:, None] * x)
    unit = np.array([1e4, 1, 2, 100, 0.1, *[1.0] * 6])

    def line(labels):
        return np.exp(-((labels / unit) ** 2)[:, :, None] * weights**2 / 100).sum(axis=1)

    expected = (
        -2 * (star / unit**2)[:, None] * weights**2 / 100 * np.exp(-((star / unit) ** 2)[:, None] * weights**2 / 100)
    )
    found = gradients(line, star)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, atol=0.02 * np.abs(e).max() + 1e-12)
    # Second order: half the steps leave a quarter of the error.
    steps = np.array([400.0, 0.2, 0.5, 20, 0.02, *[0.1] * 6])
    coarse, fine = (np.abs(gradients(line, star, s) - expected).max(axis=1) for s in (steps, steps / 2))
    np.testing.assert_allclose(coarse[:5] / fine[:5], 4, rtol=0.1)


def test_gradients_never_ask_for_less_than_nothing():
    asked = []
    star = np.array([20000, 4, 0.1, 0, 0.005, *[0.0] * 6])

    def parabola(labels):
        asked.append(labels)
        return (labels - 1) ** 2

    found = gradients(parabola, star)
    assert (np.vstack(asked)[:, 2:5] >= 0).all()
    # Both stencils are exact for a parabola.
    np.testing.assert_allclose(found, np.diag(2 * (star - 1)), atol=1e-6)


@pytest.mark.parametrize("star", [B_STAR, A_STAR], ids=["B", "A"])
def test_emulator_agrees_with_differences_of_its_own(star):
    # In double precision and with short steps differences are exact to a percent, whatever the network has learned.
    found = EMULATOR.flux_and_jacobian(np.array([star]))[1][0]
    expected = gradients(lambda labels: flux(labels, np.tile(mean_lsf(), (len(labels), 1))), np.array(star), STEPS)
    table = compare_gradients(found, expected)
    assert list(table.index) == list(LABEL_NAMES)
    assert (table["difference"] < 0.01).all()


@pytest.fixture(scope="module")
def lte(synthesis):
    """Spectra of the LTE engine as the fit sees them."""
    from hotdask.library.synthesis import HotdaskEngine

    return engine_spectrum(HotdaskEngine(synthesis / "atlas9_hot.npz", synthesis / "lines_hot.npz"))


@pytest.mark.parametrize("star", [B_STAR, A_STAR], ids=["B", "A"])
def test_emulator_has_the_gradients_of_an_engine(lte, star):
    names = ["teff", "logg", "n_he", "fe_h"]
    found = EMULATOR.flux_and_jacobian(np.array([star]))[1][0, [INDEX[n] for n in names]]
    table = compare_gradients(found, gradients(lte, np.array(star), names=names), names=names)
    # A bound goes with the amplitude, and pixels that do not follow carry 1 − correlation² of the information: a fifth
    # of either. Helium tells an A star next to nothing.
    told = ["teff", "logg", "fe_h"] if star[0] < 12000 else names
    np.testing.assert_allclose(table.loc[told, "amplitude"], 1, atol=0.2)
    assert (table.loc[told, "correlation"] > 0.9).all()


def test_comparison_of_gradients_sees_what_differs():
    rng = np.random.default_rng(4)
    expected = rng.normal(size=(N_LABELS, N_REST))
    other = rng.normal(size=(N_LABELS, N_REST))
    table = compare_gradients(1.5 * expected + 0.3 * other, expected)
    np.testing.assert_allclose(table["amplitude"], 1.5, atol=0.05)
    np.testing.assert_allclose(table["difference"], np.hypot(0.5, 0.3), atol=0.05)
    np.testing.assert_allclose(table["correlation"], 1.5 / np.hypot(1.5, 0.3), atol=0.01)
    masked = np.where(inside(WAVELENGTH, FIT_MASK), 1e6, expected)
    assert (compare_gradients(masked, expected)["difference"] == 0).all()


class Lines:
    """An engine whose lines are as deep as its labels say; counts its syntheses."""

    name = "lines"
    made = 0

    def provenance(self) -> dict:
        return {}

    def covers(self, labels):
        return np.ones(len(np.atleast_2d(labels)), dtype=bool)

    def __call__(self, labels):
        self.made += 1
        wavelength = fine_wavelength()
        depth = 0.5 * 10 ** (0.5 * labels[INDEX["c_h"]]) * np.exp(-(((wavelength - 4862) / 1.0) ** 2))
        return Synthesis(wavelength, 3e7 * (1 - depth))


def test_spectrum_of_an_engine():
    engine = Lines()
    spectrum = engine_spectrum(engine)
    found = gradients(spectrum, FIDUCIAL[0])
    # vsini is made of the same synthesis, and so is nothing else: both ends of ten labels, the star for vsini.
    assert engine.made == 21
    lsf = mean_lsf()
    # The derivative by [C/H] is the line times ln(10)/2: its equivalent width in closed form, broadened or not. The
    # line is where no continuum is taken.
    step = np.gradient(WAVELENGTH)
    near = np.abs(WAVELENGTH - 4862) < 30
    expected = -0.5 * np.log(10) / 2 * np.sqrt(np.pi) * 1.0
    assert (found[INDEX["c_h"]] * step)[near].sum() == pytest.approx(expected, rel=0.02)
    assert np.abs(found[INDEX["teff"]]).max() < 1e-15
    # Rotation fills the core and deepens the wings.
    core, wing = np.argmin(np.abs(WAVELENGTH - 4862)), np.argmin(np.abs(WAVELENGTH - 4859))
    assert found[INDEX["vsini"], core] > 0 > found[INDEX["vsini"], wing]
    np.testing.assert_allclose(spectrum(FIDUCIAL), engine_spectrum(engine, lsf=lsf)(FIDUCIAL))


# The bound from gradients


def test_bound_from_gradients_is_the_bound():
    _, jacobian = EMULATOR.flux_and_jacobian(STARS)
    ivar = np.full((3, N_REST), 1e4, dtype=np.float32)
    found = np.stack([bound_from_gradients(j, v) for j, v in zip(jacobian, ivar, strict=True)])
    expected = cramer_rao_bound(EMULATOR, STARS, ivar)
    scale = np.sqrt(np.diagonal(expected, axis1=1, axis2=2))
    np.testing.assert_allclose(np.sqrt(np.diagonal(found, axis1=1, axis2=2)), scale, rtol=2e-3)
    np.testing.assert_allclose(correlations(found), correlations(expected), atol=5e-3)


def test_labels_known_only_together():
    # Two gradients alike, and a third: the paper's Eq 3 has no inverse, and neither of the two a finite error.
    gradient = np.zeros((3, N_REST))
    gradient[0, 1000], gradient[1, 1000], gradient[2, 1100] = 0.1, 0.2, 0.1
    found = bound_from_gradients(gradient, np.full(N_REST, 1e4))
    assert np.isinf(np.diag(found)[:2]).all()
    assert np.isnan(found[0, 1:]).all()
    assert found[2, 2] == pytest.approx(0.01)
    alone = bound_from_gradients(gradient[[0, 2]], np.full(N_REST, 1e4))
    np.testing.assert_allclose(alone, np.diag([0.01, 0.01]), atol=1e-15)


def test_fewer_pixels_than_labels():
    rng = np.random.default_rng(8)
    ivar = np.zeros(N_REST)
    ivar[[1000, 1100]] = 1e4
    gradient = rng.normal(size=(3, N_REST))
    assert np.isinf(np.diag(bound_from_gradients(gradient, ivar))).all()
    found = bound_from_gradients(gradient[:2], ivar)
    np.testing.assert_allclose(found, np.linalg.inv(1e4 * (g := gradient[:2, [1000, 1100]]) @ g.T), rtol=1e-6)


def test_gradients_nearly_alike_keep_their_bound():
    # In closed form: 1/σ² = ivar·|g|²·(1 − c²), c the cosine between the two gradients.
    gradient = np.zeros((2, N_REST))
    gradient[:, 1000], gradient[1, 1001] = 0.1, 1e-6
    found = bound_from_gradients(gradient, np.full(N_REST, 1e4))
    assert np.sqrt(found[0, 0]) == pytest.approx(np.hypot(0.1, 1e-6) / 0.1 / 1e-6 / 100, rel=1e-6)


def test_a_label_the_spectrum_does_not_answer_to():
    _, jacobian = EMULATOR.flux_and_jacobian(FIDUCIAL)
    silent = jacobian[0].copy()
    silent[INDEX["n_h"]] = 0
    kept = [i for i in range(N_LABELS) if i != INDEX["n_h"]]
    ivar = np.full(N_REST, 1e4)
    found = bound_from_gradients(silent, ivar)
    assert np.isinf(found[INDEX["n_h"], INDEX["n_h"]])
    np.testing.assert_allclose(found[np.ix_(kept, kept)], bound_from_gradients(silent[kept], ivar))


def test_regions_hold_what_they_mask():
    _, jacobian = EMULATOR.flux_and_jacobian(FIDUCIAL)
    ivar = np.full(N_REST, 1e4)
    share = information_by_region(jacobian[0], ivar)
    assert share.shape == (N_LABELS, len(REGIONS))
    assert (share > -1e-9).all()
    # Every fitted pixel is in one region.
    regions = np.sum([inside(WAVELENGTH, [r]) for r in REGIONS], axis=0)
    fitted = ~inside(WAVELENGTH, FIT_MASK)
    assert (regions[fitted] == 1).all()
    # A line that only one region holds is lost with it, and nothing else is; a label without lines is nowhere.
    lines = np.zeros((3, N_REST))
    lines[0, np.argmin(np.abs(WAVELENGTH - 4862))] = lines[1, np.argmin(np.abs(WAVELENGTH - 6565))] = 1
    share = information_by_region(lines, ivar)
    names = [r.name for r in REGIONS]
    np.testing.assert_array_equal(share[0], [np.inf if name == "Hβ" else 0 for name in names])
    np.testing.assert_array_equal(share[1], [np.inf if name == "Hα" else 0 for name in names])
    assert np.isnan(share[2]).all()


# Noise


def test_curves_are_relative_to_4650():
    for source in ("flat", "photons", "lamost"):
        curve = signal_to_noise_curve(source, 12000)
        assert np.interp(4650, WAVELENGTH, curve) == pytest.approx(1)
        assert (curve > 0).all()
    # Photons of black bodies, by astropy: λ·B_λ an Å, and pixels as wide as λ.
    from astropy import units as u
    from astropy.modeling.models import BlackBody

    hot, cool = (signal_to_noise_curve("photons", t) for t in (20000, 9000))
    planck = [
        BlackBody(t * u.K, scale=1 * u.erg / (u.cm**2 * u.AA * u.s * u.sr))(WAVELENGTH * u.AA).value
        for t in (20000, 9000)
    ]
    for found, light in ((hot, planck[0]), (cool, planck[1])):
        expected = np.sqrt(WAVELENGTH**2 * light)
        np.testing.assert_allclose(found, expected / np.interp(4650, WAVELENGTH, expected), rtol=1e-4)
    ratio = np.sqrt(planck[0] / planck[1])
    # The measured curve of an A star goes to another Teff with its photons.
    hot, cool = (signal_to_noise_curve("lamost", t) for t in (20000, 9000))
    np.testing.assert_allclose(hot / cool, ratio / np.interp(4650, WAVELENGTH, ratio), rtol=1e-4)


def test_the_measured_curve_is_that_of_real_spectra(lamost_files):
    # Continuum S/N of the A stars at hand: 70th percentile over 40 pixels, away from hydrogen.
    inventory = pd.read_csv(lamost_files / "inventory.csv")
    chosen = inventory[inventory["subclass"].astype(str).str.match("A[12]") & (inventory["snr_g"] > 30)]
    observed = observed_wavelength()
    at = np.array([4200, 4550, 5200, 5550, 6400, 6700, 7000, 7900])
    rows = []
    for file in chosen["file"]:
        spectrum = read_spectrum(lamost_files / file)
        ratio = np.asarray(spectrum.flux, dtype=float) * np.sqrt(np.asarray(spectrum.ivar, dtype=float))
        rows.append([np.percentile(ratio[np.abs(observed - w) < 20], 70) for w in (*at, 4650)])
    measured = np.median(np.array(rows)[:, :-1] / np.array(rows)[:, -1:], axis=0)
    np.testing.assert_allclose(np.interp(at, WAVELENGTH, signal_to_noise_curve("lamost", 9300)), measured, rtol=0.1)


def test_a_curve_of_the_user(tmp_path):
    path = tmp_path / "curve.txt"
    path.write_text("# wavelength S/N\n8000 30\n4000 10\n")
    curve = signal_to_noise_curve(path, 12000)
    np.testing.assert_allclose(
        np.interp([3800, 6000, 8500], WAVELENGTH, curve), np.array([10, 20, 30]) / 13.25, rtol=1e-6
    )


@pytest.mark.parametrize(
    "text", ["", "4000 10\n", "4000 10 3\n5000 10 3\n", "4000 ten\n", "4000 -1\n5000 1\n", "4000 0\n5000 0\n"]
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_no_curve(tmp_path, text):
    path = tmp_path / "curve.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=r"curve\.txt.*S/N"):
        signal_to_noise_curve(path, 12000)
    with pytest.raises(InputError, match="cannot read"):
        signal_to_noise_curve(tmp_path / "absent.txt", 12000)


# Beside the paper


def test_anchors_in_a_table():
    def look(star, name):
        labels = np.array(star)
        flux, jacobian = EMULATOR.flux_and_jacobian(labels[None])
        return star_information(
            flux[0], jacobian[0], labels, snr=100, curve="lamost", name=name, mask=FIT_MASK, hydrogen=HYDROGEN
        )

    table = anchor_table(look(B_STAR, "B star"), look(A_STAR, "A star")).set_index(["star", "label"])
    assert table.loc[("B star", "teff"), "paper"] == 300
    assert table.loc[("A star", "vsini"), "paper"] == 15
    # The paper rounds its bounds and draws them on a logarithmic axis: within a factor of 2, but for the two that the
    # page explains, and for what it calls "within 0.1 dex", which may be less.
    explained = [("B star", "teff"), ("B star", "n_he")]
    within = [i for i in table.index if i[1] in ("c_h", "n_h", "o_h", "si_h", "fe_h")]
    assert table["ratio"].max() < 2
    assert (table["ratio"].drop([*explained, *within]) > 1 / 2).all()
    assert (table["ratio"] > 1 / 4).all()


# The verb


def test_verb(tmp_path):
    out, told = tmp_path / "page.html", tmp_path / "star.json"
    star = "teff=9500,vsini=50"
    result = CliRunner().invoke(
        main, ["information", "--star", star, "--mask-hydrogen", "--snr", "50", "--out", str(out), "--json", str(told)]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(told.read_text())
    assert found["star"]["teff"] == 9500
    assert found["star"]["n_he"] == B_STAR[INDEX["n_he"]]
    labels = np.array([[9500, 4, 2, 50, 0.09, *[0.0] * 6]])
    ivar = noise(50, signal_to_noise_curve("lamost", 9500), EMULATOR.flux(labels)[0])[None].astype(np.float32)
    expected = np.sqrt(np.diag(cramer_rao_bound(EMULATOR, labels, ivar, mask=(*FIT_MASK, *HYDROGEN))[0]))
    np.testing.assert_allclose(list(found["sigma"].values()), expected, rtol=5e-3)
    assert f"{found['sigma']['teff']:.3g}" in result.output
    assert out.read_text().startswith("<!DOCTYPE html>")


def test_verb_with_an_engine(tmp_path, monkeypatch):
    (tmp_path / "two_lines.py").write_text(
        "import numpy as np\n"
        "from hotdask.library.spectra import Synthesis, fine_wavelength\n"
        "def star(labels):\n"
        "    w = fine_wavelength()\n"
        "    c, t = 0.3 * 10 ** labels[5], labels[0] / 18000\n"
        "    return Synthesis(w, 1 - c * np.exp(-((w - 4700) ** 2)) - 0.2 * t * np.exp(-((w - 5200) ** 2)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = tmp_path / "library.toml"
    settings.write_text('out = "x.zarr"\n[engine]\nkind = "function"\nfunction = "two_lines:star"\n')
    told, out = tmp_path / "star.json", tmp_path / "page.html"
    # The page must do without the labels that this engine is silent about.
    result = CliRunner().invoke(
        main, ["information", "--engine", str(settings), "--json", str(told), "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "Dots: the engine" in out.read_text()
    told = json.loads(told.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    sigma = told["sigma"]
    assert told["anchors"][1] | {"bound": None, "ratio": None} == told["anchors"][1]
    assert sigma["logg"] is None
    assert sigma["c_h"] > 0
    assert sigma["teff"] > 0


def test_verb_takes_windows_and_line_spread(tmp_path):
    told, settings = tmp_path / "star.json", tmp_path / "settings.toml"
    settings.write_text("[fit]\nresolving_power_blue = 1500\nresolving_power_red = 2000\nmask = [[6000, 9000]]\n")
    given = ["--settings", str(settings), "--mask", "4000-4500", "--mask", "5000-5100.5", "--snr-curve", "flat"]
    result = CliRunner().invoke(main, ["information", *given, "--json", str(told)])
    assert result.exit_code == 0, result.output
    mask = ((6000, 9000), (4000, 4500), (5000, 5100.5))
    lsf = mean_lsf(1500, 2000)
    ivar = noise(100, np.ones(N_REST), EMULATOR.flux(FIDUCIAL, lsf)[0])[None].astype(np.float32)
    expected = np.sqrt(np.diag(cramer_rao_bound(EMULATOR, FIDUCIAL, ivar, lsf=lsf, mask=mask)[0]))
    np.testing.assert_allclose(list(json.loads(told.read_text())["sigma"].values()), expected, rtol=5e-3)


def test_verb_says_that_it_extrapolates(tmp_path):
    told = tmp_path / "star.json"
    for star, outside in (("teff=40000,logg=1", True), ("teff=18000", False)):
        result = CliRunner().invoke(main, ["information", "--star", star, "--json", str(told)])
        assert result.exit_code == 0, result.output
        found = json.loads(told.read_text())
        assert found["outside"] is outside
        assert (found["distance"] > 0) is outside
        assert (f"by {found['distance']:.2g} spreads" in result.output) is outside


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--star", "teff"], "teff=9500"),
        (["--star", "tef=9500"], "no label is called tef"),
        (["--star", "teff=90000"], "not between"),
        (["--snr", "0"], "positive"),
        (["--snr-curve", "nowhere.txt"], "cannot read"),
        (["--emulator", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--mask", "4000"], "4000-4050"),
        (["--mask", "5000-4000"], "lower wavelength first"),
        (["--out", "no/folder/page.html"], "there is no folder no/folder"),
        (["--json", "no/folder/star.json"], "there is no folder no/folder"),
    ],
)
def test_verb_refuses(options, said):
    result = CliRunner().invoke(main, ["information", *options])
    assert result.exit_code != 0
    assert said in result.output
    assert "Traceback" not in result.output
