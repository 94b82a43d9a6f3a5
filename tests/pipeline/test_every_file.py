"""Every file a run leaves: `verify` names what happened to it, the same command makes it again."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from distributed import Client

from hotdask.errors import HotdaskError
from hotdask.pipeline.execute import run
from hotdask.pipeline.verify import verify

GROUPS = {
    "late": ["stars.parquet", "run.json", "catalog/part-*", "fits/part-00003.parquet", "report/index.html",
             "report/explorer.html", "report/spectra/*.html"],
    "tables": ["spectra/part-00002.parquet", "receipts/catalog/00000.json", "receipts/fit/00001.json"],
    "cube": ["spectra.zarr/flux/c/1/0", "spectra.zarr/ivar/c/2/0", "spectra.zarr/rv/c/4", "spectra.zarr/wavelength/c/0",
             "spectra.zarr/zarr.json", "spectra.zarr/flux/zarr.json", "spectra.zarr/wavelength/zarr.json"],
    "begun": ["receipts/layout/00000.json", "receipts/ingest/00005.json", "receipts/settings/00000.json",
              "receipts/report/00000.json"],
    "plan": ["plan/batch-0000.parquet", "rejects/batch-0000.parquet"],
    "planned": ["receipts/plan/00000.json"],
    "inputs": ["inputs/batch-0000.parquet"],
    "settings": ["settings.toml"],
}  # fmt: skip
"""Harmed together: what one harm hides of another is harmed apart."""


def quiet(line: str) -> None:
    pass


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


HARMS: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
}


def content(folder: Path) -> dict[str, bytes]:
    """What a run is about: catalog, fits, cube and tables, by name."""
    patterns = ("catalog/*", "fits/*", "spectra/*", "spectra.zarr/**/*", "plan/*", "rejects/*", "inputs/*", "*.parquet")
    files = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


SOON = {("flipped", "late"), ("cut", "cube"), ("flipped", "inputs")}
"""What every run of the tests does; all of it is for releases."""


@pytest.mark.parametrize(
    ("harm", "group"),
    [
        pytest.param(harm, group, marks=() if (harm, group) in SOON else pytest.mark.long)
        for harm in HARMS
        for group in GROUPS
    ],
)
def test_harm_is_named_and_undone(client: Client, finished, tmp_path: Path, group: str, harm: str) -> None:
    folder = tmp_path / "RUN"
    settings = finished.copy(folder)
    harmed = [next(iter(sorted(folder.glob(pattern)))) for pattern in GROUPS[group]]
    for path in harmed:
        HARMS[harm](path)
    try:
        problems = verify(folder, echo=quiet)
    except HotdaskError as error:
        assert group in ("settings", "inputs", "plan")
        problems = [str(error)]
    if group in ("late", "tables", "cube"):
        named = [path for path in harmed if any(_names(problem, path, folder) for problem in problems)]
        assert named == harmed, problems
    else:
        assert problems
    run(settings, client=client, echo=quiet)
    assert verify(folder, echo=quiet) == []
    before, after = content(finished.folder), content(folder)
    assert after.keys() == before.keys()
    changed = [name for name in before if after[name] != before[name]]
    assert changed == []


def _names(problem: str, path: Path, folder: Path) -> bool:
    """Whether a problem is about a file: by its name, or that of its receipt, or of the version it is a part of."""
    name = path.relative_to(folder).as_posix()
    if name.startswith("receipts/"):
        return name.split("/")[1] in problem
    if name.startswith("catalog/"):
        return "catalog_versions/" in problem or "no catalog is published" in problem
    return name in problem


@pytest.mark.long
def test_other_files_beside_the_versions_are_left_alone(client: Client, finished, tmp_path: Path) -> None:
    folder = tmp_path / "RUN"
    settings = finished.copy(folder)
    for name in ("v0001.bak", "v1", "version", "vv0002"):
        (folder / "catalog_versions" / name).mkdir()
    changed = settings.model_copy(update={"catalog": settings.catalog.model_copy(update={"min_snr": 20.0})})
    for chosen in (changed, settings, changed):
        run(chosen, client=client, until="catalog", echo=quiet)
    assert verify(folder, echo=quiet) == []
    versions = sorted(path.name for path in (folder / "catalog_versions").iterdir())
    assert {"v0001.bak", "v1", "version", "vv0002"} <= set(versions)
    assert os.readlink(folder / "catalog") == "catalog_versions/v0004"
