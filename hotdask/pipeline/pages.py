"""The report of a run: spectra chosen and prepared here, the page made by `hotdask.report`."""

from pathlib import Path

import numpy as np
import pandas as pd

from hotdask import config, windows
from hotdask.flags import Flag
from hotdask.labels import LABEL_NAMES, LSF_NAMES
from hotdask.pipeline.maps import make_labeler, one_thread
from hotdask.pipeline.plan import read_rejects
from hotdask.report.page import SpectrumView, build_report
from hotdask.schema import CATALOG
from hotdask.store.atomic import write_text
from hotdask.store.catalog import FITS_FOLDER, read_catalog, read_fits_part
from hotdask.store.cube import cube_place, read_partition
from hotdask.store.lamost import REASONS
from hotdask.store.parquet import list_parts


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
        prepared = model.prepare(arrays["flux"], ivar, arrays["rv"], lsf)
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


def write_report(run: str, settings: config.Settings, identity: str, summary: dict) -> None:
    """Write ``RUN/report/index.html`` from the published catalog."""
    one_thread()
    folder = Path(run)
    catalog = read_catalog(folder, columns=[c.name for c in CATALOG])
    truth = None if settings.report.truth is None else pd.read_parquet(settings.report.truth)
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
    page = build_report(
        catalog=catalog,
        rejects=read_rejects(folder),
        provenance=provenance,
        spectra=spectrum_views(run, settings, identity, chosen),
        truth=truth,
        reasons=REASONS,
        mask=settings.fit.mask,
        hydrogen=settings.fit.hydrogen,
        max_chi2ratio=settings.catalog.max_chi2ratio,
        snr_tolerance=settings.catalog.pair_snr_tolerance,
        title=f"hotdask · {folder.name}",
    )
    (folder / "report").mkdir(exist_ok=True)
    write_text(folder / "report" / "index.html", page)
