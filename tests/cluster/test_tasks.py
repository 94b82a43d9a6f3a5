"""Tasks as such; what they promise when things go wrong is tested in tests/promises."""

import time
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from hotdask.cluster.client import GPU
from hotdask.cluster.tasks import run_tasks
from hotdask.errors import RunError
from hotdask.store.receipts import Receipt


def _count(folder: str, partition: int) -> Receipt:
    """Leaves a file for each call."""
    calls = len(list(Path(folder).glob(f"{partition}-*")))
    Path(folder, f"{partition}-{calls}").touch()
    return Receipt("step", partition, "", 10, {})


def _slowly(folder: str, partition: int) -> Receipt:
    time.sleep(0.02)
    return _count(folder, partition)


def test_tasks_that_take_a_gpu_go_to_workers_that_have_one(client: Client, tmp_path: Path) -> None:
    tasks = {p: (_count, str(tmp_path), p) for p in range(4)}
    how = {"total": 4, "done": 0, "rows": lambda receipt: 1, "resources": {GPU: 1}}
    with pytest.raises(RunError, match=r"no worker has the resource GPU; start workers with `dask worker.*GPU=1"):
        run_tasks(client, "count", tasks, **how)
    assert not list(tmp_path.iterdir())
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", resources={GPU: 1}) as cluster,
        Client(cluster, set_as_default=False) as owner,
    ):
        run_tasks(owner, "count", tasks, **how)
    assert len(list(tmp_path.iterdir())) == 4


def test_many_tasks_run_once_each(client: Client, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tasks = {p: (_count, str(tmp_path), p) for p in range(60)}
    run_tasks(client, "step", tasks, total=700, done=100, rows=lambda receipt: receipt.rows)
    assert len(list(tmp_path.iterdir())) == 60
    assert capsys.readouterr().err.split()[:4] == ["step", "700/700", "100", "%"]


def test_the_scheduler_knows_the_whole_step(client: Client, tmp_path: Path) -> None:
    """What the dashboard shows of a step of 200 partitions: all of them, and how many are done."""
    seen = []

    def counts(dask_scheduler) -> dict[str, int]:
        return {state: n for state, n in dask_scheduler.task_prefixes["shown"].states.items() if n}

    def rows(receipt: Receipt) -> int:
        if len(seen) < 3 and receipt.partition % 50 == 49:
            seen.append((receipt.partition, client.run_on_scheduler(counts)))
        return 1

    tasks = {p: (_slowly, str(tmp_path), p) for p in range(200)}
    run_tasks(client, "shown", tasks, total=200, done=0, rows=rows)
    assert len(seen) == 3
    for _, found in seen:
        assert sum(n for state, n in found.items() if state != "forgotten") == 200, found
    assert seen[-1][1]["memory"] > seen[0][1]["memory"] >= 1
