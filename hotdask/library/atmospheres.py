"""Model atmospheres: a grid of ATLAS9 or TLUSTY structures in memory, and what lies between its models.

The structures lie on one scale of Rosseland optical depth, so that models are interpolated layer by layer: linearly in
log Teff, log g and [M/H], of the logarithms of all quantities.

The grid is irregular. At each [M/H] its models form columns of one Teff; a value is interpolated along log g within two
neighboring columns, then between them, then between two [M/H]. Where one column starts at a higher log g than its
neighbor, the triangle between belongs to the grid too. So the interpolation is exact at the models and continuous, and
a [M/H] covers what lies between the polygons through the lowest and the highest models of its columns.

TLUSTY's models are out of LTE and of solar composition, and are used at every [M/H]. Their depth is that of the flux
mean of the opacity, which follows from hydrostatic equilibrium and equals the Rosseland mean at depth.
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import constants
from scipy.interpolate import PchipInterpolator

from hotdask.errors import InputError, SynthesisError
from hotdask.library.arrays import has_arrays, read_arrays, sha256
from hotdask.library.state import C_CGS, K_ERG

_ROUNDING = 1e-6
"""How far outside the grid, in log Teff, log g and [M/H], a label may lie through rounding."""
_LABELS = ("teff", "logg", "mh", "log_tau_rosseland")
_LAYERS = ("log_rhox", "log_t_over_teff", "log_p", "log_xne", "log_kappa_rosseland")
_NLTE = ("teff", "logg", "column_mass", "temperature", "electron_density", "density", "log10_population")
TURBULENCE = 2.0
"""Microturbulence of BSTAR2006 [km/s], whose pressure is part of the models' hydrostatic equilibrium."""
SIGMA = constants.Stefan_Boltzmann * 1e3
"""Stefan-Boltzmann constant [erg/s/cm²/K⁴]."""
_REMEDY = (
    "give an .npz grid (see hotdask.library.atmospheres.read_atmospheres) or ATLAS9 models such as ap00k2odfnew.dat, "
    "published at http://kurucz.harvard.edu/grids.html and https://wwwuser.oats.inaf.it/fiorella.castelli/grids.html"
)

_TEFF = re.compile(r"\s*TEFF\s+(\d+\.?\d*)\s+GRAVITY\s+(-?\d*\.?\d+)")
_SCALE = re.compile(r"ABUNDANCE SCALE\s+(\d*\.?\d+)")
_DECK = re.compile(r"\s*READ DECK6\s+(\d+)\s+RHOX,\s*T,\s*P,\s*XNE,\s*ABROSS\b")
# Columns are fixed, so that numbers may touch; an exponent has two digits, or three and no letter.
_NUMBER = r"\s*((?>[+-]?(?:\d+\.\d*|\.\d+)(?:[EeDd][+-]\d\d|[+-]\d{3})?))(?![\w.])"
_ROW = re.compile(5 * _NUMBER)
_EXPONENT = re.compile(r"([+-]?\d*\.\d*?)(?:[EeDd]?([+-]\d+))?")


@dataclass(frozen=True)
class Atmosphere:
    """Structure of one star's atmosphere, from the top to the bottom.

    Attributes
    ----------
    log_tau : (n_layer,) float64
        log10 of the Rosseland optical depth.
    rhox, temperature, pressure, electron_density, kappa_rosseland : (n_layer,) float64
        Column mass [g/cm²], [K], gas pressure [dyn/cm²], [1/cm³], [cm²/g].
    """

    log_tau: np.ndarray
    rhox: np.ndarray
    temperature: np.ndarray
    pressure: np.ndarray
    electron_density: np.ndarray
    kappa_rosseland: np.ndarray


def _bracket(nodes: np.ndarray, value: float) -> tuple[int, int, float]:
    """Nodes on both sides of a value, and the share of the upper one; values outside are moved to the end."""
    if len(nodes) == 1 or value <= nodes[0]:
        return 0, 0, 0.0
    if value >= nodes[-1]:
        return len(nodes) - 1, len(nodes) - 1, 0.0
    upper = int(np.searchsorted(nodes, value, side="right"))
    return upper - 1, upper, float((value - nodes[upper - 1]) / (nodes[upper] - nodes[upper - 1]))


