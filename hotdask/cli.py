"""The command line: verbs in the order of the flow."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from hotdask import __version__
from hotdask.errors import HotdaskError


class _FlowOrder(click.Group):
    """Lists verbs as they were declared, and turns errors meant for users into one message."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except HotdaskError as error:
            click.echo(f"hotdask: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("hotdask: stopped; what is finished is kept, and the same command goes on from there", err=True)
            sys.exit(130)


@click.group(cls=_FlowOrder, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__)
def main() -> None:
    """Stellar labels for hot stars, for a whole spectroscopic survey.

    A run is a folder. Every verb goes on where the run stands, and does nothing twice.
    """


def _cluster_options(function: Callable) -> Callable:
    for option in (
        click.option("--dashboard", help="Address of the dashboard of a local cluster (port 0: any free one)."),
        click.option("--workers", type=int, help="Worker processes of a local cluster; default: one per core."),
        click.option("--scheduler", help="Address of a running scheduler, e.g. tls://host:8786."),
    ):
        function = option(function)
    return function


def _cluster(scheduler, workers, dashboard):
    """The cluster of a command that has no settings of its own."""
    from hotdask.config import make_settings

    given = {"cluster__scheduler": scheduler, "cluster__workers": workers, "cluster__dashboard": dashboard}
    return make_settings({"out": ".", "input": {"spectra": "."}}, source="command line", **given).cluster


def _input_options(function: Callable) -> Callable:
    for option in (
        _cluster_options,
        click.option("--truth", help="Truth table of a simulated survey, to compare with in the report."),
        click.option("--limit", type=int, help="Only the first N files."),
        click.option("--classes", help="Keep only these pipeline classes or types of stars, e.g. O,B,A."),
        click.option("--out", help="Folder of the run."),
        click.option("--table", help="Table of paths (.csv, .parquet, .fits, …) instead of a pattern."),
        click.option("--spectra", multiple=True, help="Glob pattern of FITS files, quoted; ** any depth; repeatable."),
        click.argument("settings", required=False, type=click.Path(dir_okay=True)),
    ):
        function = option(function)
    return function


def _settings(settings, spectra, table, out, classes, limit, truth, scheduler, workers, dashboard):
    from hotdask.config import load_settings, make_settings

    overrides = {
        "out": out,
        "input__spectra": spectra or None,
        "input__table": table,
        "input__limit": limit,
        "input__classes": None if classes is None else tuple(c.strip() for c in classes.split(",") if c.strip()),
        "report__truth": truth,
        "cluster__scheduler": scheduler,
        "cluster__workers": workers,
        "cluster__dashboard": dashboard,
    }
    if settings is None:
        return make_settings({}, source="command line", **overrides)
    path = Path(settings)
    if path.is_dir():
        # A run knows its own settings, and is where it is now, not where it was made.
        return load_settings(path / "settings.toml", **{**overrides, "out": out or str(path)})
    return load_settings(path, **overrides)


def _run(until: str, profile: bool, **options) -> None:
    # Settings first: what is wrong with them is said before Dask and torch are imported.
    settings = _settings(**options)
    from hotdask.pipeline.execute import run

    run(settings, until=until, profile=profile, echo=click.echo)


@main.command()
@click.argument("folder", type=click.Path())
@click.option("--stars", default=2000, help="Stars.")
@click.option("--spectra", default=3000, help="Spectra; what exceeds the stars are repeat visits.")
@click.option("--broken", default=24, help="Broken files besides.")
@click.option("--seed", default=1, help="Another seed, another survey.")
@click.option("--emulator", type=click.Path(), help="What makes the stars: a shipped emulator by name, or a file.")
@_cluster_options
def simulate(folder, stars, spectra, broken, seed, emulator, scheduler, workers, dashboard) -> None:
    """Write a survey with known labels as LAMOST files into FOLDER."""
    from hotdask.simulation.survey import simulate as simulate_survey
    from hotdask.simulation.visits import Simulation

    cluster = _cluster(scheduler, workers, dashboard)
    simulation = Simulation(stars=stars, spectra=spectra, broken=broken, seed=seed)
    simulate_survey(folder, simulation, emulator=emulator, cluster=cluster, echo=click.echo)


@main.command()
@click.argument("settings", required=False, type=click.Path())
@click.option("--out", help="Table to write (.parquet, .csv, .fits): the --table of a run.")
@click.option("--survey", help="The survey's catalog of stellar spectra.")
@click.option("--hot", help="List of hot stars (Gaia and 2MASS).")
@click.option("--ob", help="Catalog of OB stars.")
@click.option("--radius", type=float, help="Match radius [arcsec].  [default: 3.0]")
@_cluster_options
def candidates(settings, out, survey, hot, ob, radius, scheduler, workers, dashboard) -> None:
    """List the spectra to label: class O, B or A, or at the place of a known hot star.

    Tables are .parquet, .csv, .ecsv, .fits, VOTable or VizieR's .tsv, or folders of HATS catalogs. SETTINGS, a TOML
    file, says how their columns are called; what is shown here is the default:

    \b
    out = "candidates.parquet"
    radius = 3.0                       # arcsec
    [survey]
    table = "dr6_stellar.csv"
    path = "path"                      # a column, or one made of columns: "{planid}/spec-{planid}-{fiberid:03d}.fits"
    ra = "ra"                          # deg
    dec = "dec"
    epoch = 2000.0                     # to which lists with proper motions are brought
    classes = ["O", "B", "A"]          # how classes begin, in any of the columns
    class_columns = ["class", "subclass"]
    keep = []                          # other columns to carry along
    [hot]
    table = "hot.fits"
    max_m_ks = 3.0                     # from m_ks, or k_m and parallax; inf takes the whole list
    m_ks = "m_ks"
    ks = "k_m"
    parallax = "parallax"
    ra = "ra"
    dec = "dec"
    pmra = "pmra"                      # mas/yr, used where the table has it
    pmdec = "pmdec"
    epoch = "ref_epoch"                # a column, or a year such as 2015.5
    [ob]                               # table, ra, dec, pmra, pmdec, epoch as above

    Columns written: path, ra, dec, source_class, source_hot, source_ob, separations [arcsec], those carried. Paths are
    relative to the folder of the survey's table.
    """
    from hotdask.config import load_candidate_settings

    overrides = {
        "out": out,
        "radius": radius,
        "survey__table": survey,
        "hot__table": hot,
        "ob__table": ob,
        "cluster__scheduler": scheduler,
        "cluster__workers": workers,
        "cluster__dashboard": dashboard,
    }
    resolved = load_candidate_settings(settings, **overrides)
    from hotdask.crossmatch.candidates import find_candidates

    find_candidates(resolved, echo=click.echo)


@main.group()
def library() -> None:
    """Make a library of synthetic spectra, and check it."""


@library.command("build")
@click.argument("settings", type=click.Path())
@click.option("--out", help="The library, a Zarr store.")
@click.option("--n", type=int, help="Syntheses.")
@click.option("--seed", type=int, help="Another seed, another library.")
@click.option("--retry", is_flag=True, help="Try again what failed.")
@_cluster_options
def build_library(settings, out, n, seed, retry, scheduler, workers, dashboard) -> None:
    """Make the library that SETTINGS, a TOML file, describes, or what is left of it.

    \b
    out = "library.zarr"
    [engine]
    kind = "hotdask"              # or function, program, finished
    atmospheres = "atlas9.npz"    # data of your own
    lines = "lines.npz"
    [sampling]
    n = 5000

    Models that fail are recorded with their reason. All settings: hotdask.config.LibrarySettings. Templates for
    SYNSPEC and SYNTHE: hotdask/library/templates.
    """
    from hotdask.config import load_library_settings

    overrides = {
        "out": out,
        "sampling__n": n,
        "sampling__seed": seed,
        "cluster__scheduler": scheduler,
        "cluster__workers": workers,
        "cluster__dashboard": dashboard,
    }
    resolved = load_library_settings(settings, **overrides)
    from hotdask.pipeline.library import build

    build(resolved, retry=retry, echo=click.echo)


@library.command("check")
@click.argument("store", type=click.Path(exists=True))
@click.option("--page", type=click.Path(), help="HTML file to write, with plots of the coverage.")
def check_library(store, page) -> None:
    """Say what the library STORE holds and what is wrong with it; exit code 1 if anything is."""
    from hotdask.pipeline.library import check

    if check(store, page=page, echo=click.echo):
        sys.exit(1)


@main.command()
@click.argument("library", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Emulator file to write (.safetensors).")
@click.option("--lte", is_flag=True, help="Learn from the spectra in LTE that lie beside those out of LTE.")
@click.option("--architecture", type=click.Choice(["lowrank", "perpixel"]), default="lowrank", help="Network.")
@click.option("--passes", type=int, help="Passes over the drawn spectra, at most.")
@click.option("--draws", type=int, help="Spectra drawn of each synthesis.")
@click.option("--basis", type=int, help="Coefficients of the low-rank network.")
@click.option("--hidden", type=int, help="Nodes of each hidden layer.")
@click.option("--inverse-draws", type=int, help="Simulated spectra from which it learns where fits start.")
@click.option("--inverse-passes", type=int, help="Passes over those.")
@click.option("--pixels", type=int, help="Per-pixel networks trained at once; all 3801 suit a GPU.")
@click.option("--seed", type=int, help="Seed of the split, the draws and the network.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where the network is trained.")
@click.option("--checkpoint", type=click.Path(), help="File to keep the state in; default: OUT with .checkpoint.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint.")
@click.option("--settings", type=click.Path(), help="TOML file whose [normalize] section the emulator is for.")
def train(library, out, lte, architecture, device, checkpoint, resume, settings, **chosen) -> None:
    """Train an emulator on LIBRARY, a library that hotdask built or an .npz file.

    Its card (.md) and the loss of its training (.loss.csv, .loss.svg) are written beside it.
    """
    from dataclasses import replace

    from hotdask.cluster.progress import duration
    from hotdask.config import load_section
    from hotdask.emulator.training import default_training, train
    from hotdask.pipeline.training import companions, publish
    from hotdask.store.library import read_library

    if Path(out).suffix != ".safetensors":
        raise click.UsageError(f"--out {out}: give a name that ends in .safetensors")
    taken = [str(path) for path in (Path(out), *companions(out)) if path.exists()]
    if taken:
        raise click.UsageError(f"{', '.join(taken)} exists; give another --out")
    checkpoint = Path(checkpoint or Path(out).with_suffix(".checkpoint"))
    for path in (Path(out), checkpoint):
        if not path.parent.is_dir():
            raise click.UsageError(f"{path}: there is no folder {path.parent}; make it first")
    if checkpoint.exists() and not resume:
        raise click.UsageError(f"{checkpoint} is there from a training that was stopped; give --resume, or remove it")
    if resume and not checkpoint.exists():
        raise click.UsageError(f"{checkpoint} is not there; leave out --resume to begin")
    chosen["n_basis"] = chosen.pop("basis")
    training = replace(default_training(architecture), **{k: v for k, v in chosen.items() if v is not None})
    first, began, last = None, time.monotonic(), 0.0

    def progress(number: int, total: int, loss: float, validation: float) -> None:
        nonlocal first, began, last
        now = time.monotonic()
        if first is None:
            first, began = number, now
        if now - last > 15 or number == total:
            last = now
            left = duration((now - began) / max(1, number - first) * (total - number))
            click.echo(
                f"train   pass {number}/{total}  loss {loss:.4g}  validation {validation:.4g}  {left} left", err=True
            )

    emulator = train(
        read_library(library, lte=lte),
        training,
        normalization=None if settings is None else load_section(settings, "normalize"),
        device=device,
        checkpoint=checkpoint,
        progress=progress,
    )
    identity = publish(emulator, out)
    checkpoint.unlink(missing_ok=True)
    loss = emulator.card["loss"]
    every, lines, fitted, fitted_lines = (
        "none" if share is None else f"{100 * share:.3f} %"
        for share in map(emulator.card["residuals"].get, ("every", "every_lines", "all", "lines"))
    )
    click.echo(f"best validation loss in pass {loss['best']} of {len(loss['train'])}")
    click.echo(
        f"{out}: emulator {identity}, held-out residual over all pixels {every}, where flux < 0.95 {lines}; "
        f"over fitted pixels {fitted}, where flux < 0.95 {fitted_lines}"
    )


@main.command()
@click.option("--star", default="", help="Labels, e.g. teff=9500,logg=4,vsini=100; the rest as the paper's B star.")
@click.option("--snr", default=100.0, help="S/N per pixel at 4650 Å.")
@click.option("--snr-curve", default="lamost", help="lamost, photons, flat, or a table of wavelength [Å] and S/N.")
@click.option("--mask-hydrogen", is_flag=True, help="As in the fit with hydrogen masked.")
@click.option("--mask", multiple=True, metavar="LOW-HIGH", help="Window left out besides [Å, air]; repeatable.")
@click.option("--settings", type=click.Path(), help="TOML file whose [fit] gives windows, line spread and emulator.")
@click.option("--emulator", type=click.Path(), help="A shipped emulator by name, or a file.")
@click.option("--engine", type=click.Path(), help="Settings of a library: gradients from its engine instead.")
@click.option("--out", type=click.Path(), help="HTML page to write.")
@click.option("--json", "json_file", type=click.Path(), help="JSON file to write.")
def information(star, snr, snr_curve, mask_hydrogen, mask, settings, emulator, engine, out, json_file) -> None:
    """Say how precise labels can be at best: Cramér-Rao bounds and correlations of a star."""
    try:
        labels = {name.strip(): float(value) for name, value in (p.split("=") for p in star.split(",") if p.strip())}
    except ValueError as error:
        raise click.UsageError(f"--star {star}: give it as teff=9500,logg=4") from error
    if not 0 < snr < float("inf"):
        raise click.UsageError(f"--snr {snr:g}: give a positive number")
    try:
        windows = [(float(low), float(high)) for low, high in (window.split("-") for window in mask)]
    except ValueError as error:
        raise click.UsageError(f"--mask {' '.join(mask)}: give it as 4000-4050") from error
    from hotdask.config import load_section
    from hotdask.pipeline.information import describe

    describe(
        labels,
        snr=snr,
        curve=snr_curve,
        mask_hydrogen=mask_hydrogen,
        mask=windows,
        fit=None if settings is None else load_section(settings, "fit"),
        emulator=emulator,
        engine=engine,
        page=out,
        json_file=json_file,
        echo=click.echo,
        progress=lambda line: click.echo(line, err=True),
    )


def _verb(name: str, until: str, text: str) -> None:
    @main.command(name, help=text)
    @_input_options
    @click.option("--profile", is_flag=True, help="Write what it costs to OUT/profile: Dask's report, kernels.")
    def verb(**options) -> None:
        _run(until, **options)


_WHERE = (
    "\n\nSETTINGS is a TOML file, or the folder of a run begun before; options override it, and --spectra (or --table) "
    "with --out do without it."
)
_verb("run", "report", "Everything: files to catalog and report." + _WHERE)
_verb("ingest", "ingest", "Read the files into the cube." + _WHERE)
_verb("fit", "fit", "Up to both fits of every spectrum." + _WHERE)
_verb("catalog", "catalog", "Up to the catalog: merger, stars, errors, flags." + _WHERE)
_verb("report", "report", "Up to the report; the same as run." + _WHERE)


@main.command()
@click.argument("folder", type=click.Path())
@click.option("--installed", metavar="PATH", help="Where the folder will lie on the machines; default: where it is.")
@click.option("--days", type=click.IntRange(min=1), default=365, help="How long they are good for.")
def certificates(folder, installed, days) -> None:
    """Make the certificates of a cluster that listens on a network, in FOLDER.

    A pair of certificate and key each for scheduler, worker and client, all signed by an authority whose key is not
    kept, and distributed.yaml, which tells Dask to use them and nothing else.
    """
    from hotdask.cluster.certificates import make_certificates, usage

    path = make_certificates(folder, installed=installed, days=days)
    click.echo(usage(path, installed))


@main.command("estimate", help="Say what a run would take: memory, disk, time, measured on a sample." + _WHERE)
@_input_options
def say_estimate(**options) -> None:
    settings = _settings(**options)
    from hotdask.pipeline.estimate import estimate

    estimate(settings, echo=click.echo)


@main.command("compare")
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False))
@click.argument("table")
@click.option("--out", type=click.Path(), help="Figure (.svg, .png) or page (.html); default: RUN/compare/TABLE.svg.")
@click.option("--name", metavar="COLUMN[=COLUMN]", help="Match by this column of TABLE [= that of the catalog].")
@click.option("--radius", type=click.FloatRange(0, min_open=True), help="Match by ra, dec within so many arcsec.")
@click.option("--label", multiple=True, metavar="LABEL=COLUMN", help="Column of TABLE that is a label; repeatable.")
@click.option("--error", multiple=True, metavar="LABEL=COLUMN", help="Column of TABLE that is its error; repeatable.")
@click.option("--edges", help="Edges of the ranges of Teff [K]; default: 11000,15000,25000.")
@click.option("--all", "every_row", is_flag=True, help="Spectra outside the sample, too.")
def compare_labels(run_folder, table, out, name, radius, label, error, edges, every_row) -> None:
    """Compare the catalog of RUN with TABLE: labels of stars from elsewhere, or nlte.

    TABLE is a .csv, .parquet or .fits file, one row a star, with labels in hotdask's names and units, or mapped by
    --label. Its stars are found by a name that both have, or by position. nlte stands for the eleven stars of Xiang et
    al. 2022. Numbers are printed, and written beside the figure as CSV.
    """
    if name is not None and radius is not None:
        raise click.UsageError("give --name or --radius, not both")
    try:
        limits = {} if edges is None else {"edges": [float(edge) for edge in edges.split(",")]}
        columns, errors = (dict(pair.split("=", 1) for pair in pairs) for pairs in (label, error))
    except ValueError as problem:
        raise click.UsageError("give --edges as 11000,15000,25000 and --label, --error as teff=COLUMN") from problem
    from hotdask.crossmatch.compare import compare

    first, _, second = (name or "").partition("=")
    compare(
        run_folder,
        table,
        out=out,
        names=(first, second or first) if name else None,
        radius=radius,
        columns=columns,
        errors=errors,
        every_row=every_row,
        echo=click.echo,
        **limits,
    )


