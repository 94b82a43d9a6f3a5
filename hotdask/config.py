"""The settings of a run: one frozen model, read from TOML, checked once, with a fingerprint."""

import hashlib
import ipaddress
import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hotdask import windows
from hotdask.errors import SettingsError
from hotdask.labels import LABEL_NAMES, RELATIVE
from hotdask.shipped import DEFAULT_EMULATOR, SHIPPED, column_suffix

SETTINGS = "settings.toml"
"""File of the settings in the folder of a run."""

Range = tuple[float, float]


def _ranges(rows) -> tuple[Range, ...]:
    return tuple((w.low, w.high) for w in rows)


class _Section(BaseModel):
    # Infinity is a natural way to say "no limit"; JSON has no number for it.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Input(_Section):
    """Which spectra."""

    spectra: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        None, min_length=1, description="glob pattern of FITS files, ** for any depth, or several"
    )
    table: str | None = Field(
        None, description="table (.csv, .parquet, .fits, VOTable, …) with a column path and optional overrides"
    )
    limit: int | None = Field(None, gt=0, description="take only the first N files")
    classes: tuple[str, ...] = Field(
        (), description="keep only these pipeline classes, or types of stars, e.g. O, B, A"
    )
    max_reject_share: float = Field(0.5, ge=0, le=1, description="stop when more than this share is rejected")

    @field_validator("spectra", mode="before")
    @classmethod
    def _several(cls, given):
        return (given,) if isinstance(given, str) else given

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
    merge: Literal["checked", "paper"] = Field(
        "checked",
        description="how the fit without hydrogen is weighted near 9500 K: paper = Eq 6; checked = by pixels besides",
    )
    refit_rv: bool = Field(False, description="fit spectra of suspect velocity again, at the velocity they want")
    emulator: str = Field(
        DEFAULT_EMULATOR, description=f"emulator: a shipped one ({', '.join(SHIPPED)}) or a file (.safetensors)"
    )
    refine: str | None = Field(
        None, description="file of a per-pixel emulator (.safetensors) that goes on where fits with the other end"
    )
    model_error: str | None = Field(
        None, description="table of model errors that `hotdask model-error` learned, added to the noise"
    )
    compare: str | None = Field(
        None, description="a second emulator, named like the first, whose main labels stand beside; without refine"
    )

    @property
    def compared(self) -> str | None:
        """Suffix of the columns of the second emulator; None if there is none."""
        return column_suffix(self.compare) if self.compare else None


class Catalog(_Section):
    """Stars, errors, cuts."""

    match_radius: float = Field(3.0, gt=0, description="spectra closer than this are one star [arcsec]")
    min_teff: float = Field(7000.0, description="sample cut [K]")
    min_snr: float = Field(5.0, description="sample cut on snr_g")
    pair_snr_tolerance: float = Field(0.2, gt=0, description="repeat pairs differ by at most this share in S/N")
    min_pairs: int = Field(200, ge=30, description="fewer repeat pairs than this leave the errors formal")
    max_chi2ratio: float = Field(10.0, description="chi2ratio above this is flagged")
    max_bp_rp_0: float = Field(0.4, description="redder stars are cut if min_teff_independent says cool too [mag]")
    min_teff_independent: float = Field(7000.0, description="independent Teff below which a red star is cut [K]")
    max_files: int = Field(128, ge=1, description="files the catalog is compacted to, at most")


class SkyTable(_Section):
    """A table of positions, and how its columns are called."""

    table: str = Field(
        min_length=1, description=".parquet, .csv, .ecsv, .fits, VOTable, or the folder of a HATS catalog"
    )
    ra: str = Field("ra", description="column of right ascension [deg]")
    dec: str = Field("dec", description="column of declination [deg]")
    pmra: str = Field("pmra", description="column of the proper motion in RA, times cos(Dec) [mas/yr], if there")
    pmdec: str = Field("pmdec", description="column of the proper motion in Dec [mas/yr], if there")
    epoch: float | str = Field("ref_epoch", description="epoch of its positions, a year or a column of years")


