"""Every variable of the cube and every column of every table: name, type, unit and meaning, declared once.

From these come the xarray template, the Parquet schemas (units in field metadata), the empty frames dask.dataframe
needs, validation, and the column reference in the documentation.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from hotdask.errors import RunError
from hotdask.labels import COMPARED_LABELS, CORRELATION_PAIRS, INDEX, LABELS, LSF_NAMES, N_LABELS
from hotdask.shipped import FROM_FILE, SHIPPED

FORMAT_VERSION = 4
"""Raised whenever the meaning of anything a run writes changes."""

COVARIANCE_SIZE = N_LABELS * N_LABELS

_NULLABLE = {pa.bool_(): pd.BooleanDtype()} | {
    kind: dtype
    for bits in (8, 16, 32, 64)
    for kind, dtype in (
        (getattr(pa, f"int{bits}")(), getattr(pd, f"Int{bits}Dtype")()),
        (getattr(pa, f"uint{bits}")(), getattr(pd, f"UInt{bits}Dtype")()),
    )
}
INTERNAL = "hotdask:"
"""How the names of columns begin that tables inside a run have for its own use, and no input table may."""


@dataclass(frozen=True)
class Column:
    """One column of a table: Arrow type, unit (astropy spelling, empty if none) and meaning."""

    name: str
    type: pa.DataType
    unit: str
    doc: str

    def field(self) -> pa.Field:
        """Arrow field with unit and meaning in its metadata."""
        return pa.field(self.name, self.type, metadata={"unit": self.unit, "description": self.doc})


@dataclass(frozen=True)
class Variable:
    """One variable of the cube."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    unit: str
    doc: str


SPECTRUM, WAVELENGTH = "spectrum", "wavelength"
_PIXEL = (SPECTRUM, WAVELENGTH)
_STR, _F8, _F4, _I8, _I4, _I2 = (
    pa.large_string(),
    pa.float64(),
    pa.float32(),
    pa.int64(),
    pa.int32(),
    pa.int16(),
)

SPECTRA: tuple[Column, ...] = (
    Column("specid", _STR, "", "date-planid-spid-fiberid"),
    Column("obsid", _I8, "", "LAMOST observation id; -1 where there is none (DR1, SDSS, DESI)"),
    Column("fitsname", _STR, "", "name of the spectrum's FITS file; DESI: and #TARGETID"),
    Column("path", _STR, "", "where the file was read; DESI: and #TARGETID"),
    Column("ra", _F8, "deg", "right ascension (J2000)"),
    Column("dec", _F8, "deg", "declination (J2000)"),
    Column("rv", _F8, "km/s", "radial velocity, heliocentric, positive = receding"),
    Column("rv_err", _F8, "km/s", "uncertainty of rv; NaN where unknown"),
    *(Column(f"snr_{b}", _F4, "", f"S/N per pixel in SDSS {b}; NaN where the pipeline gives none") for b in "ugriz"),
    Column("mjd", _I4, "d", "modified Julian date of the observation (UTC)"),
    Column("lmjd", _I4, "d", "local modified Julian date (UTC+8; SDSS, DESI: mjd), the date of specid"),
    Column("planid", _STR, "", "plate name; SDSS and its number; DESI-survey-program-TARGETID, DESI-tile-TARGETID"),
    Column("spid", _I2, "", "spectrograph, 1-16; DESI: petal, 1-10"),
    Column("fiberid", _I2, "", "fiber, 1-250; SDSS: 1-1000; DESI: 1-500"),
    Column("class", _STR, "", "pipeline class"),
    Column("subclass", _STR, "", "pipeline subclass"),
    Column("release", _STR, "", "data release the file says it belongs to"),
    *(Column(n, _F8, "Angstrom", f"line-spread coefficient {n}; NaN = the run's mean LSF") for n in LSF_NAMES),
    Column(
        "noise_power", _F8, "", "share of the variance in ivar that the noise has; below 1 where its reader smooths"
    ),
    Column("n_good", _I4, "", "pixels with ivar > 0"),
)
"""The per-spectrum sidecar of the cube, one row a cube row, in order."""

REJECTS: tuple[Column, ...] = (
    Column("path", _STR, "", "the file"),
    Column("fitsname", _STR, "", "its name"),
    Column("specid", _STR, "", "its spectrum, where that could be read"),
    Column("reason", _STR, "", "reason code (hotdask.readers.lamost.REASONS)"),
    Column("detail", _STR, "", "what was found, and what to do, in a sentence"),
)

