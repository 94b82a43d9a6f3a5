"""Recovery: the measures against closed forms, the simulated stars against their own spectra, the whole run small."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hotdask import windows
from hotdask.emulator import load_emulator, mean_lsf
from hotdask.emulator.broadening import Broadener
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.emulator.training import library_hash
from hotdask.errors import InputError
from hotdask.flags import Flag
from hotdask.labels import INDEX, LABELS, N_LABELS
from hotdask.library.regrid import to_fine
from hotdask.library.spectra import LOG_START, N_FINE, Library
from hotdask.library.synthe import read_npz
from hotdask.report.recovery import recovery_page
from hotdask.simulation.visits import Simulation, draw_stars, emergent
from hotdask.steps.information import B_STAR
from hotdask.steps.label import Labeler, fit_both
from hotdask.validation.recovery import (
    PAPER_SCATTER,
    Design,
    Syntheses,
    count_minima,
    desert_numbers,
    desert_table,
    gaussian_sigma,
    held_out,
    label_both_ways,
    label_desert,
    observe,
    recover,
    residual_table,
    robust_sigma,
    single_start,
    space_filling,
)

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "recovery"
EMULATOR = load_emulator()
FIDUCIAL_B = np.array(B_STAR)


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    return Labeler(EMULATOR)


@pytest.fixture(scope="module")
def library(library_file) -> Library:
    return read_npz(library_file)


@pytest.fixture(scope="module")
def emulator(library) -> LowRankEmulator:
    """The one shipped, with a card as if it had been trained on SYNTHE's spectra: it learned none of those held out."""
    members = np.arange(0, len(library.labels), 10).tolist()
    card = EMULATOR.card | {
        "library": library.name,
        "library_sha256": library_hash(library),
        "held_out_members": members,
    }
    return LowRankEmulator(EMULATOR.arrays, card, id=EMULATOR.id)


@pytest.fixture(scope="module")
def fiducial(synthesis) -> Library:
    """The LTE engine's spectrum of the paper's B star."""
    from hotdask.library.synthesis import HotdaskEngine

    labels = np.where(np.arange(N_LABELS) == INDEX["vsini"], 0, FIDUCIAL_B)
    flux, _ = to_fine(HotdaskEngine(synthesis / "atlas9_hot.npz", synthesis / "lines_hot.npz")(labels))
    return Library((flux / np.median(flux))[None].astype(np.float32), labels[None], LOG_START, "fiducial")


def made_by_emulator(labeler: Labeler, labels: np.ndarray, snr: float, seed: int = 1):
    flux = emergent(EMULATOR.flux(labels, labeler.lsf), labels[:, 0], labeler.normalizer)
    return observe(flux, snr, labeler.normalizer, np.random.default_rng(seed))


def bare_library(labels: np.ndarray, name: str = "bare") -> Library:
    return Library(np.ones((len(labels), N_FINE), dtype=np.float32), labels, LOG_START, name)


@pytest.mark.parametrize("sigma", [0.01, 3.0, 700.0])
def test_gaussian_sigma_is_the_sigma_of_a_gaussian(sigma):
    values = np.random.default_rng(0).normal(5 * sigma, sigma, 20000)
    assert gaussian_sigma(values) == pytest.approx(sigma, rel=0.03)
    assert robust_sigma(values) == pytest.approx(sigma, rel=0.03)


def test_gaussian_sigma_is_of_the_core():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 8000), rng.normal(0, 30, 800)])
    assert gaussian_sigma(values) == pytest.approx(1, rel=0.06)
    assert values.std() > 5


def test_gaussian_sigma_of_too_little_is_unknown():
    assert np.isnan(gaussian_sigma(np.arange(19.0)))
    assert np.isnan(gaussian_sigma(np.zeros(100)))
    assert np.isnan(robust_sigma(np.array([np.nan])))


def test_residual_table_of_known_residuals():
    rng = np.random.default_rng(1)
    truth = np.tile(FIDUCIAL_B, (20000, 1))
    bound = np.abs(truth) * 0.01 + 0.1
    table = residual_table(truth, truth + bound * (0.5 + 2 * rng.standard_normal(truth.shape)), bound)
    assert [row["label"] for row in table] == [lb.name for lb in LABELS]
    for row, low in zip(table, bound[0], strict=True):
        size = 100 * low / 18000 if row["label"] == "teff" else low
        assert row["bound"] == pytest.approx(size)
        assert row["gaussian"] == pytest.approx(2 * size, rel=0.05)
        assert row["robust"] == pytest.approx(2 * size, rel=0.03)
        assert row["bias"] == pytest.approx(0.5 * size, rel=0.12)
        assert row["pull"] == pytest.approx(2, rel=0.03)
        assert row["pull_median"] == pytest.approx(0.5, rel=0.12)
        # √(2² + 0.5²), less the 1 % left out.
        assert 1.85 < row["pull_rms"] < 2.07
        assert row["paper"] == PAPER_SCATTER[row["label"]]
    assert table[0]["unit"] == "%"


