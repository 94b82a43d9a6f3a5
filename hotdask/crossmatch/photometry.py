"""Absolute magnitudes and intrinsic colors, and the cool stars they give away."""

import numpy as np

A_KS, A_BP, A_RP = 0.34, 3.24, 1.91
"""Extinction per E(B-V): Yuan et al. 2013; Chen et al. 2019."""


def absolute_ks(ks, distance, ebv) -> np.ndarray:
    """Absolute magnitude in Ks.

    Parameters
    ----------
    ks : (n,) float64
        Apparent magnitude [mag].
    distance : (n,) float64
        [pc]; NaN is given where it is not positive.
    ebv : (n,) float64
        E(B-V) [mag].

    Returns
    -------
    (n,) float64
        [mag]

    References
    ----------
    Xiang et al. 2022, §5.3.

    Examples
    --------
    >>> absolute_ks([10.34], [100.0], [1.0]).round(6).tolist()
    [5.0]
    """
    ks, distance, ebv = (np.asarray(a, dtype=np.float64) for a in (ks, distance, ebv))
    distance = np.where(distance > 0, distance, np.nan)
    return ks - 5 * np.log10(distance / 10) - A_KS * ebv


def intrinsic_bp_rp(bp, rp, ebv) -> np.ndarray:
    """Gaia color (BP-RP)0 [mag] of (n,) magnitudes and E(B-V) [mag].

    References
    ----------
    Xiang et al. 2022, §5.3.

    Examples
    --------
    >>> intrinsic_bp_rp([12.53], [11.0], [1.0]).round(6).tolist()
    [0.2]
    """
    bp, rp, ebv = (np.asarray(a, dtype=np.float64) for a in (bp, rp, ebv))
    return bp - rp - (A_BP - A_RP) * ebv


def intrinsically_cool(bp_rp_0, teff, exempt, *, max_bp_rp_0: float = 0.4, min_teff: float = 7000.0) -> np.ndarray:
    """Cool stars that noise gave a high temperature: red, and cool by an independent temperature.

    Parameters
    ----------
    bp_rp_0 : (n,) float64
        [mag]
    teff : (n,) float64
        From another method [K].
    exempt : (n,) bool
        Never called cool: stars of the OB catalog.

    Returns
    -------
    (n,) bool
        False where either measurement is missing.

    References
    ----------
    Xiang et al. 2022, §5.1.

    Examples
    --------
    >>> intrinsically_cool([0.5, 0.5, 0.3, np.nan], [6000.0] * 4, [False, True, False, False]).tolist()
    [True, False, False, False]
    """
    bp_rp_0, teff = (np.asarray(a, dtype=np.float64) for a in (bp_rp_0, teff))
    return (bp_rp_0 > max_bp_rp_0) & (teff < min_teff) & ~np.asarray(exempt, dtype=bool)
