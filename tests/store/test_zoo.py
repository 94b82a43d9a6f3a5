"""Every kind of broken file: a spectrum or a reject with a true reason, by both ways of reading."""

import os
import re
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hotdask.config import Input
from hotdask.errors import InputError
from hotdask.readers import lamost
from hotdask.readers.inputs import list_inputs
from hotdask.readers.lamost import MAX_BYTES, REASONS, read_spectra


@pytest.fixture(scope="module")
def specimens(zoo, tmp_path_factory):
    return zoo.build(tmp_path_factory.mktemp("zoo"))


def entries(specimens) -> pd.DataFrame:
    return pd.DataFrame({"path": [str(s.path) for s in specimens]})


def test_the_zoo_is_large_and_names_known_reasons(zoo) -> None:
    assert len(zoo.KINDS) >= 140
    assert set().union(*(kind.reasons for kind in zoo.KINDS.values())) <= {zoo.READ, *REASONS}


@pytest.mark.timeout(120)
def test_every_specimen_is_a_spectrum_or_a_reject_with_a_true_reason(zoo, specimens, monkeypatch) -> None:
    block, rejects = read_spectra(entries(specimens))
    found = dict.fromkeys(block.meta["path"], zoo.READ) | dict(zip(rejects["path"], rejects["reason"], strict=True))
    assert len(block.meta) + len(rejects) == len(found) == len(specimens)
    untrue = {s.kind: found[str(s.path)] for s in specimens if found[str(s.path)] not in s.reasons}
    assert untrue == {}
    # What was found, then what to do.
    assert [d for d in rejects["detail"] if not re.search(r"\w{3}.*[;,] \w", d) or len(d) > 400] == []
    assert block.flux.dtype == block.ivar.dtype == np.float32
    assert np.isfinite(block.flux).all()
    assert np.isfinite(block.ivar).all()
    assert (block.ivar >= 0).all()
    assert (block.ivar > 0).any(axis=1).all()

    monkeypatch.setattr(lamost, "parse_strict", lambda raw, keys: None)
    other, other_rejects = read_spectra(entries(specimens))
    pd.testing.assert_frame_equal(other_rejects, rejects)
    pd.testing.assert_frame_equal(other.meta, block.meta)
    for name in ("flux", "ivar", "andmask", "ormask"):
        np.testing.assert_array_equal(getattr(other, name), getattr(block, name))


def test_bombs_and_absurd_sizes_are_read_in_bounded_memory(specimens) -> None:
    big = [s for s in specimens if re.search("bomb|absurd|gigabytes|large|millions|endless|device", s.kind)]
    assert len(big) > 12
    tracemalloc.start()
    try:
        read_spectra(entries(big))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_BYTES


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder, and permissions that count: root may read anything."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)


def test_a_file_nobody_may_read(zoo) -> None:
    user = os.geteuid()
    with as_nobody() as folder:
        nobody = os.geteuid()
        os.seteuid(user)
        path = zoo.write_good(folder / "in", 1, "dr5")
        path.chmod(0)
        os.seteuid(nobody)
        block, rejects = read_spectra(pd.DataFrame({"path": [str(path)]}))
    assert len(block.meta) == 0
    assert rejects["reason"].tolist() == ["unreadable"]
    assert "Permission denied" in rejects["detail"][0]


def test_a_folder_nobody_may_list_is_named(zoo) -> None:
    user = os.geteuid()
    with as_nobody() as folder:
        nobody = os.geteuid()
        os.seteuid(user)
        for name in ("a", "b"):
            zoo.write_good(folder / name, 1, "dr5")
        (folder / "b").chmod(0)
        os.seteuid(nobody)
        for pattern in ("**/*.fits", "*/*.fits", "b/*.fits", "**"):
            with pytest.raises(InputError, match=f"{folder}/b cannot be listed .Permission denied"):
                list_inputs(Input(spectra=f"{folder}/{pattern}"))
        assert len(list_inputs(Input(spectra=f"{folder}/a/*.fits"))) == 1
        os.seteuid(user)
        (folder / "b").chmod(0o755)
        os.seteuid(nobody)


def test_a_file_that_vanishes_between_listing_and_reading(zoo, tmp_path) -> None:
    paths = [zoo.write_good(tmp_path, number, "dr5") for number in range(3)]
    listed = list_inputs(Input(spectra=f"{tmp_path}/*.fits"))
    paths[1].unlink()
    block, rejects = read_spectra(listed)
    assert block.meta["path"].tolist() == [str(paths[0]), str(paths[2])]
    assert rejects[["path", "reason"]].to_numpy().tolist() == [[str(paths[1]), "not_found"]]


def test_links_and_pipes_are_listed_so_that_they_can_be_rejected(specimens) -> None:
    folder = specimens[0].path.parents[1]
    listed = set(list_inputs(Input(spectra=f"{folder}/**/*.fits*"))["path"])
    assert listed == {str(s.path) for s in specimens if s.kind != "directory"}
