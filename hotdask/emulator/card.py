"""The card of an emulator as text: what it learned from, how well it does, how to make it again."""

import json
from collections.abc import Mapping

from hotdask.config import Normalize
from hotdask.emulator.evaluation import WINDOWS
from hotdask.labels import ABUNDANCES, LABELS

_NETWORK = {
    "lowrank": "Low-rank network ({hidden} → {hidden} → {n_basis} coefficients of a basis)",
    "perpixel": "One network (17 → {hidden} → {hidden} → 1) for each pixel",
}
_TELLING = {"kind", "helium", "extend", "n", "seed", "ranges", "teff_power", "metal_rich", "solar_like"}
"""Settings of a library that make it what it is wherever it is made; paths do not."""
_LIMIT = {
    "basis": "the basis: more coefficients would help",
    "network": "the network or its training: what remains on syntheses it learned",
    "library": "the library: syntheses it never saw are worse than those it learned",
}


def card_text(card: Mapping, identity: str) -> str:
    """An emulator's card as Markdown.

    Parameters
    ----------
    card : mapping
        ``card`` of an emulator made by `hotdask.emulator.training.train`.
    identity : str
        Its id: the first 16 hex digits of the file's SHA-256.
    """
    training = card["training"]
    low, high = training["resolving_power"]
    lines = [
        f"# Emulator {identity}",
        "",
        f"{_NETWORK[card['architecture']].format(**training)}, trained {card['date']}",
        f"on {card['syntheses']} syntheses{_set(card)} of `{card['library']}`",
        f"(SHA-256 {card['library_sha256'][:16]}…);",
        f"{card['validation']} more said when to stop, {card['held_out']} were held out and never seen. Of each,",
        f"{training['draws']} spectra were drawn, with a vsini of 0-{training['max_vsini']:.0f} km/s and a resolving",
        f"power of {low:.0f}-{high:.0f} in each arm.",
        "",
        *_residuals(card["residuals"]),
        *_budget(card["budget"]),
        "## Training",
        "",
        f"{len(card['loss']['train'])} of at most {training['passes']} passes, best validation loss in pass",
        f"{card['loss']['best']}; with the drawing of the spectra {card['wall_seconds']} s on `{card['device']}`,",
        f"{card['cpu_seconds']} CPU-seconds. hotdask {card['hotdask']}, torch {card['torch']}.",
        "",
        *_inverse(card),
        "## Label ranges of the library",
        "",
        "| label | unit | from | to |",
        "|---|---|---|---|",
    ]
    for label in LABELS:
        low, high = card["label_ranges"][label.name]
        relative = label.name in ABUNDANCES and label.name != "fe_h"
        name = f"[{label.name.removesuffix('_h').title()}/Fe]" if relative else label.name
        lines.append(f"| {name} | {label.unit} | {low:.4g} | {high:.4g} |")
    lines += [
        "",
        "Teff and log g are bounded together, by the convex hull of the library in (log Teff, log g).",
        "",
        "## Make it again",
        "",
        *_library(card["library"], card["library_provenance"]),
        *_command(card),
    ]
    return "\n".join(lines)


def _set(card: Mapping) -> str:
    """Which spectra of the library, where it has two sets."""
    return f" {card['library_provenance']['spectra']}" if "spectra" in card["library_provenance"] else ""


def _inverse(card: Mapping) -> list[str]:
    if "inverse_loss" not in card:
        return []
    training, loss = card["training"], card["inverse_loss"]
    return [
        f"Where fits start it learned from {training['inverse_draws']} simulated spectra in",
        f"{training['inverse_passes']} passes; its loss is {loss['train']:.3f}, on spectra set aside "
        f"{loss['validation']:.3f}.",
        "",
    ]


