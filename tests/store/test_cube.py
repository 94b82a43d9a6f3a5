"""The cube on disk: aligned writes only, nothing lost, nothing silently wrong."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hotdask.errors import RunError
from hotdask.schema import CUBE, CUBE_COORDINATES, FORMAT_VERSION, SPECTRA, empty_frame
from hotdask.store.cube import (
    Layout,
    create_cube,
    open_cube,
    partition_files,
    read_layout,
    read_partition,
    read_sidecar,
    write_partition,
    write_rows,
    write_sidecar,
)
from hotdask.store.receipts import Receipt, check_receipt, hash_files
from hotdask.windows import observed_wavelength

pytestmark = pytest.mark.usefixtures("fast_disk")
N, SIZE = 40, 16
LAYOUT = Layout(SIZE, (N,))


def make_rows(start: int, stop: int) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Arrays whose every value says which row and pixel it is, the same for any cut into partitions."""
    row, pixel = np.arange(start, stop)[:, None], np.arange(3909)
    value = row * 3909 + pixel
    arrays = {
        "flux": value.astype(np.float32),
        "ivar": np.where(pixel % 7 == 0, 0, 1 / (1 + abs(value))).astype(np.float32),
        "andmask": (value % 65521).astype(np.uint16),
        "ormask": np.zeros(value.shape, np.uint16),
    }
    meta = empty_frame(SPECTRA).reindex(range(stop - start))
    for v in CUBE_COORDINATES:
        meta[v.name] = (np.arange(start, stop) * (0.5 if v.dtype[0] == "f" else 1)).astype(v.dtype)
    meta["specid"] = [f"s{i}" for i in range(start, stop)]
    return arrays, meta


def fill(path: Path, partitions=range(3)) -> None:
    for p in partitions:
        write_partition(path, p, *make_rows(*LAYOUT.bounds(p)))


@pytest.fixture
def fast_disk(monkeypatch):
    # What fsync is for is tested in test_atomic.py.
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def cube(tmp_path):
    create_cube(tmp_path / "cube.zarr", LAYOUT)
    return tmp_path / "cube.zarr"


@pytest.fixture
def full(cube):
    fill(cube)
    return cube


@given(batches=st.lists(st.integers(0, 5000), min_size=1, max_size=5), size=st.integers(1, 3000))
def test_partitions_cover_each_row_once(batches, size):
    layout = Layout(size, tuple(batches))
    bounds = [layout.bounds(p) for p in range(len(layout.counts))]
    assert [start for start, _ in bounds] == [p * size for p in range(len(bounds))]
    assert all(0 < stop - start <= size for start, stop in bounds)
    assert sum(layout.counts) == layout.n_spectrum == sum(batches) == len(layout.rows())
    assert layout.n_row == max((stop for _, stop in bounds), default=0)
    # No partition holds spectra of two batches.
    for batch, n in enumerate(batches):
        mine = layout.counts[layout.first(batch) : layout.first(batch + 1)]
        assert sum(mine) == n


@pytest.mark.parametrize("partition", [-1, 3])
def test_no_such_partition(full, partition):
    with pytest.raises(RunError, match=f"no partition {partition}: the cube has 3"):
        read_partition(full, partition)


def test_round_trip(full):
    for p in range(3):
        arrays, meta = make_rows(*LAYOUT.bounds(p))
        back = read_partition(full, p)
        assert list(back) == [v.name for v in (*CUBE, *CUBE_COORDINATES)]
        for v in CUBE:
            assert back[v.name].dtype == v.dtype
            np.testing.assert_array_equal(back[v.name], arrays[v.name])
        for v in CUBE_COORDINATES:
            assert back[v.name].dtype == v.dtype
            np.testing.assert_array_equal(back[v.name], meta[v.name])
    assert list(read_partition(full, 0, coordinates=False)) == [v.name for v in CUBE]


def test_xarray_sees_the_same_cube(full):
    arrays, meta = make_rows(0, N)
    cube = open_cube(full)
    assert list(cube.data_vars) == [v.name for v in CUBE]
    assert set(cube.coords) == {"wavelength", *(v.name for v in CUBE_COORDINATES)}
    assert cube.attrs["hotdask_format_version"] == FORMAT_VERSION
    for v in CUBE:
        assert cube[v.name].dims == v.dims
        # One Dask chunk a shard, though the shard has chunks inside.
        assert cube[v.name].chunks == ((16, 16, 8), (3909,))
        np.testing.assert_array_equal(cube[v.name].values, arrays[v.name])
    for v in (*CUBE, *CUBE_COORDINATES):
        assert cube[v.name].attrs == {"units": v.unit, "long_name": v.doc}
        assert cube[v.name].dtype == v.dtype
    for v in CUBE_COORDINATES:
        np.testing.assert_array_equal(cube[v.name].values, meta[v.name])
    np.testing.assert_array_equal(cube["wavelength"].values, observed_wavelength())
    assert cube["wavelength"].attrs["units"] == "Angstrom"
    assert cube["wavelength"].attrs["medium"] == "vacuum"
    # By xarray's own defaults too: a unit of "d" must not turn dates into time spans.
    plain = xr.open_zarr(full)
    xr.testing.assert_identical(plain[list(cube.data_vars)].load(), cube.load())


