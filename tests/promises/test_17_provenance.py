"""Promise 17: every catalog carries versions, settings, emulator and inputs."""

import importlib.metadata
import json
import tomllib

import pyarrow.parquet as pq

import hotdask
from hotdask.config import Settings
from hotdask.emulator import load_emulator
from hotdask.schema import CATALOG
from hotdask.store.catalog import read_provenance
from hotdask.store.parquet import list_parts


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
