"""Whole or absent, whatever happens to the writer."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotdask.errors import RunError
from hotdask.store.atomic import (
    atomic_folder,
    atomic_path,
    check_links,
    clear_dead,
    clear_leftovers,
    publish_link,
    remove_folder,
    sync_tree,
    write_bytes,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_name_appears_only_at_the_end(tmp_path):
    final = tmp_path / "new" / "a.txt"
    with atomic_path(final) as path:
        path.write_text("whole")
        assert path.parent == final.parent
        assert path.name.startswith(".")
        assert not final.exists()
    assert names(final.parent) == ["a.txt"]
    assert final.read_text() == "whole"


def test_error_keeps_the_old_file_and_leaves_nothing(tmp_path):
    final = tmp_path / "a"
    write_bytes(final, b"old")

    def half():
        with atomic_path(final) as path:
            path.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert names(tmp_path) == ["a"]
    assert final.read_bytes() == b"old"


def test_writer_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_data_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), real_fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), real_replace(a, b)))
    write_text(tmp_path / "a", "x")
    assert len(events) == 3
    assert Path(events[0]).name.startswith(".a.")
    assert events[1] == "replace"
    assert events[2] == str(tmp_path)


def test_two_processes_at_once_leave_one_whole_file(tmp_path):
    code = (
        "import sys\n"
        "from hotdask.store.atomic import write_bytes\n"
        "for _ in range(40): write_bytes(sys.argv[1], sys.argv[2].encode() * 100_000)\n"
    )
    final = tmp_path / "a"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(final), letter]) for letter in "xy"]
    seen = set()
    while any(w.poll() is None for w in writers):
        if final.exists():
            data = final.read_bytes()
            seen.add((len(data), len(set(data))))
    assert [w.returncode for w in writers] == [0, 0]
    assert seen == {(100_000, 1)}
    assert names(tmp_path) == ["a"]


def test_folder_whole_or_absent(tmp_path):
    final = tmp_path / "f"

    def half():
        with atomic_folder(final) as folder:
            (folder / "one").write_text("1")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        half()
    assert names(tmp_path) == []
    with atomic_folder(final) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "one").write_text("1")
        assert not final.exists()
    assert names(tmp_path) == ["f"]
    assert (final / "deep" / "one").read_text() == "1"


def test_folder_never_replaces_another(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "mine").write_text("1")
    with pytest.raises(FileExistsError, match="exists already"), atomic_folder(tmp_path / "f") as folder:
        (folder / "other").write_text("2")
    assert names(tmp_path) == ["f"]
    assert names(tmp_path / "f") == ["mine"]


def test_sync_tree_reaches_every_file(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("1")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name))
    sync_tree(tmp_path / "a")
    assert synced == ["file", "b", "a"]


def test_link_is_swapped_and_survives_a_move(tmp_path):
    run = tmp_path / "run"
    for version in ("v1", "v2"):
        write_text(run / "versions" / version / "x", version)
        publish_link(run / "shown", Path("versions", version))
        assert (run / "shown" / "x").read_text() == version
    run.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "shown" / "x").read_text() == "v2"
    assert names(tmp_path / "moved") == ["shown", "versions"]


def test_link_is_never_missing_while_swapped(tmp_path):
    for version in ("v1", "v2"):
        write_text(tmp_path / version / "x", version)
    publish_link(tmp_path / "shown", "v1")
    code = (
        "import sys\n"
        "from hotdask.store.atomic import publish_link\n"
        "for i in range(120): publish_link(sys.argv[1], ('v1', 'v2')[i % 2])\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "shown")])
    seen = set()
    while writer.poll() is None:
        seen.add((tmp_path / "shown" / "x").read_text())
    assert writer.returncode == 0
    assert seen == {"v1", "v2"}


def test_link_refuses_a_missing_target_and_a_real_folder(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        publish_link(tmp_path / "shown", "v1")
    (tmp_path / "v1").mkdir()
    (tmp_path / "shown").mkdir()
    with pytest.raises(RunError, match="not a link"):
        publish_link(tmp_path / "shown", "v1")
    assert not (tmp_path / "shown").is_symlink()


def test_remove_folder(tmp_path):
    write_text(tmp_path / "f" / "deep" / "x", "1")
    remove_folder(tmp_path / "f")
    remove_folder(tmp_path / "f")
    assert names(tmp_path) == []


def test_clear_leftovers_spares_everything_else(tmp_path):
    keep = [tmp_path / name for name in (".config", "a.partial", ".notes.partial", ".e.0123.partial", "deep/b")]
    for path in keep:
        write_text(path, "x")
    write_text(tmp_path / "deep" / f".c.{'0' * 32}.partial" / "inside", "x")
    write_text(tmp_path / f".d.{'f' * 32}.partial", "x")
    assert clear_leftovers(tmp_path) == 2
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(keep)


# Links that lead elsewhere


def test_a_link_is_removed_without_what_it_points_at(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cube").symlink_to(tmp_path / "mine")
    remove_folder(tmp_path / "run" / "cube")
    assert names(tmp_path / "run") == []
    assert (tmp_path / "mine" / "kept").read_text() == "kept"


@pytest.mark.parametrize("where", ["fits", "receipts/fit", "spectra.zarr/flux", ".hidden"])
@pytest.mark.parametrize("target", ["../elsewhere", "../run2", "/", "../nowhere"])
def test_a_link_out_of_the_run_is_found(tmp_path, where, target):
    for folder in ("run", "run2", "elsewhere"):
        (tmp_path / folder).mkdir()
    link = tmp_path / "run" / where
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "run" / target)
    with pytest.raises(RunError, match=rf"{where} is a link to .*make its whole folder the link"):
        check_links(tmp_path / "run")


def test_links_within_the_run_and_the_run_itself_may_be(tmp_path):
    (tmp_path / "run" / "versions" / "v1").mkdir(parents=True)
    publish_link(tmp_path / "run" / "catalog", Path("versions", "v1"))
    (tmp_path / "disk").symlink_to(tmp_path / "run")
    check_links(tmp_path / "run")
    check_links(tmp_path / "disk")
    check_links(tmp_path / "not there yet")


WRITERS = {
    "file": "from hotdask.store.atomic import atomic_path as write",
    "folder": "from hotdask.store.atomic import atomic_folder as write",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_killed_writers_left_goes_and_what_lives_stays(tmp_path: Path, kind: str) -> None:
    code = (
        f"import sys, time\n{WRITERS[kind]}\n"
        "with write(sys.argv[1]) as path:\n"
        "    path.is_dir() or path.write_text('half')\n"
        "    print('writes', flush=True)\n"
        "    time.sleep(600)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name)], stdout=subprocess.PIPE)
        for name in ("a.fits", "a.fits", "a.fits.gz")
    ]
    try:
        assert [writer.stdout.readline() for writer in writers] == [b"writes\n"] * 3
        (tmp_path / ".a.fits.mine.partial").touch()
        all_three = names(tmp_path)
        clear_dead(tmp_path / "a.fits")
        assert names(tmp_path) == all_three
        for writer in (writers[0], writers[2]):
            writer.kill()
            writer.wait()
        clear_dead(tmp_path / "a.fits")
        gone = set(all_three) - set(names(tmp_path))
        # Neither the living one's nor that of another name.
        assert [f"{writers[0].pid:08x}" in name for name in gone] == [True]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder with a file, a folder and a leftover that this process may read but not write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "RUN")
        (folder / "old").mkdir(parents=True)
        (folder / "old" / "file").touch()
        write_text(folder / "file", "kept")
        (folder / f".file.{'0f' * 16}.partial").touch()
        for path in (Path(name), folder):
            path.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            # Permissions do not bind root.
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)
            for path in (Path(name), folder):
                path.chmod(0o755)


def fill(folder: Path) -> None:
    with atomic_folder(folder / "new"):
        pass


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_text(folder / "file", "new"),
        lambda folder: write_text(folder / "deeper" / "file", "new"),
        fill,
        lambda folder: publish_link(folder / "link", "old"),
        lambda folder: remove_folder(folder / "old"),
        clear_leftovers,
    ],
    ids=["file", "file in a new folder", "folder", "link", "removal", "leftovers"],
)
def test_a_folder_that_cannot_be_written_is_named(locked: Path, write: Callable[[Path], object]) -> None:
    with pytest.raises(RunError, match=rf"{locked}.* cannot be written \(Permission denied\); mend"):
        write(locked)
    assert (locked / "file").read_text() == "kept"


@pytest.mark.parametrize("name", ["file/new", "file/deeper/new", "folder", "n" * 230])
def test_a_place_where_no_file_can_be_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=rf"{tmp_path / name}: cannot be written .*; give another place"):
        write_text(tmp_path / name, "new")
    assert sorted(tmp_path.rglob("*")) == before
