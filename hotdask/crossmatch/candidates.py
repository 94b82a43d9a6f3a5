"""The list of candidates: spectra of pipeline class O, B or A, and those at the place of a known hot star."""

import os
import string
from collections.abc import Callable, Mapping

import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client

from hotdask import config
from hotdask.cluster.client import open_client
from hotdask.crossmatch.neighbors import match_nearest, need_columns, read_sky
from hotdask.errors import InputError
from hotdask.readers.classes import are_selected
from hotdask.readers.columns import angles, find_column, numbers
from hotdask.readers.inputs import RESERVED
from hotdask.readers.usertables import Piece, column_units, list_pieces, plain_types, read_pieces
from hotdask.schema import SOURCES
from hotdask.store.usertable import write_user_table

_FLAGS = {"hot": "source_hot", "ob": "source_ob"}


def find_candidates(
    settings: config.CandidateSettings, *, client: Client | None = None, echo: Callable[[str], None] = print
) -> dict[str, int]:
    """Make the table of candidates; it can be the ``[input] table`` of a run.

    Parameters
    ----------
    settings : hotdask.config.CandidateSettings
    client : distributed.Client, optional
        Cluster to use; default: the one ``settings.cluster`` describes.
    echo : callable
        Told what happens, a line at a time.

    Returns
    -------
    dict
        Spectra of the survey, candidates, and those of each source.

    Raises
    ------
    InputError
        If a table cannot be read, lacks a column, or no candidate is found.

    References
    ----------
    Xiang et al. 2022, §2.
    """
    survey = settings.survey
    fields = _fields(survey.path)
    carried = list(dict.fromkeys([*fields, *survey.keep]))
    lists = _lists(settings)
    if client is None:
        with open_client(settings.cluster, echo) as client:
            return _find(settings, carried, lists, client, echo)
    return _find(settings, carried, lists, client, echo)


def _find(settings, carried, lists, client: Client, echo) -> dict[str, int]:
    survey, pieces = settings.survey, list_pieces(settings.survey.table)
    options = {"survey": survey, "carried": carried, "units": column_units(survey.table)}
    with client.as_current():
        meta = read_survey(pieces[0], **options).iloc[:0]
        spectra = dd.from_map(read_survey, pieces, **options, meta=meta, label="read-survey")
        total = spectra.map_partitions(len, meta=pd.Series([], dtype="int64"))
        matched = match_nearest(spectra, lists, radius=settings.radius) if lists else spectra
        kept = matched.map_partitions(select_candidates, list(lists))
        total, frame = dd.compute(total, kept)
    frame = frame.reset_index(drop=True)
    counts = {"spectra": int(np.sum(total))}
    if not len(frame):
        raise InputError(f"none of {counts['spectra']} spectra of {survey.table} is a candidate; check the settings")
    out = finish_candidates(frame, survey)
    counts["candidates"] = len(out)
    counts |= {column.name: int(out[column.name].sum()) for column in SOURCES}
    write_user_table(settings.out, out)
    found = ", ".join(f"{counts[column.name]} {column.name}" for column in SOURCES)
    echo(f"{settings.out}: {counts['candidates']} of {counts['spectra']} spectra are candidates ({found})")
    if len(out) < len(frame):
        echo(
            f"{len(frame) - len(out)} rows of {survey.table} name the file of another candidate and were left out; if "
            f"they are other spectra, survey.path = '{survey.path}' does not tell them apart"
        )
    return counts


def _fields(path: str) -> list[str]:
    """Columns that a path is made of."""
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(path) if name]
    except ValueError as error:
        raise InputError(f"survey.path = '{path}' is no pattern ({error}); write columns as {{planid}}") from error
    return list(dict.fromkeys(fields)) or [path]


def _lists(settings: config.CandidateSettings) -> dict[str, dd.DataFrame]:
    common = {"epoch": settings.survey.epoch, "radius": settings.radius}
    lists = {}
    if settings.hot is not None:
        hot, limit = settings.hot, settings.hot.max_m_ks
        columns = []
        if limit != float("inf"):
            units = column_units(hot.table)
            columns = [hot.m_ks] if find_column(units, hot.m_ks) else [hot.ks, hot.parallax]
            if None in (find_column(units, name) for name in columns):
                raise InputError(
                    f"hot.table = '{hot.table}' has neither '{hot.m_ks}' nor '{hot.ks}' and '{hot.parallax}'; name its "
                    "columns in [hot], or set max_m_ks = inf if it holds nothing else"
                )
        lists["hot"] = read_sky(hot, columns=columns, select=Brighter(hot, columns), section="hot", **common)
    if settings.ob is not None:
        lists["ob"] = read_sky(settings.ob, section="ob", **common)
    return {name: frame[["cell", "_ra", "_dec"]] for name, frame in lists.items()}


