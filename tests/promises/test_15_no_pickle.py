"""Promise 15: no pickle on disk; what is read is checked, and cannot run code."""

import ast
import json
import os
import pickle
import pickletools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from distributed import Client

import hotdask
from hotdask.config import Settings
from hotdask.emulator import load_emulator, save_emulator
from hotdask.errors import EmulatorError, HotdaskError, InputError, RunError, SettingsError
from hotdask.library.arrays import read_arrays
from hotdask.pipeline.execute import run
from hotdask.pipeline.maps import make_labeler
from hotdask.shipped import emulator_path
from hotdask.store.staging import ROW, staged_path

MakeSettings = Callable[..., Settings]


def quiet(line: str) -> None:
    """An echo that says nothing."""


# What is written


def is_pickle(content: bytes) -> bool:
    """Whether it is opcodes up to a STOP, as pickle would run them."""
    try:
        return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(content))
    # Whatever a parser says to what was never meant for it.
    except Exception:
        return False


def holds_objects(path: Path) -> str | None:
    """What in a file could only be read by running it, or has no business in a run."""
    content = path.read_bytes()
    if path.name == ".lock" and not content:
        return None
    if path.suffix in (".json", ".html", ".toml"):
        text = content.decode()
        return None if path.suffix != ".json" or json.loads(text) is not None else "no JSON"
    if path.suffix == ".parquet":
        binary = [
            f.name for f in pq.read_schema(path) if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)
        ]
        return f"columns of raw bytes: {binary}" if binary else None
    # What is left are chunks of the cube, whose codecs `zarr.json` names.
    if "spectra.zarr" in path.parts and path.suffix == "":
        return "a pickle" if is_pickle(content) else None
    return "a kind of file that no run writes"


def test_a_finished_run_holds_no_pickle(finished) -> None:
    files = [path for path in finished.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {path.suffix for path in files} >= {".parquet", ".json", ".toml", ".html", ""}
    assert {str(path): found for path in files if (found := holds_objects(path))} == {}


def codecs(entry: object) -> set[str]:
    """Names of all codecs in a Zarr array's metadata, inner ones too."""
    if isinstance(entry, list):
        return set().union(*map(codecs, entry))
    if isinstance(entry, dict):
        own = {entry["name"]} if "name" in entry else set()
        return own | set().union(*map(codecs, entry.values()))
    return set()


def test_the_cube_has_numbers_and_plain_codecs(finished) -> None:
    arrays = [json.loads(p.read_text()) for p in (finished.folder / "spectra.zarr").glob("*/zarr.json")]
    assert len(arrays) > 4
    for array in arrays:
        assert re.fullmatch(r"(float|u?int)\d+", array["data_type"])
        assert codecs(array["codecs"]) <= {"bytes", "sharding_indexed", "zstd", "blosc", "crc32c"}


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "spectra.zarr").mkdir()
    for number, protocol in enumerate(range(pickle.HIGHEST_PROTOCOL + 1)):
        path = tmp_path / "spectra.zarr" / str(number)
        path.write_bytes(pickle.dumps({"labels": [1, 2.5, None]}, protocol))
        assert holds_objects(path) == "a pickle"
    pq.write_table(pa.table({"blob": [pickle.dumps(1)]}), tmp_path / "a.parquet")
    assert "blob" in holds_objects(tmp_path / "a.parquet")
    (tmp_path / "a.pkl").write_bytes(b"")
    assert holds_objects(tmp_path / "a.pkl") == "a kind of file that no run writes"


