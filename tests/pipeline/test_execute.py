"""Runs from files to report: what they leave on disk, how they go on, and how they stop."""

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import xarray as xr
from astropy.io import fits
from distributed import Client

import hotdask
from hotdask import schema
from hotdask.cluster.client import open_client
from hotdask.config import Cluster, Settings, load_settings
from hotdask.emulator import load_emulator
from hotdask.errors import EmulatorError, HotdaskError, InputError, RunError
from hotdask.flags import Flag
from hotdask.labels import LABEL_NAMES
from hotdask.pipeline.execute import run
from hotdask.pipeline.maps import make_labeler
from hotdask.pipeline.pages import choose_spectra, plot_spectrum, spectrum_views
from hotdask.pipeline.plan import read_rejects
from hotdask.pipeline.state import STEPS, read_summary
from hotdask.pipeline.status import status
from hotdask.pipeline.verify import verify
from hotdask.readers.lamost import read_spectrum
from hotdask.spectra.restframe import noise_power
from hotdask.steps.label import Labeler
from hotdask.store.cube import read_partition
from hotdask.store.lock import hold
from hotdask.store.parquet import list_parts
from hotdask.store.receipts import list_receipts, remove_receipt

MakeSettings = Callable[..., Settings]


def quiet(line: str) -> None:
    """An echo that says nothing."""


def catalog_files(folder: Path) -> dict[str, bytes]:
    """Parts of the published catalog; their names hold their hashes."""
    return {path.name: path.read_bytes() for path in list_parts(folder / "catalog")}


def declared(columns: tuple[schema.Column, ...]) -> list[tuple]:
    return [(c.name, c.type, c.unit) for c in columns]


def found(path: Path) -> list[tuple]:
    return [(f.name, f.type, (f.metadata or {}).get(b"unit", b"?").decode()) for f in pq.read_schema(path)]


