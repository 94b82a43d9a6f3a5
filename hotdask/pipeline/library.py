"""Spectral libraries, made on Dask: one task makes one part of the store and writes it."""

import datetime
import functools
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from distributed import Client
from pydantic import BaseModel

from hotdask import __version__, config
from hotdask.cluster.client import open_client
from hotdask.cluster.signals import interruptible
from hotdask.errors import InputError, RunError, SettingsError, SynthesisError
from hotdask.library.engines import Engine
from hotdask.library.external import FinishedEngine, FunctionEngine, ProgramEngine, SpectrumText
from hotdask.library.regrid import to_fine
from hotdask.library.sampling import Sampling, draw_labels
from hotdask.library.spectra import N_FINE
from hotdask.store.library import (
    PART,
    create_library,
    library_labels,
    library_provenance,
    missing_parts,
    n_parts,
    read_part,
    rejects,
    write_part,
)
from hotdask.store.receipts import hash_file

NOT_CONVERGED = "not converged"
_SHOWN = 5
"""Reasons and differences a message lists."""
_NOTABLE = 0.005
"""Share of the continuum by which twice the width changes the depth of a line worth naming."""


def make_engine(settings: config.Engine) -> Engine:
    """The engine that settings describe.

    Raises
    ------
    HotdaskError
        If its data, program or function is missing.
    """
    reader = SpectrumText(
        medium=settings.medium or "vacuum",
        unit=settings.unit,
        columns=settings.columns,
        skip=settings.skip,
        continuum=settings.continuum,
    )
    match settings.kind:
        case "hotdask":
            # Numba and the line profiles are an extra; other engines do without.
            try:
                from hotdask.library.synthesis import HotdaskEngine
            except ModuleNotFoundError as error:
                raise InputError(f"the engine needs {error.name}: pip install 'hotdask[synthesis]'") from error

            engine = HotdaskEngine(
                settings.atmospheres,
                settings.lines,
                helium=settings.helium,
                helium_profiles=settings.helium_profiles,
                nlte=settings.nlte,
                nlte_structure=settings.nlte_structure,
                extend=settings.extend,
            )
            engine.name = settings.name or engine.name
            return engine
        case "function":
            return FunctionEngine(settings.function, settings.name)
        case "program":
            return ProgramEngine(
                settings.command,
                settings.templates,
                settings.output,
                reader,
                name=settings.name or Path(settings.command[0]).name,
                timeout=settings.timeout,
                converged=settings.converged,
                log=settings.log,
                solar=settings.solar,
            )
        case _:
            return FinishedEngine(settings.table, reader, settings.name)


