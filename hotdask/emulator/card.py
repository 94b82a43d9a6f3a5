"""The card of an emulator as text: what it learned from, how well it does, how to make it again."""

from collections.abc import Mapping

from hotdask.labels import ABUNDANCES, LABELS


def card_text(card: Mapping, identity: str) -> str:
    """An emulator's card as Markdown.

    Parameters
    ----------
    card : mapping
        ``LowRankEmulator.card``.
    identity : str
        Its id: the first 16 hex digits of the file's SHA-256.
    """
    residuals, training = card["residuals"], card["training"]
    low, high = training["resolving_power"]
    lines = [
        f"# Emulator {identity}",
        "",
        f"Low-rank network, trained {card['date']} on {card['syntheses']} syntheses of `{card['library']}`;",
        f"{card['held_out']} held out and never seen. Each of {training['passes']} passes drew afresh, for every one,",
        f"a vsini of 0-{training['max_vsini']:.0f} km/s and a resolving power of {low:.0f}-{high:.0f} in each arm.",
        "",
        "## Residuals on held-out syntheses",
        "",
        "Emulated minus synthesized normalized flux, 1.4826 times the median absolute deviation over the pixels a fit",
        "uses, in % of the continuum. Lines: where the flux is below 0.95.",
        "",
        "| Teff [K] | fitted pixels | lines |",
        "|---|---|---|",
        *(
            f"| {teff} | {_percent(row['all'])} | {_percent(row['lines'])} |"
            for teff, row in sorted(residuals["teff_bins"].items(), key=lambda item: int(item[0].split("-")[0]))
        ),
        f"| **all** | **{_percent(residuals['all'])}** | **{_percent(residuals['lines'])}** |",
        "",
        f"Over all 3801 pixels, those no fit uses among them: {_percent(residuals['every'])} % and, in lines,",
        f"{_percent(residuals['every_lines'])} %. Standard deviation, fitted pixels: {_percent(residuals['rms'])} %.",
        "",
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
        f"`hotdask train {card['library']} --out FILE --seed {training['seed']} --passes {training['passes']}`",
        "",
    ]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3f}"
