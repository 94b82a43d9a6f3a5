"""Model-to-model recovery: stars of known labels, made from syntheses the emulator never saw, labelled like data.

What the fits find is held against the truth, against the Cramér-Rao bound and against the paper's own figures; around
9500 K it shows whether temperatures pile up, and many starts show whether fits end in the lowest minimum.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from scipy.stats import qmc

from hotdask import windows
from hotdask.emulator.base import relative_to_iron
from hotdask.emulator.broadening import Broadener
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.emulator.training import library_hash
from hotdask.errors import InputError
from hotdask.labels import ABUNDANCES, INDEX, LABEL_NAMES, LABELS, N_LABELS
from hotdask.library.spectra import Library
from hotdask.simulation.visits import Simulation, draw_stars, emergent
from hotdask.spectra.normalize import Normalizer
from hotdask.steps.fit import Solution, plain_start
from hotdask.steps.information import B_STAR, cramer_rao_bound
from hotdask.steps.label import Labeler, fit_both

PAPER_SCATTER: dict[str, float] = {
    "teff": 2.1,
    "logg": 0.07,
    "vmic": 1.2,
    "vsini": 12.1,
    "n_he": 0.02,
    "c_h": 0.15,
    "n_h": 0.26,
    "o_h": 0.09,
    "si_h": 0.20,
    "s_h": 0.39,
    "fe_h": 0.18,
}
"""Gaussian σ of the residuals at S/N 100 (Xiang et al. 2022, §4.2 and Fig 7); Teff in %, the others in their units."""

DESERT_RANGE = (7500.0, 12000.0)
"""Where histograms of Teff are compared [K]."""
DESERT_HALF = 300.0
"""Stars this close to the hydrogen maximum are counted [K]."""
DESERT_PAPER = (9000.0, 11000.0)
"""The desert's extent in the paper [K] (§4.5)."""

_NEAR_B = {"teff": (14000.0, 23000.0), "logg": (3.3, 4.7), "vsini": (0.0, 250.0), "fe_h": (-0.7, 0.5)}
"""Held-out stars that resemble the fiducial one enough to be held against their own bound."""
_DESERT_DRAWN = (7200.0, 12600.0)
"""Drawn beyond the range compared, so that its ends lose no more stars than they gain [K]."""
_METAL_POOR = -1.0
"""[Fe/H] at which stars are divided: libraries may be denser above it."""
_DESERT_BIN = 250.0
_FEW = 20
"""Fewer values than this make no histogram."""
_WORSE = 1.0
"""A fit this much above the best χ² known is in another minimum."""


@dataclass(frozen=True)
class Design:
    """What to simulate.

    Attributes
    ----------
    spectra : int
        Simulated spectra of each experiment.
    snr : tuple of float
        S/N per pixel of the continuum, the same at every wavelength.
    reference_snr : float
        The S/N of the other experiments.
    desert_snr : tuple of float
        S/N at which temperatures around 9500 K are compared.
    lsf_scatter : float
        σ of the relative width of the line spread, spectrum to spectrum and arm to arm, that the fit does not know.
    max_vsini : float
        vsini is drawn evenly from 0 to this [km/s].
    dilution : float
        How much shallower than modelled all lines are in one test of temperatures around 9500 K: a share of light
        without lines, as scattered light or an error of the models would leave.
    starts : int
        Space-filling starts against which minima are judged.
    seed : int
    """

    spectra: int = 1000
    snr: tuple[float, ...] = (20.0, 50.0, 100.0, 200.0)
    reference_snr: float = 100.0
    desert_snr: tuple[float, ...] = (100.0, 30.0)
    lsf_scatter: float = 0.04
    max_vsini: float = 500.0
    dilution: float = 0.05
    starts: int = 16
    seed: int = 1

    def __post_init__(self):
        if min(self.spectra, self.starts) < 1 or min((*self.snr, self.reference_snr, *self.desert_snr)) <= 0:
            raise InputError(
                f"spectra {self.spectra}, starts {self.starts}, snr {self.snr}, {self.reference_snr}, "
                f"{self.desert_snr}: all must be positive"
            )


