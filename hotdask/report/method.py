"""The method page: every equation, its source, the functions that compute it, and where we read it otherwise."""

from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser

from hotdask.report import figures
from hotdask.report.render import Picture, picture, render


@dataclass(frozen=True)
class Step:
    """One step of the method.

    Parameters
    ----------
    title : str
        What it does.
    source : str
        Section and equation of the paper.
    formulas : tuple of str
        In matplotlib's math, one a line.
    text : str
        What the symbols are, in words.
    functions : tuple of str
        Dotted names of what computes it.
    reading : str
        Where we read the paper differently, and why; empty where we do not.
    """

    title: str
    source: str
    formulas: tuple[str, ...]
    text: str
    functions: tuple[str, ...]
    reading: str = ""


STEPS: tuple[Step, ...] = (
    Step(
        "Candidates",
        "§2",
        (r"$M_{K_s} = K_s + 5\,\log_{10}(\varpi/100\,\mathrm{mas}) < 3$",),
        "Spectra of pipeline class O, B or A; at the place of a hot star by Gaia's parallax and 2MASS; or in a catalog "
        "of OB stars: the union, with a flag for each source. Places agree within 3″, after proper motions are brought "
        "to the survey's epoch.",
        (
            "hotdask.crossmatch.candidates.find_candidates",
            "hotdask.crossmatch.match.nearest",
            "hotdask.crossmatch.match.move",
        ),
    ),
    Step(
        "Wavelengths and rest frame",
        "§2",
        (
            r"$\log_{10}\lambda_i = 3.5740 + 10^{-4}\,i,\quad i = 0 \ldots 3800$",
            r"$\lambda_{\rm rest} = \lambda/(1+z)$",
            r"$\mathrm{DESI:}\quad \mathrm{FWHM}^2 = (\lambda/1800)^2 - (1.65\,\mathrm{\AA})^2,\qquad "
            r"\mathrm{ivar} = \Delta\lambda/(\delta\lambda\,v)$",
        ),
        "Vacuum wavelengths [Å]. A velocity is one shift by a fraction of a pixel for all pixels of a spectrum; "
        "inverse variances go through the same resampling, and a pixel that touches a masked one is masked. DESI's "
        "arms are filtered by a Gaussian onto the observed grid first; the second moment of the resolution matrix "
        "tells each fiber's own spread. The inverse variance is the information of the input, pixels of δλ with "
        "variance v; noise_power is the share of that variance which the noise has.",
        (
            "hotdask.windows.rest_wavelength",
            "hotdask.readers.degrade.degrade",
            "hotdask.readers.degrade.native_variance",
            "hotdask.readers.degrade.filter_variance",
            "hotdask.spectra.restframe.pixel_shift",
            "hotdask.spectra.restframe.to_rest_frame",
            "hotdask.spectra.restframe.noise_power",
        ),
        "The paper gives 3801 pixels in 3750–9000 Å and no grid; this one has LAMOST's own step. χ² allows for the "
        "smoothing of noise by the resampling, so that a perfect model has 1.",
    ),
    Step(
        "Continuum",
        "§2, Eqs 1–2",
        (
            r"$\bar f(\lambda_i) = \dfrac{\sum_j f_j\,\omega_j}{\sum_j \omega_j}$",
            r"$\omega_j = \exp\left[-(\lambda_j-\lambda_i)^2/L^2\right],\quad L = 50\,\mathrm{\AA}$",
        ),
        "Each spectrum, data or model, is divided by its smoothed self. Hydrogen and other strong lines, "
        "interstellar bands and bad pixels have ω = 0.",
        (
            "hotdask.spectra.normalize.normalize",
            "hotdask.spectra.normalize.Normalizer",
            "hotdask.steps.label.Labeler.prepare",
        ),
        "Eq 1 alone is not blind to the slope of a spectrum: reddening by E(B−V) = 1 changes the normalized flux "
        "by up to 2.7 %. Data and models are divided by a log-log polynomial of degree 6 first, which leaves 0.04 % "
        "rms (normalize.slope = false gives Eq 1 alone). Data normalize on the rest grid like models. What bad pixels "
        "do to the continuum is measured on a model of the star, normalized once from the data's pixels and once from "
        "all, and undone: on a first guess at the star and, where that moves it by over 1 %, once more on a first "
        "fit. The kernel ends at 5 L, and a continuum must rest on ten effective pixels, (Σω)²/Σω².",
    ),
    Step(
        "Information",
        "§3, Eq 3",
        (r"$K^{-1} = \nabla f^{\,T}\,C^{-1}\,\nabla f,\qquad \sigma_i \geq \sqrt{K_{ii}}$",),
        "∇f is the gradient of the normalized spectrum by the labels, C the covariance of its pixels.",
        (
            "hotdask.steps.information.cramer_rao_bound",
            "hotdask.steps.information.bound_from_gradients",
            "hotdask.steps.information.correlations",
            "hotdask.steps.information.gradients",
        ),
    ),
    Step(
        "Library",
        "§4.1, Table 1",
        (
            r"$[\mathrm{X/H}] = [\mathrm{X/Fe}] + [\mathrm{Fe/H}]$",
            r"$G(x) = \dfrac{2(1-\epsilon)\sqrt{1-x^2} + \dfrac{\pi\epsilon}{2}(1-x^2)}{\pi(1-\epsilon/3)},"
            r"\quad x = \dfrac{\Delta\lambda}{\lambda}\,\dfrac{c}{v\,\sin i},\ \epsilon = 0.6$",
            r"$\sigma(\lambda) = c_0 + c_1 t + c_2 t^2,\quad t = (\lambda-\lambda_{\rm arm})/1000\,\mathrm{\AA}$",
            r"$\kappa = \kappa^{\rm LTE}\,\dfrac{b_l - b_u e^{-x}}{1 - e^{-x}},\quad \eta = b_u\,\kappa^{\rm LTE}B_\nu,"
            r"\quad x = \dfrac{h\nu}{kT}$",
        ),
        "Rotation, then the line spread, broaden every synthesis after it is made; each arm has its own polynomial. "
        "Lines absorb κ and emit η; the b are populations of a line's levels over those of LTE.",
        (
            "hotdask.library.sampling.draw_labels",
            "hotdask.library.departures.Departures",
            "hotdask.library.abundances.abundances",
            "hotdask.emulator.broadening.Broadener",
            "hotdask.emulator.broadening.lsf_sigma",
        ),
        "The paper does not print its mean line spread: R = 1800 in both arms, unless given. The engine of the "
        "shipped library is our own, on ATLAS9 structures; [Fe/H] = 0 is 7.67, their mixture. The paper is in LTE; "
        "we take level populations from TLUSTY's BSTAR2006 (Lanz & Hubeny 2007) and ship an emulator of either kind.",
    ),
    Step(
        "Emulator",
        "§4.2",
        (r"$f(\lambda) = \sigma_3(w_3\,\sigma_2(w_2\,\sigma_1(w_1 \ell + b_1) + b_2) + b_3)$",),
        "ℓ holds 17 numbers: eleven labels and six line-spread coefficients.",
        (
            "hotdask.emulator.training.train",
            "hotdask.emulator.lowrank.LowRankEmulator",
            "hotdask.emulator.perpixel.PerPixelEmulator",
        ),
        "The paper trains a network for each pixel. By default we train one whose outputs weight the principal "
        "components of the library, which costs less; the paper's own is --architecture "
        "perpixel.",
    ),
    Step(
        "First guess of the temperature",
        "§4.4, Eq 4",
        (
            r"$\log T_{\rm eff} = \sum_{ijk} a_{ijk}\,C_{3933}^{\,i}\,C_{3967}^{\,j}\,C_{4101}^{\,k},"
            r"\quad i+j+k \leq 3$",
        ),
        "Equivalent widths [Å] of three features, between straight-line continua.",
        (
            "hotdask.steps.indices.line_indices",
            "hotdask.steps.indices.teff_from_indices",
            "hotdask.emulator.inverse.learn_inverse",
            "hotdask.steps.fit.Block.guess",
        ),
        "The paper prints the C₃₉₆₇³ term as a second C₃₉₆₇². Cubed, it gives 6500–7300 K for real F5–F9 stars and "
        "26 000 K for a B1 star known to have that; squared, 3700–5500 K for the F stars. A guess outside the "
        "library is clipped and flagged. It errs by thousands of kelvins near the hydrogen maximum, so fits also start "
        "from what an inverse network reads off the spectrum, on either side of 9500 K; a start decides no label, "
        "since a fit ends where χ² is lowest.",
    ),
    Step(
        "Fits",
        "§4.3–4.5",
        (
            r"$\chi^2 = \sum_i (f_i - f_i(\ell))^2/\sigma_i^2,"
            r"\qquad C = \left(\frac{1}{2}\,\nabla\nabla\chi^2\right)^{-1}$",
        ),
        "Twice: to all lines, and with the hydrogen lines masked. Telluric and interstellar windows, the dichroic "
        "and both edges are never fitted.",
        (
            "hotdask.steps.fit.Fitter",
            "hotdask.steps.compress.compress",
            "hotdask.steps.minimize.Valley",
            "hotdask.steps.refine.Refiner",
            "hotdask.steps.label.fit_both",
            "hotdask.steps.label.Labeler",
            "hotdask.windows.inside",
        ),
        "The paper only draws its windows (Fig 8): ours are declared with a source each in hotdask/windows.py, and "
        "are settings. C is without the second derivatives of the model (Gauss and Newton's), so that it is the bound "
        "of Eq 3 at the fitted labels. Labels may leave the library, up to limits declared in hotdask/labels.py and 10 "
        "% in Teff, and are flagged. Fits walk in the emulator's coefficients, in which χ² is quadratic, and end where "
        "the pixels say so; fit.refine goes on from there with a network for each pixel.",
    ),
    Step(
        "Fits that disagree",
        "§4.5, footnote 4",
        (),
        "Where the two fits land on opposite sides of 9500 K, all lines are fitted again from the temperature of "
        "the masked fit.",
        ("hotdask.steps.label.fit_both", "hotdask.steps.fit.start_at"),
    ),
    Step(
        "Merger",
        "§4.5, Eqs 5–7",
        (
            r"$\ell = \dfrac{\omega_1\ell_1 + \omega_2\ell_2}{\omega_1 + \omega_2},\qquad \omega_2 = 1 - \omega_1$",
            r"$\omega_1 = \cos^2(\pi x/L)\ \ \mathrm{for}\ |x| \leq L/2,\quad x = T_{{\rm eff},1} - 9500\,{\rm K}$",
            r"$\omega_1 \rightarrow \min\left[\omega_1,\ 4\,\cos^2(\pi x_2/L)\right],\quad "
            r"x_2 = T_{{\rm eff},2} - 9500\,{\rm K}$",
            r"$\omega = \omega_1\,\max(0,\,1 - 5.3/G)\,t(\epsilon),\quad "
            r"G = \left[\chi^2_m(\ell_2) - \chi^2_m(\ell_1)\right]/\chi^2_{m,\,{\rm red}}(\ell_1)$",
            r"$\epsilon^2 = \left[\chi^2(\ell_1) - \chi^2(\ell_2)\right]/\sum_h (1-f_i)^2/\sigma_i^2,\quad "
            r"t = \cos^2[\pi\,(\epsilon - 0.12)/0.16]$",
            r"$\ell \rightarrow \omega\,\ell_1 + (1-\omega)\,\ell_2,\qquad C = \omega^2\,C_1 + (1-\omega^2)\,C_2$",
        ),
        "1 is the fit with hydrogen masked, 2 that to all lines. L is 5000 K where the latter is above 9500 K, "
        "otherwise 3000 K. The reduced χ² of the catalog is that of all lines at the merged labels.",
        (
            "hotdask.steps.merge.hydrogen_weight",
            "hotdask.steps.merge.hydrogen_gain",
            "hotdask.steps.merge.hydrogen_error",
            "hotdask.steps.merge.checked_weight",
            "hotdask.steps.merge.bounded_weight",
            "hotdask.steps.merge.merge_fits",
        ),
        'The first two lines are the paper\'s, and all there is with [fit] merge = "paper". Ours, for log g of the '
        "masked fit may be anything and takes Teff along: ω₁ is small as well where the all-lines fit is far from the "
        "maximum. G, over the pixels m without hydrogen, is 5.3 on average where only noise parts the fits; the masked "
        "one counts by the share beyond that. ε, with the sum over the pixels h of hydrogen lines, is how wrong the "
        "models' lines are, in units of their depth, if the masked fit is right; t is 1 up to 0.12 and 0 from 0.2 on. "
        "Last, ω shrinks until χ²(ℓ) is at most three times χ²(ℓ₂). "
        "And the covariance: the all-lines fit uses every pixel of the other and more, so that cov(ℓ₁, ℓ₂) = C₂.",
    ),
    Step(
        "What pixels say beyond the labels",
        "ours; §5.2 and §5.6 name the stars",
        (
            r"$M = t^{\,T}Wt - t^{\,T}WJ\,C\,J^{\,T}Wt,\qquad g = t^{\,T}Wr - t^{\,T}WJ\,C\,J^{\,T}Wr$",
            r"$a = g/M \pm 1/\sqrt{M},\qquad \Delta\chi^2 = g^2/M$",
        ),
        "A pattern t is added to the fit of all lines with amplitude a, all labels free to follow: r are the "
        "residuals, W the inverse variances, J the derivatives by the labels and C their covariance. The patterns are "
        "a shift of the spectrum (rv_shift) and the lines of a second star at four velocities (binary_score). Emission "
        "is the equivalent width of data above model in Balmer cores (halpha_excess, balmer_excess).",
        ("hotdask.steps.residuals.ResidualJudge.judge",),
        "The paper finds such stars by eye and by chi2ratio. The limits of the flags EMISSION, BINARY and "
        "VELOCITY_SUSPECT are tuned on simulations, and on real A stars and Be stars where models err.",
    ),
    Step(
        "Stars and repeat visits",
        "§4.6, §5.6",
        (r"$\sigma = \mathrm{scatter}(\ell_a - \ell_b)/\sqrt{2}$",),
        "Spectra closer than 3″ are one star. Pairs are visits on different nights whose S/N differ by 20 % at most.",
        ("hotdask.steps.repeats.assign_stars", "hotdask.steps.repeats.make_pairs"),
    ),
    Step(
        "Errors",
        "§4.6, §5.6",
        (r"$s(T_{\rm eff}, \mathrm{S/N}) = \mathrm{cubic\ polynomial},\qquad C'_{ij} = s_i\,s_j\,C_{ij}$",),
        "Formal errors are scaled so that they match the scatter of repeat visits; correlations stay.",
        (
            "hotdask.steps.scale.limit_errors",
            "hotdask.steps.scale.pull_statistics",
            "hotdask.steps.scale.fit_error_scale",
            "hotdask.steps.scale.ErrorScale.factors",
            "hotdask.steps.scale.scale_covariance",
            "hotdask.steps.polynomial.fit_polynomial",
        ),
        "The polynomial is of log Teff and log(1 + S/N/30) and gives log s, which cannot be negative; of a lower "
        "degree where cells of pairs do not ask for more (Akaike's criterion), and constant beyond them. Before, no "
        "error is taken to be larger than the limits of its label allow. A label with fewer than 200 pairs keeps "
        "its formal errors, with a flag.",
    ),
    Step(
        "Error of the models",
        "not in the paper",
        (
            r"$68.27\,\%\ \mathrm{of\ spectra:}\quad r_i^2 \leq \sigma_i^2 + s_i^2,\qquad "
            r"\mathrm{ivar}_i = 1/(\sigma_i^2 + s_i^2)$",
        ),
        "Only where [fit] model_error names a table: s, one number a pixel, learned from the residuals r of a run, is "
        "added to the noise σ; what sky, tellurics and interstellar lines leave counts as well. Errors of models are "
        "alike in spectra of like stars; that they are not independent from pixel to pixel is left out.",
        (
            "hotdask.steps.modelerror.count_levels",
            "hotdask.steps.modelerror.solve_model_error",
            "hotdask.steps.modelerror.add_model_error",
        ),
    ),
    Step(
        "Bad fits",
        "§5.2",
        (
            r"$\mathrm{chi2ratio} = \dfrac{\chi^2_{\rm red} - \mathrm{median}(T_{\rm eff}, \mathrm{S/N})}"
            r"{\mathrm{dispersion}(T_{\rm eff}, \mathrm{S/N})}$",
        ),
        "Above 10, a fit is bad. Median and dispersion are taken in cells of Teff and S/N; the dispersion is the "
        "biweight of IDL's robust_sigma. Other flags name kinds of stars whose labels want caution.",
        (
            "hotdask.steps.flag.chi2_statistics",
            "hotdask.steps.flag.fit_chi2_model",
            "hotdask.steps.flag.Chi2Model.ratio",
            "hotdask.steps.flag.catalog_flags",
        ),
        "The paper models median and dispersion directly; we model their logarithms, which follow decades of S/N "
        "with the same cubic, after taking out how χ² rises with S/N within a cell. Cells of fewer than 15 spectra "
        "have no chi2ratio.",
    ),
    Step(
        "Other catalogs",
        "§5.1, §5.3",
        (
            r"$M_{K_s} = K_s - 5\,\log_{10}(d/10\,\mathrm{pc}) - 0.34\,E(B-V)$",
            r"$(BP-RP)_0 = BP - RP - (3.24-1.91)\,E(B-V)$",
        ),
        "Gaia and 2MASS are joined by position, distances and reddening by Gaia's identifier. Stars redder than 0.4 "
        "mag that an independent method has below 7000 K are cut from the sample, unless the catalog "
        "of OB stars has them.",
        (
            "hotdask.crossmatch.join.join_tables",
            "hotdask.crossmatch.photometry.absolute_ks",
            "hotdask.crossmatch.photometry.intrinsic_bp_rp",
            "hotdask.crossmatch.photometry.intrinsically_cool",
        ),
    ),
    Step(
        "Labels from elsewhere",
        "§4.7",
        (),
        "Differences from labels in the literature against temperature, their offsets and scatter; the paper's eleven "
        "stars with non-LTE labels come along.",
        ("hotdask.crossmatch.differences.label_differences", "hotdask.crossmatch.compare.compare"),
    ),
    Step(
        "A second emulator",
        "§4.7",
        (),
        "Only where [fit] compare names one: both fits and their merger once more on the same pixels, so that the "
        "difference of labels is that of the models, such as LTE and non-LTE. The continuum of each is corrected with "
        "its own model of the star, as in a run of its own. Errors are scaled by the factors of the first.",
        ("hotdask.steps.label.Labeler",),
    ),
    Step(
        "Critical velocity",
        "§5.4, Eq 8",
        (r"$V_c = \sqrt{\dfrac{2}{3}\,\dfrac{GM}{R_p}},\qquad R_p = \sqrt{GM/g}$",),
        "Of the zero-age main sequence, the star of highest log g at each temperature (of each track, where tracks are "
        "one star each), in the tracks given as report.tracks; stars that lost a tenth of their mass are left out.",
        ("hotdask.steps.rotation.critical_velocity", "hotdask.report.tracks.critical_curve"),
    ),
)
"""In the order the data meet them."""


