"""A library's response: a feature that all its spectra share is found in A stars and taken out of the others."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hotdask import windows
from hotdask.emulator import load_emulator
from hotdask.emulator.broadening import mean_lsf
from hotdask.labels import LABEL_NAMES
from hotdask.simulation.visits import emergent
from hotdask.spectra.normalize import Normalizer
from hotdask.steps.label import Labeler
from hotdask.validation.accuracy import SNR, Stars, label_stars
from hotdask.validation.response import FEWEST, take_out_response

STANDARD = [9000.0, 3.9, 2.5, 60, 0.09, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1]
HOT = [18500.0, 3.9, 3.0, 40, 0.09, -0.2, -0.2, -0.2, -0.1, -0.1, -0.2]


@pytest.fixture(scope="module")
def labeler():
    return Labeler(load_emulator())


@pytest.fixture(scope="module")
def stars(labeler):
    """Twelve A stars and a B star of a library with bumps of 1.5 % at Balmer lines, and two stars of another one."""
    labels = np.array([STANDARD] * 12 + [HOT] + [STANDARD, HOT])
    labels[:12, 0] += np.linspace(-500, 500, 12)
    lsf = np.tile(mean_lsf(1700, 1700), (len(labels), 1))
    rest = emergent(labeler.model.flux(labels, lsf), labels[:, 0], Normalizer(windows.rest_wavelength()))
    for line in (4862, 4341, 4103):
        rest[:13] *= 1 + 0.015 * np.exp(-0.5 * ((windows.rest_wavelength() - line) / 20) ** 2)
    flux = np.ones((len(labels), windows.N_OBSERVED))
    inner = slice(windows.REST_OFFSET, windows.REST_OFFSET + windows.N_REST)
    flux[:, inner] = rest / np.median(rest, axis=1, keepdims=True)
    ivar = np.zeros_like(flux)
    ivar[:, inner] = SNR**2
    table = pd.DataFrame({f"{name}_ref": labels[:, i] for i, name in enumerate(LABEL_NAMES)})
    table["library"], table["kind"] = ["large"] * 13 + ["small"] * 2, "normal"
    return Stars(table, flux.astype(np.float32), ivar.astype(np.float32), lsf)


def test_bumps_at_balmer_lines_are_seen_in_a_stars_and_no_longer_lower_log_g_of_a_b_star(labeler, stars):
    before = label_stars(stars, labeler)
    corrected, used = take_out_response(stars, labeler, before)
    assert used == {"large": 12}
    after = label_stars(corrected, labeler)
    off = (before["logg"] - stars.table["logg_ref"])[12], (after["logg"] - stars.table["logg_ref"])[12]
    assert off[0] < -0.03
    assert abs(off[1]) < 0.5 * abs(off[0])
    grid = windows.observed_wavelength()
    found = stars.flux[12] / corrected.flux[12] - 1
    # What other labels of the standards take of it is lost.
    assert 0.009 < np.interp(4862, grid, found) < 0.016
    assert np.abs(found[(grid > 4450) & (grid < 4750)]).max() < 0.001


def test_libraries_with_few_standards_are_left_alone(labeler, stars):
    found = label_stars(stars, labeler)
    corrected, _ = take_out_response(stars, labeler, found)
    assert (corrected.flux[13:] == stars.flux[13:]).all()
    few = replace(stars, table=stars.table.assign(kind=["normal"] * (FEWEST - 1) + ["peculiar"] * (16 - FEWEST)))
    assert take_out_response(few, labeler, found)[1] == {}
