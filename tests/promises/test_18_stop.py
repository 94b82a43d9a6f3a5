"""Promise 18: Ctrl-C and SIGTERM end a run when what is in flight is done; the same command goes on."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from distributed import Client

from hotdask.pipeline.execute import run
from hotdask.store.parquet import list_parts
from hotdask.store.receipts import check_receipt, list_receipts


def catalog_files(folder: Path) -> dict[str, bytes]:
    """Parts of the published catalog; their names hold their hashes."""
    return {path.name: path.read_bytes() for path in list_parts(folder / "catalog")}


def test_a_signal_lets_tasks_end(
    client: Client, finished, settings_for: Callable, command: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "RUN"
    settings = settings_for(out, cluster__workers=1, cluster__dashboard="127.0.0.1:0")
    # A terminal sends Ctrl-C to all processes of a command, a batch system SIGTERM to the first.
    for number, group in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        before = len(list_receipts(out, "fit"))
        with command(settings) as begun:
            begun.wait_for(before + 1, "fit")
            begun.kill(number, group=group)
            assert begun.ended() == 130
        text = begun.log.read_text()
        assert "fit: asked to stop (once more: at once); " in text
        assert "hotdask: stopped; what is finished is kept" in text
        assert "Traceback" not in text
        receipts = list_receipts(out, "fit")
        assert before < len(receipts) < 8
        for receipt in receipts.values():
            assert check_receipt(out, receipt, receipt.fingerprint) is None
        # What was in flight ended; nothing half is left, and nobody holds the folder.
        assert not list(out.rglob(".*.partial"))
        assert not (out / ".lock.json").exists()
    lines: list[str] = []
    run(settings, until="catalog", client=client, echo=lines.append)
    assert not any("done again" in line for line in lines)
    assert catalog_files(out) == catalog_files(finished.folder)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_signal_ends_the_catalog_at_once(
    client: Client, finished, command: Callable, tmp_path: Path, number: signal.Signals
) -> None:
    settings = finished.copy(tmp_path / "RUN")
    out = tmp_path / "RUN"
    shown = (out / "catalog").readlink()
    part = next(iter(list_parts(out / "catalog")))
    part.write_bytes(part.read_bytes()[:-1])
    # On workers that run already, so that the catalog is what it begins with.
    where = settings.cluster.model_copy(update={"scheduler": client.scheduler.address})
    with command(settings.model_copy(update={"cluster": where})) as begun:
        begun.wait_for_path("catalog_versions/.*.partial")
        begun.kill(number)
        assert begun.ended() == 130
    assert (out / "catalog").readlink() == shown
    assert not list(out.rglob(".*.partial"))
    run(settings, until="catalog", client=client, echo=lambda line: None)
    assert catalog_files(out) == catalog_files(finished.folder)


@pytest.mark.parametrize(
    "later", [pytest.param(0.0, marks=pytest.mark.long), pytest.param(0.2, marks=pytest.mark.long), 0.5]
)
def test_a_signal_while_workers_start_ends_the_run(
    survey, settings_for: Callable, command: Callable, processes: Callable, tmp_path: Path, later: float
) -> None:
    settings = settings_for(
        tmp_path / "RUN", spectra=f"{survey.folder}/dr1/**/*", cluster__workers=2, cluster__dashboard="127.0.0.1:0"
    )
    with command(settings) as begun:
        top = psutil.Process(begun.process.pid)
        while not (workers := processes(top)):
            assert begun.process.poll() is None
            time.sleep(0.005)
        time.sleep(later)
        begun.kill(signal.SIGTERM)
        assert begun.ended() == 130
        text = begun.log.read_text()
        assert "hotdask: stopped; what is finished is kept" in text
        assert "Traceback" not in text
        assert "Error" not in text
        assert not psutil.wait_procs(workers, timeout=30)[1]
