"""The steps in order, for one block of spectra: observed pixels in, labels of both fits and their merger out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hotdask import config, windows
from hotdask.emulator.broadening import mean_lsf
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.emulator.perpixel import PerPixelEmulator
from hotdask.errors import EmulatorError
from hotdask.flags import Flag
from hotdask.labels import COMPARED_LABELS, INDEX, LABEL_NAMES, N_LABELS
from hotdask.shipped import FROM_FILE
from hotdask.spectra.normalize import Normalizer
from hotdask.spectra.restframe import noise_power, to_rest_frame
from hotdask.steps.compress import blocks
from hotdask.steps.fit import Block, Fitter, Solution, plain_start
from hotdask.steps.indices import guess_teff
from hotdask.steps.merge import (
    bounded_weight,
    checked_weight,
    hydrogen_error,
    hydrogen_gain,
    hydrogen_weight,
    merge_fits,
)
from hotdask.steps.modelerror import add_model_error, smoothing_with
from hotdask.steps.refine import Refiner
from hotdask.steps.residuals import ResidualJudge
from hotdask.steps.velocity import PLAIN_STARS, Observed, refit_velocities, scan_several
from hotdask.timing import kernel

_ROWS = 128
"""Spectra per matrix product, always this many; see `hotdask.steps.compress.rows_at_once`."""

_ROUNDS = 6
"""Times a weight is taken back for its cost in χ², at most; that is a parabola but nearly."""

_AT_ONCE = 512
"""Spectra labeled together, each with 0.25 MB of intermediate arrays; more are hardly faster."""


@dataclass(frozen=True)
class Normalized:
    """Spectra as they are before any emulator has a say.

    Attributes
    ----------
    flux, ivar : (n, 3801) float32
        Rest frame.
    normalized, normalized_ivar : (n, 3801) float32
        Over the continuum of the good pixels.
    continuum : (n, 3801) float32
        That continuum, without gaps.
    """

    flux: np.ndarray
    ivar: np.ndarray
    normalized: np.ndarray
    normalized_ivar: np.ndarray
    continuum: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """Spectra ready to be fitted.

    Attributes
    ----------
    flux, ivar : (n, 3801) float32
        Normalized, rest frame; ivar with the model error, if there is one.
    block : hotdask.steps.fit.Block
        The same, loaded into the fitter.
    lsf : (n, 6) float64
        Line spread as used [Å].
    teff_guess : (n,) float64
        From line indices [K].
    starts : tuple of (n, 11) float64
        Labels fits may start from, the likeliest first.
    flags : (n,) int32
        What is known so far.
    """

    flux: np.ndarray
    ivar: np.ndarray
    block: Block
    lsf: np.ndarray
    teff_guess: np.ndarray
    starts: tuple[np.ndarray, ...]
    flags: np.ndarray


class Labeler:
    """Labels observed spectra: rest frame, continuum, first guess, both fits, merger.

    Built once per process (kernels and pair products are precomputed), then applied to any number of blocks.

    Parameters
    ----------
    emulator : LowRankEmulator
    fit : hotdask.config.Fit
    normalization : hotdask.config.Normalize
    refining : PerPixelEmulator, optional
        Takes both fits on from where ``emulator`` ends them; on its own device.
    model_error : (3801,) float32, optional
        Error of the models [continuum = 1], added to the noise (`hotdask.steps.modelerror`).
    compared : LowRankEmulator, optional
        Labels the same pixels besides, for comparison.
    device : str
        Where fits run, ``cpu`` or ``cuda``.

    Attributes
    ----------
    model : LowRankEmulator or PerPixelEmulator
        The emulator whose labels these are.

    Raises
    ------
    EmulatorError
        If an emulator learned spectra normalized in another way, or is of the wrong kind.
    InputError
        If there is no such device.

    Examples
    --------
    >>> from hotdask.emulator import load_emulator
    >>> labeler = Labeler(load_emulator())
    >>> labels = [[9550, 3.95, 2, 22, 0.09, -0.2, -0.1, -0.1, -0.6, -0.1, -0.5]]
    >>> flux = np.ones((1, windows.N_OBSERVED), dtype=np.float32)
    >>> flux[:, windows.REST_OFFSET : windows.REST_OFFSET + windows.N_REST] = labeler.emulator.flux(labels)
    >>> result = labeler.label(flux, np.full_like(flux, 1e4), np.zeros(1))
    >>> bool(abs(result["teff"][0] - 9550) < 300)
    True
    """

    def __init__(
        self,
        emulator: LowRankEmulator,
        fit: config.Fit | None = None,
        normalization: config.Normalize | None = None,
        *,
        refining: PerPixelEmulator | None = None,
        model_error: np.ndarray | None = None,
        compared: LowRankEmulator | None = None,
        device: str = "cpu",
    ):
        if not isinstance(emulator, LowRankEmulator):
            raise EmulatorError(
                f"fits need a low-rank emulator, this is a {type(emulator).__name__}; make one with `hotdask train "
                "LIBRARY --out FILE`"
            )
        if not (refining is None or isinstance(refining, PerPixelEmulator)):
            raise EmulatorError(
                f"fit.refine needs a per-pixel emulator, this is a {type(refining).__name__}; make one with `hotdask "
                "train LIBRARY --out FILE --architecture perpixel`"
            )
        self.emulator = emulator
        self.model = refining or emulator
        self.settings = fit or config.Fit()
        normalization = normalization or config.Normalize()
        wanted = normalization.model_dump(mode="json")
        for learned in (e.card.get("normalization", {}) for e in (emulator, self.model)):
            differing = [key for key in wanted if learned.get(key) != wanted[key]]
            if differing:
                raise EmulatorError(
                    f"the emulator learned spectra normalized otherwise ({', '.join(differing)} of [normalize] differ);"
                    " take those settings out, or train an emulator with them: `hotdask train LIBRARY --settings FILE`"
                )
        self.wavelength = windows.rest_wavelength()
        self.normalizer = Normalizer(self.wavelength, **normalization.model_dump())
        self.fitter = Fitter(
            emulator,
            mask=self.settings.mask,
            hydrogen=self.settings.hydrogen,
            max_iterations=self.settings.max_iterations,
            min_pixels=self.settings.min_pixels,
            device=device,
        )
        self._judge = ResidualJudge(emulator, self.settings.mask, self.fitter.device)
        self._refiner = None
        if refining is not None:
            self._refiner = Refiner(
                refining,
                mask=self.settings.mask,
                hydrogen=self.settings.hydrogen,
                max_iterations=self.settings.max_iterations,
            )
        self.lsf = mean_lsf(self.settings.resolving_power_blue, self.settings.resolving_power_red)
        if emulator.outside_lsf(self.lsf[None])[0]:
            raise EmulatorError(
                f"fit.resolving_power_blue = {self.settings.resolving_power_blue} and resolving_power_red = "
                f"{self.settings.resolving_power_red} are beyond what the emulator learned; it knows "
                f"{emulator.card['training']['resolving_power']}"
            )
        self._fitted = ~windows.inside(self.wavelength, self.settings.mask)
        self._hydrogen = self._fitted & windows.inside(self.wavelength, self.settings.hydrogen)
        self._model_error = model_error
        self._second = None
        if compared is not None:
            try:
                self._second = Labeler(compared, fit, normalization, model_error=model_error, device=device)
            except EmulatorError as error:
                raise EmulatorError(f"fit.compare: {error}") from error

    def usable(self, ivar: np.ndarray, andmask: np.ndarray, ormask: np.ndarray) -> np.ndarray:
        """Inverse variance with pixels excluded by the mask bits of the settings set to 0."""
        bad = (andmask & self.settings.andmask_bits != 0) | (ormask & self.settings.ormask_bits != 0)
        return np.where(bad, np.float32(0), ivar)

    def prepare(self, flux: np.ndarray, ivar: np.ndarray, rv: np.ndarray, lsf: np.ndarray | None = None) -> Prepared:
        """Rest frame, first guess and continuum.

        A model's continuum rests on all its pixels, that of data only on the good ones. What that does is measured on
        a model of the star, normalized once from the data's pixels and once from all: on a first guess at the star,
        and where it is more than a trifle, once more on a first fit.

        Parameters
        ----------
        flux, ivar : (n, 3909) float32
            On `hotdask.windows.observed_wavelength`; ivar = 0 marks a bad pixel.
        rv : (n,) float64
            Radial velocity [km/s].
        lsf : (n, 6) float64, optional
            Line-spread coefficients [Å]; NaN rows take the mean line spread of the settings.

        Returns
        -------
        Prepared
        """
        return self._prepare(self._normalize(flux, ivar, rv), lsf)

    def _normalize(self, flux: np.ndarray, ivar: np.ndarray, rv: np.ndarray) -> Normalized:
        with kernel("rest frame"):
            flux, ivar = to_rest_frame(flux, ivar, rv)
        with kernel("normalize"):
            normalized, normalized_ivar, continuum = self.normalizer.normalize(flux, ivar)
        return Normalized(flux, ivar, normalized, normalized_ivar, _bridge(continuum))

    def _prepare(self, seen: Normalized, lsf: np.ndarray | None) -> Prepared:
        normalized, normalized_ivar = seen.normalized, seen.normalized_ivar
        low, high = (float(self.emulator.arrays[f"label_{end}"][INDEX["teff"]]) for end in ("low", "high"))
        with kernel("line indices"):
            guess, clipped, missing = guess_teff(seen.flux, seen.ivar, self.wavelength, low=low, high=high)
        # As plain integers: times a Flag, numpy would widen the array to 64 bits.
        flags = int(Flag.START_CLIPPED) * clipped.astype(np.int32) | int(Flag.START_MISSING) * missing.astype(np.int32)
        lsf = self._known_lsf(lsf, len(seen.flux))

        with kernel("compress"):
            block = self.fitter.load(normalized, self._with_model_error(normalized_ivar), lsf)
        with kernel("first guess"):
            sides = block.guess("all")
            start = block.nearer(*sides)
        good = seen.ivar > 0
        correction = self._correction(start, lsf, seen.continuum, good)
        shift = np.where(self._fitted & good, np.abs(correction - 1), 0).max(axis=1)
        rows = np.flatnonzero((shift > self.settings.continuum_tolerance) & block.fittable)
        with kernel("compress"):
            block = block.renormalized(normalized * correction, self._with_model_error(normalized_ivar / correction**2))
        with kernel("first fit"):
            start[rows] = block.fit("all", [start[rows]], rows).labels
        correction[rows] = self._correction(start[rows], lsf[rows], seen.continuum[rows], good[rows])
        # Not in place: a second emulator begins where this one began.
        normalized = normalized * correction
        normalized_ivar = self._with_model_error(normalized_ivar / correction**2)
        with kernel("compress"):
            block = block.renormalized(normalized, normalized_ivar)
        flags[rows] |= Flag.CONTINUUM_CORRECTED
        # For stars unlike any model, which the inverse network may misread.
        return Prepared(normalized, normalized_ivar, block, lsf, guess, (start, *sides, plain_start(guess)), flags)

    def _with_model_error(self, ivar: np.ndarray) -> np.ndarray:
        return ivar if self._model_error is None else add_model_error(ivar, self._model_error)

    def _known_lsf(self, lsf: np.ndarray | None, n: int) -> np.ndarray:
        given = np.broadcast_to(self.lsf, (n, 6)) if lsf is None else np.asarray(lsf, dtype=np.float64)
        return np.where(np.isfinite(given).all(axis=1, keepdims=True), given, self.lsf)

    def _correction(self, labels: np.ndarray, lsf: np.ndarray, continuum: np.ndarray, good: np.ndarray) -> np.ndarray:
        """Factor of the normalized flux that undoes what bad pixels did to the continuum, (n, 3801) float32."""
        with kernel("normalize"):
            star = continuum.copy()
            for part, rows in blocks(len(star), _ROWS):
                star[part] *= self.emulator.flux(labels[rows], lsf[rows])[: part.stop - part.start]
            seen, seen_ivar, _ = self.normalizer.normalize(star, good.astype(np.float32))
            whole, _, _ = self.normalizer.normalize_filled(star, np.ones_like(star), star)
            return np.divide(whole, seen, out=np.ones_like(star), where=seen_ivar > 0)

    def label(
        self,
        flux: np.ndarray,
        ivar: np.ndarray,
        rv: np.ndarray,
        lsf: np.ndarray | None = None,
        noise: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Label observed spectra; parameters as in `prepare`.

        Parameters
        ----------
        noise : (n,) float64, optional
            Share of the variance in ``ivar`` that the noise really has, where a reader smoothed it (``noise_power`` of
            `hotdask.schema.SPECTRA`); only reduced χ² depends on it. Default: 1.

        Returns
        -------
        dict of arrays
            The merged labels by name (vsini signed) and their ``covariance`` (n, 11, 11); and the columns of
            `hotdask.schema.FITS` but ``specid`` and ``row``, with a second emulator those of `hotdask.schema.COMPARED`
            besides. A spectrum with too few good pixels has NaN labels and `Flag.FEW_PIXELS`.

        References
        ----------
        Xiang et al. 2022, §2 and §4.3-4.5.
        """
        noise = np.ones(len(flux)) if noise is None else noise
        spectra = Observed(flux, ivar, rv, self._known_lsf(lsf, len(flux)), noise)
        out = self._label_at(spectra)
        out["rv_refit"] = np.where(np.isfinite(out["rv_shift"]), 0.0, np.nan)
        if self.settings.refit_rv:
            refit_velocities(out, spectra, self._label_at, self._resemblance)
        return out

    def _label_at(self, spectra: Observed) -> dict[str, np.ndarray]:
        starts = range(0, max(len(spectra), 1), _AT_ONCE)
        pieces = [self._label(spectra[start : start + _AT_ONCE]) for start in starts]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _resemblance(self, spectra: Observed, labels: np.ndarray) -> np.ndarray:
        """Shift [km/s] at which spectra resemble a model most, that of the labels or of a plain star, (n,) float64."""
        out = np.empty(len(spectra))
        for start in range(0, len(spectra), _ROWS):
            some = spectra[start : start + _ROWS]
            with kernel("rest frame"):
                flux, ivar = to_rest_frame(some.flux, some.ivar, some.rv)
            with kernel("normalize"):
                flux, ivar, _ = self.normalizer.normalize(flux, ivar)
            with kernel("velocity scan"):
                plain = (plain_start(np.full(len(some), teff)) for teff in PLAIN_STARS)
                stars = (labels[start : start + _ROWS], *plain)
                models = (self.emulator.flux(star, some.lsf) for star in stars)
                out[start : start + _ROWS] = scan_several(flux, ivar * self._fitted, models)
        return out

    def _label(self, spectra: Observed) -> dict[str, np.ndarray]:
        seen = self._normalize(spectra.flux, spectra.ivar, spectra.rv)
        out = self._judged(seen, spectra)
        return out if self._second is None else out | self._second._beside(seen, spectra)

    def _beside(self, seen: Normalized, spectra: Observed) -> dict[str, np.ndarray]:
        """What this labeler finds, as columns beside those of another."""
        out = self._merged(seen, spectra)[2]
        suffix = self.settings.compared or FROM_FILE
        found = {f"{name}_{suffix}": out[name] for name in (*COMPARED_LABELS, "chi2_red", "flags")}
        sigma = np.sqrt(np.diagonal(out["covariance"], axis1=1, axis2=2))
        return found | {f"{name}_{suffix}_err": sigma[:, INDEX[name]] for name in COMPARED_LABELS}

    def _judged(self, seen: Normalized, spectra: Observed) -> dict[str, np.ndarray]:
        prepared, everything, out = self._merged(seen, spectra)
        with kernel("judge residuals"):
            found = self._judge.judge(
                prepared.flux,
                prepared.ivar,
                prepared.lsf,
                everything.labels,
                everything.covariance,
                out["chi2_red_all"],
            )
        return out | vars(found)

    def _merged(self, seen: Normalized, spectra: Observed) -> tuple[Prepared, Solution, dict[str, np.ndarray]]:
        """Spectra as fitted, the fit of all lines, and the columns of both fits and their merger."""
        prepared = self._prepare(seen, spectra.lsf)
        everything, masked, refitted = fit_both(prepared.block, prepared.starts)
        if self._refiner is not None:
            with kernel("refine"):
                everything, masked = (
                    self._refiner.refine(which, prepared.flux, prepared.ivar, prepared.lsf, solution.labels)
                    for which, solution in (("all", everything), ("hmasked", masked))
                )
        with kernel("merge"):
            smoothing = noise_power(spectra.rv, spectra.noise)
            if self._model_error is not None:
                smoothing = smoothing_with(smoothing, prepared.ivar, self._model_error, self._fitted)
            out = self._merge(prepared, everything, masked, refitted, smoothing)
        return prepared, everything, out

    def _merge(
        self, prepared: Prepared, everything: Solution, masked: Solution, refitted: np.ndarray, smoothing: np.ndarray
    ) -> dict[str, np.ndarray]:
        block = prepared.block
        teff, logg = INDEX["teff"], INDEX["logg"]
        # Where the masked fit may have weight at all, it is asked what it gains and what it costs.
        weight = hydrogen_weight(masked.labels[:, teff], everything.labels[:, teff], self.settings.merge)
        near = weight > 0
        rows = np.flatnonzero(near & np.isfinite(everything.labels).all(axis=1))
        gain, error = np.full((2, len(near)), np.nan)
        at_all = self._chi2_at("hmasked", prepared, rows, everything.labels[rows])
        at_masked = self._chi2_at("all", prepared, rows, masked.labels[rows])
        # Smoothing takes power from the noise but nothing from what parts the fits.
        gain[rows] = hydrogen_gain(at_all, masked.chi2[rows], masked.chi2_red[rows] / smoothing[rows])
        lines = (a[np.ix_(rows, self._hydrogen)] for a in (prepared.flux, prepared.ivar))
        error[rows] = hydrogen_error(everything.chi2[rows], at_masked, *lines)
        if self.settings.merge == "checked":
            weight = checked_weight(weight, gain, error)
        both = everything.labels, everything.covariance, masked.labels, masked.covariance
        weight, chi2 = self._within_bounds(prepared, both, weight, everything.chi2)
        labels, covariance = merge_fits(*both, weight)
        # A fit without weight in the result says nothing about the result.
        has_all, has_masked = weight < 1, weight > 0
        unfinished = (has_all & ~everything.converged) | (has_masked & ~masked.converged)
        chi2_red = chi2 / (everything.n_pixel - N_LABELS) / smoothing
        flags = prepared.flags.copy()
        for flag, raised in (
            (Flag.FEW_PIXELS, ~block.fittable),
            (Flag.REFITTED, refitted),
            (Flag.NOT_CONVERGED, block.fittable & unfinished),
            (Flag.AT_BOUND, (has_all & everything.at_bound) | (has_masked & masked.at_bound)),
            (Flag.OUTSIDE_LIBRARY, self.model.outside(labels, prepared.lsf)),
            (Flag.LOGG_SUSPECT, has_masked & (labels[:, logg] < 3)),
            (Flag.MASKED_SET_ASIDE, near & ~has_masked),
        ):
            flags[raised] |= flag
        out = {name: labels[:, i] for i, name in enumerate(LABEL_NAMES)}
        out |= {"covariance": covariance, "teff_guess": prepared.teff_guess, "chi2_red": chi2_red, "flags": flags}
        out |= {"hydrogen_gain": gain, "hydrogen_error": error, "hydrogen_weight": weight}
        for which, solution in (("all", everything), ("hmasked", masked)):
            for i, name in enumerate(LABEL_NAMES):
                out[f"{name}_{which}"] = solution.labels[:, i]
            out[f"covariance_{which}"] = solution.covariance
            out[f"chi2_red_{which}"] = solution.chi2_red / smoothing
            out[f"n_pixel_{which}"] = solution.n_pixel
            out[f"iterations_{which}"] = solution.iterations
        return out

    def _within_bounds(
        self, prepared: Prepared, both: tuple[np.ndarray, ...], weight: np.ndarray, chi2_all: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the masked fit, smaller where they cost too much, and χ² of all lines at the merged labels."""
        chi2, rows = chi2_all.copy(), np.flatnonzero(weight > 0)
        for _ in range(_ROUNDS):
            labels, _ = merge_fits(*(part[rows] for part in both), weight[rows])
            chi2[rows] = self._chi2_at("all", prepared, rows, labels)
            smaller = bounded_weight(weight, chi2_all, chi2)
            rows = np.flatnonzero(smaller < weight)
            if self.settings.merge == "paper" or not len(rows):
                return weight, chi2
            weight = smaller
        # Uphill between two minima χ² is no parabola at all.
        weight[rows], chi2[rows] = 0.0, chi2_all[rows]
        return weight, chi2

    def _chi2_at(self, which: str, prepared: Prepared, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """χ² of labels (m, 11) of some spectra, by the emulator whose labels the catalog holds."""
        if self._refiner is None:
            return prepared.block.chi2_at(labels, which, rows)
        spectra = (a[rows] for a in (prepared.flux, prepared.ivar, prepared.lsf))
        return self._refiner.chi2_at(which, *spectra, labels)


def fit_both(block: Block, starts: Sequence[np.ndarray]) -> tuple[Solution, Solution, np.ndarray]:
    """Both fits of a block, each from starts on both sides of the hydrogen maximum.

    Parameters
    ----------
    block : Block
        From `Labeler.prepare` or `Fitter.load`.
    starts : sequence of (n, 11) float64
        Labels to start from, the likeliest first.

    Returns
    -------
    everything, masked : Solution
        All lines, and hydrogen masked; the latter starts from the former and from guesses of its own besides.
    refitted : (n,) bool
        Spectra whose two fits lay on opposite sides of 9500 K: their all-lines fit is the one started from the
        masked solution.

    References
    ----------
    Xiang et al. 2022, §4.5 and footnote 4.
    """
    teff = INDEX["teff"]
    with kernel("fit all lines"):
        everything = block.fit("all", starts)
    with kernel("first guess"):
        guesses = block.guess("hmasked")
    with kernel("fit hydrogen masked"):
        masked = block.fit("hmasked", [everything.labels, *guesses, *starts])
    refitted = (everything.labels[:, teff] < windows.HYDROGEN_MAXIMUM) != (
        masked.labels[:, teff] < windows.HYDROGEN_MAXIMUM
    )
    rows = np.flatnonzero(refitted & block.fittable)
    with kernel("fit all lines"):
        again = block.fit("all", [masked.labels[rows]], rows)
    for name in ("labels", "covariance", "chi2", "iterations", "converged", "at_bound"):
        getattr(everything, name)[rows] = getattr(again, name)
    return everything, masked, refitted & block.fittable


def _bridge(continuum: np.ndarray) -> np.ndarray:
    """Continuum with its undefined stretches bridged by straight lines, (n, 3801) float32; 1 where there is none."""
    continuum = np.where(continuum > 0, continuum, np.nan)
    pixel = np.arange(continuum.shape[1])
    for row in np.flatnonzero(np.isnan(continuum).any(axis=1)):
        known = np.isfinite(continuum[row])
        continuum[row, ~known] = np.interp(pixel[~known], pixel[known], continuum[row, known]) if known.any() else 1
    return continuum
