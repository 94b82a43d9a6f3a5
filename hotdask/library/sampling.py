"""Where in label space a library is made: space-filling labels, cut to what an engine covers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import qmc

from hotdask.errors import SettingsError
from hotdask.labels import INDEX, LABEL_NAMES, N_LABELS, RELATIVE
from hotdask.library.isochrones import Isochrones, read_isochrones

RANGES: dict[str, tuple[float, float]] = {
    "teff": (7000, 60000),
    "logg": (0, 5),
    "fe_h": (-3, 0.5),
    "vmic": (0, 15),
    "n_he": (0, 0.25),
    "c_fe": (-2, 3),
    "n_fe": (-2, 3),
    "o_fe": (-2, 3),
    "si_fe": (-1, 2),
    "s_fe": (-1, 2),
}
"""Default ranges, Table 1 of Xiang et al. 2022; but Teff from 7000 K, so that fits near 7500 K do not extrapolate."""

METAL_RICH = -1.0
"""[Fe/H] above which extra syntheses lie [dex]."""

_ORDER = tuple(RANGES)
_BLOCK = 4096
"""Points tried at once; a power of two keeps Sobol's balance."""
_SOLAR_WIDTH = 0.5
"""Width [dex] of the crowd around solar proportions."""
_HOPELESS, _TRIES = 1 << 16, 256
"""Points tried before giving up: with none covered, and per synthesis asked for."""


@dataclass(frozen=True)
class Sampling:
    """What to draw.

    Attributes
    ----------
    n : int
        Syntheses. A larger n adds rows and changes none.
    seed : int
        Of the scrambling.
    ranges : mapping of str to (low, high)
        Replace those of `RANGES`; ``c_h``, ``n_h``, ``o_h``, ``si_h``, ``s_h`` cut the abundances relative to hydrogen.
    teff_power : float
        p of the density dn/d(log Teff) ∝ Teff^-p before the cut to what is covered. The cut thins hot stars by
        itself, since they have no low gravities: on ATLAS9 atmospheres 0.3 leaves 37 % below 10000 K, where emulators
        err most.
    metal_rich : float
        Share of the syntheses drawn evenly above [Fe/H] = -1; the others lie evenly in the whole range.
    solar_like : float
        Share of each [X/Fe] drawn from a normal distribution around 0, σ = 0.5 dex; the others lie evenly in the range.
    isochrones : path or Isochrones, optional
        Table for `hotdask.library.isochrones.read_isochrones`: Teff, log g and [Fe/H] then follow it, uniform in
        evolutionary phase, and teff_power and metal_rich are not used.
    jitter : (float, float, float)
        Standard deviation of what is added to the isochrones' log10 Teff, log g and [Fe/H] [dex], so that labels fill
        the space between them.

    Raises
    ------
    SettingsError
        If n, a range, a share or a jitter is impossible.
    """

    n: int = 5000
    seed: int = 1
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    teff_power: float = 0.3
    metal_rich: float = 0.5
    solar_like: float = 0.5
    isochrones: str | Path | Isochrones | None = None
    jitter: tuple[float, float, float] = (0.02, 0.15, 0.15)

    def __post_init__(self):
        if self.n < 1:
            raise SettingsError(f"sampling.n = {self.n}; give at least 1")
        known = {*RANGES, *RELATIVE.values()}
        for name, (low, high) in self.ranges.items():
            if name not in known:
                why = "rotation is applied after the synthesis" if name == "vsini" else f"give any of {sorted(known)}"
                raise SettingsError(f"sampling.ranges.{name} cannot be set; {why}")
            if not (np.isfinite([low, high]).all() and low <= high and (name != "teff" or low > 0)):
                raise SettingsError(f"sampling.ranges.{name} = [{low}, {high}]; give the lower value first")
        for name in ("metal_rich", "solar_like"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"sampling.{name} = {getattr(self, name)}; give a share between 0 and 1")
        if min(self.jitter) < 0:
            raise SettingsError(f"sampling.jitter = {self.jitter}; give standard deviations")


