"""The survey as one dataframe: merged labels, stars, error scaling from repeats, chi2ratio, the catalog."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa

from hotdask import config
from hotdask.crossmatch.join import JOIN, join_tables
from hotdask.crossmatch.photometry import intrinsically_cool
from hotdask.flags import Flag
from hotdask.labels import COMPARED_LABELS, CORRELATION_PAIRS, INDEX, LABEL_NAMES, N_LABELS
from hotdask.pipeline.plan import carried_schema
from hotdask.schema import (
    CATALOG,
    COMPARED,
    INTERNAL,
    JOINED,
    RESIDUALS,
    SPECTRA,
    arrow_schema,
    catalog_columns,
    empty_frame,
    to_frame,
    unpack_covariance,
)
from hotdask.steps.flag import Chi2Model, catalog_flags, chi2_statistics, count_cuts, fit_chi2_model
from hotdask.steps.merge import merge_labels
from hotdask.steps.polynomial import assign_cells
from hotdask.steps.repeats import assign_stars, make_pairs
from hotdask.steps.scale import ErrorScale, fit_error_scale, limit_errors, pull_statistics
from hotdask.store.catalog import FITS_FOLDER, provenance_metadata, publish_catalog, read_catalog, read_fits_part
from hotdask.store.cube import SIDECAR, Layout, read_sidecar
from hotdask.store.grouped import read_group, write_grouped
from hotdask.store.parquet import PARQUET_OPTIONS, part_name, part_path, read_table

STARS = "stars.parquet"
_REPEATED = f"{INTERNAL}repeated"
"""Column that says whether a star has several spectra."""
_NOTHING = pa.schema([])
_LATER = ("chi2ratio", "in_sample")
_MERGED = tuple(c for c in CATALOG if c.name not in _LATER)
_ERRORS = [f"{name}_err" for name in LABEL_NAMES]
_BOTH = ("all", "hmasked")
_FITTED = ("chi2_red", "flags", *(c.name for c in RESIDUALS))
_OF_COVARIANCE = {*_ERRORS, *(f"corr_{a}_{b}" for a, b in CORRELATION_PAIRS)}
_OF_LABELS = {*_OF_COVARIANCE, *LABEL_NAMES, *(f"{name}_{which}" for name in LABEL_NAMES for which in _BOTH)}
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
    # pandas has strings of its own by now; those that Dask would put in their place come back as another type.
    with dask.config.set({"dataframe.convert-string": False}):
        return _build(run, settings, layout, provenance, echo)


def _build(
    run: str | Path, settings: config.Settings, layout: Layout, provenance: Mapping, echo: Callable[[str], None]
) -> dict:
    parts, compared = range(len(layout.counts)), settings.fit.compared
    carried = carried_schema(run)
    declared = catalog_columns(compared)
    # A shuffle costs the square of its partitions, so those of the cube are put together before, not after.
    groups = np.array_split(parts, min(len(parts), settings.catalog.max_files))
    n_star = find_stars(run, groups, layout.counts, settings.catalog.match_radius)
    joined = join_tables(run, groups, layout, settings.join, tuple(carried.names), echo=echo)
    if not joined:
        Path(run, JOIN).unlink(missing_ok=True)
    sample = to_frame(carried.empty_table())
    sample = (
        sample if not joined else pd.concat([sample, read_group(Path(run, JOIN), 0)[list(joined)].iloc[:0]], axis=1)
    )
    meta = pd.concat([empty_frame(tuple(c for c in declared if c.name not in _LATER)), sample], axis=1).assign(
        **{_REPEATED: np.empty(0, dtype=bool)}
    )
    options = {"run": str(run), "compared": compared, "carried": carried, "joined": joined}
    # Dask asks for those columns only that a step needs.
    merged = dd.from_map(_read_together, groups, read=read_merged, **options, meta=meta, label="merge")

    # Together, so that what both read is read once.
    pulls, levels = dask.compute(pull_cells(merged, settings.catalog), chi2_cells(merged))
    scale = fit_error_scale(plain_cells(pulls), min_pairs=settings.catalog.min_pairs)
    chi2 = fit_chi2_model(plain_cells(levels))
    meta = pd.concat([empty_frame(declared), sample], axis=1)
    catalog = merged.map_partitions(finish, scale, chi2, settings.catalog, compared, meta=meta)
    extra = [*carried, *(c.field() for c in JOINED if c.name in joined)]
    schema = arrow_schema(declared, carried=pa.schema(extra))

    def write(folder: Path) -> None:
        catalog.to_parquet(
            str(folder),
            schema=schema,
            custom_metadata=provenance_metadata(provenance),
            name_function=part_name,
            write_index=False,
            **PARQUET_OPTIONS,
        )

    published = publish_catalog(run, write, provenance, rows=layout.n_spectrum, declared=declared)
    return {
        "version": published.version,
        "rows": published.rows,
        "stars": n_star,
        "cuts": count_cuts(read_catalog(run, columns=["teff", "flags", "in_sample"])),
        "repeat_pairs": int(pulls["n"].sum()),
        "error_scale": None if scale is None else scale.to_dict(),
        "chi2_model": None if chi2 is None else chi2.to_dict(),
    }


def _read_together(
    group: Iterable[int], *, read: Callable[..., pd.DataFrame], columns: Sequence[str] | None = None, **options
) -> pd.DataFrame:
    parts = (read(int(partition), columns=columns, **options) for partition in group)
    return pd.concat(parts, ignore_index=True)


def find_stars(run: str | Path, groups: Iterable[Iterable[int]], counts: Iterable[int], radius: float) -> int:
    """Group all spectra of a survey into stars by position, across partitions; writes ``RUN/stars.parquet``.

    Each of ``groups`` holds the partitions that one task reads, ``counts`` the rows of each partition. Five short
    columns of the whole survey are held at once: 100 bytes a spectrum.
    """
    columns = ["specid", "ra", "dec", "snr_g"]
    meta = empty_frame(tuple(c for c in SPECTRA if c.name in columns))[columns]
    spectra = dd.from_map(
        _read_together, list(groups), read=_positions, columns=columns, run=str(run), meta=meta, label="positions"
    )
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
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """One partition as flat columns: its spectra, stars, merged labels with formal errors, and both raw fits; behind
    them what a second emulator found, if there is one. Of ``columns``, only what they need is read.

    vsini is still signed here.
    """
    second = [c.name for c in COMPARED[compared]] if compared else []
    every = [*(c.name for c in _MERGED), *second, *carried.names, *joined, _REPEATED]
    chosen = every if columns is None else list(columns)
    from_fits = {*_FITTED, *_OF_LABELS, *second}.intersection(chosen)
    found = _fitted(part_path(Path(run, FITS_FOLDER), partition), from_fits, second)
    sidecar = part_path(Path(run, SIDECAR), partition)
    if names := [c.name for c in SPECTRA if c.name in chosen]:
        found |= dict(to_frame(read_table(sidecar, names)))
    if names := [name for name in carried.names if name in chosen]:
        fields = pa.schema([carried.field(name) for name in names])
        found |= dict(to_frame(read_table(sidecar, names).cast(fields)))
    for table, names in ((STARS, ("star_id", "uniqflag", _REPEATED)), (JOIN, joined)):
        if names := [name for name in names if name in chosen]:
            found |= dict(read_group(Path(run, table), partition, columns=names))
    return pd.DataFrame(found)[chosen]


def _fitted(path: Path, wanted: set[str], second: list[str]) -> dict[str, np.ndarray]:
    """Columns of a part of the fits, and what follows from them."""
    labels, errors = bool(wanted & _OF_LABELS), bool(wanted & _OF_COVARIANCE)
    needed = {name for name in wanted if name in _FITTED or name in second}
    needed |= {f"{name}_{which}" for name in LABEL_NAMES for which in _BOTH if labels}
    needed |= {"hydrogen_weight"} if labels else set()
    needed |= {f"covariance_{which}" for which in _BOTH if errors}
    if not needed:
        return {}
    fits = read_fits_part(path, sorted(needed))
    out = {name: fits.column(name).to_numpy() for name in needed if not name.startswith("covariance_")}
    if labels:
        weight = out.pop("hydrogen_weight")
        raw = [np.column_stack([out[f"{name}_{which}"] for name in LABEL_NAMES]) for which in _BOTH]
        out |= dict(zip(LABEL_NAMES, merge_labels(*raw, weight).T, strict=True))
    if errors:
        covariance = [unpack_covariance(fits.column(f"covariance_{which}")) for which in _BOTH]
        merged = merge_labels(*covariance, weight**2)
        sigma = np.sqrt(np.diagonal(merged, axis1=1, axis2=2))
        out |= dict(zip(_ERRORS, limit_errors(sigma).T, strict=True))
        for a, b in CORRELATION_PAIRS:
            i, j = INDEX[a], INDEX[b]
            out[f"corr_{a}_{b}"] = merged[:, i, j] / (sigma[:, i] * sigma[:, j])
    if second:
        _limit_compared(out, second)
    return out


def _limit_compared(found: dict[str, np.ndarray], second: list[str]) -> None:
    """Errors of a second emulator's labels within the limits of each label."""
    for index, name in zip(_COMPARED_INDEX, (n for n in second if n.endswith("_err")), strict=True):
        if name in found:
            errors = np.full((len(found[name]), N_LABELS), np.nan)
            errors[:, index] = found[name]
            found[name] = limit_errors(errors)[:, index]


