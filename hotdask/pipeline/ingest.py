"""From files to the cube: read a batch, plan where its spectra go, write the partitions."""

import os
from collections import defaultdict
from collections.abc import Mapping

import pandas as pd
from distributed import Client

from hotdask.cluster.tasks import run_tasks
from hotdask.errors import MissingInputError, RunError, WorkerError
from hotdask.pipeline import maps
from hotdask.pipeline.plan import (
    INPUTS,
    PLAN,
    REJECTED,
    Batch,
    batch_path,
    count_files,
    drop_duplicates,
    drop_known,
    read_rejects,
    sky_order,
)
from hotdask.pipeline.state import State
from hotdask.readers.desi import file_of
from hotdask.schema import REJECTS, to_table
from hotdask.store.cube import create_cube, cube_place, layout_files, read_layout
from hotdask.store.grouped import split, write_grouped
from hotdask.store.parquet import read_table, write_table
from hotdask.store.receipts import Receipt, hash_files, write_receipt
from hotdask.store.staging import FOLDER as STAGING
from hotdask.store.staging import clear_staging, read_staged_meta, read_staged_rejects, staged_path

_NOT_WRONG = ("class_not_selected", "duplicate", "not_a_target")
"""Reasons that say nothing against a file and do not count against ``input.max_reject_share``."""


def ingest(state: State, client: Client) -> None:
    """Read what no partition of the cube holds yet, batch by batch; the order of a batch is that of the sky."""
    for number in state.todo("plan", range(len(state.batches))):
        _plan(state, client, state.batches[number])
    folder, layout = state.folder, state.layout
    if state.todo("layout", [0]):
        _lay_out(state)
    left = state.todo("ingest", range(len(layout.counts)))
    if left and (folder / STAGING).exists():
        # A staged part that went bad is not gathered from; its spectra are read again.
        parts = range(sum(batch.parts for batch in state.batches))
        for part in state.todo("stage", [p for p in parts if staged_path(folder, p, "npy").exists()]):
            staged_path(folder, part, "npy").unlink(missing_ok=True)
    run_tasks(
        client,
        "ingest",
        {p: (maps.ingest, str(folder), p, state.mark("ingest", p)) for p in left},
        total=layout.n_spectrum,
        done=layout.n_spectrum - sum(layout.counts[p] for p in left),
        rows=lambda receipt: receipt.rows,
        patience=state.settings.cluster.patience,
        again=_put_back,
    )
    n_reject = len(read_rejects(folder))
    state.check_complete("ingest")
    if layout.n_spectrum + n_reject != state.n_input:
        raise RunError(
            f"{state.n_input} files, but {layout.n_spectrum} spectra and {n_reject} rejects; {folder} is damaged"
        )
    clear_staging(folder)
    state.record(
        "ingest", 0, files=state.n_input, spectra=layout.n_spectrum, rejects=n_reject, batches=len(state.batches)
    )
    state.echo(f"ingest: {layout.n_spectrum} spectra in the cube, {n_reject} rejected")


def _missing(error: WorkerError) -> list[str]:
    """Inputs that a worker misses and this process, which saw them, does not see any more either."""
    paths = error.paths if isinstance(error, MissingInputError) else ()
    return [path for path in paths if not os.path.exists(file_of(path) if "#" in path else path)]


def _put_back(partition: int, error: WorkerError) -> None:
    for path in _missing(error):
        raise RunError(f"{path}: could be read when the run began, now it cannot (no such file); put it back")


class _Gone:
    """Makes tasks of `maps.stage` do without files that are gone for all, so that these become rejects."""

    def __init__(self, tasks: Mapping[int, tuple]):
        self._tasks, self._gone = tasks, defaultdict(set)

    def __call__(self, part: int, error: WorkerError) -> tuple | None:
        missing = _missing(error)
        for folder in sorted({os.path.dirname(path) for path in missing}):
            if not os.path.isdir(folder):
                raise RunError(f"{folder}: the folder was there when the run began, now it is gone; put it back")
        self._gone[part].update(missing)
        return (*self._tasks[part], tuple(sorted(self._gone[part]))) if missing else None


def _plan(state: State, client: Client, batch: Batch) -> None:
    """Read all files of a batch into staged parts, and say which spectra go where."""
    folder, settings = state.folder, state.settings
    size, parts = settings.cube.partition_size, range(batch.first, batch.first + batch.parts)
    files = dict(zip(parts, split(batch.files, size), strict=True))
    left = state.todo("stage", parts)
    tasks = {p: (maps.stage, str(folder), p, state.mark("stage", p), settings.input.classes) for p in left}
    run_tasks(
        client,
        "read",
        tasks,
        total=batch.files,
        done=batch.files - sum(files[p] for p in left),
        rows=lambda receipt: receipt.rows,
        patience=settings.cluster.patience,
        again=_Gone(tasks),
    )
    earlier = [batch_path(folder, PLAN, number) for number in range(batch.number)]
    known = [read_table(path, ["specid", "obsid", "path"]).to_pandas() for path in earlier]
    fresh, repeated = read_staged_meta(folder, parts), []
    if known:
        fresh, rejects = drop_known(fresh, pd.concat(known, ignore_index=True))
        repeated.append(rejects)
    kept, rejects = drop_duplicates(fresh)
    rejects = pd.concat([read_staged_rejects(folder, parts), *repeated, rejects], ignore_index=True)
    rejected, planned = (batch_path(folder, table, batch.number) for table in (REJECTED, PLAN))
    write_table(rejected, to_table(rejects.sort_values("path"), REJECTS))
    _check_rejects(state, batch, kept)
    write_grouped(planned, kept.iloc[sky_order(kept)], split(len(kept), size))
    files = hash_files(folder, [batch_path(folder, INPUTS, batch.number), planned, rejected])
    write_receipt(folder, Receipt("plan", batch.number, state.mark("plan", batch.number), len(kept), files=files))


def _lay_out(state: State) -> None:
    """Make the cube, or room in it for another batch."""
    cube, layout = cube_place(state.folder), state.layout
    try:
        grown = read_layout(cube).batches == layout.batches[:-1]
    except RunError:
        grown = False
    if not grown:
        # What an interrupted ingest of other inputs left, or a damaged layout, is nothing to go on with.
        (cube / "zarr.json").unlink(missing_ok=True)
    create_cube(cube, layout)
    files = hash_files(state.folder, layout_files(cube))
    write_receipt(state.folder, Receipt("layout", 0, state.marks["layout"], layout.n_spectrum, files=files))


def _check_rejects(state: State, batch: Batch, kept: pd.DataFrame) -> None:
    """Stop where too many of all files so far are rejected: one bad file among many does not stop a run, ever."""
    rejects = read_rejects(state.folder, batches=batch.number + 1)
    wrong, files = rejects[~rejects["reason"].isin(_NOT_WRONG)], count_files(state.folder, batches=batch.number + 1)
    reasons = ", ".join(f"{n} {reason}" for reason, n in rejects["reason"].value_counts().items())
    if len(wrong) > state.settings.input.max_reject_share * files or not (len(kept) or batch.number):
        remedy = (
            "choose other input.classes" if not len(wrong) else "correct the inputs, or raise input.max_reject_share"
        )
        raise RunError(
            f"{len(rejects)} of {files} files are not used ({reasons}); see "
            f"{batch_path(state.folder, REJECTED, batch.number)}; {remedy}"
        )
