"""Scheduler and workers started by hand, on TLS, and a run launched on them."""

import json
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hotdask
from hotdask.cluster.certificates import make_certificates
from hotdask.cluster.client import open_client
from hotdask.config import Cluster
from hotdask.labels import LABEL_NAMES

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("by hand") / "certificates")


@pytest.fixture(scope="module")
def scheduler(
    certificates: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of a scheduler with one worker, started as `hotdask certificates` says."""
    folder = tmp_path_factory.mktemp("processes")
    environment = environment | {"DASK_CONFIG": str(certificates / "distributed.yaml")}
    written = folder / "scheduler.json"

    def start(*arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", *map(str, arguments)]
        with open(folder / f"{arguments[0]}.log", "wb") as log:
            return subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)

    here = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
    processes = [start("scheduler", *here, "--port", 0, "--scheduler-file", written)]
    try:
        while not written.exists() or not written.read_text():
            assert processes[0].poll() is None, (folder / "scheduler.log").read_text()
            time.sleep(0.05)
        address = json.loads(written.read_text())["address"]
        alone = ("--nthreads", 1, "--nworkers", 1, "--memory-limit", "4GiB", "--local-directory", folder)
        processes.append(start("worker", address, *here, *alone))
        yield address
    finally:
        # The worker first: it says goodbye to the scheduler.
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def test_a_survey_on_processes_started_by_hand(
    scheduler: str,
    certificates: Path,
    settings_file: Path,
    finished,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [settings_file, "--scheduler", scheduler, "--certificates", certificates]
    monkeypatch.setattr(sys, "argv", ["launch.py", *map(str, arguments)])
    runpy.run_path(str(PROJECT / "scripts" / "launch.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert scheduler.startswith("tls://127.0.0.1:")
    assert f"cluster: {scheduler}" in said
    assert "20 files: 20 spectra labelled, 0 rejected" in said
    ours = hotdask.read_catalog(settings_file.parent / "RUN").set_index("specid")
    other = hotdask.read_catalog(finished.folder).set_index("specid").loc[ours.index]
    assert len(ours) == 20
    # Where and with whom a spectrum was fitted is nothing to its labels.
    for name in LABEL_NAMES:
        np.testing.assert_allclose(ours[name], other[name], atol=0.01 * other[f"{name}_err"].min(), err_msg=name)


def test_workers_have_the_environment_and_the_scheduler_the_settings(scheduler: str, certificates: Path) -> None:
    def variables() -> dict[str, str]:
        import os

        return {name: os.environ.get(name) for name in wanted}

    def config(dask_scheduler) -> dict:
        return {
            "allowed-failures": dask_scheduler.allowed_failures,
            "threads": [w.nthreads for w in dask_scheduler.workers.values()],
        }

    wanted = {
        "MALLOC_TRIM_THRESHOLD_": "268435456",
        "MALLOC_MMAP_THRESHOLD_": "268435456",
        "OMP_NUM_THREADS": "1",
    }
    with open_client(Cluster(scheduler=scheduler, certificates=str(certificates)), echo=lambda line: None) as client:
        assert list(client.run(variables).values()) == [wanted]
        found = client.run_on_scheduler(config)
    assert found == {"allowed-failures": 3, "threads": [1]}
