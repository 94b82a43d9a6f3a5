"""Training on a small made-up library, and what the shipped emulator's card claims, measured on the real one."""

import dataclasses
import json
import math
import re
from datetime import date

import numpy as np
import pytest
from scipy.sparse.linalg import eigsh

from hotdask import config
from hotdask.emulator import LowRankEmulator, load_emulator, lsf_sigma
from hotdask.emulator.training import SpectrumSource, Training, draw_lsf, draw_vsini, held_out_residuals, train
from hotdask.emulator.weights import default_emulator
from hotdask.errors import InputError
from hotdask.labels import INDEX, LABEL_NAMES, N_LABELS
from hotdask.library.spectra import LOG_START, LOG_STEP, Library
from hotdask.library.synthe import read_npz
from hotdask.windows import FIT_MASK, inside, rest_wavelength

N_FINE = 19216
FITTED = ~inside(rest_wavelength(), FIT_MASK)
TINY = Training(n_basis=12, hidden=32, passes=60, batch=16, basis_passes=2, test_passes=3, seed=4)


def made_up_library(n: int = 60) -> Library:
    """Gaussian lines whose strength answers to one label each, on a black-body-like slope."""
    rng = np.random.default_rng(0)
    labels = np.zeros((n, N_LABELS))
    labels[:, INDEX["teff"]] = np.exp(rng.uniform(np.log(8000), np.log(20000), n))
    labels[:, INDEX["logg"]] = rng.uniform(3, 5, n)
    labels[:, INDEX["vmic"]] = rng.uniform(0, 10, n)
    labels[:, INDEX["n_he"]] = rng.uniform(0.05, 0.2, n)
    labels[:, INDEX["c_h"] :] = rng.uniform(-1, 0.5, (n, 6))
    log_wavelength = LOG_START + LOG_STEP * np.arange(N_FINE)
    flux = (10**log_wavelength / 5000) ** -3.0 * np.ones((n, 1))
    unit = (labels - labels.mean(axis=0)) / np.maximum(labels.std(axis=0), 1e-9)
    for center, which in zip(rng.uniform(3.585, 3.945, 40), rng.choice([0, 1, 2, 4, 10], 40), strict=True):
        depth = 0.3 / (1 + np.exp(-unit[:, which]))
        flux *= 1 - depth[:, None] * np.exp(-0.5 * ((log_wavelength - center) / 8e-5) ** 2)
    return Library(flux=flux.astype(np.float32), labels=labels, log_start=LOG_START, name="made up")


def leading(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues and their vectors, ascending as numpy's; all 3801 of them take ten seconds."""
    values, vectors = eigsh(matrix, k=TINY.n_basis, v0=np.ones(len(matrix)))
    order = np.argsort(values)
    return values[order], vectors[:, order]


def train_tiny(library: Library, **options) -> LowRankEmulator:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.linalg, "eigh", leading)
        return train(library, TINY, **options)


@pytest.fixture(scope="module")
def library():
    return made_up_library()


@pytest.fixture(scope="module")
def trained(library):
    losses = []
    emulator = train_tiny(library, progress=lambda number, total, loss: losses.append((number, total, loss)))
    return emulator, losses


@pytest.fixture(scope="module")
def shipped() -> LowRankEmulator:
    return load_emulator()


