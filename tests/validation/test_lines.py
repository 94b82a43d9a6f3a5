"""Strengths of named lines: Gaussians of known area, line spreads in closed form, and real stars."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from hotdask import windows
from hotdask.emulator.broadening import lsf_sigma, mean_lsf
from hotdask.library.spectra import Synthesis
from hotdask.library.synthesis import sample_wavelength
from hotdask.validation.lines import LINES, RESOLVING_POWERS, NamedLine, compare_lines, line_strengths, seen, smear
from hotdask.windows import air_to_vacuum, rest_wavelength

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "line_diagnosis"
CARBON = next(line for line in LINES if line.name == "C II 4267")
ONE = [CARBON]


def gaussian(wavelength, center, depth, sigma):
    return 1 - depth * np.exp(-0.5 * ((wavelength - center) / sigma) ** 2)


def test_the_table_is_in_order():
    assert len({line.name for line in LINES}) == len(LINES)
    for line in LINES:
        assert line.blue[0] < line.blue[1] <= line.low < line.center < line.high <= line.red[0] + 1.0
        assert line.red[0] < line.red[1]


@pytest.mark.parametrize("slope", [0.0, 3e-3, -3e-3])
@pytest.mark.parametrize("scale", [1.0, 4e-14])
def test_width_and_depth_of_a_gaussian_on_any_slope(slope, scale):
    wavelength = np.arange(4200.0, 4350.0, 0.3)
    center = air_to_vacuum(CARBON.center)
    continuum = scale * (1 + slope * (wavelength - 4280))
    made = line_strengths(wavelength, continuum * gaussian(wavelength, center, 0.1, 1.1), ONE)
    assert made.width[0] == pytest.approx(0.1 * 1.1 * np.sqrt(2 * np.pi), rel=5e-3)
    assert made.depth[0] == pytest.approx(0.1, rel=0.01)


def test_emission_is_negative():
    wavelength = np.arange(4200.0, 4350.0, 0.3)
    made = line_strengths(wavelength, gaussian(wavelength, air_to_vacuum(CARBON.center), -0.1, 1.1), ONE)
    assert made.width[0] < -0.2


def test_a_shift_of_the_star_does_not_change_the_depth():
    wavelength = np.arange(4200.0, 4350.0, 0.1)
    center = air_to_vacuum(CARBON.center) * (1 + 40 / windows.SPEED_OF_LIGHT)
    made = line_strengths(wavelength, gaussian(wavelength, center, 0.1, 1.1), ONE)
    assert made.depth[0] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("span", [(4262.0, 4350.0), (4200.0, 4273.0), (5000.0, 5100.0), (4265.0, 4269.0)])
def test_a_line_that_is_not_covered_is_nan(span):
    wavelength = np.arange(*span, 0.3)
    made = line_strengths(wavelength, np.ones(len(wavelength)), ONE)
    assert np.isnan([made.width[0], made.depth[0]]).all()


@pytest.mark.parametrize("center", [4500.0, 6500.0])
def test_smearing_adds_variances_and_keeps_areas(center):
    wavelength = np.arange(center - 80, center + 80, 0.9)
    out = smear(wavelength, gaussian(wavelength, center, 0.3, 2.5 / 2.3548), 2.5)
    rest = rest_wavelength()
    good = np.isfinite(out)
    assert rest[good][0] > wavelength[0]
    assert rest[good][-1] < wavelength[-1]
    target = float(lsf_sigma(np.array([center]), mean_lsf(*RESOLVING_POWERS))[0])
    # Its line spread changes over the line by less than what is asked here.
    expected = gaussian(rest, center, 0.3 * 2.5 / 2.3548 / target, target)
    assert np.abs(out - expected)[good].max() < 2e-3


def test_what_was_not_observed_stays_unknown():
    wavelength = np.arange(4400.0, 4600.0, 0.9)
    flux = gaussian(wavelength, 4500.0, 0.3, 1.2)
    whole = smear(wavelength, flux, 2.5)
    lost = np.where(np.abs(wavelength - 4550) < 5, np.nan, flux)
    made = smear(wavelength, lost, 2.5)
    rest = rest_wavelength()
    assert np.isnan(made[np.abs(rest - 4550) < 4.5]).all()
    kept = (np.abs(rest - 4550) > 6) & np.isfinite(whole)
    np.testing.assert_allclose(made[kept], whole[kept], atol=1e-5)


def test_a_line_spread_wider_than_asked_for_stays():
    wavelength = np.arange(4400.0, 4600.0, 0.9)
    flux = gaussian(wavelength, 4500.0, 0.3, 3.0)
    out = smear(wavelength, flux, 7.1)
    good = np.isfinite(out)
    np.testing.assert_allclose(out[good], gaussian(rest_wavelength()[good], 4500.0, 0.3, 3.0), atol=1e-4)


def line_spectrum():
    """A synthesis of narrow lines at the centers of the table."""
    wavelength = sample_wavelength()
    flux = np.ones(len(wavelength))
    for line in LINES:
        flux *= gaussian(wavelength, air_to_vacuum(line.center), 0.5, 0.5)
    return Synthesis(wavelength, flux, np.ones(len(wavelength)))


def test_star_and_synthesis_meet_at_one_line_spread():
    """The same spectrum by way of a spectrograph like that of MILES, and by way of the emulator's broadening."""
    made = line_spectrum()
    pixels = np.arange(3730.0, 7500.0, 0.9)
    sigma = 2.5 / 2.3548
    near = [np.searchsorted(made.wavelength, p + 6 * sigma * np.array([-1, 1])) for p in pixels]
    kernel = [np.exp(-0.5 * ((made.wavelength[a:b] - p) / sigma) ** 2) for p, (a, b) in zip(pixels, near, strict=True)]
    recorded = np.array([k @ made.flux[a:b] / k.sum() for k, (a, b) in zip(kernel, near, strict=True)])
    observed = smear(pixels, recorded, 2.5)
    synthetic = seen(made, 0.0)
    good = np.isfinite(observed)
    assert good.sum() > 2900
    assert np.abs(observed - synthetic)[good].max() < 3e-3
    table = compare_lines(observed, synthetic)
    measured = table.dropna()
    assert len(measured) > 25
    np.testing.assert_allclose(measured["width"], measured["width_model"], atol=0.02)


