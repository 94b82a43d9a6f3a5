"""Seconds by kernel, held against a clock that the test turns itself."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from hotdask import timing
from hotdask.timing import OUTSIDE, kernel, timings


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Lets CPU and wall seconds pass."""
    clock = [100.0, 5000.0]

    def pass_by(cpu: float, wall: float) -> None:
        clock[0] += cpu
        clock[1] += wall

    monkeypatch.setattr(timing, "_now", lambda: tuple(clock))
    return pass_by


def test_a_kernel_inside_has_its_time_to_itself(work) -> None:
    with timings() as table:
        work(1, 2)
        with kernel("label"):
            work(10, 20)
            with kernel("fit"):
                work(100, 200)
            work(30, 40)
        with kernel("write"):
            work(0, 5)
        with kernel("fit"):
            work(400, 400)
        work(2, 3)
    assert table.so_far() == [(OUTSIDE, 3, 5), ("label", 40, 60), ("fit", 500, 600), ("write", 0, 5)]


def test_the_table_can_be_read_inside_a_kernel(work) -> None:
    with timings() as table, kernel("fit"):
        work(1, 1)
        assert table.so_far()[1] == ("fit", 1, 1)
        work(2, 2)
    assert table.so_far()[1] == ("fit", 3, 3)


def test_errors_leave_the_clock_right(work) -> None:
    with timings() as table:
        with pytest.raises(ValueError, match="no"):
            _fail(work)
        work(5, 5)
    assert table.so_far() == [(OUTSIDE, 5, 5), ("fit", 1, 1)]


def test_nobody_listens_and_tables_do_not_mix(work) -> None:
    with kernel("fit"):
        work(1, 1)
    with timings() as outer:
        with timings() as inner, kernel("fit"):
            work(2, 2)
        with ThreadPoolExecutor(1) as pool, kernel("write"):
            # A thread has no table: its kernel is part of the one that waits for it.
            pool.submit(_in_a_thread, work).result()
    assert {name: cpu for name, cpu, _ in inner.so_far()} == {OUTSIDE: 0, "fit": 2}
    assert {name: cpu for name, cpu, _ in outer.so_far()} == {OUTSIDE: 2, "write": 7}


def _fail(work: Callable[[float, float], None]) -> None:
    with kernel("fit"):
        work(1, 1)
        raise ValueError("no")


def _in_a_thread(work: Callable[[float, float], None]) -> None:
    with kernel("encode"):
        work(7, 7)
