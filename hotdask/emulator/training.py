"""Training of an emulator on a library of unbroadened syntheses.

A synthesis serves many times: each is drawn with many values of vsini and line spread, broadened and normalized like
data. Drawing costs a millisecond, a step of the low-rank network a hundredth of that per spectrum; so spectra are drawn
once, and passed over many times. Validation syntheses say when to stop; held-out ones are never seen.
"""

import datetime
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from scipy.spatial import ConvexHull, QhullError

from hotdask import __version__, windows
from hotdask.config import Normalize
from hotdask.emulator.base import relative_to_iron, require_device
from hotdask.emulator.checkpoint import read_checkpoint, write_checkpoint
from hotdask.emulator.evaluation import error_budget, held_out_residuals, pixel_weight
from hotdask.emulator.inverse import learn_inverse, untrained
from hotdask.emulator.loop import History, Optimization, Schedule
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.emulator.perpixel import PerPixelEmulator, forward
from hotdask.emulator.source import SpectrumSource
from hotdask.errors import InputError
from hotdask.labels import INDEX, LABELS
from hotdask.library.spectra import Library

_NOISE_FLOOR = 1e-3
"""Residual [of the continuum] below which a spectrum asks for no more attention."""
_VALIDATION_DRAWS = 10
_CLOCKS = {"wall_seconds": "wall", "cpu_seconds": "cpu"}


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes
    ----------
    architecture : str
        ``lowrank`` or ``perpixel``.
    n_basis : int
        K, coefficients of the low-rank network.
    hidden : int
        Nodes of each of the two hidden layers.
    draws : int
        Spectra drawn of each synthesis.
    passes, batch, learning_rate
        See `hotdask.emulator.loop.Schedule`.
    patience : float
        Share of the passes without a better validation loss after which to stop. Much of the gain comes late, when
        the learning rate falls: a short patience forgoes it.
    validation, held_out : float
        Shares of the library that decide when to stop, and that are never seen.
    basis_spectra : int
        Spectra the basis is made of, at most as many as are learned from.
    pixels : int
        Per-pixel networks trained at once.
    test_passes : int
        Draws of each held-out synthesis for the residuals of the card.
    inverse_draws, inverse_passes : int
        Simulated spectra from which the low-rank emulator learns where fits start, and passes over them; see
        `hotdask.emulator.inverse`.
    resolving_power : (low, high)
        Range of λ/FWHM in each arm.
    max_vsini : float
        Upper end of vsini [km/s].
    seed : int
        Of the split, the draws and the network.
    """

    architecture: str = "lowrank"
    n_basis: int = 128
    hidden: int = 192
    draws: int = 20
    passes: int = 320
    batch: int = 64
    learning_rate: float = 4e-3
    patience: float = 0.5
    validation: float = 0.08
    held_out: float = 0.1
    basis_spectra: int = 6000
    pixels: int = 256
    test_passes: int = 8
    inverse_draws: int = 1_000_000
    inverse_passes: int = 40
    resolving_power: tuple[float, float] = (1400.0, 2300.0)
    max_vsini: float = 500.0
    seed: int = 20220101

    @property
    def schedule(self) -> Schedule:
        """The part of it that one network's optimization needs."""
        return Schedule(self.passes, self.batch, self.learning_rate, max(1, round(self.patience * self.passes)))


def default_training(architecture: str) -> Training:
    """Settings that suit an architecture.

    Raises
    ------
    InputError
        If there is no such architecture.

    Examples
    --------
    >>> default_training("perpixel").hidden
    100
    """
    if architecture == "lowrank":
        return Training()
    if architecture == "perpixel":
        return Training(architecture, hidden=100, draws=20, passes=60, batch=64, learning_rate=1e-2)
    raise InputError(f"architecture {architecture!r} is unknown; there are 'lowrank' and 'perpixel'")


@dataclass(frozen=True)
class Split:
    """Rows of a library, each sorted: to learn from, to stop by, never to see."""

    learned: np.ndarray
    validation: np.ndarray
    held_out: np.ndarray


def split_library(n: int, training: Training) -> Split:
    """Divide ``n`` syntheses at random, by the seed alone.

    Examples
    --------
    >>> split = split_library(100, Training())
    >>> len(split.learned), len(split.validation), len(split.held_out)
    (82, 8, 10)
    """
    order = np.random.default_rng(training.seed).permutation(n)
    n_test = max(1, round(training.held_out * n))
    n_validation = max(1, round(training.validation * n))
    parts = np.split(order, [n_test, n_test + n_validation])
    return Split(*(np.sort(part) for part in reversed(parts)))