def test_rotation_keeps_areas_and_fills_cores():
    still, fast = (seen(line_spectrum(), vsini) for vsini in (0.0, 150.0))
    table = compare_lines(still, fast, ONE)
    assert table["width_model"][0] == pytest.approx(table["width"][0], rel=0.05)
    assert table["depth_model"][0] < 0.85 * table["depth"][0]


def test_depths_below_the_smoothed_spectrum_do_not_care_for_units_or_slopes():
    rest = rest_wavelength()
    flux = seen(line_spectrum(), 0.0)
    sloped = 3e-15 * (rest / 5000) ** -3
    table = compare_lines(flux, flux * sloped, smooth=True)
    np.testing.assert_allclose(table["depth"], table["depth_model"], atol=2e-3)
    # A narrow line hardly lowers its own continuum, so that both definitions agree.
    local = compare_lines(flux, flux, ONE)
    assert table["depth"][LINES.index(CARBON)] == pytest.approx(local["depth"][0], abs=0.01)


def test_what_was_not_observed_is_measured_in_neither():
    flux = seen(line_spectrum(), 0.0)
    observed = np.where(rest_wavelength() > 4500, flux, np.nan)
    for smooth in (False, True):
        table = compare_lines(observed, flux, smooth=smooth).set_index("line")
        assert table.loc["C II 4267"].isna().all()
        assert table.loc["He I 4713"].notna().all()


def test_lines_of_ones_own():
    line = NamedLine("gap", 5500.0, 5495, 5505, (5480, 5490), (5510, 5520))
    table = compare_lines(np.ones(windows.N_REST), np.ones(windows.N_REST), [line])
    assert table["line"].tolist() == ["gap"]
    np.testing.assert_allclose(table[["width", "depth"]], 0, atol=1e-12)


def stars_and_settings(synthesis, tmp_path):
    stars = synthesis.parent / "data" / "reference_stars" / "miles_hot.npz"
    if not stars.exists():
        pytest.skip("needs MILES spectra of ../shared/data/reference_stars, which are not part of the project")
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'out = "none.zarr"\n[engine]\nkind = "hotdask"\natmospheres = "{synthesis / "atlas9_hot.npz"}"\n'
        f'lines = "{synthesis / "lines_hot.npz"}"\n'
    )
    return stars, settings


def run_script(monkeypatch, *arguments):
    """Exit code of the script, in this process: a new one would spend most of its time on imports."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    return runpy.run_path(str(SCRIPT))["main"]()


def test_the_script_on_a_real_star(synthesis, tmp_path, monkeypatch, capsys):
    """ι Her: helium of a B3 star, whose lines no spectrograph makes deeper than a few tenths."""
    stars, settings = stars_and_settings(synthesis, tmp_path)
    assert run_script(monkeypatch, stars, settings, "HD 160762: teff=17500 logg=3.8 vmic=1 vsini=6") == 0
    printed = capsys.readouterr().out.splitlines()
    rows = {row[:30].strip(): [float(x) for x in row[30:].split()] for row in printed[2:] if row}
    assert set(rows) == {line.name for line in LINES}
    width, model, depth, _, ratio = rows["He I 4471"]
    assert 1.0 < width < 1.5
    assert 0.2 < depth < 0.3
    assert ratio == pytest.approx(model / width, abs=0.01)
    assert rows["Hγ"][0] == pytest.approx(rows["Hγ"][1], rel=0.15)


@pytest.mark.parametrize(
    ("star", "message"),
    [
        ("HD 160762: teff=17500", "logg missing"),
        ("HD 160762: teff=17500 logg=3.8 mass=7", "'mass=7' is no label=value"),
        ("HD 1: teff=17500 logg=3.8", "no star 'HD 1'"),
    ],
)
def test_the_script_says_what_is_wrong(synthesis, tmp_path, monkeypatch, capsys, star, message):
    assert run_script(monkeypatch, *stars_and_settings(synthesis, tmp_path), star) == 2
    assert message in capsys.readouterr().err
