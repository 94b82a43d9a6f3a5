"""What a star is made of: the Sun's mixture, changed by the labels."""

import numpy as np

from hotdask.labels import INDEX
from hotdask.library.atoms import ATOMIC_NUMBER

# fmt: off
SOLAR = np.array([
    -0.0405, -1.0506, -10.88, -10.89, -9.44, -3.48, -3.99, -3.11, -7.48, -3.95, -5.71, -4.46, -5.57, -4.49, -6.59,
    -4.83, -6.54, -5.48, -6.82, -5.68, -8.94, -7.05, -8.04, -6.37, -6.65, -4.37, -7.12, -5.79, -7.83, -7.44, -9.16,
    -8.63, -9.67, -8.69, -9.41, -8.81, -9.44, -9.14, -9.8, -9.54, -10.62, -10.12, -20, -10.2, -10.92, -10.35, -11.1,
    -10.18, -10.58, -10.04, -11.04, -9.8, -10.53, -9.81, -10.92, -9.91, -10.82, -10.49, -11.33, -10.54, -20, -11.04,
    -11.53, -10.92, -11.94, -10.94, -11.78, -11.11, -12.04, -10.96, -11.28, -11.16, -11.91, -10.93, -11.77, -10.59,
    -10.69, -10.24, -11.03, -10.95, -11.14, -10.19, -11.33, -20, -20, -20, -20, -20, -20, -11.92, -20, -12.51,
])
# fmt: on
"""log10 N/N_tot by atomic number, hydrogen first: the mixture of Kurucz's first ATLAS9 models (Anders &
Grevesse 1989). [Fe/H] = 0 means 7.67 on the scale of hydrogen = 12; decks of the newer mixture have 7.50."""

_FREE = {"c_h": "C", "n_h": "N", "o_h": "O", "si_h": "Si", "s_h": "S"}


def abundances(labels: np.ndarray) -> np.ndarray:
    """Number fractions N/N_tot of the elements, hydrogen first, (92,) float64.

    Parameters
    ----------
    labels : (11,) float64
        [Fe/H] scales every metal, n_he is helium's share, hydrogen has the rest.

    References
    ----------
    Xiang et al. 2022, §4.1.

    Examples
    --------
    >>> from hotdask.labels import LABELS
    >>> sun = abundances(np.array([9500, 4, 2, 0, 0.09, 0, 0, 0, 0, 0, 0.0]))
    >>> np.log10(sun[[0, 1, 25]]).round(2).tolist()
    [-0.04, -1.05, -4.37]
    """
    logs = SOLAR + labels[INDEX["fe_h"]]
    for name, symbol in _FREE.items():
        z = ATOMIC_NUMBER[symbol]
        logs[z - 1] = SOLAR[z - 1] + labels[INDEX[name]]
    fractions = 10**logs
    fractions[1] = max(labels[INDEX["n_he"]], 1e-6)
    fractions[0] = 1 - fractions[1]
    return fractions / fractions.sum()
