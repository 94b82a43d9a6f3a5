"""Tasks on a cluster that loses workers: a few at a time, each tried a set number of times, none waited for forever."""

import logging
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from distributed import CancelledError, Client, Future, KilledWorker, wait

from hotdask.errors import DiskFullError, HotdaskError, RunError
from hotdask.pipeline.progress import Progress
from hotdask.pipeline.signals import Stop, gentle_stop
from hotdask.store.receipts import Receipt

RETRIES = 2
"""How often a task is tried again that failed for a reason that may pass."""
_IN_FLIGHT = 3
"""Tasks a worker thread has waiting: enough never to idle, few enough that a lost scheduler loses little."""
_LOOK = 1.0
"""Seconds without news after which to look at the cluster, and within which a signal is answered."""


def run_tasks(
    client: Client,
    step: str,
    tasks: Mapping[int, tuple],
    *,
    total: int,
    done: int,
    rows: Callable[[Receipt], int],
    resources: Mapping[str, float] | None = None,
    patience: float = 300.0,
) -> None:
    """Submit tasks a few at a time and wait for all; failures are collected, so that one does not stop the rest.

    A task that raises `HotdaskError` is not tried again, others are tried `RETRIES` more times. Dask blames a dying
    worker on every task it had, so those blamed are run again one by one when the others are done: what was only near
    passes, and what kills its worker once more is named.

    The first SIGINT or SIGTERM lets what runs end, the second stops at once.

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
    patience : float
        How long to wait while no worker could take a task [s].

    Raises
    ------
    RunError
        If any failed, naming partitions and causes; if no worker has such resources, or all are gone; if the scheduler
        is gone; if the disk is full, after which nothing more is begun.
    KeyboardInterrupt
        After a signal.
    """
    cluster = _Watch(client, resources or {}, patience)
    cluster.check_resources()
    progress = Progress(step, total, done=done)
    with gentle_stop() as stop:
        flight = _Flight(cluster, step, tasks, lambda receipt: progress.add(rows(receipt)), stop)
        suspects = flight.run(tasks, max(_IN_FLIGHT * cluster.threads(), 8))
        for partition in suspects:
            if flight.run([partition], 1):
                flight.failed[partition] = RunError(
                    f"killed its worker whenever it ran, alone too: it needs more memory than the {cluster.memory()}, "
                    "or crashes; raise cluster.memory_limit (fewer cluster.workers make room), or see the workers' logs"
                )
        progress.finish()
        if stop.requested:
            raise KeyboardInterrupt
    if flight.full is not None:
        raise DiskFullError(f"{step}: {flight.full}; {len(flight.landed)} of {len(tasks)} tasks are done and kept")
    if flight.failed:
        failed = sorted(flight.failed.items())
        lines = "\n".join(f"  {step} {partition}: {_describe(error)}" for partition, error in failed[:10])
        raise RunError(
            f"{len(failed)} of {len(tasks)} {step} tasks failed; the others are done and kept:\n{lines}\n"
            "mend the cause and run the same command again"
        ) from failed[0][1]


@contextmanager
def watched(client: Client, patience: float) -> Iterator[None]:
    """End what waits for the cluster in the block when no worker is left, or the scheduler is gone.

    Raises
    ------
    RunError
        If so.
    """
    cluster = _Watch(client, {}, patience)
    ended = threading.Event()
    lost: list[RunError] = []

    def look() -> None:
        while not ended.wait(_LOOK):
            try:
                cluster.look()
            except RunError as error:
                lost.append(error)
                # Whoever waits for these hears of it; without a scheduler, the client has told them already.
                with suppress(Exception):
                    client.cancel([Future(key, client) for key in list(client.futures)])
                return

    thread = threading.Thread(target=look, name="watch", daemon=True)
    thread.start()
    try:
        yield
    except CancelledError as error:
        raise (lost[0] if lost else cluster.gone()) from error
    finally:
        ended.set()
        thread.join()


class _Failure:
    """An error that is returned, not raised: Dask tries what raises again."""

    def __init__(self, error: HotdaskError):
        self.error = error


def _attempt(function: Callable, *arguments: object) -> object:
    try:
        return function(*arguments)
    except HotdaskError as error:
        return _Failure(error)


def _describe(error: BaseException) -> str:
    tried = "would fail again" if isinstance(error, HotdaskError) else f"tried {RETRIES + 1} times"
    return f"{type(error).__name__}: {error} ({tried})"


