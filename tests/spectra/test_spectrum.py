"""Spectra as their owners have them: units, kinds of uncertainty, order, masks, and what is refused in which words."""

import numpy as np
import pytest
from astropy import units
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty

from hotdask.errors import InputError
from hotdask.spectra.arms import place
from hotdask.spectra.spectrum import Spectrum, as_spectrum, estimate_uncertainty
from hotdask.windows import FWHM, air_to_vacuum, observed_wavelength

WAVELENGTH = np.arange(3700.0, 9100.0, 0.5)
N = len(WAVELENGTH)


def absorption(wavelength: np.ndarray, center: float = 5000.0, sigma: float = 3.0) -> np.ndarray:
    return 1 - 0.5 * np.exp(-0.5 * ((wavelength - center) / sigma) ** 2)


def star(**changed) -> Spectrum:
    fields = {"wavelength": WAVELENGTH, "flux": absorption(WAVELENGTH), "uncertainty": np.full(N, 0.02)}
    return Spectrum(**fields | {"resolving_power": 5000.0} | changed)


def test_units_of_wavelength_are_converted() -> None:
    for unit in (units.nm, units.um, units.m):
        assert star(wavelength=(WAVELENGTH * units.AA).to(unit)).wavelength == pytest.approx(WAVELENGTH, rel=1e-12)
    with pytest.raises(InputError, match="wavelength in kg; give a unit of length"):
        star(wavelength=WAVELENGTH * units.kg)


def test_all_kinds_of_uncertainty_are_one() -> None:
    sigma = np.linspace(0.01, 0.03, N)
    flux = absorption(WAVELENGTH) * units.Unit("1e-16 erg / (s cm2 Angstrom)")
    kinds = [
        {"uncertainty": sigma},
        {"uncertainty": None, "ivar": 1 / sigma**2},
        {"uncertainty": None, "variance": sigma**2},
        {"uncertainty": StdDevUncertainty(sigma)},
        {"uncertainty": InverseVariance(1 / sigma**2)},
        {"uncertainty": VarianceUncertainty(sigma**2)},
        {"flux": flux, "uncertainty": sigma * flux.unit},
        {"flux": flux, "uncertainty": InverseVariance(1 / sigma**2, unit=flux.unit**-2)},
        # The same in another unit.
        {"flux": flux, "uncertainty": (1e-16 * sigma) * units.Unit("erg / (s cm2 Angstrom)")},
    ]
    for kind in kinds:
        assert star(**kind).uncertainty == pytest.approx(sigma, rel=1e-9), kind.keys()
    with pytest.raises(InputError, match="uncertainty in Jy beside a flux in"):
        star(flux=flux, uncertainty=sigma * units.Jy)
    with pytest.raises(InputError, match="ivar and uncertainty are given; give one"):
        star(ivar=sigma)


def test_flux_per_frequency_becomes_flux_per_wavelength() -> None:
    flat = star(flux=np.ones(N) * units.Jy, uncertainty=0.01 * np.ones(N) * units.Jy)
    assert flat.flux / flat.flux[0] == pytest.approx((WAVELENGTH[0] / WAVELENGTH) ** 2)
    assert flat.flux / flat.uncertainty == pytest.approx(100)


def test_falling_wavelengths_are_turned_with_all_that_belongs_to_them() -> None:
    power = np.linspace(4000, 6000, N)
    mask = np.arange(N) < 7
    one = star(uncertainty=np.linspace(0.01, 0.02, N), resolving_power=power, mask=mask)
    other = star(
        wavelength=WAVELENGTH[::-1],
        flux=absorption(WAVELENGTH)[::-1],
        uncertainty=np.linspace(0.01, 0.02, N)[::-1],
        resolving_power=power[::-1],
        mask=mask[::-1],
    )
    for field in ("wavelength", "flux", "uncertainty", "resolving_power"):
        assert np.array_equal(getattr(one, field), getattr(other, field)), field
    assert np.isinf(one.uncertainty[:7]).all()


def test_widths_may_be_said_in_four_ways() -> None:
    for widths in (
        {"resolving_power": 4000.0},
        {"resolving_power": lambda wavelength: np.full(wavelength.shape, 4000.0)},
        {"resolving_power": None, "fwhm": WAVELENGTH / 4000},
        {"resolving_power": None, "lsf_sigma": WAVELENGTH / 4000 / FWHM},
    ):
        assert star(**widths).resolving_power == pytest.approx(4000), widths.keys()
    with pytest.raises(InputError, match="resolving_power and fwhm are given"):
        star(fwhm=1.0)


def test_bad_pixels_are_bad_however_they_are_marked() -> None:
    flux = np.ma.masked_less(absorption(WAVELENGTH), 0.6)
    sigma = np.full(N, 0.02)
    sigma[3], sigma[4] = 0, np.nan
    found = star(flux=flux, uncertainty=sigma)
    bad = np.isinf(found.uncertainty)
    assert bad[3]
    assert bad[4]
    assert np.array_equal(bad[10:], flux.mask[10:])
    assert flux.mask[10:].sum() > 3


