"""How much a spectrum can tell: the Cramér-Rao bound (Eq 3)."""

import numpy as np

from hotdask import windows
from hotdask.emulator.lowrank import LowRankEmulator

_BATCH = 128


def cramer_rao_bound(
    emulator: LowRankEmulator,
    labels: np.ndarray,
    ivar: np.ndarray,
    *,
    lsf: np.ndarray | None = None,
    mask=windows.FIT_MASK,
) -> np.ndarray:
    """Smallest covariance any unbiased estimate of the labels can have.

    Parameters
    ----------
    emulator : LowRankEmulator
    labels : (n, 11) float64
        True labels.
    ivar : (n, 3801) float32
        Inverse variance of the normalized flux, independent pixels.
    lsf : (n, 6) or (6,) float64, optional
        Line-spread coefficients [Å].
    mask : sequence of Window or (low, high)
        Air windows [Å] not used; add `hotdask.windows.HYDROGEN` for the second fit.

    Returns
    -------
    (n, 11, 11) float64
        σ of label i is the root of element [i, i].

    References
    ----------
    Xiang et al. 2022, Eq 3.

    Examples
    --------
    >>> from hotdask.emulator import load_emulator
    >>> fiducial = [[18000, 4, 2, 100, 0.09, 0, 0, 0, 0, 0, 0]]
    >>> bound = cramer_rao_bound(load_emulator(), fiducial, np.full((1, windows.N_REST), 1e4))
    >>> bool(50 < bound[0, 0, 0] ** 0.5 < 600)
    True
    """
    labels = np.atleast_2d(labels)
    used = ~windows.inside(windows.rest_wavelength(), mask)
    lsf = None if lsf is None else np.broadcast_to(lsf, (len(labels), 6))
    out = np.empty((len(labels), labels.shape[1], labels.shape[1]))
    for start in range(0, len(labels), _BATCH):
        part = slice(start, start + _BATCH)
        _, jacobian = emulator.flux_and_jacobian(labels[part], None if lsf is None else lsf[part])
        slope = emulator.label_slope(labels[part])
        # In units of the library's spread the matrix is well scaled, whatever the labels' units.
        scaled = jacobian[:, :, used] / slope[:, :, None]
        information = np.einsum("nip,np,njp->nij", scaled, ivar[part][:, used], scaled, optimize=True)
        information = information.astype(np.float64) + 1e-8 * np.eye(labels.shape[1])
        out[part] = np.linalg.inv(information) / (slope[:, :, None] * slope[:, None, :])
    return out
