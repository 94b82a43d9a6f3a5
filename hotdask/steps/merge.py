"""Merge the all-lines fit with the hydrogen-masked one around the maximum of the hydrogen lines.

Near 9500 K hydrogen lines hardly change with Teff, and fits of all lines pile up on either side. The masked fit does
not, so it takes over there and fades out smoothly to both sides.

Without hydrogen, log g may end anywhere, led by noise or by errors of the models in other lines, and Teff goes along.
So the masked fit has to pass checks beyond the paper's weight:

- Where a pile-up lies, the all-lines fit is near the maximum, too (`hydrogen_weight`).
- What the all-lines fit says of lines other than hydrogen fits them worse than noise alone would have it
  (`hydrogen_gain`). The price: where models misjudge hydrogen so badly that all lines pile up (an eighth of the light
  without lines) and S/N is 30 or less, the masked fit cannot tell, and most of the pile stays.
- If the masked fit is right, the models' hydrogen lines are wrong. They are not wrong by a fifth of their depth
  (`hydrogen_error`); a masked fit that needs that is itself misled.
- The merged labels must fit the spectrum: χ² at most triples (`bounded_weight`).
"""

from typing import Literal

import numpy as np

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

PLAUSIBLE_ERROR, IMPOSSIBLE_ERROR = 0.12, 0.2
"""Error of the models' hydrogen lines, in units of their depth, up to which the masked fit keeps its weight and from
which on it has none. Models and instruments err by some percent (profiles, departures from LTE, continuum, scattered
light). An eighth of the light without lines, at which simulated stars leave 9500 K empty, asks for 0.09-0.13; masked
fits of real late B stars that ended some 2000 K and one dex off ask for 0.2-0.6."""

MAX_RISE = 3.0
"""χ² of the merged labels over that of the all-lines fit, at most: with more, they are no answer to the spectrum."""

Rule = Literal["checked", "paper"]


def hydrogen_weight(teff_hmasked, teff_all, rule: Rule = "checked") -> np.ndarray:
    """Weight ω1 that temperatures give the hydrogen-masked fit; the all-lines fit has ω2 = 1 − ω1.

    With w(T) = cos²(πx/L) for |x| ≤ L/2, else 0, x = T − 9500 K, L = 5000 K where teff_all > 9500 K and 3000 K
    elsewhere, the paper has ω1 = w(teff_hmasked). A pile-up lies near the maximum, so ours is
    ω1 = min[w(teff_hmasked), 4 w(teff_all)]: the latter matters from L/3 on, and both fits must lie within L/2.

    Parameters
    ----------
    teff_hmasked, teff_all : (n,) float64
        Teff [K] of the hydrogen-masked and of the all-lines fit (the latter after its refit); NaN = no fit.
    rule : {"checked", "paper"}

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
    >>> [hydrogen_weight(9500.0, 11500.0, rule).round(3).item() for rule in ("checked", "paper")]
    [0.382, 1.0]
    """
    teff_hmasked, teff_all = np.broadcast_arrays(
        np.asarray(teff_hmasked, dtype=np.float64), np.asarray(teff_all, dtype=np.float64)
    )
    length = np.where(teff_all > HYDROGEN_MAXIMUM, LENGTH_HOT, LENGTH_COOL)

    def bell(teff):
        x = teff - HYDROGEN_MAXIMUM
        # Strictly inside: at |x| = L/2 the cosine is 0 but for rounding, and a weight of 1e-33 would look like a merge.
        return np.where(np.abs(x) < length / 2, np.cos(np.pi * x / length) ** 2, 0.0)

    weight = bell(teff_hmasked)
    if rule == "checked":
        weight = np.minimum(weight, 4 * bell(teff_all))
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


def hydrogen_error(chi2_all, chi2_hmasked, flux, ivar) -> np.ndarray:
    """How wrong the models' hydrogen lines are if the masked fit is right, in units of the lines' depth.

    ε² = (χ²(l1) − χ²(l2)) / Σ (1 − f)²/σ², χ² over all pixels, the sum over those of hydrogen lines. Lines that are
    all wrong by a factor 1 ± ε cost that much in χ², at any S/N.

    Parameters
    ----------
    chi2_all, chi2_hmasked : (n,) float64
        χ² of all pixels at the labels l2 of the all-lines fit and l1 of the masked one.
    flux, ivar : (n, p) float32
        Normalized flux and inverse variance of the pixels of hydrogen lines; ivar = 0 marks a bad pixel.

    Returns
    -------
    (n,) float64
        0 or more; inf where no hydrogen line is seen.

    Examples
    --------
    >>> flux = np.full((1, 10), 0.5, dtype=np.float32)
    >>> hydrogen_error([3000.0], [3025.0], flux, np.full_like(flux, 1e3)).tolist()
    [0.1]
    """
    cost = np.maximum(np.asarray(chi2_hmasked, dtype=np.float64) - np.asarray(chi2_all, dtype=np.float64), 0)
    depth = np.where(ivar > 0, 1.0 - flux, 0.0)
    strength = (depth**2 * ivar).sum(axis=1, dtype=np.float64)
    return np.sqrt(np.divide(cost, strength, out=np.full(len(strength), np.inf), where=strength > 0))


