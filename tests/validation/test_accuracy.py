"""The comparison of labels with the literature: on stars of known labels, by hand, and as a command."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import CubicSpline

from hotdask import windows
from hotdask.emulator import load_emulator
from hotdask.emulator.broadening import mean_lsf
from hotdask.errors import InputError
from hotdask.labels import INDEX, LABEL_NAMES
from hotdask.report.accuracy import accuracy_lines, accuracy_page
from hotdask.simulation.visits import emergent
from hotdask.spectra.normalize import Normalizer
from hotdask.steps.label import Labeler
from hotdask.validation.accuracy import (
    FITS,
    Stars,
    fitted_spectra,
    label_stars,
    prepare_stars,
    summarize,
    targets,
)
from hotdask.validation.bibliography import conversion, read_bibliography
from hotdask.validation.libraries import Spectra

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "accuracy"
TRUE = np.array(
    [
        [8200, 4.0, 2.5, 60, 0.09, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1],
        [12500, 3.8, 2.0, 40, 0.09, -0.2, -0.2, -0.2, -0.1, -0.1, -0.2],
        [18500, 3.9, 3.0, 80, 0.09, -0.2, -0.2, -0.2, -0.1, -0.1, -0.2],
        [24500, 4.0, 4.0, 30, 0.09, -0.2, -0.2, -0.2, -0.1, -0.1, -0.2],
    ]
)
NAMES = np.array(["HD 1", "HD 2", "HD 3", "HD 4"])


@pytest.fixture(scope="module")
def emulator():
    return load_emulator()


@pytest.fixture(scope="module")
def library(emulator):
    """Stars of known labels as a library would have them: in vacuum, R = 1700, steps a third of ours, no noise."""
    grid = windows.rest_wavelength()
    flux = emergent(emulator.flux(TRUE, mean_lsf(1700, 1700)), TRUE[:, 0], Normalizer(grid))
    fine = np.exp(np.linspace(*np.log(grid[[0, -1]]), 11000))
    flux = CubicSpline(grid, flux, axis=1)(fine)
    # Their own labels on the literature's scale.
    labels = TRUE.copy()
    for name, step in conversion().items():
        labels[:, INDEX[name]] -= step
    types = np.array(["A5V", "B8V", "B3V", "B1V"])
    return Spectra(NAMES, types, labels, "made up", fine, 3e-14 * flux, fine / 1700, air=False)


@pytest.fixture(scope="module")
def labeled(emulator, library):
    stars = prepare_stars([library], read_bibliography())
    return stars, label_stars(stars, Labeler(emulator))


def test_stars_of_known_labels_come_back(labeled):
    stars, found = labeled
    # R = 1700 is within what the emulator knows: nothing is made coarser than it is.
    assert stars.lsf[0] == pytest.approx(mean_lsf(1700, 1700))
    for fit in FITS:
        assert found[f"teff{fit}"].to_numpy() == pytest.approx(TRUE[:, 0], rel=5e-3)
        assert found[f"logg{fit}"].to_numpy() == pytest.approx(TRUE[:, 1], abs=0.03)
    assert found["fe_h"].to_numpy() == pytest.approx(TRUE[:, INDEX["fe_h"]], abs=0.02)
    assert (found["chi2_red"] < 2e-3).all()


def test_models_of_the_fits_are_told_with_the_data(emulator, labeled):
    stars, found = labeled
    seen = fitted_spectra(stars, Labeler(emulator), found, np.array([2, 0]))
    assert seen["model_all"].shape == (2, windows.N_REST)
    residual = np.where(seen["used"], seen["flux"] - seen["model_all"], 0)
    assert np.abs(residual).max() < 3e-3
    # What differs is the star, not the order.
    assert np.abs(seen["flux"][0] - stars.flux[0, windows.REST_OFFSET :][: windows.N_REST]).max() > 0.1


def test_numbers_are_those_of_a_hand():
    stars = pd.DataFrame(
        {
            "kind": ["normal"] * 4 + ["peculiar"],
            "teff_ref": [17000.0, 18000, 25000, 50000, 18000],
            "reference": ["someone"] * 5,
            "library": ["L"] * 5,
            **{f"{name}_ref": [0.0, 0, 0, np.nan, 0] for name in LABEL_NAMES[1:]},
        }
    )
    teff = [17170.0, 17100, 24000, 40000, 18000]
    found = pd.DataFrame({f"{name}{fit}": [0.1, 0.3, 0.6, 9.0, 5.0] for fit in FITS for name in LABEL_NAMES})
    for fit in FITS:
        found[f"teff{fit}"], found[f"chi2_red{fit}"] = teff, [1.0, 2, 4, 8, 16]
    table = summarize(stars, found).set_index(["kind", "teff_low", "teff_high", "label", "fit"])
    row = table.loc[("normal", 16e3, 30e3, "teff", "merged")]
    # +1, −5 and −4 %: the median is −4, deviations are 5, 1 and 0.
    assert (row.n, row.bias, row.scatter) == (3, pytest.approx(-4), pytest.approx(1.4826))
    row = table.loc[("normal", 16e3, 20e3, "logg", "all lines")]
    assert (row.n, row.bias, row["median"]) == (2, pytest.approx(0.2), pytest.approx(0.2))
    assert table.loc[("normal", 40e3, np.inf, "logg", "merged"), "n"] == 0
    assert table.loc[("normal", 40e3, np.inf, "logg", "merged"), "n_found"] == 1
    assert table.loc[("peculiar", 16e3, 20e3, "fe_h", "merged"), "bias"] == 5
    assert table.loc[("normal", 16e3, 30e3, "chi2_red", "merged"), "median"] == 2

    judged = targets(stars, found).set_index("what")
    assert judged.loc["16-30 kK: Δ Teff", "value"] == pytest.approx(-4)
    assert judged.loc["16-30 kK: Δ log g", ["n", "value"]].tolist() == [3, pytest.approx(0.3)]
    assert judged.loc["standards over 11 kK: Δ [O/H]", "n"] == 4
    assert np.isnan(judged.loc["30-40 kK: Δ Teff", "value"])


def test_pixels_too_coarse_for_any_emulator_are_left_out(library):
    coarse = Spectra(**{**vars(library), "fwhm": 4.2})
    stars = prepare_stars([coarse], read_bibliography())
    seen = windows.observed_wavelength()[stars.ivar[0] > 0]
    # λ/4.2 Å, with 15 % of grace, is 1400 at 5113 Å.
    assert seen.min() == pytest.approx(4.2 * 1400 / 1.15, rel=2e-3)
    with pytest.raises(InputError, match="no star"):
        prepare_stars([], read_bibliography())


def test_the_page_names_its_points(labeled):
    stars, found = labeled
    odd = Stars(stars.table.assign(name=["HD 1", "A & B", "HD 3", "HD 4"]), stars.flux, stars.ivar, stars.lsf)
    both = {"one": found, "other": found}
    summary = {name: summarize(odd.table, labels) for name, labels in both.items()}
    judged = {name: targets(odd.table, labels) for name, labels in both.items()}
    page = accuracy_page(odd.table, both, summary, judged, about={"spectra": 4})
    # Teff, log g, vsini and eight more labels of each star, twice.
    assert page.count("<title>HD 3 (B3V, normal)") == 22
    assert "A &amp; B" in page
    assert "A & B" not in page
    assert page.count("<svg ") == 4
    # Names of the SVG's vocabularies are no addresses that anything is loaded from.
    assert "://" not in page.replace("http://www.w3.org/", "")
    text = "\n".join(accuracy_lines(odd.table, both, summary, judged))
    assert "16-30 kK: Δ Teff [%]" in text
    assert text.count("hydrogen masked") == 2 * summary["one"].drop_duplicates(["teff_low", "teff_high"]).shape[0]


def _write(folder, library):
    for i, name in enumerate(library.name):
        np.savetxt(folder / f"{name}.txt", np.column_stack([library.wavelength, library.flux[i]]))
    table = {"name": library.name, "path": [f"{n}.txt" for n in library.name], "spectral_type": library.spectral_type}
    table |= {"air": False, "resolving_power": 1700, **dict(zip(LABEL_NAMES, library.labels.T, strict=True))}
    pd.DataFrame(table).to_csv(folder / "stars.csv", index=False)


def _run(monkeypatch, *arguments) -> int:
    """The command, in this process, where everything is imported already."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    for name in ("OMP", "OPENBLAS", "MKL"):
        monkeypatch.setenv(f"{name}_NUM_THREADS", "1")
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return end.value.code


