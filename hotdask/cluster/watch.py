"""What is left of a cluster, and which of its workers stand still. Every question to it has a time limit."""

import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping

from distributed import CancelledError, Client

from hotdask.cluster.identity import check_code, code_identity
from hotdask.errors import RunError, WorkerError

ANSWER = 10.0
"""Seconds that a scheduler or a worker may take for an answer."""
_IDLE = 10.0
"""Percent of a core below which a worker computes nothing."""


def within(seconds: float, function: Callable, *arguments: object, **options: object) -> object:
    """What a call returns; a client's own calls wait for a scheduler that stands still forever.

    Raises
    ------
    TimeoutError
        If it takes longer; the call is left alone then.

    Examples
    --------
    >>> within(10, max, 3, 4)
    4
    """
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def call() -> None:
        try:
            answer.put((function(*arguments, **options), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=call, name="ask", daemon=True).start()
    try:
        result, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return result


class Watch:
    """What is left of a cluster.

    Parameters
    ----------
    client : distributed.Client
    resources : mapping of str to float
        What a worker must have to count.
    patience : float
        How long scheduler or all workers may be away [s].
    """

    def __init__(self, client: Client, resources: Mapping[str, float], patience: float):
        self.client, self.resources, self.patience = client, resources, patience
        self.workers: dict[str, dict] = {}
        self._address = client.scheduler.address
        self._memory = 0
        self._seen = self._answered = time.monotonic()
        self._beats: dict[str, tuple[float, float]] = {}
        self._busy: dict[str, float] = {}

    def ask(self, function: Callable, *arguments: object, **options: object) -> object:
        """What the scheduler says to a call of the client.

        Raises
        ------
        TimeoutError
            If nothing, this time.
        RunError
            If it is gone, or has not answered for all the patience.
        """
        try:
            answer = within(min(ANSWER, self.patience), function, *arguments, **options)
        except TimeoutError:
            if (silent := time.monotonic() - self._answered) >= self.patience:
                raise self.gone(f"has not answered for {silent:.0f} s (cluster.patience)") from None
            raise
        except (OSError, CancelledError, RuntimeError) as error:
            raise self.gone() from error
        # A client that lost its scheduler answers with what it knew, or with nothing.
        if self.client.status != "running":
            raise self.gone()
        self._answered = time.monotonic()
        return answer

    def look(self) -> None:
        """Learn which workers there are; raise RunError if there was none for too long.

        Raises
        ------
        TimeoutError
            As `ask`.
        RunError
            As `ask`.
        """
        known = self.ask(self.client.scheduler_info, n_workers=-1).get("workers", {})
        now = time.monotonic()
        self.workers = {
            address: worker
            for address, worker in known.items()
            if all(worker["resources"].get(name, 0) >= amount for name, amount in self.resources.items())
        }
        for address, worker in self.workers.items():
            self._busy.setdefault(address, now)
            # The scheduler's clock may differ from this one, so what counts is that a time changes.
            if self._beats.get(address, (None, 0))[0] != worker["last_seen"]:
                self._beats[address] = worker["last_seen"], now
                if worker.get("metrics", {}).get("cpu", 0.0) >= _IDLE:
                    self._busy[address] = now
        self._memory = min(
            (w["memory_limit"] for w in self.workers.values() if w["memory_limit"]), default=self._memory
        )
        if self.workers:
            self._seen = now
        elif now - self._seen > self.patience:
            raise RunError(
                f"no worker was left for {self.patience:g} s (cluster.patience); what is done is kept: start workers, "
                "or raise their memory_limit if that is why they died, and run the same command again"
            )

    def silent(self, address: str) -> float:
        """For how long a worker has not said that it lives [s]."""
        if address not in self._beats:
            return 0.0
        beat, noted = self._beats[address]
        latest = max(self._beats[other][0] for other in self.workers) if self.workers else beat
        return max(time.monotonic() - noted, latest - beat)

    def idle(self, address: str) -> float:
        """For how long a worker has computed nothing, or was not heard of [s]."""
        return time.monotonic() - self._busy[address]

    def assigned(self) -> dict[object, str]:
        """Worker of each task that has one, by key; errors as `ask`."""
        return {key: worker for worker, keys in self.ask(self.client.processing).items() for key in keys}

    def begun(self) -> set:
        """Keys of tasks that run; those that have a worker, if not all say which they run."""
        try:
            # Of all that runs: asked for by name, a task that has just ended is an error.
            stacks = within(min(ANSWER / 2, self.patience), self.client.call_stack)
        # One worker that stands still keeps the answer of all; one that dies breaks it.
        except Exception:
            return set(self.assigned())
        return {key for keys in stacks.values() for key in keys}

    def strangers(self) -> dict[str, str]:
        """Workers that run other code than this process, and what to do about it."""
        ready = [address for address in self.workers if self.silent(address) < ANSWER]
        if not ready:
            return {}
        run = functools.partial(self.client.run, check_code, code_identity(), workers=ready, on_error="return")
        try:
            answers = within(ANSWER, run)
        # Each task looks once more where it runs.
        except Exception:
            return {}
        # Code so old that it lacks the question cannot even read it.
        other = (WorkerError, AttributeError, ImportError)
        return {
            address: str(answer) if isinstance(answer, WorkerError) else f"it runs another hotdask ({answer})"
            for address, answer in answers.items()
            if isinstance(answer, other)
        }

    def check_resources(self) -> None:
        """See that tasks would not wait forever."""
        if self.resources and not self.workers:
            name, amount = next(iter(self.resources.items()))
            raise RunError(
                f'cluster.device = "cuda", and no worker has the resource {name}; start workers with '
                f'`dask worker ADDRESS --nthreads 1 --resources "{name}={amount:g}"`, one for each'
            )

    def threads(self) -> int:
        """Tasks that could run at once."""
        return sum(worker["nthreads"] for worker in self.workers.values())

    def memory(self) -> str:
        """What a worker has, or had when one was last seen."""
        return f"{self._memory / 2**20:.0f} MiB a worker has" if self._memory else "machine has"

    def gone(self, why: str = "is gone") -> RunError:
        """The error to raise when the scheduler does not answer, or has forgotten what was asked."""
        # The client goes on calling it, and prints a traceback when it is told to give up; so does what it had begun.
        for name in ("distributed.client", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        return RunError(
            f"the scheduler {self._address} {why}; what is done is kept: start it, and run the same command again"
        )