def test_a_shard_is_a_partition_and_has_a_checksum(full):
    for v in CUBE:
        array = zarr.open_array(full / v.name, mode="r")
        assert array.metadata.zarr_format == 3
        assert array.shards == (SIZE, 3909)
        assert "crc32c" in str([c.to_dict() for c in array.metadata.codecs])
    assert zarr.open_array(full / "flux", mode="r").nchunks_initialized == 3


@pytest.mark.parametrize(("size", "inner"), [(1024, 128), (16, 16), (1000, 125), (1021, 1021), (192, 96), (65536, 128)])
def test_inner_chunks_divide_the_shard(tmp_path, size, inner):
    create_cube(tmp_path / "c.zarr", Layout(size, (5,)))
    array = zarr.open_array(tmp_path / "c.zarr" / "flux", mode="r")
    assert (array.shards, array.chunks) == ((size, 3909), (inner, 3909))


def test_template_of_the_whole_survey_is_small(tmp_path):
    create_cube(tmp_path / "c.zarr", Layout(1024, (1_163_410,)))
    assert sum(p.stat().st_size for p in (tmp_path / "c.zarr").rglob("*") if p.is_file()) < 200_000
    assert open_cube(tmp_path / "c.zarr")["flux"].shape == (1_163_410, 3909)


def test_unwritten_rows_have_no_weight_and_are_refused(cube):
    fill(cube, [0, 2])
    lazy = open_cube(cube).isel(spectrum=slice(16, 32)).load()
    assert np.isnan(lazy["flux"]).all()
    assert (lazy["ivar"] == 0).all()
    assert np.isnan(lazy["ra"]).all()
    assert (lazy["obsid"] == -1).all()
    with pytest.raises(RunError, match="partition 1 was never written"):
        read_partition(cube, 1)
    read_partition(cube, 2)


@pytest.mark.parametrize(
    ("start", "stop"),
    [(1, 17), (15, 31), (8, 24), (0, 15), (0, 17), (0, 32), (16, 40), (32, 39), (32, 48), (-16, 0), (48, 64)],
)
def test_unaligned_rows_are_refused_and_change_nothing(full, start, stop):
    before = {p: p.read_bytes() for p in full.rglob("*") if p.is_file()}
    arrays, meta = make_rows(start, stop)
    with pytest.raises(RunError, match="refused to write"):
        write_rows(full, start, {k: v + 1 for k, v in arrays.items()}, meta)
    assert {p: p.read_bytes() for p in full.rglob("*") if p.is_file()} == before


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    path = tmp_path_factory.mktemp("empty") / "cube.zarr"
    create_cube(path, Layout(SIZE, (N,)))
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(-50, 100), rows=st.integers(0, 50))
@example(0, 16)
@example(16, 16)
@example(32, 8)
def test_only_the_three_partitions_pass_the_check(empty, start, rows):
    aligned = (start, rows) in {(0, 16), (16, 16), (32, 8)}
    # Past the check, the missing arrays are found.
    with pytest.raises(RunError, match="'flux'.* missing" if aligned else "refused to write"):
        write_rows(empty, start, {}, pd.DataFrame(index=range(rows)))


def test_wrong_arrays_are_refused_before_the_first_is_written(cube):
    arrays, meta = make_rows(0, 16)
    bad = [
        ("ormask: shape", arrays | {"ormask": arrays["ormask"][:, 1:]}, meta),
        ("ormask: int64, should be uint16", arrays | {"ormask": arrays["ormask"].astype(int)}, meta),
        (r"\['flux'\] missing", {k: v for k, v in arrays.items() if k != "flux"}, meta),
        (r"\['n_good'\] missing", arrays, meta.drop(columns="n_good")),
    ]
    for message, pixels, table in bad:
        with pytest.raises(RunError, match=message):
            write_partition(cube, 0, pixels, table)
    assert not any(p.exists() for p in partition_files(cube, 0))


def test_partition_files_are_what_a_write_makes(cube):
    before = {p for p in cube.rglob("*") if p.is_file()}
    fill(cube, [1])
    made = {p for p in cube.rglob("*") if p.is_file()} - before
    # All zero as it is, ormask has its file: a receipt can list it.
    assert made == set(partition_files(cube, 1))
    assert cube / "ormask" / "c" / "1" / "0" in made


@pytest.mark.parametrize("partition", [0, 2])
def test_writing_twice_gives_the_same_bytes(full, partition):
    before = [p.read_bytes() for p in partition_files(full, partition)]
    fill(full, [partition])
    assert [p.read_bytes() for p in partition_files(full, partition)] == before


@pytest.mark.parametrize("partition", [0, 2])
def test_damaged_partition_can_be_written_again(full, partition):
    good = [p.read_bytes() for p in partition_files(full, partition)]
    for i, path in enumerate(partition_files(full, partition)):
        path.write_bytes([b"", good[i][:-1], bytes(len(good[i])), good[i][::-1]][i % 4])
    fill(full, [partition])
    assert [p.read_bytes() for p in partition_files(full, partition)] == good


