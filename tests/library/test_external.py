"""Engines from outside: a function, a real program, finished spectra; each failure has its reason."""

import hashlib
import sys
import time
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from hotdask.config import Engine
from hotdask.errors import InputError, SynthesisError
from hotdask.labels import LABEL_NAMES
from hotdask.library import external
from hotdask.library.atoms import SYMBOLS
from hotdask.library.external import (
    FinishedEngine,
    FunctionEngine,
    ProgramEngine,
    SpectrumText,
    find_function,
    placeholders,
)
from hotdask.library.regrid import to_fine
from hotdask.library.spectra import Synthesis, fine_wavelength

STAR = np.array([18000.0, 3.9, 4.0, 0.0, 0.09, 0.3, 0.0, -0.2, 0.1, 0.0, -0.4])

# A program as an outsider writes it: reads its own input format, writes air wavelengths in nm, flux and continuum.
STUB = """\
import json, os, sys, time
import numpy as np

star = dict(line.split() for line in open("star.in") if line.strip())
teff, carbon = float(star["TEFF"]), float(star["LOGC"])
print("threads", os.environ["OMP_NUM_THREADS"], "files", sorted(os.listdir(".")))
if teff > 40000:
    print("no convergence after 50 iterations", flush=True)
    print("model too hot: %.0f K" % teff, file=sys.stderr)
    sys.exit(3)
if teff < 8000:
    time.sleep(60)
wavelength = np.arange(371.0, 903.0, 0.01)
continuum = (500 / wavelength) ** 4
flux = continuum * (1 - 10**carbon * 1000 * np.exp(-0.5 * ((wavelength - 500) / 0.05) ** 2))
if star["NAME"] != "silent":
    rows = np.column_stack([wavelength, flux, continuum])
    np.savetxt("spectrum.dat", rows, header="made by the stub\\nwavelength flux continuum", comments="")
with open("stub.log", "w") as log:
    log.write("CONVERGED\\n" if teff < 30000 else "maximum of iterations\\n")
print("done")
"""
INPUT = "TEFF {teff:.0f}\nLOGG {logg:.2f}\nVMIC {vmic:.1f}\nCFE {c_fe:+.2f}\nLOGC {log_c:.3f}\nNAME {{ok}}\n"
READER = SpectrumText(medium="air", unit="nm", columns=(0, 1, 2), skip=2)


@pytest.fixture
def program(tmp_path: Path):
    """Makes an engine from the stub; settings override."""
    stub, template = tmp_path / "stub.py", tmp_path / "star.in"
    stub.write_text(STUB)
    template.write_text(INPUT)

    def make(**settings) -> ProgramEngine:
        given = {"command": [sys.executable, str(stub)], "templates": [template], "output": "spectrum.dat"}
        given |= {"reader": READER, "name": "stub", "timeout": 30, "solar": {"c": -3.5}, **settings}
        return ProgramEngine(**given)

    return make


# Programs


def test_a_program_makes_a_spectrum(program) -> None:
    engine = program(converged="^CONVERGED", log="stub.log")
    made = engine(STAR)
    assert made.converged
    assert engine.covers(np.tile(STAR, (3, 1))).tolist() == [True] * 3
    # 500 nm in air is 5001.395 Å in vacuum (VALD's conversion).
    center = made.wavelength[np.argmin(made.flux / made.continuum)]
    assert center == pytest.approx(5001.395, abs=0.01)
    assert np.min(made.flux / made.continuum) == pytest.approx(1 - 1000 * 10 ** (-3.5 + 0.3), rel=1e-5)
    flux, continuum = to_fine(made)
    assert np.isfinite(flux).all()
    assert np.isfinite(continuum).all()


def test_each_star_has_its_own_folder_and_one_thread(program, tmp_path: Path) -> None:
    (tmp_path / "star.in").write_text(INPUT.replace("{{ok}}", "silent"))
    with pytest.raises(SynthesisError) as caught:
        program()(STAR)
    assert "stub: there is no spectrum spectrum.dat; it printed: threads 1" in str(caught.value)
    assert "files ['hotdask.out', 'star.in']" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["star.in", "stub.py"]


def test_not_converged_is_not_an_error_of_the_engine(program) -> None:
    engine = program(converged="^CONVERGED", log="stub.log")
    hot = STAR.copy()
    hot[0] = 35000
    assert not engine(hot).converged
    # Without a log file, what the program prints is searched.
    assert program(converged="done")(hot).converged
    assert not program(converged="CONVERGED")(hot).converged


def test_a_program_that_fails_says_why(program) -> None:
    hot = STAR.copy()
    hot[0] = 45000
    with pytest.raises(SynthesisError, match=r"exit code 3; it printed: .*model too hot: 45000 K"):
        program()(hot)