def build(
    settings: config.LibrarySettings,
    *,
    client: Client | None = None,
    retry: bool = False,
    echo: Callable[[str], None] = print,
) -> Path:
    """Make a spectral library, or what is left of it.

    Parameters
    ----------
    settings : hotdask.config.LibrarySettings
    client : distributed.Client, optional
        Cluster to use; default: the one ``settings.cluster`` describes.
    retry : bool
        Make the parts again in which a model failed.
    echo : callable
        Told what happens, a line at a time.

    Returns
    -------
    pathlib.Path
        The store; `hotdask.store.library` reads it. Models that failed are in it, with the reason.

    Raises
    ------
    HotdaskError
        If the engine lacks its data, the store was begun with other settings, or a part could not be written. What is
        made stays, and the same call goes on from there.
    """
    # Workers may live in another folder, and later commands be given from another.
    settings = settings.absolute()
    path = Path(settings.out)
    # Before the cluster: what the engine lacks is said at once, and once.
    engine = make_engine(settings.engine)
    provenance = _provenance(settings, engine)
    if path.exists():
        _check_same(path, library_provenance(path), provenance)
    else:
        provenance["assumed_widths"] = _assumed_widths(engine, echo)
        labels = engine.labels if isinstance(engine, FinishedEngine) else _draw(settings.sampling, engine)
        path.parent.mkdir(parents=True, exist_ok=True)
        create_library(path, labels, provenance=provenance)
    left = missing_parts(path)
    if retry:
        left = sorted({*left, *(rejects(path)["row"] // PART).tolist()})
    if left:
        _make(path, left, settings, client, echo)
    else:
        echo(f"{path}: nothing to do, all syntheses were tried; --retry tries again what failed")
    _summarize(path, echo)
    return path


def _make(
    path: Path, left: list[int], settings: config.LibrarySettings, client: Client | None, echo: Callable[[str], None]
) -> None:
    # Here, because it brings torch along, which workers that make spectra do not need.
    from hotdask.cluster.tasks import run_tasks

    total, made_of = len(library_labels(path)), settings.engine.model_dump_json()
    with interruptible(), nullcontext(client) if client is not None else open_client(settings.cluster, echo) as own:
        run_tasks(
            own,
            "library",
            {part: (make_part, str(path), part, made_of) for part in left},
            total=total,
            done=total - sum(min(PART, total - part * PART) for part in left),
            rows=lambda rows: rows,
            patience=settings.cluster.patience,
        )


def make_part(path: str, part: int, engine: str) -> int:
    """Make one part of a library and write it; the task of `build`.

    Parameters
    ----------
    path : str
        The store.
    part : int
    engine : str
        Settings of the engine, as JSON: an engine is made once in each process, not sent with each task.

    Returns
    -------
    int
        Syntheses, failed ones included.
    """
    labels = library_labels(path)[part * PART : (part + 1) * PART]
    arrays = synthesize(_engine(engine), labels)
    write_part(path, part, **arrays)
    return len(labels)


@functools.lru_cache(maxsize=1)
def _engine(settings: str) -> Engine:
    return make_engine(config.Engine.model_validate_json(settings))


def synthesize(engine: Engine, labels: np.ndarray) -> dict[str, np.ndarray | list[str]]:
    """Spectra on the fine grid, one after another; a model that fails leaves its reason.

    Parameters
    ----------
    engine : Engine
    labels : (n, 11) float64

    Returns
    -------
    dict
        ``flux``, ``flux_lte``, ``continuum`` (n, 19216) float32, NaN where there is none; ``seconds`` (n,) float32;
        ``reasons``, n texts, empty where all went well.
    """
    flux = np.full((len(labels), N_FINE), np.nan, dtype=np.float32)
    flux_lte, continuum = flux.copy(), flux.copy()
    seconds, reasons = np.zeros(len(labels), dtype=np.float32), [""] * len(labels)
    for i, star in enumerate(labels):
        began = time.perf_counter()
        try:
            made = engine(star)
            if made.converged:
                flux[i], continuum[i] = to_fine(made)
                if made.flux_lte is not None:
                    flux_lte[i], _ = to_fine(replace(made, flux=made.flux_lte, continuum=None))
            else:
                reasons[i] = NOT_CONVERGED
        except SynthesisError as error:
            reasons[i] = str(error) or type(error).__name__
        seconds[i] = time.perf_counter() - began
    return {"flux": flux, "flux_lte": flux_lte, "continuum": continuum, "seconds": seconds, "reasons": reasons}


def check(path: str | Path, *, page: str | Path | None = None, echo: Callable[[str], None] = print) -> list[str]:
    """Say what a library holds and what is wrong with it.

    Parameters
    ----------
    path : path
        The store.
    page : path, optional
        HTML file to write, with plots of where in label space the library lies.
    echo : callable
        Told what is found, a line at a time.

    Returns
    -------
    list of str
        Problems; empty if there are none.

    Raises
    ------
    InputError
        If ``path`` is no library.
    """
    # Here, because workers that make spectra need neither checks nor plots.
    from hotdask.library.coverage import check_library

    found = check_library(
        functools.partial(read_part, path), n_parts(path), name=Path(path).name, provenance=library_provenance(path)
    )
    _count(path, echo)
    for problem in found.problems:
        echo(f"problem: {problem}")
    if page is not None:
        from hotdask.report.library import write_library_page

        write_library_page(found, page)
        echo(f"page: {page}")
    return found.problems


def _draw(settings: config.LabelSampling, engine: Engine) -> np.ndarray:
    labels = draw_labels(Sampling(**settings.model_dump()), engine.covers)
    if not len(labels):
        raise SettingsError(f"{engine.name} covers none of the labels; widen sampling.ranges")
    return labels


def _provenance(settings: config.LibrarySettings, engine: Engine) -> dict:
    found = {
        "engine": engine.name,
        "engine_provenance": engine.provenance(),
        "settings": {"engine": _without_folders(settings.engine)},
        "hotdask": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if settings.engine.kind != "finished":
        found["settings"]["sampling"] = _without_folders(settings.sampling)
        if settings.sampling.isochrones is not None:
            found["isochrones_sha256"] = hash_file(settings.sampling.isochrones)
    # As it comes back from the store, tuples being lists.
    return json.loads(json.dumps(found))


def _assumed_widths(engine: Engine, echo: Callable[[str], None]) -> dict:
    """Strong lines whose widths an engine assumes, said aloud and for the library to keep."""
    if not hasattr(engine, "assumed_widths"):
        return {}
    lines = engine.assumed_widths()
    notable = [str(line) for line in lines if line.change > _NOTABLE]
    echo(
        f"library: {len(lines)} strong lines have a width that is assumed; {len(notable)} of them would be deeper by "
        f"more than {100 * _NOTABLE:g} % of the continuum if it were twice as large"
    )
    for line in notable[:_SHOWN]:
        echo(f"  {line}")
    return {"lines": len(lines), "notable": notable}


def _without_folders(settings: BaseModel) -> dict:
    """A file's name says what it is, its content is hashed; where it lay is nobody's business, and may change."""

    def bare(value: object) -> object:
        if isinstance(value, list):
            return [bare(v) for v in value]
        return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value

    return {name: bare(value) for name, value in settings.model_dump(mode="json").items()}


def _flat(value: object, name: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}


def _check_same(path: Path, before: dict, now: dict) -> None:
    # What is said about widths follows from the engine, to a rounding error.
    told = ("date", "assumed_widths")
    old, new = ({k: v for k, v in _flat(p).items() if k.split(".")[0] not in told} for p in (before, now))
    changed = [f"  {k}: {old.get(k)!r} -> {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    if changed:
        more = f"\n  and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise SettingsError(
            f"{path} was begun with other settings or data:\n" + "\n".join(changed[:_SHOWN]) + more + "\n"
            "give the old ones, or another --out for the new ones"
        )


def _summarize(path: Path, echo: Callable[[str], None]) -> None:
    total, failed = len(library_labels(path)), rejects(path)
    if len(failed) == total:
        raise RunError(
            f"all {total} syntheses failed, the first with: {failed['reason'].iloc[0]}; mend the cause and give --retry"
        )
    _count(path, echo)


def _count(path: str | Path, echo: Callable[[str], None]) -> None:
    total, failed = len(library_labels(path)), rejects(path)
    left = sum(min(PART, total - part * PART) for part in missing_parts(path))
    if left:
        echo(f"library: {left} syntheses are still to be made; `hotdask library build` goes on")
    echo(f"library: {total - left - len(failed)} of {total} syntheses made, {len(failed)} failed, in {path}")
    for reason, n in Counter(failed["reason"]).most_common(_SHOWN):
        echo(f"  {n} x {reason}")
