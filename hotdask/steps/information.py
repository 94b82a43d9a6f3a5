"""How much a spectrum can tell: gradients, and the Cramér-Rao bound they set (Eq 3)."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hotdask import windows
from hotdask.config import Normalize
from hotdask.emulator.base import Emulator
from hotdask.emulator.broadening import Broadener, mean_lsf
from hotdask.errors import InputError
from hotdask.labels import ABUNDANCES, INDEX, LABEL_NAMES, LABELS, N_LABELS
from hotdask.library.regrid import to_fine
from hotdask.library.spectra import LOG_START, N_FINE, Synthesis
from hotdask.spectra.normalize import Normalizer
from hotdask.windows import Window

SNR_WAVELENGTH = 4650.0
"""Where the S/N of a star is given [Å] (§3)."""
STEPS = {"logg": 0.05, "vmic": 0.5, "vsini": 5.0, "n_he": 0.01, **dict.fromkeys(ABUNDANCES, 0.1)}
"""Half widths of the finite differences in the labels' units; Teff has 1 % of itself. Large enough for float32 spectra
(1e-6 of flux), small enough for third derivatives to stay below 1 % of the gradient."""
B_STAR = (18000.0, 4.0, 2.0, 100.0, 0.09, *[0.0] * 6)
A_STAR = (9500.0, 4.0, 2.0, 100.0, 0.09, *[0.0] * 6)
"""The paper's fiducial stars (§3, Appendix B); it does not say their vmic."""
REGIONS = tuple(
    Window(low, high, name, "lines: NIST ASD")
    for low, high, name in (
        (3820, 3930, "H8, H9"),
        (3930, 4010, "Hε"),
        (4010, 4062, "He I 4026"),
        (4062, 4142, "Hδ"),
        (4142, 4300, "4142-4300"),
        (4300, 4381, "Hγ"),
        (4381, 4500, "He I 4388, 4471"),
        (4500, 4821, "4500-4821"),
        (4821, 4902, "Hβ"),
        (4902, 5300, "4902-5300"),
        (5300, 5700, "5300-5700"),
        (6050, 6523, "6050-6523"),
        (6523, 6603, "Hα"),
        (6603, 7590, "6603-7590"),
        (7590, 8340, "O I 7774"),
        (8340, 8880, "Paschen"),
    )
)
"""The fitted pixels in pieces (air), each around what dominates it."""
_BATCH = 128
_DEGENERATE = 1e-10
"""A combination of gradients of norm 1 that is shorter than this is rounding."""
_FLOORED = ("vmic", "vsini", "n_he")
"""Labels that no model has below 0."""
_LAMOST_TEFF = 9300.0
# fmt: off
_LAMOST = (
    (3750, 0.15), (3800, 0.25), (3850, 0.37), (3900, 0.42), (3950, 0.49), (4000, 0.58), (4050, 0.64),
    (4150, 0.71), (4200, 0.75), (4300, 0.80), (4400, 0.88), (4500, 0.94), (4650, 1.00), (4800, 1.03),
    (5000, 1.04), (5200, 1.04), (5400, 0.99), (5550, 0.93), (5700, 0.81), (5800, 0.79), (5900, 0.87),
    (6000, 0.97), (6200, 1.10), (6400, 1.18), (6700, 1.28), (7000, 1.28), (7200, 1.26), (7400, 1.22),
    (7600, 1.19), (7800, 1.10), (8000, 1.04), (8200, 1.01), (8400, 0.90), (8600, 0.86), (8800, 0.78),
    (9000, 0.63),
)
# fmt: on
"""Wavelength [Å] and S/N of the continuum over that at 4650 Å: median of nine real LAMOST spectra of classes A1-A2 with
S/N above 30 there, the 70th percentile of each 40 pixels, drawn by eye across hydrogen lines. From star to star it
scatters by 10 %, and by 20 % at either end; below 3900 Å, where lines leave no continuum, it is a lower limit."""


