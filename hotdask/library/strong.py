"""How strong the lines of a list get, each by itself, and which strong ones have widths that nobody has measured."""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from hotdask.labels import INDEX, N_LABELS
from hotdask.library import opacity
from hotdask.library.abundances import abundances
from hotdask.library.atmospheres import AtmosphereGrid
from hotdask.library.atoms import MASSES, N_STAGES, SYMBOLS, ionization_energy
from hotdask.library.linelist import LineList, default_damping
from hotdask.library.metals import voigt
from hotdask.library.state import ATOMIC_MASS, C_CGS, H_ERG, K_ERG, K_EV, State, solve_state
from hotdask.windows import air_to_vacuum

RESOLUTION = 1800.0
"""λ/FWHM at which depths are told."""
STRONG = 0.02
"""Depth at that resolution from which a line is strong."""
_FWHM = 1.0645
"""Area of a Gaussian over its height and full width at half maximum."""
_TEFF = (7000, 8000, 9500, 11500, 14000, 17500, 22000, 27000, 32000, 38000, 45000)
_LOGG = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
_POINTS = 25
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(3)
_MU, _SHARE = (_NODES + 1) / 2, _WEIGHTS / 2


@dataclass(frozen=True)
class AssumedWidth:
    """A strong line with a damping constant that is assumed.

    Attributes
    ----------
    element, ion : str, int
        Symbol; 1 for the neutral atom.
    wavelength : float
        In air [Å].
    assumed : tuple of str
        Of "radiative", "Stark" and "van der Waals".
    depth : float
        Largest depth at λ/FWHM = 1800.
    teff, logg : float
        Where it is that deep.
    change : float
        What the depth there would change by if what is assumed were twice as large.
    """

    element: str
    ion: int
    wavelength: float
    assumed: tuple[str, ...]
    depth: float
    teff: float
    logg: float
    change: float

    def __str__(self) -> str:
        return (
            f"{self.element} {'I' * self.ion if self.ion < 4 else ('IV', 'V', 'VI')[self.ion - 4]} "
            f"{self.wavelength:.2f}: {', '.join(self.assumed)} assumed; {100 * self.depth:.1f} % deep at "
            f"{self.teff:.0f} K, {self.logg:.1f}, {100 * self.change:.1f} % more for twice the width"
        )


def assumed_widths(lines: LineList, grid: AtmosphereGrid, skip: np.ndarray | None = None) -> list[AssumedWidth]:
    """Lines deeper than `STRONG` somewhere in the grid whose widths are assumed; the most affected first.

    Each line alone, in LTE, of solar abundances, at eleven temperatures from 7000 to 45 000 K and at each of them in
    the atmospheres of the lowest and the highest gravity.

    Parameters
    ----------
    lines : LineList
        After what corrections it gets.
    grid : AtmosphereGrid
    skip : (n_line,) bool, optional
        Lines that are drawn from tables.
    """
    known = np.stack([~np.isnan(log) for log in (lines.log_grad, lines.log_gstark, lines.log_gvdw)])
    examined = ~known.all(axis=0) & (lines.ion <= N_STAGES)
    if skip is not None:
        examined &= ~skip
    rows = np.flatnonzero(examined)
    if not len(rows):
        return []
    columns = {
        "wavelength": lines.wavelength,
        "strength": 10.0**lines.loggf,
        "energy": lines.elo,
        "ion": (lines.z - 1) * N_STAGES + lines.ion - 1,
        "element": lines.z - 1,
    } | dict(zip(_DAMPING, default_damping(lines, ionization_energy), strict=True))
    columns = {name: np.ascontiguousarray(values[rows]) for name, values in columns.items()}
    known = known[:, rows]
    best, where = np.zeros(len(rows)), np.zeros((len(rows), 2))
    change = np.zeros(len(rows))
    for teff, logg in _corners(grid):
        atmosphere = grid.interpolate(teff, logg, 0.0)
        state = solve_state(atmosphere.temperature, atmosphere.pressure, abundances(_sun()))

        depth = _depths(columns, known, state, atmosphere.rhox, factor=1.0)
        deeper = depth > best
        best[deeper], where[deeper] = depth[deeper], (teff, logg)
        strong = np.flatnonzero(depth > STRONG)
        deepest = strong[deeper[strong]]
        if len(deepest):
            some = {name: values[deepest] for name, values in columns.items()}
            wider = _depths(some, known[:, deepest], state, atmosphere.rhox, factor=2.0)
            change[deepest] = np.abs(wider - depth[deepest])
    strong = np.flatnonzero(best > STRONG)
    strong = strong[np.lexsort((columns["wavelength"][strong], -change[strong].round(4)))]
    return [
        AssumedWidth(
            SYMBOLS[lines.z[rows[i]] - 1],
            int(lines.ion[rows[i]]),
            round(_air(columns["wavelength"][i]), 3),
            tuple(
                name
                for name, good in zip(("radiative", "Stark", "van der Waals"), known[:, i], strict=True)
                if not good
            ),
            round(float(best[i]), 4),
            float(where[i, 0]),
            float(where[i, 1]),
            round(float(change[i]), 4),
        )
        for i in strong
    ]


