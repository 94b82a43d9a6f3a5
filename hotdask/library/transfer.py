"""Radiative transfer: the mean intensity with scattering, and the flux that comes out."""

import math

import numpy as np
from numba import njit

_ANGLES = np.array([0.2123405382, 0.5905331356, 0.9114120405])
_WEIGHTS = np.array([0.0698269799, 0.2292411064, 0.2009319137])
"""Three-point Gauss quadrature of ∫ μ I(μ) dμ."""
_LEAST = 0.1
"""Least absorption out of LTE, in units of the continuous one."""


def eddington_factors(tau: np.ndarray, thermal: np.ndarray, planck: np.ndarray) -> tuple[np.ndarray, float]:
    """Ratio K/J in each layer and H/J at the surface, from the exact solution at one wavelength.

    Parameters
    ----------
    tau, thermal, planck : (n_layer,) float64
        Optical depth, share of the opacity that absorbs, Planck function.

    References
    ----------
    Feautrier's equations for eight angles, solved together with their scattering (Mihalas 1978, ch. 6).
    """
    n = len(tau)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    mu, weights = (nodes + 1) / 2, weights / 2
    step = np.diff(tau)
    response = np.empty((len(mu), n, n))
    for k, cosine in enumerate(mu):
        matrix = np.zeros((n, n))
        d = step / cosine
        for i in range(1, n - 1):
            middle = (d[i - 1] + d[i]) / 2
            matrix[i, i - 1], matrix[i, i + 1] = -1 / (d[i - 1] * middle), -1 / (d[i] * middle)
            matrix[i, i] = 1 - matrix[i, i - 1] - matrix[i, i + 1]
        # No light from outside (second order); thermal at the bottom.
        matrix[0, 0], matrix[0, 1] = 1 + 2 / d[0] + 2 / d[0] ** 2, -2 / d[0] ** 2
        matrix[-1, -1] = 1.0
        response[k] = np.linalg.inv(matrix)
    mean = np.einsum("k,kij->ij", weights, response)
    scattered = (1 - thermal)[None, :] * mean
    intensity = np.linalg.solve(np.eye(n) - scattered, mean @ (thermal * planck))
    source = thermal * planck + (1 - thermal) * intensity
    each = response @ source
    factor = np.einsum("k,kn->n", weights * mu**2, each) / intensity
    return factor, float((weights * mu) @ each[:, 0] / intensity[0])


@njit(cache=True)
def _row(index, fraction, table, out):
    for layer in range(out.shape[0]):
        out[layer] = table[index, layer] + fraction * (table[index + 1, layer] - table[index, layer])


@njit(cache=True, fastmath=True)
def _formal(absorption, scattering, thermal, eddington, surface, column, tau, upper, right, source):
    """Flux over π of one wavelength; the last four arguments are space to work in."""
    n_layer = len(column)
    total_above = 0.0
    for layer in range(n_layer):
        total = absorption[layer] + scattering[layer]
        if layer == 0:
            tau[0] = total * column[0]
        else:
            tau[layer] = tau[layer - 1] + 0.5 * (total + total_above) * (column[layer] - column[layer - 1])
        total_above = total

    # Moment equations, tridiagonal in J: elimination downward, substitution upward.
    absorbs = absorption[0] / (absorption[0] + scattering[0])
    below = tau[1] - tau[0]
    b = eddington[0] / below + surface + 0.5 * below * absorbs
    right[0] = 0.5 * below * absorbs * thermal[0] / b
    upper[0] = eddington[1] / below / b
    for layer in range(1, n_layer - 1):
        absorbs = absorption[layer] / (absorption[layer] + scattering[layer])
        above, below = below, tau[layer + 1] - tau[layer]
        middle = 0.5 * (above + below)
        low = eddington[layer - 1] / (above * middle)
        up = eddington[layer + 1] / (below * middle)
        b = eddington[layer] * (1 / above + 1 / below) / middle + absorbs - low * upper[layer - 1]
        right[layer] = (absorbs * thermal[layer] + low * right[layer - 1]) / b
        upper[layer] = up / b
    mean = thermal[n_layer - 1]
    source[n_layer - 1] = mean
    for layer in range(n_layer - 2, -1, -1):
        mean = right[layer] + upper[layer] * mean
        scatters = scattering[layer] / (absorption[layer] + scattering[layer])
        source[layer] = thermal[layer] + scatters * (mean - thermal[layer])

    flux = 0.0
    for k in range(3):
        inverse = 1 / _ANGLES[k]
        # Above the first layer the source is taken as constant.
        through = math.exp(-tau[0] * inverse)
        intensity = source[0] * (1 - through)
        for layer in range(n_layer - 1):
            step = (tau[layer + 1] - tau[layer]) * inverse
            if step > 0.01:
                left = math.exp(-step)
                mean_left = (1 - left) / step
            else:
                mean_left = 1 - step * (0.5 - step / 6)
                left = 1 - step * mean_left
            intensity += through * (source[layer] * (1 - mean_left) + source[layer + 1] * (mean_left - left))
            through *= left
            if through < 1e-7:
                break
        else:
            # What is left comes from below, where the source grows in proportion to depth.
            gradient = (source[n_layer - 1] - source[n_layer - 2]) / step
            intensity += through * (source[n_layer - 1] + gradient)
        flux += _WEIGHTS[k] * intensity
    return 2 * flux


