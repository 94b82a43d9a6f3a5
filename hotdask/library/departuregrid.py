"""Departure coefficients of hydrogen and helium on the structures of a grid of model atmospheres."""

from collections.abc import Callable, Sequence

import numpy as np

from hotdask.errors import SynthesisError
from hotdask.library import opacity
from hotdask.library.atmospheres import AtmosphereGrid
from hotdask.library.atoms import MASSES
from hotdask.library.blanketing import line_distribution
from hotdask.library.elements import hydrogen_and_helium
from hotdask.library.equilibrium import Background, Equilibrium, frequency_grid, solve_equilibrium
from hotdask.library.metalions import metal_gas
from hotdask.library.state import ATOMIC_MASS, C_CGS, H_ERG, K_ERG, State, solve_state

_N_BIN = 500
_THOMSON = 6.6524587e-25
_HYDRIDE_RANGE = (2000.0, 60000.0)
"""Wavelengths at which H⁻ counts [Å]: below, metals and hydrogen hide it."""
_PER_EV = 2.417989242e14
_THIN = 2
"""Layers of a structure to one of a table."""


def make_background(
    frequency: np.ndarray, state: State, abundances: np.ndarray, vmic: float, iron: float
) -> Background:
    """Opacity besides that of the levels of H and He.

    Parameters
    ----------
    frequency : (n_frequency,) float64
        [Hz], ascending.
    state : State
        The gas in LTE.
    abundances : (n_element,) float64
        Number fractions, hydrogen first.
    vmic : float
        Microturbulent velocity [km/s].
    iron : float
        Strength of the forest of iron lines. With 1 (not adjusted) line-blanketed NLTE structures of 15-30 kK radiate
        σ Teff⁴ to 3 %; six ATLAS9 structures of 12-35 kK radiate 3-13 % more, three of 8-10 kK 12-18 % more.
    """
    abundances = abundances / abundances.sum()
    wavelength = 1e8 * C_CGS / frequency
    stimulated = 1 - np.exp(-H_ERG / K_ERG * frequency[:, None] / state.temperature)
    absorption = opacity.free_free(frequency, state) * stimulated
    near = (wavelength > _HYDRIDE_RANGE[0]) & (wavelength < _HYDRIDE_RANGE[1])
    absorption[near] += np.maximum(opacity.hminus(wavelength[near], state), 0.0)
    edges = np.geomspace(frequency[0] * (1 - 1e-9), frequency[-1] * (1 + 1e-9), _N_BIN + 1)
    nuclei = state.density / (abundances @ MASSES[: len(abundances)] * ATOMIC_MASS)
    return Background(
        absorption=absorption,
        scattering=_THOMSON * state.electron_density,
        metals=metal_gas(edges, state.temperature, state.electron_density, nuclei, abundances),
        edges=edges,
        lines=line_distribution(edges, state.temperature, state.electron_density, state.ions, vmic, iron),
    )


def departures(
    temperature: np.ndarray,
    pressure: np.ndarray,
    column: np.ndarray,
    abundances: np.ndarray,
    *,
    vmic: float = 2.0,
    iron: float = 1.0,
    max_iterations: int = 200,
) -> Equilibrium:
    """Departure coefficients of H, He I and He II in one atmosphere.

    Parameters
    ----------
    temperature, pressure, column : (n_layer,) float64
        [K], gas pressure [dyn/cm²], column mass [g/cm²], from the top downward.
    abundances : (n_element,) float64
        Number fractions, hydrogen first.
    vmic : float
        Microturbulent velocity [km/s].
    iron : float
        Of `make_background`.

    Raises
    ------
    SynthesisError
        If the iteration does not converge.
    """
    abundances = abundances / abundances.sum()
    state = solve_state(temperature, pressure, abundances)
    elements = hydrogen_and_helium()
    frequency = frequency_grid(elements, float(np.median(temperature)), vmic)
    nuclei = state.density / (abundances @ MASSES[: len(abundances)] * ATOMIC_MASS)
    return solve_equilibrium(
        elements,
        [nuclei * abundances[0], nuclei * abundances[1]],
        frequency,
        make_background(frequency, state, abundances, vmic, iron),
        state.temperature,
        state.electron_density,
        state.density,
        column,
        vmic=vmic,
        max_iterations=max_iterations,
    )


def departure_table(
    grid: AtmosphereGrid,
    abundances: np.ndarray,
    models: Sequence[tuple[float, float]],
    *,
    vmic: float = 2.0,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, np.ndarray]:
    """Departure coefficients on structures of solar composition; a model takes some ten seconds.

    Parameters
    ----------
    grid : AtmosphereGrid
    abundances : (n_element,) float64
        Number fractions, hydrogen first.
    models : sequence of (teff, logg)
        [K], log10 [cm/s²].
    vmic : float
        Microturbulent velocity [km/s].
    report : callable
        Called with a line of text after each model.

    Returns
    -------
    dict of arrays
        ``teff``, ``logg`` (n_model,); ``log_column`` (n_model, n_layer), log10 of the column mass [g/cm²];
        ``temperature`` (n_model, n_layer) [K]; ``ln_b`` (n_model, n_layer, n_level); ``z``, ``charge`` (0 = neutral),
        ``binding`` [eV] below the ion's limit (n_level,). Every `_THIN`-th layer.

    Raises
    ------
    SynthesisError
        If the grid has no such model, or one does not converge.
    """
    thin = slice(None, None, _THIN)
    ln_b, log_column, temperature = [], [], []
    for teff, logg in models:
        name = f"Teff {teff:.0f} K, log g {logg:.2f}"
        atmosphere = grid.interpolate(teff, logg, 0.0)
        try:
            solution = departures(atmosphere.temperature, atmosphere.pressure, atmosphere.rhox, abundances, vmic=vmic)
        except SynthesisError as error:
            raise SynthesisError(f"{error}, in the model at {name}") from error
        ln_b.append(np.log(np.concatenate(solution.b)).T[thin])
        log_column.append(np.log10(atmosphere.rhox)[thin])
        temperature.append(atmosphere.temperature[thin])
        report(f"{name}: {solution.iterations} iterations")
    elements = hydrogen_and_helium()
    return {
        "teff": np.array([teff for teff, _ in models]),
        "logg": np.array([logg for _, logg in models]),
        "log_column": np.array(log_column),
        "temperature": np.array(temperature),
        "ln_b": np.array(ln_b, dtype=np.float32),
        "z": np.concatenate([np.full(len(element.weight), element.z) for element in elements]),
        "charge": np.concatenate([element.charge for element in elements]),
        "binding": np.concatenate([element.binding for element in elements]) / _PER_EV,
    }
