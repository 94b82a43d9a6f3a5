"""Model atmospheres below the lowest gravities of a grid: hydrostatic structures on the grid's own opacities.

ATLAS9 grids end above the gravities that hot stars reach: at 40000 K at log g 4.5, where O dwarfs have 3.9. Of what
makes a structure there, two things change slowly with gravity and are extrapolated from the two lowest models of the
same Teff and [M/H]: the run of T/Teff with Rosseland depth, and the ratio of the flux mean to the Rosseland mean of the
opacity. The rest follows: gas pressure from hydrostatic equilibrium with radiation pressure, and the Rosseland opacity
as a function of temperature and gas pressure, which all layers of the grid at that [M/H] give.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.interpolate import BSpline, NdBSpline
from scipy.sparse.linalg import spsolve

from hotdask.library.atmospheres import SIGMA, AtmosphereGrid
from hotdask.library.state import C_CGS, K_ERG

COOLEST = 12000.0
"""Lowest Teff [K] at which models are added: cooler ones are partly convective."""
STEP = 0.1
"""Between the log g of added models."""
REACH = 1.2
"""How far models are added below the grid's own [dex in log g]."""
EDDINGTON = 0.8
"""Largest ratio of radiative acceleration to gravity: ATLAS9's own models reach 0.79."""
LIGHT = (-2.0, 0.5)
"""Range of log10 of the Rosseland depth that spectra come from; models end where `EDDINGTON` is passed there. Above, a
wind begins, and what is below is not seen: outside the range the ratio is held at the limit."""
_DEGREE = 3
_SPACING = np.array([0.025, 0.25])
"""Between knots in log T and log P/T⁴."""
_BEYOND = np.array([0.02, 1.5])
"""How far a table goes on below the data, linearly."""
_SMOOTHNESS = 1e-4
"""Weight of the coefficients' mean squared second difference beside the mean squared residual."""
_SWEEPS = 8
"""Fixed-point iterations a layer; each gains more than a digit."""