_DAMPING = ("gamma_rad", "gamma_stark", "gamma_vdw")


def _depths(
    columns: dict[str, np.ndarray], known: np.ndarray, state: State, column: np.ndarray, *, factor: float
) -> np.ndarray:
    """Depths of lines at `RESOLUTION`, with a factor on what is assumed of their damping."""
    damping = {
        name: np.where(good, columns[name], factor * columns[name]) for name, good in zip(_DAMPING, known, strict=True)
    }
    widths = equivalent_widths(state, column, 2.0, columns | damping, 0.5 * STRONG / RESOLUTION)
    return widths / columns["wavelength"] * RESOLUTION / _FWHM


def _sun() -> np.ndarray:
    labels = np.zeros(N_LABELS)
    labels[INDEX["n_he"]] = 0.0889
    return labels


def _corners(grid: AtmosphereGrid) -> list[tuple[float, float]]:
    """Lowest and highest gravity that the grid has at each temperature."""
    found = []
    for teff in _TEFF:
        covered = [logg for logg in _LOGG if grid.covers(np.array([teff]), np.array([logg]), np.zeros(1))[0]]
        if covered:
            found += [(teff, logg) for logg in sorted({covered[0], covered[-1]})]
    return found


def _air(wavelength: float) -> float:
    """Wavelength in air [Å] of one in vacuum."""
    air = wavelength
    for _ in range(3):
        air *= wavelength / float(air_to_vacuum(air))
    return air


def equivalent_widths(
    state: State, column: np.ndarray, vmic: float, lines: dict[str, np.ndarray], least: float
) -> np.ndarray:
    """Equivalent widths of lines, each alone in the continuum of an atmosphere in LTE.

    Parameters
    ----------
    state : State
        Of the gas.
    column : (n_layer,) float64
        Mass above the layers [g/cm²].
    vmic : float
        [km/s].
    lines : dict
        ``wavelength`` [Å], ``strength`` (gf), ``energy`` [eV], ``ion``, ``element``, ``gamma_rad``, ``gamma_stark``,
        ``gamma_vdw``, each (n,), as `hotdask.library.metals.add_lines` takes them.
    least : float
        Lines whose equivalent width is surely below this share of the wavelength get 0 unseen.

    Returns
    -------
    (n,) float64
        [Å].
    """
    temperature, density = state.temperature, state.density
    nodes = np.geomspace(lines["wavelength"].min() * 0.999, lines["wavelength"].max() * 1.001, 60)
    continuum = (opacity.absorption(nodes, state, dissolved=False) + opacity.scattering(nodes, state)) / density
    masses = MASSES * ATOMIC_MASS
    doppler = np.sqrt(2 * K_ERG * temperature / masses[:, None] + (vmic * 1e5) ** 2) / C_CGS
    return _widths(
        np.log(nodes),
        np.log(continuum),
        column,
        temperature,
        state.ions.reshape(-1, len(temperature)) / density,
        doppler,
        1 / (K_EV * temperature),
        state.electron_density,
        (state.hydrogen + 0.42 * state.ions[1, 0]) * (temperature / 1e4) ** 0.3,
        least,
        lines["wavelength"],
        lines["strength"],
        lines["energy"],
        lines["ion"],
        lines["element"],
        lines["gamma_rad"],
        lines["gamma_stark"],
        lines["gamma_vdw"],
    )