class _Checkpoints:
    """Where a training was, part by part; writes nothing without a path."""

    def __init__(self, path: str | Path | None, identity: dict, seconds: float):
        self._path, self._identity, self._seconds = path, identity, seconds
        self._last = self._began = time.monotonic()
        self._cpu_began = time.process_time()
        self._before = {"wall": 0.0, "cpu": 0.0}
        self.finished: list[tuple[dict[str, np.ndarray], History]] = []
        self._running: tuple[dict[str, torch.Tensor], dict] | None = None
        if path is not None and Path(path).exists():
            self._read()

    def _read(self) -> None:
        tensors, state = read_checkpoint(self._path, self._identity)
        self._before = state["seconds"]
        parts: dict[str, dict] = {}
        for name, tensor in tensors.items():
            part, _, inner = name.partition("/")
            parts.setdefault(part, {})[inner] = tensor
        for i, history in enumerate(state["finished"]):
            self.finished.append(({n: t.numpy() for n, t in parts[str(i)].items()}, History(**history)))
        if state["running"] is not None:
            self._running = parts["running"], state["running"]

    def seconds(self) -> dict[str, float]:
        """Time the training has taken, ``wall`` and ``cpu``, what ran before it was resumed included."""
        return {
            "wall": self._before["wall"] + time.monotonic() - self._began,
            "cpu": self._before["cpu"] + time.process_time() - self._cpu_began,
        }

    def resume(self, optimization: Optimization) -> None:
        """Put an optimization where the last one was stopped, if it was."""
        if self._running is not None:
            optimization.restore(*self._running)
            self._running = None

    def save(self, optimization: Optimization | None = None) -> None:
        """Write, if it is time."""
        if self._path is None or time.monotonic() - self._last < self._seconds:
            return
        tensors = {
            f"{i}/{n}": torch.from_numpy(a) for i, (best, _) in enumerate(self.finished) for n, a in best.items()
        }
        running = None
        if optimization is not None:
            inner, running = optimization.state()
            tensors |= {f"running/{name}": tensor for name, tensor in inner.items()}
        finished = [vars(history) for _, history in self.finished]
        state = {"finished": finished, "running": running, "seconds": self.seconds()}
        write_checkpoint(self._path, tensors, state, self._identity)
        self._last = time.monotonic()


