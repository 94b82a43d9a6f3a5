"""Engines from outside: a Python function, an external program, or spectra somebody else has finished.

A function is the simplest: it takes (11,) labels and returns a `Synthesis`.

A program is run once per star, in a fresh temporary folder. Its input files are templates, text with places for
numbers in Python's format language: ``{teff:.0f}``, ``{logg:.2f}``. A literal brace, as shell scripts have them, is
written twice: ``{{`` and ``}}``. `placeholders` says which names there are. What the program needs besides (model
atmospheres, line lists) is found through ``{folder}``, the folder the template is in. Examples for SYNSPEC and SYNTHE
are in ``hotdask/library/templates``.

Finished spectra, such as those of a grid in non-LTE, are listed in a table with the labels and a path in each row.

All three pass the same checks as our own engine: a spectrum must cover the fine grid and be sampled at least as finely.
"""

import inspect
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.table import Table

from hotdask.errors import InputError, SynthesisError
from hotdask.labels import INDEX, LABEL_NAMES, RELATIVE
from hotdask.library.arrays import sha256
from hotdask.library.spectra import Synthesis
from hotdask.windows import air_to_vacuum

_ANGSTROM = {"angstrom": 1.0, "nm": 10.0, "um": 1e4}
_TAIL = 600
"""Characters of a program's output that an error quotes."""
_OUTPUT = "hotdask.out"
"""Where a program's own output goes, in its folder."""


@dataclass(frozen=True)
class SpectrumText:
    """How a spectrum is written as text.

    Attributes
    ----------
    medium : {"vacuum", "air"}
        Of the wavelengths.
    unit : {"angstrom", "nm", "um"}
        Of the wavelengths. The flux, of any unit, must be per unit wavelength.
    columns : tuple of int
        Columns, from 0, of wavelength, flux and, if there is one, continuum.
    skip : int
        Lines before the first row.
    continuum : str, optional
        Another file (wavelength, continuum; any sampling) in the same folder, written alike.
    """

    medium: str
    unit: str = "angstrom"
    columns: tuple[int, ...] = (0, 1)
    skip: int = 0
    continuum: str | None = None

    def read(self, path: str | Path) -> Synthesis:
        """Read a spectrum.

        Rows are sorted and of repeated wavelengths the first is kept: programs that work in stretches write the ends
        of each. Fortran's ``1.2D-05`` and ``1.2-105`` are understood; ``#`` begins a comment.

        Raises
        ------
        SynthesisError
            If the file is missing or not such a table.
        """
        path = Path(path)
        wavelength, flux, *rest = self._columns(path, self.columns)
        continuum = rest[0] if rest else None
        if self.continuum is not None:
            continuum = np.interp(wavelength, *self._columns(path.parent / self.continuum, (0, 1)))
        return Synthesis(wavelength, flux, continuum)

    def _columns(self, path: Path, columns: Sequence[int]) -> list[np.ndarray]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError as error:
            raise SynthesisError(f"there is no spectrum {path.name}") from error
        except OSError as error:
            raise SynthesisError(f"{path.name} cannot be read ({error.strerror})") from error
        body = "".join(text.splitlines(keepends=True)[self.skip :])
        body = re.sub(r"(?<=[\d.])[dD](?=[-+\d])", "E", body)
        body = re.sub(r"(?<=[\d.])(?=[-+]\d{3}\b)", "E", body)
        try:
            with warnings.catch_warnings(action="ignore"):
                table = np.loadtxt(body.splitlines(), usecols=columns, ndmin=2, unpack=True)
        except (ValueError, IndexError) as error:
            raise SynthesisError(f"{path.name} is no table with columns {list(columns)} ({error})") from error
        if not table.size:
            raise SynthesisError(f"{path.name} holds no row")
        wavelength = table[0] * _ANGSTROM[self.unit]
        if self.medium == "air":
            wavelength = air_to_vacuum(wavelength)
        wavelength, first = np.unique(wavelength, return_index=True)
        return [wavelength, *(column[first] for column in table[1:])]