class JoinTable(SkyTable):
    """A table joined to the spectra."""

    on: Literal["position", "gaia_id", "specid", "obsid"] = Field(description="what says that two rows are one star")
    key: str = Field("source_id", description="its column of that id")
    columns: dict[str, str] = Field(description="its columns by our names (hotdask.schema.JOINED)")

    @model_validator(mode="before")
    @classmethod
    def _usual_columns(cls, data):
        """Columns not mentioned are called as usual; "" leaves one out."""
        if isinstance(data, dict):
            usual = cls.model_fields["columns"].default
            given = data.get("columns", {})
            if isinstance(given, dict):
                unknown = sorted(set(given) - set(usual))
                if unknown:
                    raise ValueError(f"columns: unknown {', '.join(unknown)}; known are {', '.join(usual)}")
                data = data | {"columns": {ours: theirs for ours, theirs in (usual | given).items() if theirs}}
        return data


_GAIA = ("parallax", "parallax_error", "pmra", "pmra_error", "pmdec", "pmdec_error", "ruwe")


class GaiaTable(JoinTable):
    """Gaia's source catalog."""

    on: Literal["position"] = "position"
    columns: dict[str, str] = (
        {"gaia_id": "source_id"} | {n: n for n in _GAIA} | {name: f"phot_{name}_mean_mag" for name in ("g", "bp", "rp")}
    )


class DistanceTable(JoinTable):
    """Geometric distances (Bailer-Jones et al. 2021)."""

    on: Literal["position", "gaia_id", "specid", "obsid"] = "gaia_id"
    columns: dict[str, str] = {"r_geo": "r_med_geo", "r_geo_low": "r_lo_geo", "r_geo_high": "r_hi_geo"}


class FidelityTable(JoinTable):
    """Astrometric fidelity (Rybizki et al. 2022)."""

    on: Literal["position", "gaia_id", "specid", "obsid"] = "gaia_id"
    columns: dict[str, str] = {"fidelity": "fidelity_v2"}


class TwoMassTable(JoinTable):
    """2MASS point sources."""

    on: Literal["position", "gaia_id", "specid", "obsid"] = "position"
    columns: dict[str, str] = {"j": "j_m", "h": "h_m", "ks": "k_m"}


class ReddeningTable(JoinTable):
    """E(B-V) star by star."""

    on: Literal["position", "gaia_id", "specid", "obsid"] = "gaia_id"
    columns: dict[str, str] = {"ebv": "ebv"}


class IndependentTable(JoinTable):
    """Temperatures from another method, such as DD-Payne."""

    on: Literal["position", "gaia_id", "specid", "obsid"] = "specid"
    key: str = "specid"
    columns: dict[str, str] = {"teff_independent": "teff"}


