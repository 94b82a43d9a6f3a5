"""Atomic lines, and the broadening of those nobody has measured."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from hotdask.errors import InputError
from hotdask.library.arrays import read_arrays, sha256
from hotdask.library.atoms import N_STAGES, SYMBOLS
from hotdask.windows import air_to_vacuum

HC = 12398.419843
"""Energy of a photon times its wavelength [eV Å]."""
_RYDBERG = 13.605693
_INVERSE_CM = HC * 1e-8
"""One cm⁻¹ [eV]."""

_ARRAYS = ("z", "ion", "wl_air", "loggf", "elo_ev", "grad", "gstark", "gvdw")
_REMEDY = (
    "give an .npz list (see hotdask.library.linelist.read_lines) or one of Kurucz's in his format of 160 columns, such "
    "as gfall08oct17.dat, published at http://kurucz.harvard.edu/linelists.html"
)
# Fields of a record: where they begin and end, and what an error calls them.
_FIELDS = {
    "wavelength": (0, 11, "wavelength [nm]"),
    "loggf": (11, 18, "log gf"),
    "code": (18, 24, "code of element and charge"),
    "first": (24, 36, "energy of the first level [1/cm]"),
    "second": (52, 64, "energy of the second level [1/cm]"),
    "grad": (80, 86, "log of radiative damping"),
    "gstark": (86, 92, "log of Stark damping"),
    "gvdw": (92, 98, "log of van der Waals damping"),
    "hyperfine": (109, 115, "log of the hyperfine fraction"),
    "isotope": (118, 124, "log of the isotopic fraction"),
}
_MUST = {"wavelength", "loggf", "code", "first", "second"}
_CHUNK = 100_000


@dataclass(frozen=True)
class LineList:
    """Atomic lines, ascending in wavelength.

    Attributes
    ----------
    z, ion : (n,) int64
        Atomic number; 1 for the neutral atom.
    wavelength : (n,) float64
        In vacuum [Å].
    loggf, elo : (n,) float64
        log10 of the lower level's weight times oscillator strength; energy of the lower level [eV].
    log_grad, log_gstark, log_gvdw : (n,) float64
        log10 of the damping constants of `default_damping`; NaN where unknown.
    name, identity : str
        Name and SHA-256 of the file.
    left_out : int
        Lines of the file that are no use to an engine: hydrogen, molecules, elements beyond uranium, ions beyond five
        times ionized, autoionizing and coronal lines, edges of continua, and in ``.npz`` files exact repetitions.
    """

    z: np.ndarray
    ion: np.ndarray
    wavelength: np.ndarray
    loggf: np.ndarray
    elo: np.ndarray
    log_grad: np.ndarray
    log_gstark: np.ndarray
    log_gvdw: np.ndarray
    name: str
    identity: str
    left_out: int = 0


def read_lines(path: str | Path) -> LineList:
    """Read a line list.

    Parameters
    ----------
    path : path
        An ``.npz`` file with ``z``, ``ion`` (1 = neutral), ``wl_air`` [Å], ``loggf``, ``elo_ev``, and log10 of the
        damping constants ``grad``, ``gstark``, ``gvdw`` (0 = unknown), each (n,); or text in Kurucz's format of 160
        columns (``gfall``). In Kurucz's lists wavelengths beyond 2000 Å are in air, or in vacuum (``gfallvac``): the
        levels' energies tell which. Hyperfine and isotopic fractions are part of ``loggf``.

    Raises
    ------
    InputError
        If the file is missing or damaged, with the line of the damage, or holds no line of an atom.

    References
    ----------
    Kurucz 2011, Can. J. Phys. 89, 417.
    """
    path = Path(path)
    lines = _read_npz(path) if path.suffix == ".npz" else _read_text(path)
    z, ion = lines["z"].round().astype(np.int64), lines["ion"].round().astype(np.int64)
    useful = lines["useful"].astype(bool) & (z > 1) & (z <= len(SYMBOLS)) & (ion >= 1) & (ion <= N_STAGES) & (ion <= z)
    if not useful.any():
        raise InputError(f"{path}: no line of an atom other than hydrogen; {_REMEDY}")
    rows = np.flatnonzero(useful)
    rows = rows[np.argsort(lines["wavelength"][rows], kind="stable")]
    log_grad, log_gstark, log_gvdw = (
        np.where(lines[name][rows] == 0, np.nan, lines[name][rows]) for name in ("grad", "gstark", "gvdw")
    )
    return LineList(
        z=z[rows],
        ion=ion[rows],
        wavelength=lines["wavelength"][rows],
        loggf=lines["loggf"][rows],
        elo=lines["elo"][rows],
        log_grad=log_grad,
        log_gstark=log_gstark,
        log_gvdw=log_gvdw,
        name=path.name,
        identity=sha256(path),
        left_out=len(useful) - len(rows),
    )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    lines = read_arrays(path, _ARRAYS, remedy=_REMEDY)
    for name, values in lines.items():
        if values.shape != lines["z"].shape or values.ndim != 1:
            raise InputError(f"{path}: {name} has the shape {values.shape}, z has {lines['z'].shape}; {_REMEDY}")
    for name, good in (("wl_air", lines["wl_air"] > 0), ("elo_ev", lines["elo_ev"] >= 0)):
        if not good.all():
            row = int(np.argmin(good))
            raise InputError(f"{path}: {name}[{row}] is {lines[name][row]:g}; {_REMEDY}")
    # Lists pieced together from parts that overlap hold the lines of the overlaps twice.
    table = np.stack([lines[name] for name in ("z", "ion", "wl_air", "loggf", "elo_ev")], axis=1)
    _, first = np.unique(table, axis=0, return_index=True)
    useful = np.zeros(len(table))
    useful[first] = 1
    return {**lines, "wavelength": _from_air(lines["wl_air"]), "elo": lines["elo_ev"], "useful": useful}


def _from_air(wavelength: np.ndarray) -> np.ndarray:
    """Vacuum wavelengths [Å] of wavelengths in air, which below 2000 Å are in vacuum already."""
    return np.where(wavelength > 2000, air_to_vacuum(np.maximum(wavelength, 2000.0)), wavelength)


def _read_text(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            chunks = [_fields(path, numbers, records) for numbers, records in _records(file)]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
    if not chunks:
        raise InputError(f"{path}: the file is empty; {_REMEDY}")
    field = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    printed = field["wavelength"] * 10
    first, second = np.abs(field["first"]), np.abs(field["second"])
    beyond = (printed > 2000) & (first != second)
    levels = 1e8 / np.abs(first - second)[beyond]
    in_air, in_vacuum = (np.abs(wave[beyond] / levels - 1) for wave in (_from_air(printed), printed))
    medium_is_air = not beyond.any() or np.median(in_air) <= np.median(in_vacuum)
    z, charge = np.divmod(np.round(field["code"] * 100), 100)
    return {
        **{name: field[name] for name in ("grad", "gstark", "gvdw", "useful")},
        "z": z,
        "ion": charge + 1,
        "wavelength": _from_air(printed) if medium_is_air else printed,
        "loggf": field["loggf"] + field["hyperfine"] + field["isotope"],
        "elo": np.minimum(first, second) * _INVERSE_CM,
    }


def _records(file) -> Iterator[tuple[list[int], list[bytes]]]:
    """Some records at a time with the numbers of their lines; empty lines are passed over."""
    numbered = ((number, line.rstrip()) for number, line in enumerate(file, start=1))
    filled = ((number, line) for number, line in numbered if line)
    while chunk := list(islice(filled, _CHUNK)):
        numbers, records = zip(*chunk, strict=True)
        yield list(numbers), list(records)


def _fields(path: Path, numbers: list[int], records: list[bytes]) -> dict[str, np.ndarray]:
    """Numbers of some records, by field."""
    table = np.array(records, dtype="S160").view("S1").reshape(len(records), 160)

    def text(start: int, stop: int) -> np.ndarray:
        return np.strings.strip(np.ascontiguousarray(table[:, start:stop]).view(f"S{stop - start}")[:, 0])

    fields = {}
    for name, (start, stop, what) in _FIELDS.items():
        words = text(start, stop)
        if name not in _MUST:
            words = np.where(words == b"", b"0", words)
        values = _floats(words)
        bad = ~np.isfinite(values)
        if name == "wavelength":
            values = np.abs(values)
        if name in {"wavelength", "code"}:
            bad |= values <= 0
        if bad.any():
            row = int(np.argmax(bad))
            shown = words[row].decode("ascii", "replace")
            raise InputError(
                f"{path}, line {numbers[row]}: {shown!r} in columns {start + 1}-{stop} is no {what}; {_REMEDY}"
            )
        fields[name] = values
    fields["useful"] = ~(np.isin(text(141, 144), (b"AUT", b"COR")) | (text(70, 80) == b"CONTINUUM"))
    return fields


def _floats(words: np.ndarray) -> np.ndarray:
    """Numbers of words; NaN where a word is none."""
    try:
        return words.astype(np.float64)
    except ValueError:
        out = np.full(len(words), np.nan)
        for i, word in enumerate(words):
            try:
                out[i] = float(word)
            except ValueError:
                continue
        return out


def default_damping(
    lines: LineList, ionization_energy: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Damping constants of all lines: the list's own, and where it has none those that SYNTHE takes.

    Parameters
    ----------
    lines : LineList
    ionization_energy : callable
        Of (z, ion) arrays, [eV]; infinite where unknown.

    Returns
    -------
    gamma_rad, gamma_stark, gamma_vdw : (n,) float64
        Full widths at half maximum in angular frequency: radiative [1/s], classical where unknown; Stark per electron
        [cm³/s]; van der Waals per hydrogen atom at 10 000 K [cm³/s], which grows as T^0.3. Helium counts 0.42 of a
        hydrogen atom.

    References
    ----------
    Kurucz's program RGFALL: Stark after Peytremann 1972, A&A 17, 76; van der Waals after Aller 1963, Astrophysics: The
    Atmospheres of the Sun and Stars, with the mean square radius of hydrogenic levels, and for the iron group of 3d
    electrons.
    """
    charge = lines.ion.astype(np.float64)
    limit = np.asarray(ionization_energy(lines.z, lines.ion), dtype=np.float64)
    limit = np.where(np.isfinite(limit), limit, 0.0)

    def square_number(energy: np.ndarray) -> np.ndarray:
        """Effective principal quantum number squared of levels; 25 above the limit, and at most 1000."""
        below = limit - energy
        return np.where(below > 0, np.minimum(_RYDBERG * charge**2 / np.where(below > 0, below, 1.0), 1000.0), 25.0)

    upper = square_number(lines.elo + HC / lines.wavelength)
    up, low = (2.5 * (number / charge) ** 2 for number in (upper, square_number(lines.elo)))
    electrons = lines.z - lines.ion + 1
    iron_group = (electrons > 20) & (electrons < 29)
    up, low = np.where(iron_group, (45 - electrons) / charge, up), np.where(iron_group, 0.0, low)
    radius = np.where(up < low, low, up - low)

    known = (lines.log_grad, lines.log_gstark, lines.log_gvdw)
    assumed = (2.223e15 / lines.wavelength**2, 1e-8 * upper**2.5, 4.5e-9 * radius**0.4)
    rad, stark, vdw = (np.where(np.isnan(log), value, 10**log) for log, value in zip(known, assumed, strict=True))
    return rad, stark, vdw