class _Flight:
    """Tasks that are under way, and what became of those that ended."""

    def __init__(
        self,
        cluster: "_Watch",
        step: str,
        tasks: Mapping[int, tuple],
        count: Callable[[Receipt], None],
        stop: Stop,
    ):
        self.cluster, self.step, self.tasks, self.count, self.stop = cluster, step, tasks, count, stop
        # Two runs on one scheduler must not be given each other's results.
        self.token = uuid.uuid4().hex[:8]
        self.submitted = 0
        self.running: dict[Future, int] = {}
        self.landed: set[int] = set()
        self.failed: dict[int, BaseException] = {}
        self.full: DiskFullError | None = None

    def run(self, partitions: Iterable[int], limit: int) -> list[int]:
        """Run tasks, at most ``limit`` at a time; returns those whose worker died too often."""
        waiting, killed = deque(partitions), []
        grounded = False
        while waiting or self.running:
            if (self.stop.requested or self.full is not None) and not grounded:
                grounded = True
                waiting.clear()
                self._withdraw()
                continue
            while waiting and len(self.running) < limit:
                self._submit(waiting.popleft())
            for future in self._ended():
                partition = self.running.pop(future)
                error = self._outcome(future, partition)
                if isinstance(error, KilledWorker):
                    killed.append(partition)
                elif isinstance(error, DiskFullError):
                    self.full = error
                elif error is not None:
                    self.failed[partition] = error
                future.release()
        return [] if grounded else killed

    def _submit(self, partition: int) -> None:
        self.submitted += 1
        future = self.cluster.client.submit(
            _attempt,
            *self.tasks[partition],
            key=f"{self.step}-{partition:05d}-{self.token}-{self.submitted}",
            pure=False,
            retries=RETRIES,
            resources=dict(self.cluster.resources) or None,
        )
        self.running[future] = partition

    def _ended(self) -> list[Future]:
        try:
            # Else it would wait with whichever client came last.
            with self.cluster.client.as_current():
                ended = wait(list(self.running), timeout=_LOOK, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            self.cluster.look()
            return []
        except CancelledError as error:
            raise self.cluster.gone() from error
        self.cluster.heard()
        return list(ended)

    def _outcome(self, future: Future, partition: int) -> BaseException | None:
        error, result = self._fetch(future)
        if error is not None:
            return error
        if isinstance(result, _Failure):
            return result.error
        self.landed.add(partition)
        self.count(result)
        return None

    def _fetch(self, future: Future) -> tuple[BaseException | None, object]:
        """Error or result; what was lost with its worker is made again, for which one has to wait."""
        while True:
            try:
                error = future.exception(timeout=10 * _LOOK)
                result = None if error is not None else future.result(timeout=10 * _LOOK)
            except OSError:
                # Nothing came in time, or a connection broke: to a worker, or to a scheduler that is gone.
                self.cluster.look()
                time.sleep(_LOOK)
                continue
            except Exception as lost:
                # Of what a client has forgotten with its scheduler, it raises one thing or another.
                if future.cancelled():
                    raise self.cluster.gone() from lost
                raise
            if future.cancelled():
                raise self.cluster.gone()
            return error, result

    def _withdraw(self) -> None:
        """Take back what no worker has begun."""
        # Of all that runs: asked for by name, a task that has just ended is an error.
        begun = {key for stacks in self.cluster.client.call_stack().values() for key in stacks}
        idle = [future for future in self.running if future.key not in begun and future.status == "pending"]
        self.cluster.client.cancel(idle)
        for future in idle:
            del self.running[future]
        if self.running:
            why = "the disk is full" if self.full is not None else "asked to stop (once more: at once)"
            print(f"{self.step}: {why}; {len(self.running)} tasks that run are finished first", file=sys.stderr)


class _Watch:
    """What is left of a cluster."""

    def __init__(self, client: Client, resources: Mapping[str, float], patience: float):
        self.client, self.resources, self.patience = client, resources, patience
        self._seen = time.monotonic()
        self._address = client.scheduler.address
        self._memory = 0

    def _workers(self) -> list[dict]:
        """Workers that could take a task."""
        try:
            workers = self.client.scheduler_info(n_workers=-1).get("workers", {}).values()
        except (OSError, TimeoutError, CancelledError, RuntimeError) as error:
            raise self.gone() from error
        # A client that lost its scheduler answers with what it knew, or with nothing.
        if self.client.status != "running":
            raise self.gone()
        able = [w for w in workers if all(w["resources"].get(n, 0) >= amount for n, amount in self.resources.items())]
        self._memory = min((w["memory_limit"] for w in able if w["memory_limit"]), default=self._memory)
        return able

    def check_resources(self) -> None:
        """See that tasks would not wait forever."""
        if self.resources and not self._workers():
            name, amount = next(iter(self.resources.items()))
            raise RunError(
                f'cluster.device = "cuda", and no worker has the resource {name}; start workers with '
                f'`dask worker ADDRESS --nthreads 1 --resources "{name}={amount:g}"`, one for each'
            )

    def threads(self) -> int:
        return sum(worker["nthreads"] for worker in self._workers())

    def memory(self) -> str:
        """What a worker has, or had when one was last seen."""
        return f"{self._memory / 2**20:.0f} MiB a worker has" if self._memory else "machine has"

    def heard(self) -> None:
        """Note that something was done: there are workers."""
        self._seen = time.monotonic()

    def look(self) -> None:
        """Raise RunError if the scheduler is gone, or no worker was there for too long."""
        if self._workers():
            self.heard()
        elif time.monotonic() - self._seen > self.patience:
            raise RunError(
                f"no worker was left for {self.patience:g} s (cluster.patience); what is done is kept: start workers, "
                "or raise their memory_limit if that is why they died, and run the same command again"
            )

    def gone(self) -> RunError:
        """The error to raise when the scheduler does not answer, or has forgotten what was asked."""
        # The client goes on calling it, and prints a traceback when it is told to give up.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        return RunError(
            f"the scheduler {self._address} is gone; what is done is kept: start it, and run the same command again"
        )
