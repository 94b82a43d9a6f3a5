"""The job script for SLURM, and the scripts dask-jobqueue writes with deploy/slurm/cluster.toml."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import dask
import pytest
from distributed import Security
from distributed.cli import dask_scheduler, dask_worker

import hotdask
from hotdask.cluster.certificates import make_certificates, role_files, tls_settings
from hotdask.config import load_start
from hotdask.store.receipts import list_receipts

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "deploy" / "slurm"
JOB = FOLDER / "job.sh"


def commands(script: str, verb: str) -> list[str]:
    """Arguments of `dask VERB` in a shell script, with $ and what follows it as they stand."""
    line = re.sub(r"\\\n\s*", " ", script)
    (found,) = re.findall(rf"^.*dask {verb} (.*)$", line, re.MULTILINE)
    # What bash makes of arrays, arithmetic and tests is nothing to an option.
    found = re.sub(r'"\$\{\w+\[@\]\}"', "", found).removesuffix("&")
    return shlex.split(re.sub(r"\$\(\((?:[^()]|\([^()]*\))*\)\)", "1", found))


def directives(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH (--?[\w-]+)[= ]?(.*)$", script, re.MULTILINE)
    short = {"-t": "--time", "-n": "--ntasks", "-J": "--job-name", "-o": "--output", "-e": "--error"}
    return {short.get(name, name): value for name, value in found}


def seconds(walltime: str) -> int:
    hours, minutes, rest = (int(part) for part in walltime.split(":"))
    return 3600 * hours + 60 * minutes + rest


# The job


def test_the_job_is_bash() -> None:
    subprocess.run(["bash", "-n", JOB], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--severity=warning", JOB], check=True)


def test_its_commands_are_dasks() -> None:
    script = JOB.read_text()
    scheduler = dask_scheduler.main.make_context("scheduler", commands(script, "scheduler"))
    worker = dask_worker.main.make_context("worker", commands(script, "worker"))
    assert scheduler.params["dashboard_address"] == "127.0.0.1:8787"
    assert worker.params["dashboard_address"] == "127.0.0.1:0"
    assert worker.params["nthreads"] == 1
    assert worker.params["n_workers"] == "1"
    assert worker.params["local_directory"] == "$scratch"


def test_it_asks_for_what_it_uses() -> None:
    asked = directives(JOB.read_text())
    assert asked["--cpus-per-task"] == "1"
    assert "--requeue" in asked
    # The shell alone is told, in time for tasks in flight to end.
    to, number, before = re.fullmatch(r"(\w):(\w+)@(\d+)", asked["--signal"]).groups()
    assert (to, number) == ("B", "USR1")
    assert 300 <= int(before) < seconds(asked["--time"])


# Dask-jobqueue


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What dask-jobqueue would submit, and the certificates it was given."""
    jobqueue = pytest.importorskip("dask_jobqueue")
    folder = tmp_path_factory.mktemp("slurm")
    certificates = make_certificates(folder / "certificates")
    with dask.config.set(tls_settings(certificates)):
        security = Security()
    shipped = load_start(FOLDER / "cluster.toml")
    assert shipped.kind == "dask_jobqueue.SLURMCluster"
    arguments = shipped.arguments | {"n_workers": 0, "log_directory": str(folder / "logs")}
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with jobqueue.SLURMCluster(**arguments, security=security, scheduler_options=options) as cluster:
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        return cluster.job_script(), certificates


