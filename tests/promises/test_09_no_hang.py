"""Promise 9: a run whose workers or scheduler are gone ends, with an error that says so."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from distributed import Client

from hotdask import config
from hotdask.cluster.client import open_client
from hotdask.cluster.tasks import run_tasks, watched
from hotdask.errors import RunError
from hotdask.store.receipts import Receipt


def _linger(folder: str, partition: int, seconds: float) -> Receipt:
    Path(folder, f"begun-{partition}").touch()
    time.sleep(seconds)
    Path(folder, f"done-{partition}").touch()
    return Receipt("step", partition, "", 1, {})


def _begin(tmp_path: Path, harm: Callable[[], None], after: int) -> Callable[[Receipt], int]:
    """Does harm as soon as ``after`` tasks are done."""
    done: list[int] = []

    def rows(receipt: Receipt) -> int:
        done.append(receipt.partition)
        if len(done) == after:
            harm()
        return 1

    return rows


@pytest.mark.parametrize("pause", [1, pytest.param(15, marks=pytest.mark.long)])
def test_the_only_worker_may_die_twice(tmp_path: Path, pause: float) -> None:
    deaths: list[float] = []
    with open_client(config.Cluster(workers=1, dashboard="127.0.0.1:0"), echo=lambda line: None) as client:

        def kill() -> None:
            if len(deaths) < 2 and (not deaths or time.monotonic() - deaths[-1] > pause):
                # By its process id, which a worker knows best.
                (pid,) = client.run(_pid).values()
                psutil.Process(pid).kill()
                deaths.append(time.monotonic())

        tasks = {p: (_linger, str(tmp_path), p, pause / 4) for p in range(12)}
        run_tasks(client, "step", tasks, total=12, done=0, rows=lambda receipt: kill() or 1)
    assert len(deaths) == 2
    assert len(list(tmp_path.glob("done-*"))) == 12


def _pid() -> int:
    import os

    return os.getpid()


def test_without_workers_a_run_ends(cluster: Callable, tmp_path: Path) -> None:
    tasks = {p: (_linger, str(tmp_path), p, 0.05 if p < 3 else 60) for p in range(9)}
    with cluster(tmp_path) as made, Client(made.address, set_as_default=False) as client:

        def harm() -> None:
            family = [psutil.Process(made.worker.pid), *psutil.Process(made.worker.pid).children(recursive=True)]
            for process in family:
                process.kill()

        client.wait_for_workers(1, timeout=120)
        how = {"total": 9, "done": 0, "rows": _begin(tmp_path, harm, 3), "patience": 2}
        with pytest.raises(RunError, match=r"no worker was left for 2 s \(cluster\.patience\); what is done is kept"):
            run_tasks(client, "step", tasks, **how)
        assert len(list(tmp_path.glob("done-*"))) == 3
        # The same for what is not a run of tasks.
        future = client.submit(time.sleep, 1)
        with pytest.raises(RunError, match="no worker was left for 1 s"), watched(client, 1):
            future.result()

        made.scheduler.kill()
        with pytest.raises(RunError, match=r"the scheduler .*is gone; .*run the same command again"):
            run_tasks(client, "step", tasks, total=9, done=0, rows=lambda receipt: 1)


def test_without_a_scheduler_a_run_ends(cluster: Callable, tmp_path: Path) -> None:
    tasks = {p: (_linger, str(tmp_path), p, 0.05 if p < 3 else 60) for p in range(9)}
    with cluster(tmp_path) as made, Client(made.address, set_as_default=False, timeout="2s") as client:
        client.wait_for_workers(1, timeout=120)
        rows = _begin(tmp_path, made.scheduler.kill, 3)
        with pytest.raises(RunError, match=r"the scheduler .*is gone; .*run the same command again"):
            run_tasks(client, "step", tasks, total=9, done=0, rows=rows)
    assert len(list(tmp_path.glob("done-*"))) == 3


def test_a_scheduler_that_stands_still_ends_a_run(cluster: Callable, tmp_path: Path) -> None:
    tasks = {p: (_linger, str(tmp_path), p, 0.05) for p in range(500)}
    with cluster(tmp_path) as made, Client(made.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=120)
        how = {"total": 500, "done": 0, "patience": 3}
        process, silent = psutil.Process(made.scheduler.pid), r"the scheduler .* has not answered for \d+ s"
        began = time.monotonic()
        with pytest.raises(RunError, match=silent):
            run_tasks(client, "step", tasks, rows=_begin(tmp_path, process.suspend, 3), **how)
        with pytest.raises(RunError, match=silent), watched(client, 3):
            client.submit(time.sleep, 1).result()
        assert time.monotonic() - began < 30
        process.resume()
