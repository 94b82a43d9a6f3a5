"""Fits with per-pixel networks, which start from those of the low-rank emulator."""

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.common import HIGH, LOW, Bench, Row, gemm, gemm_speed, interleave, share_of_peak
from benchmarks.peers import distance_to_minimum, honest_fit, make_peers
from hotdask import windows
from hotdask.emulator import LowRankEmulator, PerPixelEmulator
from hotdask.labels import LABEL_NAMES, LSF_NAMES, N_LABELS
from hotdask.simulation.visits import Simulation, draw_stars, draw_visits
from hotdask.steps.refine import Refiner, _Spectra

REFINED, REFINE_PEERS = 768, 12
"""Spectra fitted with per-pixel networks, at most; and those of them that scipy fits, about a second each."""
HIDDEN = 100


class PixelNetworks:
    """Per-pixel networks for one spectrum, as one would write them in numpy: forward, and backward for the Jacobian."""

    def __init__(self, emulator: PerPixelEmulator, lsf: np.ndarray, pixels: np.ndarray):
        a = {name: array[pixels].astype(np.float64) for name, array in emulator.arrays.items() if name[-1] in "123"}
        self.w1, self.w2, self.w3 = a["weight1"][..., :N_LABELS].copy(), a["weight2"], a["weight3"]
        self.b1 = a["bias1"] + a["weight1"][..., N_LABELS:] @ emulator.scale_lsf(lsf).numpy()
        self.b2, self.b3 = a["bias2"], a["bias3"]

    def only(self, pixels: np.ndarray) -> "PixelNetworks":
        other = object.__new__(PixelNetworks)
        other.__dict__ = {name: array[pixels] for name, array in self.__dict__.items()}
        return other

    def activations(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        one = 1 / (1 + np.exp(-(self.w1 @ x + self.b1)))
        return one, 1 / (1 + np.exp(-((self.w2 @ one[..., None])[..., 0] + self.b2)))

    def flux(self, x: np.ndarray) -> np.ndarray:
        return (self.w3 * self.activations(x)[1]).sum(axis=1) + self.b3

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        one, two = self.activations(x)
        back = ((self.w3 * two * (1 - two))[:, None] @ self.w2)[:, 0] * one * (1 - one)
        return (back[:, None] @ self.w1)[:, 0]


def distill(teacher: LowRankEmulator, steps: int = 6000, n: int = 32768) -> PerPixelEmulator:
    """Per-pixel networks of the paper's size that imitate the low-rank emulator to 0.1 % of flux.

    All pixels get the hidden layers of one network that learns the teacher's coefficients: cheap to make, and as
    dear to evaluate as networks that learned each their own.
    """
    simulation = Simulation(stars=n, spectra=n, broken=0, seed=3)
    visits = draw_visits(simulation, draw_stars(simulation, teacher))
    labels, lsf = visits[[f"{name}_true" for name in LABEL_NAMES]].to_numpy(), visits[list(LSF_NAMES)].to_numpy()
    inputs = teacher.inputs(labels, lsf)
    target, inputs = teacher.coefficients(inputs).float(), inputs.float()
    center, scale = target.mean(dim=0), target.std(dim=0).max()
    target = (target - center) / scale
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = torch.nn.Linear(17, HIDDEN), torch.nn.Linear(HIDDEN, HIDDEN)
        last = torch.nn.Linear(HIDDEN, teacher.n_basis)
        # Sigmoids that begin almost straight take long to bend.
        first.weight.data *= 3
        second.weight.data *= 4
        network = torch.nn.Sequential(first, torch.nn.Sigmoid(), second, torch.nn.Sigmoid(), last)
        optimizer = torch.optim.Adam(network.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(n, (512,))
            optimizer.zero_grad()
            (network(inputs[rows]) - target[rows]).square().mean().backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        arrays = {
            **{
                f"{kind}{i}": np.repeat(getattr(layer, kind).numpy()[None], windows.N_REST, axis=0)
                for i, layer in ((1, first), (2, second))
                for kind in ("weight", "bias")
            },
            "weight3": (teacher.basis.T @ (last.weight * scale)).numpy(),
            "bias3": (teacher.mean + (last.bias * scale + center) @ teacher.basis).numpy(),
        }
    return PerPixelEmulator({**teacher.arrays, **arrays}, teacher.card)


def refine(bench: Bench) -> Iterator[Row]:
    emulator = distill(bench.emulator)
    refiner = Refiner(emulator)
    n, m = min(bench.n, REFINED), min(bench.n_peers, REFINE_PEERS)
    prepared = bench.prepared
    start = prepared.block.fit("all", prepared.block.guess("all")).labels[:n]
    flux, ivar, lsf = prepared.flux[:n], prepared.ivar[:n], prepared.lsf[:n]
    pixels = refiner.pixels["all"]
    peers = make_peers(PixelNetworks(emulator, lsf[0], pixels), pixels, flux, ivar, refiner.limits, emulator, m)
    peers_start = np.clip(emulator.scale_labels(start[:m]).numpy(), *peers.limits)
    block = refiner.n_rows
    spectra = _Spectra(refiner, "all", flux, ivar, lsf, start)
    rows = np.arange(block) % n
    spectra.allocate(block)
    spectra.load(np.arange(block), rows)
    calls = {
        "refine": (n, lambda: refiner.refine("all", flux, ivar, lsf, start)),
        "gemm": (1, gemm()),
        "evaluate": (block, lambda: spectra.gram(spectra.start[rows])),
        # Without limits, some fits of scipy wander off for more than a minute.
        "honest": (m, lambda: peers.each(honest_fit, peers_start, bounds=peers.limits, x_scale="jac")),
    }
    times, results = interleave(calls, bench.repeats)
    solution = results["refine"]
    meaning = f"all lines, {emulator.layers[1].shape[1]} hidden units, from the low-rank solution to covariance"
    yield times["refine"].row("refine", "refine", meaning)
    ratio = times["refine"].faster_than(times["honest"])
    meaning = (
        f"least_squares, same networks, start and limits, Jacobian backward, bad pixels dropped, 1e-8; {m} spectra"
    )
    yield Row("refine", "× best scipy", ratio, "×", meaning, goal=HIGH)
    evaluations = float(solution.iterations.mean())
    yield Row("refine", "evaluations", evaluations, "", "of value and Jacobian, per fit")
    h, columns = HIDDEN, N_LABELS + 1
    flop = 2 * len(pixels) * (17 * h + 2 * h * h + h + N_LABELS * h + columns * columns)
    speed = gemm_speed(times["gemm"])
    yield share_of_peak("refine", "share of peak", flop, times["evaluate"], speed)
    yield share_of_peak("refine", "fit, share of peak", evaluations * flop, times["refine"], speed)
    end = emulator.scale_labels(solution.labels[:m]).numpy()
    distance = distance_to_minimum(peers, end, ~solution.at_bound[:m])
    for word, value in (("median", np.median(distance)), ("p90", np.quantile(distance, 0.9))):
        meaning = f"{word} distance to the converged minimum, worst label, {distance.size} spectra"
        yield Row("refine", f"refine, {word}", float(value), "σ", meaning, goal=LOW)
