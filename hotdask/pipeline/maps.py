"""The tasks: one partition each, reading and writing files and returning a receipt.

Everything a task makes is on disk before its receipt; nothing is held on a worker that may die.
"""

import functools
import json
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hotdask import config
from hotdask.cluster.identity import code_identity
from hotdask.emulator import Emulator, load_emulator
from hotdask.errors import MissingInputError, RunError, WorkerError
from hotdask.labels import LSF_NAMES
from hotdask.pipeline.plan import INPUTS, PLAN, list_batches
from hotdask.readers.inputs import SIZE, TIME
from hotdask.readers.lamost import OVERRIDES, read_spectra
from hotdask.schema import CUBE as CUBE_VARIABLES
from hotdask.schema import fits_columns
from hotdask.steps.label import Labeler
from hotdask.steps.velocity import Observed
from hotdask.store.catalog import write_fits_part
from hotdask.store.cube import (
    cube_place,
    partition_files,
    read_partition,
    read_sidecar,
    write_partition,
    write_sidecar,
)
from hotdask.store.grouped import read_group
from hotdask.store.modelerror import ModelError, read_model_error
from hotdask.store.receipts import Receipt, check_receipt, hash_files, read_receipt, write_receipt
from hotdask.store.staging import STAGED_INDEX, STAGED_PART, gather, is_staged, write_staged
from hotdask.timing import Timings, kernel, timings


def one_thread() -> None:
    """Keep a task to one thread: workers are as many as cores already."""
    torch.set_num_threads(1)


def _finish(run: str, step: str, partition: int, mark: str, rows: int, paths: list[Path], spent: Timings) -> Receipt:
    with kernel("hash"):
        files = hash_files(run, paths)
    kernels = spent.so_far()
    seconds = round(sum(wall for _, _, wall in kernels), 3)
    extra = {"seconds": seconds, "kernels": kernels, "code": code_identity()}
    receipt = Receipt(step=step, partition=partition, fingerprint=mark, rows=rows, files=files, extra=extra)
    write_receipt(run, receipt)
    return receipt


def _done(run: str, step: str, partition: int, mark: str) -> Receipt | None:
    """The receipt of a task that was done before and stands: its worker died, or another one was quicker."""
    receipt = read_receipt(run, step, partition)
    return receipt if receipt is not None and check_receipt(run, receipt, mark) is None else None


def stage(run: str, part: int, mark: str, classes: tuple[str, ...], gone: tuple[str, ...] = ()) -> Receipt:
    """Read one part of the input files, in input order; rows counts spectra and rejects.

    Files that the command saw must be there for the worker too, except ``gone``, which it no longer sees either.

    Raises
    ------
    MissingInputError
        If one is not.
    """
    if receipt := _done(run, "stage", part, mark):
        return receipt
    with timings() as spent:
        with kernel("list files"):
            entries = read_group(list_batches(run, INPUTS), part)
            seen = entries.loc[entries[SIZE] >= 0, "path"]
            entries = entries.drop(columns=[SIZE, TIME])
        with kernel("read files"):
            block, rejects = read_spectra(entries, classes=classes)
        _check_seen(rejects, set(seen) - set(gone))
        with kernel("write staged"):
            paths = write_staged(run, part, block, rejects)
        return _finish(run, "stage", part, mark, len(entries), paths, spent)


def _check_seen(rejects: pd.DataFrame, seen: set[str]) -> None:
    missing = rejects.loc[(rejects["reason"] == "not_found") & rejects["path"].isin(seen), "path"]
    if len(missing):
        raise MissingInputError(socket.gethostname(), tuple(missing))


def ingest(run: str, partition: int, mark: str) -> Receipt:
    """Gather one partition from staged parts, and write it as one shard of the cube and one part of its sidecar.

    Staged parts are gone once the cube was complete: a partition lost later is read from its files again.
    """
    if receipt := _done(run, "ingest", partition, mark):
        return receipt
    with timings() as spent:
        with kernel("read plan"):
            plan = read_group(list_batches(run, PLAN), partition)
            parts, indices = plan.pop(STAGED_PART).to_numpy(), plan.pop(STAGED_INDEX).to_numpy()
        if is_staged(run, parts):
            with kernel("gather"):
                arrays = gather(run, parts, indices)
        else:
            with kernel("read files"):
                arrays = _read_again(plan)
        with kernel("write cube"):
            write_partition(cube_place(run), partition, arrays, plan)
        with kernel("write sidecar"):
            paths = [*partition_files(cube_place(run), partition), write_sidecar(run, partition, plan)]
        return _finish(run, "ingest", partition, mark, len(plan), paths, spent)


