"""What all groups of figures share: the rows of the table, timing, and the simulated spectra."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hotdask.emulator import load_emulator
from hotdask.simulation.visits import LAYOUTS, Simulation, draw_stars, draw_visits, make_spectra
from hotdask.spectra.restframe import to_rest_frame
from hotdask.steps.label import Labeler, Prepared

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark"
HIGH, LOW = "high", "low"
GEMM_SIZE = 1536


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ``wall`` is the same figure by wall time. ``goal`` says whether it should be high or low, of figures that can be
    compared between machines: ratios and accuracies.
    """

    group: str
    name: str
    value: float
    unit: str
    meaning: str
    wall: float | None = None
    goal: str = ""


@dataclass(frozen=True)
class Timing:
    """Seconds per spectrum in each round."""

    cpu: np.ndarray
    wall: np.ndarray

    def row(self, group: str, name: str, meaning: str) -> Row:
        rates = (float(1 / np.median(seconds)) for seconds in (self.cpu, self.wall))
        return Row(group, name, next(rates), "spectra/s", meaning, next(rates))

    def faster_than(self, peer: "Timing") -> float:
        return float(np.median(peer.cpu / self.cpu))


def interleave(
    calls: dict[str, tuple[int, Callable[[], object]]], repeats: int
) -> tuple[dict[str, Timing], dict[str, object]]:
    """Time calls in turn, after one round to warm up; each comes with the number of spectra it handles."""
    seconds = {name: [] for name in calls}
    results = {}
    for round_ in range(repeats + 1):
        for name, (count, call) in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            results[name] = call()
            if round_:
                seconds[name].append(((time.process_time() - cpu) / count, (time.perf_counter() - wall) / count))
    return {name: Timing(*np.array(s).T) for name, s in seconds.items()}, results


def gemm() -> Callable[[], object]:
    """A product of large matrices, as fast as this machine's arithmetic gets; `gemm_speed` is its rate."""
    matrix = torch.rand(GEMM_SIZE, GEMM_SIZE)
    return lambda: matrix @ matrix


def gemm_speed(timing: Timing) -> np.ndarray:
    """Floating-point operations per second in each round."""
    return 2 * GEMM_SIZE**3 / timing.cpu


def share_of_peak(group: str, name: str, flop: float, timing: Timing, speed: np.ndarray) -> Row:
    """How much of the machine's arithmetic a step uses; ``flop`` operations a spectrum."""
    share = float(np.median(flop / timing.cpu / speed))
    return Row(group, name, share, "of peak", f"{flop / 1e6:.1f} MFLOP a spectrum, counted, over GEMM peak", goal=HIGH)


def simulate(n: int, emulator) -> tuple[Simulation, pd.DataFrame]:
    """A survey of n spectra of as many stars, in all layouts of files."""
    simulation = Simulation(stars=n, spectra=n, broken=0)
    visits = draw_visits(simulation, draw_stars(simulation, emulator))
    # Plates, and with them layouts, come in long runs; a few files shall hold all of them.
    return simulation, visits.assign(layout=[LAYOUTS[i % len(LAYOUTS)] for i in range(n)])


class Bench:
    """The simulated spectra, and each state of them that a step starts from; made when first asked for."""

    def __init__(self, n_spectra: int, n_peers: int, repeats: int, folder: Path, *, survey: int, scale: int):
        self.n, self.n_peers, self.repeats, self.folder = n_spectra, min(n_peers, n_spectra), repeats, folder
        self.survey, self.scale = survey, scale
        self.emulator = load_emulator()
        self.labeler = Labeler(self.emulator)
        self.simulation, self.visits = simulate(n_spectra, self.emulator)

    @cached_property
    def observed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """flux, ivar and velocity as `Labeler.label` takes them."""
        arrays, _ = make_spectra(self.visits, self.emulator, self.simulation)
        ivar = self.labeler.usable(arrays["ivar"], arrays["andmask"], arrays["ormask"])
        return arrays["flux"], ivar, self.visits["rv"].to_numpy()

    @cached_property
    def rest(self) -> tuple[np.ndarray, np.ndarray]:
        return to_rest_frame(*self.observed)

    @cached_property
    def prepared(self) -> Prepared:
        return self.labeler.prepare(*self.observed)
