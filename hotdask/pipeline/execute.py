"""A run from files to report: what is done already, what is left, and how it ends."""

import os
import time
import tomllib
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Literal

import pandas as pd
from distributed import CancelledError, Client

from hotdask import __version__, config
from hotdask.cluster.client import GPU, open_client
from hotdask.cluster.identity import code_identity
from hotdask.cluster.signals import interruptible
from hotdask.cluster.tasks import run_tasks, watched
from hotdask.crossmatch.join import JOIN, check_tables
from hotdask.errors import RunError, SettingsError
from hotdask.pipeline import maps, tables
from hotdask.pipeline.estimate import measure, refuse_on
from hotdask.pipeline.ingest import ingest
from hotdask.pipeline.pages import write_report
from hotdask.pipeline.plan import INPUTS, batch_path, check_inputs, check_settings
from hotdask.pipeline.profile import Profile, profiled
from hotdask.pipeline.state import REPORT, STEPS, State, known_summary
from hotdask.readers.inputs import list_inputs
from hotdask.report.tracks import read_tracks
from hotdask.schema import TRUTH
from hotdask.store.atomic import check_links, clear_leftovers, is_unfinished
from hotdask.store.claims import claim
from hotdask.store.lock import HOLDER, LOCK, hold
from hotdask.store.parquet import read_table
from hotdask.store.receipts import list_receipts

Step = Literal["ingest", "fit", "catalog", "report"]

