"""Progress on the terminal: a line that rewrites itself, or now and then a line where there is no terminal."""

import sys
import time
from typing import TextIO


class Progress:
    """Counts spectra of a step and says rate and time left.

    Parameters
    ----------
    step : str
        What is being done.
    total : int
        Spectra in all.
    done : int
        Spectra that were done before this run; they do not count for the rate.
    interval : float
        Seconds between lines where output is not a terminal.
    """

    def __init__(self, step: str, total: int, *, done: int = 0, stream: TextIO | None = None, interval: float = 15.0):
        self.step, self.total, self.done = step, total, done
        self._before = done
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._interval = 0.2 if self._live else interval
        self._start = self._last = time.monotonic()
        self._written = -1

    def add(self, n: int) -> None:
        """Count ``n`` more spectra, and say so if it is time."""
        self.done += n
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            self._write(end="\r" if self._live else "\n")

    def finish(self) -> float:
        """Write the last line, if it has not been; seconds since the start."""
        if self._live or self._written != self.done:
            self._write(end="\n")
        return time.monotonic() - self._start

    def _write(self, end: str) -> None:
        line = describe(self.step, self.done, self.total, self.done - self._before, time.monotonic() - self._start)
        self._stream.write(f"{line:<78}{end}" if self._live else line + end)
        self._written = self.done
        self._stream.flush()


def describe(step: str, done: int, total: int, fresh: int, seconds: float) -> str:
    """One line of progress.

    Examples
    --------
    >>> describe("fit", 3000, 9000, 3000, 10.0)
    'fit         3000/9000     33 %  300 spectra/s  20s left'
    """
    share = 100 * done // total if total else 100
    line = f"{step:<8}{done:>8}/{total:<8} {share:>2} %"
    if fresh and seconds > 0:
        rate = fresh / seconds
        line += f"  {rate:.0f} spectra/s"
        if done < total:
            line += f"  {duration((total - done) / rate)} left"
    return line


def duration(seconds: float) -> str:
    """A length of time for people.

    Examples
    --------
    >>> duration(20), duration(90), duration(7300)
    ('20s', '1m30s', '2h01m')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
