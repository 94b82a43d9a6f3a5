"""How far a run is, from what lies on its disk."""

from pathlib import Path

from hotdask.cluster.progress import duration
from hotdask.pipeline.plan import PLAN, list_batches, read_rejects
from hotdask.pipeline.state import STEPS, State, open_state
from hotdask.store.receipts import check_receipt, list_receipts

_SHOWN = 5


def status(folder: str | Path) -> str:
    """What is done and what is left of a run, how fast it went, and what would be done again, in a few lines.

    Looks at receipts, not into the files they name; `verify` does.

    Raises
    ------
    RunError
        If the folder is not that of a run.
    """
    state = open_state(folder)
    folder, summary = state.folder, state.summary
    planned = len(list_batches(folder, PLAN)) == len(state.batches)
    lines = [f"{folder}: {state.n_input} files"]
    if len(state.batches) > 1:
        lines[0] += f" in {len(state.batches)} batches"
    if planned:
        rejects = read_rejects(folder)
        lines[0] += f", {state.layout.n_spectrum} spectra, {len(rejects)} rejected"
        if len(rejects):
            reasons = rejects["reason"].value_counts()
            lines[0] += " (" + ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items())) + ")"
    again: list[str] = []
    for step in STEPS:
        mark = summary["done"].get(step)
        if step in ("ingest", "fit") and planned:
            lines.append(f"  {step:<8} {_partitions(state, step, again)}")
        elif mark == state.marks[step]:
            lines.append(f"  {step:<8} done{_took(summary, step)}")
        elif mark is not None:
            lines.append(f"  {step:<8} of an earlier state, would be done again")
        elif step == "ingest":
            done = sum(r.rows for r in list_receipts(folder, "stage").values())
            lines.append(f"  {step:<8} {done} of {state.n_input} files read")
        else:
            lines.append(f"  {step:<8} not yet")
    if again:
        lines += ["would be done again:", *(f"  {line}" for line in again[:_SHOWN])]
        if len(again) > _SHOWN:
            lines.append(f"  and {len(again) - _SHOWN} more")
    if again or any(summary["done"].get(step) != state.marks[step] for step in STEPS):
        lines.append(f"go on with: hotdask run {folder}")
    elif "total" in summary["seconds"]:
        lines.append(f"last command took {duration(summary['seconds']['total'])}; see {folder / 'run.json'}")
    return "\n".join(lines)


def _took(summary: dict, step: str) -> str:
    seconds = summary["seconds"].get(step)
    return "" if seconds is None else f" in {duration(seconds)}"


def _partitions(state: State, step: str, again: list[str]) -> str:
    """Partitions done and left, and their rate; adds to ``again`` why one would be done again."""
    counts, receipts, good = state.layout.counts, list_receipts(state.folder, step), []
    for partition in range(len(counts)):
        receipt = receipts.get(partition)
        if receipt is not None:
            problem = check_receipt(state.folder, receipt, state.mark(step, partition), content=False)
            if problem is None:
                good.append(receipt)
            else:
                again.append(problem)
    spectra, seconds = sum(r.rows for r in good), sum(r.extra.get("seconds", 0.0) for r in good)
    rate = f", {spectra / seconds:.0f} spectra/s a worker" if seconds else ""
    if len(good) == len(counts):
        return f"done{_took(state.summary, step)}{rate}"
    left = len(counts) - len(good)
    return f"{spectra} of {sum(counts)} spectra, {len(good)} of {len(counts)} partitions, {left} left{rate}"