def _command(card: Mapping) -> list[str]:
    training = card["training"]
    sizes = {
        "lowrank": {"--basis": "n_basis", "--inverse-draws": "inverse_draws", "--inverse-passes": "inverse_passes"},
        "perpixel": {"--pixels": "pixels"},
    }
    names = {"--seed": "seed", "--passes": "passes", "--draws": "draws", "--hidden": "hidden"}
    names |= sizes[card["architecture"]]
    words = ["hotdask train", card["library"], "--out FILE --architecture", card["architecture"]]
    words += [f"{option} {training[name]}" for option, name in names.items()]
    if _set(card):
        words.append("--lte")
    if card["device"] != "cpu":
        words.append(f"--device {card['device']}")
    usual = Normalize().model_dump(mode="json")
    if card["normalization"] == usual:
        return [f"`{' '.join(words)}`", ""]
    differing = {k: v for k, v in card["normalization"].items() if v != usual.get(k)}
    return [
        f"`{' '.join(words)} --settings SETTINGS`, with in SETTINGS",
        "",
        "```toml",
        "[normalize]",
        *(f"{name} = {json.dumps(value)}" for name, value in differing.items()),
        "```",
        "",
    ]


def _library(name: str, provenance: Mapping) -> list[str]:
    """How to make the library again, if it was made here."""
    if "settings" not in provenance:
        return []
    data = [
        f"- {kind}: `{value['name']}`, SHA-256 {value['sha256'][:16]}…"
        for kind, value in sorted(provenance["engine_provenance"].items())
        if isinstance(value, Mapping) and "sha256" in value
    ]
    settings = [
        line
        for section, values in sorted(provenance["settings"].items())
        for line in (
            f"[{section}]",
            *(
                f"{key} = {json.dumps(v)}"
                for key, v in sorted(values.items())
                if key in _TELLING and v not in (None, {}, "")
            ),
        )
    ]
    return [
        f"The library, with engine {provenance['engine']} of hotdask {provenance['hotdask']}: `hotdask library build`",
        "with",
        "",
        "```toml",
        f'out = "{name}"',
        *settings,
        "```",
        "",
        *([*data, ""] if data else []),
        "The emulator:",
        "",
    ]


def _residuals(residuals: Mapping) -> list[str]:
    columns = ("every", "every_lines", "all", "lines")
    rows = sorted(residuals["teff_bins"].items(), key=lambda item: int(item[0].split("-")[0]))
    return [
        "## Residuals on held-out syntheses",
        "",
        "Emulated minus synthesized normalized flux, 1.4826 times the median absolute deviation, in % of the",
        "continuum. Lines: where the flux is below 0.95. Fitted pixels are those a fit uses.",
        "",
        "| Teff [K] | all 3801 pixels | lines in them | fitted pixels | lines in them |",
        "|---|---|---|---|---|",
        *(f"| {teff} | " + " | ".join(_percent(row[c]) for c in columns) + " |" for teff, row in rows),
        "| **all** | " + " | ".join(f"**{_percent(residuals[c])}**" for c in columns) + " |",
        "",
        f"Standard deviations: {_percent(residuals['rms_every'])} % over all pixels, "
        f"{_percent(residuals['rms_every_lines'])} % in their lines,",
        f"{_percent(residuals['rms'])} % over fitted pixels.",
        "",
        "| windows | all their pixels | lines |",
        "|---|---|---|",
        *(
            f"| {name} | {_percent(row['all'])} | {_percent(row['lines'])} |"
            for name, row in ((name, residuals["windows"][name]) for name in WINDOWS)
        ),
        "",
    ]


def _budget(budget: Mapping) -> list[str]:
    names = {
        "basis": "held-out spectra on the basis, no network",
        "learned": "emulated, syntheses it learned",
        "held_out": "emulated, held out",
    }
    return [
        "## What limits it",
        "",
        "| over all pixels [%] | all | lines |",
        "|---|---|---|",
        *(
            f"| {text} | {_percent(budget[name]['all'])} | {_percent(budget[name]['lines'])} |"
            for name, text in names.items()
            if name in budget
        ),
        "",
        f"The largest part is {_LIMIT[budget['limit']]}.",
        "",
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3f}"
