"""The direction of the imports, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hotdask

PACKAGE = Path(hotdask.__file__).parent
FOUNDATIONS = {"labels", "schema", "flags", "windows", "config", "errors", "timing", "shipped"}
"""Modules everything may use; they use one another only."""

# What each part of the package may import from the package, besides itself and the foundations.
ALLOWED = {
    "library": {""},
    "emulator": {"library", "steps.normalize", ""},
    "steps": {"emulator"},
    "spectra": set(),
    "store": {"spectra", "library.spectra", "library.synthe"},
    "report": {"steps.rotation"},
    "information": {"emulator", "library", "steps.normalize"},
    "corruption": set(),
    "recovery": {"steps", "emulator", "information", "simulation", "library.spectra"},
    "validation": {"steps", "emulator", "spectra", "library", "recovery", "store.usertables", "store.columns"},
    "simulation": {"steps", "emulator", "information", "store.lamost_writer"},
    "single": {"steps", "spectra", "emulator", "store.generic", "report"},
    "pipeline": {"steps", "store", "emulator", "library", "report", "simulation", "information", ""},
    "__main__": {"cli"},
    "cli": {
        "single",
        "pipeline",
        "emulator",
        "library",
        "store.library",
        "store.export",
        "store.generic",
        "simulation",
        "",
    },
}
DASK = {"dask", "distributed"}
# Third parties that must not be imported, by part of the package.
FORBIDDEN = {
    "steps": DASK | {"zarr", "xarray"},
    "emulator": DASK | {"zarr", "xarray"},
    "spectra": DASK | {"torch", "zarr", "xarray"},
    "library": DASK | {"zarr", "xarray"},
    "store": DASK | {"torch"},
    "report": DASK | {"torch", "zarr"},
    "simulation": DASK | {"zarr", "xarray"},
    "information": DASK | {"zarr", "xarray"},
    "corruption": DASK | {"torch", "zarr", "xarray"},
    "single": DASK | {"zarr", "xarray"},
    "validation": DASK | {"zarr", "xarray"},
    "recovery": DASK | {"zarr", "xarray"},
    "__main__": DASK | {"zarr", "torch"},
    "cli": DASK | {"zarr", "torch"},
    **{name: DASK | {"torch", "zarr", "xarray"} for name in FOUNDATIONS},
    "": DASK | {"torch", "zarr", "xarray"},
}


def module_name(path: Path, package: Path) -> str:
    """Dotted name below the package; the package's own __init__ is ''."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, package: Path) -> set[str]:
    """Absolute dotted names a file imports, wherever in it; `from a import b` gives a.b where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they point"
            for alias in node.names:
                inner = package.joinpath(*node.module.split(".")[1:], alias.name)
                is_module = inner.with_suffix(".py").exists() or (inner / "__init__.py").exists()
                inside = node.module.split(".")[0] == package.name
                found.add(f"{node.module}.{alias.name}" if inside and is_module else node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in {
            "import_module",
            "__import__",
        }:
            arguments = [a.value for a in node.args if isinstance(a, ast.Constant)]
            # Only the package's front door, which looks up a table, may import by computed name.
            assert arguments or path == package / "__init__.py", f"{path}: imports a name no reader can see"
            found |= set(arguments)
    return found


def violations(package: Path) -> list[str]:
    """Every import that points outward or at a library its part of the package must not know."""
    out = []
    for path in sorted(package.rglob("*.py")):
        name = module_name(path, package)
        part = name.split(".")[0]
        for imported in sorted(imports(path, package)):
            root, _, inner = imported.partition(".")
            if root != package.name:
                if root in FORBIDDEN.get(part, set()):
                    out.append(f"{name} imports {imported}")
                continue
            target = inner.split(".")[0]
            if target in FOUNDATIONS or (target == part and part not in FOUNDATIONS):
                continue
            allowed = ALLOWED.get(part, set())
            if not any(inner == a or (a and inner.startswith(a + ".")) for a in allowed):
                out.append(f"{name} imports {imported}")
    return out


def test_imports_point_inward():
    assert violations(PACKAGE) == []


def test_every_part_has_its_rule():
    parts = {module_name(p, PACKAGE).split(".")[0] for p in PACKAGE.rglob("*.py")}
    assert parts - {""} == ALLOWED.keys() | FOUNDATIONS


def test_only_run_knows_dask():
    users = {
        module_name(path, PACKAGE).split(".")[0]
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] in DASK for name in imports(path, PACKAGE))
    }
    assert users == {"pipeline"}


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("steps/fit.py", "import dask.array"),
        ("steps/fit.py", "from distributed import Client"),
        ("emulator/weights.py", "import zarr"),
        ("store/cube.py", "def f():\n    import torch"),
        ("report/page.py", "from torch import nn"),
        ("store/cube.py", "from hotdask.steps.fit import Fitter"),
        ("steps/fit.py", "from hotdask.store import cube"),
        ("steps/fit.py", "from hotdask.pipeline.maps import fit"),
        ("report/page.py", "import hotdask.pipeline.execute"),
        ("report/page.py", "from hotdask import run"),
        ("schema.py", "from hotdask.store import cube"),
        ("emulator/weights.py", "from hotdask.steps.label import Labeler"),
        ("simulation.py", "from hotdask.store.cube import create_cube"),
        ("store/cube.py", "import importlib\nimportlib.import_module('torch')"),
    ],
)
def test_the_guard_sees(tmp_path, where, line):
    package = tmp_path / "hotdask"
    planted = ("steps/fit", "emulator/weights", "store/cube", "report/page", "pipeline/maps", "pipeline/execute")
    for inner in (*planted, "simulation"):
        path = package / f"{inner}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text("import numpy\n")
    (package / "steps" / "label.py").touch()
    assert violations(package) == []
    (package / where).write_text(f"{line}\n")
    assert len(violations(package)) == 1


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
