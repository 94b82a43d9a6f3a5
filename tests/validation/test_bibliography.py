"""What the literature says of stars, and on which scale."""

import numpy as np
import pytest

from hotdask.errors import InputError
from hotdask.labels import ABUNDANCES, INDEX, LABEL_NAMES
from hotdask.library.abundances import abundances
from hotdask.validation.bibliography import (
    SUN,
    from_solar,
    known_labels,
    plain_name,
    read_bibliography,
    zero_point,
)

ATOMIC_NUMBER = {"c_h": 6, "n_h": 7, "o_h": 8, "si_h": 14, "s_h": 16, "fe_h": 26}


def test_the_sun_on_our_scale_has_its_own_atoms():
    # A star with the Sun's labels, converted, must be synthesized with the Sun's number of atoms per hydrogen atom.
    sun = np.array([5772, 4.44, 1, 2, 10**-1.0506, 0, 0, 0, 0, 0, 0])
    made_of = abundances(from_solar(sun))
    for name in ABUNDANCES:
        eps = 12 + np.log10(made_of[ATOMIC_NUMBER[name] - 1] / made_of[0])
        assert eps == pytest.approx(SUN[name], abs=2e-3), name


def test_zero_points_are_those_of_the_atmospheres():
    # Anders & Grevesse 1989, which the decks were made with.
    wanted = {"c_h": 8.56, "n_h": 8.05, "o_h": 8.93, "si_h": 7.55, "s_h": 7.21, "fe_h": 7.67}
    assert {name: round(zero_point(name), 2) for name in ABUNDANCES} == wanted


def test_standards_are_on_our_scale():
    known = read_bibliography()
    gamma_pegasi = dict(zip(LABEL_NAMES, known.labels["HD886"], strict=True))
    assert (gamma_pegasi["teff"], gamma_pegasi["logg"], gamma_pegasi["vmic"]) == (22000, 3.95, 2)
    assert gamma_pegasi["fe_h"] == pytest.approx(7.52 - 7.67, abs=2e-3)
    assert np.isnan(gamma_pegasi["s_h"])
    # Of the paper's Table 4, [O/H] = 0.06 relative to today's Sun.
    assert known.labels["HD36512"][INDEX["o_h"]] == pytest.approx(0.06 + 8.69 - 8.93, abs=2e-3)
    assert known.errors["HD36512"][INDEX["o_h"]] == 0.09


def test_the_paper_is_what_the_table_of_the_paper_says(paper):
    known = read_bibliography()
    for line in ("HD36512 33400 ± 200 4.30 ± 0.05", "HD149438 32000 ± 300 4.30 ± 0.05"):
        assert line in paper
        name, teff, _, _, logg, *_ = line.split()
        assert known.labels[name][:2].tolist() == [float(teff), float(logg)]


def test_the_bibliography_comes_before_the_library():
    own = np.full((2, 11), np.nan)
    own[:, INDEX["teff"]], own[:, INDEX["fe_h"]] = (21581, 9000), 0.0
    labels, reference = known_labels(["HD000886", "HD 1"], own, ["MILES", "MILES"], read_bibliography())
    assert labels[:, INDEX["teff"]].tolist() == [22000, 9000]
    assert reference[0].startswith("Nieva")
    assert reference[1] == "MILES"
    assert labels[1, INDEX["fe_h"]] == pytest.approx(7.50 - 7.67, abs=2e-3)


@pytest.mark.parametrize(
    ("table", "line", "told"),
    [
        ("standards", "HD 1,fe_h,0.1,,someone", "eps_C"),
        ("standards", "HD 1,eps_Zr,0.1,,someone", "eps_Zr"),
        ("kinds", "HD 1,odd,someone", "no kind is called odd"),
    ],
)
def test_a_table_that_says_nonsense_is_refused(tmp_path, table, line, told):
    texts = {
        "standards": "name,label,value,error,reference\n",
        "kinds": "name,kind,reference\n",
        "nlte": "name," + ",".join(f"{name},{name}_err" for name in LABEL_NAMES) + "\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text + (f"{line}\n" if name == table else ""), encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_bibliography(tmp_path)


def test_names_of_one_star_are_one():
    assert len({plain_name(n) for n in ("HD 4539", "hd004539", "HD_4539", "HD004539 ")}) == 1
    assert plain_name("HD001326B") != plain_name("HD001326")
