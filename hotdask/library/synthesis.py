"""The engine: labels → atmosphere → gas → opacities → emergent spectrum, in LTE and out of it."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hotdask import __version__
from hotdask.errors import SynthesisError
from hotdask.labels import INDEX
from hotdask.library import hydrogen, hydrostatic, opacity
from hotdask.library.abundances import abundances
from hotdask.library.atmospheres import AtmosphereGrid, read_atmospheres
from hotdask.library.atoms import MASSES, N_STAGES, SYMBOLS, ionization_energy
from hotdask.library.corrections import TABLE, correct
from hotdask.library.corrections import identity as corrections_identity
from hotdask.library.departures import Departures, match_lines, read_departures
from hotdask.library.helium import add_helium_line, replaced_lines, stark_tables
from hotdask.library.helium_profiles import read_helium_profiles
from hotdask.library.hotdepartures import TABLE as HOT_TABLE
from hotdask.library.hotdepartures import add_hot_models
from hotdask.library.hotdepartures import identity as hot_identity
from hotdask.library.linelist import HC, LineList, default_damping, read_lines
from hotdask.library.metals import add_lines
from hotdask.library.nltestructure import FADE, correct_temperature
from hotdask.library.spectra import LOG_START, LOG_STEP, N_FINE, Synthesis
from hotdask.library.starktables import StarkLine
from hotdask.library.state import ATOMIC_MASS, C_CGS, H_ERG, K_ERG, K_EV, State, solve_state
from hotdask.library.strong import AssumedWidth, assumed_widths
from hotdask.library.transfer import eddington_factors, emergent_flux

SAMPLES = 5
"""Samples of a spectrum per pixel of a library: R = 108 000."""
_THRESHOLD = 1e-3
"""Lines are drawn where they exceed this share of the continuous opacity."""
_EDGES = (9e8 / hydrogen.RYDBERG_H, *(1e8 * n**2 / (4 * hydrogen.RYDBERG_HE) for n in (5, 6)))
"""Thresholds of the Paschen series and of He II [Å]: the continuum has steps there."""


@functools.cache
def _code_hash() -> str:
    """SHA-256 of the engine's own modules: a version number does not tell apart what is made while it is written."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def sample_wavelength() -> np.ndarray:
    """Vacuum wavelengths [Å] at which the engine computes; read-only, for all spectra share it."""
    offset = (np.arange(N_FINE * SAMPLES) - (SAMPLES - 1) / 2) / SAMPLES
    wavelength = 10 ** (LOG_START + LOG_STEP * offset)
    wavelength.setflags(write=False)
    return wavelength


