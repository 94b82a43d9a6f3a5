"""Runs and clusters as processes of their own, to be killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from hotdask.config import Settings, dump_settings

_PATIENCE = 240.0
"""Seconds a loaded machine may take for anything."""
_CODE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from hotdask.cli import main; main()"
"""As from a terminal, whose Ctrl-C a shell may have told these tests to ignore."""


def count_receipts(out: Path, step: str = "*") -> int:
    return len(list(out.glob(f"receipts/{step}/*.json")))


def until(true: Callable[[], object], process: subprocess.Popen | None = None, log: Path | None = None) -> None:
    """Wait until something holds, as long as a process is alive."""
    end = time.monotonic() + _PATIENCE
    while not true():
        assert process is None or process.poll() is None, log.read_text() if log else process.returncode
        assert time.monotonic() < end
        time.sleep(0.005)


def kill_family(process: subprocess.Popen | psutil.Process) -> None:
    """Kill a process and all it started."""
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        family = [top, *top.children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=30)


def worker_processes(top: psutil.Process) -> list[psutil.Process]:
    """What nannies have spawned; the tracker of multiprocessing is none."""
    found = []
    for child in top.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


@dataclass
class Command:
    """A ``hotdask run`` in a process group of its own."""

    process: subprocess.Popen
    log: Path
    out: Path

    def wait_for(self, receipts: int, step: str = "*") -> None:
        until(lambda: count_receipts(self.out, step) >= receipts, self.process, self.log)

    def wait_for_path(self, pattern: str) -> None:
        until(lambda: list(self.out.glob(pattern)), self.process, self.log)

    def kill(self, number: signal.Signals = signal.SIGKILL, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.process.pid, number)

    def ended(self) -> int:
        return self.process.wait(timeout=_PATIENCE)


@contextmanager
def _command(settings: Settings) -> Iterator[Command]:
    out = Path(settings.out)
    toml, log = out.with_suffix(".toml"), out.with_suffix(".log")
    toml.write_text(dump_settings(settings))
    with open(log, "wb") as handle:
        process = subprocess.Popen(
            [sys.executable, "-c", _CODE, "run", str(toml)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    top = psutil.Process(process.pid)
    try:
        yield Command(process, log, out)
    finally:
        children = []
        with suppress(psutil.NoSuchProcess):
            children = top.children(recursive=True)
        kill_family(process)
        process.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


@dataclass
class Cluster:
    """A scheduler and a worker with its nanny, as `dask` starts them."""

    address: str
    scheduler: subprocess.Popen
    worker: subprocess.Popen

    @contextmanager
    def another(self, folder: Path, package: Path | None = None) -> Iterator[subprocess.Popen]:
        """One more worker, in another working directory, or with the package of another folder."""
        process = _start_worker(self.address, folder, package)
        try:
            yield process
        finally:
            kill_family(process)
            process.wait()

    def kill_worker(self) -> None:
        """Kill the process that runs tasks; its nanny starts another."""
        until(lambda: worker_processes(psutil.Process(self.worker.pid)), self.worker)
        for process in worker_processes(psutil.Process(self.worker.pid)):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def kill_for_good(self) -> None:
        """Kill the worker and its nanny."""
        kill_family(self.worker)


def _start(folder: Path, *arguments: str, package: Path | None = None) -> subprocess.Popen:
    # Tasks may be functions of a test, which these processes must find.
    places = [str(place) for place in (package, Path(__file__).parents[2]) if place is not None]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    return subprocess.Popen([sys.executable, "-m", "dask", *arguments, *local], env=environment, cwd=folder, **quiet)


def _start_worker(address: str, folder: Path, package: Path | None = None) -> subprocess.Popen:
    options = ["--nthreads", "1", "--local-directory", str(folder)]
    return _start(folder, "worker", address, *options, package=package)


@contextmanager
def _cluster(folder: Path) -> Iterator[Cluster]:
    # No second attempt at the same name: the file says where the scheduler is.
    where = folder / f"scheduler-{random.getrandbits(32):08x}.json"
    scheduler = _start(folder, "scheduler", "--port", "0", "--scheduler-file", str(where))
    worker = None
    try:
        # It is there before it is written.
        until(lambda: where.exists() and where.read_text().endswith("}"), scheduler)
        address = json.loads(where.read_text())["address"]
        worker = _start_worker(address, folder)
        yield Cluster(address, scheduler, worker)
    finally:
        for process in (worker, scheduler):
            if process is not None:
                kill_family(process)
                process.wait()


@pytest.fixture(scope="session")
def processes() -> Callable:
    """The worker processes that a process has started."""
    return worker_processes


@pytest.fixture(scope="session")
def command() -> Callable:
    """Context manager: `Command` of given settings."""
    return _command


@pytest.fixture(scope="session")
def cluster() -> Callable:
    """Context manager: `Cluster` that writes into a given folder."""
    return _cluster
