"""Promise 1: whatever is killed, the same command does what is missing, and the catalog is an undisturbed run's."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from distributed import Client

from hotdask.config import Settings
from hotdask.pipeline.execute import run
from hotdask.pipeline.status import status
from hotdask.store.parquet import list_parts
from hotdask.store.receipts import list_receipts

STEPS = ("stage", "plan", "layout", "ingest", "fit")
LAST = 22
"""Receipts after which a run of 26 is killed at the latest: a loaded machine must still find it at work."""


def catalog_files(folder: Path) -> dict[str, bytes]:
    """Parts of the published catalog; their names hold their hashes."""
    return {path.name: path.read_bytes() for path in list_parts(folder / "catalog")}


def written(out: Path) -> dict[str, int]:
    """When the files of finished partitions were written; staged ones go once the cube is complete."""
    names = [
        name for step in ("ingest", "fit") for receipt in list_receipts(out, step).values() for name in receipt.files
    ]
    return {name: (out / name).stat().st_mtime_ns for name in names}


def n_receipt(out: Path) -> int:
    return sum(len(list_receipts(out, step)) for step in STEPS)


@pytest.fixture(scope="module")
def killed(
    settings_for: Callable, command: Callable, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, dict[str, int]]:
    """A run whose launching process was killed while it fitted, and what was finished."""
    out = tmp_path_factory.mktemp("killed") / "RUN"
    settings = settings_for(out, cluster__workers=1, cluster__dashboard="127.0.0.1:0")
    with command(settings) as begun:
        begun.wait_for(1, "ingest")
        family = [psutil.Process(begun.process.pid), *psutil.Process(begun.process.pid).children(recursive=True)]
        begun.wait_for(1, "fit")
        begun.kill()
        begun.ended()
        # Workers notice that their parent is gone; a task in flight may still end.
        _, alive = psutil.wait_procs(family[1:], timeout=30)
        assert not alive
    return settings, written(out)


def test_a_killed_run_goes_on_where_it_was(client: Client, finished, killed: tuple) -> None:
    settings, before = killed
    out = Path(settings.out)
    fits = list_receipts(out, "fit")
    assert 0 < len(fits) < 8
    text = status(out)
    assert f"{len(fits)} of 8 partitions" in text
    assert "go on with: hotdask run" in text
    lines: list[str] = []
    run(settings, until="catalog", client=client, echo=lines.append)
    # What was done was not done again,
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert not any("done again" in line for line in lines)
    # and the catalog is the one of a run that nobody disturbed.
    assert catalog_files(out) == catalog_files(finished.folder)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 8))])
def test_kills_at_random_points(
    client: Client, finished, settings_for: Callable, command: Callable, cluster: Callable, tmp_path: Path, seed: int
) -> None:
    """One run through two kills of its worker, one of the scheduler and two of the launcher."""
    points = sorted(random.Random(seed).sample(range(1, LAST), 5))
    out = tmp_path / "RUN"
    with cluster(tmp_path) as made, command(settings_for(out, cluster__scheduler=made.address)) as begun:
        for point in points[:2]:
            begun.wait_for(point)
            made.kill_worker()
        begun.wait_for(points[2])
        made.scheduler.kill()
        assert begun.ended() == 1
        text = begun.log.read_text()
        assert "is gone; what is done is kept: start it, and run the same command again" in text
        assert "Traceback" not in text
    done = [(n_receipt(out), written(out))]
    elsewhere = settings_for(out, cluster__scheduler=client.scheduler.address)
    for point in points[3:]:
        with command(elsewhere) as begun:
            begun.wait_for(max(point, done[-1][0] + 1))
            begun.kill(signal.SIGKILL)
            begun.ended()
        # Its workers live on and may end what they had begun.
        done.append((n_receipt(out), written(out)))
    lines: list[str] = []
    run(elsewhere, until="catalog", client=client, echo=lines.append)
    assert not any("done again" in line for line in lines)
    for n, before in done:
        assert n >= points[2]
        assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert catalog_files(out) == catalog_files(finished.folder)
