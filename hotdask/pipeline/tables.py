"""The survey as one dataframe: merged labels, stars, error scaling from repeats, chi2ratio, the catalog."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa

from hotdask import config
from hotdask.flags import Flag
from hotdask.labels import COMPARED_LABELS, CORRELATION_PAIRS, INDEX, LABEL_NAMES, N_LABELS
from hotdask.pipeline.join import JOIN, join_tables
from hotdask.pipeline.plan import carried_schema, read_group, write_grouped
from hotdask.schema import (
    CATALOG,
    COMPARED,
    INTERNAL,
    RESIDUALS,
    SPECTRA,
    Column,
    catalog_columns,
    empty_frame,
    to_table,
    unpack_covariance,
)
from hotdask.steps.flag import Chi2Model, catalog_flags, chi2_statistics, count_cuts, fit_chi2_model
from hotdask.steps.merge import merge_fits
from hotdask.steps.photometry import intrinsically_cool
from hotdask.steps.polynomial import assign_cells
from hotdask.steps.repeats import assign_stars, make_pairs
from hotdask.steps.scale import ErrorScale, fit_error_scale, limit_errors, pull_statistics
from hotdask.store.catalog import FITS_FOLDER, publish_catalog, read_catalog, read_fits_part, write_catalog_part
from hotdask.store.cube import SIDECAR, Layout, read_sidecar
from hotdask.store.parquet import part_path, read_table, to_frame

STARS = "stars.parquet"
_REPEATED = f"{INTERNAL}repeated"
"""Column that says whether a star has several spectra."""
_NOTHING = pa.schema([])
_LATER = ("chi2ratio", "in_sample")
_MERGED = tuple(c for c in CATALOG if c.name not in _LATER)
_ERRORS = [f"{name}_err" for name in LABEL_NAMES]
_COMPARED_INDEX = [INDEX[name] for name in COMPARED_LABELS]


def build_catalog(
    run: str | Path,
    settings: config.Settings,
    layout: Layout,
    provenance: Mapping,
    *,
    echo: Callable[[str], None] = print,
) -> dict:
    """Make and publish the catalog of a run whose fits are complete, on the current Dask client.

    Parameters
    ----------
    run : path
    settings : hotdask.config.Settings
    layout : hotdask.store.cube.Layout
        Partitions of the cube; the catalog gets as many rows as they hold.
    provenance : mapping
        Goes into the metadata of every part.
    echo : callable
        Told how many spectra found a row in each table joined.

    Returns
    -------
    dict
        What was found: stars, repeat pairs, the error scaling, the chi2 model (JSON values).

    References
    ----------
    Xiang et al. 2022, §4.5 (merge), §4.6 (errors), §5.2 (chi2ratio), §5.6 (catalog).
    """
    parts, compared = range(len(layout.counts)), settings.fit.compared
    carried = carried_schema(run)
    declared = catalog_columns(compared)
    # A shuffle costs the square of its partitions, so those of the cube are put together before, not after.
    groups = np.array_split(parts, min(len(parts), settings.catalog.max_files))
    n_star = find_stars(run, groups, layout.counts, settings.catalog.match_radius)
    joined = join_tables(run, groups, layout, settings.join, tuple(carried.names), echo=echo)
    sample = to_frame(carried.empty_table())
    sample = (
        sample if not joined else pd.concat([sample, read_group(Path(run, JOIN), 0)[list(joined)].iloc[:0]], axis=1)
    )
    meta = pd.concat([empty_frame(tuple(c for c in declared if c.name not in _LATER)), sample], axis=1).assign(
        **{_REPEATED: np.empty(0, dtype=bool)}
    )
    options = {"run": str(run), "compared": compared, "carried": carried, "joined": joined}
    merged = dd.from_map(_read_together, groups, read=read_merged, **options, meta=meta, label="merge")
    extra = (*carried.names, *joined)

    scale, n_pair = error_scale(merged, settings.catalog)
    chi2 = chi2_model(merged)
    meta = pd.concat([empty_frame(declared), sample], axis=1)
    catalog = merged.map_partitions(finish, scale, chi2, settings.catalog, compared, meta=meta)

    def write(folder: Path) -> None:
        pieces = catalog.to_delayed()
        options = {"folder": folder, "provenance": provenance, "declared": declared, "extra": extra, "carried": carried}
        dask.compute(*(dask.delayed(_write_part)(piece, i, **options) for i, piece in enumerate(pieces)))

    published = publish_catalog(run, write, provenance, rows=layout.n_spectrum, declared=declared)
    return {
        "version": published.version,
        "rows": published.rows,
        "stars": n_star,
        "cuts": count_cuts(read_catalog(run, columns=["teff", "flags", "in_sample"])),
        "repeat_pairs": n_pair,
        "error_scale": None if scale is None else scale.to_dict(),
        "chi2_model": None if chi2 is None else chi2.to_dict(),
    }


def _read_together(group: Iterable[int], *, read: Callable[..., pd.DataFrame], **options) -> pd.DataFrame:
    return pd.concat([read(int(partition), **options) for partition in group], ignore_index=True)


def find_stars(run: str | Path, groups: Iterable[Iterable[int]], counts: Iterable[int], radius: float) -> int:
    """Group all spectra of a survey into stars by position, across partitions; writes ``RUN/stars.parquet``.

    Each of ``groups`` holds the partitions that one task reads, ``counts`` the rows of each partition. Five short
    columns of the whole survey are held at once: 100 bytes a spectrum.
    """
    columns = ["specid", "ra", "dec", "snr_g"]
    meta = empty_frame(tuple(c for c in SPECTRA if c.name in columns))[columns]
    options = {"read": _positions, "run": str(run), "columns": columns}
    spectra = dd.from_map(_read_together, list(groups), **options, meta=meta, label="positions")
    spectra = spectra.compute().reset_index(drop=True)
    stars = assign_stars(spectra["ra"], spectra["dec"], spectra["snr_g"], spectra["specid"], radius=radius)
    stars[_REPEATED] = stars.groupby("star_id")["star_id"].transform("size") > 1
    write_grouped(Path(run, STARS), stars, counts)
    return int(stars["star_id"].nunique())


def _positions(partition: int, *, run: str, columns: list[str]) -> pd.DataFrame:
    return read_sidecar(run, partition, columns=columns)[columns]


def read_merged(
    partition: int,
    *,
    run: str,
    compared: str | None = None,
    carried: pa.Schema = _NOTHING,
    joined: tuple[str, ...] = (),
) -> pd.DataFrame:
    """One partition as flat columns: its spectra, stars, merged labels with formal errors, and both raw fits; behind
    them what a second emulator found, if there is one.

    vsini is still signed here.
    """
    fits = read_fits_part(part_path(Path(run, FITS_FOLDER), partition))
    spectra = read_sidecar(run, partition)
    along = read_table(part_path(Path(run, SIDECAR), partition), carried.names).cast(carried)
    raw = {
        which: np.column_stack([fits.column(f"{name}_{which}").to_numpy() for name in LABEL_NAMES])
        for which in ("all", "hmasked")
    }
    covariance = {which: unpack_covariance(fits.column(f"covariance_{which}")) for which in raw}
    weight = fits.column("hydrogen_weight").to_numpy()
    labels, merged = merge_fits(raw["all"], covariance["all"], raw["hmasked"], covariance["hmasked"], weight)
    sigma = np.sqrt(np.diagonal(merged, axis1=1, axis2=2))
    errors = limit_errors(sigma)
    columns = dict(spectra[[c.name for c in SPECTRA if c.name in {m.name for m in _MERGED}]])
    for i, name in enumerate(LABEL_NAMES):
        columns |= {
            name: labels[:, i],
            f"{name}_err": errors[:, i],
            f"{name}_all": raw["all"][:, i],
            f"{name}_hmasked": raw["hmasked"][:, i],
        }
    for a, b in CORRELATION_PAIRS:
        i, j = INDEX[a], INDEX[b]
        columns[f"corr_{a}_{b}"] = merged[:, i, j] / (sigma[:, i] * sigma[:, j])
    columns |= {name: fits.column(name).to_numpy() for name in ("chi2_red", "flags", *(c.name for c in RESIDUALS))}
    stars = read_group(Path(run, STARS), partition)
    columns |= {name: stars[name] for name in ("star_id", "uniqflag", _REPEATED)}
    frame = pd.DataFrame(columns)
    parts = [frame[[c.name for c in _MERGED]], *_read_compared(fits, compared), to_frame(along)]
    if joined:
        parts.append(read_group(Path(run, JOIN), partition)[list(joined)])
    return pd.concat([*parts, frame[[_REPEATED]]], axis=1)


def _read_compared(fits: pa.Table, compared: str | None) -> list[pd.DataFrame]:
    """What the second emulator found, errors within the limits of each label; nothing if there is none."""
    if compared is None:
        return []
    frame = fits.select([c.name for c in COMPARED[compared]]).to_pandas()
    names = _compared_errors(compared)
    errors = np.full((len(frame), N_LABELS), np.nan)
    errors[:, _COMPARED_INDEX] = frame[names]
    frame[names] = limit_errors(errors)[:, _COMPARED_INDEX]
    return [frame]


def _compared_errors(compared: str) -> list[str]:
    return [f"{name}_{compared}_err" for name in COMPARED_LABELS]


def error_scale(merged: dd.DataFrame, settings: config.Catalog) -> tuple[ErrorScale | None, int]:
    """How far repeat visits scatter beyond the formal errors, and how many pairs say so."""
    columns = ["star_id", "specid", "mjd", "snr_g", *LABEL_NAMES, *_ERRORS]
    # A label held at its limit does not scatter, so such a fit says nothing about errors.
    usable = merged[merged[_REPEATED] & ((merged["flags"] & int(Flag.AT_BOUND)) == 0)][columns]
    pairs = usable.shuffle("star_id").map_partitions(make_pairs, snr_tolerance=settings.pair_snr_tolerance)
    cells = pairs.map_partitions(_with_cells).shuffle("cell").map_partitions(pull_statistics).compute()
    scale = fit_error_scale(cells, min_pairs=settings.min_pairs)
    return scale, int(cells["n"].sum())


def chi2_model(merged: dd.DataFrame) -> Chi2Model | None:
    """Median and dispersion of chi2_red over Teff and S/N."""
    values = merged[["teff", "snr_g", "chi2_red"]].map_partitions(_with_cells)
    return fit_chi2_model(values.shuffle("cell").map_partitions(chi2_statistics).compute())


def _with_cells(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.assign(cell=assign_cells(frame["teff"], frame["snr_g"]))
    return frame[frame["cell"] >= 0]


def finish(
    frame: pd.DataFrame,
    scale: ErrorScale | None,
    chi2: Chi2Model | None,
    settings: config.Catalog,
    compared: str | None = None,
) -> pd.DataFrame:
    """Scaled errors, chi2ratio, flags and cuts of one partition: the columns of the catalog."""
    frame = frame.drop(columns=_REPEATED)
    teff, snr = frame["teff"].to_numpy(), frame["snr_g"].to_numpy(dtype=np.float64)
    if scale is not None:
        factors = scale.factors(teff, snr)
        frame[_ERRORS] *= factors
        if compared is not None:
            frame[_compared_errors(compared)] *= factors[:, _COMPARED_INDEX]
    ratio = np.full(len(frame), np.nan) if chi2 is None else chi2.ratio(teff, snr, frame["chi2_red"].to_numpy())
    frame["chi2ratio"] = ratio
    judged = catalog_flags(
        frame,
        min_teff=settings.min_teff,
        min_snr=settings.min_snr,
        max_chi2ratio=settings.max_chi2ratio,
        errors_scaled=scale is not None and not scale.unscaled,
        contaminant=_contaminant(frame, settings),
    )
    frame[["flags", "in_sample"]] = judged[["flags", "in_sample"]]
    for vsini in ("vsini",) if compared is None else ("vsini", f"vsini_{compared}"):
        frame[vsini] = frame[vsini].clip(lower=0)
    names = [c.name for c in CATALOG]
    return frame[[*names, *(name for name in frame.columns if name not in names)]]


def _contaminant(frame: pd.DataFrame, settings: config.Catalog) -> np.ndarray:
    if not {"bp_rp_0", "teff_independent"} <= set(frame.columns):
        return np.zeros(len(frame), dtype=bool)
    spared = frame["source_ob"].fillna(False).to_numpy(bool) if "source_ob" in frame else np.zeros(len(frame), bool)
    return intrinsically_cool(
        frame["bp_rp_0"],
        frame["teff_independent"],
        spared,
        max_bp_rp_0=settings.max_bp_rp_0,
        min_teff=settings.min_teff_independent,
    )


def _write_part(
    frame: pd.DataFrame,
    part: int,
    *,
    folder: Path,
    provenance: Mapping,
    declared: tuple[Column, ...],
    extra: tuple[str, ...],
    carried: pa.Schema,
) -> None:
    table: pa.Table = to_table(frame, declared, extra=extra, types=carried)
    write_catalog_part(folder, part, table, provenance)