def cramer_rao_bound(
    emulator: Emulator,
    labels: np.ndarray,
    ivar: np.ndarray,
    *,
    lsf: np.ndarray | None = None,
    mask=windows.FIT_MASK,
) -> np.ndarray:
    """Smallest covariance any unbiased estimate of the labels can have.

    Parameters
    ----------
    emulator : Emulator
    labels : (n, 11) float64
        True labels.
    ivar : (n, 3801) float32
        Inverse variance of the normalized flux, independent pixels.
    lsf : (n, 6) or (6,) float64, optional
        Line-spread coefficients [Å].
    mask : sequence of Window or (low, high)
        Air windows [Å] not used; add `hotdask.windows.HYDROGEN` for the second fit.

    Returns
    -------
    (n, 11, 11) float64
        σ of label i is the root of element [i, i].

    References
    ----------
    Xiang et al. 2022, Eq 3.

    Examples
    --------
    >>> from hotdask.emulator import load_emulator
    >>> fiducial = [[18000, 4, 2, 100, 0.09, 0, 0, 0, 0, 0, 0]]
    >>> bound = cramer_rao_bound(load_emulator(), fiducial, np.full((1, windows.N_REST), 1e4))
    >>> bool(50 < bound[0, 0, 0] ** 0.5 < 600)
    True
    """
    labels = np.atleast_2d(labels)
    used = ~windows.inside(windows.rest_wavelength(), mask)
    lsf = None if lsf is None else np.broadcast_to(lsf, (len(labels), 6))
    out = np.empty((len(labels), labels.shape[1], labels.shape[1]))
    for start in range(0, len(labels), _BATCH):
        part = slice(start, start + _BATCH)
        _, jacobian = emulator.flux_and_jacobian(labels[part], None if lsf is None else lsf[part])
        slope = emulator.label_slope(labels[part])
        # In units of the library's spread the matrix is well scaled, whatever the labels' units.
        scaled = jacobian[:, :, used] / slope[:, :, None]
        information = np.einsum("nip,np,njp->nij", scaled, ivar[part][:, used], scaled, optimize=True)
        information = information.astype(np.float64) + 1e-8 * np.eye(labels.shape[1])
        out[part] = np.linalg.inv(information) / (slope[:, :, None] * slope[:, None, :])
    return out


def bound_from_gradients(gradient: np.ndarray, ivar: np.ndarray, *, mask=windows.FIT_MASK) -> np.ndarray:
    """The Cramér-Rao bound of one star whose gradient spectra are known.

    Parameters
    ----------
    gradient : (m, 3801) float64
        Derivative of the normalized flux by each label.
    ivar : (3801,) float64
        Inverse variance of the normalized flux, independent pixels.
    mask : sequence of Window or (low, high)
        Air windows [Å] not used.

    Returns
    -------
    (m, m) float64
        Infinite variance, and NaN beside it, for labels that the spectrum does not answer to, or only together with
        others: where two gradients are alike, or labels are more than pixels.

    References
    ----------
    Xiang et al. 2022, Eq 3.

    Examples
    --------
    >>> line = np.zeros((2, windows.N_REST))
    >>> line[0, 1000], line[1, 1100] = 0.01, 0.02
    >>> np.sqrt(np.diag(bound_from_gradients(line, np.full(windows.N_REST, 1e4)))).round(6).tolist()
    [1.0, 0.5]
    """
    used = ~windows.inside(windows.rest_wavelength(), mask)
    weighted = np.asarray(gradient, dtype=np.float64)[:, used] * np.sqrt(np.asarray(ivar, dtype=np.float64)[used])
    scale = np.linalg.norm(weighted, axis=1)
    known = np.flatnonzero(scale > 0)
    out = np.full((len(scale), len(scale)), np.nan)
    np.fill_diagonal(out, np.inf)
    if known.size:
        # The triangular factor keeps twice the digits that the product would.
        _, size, axes = np.linalg.svd(np.linalg.qr((weighted[known] / scale[known, None]).T, mode="r"))
        measured = np.arange(len(axes)) < np.count_nonzero(size > _DEGENERATE)
        # A label has a variance only if no direction without information moves it.
        single = np.linalg.norm(axes[~measured], axis=0) < 1e-5
        root = (axes[measured].T / size[: measured.sum()])[single] / scale[known[single], None]
        out[np.ix_(known[single], known[single])] = root @ root.T
    return out


def correlations(covariance: np.ndarray) -> np.ndarray:
    """Correlation coefficients K_ij/√(K_ii·K_jj) of (..., m, m) covariances.

    References
    ----------
    Xiang et al. 2022, Fig 5.

    Examples
    --------
    >>> correlations(np.array([[4.0, -1.0], [-1.0, 1.0]])).tolist()
    [[1.0, -0.5], [-0.5, 1.0]]
    """
    sigma = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    with np.errstate(invalid="ignore"):
        return covariance / sigma[..., :, None] / sigma[..., None, :]