def test_desert_numbers_of_known_distributions():
    truth = np.linspace(7500, 12000, 45001)
    half = truth[(np.abs(truth - 9500) > 300) | (np.arange(truth.size) % 2 == 0)]
    found = desert_numbers(truth, half)
    assert found["deficit"] == pytest.approx(0.5, abs=1e-3)
    assert found["deficit_paper"] == pytest.approx(0.15, abs=1e-3)
    assert found["lowest"] == pytest.approx(0.5, abs=1e-2)
    assert found["error"] == pytest.approx(np.sqrt(3000) / 6001, rel=1e-3)
    assert found["edges"][0] == 7500
    assert found["edges"][-1] == 12000
    assert desert_numbers(truth, truth[truth < 9000])["deficit"] == 1
    assert desert_numbers(np.array([8000.0]), np.array([9500.0]))["deficit"] is None


def test_observed_noise_and_grid(labeler):
    labels = np.tile(FIDUCIAL_B, (100, 1))
    flux, ivar = made_by_emulator(labeler, labels, 50.0)
    assert flux.shape == ivar.shape == (100, windows.N_OBSERVED)
    prepared = labeler.prepare(flux, ivar, np.zeros(100))
    normalized, normalized_ivar = prepared.flux, prepared.ivar
    used = ~windows.inside(labeler.wavelength, windows.FIT_MASK)
    # The continuum of the noisy spectrum is not quite that of the clean one.
    np.testing.assert_allclose(np.sqrt(normalized_ivar[:, used]), 50, rtol=0.03)
    residual = (normalized - EMULATOR.flux(labels[:1]))[:, used]
    assert residual.std() == pytest.approx(1 / 50, rel=0.02)
    # Independent draws: their mean converges on the spectrum.
    assert np.sqrt(np.mean(residual.mean(axis=0) ** 2)) < 2.5 / 50 / np.sqrt(100)


def test_observed_without_noise_is_what_the_emulator_learned(labeler, library):
    """The same path as training: a synthesis broadened and normalized."""
    stars = Syntheses(library, np.array([3, 5]))
    lsf = np.tile(mean_lsf(), (2, 1))
    labels, flux = stars.draw(np.array([1, 0]), 300.0, lsf, np.random.default_rng(2))
    np.testing.assert_array_equal(np.delete(labels, INDEX["vsini"], 1), np.delete(library.labels[[5, 3]], 3, 1))
    assert ((labels[:, INDEX["vsini"]] > 0) & (labels[:, INDEX["vsini"]] < 300)).all()
    broadener = Broadener(library.log_start, library.flux.shape[1])
    expected = broadener.broaden(broadener.transform(library.flux[[5, 3]]), labels[:, INDEX["vsini"]], lsf)
    expected, _, _ = labeler.normalizer.normalize(expected, np.ones_like(expected))
    flux, ivar = observe(flux, 1e6, labeler.normalizer, np.random.default_rng(0))
    prepared = labeler.prepare(flux, ivar, np.zeros(2))
    assert (prepared.flags & Flag.CONTINUUM_CORRECTED == 0).all(), "no pixel is bad, so no continuum is corrected"
    np.testing.assert_allclose(prepared.flux, expected, atol=5e-5)


def test_stars_of_the_emulator_come_back(labeler):
    labels = np.tile(FIDUCIAL_B, (40, 1))
    found = label_both_ways(labeler, *made_by_emulator(labeler, labels, 100.0))
    for how in ("catalog", "all", "single"):
        assert np.abs(np.median(found[how][:, 0]) - 18000) < 100
        assert np.abs(np.median(found[how][:, INDEX["vsini"]]) - 100) < 5


