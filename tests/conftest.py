"""Shared fixtures: where real data lie, when they are at hand."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


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
def library_file() -> Path:
    """The real synthetic library."""
    return _folder("library") / "synthe_atlas9.npz"


@pytest.fixture(scope="session")
def synthesis() -> Path:
    """Folder of the real model atmospheres and line list."""
    return _folder("synthesis")


@pytest.fixture(scope="session")
def paper() -> str:
    """Text of the paper the method comes from."""
    return (_folder("paper") / "hotpayne.txt").read_text(encoding="utf-8")
