"""Ctrl-C and SIGTERM: what is in flight is finished, and nothing is begun.

Workers of a local cluster import this module when they start, so it imports little.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody asked to stop."""

    requested = False


def dask_setup(worker: object) -> None:
    """Let a worker outlive Ctrl-C, which a terminal sends to it too; Dask calls this when the worker starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _handling(handlers: dict[signal.Signals, object]) -> Iterator[None]:
    # Python hands signals to the main thread, and only there may one ask for them.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that files and workers are cleared away."""
    with _handling({signal.SIGTERM: _interrupt}):
        yield


@contextmanager
def gentle_stop() -> Iterator[Stop]:
    """Let the first SIGINT or SIGTERM only be noted, and the next raise KeyboardInterrupt.

    Yields
    ------
    Stop
        Says whether a signal came; the block ends itself when it can. Outside the main thread nothing ever comes.
    """
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    with _handling(dict.fromkeys(SIGNALS, note)):
        yield stop
