"""Promise 5: planned = done + rejected, each spectrum once; otherwise a named error."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from distributed import Client

import hotdask
from hotdask.cli import main
from hotdask.emulator import load_emulator
from hotdask.errors import RunError
from hotdask.pipeline.execute import run
from hotdask.pipeline.ingest import ingest
from hotdask.pipeline.plan import check_inputs
from hotdask.pipeline.state import State
from hotdask.pipeline.verify import verify
from hotdask.readers.inputs import list_inputs
from hotdask.store.parquet import write_table
from hotdask.store.receipts import hash_files, list_receipts, write_receipt


def quiet(line: str) -> None:
    """An echo that says nothing."""


def replace_fits(
    folder: Path, partition: int, change: Callable[[pa.Table], pa.Table], *, rows: int | None = None
) -> None:
    """Change a part of the fits and vouch for it by a receipt, as a task with a bug would."""
    path = folder / "fits" / f"part-{partition:05d}.parquet"
    table = change(pq.read_table(path))
    write_table(path, table)
    receipt = list_receipts(folder, "fit")[partition]
    write_receipt(folder, dataclasses.replace(receipt, rows=len(table), files=hash_files(folder, [path])))


def test_planned_is_done_and_rejected(survey, finished) -> None:
    rejects = hotdask.read_rejects(finished.folder)
    planned = pq.read_table(finished.folder / "plan", columns=["path"])["path"].to_pylist()
    assert sorted([*planned, *rejects["path"]]) == [str(path) for path in survey.files]
    specids = pq.read_table(finished.folder / "plan", columns=["specid"])["specid"].to_pylist()
    assert sorted(hotdask.read_catalog(finished.folder)["specid"]) == sorted(specids)
    lines: list[str] = []
    assert verify(finished.folder, echo=lines.append) == []
    assert lines[-1].endswith("sound")


def test_dropped_spectra_are_missed(client: Client, finished, tmp_path: Path) -> None:
    settings = finished.copy(tmp_path / "RUN")
    replace_fits(tmp_path / "RUN", 3, lambda table: table.slice(0, 30))
    assert any("part-00003.parquet: has 30 rows, should have 32" in p for p in verify(tmp_path / "RUN", echo=quiet))
    with pytest.raises(RunError, match=r"fit: 238 of 240 spectra are accounted for \(partition 3 has 30 of 32\)"):
        run(settings, client=client, echo=quiet)


def test_a_spectrum_there_twice_is_not_published(client: Client, finished, tmp_path: Path) -> None:
    settings = finished.copy(tmp_path / "RUN")

    def twice(table: pa.Table) -> pa.Table:
        return pa.concat_tables([table.slice(0, 31), table.slice(0, 1)])

    replace_fits(tmp_path / "RUN", 3, twice)
    assert any("other spectra than partition 3" in p for p in verify(tmp_path / "RUN", echo=quiet))
    sidecar = tmp_path / "RUN" / "spectra" / "part-00003.parquet"
    write_table(sidecar, twice(pq.read_table(sidecar)))
    receipt = list_receipts(tmp_path / "RUN", "ingest")[3]
    files = {**receipt.files, **hash_files(tmp_path / "RUN", [sidecar])}
    write_receipt(tmp_path / "RUN", dataclasses.replace(receipt, files=files))
    before = hotdask.read_catalog(tmp_path / "RUN")
    # As if the catalog were still to be made.
    (tmp_path / "RUN" / "run.json").unlink()
    with pytest.raises(RunError, match="repeated specid"):
        run(settings, client=client, echo=quiet)
    # What was published stays.
    assert hotdask.read_catalog(tmp_path / "RUN").equals(before)


def test_a_stale_part_is_named(client: Client, finished, tmp_path: Path) -> None:
    settings = finished.copy(tmp_path / "RUN")
    parts = tmp_path / "RUN" / "fits"
    shutil.copy(parts / "part-00003.parquet", parts / "part-00099.parquet")
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "RUN")])
    assert result.exit_code == 1
    assert "part-00099.parquet: belongs to no partition" in result.output
    with pytest.raises(RunError, match=r"part-00099\.parquet: belongs to no partition of this run; remove it"):
        run(settings, client=client, echo=quiet)


# Inputs that not all see


@pytest.fixture
def here(survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of inputs that only processes in ``tmp_path`` see, as a mount that only some machines have."""
    (tmp_path / "spectra").mkdir()
    for path in survey.good[:48]:
        shutil.copy2(path, tmp_path / "spectra")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "inputs").symlink_to("/proc/self/cwd/spectra")
    if not (Path("/proc/self/cwd")).exists():
        pytest.skip("needs /proc, for a path that means another place to another process")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "inputs"


def test_a_worker_without_the_inputs_makes_no_rejects(
    here: Path,
    settings_for: Callable,
    cluster: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    settings = settings_for(tmp_path / "RUN", spectra=f"{here}/*", cube__partition_size=16)
    with cluster(tmp_path) as made, Client(made.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=120)
        with made.another(tmp_path / "elsewhere"):
            client.wait_for_workers(2, timeout=120)
            summary = run(settings, client=client, until="ingest", echo=lambda line: None)
            assert (summary["counts"]["spectra"], summary["counts"]["rejects"]) == (48, 0)
            found = re.findall(r"read: worker tcp://\S+ is left out: \S+ does not see (\S+)", capsys.readouterr().err)
            assert len(found) == 1
            assert found[0].startswith(str(here))
            # With that worker alone the run ends.
            made.kill_for_good()
            again = settings_for(tmp_path / "AGAIN", spectra=f"{here}/*")
            with pytest.raises(
                RunError, match=rf"no worker is left[^$]*does not see {here}/.*; mount the inputs there"
            ):
                run(again, client=client, until="ingest", echo=lambda line: None)
            assert not list_receipts(tmp_path / "AGAIN", "stage")


def test_a_file_that_is_gone_for_all_is_a_reject_and_a_folder_is_not(
    client: Client, survey, settings_for: Callable, tmp_path: Path
) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    for path in survey.good[:20]:
        shutil.copy2(path, folder)

    def seen(name: str) -> State:
        """A run that has listed its inputs and read none."""
        settings = settings_for(tmp_path / name, spectra=f"{folder}/*", input__max_reject_share=0.2)
        out = Path(settings.out)
        out.mkdir()
        batches = check_inputs(out, list_inputs(settings.input), settings.cube.partition_size, planned=0)
        return State(out, settings, batches, load_emulator().id, quiet)

    now, other = seen("RUN"), seen("OTHER")
    gone = sorted(folder.iterdir())[0]
    gone.unlink()
    ingest(now, client)
    rejects = hotdask.read_rejects(tmp_path / "RUN")
    assert rejects[["path", "reason"]].to_numpy().tolist() == [[str(gone), "not_found"]]
    folder.rename(tmp_path / "unmounted")
    with pytest.raises(RunError, match=rf"{folder}: the folder was there when the run began, now it is gone"):
        ingest(other, client)
