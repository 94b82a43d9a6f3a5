"""What a run will take: memory of a worker, disk, time; and a refusal of what cannot fit."""

import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from dask.utils import format_bytes, parse_bytes
from distributed import Client

from hotdask import config
from hotdask.cluster.client import default_workers
from hotdask.cluster.progress import duration
from hotdask.errors import RunError
from hotdask.pipeline import maps
from hotdask.readers.desi import file_of
from hotdask.readers.inputs import list_inputs
from hotdask.readers.lamost import read_spectra
from hotdask.schema import CUBE
from hotdask.store.cube import Layout, create_cube, n_partitions, write_partition
from hotdask.store.staging import ROW

_WORKER = 850 * 2**20
"""Memory of a worker whatever the partitions: libraries, emulator, and the spectra labeled at once [bytes]."""
_SECOND = 60 * 2**20
"""... and of a second emulator, ``fit.compare`` [bytes]."""
_SPECTRUM = 140 * 2**10
"""Memory of each spectrum of a partition besides [bytes]; measured at 256 to 4096 spectra a partition."""
_USABLE = 0.7
"""Share of a worker's limit that it fills before it begins to spill to disk."""
_PACKED = 20_000
"""Bytes of a spectrum in the cube at the least: noise does not compress further."""
_TABLES = 4000
"""Bytes of a spectrum in plan, fits, catalog and receipts."""
_SAMPLE = 256


def worker_memory(settings: config.Settings) -> int:
    """Memory that a worker needs for the partitions of a run [bytes].

    Examples
    --------
    >>> settings = config.make_settings({"out": "RUN", "input": {"spectra": "*.fits"}})
    >>> round(worker_memory(settings) / 2**20)
    990
    """
    return _WORKER + (_SECOND if settings.fit.compare else 0) + settings.cube.partition_size * _SPECTRUM


def refuse(settings: config.Settings, files: int, *, limits: list[int], here: bool) -> None:
    """Refuse a run that cannot fit, before it starts.

    Parameters
    ----------
    settings : hotdask.config.Settings
    files : int
        Files that are still to be read.
    limits : list of int
        Memory limits of the workers [bytes]; 0 is none.
    here : bool
        Whether all workers share the memory of this machine.

    Raises
    ------
    RunError
        Saying what is needed, what there is, and what would fit.
    """
    size = settings.cube.partition_size
    need = worker_memory(settings)
    smallest = min((limit for limit in limits if limit), default=0)
    if smallest and need > _USABLE * smallest:
        fits = size - math.ceil((need - _USABLE * smallest) / _SPECTRUM)
        smaller = f"cube.partition_size = {fits} would fit, or " if fits >= 16 else ""
        raise RunError(
            f"a partition of {size} spectra needs {format_bytes(need)} of a worker, which may use {_USABLE:.0%} of its "
            f"limit of {format_bytes(smallest)}; {smaller}"
            f'cluster.memory_limit = "{format_bytes(int(need / _USABLE * 1.05)).replace(" ", "")}"'
        )
    memory = psutil.virtual_memory().total
    if here and need * len(limits) > memory:
        raise RunError(
            f"{len(limits)} workers need {format_bytes(need * len(limits))}, this machine has {format_bytes(memory)}; "
            f"cluster.workers = {max(memory // need, 1)} would fit"
        )
    packed = _PACKED if settings.store.cube is None else 0
    disk, free = files * (ROW.itemsize + packed + _TABLES), _free(settings.out)
    if disk > free:
        raise RunError(
            f"{settings.out}: {files} spectra need at least {format_bytes(disk)} of disk, "
            f"{format_bytes(free)} are free; make room, or give --out on another disk"
        )


def refuse_on(client: Client, settings: config.Settings, files: int, *, here: bool) -> None:
    """`refuse` with the workers of a cluster."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    refuse(settings, files, limits=[worker["memory_limit"] for worker in workers], here=here)


def _free(out: str) -> int:
    folder = Path(out).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Parameters
    ----------
    files, partitions, workers : int
    memory : int
        Of each worker [bytes].
    disk, peak : int
        In the end, and while the ingest lasts, in the run's folder [bytes].
    cpu : float
        CPU time of a spectrum, files to catalog [s].
    """

    files: int
    partitions: int
    workers: int
    memory: int
    disk: int
    peak: int
    cpu: float

    @property
    def seconds(self) -> float:
        """Time on the workers [s]; beyond a disk's speed, more workers no longer help."""
        return self.files * self.cpu / self.workers

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.files} files in {self.partitions} partitions: {format_bytes(self.memory)} a worker, "
            f"{format_bytes(self.disk)} of disk ({format_bytes(self.peak)} while reading), "
            f"{1e3 * self.cpu:.1f} ms of CPU a spectrum, about {duration(self.seconds)} on {self.workers} "
            f"worker{'s' * (self.workers > 1)}"
        )


