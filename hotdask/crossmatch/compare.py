"""A run's catalog against a table of labels from elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd

from hotdask.crossmatch.differences import (
    TEFF_EDGES,
    best_visits,
    differences,
    label_differences,
    match_names,
    match_positions,
    reference_teff,
)
from hotdask.errors import InputError
from hotdask.labels import INDEX, LABEL_NAMES, LABELS
from hotdask.readers.columns import angles, find_column, numbers
from hotdask.readers.usertables import read_user_table
from hotdask.report.compare import comparison_figure, comparison_lines, comparison_page
from hotdask.store.atomic import atomic_path, write_text
from hotdask.store.catalog import catalog_folder, read_catalog

SHIPPED = "nlte"
"""Name that stands for the table that comes along: eleven stars with non-LTE labels."""

_ENDINGS = (".svg", ".png", ".html")
_NAMES = ("specid", "name", "star_id", "star")
_KEPT = ("specid", "star_id", "ra", "dec", "snr_g", "flags", "in_sample")


def compare(
    run: str | Path,
    table: str,
    *,
    out: str | Path | None = None,
    names: tuple[str, str] | None = None,
    radius: float | None = None,
    columns: Mapping[str, str] | None = None,
    errors: Mapping[str, str] | None = None,
    edges: Sequence[float] = TEFF_EDGES,
    every_row: bool = False,
    echo: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Compare the catalog of a run with a table; draws a figure and writes the numbers beside it.

    Parameters
    ----------
    run : path
        Directory of the run.
    table : path or "nlte"
        Table of any of `hotdask.readers.usertables.KINDS`, one row a star; or the one that comes along
        (`reference_table`).
    out : path, optional
        ``.svg``, ``.png`` or ``.html`` file; default: ``RUN/compare/TABLE.svg``. Beside it come ``.csv``, the table
        of offsets, and ``_stars.csv``, the stars with labels of both sides.
    names : (str, str), optional
        Columns of the table and of the catalog to match by name; default: the first of specid, name, star_id and star
        that both have as text.
    radius : float, optional
        Match by position within so many arcseconds (table columns ``ra`` and ``dec`` [deg, J2000]) and not by name;
        where there is no name to match by it is taken to be 3.
    columns, errors : mapping of str to str, optional
        The table's column of a label, and of its error; default: ``<name>`` or ``<name>_true``, and that with
        ``_err`` behind it. Units are those of `hotdask.labels`.
    edges : sequence of float
        Of the ranges of Teff [K].
    every_row : bool
        Whether spectra outside the sample count, too.
    echo : callable
        Told the numbers, a line at a time.

    Returns
    -------
    pandas.DataFrame
        As `hotdask.crossmatch.differences.label_differences` gives it.

    Raises
    ------
    InputError
        If the table cannot be read, lacks a column, or nothing matches.
    RunError
        If the run has no catalog yet.

    References
    ----------
    Xiang et al. 2022, §4.7.
    """
    catalog_folder(run)
    name = SHIPPED if table == SHIPPED else Path(table).stem
    out = Path(out) if out is not None else Path(run, "compare", f"{name}.svg")
    if out.suffix not in _ENDINGS:
        raise InputError(f"--out {out}: give a name that ends in {', '.join(_ENDINGS)}")
    reference, units = _shipped() if table == SHIPPED else read_user_table(table, f"table '{table}'")
    labels = _reference_labels(reference, units, columns or {}, errors or {}, name)
    catalog = read_catalog(run)
    rows, how = _match(catalog, reference, units, names, radius, name)
    n_matched = len(rows[0])
    used = catalog["in_sample"].to_numpy()[rows[0]] | every_row
    rows = [r[used] for r in rows]
    best = best_visits(rows[1], catalog["snr_g"].to_numpy()[rows[0]])
    if not len(best):
        outside = f"; {n_matched} spectra match but are outside the sample: --all takes them" if n_matched else ""
        raise InputError(f"{run}: no star of {name} is in the catalog, {how}{outside}")
    pairs = _pairs(catalog, reference, labels, *(r[best] for r in rows))
    summary = label_differences(pairs, edges=edges)
    echo(
        f"{len(pairs)} of {len(reference)} stars of {name}, {how}; {n_matched} spectra match"
        + (f", {n_matched - int(used.sum())} of them outside the sample" if not used.all() else "")
        + (", the one of highest S/N counts" if used.sum() > len(pairs) else "")
    )
    for line in comparison_lines(summary):
        echo(line)
    about = {"run": Path(run).name, "reference": name, "matched": how, "stars": len(pairs)}
    _write(out, pairs, summary, title=f"{Path(run).resolve().name} against {name}", about=about)
    echo(f"figure: {out}")
    return summary


def reference_table() -> pd.DataFrame:
    """The table that comes along: eleven bright stars with labels from non-LTE models.

    Returns
    -------
    pandas.DataFrame
        ``name`` and, for every label, its value and error in the units of `hotdask.labels`.

    References
    ----------
    Xiang et al. 2022, Tables 3-4, after Przybilla et al. 2006, Przybilla et al. 2010, Nieva & Przybilla 2012.

    Examples
    --------
    >>> reference_table().set_index("name").loc["HD 172167", ["teff", "logg"]].tolist()
    [9550.0, 3.95]
    """
    return _shipped()[0]


