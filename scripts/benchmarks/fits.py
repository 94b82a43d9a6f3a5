"""Fits with the low-rank emulator, one and both, beside scipy's."""

from collections.abc import Iterator

import numpy as np

from benchmarks.common import HIGH, LOW, Bench, Row, gemm, gemm_speed, interleave, share_of_peak
from benchmarks.peers import Network, distance_to_minimum, honest_fit, make_peers, payne_fit, reference_fit
from hotdask import windows
from hotdask.labels import LABELS, N_LABELS
from hotdask.steps.compress import BIN
from hotdask.steps.fit import Block, Solution
from hotdask.steps.label import fit_both

PEERS = (
    ("The_Payne", "curve_fit as there: finite differences, method trf, tolerance 5e-4, all lines"),
    ("curve_fit", "the same with curve_fit's default method, lm"),
    ("best scipy", "least_squares, analytic Jacobian, bad pixels dropped, tolerance 1e-8"),
)


class Fits:
    """hotdask's fits of all spectra, from arrays to covariances, and the peers' of the first ones."""

    def __init__(self, bench: Bench):
        self.bench, self.prepared = bench, bench.prepared
        emulator, fitter, m = bench.emulator, bench.labeler.fitter, bench.n_peers
        pixels = np.flatnonzero(~windows.inside(windows.rest_wavelength(), windows.FIT_MASK))
        prepared = self.prepared
        network = Network(emulator, prepared.lsf[0], pixels)
        self.peers = make_peers(network, pixels, prepared.flux, prepared.ivar, fitter.limits, emulator, m)
        # Where a user of The_Payne would begin: a plain star at the temperature of the line indices, Eq 4.
        plain = np.array([lb.start for lb in LABELS])
        start = np.where(np.isfinite(prepared.starts[-1][:m]), prepared.starts[-1][:m], plain)
        self.start = emulator.scale_labels(start).numpy()
        _, ours = self.load()
        self.our_start = emulator.scale_labels(ours[:m]).numpy()

    def load(self) -> tuple[Block, np.ndarray]:
        """Spectra compressed, and the better of the inverse network's two answers."""
        block = self.bench.labeler.fitter.load(self.prepared.flux, self.prepared.ivar, self.prepared.lsf)
        return block, block.nearer(*block.guess("all"))

    def one(self) -> tuple[Block, Solution]:
        block, start = self.load()
        return block, block.fit("all", [start])

    def pair(self) -> tuple[Solution, Solution]:
        block, everything = self.one()
        return everything, block.fit("hmasked", [everything.labels])

    def catalog(self) -> tuple[Solution, Solution, np.ndarray]:
        block, _ = self.load()
        return fit_both(block, self.prepared.starts)

    def peer(self, name: str, start: np.ndarray) -> np.ndarray:
        if name == "best scipy":
            return self.peers.each(honest_fit, start)
        return self.peers.each(payne_fit, start, method="trf" if name == "The_Payne" else "lm")


def fit(bench: Bench) -> Iterator[Row]:
    fits = Fits(bench)
    block, first = fits.one()
    n, m = bench.n, bench.n_peers
    calls = {
        "one": (n, fits.one),
        "gemm": (1, gemm()),
        "second": (n, lambda: block.fit("hmasked", [first.labels])),
        "pair": (n, fits.pair),
        "catalog": (n, fits.catalog),
        **{name: (m, lambda name=name: fits.peer(name, fits.start)) for name, _ in PEERS},
        **{f"{name}, our start": (m, lambda name=name: fits.peer(name, fits.our_start)) for name, _ in PEERS},
    }
    times, results = interleave(calls, bench.repeats)
    yield times["one"].row("fit", "fit, one start", "all lines, arrays to covariance: compressed, first guess, fit")
    yield times["pair"].row("fit", "pair, one start", "the same, then hydrogen masked from where that ended")
    yield times["catalog"].row("fit", "fits of catalog", "pairs as the catalog is made: all starts, refits")
    for name, meaning in PEERS:
        yield times[name].row("fit", name, meaning + "; from the line-index Teff")
        yield times[f"{name}, our start"].row("fit", f"{name}, our start", "the same from hotdask's first guess")
    for ours, call in (("", "one"), ("pair ", "pair"), ("catalog ", "catalog")):
        for name, _ in PEERS:
            for suffix in ("", ", our start"):
                ratio = times[call].faster_than(times[name + suffix])
                meaning = f"one fit of the peer over {'one fit' if call == 'one' else 'both fits'}"
                yield Row("fit", f"{ours}× {name}{suffix}", ratio, "×", meaning, goal=HIGH)
    share = float(np.median(times["second"].cpu / times["one"].cpu))
    yield Row("fit", "second pass / first", share, "share", "hydrogen masked over all lines, one start", goal=LOW)

    speed = gemm_speed(times["gemm"])
    yield Row("fit", "GEMM peak", float(np.median(speed)) / 1e9, "GFLOP/s", "float32 product of large matrices")
    work = Work(bench)
    everything, masked = results["pair"]
    for label, flop, call in (
        ("share of peak", work.one(everything), "one"),
        ("pair, share of peak", work.one(everything) + work.fit(masked, "hmasked", 1), "pair"),
        ("catalog, share of peak", work.catalog(*results["catalog"]), "catalog"),
    ):
        yield share_of_peak("fit", label, flop, times[call], speed)
    yield from accuracy(fits, everything, results)


