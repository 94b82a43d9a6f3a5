"""Every command of the README, run as a reader would: on a small survey, in one folder, from first line to last.

A command that nothing here can run fails, and so does a block in a language that nothing here knows.
"""

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
from astropy.table import Table
from click.testing import CliRunner
from distributed import LocalCluster

import hotdask
from hotdask.cli import main
from hotdask.config import Engine, LibrarySettings, Settings
from hotdask.flags import Flag
from hotdask.labels import LABEL_NAMES
from hotdask.pipeline import pages
from hotdask.schema import CATALOG, COMPARED, FITS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

SMALLER = {
    "simulate": "--stars 30 --spectra 40 --broken 6",
    "train": "--passes 1 --draws 2 --hidden 4 --basis 6 --inverse-draws 400 --inverse-passes 1",
}
"""Options that make a command small, by how it begins; of one that comes twice the last counts."""

OF_ITS_OWN = {
    "python3 -m venv .venv": "what scripts/environment does",
    ". .venv/bin/activate": "what scripts/environment does",
    "scripts/quickstart": "installs, and takes minutes: `test_the_quickstart` (long)",
    "scripts/test": "runs this test",
    "scripts/benchmark --check scripts/baseline.json": "takes minutes; tests/test_benchmark.py runs it small",
    "scripts/benchmark --only end_to_end": "takes minutes; tests/test_benchmark.py runs it small",
    "scripts/recovery hot.zarr --emulator hot.safetensors --out recovery": "tests/validation/test_recovery.py runs it",
    "scripts/accuracy spectral_templates --emulator shipped --emulator hot.safetensors --out accuracy": (
        "tests/validation/test_accuracy.py runs it"
    ),
}
"""Commands that cannot be run in seconds: of those in Python the options are checked here, for the rest see there."""

ENGINE = '''
import numpy as np
from hotdask.library.spectra import Synthesis, fine_wavelength

LINES = 4000.0 + 250 * np.arange(16)

def star(labels):
    """Sixteen lines whose depths answer to Teff and iron."""
    wavelength = fine_wavelength()
    depth = 0.2 + 0.3 * (labels[0] / 60000) + 0.05 * labels[10]
    lines = np.exp(-(((wavelength[:, None] - LINES) / 1.5) ** 2)).sum(axis=1)
    continuum = (5000 / wavelength) ** 3
    return Synthesis(wavelength, continuum * (1 - depth * lines), continuum)
'''


# What the README holds


def blocks(language: str) -> list[str]:
    """Content of fenced blocks."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def inline() -> list[str]:
    """What stands between single backticks, outside blocks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.S))]


NO_COMMAND = re.compile(r"--\w|\[\w+\] \w|\w+ = |(hotdask|xr)\.\w+\(")
"""Options, settings and Python: what has a space between backticks and is none of these is a command."""


@dataclass
class Command:
    """A command, the lines that it is said to print, and what became of it."""

    text: str
    shown: list[str] = field(default_factory=list)
    code: int | None = None
    output: str = ""


def commands() -> list[Command]:
    """Commands of the blocks, in order, and behind them those between the lines."""
    found: list[Command] = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", TEXT, re.S):
        for line in block.splitlines() if language in ("bash", "console") else ():
            if language == "bash" and (typed := re.split(r"(?:^|\s)#", line)[0].strip()):
                found.append(Command(typed))
            elif language == "console" and line.startswith("$ "):
                found.append(Command(line[2:]))
            elif language == "console":
                found[-1].shown.append(line)
    found += [Command(span) for span in inline() if " " in span and not NO_COMMAND.match(span)]
    return list({command.text: command for command in reversed(found)}.values())[::-1]


COMMANDS = commands()


def test_every_block_is_of_a_kind_that_is_run_here() -> None:
    languages = re.findall(r"^```(\w*)\n.*?^```$", TEXT, re.S | re.M)
    assert set(languages) <= {"bash", "console", "python", "toml", "text", ""}
    # Without a language: the flow of data, which is no command.
    assert languages.count("") == 1


def test_the_first_screen_says_what_it_does_shows_it_and_gives_two_commands() -> None:
    first = TEXT.splitlines()[:45]
    assert any(line.startswith("![") for line in first)
    assert {"scripts/quickstart", "scripts/test"} <= {line.partition(" ")[0] for line in first}


