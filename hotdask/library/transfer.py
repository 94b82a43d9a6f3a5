"""Radiative transfer: the mean intensity with scattering, and the flux that comes out."""

import math

import numpy as np
from numba import njit

_ANGLES = np.array([0.2123405382, 0.5905331356, 0.9114120405])
_WEIGHTS = np.array([0.0698269799, 0.2292411064, 0.2009319137])
"""Three-point Gauss quadrature of ∫ μ I(μ) dμ."""


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
def emergent_flux(
    lines,
    hydrogen,
    hydrogen_index,
    hydrogen_fraction,
    absorption,
    scattering,
    planck,
    factor,
    surface,
    index,
    fraction,
    column,
):
    """Flux at the surface.

    Parameters
    ----------
    lines : (n_layer, n_wavelength) float64
        Opacity of lines [cm²/g].
    hydrogen : (n_node, n_layer) float64
        Opacity of hydrogen lines on nodes of their own [cm²/g], interpolated by ``hydrogen_index, _fraction``.
    absorption, scattering, planck, factor : (n_coarse, n_layer) float64
        Continuous opacities [cm²/g], Planck function, K/J, interpolated by ``index, fraction``.
    surface : (n_coarse,) float64
        H/J at the surface.
    column : (n_layer,) float64
        Mass above each layer [g/cm²].

    Returns
    -------
    (n_wavelength,) float64
        Over π, in the unit of the Planck function.

    References
    ----------
    Variable Eddington factors (Auer & Mihalas 1970, MNRAS 149, 65): scattering as in the continuum, with the lines'
    own absorption. The flux is a formal integral with a source function linear between layers.
    """
    n_layer, n_wave = lines.shape
    out = np.empty(n_wave)
    kappa, sigma, source_thermal, eddington = (
        np.empty(n_layer),
        np.empty(n_layer),
        np.empty(n_layer),
        np.empty(n_layer),
    )
    hydrogen_row, source, tau = np.empty(n_layer), np.empty(n_layer), np.empty(n_layer)
    upper, right = np.empty(n_layer), np.empty(n_layer)
    for w in range(n_wave):
        i, x = index[w], fraction[w]
        _row(i, x, absorption, kappa)
        _row(i, x, scattering, sigma)
        _row(i, x, planck, source_thermal)
        _row(i, x, factor, eddington)
        _row(hydrogen_index[w], hydrogen_fraction[w], hydrogen, hydrogen_row)
        h = surface[i] + x * (surface[i + 1] - surface[i])
        total_above = 0.0
        for layer in range(n_layer):
            kappa[layer] += lines[layer, w] + hydrogen_row[layer]
            total = kappa[layer] + sigma[layer]
            if layer == 0:
                tau[0] = total * column[0]
            else:
                tau[layer] = tau[layer - 1] + 0.5 * (total + total_above) * (column[layer] - column[layer - 1])
            total_above = total
            sigma[layer] /= total

        # Moment equations, tridiagonal in J: elimination downward, substitution upward.
        thermal = 1 - sigma[0]
        below = tau[1] - tau[0]
        b = eddington[0] / below + h + 0.5 * below * thermal
        right[0] = 0.5 * below * thermal * source_thermal[0] / b
        upper[0] = eddington[1] / below / b
        for layer in range(1, n_layer - 1):
            thermal = 1 - sigma[layer]
            above, below = below, tau[layer + 1] - tau[layer]
            middle = 0.5 * (above + below)
            low = eddington[layer - 1] / (above * middle)
            up = eddington[layer + 1] / (below * middle)
            b = eddington[layer] * (1 / above + 1 / below) / middle + thermal - low * upper[layer - 1]
            right[layer] = (thermal * source_thermal[layer] + low * right[layer - 1]) / b
            upper[layer] = up / b
        mean = source_thermal[n_layer - 1]
        source[n_layer - 1] = mean
        for layer in range(n_layer - 2, -1, -1):
            mean = right[layer] + upper[layer] * mean
            source[layer] = source_thermal[layer] + sigma[layer] * (mean - source_thermal[layer])

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
        out[w] = 2 * flux
    return out