class TestTiny:
    def test_it_learns(self, trained, library):
        emulator, losses = trained
        assert [(number, total) for number, total, _ in losses] == [(i + 1, 60) for i in range(60)]
        assert losses[-1][2] < 0.5 * losses[0][2]
        # Held-out members: better than the mean of what it was trained on, by far, and by an independent measure.
        source = SpectrumSource(library, TINY, config.Normalize())
        test = np.array(emulator.card["held_out_members"])
        learned = np.setdiff1d(np.arange(len(library.labels)), test)
        rng = np.random.default_rng(9)
        labels, lsf, flux = source.draw(np.tile(test, 4), rng)
        mean = source.draw(learned, rng)[2].mean(axis=0)
        emulated = (emulator.flux(labels, lsf) - flux)[:, FITTED].std()
        constant = (mean - flux)[:, FITTED].std()
        assert emulated < 0.5 * constant
        assert emulator.card["residuals"]["rms"] == pytest.approx(emulated, rel=0.4)

    def test_same_seed_same_emulator(self, trained, library):
        again = train_tiny(library)
        for name, array in trained[0].arrays.items():
            np.testing.assert_array_equal(again.arrays[name], array, err_msg=name)
        # As text: the dispersion of an empty bin of Teff is NaN, which equals nothing.
        one, two = (json.dumps({**e.card, "date": ""}, sort_keys=True) for e in (again, trained[0]))
        assert one == two

    def test_card(self, trained, library):
        card = trained[0].card
        assert card["library"] == "made up"
        assert (card["syntheses"], card["held_out"]) == (54, 6)
        assert len(set(card["held_out_members"])) == 6
        assert card["training"] == {**dataclasses.asdict(TINY)}
        assert card["normalization"] == config.Normalize().model_dump(mode="json")
        assert date.fromisoformat(card["date"]) <= date.today()
        learned = np.setdiff1d(np.arange(60), card["held_out_members"])
        for name in ("teff", "logg", "vmic", "n_he", "fe_h"):
            column = library.labels[learned, INDEX[name]]
            assert card["label_ranges"][name] == pytest.approx([column.min(), column.max()])
        assert set(card["residuals"]) == {"all", "lines", "every", "every_lines", "rms", "teff_bins"}

    def test_held_out_members_take_no_part(self, trained, library):
        # Other spectra in the place of the held-out ones leave the first pass, so the loss, as it was.
        test = trained[0].card["held_out_members"]
        flux = library.flux.copy()
        flux[test] = flux[test][:, ::-1]
        source, other = (
            SpectrumSource(lib, TINY, config.Normalize()) for lib in (library, dataclasses.replace(library, flux=flux))
        )
        learned = np.setdiff1d(np.arange(60), test)
        same = [s.draw(learned, np.random.default_rng(1))[2] for s in (source, other)]
        np.testing.assert_array_equal(*same)
        # The range of labels it may be trusted in ends with the training members too.
        assert not trained[0].outside(library.labels[learned]).any()
        residuals = [
            held_out_residuals(trained[0], s, np.array(test), 1, np.random.default_rng(2))["rms"]
            for s in (source, other)
        ]
        assert residuals[1] > 2 * residuals[0]


def test_line_spreads_cover_the_stated_resolving_powers():
    coefficients = draw_lsf(np.random.default_rng(0), 3000, 1400, 2300)
    wavelength = np.linspace(3750, 9000, 200)
    power = wavelength / (2 * np.sqrt(2 * np.log(2)) * lsf_sigma(wavelength, coefficients))
    # A parabola through three bent points overshoots a little between them.
    assert 1380 < power.min() < 1450
    assert 2220 < power.max() < 2335
    # The arms are independent.
    assert abs(np.corrcoef(power[:, 30], power[:, 150])[0, 1]) < 0.06


def test_rotation_velocities_cover_the_range():
    vsini = draw_vsini(np.random.default_rng(0), 5000, 500.0)
    assert 0 <= vsini.min() < 5
    assert 495 < vsini.max() < 500
    assert np.median(vsini) == pytest.approx(500 * 0.5**1.3, rel=0.05)


def test_fresh_draws_at_every_pass(library):
    source = SpectrumSource(library, TINY, config.Normalize())
    rng = np.random.default_rng(0)
    one, two = (source.draw(np.arange(4), rng) for _ in range(2))
    assert (one[0][:, INDEX["vsini"]] != two[0][:, INDEX["vsini"]]).all()
    assert (one[1] != two[1]).all()
    others = [i for i in range(N_LABELS) if i != INDEX["vsini"]]
    np.testing.assert_array_equal(one[0][:, others], library.labels[:4, others])
    assert (library.labels[:, INDEX["vsini"]] == 0).all()


class TestLibraryFile:
    @pytest.fixture
    def arrays(self):
        names = ["teff", "logg", "fe_h", "vmic", "n_he", "c_fe", "n_fe", "o_fe", "si_fe", "s_fe"]
        rng = np.random.default_rng(0)
        return {
            "residual_intensity": rng.integers(20000, 60001, (3, N_FINE)).astype(np.uint16),
            "continuum": np.tile(np.linspace(2, 1, 257), (3, 1)).astype(np.float32),
            "labels": np.arange(30.0).reshape(3, 10) + 1,
            "label_names": np.array(names),
        }

    def test_read(self, arrays, tmp_path):
        path = tmp_path / "library.npz"
        np.savez(path, **arrays)
        library = read_npz(path)
        assert library.name == "library.npz"
        assert library.labels.shape == (3, N_LABELS)
        column = dict(zip(LABEL_NAMES, library.labels.T, strict=True))
        np.testing.assert_array_equal(column["teff"], [1, 11, 21])
        np.testing.assert_array_equal(column["fe_h"], [3, 13, 23])
        # [C/H] = [C/Fe] + [Fe/H]
        np.testing.assert_array_equal(column["c_h"], np.array([6, 16, 26]) + column["fe_h"])
        np.testing.assert_array_equal(column["s_h"], np.array([10, 20, 30]) + column["fe_h"])
        np.testing.assert_array_equal(column["vsini"], 0)
        # The continuum falls evenly in log λ from 2 at 3.5710 to 1 at 3.9553, where 60000 stands for 1.
        pixel = 9000
        continuum = 2 - pixel * LOG_STEP / (3.9553 - 3.5710)
        np.testing.assert_allclose(
            library.flux[:, pixel], arrays["residual_intensity"][:, pixel] / 60000 * continuum, rtol=1e-6
        )

    @pytest.mark.parametrize("name", ["residual_intensity", "continuum", "labels", "label_names"])
    def test_missing_array(self, arrays, tmp_path, name):
        del arrays[name]
        np.savez(tmp_path / "library.npz", **arrays)
        with pytest.raises(InputError, match=rf"library\.npz.*{name}.*hotdask\.library\.synthe"):
            read_npz(tmp_path / "library.npz")

    def test_missing_label(self, arrays, tmp_path):
        arrays["label_names"][5] = "c_h"
        np.savez(tmp_path / "library.npz", **arrays)
        with pytest.raises(InputError, match=r"'c_fe'.*missing"):
            read_npz(tmp_path / "library.npz")

    @pytest.mark.parametrize("content", [None, b"", b"no zip at all", b"PK\x03\x04 broken"])
    def test_no_library(self, tmp_path, content):
        path = tmp_path / "library.npz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=re.escape(str(path)) + r".*\.npz file of syntheses"):
            read_npz(path)

    def test_pickled_objects_are_refused(self, arrays, tmp_path):
        arrays["label_names"] = np.array(list(arrays["label_names"]), dtype=object)
        np.savez(tmp_path / "library.npz", **arrays)
        with pytest.raises(InputError, match="cannot be read as a library"):
            read_npz(tmp_path / "library.npz")