def test_the_script_of_jobqueue_asks_for_what_its_workers_use(written: tuple[str, Path]) -> None:
    script, certificates = written
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    asked = directives(script)
    worker = dask_worker.main.make_context(
        "worker", commands(script.replace("distributed.cli.dask_", "dask "), "worker")
    )
    given = worker.params
    assert int(asked["--cpus-per-task"]) == int(given["n_workers"]) * given["nthreads"]
    assert given["nthreads"] == 1
    assert asked["--mem"] == "64G"
    assert given["memory_limit"] == "4.00GiB"
    assert "--requeue" in asked
    assert given["dashboard_address"] == "127.0.0.1:0"
    # Out before they are killed.
    hours, minutes = re.fullmatch(r"(\d+)h(\d+)m", given["lifetime"]).groups()
    assert seconds(asked["--time"]) - 3600 * int(hours) - 60 * int(minutes) >= 1200
    assert given["tls_ca_file"] == str(certificates / "ca.pem")
    assert (Path(given["tls_cert"]), Path(given["tls_key"])) == role_files(certificates, "worker")
    assert "export DASK_CONFIG=" in script


def test_both_ways_have_the_same_workers(written: tuple[str, Path]) -> None:
    script = written[0].replace("distributed.cli.dask_", "dask ")
    ours, theirs = (
        dask_worker.main.make_context("worker", commands(text, "worker")).params for text in (JOB.read_text(), script)
    )
    for option in ("nthreads", "nanny", "dashboard_address", "death_timeout"):
        assert ours[option] == theirs[option], option
    assert directives(JOB.read_text())["--time"] == directives(script)["--time"]
    assert directives(JOB.read_text())["--mem-per-cpu"] == "4G"


# The whole job, with programs that do here what SLURM's do on nodes

SRUN = """#!/bin/bash
# As many copies as tasks; a signal to it is one to all of them.
while [[ $1 == --* ]]; do
    [[ $1 == --ntasks=* ]] && n=${1#--ntasks=}
    shift
done
trap 'kill $(jobs -p) 2>/dev/null' TERM
for ((i = 0; i < n; i++)); do "$@" & done
wait
wait
"""
SCONTROL = '#!/bin/sh\necho "$@" >> "$SLURM_CALLS"\n'


def start(settings_file: Path, environment: dict[str, str], folder: Path) -> subprocess.Popen:
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    hotdask_program = programs / "hotdask"
    hotdask_program.write_text('#!/bin/sh\nexec python -c "from hotdask.cli import main; main()" "$@"\n')
    hotdask_program.chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": "3",
        "SLURM_MEM_PER_CPU": "4096",
        "SLURM_SUBMIT_DIR": str(PROJECT),
        "SLURM_TMPDIR": str(folder),
        "SLURM_CALLS": str(folder / "calls"),
        "PATH": os.pathsep.join([str(programs), environment["PATH"]]),
    }
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            ["bash", JOB, settings_file], env=environment | slurm, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )


def ended(process: subprocess.Popen, folder: Path) -> str:
    try:
        process.wait(280)
    finally:
        process.terminate()
    assert not list(PROJECT.glob(".hotdask-4711*"))
    return (folder / "log").read_text()


@pytest.mark.long
def test_the_job_from_start_to_catalog(settings_file: Path, environment: dict[str, str], tmp_path: Path) -> None:
    process = start(settings_file, environment, tmp_path)
    log = ended(process, tmp_path)
    assert process.returncode == 0, log
    assert re.search(r"cluster: tls://\S+:\d+, dashboard", log)
    assert "20 files: 20 spectra labelled, 0 rejected" in log
    assert len(hotdask.read_catalog(tmp_path / "RUN")) == 20
    assert not (tmp_path / "calls").exists()


@pytest.mark.long
def test_the_job_goes_back_into_the_queue_when_its_time_is_up(
    settings_file: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    process = start(settings_file, environment, tmp_path)
    while not list_receipts(tmp_path / "RUN", "stage"):
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    log = ended(process, tmp_path)
    assert process.returncode != 0, log
    assert (tmp_path / "calls").read_text() == "requeue 4711\n"
    assert not (tmp_path / "RUN" / "catalog").exists()
    # As SLURM would start it again.
    process = start(settings_file, environment, tmp_path)
    log = ended(process, tmp_path)
    assert process.returncode == 0, log
    assert len(hotdask.read_catalog(tmp_path / "RUN")) == 20
    assert (tmp_path / "calls").read_text() == "requeue 4711\n"