def test_space_filling_lies_in_the_library_and_fills_it():
    starts = space_filling(EMULATOR, 256, 1)
    assert starts.shape == (256, N_LABELS)
    assert not EMULATOR.outside(starts).any()
    assert len(np.unique(starts, axis=0)) == 256
    # Each quarter of vsini, which nothing bounds, has its share of 64, as random points do within 3 σ (binomial: 6.9).
    counts = np.histogram(starts[:, INDEX["vsini"]], np.linspace(0, 500, 5))[0]
    assert np.abs(counts - 64).max() < 21
    assert not np.array_equal(starts, space_filling(EMULATOR, 256, 2))


def test_as_many_starts_as_asked_for_or_none():
    narrow = EMULATOR.arrays | {"hull": EMULATOR.arrays["hull"].copy()}
    # Half planes moved inward leave a sliver of the library.
    center = np.array([np.log10(18000.0), 4.0])
    inward = -(narrow["hull"][:, :2] @ center + narrow["hull"][:, 2])
    narrow["hull"][:, 2] += 0.95 * inward
    assert len(space_filling(LowRankEmulator(narrow, EMULATOR.card), 16, 1)) == 16
    narrow["hull"][:, 2] += 0.04999 * inward
    with pytest.raises(InputError, match="16 starts do not fit"):
        space_filling(LowRankEmulator(narrow, EMULATOR.card), 16, 1)


@pytest.mark.long
def test_minima_are_those_of_fits_made_one_by_one(labeler):
    n = 200
    drawn = draw_stars(Simulation(stars=n, spectra=n, seed=3), EMULATOR)[:n]
    labels = drawn[[f"{lb.name}_true" for lb in LABELS]].to_numpy()
    flux, ivar = made_by_emulator(labeler, labels, 100.0)
    starts = space_filling(EMULATOR, 4, 1)
    rows, facts = count_minima(labeler, flux, ivar, starts)
    prepared = labeler.prepare(flux, ivar, np.zeros(n))
    block = prepared.block
    pair = dict(zip(("all", "hmasked"), fit_both(block, prepared.starts)[:2], strict=True))
    for which in ("all", "hmasked"):
        tried = [block.fit(which, [np.broadcast_to(start, labels.shape)]) for start in starts]
        one = block.fit(which, [single_start(labeler, prepared.teff_guess)])
        chi2 = {f"{k} space-filling": np.min([s.chi2 for s in tried[:k]], axis=0) for k in (1, 2, 4)}
        chi2 |= {f"catalog + {name}": np.minimum(pair[which].chi2, found) for name, found in chi2.items()}
        chi2 |= {"catalog": pair[which].chi2, "one start, Eq 4": one.chi2}
        best = chi2["4 space-filling"]
        lowest = np.minimum(chi2["catalog + 4 space-filling"], one.chi2)
        assert {row["strategy"] for row in rows[which]} == set(chi2)
        for row in rows[which]:
            found = chi2[row["strategy"]]
            assert row["worse"] * n == pytest.approx(sum(found > best + 1))
            assert row["worse_any"] * n == pytest.approx(sum(found > lowest + 1))
            assert row["worse_inside"] <= row["worse_any"]
            assert row["seconds"] > 0
        # One start, wherever it is, does end in other minima: the counts are not all 0.
        assert rows[which][2]["kind"] == "filling"
        assert rows[which][2]["worse_any"] > 0
        # At most one in a hundred of the catalog's fits is in a minimum that is not the lowest known.
        assert {row["kind"]: row for row in rows[which]}["catalog"]["worse_any"] <= 0.05
    assert facts["all"]["spectra"] == n


def test_desert_is_seen_from_one_start_and_not_in_the_catalog(labeler):
    # An eighth of light without lines makes all hydrogen lines shallower than at their maximum: a fit of all lines
    # from one start leaves the 600 K around it empty.
    design = Design(spectra=300, desert_snr=(100.0,), dilution=0.12)
    table = {row["source"]: row for row in desert_table(label_desert(labeler, design))}
    diluted = table["emulator, diluted"]
    assert diluted["single"]["deficit"] > 3 * diluted["single"]["error"]
    assert diluted["catalog"]["deficit"] < 2 * diluted["catalog"]["error"]
    # Perfect models leave none either way.
    for how in ("single", "catalog"):
        assert abs(table["emulator"][how]["deficit"]) < 2.5 * table["emulator"][how]["error"]


def test_held_out_are_those_of_the_card_within_table_1(library, emulator):
    members = held_out(library, emulator.card)
    left = library.labels[sorted(set(emulator.card["held_out_members"]) - set(members))]
    low, high = np.array([(lb.low, lb.high) for lb in LABELS]).T
    inside = (library.labels[members] >= low) & (library.labels[members] <= high)
    assert inside.all()
    assert len(members) + len(left) == len(emulator.card["held_out_members"])
    assert (~((left >= low) & (left <= high)).all(axis=1)).all()


