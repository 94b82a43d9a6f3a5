"""Shared fixtures: where real data lie, when they are at hand."""

import gc
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.exists():
        pytest.skip(f"needs the survey data of ../shared/{name}, which are not part of the project")
    return folder


@pytest.fixture(scope="session")
def lamost_files() -> Path:
    """Folder of 362 real LAMOST spectra, with inventory.csv and repeats.csv."""
    return _folder("data/lamost")


@pytest.fixture(scope="session")
def hot_templates() -> Path:
    """Folder of the real hot-star templates."""
    return _folder("data/hot_templates")


@pytest.fixture(scope="session")
def library_file() -> Path:
    """The real synthetic library."""
    return _folder("library") / "synthe_atlas9.npz"


@pytest.fixture(scope="session")
def synthesis() -> Path:
    """Folder of the real model atmospheres and line list."""
    return _folder("synthesis")


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """A server of S3 on this machine with the bucket ``survey``: the environment that leads to it, which is set."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        from s3fs import S3FileSystem

        S3FileSystem().mkdir("survey")
        yield environment
        S3FileSystem.clear_instance_cache()
        # Clients that Zarr makes are never closed.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    server.stop()
