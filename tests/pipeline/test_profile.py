"""What a run cost: the report is there, the kernels add up, and the catalog does not notice."""

import json
import re
from pathlib import Path

import pytest
from distributed import Client

from hotdask.pipeline.execute import run
from hotdask.pipeline.profile import FOLDER, KERNELS, REPORT, Step, describe, sum_kernels
from hotdask.store.parquet import list_parts
from hotdask.store.receipts import Receipt, list_receipts
from hotdask.timing import OUTSIDE


@pytest.fixture(scope="module")
def profiled_run(client: Client, settings_for, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    settings = settings_for(tmp_path_factory.mktemp("profiled") / "RUN")
    lines: list[str] = []
    run(settings, until="catalog", client=client, profile=True, echo=lines.append)
    return Path(settings.out), lines


def test_the_catalog_is_the_same_with_and_without(profiled_run, finished) -> None:
    parts = [{p.name: p.read_bytes() for p in list_parts(f / "catalog")} for f in (profiled_run[0], finished.folder)]
    assert parts[0] == parts[1]
    assert not (finished.folder / FOLDER).exists()


def test_the_report_opens_without_a_network(profiled_run) -> None:
    page = (profiled_run[0] / FOLDER / REPORT).read_text()
    assert "Bokeh" in page
    assert not re.search(r'<script[^>]+src=|<link[^>]+"stylesheet"', page)


def test_kernels_are_those_of_the_receipts(profiled_run) -> None:
    folder, lines = profiled_run
    steps = {s["name"]: s for s in json.loads((folder / FOLDER / KERNELS).read_text())["steps"]}
    assert list(steps) == ["ingest", "fit", "catalog"]
    for step, tasks in (("ingest", ("stage", "ingest")), ("fit", ("fit",)), ("catalog", ())):
        receipts = [r for task in tasks for r in list_receipts(folder, task).values()]
        assert steps[step]["tasks"] == len(receipts)
        assert sum(k["wall"] for k in steps[step]["kernels"]) == pytest.approx(
            sum(r.extra["seconds"] for r in receipts), abs=0.001 * len(receipts)
        )
        assert steps[step]["workers"] > 0
        # A worker with torch and pandas loaded, and well below its limit.
        assert 100 < steps[step]["memory"] < 4096
    spectra = {(k["task"], k["name"]): k["spectra"] for s in steps.values() for k in s["kernels"]}
    assert spectra["stage", "read files"] == 252
    assert spectra["ingest", "write cube"] == spectra["fit", "read cube"] == 240
    # What has no name is lost to whoever looks for time.
    assert steps["fit"]["outside_kernels"] < 0.15
    assert 0 < steps["fit"]["busy"] <= 1.02
    table = next(line for line in lines if line.startswith("task"))
    assert all(name in table for name in ("read files", "write cube", "write fits", OUTSIDE))


def test_sums_and_shares() -> None:
    receipts = [
        Receipt("stage", 0, "", 10, {}, {"kernels": [[OUTSIDE, 0.5, 1.0], ["read files", 1.5, 3.0]]}),
        Receipt("ingest", 0, "", 30, {}, {"kernels": [[OUTSIDE, 0.0, 0.0], ["gather", 6.0, 2.0]]}),
        Receipt("stage", 1, "", 20, {}, {"kernels": [[OUTSIDE, 0.5, 1.0], ["read files", 1.5, 1.0]]}),
    ]
    kernels = sum_kernels(receipts)
    found = [(k.task, k.name, k.spectra, k.cpu, k.wall) for k in kernels]
    assert found == [
        ("stage", "read files", 30, 3.0, 4.0),
        ("stage", OUTSIDE, 30, 1.0, 2.0),
        ("ingest", "gather", 30, 6.0, 2.0),
        ("ingest", OUTSIDE, 30, 0.0, 0.0),
    ]
    assert kernels[0].each == pytest.approx(1e5)
    step = Step("ingest", 8.0, 2, 12.0, 1.0, 800.0, 3, kernels)
    assert (step.busy, step.outside) == (0.5, 0.1)
    assert "50% of it in tasks, 10.0% of their CPU" in describe([step])
    without = Step("catalog", 8.0, 2, 12.0, 1.0, 800.0, 0, ())
    assert (without.busy, without.outside) == (None, None)
