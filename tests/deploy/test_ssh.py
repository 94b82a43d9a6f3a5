"""Dask's SSHCluster against a real sshd on loopback, with the settings of deploy/ssh."""

import copy
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import hotdask
from hotdask.cluster.certificates import make_certificates
from hotdask.config import load_start
from hotdask.store.receipts import list_receipts

pytest.importorskip("asyncssh")

PROJECT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path=os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin", "/usr/local/sbin")))


@dataclass(frozen=True)
class Host:
    """An sshd of our own: where it listens and what lets us in."""

    pid: int
    port: int
    key: Path
    known_hosts: Path


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if SSHD is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs sshd and ssh-keygen (Debian: openssh-server)")
    if os.geteuid() == 0:
        # Where it puts itself when root; a system's own sshd has made it.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'user.pub'}\n"
        f"PidFile {folder / 'pid'}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
    )
    log = folder / "log"
    with open(log, "wb") as file:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "config"], stderr=file)
    try:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield Host(process.pid, port, folder / "user", known)
    finally:
        process.terminate()
        process.wait()


def toml(kind: str, arguments: dict) -> str:
    """A file for `cluster.start`."""
    plain = {k: v for k, v in arguments.items() if not isinstance(v, dict)}
    lines = [f'kind = "{kind}"', "[arguments]", *(f"{k} = {json.dumps(v)}" for k, v in plain.items())]
    for name in arguments.keys() - plain.keys():
        lines += [f"[arguments.{name}]", *(f"{k} = {json.dumps(v)}" for k, v in arguments[name].items())]
    return "\n".join(lines) + "\n"


@pytest.fixture
def cluster_file(host: Host, tmp_path: Path) -> Path:
    """The shipped file with this machine for all its hosts."""
    # A machine reached by ssh has the package installed; here it is this source.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{PROJECT}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    shipped = load_start(PROJECT / "deploy" / "ssh" / "cluster.toml")
    arguments = copy.deepcopy(shipped.arguments)
    arguments |= {"hosts": ["127.0.0.1"] * 3, "remote_python": str(python)}
    arguments["connect_options"] |= {
        "port": host.port,
        "username": getpass.getuser(),
        "client_keys": [str(host.key)],
        "known_hosts": str(host.known_hosts),
    }
    # On its loopback, and not waiting for half an hour.
    arguments["scheduler_options"] |= {"host": "127.0.0.1", "idle_timeout": "60s"}
    arguments["worker_options"] |= {"host": "127.0.0.1", "n_workers": 1, "local_directory": str(tmp_path / "scratch")}
    file = tmp_path / "cluster.toml"
    file.write_text(toml(shipped.kind, arguments))
    return file


@pytest.mark.long
def test_a_survey_over_ssh(cluster_file: Path, launch: Callable[..., str], settings_file: Path, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    said = launch(settings_file, "--cluster", cluster_file, "--certificates", certificates)
    assert "cluster: distributed.SSHCluster at tls://127.0.0.1:" in said
    assert "20 files: 20 spectra labelled, 0 rejected" in said
    assert len(hotdask.read_catalog(tmp_path / "RUN")) == 20


@pytest.mark.long
def test_what_a_killed_launcher_leaves_ends_by_itself(
    host: Host, cluster_file: Path, settings_file: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    command = [sys.executable, "scripts/launch.py", settings_file, "--cluster", cluster_file]
    with open(tmp_path / "log", "wb") as log:
        launcher = subprocess.Popen(
            [*command, "--certificates", certificates], cwd=PROJECT, env=environment, stdout=log, stderr=log
        )
    family: list[psutil.Process] = []
    try:
        while not list_receipts(tmp_path / "RUN", "stage"):
            assert launcher.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        family = [p for p in psutil.Process(host.pid).children(recursive=True) if "sshd" not in p.name()]
        # Settings travelled along: to workers, whose environment their nannies made, and to every page.
        assert [p.environ()["MALLOC_TRIM_THRESHOLD_"] for p in family if "spawn_main" in " ".join(p.cmdline())] == [
            "268435456",
            "268435456",
        ]
        sockets = [c for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert len(sockets) >= 8
        assert {c.laddr.ip for c in sockets} == {"127.0.0.1"}
        launcher.kill()
        launcher.wait()
        _, alive = psutil.wait_procs(family, timeout=200)
        assert alive == []
    finally:
        launcher.kill()
        launcher.wait()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
