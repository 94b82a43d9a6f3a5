"""The library on disk: nothing half made is ever read, nothing made is ever lost."""

import json
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from hotdask.errors import InputError, RunError
from hotdask.labels import INDEX, LABEL_NAMES
from hotdask.library.spectra import LOG_START, N_FINE
from hotdask.library.synthe import read_npz
from hotdask.store import library
from hotdask.store.library import (
    PART,
    create_library,
    library_labels,
    library_provenance,
    missing_parts,
    n_parts,
    read_library,
    read_part,
    rejects,
    write_part,
)

N = 2 * PART + 8
REASON = "Fortran stop: Iteration N° 20 – λ diverged"
PROVENANCE = {"engine": "none", "settings": {"n": N, "ranges": [7000, 50000]}, "grid": None}


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    # What fsync is for is tested in test_atomic.py.
    monkeypatch.setattr("hotdask.store.atomic.sync", lambda path: None)


def make_labels(n: int = N) -> np.ndarray:
    labels = np.arange(n * len(LABEL_NAMES), dtype=np.float64).reshape(n, -1) / 7
    labels[:, INDEX["vsini"]] = 0
    return labels


def part_of(part: int, failed: tuple[int, ...] = ()) -> dict:
    """A part whose every value says which row and pixel it is; ``failed`` are rows of the library."""
    rows = np.arange(part * PART, min((part + 1) * PART, N))
    flux = (1 + rows[:, None] + np.arange(N_FINE) / N_FINE).astype(np.float32)
    continuum, flux_lte = 2 * flux, 3 * flux
    bad = np.isin(rows, failed)
    flux[bad], flux_lte[bad], continuum[bad] = np.nan, np.nan, np.nan
    reasons = [REASON if b else "" for b in bad]
    seconds = rows.astype(np.float32)
    return {"flux": flux, "flux_lte": flux_lte, "continuum": continuum, "seconds": seconds, "reasons": reasons}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "lib.zarr"
    create_library(path, make_labels(), provenance=PROVENANCE)
    return path


def test_a_new_library_is_all_missing(store: Path) -> None:
    assert n_parts(store) == 3
    assert missing_parts(store) == [0, 1, 2]
    assert library_provenance(store) == PROVENANCE
    np.testing.assert_array_equal(library_labels(store), make_labels())
    assert len(rejects(store)) == 0
    with pytest.raises(InputError, match="none of 72 syntheses is made"):
        read_library(store)


def test_what_is_written_comes_back_without_the_failed_rows(store: Path) -> None:
    failed = (3, 40, 71)
    for part in (2, 0, 1):
        write_part(store, part, **part_of(part, failed))
    kept = np.setdiff1d(np.arange(N), failed)
    whole = read_library(store)
    np.testing.assert_array_equal(whole.flux, np.concatenate([part_of(p)["flux"] for p in range(3)])[kept])
    assert whole.flux.dtype == np.float32
    np.testing.assert_array_equal(whole.labels, make_labels()[kept])
    assert (whole.log_start, whole.name) == (LOG_START, "lib.zarr")
    table = rejects(store)
    assert list(table.columns) == ["row", *LABEL_NAMES, "reason"]
    assert table["row"].tolist() == list(failed)
    assert set(table["reason"]) == {REASON}
    np.testing.assert_array_equal(table[list(LABEL_NAMES)], make_labels()[list(failed)])
    part = read_part(store, 1)
    assert part["row"].tolist() == list(range(PART, 2 * PART))
    assert part["status"].tolist() == [2 if row == 40 else 1 for row in part["row"]]
    np.testing.assert_array_equal(part["continuum"], part_of(1, failed)["continuum"])


def test_parts_not_made_are_left_out(store: Path) -> None:
    write_part(store, 1, **part_of(1))
    assert missing_parts(store) == [0, 2]
    np.testing.assert_array_equal(read_library(store).labels, make_labels()[PART : 2 * PART])