def _shipped() -> tuple[pd.DataFrame, dict[str, str]]:
    return read_user_table(str(files("hotdask") / "references" / f"{SHIPPED}.csv"), "the shipped table")


def _reference_labels(
    table: pd.DataFrame, units: Mapping[str, str], columns: Mapping[str, str], errors: Mapping[str, str], name: str
) -> dict[str, np.ndarray]:
    """By column of the pairs: values as float64."""
    unknown = sorted({*columns, *errors} - set(LABEL_NAMES))
    if unknown:
        raise InputError(f"no label is called {', '.join(unknown)}; there are {', '.join(LABEL_NAMES)}")
    lacking = sorted({*columns.values(), *errors.values()} - set(table.columns))
    if lacking:
        raise InputError(f"{name} has no column {', '.join(lacking)}; it has {', '.join(table.columns)}")
    found = {}
    for label in LABEL_NAMES:
        unit = LABELS[INDEX[label]].unit
        column = columns.get(label) or _first(table, (label, f"{label}_true"))
        if column is None:
            continue
        found[f"{label}_ref"] = numbers(table[column], name, unit=unit, stored=units.get(column, ""))
        error = errors.get(label) or _first(table, (f"{column}_err", f"{label}_err"))
        if error is not None:
            found[f"{label}_ref_err"] = numbers(table[error], name, unit=unit, stored=units.get(error, ""))
    if not found:
        raise InputError(
            f"{name} has no column of a label ({', '.join(LABEL_NAMES)}), only {', '.join(table.columns)}; "
            "say which is which: --label teff=COLUMN"
        )
    return found


def _first(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    """The column that has the first of these names the table knows, whatever its case."""
    return next((c for c in (find_column(table.columns, n) for n in names) if c is not None), None)


def _match(
    catalog: pd.DataFrame, table: pd.DataFrame, units: Mapping[str, str], names, radius, name: str
) -> tuple[list[np.ndarray], str]:
    if names is None and radius is None:
        common = [c for c in _NAMES if c in table and c in catalog and pd.api.types.is_string_dtype(table[c])]
        names = (common[0], common[0]) if common else None
    if names is not None:
        for column, frame, what in ((names[0], table, name), (names[1], catalog, "the catalog")):
            if column not in frame:
                raise InputError(
                    f"{what} has no column '{column}' to match by; carry one along in the run's input table, or match "
                    "by position"
                )
        matched = match_names(catalog[names[1]], table[names[0]])
        return list(matched), "by column " + (names[0] if names[0] == names[1] else f"{names[0]} = {names[1]}")
    ra, dec = (find_column(table.columns, wanted) for wanted in ("ra", "dec"))
    if ra is None or dec is None:
        raise InputError(
            f"{name} has neither ra and dec nor a name that the catalog has, too; carry a column 'name' along in the "
            "run's input table, or say which columns hold names: --name COLUMN=CATALOG_COLUMN"
        )
    radius = 3.0 if radius is None else radius
    theirs = [angles(table[c], name, stored=units.get(c, ""), hours=hours) for c, hours in ((ra, True), (dec, False))]
    places = (catalog[["ra", "dec"]].to_numpy(dtype=np.float64), np.column_stack(theirs))
    return list(match_positions(*places, radius=radius)), f"within {radius:g} arcsec"


def _pairs(catalog: pd.DataFrame, table: pd.DataFrame, labels: Mapping, rows: np.ndarray, stars: np.ndarray):
    chosen = [*_KEPT, *(c for name in LABEL_NAMES if f"{name}_ref" in labels for c in (name, f"{name}_err"))]
    chosen += [c for c in ("teff", "teff_err") if c not in chosen]
    pairs = catalog.iloc[rows][chosen].reset_index(drop=True)
    # Names are what a reader knows a star by; numbers of the table would only repeat the labels.
    text = [c for c in table if pd.api.types.is_string_dtype(table[c]) and c not in pairs]
    pairs = pd.concat([table.iloc[stars][text].reset_index(drop=True), pairs], axis=1)
    return pairs.assign(**{column: values[stars] for column, values in labels.items()})


def _write(out: Path, pairs: pd.DataFrame, summary: pd.DataFrame, *, title: str, about: Mapping) -> None:
    found = {label: differences(pairs, label) for label in summary["label"].unique()}
    figure = comparison_figure(
        reference_teff(pairs),
        {label: difference for label, (difference, _) in found.items()},
        {label: error for label, (_, error) in found.items()},
        summary,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".html":
        write_text(out, comparison_page(figure, summary, title=title, about=about, n=len(pairs)))
    else:
        with atomic_path(out) as partial:
            figure.savefig(partial, format=out.suffix[1:], dpi=200)
    write_text(out.with_suffix(".csv"), summary.to_csv(index=False))
    write_text(out.with_name(f"{out.stem}_stars.csv"), pairs.to_csv(index=False))
