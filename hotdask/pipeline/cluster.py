"""A Dask client: a cluster of this machine, or a scheduler that runs already."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dask
import torch
from distributed import Client, LocalCluster

from hotdask import config
from hotdask.errors import RunError

_DASK = {
    # A worker that dies twice in quick succession must come back, and `tasks` ends a run whose workers are all gone.
    "distributed.deploy.lost-worker-timeout": "120s",
    "distributed.scheduler.allowed-failures": 3,
    # Distributed has workers give memory back after every array; what is asked for again at once costs twice the time.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**28,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**28,
}


GPU = "GPU"
"""Resource of a worker, as Dask's own tools for GPUs call it."""
_NO_WORKERS = 120
"""Seconds a scheduler may be without workers when a run begins."""


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: str) -> int:
    """One for each core, or for each GPU."""
    return torch.cuda.device_count() if device == "cuda" else available_cores()


@contextmanager
def open_client(settings: config.Cluster, echo: Callable[[str], None] = print) -> Iterator[Client]:
    """Connect to ``settings.scheduler``, or start a cluster on this machine for the time of the block.

    Parameters
    ----------
    settings : hotdask.config.Cluster
    echo : callable
        Told where the dashboard is.

    Raises
    ------
    RunError
        If the scheduler does not answer.
    """
    # Every shuffle announces itself as a warning.
    logging.getLogger("distributed.shuffle").setLevel(logging.ERROR)
    with dask.config.set(_DASK):
        if settings.scheduler:
            try:
                client = Client(settings.scheduler, timeout="30s", set_as_default=True)
            except (OSError, ValueError) as error:
                raise RunError(
                    f"no scheduler answers at {settings.scheduler} ({error}); check the address, and for tls:// that "
                    "distributed's TLS settings name your certificates"
                ) from error
            with client:
                try:
                    client.wait_for_workers(1, timeout=_NO_WORKERS)
                except TimeoutError as error:
                    raise RunError(
                        f"no worker is connected to {settings.scheduler} after {_NO_WORKERS} s; start some with "
                        f"`dask worker {settings.scheduler}`"
                    ) from error
                echo(f"cluster: {settings.scheduler}, dashboard {client.dashboard_link}")
                yield client
            return
        with warnings.catch_warnings():
            # A taken port is no problem: distributed picks another, and that one is printed.
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            try:
                cluster = LocalCluster(
                    n_workers=settings.workers or default_workers(settings.device),
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=settings.dashboard,
                    memory_limit=settings.memory_limit,
                    preload="hotdask.pipeline.signals",
                    resources={GPU: 1} if settings.device == "cuda" else {},
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise RunError(f"no cluster could be started here ({error}); check the [cluster] settings") from error
        with cluster, Client(cluster) as client:
            echo(f"cluster: {len(cluster.workers)} workers on this machine, dashboard {client.dashboard_link}")
            yield client
