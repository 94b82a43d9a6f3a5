"""The steps in order, for one block of spectra: observed pixels in, labels of both fits and their merger out."""

import numpy as np

from hotdask import config, windows
from hotdask.emulator.broadening import mean_lsf
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.errors import EmulatorError
from hotdask.flags import Flag
from hotdask.labels import INDEX, LABEL_NAMES, N_LABELS
from hotdask.steps.fit import Block, Fitter, Solution, start_at
from hotdask.steps.indices import guess_teff
from hotdask.steps.merge import merge_fits
from hotdask.steps.normalize import Normalizer
from hotdask.steps.restframe import noise_power, to_rest_frame

_FAR = 1.6
"""A side of the hydrogen maximum whose best scanned χ² is larger than the other's by this factor is not tried. Of 1000
simulated spectra (S/N 13-290) the worse side won above it in none with all lines, in 0.2 % with hydrogen masked."""


class Labeler:
    """Labels observed spectra: rest frame, continuum, first guess, both fits, merger.

    Built once per process (kernels and pair products are precomputed), then applied to any number of blocks.

    Parameters
    ----------
    emulator : LowRankEmulator
    fit : hotdask.config.Fit
    normalization : hotdask.config.Normalize

    Raises
    ------
    EmulatorError
        If the emulator learned spectra normalized in another way, or is not low-rank.

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
    ):
        if not isinstance(emulator, LowRankEmulator):
            raise EmulatorError(
                f"fits need a low-rank emulator, this is a {type(emulator).__name__}; make one with `hotdask train "
                "LIBRARY --out FILE`"
            )
        self.emulator = emulator
        self.settings = fit or config.Fit()
        normalization = normalization or config.Normalize()
        learned, wanted = emulator.card.get("normalization", {}), normalization.model_dump(mode="json")
        differing = [key for key in wanted if learned.get(key) != wanted[key]]
        if differing:
            raise EmulatorError(
                f"the emulator learned spectra normalized otherwise ({', '.join(differing)} of [normalize] differ); "
                "take those settings out, or train an emulator with them: `hotdask train LIBRARY --settings FILE`"
            )
        self.wavelength = windows.rest_wavelength()
        self.normalizer = Normalizer(self.wavelength, **normalization.model_dump())
        self.fitter = Fitter(
            emulator,
            mask=self.settings.mask,
            hydrogen=self.settings.hydrogen,
            max_iterations=self.settings.max_iterations,
            min_pixels=self.settings.min_pixels,
        )
        self.lsf = mean_lsf(self.settings.resolving_power_blue, self.settings.resolving_power_red)
        if emulator.outside_lsf(self.lsf[None])[0]:
            raise EmulatorError(
                f"fit.resolving_power_blue = {self.settings.resolving_power_blue} and resolving_power_red = "
                f"{self.settings.resolving_power_red} are beyond what the emulator learned; it knows "
                f"{emulator.card['training']['resolving_power']}"
            )
        self._fitted = ~windows.inside(self.wavelength, self.settings.mask)

    def usable(self, ivar: np.ndarray, andmask: np.ndarray, ormask: np.ndarray) -> np.ndarray:
        """Inverse variance with pixels excluded by the mask bits of the settings set to 0."""
        bad = (andmask & self.settings.andmask_bits != 0) | (ormask & self.settings.ormask_bits != 0)
        return np.where(bad, np.float32(0), ivar)

    def prepare(
        self, flux: np.ndarray, ivar: np.ndarray, rv: np.ndarray, lsf: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Rest frame, first guess and continuum.

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
        flux, ivar : (n, 3801) float32
            Normalized, rest frame.
        notes : dict
            ``teff_guess`` (n,) [K], ``flags`` (n,) int32, ``lsf`` (n, 6) [Å] as used, and ``start`` (n, 11), the
            first fit of spectra whose continuum needed one.
        """
        flux, ivar = to_rest_frame(flux, ivar, rv)
        low, high = (float(self.emulator.arrays[f"label_{end}"][INDEX["teff"]]) for end in ("low", "high"))
        guess, clipped, missing = guess_teff(flux, ivar, self.wavelength, low=low, high=high)
        # As plain integers: times a Flag, numpy would widen the array to 64 bits.
        flags = int(Flag.START_CLIPPED) * clipped.astype(np.int32) | int(Flag.START_MISSING) * missing.astype(np.int32)
        given = np.broadcast_to(self.lsf, (len(flux), 6)) if lsf is None else np.asarray(lsf, dtype=np.float64)
        lsf = np.where(np.isfinite(given).all(axis=1, keepdims=True), given, self.lsf)

        normalized, normalized_ivar, continuum = self.normalizer.normalize(flux, ivar)
        rows, correction, first = self._continuum_correction(
            normalized, normalized_ivar, _bridge(continuum), ivar > 0, lsf
        )
        normalized[rows] *= correction
        normalized_ivar[rows] /= correction**2
        start = np.full((len(flux), N_LABELS), np.nan)
        start[rows] = first
        flags[np.isfinite(start).all(axis=1)] |= Flag.CONTINUUM_CORRECTED
        return normalized, normalized_ivar, {"teff_guess": guess, "flags": flags, "lsf": lsf, "start": start}

    def _continuum_correction(
        self, flux: np.ndarray, ivar: np.ndarray, continuum: np.ndarray, good: np.ndarray, lsf: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What bad pixels do to the continuum, undone.

        A model's continuum rests on all its pixels, the data's only on the good ones. The difference is measured on a
        model of the star, normalized once from the data's pixels and once from all. A plain star from the scan of
        labels is model enough where the difference is small; elsewhere a first fit is made.

        Returns
        -------
        rows : (m,) int
            Spectra with bad pixels.
        correction : (m, 3801) float32
            Factor of their normalized flux.
        first : (m, 11) float64
            Labels of the first fit; NaN where none was needed.
        """
        rows = np.flatnonzero(~good.all(axis=1))
        first = np.full((len(rows), N_LABELS), np.nan)
        if not len(rows):
            return rows, np.empty((0, windows.N_REST), dtype=np.float32), first
        continuum, good, lsf = continuum[rows], good[rows], lsf[rows]
        block = self.fitter.load(flux[rows], ivar[rows], lsf)
        cool, hot = block.scan("all")
        nearer = np.where((block.chi2_at(cool) < block.chi2_at(hot))[:, None], cool, hot)
        correction = self._ratio(self.emulator.flux(nearer, lsf), continuum, good)
        shift = np.where(self._fitted & good, np.abs(correction - 1), 0).max(axis=1)
        large = np.flatnonzero((shift > self.settings.continuum_tolerance) & block.fittable)
        first[large] = block.fit("all", [nearer[large]], large).labels
        correction[large] = self._ratio(self.emulator.flux(first[large], lsf[large]), continuum[large], good[large])
        return rows, correction, first

    def _ratio(self, model: np.ndarray, continuum: np.ndarray, good: np.ndarray) -> np.ndarray:
        star = model * continuum
        seen, seen_ivar, _ = self.normalizer.normalize(star, good.astype(np.float32))
        whole, _, _ = self.normalizer.normalize(star, np.ones_like(star))
        return np.where(seen_ivar > 0, whole / seen, np.float32(1))

    def label(
        self, flux: np.ndarray, ivar: np.ndarray, rv: np.ndarray, lsf: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Label observed spectra; parameters as in `prepare`.

        Returns
        -------
        dict of arrays
            The merged labels by name (vsini signed) and their ``covariance`` (n, 11, 11); and the columns of
            `hotdask.schema.FITS` but ``specid`` and ``row``. A spectrum with too few good pixels has NaN labels and
            `Flag.FEW_PIXELS`.

        References
        ----------
        Xiang et al. 2022, §2 and §4.3-4.5.
        """
        flux, ivar, notes = self.prepare(flux, ivar, rv, lsf)
        block = self.fitter.load(flux, ivar, notes["lsf"])
        everything, masked, refitted = fit_both(block, notes["teff_guess"], notes["start"])

        labels, covariance, weight = merge_fits(
            everything.labels, everything.covariance, masked.labels, masked.covariance
        )
        # A fit without weight in the result says nothing about the result.
        has_all, has_masked = weight < 1, weight > 0
        unfinished = (has_all & ~everything.converged) | (has_masked & ~masked.converged)
        smoothing = noise_power(rv)
        chi2_red = block.chi2_at(labels, exact=True) / (everything.n_pixel - N_LABELS) / smoothing
        flags = notes["flags"]
        for flag, raised in (
            (Flag.FEW_PIXELS, ~block.fittable),
            (Flag.REFITTED, refitted),
            (Flag.NOT_CONVERGED, block.fittable & unfinished),
            (Flag.AT_BOUND, (has_all & everything.at_bound) | (has_masked & masked.at_bound)),
            (Flag.OUTSIDE_LIBRARY, self.emulator.outside(labels, notes["lsf"])),
        ):
            flags[raised] |= flag
        out = {name: labels[:, i] for i, name in enumerate(LABEL_NAMES)}
        out |= {"covariance": covariance, "teff_guess": notes["teff_guess"], "chi2_red": chi2_red, "flags": flags}
        for which, solution in (("all", everything), ("hmasked", masked)):
            for i, name in enumerate(LABEL_NAMES):
                out[f"{name}_{which}"] = solution.labels[:, i]
            out[f"covariance_{which}"] = solution.covariance
            out[f"chi2_red_{which}"] = solution.chi2_red / smoothing
            out[f"n_pixel_{which}"] = solution.n_pixel
            out[f"iterations_{which}"] = solution.iterations
        return out


def fit_both(
    block: Block, teff_guess: np.ndarray, start: np.ndarray | None = None
) -> tuple[Solution, Solution, np.ndarray]:
    """Both fits of a block, each from starts on both sides of the hydrogen maximum.

    Parameters
    ----------
    block : Block
        From `Fitter.load`.
    teff_guess : (n,) float64
        Line-index guess [K]; NaN where there is none.
    start : (n, 11) float64, optional
        Labels known to be near; NaN where there are none.

    Returns
    -------
    everything, masked : Solution
        All lines, and hydrogen masked.
    refitted : (n,) bool
        Spectra whose two fits lay on opposite sides of 9500 K: their all-lines fit is the one started from the
        masked solution.

    References
    ----------
    Xiang et al. 2022, §4.5 and footnote 4.
    """
    teff = INDEX["teff"]
    everything = block.fit("all", _starts(block, "all", teff_guess, start))
    masked = block.fit("hmasked", _starts(block, "hmasked", None, everything.labels))
    refitted = (everything.labels[:, teff] < windows.HYDROGEN_MAXIMUM) != (
        masked.labels[:, teff] < windows.HYDROGEN_MAXIMUM
    )
    rows = np.flatnonzero(refitted & block.fittable)
    again = block.fit("all", [masked.labels[rows]], rows)
    for name in ("labels", "covariance", "chi2", "iterations", "converged", "at_bound"):
        getattr(everything, name)[rows] = getattr(again, name)
    return everything, masked, refitted & block.fittable


def _starts(
    block: Block, which: str, teff_guess: np.ndarray | None, known: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """One start on each side of the hydrogen maximum; NaN on a side that is out of the question.

    The best nodes of a coarse scan, or what is known: the line-index guess or labels of another fit, where the
    spectrum likes them better than the node of their side.
    """
    teff = INDEX["teff"]
    sides = list(block.scan(which))
    chi2 = np.array([block.chi2_at(labels, which) for labels in sides])
    hopeless = chi2 > _FAR * chi2.min(axis=0)
    candidates = [] if known is None else [known]
    if teff_guess is not None:
        candidates.append(start_at(teff_guess, np.where((teff_guess < windows.HYDROGEN_MAXIMUM)[:, None], *sides)))
    for labels in candidates:
        value = block.chi2_at(labels, which)
        for side, here in enumerate(
            (labels[:, teff] < windows.HYDROGEN_MAXIMUM, labels[:, teff] >= windows.HYDROGEN_MAXIMUM)
        ):
            better = here & (value < chi2[side])
            sides[side] = np.where(better[:, None], labels, sides[side])
            chi2[side] = np.where(better, value, chi2[side])
            hopeless[side] &= ~better
    cool, hot = (np.where(bad[:, None], np.nan, labels) for bad, labels in zip(hopeless, sides, strict=True))
    return cool, hot


def _bridge(continuum: np.ndarray) -> np.ndarray:
    """Continuum with its undefined stretches bridged by straight lines, (n, 3801) float32; 1 where there is none."""
    continuum = np.where(continuum > 0, continuum, np.nan)
    pixel = np.arange(continuum.shape[1])
    for row in np.flatnonzero(np.isnan(continuum).any(axis=1)):
        known = np.isfinite(continuum[row])
        continuum[row, ~known] = np.interp(pixel[~known], pixel[known], continuum[row, known]) if known.any() else 1
    return continuum
