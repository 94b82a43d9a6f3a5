"""How well an emulator does on syntheses it never saw, where it does less well, and what limits it."""

import itertools

import numpy as np

from hotdask import windows
from hotdask.emulator.base import Emulator
from hotdask.emulator.lowrank import LowRankEmulator
from hotdask.emulator.source import SpectrumSource
from hotdask.windows import Window

TEFF_BINS = (0, 9000, 12000, 20000, 30000, 100000)
"""Edges [K] of the rows of the residual table."""
LINE_DEPTH = 0.95
"""Normalized flux below which a pixel counts as within a line; the paper's limit."""

_NIST = "NIST ASD"


def _lines(half: float, *centers: float) -> tuple[Window, ...]:
    return tuple(Window(center - half, center + half, f"{center:.0f}", _NIST) for center in centers)


WINDOWS: dict[str, tuple[Window, ...]] = {
    "Balmer cores": _lines(10, *windows.BALMER_AIR.values()),
    "Balmer limit": (Window(3740, 3820, "H10 and above", _NIST),),
    "Paschen limit": (Window(8200, 8450, "Pa18 and above", _NIST),),
    "Paschen lines": _lines(15, *windows.PASCHEN_AIR.values()),
    "He I": _lines(8, 4026.19, 4143.76, 4387.93, 4471.48, 4713.15, 4921.93, 5015.68, 5875.62, 6678.15, 7065.19),
    "He II": _lines(8, 4199.83, 4541.59, 4685.70, 5411.52),
    "C, N, O": _lines(5, 3995.00, 4267.18, 4349.43, 4416.9, 4641.81, 4649.13, 5679.56, 7115.17, 7468.31, 7773.5),
    "Mg, Si, S": _lines(5, 4129.47, 4481.21, 4552.62, 4574.76, 5183.60, 5453.86, 6347.11, 6371.37),
    "Ca, Fe": _lines(5, 3933.66, 4233.17, 4383.55, 4549.47, 4583.84, 5018.44, 5169.03, 8498.02, 8542.09, 8662.14),
}
"""Air windows of the residual table, by name."""


def pixel_weight() -> np.ndarray:
    """Weight of each pixel in basis and loss, (3801,) float32.

    Pixels no fit uses deserve a fair spectrum in plots, but not the basis' attention.
    """
    masked = windows.inside(windows.rest_wavelength(), windows.FIT_MASK)
    return np.where(masked, 0.2, 1.0).astype(np.float32)


def dispersion(residual: np.ndarray) -> float | None:
    """1.4826 times the median absolute value: σ of a Gaussian about 0; None of nothing.

    Examples
    --------
    >>> round(dispersion(np.array([-2.0, 1.0, 1.0])), 4)
    1.4826
    """
    return float(1.4826 * np.median(np.abs(residual))) if residual.size else None


def _draw(source: SpectrumSource, members: np.ndarray, passes: int, rng: np.random.Generator) -> list[np.ndarray]:
    drawn = [source.draw(members, rng) for _ in range(passes)]
    return [np.concatenate([d[i] for d in drawn]) for i in range(3)]