CUBE: tuple[Variable, ...] = (
    Variable("flux", _PIXEL, "float32", "", "relative flux, observed frame, vacuum, heliocentric"),
    Variable("ivar", _PIXEL, "float32", "", "inverse variance of flux; 0 = no data"),
    Variable("andmask", _PIXEL, "uint16", "", "bits set in every exposure"),
    Variable("ormask", _PIXEL, "uint16", "", "bits set in any exposure"),
)
_NUMERIC = {_F8: "float64", _F4: "float32", _I8: "int64", _I4: "int32", _I2: "int16"}
CUBE_COORDINATES: tuple[Variable, ...] = tuple(
    Variable(c.name, (SPECTRUM,), _NUMERIC[c.type], c.unit, c.doc) for c in SPECTRA if c.type in _NUMERIC
)
"""Numeric columns of `SPECTRA`, repeated in the cube so that it stands alone."""

_COVARIANCE = pa.list_(_F8, COVARIANCE_SIZE)
_FITS = {"all": "all-lines fit", "hmasked": "fit with hydrogen masked"}

RESIDUALS = (
    Column("halpha_excess", _F8, "Angstrom", "equivalent width of data above model in the core of Hα; > 0 = emission"),
    Column("halpha_excess_err", _F8, "Angstrom", "1-sigma error of halpha_excess, noise, and fit.model_error if given"),
    Column("balmer_excess", _F8, "Angstrom", "the same as halpha_excess, for the cores of Hβ to Hδ together"),
    Column("balmer_excess_err", _F8, "Angstrom", "1-sigma error of balmer_excess, noise, and fit.model_error if given"),
    Column("rv_shift", _F8, "km/s", "what a fit, all labels free, would add to rv; beyond rv_refit linear: within 69"),
    Column("rv_shift_err", _F8, "km/s", "1-sigma error of rv_shift, noise, and fit.model_error if given"),
    Column("rv_refit", _F8, "km/s", "part of rv_shift that the labels were fitted with, see fit.refit_rv; 0 = at rv"),
    Column("binary_score", _F8, "", "gain in chi-square by a second star, over chi2_red_all if that is above 1"),
)
"""What `hotdask.steps.residuals` found in the fit of all lines."""

FITS: tuple[Column, ...] = (
    Column("specid", _STR, "", "date-planid-spid-fiberid"),
    Column("row", _I8, "", "row in the cube"),
    Column(
        "teff_guess",
        _F8,
        "K",
        "line-index guess (Eq 4), clipped to the library; NaN where it could not be made",
    ),
    *(Column(f"{lb.name}_{f}", _F8, lb.unit, f"{lb.doc}, {doc}") for f, doc in _FITS.items() for lb in LABELS),
    *(
        Column(f"covariance_{f}", _COVARIANCE, "", f"11 x 11 covariance in label order, row by row, {doc}")
        for f, doc in _FITS.items()
    ),
    *(Column(f"chi2_red_{f}", _F8, "", f"reduced chi-square, {doc}") for f, doc in _FITS.items()),
    *(Column(f"n_pixel_{f}", _I4, "", f"pixels used, {doc}") for f, doc in _FITS.items()),
    *(Column(f"iterations_{f}", _I4, "", f"Levenberg-Marquardt steps, {doc}") for f, doc in _FITS.items()),
    Column("chi2_red", _F8, "", "reduced chi-square of all lines at the merged labels"),
    Column(
        "hydrogen_gain",
        _F8,
        "",
        "gain in chi-square of the fit with hydrogen masked over the all-lines fit on its own pixels, over its "
        "chi2_red; 5.3 is what noise gives; NaN where the masked fit has no weight in any case",
    ),
    Column(
        "hydrogen_error",
        _F8,
        "",
        "how wrong hydrogen lines of the models are if the fit with hydrogen masked is right, over their depth; NaN "
        "where that fit has no weight in any case",
    ),
    Column("hydrogen_weight", _F8, "", "weight of the fit with hydrogen masked in the merged labels"),
    *RESIDUALS,
    Column("flags", _I4, "", "bits of hotdask.flags.Flag raised by the fit"),
)
"""One row per cube row: both fits before anything is merged, scaled or cut."""

_LABEL_COLUMNS = tuple(
    column
    for lb in LABELS
    for column in (
        Column(lb.name, _F8, lb.unit, lb.doc),
        Column(
            f"{lb.name}_err",
            _F8,
            lb.unit,
            f"1-sigma error of {lb.name}, formal but within the label's limits, scaled to the scatter of repeat visits",
        ),
        Column(f"{lb.name}_all", _F8, lb.unit, f"{lb.doc}, all-lines fit, raw"),
        Column(f"{lb.name}_hmasked", _F8, lb.unit, f"{lb.doc}, fit with hydrogen masked, raw"),
    )
)

_FROM_SPECTRA = ("specid", "obsid", "fitsname", "ra", "dec", "snr_g", "rv", "rv_err", "mjd")
_SPECTRA_BY_NAME = {c.name: c for c in SPECTRA}