def gradients(
    spectrum: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    steps: np.ndarray | None = None,
    *,
    names: Sequence[str] = LABEL_NAMES,
) -> np.ndarray:
    """Derivative of a spectrum by each label, by finite differences.

    Differences are central; where one would take vmic, vsini or helium below 0, one-sided of the same (second) order.

    Parameters
    ----------
    spectrum : function
        (n, 11) labels to (n, n_pixel) flux: an emulator's ``flux``, or `engine_spectrum`.
    labels : (11,) float64
    steps : (11,) float64, optional
        Half widths in the labels' units; default: 1 % in Teff, and `STEPS`.
    names : sequence of str
        Labels to differentiate by.

    Returns
    -------
    (len(names), n_pixel) float64
        Per unit of each label.

    References
    ----------
    Xiang et al. 2022, §3.

    Examples
    --------
    >>> star = np.array([20000, 4, 0, 0, 0.1, 0, 0, 0, 0, 0, 0.0])
    >>> gradients(lambda labels: labels @ np.arange(11.0)[:, None], star)[:, 0].round().astype(int).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    """
    labels = np.asarray(labels, dtype=np.float64)
    if steps is None:
        steps = np.array([STEPS.get(name, 0.01 * labels[INDEX["teff"]]) for name in LABEL_NAMES])
    rows, weights = [], []
    for row, name in enumerate(names):
        i = INDEX[name]
        one_sided = name in _FLOORED and labels[i] < steps[i]
        stencil = ((0, -1.5), (1, 2.0), (2, -0.5)) if one_sided else ((-1, -0.5), (1, 0.5))
        for shift, weight in stencil:
            rows.append(labels + shift * steps[i] * (np.arange(N_LABELS) == i))
            weights.append(weight / steps[i] * (np.arange(len(names)) == row))
    return np.array(weights).T @ np.asarray(spectrum(np.array(rows)), dtype=np.float64)