def estimate(settings: config.Settings, echo: Callable[[str], None] = print) -> Estimate:
    """Measure what a run will take on a sample of its own files, read and labeled in this process.

    Parameters
    ----------
    settings : hotdask.config.Settings
        Settings of the run, which need not have begun.
    echo : callable
        Told the result.

    Returns
    -------
    Estimate

    Raises
    ------
    HotdaskError
        If the inputs cannot be listed, no file of the sample can be read, or the run cannot fit.
    """
    settings = settings.absolute()
    entries = list_inputs(settings.input)
    workers = settings.cluster.workers or default_workers(settings.cluster.device)
    found = measure(settings, entries, workers)
    echo(found.describe())
    here = settings.cluster.is_local
    limit = parse_bytes(settings.cluster.memory_limit)
    refuse(settings, len(entries), limits=[limit] * workers if here else [], here=here)
    return found


def _sample(entries: pd.DataFrame) -> pd.DataFrame:
    """Some entries spread over all; of files that hold many spectra a run of neighbors each, as they are read."""
    files = pd.factorize(entries["path"].map(file_of))[0]
    chosen = np.unique(np.linspace(0, files.max(), min(_SAMPLE, files.max() + 1)).astype(int))
    several = max(_SAMPLE // len(chosen), 1)
    sample = entries[np.isin(files, chosen)]
    return sample.groupby(files[np.isin(files, chosen)], sort=False).head(several)


def measure(settings: config.Settings, entries: pd.DataFrame, workers: int) -> Estimate:
    """Read and label a sample of files, spread over all of them, and scale up.

    Raises
    ------
    RunError
        If no file of the sample can be read.
    """
    maps.one_thread()
    model = maps.make_labeler(settings, maps.load_models(settings.fit, "cpu").id)
    sample = _sample(entries)
    began = time.process_time()
    block, rejects = read_spectra(sample, classes=settings.input.classes)
    read = (time.process_time() - began) / len(sample)
    kept = len(block.meta)
    if not kept:
        raise RunError(
            f"none of {len(sample)} files of a sample can be used (first {rejects['path'].iloc[0]}: "
            f"{rejects['detail'].iloc[0]}); check input.spectra or input.table, and input.classes"
        )
    with tempfile.TemporaryDirectory() as folder:
        cube = Path(folder, "cube.zarr")
        create_cube(cube, Layout(_SAMPLE, (kept,)))
        began = time.process_time()
        write_partition(cube, 0, {v.name: getattr(block, v.name) for v in CUBE}, block.meta)
        write = (time.process_time() - began) / kept
        packed = sum(path.stat().st_size for path in cube.rglob("c/**/*") if path.is_file()) / kept
    if settings.store.cube is not None:
        packed = 0
    lsf = block.meta[list(maps.LSF_NAMES)].to_numpy(dtype=np.float64)
    spectra = block.flux, model.usable(block.ivar, block.andmask, block.ormask), block.meta["rv"].to_numpy(), lsf
    spectra = *spectra, block.meta["noise_power"].to_numpy(dtype=np.float64)
    # What is loaded and built once is no cost of a spectrum.
    model.label(*(array[:8] for array in spectra))
    began = time.process_time()
    model.label(*spectra)
    label = (time.process_time() - began) / kept
    share, n = kept / len(sample), len(entries)
    return Estimate(
        files=n,
        partitions=n_partitions(n, settings.cube.partition_size),
        workers=workers,
        memory=worker_memory(settings),
        disk=int(n * share * (packed + _TABLES)),
        peak=int(n * share * (ROW.itemsize + packed + _TABLES)),
        # Hashes, tables and Dask take another tenth.
        cpu=1.1 * (read + share * (write + label)),
    )
