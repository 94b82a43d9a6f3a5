"""Running tasks on a cluster: a few at a time, each tried a few times, failures collected."""

import uuid
from collections.abc import Callable, Mapping

from distributed import Client, Future, as_completed

from hotdask.errors import RunError
from hotdask.pipeline.progress import Progress
from hotdask.store.receipts import Receipt

_IN_FLIGHT = 3
"""Tasks a worker thread has waiting: enough never to idle, few enough that a lost scheduler loses little."""


def run_tasks(
    client: Client,
    step: str,
    tasks: Mapping[int, tuple],
    *,
    total: int,
    done: int,
    rows: Callable[[Receipt], int],
    resources: Mapping[str, float] | None = None,
) -> None:
    """Submit tasks a few at a time and wait for all; failures are collected, so that one does not stop the rest.

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

    Raises
    ------
    RunError
        If any failed, naming partitions and causes; or if no worker has such resources.
    """
    _check_resources(client, resources or {})
    progress = Progress(step, total, done=done)
    # Two runs on one scheduler must not be given each other's results.
    token = uuid.uuid4().hex[:8]
    how = {"pure": False, "retries": 2, "resources": resources}
    waiting = iter(tasks.items())
    running: dict[Future, int] = {}
    failed: dict[int, BaseException] = {}

    def submit() -> Future | None:
        partition, (function, *arguments) = next(waiting, (None, (None,)))
        if function is None:
            return None
        future = client.submit(function, *arguments, **how, key=f"{step}-{partition:05d}-{token}")
        running[future] = partition
        return future

    limit = max(_IN_FLIGHT * sum(w["nthreads"] for w in client.scheduler_info(n_workers=-1)["workers"].values()), 8)
    finished = as_completed([f for f in (submit() for _ in range(min(limit, len(tasks)))) if f is not None])
    for future in finished:
        partition = running.pop(future)
        error = future.exception()
        if error is not None:
            failed[partition] = error
        else:
            progress.add(rows(future.result()))
        future.release()
        following = submit()
        if following is not None:
            finished.add(following)
    progress.finish()
    if failed:
        lines = "\n".join(f"  {step} {p}: {type(e).__name__}: {e}" for p, e in sorted(failed.items())[:10])
        raise RunError(
            f"{len(failed)} of {len(tasks)} {step} tasks failed; the others are done and kept:\n{lines}\n"
            "mend the cause and run the same command again"
        ) from next(iter(failed.values()))


def _check_resources(client: Client, resources: Mapping[str, float]) -> None:
    """See that tasks would not wait forever."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    for name, amount in resources.items():
        if not any(worker["resources"].get(name, 0) >= amount for worker in workers):
            raise RunError(
                f'cluster.device = "cuda", and no worker has the resource {name}; start workers with '
                f'`dask worker ADDRESS --nthreads 1 --resources "{name}={amount:g}"`, one for each'
            )