def test_noise_is_estimated_and_said() -> None:
    rng = np.random.default_rng(1)
    sigma = np.where(WAVELENGTH < 6000, 0.01, 0.03)
    found = star(flux=absorption(WAVELENGTH) + rng.normal(0, sigma), uncertainty=None)
    assert np.median(found.uncertainty[WAVELENGTH < 5900] / 0.01) == pytest.approx(1, abs=0.05)
    assert np.median(found.uncertainty[WAVELENGTH > 6100] / 0.03) == pytest.approx(1, abs=0.05)
    assert "uncertainties are estimated" in found.notes[0]
    assert star().notes == ()
    assert np.isinf(estimate_uncertainty(np.ones(4), np.full(4, True))).all()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"flux": np.ones(3)}, r"flux has the shape \(3,\), wavelength \(10800,\); give one value a pixel"),
        ({"mask": np.ones(3)}, "mask has the shape"),
        ({"uncertainty": np.zeros(N)}, "uncertainty is positive nowhere; leave it out to have it estimated"),
        ({"wavelength": np.where(WAVELENGTH == 5000, np.nan, WAVELENGTH)}, r"wavelength\[2600\] = nan; leave such"),
        ({"wavelength": np.where(WAVELENGTH == 5000, 4000, WAVELENGTH)}, "wavelengths turn at pixel 2600 .*sort them"),
        ({"wavelength": WAVELENGTH / 10}, "good pixels cover 0 % of 3700-9000 Å .*check the unit"),
        ({"medium": "vac"}, "medium = 'vac'; give 'vacuum' or 'air'"),
        ({"rv": 4e5}, "rv = 400000 km/s; give a velocity"),
        ({"rv": "fast"}, "rv = 'fast'; give a number"),
        ({"resolving_power": -1}, "resolving_power is positive nowhere"),
    ],
)
def test_what_cannot_be_is_refused(changed, told) -> None:
    with pytest.raises(InputError, match=told):
        star(**changed)


def test_coarse_pixels_and_short_spectra_are_refused() -> None:
    coarse = np.arange(3700.0, 9000.0, 5)
    with pytest.raises(InputError, match=r"pixels are λ/1269 wide.*before it was binned"):
        Spectrum(coarse, np.ones(len(coarse)), np.ones(len(coarse)))
    short = WAVELENGTH[WAVELENGTH < 4200]
    with pytest.raises(InputError, match=r"good pixels cover 14 % .* labels need 20 %"):
        Spectrum(short, np.ones(len(short)), np.ones(len(short)))
    # A gap is no coverage.
    ends = WAVELENGTH[(WAVELENGTH < 4000) | (WAVELENGTH > 8700)]
    with pytest.raises(InputError, match="good pixels cover 13 %"):
        Spectrum(ends, np.ones(len(ends)), np.ones(len(ends)))


class FromElsewhere:
    """What specutils' spectra offer."""

    spectral_axis = WAVELENGTH[::-1] / 10 * units.nm
    flux = absorption(WAVELENGTH)[::-1] * units.Jy
    uncertainty = StdDevUncertainty(np.full(N, 0.02))
    mask = None
    radial_velocity = 30 * units.km / units.s


def test_spectra_of_specutils_are_taken() -> None:
    found = as_spectrum(FromElsewhere(), resolving_power=3000)
    assert found.wavelength == pytest.approx(WAVELENGTH)
    assert found.rv == 30
    assert found.snr == pytest.approx(50, rel=0.01)
    assert as_spectrum(found, fwhm=1.0, rv=3).resolving_power == pytest.approx(WAVELENGTH)
    with pytest.raises(InputError, match="a list is no spectrum"):
        as_spectrum([1, 2])


def test_specutils_itself_is_taken() -> None:
    specutils = pytest.importorskip("specutils", reason="specutils is not installed")
    reader = getattr(specutils, "Spectrum", None) or specutils.Spectrum1D
    found = reader(
        spectral_axis=WAVELENGTH * units.AA,
        flux=absorption(WAVELENGTH) * units.dimensionless_unscaled,
        uncertainty=InverseVariance(np.full(N, 2500.0)),
    )
    assert as_spectrum(found).uncertainty == pytest.approx(0.02)


# On the grid


def equivalent_width(placed, low: float, high: float) -> float:
    grid = observed_wavelength()
    here = (grid > low) & (grid < high)
    return float(((1 - placed.flux) * np.gradient(grid))[here].sum())


