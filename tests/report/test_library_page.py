"""What is found out about a library, and its page, on a store of real and of spoiled spectra."""

import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hotdask.errors import InputError
from hotdask.labels import INDEX, LABEL_NAMES
from hotdask.library.coverage import LINES, check_library, equivalent_width, nearest
from hotdask.library.spectra import N_FINE, fine_wavelength
from hotdask.library.synthe import read_npz
from hotdask.report.library import PAIRS, library_page, write_library_page
from hotdask.store.library import PART, create_library, n_parts, read_part, write_part

REASON = "no <structure> & no model"
N = 2 * PART


def check(path: Path):
    return check_library(partial(read_part, path), n_parts(path), name=path.name, provenance={"engine": "test"})


def synthetic(n: int = N) -> dict[str, np.ndarray]:
    """Variables of a sound library, a line of a known equivalent width in each spectrum."""
    rng = np.random.default_rng(4)
    labels = np.zeros((n, len(LABEL_NAMES)))
    labels[:, 0] = np.geomspace(7200, 42000, n)
    labels[:, 1] = 3.5 + 1.5 * rng.random(n)
    for name in ("vmic", "n_he", "fe_h", "c_h", "n_h", "o_h", "si_h", "s_h"):
        labels[:, INDEX[name]] = rng.random(n) - (0.5 if name.endswith("_h") else 0)
    wavelength = fine_wavelength()
    continuum = (5000 / wavelength) ** np.linspace(0.5, 4, n)[:, None]
    depth = np.linspace(0.2, 0.6, n)[:, None] * np.exp(-0.5 * ((wavelength - 4862.7) / 8) ** 2)
    return {
        "row": np.arange(n),
        "labels": labels,
        "flux": (continuum * (1 - depth)).astype(np.float32),
        "continuum": continuum.astype(np.float32),
        "status": np.ones(n, np.uint8),
        "seconds": np.ones(n, np.float32),
        "reason": np.full(n, "", object),
    }


def look(arrays: dict[str, np.ndarray]):
    parts = [{k: v[i : i + PART] for k, v in arrays.items()} for i in range(0, len(arrays["row"]), PART)]
    return check_library(parts.__getitem__, len(parts), name="x", provenance={})


def test_a_sound_library_has_no_problem() -> None:
    found = look(synthetic())
    assert found.problems == []
    assert found.counts == {"all": N, "made": N, "failed": 0, "planned": 0}
    np.testing.assert_allclose(found.rows["lowest"], 1 - np.linspace(0.2, 0.6, N), atol=1e-4)
    assert found.trends["n"].sum() == N


def spoil(name: str, rows: object, value: object, *more: tuple):
    def change(arrays: dict[str, np.ndarray]) -> None:
        for n, r, v in ((name, rows, value), *more):
            arrays[n][r] = v

    return change


def a_stale_file(arrays: dict[str, np.ndarray]) -> None:
    for name in ("flux", "continuum"):
        arrays[name][9] = arrays[name][40]


def twice(arrays: dict[str, np.ndarray]) -> None:
    arrays["labels"][[3, 50]] = arrays["labels"][7]


def saturated_to_nothing(arrays: dict[str, np.ndarray]) -> None:
    arrays["flux"][2, 1000] = 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (spoil("flux", 5, np.nan), "1 rows are called made but their flux is absent or not finite: 5"),
        (spoil("flux", (5, 100), np.inf), "1 rows are called made but their flux is absent or not finite: 5"),
        (spoil("flux", ([1, 2], 100), -0.1), "2 rows have negative flux: 1, 2"),
        (saturated_to_nothing, "1 rows fall below 0.001 of their continuum: 2"),
        (spoil("flux", (60, 100), 99.0), "1 rows rise above 1.5 times their continuum: 60"),
        (spoil("continuum", (7, 100), 0), "1 rows have a continuum that is not finite and positive: 7"),
        (spoil("continuum", (7, 100), np.nan), "1 rows have a continuum that is not finite and positive: 7"),
        (spoil("continuum", 7, np.nan), "1 rows lack the continuum that others have: 7"),
        (twice, "3 rows have the labels of another row: 3, 7, 50"),
        (a_stale_file, "the same flux in rows [9, 40] of different labels"),
        (spoil("labels", (4, 1), np.nan), "1 rows have labels that are not finite: 4"),
        (spoil("labels", (4, INDEX["vsini"]), 9), "1 rows have a vsini, which should be 0: 4"),
        (spoil("status", 4, 7), "1 rows have a status that does not exist: 4"),
        (spoil("reason", 4, "why"), "1 rows are called made but have a reason for failure: 4"),
        (spoil("status", 4, 2, ("flux", 4, np.nan)), "1 rows failed without a reason: 4"),
        (spoil("status", 4, 2, ("reason", 4, "why")), "1 rows failed but have flux: 4"),
        (spoil("status", 4, 0, ("flux", 4, np.nan)), f"1 of {N} syntheses are not made yet"),
        (
            spoil("status", range(4), 2, ("flux", range(4), np.nan), ("reason", range(4), "why")),
            f"4 of {N} syntheses failed: the library has holes",
        ),
    ],
)
def test_each_fault_is_told_and_nothing_else(change, says: str) -> None:
    arrays = synthetic()
    change(arrays)
    (problem,) = look(arrays).problems
    assert problem.startswith(says)


def test_no_continuum_at_all_is_no_fault() -> None:
    arrays = synthetic()
    arrays["continuum"][:] = np.nan
    found = look(arrays)
    assert found.problems == []
    assert all(np.isfinite(flux).all() for _, flux in found.spectra)


