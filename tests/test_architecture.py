"""The direction of the imports: contracts of import-linter in pyproject.toml, and what comes along with an import."""

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

import hotdask

ROOT = Path(hotdask.__file__).parents[1]
NOT_LAYERED = {"__init__", "py", "references"}


def test_contracts_are_kept(capsys: pytest.CaptureFixture) -> None:
    found = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert found == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_every_part_has_its_layer() -> None:
    layers = (ROOT / "pyproject.toml").read_text().partition("layers = [")[2].partition("]")[0]
    parts = {path.name.partition(".")[0] for path in (ROOT / "hotdask").iterdir() if not path.name.startswith("__py")}
    assert {part for part in parts - NOT_LAYERED if f"hotdask.{part}" not in layers} == set()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("hotdask", {"torch", "dask", "distributed", "zarr", "pandas"}),
        ("hotdask.cli", {"torch", "dask", "distributed", "zarr"}),
        ("hotdask.steps.label", {"dask", "distributed", "zarr"}),
        ("hotdask.store.cube", {"torch", "distributed"}),
        ("hotdask.readers.lamost", {"torch", "dask", "distributed", "zarr"}),
        ("hotdask.report.page", {"torch", "dask", "distributed", "zarr"}),
    ],
)
def test_what_an_import_loads(module, absent):
    # The source says what is imported directly; only a fresh interpreter says what comes along.
    code = f"import {module}, sys; print(*sorted({absent!r} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []
