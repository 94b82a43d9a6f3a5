"""The settings of a run: one frozen model, read from TOML, checked once, with a fingerprint."""

import hashlib
import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hotdask import windows
from hotdask.errors import SettingsError
from hotdask.labels import LABEL_NAMES, RELATIVE

Range = tuple[float, float]


def _ranges(rows) -> tuple[Range, ...]:
    return tuple((w.low, w.high) for w in rows)


class _Section(BaseModel):
    # Infinity is a natural way to say "no limit"; JSON has no number for it.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Input(_Section):
    """Which spectra."""

    spectra: str | None = Field(None, description="glob pattern of FITS files, ** for any depth")
    table: str | None = Field(
        None, description="table (.csv, .parquet, .fits) with a column path and optional overrides"
    )
    limit: int | None = Field(None, gt=0, description="take only the first N files")
    classes: tuple[str, ...] = Field((), description="keep only pipeline classes or subclasses that start with these")
    max_reject_share: float = Field(0.5, ge=0, le=1, description="stop when more than this share is rejected")

    @model_validator(mode="after")
    def _one_source(self):
        if (self.spectra is None) == (self.table is None):
            raise ValueError("give either input.spectra (a pattern) or input.table, not both and not neither")
        return self


class Cube(_Section):
    """How spectra are stored."""

    partition_size: int = Field(1024, ge=16, le=65536, description="spectra per partition = Zarr shard = task")


class Normalize(_Section):
    """The continuum (Eqs 1-2). An emulator learned with other values is refused."""

    scale: float = Field(50.0, gt=0, description="L of the kernel exp(−Δλ²/L²) [Å]")
    cutoff: float = Field(5.0, ge=3, description="kernel cut, in units of L")
    slope: bool = Field(True, description="divide by a log-log polynomial first, against reddening")
    min_pixels: float = Field(10.0, ge=1, description="effective pixels (Σω)²/Σω² a continuum must rest on")
    exclude: tuple[Range, ...] = Field(_ranges(windows.CONTINUUM_EXCLUDE), description="windows with weight 0 [Å, air]")


class Fit(_Section):
    """Masks, line spread and the fit."""

    andmask_bits: int = Field(0xFFFF, ge=0, le=0xFFFF, description="ANDMASK bits that exclude a pixel")
    ormask_bits: int = Field(0, ge=0, le=0xFFFF, description="ORMASK bits that exclude a pixel")
    resolving_power_blue: float = Field(1800.0, gt=0, description="mean LSF of the blue arm, λ/FWHM")
    resolving_power_red: float = Field(1800.0, gt=0, description="mean LSF of the red arm, λ/FWHM")
    mask: tuple[Range, ...] = Field(_ranges(windows.FIT_MASK), description="windows never fitted [Å, air]")
    hydrogen: tuple[Range, ...] = Field(
        _ranges(windows.HYDROGEN), description="windows masked in the second fit [Å, air]"
    )
    min_pixels: int = Field(300, ge=50, description="fewer good pixels than this are not fitted")
    max_iterations: int = Field(60, ge=1, description="Levenberg-Marquardt steps per start")
    continuum_tolerance: float = Field(
        1e-2, gt=0, description="shift of the continuum by bad pixels above which a first fit corrects it"
    )
    emulator: str | None = Field(None, description="emulator file (.safetensors); default: the one shipped")
    refine: str | None = Field(
        None, description="file of a per-pixel emulator (.safetensors) that goes on where fits with the other end"
    )


class Catalog(_Section):
    """Stars, errors, cuts."""

    match_radius: float = Field(3.0, gt=0, description="spectra closer than this are one star [arcsec]")
    min_teff: float = Field(7000.0, description="sample cut [K]")
    min_snr: float = Field(5.0, description="sample cut on snr_g")
    pair_snr_tolerance: float = Field(0.2, gt=0, description="repeat pairs differ by at most this share in S/N")
    min_pairs: int = Field(200, ge=30, description="fewer repeat pairs than this leave the errors formal")
    max_chi2ratio: float = Field(10.0, description="chi2ratio above this is flagged")
    max_files: int = Field(128, ge=1, description="files the catalog is compacted to, at most")