def test_staged_parts_are_plain_numbers(
    client: Client, survey, settings_for: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They live while the ingest lasts: caught before they are cleared."""
    seen: list[np.dtype] = []

    def look(run_path: str) -> None:
        for path in Path(run_path, "staging").glob("*.npy"):
            assert path == staged_path(run_path, int(path.stem[-5:]), "npy")
            with path.open("rb") as file:
                assert np.lib.format.read_magic(file) == (1, 0)
                seen.append(np.lib.format.read_array_header_1_0(file)[2])

    monkeypatch.setattr("hotdask.pipeline.ingest.clear_staging", look)
    settings = settings_for(tmp_path / "RUN", input__limit=40)
    run(settings, until="ingest", client=client, echo=quiet)
    assert seen == [ROW, ROW]
    assert not ROW.hasobject


# What the source may do

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {"read_pickle", "to_pickle", "Unpickler", "Pickler"}


def pickling(source: str) -> list[int]:
    """Lines that import a pickler, or read or write with one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                bad = any(alias.name.split(".")[0] in MODULES for alias in node.names)
            case ast.ImportFrom():
                bad = (node.module or "").split(".")[0] in MODULES or any(a.name in CALLS for a in node.names)
            case ast.Call(func=ast.Attribute(attr=name, value=owner)):
                keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                of = getattr(owner, "id", "")
                bad = (
                    name in CALLS
                    or (of == "torch" and name in {"load", "save"})
                    # Said aloud, because writing allows it by default.
                    or (
                        of in {"np", "numpy"} and name in {"load", "save"} and keywords.get("allow_pickle") is not False
                    )
                    or bool(keywords.get("allow_pickle"))
                )
            case _:
                bad = False
        if bad:
            found.append(node.lineno)
    return found


def test_no_source_pickles() -> None:
    package = sorted(Path(hotdask.__file__).parent.rglob("*.py"))
    assert len(package) > 50
    assert {str(p): lines for p in package if (lines := pickling(p.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "import joblib.externals",
        "torch.save(network, path)",
        "torch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.save(path, array)",
        "frame.to_pickle(path)",
        "from pandas import read_pickle",
    ],
)
def test_the_guard_sees(line: str) -> None:
    assert pickling(line) == [1]
    assert pickling("import json\nnp.load(path, allow_pickle=False)\nfile.load(path)") == []


# What is read


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self):
        return os.mkdir, (str(self.sign),)


@pytest.fixture
def trap(tmp_path: Path) -> tuple[Trap, Path]:
    return Trap(tmp_path / "SPRUNG"), tmp_path / "SPRUNG"


def test_the_trap_works(trap: tuple[Trap, Path]) -> None:
    bait, sign = trap
    pickle.loads(pickle.dumps(bait))
    assert sign.exists()


def test_an_emulator_that_is_a_pickle_is_not_run(trap: tuple[Trap, Path], tmp_path: Path) -> None:
    bait, sign = trap
    file = tmp_path / "emulator.safetensors"
    for write in (lambda: file.write_bytes(pickle.dumps(bait)), lambda: torch.save({"weights": bait}, file)):
        write()
        with pytest.raises(EmulatorError, match="not an emulator file"):
            load_emulator(file)
    assert not sign.exists()


def test_arrays_that_are_pickles_are_not_run(trap: tuple[Trap, Path], tmp_path: Path) -> None:
    bait, sign = trap
    objects = np.empty(1, object)
    objects[0] = bait
    np.savez(tmp_path / "atmospheres.npz", teff=objects)
    with pytest.raises(InputError):
        read_arrays(tmp_path / "atmospheres.npz", ["teff"], remedy="give another file")
    assert not sign.exists()


def spoiled(tmp_path: Path) -> Path:
    """The shipped emulator with one weight off by its last bit."""
    emulator = load_emulator()
    name = max(emulator.arrays, key=lambda n: emulator.arrays[n].size)
    arrays = {**emulator.arrays, name: emulator.arrays[name].copy()}
    arrays[name].flat[0] = np.nextafter(arrays[name].flat[0], np.inf, dtype=arrays[name].dtype)
    path = tmp_path / "other.safetensors"
    save_emulator(type(emulator)(arrays, emulator.card), path)
    return path


def test_fits_do_not_go_on_with_other_weights(finished, client: Client, tmp_path: Path) -> None:
    settings = finished.copy(tmp_path / "RUN")
    fit = settings.fit.model_copy(update={"emulator": str(spoiled(tmp_path))})
    with pytest.raises(SettingsError):
        run(settings.model_copy(update={"fit": fit}), client=client, echo=quiet)


def test_a_worker_with_other_weights_does_not_fit(finished, client: Client, tmp_path: Path) -> None:
    path = spoiled(tmp_path)
    settings = finished.settings.model_copy(
        update={"fit": finished.settings.fit.model_copy(update={"emulator": str(path)})}
    )
    identity = load_emulator(path).id
    assert client.submit(lambda: make_labeler(settings, identity) is not None, pure=False).result()
    # As if the file on that machine were an older one.
    shutil.copy(emulator_path(), path)
    client.run(lambda: __import__("hotdask.pipeline.maps").pipeline.maps.labeler.cache_clear())
    with pytest.raises(RunError, match="give all workers one file"):
        client.submit(lambda: make_labeler(settings, identity) is not None, pure=False).result()


def test_a_run_does_not_write_through_links_that_lead_out(finished, client: Client, tmp_path: Path) -> None:
    settings = finished.copy(tmp_path / "RUN")
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(tmp_path / "RUN" / "fits")
    (tmp_path / "RUN" / "fits").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HotdaskError, match=r"RUN/fits is a link to .*elsewhere, out of the run's folder"):
        run(settings, client=client, echo=quiet)
    assert os.listdir(tmp_path / "elsewhere") == []
