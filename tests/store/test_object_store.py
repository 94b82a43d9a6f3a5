"""Cube and catalog on an object store: a real server of S3 on this machine."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from s3fs import S3FileSystem
from upath import UPath

import hotdask
from hotdask import config
from hotdask.errors import RunError
from hotdask.schema import CATALOG, CUBE, CUBE_COORDINATES, to_table
from hotdask.store.catalog import catalog_folder, is_sound, publish_catalog, read_provenance, write_catalog_part
from hotdask.store.claims import claim
from hotdask.store.cube import (
    Layout,
    create_cube,
    layout_files,
    open_cube,
    partition_files,
    read_layout,
    read_partition,
    write_partition,
    write_rows,
)
from hotdask.store.receipts import Receipt, check_receipt, hash_files, read_receipt, write_receipt

N, SIZE = 20, 16
LAYOUT = Layout(SIZE, (N,))
META = {"fingerprint": "cafe"}


@pytest.fixture
def url(s3) -> str:
    """A place of its own on the store."""
    return f"s3://survey/{uuid4().hex}"


def objects(url: str) -> dict[str, bytes]:
    """Everything below a URL, seen by another client than hotdask's."""
    files = S3FileSystem(skip_instance_cache=True)
    root = files._strip_protocol(url)
    return {key.removeprefix(f"{root}/"): data for key, data in files.cat(files.find(root)).items()}


# --- cube -----------------------------------------------------------------------------------------------------------


def make_rows(start: int, stop: int) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    row = np.arange(start, stop)
    pixels = {v.name: (row[:, None] * 3 + np.arange(3909) % 7).astype(v.dtype) for v in CUBE}
    return pixels, pd.DataFrame({v.name: row.astype(v.dtype) for v in CUBE_COORDINATES})


def fill(path: str | Path, partitions=range(2)) -> None:
    for p in partitions:
        write_partition(path, p, *make_rows(*LAYOUT.bounds(p)))


@pytest.fixture(scope="module")
def cube(s3):
    path = "s3://survey/RUN/spectra.zarr"
    create_cube(path, LAYOUT)
    fill(path)
    return path


def test_the_cube_is_the_same_as_on_a_disk(cube, tmp_path):
    local = tmp_path / "spectra.zarr"
    create_cube(local, LAYOUT)
    fill(local)
    assert objects(cube) == {p.relative_to(local).as_posix(): p.read_bytes() for p in local.rglob("*") if p.is_file()}
    here, there = read_partition(local, 1), read_partition(cube, 1)
    assert list(here) == list(there)
    for name, values in here.items():
        np.testing.assert_array_equal(there[name], values)
    lazy = open_cube(cube)
    assert lazy["flux"].chunks == ((16, 4), (3909,))
    # Here: workers of a cluster that happens to be there do not know the server.
    here = {"scheduler": "synchronous"}
    xr.testing.assert_identical(lazy.load(**here), open_cube(local).load(**here))
    xr.testing.assert_identical(xr.open_zarr(cube, consolidated=False).load(**here), lazy[list(lazy.data_vars)])


def test_unaligned_rows_are_refused_and_change_nothing(cube):
    before = objects(cube)
    for start, stop in ((1, 17), (0, 15), (0, 20), (16, 32), (32, 48), (-16, 0)):
        with pytest.raises(RunError, match="refused to write"):
            write_rows(cube, start, *make_rows(start, stop))
    assert objects(cube) == before


def test_the_receipt_finds_what_was_spoiled_and_a_second_writing_mends_it(cube, tmp_path):
    (tmp_path / "sidecar").write_bytes(b"1")
    flux, ra = partition_files(cube, 1)[:: len(partition_files(cube, 1)) - 1]
    files = hash_files(tmp_path, [tmp_path / "sidecar", layout_files(cube)[0], flux, ra])
    write_receipt(tmp_path, Receipt("ingest", 1, "f", SIZE, files))
    receipt = read_receipt(tmp_path, "ingest", 1)
    assert check_receipt(tmp_path, receipt, "f") is None
    good = flux.read_bytes()
    for bad in (good[:50] + bytes([good[50] ^ 1]) + good[51:], good[:100], b""):
        flux.write_bytes(bad)
        with pytest.raises(RunError, match="partition 1 is damaged"):
            read_partition(cube, 1, coordinates=False)
        assert "flux/c/1/0 changed after it was written" in check_receipt(tmp_path, receipt, "f")
    flux.unlink()
    with pytest.raises(RunError, match="partition 1 was never written"):
        read_partition(cube, 1, coordinates=False)
    assert f"{cube}/flux/c/1/0 cannot be read (" in check_receipt(tmp_path, receipt, "f")
    fill(cube, [1])
    assert check_receipt(tmp_path, receipt, "f") is None


