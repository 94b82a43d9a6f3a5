"""How fast a star can rotate."""

import numpy as np
from astropy.constants import GM_sun


def critical_velocity(mass, logg) -> np.ndarray:
    """Velocity at which a star's equator breaks up.

    ``Vc = √(2GM / 3R_p)``, in which the polar radius is that of a sphere, ``R_p = √(GM/g)``.

    Parameters
    ----------
    mass : array_like of float
        Stellar mass [solar masses].
    logg : array_like of float
        Surface gravity [dex(cm/s2)], of a shape that broadcasts with ``mass``. The paper takes, at each Teff, the
        main-sequence model of highest log g.

    Returns
    -------
    numpy.ndarray of float64
        [km/s]; NaN where the mass is not positive or either is not finite.

    References
    ----------
    Xiang et al. 2022, Eq 8; Maeder 2009.

    Examples
    --------
    >>> critical_velocity([1.0, 5.0], [4.438, 4.3]).round(0).tolist()
    [357.0, 493.0]
    """
    mass, logg = np.broadcast_arrays(np.asarray(mass, dtype=np.float64), np.asarray(logg, dtype=np.float64))
    known = (mass > 0) & np.isfinite(mass) & np.isfinite(logg)
    gravitation = GM_sun.cgs.value * np.where(known, mass, np.nan)
    radius = np.sqrt(gravitation / 10.0 ** np.where(known, logg, np.nan))
    return np.sqrt(2.0 * gravitation / (3.0 * radius)) / 1e5