_WORTH_MEASURING = 2000
"""Files of a run that takes longer than to estimate how long."""


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
    entries = list_inputs(settings.input, echo=echo)
    check_tables(settings.join, tuple(entries.columns))
    here = client is None and settings.cluster.is_local
    # Elsewhere workers may have the device that this machine lacks.
    device = settings.cluster.device if here else "cpu"
    models = maps.load_models(settings.fit, device)
    # Refuses settings the emulators do not fit, before a run begins with them.
    models.labeler(settings.fit, settings.normalize, device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be the folder of a run ({error.strerror}); give another --out") from error
    _check_folder(folder, entries)
    with hold(folder), interruptible():
        return _go_on(settings, entries, models.id, until=until, client=client, profile=profile, echo=echo)


def _go_on(
    settings: config.Settings,
    entries: pd.DataFrame,
    identity: str,
    *,
    until: Step,
    client: Client | None,
    profile: bool,
    echo: Callable[[str], None],
) -> dict:
    folder = Path(settings.out)
    # Nobody else writes here, but a worker may still end a task of a launcher that was killed. Its file then is not
    # renamed, the task fails, and nobody asks: this command gives the partition to a task of its own.
    clear_leftovers(folder)
    check_links(folder)
    new = not (folder / config.SETTINGS).exists()
    if new:
        # A place that is refused must not become a setting of the run.
        claim(folder, settings.store)
    planned = _count_planned(folder)
    check_settings(folder, settings, begun=planned > 0)
    if not new:
        claim(folder, settings.store)
    _check_emulator(folder, identity)
    _check_version(folder)
    batches = check_inputs(folder, entries, settings.cube.partition_size, planned=planned)
    if len(batches) > 1:
        echo(f"{folder}: {len(batches)} batches of files, the last of {batches[-1].files}")
    state = State(folder, settings, batches, identity, echo)
    left = [step for step in STEPS[: STEPS.index(until) + 1] if not state.complete(step)]
    if not left:
        echo(f"{folder}: nothing to do, {until} is complete")
        return state.summary
    if "fit" in left:
        _check_code(folder)
    here = client is None and settings.cluster.is_local
    began = time.monotonic()
    with ExitStack() as stack:
        client = client or stack.enter_context(open_client(settings.cluster, echo))
        if "ingest" in left:
            _announce(state, client, here=here)
        _do(state, left, client, stack.enter_context(profiled(client, folder, echo)) if profile else None)
    state.record("total", time.monotonic() - began)
    return state.summary


def _announce(state: State, client: Client, *, here: bool) -> None:
    """Say what the run will take; refuse it if it cannot fit."""
    new = [state.batches[number] for number in state.todo("plan", range(len(state.batches)))]
    files = sum(batch.files for batch in new)
    refuse_on(client, state.settings, files, here=here)
    if files >= _WORTH_MEASURING:
        entries = pd.concat([read_table(batch_path(state.folder, INPUTS, b.number)).to_pandas() for b in new])
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        # A sample without one spectrum of the classes asked for says nothing, least of all that there are none.
        with suppress(RunError):
            state.echo(f"plan: {measure(state.settings, entries, workers).describe()}")


def _check_folder(folder: Path, entries: pd.DataFrame) -> None:
    """See that a run may write here: the folder is its own, or empty, and no spectrum lies in it."""
    try:
        ours = (LOCK, HOLDER)
        foreign = [p.name for p in folder.iterdir() if p.name not in ours and not is_unfinished(p)]
    except OSError as error:
        raise RunError(f"{folder}: cannot be listed ({error.strerror}); give another --out") from error
    if foreign and not _is_run(folder):
        raise RunError(
            f"{folder} holds {min(foreign)!r} and is no run of hotdask; a run writes and removes files there: give an "
            "--out that is empty or does not exist"
        )
    real = folder.resolve()
    for place in sorted({os.path.dirname(path) for path in entries["path"]}):
        if Path(place).resolve().is_relative_to(real):
            raise RunError(f"{place} has spectra and lies in {folder}, where the run writes; give another --out")


def _is_run(folder: Path) -> bool:
    """Whether the folder has a receipt that we wrote, or settings as a run writes them, every section there."""
    if any(list_receipts(folder, step) for step in ("settings", "stage", "plan")):
        return True
    try:
        sections = tomllib.loads((folder / config.SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return sections.keys() >= {"out", *config.DECISIVE}


def _check_truth(path: str | None) -> None:
    """See that the report will find what to compare with, before hours of work."""
    if path is not None:
        missing = sorted({c.name for c in TRUTH} - set(read_table(path).column_names))
        if missing:
            raise SettingsError(f"report.truth = {path}: no truth table, it lacks {missing}; give a truth.parquet")


def _check_emulator(folder: Path, identity: str) -> None:
    """See that fits made before were made with the same weights."""
    before = (known_summary(folder) or {}).get("emulator", identity)
    if before != identity and list_receipts(folder, "fit"):
        raise SettingsError(
            f"{folder} was fitted with emulator {before}, now it is {identity}; give the old files in [fit], or "
            "another --out for the new ones"
        )


def _check_version(folder: Path) -> None:
    """See that nothing was fitted by another version: one catalog holds labels of one."""
    made = sorted({code for code in _fitted_by(folder) if code.partition("+")[0] != __version__})
    if made:
        raise SettingsError(
            f"{folder} was fitted by hotdask {made[0]}, this is {__version__}; use that version, give another --out, "
            f"or remove {folder / 'receipts'} to have all made again"
        )


def _check_code(folder: Path) -> None:
    """See that the fits that are left would be made by the code that made the others."""
    made = sorted(_fitted_by(folder) - {code_identity()})
    if made:
        raise SettingsError(
            f"{folder} was fitted by hotdask {made[0]} and has fits left to make, this is {code_identity()}; use that "
            f"code, give another --out, or remove {folder / 'receipts/fit'} to have all fits made again"
        )


def _fitted_by(folder: Path) -> set[str]:
    return {receipt.extra["code"] for receipt in list_receipts(folder, "fit").values() if "code" in receipt.extra}


def _count_planned(folder: Path) -> int:
    """Batches whose files are the run's for good."""
    counted = (known_summary(folder) or {"counts": {}})["counts"].get("batches", 0)
    return max(counted, *(number + 1 for number in list_receipts(folder, "plan")), 0)


def _do(state: State, left: Iterable[str], client: Client, profile: Profile | None) -> None:
    for step in left:
        began = time.monotonic()
        with nullcontext() if profile is None else profile.step(step):
            {"ingest": ingest, "fit": _fit, "catalog": _catalog, "report": _report}[step](state, client)
        state.record(step, time.monotonic() - began)


def _fit(state: State, client: Client) -> None:
    layout = state.layout
    left = state.todo("fit", range(len(layout.counts)))
    run_tasks(
        client,
        "fit",
        {p: (maps.fit, str(state.folder), p, state.mark("fit", p), state.settings, state.emulator) for p in left},
        total=layout.n_spectrum,
        done=layout.n_spectrum - sum(layout.counts[p] for p in left),
        rows=lambda receipt: receipt.rows,
        resources={GPU: 1} if state.settings.cluster.device == "cuda" else None,
        patience=state.settings.cluster.patience,
    )
    state.check_complete("fit")


def _catalog(state: State, client: Client) -> None:
    with watched(client, state.settings.cluster.patience), client.as_current():
        found = tables.build_catalog(state.folder, state.settings, state.layout, state.provenance(), echo=state.echo)
    state.summary["catalog"] = found
    tables_beside = [state.folder / name for name in (tables.STARS, JOIN) if (state.folder / name).exists()]
    state.receive("catalog", tables_beside, found["rows"])
    state.echo(f"catalog: {found['rows']} spectra of {found['stars']} stars, {found['repeat_pairs']} repeat pairs")


def _report(state: State, client: Client) -> None:
    folder = str(state.folder)
    key = f"report-{uuid.uuid4().hex[:8]}"
    with watched(client, state.settings.cluster.patience) as workers:
        page = client.submit(
            write_report, folder, state.settings, state.emulator, state.summary, key=key, pure=False, workers=workers
        )
        error = page.exception()
        if page.cancelled():
            # What a lost scheduler leaves has no error of its own.
            raise error or CancelledError(key)
    if error is not None:
        raise RunError(f"the report failed ({type(error).__name__}: {error}); the catalog is complete") from error
    pages = sorted(path for path in (state.folder / REPORT).parent.rglob("*") if path.is_file())
    state.receive("report", pages, len(pages))
    state.echo(f"report: {state.folder / REPORT}")