def test_half_a_cube_is_none(url):
    cube = f"{url}/spectra.zarr"
    create_cube(cube, LAYOUT)
    create_cube(cube, LAYOUT)
    with pytest.raises(RunError, match=r"there is a cube already, of \(20,\) spectra"):
        create_cube(cube, Layout(SIZE, (N + 1,)))
    # Written last, so this is how a killed creation looks.
    UPath(f"{cube}/zarr.json").unlink()
    with pytest.raises(RunError, match="there is no cube"):
        open_cube(cube)
    create_cube(cube, Layout(SIZE, (N + 1,)))
    assert open_cube(cube)["flux"].shape == (N + 1, 3909)


def test_a_grown_cube_keeps_its_spectra_and_shows_no_gap(url):
    cube = f"{url}/spectra.zarr"
    create_cube(cube, LAYOUT)
    fill(cube)
    before = objects(cube)
    grown = Layout(SIZE, (N, 3))
    create_cube(cube, grown)
    write_partition(cube, 2, *make_rows(*grown.bounds(2)))
    after = objects(cube)
    changed = {name for name, data in before.items() if after[name] != data}
    assert {name.rpartition("/")[2] for name in changed} == {"zarr.json"}
    assert "wavelength/zarr.json" not in changed
    assert read_layout(cube) == grown
    np.testing.assert_array_equal(open_cube(cube)["mjd"].load(scheduler="synchronous"), [*range(N), *range(32, 35)])
    with pytest.raises(RunError, match="there is a cube already"):
        create_cube(cube, LAYOUT)


# --- catalog --------------------------------------------------------------------------------------------------------


def make_table(start: int, stop: int, generation: int = 0) -> pa.Table:
    frame = pd.DataFrame({c.name: np.zeros(stop - start) for c in CATALOG})
    for c in CATALOG:
        if pa.types.is_large_string(c.type):
            frame[c.name] = [f"{c.name}-{i}" for i in range(start, stop)]
        elif pa.types.is_boolean(c.type):
            frame[c.name] = True
    return to_table(frame.assign(teff=np.arange(start, stop) + 10000.0, obsid=generation), CATALOG)


def test_a_published_catalog_is_the_same_as_on_a_disk(url, tmp_path):
    (tmp_path / "settings.toml").write_text(f'[store]\ncatalog = "{url}"\n')
    tables = [make_table(0, 4), make_table(4, 10)]
    done = publish_catalog(tmp_path, tables, META, rows=10)
    local = publish_catalog(tmp_path / "local", tables, META, rows=10)
    assert done.files == local.files
    assert {p.name for p in tmp_path.iterdir()} == {"settings.toml", "local"}
    pointer = json.loads(objects(url)["current.json"])
    assert pointer == {"version": done.version, "rows": 10, "files": done.files, "fingerprint": "cafe", "before": []}
    assert objects(url).keys() == {"current.json", *(f"{done.version}/{name}" for name in done.files)}
    for where in (url, tmp_path):
        assert str(catalog_folder(where)) == f"{url}/{done.version}"
        assert read_provenance(where) == META
        assert is_sound(where, 10)
        assert not is_sound(where, 11)
        pd.testing.assert_frame_equal(hotdask.read_catalog(where), hotdask.read_catalog(tmp_path / "local"))
    some = {"columns": ["specid", "teff"], "filters": [("teff", ">=", 10003)]}
    assert hotdask.read_catalog(url, **some)["specid"].tolist() == [f"specid-{i}" for i in range(3, 10)]
    # pandas alone, if told the version.
    pd.testing.assert_frame_equal(pd.read_parquet(f"{url}/{done.version}"), hotdask.read_catalog(url))


def test_versions_come_and_go(url):
    with pytest.raises(RunError, match="no catalog is published yet"):
        hotdask.read_catalog(url)
    done = [publish_catalog(url, [make_table(0, 2, generation)], META) for generation in range(4)]
    assert [d.version[:5] for d in done] == ["v0001", "v0002", "v0003", "v0004"]
    assert {name.partition("/")[0] for name in objects(url)} == {"current.json", done[2].version, done[3].version}
    assert publish_catalog(url, [make_table(0, 2, 3)], META) == done[3]
    assert {name.partition("/")[0] for name in objects(url)} == {"current.json", done[2].version, done[3].version}


def test_a_publication_that_fails_leaves_what_was_there(url):
    publish_catalog(url, [make_table(0, 2)], META)
    before = objects(url)

    def write(folder):
        write_catalog_part(folder, 0, make_table(0, 3), META)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_catalog(url, write, META)
    with pytest.raises(RunError, match="3 rows, should have 4"):
        publish_catalog(url, [make_table(0, 3)], META, rows=4)
    assert objects(url) == before