def placeholders(labels: np.ndarray, solar: Mapping[str, float] | None = None) -> dict[str, float]:
    """Values a template may name.

    Parameters
    ----------
    labels : (11,) float64
    solar : mapping, optional
        log10 N/N_tot in the Sun, by lower-case symbol: the mixture the program's atmospheres were made with.

    Returns
    -------
    dict
        The labels by name (``vsini`` is 0); ``c_fe`` etc., [X/Fe]; ``metals``, 10^[Fe/H]; ``n_h_tot``, N_H/N_tot, and
        ``ratio_he``, N_He/N_H; for each element X of ``solar`` ``log_x``, log10 N_X/N_tot = solar + [X/H],
        ``scaled_x``, the same less [Fe/H] for programs that add it themselves, and ``ratio_x``, N_X/N_H. [X/H] is
        [Fe/H] for elements without a label.

    Examples
    --------
    >>> star = np.array([20000, 4, 2, 0, 0.1, 0.2, 0, 0, 0, 0, -0.5])
    >>> values = placeholders(star, {"c": -3.5, "mg": -4.5})
    >>> round(values["c_fe"], 2), round(values["log_c"], 2), round(values["log_mg"], 2), round(values["n_h_tot"], 2)
    (0.7, -3.3, -5.0, 0.9)
    """
    values = {name: float(labels[INDEX[name]]) for name in LABEL_NAMES} | {"vsini": 0.0}
    values |= {relative: values[name] - values["fe_h"] for relative, name in RELATIVE.items()}
    values["metals"] = 10 ** values["fe_h"]
    values["n_h_tot"] = 1 - values["n_he"]
    values["ratio_he"] = values["n_he"] / values["n_h_tot"]
    for element, log_solar in (solar or {}).items():
        values[f"log_{element}"] = log_solar + values.get(f"{element}_h", values["fe_h"])
        values[f"scaled_{element}"] = values[f"log_{element}"] - values["fe_h"]
        values[f"ratio_{element}"] = 10 ** values[f"log_{element}"] / values["n_h_tot"]
    return values


class _Everywhere:
    """What engines have in common that know no limits of their own."""

    def covers(self, labels: np.ndarray) -> np.ndarray:
        """Whether (n, 11) labels can be synthesized: all, unless the engine says otherwise."""
        return np.ones(len(labels), dtype=bool)


