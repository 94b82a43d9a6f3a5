"""A simulated survey made on Dask is the one made without."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from distributed import Client

from hotdask import schema
from hotdask.emulator import load_emulator
from hotdask.errors import InputError
from hotdask.labels import LABEL_NAMES
from hotdask.readers.lamost import read_spectrum
from hotdask.simulation import survey as module
from hotdask.simulation.survey import TRUTH_FILE, simulate
from hotdask.simulation.visits import Simulation, draw_stars, draw_visits, visit_path, write_broken, write_visits

SIMULATION = Simulation(stars=24, spectra=30, broken=7, seed=11)


@pytest.fixture(scope="module")
def made(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "survey"
    with pytest.MonkeyPatch.context() as patch:
        # Many small tasks, that come back in any order.
        patch.setattr(module, "_CHUNK", 7)
        lines: list[str] = []
        assert simulate(folder, SIMULATION, client=client, echo=lines.append) == folder / TRUTH_FILE
    assert "30 spectra of 24 stars, 7 broken files" in lines[-1]
    return folder


def test_truth_has_its_schema_and_covers_the_files(made: Path) -> None:
    table = pq.read_table(made / TRUTH_FILE)
    assert [(f.name, f.type, f.metadata[b"unit"].decode()) for f in table.schema] == [
        (c.name, c.type, c.unit) for c in schema.TRUTH
    ]
    truth = table.to_pandas()
    good = [p for p in made.rglob("*.fits.gz") if p.parent.name != "broken"]
    assert sorted(truth["specid"]) == sorted(read_spectrum(p).meta["specid"] for p in good)
    assert len(list((made / "broken").iterdir())) == 7
    assert np.isfinite(truth[[f"{name}_crb" for name in LABEL_NAMES]].to_numpy()).all()


def test_dask_changes_no_byte(made: Path, tmp_path: Path) -> None:
    emulator = load_emulator()
    visits = draw_visits(SIMULATION, draw_stars(SIMULATION, emulator))
    truth = write_visits(tmp_path, visits, emulator, SIMULATION)
    write_broken(tmp_path, visits, SIMULATION)
    files = [p.relative_to(tmp_path) for p in tmp_path.rglob("*.fits.gz")]
    assert len(files) == 37
    made_truth = pd.read_parquet(made / TRUTH_FILE)
    assert made_truth["specid"].tolist() == truth["specid"].tolist()
    # A matrix product of 7 rows may round otherwise than one of 30.
    columns = [name for name in made_truth.columns if name != "specid"]
    np.testing.assert_allclose(made_truth[columns], truth[columns], rtol=1e-3)
    for number in (0, 13, 29):
        path = visit_path("", visits.iloc[number].to_dict())
        one, other = (read_spectrum(root / path) for root in (made, tmp_path))
        assert one.meta | {"path": ""} == pytest.approx(other.meta | {"path": ""}, nan_ok=True)
        np.testing.assert_array_equal(one.ivar > 0, other.ivar > 0)
        noise = np.sqrt(one.ivar)
        np.testing.assert_allclose(one.flux * noise, other.flux * noise, atol=0.02)


def test_what_it_was_made_with_is_written_down(made: Path) -> None:
    said = json.loads((made / "simulation.json").read_text())
    assert said["emulator"] == load_emulator().id
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items() if k != "emulator"}
    assert Simulation(**kept) == SIMULATION


def test_a_folder_in_use_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        simulate(tmp_path, SIMULATION, client=client, echo=lambda line: None)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
