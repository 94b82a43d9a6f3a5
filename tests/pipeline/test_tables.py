"""From fits to catalog, against the formulas of the paper written out row by row."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from distributed import Client

from hotdask import schema
from hotdask.errors import InputError
from hotdask.flags import Flag
from hotdask.labels import CORRELATION_PAIRS, INDEX, LABEL_NAMES, LABELS
from hotdask.pipeline import tables
from hotdask.pipeline.covariance import read_covariance
from hotdask.steps.flag import Chi2Model
from hotdask.steps.repeats import make_pairs
from hotdask.steps.scale import ErrorScale
from hotdask.store.catalog import read_catalog
from hotdask.store.grouped import read_group
from hotdask.store.parquet import list_parts


@pytest.fixture(scope="module")
def fits(finished) -> pd.DataFrame:
    return pd.concat([pq.read_table(p).to_pandas() for p in list_parts(finished.folder / "fits")], ignore_index=True)


@pytest.fixture(scope="module")
def catalog(finished) -> pd.DataFrame:
    return read_catalog(finished.folder)


def merge_one(row: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Eq 5 for one spectrum, at the weight of Eqs 6-7 where neither a check nor the other temperature is in the way."""
    everything, masked = (np.array([row[f"{n}_{w}"] for n in LABEL_NAMES]) for w in ("all", "hmasked"))
    c_all, c_masked = (np.reshape(row[f"covariance_{w}"], (11, 11)) for w in ("all", "hmasked"))
    x = masked[0] - 9500
    length = 5000 if everything[0] > 9500 else 3000
    w = row["hydrogen_weight"]
    paper = np.cos(np.pi * x / length) ** 2 if abs(x) <= length / 2 else 0.0
    assert 0 <= w <= paper * max(0, 1 - 5.3 / row["hydrogen_gain"]) + 1e-12 if row["hydrogen_gain"] > 0 else w == 0
    return w * masked + (1 - w) * everything, w**2 * c_masked + (1 - w**2) * c_all


def test_rows_of_the_catalog_are_rows_of_the_cube(finished, fits: pd.DataFrame, catalog: pd.DataFrame) -> None:
    assert fits["row"].tolist() == list(range(240))
    spectra = pd.concat([pd.read_parquet(p) for p in list_parts(finished.folder / "spectra")], ignore_index=True)
    assert catalog["specid"].tolist() == fits["specid"].tolist() == spectra["specid"].tolist()
    for name in ("obsid", "fitsname", "ra", "dec", "snr_g", "rv", "rv_err", "mjd"):
        np.testing.assert_array_equal(catalog[name], spectra[name])


def test_labels_and_correlations_are_merged(fits: pd.DataFrame, catalog: pd.DataFrame) -> None:
    merged = [merge_one(row) for _, row in fits.iterrows()]
    labels, covariance = (np.array(part) for part in zip(*merged, strict=True))
    expected = pd.DataFrame(labels, columns=list(LABEL_NAMES))
    expected["vsini"] = expected["vsini"].clip(lower=0)
    np.testing.assert_allclose(catalog[list(LABEL_NAMES)], expected, rtol=1e-9, atol=1e-12)
    for which in ("all", "hmasked"):
        columns = [f"{name}_{which}" for name in LABEL_NAMES]
        np.testing.assert_array_equal(catalog[columns], fits[columns])
    sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    for a, b in CORRELATION_PAIRS:
        i, j = INDEX[a], INDEX[b]
        np.testing.assert_allclose(
            catalog[f"corr_{a}_{b}"], covariance[:, i, j] / sigma[:, i] / sigma[:, j], rtol=1e-9, atol=1e-12
        )