@pytest.mark.parametrize("name", ["flux", "ivar", "andmask", "ormask", "ra", "obsid"])
def test_flipped_byte_is_found_on_reading_and_by_the_receipt(full, name):
    run = full.parent
    receipt = Receipt("cube", 1, "f", SIZE, hash_files(run, partition_files(full, 1)))
    assert check_receipt(run, receipt, "f") is None
    (path,) = (p for p in partition_files(full, 1) if p.relative_to(full).parts[0] == name)
    good = path.read_bytes()
    # The data lie at the front of a shard, its index at the end.
    for i in (0, len(good) // 4, len(good) - 1):
        bad = bytearray(good)
        bad[i] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(RunError, match=f"{name}.*partition 1 is damaged"):
            read_partition(full, 1)
        assert f"{name}/c/1" in check_receipt(run, receipt, "f")
    path.write_bytes(good)
    read_partition(full, 1)
    read_partition(full, 0)


@pytest.mark.parametrize("left", [0, 1, 100])
def test_truncated_shard_is_found(full, left):
    path = partition_files(full, 0)[0]
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(RunError, match="partition 0 is damaged"):
        read_partition(full, 0)


def test_killed_creation_leaves_no_cube(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hotdask.store.cube.observed_wavelength", stop)
    with pytest.raises(KeyboardInterrupt):
        create_cube(tmp_path / "c.zarr", Layout(SIZE, (N,)))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunError, match="there is no cube"):
        open_cube(tmp_path / "c.zarr")


def test_creating_again_keeps_what_is_there_and_refuses_another_shape(full):
    create_cube(full, Layout(SIZE, (N,)))
    read_partition(full, 2)
    for n, size in ((N + 1, SIZE), (N, 20)):
        with pytest.raises(RunError, match=r"there is a cube already, of \(40,\) spectra in partitions of 16"):
            create_cube(full, Layout(size, (n,)))
    read_partition(full, 2)
    assert [p.name for p in full.parent.iterdir()] == ["cube.zarr"]


def test_a_grown_cube_keeps_its_spectra_and_shows_no_gap(full):
    before = {p: p.read_bytes() for p in full.rglob("c/*") if p.is_file()}
    create_cube(full, Layout(SIZE, (N, 20)))
    assert read_layout(full).bounds(3) == (48, 64)
    assert {p: p.read_bytes() for p in before} == before
    with pytest.raises(RunError, match="partition 3 was never written"):
        read_partition(full, 3)
    arrays, meta = make_rows(48, 68)
    for p, rows in ((3, slice(0, 16)), (4, slice(16, 20))):
        write_partition(full, p, {k: v[rows] for k, v in arrays.items()}, meta[rows])
    with pytest.raises(RunError, match="refused to write 16 rows"):
        write_rows(full, 32, *make_rows(32, 48))
    cube = open_cube(full)
    assert cube.sizes["spectrum"] == 60
    np.testing.assert_array_equal(cube["mjd"].values, [*range(40), *range(48, 68)])
    np.testing.assert_array_equal(cube["flux"].values[40:], arrays["flux"])
    # Who opens it otherwise sees rows without a value.
    plain = xr.open_zarr(full)
    assert plain.sizes["spectrum"] == 68
    assert np.isnan(plain["flux"][40:48].values).all()
    assert (plain["ivar"][40:48].values == 0).all()
    with pytest.raises(RunError, match="there is a cube already"):
        create_cube(full, Layout(SIZE, (N,)))


def test_a_cube_of_nothing_is_refused(tmp_path):
    with pytest.raises(RunError, match="0 spectra cannot be made"):
        create_cube(tmp_path / "c.zarr", Layout(SIZE, (0,)))


def test_other_format_version_is_refused(full):
    zarr.open_group(full, mode="r+").attrs["hotdask_format_version"] = FORMAT_VERSION + 1
    with pytest.raises(RunError, match=f"format version {FORMAT_VERSION + 1}, this hotdask reads {FORMAT_VERSION}"):
        open_cube(full)


def test_sidecar_keeps_strings_types_order_and_carried_columns(tmp_path):
    _, meta = make_rows(16, 32)
    meta["rv_err"] = np.nan
    meta["subclass"] = "B5é"
    meta["gaia"] = np.arange(16) + 2**60
    assert write_sidecar(tmp_path, 1, meta) == tmp_path / "spectra" / "part-00001.parquet"
    back = read_sidecar(tmp_path, 1)
    assert list(back.columns) == [*(c.name for c in SPECTRA), "gaia"]
    assert back.drop(columns="gaia").dtypes.equals(empty_frame(SPECTRA).dtypes)
    pd.testing.assert_frame_equal(back, meta, check_dtype=False)
    assert read_sidecar(tmp_path, 1, ["gaia"])["gaia"].tolist() == meta["gaia"].tolist()
    with pytest.raises(RunError, match=r"lacks the columns \['nope'\]"):
        read_sidecar(tmp_path, 1, ["nope"])
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "spectra"), back)
