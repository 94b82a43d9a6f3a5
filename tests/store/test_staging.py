"""Staged parts against numpy: any rows of any parts, in any order."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotdask.errors import RunError
from hotdask.readers import lamost
from hotdask.schema import CUBE, REJECTS, SPECTRA, empty_frame
from hotdask.store.staging import (
    ROW,
    STAGED_INDEX,
    STAGED_PART,
    clear_staging,
    gather,
    read_staged_meta,
    read_staged_rejects,
    staged_path,
    write_staged,
)

SIZES = (5, 0, 1, 7)


def make_block(n: int, seed: int, **carried) -> lamost.Block:
    rng = np.random.default_rng(seed)
    flux, ivar = rng.standard_normal((2, n, 3909), dtype=np.float32)
    andmask, ormask = rng.integers(0, 2**16, (2, n, 3909), dtype=np.uint16)
    meta = empty_frame(SPECTRA).reindex(range(n))
    meta["specid"] = [f"{seed}-{i}" for i in range(n)]
    for name in ("obsid", "mjd", "lmjd", "spid", "fiberid", "n_good"):
        meta[name] = np.arange(n) + seed
    meta["ra"] = rng.uniform(0, 360, n)
    return lamost.Block(flux=flux, ivar=ivar, andmask=andmask, ormask=ormask, meta=meta.assign(**carried))


def make_rejects(n: int) -> pd.DataFrame:
    return pd.DataFrame({c.name: [f"{c.name}{i}" for i in range(n)] for c in REJECTS})


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    blocks = [make_block(n, seed) for seed, n in enumerate(SIZES)]
    for part, block in enumerate(blocks):
        write_staged(run, part, block, make_rejects(part))
    return run, blocks


_rows = st.sampled_from([(p, i) for p, n in enumerate(SIZES) for i in range(n)])


@settings(max_examples=40, deadline=None)
@given(wanted=st.lists(_rows, max_size=20))
def test_gather_is_fancy_indexing(staged, wanted):
    run, blocks = staged
    parts, indices = np.array(wanted, dtype=int).reshape(-1, 2).T
    found = gather(run, parts, indices)
    start = np.cumsum([0, *SIZES])
    assert list(found) == [v.name for v in CUBE]
    for v in CUBE:
        whole = np.concatenate([getattr(b, v.name) for b in blocks])
        assert found[v.name].dtype == v.dtype
        np.testing.assert_array_equal(found[v.name], whole[start[parts] + indices])


@pytest.mark.parametrize(("part", "index"), [(0, 5), (0, -1), (1, 0), (2, 1)])
def test_rows_that_do_not_exist(staged, part, index):
    run, _ = staged
    with pytest.raises(RunError, match=f"part-0000{part}.npy: no row {index}"):
        gather(run, np.array([0, part]), np.array([0, index]))


def test_unequal_lengths_are_refused(staged):
    with pytest.raises(RunError, match="give one row number"):
        gather(staged[0], np.array([0, 0]), np.array([0]))


def test_only_wanted_rows_are_read(staged, monkeypatch):
    run, _ = staged
    modes = []
    real = np.load
    monkeypatch.setattr(np, "load", lambda *a, **k: (modes.append(k["mmap_mode"]), real(*a, **k))[1])
    gather(run, np.array([3, 0, 3]), np.array([6, 1, 0]))
    assert modes == ["r", "r"]


def test_pixels_are_plain_numpy(staged):
    run, blocks = staged
    rows = np.load(staged_path(run, 3, "npy"), allow_pickle=False)
    assert rows.dtype == ROW
    assert rows.dtype.itemsize == 3909 * 12 + 4
    np.testing.assert_array_equal(rows["ivar"], blocks[3].ivar)


def test_meta_knows_where_its_pixels_are(staged):
    run, blocks = staged
    meta = read_staged_meta(run, [3, 0, 1])
    assert list(meta.columns) == [*(c.name for c in SPECTRA), STAGED_PART, STAGED_INDEX]
    assert meta["specid"].tolist() == [*blocks[3].meta["specid"], *blocks[0].meta["specid"]]
    assert meta["ra"].tolist() == [*blocks[3].meta["ra"], *blocks[0].meta["ra"]]
    assert meta[STAGED_PART].tolist() == [3] * 7 + [0] * 5
    assert meta[STAGED_INDEX].tolist() == [*range(7), *range(5)]
    found = gather(run, meta[STAGED_PART].to_numpy(), meta[STAGED_INDEX].to_numpy())
    np.testing.assert_array_equal(found["flux"], np.concatenate([blocks[3].flux, blocks[0].flux]))


def test_rejects(staged):
    run, _ = staged
    rejects = read_staged_rejects(run, [3, 1])
    pd.testing.assert_frame_equal(
        rejects, pd.concat([make_rejects(3), make_rejects(1)], ignore_index=True).astype("str")
    )


def test_no_parts(tmp_path):
    assert read_staged_meta(tmp_path, []).dtypes.equals(
        empty_frame(SPECTRA).assign(**{STAGED_PART: np.int64([]), STAGED_INDEX: np.int64([])}).dtypes
    )
    assert read_staged_rejects(tmp_path, []).columns.tolist() == [c.name for c in REJECTS]
    assert gather(tmp_path, np.array([], int), np.array([], int))["flux"].shape == (0, 3909)


def test_carried_columns_survive_a_part_that_has_none_of_them(tmp_path):
    write_staged(tmp_path, 0, make_block(2, 0, gaia=[1, 2], note=[None, None]), make_rejects(0))
    write_staged(tmp_path, 1, make_block(1, 1, gaia=[2**60], note=["é"]), make_rejects(0))
    meta = read_staged_meta(tmp_path, [0, 1])
    assert meta["gaia"].tolist() == [1, 2, 2**60]
    assert meta["note"].isna().tolist() == [True, True, False]
    assert meta["note"].iloc[2] == "é"


def test_carried_columns_of_two_types_are_refused(tmp_path):
    write_staged(tmp_path, 0, make_block(1, 0, note=[1.5]), make_rejects(0))
    write_staged(tmp_path, 1, make_block(1, 1, note=["text"]), make_rejects(0))
    with pytest.raises(RunError, match=r"disagree about a carried column .*note"):
        read_staged_meta(tmp_path, [0, 1])


def test_same_block_same_bytes(tmp_path):
    first = [p.read_bytes() for p in write_staged(tmp_path, 0, make_block(2, 0), make_rejects(1))]
    again = write_staged(tmp_path, 0, make_block(2, 0), make_rejects(1))
    assert [p.read_bytes() for p in again] == first
    assert sorted(p.name for p in (tmp_path / "staging").iterdir()) == [
        "part-00000.npy",
        "part-00000.parquet",
        "part-00000.rejects.parquet",
    ]


def test_wrong_shape_is_refused_before_anything_is_written(tmp_path):
    block = SimpleNamespace(**vars(make_block(2, 0)))
    block.ivar = block.ivar[:1]
    with pytest.raises(RunError, match=r"ivar has shape \(1, 3909\)"):
        write_staged(tmp_path, 0, block, make_rejects(0))
    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize("size", [0, 64, 200, -1])
def test_damaged_pixels_are_named(tmp_path, size):
    path = write_staged(tmp_path, 0, make_block(2, 0), make_rejects(0))[0]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RunError, match=r"part-00000\.npy.* ingest again"):
        gather(tmp_path, np.array([0]), np.array([1]))


def test_a_bit_that_flips_is_noticed_and_neighbors_are_not_blamed(tmp_path):
    block = make_block(3, 0)
    path = write_staged(tmp_path, 0, block, make_rejects(0))[0]
    data = bytearray(path.read_bytes())
    data[len(data) - ROW.itemsize - 1000] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"part-00000\.npy: row 1 is not what was written"):
        gather(tmp_path, np.array([0, 0, 0]), np.array([2, 1, 0]))
    np.testing.assert_array_equal(gather(tmp_path, np.array([0, 0]), np.array([0, 2]))["flux"], block.flux[[0, 2]])


def test_pickles_are_refused(tmp_path):
    path = staged_path(tmp_path, 0, "npy")
    path.parent.mkdir()
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(RunError, match="damaged"):
        gather(tmp_path, np.array([0]), np.array([0]))


def test_damaged_table_is_named(tmp_path):
    path = write_staged(tmp_path, 0, make_block(2, 0), make_rejects(0))[1]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RunError, match=r"part-00000\.parquet: the file is damaged"):
        read_staged_meta(tmp_path, [0])
    path.unlink()
    with pytest.raises(RunError, match=r"part-00000\.parquet: the file is missing"):
        read_staged_meta(tmp_path, [0])


def test_killed_writer_leaves_no_part(tmp_path):
    code = (
        "import os, signal, sys\n"
        "import numpy as np\n"
        "from types import SimpleNamespace\n"
        "from hotdask.schema import SPECTRA, REJECTS, empty_frame\n"
        "from hotdask.store import staging\n"
        "pixels = np.zeros((0, 3909))\n"
        "block = SimpleNamespace(flux=pixels, ivar=pixels, andmask=pixels, ormask=pixels, meta=empty_frame(SPECTRA))\n"
        "def die(handle, *args, **kw):\n"
        "    handle.write(b'half'); handle.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "np.lib.format.write_array_header_1_0 = die\n"
        "staging.write_staged(sys.argv[1], 0, block, empty_frame(REJECTS))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    left = list((tmp_path / "staging").iterdir())
    assert [p.name.startswith(".part-00000.npy.") for p in left] == [True]
    clear_staging(tmp_path)
    clear_staging(tmp_path)
    assert list(tmp_path.iterdir()) == []
