"""Tasks on a cluster that loses workers: in waves, each tried a set number of times, none waited for forever."""

import statistics
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial

import dask
from distributed import CancelledError, Client, Future, KilledWorker, get_worker, wait

from hotdask.cluster.identity import check_code, code_identity
from hotdask.cluster.progress import Progress
from hotdask.cluster.signals import Stop, gentle_stop
from hotdask.cluster.watch import ANSWER, Watch
from hotdask.errors import DiskFullError, HotdaskError, RunError, WorkerError
from hotdask.store.receipts import Receipt

RETRIES = 2
"""How often a task is tried again that failed for a reason that may pass."""
_WAVE = 256
"""Tasks the scheduler has at once, at least: so many that the dashboard shows how far a step is."""
_IN_FLIGHT = 3
"""Tasks for each thread, at least; as many where they must be given to workers at once, since only some may take them.
"""
_LOOK = 1.0
"""Seconds after which to look at the cluster again, and within which a signal is answered."""
_FETCH = 5.0
"""Seconds that the result of a task, a few numbers, may take from its worker."""
_FAR_BEYOND = 10
"""A task that takes so many times what its siblings took stands still."""
_ALONE = 4
"""As many times the patience, a task must compute nothing to stand still, while no sibling has ended."""
_SIBLINGS = 200
"""How many of the last tasks say how long one takes."""

Again = Callable[[int, WorkerError], tuple | None]


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
    again: Again | None = None,
) -> None:
    """Submit tasks in waves and wait for all; failures are collected, so that one does not stop the rest.

    Tasks that ended are not forgotten before the step ends: the dashboard counts them. One whose worker dies later is
    asked for again by Dask, sees that it is done, and returns its receipt.

    A task that raises `HotdaskError` is not tried again, others are tried `RETRIES` more times. Dask blames a dying
    worker on every task it had, so those blamed are run again one by one when the others are done: what was only near
    passes, and what kills its worker once more is named.

    A worker that runs other code than this process, or raises `WorkerError`, is left out. So is one that stands still:
    that has not been heard of for the patience, or has a task that takes `_FAR_BEYOND` times as long as its siblings
    took, and longer than the patience. Its tasks are given to others; tasks may be done twice, and the first to end
    counts.

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
        How long to wait while no worker could take a task, or the scheduler does not answer [s].
    again : callable, optional
        Told the partition and the error of a task that a worker refuses; returns the task that any worker can do
        instead, or None if it is the worker that cannot; raises what the task fails with if nobody can.

    Raises
    ------
    RunError
        If any failed, naming partitions and causes; if no worker has such resources, or all are gone, stand still or
        are left out; if the scheduler is gone or does not answer; if the disk is full, after which nothing more is
        begun.
    KeyboardInterrupt
        After a signal.
    """
    cluster = Watch(client, resources or {}, patience)
    progress = Progress(step, total, done=done)
    with gentle_stop() as stop:
        flight = _Flight(cluster, step, tasks, lambda receipt: progress.add(rows(receipt)), stop, again)
        flight.board()
        suspects = flight.run(tasks)
        for partition in suspects:
            if flight.run([partition], alone=True):
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
def watched(client: Client, patience: float) -> Iterator[list[str] | None]:
    """End what waits for the cluster in the block when no worker is left, or the scheduler is gone.

    Dask collections that are computed in the block keep to workers with this process's code.

    Yields
    ------
    list of str or None
        The workers to keep to; None: any.

    Raises
    ------
    RunError
        If so; if a shuffle cannot write to a worker's own disk.
    """
    cluster = Watch(client, {}, patience)
    _await_answer(cluster, lambda: False)
    strangers = cluster.strangers()
    _name(strangers)
    own = sorted(set(cluster.workers) - set(strangers))
    if strangers and not own:
        raise RunError(_none_left(strangers))
    ended = threading.Event()
    lost: list[RunError] = []

    def look() -> None:
        while not ended.wait(_LOOK):
            try:
                cluster.look()
            except TimeoutError:
                continue
            except RunError as error:
                lost.append(error)
                # Whoever waits for these hears of it; without a scheduler, the client has told them already.
                with suppress(Exception):
                    client.cancel([Future(key, client) for key in list(client.futures)])
                return

    thread = threading.Thread(target=look, name="watch", daemon=True)
    thread.start()
    try:
        keep = dask.config.set(scheduler=partial(client.get, workers=own)) if strangers else nullcontext()
        with keep:
            yield own if strangers else None
    except CancelledError as error:
        raise (lost[0] if lost else cluster.gone()) from error
    except RuntimeError as error:
        # A shuffle writes where workers keep what is their own.
        if not isinstance(error.__cause__, OSError):
            raise
        raise RunError(
            f"a worker cannot write to its own disk ({error.__cause__}); what is done is kept: make room there, or "
            "give workers another place by TMPDIR or --local-directory, and run the same command again"
        ) from error
    finally:
        ended.set()
        thread.join()


