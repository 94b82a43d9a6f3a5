"""Promise 14: every socket on loopback by default; off loopback only with mutual TLS or an explicit insecure = true."""

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from distributed import Client

from hotdask.cluster.certificates import make_certificates
from hotdask.cluster.client import open_client
from hotdask.config import Cluster, Settings, dump_settings, make_settings
from hotdask.errors import RunError, SettingsError
from hotdask.pipeline.execute import run
from hotdask.store.receipts import list_receipts

MakeSettings = Callable[..., Settings]
LOOPBACK = {"127.0.0.1", "::1"}


def quiet(line: str) -> None:
    """An echo that says nothing."""


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Address and port of every socket a process and its descendants listen on."""
    sockets = set()
    for member in (process, *process.children(recursive=True)):
        # One that ended meanwhile listens on nothing.
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            for c in member.net_connections("inet"):
                if c.status == psutil.CONN_LISTEN or (c.type.name == "SOCK_DGRAM" and not c.raddr):
                    sockets.add((c.laddr.ip, c.laddr.port))
    return sockets


# By default


def test_every_socket_of_a_run_is_on_loopback(
    client: Client, survey, settings_for: MakeSettings, tmp_path: Path
) -> None:
    """The cluster of these tests is one that a run starts; it and this process are watched while they work."""
    settings = settings_for(tmp_path / "RUN", spectra=f"{survey.good[0].parent}/*")
    sockets: set[tuple[str, int]] = set()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(run, settings, client=client, until="ingest", echo=quiet)
        while not work.done():
            sockets |= listening(psutil.Process())
            # Looking is work for the process that is looked at.
            time.sleep(1)
    assert work.result()["counts"]["files"] > 10
    # The scheduler and its dashboard; two nannies, two workers and their pages.
    assert len(sockets) >= 8
    assert {ip for ip, _ in sockets} <= LOOPBACK


@pytest.mark.long
def test_every_socket_of_the_command_is_on_loopback(survey, settings_for: MakeSettings, tmp_path: Path) -> None:
    out = tmp_path / "RUN"
    settings = settings_for(out, cluster__workers=1, cluster__dashboard="127.0.0.1:0")
    toml, log = tmp_path / "run.toml", tmp_path / "run.log"
    toml.write_text(dump_settings(settings))
    sockets: set[tuple[str, int]] = set()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", "from hotdask.cli import main; main()", "run", str(toml)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            # From the first to the last: nothing may listen for a moment only.
            while process.poll() is None:
                with suppress(psutil.NoSuchProcess):
                    sockets |= listening(psutil.Process(process.pid))
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, log.read_text()
    assert list_receipts(out, "fit")
    assert len(sockets) >= 5
    assert {ip for ip, _ in sockets} <= LOOPBACK


@pytest.mark.parametrize(
    ("cluster", "remedy"),
    [
        ({"scheduler": "tcp://otherhost:8786"}, r"hotdask certificates DIR.*insecure = true"),
        ({"scheduler": "otherhost:8786"}, r"hotdask certificates DIR.*insecure = true"),
        ({"scheduler": "tcp://0.0.0.0:8786"}, r"hotdask certificates DIR"),
        ({"scheduler": "ws://[2001:db8::7]:8786"}, r"hotdask certificates DIR"),
        # A name that only begins as a safe one does.
        ({"scheduler": "tcp://localhost.example.org:8786"}, r"hotdask certificates DIR"),
        ({"scheduler": "tcp://127.0.0.1.example.org:8786"}, r"hotdask certificates DIR"),
        ({"dashboard": "0.0.0.0:8787"}, r"ssh -L 8787.*insecure = true"),
        ({"dashboard": "[::]:8787"}, r"ssh -L 8787"),
        ({"dashboard": "otherhost:0"}, r"ssh -L 8787"),
        # Certificates do not close a dashboard.
        ({"dashboard": "0.0.0.0:8787", "certificates": "DIR"}, r"ssh -L 8787"),
        ({"scheduler": "tls://otherhost:8786", "start": "cluster.toml"}, r"not both"),
    ],
    ids=str,
)
def test_open_sockets_are_refused_before_anything_starts(cluster: dict, remedy: str) -> None:
    with pytest.raises(SettingsError, match=remedy):
        make_settings({"out": "RUN", "input": {"spectra": "*"}, "cluster": cluster})


@pytest.mark.parametrize(
    "cluster",
    [
        {"scheduler": "tcp://127.0.0.1:8786"},
        {"scheduler": "localhost:8786"},
        {"scheduler": "tcp://[::1]:8786", "dashboard": "[::1]:0"},
        {"scheduler": "tls://otherhost:8786"},
        {"scheduler": "tcp://otherhost:8786", "insecure": True},
        {"dashboard": "0.0.0.0:8787", "insecure": True},
    ],
    ids=str,
)
def test_closed_sockets_and_explicit_wishes_are_not(cluster: dict) -> None:
    made = make_settings({"out": "RUN", "input": {"spectra": "*"}, "cluster": cluster})
    assert made.cluster == Cluster(**cluster)


def test_tls_without_certificates_is_refused() -> None:
    with (
        pytest.raises(SettingsError, match=r"needs certificates: give cluster\.certificates.*DASK_CONFIG"),
        open_client(Cluster(scheduler="tls://127.0.0.1:1"), echo=quiet),
    ):
        pass


# Clusters that Dask starts


def start_file(folder: Path, text: str) -> str:
    path = folder / "cluster.toml"
    path.write_text(text)
    return str(path)


LOCAL = 'kind = "distributed.LocalCluster"\n[arguments]\nn_workers = 1\nhost = "127.0.0.1"\n'
# As SSHCluster and those of dask-jobqueue, but nothing that could be reached.
OPTIONS = 'kind = "distributed.SSHCluster"\n[arguments]\nhosts = ["host.invalid"]\n[arguments.scheduler_options]\n'


def opened(**cluster) -> str:
    """Address of the scheduler of a cluster that was started and stopped."""
    with open_client(Cluster(**cluster), echo=quiet) as client:
        return client.scheduler.address


def test_a_cluster_on_the_network_is_not_started_without_tls(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"LocalCluster listens on the network.*hotdask certificates DIR"):
        opened(start=start_file(tmp_path, LOCAL))


def test_with_certificates_it_speaks_tls(tmp_path: Path) -> None:
    folder = make_certificates(tmp_path / "certificates")
    text = LOCAL + 'dashboard_address = "127.0.0.1:0"\nthreads_per_worker = 1\n'
    assert opened(start=start_file(tmp_path, text), certificates=str(folder)).startswith("tls://127.0.0.1:")


def test_its_dashboard_is_kept_on_loopback_too(tmp_path: Path) -> None:
    folder = make_certificates(tmp_path / "certificates")
    file = start_file(tmp_path, OPTIONS + 'dashboard_address = ":8787"\n')
    with pytest.raises(SettingsError, match=r"dashboard_address = ':8787' is off loopback"):
        opened(start=file, certificates=str(folder))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('kind = "distributed.NoCluster"', SettingsError, r"there is no distributed\.NoCluster"),
        ('kind = "dask_mpi.Cluster"', SettingsError, r"package is installed"),
        ('kind = "os.system"', SettingsError, r"'os\.system' is of none of distributed, .*allow_any_class = true"),
        ('kind = "distributedother.Cluster"', SettingsError, r"is of none of"),
        ('kind = "distributed.Client"', SettingsError, r"'distributed\.Client' is no cluster class"),
        ('kind = "distributed.utils.open_port"', SettingsError, r"is no cluster class"),
        ('kind = "Cluster"', SettingsError, r"kind"),
        ('kind = "distributed.LocalCluster"\nworkers = 3', SettingsError, r"it has kind and \[arguments\]"),
        ('kind = "distributed.SSHCluster"', RunError, r"SSHCluster does not start \(ValueError: `hosts`"),
    ],
)
def test_what_cannot_be_started_is_said(tmp_path: Path, text: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        opened(start=start_file(tmp_path, text), insecure=True)


def test_nothing_of_another_package_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_clusters.py").write_text(
        "import os\nfrom distributed import LocalCluster as Mine\nos.mkdir('imported')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = LOCAL.replace("distributed.LocalCluster", "my_clusters.Mine") + 'dashboard_address = "127.0.0.1:0"\n'
    file = start_file(tmp_path, text)
    with pytest.raises(SettingsError, match=r"'my_clusters\.Mine' is of none of"):
        opened(start=file, insecure=True)
    assert not (tmp_path / "imported").exists()
    assert opened(start=file, insecure=True, allow_any_class=True).startswith("tcp://127.0.0.1:")


# Mutual TLS


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates") / "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates") / "theirs")


@pytest.fixture(scope="module")
def tls_client(ours: Path) -> Iterator[Client]:
    """A local cluster that others of the machine shall not use."""
    settings = Cluster(workers=1, dashboard="127.0.0.1:0", certificates=str(ours))
    with open_client(settings, echo=quiet) as client:
        yield client


def servers(client: Client) -> list[str]:
    """Everything that takes tasks or data: scheduler, nanny and worker."""
    (worker, about), *_ = client.scheduler_info()["workers"].items()
    return [client.scheduler.address, worker, about["nanny"]]


def ask(address: str, context: ssl.SSLContext) -> bytes:
    """What a server says to who has only connected: distributed's servers speak first."""
    context.check_hostname = False
    host, port = address.removeprefix("tls://").split(":")
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain) as connection,
    ):
        return connection.recv(8)


