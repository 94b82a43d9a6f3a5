"""Statistical equilibrium of hydrogen and helium on a given structure: departure coefficients of their levels.

A departure coefficient b is the population of a level over that which the Saha and Boltzmann equations give with the
model's own temperature and electron density and the same total of the element. Rates by light are iterated with the
radiation field (accelerated Λ-iteration, diagonal operator, preconditioned rates); temperature, density and electrons
stay as they are.

All populations are kept as departure coefficients b and weights n* (level over total, in LTE). In them a transition
between a lower level l and an upper level u, bound or free, with cross section σ, has the opacity
n*_l σ (b_l - b_u e^(-hν/kT)) and the emissivity 2hν³/c² n*_l σ b_u e^(-hν/kT); b_l = b_u = 1 gives LTE at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hotdask.errors import SynthesisError
from hotdask.library.atoms import MASSES
from hotdask.library.blanketing import GROUPS
from hotdask.library.elements import ModelElement, collision_rates, line_profile, lte_fractions
from hotdask.library.metalions import MetalGas, ionization_balance, metal_absorption
from hotdask.library.radiation import radiative_rates
from hotdask.library.state import ATOMIC_MASS, C_CGS, H_ERG, K_ERG

_LINE = 0.02654008
"""π e²/mc [cm² Hz]."""
_N_CONTINUUM, _N_ULTRAVIOLET = 800, 2500
"""Frequencies of the continuum, and those among which the distribution of metal lines is drawn."""
_OFFSETS_HYDROGEN = np.array([0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 25, 45, 80, 150, 300, 600.0])
_OFFSETS = np.array([0, 0.6, 1.2, 1.8, 2.4, 3.2, 4.5, 7, 12, 25, 60.0, 150, 400])
"""Frequencies of a line, in Doppler widths from its center."""
_FARTHEST = 0.03
"""No line reaches farther than this share of its frequency."""


@dataclass(frozen=True)
class Background:
    """Opacity besides that of the levels.

    Attributes
    ----------
    absorption : (n_frequency, n_layer) float64
        In LTE [1/cm].
    scattering : (n_layer,) float64
        [1/cm].
    metals : MetalGas or None
        Metals in ionization equilibrium with the radiation.
    edges : (n_bin + 1,) float64
        Edges of the bins of ``metals`` and ``lines`` [Hz].
    lines : (n_bin, n_group, n_layer) float64 or None
        Opacity of metal lines in LTE, of `hotdask.library.blanketing.line_distribution` [1/cm].
    """

    absorption: np.ndarray
    scattering: np.ndarray
    metals: MetalGas | None = None
    edges: np.ndarray | None = None
    lines: np.ndarray | None = None


def frequency_grid(elements: Sequence[ModelElement], temperature: float, vmic: float) -> np.ndarray:
    """Frequencies [Hz], ascending: a coarse continuum, both sides of every threshold, and every line.

    Parameters
    ----------
    elements : sequence of ModelElement
    temperature : float
        At which lines have their Doppler width [K].
    vmic : float
        [km/s].
    """
    nodes = [np.geomspace(5e13, 3e16, _N_CONTINUUM), np.geomspace(1e15, 1e16, _N_ULTRAVIOLET)]
    for element in elements:
        edges = element.binding[:-1]
        edges = edges[edges > nodes[0][0]]
        nodes += [edges * (1 - 1e-6), edges * (1 + 1e-6)]
        velocity = np.sqrt(2 * K_ERG * temperature / (MASSES[element.z - 1] * ATOMIC_MASS) + (vmic * 1e5) ** 2)
        for center, hydrogenic in zip(element.line_frequency, element.line_hydrogenic, strict=True):
            if center * (1 - 0.01) > nodes[0][0]:
                offsets = (_OFFSETS_HYDROGEN if hydrogenic else _OFFSETS) * velocity / C_CGS
                offsets = offsets[offsets < _FARTHEST]
                nodes += [center * (1 + offsets), center * (1 - offsets)]
    grid = np.unique(np.concatenate(nodes))
    return grid[np.concatenate([[True], np.diff(grid) > 3e-7 * grid[1:]])]


@dataclass(frozen=True)
class Equilibrium:
    """Solution of the equations of statistical equilibrium.

    Attributes
    ----------
    b : tuple of (n_level, n_layer) float64
        Departure coefficients, element by element.
    iterations : int
    change : float
        Largest relative change of a coefficient in the last iteration.
    frequency : (n_frequency,) float64
        [Hz].
    mean_intensity : (n_frequency, n_layer) float64
        J [erg/s/cm²/Hz/sr].
    flux : (n_frequency,) float64
        Eddington flux H at the surface, in the unit of J.
    """

    b: tuple[np.ndarray, ...]
    iterations: int
    change: float
    frequency: np.ndarray
    mean_intensity: np.ndarray
    flux: np.ndarray


def planck(frequency: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """Planck function [erg/s/cm²/Hz/sr], (n_frequency, n_layer)."""
    nu = frequency[:, None]
    return 2 * H_ERG * nu**3 / C_CGS**2 / np.expm1(H_ERG * nu / (K_ERG * temperature))


def _quadrature(frequency: np.ndarray) -> np.ndarray:
    step = np.diff(frequency)
    return (np.concatenate([step, [0.0]]) + np.concatenate([[0.0], step])) / 2


def _bin_means(values, quadrature, bin_of, n_bin):
    """Means over bins of frequencies in ascending order; a bin without any has zero."""
    start = np.searchsorted(bin_of, np.arange(n_bin + 1))
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values * quadrature[:, None], axis=0)])
    width = np.concatenate([[0.0], np.cumsum(quadrature)])
    width = width[start[1:]] - width[start[:-1]]
    return (total[start[1:]] - total[start[:-1]]) / np.maximum(width, 1e-300)[:, None]


def _line_table(elements, frequency, temperature, electrons, vmic):
    """Lines at each frequency as rows of a sparse table: start of each row, line numbers, cross sections."""
    entries = []
    number = 0
    for element in elements:
        velocity = np.sqrt(2 * K_ERG * temperature.max() / (MASSES[element.z - 1] * ATOMIC_MASS) + (vmic * 1e5) ** 2)
        for line, center in enumerate(element.line_frequency):
            offsets = _OFFSETS_HYDROGEN if element.line_hydrogenic[line] else _OFFSETS
            reach = min(offsets[-1] * velocity / C_CGS, _FARTHEST) * center * (1 + 1e-9)
            first, last = np.searchsorted(frequency, [center - reach, center + reach])
            if center < frequency[0] * 1.01 or last - first < 3:
                number += 1
                continue
            profile = line_profile(element, line, frequency[first:last], temperature, electrons, vmic)
            cross_section = _LINE * element.line_strength[line] * profile
            entries.append((np.arange(first, last), np.full(last - first, number), cross_section))
            number += 1
    index, line_of, profile = (np.concatenate([entry[i] for entry in entries]) for i in range(3))
    order = np.argsort(index, kind="stable")
    start = np.searchsorted(index[order], np.arange(len(frequency) + 1))
    return start, line_of[order], np.ascontiguousarray(profile[order])


def solve_equilibrium(
    elements: Sequence[ModelElement],
    totals: Sequence[np.ndarray],
    frequency: np.ndarray,
    background: Background,
    temperature: np.ndarray,
    electron_density: np.ndarray,
    density: np.ndarray,
    column: np.ndarray,
    *,
    vmic: float = 2.0,
    collision_scale: float = 1.0,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
) -> Equilibrium:
    """Populations of all levels in statistical equilibrium.

    Parameters
    ----------
    elements : sequence of ModelElement
        One or two.
    totals : sequence of (n_layer,) float64
        Nuclei of each element [1/cm³].
    frequency : (n_frequency,) float64
        Of `frequency_grid` [Hz].
    background : Background
        At those frequencies.
    temperature, electron_density, density, column : (n_layer,) float64
        [K], [1/cm³], [g/cm³], [g/cm²], from the top downward.
    vmic : float
        Microturbulent velocity [km/s].
    collision_scale : float
        Factor on all collision rates, for tests.
    tolerance : float
        Relative change of a departure coefficient at which to stop.
    max_iterations : int

    Raises
    ------
    SynthesisError
        If the iteration does not converge.

    References
    ----------
    Rybicki & Hummer 1991, A&A 245, 171 (diagonal of Λ); 1992, A&A 262, 209 (preconditioned rates). Ng 1974, J. Chem.
    Phys. 61, 2680 (acceleration).
    """
    n = len(temperature)
    sizes = np.array([len(element.weight) for element in elements])
    first = np.cumsum(np.concatenate([[0], sizes]))
    owner = np.repeat(np.arange(len(elements)), sizes)
    share = [lte_fractions(element, temperature, electron_density) for element in elements]
    weight = np.concatenate([s * total for s, total in zip(share, totals, strict=True)])
    lower = np.concatenate(
        [f + np.arange(size - 1) for f, size in zip(first, sizes, strict=False)]
        + [f + e.line_lower for f, e in zip(first, elements, strict=False)]
    )
    upper = np.concatenate(
        [f + e.continuum for f, e in zip(first, elements, strict=False)]
        + [f + e.line_upper for f, e in zip(first, elements, strict=False)]
    )
    sigma = np.concatenate(
        [
            [ion.photoionization(level, frequency) for level in range(len(ion.binding))]
            for element in elements
            for ion in element.ions
        ]
    )
    first_edge = np.array([np.argmax(row > 0) for row in sigma])
    start, line_of, profile = _line_table(elements, frequency, temperature, electron_density, vmic)
    by_collisions = np.zeros((first[-1], first[-1], n))
    for f, element in zip(first, elements, strict=False):
        for level, higher, rate in collision_rates(element, temperature):
            flow = collision_scale * electron_density * rate * weight[f + level]
            for row, sign in ((f + level, -1), (f + higher, 1)):
                by_collisions[row, f + level] += sign * flow
                by_collisions[row, f + higher] -= sign * flow

    b = np.ones((first[-1], n))
    quadrature = _quadrature(frequency)
    mean = np.zeros((len(frequency), n))
    eddington, surface = np.full((len(frequency), n), 1 / 3), np.full(len(frequency), 0.5)
    metals = background.metals
    if metals is None:
        bin_of, absorbed = np.zeros(len(frequency), dtype=np.int64), np.zeros((1, n))
        emitted = absorbed
    else:
        bin_of = np.clip(np.searchsorted(background.edges, frequency) - 1, 0, len(metals.frequency) - 1)
        absorbed, emitted = metal_absorption(metals, [np.ones_like(share) for share in metals.share])
        b_planck = planck(frequency, temperature)
    lines = background.lines
    if lines is None:
        lines = np.zeros((max(bin_of) + 1, 1, n))
        group_of = np.zeros(len(frequency), dtype=np.int64)
    else:
        # Successive frequencies see different shares of the lines, in proportion.
        draw = np.arange(len(frequency)) * 0.6180339887498949 % 1
        group_of = np.minimum(np.searchsorted(np.cumsum(GROUPS), draw), len(GROUPS) - 1)
    history: list[np.ndarray] = []
    for iteration in range(1, max_iterations + 1):
        rates = by_collisions.copy()
        radiative_rates(
            frequency, quadrature, background.absorption, background.scattering, bin_of, absorbed, emitted,
            group_of, lines,
            temperature, column, density, lower, upper, owner[lower], owner, first_edge, sigma, start, line_of, profile,
            weight, b, eddington, surface, mean, rates,
        )  # fmt: skip
        if metals is not None:
            means = (_bin_means(x, quadrature, bin_of, len(metals.frequency)) for x in (mean, b_planck))
            absorbed, emitted = metal_absorption(metals, ionization_balance(metals, *means))
        new = np.empty_like(b)
        for e, (begin, end) in enumerate(pairwise(first)):
            matrix = rates[begin:end, begin:end].transpose(2, 0, 1).copy()
            matrix /= np.abs(np.einsum("kll->kl", matrix))[:, :, None]
            main = np.argmax(weight[begin:end], axis=0)
            right = np.zeros((n, end - begin))
            matrix[np.arange(n), main] = (weight[begin:end] / totals[e]).T
            right[np.arange(n), main] = 1.0
            new[begin:end] = np.linalg.solve(matrix, right[..., None])[..., 0].T
        new = np.maximum(new, 1e-6)
        change = float(np.max(np.abs(new / b - 1)))
        if change < tolerance and iteration > 3:
            return Equilibrium(
                tuple(np.split(new, first[1:-1])), iteration, change, frequency, mean, surface * mean[:, 0]
            )
        history.append(np.log(new))
        if len(history) == 4:
            new = np.exp(_ng(history))
            history = [np.log(new)]
        b = new
    raise SynthesisError(
        f"statistical equilibrium changes by {change:.2g} after {max_iterations} iterations, more than {tolerance:g}"
    )


def _ng(history: list[np.ndarray]) -> np.ndarray:
    """Extrapolate four successive iterates, layer by layer."""
    out = history[-1].copy()
    for k in range(out.shape[1]):
        x0, x1, x2, x3 = (h[:, k] for h in history)
        q1, q2, q3 = x3 - 2 * x2 + x1, x3 - x2 - x1 + x0, x3 - x2
        a11, a12, a22, c1, c2 = q1 @ q1, q1 @ q2, q2 @ q2, q1 @ q3, q2 @ q3
        determinant = a11 * a22 - a12**2
        if determinant > 1e-12 * a11 * a22:
            alpha, beta = (c1 * a22 - c2 * a12) / determinant, (c2 * a11 - c1 * a12) / determinant
            step = (1 - alpha - beta) * x3 + alpha * x2 + beta * x1 - x3
            out[:, k] = x3 + np.clip(step, -0.5, 0.5)
    return out