def test_xarray_opens_it(store: Path) -> None:
    write_part(store, 0, **part_of(0))
    with xr.open_zarr(store, consolidated=False, zarr_format=3, chunks=None) as found:
        assert found["flux"].dims == ("synthesis", "wavelength")
        assert found["labels"].dims == ("synthesis", "label")
        np.testing.assert_array_equal(found["flux"][:PART], part_of(0)["flux"])
        assert found.attrs["labels"] == list(LABEL_NAMES)


def test_a_killed_writer_leaves_a_part_not_made(store: Path) -> None:
    # Killed before the last of its files, in a process of its own.
    code = f"""
import os, sys
import numpy as np
from hotdask.store import library
path = {str(store)!r}
write = library.write_bytes
def until_status(final, data):
    if "status" in final.parts:
        os._exit(9)
    write(final, data)
library.write_bytes = until_status
flux = np.ones(({PART}, library.N_FINE), np.float32)
library.write_part(path, 0, flux=flux, flux_lte=flux, continuum=flux, seconds=np.ones({PART}), reasons=[""] * {PART})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert (store / "flux/c/0/0").exists()
    assert missing_parts(store) == [0, 1, 2]
    write_part(store, 0, **part_of(0))
    np.testing.assert_array_equal(read_library(store).flux, part_of(0)["flux"])


def test_writers_side_by_side(store: Path) -> None:
    threads = [threading.Thread(target=lambda p=p: write_part(store, p, **part_of(p))) for p in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    np.testing.assert_array_equal(read_library(store).flux, np.concatenate([part_of(p)["flux"] for p in range(3)]))


def test_a_part_is_written_over(store: Path) -> None:
    write_part(store, 0, **part_of(0, failed=tuple(range(PART))))
    assert len(rejects(store)) == PART
    (store / "flux/c/0/0").write_bytes(b"damaged")
    write_part(store, 0, **part_of(0))
    assert len(rejects(store)) == 0
    np.testing.assert_array_equal(read_library(store).flux, part_of(0)["flux"])


@pytest.mark.parametrize("variable", ["flux", "status", "reason"])
def test_one_flipped_bit_is_found_and_the_remedy_works(store: Path, variable: str) -> None:
    for part in range(3):
        write_part(store, part, **part_of(part, failed=(40,)))
    (chunk,) = (f for f in (store / variable).rglob("*") if f.is_file() and f.relative_to(store).parts[2:3] == ("1",))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    read = rejects if variable == "reason" else read_library
    with pytest.raises(InputError, match=f"{variable} of part 1 is damaged.*remove its file status/c/1 "):
        read(store)
    (store / "status/c/1").unlink()
    assert missing_parts(store) == [1]
    write_part(store, 1, **part_of(1, failed=(40,)))
    assert len(read_library(store).flux) == N - 1


def test_a_lost_chunk_is_not_read_as_nothing(store: Path) -> None:
    write_part(store, 0, **part_of(0))
    (store / "flux/c/0/0").unlink()
    with pytest.raises(InputError, match="flux of part 0 is absent"):
        read_library(store)


def test_an_existing_path_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for path in (store, tmp_path / "file", tmp_path / "empty"):
        with pytest.raises(InputError, match="exists already; remove it or choose another path"):
            create_library(path, make_labels(), provenance={})
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda labels: labels[:, :10], "shape"),
        (lambda labels: labels[:0], "shape"),
        (lambda labels: np.where(labels == labels[3, 2], np.nan, labels), "finite"),
        (lambda labels: labels + 1, "vsini 0"),
    ],
)
def test_labels_that_cannot_be(tmp_path: Path, spoil, says: str) -> None:
    with pytest.raises(InputError, match=says):
        create_library(tmp_path / "a.zarr", spoil(make_labels()), provenance={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("provenance", [{"a": np.float32(1)}, {"a": float("nan")}, {"a": {1, 2}}])
def test_provenance_is_json(tmp_path: Path, provenance: dict) -> None:
    with pytest.raises(InputError, match="not JSON"):
        create_library(tmp_path / "a.zarr", make_labels(), provenance=provenance)


def test_what_does_not_fit_is_refused_before_anything_is_written(store: Path) -> None:
    good = part_of(0)
    short = {**good, "continuum": good["continuum"][:-1]}
    coarse = {**good, "flux": good["flux"][:, ::2]}
    for arrays in (short, coarse, {**good, "reasons": [""]}):
        with pytest.raises(RunError, match="has shape"):
            write_part(store, 0, **arrays)
    with pytest.raises(RunError, match="no part 3"):
        write_part(store, 3, **good)
    with pytest.raises(RunError, match="has shape"):
        write_part(store, 2, **good)
    hole = good["flux"].copy()
    hole[5, 100] = np.nan
    with pytest.raises(RunError, match=r"rows \[5\] have flux that is not finite and no reason"):
        write_part(store, 0, **{**good, "flux": hole})
    assert not (store / "flux" / "c").exists()


def test_an_engine_without_continuum(store: Path) -> None:
    write_part(store, 0, **{**part_of(0), "continuum": np.full((PART, N_FINE), np.nan)})
    assert len(read_library(store).flux) == PART
    assert np.isnan(read_part(store, 0)["continuum"]).all()


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("hotdask_library_format", 99, "library format 99, this hotdask reads 2"),
        ("labels", list(LABEL_NAMES[::-1]), "has the labels"),
        ("grid", {"log_start": 3.5, "log_step": 2e-5, "n": N_FINE}, "has the wavelength grid"),
    ],
)
def test_another_format_is_refused(store: Path, attribute: str, value, says: str) -> None:
    meta = json.loads((store / "zarr.json").read_text())
    meta["attributes"][attribute] = value
    (store / "zarr.json").write_text(json.dumps(meta))
    for read in (read_library, missing_parts, rejects, library_labels):
        with pytest.raises(InputError, match=says):
            read(store)


def test_what_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no")
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    for name in ("text", "absent", "other.zarr", "absent.npz"):
        with pytest.raises(InputError, match=name):
            read_library(tmp_path / name)


def test_the_real_library_through_a_store(library_file: Path, tmp_path: Path) -> None:
    real = read_npz(library_file)
    flux = real.flux[: PART + 3]
    path = tmp_path / "real.zarr"
    create_library(path, real.labels[: len(flux)], provenance={})
    for part in range(2):
        some = flux[part * PART : (part + 1) * PART]
        same = dict.fromkeys(("flux", "flux_lte", "continuum"), some)
        write_part(path, part, **same, seconds=np.ones(len(some)), reasons=[""] * len(some))
    back = read_library(path)
    np.testing.assert_array_equal(back.flux, flux)
    np.testing.assert_array_equal(back.labels, real.labels[: len(flux)])
    np.testing.assert_array_equal(read_library(library_file).flux, real.flux)


def test_reading_needs_little_more_memory_than_the_spectra(tmp_path: Path) -> None:
    n = 12 * PART
    path = tmp_path / "big.zarr"
    labels = np.tile(make_labels(N), (6, 1))[:n]
    create_library(path, labels, provenance={})
    for part in range(n // PART):
        write_part(path, part, **{**part_of(0), "seconds": np.ones(PART)})
    tracemalloc.start()
    try:
        whole = read_library(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.6 * whole.flux.nbytes


def test_status_is_what_is_documented() -> None:
    assert (library.PLANNED, library.MADE, library.FAILED) == (0, 1, 2)


def test_spectra_in_lte_lie_beside_the_others(store: Path) -> None:
    for part in range(3):
        write_part(store, part, **part_of(part, failed=(40,)))
    both = [read_library(store, lte=lte) for lte in (False, True)]
    np.testing.assert_array_equal(both[1].flux, 3 * both[0].flux)
    assert both[0].provenance == PROVENANCE
    assert both[1].provenance == {**PROVENANCE, "spectra": "in LTE"}


def test_an_engine_may_give_one_set_of_spectra(store: Path) -> None:
    for part in range(3):
        arrays = part_of(part)
        write_part(store, part, **{**arrays, "flux_lte": np.full_like(arrays["flux"], np.nan)})
    read_library(store)
    with pytest.raises(InputError, match=r"one set of spectra.*leave out --lte"):
        read_library(store, lte=True)
