"""What kind of star a spectral type tells of: chemical peculiarity, giants, and stars no emulator here is made for."""

import re

KINDS: tuple[str, ...] = ("normal", "peculiar", "metal-poor", "supergiant", "subdwarf", "other")
"""Normal; chemically peculiar (Ap, Bp, Am, HgMn, He-weak and He-strong); horizontal branch, λ Boo and other metal-poor
stars; luminosity classes I and II; hot subdwarfs and white dwarfs; Wolf-Rayet and emission-line stars, and binaries
that show two spectra."""

_METAL_POOR = -0.8
"""[Fe/H] below which an A star is metal-poor; B stars' [Fe/H] are too uncertain to tell."""
_HOTTEST_METAL_POOR = 11000.0

_OTHER = re.compile(r"^W[NCOR]|^[OB][\d./-]*(V|IV|III)?e")
_SUBDWARF = re.compile(r"^sd[OB]|^D[ABCOZQ]?\b")
_METAL_POOR_TYPE = re.compile(r"HB|[λl]am ?Boo|^sdA")
_PECULIAR = re.compile(r"[pm]|Hg|Mn|Si|Sr|Cr|Eu")
_SUPERGIANT = re.compile(r"(?<![IV])I(a|b)|(?<![IV/-])II(?![IV/-])|(?<![IV/-])I(?![IV/-])")


def kind_of(spectral_type: str, teff: float, fe_h: float) -> str:
    """Kind of a star, one of `KINDS`.

    Parameters
    ----------
    spectral_type : str
        As catalogs print it; empty if unknown.
    teff, fe_h : float
        From the literature [K], [dex]; NaN if unknown.

    Examples
    --------
    >>> [kind_of(t, 9000, 0) for t in ("B2IV", "A0V", "B8II-III", "A3Vn", "A0V:")]
    ['normal', 'normal', 'normal', 'normal', 'normal']
    >>> [kind_of(t, 9000, 0) for t in ("A5Ib", "B0.5 Iae", "B0.5II", "A4p(EuCrSr", "B8IIImnp", "A0 spe", "A2Vm")]
    ['supergiant', 'supergiant', 'supergiant', 'peculiar', 'peculiar', 'peculiar', 'peculiar']
    >>> [kind_of(t, 9000, 0) for t in ("A0 V (HB)", "sdA2", "sdB", "WN", "B0e")]
    ['metal-poor', 'metal-poor', 'subdwarf', 'other', 'other']
    >>> kind_of("A3Vn", 8246, -1.94)
    'metal-poor'
    """
    if _METAL_POOR_TYPE.search(spectral_type):
        return "metal-poor"
    if _SUBDWARF.search(spectral_type):
        return "subdwarf"
    if _OTHER.search(spectral_type):
        return "other"
    if _SUPERGIANT.search(spectral_type):
        return "supergiant"
    if _PECULIAR.search(spectral_type):
        return "peculiar"
    return "metal-poor" if fe_h < _METAL_POOR and teff < _HOTTEST_METAL_POOR else "normal"