class Join(_Section):
    """Other catalogs whose columns the catalog carries; each a table { table = "FILE" }, with table, ra, dec, pmra,
    pmdec, epoch, on (position, gaia_id, specid or obsid), key and columns where they are not as usual.
    """

    radius: float = Field(3.0, gt=0, le=1800, description="match radius [arcsec]")
    epoch: float = Field(2000.0, description="epoch of the spectra's positions [yr]")
    gaia: GaiaTable | None = Field(None, description='Gaia: { table = "FILE or HATS folder", … }; by position')
    distances: DistanceTable | None = Field(None, description="geometric distances; by gaia_id")
    fidelity: FidelityTable | None = Field(None, description="astrometric fidelity; by gaia_id")
    twomass: TwoMassTable | None = Field(None, description="2MASS; by position")
    reddening: ReddeningTable | None = Field(None, description="E(B-V); by gaia_id")
    independent: IndependentTable | None = Field(None, description="Teff of another method; by specid")
    map: Literal["bayestar2017", "bayestar2019"] | None = Field(
        None, description="E(B-V) from this map at r_geo; needs hotdask[dust]"
    )
    map_scale: float = Field(0.884, gt=0, description="E(B-V) per unit of the map (Green et al. 2019)")

    def tables(self) -> dict[str, JoinTable]:
        """The tables given, those by position first."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        found = {name: table for name, table in found.items() if isinstance(table, JoinTable)}
        return dict(sorted(found.items(), key=lambda item: item[1].on != "position"))


def on_loopback(address: str) -> bool:
    """Whether ``[protocol://]host[:port]`` can be reached from this machine only.

    Examples
    --------
    >>> [on_loopback(a) for a in ("tcp://127.0.0.1:8786", "localhost:0", "[::1]:8787", "0.0.0.0:8787", "node7:8786")]
    [True, True, True, False, False]
    """
    place = address.rpartition("://")[2]
    host = place[1:].partition("]")[0] if place.startswith("[") else place.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Any other name is what a resolver makes of it.
        return host == "localhost"


class Cluster(_Section):
    """Where it runs. Never changes a result."""

    scheduler: str | None = Field(None, description="address of a running scheduler, e.g. tls://host:8786")
    start: str | None = Field(
        None, description="TOML file of a cluster that Dask starts for the run, e.g. deploy/ssh/cluster.toml"
    )
    certificates: str | None = Field(
        None, description="folder that `hotdask certificates` made; default: what distributed's own settings name"
    )
    insecure: bool = Field(
        False, description="allow sockets off loopback without TLS: whoever reaches them runs code as you"
    )
    allow_any_class: bool = Field(
        False, description="let start name a class of any package, whose import alone runs its code"
    )
    workers: int | None = Field(None, ge=1, description="worker processes of a local cluster; default: one per core")
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where fits run; with cuda every task of a fit takes a worker's resource GPU = 1"
    )
    memory_limit: str = Field(
        "4GiB", pattern=r"^\d+(\.\d+)? ?[kKMGT]i?B$", description="per worker of a local cluster, e.g. 4GiB"
    )
    patience: float = Field(300.0, gt=0, description="how long a run waits while no worker is left [s]")
    dashboard: str = Field(
        "127.0.0.1:8787",
        pattern=r"^([^\s:]+|\[[^\s\]]+\]):\d+$",
        description="host:port of the dashboard; port 0 picks a free one",
    )

    @model_validator(mode="after")
    def _closed(self):
        if self.scheduler is not None and self.start is not None:
            raise ValueError("give scheduler, a cluster that runs, or start, one that shall be started, not both")
        if self.insecure:
            return self
        if self.scheduler is not None and not self.scheduler.startswith("tls://") and not on_loopback(self.scheduler):
            raise ValueError(
                f"scheduler = '{self.scheduler}' is neither TLS nor loopback, and whoever reaches it runs code as you; "
                "make certificates with `hotdask certificates DIR`, start scheduler and workers with them and give "
                "tls://HOST:PORT, or set insecure = true where the network itself keeps others out"
            )
        if not on_loopback(self.dashboard):
            raise ValueError(
                f"dashboard = '{self.dashboard}' is off loopback, and a dashboard asks nobody who they are; keep it at "
                "127.0.0.1 and reach it through `ssh -L 8787:127.0.0.1:8787 HOST`, or set insecure = true"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether the run starts a cluster of its own on this machine."""
        return self.scheduler is None and self.start is None

    def absolute(self) -> "Cluster":
        """The same with paths that hold from any folder."""
        paths = {"start": self.start, "certificates": self.certificates}
        return self.model_copy(update={name: path and os.path.abspath(path) for name, path in paths.items()})


class Start(_Section):
    """Content of a file that ``cluster.start`` names."""

    kind: str = Field(pattern=r"^\w+(\.\w+)+$", description="a Dask cluster class, e.g. distributed.SSHCluster")
    arguments: dict = Field({}, description="what it is called with")


class Report(_Section):
    """The pages at the end."""

    spectra: int = Field(12, ge=0, le=200, description="spectra that get a page with their fits")
    tracks: str | None = Field(
        None, description="tracks to draw: track, teff [K], logg; mass, m_ks, bp_rp_0 if known; or MIST's or PARSEC's"
    )
    truth: str | None = Field(None, description="truth table of a simulated survey (.parquet), to compare with")


class Store(_Section):
    """Where the two large products lie, if not in the folder of the run.

    Endpoint and credentials are never settings: fsspec and AWS read them from the environment, ``~/.aws`` and
    ``~/.config/fsspec``. Decides no label.
    """

    cube: str | None = Field(None, description="URL of the cube, e.g. s3://bucket/RUN/spectra.zarr; default: in out")
    catalog: str | None = Field(None, description="URL of the catalog, e.g. s3://bucket/RUN/catalog; default: in out")

    @field_validator("cube", "catalog")
    @classmethod
    def _url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        protocol, mark, path = url.rstrip("/").partition("://")
        if not mark:
            raise ValueError(f"{url!r} is no URL; give one as s3://bucket/folder, or leave it out to keep it in out")
        if not protocol or not all(path.split("/")) or "/" not in path:
            raise ValueError(f"{url!r} names no folder; give one as s3://bucket/folder")
        return f"{protocol}://{path}"

    @model_validator(mode="after")
    def _apart(self):
        for one, other in ((self.cube, self.catalog), (self.catalog, self.cube)):
            if one and other and f"{one}/".startswith(f"{other}/"):
                raise ValueError(f"{one} lies in {other}; give each a folder of its own")
        return self


OF_LABELS = ("input", "cube", "normalize", "fit")
"""Sections that decide labels."""
DECISIVE = (*OF_LABELS, "catalog", "join")
"""Sections that decide a result."""

FREE: dict[str, set[str]] = {"input": {"spectra", "table", "limit", "max_reject_share"}}
"""Settings that say where files are listed and whether a run goes on, but not what it finds: they may change from one
command to the next, as long as the files do not."""


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
    store: Store = Store()
    join: Join = Join()
    cluster: Cluster = Cluster()
    report: Report = Report()

    @field_validator("out")
    @classmethod
    def _folder(cls, out: str) -> str:
        if "\0" in out or "://" in out:
            raise ValueError(
                f"{out!r} is no folder of this machine; a run's folder lies on a disk, its cube and catalog may lie at "
                "the URLs that [store] gives"
            )
        return out

    def absolute(self) -> "Settings":
        """The same settings with paths that hold from any folder."""

        def here(path: str | None) -> str | None:
            return path if path is None or "://" in path else os.path.abspath(path)

        def file(emulator: str | None) -> str | None:
            # Each machine finds a shipped one in its own installation.
            return emulator if not emulator or emulator in SHIPPED else os.path.abspath(emulator)

        def update(section: _Section, *names: str) -> _Section:
            return section.model_copy(update={name: here(getattr(section, name)) for name in names})

        tables = {name: update(table, "table") for name, table in self.join.tables().items()}
        return self.model_copy(
            update={
                "out": here(self.out),
                "join": self.join.model_copy(update=tables),
                "input": update(self.input, "table").model_copy(
                    update={"spectra": self.input.spectra and tuple(map(here, self.input.spectra))}
                ),
                "fit": update(self.fit, "refine", "model_error").model_copy(
                    update={name: file(getattr(self.fit, name)) for name in ("emulator", "compare")}
                ),
                "cluster": self.cluster.absolute(),
                "report": update(self.report, "truth", "tracks"),
            }
        )

    def fingerprint(self, *sections: Literal["input", "cube", "normalize", "fit", "catalog", "join"]) -> str:
        """SHA-256 over the sections that decide a result (all of them by default), 16 hex digits."""
        chosen = sections or DECISIVE
        values = {s: getattr(self, s).model_dump(mode="json", exclude=FREE.get(s)) for s in chosen}
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class SurveyTable(SkyTable):
    """The survey's catalog of stellar spectra."""

    epoch: float = Field(2000.0, description="epoch of its positions [yr]; lists with proper motions are brought to it")
    path: str = Field("path", description="column of files, or a pattern of columns such as {planid}/{fitsname}")
    classes: tuple[str, ...] = Field(("O", "B", "A"), description="classes or subclasses begin with one of these")
    class_columns: tuple[str, ...] = Field(("class", "subclass"), description="columns of pipeline classes")
    keep: tuple[str, ...] = Field((), description="other columns to carry along")


class HotTable(SkyTable):
    """A list of hot stars."""

    max_m_ks: float = Field(3.0, description="faintest M_Ks [mag]; needs m_ks, or ks and parallax; inf: all")
    m_ks: str = Field("m_ks", description="column of absolute magnitudes in Ks [mag]")
    ks: str = Field("k_m", description="column of Ks magnitudes [mag], where there is no m_ks")
    parallax: str = Field("parallax", description="column of parallaxes [mas], where there is no m_ks")


class CandidateSettings(_Section):
    """What the list of candidates is made of.

    Examples
    --------
    >>> CandidateSettings(out="candidates.parquet", survey={"table": "dr6.csv"}).radius
    3.0
    """

    out: Annotated[str, Field(min_length=1, description="table to write (.parquet, .csv, .fits)")]
    radius: float = Field(3.0, gt=0, le=1800, description="match radius [arcsec]")
    survey: SurveyTable
    hot: HotTable | None = None
    ob: SkyTable | None = None
    cluster: Cluster = Cluster()


_READER = {"medium", "unit", "columns", "skip", "continuum"}
_ENGINES: dict[str, tuple[set[str], set[str]]] = {
    "hotdask": ({"atmospheres", "lines"}, {"helium", "helium_profiles", "nlte", "nlte_structure", "extend"}),
    "function": ({"function"}, set()),
    "program": ({"command", "output", "medium"}, {"templates", "timeout", "converged", "log", "solar", *_READER}),
    "finished": ({"table", "medium"}, _READER),
}
"""For each kind of engine the settings it needs, and those it takes besides."""


class Engine(_Section):
    """What makes the spectra of a library; each kind has its own settings."""

    kind: Literal["hotdask", "function", "program", "finished"] = Field(description="where spectra come from")
    name: str | None = Field(None, min_length=1, description="what the library's card calls it")
    atmospheres: str | None = Field(None, description="hotdask: model atmospheres (ATLAS9, or BSTAR2006)")
    lines: str | None = Field(None, description="hotdask: line list")
    helium: Literal["stark", "voigt"] = Field("stark", description="hotdask: profiles of helium lines")
    nlte: str | None = Field(
        None, description="hotdask: populations out of LTE (BSTAR2006), for a second set of spectra"
    )
    nlte_structure: bool = Field(True, description="hotdask: with nlte, its temperatures for LTE atmospheres")
    extend: bool = Field(True, description="hotdask: structures of our own below the gravities of the atmospheres")
    helium_profiles: str | None = Field(
        None, description="hotdask: Stark profiles of He I (Tremblay et al. 2026); default: of four lines, installed"
    )
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
            if self.kind == "hotdask":
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
            for name, path in (
                (n, getattr(self.engine, n)) for n in ("atmospheres", "lines", "helium_profiles", "nlte", "table")
            )
        }
        engine["templates"] = tuple(os.path.abspath(path) for path in self.engine.templates)
        isochrones = self.sampling.isochrones
        return self.model_copy(
            update={
                "out": os.path.abspath(self.out),
                "engine": self.engine.model_copy(update=engine),
                "sampling": self.sampling.model_copy(update={"isochrones": isochrones and os.path.abspath(isochrones)}),
                "cluster": self.cluster.absolute(),
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


def load_start(path: str | Path) -> Start:
    """The cluster that a file for ``cluster.start`` describes.

    Raises
    ------
    SettingsError
        As `load_settings`.
    """
    try:
        return Start.model_validate(_read_toml(path))
    except ValidationError as error:
        raise explain(error, str(path), listed="it has kind and [arguments]") from error


def _read_toml(path: str | Path) -> dict:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot read the settings file ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not a text file in UTF-8 ({error}); give a TOML file of settings") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML ({error}); correct the line it names") from error
    except RecursionError as error:
        raise SettingsError(f"{path}: its brackets are nested too deep to be settings; correct it") from error


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


def load_candidate_settings(path: str | Path | None, **overrides) -> CandidateSettings:
    """Read what candidates are made of from a TOML file, if any; overrides as in `load_settings`.

    Raises
    ------
    SettingsError
        As `load_settings`.
    """
    try:
        return CandidateSettings.model_validate(_override({} if path is None else _read_toml(path), overrides))
    except ValidationError as error:
        raise explain(error, str(path or "command line"), listed="see `hotdask candidates -h`") from error


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


def _toml(value: str | bool | int | float | list | dict) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml(v) for v in value)}]"
    # JSON and TOML spell infinity differently, and only one of them takes a raw DEL or pairs of surrogates.
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(k)} = {_toml(v)}' for k, v in value.items() if v is not None)} }}"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