_PARSER = MathTextParser("path")
_SIZE, _GAP = 12, 16
"""Of letters, and between formulas [points]."""


@figures.styled
def formula_figure(formulas: tuple[str, ...]) -> Figure:
    """Formulas, one below the other, each with the room that it needs."""
    boxes = [_PARSER.parse(formula, dpi=72, prop=FontProperties(size=_SIZE)) for formula in formulas]
    # Points; the height is all of it, with what hangs below the line.
    heights = [box.height + _GAP for box in boxes]
    width, height = max(box.width for box in boxes) + _GAP, sum(heights)
    figure = Figure(figsize=(max(width / 72, 5.6), height / 72))
    top = height
    for formula, box, tall in zip(formulas, boxes, heights, strict=True):
        figure.text(0.0, (top - _GAP / 2 - box.height + box.depth) / height, formula, fontsize=_SIZE, va="baseline")
        top -= tall
    return figure


def _formulas(step: Step) -> Picture | None:
    if not step.formulas:
        return None
    return picture(
        formula_figure(step.formulas), alt=f"{step.title}: " + "; ".join(f.strip("$") for f in step.formulas)
    )


def method_page(title: str = "The method") -> str:
    """`STEPS` as an HTML page that needs no network."""
    rows = [{"step": step, "formula": _formulas(step), "id": f"step-{i}"} for i, step in enumerate(STEPS, 1)]
    return render("method.html", {"title": title, "rows": rows})
