"""Whole runs on a cluster of this machine, files to catalog, measured by the CPU time of all processes."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common import LOW, SCRIPT, Bench, Row, simulate
from benchmarks.steps import read_with_astropy
from hotdask import config
from hotdask.simulation.visits import visit_path, write_visits

if TYPE_CHECKING:
    from distributed import Client

TINY = 64
"""Spectra of the run that says what starting costs."""
SCHEDULED = 1200
"""Partitions of the run that says what scheduling costs: 1.2 million spectra have as many of the usual size."""
BASE = 5000
ROUNDS = 3


@cache
def survey(bench: Bench, n: int) -> tuple[str, ...]:
    """Files of a simulated survey of n spectra."""
    simulation, visits = simulate(n, bench.emulator)
    folder = bench.folder / f"survey-{n}"
    write_visits(folder, visits, bench.emulator, simulation)
    return tuple(str(visit_path(folder, visit)) for visit in visits.to_dict("records"))


@dataclass(frozen=True)
class Ran:
    """CPU seconds of all processes of a run up to the catalog, and its profile if one was made."""

    spectra: int
    cpu: float
    steps: list[dict]


def whole_run(bench: Bench, n: int, *, workers: int, size: int | None = None, profile: bool = False) -> Ran:
    """Run n spectra, files to catalog, in processes of their own."""
    survey(bench, n)
    out = bench.folder / f"run-{time.monotonic_ns()}"
    files = f"{bench.folder}/survey-{n}/**/*.fits*"
    order = {"files": files, "out": str(out), "workers": workers, "size": size, "profile": profile}
    command = [sys.executable, str(SCRIPT), "--whole-run", json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the run failed:\n{done.stderr}")
    steps = json.loads((out / "profile" / "kernels.json").read_text())["steps"] if profile else []
    shutil.rmtree(out)
    return Ran(n, json.loads(done.stdout.splitlines()[-1]), steps)


def do_whole_run(order: dict) -> float:
    """What `whole_run` has its process do; CPU seconds of this one, which holds the scheduler, and of its workers."""
    # Dask takes seconds to import; other groups do without.
    from hotdask.cluster.client import open_client
    from hotdask.pipeline.execute import run

    settings = config.make_settings(
        {"out": order["out"], "input": {"spectra": order["files"]}},
        cluster__workers=order["workers"],
        cluster__dashboard="127.0.0.1:0",
    )
    if order["size"]:
        # Not checked: partitions smaller than anyone should have are a test of the scheduler.
        cube = config.Cube.model_construct(partition_size=order["size"])
        settings = settings.model_copy(update={"cube": cube})
    with open_client(settings.cluster) as client:
        client.wait_for_workers(order["workers"])
        before = _processes(client)
        run(settings, until="catalog", client=client, profile=order["profile"])
        after = _processes(client)
        # The time of a worker that died would be missing.
        if before.keys() != after.keys():
            raise RuntimeError(f"workers were lost: {sorted(before.keys() ^ after.keys())}")
        return sum(after.values()) + time.process_time()


def _processes(client: "Client") -> dict[int, float]:
    """CPU seconds of each worker by its process."""
    return dict(client.run(lambda: (os.getpid(), time.process_time())).values())


def each(large: Ran, small: Ran) -> float:
    """CPU seconds of one more spectrum: what starting costs is in both runs."""
    return (large.cpu - small.cpu) / (large.spectra - small.spectra)


def dask(bench: Bench) -> Iterator[Row]:
    n = bench.survey
    cost = {1: [], 2: []}
    for _ in range(min(bench.repeats, ROUNDS)):
        for workers, costs in cost.items():
            costs.append(each(whole_run(bench, n, workers=workers), whole_run(bench, TINY, workers=workers)))
    for workers, costs in cost.items():
        meaning = f"CPU of all processes, files to catalog, {n} spectra, start-up (a run of {TINY}) subtracted"
        yield Row(
            "dask", f"{workers} worker{'s' * (workers > 1)}", 1e3 * float(np.median(costs)), "ms/spectrum", meaning
        )
    ratio = float(np.median(np.divide(cost[2], cost[1])))
    yield Row("dask", "CPU, 2 workers / 1", ratio, "×", "CPU time per spectrum; 1 where nothing is wasted", goal=LOW)
    steps = whole_run(bench, n, workers=2, profile=True).steps
    kernels = [kernel for step in steps for kernel in step["kernels"]]
    inside = sum(k["cpu"] for k in kernels)
    outside = sum(k["cpu"] for k in kernels if k["name"] == "outside kernels")
    meaning = "of the CPU time of read, ingest and fit tasks"
    yield Row("dask", "outside kernels", outside / inside, "share", meaning, goal=LOW)
    spent = sum(step["workers"] for step in steps if step["kernels"])
    meaning = "of the workers' CPU time in the same steps"
    yield Row("dask", "outside tasks", 1 - inside / spent, "share", meaning, goal=LOW)
    size = config.Cube().partition_size
    memory = max(step["memory"] for step in steps)
    yield Row("dask", "worker's peak memory", memory, "MiB", f"resident, partitions of {size}")


def scheduler(bench: Bench) -> Iterator[Row]:
    steps = whole_run(bench, 2 * SCHEDULED, workers=2, size=2, profile=True).steps
    meaning = f"CPU of scheduler and launcher, {SCHEDULED} partitions of 2 spectra, files to catalog"
    yield Row("scheduler", "scheduler", sum(step["launcher"] for step in steps), "s", meaning)
    for step in steps:
        yield Row("scheduler", f"scheduler, {step['name']}", step["launcher"], "s", "this step of it")


def end_to_end(bench: Bench) -> Iterator[Row]:
    n = bench.survey
    files = survey(bench, n)
    ours, theirs, starts = [], [], []
    for _ in range(min(bench.repeats, ROUNDS)):
        small, large = whole_run(bench, TINY, workers=1), whole_run(bench, n, workers=1)
        began = time.process_time()
        for path in files:
            read_with_astropy(path)
        theirs.append((time.process_time() - began) / n)
        ours.append(each(large, small))
        starts.append(small.cpu - TINY * ours[-1])
    meaning = f"CPU of all processes, .fits.gz to catalog, {n} spectra, start-up subtracted"
    yield Row("end_to_end", "end to end", 1e3 * float(np.median(ours)), "ms/spectrum", meaning)
    meaning = "fits.open(path), the four arrays and Z"
    yield Row("end_to_end", "astropy alone", 1e3 * float(np.median(theirs)), "ms/spectrum", meaning)
    ratio = float(np.median(np.divide(ours, theirs)))
    meaning = "CPU: the whole chain over reading with astropy"
    yield Row("end_to_end", "end to end / astropy", ratio, "×", meaning, goal=LOW)
    yield Row("end_to_end", "start-up", float(np.median(starts)), "s", "CPU: imports, emulator, cluster of one")


def scale(bench: Bench) -> Iterator[Row]:
    workers = min(2, os.cpu_count() or 1)
    start = whole_run(bench, TINY, workers=workers)
    costs = {n: each(whole_run(bench, n, workers=workers), start) for n in (BASE, bench.scale)}
    for n, cost in costs.items():
        meaning = "CPU of all processes, files to catalog, start-up subtracted"
        yield Row("scale", f"{n} spectra", 1e3 * cost, "ms/spectrum", meaning)
    meaning = f"cost per spectrum of {bench.scale} over that of {BASE}"
    yield Row("scale", "cost, N / 5000", costs[bench.scale] / costs[BASE], "×", meaning, goal=LOW)
