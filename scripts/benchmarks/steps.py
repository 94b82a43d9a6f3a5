"""Reading, rest frame, continuum, the chain of them all on arrays, and its memory."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from astropy.io import fits
from scipy.interpolate import CubicSpline

from benchmarks.common import HIGH, LOW, SCRIPT, Bench, Row, interleave
from hotdask import windows
from hotdask.emulator import load_emulator
from hotdask.readers.lamost import read_spectra
from hotdask.simulation.visits import visit_path, write_visits
from hotdask.spectra.normalize import Normalizer
from hotdask.spectra.restframe import pixel_shift, to_rest_frame
from hotdask.steps.label import Labeler

FILES = 256
"""Files read, at most: they also have to be written."""


# Reading


def read(bench: Bench) -> Iterator[Row]:
    visits = bench.visits.iloc[:FILES]
    write_visits(bench.folder, visits, bench.emulator, bench.simulation)
    paths = [str(visit_path(bench.folder, visit)) for visit in visits.to_dict("records")]
    entries, n = pd.DataFrame({"path": paths}), len(paths)
    calls = {
        "ours": (n, lambda: read_spectra(entries)),
        "astropy": (n, lambda: [read_with_astropy(path) for path in paths]),
    }
    times, results = interleave(calls, bench.repeats)
    block, rejects = results["ours"]
    assert not len(rejects), rejects
    same = [
        all(np.array_equal(array[i], other) for array, other in zip(arrays_of(block), theirs, strict=True))
        for i, theirs in enumerate(results["astropy"])
    ]
    yield times["ours"].row("read", "read", ".fits.gz in three layouts to arrays and all metadata, files cached")
    ratio = times["ours"].faster_than(times["astropy"])
    yield Row("read", "× astropy", ratio, "×", "fits.open(path), the four arrays and Z", goal=HIGH)
    yield Row(
        "read", "identical", float(np.mean(same)), "share", "spectra whose arrays equal astropy's bit by bit", goal=HIGH
    )


def arrays_of(block) -> tuple[np.ndarray, ...]:
    return block.flux, block.ivar, block.andmask, block.ormask


def read_with_astropy(path: str) -> tuple[np.ndarray, ...]:
    """Flux, ivar, andmask, ormask in native byte order, as one would write it for files of known layout."""
    with fits.open(path) as hdus:
        if hdus[0].data is None:
            table = hdus[1].data
            rows = [table[name][0] for name in ("FLUX", "IVAR", "ANDMASK", "ORMASK")]
        else:
            rows = [hdus[0].data[i] for i in (0, 1, 3, 4)]
        _ = hdus[0].header["Z"]
        return *(row.astype(np.float32) for row in rows[:2]), *(row.astype(np.uint16) for row in rows[2:])


# Rest frame


def resample(bench: Bench) -> Iterator[Row]:
    flux, ivar, rv = bench.observed
    m = bench.n_peers
    calls = {
        "ours": (bench.n, lambda: to_rest_frame(flux, ivar, rv)),
        "spline": (m, lambda: [spline_to_rest(*spectrum) for spectrum in zip(flux[:m], ivar[:m], rv[:m], strict=True)]),
    }
    times, _ = interleave(calls, bench.repeats)
    yield times["ours"].row("resample", "resample", "observed to rest frame: flux, ivar and mask")
    ratio = times["ours"].faster_than(times["spline"])
    yield Row(
        "resample", "× spline", ratio, "×", "scipy CubicSpline of flux, interp of variance, per spectrum", goal=HIGH
    )
    yield Row(
        "resample",
        "rms",
        rest_frame_difference(bench),
        "of flux",
        "against CubicSpline, models without noise",
        goal=LOW,
    )


def spline_to_rest(flux: np.ndarray, ivar: np.ndarray, rv: float) -> tuple[np.ndarray, np.ndarray]:
    pixel = np.arange(windows.N_OBSERVED)
    position = windows.REST_OFFSET + np.arange(windows.N_REST) + pixel_shift(np.array([rv]))
    good = ivar > 0
    variance = np.divide(1, ivar, out=np.full(ivar.shape, np.inf), where=good)
    with np.errstate(invalid="ignore"):
        variance = np.interp(position, pixel, variance, left=np.inf, right=np.inf)
    return CubicSpline(pixel, flux)(position), 1 / variance


def rest_frame_difference(bench: Bench) -> float:
    """Root mean square of ours minus spline on noiseless models, where both have data."""
    rv = bench.observed[2][: bench.n_peers]
    flux = np.ones((len(rv), windows.N_OBSERVED), dtype=np.float32)
    labels = bench.visits.filter(regex="_true$").drop(columns="rv_true").to_numpy()[: len(rv)]
    inner = slice(windows.REST_OFFSET, windows.REST_OFFSET + windows.N_REST)
    flux[:, inner] = bench.emulator.flux(labels)
    # Beyond the model there is an edge, which no interpolation follows.
    ivar = np.zeros_like(flux)
    ivar[:, inner] = 1
    ours, weight = to_rest_frame(flux, ivar, rv)
    theirs = np.array([spline_to_rest(f, np.ones_like(f), v)[0] for f, v in zip(flux, rv, strict=True)])
    return float(np.sqrt(np.mean((ours - theirs)[weight > 0] ** 2)))


# Normalization


def normalize(bench: Bench) -> Iterator[Row]:
    flux, ivar = bench.rest
    normalizer, banded, dense = bench.labeler.normalizer, Normalizer(windows.rest_wavelength(), slope=False), Dense()
    calls = {
        "ours": (bench.n, lambda: normalizer.normalize(flux, ivar)),
        "banded": (bench.n, lambda: banded.normalize(flux, ivar)),
        "dense": (bench.n, lambda: dense.normalize(flux, ivar)),
    }
    times, _ = interleave(calls, bench.repeats)
    yield times["ours"].row("normalize", "normalize", "continuum and slope, as the catalog is made")
    yield times["banded"].row("normalize", "Eq 1 alone", "without the slope polynomial")
    ratio = times["banded"].faster_than(times["dense"])
    yield Row(
        "normalize", "× dense", ratio, "×", "Eq 1 alone by two dense float32 products with the same kernel", goal=HIGH
    )

    m = bench.n_peers
    ours, our_ivar, _ = banded.normalize(flux[:m], ivar[:m])
    exact, _ = dense.normalize(flux[:m].astype(np.float64), ivar[:m].astype(np.float64))
    defined = our_ivar > 0
    deviation = float(np.abs(ours[defined] / exact[defined] - 1).max())
    yield Row("normalize", "deviation", deviation, "of flux", "largest, from the dense product in float64", goal=LOW)


class Dense:
    """Eq 1 as matrix products with the whole kernel."""

    def __init__(self):
        wavelength = windows.rest_wavelength()
        self.kept = np.flatnonzero(~windows.inside(wavelength, windows.CONTINUUM_EXCLUDE))
        distance = (wavelength[self.kept, None] - wavelength) / 50.0
        kernel = torch.from_numpy(np.where(np.abs(distance) <= 5, np.exp(-(distance**2)), 0))
        self.kernel = {np.dtype(np.float64): kernel, np.dtype(np.float32): kernel.float()}

    def normalize(self, flux: np.ndarray, ivar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kernel = self.kernel[flux.dtype]
        flux, ivar = torch.from_numpy(flux), torch.from_numpy(ivar)
        weight = (ivar[:, self.kept] > 0).to(flux.dtype)
        continuum = ((flux[:, self.kept] * weight) @ kernel) / (weight @ kernel)
        return (flux / continuum).numpy(), (ivar * continuum**2).numpy()


# The whole chain, and its memory


def label(bench: Bench) -> Iterator[Row]:
    observed, labeler = bench.observed, bench.labeler
    calls = {
        "prepare": (bench.n, lambda: labeler.prepare(*observed)),
        "label": (bench.n, lambda: labeler.label(*observed)),
    }
    times, _ = interleave(calls, bench.repeats)
    yield times["prepare"].row("label", "prepare", "rest frame, indices, continuum, its bias from bad pixels")
    yield times["label"].row("label", "label", "Labeler.label: all of it, observed pixels to merged labels")


def memory(bench: Bench) -> Iterator[Row]:
    path = bench.folder / "partition.npz"
    np.savez(path, *bench.observed)
    command = [sys.executable, str(SCRIPT), "--label-partition", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    meaning = f"resident, of a process that labels a partition of {bench.n} spectra"
    yield Row("memory", "peak memory", json.loads(done.stdout) / 2**20, "MiB", meaning)


def label_partition(path: str) -> int:
    """Label saved spectra and return the peak resident memory of this process [bytes]."""
    with np.load(path) as saved:
        observed = [saved[name] for name in saved.files]
    Labeler(load_emulator()).label(*observed)
    # A child's ru_maxrss starts from its parent's; the kernel's own high-water mark does not.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(int(row.split()[1]) for row in status.read_text().splitlines() if row.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
