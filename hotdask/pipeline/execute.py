"""A run from files to report: what is done already, what is left, and how it ends."""

import importlib.metadata
import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow.parquet as pq
from distributed import Client, Future, as_completed

import hotdask
from hotdask import config
from hotdask.errors import RunError, SettingsError
from hotdask.pipeline import maps, tables
from hotdask.pipeline.cluster import GPU, open_client
from hotdask.pipeline.pages import write_report
from hotdask.pipeline.plan import (
    PLAN,
    check_inputs,
    check_settings,
    drop_duplicates,
    fingerprint,
    sky_order,
    write_grouped,
)
from hotdask.pipeline.profile import Profile, profiled
from hotdask.pipeline.progress import Progress
from hotdask.report.tracks import read_tracks
from hotdask.schema import REJECTS, SPECTRA, TRUTH, to_table
from hotdask.steps.label import Labeler
from hotdask.store.atomic import remove_folder, write_text
from hotdask.store.catalog import is_sound
from hotdask.store.cube import create_cube, n_partitions
from hotdask.store.inputs import list_inputs
from hotdask.store.parquet import count_rows, read_table, write_table
from hotdask.store.receipts import Receipt, check_receipt, hash_files, list_receipts, write_receipt
from hotdask.store.staging import clear_staging, read_staged_meta, read_staged_rejects

REJECTED, SUMMARY, REPORT = "rejects.parquet", "run.json", "report/index.html"
STEPS = ("ingest", "fit", "catalog", "report")
Step = Literal["ingest", "fit", "catalog", "report"]

_IN_FLIGHT = 3
"""Tasks a worker thread has waiting: enough never to idle, few enough that a lost scheduler loses little."""
_PACKAGES = ("dask", "distributed", "numpy", "scipy", "torch", "astropy", "pyarrow", "xarray", "zarr", "pandas")
_NOT_WRONG = ("class_not_selected",)
"""Reasons that are the user's own choice and do not count against ``input.max_reject_share``."""