def test_a_part_that_cannot_be_read_is_told_and_the_others_are_looked_at() -> None:
    arrays = synthetic()

    def read(part: int) -> dict:
        if part == 0:
            raise InputError("part 0 is damaged")
        return {k: v[PART:] for k, v in arrays.items()}

    found = check_library(read, 2, name="x", provenance={})
    assert found.problems == ["part 0 is damaged"]
    assert found.rows["row"].tolist() == list(range(PART, N))


def test_nearest_against_all_distances() -> None:
    rng = np.random.default_rng(0)
    names = ("teff", "logg", "fe_h", "vmic", "n_he", "c_fe", "n_fe", "o_fe", "si_fe", "s_fe")
    table = pd.DataFrame(rng.random((50, 10)), columns=list(names))
    table["teff"] = 10 ** (4 + table["teff"])
    table["vmic"] = 2.0
    scaled = table.assign(teff=np.log(table["teff"]), vmic=0)
    scaled = (scaled / np.where(np.ptp(scaled, axis=0) > 0, np.ptp(scaled, axis=0), 1)).to_numpy()
    distance = np.linalg.norm(scaled[:, None] - scaled, axis=2) + 99 * np.eye(50)
    np.testing.assert_allclose(nearest(table), distance.min(axis=1))


def test_equivalent_width_of_a_gaussian_on_a_slope() -> None:
    wavelength = fine_wavelength()
    depth = np.array([[0.2], [0.6]])
    flux = 3e7 * (wavelength / 5000 - 0.3) * (1 - depth * np.exp(-0.5 * ((wavelength - 4862.7) / 8) ** 2))
    # A Gaussian's area, in closed form.
    np.testing.assert_allclose(
        equivalent_width(flux, *LINES["h_beta"]), depth[:, 0] * 8 * np.sqrt(2 * np.pi), rtol=1e-3
    )


def test_equivalent_width_of_nothing() -> None:
    np.testing.assert_allclose(equivalent_width(np.full((2, N_FINE), 3e7), *LINES["h_beta"]), 0, atol=1e-9)


@pytest.fixture(scope="module")
def real(library_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real library in a store, but for two that failed and a part that is not made."""
    library = read_npz(library_file)
    with np.load(library_file) as data:
        nodes = data["continuum"]
    x, step = np.log10(fine_wavelength()), np.linspace(3.5710, 3.9553, nodes.shape[1])
    path = tmp_path_factory.mktemp("real") / "synthe.zarr"
    create_library(path, library.labels, provenance={})
    for part in range(n_parts(path) - 1):
        rows = slice(part * PART, (part + 1) * PART)
        flux, reasons = library.flux[rows].copy(), [""] * PART
        continuum = np.stack([np.interp(x, step, node) for node in nodes[rows]])
        if part in (3, 7):
            flux[5], continuum[5], reasons[5] = np.nan, np.nan, REASON
        seconds = np.full(PART, 2.0)
        write_part(path, part, flux=flux, flux_lte=flux, continuum=continuum, seconds=seconds, reasons=reasons)
    return path


def test_the_real_library_shows_the_trends_of_stars(real: Path) -> None:
    found = check(real)
    assert found.counts == {"all": 480, "made": 446, "failed": 2, "planned": 32}
    assert found.reasons == {REASON: 2}
    strongest = found.trends.loc[found.trends[list(LINES)].idxmax(), "teff"].to_list()
    # Where Hβ and He I 4471 are strongest among dwarfs of solar composition: 8500 K and 20-22 kK.
    assert 8000 < strongest[0] < 9000
    assert 17500 < strongest[1] < 30000
    assert found.rows["highest"].max() < 1.001
    shown = found.rows.set_index("row").loc[[row for row, _ in found.spectra], "teff"]
    assert len(shown) >= 5
    assert shown.is_monotonic_increasing
    # SYNTHE's Ca II H and K cores, which fall to nothing in cool stars.
    told = next(p for p in found.problems if "fall below" in p)
    low = found.rows.loc[found.rows["lowest"] < 1e-3, "teff"]
    assert told.startswith(f"{len(low)} rows")
    assert low.max() < 10000


class Page(HTMLParser):
    """Collects what a browser would load, and the counts."""

    def __init__(self) -> None:
        super().__init__()
        self.links, self.images, self.counts = [], [], {}

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = dict(attributes)
        self.links += [values[a] for a in ("href", "src") if a in values]
        if tag == "img":
            self.images.append(values)
        if "data-n" in values:
            self.counts[values["id"]] = int(values["data-n"])


def test_the_page_of_the_real_library(real: Path, tmp_path: Path) -> None:
    found = check(real)
    write_library_page(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.counts == {"count-all": 480, "count-made": 446, "count-failed": 2, "count-planned": 32}
    assert all(link.startswith(("data:", "#")) for link in page.links)
    # Coverage, seconds, pairs, spectra, two lines.
    assert len(page.images) == 2 + len(PAIRS) + 1 + 2
    assert all(image["alt"] for image in page.images)
    assert "no &lt;structure&gt; &amp; no model" in text
    for problem in found.problems:
        assert re.sub("[`,]", ".", problem)[:30] in re.sub("[`,]", ".", text)
    assert len(text) < 3_000_000


@pytest.mark.parametrize("made", [0, 1])
def test_the_page_of_a_library_hardly_begun(made: int) -> None:
    arrays = synthetic(1)
    arrays["status"][:] = made
    if not made:
        arrays["flux"][:], arrays["seconds"][:] = np.nan, np.nan
    text = library_page(look(arrays))
    assert f'id="count-made" data-n="{made}"' in text
    assert ("No synthesis is made" in text) == (not made)


def test_the_page_of_a_library_of_which_nothing_can_be_read() -> None:
    def read(part: int) -> dict:
        raise InputError("damaged")

    text = library_page(check_library(read, 1, name="x", provenance={}))
    assert "<li>damaged</li>" in text
