"""A guard against getting slower or worse: ratios and accuracies are compared with a baseline's, seconds never."""

import json
from dataclasses import dataclass
from pathlib import Path

SLACK = {"×": 0.2, "of peak": 0.2, "share": 0.05, "σ": 0.5, "of flux": 0.5}
"""How much worse a figure may be than the baseline's, as a part of it, by unit."""
GRAIN = {"×": 0.0, "of peak": 0.0, "share": 0.04, "σ": 0.005, "of flux": 1e-6}
"""What a figure may be worse by in any case: one of a few spectra is never quite the same."""


@dataclass(frozen=True)
class Compared:
    """A figure beside its baseline; ``limit`` is the worst that would pass."""

    group: str
    name: str
    unit: str
    goal: str
    baseline: float
    value: float | None
    limit: float

    @property
    def worse(self) -> bool:
        # Also for NaN, of which no comparison holds; what is not measured any more is worse too.
        if self.value is None:
            return True
        return not (self.value <= self.limit if self.goal == "low" else self.value >= self.limit)


def compare(rows: list[dict], baseline: list[dict]) -> list[Compared]:
    """Every figure of the baseline that has a goal, beside this run's.

    Groups that were not measured now are left out; a figure that vanished from a measured group is worse.
    """
    found = {(row["group"], row["name"]): row["value"] for row in rows}
    measured = {row["group"] for row in rows}
    out = []
    for row in baseline:
        group, name, unit, goal, value = (row[key] for key in ("group", "name", "unit", "goal", "value"))
        if group not in measured or not goal:
            continue
        slack = max(SLACK[unit] * abs(value), GRAIN[unit])
        limit = value + slack if goal == "low" else value - slack
        out.append(Compared(group, name, unit, goal, value, found.get((group, name)), limit))
    return out


def check(rows: list[dict], path: str) -> bool:
    """Print what is worse than the table at ``path`` allows; whether nothing is."""
    compared = compare(rows, json.loads(Path(path).read_text())["rows"])
    worse = [c for c in compared if c.worse]
    for c in worse:
        value = "not measured" if c.value is None else f"{c.value:.3g}"
        bound = "at most" if c.goal == "low" else "at least"
        print(f"worse: {c.group}, {c.name}: {value} {c.unit}, was {c.baseline:.3g}, {bound} {c.limit:.3g} passes")
    print(f"{len(compared) - len(worse)} of {len(compared)} figures as good as in {path}")
    # A baseline that has nothing in common with the run guards nothing.
    return bool(compared) and not worse