def run(
    settings: config.Settings | str | Path,
    *,
    until: Step = "report",
    client: Client | None = None,
    profile: bool = False,
    echo: Callable[[str], None] = print,
) -> dict:
    """Run the pipeline, or what is left of it.

    Parameters
    ----------
    settings : hotdask.config.Settings or path
        Settings, or the TOML file that holds them.
    until : {"ingest", "fit", "catalog", "report"}
        Last step wanted.
    client : distributed.Client, optional
        Cluster to use; default: the one ``settings.cluster`` describes.
    profile : bool
        Whether to write ``OUT/profile``: Dask's performance report, and the seconds of each kernel. No result depends
        on it.
    echo : callable
        Told what happens, a line at a time.

    Returns
    -------
    dict
        The content of ``run.json``.

    Raises
    ------
    HotdaskError
        If settings, inputs or the run's directory do not allow it, or a partition failed; what is done stays done,
        and the same call goes on from there.
    """
    if not isinstance(settings, config.Settings):
        settings = config.load_settings(settings)
    # Workers may live in another folder, and later commands be given from another.
    settings = settings.absolute()
    _check_truth(settings.report.truth)
    if settings.report.tracks is not None:
        read_tracks(settings.report.tracks)
    folder = Path(settings.out)
    entries = list_inputs(settings.input)
    here = settings.cluster.scheduler is None and client is None
    # Elsewhere workers may have the device that this machine lacks.
    device = settings.cluster.device if here else "cpu"
    emulator, refining = maps.load_emulators(settings.fit, device)
    identity = maps.identify(emulator, refining)
    # Refuses settings the emulators do not fit, before a run begins with them.
    Labeler(emulator, settings.fit, settings.normalize, refining=refining, device=device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be the folder of a run ({error.strerror}); give another --out") from error
    check_settings(folder, settings)
    _check_emulator(folder, identity)
    begun = "ingest" in (read_summary(folder) or {"done": {}})["done"]
    inputs = check_inputs(folder, entries, settings.cube.partition_size, fixed=begun)
    state = _State(folder, settings, inputs, identity, len(entries), echo)
    left = [step for step in STEPS[: STEPS.index(until) + 1] if not state.complete(step)]
    if not left:
        echo(f"{folder}: nothing to do, {until} is complete")
        return state.summary
    began = time.monotonic()
    with ExitStack() as stack:
        client = client or stack.enter_context(open_client(settings.cluster, echo))
        _do(state, left, client, stack.enter_context(profiled(client, folder, echo)) if profile else None)
    state.record("total", time.monotonic() - began)
    return state.summary


def _check_truth(path: str | None) -> None:
    """See that the report will find what to compare with, before hours of work."""
    if path is not None:
        missing = sorted({c.name for c in TRUTH} - set(read_table(path).column_names))
        if missing:
            raise SettingsError(f"report.truth = {path}: no truth table, it lacks {missing}; give a truth.parquet")


def _check_emulator(folder: Path, identity: str) -> None:
    """See that fits made before were made with the same weights."""
    before = (read_summary(folder) or {}).get("emulator", identity)
    if before != identity and list_receipts(folder, "fit"):
        raise SettingsError(
            f"{folder} was fitted with emulator {before}, now it is {identity}; give the old file as fit.emulator, or "
            "another --out for the new one"
        )


def _do(state: "_State", left: Iterable[str], client: Client, profile: Profile | None) -> None:
    for step in left:
        began = time.monotonic()
        with nullcontext() if profile is None else profile.step(step):
            {"ingest": _ingest, "fit": _fit, "catalog": _catalog, "report": _report}[step](state, client)
        state.record(step, time.monotonic() - began)


class _State:
    """What a run knows about itself, and ``run.json``, which says so."""

    def __init__(
        self,
        folder: Path,
        settings: config.Settings,
        inputs: str,
        emulator: str,
        n_input: int,
        echo: Callable[[str], None],
    ):
        self.folder, self.settings, self.emulator, self.n_input, self.echo = folder, settings, emulator, n_input, echo
        size = settings.cube.partition_size
        self.n_stage = n_partitions(n_input, size)
        ingest = fingerprint(inputs, settings.fingerprint("input", "cube"))
        fit = fingerprint(ingest, settings.fingerprint("normalize", "fit"), emulator)
        catalog = fingerprint(fit, settings.fingerprint("catalog"))
        self.marks = {"stage": ingest, "plan": ingest, "ingest": ingest, "fit": fit, "catalog": catalog}
        self.marks["report"] = fingerprint(catalog, settings.report.model_dump(mode="json"))
        self.summary = read_summary(folder) or {"counts": {"files": n_input}, "seconds": {}, "done": {}}
        self._checked: dict[tuple[str, int], tuple[Receipt, str | None]] = {}

    def complete(self, step: str) -> bool:
        """Whether a step is done, by what lies on the disk."""
        if self.summary["done"].get(step) != self.marks[step]:
            return False
        if step == "ingest" and not self.planned():
            return False
        if step in ("ingest", "fit"):
            return not self.todo(step, n_partitions(self.n_spectrum, self.settings.cube.partition_size))
        if step == "catalog":
            return is_sound(self.folder, self.n_spectrum)
        return (self.folder / REPORT).exists()

    def planned(self) -> bool:
        """Whether plan, rejects and the cube's layout are as they were written."""
        return not self.todo("plan", 1)

    @property
    def n_spectrum(self) -> int:
        return self.summary["counts"]["spectra"]

    def todo(self, step: str, n: int) -> list[int]:
        """Partitions of a step without a valid receipt; says which have to be done again."""
        receipts = list_receipts(self.folder, step)
        left = []
        for partition in range(n):
            receipt = receipts.get(partition)
            if receipt is None or self._problem(receipt) is not None:
                left.append(partition)
        return left

    def _problem(self, receipt: Receipt) -> str | None:
        """What is wrong with a partition; its files are hashed, and what is wrong is told, once."""
        key = receipt.step, receipt.partition
        known, problem = self._checked.get(key, (None, None))
        if known != receipt:
            problem = check_receipt(self.folder, receipt, self.marks[receipt.step])
            self._checked[key] = receipt, problem
            if problem is not None:
                self.echo(f"{receipt.step} {receipt.partition} is done again: {problem}")
        return problem

    def record(self, step: str, seconds: float, **counts: object) -> None:
        """Write ``run.json``; called when a step is complete."""
        self.summary["counts"] |= counts
        if seconds:
            self.summary["seconds"][step] = round(seconds, 2)
        if step in self.marks:
            self.summary["done"][step] = self.marks[step]
        self.summary |= self.provenance()
        text = json.dumps(self.summary, indent=1)
        write_text(self.folder / SUMMARY, text + "\n")
        # Tuples become lists: a run returns the same as the next look at its file.
        self.summary = json.loads(text)

    def provenance(self) -> dict:
        """Versions, settings and emulator: what every catalog carries."""
        packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
        settings = self.settings.model_dump_json(include={"input", "cube", "normalize", "fit", "catalog"})
        return {
            "hotdask": hotdask.__version__,
            "emulator": self.emulator,
            "fingerprint": self.marks["catalog"],
            "packages": packages,
            "settings": json.loads(settings),
        }


def read_summary(folder: str | Path) -> dict | None:
    """Content of ``run.json``; None if there is none.

    Raises
    ------
    RunError
        If it is not JSON.
    """
    path = Path(folder, SUMMARY)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); remove it and run again: finished partitions are kept") from error