@main.command("model-error")
@click.argument("folder", metavar="RUN", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--out", required=True, type=click.Path(), help="Table to write (.parquet); a figure (.svg) comes beside."
)
@click.option("--min-snr", default=30.0, help="Least S/N in g of spectra that count.")
@_cluster_options
def model_error(folder, out, min_snr, scheduler, workers, dashboard) -> None:
    """Learn from the residuals of RUN how far models are from spectra beyond the noise, pixel by pixel.

    Give the table to another run as [fit] model_error: it adds it to the noise.
    """
    from hotdask.pipeline.modelerror import learn_model_error

    cluster = _cluster(scheduler, workers, dashboard) if scheduler or workers or dashboard else None
    learn_model_error(folder, out, min_snr=min_snr, cluster=cluster, echo=click.echo)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--out", required=True, type=click.Path(), help="File (.fits, .vot, .parquet, .csv), or folder for hats.")
@click.option("--columns", type=click.Choice(["all", "paper"]), default="all", help="All, or the paper's Table 5.")
@click.option("--sample", is_flag=True, help="Only rows of the sample.")
@click.option("--format", "kind", type=click.Choice(["file", "hats"]), default="file", help="A file, or HATS.")
@_cluster_options
def export(folder, out, columns, sample, kind, scheduler, workers, dashboard) -> None:
    """Write the catalog of the run in FOLDER for other programs, with units and UCDs.

    With --columns paper it has the columns of Xiang et al. 2022, Table 5, by their names; what the run has not is
    empty.
    """
    from hotdask.store.export import export_catalog

    if kind == "file":
        rows = export_catalog(folder, out, columns=columns, sample=sample)
    else:
        from hotdask.cluster.client import open_client
        from hotdask.pipeline.hats import export_hats

        with open_client(_cluster(scheduler, workers, dashboard), click.echo) as client:
            rows = export_hats(folder, out, client=client, columns=columns, sample=sample)
    click.echo(f"{out}: {rows} rows")


