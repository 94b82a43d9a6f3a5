"""DESI coadds and Redrock's tables, written in their data model, and stars as DESI's cameras would see them."""

from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy.interpolate import CubicSpline

from hotdask import windows
from hotdask.emulator.broadening import lsf_sigma, mean_lsf
from hotdask.windows import FWHM, LOG_STEP, N_REST, REST_LOG_START

STEP = 0.8
CAMERAS = {"B": (3600.0, 2751), "R": (5760.0, 2326), "Z": (7520.0, 2881)}
"""First wavelength [Å, vacuum] and pixels of each camera."""
NATIVE = 1.65 / FWHM
"""Gaussian σ of DESI's line spread [Å]."""
_OVERSAMPLED = 8
_SHARPEST = 2300.0


def wavelength(camera: str) -> np.ndarray:
    start, n = CAMERAS[camera]
    return start + STEP * np.arange(n)


def band(sigma, n: int, diagonals: int = 11) -> np.ndarray:
    """Resolution matrix of Gaussians of σ [Å] at each row: diagonals from the uppermost, aligned by column."""
    offsets = diagonals // 2 - np.arange(diagonals)
    sigma = np.broadcast_to(np.asarray(sigma, dtype=float) / STEP, n)
    row = np.exp(-0.5 * (offsets[:, None] / sigma) ** 2)
    row /= row.sum(axis=0)
    out = np.zeros((diagonals, n))
    for k, offset in enumerate(offsets):
        rows = np.arange(max(0, -offset), n - max(0, offset))
        out[k, rows + offset] = row[k, rows]
    return out


def make_arms(m: int, level: float = 1.0, snr: float = 100.0) -> dict[str, dict[str, np.ndarray]]:
    """Flat spectra without noise: arrays of each camera by the second half of their HDU's name."""
    arms = {}
    for camera, (_, n) in CAMERAS.items():
        arms[camera] = {
            "WAVELENGTH": wavelength(camera),
            "FLUX": np.full((m, n), level, np.float32),
            "IVAR": np.full((m, n), (snr / level) ** 2, np.float32),
            "MASK": np.zeros((m, n), np.uint32),
            "RESOLUTION": np.repeat(band(NATIVE, n)[None].astype(np.float32), m, axis=0),
        }
    return arms


def table(name: str, columns: dict[str, object]) -> fits.BinTableHDU:
    formats = {"i2": "I", "i4": "J", "i8": "K", "f4": "E", "f8": "D"}
    made = []
    for key, values in columns.items():
        values = np.asarray(values)
        form = f"{max(values.dtype.itemsize, 1)}A" if values.dtype.kind == "S" else formats[values.dtype.str[1:]]
        made.append(fits.Column(key, form, array=values))
    return fits.BinTableHDU.from_columns(made, name=name)


