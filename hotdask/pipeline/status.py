"""How far a run is, from what lies on its disk."""

from pathlib import Path

from hotdask.config import SETTINGS, load_settings
from hotdask.errors import RunError
from hotdask.pipeline.execute import STEPS, SUMMARY, read_summary
from hotdask.pipeline.plan import INPUTS, PLAN
from hotdask.pipeline.progress import duration
from hotdask.store.cube import n_partitions
from hotdask.store.parquet import count_rows
from hotdask.store.receipts import list_receipts


def status(folder: str | Path) -> str:
    """What is done and what is left of a run, in a few lines.

    Raises
    ------
    RunError
        If the folder is not that of a run.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).exists() or not (folder / INPUTS).exists():
        raise RunError(f"{folder} holds no run (no {SETTINGS}); give the --out folder of `hotdask run`")
    size = load_settings(folder / SETTINGS).cube.partition_size
    summary = read_summary(folder) or {"counts": {}, "seconds": {}, "done": {}}
    n_file = count_rows(folder / INPUTS)
    planned = folder / PLAN
    n_spectrum = count_rows(planned) if planned.exists() else None
    lines = [f"{folder}: {n_file} files"]
    if "spectra" in summary["counts"]:
        lines[0] += f", {summary['counts']['spectra']} spectra, {summary['counts']['rejects']} rejected"
    for step in STEPS:
        if step in summary["done"]:
            seconds = summary["seconds"].get(step)
            took = "" if seconds is None else f" in {duration(seconds)}"
            lines.append(f"  {step:<8} done{took}")
        elif step == "ingest" and n_spectrum is None:
            done = sum(r.rows for r in list_receipts(folder, "stage").values())
            lines.append(f"  {step:<8} {done} of {n_file} files read")
        elif step in ("ingest", "fit") and n_spectrum is not None:
            receipts = list_receipts(folder, step)
            done = sum(r.rows for r in receipts.values())
            n = n_partitions(n_spectrum, size)
            lines.append(f"  {step:<8} {done} of {n_spectrum} spectra, {len(receipts)} of {n} partitions")
        else:
            lines.append(f"  {step:<8} not yet")
    if "report" not in summary["done"]:
        lines.append(f"go on with: hotdask run {folder}")
    elif "total" in summary["seconds"]:
        lines.append(f"last command took {duration(summary['seconds']['total'])}; see {folder / SUMMARY}")
    return "\n".join(lines)
