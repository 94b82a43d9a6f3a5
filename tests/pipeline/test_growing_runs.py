"""Runs to which files come later: mended ones, bad ones, tables whose columns change."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from astropy.io import fits
from distributed import Client

import hotdask
from hotdask.config import Settings
from hotdask.errors import RunError
from hotdask.pipeline.execute import run
from hotdask.pipeline.plan import read_rejects
from hotdask.pipeline.verify import verify
from hotdask.readers import lamost

MakeSettings = Callable[..., Settings]


def quiet(line: str) -> None:
    pass


@pytest.fixture
def folder(survey, tmp_path: Path) -> Path:
    """Six good files."""
    folder = tmp_path / "in"
    folder.mkdir()
    for path in survey.good[:6]:
        shutil.copy2(path, folder)
    return folder


def test_a_rejected_file_that_is_mended_comes_again(
    client: Client, folder: Path, settings_for: MakeSettings, tmp_path: Path
) -> None:
    bad, gone = sorted(folder.iterdir())[:2]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:3000])
    gone.write_bytes(b"")
    settings = settings_for(tmp_path / "RUN", spectra=f"{folder}/*")
    assert run(settings, client=client, until="catalog", echo=quiet)["counts"]["rejects"] == 2
    before = hotdask.read_catalog(tmp_path / "RUN").set_index("specid")
    bad.write_bytes(whole)
    # A reject is nothing the run rests on: it may go, too.
    gone.unlink()
    counts = run(settings, client=client, echo=quiet)["counts"]
    assert counts == {"files": 6, "spectra": 5, "rejects": 1, "batches": 2}
    assert read_rejects(tmp_path / "RUN")["path"].tolist() == [str(gone)]
    after = hotdask.read_catalog(tmp_path / "RUN").set_index("specid")
    assert len(after) == 5
    pd.testing.assert_frame_equal(after.loc[before.index, ["teff", "logg"]], before[["teff", "logg"]])
    assert verify(tmp_path / "RUN", echo=quiet) == []
    lines: list[str] = []
    run(settings, client=client, echo=lines.append)
    assert "nothing to do" in lines[-1]


def test_a_velocity_that_a_reject_asks_for_is_taken(
    client: Client, folder: Path, settings_for: MakeSettings, tmp_path: Path
) -> None:
    table = pd.DataFrame({"path": sorted(map(str, folder.iterdir())), "ra": [10.0, *[None] * 4, 400.0]})
    table.to_csv(tmp_path / "t.csv", index=False)
    settings = settings_for(tmp_path / "RUN", table=tmp_path / "t.csv")
    run(settings, client=client, until="ingest", echo=quiet)
    assert read_rejects(tmp_path / "RUN")["reason"].tolist() == ["no_position"]
    table.loc[5, "ra"] = 200.0
    table.to_csv(tmp_path / "t.csv", index=False)
    assert run(settings, client=client, until="ingest", echo=quiet)["counts"]["spectra"] == 6
    # What was read is the run's, though.
    table.loc[0, "ra"] = 11.0
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(RunError, match="0 went, 1 changed"):
        run(settings, client=client, until="ingest", echo=quiet)


def test_one_bad_file_among_many_stops_no_run(
    client: Client, folder: Path, settings_for: MakeSettings, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path / "RUN", spectra=f"{folder}/*")
    run(settings, client=client, until="ingest", echo=quiet)
    (folder / "new.fits.gz").write_bytes(b"")
    counts = run(settings, client=client, until="ingest", echo=quiet)["counts"]
    assert (counts["spectra"], counts["rejects"]) == (6, 1)
    for number in range(8):
        (folder / f"bad{number}.fits.gz").write_bytes(b"")
    with pytest.raises(RunError, match=r"9 of 15 files are not used"):
        run(settings, client=client, until="ingest", echo=quiet)


@pytest.mark.parametrize(
    ("first", "later", "kind"),
    [
        ([1, 2, 3], [4, 9.5, None], "float64"),
        ([None, None, None], ["a", None, "b"], "str"),
        pytest.param([2**62 + 1, None, 3], [4, 5, 6], "Int64", marks=pytest.mark.long),
        pytest.param([True, False, None], [None, None, None], "boolean", marks=pytest.mark.long),
    ],
)
def test_a_carried_column_has_one_type_in_all_batches(
    client: Client, folder: Path, settings_for: MakeSettings, tmp_path: Path, first, later, kind
) -> None:
    paths = sorted(map(str, folder.iterdir()))
    # Names that tables inside a run would have had for their own use.
    names = ["size", "mtime_ns", "repeated", "staged_part", "cell"]
    rows = [
        pd.DataFrame({"path": p, **{n: pd.Series(v, dtype=object) for n in names}})
        for p, v in ((paths[:3], first), (paths[3:], later))
    ]
    settings = settings_for(tmp_path / "RUN", table=tmp_path / "t.csv")
    rows[0].to_csv(tmp_path / "t.csv", index=False)
    run(settings, client=client, until="catalog", echo=quiet)
    pd.concat(rows).to_csv(tmp_path / "t.csv", index=False)
    run(settings, client=client, until="catalog", echo=quiet)
    catalog = pd.read_parquet(tmp_path / "RUN" / "catalog", dtype_backend="numpy_nullable").set_index("fitsname")
    wanted = pd.Series([*first, *later], dtype=object)
    for name in names:
        found = catalog.loc[[os.path.basename(p) for p in paths], name]
        assert found.isna().tolist() == wanted.isna().tolist()
        assert found.dropna().tolist() == wanted.dropna().tolist()
        assert found.dtype == {"str": "string", "float64": "Float64"}.get(kind, kind)


def test_a_type_that_fits_no_more_is_refused_before_files_are_read(
    client: Client, folder: Path, settings_for: MakeSettings, tmp_path: Path
) -> None:
    paths = sorted(map(str, folder.iterdir()))
    settings = settings_for(tmp_path / "RUN", table=tmp_path / "t.csv")
    good = pd.DataFrame({"path": paths[:3], "kind": [1, 2, 3]})
    good.to_csv(tmp_path / "t.csv", index=False)
    run(settings, client=client, until="catalog", echo=quiet)
    more = pd.DataFrame({"path": paths, "kind": [1, 2, 3, "one", "two", "three"]})
    more.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(RunError, match=r"3 changed \(e\.g\. .*: kind\)"):
        run(settings, client=client, until="catalog", echo=quiet)
    good.to_csv(tmp_path / "t.csv", index=False)
    lines: list[str] = []
    run(settings, client=client, until="catalog", echo=lines.append)
    assert "nothing to do" in lines[-1]


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO, errno.EMFILE])
def test_what_the_system_cannot_do_just_now_is_tried_again(survey, monkeypatch, error) -> None:
    path, failures = survey.good[0], [error] * 2
    read = Path.read_bytes

    def flaky(self):
        if failures:
            raise OSError(failures.pop(), "not now")
        return read(self)

    monkeypatch.setattr(lamost, "_PAUSE", 0.0)
    monkeypatch.setattr(Path, "read_bytes", flaky)
    good = lamost.read_spectrum(path)
    failures[:] = [error] * 3
    with pytest.raises(hotdask.errors.SpectrumError) as caught:
        lamost.read_spectrum(path)
    assert caught.value.reason == "io_error"
    assert good.meta["n_good"] > 3000


def test_a_file_that_could_not_be_read_is_read_by_the_next_command(
    client: Client, folder: Path, settings_for: MakeSettings, tmp_path: Path
) -> None:
    """Away while it was read, and back unchanged."""
    settings = settings_for(tmp_path / "RUN", spectra=f"{folder}/*")
    away = sorted(folder.iterdir())[0]
    link = folder / "later.fits.gz"
    link.symlink_to(tmp_path / "mount" / away.name)
    run(settings, client=client, until="ingest", echo=quiet)
    assert read_rejects(tmp_path / "RUN")["reason"].tolist() == ["not_found"]
    lines: list[str] = []
    run(settings, client=client, until="ingest", echo=lines.append)
    assert "nothing to do" in lines[-1]
    (tmp_path / "mount").mkdir()
    shutil.copy2(away, tmp_path / "mount" / away.name)
    counts = run(settings, client=client, until="ingest", echo=quiet)["counts"]
    assert (counts["files"], counts["spectra"]) == (7, 6)
    assert read_rejects(tmp_path / "RUN")["reason"].tolist() == ["duplicate"]


def test_a_table_after_a_pattern_gives_what_a_reject_asks_for(
    client: Client, folder: Path, settings_for: MakeSettings, tmp_path: Path
) -> None:
    paths = sorted(folder.iterdir())
    with fits.open(paths[2]) as hdus:
        hdus[0].header["Z"] = -9999.0
        hdus.writeto(tmp_path / "changed.fits")
    os.replace(tmp_path / "changed.fits", paths[2])
    settings = settings_for(tmp_path / "RUN", spectra=f"{folder}/*", input__limit=4)
    assert run(settings, client=client, until="catalog", echo=quiet)["counts"]["spectra"] == 3
    before = hotdask.read_catalog(tmp_path / "RUN").set_index("specid")
    (reject,) = read_rejects(tmp_path / "RUN").to_dict("records")
    assert reject["reason"] == "no_velocity"
    assert "give rv" in reject["detail"]
    # The whole survey after its first files, and what the reject asks for.
    rv = [12.5 if path == paths[2] else None for path in paths]
    pd.DataFrame({"path": list(map(str, paths)), "rv": rv}).to_csv(tmp_path / "t.csv", index=False)
    settings = settings_for(tmp_path / "RUN", table=tmp_path / "t.csv")
    assert run(settings, client=client, until="catalog", echo=quiet)["counts"]["spectra"] == 6
    after = hotdask.read_catalog(tmp_path / "RUN").set_index("specid")
    pd.testing.assert_frame_equal(after.loc[before.index, ["teff", "rv"]], before[["teff", "rv"]])
    assert 12.5 in after["rv"].to_list()
