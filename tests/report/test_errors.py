"""Figures of errors: the drawn numbers against the scatter they were simulated with."""

import numpy as np
import pandas as pd
import pytest

from hotdask import schema
from hotdask.errors import RunError
from hotdask.labels import LABEL_NAMES
from hotdask.report.errors import HOT, chi2_ridge, repeat_differences, repeat_precision
from hotdask.steps.flag import chi2_statistics, fit_chi2_model
from hotdask.steps.polynomial import assign_cells


def make_catalog(n_star: int, seed: int = 1) -> pd.DataFrame:
    """Visits in pairs, whose labels scatter by 30/S/N around 1, and errors that say so."""
    rng = np.random.default_rng(seed)
    star = np.repeat(np.arange(n_star), 2)
    snr = 10 ** rng.uniform(1, 2.5, n_star)[star]
    frame = schema.empty_frame(schema.CATALOG).reindex(range(2 * n_star))
    for name in LABEL_NAMES:
        frame[name], frame[f"{name}_err"] = 1 + rng.normal(size=star.size) * 30 / snr, 30 / snr
    visit = np.arange(star.size) % 2
    return frame.assign(
        star_id=star.astype(str), uniqflag=visit + 1, mjd=visit, snr_g=snr, in_sample=True, chi2ratio=0.0
    )


def test_scatter_of_repeats_lies_on_the_errors():
    figure = repeat_precision(make_catalog(20_000))
    for name, axes in zip(LABEL_NAMES, figure.axes, strict=False):
        error, scatter = axes.lines
        np.testing.assert_allclose(scatter.get_ydata(), error.get_ydata(), rtol=0.15, err_msg=name)
        np.testing.assert_allclose(error.get_ydata() * error.get_xdata(), 30, rtol=0.05)


def test_differences_of_repeats_have_the_scatter_put_in():
    catalog = make_catalog(8000)
    # Teff scatters by 1 around 1 at S/N 30: as kelvins above the limit, the others as they are.
    figure = repeat_differences(catalog.assign(teff=catalog["teff"] + HOT + 100))
    for name, axes in zip(LABEL_NAMES, figure.axes, strict=True):
        middle, low, high = (line.get_ydata() for line in axes.lines)
        snr = axes.lines[0].get_xdata()
        np.testing.assert_allclose((high - low) / 2, np.sqrt(2) * 30 / snr, rtol=0.25, err_msg=name)
        assert np.abs(middle * snr / 30).max() < 0.3
        below, between, above = map(float, axes.get_title(loc="right").split(" | "))
        assert below > between > above
        assert between == np.clip(between, 0.35, 0.5)
    cool = repeat_differences(catalog.assign(teff=HOT - 100))
    assert {t.get_text() for axes in cool.axes for t in axes.texts} == {"too few pairs"}


def test_only_different_nights_and_similar_visits_make_pairs():
    catalog = make_catalog(500)
    lone = {"mjd": 0}, {"snr_g": catalog["snr_g"] * np.where(catalog["uniqflag"] == 1, 1.3, 1)}, {"in_sample": False}
    for change in lone:
        figure = repeat_precision(catalog.assign(**change))
        assert [t.get_text() for t in figure.axes[0].texts] == ["too few pairs"]
    with pytest.raises(RunError, match="teff_err"):
        repeat_precision(catalog.drop(columns="teff_err"))


def test_bad_fits_are_marked():
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"teff": 9000.0, "snr_g": 10 ** rng.uniform(1, 2.5, 3000)})
    frame["chi2_red"] = 1 + 0.03 * rng.normal(size=3000)
    frame.loc[:9, "chi2_red"] = 3.0
    frame["cell"] = assign_cells(frame["teff"], frame["snr_g"])
    model = fit_chi2_model(chi2_statistics(frame))
    frame["chi2ratio"] = model.ratio(frame["teff"], frame["snr_g"], frame["chi2_red"])
    good, bad, median, limit = chi2_ridge(frame, model).axes[0].lines
    assert (len(good.get_xdata()), len(bad.get_xdata())) == (2990, 10)
    np.testing.assert_allclose(median.get_ydata(), 1, atol=0.02)
    np.testing.assert_allclose(limit.get_ydata(), 1.3, atol=0.1)
