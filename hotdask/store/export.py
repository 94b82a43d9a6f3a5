"""The catalog for other programs: FITS, VOTable, Parquet or CSV, with units and UCDs, by our names or the paper's."""

import re
import unicodedata
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
from astropy.io import fits, votable
from astropy.table import MaskedColumn, Table

from hotdask.errors import InputError
from hotdask.labels import COMPARED_LABELS, CORRELATION_PAIRS, LABEL_NAMES, LABELS, PAPER_LABELS
from hotdask.schema import CATALOG, COMPARED, JOINED, Column
from hotdask.store.atomic import atomic_path, clear_dead
from hotdask.store.catalog import catalog_folder
from hotdask.store.parquet import list_parts

_LABEL_UCD = {
    "teff": "phys.temperature.effective",
    "logg": "phys.gravity",
    "vmic": "phys.veloc.microTurb",
    "vsini": "phys.veloc.rotat",
    "fe_h": "phys.abund.Fe",
}
UCD: dict[str, str] = {
    "specid": "meta.id;meta.main",
    "obsid": "meta.id",
    "fitsname": "meta.id;meta.file",
    "ra": "pos.eq.ra;meta.main",
    "dec": "pos.eq.dec;meta.main",
    "star_id": "meta.id",
    "uniqflag": "meta.code",
    "snr_g": "stat.snr;em.opt.B",
    "rv": "spect.dopplerVeloc;pos.heliocentric",
    "rv_err": "stat.error;spect.dopplerVeloc",
    "mjd": "time.epoch",
    "chi2_red": "stat.fit.chi2",
    "chi2ratio": "stat.fit.goodness",
    "halpha_excess": "spect.line.eqWidth",
    "halpha_excess_err": "stat.error;spect.line.eqWidth",
    "balmer_excess": "spect.line.eqWidth",
    "balmer_excess_err": "stat.error;spect.line.eqWidth",
    "rv_shift": "spect.dopplerVeloc",
    "rv_shift_err": "stat.error;spect.dopplerVeloc",
    "rv_refit": "spect.dopplerVeloc",
    "binary_score": "stat.fit.goodness",
    "flags": "meta.code.qual",
    "in_sample": "meta.code",
    **dict.fromkeys(("source_class", "source_hot", "source_ob"), "meta.code"),
    "gaia_id": "meta.id.cross",
    "gaia_separation": "pos.angDistance",
    "parallax": "pos.parallax.trig",
    "parallax_error": "stat.error;pos.parallax.trig",
    "parallax_over_error": "stat.snr;pos.parallax.trig",
    "pmra": "pos.pm;pos.eq.ra",
    "pmra_error": "stat.error;pos.pm;pos.eq.ra",
    "pmdec": "pos.pm;pos.eq.dec",
    "pmdec_error": "stat.error;pos.pm;pos.eq.dec",
    "ruwe": "stat.fit.goodness",
    "r_geo": "pos.distance;pos.eq",
    "r_geo_low": "pos.distance;pos.eq;stat.min",
    "r_geo_high": "pos.distance;pos.eq;stat.max",
    "fidelity": "stat.probability",
    "ebv": "phot.color.excess",
    "g": "phot.mag;em.opt",
    "bp": "phot.mag;em.opt.B",
    "rp": "phot.mag;em.opt.R",
    "j": "phot.mag;em.IR.J",
    "h": "phot.mag;em.IR.H",
    "ks": "phot.mag;em.IR.K",
    "m_ks": "phot.mag;em.IR.K",
    "bp_rp_0": "phot.color;em.opt.B;em.opt.R",
    "teff_independent": "phys.temperature.effective",
    **{f"corr_{a}_{b}": "stat.correlation" for a, b in CORRELATION_PAIRS},
    **{
        f"{name}{ending}": f"{before}{_LABEL_UCD.get(name, 'phys.abund')}"
        for name in LABEL_NAMES
        for ending, before in (("", ""), ("_err", "stat.error;"), ("_all", ""), ("_hmasked", ""))
    },
    **{
        f"{name}_{suffix}{ending}": f"{before}{_LABEL_UCD.get(name, 'phys.abund')}"
        for suffix in COMPARED
        for name in COMPARED_LABELS
        for ending, before in (("", ""), ("_err", "stat.error;"))
    },
    **{f"chi2_red_{suffix}": "stat.fit.chi2" for suffix in COMPARED},
    **{f"flags_{suffix}": "meta.code.qual" for suffix in COMPARED},
}
"""Meaning of each column in the vocabulary of the Virtual Observatory (UCD1+)."""

_SYMBOL = {"teff": "Teff", **{lb.name: lb.symbol for lb in LABELS if lb.symbol.startswith("[")}}