def draw_labels(sampling: Sampling, covers: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Labels that fill the space an engine covers.

    A scrambled Sobol sequence over log Teff, log g, [Fe/H], vmic, N_He and [C, N, O, Si, S/Fe]. Points that are not
    covered are left out and the sequence goes on, so that what is left fills its space as evenly as before.

    Parameters
    ----------
    sampling : Sampling
    covers : callable
        Takes (m, 11) labels, returns (m,) bool; e.g. an engine's ``covers``.

    Returns
    -------
    (n, 11) float64
        In the order of `hotdask.labels.LABEL_NAMES`; vsini is 0. The first rows do not depend on n.

    Raises
    ------
    SettingsError
        If nothing, or too little to find n, is covered.
    InputError
        If the table of isochrones cannot be read.

    References
    ----------
    Xiang et al. 2022, Table 1; Sobol 1967, scrambled as in Owen 1998 (`scipy.stats.qmc`).

    Examples
    --------
    >>> labels = draw_labels(Sampling(n=100), lambda labels: labels[:, 1] > 3)
    >>> labels.shape, bool(labels[:, 1].min() > 3)
    ((100, 11), True)
    """
    ranges = {**RANGES, **sampling.ranges}
    table = sampling.isochrones
    if table is not None:
        table = (table if isinstance(table, Isochrones) else read_isochrones(table)).within(ranges)
    sampling = replace(sampling, isochrones=table)
    sequence = qmc.Sobol(len(RANGES) + (table is not None), rng=np.random.default_rng(sampling.seed))
    found, kept, tried = 0, [], 0
    while found < sampling.n:
        if tried >= (max(_HOPELESS, _TRIES * sampling.n) if found else _HOPELESS):
            raise SettingsError(
                f"{found} of {tried} labels drawn are covered, {sampling.n} are wanted; "
                "widen sampling.ranges, or give an engine that covers them"
            )
        labels = _labels(sequence.random(_BLOCK), sampling, ranges)
        tried += _BLOCK
        labels = labels[_inside(labels, ranges)]
        labels = labels[np.asarray(covers(labels), dtype=bool)] if len(labels) else labels
        found += len(labels)
        kept.append(labels)
    return np.concatenate(kept)[: sampling.n]


def _labels(unit: np.ndarray, sampling: Sampling, ranges: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """Labels of points in the unit cube."""
    value = {name: ranges[name][0] + u * np.ptp(ranges[name]) for name, u in zip(_ORDER, unit.T, strict=False)}
    if sampling.isochrones is None:
        value["teff"] = _power_law(unit[:, 0], *ranges["teff"], sampling.teff_power)
        value["fe_h"] = _metal_rich(unit[:, 2], *ranges["fe_h"], sampling.metal_rich)
    else:
        # Scrambled Sobol points are never 1, but may be 0.
        normal = ndtri(np.clip(unit[:, :3], 1e-9, 1 - 1e-9)) * sampling.jitter
        log_teff, value["logg"], value["fe_h"] = (sampling.isochrones.pick(unit[:, -1]) + normal).T
        value["teff"] = 10**log_teff
    labels = np.zeros((len(unit), N_LABELS))
    for i, name in enumerate(_ORDER):
        if name in RELATIVE:
            value[name] = _solar_like(unit[:, i], *ranges[name], sampling.solar_like)
            labels[:, INDEX[RELATIVE[name]]] = value[name] + value["fe_h"]
        else:
            labels[:, INDEX[name]] = value[name]
    return labels


def _inside(labels: np.ndarray, ranges: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """Whether labels lie within the ranges that are labels; rounding may carry a point just over the end."""
    return np.all(
        [
            (labels[:, INDEX[n]] >= ranges[n][0]) & (labels[:, INDEX[n]] <= ranges[n][1])
            for n in LABEL_NAMES
            if n in ranges
        ],
        axis=0,
    )


def _power_law(u: np.ndarray, low: float, high: float, power: float) -> np.ndarray:
    """Values with dn/d(log x) ∝ x^-power, by inversion of their distribution."""
    if abs(power) < 1e-6:
        return low * (high / low) ** u
    return low * (1 + u * ((high / low) ** -power - 1)) ** (-1 / power)


def _metal_rich(u: np.ndarray, low: float, high: float, share: float) -> np.ndarray:
    """Values even in the whole range, ``share`` of them even above `METAL_RICH`; by inversion, piecewise linear."""
    if not low < METAL_RICH < high:
        return low + u * (high - low)
    below = (1 - share) * (METAL_RICH - low) / (high - low)
    return np.interp(u, [0, below, 1], [low, METAL_RICH, high])


def _solar_like(u: np.ndarray, low: float, high: float, share: float) -> np.ndarray:
    """A mixture of an even density and a normal one around 0, cut at the ends; by inversion on a table."""
    if not low < high:
        return np.full_like(u, low)
    x = np.linspace(low, high, 2001)
    even, bell = (x - low) / (high - low), ndtr(x / _SOLAR_WIDTH)
    bell = (bell - bell[0]) / (bell[-1] - bell[0]) if bell[-1] - bell[0] > 1e-6 else even
    return np.interp(u, share * bell + (1 - share) * even, x)