class Cluster(_Section):
    """Where it runs. Never changes a result."""

    scheduler: str | None = Field(None, description="address of a running scheduler, e.g. tls://host:8786")
    workers: int | None = Field(None, ge=1, description="worker processes of a local cluster; default: one per core")
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where fits run; with cuda every task of a fit takes a worker's resource GPU = 1"
    )
    memory_limit: str = Field(
        "4GiB", pattern=r"^\d+(\.\d+)? ?[kKMGT]i?B$", description="per worker of a local cluster, e.g. 4GiB"
    )
    dashboard: str = Field(
        "127.0.0.1:8787",
        pattern=r"^[^\s:]+:\d+$",
        description="host:port of the dashboard; port 0 picks a free one",
    )


class Report(_Section):
    """The pages at the end."""

    spectra: int = Field(12, ge=0, le=200, description="spectra that get a page with their fits")
    tracks: str | None = Field(
        None, description="tracks to draw (.csv, .parquet): track, teff [K], logg; mass, m_ks, bp_rp_0 if known"
    )
    truth: str | None = Field(None, description="truth table of a simulated survey (.parquet), to compare with")


FREE: dict[str, set[str]] = {"input": {"max_reject_share"}}
"""Settings that decide whether a run goes on but not what it finds: they may change from one command to the next."""


class Settings(_Section):
    """Everything a run depends on.

    Examples
    --------
    >>> s = Settings(out="RUN", input={"spectra": "data/*.fits"})
    >>> s.cube.partition_size
    1024
    """

    out: Annotated[str, Field(min_length=1, description="directory of the run")]
    input: Input
    cube: Cube = Cube()
    normalize: Normalize = Normalize()
    fit: Fit = Fit()
    catalog: Catalog = Catalog()
    cluster: Cluster = Cluster()
    report: Report = Report()

    def absolute(self) -> "Settings":
        """The same settings with paths that hold from any folder."""

        def here(path: str | None) -> str | None:
            return path if path is None or "://" in path else os.path.abspath(path)

        def update(section: _Section, *names: str) -> _Section:
            return section.model_copy(update={name: here(getattr(section, name)) for name in names})

        return self.model_copy(
            update={
                "out": here(self.out),
                "input": update(self.input, "spectra", "table"),
                "fit": update(self.fit, "emulator", "refine"),
                "report": update(self.report, "truth", "tracks"),
            }
        )

    def fingerprint(self, *sections: Literal["input", "cube", "normalize", "fit", "catalog"]) -> str:
        """SHA-256 over the sections that decide a result (all of them by default), 16 hex digits."""
        chosen = sections or ("input", "cube", "normalize", "fit", "catalog")
        values = {s: getattr(self, s).model_dump(mode="json", exclude=FREE.get(s)) for s in chosen}
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_READER = {"medium", "unit", "columns", "skip", "continuum"}
_ENGINES: dict[str, tuple[set[str], set[str]]] = {
    "lte": ({"atmospheres", "lines"}, {"helium"}),
    "function": ({"function"}, set()),
    "program": ({"command", "output", "medium"}, {"templates", "timeout", "converged", "log", "solar", *_READER}),
    "finished": ({"table", "medium"}, _READER),
}
"""For each kind of engine the settings it needs, and those it takes besides."""