@dataclass(frozen=True)
class _Plane:
    """Models of one [M/H]: columns of one Teff each, with ascending log g and the rows of its models in the grid."""

    log_teff: np.ndarray
    logg: tuple[np.ndarray, ...]
    rows: tuple[np.ndarray, ...]

    @functools.cached_property
    def lowest(self) -> np.ndarray:
        return np.array([logg[0] for logg in self.logg])

    @functools.cached_property
    def highest(self) -> np.ndarray:
        return np.array([logg[-1] for logg in self.logg])

    def covers(self, log_teff: np.ndarray, logg: np.ndarray) -> np.ndarray:
        return (
            (log_teff >= self.log_teff[0] - _ROUNDING)
            & (log_teff <= self.log_teff[-1] + _ROUNDING)
            & (logg >= np.interp(log_teff, self.log_teff, self.lowest) - _ROUNDING)
            & (logg <= np.interp(log_teff, self.log_teff, self.highest) + _ROUNDING)
        )

    def weights(self, log_teff: float, logg: float) -> dict[int, float]:
        """Rows of the models around a covered point, with their weights."""
        cool, hot, share = _bracket(self.log_teff, log_teff)
        low, high = max(self.lowest[cool], self.lowest[hot]), min(self.highest[cool], self.highest[hot])
        at = {cool: logg, hot: logg}
        for end, outermost, beyond in ((low, self.lowest, logg < low), (high, self.highest, logg > high)):
            if beyond and cool != hot:
                # The triangle fans out from the outermost model of the shorter column.
                apex, base, reach = (hot, cool, 1 - share) if outermost[hot] == end else (cool, hot, share)
                at = {apex: end, base: end + (logg - end) / reach if reach else end}
        out: dict[int, float] = {}
        for column, weight in ((cool, 1 - share), (hot, share)):
            below, above, part = _bracket(self.logg[column], at[column])
            for node, fraction in ((below, 1 - part), (above, part)):
                if weight * fraction:
                    row = int(self.rows[column][node])
                    out[row] = out.get(row, 0.0) + weight * fraction
        return out