def test_the_command_says_that_too_few_stars_show_a_response(tmp_path, library, monkeypatch, capsys):
    _write(tmp_path, library)
    assert _run(monkeypatch, tmp_path / "stars.csv", "--out", tmp_path / "out", "--response") == 0
    assert "too few in any library" in capsys.readouterr().err
    summary = pd.read_csv(tmp_path / "out" / "accuracy.csv")
    assert set(summary["emulator"]) == {"shipped", "shipped, corrected"}


def test_the_command(tmp_path, library, monkeypatch, capsys):
    _write(tmp_path, library)
    out = tmp_path / "out"
    assert _run(monkeypatch, tmp_path / "stars.csv", "--out", out, "--spectrum", "hd0003") == 0
    assert "16-30 kK: Δ Teff [%]" in capsys.readouterr().out
    stars = pd.read_csv(out / "stars.csv")
    assert stars["teff"].to_numpy() == pytest.approx(TRUE[:, 0], rel=5e-3)
    judged = pd.read_csv(out / "targets.csv").set_index("what")
    assert abs(judged.loc["16-30 kK: Δ Teff", "value"]) < 0.5
    summary = pd.read_csv(out / "accuracy.csv")
    assert set(summary["emulator"]) == {"shipped"}
    assert "<title>HD 3 (B3V, normal)" in (out / "accuracy.html").read_text(encoding="utf-8")
    (page,) = (out / "spectra").iterdir()
    assert "HD 3" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["absent"], "library 'absent' does not exist"),
        (["stars.csv", "--spectrum", "HD 99"], "no star of the libraries has that name"),
        (["stars.csv", "--emulator", "absent.safetensors"], "absent.safetensors"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, library, monkeypatch, capsys, arguments, told):
    _write(tmp_path, library)
    monkeypatch.chdir(tmp_path)
    assert _run(monkeypatch, *arguments) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "accuracy").exists()
