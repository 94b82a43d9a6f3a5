"""Real LAMOST files of every generation through the whole pipeline."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from distributed import Client

from hotdask.config import make_settings
from hotdask.flags import Flag
from hotdask.labels import LABEL_NAMES
from hotdask.pipeline.execute import run
from hotdask.pipeline.plan import read_rejects
from hotdask.store.catalog import read_catalog


@pytest.fixture(scope="module")
def chosen(lamost_files: Path) -> pd.DataFrame:
    """41 files: some of each generation, A stars first, the pair of one exposure, and those without a velocity."""
    with open(lamost_files / "inventory.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    frame = pd.DataFrame(rows).astype({"snr_g": float, "z": float})
    frame["obsid"] = pd.to_numeric(frame["obsid"]).fillna(-1).astype(int)
    frame["generation"] = frame["file"].str.split("/").str[0]
    frame["a_star"] = frame["subclass"].str.match(r"A\d")
    frame = frame.sort_values(["a_star", "snr_g"], ascending=False)
    parts = [frame[frame["generation"] == g].head(n) for g, n in (("dr1", 12), ("dr7", 5), ("dr8", 14))]
    parts += [frame[frame["generation"].isin(["dr5", "dr9", "dr13"])], frame[frame["z"] < -1000]]
    return pd.concat(parts).drop_duplicates("file").reset_index(drop=True)


@pytest.fixture(scope="module")
def outcome(
    lamost_files: Path, chosen: pd.DataFrame, client: Client, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("real")
    chosen.assign(path=[str(lamost_files / f) for f in chosen["file"]])[["path"]].to_csv(folder / "table.csv")
    settings = make_settings(
        {"out": str(folder / "RUN"), "input": {"table": str(folder / "table.csv")}, "report": {"spectra": 1}},
        cube__partition_size=16,
    )
    return folder / "RUN", run(settings, client=client, echo=lambda line: None)


def test_files_are_spectra_or_rejects(chosen: pd.DataFrame, outcome: tuple[Path, dict]) -> None:
    run_folder, summary = outcome
    assert len(chosen) >= 40
    assert summary["counts"]["files"] == len(chosen)
    assert summary["counts"]["spectra"] + summary["counts"]["rejects"] == len(chosen)
    rejects = read_rejects(run_folder)
    reasons = {str(Path(p).relative_to(Path(p).parents[1])): r for p, r in rejects[["path", "reason"]].values}
    expected = dict.fromkeys(chosen.loc[chosen["z"] < -1000, "file"], "no_velocity")
    # The same exposure in two releases: the older one goes.
    expected["dr5/spec-55859-F5902_sp01-005.fits.gz"] = "duplicate"
    assert reasons == expected
    assert len(expected) == 4


def test_catalog_holds_what_the_headers_say(chosen: pd.DataFrame, outcome: tuple[Path, dict]) -> None:
    catalog = read_catalog(outcome[0])
    numbered = chosen[(chosen["obsid"] > 0) & (chosen["generation"] != "dr1")].set_index("obsid")
    rows = catalog[catalog["obsid"].isin(numbered.index)].set_index("obsid")
    assert len(rows) > 20
    files = numbered[~numbered.index.duplicated()].loc[rows.index]
    np.testing.assert_allclose(rows["rv"], 299792.458 * files["z"], atol=0.1)
    np.testing.assert_allclose(rows["snr_g"], files["snr_g"], atol=0.01)
    np.testing.assert_allclose(rows["ra"], files["ra"].astype(float), atol=1e-6)


def test_a_stars_are_a_stars(chosen: pd.DataFrame, outcome: tuple[Path, dict]) -> None:
    catalog = read_catalog(outcome[0])
    names = {Path(f).name for f in chosen.loc[chosen["a_star"] & (chosen["snr_g"] > 30), "file"]}
    stars = catalog[catalog["fitsname"].isin(names)]
    assert len(stars) >= 15
    assert stars["teff"].between(7000, 10500).mean() > 0.75
    assert 7300 < stars["teff"].median() < 9800
    assert 0.3 < stars["chi2_red"].median() < 5
    assert (stars["flags"] & int(Flag.FEW_PIXELS) == 0).all()
    assert np.isfinite(stars[list(LABEL_NAMES)].to_numpy()).all()
    # Ordinary stars: where models err, it is by too little to look like anything else.
    assert (stars["flags"] & int(Flag.EMISSION | Flag.BINARY | Flag.VELOCITY_SUSPECT) == 0).mean() > 0.95
    assert abs(stars["rv_shift"].median()) < 8


def test_the_report_names_the_rejects(outcome: tuple[Path, dict]) -> None:
    page = (outcome[0] / "report" / "index.html").read_text()
    assert "no_velocity" in page
    assert "duplicate" in page
