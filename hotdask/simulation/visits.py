"""A survey with known labels, written as LAMOST files.

Stars come from the emulator, so recovering them tests everything but the models. What the fit does not know is added:
reddening, an error in the pipeline's velocity, a line spread that differs from the mean, bad pixels, broken files.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.interpolate import CubicSpline

from hotdask import windows
from hotdask.emulator.broadening import mean_lsf
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.errors import InputError
from hotdask.labels import INDEX, LABEL_NAMES, LSF_NAMES, N_LABELS
from hotdask.simulation.lamost_writer import write_lamost
from hotdask.spectra.normalize import Normalizer
from hotdask.steps.information import cramer_rao_bound

LAYOUTS = ("dr1", "dr5", "dr9")
BREAKAGES = ("empty", "truncated", "not_fits", "no_good_pixels", "no_velocity", "duplicate")
"""What is wrong with the broken files, in turn."""

_CONTINUUM_STEPS = 30
_PLATE = 250
"""Spectra on a plate; a small survey has smaller ones, so that it has all layouts."""
_RELEASE = {"dr1": "", "dr5": "LAMOST DR5", "dr9": "LAMOST DR9"}


@dataclass(frozen=True)
class Simulation:
    """What to simulate.

    Attributes
    ----------
    stars, spectra : int
        Number of stars and of their spectra; the difference are repeat visits.
    broken : int
        Files besides that cannot be used.
    teff : (float, float)
        Range of Teff [K], evenly in its logarithm.
    snr : (float, float)
        Range of S/N per pixel at 4750 Å, evenly in its logarithm.
    ebv : float
        Mean of the exponential distribution of E(B−V) [mag].
    velocity_error : float
        σ of header minus true velocity [km/s].
    lsf_scatter : float
        σ of the relative width of the line spread, spectrum to spectrum and arm to arm.
    bad_pixels : float
        Share of pixels without data.
    seed : int
    """

    stars: int = 2000
    spectra: int = 3000
    broken: int = 24
    teff: tuple[float, float] = (7600.0, 28000.0)
    snr: tuple[float, float] = (15.0, 250.0)
    ebv: float = 0.25
    velocity_error: float = 4.0
    lsf_scatter: float = 0.04
    bad_pixels: float = 0.01
    seed: int = 1

    def __post_init__(self):
        if self.stars < 1 or self.spectra < self.stars or not 0 <= self.broken <= self.spectra:
            raise InputError(
                f"no survey has {self.stars} stars, {self.spectra} spectra and {self.broken} broken files; "
                "give at least one star, a spectrum for each, and no more broken files than spectra"
            )


def draw_stars(simulation: Simulation, emulator: LowRankEmulator) -> pd.DataFrame:
    """Labels, velocity, reddening and position of the stars, inside the emulator's library.

    Returns
    -------
    pandas.DataFrame
        One row a star: ``<label>_true``, ``rv_true`` [km/s], ``ebv`` [mag], ``ra``, ``dec`` [deg].
    """
    rng = np.random.default_rng([simulation.seed, 0])
    labels = np.empty((0, N_LABELS))
    while len(labels) < simulation.stars:
        labels = np.concatenate([labels, _draw_labels(rng, simulation)])
        labels = labels[~emulator.outside(labels)]
    labels = labels[: simulation.stars]
    stars = pd.DataFrame(labels, columns=[f"{name}_true" for name in LABEL_NAMES])
    n = len(stars)
    stars["rv_true"] = rng.normal(0, 40, n)
    stars["ebv"] = rng.exponential(simulation.ebv, n)
    stars["ra"] = rng.uniform(0, 360, n)
    stars["dec"] = np.degrees(np.arcsin(rng.uniform(np.sin(np.radians(-10)), np.sin(np.radians(60)), n)))
    return stars


def _draw_labels(rng: np.random.Generator, simulation: Simulation) -> np.ndarray:
    n = 2 * simulation.stars
    iron = rng.normal(-0.15, 0.25, n)
    columns = {
        "teff": np.exp(rng.uniform(*np.log(simulation.teff), n)),
        "logg": rng.normal(3.95, 0.3, n),
        "vmic": np.abs(rng.normal(2, 2.5, n)),
        "vsini": np.abs(rng.normal(0, 130, n)),
        "n_he": rng.normal(0.09, 0.02, n),
        "fe_h": iron,
        **{name: iron + rng.normal(0, 0.2, n) for name in ("c_h", "n_h", "o_h", "si_h", "s_h")},
    }
    return np.column_stack([columns[name] for name in LABEL_NAMES])


def draw_visits(simulation: Simulation, stars: pd.DataFrame) -> pd.DataFrame:
    """The survey's spectra: which star, when, through which fiber, at which S/N, in which layout.

    Returns
    -------
    pandas.DataFrame
        One row a spectrum: the star's columns, ``star``, ``snr``, the measured ``rv`` and ``rv_err`` [km/s], the
        spectrum's line-spread coefficients [Å], ``layout`` and what names it (lmjd, planid, spid, fiberid, obsid).
    """
    rng = np.random.default_rng([simulation.seed, 1])
    again = rng.integers(0, simulation.stars, simulation.spectra - simulation.stars)
    star = np.concatenate([np.arange(simulation.stars), again])
    visits = stars.iloc[star].reset_index(drop=True)
    n = len(visits)
    visits["star"] = star
    visits["snr"] = np.exp(rng.uniform(*np.log(simulation.snr), simulation.stars))[star] * np.exp(rng.normal(0, 0.1, n))
    visits["rv"] = visits["rv_true"] + rng.normal(0, simulation.velocity_error, n)
    visits["rv_err"] = simulation.velocity_error
    arms = 1 + simulation.lsf_scatter * rng.normal(size=(n, 2))
    visits[list(LSF_NAMES)] = mean_lsf() * np.repeat(arms, 3, axis=1)
    # Pointing differs by a fraction of an arcsecond from visit to visit.
    visits["ra"] += rng.normal(0, 0.2 / 3600, n) / np.cos(np.radians(visits["dec"]))
    visits["ra"] %= 360
    visits["dec"] += rng.normal(0, 0.2 / 3600, n)
    # A plate is one night and one layout. A star's visits are on different plates: first visits fill whole plates, then
    # second visits, and so on.
    turn = visits.groupby("star").cumcount().to_numpy()
    place = visits.groupby(turn).cumcount().to_numpy()
    size = min(_PLATE, max(1, n // (2 * len(LAYOUTS))))
    plates = -(-np.bincount(turn) // size)
    plate, within = place // size + (np.cumsum(plates) - plates)[turn], place % size
    visits["layout"] = np.array(LAYOUTS)[plate % len(LAYOUTS)]
    visits["lmjd"] = 56000 + 17 * plate
    visits["planid"] = [f"SIM_{p:03d}" for p in plate]
    visits["spid"] = within // 25 + 1
    visits["fiberid"] = within % 25 * 10 + 1
    visits["obsid"] = np.where(visits["layout"] == "dr1", -1, 9_000_000 + np.arange(n))
    return visits


def extinction(wavelength: np.ndarray, ebv: np.ndarray) -> np.ndarray:
    """Transmission of interstellar dust, (n, n_pixel).

    Parameters
    ----------
    wavelength : (n_pixel,) float64
        Å, 3030-9090.
    ebv : (n,) float64
        E(B−V) [mag], R_V = 3.1.

    References
    ----------
    Cardelli, Clayton & Mathis 1989, Eqs 3a-b.

    Examples
    --------
    >>> round(float(-2.5 * np.log10(extinction(np.array([5494.5]), np.array([1.0]))[0, 0])), 2)
    3.1
    """
    y = 1e4 / wavelength - 1.82
    a = (1.0, 0.17699, -0.50447, -0.02427, 0.72085, 0.01979, -0.77530, 0.32999)
    b = (0.0, 1.41338, 2.28305, 1.07233, -5.38434, -0.62251, 5.30260, -2.09002)
    curve = 3.1 * np.polynomial.polynomial.polyval(y, a) + np.polynomial.polynomial.polyval(y, b)
    return 10 ** (-0.4 * np.asarray(ebv)[:, None] * curve)


def emergent(normalized: np.ndarray, teff: np.ndarray, normalizer: Normalizer) -> np.ndarray:
    """A spectrum with a stellar slope whose normalization gives back ``normalized``.

    Smoothing a spectrum whose continuum is c must return c: iterated from a black body, that fixes c on the scale of
    the kernel, and leaves the slope to the black body.

    Parameters
    ----------
    normalized : (n, 3801) float32
    teff : (n,) float64
        Temperature of the black body [K].
    normalizer : Normalizer

    Returns
    -------
    (n, 3801) float64
    """
    wavelength = windows.rest_wavelength()
    x = 1.4388e8 / wavelength / np.asarray(teff)[:, None]
    continuum = (5000 / wavelength) ** 5 / np.expm1(x) * np.expm1(1.4388e8 / 5000 / np.asarray(teff))[:, None]
    everywhere = np.ones(normalized.shape, dtype=np.float32)
    for _ in range(_CONTINUUM_STEPS):
        _, _, continuum = normalizer.normalize(normalized * continuum.astype(np.float32), everywhere)
    return normalized.astype(np.float64) * continuum


@functools.lru_cache(maxsize=1)
def _normalizer() -> Normalizer:
    return Normalizer(windows.rest_wavelength())


def _throughput(wavelength: np.ndarray) -> np.ndarray:
    """Relative efficiency: it falls to the blue, and dips where the arms meet."""
    return np.exp(-(((wavelength - 6500) / 2800) ** 2)) * (1 - 0.6 * np.exp(-(((wavelength - 5875) / 120) ** 2))) + 0.02


def _runs(rng: np.random.Generator, share: float) -> np.ndarray:
    """Bad pixels as they come, in runs (cosmic rays, sky lines, bad columns): about ``share`` of all."""
    bad = np.zeros(windows.N_OBSERVED, dtype=bool)
    for _ in range(rng.poisson(share * windows.N_OBSERVED / 8)):
        start = rng.integers(windows.N_OBSERVED)
        bad[start : start + rng.integers(2, 15)] = True
    return bad


def make_spectra(
    visits: pd.DataFrame, emulator: LowRankEmulator, simulation: Simulation
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Observed spectra of some visits.

    Each spectrum draws its noise from its own seed: it is the same in whatever company it is made.

    Parameters
    ----------
    visits : pandas.DataFrame
        Rows of `draw_visits`; the index is the spectrum's number.
    emulator : LowRankEmulator
    simulation : Simulation

    Returns
    -------
    arrays : dict
        flux, ivar (n, 3909) float32, andmask, ormask (n, 3909) uint16 on `hotdask.windows.observed_wavelength`.
    bound : (n, 11) float64
        Cramér-Rao bound of each label with this noise, all lines.
    """
    labels = visits[[f"{name}_true" for name in LABEL_NAMES]].to_numpy()
    lsf = visits[list(LSF_NAMES)].to_numpy()
    rest, observed = windows.rest_wavelength(), windows.observed_wavelength()
    normalized = emulator.flux(labels, lsf)
    star = emergent(normalized, labels[:, INDEX["teff"]], _normalizer())
    star *= extinction(rest, visits["ebv"].to_numpy())
    efficiency = _throughput(observed)
    reference = np.argmin(np.abs(observed - 4750))
    n = len(visits)
    arrays = {
        "flux": np.empty((n, windows.N_OBSERVED), dtype=np.float32),
        "ivar": np.empty((n, windows.N_OBSERVED), dtype=np.float32),
        "andmask": np.zeros((n, windows.N_OBSERVED), dtype=np.uint16),
        "ormask": np.zeros((n, windows.N_OBSERVED), dtype=np.uint16),
    }
    pixel = np.arange(windows.N_REST)
    for i, (number, visit) in enumerate(visits.iterrows()):
        rng = np.random.default_rng([simulation.seed, 2, number])
        shift = np.log10(1 + visit["rv_true"] / windows.SPEED_OF_LIGHT) / windows.LOG_STEP
        position = np.clip(np.arange(windows.N_OBSERVED) - windows.REST_OFFSET - shift, 0, windows.N_REST - 1)
        level = CubicSpline(pixel, star[i] / normalized[i])(position)
        flux = CubicSpline(pixel, star[i])(position)
        light = level * efficiency
        sigma = level / (visit["snr"] * np.sqrt(light / light[reference]))
        bad = _runs(rng, simulation.bad_pixels)
        arrays["flux"][i] = 1000 * np.where(bad, 0, flux + sigma * rng.normal(size=flux.size))
        arrays["ivar"][i] = np.where(bad, 0, (1000 * sigma) ** -2.0)
        masked = _runs(rng, simulation.bad_pixels / 2)
        arrays["andmask"][i] = np.where(masked, 1, 0)
        arrays["ormask"][i] = np.where(masked | bad, 1, 0)

    middle = slice(windows.REST_OFFSET, windows.REST_OFFSET + windows.N_REST)
    good = np.where(arrays["andmask"][:, middle] == 0, arrays["ivar"][:, middle], 0)
    bound = cramer_rao_bound(emulator, labels, good * (1000 * star / normalized) ** 2, lsf=lsf)
    return arrays, np.sqrt(np.diagonal(bound, axis1=1, axis2=2))