class Engine(_Section):
    """What makes the spectra of a library; each kind has its own settings."""

    kind: Literal["lte", "function", "program", "finished"] = Field(description="where spectra come from")
    name: str | None = Field(None, min_length=1, description="what the library's card calls it")
    atmospheres: str | None = Field(None, description="lte: model atmospheres")
    lines: str | None = Field(None, description="lte: line list")
    helium: Literal["stark", "voigt"] = Field("stark", description="lte: profiles of helium lines")
    function: str | None = Field(None, description="function: module:function, imported and run on every worker")
    command: tuple[str, ...] = Field((), description="program: the program and its arguments")
    templates: tuple[str, ...] = Field((), description="program: templates of its input files")
    output: str | None = Field(None, description="program: the file it writes its spectrum to")
    timeout: float = Field(3600.0, gt=0, description="program: stopped after this time [s]")
    converged: str | None = Field(None, description="program: regular expression to be found in its log")
    log: str | None = Field(None, description="program: file of its log; default: what it prints")
    solar: dict[str, float] = Field({}, description="program: log10 N/N_tot in the Sun by lower-case symbol")
    table: str | None = Field(None, description="finished: table (.csv, .parquet, .fits) of labels and paths")
    medium: Literal["air", "vacuum"] | None = Field(None, description="program, finished: of the wavelengths")
    unit: Literal["angstrom", "nm", "um"] = Field("angstrom", description="program, finished: of the wavelengths")
    columns: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1), min_length=2, max_length=3, description="program, finished: wavelength, flux[, continuum], from 0"
    )
    skip: int = Field(0, ge=0, description="program, finished: lines before the first row")
    continuum: str | None = Field(None, description="program, finished: a file with the continuum")

    @model_validator(mode="after")
    def _of_its_kind(self):
        needed, taken = _ENGINES[self.kind]
        missing = sorted(n for n in needed if not getattr(self, n))
        if missing:
            if self.kind == "lte":
                missing.append("which Kurucz publishes (kurucz.harvard.edu: ap*.dat decks, gfall lists), or .npz files")
            raise ValueError(f"kind = '{self.kind}' needs {', '.join(missing)}")
        given = {n for n, field in type(self).model_fields.items() if getattr(self, n) != field.default}
        foreign = sorted(given - needed - taken - {"kind", "name"})
        if foreign:
            raise ValueError(f"kind = '{self.kind}' has no {', '.join(foreign)}; leave them out")
        return self


_RANGED = (
    *(name for name in LABEL_NAMES if name != "vsini"),
    *RELATIVE,
)
"""Labels whose range a library may set; rotation comes after the synthesis."""


class LabelSampling(_Section):
    """Where in label space a library is made; finished spectra bring their own labels."""

    n: int = Field(5000, ge=1, description="syntheses")
    seed: int = Field(1, ge=0, description="another seed, another library")
    ranges: dict[Literal[_RANGED], Range] = Field(
        {}, description="lowest and highest value by label, or by c_fe, n_fe, o_fe, si_fe, s_fe; default: Table 1"
    )
    teff_power: float = Field(0.3, allow_inf_nan=False, description="density in log Teff goes as Teff to minus this")
    metal_rich: float = Field(0.5, ge=0, le=1, description="share drawn evenly above [Fe/H] = -1")
    solar_like: float = Field(0.5, ge=0, le=1, description="share of each [X/Fe] drawn around 0, sigma 0.5 dex")
    isochrones: str | None = Field(
        None, description="table of isochrones: Teff, log g and [Fe/H] uniform in evolutionary phase"
    )


class LibrarySettings(_Section):
    """Everything a spectral library depends on.

    Examples
    --------
    >>> LibrarySettings(out="LIB.zarr", engine={"kind": "function", "function": "my.module:star"}).sampling.n
    5000
    """

    out: Annotated[str, Field(min_length=1, description="the library, a Zarr store")]
    engine: Engine
    sampling: LabelSampling = LabelSampling()
    cluster: Cluster = Cluster()

    def absolute(self) -> "LibrarySettings":
        """The same settings with paths that hold from any folder."""
        engine = {
            name: path and os.path.abspath(path)
            for name, path in ((n, getattr(self.engine, n)) for n in ("atmospheres", "lines", "table"))
        }
        engine["templates"] = tuple(os.path.abspath(path) for path in self.engine.templates)
        isochrones = self.sampling.isochrones
        return self.model_copy(
            update={
                "out": os.path.abspath(self.out),
                "engine": self.engine.model_copy(update=engine),
                "sampling": self.sampling.model_copy(update={"isochrones": isochrones and os.path.abspath(isochrones)}),
            }
        )


