"""Model errors of a run: learned on workers, written, read by another run, refused where they make no sense."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from distributed import Client

from hotdask.errors import InputError, RunError, SettingsError
from hotdask.pipeline.execute import run
from hotdask.pipeline.modelerror import learn_model_error
from hotdask.pipeline.state import open_state
from hotdask.store.catalog import read_catalog
from hotdask.store.modelerror import read_model_error
from hotdask.windows import N_REST, inside, rest_wavelength


@pytest.fixture(scope="module")
def learned(finished, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("error") / "error.parquet"
    learn_model_error(finished.folder, out, client=client, echo=lambda line: None)
    return out


def test_spectra_of_the_emulator_have_next_to_no_model_error(finished, learned: Path) -> None:
    table = pd.read_parquet(learned)
    assert list(table.columns) == ["wavelength", "model_error", "n"]
    np.testing.assert_array_equal(table["wavelength"], rest_wavelength())
    fitted = ~inside(rest_wavelength(), finished.settings.fit.mask)
    # Velocities and line spreads of the simulation have errors; the continuum has none.
    assert np.median(table["model_error"][fitted]) < 0.004
    assert table["model_error"].between(0, 0.3).all()
    assert learned.with_suffix(".svg").read_text().startswith("<?xml")


def test_a_run_uses_it_and_knows_which(finished, learned: Path, client: Client, settings_for, tmp_path: Path) -> None:
    plain = open_state(finished.folder).emulator
    error = np.where(rest_wavelength() < 5000, 0.05, 0.0)
    table = tmp_path / "error.csv"
    pd.DataFrame({"wavelength": rest_wavelength(), "model_error": error}).to_csv(table, index=False)
    settings = settings_for(tmp_path / "RUN", fit__model_error=str(table), input__limit=64, report__spectra=0)
    summary = run(settings, client=client, echo=lambda line: None)
    assert summary["emulator"] == f"{plain}+{read_model_error(table).id}"
    old = read_catalog(finished.folder).set_index("specid")
    new = read_catalog(tmp_path / "RUN").set_index("specid")
    old = old.loc[new.index]
    assert new["chi2_red"].median() < 0.8 * old["chi2_red"].median()
    # Only pixels of the blue err, and abundances of CNO rest on more than that.
    assert (new["teff_err"] > old["teff_err"]).mean() > 0.9
    # What is learned does not depend on what the run was fitted with, but for the labels.
    again = learn_model_error(
        tmp_path / "RUN", tmp_path / "again.parquet", min_snr=20, client=client, echo=lambda line: None
    )
    assert np.median(again[rest_wavelength() < 5000]) < 0.01
    # Another table under the same name is another run.
    pd.DataFrame({"wavelength": rest_wavelength(), "model_error": 0.01}).to_csv(table, index=False)
    with pytest.raises(SettingsError, match="fitted with emulator"):
        run(settings, client=client, echo=lambda line: None)
    with pytest.raises(RunError, match=r"fitted with emulator .*put the old ones back"):
        learn_model_error(tmp_path / "RUN", tmp_path / "again.parquet", client=client)


def test_what_cannot_be_learned_is_refused(finished, client: Client, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0 spectra of the sample have S/N >= 1e\+06.*lower --min-snr"):
        learn_model_error(finished.folder, tmp_path / "e.parquet", min_snr=1e6, client=client)
    with pytest.raises(InputError, match=r"written as \.parquet"):
        learn_model_error(finished.folder, tmp_path / "e.txt", client=client)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"wavelength": [4000.0, 5000.0]}, "lacks the column model_error"),
        ({"wavelength": [5000.0, 4000.0], "model_error": [0.1, 0.1]}, "must be numbers that increase"),
        ({"wavelength": [4000.0, 5000.0], "model_error": [0.1, -0.1]}, "between 0 and 1"),
        ({"wavelength": [4000.0, 5000.0], "model_error": [0.1, None]}, "between 0 and 1"),
    ],
)
def test_tables_that_make_no_sense_are_refused(table: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "error.csv"
    pd.DataFrame(table).to_csv(path, index=False)
    with pytest.raises(InputError, match=message):
        read_model_error(path)


def test_coarse_tables_are_interpolated(tmp_path: Path) -> None:
    path = tmp_path / "error.csv"
    pd.DataFrame({"wavelength": [4000.0, 5000.0], "model_error": [0.0, 0.02]}).to_csv(path, index=False)
    values = read_model_error(path).values
    assert values.shape == (N_REST,)
    rest = rest_wavelength()
    np.testing.assert_allclose(values[np.abs(rest - 4500).argmin()], 0.01, rtol=1e-2)
    assert (values[rest > 5000] == 0).all()
