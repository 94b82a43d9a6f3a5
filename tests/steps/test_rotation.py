"""The critical velocity, against astropy's units and the paper's own numbers."""

import numpy as np
import pytest
from astropy import constants as const
from astropy import units as u

from hotdask.steps.rotation import critical_velocity


@pytest.mark.parametrize(("mass", "radius"), [(1.0, 1.0), (3.0, 2.0), (20.0, 5.5)])
def test_it_is_eq_8_of_mass_and_radius(mass, radius):
    m, r = mass * const.M_sun, radius * const.R_sun
    logg = np.log10((const.G * m / r**2).to_value(u.cm / u.s**2))
    expected = np.sqrt(2 * const.G * m / (3 * r)).to_value(u.km / u.s)
    # astropy's G·M_sun and GM_sun differ in the fifth digit.
    assert critical_velocity(mass, logg) == pytest.approx(expected, rel=2e-5)


def test_zero_age_stars_break_up_where_the_paper_says():
    """§5.4: about 300 km/s at 7000 K, over 600 km/s at 40 000 K; masses and gravities of ZAMS stars there."""
    cool, hot = critical_velocity([1.5, 27.0], [4.3, 4.25])
    assert 300 < cool < 400
    assert 600 < hot < 800


def test_what_is_not_known_stays_unknown():
    found = critical_velocity([0.0, -1.0, np.nan, np.inf, 1.0], [4.0, 4.0, 4.0, 4.0, np.nan])
    assert np.isnan(found).all()
    assert critical_velocity(np.ones((2, 1)), np.full(3, 4.0)).shape == (2, 3)
