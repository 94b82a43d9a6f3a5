"""What `verify` says of damage that has no form of its own: a sentence, never a traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from distributed import Client

from hotdask.errors import RunError
from hotdask.pipeline.execute import run
from hotdask.pipeline.verify import verify

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "no JSON": lambda data: b"no JSON",
    "zeros": lambda data: bytes(len(data)),
    "no text": lambda data: b"\xff\xfe" + data,
    "no object": lambda data: b"null",
    "a list": lambda data: b"[]",
    "no end": lambda data: b"[" * 100_000,
    "a key less": lambda data: _changed(data, "node_type", None),
    "an unknown key": lambda data: data.replace(b"node_type", b"mode_type"),
    "no attributes": lambda data: _changed(data, "attributes", 5),
}


def _changed(data: bytes, key: str, value: object) -> bytes:
    body = json.loads(data)
    del body[key]
    return json.dumps(body if value is None else {**body, key: value}).encode()


def quiet(line: str) -> None:
    """An echo that says nothing."""


@pytest.fixture(scope="module")
def spoiled(finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, whose tests undo what they do."""
    folder = tmp_path_factory.mktemp("verify") / "RUN"
    finished.copy(folder)
    return folder


@pytest.mark.parametrize("name", ["zarr.json", "flux/zarr.json", "rv/zarr.json", "wavelength/zarr.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_metadata_of_the_cube_are_named(spoiled: Path, name: str, damage: str) -> None:
    path = spoiled / "spectra.zarr" / name
    before = path.read_bytes()
    path.write_bytes(DAMAGE[damage](before))
    try:
        problems = verify(spoiled, echo=quiet)
    finally:
        path.write_bytes(before)
    assert f"layout partition 0: spectra.zarr/{name} changed" in problems[0]
    # Each says where.
    assert [problem for problem in problems if "spectra.zarr" not in problem] == []


@pytest.mark.parametrize("damage", ["no object", "no end"])
def test_a_cube_whose_metadata_are_of_no_kind_is_mended(client: Client, finished, tmp_path: Path, damage: str) -> None:
    settings = finished.copy(tmp_path / "RUN")
    path = tmp_path / "RUN" / "spectra.zarr" / "zarr.json"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    run(settings, client=client, until="ingest", echo=quiet)
    assert path.read_bytes() == (finished.folder / "spectra.zarr" / "zarr.json").read_bytes()
    assert verify(tmp_path / "RUN", echo=quiet) == []


def test_a_damaged_part_of_the_catalog_is_named(spoiled: Path) -> None:
    path = sorted((spoiled / "catalog").resolve().glob("part-*"))[1]
    before = path.read_bytes()
    # In the data: the footer is read without complaint.
    path.write_bytes(before[:4] + bytes([before[4] ^ 1]) + before[5:])
    try:
        problems = verify(spoiled, echo=quiet)
    finally:
        path.write_bytes(before)
    assert f"{path}: missing, or not what its name says" in problems


@pytest.mark.parametrize("step", ["settings", "plan", "layout", "ingest", "fit", "catalog", "report"])
def test_a_lost_receipt_is_named(spoiled: Path, step: str) -> None:
    path = spoiled / "receipts" / step / "00000.json"
    before = path.read_bytes()
    path.unlink()
    try:
        problems = verify(spoiled, echo=quiet)
    finally:
        path.write_bytes(before)
    assert f"{step} 0: no receipt, though the step is called done" in problems


@pytest.mark.parametrize("name", ["settings.toml", "inputs/batch-0000.parquet"])
def test_a_run_that_lost_what_it_began_with_is_not_called_no_run(spoiled: Path, name: str) -> None:
    path = spoiled / name
    before = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(RunError, match=rf"{name.split('/')[0]} is missing; give the command of the run again"):
            verify(spoiled, echo=quiet)
    finally:
        path.write_bytes(before)