def test_cooler_ones_are_held_out_too():
    labels = np.tile(FIDUCIAL_B, (10, 1))
    labels[:3, 0] = 7100, 7300, 7499
    library = bare_library(labels)
    card = {"library": "bare", "library_sha256": library_hash(library), "held_out_members": [0, 1, 2, 3]}
    assert held_out(library, card).tolist() == [3]
    assert held_out(library, card, coolest=7200).tolist() == [1, 2, 3]


def test_a_library_the_emulator_did_not_learn_is_refused():
    labels = np.tile(FIDUCIAL_B, (10, 1))
    labels[0, 0] = 7100
    library = bare_library(labels)
    card = {"library": "bare", "library_sha256": library_hash(library), "held_out_members": [1, 2]}
    assert held_out(library, card).tolist() == [1, 2]
    for change, words in (
        ({"library_sha256": None}, "does not say which"),
        ({"held_out_members": []}, "no held_out_members"),
        ({"held_out_members": [0]}, "no held-out synthesis"),
    ):
        with pytest.raises(InputError, match=words):
            held_out(library, card | change)
    # Of the same name and size, and with one value changed.
    library.flux[5, 5] = 2
    with pytest.raises(InputError, match="learned another library"):
        held_out(library, card)


def test_a_fiducial_library_of_another_star_is_refused(library, emulator):
    other = bare_library(np.tile(FIDUCIAL_B * 1.1, (1, 1)), "hotter")
    with pytest.raises(InputError, match="hotter: its first synthesis is not the fiducial star"):
        recover(library, emulator, Design(spectra=8, snr=(100.0,), starts=1), fiducial=other)


def test_nonsense_designs_are_refused():
    with pytest.raises(InputError, match="positive"):
        Design(spectra=0)


@pytest.mark.long
def test_the_whole_run(library, emulator, fiducial):
    design = Design(spectra=64, snr=(100.0,), desert_snr=(100.0, 30.0), starts=2)
    result = recover(library, emulator, design, fiducial=fiducial)
    numbers = json.loads(json.dumps(result.numbers, allow_nan=False))
    assert [e["name"] for e in numbers["experiments"]] == ["S/N 100", "S/N 100, line spread varied"]
    assert len(result.stars) == 2 * 64
    assert (result.stars["teff_true"] >= 7500).all()
    # Another engine's syntheses come back within a factor of 2 or so of the scatter the paper has with its own.
    main = numbers["experiments"][0]
    assert main["catalog"][0]["robust"] < 2 * PAPER_SCATTER["teff"]
    # It has structures in LTE, ours have not.
    assert main["catalog"][INDEX["logg"]]["robust"] < 2.2 * PAPER_SCATTER["logg"]
    # Both sides of [Fe/H] = -1 are all stars.
    assert main["metal_rich"][0]["n"] + main["metal_poor"][0]["n"] == main["catalog"][0]["n"] == 64
    iron = result.stars.loc[result.stars["experiment"] == "S/N 100", "fe_h_true"]
    assert main["sampling"]["metal_rich"] == pytest.approx((iron >= -1).mean())
    # The fiducial star comes back at its bound.
    assert numbers["fiducial"]["source"] == "fiducial"
    assert all(row["pull_gaussian"] < 1.5 for row in numbers["fiducial"]["table"])
    sources = [(row["source"], row["snr"]) for row in numbers["desert"]]
    assert sources == [(s, n) for s in ("syntheses", "emulator", "emulator, diluted") for n in (100, 30)]
    teff = result.desert.loc[result.desert["source"] == "emulator", "teff_true"]
    assert teff.between(7200, 12600).all()

    page = recovery_page(result)
    assert page.startswith("<!DOCTYPE html>")
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<img") == 11 + 2 + 6 + 2
    for heading in ("Residuals", "The fiducial B star", "The A0 desert", "Local minima"):
        assert f"<h2>{heading}</h2>" in page
    assert "--fiducial" not in page
    # What an emulator says of its own star is not to be read as more.
    result.numbers["fiducial"]["source"] = "emulator"
    assert "judges the fit, and says nothing of the emulator" in recovery_page(result)


def test_the_script_says_what_is_wrong(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "none.npz", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("recovery: ")
    assert "none.npz" in done.stderr
    assert "Traceback" not in done.stderr