class Work:
    """Floating-point operations that the fits need, per spectrum, at least; double precision counts like single.

    Left out are padding, rejected starts on the way, and looks at the pixels that only some spectra need a second time.
    """

    def __init__(self, bench: Bench):
        emulator = bench.emulator
        self.pixels = bench.labeler.fitter.pixels.count
        k, columns = emulator.n_basis, N_LABELS + 1
        pairs = k * (k + 1) // 2
        (h1, n_in), h2 = emulator.arrays["weight1"].shape, emulator.arrays["weight2"].shape[0]
        inverse = sum(emulator.arrays[f"inverse_weight{i}"].size for i in (1, 2, 3))
        self.k = k
        self.load = 2 * self.pixels["all"] / BIN * pairs + 2 * self.pixels["all"] * (k + 2)
        self.network = 2 * (n_in * h1 + h1 * h2 + h2 * k)
        # Cholesky factors of G + 1, two triangular solutions, the inverse network.
        self.guess = k**3 / 3 + 2 * k**2 + 2 * inverse
        # χ² of coefficients by the quadratic form.
        self.value = self.network + 2 * k**2
        expand = 2 * (n_in * h1 + columns * (h1 * h2 + h2 * k))
        curvature = 2 * (k * h2 + h1 * h2 + N_LABELS**2 * (h1 + h2))
        gram = 2 * columns * (k**2 + columns * k + k)
        # Whether the Hessian is convex, and the step.
        solve = 2 * N_LABELS**3 / 3 + 2 * N_LABELS**2
        self.step = expand + curvature + gram + solve

    def pixel_pass(self, which: str) -> float:
        """Coefficients of labels, the residual there, its χ² and its projection on the basis."""
        return self.network + self.pixels[which] * (4 * self.k + 5)

    def fit(self, solution: Solution, which: str, starts: int) -> float:
        """One fit: pixels at its first start and where its first walk ends, two walks, the information inverted."""
        # A walk of i steps evaluates derivatives i times and, of its last step, only the value.
        walks = self.step * float(solution.iterations.mean()) + 2 * self.value
        return 2 * self.pixel_pass(which) + starts * self.value + walks + N_LABELS**3

    def first_guess(self) -> float:
        """The inverse network's answers, and which is nearer."""
        return self.guess + 2 * self.pixel_pass("all")

    def one(self, solution: Solution) -> float:
        return self.load + self.first_guess() + self.fit(solution, "all", 1)

    def catalog(self, everything: Solution, masked: Solution, refitted: np.ndarray) -> float:
        # All lines start from four places, hydrogen masked from seven; refits are counted without their steps.
        fits = self.fit(everything, "all", 4) + self.guess + self.fit(masked, "hmasked", 7)
        return self.load + self.first_guess() + fits + refitted.mean() * 2 * self.pixel_pass("all")


def accuracy(fits: Fits, one: Solution, results: dict) -> Iterator[Row]:
    """Where fits end: how far from the bottom of their valley, and how deep it is beside scipy's."""
    peers, scale = fits.peers, fits.bench.emulator.scale_labels
    m = len(fits.start)
    everything, _, refitted = results["catalog"]
    ours = {"fit": one, "catalog": everything}
    ends = {name: scale(solution.labels[:m]).numpy() for name, solution in ours.items()}
    ends |= {name: results[name] for name, _ in PEERS}
    for name, end in ends.items():
        inside = ~ours.get(name, one).at_bound[:m]
        distance = distance_to_minimum(peers, end, inside & np.isfinite(end).all(axis=1))
        for word, value in (("median", np.median(distance)), ("p90", np.quantile(distance, 0.9))):
            meaning = f"{word} distance to the converged minimum, worst label, {distance.size} spectra"
            # How well a peer does is no promise of ours.
            yield Row("fit", f"{name}, {word}", float(value), "σ", meaning, goal=LOW if name in ours else "")
    reference = peers.chi2(peers.each(reference_fit, fits.our_start, limits=peers.limits))
    # A refit is all lines from the solution without hydrogen, wherever that leads.
    judged = {"fit": np.ones(m, dtype=bool), "catalog": ~refitted[:m]}
    for name, rows in judged.items():
        excess = (peers.chi2(ends[name]) - reference)[rows]
        meaning = f"χ² within 1e-4 of least_squares (1e-10, our start, same limits) or below; {excess.size} spectra"
        yield Row("fit", f"{name}, as deep", float(np.mean(excess <= 1e-4)), "share", meaning, goal=HIGH)
        # A start may lead two methods to different minima; how often it leads hotdask to the better one.
        yield Row("fit", f"{name}, deeper", float(np.mean(excess < -1e-4)), "share", "χ² lower by over 1e-4")
