"""One spectrum as an astronomer has it, checked and in one set of units."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from astropy import units
from astropy.nddata import InverseVariance, NDUncertainty, StdDevUncertainty, VarianceUncertainty

from hotdask.errors import InputError
from hotdask.windows import FWHM, SPEED_OF_LIGHT

COVERED = (3700.0, 9000.0)
"""Range that the models describe [Å]."""
LEAST_COVERAGE = 0.2
"""Share of it, in log λ, that a spectrum needs."""
COARSEST = 2000.0
"""λ/Δλ of pixels below which lines are not sampled."""
BEST_SNR = 1000.0
"""S/N per pixel that an estimated uncertainty claims at most."""
ASSUMED_MEDIUM = "wavelengths are taken for those"
"""How a note begins that says whether they are in air."""
_BIN = 200
_PER_FREQUENCY = units.Jy
_PER_WAVELENGTH = units.erg / units.s / units.cm**2 / units.AA
_NOTHING: Mapping[str, object] = MappingProxyType({})


class SpectrumWarning(UserWarning):
    """Something about a spectrum that its owner should look at."""


@dataclass(frozen=True, eq=False, init=False)
class Spectrum:
    """One spectrum of a star: wavelengths, flux, uncertainty, resolving power, velocity.

    Parameters
    ----------
    wavelength : (n,) float or Quantity
        Of the pixels, [Å] or with an astropy unit, as observed, rising or falling strictly. Gaps are allowed.
    flux : (n,) float, Quantity or masked array
        Per wavelength, in any unit, or normalized; a Quantity per frequency is converted. NaN is a bad pixel.
    uncertainty : (n,) float, Quantity or NDUncertainty, optional
        1 σ of the flux, or what the class of astropy says. Default: see ``ivar``, ``variance``; without any of them it
        is estimated from the scatter of neighboring pixels, and `notes` says so.
    ivar, variance : (n,) float, optional
        Inverse variance or variance instead.
    mask : (n,) bool, optional
        True where a pixel is bad, as in numpy and astropy.
    medium : {"vacuum", "air"}
        Of the wavelengths.
    resolving_power : float, (n,) float or callable, optional
        λ/FWHM of a narrow line, of the whole, of each pixel, or as a function of wavelength [Å].
    fwhm, lsf_sigma : float or (n,) float, optional
        Line spread [Å] instead, as full width at half maximum or as σ of a Gaussian.
    rv : float or Quantity, optional
        Velocity [km/s], positive = receding. Default: to be found.
    rv_err : float
        Its error [km/s].
    name : str
        What to call the star.
    noise_power : float
        Share of the variance that the noise really has, if it was smoothed before; only χ² depends on it.
    meta : mapping
        ``ra`` and ``dec`` [deg] and ``snr_g``, where known.
    notes : sequence of str
        What was assumed about it.

    Attributes
    ----------
    wavelength, flux, uncertainty : (n,) float64
        Wavelengths rise [Å]; a bad pixel has an infinite uncertainty.
    resolving_power : (n,) float64 or None

    Raises
    ------
    InputError
        If lengths differ, wavelengths are not monotonic or no wavelengths, sampling is too coarse, too little of
        3700-9000 Å is there, or a value is impossible.

    Notes
    -----
    Estimated uncertainties are those of DER_SNR, 1.4826 med|2 f(i) − f(i−2) − f(i+2)|/√6 in stretches of 200 pixels.

    References
    ----------
    Stoehr et al. 2008, ASP Conf. 394, 505.

    Examples
    --------
    >>> wavelength = np.arange(380.0, 700.0, 0.02) * units.nm
    >>> star = Spectrum(wavelength, np.ones(16000), np.full(16000, 0.01), resolving_power=48000, rv=-20)
    >>> star
    Spectrum: 16000 pixels, 3800-7000 Å (vacuum), R = 48000, S/N 100 per pixel, rv -20.0 km/s
    """

    wavelength: np.ndarray
    flux: np.ndarray
    uncertainty: np.ndarray
    medium: str
    resolving_power: np.ndarray | None
    rv: float | None
    rv_err: float
    name: str
    noise_power: float
    meta: Mapping[str, object]
    notes: tuple[str, ...]

    def __init__(
        self,
        wavelength,
        flux,
        uncertainty=None,
        *,
        ivar=None,
        variance=None,
        mask=None,
        medium: str = "vacuum",
        resolving_power: float | np.ndarray | Callable | None = None,
        fwhm: float | np.ndarray | None = None,
        lsf_sigma: float | np.ndarray | None = None,
        rv: float | units.Quantity | None = None,
        rv_err: float = np.nan,
        name: str = "",
        noise_power: float = 1.0,
        meta: Mapping[str, object] = _NOTHING,
        notes: tuple[str, ...] = (),
    ):
        where = f"spectrum {name}".strip()
        if medium not in ("vacuum", "air"):
            raise InputError(f"{where}: medium = {medium!r}; give 'vacuum' or 'air'")
        wavelength = _wavelengths(wavelength, where)
        flux, bad, unit, factor = _flux(flux, wavelength, where)
        if mask is not None:
            bad |= _column(mask, len(flux), "mask", where, dtype=bool)
        given = [(kind, values) for kind, values in (("ivar", ivar), ("variance", variance)) if values is not None]
        if uncertainty is not None:
            given.append(_kind_of(uncertainty))
        if len(given) > 1:
            raise InputError(f"{where}: {' and '.join(k for k, _ in given)} are given; give one of them")
        sigma = None if not given else factor * _sigma(*given[0], len(flux), unit, where)
        widths = {"resolving_power": resolving_power, "fwhm": fwhm, "lsf_sigma": lsf_sigma}
        power = _power(widths, wavelength, where)
        order = slice(None) if wavelength[0] < wavelength[-1] else slice(None, None, -1)
        wavelength, flux, bad = wavelength[order], flux[order], bad[order]
        power = power if power is None else power[order]
        notes = tuple(notes)
        bad |= ~np.isfinite(flux)
        if sigma is None:
            sigma = estimate_uncertainty(flux, ~bad)
            notes += ("uncertainties are estimated from the scatter of neighboring pixels",)
        else:
            sigma = sigma[order]
        with np.errstate(invalid="ignore"):
            sigma = np.where(bad | ~(sigma > 0), np.inf, sigma)
        _check_pixels(wavelength, np.isfinite(sigma), where)
        for field, value in {
            "wavelength": wavelength,
            "flux": flux,
            "uncertainty": sigma,
            "medium": medium,
            "resolving_power": power,
            "rv": None if rv is None else _velocity(rv, "rv", where),
            "rv_err": _velocity(rv_err, "rv_err", where, unknown=True),
            "name": str(name),
            "noise_power": float(noise_power),
            "meta": dict(meta),
            "notes": notes,
        }.items():
            object.__setattr__(self, field, value)

    @property
    def snr(self) -> float:
        """Median S/N per pixel."""
        good = np.isfinite(self.uncertainty)
        return float(np.median(np.abs(self.flux[good]) / self.uncertainty[good]))

    def __repr__(self) -> str:
        power = "unknown" if self.resolving_power is None else f"{np.median(self.resolving_power):.0f}"
        velocity = "to be found" if self.rv is None else f"{self.rv:.1f} km/s"
        name = f"Spectrum {self.name}".strip()
        return (
            f"{name}: {len(self.flux)} pixels, {self.wavelength[0]:.0f}-{self.wavelength[-1]:.0f} Å ({self.medium}), "
            f"R = {power}, S/N {self.snr:.0f} per pixel, rv {velocity}"
        )


def as_spectrum(thing: object, **changed: object) -> Spectrum:
    """A `Spectrum` of what may be one: itself, or a ``Spectrum`` or ``Spectrum1D`` of specutils.

    Parameters
    ----------
    thing : Spectrum, or object with ``spectral_axis`` and ``flux``
    **changed
        Arguments of `Spectrum` to use instead; None changes nothing.

    Raises
    ------
    InputError
        If it is nothing of the kind.

    Examples
    --------
    >>> star = Spectrum(np.arange(3800.0, 7000.0), np.ones(3200), np.ones(3200))
    >>> as_spectrum(star, rv=12).rv
    12.0
    """
    changed = {key: value for key, value in changed.items() if value is not None}
    if isinstance(thing, Spectrum):
        if not changed:
            return thing
        fields = {key: getattr(thing, key) for key in thing.__dataclass_fields__}
        return Spectrum(**_with_widths(fields, changed))
    if not (hasattr(thing, "spectral_axis") and hasattr(thing, "flux")):
        raise InputError(
            f"a {type(thing).__name__} is no spectrum; give a hotdask.Spectrum, one of specutils, or a file's name to "
            "hotdask.read"
        )
    fields = {
        "wavelength": units.Quantity(thing.spectral_axis),
        "flux": units.Quantity(thing.flux),
        "uncertainty": getattr(thing, "uncertainty", None),
        "mask": getattr(thing, "mask", None),
    }
    velocity = getattr(thing, "radial_velocity", None)
    # Where it was never set specutils says 0.
    if velocity is not None and np.ndim(velocity) == 0 and velocity.value != 0:
        fields["rv"] = velocity
    return Spectrum(**_with_widths(fields, changed))


def _with_widths(fields: dict, changed: dict) -> dict:
    if {"fwhm", "lsf_sigma"} & changed.keys():
        fields.pop("resolving_power", None)
    if "rv" in changed:
        fields.pop("rv_err", None)
    if "medium" in changed:
        fields["notes"] = tuple(n for n in fields.get("notes", ()) if not n.startswith(ASSUMED_MEDIUM))
    return fields | changed


def estimate_uncertainty(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
    """1 σ of each pixel from the scatter of its neighbors, (n,) float64.

    Parameters
    ----------
    flux : (n,) float64
    good : (n,) bool

    Examples
    --------
    >>> noise = np.random.default_rng(1).normal(1, 0.02, 4000)
    >>> bool(abs(np.median(estimate_uncertainty(noise, np.full(4000, True))) / 0.02 - 1) < 0.1)
    True
    """
    place = np.flatnonzero(good)
    if len(place) < 5:
        return np.full(len(flux), np.inf)
    values = flux[place]
    scatter = np.abs(2 * values[2:-2] - values[:-4] - values[4:]) / np.sqrt(6)
    bins = np.array_split(np.arange(len(scatter)), max(1, len(scatter) // _BIN))
    center = [place[2:-2][b].mean() for b in bins]
    found = [max(1.4826 * np.median(scatter[b]), np.median(np.abs(values[2:-2][b])) / BEST_SNR) for b in bins]
    return np.interp(np.arange(len(flux)), center, found)


def _wavelengths(values, where: str) -> np.ndarray:
    if isinstance(values, units.Quantity) and values.unit != units.dimensionless_unscaled:
        try:
            values = values.to_value(units.AA, equivalencies=units.spectral())
        except units.UnitConversionError as error:
            raise InputError(f"{where}: wavelength in {values.unit}; give a unit of length") from error
    wavelength = np.asarray(values, dtype=np.float64)
    if wavelength.ndim != 1 or len(wavelength) < 2:
        raise InputError(f"{where}: wavelength has the shape {wavelength.shape}; give one number a pixel")
    bad = np.flatnonzero(~(np.isfinite(wavelength) & (wavelength > 0)))
    if bad.size:
        raise InputError(f"{where}: wavelength[{bad[0]}] = {wavelength[bad[0]]:g}; leave such pixels out")
    step = np.diff(wavelength)
    against = np.flatnonzero(step <= 0 if wavelength[-1] > wavelength[0] else step >= 0)
    if against.size:
        i = against[0]
        raise InputError(
            f"{where}: wavelengths turn at pixel {i + 1} ({wavelength[i]:.3f}, then {wavelength[i + 1]:.3f} Å); sort "
            "them, and join overlapping orders first"
        )
    return wavelength


def _column(values, n: int, field: str, where: str, dtype=np.float64) -> np.ndarray:
    array = np.array(values, dtype=dtype)
    if array.shape != (n,):
        raise InputError(f"{where}: {field} has the shape {array.shape}, wavelength ({n},); give one value a pixel")
    return array


def _flux(values, wavelength: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray, units.UnitBase | None, object]:
    """Flux, bad pixels, the unit it came in, and the factor that made it a flux per wavelength."""
    bad = np.array(np.broadcast_to(getattr(values, "mask", False), np.shape(values)), dtype=bool)
    values = getattr(values, "unmasked", values)
    unit = getattr(values, "unit", None)
    factor: object = 1.0
    if unit is not None and unit.is_equivalent(_PER_FREQUENCY):
        factor = (1 * unit).to_value(_PER_WAVELENGTH, equivalencies=units.spectral_density(wavelength * units.AA))
    plain = _column(getattr(values, "value", np.ma.getdata(values)), len(wavelength), "flux", where)
    return plain * factor, bad, unit, factor


def _kind_of(uncertainty) -> tuple[str, object]:
    if not isinstance(uncertainty, NDUncertainty):
        return "uncertainty", uncertainty
    kinds = {StdDevUncertainty: "uncertainty", VarianceUncertainty: "variance", InverseVariance: "ivar"}
    kind = next((name for cls, name in kinds.items() if isinstance(uncertainty, cls)), None)
    if kind is None:
        raise InputError(
            f"a {type(uncertainty).__name__} is not understood; give a StdDevUncertainty, VarianceUncertainty or "
            "InverseVariance"
        )
    return kind, uncertainty.array if uncertainty.unit is None else uncertainty.quantity


def _sigma(kind: str, values, n: int, unit: units.UnitBase | None, where: str) -> np.ndarray:
    if isinstance(values, units.Quantity):
        power = {"uncertainty": 1, "variance": 2, "ivar": -2}[kind]
        try:
            values = values.to_value((unit or units.dimensionless_unscaled) ** power)
        except units.UnitConversionError as error:
            raise InputError(f"{where}: {kind} in {values.unit} beside a flux in {unit}; give both in one") from error
    values = _column(np.ma.filled(values, np.nan), n, kind, where)
    if not (np.isfinite(values) & (values > 0)).any():
        raise InputError(f"{where}: {kind} is positive nowhere; leave it out to have it estimated")
    with np.errstate(all="ignore"):
        if kind == "ivar":
            return 1 / np.sqrt(values)
        return np.sqrt(values) if kind == "variance" else values


def _power(widths: Mapping[str, object], wavelength: np.ndarray, where: str) -> np.ndarray | None:
    given = {name: value for name, value in widths.items() if value is not None}
    if not given:
        return None
    if len(given) > 1:
        raise InputError(f"{where}: {' and '.join(given)} are given; give one of them")
    ((field, value),) = given.items()
    if callable(value):
        value = value(wavelength)
    if isinstance(value, units.Quantity):
        value = value.to_value(units.dimensionless_unscaled if field == "resolving_power" else units.AA)
    value = np.asarray(value, dtype=np.float64)
    value = np.full(wavelength.shape, value) if value.ndim == 0 else _column(value, len(wavelength), field, where)
    known = np.isfinite(value) & (value > 0)
    if not known.any():
        raise InputError(f"{where}: {field} is positive nowhere; give λ/FWHM or a width in Å")
    # Edges of a line spread are often not measured.
    value = np.interp(np.arange(len(value)), np.flatnonzero(known), value[known])
    scale = {"resolving_power": None, "fwhm": 1.0, "lsf_sigma": FWHM}[field]
    return value if scale is None else wavelength / (scale * value)


def _velocity(value, field: str, where: str, *, unknown: bool = False) -> float:
    value = value.to_value(units.km / units.s) if isinstance(value, units.Quantity) else value
    try:
        value = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {field} = {value!r}; give a number [km/s]") from error
    if not (abs(value) < SPEED_OF_LIGHT or (unknown and np.isnan(value))):
        raise InputError(f"{where}: {field} = {value:g} km/s; give a velocity, or leave it out to have it found")
    return value


def _check_pixels(wavelength: np.ndarray, good: np.ndarray, where: str) -> None:
    """Refuse what covers too little of what the models describe, or does not sample lines."""
    low, high = COVERED
    step = np.diff(wavelength)
    inside = (wavelength[:-1] < high) & (wavelength[1:] > low)
    if inside.any():
        sampling = float(np.median(wavelength[:-1][inside] / step[inside]))
        if sampling < COARSEST:
            raise InputError(
                f"{where}: pixels are λ/{sampling:.0f} wide, and lines of R = 1000 or more are sampled by "
                f"λ/{COARSEST:.0f} and finer; give the spectrum as it was before it was binned"
            )
    # A pixel stands for itself only: what lies in gaps is not covered.
    ratio = np.log(np.append(wavelength[1:], wavelength[-1]) / wavelength)
    usual = np.median(ratio[:-1])
    here = good & (wavelength >= low) & (wavelength <= high)
    share = float(np.minimum(ratio, 5 * usual)[here].sum() / np.log(high / low))
    if share < LEAST_COVERAGE:
        raise InputError(
            f"{where}: good pixels cover {100 * share:.0f} % of {low:.0f}-{high:.0f} Å ({wavelength[0]:.4g}-"
            f"{wavelength[-1]:.4g} Å are there), and labels need {100 * LEAST_COVERAGE:.0f} %; check the unit of the "
            "wavelengths, or give more of the spectrum"
        )
