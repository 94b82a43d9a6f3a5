"""Departure coefficients: how populations out of LTE differ from those of LTE, and which levels a line joins.

A departure coefficient b is a population over that of LTE, where LTE means Saha's and Boltzmann's distribution of the
same total of the element over the same levels, at the temperature and electron density of the model itself. So a
shifted ionization is inside the coefficients of all levels of an ion.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import constants

from hotdask.errors import InputError
from hotdask.library.arrays import read_arrays, sha256
from hotdask.library.state import H_ERG, K_EV, SAHA

TAPER = (10000.0, 12000.0)
"""Below the grid its coolest coefficients hold down to the second temperature and are one at the first [K]."""
MERGED = {(1, 0): 8, (2, 1): 15}
"""Last level of H and He II with a coefficient of its own, which those above share: the models merge some of them."""
DEEP = (1.4, 1.7)
"""T/Teff between which coefficients fade to one, at Rosseland optical depths of 4 to 10: what departs below are counts
of ions that the model atoms leave out."""
LARGEST = 7.0
"""|ln b| beyond which a coefficient is not believed; such layers are far above those where lines form."""
_EMPTY = -40.0
"""ln b below which a model gave no population (its floor stands there)."""
_EV = H_ERG / (constants.e * 1e7)
_NEAREST = 6
_ARRAYS = (
    "teff", "logg", "column_mass", "temperature", "electron_density", "log10_population", "ion_z", "ion_charge",
    "ion_first_level", "ion_n_level", "level_binding_hz", "level_g",
)  # fmt: skip
_REMEDY = "give an .npz file with the arrays that hotdask.library.departures.read_departures names"


@dataclass(frozen=True)
class Levels:
    """Levels of model atoms.

    Attributes
    ----------
    z, charge : (n_level,) int64
        Atomic number; 0 = neutral.
    energy : (n_level,) float64
        Above the ion's ground level [eV].
    limit : (n_level,) float64
        Ionization energy of the ion's ground level [eV].
    following : (n_level,) int64
        The ground level of the next ion; -1 where there is none.
    parity : (n_level,) int64
        0 even, 1 odd, -1 unknown.
    multiplicity, momentum : (n_level,) int64
        2S + 1 and L of the term; -1 unknown.
    """

    z: np.ndarray
    charge: np.ndarray
    energy: np.ndarray
    limit: np.ndarray
    following: np.ndarray
    parity: np.ndarray
    multiplicity: np.ndarray
    momentum: np.ndarray

    def of(self, z: int, charge: int) -> np.ndarray:
        """Indices of one ion's levels, in the order of the model atom."""
        return np.flatnonzero((self.z == z) & (self.charge == charge))


