"""Whole or absent, whatever happens to the writer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hotdask.errors import RunError
from hotdask.store.atomic import (
    atomic_folder,
    atomic_path,
    check_links,
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
