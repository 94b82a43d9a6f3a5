"""A library of syntheses on disk, as an ``.npz`` file: flux/continuum, continuum nodes and labels."""

import zipfile
from pathlib import Path

import numpy as np

from hotdask.errors import InputError
from hotdask.labels import LABEL_NAMES, RELATIVE
from hotdask.library.spectra import LOG_START, LOG_STEP, Library

_CONTINUUM_RANGE = (3.5710, 3.9553)
_SCALE = 60000.0
_ARRAYS = ("residual_intensity", "continuum", "labels", "label_names")


def read_npz(path: str | Path) -> Library:
    """Read a library of syntheses.

    Parameters
    ----------
    path : path
        ``.npz`` with ``residual_intensity`` (n, 19216) uint16 (flux/continuum × 60000, pixels of 2e-5 dex from
        log10 λ = 3.5710, vacuum), ``continuum`` (n, n_node) at even steps of log10 λ over 3.5710-3.9553,
        ``labels`` (n, 10) and ``label_names``: teff [K], logg, fe_h, vmic [km/s], n_he, and c_fe, n_fe, o_fe,
        si_fe, s_fe, which are added to fe_h.

    Raises
    ------
    InputError
        If the file is missing, or lacks an array or a label.
    """
    path = Path(path)
    try:
        # Opened here, because numpy leaves the file open when it is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            missing = [a for a in _ARRAYS if a not in data]
            if missing:
                raise InputError(f"{path}: a library needs the arrays {missing}; see hotdask.library.synthe")
            arrays = {a: data[a] for a in _ARRAYS}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as a library ({error}); give an .npz file of syntheses") from error

    column = {str(name): arrays["labels"][:, i] for i, name in enumerate(arrays["label_names"])}
    needed = {"teff", "logg", "vmic", "n_he", "fe_h", *RELATIVE}
    if needed - column.keys():
        raise InputError(f"{path}: labels {sorted(needed - column.keys())} are missing from label_names")
    for relative, absolute in RELATIVE.items():
        column[absolute] = column[relative] + column["fe_h"]
    column["vsini"] = np.zeros_like(column["teff"])

    n_fine = arrays["residual_intensity"].shape[1]
    fine = LOG_START + LOG_STEP * np.arange(n_fine)
    nodes = np.linspace(*_CONTINUUM_RANGE, arrays["continuum"].shape[1])
    flux = np.empty((len(column["teff"]), n_fine), dtype=np.float32)
    for i, (residual, continuum) in enumerate(zip(arrays["residual_intensity"], arrays["continuum"], strict=True)):
        flux[i] = residual / _SCALE * np.interp(fine, nodes, continuum)
    labels = np.column_stack([column[name] for name in LABEL_NAMES]).astype(np.float64)
    return Library(flux=flux, labels=labels, log_start=LOG_START, name=path.name)
