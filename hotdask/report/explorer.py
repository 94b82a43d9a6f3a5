"""A page to explore a survey in: a selection in the Kiel diagram lists its stars, and leads to their spectra."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from bokeh.embed import components
from bokeh.layouts import column
from bokeh.models import (
    BoxSelectTool,
    BoxZoomTool,
    ColumnDataSource,
    CustomJS,
    DataTable,
    FixedTicker,
    HTMLTemplateFormatter,
    LassoSelectTool,
    LinearColorMapper,
    NumberFormatter,
    NumeralTickFormatter,
    PanTool,
    ResetTool,
    TableColumn,
    TapTool,
    WheelZoomTool,
)
from bokeh.models.annotations import ColorBar
from bokeh.plotting import figure
from bokeh.resources import INLINE
from markupsafe import Markup

from hotdask.report.figures import need_columns
from hotdask.report.render import render

MOST = 100_000
"""Stars a browser still handles: a page of 10 MB that lists a selection in half a second, drawn without a GPU. (Without
one, Bokeh's WebGL takes seven times as long.)"""
SHOWN = 200
"""Rows of a selection that are listed."""

_COLUMNS = ("specid", "teff", "logg", "vsini", "fe_h", "snr_g")
_EXTRA = ("m_ks", "bp_rp_0")
_DECIMALS = {"teff": "0", "logg": "0.00", "vsini": "0", "fe_h": "0.00", "snr_g": "0", "m_ks": "0.00", "bp_rp_0": "0.00"}
_WIDTHS = {"specid": 220, "vsini": 110, "fe_h": 110, "bp_rp_0": 140}
_TITLES = {
    "specid": "spectrum",
    "teff": "Teff [K]",
    "logg": "log g [dex]",
    "vsini": "v sin i [km/s]",
    "fe_h": "[Fe/H] [dex]",
    "snr_g": "S/N in g",
    "m_ks": "M_Ks [mag]",
    "bp_rp_0": "(BP−RP)₀ [mag]",
}

_LIST = """
const all = source.data, picked = source.selected.indices;
const first = (a, b) => (all.page[b] !== "") - (all.page[a] !== "") || all.snr_g[b] - all.snr_g[a];
const rows = picked.slice().sort(first).slice(0, most);
const out = {}, none = {};
for (const name of Object.keys(listed.data)) {
  out[name] = rows.map((i) => all[name][i]);
  none[name] = [];
}
// A table is drawn again only if the number of its rows has changed.
listed.data = none;
listed.data = out;
document.getElementById("selected").textContent = picked.length === 0 ? "Nothing is selected."
  : `${picked.length} selected` + (picked.length > most ? `; ${most} listed: with a page, or of best S/N.` : ".");
"""

_LINK = """<% if (page) { %><a href="<%- page %>"><%- value %></a><% } else { %><%- value %><% } %>"""


def explorer_rows(catalog: pd.DataFrame, pages: Mapping[str, str], *, most: int = MOST) -> pd.DataFrame:
    """Rows the explorer shows: the sample, every spectrum with a page, and of the rest the best S/N.

    Parameters
    ----------
    catalog : pandas.DataFrame
        Columns of `hotdask.schema.CATALOG`.
    pages : mapping of str to str
        specid to the address of its page.
    most : int
        Rows at most.

    Returns
    -------
    pandas.DataFrame
        The table's columns and ``page``, ordered by specid.
    """
    need_columns(catalog, (*_COLUMNS, "in_sample"), "catalog")
    names = [*_COLUMNS, *(n for n in _EXTRA if n in catalog)]
    rows = catalog.loc[catalog["in_sample"].to_numpy(bool) & np.isfinite(catalog["teff"].to_numpy(float)), names]
    rows = rows.assign(page=[pages.get(s, "") for s in rows["specid"]])
    # A tie in S/N must not be broken by the order of the catalog's parts.
    best = rows.assign(_first=rows["page"] != "").sort_values(
        ["_first", "snr_g", "specid"], ascending=[False, False, True]
    )
    return best.head(most).drop(columns="_first").sort_values("specid").reset_index(drop=True)


def explorer_page(
    catalog: pd.DataFrame, pages: Mapping[str, str], *, run: str = "RUN", title: str = "Explorer", most: int = MOST
) -> str:
    """The explorer as one HTML page that needs no network.

    Parameters
    ----------
    catalog, pages, most
        As `explorer_rows` takes them.
    run : str
        The run's folder, for the command that draws a spectrum without a page.
    title : str
        Title of the page.
    """
    rows = explorer_rows(catalog, pages, most=most)
    names = [name for name in rows.columns if name != "page"]
    # float32 is half the page, and finer than any screen.
    data = {name: rows[name].to_numpy("float32") if name in _DECIMALS else rows[name].tolist() for name in names}
    source = ColumnDataSource({**data, "page": rows["page"].tolist()})
    listed = ColumnDataSource({name: [] for name in [*names, "page"]})
    low, high = np.percentile(rows["fe_h"], [5, 95]) if len(rows) else (-1.0, 0.5)
    colors = LinearColorMapper(palette="Cividis256", low=float(low), high=float(max(high, low + 0.1)))
    box = BoxSelectTool()
    plot = figure(
        height=460,
        sizing_mode="stretch_width",
        x_axis_type="log",
        x_axis_label="Teff [K]",
        y_axis_label="log g [dex(cm/s²)]",
        tools=[box, LassoSelectTool(), TapTool(), BoxZoomTool(), PanTool(), WheelZoomTool(), ResetTool()],
        active_drag=box,
        toolbar_location="above",
    )
    plot.toolbar.logo = None
    plot.x_range.flipped = plot.y_range.flipped = True
    plot.xaxis.ticker = FixedTicker(ticks=[5000, 7000, 10000, 15000, 20000, 30000, 50000])
    plot.xaxis.formatter = NumeralTickFormatter(format="0")
    marks = plot.scatter(
        "teff",
        "logg",
        source=source,
        size=4 if len(rows) > 5000 else 6,
        color={"field": "fe_h", "transform": colors},
        line_color=None,
        alpha=0.7,
        nonselection_alpha=0.12,
    )
    marks.selection_glyph = marks.glyph.clone(fill_alpha=1.0)
    plot.add_layout(ColorBar(color_mapper=colors, title="[Fe/H] [dex]", width=10), "right")
    source.selected.js_on_change(
        "indices", CustomJS(args={"source": source, "listed": listed, "most": SHOWN}, code=_LIST)
    )
    table = DataTable(
        source=listed,
        columns=[
            TableColumn(
                field=name,
                title=_TITLES[name],
                width=_WIDTHS.get(name, 90),
                formatter=NumberFormatter(format=_DECIMALS[name], nan_format="–")
                if name in _DECIMALS
                else HTMLTemplateFormatter(template=_LINK),
            )
            for name in names
        ],
        height=420,
        sizing_mode="stretch_width",
        autosize_mode="none",
        index_position=None,
    )
    script, (upper, lower) = components((column(plot, sizing_mode="stretch_width"), table), wrap_script=True)
    return render(
        "explorer.html",
        {
            "title": title,
            "resources": Markup(INLINE.render_js()),
            "script": Markup(script),
            "plot": Markup(upper),
            "table": Markup(lower),
            "n": len(rows),
            "sample": int(catalog["in_sample"].sum()),
            "run": run,
        },
    )
