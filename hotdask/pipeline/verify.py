"""Whether what a run has written is sound: every hash, every count, every schema."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from hotdask.errors import HotdaskError, RunError
from hotdask.pipeline.plan import INPUTS, PLAN, REJECTED, batch_path, list_batches
from hotdask.pipeline.state import SUMMARY, State, open_state, read_summary
from hotdask.pipeline.tables import STARS
from hotdask.schema import (
    CUBE,
    CUBE_COORDINATES,
    REJECTS,
    SPECTRA,
    Column,
    arrow_schema,
    catalog_columns,
    fits_columns,
)
from hotdask.store.catalog import FITS_FOLDER, damaged_parts, read_provenance, shown_catalog
from hotdask.store.cube import SIDECAR, cube_place, read_layout, read_sidecar, read_variables
from hotdask.store.parquet import count_rows, list_parts, part_path, read_schema, read_table
from hotdask.store.receipts import list_receipts, receipt_problems

_RESTS_ON = {"plan": "ingest", "layout": "ingest"}
"""Steps that are done if another one is."""
_SHOWN = 5
"""Partitions named, of those that lack a receipt."""


def verify(folder: str | Path, echo: Callable[[str], None] = print) -> list[str]:
    """Look at everything a run has written: every hash, every count, every schema.

    Parameters
    ----------
    folder : path
        Folder of the run, which need not be finished.
    echo : callable
        Told what was looked at, and each problem.

    Returns
    -------
    list of str
        What is wrong, a sentence each; empty if nothing is.

    Raises
    ------
    RunError
        If the folder is not that of a run.
    """
    state = open_state(folder, echo=lambda line: None)
    problems: list[str] = []
    n_file = 0
    for step, numbers in _expected(state).items():
        receipts = list_receipts(state.folder, step)
        done = {number: receipts[number] for number in numbers if number in receipts}
        for number, receipt in done.items():
            # A report of an earlier catalog, which is not called done, is not wrong.
            fingerprint = receipt.fingerprint if step == "report" else state.mark(step, number)
            problems += receipt_problems(state.folder, receipt, fingerprint)
            n_file += len(receipt.files)
        problems += [f"{step} {n}: a receipt of no partition of this run" for n in sorted(set(receipts) - set(numbers))]
        lost = [number for number in numbers if number not in done]
        if lost and (step == "settings" or _is_done(state, _RESTS_ON.get(step, step))):
            more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
            which = ", ".join(map(str, lost[:_SHOWN]))
            problems.append(f"{step} {which}{more}: no receipt, though the step is called done")
    echo(f"{n_file} files hashed against their receipts")
    for check in (_check_summary, _check_inputs, _check_cube, _check_tables, _check_catalog):
        wrong: list[str] = []
        try:
            told = check(state, wrong)
        # Of a damaged file zarr and pyarrow raise one thing or another.
        except (HotdaskError, OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
            told = ""
            wrong.append(str(error))
        if told:
            echo(told)
        problems += [problem for problem in wrong if problem not in problems]
    for problem in problems:
        echo(f"WRONG: {problem}")
    echo(f"{state.folder}: {len(problems)} problems" if problems else f"{state.folder}: sound")
    return problems


def _expected(state: State) -> dict[str, range]:
    """Numbers of the receipts each step must have when it is done."""
    expected = {"settings": range(1), "plan": range(len(state.batches)), "catalog": range(1), "report": range(1)}
    # Without its plan, which is a problem of its own, nothing is known of partitions.
    with suppress(RunError):
        partitions = range(len(state.layout.counts))
        expected |= {"layout": range(1), "ingest": partitions, "fit": partitions}
    return expected


def _is_done(state: State, step: str) -> bool:
    """Whether a step is called done; by receipts where ``run.json`` cannot say."""
    return step in state.summary["done"] or (not state.summary["done"] and bool(list_receipts(state.folder, step)))


def _check_summary(state: State, problems: list[str]) -> str:
    """Of ``run.json``; a run that is fitted has one."""
    if read_summary(state.folder) is None and list_receipts(state.folder, "fit"):
        problems.append(f"{state.folder / SUMMARY}: the file is missing; the next command makes it again")
    return ""


def _check_inputs(state: State, problems: list[str]) -> str:
    """Each file of a batch is planned or rejected, once."""
    for batch in state.batches[: len(list_batches(state.folder, PLAN))]:
        given, kept, rejected = (
            read_table(batch_path(state.folder, table, batch.number), ["path"])["path"].to_pandas()
            for table in (INPUTS, PLAN, REJECTED)
        )
        found = pd.concat([kept, rejected])
        lost, twice = set(given) - set(found), sorted(set(found[found.duplicated()]))
        foreign = set(found) - set(given)
        for name, paths in (("neither planned nor rejected", lost), ("not an input", foreign), ("there twice", twice)):
            if paths:
                problems.append(f"batch {batch.number}: {len(paths)} files are {name}, first {min(paths)}")
    return f"{state.n_input} files accounted for"


def _check_cube(state: State, problems: list[str]) -> str:
    path = cube_place(state.folder)
    if not _is_done(state, "ingest"):
        return ""
    layout = read_layout(path)
    if layout != state.layout:
        problems.append(f"{path}: holds batches of {layout.batches}, planned are {state.layout.batches}")
    found = read_variables(path)
    for v in (*CUBE, *CUBE_COORDINATES):
        expected = (np.dtype(v.dtype), layout.n_row, v.unit)
        if found[v.name] != expected:
            problems.append(f"{path}/{v.name}: (type, rows, unit) are {found[v.name]}, should be {expected}")
    return f"cube of {layout.n_spectrum} spectra in {len(layout.counts)} partitions"


def _check_schema(path: Path, columns: tuple[Column, ...]) -> list[str]:
    found, problems = read_schema(path), []
    for field in arrow_schema(columns):
        like = found.field(field.name) if field.name in found.names else None
        if like is None or (like.type, like.metadata) != (field.type, field.metadata):
            problems.append(f"{path}: column {field.name} is not {field.type} with its unit")
    return problems


def _check_tables(state: State, problems: list[str]) -> str:
    """Schemas and rows of the tables beside the cube, row by row the same spectra."""
    folder, rows = state.folder, 0
    for path in list_batches(folder, REJECTED):
        problems += _check_schema(path, REJECTS)
    if len(list_batches(folder, PLAN)) < len(state.batches):
        return ""
    fits = fits_columns(state.settings.fit.compared)
    for name, columns, step in ((SIDECAR, SPECTRA, "ingest"), (FITS_FOLDER, fits, "fit")):
        if not _is_done(state, step):
            continue
        parts = {part_path(folder / name, p): n for p, n in enumerate(state.layout.counts)}
        problems += [f"{path}: belongs to no partition" for path in list_parts(folder / name) if path not in parts]
        for partition, (path, n) in enumerate(parts.items()):
            problems += _check_schema(path, columns)
            specid = read_table(path, ["specid"])["specid"].to_pylist()
            rows += len(specid)
            if len(specid) != n:
                problems.append(f"{path}: has {len(specid)} rows, should have {n}")
            elif name == FITS_FOLDER and specid != read_sidecar(folder, partition, ["specid"])["specid"].tolist():
                problems.append(f"{path}: holds other spectra than partition {partition} of the cube")
    return f"{rows} rows of spectra and fits"


def _check_catalog(state: State, problems: list[str]) -> str:
    if not _is_done(state, "catalog"):
        return ""
    folder, specids = state.folder, []
    shown = shown_catalog(folder)
    problems += [f"{part}: missing, or not what its name says" for part in damaged_parts(shown)]
    for part in shown.parts:
        problems += _check_schema(part, catalog_columns(state.settings.fit.compared))
        specids += read_table(part, ["specid"])["specid"].to_pylist()
    planned = [s for p in list_batches(folder, PLAN) for s in read_table(p, ["specid"])["specid"].to_pylist()]
    if sorted(specids) != sorted(planned):
        problems.append(f"{shown.folder}: has {len(specids)} spectra, not the {len(planned)} that were planned")
    if read_provenance(folder).get("fingerprint") != state.marks["catalog"]:
        problems.append(f"{shown.folder}: was made from another state of the run; run the command again")
    if count_rows(folder / STARS) != len(planned):
        problems.append(f"{folder / STARS}: has {count_rows(folder / STARS)} rows, should have {len(planned)}")
    return f"catalog: {len(specids)} rows in {len(shown.parts)} files, version {shown.folder.name}"