@dataclass(frozen=True)
class AtmosphereGrid:
    """Model atmospheres on a common Rosseland scale.

    Attributes
    ----------
    name : str
        Name of the file or folder.
    teff, logg, mh : (n,) float64
        [K], [cgs], [M/H] of each model.
    log_tau : (n_layer,) float64
        log10 of the Rosseland optical depth, ascending.
    log_rhox, log_temperature, log_pressure, log_electron_density, log_kappa_rosseland : (n, n_layer) float64
        log10 of the quantities of `Atmosphere`.
    identity : str
        SHA-256 of the data, hexadecimal.
    nlte : bool
        Models out of LTE: depths and opacities are flux means, and structures of [M/H] = 0 are used at every [M/H].
    added : int
        How many models, the last ones, were not read but added by `hotdask.library.hydrostatic.extend_grid`.
    """

    name: str
    teff: np.ndarray
    logg: np.ndarray
    mh: np.ndarray
    log_tau: np.ndarray
    log_rhox: np.ndarray
    log_temperature: np.ndarray
    log_pressure: np.ndarray
    log_electron_density: np.ndarray
    log_kappa_rosseland: np.ndarray
    identity: str
    nlte: bool = False
    added: int = 0

    @functools.cached_property
    def _metallicities(self) -> np.ndarray:
        return np.unique(self.mh)

    @functools.cached_property
    def _planes(self) -> tuple[_Plane, ...]:
        planes = []
        for mh in self._metallicities:
            here = np.flatnonzero(self.mh == mh)
            teffs = np.unique(self.teff[here])
            columns = [here[self.teff[here] == teff] for teff in teffs]
            columns = [rows[np.argsort(self.logg[rows])] for rows in columns]
            planes.append(_Plane(np.log10(teffs), tuple(self.logg[rows] for rows in columns), tuple(columns)))
        return tuple(planes)

    @functools.cached_property
    def _structure(self) -> np.ndarray:
        """(n, 5, n_layer), one block a model: what `interpolate` sums."""
        return np.stack(
            [
                self.log_rhox,
                self.log_temperature,
                self.log_pressure,
                self.log_electron_density,
                self.log_kappa_rosseland,
            ],
            axis=1,
        )

    def covers(self, teff, logg, mh) -> np.ndarray:
        """Whether atmospheres exist for labels.

        Parameters
        ----------
        teff, logg, mh : (...) array_like
            [K], [cgs], [M/H]; broadcast against each other.

        Returns
        -------
        (...) bool
        """
        teff, logg, mh = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (teff, logg, mh)))
        if self.nlte:
            mh = np.where(np.isfinite(mh), 0.0, mh)
        log_teff = np.log10(np.maximum(teff, 1.0))
        inside = np.stack([plane.covers(log_teff, logg) for plane in self._planes])
        nodes = self._metallicities
        # The planes on both sides; a [M/H] that is a plane's own needs that plane alone.
        above = np.clip(np.searchsorted(nodes, mh - _ROUNDING), 0, len(nodes) - 1)
        below = np.clip(np.searchsorted(nodes, mh + _ROUNDING, side="right") - 1, 0, len(nodes) - 1)
        within = (mh >= nodes[0] - _ROUNDING) & (mh <= nodes[-1] + _ROUNDING)
        return within & np.take_along_axis(inside, below[None], 0)[0] & np.take_along_axis(inside, above[None], 0)[0]

    def interpolate(self, teff: float, logg: float, mh: float) -> Atmosphere:
        """Structure at labels.

        Parameters
        ----------
        teff, logg, mh : float
            [K], [cgs], [M/H].

        Raises
        ------
        SynthesisError
            Outside the grid.
        """
        if not self.covers(teff, logg, mh):
            raise SynthesisError(self._outside(teff, logg, mh))
        mh = 0.0 if self.nlte else mh
        nodes = self._metallicities
        nearest = int(np.argmin(np.abs(nodes - mh)))
        below, above, share = _bracket(nodes, nodes[nearest] if abs(nodes[nearest] - mh) <= _ROUNDING else mh)
        log_teff = float(np.log10(teff))
        rows, weights = [], []
        for plane, part in ((below, 1 - share), (above, share)):
            if part:
                for row, weight in self._planes[plane].weights(log_teff, float(logg)).items():
                    rows.append(row)
                    weights.append(part * weight)
        quantities = 10 ** np.tensordot(weights, self._structure[rows], axes=1)
        return Atmosphere(self.log_tau, *quantities)

    def _outside(self, teff: float, logg: float, mh: float) -> str:
        scaled = ((np.log10(np.maximum(teff, 1.0) / self.teff)) / 0.02) ** 2 + ((self.logg - logg) / 0.5) ** 2
        i = int(np.argmin(scaled + ((self.mh - mh) / 0.5) ** 2))
        return (
            f"{self.name} has no model atmosphere at Teff {teff:.0f} K, log g {logg:.2f}, [M/H] {mh:+.2f}; the nearest "
            f"model has {self.teff[i]:.0f} K, {self.logg[i]:.2f}, {self.mh[i]:+.2f}"
        )


def _grid(
    name: str, identity: str, models: dict[str, np.ndarray], log_tau: np.ndarray, *, nlte: bool = False
) -> AtmosphereGrid:
    """Grid of checked models."""
    labels = np.column_stack([models["teff"], models["logg"], models["mh"]])
    unique, count = np.unique(labels, axis=0, return_counts=True)
    if len(unique) < len(labels):
        teff, logg, mh = unique[np.argmax(count > 1)]
        raise InputError(
            f"{name}: {count.max()} models at Teff {teff:.0f} K, log g {logg:.2f}, [M/H] {mh:+.2f}; keep one of them; "
            "a grid has one mixture and one microturbulence"
        )
    return AtmosphereGrid(name=name, identity=identity, log_tau=log_tau, nlte=nlte, **models)


