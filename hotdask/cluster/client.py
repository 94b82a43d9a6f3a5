"""A Dask client: a cluster of this machine, one that Dask starts elsewhere, or a scheduler that runs already."""

import copy
import inspect
import logging
import os
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster, Security
from distributed.deploy import Cluster

from hotdask import config
from hotdask.cluster.certificates import tls_settings
from hotdask.cluster.daskconfig import DASK
from hotdask.cluster.signals import Stop, gentle_stop
from hotdask.errors import RunError, SettingsError

GPU = "GPU"
"""Resource of a worker, as Dask's own tools for GPUs call it."""
_NO_WORKERS = 120
"""Seconds a scheduler may be without workers when a run begins."""
_SILENT = 30.0
"""Seconds without a sign of life that a worker under load may take."""

_TAKEN = "Port .* is already in use"
"""What distributed says of a dashboard's port before it picks another, which is printed."""
_PACKAGES = (
    "distributed",
    "dask.distributed",
    "dask_jobqueue",
    "dask_kubernetes",
    "dask_cloudprovider",
    "dask_gateway",
    "dask_cuda",
    "dask_mpi",
    "coiled",
)
"""Packages whose cluster classes ``cluster.start`` may name; to import another would run whatever it holds."""
_NO_CLASSES = ("SSHCluster", "GatewayCluster")
"""Of these packages, what starts a cluster and is no subclass of Dask's `Cluster`."""


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: str) -> int:
    """One for each core, or for each GPU."""
    if device != "cuda":
        return available_cores()
    # Here, because nothing else that opens a client needs it.
    import torch

    return torch.cuda.device_count()


@contextmanager
def open_client(settings: config.Cluster, echo: Callable[[str], None] = print) -> Iterator[Client]:
    """Connect to ``settings.scheduler``, or start a cluster for the time of the block: the one that ``settings.start``
    describes, or one on this machine.

    Parameters
    ----------
    settings : hotdask.config.Cluster
    echo : callable
        Told where the dashboard is.

    Raises
    ------
    SettingsError
        If sockets would be off loopback without TLS and without ``settings.insecure``, or certificates are missing.
    RunError
        If the scheduler does not answer, or the cluster does not start.
    """
    # Every shuffle announces itself as a warning, a lost scheduler with a traceback; a run says it in a sentence.
    logging.getLogger("distributed.shuffle").setLevel(logging.ERROR)
    logging.getLogger("distributed.batched").setLevel(logging.WARNING)
    # What waited for tasks when a scheduler went is told so, and nobody asks it any more.
    logging.getLogger("asyncio").addFilter(_is_not_of_a_lost_scheduler)
    tls = {} if settings.certificates is None else tls_settings(settings.certificates)
    # Of a scheduler that this process starts: where no task of `tasks` is, Dask itself replaces what is silent.
    silent = {"distributed.scheduler.worker-ttl": f"{max(settings.patience, _SILENT):g}s"}
    with dask.config.set({**DASK, **tls, **silent}):
        if settings.scheduler is not None:
            opened = _connect(settings, echo)
        elif settings.start is not None:
            opened = _start(settings, echo)
        else:
            opened = _start_here(settings, echo)
        with opened as client:
            yield client


def _is_not_of_a_lost_scheduler(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[0] is not None and record.exc_info[0].__name__ == "AllExit")


@contextmanager
def _connect(settings: config.Cluster, echo: Callable[[str], None]) -> Iterator[Client]:
    address = settings.scheduler
    if address.startswith("tls://") and not _has_certificates():
        raise SettingsError(
            f"cluster.scheduler = '{address}' needs certificates: give cluster.certificates, the folder that `hotdask "
            "certificates` made, or let DASK_CONFIG name the distributed.yaml in it"
        )
    try:
        client = Client(address, timeout="30s", set_as_default=True)
    except (OSError, ValueError) as error:
        raise RunError(
            f"no scheduler answers at {address} ({error}); check the address, and for tls:// that the scheduler's "
            "certificates and yours were made by one `hotdask certificates`"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_NO_WORKERS)
        except TimeoutError as error:
            raise RunError(
                f"no worker is connected to {address} after {_NO_WORKERS} s; start some with `dask worker {address}`"
            ) from error
        echo(f"cluster: {address}, dashboard {client.dashboard_link}")
        yield client