def held_out_residuals(
    emulator: Emulator, source: SpectrumSource, members: np.ndarray, passes: int, rng: np.random.Generator
) -> dict:
    """Dispersion (`dispersion`, of the continuum) of emulated minus synthesized flux.

    Parameters
    ----------
    emulator : Emulator
    source : SpectrumSource
    members : (n,) int
        Syntheses to draw, each ``passes`` times.
    passes : int
    rng : numpy.random.Generator

    Returns
    -------
    dict
        ``all`` and ``lines`` (flux < 0.95) are over the pixels a fit uses, ``every`` and ``every_lines`` over all
        3801; so too in each bin of ``teff_bins``. ``windows`` has ``all`` and ``lines`` of each of `WINDOWS`, over all
        its pixels. ``rms``, ``rms_every`` and ``rms_every_lines`` are standard deviations: over fitted pixels, all,
        and the lines in all. None where there is no pixel.
    """
    labels, lsf, flux = _draw(source, members, passes, rng)
    wavelength = windows.rest_wavelength()
    fitted = ~windows.inside(wavelength, windows.FIT_MASK)
    residual = emulator.flux(labels, lsf) - flux
    lines = flux < LINE_DEPTH

    def over(rows: np.ndarray | slice, pixels: np.ndarray) -> dict[str, float | None]:
        chosen, in_line = residual[rows][:, pixels], lines[rows][:, pixels]
        return {"all": dispersion(chosen), "lines": dispersion(chosen[in_line])}

    def table(rows: np.ndarray | slice) -> dict[str, float | None]:
        every = over(rows, np.full(wavelength.size, True))
        return {**over(rows, fitted), "every": every["all"], "every_lines": every["lines"]}

    bins = {
        f"{low}-{high}": table((labels[:, 0] >= low) & (labels[:, 0] < high))
        for low, high in itertools.pairwise(TEFF_BINS)
    }
    return {
        **table(slice(None)),
        "rms": float(residual[:, fitted].std()),
        "rms_every": float(residual.std()),
        "rms_every_lines": float(residual[lines].std()) if lines.any() else None,
        "teff_bins": bins,
        "windows": {name: over(slice(None), windows.inside(wavelength, parts)) for name, parts in WINDOWS.items()},
    }


def error_budget(
    emulator: Emulator,
    source: SpectrumSource,
    learned: np.ndarray,
    held_out: np.ndarray,
    passes: int,
    rng: np.random.Generator,
) -> dict:
    """What limits an emulator: its basis, its network, or the library it learned from.

    Parameters
    ----------
    emulator : Emulator
    source : SpectrumSource
    learned, held_out : (n,) int
        Syntheses it learned from and such it did not; as many of the former are drawn as there are of the latter.
    passes : int
        Draws of each.
    rng : numpy.random.Generator

    Returns
    -------
    dict
        Dispersions over all pixels, ``all``, and where flux < 0.95, ``lines``, of: ``basis``, held-out spectra
        projected on the basis (absent without one); ``learned`` and ``held_out``, emulated. ``limit`` names the
        largest part, in quadrature, of the dispersion over all pixels: "basis"; "network", what is left on spectra it
        learned; "library", what held-out ones add to that.
    """
    learned = rng.choice(learned, min(len(learned), len(held_out)), replace=False)
    out: dict = {}
    squares = {"network": 0.0, "library": 0.0}
    for name, members in (("learned", learned), ("held_out", held_out)):
        labels, lsf, flux = _draw(source, members, passes, rng)
        residual = emulator.flux(labels, lsf) - flux
        out[name] = _all_and_lines(residual, flux)
        if isinstance(emulator, LowRankEmulator):
            truncated = _all_and_lines(project(emulator, flux) - flux, flux)
            if name == "held_out":
                out["basis"] = truncated
                squares["basis"] = truncated["all"] ** 2
            else:
                squares["network"] -= truncated["all"] ** 2
    squares["network"] += out["learned"]["all"] ** 2
    squares["library"] = out["held_out"]["all"] ** 2 - out["learned"]["all"] ** 2
    return {**out, "limit": max(squares, key=squares.get)}


def project(emulator: LowRankEmulator, flux: np.ndarray) -> np.ndarray:
    """The spectra (n, 3801) nearest to given ones that the emulator's basis can make."""
    mean, basis = emulator.mean.numpy(), emulator.basis.numpy()
    square = pixel_weight() ** 2
    right = ((flux - mean) * square) @ basis.T
    gram = (basis * square).astype(np.float64) @ basis.T
    return mean + np.linalg.solve(gram, right.T.astype(np.float64)).T.astype(np.float32) @ basis


def _all_and_lines(residual: np.ndarray, flux: np.ndarray) -> dict[str, float | None]:
    return {"all": dispersion(residual), "lines": dispersion(residual[flux < LINE_DEPTH])}
