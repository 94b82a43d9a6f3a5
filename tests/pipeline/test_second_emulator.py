"""Runs with a second emulator beside the first: what it adds to the catalog, what stays, what is refused."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from astropy.units import UnitsWarning
from distributed import Client

from hotdask.config import Settings
from hotdask.emulator import LowRankEmulator, load_emulator, save_emulator
from hotdask.errors import EmulatorError, InputError, SettingsError
from hotdask.labels import COMPARED_LABELS
from hotdask.pipeline.estimate import measure, worker_memory
from hotdask.pipeline.execute import run
from hotdask.pipeline.status import status
from hotdask.pipeline.verify import verify
from hotdask.readers.inputs import list_inputs
from hotdask.schema import CATALOG, COMPARED, FITS
from hotdask.shipped import DEFAULT_EMULATOR
from hotdask.store.catalog import read_catalog, read_provenance
from hotdask.store.export import export_catalog

N = 64


def quiet(line: str) -> None:
    """An echo that says nothing."""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An emulator whose hydrogen lines, and all others, are a little deeper than those of the default."""
    emulator = load_emulator()
    arrays = emulator.arrays | {
        name: (1.05 * (array - 1) + 1 if name == "mean" else 1.05 * array).astype(np.float32)
        for name, array in emulator.arrays.items()
        if name in ("mean", "basis")
    }
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_emulator(LowRankEmulator(arrays, emulator.card), path)
    return path


