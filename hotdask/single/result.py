"""What is found about one spectrum: labels with errors and units, flags, models, a table, a picture."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from astropy.table import Table
from markupsafe import Markup, escape

from hotdask import config
from hotdask.errors import InputError
from hotdask.flags import DESCRIPTIONS, Flag
from hotdask.labels import LABEL_NAMES, LABELS
from hotdask.report.formats import format_measurement, format_number, symbol_html, unit_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hotdask.report.spectrum import SpectrumView

_WIDTH = 640
"""Of the picture in a notebook [CSS pixel]."""


@dataclass(frozen=True, eq=False)
class Model:
    """A spectrum as it was fitted, and what the fits made of it.

    Attributes
    ----------
    wavelength : (3801,) float64
        Rest frame, vacuum [Å].
    flux, ivar : (3801,) float32
        The data, over their continuum; ivar = 0 marks no data.
    used : (3801,) bool
        Pixels of the all-lines fit.
    merged, all, hmasked : (3801,) float32
        Models at the labels, and at those of the fit to all lines and of the fit with hydrogen masked.
    """

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    used: np.ndarray
    merged: np.ndarray
    all: np.ndarray
    hmasked: np.ndarray


@dataclass(frozen=True, eq=False)
class Result:
    """Labels of one spectrum.

    Attributes
    ----------
    name : str
    values, errors : (11,) float64
        Labels in the order and units of `hotdask.labels.LABELS`, and their formal errors.
    covariance : (11, 11) float64
        Formal, of the merged labels, vsini signed.
    rv, rv_err : float
        Velocity the labels were fitted at [km/s].
    rv_found : bool
        Whether it was found here.
    chi2 : float
        Reduced χ² of all lines.
    flag_bits : int
        Bits of `hotdask.flags.Flag`.
    model : Model
    columns : mapping of str to float
        What the pipeline's tables have besides: labels of both fits, residuals.
    notes : tuple of str
        What was assumed.
    emulator : str
        Its id.
    """

    name: str
    values: np.ndarray
    errors: np.ndarray
    covariance: np.ndarray
    rv: float
    rv_err: float
    rv_found: bool
    chi2: float
    flag_bits: int
    model: Model
    columns: Mapping[str, float]
    notes: tuple[str, ...]
    emulator: str

    @property
    def labels(self) -> pd.DataFrame:
        """Value, 1-sigma error, unit and meaning of each label."""
        rows = {"value": self.values, "error": self.errors, "unit": [lb.unit for lb in LABELS]}
        return pd.DataFrame(rows | {"meaning": [lb.doc for lb in LABELS]}, index=pd.Index(LABEL_NAMES, name="label"))

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the flags; `hotdask.flags.DESCRIPTIONS` says what they mean."""
        return tuple(flag.name for flag in Flag if self.flag_bits & flag)

    def to_dict(self) -> dict:
        """Everything but spectra and covariance as plain values, NaN as None."""
        out = {"name": self.name, "rv": self.rv, "rv_err": self.rv_err, "rv_found": bool(self.rv_found)}
        for label, value, error in zip(LABELS, self.values, self.errors, strict=True):
            out |= {label.name: value, f"{label.name}_err": error}
        out |= {"chi2_red": self.chi2, **self.columns}
        plain = {key: float(v) if isinstance(v, float | np.floating) else v for key, v in out.items()}
        plain = {key: None if isinstance(v, float) and not np.isfinite(v) else v for key, v in plain.items()}
        return plain | {"flags": list(self.flags), "notes": list(self.notes), "emulator": self.emulator}

    def to_table(self) -> Table:
        """One row with units, as an astropy table."""
        return stack([self])

    def __str__(self) -> str:
        rows = [
            (lb.name, format_measurement(value, error), lb.unit, lb.doc)
            for lb, value, error in zip(LABELS, self.values, self.errors, strict=True)
        ]
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{self.name}: {self._facts()}" if self.name else self._facts()]
        lines += [f"  {a:<{wide[0]}}  {b:<{wide[1]}}  {c:<{wide[2]}}  {d}" for a, b, c, d in rows]
        lines += [f"  {flag.name}: {DESCRIPTIONS[flag]}" for flag in Flag if self.flag_bits & flag]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        return str(self)

    def _facts(self) -> str:
        how = "found" if self.rv_found else "given"
        return f"rv {format_measurement(self.rv, self.rv_err)} km/s ({how}), reduced χ² {format_number(self.chi2)}"

    def _repr_html_(self) -> str:
        from hotdask.report.figures import png_uri

        cells = "".join(
            f"<tr><td>{symbol_html(lb.name)}</td><td>{format_measurement(value, error)}</td>"
            f"<td>{unit_html(lb.name)}</td></tr>"
            for lb, value, error in zip(LABELS, self.values, self.errors, strict=True)
        )
        flags = " · ".join(
            f'<span title="{escape(DESCRIPTIONS[flag])}">{flag.name}</span>' for flag in Flag if self.flag_bits & flag
        )
        notes = "".join(f"<div>{escape(note)}</div>" for note in self.notes)
        picture = f'<img width="{_WIDTH}" alt="Spectrum with both fits and residuals" src="{png_uri(self._draw())}">'
        title = f"<b>{escape(self.name)}</b> " if self.name else ""
        return str(
            Markup(
                f"<div>{title}{escape(self._facts())}</div><div style='display:flex;flex-wrap:wrap;gap:1em'>"
                f"<table>{cells}</table>{picture}</div><div>{flags}</div>{notes}"
            )
        )

    def _view(self) -> "SpectrumView":
        from hotdask.report.spectrum import SpectrumView

        model = self.model
        return SpectrumView(
            self.name or "spectrum",
            *(model.wavelength, model.flux, model.ivar, model.all, model.hmasked, model.used),
            *(dict(zip(LABEL_NAMES, values, strict=True)) for values in (self.values, self.errors)),
            self.chi2,
            self.flag_bits,
            f"rv {format_measurement(self.rv, self.rv_err)} km/s",
        )

    def _draw(self) -> "Figure":
        # Matplotlib takes a second to import, labels none.
        from hotdask.report.spectrum import draw_spectrum

        fit = config.Fit()
        return draw_spectrum(self._view(), mask=fit.mask, hydrogen=fit.hydrogen)

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Draw data, both fits, residuals, names of lines and masked windows.

        Parameters
        ----------
        path : path, optional
            File to write besides: ``.png``, ``.svg``, or a page that loads nothing from anywhere, ``.html``.

        Raises
        ------
        InputError
            If the file has another ending.
        """
        if path is not None:
            self._save(Path(path))
        if "ipykernel" in sys.modules:
            # It is what tells a notebook to show figures.
            import matplotlib.pyplot  # noqa: F401
        return self._draw()

    def _save(self, path: Path) -> None:
        from hotdask.report.render import save_figure
        from hotdask.report.spectrum import labels_text, spectrum_page

        kind = path.suffix.lower()
        if kind not in (".html", ".svg", ".png"):
            raise InputError(f"{path}: a spectrum is drawn as .html, .svg or .png; give a name that ends so")
        view, fit = self._view(), config.Fit()
        if kind == ".html":
            content = spectrum_page(view, mask=fit.mask, hydrogen=fit.hydrogen).encode()
        else:
            content = save_figure(self._draw(), kind, title=labels_text(view))
        try:
            path.write_bytes(content)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}); give another name") from error


class Results(list):
    """Results of several spectra, in their order."""

    def to_table(self) -> Table:
        """One row a spectrum, with units, as an astropy table."""
        return stack(self)

    def _repr_html_(self) -> str:
        return "<hr>".join(result._repr_html_() for result in self)


def stack(results: list[Result]) -> Table:
    """Results as one astropy table with units and descriptions, one row each."""
    table = Table()
    table["name"] = [result.name for result in results]
    for name, doc in (("rv", "velocity, positive = receding"), ("rv_err", "1-sigma error of rv")):
        table[name] = np.array([getattr(result, name) for result in results], dtype=np.float64)
        table[name].unit, table[name].description = "km/s", doc
    for i, label in enumerate(LABELS):
        for suffix, field, doc in (("", "values", label.doc), ("_err", "errors", f"1-sigma error of {label.name}")):
            column = f"{label.name}{suffix}"
            table[column] = np.array([getattr(result, field)[i] for result in results], dtype=np.float64)
            table[column].description = doc
            # An error of a logarithm is no logarithm of a unit.
            unit = label.unit if not suffix or not label.unit.startswith("dex") else "dex"
            table[column].unit = unit or None
    table["chi2_red"] = np.array([result.chi2 for result in results], dtype=np.float64)
    table["flags"] = np.array([result.flag_bits for result in results], dtype=np.int32)
    table["flags"].description = "bits of hotdask.flags.Flag"
    return table


def to_json(results: list[Result]) -> str:
    """Results as JSON, a list of what `Result.to_dict` gives."""
    return json.dumps([result.to_dict() for result in results], ensure_ascii=False, indent=1)
