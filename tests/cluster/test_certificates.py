"""Certificates that `hotdask certificates` makes: who accepts whom, by the contexts distributed builds from them."""

import itertools
import os
import ssl
import stat
from pathlib import Path

import dask
import pytest
import yaml
from click.testing import CliRunner
from cryptography import x509
from dask.config import collect_yaml, merge
from distributed import Security

import hotdask.cli
from hotdask.cluster.certificates import ROLES, make_certificates, role_files, tls_settings
from hotdask.cluster.daskconfig import DASK
from hotdask.errors import SettingsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates") / "ours")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates") / "theirs")


def security(folder: Path) -> Security:
    with dask.config.set(tls_settings(folder)):
        return Security()


def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Both ends of one TLS connection, in memory; raises what the side that refuses raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_side=False),
    ]
    left = list(ends)
    for _ in range(10):
        for end in tuple(left):
            try:
                end.do_handshake()
                left.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not left:
            return
    raise AssertionError("no end of the handshake")


# A client never listens, and nothing but scheduler and workers is connected to.
PAIRS = list(itertools.product(("scheduler", "worker"), ROLES))


@pytest.mark.parametrize(("listens", "connects"), PAIRS)
def test_roles_of_one_folder_accept_one_another(folder: Path, listens: str, connects: str) -> None:
    ours = security(folder)
    shake(ours.get_listen_args(listens)["ssl_context"], ours.get_connection_args(connects)["ssl_context"])


@pytest.mark.parametrize(("listens", "connects"), PAIRS)
def test_those_of_another_folder_are_refused(folder: Path, foreign: Path, listens: str, connects: str) -> None:
    listening = security(folder).get_listen_args(listens)["ssl_context"]
    stranger = security(foreign).get_connection_args(connects)["ssl_context"]
    with pytest.raises(ssl.SSLError):
        shake(listening, stranger)
    # Even one that does not care whom it talks to.
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLError):
        shake(listening, stranger)


def test_nobody_gets_in_without_a_certificate(folder: Path) -> None:
    bare = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    bare.check_hostname = False
    with pytest.raises(ssl.SSLError, match="peer did not return a certificate"):
        shake(security(folder).get_listen_args("scheduler")["ssl_context"], bare)


def test_a_client_cannot_stand_in_for_a_scheduler(folder: Path) -> None:
    ours = security(folder)
    with pytest.raises(ssl.SSLError, match=r"purpose|certificate"):
        shake(ours.get_listen_args("client")["ssl_context"], ours.get_connection_args("worker")["ssl_context"])


def test_files_are_for_their_owner_only(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert len(files) == 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_the_authority_cannot_sign_again(folder: Path) -> None:
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    numbers = {
        x509.load_pem_x509_certificate(role_files(folder, role)[0].read_bytes()).public_key().public_numbers()
        for role in ROLES
    }
    assert len(numbers) == 3
    # None of the keys that are kept is the authority's.
    assert authority.public_key().public_numbers() not in numbers
    assert sum("PRIVATE KEY" in path.read_text() for path in folder.iterdir()) == 3


def test_the_yaml_is_what_a_run_sets_itself(folder: Path) -> None:
    (found,) = collect_yaml([str(folder / "distributed.yaml")])
    expected: dict = {}
    for name, value in (DASK | tls_settings(folder)).items():
        nested: object = value
        for section in reversed(name.split(".")):
            nested = {section: nested}
        expected = merge(expected, nested)
    assert found == expected


def test_a_folder_made_here_to_be_used_elsewhere(tmp_path: Path) -> None:
    arguments = ["certificates", str(tmp_path / "made"), "--installed", "/etc/hotdask/certificates", "--days", "3"]
    result = CliRunner().invoke(hotdask.cli.main, arguments)
    assert result.exit_code == 0, result.output
    assert "export DASK_CONFIG=/etc/hotdask/certificates/distributed.yaml" in result.output
    tls = yaml.safe_load((tmp_path / "made" / "distributed.yaml").read_text())["distributed"]["comm"]["tls"]
    assert tls["worker"]["key"] == "/etc/hotdask/certificates/worker-key.pem"
    worker = x509.load_pem_x509_certificate((tmp_path / "made" / "worker.pem").read_bytes())
    assert (worker.not_valid_after_utc - worker.not_valid_before_utc).days == 3


def test_nothing_is_written_over(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SettingsError, match="another folder"):
        make_certificates(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert os.listdir(folder.parent) == [folder.name]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = make_certificates(tmp_path / "certificates")
    (folder / "client-key.pem").unlink()
    with pytest.raises(SettingsError, match=r"there is no .*client-key\.pem; make the folder with `hotdask cert"):
        tls_settings(folder)
