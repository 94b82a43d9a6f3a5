"""A run whose cube and catalog lie on an object store."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr
from upath import UPath

import hotdask
from hotdask.errors import SettingsError
from hotdask.pipeline.execute import run
from hotdask.pipeline.status import status
from hotdask.pipeline.verify import verify
from hotdask.store.catalog import catalog_folder
from hotdask.store.cube import partition_files
from hotdask.store.parquet import list_parts

CUBE, CATALOG = "s3://survey/whole/spectra.zarr", "s3://survey/whole/catalog"


@pytest.fixture
def workers(client, s3):
    """The cluster, whose processes know the server too."""
    client.run(lambda: os.environ.update(s3))
    return client


def test_a_run_is_the_same_as_on_a_disk_mends_what_is_spoiled_and_grows(workers, survey, settings_for, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    for path in survey.good[:60]:
        shutil.copy2(path, files)
    small = {"spectra": f"{files}/*", "catalog__max_files": 2}
    settings = settings_for(tmp_path / "RUN", store__cube=CUBE, store__catalog=CATALOG, **small)
    said: list[str] = []
    run(settings, client=workers, echo=said.append)
    folder, disk = Path(settings.out), tmp_path / "disk"
    assert (folder / "report" / "index.html").exists()
    assert not {"spectra.zarr", "catalog", "catalog_versions"} & {path.name for path in folder.iterdir()}

    run(settings_for(disk, **small), until="catalog", client=workers, echo=said.append)
    local = [part.read_bytes() for part in list_parts(disk / "catalog")]
    assert len(local) == 2
    assert [part.read_bytes() for part in list_parts(catalog_folder(folder))] == local
    pd.testing.assert_frame_equal(hotdask.read_catalog(CATALOG), hotdask.read_catalog(disk))
    cubes = (hotdask.open_cube(where).load(scheduler="synchronous") for where in (CUBE, disk / "spectra.zarr"))
    xr.testing.assert_identical(*cubes)

    said.clear()
    run(settings, client=workers, echo=said.append)
    assert said == [f"{folder}: nothing to do, report is complete"]

    assert verify(folder, echo=said.append) == []
    assert f"catalog: 60 rows in 2 files, version {catalog_folder(CATALOG).name}" in said
    said.clear()

    shard = UPath(f"{CUBE}/flux/c/1/0")
    good = shard.read_bytes()
    shard.write_bytes(good[:-3])
    UPath(f"{CUBE}/ivar/c/0/0").unlink()
    list_parts(catalog_folder(folder))[1].unlink()
    assert f"ingest partition 0: {CUBE}/ivar/c/0/0 cannot be read" in status(folder)
    problems = "\n".join(verify(folder, echo=said.append))
    for problem in (f"{CUBE}/ivar/c/0/0 cannot be read", f"{CUBE}/flux/c/1/0 changed", CATALOG):
        assert problem in problems
    run(settings, client=workers, echo=said.append)
    again = [line for line in said if line.startswith("ingest") and "is done again" in line]
    assert len(again) == 2
    assert again[0].startswith(f"ingest 0 is done again: ingest partition 0: {CUBE}/ivar/c/0/0 cannot be read")
    assert again[1].startswith(f"ingest 1 is done again: ingest partition 1: {CUBE}/flux/c/1/0 changed")
    assert shard.read_bytes() == good
    assert [part.read_bytes() for part in list_parts(catalog_folder(folder))] == local

    before = [(path, path.read_bytes()) for p in (0, 1) for path in partition_files(CUBE, p)]
    for path in survey.good[60:64]:
        shutil.copy2(path, files / f"a{path.name}")
    counts = run(settings, until="catalog", client=workers, echo=said.append)["counts"]
    assert (counts["batches"], counts["spectra"]) == (2, 64)
    assert [(path, path.read_bytes()) for path, _ in before] == before
    # Four rows behind the first batch hold nothing.
    assert hotdask.open_cube(CUBE).sizes["spectrum"] == 64
    assert len(hotdask.read_catalog(CATALOG)) == 64
    assert verify(folder, echo=said.append) == []

    elsewhere = settings.model_copy(update={"store": settings.store.model_copy(update={"catalog": None})})
    with pytest.raises(SettingsError, match=rf"store\.catalog: '{CATALOG}' -> None"):
        run(elsewhere, client=workers)
