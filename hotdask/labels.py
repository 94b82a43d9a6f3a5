"""The 11 stellar labels and the 6 LSF coefficients, declared once.

Every ``*_err``, ``*_all``, ``*_hmasked`` and ``corr_*`` column, every axis title and every range comes from here.
"""

from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Label:
    """One stellar label or line-spread coefficient.

    ``low`` and ``high`` are the range the field expects (Xiang et al. 2022, Table 1); ``floor`` and ``ceiling`` are
    how far a fit may extrapolate; ``start`` is where a fit begins when nothing better is known.
    """

    name: str
    symbol: str
    unit: str
    low: float
    high: float
    floor: float
    ceiling: float
    start: float
    doc: str


LABELS: tuple[Label, ...] = (
    Label("teff", "$T_{\\rm eff}$", "K", 7500, 60000, 5500, 60000, 10000, "effective temperature"),
    Label("logg", "$\\log g$", "dex(cm/s2)", 0, 5, -0.5, 7, 4.0, "surface gravity"),
    Label("vmic", "$v_{\\rm mic}$", "km/s", 0, 15, -3, 20, 3.0, "microturbulent velocity"),
    Label("vsini", "$v\\,\\sin i$", "km/s", 0, 500, -100, 600, 100.0, "projected rotation velocity"),
    Label("n_he", "$N_{\\rm He}/N_{\\rm tot}$", "", 0, 0.25, -0.05, 0.4, 0.09, "helium number fraction"),
    Label("c_h", "[C/H]", "dex", -5, 3.5, -5, 3.5, 0.0, "carbon abundance relative to the Sun"),
    Label("n_h", "[N/H]", "dex", -5, 3.5, -5, 3.5, 0.0, "nitrogen abundance relative to the Sun"),
    Label("o_h", "[O/H]", "dex", -5, 3.5, -5, 3.5, 0.0, "oxygen abundance relative to the Sun"),
    Label("si_h", "[Si/H]", "dex", -4, 2.5, -4, 2.5, 0.0, "silicon abundance relative to the Sun"),
    Label("s_h", "[S/H]", "dex", -4, 2.5, -4, 2.5, 0.0, "sulfur abundance relative to the Sun"),
    Label(
        "fe_h",
        "[Fe/H]",
        "dex",
        -3,
        0.5,
        -4,
        2,
        0.0,
        "iron abundance relative to the Sun; scales all other metals",
    ),
)

LABEL_NAMES: tuple[str, ...] = tuple(label.name for label in LABELS)
N_LABELS = len(LABELS)
INDEX: dict[str, int] = {name: i for i, name in enumerate(LABEL_NAMES)}

ABUNDANCES: tuple[str, ...] = ("c_h", "n_h", "o_h", "si_h", "s_h", "fe_h")
"""Labels on the [X/H] scale."""

RELATIVE: dict[str, str] = {name.replace("_h", "_fe"): name for name in ABUNDANCES if name != "fe_h"}
"""[X/Fe], the scale on which libraries are sampled, and the label it becomes: [X/H] = [X/Fe] + [Fe/H]."""

PAPER_LABELS: tuple[str, ...] = ("teff", "logg", "vsini", "fe_h", "si_h")
"""The labels the paper's catalog publishes (its Table 5)."""

COMPARED_LABELS: tuple[str, ...] = ("teff", "logg", "vsini", "n_he", "fe_h")
"""The labels a catalog carries from a second emulator (``fit.compare``)."""

CORRELATION_PAIRS: tuple[tuple[str, str], ...] = tuple(combinations(PAPER_LABELS, 2))
"""Pairs that get a ``corr_A_B`` column in the catalog."""

LSF_NAMES: tuple[str, ...] = ("lsf_b0", "lsf_b1", "lsf_b2", "lsf_r0", "lsf_r1", "lsf_r2")
"""Gaussian sigma [Å] of the line-spread function: c0 + c1·t + c2·t², blue then red arm (see `windows.LSF_PIVOT`)."""
