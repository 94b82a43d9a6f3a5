"""Where fits start: a small network that reads labels off a spectrum's coefficients.

The least-squares coefficients of a spectrum, shrunk to what its noise allows, hold all that a fit will ever see of it.
A network that has learned to turn them back into labels starts a fit within a few σ of its end, where a scan of plain
stars leaves it hundreds of σ away and often in the wrong valley. Nothing of it is in the result: a fit ends where χ²
is lowest.

It answers twice, once for each side of the hydrogen maximum, for there one spectrum may be two stars.
"""

from collections.abc import Callable

import numpy as np
import torch

from hotdask import windows
from hotdask.emulator.loop import Optimization, Schedule
from hotdask.emulator.lowrank import N_FEATURES, LowRankEmulator
from hotdask.emulator.source import draw_lsf, draw_vsini
from hotdask.labels import INDEX, LABELS, N_LABELS, RELATIVE

HIDDEN = 256
_SHAPES = 256
"""Ways in which S/N may run over a spectrum: each costs an eigenvalue problem."""
_SNR = (5.0, 500.0)
_SOLAR_LIKE = 0.3
"""Half of the drawn [X/Fe] scatter around 0 by this much [dex], the other half fill their range."""
_OVERLAP = 1.1
"""Each side is learned from stars up to this factor in Teff beyond the maximum."""
_SOFT = 1e-3
_VALIDATION = 0.05


