"""Covariances of single spectra of a finished run, scaled as the catalog's errors are.

The catalog holds errors and the correlations of the paper; the whole matrices are made again from both fits for the
spectra that are asked for, since for a survey they would outweigh all the rest of the catalog.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hotdask.errors import InputError
from hotdask.labels import LABEL_NAMES, N_LABELS
from hotdask.schema import unpack_covariance
from hotdask.steps.merge import merge_fits
from hotdask.steps.scale import scale_covariance
from hotdask.store.catalog import FITS_FOLDER, read_catalog, read_fits_part
from hotdask.store.parquet import list_parts

_FITS = ("all", "hmasked")


def read_covariance(run: str | Path, specids: Sequence[str]) -> np.ndarray:
    """Covariances of the catalog's labels for some spectra: C'_ij = s_i·s_j·C_ij.

    Parameters
    ----------
    run : path
        Directory of a run with a published catalog.
    specids : sequence of str
        Which spectra; one may come more than once.

    Returns
    -------
    (n, 11, 11) float64
        In the order of ``specids`` and of `hotdask.labels.LABELS`, in their units squared. The roots of the diagonal
        are the catalog's ``*_err``; correlations are those of the fit. NaN where a spectrum was not fitted.

    Raises
    ------
    InputError
        If a spectrum is not in the catalog.
    RunError
        If no catalog is published.

    References
    ----------
    Xiang et al. 2022, §4.6 and §5.6.
    """
    wanted = pd.Index(specids, dtype="str")
    if not len(wanted):
        # Arrow cannot tell the type of an empty set.
        return np.empty((0, N_LABELS, N_LABELS))
    errors = [f"{name}_err" for name in LABEL_NAMES]
    catalog = read_catalog(run, columns=["specid", *errors], filters=[("specid", "in", sorted(set(wanted)))])
    scaled = catalog.set_index("specid")[errors]
    unknown = wanted.difference(scaled.index)
    if len(unknown):
        some = ", ".join(map(str, unknown[:5]))
        raise InputError(f"{run}: the catalog has no specid {some} ({len(unknown)} of {len(wanted)}); see read_catalog")
    out = np.full((len(wanted), N_LABELS, N_LABELS), np.nan)
    for part in list_parts(Path(run, FITS_FOLDER)):
        place = pd.Index(read_fits_part(part, ["specid"])["specid"].to_pandas()).get_indexer(wanted)
        here = np.flatnonzero(place >= 0)
        if here.size:
            formal = _merged_covariance(part, place[here])
            factors = scaled.loc[wanted[here]].to_numpy() / np.sqrt(np.diagonal(formal, axis1=1, axis2=2))
            out[here] = scale_covariance(formal, factors)
    return out


def _merged_covariance(part: Path, rows: np.ndarray) -> np.ndarray:
    columns = [f"{name}_{which}" for which in _FITS for name in LABEL_NAMES]
    columns += [*(f"covariance_{which}" for which in _FITS), "hydrogen_weight"]
    fits = read_fits_part(part, columns).take(rows)
    both = []
    for which in _FITS:
        both.append(np.column_stack([fits.column(f"{name}_{which}").to_numpy() for name in LABEL_NAMES]))
        both.append(unpack_covariance(fits.column(f"covariance_{which}")))
    return merge_fits(*both, fits.column("hydrogen_weight").to_numpy())[1]
