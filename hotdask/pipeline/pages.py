"""The report of a run: spectra chosen and prepared here, the pages made by `hotdask.report`."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from hotdask import config, windows
from hotdask.emulator import Emulator
from hotdask.emulator.broadening import mean_lsf
from hotdask.errors import InputError, RunError
from hotdask.flags import Flag
from hotdask.information import cramer_rao_bound, noise, signal_to_noise_curve
from hotdask.labels import LABEL_NAMES, LSF_NAMES
from hotdask.pipeline.maps import make_labeler, one_thread
from hotdask.pipeline.plan import read_rejects
from hotdask.report.explorer import explorer_page
from hotdask.report.method import method_page
from hotdask.report.page import Bound, Throughput, build_report
from hotdask.report.render import save_figure
from hotdask.report.spectrum import (
    SpectrumView,
    draw_spectrum,
    labels_text,
    page_address,
    page_name,
    spectrum_page,
)
from hotdask.report.tracks import read_tracks
from hotdask.schema import CATALOG
from hotdask.steps.flag import Chi2Model
from hotdask.store.atomic import remove_folder, write_bytes, write_text
from hotdask.store.catalog import FITS_FOLDER, read_catalog, read_fits_part, shown_catalog
from hotdask.store.cube import cube_place, read_partition
from hotdask.store.lamost import REASONS
from hotdask.store.parquet import list_parts, read_schema
from hotdask.store.receipts import list_receipts


def choose_spectra(catalog: pd.DataFrame, n: int) -> pd.DataFrame:
    """Rows to draw: spread evenly over the Teff of the sample, the best S/N of each stretch."""
    sample = catalog[catalog["in_sample"] & (catalog["flags"] & int(Flag.BAD_CHI2) == 0)]
    sample = sample if len(sample) else catalog[catalog["teff"].notna()]
    stretch = np.arange(len(sample)) * min(n, len(sample)) // max(len(sample), 1)
    ordered = sample.sort_values(["teff", "specid"]).assign(_stretch=stretch)
    best_first = ordered.sort_values(["_stretch", "snr_g", "specid"], ascending=[True, False, True])
    return best_first.groupby("_stretch").head(1).head(n)


def spectrum_views(
    run: str | Path, settings: config.Settings, identity: str, chosen: pd.DataFrame
) -> list[SpectrumView]:
    """Data and models of chosen catalog rows, as the fit saw them."""
    model = make_labeler(settings, identity)
    wavelength = windows.rest_wavelength()
    used = ~windows.inside(wavelength, settings.fit.mask)
    parts = list_parts(Path(run, FITS_FOLDER))
    rows = pd.concat([read_fits_part(p, ["specid", "row"]).to_pandas() for p in parts]).set_index("specid")["row"]
    views = []
    for _, star in chosen.iterrows():
        partition, offset = divmod(int(rows[star["specid"]]), settings.cube.partition_size)
        arrays = {k: v[offset : offset + 1] for k, v in read_partition(cube_place(run), partition).items()}
        ivar = model.usable(arrays["ivar"], arrays["andmask"], arrays["ormask"])
        lsf = np.column_stack([arrays[name] for name in LSF_NAMES])
        prepared = model.prepare(arrays["flux"], ivar, arrays["rv"] + np.nan_to_num(star["rv_refit"]), lsf)
        models = [
            model.model.flux(star[[f"{name}_{which}" for name in LABEL_NAMES]].to_numpy(float), prepared.lsf)[0]
            for which in ("all", "hmasked")
        ]
        views.append(
            SpectrumView(
                specid=star["specid"],
                title=f"{star['star_id']} · {star['fitsname']} · S/N {star['snr_g']:.0f}",
                wavelength=wavelength,
                flux=prepared.flux[0],
                ivar=prepared.ivar[0],
                model_all=models[0],
                model_hmasked=models[1],
                used=used & (prepared.ivar[0] > 0),
                labels={name: float(star[name]) for name in LABEL_NAMES},
                errors={name: float(star[f"{name}_err"]) for name in LABEL_NAMES},
                chi2_red=float(star["chi2_red"]),
                flags=int(star["flags"]),
            )
        )
    return views


BOUND_SNR = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""S/N at 4650 Å for which the Cramér-Rao bound is drawn."""
BOUND_STARS = 128
"""Stars of the sample whose bounds are taken."""
_JOINED = ("m_ks", "bp_rp_0")
"""Columns a catalog may carry from a join, which the report draws."""


def catalog_of(run: str | Path) -> pd.DataFrame:
    """The catalog of a run as far as its pages need it."""
    there = read_schema(shown_catalog(run).parts[0]).names
    return read_catalog(run, columns=[*(c.name for c in CATALOG), *(name for name in _JOINED if name in there)])


def sample_bound(catalog: pd.DataFrame, emulator: Emulator, settings: config.Fit) -> Bound | None:
    """Median of the Cramér-Rao bounds of stars of the sample, as the emulator has them; None without a sample."""
    sample = catalog.loc[catalog["in_sample"].to_numpy(bool), ["specid", *LABEL_NAMES]].dropna()
    if sample.empty:
        return None
    # Evenly through the sample, whatever the order of the catalog's parts.
    chosen = np.unique(np.linspace(0, len(sample) - 1, BOUND_STARS).round().astype(int))
    labels = sample.sort_values("specid").iloc[chosen][list(LABEL_NAMES)].to_numpy(np.float64)
    lsf = mean_lsf(settings.resolving_power_blue, settings.resolving_power_red)
    ivar = noise(100.0, signal_to_noise_curve("lamost", float(np.median(labels[:, 0])))).astype(np.float32)
    shared = np.broadcast_to(ivar, (len(labels), ivar.size))
    covariance = cramer_rao_bound(emulator, labels, shared, lsf=lsf, mask=settings.mask)
    sigma = np.median(np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)), axis=0)
    # A bound goes as the noise.
    return Bound(
        len(labels),
        {n: {s: 100.0 / s * value for s in BOUND_SNR} for n, value in zip(LABEL_NAMES, sigma.tolist(), strict=True)},
    )


