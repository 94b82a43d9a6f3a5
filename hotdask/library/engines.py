"""What makes spectra: the one protocol every engine follows."""

from typing import Protocol

import numpy as np

from hotdask.library.spectra import Synthesis


class Engine(Protocol):
    """Anything that turns labels into a spectrum.

    Attributes
    ----------
    name : str
        What a library's card calls it.
    """

    name: str

    def provenance(self) -> dict:
        """Version, settings and SHA-256 of the data it reads; JSON values."""

    def covers(self, labels: np.ndarray) -> np.ndarray:
        """Whether (n, 11) labels can be synthesized, (n,) bool: e.g. whether atmospheres exist there."""

    def __call__(self, labels: np.ndarray) -> Synthesis:
        """Synthesize one star from its (11,) labels; vsini is ignored.

        Raises
        ------
        SynthesisError
            With the reason; the library records it and goes on.
        """
