"""Where things lie: a path of this machine, or a URL of an object store.

A path is a `pathlib.Path`; a URL (``s3://bucket/key``, or any other protocol of fsspec) becomes a ``UPath``, which has
the same methods. Endpoint and credentials are never hotdask's: fsspec and the library of the store read them from the
environment (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID`` …), ``~/.aws`` and ``~/.config/fsspec``, on every worker.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hotdask import config
from hotdask.errors import RunError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from upath import UPath
    from zarr.storage import FsspecStore

# A remembered listing does not show what another process has written since.
_OPTIONS = {"use_listings_cache": False}


def is_url(path: str | Path | UPath) -> bool:
    """Whether something lies on an object store.

    Examples
    --------
    >>> is_url("s3://bucket/RUN/spectra.zarr"), is_url("RUN/spectra.zarr")
    (True, False)
    """
    return "://" in str(path)


def place(path: str | Path | UPath) -> Path | UPath:
    """A path, or the like of a path for a URL.

    Raises
    ------
    RunError
        If a package for such URLs is not installed, or there is no such protocol.
    """
    if not is_url(path):
        return Path(path)
    try:
        from upath import UPath

        found = UPath(str(path), **_OPTIONS)
        # Loads the package that knows the protocol.
        _ = found.fs
    except ImportError as error:
        raise RunError(
            f"{path}: a package is missing here ({error}); `pip install 'hotdask[s3]'` brings what s3:// needs"
        ) from error
    except ValueError as error:
        raise RunError(f"{path}: {error}; give a URL as s3://bucket/folder") from error
    return found


def zarr_store(path: str | Path | UPath) -> Path | FsspecStore:
    """What Zarr opens to read there."""
    found = place(path)
    if not is_url(path):
        return found
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(str(path), storage_options=_OPTIONS, read_only=True)


def key_and_files(path: str | Path | UPath) -> tuple[str, AbstractFileSystem | None]:
    """Name of a file, and the file system it is a name on as pyarrow takes it; None for this machine's."""
    found = place(path)
    return (found.path, found.fs) if is_url(path) else (str(found), None)


def read_bytes(path: str | Path | UPath) -> bytes:
    """All a file holds.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    key, files = key_and_files(path)
    return Path(key).read_bytes() if files is None else files.cat_file(key)


def stamp(path: str | Path | UPath) -> str:
    """Changes when a file is written again.

    Raises
    ------
    OSError
        If the file is not there.
    """
    key, files = key_and_files(path)
    return str(Path(key).stat().st_mtime_ns) if files is None else files.ukey(key)


def run_places(run: str | Path) -> config.Store:
    """Where a run keeps what may lie outside its folder; a folder without settings keeps everything."""
    path = Path(run, config.SETTINGS)
    return config.load_section(path, "store") if path.exists() else config.Store()