def step_costs(run: str | Path, seconds: Mapping[str, float]) -> list[Throughput]:
    """What the steps of a run cost, from its receipts."""
    out = []
    for step in ("stage", "ingest", "fit"):
        receipts = list_receipts(run, step).values()
        kernels: dict[str, float] = {}
        for receipt in receipts:
            for name, cpu, _ in receipt.extra.get("kernels", ()):
                kernels[name] = kernels.get(name, 0.0) + cpu
        # run.json times reading and writing of the cube together, as ingest.
        clock = float(seconds.get(step, np.nan)) if step != "stage" else np.nan
        if kernels:
            out.append(Throughput(step, sum(r.rows for r in receipts), clock, kernels))
    return out


def write_report(run: str, settings: config.Settings, identity: str, summary: dict) -> None:
    """Write the pages of ``RUN/report`` from the published catalog; ``index.html`` is the last."""
    one_thread()
    folder = Path(run)
    pages = folder / "report"
    catalog = catalog_of(run)
    truth = None if settings.report.truth is None else pd.read_parquet(settings.report.truth)
    tracks = None if settings.report.tracks is None else read_tracks(settings.report.tracks)
    chosen = choose_spectra(catalog, settings.report.spectra)
    emulator = make_labeler(settings, identity).emulator
    card = {k: emulator.card[k] for k in ("library", "syntheses", "held_out", "date") if k in emulator.card}
    residuals = emulator.card.get("residuals", {})
    card |= {f"held-out residual, {k}": f"{100 * residuals[k]:.2f} %" for k in ("all", "lines") if k in residuals}
    found = summary.get("catalog", {})
    provenance = {
        "counts": summary["counts"],
        "stars": {k: found.get(k) for k in ("stars", "repeat_pairs", "version")},
        "seconds": summary["seconds"],
        "hotdask": summary["hotdask"],
        "emulator": {"id": identity, **card},
        "packages": summary["packages"],
    }
    views = spectrum_views(run, settings, identity, chosen)
    # Pages of an earlier choice must not outlive it.
    remove_folder(pages / "spectra")
    (pages / "spectra").mkdir(parents=True)
    for view in views:
        text = spectrum_page(view, mask=settings.fit.mask, hydrogen=settings.fit.hydrogen, home="../")
        write_text(pages / "spectra" / page_name(view.specid), text)
    addresses = {view.specid: page_address(view.specid) for view in views}
    title = f"hotdask · {folder.name}"
    explorer = explorer_page(catalog, addresses, run=folder.name, title=f"{title} · explorer")
    write_text(pages / "explorer.html", explorer)
    write_text(pages / "method.html", method_page())
    index = build_report(
        catalog=catalog,
        rejects=read_rejects(folder),
        provenance=provenance,
        spectra=views,
        truth=truth,
        reasons=REASONS,
        chi2=Chi2Model.from_dict(found["chi2_model"]) if found.get("chi2_model") else None,
        max_chi2ratio=settings.catalog.max_chi2ratio,
        snr_tolerance=settings.catalog.pair_snr_tolerance,
        tracks=tracks,
        bound=sample_bound(catalog, emulator, settings.fit),
        throughput=step_costs(run, summary["seconds"]),
        site=True,
        run=folder.name,
        title=title,
    )
    write_text(pages / "index.html", index)


def plot_spectrum(run: str | Path, specid: str, out: str | Path | None = None) -> Path:
    """Draw one spectrum of a run.

    Parameters
    ----------
    run : path
        Folder of a run with a catalog.
    specid : str
        The spectrum.
    out : path, optional
        File to write, ``.html``, ``.svg`` or ``.png``; default: ``SPECID.html`` in the present folder.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    RunError
        If there is no such run, catalog or spectrum.
    InputError
        If the file has another ending.
    """
    path = Path(page_name(specid) if out is None else out)
    if path.suffix not in {".html", ".svg", ".png"}:
        raise InputError(f"--out {path}: a spectrum is drawn as .html, .svg or .png; give a name that ends so")
    summary = Path(run, "run.json")
    if not summary.exists():
        raise RunError(f"{run} is no folder of a run (no run.json); give the --out of `hotdask run`")
    settings = config.load_settings(Path(run, "settings.toml"), out=str(run))
    identity = json.loads(summary.read_text())["emulator"]
    star = read_catalog(run, filters=[("specid", "==", specid)])
    if not len(star):
        raise RunError(f"{run}: the catalog has no spectrum {specid}; specid is date-planid-spid-fiberid")
    (view,) = spectrum_views(run, settings, identity, star.head(1))
    windows_ = {"mask": settings.fit.mask, "hydrogen": settings.fit.hydrogen}
    if path.suffix == ".html":
        write_text(path, spectrum_page(view, **windows_))
    else:
        write_bytes(path, save_figure(draw_spectrum(view, **windows_), path.suffix, title=labels_text(view)))
    return path
