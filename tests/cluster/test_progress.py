"""What the terminal says while a step runs."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotdask.cluster import progress
from hotdask.cluster.progress import Progress, describe, duration


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("read", 50, 200, 50, 5.0), "read          50/200       25 %  10 spectra/s  15s left"),
        (("fit", 150, 200, 50, 5.0), "fit          150/200      75 %  10 spectra/s  5s left"),
        (("fit", 200, 200, 50, 5.0), "fit          200/200      100 %  10 spectra/s"),
        (("fit", 7, 200, 0, 5.0), "fit            7/200       3 %"),
        (("fit", 0, 0, 0, 0.0), "fit            0/0        100 %"),
    ],
)
def test_describe(arguments: tuple, line: str) -> None:
    assert describe(*arguments).split() == line.split()


@given(total=st.integers(1, 2_000_000), share=st.floats(0, 1), seconds=st.floats(0.01, 1e6))
def test_percentage_is_100_only_when_all_is_done(total: int, share: float, seconds: float) -> None:
    done = int(share * total)
    line = describe("fit", done, total, done, seconds)
    assert ("100 %" in line) == (done == total)
    assert ("left" in line) == (0 < done < total)


@given(st.integers(0, 10**7))
def test_durations_add_up(seconds: int) -> None:
    text = duration(seconds)
    hours, _, rest = text.rpartition("h")
    minutes, _, rest = rest.rpartition("m") if not rest.endswith("m") else (rest[:-1], "", "0s")
    told = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(rest.removesuffix("s") or 0)
    assert told == (seconds if seconds < 3600 else seconds // 60 * 60)


def test_lines_now_and_then_where_there_is_no_terminal(clock: Clock) -> None:
    stream = io.StringIO()
    bar = Progress("fit", 100, stream=stream, interval=15)
    for _ in range(10):
        clock.now += 4
        bar.add(10)
    assert stream.getvalue().count("\n") == 2
    assert bar.finish() == pytest.approx(40)
    lines = stream.getvalue().splitlines()
    assert lines[0].split() == ["fit", "40/100", "40", "%", "2", "spectra/s", "24s", "left"]
    assert lines[-1].split() == ["fit", "100/100", "100", "%", "2", "spectra/s"]
    assert "\r" not in stream.getvalue()


def test_a_terminal_line_rewrites_itself(clock: Clock) -> None:
    stream = Terminal()
    bar = Progress("fit", 100, stream=stream)
    for _ in range(4):
        clock.now += 1
        bar.add(25)
    bar.finish()
    pieces = stream.getvalue().split("\r")
    assert len(pieces) == 5
    # A shorter line must hide the one before.
    assert {len(piece.rstrip("\n")) for piece in pieces} == {78}
    assert stream.getvalue().endswith("\n")


def test_what_was_done_before_does_not_count_for_the_rate(clock: Clock) -> None:
    stream = io.StringIO()
    bar = Progress("fit", 1000, done=900, stream=stream, interval=1)
    clock.now += 5
    bar.add(50)
    assert stream.getvalue().split() == ["fit", "950/1000", "95", "%", "10", "spectra/s", "5s", "left"]
