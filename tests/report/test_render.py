"""What all pages share: the frame around them, and tables of facts."""

import re

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from hotdask.report.render import fact_groups, fact_rows, render

LIBRARY = {
    "counts": [{"id": "made", "n": 12345, "what": "made"}],
    "reasons": [],
    "more_reasons": 0,
    "problems": ["1 < 2", Markup("<b>bold</b>")],
    "coverage_figures": [],
    "pair_figures": [],
    "ranges": [],
    "nearest": {"low": 0.1234, "median": float("nan"), "high": 1.0},
    "spectra_figure": None,
    "spectrum_figures": [],
    "provenance": [],
}


def test_a_page_is_one_file_with_its_style():
    page = render("library.html", {"title": "A & B", **LIBRARY})
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<title>A &amp; B</title>") == page.count("<h1>A &amp; B</h1>") == 1
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    style = page.split("<style>")[1].split("</style>")[0]
    assert style.count("{") == style.count("}") > 50
    # Escaping would break its quotes and selectors.
    assert '"Segoe UI"' in style
    assert "&" not in style
    assert re.findall(r'(?:src|href)="([^"#]+)', page) == ["data:,"]


def test_values_are_escaped_and_written_as_numbers():
    page = render("library.html", {"title": "x", **LIBRARY})
    assert "<li>1 &lt; 2</li>" in page
    assert "<li><b>bold</b></li>" in page
    assert '<dd id="count-made" data-n="12345">12\u2009345</dd>' in page
    assert "0.123 at least, – in the median, 1.00 at most" in page


@pytest.mark.parametrize("missing", ["title", "counts", "problems", "nearest", "provenance"])
def test_what_a_template_names_must_be_given(missing):
    context = {"title": "x", **LIBRARY}
    del context[missing]
    with pytest.raises(UndefinedError, match=missing):
        render("library.html", context)


def test_facts_keep_groups_of_one_name_apart():
    groups = fact_groups({"run": {"id": "a"}, "seed": 1, "label_fit": {"deep": {"n": [1, "é"]}}, "none": {}})
    assert [(g["name"], [(r["name"], r["text"]) for r in g["rows"]]) for g in groups] == [
        ("run", [("seed", "1")]),
        ("run", [("id", "a")]),
        ("label fit", [("deep.n", '[1, "é"]')]),
    ]


@pytest.mark.parametrize(("text", "long"), [("x" * 160, False), ("x" * 161, True), ("a\nb", True), (None, False)])
def test_long_facts_are_folded_away(text, long):
    assert fact_rows({"fact": text}) == [{"name": "fact", "text": text or "", "long": long}]