def _await_answer(cluster: Watch, stopped: Callable[[], bool]) -> None:
    """Look at the cluster until its scheduler answers, which it must within the patience."""
    while not stopped():
        with suppress(TimeoutError):
            return cluster.look()


def _name(strangers: Mapping[str, str], prefix: str = "") -> None:
    for address, why in strangers.items():
        print(f"{prefix}worker {address} is left out: {why}", file=sys.stderr)


def _none_left(reasons: Mapping[str, str]) -> str:
    lines = "\n".join(f"  {address}: {why}" for address, why in sorted(reasons.items())[:10])
    return (
        f"no worker is left that could do it; what is done is kept:\n{lines}\n"
        "mend the cause and run the same command again"
    )


class _Failure:
    """An error that is returned, not raised: Dask tries what raises again."""

    def __init__(self, error: HotdaskError, worker: str):
        self.error, self.worker = error, worker


def _attempt_with(code: str, function: Callable, *arguments: object) -> object:
    """Call a function if this process runs the launcher's code; before that, nothing is read or written."""
    try:
        check_code(code)
        return function(*arguments)
    except HotdaskError as error:
        return _Failure(error, get_worker().address)


def _describe(error: BaseException) -> str:
    tried = "would fail again" if isinstance(error, HotdaskError) else f"tried {RETRIES + 1} times"
    return f"{type(error).__name__}: {error} ({tried})"


@dataclass
class _Trip:
    """One copy of a task: where it is, since when, and where it may go; None: anywhere."""

    partition: int
    since: float
    allowed: frozenset[str] | None
    worker: str | None = None


