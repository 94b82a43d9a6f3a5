"""Training on a small made-up library, and what the shipped emulator's card claims, measured on the real one."""

import dataclasses
import json
import re
import time
from datetime import date

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.spatial import ConvexHull

from hotdask import __version__, config
from hotdask.emulator import LowRankEmulator, PerPixelEmulator, load_emulator, lsf_sigma
from hotdask.emulator.base import polygon_corners
from hotdask.emulator.card import card_text
from hotdask.emulator.checkpoint import write_checkpoint
from hotdask.emulator.loop import Optimization, Schedule
from hotdask.emulator.source import SpectrumSource, draw_lsf, draw_vsini
from hotdask.emulator.training import Training, library_hash, split_library, train
from hotdask.errors import EmulatorError, InputError
from hotdask.labels import INDEX, LABEL_NAMES, N_LABELS
from hotdask.library.regrid import to_fine
from hotdask.library.sampling import Sampling, draw_labels
from hotdask.library.spectra import LOG_START, LOG_STEP, Library
from hotdask.library.synthe import read_npz
from hotdask.library.synthesis import HotdaskEngine
from hotdask.shipped import SHIPPED
from hotdask.windows import FIT_MASK, inside, rest_wavelength

N_FINE = 19216
FITTED = ~inside(rest_wavelength(), FIT_MASK)
TINY = Training(
    n_basis=12,
    hidden=32,
    draws=10,
    passes=30,
    batch=16,
    patience=1.0,
    basis_spectra=120,
    test_passes=3,
    inverse_draws=600,
    inverse_passes=3,
    seed=4,
)
TINY_PIXELS = Training(
    "perpixel", hidden=6, draws=4, passes=6, patience=1.0, batch=16, learning_rate=0.05, pixels=2000, test_passes=1
)


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


@pytest.fixture(scope="module")
def library():
    return made_up_library()


@pytest.fixture(scope="module")
def trained(library):
    losses = []
    emulator = train(library, TINY, progress=lambda *passed: losses.append(passed))
    return emulator, losses


class TestTiny:
    def test_it_learns(self, trained, library):
        emulator, losses = trained
        # 30 passes of the network, 3 of the one that starts fits.
        assert [passed[:2] for passed in losses] == [(i + 1, 33) for i in range(33)]
        assert losses[29][2] < 0.5 * losses[0][2]
        # Held-out members: better than the mean of what it was trained on, by far, and by an independent measure.
        source = SpectrumSource(library, config.Normalize())
        test = np.array(emulator.card["held_out_members"])
        learned = split_library(len(library.labels), TINY).learned
        rng = np.random.default_rng(9)
        labels, lsf, flux = source.draw(np.tile(test, 4), rng)
        mean = source.draw(learned, rng)[2].mean(axis=0)
        emulated = (emulator.flux(labels, lsf) - flux)[:, FITTED].std()
        constant = (mean - flux)[:, FITTED].std()
        assert emulated < 0.5 * constant
        assert emulator.card["residuals"]["rms"] == pytest.approx(emulated, rel=0.4)

    def test_same_seed_same_emulator(self, trained, library):
        again = train(library, TINY)
        for name, array in trained[0].arrays.items():
            np.testing.assert_array_equal(again.arrays[name], array, err_msg=name)
        one, two = (
            {name: value for name, value in e.card.items() if name not in ("date", "cpu_seconds", "wall_seconds")}
            for e in (again, trained[0])
        )
        assert one == two

    def test_card(self, trained, library):
        card = trained[0].card
        assert card["library"] == "made up"
        assert (card["syntheses"], card["validation"], card["held_out"]) == (49, 5, 6)
        members = [*card["held_out_members"], *card["validation_members"]]
        assert len(set(members)) == 11
        assert card["training"] == {**dataclasses.asdict(TINY)}
        assert card["normalization"] == config.Normalize().model_dump(mode="json")
        assert date.fromisoformat(card["date"]) <= date.today()
        learned = np.setdiff1d(np.arange(60), members)
        for name in ("teff", "logg", "vmic", "n_he", "fe_h"):
            column = library.labels[learned, INDEX[name]]
            assert card["label_ranges"][name] == pytest.approx([column.min(), column.max()])
        assert len(card["loss"]["train"]) == len(card["loss"]["validation"]) == 30
        assert card["loss"]["best"] == np.argmin(card["loss"]["validation"]) + 1
        assert card["library_sha256"] == library_hash(library)
        assert (card["device"], card["hotdask"], card["torch"]) == ("cpu", __version__, torch.__version__)

    def test_the_hash_is_of_labels_and_flux(self, library):
        flux, labels = library.flux.copy(), library.labels.copy()
        flux[-1, -1] = np.nextafter(flux[-1, -1], np.float32(1))
        labels[-1, -1] = np.nextafter(labels[-1, -1], 1)
        hashes = {library_hash(dataclasses.replace(library, **c)) for c in ({}, {"flux": flux}, {"labels": labels})}
        assert len(hashes) == 3
        assert library_hash(made_up_library()) == library_hash(dataclasses.replace(library, name="other")) in hashes