class Brighter:
    """Takes rows of a list of hot stars that are brighter in Ks than its limit."""

    def __init__(self, hot: config.HotTable, columns: list[str]):
        units = column_units(hot.table)
        wanted = ["mag", "mas"] if len(columns) == 2 else ["mag"]
        theirs = [find_column(units, name) for name in columns]
        self.limit, self.where = hot.max_m_ks, f"hot.table = '{hot.table}'"
        self.columns = [(name, units[name], unit) for name, unit in zip(theirs, wanted, strict=False)]

    def __call__(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows below the limit; without a positive parallax there is no magnitude."""
        if not self.columns:
            return frame
        values = [numbers(frame[name], self.where, unit=unit, stored=stored) for name, stored, unit in self.columns]
        if len(values) == 2:
            parallax = np.where(values[1] > 0, values[1], np.nan)
            values = [values[0] + 5 * np.log10(parallax / 100)]
        return frame[values[0] < self.limit]


def read_survey(
    pieces: tuple[Piece, ...], *, survey: config.SurveyTable, carried: list[str], units: Mapping[str, str]
) -> pd.DataFrame:
    """``ra``, ``dec`` [deg], ``source_class``, and carried columns (as ``_NAME``) of pieces of the survey's table."""
    named = need_columns(units, [survey.ra, survey.dec, *survey.class_columns, *carried], survey, "survey")
    frame = read_pieces(pieces, list(named.values()))
    where = f"survey.table = '{survey.table}'"
    ra, dec = (
        angles(frame[named[name]], where, stored=units[named[name]], hours=name == survey.ra)
        for name in (survey.ra, survey.dec)
    )
    out = pd.DataFrame({"ra": ra, "dec": dec})
    classes = pd.DataFrame({name: frame[named[name]] for name in survey.class_columns})
    out["source_class"] = are_selected(classes, survey.class_columns, survey.classes).to_numpy(bool)
    return out.assign(**{f"_{name}": frame[named[name]] for name in carried})


def select_candidates(frame: pd.DataFrame, lists: list[str]) -> pd.DataFrame:
    """Rows of at least one source, with the flags of all three."""
    for name, flag in _FLAGS.items():
        frame = frame.assign(**{flag: frame[f"{name}_separation"].notna() if name in lists else False})
    return frame[frame[[column.name for column in SOURCES]].any(axis=1)]


def finish_candidates(frame: pd.DataFrame, survey: config.SurveyTable) -> pd.DataFrame:
    """The table as it is written: ``path``, position, flags, separations, carried columns; in order of path."""
    carried = plain_types(frame[[c for c in frame.columns if c.startswith("_")]]).rename(columns=lambda c: c[1:])
    folder = os.path.dirname(os.path.abspath(survey.table))
    fields = _fields(survey.path)
    if fields == [survey.path]:
        paths = carried[survey.path].astype("str").str.strip()
    else:
        try:
            rows = carried[fields].astype(object).to_dict("records")
            paths = pd.Series([survey.path.format_map(row) for row in rows], index=frame.index)
        except (ValueError, TypeError) as error:
            raise InputError(f"survey.path = '{survey.path}' does not suit the columns ({error})") from error
    out = pd.DataFrame({"path": [os.path.normpath(os.path.join(folder, path)) for path in paths]}, index=frame.index)
    shown = ["ra", "dec", *(column.name for column in SOURCES)]
    shown += [f"{name}_separation" for name in _FLAGS if f"{name}_separation" in frame]
    out = out.join(frame[shown])
    for name in survey.keep:
        # A run writes columns of these names itself.
        out[f"input_{name}" if name in RESERVED or name in out else name] = carried[name]
    return out.sort_values(["path", "ra", "dec"]).drop_duplicates("path").reset_index(drop=True)
