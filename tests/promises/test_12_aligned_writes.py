"""Promise 12: a block that straddles shards is refused; neighbors that race lose nothing."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from hotdask.errors import RunError
from hotdask.schema import CUBE, CUBE_COORDINATES
from hotdask.store.cube import Layout, create_cube, open_cube, read_partition, write_rows


def rows_of(start: int, stop: int) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    row = np.arange(start, stop)
    pixels = {v.name: np.repeat(row[:, None], 3909, 1).astype(v.dtype) for v in CUBE}
    return pixels, pd.DataFrame({v.name: row for v in CUBE_COORDINATES})


@pytest.mark.parametrize(("start", "stop"), [(1, 17), (15, 31), (0, 32), (0, 15), (16, 36), (32, 48), (48, 52)])
def test_a_block_that_is_not_one_shard_is_refused(tmp_path, start: int, stop: int) -> None:
    """Two batches: shards hold rows 0-15, 16-19, and 32-35."""
    path = tmp_path / "cube.zarr"
    create_cube(path, Layout(16, (20, 4)))
    for first, last in ((0, 16), (16, 20), (32, 36)):
        write_rows(path, first, *rows_of(first, last))
    with pytest.raises(RunError, match="refused to write"):
        write_rows(path, start, *rows_of(start, stop))
    assert [read_partition(path, p)["mjd"].tolist() for p in range(3)] == [
        list(range(16)),
        list(range(16, 20)),
        list(range(32, 36)),
    ]


def test_two_processes_in_neighboring_partitions_lose_nothing(tmp_path):
    n, size = 128, 16
    path = tmp_path / "race.zarr"
    create_cube(path, Layout(size, (n,)))
    code = (
        "import os, sys\n"
        "import numpy as np, pandas as pd\n"
        "from hotdask.schema import CUBE, CUBE_COORDINATES\n"
        "from hotdask.store.cube import write_partition\n"
        "os.fsync = lambda handle: None\n"
        "for p in map(int, sys.argv[2]):\n"
        "    row = np.arange(p * 16, p * 16 + 16)\n"
        "    pixels = {v.name: np.repeat(row[:, None], 3909, 1).astype(v.dtype) for v in CUBE}\n"
        "    write_partition(sys.argv[1], p, pixels, pd.DataFrame({v.name: row for v in CUBE_COORDINATES}))\n"
    )
    # Evens against odds, then, at different times, odds against evens: neighbors race, and each is written twice.
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), order]) for order in ("02461357", "13570246")]
    assert [w.wait() for w in writers] == [0, 0]
    cube = open_cube(path).load()
    rows = np.arange(n)
    for v in CUBE:
        np.testing.assert_array_equal(cube[v.name], np.repeat(rows[:, None], 3909, 1).astype(v.dtype))
    for v in CUBE_COORDINATES:
        np.testing.assert_array_equal(cube[v.name], rows)
    assert list(path.rglob(".*")) == []
