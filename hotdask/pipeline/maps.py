"""The tasks: one partition each, reading and writing files and returning a receipt.

Everything a task makes is on disk before its receipt; nothing is held on a worker that may die.
"""

import functools
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hotdask import config
from hotdask.emulator import load_emulator
from hotdask.errors import RunError
from hotdask.labels import LSF_NAMES
from hotdask.pipeline.plan import INPUTS, PLAN, read_group
from hotdask.schema import FITS
from hotdask.simulation import Simulation, write_visits
from hotdask.steps.label import Labeler
from hotdask.store.catalog import write_fits_part
from hotdask.store.cube import partition_files, read_partition, read_sidecar, write_partition, write_sidecar
from hotdask.store.lamost import read_spectra
from hotdask.store.receipts import Receipt, hash_files, write_receipt
from hotdask.store.staging import gather, write_staged

CUBE = "spectra.zarr"


def one_thread() -> None:
    """Keep a task to one thread: workers are as many as cores already."""
    torch.set_num_threads(1)


def _finish(run: str, step: str, partition: int, mark: str, rows: int, paths: list[Path], began: float) -> Receipt:
    receipt = Receipt(
        step=step,
        partition=partition,
        fingerprint=mark,
        rows=rows,
        files=hash_files(run, paths),
        extra={"seconds": round(time.monotonic() - began, 3)},
    )
    write_receipt(run, receipt)
    return receipt


def stage(run: str, part: int, mark: str, classes: tuple[str, ...]) -> Receipt:
    """Read one part of the input files, in input order; rows counts spectra and rejects."""
    began = time.monotonic()
    entries = read_group(Path(run, INPUTS), part).drop(columns=["size", "mtime_ns"])
    block, rejects = read_spectra(entries, classes=classes)
    return _finish(run, "stage", part, mark, len(entries), write_staged(run, part, block, rejects), began)


def ingest(run: str, partition: int, mark: str) -> Receipt:
    """Gather one partition from staged parts, and write it as one shard of the cube and one part of its sidecar."""
    began = time.monotonic()
    plan = read_group(Path(run, PLAN), partition)
    arrays = gather(run, plan.pop("staged_part").to_numpy(), plan.pop("staged_index").to_numpy())
    write_partition(Path(run, CUBE), partition, arrays, plan)
    paths = [*partition_files(Path(run, CUBE), partition), write_sidecar(run, partition, plan)]
    return _finish(run, "ingest", partition, mark, len(plan), paths, began)


@functools.lru_cache(maxsize=1)
def labeler(emulator: str | None, identity: str, fit: str, normalization: str) -> Labeler:
    """The labeler of this process; settings come as JSON so that they can be a cache key.

    Raises
    ------
    RunError
        If the emulator file is not the one the run was started with.
    """
    loaded = load_emulator(emulator)
    if loaded.id != identity:
        raise RunError(
            f"this worker's emulator file is {loaded.id}, the run uses {identity}; give all workers one file"
        )
    return Labeler(loaded, config.Fit(**json.loads(fit)), config.Normalize(**json.loads(normalization)))


def make_labeler(settings: config.Settings, identity: str) -> Labeler:
    """`labeler` for a run's settings."""
    return labeler(
        settings.fit.emulator, identity, settings.fit.model_dump_json(), settings.normalize.model_dump_json()
    )


def fit(run: str, partition: int, mark: str, settings: config.Settings, identity: str) -> Receipt:
    """Both fits of one partition."""
    one_thread()
    began = time.monotonic()
    model = make_labeler(settings, identity)
    arrays = read_partition(Path(run, CUBE), partition)
    lsf = np.column_stack([arrays[name] for name in LSF_NAMES])
    ivar = model.usable(arrays["ivar"], arrays["andmask"], arrays["ormask"])
    labelled = model.label(arrays["flux"], ivar, arrays["rv"], lsf)
    # The merged labels are made again with the catalog, which needs nothing but the two fits for it.
    columns = {c.name: labelled[c.name] for c in FITS if c.name in labelled}
    columns["specid"] = read_sidecar(run, partition, columns=["specid"])["specid"].to_numpy()
    columns["row"] = settings.cube.partition_size * partition + np.arange(len(ivar))
    return _finish(run, "fit", partition, mark, len(ivar), [write_fits_part(run, partition, columns)], began)


def simulate(folder: str, visits: pd.DataFrame, simulation: Simulation, emulator: str | None) -> pd.DataFrame:
    """Write some visits of a simulated survey; returns their truth."""
    one_thread()
    return write_visits(folder, visits, load_emulator(emulator), simulation)
