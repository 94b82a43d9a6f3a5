"""Files, folders and links that appear whole or not at all.

Everything is built under a hidden name in the same folder, flushed to disk, and renamed into place. A rename is the one
change a file system makes at once, so a reader, a killed writer or a second writer of the same thing never meets half a
file. On an object store the one change made at once is the writing of an object.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from hotdask.errors import RunError
from hotdask.store.places import is_url, place

PARTIAL = ".partial"
"""How the hidden name of something unfinished ends."""


_EXISTS = "{} exists already; remove it or choose another folder"


def _partial(final: Path) -> Path:
    # A leading dot hides it from pandas, pyarrow and Dask; a name of its own lets two writers work side by side.
    return final.with_name(f".{final.name}.{uuid4().hex}{PARTIAL}")


def sync(path: str | Path) -> None:
    """Flush one file, or the entries of one folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: str | Path) -> None:
    """Flush every file and folder below and including ``folder``."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(root, name))
        sync(root)


@contextmanager
def atomic_path(final: str | Path) -> Iterator[Path]:
    """Write a file under a hidden name; it takes its own name when the block ends well.

    Parameters
    ----------
    final : path
        Where the file shall be; its folder is made if need be. A file already there is replaced.

    Yields
    ------
    pathlib.Path
        Where to write, in the same folder. If the block raises, it is removed and ``final`` stays as it was.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder, "a.txt")) as path:
    ...         _ = path.write_text("whole")
    ...         before = Path(folder, "a.txt").exists()
    ...     before, Path(folder, "a.txt").read_text()
    (False, 'whole')
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(final)
    try:
        yield partial
        sync(partial)
        os.replace(partial, final)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(final.parent)


@contextmanager
def atomic_folder(final: str | Path) -> Iterator[Path]:
    """Fill a folder under a hidden name; it takes its own name when the block ends well.

    Parameters
    ----------
    final : path or URL
        Where the folder shall be. Below a URL, what lies at the top of the folder is written last: as long as nothing
        does, the folder counts as absent.

    Yields
    ------
    pathlib.Path
        An empty folder to fill, on this machine. If the block raises, it is removed.

    Raises
    ------
    FileExistsError
        If ``final`` is there already and not empty; it is left alone.
    """
    if is_url(final):
        with TemporaryDirectory() as partial:
            yield Path(partial)
            _upload(Path(partial), place(final))
        return
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(final)
    partial.mkdir()
    try:
        yield partial
        sync_tree(partial)
        try:
            os.rename(partial, final)
        except OSError as error:
            if final.exists():
                raise FileExistsError(_EXISTS.format(final)) from error
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(final.parent)


def _upload(folder: Path, final: Path) -> None:
    if _at_top(final):
        raise FileExistsError(_EXISTS.format(final))
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (len(path.parts) == 1, path)):
        write_bytes(final / path.as_posix(), (folder / path).read_bytes())


def _at_top(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.exists() else []


def write_bytes(final: str | Path, data: bytes) -> None:
    """Write a whole file or none, or a whole object below a URL."""
    if is_url(final):
        there = place(final)
        there.fs.pipe_file(there.path, data)
        return
    with atomic_path(final) as path:
        path.write_bytes(data)


def write_text(final: str | Path, text: str) -> None:
    """Write a whole text file (UTF-8) or none."""
    write_bytes(final, text.encode())


def publish_link(link: str | Path, target: str | Path) -> None:
    """Point a symbolic link at ``target`` by one rename, whether or not it pointed elsewhere before.

    Parameters
    ----------
    link : path
        The link.
    target : path
        What it points at, relative to the link's folder (a run then survives being moved) or absolute.

    Raises
    ------
    RunError
        If the target does not exist, or something that is not a link bears the name.
    """
    link = Path(link)
    if not (link.parent / target).exists():
        raise RunError(f"{link}: cannot point at {target}, which does not exist; publish the target first")
    if link.exists() and not link.is_symlink():
        raise RunError(f"{link} is not a link that hotdask made; move it away and run the command again")
    link.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(link)
    try:
        os.symlink(target, partial)
        os.replace(partial, link)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(link.parent)


def remove_folder(folder: str | Path) -> None:
    """Remove a folder: first its name at once, then what it held. A folder that is not there is no error."""
    if is_url(folder):
        there = place(folder)
        with suppress(FileNotFoundError):
            for path in _at_top(there):
                path.unlink()
            there.fs.rm(there.path, recursive=True)
        return
    folder = Path(folder)
    partial = _partial(folder)
    with suppress(FileNotFoundError):
        os.rename(folder, partial)
        shutil.rmtree(partial, ignore_errors=True)


def clear_leftovers(root: str | Path) -> int:
    """Remove what killed writers left below ``root``; only for when no writer is at work there.

    Returns
    -------
    int
        How many files and folders were removed.
    """
    leftovers = sorted(Path(root).rglob(f".*{PARTIAL}"))
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)
