"""The catalog as a HATS catalog: HEALPix-partitioned Parquet that lsdb opens."""

import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from distributed import Client

from hotdask.errors import InputError, SettingsError
from hotdask.store.atomic import atomic_folder, clear_dead
from hotdask.store.export import export_table

_ROWS = 1_000_000


def export_hats(
    run: str | Path, out: str | Path, *, client: Client, columns: str = "all", sample: bool = False, rows: int = _ROWS
) -> int:
    """Write the published catalog as a HATS catalog into a new folder; returns its rows.

    Parameters
    ----------
    run, columns, sample
        As `hotdask.store.export.export_table`.
    out : path
        The folder; its name is the catalog's.
    client : distributed.Client
    rows : int
        A cell of the sky has as many, at most.

    Raises
    ------
    SettingsError
        If hats-import is not installed.
    InputError
        If the folder is there already.
    """
    try:
        from hats_import.catalog.arguments import ImportArguments
        from hats_import.pipeline import pipeline_with_client
    except ImportError as error:
        raise SettingsError("--format hats needs hats-import; `pip install 'hotdask[hats]'`") from error
    out = Path(out)
    if out.exists():
        raise InputError(f"--out {out} exists; give a new folder")
    table = export_table(run, columns=columns, sample=sample)
    clear_dead(out)
    with atomic_folder(out) as partial, tempfile.TemporaryDirectory(dir=out.absolute().parent) as scratch:
        # The importer reads files; one with all units in its schema.
        source = Path(scratch, "catalog.parquet")
        pq.write_table(table, source, row_group_size=_ROWS)
        arguments = ImportArguments(
            ra_column="ra",
            dec_column="dec",
            sort_columns="specid",
            input_file_list=[str(source)],
            file_reader="parquet",
            use_schema_file=str(source),
            output_artifact_name=out.name,
            output_path=scratch,
            pixel_threshold=rows,
            progress_bar=False,
            resume=False,
            tmp_dir=scratch,
            dask_tmp=scratch,
        )
        pipeline_with_client(arguments, client)
        for item in Path(scratch, out.name).iterdir():
            item.rename(partial / item.name)
    return len(table)
