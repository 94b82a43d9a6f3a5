"""Promise 13: a plan that cannot fit is refused before it starts, saying what would."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributed import Client, LocalCluster

from hotdask.errors import RunError
from hotdask.pipeline import estimate
from hotdask.pipeline.execute import run


def quiet(line: str) -> None:
    """An echo that says nothing."""


def test_a_tiny_limit_is_refused_and_the_advice_fits(survey, settings_for: Callable, tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "RUN", cube__partition_size=20000, cluster__workers=1, report__truth=None)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="2GiB", dashboard_address="127.0.0.1:0", host="127.0.0.1"
        ) as cluster,
        Client(cluster, set_as_default=False) as small,
    ):
        with pytest.raises(
            RunError, match=r"partition of 20000 spectra needs .* of a worker.*limit of 2.00 GiB"
        ) as caught:
            run(settings, client=small, echo=quiet)
        assert not (tmp_path / "RUN" / "staging").exists()
        assert not (tmp_path / "RUN" / "spectra.zarr").exists()
        fits = int(re.search(r"cube\.partition_size = (\d+) would fit", str(caught.value))[1])
        estimate.refuse_on(small, settings_for(tmp_path, cube__partition_size=fits), 10, here=True)
        with pytest.raises(RunError, match="would fit"):
            estimate.refuse_on(small, settings_for(tmp_path, cube__partition_size=fits + 1), 10, here=True)
    limit = re.search(r'cluster\.memory_limit = "(.*)"', str(caught.value))[1]
    enough = [int(estimate.parse_bytes(limit))]
    estimate.refuse(settings, 10, limits=enough, here=True)


def test_more_workers_than_memory_and_more_files_than_disk(
    settings_for: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path / "not" / "yet" / "RUN", cube__partition_size=1024)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=8 * 2**30))
    estimate.refuse(settings, 10, limits=[4 * 2**30] * 8, here=True)
    with pytest.raises(RunError, match=r"9 workers need .*, this machine has 8.00 GiB; cluster.workers = 8 would fit"):
        estimate.refuse(settings, 10, limits=[4 * 2**30] * 9, here=True)
    # Workers elsewhere have memory of their own.
    estimate.refuse(settings, 10, limits=[4 * 2**30] * 9, here=False)
    with pytest.raises(RunError, match=r"10000000000 spectra need at least .* of disk, .* are free; make room"):
        estimate.refuse(settings, 10**10, limits=[], here=True)


def test_an_estimate_is_near_what_it_takes(survey, finished, settings_for: Callable, tmp_path: Path) -> None:
    """Disk exactly enough to plan with; memory as a worker of the finished run has used it."""
    lines: list[str] = []
    found = estimate.estimate(settings_for(tmp_path / "RUN"), echo=lines.append)
    assert (found.files, found.partitions) == (252, 8)
    assert "252 files in 8 partitions" in lines[0]
    folder = finished.folder
    kept = ("spectra.zarr", "spectra", "fits", "catalog_versions", "plan", "inputs", "rejects", "receipts")
    used = sum(p.stat().st_size for name in kept for p in (folder / name).rglob("*") if p.is_file())
    assert 0.5 < found.disk / used < 2
    assert found.peak > found.disk
    assert 0.0005 < found.cpu < 0.5


def test_workers_do_not_spill(client: Client, finished) -> None:
    """Results are receipts: nothing is kept on a worker that could go to its disk."""

    def spilled(dask_worker) -> int:
        return len(list(Path(dask_worker.local_directory).rglob("storage/*")))

    assert set(client.run(spilled).values()) == {0}