def _read_npz(path: Path) -> AtmosphereGrid:
    arrays = read_arrays(path, (*_LABELS, *_LAYERS), remedy=_REMEDY)
    n, n_layer = len(arrays["teff"]), len(arrays["log_tau_rosseland"])
    shapes = {"teff": (n,), "logg": (n,), "mh": (n,), "log_tau_rosseland": (n_layer,)}
    for array, values in arrays.items():
        expected = shapes.get(array, (n, n_layer))
        if values.shape != expected:
            raise InputError(f"{path}: {array} has the shape {values.shape}, not {expected}; {_REMEDY}")
    if not n or n_layer < 2 or np.any(np.diff(arrays["log_tau_rosseland"]) <= 0) or np.any(arrays["teff"] <= 0):
        raise InputError(f"{path}: no models, Teff not positive, or log_tau_rosseland does not ascend; {_REMEDY}")
    models = {
        # Single precision turns log g 3.3 into 3.29999995.
        **{label: arrays[label].round(4) for label in ("teff", "logg", "mh")},
        "log_rhox": arrays["log_rhox"],
        "log_temperature": arrays["log_t_over_teff"] + np.log10(arrays["teff"])[:, None],
        "log_pressure": arrays["log_p"],
        "log_electron_density": arrays["log_xne"],
        "log_kappa_rosseland": arrays["log_kappa_rosseland"],
    }
    return _grid(path.name, sha256(path), models, arrays["log_tau_rosseland"])


@dataclass(frozen=True)
class _Deck:
    """One model of a deck; columns are column mass, temperature, pressure, electron density, Rosseland opacity."""

    teff: float
    logg: float
    mh: float
    columns: np.ndarray


def _metallicity(scale: float) -> float:
    """[M/H] of an abundance scale, which decks round to five decimals: 0.00032 is -3.5."""
    mh = float(np.log10(scale))
    tenth = round(mh, 1)
    return tenth if abs(10**tenth - scale) < 6e-6 else round(mh, 4)


def _read_decks(path: Path) -> Iterator[_Deck]:
    """Models of one file, in its order."""

    def fail(number: int, why: str) -> InputError:
        return InputError(f"{path}, line {number}: {why}; {_REMEDY}")

    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a deck of models ({error}); {_REMEDY}") from error
    header: dict[str, float] = {}
    i = 0
    while i < len(lines):
        line = lines[i]
        i += 1
        if line.lstrip().startswith("TEFF"):
            found = _TEFF.match(line)
            if not found or float(found[1]) <= 0:
                raise fail(i, f"{line.strip()!r} gives no effective temperature and gravity")
            header = {"teff": float(found[1]), "logg": float(found[2])}
        elif "ABUNDANCE SCALE" in line:
            found = _SCALE.search(line)
            if not found or float(found[1]) <= 0:
                raise fail(i, f"{line.strip()!r} gives no abundance scale")
            header["mh"] = _metallicity(float(found[1]))
        elif line.lstrip().startswith("READ DECK6"):
            found = _DECK.match(line)
            if not found or int(found[1]) < 2:
                raise fail(i, f"{line.strip()!r} does not announce layers of RHOX,T,P,XNE,ABROSS")
            if header.keys() != {"teff", "logg", "mh"}:
                raise fail(i, "layers without TEFF, GRAVITY and ABUNDANCE SCALE before them")
            rows = []
            for number in range(i, i + int(found[1])):
                row = _ROW.match(lines[number]) if number < len(lines) else None
                if not row:
                    text = repr(lines[number].strip()) if number < len(lines) else "the end of the file"
                    raise fail(
                        number + 1,
                        f"{text} where layer {len(rows) + 1} of {found[1]} should be, of the model at "
                        f"Teff {header['teff']:.0f} K, log g {header['logg']:.2f}",
                    )
                rows.append([_number(word) for word in row.groups()])
                if min(rows[-1]) <= 0 or not np.isfinite(rows[-1]).all() or (rows[1:] and rows[-1][0] <= rows[-2][0]):
                    raise fail(number + 1, "a layer's numbers must be positive, and its column mass grow downward")
            i += len(rows)
            yield _Deck(**header, columns=np.array(rows).T)
            header = {}
    if header:
        raise fail(len(lines), "the file ends within a model")


