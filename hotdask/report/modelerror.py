"""The error of the models against wavelength, drawn."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from hotdask import windows
from hotdask.report import figures
from hotdask.report.figures import BLUE, GRAY, PALE, vacuum_bounds

_SIZE = (9.6, 3.2)
_NAMED = ("Hα", "Hβ", "Hγ", "Hδ")
"""Lines whose names do not overlap."""


@figures.styled
def model_error_figure(error: np.ndarray, mask: Sequence) -> Figure:
    """Draw model errors; windows never fitted are gray.

    Parameters
    ----------
    error : (3801,) float
        In units of the continuum.
    mask : sequence of Window or (low, high)
        Air windows [Å].

    Examples
    --------
    >>> figure = model_error_figure(np.full(windows.N_REST, 0.01), [(7150.0, 7350.0)])
    >>> figure.axes[0].get_ylabel()
    'model error [% of continuum]'
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    wavelength = windows.rest_wavelength()
    for window in mask:
        low, high, _ = vacuum_bounds(window)
        axes.axvspan(low, high, color=PALE, lw=0, zorder=0)
    for name in _NAMED:
        line = windows.air_to_vacuum(windows.BALMER_AIR[name])
        axes.axvline(line, color=GRAY, lw=0.6, ls=":", zorder=1)
        axes.annotate(name, (line, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
    axes.plot(wavelength, 100 * np.asarray(error), color=BLUE, lw=0.8)
    axes.set(
        xlabel="vacuum wavelength, rest frame [Å]",
        ylabel="model error [% of continuum]",
        xlim=(wavelength[0], wavelength[-1]),
        ylim=(0, None),
    )
    return figure
