"""Wavelength grids and windows, each declared once with its source.

Grids are vacuum wavelengths, log-linear with LAMOST's own step of 1e-4 dex (69 km/s). Windows are given in air, as the
literature prints them, and converted on use.
"""

from dataclasses import dataclass

import numpy as np

SPEED_OF_LIGHT = 299792.458
"""Speed of light [km/s]."""

FWHM = 2 * np.sqrt(2 * np.log(2))
"""Full width at half maximum of a Gaussian of σ = 1."""

LOG_STEP = 1e-4
OBSERVED_LOG_START = 3.5682
N_OBSERVED = 3909
REST_LOG_START = 3.5740
N_REST = 3801
REST_OFFSET = 58
"""Rest-frame pixel 0 is observed pixel 58 at zero velocity."""

BLUE_RED_BREAK = 5900.0
"""Where the blue arm's line-spread polynomial hands over to the red arm's [Å]."""

LSF_PIVOT = (4750.0, 7450.0)
"""t = (λ − pivot)/1000 in the blue and the red arm [Å]."""

HYDROGEN_MAXIMUM = 9500.0
"""Teff at which hydrogen lines are strongest in dwarfs [K]; where the two fits are merged (§4.5)."""


def observed_wavelength() -> np.ndarray:
    """Observed-frame grid of the cube, (3909,) vacuum Å.

    Examples
    --------
    >>> round(float(observed_wavelength()[0]), 2)
    3699.99
    """
    return 10 ** (OBSERVED_LOG_START + LOG_STEP * np.arange(N_OBSERVED))


def rest_wavelength() -> np.ndarray:
    """Rest-frame grid of normalization, emulator and fit, (3801,) vacuum Å.

    Examples
    --------
    >>> [round(float(w), 1) for w in rest_wavelength()[[0, -1]]]
    [3749.7, 8995.0]
    """
    return 10 ** (REST_LOG_START + LOG_STEP * np.arange(N_REST))


def air_to_vacuum(wavelength):
    """Vacuum wavelength [Å] of an air wavelength [Å].

    References
    ----------
    Piskunov's inverse of Birch & Downs 1994 as used by VALD, good to 1e-5 Å over 2000-100000 Å.

    Examples
    --------
    >>> round(float(air_to_vacuum(5000.0)), 3)
    5001.395
    """
    wavelength = np.asarray(wavelength, dtype=np.float64)
    s = 1e8 / wavelength**2
    n = 1 + 8.336624212083e-5 + 2.408926869968e-2 / (130.1065924522 - s) + 1.599740894897e-4 / (38.92568793293 - s)
    return wavelength * n


@dataclass(frozen=True)
class Window:
    """A stretch of spectrum, air wavelengths [Å]."""

    low: float
    high: float
    name: str
    source: str


BALMER_AIR = {
    "Hα": 6562.79,
    "Hβ": 4861.35,
    "Hγ": 4340.47,
    "Hδ": 4101.73,
    "Hε": 3970.08,
    "H8": 3889.06,
    "H9": 3835.40,
}
PASCHEN_AIR = {"Pa11": 8862.78, "Pa12": 8750.46, "Pa13": 8665.02, "Pa14": 8598.39}
_NIST = "NIST ASD"
_PAPER = "Xiang et al. 2022 §4.5"


def _around(center: float, half: float, name: str, source: str = _NIST) -> Window:
    return Window(center - half, center + half, name, source)


EDGES = (
    Window(0.0, 3820.0, "blue edge", _PAPER),
    Window(8880.0, 99999.0, "red edge", _PAPER),
)
DICHROIC = (Window(5700.0, 6050.0, "dichroic", _PAPER),)
TELLURIC = (
    Window(6270.0, 6330.0, "O2 γ", "Hinkle et al. 2003"),
    Window(6860.0, 6960.0, "O2 B", "Hinkle et al. 2003"),
    Window(7150.0, 7350.0, "H2O", "Hinkle et al. 2003"),
    Window(7590.0, 7710.0, "O2 A", "Hinkle et al. 2003"),
    Window(8100.0, 8350.0, "H2O", "Hinkle et al. 2003"),
)
INTERSTELLAR = (
    Window(4420.0, 4438.0, "DIB 4428", "Hobbs et al. 2008"),
    Window(5770.0, 5805.0, "DIB 5780, 5797", "Hobbs et al. 2008"),
    Window(6190.0, 6210.0, "DIB 6196, 6203", "Hobbs et al. 2008"),
    Window(6604.0, 6624.0, "DIB 6614", "Hobbs et al. 2008"),
    Window(5885.0, 5900.0, "Na D", _PAPER),
    Window(3925.0, 3942.0, "Ca II K", _PAPER),
)
HYDROGEN = (
    *(_around(BALMER_AIR[n], 40.0, n) for n in ("Hα", "Hβ", "Hγ", "Hδ")),
    *(_around(BALMER_AIR[n], 30.0, n) for n in ("Hε", "H8", "H9")),
    Window(0.0, BALMER_AIR["H9"] - 30.0, "Balmer series below H9", _PAPER),
    Window(8340.0, 99999.0, "Paschen series", _PAPER),
)
STRONG_HELIUM = tuple(_around(w, 12.0, f"He I {w:.0f}") for w in (4026.19, 4387.93, 4471.48, 5875.62))
CONTINUUM_HYDROGEN = (
    *(_around(BALMER_AIR[n], 40.0, n) for n in ("Hα", "Hβ", "Hγ", "Hδ")),
    _around(BALMER_AIR["Hε"], 30.0, "Hε"),
    *(_around(BALMER_AIR[n], 15.0, f"{n} core") for n in ("H8", "H9")),
    *(_around(w, 15.0, f"{n} core") for n, w in PASCHEN_AIR.items()),
)

FIT_MASK = (*EDGES, *DICHROIC, *TELLURIC, *INTERSTELLAR)
"""Never fitted."""

CONTINUUM_EXCLUDE = (*CONTINUUM_HYDROGEN, *DICHROIC, *STRONG_HELIUM, *TELLURIC, *INTERSTELLAR)
"""Weight 0 in the continuum (Eq 1), in models and data alike."""


def inside(wavelength: np.ndarray, windows) -> np.ndarray:
    """Whether each wavelength lies in any of the windows.

    Parameters
    ----------
    wavelength : (n_pixel,) float64
        Vacuum wavelengths [Å].
    windows : sequence of Window or of (low, high)
        Air wavelengths [Å].

    Returns
    -------
    (n_pixel,) bool

    Examples
    --------
    >>> inside(np.array([5000.0, 5900.0]), DICHROIC).tolist()
    [False, True]
    """
    wavelength = np.asarray(wavelength)
    out = np.zeros(wavelength.shape, dtype=bool)
    for window in windows:
        low, high = (window.low, window.high) if isinstance(window, Window) else window
        # The dispersion formula has poles in the far ultraviolet; open ends stay open.
        low = air_to_vacuum(low) if low > 2000 else low
        out |= (wavelength >= low) & (wavelength <= air_to_vacuum(high))
    return out
