"""Promise 16: a full disk ends a run with an error that says where, and harms nothing."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import pytest
from distributed import Client

from hotdask.cluster.client import open_client
from hotdask.cluster.tasks import run_tasks
from hotdask.config import Cluster
from hotdask.errors import DiskFullError, RunError
from hotdask.pipeline.execute import run
from hotdask.store.atomic import atomic_folder, write_bytes
from hotdask.store.parquet import list_parts
from hotdask.store.receipts import Receipt, check_receipt, list_receipts


def quiet(line: str) -> None:
    """An echo that says nothing."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of a size to be chosen, and chosen again."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = False

    def resize(size: str) -> Path:
        nonlocal mounted
        what = ["-o", f"remount,size={size}"] if mounted else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        done = subprocess.run(["mount", *what, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"needs the right to mount a small file system ({done.stderr.strip()})")
        mounted = True
        return folder

    if shutil.which("mount") is None:
        pytest.skip("needs mount, to make a small file system")
    yield resize
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(
    client: Client,
    survey,
    settings_for: Callable,
    hashes: Callable,
    small: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Otherwise it would be refused before it begins (promise 13); others fill disks too.
    monkeypatch.setattr("hotdask.pipeline.estimate._free", lambda out: 10**12)
    few = tmp_path / "few"
    few.mkdir()
    for path in survey.good[:40]:
        shutil.copy2(path, few)
    # Room for what is read, not for the cube besides.
    folder = small("2300k") / "RUN"
    settings = settings_for(folder, spectra=f"{few}/*", cube__partition_size=16)
    with pytest.raises(DiskFullError, match=r"ingest: .*RUN/.*no room on the disk .*make room, and run the same comm"):
        run(settings, until="ingest", client=client, echo=quiet)
    staged = list_receipts(folder, "stage")
    assert len(staged) == 3
    assert len(list_receipts(folder, "ingest")) < 3
    for step in ("stage", "plan", "ingest"):
        for receipt in list_receipts(folder, step).values():
            assert check_receipt(folder, receipt, receipt.fingerprint) is None
    assert not list(folder.rglob(".*.partial"))
    when = {name: (folder / name).stat().st_mtime_ns for receipt in staged.values() for name in receipt.files}

    small("20m")
    shutil.copytree(folder, tmp_path / "kept")
    summary = run(settings, until="ingest", client=client, echo=quiet)
    assert summary["counts"]["spectra"] == 40
    assert {name: (tmp_path / "kept" / name).stat().st_mtime_ns for name in when} == when
    undisturbed = settings_for(tmp_path / "RUN", spectra=f"{few}/*", cube__partition_size=16)
    run(undisturbed, until="ingest", client=client, echo=quiet)
    one, other = hashes(folder), hashes(tmp_path / "RUN")
    cube = {name for name in one if name.startswith(("spectra", "plan", "rejects"))}
    assert len(cube) > 30
    assert {name: one[name] for name in cube} == {name: other.get(name) for name in cube}


def _fill(folder: str, partition: int) -> Receipt:
    Path(folder, f"begun-{partition}").touch()
    write_bytes(Path(folder, f"part-{partition}"), b"x" * 100_000)
    return Receipt("step", partition, "", 1, {})


def test_a_full_disk_begins_nothing_more(client: Client, small: Callable) -> None:
    folder = small("350k")
    with pytest.raises(DiskFullError) as caught:
        run_tasks(client, "step", {p: (_fill, str(folder), p) for p in range(50)}, total=50, done=0, rows=lambda r: 1)
    # There is room for three, but two that write at once may take it from each other.
    done = len(list(folder.glob("part-*")))
    assert done in (2, 3)
    assert f"{done} of 50 tasks are done and kept" in str(caught.value)
    # Those that a worker had already, but neither all nor any twice.
    assert len(list(folder.glob("begun-*"))) < 15


def test_what_finds_no_room_leaves_nothing(small: Callable) -> None:
    folder = small("64k")
    write_bytes(folder / "a", b"old")
    with pytest.raises(DiskFullError, match=r"small: no room on the disk for a \(No space left on device\)"):
        write_bytes(folder / "a", b"x" * 100_000)
    assert issubclass(DiskFullError, RunError)
    with pytest.raises(DiskFullError, match="no room on the disk for b"), atomic_folder(folder / "b") as partial:
        (partial / "c").write_bytes(b"x" * 100_000)
    assert [p.name for p in folder.iterdir()] == ["a"]
    assert (folder / "a").read_bytes() == b"old"


def test_workers_without_room_for_a_shuffle_are_said(finished, tmp_path: Path) -> None:
    settings = finished.copy(tmp_path / "RUN")
    part = next(iter(list_parts(tmp_path / "RUN" / "catalog")))
    part.write_bytes(part.read_bytes()[:-1])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    where = Cluster(workers=1, dashboard="127.0.0.1:0")
    with dask.config.set({"temporary-directory": str(scratch)}), open_client(where, echo=quiet) as own:
        shutil.rmtree(scratch)
        scratch.touch()
        with pytest.raises(RunError, match=r"a worker cannot write to its own disk .*scratch.*TMPDIR"):
            run(settings, until="catalog", client=own, echo=quiet)
