"""Promise 17: every catalog carries versions, settings, emulator and inputs."""

import hashlib
import importlib.metadata
import json
import re
import shutil
import time
import tomllib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from distributed import Client

import hotdask
from hotdask.cluster.identity import code_identity
from hotdask.cluster.tasks import run_tasks
from hotdask.config import Settings
from hotdask.emulator import load_emulator
from hotdask.errors import RunError, SettingsError
from hotdask.pipeline.execute import run
from hotdask.schema import CATALOG
from hotdask.store.catalog import read_provenance
from hotdask.store.parquet import list_parts, part_path, read_table, write_table
from hotdask.store.receipts import Receipt, list_receipts, remove_receipt, write_receipt


def test_every_part_says_how_it_was_made(finished) -> None:
    found = [json.loads(pq.read_schema(p).metadata[b"hotdask"]) for p in list_parts(finished.folder / "catalog")]
    assert found == [read_provenance(finished.folder)] * len(found)
    provenance = found[0]
    assert provenance["hotdask"] == hotdask.__version__
    assert provenance["emulator"] == load_emulator().id
    for name, version in provenance["packages"].items():
        assert version == importlib.metadata.version(name)
    assert {"dask", "numpy", "torch", "zarr", "astropy"} <= set(provenance["packages"])
    # The settings are whole: a run can be made again from them.
    again = Settings.model_validate({"out": "RUN", **provenance["settings"]})
    sections = ("input", "cube", "normalize", "fit", "catalog")
    assert again.fingerprint(*sections) == finished.settings.fingerprint(*sections)
    written = tomllib.loads((finished.folder / "settings.toml").read_text())
    assert written["input"]["spectra"] == provenance["settings"]["input"]["spectra"]
    # Inputs: how many, and a hash over each path, size and time.
    assert provenance["inputs"] == [{"files": 252, "hash": provenance["inputs"][0]["hash"]}]
    assert len(provenance["inputs"][0]["hash"]) == 16
    assert len(provenance["fingerprint"]) == 16


def test_every_column_says_what_it_is(finished) -> None:
    schema = pq.read_schema(list_parts(finished.folder / "catalog")[0])
    for column in CATALOG:
        metadata = schema.field(column.name).metadata
        assert metadata[b"unit"].decode() == column.unit
        assert metadata[b"description"].decode() == column.doc


# Versions do not mix


@pytest.fixture
def other_version(tmp_path: Path) -> Path:
    """A folder with the package as another version: what it reads of a file is not what this one reads."""
    folder = tmp_path / "other"
    shutil.copytree(Path(hotdask.__file__).parent, folder / "hotdask", ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "hotdask" / "__init__.py"
    init.write_text(init.read_text().replace(f'"{hotdask.__version__}"', '"99.0"'))
    return folder


@pytest.mark.long
def test_a_worker_of_another_version_gets_nothing_accepted(
    survey,
    settings_for: Callable,
    cluster: Callable,
    other_version: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    settings = settings_for(tmp_path / "RUN", spectra=f"{survey.folder}/dr1/**/*.fits*", cube__partition_size=16)
    with cluster(tmp_path) as made, Client(made.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=120)
        with made.another(tmp_path, other_version):
            client.wait_for_workers(2, timeout=120)
            run(settings, client=client, until="catalog", echo=lambda line: None)
            error = capsys.readouterr().err
            steps = (list_receipts(tmp_path / "RUN", step) for step in ("stage", "ingest", "fit"))
            receipts = [receipt for found in steps for receipt in found.values()]
            assert len(receipts) >= 6
            assert {receipt.extra["code"] for receipt in receipts} == {code_identity()}
            # All that is left is of the other version.
            made.kill_for_good()
            again = settings_for(tmp_path / "AGAIN", spectra=f"{survey.folder}/dr1/**/*.fits*")
            with pytest.raises(RunError, match=r"no worker is left that could do it[^$]*runs hotdask 99\.0\+"):
                run(again, client=client, until="ingest", echo=lambda line: None)
    for step in ("read", "ingest", "fit"):
        found = re.findall(
            rf"^{step}: worker tcp://\S+ is left out: it runs hotdask 99\.0\+\w+, the launch", error, re.M
        )
        assert len(found) == 1
    assert not list_receipts(tmp_path / "AGAIN", "stage")


def _slowly(folder: str, partition: int) -> Receipt:
    Path(folder, f"{partition}-{hotdask.__version__}").touch()
    time.sleep(0.5)
    return Receipt("step", partition, "", 1, {})


@pytest.mark.long
def test_a_worker_of_another_version_that_comes_later_is_left_out_too(
    cluster: Callable, other_version: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with cluster(tmp_path) as made, Client(made.address, set_as_default=False) as client, ExitStack() as later:
        client.wait_for_workers(1, timeout=120)

        def rows(receipt: Receipt) -> int:
            if len(client.scheduler_info()["workers"]) == 1:
                later.enter_context(made.another(tmp_path, other_version))
                client.wait_for_workers(2, timeout=120)
            return 1

        run_tasks(client, "step", {p: (_slowly, str(tmp_path), p) for p in range(12)}, total=12, done=0, rows=rows)
    assert len(list(tmp_path.glob(f"*-{hotdask.__version__}"))) == 12
    assert not list(tmp_path.glob("*-99.0"))
    assert capsys.readouterr().err.count("is left out: it runs hotdask 99.0+") == 1


def test_a_run_goes_on_with_the_version_that_began_it(finished, client: Client, tmp_path: Path) -> None:
    settings = finished.copy(tmp_path / "RUN")
    folder = tmp_path / "RUN"
    made = list_receipts(folder, "fit")
    for code, why in (("0.0.1+abc", "was fitted by hotdask 0.0.1"), (f"{hotdask.__version__}+abc", "has fits left")):
        for receipt in made.values():
            receipt.extra["code"] = code
            write_receipt(folder, receipt)
        remove_receipt(folder, "fit", 1)
        with pytest.raises(SettingsError, match=why):
            run(settings, client=client, echo=lambda line: None)
    # As told: all fits are made again.
    shutil.rmtree(folder / "receipts" / "fit")
    run(settings, client=client, until="catalog", echo=lambda line: None)
    assert {receipt.extra["code"] for receipt in list_receipts(folder, "fit").values()} == {code_identity()}


def test_fits_made_again_make_the_catalog_again(finished, client: Client, tmp_path: Path) -> None:
    """Even where the new fits are other ones, and the catalog is sound."""
    settings = finished.copy(tmp_path / "RUN")
    folder = tmp_path / "RUN"
    path = part_path(folder / "fits", 0)
    table = read_table(path)
    moved = pd.Series(table["teff_all"].to_numpy()) + 1000
    write_table(path, table.set_column(table.column_names.index("teff_all"), table.field("teff_all"), [moved]))
    receipt = list_receipts(folder, "fit")[0]
    receipt.files.update({"fits/" + path.name: hashlib.sha256(path.read_bytes()).hexdigest()})
    write_receipt(folder, receipt)
    before = hotdask.read_catalog(folder)
    run(settings, client=client, until="catalog", echo=lambda line: None)
    after = hotdask.read_catalog(folder)
    changed = before.set_index("specid")["teff_all"] != after.set_index("specid")["teff_all"]
    assert changed.sum() == len(moved)