def write_coadd(
    path: Path,
    targets,
    arms: dict[str, dict[str, np.ndarray | None]] | None = None,
    *,
    fibermap: dict | None = None,
    exposures: dict | None = None,
    header: dict | None = None,
) -> Path:
    """A coadd of a HEALPix pixel, HDUs in the pipeline's order; None leaves an array or a column out."""
    targets = np.asarray(targets, dtype=np.int64)
    m = len(targets)
    one = np.ones(m)
    columns = {"TARGETID": targets, "COADD_FIBERSTATUS": np.zeros(m, np.int32), "TARGET_RA": 150 + 0.01 * np.arange(m)}
    columns |= {"TARGET_DEC": 2.0 * one, "OBJTYPE": np.full(m, b"TGT"), "COADD_NUMEXP": (2 * one).astype(np.int16)}
    columns |= {"MEAN_MJD": 59300.25 * one} | (fibermap or {})
    twice = np.repeat(np.arange(m), 2)
    each = {"TARGETID": targets[twice], "NIGHT": np.full(2 * m, 20210401, np.int32), "EXPID": np.arange(2 * m)}
    each |= {"MJD": 59300.25 + np.tile([-0.01, 0.01], m), "PETAL_LOC": np.full(2 * m, 3, np.int16)}
    each |= {"FIBER": (1500 + twice % 500).astype(np.int32)} | (exposures or {})
    primary = fits.PrimaryHDU()
    about = {"SURVEY": "main", "PROGRAM": "bright", "HPXPIXEL": 27258, "SPECPROD": "iron"} | (header or {})
    primary.header.update({key: value for key, value in about.items() if value is not None})
    hdus = [primary]
    for name, values in (("FIBERMAP", columns), ("EXP_FIBERMAP", each)):
        hdus.append(table(name, {k: v for k, v in values.items() if v is not None}))
    for camera, arrays in (make_arms(m) if arms is None else arms).items():
        hdus += [fits.ImageHDU(values, name=f"{camera}_{k}") for k, values in arrays.items() if values is not None]
    hdus.append(table("SCORES", {"TARGETID": targets, "MEDIAN_COADD_SNR_B": one}))
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def write_redrock(coadd: Path, targets, **columns) -> Path:
    """Redrock's file beside a coadd."""
    m = len(targets)
    values = {"TARGETID": np.asarray(targets, dtype=np.int64), "Z": np.zeros(m), "ZERR": np.full(m, 1e-5)}
    values |= {"ZWARN": np.zeros(m, np.int64), "SPECTYPE": np.full(m, b"STAR"), "SUBTYPE": np.full(m, b"B")} | columns
    path = coadd.with_name(coadd.name.replace("coadd-", "redrock-"))
    fits.HDUList([fits.PrimaryHDU(), table("REDSHIFTS", values)]).writeto(path, overwrite=True)
    return path


def native(flux: np.ndarray, sigma, z: float) -> dict[str, np.ndarray]:
    """A star's spectrum at R = 2300 on the rest grid as DESI samples it with a line spread of σ [Å] of its own.

    Sharpened and smoothed in Fourier space of log λ, where the one is the other's inverse: what DESI's light smoothed
    to R = 1800 should be is then known, though no emulator knows the light itself. NaN beyond the rest grid.
    """
    # The ends are brought together far outside.
    pad = 600
    ramp = np.linspace(flux[-1], flux[0], 2 * pad)
    ring = np.concatenate([ramp[pad:], flux, ramp[:pad]])
    n = len(ring)
    nu = np.fft.rfftfreq(n)
    transform = np.fft.rfft(ring)
    grid = 10 ** (REST_LOG_START + LOG_STEP * (np.arange(_OVERSAMPLED * n) / _OVERSAMPLED - pad))
    pixel = np.log(10) * LOG_STEP * grid
    change = (sigma / (1 + z)) ** 2 / pixel**2 - (lsf_sigma(grid, mean_lsf(_SHARPEST, _SHARPEST)) / pixel) ** 2
    inside = (grid > windows.rest_wavelength()[0] - 50) & (grid < windows.rest_wavelength()[-1] + 50)
    low, high = change[inside].min(), change[inside].max()
    nodes = (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(9) + 0.5) / 9)
    smoothed = []
    for node in nodes:
        padded = np.zeros(_OVERSAMPLED * n // 2 + 1, complex)
        padded[: len(nu)] = transform * np.exp(-2 * np.pi**2 * node * nu**2)
        smoothed.append(np.fft.irfft(padded, _OVERSAMPLED * n) * _OVERSAMPLED)
    weights = np.array([np.prod([(change - b) / (a - b) for b in nodes if b != a], axis=0) for a in nodes])
    light = (weights * smoothed).sum(axis=0)
    spline = CubicSpline(grid[inside], light[inside])
    rest = windows.rest_wavelength()
    out = {}
    for camera in CAMERAS:
        at = wavelength(camera) / (1 + z)
        out[camera] = np.where((at >= rest[0]) & (at <= rest[N_REST - 1]), spline(at), np.nan)
    return out
