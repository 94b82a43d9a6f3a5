"""What a run will do: which spectra, in which order, in which partition; and whether it may go on where it was."""

import hashlib
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from astropy import units as u
from astropy_healpix import HEALPix

from hotdask import config
from hotdask.errors import RunError, SettingsError
from hotdask.schema import FORMAT_VERSION
from hotdask.store.atomic import atomic_path, write_text
from hotdask.store.inputs import input_signature
from hotdask.store.parquet import read_table

SETTINGS, INPUTS, PLAN = "settings.toml", "inputs.parquet", "plan.parquet"
_SKY = HEALPix(nside=4096, order="nested")


def fingerprint(*parts: object) -> str:
    """16 hex digits that change with anything given (JSON values) or the format version."""
    text = json.dumps([FORMAT_VERSION, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_grouped(path: Path, frame: pd.DataFrame, rows: int) -> None:
    """Parquet with one row group per ``rows`` rows: a task reads its own group and nothing else."""
    with atomic_path(path) as partial:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), partial, row_group_size=rows)


def read_group(path: str | Path, group: int) -> pd.DataFrame:
    """One row group of a file written by `write_grouped`."""
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group).to_pandas()


def check_settings(run: Path, settings: config.Settings) -> None:
    """Write the settings of a new run, or see that they are those the run began with.

    Raises
    ------
    SettingsError
        If anything that decides a result differs, listing what.
    """
    path = run / SETTINGS
    if path.exists():
        before = tomllib.loads(path.read_text(encoding="utf-8"))
        now = tomllib.loads(config.dump_settings(settings))
        changed = [
            f"  {section}.{key}: {before.get(section, {}).get(key)!r} -> {now.get(section, {}).get(key)!r}"
            for section in config.DECISIVE
            for key in sorted({*before.get(section, {}), *now.get(section, {})} - set(config.FREE.get(section, ())))
            if before.get(section, {}).get(key) != now.get(section, {}).get(key)
        ]
        if changed:
            raise SettingsError(
                f"{run} was begun with other settings:\n" + "\n".join(changed) + "\n"
                "give the old settings, or another --out for the new ones"
            )
    write_text(path, config.dump_settings(settings))


def check_inputs(run: Path, entries: pd.DataFrame, rows: int, *, fixed: bool = True) -> str:
    """Write the input files of a new run, or see that they are those it began with; returns their hash.

    As long as they are not ``fixed`` (nothing is ingested yet), others may replace them: a run that stopped for bad
    inputs goes on once they are corrected.

    Raises
    ------
    RunError
        If files came, went or changed since the run began.
    """
    now = entries.merge(input_signature(entries), on="path")
    path = run / INPUTS
    if path.exists() and fixed:
        before = read_table(path).to_pandas()
        old, new = before.set_index("path"), now.set_index("path")
        gone, come = old.index.difference(new.index), new.index.difference(old.index)
        both = old.index.intersection(new.index)
        columns = [c for c in old.columns if c in new.columns]
        same = (old.loc[both, columns] == new.loc[both, columns]) | (
            old.loc[both, columns].isna() & new.loc[both, columns].isna()
        )
        changed = both[~same.all(axis=1).to_numpy()]
        if len(gone) or len(come) or len(changed) or list(before.columns) != list(now.columns):
            example = next(iter([*changed, *gone, *come]), "the columns of the input table")
            raise RunError(
                f"{run}: inputs are not those the run began with: {len(come)} came, {len(gone)} went, "
                f"{len(changed)} changed (e.g. {example}); use another --out for the new inputs"
            )
    else:
        write_grouped(path, now, rows)
    return hashlib.sha256(pd.util.hash_pandas_object(now, index=False).to_numpy().tobytes()).hexdigest()[:16]


def drop_duplicates(meta: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep one file of each exposure: the newest release's, then the first path.

    Two files hold the same exposure if they share specid or obsid.

    Parameters
    ----------
    meta : pandas.DataFrame
        Columns of `hotdask.schema.SPECTRA`.

    Returns
    -------
    kept, rejects : pandas.DataFrame
        The rejects have the columns of `hotdask.schema.REJECTS`.
    """
    release = meta["release"].map(lambda text: int((re.findall(r"DR(\d+)", str(text)) or [0])[-1]))
    kept = meta.assign(_release=release).sort_values(["_release", "path"], ascending=[False, True])
    rejects = []
    for key in ("specid", "obsid"):
        known = kept if key == "specid" else kept[kept["obsid"] >= 0]
        winner = known.groupby(key)["path"].transform("first")
        lost = known[winner != known["path"]]
        detail = "the same exposure as " + winner[lost.index] + ", which was kept (newest release first)"
        rejects.append(lost[["path", "fitsname", "specid"]].assign(reason="duplicate", detail=detail))
        kept = kept.drop(lost.index)
    return meta.loc[meta.index.isin(kept.index)], pd.concat(rejects).sort_values("path")


def sky_order(meta: pd.DataFrame) -> np.ndarray:
    """Row order along a HEALPix curve, so that neighbors on the sky, and a star's visits, share partitions.

    The order does not depend on the order given.
    """
    cell = _SKY.lonlat_to_healpix(meta["ra"].to_numpy() * u.deg, meta["dec"].to_numpy() * u.deg)
    return np.lexsort((meta["specid"].to_numpy(), meta["dec"].to_numpy(), meta["ra"].to_numpy(), cell))
