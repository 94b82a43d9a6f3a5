"""Where the time of a task goes: stretches of code have names, and a table sums the seconds spent in each."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

OUTSIDE = "outside kernels"
"""Name of the time that no kernel accounts for."""


@dataclass
class Timings:
    """CPU and wall seconds by kernel; together they are the time the table was open.

    CPU seconds are those of the whole process: its other threads count, its children do not.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    _name: str = OUTSIDE
    _since: tuple[float, float] = field(default_factory=lambda: _now())
    _open: bool = True

    def switch(self, name: str) -> str:
        """Give the time since the last switch to the kernel that ran, begin another, and say which one it was."""
        now = _now()
        spent = self.seconds.setdefault(self._name, [0.0, 0.0])
        for i in range(2):
            spent[i] += now[i] - self._since[i]
        before, self._name, self._since = self._name, name, now
        return before

    def close(self) -> None:
        """Let no more time pass."""
        self.switch(OUTSIDE)
        self._open = False

    def so_far(self) -> list[tuple[str, float, float]]:
        """Name, CPU and wall seconds of each kernel until now, in the order they began."""
        if self._open:
            self.switch(self._name)
        return [(name, round(cpu, 4), round(wall, 4)) for name, (cpu, wall) in self.seconds.items()]


def _now() -> tuple[float, float]:
    return time.process_time(), time.monotonic()


_TABLE: ContextVar[Timings | None] = ContextVar("hotdask_timings", default=None)


@contextmanager
def timings() -> Iterator[Timings]:
    """Time the kernels of a block.

    Examples
    --------
    >>> with timings() as table:
    ...     with kernel("fit"):
    ...         pass
    >>> sorted(table.seconds)
    ['fit', 'outside kernels']
    """
    table = Timings()
    token = _TABLE.set(table)
    try:
        yield table
    finally:
        table.close()
        _TABLE.reset(token)


@contextmanager
def kernel(name: str) -> Iterator[None]:
    """Give the time of a block to ``name``, if anyone wants to know; a kernel inside has its time to itself.

    Threads started inside have no table of their own; their CPU seconds are those of the block that waits for them.
    """
    table = _TABLE.get()
    if table is None:
        yield
        return
    before = table.switch(name)
    try:
        yield
    finally:
        table.switch(before)