@pytest.mark.parametrize("power", [3000, 50000])
def test_lines_keep_their_width_and_place(power) -> None:
    fine = np.exp(np.arange(np.log(3690), np.log(9110), 1 / (3 * power)))
    sigma = 5000 / power / FWHM
    flux = absorption(fine, 5000.0, sigma)
    placed = place(Spectrum(fine, flux, np.full(len(fine), 0.01), resolving_power=power, medium="air"))
    assert placed.powers == (1800.0, 1800.0)
    width = 0.5 * sigma * np.sqrt(2 * np.pi)
    assert equivalent_width(placed, 4980, 5025) == pytest.approx(width * float(air_to_vacuum(5000)) / 5000, rel=2e-3)
    grid = observed_wavelength()
    depth = np.where(abs(grid - 5000) < 15, 1 - placed.flux, 0)
    center = (depth * grid).sum() / depth.sum()
    assert center == pytest.approx(float(air_to_vacuum(5000)), abs=0.02)
    spread = np.sqrt((depth * (grid - center) ** 2).sum() / depth.sum())
    assert spread == pytest.approx(5001.4 / 1800 / FWHM, rel=0.01)


def test_pixels_of_the_grid_are_taken_over() -> None:
    grid = observed_wavelength()[100:3700]
    flux, sigma = absorption(grid).astype(np.float32), np.full(len(grid), 0.25)
    placed = place(Spectrum(grid, flux, sigma, resolving_power=1800))
    assert np.array_equal(placed.flux[100:3700], flux)
    assert (placed.ivar[100:3700] == 16).all()
    assert not placed.ivar[:100].any()
    # Finer than the emulators know: these have to be degraded.
    assert place(Spectrum(grid, flux, sigma, resolving_power=4000)).powers == (1800.0, 1800.0)


def test_what_lies_in_gaps_is_not_made_up() -> None:
    kept = (WAVELENGTH < 5200) | (WAVELENGTH > 5600)
    placed = place(Spectrum(WAVELENGTH[kept], np.ones(kept.sum()), np.full(kept.sum(), 0.1), resolving_power=4000))
    grid = observed_wavelength()
    assert not placed.ivar[(grid > 5201) & (grid < 5599)].any()
    assert (placed.ivar[(grid > 5000) & (grid < 5190)] > 0).all()


def test_faint_fluxes_do_not_vanish_in_single_precision() -> None:
    faint = place(star(flux=1e-19 * absorption(WAVELENGTH), uncertainty=np.full(N, 2e-21)))
    plain = place(star())
    assert np.array_equal(faint.ivar > 0, plain.ivar > 0)
    assert faint.flux * np.sqrt(faint.ivar) == pytest.approx(plain.flux * np.sqrt(plain.ivar), rel=1e-4)


def test_pulls_of_degraded_noise_are_those_of_its_information() -> None:
    rng = np.random.default_rng(5)
    grid = observed_wavelength()
    line = 1 - absorption(grid, 5000.0, 4.0)
    pulls = []
    for _ in range(60):
        found = place(star(flux=1 + rng.normal(0, 0.02, N)))
        information = (found.ivar * line**2).sum()
        # Amplitude of a line that is not there, by least squares.
        level = np.median(found.flux[found.ivar > 0])
        pulls.append(((found.flux / level - 1) * found.ivar * line).sum() / np.sqrt(information))
    assert 0.75 < np.std(pulls) < 1.25


def test_unknown_and_low_resolving_powers_are_refused() -> None:
    with pytest.raises(InputError, match="its resolving power is not known; give resolving_power"):
        place(star(resolving_power=None))
    with pytest.raises(InputError, match="its resolving power is 1000, and the emulators know 1400 to 2300"):
        place(star(resolving_power=1000))


def wavy() -> np.ndarray:
    """Flux of structure as wide as lines of R = 1800."""
    kernel = np.exp(-0.5 * (np.arange(-20, 21) / 2.6) ** 2)
    return 1 + np.convolve(np.random.default_rng(2).normal(0, 0.1, N), kernel / kernel.sum(), "same")


def check_against(theirs: np.ndarray) -> None:
    """Theirs are means over pixels of the grid, ours values that a pixel is part of: the same over some pixels."""
    flux = wavy()
    ours = place(star(flux=flux, resolving_power=1800)).flux[50:3850] * np.median(flux)
    difference = (ours - theirs).reshape(-1, 20).mean(axis=1)
    assert np.std(theirs.reshape(-1, 20).mean(axis=1)) > 5e-3
    assert np.abs(difference).max() < 1.5e-3


def test_spectres_conserves_the_same_flux() -> None:
    spectres = pytest.importorskip("spectres", reason="spectres is not installed")
    check_against(spectres.spectres(observed_wavelength()[50:3850], WAVELENGTH, wavy()))


def test_specutils_conserves_the_same_flux() -> None:
    specutils = pytest.importorskip("specutils", reason="specutils is not installed")
    manipulation = pytest.importorskip("specutils.manipulation")
    whole = getattr(specutils, "Spectrum", None) or specutils.Spectrum1D
    seen = whole(spectral_axis=WAVELENGTH * units.AA, flux=wavy() * units.dimensionless_unscaled)
    grid = observed_wavelength()[50:3850] * units.AA
    check_against(manipulation.FluxConservingResampler()(seen, grid).flux.value)