def write_visits(
    folder: str | Path, visits: pd.DataFrame, emulator: LowRankEmulator, simulation: Simulation
) -> pd.DataFrame:
    """Make and write the spectra of some visits as ``.fits.gz`` files.

    Parameters
    ----------
    folder : path
        Gets one folder a plate.
    visits, emulator, simulation
        As in `make_spectra`.

    Returns
    -------
    pandas.DataFrame
        Their rows of `hotdask.schema.TRUTH`.
    """
    arrays, bound = make_spectra(visits, emulator, simulation)
    wavelength = windows.observed_wavelength()
    specids = []
    for i, visit in enumerate(visits.to_dict("records")):
        meta = {
            **visit,
            **{f"snr_{band}": visit["snr"] * k for band, k in zip("ugriz", (0.4, 1, 1.2, 1.1, 0.8), strict=True)},
            "mjd": visit["lmjd"] - 1,
            "class": "STAR",
            "subclass": "B6" if visit["teff_true"] > 10000 else "A5V",
            "release": _RELEASE[visit["layout"]],
        }
        path = visit_path(folder, visit)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lamost(
            path, layout=visit["layout"], wavelength=wavelength, meta=meta, **{k: v[i] for k, v in arrays.items()}
        )
        specids.append(f"{visit['lmjd']:05d}-{visit['planid']}-{visit['spid']:02d}-{visit['fiberid']:03d}")
    truth = visits[["star", *(f"{name}_true" for name in LABEL_NAMES), "rv_true", "ebv", *LSF_NAMES]].copy()
    truth.insert(0, "specid", specids)
    truth[[f"{name}_crb" for name in LABEL_NAMES]] = bound
    return truth


