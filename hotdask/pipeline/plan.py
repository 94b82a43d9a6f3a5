"""What a run will do: which spectra, in which order, in which partition; and whether it may go on where it was.

A run grows by batches: the files it began with, and those that later commands found besides. Each batch has a file of
its own in ``RUN/inputs``, ``RUN/plan`` and ``RUN/rejects``; row groups of the first two are staged parts and partitions
of the cube, numbered through all batches.
"""

import hashlib
import json
import os
import re
import stat
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from astropy import units as u
from astropy_healpix import HEALPix

from hotdask import config
from hotdask.errors import RunError, SettingsError
from hotdask.readers.desi import file_of
from hotdask.readers.inputs import input_signature
from hotdask.readers.lamost import OVERRIDES, PASSING
from hotdask.schema import FORMAT_VERSION, INTERNAL, SPECTRA, to_frame
from hotdask.store.atomic import write_text
from hotdask.store.cube import n_partitions
from hotdask.store.grouped import split, write_grouped
from hotdask.store.parquet import read_table
from hotdask.store.receipts import Receipt, check_receipt, hash_file, hash_files, read_receipt, write_receipt

INPUTS, PLAN, REJECTED = "inputs", "plan", "rejects"
_SKY = HEALPix(nside=4096, order="nested")


def fingerprint(*parts: object) -> str:
    """16 hex digits that change with anything given (JSON values) or the format version."""
    text = json.dumps([FORMAT_VERSION, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Batch:
    """Files that came to a run together.

    Parameters
    ----------
    number : int
        From 0.
    files : int
        How many files.
    first : int
        Its first staged part.
    parts : int
        How many staged parts.
    inputs : str
        Hash of what it reads.
    """

    number: int
    files: int
    first: int
    parts: int
    inputs: str


def batch_path(run: str | Path, table: str, batch: int) -> Path:
    """Where a batch's table (`INPUTS`, `PLAN` or `REJECTED`) lies.

    Examples
    --------
    >>> batch_path("RUN", PLAN, 1).as_posix()
    'RUN/plan/batch-0001.parquet'
    """
    return Path(run, table, f"batch-{batch:04d}.parquet")


def list_batches(run: str | Path, table: str) -> list[Path]:
    """A table's files, in the order of the batches."""
    return sorted(Path(run, table).glob("batch-*.parquet"))


def check_settings(run: Path, settings: config.Settings, *, begun: bool = True) -> None:
    """Write the settings of a run, or see that they are those the run began with.

    Parameters
    ----------
    run : pathlib.Path
    settings : hotdask.config.Settings
    begun : bool
        Whether the cube holds anything yet; before, every setting may change but where things lie. Those of the catalog
        and of what is joined to it may change at any time: the catalog is made again.

    Raises
    ------
    SettingsError
        If anything that decides labels, or where they lie, differs, listing what.
    """
    path = run / config.SETTINGS
    sections = (*config.OF_LABELS, "store") if begun else ("store",)
    before = _read_settings(run)
    if before is not None:
        now = tomllib.loads(config.dump_settings(settings))
        changed = [
            f"  {section}.{key}: {before.get(section, {}).get(key)!r} -> {now.get(section, {}).get(key)!r}"
            for section in sections
            for key in sorted({*before.get(section, {}), *now.get(section, {})} - set(config.FREE.get(section, ())))
            if before.get(section, {}).get(key) != now.get(section, {}).get(key)
        ]
        if changed:
            raise SettingsError(
                f"{run} was begun with other settings:\n" + "\n".join(changed) + "\n"
                "give the old settings, or another --out for the new ones"
            )
    write_text(path, config.dump_settings(settings))
    files = hash_files(run, [path])
    write_receipt(run, Receipt("settings", 0, "settings", 1, files=files))


def _read_settings(run: Path) -> dict | None:
    """Settings as the last command left them; None if there are none, or they are not what it wrote.

    Nothing is mixed then either: receipts say with which settings each partition was made.
    """
    receipt = read_receipt(run, "settings", 0)
    if receipt is not None and check_receipt(run, receipt, "settings") is not None:
        return None
    try:
        return tomllib.loads((run / config.SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def check_inputs(run: Path, entries: pd.DataFrame, size: int, *, planned: int) -> list[Batch]:
    """See that the files of planned batches are as they were, and make those that came since a batch of its own.

    A batch that is not planned yet (nothing of it is in the cube) is what the inputs are now: a run that stopped for
    bad inputs goes on once they are corrected. A rejected file is nothing the run rests on: one that changed, or that
    could not be read for a reason that passes, is a file that came later.

    Parameters
    ----------
    run : pathlib.Path
        Folder of the run.
    entries : pandas.DataFrame
        As `hotdask.readers.inputs.list_inputs` gives it.
    size : int
        Files of a staged part.
    planned : int
        How many batches are planned.

    Returns
    -------
    list of Batch

    Raises
    ------
    RunError
        If files of a planned batch that were not rejected went or changed, or a carried column has a type now that
        those before cannot be brought to.
    """
    now = entries.merge(input_signature(entries), on="path")
    before = [_read_inputs(run, number, now, size) for number in range(planned)]
    # Of a file that was mended and came again, what it was when it came last.
    known = pd.concat(before, ignore_index=True).drop_duplicates("path", keep="last") if before else now.iloc[:0]
    known, now = _with_overrides(known, now), _with_overrides(now, known)
    known = known[~known["path"].isin(_rejects_to_forget(run, planned, known, now))]
    _check_known(run, known, now)
    new = now[~now["path"].isin(known["path"])]
    _check_types(run, [*before, new])
    for leftover in list_batches(run, INPUTS)[planned:]:
        leftover.unlink()
    if len(new):
        path = batch_path(run, INPUTS, planned)
        write_grouped(path, new, split(len(new), size))
        # As the next command will see it: types may change on the way through a file.
        before.append(to_frame(read_table(path)))
    return _as_batches(before, size)


def read_batches(run: str | Path, size: int) -> list[Batch]:
    """The batches of a run, as the last command found them."""
    return _as_batches([to_frame(read_table(path)) for path in list_batches(run, INPUTS)], size)


def _as_batches(frames: list[pd.DataFrame], size: int) -> list[Batch]:
    batches: list[Batch] = []
    for number, frame in enumerate(frames):
        parts = n_partitions(len(frame), size)
        batches.append(Batch(number, len(frame), sum(b.parts for b in batches), parts, _hash(frame)))
    return batches


def _read_inputs(run: Path, number: int, now: pd.DataFrame, size: int) -> pd.DataFrame:
    """A planned batch; made again from what was planned and rejected of it if its file is not what it was."""
    path, receipt = batch_path(run, INPUTS, number), read_receipt(run, "plan", number)
    with suppress(RunError, OSError):
        frame = to_frame(read_table(path))
        if receipt is None or receipt.files.get(path.relative_to(run).as_posix()) == hash_file(path):
            return frame
    files = [read_table(batch_path(run, table, number), ["path"])["path"].to_pylist() for table in (PLAN, REJECTED)]
    write_grouped(path, frame := now[now["path"].isin({*files[0], *files[1]})], split(len(frame), size))
    return to_frame(read_table(path))


def _with_overrides(frame: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """With the overrides another list of inputs has: a pattern gives none, a table may give them for some files."""
    return frame.assign(**{name: np.nan for name in OVERRIDES if name in other and name not in frame})


def _rejects_to_forget(run: Path, planned: int, known: pd.DataFrame, now: pd.DataFrame) -> set[str]:
    """Rejected files that went, changed, or may be read this time."""
    try:
        rejects = read_rejects(run, batches=planned)
    except RunError:
        # None yet, or damaged: then the batch is planned again.
        return set()
    gone, changed, _ = _differences(known[known["path"].isin(rejects["path"])], now)
    again = rejects["path"][rejects["reason"].isin(PASSING)]
    return {*gone, *changed, *(path for path in again if _opens(file_of(path)))}


def _opens(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(1) is not None
    except (OSError, ValueError):
        return False


def _differences(known: pd.DataFrame, now: pd.DataFrame) -> tuple[pd.Index, pd.Index, list[str]]:
    """Paths of known files that are not there now, of those of which anything differs, and the columns that do."""
    old, new = known.set_index("path"), now.set_index("path")
    gone, both = old.index.difference(new.index), old.index.intersection(new.index)
    same, differing = np.ones(len(both), dtype=bool), []
    for column in (c for c in old.columns if c in new.columns):
        one, two = old.loc[both, column], new.loc[both, column]
        missing = one.isna().to_numpy(), two.isna().to_numpy()
        # Nullable columns compare to neither true nor false where one of both has a gap.
        equal = (one == two).astype("boolean").fillna(False).to_numpy(bool)
        equal = (missing[0] & missing[1]) | (equal & ~missing[0] & ~missing[1])
        same &= equal
        differing += [] if equal.all() else [column.removeprefix(INTERNAL)]
    return gone, both[~same], differing


def _check_types(run: Path, frames: list[pd.DataFrame]) -> None:
    """See that every carried column has one type in all batches, or one that they can be brought to."""
    tables = [pa.Table.from_pandas(frame, preserve_index=False) for frame in frames if len(frame)]
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        having = [table for table in tables if name in table.column_names]
        fields = [pa.schema([table.field(name)]) for table in having]
        try:
            kind = pa.unify_schemas(fields, promote_options="permissive").field(name).type
            for table in having:
                table.column(name).cast(kind)
        except (pa.ArrowException, KeyError) as error:
            kinds = " and ".join(dict.fromkeys(str(field.field(name).type) for field in fields))
            raise RunError(
                f"{run}: column '{name}' of the input table was {kinds}; give it one type in all rows, or use another "
                f"--out ({error})"
            ) from error


def carried_schema(run: str | Path) -> pa.Schema:
    """Columns carried along from the input table, with types that hold for all batches."""
    schemas = [pq.read_schema(path) for path in list_batches(run, PLAN)]
    declared = {c.name for c in SPECTRA}
    names = [n for n in schemas[0].names if n not in declared and not n.startswith(INTERNAL)]
    unified = [pa.schema([pa.field(n, schema.field(n).type) for n in names]) for schema in schemas]
    # Of a column that is empty everywhere nothing is known; text holds what may come.
    fields = pa.unify_schemas(unified, promote_options="permissive")
    return pa.schema([f.with_type(pa.large_string()) if pa.types.is_null(f.type) else f for f in fields])


def _check_known(run: Path, known: pd.DataFrame, now: pd.DataFrame) -> None:
    gone, changed, columns = _differences(known, now)
    if len(gone) or len(changed) or set(known.columns) != set(now.columns):
        example = next(iter([*changed, *gone]), "the columns of the input table")
        where = f"{example}: {', '.join(columns)}" if columns else example
        raise RunError(
            f"{run}: inputs are not those the run began with: {len(gone)} went, {len(changed)} changed "
            f"(e.g. {where}); put them back, or use another --out for the new inputs (more files may be added)"
        )


def _hash(frame: pd.DataFrame) -> str:
    return hashlib.sha256(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()).hexdigest()[:16]


def drop_known(meta: pd.DataFrame, known: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Drop exposures that earlier batches hold; parameters and results as in `drop_duplicates`.

    ``known`` has the columns specid, obsid and path. What is in the cube stays there, even where the new file is of a
    newer release.
    """
    by_specid = dict(zip(known["specid"], known["path"], strict=True))
    by_obsid = {obsid: path for obsid, path in zip(known["obsid"], known["path"], strict=True) if obsid >= 0}
    found = [by_specid.get(s, by_obsid.get(o)) for s, o in zip(meta["specid"], meta["obsid"], strict=True)]
    holder = pd.Series(found, index=meta.index, dtype=object)
    lost = meta[holder.notna()]
    detail = "the same exposure as " + holder[lost.index].astype("str") + ", which is in the cube already"
    rejects = lost[["path", "fitsname", "specid"]].assign(reason="duplicate", detail=detail)
    return meta[holder.isna()], rejects


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


def read_rejects(folder: str | Path, *, batches: int | None = None) -> pd.DataFrame:
    """The rejected files of a run, `hotdask.schema.REJECTS`, batch by batch, without those that came again later;
    of the first ``batches`` if given.
    """
    paths = {int(path.stem[-4:]): path for path in list_batches(folder, REJECTED)[:batches]}
    if not paths:
        raise RunError(f"{folder}: no file was read yet; run the ingest first")
    rejects = {number: read_table(path).to_pandas() for number, path in paths.items()}
    for number in list(rejects)[1:]:
        came_again = read_table(batch_path(folder, INPUTS, number), ["path"])["path"].to_pylist()
        rejects |= {n: frame[~frame["path"].isin(came_again)] for n, frame in rejects.items() if n < number}
    return pd.concat(rejects.values(), ignore_index=True)


def count_files(run: str | Path, *, batches: int | None = None) -> int:
    """Files of a run, or of its first ``batches``; each once, however often it came."""
    paths = [read_table(path, ["path"])["path"] for path in list_batches(run, INPUTS)[:batches]]
    return len(pa.chunked_array([c for column in paths for c in column.chunks], type=pa.large_string()).unique())
