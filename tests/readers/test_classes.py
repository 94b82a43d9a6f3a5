"""Which classes are taken for which: names as the pipelines of LAMOST, SDSS and DESI write them."""

import pandas as pd
import pytest

from hotdask.readers.classes import are_selected, is_selected

HOT = ("O", "B", "A")
HOT_STARS = ["A5V", "A0", "B6", "OB", "O", "A0p", " B9", "Am", "A2IV", "B6III (30614)", "Be"]
OTHERS = ["AGN", "AGN BROADLINE", "BROADLINE", "Binary", "F5", "G2", "STARFORMING", "Carbon", "CV", "WD", "", "nan"]


@pytest.mark.parametrize("subclass", HOT_STARS)
def test_a_type_of_stars_is_taken_where_it_is_that_of_a_star(subclass):
    for class_ in ("STAR", "star", "Star  ", "", "Unknown", "UNKNOWN"):
        assert is_selected(class_, subclass, HOT)
    for class_ in ("GALAXY", "QSO"):
        assert not is_selected(class_, subclass, HOT)


@pytest.mark.parametrize("subclass", OTHERS)
def test_what_only_begins_like_a_type_is_not_taken(subclass):
    for class_ in ("STAR", "GALAXY", "QSO", ""):
        assert not is_selected(class_, subclass, HOT)


def test_longer_names_are_how_classes_begin():
    assert is_selected("STAR", "", ("STAR",))
    assert not is_selected("GALAXY", "STARBURST", ("STAR",))
    assert is_selected("QSO", "BROADLINE", ("QSO",))
    for name in ("WD", "WDhotter", "WDcooler", "WDmagnetic"):
        assert is_selected("STAR", name, ("WD",))
    assert is_selected("STAR", "DBA", ("DB",))
    assert is_selected("STAR", "sdB1", ("sdB",))
    # A name is no pattern.
    assert not is_selected("STAR", "A0", ("A.",))
    assert not is_selected("STAR", "A0", ("a",))


def test_tables_are_chosen_from_as_spectra_are():
    names = HOT_STARS + OTHERS
    table = pd.DataFrame(
        [(c, s) for c in ("STAR", "GALAXY", "QSO", None) for s in names], columns=["CLASS", "subclass"]
    )
    found = are_selected(table, ["CLASS", "subclass"], HOT)
    assert found.tolist() == [is_selected(str(c or ""), s, HOT) for c, s in table.to_numpy()]
    assert found.sum() == 2 * len(HOT_STARS)
    # Without a class a subclass stands for itself.
    alone = are_selected(table.assign(subclass=table["subclass"].replace("", None)), ["subclass"], HOT)
    assert alone.tolist() == [s in HOT_STARS for s in table["subclass"]]