def run_tasks(
    client: Client,
    step: str,
    tasks: Mapping[int, tuple],
    *,
    total: int,
    done: int,
    rows: Callable[[Receipt], int],
    resources: Mapping[str, float] | None = None,
) -> None:
    """Submit tasks a few at a time and wait for all; failures are collected, so that one does not stop the rest.

    Parameters
    ----------
    client : distributed.Client
    step : str
        Name of the tasks on the dashboard.
    tasks : mapping of partition to (function, *arguments)
        Each returns a receipt it has written.
    total, done : int
        Spectra of the step, and those of earlier runs.
    rows : callable
        Spectra a receipt stands for.
    resources : mapping of str to float, optional
        What a task takes of its worker.

    Raises
    ------
    RunError
        If any failed, naming partitions and causes; or if no worker has such resources.
    """
    _check_resources(client, resources or {})
    progress = Progress(step, total, done=done)
    # Two runs on one scheduler must not be given each other's results.
    token = uuid.uuid4().hex[:8]
    how = {"pure": False, "retries": 2, "resources": resources}
    waiting = iter(tasks.items())
    running: dict[Future, int] = {}
    failed: dict[int, BaseException] = {}

    def submit() -> Future | None:
        partition, (function, *arguments) = next(waiting, (None, (None,)))
        if function is None:
            return None
        future = client.submit(function, *arguments, **how, key=f"{step}-{partition:05d}-{token}")
        running[future] = partition
        return future

    limit = max(_IN_FLIGHT * sum(w["nthreads"] for w in client.scheduler_info(n_workers=-1)["workers"].values()), 8)
    finished = as_completed([f for f in (submit() for _ in range(min(limit, len(tasks)))) if f is not None])
    for future in finished:
        partition = running.pop(future)
        error = future.exception()
        if error is not None:
            failed[partition] = error
        else:
            progress.add(rows(future.result()))
        future.release()
        following = submit()
        if following is not None:
            finished.add(following)
    progress.finish()
    if failed:
        lines = "\n".join(f"  {step} {p}: {type(e).__name__}: {e}" for p, e in sorted(failed.items())[:10])
        raise RunError(
            f"{len(failed)} of {len(tasks)} {step} tasks failed; the others are done and kept:\n{lines}\n"
            "mend the cause and run the same command again"
        ) from next(iter(failed.values()))