CATALOG: tuple[Column, ...] = (
    *(_SPECTRA_BY_NAME[n] for n in _FROM_SPECTRA[:5]),
    Column("star_id", _STR, "", "Sdddmmss±ddmmss from the position of the star's best spectrum"),
    Column("uniqflag", _I4, "", "1 = the star's spectrum of highest S/N; 2, 3, … its other visits by falling S/N"),
    *(_SPECTRA_BY_NAME[n] for n in _FROM_SPECTRA[5:]),
    *_LABEL_COLUMNS,
    *(Column(f"corr_{a}_{b}", _F8, "", f"correlation of {a} and {b}") for a, b in CORRELATION_PAIRS),
    Column("chi2_red", _F8, "", "reduced chi-square of all lines at the merged labels"),
    Column(
        "chi2ratio",
        _F8,
        "",
        "(chi2_red − median at this Teff and S/N) / dispersion there; above 10 = bad fit",
    ),
    *RESIDUALS,
    Column("flags", _I4, "", "bits of hotdask.flags.Flag"),
    Column("in_sample", pa.bool_(), "", "passes the cuts of the sample (Teff, S/N, a fit exists)"),
)


def _compared_columns(suffix: str) -> tuple[Column, ...]:
    model = f"the emulator {suffix}" if suffix in SHIPPED else "the emulator that fit.compare names"
    labels = [LABELS[INDEX[name]] for name in COMPARED_LABELS]
    return (
        *(
            column
            for lb in labels
            for column in (
                Column(f"{lb.name}_{suffix}", _F8, lb.unit, f"{lb.doc}, by {model}"),
                Column(
                    f"{lb.name}_{suffix}_err",
                    _F8,
                    lb.unit,
                    f"1-sigma error of {lb.name}_{suffix}; in fits formal, in the catalog scaled as {lb.name}_err is",
                ),
            )
        ),
        Column(f"chi2_red_{suffix}", _F8, "", f"reduced chi-square of all lines at the labels by {model}"),
        Column(f"flags_{suffix}", _I4, "", f"bits of hotdask.flags.Flag raised by the fit with {model}"),
    )


COMPARED: dict[str, tuple[Column, ...]] = {suffix: _compared_columns(suffix) for suffix in (*SHIPPED, FROM_FILE)}
"""Columns that fits and catalog have behind the others where ``fit.compare`` names a second emulator, by its suffix.

The same pixels, fitted and merged in the same way; both share the noise, so that their difference has a smaller error
than either.
"""


def fits_columns(compared: str | None = None) -> tuple[Column, ...]:
    """Columns of the fits of a run; ``compared`` as `hotdask.config.Fit.compared`."""
    return FITS if compared is None else (*FITS, *COMPARED[compared])


def catalog_columns(compared: str | None = None) -> tuple[Column, ...]:
    """Columns of the catalog of a run, but for what is joined or carried along; ``compared`` as in `fits_columns`.

    Examples
    --------
    >>> [c.name for c in catalog_columns("lte")][-2:]
    ['chi2_red_lte', 'flags_lte']
    """
    return CATALOG if compared is None else (*CATALOG, *COMPARED[compared])


SOURCES: tuple[Column, ...] = (
    Column("source_class", pa.bool_(), "", "candidate by its pipeline class, O, B or A"),
    Column("source_hot", pa.bool_(), "", "candidate by the list of hot stars (Gaia and 2MASS)"),
    Column("source_ob", pa.bool_(), "", "candidate by the catalog of OB stars"),
)
"""Where a candidate comes from."""

JOINED: tuple[Column, ...] = (
    *SOURCES,
    Column("gaia_id", _I8, "", "Gaia source id of the nearest match; -1 where there is none"),
    Column("gaia_separation", _F8, "arcsec", "distance of that match on the sky"),
    Column("parallax", _F8, "mas", "Gaia parallax"),
    Column("parallax_error", _F8, "mas", "uncertainty of parallax"),
    Column("parallax_over_error", _F8, "", "parallax divided by its uncertainty"),
    Column("pmra", _F8, "mas/yr", "Gaia proper motion in RA, times cos(Dec)"),
    Column("pmra_error", _F8, "mas/yr", "uncertainty of pmra"),
    Column("pmdec", _F8, "mas/yr", "Gaia proper motion in Dec"),
    Column("pmdec_error", _F8, "mas/yr", "uncertainty of pmdec"),
    Column("ruwe", _F8, "", "Gaia renormalized unit weight error"),
    Column("r_geo", _F8, "pc", "geometric distance"),
    Column("r_geo_low", _F8, "pc", "16th percentile of r_geo"),
    Column("r_geo_high", _F8, "pc", "84th percentile of r_geo"),
    Column("fidelity", _F8, "", "astrometric fidelity, 0 (spurious) to 1"),
    Column("ebv", _F8, "mag", "reddening E(B-V)"),
    *(Column(b, _F8, "mag", f"Gaia {b.upper()} magnitude") for b in ("g", "bp", "rp")),
    *(Column(b, _F8, "mag", f"2MASS {b.capitalize()} magnitude") for b in ("j", "h", "ks")),
    Column("m_ks", _F8, "mag", "absolute magnitude in Ks, from r_geo, A_Ks = 0.34 E(B-V)"),
    Column("bp_rp_0", _F8, "mag", "intrinsic color, with A_BP = 3.24 E(B-V), A_RP = 1.91 E(B-V)"),
    Column("teff_independent", _F8, "K", "effective temperature from another method"),
)
"""Columns a catalog has where the input table or ``[join]`` gives them, behind its own."""