def _read_again(plan: pd.DataFrame) -> dict[str, np.ndarray]:
    """Pixels of a partition's spectra from their files; what the plan says of them holds, whatever the header says."""
    block, rejects = read_spectra(plan[["path", *OVERRIDES]])
    _check_seen(rejects, set(plan["path"]))
    if len(rejects):
        reject = rejects.iloc[0]
        raise RunError(
            f"{reject['path']}: could be read when the run began, now it cannot ({reject['detail']}); put it back"
        )
    return {v.name: getattr(block, v.name) for v in CUBE_VARIABLES}


@functools.lru_cache(maxsize=1)
def labeler(fit: str, normalization: str, identity: str, device: str) -> Labeler:
    """The labeler of this process; settings come as JSON so that they can be a cache key.

    Raises
    ------
    InputError
        If this machine has no such device.
    WorkerError
        If an emulator file is not the one the run was started with.
    """
    settings = config.Fit(**json.loads(fit))
    models = load_models(settings, device)
    if models.id != identity:
        raise WorkerError(f"this worker's emulator is {models.id}, the run uses {identity}; give all workers one file")
    return models.labeler(settings, config.Normalize(**json.loads(normalization)), device)


@dataclass(frozen=True)
class Models:
    """What the files that ``[fit]`` names hold.

    Attributes
    ----------
    emulator : hotdask.emulator.Emulator
        That of the fits.
    refining : hotdask.emulator.Emulator or None
        That which takes them on.
    error : ModelError or None
    compared : hotdask.emulator.Emulator or None
        That whose labels stand beside.
    """

    emulator: Emulator
    refining: Emulator | None
    error: ModelError | None
    compared: Emulator | None

    @property
    def id(self) -> str:
        """Name of all that labels depend on besides settings."""
        parts = [part.id for part in (self.emulator, self.refining, self.error) if part is not None]
        return "+".join(parts if self.compared is None else [*parts, f"compare:{self.compared.id}"])

    def labeler(self, settings: config.Fit, normalization: config.Normalize, device: str) -> Labeler:
        """The labeler that uses them."""
        error = None if self.error is None else self.error.values
        return Labeler(
            self.emulator,
            settings,
            normalization,
            refining=self.refining,
            model_error=error,
            compared=self.compared,
            device=device,
        )


def load_models(settings: config.Fit, device: str) -> Models:
    """Read the files that ``[fit]`` names."""
    return Models(
        load_emulator(settings.emulator),
        None if settings.refine is None else load_emulator(settings.refine, device=device),
        None if settings.model_error is None else read_model_error(settings.model_error),
        load_emulator(settings.compare) if settings.compare else None,
    )


def make_labeler(settings: config.Settings, identity: str, device: str = "cpu") -> Labeler:
    """`labeler` for a run's settings."""
    parts = (section.model_dump_json() for section in (settings.fit, settings.normalize))
    return labeler(*parts, identity, device)


def read_observed(run: str | Path, partition: int, model: Labeler, rows: slice | np.ndarray = slice(None)) -> Observed:
    """Spectra of a partition of the cube, or some rows of it, as they are labeled."""
    arrays = {name: values[rows] for name, values in read_partition(cube_place(run), partition).items()}
    ivar = model.usable(arrays["ivar"], arrays["andmask"], arrays["ormask"])
    lsf = np.column_stack([arrays[name] for name in LSF_NAMES])
    return Observed(arrays["flux"], ivar, arrays["rv"], lsf, arrays["noise_power"])


def fit(run: str, partition: int, mark: str, settings: config.Settings, identity: str) -> Receipt:
    """Both fits of one partition."""
    if receipt := _done(run, "fit", partition, mark):
        return receipt
    one_thread()
    with timings() as spent:
        with kernel("load emulator"):
            model = make_labeler(settings, identity, settings.cluster.device)
        with kernel("read cube"):
            seen = read_observed(run, partition, model)
        with kernel("label"):
            labeled = model.label(seen.flux, seen.ivar, seen.rv, seen.lsf, seen.noise)
        with kernel("write fits"):
            # The merged labels are made again with the catalog, which needs nothing but the two fits for it.
            declared = fits_columns(settings.fit.compared)
            columns = {c.name: labeled[c.name] for c in declared if c.name in labeled}
            columns["specid"] = read_sidecar(run, partition, columns=["specid"])["specid"].to_numpy()
            columns["row"] = settings.cube.partition_size * partition + np.arange(len(seen))
            path = write_fits_part(run, partition, columns, declared=declared)
        return _finish(run, "fit", partition, mark, len(seen), [path], spent)
