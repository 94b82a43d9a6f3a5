"""Versions of a catalog, each a folder of Parquet parts, and which of them readers are shown.

On a disk a version is built under a hidden name, renamed, and shown by swapping the link ``RUN/catalog``. An object
store has neither links nor renames at once, but an object is replaced at once: each version has a name of its own, and
``URL/current.json``, written last, says which is shown and which parts it consists of.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from hotdask.store.atomic import atomic_folder, publish_link, remove_folder, write_text
from hotdask.store.parquet import list_parts
from hotdask.store.places import is_url, place, read_bytes, run_places

LINK, FOLDER, POINTER = "catalog", "catalog_versions", "current.json"

_VERSION = re.compile(r"v(\d{4,})(?:-[0-9a-f]{8})?")
KEEP = 2
"""Versions kept: the one shown, and the one before for those still reading it."""


@dataclass(frozen=True)
class Shown:
    """The version shown: its folder, and its parts in order."""

    folder: Path
    parts: list[Path]


def _last(folder: Path) -> int:
    return max((int(_VERSION.fullmatch(p.name)[1]) for p in _numbered(folder)), default=0)


def _numbered(folder: Path) -> list[Path]:
    # Whatever else lies there (v0001.bak) is somebody else's.
    return sorted(p for p in folder.glob("v[0-9]*") if _VERSION.fullmatch(p.name) and p.is_dir())


class LinkedVersions:
    """Versions in ``RUN/catalog_versions``, shown by the link ``RUN/catalog``."""

    def __init__(self, run: str | Path):
        self._run = Path(run)
        self._folder = self._run / FOLDER

    def shown(self) -> Shown | None:
        """What readers see now; None if nothing is published."""
        link = self._run / LINK
        if not link.is_symlink() or not link.exists():
            return None
        folder = self._run / link.readlink()
        return Shown(folder, list_parts(folder))

    def following(self) -> Path:
        """Folder of the next version."""
        return self._folder / f"v{_last(self._folder) + 1:04d}"

    def build(self, final: Path) -> AbstractContextManager[Path]:
        """A folder to fill, which becomes ``final``; see `hotdask.store.atomic.atomic_folder`."""
        return atomic_folder(final)

    def show(self, final: Path, record: Mapping) -> None:
        """Show a version and remove old ones."""
        publish_link(self._run / LINK, Path(FOLDER, final.name))
        for folder in _numbered(self._folder)[:-KEEP]:
            if folder != final:
                remove_folder(folder)


class PointedVersions:
    """Versions below a URL, shown by the object ``URL/current.json``.

    A killed publisher leaves a version that `POINTER` does not name. Nobody reads it, and nothing tells it from one
    that another publisher is building, so it stays until somebody removes it.
    """

    def __init__(self, url: str):
        self._place = place(url)

    def _pointer(self) -> dict:
        try:
            found = json.loads(read_bytes(self._place / POINTER))
            return {"version": str(found["version"]), "files": dict(found["files"]), "before": list(found["before"])}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}

    def shown(self) -> Shown | None:
        """What readers see now; None if nothing is published, or the pointer is damaged."""
        pointer = self._pointer()
        if not pointer:
            return None
        folder = self._place / pointer["version"]
        return Shown(folder, [folder / name for name in sorted(pointer["files"])])

    def following(self) -> Path:
        """Folder of the next version; no two calls give the same."""
        return self._place / f"v{_last(self._place) + 1:04d}-{uuid4().hex[:8]}"

    @contextmanager
    def build(self, final: Path) -> Iterator[Path]:
        """``final`` itself, to fill: nobody reads it before it is shown. If the block raises, it is removed."""
        try:
            yield final
        except BaseException:
            remove_folder(final)
            raise

    def show(self, final: Path, record: Mapping) -> None:
        """Show a version and remove old ones; ``record`` goes into the pointer, with ``files`` by name among it."""
        old = self._pointer()
        known = [old["version"], *old["before"]] if old else []
        pointer = {**record, "version": final.name, "before": known[: KEEP - 1]}
        write_text(self._place / POINTER, json.dumps(pointer, indent=1, sort_keys=True) + "\n")
        # Only what the pointer has named: others may be in the making.
        for name in known[KEEP - 1 :]:
            remove_folder(self._place / name)


def catalog_versions(run: str | Path) -> LinkedVersions | PointedVersions:
    """The versions of a run's catalog, wherever its settings say, or of the one at a URL."""
    url = str(run) if is_url(run) else run_places(run).catalog
    return LinkedVersions(run) if url is None else PointedVersions(url)
