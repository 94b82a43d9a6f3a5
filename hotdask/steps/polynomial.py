"""Cells in (Teff, S/N), and cubic polynomials of both fitted to what is measured in them.

Errors (§4.6) and reduced chi-squares (§5.2) both drift with Teff and S/N. Both are measured in the same fixed cells, so
that a cell can be gathered from anywhere in a survey, and then smoothed by a polynomial.

Reading: the paper's "3-order polynomial" has the ten terms of total degree 3 or less, here of log10 Teff and
log(1 + S/N/30). What photons do stays the same at any S/N, and what calibration and models do beside them grows with
S/N: such trends are flat where photon noise rules and straight where it does not, and a cubic follows the turn.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np

from hotdask.errors import RunError

DEGREE = 3
LOG_TEFF_EDGES = tuple(round(3.7 + 0.1 * i, 1) for i in range(12))
"""5012-63096 K in steps of 26 %."""
LOG_SNR_EDGES = tuple(round(0.5 + 0.2 * i, 1) for i in range(14))
"""3.2-1259 in steps of 58 %."""
TURN_SNR = 30.0
"""S/N about which the axis of polynomials turns from linear to logarithmic."""
_N_SNR = len(LOG_SNR_EDGES) - 1
N_CELLS = (len(LOG_TEFF_EDGES) - 1) * _N_SNR

_CELLS_PER_TERM = 2
_CONDITION = 100.0
"""Cells spread over both axes stay below 35, whatever their weights."""


def assign_cells(teff, snr) -> np.ndarray:
    """Number of the (Teff, S/N) cell of each spectrum.

    Parameters
    ----------
    teff, snr : (n,) float
        Teff [K] and S/N per pixel in g. What lies beyond the outer edges belongs to the outermost cells.

    Returns
    -------
    (n,) int32
        0 … `N_CELLS` − 1; −1 where Teff or S/N is not a positive finite number.

    Examples
    --------
    >>> assign_cells([5100.0, 5100.0, 9000.0, 9000.0], [4.0, 6.0, 50.0, float("nan")]).tolist()
    [0, 1, 31, -1]
    """
    teff, snr = np.broadcast_arrays(np.asarray(teff, dtype=np.float64), np.asarray(snr, dtype=np.float64))
    good = np.isfinite(teff) & np.isfinite(snr) & (teff > 0) & (snr > 0)
    i = np.searchsorted(LOG_TEFF_EDGES[1:-1], np.log10(np.where(good, teff, 1.0)), side="right")
    j = np.searchsorted(LOG_SNR_EDGES[1:-1], np.log10(np.where(good, snr, 1.0)), side="right")
    return np.where(good, i * _N_SNR + j, -1).astype(np.int32)


@dataclass(frozen=True)
class Polynomial:
    """A polynomial of log10 Teff and log(1 + S/N/30) that never extrapolates.

    Attributes
    ----------
    log_teff, log_snr : (float, float)
        The support: the outer edges of the (firmly) populated cells, in log10. Arguments are clipped to it, and it is
        −1…1 of the variables.
    bounds : (float, float)
        Range of the polynomial in those cells and at their corners. Values are clipped to it, since a cubic may run
        away in a corner of the support where no star is.
    powers : tuple of (int, int)
        Powers of the scaled variables of Teff and S/N, term by term.
    coefficients : tuple of float
        One per term.
    """

    log_teff: tuple[float, float]
    log_snr: tuple[float, float]
    bounds: tuple[float, float]
    powers: tuple[tuple[int, int], ...]
    coefficients: tuple[float, ...]

    def evaluate(self, teff, snr) -> np.ndarray:
        """Values at Teff [K] and S/N, any shape that broadcasts; NaN where either is NaN."""
        x = _scaled(
            np.clip(np.asarray(teff, dtype=np.float64), *np.power(10.0, self.log_teff)), self.log_teff, np.log10
        )
        y = _scaled(np.clip(np.asarray(snr, dtype=np.float64), *np.power(10.0, self.log_snr)), self.log_snr, _turned)
        value = sum(c * x**i * y**j for c, (i, j) in zip(self.coefficients, self.powers, strict=True))
        return np.clip(value, *self.bounds)

    def to_dict(self) -> dict:
        """As plain lists and numbers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Polynomial":
        """The polynomial that `to_dict` described."""
        return cls(
            log_teff=tuple(data["log_teff"]),
            log_snr=tuple(data["log_snr"]),
            bounds=tuple(data["bounds"]),
            powers=tuple((i, j) for i, j in data["powers"]),
            coefficients=tuple(data["coefficients"]),
        )


def _turned(snr):
    return np.log1p(np.asarray(snr) / TURN_SNR)


