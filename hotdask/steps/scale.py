"""Scale formal errors to the scatter of repeat visits, as a function of Teff and S/N.

A pull is the difference of two visits over its formal error. Its dispersion, 1 if the errors are right, is the factor
the errors want. Its logarithm is what the polynomials describe, so that a factor is positive everywhere.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.special import betaincinv, ndtri

from hotdask.labels import INDEX, LABEL_NAMES, LABELS
from hotdask.steps.polynomial import Polynomial, fit_polynomial

FLOOR = 0.03
"""Relative misfit of a cubic that is let pass, so that a few crowded cells do not bend it everywhere else."""

FIRM_CELL = 10
"""Pulls that a cell must hold for factors to be told apart out to its edges."""

_CUT = 5.0
"""Pulls are weighted as (1 − (pull/5σ)²)², by which 2 % of pulls ten times too large move a dispersion by 0.1 %, the
median of their absolute values by 2 %. Of the information in pulls that are normal 90 % is used, of which the median
uses 37 %."""
_MANY = 30
"""Pulls from which on that is so; fewer know no wild one from others."""
_STEPS = 3
_WEIGHTED, _SLOPE, _VARIANCE, _BIAS = 0.783999, 1.183990, 0.555, -0.42
"""Of the weighted mean square of normal deviates: its value, its slope over the log of the dispersion, and, over n, the
variance and the bias of that log (simulated, n = 30-200)."""
_LARGEST = np.array([(lb.ceiling - lb.floor) / np.sqrt(12) for lb in LABELS])
_N_QUANTILES = 1000


@lru_cache(maxsize=4096)
def _log_median_moments(n: int) -> tuple[float, float]:
    """Mean and variance of the log of the lower median of n absolute standard normal deviates.

    Exact (by quadrature) because half the cells of a small survey hold a handful of pairs, where the usual 1.4826 is
    off by up to a fifth. The k-th of n uniform deviates is Beta(k, n + 1 − k).
    """
    k = (n + 1) // 2
    share = (np.arange(_N_QUANTILES) + 0.5) / _N_QUANTILES
    log = np.log(ndtri((1 + betaincinv(k, n + 1 - k, share)) / 2))
    return float(log.mean()), float(log.var())


def _log_sigma(pulls: np.ndarray) -> tuple[float, float]:
    """Unbiased log of the dispersion about 0 of normal deviates, and its variance; NaN where it cannot be had.

    The median of few pulls is taken further by many: an M-estimate of scale with Tukey's biweight.
    """
    n = pulls.size
    middle = np.sort(np.abs(pulls))[(n - 1) // 2] if n else 0.0
    if not middle > 0:
        return np.nan, np.nan
    if n >= _MANY:
        # Sums depend on the order of their terms in the last digit.
        square = np.sort(pulls**2)
        log = np.log(middle / ndtri(0.75))
        for _ in range(_STEPS):
            z = square * np.exp(-2 * log)
            log += (np.mean(z * np.clip(1 - z / _CUT**2, 0, None) ** 2) - _WEIGHTED) / _SLOPE
        return float(log - _BIAS / n), _VARIANCE / n
    mean, variance = _log_median_moments(n)
    return float(np.log(middle) - mean), variance


_COLUMNS = {"cell": "int32", "teff": "float64", "snr_g": "float64", "n": "int64"} | {
    f"{name}_{what}": kind
    for name in LABEL_NAMES
    for what, kind in (("n", "int64"), ("log", "float64"), ("var", "float64"))
}


def pull_statistics(pairs: pd.DataFrame) -> pd.DataFrame:
    """Dispersion of the pulls in each cell, by a measure that wild ones do not move.

    Parameters
    ----------
    pairs : pandas.DataFrame
        As from `hotdask.steps.repeats.make_pairs`, with the ``cell`` of `hotdask.steps.polynomial.assign_cells`. All
        pairs of a cell must be in the same frame.

    Returns
    -------
    pandas.DataFrame
        One row a cell: ``cell``, medians of ``teff`` [K] and ``snr_g``, number of pairs ``n``; per label
        ``<label>_n`` usable pulls, ``<label>_log`` the natural log of their dispersion, free of small-sample bias, and
        ``<label>_var`` the variance of that log.

    References
    ----------
    Xiang et al. 2022, §4.6.

    Examples
    --------
    >>> pairs = pd.DataFrame({"cell": 31, "teff": 9000.0, "snr_g": 50.0}, index=range(3))
    >>> for name in LABEL_NAMES:
    ...     pairs[f"{name}_pull"] = [-2.0, 2.0, float("nan")]
    >>> pull_statistics(pairs)[["cell", "n", "teff_n"]].values.tolist()
    [[31, 3, 2]]
    """
    rows = []
    for cell, group in pairs[pairs["cell"] >= 0].groupby("cell", sort=True):
        row = {"cell": cell, "teff": group["teff"].median(), "snr_g": group["snr_g"].median(), "n": len(group)}
        for name in LABEL_NAMES:
            pulls = group[f"{name}_pull"].to_numpy(dtype=np.float64)
            pulls = pulls[np.isfinite(pulls)]
            row[f"{name}_n"] = pulls.size
            row[f"{name}_log"], row[f"{name}_var"] = _log_sigma(pulls)
        rows.append(row)
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


@dataclass(frozen=True)
class ErrorScale:
    """Factor from formal to true errors, per label, as a function of Teff and S/N.

    Attributes
    ----------
    logs : dict of str to Polynomial or None
        Natural log of the factor, per label; None where a label repeats too seldom for one, and its factor is 1.
    n_pairs : int
        Repeat pairs it rests on.
    """

    logs: dict[str, Polynomial | None]
    n_pairs: int

    @property
    def unscaled(self) -> tuple[str, ...]:
        """Labels whose errors stay formal."""
        return tuple(name for name in LABEL_NAMES if self.logs[name] is None)

    def factors(self, teff, snr) -> np.ndarray:
        """(n, 11) factors at (n,) Teff [K] and S/N; 1 where either is NaN."""
        teff, snr = np.broadcast_arrays(np.asarray(teff, dtype=np.float64), np.asarray(snr, dtype=np.float64))
        out = np.ones((*teff.shape, len(LABEL_NAMES)))
        for name, log in self.logs.items():
            if log is not None:
                value = np.exp(log.evaluate(teff, snr))
                out[..., INDEX[name]] = np.where(np.isnan(value), 1.0, value)
        return out

    def to_dict(self) -> dict:
        """As plain lists and numbers, for JSON."""
        return {"n_pairs": self.n_pairs, "logs": {k: v and v.to_dict() for k, v in self.logs.items()}}

    @classmethod
    def from_dict(cls, data: dict) -> "ErrorScale":
        """The scale that `to_dict` described."""
        return cls({k: v and Polynomial.from_dict(v) for k, v in data["logs"].items()}, data["n_pairs"])


def fit_error_scale(cells: pd.DataFrame, *, min_pairs: int = 200) -> ErrorScale | None:
    """Smooth the dispersions of `pull_statistics` over Teff and S/N.

    Parameters
    ----------
    cells : pandas.DataFrame
        As from `pull_statistics`, each cell once.
    min_pairs : int
        A label with fewer usable pulls keeps its formal errors.

    Returns
    -------
    ErrorScale or None
        None where no label repeats often enough: use factor 1 and raise ``Flag.UNSCALED_ERRORS``.

    Raises
    ------
    RunError
        If a cell comes twice.

    References
    ----------
    Xiang et al. 2022, §4.6 and §5.6.

    Examples
    --------
    >>> fit_error_scale(pd.DataFrame({name: [] for name in _COLUMNS})) is None
    True
    """
    logs = {}
    for name in LABEL_NAMES:
        columns = (cells[c] for c in ("cell", "teff", "snr_g", f"{name}_log"))
        variance, n = cells[f"{name}_var"] + FLOOR**2, cells[f"{name}_n"]
        enough = n.sum() >= min_pairs
        logs[name] = fit_polynomial(*columns, variance, firm=n >= FIRM_CELL) if enough else None
    if not any(logs.values()):
        return None
    return ErrorScale(logs, int(cells["n"].sum()))


def limit_errors(errors) -> np.ndarray:
    """Errors, none larger than the limits of its label allow.

    A label whose lines are too weak to be seen has a formal error of many dex, but no fit scatters by more than
    between its limits. Pulls of such labels would be next to 0, and shrink the errors of those that are well measured.

    Parameters
    ----------
    errors : (n, 11) float64
        Formal errors in label order; NaN stays.

    Returns
    -------
    (n, 11) float64
        At most (ceiling − floor)/√12, the dispersion of a label that may be anything between them.

    Examples
    --------
    >>> limit_errors([[100.0, 0.1, 1, 9, 0.01, 0.2, 30.0, 0.2, 0.2, 0.2, 0.1]])[0, [0, 6]].round(2).tolist()
    [100.0, 2.45]
    """
    return np.minimum(np.asarray(errors, dtype=np.float64), _LARGEST)


def scale_covariance(covariance, factors) -> np.ndarray:
    """Covariance with every error scaled: C'_ij = s_i·s_j·C_ij; correlations stay.

    Parameters
    ----------
    covariance : (n, 11, 11) float64
    factors : (n, 11) float64
        From `ErrorScale.factors`.

    Returns
    -------
    (n, 11, 11) float64

    Examples
    --------
    >>> scale_covariance([[[4.0, 1.0], [1.0, 9.0]]], [[2.0, 3.0]]).tolist()
    [[[16.0, 6.0], [6.0, 81.0]]]
    """
    factors = np.asarray(factors, dtype=np.float64)
    # The outer product first: it is symmetric to the last bit, and so is what it multiplies.
    return np.asarray(covariance, dtype=np.float64) * (factors[:, :, None] * factors[:, None, :])
