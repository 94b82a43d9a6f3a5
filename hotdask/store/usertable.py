"""Tables written for users to read, or to give to a later command."""

import warnings
from pathlib import Path

import pandas as pd
from astropy.table import Table

from hotdask.errors import InputError
from hotdask.store.atomic import atomic_path, clear_dead


def write_user_table(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write a table as .parquet, .csv or .fits, by its ending, whole or not at all.

    Raises
    ------
    InputError
        If the ending is none of these.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".parquet", ".csv", ".fits"):
        raise InputError(f"{path}: unknown ending '{kind}'; give .parquet, .csv or .fits")
    clear_dead(path)
    with atomic_path(path) as partial:
        if kind == ".parquet":
            frame.to_parquet(partial, index=False)
        elif kind == ".csv":
            frame.to_csv(partial, index=False)
        else:
            with warnings.catch_warnings(action="ignore"):
                Table.from_pandas(frame).write(partial, format="fits", overwrite=True)
    return path
