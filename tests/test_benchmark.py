"""scripts/benchmark, run small: every row is there, and every figure can be believed to be one."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmark"
RATES = ("read", "resample", "normalize", "fit, one start", "fits of catalog", "label", "GEMM peak", "curve_fit")
SHARES = ("identical", "share of peak", "pair, share of peak", "as deep as scipy", "deeper than scipy")


def _run(path: Path, *options: str) -> tuple[str, dict]:
    command = [sys.executable, SCRIPT, "--spectra", "16", "--peers", "4", "--repeats", "1", "--json", path, *options]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[str, dict]:
    return _run(tmp_path_factory.mktemp("benchmark") / "table.json")


@pytest.fixture(scope="module")
def rows(whole) -> dict[str, dict]:
    return {row["name"]: row for row in whole[1]["rows"]}


def test_names_are_unique_and_every_group_is_there(whole):
    names = [row["name"] for row in whole[1]["rows"]]
    assert len(set(names)) == len(names)
    assert {row["group"] for row in whole[1]["rows"]} == {"read", "resample", "normalize", "fit", "label", "memory"}


def test_figures_are_finite_and_positive(rows):
    assert set(RATES) | set(SHARES) <= set(rows)
    for name, row in rows.items():
        assert math.isfinite(row["value"]), name
        # Agreement can be perfect, and no fit need be deeper than scipy's.
        assert row["value"] > 0 or (name not in RATES and row["unit"] in ("of flux", "share")), name
        assert row["meaning"], name
        assert row["wall"] is None or row["wall"] > 0, name
    for name in SHARES:
        assert 0 <= rows[name]["value"] <= 1, name


def test_ratios_are_there_for_every_peer(rows):
    ratios = {name for name, row in rows.items() if row["unit"] == "×"}
    peers = ("The_Payne", "curve_fit", "best scipy")
    assert ratios == {"× astropy", "× spline", "× dense"} | {f"{p}× {q}" for p in ("", "pair ") for q in peers}


def test_peers_compute_the_same(rows):
    # A peer that computed something else would make its ratio worthless.
    assert rows["identical"]["value"] == 1
    assert rows["rms"]["value"] < 1e-3
    assert rows["deviation"]["value"] < 1e-5
    assert rows["fit, median"]["value"] < 0.05
    assert rows["best scipy, median"]["value"] < 0.05
    assert rows["as deep as scipy"]["value"] >= 0.5


def test_table_shows_every_row(whole):
    lines = whole[0].splitlines()[3:]
    assert len(lines) == len(whole[1]["rows"])
    assert all(row["name"] in line for row, line in zip(whole[1]["rows"], lines, strict=True))


def test_only(tmp_path):
    _, table = _run(tmp_path / "one.json", "--only", "resample")
    assert {row["group"] for row in table["rows"]} == {"resample"}
    assert table["environment"]["spectra"] == 16