_RUN_LISTS = "`settings.toml` in the folder of any run lists all"


def explain(error: ValidationError, source: str, *, listed: str = _RUN_LISTS) -> SettingsError:
    """Turn pydantic's report into one sentence per setting; ``listed`` says where all settings are."""
    plain = {
        "extra_forbidden": f"unknown setting; {listed}",
        "missing": "not given; it has no default",
    }
    options = {"out": " (--out RUN)", "input": " (--spectra PATTERN or --table FILE)"}
    lines = []
    for e in error.errors():
        where = ".".join(str(p) for p in e["loc"]) or "settings"
        text = plain.get(e["type"], e["msg"].removeprefix("Value error, "))
        lines.append(f"  {where}: {text}{options.get(where, '') if e['type'] == 'missing' else ''}")
    return SettingsError(f"{source}: settings cannot be used:\n" + "\n".join(lines))


def load_settings(path: str | Path, **overrides) -> Settings:
    """Read settings from a TOML file.

    Parameters
    ----------
    path : path
        The file.
    **overrides
        Replacements by dotted name with ``__`` for the dot, e.g. ``input__limit=100``; None is ignored.

    Raises
    ------
    SettingsError
        If the file is missing, not TOML, or holds an unknown or impossible setting.
    """
    return make_settings(_read_toml(path), source=str(path), **overrides)


def load_section(path: str | Path, section: str) -> _Section:
    """One section of a TOML file of settings; what the file does not set has its default.

    Raises
    ------
    SettingsError
        As `load_settings`.
    """
    try:
        return Settings.model_fields[section].annotation.model_validate(_read_toml(path).get(section, {}))
    except ValidationError as error:
        raise explain(error, f"{path}, [{section}]") from error


def _read_toml(path: str | Path) -> dict:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot read the settings file ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not a text file in UTF-8 ({error}); give a TOML file of settings") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML ({error}); correct the line it names") from error


def make_settings(data: dict, *, source: str = "settings", **overrides) -> Settings:
    """Settings from nested dictionaries, with overrides as in `load_settings`."""
    try:
        return Settings.model_validate(_override(data, overrides))
    except ValidationError as error:
        raise explain(error, source) from error


def load_library_settings(path: str | Path, **overrides) -> LibrarySettings:
    """Read the settings of a spectral library from a TOML file; overrides as in `load_settings`.

    Raises
    ------
    SettingsError
        As `load_settings`.
    """
    try:
        return LibrarySettings.model_validate(_override(_read_toml(path), overrides))
    except ValidationError as error:
        raise explain(error, str(path), listed="see `hotdask library build -h`") from error


def _override(data: dict, overrides: dict) -> dict:
    data = {k: dict(v) if isinstance(v, dict) else v for k, v in data.items()}
    for name, value in overrides.items():
        if value is not None:
            section, _, key = name.partition("__")
            if key:
                data.setdefault(section, {})[key] = value
            else:
                data[section] = value
    return data


def dump_settings(settings: Settings) -> str:
    """The settings as TOML, every default written out, each with what it is for.

    Examples
    --------
    >>> text = dump_settings(Settings(out="RUN", input={"spectra": "data/*.fits"}))
    >>> Settings.model_validate(tomllib.loads(text)).out
    'RUN'
    """
    lines = [f"out = {_toml(settings.out)}"]
    for section in type(settings).model_fields:
        value = getattr(settings, section)
        if isinstance(value, _Section):
            lines += ["", f"[{section}]"]
            stored = value.model_dump(mode="json")
            for key, field in type(value).model_fields.items():
                unset = stored[key] is None
                lines += [f"# {field.description}", f"# {key} =" if unset else f"{key} = {_toml(stored[key])}"]
    return "\n".join(lines) + "\n"


def _toml(value: str | bool | int | float | list) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml(v) for v in value)}]"
    # JSON and TOML spell infinity differently, and only one of them takes a raw DEL or pairs of surrogates.
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