def visit_path(folder: str | Path, visit: dict) -> Path:
    """Where a visit's file lies: one folder a plate, the survey's own file name."""
    name = f"spec-{visit['lmjd']:05d}-{visit['planid']}_sp{visit['spid']:02d}-{visit['fiberid']:03d}.fits.gz"
    return Path(folder) / visit["layout"] / visit["planid"] / name


def write_broken(folder: str | Path, visits: pd.DataFrame, simulation: Simulation) -> pd.DataFrame:
    """Break copies of the first files in turn, as `BREAKAGES` says.

    Returns
    -------
    pandas.DataFrame
        ``path`` and ``breakage`` of each broken file.
    """
    from astropy.io import fits

    target = Path(folder) / "broken"
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(simulation.broken):
        breakage = BREAKAGES[number % len(BREAKAGES)]
        source = visit_path(folder, visits.iloc[number].to_dict())
        name = source.name if breakage == "duplicate" else f"spec-55555-BROKEN_sp01-{number + 1:03d}.fits.gz"
        path = target / name
        content = source.read_bytes()
        if breakage == "empty":
            path.write_bytes(b"")
        elif breakage == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif breakage == "not_fits":
            path.write_bytes(b"this is not a spectrum\n" * 200)
        elif breakage == "duplicate":
            path.write_bytes(content)
        else:
            with fits.open(source) as hdus:
                for key, value in (("LMJD", 55555), ("PLANID", "BROKEN"), ("SPID", 1), ("FIBERID", number + 1)):
                    hdus[0].header[key] = value
                if "OBSID" in hdus[0].header:
                    hdus[0].header["OBSID"] = 8_000_000 + number
                if breakage == "no_velocity":
                    hdus[0].header["Z"] = -9999.0
                elif len(hdus) > 1:
                    hdus[1].data["IVAR"] = 0
                else:
                    hdus[0].data[1] = 0
                # DR9 headers hold NAXIS cards of another shape, as the survey writes them.
                hdus.writeto(path, overwrite=True, output_verify="ignore")
        rows.append({"path": str(path), "breakage": breakage})
    return pd.DataFrame(rows, columns=["path", "breakage"])