@pytest.fixture(scope="module")
def compared(other: Path, client: Client, settings_for, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A finished run with the other emulator as the second."""
    out = tmp_path_factory.mktemp("compared") / "RUN"
    settings = settings_for(out, fit__compare=str(other), input__limit=N)
    run(settings, client=client, echo=quiet)
    return settings


def test_the_same_emulator_finds_the_same(client: Client, settings_for, tmp_path: Path) -> None:
    name = DEFAULT_EMULATOR
    settings = settings_for(tmp_path / "RUN", fit__compare=name, fit__refit_rv=True, input__limit=N)
    summary = run(settings, until="catalog", client=client, echo=quiet)
    catalog = read_catalog(tmp_path / "RUN")
    assert catalog["teff"].notna().sum() > 0.9 * len(catalog)
    for label in COMPARED_LABELS:
        np.testing.assert_array_equal(catalog[f"{label}_{name}"], catalog[label])
        np.testing.assert_array_equal(catalog[f"{label}_{name}_err"], catalog[f"{label}_err"])
    np.testing.assert_array_equal(catalog[f"chi2_red_{name}"], catalog["chi2_red"])
    # Bits of the first are those of the fit, and those that its residuals and the survey raise.
    assert ((catalog["flags"] & catalog[f"flags_{name}"]) == catalog[f"flags_{name}"]).all()
    identity = load_emulator().id
    assert summary["emulator"] == f"{identity}+compare:{identity}"


def test_another_finds_what_a_run_with_it_finds(
    compared: Settings, other: Path, finished, client: Client, settings_for, tmp_path: Path
) -> None:
    catalog = read_catalog(compared.out).set_index("specid")
    alone = settings_for(tmp_path / "RUN", fit__emulator=str(other), input__limit=N)
    run(alone, until="catalog", client=client, echo=quiet)
    theirs = read_catalog(tmp_path / "RUN").set_index("specid").loc[catalog.index]
    for name in (*COMPARED_LABELS, "chi2_red"):
        np.testing.assert_array_equal(catalog[f"{name}_compare"], theirs[name])
    for name in COMPARED_LABELS:
        # So few repeats scale no error.
        np.testing.assert_array_equal(catalog[f"{name}_compare_err"], theirs[f"{name}_err"])
    differs = catalog["teff_compare"] != catalog["teff"]
    assert differs.sum() > 0.9 * len(catalog)
    assert catalog["chi2_red_compare"].median() > catalog["chi2_red"].median()
    # The first knows nothing of the second.
    plain = read_catalog(finished.folder).set_index("specid").loc[catalog.index]
    for name in ("teff", "logg", "chi2_red", "rv_shift", "halpha_excess", "binary_score"):
        np.testing.assert_array_equal(catalog[name], plain[name])


def test_every_part_has_its_columns_and_says_what_they_are(compared: Settings) -> None:
    folder = Path(compared.out)
    for table, columns in (("catalog", CATALOG), ("fits", FITS)):
        for part in sorted((folder / table).glob("*.parquet")):
            schema = pq.read_schema(part)
            declared = (*columns, *COMPARED["compare"])
            assert schema.names == [c.name for c in declared]
            for column in declared:
                assert schema.field(column.name).metadata[b"unit"].decode() == column.unit
                assert schema.field(column.name).metadata[b"description"].decode() == column.doc
    provenance = read_provenance(folder)
    assert provenance["emulator"] == f"{load_emulator().id}+compare:{load_emulator(compared.fit.compare).id}"
    assert provenance["settings"]["fit"]["compare"] == compared.fit.compare
    assert verify(folder, echo=quiet) == []
    assert "go on with" not in status(folder)


def test_without_one_nothing_is_added(finished) -> None:
    assert pq.read_schema(next((finished.folder / "catalog").glob("*.parquet"))).names == [c.name for c in CATALOG]
    assert pq.read_schema(next((finished.folder / "fits").glob("*.parquet"))).names == [c.name for c in FITS]
    assert "compare:" not in finished.summary["emulator"]
    assert 'id="compared"' not in (finished.folder / "report" / "index.html").read_text(encoding="utf-8")


def test_a_lost_part_is_made_again(compared: Settings, client: Client, hashes) -> None:
    folder = Path(compared.out)
    before = hashes(folder / "fits"), hashes(folder / "catalog_versions")
    (folder / "fits" / "part-00001.parquet").unlink()
    lines: list[str] = []
    run(compared, until="catalog", client=client, echo=lines.append)
    assert any(line.startswith("fit 1 is done again") for line in lines)
    assert (hashes(folder / "fits"), hashes(folder / "catalog_versions")) == before


def test_a_part_that_lacks_them_is_found(compared: Settings, tmp_path: Path) -> None:
    shutil.copytree(compared.out, tmp_path / "RUN", symlinks=True)
    part = tmp_path / "RUN" / "fits" / "part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["teff_compare"]), part)
    problems = verify(tmp_path / "RUN", echo=quiet)
    assert [p for p in problems if p.endswith("column teff_compare is not double with its unit")]


def test_another_second_emulator_is_refused(compared: Settings, other: Path, client: Client) -> None:
    for fit in ({"compare": None}, {"compare": DEFAULT_EMULATOR}):
        changed = compared.model_copy(update={"fit": compared.fit.model_copy(update=fit)})
        with pytest.raises(SettingsError, match=rf"fit\.compare: '{other}' -> '?{fit['compare']}"):
            run(changed, client=client, echo=quiet)
    # Other weights under the same name.
    content = other.read_bytes()
    try:
        save_emulator(load_emulator(), other)
        with pytest.raises(SettingsError, match=r"fitted with emulator \w+\+compare:\w+, now it is \w+\+compare:"):
            run(compared, client=client, echo=quiet)
    finally:
        other.write_bytes(content)


@pytest.mark.parametrize("ending", [".fits", ".vot", ".csv"])
def test_exports_have_them(compared: Settings, tmp_path: Path, ending: str) -> None:
    export_catalog(compared.out, tmp_path / f"all{ending}")
    with warnings.catch_warnings():
        # Units such as dex(cm/s2) are the field's.
        warnings.simplefilter("ignore", UnitsWarning)
        table = Table.read(tmp_path / f"all{ending}")
    names = [c.name for c in COMPARED["compare"]]
    assert set(names) <= set(table.colnames)
    if ending != ".csv":
        assert [str(table[n].unit) for n in ("teff_compare", "vsini_compare_err")] == ["K", "km / s"]


def test_the_report_draws_the_differences(compared: Settings) -> None:
    text = Path(compared.out, "report", "index.html").read_text(encoding="utf-8")
    section = text.split('<section id="compared">')[1].split("</section>")[0]
    assert section.count("<img") == 1
    assert "Differences of 5 labels of " in section
    assert "teff_compare" in section


def test_an_emulator_that_is_not_there_is_refused_before_anything(settings_for, tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "RUN", fit__compare="ltee")
    with pytest.raises(EmulatorError, match=r"ltee: cannot read the emulator .*name of a shipped one"):
        run(settings, echo=quiet)
    assert not (tmp_path / "RUN").exists()


def test_an_input_table_may_not_have_its_columns(tmp_path: Path, survey, settings_for) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"path,teff_compare\n{survey.good[0]},9000\n")
    with pytest.raises(InputError, match="columns that hotdask writes itself: teff_compare"):
        list_inputs(settings_for(tmp_path / "RUN", table=table).input)


def test_an_estimate_allows_for_it(compared: Settings, settings_for, tmp_path: Path) -> None:
    plain = settings_for(tmp_path / "RUN", input__limit=N)
    assert worker_memory(compared) > worker_memory(plain)
    entries = list_inputs(plain.input)
    assert measure(compared, entries, 1).cpu > 1.3 * measure(plain, entries, 1).cpu
