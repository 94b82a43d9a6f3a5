"""The command line: verbs in order, one flow from nothing to a report, and errors without a traceback."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from hotdask import __version__, config
from hotdask.cli import main
from hotdask.cluster.client import open_client
from hotdask.config import load_settings
from hotdask.library.spectra import fine_wavelength
from hotdask.store.library import read_library

VERBS = ["simulate", "library", "train", "information", "ingest", "fit", "catalog", "report", "run"]
VERBS += [
    "candidates",
    "certificates",
    "compare",
    "estimate",
    "export",
    "label",
    "model-error",
    "plot",
    "status",
    "verify",
]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a scheduler with one worker."""
    cluster = config.Cluster(workers=1, dashboard="127.0.0.1:0")
    with open_client(cluster, echo=lambda line: None) as client:
        yield client.scheduler.address


@pytest.fixture(scope="module")
def survey(scheduler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "survey"
    counts = ["--stars", 14, "--spectra", 18, "--broken", 2, "--seed", 4]
    result = call("simulate", folder, *counts, "--scheduler", scheduler)
    assert result.exit_code == 0, result.output
    assert "18 spectra of 14 stars, 2 broken files" in result.output
    return folder


# Help


def verbs_listed() -> list[str]:
    block = call("--help").output.split("Commands:")[1]
    return re.findall(r"^  ([\w-]+)", block, re.MULTILINE)


def test_help_lists_all_verbs_in_the_order_of_the_flow() -> None:
    listed = verbs_listed()
    assert sorted(listed) == sorted(VERBS)
    flow = ["simulate", "ingest", "fit", "catalog", "report", "status", "verify"]
    assert [verb for verb in listed if verb in flow] == flow


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = call(verb, "-h")
    assert result.exit_code == 0
    assert len(result.output.split("\n\n")[1].strip()) > 15
    if verb in ("ingest", "fit", "catalog", "report", "run"):
        cluster = ("--scheduler", "--workers", "--profile")
        for option in ("--spectra", "--table", "--out", "--limit", "--classes", "--truth", *cluster):
            assert option in result.output


def test_version_and_help_are_quick_to_say() -> None:
    """Neither torch nor Dask may be imported for a help text."""
    code = (
        "import sys; from click.testing import CliRunner; from hotdask.cli import main\n"
        "result = CliRunner().invoke(main, ['--version']); print(result.output)\n"
        "result = CliRunner().invoke(main, ['run', '--help']); assert result.exit_code == 0\n"
        "print(sorted({'torch', 'distributed', 'matplotlib', 'pandas', 'astropy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert __version__ in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


# The flow


def test_from_files_to_report(survey: Path, scheduler: str, tmp_path: Path) -> None:
    out = tmp_path / "RUN"
    toml = tmp_path / "settings.toml"
    toml.write_text("[report]\nspectra = 1\n")
    inputs = ["--spectra", f"{survey}/**/*.fits*", "--truth", survey / "truth.parquet", "--scheduler", scheduler]
    result = call("ingest", toml, "--out", out, *inputs)
    assert result.exit_code == 0, result.output
    assert "18 spectra in the cube, 2 rejected" in result.output
    assert not (out / "fits").exists()
    status = call("status", out)
    assert status.exit_code == 0
    assert re.search(r"ingest +done", status.output)
    assert re.search(r"fit +0 of 18 spectra, 0 of 1 partitions", status.output)
    assert f"hotdask run {out}" in status.output

    # What status advises goes on with the same settings.
    result = call("catalog", out, "--profile")
    assert result.exit_code == 0, result.output
    assert "catalog: 18 spectra of 14 stars" in result.output
    assert re.search(r"^fit +read cube", result.output, re.MULTILINE)
    assert not (out / "report").exists()
    assert load_settings(out / "settings.toml").cluster.scheduler == scheduler

    result = call("run", out)
    assert result.exit_code == 0, result.output
    assert (out / "report" / "index.html").exists()
    before = (out / "run.json").read_bytes()
    result = call("run", out)
    assert result.exit_code == 0
    assert "nothing to do" in result.output
    assert (out / "run.json").read_bytes() == before
    assert call("status", out).output.count("done") == 4
    assert len(pd.read_parquet(out / "catalog", columns=["specid"])) == 18


def test_settings_file_and_overrides(survey: Path, scheduler: str, tmp_path: Path) -> None:
    toml = tmp_path / "settings.toml"
    toml.write_text(
        f'out = "{tmp_path}/A"\n[input]\nspectra = "{survey}/dr*/**/*.fits*"\n[cube]\npartition_size = 16\n'
        f'[cluster]\nscheduler = "{scheduler}"\n'
    )
    result = call("ingest", toml, "--out", tmp_path / "B", "--limit", 9, "--classes", "A, B")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "A").exists()
    resolved = load_settings(tmp_path / "B" / "settings.toml")
    assert (resolved.input.limit, resolved.input.classes, resolved.cube.partition_size) == (9, ("A", "B"), 16)
    assert json.loads((tmp_path / "B" / "run.json").read_text())["counts"]["files"] == 9


def test_a_run_that_was_moved_goes_on(survey: Path, scheduler: str, tmp_path: Path) -> None:
    inputs = ["--spectra", f"{survey}/dr*/**/*.fits*", "--scheduler", scheduler]
    assert call("ingest", "--out", tmp_path / "here", *inputs).exit_code == 0
    (tmp_path / "here").rename(tmp_path / "there")
    result = call("ingest", tmp_path / "there")
    assert result.exit_code == 0, result.output
    assert "there: nothing to do" in result.output
    assert not (tmp_path / "here").exists()


# Libraries


def test_a_library_from_a_settings_file(tmp_path: Path, scheduler: str) -> None:
    wavelength = fine_wavelength()
    rows = ["path,teff,logg,vmic,n_he,c_h,n_h,o_h,si_h,s_h,fe_h"]
    rows += [f"{i}.txt,{20000 + 1000 * i},4,2,0.09,0,0,0,0,0,0" for i in range(3)]
    (tmp_path / "grid.csv").write_text("\n".join(rows))
    for i in range(2):
        np.savetxt(tmp_path / f"{i}.txt", np.column_stack([wavelength, np.full_like(wavelength, 1.0 + i)]), fmt="%.4f")
    toml = tmp_path / "library.toml"
    toml.write_text(f'[engine]\nkind = "finished"\ntable = "{tmp_path}/grid.csv"\nmedium = "vacuum"\n')
    command = ["library", "build", toml, "--out", tmp_path / "lib.zarr", "--scheduler", scheduler]
    result = call(*command)
    assert result.exit_code == 0, result.output
    assert "2 of 3 syntheses made, 1 failed" in result.output
    assert "1 x there is no spectrum 2.txt" in result.output
    assert "nothing to do" in call(*command).output
    assert read_library(tmp_path / "lib.zarr").flux[:, 0].tolist() == [1, 2]

    page = tmp_path / "coverage.html"
    result = call("library", "check", tmp_path / "lib.zarr", "--page", page)
    assert "2 of 3 syntheses made, 1 failed" in result.output
    assert page.exists()
    assert result.exit_code == (1 if "problem" in result.output else 0)


# Errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--out", "RUN"], "input"),
        (["run", "--spectra", "a/*.fits"], "out"),
        (["run", "--spectra", "nowhere/*.fits", "--out", "RUN"], "matches no file"),
        (["run", "--spectra", "a", "--table", "b.csv", "--out", "RUN"], "not both"),
        (["run", "--table", "nowhere.csv", "--out", "RUN"], "does not exist"),
        (["run", "nowhere.toml"], "cannot read the settings file"),
        (["run", "."], "cannot read the settings file"),
        (["run", "broken.toml"], "not valid TOML"),
        (["run", "unknown.toml"], "cube.size"),
        (["run", "--spectra", "a", "--out", "RUN", "--limit", "0"], "input.limit"),
        (["status", "."], "holds no run"),
        (["simulate", "."], "is not empty"),
        (["simulate", "broken.toml"], "is a file"),
        (["simulate", "broken.toml/new", "--stars", "3", "--spectra", "3", "--broken", "0"], "cannot be written"),
        (["simulate", "new", "--emulator", "nowhere.safetensors"], "nowhere.safetensors"),
        (["run", "--spectra", "*.toml", "--out", "broken.toml"], "broken.toml"),
        (["library", "build", "nowhere.toml"], "cannot read the settings file"),
        (["library", "build", "unknown.toml", "--out", "RUN"], "engine: not given"),
        (["library", "build", "library.toml"], "out: not given"),
        (["library", "build", "library.toml", "--out", "RUN", "--n", "0"], "sampling.n"),
        (["library", "build", "library.toml", "--out", "RUN"], "'nowhere:star' cannot be imported"),
    ],
)
def test_errors_are_one_message_and_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text("out = ")
    Path("unknown.toml").write_text('out = "RUN"\n[input]\nspectra = "a"\n[cube]\nsize = 3\n')
    Path("library.toml").write_text('[engine]\nkind = "function"\nfunction = "nowhere:star"\n')
    result = call(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("hotdask: ")
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("RUN").exists()


@pytest.mark.parametrize("arguments", [["fly"], ["run", "--nonsense"], ["status", "nowhere"], ["train", "a.npz"]])
def test_wrong_usage_is_click_s_exit_2(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_a_real_process_prints_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from hotdask.cli import main; main()", "run", "nowhere.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("hotdask: nowhere.toml: cannot read the settings file")
    assert done.stderr.count("\n") == 1