class _Flight:
    """Tasks that are under way, and what became of those that ended."""

    def __init__(
        self,
        cluster: Watch,
        step: str,
        tasks: Mapping[int, tuple],
        count: Callable[[Receipt], None],
        stop: Stop,
        again: Again | None,
    ):
        self.cluster, self.step, self.tasks, self.count, self.stop = cluster, step, dict(tasks), count, stop
        self.again = again
        # Two runs on one scheduler must not be given each other's results.
        self.token = uuid.uuid4().hex[:8]
        self.code = code_identity()
        self.submitted = 0
        self.unfetched: Counter[int] = Counter()
        self.running: dict[Future, _Trip] = {}
        self.ended: list[Future] = []
        self.landed: set[int] = set()
        self.failed: dict[int, BaseException] = {}
        self.full: DiskFullError | None = None
        self.refused: dict[str, str] = {}
        self.still: set[str] = set()
        self._hung: set[str] = set()
        self._took: deque[float] = deque(maxlen=_SIBLINGS)
        self._looked = 0.0
        self._ending: float | None = None

    def board(self) -> None:
        """See which workers there are, and leave out those with other code."""
        _await_answer(self.cluster, lambda: self.stop.requested)
        self.cluster.check_resources()
        for address, why in self.cluster.strangers().items():
            self._refuse(address, why)
        if self.refused and not self._good():
            raise RunError(f"{self.step}: {_none_left(self.refused)}")

    def _limit(self) -> int:
        """How many tasks the scheduler may have at once."""
        few = max(_IN_FLIGHT * self.cluster.threads(), 8)
        # Tasks that only some workers may take do not wait at the scheduler: they would all be one worker's at once.
        return few if self.cluster.resources or self.refused or self.still else max(few, _WAVE)

    def run(self, partitions: Iterable[int], *, alone: bool = False) -> list[int]:
        """Run tasks, or one alone; returns those whose worker died too often."""
        waiting, killed = deque(partitions), []
        while waiting or self.running:
            if self.stop.requested or self.full is not None:
                waiting.clear()
                if self._ending is None:
                    self._ending = time.monotonic()
                    self._withdraw()
                    continue
            limit = 1 if alone else self._limit()
            while waiting and len(self.running) < limit:
                self._submit(waiting.popleft())
            for future in self._ended():
                if future not in self.running:
                    continue
                trip = self.running[future]
                error = self._outcome(future, trip)
                if any(other.partition == trip.partition for other in self.running.values()):
                    # Another copy is under way, and may do better.
                    continue
                if isinstance(error, KilledWorker):
                    killed.append(trip.partition)
                elif isinstance(error, DiskFullError):
                    self.full = error
                elif error is not None:
                    self.failed[trip.partition] = error
            if time.monotonic() - self._looked >= _LOOK:
                self._tend()
                self._looked = time.monotonic()
        return [] if self._ending is not None else killed

    def _good(self) -> list[str]:
        """Workers that are neither left out nor stand still."""
        return sorted(set(self.cluster.workers) - set(self.refused) - self.still)

    def _submit(self, partition: int, avoid: Set[str] = frozenset()) -> None:
        self.submitted += 1
        allowed = sorted(set(self._good()) - avoid) if self.refused or self.still or avoid else None
        future = self.cluster.client.submit(
            _attempt_with,
            self.code,
            *self.tasks[partition],
            key=f"{self.step}-{partition:05d}-{self.token}-{self.submitted}",
            pure=False,
            retries=RETRIES,
            resources=dict(self.cluster.resources) or None,
            workers=allowed or None,
        )
        self.running[future] = _Trip(partition, time.monotonic(), frozenset(allowed) if allowed else None)

    def _ended(self) -> list[Future]:
        try:
            # Else it would wait with whichever client came last.
            with self.cluster.client.as_current():
                return list(wait(list(self.running), timeout=_LOOK, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            return []
        except CancelledError as error:
            raise self.cluster.gone() from error

    def _outcome(self, future: Future, trip: _Trip) -> BaseException | None:
        """Why a task that ended failed, if it did."""
        try:
            error = future.exception(timeout=_FETCH)
            result = None if error is not None else future.result(timeout=_FETCH)
        except OSError:
            # Nothing came in time, or a connection broke.
            return self._fetch_elsewhere(future, trip)
        except Exception as lost:
            # Of what a client has forgotten with its scheduler, it raises one thing or another.
            if future.cancelled():
                raise self.cluster.gone() from lost
            raise
        if future.cancelled():
            raise self.cluster.gone()
        del self.running[future]
        if error is None and not isinstance(result, _Failure):
            self.ended.append(future)
        else:
            future.release()
        if isinstance(result, _Failure) and isinstance(result.error, WorkerError):
            return self._go_elsewhere(trip, result)
        if error is not None or isinstance(result, _Failure):
            return error or result.error
        self._land(trip, result)
        return None

    def _fetch_elsewhere(self, future: Future, trip: _Trip) -> RunError | None:
        """Have a task done once more whose worker does not hand over what it returned."""
        holders: set[str] = set()
        if self._ending is None:
            with suppress(TimeoutError):
                holders = {
                    a for found in self.cluster.ask(self.cluster.client.who_has, [future]).values() for a in found
                }
        self._drop(future)
        if self._ending is not None:
            return None
        self.unfetched[trip.partition] += 1
        if self.unfetched[trip.partition] > RETRIES:
            named = ", ".join(sorted(holders)) or "its worker"
            return RunError(f"{named} did not hand over what it returned, {RETRIES + 1} times; see what keeps it")
        self._submit(trip.partition, avoid=holders)
        return None

    def _land(self, trip: _Trip, receipt: Receipt) -> None:
        # A receipt says how long its task took; since when others run, the last look knows.
        told = receipt.extra.get("seconds") if isinstance(receipt, Receipt) else None
        self._took.append(told or time.monotonic() - trip.since)
        self.still.discard(trip.worker)
        self._hung.discard(trip.worker)
        for copy in [future for future, other in self.running.items() if other.partition == trip.partition]:
            self._drop(copy)
        if trip.partition not in self.landed:
            self.landed.add(trip.partition)
            self.count(receipt)

    def _drop(self, future: Future) -> None:
        del self.running[future]
        # Only told to the scheduler, not waited for.
        self.cluster.client.cancel([future])

    def _go_elsewhere(self, trip: _Trip, failure: _Failure) -> HotdaskError | None:
        """Give a task that a worker refused to others, or change it; the error to end with if there are no others."""
        if self._ending is not None:
            return None
        try:
            changed = None if self.again is None else self.again(trip.partition, failure.error)
        except HotdaskError as error:
            return error
        if changed is not None:
            self.tasks[trip.partition] = changed
        else:
            self._refuse(failure.worker, str(failure.error))
            if not self._good():
                raise RunError(f"{self.step}: {_none_left(self.refused)}")
        self._submit(trip.partition)
        return None

    def _refuse(self, address: str, why: str) -> None:
        if address not in self.refused:
            self.refused[address] = why
            _name({address: why}, f"{self.step}: ")

    def _tend(self) -> None:
        """Look at the cluster, and give what workers that stand still have to others."""
        try:
            self.cluster.look()
            assigned = self.cluster.assigned()
        except TimeoutError:
            if self._ending is not None and time.monotonic() - self._ending >= ANSWER:
                self._abandon(list(self.running), "the scheduler does not answer")
            return
        now = time.monotonic()
        for future, trip in self.running.items():
            worker = assigned.get(future.key, trip.worker)
            if worker != trip.worker:
                trip.worker, trip.since = worker, now
        found = {address: seconds for address in self.cluster.workers if (seconds := self._stood(address)) > 0}
        if self._ending is not None:
            self._abandon([f for f, trip in self.running.items() if trip.worker in found], "workers stand still")
            return
        for address, seconds in sorted(found.items()):
            if address not in self.still:
                n = sum(trip.worker == address for trip in self.running.values())
                print(
                    f"{self.step}: worker {address} stands still for {seconds:.0f} s; its {n} tasks go to others",
                    file=sys.stderr,
                )
        # One that was silent works again when it is heard of; one whose task never ended is left out to the end.
        self.still = {a for a in self.still if a in self._hung or a in found} | found.keys()
        self._move(found)

    def _stood(self, address: str) -> float:
        """For how long a worker has stood still [s], 0 if it works."""
        patience = self.cluster.patience if self._ending is None else min(ANSWER, self.cluster.patience)
        if (silent := self.cluster.silent(address)) > patience:
            return silent
        ages = [time.monotonic() - trip.since for trip in self.running.values() if trip.worker == address]
        oldest = max(ages, default=0.0)
        if self._took:
            limit = max(patience, _FAR_BEYOND * statistics.median(self._took))
        else:
            # No sibling says how long a task takes, so that only one that computes nothing is suspicious.
            limit, oldest = _ALONE * self.cluster.patience, min(oldest, self.cluster.idle(address))
        if oldest <= limit:
            return 0.0
        self._hung.add(address)
        return oldest

    def _move(self, found: Mapping[str, float]) -> None:
        """Submit once more what only workers have that stand still or are gone."""
        good = set(self._good())
        if not good and found and all(self._hopeless(address) for address in self.still & set(self.cluster.workers)):
            named = "\n".join(f"  {address} for {seconds:.0f} s" for address, seconds in sorted(found.items())[:10])
            raise RunError(
                f"{self.step}: all workers stand still; what is done is kept:\n{named}\n"
                "see whether their processes are stopped or wait for a disk, and run the same command again"
            )
        hopeful = {trip.partition for trip in self.running.values() if self._hopeful(trip)}
        for partition in sorted({trip.partition for trip in self.running.values()} - hopeful):
            if good:
                self._submit(partition)

    def _hopeless(self, address: str) -> bool:
        """Whether a worker that stands still does not compute either."""
        patience = self.cluster.patience
        return self.cluster.silent(address) > patience or self.cluster.idle(address) > patience

    def _hopeful(self, trip: _Trip) -> bool:
        if trip.worker in self.cluster.workers:
            return trip.worker not in self.still
        return trip.allowed is None or bool(trip.allowed & self.cluster.workers.keys() - self.still)

    def _withdraw(self) -> None:
        """Take back what no worker has begun: first what waits at the scheduler, which is asked at once."""
        for keys_of in (self.cluster.assigned, self.cluster.begun):
            try:
                begun = keys_of()
            except TimeoutError:
                return
            for future in [f for f in self.running if f.key not in begun and f.status == "pending"]:
                self._drop(future)
        if self.running:
            why = "the disk is full" if self.full is not None else "asked to stop (once more: at once)"
            print(f"{self.step}: {why}; {len(self.running)} tasks that run are finished first", file=sys.stderr)

    def _abandon(self, futures: Iterable[Future], why: str) -> None:
        futures = list(futures)
        for future in futures:
            self._drop(future)
        if futures:
            print(f"{self.step}: {why}; {len(futures)} tasks are not waited for", file=sys.stderr)
