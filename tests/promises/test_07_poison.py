"""Promise 7: a partition that kills its worker is found out; those that shared the worker are not blamed."""

import os
import signal
import time
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster

from hotdask.cluster.tasks import run_tasks
from hotdask.errors import RunError
from hotdask.store.receipts import Receipt

LIMIT = 400


def _note(folder: str, partition: int) -> None:
    Path(folder, f"{partition}-{time.time_ns()}").touch()


def _die(folder: str, partition: int) -> Receipt:
    _note(folder, partition)
    os.kill(os.getpid(), signal.SIGKILL)


def _fill_memory(folder: str, partition: int) -> Receipt:
    """Three times what a worker may have, byte by byte, until somebody ends it."""
    _note(folder, partition)
    held = []
    for _ in range(3 * LIMIT // 40):
        held.append(b"x" * (40 << 20))
        time.sleep(0.1)
    time.sleep(60)
    raise AssertionError("nobody watches the memory")


def _pass(folder: str, partition: int) -> Receipt:
    _note(folder, partition)
    time.sleep(0.05)
    return Receipt("step", partition, "", 1, {})


def test_poison_is_named_and_neighbors_pass(tmp_path: Path) -> None:
    poison = {3: _die, 9: _fill_memory}
    tasks = {p: (poison.get(p, _pass), str(tmp_path), p) for p in range(14)}
    done: list[int] = []
    # One death is enough to be suspected, so that those queued on a dying worker surely are.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit=f"{LIMIT}MiB", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        pytest.raises(RunError, match="2 of 14 step tasks failed; the others are done and kept") as caught,
    ):
        run_tasks(client, "step", tasks, total=14, done=0, rows=lambda r: done.append(r.partition) or 1)
    assert sorted(done) == sorted(set(tasks) - set(poison))
    text = str(caught.value)
    for partition in poison:
        assert f"step {partition}: RunError: killed its worker whenever it ran, alone too" in text
        # Once among others and once alone.
        assert len(list(tmp_path.glob(f"{partition}-*"))) == 2
    assert f"needs more memory than the {LIMIT} MiB a worker has, or crashes; raise cluster.memory_limit" in text
    # What was poison came last, each after everything else was done.
    # (One that had just ended may be blamed and run again; its first call counts.)
    calls = {p: [int(f.name.split("-")[1]) for f in tmp_path.glob(f"{p}-*")] for p in tasks}
    assert min(max(calls[p]) for p in poison) > max(min(calls[p]) for p in {0, 1, 2})