class StoppedError(Exception):
    """Raised in the middle of a training."""


def stop_after(passes: int):
    def progress(number, total, loss, validation):
        if number == passes:
            raise StoppedError

    return progress


@pytest.fixture(scope="module")
def pixels_trained(library):
    losses = []
    return train(library, TINY_PIXELS, progress=lambda *passed: losses.append(passed)), losses


@pytest.mark.parametrize("training", [TINY, TINY_PIXELS], ids=["lowrank", "perpixel"])
def test_held_out_members_take_no_part(library, trained, pixels_trained, training):
    # Nonsense in their place, in flux and labels, leaves the networks as they were to the last bit.
    one = (trained if training is TINY else pixels_trained)[0]
    flux, labels = library.flux.copy(), library.labels.copy()
    test = one.card["held_out_members"]
    flux[test] = 1.7 * flux[test][:, ::-1]
    labels[test, 0] = 90000
    labels[test, 1:3] = 9, 40
    labels[test, INDEX["n_he"] :] = 3
    two = train(dataclasses.replace(library, flux=flux, labels=labels), training)
    assert two.card["held_out_members"] == test
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(two.arrays[name], array, err_msg=name)
    assert two.card["loss"] == one.card["loss"]
    # The residuals on them are another matter.
    assert two.card["residuals"]["rms"] > 2 * one.card["residuals"]["rms"]


