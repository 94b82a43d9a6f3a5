"""Quality flags: the bit and the sentence that explains it, declared together."""

from enum import IntFlag


class Flag(IntFlag):
    """Bits of the ``flags`` column; `DESCRIPTIONS` says each in a sentence."""

    START_CLIPPED = 1 << 0
    START_MISSING = 1 << 1
    OUTSIDE_LIBRARY = 1 << 2
    NOT_CONVERGED = 1 << 3
    AT_BOUND = 1 << 4
    FEW_PIXELS = 1 << 5
    REFITTED = 1 << 6
    NEGATIVE_VSINI = 1 << 7
    LOW_SNR = 1 << 8
    COOL = 1 << 9
    BAD_CHI2 = 1 << 10
    NO_CHI2RATIO = 1 << 11
    UNSCALED_ERRORS = 1 << 12
    LARGE_VELOCITY = 1 << 13
    CONTINUUM_CORRECTED = 1 << 14
    EMISSION = 1 << 15
    BINARY = 1 << 16
    VELOCITY_SUSPECT = 1 << 17
    PECULIAR = 1 << 18
    LOGG_SUSPECT = 1 << 19
    SUBDWARF = 1 << 20
    NLTE = 1 << 21
    HALO = 1 << 22
    INTRINSICALLY_COOL = 1 << 23
    MASKED_SET_ASIDE = 1 << 24
    RV_REFITTED = 1 << 25


DESCRIPTIONS: dict[Flag, str] = {
    Flag.START_CLIPPED: "The line-index guess of Teff (Eq 4) fell outside the library and was clipped to its range.",
    Flag.START_MISSING: "The line-index guess of Teff could not be made: too many bad pixels around 3912-4124 Å.",
    Flag.OUTSIDE_LIBRARY: "The labels lie outside the library the emulator learned from: an extrapolation.",
    Flag.NOT_CONVERGED: "A fit stopped at the iteration limit.",
    Flag.AT_BOUND: "A label stopped at the limit of extrapolation; its error is formal only.",
    Flag.FEW_PIXELS: "Too few good pixels for a fit: labels are NaN.",
    Flag.REFITTED: "The two fits lay on opposite sides of 9500 K; all lines were fitted again from the H-masked Teff.",
    Flag.NEGATIVE_VSINI: "The fitted vsini was negative and is given as 0.",
    Flag.LOW_SNR: "S/N in g below the limit of the sample.",
    Flag.COOL: "Teff below the limit of the sample.",
    Flag.BAD_CHI2: "chi2ratio above the limit: a bad fit for this Teff and S/N.",
    Flag.NO_CHI2RATIO: "Too few spectra of like Teff and S/N to compare chi2_red with: chi2ratio is missing.",
    Flag.UNSCALED_ERRORS: "Errors of one or more labels are formal: too few repeat visits to scale them, or no S/N.",
    Flag.LARGE_VELOCITY: "|rv| above 0.02 c: a suspect velocity.",
    Flag.CONTINUUM_CORRECTED: "Bad pixels shifted the continuum by over 1 %; a first fit of the star corrected it.",
    Flag.EMISSION: "Hα over 0.5 Å and 5 sigma above the model: emission of a disk or wind, not in the labels (§5.2).",
    Flag.BINARY: "Lines of a second star improve the fit: vsini may be an artefact (§5.6); a wrong rv can look alike.",
    Flag.VELOCITY_SUSPECT: "A fit wants another velocity, by over 30 km/s and 5 sigma (rv_shift); vsini is too large.",
    Flag.PECULIAR: "[Fe/H] > 0.2, [Si/H] > 0.4, vsini < 150 km/s: likely ApBp; log g may be too low (§5.3, §5.5).",
    Flag.LOGG_SUSPECT: "log g < 3 where the hydrogen-masked fit has weight: likely too low, an artefact (§5.3).",
    Flag.SUBDWARF: "log g > 5, over 7000 K: hot subdwarf or white dwarf; its labels are extrapolated (§5.3).",
    Flag.NLTE: "Teff > 30000 K or log g < 2: departures from LTE are extrapolated, winds missing (§4.7, §5.6).",
    Flag.HALO: "[Fe/H] < -1.2, 7000-13000 K, |b| > 15 deg: mostly blue horizontal branch or stragglers (§5.5).",
    Flag.INTRINSICALLY_COOL: "Red, and cool by an independent Teff; not of the OB catalog: noise made it look hot.",
    Flag.MASKED_SET_ASIDE: "Near 9500 K, but the fit without hydrogen tells noise or is misled: all lines decide.",
    Flag.RV_REFITTED: "Fitted at rv + rv_refit, as rv was suspect: right if rv was wrong, not if two stars blend.",
}

CUTS: dict[str, Flag] = {"low_snr": Flag.LOW_SNR, "cool": Flag.COOL, "intrinsically_cool": Flag.INTRINSICALLY_COOL}
"""Cuts of the sample, and the flag of each; spectra without labels are cut besides."""
