"""Settings of the documentation site; tables of columns, flags and settings are written from their declarations."""

from pathlib import Path

from pydantic import BaseModel

import hotdask
from hotdask import config, flags, schema

project = "hotdask"
author = "The hotdask developers"
release = version = hotdask.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "deflist"]
html_theme = "furo"
exclude_patterns = ["_build", "_generated"]
# Parts of the README are included; its relative links lead to files of the repository, not to pages.
suppress_warnings = ["myst.xref_missing", "ref.python"]
autodoc_typehints = "none"

GENERATED = Path(__file__).parent / "_generated"
TABLES = {"SPECTRA": "spectra", "CATALOG": "catalog", "FITS": "fits", "JOINED": "joined", "REJECTS": "rejects"}


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    escaped = [[cell.replace("|", "\\|").replace("*", "\\*").replace("\n", " ") for cell in row] for row in lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in escaped)


def _settings() -> str:
    parts = []
    for name, model in vars(config).items():
        if not (isinstance(model, type) and issubclass(model, BaseModel) and model.__module__ == config.__name__):
            continue
        if name.startswith("_") or not model.model_fields:
            continue
        rows = [
            [f"`{key}`", "required" if field.is_required() else f"`{field.default!r}`", field.description or ""]
            for key, field in model.model_fields.items()
        ]
        parts.append(f"## {name}\n\n{_table(['setting', 'default', 'meaning'], rows)}\n")
    return "\n".join(parts)


def _generate(app) -> None:
    GENERATED.mkdir(exist_ok=True)
    for declared, name in TABLES.items():
        rows = [[f"`{c.name}`", str(c.type), c.unit, c.doc] for c in getattr(schema, declared)]
        (GENERATED / f"{name}.md").write_text(_table(["column", "type", "unit", "meaning"], rows), encoding="utf-8")
    rows = [[f"`{flag.name}`", str(flag.value), text] for flag, text in flags.DESCRIPTIONS.items()]
    (GENERATED / "flags.md").write_text(_table(["flag", "value", "meaning"], rows), encoding="utf-8")
    (GENERATED / "settings.md").write_text(_settings(), encoding="utf-8")
    api = []
    for name, module in hotdask._PUBLIC.items():
        kind = "autoclass" if isinstance(getattr(hotdask, name), type) else "autofunction"
        members = "\n   :members:" if kind == "autoclass" else ""
        api.append(f"```{{eval-rst}}\n.. {kind}:: {module}.{name}{members}\n```\n")
    (GENERATED / "api.md").write_text("\n".join(api), encoding="utf-8")


def setup(app) -> None:
    """Write the tables before sources are read."""
    app.connect("builder-inited", _generate)
