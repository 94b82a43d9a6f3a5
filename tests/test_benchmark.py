"""scripts/benchmark, run small: every row is there, and every figure can be believed to be one; and its guard."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
RATES = ("read", "resample", "normalize", "fit, one start", "pair, one start", "fits of catalog", "label", "GEMM peak")
SHARES = ("identical", "share of peak", "pair, share of peak", "catalog, share of peak", "fit, as deep", "fit, deeper")
PEERS = ("The_Payne", "curve_fit", "best scipy")


def _run(folder: Path, limit: float, *options: str) -> subprocess.CompletedProcess:
    """Run the script, and hold resampling to a ratio; from another folder, as one may call it."""
    (folder / "limit.json").write_text(json.dumps({"rows": [_row("× spline", limit, group="resample")]}))
    options = ("--repeats", "1", "--json", "table.json", "--check", "limit.json", *options)
    command = [sys.executable, str(SCRIPTS / "benchmark"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=folder)


def _row(name: str, value: float, unit: str = "×", goal: str = "high", group: str = "fit") -> dict:
    return {"group": group, "name": name, "value": value, "unit": unit, "meaning": "", "wall": None, "goal": goal}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[str, dict]:
    folder = tmp_path_factory.mktemp("benchmark")
    done = _run(folder, 1e-9, "--spectra", "16", "--peers", "4")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "table.json").read_text())


@pytest.fixture(scope="module")
def rows(whole) -> dict[str, dict]:
    return {row["name"]: row for row in whole[1]["rows"]}


def test_names_are_unique_and_light_groups_are_there(whole):
    names = [row["name"] for row in whole[1]["rows"]]
    assert len(set(names)) == len(names)
    assert {row["group"] for row in whole[1]["rows"]} == {"read", "resample", "normalize", "fit", "label", "memory"}
    assert whole[1]["environment"]["spectra"] == 16


def test_figures_are_finite_and_positive(rows):
    assert set(RATES) | set(SHARES) | set(PEERS) <= set(rows)
    for name, row in rows.items():
        assert math.isfinite(row["value"]), name
        # Agreement can be perfect, and no fit need be deeper than scipy's.
        assert row["value"] > 0 or (name not in RATES and row["unit"] in ("of flux", "share")), name
        assert row["meaning"], name
        assert row["wall"] is None or row["wall"] > 0, name
    for name in SHARES:
        assert 0 <= rows[name]["value"] <= 1, name


def test_ratios_are_there_for_every_peer_and_start(rows):
    ratios = {name for name, row in rows.items() if row["unit"] == "×"}
    starts, ours = ("", ", our start"), ("", "pair ", "catalog ")
    fits = {f"{fit}× {peer}{start}" for fit in ours for peer in PEERS for start in starts}
    assert ratios == {"× astropy", "× spline", "× dense"} | fits


def test_peers_compute_the_same(rows):
    # A peer that computed something else would make its ratio worthless.
    assert rows["identical"]["value"] == 1
    assert rows["rms"]["value"] < 1e-3
    assert rows["deviation"]["value"] < 1e-5
    assert rows["fit, median"]["value"] < 0.05
    assert rows["best scipy, median"]["value"] < 0.05
    assert rows["fit, as deep"]["value"] >= 0.5


def test_the_order_of_the_ratios_is_that_of_the_work(rows):
    # Single, pair, and pair from all starts of the same round: each does what the one before does, and more.
    for name in PEERS:
        single, pair = rows[f"× {name}"]["value"], rows[f"pair × {name}"]["value"]
        assert single > pair, name


def test_table_shows_every_row(whole):
    lines = whole[0].splitlines()[3:-1]
    assert len(lines) == len(whole[1]["rows"])
    assert all(row["name"] in line for row, line in zip(whole[1]["rows"], lines, strict=True))


def test_goals_are_set_on_what_machines_share(rows):
    seconds = {"spectra/s", "GFLOP/s", "MiB", "ms/spectrum", "s"}
    assert {row["unit"] for row in rows.values() if row["goal"]}.isdisjoint(seconds)
    # A peer's accuracy is no promise; ours are, and so are all ratios.
    for name in ("× The_Payne", "catalog × best scipy", "× astropy", "fit, as deep", "share of peak"):
        assert rows[name]["goal"] == "high", name
    for name in ("fit, p90", "deviation", "second pass / first"):
        assert rows[name]["goal"] == "low", name
    assert not rows["The_Payne, p90"]["goal"]


# The guard


@pytest.fixture(scope="module")
def guard():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("benchmarks.check")


BASELINE = [
    _row("× The_Payne", 100.0),
    _row("end to end / astropy", 1.4, goal="low", group="end_to_end"),
    _row("identical", 1.0, "share"),
    _row("outside kernels", 0.01, "share", "low"),
    _row("fit, median", 0.008, "σ", "low"),
    _row("The_Payne, median", 0.3, "σ", ""),
    _row("fit, one start", 500.0, "spectra/s", ""),
]


@pytest.fixture
def baseline(tmp_path) -> str:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({"environment": {}, "rows": BASELINE}))
    return str(path)


@pytest.mark.parametrize(
    ("name", "value", "worse"),
    [
        ("× The_Payne", 81.0, False),
        ("× The_Payne", 79.0, True),
        ("× The_Payne", 900.0, False),
        ("× The_Payne", float("nan"), True),
        ("end to end / astropy", 1.67, False),
        ("end to end / astropy", 1.69, True),
        ("end to end / astropy", 0.5, False),
        ("identical", 0.94, True),
        # Small shares are not held to a part of nearly nothing.
        ("outside kernels", 0.045, False),
        ("outside kernels", 0.055, True),
        ("fit, median", 0.0125, False),
        ("fit, median", 0.02, True),
        ("The_Payne, median", 9.0, False),
        ("fit, one start", 5.0, False),
    ],
)
def test_only_goals_count(guard, baseline, capsys, name, value, worse):
    now = [{**row, "value": value} if row["name"] == name else row for row in BASELINE]
    assert guard.check(now, baseline) is not worse
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + worse
    assert lines[-1].startswith(f"{5 - worse} of 5 figures")
    assert not worse or name in lines[0]


def test_what_is_not_measured_any_more_is_worse(guard, baseline):
    # A whole group may be left out with --only, one of its figures may not.
    assert guard.check([row for row in BASELINE if row["group"] != "end_to_end"], baseline)
    assert not guard.check([row for row in BASELINE if row["name"] != "identical"], baseline)
    assert not guard.check([_row("other", 1.0, group="other")], baseline)


def test_every_unit_that_is_compared_has_its_slack(guard, rows):
    units = {row["unit"] for row in rows.values() if row["goal"]}
    assert units <= set(guard.SLACK) == set(guard.GRAIN)


def test_the_baseline_in_the_repository_fits_the_script(guard, rows):
    kept = json.loads((SCRIPTS / "baseline.json").read_text())["rows"]
    light = {row["group"] for row in rows.values()}
    here = {(row["group"], row["name"]) for row in rows.values() if row["goal"]}
    assert {(row["group"], row["name"]) for row in kept if row["goal"] and row["group"] in light} == here


def test_a_worse_figure_fails_the_script(tmp_path):
    done = _run(tmp_path, 1e9, "--spectra", "4", "--peers", "2", "--only", "resample")
    assert done.returncode == 1, done.stderr
    assert "worse: resample, × spline" in done.stdout