@dataclass(frozen=True)
class Recovery:
    """What `recover` found.

    Attributes
    ----------
    numbers : dict
        JSON values: ``about``, ``experiments``, ``fiducial``, ``desert``, ``minima``.
    stars : pandas.DataFrame
        One row a spectrum of the experiments: ``experiment``, ``<label>_true``, ``<label>`` (as cataloged),
        ``<label>_single`` (all lines, one start), ``<label>_crb``.
    desert : pandas.DataFrame
        One row a spectrum around 9500 K: ``source``, ``snr``, ``teff_true``, ``teff_single``, ``teff_all``, ``teff``.
    """

    numbers: dict
    stars: pd.DataFrame
    desert: pd.DataFrame


def held_out(library: Library, card: Mapping, *, coolest: float = LABELS[INDEX["teff"]].low) -> np.ndarray:
    """Members of the library that the emulator never saw and that lie within Table 1.

    Parameters
    ----------
    library : Library
    card : mapping
        The emulator's.
    coolest : float
        Lowest Teff [K]; default: that of Table 1.

    Returns
    -------
    (m,) int64

    Raises
    ------
    InputError
        If the emulator learned another library, keeps no list of what it did not see, or saw all of Table 1.
    """
    members = np.asarray(card.get("held_out_members", ()), dtype=np.int64)
    if not members.size:
        raise InputError("the emulator's card has no held_out_members; train one with `hotdask train`")
    # Another library may have the same name and size, and then what is held out of one was learned from the other.
    if card.get("library_sha256") != library_hash(library):
        raise InputError(
            f"the emulator learned another library ({card.get('library')!r}) than {library.name!r}, or its card does "
            "not say which: what it never saw is unknown; give its library, or train an emulator on this one"
        )
    low, high = np.array([(lb.low, lb.high) for lb in LABELS]).T
    low[INDEX["teff"]] = coolest
    labels = library.labels[members]
    members = members[((labels >= low) & (labels <= high)).all(axis=1)]
    if not members.size:
        raise InputError(f"{library.name}: no held-out synthesis lies in the ranges of Table 1; hold out more")
    return members


