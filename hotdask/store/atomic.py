"""Files, folders and links that appear whole or not at all.

Everything is built under a hidden name in the same folder, flushed to disk, and renamed into place. A rename is the one
change a file system makes at once, so a reader, a killed writer or a second writer of the same thing never meets half a
file. On an object store the one change made at once is the writing of an object.
"""

import errno
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from uuid import getnode, uuid4

from hotdask.errors import DiskFullError, RunError
from hotdask.store.places import is_url, place

PARTIAL = ".partial"
"""How the hidden name of something unfinished ends."""
_UNFINISHED = re.compile(rf"\..+\.[0-9a-f]{{32}}{re.escape(PARTIAL)}", re.DOTALL)
"""Hidden names of ours; others that end so are somebody else's."""


def _partial(final: Path) -> Path:
    # A leading dot hides it from pandas, pyarrow and Dask; a name of its own lets two writers work side by side, and
    # says which process writes.
    return final.with_name(f".{final.name}.{_machine()}{os.getpid():08x}{uuid4().hex[:16]}{PARTIAL}")


@cache
def _machine() -> str:
    """8 hex digits of this machine since it was started, and of its process numbers: containers have their own."""
    try:
        known = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        known = f"{getnode()}"
    return hashlib.sha256(known.encode()).hexdigest()[:8]


def is_unfinished(path: Path) -> bool:
    """Whether a file or folder has the name of something that a writer of ours has not finished.

    Examples
    --------
    >>> is_unfinished(Path(f".a.txt.{'0f' * 16}.partial")), is_unfinished(Path(".notes.partial"))
    (True, False)
    """
    return _UNFINISHED.fullmatch(path.name) is not None


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


_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_PLACE = (errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR)
"""A file where a folder must be, or the other way round."""


@contextmanager
def _room(final: Path, partial: Path) -> Iterator[None]:
    """Say of a full disk, or one that may not be written, which folder is on it, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _DENIED:
            raise RunError(
                f"{final.parent}: {final.name} cannot be written ({error.strerror}); mend the folder's permissions, or "
                "give another one"
            ) from error
        # Whoever fills a folder may have errors of other places.
        if error.errno in _NO_PLACE and Path(str(error.filename)) in (partial, *final.parents):
            raise RunError(f"{final}: cannot be written ({error.strerror}); give another place") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"{final.parent}: no room on the disk for {final.name} ({os.strerror(error.errno)}); make room, and run "
            "the same command again"
        ) from error


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

    Raises
    ------
    DiskFullError
        If the disk is full.
    RunError
        If no file can be written there.

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
    partial = _partial(final)
    with _room(final, partial):
        final.parent.mkdir(parents=True, exist_ok=True)
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
    final : path
        Where the folder shall be.

    Yields
    ------
    pathlib.Path
        An empty folder to fill. If the block raises, it is removed.

    Raises
    ------
    FileExistsError
        If ``final`` is there already and not empty; it is left alone.
    DiskFullError
        If the disk is full.
    """
    final = Path(final)
    partial = _partial(final)
    with _room(final, partial):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            yield partial
            sync_tree(partial)
            try:
                os.rename(partial, final)
            except OSError as error:
                if final.exists():
                    raise FileExistsError(f"{final} exists already; remove it or choose another folder") from error
                raise
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(final.parent)


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
    partial = _partial(link)
    with _room(link, partial):
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.symlink(target, partial)
            os.replace(partial, link)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync(link.parent)


def remove_folder(folder: str | Path) -> None:
    """Remove a folder: first its name at once, then what it held. A folder that is not there is no error.

    Below a URL, where nothing has a name apart from what it holds, objects go one by one.
    """
    if is_url(folder):
        there = place(folder)
        with suppress(FileNotFoundError):
            there.fs.rm(there.path, recursive=True)
        return
    folder = Path(folder)
    if folder.is_symlink():
        # What it points at is not ours to remove.
        folder.unlink()
        return
    partial = _partial(folder)
    with _room(folder, partial), suppress(FileNotFoundError):
        os.rename(folder, partial)
        shutil.rmtree(partial, ignore_errors=True)


def check_links(root: str | Path) -> None:
    """See that what is written below a folder stays below it.

    Parameters
    ----------
    root : path
        The folder of a run; it may be a link itself. Its entries and theirs are looked at, which is as deep as folders
        with names of their own go.

    Raises
    ------
    RunError
        If a link leads out of it.
    """
    real = Path(root).resolve()
    for path in (*real.glob("*"), *real.glob("*/*")):
        if path.is_symlink() and not path.resolve().is_relative_to(real):
            raise RunError(
                f"{path} is a link to {os.readlink(path)}, out of the run's folder, where nothing may be written; put "
                "what it stands for in its place, or to have the run on another disk make its whole folder the link"
            )


def clear_dead(final: str | Path) -> None:
    """Remove what writers of a file or folder left that were killed on this machine; what others may still write stays.

    Parameters
    ----------
    final : path
        The name they would have given it.
    """
    final = Path(final)
    # Not those of a longer name, which is somebody else's.
    for path in final.parent.glob(f".{glob.escape(final.name)}.{'[0-9a-f]' * 32}{PARTIAL}"):
        written_by = path.name.removesuffix(PARTIAL)[-32:]
        if written_by.startswith(_machine()) and not _lives(int(written_by[8:16], 16)):
            _remove(path)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with _room(path, path):
            path.unlink(missing_ok=True)


def clear_leftovers(root: str | Path) -> int:
    """Remove what killed writers left below ``root``, and nothing that has not such a name.

    A writer still at work there fails at its last step, the renaming, and leaves nothing.

    Returns
    -------
    int
        How many files and folders were removed.
    """
    leftovers = sorted(path for path in Path(root).rglob(f".*{PARTIAL}") if is_unfinished(path))
    for path in leftovers:
        _remove(path)
    return len(leftovers)
