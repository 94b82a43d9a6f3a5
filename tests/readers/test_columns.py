"""Columns of users' tables: names in any case, units, "none" in every spelling, positions."""

import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import SkyCoord
from hypothesis import given
from hypothesis import strategies as st

from hotdask.errors import InputError
from hotdask.readers.columns import angles, find_column, ids, is_none, numbers


def column(values, name="rv") -> pd.Series:
    return pd.Series(values, name=name)


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["rv", "RV"], "rv", "rv"),
        (["Rv"], "rv", "Rv"),
        (["RAJ2000", "DEJ2000"], "dec", "DEJ2000"),
        (["RAJ2000", "_RAJ2000"], "ra", "_RAJ2000"),
        (["RA_ICRS", "DE_ICRS"], "ra", "RA_ICRS"),
        (["RAdeg", "DEdeg"], "dec", "DEdeg"),
        (["ra_error", "rad"], "ra", None),
    ],
)
def test_columns_are_found_by_any_of_their_names(names, wanted, found) -> None:
    assert find_column(names, wanted) == found


def test_names_that_differ_only_in_case_are_refused() -> None:
    with pytest.raises(InputError, match="Rv and RV differ only in case"):
        find_column(["Rv", "RV"], "rv")


@pytest.mark.parametrize(
    "none",
    [-9999, -9999.0, -999, -999.99, -9999.9, -99999, np.float32(-9999.99), np.nan, -(2**31), -(2**63), "", "null"],
)
def test_none_in_every_spelling(none) -> None:
    values = numbers(column([none, 12.5] if not isinstance(none, str) else [none, "12.5"]), "t", unit="km/s")
    np.testing.assert_array_equal(values, [np.nan, 12.5])


@pytest.mark.parametrize(("name", "unit"), [("ks", "mag"), ("rv_err", "km/s"), ("parallax_error", "mas")])
def test_magnitudes_and_errors_have_a_none_above_zero(name, unit) -> None:
    values = numbers(column([99.99, 99.999, 999.0, -99.0, 9.5], name), "t", unit=unit)
    np.testing.assert_array_equal(values, [np.nan] * 4 + [9.5])


@given(st.floats(-900, 98.9))
def test_other_numbers_stay(value) -> None:
    assert not is_none(np.array([value])).any()
    assert numbers(column([value, str(value)]), "t").tolist() == [value, value]


@pytest.mark.parametrize(
    ("stored", "unit", "factor"),
    [
        *(("m/s", "km/s", 1e-3), ("m s-1", "km/s", 1e-3), ("km.s**-1", "km/s", 1), ("km s^-1", "km/s", 1)),
        *(("kpc", "pc", 1e3), ("arcsec/yr", "mas/yr", 1e3), ("kK", "K", 1e3), ("mag(AB)", "mag", 1), ("", "km/s", 1)),
    ],
)
def test_units_are_those_of_astropy(stored, unit, factor) -> None:
    np.testing.assert_allclose(numbers(column([2.0, -9999.0]), "t", unit=unit, stored=stored), [2 * factor, np.nan])


@pytest.mark.parametrize("stored", ["kpc", "furlong/fortnight", "deg"])
def test_units_of_another_kind_are_refused_by_name(stored) -> None:
    with pytest.raises(InputError, match=rf"column 'rv': its unit is '{stored}', wanted is km/s"):
        numbers(column([2.0]), "t", unit="km/s", stored=stored)


@pytest.mark.parametrize("bad", ["fast", "12,5", True])
def test_what_is_no_number_is_refused_by_row(bad) -> None:
    with pytest.raises(InputError, match=r"column 'rv': 1 value\(s\) are not numbers \(row 2: "):
        numbers(pd.Series(["1.5", bad], name="rv", dtype=object), "t")


def test_positions_in_any_form_are_degrees() -> None:
    sky = SkyCoord([22.557, 133.784, 359.999], [13.7786, -9.07, -0.002], unit="deg")
    ra, dec = (
        axis.to_string(sep=":", precision=5, unit=unit) for axis, unit in ((sky.ra, "hourangle"), (sky.dec, "deg"))
    )
    tolerance = {"atol": 1e-7, "rtol": 0}
    np.testing.assert_allclose(angles(column(list(ra)), "t", hours=True), sky.ra.deg, **tolerance)
    np.testing.assert_allclose(angles(column(list(dec)), "t"), sky.dec.deg, **tolerance)
    spaced = [text.replace(":", " ") for text in dec]
    np.testing.assert_allclose(angles(column(spaced), "t", stored='"d:m:s"'), sky.dec.deg, **tolerance)
    np.testing.assert_allclose(angles(column(sky.ra.rad), "t", stored="rad"), sky.ra.deg, **tolerance)
    np.testing.assert_allclose(angles(column(sky.ra.hour), "t", stored="h", hours=True), sky.ra.deg, **tolerance)
    np.testing.assert_array_equal(angles(column(["", "10:00:00", "--"]), "t"), [np.nan, 10, np.nan])


@pytest.mark.parametrize("bad", ["22,5571", "ten degrees", "400:00:00"])
def test_positions_that_are_none_are_refused(bad) -> None:
    with pytest.raises(InputError, match="column 'ra'"):
        angles(column([bad], "ra"), "t", hours=True)


def test_ids_lose_no_digit_and_make_none_up() -> None:
    exact = [2**62 + 1, 2**53 + 1]
    assert ids(pd.Series([f"Gaia DR3 {exact[0]}", f" {exact[1]} "])).tolist() == [str(i) for i in exact]
    assert ids(pd.Series([*exact, None], dtype="Int64")).tolist() == [*(str(i) for i in exact), ""]
    assert ids(pd.Series([123.0, 1e18, np.nan, -9999.0])).tolist() == ["123", "", "", ""]
    assert ids(pd.Series(["1e18", "HD 1", "007"])).tolist() == ["", "", "7"]