def test_errors_are_scaled_by_what_the_summary_says(finished, fits: pd.DataFrame, catalog: pd.DataFrame) -> None:
    summary = json.loads((finished.folder / "run.json").read_text())
    scale = ErrorScale.from_dict(summary["catalog"]["error_scale"])
    sigma = np.sqrt([np.diag(merge_one(row)[1]) for _, row in fits.iterrows()])
    limits = np.array([lb.ceiling - lb.floor for lb in LABELS]) / np.sqrt(12)
    assert (sigma > limits).any()
    sigma = np.minimum(sigma, limits)
    factors = scale.factors(catalog["teff"], catalog["snr_g"])
    assert not np.allclose(factors, 1)
    np.testing.assert_allclose(catalog[[f"{n}_err" for n in LABEL_NAMES]], sigma * factors, rtol=1e-9)


def test_covariances_have_the_errors_of_the_catalog_and_the_correlations_of_the_fit(
    finished, fits: pd.DataFrame, catalog: pd.DataFrame
) -> None:
    rows = [230, 3, 117, 3, 60]
    covariance = read_covariance(finished.folder, catalog["specid"].iloc[rows].tolist())
    sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    np.testing.assert_allclose(sigma, catalog[[f"{n}_err" for n in LABEL_NAMES]].iloc[rows], rtol=1e-12)
    correlation = covariance / (sigma[:, :, None] * sigma[:, None, :])
    for row, found in zip(rows, correlation, strict=True):
        formal = merge_one(fits.iloc[row])[1]
        root = np.sqrt(np.diag(formal))
        np.testing.assert_allclose(found, formal / np.outer(root, root), rtol=1e-9, atol=1e-12)
    assert read_covariance(finished.folder, []).shape == (0, 11, 11)
    with pytest.raises(InputError, match="no specid nobody"):
        read_covariance(finished.folder, [catalog["specid"].iloc[0], "nobody"])


def test_stars_are_those_of_the_simulation(finished, survey, catalog: pd.DataFrame) -> None:
    both = catalog.merge(survey.truth[["specid", "star"]], on="specid")
    assert (both.groupby("star")["star_id"].nunique() == 1).all()
    assert (both.groupby("star_id")["star"].nunique() == 1).all()
    for _, visits in catalog.groupby("star_id"):
        ranked = visits.sort_values("snr_g", ascending=False)
        assert ranked["uniqflag"].tolist() == list(range(1, len(visits) + 1))
    # Some star's visits must lie in two partitions, or the test above tests too little.
    part = np.arange(len(catalog)) // finished.settings.cube.partition_size
    repeated = catalog.assign(part=part)[catalog["star_id"].duplicated(keep=False)]
    assert (repeated.groupby("star_id")["part"].nunique() > 1).any() or len(repeated) > 50