MODEL_ERROR: tuple[Column, ...] = (
    Column("wavelength", _F8, "Angstrom", "rest frame, vacuum"),
    Column("model_error", _F8, "", "error of the models, continuum = 1"),
    Column("n", _I8, "", "residuals it rests on, those of neighboring pixels included"),
)
"""What `hotdask model-error` learns."""

TRUTH: tuple[Column, ...] = (
    Column("specid", _STR, "", "date-planid-spid-fiberid"),
    Column("star", _I8, "", "number of the simulated star"),
    *(Column(f"{lb.name}_true", _F8, lb.unit, f"true {lb.doc}") for lb in LABELS),
    *(Column(f"{lb.name}_crb", _F8, lb.unit, f"Cramér-Rao bound of {lb.name}, all lines") for lb in LABELS),
    Column("rv_true", _F8, "km/s", "velocity the spectrum was shifted by"),
    Column("ebv", _F8, "mag", "reddening E(B-V)"),
    *(Column(n, _F8, "Angstrom", f"line-spread coefficient {n} of this spectrum") for n in LSF_NAMES),
)
"""What a simulated survey was made with."""


def arrow_schema(columns: tuple[Column, ...], *, carried: pa.Schema | None = None) -> pa.Schema:
    """Arrow schema of a table, units and meanings in field metadata; behind declared columns those carried along, which
    are as `JOINED` declares them where it does.

    Examples
    --------
    >>> arrow_schema(CATALOG).field("teff").metadata[b"unit"]
    b'K'
    """
    fields = [c.field() for c in columns]
    joined = {c.name: c for c in JOINED}
    for field in carried or ():
        said = {"unit": "", "description": "carried from the input table"}
        fields.append(joined[field.name].field() if field.name in joined else field.with_metadata(said))
    return pa.schema(fields)


def empty_frame(columns: tuple[Column, ...]) -> pd.DataFrame:
    """A pandas frame with the right columns and dtypes and no rows (Dask's ``meta``)."""
    return arrow_schema(columns).empty_table().to_pandas()


def to_table(frame: pd.DataFrame, columns: tuple[Column, ...], *, extra: tuple[str, ...] = ()) -> pa.Table:
    """Arrow table of a frame, cast to the declared types, in the declared order.

    Parameters
    ----------
    frame : pandas.DataFrame
        Must hold every declared column.
    columns : tuple of Column
        What to write.
    extra : tuple of str
        Undeclared columns to keep behind the declared ones (carried along from the user's input table).

    Raises
    ------
    RunError
        If a declared column is missing.
    """
    missing = [c.name for c in columns if c.name not in frame.columns]
    if missing:
        raise RunError(f"table lacks the columns {missing}; this is a bug in the step that made it")
    carried = pa.schema([(name, pa.Array.from_pandas(frame[name]).type) for name in extra])
    schema = arrow_schema(columns, carried=carried)
    return pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False).replace_schema_metadata()


def to_frame(table: pa.Table) -> pd.DataFrame:
    """The table in pandas, with integers that have gaps as nullable integers: a 19-digit id does not survive a float.

    Examples
    --------
    >>> to_frame(pa.table({"id": [2**61 + 1, None], "n": [1, 2]})).dtypes.astype(str).tolist()
    ['Int64', 'int64']
    """
    frame = table.to_pandas()
    for name in (f.name for f in table.schema if f.type in _NULLABLE and table[f.name].null_count):
        frame[name] = table[name].to_pandas(types_mapper=_NULLABLE.get)
    return frame


def pack_covariance(covariance: np.ndarray) -> pa.FixedSizeListArray:
    """(n, 11, 11) float64 covariances as an Arrow fixed-size-list column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(covariance).ravel()), COVARIANCE_SIZE)


def unpack_covariance(column: pa.ChunkedArray) -> np.ndarray:
    """(n, 11, 11) float64 covariances of an Arrow column made by `pack_covariance`."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, N_LABELS, N_LABELS)
