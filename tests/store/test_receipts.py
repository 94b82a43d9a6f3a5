"""No receipt, a corrupt one or one whose files changed means: not done."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotdask.store.receipts import (
    Receipt,
    check_receipt,
    hash_file,
    hash_files,
    list_receipts,
    read_receipt,
    receipt_path,
    remove_receipt,
    write_receipt,
)


@pytest.fixture
def run(tmp_path):
    for name in ("fits/part-00003.parquet", "fits/part-00004.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 1000)
    return tmp_path


@pytest.fixture
def receipt(run):
    made = Receipt("fit", 3, "cafe", 17, hash_files(run, [run / "fits/part-00003.parquet"]), {"seconds": 1.5})
    write_receipt(run, made)
    return made


def test_hash_is_what_sha256sum_says(run):
    path = run / "fits/part-00003.parquet"
    said = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert hash_file(path) == said
    assert hash_files(str(run), [path]) == {"fits/part-00003.parquet": said}


def test_round_trip_and_place(run, receipt):
    assert read_receipt(run, "fit", 3) == receipt
    assert receipt_path(run, "fit", 3) == run / "receipts" / "fit" / "00003.json"
    assert json.loads(receipt_path(run, "fit", 3).read_text())["rows"] == 17
    assert check_receipt(run, receipt, "cafe") is None


def test_absent(run):
    assert read_receipt(run, "fit", 99) is None
    assert read_receipt(run, "ingest", 3) is None
    assert list_receipts(run, "ingest") == {}


def test_flipped_byte(run, receipt):
    path = run / "fits/part-00003.parquet"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    assert "fits/part-00003.parquet changed" in check_receipt(run, receipt, "cafe")


def test_truncated(run, receipt):
    path = run / "fits/part-00003.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert "changed" in check_receipt(run, receipt, "cafe")


def test_deleted(run, receipt):
    (run / "fits/part-00003.parquet").unlink()
    assert "cannot be read (No such file" in check_receipt(run, receipt, "cafe")


def test_swapped_parts(run, receipt):
    a, b, c = run / "fits/part-00003.parquet", run / "fits/part-00004.parquet", run / "c"
    a.rename(c)
    b.rename(a)
    c.rename(b)
    assert "changed" in check_receipt(run, receipt, "cafe")


def test_other_fingerprint(run, receipt):
    said = check_receipt(run, receipt, "beef")
    assert "other settings" in said
    assert "cafe" in said
    assert "beef" in said


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "{}", '{"step": "fit"}', "\0\0\0\0"])
def test_corrupt_receipt_counts_as_absent(run, receipt, text):
    receipt_path(run, "fit", 3).write_text(text)
    assert read_receipt(run, "fit", 3) is None
    assert list_receipts(run, "fit") == {}


def test_not_utf8_counts_as_absent(run, receipt):
    receipt_path(run, "fit", 3).write_bytes(b"\xff\xfe\x00")
    assert read_receipt(run, "fit", 3) is None


def test_a_flipped_bit_anywhere_is_seen(run, receipt):
    path = receipt_path(run, "fit", 3)
    good = path.read_bytes()
    for i in range(len(good)):
        bad = bytearray(good)
        bad[i] ^= 1 << i % 8
        path.write_bytes(bad)
        found = read_receipt(run, "fit", 3)
        # Whitespace may turn into other whitespace; what is read must be right then.
        assert found is None or found == receipt


def test_another_partitions_receipt_counts_as_absent(run, receipt):
    other = receipt_path(run, "fit", 4)
    other.write_bytes(receipt_path(run, "fit", 3).read_bytes())
    assert read_receipt(run, "fit", 4) is None
    assert list(list_receipts(run, "fit")) == [3]


def test_listing_is_in_order_and_ignores_unfinished(run):
    for partition in (100_000, 7, 0):
        write_receipt(run, Receipt("ingest", partition, "f", 1, {}))
    (run / "receipts/ingest/.00005.json.abc.partial").write_text("{")
    assert list(list_receipts(run, "ingest")) == [0, 7, 100_000]
    remove_receipt(run, "ingest", 7)
    remove_receipt(run, "ingest", 7)
    assert list(list_receipts(run, "ingest")) == [0, 100_000]


def test_what_json_cannot_hold_is_refused(run):
    with pytest.raises(ValueError, match="JSON"):
        write_receipt(run, Receipt("fit", 1, "f", 1, {}, {"seconds": float("nan")}))
    assert read_receipt(run, "fit", 1) is None


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(0, 2**31),
    files=st.dictionaries(
        st.text("abc/.-_é", min_size=1), st.binary().map(lambda b: hashlib.sha256(b).hexdigest()), max_size=3
    ),
    extra=st.dictionaries(st.text(), _json, max_size=3),
)
def test_any_receipt_comes_back(tmp_path_factory, rows, files, extra):
    run = Path(tmp_path_factory.getbasetemp()) / "any"
    receipt = Receipt("fit", 1, "f", rows, files, extra)
    write_receipt(run, receipt)
    assert read_receipt(run, "fit", 1) == receipt