class Syntheses:
    """Rotated and smoothed spectra of chosen members of a library.

    Parameters
    ----------
    library : Library
    members : (m,) int
    """

    def __init__(self, library: Library, members: np.ndarray):
        self.labels = library.labels[members]
        self._broadener = Broadener(library.log_start, library.flux.shape[1])
        self._transformed = self._broadener.transform(library.flux[members])

    def draw(
        self, chosen: np.ndarray, max_vsini: float, lsf: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels (n, 11) with fresh vsini, and emergent flux (n, 3801) of the chosen, seen with ``lsf`` (n, 6) [Å]."""
        labels = self.labels[chosen].copy()
        labels[:, INDEX["vsini"]] = rng.uniform(0, max_vsini, len(chosen))
        return labels, self._broadener.broaden(self._transformed[chosen], labels[:, INDEX["vsini"]], lsf)


def observe(
    flux: np.ndarray, snr: np.ndarray | float, normalizer: Normalizer, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Emergent spectra as a survey would hand them over: on its grid, at rest, with noise.

    Parameters
    ----------
    flux : (n, 3801) float32
        Emergent flux [any unit] on `windows.rest_wavelength`.
    snr : float, (n, 1) or (n, 3801)
        S/N per pixel of the continuum.
    normalizer : Normalizer
        Says what the continuum is.
    rng : numpy.random.Generator

    Returns
    -------
    flux, ivar : (n, 3909) float32
        On `windows.observed_wavelength`; velocity 0.
    """
    flux = np.asarray(flux, dtype=np.float32) / np.median(flux, axis=1, keepdims=True)
    _, _, continuum = normalizer.normalize(flux, np.ones_like(flux))
    sigma = np.where(continuum > 0, continuum, np.inf) / snr
    noisy = flux + np.where(np.isfinite(sigma), sigma, 0) * rng.standard_normal(flux.shape)
    sides = ((0, 0), (windows.REST_OFFSET, windows.N_OBSERVED - windows.REST_OFFSET - windows.N_REST))
    return tuple(np.pad(a.astype(np.float32), sides, mode="edge") for a in (noisy, sigma**-2.0))


def single_start(labeler: Labeler, teff_guess: np.ndarray) -> np.ndarray:
    """The one start of an ordinary fit, (n, 11): Teff from the line indices (Eq 4), a plain star's other labels."""
    return plain_start(np.where(np.isfinite(teff_guess), teff_guess, LABELS[INDEX["teff"]].start))


def space_filling(emulator: LowRankEmulator, n: int, seed: int) -> np.ndarray:
    """Labels spread evenly over the emulator's library, (n, 11) float64, in an order in which any first few are.

    Raises
    ------
    InputError
        If the library fills so little of its ranges that there are not so many.
    """
    low, high = (emulator.arrays[f"label_{end}"].copy() for end in ("low", "high"))
    low[INDEX["vsini"]] = 0
    low[0], high[0] = np.log10(low[0]), np.log10(high[0])
    relative = [INDEX[name] for name in ABUNDANCES if name != "fe_h"]
    # A random shift modulo 1 makes another, equally even set of each seed.
    shift = np.random.default_rng([seed, 9]).random(N_LABELS)
    for power in range(max(6, int(np.ceil(np.log2(n))) + 3), 18):
        points = np.mod(qmc.Sobol(N_LABELS, scramble=False).random_base2(power) + shift, 1)
        points = low + (high - low) * points
        points[:, 0] = 10 ** points[:, 0]
        points[:, relative] += points[:, [INDEX["fe_h"]]]
        points = points[~emulator.outside(points)]
        if len(points) >= n:
            return points[:n]
    raise InputError(f"{n} starts do not fit into the emulator's library: it fills too little of its label ranges")


def gaussian_sigma(values: np.ndarray) -> float:
    """σ of a Gaussian fitted to the histogram of values; NaN of fewer than 20, or where the fit fails.

    The histogram spans six robust σ on either side of the median, in bins by Freedman and Diaconis.

    References
    ----------
    Xiang et al. 2022, Fig 7.

    Examples
    --------
    >>> round(gaussian_sigma(np.random.default_rng(1).normal(3, 2, 4000)), 1)
    2.0
    """
    values = values[np.isfinite(values)]
    center, robust = (np.median(values), robust_sigma(values)) if values.size >= _FEW else (np.nan, np.nan)
    if not robust > 0:
        return float("nan")
    width = np.clip(2 * 1.349 * values.size ** (-1 / 3), 0.1, 0.6)
    edges = np.arange(-6, 6 + width, width)
    counts, _ = np.histogram((values - center) / robust, edges)

    x = (edges[1:] + edges[:-1]) / 2

    def difference(parameters):
        height, middle, sigma = parameters
        return height * np.exp(-0.5 * ((x - middle) / sigma) ** 2) - counts / counts.max()

    limits = ((0, -6, 0.05), (10, 6, 10))
    best = least_squares(difference, (1.0, 0.0, 1.0), bounds=limits)
    return float(best.x[2] * robust) if best.success else float("nan")


def robust_sigma(values: np.ndarray) -> float:
    """1.4826 times the median absolute deviation of the finite values; NaN if there are none."""
    values = values[np.isfinite(values)]
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if values.size else float("nan")


def residual_table(truth: np.ndarray, labels: np.ndarray, bound: np.ndarray) -> list[dict]:
    """How well each label comes back.

    Parameters
    ----------
    truth, labels : (n, 11) float64
        True and found labels.
    bound : (n, 11) float64
        Cramér-Rao bound of each, σ.

    Returns
    -------
    list of dict
        One a label: ``label``, ``unit`` (Teff: %), ``n`` finite residuals; ``gaussian`` and ``robust`` σ of the
        residuals, their median ``bias`` and ``outliers``, the share beyond 5 robust σ; ``paper``, its σ at S/N 100;
        ``bound``, the median bound; and, of residual/bound, ``pull_median``, ``pull`` (robust σ), ``pull_gaussian``
        and ``pull_rms`` (about 0, the 1 % farthest left out). Undefined: None.
    """
    rows = []
    for i, lb in enumerate(LABELS):
        difference = labels[:, i] - truth[:, i]
        unit, scale = ("%", 100 / truth[:, i]) if lb.name == "teff" else (lb.unit, np.ones(len(truth)))
        residual, pull = difference * scale, difference / bound[:, i]
        robust = robust_sigma(residual)
        finite = residual[np.isfinite(residual)]
        inner = np.sort(np.abs(pull[np.isfinite(pull)]))[: int(np.ceil(0.99 * np.isfinite(pull).sum()))]
        values = {
            "gaussian": gaussian_sigma(residual),
            "robust": robust,
            "bias": _median(residual),
            "outliers": float(np.mean(np.abs(finite - np.median(finite)) > 5 * robust)) if finite.size else np.nan,
            "paper": PAPER_SCATTER[lb.name],
            "bound": _median(bound[:, i] * scale),
            "pull_median": _median(pull),
            "pull": robust_sigma(pull),
            "pull_gaussian": gaussian_sigma(pull),
            "pull_rms": float(np.sqrt(np.mean(inner**2))) if inner.size else np.nan,
        }
        rows.append({"label": lb.name, "unit": unit, "n": int(finite.size), **_plain(values)})
    return rows


def bound_sigma(labeler: Labeler, truth: np.ndarray, snr: float, lsf: np.ndarray) -> np.ndarray:
    """Cramér-Rao bound of each label, all lines, (n, 11), at a constant S/N."""
    ivar = np.full((len(truth), windows.N_REST), snr**2, dtype=np.float32)
    bound = cramer_rao_bound(labeler.emulator, truth, ivar, lsf=lsf, mask=labeler.settings.mask)
    return np.sqrt(np.diagonal(bound, axis1=1, axis2=2))


def label_both_ways(labeler: Labeler, flux: np.ndarray, ivar: np.ndarray) -> dict[str, np.ndarray]:
    """Labels as cataloged, of its all-lines fit, and of an all-lines fit from one start: (n, 11) each.

    Parameters
    ----------
    labeler : Labeler
    flux, ivar : (n, 3909) float32
        From `observe`.

    Returns
    -------
    dict
        ``catalog``, ``all``, ``single``.
    """
    found = labeler.label(flux, ivar, np.zeros(len(flux)))
    prepared = labeler.prepare(flux, ivar, np.zeros(len(flux)))
    single = prepared.block.fit("all", [single_start(labeler, prepared.teff_guess)])
    return {
        "catalog": np.column_stack([found[name] for name in LABEL_NAMES]),
        "all": np.column_stack([found[f"{name}_all"] for name in LABEL_NAMES]),
        "single": single.labels,
    }


def desert_numbers(truth: np.ndarray, found: np.ndarray) -> dict:
    """How empty a temperature distribution is at the hydrogen maximum, beside the true one.

    Parameters
    ----------
    truth, found : (n,) float64
        Teff [K].

    Returns
    -------
    dict
        ``deficit`` = 1 − found/true stars within 300 K of 9500 K and its Poisson ``error``; ``deficit_paper`` and
        ``error_paper``, the same over 9000-11000 K; ``lowest`` and ``highest`` found/true over bins of 250 K from
        8750 to 11250 K that hold at least 20 true stars; ``edges``, ``true`` and ``found``, the histograms.

    Examples
    --------
    >>> truth = np.linspace(7500, 12000, 4501)
    >>> parted = np.where(truth < 9500, 9000, 10000)
    >>> desert_numbers(truth, truth)["deficit"], desert_numbers(truth, parted)["deficit"]
    (0.0, 1.0)
    """
    values = {}
    middle = windows.HYDROGEN_MAXIMUM
    for name, (low, high) in (("", (middle - DESERT_HALF, middle + DESERT_HALF)), ("_paper", DESERT_PAPER)):
        true, seen = (int(((teff >= low) & (teff <= high)).sum()) for teff in (truth, found))
        values[f"deficit{name}"] = 1 - seen / true if true else np.nan
        values[f"error{name}"] = np.sqrt(max(seen, 1)) / true if true else np.nan
    low, high = DESERT_RANGE
    edges = np.arange(low, high + _DESERT_BIN / 2, _DESERT_BIN)
    true, seen = (np.histogram(teff, edges)[0] for teff in (truth, found))
    judged = (edges[:-1] >= DESERT_PAPER[0] - _DESERT_BIN) & (edges[1:] <= DESERT_PAPER[1] + _DESERT_BIN)
    judged &= true >= _FEW
    ratio = seen[judged] / true[judged] if judged.any() else np.array([np.nan])
    values |= {"lowest": ratio.min(), "highest": ratio.max()}
    return {**_plain(values), "edges": edges.tolist(), "true": true.tolist(), "found": seen.tolist()}


def count_minima(
    labeler: Labeler, flux: np.ndarray, ivar: np.ndarray, starts: np.ndarray
) -> tuple[dict[str, list[dict]], dict[str, dict]]:
    """How often each way to start a fit ends above the best minimum known, and what it costs.

    Parameters
    ----------
    labeler : Labeler
    flux, ivar : (n, 3909) float32
        From `observe`.
    starts : (k, 11) float64
        Labels every spectrum is fitted from besides, one after the other.

    Returns
    -------
    rows : dict of list of dict
        For the fits ``all`` and ``hmasked``: ``strategy``, its ``kind`` (``single``, ``catalog``, ``filling``: the k
        starts, or ``both``), ``fits`` a spectrum, CPU ``seconds`` a spectrum, ``worse``,
        the share over 1 in χ² above the best of the k starts, ``worse_any``, above the best of everything tried, and
        ``worse_inside``, the latter where the best lies within the library.
    facts : dict of dict
        For both fits: the share of spectra whose best minimum lies outside the library; whose catalog fit was made
        again from the masked one; and with catalog starts that end below the best of the k.
    """
    n = len(flux)
    prepared = labeler.prepare(flux, ivar, np.zeros(n))
    block = prepared.block
    clock = time.process_time()
    everything, masked, refitted = fit_both(block, prepared.starts)
    pair_seconds = (time.process_time() - clock) / n
    catalog = {"all": everything, "hmasked": masked}
    rows, facts = {}, {}
    for which in ("all", "hmasked"):
        single, single_seconds = _timed(block, which, single_start(labeler, prepared.teff_guess))
        tried = [_timed(block, which, np.broadcast_to(start, (n, N_LABELS))) for start in starts]
        chi2 = np.array([solution.chi2 for solution, _ in tried])
        seconds = np.array([spent for _, spent in tried])
        candidates = [single, catalog[which], *(solution for solution, _ in tried)]
        of_all = np.array([solution.chi2 for solution in candidates])
        best, lowest, winner = chi2.min(axis=0), of_all.min(axis=0), of_all.argmin(axis=0)
        winning = np.array([candidates[w].labels[i] for i, w in enumerate(winner)])
        inside = ~labeler.emulator.outside(winning)

        # Both fits share scan and set-up, so the pair's cost is split evenly.
        strategies = [
            ("one start, Eq 4", "single", single.chi2, 1, single_seconds),
            ("catalog", "catalog", catalog[which].chi2, 2, pair_seconds / 2),
        ]
        counts = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < len(starts)] + [len(starts)]
        strategies += [(f"{k} space-filling", "filling", chi2[:k].min(axis=0), k, seconds[:k].sum()) for k in counts]
        for k in counts:
            both = np.minimum(catalog[which].chi2, chi2[:k].min(axis=0))
            spent = pair_seconds / 2 + seconds[:k].sum()
            strategies.append((f"catalog + {k} space-filling", "both", both, 2 + k, spent))
        rows[which] = [
            {
                "strategy": name,
                "kind": kind,
                "fits": fits,
                "seconds": float(spent),
                "worse": float(np.mean(found > best + _WORSE)),
                "worse_any": float(np.mean(found > lowest + _WORSE)),
                "worse_inside": float(np.mean((found > lowest + _WORSE) & inside)),
            }
            for name, kind, found, fits, spent in strategies
        ]
        again = refitted & (which == "all")
        facts[which] = {
            "spectra": n,
            "best_outside": float(np.mean(~inside)),
            "refitted": float(np.mean(again)),
            "worse_refitted": float(np.mean((catalog[which].chi2 > lowest + _WORSE) & again)),
            "catalog_better": float(np.mean(catalog[which].chi2 < best - _WORSE)),
        }
    return rows, facts


