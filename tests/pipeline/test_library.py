"""Libraries on two worker processes: the same spectra however often the making is broken off."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from distributed import Client

from hotdask.cluster.client import open_client
from hotdask.config import Cluster, Engine, LibrarySettings, load_library_settings
from hotdask.errors import HotdaskError, RunError, SettingsError
from hotdask.labels import INDEX, LABEL_NAMES
from hotdask.library.regrid import to_fine
from hotdask.library.spectra import Synthesis, fine_wavelength
from hotdask.pipeline import library
from hotdask.pipeline.library import build, check
from hotdask.store.library import PART, library_labels, library_provenance, missing_parts, read_library, rejects

N = 2 * PART + 8
STARS = """\
import os
import time
from pathlib import Path

import numpy as np
from hotdask.library.spectra import Synthesis

WAVELENGTH = np.arange(3720.0, 9025.0, 0.15)
FOLDER = Path(__file__).parent


def star(labels):
    with open(FOLDER / f"calls-{os.getpid()}", "a") as calls:
        calls.write("x")
    time.sleep(float(os.environ.get("SECONDS_PER_STAR", 0)))
    teff, logg = labels[:2]
    if teff < 10000 and logg > 4.5:
        raise ValueError("no structure here")
    continuum = (5000 / WAVELENGTH) ** 4 * teff
    depth = 0.1 * logg * np.exp(-0.5 * ((WAVELENGTH - 4862.7) / 5) ** 2)
    return Synthesis(WAVELENGTH, continuum * (1 - depth), continuum, converged=bool(labels[2] < 14))
