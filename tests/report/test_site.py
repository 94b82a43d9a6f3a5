"""The method page, the explorer and the files of single spectra."""

import importlib
import re

import numpy as np
import pytest
from fakes import Page, fake_catalog, fake_spectrum
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from hotdask.report.explorer import explorer_page, explorer_rows
from hotdask.report.method import STEPS, formula_figure, method_page
from hotdask.report.render import save_figure
from hotdask.report.spectrum import draw_spectrum, labels_text, page_address, page_name


@pytest.mark.parametrize("name", sorted({name for step in STEPS for name in step.functions}))
def test_every_function_the_method_names_exists(name):
    parts = name.split(".")
    module = (
        next(n for n in range(len(parts) - 1, 0, -1) if importlib.util.find_spec(".".join(parts[:n])) is not None)
        if len(parts) <= 4
        else len(parts) - 2
    )
    found = importlib.import_module(".".join(parts[:module]))
    for part in parts[module:]:
        found = getattr(found, part)
    assert callable(found)
    assert found.__doc__


def test_the_method_has_all_equations_of_the_paper():
    numbers = set()
    for step in STEPS:
        for first, last in re.findall(r"Eqs? (\d)(?:–(\d))?", step.source):
            numbers |= set(range(int(first), int(last or first) + 1))
    assert numbers == set(range(1, 9))
    parsed = Page(method_page())
    assert len(parsed.find("section")) == len(STEPS)
    assert len(parsed.find("img")) == sum(bool(step.formulas) for step in STEPS)


@pytest.mark.parametrize("step", [step for step in STEPS if step.formulas], ids=lambda step: step.title)
def test_no_formula_is_cut(step):
    """What is drawn leaves the border of the picture white."""
    figure = formula_figure(step.formulas)
    figure.set_dpi(96)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    ink = np.asarray(canvas.buffer_rgba())[..., :3].min(axis=2) < 200
    assert ink.any()
    assert not (ink[:2].any())
    assert not (ink[-2:].any())
    assert not (ink[:, -2:].any())
    # Lines do not run into one another: there is white between them.
    rows = ink.any(axis=1)
    assert np.count_nonzero(np.diff(rows.astype(int)) == 1) >= len(step.formulas)


def test_the_explorer_holds_the_best_and_those_with_pages():
    catalog = fake_catalog(300)
    worst = catalog[catalog["in_sample"]].nsmallest(1, "snr_g")["specid"].iloc[0]
    rows = explorer_rows(catalog, {worst: page_address(worst)}, most=50)
    best = catalog[catalog["in_sample"]].nlargest(49, "snr_g")["specid"]
    assert set(rows["specid"]) == {worst, *best}
    assert rows.set_index("specid")["page"].to_dict()[worst] == f"spectra/{worst}.html"
    shuffled = explorer_rows(catalog.sample(frac=1, random_state=1), {worst: page_address(worst)}, most=50)
    assert shuffled.equals(rows)


def test_the_explorer_needs_no_network():
    page = explorer_page(fake_catalog(60).assign(m_ks=1.5), {})
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=.https?:", page)
    policy = re.search(r'Security-Policy" content="([^"]*)"', page)[1]
    assert "http" not in policy
    assert policy.startswith("default-src 'none'")
    assert "M_Ks [mag]" in page


def test_names_of_pages_stay_in_their_folder():
    assert page_name("../../etc") == "..%2F..%2Fetc.html"
    assert "/" not in page_name("a/b\\c")


@pytest.mark.parametrize("kind", [".png", ".svg"])
def test_a_spectrum_as_a_file_names_star_and_labels(tmp_path, kind):
    view = fake_spectrum(1, title="A $tar")
    content = save_figure(draw_spectrum(view), kind, title=labels_text(view))
    assert content == save_figure(draw_spectrum(view), kind, title=labels_text(view))
    assert "87" in labels_text(view)
    path = tmp_path / f"star{kind}"
    path.write_bytes(content)
    if kind == ".svg":
        assert b"</svg>" in content
        assert not re.search(rb"(?:href|src)=.(?!#)", content)
    else:
        with Image.open(path) as image:
            # The lines of text stand above the figure, at twice the layout resolution.
            assert image.width > 1900
            assert (np.asarray(image.convert("L"))[:150] < 100).any()
