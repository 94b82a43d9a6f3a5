"""Bad input becomes a row in the rejects table with file and reason; the run goes on; above a set share it stops."""

import shutil
from pathlib import Path

import pytest
from distributed import Client

import hotdask
from hotdask.errors import InputError, RunError
from hotdask.pipeline.execute import run
from hotdask.pipeline.plan import read_rejects


def quiet(line: str) -> None:
    """An echo that says nothing."""


@pytest.fixture(scope="module")
def mixed(zoo, survey, tmp_path_factory: pytest.TempPathFactory):
    """A folder with the whole zoo and 30 files of the survey, and the zoo's specimens."""
    folder = tmp_path_factory.mktemp("mixed")
    specimens = [s for s in zoo.build(folder / "zoo") if s.kind != "directory"]
    (folder / "survey").mkdir()
    for path in survey.good[:30]:
        shutil.copy2(path, folder / "survey")
    return folder, specimens


@pytest.fixture(scope="module")
def outcome(mixed, client: Client, settings_for, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    settings = settings_for(
        tmp_path_factory.mktemp("bad") / "RUN", spectra=f"{mixed[0]}/**/*.fits*", input__max_reject_share=0.9
    )
    return Path(settings.out), run(settings, until="catalog", client=client, echo=quiet)


def test_every_file_is_a_spectrum_or_a_reject_once(zoo, mixed, outcome) -> None:
    folder, specimens = mixed
    rejects = read_rejects(outcome[0])
    cube = hotdask.open_cube(outcome[0] / "spectra.zarr")
    kept = hotdask.read_catalog(outcome[0])
    assert len(kept) == cube.sizes["spectrum"] == outcome[1]["counts"]["spectra"]
    assert kept["specid"].is_unique
    assert rejects["path"].is_unique
    given = {str(s.path) for s in specimens} | {str(p) for p in (folder / "survey").iterdir()}
    assert len(given) == outcome[1]["counts"]["files"] == len(kept) + len(rejects)
    assert set(rejects["path"]) <= given
    names = {Path(p).name for p in given - set(rejects["path"])}
    assert set(kept["fitsname"]) == names
    assert {p.name for p in (folder / "survey").iterdir()} <= names


def test_every_reject_has_a_true_reason(zoo, mixed, outcome) -> None:
    rejects = read_rejects(outcome[0]).set_index("path")
    found = rejects["reason"].to_dict()
    allowed = {str(s.path): {s.twin} if s.twin else s.reasons for s in mixed[1]}
    assert {p: r for p, r in allowed.items() if found.get(p, zoo.READ) not in r} == {}
    assert (rejects["detail"].str.len() > 20).all()


def test_above_the_set_share_the_run_stops(mixed, client: Client, settings_for, tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "RUN", spectra=f"{mixed[0]}/**/*.fits*", input__max_reject_share=0.3)
    with pytest.raises(RunError, match=r"files are not used.*batch-0000\.parquet.*raise input\.max_reject_share"):
        run(settings, client=client, echo=quiet)
    assert len(read_rejects(tmp_path / "RUN")) > 50
    assert not (tmp_path / "RUN" / "catalog").exists()


def test_a_pattern_that_matches_nothing_begins_no_run(settings_for, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="matches no file; check the pattern"):
        run(settings_for(tmp_path / "RUN", spectra=f"{tmp_path}/nowhere/**/*.fits"), echo=quiet)
    assert not (tmp_path / "RUN").exists()