@dataclass(frozen=True)
class GasTable:
    """Opacity and electrons of a gas, smooth in log T and log P/T⁴.

    Attributes
    ----------
    low, high : (2,) float64
        Ends of the table in log10 T and log10 P/T⁴; beyond, the values at the ends hold.
    spline : NdBSpline
        log10 of the Rosseland opacity [cm²/g] and log10 of the electrons' share of the gas pressure.
    """

    low: np.ndarray
    high: np.ndarray
    spline: NdBSpline

    def __call__(self, log_temperature: np.ndarray, log_pressure: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log10 of the opacity and of the electrons' share, in the shape of the arguments."""
        points = np.stack([log_temperature, log_pressure - 4 * log_temperature], axis=-1)
        values = self.spline(np.clip(points, self.low, self.high))
        return values[..., 0], values[..., 1]


def fit_gas(
    log_temperature: np.ndarray, log_pressure: np.ndarray, log_kappa: np.ndarray, log_electrons: np.ndarray
) -> GasTable:
    """Smooth table through layers of models of one mixture.

    Penalized least squares in bicubic B-splines; where there are no layers, the table goes on linearly.

    Parameters
    ----------
    log_temperature, log_pressure, log_kappa, log_electrons : (n,) float64
        log10 of temperature [K], gas pressure [dyn/cm²], Rosseland opacity [cm²/g] and the electrons' share of the
        gas pressure.

    References
    ----------
    Eilers & Marx 1996, Statistical Science 11, 89.

    Examples
    --------
    >>> t, p = (x.ravel() for x in np.meshgrid(np.linspace(4, 5, 20), np.linspace(1, 5, 20)))
    >>> table = fit_gas(t, p, 0.5 * p - t, np.full(400, -0.3))
    >>> [round(float(x), 3) for x in table(np.array(4.5), np.array(2.0))]
    [-3.5, -0.3]
    """
    points = np.column_stack([log_temperature, log_pressure - 4 * log_temperature])
    low, high = points.min(axis=0) - _BEYOND, points.max(axis=0) + _BEYOND[0]
    knots, columns, values = [], [], []
    for x, first, last, spacing in zip(points.T, low, high, _SPACING, strict=True):
        n = int(np.ceil((last - first) / spacing))
        knots.append(first + (last - first) / n * np.arange(-_DEGREE, n + _DEGREE + 1))
        basis = BSpline.design_matrix(x, knots[-1], _DEGREE)
        columns.append(basis.indices.reshape(len(x), -1))
        values.append(basis.data.reshape(len(x), -1))
    n0, n1 = (len(t) - _DEGREE - 1 for t in knots)
    column = columns[0][:, :, None] * n1 + columns[1][:, None, :]
    value = values[0][:, :, None] * values[1][:, None, :]
    start = np.arange(len(points) + 1) * (_DEGREE + 1) ** 2
    design = sparse.csr_array((value.ravel(), column.ravel(), start), shape=(len(points), n0 * n1))
    bends = [sparse.csr_array(np.diff(np.eye(n), 2, axis=0)) for n in (n0, n1)]
    rough = sparse.kron(bends[0].T @ bends[0], sparse.eye_array(n1))
    rough = rough + sparse.kron(sparse.eye_array(n0), bends[1].T @ bends[1])
    normal = design.T @ design / len(points) + _SMOOTHNESS / (n0 * n1) * rough
    right = design.T @ np.column_stack([log_kappa, log_electrons]) / len(points)
    return GasTable(low, high, NdBSpline(tuple(knots), spsolve(normal.tocsc(), right).reshape(n0, n1, 2), _DEGREE))


def flux_mean_ratio(
    teff: float, logg: float, log_rhox: np.ndarray, log_pressure: np.ndarray, log_kappa: np.ndarray
) -> np.ndarray:
    """Flux mean over Rosseland mean of the opacity, from how gas pressure grows in a model, (n_layer,) float64.

    Parameters
    ----------
    teff, logg : float
    log_rhox, log_pressure, log_kappa : (n_layer,) float64
        log10 of column mass [g/cm²], gas pressure [dyn/cm²], Rosseland opacity [cm²/g].

    Examples
    --------
    >>> mass = np.linspace(-3, 2, 50)
    >>> pressure = mass + np.log10(1e4 - 5.670374e-5 * 3e4**4 / 2.99792458e10 * 2.0)  # flux mean 2, Rosseland mean 1
    >>> flux_mean_ratio(3e4, 4.0, mass, pressure, np.zeros(50)).round(4).tolist()[::49]
    [2.0, 2.0]
    """
    gradient = np.gradient(log_pressure, log_rhox) * 10 ** (log_pressure - log_rhox)
    flux_mean = (10**logg - gradient) * C_CGS / (SIGMA * teff**4)
    # Where radiation hardly pushes, digits of the published pressures are all that is left of it.
    return np.clip(flux_mean / 10**log_kappa, 0.5, 20.0)


def stratify(
    teff: np.ndarray,
    logg: np.ndarray,
    log_tau: np.ndarray,
    log_temperature: np.ndarray,
    ratio: np.ndarray,
    gas: GasTable,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Atmospheres in hydrostatic equilibrium with given temperatures.

    dP/dm = g - κ_F σTeff⁴/c and dτ = κ_R dm, in steps of the Rosseland depth; both integrands are powers of the depth
    between layers, and constant above the first.

    Parameters
    ----------
    teff, logg : (n,) float64
    log_tau : (n_layer,) float64
        log10 of the Rosseland depth.
    log_temperature, ratio : (n, n_layer) float64
        log10 of [K]; flux mean over Rosseland mean of the opacity.
    gas : GasTable

    Returns
    -------
    log_rhox, log_pressure, log_kappa : (n, n_layer) float64
        log10 of column mass [g/cm²], gas pressure [dyn/cm²], Rosseland opacity [cm²/g].
    eddington : (n, n_layer) float64
        Radiative acceleration over gravity; in the equation it is held at `EDDINGTON` where it would be larger.

    References
    ----------
    Kurucz 1970, SAO SR 309; Lanz & Hubeny 2003, ApJS 146, 417 (radiative acceleration limited in outer layers).
    """
    tau, step, gravity = 10**log_tau, np.diff(log_tau) * np.log(10), 10**logg
    push = (SIGMA * teff**4 / C_CGS / gravity)[:, None] * ratio
    shape = log_temperature.shape
    mass, pressure, kappa = np.empty(shape), np.empty(shape), np.empty(shape)

    def left(layer: int, opacity: np.ndarray) -> np.ndarray:
        """Share of gravity that gas pressure carries."""
        return 1 - np.minimum(push[:, layer] * opacity, EDDINGTON)

    k = np.full(len(teff), 0.4)
    for _ in range(4 * _SWEEPS):
        p = gravity * left(0, k) * tau[0] / k
        # Halfway, in logarithms: the top's opacity and pressure answer to each other.
        k = np.sqrt(k * 10 ** gas(log_temperature[:, 0], np.log10(p))[0])
    mass[:, 0], pressure[:, 0], kappa[:, 0] = tau[0] / k, p, k
    for i in range(1, len(tau)):
        above = tau[i - 1] / kappa[:, i - 1]
        carried = above * left(i - 1, kappa[:, i - 1])
        p = pressure[:, i - 1] * np.exp(step[i - 1])
        for _ in range(_SWEEPS):
            k = 10 ** gas(log_temperature[:, i], np.log10(p))[0]
            growth = step[i - 1] * _between(carried, tau[i] / k * left(i, k))
            p = np.sqrt(p * (pressure[:, i - 1] + gravity * growth))
        mass[:, i] = mass[:, i - 1] + step[i - 1] * _between(above, tau[i] / k)
        pressure[:, i], kappa[:, i] = p, k
    return np.log10(mass), np.log10(pressure), np.log10(kappa), push * kappa


def _between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean of an exponential between its values at the ends."""
    x = np.log(second / first)
    return first * np.where(np.abs(x) > 1e-6, np.expm1(x) / np.where(x == 0, 1.0, x), 1 + x / 2)


def extend_grid(grid: AtmosphereGrid) -> AtmosphereGrid:
    """Grid with models added below its lowest gravities, from `COOLEST` on.

    At each Teff and [M/H] models follow in steps of `STEP` to where the radiative acceleration passes `EDDINGTON` times
    gravity within `LIGHT`, at most `REACH` below the grid's own. A Teff with a single model takes the changes with
    gravity from the nearest Teff with two.

    Parameters
    ----------
    grid : AtmosphereGrid

    Returns
    -------
    AtmosphereGrid
        The models read, unchanged, then those added; ``added`` counts them. None are added to models out of LTE: their
        opacities do not follow from temperature and pressure, and their own grid ends near the Eddington limit.
    """
    if grid.nlte:
        return grid
    parts = [part for mh in np.unique(grid.mh) if (part := _below(grid, np.flatnonzero(grid.mh == mh))) is not None]
    if not parts:
        return grid
    new = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    joined = {name: np.concatenate([getattr(grid, name), values]) for name, values in new.items()}
    return replace(grid, added=len(new["teff"]), **joined)


def describe(grid: AtmosphereGrid) -> dict:
    """How many models of a grid were added, and how; JSON values."""
    if not grid.added:
        return {"models": 0}
    return {
        "models": grid.added,
        "method": "hydrostatic equilibrium; T/Teff and flux mean over Rosseland mean extrapolated in log g",
        "teff_from": COOLEST,
        "reach": REACH,
        "eddington": EDDINGTON,
        "log_tau": list(LIGHT),
    }


def _below(grid: AtmosphereGrid, rows: np.ndarray) -> dict[str, np.ndarray] | None:
    """Models to add at one [M/H], None if there are none."""
    columns = {}
    for teff in np.unique(grid.teff[rows]):
        if teff >= COOLEST:
            column = rows[grid.teff[rows] == teff]
            columns[teff] = column[np.argsort(grid.logg[column])]
    pairs = {teff: column[:2] for teff, column in columns.items() if len(column) > 1}
    if not pairs:
        return None

    def ratio(row: int) -> np.ndarray:
        layers = grid.log_rhox[row], grid.log_pressure[row], grid.log_kappa_rosseland[row]
        return np.log10(flux_mean_ratio(grid.teff[row], grid.logg[row], *layers))

    models: dict[str, list] = {name: [] for name in ("teff", "logg", "log_temperature", "ratio")}
    for teff, column in columns.items():
        one, two = pairs[min(pairs, key=lambda other: abs(np.log(other / teff)))]
        distance = grid.logg[two] - grid.logg[one]
        bend = (grid.log_temperature[one] - grid.log_temperature[two]) / distance
        turn = (ratio(one) - ratio(two)) / distance
        for down in STEP * np.arange(1, round(REACH / STEP) + 1):
            models["teff"].append(teff)
            models["logg"].append(round(grid.logg[column[0]] - down, 4))
            models["log_temperature"].append(grid.log_temperature[column[0]] + down * bend)
            models["ratio"].append(ratio(column[0]) + down * turn)
    teff, logg, log_temperature, log_ratio = (np.array(values) for values in models.values())
    gas = fit_layers(grid, rows, log_temperature.min() - _BEYOND[0])
    log_rhox, log_pressure, log_kappa, eddington = stratify(
        teff, logg, grid.log_tau, log_temperature, 10**log_ratio, gas
    )
    light = (grid.log_tau >= LIGHT[0]) & (grid.log_tau <= LIGHT[1])
    kept = (eddington[:, light].max(axis=1) < EDDINGTON) & (np.diff(log_temperature[:, light], axis=1) > 0).all(axis=1)
    # What lies below a model that is left out is left out too.
    kept = np.minimum.accumulate(kept.reshape(len(columns), -1), axis=1).ravel()
    found = {
        "teff": teff,
        "logg": logg,
        "mh": np.full(len(teff), grid.mh[rows[0]]),
        "log_rhox": log_rhox,
        "log_temperature": log_temperature,
        "log_pressure": log_pressure,
        "log_electron_density": find_electrons(gas, log_temperature, log_pressure),
        "log_kappa_rosseland": log_kappa,
    }
    return {name: values[kept] for name, values in found.items()}


def fit_layers(grid: AtmosphereGrid, rows: np.ndarray, coolest: float) -> GasTable:
    """Table of the layers of some models hotter than a temperature [log10 K]."""
    used = grid.log_temperature[rows] >= coolest
    t, p, k, e = (
        array[rows][used]
        for array in (grid.log_temperature, grid.log_pressure, grid.log_kappa_rosseland, grid.log_electron_density)
    )
    return fit_gas(t, p, k, e + t + np.log10(K_ERG) - p)


def find_electrons(gas: GasTable, log_temperature: np.ndarray, log_pressure: np.ndarray) -> np.ndarray:
    """log10 of the electron density [1/cm³] at log10 of [K] and [dyn/cm²]."""
    return gas(log_temperature, log_pressure)[1] + log_pressure - log_temperature - np.log10(K_ERG)
