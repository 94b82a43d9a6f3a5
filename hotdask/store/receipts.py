"""Receipts: small JSON files, written last, that say a partition of a step is done and with which files.

No receipt means not done. A receipt whose files are missing, changed or made with other settings means not done either,
with the reason in a sentence.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from hotdask.store.atomic import write_text
from hotdask.store.places import is_url, place, read_bytes

FOLDER = "receipts"


@dataclass(frozen=True)
class Receipt:
    """What one task did.

    ``files`` maps paths relative to the run, or URLs, to SHA-256; ``extra`` holds small JSON values (counts, seconds).
    """

    step: str
    partition: int
    fingerprint: str
    rows: int
    files: dict[str, str]
    extra: dict = field(default_factory=dict)


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file or of the object at a URL, 64 hex digits."""
    if is_url(path):
        return hashlib.sha256(read_bytes(path)).hexdigest()
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _try_hash(path: str | Path, *, content: bool = True) -> str | OSError | None:
    try:
        if not content and place(path).exists():
            return None
        return hash_file(path)
    except OSError as error:
        return error


def _try_hashes(paths: list[str | Path], *, content: bool = True) -> Iterator[str | OSError | None]:
    """Hash of each file, or why it cannot be read; None for a hash if it is enough that the file is there."""
    look = partial(_try_hash, content=content)
    if any(is_url(path) for path in paths):
        # Side by side, since each object waits for the network.
        with ThreadPoolExecutor(8) as pool:
            yield from pool.map(look, paths)
    else:
        yield from map(look, paths)


def hash_all(paths: Iterable[str | Path]) -> list[str]:
    """`hash_file` of many.

    Raises
    ------
    OSError
        If one cannot be read.
    """
    found = list(_try_hashes(list(paths)))
    for digest in found:
        if isinstance(digest, OSError):
            raise digest
    return found


def hash_files(run: str | Path, paths: Iterable[str | Path]) -> dict[str, str]:
    """SHA-256 of files, by path relative to the run or, outside it, by URL.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     _ = Path(run, "part").write_bytes(b"")
    ...     hash_files(run, [Path(run, "part")])["part"][:8]
    'e3b0c442'
    """
    paths = list(paths)
    names = (str(path) if is_url(path) else Path(path).relative_to(run).as_posix() for path in paths)
    return dict(zip(names, hash_all(paths), strict=True))


def receipt_path(run: str | Path, step: str, partition: int) -> Path:
    """Where the receipt of a partition of a step lies."""
    return Path(run, FOLDER, step, f"{partition:05d}.json")


def seal(body: dict) -> str:
    """Hash over a JSON object, which finds a changed digit that is still good JSON."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_receipt(run: str | Path, receipt: Receipt) -> Path:
    """Write a receipt, whole or not at all; every file it names must be complete by now.

    Raises
    ------
    ValueError
        If ``extra`` holds something JSON has no form for (NaN among them).
    """
    path = receipt_path(run, receipt.step, receipt.partition)
    # Through JSON once, so that the seal is over what a reader will see.
    body = json.loads(json.dumps(asdict(receipt), allow_nan=False))
    write_text(path, json.dumps({**body, "seal": seal(body)}, indent=1, sort_keys=True) + "\n")
    return path


def _load(path: Path) -> Receipt | None:
    try:
        body = json.loads(path.read_bytes())
        found = body.pop("seal")
        receipt = Receipt(**body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    sits_right = (receipt.step, f"{receipt.partition:05d}") == (path.parent.name, path.stem)
    return receipt if found == seal(body) and sits_right else None


def read_receipt(run: str | Path, step: str, partition: int) -> Receipt | None:
    """The receipt of a partition of a step; None if there is none, or it is corrupt or another partition's."""
    return _load(receipt_path(run, step, partition))


def list_receipts(run: str | Path, step: str) -> dict[int, Receipt]:
    """All sound receipts of a step, by partition in rising order."""
    found = (_load(path) for path in Path(run, FOLDER, step).glob("[0-9]*.json"))
    return {r.partition: r for r in sorted((r for r in found if r), key=lambda r: r.partition)}


def remove_receipt(run: str | Path, step: str, partition: int) -> None:
    """Remove a receipt, so that its partition is done again."""
    receipt_path(run, step, partition).unlink(missing_ok=True)


def check_receipt(run: str | Path, receipt: Receipt, fingerprint: str, *, content: bool = True) -> str | None:
    """The first of `receipt_problems`, or None: every file is there, unchanged, and the fingerprint is the same.

    Examples
    --------
    >>> check_receipt("RUN", Receipt("fit", 3, "cafe", 10, {}), "beef")
    'fit partition 3 was made with other settings (fingerprint cafe, now beef)'
    """
    return next(receipt_problems(run, receipt, fingerprint, content=content), None)


def receipt_problems(run: str | Path, receipt: Receipt, fingerprint: str, *, content: bool = True) -> Iterator[str]:
    """What of a receipt does not hold any more.

    Parameters
    ----------
    run : path
        Directory of the run.
    receipt : Receipt
        The receipt.
    fingerprint : str
        What the task would be done with now.
    content : bool
        Whether to hash the files; otherwise it is enough that they are there.

    Yields
    ------
    str
        A sentence for each file that is gone or changed; one if the fingerprint is another.
    """
    name = f"{receipt.step} partition {receipt.partition}"
    if receipt.fingerprint != fingerprint:
        yield f"{name} was made with other settings (fingerprint {receipt.fingerprint}, now {fingerprint})"
        return
    paths = [file if is_url(file) else Path(run, file) for file in receipt.files]
    for (file, expected), found in zip(receipt.files.items(), _try_hashes(paths, content=content), strict=True):
        if isinstance(found, OSError):
            yield f"{name}: {file} cannot be read ({found.strerror or found})"
        elif found is not None and found != expected:
            yield f"{name}: {file} changed after it was written (sha256 {found[:12]}, written {expected[:12]})"
    return None
