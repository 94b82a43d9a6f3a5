"""Processes that a cluster is made of, and a small survey to run on them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hotdask.config import Settings, dump_settings

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"


@pytest.fixture(scope="session")
def few(survey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty spectra."""
    folder = tmp_path_factory.mktemp("few")
    for path in survey.good[:20]:
        shutil.copy2(path, folder)
    return folder


@pytest.fixture
def settings_file(few: Path, settings_for: Callable[..., Settings], tmp_path: Path) -> Path:
    """Settings of a run of twenty spectra, in ``RUN`` beside it."""
    settings = settings_for(tmp_path / "RUN", spectra=f"{few}/*", report__truth=None, cluster__dashboard="127.0.0.1:0")
    path = tmp_path / "settings.toml"
    path.write_text(dump_settings(settings))
    return path


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of a process as one starts it by hand: the programs of this Python, this source, nothing that pytest set."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DASK_", "MALLOC_", "PYTEST_"))}
    return {**kept, "PATH": path, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix}


@pytest.fixture
def launch(environment: dict[str, str]) -> Callable[..., str]:
    """`scripts/launch.py` with arguments, to its end; returns what it printed."""

    def call(*arguments: object) -> str:
        command = [sys.executable, "scripts/launch.py", *map(str, arguments)]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call
