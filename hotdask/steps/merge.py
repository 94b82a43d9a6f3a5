"""Merge the all-lines fit with the hydrogen-masked one around the maximum of the hydrogen lines.

Near 9500 K hydrogen lines hardly change with Teff, and fits of all lines pile up on either side. The masked fit does
not, so it takes over there and fades out smoothly to both sides.

Without hydrogen, log g of a noisy star may end anywhere. So the masked fit counts only as far as it tells more than
noise: what the all-lines fit says of lines other than hydrogen must fit them worse than noise alone would have it.
The price: where models misjudge hydrogen so badly that all lines pile up (an eighth of the light without lines) and S/N
is 30 or less, the masked fit cannot tell, and two thirds of the pile stay.
"""

import numpy as np

from hotdask.labels import INDEX
from hotdask.windows import HYDROGEN_MAXIMUM

LENGTH_HOT = 5000.0
"""L of Eq 6 [K] where the all-lines fit is hotter than the maximum: the masked fit counts up to 12000 K."""

LENGTH_COOL = 3000.0
"""L of Eq 6 [K] elsewhere: the masked fit counts down to 8000 K."""

NOISE_GAIN = 5.3
"""Gain (see `hydrogen_gain`) of the masked fit where the all-lines fit is right and only noise parts them: the mean of
simulated stars of 8000-12000 K at any S/N. Of 11 labels as many are told mostly by hydrogen lines, so that the masked
fit is free to follow the noise with them. The share of the gain beyond that is the share of the difference that is no
noise, and the weight that shrinks the masked fit toward the other one as Green and Strawderman do."""


def hydrogen_weight(teff_hmasked, teff_all) -> np.ndarray:
    """Weight ω1 of the hydrogen-masked fit; the all-lines fit has ω2 = 1 − ω1.

    ω1 = cos²(πx/L) for |x| ≤ L/2, else 0, with x = teff_hmasked − 9500 K; L = 5000 K where teff_all > 9500 K and
    3000 K elsewhere.

    Parameters
    ----------
    teff_hmasked, teff_all : (n,) float64
        Teff [K] of the hydrogen-masked and of the all-lines fit (the latter after its refit); NaN = no fit.

    Returns
    -------
    (n,) float64
        In 0…1. Where only one fit exists that one has all the weight; where neither does, NaN.

    References
    ----------
    Xiang et al. 2022, §4.5, Eqs 6-7.

    Examples
    --------
    >>> hydrogen_weight([9500.0, 8750.0, 12000.0, 9500.0], [9400.0, 9400.0, 12100.0, float("nan")]).round(6).tolist()
    [1.0, 0.5, 0.0, 1.0]
    """
    teff_hmasked, teff_all = np.broadcast_arrays(
        np.asarray(teff_hmasked, dtype=np.float64), np.asarray(teff_all, dtype=np.float64)
    )
    x = teff_hmasked - HYDROGEN_MAXIMUM
    length = np.where(teff_all > HYDROGEN_MAXIMUM, LENGTH_HOT, LENGTH_COOL)
    # Strictly inside: at |x| = L/2 the cosine is 0 but for rounding, and a weight of 1e-33 would look like a merge.
    weight = np.where(np.abs(x) < length / 2, np.cos(np.pi * x / length) ** 2, 0.0)
    weight = np.where(np.isnan(teff_all), 1.0, weight)
    return np.where(np.isnan(teff_hmasked), np.where(np.isnan(teff_all), np.nan, 0.0), weight)


def hydrogen_gain(chi2_all, chi2_hmasked, chi2_red_hmasked) -> np.ndarray:
    """How much better the masked fit does with its pixels than the all-lines fit, in units of their noise.

    G = (χ²(l2) − χ²(l1)) / χ²_red(l1), all over the pixels of the masked fit.

    Parameters
    ----------
    chi2_all, chi2_hmasked, chi2_red_hmasked : (n,) float64
        χ² of the pixels without hydrogen at the labels of the all-lines and of the masked fit, and the latter per
        degree of freedom.

    Returns
    -------
    (n,) float64
        0 or more.

    Examples
    --------
    >>> hydrogen_gain([3000.0, 2399.0], [2940.0, 2400.0], [1.5, 1.0]).tolist()
    [40.0, 0.0]
    """
    difference = np.asarray(chi2_all, dtype=np.float64) - np.asarray(chi2_hmasked, dtype=np.float64)
    return np.maximum(difference, 0) / np.asarray(chi2_red_hmasked, dtype=np.float64)


def merge_fits(
    labels_all, cov_all, labels_hmasked, cov_hmasked, gain=np.nan
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merged labels, their covariance and the weight of the hydrogen-masked fit.

    With l1, C1 the masked and l2, C2 the all-lines fit: l = ω·l1 + (1 − ω)·l2, where ω = ω1·max(0, 1 − 5.3/G): ω1 of
    `hydrogen_weight`, G of `hydrogen_gain`. The all-lines fit uses every pixel
    of the masked one, so cov(l1, l2) = C2 (an efficient estimate is uncorrelated with how any other one differs from
    it) and C = ω²·C1 + (1 − ω²)·C2, ω held fixed.

    Parameters
    ----------
    labels_all, labels_hmasked : (n, 11) float64
        Labels in the order and units of `hotdask.labels.LABELS`. A row with any NaN is no fit: the other one is used.
    cov_all, cov_hmasked : (n, 11, 11) float64
        Their covariances.
    gain : (n,) float64
        G; where it is NaN, ω = ω1, as where only one fit exists.

    Returns
    -------
    labels : (n, 11) float64
        NaN where there is neither fit.
    covariance : (n, 11, 11) float64
    weight : (n,) float64
        ω.

    References
    ----------
    Xiang et al. 2022, §4.5, Eqs 5-7; Green & Strawderman 1991 (JASA 86, 1001) for a precise estimate that may be biased
    beside an unbiased one.

    Examples
    --------
    >>> hot, masked = np.full((1, 11), 30000.0), np.full((1, 11), 31000.0)
    >>> c = np.eye(11)[None]
    >>> labels, covariance, weight = merge_fits(hot, c, masked, 2 * c)
    >>> float(labels[0, 0]), float(covariance[0, 0, 0]), float(weight[0])
    (30000.0, 1.0, 0.0)
    >>> merge_fits(hot / 30000 * 9400, c, masked / 31000 * 9500, 2 * c, gain=[21.2])[2].round(6).tolist()
    [0.75]
    """
    labels_all, cov_all, labels_hmasked, cov_hmasked = (
        np.asarray(a, dtype=np.float64) for a in (labels_all, cov_all, labels_hmasked, cov_hmasked)
    )
    teff = INDEX["teff"]
    has_all, has_hmasked = (np.isfinite(lb).all(axis=1) for lb in (labels_all, labels_hmasked))
    weight = hydrogen_weight(
        np.where(has_hmasked, labels_hmasked[:, teff], np.nan), np.where(has_all, labels_all[:, teff], np.nan)
    )
    share = 1 - NOISE_GAIN / np.maximum(gain, NOISE_GAIN)
    weight = np.where(has_all & has_hmasked & ~np.isnan(share), weight * share, weight)

    def mix(w, masked, full):
        # A fit without weight must not leak its NaN, nor rounding: 0·NaN is NaN.
        w = w.reshape(-1, *(1,) * (full.ndim - 1))
        return np.where(w == 0, full, np.where(w == 1, masked, w * masked + (1 - w) * full))

    return mix(weight, labels_hmasked, labels_all), mix(weight**2, cov_hmasked, cov_all), weight