def _number(word: str) -> float:
    """A number as Fortran writes it: 1.5E-03, 1.5D-03, 1.5-103."""
    mantissa, exponent = _EXPONENT.fullmatch(word).groups()
    return float(f"{mantissa}e{exponent or 0}")


def rosseland_depth(rhox: np.ndarray, kappa_rosseland: np.ndarray) -> np.ndarray:
    """Rosseland optical depth of layers.

    Between layers opacity follows a power of column mass; above the first it is constant, as in ATLAS9.

    Parameters
    ----------
    rhox, kappa_rosseland : (n_layer,) float64
        Column mass [g/cm²], ascending, and opacity [cm²/g].

    Examples
    --------
    >>> rosseland_depth(np.array([0.1, 1.0, 10.0]), np.array([0.2, 2.0, 20.0])).round(4).tolist()  # 0.01 + x²
    [0.02, 1.01, 100.01]
    """
    step = np.diff(np.log(rhox))
    # Per unit of ln(column mass), the integrand is a power law too; its slope is 0 where opacity falls as 1/mass.
    integrand = kappa_rosseland * rhox
    slope = np.diff(np.log(integrand))
    mean = np.where(np.abs(slope) > 1e-9, np.expm1(slope) / np.where(slope == 0, 1.0, slope), 1.0) * integrand[:-1]
    return integrand[0] + np.concatenate([[0.0], np.cumsum(mean * step)])


def flux_mean_depth(teff: float, logg: float, column: np.ndarray, pressure: np.ndarray) -> np.ndarray:
    """Optical depth of the flux mean of the opacity, from a model in hydrostatic and radiative equilibrium.

    Radiation carries the weight that gas does not: dP/dm = g - κ_F σTeff⁴/c, so τ_F = (g m - P) c/σTeff⁴.

    Parameters
    ----------
    teff, logg : float
        [K], log10 [cm/s²].
    column, pressure : (n_layer,) float64
        Column mass [g/cm²], ascending; pressure of gas and turbulence [dyn/cm²].

    Returns
    -------
    (n_layer,) float64

    References
    ----------
    Mihalas 1978, Stellar Atmospheres, ch. 7.

    Examples
    --------
    >>> mass = np.array([0.001, 1.0, 100.0])
    >>> pressure = mass * (1e4 - 2.0 * SIGMA * 3e4**4 / C_CGS)  # an opacity of 2 cm²/g
    >>> flux_mean_depth(3e4, 4.0, mass, pressure).round(4).tolist()
    [0.002, 2.0, 200.0]
    """
    return (10**logg * column - pressure) * C_CGS / (SIGMA * teff**4)


def _read_nlte(path: Path) -> AtmosphereGrid:
    arrays = read_arrays(path, _NLTE, remedy=_REMEDY)
    shape = arrays["column_mass"].shape
    for name, values in arrays.items():
        expected = shape[:1] if name in ("teff", "logg") else shape
        # The levels of a population come last.
        if len(shape) != 2 or values.shape[: len(expected)] != expected:
            raise InputError(f"{path}: {name} has the shape {values.shape}, not {expected}; {_REMEDY}")
    if not len(arrays["teff"]) or any(np.any(arrays[name] <= 0) for name in ("teff", *_NLTE[2:6])):
        raise InputError(f"{path}: no models, or a value that is not positive; {_REMEDY}")
    if np.any(np.diff(arrays["column_mass"]) <= 0):
        raise InputError(f"{path}: column_mass does not ascend; {_REMEDY}")
    nuclei = (10 ** arrays["log10_population"]).sum(axis=2)
    pressure = (arrays["electron_density"] + nuclei) * K_ERG * arrays["temperature"]
    turbulence = arrays["density"] * (TURBULENCE * 1e5) ** 2 / 2
    depths, columns = [], []
    for i, (teff, logg, mass) in enumerate(zip(arrays["teff"], arrays["logg"], arrays["column_mass"], strict=True)):
        depth = flux_mean_depth(teff, logg, mass, pressure[i] + turbulence[i])
        # The lowest layers of some models are not in balance.
        n = int(np.argmax(np.append(np.diff(depth) <= 0, True)))
        if depth[0] <= 0 or n < 2:
            raise InputError(
                f"{path}: the model at Teff {teff:.0f} K, log g {logg:.2f} is not in hydrostatic equilibrium; {_REMEDY}"
            )
        depth, mass = depth[:n], mass[:n]
        opacity = np.gradient(np.log(depth), np.log(mass)) * depth / mass
        layers = arrays["temperature"][i, :n], pressure[i, :n], arrays["electron_density"][i, :n]
        depths.append(np.log10(depth))
        columns.append(np.stack([mass, *layers, opacity]))
    log_tau, layers = _resample(path, depths, columns)
    models = {"teff": arrays["teff"], "logg": arrays["logg"], "mh": np.zeros(shape[0])}
    return _grid(path.name, sha256(path), models | layers, log_tau, nlte=True)


