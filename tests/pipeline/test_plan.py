"""Order, duplicates and what refuses to go on."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from hypothesis import given
from hypothesis import strategies as st

from hotdask.config import SETTINGS, Input, load_settings, make_settings
from hotdask.errors import HotdaskError, RunError, SettingsError
from hotdask.pipeline.plan import (
    INPUTS,
    PLAN,
    REJECTED,
    batch_path,
    check_inputs,
    check_settings,
    drop_duplicates,
    drop_known,
    fingerprint,
    list_batches,
    read_batches,
    sky_order,
)
from hotdask.readers.inputs import list_inputs
from hotdask.store.grouped import read_group, split, write_grouped


def settings(**overrides):
    return make_settings({"out": "RUN", "input": {"spectra": "data/*.fits"}}, **overrides)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Four files; what they hold does not matter here."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.fits").write_bytes(b"x" * number)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "RUN"
    folder.mkdir()
    return folder


def entries(folder: Path) -> pd.DataFrame:
    return list_inputs(Input(spectra=str(folder / "*.fits")))


def test_fingerprint_changes_with_every_part() -> None:
    parts = [("a",), ("b",), ("a", "a"), ("a", 1), ("a", 1.5), ("a", None), ({"x": 1},), ({"x": 2},)]
    prints = [fingerprint(*p) for p in parts]
    assert len(set(prints)) == len(prints)
    assert fingerprint({"x": 1, "y": 2}) == fingerprint({"y": 2, "x": 1})
    assert all(len(p) == 16 and int(p, 16) >= 0 for p in prints)


@given(n=st.integers(1, 40), rows=st.integers(1, 50))
def test_groups_are_the_frame_in_pieces(tmp_path_factory: pytest.TempPathFactory, n: int, rows: int) -> None:
    path = tmp_path_factory.mktemp("grouped") / "x.parquet"
    frame = pd.DataFrame({"a": np.arange(n), "b": [f"row {i}" for i in range(n)]})
    write_grouped(path, frame, split(n, rows))
    groups = [read_group(path, g) for g in range(-(-n // rows))]
    assert [len(g) for g in groups[:-1]] == [rows] * (len(groups) - 1)
    pd.testing.assert_frame_equal(pd.concat(groups, ignore_index=True), frame)


# Settings


def test_settings_of_a_new_run_are_kept(run_folder: Path) -> None:
    chosen = settings(cube__partition_size=64, catalog__min_snr=7.5)
    check_settings(run_folder, chosen)
    assert load_settings(run_folder / SETTINGS) == chosen
    check_settings(run_folder, chosen)


def test_all_changed_settings_are_listed(run_folder: Path) -> None:
    check_settings(run_folder, settings())
    before = (run_folder / SETTINGS).read_bytes()
    with pytest.raises(SettingsError) as caught:
        check_settings(run_folder, settings(fit__max_iterations=61, input__classes=("O",)))
    message = str(caught.value)
    for line in ("fit.max_iterations: 60 -> 61", "input.classes: [] -> ['O']", "--out"):
        assert line in message
    assert "partition_size" not in message
    assert (run_folder / SETTINGS).read_bytes() == before


def test_where_a_run_runs_and_its_report_may_change(run_folder: Path) -> None:
    check_settings(run_folder, settings())
    changed = settings(cluster__workers=3, report__spectra=4, out="elsewhere")
    check_settings(run_folder, changed)
    assert load_settings(run_folder / SETTINGS) == changed


def test_what_decides_no_label_may_change(run_folder: Path) -> None:
    check_settings(run_folder, settings())
    changed = settings(catalog__min_snr=5.5, join__radius=2.0)
    check_settings(run_folder, changed)
    assert load_settings(run_folder / SETTINGS) == changed


def test_all_settings_may_change_while_nothing_is_planned(run_folder: Path) -> None:
    check_settings(run_folder, settings())
    changed = settings(cube__partition_size=32, input__classes=("O",))
    check_settings(run_folder, changed, begun=False)
    assert load_settings(run_folder / SETTINGS) == changed
    with pytest.raises(SettingsError, match=r"store\.cube"):
        check_settings(run_folder, settings(store__cube="s3://bucket/cube.zarr"), begun=False)


# Inputs


def test_inputs_that_stay_give_one_hash(files: Path, run_folder: Path) -> None:
    (first,) = check_inputs(run_folder, entries(files), 3, planned=0)
    assert (first.number, first.files, first.first, first.parts) == (0, 4, 0, 2)
    assert check_inputs(run_folder, entries(files), 3, planned=1) == [first] == read_batches(run_folder, 3)
    assert pq.ParquetFile(batch_path(run_folder, INPUTS, 0)).num_row_groups == 2


def test_files_that_come_later_are_a_batch_of_their_own(files: Path, run_folder: Path) -> None:
    (first,) = check_inputs(run_folder, entries(files), 3, planned=0)
    for name in ("00.fits", "9.fits"):
        (files / name).write_bytes(b"new")
    both = check_inputs(run_folder, entries(files), 3, planned=1)
    assert both[0] == first
    assert (both[1].number, both[1].files, both[1].first, both[1].parts) == (1, 2, 2, 1)
    groups = [read_group(list_batches(run_folder, INPUTS), g)["path"].tolist() for g in range(3)]
    assert [[Path(p).stem for p in group] for group in groups] == [["0", "1", "2"], ["3"], ["00", "9"]]
    # As long as nothing of it is in the cube, a batch is what the inputs are now.
    (files / "9.fits").unlink()
    assert [b.files for b in check_inputs(run_folder, entries(files), 3, planned=1)] == [4, 1]
    (files / "00.fits").unlink()
    assert check_inputs(run_folder, entries(files), 3, planned=1) == [first] == read_batches(run_folder, 3)
    with pytest.raises(RunError, match="no row group 2: there are 2"):
        read_group(list_batches(run_folder, INPUTS), 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "2.fits").unlink(), "1 went, 0 changed"),
        (lambda folder: (folder / "2.fits").write_bytes(b"other length"), "0 went, 1 changed"),
        (lambda folder: os.utime(folder / "2.fits", ns=(1, 1)), "0 went, 1 changed"),
        (lambda folder: shutil.move(folder / "2.fits", folder / "7.fits"), "1 went, 0 changed"),
    ],
    ids=["removed", "rewritten", "touched", "renamed"],
)
def test_other_inputs_are_refused(files: Path, run_folder: Path, change, says: str) -> None:
    check_inputs(run_folder, entries(files), 2, planned=0)
    before = batch_path(run_folder, INPUTS, 0).read_bytes()
    change(files)
    with pytest.raises(RunError, match=says) as caught:
        check_inputs(run_folder, entries(files), 2, planned=1)
    assert ".fits" in str(caught.value)
    assert "--out" in str(caught.value)
    assert batch_path(run_folder, INPUTS, 0).read_bytes() == before


def test_an_override_that_changed_is_refused(files: Path, run_folder: Path) -> None:
    frame = entries(files).assign(rv=[1.0, np.nan, 3.0, 4.0], gaia=pd.array([1, None, 2**62 + 1, 4], dtype="Int64"))
    first = check_inputs(run_folder, frame, 2, planned=0)
    # A gap is equal to a gap.
    assert check_inputs(run_folder, frame.copy(), 2, planned=1) == first
    with pytest.raises(RunError, match="1 changed"):
        check_inputs(run_folder, frame.assign(rv=[1.0, np.nan, 3.5, 4.0]), 2, planned=1)
    with pytest.raises(RunError, match="1 changed"):
        check_inputs(run_folder, frame.assign(rv=[1.0, 2.0, 3.0, 4.0]), 2, planned=1)
    with pytest.raises(RunError, match="2 changed"):
        check_inputs(run_folder, frame.drop(columns="rv")[1:], 2, planned=1)
    with pytest.raises(RunError, match="columns of the input table"):
        check_inputs(run_folder, frame.drop(columns="gaia"), 2, planned=1)


def test_a_table_may_follow_a_pattern(files: Path, run_folder: Path) -> None:
    """With overrides for files that were rejected, or came since; what is in the cube stays as it was read."""
    frame = entries(files)
    check_inputs(run_folder, frame, 2, planned=0)
    for table, rows in ((PLAN, slice(0, 3)), (REJECTED, slice(3, 4))):
        batch_path(run_folder, table, 0).parent.mkdir()
        frame[["path"]][rows].assign(reason="no_velocity").to_parquet(batch_path(run_folder, table, 0))
    both = check_inputs(run_folder, frame.assign(rv=[np.nan, np.nan, np.nan, 12.5]), 2, planned=1)
    assert [batch.files for batch in both] == [4, 1]
    with pytest.raises(RunError, match=r"1 changed \(e\.g\. .*0\.fits: rv\)"):
        check_inputs(run_folder, frame.assign(rv=[3.5, np.nan, np.nan, 12.5]), 2, planned=1)


def test_a_gap_that_is_filled_is_a_change(files: Path, run_folder: Path) -> None:
    for values, kind in (
        ([1, None, 3, 4], "Int64"),
        ([True, None, False, True], "boolean"),
        (["a", None, "", "b"], "str"),
    ):
        frame = entries(files).assign(note=pd.array(values, dtype=kind))
        check_inputs(run_folder, frame, 2, planned=0)
        for row, value in ((1, values[0]), (0, None)):
            changed = frame.copy()
            changed.loc[row, "note"] = value
            with pytest.raises(RunError, match=rf"0 went, 1 changed \(e\.g\. .*{row}\.fits: note\)"):
                check_inputs(run_folder, changed, 2, planned=1)


def test_columns_that_share_no_type_are_refused_by_name(files: Path, run_folder: Path) -> None:
    frame = entries(files)
    check_inputs(run_folder, frame[:2].assign(note=[2**62 + 1, 7]), 2, planned=0)
    for note in ([2**62 + 1, 7, "a", "b"], [2**62 + 1, 7, 9.5, 1.5]):
        changed = frame.assign(note=pd.Series(note, dtype=object))
        if isinstance(note[2], float):
            changed = changed.astype({"note": float})
        with pytest.raises(RunError, match="note"):
            check_inputs(run_folder, changed, 2, planned=1)


def test_a_lost_list_of_inputs_is_made_again(files: Path, run_folder: Path) -> None:
    frame = entries(files).assign(rv=[1.0, np.nan, 3.0, 4.0])
    batches = check_inputs(run_folder, frame, 2, planned=0)
    for table, rows in ((PLAN, slice(0, 3)), (REJECTED, slice(3, 4))):
        batch_path(run_folder, table, 0).parent.mkdir()
        frame[["path"]][rows].assign(reason="x").to_parquet(batch_path(run_folder, table, 0))
    before = batch_path(run_folder, INPUTS, 0).read_bytes()
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"half")):
        damage(batch_path(run_folder, INPUTS, 0))
        assert check_inputs(run_folder, frame, 2, planned=1) == batches
        assert batch_path(run_folder, INPUTS, 0).read_bytes() == before


def test_a_file_that_is_not_there_is_an_input_too(run_folder: Path) -> None:
    frame = pd.DataFrame({"path": pd.Series(["/nowhere/a.fits"], dtype="str")})
    first = check_inputs(run_folder, frame, 2, planned=0)
    assert check_inputs(run_folder, frame, 2, planned=1) == first


def test_errors_are_for_users() -> None:
    assert issubclass(RunError, HotdaskError)
    assert issubclass(SettingsError, HotdaskError)


# Duplicates


def exposures(*rows: tuple[str, str, int, str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["path", "specid", "obsid", "release"])
    return frame.assign(fitsname=frame["path"])


def test_the_newest_release_is_kept() -> None:
    kept, rejects = drop_duplicates(
        exposures(
            ("a", "one", 11, "LAMOST DR5"),
            ("b", "one", 11, "LAMOST DR13"),
            ("c", "one", -1, ""),
            ("d", "two", 12, "LAMOST DR5"),
        )
    )
    assert kept["path"].tolist() == ["b", "d"]
    assert rejects["path"].tolist() == ["a", "c"]
    assert set(rejects["reason"]) == {"duplicate"}
    assert all(" b," in detail for detail in rejects["detail"])


def test_an_obsid_joins_files_with_other_names() -> None:
    kept, rejects = drop_duplicates(exposures(("a", "one", 11, "DR8"), ("b", "ONE", 11, "DR9"), ("c", "x", 12, "DR8")))
    assert kept["path"].tolist() == ["b", "c"]
    assert rejects["path"].tolist() == ["a"]


def test_what_the_cube_holds_stays_there() -> None:
    """A later batch does not replace an exposure, be its release ever so new."""
    known = exposures(("a", "one", 11, "DR5"), ("b", "two", -1, ""), ("c", "three", 13, "DR5"))
    fresh = exposures(("d", "one", 11, "DR13"), ("e", "TWO", -1, ""), ("f", "THREE", 13, "DR9"), ("g", "four", 14, ""))
    kept, rejects = drop_known(fresh, known)
    assert kept["path"].tolist() == ["e", "g"]
    assert rejects["path"].tolist() == ["d", "f"]
    assert [detail.split()[4] for detail in rejects["detail"]] == ["a,", "c,"]
    assert list(rejects.columns) == ["path", "fitsname", "specid", "reason", "detail"]


def test_no_obsid_joins_nothing() -> None:
    kept, rejects = drop_duplicates(exposures(("a", "one", -1, ""), ("b", "two", -1, "")))
    assert len(kept) == 2
    assert len(rejects) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("pqrstu"), st.sampled_from([-1, 1, 2, 3]), st.sampled_from(["", "DR5", "DR9"])),
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_each_exposure_is_kept_once_in_any_order(rows: list, random) -> None:
    frame = exposures(*((f"file{i}", s, o, r) for i, (s, o, r) in enumerate(rows)))
    kept, rejects = drop_duplicates(frame)
    assert sorted([*kept["path"], *rejects["path"]]) == sorted(frame["path"])
    assert kept["specid"].is_unique
    assert kept.loc[kept["obsid"] >= 0, "obsid"].is_unique
    # Every reject shares its exposure with some other file that ranks before it.
    for path in rejects["path"]:
        mine = frame[frame["path"] == path].iloc[0]
        others = frame[(frame["specid"] == mine.specid) | ((frame["obsid"] == mine.obsid) & (mine.obsid >= 0))]
        assert len(others) > 1
    shuffled = frame.sample(frac=1, random_state=random.randrange(2**31)) if len(frame) else frame
    again, _ = drop_duplicates(shuffled.reset_index(drop=True))
    assert set(again["path"]) == set(kept["path"])


# Order


def positions(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    return pd.DataFrame({"ra": ra, "dec": dec, "specid": [f"s{i}" for i in range(n)]})


@given(n=st.integers(1, 50), seed=st.integers(0, 1000))
def test_order_does_not_depend_on_the_order_given(n: int, seed: int) -> None:
    frame = positions(n, seed)
    # Some spectra share a position: two visits reduced with one catalog position.
    frame.loc[: n // 3, ["ra", "dec"]] = frame.loc[0, ["ra", "dec"]].to_numpy()
    shuffled = frame.sample(frac=1, random_state=seed)
    assert sorted(sky_order(frame)) == list(range(n))
    assert frame.iloc[sky_order(frame)]["specid"].tolist() == shuffled.iloc[sky_order(shuffled)]["specid"].tolist()


def test_neighbors_in_the_cube_are_neighbors_on_the_sky() -> None:
    frame = positions(2000, 1)
    ordered = frame.iloc[sky_order(frame)]
    sky = SkyCoord(ordered["ra"].to_numpy() * u.deg, ordered["dec"].to_numpy() * u.deg)
    # 2000 points lie 4.5 degrees apart; in any other order the next one is 90 degrees away.
    assert np.median(sky[1:].separation(sky[:-1]).deg) < 6


def test_visits_of_a_star_are_next_to_each_other() -> None:
    stars = positions(500, 2)
    again = stars.assign(specid=stars["specid"] + "again", ra=(stars["ra"] + 1e-5) % 360)
    both = pd.concat([stars, again], ignore_index=True)
    order = both.iloc[sky_order(both)]["specid"].str.removesuffix("again").tolist()
    # Cells have borders, so a few pairs may be apart.
    assert sum(a == b for a, b in zip(order[1:], order[:-1], strict=True)) > 490