def recover(
    library: Library,
    emulator: LowRankEmulator,
    design: Design | None = None,
    *,
    fiducial: Library | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Recovery:
    """Simulate stars from what the emulator never saw, label them as the catalog does, and compare.

    Parameters
    ----------
    library : Library
        The one the emulator learned from.
    emulator : LowRankEmulator
    design : Design
    fiducial : Library, optional
        Its first member is the synthesis of `hotdask.steps.information.B_STAR`; without it that star is the emulator's
        own, which tests the fit and not the emulator.
    progress : callable
        Told what is being done.

    Raises
    ------
    InputError
        If the emulator learned another library; see `held_out`.

    References
    ----------
    Xiang et al. 2022, §4.2, Figs 7 and 9.
    """
    design = design or Design()
    labeler = Labeler(emulator)
    members = held_out(library, emulator.card)
    stars = Syntheses(library, members)
    frames, experiments = [], []
    cases = [(f"S/N {snr:g}", snr, 0.0) for snr in design.snr]
    cases.append((f"S/N {design.reference_snr:g}, line spread varied", design.reference_snr, design.lsf_scatter))
    for number, (name, snr, scatter) in enumerate(cases):
        progress(f"{name}: {design.spectra} spectra")
        rng = np.random.default_rng([design.seed, number])
        arms = 1 + scatter * rng.standard_normal((design.spectra, 2))
        lsf = labeler.lsf * np.repeat(arms, 3, axis=1)
        truth, flux = stars.draw(_evenly(len(members), design.spectra, rng), design.max_vsini, lsf, rng)
        found = label_both_ways(labeler, *observe(flux, snr, labeler.normalizer, rng))
        bound = bound_sigma(labeler, truth, snr, lsf)
        near, poor = _near_fiducial(truth), truth[:, INDEX["fe_h"]] < _METAL_POOR
        experiments.append(
            {
                "name": name,
                "snr": snr,
                "lsf_scatter": scatter,
                "n": len(truth),
                "outside": float(emulator.outside(truth).mean()),
                "catalog": residual_table(truth, found["catalog"], bound),
                "single": residual_table(truth, found["single"], bound),
                "near_fiducial": residual_table(truth[near], found["catalog"][near], bound[near]),
                **{
                    group: residual_table(truth[chosen], found["catalog"][chosen], bound[chosen])
                    for group, chosen in (("metal_poor", poor), ("metal_rich", ~poor))
                },
                "sampling": _sampling(truth),
            }
        )
        columns = {"_true": truth, "": found["catalog"], "_single": found["single"], "_crb": bound}
        frame = {f"{lb}{kind}": values[:, i] for kind, values in columns.items() for i, lb in enumerate(LABEL_NAMES)}
        frames.append(pd.DataFrame({"experiment": name, **frame}))

    progress("the fiducial B star")
    fiducial_numbers = _fiducial(labeler, design, fiducial)
    progress("temperatures around 9500 K")
    cool = Syntheses(library, held_out(library, emulator.card, coolest=_DESERT_DRAWN[0]))
    desert = label_desert(labeler, design, cool)
    progress(f"local minima, {design.starts} starts")
    rng = np.random.default_rng([design.seed, 102])
    lsf = np.broadcast_to(labeler.lsf, (design.spectra, 6))
    _, flux = stars.draw(_evenly(len(members), design.spectra, rng), design.max_vsini, lsf, rng)
    observed = observe(flux, design.reference_snr, labeler.normalizer, rng)
    minima, facts = count_minima(labeler, *observed, space_filling(emulator, design.starts, design.seed))
    about = {
        "emulator": emulator.id,
        "library": library.name,
        "syntheses": len(library.labels),
        "held_out": len(emulator.card["held_out_members"]),
        "held_out_in_table_1": len(members),
        "design": {**asdict(design), "snr": list(design.snr), "desert_snr": list(design.desert_snr)},
    }
    numbers = {
        "about": about,
        "experiments": experiments,
        "fiducial": fiducial_numbers,
        "desert": desert_table(desert),
        "minima": {"strategies": minima, "facts": facts, "snr": design.reference_snr},
    }
    return Recovery(numbers, pd.concat(frames, ignore_index=True), desert)


def _sampling(truth: np.ndarray) -> dict[str, float]:
    """How the stars lie in Table 1, which the library may fill unevenly."""
    iron = LABELS[INDEX["fe_h"]]
    relative = relative_to_iron(truth)[:, [INDEX[name] for name in ABUNDANCES if name != "fe_h"]]
    return {
        "metal_rich": float(np.mean(truth[:, INDEX["fe_h"]] >= _METAL_POOR)),
        "metal_rich_even": (iron.high - _METAL_POOR) / (iron.high - iron.low),
        "solar_like": float(np.mean(np.abs(relative) < 0.5)),
    }


def _fiducial(labeler: Labeler, design: Design, library: Library | None) -> dict:
    rng = np.random.default_rng([design.seed, 100])
    star = np.array(B_STAR)
    truth = np.broadcast_to(star, (design.spectra, N_LABELS))
    lsf = np.broadcast_to(labeler.lsf, (design.spectra, 6))
    if library is None:
        flux = emergent(labeler.emulator.flux(star[None]), star[:1], labeler.normalizer)
    else:
        wanted = np.where(np.array(LABEL_NAMES) == "vsini", 0.0, star)
        if not np.allclose(library.labels[0], wanted, rtol=1e-6, atol=1e-6):
            raise InputError(
                f"{library.name}: its first synthesis is not the fiducial star "
                f"({', '.join(f'{n} {v:g}' for n, v in zip(LABEL_NAMES, wanted, strict=True))})"
            )
        broadener = Broadener(library.log_start, library.flux.shape[1])
        flux = broadener.broaden(broadener.transform(library.flux[:1]), star[[INDEX["vsini"]]], lsf[:1])
    observed = observe(np.repeat(flux, design.spectra, axis=0), design.reference_snr, labeler.normalizer, rng)
    found = label_both_ways(labeler, *observed)
    bound = np.broadcast_to(bound_sigma(labeler, truth[:1], design.reference_snr, lsf[:1]), truth.shape)
    return {
        "source": "emulator" if library is None else library.name,
        "snr": design.reference_snr,
        "n": design.spectra,
        "table": residual_table(truth, found["catalog"], bound),
    }


def label_desert(labeler: Labeler, design: Design, stars: Syntheses | None = None) -> pd.DataFrame:
    """Stars of evenly distributed Teff around 9500 K, made and labelled.

    Parameters
    ----------
    labeler : Labeler
    design : Design
    stars : Syntheses, optional
        Unseen ones; the emulator makes stars in any case, as they are and diluted.

    Returns
    -------
    pandas.DataFrame
        `Recovery.desert`.
    """
    rng = np.random.default_rng([design.seed, 101])
    sources: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    low, high = _DESERT_DRAWN
    teff = np.empty(0) if stars is None else stars.labels[:, INDEX["teff"]]
    candidates = np.flatnonzero((teff > low) & (teff < high))
    if candidates.size:
        chosen = candidates[_evenly(candidates.size, design.spectra, rng, weight=teff[candidates])]
        lsf = np.broadcast_to(labeler.lsf, (len(chosen), 6))
        sources["syntheses"] = stars.draw(chosen, 300.0, lsf, rng)
    drawn = draw_stars(
        Simulation(stars=3 * design.spectra, spectra=3 * design.spectra, teff=_DESERT_DRAWN, seed=design.seed),
        labeler.emulator,
    )
    truth = drawn[[f"{name}_true" for name in LABEL_NAMES]].to_numpy()
    # Drawn evenly in log Teff: keeping them in proportion to Teff makes them even in Teff.
    truth = truth[rng.random(len(truth)) < truth[:, INDEX["teff"]] / high][: design.spectra]
    normalized = labeler.emulator.flux(truth, labeler.lsf)
    for source, dilution in (("emulator", 0.0), ("emulator, diluted", design.dilution)):
        seen = (1 - dilution) * normalized + np.float32(dilution)
        sources[source] = truth, emergent(seen, truth[:, INDEX["teff"]], labeler.normalizer)
    frames = []
    for source, (truth, flux) in sources.items():
        for snr in design.desert_snr:
            found = label_both_ways(labeler, *observe(flux, snr, labeler.normalizer, rng))
            columns = {"_true": truth, "_single": found["single"], "_all": found["all"], "": found["catalog"]}
            teff = {f"teff{kind}": labels[:, INDEX["teff"]] for kind, labels in columns.items()}
            frames.append(pd.DataFrame({"source": source, "snr": snr, **teff}))
    return pd.concat(frames, ignore_index=True)


def desert_table(stars: pd.DataFrame) -> list[dict]:
    """`desert_numbers` of each source, S/N and fit.

    Parameters
    ----------
    stars : pandas.DataFrame
        Of `label_desert`.

    Returns
    -------
    list of dict
        ``source``, ``snr``, and the numbers by fit: ``single`` (all lines, one start), ``all`` (the catalog's all-lines
        fit) and ``catalog``.
    """
    return [
        {"source": source, "snr": float(snr)}
        | {
            how: desert_numbers(rows["teff_true"].to_numpy(), rows[column].to_numpy())
            for how, column in (("single", "teff_single"), ("all", "teff_all"), ("catalog", "teff"))
        }
        for (source, snr), rows in stars.groupby(["source", "snr"], sort=False)
    ]


def _evenly(members: int, n: int, rng: np.random.Generator, *, weight: np.ndarray | None = None) -> np.ndarray:
    """n draws of members, each as often as any other (or as its weight asks) up to one, in random order."""
    share = np.ones(members) if weight is None else weight / weight.mean()
    ends = np.cumsum(share) / share.sum() * n
    return rng.permutation(np.searchsorted(ends, np.arange(n) + 0.5))


def _near_fiducial(truth: np.ndarray) -> np.ndarray:
    near = np.ones(len(truth), dtype=bool)
    for name, (low, high) in _NEAR_B.items():
        near &= (truth[:, INDEX[name]] >= low) & (truth[:, INDEX[name]] <= high)
    return near


def _timed(block, which: str, start: np.ndarray) -> tuple[Solution, float]:
    """A fit from one start, and CPU seconds a spectrum."""
    clock = time.process_time()
    solution = block.fit(which, [start])
    return solution, (time.process_time() - clock) / len(start)


def _median(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else float("nan")


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON has them: no NaN."""
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
