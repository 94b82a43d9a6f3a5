"""Numbers and labels as the pages write them."""

import re

import numpy as np
from markupsafe import Markup, escape

from hotdask.labels import INDEX, LABELS


def symbol_html(name: str) -> Markup:
    """A label's symbol as HTML.

    Examples
    --------
    >>> str(symbol_html("teff")), str(symbol_html("vsini"))
    ('<i>T</i><sub>eff</sub>', '<i>v</i>\u2009sin\u2009<i>i</i>')
    """
    symbol = LABELS[INDEX[name]].symbol
    if "$" not in symbol:
        return escape(symbol)
    text = symbol.replace("$", "").replace("\\,", "\u2009")
    text = re.sub(r"_\{\\rm (\w+)\}", r"<sub>\1</sub>", text)
    text = re.sub(r"\\(log|sin) ?", "<r>\\1</r>\u2009", text)
    # What is left outside tags is variables, set in italics.
    parts = re.split(r"(<sub>.*?</sub>|<r>.*?</r>)", text)
    out = "".join(p if p.startswith("<") else re.sub(r"([A-Za-z])", r"<i>\1</i>", p) for p in parts)
    return Markup(out.replace("<r>", "").replace("</r>", "").replace("\u2009\u2009", "\u2009"))


def unit_html(name: str) -> Markup:
    """A label's unit as HTML, empty for a pure number.

    Examples
    --------
    >>> str(unit_html("vsini"))
    'km\u2009s<sup>−1</sup>'
    """
    known = {
        "km/s": "km\u2009s<sup>−1</sup>",
        "dex(cm/s2)": "dex(cm\u2009s<sup>−2</sup>)",
        "Angstrom": "Å",
    }
    unit = LABELS[INDEX[name]].unit
    return Markup(known[unit]) if unit in known else escape(unit)


def format_number(value: float, digits: int = 3) -> str:
    """A number with some significant digits, thousands apart; a dash if it is not finite.

    Examples
    --------
    >>> format_number(12345.6), format_number(-0.01234), format_number(float("nan"))
    ('12\u2009346', '−0.0123', '–')
    """
    if not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
    return f"{value:,.{decimals}f}".replace(",", "\u2009").replace("-", "−")


def format_beside(value: float, scale: float) -> str:
    """A number to as many decimals as `format_number` gives another one, so that 0.00004 beside 0.1 is 0.

    Examples
    --------
    >>> format_beside(-0.00004, 0.108), format_beside(-12.3, 182.0)
    ('0.000', '−12')
    """
    if not np.isfinite(value) or not np.isfinite(scale) or scale == 0:
        return format_number(value)
    decimals = max(0, 2 - int(np.floor(np.log10(abs(scale)))))
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace(",", "\u2009").replace("-", "−")


def format_measurement(value: float, error: float) -> str:
    """Value ± error, both to two significant digits of the error.

    Examples
    --------
    >>> format_measurement(10234.4, 87.3), format_measurement(-0.1234, 0.0456)
    ('10\u2009234 ± 87', '−0.123 ± 0.046')
    >>> format_measurement(4.12345, float("nan"))
    '4.12'
    """
    if not (np.isfinite(value) and np.isfinite(error) and error > 0):
        return format_number(value)
    decimals = int(np.clip(1 - int(np.floor(np.log10(error))), 0, 6))
    return f"{value:,.{decimals}f} ± {error:,.{decimals}f}".replace(",", "\u2009").replace("-", "−")


def format_count(n: int) -> str:
    """A whole number, thousands apart.

    Examples
    --------
    >>> format_count(12345)
    '12\u2009345'
    """
    return f"{n:,}".replace(",", "\u2009")


def format_percent(share: float) -> str:
    """A share in percent; a dash if it is not finite.

    Examples
    --------
    >>> format_percent(0.1234), format_percent(-0.002), format_percent(float("nan"))
    ('12.3\u2009%', '−0.2\u2009%', '–')
    """
    return f"{100 * share:.1f}\u2009%".replace("-", "−") if np.isfinite(share) else "–"
