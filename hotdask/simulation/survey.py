"""Simulated surveys, made on Dask."""

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from distributed import Client, as_completed

from hotdask import config
from hotdask.cluster.client import open_client
from hotdask.cluster.progress import Progress
from hotdask.emulator import load_emulator
from hotdask.errors import InputError
from hotdask.schema import TRUTH, to_table
from hotdask.simulation.visits import Simulation, draw_stars, draw_visits, write_broken, write_visits
from hotdask.store.atomic import atomic_folder, clear_dead, write_text
from hotdask.store.parquet import write_table

_CHUNK = 256
TRUTH_FILE = "truth.parquet"


def simulate(
    folder: str | Path,
    simulation: Simulation | None = None,
    *,
    emulator: str | None = None,
    cluster: config.Cluster | None = None,
    client: Client | None = None,
    echo: Callable[[str], None] = print,
) -> Path:
    """Write a simulated survey: LAMOST files in three layouts, some broken ones, and the truth.

    Parameters
    ----------
    folder : path
        New folder; spectra go to ``dr1``, ``dr5``, ``dr9`` and ``broken`` below it.
    simulation : Simulation
    emulator : str, optional
        What makes the stars: a shipped emulator by name, or a file; default as in `hotdask.load_emulator`.
    cluster : hotdask.config.Cluster, optional
        Where to run, if no client is given.
    client : distributed.Client, optional
    echo : callable
        Told what happens.

    Returns
    -------
    pathlib.Path
        ``truth.parquet``, columns of `hotdask.schema.TRUTH`.

    Raises
    ------
    InputError
        If the folder exists and is not empty.
    """
    folder, simulation = Path(folder), simulation or Simulation()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a new folder for the simulated survey")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give a new folder for the simulated survey")
    loaded = load_emulator(emulator)
    visits = draw_visits(simulation, draw_stars(simulation, loaded))
    clear_dead(folder.absolute())
    # Whole or not at all: a survey that was interrupted is made anew.
    with atomic_folder(folder.absolute()) as partial:
        if client is not None:
            truth = _write(partial, visits, simulation, emulator, client)
        else:
            with open_client(cluster or config.Cluster(), echo) as own:
                truth = _write(partial, visits, simulation, emulator, own)
        write_broken(partial, visits, simulation)
        write_table(partial / TRUTH_FILE, to_table(truth, TRUTH))
        made = json.dumps({**asdict(simulation), "emulator": loaded.id}, indent=1)
        write_text(partial / "simulation.json", made + "\n")
    echo(f"simulated: {len(visits)} spectra of {simulation.stars} stars, {simulation.broken} broken files in {folder}")
    return folder / TRUTH_FILE


def _write(
    folder: Path, visits: pd.DataFrame, simulation: Simulation, emulator: str | None, client: Client
) -> pd.DataFrame:
    progress = Progress("simulate", len(visits))
    token = uuid.uuid4().hex[:8]
    chunks = {
        client.submit(
            _write_visits,
            str(folder),
            visits.iloc[start : start + _CHUNK],
            simulation,
            emulator,
            key=f"simulate-{start:07d}-{token}",
            pure=False,
        ): start
        for start in range(0, len(visits), _CHUNK)
    }
    done = {}
    for future in as_completed(chunks):
        done[chunks[future]] = future.result()
        progress.add(len(done[chunks[future]]))
    progress.finish()
    return pd.concat([done[start] for start in sorted(done)], ignore_index=True)


def _write_visits(folder: str, visits: pd.DataFrame, simulation: Simulation, emulator: str | None) -> pd.DataFrame:
    """Write some visits; returns their truth."""
    # Workers are as many as cores already.
    torch.set_num_threads(1)
    return write_visits(folder, visits, load_emulator(emulator), simulation)
