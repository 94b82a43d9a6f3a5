"""Training of the low-rank emulator on a library of unbroadened syntheses.

A synthesis serves many times: every pass draws a fresh vsini and a fresh line spread for each, broadens, normalizes
like data, projects on the basis and learns the coefficients. Held-out syntheses are never seen.
"""

import datetime
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.spatial import ConvexHull

from hotdask import windows
from hotdask.config import Normalize
from hotdask.emulator.broadening import FWHM, Broadener
from hotdask.emulator.lowrank import LowRankEmulator, relative_to_iron
from hotdask.labels import INDEX, LABELS
from hotdask.library.spectra import Library
from hotdask.steps.normalize import Normalizer

_MASKED_WEIGHT = 0.2
"""Pixels no fit uses still deserve a fair spectrum in plots, but not the basis' attention."""
_NOISE_FLOOR = 1e-3
"""Residual [of the continuum] below which a spectrum asks for no more attention."""
_TEFF_BINS = (0, 9000, 12000, 20000, 30000, 100000)


@dataclass(frozen=True)
class Training:
    """How to train; the default made the emulator that is shipped."""

    n_basis: int = 64
    hidden: int = 128
    passes: int = 5000
    batch: int = 64
    learning_rate: float = 4e-3
    held_out: float = 0.1
    basis_passes: int = 12
    test_passes: int = 8
    resolving_power: tuple[float, float] = (1400.0, 2300.0)
    max_vsini: float = 500.0
    seed: int = 20220101


def draw_vsini(rng: np.random.Generator, n: int, high: float) -> np.ndarray:
    """Rotation velocities [km/s], somewhat denser where lines are sharp and change fast."""
    return high * rng.uniform(size=n) ** 1.3


