"""Promise 3: no receipt, not done; a wrong hash is done again, and said."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from distributed import Client

from hotdask.pipeline.execute import run
from hotdask.pipeline.verify import verify
from hotdask.store.parquet import list_parts
from hotdask.store.receipts import remove_receipt


def quiet(line: str) -> None:
    """An echo that says nothing."""


def spoil(path: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("step", "harm"),
    [
        ("fit", lambda folder: spoil(folder / "fits" / "part-00003.parquet")),
        ("fit", lambda folder: (folder / "fits" / "part-00003.parquet").unlink()),
        ("fit", lambda folder: remove_receipt(folder, "fit", 3)),
        ("fit", lambda folder: os.truncate(folder / "fits" / "part-00003.parquet", 1000)),
        ("ingest", lambda folder: spoil(folder / "spectra.zarr" / "flux" / "c" / "3" / "0")),
        ("ingest", lambda folder: (folder / "spectra" / "part-00003.parquet").unlink()),
    ],
    ids=["flipped", "deleted", "no receipt", "truncated", "shard flipped", "sidecar deleted"],
)
def test_harm_is_found_and_mended(
    client: Client, finished, hashes: Callable, tmp_path: Path, step: str, harm: Callable
) -> None:
    settings = finished.copy(tmp_path / "RUN")
    before = {k: v for k, v in hashes(tmp_path / "RUN").items() if "receipts" not in k}
    harm(tmp_path / "RUN")
    lines: list[str] = []
    run(settings, client=client, echo=lines.append)
    after = hashes(tmp_path / "RUN")
    differ = {k for k in before if after.get(k) != before[k]}
    assert {k for k in differ if not k.startswith("report/")} <= {"run.json", "settings.toml"}
    told = [line for line in lines if line.startswith(f"{step} 3 is done again")]
    assert len(told) == (0 if harm.__code__.co_names[0] == "remove_receipt" else 1)
    # A partition of the cube is read again from its own files, not from all.
    assert not any("done again" in line and not line.startswith(f"{step} 3") for line in lines)
    lines.clear()
    run(settings, client=client, echo=lines.append)
    assert len(lines) == 1


def test_two_parts_that_changed_places_are_found(client: Client, finished, hashes: Callable, tmp_path: Path) -> None:
    settings = finished.copy(tmp_path / "RUN")
    one, other, aside = (tmp_path / "RUN" / "fits" / f"{name}.parquet" for name in ("part-00002", "part-00006", "x"))
    for source, target in ((one, aside), (other, one), (aside, other)):
        source.rename(target)
    lines: list[str] = []
    assert len(verify(tmp_path / "RUN", echo=quiet)) >= 2
    run(settings, client=client, echo=lines.append)
    assert [line.split(" is")[0] for line in lines if "done again" in line] == ["fit 2", "fit 6"]
    assert hashes(tmp_path / "RUN" / "fits") == hashes(finished.folder / "fits")
    assert verify(tmp_path / "RUN", echo=quiet) == []


def test_a_damaged_catalog_is_not_called_complete(client: Client, finished, hashes: Callable, tmp_path: Path) -> None:
    settings = finished.copy(tmp_path / "RUN")
    spoil(list_parts(tmp_path / "RUN" / "catalog")[2])
    run(settings, until="catalog", client=client, echo=quiet)
    assert hashes(tmp_path / "RUN" / "catalog") == hashes(finished.folder / "catalog")
