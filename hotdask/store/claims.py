"""Whose a place on an object store is: two runs that name one URL would remove each other's cube."""

import json
from pathlib import Path
from uuid import uuid4

from hotdask import config
from hotdask.errors import HotdaskError, RunError
from hotdask.store.atomic import write_text
from hotdask.store.places import place, read_bytes

IDENTITY = "identity.json"
"""File in the folder of a run that keeps something on an object store: who it is, wherever it may be moved."""


def claim(run: str | Path, store: config.Store) -> None:
    """See that the places a run names are its own, or make them so.

    ``URL.run.json``, beside what lies at ``URL``, says whose it is; of two runs that claim a place at once one gets it.

    Raises
    ------
    RunError
        If a place belongs to another run, holds something that belongs to none, or cannot be read and written.
    """
    for url in filter(None, (store.cube, store.catalog)):
        try:
            owner = _claim(url, _identity(Path(run)), Path(run).absolute())
        except HotdaskError:
            raise
        # Each store has errors of its own, and not all are OSError.
        except Exception as error:
            raise RunError(
                f"{url}: cannot be used ({type(error).__name__}: {error}); check the URL, that the bucket exists, and "
                "that environment, ~/.aws or ~/.config/fsspec give endpoint and credentials"
            ) from error
        if owner is not None:
            raise RunError(
                f"{url} belongs to another run ({owner}); give another URL, or remove that one and {url}.run.json"
            )


def _identity(run: Path) -> str:
    path = run / IDENTITY
    if not path.exists():
        write_text(path, json.dumps({"id": uuid4().hex}) + "\n")
    try:
        return str(json.loads(path.read_text())["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} is damaged ({error}); write into it again the id that URL.run.json on the object store holds"
        ) from error


def _claim(url: str, identity: str, run: Path) -> str | None:
    """Claim a place; who owns it, if another does."""
    there = place(url)
    mark = there.with_name(f"{there.name}.run.json")
    if not mark.exists():
        if there.exists():
            raise RunError(f"{url}: something lies there that no run has made; give another URL")
        try:
            body = json.dumps({"id": identity, "run": str(run)}) + "\n"
            mark.fs.pipe_file(mark.path, body.encode(), mode="create")
        except FileExistsError:
            # Another run came first; its name is read below.
            pass
    owner = json.loads(read_bytes(mark))
    return None if owner["id"] == identity else owner["run"]