@dataclass(frozen=True)
class Departures:
    """Departure coefficients of a grid of models.

    Attributes
    ----------
    name, identity : str
        File name and SHA-256.
    teff, logg : (n_model,) float64
        [K], log10 [cm/s²].
    log_column : (n_model, n_layer) float64
        log10 of the column mass [g/cm²], increasing.
    ln_b : (n_model, n_layer, n_level) float32
        Natural logarithm of the coefficients.
    levels : Levels
    """

    name: str
    identity: str
    teff: np.ndarray
    logg: np.ndarray
    log_column: np.ndarray
    ln_b: np.ndarray
    levels: Levels

    @functools.cached_property
    def _nodes(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Temperatures, and at each of them the models in order of log g."""
        teff = np.unique(self.teff)
        return teff, [rows[np.argsort(self.logg[rows])] for rows in (np.flatnonzero(self.teff == t) for t in teff)]

    def interpolate(self, teff: float, logg: float, log_column: np.ndarray) -> np.ndarray:
        """Coefficients in the layers of an atmosphere.

        ln b is linear in Teff, log g and log column mass. Beyond the grid its nearest models count, above and below
        their layers those at the ends; see `TAPER` for low temperatures.

        Parameters
        ----------
        teff, logg : float
            [K], log10 [cm/s²].
        log_column : (n_layer,) float64
            log10 of the column mass [g/cm²].

        Returns
        -------
        (n_level + 1, n_layer) float64
            The last row is one: that of a level without a coefficient.
        """
        nodes, models = self._nodes
        total = np.zeros((len(log_column), self.ln_b.shape[2]))
        for t, share_t in _bracket(nodes, teff):
            rows = models[t]
            for g, share_g in _bracket(self.logg[rows], logg):
                total += share_t * share_g * self._on_layers(rows[g], log_column)
        low, high = TAPER
        # Beside a grid that goes on below the taper it does nothing.
        total *= np.clip((teff - low) / (high - low), 0.0, 1.0) if nodes[0] > low else 1.0
        return np.concatenate([np.exp(total.T), np.ones((1, len(log_column)))])

    def _on_layers(self, model: int, log_column: np.ndarray) -> np.ndarray:
        x = self.log_column[model]
        i = np.clip(np.searchsorted(x, log_column) - 1, 0, len(x) - 2)
        u = np.clip((log_column - x[i]) / (x[i + 1] - x[i]), 0.0, 1.0)[:, None]
        table = self.ln_b[model]
        return table[i] + u * (table[i + 1] - table[i])


def _bracket(nodes: np.ndarray, value: float) -> list[tuple[int, float]]:
    """Nodes around a value and their shares; the nearest one beyond the ends."""
    x = float(np.interp(value, nodes, np.arange(len(nodes))))
    i = min(int(x), len(nodes) - 1)
    return [(i, 1 + i - x), (i + 1, x - i)] if x > i else [(i, 1.0)]


def read_departures(path: str | Path) -> Departures:
    """Departure coefficients from the populations of a grid of NLTE models.

    Parameters
    ----------
    path : path
        An .npz file with the arrays ``teff`` [K], ``logg`` (n_model,); ``column_mass`` [g/cm²], ``temperature`` [K],
        ``electron_density`` [1/cm³] (n_model, n_layer); ``log10_population`` [1/cm³] (n_model, n_layer, n_level);
        for each ion, in order of element and charge, ``ion_z``, ``ion_charge`` (0 = neutral), ``ion_first_level``,
        ``ion_n_level`` (n_ion,), the last ion of an element being a single level; ``level_binding_hz`` below the
        ion's limit [Hz], ``level_g`` and ``level_label`` (n_level,), with TLUSTY's names of terms: ``C II 2Po 1``.

    Raises
    ------
    InputError
        If the file is missing, damaged, or lacks an array.

    References
    ----------
    Lanz & Hubeny 2007, ApJS 169, 83 (BSTAR2006, of which such a file can be made). Their high levels of hydrogen and
    He II are thinned by occupation probabilities, which the engine applies by itself, so no level above the third may
    depart further than that one.
    """
    path = Path(path)
    data = read_arrays(path, _ARRAYS, remedy=_REMEDY)
    with np.load(path, allow_pickle=False) as file:
        labels = file["level_label"] if "level_label" in file else np.array([])
    if labels.shape != data["level_g"].shape or labels.dtype.kind not in "US":
        raise InputError(f"{path}: level_label should hold a name for each level; {_REMEDY}")
    for name in ("ion_z", "ion_charge", "ion_first_level", "ion_n_level"):
        data[name] = data[name].astype(np.int64)
    levels, order = _levels(data, [str(label) for label in labels])
    temperature, electrons = data["temperature"], data["electron_density"]
    population = data["log10_population"].astype(np.float64) * np.log(10)
    ln_b = np.zeros(population.shape, dtype=np.float32)
    for z in np.unique(data["ion_z"]):
        ions = np.flatnonzero(data["ion_z"] == z)
        index = np.concatenate([order[i] for i in ions])
        lte = _lte(data, ions, temperature, electrons)
        found = population[:, :, index]
        # The same total of the element on both sides.
        value = found - lte - np.log(np.exp(found).sum(axis=2, keepdims=True))
        value += np.log(np.exp(lte - lte.max(axis=2, keepdims=True)).sum(axis=2, keepdims=True))
        value += lte.max(axis=2, keepdims=True)
        ln_b[:, :, index] = np.where(value > _EMPTY, np.clip(value, -LARGEST, LARGEST), 0.0)
        for ion, charge in zip(ions, data["ion_charge"][ions], strict=True):
            last = MERGED.get((int(z), int(charge)))
            if last is not None:
                rows = order[ion]
                limit = np.abs(ln_b[:, :, rows[2], None])
                ln_b[:, :, rows[3:]] = np.clip(ln_b[:, :, rows[3:]], -limit, limit)
                ln_b[:, :, rows[last:]] = ln_b[:, :, rows[last - 1], None]
    hot, deep = DEEP
    ln_b *= np.clip((deep - temperature / data["teff"][:, None]) / (deep - hot), 0, 1)[:, :, None]
    return Departures(
        name=path.name,
        identity=sha256(path),
        teff=data["teff"],
        logg=data["logg"],
        log_column=np.log10(data["column_mass"]),
        ln_b=ln_b,
        levels=levels,
    )


def _levels(data: dict[str, np.ndarray], labels: list[str]) -> tuple[Levels, list[np.ndarray]]:
    n = len(data["level_g"])
    order = [
        np.arange(first, first + count)
        for first, count in zip(data["ion_first_level"], data["ion_n_level"], strict=True)
    ]
    z, charge, following = (np.full(n, -1, dtype=np.int64) for _ in range(3))
    energy, limit = np.zeros(n), np.zeros(n)
    binding = data["level_binding_hz"] * _EV
    for i, rows in enumerate(order):
        z[rows], charge[rows] = data["ion_z"][i], data["ion_charge"][i]
        energy[rows], limit[rows] = binding[rows[0]] - binding[rows], binding[rows[0]]
        if i + 1 < len(order) and data["ion_z"][i + 1] == data["ion_z"][i]:
            following[rows] = order[i + 1][0]
    terms = np.array([_term(label) for label in labels], dtype=np.int64)
    return Levels(z, charge, energy, limit, following, *terms.T), order


def _term(label: str) -> tuple[int, int, int]:
    """Parity, multiplicity and L of a level by TLUSTY's label; -1 where it does not say.

    Examples
    --------
    >>> _term("C II 2Po 1"), _term("O II+4_e 2"), _term("odd    3"), _term("4 trip F")
    ((1, 2, 1), (0, 4, -1), (1, -1, -1), (1, 3, 3))
    """
    if found := re.search(r"(\d) (sing|trip) ([SPDF])", label):
        momentum = "SPDF".index(found[3])
        # In helium one electron stays in 1s.
        return momentum % 2, 1 if found[2] == "sing" else 3, momentum
    if found := re.match(r"(even|odd)\b", label):
        return int(found[1] == "odd"), -1, -1
    if found := re.search(r"(\d)([SPDFGHI_])([eo_])\s*\d*$", label):
        parity = {"e": 0, "o": 1, "_": -1}[found[3]]
        return parity, int(found[1]), "SPDFGHI".find(found[2])
    return -1, -1, -1


def _lte(data: dict[str, np.ndarray], ions: np.ndarray, temperature: np.ndarray, electrons: np.ndarray) -> np.ndarray:
    """ln of an element's populations in LTE, up to a common term, (n_model, n_layer, n_level of the element)."""
    kt = K_EV * temperature[..., None]
    free = np.log(electrons / (SAHA * temperature**1.5))[..., None]
    out, base = [], np.zeros_like(free)
    weight_above = 1.0
    for i in ions[::-1]:
        rows = slice(data["ion_first_level"][i], data["ion_first_level"][i] + data["ion_n_level"][i])
        weight, binding = data["level_g"][rows], data["level_binding_hz"][rows] * _EV
        if not out:
            values = np.zeros((*temperature.shape, len(weight)))
        else:
            values = base + free + np.log(weight / weight_above) + binding / kt
        out.append(values)
        base, weight_above = values[..., :1], weight[0]
    return np.concatenate(out[::-1], axis=2)


def match_lines(
    levels: Levels, z: np.ndarray, ion: np.ndarray, elo: np.ndarray, eup: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper level of each line.

    Of all pairs of levels the one whose energies fit best, given that parity changes, that the multiplicity stays and
    that L changes by one at most, as far as terms are known. An upper level above the ion's limit has the coefficient
    of the next ion's ground level. Where a model atom lumps levels by energy and parity (iron), both have that of the
    lower one: absorption departs, and the source function does not.

    Parameters
    ----------
    levels : Levels
    z, ion : (n_line,) int64
        Atomic number; 1 = neutral.
    elo, eup : (n_line,) float64
        Energies above the ground level [eV].

    Returns
    -------
    lower, upper : (n_line,) int64
        Indices of levels; ``len(levels.z)``, which is the row of ones of `Departures.interpolate`, where the ion is
        not among them.
    """
    lower = np.full(len(z), len(levels.z), dtype=np.int64)
    upper = lower.copy()
    for key in np.unique(np.stack([z, ion], axis=1), axis=0):
        rows = levels.of(int(key[0]), int(key[1]) - 1)
        # A single level stands for an ion that is only counted.
        if len(rows) < 2:
            continue
        which = np.flatnonzero((z == key[0]) & (ion == key[1]))
        lower[which], upper[which] = _match_ion(levels, rows, elo[which], eup[which])
        bare = eup[which] > levels.limit[rows[0]]
        upper[which[bare]] = levels.following[rows[0]]
    return lower, upper


def _match_ion(levels: Levels, rows: np.ndarray, elo: np.ndarray, eup: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    energy = levels.energy[rows]
    forbidden = _forbidden(levels, rows)
    near = min(_NEAREST, len(rows))
    down = np.argsort(np.abs(elo[:, None] - energy), axis=1)[:, :near]
    up = np.argsort(np.abs(eup[:, None] - energy), axis=1)[:, :near]
    cost = (elo[:, None] - energy[down])[:, :, None] ** 2 + (eup[:, None] - energy[up])[:, None, :] ** 2
    cost += forbidden[down[:, :, None], up[:, None, :]]
    # A level cannot be both.
    cost[(down[:, :, None] == up[:, None, :])] += 100.0
    best = cost.reshape(len(elo), -1).argmin(axis=1)
    line = np.arange(len(elo))
    lower, upper = rows[down[line, best // near]], rows[up[line, best % near]]
    # Levels lumped by energy and parity tell how the ion departs, but not which level of a line departs further.
    lumped = (levels.parity[lower] >= 0) & (levels.multiplicity[lower] < 0)
    return lower, np.where(lumped, lower, upper)


def _forbidden(levels: Levels, rows: np.ndarray) -> np.ndarray:
    """What a transition that selection rules forbid costs, in eV² beside the misfit of energies."""

    def differ(values: np.ndarray, by: int) -> np.ndarray:
        known = (values >= 0)[:, None] & (values >= 0)[None, :]
        return known & (np.abs(values[:, None] - values[None, :]) > by)

    parity = levels.parity[rows]
    known = (parity >= 0)[:, None] & (parity >= 0)[None, :]
    same = known & (parity[:, None] == parity[None, :])
    # Multiplicities and L are kept only as far as LS coupling holds.
    return 1.0 * same + 0.01 * differ(levels.multiplicity[rows], 0) + 0.01 * differ(levels.momentum[rows], 1)
