"""The information page: what its figures draw, and that the page says what the numbers do."""

import re
from dataclasses import replace

import numpy as np
import pytest

from hotdask import windows
from hotdask.labels import INDEX, LABEL_NAMES, N_LABELS
from hotdask.report.information import (
    REASONS,
    SCALES,
    against_teff_figure,
    bound_figure,
    correlation_figure,
    gradient_figure,
    information_page,
    region_figure,
    strongest,
    teff_gradient_figure,
)
from hotdask.steps import information

WAVELENGTH = windows.rest_wavelength()


def star(name: str, labels, seed: int) -> information.Information:
    rng = np.random.default_rng(seed)
    gradient = 1e-2 * rng.normal(size=(N_LABELS, windows.N_REST))
    gradient[INDEX["teff"]] *= 1e-4
    ivar = np.full(windows.N_REST, 1e4)
    mask = windows.FIT_MASK
    return information.Information(
        name,
        np.array(labels),
        100.0,
        1 + 0.01 * rng.normal(size=windows.N_REST),
        ivar,
        gradient,
        information.bound_from_gradients(gradient, ivar),
        information.bound_from_gradients(gradient, ivar, mask=(*mask, *windows.HYDROGEN)),
    )


@pytest.fixture(scope="module")
def content() -> dict:
    stars = [star("B star", information.B_STAR, 1), star("A star", information.A_STAR, 2)]
    teff = np.geomspace(8000, 25000, 9)
    return {
        "stars": stars,
        "shares": [information.information_by_region(s.gradient, s.ivar) for s in stars],
        "regions": information.REGIONS,
        "against_teff": {
            "all lines": (teff, teff[:, None] * np.arange(1, 12)),
            "hydrogen masked": (teff, np.ones((9, 11))),
        },
        "teff_gradients": {9000.0: stars[0].gradient[0], 10000.0: stars[1].gradient[0]},
        "anchors": information.anchor_table(*stars),
        "about": {"S/N curve": "<flat & plain>"},
    }


@pytest.fixture(scope="module")
def page(content) -> str:
    return information_page(**content)


def test_page_needs_nothing_else(page):
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert "<script" not in page
    assert "&lt;flat &amp; plain&gt;" in page
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert page.count(f'id="{anchor}"') == 1
    assert all(re.findall(r'<img [^>]*alt="([^"]*)"', page))


def test_page_says_the_numbers(content, page):
    b_star = content["stars"][0]
    cells = re.findall(r"<td class=\"n\">([^<]*)</td>", page.split('id="star-1"')[1].split("</table>")[0])
    assert len(cells) == 4 * N_LABELS
    said = np.array([float(c.replace("\u2009", "").replace("−", "-")) for c in cells]).reshape(N_LABELS, 4)
    np.testing.assert_allclose(said[:, 0], b_star.labels, rtol=5e-3)
    np.testing.assert_allclose(said[:, 1], np.sqrt(np.diag(b_star.covariance)), rtol=5e-3)
    np.testing.assert_allclose(said[:, 2], np.sqrt(np.diag(b_star.masked)), rtol=5e-3)
    used = ~windows.inside(WAVELENGTH, windows.FIT_MASK)
    alone = 1 / np.sqrt((1e4 * b_star.gradient[:, used] ** 2).sum(axis=1))
    np.testing.assert_allclose(said[:, 3], alone, rtol=5e-3)


@pytest.fixture(scope="module")
def full_page(content) -> str:
    """With an emulator beside the engine, warnings and reasons, and an A star silent about two labels."""
    b_star, s = content["stars"]
    gradient = s.gradient.copy()
    gradient[[INDEX["n_h"], INDEX["vmic"]]] = 0
    covariance = information.bound_from_gradients(gradient, s.ivar)
    stars = [b_star, replace(s, gradient=gradient, covariance=covariance, masked=covariance)]
    emulated = [1.1 * s.gradient for s in stars]
    return information_page(
        **content | {"stars": stars, "shares": [information.information_by_region(s.gradient, s.ivar) for s in stars]},
        emulated=emulated,
        checks=[information.compare_gradients(e, s.gradient) for e, s in zip(emulated, stars, strict=True)],
        notes=["", "Beware <this>."],
        explain=True,
    )


def section(page: str, name: str) -> str:
    return page.split(f'<section id="{name}">')[1].split("</section>")[0]


def test_page_with_a_check(full_page):
    cells = re.findall(r"<td class=\"n\">([^<]*)</td>", section(full_page, "star-1").split("</table>")[0])
    assert np.reshape(cells, (N_LABELS, 7))[:, 6].tolist() == ["1.10"] * N_LABELS
    assert "engine black, emulator red" in full_page


