"""Promise 4: changed settings, emulator or inputs are refused with a diff; added files are welcome."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from distributed import Client

import hotdask
from hotdask.emulator import load_emulator, save_emulator
from hotdask.errors import HotdaskError, RunError, SettingsError
from hotdask.pipeline.execute import run
from hotdask.pipeline.status import status
from hotdask.pipeline.verify import verify
from hotdask.store.cube import read_layout
from hotdask.store.receipts import list_receipts


def quiet(line: str) -> None:
    """An echo that says nothing."""


@pytest.fixture(scope="module")
def few(survey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 20 good files."""
    folder = tmp_path_factory.mktemp("few")
    for path in survey.good[:20]:
        shutil.copy2(path, folder)
    return folder


def test_other_settings_are_refused(finished) -> None:
    changed = finished.settings.model_copy(
        update={"fit": finished.settings.fit.model_copy(update={"max_iterations": 61})}
    )
    with pytest.raises(SettingsError, match=r"fit\.max_iterations: 60 -> 61"):
        run(changed, echo=quiet)


@pytest.mark.parametrize("change", ["removed", "touched"])
def test_other_inputs_are_refused(finished, survey, tmp_path: Path, change: str) -> None:
    settings = finished.copy(tmp_path / "RUN")
    path = survey.good[7]
    stat = path.stat()
    try:
        if change == "removed":
            path.rename(path.with_suffix(".away"))
        else:
            os.utime(path)
        with pytest.raises(RunError, match="inputs are not those the run began with") as caught:
            run(settings, echo=quiet)
        assert str(path) in str(caught.value)
    finally:
        if change == "removed":
            path.with_suffix(".away").rename(path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns)) if path.exists() else None
    run(settings, echo=quiet)


def test_another_emulator_is_refused(client: Client, few: Path, settings_for: Callable, tmp_path: Path) -> None:
    """The same file name with other weights in it."""
    weights = tmp_path / "emulator.safetensors"
    emulator = load_emulator()
    save_emulator(emulator, weights)
    settings = settings_for(tmp_path / "RUN", spectra=f"{few}/*", fit__emulator=str(weights))
    run(settings, until="fit", client=client, echo=quiet)
    part = (tmp_path / "RUN" / "fits" / "part-00000.parquet").read_bytes()
    weights.unlink()
    emulator.arrays["mean"] = emulator.arrays["mean"] * np.float32(1.001)
    save_emulator(emulator, weights)
    with pytest.raises(HotdaskError, match="emulator"):
        run(settings, until="fit", client=client, echo=quiet)
    assert (tmp_path / "RUN" / "fits" / "part-00000.parquet").read_bytes() == part


def test_added_files_are_a_batch_of_their_own(
    client: Client, survey, few: Path, settings_for: Callable, hashes: Callable, tmp_path: Path
) -> None:
    files, out = tmp_path / "files", tmp_path / "RUN"
    shutil.copytree(few, files)
    settings = settings_for(out, spectra=f"{files}/*", cube__partition_size=16, report__truth=None)
    run(settings, until="catalog", client=client, echo=quiet)
    first = hotdask.read_catalog(out).set_index("specid")
    kept = {name: hashes(out / name) for name in ("fits", "spectra", "inputs", "plan", "rejects")}
    shards = {p: p.read_bytes() for p in (out / "spectra.zarr").rglob("c/**/*") if p.is_file()}
    tables = ("fits", "spectra", "spectra.zarr")
    written = {p: p.stat().st_mtime_ns for name in tables for p in (out / name).rglob("*") if p.is_file()}

    # Ten more, one of them twice, one known already under another name, one broken; names that sort before the others.
    for path in survey.good[20:30]:
        shutil.copy2(path, files / f"a{path.name}")
    shutil.copy2(survey.good[25], files / f"again-{survey.good[25].name}")
    shutil.copy2(survey.good[3], files / f"known-{survey.good[3].name}")
    (files / "broken.fits").write_bytes(b"SIMPLE")
    lines: list[str] = []
    summary = run(settings, until="catalog", client=client, echo=lines.append)
    assert summary["counts"] == {"files": 33, "spectra": 30, "rejects": 3, "batches": 2}
    assert summary["catalog"]["version"] == "v0002"
    # Nothing that was there was touched, but for the cube's list of its rows.
    assert {p: p.read_bytes() for p in shards} == shards
    assert [p for p, t in written.items() if p.stat().st_mtime_ns != t and p.name != "zarr.json"] == []
    for name, before in kept.items():
        assert before.items() <= hashes(out / name).items()
    rejects = hotdask.read_rejects(out).set_index("fitsname")
    assert rejects["reason"].value_counts().to_dict() == {"duplicate": 2, "truncated": 1}
    known = rejects[rejects["detail"].str.contains("in the cube already")]
    assert [Path(p).name[:6] for p in known["path"]] == ["known-"]
    assert read_layout(out / "spectra.zarr").counts == (16, 4, 10)
    assert sorted(list_receipts(out, "fit")) == [0, 1, 2]

    # The catalog holds both, what was fitted before with the same labels.
    both = hotdask.read_catalog(out).set_index("specid")
    assert len(both) == both.index.nunique() == 30
    for name in ("teff", "logg", "vsini", "fe_h", "teff_err", "chi2_red"):
        assert both.loc[first.index, name].tolist() == first[name].tolist()
    # As if they had been there from the beginning: the sky order differs, the labels do not.
    whole = settings_for(tmp_path / "whole", spectra=f"{files}/*", cube__partition_size=16, report__truth=None)
    run(whole, until="catalog", client=client, echo=quiet)
    other = hotdask.read_catalog(tmp_path / "whole").set_index("specid").loc[both.index]
    shift = np.abs(both["teff"] - other["teff"]) / both["teff_err"]
    assert shift.max() < 0.01
    assert both["star_id"].tolist() == other["star_id"].tolist()
    cube = hotdask.open_cube(out / "spectra.zarr")
    assert cube.sizes["spectrum"] == 30
    rows = pq.read_table(out / "fits", columns=["row"])["row"].to_pylist()
    assert rows == [*range(20), *range(32, 42)]

    assert verify(out, echo=quiet) == []
    assert "33 files in 2 batches, 30 spectra, 3 rejected (2 duplicate, 1 truncated)" in status(out)
    lines.clear()
    run(settings, until="catalog", client=client, echo=lines.append)
    assert "nothing to do" in lines[-1]
    # A lost shard of either batch is read again from its files.
    for partition in (0, 2):
        (out / "spectra.zarr" / "ivar" / "c" / str(partition) / "0").unlink()
    assert "would be done again" in status(out)
    run(settings, until="catalog", client=client, echo=lines.append)
    assert {p: p.read_bytes() for p in shards} == shards
    assert verify(out, echo=quiet) == []
    # Files of either batch must stay.
    (files / f"a{survey.good[20].name}").unlink()
    with pytest.raises(RunError, match="1 went, 0 changed"):
        run(settings, until="catalog", client=client, echo=quiet)