def engine_spectrum(
    engine: Callable[[np.ndarray], Synthesis], normalization: Normalize | None = None, lsf: np.ndarray | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """An engine's spectra as the fit sees them: rotated, smoothed, sampled and normalized.

    Parameters
    ----------
    engine : hotdask.library.engines.Engine, or any function
        (11,) labels without rotation to a `Synthesis`.
    normalization : hotdask.config.Normalize, optional
        The continuum.
    lsf : (6,) float64, optional
        Line-spread coefficients [Å]; default: R = 1800 in both arms.

    Returns
    -------
    function
        (n, 11) labels to (n, 3801) float32 normalized flux. Labels that differ in vsini only share a synthesis. It
        raises `hotdask.errors.SynthesisError` as the engine does.
    """
    broadener = Broadener(LOG_START, N_FINE)
    normalizer = Normalizer(windows.rest_wavelength(), **(normalization or Normalize()).model_dump())
    lsf = mean_lsf() if lsf is None else np.asarray(lsf, dtype=np.float64)

    @functools.lru_cache(maxsize=256)
    def transformed(star: tuple[float, ...]):
        flux, _ = to_fine(engine(np.array(star)))
        # Single precision likes fluxes near 1; normalization does not see the level.
        return broadener.transform(flux[None] / np.median(flux))

    def spectrum(labels: np.ndarray) -> np.ndarray:
        labels = np.atleast_2d(np.asarray(labels, dtype=np.float64))
        still = labels.copy()
        still[:, INDEX["vsini"]] = 0
        flux = np.concatenate(
            [
                broadener.broaden(transformed(tuple(star)), vsini, lsf[None])
                for star, vsini in zip(still.tolist(), labels[:, INDEX["vsini"], None], strict=True)
            ]
        )
        return normalizer.normalize(flux, np.ones_like(flux))[0]

    return spectrum


def signal_to_noise_curve(source: str | Path, teff: float) -> np.ndarray:
    """S/N of a star's continuum over that at 4650 Å.

    Parameters
    ----------
    source : str or path
        ``"lamost"``: as measured in LAMOST spectra of A stars, scaled by the photons of a black body to another Teff;
        ``"photons"``: photons of a black body, the instrument the same at all wavelengths; ``"flat"``: constant; or a
        text file with two columns, vacuum wavelength [Å] and S/N in any unit (comments after #), held constant beyond
        its ends.
    teff : float
        Of the black body [K].

    Returns
    -------
    (3801,) float64

    Raises
    ------
    InputError
        If the file is not such a table.

    Examples
    --------
    >>> curve = signal_to_noise_curve("lamost", 18000)
    >>> np.interp([3900, 4650, 6600], windows.rest_wavelength(), curve).round(1).tolist()
    [0.5, 1.0, 1.0]
    """
    wavelength = windows.rest_wavelength()
    if source == "flat":
        return np.ones(windows.N_REST)
    if source == "photons":
        curve = np.sqrt(_photons(wavelength, teff))
    elif source == "lamost":
        curve = np.interp(wavelength, *np.array(_LAMOST).T)
        curve = curve * np.sqrt(_photons(wavelength, teff) / _photons(wavelength, _LAMOST_TEFF))
    else:
        curve = np.interp(wavelength, *_read_curve(source))
    return curve / np.interp(SNR_WAVELENGTH, wavelength, curve)


def _photons(wavelength: np.ndarray, teff: float) -> np.ndarray:
    """Photons of a black body in a pixel, relative: λ·B_λ an Å, and pixels as wide as λ."""
    return (5000 / wavelength) ** 3 / np.expm1(1.4388e8 / wavelength / teff)


def _read_curve(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    needed = "needs two columns, vacuum wavelength [Å] and S/N; or give flat, lamost or photons"
    try:
        table = np.loadtxt(path, ndmin=2)
    except OSError as error:
        raise InputError(f"{path}: cannot read the S/N curve ({error}); it {needed}") from error
    except ValueError as error:
        raise InputError(f"{path}: not a table of numbers ({error}); it {needed}") from error
    if table.shape[0] < 2 or table.shape[1] != 2 or not np.isfinite(table).all():
        raise InputError(
            f"{path}: {table.shape[0]} rows of {table.shape[1]} columns, or a value not finite; it {needed}"
        )
    order = np.argsort(table[:, 0])
    x, y = table[order].T
    if (y < 0).any() or not np.interp(SNR_WAVELENGTH, x, y) > 0:
        raise InputError(f"{path}: S/N must not be negative anywhere, nor 0 at {SNR_WAVELENGTH:.0f} Å")
    return x, y


def noise(snr: float, curve: np.ndarray, flux: np.ndarray | None = None) -> np.ndarray:
    """Inverse variance of a normalized spectrum.

    Parameters
    ----------
    snr : float
        S/N per pixel of 69 km/s at 4650 Å, in the continuum.
    curve : (3801,) float64
        From `signal_to_noise_curve`.
    flux : (3801,) float, optional
        Normalized flux, for photon noise: the variance goes with the flux (a twentieth of the continuum's at least).
        Without it, the noise of a line is that of the continuum.

    Examples
    --------
    >>> noise(100, np.array([1.0, 1.0, 0.5]), np.array([1.0, 0.5, 1.0])).tolist()
    [10000.0, 20000.0, 2500.0]
    """
    ivar = (snr * np.asarray(curve, dtype=np.float64)) ** 2
    return ivar if flux is None else ivar / np.maximum(flux, 0.05)


@dataclass(frozen=True)
class Information:
    """What the spectrum of one star can tell.

    Attributes
    ----------
    name : str
    labels : (11,) float64
    snr : float
        At 4650 Å.
    flux, ivar : (3801,) float64
    gradient : (11, 3801) float64
        Per unit of each label.
    covariance, masked : (11, 11) float64
        Bounds of the all-lines fit and with hydrogen masked too.
    """

    name: str
    labels: np.ndarray
    snr: float
    flux: np.ndarray
    ivar: np.ndarray
    gradient: np.ndarray
    covariance: np.ndarray
    masked: np.ndarray

    @property
    def correlation(self) -> np.ndarray:
        """Of the all-lines fit, (11, 11)."""
        return correlations(self.covariance)


def star_information(
    flux: np.ndarray,
    gradient: np.ndarray,
    labels: np.ndarray,
    *,
    snr: float,
    curve: str | Path,
    name: str,
    mask,
    hydrogen,
) -> Information:
    """Bounds of one star at one S/N, from its spectrum and gradients.

    Parameters
    ----------
    flux : (3801,) float
        Normalized.
    gradient : (11, 3801) float
        Derivative by each label.
    labels : (11,) float64
    snr : float
        At 4650 Å.
    curve : str or path
        As `signal_to_noise_curve` takes it.
    name : str
    mask, hydrogen : sequence of Window or (low, high)
        Air windows [Å] never used, and those masked besides in the second fit.
    """
    ivar = noise(snr, signal_to_noise_curve(curve, float(labels[INDEX["teff"]])), flux)
    return Information(
        name,
        np.asarray(labels, dtype=np.float64),
        snr,
        np.asarray(flux, dtype=np.float64),
        ivar,
        np.asarray(gradient, dtype=np.float64),
        bound_from_gradients(gradient, ivar, mask=mask),
        bound_from_gradients(gradient, ivar, mask=(*mask, *hydrogen)),
    )


def information_by_region(
    gradient: np.ndarray, ivar: np.ndarray, *, mask=windows.FIT_MASK, regions: Sequence[Window] = REGIONS
) -> np.ndarray:
    """Which part of the spectrum carries each label.

    Returns
    -------
    (m, n_region) float64
        By how much σ of each label grows if the region is masked, σ_without/σ − 1; NaN of a label that the spectrum
        does not answer to.

    Parameters
    ----------
    gradient, ivar, mask
        As `bound_from_gradients` takes them.
    regions : sequence of Window or (low, high)
        Air windows [Å].
    """
    everything = np.diag(bound_from_gradients(gradient, ivar, mask=mask))
    without = [np.diag(bound_from_gradients(gradient, ivar, mask=(*mask, region))) for region in regions]
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.array(without).T / everything[:, None]) - 1


def compare_gradients(
    found: np.ndarray, expected: np.ndarray, *, mask=windows.FIT_MASK, names: Sequence[str] = LABEL_NAMES
) -> pd.DataFrame:
    """How alike two sets of gradient spectra are, over pixels outside the mask.

    Parameters
    ----------
    found, expected : (m, 3801) float64
        Derivative of the flux by each label of ``names``.
    mask : sequence of Window or (low, high)
        Air windows [Å] left out.
    names : sequence of str
        Labels.

    Returns
    -------
    pandas.DataFrame
        One row a label, the index its name: ``difference``, rms of found − expected over rms of expected;
        ``correlation``; ``amplitude``, the slope of found on expected; ``rms``, that of expected per unit of the label.
    """
    used = ~windows.inside(windows.rest_wavelength(), mask)
    f, e = (np.asarray(g, dtype=np.float64)[:, used] for g in (found, expected))
    rms = np.sqrt((e**2).mean(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = {
            "difference": np.sqrt(((f - e) ** 2).mean(axis=1)) / rms,
            "correlation": (f * e).mean(axis=1) / np.sqrt((f**2).mean(axis=1)) / rms,
            "amplitude": (f * e).mean(axis=1) / rms**2,
            "rms": rms,
        }
    return pd.DataFrame(columns, index=pd.Index(names, name="label"))


ANCHORS = {
    "B star": {
        "teff": 300.0, "logg": 0.03, "vmic": 1.0, "vsini": 8.0, "n_he": 0.01,
        "c_h": 0.1, "n_h": 0.2, "o_h": 0.1, "si_h": 0.1, "fe_h": 0.1,
    },
    "A star": {"teff": 100.0, "logg": 0.1, "vmic": 0.3, "vsini": 15.0, "c_h": 0.1, "o_h": 0.1, "fe_h": 0.1},
}  # fmt: skip
"""The paper's bounds at S/N 100 (§3; Appendix B, hydrogen masked), as its text rounds them."""


def anchor_table(b_star: Information, a_star: Information) -> pd.DataFrame:
    """Our bounds beside the paper's: the fiducial B star with all lines, the A star with hydrogen masked.

    Parameters
    ----------
    b_star, a_star : Information
        Of `B_STAR` and `A_STAR` at S/N 100.

    Returns
    -------
    pandas.DataFrame
        ``star``, ``label``, ``unit``, ``bound``, ``paper``, ``ratio`` = bound/paper.

    References
    ----------
    Xiang et al. 2022, Figs 4 and B.1.
    """
    rows = []
    for (star, values), covariance in zip(ANCHORS.items(), (b_star.covariance, a_star.masked), strict=True):
        for name, paper in values.items():
            bound = float(np.sqrt(covariance[INDEX[name], INDEX[name]]))
            unit = LABELS[INDEX[name]].unit
            rows.append((star, name, unit, bound, paper, bound / paper))
    return pd.DataFrame(rows, columns=["star", "label", "unit", "bound", "paper", "ratio"])