def with_certificate(folder: Path, authority: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    context.load_cert_chain(folder / "client.pem", folder / "client-key.pem")
    return context


def test_a_client_with_a_certificate_is_let_in(tls_client: Client, ours: Path) -> None:
    for address in servers(tls_client):
        assert address.startswith("tls://127.0.0.1:")
        assert ask(address, with_certificate(ours, ours))
    assert tls_client.submit(sum, [1, 2]).result(timeout=60) == 3


def test_a_client_without_certificate_is_refused(tls_client: Client, ours: Path) -> None:
    for address in servers(tls_client):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(address, ssl.create_default_context(cafile=str(ours / "ca.pem")))


def test_a_client_of_another_authority_is_refused(tls_client: Client, ours: Path, theirs: Path) -> None:
    for address in servers(tls_client):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(address, with_certificate(theirs, ours))


def test_a_run_with_other_certificates_says_what_is_wrong(
    tls_client: Client, survey, theirs: Path, settings_for: MakeSettings, tmp_path: Path
) -> None:
    address = tls_client.scheduler.address
    settings = settings_for(tmp_path / "RUN", cluster__scheduler=address, cluster__certificates=str(theirs))
    with pytest.raises(RunError, match=r"no scheduler answers at tls://.*made by one `hotdask certificates`"):
        run(settings, echo=quiet)
