"""The emulators that come with the package, by name."""

from importlib import resources
from pathlib import Path

_FOLDER = Path(str(resources.files("hotdask") / "emulator" / "default"))

SHIPPED: dict[str, Path] = {path.stem: path for path in sorted(_FOLDER.glob("*.safetensors"))}
"""Their files; the card of each lies beside it (.md)."""

DEFAULT_EMULATOR = "nlte"
"""Name of the one that is used unless another is asked for."""

FROM_FILE = "compare"
"""Ending of columns that another emulator than a shipped one made."""


def column_suffix(emulator: str) -> str:
    """Ending of the columns that hold what an emulator makes of spectra beside that of the fits.

    Examples
    --------
    >>> column_suffix("lte"), column_suffix("own/lte.safetensors")
    ('lte', 'compare')
    """
    return emulator if emulator in SHIPPED else FROM_FILE


def emulator_path(emulator: str | Path | None = None) -> Path:
    """File of an emulator.

    Parameters
    ----------
    emulator : str or path, optional
        Name of a shipped one, or any other path; a file that is called like a shipped one is ``./lte``. Default: the
        shipped one of the name `DEFAULT_EMULATOR`.

    Examples
    --------
    >>> emulator_path("lte").name, emulator_path("own/lte").as_posix()
    ('lte.safetensors', 'own/lte')
    """
    if emulator is None:
        return SHIPPED[DEFAULT_EMULATOR]
    # A Path is always a file: only text can be a name.
    return SHIPPED.get(emulator, Path(emulator)) if isinstance(emulator, str) else emulator
