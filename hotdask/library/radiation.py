"""Transfer of light and the rates it causes, frequency by frequency."""

import numpy as np
from numba import njit

from hotdask.library.state import C_CGS, H_ERG, K_ERG

_H, _C, _K = H_ERG, C_CGS, K_ERG
_ANGLES = np.array([0.1127016654, 0.5, 0.8872983346])
_ANGLE_WEIGHTS = np.array([0.2777777778, 0.4444444444, 0.2777777778])


@njit(cache=True)
def transfer(tau_step, thermal_share, source, bottom, eddington, surface, mean, diagonal):
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
def radiative_rates(
    frequency,
    quadrature,
    absorption,
    scattering,
    bin_of,
    metal_absorbed,
    metal_emitted,
    group_of,
    lines,
    temperature,
    column,
    density,
    lower,
    upper,
    element_of,
    owner,
    first_edge,
    sigma,
    line_index,
    line_of,
    profile,
    weight,
    b,
    eddington,
    surface,
    mean,
    rates,
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
    element_eta = np.empty((owner[-1] + 1, n))
    gain, emit = np.zeros((n_level, n)), np.zeros((n_level, n))
    touched, touching = np.zeros(n_level, dtype=np.bool_), np.zeros(n_level, dtype=np.bool_)
    effective = np.empty((owner[-1] + 1, n))
    for i in range(n_frequency):
        nu = frequency[i]
        unit = 2 * _H * nu**3 / _C**2
        for k in range(n):
            ex[k] = np.exp(-_H * nu / (_K * temperature[k]))
            planck[k] = unit * ex[k] / (1 - ex[k])
            absorbed, emitted = metal_absorbed[bin_of[i], k], metal_emitted[bin_of[i], k] * ex[k]
            thermal = absorption[i, k] + lines[bin_of[i], group_of[i], k]
            chi[k] = thermal + absorbed - emitted
            eta[k] = thermal * planck[k] + unit * emitted
        element_eta[:] = 0.0
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
            low, high, e = lower[t], upper[t], element_of[t]
            for k in range(n):
                chi[k] += strength[j, k] * (b[low, k] - b[high, k] * ex[k])
                element_eta[e, k] += unit * strength[j, k] * b[high, k] * ex[k]
        for k in range(n):
            eta[k] += element_eta[:, k].sum()
            # Inverted populations must not turn the total negative.
            chi[k] = max(chi[k], 1e-4 * (absorption[i, k] + scattering[k]))
            total[k] = chi[k] + scattering[k]
            source[k] = eta[k] / total[k]
            share[k] = chi[k] / total[k]
        for k in range(n - 1):
            step[k] = 0.5 * (total[k] / density[k] + total[k + 1] / density[k + 1]) * (column[k + 1] - column[k])
        transfer(step, share, source, planck[n - 1], eddington[i], surface[i : i + 1], mean[i], diagonal)
        for k in range(n):
            diagonal[k] /= total[k]
            for e in range(len(effective)):
                effective[e, k] = max(mean[i, k] - diagonal[k] * element_eta[e, k], 0.0)
        factor = 4 * np.pi / (_H * nu) * quadrature[i]
        touched[:] = False
        touching[:] = False
        for j in range(count):
            t = active[j]
            low, high, e = lower[t], upper[t], element_of[t]
            if not touched[low]:
                gain[low] = 0.0
                touched[low] = True
            if not touched[high]:
                gain[high] = 0.0
                touched[high] = True
            if not touching[high]:
                emit[high] = 0.0
                touching[high] = True
            for k in range(n):
                s = strength[j, k]
                up = factor * s * effective[e, k]
                down = factor * s * ex[k] * (unit + effective[e, k])
                rates[low, low, k] -= up
                rates[low, high, k] += down
                rates[high, low, k] += up
                rates[high, high, k] -= down
                net = s * (b[low, k] - b[high, k] * ex[k])
                gain[low, k] -= net
                gain[high, k] += net
                emit[high, k] += unit * s * ex[k]
        for high in range(n_level):
            if not touching[high]:
                continue
            for low in range(n_level):
                if touched[low] and owner[low] == owner[high]:
                    for k in range(n):
                        rates[low, high, k] += factor * diagonal[k] * gain[low, k] * emit[high, k]