@njit(cache=True, fastmath=True)
def _flux(absorption, column, source):
    """Emergent flux of a source (n_layer,) over π."""
    n = len(column)
    flux = 0.0
    for k in range(len(_MU)):
        tau = absorption[0] * column[0] / _MU[k]
        before = math.exp(-tau)
        # From the surface to the first layer the source is that of the first layer.
        intensity = source[0] * (1 - before)
        for i in range(1, n):
            step = 0.5 * (absorption[i] + absorption[i - 1]) * (column[i] - column[i - 1]) / _MU[k]
            tau += step
            after = math.exp(-tau)
            if step > 1e-4:
                # Linear source over the step.
                slope = (source[i] - source[i - 1]) / step
                intensity += source[i - 1] * before - source[i] * after + slope * (before - after)
            else:
                intensity += 0.5 * (source[i] * after + source[i - 1] * before) * step
            before = after
            if tau > 30:
                break
        else:
            intensity += source[n - 1] * before
        flux += 2 * _MU[k] * _SHARE[k] * intensity
    return flux


@njit(cache=True, fastmath=True)
def _widths(
    log_nodes, log_continuum, column, temperature, population, doppler, inverse_kt, electrons, perturbers, least,
    wavelength, strength, energy, ion, element, gamma_rad, gamma_stark, gamma_vdw,
):  # fmt: skip
    n_layer = len(column)
    out = np.zeros(len(wavelength))
    base, total, source = np.empty(n_layer), np.empty(n_layer), np.empty(n_layer)
    peak, damping = np.empty(n_layer), np.empty(n_layer)
    depth = np.empty(_POINTS)
    for line in range(len(wavelength)):
        frequency = C_CGS * 1e8 / wavelength[line]
        x = math.log(wavelength[line])
        node = min(max(np.searchsorted(log_nodes, x) - 1, 0), len(log_nodes) - 2)
        u = (x - log_nodes[node]) / (log_nodes[node + 1] - log_nodes[node])
        scale = 0.02654008 / 1.7724538509 * strength[line] / frequency
        # Where the continuum forms, the area of line over continuum opacity bounds the equivalent width: no depth
        # exceeds that ratio there.
        most, before, tau = 0.0, 0.0, 0.0
        for i in range(n_layer):
            cont = math.exp((1 - u) * log_continuum[node, i] + u * log_continuum[node + 1, i])
            tau += cont * column[i] if i == 0 else 0.5 * (cont + before) * (column[i] - column[i - 1])
            before = cont
            if tau > 0.01:
                value = scale * population[ion[line], i] * math.exp(-energy[line] * inverse_kt[i]) / cont
                if value > most:
                    most = value
            if tau > 3:
                break
        if most * 1.77 < least:
            continue
        photon = H_ERG * frequency / K_ERG
        widest = 0.0
        for i in range(n_layer):
            base[i] = math.exp((1 - u) * log_continuum[node, i] + u * log_continuum[node + 1, i])
            source[i] = 1 / math.expm1(photon / temperature[i])
            width = doppler[element[line], i]
            gamma = gamma_rad[line] + gamma_stark[line] * electrons[i] + gamma_vdw[line] * perturbers[i]
            damping[i] = gamma / (12.566370614 * width * frequency)
            peak[i] = scale * population[ion[line], i] * math.exp(-energy[line] * inverse_kt[i]) / width
            peak[i] *= 1 - math.exp(-photon / temperature[i])
            widest = max(widest, width)
        continuum = _flux(base, column, source)
        # Offsets in the largest Doppler width: even in arcsinh, from the center to 2000.
        area, last_x, last_depth = 0.0, 0.0, 0.0
        for k in range(_POINTS):
            offset = 0.5 * math.sinh(k * 9.0 / (_POINTS - 1))
            for i in range(n_layer):
                total[i] = base[i] + peak[i] * voigt(damping[i], offset * widest / doppler[element[line], i])
            depth[k] = 1 - _flux(total, column, source) / continuum
            if k > 0:
                area += 0.5 * (depth[k] + last_depth) * (offset - last_x)
            last_x, last_depth = offset, depth[k]
            if depth[k] < 1e-5 and k > 3:
                break
        out[line] = 2 * area * widest * wavelength[line]
    return out