class FunctionEngine(_Everywhere):
    """A Python function as an engine.

    Parameters
    ----------
    function : callable or str
        Takes (11,) labels, returns a `Synthesis`; whatever it raises is the reason why a synthesis failed. As text
        ``"module:function"``: the module is imported, and so run, with all your rights, on every worker; it must be
        installed there, or be on ``PYTHONPATH``.
    name : str, optional
        Default: the function's own.
    covers : callable, optional
        Takes (n, 11) labels, returns (n,) bool.
    provenance : dict, optional
        Added to the module's name and the SHA-256 of its file.

    Raises
    ------
    InputError
        If text names no function.

    Examples
    --------
    >>> engine = FunctionEngine(lambda labels: Synthesis(np.array([1.0]), labels[:1]), name="flat")
    >>> engine(np.array([9000.0] + 10 * [0.0])).flux.tolist()
    [9000.0]
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], Synthesis] | str,
        name: str | None = None,
        covers: Callable[[np.ndarray], np.ndarray] | None = None,
        provenance: dict | None = None,
    ):
        self._function = find_function(function) if isinstance(function, str) else function
        self._where = function if isinstance(function, str) else _place(function)
        self.name = name or getattr(self._function, "__name__", "function")
        self._provenance = provenance or {}
        if covers is not None:
            self.covers = covers

    def provenance(self) -> dict:
        """Where the function comes from."""
        found = {"function": self._where}
        try:
            source = inspect.getsourcefile(self._function)
        except TypeError:
            source = None  # built in, or an object that is called
        if source and os.path.isfile(source):
            found["sha256"] = sha256(source)
        return found | self._provenance

    def __call__(self, labels: np.ndarray) -> Synthesis:
        """Synthesize one star from its (11,) labels.

        Raises
        ------
        SynthesisError
            Whatever the function raises, and if it returns anything but a `Synthesis`.
        """
        try:
            made = self._function(labels)
        except SynthesisError:
            raise
        except Exception as error:
            raise SynthesisError(f"{type(error).__name__}: {error}") from error
        if not isinstance(made, Synthesis):
            raise SynthesisError(f"{self.name} returned {type(made).__name__}; it must return a Synthesis")
        return made


def _place(function: Callable) -> str:
    kind = type(function)
    return f"{getattr(function, '__module__', kind.__module__)}:{getattr(function, '__qualname__', kind.__qualname__)}"


def find_function(where: str) -> Callable:
    """The function that ``"module:function"`` names.

    Raises
    ------
    InputError
        If there is none.

    Examples
    --------
    >>> find_function("math:cos")(0.0)
    1.0
    """
    if ":" not in where:
        raise InputError(f"'{where}' names no function; write it as module:function")
    try:
        function = pkgutil.resolve_name(where)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"'{where}' cannot be imported ({error}); install the module, or put its folder on PYTHONPATH"
        ) from error
    if not callable(function):
        raise InputError(f"'{where}' is a {type(function).__name__}, not a function")
    return function


class ProgramEngine(_Everywhere):
    """An external program as an engine.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments, found on PATH or given with the whole path; no shell is between.
    templates : sequence of path
        Its input files; each is filled in and written, under its own name, into the folder the program runs in.
    output : str
        File the program writes its spectrum to, in that folder.
    reader : SpectrumText
    name : str
    timeout : float
        Seconds after which the program, and all it has started, is stopped.
    converged : str, optional
        Regular expression that must be found in the log, or else the synthesis has not converged.
    log : str, optional
        File the program writes its log to, in that folder; default: what it prints.
    solar : mapping, optional
        For `placeholders`.

    Raises
    ------
    InputError
        If the program or a template is missing, or a template names what is no placeholder.
    """

    def __init__(
        self,
        command: Sequence[str],
        templates: Sequence[str | Path],
        output: str,
        reader: SpectrumText,
        *,
        name: str = "program",
        timeout: float = 3600.0,
        converged: str | None = None,
        log: str | None = None,
        solar: Mapping[str, float] | None = None,
    ):
        self.name, self._log = name, log or _OUTPUT
        self._command, self._output, self._reader, self._timeout = list(command), output, reader, timeout
        self._solar = dict(solar or {})
        if not self._command or shutil.which(self._command[0]) is None:
            raise InputError(f"the program {self._command[:1]} is not found; give its whole path, or install it")
        try:
            self._converged = None if converged is None else re.compile(converged)
        except re.error as error:
            raise InputError(f"converged = '{converged}' is no regular expression ({error})") from error
        self._templates = [Path(path).absolute() for path in templates]
        self._texts = {}
        for path in self._templates:
            try:
                self._texts[path.name] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{path}: cannot be read as a template ({error}); give a text file") from error
        # A template that cannot be filled in would fail for every star.
        self._fill(np.ones(len(LABEL_NAMES)) * 0.5)

    def _fill(self, labels: np.ndarray) -> dict[str, str]:
        values = placeholders(labels, self._solar)
        filled = {}
        for path in self._templates:
            try:
                filled[path.name] = self._texts[path.name].format(**values, folder=str(path.parent))
            except (KeyError, ValueError, IndexError, AttributeError) as error:
                raise InputError(
                    f"{path}: cannot be filled in ({type(error).__name__}: {error}); known names: folder, "
                    f"{', '.join(values)}; literal braces are doubled: {{{{ }}}}"
                ) from error
        return filled

    def provenance(self) -> dict:
        """Command, SHA-256 of the files it names and of the templates, and how the spectrum is read."""
        program = [shutil.which(self._command[0]), *self._command[1:]]
        return {
            "command": self._command,
            "sha256": {Path(p).name: sha256(p) for p in [*program, *self._templates] if os.path.isfile(p)},
            "output": self._output,
            "reader": asdict(self._reader),
            "timeout": self._timeout,
            "converged": self._converged and self._converged.pattern,
            "log": self._log,
            "solar": self._solar,
        }

    def __call__(self, labels: np.ndarray) -> Synthesis:
        """Synthesize one star from its (11,) labels.

        Raises
        ------
        SynthesisError
            If the program ends with an error, takes too long, or leaves no spectrum that can be read; with the end of
            what it printed.
        """
        with tempfile.TemporaryDirectory(prefix="hotdask-", ignore_cleanup_errors=True) as folder:
            for file, text in self._fill(labels).items():
                Path(folder, file).write_text(text, encoding="utf-8")
            printed = self._run(folder)
            try:
                made = self._reader.read(Path(folder, self._output))
            except SynthesisError as error:
                raise SynthesisError(f"{self.name}: {error}{_quote(printed)}") from error
            log = Path(folder, self._log)
            converged = self._converged is None or (log.is_file() and self._converged.search(_text(log)) is not None)
        return Synthesis(made.wavelength, made.flux, made.continuum, converged)

    def _run(self, folder: str) -> str:
        log = Path(folder, _OUTPUT)
        # Into a file, not a pipe: a grandchild that outlives a stopped program would keep a pipe open.
        with log.open("wb") as printed:
            try:
                process = subprocess.Popen(
                    self._command,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                )
            except OSError as error:
                raise SynthesisError(f"{self.name} could not be started ({error})") from error
            try:
                code = process.wait(self._timeout)
            except subprocess.TimeoutExpired as error:
                raise SynthesisError(
                    f"{self.name} was stopped after {self._timeout:g} s{_quote(_text(log))}"
                ) from error
            finally:
                # With all it started: also when it hangs, and when this process is told to stop.
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if code:
            raise SynthesisError(f"{self.name} ended with exit code {code}{_quote(_text(log))}")
        return _text(log)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _quote(printed: str) -> str:
    tail = " ".join(printed.split())[-_TAIL:]
    return f"; it printed: {tail}" if tail else "; it printed nothing"


class FinishedEngine:
    """Finished spectra as an engine that knows the labels of its table and no others.

    Parameters
    ----------
    table : path
        .csv, .parquet or .fits with a column ``path`` (relative to the table's folder) and one for each label but
        vsini, named and scaled as in `hotdask.labels`.
    reader : SpectrumText
    name : str, optional
        Default: the table's.

    Attributes
    ----------
    labels : (n, 11) float64
        Those of the table; vsini is 0.

    Raises
    ------
    InputError
        If the table cannot be read, lacks a column or a value, or has the same labels twice.
    """

    def __init__(self, table: str | Path, reader: SpectrumText, name: str | None = None):
        self._table, self._reader = Path(table).absolute(), reader
        self.name = name or self._table.stem
        frame = _read_table(self._table)
        needed = [label for label in LABEL_NAMES if label != "vsini"]
        missing = [column for column in ("path", *needed) if column not in frame]
        if missing:
            raise InputError(f"{table}: columns {missing} are missing; it needs path and {', '.join(needed)}")
        try:
            self.labels = frame.assign(vsini=0.0)[list(LABEL_NAMES)].to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise InputError(f"{table}: a label is no number ({error}); correct it") from error
        wrong = np.flatnonzero(~np.isfinite(self.labels).all(axis=1) | frame["path"].isna().to_numpy())
        if wrong.size or not len(frame):
            where = f"row {wrong[0] + 1} lacks a label or its path" if wrong.size else "it has no rows"
            raise InputError(f"{table}: {where}; correct the table")
        self._paths = {}
        for row, (labels, path) in enumerate(zip(self.labels, frame["path"], strict=True), 1):
            if _key(labels) in self._paths:
                raise InputError(f"{table}: row {row} has the labels of another row; keep one of them")
            self._paths[_key(labels)] = self._table.parent / str(path)

    def provenance(self) -> dict:
        """SHA-256 of the table, and how spectra are read."""
        return {"table": self._table.name, "sha256": sha256(self._table), "reader": asdict(self._reader)}

    def covers(self, labels: np.ndarray) -> np.ndarray:
        """Whether (n, 11) labels are those of a row."""
        return np.array([_key(row) in self._paths for row in labels], dtype=bool)

    def __call__(self, labels: np.ndarray) -> Synthesis:
        """The spectrum of one star, from its (11,) labels.

        Raises
        ------
        SynthesisError
            If no row has these labels, or its file is missing or no such table.
        """
        if _key(labels) not in self._paths:
            raise SynthesisError(f"{self._table.name} has no row with these labels")
        return self._reader.read(self._paths[_key(labels)])


def _key(labels: np.ndarray) -> bytes:
    # Adding 0 turns -0.0 into 0.0.
    return (np.asarray(labels, dtype=np.float64) + 0.0).tobytes()


def _read_table(path: Path) -> pd.DataFrame:
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            return pd.read_csv(path, dtype={"path": "string"})
        if kind == ".parquet":
            return pd.read_parquet(path)
        if kind == ".fits":
            with warnings.catch_warnings(action="ignore"):
                table = Table.read(path, format="fits")
                table.convert_bytestring_to_unicode()
                return table.to_pandas()
    # Three libraries, each with its own idea of what to raise on a file that is not what its name says.
    except Exception as error:
        raise InputError(f"{path}: cannot be read as a {kind} table ({error}); check the path and the file") from error
    raise InputError(f"{path}: unknown ending '{kind}'; give a .csv, .parquet or .fits table")