def test_stars_split_by_a_border_are_found(
    client: Client, finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of one row: every visit is in a partition of its own."""
    spectra = read_catalog(finished.folder, columns=["specid", "ra", "dec", "snr_g", "star_id", "uniqflag"])
    for number in range(12):
        folder = tmp_path / "spectra"
        folder.mkdir(exist_ok=True)
        repeated = spectra[spectra["star_id"].duplicated(keep=False)].sort_values("star_id")
        row = repeated.iloc[number : number + 1][["specid", "ra", "dec", "snr_g"]]
        row.to_parquet(folder / f"part-{number:05d}.parquet")
    with client.as_current():
        n = tables.find_stars(tmp_path, [range(5), range(5, 12)], [1] * 12, 3.0)
    chosen = repeated.iloc[:12]
    found = pd.concat([read_group(tmp_path / tables.STARS, g) for g in range(12)], ignore_index=True)
    assert n == chosen["star_id"].nunique() < 12
    assert found["star_id"].tolist()[:6] == chosen["star_id"].tolist()[:6]
    assert found["hotdask:repeated"].sum() >= 10


def test_pairs_are_counted_as_they_lie(finished, catalog: pd.DataFrame) -> None:
    """The shuffle must neither lose nor repeat a pair."""
    summary = json.loads((finished.folder / "run.json").read_text())
    usable = catalog[catalog["flags"] & int(Flag.AT_BOUND) == 0]
    pairs = make_pairs(usable, snr_tolerance=finished.settings.catalog.pair_snr_tolerance)
    expected = 0
    for _, visits in usable.groupby("star_id"):
        for i in range(len(visits)):
            for j in range(i):
                a, b = visits.iloc[i], visits.iloc[j]
                close = abs(a.snr_g - b.snr_g) <= 0.2 * max(a.snr_g, b.snr_g)
                expected += bool(a.mjd != b.mjd and close)
    assert expected > 20
    assert abs(len(pairs) - expected) <= 3
    assert summary["catalog"]["repeat_pairs"] == len(pairs[pairs["teff"].notna()])


def test_chi2ratio_is_what_the_summary_says(finished, catalog: pd.DataFrame) -> None:
    summary = json.loads((finished.folder / "run.json").read_text())
    model = Chi2Model.from_dict(summary["catalog"]["chi2_model"])
    ratio = model.ratio(catalog["teff"], catalog["snr_g"], catalog["chi2_red"])
    assert np.isfinite(ratio).sum() >= 10
    np.testing.assert_allclose(catalog["chi2ratio"], ratio, rtol=1e-12)


def test_a_partition_read_for_the_catalog_has_what_dask_expects(finished) -> None:
    frame = tables.read_merged(3, run=str(finished.folder))
    assert len(frame) == 32
    assert frame.columns.tolist() == [
        *(c.name for c in schema.CATALOG if c.name not in ("chi2ratio", "in_sample")),
        "hotdask:repeated",
    ]
    empty = schema.empty_frame(tuple(c for c in schema.CATALOG if c.name in frame.columns))
    assert frame.dtypes[empty.columns].astype(str).tolist() == empty.dtypes.astype(str).tolist()
    # Signed here: a clipped vsini would bias what repeats say.
    signed = [merge_one(row)[0][INDEX["vsini"]] for row in _rows(finished, 3)]
    np.testing.assert_allclose(frame["vsini"], signed, rtol=1e-9)


def _rows(finished, partition: int) -> list[pd.Series]:
    part = pq.read_table(list_parts(finished.folder / "fits")[partition]).to_pandas()
    return [row for _, row in part.iterrows()]


@pytest.fixture
def judged(finished) -> Callable[..., pd.DataFrame]:
    def make(**changed: object) -> pd.DataFrame:
        frame = tables.read_merged(0, run=str(finished.folder)).assign(**changed)
        return tables.finish(frame, None, None, finished.settings.catalog)

    return make


def test_without_models_errors_stay_formal_and_say_so(finished, judged: Callable) -> None:
    frame = tables.read_merged(0, run=str(finished.folder))
    out = judged()
    assert out.columns.tolist() == [c.name for c in schema.CATALOG]
    assert out["chi2ratio"].isna().all()
    formal = int(Flag.UNSCALED_ERRORS | Flag.NO_CHI2RATIO)
    assert (out["flags"] & formal == formal).all()
    errors = [f"{name}_err" for name in LABEL_NAMES]
    np.testing.assert_array_equal(out[errors], frame[errors])
    assert out["in_sample"].any()


def test_cut_rows_stay(judged: Callable) -> None:
    cool, faint, unknown = judged(teff=6999.0), judged(snr_g=np.float32(4.9)), judged(snr_g=np.float32("nan"))
    for out, flag in ((cool, Flag.COOL), (faint, Flag.LOW_SNR), (unknown, Flag.LOW_SNR)):
        assert len(out) == 32
        assert not out["in_sample"].any()
        assert (out["flags"] & int(flag) != 0).all()


def test_a_negative_vsini_is_given_as_0(judged: Callable) -> None:
    out = judged(vsini=-12.0)
    assert (out["vsini"] == 0).all()
    assert (out["flags"] & int(Flag.NEGATIVE_VSINI) != 0).all()
