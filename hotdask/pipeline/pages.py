"""The report of a run: spectra chosen and prepared here, the pages made by `hotdask.report`."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from hotdask import config, windows
from hotdask.crossmatch.differences import differences, label_differences, reference_teff
from hotdask.errors import InputError, RunError
from hotdask.flags import Flag
from hotdask.labels import COMPARED_LABELS, LABEL_NAMES
from hotdask.pipeline.maps import make_labeler, one_thread, read_observed
from hotdask.pipeline.plan import read_rejects
from hotdask.readers.lamost import REASONS
from hotdask.report.compare import comparison_figure
from hotdask.report.diagrams import clean
from hotdask.report.explorer import explorer_page
from hotdask.report.method import method_page
from hotdask.report.page import Throughput, build_report
from hotdask.report.render import Picture, picture, save_figure
from hotdask.report.spectrum import (
    SpectrumView,
    draw_spectrum,
    labels_text,
    page_address,
    page_name,
    spectrum_page,
)
from hotdask.report.tracks import read_tracks
from hotdask.schema import CATALOG, COMPARED, unpack_covariance
from hotdask.steps.flag import Chi2Model, galactic_latitude
from hotdask.store.atomic import remove_folder, write_bytes, write_text
from hotdask.store.catalog import FITS_FOLDER, read_catalog, read_fits_part, shown_catalog
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
    place = rows.loc[chosen["specid"]].to_numpy()
    views: dict[str, SpectrumView] = {}
    for partition in np.unique(place // settings.cube.partition_size):
        here = place // settings.cube.partition_size == partition
        offset = place[here] % settings.cube.partition_size
        stars = chosen[here]
        seen = read_observed(run, int(partition), model, offset)
        rv = seen.rv + np.nan_to_num(stars["rv_refit"].to_numpy())
        prepared = model.prepare(seen.flux, seen.ivar, rv, seen.lsf)
        models = [
            model.model.flux(stars[[f"{name}_{which}" for name in LABEL_NAMES]].to_numpy(float), prepared.lsf)
            for which in ("all", "hmasked")
        ]
        for i, (_, star) in enumerate(stars.iterrows()):
            views[star["specid"]] = SpectrumView(
                specid=star["specid"],
                title=f"{star['star_id']} · {star['fitsname']} · S/N {star['snr_g']:.0f}",
                wavelength=wavelength,
                flux=prepared.flux[i],
                ivar=prepared.ivar[i],
                model_all=models[0][i],
                model_hmasked=models[1][i],
                used=used & (prepared.ivar[i] > 0),
                labels={name: float(star[name]) for name in LABEL_NAMES},
                errors={name: float(star[f"{name}_err"]) for name in LABEL_NAMES},
                chi2_red=float(star["chi2_red"]),
                flags=int(star["flags"]),
            )
    return [views[specid] for specid in chosen["specid"]]


BOUND_PARTS = 16
"""Partitions whose spectra have their Cramér-Rao bounds drawn, at most."""
_JOINED = ("m_ks", "bp_rp_0", "g", "bp", "rp", "parallax_over_error")
"""Columns a catalog may carry from a join, which the report draws."""
_OPTIONAL = (*_JOINED, *(c.name for columns in COMPARED.values() for c in columns))


def catalog_of(run: str | Path) -> pd.DataFrame:
    """The catalog of a run as far as its pages need it, with ``abs_b`` [deg], how far from the Galactic plane, and, if
    magnitudes are known, ``bp_rp`` [mag]."""
    there = read_schema(shown_catalog(run).parts[0]).names
    catalog = read_catalog(run, columns=[*(c.name for c in CATALOG), *(name for name in _OPTIONAL if name in there)])
    latitude = galactic_latitude(catalog["ra"].to_numpy(np.float64), catalog["dec"].to_numpy(np.float64))
    catalog = catalog.assign(abs_b=np.abs(latitude))
    if {"bp", "rp"} <= {*catalog}:
        catalog = catalog.assign(bp_rp=catalog["bp"] - catalog["rp"])
    return catalog


def draw_compared(catalog: pd.DataFrame, suffix: str) -> Picture | None:
    """Differences from the labels of the second emulator against Teff; None if the sample has none."""
    pairs = clean(catalog, [f"{name}{end}" for name in COMPARED_LABELS for end in ("", f"_{suffix}")])
    if not len(pairs):
        return None
    # Without errors: both fits have the same noise, which their difference has not.
    pairs = pairs.rename(columns={f"{name}_{suffix}": f"{name}_ref" for name in COMPARED_LABELS})
    pairs = pairs[[f"{name}{end}" for name in COMPARED_LABELS for end in ("", "_ref")]]
    found = {name: differences(pairs, name) for name in COMPARED_LABELS}
    teff, summary = reference_teff(pairs), label_differences(pairs)
    figure = comparison_figure(
        teff, {name: value for name, (value, _) in found.items()}, {n: e for n, (_, e) in found.items()}, summary
    )
    return picture(
        figure,
        alt=f"Differences of {len(COMPARED_LABELS)} labels of {len(pairs)} spectra by two emulators against Teff.",
        caption=f"Labels minus those called *_{suffix}, against teff_{suffix}. Red: the median of each range of Teff, "
        "with the scatter around it.",
        many=True,
    )


def label_bounds(run: str | Path) -> pd.DataFrame:
    """Cramér-Rao bounds of spectra of up to `BOUND_PARTS` partitions, all lines: what their formal errors are.

    The covariance of a fit is the inverse of the information that its pixels' noise leaves at its labels: Eq 3.

    Returns
    -------
    pandas.DataFrame
        ``specid`` and ``<label>_crb``, in the label's unit; NaN where nothing was fitted.
    """
    parts = list_parts(Path(run, FITS_FOLDER))
    # Evenly over the sky, which partitions follow.
    chosen = np.unique(np.linspace(0, len(parts) - 1, BOUND_PARTS).round().astype(int))
    tables = [read_fits_part(parts[i], ["specid", "covariance_all"]) for i in chosen]
    frames = []
    for table in tables:
        covariance = unpack_covariance(table.column("covariance_all"))
        sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        frame = pd.DataFrame(sigma, columns=[f"{name}_crb" for name in LABEL_NAMES])
        frames.append(frame.assign(specid=table.column("specid").to_pandas()))
    return pd.concat(frames, ignore_index=True)


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
        bounds=label_bounds(run),
        throughput=step_costs(run, summary["seconds"]),
        compared=None if settings.fit.compared is None else draw_compared(catalog, settings.fit.compared),
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
