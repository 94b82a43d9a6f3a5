"""Which code a process runs: labels of two versions must not mix, and a worker may have another than the launcher."""

import functools
import hashlib
from pathlib import Path

import hotdask
from hotdask.errors import WorkerError


@functools.cache
def code_identity() -> str:
    """Version and hash of the package's source files, as this process first saw them.

    Examples
    --------
    >>> code_identity().startswith(f"{hotdask.__version__}+")
    True
    """
    folder, digest = Path(hotdask.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return f"{hotdask.__version__}+{digest.hexdigest()[:12]}"


def check_code(launcher: str) -> None:
    """See that this process runs the launcher's code.

    Raises
    ------
    WorkerError
        If not.
    """
    if (here := code_identity()) != launcher:
        raise WorkerError(f"it runs hotdask {here}, the launcher {launcher}; install the launcher's version there")