def test_a_spoiled_catalog_is_unsound_and_published_again(url):
    tables = [make_table(0, 2), make_table(2, 4)]
    done = publish_catalog(url, tables, META)
    part = UPath(f"{url}/{done.version}/{next(iter(done.files))}")
    good = part.read_bytes()
    for spoil in (lambda: part.write_bytes(good[:99] + bytes([good[99] ^ 1]) + good[100:]), part.unlink):
        spoil()
        assert not is_sound(url, 4)
    again = publish_catalog(url, tables, META)
    assert (again.version[:5], again.files) == ("v0002", done.files)
    assert is_sound(url, 4)
    UPath(f"{url}/current.json").write_bytes(b'{"version"')
    assert not is_sound(url, 4)
    publish_catalog(url, tables, META)
    assert is_sound(url, 4)


def test_a_reader_sees_one_whole_version_while_two_publish(url, tmp_path):
    """One publisher is another process, one a thread of this."""
    code = (
        "import sys\n"
        "import pyarrow.parquet as pq\n"
        "from hotdask.store.catalog import publish_catalog\n"
        "print('ready', flush=True)\n"
        "for generation in (11, 12, 13):\n"
        "    publish_catalog(sys.argv[1], [pq.read_table(f'{sys.argv[2]}/{generation}-{i}') for i in (0, 1)], {})\n"
    )
    tables = {g: [make_table(0, 50, g), make_table(50, 100, g)] for g in (0, 1, 2, 3, 11, 12, 13)}
    for generation in (11, 12, 13):
        for i, table in enumerate(tables[generation]):
            pq.write_table(table, tmp_path / f"{generation}-{i}")
    publish_catalog(url, tables[0], {})
    other = subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "ready\n"

    def publish() -> None:
        for generation in (1, 2, 3):
            publish_catalog(url, tables[generation], {})
        other.communicate()

    thread = threading.Thread(target=publish)
    thread.start()
    seen = []
    while thread.is_alive():
        try:
            frame = hotdask.read_catalog(url, columns=["specid", "obsid"])
        except FileNotFoundError:
            # Two publications passed while this one was read.
            continue
        seen.append((len(frame), frame["specid"].nunique(), *frame["obsid"].unique()))
    thread.join()
    assert other.returncode == 0
    assert {s[:2] for s in seen} == {(100, 100)}
    assert {len(s) for s in seen} == {3}
    assert len(set(seen)) > 1
    assert is_sound(url, 100)


# --- whose a place is -----------------------------------------------------------------------------------------------


def test_a_place_belongs_to_one_run(url, tmp_path):
    store = config.Store(cube=f"{url}/spectra.zarr", catalog=f"{url}/catalog")
    runs = [tmp_path / name for name in "abc"]
    claim(runs[0], store)
    create_cube(store.cube, LAYOUT)
    claim(runs[0], store)
    runs[0].rename(tmp_path / "moved")
    claim(tmp_path / "moved", store)
    with pytest.raises(RunError, match=rf"spectra\.zarr belongs to another run \({runs[0]}\); give another URL"):
        claim(runs[1], store)
    with pytest.raises(RunError, match=r"catalog belongs to another run"):
        claim(runs[1], config.Store(catalog=store.catalog))
    publish_catalog(f"{url}/other", [make_table(0, 1)], META)
    with pytest.raises(RunError, match="something lies there that no run has made"):
        claim(runs[2], config.Store(catalog=f"{url}/other"))


def test_of_many_runs_that_claim_a_place_at_once_one_gets_it(url, tmp_path):
    barrier = threading.Barrier(6)
    said = []

    def try_claim(number: int) -> None:
        barrier.wait()
        try:
            said.append(claim(tmp_path / str(number), config.Store(catalog=url)))
        except RunError as error:
            said.append(str(error))

    threads = [threading.Thread(target=try_claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 6
    assert said.count(None) == 1
    assert all("belongs to another run" in text for text in said if text is not None)


def test_a_store_that_cannot_be_used_is_named(s3, tmp_path):
    with pytest.raises(RunError, match=r"s3://nowhere/catalog: cannot be used .*check the URL, that the bucket exists"):
        claim(tmp_path, config.Store(catalog="s3://nowhere/catalog"))
    with pytest.raises(RunError, match=r"nosuch://a/b: .*give a URL as s3://"):
        claim(tmp_path, config.Store(catalog="nosuch://a/b"))


def test_a_missing_package_is_named_with_the_remedy():
    code = (
        "import sys\n"
        "import hotdask.store.catalog\n"
        "for package in ('upath', 's3fs'):\n"
        "    sys.modules[package] = None\n"
        "    try:\n        hotdask.store.catalog.read_catalog('s3://survey/catalog')\n"
        "    except hotdask.errors.RunError as error:\n        print(error)\n"
        "    del sys.modules[package]\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 2
    for line in said:
        assert line.startswith("s3://survey/catalog: a package is missing here (")
        assert line.endswith("`pip install 'hotdask[s3]'` brings what s3:// needs")