class TestShipped:
    def test_file(self):
        assert default_emulator().stat().st_size <= 10 * 2**20

    def test_card(self, shipped):
        card = shipped.card
        assert card["normalization"] == config.Normalize().model_dump(mode="json")
        assert card["residuals"]["all"] < 0.0025
        assert card["residuals"]["lines"] < 0.01
        assert len(set(card["held_out_members"])) == card["held_out"] >= 30
        assert min(card["held_out_members"]) >= 0
        assert max(card["held_out_members"]) < card["held_out"] + card["syntheses"]
        assert set(card["label_ranges"]) == set(LABEL_NAMES)
        date.fromisoformat(card["date"])

    def test_it_was_made_with_the_default_training(self, shipped):
        # The docstring of Training says so; passes may differ, sizes and draws may not.
        made, default = shipped.card["training"], json.loads(json.dumps(dataclasses.asdict(Training())))
        for name in ("held_out", "resolving_power", "max_vsini", "n_basis", "hidden", "seed"):
            assert made[name] == default[name], name

    def test_its_basis_is_orthogonal_in_weighted_pixels(self, shipped):
        # Then the loss on coefficients is the loss on pixels. Pixels no fit uses count a fifth.
        weighted = shipped.arrays["basis"].astype(np.float64) * np.where(FITTED, 1.0, 0.2)
        gram = weighted @ weighted.T
        np.testing.assert_allclose(gram / gram[0, 0], np.eye(shipped.n_basis), atol=1e-5)

    def test_held_out_syntheses_have_the_residuals_of_the_card(self, shipped, library_file):
        library = read_npz(library_file)
        card = shipped.card
        assert (library.name, len(library.labels)) == (card["library"], card["syntheses"] + card["held_out"])
        members = np.array(card["held_out_members"])
        held_out = dataclasses.replace(library, flux=library.flux[members], labels=library.labels[members])
        source = SpectrumSource(held_out, Training(), config.Normalize())
        labels, lsf, flux = source.draw(np.tile(np.arange(len(members)), 2), np.random.default_rng(77))
        residual = (shipped.flux(labels, lsf) - flux)[:, FITTED]
        lines = flux[:, FITTED] < 0.95

        def dispersion(values):
            return 1.4826 * np.median(np.abs(values))

        assert dispersion(residual) == pytest.approx(card["residuals"]["all"], rel=0.15)
        assert dispersion(residual[lines]) == pytest.approx(card["residuals"]["lines"], rel=0.2)
        for edges, stated in card["residuals"]["teff_bins"].items():
            low, high = map(float, edges.split("-"))
            chosen = (labels[:, 0] >= low) & (labels[:, 0] < high)
            if math.isfinite(stated["all"]) and chosen.sum() >= 8:
                assert dispersion(residual[chosen]) == pytest.approx(stated["all"], rel=0.5), edges

    def test_held_out_members_were_drawn_by_its_seed(self, shipped):
        # What the card calls held out is what `train` sets aside with that seed, so none of them was learned.
        card = shipped.card
        n = card["syntheses"] + card["held_out"]
        order = np.random.default_rng(card["training"]["seed"]).permutation(n)
        assert sorted(order[: card["held_out"]].tolist()) == card["held_out_members"]