@main.command()
@click.argument("run")
@click.argument("specid")
@click.option("--out", type=click.Path(), help="File to write: .html, .svg or .png; default: SPECID.html.")
def plot(run, specid, out) -> None:
    """Draw the spectrum SPECID of the run in the folder RUN: data, both fits, residuals, masks, labels with errors."""
    if not Path(run).is_dir() and Path(specid).is_dir():
        run, specid = specid, run
    from hotdask.pipeline.pages import plot_spectrum

    click.echo(plot_spectrum(run, specid, out))


@main.command("label")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--rv", default=None, help="Velocity [km/s], or find.  [default: the file's; else it is found]")
@click.option("--plot", type=click.Path(), help="Page or figure to write (.html, .png, .svg); of several, one each.")
@click.option("--air/--vacuum", "air", default=None, help="What wavelengths are in.  [default: as the file says]")
@click.option("--resolving-power", type=float, help="λ/FWHM of a narrow line.  [default: as the file says]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--emulator", type=click.Path(), help="A shipped emulator by name, or a file.")
def label_files(files, rv, plot, air, resolving_power, as_json, emulator) -> None:
    """Label spectra of any instrument, one a FILE: FITS images and tables, text, LAMOST, SDSS, DESI (FILE#TARGETID).

    Spectra finer than R = 1800 are degraded. All labels are printed with formal errors.
    """
    import os
    import warnings

    # Before NumPy is imported: arrays of one spectrum are too small to share.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    try:
        velocity = None if rv in (None, "find") else float(rv)
    except ValueError as problem:
        raise click.UsageError(f"--rv {rv}: give a velocity in km/s, or find") from problem
    if plot and Path(plot).suffix.lower() not in (".html", ".png", ".svg"):
        raise click.UsageError(f"--plot {plot}: give a name that ends in .html, .png or .svg")
    from hotdask.readers.generic import read
    from hotdask.single.label import label
    from hotdask.single.result import to_json

    medium = None if air is None else "air" if air else "vacuum"
    spectra = [read(file, rv=velocity, medium=medium, resolving_power=resolving_power) for file in files]
    # Warnings are among the notes.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        results = label(spectra, find_rv=rv == "find", emulator=emulator)
    click.echo(to_json(results) if as_json else "\n\n".join(map(str, results)))
    if plot:
        path = Path(plot)
        for number, result in enumerate(results, 1):
            own = path if len(results) == 1 else path.with_stem(f"{path.stem}-{number}")
            result.plot(own)
            click.echo(str(own), err=True)


@main.command("status")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
def describe(folder) -> None:
    """Say how far the run in FOLDER is."""
    from hotdask.pipeline.status import status

    click.echo(status(folder))


@main.command("verify")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
def check_run(folder) -> None:
    """Hash, count and check all that the run in FOLDER has written; exit code 1 if anything is wrong."""
    from hotdask.pipeline.verify import verify

    if verify(folder, echo=click.echo):
        sys.exit(1)
