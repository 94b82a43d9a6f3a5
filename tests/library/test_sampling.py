"""Labels to synthesize: within Table 1 and the atmospheres, evenly spread, the same for the same seed."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table
from scipy import stats
from scipy.spatial import cKDTree

from hotdask.errors import InputError, SettingsError
from hotdask.labels import INDEX, LABELS
from hotdask.library.isochrones import Isochrones, read_isochrones
from hotdask.library.sampling import RANGES, Sampling, draw_labels

RELATIVE = {"c_fe": "c_h", "n_fe": "n_h", "o_fe": "o_h", "si_fe": "si_h", "s_fe": "s_h"}


def everywhere(labels: np.ndarray) -> np.ndarray:
    return np.ones(len(labels), dtype=bool)


def atmospheres(labels: np.ndarray) -> np.ndarray:
    """The ATLAS9 gravity floor, roughly."""
    return labels[:, 1] > np.interp(labels[:, 0], [7000, 9500, 20000, 40000, 50000, 50001], [0.5, 2, 3, 4.5, 5, 9])


def column(labels: np.ndarray, name: str) -> np.ndarray:
    if name in RELATIVE:
        return labels[:, INDEX[RELATIVE[name]]] - labels[:, INDEX["fe_h"]]
    return labels[:, INDEX[name]]


def test_ranges_are_those_of_table_1() -> None:
    table = Path(__file__).resolve().parents[3] / "shared" / "paper" / "table1_label_ranges.csv"
    if not table.exists():
        pytest.skip("needs Table 1 of the paper, ../shared/paper, which is not part of the project")
    rows = pd.read_csv(table).set_index("label")
    names = {"Teff": "teff", "logg": "logg", "[Fe/H]": "fe_h", "vmic": "vmic", "NHe/Ntot": "n_he"}
    names |= {f"[{x.capitalize()}/Fe]": f"{x}_fe" for x in ("c", "n", "o", "si", "s")}
    assert set(names.values()) == set(RANGES)
    for symbol, name in names.items():
        low, high = RANGES[name]
        assert high == rows.loc[symbol, "max"]
        assert low == (7000 if name == "teff" else rows.loc[symbol, "min"])


def test_all_ranges_are_filled_and_none_is_left() -> None:
    labels = draw_labels(Sampling(n=4096), everywhere)
    assert labels.shape == (4096, len(LABELS))
    assert not labels[:, INDEX["vsini"]].any()
    for name, (low, high) in RANGES.items():
        values = column(labels, name)
        room = 1e-9 * (high - low)
        assert low - room <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high + room


@pytest.mark.parametrize("name", ["logg", "vmic", "n_he", *RELATIVE])
def test_most_labels_are_even(name: str) -> None:
    low, high = RANGES[name]
    values = (column(draw_labels(Sampling(n=4096, solar_like=0), everywhere), name) - low) / (high - low)
    # A random sample of this size would stray by about 0.02.
    assert stats.kstest(values, "uniform").statistic < 0.002


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0, -0.5])
def test_teff_follows_its_density(power: float) -> None:
    labels = draw_labels(Sampling(n=8192, teff_power=power), everywhere)
    counts, edges = np.histogram(np.log(labels[:, 0]), np.linspace(np.log(7000), np.log(60000), 17))
    expected = np.array([np.exp(-power * np.linspace(a, b, 101)).mean() for a, b in itertools.pairwise(edges)])
    np.testing.assert_allclose(counts / len(labels), expected / expected.sum(), atol=0.001)


def test_half_of_the_syntheses_are_extra_ones_above_a_tenth_solar() -> None:
    fe_h = draw_labels(Sampling(n=4096), everywhere)[:, INDEX["fe_h"]]
    above = 0.5 + 0.5 * 1.5 / 3.5
    assert np.mean(fe_h > -1) == pytest.approx(above, abs=0.002)
    assert stats.kstest((fe_h[fe_h > -1] + 1) / 1.5, "uniform").statistic < 0.003
    even = draw_labels(Sampling(n=4096, metal_rich=0), everywhere)[:, INDEX["fe_h"]]
    assert stats.kstest((even + 3) / 3.5, "uniform").statistic < 0.002


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_abundances_crowd_around_solar_proportions(share: float) -> None:
    labels = draw_labels(Sampling(n=4096, solar_like=share), everywhere)
    bell = stats.truncnorm(-2 / 0.5, 3 / 0.5, scale=0.5)
    found = stats.kstest(column(labels, "n_fe"), lambda x: share * bell.cdf(x) + (1 - share) * (x + 2) / 5)
    assert found.statistic < 0.002


def test_only_what_is_covered_and_denser_where_emulators_err() -> None:
    labels = draw_labels(Sampling(n=5000), atmospheres)
    assert len(labels) == 5000
    assert atmospheres(labels).all()
    assert 0.35 < np.mean(labels[:, 0] < 10000) < 0.40


def test_it_fills_space_better_than_chance() -> None:
    labels = draw_labels(Sampling(n=1024, teff_power=0), atmospheres)
    plane = np.column_stack([np.log(labels[:, 0] / 7000) / np.log(60 / 7), labels[:, 1] / 5])
    random = np.random.default_rng(2).random((40000, 2))
    stars = np.zeros((len(random), len(LABELS)))
    stars[:, 0], stars[:, 1] = 7000 * (60 / 7) ** random[:, 0], 5 * random[:, 1]
    covered = random[atmospheres(stars)]
    # The largest hole, seen from points of the same space, beside that of as many random points.
    ask, chance = covered[1024:], covered[:1024]
    assert cKDTree(plane).query(ask)[0].max() < 0.8 * cKDTree(chance).query(ask)[0].max()


def test_more_syntheses_keep_the_first() -> None:
    few, many = (draw_labels(Sampling(n=n, seed=5), atmospheres) for n in (100, 5000))
    np.testing.assert_array_equal(few, many[:100])


def test_seeds() -> None:
    first, again, other = (draw_labels(Sampling(n=64, seed=s), everywhere) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first[:, 0], other[:, 0]).any()


def test_ranges_may_be_narrowed() -> None:
    ranges = {"teff": (9000, 11000), "c_h": (-0.5, 0.5), "si_fe": (0, 0), "fe_h": (-0.3, 0.2)}
    labels = draw_labels(Sampling(n=500, ranges=ranges), everywhere)
    assert 9000 <= labels[:, 0].min() < labels[:, 0].max() <= 11000
    assert abs(labels[:, INDEX["c_h"]]).max() <= 0.5
    np.testing.assert_allclose(column(labels, "si_fe"), 0, atol=1e-12)
    assert -0.3 <= labels[:, INDEX["fe_h"]].min() < -0.29
    assert column(labels, "n_fe").max() > 2.9


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ranges": {"vsini": (0, 100)}}, "rotation is applied after"),
        ({"ranges": {"mass": (1, 2)}}, "give any of"),
        ({"ranges": {"logg": (5, 4)}}, "lower value first"),
        ({"ranges": {"logg": (0, float("nan"))}}, "lower value first"),
        ({"ranges": {"teff": (0, 9000)}}, "sampling.ranges.teff"),
        ({"n": 0}, "at least 1"),
        ({"metal_rich": 1.5}, "between 0 and 1"),
        ({"jitter": (-1, 0, 0)}, "jitter"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        Sampling(**wrong)


def test_an_engine_that_covers_nothing_or_next_to_nothing() -> None:
    with pytest.raises(SettingsError, match=r"0 of 65536 labels drawn are covered.*widen"):
        draw_labels(Sampling(n=10), lambda labels: np.zeros(len(labels), bool))
    with pytest.raises(SettingsError, match="are covered, 50 are wanted"):
        draw_labels(Sampling(n=50), lambda labels: labels[:, 1] < 0.001)


# Isochrones: made up, with far more points in phase 1 than in phases 2 and 3, as the main sequence has.


def made_up() -> pd.DataFrame:
    rows = []
    for fe_h in (-1.0, -0.5, 0.0, 0.5):
        for eep, n, logg in ((1, 400, 4.2), (2, 40, 3.5), (3, 5, 2.5)):
            log_teff = np.linspace(3.95, 4.35, n)
            rows.append(pd.DataFrame({"EEP": eep, "log_Teff": log_teff, "log_g": logg, "[Fe/H]_init": fe_h}))
    return pd.concat(rows, ignore_index=True)


@pytest.mark.parametrize("ending", ["csv", "parquet", "ecsv", "fits"])
def test_tables_of_isochrones(tmp_path: Path, ending: str) -> None:
    path, table = tmp_path / f"iso.{ending}", made_up()
    if ending == "csv":
        table.to_csv(path, index=False)
    elif ending == "parquet":
        table.to_parquet(path)
    else:
        # FITS wants plain names.
        Table.from_pandas(table.rename(columns={"[Fe/H]_init": "fe_h"})).write(path)
    found = read_isochrones(path)
    np.testing.assert_allclose(found.points, table[["log_Teff", "log_g", "[Fe/H]_init"]])
    np.testing.assert_array_equal(found.eep, table["EEP"])


def test_teff_may_be_given_as_it_is(tmp_path: Path) -> None:
    table = pd.DataFrame({"teff": [10000.0, -1, 20000], "logg": [4.0, 4, 3], "fe_h": 0.0, "phase": [0, 0, 2]})
    table.to_csv(tmp_path / "iso.csv", index=False)
    found = read_isochrones(tmp_path / "iso.csv")
    np.testing.assert_allclose(10 ** found.points[:, 0], [10000, 20000])


def test_uniform_in_phase_and_inside_the_ranges() -> None:
    table = made_up()
    isochrones = Isochrones(table[["log_Teff", "log_g", "[Fe/H]_init"]].to_numpy(), table["EEP"].to_numpy(float))
    exact = draw_labels(Sampling(n=3000, isochrones=isochrones, jitter=(0, 0, 0)), everywhere)
    share = [np.mean(exact[:, 1] == logg) for logg in (4.2, 3.5, 2.5)]
    np.testing.assert_allclose(share, 1 / 3, atol=0.01)
    np.testing.assert_allclose([np.mean(exact[:, INDEX["fe_h"]] == f) for f in (-1, -0.5, 0, 0.5)], 0.25, atol=0.01)
    assert stats.kstest((column(exact, "vmic")) / 15, "uniform").statistic < 0.01
    labels = draw_labels(Sampling(n=3000, isochrones=isochrones), everywhere)
    assert labels[:, INDEX["fe_h"]].max() <= 0.5
    assert len(np.unique(labels[:, 0])) == 3000
    # The kernel's own width, about a phase that is far from the others.
    giants = labels[labels[:, 1] < 3]
    assert np.std(giants[:, 1]) == pytest.approx(0.15, rel=0.1)


def test_isochrones_keep_the_first_rows_too(tmp_path: Path) -> None:
    made_up().to_csv(tmp_path / "iso.csv", index=False)
    few, many = (draw_labels(Sampling(n=n, isochrones=tmp_path / "iso.csv"), atmospheres) for n in (50, 900))
    np.testing.assert_array_equal(few, many[:50])


def test_isochrones_that_cannot_be_used(tmp_path: Path) -> None:
    table = made_up()
    for name, content, says in (
        ("a.csv", table.drop(columns="EEP"), "lacks columns, any of eep/EEP"),
        ("b.csv", table.assign(log_g=np.nan), "no row has a finite"),
        ("c.txt", table, "give isochrones as"),
    ):
        content.to_csv(tmp_path / name, index=False)
        with pytest.raises(InputError, match=says):
            read_isochrones(tmp_path / name)
    (tmp_path / "d.parquet").write_text("no table")
    for name in ("d.parquet", "absent.csv"):
        with pytest.raises(InputError, match=name):
            read_isochrones(tmp_path / name)
    table.to_csv(tmp_path / "cool.csv", index=False)
    cool = Sampling(n=5, isochrones=tmp_path / "cool.csv", ranges={"teff": (40000, 50000)})
    with pytest.raises(SettingsError, match="none of 1780 points"):
        draw_labels(cool, everywhere)