def _has_certificates() -> bool:
    """Whether distributed's settings name what a client needs for mutual TLS."""
    security = Security()
    return bool(security.tls_ca_file and security.tls_client_cert)


def _unless(stop: Stop, cluster: Cluster) -> Cluster:
    """The cluster, unless a signal came while it started."""
    if stop.requested:
        raise KeyboardInterrupt
    return cluster


def _starts_clusters(kind: object, name: str) -> bool:
    return name in _NO_CLASSES or (isinstance(kind, type) and issubclass(kind, Cluster))


@contextmanager
def _start(settings: config.Cluster, echo: Callable[[str], None]) -> Iterator[Client]:
    made_of = config.load_start(settings.start)
    module, _, name = made_of.kind.rpartition(".")
    if not (settings.allow_any_class or any(f"{module}.".startswith(f"{package}.") for package in _PACKAGES)):
        raise SettingsError(
            f"{settings.start}: kind = '{made_of.kind}' is of none of {', '.join(_PACKAGES)}; give a cluster class of "
            "these, or set cluster.allow_any_class = true if you trust its package"
        )
    secure = _has_certificates() and Security().require_encryption
    if not (secure or settings.insecure):
        raise SettingsError(
            f"{settings.start}: {made_of.kind} listens on the network, and whoever reaches its scheduler runs code as "
            "you; make certificates with `hotdask certificates DIR` and give cluster.certificates = 'DIR', or set "
            "cluster.insecure = true where the network itself keeps others out"
        )
    try:
        kind = pkgutil.resolve_name(f"{module}:{name}")
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"{settings.start}: there is no {made_of.kind} here ({error}); check its name, and that its package is "
            "installed (pip install 'hotdask[ssh]' or 'hotdask[slurm]')"
        ) from error
    if not (settings.allow_any_class or _starts_clusters(kind, name)):
        raise SettingsError(
            f"{settings.start}: kind = '{made_of.kind}' is no cluster class; give one, e.g. distributed.SSHCluster"
        )
    arguments = copy.deepcopy(made_of.arguments)
    takes = inspect.signature(kind).parameters
    if "scheduler_options" in takes:
        options = arguments.setdefault("scheduler_options", {})
        dashboard = str(options.setdefault("dashboard_address", settings.dashboard))
        if not (settings.insecure or config.on_loopback(dashboard)):
            raise SettingsError(
                f"{settings.start}: dashboard_address = '{dashboard}' is off loopback, and a dashboard asks nobody who "
                "they are; leave it out, or set cluster.insecure = true"
            )
    if secure and "security" in takes:
        arguments["security"] = Security()
    try:
        # A cluster that is interrupted while it starts leaves processes behind, and an assertion that fails.
        with gentle_stop() as stop, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_TAKEN)
            cluster = kind(**arguments)
    # Whatever a class of another package may raise: ssh, a queue that is not there, an argument it does not know.
    except Exception as error:
        raise RunError(f"{settings.start}: {made_of.kind} does not start ({type(error).__name__}: {error})") from error
    with cluster, Client(_unless(stop, cluster)) as client:
        echo(f"cluster: {made_of.kind} at {client.scheduler.address}, dashboard {client.dashboard_link}")
        if not client.scheduler_info()["workers"]:
            # A queue may take hours.
            echo("cluster: waiting for the first worker")
            client.wait_for_workers(1)
        yield client


@contextmanager
def _start_here(settings: config.Cluster, echo: Callable[[str], None]) -> Iterator[Client]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_TAKEN)
        try:
            with gentle_stop() as stop:
                cluster = LocalCluster(
                    n_workers=settings.workers or default_workers(settings.device),
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=settings.dashboard,
                    memory_limit=settings.memory_limit,
                    preload="hotdask.cluster.signals",
                    resources={GPU: 1} if settings.device == "cuda" else {},
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise RunError(f"no cluster could be started here ({error}); check the [cluster] settings") from error
    with cluster, Client(_unless(stop, cluster)) as client:
        echo(f"cluster: {len(cluster.workers)} workers on this machine, dashboard {client.dashboard_link}")
        yield client
