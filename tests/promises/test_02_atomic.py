"""Promise 2: a reader sees a whole part or none, a whole catalog version or the one before."""

import signal
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hotdask.schema import CATALOG, to_table
from hotdask.store.atomic import clear_leftovers, write_text
from hotdask.store.catalog import publish_catalog, read_catalog


def catalog_table(start: int, stop: int) -> pa.Table:
    frame = pd.DataFrame({c.name: np.zeros(stop - start) for c in CATALOG})
    for c in CATALOG:
        if pa.types.is_large_string(c.type):
            frame[c.name] = [f"{c.name}-{i}" for i in range(start, stop)]
        elif pa.types.is_boolean(c.type):
            frame[c.name] = True
    return to_table(frame, CATALOG)


def test_killed_writer_leaves_only_a_hidden_name(tmp_path):
    write_text(tmp_path / "a", "old")
    code = (
        "import os, signal, sys\n"
        "from hotdask.store.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_text('ne')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    assert clear_leftovers(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_killed_publication_leaves_the_version_before(tmp_path):
    publish_catalog(tmp_path, [catalog_table(0, 2)], {})
    code = (
        "import os, signal, sys\n"
        "import pyarrow.parquet as pq\n"
        "from hotdask.store.catalog import publish_catalog\n"
        "from pathlib import Path\n"
        "def write(folder):\n"
        "    (Path(folder) / 'part-00000.parquet').write_bytes(b'PAR1half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "publish_catalog(sys.argv[1], write, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "catalog_versions").iterdir() if p.name[0] != "."] == ["v0001"]
    assert len(pd.read_parquet(tmp_path / "catalog")) == 2
    assert publish_catalog(tmp_path, [catalog_table(0, 3)], {}).version == "v0002"
    assert len(pd.read_parquet(tmp_path / "catalog")) == 3


def test_a_reader_during_publication_sees_one_whole_version(tmp_path):
    """Another process publishes; here one thread reads by `read_catalog`, one by the plain link."""
    code = (
        "import sys\n"
        "import pyarrow.parquet as pq, pyarrow as pa\n"
        "from hotdask.store.catalog import publish_catalog\n"
        "first = [pq.read_table(p) for p in sys.argv[2:]]\n"
        "for generation in range(1, 8):\n"
        "    tables = []\n"
        "    for t in first:\n"
        "        column = pa.array([generation] * len(t), pa.int64())\n"
        "        tables.append(t.set_column(t.schema.get_field_index('obsid'), t.schema.field('obsid'), column))\n"
        "    publish_catalog(sys.argv[1], tables, {})\n"
    )
    tables = [catalog_table(i * 50, i * 50 + 50) for i in range(8)]
    publish_catalog(tmp_path, tables, {})
    sources = []
    for i, table in enumerate(tables):
        sources.append(str(tmp_path / f"source-{i}.parquet"))
        pq.write_table(table, sources[-1])
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *sources])
    seen: dict[str, list] = {"function": [], "link": []}
    vanished = []

    def look(how):
        while writer.poll() is None:
            try:
                if how == "link":
                    frame = pd.read_parquet(tmp_path / "catalog", columns=["specid", "obsid"])
                else:
                    frame = read_catalog(tmp_path, columns=["specid", "obsid"])
            except FileNotFoundError:
                vanished.append(how)
                continue
            seen[how].append((len(frame), frame["specid"].nunique(), tuple(frame["obsid"].unique())))

    threads = [threading.Thread(target=look, args=(how,)) for how in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.returncode == 0
    for how, frames in seen.items():
        assert {f[:2] for f in frames} == {(400, 400)}, how
        assert {len(f[2]) for f in frames} == {1}, how
        assert len({f[2] for f in frames}) > 1, f"{how}: the test saw no publication"
    # Through the link a reader may meet a missing file, never a mixture; by the function it meets neither.
    assert set(vanished) <= {"link"}