def test_a_program_that_hangs_is_stopped_with_its_children(program, tmp_path: Path) -> None:
    cool = STAR.copy()
    cool[0] = 7600
    script = tmp_path / "run.sh"
    script.write_text(f"{sys.executable} {tmp_path}/stub.py & echo $! > {tmp_path}/child\nwait\n")
    began = time.monotonic()
    with pytest.raises(SynthesisError, match="stopped after 2 s"):
        program(command=["bash", str(script)], timeout=2)(cool)
    assert time.monotonic() - began < 20
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    deadline = time.monotonic() + 5
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_provenance_names_program_and_templates(program, tmp_path: Path) -> None:
    found = program(converged="x").provenance()
    stub = tmp_path / "stub.py"
    assert found["sha256"][stub.name] == hashlib.sha256(stub.read_bytes()).hexdigest()
    assert "star.in" in found["sha256"]
    assert found["converged"] == "x"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"command": ["no-such-program-here"]}, "is not found"),
        ({"command": []}, "is not found"),
        ({"templates": ["nowhere.in"]}, "cannot be read as a template"),
        ({"solar": {}}, "known names: folder, teff"),
        ({"converged": "("}, "no regular expression"),
    ],
)
def test_an_engine_that_cannot_work_is_refused_at_once(program, settings: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        program(**settings)


@pytest.mark.parametrize("text", ["{teff", "{teff.real.nothing}", "{}", "{0}", "{teff:d}", "a } b"])
def test_templates_that_cannot_be_filled_in(program, tmp_path: Path, text: str) -> None:
    (tmp_path / "star.in").write_text(text)
    with pytest.raises(InputError, match="braces are doubled"):
        program()


def test_placeholders_are_abundances_by_number() -> None:
    values = placeholders(STAR, {"c": -3.5, "he": -1.0, "mg": -4.46, "fe": -4.5})
    assert values["teff"] == 18000
    assert values["vsini"] == 0
    assert values["o_fe"] == pytest.approx(0.2)
    assert values["log_mg"] == pytest.approx(-4.86)
    assert values["scaled_c"] == pytest.approx(-3.5 + 0.3 + 0.4)
    assert values["metals"] == pytest.approx(10**-0.4)
    assert values["log_fe"] == pytest.approx(-4.9)
    assert values["ratio_c"] == pytest.approx(10**-3.2 / 0.91)


# Reading


def test_text_as_fortran_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "fort.7"
    path.write_text("  4000.0  1.50D-05\n 4000.5 2.5E-05\n 4000.5 9.9E-05\n 4001.0 1.0-105 # faint\n 3999.0  3.0+100\n")
    made = SpectrumText("vacuum").read(path)
    assert made.wavelength.tolist() == [3999.0, 4000.0, 4000.5, 4001.0]
    assert made.flux.tolist() == [3e100, 1.5e-5, 2.5e-5, 1e-105]
    assert made.continuum is None


def test_the_continuum_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "fort.7").write_text("4000 1\n4001 2\n4002 3\n")
    (tmp_path / "fort.17").write_text("4000 4\n4002 8\n")
    made = SpectrumText("vacuum", continuum="fort.17").read(tmp_path / "fort.7")
    assert made.continuum.tolist() == [4, 6, 8]
    (tmp_path / "fort.17").unlink()
    with pytest.raises(SynthesisError, match=r"no spectrum fort\.17"):
        SpectrumText("vacuum", continuum="fort.17").read(tmp_path / "fort.7")