def _check_resources(client: Client, resources: Mapping[str, float]) -> None:
    """See that tasks would not wait forever."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    for name, amount in resources.items():
        if not any(worker["resources"].get(name, 0) >= amount for worker in workers):
            raise RunError(
                f'cluster.device = "cuda", and no worker has the resource {name}; start workers with '
                f'`dask worker ADDRESS --nthreads 1 --resources "{name}={amount:g}"`, one for each'
            )


def _ingest(state: _State, client: Client) -> None:
    folder, settings = state.folder, state.settings
    size, run_path = settings.cube.partition_size, str(folder)
    planned = folder / PLAN
    if not state.planned() or state.todo("ingest", n_partitions(count_rows(planned), size)):
        # Staged parts are gone once the cube is complete; a partition lost later needs them again.
        left = state.todo("stage", state.n_stage)
        run_tasks(
            client,
            "read",
            {part: (maps.stage, run_path, part, state.marks["stage"], settings.input.classes) for part in left},
            total=state.n_input,
            done=state.n_input - sum(min(size, state.n_input - part * size) for part in left),
            rows=lambda receipt: receipt.rows,
        )
        parts = range(state.n_stage)
        kept, duplicates = drop_duplicates(read_staged_meta(run_path, parts))
        rejects = pd.concat([read_staged_rejects(run_path, parts), duplicates], ignore_index=True)
        _check_rejects(state, kept, rejects)
        write_table(folder / REJECTED, to_table(rejects.sort_values("path"), REJECTS))
        write_grouped(planned, kept.iloc[sky_order(kept)], size)
        n_spectrum = len(kept)
        if not state.planned():
            # What an interrupted ingest of other inputs left, or a damaged layout, is nothing to go on with.
            remove_folder(folder / maps.CUBE)
            create_cube(folder / maps.CUBE, n_spectrum, partition_size=size)
            layout = [planned, folder / REJECTED, *sorted((folder / maps.CUBE).rglob("zarr.json"))]
            write_receipt(folder, Receipt("plan", 0, state.marks["plan"], n_spectrum, files=hash_files(folder, layout)))
        n = n_partitions(n_spectrum, size)
        left = state.todo("ingest", n)
        run_tasks(
            client,
            "ingest",
            {p: (maps.ingest, run_path, p, state.marks["ingest"]) for p in left},
            total=n_spectrum,
            done=n_spectrum - sum(min(size, n_spectrum - p * size) for p in left),
            rows=lambda receipt: receipt.rows,
        )
    n_spectrum, n_reject = count_rows(planned), count_rows(folder / REJECTED)
    _check_complete(state, "ingest", n_spectrum)
    if n_spectrum + n_reject != state.n_input:
        raise RunError(f"{state.n_input} files, but {n_spectrum} spectra and {n_reject} rejects; {folder} is damaged")
    clear_staging(run_path)
    state.record("ingest", 0, spectra=n_spectrum, rejects=n_reject)
    state.echo(f"ingest: {n_spectrum} spectra in the cube, {n_reject} rejected")


def _check_rejects(state: _State, kept: pd.DataFrame, rejects: pd.DataFrame) -> None:
    wrong = rejects[~rejects["reason"].isin(_NOT_WRONG)]
    reasons = ", ".join(f"{n} {reason}" for reason, n in rejects["reason"].value_counts().items())
    if len(wrong) > state.settings.input.max_reject_share * state.n_input or not len(kept):
        write_table(state.folder / REJECTED, to_table(rejects, REJECTS))
        remedy = (
            "choose other input.classes" if not len(wrong) else "correct the inputs, or raise input.max_reject_share"
        )
        raise RunError(
            f"{len(rejects)} of {state.n_input} files are not used ({reasons}); see {state.folder / REJECTED}; {remedy}"
        )


def _check_complete(state: _State, step: str, n_spectrum: int) -> None:
    done = sum(receipt.rows for receipt in list_receipts(state.folder, step).values())
    if done != n_spectrum:
        raise RunError(f"{step}: {done} of {n_spectrum} spectra are accounted for; run the same command again")


def _fit(state: _State, client: Client) -> None:
    size, n_spectrum = state.settings.cube.partition_size, state.n_spectrum
    left = state.todo("fit", n_partitions(n_spectrum, size))
    run_tasks(
        client,
        "fit",
        {p: (maps.fit, str(state.folder), p, state.marks["fit"], state.settings, state.emulator) for p in left},
        total=n_spectrum,
        done=n_spectrum - sum(min(size, n_spectrum - p * size) for p in left),
        rows=lambda receipt: receipt.rows,
        resources={GPU: 1} if state.settings.cluster.device == "cuda" else None,
    )
    _check_complete(state, "fit", n_spectrum)


def _catalog(state: _State, client: Client) -> None:
    declared = {c.name for c in SPECTRA}
    columns = pq.read_schema(state.folder / PLAN).names
    extra = tuple(c for c in columns if c not in declared and not c.startswith("staged_"))
    with client.as_current():
        found = tables.build_catalog(state.folder, state.settings, state.n_spectrum, state.provenance(), extra)
    state.summary["catalog"] = found
    state.echo(f"catalog: {found['rows']} spectra of {found['stars']} stars, {found['repeat_pairs']} repeat pairs")


def _report(state: _State, client: Client) -> None:
    folder = str(state.folder)
    key = f"report-{uuid.uuid4().hex[:8]}"
    page = client.submit(write_report, folder, state.settings, state.emulator, state.summary, key=key, pure=False)
    error = page.exception()
    if error is not None:
        raise RunError(f"the report failed ({type(error).__name__}: {error}); the catalog is complete") from error
    state.echo(f"report: {state.folder / REPORT}")


def read_rejects(folder: str | Path) -> pd.DataFrame:
    """The rejected files of a run."""
    return read_table(Path(folder, REJECTED)).to_pandas()
