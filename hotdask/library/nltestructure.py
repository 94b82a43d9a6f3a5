"""LTE structures with the temperatures of line-blanketed models out of LTE.

A grid of NLTE models is small: that of BSTAR2006 has one composition here, 15-30 kK. What it says of temperature is
therefore carried over to a grid that has all compositions: the ratio of its temperature to that of the LTE model of the
same Teff, log g and solar composition, in the layer of the same column mass. With the new temperatures the LTE model is
put in hydrostatic equilibrium again.

Beyond the NLTE grid the ratio is that of its edge. To cool stars it fades, for there hydrogen and metals are in LTE and
so are the two models (what is left at 15 kK, up to 3 % near τ = 1, is how each blankets). To hot ones it does not: what
drives it, radiation out of equilibrium with the gas, only grows.
"""

from dataclasses import replace

import numpy as np

from hotdask.library.atmospheres import AtmosphereGrid
from hotdask.library.hydrostatic import find_electrons, fit_layers, flux_mean_ratio, stratify

FADE = (11000.0, 15000.0)
"""Teff [K] from where to where the correction grows to its full size."""


def correct_temperature(grid: AtmosphereGrid, nlte: AtmosphereGrid) -> AtmosphereGrid:
    """LTE models with T multiplied by T(NLTE)/T(LTE) of solar composition, in hydrostatic equilibrium.

    Parameters
    ----------
    grid : AtmosphereGrid
        In LTE, with models of [M/H] = 0.
    nlte : AtmosphereGrid
        Out of LTE, of solar composition.

    Returns
    -------
    AtmosphereGrid
        Same models on the same depths; those up to the start of `FADE` are unchanged.

    References
    ----------
    Lanz & Hubeny 2007, ApJS 169, 83.

    Examples
    --------
    >>> correct_temperature(read_atmospheres("atlas9_hot.npz"), read_atmospheres("bstar2006_z1.npz"))  # doctest: +SKIP
    """
    weight = np.clip((grid.teff - FADE[0]) / (FADE[1] - FADE[0]), 0.0, 1.0)
    log_temperature = grid.log_temperature.copy()
    ratios: dict[tuple[float, float], np.ndarray] = {}
    for row in np.flatnonzero(weight):
        at = _nearest(grid, nlte, grid.teff[row], grid.logg[row])
        if at not in ratios:
            ratios[at] = _ratio(grid, nlte, *at)
        log_temperature[row] += weight[row] * ratios[at]
    new = {
        name: getattr(grid, name).copy()
        for name in ("log_rhox", "log_pressure", "log_kappa_rosseland", "log_electron_density")
    }
    for mh in np.unique(grid.mh):
        rows = np.flatnonzero((grid.mh == mh) & (weight > 0))
        if not len(rows):
            continue
        gas = fit_layers(grid, np.flatnonzero(grid.mh == mh), log_temperature[rows].min())
        labels = grid.teff[rows], grid.logg[rows], grid.log_tau
        pushes = np.array([flux_mean_ratio(grid.teff[row], grid.logg[row], *_layers(grid, row)) for row in rows])
        before = stratify(*labels, grid.log_temperature[rows], pushes, gas)
        after = stratify(*labels, log_temperature[rows], pushes, gas)
        # The change alone counts, so that what integration over these depths errs by is left out.
        for name, i in (("log_rhox", 0), ("log_pressure", 1), ("log_kappa_rosseland", 2)):
            new[name][rows] += after[i] - before[i]
        change = find_electrons(gas, log_temperature[rows], after[1])
        new["log_electron_density"][rows] += change - find_electrons(gas, grid.log_temperature[rows], before[1])
    return replace(grid, log_temperature=log_temperature, **new)


def _layers(grid: AtmosphereGrid, row: int) -> tuple[np.ndarray, ...]:
    return grid.log_rhox[row], grid.log_pressure[row], grid.log_kappa_rosseland[row]


def _nearest(grid: AtmosphereGrid, nlte: AtmosphereGrid, teff: float, logg: float) -> tuple[float, float]:
    """Teff and log g themselves where both grids have models around them, else the nearest that have."""
    teff = float(np.clip(teff, nlte.teff.min(), nlte.teff.max()))
    loggs = np.unique(np.concatenate([[logg], np.arange(0.0, 5.5, 0.05).round(2)]))
    loggs = loggs[grid.covers(teff, loggs, 0.0) & nlte.covers(teff, loggs, 0.0)]
    return teff, float(loggs[np.argmin(np.abs(loggs - logg))])


def _ratio(grid: AtmosphereGrid, nlte: AtmosphereGrid, teff: float, logg: float) -> np.ndarray:
    """log10 of T(NLTE)/T(LTE) in the layers of the LTE model, (n_layer,)."""
    lte, other = grid.interpolate(teff, logg, 0.0), nlte.interpolate(teff, logg, 0.0)
    column, log_column = np.log10(lte.rhox), np.log10(other.rhox)
    common = (column >= log_column[0]) & (column <= log_column[-1])
    ratio = np.interp(column, log_column, np.log10(other.temperature)) - np.log10(lte.temperature)
    return np.interp(grid.log_tau, grid.log_tau[common], ratio[common])