def checked_weight(weight, gain, error) -> np.ndarray:
    """Weight of the masked fit after the checks: ω = ω1·max(0, 1 − 5.3/G)·t(ε).

    t is 1 for ε ≤ 0.12, 0 for ε ≥ 0.2, and cos²[π(ε − 0.12)/0.16] between.

    Parameters
    ----------
    weight : (n,) float64
        ω1 of `hydrogen_weight`.
    gain, error : (n,) float64
        G of `hydrogen_gain` and ε of `hydrogen_error`; where they are NaN, ω = ω1, as where only one fit exists.

    Returns
    -------
    (n,) float64

    References
    ----------
    Green & Strawderman 1991 (JASA 86, 1001) for a precise estimate that may be biased beside an unbiased one.

    Examples
    --------
    >>> checked_weight([1.0, 1.0, 1.0], [21.2, 21.2, 21.2], [0.05, 0.16, 0.3]).round(6).tolist()
    [0.75, 0.375, 0.0]
    """
    weight, gain, error = (np.asarray(a, dtype=np.float64) for a in (weight, gain, error))
    share = 1 - NOISE_GAIN / np.maximum(gain, NOISE_GAIN)
    beyond = np.clip((error - PLAUSIBLE_ERROR) / (IMPOSSIBLE_ERROR - PLAUSIBLE_ERROR), 0, 1)
    taper = np.where(beyond < 1, np.cos(np.pi / 2 * beyond) ** 2, 0.0)
    return weight * np.where(np.isnan(gain), 1.0, share) * np.where(np.isnan(error), 1.0, taper)


def bounded_weight(weight, chi2_all, chi2_merged) -> np.ndarray:
    """Weight with which χ² of the merged labels is three times that of the all-lines fit at most.

    As far as χ² is a parabola, a merger costs ω² times something: ω → ω·[2χ²(l2)/(χ²(l) − χ²(l2))]^½ if that is less.

    Parameters
    ----------
    weight : (n,) float64
        ω.
    chi2_all, chi2_merged : (n,) float64
        χ² of all pixels at the labels of the all-lines fit and at those merged with ω; NaN leaves ω as it is.

    Returns
    -------
    (n,) float64

    Examples
    --------
    >>> bounded_weight([0.8, 0.8], [2500.0, 2500.0], [7500.0, 22500.0]).tolist()
    [0.8, 0.4]
    """
    weight, chi2_all, chi2_merged = (np.asarray(a, dtype=np.float64) for a in (weight, chi2_all, chi2_merged))
    over = chi2_merged > MAX_RISE * chi2_all
    allowed, cost = (MAX_RISE - 1) * chi2_all, np.where(over, chi2_merged - chi2_all, 1.0)
    return np.where(over, weight * np.sqrt(np.where(over, allowed, 1.0) / cost), weight)


def merge_fits(labels_all, cov_all, labels_hmasked, cov_hmasked, weight) -> tuple[np.ndarray, np.ndarray]:
    """Merged labels and their covariance.

    With l1, C1 the masked and l2, C2 the all-lines fit: l = ω·l1 + (1 − ω)·l2. The all-lines fit uses every pixel of
    the masked one, so cov(l1, l2) = C2 (an efficient estimate is uncorrelated with how any other one differs from it)
    and C = ω²·C1 + (1 − ω²)·C2, ω held fixed.

    Parameters
    ----------
    labels_all, labels_hmasked : (n, 11) float64
        Labels in the order and units of `hotdask.labels.LABELS`.
    cov_all, cov_hmasked : (n, 11, 11) float64
        Their covariances.
    weight : (n,) float64
        ω of the masked fit; a fit without weight may be NaN.

    Returns
    -------
    labels : (n, 11) float64
        NaN where ω is.
    covariance : (n, 11, 11) float64

    References
    ----------
    Xiang et al. 2022, §4.5, Eq 5.

    Examples
    --------
    >>> hot, masked = np.full((1, 11), 9400.0), np.full((1, 11), 9500.0)
    >>> labels, covariance = merge_fits(hot, np.eye(11)[None], masked, 2 * np.eye(11)[None], [0.5])
    >>> float(labels[0, 0]), float(covariance[0, 0, 0])
    (9450.0, 1.25)
    """
    weight = np.asarray(weight, dtype=np.float64)
    return merge_labels(labels_all, labels_hmasked, weight), merge_labels(cov_all, cov_hmasked, weight**2)


def merge_labels(full, masked, weight) -> np.ndarray:
    """ω·masked + (1 − ω)·full, for any number of values a spectrum; a fit without weight does not count, even if NaN.

    Parameters
    ----------
    full, masked : (n, …) float64
        Of the all-lines fit and of that with hydrogen masked.
    weight : (n,) float64
        ω of the masked fit.

    Returns
    -------
    (n, …) float64

    Examples
    --------
    >>> merge_labels(np.array([[9000.0], [np.nan]]), np.array([[9500.0], [9100.0]]), [0.5, 1.0]).tolist()
    [[9250.0], [9100.0]]
    """
    full, masked, weight = (np.asarray(a, dtype=np.float64) for a in (full, masked, weight))
    # Neither NaN nor rounding of a fit without weight may come through: 0·NaN is NaN.
    weight = weight.reshape(-1, *(1,) * (full.ndim - 1))
    return np.where(weight == 0, full, np.where(weight == 1, masked, weight * masked + (1 - weight) * full))