# The folder a reader works in


@pytest.fixture(scope="module")
def scheduler(s3: dict[str, str]) -> Iterator[str]:
    """Address of a scheduler whose worker is a thread of this process: no imports are made twice."""
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options, protocol="tcp", host="127.0.0.1") as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, scheduler: str) -> Iterator[Path]:
    """The present folder, with what the README takes for granted; an S3 bucket called "bucket"."""
    from s3fs import S3FileSystem

    S3FileSystem().mkdir("bucket")
    folder = tmp_path_factory.mktemp("reader")
    (folder / "deploy/local").mkdir(parents=True)
    engine = '[engine]\nkind = "function"\nfunction = "made_up_engine:star"\n[sampling]\nn = 30\n'
    (folder / "deploy/local/library.toml").write_text(engine)
    (folder / "library.toml").write_text(engine)
    (folder / "made_up_engine.py").write_text(ENGINE)
    settings, store = blocks("toml")
    settings = re.sub(r'(?<=scheduler = )"\S+"', f'"{scheduler}"', settings)
    (folder / "SETTINGS.toml").write_text(settings.replace("[input]\n", "[input]\nlimit = 12\n"))
    (folder / "STORE.toml").write_text(f"{store}\n[input]\ntable = 'candidates.csv'\nlimit = 8\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        # One page a run instead of twelve; workers are threads of this process.
        choose = pages.choose_spectra
        patch.setattr(pages, "choose_spectra", lambda catalog, n: choose(catalog, min(n, 1)))
        yield folder
    sys.modules.pop("made_up_engine", None)


def prepare(command: str) -> None:
    """Make the tables that a command is about to ask for, from the run that there is by then."""
    if "literature.csv" in command:
        truth = pd.read_parquet("survey/truth.parquet")
        truth[["specid", "teff_true", "logg_true"]].to_csv("literature.csv", index=False)
    if "dr6_stellar.csv" in command:
        spectra = pd.read_parquet("RUN/spectra", columns=["path", "ra", "dec", "class", "subclass"])
        spectra.to_csv("dr6_stellar.csv", index=False)
        hot = spectra.head(9)[["ra", "dec"]].assign(m_ks=1.0)
        Path("hot_hats/dataset/Norder=0/Dir=0").mkdir(parents=True)
        cell = hotdask_cells(hot["ra"], hot["dec"])
        for pixel in np.unique(cell >> 58):
            part = hot.assign(_healpix_29=cell)[(cell >> 58) == pixel]
            part.to_parquet(f"hot_hats/dataset/Norder=0/Dir=0/Npix={pixel}.parquet", index=False)
        Path("hot_hats/hats.properties").write_text("hats_col_ra=ra\nhats_col_dec=dec\n")
        Table.from_pandas(spectra.tail(5)[["ra", "dec"]]).write("ob.fits")
    if "SETTINGS.toml" in command:
        spectra = pd.read_parquet("RUN/spectra", columns=["path", "ra", "dec", "rv", "rv_err"])
        spectra.assign(note="mine").to_csv("candidates.csv", index=False)


def hotdask_cells(ra, dec) -> np.ndarray:
    from hotdask.crossmatch.match import cells

    return cells(ra, dec, order=29)


def find(arguments: list[str]) -> click.Command:
    """The command that arguments name."""
    command: click.Command = main
    for word in arguments:
        if not isinstance(command, click.Group):
            break
        assert word in command.commands, f"hotdask {' '.join(arguments)}: there is no {word}"
        command = command.commands[word]
    return command


def call(command: str, scheduler: str) -> tuple[int, str]:
    """Run ``hotdask …``: exit code and output."""
    there = Path("RUN/catalog").exists()
    specid = pd.read_parquet("RUN/catalog", columns=["specid"])["specid"].iloc[0] if there else "none"
    # Files that a reader has are those of the survey; a spectrum that a reader sees is one of the run.
    command = command.replace("'DIR/", "'survey/")
    command = re.sub(r"\b\d{5}-SIM_\d{3}-\d\d-\d{3}\b", str(specid), command)
    arguments = shlex.split(command)[1:]
    smaller = next((options for start, options in SMALLER.items() if command.startswith(f"hotdask {start}")), "")
    arguments += shlex.split(smaller)
    if any(parameter.name == "scheduler" for parameter in find(arguments).params):
        arguments += ["--scheduler", scheduler]
    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output.replace(str(specid), "SPECID")


def script(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a script in Python here, as the command line would; its exit code."""
    arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [str(ROOT / arguments[0]), *arguments[1:]])
    for name in ("OMP", "OPENBLAS", "MKL"):
        monkeypatch.setenv(f"{name}_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def done(folder: Path, scheduler: str) -> list[Command]:
    """All ``hotdask`` commands in the README's order, the survey first."""
    ours = [command for command in COMMANDS if re.match(r"hotdask \S+ \S", command.text)]
    for command in sorted(ours, key=lambda c: not c.text.startswith("hotdask simulate ")):
        prepare(command.text)
        command.code, command.output = call(command.text, scheduler)
    store = Command("hotdask catalog STORE.toml --out STORED")
    store.code, store.output = call(store.text, scheduler)
    return [*ours, store]


# Each command, and what is said around it


@pytest.mark.parametrize("text", [command.text for command in COMMANDS])
def test_every_command_runs(text: str, done: list[Command], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The rules by which a command is run; one that none of them fits is one that no test knows."""
    ours = next((command for command in done if command.text == text), None)
    words = shlex.split(text)
    if ours is not None:
        assert ours.code == 0, ours.output
    elif words[0] == "hotdask":
        assert isinstance(find(words[1:]), click.Command)
    elif text in OF_ITS_OWN:
        if words[0].startswith("scripts/") and "python3" in (ROOT / words[0]).read_text().splitlines()[0]:
            assert script(f"{text} --help", monkeypatch) == 0
            options = re.findall(r"--[\w-]+", text)
            assert {*options} <= {*re.findall(r"--[\w-]+", capsys.readouterr().out)}
    elif words[0].startswith("scripts/") and words[0].endswith(".py"):
        assert script(text, monkeypatch) == 0
        assert capsys.readouterr().out
    elif words[:2] == ["pip", "install"]:
        name, extra = re.fullmatch(r"(\w+)\[(\w+)\]", words[2]).groups()
        assert name == PROJECT["name"]
        assert extra in PROJECT["optional-dependencies"]
    elif words[:2] == ["dask", "worker"]:
        from distributed.cli.dask_worker import main as worker

        worker.make_context("worker", [word.replace("ADDRESS", "tcp://127.0.0.1:1") for word in words[2:]])
    else:
        pytest.fail(f"no test knows how to run `{text}`: add a rule, or a reason to OF_ITS_OWN")


def plain(line: str) -> str:
    """A line without its numbers, names and spaces, which differ from survey to survey."""
    line = re.sub(r"\d+-SIM_\d+-\d+-\d+|SPECID", "@", line.replace(os.getcwd(), "…"))
    return re.sub(r"[-−]?[\d.,]*\d(\.(?=\D|$))?(e-\d+)?", "#", " ".join(line.split()))


@pytest.mark.parametrize("text", [command.text for command in COMMANDS if command.shown])
def test_what_a_command_is_said_to_print_is_what_it_prints(text: str, done: list[Command]) -> None:
    """Line by line but for numbers; lines of an ellipsis stand for what was left out."""
    command = next(command for command in done if command.text == text)
    printed = {plain(line) for line in command.output.splitlines()}
    missing = [line for line in command.shown if line.strip() not in ("", "…") and plain(line) not in printed]
    assert missing == [], command.output


def test_python_runs(done: list[Command], capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks one after the other, with the arrays they speak of; then expressions between the lines."""
    cube = hotdask.open_cube("RUN/spectra.zarr").isel(spectrum=slice(0, 4))
    names = {name: np.asarray(cube[name]) for name in ("flux", "ivar", "rv")}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert len(names["stars"])
    assert np.isfinite(names["result"]["teff"]).all()
    assert set(names["result"]) >= {*LABEL_NAMES, "covariance", "flags"}
    printed = {plain(line) for line in capsys.readouterr().out.splitlines()}
    (shown,) = blocks("text")
    assert plain(shown.splitlines()[1]) in printed
    import xarray as xr

    specids = hotdask.read_catalog("RUN")["specid"].head(3)
    names |= {"hotdask": hotdask, "xr": xr, "RUN": "RUN", "specids": specids, "path": "RUN/spectra.zarr"}
    names["settings"] = hotdask.load_settings("SETTINGS.toml")
    calls = [span for span in inline() if re.match(r"(hotdask|xr)\.\w+\(", span)]
    assert len(calls) >= 4
    for span in calls:
        assert eval(compile(ast.parse(span, mode="eval"), span, "eval"), names) is not None, span
    for span in inline():
        if found := re.fullmatch(r"hotdask\.(\w+)", span):
            assert getattr(hotdask, found[1], None) is not None, span


def test_settings_it_shows_are_settings(done: list[Command]) -> None:
    """Whole files were run; sections between the lines are settings, too."""
    assert Path("HOT/report/index.html").exists()
    assert (done[-1].text.split()[2], done[-1].code) == ("STORE.toml", 0), done[-1].output
    assert {"catalog", "spectra.zarr"}.isdisjoint(path.name for path in Path("STORED").iterdir())
    for block in blocks("toml"):
        Settings.model_validate({"out": "RUN", "input": {"table": "candidates.csv"}} | tomllib.loads(block))
    sections = [re.fullmatch(r"\[(\w+)\](?: (\w+)(?: = .+)?)?", span) for span in inline()]
    dotted = [re.fullmatch(r"(\w+)\.(\w+)", span) for span in inline()]
    sections = [found for found in sections if found]
    assert len(sections) >= 5
    for found in [*sections, *(found for found in dotted if found and found[1] in Settings.model_fields)]:
        section, name = found.groups()
        every = Settings.model_fields | LibrarySettings.model_fields
        assert section in every, found[0]
        fields = every[section].annotation.model_fields
        assert name is None or name in fields, found[0]


def test_options_it_speaks_of_are_options() -> None:
    known = {o for command in walk(main) for parameter in command.params for o in parameter.opts}
    known |= set(
        re.findall(r"--[\w-]+", "".join((ROOT / "scripts" / n).read_text() for n in ("accuracy", "benchmark", "soak")))
    )
    spoken = [option for span in inline() if span.startswith("--") for option in re.findall(r"--[\w-]+", span)]
    assert spoken
    assert set(spoken) <= known


def walk(command: click.Command) -> Iterator[click.Command]:
    yield command
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        yield from walk(inner)


def test_flags_and_columns_it_names_are_there() -> None:
    columns = {column.name for columns in (CATALOG, FITS, *COMPARED.values()) for column in columns}
    named = [span for span in inline() if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+|[A-Z]+(_[A-Z]+)+", span)]
    unknown = [span for span in named if span not in columns and span not in Flag.__members__]
    assert len(named) >= 8
    # Of scipy.
    assert set(unknown) <= {"least_squares", *Engine.model_fields}


def test_scripts_and_files_it_names_are_there() -> None:
    named = set(re.findall(r"(?<![\w/.])((?:scripts|deploy|tests|hotdask|\.readme)/[\w./-]*\w)", TEXT))
    assert len(named) > 25
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_promise_has_its_test() -> None:
    rows = re.findall(r"^\| (\d+) \| \*\*.*\[(\d+)\]\((tests/promises/test_(\d+)_\w+\.py)\)", TEXT, re.M)
    assert [int(number) for number, *_ in rows] == list(range(1, 19))
    for number, shown, path, named in rows:
        assert int(number) == int(shown) == int(named)
        assert "\ndef test_" in (ROOT / path).read_text()


@pytest.mark.long
def test_the_quickstart(tmp_path: Path) -> None:
    """Smaller, and in the environment of the tests: what it prints is what the README says."""
    small = "--stars 120 --spectra 200 --broken 6 --dashboard 127.0.0.1:0"
    command = [sys.executable, str(ROOT / "scripts/quickstart.py"), str(tmp_path / "quick"), *small.split()]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280).stdout
    assert re.search(r"^cluster: .*, dashboard http://127\.0\.0\.1:\d+", printed, re.M)
    for name in LABEL_NAMES:
        assert re.search(rf"^{name} .*(\s+[\d.e+-]+){{5}}$", printed, re.M), printed
    for made in ("run/catalog", "run/report/index.html"):
        assert f"{tmp_path}/quick/{made}" in printed
        assert (tmp_path / "quick" / made).exists()
