"""Emulator files: what is written is read, and nothing else is believed."""

import hashlib
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from hotdask.emulator import LowRankEmulator, PerPixelEmulator, load_emulator, save_emulator
from hotdask.errors import EmulatorError, InputError
from hotdask.labels import LABEL_NAMES
from hotdask.shipped import DEFAULT_EMULATOR, SHIPPED, emulator_path


@pytest.fixture(scope="module")
def emulator():
    return load_emulator()


@pytest.fixture
def saved(emulator, tmp_path):
    path = tmp_path / "emulator.safetensors"
    save_emulator(emulator, path)
    return path


def parts(path: Path) -> tuple[dict, bytes]:
    """Header and tensor bytes, read as the safetensors format is documented."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(path: Path, **changes: object) -> Path:
    """Rewrite the file's metadata; None removes a field."""
    header, body = parts(path)
    metadata = json.loads(header["__metadata__"]["hotdask"])
    for name, value in changes.items():
        if value is None:
            del metadata[name]
        else:
            metadata[name] = value
    header["__metadata__"]["hotdask"] = json.dumps(metadata)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(EmulatorError) as caught:
        load_emulator(path)
    message = str(caught.value)
    assert str(path) in message
    return message


def test_round_trip(emulator, tmp_path):
    path = tmp_path / "copy.safetensors"
    identity = save_emulator(emulator, path)
    again = load_emulator(path)
    assert again.id == identity
    assert again.card == emulator.card
    for name in LowRankEmulator.ARRAYS:
        assert again.arrays[name].dtype == emulator.arrays[name].dtype
        np.testing.assert_array_equal(again.arrays[name], emulator.arrays[name])
    star = [[12000, 4.0, 2, 80, 0.09, 0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(again.flux(star), emulator.flux(star))


def test_id_is_the_start_of_the_hash(emulator, saved):
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert load_emulator(saved).id == digest[:16]
    assert emulator.id == hashlib.sha256(emulator_path().read_bytes()).hexdigest()[:16]


def test_other_weights_have_another_id(emulator, saved, tmp_path):
    arrays = dict(emulator.arrays)
    arrays["bias3"] = arrays["bias3"] + np.float32(1e-6)
    assert save_emulator(LowRankEmulator(arrays, emulator.card), tmp_path / "other") != load_emulator(saved).id


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_ones_are_found_by_name(name, monkeypatch, tmp_path):
    # Also where a file is called like one: that is ./NAME, or a Path.
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"")
    assert load_emulator(name).id == hashlib.sha256(SHIPPED[name].read_bytes()).hexdigest()[:16]
    for other in (f"./{name}", Path(name)):
        with pytest.raises(EmulatorError, match="not an emulator file"):
            load_emulator(other)


def test_the_default_is_a_shipped_one(emulator):
    assert emulator.id == load_emulator(DEFAULT_EMULATOR).id


def test_an_unknown_name_is_told_those_shipped():
    with pytest.raises(EmulatorError, match=rf"name of a shipped one \({', '.join(SHIPPED)}\) or the path of a file"):
        load_emulator("ltee")


def test_missing_file(tmp_path):
    message = refusal(tmp_path / "nothing.safetensors")
    assert "No such file" in message
    assert "the path of a file" in message


def test_a_folder_is_no_file(tmp_path):
    assert "the path of a file" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04random", np.random.default_rng(0).bytes(5000)])
def test_random_bytes(tmp_path, content):
    path = tmp_path / "random.safetensors"
    path.write_bytes(content)
    assert "hotdask train" in refusal(path)


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.999])
def test_truncated(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    assert "hotdask train" in refusal(saved)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_unopened(tmp_path):
    mark = tmp_path / "exploded"
    path = tmp_path / "emulator.safetensors"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    assert "hotdask train" in refusal(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()


def test_what_is_written_is_plain_tensors_and_text(saved, emulator):
    header, body = parts(saved)
    assert set(header) == {*LowRankEmulator.ARRAYS, "__metadata__"}
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} <= {"F32", "F64"}
    assert len(body) == sum(array.nbytes for array in emulator.arrays.values())
    assert json.loads(header["__metadata__"]["hotdask"])["labels"] == list(LABEL_NAMES)


def test_the_id_depends_on_the_content_only(emulator, tmp_path):
    ids = {save_emulator(emulator, tmp_path / f"{i}.safetensors") for i in range(5)}
    assert len(ids) == 1


@pytest.mark.parametrize("card", [None, 3, "all is well", [1, 2]])
def test_a_header_without_a_card_is_refused(saved, card):
    assert "no header" in refusal(with_header(saved, card=card))


@pytest.mark.parametrize("text", ["[]", '"emulator"', "7", "null", "{", ""])
def test_a_header_that_is_no_mapping_is_refused(emulator, tmp_path, text):
    path = tmp_path / "other.safetensors"
    path.write_bytes(save(dict(emulator.arrays), metadata={"hotdask": text}))
    assert "no header" in refusal(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(emulator, tmp_path):
    sizes = {"hidden": 2, "plane": 4}
    arrays = {n: np.ones([sizes.get(s, s) for s in shape]) for n, shape in PerPixelEmulator.ARRAYS.items()}
    path = tmp_path / "pixels.safetensors"
    save_emulator(PerPixelEmulator(arrays, emulator.card), path)
    with pytest.raises(InputError, match="'cuda': torch sees no CUDA device here; use 'cpu'"):
        load_emulator(path, device="cuda")
    # A low-rank one does not need it.
    assert load_emulator(device="cuda").id == emulator.id


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "hotdask-lowrank-0"),
        ("format", None),
        ("labels", list(LABEL_NAMES[::-1])),
        ("lsf", ["sigma"]),
        ("grid", {"log_start": 3.5682, "log_step": 1e-4, "n_pixel": 3909}),
        ("grid", None),
    ],
)
def test_made_for_something_else(saved, field, value):
    message = refusal(with_header(saved, **{field: value}))
    assert f"emulator {field} is {value!r}" in message
    assert "hotdask train" in message