def learn_inverse(
    emulator: LowRankEmulator,
    *,
    draws: int = 200_000,
    passes: int = 30,
    seed: int = 20220101,
    progress: Callable[[int, int, float, float], None] = lambda number, total, loss, validation: None,
) -> LowRankEmulator:
    """Give an emulator the network that starts its fits.

    Parameters
    ----------
    emulator : LowRankEmulator
        Its inverse arrays are replaced. Its coefficients are turned and scaled so that those of the drawn stars are
        uncorrelated with unit variance; the flux stays the same to rounding.
    draws : int
        Simulated spectra, with labels anywhere in the library, S/N 5 to 500 of many shapes, with gaps; half of them
        with hydrogen masked.
    passes : int
        Passes over them.
    seed : int
    progress : callable
        Called after each pass with (pass, passes, loss, validation loss).

    Returns
    -------
    LowRankEmulator
        Without an id: it is not stored yet.
    """
    rng = np.random.default_rng(seed)
    labels = _draw_labels(emulator, rng, draws)
    inputs = emulator.inputs(labels, draw_lsf(rng, draws, *emulator.card["training"]["resolving_power"]))
    emulator, coefficients = _standardized(emulator, inputs)
    features = _observe(emulator, coefficients, inputs, rng)
    targets = inputs[:, :N_LABELS].float()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(
            torch.nn.Linear(features.shape[1], HIDDEN),
            torch.nn.SiLU(),
            torch.nn.Linear(HIDDEN, HIDDEN),
            torch.nn.SiLU(),
            torch.nn.Linear(HIDDEN, 2 * N_LABELS),
        )
    border = emulator.scaled_teff(windows.HYDROGEN_MAXIMUM)
    overlap = emulator.scaled_teff(windows.HYDROGEN_MAXIMUM * _OVERLAP) - border

    def loss(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # The root makes sharp and blurred spectra count alike.
        miss = (((network(x).view(-1, 2, N_LABELS) - y[:, None]) ** 2).sum(dim=2) + _SOFT).sqrt()
        side = torch.stack([y[:, 0] < border + overlap, y[:, 0] > border - overlap], dim=1)
        return (miss * side).sum() / len(y)

    kept = max(1, round(_VALIDATION * draws))
    schedule = Schedule(passes, min(1024, draws), 3e-3, passes)
    optimization = Optimization(
        network, loss, (features[kept:], targets[kept:]), (features[:kept], targets[:kept]), schedule, seed=seed
    )
    while not optimization.finished:
        progress(len(optimization.history.train) + 1, passes, *optimization.step())
    best, history = optimization.best(), optimization.history
    card = emulator.card | {"inverse_loss": {"train": history.train[-1], "validation": history.validation[-1]}}
    arrays = dict(emulator.arrays)
    for i, layer in enumerate((0, 2, 4), start=1):
        arrays[f"inverse_weight{i}"], arrays[f"inverse_bias{i}"] = best[f"{layer}.weight"], best[f"{layer}.bias"]
    return LowRankEmulator(arrays, card)


def untrained(n_basis: int) -> dict[str, np.ndarray]:
    """Arrays of an inverse network that says nothing, for an emulator that has not learned one yet."""
    sizes = {"inverse": 1, "feature": n_basis + N_FEATURES}
    return {
        name: np.zeros([sizes.get(size, size) for size in shape], dtype=np.float32)
        for name, shape in LowRankEmulator.ARRAYS.items()
        if name.startswith("inverse_")
    }


def _draw_labels(emulator: LowRankEmulator, rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 11) labels spread over the library, [X/Fe] half of the time near the Sun's."""
    floor, ceiling = np.array([lb.floor for lb in LABELS]), np.array([lb.ceiling for lb in LABELS])
    low, high = emulator.arrays["label_low"].clip(floor, None), emulator.arrays["label_high"].clip(None, ceiling)
    vsini = INDEX["vsini"]
    low[vsini] = 0.0
    low[0], high[0] = np.log10(low[0]), np.log10(high[0])
    relative = [INDEX[name] for name in RELATIVE.values()]
    iron = INDEX["fe_h"]
    parts, found = [], 0
    while found < n:
        labels = rng.uniform(low, high, (n, N_LABELS))
        near = rng.uniform(size=(n, len(relative))) < 0.5
        solar = rng.normal(0.0, _SOLAR_LIKE, near.shape).clip(low[relative], high[relative])
        labels[:, relative] = np.where(near, solar, labels[:, relative]) + labels[:, [iron]]
        labels[:, vsini] = draw_vsini(rng, n, high[vsini])
        labels[:, 0] = 10 ** labels[:, 0]
        inside = labels[~emulator.outside(labels)]
        parts.append(inside)
        found += len(inside)
    return np.concatenate(parts)[:n]


def _standardized(emulator: LowRankEmulator, inputs: torch.Tensor) -> tuple[LowRankEmulator, torch.Tensor]:
    """The emulator with uncorrelated coefficients of unit variance, and those coefficients, (n, K) float64."""
    coefficients = torch.cat([emulator.coefficients(part) for part in inputs.split(4096)])
    mean = coefficients.mean(dim=0)
    variance, vectors = torch.linalg.eigh(torch.cov(coefficients.T))
    # A direction that never varies keeps its scale.
    spread = variance.clamp(min=1e-12 * float(variance[-1])).sqrt()
    forth, back = (vectors / spread).T, vectors * spread
    a = {name: array.astype(np.float64) for name, array in emulator.arrays.items()}
    arrays = emulator.arrays | {
        "mean": (a["mean"] + mean.numpy() @ a["basis"]).astype(np.float32),
        "basis": (back.numpy().T @ a["basis"]).astype(np.float32),
        "weight3": (forth.numpy() @ a["weight3"]).astype(np.float32),
        "bias3": (forth.numpy() @ (a["bias3"] - mean.numpy())).astype(np.float32),
    }
    return LowRankEmulator(arrays, emulator.card), (coefficients - mean) @ forth.T


def _observe(
    emulator: LowRankEmulator, coefficients: torch.Tensor, inputs: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor:
    """What `LowRankEmulator.read_off` takes, of noisy spectra with these coefficients."""
    wavelength = windows.rest_wavelength()
    used = ~windows.inside(wavelength, windows.FIT_MASK)
    hydrogen = windows.inside(wavelength, windows.HYDROGEN)
    basis = emulator.basis.double()
    shape = torch.from_numpy(rng.integers(0, _SHAPES, len(inputs)))
    snr = torch.from_numpy(np.exp(rng.uniform(*np.log(_SNR), len(inputs))))
    shrunk = torch.empty_like(coefficients)
    level = torch.empty(len(inputs), dtype=torch.float64)
    for i in range(_SHAPES):
        ivar = torch.from_numpy(_shape(rng, wavelength) * (used & ~hydrogen if i % 2 else used))
        rows = (shape == i).nonzero()[:, 0]
        power = snr[rows, None] ** 2
        values, vectors = torch.linalg.eigh((basis * ivar) @ basis.T)
        seen = power * values.clamp(min=0)
        noise = torch.from_numpy(rng.normal(size=(len(rows), len(values))))
        # (G + 1)⁻¹ b of noisy data, in the coordinates in which G is diagonal.
        estimate = (seen * (coefficients[rows] @ vectors) + seen.sqrt() * noise) / (seen + 1)
        shrunk[rows] = estimate @ vectors.T
        level[rows] = snr[rows] ** 2 * ivar.sum() / used.sum()
    return emulator.inverse_features(shrunk, level, shape % 2 == 1, inputs[:, N_LABELS:]).float()


def _shape(rng: np.random.Generator, wavelength: np.ndarray) -> np.ndarray:
    """How inverse variance may run over a spectrum, (3801,) with mean 1: a color, bad pixels, some gaps."""
    z = np.linspace(-1, 1, len(wavelength))
    ivar = np.exp(np.polynomial.chebyshev.chebval(z, [0, *rng.normal(0, [0.8, 0.5, 0.3])]))
    ivar *= rng.uniform(size=len(z)) >= rng.choice([0.0, 0.01, 0.05])
    for _ in range(rng.poisson(2)):
        start = rng.integers(0, len(z))
        ivar[start : start + rng.integers(3, 200)] = 0
    return ivar / ivar.mean()