"""


@pytest.fixture(scope="module")
def stars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of an importable module with the function, which counts its calls in files."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "library_test_stars.py").write_text(STARS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield folder


@pytest.fixture(scope="module")
def client(stars: Path) -> Iterator[Client]:
    """Two worker processes that find the function as those of a user do."""
    with open_client(Cluster(workers=2, dashboard="127.0.0.1:0"), echo=lambda line: None) as client:
        yield client


def calls(stars: Path) -> int:
    return sum(len(path.read_text()) for path in stars.glob("calls-*"))


def settings(out: Path, **sampling) -> LibrarySettings:
    return LibrarySettings(
        out=str(out),
        engine={"kind": "function", "function": "library_test_stars:star"},
        sampling={"n": N, "seed": 3, **sampling},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, stars: Path, client: Client) -> tuple[Path, list[str]]:
    """A finished library, and what was said."""
    lines: list[str] = []
    return build(settings(tmp_path_factory.mktemp("made") / "lib.zarr"), client=client, echo=lines.append), lines


def contents(path: Path) -> tuple:
    whole, failed = read_library(path), rejects(path)
    return whole.flux.tobytes(), whole.labels.tobytes(), library_labels(path).tobytes(), failed["reason"].tolist()


def test_every_model_is_made_or_recorded(made: tuple[Path, list[str]], stars: Path) -> None:
    path, lines = made
    labels, failed, whole = library_labels(path), rejects(path), read_library(path)
    assert labels.shape == (N, len(LABEL_NAMES))
    assert missing_parts(path) == []
    cold = (labels[:, 0] < 10000) & (labels[:, 1] > 4.5)
    unsettled = ~cold & (labels[:, INDEX["vmic"]] >= 14)
    assert cold.sum() > 0
    assert unsettled.sum() > 0
    reasons = dict(zip(failed["row"], failed["reason"], strict=True))
    assert reasons == {
        **dict.fromkeys(np.flatnonzero(cold), "ValueError: no structure here"),
        **dict.fromkeys(np.flatnonzero(unsettled), "not converged"),
    }
    good = labels[~cold & ~unsettled]
    np.testing.assert_array_equal(whole.labels, good)
    assert f"{len(good)} of {N} syntheses made, {N - len(good)} failed" in "\n".join(lines)
    # The engine's formula, averaged over pixels, straight from its own samples.
    wavelength = np.arange(3720.0, 9025.0, 0.15)
    flux = (5000 / wavelength) ** 4 * good[5, 0]
    flux *= 1 - 0.1 * good[5, 1] * np.exp(-0.5 * ((wavelength - 4862.7) / 5) ** 2)
    np.testing.assert_array_equal(whole.flux[5], to_fine(Synthesis(wavelength, flux))[0])


def test_provenance_says_what_made_it(made: tuple[Path, list[str]]) -> None:
    found = library_provenance(made[0])
    assert found["engine"] == "star"
    assert found["engine_provenance"]["function"] == "library_test_stars:star"
    assert len(found["engine_provenance"]["sha256"]) == 64
    assert found["settings"]["sampling"]["n"] == N


def test_a_second_call_makes_nothing(made: tuple[Path, list[str]], stars: Path, client: Client) -> None:
    before, lines = calls(stars), []
    build(settings(made[0]), client=client, echo=lines.append)
    assert calls(stars) == before
    assert "nothing to do" in lines[0]


def test_what_failed_is_tried_again_on_request(
    tmp_path: Path, made: tuple[Path, list[str]], stars: Path, client: Client
) -> None:
    path = tmp_path / "lib.zarr"
    shutil.copytree(made[0], path)
    before, tried = contents(path), calls(stars)
    with_failures = np.unique(rejects(path)["row"] // PART)
    build(settings(path), client=client, retry=True, echo=lambda line: None)
    assert calls(stars) - tried == sum(min(PART, N - part * PART) for part in with_failures)
    assert contents(path) == before


def test_a_library_is_checked_and_drawn(tmp_path: Path, made: tuple[Path, list[str]]) -> None:
    path, lines = tmp_path / "lib.zarr", []
    shutil.copytree(made[0], path)
    holes = [f"{len(rejects(path))} of {N} syntheses failed: the library has holes there"]
    assert check(path, page=tmp_path / "page.html", echo=lines.append) == holes
    assert any(f"of {N} syntheses made" in line for line in lines)
    assert "<svg" in (page := (tmp_path / "page.html").read_text()) or "data:image" in page
    # A chunk of flux that went missing is a problem.
    (path / "flux" / "c" / "1" / "0").unlink()
    assert len(check(path, echo=lines.append)) > 1


def test_killed_and_begun_again_is_the_same(
    made: tuple[Path, list[str]], stars: Path, client: Client, tmp_path: Path
) -> None:
    out = tmp_path / "lib.zarr"
    toml = tmp_path / "lib.toml"
    toml.write_text(
        f'out = "{out}"\n[engine]\nkind = "function"\nfunction = "library_test_stars:star"\n'
        f'[sampling]\nn = {N}\nseed = 3\n[cluster]\nworkers = 1\ndashboard = "127.0.0.1:0"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "from hotdask.cli import main; main()", "library", "build", str(toml)],
        env={**os.environ, "SECONDS_PER_STAR": "0.05"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not out.exists() or len(missing_parts(out)) == 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        # The command and its worker, in the middle of the next part.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    left = missing_parts(out)
    assert 0 < len(left) < 3
    before = calls(stars)
    build(settings(out), client=client, echo=lambda line: None)
    assert calls(stars) - before == sum(min(PART, N - part * PART) for part in left)
    assert contents(out) == contents(made[0])


def test_a_killed_worker_changes_nothing(
    made: tuple[Path, list[str]], stars: Path, client: Client, tmp_path: Path
) -> None:
    def die_once(flag: str) -> None:
        import os
        from pathlib import Path

        Path(flag).touch()
        os._exit(1)

    workers = list(client.scheduler_info()["workers"])
    doomed = client.submit(die_once, str(tmp_path / "dead"), workers=workers[:1], pure=False, retries=0)
    build(settings(tmp_path / "lib.zarr"), client=client, echo=lambda line: None)
    doomed.release()
    assert (tmp_path / "dead").exists()
    assert contents(tmp_path / "lib.zarr") == contents(made[0])


def test_other_settings_are_refused(made: tuple[Path, list[str]], client: Client) -> None:
    with pytest.raises(SettingsError, match=r"settings.sampling.seed: 3 -> 4\n.*another --out"):
        build(settings(made[0], seed=4), client=client)


def test_other_data_are_refused(made: tuple[Path, list[str]], stars: Path, client: Client) -> None:
    source = stars / "library_test_stars.py"
    source.write_text(STARS + "\n# a newer version\n")
    try:
        with pytest.raises(SettingsError, match=r"engine_provenance\.sha256"):
            build(settings(made[0]), client=client)
    finally:
        source.write_text(STARS)


@pytest.mark.parametrize(
    "engine",
    [
        {"kind": "function", "function": "no_such_module_here:star"},
        {"kind": "program", "command": ["no-such-program"], "output": "x", "medium": "air"},
        {"kind": "finished", "table": "nowhere.csv", "medium": "air"},
        {"kind": "hotdask", "atmospheres": "nowhere.npz", "lines": "nowhere.npz"},
    ],
)
def test_an_engine_without_its_data_is_refused_before_a_cluster_starts(
    tmp_path: Path, engine: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine["kind"] == "hotdask":
        pytest.importorskip("numba", reason="needs the extra hotdask[synthesis]")

    def started(*args) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(library, "open_client", started)
    with pytest.raises(HotdaskError, match=r"no.such|nowhere"):
        build(LibrarySettings(out=str(tmp_path / "lib.zarr"), engine=engine, sampling={"n": 3}))
    assert not (tmp_path / "lib.zarr").exists()


def test_finished_spectra_become_a_library(tmp_path: Path, client: Client) -> None:
    stars = np.tile([20000.0, 4, 2, 0.09, 0, 0, 0, 0, 0, 0], (4, 1))
    stars[:, 0] += 1000 * np.arange(4)
    table = pd.DataFrame(stars, columns=[name for name in LABEL_NAMES if name != "vsini"])
    table["path"] = [f"{i}.txt" for i in range(4)]
    table.to_csv(tmp_path / "grid.csv", index=False)
    # The second is on too coarse a grid, and the fourth was never made.
    for i, wavelength in enumerate([fine_wavelength(), np.arange(3720, 9025, 0.4), fine_wavelength()]):
        np.savetxt(tmp_path / f"{i}.txt", np.column_stack([wavelength, np.full_like(wavelength, 1.0 + i)]), fmt="%.4f")
    path = build(
        LibrarySettings(
            out=str(tmp_path / "lib.zarr"),
            engine={"kind": "finished", "table": str(tmp_path / "grid.csv"), "medium": "vacuum"},
        ),
        client=client,
        echo=lambda line: None,
    )
    whole, failed = read_library(path), rejects(path)
    assert whole.labels[:, 0].tolist() == [20000, 22000]
    assert whole.flux[:, 7].tolist() == [1, 3]
    assert failed["row"].tolist() == [1, 3]
    assert "too coarsely: steps of up to 2.3 pixels" in failed["reason"].iloc[0]
    assert "no spectrum 3.txt" in failed["reason"].iloc[1]


def test_a_library_of_failures_is_an_error(tmp_path: Path, stars: Path, client: Client) -> None:
    cold = {"teff": (8000, 9000), "logg": (4.6, 5.0)}
    with pytest.raises(RunError, match="all 5 syntheses failed, the first with: ValueError: no structure"):
        build(settings(tmp_path / "lib.zarr", n=5, ranges=cold), client=client, echo=lambda line: None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('kind = "hotdask"\natmospheres = "a"', "kind = 'hotdask' needs lines"),
        ('kind = "function"\nfunction = "a:b"\nhelium = "voigt"', "kind = 'function' has no helium; leave them out"),
        ('kind = "function"\nfunction = "a:b"\nextend = false', "kind = 'function' has no extend; leave them out"),
        (
            'kind = "function"\nfunction = "a:b"\nhelium_profiles = "c"',
            "kind = 'function' has no helium_profiles; leave them out",
        ),
        ('kind = "program"\ncommand = ["a"]', "needs medium, output"),
        ('kind = "finished"\ntable = "a"\nmedium = "water"', "engine.medium"),
        ('kind = "finished"\ntable = "a"\nmedium = "air"\ncolumns = [0]', "engine.columns"),
        ('kind = "function"\nfunction = "a:b"\n[sampling]\nranges = {hotness = [1, 2]}', "sampling.ranges.hotness"),
        (
            'kind = "function"\nfunction = "a:b"\nspeed = 9',
            "engine.speed: unknown setting; see `hotdask library build -h`",
        ),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, text: str, says: str) -> None:
    toml = tmp_path / "lib.toml"
    toml.write_text(f'out = "lib.zarr"\n[engine]\n{text}\n')
    with pytest.raises(SettingsError, match=re.escape(says)):
        load_library_settings(toml)


def test_settings_survive_the_way_to_a_worker() -> None:
    engine = Engine(kind="program", command=["a"], output="b", medium="air", solar={"c": -3.5}, columns=(0, 2))
    assert Engine.model_validate_json(engine.model_dump_json()) == engine
