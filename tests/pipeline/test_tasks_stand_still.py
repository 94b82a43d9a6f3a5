"""Workers and schedulers that stand still: stopped processes, and tasks that wait for a disk that never answers."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import Client, get_worker

from hotdask import config
from hotdask.cluster.client import open_client
from hotdask.cluster.tasks import run_tasks
from hotdask.errors import RunError
from hotdask.store.receipts import Receipt


@contextmanager
def _workers(n: int, patience: float = 300.0) -> Iterator[Client]:
    settings = config.Cluster(workers=n, dashboard="127.0.0.1:0", patience=patience)
    with open_client(settings, echo=lambda line: None) as client:
        yield client


@contextmanager
def _ends_within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def _task(folder: str, partition: int, seconds: float) -> Receipt:
    Path(folder, f"begun-{partition}-{os.getpid()}").touch()
    time.sleep(seconds)
    Path(folder, f"done-{partition}").touch()
    return Receipt("step", partition, "", 1, {})


def _hangs_on(folder: str, partition: int, address: str) -> Receipt:
    """Never ends on one worker, whose heart goes on beating."""
    while get_worker().address == address:
        time.sleep(0.1)
    return _task(folder, partition, 0.05)


def _stop_when(true: Callable[[], object], pids: list[int], number: signal.Signals = signal.SIGSTOP) -> None:
    def look() -> None:
        while not true():
            time.sleep(0.01)
        for pid in pids:
            os.kill(pid, number)

    threading.Thread(target=look, daemon=True).start()


def _run(client: Client, tasks: dict[int, tuple], patience: float) -> list[int]:
    landed: list[int] = []
    run_tasks(
        client,
        "step",
        tasks,
        total=len(tasks),
        done=0,
        rows=lambda receipt: landed.append(receipt.partition) or 1,
        patience=patience,
    )
    return sorted(landed)


def test_what_a_stopped_worker_has_is_done_by_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with _ends_within(60), _workers(2) as client:
        address, pid = next(iter(client.run(os.getpid).items()))
        # In the middle of its second task.
        _stop_when(lambda: len(list(tmp_path.glob(f"begun-*-{pid}"))) == 2, [pid])
        tasks = {p: (_task, str(tmp_path), p, 0.2) for p in range(12)}
        with _ends_within(40):
            assert _run(client, tasks, patience=6) == list(range(12))
    assert len(list(tmp_path.glob("done-*"))) == 12
    assert f"step: worker {address} stands still for " in capsys.readouterr().err


@pytest.mark.long
def test_a_task_that_hangs_is_done_by_another_worker(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with _workers(2) as client:
        address = next(iter(client.scheduler_info()["workers"]))
        with _ends_within(40):
            assert _run(client, {p: (_hangs_on, str(tmp_path), p, address) for p in range(20)}, 5) == list(range(20))
    error = capsys.readouterr().err
    assert error.count("stands still for ") == 1
    assert f"step: worker {address} stands still for " in error


def test_where_all_workers_stand_still_a_run_ends(tmp_path: Path) -> None:
    with _ends_within(30), _workers(2) as client:
        pids = client.run(os.getpid)
        _stop_when(lambda: len(list(tmp_path.glob("begun-*"))) >= 4, list(pids.values()))
        with (
            pytest.raises(RunError, match=r"all workers stand still; what is done is kept") as caught,
            _ends_within(15),
        ):
            _run(client, {p: (_task, str(tmp_path), p, 0.3) for p in range(20)}, patience=3)
    assert all(address in str(caught.value) for address in pids)


def test_a_slow_task_is_no_task_that_hangs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with _workers(1) as client:
        assert _run(client, {0: (_task, str(tmp_path), 0, 4)}, patience=2) == [0]
    assert "stands still" not in capsys.readouterr().err


@pytest.mark.long
def test_the_first_signal_is_answered_while_a_worker_stands_still(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with _ends_within(40), _workers(2) as client:
        pid = next(iter(client.run(os.getpid).values()))
        _stop_when(lambda: len(list(tmp_path.glob(f"begun-*-{pid}"))) == 2, [pid])
        _stop_when(lambda: len(list(tmp_path.glob("done-*"))) == 6, [os.getpid()], signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), _ends_within(25):
            _run(client, {p: (_task, str(tmp_path), p, 0.1) for p in range(500)}, patience=300)
    assert re.search("workers stand still; [12] tasks are not waited for", capsys.readouterr().err)
    # What others had was finished.
    begun = [path.name.split("-")[1:] for path in tmp_path.glob("begun-*")]
    assert all(Path(tmp_path, f"done-{partition}").exists() for partition, by in begun if by != str(pid))
    assert len(begun) < 100


@pytest.mark.parametrize("after", range(1, 40, 6))
def test_a_stop_while_tasks_come_and_go_is_no_error(client: Client, tmp_path: Path, after: int) -> None:
    """Some of what is asked for has ended, or was never heard of by the scheduler."""
    _stop_when(lambda: len(list(tmp_path.glob("done-*"))) >= after, [os.getpid()], signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        _run(client, {p: (_task, str(tmp_path), p, 0.001) for p in range(500)}, patience=300)
    assert len(list(tmp_path.glob("begun-*"))) == len(list(tmp_path.glob("done-*"))) < 500
