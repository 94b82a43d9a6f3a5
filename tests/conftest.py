"""Shared fixtures: where real data lie, if at hand; a small simulated survey, a cluster and one finished run of it."""

import gc
import hashlib
import importlib.util
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from distributed import Client

from hotdask import config
from hotdask.cluster.client import open_client
from hotdask.config import Settings, make_settings
from hotdask.emulator import load_emulator
from hotdask.pipeline.execute import run
from hotdask.schema import TRUTH, to_table
from hotdask.simulation.visits import LAYOUTS, Simulation, draw_stars, draw_visits, write_broken, write_visits
from hotdask.store.parquet import write_table

SHARED = Path(__file__).resolve().parents[2] / "shared"
PARTITION = 32


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.exists():
        pytest.skip(f"needs the survey data of ../shared/{name}, which are not part of the project")
    return folder


@pytest.fixture(scope="session")
def lamost_files() -> Path:
    """Folder of 362 real LAMOST spectra, with inventory.csv and repeats.csv."""
    return _folder("data/lamost")


@pytest.fixture(scope="session")
def hot_templates() -> Path:
    """Folder of the real hot-star templates."""
    return _folder("data/hot_templates")


@pytest.fixture(scope="session")
def reference_stars() -> Path:
    """Folder of the real library stars with labels from the literature."""
    return _folder("data/reference_stars")


@pytest.fixture(scope="session")
def library_file() -> Path:
    """The real synthetic library."""
    return _folder("library") / "synthe_atlas9.npz"


@pytest.fixture(scope="session")
def synthesis() -> Path:
    """Folder of the real model atmospheres and line list."""
    return _folder("synthesis")


@pytest.fixture(scope="session")
def nlte() -> Path:
    """Folder of the published NLTE model atmospheres."""
    return _folder("nlte")


@pytest.fixture(scope="session")
def paper() -> str:
    """Text of the paper the method comes from."""
    return (_folder("paper") / "hotpayne.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """A server of S3 on this machine with the bucket ``survey``: the environment that leads to it, which is set."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        from s3fs import S3FileSystem

        S3FileSystem().mkdir("survey")
        yield environment
        S3FileSystem.clear_instance_cache()
        # Clients that Zarr makes are never closed.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    server.stop()


def _beside(name: str) -> ModuleType:
    """A module of this folder; tests are no package that it could be imported from."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def zoo() -> ModuleType:
    """Broken and odd files."""
    return _beside("zoo")


@pytest.fixture(scope="session")
def coadds() -> ModuleType:
    """Writers of DESI's files."""
    return _beside("coadds")


# Made when the first test asks for them, shared by all tests of runs


@dataclass(frozen=True)
class Survey:
    """Files of a simulated survey and what they were made with."""

    folder: Path
    visits: pd.DataFrame
    truth: pd.DataFrame
    broken: pd.DataFrame

    @property
    def pattern(self) -> str:
        return str(self.folder / "**" / "*.fits*")

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.fits*"))

    @property
    def good(self) -> list[Path]:
        return [path for path in self.files if path.parent.name != "broken"]


@dataclass(frozen=True)
class Finished:
    """A finished run: not to be changed, but to be copied."""

    folder: Path
    settings: Settings
    summary: dict
    lines: list[str]

    def copy(self, folder: Path) -> Settings:
        """A copy to spoil, and the settings that go on with it."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return self.settings.model_copy(update={"out": str(folder)})


def hash_tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, and where every link points."""
    return {
        path.relative_to(folder).as_posix(): (
            os.readlink(path) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="session")
def hashes() -> Callable[[Path], dict[str, str]]:
    return hash_tree


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """A cluster of two worker processes, as a run starts it."""
    with open_client(config.Cluster(workers=2, dashboard="127.0.0.1:0"), echo=lambda line: None) as client:
        yield client


@pytest.fixture(scope="session")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    """160 stars, 240 spectra in three layouts, 12 broken files."""
    folder = tmp_path_factory.mktemp("survey")
    simulation = Simulation(stars=160, spectra=240, broken=12, seed=5, snr=(30.0, 100.0))
    emulator = load_emulator()
    visits = draw_visits(simulation, draw_stars(simulation, emulator))
    # So small a survey fits one plate, but layouts change and visits repeat from plate to plate.
    visits["layout"] = [LAYOUTS[number % len(LAYOUTS)] for number in range(len(visits))]
    visits["lmjd"] += 17 * visits.groupby("star").cumcount()
    visits.loc[visits["layout"] == "dr1", "obsid"] = -1
    visits.loc[visits["layout"] != "dr1", "obsid"] = 9_000_000 + visits.index[visits["layout"] != "dr1"]
    truth = write_visits(folder, visits, emulator, simulation)
    broken = write_broken(folder, visits, simulation)
    write_table(folder / "truth.parquet", to_table(truth, TRUTH))
    return Survey(folder, visits, truth, broken)


@pytest.fixture(scope="session")
def settings_for(survey: Survey) -> Callable[..., Settings]:
    """Settings for a run of the survey; other inputs, or overrides such as ``cube__partition_size``, if given."""

    def make(out: Path, *, spectra: str | None = None, table: Path | None = None, **overrides) -> Settings:
        source = {"table": str(table)} if table else {"spectra": spectra or survey.pattern}
        data = {
            "out": str(out),
            "input": source,
            "cube": {"partition_size": PARTITION},
            "catalog": {"min_pairs": 30},
            "report": {"spectra": 1, "truth": str(survey.folder / "truth.parquet")},
        }
        return make_settings(data, **overrides)

    return make


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, client: Client, settings_for: Callable[..., Settings]
) -> Finished:
    """A run of the survey up to its report, on two workers."""
    settings = settings_for(tmp_path_factory.mktemp("finished") / "RUN")
    lines: list[str] = []
    summary = run(settings, client=client, echo=lines.append)
    return Finished(Path(settings.out), settings, summary, lines)