def test_no_metadata_at_all(tmp_path):
    path = tmp_path / "bare.safetensors"
    path.write_bytes(save({"mean": np.zeros(3, dtype=np.float32)}))
    assert "no header" in refusal(path)


@pytest.mark.parametrize("name", ["basis", "bias2", "hull"])
def test_missing_array(emulator, saved, name):
    header, _ = parts(saved)
    arrays = {k: v for k, v in emulator.arrays.items() if k != name}
    saved.write_bytes(save(arrays, metadata=header["__metadata__"]))
    message = refusal(saved)
    assert repr([name]) in message
    assert "hotdask train" in message


def test_an_extra_array_does_no_harm(emulator, saved):
    header, _ = parts(saved)
    saved.write_bytes(save({**emulator.arrays, "note": np.zeros(1)}, metadata=header["__metadata__"]))
    assert load_emulator(saved).card == emulator.card


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("basis", lambda a: a[:, :-1], "'basis' has shape ({basis}, 3800), not ({basis}, 3801)"),
        ("bias2", lambda a: a[:-1], "'bias2' has shape ({fewer},), not ({hidden},)"),
        ("weight3", lambda a: a[None], "'weight3' has shape (1, {basis}, {hidden}), not ({basis}, {hidden})"),
        ("input_scale", lambda a: a[:16], "'input_scale' has shape (16,), not (17,)"),
        ("hull", lambda a: a.T, "'hull' has shape"),
    ],
)
def test_other_shapes_are_refused(emulator, saved, name, change, message):
    header, _ = parts(saved)
    arrays = {**emulator.arrays, name: np.ascontiguousarray(change(emulator.arrays[name]))}
    saved.write_bytes(save(arrays, metadata=header["__metadata__"]))
    hidden = len(emulator.arrays["bias2"])
    assert message.format(basis=emulator.n_basis, hidden=hidden, fewer=hidden - 1) in refusal(saved)


@pytest.mark.parametrize(("name", "value"), [("weight1", np.nan), ("mean", np.inf), ("label_low", np.nan)])
def test_values_that_are_not_finite_are_refused(emulator, saved, name, value):
    header, _ = parts(saved)
    spoiled = emulator.arrays[name].copy()
    spoiled.flat[1] = value
    saved.write_bytes(save({**emulator.arrays, name: spoiled}, metadata=header["__metadata__"]))
    assert f"{name!r} holds 1 values that are not finite" in refusal(saved)


def test_an_emulator_of_zeros_is_refused(emulator, saved):
    header, _ = parts(saved)
    arrays = {name: np.zeros_like(array) for name, array in emulator.arrays.items()}
    saved.write_bytes(save(arrays, metadata=header["__metadata__"]))
    assert "is all zeros" in refusal(saved)


def test_a_file_without_an_end_is_refused(tmp_path):
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    assert "no regular file" in refusal(tmp_path / "zero.safetensors")


def test_a_file_that_fails_to_be_written_leaves_the_old_one(emulator, saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        save_emulator(emulator, saved)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == before