def _resample(path: Path, depths: list[np.ndarray], columns: list[np.ndarray]) -> tuple[np.ndarray, dict]:
    """One scale of log depth that all models span, and the log10 of their (5, n_layer) quantities on it."""
    top, bottom = max(depth[0] for depth in depths), min(depth[-1] for depth in depths)
    if top >= bottom:
        raise InputError(f"{path}: the models have no range of optical depth in common; {_REMEDY}")
    log_tau = np.linspace(top, bottom, max(len(depth) for depth in depths))
    layers = np.stack(
        [
            PchipInterpolator(depth, np.log10(column), axis=1)(log_tau)
            for column, depth in zip(columns, depths, strict=True)
        ]
    )
    names = ("log_rhox", "log_temperature", "log_pressure", "log_electron_density", "log_kappa_rosseland")
    return log_tau, dict(zip(names, layers.swapaxes(0, 1), strict=True))


def _read_text(path: Path, files: list[Path]) -> AtmosphereGrid:
    decks = [deck for file in files for deck in _read_decks(file)]
    if not decks:
        raise InputError(f"{path}: no model atmosphere in it; {_REMEDY}")
    depths = [np.log10(rosseland_depth(deck.columns[0], deck.columns[4])) for deck in decks]
    log_tau, layers = _resample(path, depths, [deck.columns for deck in decks])
    models = {name: np.array([getattr(deck, name) for deck in decks]) for name in ("teff", "logg", "mh")}
    # Of a folder the files' own sums, so that neither its name nor theirs matter.
    sums = sorted(sha256(file) for file in files)
    identity = sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
    return _grid(path.name, identity, models | layers, log_tau)


def read_atmospheres(path: str | Path) -> AtmosphereGrid:
    """Read a grid of model atmospheres.

    Parameters
    ----------
    path : path
        An ``.npz`` file with ``teff``, ``logg``, ``mh`` (n,), ``log_tau_rosseland`` (n_layer,), and (n, n_layer)
        log10 of the structure: ``log_rhox``, ``log_t_over_teff``, ``log_p``, ``log_xne``, ``log_kappa_rosseland``; a
        file of ATLAS9 models as Kurucz and Castelli publish them (``ap00k2odfnew.dat``: text, one deck after another);
        a folder of such files, ``ap*.dat`` and ``am*.dat``; or the populations of TLUSTY's models that
        `hotdask.library.departures.read_departures` reads, with ``density`` [g/cm³] (n_model, n_layer) beside them,
        whose structures are then used: of solar composition, at every [M/H].

        Decks and TLUSTY's models are brought to one scale of depth that all of them span.

    Raises
    ------
    InputError
        If a file is missing or damaged, two models have the same labels, or there is none.

    References
    ----------
    Castelli & Kurucz 2003, IAU Symp. 210, A20; Lanz & Hubeny 2007, ApJS 169, 83 (BSTAR2006).
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for pattern in ("ap*.dat", "am*.dat") for file in path.glob(pattern))
        if not files:
            raise InputError(f"{path}: no ap*.dat or am*.dat in this folder; {_REMEDY}")
        return _read_text(path, files)
    if path.suffix == ".npz":
        return _read_nlte(path) if has_arrays(path, _NLTE) else _read_npz(path)
    return _read_text(path, [path])