def planck(wavelength: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """B_λ [erg/s/cm²/Å/sr], (n_wavelength, n_layer)."""
    centimeter = wavelength[:, None] * 1e-8
    return 2e-8 * H_ERG * C_CGS**2 / centimeter**5 / np.expm1(H_ERG * C_CGS / (centimeter * K_ERG * temperature))


class HotdaskEngine:
    """Synthesis of hot stars' spectra, 3724-9022 Å: in LTE or, given populations, out of it and in LTE besides.

    Parameters
    ----------
    atmospheres, lines : path
        Files for `read_atmospheres` and `read_lines`.
    helium : {"stark", "voigt"}
        He I and He II lines from Stark tables, or as the list's Voigt profiles (as SYNTHE draws them).
    helium_profiles : path, optional
        File for `read_helium_profiles`: 26 multiplets of He I instead of the four of the installed tables.
    nlte : path, optional
        File for `read_departures`: spectra are out of LTE, and have beside them those in LTE.
    nlte_structure : bool
        Whether structures in LTE get the temperatures of the models in ``nlte``, if given; see
        `hotdask.library.nltestructure`.
    extend : bool
        Add structures below the lowest gravities of the atmospheres; see `hotdask.library.hydrostatic.extend_grid`.
    corrected : bool
        Whether `hotdask.library.corrections.correct` mends the list first. Without, the engine reads what SYNTHE reads,
        which a comparison of the two asks for.

    Raises
    ------
    InputError
        If a file is missing or damaged.
    SynthesisError
        If the Stark tables are not installed, or profiles are given that Voigt profiles would leave unused.

    Notes
    -----
    The structure of an atmosphere answers to Teff, log g and [Fe/H] only, and that of a model of TLUSTY not to [Fe/H]
    either: it is solar. Helium and the other abundances act through the equation of state and the opacities.
    """

    def __init__(
        self,
        atmospheres: str,
        lines: str,
        *,
        helium: str = "stark",
        helium_profiles: str | None = None,
        nlte: str | None = None,
        nlte_structure: bool = True,
        extend: bool = True,
        corrected: bool = True,
    ):
        if helium not in ("stark", "voigt"):
            raise SynthesisError(f"helium lines are 'stark' or 'voigt', not {helium!r}")
        if helium == "voigt" and helium_profiles is not None:
            raise SynthesisError("helium = 'voigt' has no use for helium_profiles; leave one of them out")
        read = read_atmospheres(atmospheres)
        self._grid: AtmosphereGrid = hydrostatic.extend_grid(read) if extend else read
        self._temperatures = None
        if nlte is not None and nlte_structure and not read.nlte:
            other = read_atmospheres(nlte)
            self._grid = correct_temperature(self._grid, other)
            self._temperatures = {"name": other.name, "sha256": other.identity, "fade": list(FADE)}
        self._list: LineList = read_lines(lines)
        self._corrections = None
        if corrected:
            self._list, applied = correct(self._list)
            self._corrections = {"name": TABLE.name, "sha256": corrections_identity(), "applied": int(applied.sum())}
        self._helium = helium
        self._profiles = None if helium_profiles is None else read_helium_profiles(helium_profiles)
        self._stark: tuple[StarkLine, ...] = stark_tables() if helium == "stark" else ()
        if self._profiles is not None:
            self._stark = (*self._profiles.lines, *(line for line in self._stark if line.ion == 2))
        self._departures = None if nlte is None else add_hot_models(read_departures(nlte))
        self.name = "hotdask-lte" if nlte is None else "hotdask-nlte"
        self._lines = _prepare(self._list, self._departures, self._stark)
        self._levels = _find_levels(self._stark, self._departures)

    def provenance(self) -> dict:
        """Version, data and their SHA-256, settings."""
        return {
            "engine": self.name,
            "version": __version__,
            "code": _code_hash(),
            "atmospheres": {"name": self._grid.name, "sha256": self._grid.identity, "models": len(self._grid.teff)},
            "atmospheres_added": hydrostatic.describe(self._grid),
            "temperatures": self._temperatures,
            "lines": {"name": self._list.name, "sha256": self._list.identity},
            "corrections": self._corrections,
            "helium": self._helium,
            "helium_profiles": self._profiles and {"name": self._profiles.name, "sha256": self._profiles.identity},
            "nlte": self._departures and {"name": self._departures.name, "sha256": self._departures.identity},
            "departures_added": self._departures and {"name": HOT_TABLE.name, "sha256": hot_identity()},
            "line_threshold": _THRESHOLD,
        }

    def assumed_widths(self) -> list[AssumedWidth]:
        """Strong lines whose damping is not measured but assumed; takes seconds."""
        replaced = replaced_lines(self._list.z, self._list.ion, self._list.wavelength, self._stark)
        return assumed_widths(self._list, self._grid, replaced)

    def covers(self, labels: np.ndarray) -> np.ndarray:
        """Whether atmospheres exist, (n,) bool."""
        labels = np.atleast_2d(labels)
        return self._grid.covers(*(labels[:, INDEX[name]] for name in ("teff", "logg", "fe_h")))

    def __call__(self, labels: np.ndarray) -> Synthesis:
        """Synthesize one star; see `hotdask.library.engines.Engine`."""
        labels = np.asarray(labels, dtype=np.float64)
        atmosphere = self._grid.interpolate(*(float(labels[INDEX[name]]) for name in ("teff", "logg", "fe_h")))
        vmic = max(float(labels[INDEX["vmic"]]), 0.0)
        try:
            state = solve_state(atmosphere.temperature, atmosphere.pressure, abundances(labels))
            departure = None
            if self._departures is not None:
                departure = self._departures.interpolate(
                    *(float(labels[INDEX[name]]) for name in ("teff", "logg")), np.log10(atmosphere.rhox)
                )
            flux, continuum = _spectrum(state, atmosphere.rhox, vmic, self._lines, self._stark, departure, self._levels)
        except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
            raise SynthesisError(f"{type(error).__name__}: {error}, for labels {labels.tolist()}") from error
        if not np.isfinite(flux).all():
            raise SynthesisError(f"the flux is not finite for labels {labels.tolist()}")
        return Synthesis(sample_wavelength(), flux[-1], continuum, flux_lte=None if departure is None else flux[0])


@dataclass(frozen=True)
class _Levels:
    """Rows of departure coefficients: of hydrogen's levels, and of both levels of helium lines with Stark tables."""

    hydrogen: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def _find_levels(stark: tuple[StarkLine, ...], departures: Departures | None) -> _Levels:
    if departures is None:
        return _Levels(*3 * [np.zeros(0, dtype=np.int64)])
    ion = np.array([line.ion for line in stark], dtype=np.int64)
    energies = (np.array([getattr(line, name) for line in stark]) for name in ("elo_ev", "eup_ev"))
    lower, upper = match_lines(departures.levels, np.full(len(ion), 2), ion, *energies)
    return _Levels(departures.levels.of(1, 0), lower, upper)


def _prepare(lines: LineList, departures: Departures | None, stark: tuple[StarkLine, ...]) -> dict[str, np.ndarray]:
    """The columns `add_lines` wants, without the lines that the Stark tables replace."""
    gamma_rad, gamma_stark, gamma_vdw = default_damping(lines, ionization_energy)
    kept = (lines.ion <= N_STAGES) & (lines.z <= len(SYMBOLS)) & (lines.z > 1)
    kept &= ~replaced_lines(lines.z, lines.ion, lines.wavelength, stark)
    coarse, _ = _coarse_grid()
    position = (np.log10(lines.wavelength) - LOG_START) / LOG_STEP * SAMPLES + (SAMPLES - 1) / 2
    # Lines beyond the ends may still reach in.
    kept &= (position > -2000) & (position < N_FINE * SAMPLES + 2000)
    lower = upper = np.zeros(len(lines.z), dtype=np.int64)
    if departures is not None:
        lower, upper = match_lines(departures.levels, lines.z, lines.ion, lines.elo, lines.elo + HC / lines.wavelength)
    columns = {
        "threshold_index": np.clip(np.searchsorted(coarse, lines.wavelength), 0, len(coarse) - 1),
        "position": position,
        "frequency": C_CGS * 1e8 / lines.wavelength,
        "strength": 10.0**lines.loggf,
        "energy": lines.elo,
        "ion": (lines.z - 1) * N_STAGES + lines.ion - 1,
        "element": lines.z - 1,
        "lower": lower,
        "upper": upper,
        "gamma_rad": gamma_rad,
        "gamma_stark": gamma_stark,
        "gamma_vdw": gamma_vdw,
    }
    return {
        name: np.ascontiguousarray(values[kept], dtype=np.int64 if values.dtype.kind == "i" else np.float64)
        for name, values in columns.items()
    }


@functools.cache
def _coarse_grid() -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Wavelengths of the continuum, and where the samples lie between them."""
    samples = sample_wavelength()
    edges = [edge * (1 + shift) for edge in _EDGES for shift in (-1e-6, 1e-6)]
    coarse = np.unique(np.concatenate([np.geomspace(samples[0] * 0.9999, samples[-1] * 1.0001, 600), edges]))
    return coarse, _positions(coarse, samples)


def _positions(nodes: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = np.clip(np.searchsorted(nodes, samples) - 1, 0, len(nodes) - 2)
    return index, (samples - nodes[index]) / (nodes[index + 1] - nodes[index])


@functools.cache
def _hydrogen_grid() -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    samples = sample_wavelength()
    low, high = float(samples[0] * 0.9999), float(samples[-1] * 1.0001)
    nodes = hydrogen.line_nodes(low, high)
    return np.array([low, high]), _positions(nodes, samples)


def _spectrum(
    state: State,
    column: np.ndarray,
    vmic: float,
    lines: dict[str, np.ndarray],
    stark: tuple[StarkLine, ...],
    departure: np.ndarray | None,
    levels: _Levels,
) -> tuple[np.ndarray, np.ndarray]:
    """Emergent flux, (1 or 2, n), and continuum, (n,), [erg/s/cm²/Å] at `sample_wavelength`.

    ``departure`` as `Departures.interpolate` has it; if there is one the second flux is out of LTE.
    """
    coarse, (index, fraction) = _coarse_grid()
    (low, high), (hydrogen_index, hydrogen_fraction) = _hydrogen_grid()
    temperature, density = state.temperature, state.density
    n_set = 1 if departure is None else 3
    absorption = opacity.absorption(coarse, state, dissolved=True) / density
    scattering = opacity.scattering(coarse, state) / density
    source = planck(coarse, temperature)
    factor, surface = _factors(coarse, absorption, scattering, source, column)

    extra_absorption = np.zeros_like(absorption)
    of_levels = None if departure is None else departure[levels.hydrogen]
    if departure is not None:
        # Emission of the continuum comes from free electrons and stays as in LTE.
        extra_absorption += (
            hydrogen.bound_free(1e8 * C_CGS / coarse, 1, state, dissolved=True, weights=of_levels - 1) / density
        )
    hydrogen_lines = hydrogen.line_absorption(low, high, state, vmic, of_levels).transpose(0, 2, 1) / density
    nodes = hydrogen.line_nodes(low, high)
    induced = np.exp(-H_ERG * C_CGS * 1e8 / (nodes[:, None] * K_ERG * temperature))
    if departure is not None:
        lte, below, above = hydrogen_lines
        hydrogen_lines[1:] = below - above * induced - lte * (1 - induced), (above - lte) * (1 - induced)
    hydrogen_lines[0] *= 1 - induced

    metal_lines = np.zeros((n_set, len(temperature), len(index)))
    masses = MASSES * ATOMIC_MASS
    doppler = np.sqrt(2 * K_ERG * temperature / masses[:, None] + (vmic * 1e5) ** 2) / C_CGS
    perturbers = (state.hydrogen + 0.42 * state.ions[1, 0]) * (temperature / 1e4) ** 0.3
    add_lines(
        metal_lines,
        np.ones((1, len(temperature))) if departure is None else departure,
        _THRESHOLD * absorption,
        **lines,
        ln_step=np.log(10) * LOG_STEP / SAMPLES,
        population=state.ions.reshape(-1, len(temperature)) / density,
        doppler=doppler,
        inverse_kt=1 / (K_EV * temperature),
        electrons=state.electron_density,
        perturbers=perturbers,
    )
    for i, line in enumerate(stark):
        pair = None if departure is None else departure[[levels.lower[i], levels.upper[i]]]
        _add_helium(metal_lines, line, state, vmic, absorption[np.searchsorted(coarse, line.wavelength)], pair)
    flux = emergent_flux(
        metal_lines,
        np.ascontiguousarray(hydrogen_lines),
        hydrogen_index,
        hydrogen_fraction,
        absorption,
        extra_absorption,
        scattering,
        source,
        factor,
        surface,
        index,
        fraction,
        column,
    )
    # The same without lines: its own nodes, in steps the levels' edges cut sharply.
    edged = opacity.absorption(coarse, state, dissolved=False) / density
    everywhere = (
        np.minimum(np.arange(len(coarse)), len(coarse) - 2),
        (np.arange(len(coarse)) == len(coarse) - 1) * 1.0,
    )
    continuum = emergent_flux(
        np.zeros((1, len(temperature), len(coarse))),
        np.zeros((1, 2, len(temperature))),
        np.zeros(len(coarse), dtype=np.int64),
        np.zeros(len(coarse)),
        edged,
        np.zeros_like(edged),
        scattering,
        source,
        factor,
        surface,
        *everywhere,
        column,
    )[0]
    continuum = continuum[index] + fraction * (continuum[index + 1] - continuum[index])
    return np.pi * flux, np.pi * continuum


def _add_helium(
    lines: np.ndarray, line: StarkLine, state: State, vmic: float, absorption: np.ndarray, departure: np.ndarray | None
) -> None:
    """Add a helium line that has a Stark table to the opacity of lines (n_set, n_layer, n_wavelength) [cm²/g].

    ``departure`` has the coefficients of its lower and of its upper level.
    """
    temperature = state.temperature
    frequency = C_CGS * 1e8 / line.wavelength
    number = state.ions[1, line.ion - 1] * line.g_lower * np.exp(-line.elo_ev / (K_EV * temperature))
    stimulated = 1 - np.exp(-H_ERG * frequency / (K_ERG * temperature))
    amplitude = 0.02654008 * line.f * number * stimulated / state.density
    if line.ion == 2:
        amplitude *= hydrogen.occupation(float(line.upper), 2, state)
    doppler = np.sqrt(2 * K_ERG * temperature / (MASSES[1] * ATOMIC_MASS) + (vmic * 1e5) ** 2)
    factors = None
    if departure is not None:
        (below, above), induced = departure, 1 - stimulated
        factors = np.stack([np.ones_like(below), (below - above * induced) / stimulated - 1, above - 1])
    # In the engine's order the wavelengths of a layer lie together.
    add_helium_line(
        lines.transpose(0, 2, 1),
        sample_wavelength(),
        amplitude,
        np.log10(state.electron_density),
        temperature,
        doppler,
        line,
        1e-4 * absorption,
        factors,
    )


def _factors(
    coarse: np.ndarray, absorption: np.ndarray, scattering: np.ndarray, source: np.ndarray, column: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Eddington factors, at every fortieth wavelength and between."""
    chosen = np.unique(np.append(np.arange(0, len(coarse), 40), len(coarse) - 1))
    factors, surfaces = [], []
    for i in chosen:
        total = absorption[i] + scattering[i]
        tau = np.concatenate([[total[0] * column[0]], np.diff(column) * (total[1:] + total[:-1]) / 2]).cumsum()
        factor, surface = eddington_factors(tau, absorption[i] / total, source[i])
        factors.append(factor)
        surfaces.append(surface)
    where = np.interp(np.arange(len(coarse)), chosen, np.arange(len(chosen)))
    index = np.minimum(where.astype(int), len(chosen) - 2)
    rest = (where - index)[:, None]
    factors = np.array(factors)
    return factors[index] + rest * (factors[index + 1] - factors[index]), np.interp(
        where, np.arange(len(chosen)), surfaces
    )