def _scaled(value, log_span, variable):
    """A variable of the values, −1…1 over the span."""
    low, high = variable(np.power(10.0, log_span))
    return 2 * (variable(value) - low) / (high - low) - 1


def _terms(degree: int, limit_teff: int, limit_snr: int) -> tuple[tuple[int, int], ...]:
    powers = ((total - j, j) for total in range(degree + 1) for j in range(total + 1))
    return tuple((i, j) for i, j in powers if i <= limit_teff and j <= limit_snr)


def fit_polynomial(cell, teff, snr, value, variance, *, firm=None) -> Polynomial | None:
    """Weighted least-squares polynomial of Teff and S/N through what was measured in cells.

    Of total degree 3, or less where few cells hold it (at least two per term; along either axis at least one populated
    bin more than the power) or where the measurements do not ask for more (Akaike's criterion).

    Parameters
    ----------
    cell : (n,) int
        Cell numbers of `assign_cells`, each at most once.
    teff, snr : (n,) float64
        Where in the cell the value holds: Teff [K] and S/N.
    value, variance : (n,) float64
        What was measured and its variance. Rows with anything not finite, or variance ≤ 0, are left out.
    firm : (n,) bool, optional
        Cells that may mark out support and bounds; all by default, or if none is.

    Returns
    -------
    Polynomial or None
        None where no row is left.

    Raises
    ------
    RunError
        If a cell comes twice, which means that it was measured in parts.

    References
    ----------
    Xiang et al. 2022, §4.6 and §5.2.

    Examples
    --------
    >>> p = fit_polynomial(assign_cells([9000.0], [50.0]), [9000.0], [50.0], [1.5], [0.1])
    >>> float(p.evaluate(20000.0, 300.0))
    1.5
    """
    cell = np.asarray(cell, dtype=np.int64)
    teff, snr, value, variance = (np.asarray(a, dtype=np.float64) for a in (teff, snr, value, variance))
    firm = np.ones(cell.size, dtype=bool) if firm is None else np.asarray(firm, dtype=bool)
    number, count = np.unique(cell, return_counts=True)
    if (count > 1).any():
        raise RunError(f"cells {number[count > 1].tolist()} come more than once; gather each cell before measuring it")

    good = np.isfinite(teff) & np.isfinite(snr) & np.isfinite(value) & np.isfinite(variance)
    good &= (cell >= 0) & (teff > 0) & (snr > 0) & (variance > 0)
    if not good.any():
        return None
    # Sums depend on the order of their terms in the last digit.
    order = np.argsort(cell)
    cell, teff, snr, value, variance, firm = (a[order][good[order]] for a in (cell, teff, snr, value, variance, firm))

    i, j = np.divmod(cell, _N_SNR)
    limits = np.unique(i).size - 1, np.unique(j).size - 1
    firm = firm if firm.any() else ~firm
    i, j = i[firm], j[firm]
    log_teff = LOG_TEFF_EDGES[i.min()], LOG_TEFF_EDGES[i.max() + 1]
    log_snr = LOG_SNR_EDGES[j.min()], LOG_SNR_EDGES[j.max() + 1]
    # What lies beyond the firm cells still helps to find the trend, so it is not clipped here.
    x, y = _scaled(teff, log_teff, np.log10), _scaled(snr, log_snr, _turned)
    root = 1 / np.sqrt(variance)
    best = np.inf
    for degree in range(DEGREE + 1):
        terms = _terms(degree, *limits)
        design = np.stack([x**a * y**b for a, b in terms], axis=1) * root[:, None]
        # Cells strung along a line leave some terms free: fewer terms then, not wild ones.
        held = len(cell) >= _CELLS_PER_TERM * len(terms) and np.linalg.cond(design) < _CONDITION
        if degree and not held:
            break
        solution = np.linalg.lstsq(design, value * root, rcond=None)[0]
        akaike = np.sum((value * root - design @ solution) ** 2) + 2 * len(terms)
        if akaike < best:
            best, powers, coefficients = akaike, terms, solution
    free = Polynomial(log_teff, log_snr, (-np.inf, np.inf), powers, tuple(coefficients.tolist()))
    # Corners alone would cut off a dip or a hump in the middle.
    seen = free.evaluate(
        np.concatenate([teff[firm], *np.power(10.0, np.take(LOG_TEFF_EDGES, [i, i, i + 1, i + 1]))]),
        np.concatenate([snr[firm], *np.power(10.0, np.take(LOG_SNR_EDGES, [j, j + 1, j, j + 1]))]),
    )
    return replace(free, bounds=(float(seen.min()), float(seen.max())))