def _theirs(name: str) -> str:
    return _SYMBOL.get(name, name)


PAPER: dict[str, str] = {
    **{n: n for n in ("specid", "fitsname", "ra", "dec", "uniqflag", "star_id", "snr_g", "rv", "rv_err")},
    **{f"{_theirs(n)}{ending}": f"{n}{ending}" for n in PAPER_LABELS for ending in ("", "_err")},
    **{f"corr_{_theirs(a)}_{_theirs(b)}": f"corr_{a}_{b}" for a, b in CORRELATION_PAIRS},
    "chisq_red": "chi2_red",
    "chi2ratio": "chi2ratio",
    "source_dr6oba": "source_class",
    "source_Zari21": "source_hot",
    "source_Liu19": "source_ob",
    **{n: n for n in ("gaia_id", "parallax", "parallax_error", "pmra", "pmra_error", "pmdec", "pmdec_error")},
    "RUWE": "ruwe",
    **{n: n for n in ("r_geo", "r_geo_low", "r_geo_high", "fidelity")},
    "ebv_bayes19": "ebv",
    **{n.upper(): n for n in ("g", "bp", "rp", "j", "h")},
    "K": "ks",
}
"""The columns of the paper's catalog (Table 5), and ours."""

FORMATS = (".fits", ".vot", ".parquet", ".csv")
_DECLARED: dict[str, Column] = {c.name: c for c in (*CATALOG, *JOINED, *chain(*COMPARED.values()))}
_NAMES = {theirs for theirs, ours in {**{n: n for n in _DECLARED}, **PAPER}.items() if ours in _DECLARED}
_UNKNOWN_ID = -1
_FORMULA = r"^([=+\-@\t\r])"
_SIGNED = {
    pa.bool_(): pa.int16(),
    pa.int8(): pa.int16(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.string(),
}


def export_table(run: str | Path, *, columns: Literal["all", "paper"] = "all", sample: bool = False) -> pa.Table:
    """The published catalog as one table; units, meanings and UCDs are in the metadata of its fields.

    Parameters
    ----------
    run : path
        Directory of the run.
    columns : {"all", "paper"}
        All, or those of the paper's Table 5 by its names; what a run does not have is null there.
    sample : bool
        Only rows of the sample.

    Returns
    -------
    pyarrow.Table

    Raises
    ------
    RunError
        If nothing is published yet.
    """
    parts = list_parts(catalog_folder(run))
    names = pq.read_schema(parts[0]).names
    chosen = PAPER if columns == "paper" else {name: name for name in names}
    here = [ours for ours in chosen.values() if ours in names]
    filters = [("in_sample", "==", True)] if sample else None
    table = pa.concat_tables(pq.read_table(part, columns=here, filters=filters, partitioning=None) for part in parts)
    arrays, fields = [], []
    for theirs, ours in chosen.items():
        declared = _DECLARED.get(ours)
        field = declared.field() if declared else table.schema.field(ours)
        array = table[ours] if ours in names else pa.nulls(len(table), field.type)
        if columns == "paper" and pa.types.is_boolean(field.type):
            field, array = field.with_type(pa.int16()), array.cast(pa.int16())
        metadata = {**(field.metadata or {}), b"ucd": UCD.get(ours, "").encode()}
        fields.append(pa.field(theirs, field.type, metadata=metadata))
        arrays.append(array)
    return pa.table(arrays, schema=pa.schema(fields, metadata=table.schema.metadata))


def export_catalog(
    run: str | Path, out: str | Path, *, columns: Literal["all", "paper"] = "all", sample: bool = False
) -> int:
    """Write the published catalog as .fits, .vot, .parquet or .csv, by the ending; returns its rows.

    FITS and VOTable carry units and UCDs (in FITS as the keywords TUNIT, TUCD and TCOMM). Names in FITS have letters,
    digits and underscores only, as its standard wishes: Fe_H for [Fe/H]; of two that differ only in case the second
    gets a number. In CSV, text and names that begin like a formula (=, +, -, @) get an apostrophe before them.

    Parameters
    ----------
    run, columns, sample
        As `export_table`.
    out : path
        The file, written whole or not at all.

    Raises
    ------
    InputError
        If the ending is none of these.
    RunError
        If nothing is published yet.
    """
    out = Path(out)
    writer = {".fits": _fits, ".vot": _votable, ".parquet": pq.write_table, ".csv": _csv}.get(out.suffix)
    if writer is None:
        raise InputError(f"--out {out}: unknown ending; give {', '.join(FORMATS)}")
    table = export_table(run, columns=columns, sample=sample)
    clear_dead(out)
    # Brackets in names and units such as dex(cm/s2) are the field's, though neither standard recommends them.
    with atomic_path(out) as partial, warnings.catch_warnings(action="ignore"):
        writer(table, partial)
    return len(table)


def _csv(table: pa.Table, out: Path) -> None:
    """Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    for i, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            text = table.column(i).cast(pa.large_string())
            plain = pa.compute.replace_substring_regex(text, _FORMULA, r"'\1")
            table = table.set_column(i, field.with_type(pa.large_string()), plain)
    names = [re.sub(_FORMULA, r"'\1", name) for name in table.column_names]
    pa.csv.write_csv(table.rename_columns(names), out)


def _values(field: pa.Field, column: pa.ChunkedArray) -> np.ma.MaskedArray:
    """A column as astropy wants it: text or numbers with a mask; NaN needs none."""
    if not (pa.types.is_floating(field.type) or pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)):
        return np.ma.MaskedArray(column.cast(pa.string()).fill_null("").to_numpy().astype(str))
    if pa.types.is_floating(field.type):
        return np.ma.MaskedArray(column.cast(field.type).to_numpy())
    gap = column.is_null().to_numpy()
    if pa.types.is_boolean(field.type) and not gap.any():
        return np.ma.MaskedArray(column.to_numpy())
    # FITS and VOTable know neither 8-bit integers with a sign nor longer ones without, and no gap in a logical.
    kind = _SIGNED.get(field.type, field.type)
    if kind == pa.string():
        return np.ma.MaskedArray(column.cast(kind).fill_null("").to_numpy().astype(str))
    lowest = np.iinfo(kind.to_pandas_dtype()).min
    fill = _UNKNOWN_ID if field.name in _NAMES else lowest
    values = column.cast(kind).fill_null(fill).to_numpy()
    if "id" in field.name:
        gap = gap | (values == _UNKNOWN_ID)
    return np.ma.MaskedArray(values, mask=gap, fill_value=fill)


def _said(field: pa.Field, what: str) -> str:
    return (field.metadata or {}).get(what.encode(), b"").decode()


_FITS_FORMAT = {"f8": "D", "f4": "E", "i8": "K", "i4": "J", "i2": "I", "b1": "L"}


def _fits_names(names: Sequence[str]) -> list[str]:
    """Names of ASCII letters, digits and underscores, no two of which differ only in case."""
    out: list[str] = []
    for name in names:
        plain = unicodedata.normalize("NFKD", name.replace("[", "").replace("]", ""))
        plain = re.sub(r"\W", "_", plain.encode("ascii", "ignore").decode(), flags=re.ASCII) or "column"
        plain = f"_{plain}" if plain[0].isdigit() else plain
        taken = {other.lower() for other in out}
        numbered = (plain, *(f"{plain}_{i}" for i in range(2, len(names) + 2)))
        out.append(next(one for one in numbered if one.lower() not in taken))
    return out


def _fits(table: pa.Table, path: Path) -> None:
    columns = []
    for field, name in zip(table.schema, _fits_names(table.column_names), strict=True):
        values = _values(field, table[field.name])
        if values.dtype.kind == "U":
            text = np.char.encode(values.data, "utf-8")
            columns.append(fits.Column(name, f"{max(text.dtype.itemsize, 1)}A", array=text))
            continue
        whole = values.dtype.kind == "i"
        columns.append(
            fits.Column(
                name,
                _FITS_FORMAT[values.dtype.str[1:]],
                unit=_said(field, "unit") or None,
                null=int(values.fill_value) if whole else None,
                array=values.filled() if whole else values.data,
            )
        )
    hdu = fits.BinTableHDU.from_columns(columns, name="CATALOG")
    for number, field in enumerate(table.schema, 1):
        for keyword, what in (("TUCD", "ucd"), ("TCOMM", "description")):
            if _said(field, what):
                hdu.header[f"{keyword}{number}"] = _ascii(_said(field, what))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)


def _ascii(text: str) -> str:
    """As a FITS header can hold it."""
    plain = text.translate(str.maketrans({"−": "-", "±": "+-", "…": "...", "é": "e", "χ": "chi", "²": "2"}))
    return plain.encode("ascii", "replace").decode()


def _votable(table: pa.Table, path: Path) -> None:
    out = Table()
    for field in table.schema:
        column = MaskedColumn(_values(field, table[field.name]), name=field.name, unit=_said(field, "unit") or None)
        column.description = _said(field, "description") or None
        column.meta["ucd"] = _said(field, "ucd") or None
        out[field.name] = column
    document = votable.from_table(out)
    for field, name in zip(document.get_first_table().fields, _fits_names(out.colnames), strict=True):
        field.ucd = out[field.name].meta["ucd"]
        # Programs that know a column by its ID, astropy among them, find it as in FITS.
        field.ID = name
    document.get_first_table().format = "binary2"
    document.to_xml(str(path))