def train(
    library: Library,
    training: Training | None = None,
    *,
    normalization: Normalize | None = None,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Callable[[int, int, float, float], None] = lambda number, total, loss, validation: None,
) -> LowRankEmulator | PerPixelEmulator:
    """Train an emulator on a library.

    Parameters
    ----------
    library : Library
        Unbroadened syntheses.
    training : Training
        Architecture, sizes, passes, seed.
    normalization : hotdask.config.Normalize
        The continuum; spectra fitted with this emulator must be normalized the same way.
    device : str
        Where the networks are trained, ``cpu`` or ``cuda``. Spectra are drawn on the CPU.
    checkpoint : path, optional
        File to keep the state in; if it exists, the training goes on from there, and gives what it would have given
        undisturbed: bit by bit on the CPU of the same machine, but for the order of sums on a CUDA device.
    checkpoint_seconds : float
        Least time between two writes of it.
    progress : callable
        Called after each pass with (pass, passes, loss, validation loss).

    Returns
    -------
    LowRankEmulator or PerPixelEmulator
        With the parameters of the best validation loss. The card holds the residuals on held-out syntheses, the loss
        of every pass, and what limits the accuracy.

    Raises
    ------
    InputError
        If the library holds values that are not finite, too few syntheses to set some aside, or such as vary too
        little in Teff and log g; if a size is not positive; if there is no such architecture or device.
    EmulatorError
        If the checkpoint is of another training, or the loss is no longer finite.

    References
    ----------
    Xiang et al. 2022, §4.2.
    """
    training, normalization = training or Training(), normalization or Normalize()
    _check(library, training, device)
    made_of = {
        "training": asdict(training),
        "normalization": normalization.model_dump(mode="json"),
        "library": library.name,
        "library_sha256": library_hash(library),
        "device": device,
    }
    provenance = dict(library.provenance)
    checkpoints = _Checkpoints(checkpoint, made_of, checkpoint_seconds)
    split = split_library(len(library.labels), training)
    try:
        limits = label_limits(library.labels[split.learned], training.max_vsini)
    except QhullError as error:
        raise InputError(
            f"{library.name}: Teff and log g span no area, so nothing bounds them; give a library in which both vary"
        ) from error
    source = SpectrumSource(
        library, normalization, resolving_power=training.resolving_power, max_vsini=training.max_vsini
    )
    # The source needs its transform only; the flux of 5000 syntheses is 400 MB.
    del library

    kind, learn = {"lowrank": (LowRankEmulator, _learn_low_rank), "perpixel": (PerPixelEmulator, _learn_per_pixel)}[
        training.architecture
    ]
    arrays, curve = learn(source, split, training, device, checkpoints, progress)
    seconds = checkpoints.seconds()
    arrays |= limits
    card = {
        **made_of,
        "library_provenance": provenance,
        "architecture": training.architecture,
        "syntheses": len(split.learned),
        "validation": len(split.validation),
        "held_out": len(split.held_out),
        "validation_members": split.validation.tolist(),
        "held_out_members": split.held_out.tolist(),
        "date": datetime.date.today().isoformat(),
        **{name: round(seconds[kind]) for name, kind in _CLOCKS.items()},
        "hotdask": __version__,
        "torch": str(torch.__version__),
        "loss": curve,
        "label_ranges": {
            lb.name: [float(max(low, 0.0) if lb.name == "vsini" else low), float(high)]
            for lb, low, high in zip(LABELS, arrays["label_low"], arrays["label_high"], strict=True)
        },
    }
    emulator = kind(arrays, card, **({"device": device} if kind is PerPixelEmulator else {}))
    if kind is LowRankEmulator:
        emulator = learn_inverse(
            emulator,
            draws=training.inverse_draws,
            passes=training.inverse_passes,
            seed=training.seed,
            progress=lambda number, _, *losses: progress(training.passes + number, _total(training), *losses),
        )
        seconds = checkpoints.seconds()
        emulator.card |= {name: round(seconds[kind]) for name, kind in _CLOCKS.items()}
    rng = _generator(training, "test")
    emulator.card["residuals"] = held_out_residuals(emulator, source, split.held_out, training.test_passes, rng)
    emulator.card["budget"] = error_budget(emulator, source, split.learned, split.held_out, 4, rng)
    return emulator


def _check(library: Library, training: Training, device: str) -> None:
    require_device(device)
    default_training(training.architecture)
    for name in ("passes", "draws", "hidden", "pixels", "n_basis", "inverse_draws", "inverse_passes"):
        if getattr(training, name) < 1:
            raise InputError(f"training.{name} = {getattr(training, name)}; give at least 1")
    if training.n_basis >= windows.N_REST:
        raise InputError(f"training.n_basis = {training.n_basis}; give fewer than the {windows.N_REST} pixels")
    n = len(library.labels)
    if n < 10:
        raise InputError(f"{library.name}: {n} syntheses are too few to learn from and to set some aside")
    bad = [i for i in range(n) if not (np.isfinite(library.flux[i]).all() and np.isfinite(library.labels[i]).all())]
    if bad:
        raise InputError(f"{library.name}: {len(bad)} syntheses hold values that are not finite, the first {bad[:5]}")


def library_hash(library: Library) -> str:
    """SHA-256 of a library's labels and fluxes, as in the card of an emulator trained on it."""
    digest = hashlib.sha256(np.ascontiguousarray(library.labels))
    for row in library.flux:
        digest.update(np.ascontiguousarray(row))
    return digest.hexdigest()


def _total(training: Training) -> int:
    """Passes of a low-rank training, those of the network that starts fits included."""
    return training.passes + training.inverse_passes


def _generator(training: Training, purpose: str) -> np.random.Generator:
    # A stream of its own for each purpose: a resumed training draws the same spectra whatever else was drawn.
    return np.random.default_rng([training.seed, *purpose.encode()])


def _draws(source: SpectrumSource, split: Split, training: Training, purpose: str) -> Iterator:
    members, draws = {
        "learn": (split.learned, training.draws),
        "validate": (split.validation, _VALIDATION_DRAWS),
    }[purpose]
    return source.draw_many(members, draws * len(members), _generator(training, purpose))


