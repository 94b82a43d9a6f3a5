"""One command at a time in a run's folder."""

import datetime
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hotdask.errors import RunError
from hotdask.store.atomic import write_text

LOCK, HOLDER = ".lock", ".lock.json"


@contextmanager
def hold(folder: str | Path) -> Iterator[None]:
    """Hold a folder for the time of the block.

    The lock is the operating system's: it ends with the process that holds it, however that ends.

    Raises
    ------
    RunError
        If another process holds it, saying which; nothing in the folder is touched.
    """
    folder = Path(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"{folder} is in use by {_holder(folder)}; wait until that has ended, or give another --out"
        ) from error
    except OSError as error:
        raise RunError(
            f"{folder / LOCK}: cannot be locked ({error.strerror or error}); mend the folder's permissions, or give "
            "another --out"
        ) from error
    try:
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = json.dumps({"host": platform.node(), "pid": os.getpid(), "since": since})
        write_text(folder / HOLDER, text + "\n")
        yield
    finally:
        # Of a folder that cannot be written, the block has said so.
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