def draw_lsf(rng: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    """Line-spread coefficients (n, 6) [Å] with resolving power between ``low`` and ``high``.

    Each arm has its own resolving power, bent by up to 4 % at its ends and middle.
    """
    coefficients = []
    for pivot, (start, stop) in zip(windows.LSF_PIVOT, ((3750.0, 5900.0), (5900.0, 9000.0)), strict=True):
        wavelength = np.array([start, (start + stop) / 2, stop])
        bend = np.exp(rng.uniform(-0.04, 0.04, (n, 3)))
        power = np.exp(rng.uniform(np.log(low / 0.96), np.log(high * 0.96), (n, 1))) * bend
        sigma = wavelength / (FWHM * power)
        powers = np.vander((wavelength - pivot) / 1000, 3, increasing=True)
        coefficients.append(np.linalg.solve(powers, sigma.T).T)
    return np.hstack(coefficients)


class SpectrumSource:
    """Broadened, normalized spectra of a library, with fresh vsini and line spread at every draw."""

    def __init__(self, library: Library, training: Training, normalization: Normalize):
        self._library = library
        self._training = training
        self._broadener = Broadener(library.log_start, library.flux.shape[1])
        self._transformed = self._broadener.transform(library.flux)
        self._normalizer = Normalizer(windows.rest_wavelength(), **normalization.model_dump())

    def draw(self, members: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels (n, 11), line spread (n, 6) and normalized flux (n, 3801) of library members."""
        labels = self._library.labels[members].copy()
        labels[:, INDEX["vsini"]] = draw_vsini(rng, len(members), self._training.max_vsini)
        lsf = draw_lsf(rng, len(members), *self._training.resolving_power)
        flux = self._broadener.broaden(self._transformed[members], labels[:, INDEX["vsini"]], lsf)
        return labels, lsf, self._normalizer.normalize(flux, np.ones_like(flux))[0]


def _weighted_basis(flux: np.ndarray, mean: np.ndarray, weight: np.ndarray, n_basis: int) -> np.ndarray:
    """(3801, K) orthonormal directions in weighted pixels.

    Each spectrum counts by the inverse of its distance from the mean: otherwise a few cool, metal-rich ones own the
    basis and the typical star pays.
    """
    deviation = (flux - mean) * weight
    deviation /= np.sqrt((deviation**2).mean(axis=1, keepdims=True)) + _NOISE_FLOOR
    _, vectors = np.linalg.eigh((deviation.T @ deviation).astype(np.float64))
    return vectors[:, ::-1][:, :n_basis].astype(np.float32)


def train(
    library: Library,
    training: Training | None = None,
    *,
    normalization: Normalize | None = None,
    progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> LowRankEmulator:
    """Train an emulator on a library.

    Parameters
    ----------
    library : Library
        Unbroadened syntheses.
    training : Training
        Sizes, passes, seed.
    normalization : hotdask.config.Normalize
        The continuum; spectra fitted with this emulator must be normalized the same way.
    progress : callable
        Called after each pass with (pass, passes, loss).

    Returns
    -------
    LowRankEmulator
        Its card holds the residuals on the held-out syntheses.

    References
    ----------
    Xiang et al. 2022, §4.2 (with a low-rank network in place of one network per pixel).
    """
    training, normalization = training or Training(), normalization or Normalize()
    rng = np.random.default_rng(training.seed)
    order = rng.permutation(len(library.labels))
    n_test = max(1, round(training.held_out * len(order)))
    test, train_members = np.sort(order[:n_test]), np.sort(order[n_test:])
    source = SpectrumSource(library, training, normalization)

    weight = np.where(windows.inside(windows.rest_wavelength(), windows.FIT_MASK), _MASKED_WEIGHT, 1.0)
    weight = weight.astype(np.float32)
    drawn = [source.draw(train_members, rng) for _ in range(training.basis_passes)]
    inputs = np.concatenate([_raw_inputs(labels, lsf) for labels, lsf, _ in drawn])
    flux = np.concatenate([flux for _, _, flux in drawn])
    mean = flux.mean(axis=0)
    directions = _weighted_basis(flux, mean, weight, training.n_basis)
    scale = float((((flux - mean) * weight) @ directions).std())
    center, spread = inputs.mean(axis=0), inputs.std(axis=0)
    del drawn, flux

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = torch.nn.Sequential(
            torch.nn.Linear(inputs.shape[1], training.hidden),
            torch.nn.SiLU(),
            torch.nn.Linear(training.hidden, training.hidden),
            torch.nn.SiLU(),
            torch.nn.Linear(training.hidden, training.n_basis),
        )
    steps = -(-len(train_members) // training.batch)
    optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=training.learning_rate, total_steps=training.passes * steps, pct_start=0.1
    )
    floor = _NOISE_FLOOR**2 * windows.N_REST / scale**2
    for number in range(training.passes):
        labels, lsf, flux = source.draw(rng.permutation(train_members), rng)
        x = torch.from_numpy((_raw_inputs(labels, lsf) - center) / spread).float()
        y = torch.from_numpy(((flux - mean) * weight) @ directions / scale)
        total = 0.0
        for part in torch.arange(len(x)).split(training.batch):
            # The root makes every spectrum count alike; squares would serve only the strongest-lined ones.
            loss = (((network(x[part]) - y[part]) ** 2).sum(dim=1) + floor).sqrt().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        progress(number + 1, training.passes, total / steps)

    arrays = {
        "mean": mean,
        "basis": (directions * scale / weight[:, None]).T.astype(np.float32),
        "input_center": center,
        "input_scale": spread,
        **_label_limits(library.labels[train_members], training.max_vsini),
    }
    for i, layer in enumerate((network[0], network[2], network[4]), start=1):
        arrays[f"weight{i}"] = layer.weight.detach().numpy()
        arrays[f"bias{i}"] = layer.bias.detach().numpy()
    card = {
        "library": library.name,
        "syntheses": len(train_members),
        "held_out": len(test),
        "held_out_members": test.tolist(),
        "date": datetime.date.today().isoformat(),
        "training": asdict(training),
        "normalization": normalization.model_dump(mode="json"),
        "label_ranges": {
            lb.name: [float(max(low, 0.0) if lb.name == "vsini" else low), float(high)]
            for lb, low, high in zip(LABELS, arrays["label_low"], arrays["label_high"], strict=True)
        },
    }
    emulator = LowRankEmulator(arrays, card)
    emulator.card["residuals"] = held_out_residuals(emulator, source, test, training.test_passes, rng)
    return emulator


def held_out_residuals(
    emulator: LowRankEmulator, source: SpectrumSource, members: np.ndarray, passes: int, rng: np.random.Generator
) -> dict:
    """Dispersion (1.4826 MAD, of the continuum) of emulated minus synthesized flux.

    ``all`` and ``lines`` (flux < 0.95) are over the pixels a fit uses, ``every`` and ``every_lines`` over all 3801.
    """
    drawn = [source.draw(members, rng) for _ in range(passes)]
    labels, lsf, flux = (np.concatenate([d[i] for d in drawn]) for i in range(3))
    fitted = ~windows.inside(windows.rest_wavelength(), windows.FIT_MASK)
    every = emulator.flux(labels, lsf) - flux
    residual, lines = every[:, fitted], flux[:, fitted] < 0.95

    def dispersion(chosen: np.ndarray) -> float | None:
        return float(1.4826 * np.median(np.abs(chosen))) if chosen.size else None

    bins = {}
    for low, high in itertools.pairwise(_TEFF_BINS):
        inside = (labels[:, 0] >= low) & (labels[:, 0] < high)
        bins[f"{low}-{high}"] = {
            "all": dispersion(residual[inside]),
            "lines": dispersion(residual[inside][lines[inside]]),
        }
    return {
        "all": dispersion(residual),
        "lines": dispersion(residual[lines]),
        "every": dispersion(every),
        "every_lines": dispersion(every[flux < 0.95]),
        "rms": float(residual.std()),
        "teff_bins": bins,
    }


def _raw_inputs(labels: np.ndarray, lsf: np.ndarray) -> np.ndarray:
    inputs = np.hstack([labels, lsf])
    inputs[:, 0] = np.log10(inputs[:, 0])
    return inputs


def _label_limits(labels: np.ndarray, max_vsini: float) -> dict[str, np.ndarray]:
    """Where the library ends: hull half-planes in (log Teff, log g), ranges of the other labels."""
    hull = ConvexHull(np.column_stack([np.log10(labels[:, 0]), labels[:, 1]])).equations
    relative = relative_to_iron(labels)
    low, high = relative.min(axis=0), relative.max(axis=0)
    low[INDEX["vsini"]], high[INDEX["vsini"]] = -np.inf, max_vsini
    return {"hull": hull, "label_low": low, "label_high": high}
