"""The report against what an HTML parser, numpy and scipy find in it."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fakes import REASONS, N, Page, fake_catalog, fake_rejects, fake_spectrum, fake_truth
from matplotlib import colors
from PIL import Image
from scipy import stats

from hotdask import schema
from hotdask.errors import RunError
from hotdask.flags import DESCRIPTIONS, Flag
from hotdask.labels import INDEX, LABEL_NAMES, LABELS
from hotdask.report import diagrams, figures, page, spectrum
from hotdask.windows import inside

SECTIONS = ["counts", "sample", "errors", "recovery", "spectra", "rejects", "flags", "throughput", "provenance"]


@pytest.fixture(scope="module")
def catalog() -> pd.DataFrame:
    return fake_catalog()


@pytest.fixture(scope="module")
def truth(catalog) -> pd.DataFrame:
    return fake_truth(catalog)


def fake_bounds(catalog: pd.DataFrame) -> pd.DataFrame:
    """Half of the spectra, in another order, each bound 0.8 of its error."""
    half = catalog.iloc[::-2]
    return half[["specid"]].assign(**{f"{name}_crb": 0.8 * half[f"{name}_err"] for name in LABEL_NAMES})


@pytest.fixture(scope="module")
def html(catalog, truth) -> str:
    return page.build_report(
        catalog=catalog,
        rejects=fake_rejects(),
        provenance={
            "run": "RUN & <b>co</b>",
            "versions": {"hotdask": "0.1.0", "torch": "2.13.0"},
            "emulator": {"id": "3f2a", "card": "Trained on\nsynthe <img src=x>"},
            "seconds": {"ingest": 12.345678, "fit": {"all": 100, "hmasked": 80}},
        },
        spectra=[fake_spectrum(1, "<script>alert(1)</script> & $x_{"), fake_spectrum(2)],
        truth=truth,
        scaling={"pairs": 1650, "mode": "polynomial"},
        reasons=REASONS,
        bounds=fake_bounds(catalog),
        throughput=[page.Throughput("fit", 2000, 10.0, {"normalize": 3.0, "fit all lines": 5.0})],
        site=True,
    )


@pytest.fixture(scope="module")
def spectrum_html() -> str:
    return spectrum.spectrum_page(fake_spectrum(2), home="../")


@pytest.fixture(scope="module")
def parsed(html) -> Page:
    return Page(html)


def test_every_section_stands_in_order_and_the_contents_list_leads_to_it(parsed):
    assert [a["id"] for _, a, _ in parsed.find("section")] == SECTIONS
    targets = [a["href"] for _, a, _ in parsed.find("a")]
    pages = [f"spectra/55859-F5902-01-00{i}.html" for i in (1, 2)]
    assert targets == [*(f"#{s}" for s in SECTIONS), "explorer.html", "method.html", *pages]
    ids = [a["id"] for _, a, _ in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_anywhere(html, parsed, spectrum_html):
    loading = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}
    for tag, attributes, _ in parsed.elements:
        assert tag not in {"script", "iframe", "object", "embed", "form", "base"}
        for name in loading & attributes.keys():
            inner = ("data:", "#", "spectra/", "explorer.html", "method.html")
            assert attributes[name].startswith(inner), (tag, attributes[name][:60])
        assert not any(name.startswith("on") for name in attributes)
    outside_images = re.sub(r"data:image/[^\"]+", "", html)
    assert "://" not in re.sub(r"data:image/[^\"]+", "", spectrum_html)
    assert not re.search(r"https?:|//|url\(|@import", outside_images)


def test_svg_images_point_at_nothing_outside_themselves(parsed):
    sources = [a["src"] for _, a, _ in parsed.find("img")]
    svgs = [base64.b64decode(s.split(",", 1)[1]).decode() for s in sources if s.startswith("data:image/svg")]
    assert len(svgs) >= 8
    for svg in svgs:
        assert "<script" not in svg
        assert "<!DOCTYPE" not in svg
        references = re.findall(r'(?:href|src)="([^"]*)"', svg) + re.findall(r"url\(([^)]*)\)", svg)
        assert references
        assert all(r.startswith("#") for r in references)
        assert set(re.findall(r'https?://[^"]*', svg)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_images_are_what_they_say_and_have_words_and_sizes(parsed):
    images = parsed.find("img")
    # Kiel, S/N, chi2; seven diagrams; eleven errors, repeats in three figures; eleven labels; rejects; kernels.
    assert len(images) == 3 + 7 + 11 + 3 + 11 + 1 + 1
    for _, attributes, _ in images:
        assert len(attributes["alt"]) > 30
        width, height = int(attributes["width"]), int(attributes["height"])
        kind, data = attributes["src"].split(",", 1)
        if kind == "data:image/png;base64":
            with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                assert abs(image.width - 2 * width) <= 2
                assert abs(image.height - 2 * height) <= 2
        else:
            assert kind == "data:image/svg+xml;base64"


def test_counts(parsed, catalog):
    sample = catalog["in_sample"]
    bad = (catalog["flags"] & Flag.BAD_CHI2.value) > 0
    expected = {
        "read": N + 3,
        "rejected": 3,
        "catalog": N,
        "fitted": N,
        "sample": sample.sum(),
        "cut": N - sample.sum(),
        "stars": catalog.loc[sample, "star_id"].nunique(),
        "good": (sample & ~bad).sum(),
    }
    assert {k: parsed.number(id=f"count-{k}") for k in expected} == expected
    assert 0 < expected["cut"] < N


def test_flags_are_counted_and_explained(parsed, catalog):
    for flag in Flag:
        assert parsed.number(data_flag=flag.name) == sum(bool(Flag(b) & flag) for b in catalog["flags"])
        assert DESCRIPTIONS[flag] in parsed.text("section", id="flags")
    assert parsed.number(data_flag="BAD_CHI2") > 0


def test_rejects_are_counted_by_reason_with_its_sentence(parsed):
    assert parsed.number(data_reason="NO_DATA") == 2
    assert parsed.number(data_reason="NOT_FITS") == 1
    text = parsed.text("section", id="rejects")
    assert all(sentence in text for sentence in REASONS.values())
    assert text.index("NO_DATA") < text.index("NOT_FITS")


def test_strings_of_the_user_stay_text(parsed):
    assert parsed.text("tr", id="spectrum-1").startswith("<script>alert(1)</script> & $x_{")
    provenance = parsed.text("section", id="provenance")
    assert "RUN & <b>co</b>" in provenance
    assert "synthe <img src=x>" in provenance
    # A file that is the first of its reason is the example shown; this one carries a tag in its name.
    markup = page.build_report(catalog=fake_catalog(0), rejects=fake_rejects().iloc[2:])
    assert "<script>c.fits: no <b>data</b>" in Page(markup).text("section", id="rejects")


def test_provenance_shows_every_leaf_and_folds_long_texts(parsed):
    rows = {" ".join(" ".join(words).split()) for tag, _, words in parsed.elements if tag == "tr"}
    assert {"hotdask 0.1.0", "fit.all 100", "ingest 12.3457", "pairs 1650", "run RUN & <b>co</b>"} <= rows
    assert [words for _, _, words in parsed.find("pre")] == ["Trained on synthe <img src=x>"]


def test_spectra_show_labels_errors_and_flags(spectrum_html):
    text = Page(spectrum_html).text("section", id="spectrum")
    assert "10 000 ± 87 K" in text
    assert "4.000 ± 0.045" in text
    assert "REFITTED" in text
    assert "OUTSIDE_LIBRARY" in text
    assert "NOT_CONVERGED" not in text


def test_recovery_is_called_a_self_consistency_check(parsed):
    assert "self-consistency" in parsed.text("section", id="recovery")
    assert "same emulator" in parsed.text("section", id="recovery")


@pytest.mark.parametrize("encode", [figures.svg_uri, figures.png_uri])
def test_the_same_input_gives_the_same_image(catalog, encode):
    first, second = (encode(figures.snr_histogram(catalog)) for _ in range(2))
    assert first == second


def test_white_stays_white(catalog):
    data = base64.b64decode(figures.png_uri(figures.kiel_diagram(catalog)).split(",")[1])
    with Image.open(io.BytesIO(data)) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_pages_stay_small(html, spectrum_html):
    assert len(html) < 4e6
    assert len(spectrum_html) < 0.6e6


def test_recovery_table_against_scipy(catalog, truth):
    table = page.recovery_table(catalog, truth)
    assert list(table.index) == list(LABEL_NAMES)
    rows = catalog[catalog["in_sample"] & ((catalog["flags"] & Flag.BAD_CHI2.value) == 0)].set_index("specid")
    true = truth.set_index("specid").loc[rows.index]
    for lb in LABELS:
        difference = rows[lb.name] - true[f"{lb.name}_true"]
        # scipy divides by the exact quantile 0.67449, the paper's 1.4826 is that rounded.
        mad = lambda v: stats.median_abs_deviation(v, scale="normal")  # noqa: E731
        row = table.loc[lb.name]
        assert row["unit"] == lb.unit
        assert row["n"] == len(rows)
        assert row["scatter"] == pytest.approx(mad(difference), rel=1e-4)
        assert row["bias"] == pytest.approx(np.median(difference))
        assert row["crb"] == pytest.approx(np.median(true[f"{lb.name}_crb"]))
        assert row["ratio"] == pytest.approx(mad(difference / true[f"{lb.name}_crb"]), rel=1e-4)
        # The fake truth lies one error off, drawn from a Gaussian: its pull is 1 within the noise of a MAD.
        assert row["pull"] == pytest.approx(1, abs=5 * 1.17 / np.sqrt(len(rows)))
        assert row["ratio"] == pytest.approx(row["pull"] / 0.8)


def test_recovery_table_closed_form_and_who_counts():
    catalog = fake_catalog(8).assign(flags=np.int32(0), in_sample=True)
    truth = fake_truth(catalog).sort_values("specid")
    # Differences -2 … 2 and three that must not count: a bad fit, a row outside the sample, a NaN.
    difference = np.array([-2, -1, 0, 1, 2, 1000, 1000, np.nan])
    catalog["teff"] = truth["teff_true"].to_numpy() + difference
    catalog["teff_err"], truth["teff_crb"] = 0.5, 0.25
    catalog.loc[5, "flags"] = Flag.BAD_CHI2.value | Flag.REFITTED.value
    catalog.loc[6, "in_sample"] = False
    row = page.recovery_table(catalog, truth.iloc[::-1]).loc["teff"]
    assert row["n"] == 5
    assert row["scatter"] == pytest.approx(1.4826)
    assert row["bias"] == pytest.approx(0, abs=1e-9)
    assert row["pull"] == pytest.approx(2 * 1.4826)
    assert row["ratio"] == pytest.approx(4 * 1.4826)


def test_recovery_refuses_a_truth_that_names_a_spectrum_twice(catalog, truth):
    with pytest.raises(RunError, match=truth["specid"].iloc[0]):
        page.recovery_table(catalog, pd.concat([truth, truth.head(1)]))
    with pytest.raises(RunError, match="teff_true"):
        page.recovery_table(catalog, truth.drop(columns="teff_true"))


def test_a_catalog_of_another_version_is_refused(catalog):
    with pytest.raises(RunError, match="chi2ratio"):
        page.build_report(catalog=catalog.drop(columns="chi2ratio"))


def nothing_fitted(n: int) -> pd.DataFrame:
    catalog = fake_catalog(n)
    for column in catalog.columns:
        if column.split("_err")[0].split("_all")[0].split("_hmasked")[0] in LABEL_NAMES:
            catalog[column] = np.nan
    return catalog.assign(chi2_red=np.nan, chi2ratio=np.nan, flags=np.int32(Flag.FEW_PIXELS.value), in_sample=False)


@pytest.mark.parametrize(
    ("frame", "with_truth"),
    [
        (schema.empty_frame(schema.CATALOG), False),
        (schema.empty_frame(schema.CATALOG), True),
        (nothing_fitted(20), True),
        (fake_catalog(2).assign(in_sample=[True, False]), True),
    ],
    ids=["empty", "empty with truth", "nothing fitted", "one star"],
)
def test_poor_catalogs_still_make_a_page(frame, with_truth):
    truth = fake_truth(frame) if with_truth else None
    parsed = Page(page.build_report(catalog=frame, truth=truth))
    assert [a["id"] for _, a, _ in parsed.find("section")] == [s for s in SECTIONS if with_truth or s != "recovery"]
    assert parsed.number(id="count-catalog") == len(frame)
    assert parsed.number(id="count-fitted") == frame["teff"].notna().sum()
    assert "No file was rejected" in parsed.text("section", id="rejects")
    assert "nan" not in parsed.text("main").lower().split()


@pytest.mark.parametrize(
    "frame",
    [nothing_fitted(20).assign(in_sample=True), fake_catalog(40).assign(in_sample=True, snr_g=np.float32(60))],
    ids=["sample without labels", "one S/N"],
)
def test_poor_samples_still_make_figures(frame):
    drawn = [
        figures.kiel_diagram(frame),
        *(d.figure for d in diagrams.survey_diagrams(frame)),
        figures.snr_histogram(frame),
        figures.chi2_distribution(frame),
        diagrams.precision_against_bound(frame, "fe_h"),
        figures.repeat_figure(figures.repeat_pulls(frame)),
        figures.recovered_against_true(page.join_truth(frame, fake_truth(frame)), "logg"),
    ]
    for figure in drawn:
        figure.draw_without_rendering()
    notes = [text.get_text() for figure in drawn for axes in figure.axes for text in axes.texts]
    assert any(notes) == frame["teff"].isna().all()


def test_a_spectrum_that_was_not_fitted_can_be_drawn():
    view = fake_spectrum()
    nothing = np.full(view.wavelength.size, np.nan)
    without = {"model_all": nothing, "model_hmasked": nothing, "ivar": 0 * view.ivar, "used": nothing == 0}
    blank = replace(view, **without, labels={}, errors={}, chi2_red=np.nan)
    text = Page(spectrum.spectrum_page(blank)).text("section", id="spectrum")
    assert "0 pixels fitted" in text
    assert "nan" not in text.lower()


def shown(axes):
    return {line.get_label(): line for line in axes.lines}


def test_spectrum_figure_draws_the_data_it_was_given():
    view = fake_spectrum(3)
    figure = figures.spectrum_figure(
        view.wavelength, view.flux, view.ivar, view.model_all, view.model_hmasked, view.used
    )
    upper = [axes for axes in figure.axes if axes.get_ylabel() == "normalized flux"]
    lower = [axes for axes in figure.axes if axes.get_ylabel() == "Δ/σ"]
    assert len(upper) == len(lower) == 3
    seen = np.zeros(view.wavelength.size, bool)
    for above, below, (low, high) in zip(upper, lower, figures.PANELS, strict=True):
        assert above.get_xlim() == (low, high)
        here = (view.wavelength >= low) & (view.wavelength <= high)
        seen |= here
        lines = shown(above)
        np.testing.assert_array_equal(lines["fit to all lines"].get_ydata(), view.model_all[here])
        np.testing.assert_array_equal(lines["fit with hydrogen masked"].get_ydata(), view.model_hmasked[here])
        fitted = lines["data, fitted"].get_ydata()
        np.testing.assert_array_equal(np.isfinite(fitted), view.used[here])
        expected = ((view.flux - view.model_all) * np.sqrt(view.ivar))[here & view.used]
        drawn = below.lines[-1].get_ydata()
        np.testing.assert_allclose(drawn[np.isfinite(drawn)], expected, rtol=1e-5, atol=1e-5)
    assert seen.all()
    names = {text.get_text() for axes in upper for text in axes.texts}
    assert {"Hα", "Hβ", "dichroic", "O2 A", "H2O", "DIB 4428", "Na D", "Ca II K", "Mg II", "Paschen series"} <= names


def test_shaded_windows_are_the_masks_in_vacuum():
    view = fake_spectrum()
    arrays = (view.wavelength, view.flux, view.ivar, view.model_all, view.model_hmasked, view.used)
    windows = figures.windows
    as_ranges = [(w.low, w.high) for w in windows.FIT_MASK]
    for mask in (windows.FIT_MASK, as_ranges):
        figure = figures.spectrum_figure(*arrays, mask=mask, hydrogen=())
        shaded = np.zeros(view.wavelength.size, bool)
        for axes in figure.axes:
            for patch in axes.patches:
                assert colors.to_hex(patch.get_facecolor()) == "#808080"
                box = patch.get_extents().transformed(axes.transData.inverted())
                shaded |= (view.wavelength > box.x0) & (view.wavelength < box.x1)
        np.testing.assert_array_equal(shaded, inside(view.wavelength, windows.FIT_MASK))
    # Names come from hotdask.windows for bare ranges too; an unknown range is only "masked".
    names = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert "dichroic" in names
    own = figures.spectrum_figure(*arrays, mask=[(5000.0, 5100.0)], hydrogen=())
    assert "masked" in {text.get_text() for axes in own.axes for text in axes.texts}


@pytest.mark.parametrize("limit", [10**9, 10], ids=["points", "cells"])
def test_kiel_diagram_is_the_right_way_round_and_holds_the_sample(catalog, monkeypatch, limit):
    monkeypatch.setattr(figures, "HEXBIN_ABOVE", limit)
    axes = figures.kiel_diagram(catalog).axes[0]
    assert axes.xaxis_inverted()
    assert axes.yaxis_inverted()
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "$T_{\\rm eff}$  [K]"
    sample = catalog[catalog["in_sample"]]
    values = axes.collections[0].get_array()
    if limit == 10:
        assert values.size < 60 * 44 * 2.5
        assert values.min() >= sample["fe_h"].min()
    else:
        np.testing.assert_allclose(np.sort(values), np.sort(sample["fe_h"]))


def test_histograms_count_every_spectrum(catalog):
    (axes,) = figures.snr_histogram(catalog).axes
    bars = [p for p in axes.patches if hasattr(p, "get_height")]
    assert sum(p.get_height() for p in bars) == N
    sample = catalog[catalog["in_sample"]]
    for axes in figures.chi2_distribution(catalog).axes:
        assert sum(p.get_height() for p in axes.patches) == len(sample)
    title = figures.chi2_distribution(catalog).axes[1].get_title(loc="right")
    assert title == f"limit 10: {(sample['chi2ratio'] > 10).sum()} above"


@pytest.mark.parametrize("name", LABEL_NAMES)
def test_axes_name_symbol_and_unit(catalog, truth, name):
    merged = page.join_truth(catalog, truth)
    axes = figures.recovered_against_true(merged.head(400), name).axes[0]
    label = LABELS[INDEX[name]]
    assert label.symbol in axes.get_ylabel()
    if label.unit:
        assert f"[{figures.pretty_unit(label.unit)}]" in axes.get_ylabel()
    difference = (merged[name] - merged[f"{name}_true"]).head(400)
    scatter = stats.median_abs_deviation(difference, scale="normal")
    assert float(re.match(r"scatter ([\d.]+)", axes.get_title(loc="left"))[1]) == pytest.approx(scatter, rel=6e-3)


def test_errors_stand_beside_the_bounds_of_the_same_spectra(catalog, parsed):
    clean = diagrams.clean(catalog, ["snr_g", "teff_err"])
    bounded = page._bounded(catalog, fake_bounds(catalog))
    assert set(bounded["specid"]) == set(clean["specid"]) & set(catalog.iloc[::-2]["specid"])
    assert f"Cramér-Rao bound (Eq 3) of {len(bounded):,}".replace(",", " ") in parsed.text("section", id="errors")
    assert "An error is 1.25 times its bound (median)." in parsed.text("section", id="errors")
    snr, bound = bounded["snr_g"].to_numpy(float), bounded["logg_crb"].to_numpy(float)
    error, line = diagrams.precision_against_bound(catalog, "logg", snr, bound).axes[0].lines
    expected = figures.running_quantiles(snr, bound)
    np.testing.assert_array_equal(line.get_xdata(), expected[0])
    np.testing.assert_array_equal(line.get_ydata(), expected[1][1])
    assert (np.interp(line.get_xdata(), error.get_xdata(), error.get_ydata()) > line.get_ydata()).all()


def test_running_quantiles_follow_a_known_line():
    rng = np.random.default_rng(4)
    x = rng.uniform(0, 10, 60_000)
    center, quantiles = figures.running_quantiles(x, 3 * x + rng.standard_normal(x.size), bins=200)
    # Bins are 0.05 wide: the slope adds 0.15/√12 to the unit Gaussian.
    np.testing.assert_allclose(quantiles[1], 3 * center, atol=0.4)
    assert np.mean(quantiles[1] - 3 * center) == pytest.approx(0, abs=0.02)
    assert np.mean(quantiles[2] - quantiles[0]) / 2 == pytest.approx(stats.norm.ppf(0.84), abs=0.02)
    assert figures.running_quantiles(x[:5], x[:5])[0].size == 0


def test_repeat_pulls_have_unit_width_where_the_errors_are_right():
    rng = np.random.default_rng(5)
    catalog = fake_catalog(6000).assign(in_sample=True, snr_g=np.float32(60))
    for lb in LABELS:
        sigma = catalog[f"{lb.name}_err"].to_numpy()
        catalog[lb.name] = lb.start + sigma * rng.standard_normal(len(catalog))
    pulls = figures.repeat_pulls(catalog.sample(frac=1, random_state=1))
    assert len(pulls) == 3000
    for lb in LABELS:
        assert figures.robust_scatter(pulls[lb.name]) == pytest.approx(1, abs=5 * 1.17 / np.sqrt(3000))
    # One night, unlike S/N, or one visit a star: no pair.
    assert figures.repeat_pulls(catalog.assign(mjd=np.int32(1))).empty
    unlike = np.where(catalog["uniqflag"] == 1, 100, 79).astype("float32")
    assert figures.repeat_pulls(catalog.assign(snr_g=unlike)).empty
    assert len(figures.repeat_pulls(catalog.assign(snr_g=unlike), snr_tolerance=0.24)) == 3000
    assert figures.repeat_pulls(catalog.assign(star_id=catalog["specid"])).empty


def test_names_never_overlap_in_a_row():
    rng = np.random.default_rng(6)
    centers, widths = np.sort(rng.uniform(0, 500, 60)), rng.uniform(5, 40, 60)
    rows = figures._rows_without_overlap(centers, widths, rows=3)
    for row in range(3):
        chosen = [i for i, r in enumerate(rows) if r == row]
        right = centers[chosen] + widths[chosen] / 2
        left = centers[chosen] - widths[chosen] / 2
        assert (left[1:] >= right[:-1]).all()
    assert rows.count(0) > 5
