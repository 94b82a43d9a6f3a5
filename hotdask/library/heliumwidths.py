"""Stark widths of He I lines that have no table, from those of the series whose members have been computed.

Helium's levels of one n and l > 1 nearly coincide, so that its diffuse lines broaden almost as hydrogen's: Unsöld's
quadratic law, which serves other atoms, makes them some thirty times too narrow.
"""

import numpy as np

from hotdask.library.state import C_CGS

_RYDBERG = 13.60383
_LIMIT = 24.587389
_P_DEFECT = 0.035
_LAST_DEFECT = 12

# Of the lines from n = 2 to the level: wavelength in air [Å] and electron-impact half width at half maximum at 20 000 K
# and 1e16 electrons/cm³ [Å], from n = 3 on. 1D and 3D (and F, which goes with them): geometric mean.
_SERIES = {
    "1P": ((5015.7, 0.328), (3964.7, 0.869), (3613.6, 2.05), (3447.6, 4.24), (3354.6, 7.85)),
    "3P": ((3888.6, 0.1155), (3187.7, 0.340), (2945.1, 0.850), (2829.1, 1.84), (2763.8, 3.55), (2723.2, 6.26)),
    "1S": ((7281.3, 0.398), (5047.7, 0.755), (4437.6, 1.65), (4169.0, 3.37), (4024.0, 6.33), (3935.9, 11.1)),
    "3S": ((7065.2, 0.231), (4713.1, 0.435), (4120.8, 0.984), (3867.5, 2.07), (3732.9, 3.97), (3652.0, 7.10)),
    "1D": (
        (6678.2, 0.341), (4921.9, 1.58), (4387.9, 3.92), (4143.8, 7.91), (4009.3, 14.1), (3926.5, 23.1), (3871.8, 35.4),
    ),
    "3D": ((5875.6, 0.172), (4471.5, 1.06), (4026.2, 2.77), (3819.6, 5.74), (3705.0, 10.4), (3634.2, 17.3)),
}  # fmt: skip


def _log_widths(series: str) -> np.ndarray:
    """log10 of the full width in angular frequency per electron [cm³/s], from n = 3 on."""
    wavelength, half = np.array(_SERIES[series]).T * 1e-8
    return np.log10(2 * np.pi * C_CGS * 2 * half / wavelength**2 / 1e16)


_D = _log_widths("1D").copy()
_D[: len(_SERIES["3D"])] = (_D[: len(_SERIES["3D"])] + _log_widths("3D")) / 2
_BY_TERM = (_log_widths("1P"), _D, _log_widths("3P"), _log_widths("1S"), _log_widths("3S"))
_DEFECTS = np.array([-0.006, _P_DEFECT, 0.1, 0.2])
"""Borders between the quantum defects of 1P, D and F, 3P, 1S and 3S."""


def helium_stark(upper: np.ndarray) -> np.ndarray:
    """Stark widths of He I lines by their upper level, which makes nearly all of the width.

    Parameters
    ----------
    upper : (n,) float64
        Energy of the upper level [eV].

    Returns
    -------
    (n,) float64
        Full width at half maximum in angular frequency per electron [cm³/s], near 20 000 K; beyond the members
        computed, their last growth with n continued, up to n = 30, where lines have long merged.

    References
    ----------
    Griem 1974, Spectral Line Broadening by Plasmas; Dimitrijević & Sahal-Bréchot 1984, JQSRT 31, 301, and 1990,
    A&AS 82, 519; as collected by Tremblay et al. 2026, ApJ 1000, 253.

    Examples
    --------
    >>> np.log10(helium_stark(np.array([23.7363, 24.4513]))).round(2).tolist()  # 4922 and 3834
    [-3.65, -1.85]
    """
    upper = np.asarray(upper, dtype=np.float64)
    effective = np.sqrt(_RYDBERG / np.maximum(_LIMIT - upper, _RYDBERG / 30**2))
    n = np.maximum(np.round(effective), 3)
    term = np.searchsorted(_DEFECTS, n - effective)
    # High up, three decimals of an energy no longer tell the terms apart, and lines to P levels are weak.
    term = np.where((n > _LAST_DEFECT) | ((n > 8) & (term == 0)), 1, term)
    out = np.empty(upper.shape)
    for i, logs in enumerate(_BY_TERM):
        rows = term == i
        log_n = np.log10(np.arange(3, 3 + len(logs)))
        beyond = (logs[-1] - logs[-2]) / (log_n[-1] - log_n[-2]) * (np.log10(n[rows]) - log_n[-1])
        out[rows] = 10 ** (np.interp(np.log10(n[rows]), log_n, logs) + np.maximum(beyond, 0.0))
    return out