def test_reasons_stand_where_they_are_asked_for(page, full_page):
    paper = section(full_page, "paper")
    assert paper.index("LTE engine, version 0.1") < paper.index(REASONS[0])
    assert all(full_page.count(sentence) == 1 for sentence in REASONS)
    # Unasked, they would be read as this page's own.
    assert "version 0.1" not in page
    assert not any(sentence in page for sentence in REASONS)


def test_warnings_stand_with_their_star(full_page):
    assert "Beware &lt;this&gt;." in section(full_page, "star-2")
    assert "warning" not in section(full_page, "star-1")


def test_labels_the_spectrum_does_not_answer_to(full_page):
    # Warnings are errors, so no infinity has reached an axis.
    silent = section(full_page, "star-2")
    alt = re.search(r'alt="(Growth of each label’s error[^"]*)"', silent)[1]
    assert "teff " in alt
    assert "n_h " not in alt
    assert "nan" not in silent.split("</table>")[0]


def test_strongest_are_named_in_order():
    covariance = np.eye(N_LABELS)
    for other, value in ((1, 0.4), (2, -0.6), (3, 0.2)):
        covariance[0, other] = covariance[other, 0] = value
    assert strongest(covariance)[0] == [("vmic", -0.6), ("logg", 0.4)]
    covariance[5] = covariance[:, 5] = np.nan
    covariance[5, 5] = np.inf
    assert strongest(covariance)[5] == []


def test_gradients_are_drawn_in_the_papers_scale(content):
    s = content["stars"][0]
    figure = gradient_figure(s.gradient, s.flux, 2 * s.gradient)
    assert len(figure.axes) == N_LABELS + 1
    for name in LABEL_NAMES:
        lines = figure.axes[1 + INDEX[name]].lines
        scale = 100 * SCALES.get(name, (1.0,))[0]
        np.testing.assert_allclose(lines[-2].get_ydata(), scale * s.gradient[INDEX[name]])
        np.testing.assert_allclose(lines[-1].get_ydata(), 2 * scale * s.gradient[INDEX[name]])


def test_temperatures_share_an_axis(content):
    other = {10000.0: 2 * content["stars"][1].gradient[0]}
    figure = teff_gradient_figure(content["teff_gradients"], other)
    np.testing.assert_allclose(figure.axes[1].lines[-2].get_ydata(), 1e5 * other[10000.0])
    assert len(figure.axes[0].lines) == len(figure.axes[1].lines) - 1
    assert len({a.get_ylim() for a in figure.axes}) == 1
    np.testing.assert_allclose(figure.axes[1].lines[-1].get_ydata(), 1e5 * content["stars"][1].gradient[0])


def test_bounds_are_drawn_with_the_papers():
    sigma = np.arange(1.0, 12.0)
    figure = bound_figure({"all lines": sigma}, {"teff": 300.0, "vsini": 8.0})
    ours, paper = figure.axes[0].lines
    np.testing.assert_allclose(ours.get_xdata(), [1e-3, *sigma[1:]])
    np.testing.assert_allclose(paper.get_xdata(), [0.3, 8])
    np.testing.assert_array_equal(paper.get_ydata(), [INDEX["teff"], INDEX["vsini"]])


def test_every_pair_is_in_the_matrix_once():
    rng = np.random.default_rng(0)
    correlation = np.corrcoef(rng.normal(size=(N_LABELS, 40)))
    texts = [t.get_text() for t in correlation_figure(correlation).axes[0].texts]
    assert len(texts) == N_LABELS * (N_LABELS - 1) // 2
    assert texts[0] == f"{correlation[1, 0]:.2f}".replace("-", "−").replace("0.", ".", 1)


def test_regions_say_percent(content):
    share = np.zeros((N_LABELS, len(information.REGIONS)))
    share[2, 3], share[4, 5] = 0.25, np.inf
    figure = region_figure(share, [r.name for r in information.REGIONS])
    assert {t.get_text(): t.get_position() for t in figure.axes[0].texts} == {"25": (3, 2), "all": (5, 4)}


def test_bounds_against_temperature(content):
    figure = against_teff_figure(content["against_teff"])
    assert len(figure.axes) == N_LABELS
    teff = content["against_teff"]["all lines"][0]
    for i, axes in enumerate(figure.axes):
        np.testing.assert_allclose(axes.lines[0].get_ydata(), teff * (i + 1))