@pytest.fixture(scope="module")
def few(survey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 20 good files, to be copied where a test needs inputs of its own."""
    folder = tmp_path_factory.mktemp("few")
    for path in survey.good[:20]:
        shutil.copy2(path, folder)
    return folder


# What a run leaves


def test_every_file_is_a_spectrum_or_a_reject(survey, finished) -> None:
    cube = hotdask.open_cube(finished.folder / "spectra.zarr")
    rejects = hotdask.read_rejects(finished.folder)
    assert cube.sizes["spectrum"] + len(rejects) == len(survey.files)
    catalog = hotdask.read_catalog(finished.folder)
    assert len(catalog) == cube.sizes["spectrum"] == 240
    # A broken copy of a file stands in for it where it came first.
    assert sorted(catalog["specid"]) == sorted(survey.truth["specid"])
    assert finished.summary["counts"] == {"files": 252, "spectra": 240, "rejects": 12, "batches": 1}


def test_every_reject_has_the_true_reason(survey, finished) -> None:
    rejects = hotdask.read_rejects(finished.folder).set_index("fitsname")
    expected = {
        "empty": {"empty_file"},
        "truncated": {"truncated", "damaged"},
        "not_fits": {"not_fits"},
        "no_good_pixels": {"no_good_pixels"},
        "no_velocity": {"no_velocity"},
        "duplicate": {"duplicate"},
    }
    assert set(survey.broken["breakage"]) == set(expected)
    for path, breakage in survey.broken[["path", "breakage"]].itertuples(index=False):
        row = rejects.loc[Path(path).name]
        assert row["reason"] in expected[breakage], breakage
        assert len(row["detail"]) > 20


def test_the_cube_opens_lazily_with_units(survey, finished) -> None:
    cube = xr.open_zarr(finished.folder / "spectra.zarr")
    assert cube["flux"].chunks is not None
    assert {v.name for v in schema.CUBE} == set(cube.data_vars)
    for variable in (*schema.CUBE, *schema.CUBE_COORDINATES):
        array = cube[variable.name]
        assert (array.dtype, array.dims) == (np.dtype(variable.dtype), variable.dims)
        assert array.attrs["units"] == variable.unit
        assert array.attrs["long_name"] == variable.doc
    np.testing.assert_allclose(cube["wavelength"], 10 ** (3.5682 + 1e-4 * np.arange(3909)), rtol=1e-12)

    # The row of a spectrum holds what its file holds.
    spectra = pd.concat([pd.read_parquet(p) for p in list_parts(finished.folder / "spectra")], ignore_index=True)
    for row in (0, 100, 239):
        spectrum = read_spectrum(spectra["path"][row])
        assert spectrum.meta["specid"] == spectra["specid"][row]
        for name in ("flux", "ivar", "andmask", "ormask"):
            np.testing.assert_array_equal(cube[name][row], getattr(spectrum, name))
        assert float(cube["ra"][row]) == spectrum.meta["ra"]


def test_every_table_has_its_schema_with_units(finished) -> None:
    folder = finished.folder
    assert found(folder / "rejects" / "batch-0000.parquet") == declared(schema.REJECTS)
    for name, columns, count in (
        ("spectra", schema.SPECTRA, 8),
        ("fits", schema.FITS, 8),
        ("catalog", schema.CATALOG, 8),
    ):
        parts = list_parts(folder / name)
        assert len(parts) == count
        for part in parts:
            assert found(part) == declared(columns)


def test_settings_and_summary_say_how_it_was_made(finished) -> None:
    assert load_settings(finished.folder / "settings.toml") == finished.settings
    summary = read_summary(finished.folder)
    assert summary == finished.summary
    assert set(summary["done"]) == set(STEPS)
    assert set(summary["seconds"]) == {*STEPS, "total"}
    assert summary["seconds"]["total"] >= sum(summary["seconds"][step] for step in STEPS) - 0.1
    assert summary["hotdask"] == hotdask.__version__
    assert summary["emulator"] == load_emulator().id
    assert summary["packages"]["dask"] == importlib.metadata.version("dask")
    assert summary["catalog"]["rows"] == 240
    assert summary["catalog"]["stars"] == 160
    for part in list_parts(finished.folder / "catalog"):
        provenance = json.loads(pq.read_schema(part).metadata[b"hotdask"])
        assert provenance["emulator"] == summary["emulator"]
        assert provenance["settings"]["fit"] == finished.settings.fit.model_dump(mode="json")


def test_the_report_stands_alone(finished) -> None:
    folder = finished.folder / "report"
    page = (folder / "index.html").read_text()
    assert sorted(p.name for p in folder.iterdir()) == ["explorer.html", "index.html", "method.html", "spectra"]
    (spectrum,) = (folder / "spectra").iterdir()
    assert f'href="spectra/{spectrum.name}"' in page
    assert f"spectra/{spectrum.name}" in (folder / "explorer.html").read_text()
    assert "<html" in page
    for text in ("no_velocity", "240", finished.summary["emulator"]):
        assert text in page
    for link in ('src="http', "src='http", 'href="http', "@import"):
        assert link not in page


def test_catalog_answers_a_question_as_the_whole_table_would(finished) -> None:
    whole = pd.concat([pq.read_table(p).to_pandas() for p in list_parts(finished.folder / "catalog")])
    hot = pd.read_parquet(
        finished.folder / "catalog",
        columns=["specid", "teff"],
        filters=[("teff", ">", 10000), ("in_sample", "==", True)],
    )
    expected = whole[(whole["teff"] > 10000) & whole["in_sample"]]
    assert 0 < len(hot) < len(whole)
    assert (
        hot.sort_values("specid").values.tolist() == expected.sort_values("specid")[["specid", "teff"]].values.tolist()
    )
    pd.testing.assert_frame_equal(
        hotdask.read_catalog(finished.folder, columns=["specid", "teff"]),
        whole[["specid", "teff"]].reset_index(drop=True),
    )


def test_labels_come_back(survey, finished) -> None:
    both = hotdask.read_catalog(finished.folder).merge(survey.truth, on="specid")
    good = both[(both["snr_g"] > 30) & (both["flags"] & int(Flag.AT_BOUND) == 0)]
    assert len(good) > 100
    for name, limit in (("teff", 4), ("logg", 4), ("vsini", 4), ("fe_h", 4)):
        pull = (good[name] - good[f"{name}_true"]) / good[f"{name}_crb"]
        assert np.median(np.abs(pull)) < limit, name
    assert np.median(np.abs(good["teff"] / good["teff_true"] - 1)) < 0.03


def test_cuts_and_flags_agree(finished) -> None:
    catalog = hotdask.read_catalog(finished.folder)
    limits = finished.settings.catalog
    flags = catalog["flags"]
    in_sample = (catalog["teff"] >= limits.min_teff) & (catalog["snr_g"] >= limits.min_snr)
    assert catalog["in_sample"].tolist() == in_sample.tolist()
    assert (catalog["vsini"] >= 0).all()
    negative = flags & int(Flag.NEGATIVE_VSINI) != 0
    assert (catalog.loc[negative, "vsini"] == 0).all()
    missing = flags & int(Flag.NO_CHI2RATIO) != 0
    assert missing.tolist() == catalog["chi2ratio"].isna().tolist()
    assert not (flags & int(Flag.UNSCALED_ERRORS)).any()


# Twice, elsewhere, otherwise cut


def test_a_finished_run_does_nothing_and_says_so(finished, hashes) -> None:
    before = hashes(finished.folder)
    lines: list[str] = []
    # No cluster either: none is given, and starting one would take a scheduler that is not there.
    nowhere = finished.settings.model_copy(update={"cluster": Cluster(scheduler="tcp://127.0.0.1:1")})
    assert run(nowhere, echo=lines.append) == finished.summary
    assert len(lines) == 1
    assert "nothing to do" in lines[0]
    after = hashes(finished.folder)
    # Where it runs is the one thing that may be set anew.
    anew = {"settings.toml", "receipts/settings/00000.json"}
    assert {k: v for k, v in after.items() if k not in anew} == {k: v for k, v in before.items() if k not in anew}
    run(finished.settings, echo=quiet)
    assert hashes(finished.folder) == before


def test_the_public_names_stay_functions(finished) -> None:
    # Importing submodules must not turn what the README calls into modules.
    for _ in range(2):
        assert callable(hotdask.run)
        assert callable(hotdask.simulate)
    assert hotdask.run(finished.settings, echo=quiet) == finished.summary


def test_workers_need_not_live_where_the_run_was_started(
    client: Client, few: Path, settings_for: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path) not in client.run(os.getcwd).values()
    run(settings_for(Path("RUN"), spectra=f"{few}/*"), until="ingest", client=client, echo=quiet)
    assert (tmp_path / "RUN" / "spectra.zarr").is_dir()


_CHI2 = ["chi2_red_all", "chi2_red_hmasked", "n_pixel_all", "n_pixel_hmasked"]


def test_two_runs_on_one_cluster_do_not_mix(
    client: Client, survey, few: Path, settings_for: MakeSettings, tmp_path: Path
) -> None:
    """Tasks of the same name, from two clients of one scheduler at the same time."""
    other = tmp_path / "other"
    other.mkdir()
    for path in survey.good[20:40]:
        shutil.copy2(path, other)
    jobs = {name: settings_for(tmp_path / name, spectra=f"{folder}/*") for name, folder in (("A", few), ("B", other))}

    def job(settings: Settings) -> dict:
        with Client(client.scheduler.address, set_as_default=False) as own:
            return run(settings, until="fit", client=own, echo=quiet)

    with ThreadPoolExecutor(2) as pool:
        summaries = list(pool.map(job, jobs.values()))
    assert [s["counts"]["spectra"] for s in summaries] == [20, 20]
    for name, folder in (("A", few), ("B", other)):
        spectra = pd.concat([pd.read_parquet(p) for p in list_parts(tmp_path / name / "spectra")])
        assert sorted(spectra["fitsname"]) == sorted(p.name for p in folder.iterdir())
        fitted = pd.concat([pq.read_table(p).to_pandas() for p in list_parts(tmp_path / name / "fits")])
        assert fitted["specid"].tolist() == spectra["specid"].tolist()


def test_steps_can_be_asked_for(client: Client, few: Path, settings_for: MakeSettings, tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "RUN", spectra=f"{few}/*", report__truth=None)
    made = {
        "ingest": "spectra.zarr",
        "fit": "fits",
        "catalog": "catalog",
        "report": "report/index.html",
    }
    lines: list[str] = []
    for number, step in enumerate(STEPS):
        summary = run(settings, until=step, client=client, echo=lines.append)
        assert list(summary["done"]) == list(STEPS[: number + 1])
        for later, (name, path) in enumerate(made.items()):
            assert (tmp_path / "RUN" / path).exists() == (later <= number), name
        text = status(tmp_path / "RUN")
        assert [line.split()[1] == "done" for line in text.splitlines()[1:5]] == [n <= number for n in range(4)]
        assert ("go on with" in text) == (step != "report")
    assert not any("nothing to do" in line for line in lines)
    run(settings, until="ingest", client=client, echo=lines.append)
    assert "nothing to do, ingest is complete" in lines[-1]


# Going on


def test_a_lost_summary_costs_no_fit(client: Client, finished, tmp_path: Path) -> None:
    settings = finished.copy(tmp_path / "RUN")
    (tmp_path / "RUN" / "run.json").unlink()
    parts = {p: p.stat().st_mtime_ns for p in list_parts(tmp_path / "RUN" / "fits")}
    assert "go on with" in status(tmp_path / "RUN")
    summary = run(settings, until="catalog", client=client, echo=quiet)
    assert summary["counts"] == finished.summary["counts"]
    assert {p: p.stat().st_mtime_ns for p in parts} == parts
    assert catalog_files(tmp_path / "RUN") == catalog_files(finished.folder)


@pytest.mark.parametrize("damage", ["{", "[]", '{"seal": 1}'])
def test_a_damaged_summary_is_named_and_made_again(client: Client, finished, tmp_path: Path, damage: str) -> None:
    settings = finished.copy(tmp_path / "RUN")
    (tmp_path / "RUN" / "run.json").write_text(damage)
    assert any("run.json is damaged" in problem for problem in verify(tmp_path / "RUN", echo=quiet))
    assert run(settings, client=client, echo=quiet)["counts"] == finished.summary["counts"]
    assert verify(tmp_path / "RUN", echo=quiet) == []


# Refusing


def test_a_wrong_emulator_path_begins_no_run(few: Path, settings_for: MakeSettings, tmp_path: Path) -> None:
    """The corrected path must not be refused as a changed setting."""
    with pytest.raises(EmulatorError):
        run(settings_for(tmp_path / "RUN", spectra=f"{few}/*", fit__emulator="nowhere.safetensors"), echo=quiet)
    assert not (tmp_path / "RUN" / "settings.toml").exists()


def test_another_normalization_is_refused_before_files_are_read(
    client: Client, few: Path, settings_for: MakeSettings, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path / "RUN", spectra=f"{few}/*", normalize__scale=60.0)
    with pytest.raises(EmulatorError, match="normalize"):
        run(settings, client=client, echo=quiet)
    assert not (tmp_path / "RUN" / "spectra.zarr").exists()


def test_no_inputs_begin_no_run(settings_for: MakeSettings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="matches no file"):
        run(settings_for(tmp_path / "RUN", spectra=f"{tmp_path}/*.fits"), echo=quiet)
    assert not (tmp_path / "RUN").exists()


def test_a_folder_that_another_command_holds_is_left_alone(
    finished, hashes: Callable, settings_for: MakeSettings, tmp_path: Path
) -> None:
    settings = finished.copy(tmp_path / "RUN")
    (tmp_path / "RUN" / "fits" / f".part-00000.parquet.{'0' * 32}.partial").touch()
    with hold(tmp_path / "RUN"):
        before = hashes(tmp_path / "RUN")
        with pytest.raises(RunError, match=rf"RUN is in use by process {os.getpid()} on "):
            run(settings, echo=quiet)
        assert hashes(tmp_path / "RUN") == before
    # Alone, it clears away what a killed writer left.
    run(settings, echo=quiet)
    assert not list((tmp_path / "RUN").rglob(".*.partial"))


@pytest.mark.parametrize("mine", ["staging/my.fits", "report/index.html", ".notes.partial", "settings.toml"])
def test_a_folder_of_somebody_else_is_refused_and_left_as_it_was(
    few: Path, settings_for: MakeSettings, tmp_path: Path, mine: str
) -> None:
    path = tmp_path / "DATA" / mine
    path.parent.mkdir(parents=True)
    path.write_text('out = "mine"')
    with pytest.raises(RunError, match="is no run of hotdask"):
        run(settings_for(tmp_path / "DATA", spectra=f"{few}/*"), echo=quiet)
    assert [p.read_text() for p in (tmp_path / "DATA").rglob("*") if p.is_file()] == ['out = "mine"']


def test_spectra_may_not_lie_where_the_run_writes(finished, few: Path, settings_for: MakeSettings) -> None:
    out = Path(finished.copy(few.parent / "INSIDE").out)
    (out / "staging").mkdir()
    kept = shutil.copy2(next(few.iterdir()), out / "staging")
    with pytest.raises(RunError, match="staging has spectra and lies in"):
        run(settings_for(out, spectra=f"{out}/staging/*"), echo=quiet)
    assert Path(kept).exists()


def test_a_file_where_the_run_should_be(few: Path, settings_for: MakeSettings, tmp_path: Path) -> None:
    (tmp_path / "RUN").write_text("mine")
    with pytest.raises(HotdaskError, match="RUN"):
        run(settings_for(tmp_path / "RUN", spectra=f"{few}/*"), echo=quiet)


def test_a_scheduler_that_does_not_answer(
    few: Path, settings_for: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotdask.cluster.client.Client", lambda *a, **k: Client(*a, **{**k, "timeout": "1s"}))
    settings = settings_for(tmp_path / "RUN", spectra=f"{few}/*", cluster__scheduler="tcp://127.0.0.1:1")
    with pytest.raises(RunError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1"):
        run(settings, echo=quiet)
    with (
        pytest.raises(RunError, match="no scheduler answers at localhost:x"),
        open_client(Cluster(scheduler="localhost:x")),
    ):
        pass


def test_too_many_rejects_stop_the_run(client: Client, survey, settings_for: MakeSettings, tmp_path: Path) -> None:
    pattern = str(survey.folder / "broken" / "*")
    settings = settings_for(tmp_path / "RUN", spectra=pattern)
    with pytest.raises(RunError, match=r"10 of 12 files are not used.*2 empty_file.*max_reject_share"):
        run(settings, client=client, echo=quiet)
    assert not (tmp_path / "RUN" / "spectra.zarr").exists()
    assert len(read_rejects(tmp_path / "RUN")) == 10
    # The advice can be followed.
    settings = settings_for(tmp_path / "RUN", spectra=pattern, input__max_reject_share=0.9)
    summary = run(settings, until="ingest", client=client, echo=quiet)
    assert summary["counts"] == {"files": 12, "spectra": 2, "rejects": 10, "batches": 1}


def test_corrected_inputs_go_on(client: Client, survey, settings_for: MakeSettings, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(survey.folder / "broken", folder)
    settings = settings_for(tmp_path / "RUN", spectra=f"{folder}/*")
    with pytest.raises(RunError, match="correct the inputs"):
        run(settings, client=client, echo=quiet)
    for path in folder.iterdir():
        path.unlink()
    for path in survey.good[:3]:
        shutil.copy(path, folder)
    summary = run(settings, until="ingest", client=client, echo=quiet)
    assert summary["counts"]["spectra"] == 3
    # What is ingested is the run's for good.
    (folder / survey.good[0].name).unlink()
    with pytest.raises(RunError, match="1 went"):
        run(settings, until="ingest", client=client, echo=quiet)


@pytest.mark.parametrize("lost", ["spectra.zarr/zarr.json"])
def test_a_lost_part_of_the_plan_is_made_again(client: Client, finished, hashes, tmp_path: Path, lost: str) -> None:
    settings = finished.copy(tmp_path / "RUN")
    before = hashes(tmp_path / "RUN")
    (tmp_path / "RUN" / lost).unlink()
    run(settings, client=client, echo=quiet)
    after = hashes(tmp_path / "RUN")
    for name in before:
        if not name.startswith(("receipts/", "report/")) and name not in {"run.json", "settings.toml"}:
            assert after[name] == before[name], name


def test_a_wrong_truth_table_begins_no_run(few: Path, settings_for: MakeSettings, tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "RUN", spectra=f"{few}/*", report__truth=str(tmp_path / "nowhere.parquet"))
    with pytest.raises(HotdaskError, match=r"nowhere\.parquet"):
        run(settings, echo=quiet)
    assert not (tmp_path / "RUN").exists()


# Failing


def test_a_partition_that_always_fails_is_named_and_the_others_are_kept(
    client: Client, finished, tmp_path: Path
) -> None:
    settings = finished.copy(tmp_path / "RUN")
    folder = tmp_path / "RUN"
    for partition in (2, 5):
        remove_receipt(folder, "fit", partition)
    # A folder that is not empty cannot be replaced by a file, however often one tries.
    poison = folder / "fits" / "part-00002.parquet"
    poison.unlink()
    (poison / "inside").mkdir(parents=True)
    with pytest.raises(RunError, match=r"1 of 2 fit tasks failed") as caught:
        run(settings, client=client, echo=quiet)
    assert "fit 2: " in str(caught.value)
    assert "fit 5" not in str(caught.value)
    assert caught.value.__cause__ is not None
    assert set(list_receipts(folder, "fit")) == {0, 1, 3, 4, 5, 6, 7}
    shutil.rmtree(poison)
    run(settings, client=client, echo=quiet)
    assert catalog_files(folder) == catalog_files(finished.folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_gpu_that_is_not_there_begins_no_run(few: Path, settings_for: MakeSettings, tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "run", spectra=f"{few}/*", cluster__device="cuda")
    with pytest.raises(InputError, match="torch sees no CUDA device here"):
        run(settings, echo=quiet)
    assert not (tmp_path / "run").exists()


# Other inputs


def test_a_table_corrects_spectra_and_carries_columns(
    client: Client, survey, settings_for: MakeSettings, tmp_path: Path
) -> None:
    # 40 spectra are two partitions; ids without a gap in one and with gaps in the other.
    paths = survey.good[:40]
    table = pd.DataFrame({"path": [str(p) for p in paths]})
    table["rv"] = [33.25, -80.0, 0.0, *[np.nan] * 37]
    table["lsf_b0"] = np.where(np.arange(40) == 1, 1.25, np.nan)
    for name in ("lsf_b1", "lsf_b2", "lsf_r0", "lsf_r1", "lsf_r2"):
        table[name] = np.where(np.arange(40) == 1, {"lsf_r0": 1.7}.get(name, 0.0), np.nan)
    identity = 2**61 + np.arange(40)
    table["gaia_id"] = pd.array(identity, dtype="Int64")
    table.loc[[3, 17, 30], "gaia_id"] = pd.NA
    table["program"] = [f"night {i % 3}" if i % 7 else None for i in range(40)]
    table["weight"] = np.linspace(0, 1, 40)
    # Nothing at all in one of the two partitions.
    table["rank"] = pd.array([7, *[None] * 39], dtype="Int64")
    table["checked"] = pd.array([True, *[None] * 39], dtype="boolean")
    table["note"] = ["seen", *[None] * 39]
    table.to_parquet(tmp_path / "table.parquet")
    settings = settings_for(tmp_path / "RUN", table=tmp_path / "table.parquet")
    run(settings, until="catalog", client=client, echo=quiet)
    again: list[str] = []
    run(settings, until="catalog", client=client, echo=again.append)
    assert "nothing to do" in again[0]

    catalog = hotdask.read_catalog(tmp_path / "RUN")
    assert catalog.columns.tolist() == [
        *(c.name for c in schema.CATALOG),
        "gaia_id",
        "program",
        "weight",
        "rank",
        "checked",
        "note",
    ]
    by_name = catalog.set_index("fitsname").loc[[p.name for p in paths]]
    assert by_name["rv"].tolist()[:3] == [33.25, -80.0, 0.0]
    headers = [fits.getheader(p)["Z"] * 299792.458 for p in paths[3:]]
    np.testing.assert_allclose(by_name["rv"][3:], headers, rtol=1e-12)
    np.testing.assert_allclose(by_name["weight"], table["weight"])
    assert by_name["program"].fillna("").tolist() == table["program"].fillna("").tolist()
    # A Gaia id does not survive a float.
    raw = pq.read_table(tmp_path / "RUN" / "catalog").to_pylist()
    ids = {row["fitsname"]: row["gaia_id"] for row in raw}
    assert [ids[p.name] for p in paths] == [None if i in (3, 17, 30) else int(v) for i, v in enumerate(identity)]
    rare = {row["fitsname"]: (row["rank"], row["checked"], row["note"]) for row in raw}
    assert [rare[p.name] for p in paths] == [(7, True, "seen"), *[(None, None, None)] * 39]
    spectra = pd.concat([pd.read_parquet(p) for p in list_parts(tmp_path / "RUN" / "spectra")]).set_index("fitsname")
    assert spectra.loc[paths[1].name, ["lsf_b0", "lsf_r0"]].tolist() == [1.25, 1.7]
    assert spectra.drop(index=paths[1].name)["lsf_b0"].isna().all()
    # ... and it is what the labels were fitted with.
    partition, row = divmod(spectra.index.get_loc(paths[1].name), settings.cube.partition_size)
    arrays = {k: v[row : row + 1] for k, v in read_partition(tmp_path / "RUN" / "spectra.zarr", partition).items()}
    labeler = Labeler(load_emulator())
    pixels = arrays["flux"], labeler.usable(arrays["ivar"], arrays["andmask"], arrays["ormask"]), arrays["rv"]
    own, mean = (labeler.label(*pixels, lsf)["vsini_all"][0] for lsf in (np.array([[1.25, 0, 0, 1.7, 0, 0]]), None))
    assert by_name["vsini_all"].iloc[1] == pytest.approx(own, rel=1e-3)
    assert abs(own - mean) > 1


def test_spectra_of_wrong_velocity_are_fitted_again_on_request(
    client: Client, survey, settings_for: MakeSettings, tmp_path: Path
) -> None:
    paths, wrong = survey.good[:16], np.isin(np.arange(16), (3, 11))
    headers = np.array([fits.getheader(p)["Z"] * 299792.458 for p in paths])
    table = pd.DataFrame({"path": [str(p) for p in paths], "rv": headers + np.where(wrong, 400.0, 0.0)})
    table.to_csv(tmp_path / "table.csv")
    settings = settings_for(tmp_path / "RUN", table=tmp_path / "table.csv", fit__refit_rv=True)
    summary = run(settings, until="catalog", client=client, echo=quiet)
    catalog = hotdask.read_catalog(tmp_path / "RUN").set_index("fitsname").loc[[p.name for p in paths]].reset_index()
    # What the survey gave stays, what was done about it is said.
    np.testing.assert_allclose(catalog["rv"], table["rv"], rtol=1e-12)
    np.testing.assert_array_equal(catalog["flags"] & int(Flag.RV_REFITTED) != 0, wrong)
    assert (catalog["flags"] & int(Flag.VELOCITY_SUSPECT) == 0).all()
    np.testing.assert_array_equal(catalog["rv_refit"] != 0, wrong)
    assert np.abs(catalog["rv_shift"] + 400)[wrong].max() < 30
    # A page shows the spectrum as it was fitted: its misfit is the catalog's.
    chosen = catalog[wrong]
    views = spectrum_views(tmp_path / "RUN", settings, summary["emulator"], chosen)
    for view, row in zip(views, chosen.iloc, strict=True):
        chi2 = (view.ivar * (view.flux - view.model_all) ** 2)[view.used].sum() / (view.used.sum() - 11)
        power = noise_power(np.array([row["rv"] + row["rv_refit"]]))[0]
        assert chi2 / power <= row["chi2_red"] * 1.001
        assert chi2 / power > 0.7 * row["chi2_red"]


def test_classes_choose_before_the_cube(client: Client, survey, settings_for: MakeSettings, tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "RUN", spectra=f"{survey.folder}/dr5/**/*.fits.gz", input__classes=("B",))
    summary = run(settings, until="ingest", client=client, echo=quiet)
    good = survey.visits[survey.visits["layout"] == "dr5"]
    expected = int((good["teff_true"] > 10000).sum())
    assert 0 < expected < len(good)
    assert summary["counts"] == {"files": 80, "spectra": expected, "rejects": 80 - expected, "batches": 1}
    rejects = hotdask.read_rejects(tmp_path / "RUN")
    assert set(rejects["reason"]) == {"class_not_selected"}


def test_a_handful_of_spectra_and_one_without_a_fit(
    client: Client, few: Path, settings_for: MakeSettings, tmp_path: Path
) -> None:
    """Too few for error scaling, too few for chi2ratio, and a row without labels: flags, not a crash."""
    folder = tmp_path / "files"
    shutil.copytree(few, folder)
    blind = sorted(p for p in folder.iterdir() if len(fits.open(p, memmap=False)) == 1)[0]
    with fits.open(blind, memmap=False) as hdus:
        hdus[0].data[1, 200:] = 0
        hdus.writeto(blind, overwrite=True)
    settings = settings_for(tmp_path / "RUN", spectra=f"{folder}/*", catalog__min_pairs=200, report__truth=None)
    summary = run(settings, client=client, echo=quiet)
    assert summary["catalog"]["error_scale"] is None
    catalog = hotdask.read_catalog(tmp_path / "RUN").set_index("fitsname")
    lost = catalog.loc[blind.name]
    assert np.isnan(lost[list(LABEL_NAMES)].to_numpy(float)).all()
    assert Flag(int(lost["flags"])) & Flag.FEW_PIXELS
    assert not lost["in_sample"]
    rest = catalog.drop(index=blind.name)
    assert len(rest) == 19
    assert np.isfinite(rest[list(LABEL_NAMES)].to_numpy()).all()
    assert (rest["flags"] & int(Flag.UNSCALED_ERRORS) != 0).all()
    assert ((rest["flags"] & int(Flag.NO_CHI2RATIO) != 0) == rest["chi2ratio"].isna()).all()
    assert (tmp_path / "RUN" / "report" / "index.html").exists()


def test_limit_takes_the_first_files(client: Client, survey, settings_for: MakeSettings, tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "RUN", input__limit=15, input__max_reject_share=1.0)
    summary = run(settings, until="ingest", client=client, echo=quiet)
    assert summary["counts"]["files"] == 15
    paths = [*pd.read_parquet(tmp_path / "RUN" / "plan")["path"], *read_rejects(tmp_path / "RUN")["path"]]
    assert sorted(paths) == [str(p) for p in survey.files[:15]]


# Status


def test_status_of_a_run_just_begun(few: Path, settings_for: MakeSettings, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        status(tmp_path)
    settings = settings_for(tmp_path / "RUN", spectra=f"{few}/*", cluster__scheduler="localhost:nonsense")
    with pytest.raises(RunError, match="no scheduler"):
        run(settings, echo=quiet)
    lines = status(tmp_path / "RUN").splitlines()
    assert lines[0].endswith("RUN: 20 files")
    assert lines[1].split() == ["ingest", "0", "of", "20", "files", "read"]
    assert [line.split()[1:] for line in lines[2:5]] == [["not", "yet"]] * 3


def test_status_of_a_finished_run(finished) -> None:
    lines = status(finished.folder).splitlines()
    assert "252 files, 240 spectra, 12 rejected (2 duplicate, 2 empty_file, " in lines[0]
    assert [line.split()[:2] for line in lines[1:5]] == [[step, "done"] for step in STEPS]
    assert "go on" not in lines[-1]


# The report's choice


def catalog_of(teff, snr, **columns) -> pd.DataFrame:
    frame = pd.DataFrame({"teff": teff, "snr_g": snr, "flags": 0, "in_sample": True, **columns})
    return frame.assign(specid=[f"s{i:03d}" for i in range(len(frame))])


def test_the_best_of_each_stretch_of_teff_is_drawn() -> None:
    rng = np.random.default_rng(0)
    catalog = catalog_of(rng.permutation(np.linspace(8000, 20000, 60)), rng.uniform(10, 200, 60))
    chosen = choose_spectra(catalog, 6)
    ordered = catalog.sort_values("teff")
    expected = [ordered.iloc[i * 10 : i * 10 + 10].nlargest(1, "snr_g")["specid"].iloc[0] for i in range(6)]
    assert chosen["specid"].tolist() == expected


def test_bad_fits_and_cut_rows_are_not_drawn() -> None:
    catalog = catalog_of(np.linspace(8000, 9000, 9), np.full(9, 50.0))
    catalog.loc[::3, "in_sample"] = False
    catalog.loc[1::3, "flags"] = int(Flag.BAD_CHI2 | Flag.COOL)
    assert choose_spectra(catalog, 9)["specid"].tolist() == ["s002", "s005", "s008"]


@pytest.mark.parametrize(("rows", "wanted", "drawn"), [(0, 12, 0), (3, 12, 3), (12, 12, 12), (30, 12, 12), (5, 0, 0)])
def test_as_many_are_drawn_as_there_are(rows: int, wanted: int, drawn: int) -> None:
    catalog = catalog_of(np.linspace(8000, 20000, rows), np.full(rows, 50.0))
    assert len(choose_spectra(catalog, wanted)) == drawn


def test_without_a_sample_any_fit_is_drawn() -> None:
    catalog = catalog_of([7000.0, np.nan, 6500.0], [50.0, 50.0, 50.0]).assign(in_sample=False)
    assert choose_spectra(catalog, 12)["specid"].tolist() == ["s002", "s000"]


@pytest.mark.parametrize("kind", ["html", "svg", "png"])
def test_any_spectrum_can_be_drawn(finished, tmp_path: Path, kind: str) -> None:
    specid = pd.read_parquet(finished.folder / "catalog", columns=["specid"])["specid"].iloc[7]
    path = plot_spectrum(finished.folder, specid, tmp_path / f"star.{kind}")
    content = path.read_bytes()
    assert content.startswith({"html": b"<!DOCTYPE html>", "svg": b"<?xml", "png": b"\x89PNG"}[kind])
    assert kind != "html" or specid in content.decode()


def test_what_cannot_be_drawn_is_said(finished, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no spectrum nobody"):
        plot_spectrum(finished.folder, "nobody", tmp_path / "star.png")
    with pytest.raises(HotdaskError, match=r"\.html, \.svg or \.png"):
        plot_spectrum(finished.folder, "nobody", tmp_path / "star.pdf")
    with pytest.raises(RunError, match="no folder of a run"):
        plot_spectrum(tmp_path, "nobody")


def test_one_labeler_a_process(finished) -> None:
    first = make_labeler(finished.settings, finished.summary["emulator"])
    assert make_labeler(finished.settings, finished.summary["emulator"]) is first
    with pytest.raises(RunError, match="give all workers one file"):
        make_labeler(finished.settings, "0123456789abcdef")