def _run(optimization: Optimization, checkpoints: _Checkpoints, report: Callable[[int, float, float], None]) -> None:
    checkpoints.resume(optimization)
    while not optimization.finished:
        losses = optimization.step()
        checkpoints.save(optimization)
        report(len(optimization.history.train), *losses)
    checkpoints.finished.append((optimization.best(), optimization.history))


def _learn_low_rank(
    source: SpectrumSource,
    split: Split,
    training: Training,
    device: str,
    checkpoints: _Checkpoints,
    progress: Callable,
) -> tuple[dict[str, np.ndarray], dict]:
    weight = pixel_weight()
    n_drawn = min(training.basis_spectra, training.draws * len(split.learned))
    drawn = list(source.draw_many(split.learned, n_drawn, _generator(training, "basis")))
    inputs, flux = (np.concatenate(part) for part in zip(*drawn, strict=True))
    del drawn
    mean = flux.mean(axis=0)
    directions = _weighted_basis(flux, mean, weight, training.n_basis)
    scale = float((((flux - mean) * weight) @ directions).std())
    center, spread = _center_and_spread(inputs)
    del flux

    def pool(purpose: str) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [
            ((x - center) / spread, ((y - mean) * weight) @ directions / scale)
            for x, y in _draws(source, split, training, purpose)
        ]
        return tuple(
            torch.from_numpy(np.concatenate(p).astype(np.float32)).to(device) for p in zip(*parts, strict=True)
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = torch.nn.Sequential(
            torch.nn.Linear(inputs.shape[1], training.hidden),
            torch.nn.SiLU(),
            torch.nn.Linear(training.hidden, training.hidden),
            torch.nn.SiLU(),
            torch.nn.Linear(training.hidden, training.n_basis),
        ).to(device)
    floor = _NOISE_FLOOR**2 * windows.N_REST / scale**2

    def loss(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # The root makes every spectrum count alike; squares would serve only the strongest-lined ones.
        return (((network(x) - y) ** 2).sum(dim=1) + floor).sqrt().mean()

    if not checkpoints.finished:
        optimization = Optimization(
            network, loss, pool("learn"), pool("validate"), training.schedule, seed=training.seed
        )
        _run(optimization, checkpoints, lambda number, *losses: progress(number, _total(training), *losses))
    best, history = checkpoints.finished[0]
    arrays = {
        "mean": mean,
        "basis": (directions * scale / weight[:, None]).T.astype(np.float32),
        "input_center": center,
        "input_scale": spread,
    }
    for i, layer in enumerate((0, 2, 4), start=1):
        arrays[f"weight{i}"], arrays[f"bias{i}"] = best[f"{layer}.weight"], best[f"{layer}.bias"]
    arrays |= untrained(training.n_basis)
    return arrays, _curve([history], [1])


class _PixelNetworks(torch.nn.Module):
    """Networks of some pixels, which give the flux less its mean over ``spread``."""

    def __init__(self, n_pixel: int, hidden: int):
        super().__init__()
        shapes = {
            "weight1": (n_pixel, hidden, 17),
            "bias1": (n_pixel, hidden),
            "weight2": (n_pixel, hidden, hidden),
            "bias2": (n_pixel, hidden),
            "weight3": (n_pixel, hidden),
            "bias3": (n_pixel,),
        }
        for name, shape in shapes.items():
            fan_in = 17 if name.endswith("1") else hidden
            self.register_parameter(name, torch.nn.Parameter((2 * torch.rand(shape) - 1) / fan_in**0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return forward(list(self.parameters()), x)[2]


def _learn_per_pixel(
    source: SpectrumSource,
    split: Split,
    training: Training,
    device: str,
    checkpoints: _Checkpoints,
    progress: Callable,
) -> tuple[dict[str, np.ndarray], dict]:
    # Depths in half precision: where lines are shallow they are exact to 1e-5, and all pixels fit into memory.
    inputs, depth = _pixel_pool(_draws(source, split, training, "learn"))
    validation_inputs, validation_depth = _pixel_pool(_draws(source, split, training, "validate"))
    center, spread = _center_and_spread(inputs)
    x, validation_x = (
        torch.from_numpy(((part - center) / spread).astype(np.float32)).to(device)
        for part in (inputs, validation_inputs)
    )
    starts = range(0, windows.N_REST, training.pixels)
    sizes = [min(training.pixels, windows.N_REST - start) for start in starts]
    parts = []
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        y, validation_y = (
            torch.from_numpy(d[:, start : start + size].astype(np.float32)) for d in (depth, validation_depth)
        )
        mean, scale = y.mean(dim=0), y.std(dim=0).clamp(min=_NOISE_FLOOR)
        if number == len(checkpoints.finished):
            scale_there = scale.to(device)

            def loss(
                network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor = scale_there
            ) -> torch.Tensor:
                return (((network(x) - y) * scale) ** 2 + _NOISE_FLOOR**2).sqrt().mean()

            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(training.seed + number)
                network = _PixelNetworks(size, training.hidden).to(device)
            pools = [
                (x_there, ((y_there - mean) / scale).to(device))
                for x_there, y_there in ((x, y), (validation_x, validation_y))
            ]
            optimization = Optimization(network, loss, *pools, training.schedule, seed=training.seed + number)
            done = number * training.passes
            _run(
                optimization,
                checkpoints,
                lambda n, *losses, done=done: progress(done + n, len(sizes) * training.passes, *losses),
            )
            checkpoints.save()
        layers = dict(checkpoints.finished[number][0])
        scale, mean = scale.numpy(), mean.numpy()
        layers["bias3"] = 1 - mean - layers["bias3"] * scale
        layers["weight3"] = -layers["weight3"] * scale[:, None]
        parts.append(layers)
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays |= {"input_center": center, "input_scale": spread}
    return arrays, _curve([history for _, history in checkpoints.finished], sizes)


def _pixel_pool(drawn: Iterator) -> tuple[np.ndarray, np.ndarray]:
    inputs, depth = zip(*((x, (1 - flux).astype(np.float16)) for x, flux in drawn), strict=True)
    return np.concatenate(inputs), np.concatenate(depth)


def _center_and_spread(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spread = inputs.std(axis=0)
    # A label the library does not vary stays where it is.
    return inputs.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)


def _weighted_basis(flux: np.ndarray, mean: np.ndarray, weight: np.ndarray, n_basis: int) -> np.ndarray:
    """(3801, K) orthonormal directions in weighted pixels.

    Each spectrum counts by the inverse of its distance from the mean: otherwise a few cool, metal-rich ones own the
    basis and the typical star pays.
    """
    deviation = (flux - mean) * weight
    deviation /= np.sqrt((deviation**2).mean(axis=1, keepdims=True)) + _NOISE_FLOOR
    gram = (deviation.T @ deviation).astype(np.float64)
    # The start is given, because a random one would give other last digits every time.
    _, vectors = eigsh(gram, k=n_basis, v0=np.ones(len(gram)))
    return vectors[:, ::-1].astype(np.float32)


def _curve(histories: list[History], sizes: list[int]) -> dict:
    """Loss of each pass, averaged over parts of given sizes; a part that stopped keeps its last value."""
    longest = max(len(history.train) for history in histories)
    out = {}
    for name in ("train", "validation"):
        padded = [getattr(h, name) + getattr(h, name)[-1:] * (longest - len(h.train)) for h in histories]
        out[name] = [float(f"{value:.5g}") for value in np.average(padded, axis=0, weights=sizes)]
    return {**out, "best": round(float(np.average([h.best for h in histories], weights=sizes)))}


def label_limits(labels: np.ndarray, max_vsini: float) -> dict[str, np.ndarray]:
    """Where a library ends.

    Parameters
    ----------
    labels : (n, 11) float64
    max_vsini : float
        Upper end of vsini [km/s].

    Returns
    -------
    dict of str to array
        ``hull`` (m, 3): half-planes a·log10 Teff + b·log g + c ≤ 0 of the convex hull; ``label_low``, ``label_high``
        (11,): ranges, with [X/Fe] for abundances other than iron.

    Raises
    ------
    scipy.spatial.QhullError
        If Teff and log g span no area.
    """
    hull = ConvexHull(np.column_stack([np.log10(labels[:, 0]), labels[:, 1]])).equations
    relative = relative_to_iron(labels)
    low, high = relative.min(axis=0), relative.max(axis=0)
    low[INDEX["vsini"]], high[INDEX["vsini"]] = -np.inf, max_vsini
    return {"hull": hull, "label_low": low, "label_high": high}