def _compared_errors(compared: str) -> list[str]:
    return [f"{name}_{compared}_err" for name in COMPARED_LABELS]


def pull_cells(merged: dd.DataFrame, settings: config.Catalog) -> dd.DataFrame:
    """How far repeat visits scatter beyond the formal errors, cell by cell of Teff and S/N."""
    columns = ["star_id", "specid", "mjd", "snr_g", *LABEL_NAMES, *_ERRORS]
    # A label held at its limit does not scatter, so such a fit says nothing about errors.
    usable = merged[merged[_REPEATED] & ((merged["flags"] & int(Flag.AT_BOUND)) == 0)][columns]
    # One shuffle, then plain pandas: a Dask groupby of as many groups as stars took 105 s where this takes 0.7 s.
    pairs = usable.shuffle("star_id").map_partitions(make_pairs, snr_tolerance=settings.pair_snr_tolerance)
    return _by_cell(pairs, pull_statistics)


def chi2_cells(merged: dd.DataFrame) -> dd.DataFrame:
    """Median and dispersion of chi2_red, cell by cell of Teff and S/N."""
    return _by_cell(merged[["teff", "snr_g", "chi2_red"]], chi2_statistics)


def _by_cell(frame: dd.DataFrame, statistics: Callable[[pd.DataFrame], pd.DataFrame]) -> dd.DataFrame:
    cells = frame.map_partitions(_with_cells)
    return cells.groupby("cell").apply(_of_one_cell, statistics, meta=_of_one_cell(cells._meta, statistics))


def _of_one_cell(group: pd.DataFrame, statistics: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    return statistics(group.assign(cell=0)).drop(columns="cell")


def plain_cells(found: pd.DataFrame) -> pd.DataFrame:
    """Statistics of all cells in their order, with the cell as a column and not as an index."""
    if not len(found):
        return found.assign(cell=pd.Series([], dtype="int32"))
    return found.droplevel(1).rename_axis("cell").reset_index().sort_values("cell", ignore_index=True)


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
