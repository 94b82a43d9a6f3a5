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
from hotdask.pipeline.maps import load_models
from hotdask.pipeline.modelerror import learn_model_error
from hotdask.pipeline.plan import read_rejects
from hotdask.pipeline.state import open_state
from hotdask.store.catalog import FITS_FOLDER, read_catalog, read_fits_part
from hotdask.store.cube import cube_place, read_partition
from hotdask.store.parquet import list_parts


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
    assert stars["teff"].between(7000, 10500).mean() >= 0.75
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


def test_model_errors_bring_chi2_to_1(outcome: tuple[Path, dict], client: Client, tmp_path: Path) -> None:
    folder, _ = outcome
    out = tmp_path / "error.parquet"
    learn_model_error(folder, out, min_snr=20, client=client, echo=lambda line: None)
    state = open_state(folder)
    catalog = read_catalog(folder)
    stars = catalog[(catalog["teff"] > 7200) & (catalog["snr_g"] > 40) & (catalog["chi2_red"] < 5)]
    assert len(stars) >= 12
    fits = pd.concat(read_fits_part(p, ["specid", "row"]).to_pandas() for p in list_parts(folder / FITS_FOLDER))
    rows = fits.set_index("specid").loc[stars["specid"], "row"].to_numpy()
    size = state.settings.cube.partition_size
    parts = {p: read_partition(cube_place(folder), p) for p in sorted(set(rows // size))}
    picked = [{name: parts[row // size][name][row % size] for name in parts[row // size]} for row in rows]
    arrays = {name: np.stack([one[name] for one in picked]) for name in picked[0]}
    fit = state.settings.fit.model_copy(update={"model_error": str(out)})
    labeler = load_models(fit, "cpu").labeler(fit, state.settings.normalize, "cpu")
    ivar = labeler.usable(arrays["ivar"], arrays["andmask"], arrays["ormask"])
    chi2 = labeler.label(arrays["flux"], ivar, arrays["rv"])["chi2_red"]
    assert stars["chi2_red"].median() > 1.3
    assert 0.8 < np.median(chi2) < 1.25