def checkpoint_parts(path) -> tuple[dict, dict, dict]:
    """Tensors, state and identity of a checkpoint."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["hotdask"])
        return {n: file.get_tensor(n) for n in file.keys()}, header["state"], header["identity"]  # noqa: SIM118


class TestResume:
    """A training that was stopped and went on, against one that was not: bit by bit."""

    def test_low_rank(self, library, trained, tmp_path):
        path = tmp_path / "state"
        for passes in (7, 19):
            with pytest.raises(StoppedError):
                train(library, TINY, checkpoint=path, checkpoint_seconds=0, progress=stop_after(passes))
        seen = []
        again = train(library, TINY, checkpoint=path, progress=lambda *passed: seen.append(passed))
        assert seen == trained[1][19:]
        for name, array in trained[0].arrays.items():
            np.testing.assert_array_equal(again.arrays[name], array, err_msg=name)
        assert again.card["loss"] == trained[0].card["loss"]

    def test_time_before_the_stop_counts(self, library, tmp_path):
        path = tmp_path / "state"

        def progress(number, *_):
            time.sleep(0.4)
            if number == 3:
                raise StoppedError

        with pytest.raises(StoppedError):
            train(library, TINY, checkpoint=path, checkpoint_seconds=0, progress=progress)
        with safe_open(path, framework="np") as file:
            before = json.loads(file.metadata()["hotdask"])["state"]["seconds"]
        # The checkpoint of pass 3 is older than its sleep.
        assert 0.8 < before["wall"] < 15
        assert 0 < before["cpu"] < before["wall"] + 5
        # As if it had taken hours.
        tensors, state, identity = checkpoint_parts(path)
        state["seconds"] = {"wall": 7200.0, "cpu": 3600.0}
        write_checkpoint(path, tensors, state, identity)
        card = train(library, TINY, checkpoint=path).card
        assert 7200 <= card["wall_seconds"] < 7260
        assert 3600 <= card["cpu_seconds"] < 3660

    # At the end of the first part of the pixels, and in the second.
    @pytest.mark.parametrize("passes", [6, 9])
    def test_per_pixel(self, library, pixels_trained, tmp_path, passes):
        path = tmp_path / "state"
        with pytest.raises(StoppedError):
            train(library, TINY_PIXELS, checkpoint=path, checkpoint_seconds=0, progress=stop_after(passes))
        seen = []
        again = train(library, TINY_PIXELS, checkpoint=path, progress=lambda *passed: seen.append(passed))
        assert seen == pixels_trained[1][passes:]
        for name, array in pixels_trained[0].arrays.items():
            np.testing.assert_array_equal(again.arrays[name], array, err_msg=name)

    def test_a_checkpoint_of_another_training_is_refused(self, library, tmp_path):
        path = tmp_path / "state"
        with pytest.raises(StoppedError):
            train(library, TINY, checkpoint=path, checkpoint_seconds=0, progress=stop_after(1))
        with pytest.raises(EmulatorError, match=r"state: .*training differ.*--checkpoint"):
            train(library, dataclasses.replace(TINY, hidden=33), checkpoint=path)
        other = dataclasses.replace(library, flux=library.flux * np.float32(1.01))
        with pytest.raises(EmulatorError, match="library_sha256 differ"):
            train(other, TINY, checkpoint=path)
        tensors, state, identity = checkpoint_parts(path)
        write_checkpoint(path, tensors, state, {**identity, "device": "cuda"})
        with pytest.raises(EmulatorError, match=r"\(device differ\)"):
            train(library, TINY, checkpoint=path)

    @pytest.mark.parametrize("content", [b"", b"nothing of the kind"])
    def test_a_damaged_checkpoint_is_refused(self, library, tmp_path, content):
        (tmp_path / "state").write_bytes(content)
        with pytest.raises(EmulatorError, match="not a checkpoint"):
            train(library, TINY, checkpoint=tmp_path / "state")

    def test_an_emulator_is_no_checkpoint(self, library):
        with pytest.raises(EmulatorError, match="not a checkpoint"):
            train(library, TINY, checkpoint=SHIPPED["lte"])


class TestEarlyStop:
    def test_the_best_pass_is_kept(self, library):
        # Few spectra and a large network: it soon learns them by heart.
        greedy = dataclasses.replace(TINY, draws=1, hidden=128, passes=200, patience=0.04, learning_rate=0.02)
        card = train(library, greedy).card
        validation = card["loss"]["validation"]
        best = int(np.argmin(validation)) + 1
        assert card["loss"]["best"] == best
        assert len(validation) == best + 8 < 200

    def test_one_pass_is_made_whatever_the_patience(self, library):
        card = train(library, dataclasses.replace(TINY, passes=1, patience=0.01)).card
        assert card["loss"]["best"] == len(card["loss"]["train"]) == 1

    @pytest.mark.parametrize("n", [1, 9, 10, 11])
    def test_however_few_steps(self, n):
        # One step a pass: the one-cycle schedule of ten steps would divide by zero.
        network = torch.nn.Linear(1, 1)
        x = torch.linspace(-1, 1, 4)[:, None]
        optimization = Optimization(
            network, lambda f, x, y: (f(x) - y).abs().mean(), (x, 2 * x), (x, 2 * x), Schedule(n, 4, 0.1, n), seed=1
        )
        while not optimization.finished:
            optimization.step()
        assert len(optimization.history.train) == n


class TestPerPixel:
    def test_it_learns(self, library, pixels_trained):
        emulator, losses = pixels_trained
        assert isinstance(emulator, PerPixelEmulator)
        assert emulator.arrays["weight2"].shape == (3801, 6, 6)
        assert [passed[:2] for passed in losses] == [(i + 1, 12) for i in range(12)]
        source = SpectrumSource(library, config.Normalize())
        split, rng = split_library(60, TINY_PIXELS), np.random.default_rng(9)
        labels, lsf, flux = source.draw(np.tile(split.held_out, 4), rng)
        mean = source.draw(split.learned, rng)[2].mean(axis=0)
        emulated, constant = (np.std(f - flux) for f in (emulator.flux(labels, lsf), mean))
        assert emulated < 0.8 * constant
        # Every pixel, the first and last of each part among them, has a network of its own.
        assert (emulator.flux(labels, lsf).std(axis=0) > 0).all()

    def test_no_basis_in_its_budget(self, pixels_trained):
        assert set(pixels_trained[0].card["budget"]) == {"learned", "held_out", "limit"}


class TestRefused:
    def test_values_that_are_not_finite(self, library):
        flux = library.flux.copy()
        flux[[3, 9], 100] = np.nan, np.inf
        with pytest.raises(InputError, match=r"made up: 2 syntheses .*\[3, 9\]"):
            train(dataclasses.replace(library, flux=flux), TINY)

    def test_too_few(self, library):
        few = dataclasses.replace(library, flux=library.flux[:9], labels=library.labels[:9])
        with pytest.raises(InputError, match="9 syntheses are too few"):
            train(few, TINY)

    @pytest.mark.parametrize("name", ["passes", "draws", "hidden", "pixels", "n_basis"])
    def test_sizes(self, library, name):
        with pytest.raises(InputError, match=rf"training\.{name} = 0; give at least 1"):
            train(library, dataclasses.replace(TINY, **{name: 0}))

    def test_a_basis_of_all_pixels(self, library):
        with pytest.raises(InputError, match="n_basis = 3801; give fewer than the 3801 pixels"):
            train(library, dataclasses.replace(TINY, n_basis=3801))

    @pytest.mark.parametrize("name", ["teff", "logg"])
    def test_no_area_before_any_work(self, library, name):
        labels = library.labels.copy()
        labels[:, INDEX[name]] = 4.0
        began = []
        with pytest.raises(InputError, match="made up: Teff and log g span no area"):
            train(dataclasses.replace(library, labels=labels), TINY, progress=lambda *_: began.append(1))
        assert not began

    def test_a_loss_that_is_not_finite(self, library):
        with pytest.raises(EmulatorError, match="not finite after pass 1; lower the learning rate"):
            train(library, dataclasses.replace(TINY, learning_rate=1e38, passes=5))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_no_such_device(self, library):
        with pytest.raises(InputError, match="no CUDA device"):
            train(library, TINY, device="cuda")

    def test_unknown_architecture(self, library):
        with pytest.raises(InputError, match=r"'deep'.*'lowrank' and 'perpixel'"):
            train(library, dataclasses.replace(TINY, architecture="deep"))


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
    source = SpectrumSource(library, config.Normalize())
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


@pytest.fixture(scope="session")
def planned(synthesis) -> tuple[HotdaskEngine, np.ndarray]:
    """The engine and the labels of the library that the LTE emulator was made from."""
    card = load_emulator("lte").card
    sampling = Sampling(**card["library_provenance"]["settings"]["sampling"])
    engine = HotdaskEngine(
        synthesis / "atlas9_hot.npz",
        synthesis / "lines_hot.npz",
        helium_profiles=synthesis / "he1_stark_tremblay2026.dat",
        nlte=synthesis.parent / "nlte" / "bstar2006_z1.npz",
    )
    known = card["library_provenance"]["engine_provenance"]
    for name in ("atmospheres", "lines", "helium_profiles", "nlte", "temperatures", "departures_added"):
        assert engine.provenance()[name] == known[name]
    labels = draw_labels(sampling, engine.covers)
    # Rows of the library are those of the plan, as long as no synthesis failed.
    assert len(labels) == card["syntheses"] + card["validation"] + card["held_out"]
    return engine, labels


@pytest.mark.parametrize("name", SHIPPED)
class TestShipped:
    @pytest.fixture
    def shipped(self, name) -> LowRankEmulator:
        return load_emulator(name)

    def test_file(self, name):
        assert SHIPPED[name].stat().st_size <= 10 * 2**20

    def test_card(self, shipped, name):
        card = shipped.card
        assert card["normalization"] == config.Normalize().model_dump(mode="json")
        assert card["residuals"]["every"] <= 0.0010
        assert card["residuals"]["every_lines"] <= 0.0035
        assert set(card["label_ranges"]) == set(LABEL_NAMES)
        date.fromisoformat(card["date"])
        # The text beside the file is of this file.
        text = SHIPPED[name].with_suffix(".md").read_text(encoding="utf-8")
        assert text == card_text(card, shipped.id)

    def test_it_was_made_with_the_default_training(self, shipped):
        assert shipped.card["training"] == json.loads(json.dumps(dataclasses.asdict(Training())))

    def test_label_ranges_are_those_it_judges_by(self, shipped):
        for name, (low, high) in shipped.card["label_ranges"].items():
            if name == "vsini":
                assert (low, high) == (0, shipped.card["training"]["max_vsini"])
            else:
                assert shipped.arrays["label_low"][INDEX[name]] == pytest.approx(low, rel=1e-12), name
            assert shipped.arrays["label_high"][INDEX[name]] == pytest.approx(high, rel=1e-12), name

    def test_held_out_members_were_drawn_by_its_seed(self, shipped):
        # What the card calls held out is what `train` sets aside with that seed, so none of them was learned.
        card = shipped.card
        split = split_library(card["syntheses"] + card["validation"] + card["held_out"], Training(**card["training"]))
        assert split.held_out.tolist() == card["held_out_members"]
        assert split.validation.tolist() == card["validation_members"]
        assert (len(split.learned), len(split.held_out)) == (card["syntheses"], card["held_out"])


class TestLte:
    """What its library says of the emulator that needs nothing but our own engine."""

    @pytest.fixture
    def shipped(self) -> LowRankEmulator:
        return load_emulator("lte")

    def test_it_ends_where_the_syntheses_it_learned_from_end(self, shipped, planned):
        split = split_library(len(planned[1]), Training(**shipped.card["training"]))
        learned = planned[1][split.learned]
        assert not shipped.outside(learned).any()
        corners = np.array([np.log10(learned[:, 0]), learned[:, 1]]).T
        corners = corners[ConvexHull(corners).vertices]
        found = polygon_corners(shipped.arrays["hull"])
        assert np.abs(found[:, None] - corners).sum(axis=2).min(axis=0).max() < 1e-6
        assert len(found) == len(corners)

    def test_held_out_syntheses_have_the_residuals_of_the_card(self, shipped, planned):
        # Ten of the held-out ones made again, evenly through their temperatures.
        engine, labels = planned
        held_out = labels[shipped.card["held_out_members"]]
        held_out = held_out[np.argsort(held_out[:, 0])]
        chosen = held_out[np.linspace(0, len(held_out) - 1, 12).round().astype(int)[1:-1]]
        made = [engine(row) for row in chosen]
        flux = np.stack([to_fine(dataclasses.replace(s, flux=s.flux_lte))[0] for s in made])
        source = SpectrumSource(Library(flux, chosen, LOG_START, "again"), config.Normalize())
        labels, lsf, flux = source.draw(np.tile(np.arange(10), 8), np.random.default_rng(77))
        residual = shipped.flux(labels, lsf) - flux

        def dispersion(values):
            return 1.4826 * np.median(np.abs(values))

        stated = shipped.card["residuals"]
        for part, every, lines in ((slice(None), "every", "every_lines"), (FITTED, "all", "lines")):
            there, in_line = residual[:, part], flux[:, part] < 0.95
            assert 0.5 < dispersion(there) / stated[every] < 2, every
            assert 0.5 < dispersion(there[in_line]) / stated[lines] < 2, lines
