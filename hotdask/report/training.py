"""The loss of a training, drawn."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from hotdask.report import figures
from hotdask.report.figures import BLUE, GRAY, SMALL, VERMILION


@figures.styled
def loss_curve(loss: Mapping) -> Figure:
    """Loss of each pass on the spectra that were learned and on the validation set.

    Parameters
    ----------
    loss : mapping
        ``train`` and ``validation``, lists of one value a pass; ``best``, the pass (from 1) whose parameters were
        kept.

    Examples
    --------
    >>> figure = loss_curve({"train": [1.0, 0.5, 0.2], "validation": [1.1, 0.6, 0.7], "best": 2})
    >>> len(figure.axes[0].lines)
    3
    """
    figure = Figure(figsize=SMALL, layout="constrained")
    axes = figure.add_subplot()
    passes = np.arange(1, len(loss["train"]) + 1)
    axes.plot(passes, loss["train"], color=BLUE, lw=1.2, label="learned")
    axes.plot(passes, loss["validation"], color=VERMILION, lw=1.2, label="validation")
    axes.axvline(loss["best"], color=GRAY, lw=0.8, ls=":", label=f"best pass, {loss['best']}")
    axes.set(xlabel="pass", ylabel="loss", yscale="log", xlim=(1, max(2, passes[-1])))
    # Losses span little more than a decade: plain numbers read better than powers of ten.
    for put in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        put(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend()
    return figure
