"""Learn the error of the models from the residuals of a run, a partition a task."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dask.bag as db
import numpy as np
from distributed import Client

from hotdask import config
from hotdask.cluster.client import open_client
from hotdask.cluster.tasks import watched
from hotdask.errors import InputError, RunError
from hotdask.flags import Flag
from hotdask.labels import LABEL_NAMES
from hotdask.pipeline import maps
from hotdask.pipeline.state import open_state
from hotdask.report.modelerror import model_error_figure
from hotdask.report.render import save_figure
from hotdask.spectra.restframe import noise_power
from hotdask.steps.modelerror import MIN_RESIDUALS, count_levels, solve_model_error
from hotdask.store.atomic import write_bytes
from hotdask.store.catalog import FITS_FOLDER, read_catalog, read_fits_part
from hotdask.store.modelerror import write_model_error
from hotdask.store.parquet import list_parts, part_path
from hotdask.windows import inside, rest_wavelength

MIN_SPECTRA = 10
"""Fewer spectra than this teach nothing."""

UNFIT = Flag.NOT_CONVERGED | Flag.AT_BOUND | Flag.BAD_CHI2 | Flag.EMISSION | Flag.BINARY | Flag.VELOCITY_SUSPECT
"""Spectra with one of these differ from models for reasons of their own."""


def learn_model_error(
    run: str | Path,
    out: str | Path,
    *,
    min_snr: float = 30.0,
    cluster: config.Cluster | None = None,
    client: Client | None = None,
    echo: Callable[[str], None] = print,
) -> np.ndarray:
    """Learn how far models are from the spectra of a run beyond their noise; a table for ``[fit] model_error``.

    Parameters
    ----------
    run : path
        Directory of a run with a catalog.
    out : path
        ``.parquet`` file to write (`hotdask.schema.MODEL_ERROR`); a figure of the same name, ``.svg``, comes beside.
    min_snr : float
        Least S/N in g of a spectrum that counts: noise hides what models do wrong.
    cluster : hotdask.config.Cluster, optional
        Where it runs; default: as the run did.
    client : distributed.Client, optional
        Cluster to use instead.
    echo : callable
        Told what was found.

    Returns
    -------
    (3801,) float64
        In units of the continuum.

    Raises
    ------
    InputError
        If too few spectra of the sample are good enough, or ``out`` has another ending.
    RunError
        If there is no such run or catalog, or the files of its ``[fit]`` have changed.
    """
    if Path(out).suffix != ".parquet":
        raise InputError(f"--out {out}: model errors are written as .parquet; give a name that ends so")
    state = open_state(run, echo)
    catalog = read_catalog(run, columns=["specid", "snr_g", "flags", "in_sample"])
    good = catalog["in_sample"] & (catalog["snr_g"] >= min_snr) & (catalog["flags"] & int(UNFIT) == 0)
    if good.sum() < MIN_SPECTRA:
        raise InputError(
            f"{run}: {good.sum()} spectra of the sample have S/N >= {min_snr:g} and no flag, {MIN_SPECTRA} are needed; "
            "lower --min-snr, or learn from a larger run"
        )
    models = maps.load_models(state.settings.fit, "cpu")
    if models.id != state.emulator:
        raise RunError(
            f"{run} was fitted with emulator {state.emulator}, now the files that [fit] names are {models.id}; put the "
            "old ones back, or learn from a run of the new ones"
        )
    # Residuals against the noise alone, whatever the run was fitted with.
    settings = state.settings.model_copy(update={"fit": state.settings.fit.model_copy(update={"model_error": None})})
    identity = replace(models, error=None).id
    wanted = catalog.loc[good, "specid"]
    rows = {
        partition: np.flatnonzero(read_fits_part(part, ["specid"])["specid"].to_pandas().isin(wanted))
        for partition, part in enumerate(list_parts(state.folder / FITS_FOLDER))
    }
    work = [(partition, chosen) for partition, chosen in rows.items() if chosen.size]

    def count(client: Client) -> np.ndarray:
        with watched(client, state.settings.cluster.patience), client.as_current():
            tasks = db.from_sequence(work, partition_size=1).map(
                _count, run=str(state.folder), settings=settings, identity=identity
            )
            return tasks.fold(np.add).compute()

    if client is not None:
        counts = count(client)
    else:
        with open_client(cluster or state.settings.cluster, echo) as client:
            counts = count(client)
    error, n = solve_model_error(counts)
    write_model_error(out, error, n)
    figure = Path(out).with_suffix(".svg")
    write_bytes(figure, save_figure(model_error_figure(error, settings.fit.mask), ".svg"))
    fitted = error[~inside(rest_wavelength(), settings.fit.mask)]
    pooled = "" if good.sum() >= MIN_RESIDUALS else f", neighboring pixels together until they hold {MIN_RESIDUALS}"
    echo(
        f"{out}: from {good.sum()} spectra{pooled}; {np.mean(fitted > 0):.0%} of the fitted pixels have an error, "
        f"median {np.median(fitted):.2%}, 90 % of them below {np.quantile(fitted, 0.9):.2%} of the continuum"
    )
    return error


def _count(work: tuple[int, np.ndarray], *, run: str, settings: config.Settings, identity: str) -> np.ndarray:
    """`count_levels` of some rows of a partition, against their fits of all lines."""
    maps.one_thread()
    partition, rows = work
    columns = [f"{name}_all" for name in LABEL_NAMES]
    fits = read_fits_part(part_path(Path(run, FITS_FOLDER), partition), [*columns, "rv_refit"]).to_pandas().iloc[rows]
    model = maps.make_labeler(settings, identity)
    seen = maps.read_observed(run, partition, model, rows)
    rv = seen.rv + fits["rv_refit"].to_numpy()
    prepared = model.prepare(seen.flux, seen.ivar, rv, seen.lsf)
    residual = prepared.flux - model.model.flux(fits[columns].to_numpy(), prepared.lsf)
    return count_levels(residual, prepared.ivar, noise_power(rv, seen.noise))