@pytest.mark.parametrize("text", ["", "# nothing\n", "4000\n", "4000 abc\n"])
def test_text_that_is_no_spectrum(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(SynthesisError, match=r"a\.txt"):
        SpectrumText("vacuum").read(tmp_path / "a.txt")


# Functions


def flat(labels: np.ndarray) -> Synthesis:
    if labels[0] > 50000:
        raise ArithmeticError("too hot")
    return Synthesis(fine_wavelength(), np.full(19216, labels[0])) if labels[1] > 0 else labels


def test_a_function_as_an_engine() -> None:
    engine = FunctionEngine(flat, covers=lambda labels: labels[:, 0] < 20000, provenance={"grid": "mine"})
    assert engine.name == "flat"
    assert engine(STAR).flux[0] == 18000
    assert engine.covers(np.array([STAR, STAR + 5000])).tolist() == [True, False]
    found = engine.provenance()
    assert found["grid"] == "mine"
    assert found["sha256"] == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    with pytest.raises(SynthesisError, match="ArithmeticError: too hot"):
        engine(STAR * 4)
    with pytest.raises(SynthesisError, match="must return a Synthesis"):
        engine(-STAR)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("math", "module:function"),
        ("no_such_module_x:f", "PYTHONPATH"),
        ("math:nothing", "PYTHONPATH"),
        ("math:pi", "float"),
    ],
)
def test_functions_that_are_none(where: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        find_function(where)


# Finished spectra


def grid(folder: Path, n: int = 3) -> pd.DataFrame:
    rows = []
    for i in range(n):
        labels = dict(zip(LABEL_NAMES, STAR, strict=True)) | {"teff": 20000.0 + 1000 * i}
        rows.append({k: v for k, v in labels.items() if k != "vsini"} | {"path": f"s{i}.txt"})
        np.savetxt(folder / f"s{i}.txt", np.column_stack([fine_wavelength(), np.full(19216, 1.0 + i)]), fmt="%.5f")
    return pd.DataFrame(rows)


@pytest.mark.parametrize("kind", ["csv", "parquet", "fits"])
def test_finished_spectra(tmp_path: Path, kind: str) -> None:
    table, path = grid(tmp_path), tmp_path / f"grid.{kind}"
    if kind == "fits":
        Table.from_pandas(table).write(path)
    else:
        getattr(table, f"to_{kind}")(path, index=False)
    engine = FinishedEngine(path, SpectrumText("vacuum"))
    assert engine.name == "grid"
    assert engine.labels[:, 0].tolist() == [20000, 21000, 22000]
    assert engine.covers(np.vstack([engine.labels, STAR])).tolist() == [True, True, True, False]
    np.testing.assert_allclose(to_fine(engine(engine.labels[2]))[0], 3.0)
    with pytest.raises(SynthesisError, match="no row with these labels"):
        engine(STAR)
    (tmp_path / "s1.txt").unlink()
    with pytest.raises(SynthesisError, match=r"no spectrum s1\.txt"):
        engine(engine.labels[1])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t.drop(columns="n_he"), r"columns \['n_he'\] are missing"),
        (lambda t: t.assign(logg=[4, np.nan, 4]), "row 2 lacks"),
        (lambda t: t.assign(logg=["4", "x", "4"]), "no number"),
        (lambda t: t.assign(teff=20000.0), "row 2 has the labels of another"),
        (lambda t: t.head(0), "no rows"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, spoil, says: str) -> None:
    spoil(grid(tmp_path)).to_csv(tmp_path / "grid.csv", index=False)
    with pytest.raises(InputError, match=says):
        FinishedEngine(tmp_path / "grid.csv", SpectrumText("vacuum"))


@pytest.mark.parametrize("name", ["nowhere.csv", "grid.txt", "broken.parquet"])
def test_tables_that_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.parquet").write_text("x")
    with pytest.raises(InputError, match=name):
        FinishedEngine(tmp_path / name, SpectrumText("vacuum"))


# The examples that are shipped


@pytest.mark.parametrize("program", ["synspec", "synthe"])
def test_shipped_templates_can_be_filled_in(program: str) -> None:
    folder = Path(external.__file__).parent / "templates" / program
    toml = (folder / "README.md").read_text().split("```toml")[1].split("```")[0]
    settings = Engine(**tomllib.loads(toml)["engine"])
    templates = [folder.parent / path for path in settings.templates]
    assert {path.name for path in templates} == {p.name for p in folder.iterdir()} - {"README.md"}
    # Filled in by a run whose program shows what it was given.
    show = ProgramEngine(["bash", "-c", "cat *; exit 1"], templates, "x", READER, solar=settings.solar)
    with pytest.raises(SynthesisError, match="exit code 1"):
        show(STAR)
    filled = {
        path.name: path.read_text().format(**placeholders(STAR, settings.solar), folder="/f") for path in templates
    }
    if program == "synthe":
        # synbeg reads (A3,7X,4F10.4,I3,I7,F10.5,2I5).
        card = filled["synbeg.in"].splitlines()[0]
        edges = np.cumsum([0, 10, 10, 10, 10, 10, 3, 7, 10, 5, 5])
        fields = [card[a:b].strip() for a, b in pairwise(edges)]
        assert len(card) == edges[-1]
        assert fields[0] == "VAC"
        assert [float(f) for f in fields[1:]] == [371, 904, 300000, 4, 0, -10, 0.001, 1, 0]
        assert "ABUNDANCE SCALE   0.39811 ABUNDANCE CHANGE 1 0.91000 2 0.09000" in filled["header.mod"]
        assert " 6 -2.78" in filled["header.mod"].replace("  ", " ")
    else:
        numbers = [line.split("!")[0].split() for line in filled["fort.5"].splitlines()]
        atoms = int(numbers[4][0])
        symbols = [line.split("!")[1].strip() for line in filled["fort.5"].splitlines()[5 : 5 + atoms]]
        assert symbols == list(SYMBOLS[:atoms])
        assert float(numbers[5 + 25][1]) == pytest.approx(10 ** (-4.37 - 0.4) / 0.91)
        assert [len(line.split()) for line in filled["fort.55"].splitlines()] == [3, 4, 5, 5, 3, 6, 2, 1]
