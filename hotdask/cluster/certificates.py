"""Certificates for a cluster that listens on a network: mutual TLS, which distributed has and leaves to be set up."""

import datetime
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hotdask.cluster.daskconfig import DASK, dask_yaml
from hotdask.errors import SettingsError
from hotdask.store.atomic import atomic_folder

AUTHORITY, CONFIG = "ca.pem", "distributed.yaml"
_CALLS, _ANSWERS = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
ROLES = {"scheduler": (_CALLS, _ANSWERS), "worker": (_CALLS, _ANSWERS), "client": (_CALLS,)}
"""Who takes part, and what the certificate is good for: a client's cannot stand in for a scheduler."""


def role_files(folder: str | Path, role: str) -> tuple[Path, Path]:
    """Certificate and key of a role."""
    return Path(folder, f"{role}.pem"), Path(folder, f"{role}-key.pem")


def tls_settings(folder: str | Path) -> dict[str, str | bool]:
    """Distributed's settings, by dotted name, that use the certificates in a folder and refuse anything else.

    Raises
    ------
    SettingsError
        If a file is not there.
    """
    folder = Path(folder)
    settings = _settings(folder)
    for name, path in settings.items():
        if name.endswith(("file", ".cert", ".key")) and not os.path.isfile(path):
            raise SettingsError(
                f"cluster.certificates = '{folder}': there is no {path}; make the folder with `hotdask certificates` "
                "and copy all of it"
            )
    return settings


def _settings(folder: Path) -> dict[str, str | bool]:
    tls = "distributed.comm.tls"
    settings: dict[str, str | bool] = {
        "distributed.comm.require-encryption": True,
        # What is given an address without a protocol would refuse itself otherwise.
        "distributed.comm.default-scheme": "tls",
        f"{tls}.ca-file": str(folder / AUTHORITY),
    }
    for role in ROLES:
        certificate, key = role_files(folder, role)
        settings |= {f"{tls}.{role}.cert": str(certificate), f"{tls}.{role}.key": str(key)}
    return settings


def make_certificates(folder: str | Path, *, installed: str | Path | None = None, days: int = 365) -> Path:
    """Make an authority, a certificate and a key for each role, and the ``distributed.yaml`` that names them.

    The authority's key is thrown away: who has the folder has the cluster, and nobody can join it later.

    Parameters
    ----------
    folder : path
        Where; it must not exist, or be empty. Readable by its owner only, as are its files.
    installed : path, optional
        Where the folder will lie on the machines; default: where it is now.
    days : int
        How long they are good for, from an hour ago on.

    Returns
    -------
    pathlib.Path
        The folder, absolute.

    Raises
    ------
    SettingsError
        If something is there already, or the folder cannot be made.
    """
    folder = Path(os.path.abspath(folder))
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    end = begin + datetime.timedelta(days=days)
    authority_key, authority = _authority(begin, end)
    files = {AUTHORITY: _pem(authority)}
    for role, uses in ROLES.items():
        certificate_file, key_file = role_files("", role)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(role, uses, key.public_key(), authority, authority_key, begin, end)
        files |= {str(certificate_file): _pem(certificate), str(key_file): _private(key)}
    files[CONFIG] = dask_yaml({**DASK, **_settings(Path(installed or folder))}).encode()
    try:
        with atomic_folder(folder) as partial:
            partial.chmod(0o700)
            for name, content in files.items():
                # Never readable by others, not even between making and chmod.
                handle = os.open(partial / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(handle, "wb") as file:
                    file.write(content)
    except OSError as error:
        raise SettingsError(f"{folder}: certificates cannot be made there ({error}); give another folder") from error
    return folder


def usage(folder: Path, installed: str | Path | None = None) -> str:
    """What to do with the folder, in a few lines."""
    there = installed or folder
    return "\n".join(
        (
            f"{folder}: certificates of scheduler, workers and clients; who has them runs code on the cluster",
            f"on each machine, with the folder at {there} and readable by you only:",
            f"  export DASK_CONFIG={Path(there, CONFIG)}",
            "  dask scheduler --dashboard-address 127.0.0.1:8787",
            "  dask worker tls://HOST:8786 --nthreads 1 --nworkers N --dashboard-address 127.0.0.1:0",
            f'then: hotdask run SETTINGS.toml --scheduler tls://HOST:8786, with certificates = "{there}" in [cluster]',
        )
    )


def _name(role: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hotdask {role}")])


def _authority(begin: datetime.datetime, end: datetime.datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("authority", _name("authority"), key.public_key(), begin, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    signs = dict.fromkeys(_KEY_USES, False) | {"key_cert_sign": True, "crl_sign": True}
    return key, builder.add_extension(x509.KeyUsage(**signs), critical=True).sign(key, hashes.SHA256())


def _certificate(
    role: str,
    uses: tuple[x509.ObjectIdentifier, ...],
    key: ec.EllipticCurvePublicKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.Certificate:
    builder = _builder(role, authority.subject, key, begin, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    signs = dict.fromkeys(_KEY_USES, False) | {"digital_signature": True}
    builder = builder.add_extension(x509.KeyUsage(**signs), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=True)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    builder = builder.add_extension(issuer, critical=False)
    return builder.sign(authority_key, hashes.SHA256())


_KEY_USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _builder(
    role: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime.datetime, end: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(role))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
