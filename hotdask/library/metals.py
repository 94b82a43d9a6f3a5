"""Lines of a list as Voigt profiles, each drawn only as far as it matters."""

import math

import numpy as np
from numba import njit
from scipy.special import dawsn

_TABLE_STEP = 0.01
_STRIDE = 5
_V = np.arange(0, 6.02, _TABLE_STEP)
_H0 = np.exp(-(_V**2))
_H1 = 2 / np.sqrt(np.pi) * (2 * _V * dawsn(_V) - 1)
_H2 = (1 - 2 * _V**2) * _H0


def _weideman(n: int) -> tuple[float, np.ndarray]:
    """Scale and coefficients of a rational approximation to the Faddeeva function."""
    scale = math.sqrt(n / math.sqrt(2))
    theta = np.arange(-2 * n + 1, 2 * n) * np.pi / (2 * n)
    t = scale * np.tan(theta / 2)
    f = np.concatenate([[0.0], np.exp(-(t**2)) * (scale**2 + t**2)])
    return scale, np.real(np.fft.fft(np.fft.fftshift(f)))[1 : n + 1][::-1] / (4 * n)


_SCALE, _COEFFICIENTS = _weideman(24)


@njit(cache=True)
def voigt(a: float, v: float) -> float:
    """Voigt function H(a, v) for v ≥ 0, of area √π; good to 4e-4 of its peak, 0.15 % locally.

    References
    ----------
    Kurucz 1970, SAO SR 309 (expansion for small a); Weideman 1994, SIAM J. Num. Anal. 31, 1497.

    Examples
    --------
    >>> round(voigt(0.0, 1.0), 4)
    0.3679
    """
    if v + a > 15:
        square = v * v
        return 0.5641896 * a / (square + a * a) * (1 + (1.5 * square - 0.5 * a * a) / (square + a * a) ** 2)
    if a < 0.1:
        if v >= 6:
            inverse = 1 / (v * v)
            return 0.5641896 * a * inverse * (1 + inverse * (1.5 + 3.75 * inverse))
        x = v / _TABLE_STEP
        i = int(x)
        x -= i
        value = _H0[i] + x * (_H0[i + 1] - _H0[i]) + a * (_H1[i] + x * (_H1[i + 1] - _H1[i]))
        return value + a * a * _H2[i]
    z = complex(v, a)
    denominator = _SCALE - 1j * z
    ratio = (_SCALE + 1j * z) / denominator
    total = 0j
    for c in _COEFFICIENTS:
        total = total * ratio + c
    return (2 * total / (denominator * denominator) + 0.5641895835 / denominator).real


@njit(cache=True, fastmath=True)
def add_lines(
    opacity,
    departure,
    threshold,
    threshold_index,
    position,
    ln_step,
    frequency,
    strength,
    energy,
    ion,
    element,
    lower,
    upper,
    gamma_rad,
    gamma_stark,
    gamma_vdw,
    population,
    doppler,
    inverse_kt,
    electrons,
    perturbers,
):
    """Add lines to an opacity, in place.

    Parameters
    ----------
    opacity : (n_set, n_layer, n_wavelength) float64
        [cm²/g], even in ln λ: in LTE, and in two more sets, if there are any, what absorption and emission over the
        Planck function have beyond that.
    departure : (n_level, n_layer) float64
        Departure coefficients, the last row being ones.
    threshold : (n_coarse, n_layer) float64
        Opacity below which a line is not drawn [cm²/g]; line i looks at row ``threshold_index[i]``.
    position : (n_line,) float64
        Where the line's center falls, in pixels.
    ln_step : float
        Δ ln λ of a pixel.
    frequency, strength, energy : (n_line,) float64
        [Hz]; gf; lower level [eV].
    ion, element : (n_line,) int64
        Rows of ``population`` and ``doppler``.
    lower, upper : (n_line,) int64
        Rows of ``departure``.
    gamma_rad, gamma_stark, gamma_vdw : (n_line,) float64
        Damping [1/s], [1/s per electron/cm³], [1/s per perturber/cm³].
    population : (n_ion, n_layer) float64
        Ions over partition function, over density [1/g].
    doppler : (n_element, n_layer) float64
        Doppler velocity over the speed of light.
    inverse_kt : (n_layer,) float64
        [1/eV].
    electrons, perturbers : (n_layer,) float64
        [1/cm³]; perturbers weighted by their van der Waals strength and (T/10⁴ K)^0.3.

    References
    ----------
    Mihalas 1978, Stellar Atmospheres, eqs 4-13 and 4-14: out of LTE absorption is (b_l − b_u e⁻ˣ)/(1 − e⁻ˣ) and
    emission b_u times that of LTE, x = hν/kT.
    """
    n_set, n_layer, n_pixel = opacity.shape
    ones = len(departure) - 1
    for line in range(len(position)):
        populations, widths, cuts = population[ion[line]], doppler[element[line]], threshold[threshold_index[line]]
        # 0.02654 = π e²/mc [cm²/s], over √π; 4.135667696e-15 eV s = h.
        scale = 0.02654008 / 1.7724538509 * strength[line] / frequency[line]
        matters = False
        # Strengths change slowly with depth: what is below half the threshold in every fifth layer never matters.
        for layer in range(0, n_layer, _STRIDE):
            peak = scale * populations[layer] / widths[layer]
            if peak > 0.5 * cuts[layer] and peak * math.exp(-energy[line] * inverse_kt[layer]) > 0.5 * cuts[layer]:
                matters = True
                break
        if not matters:
            continue
        center = position[line]
        right = math.floor(center) + 1
        for layer in range(n_layer):
            beta = inverse_kt[layer]
            peak = scale * populations[layer] / widths[layer] * math.exp(-energy[line] * beta)
            induced = math.exp(-4.135667696e-15 * frequency[line] * beta)
            peak *= 1 - induced
            cut = cuts[layer]
            if peak < cut:
                continue
            departs = n_set == 3 and (lower[line] < ones or upper[line] < ones)
            absorbed = emitted = 0.0
            if departs:
                below, above = departure[lower[line], layer], departure[upper[line], layer]
                absorbed, emitted = (below - above * induced) / (1 - induced) - 1, above - 1
                departs = abs(absorbed) > 1e-3 or abs(emitted) > 1e-3
            gamma = gamma_rad[line] + gamma_stark[line] * electrons[layer] + gamma_vdw[line] * perturbers[layer]
            a = gamma / (12.566370614 * widths[layer] * frequency[line])
            step = ln_step / widths[layer]
            row = opacity[0, layer]
            for i in range(max(right, 0), n_pixel):
                value = peak * voigt(a, (i - center) * step)
                row[i] += value
                if departs:
                    opacity[1, layer, i] += value * absorbed
                    opacity[2, layer, i] += value * emitted
                if value < cut:
                    break
            for i in range(min(right - 1, n_pixel - 1), -1, -1):
                value = peak * voigt(a, (center - i) * step)
                row[i] += value
                if departs:
                    opacity[1, layer, i] += value * absorbed
                    opacity[2, layer, i] += value * emitted
                if value < cut:
                    break