@njit(cache=True, fastmath=True)
def emergent_flux(
    lines,
    hydrogen,
    hydrogen_index,
    hydrogen_fraction,
    absorption,
    extra_absorption,
    scattering,
    planck,
    factor,
    surface,
    index,
    fraction,
    column,
):
    """Flux at the surface, in LTE and, with what lines have beyond it, out of LTE.

    Parameters
    ----------
    lines : (n_set, n_layer, n_wavelength) float64
        Opacity of lines in LTE [cm²/g]. Of three sets, the second is what absorption has beyond LTE, the third what
        emission over the Planck function has.
    hydrogen : (n_set, n_node, n_layer) float64
        The same of hydrogen lines, on nodes of their own, interpolated by ``hydrogen_index, _fraction``.
    absorption, extra_absorption, scattering, planck, factor : (n_coarse, n_layer) float64
        Continuous opacities [cm²/g], in LTE and what absorption has beyond it, Planck function, K/J, interpolated by
        ``index, fraction``.
    surface : (n_coarse,) float64
        H/J at the surface.
    column : (n_layer,) float64
        Mass above each layer [g/cm²].

    Returns
    -------
    (1 or 2, n_wavelength) float64
        Over π, in the unit of the Planck function: in LTE; and out of LTE, if there are three sets.

    References
    ----------
    Variable Eddington factors (Auer & Mihalas 1970, MNRAS 149, 65): scattering as in the continuum, with the lines'
    own absorption. The flux is a formal integral with a source function linear between layers.
    """
    n_set, n_layer, n_wave = lines.shape
    out = np.empty((1 if n_set == 1 else 2, n_wave))
    continuous, extra, sigma, source_thermal, eddington = (
        np.empty(n_layer),
        np.empty(n_layer),
        np.empty(n_layer),
        np.empty(n_layer),
        np.empty(n_layer),
    )
    kappa, thermal = np.empty(n_layer), np.empty(n_layer)
    by_hydrogen = np.empty((n_set, n_layer))
    source, tau, upper, right = np.empty(n_layer), np.empty(n_layer), np.empty(n_layer), np.empty(n_layer)
    for w in range(n_wave):
        i, x = index[w], fraction[w]
        _row(i, x, absorption, continuous)
        _row(i, x, scattering, sigma)
        _row(i, x, planck, source_thermal)
        _row(i, x, factor, eddington)
        for k in range(n_set):
            _row(hydrogen_index[w], hydrogen_fraction[w], hydrogen[k], by_hydrogen[k])
        h = surface[i] + x * (surface[i + 1] - surface[i])
        for layer in range(n_layer):
            kappa[layer] = continuous[layer] + lines[0, layer, w] + by_hydrogen[0, layer]
        out[0, w] = _formal(kappa, sigma, source_thermal, eddington, h, column, tau, upper, right, source)
        if n_set == 1:
            continue
        _row(i, x, extra_absorption, extra)
        for layer in range(n_layer):
            emission = kappa[layer] + lines[2, layer, w] + by_hydrogen[2, layer]
            # Where levels are inverted, emission without absorption is as much as this engine can say.
            kappa[layer] = max(
                kappa[layer] + extra[layer] + lines[1, layer, w] + by_hydrogen[1, layer], _LEAST * continuous[layer]
            )
            thermal[layer] = source_thermal[layer] * max(emission, 0.0) / kappa[layer]
        out[1, w] = _formal(kappa, sigma, thermal, eddington, h, column, tau, upper, right, source)
    return out
