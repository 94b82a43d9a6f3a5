"""An emulator and what is published with it: card, loss curve."""

import csv
from pathlib import Path

from hotdask.emulator import LowRankEmulator, PerPixelEmulator, save_emulator
from hotdask.emulator.card import card_text
from hotdask.report.training import loss_curve


def companions(path: str | Path) -> tuple[Path, Path, Path]:
    """Card (.md) and loss of the training (.loss.csv, .loss.svg) that lie beside an emulator.

    Examples
    --------
    >>> [path.name for path in companions("folder/hot.safetensors")]
    ['hot.md', 'hot.loss.csv', 'hot.loss.svg']
    """
    card, table, figure = (Path(path).with_suffix(suffix) for suffix in (".md", ".loss.csv", ".loss.svg"))
    return card, table, figure


def publish(emulator: LowRankEmulator | PerPixelEmulator, path: str | Path) -> str:
    """Write an emulator, and then beside it its `companions`.

    Parameters
    ----------
    emulator : LowRankEmulator or PerPixelEmulator
        From `hotdask.emulator.training.train`.
    path : path
        ``.safetensors`` file.

    Returns
    -------
    str
        The emulator's id.
    """
    # First what took hours.
    identity = save_emulator(emulator, path)
    card, table, figure = companions(path)
    card.write_text(card_text(emulator.card, identity), encoding="utf-8")
    loss = emulator.card["loss"]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["pass", "train", "validation"])
        writer.writerows(zip(range(1, len(loss["train"]) + 1), loss["train"], loss["validation"], strict=True))
    loss_curve(loss).savefig(figure)
    return identity
