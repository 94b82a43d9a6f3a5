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


def _input_options(function: Callable) -> Callable:
    for option in (
        _cluster_options,
        click.option("--truth", help="Truth table of a simulated survey, to compare with in the report."),
        click.option("--limit", type=int, help="Only the first N files."),
        click.option("--classes", help="Keep only these pipeline classes or subclasses, e.g. O,B,A."),
        click.option("--out", help="Folder of the run."),
        click.option("--table", help="Table of paths (.csv, .parquet, .fits) instead of a pattern."),
        click.option("--spectra", help="Glob pattern of FITS files, quoted; ** for any depth."),
        click.argument("settings", required=False, type=click.Path(dir_okay=True)),
    ):
        function = option(function)
    return function


def _settings(settings, spectra, table, out, classes, limit, truth, scheduler, workers, dashboard):
    from hotdask.config import load_settings, make_settings

    overrides = {
        "out": out,
        "input__spectra": spectra,
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


def _run(until: str, **options) -> None:
    # Settings first: what is wrong with them is said before Dask and torch are imported.
    settings = _settings(**options)
    from hotdask.pipeline.execute import run

    run(settings, until=until, echo=click.echo)


@main.command()
@click.argument("folder", type=click.Path())
@click.option("--stars", default=2000, help="Stars.")
@click.option("--spectra", default=3000, help="Spectra; what exceeds the stars are repeat visits.")
@click.option("--broken", default=24, help="Broken files besides.")
@click.option("--seed", default=1, help="Another seed, another survey.")
@click.option("--emulator", type=click.Path(), help="Emulator that makes the stars; default: the one shipped.")
@_cluster_options
def simulate(folder, stars, spectra, broken, seed, emulator, scheduler, workers, dashboard) -> None:
    """Write a survey with known labels as LAMOST files into FOLDER."""
    from hotdask.config import make_settings
    from hotdask.pipeline.survey import simulate as simulate_survey
    from hotdask.simulation import Simulation

    cluster = make_settings(
        {"out": folder, "input": {"spectra": folder}},
        cluster__scheduler=scheduler,
        cluster__workers=workers,
        cluster__dashboard=dashboard,
    ).cluster
    simulation = Simulation(stars=stars, spectra=spectra, broken=broken, seed=seed)
    simulate_survey(folder, simulation, emulator=emulator, cluster=cluster, echo=click.echo)


@main.command()
@click.argument("library", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Emulator file to write (.safetensors).")
@click.option("--passes", type=int, help="Passes over the library; default: as for the emulator that is shipped.")
@click.option("--seed", type=int, help="Seed of the draws and of the network.")
@click.option("--settings", type=click.Path(), help="TOML file whose [normalize] section the emulator is for.")
def train(library, out, passes, seed, settings) -> None:
    """Train an emulator on LIBRARY, an .npz file of syntheses; its card is written beside it."""
    from hotdask.config import load_section
    from hotdask.emulator import save_emulator
    from hotdask.emulator.card import card_text
    from hotdask.emulator.training import Training, train
    from hotdask.library.synthe import read_npz
    from hotdask.pipeline.progress import duration

    if Path(out).exists():
        raise click.UsageError(f"{out} exists; give another --out")
    chosen = {k: v for k, v in {"passes": passes, "seed": seed}.items() if v is not None}
    began = last = time.monotonic()

    def progress(number: int, total: int, loss: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 15 or number == total:
            last = now
            left = duration((now - began) / number * (total - number))
            click.echo(f"train   pass {number}/{total}  loss {loss:.3f}  {left} left", err=True)

    normalization = None if settings is None else load_section(settings, "normalize")
    emulator = train(read_npz(library), Training(**chosen), normalization=normalization, progress=progress)
    residuals = emulator.card["residuals"]
    identity = save_emulator(emulator, out)
    Path(out).with_suffix(".md").write_text(card_text(emulator.card, identity), encoding="utf-8")
    click.echo(
        f"{out}: emulator {identity}, held-out residual {100 * residuals['all']:.3f} % over fitted pixels, "
        f"{100 * residuals['lines']:.3f} % where flux < 0.95"
    )


def _verb(name: str, until: str, text: str) -> None:
    @main.command(name, help=text)
    @_input_options
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


@main.command("status")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
def describe(folder) -> None:
    """Say how far the run in FOLDER is."""
    from hotdask.pipeline.status import status

    click.echo(status(folder))
