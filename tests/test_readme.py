"""The README's commands, as a reader would copy them."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from hotdask.cli import main
from hotdask.config import Settings

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    """Content of fenced blocks."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("hotdask ")]


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed as the shell and the command line would, down to its last option; not run."""
    arguments = shlex.split(command, comments=True)[1:]
    context, group = click.Context(main, info_name="hotdask"), main
    while isinstance(group, click.Group):
        name = arguments.pop(0)
        assert name in group.commands, command
        group = group.commands[name]
    # Files it names need not be there.
    for parameter in group.params:
        if isinstance(parameter.type, click.Path):
            monkeypatch.setattr(parameter.type, "exists", False)
    group.make_context(group.name, arguments, parent=context)


def test_scripts_and_files_it_names_are_there() -> None:
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.])((?:scripts|deploy|tests|hotdask|\.readme)/[\w./-]*\w)", text))
    assert len(named) > 25
    assert [path for path in sorted(named) if not (README.parent / path).exists()] == []


def test_settings_it_shows_are_settings() -> None:
    for block in blocks("toml"):
        data = tomllib.loads(block)
        Settings.model_validate({"out": "RUN", "input": {"table": "candidates.csv"}} | data)


def test_every_promise_has_its_test() -> None:
    rows = re.findall(r"^\| (\d+) \| \*\*.*\[(\d+)\]\((tests/promises/test_(\d+)_\w+\.py)\)", README.read_text(), re.M)
    assert [int(number) for number, *_ in rows] == list(range(1, 19))
    for number, shown, path, named in rows:
        assert int(number) == int(shown) == int(named)
        assert "\ndef test_" in (README.parent / path).read_text()
