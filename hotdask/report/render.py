"""What all pages are made with: the templates, figures as images, mappings as tables."""

import functools
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from hotdask.report import figures
from hotdask.report.formats import format_beside, format_count, format_number, format_percent

_LONG = 160
"""Texts longer than this are folded away."""


@dataclass(frozen=True)
class Picture:
    """A figure as the page needs it: data URI, size in CSS pixels, the words for those who cannot see it, a caption."""

    uri: str
    width: int
    height: int
    alt: str
    caption: str


def picture(figure: Figure, *, alt: str, caption: str = "", many: bool = False) -> Picture:
    """Encode a figure: PNG if it has many marks, SVG otherwise."""
    width, height = (round(v * figures.CSS_PIXELS) for v in figure.get_size_inches())
    return Picture((figures.png_uri if many else figures.svg_uri)(figure), width, height, alt, caption)


def save_figure(figure: Figure, kind: str, *, title: str = "") -> bytes:
    """A figure as the content of a file.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    kind : {".svg", ".png"}
        PNG has twice the layout resolution.
    title : str
        Lines to set above it, for a figure that stands without a page.
    """
    if title:
        # Above the figure: a tight box around all that is drawn makes the room.
        figure.text(0.01, 1.02, title, fontsize=9, va="bottom", linespacing=1.5)
    buffer = io.BytesIO()
    options = {"bbox_inches": "tight", "facecolor": "white"}
    if kind == ".svg":
        figures.styled(figure.savefig)(buffer, format="svg", metadata={"Date": None}, **options)
    else:
        figures.styled(figure.savefig)(buffer, format="png", dpi=2 * figures.CSS_PIXELS, **options)
        buffer = io.BytesIO(figures.shrink_png(Image.open(buffer)))
    return buffer.getvalue()


def fact_rows(facts: Mapping, prefix: str = "") -> list[dict]:
    """Rows of a table of facts, one a leaf of nested mappings.

    Parameters
    ----------
    facts : mapping
        Of str to a value, or to a mapping of the same kind, whose names are dotted.
    prefix : str
        Of the names.

    Returns
    -------
    list of dict
        ``name``, ``text``, and ``long``, true for a text to be folded away.

    Examples
    --------
    >>> [(row["name"], row["text"]) for row in fact_rows({"seed": 1, "seconds": {"fit": 12.3456789}})]
    [('seed', '1'), ('seconds.fit', '12.3457')]
    """
    rows = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            rows += fact_rows(value, f"{prefix}{key}.")
        else:
            text = _text(value)
            rows.append({"name": f"{prefix}{key}", "text": text, "long": "\n" in text or len(text) > _LONG})
    return rows


def fact_groups(facts: Mapping, *, scalars_named: str = "run") -> list[dict]:
    """Tables of facts: one of what is no mapping, then one for each mapping.

    Parameters
    ----------
    facts : mapping
        As `fact_rows` takes it.
    scalars_named : str
        Name of the first table.

    Returns
    -------
    list of dict
        ``name`` and ``rows`` (`fact_rows`); empty groups are left out.

    Examples
    --------
    >>> [group["name"] for group in fact_groups({"label_fit": {"starts": 2}, "seed": 1, "none": {}})]
    ['run', 'label fit']
    """
    scalars = {key: value for key, value in facts.items() if not isinstance(value, Mapping)}
    nested = [(str(key).replace("_", " "), value) for key, value in facts.items() if isinstance(value, Mapping)]
    return [{"name": name, "rows": fact_rows(group)} for name, group in [(scalars_named, scalars), *nested] if group]


def _text(value) -> str:
    if isinstance(value, bool | str) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, float | np.floating):
        return f"{float(value):.6g}"
    if isinstance(value, int | np.integer):
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)


def render(template: str, context: Mapping) -> str:
    """A page as text: HTML that loads nothing from anywhere.

    Parameters
    ----------
    template : str
        A file of ``hotdask/report/templates``.
    context : mapping
        ``title``, and all else that the template names. Strings are escaped, `markupsafe.Markup` is not.

    Raises
    ------
    jinja2.UndefinedError
        If the template names something the context lacks.
    """
    return _environment().get_template(template).render(context)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hotdask.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "beside": format_beside,
        "count": format_count,
        "number": format_number,
        "percent": format_percent,
    }
    return environment
