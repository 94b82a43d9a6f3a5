"""What a run knows about itself, from what lies on its disk: batches, partitions, receipts, ``run.json``."""

import importlib.metadata
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import hotdask
from hotdask import config
from hotdask.cluster.identity import code_identity
from hotdask.crossmatch.join import signature
from hotdask.errors import RunError
from hotdask.pipeline import maps
from hotdask.pipeline.plan import INPUTS, PLAN, Batch, batch_path, count_files, fingerprint, list_batches, read_batches
from hotdask.store.atomic import write_text
from hotdask.store.catalog import FITS_FOLDER, is_sound
from hotdask.store.cube import SIDECAR, Layout
from hotdask.store.parquet import count_rows, list_parts, part_path
from hotdask.store.receipts import Receipt, check_receipt, hash_files, list_receipts, seal, write_receipt

SUMMARY, REPORT = "run.json", "report/index.html"
STEPS = ("ingest", "fit", "catalog", "report")

_FOLDERS = {"ingest": SIDECAR, "fit": FITS_FOLDER}
"""Where a step leaves a table, a part a partition."""
_PACKAGES = ("dask", "distributed", "numpy", "scipy", "torch", "astropy", "pyarrow", "xarray", "zarr", "pandas")


class State:
    """What a run knows about itself, and ``run.json``, which says so."""

    def __init__(
        self,
        folder: Path,
        settings: config.Settings,
        batches: list[Batch],
        emulator: str,
        echo: Callable[[str], None],
        version: str = hotdask.__version__,
    ):
        self.version, self._fits = version, ""
        self.folder, self.settings, self.emulator, self.batches, self.echo = folder, settings, emulator, batches, echo
        self.n_input = count_files(folder)
        self._ingest, mark = [], ""
        for batch in batches:
            # A batch is made with those before it: they decide which of its exposures are known already.
            mark = fingerprint(mark, batch.inputs, settings.fingerprint("input", "cube"), version)
            self._ingest.append(mark)
        self._fit = [fingerprint(m, settings.fingerprint("normalize", "fit"), emulator) for m in self._ingest]
        self.summary = known_summary(folder) or {"counts": {"files": self.n_input}, "seconds": {}, "done": {}}
        self._checked: dict[tuple[str, int], tuple[Receipt, str | None]] = {}

    @property
    def marks(self) -> dict[str, str]:
        """What each step is made with; the catalog with the fits as they are, so that no other is left beside them."""
        if not self._fits:
            made = list_receipts(self.folder, "fit")
            self._fits = fingerprint({str(partition): receipt.files for partition, receipt in made.items()})
        joined = self.settings.fingerprint("catalog", "join"), signature(self.settings.join)
        catalog = fingerprint(self._fit[-1], self._fits, *joined)
        report = fingerprint(catalog, self.settings.report.model_dump(mode="json"))
        ingest = self._ingest[-1]
        return {"layout": ingest, "ingest": ingest, "fit": self._fit[-1], "catalog": catalog, "report": report}

    def mark(self, step: str, partition: int) -> str:
        """What a partition of a step is made with; of step ``plan``, the number is that of the batch."""
        if step == "plan":
            return self._ingest[partition]
        if step == "stage":
            return self._ingest[sum(partition >= batch.first for batch in self.batches) - 1]
        if step == "settings":
            return step
        if step in ("ingest", "fit"):
            starts = [self.layout.first(number) for number in range(len(self.batches))]
            marks = self._ingest if step == "ingest" else self._fit
            return marks[bisect_right(starts, partition) - 1]
        return self.marks[step]

    @cached_property
    def layout(self) -> Layout:
        """Partitions of the cube, once all batches are planned."""
        counts = (count_rows(batch_path(self.folder, PLAN, batch.number)) for batch in self.batches)
        return Layout(self.settings.cube.partition_size, tuple(counts))

    def complete(self, step: str) -> bool:
        """Whether a step is done, by what lies on the disk."""
        if self.summary["done"].get(step) != self.marks[step]:
            return False
        if self.todo("plan", range(len(self.batches))):
            return False
        if step == "ingest" and self.todo("layout", [0]):
            return False
        if step in ("ingest", "fit"):
            if self.todo(step, range(len(self.layout.counts))):
                return False
            self.check_complete(step)
            return True
        if self.todo(step, [0]):
            return False
        return step != "catalog" or self.catalog_sound()

    def catalog_sound(self) -> bool:
        """Whether a whole catalog is published, each part with the content its name says."""
        return is_sound(self.folder, self.layout.n_spectrum)

    def todo(self, step: str, partitions: Iterable[int]) -> list[int]:
        """Those of a step's partitions without a valid receipt; says which have to be done again."""
        receipts = list_receipts(self.folder, step)
        return [p for p in partitions if p not in receipts or self._problem(receipts[p]) is not None]

    def _problem(self, receipt: Receipt) -> str | None:
        """What is wrong with a partition; its files are hashed, and what is wrong is told, once."""
        key = receipt.step, receipt.partition
        known, problem = self._checked.get(key, (None, None))
        if known != receipt:
            problem = check_receipt(self.folder, receipt, self.mark(*key))
            self._checked[key] = receipt, problem
            # A layout is of all batches: another one makes it another.
            grown = receipt.step == "layout" and receipt.fingerprint != self.mark(*key)
            if problem is not None and not grown:
                self.echo(f"{receipt.step} {receipt.partition} is done again: {problem}")
        return problem

    def check_complete(self, step: str) -> None:
        """See that every spectrum is accounted for, once.

        Raises
        ------
        RunError
            If a partition lacks spectra, or a file belongs to none.
        """
        receipts, counts = list_receipts(self.folder, step), self.layout.counts
        done = {p: receipts[p].rows if p in receipts else 0 for p in range(len(counts))}
        wrong = [f"partition {p} has {done[p]} of {n}" for p, n in enumerate(counts) if done[p] != n]
        if wrong:
            raise RunError(
                f"{step}: {sum(done.values())} of {sum(counts)} spectra are accounted for ({', '.join(wrong[:3])}); "
                "run the same command again"
            )
        folder = self.folder / _FOLDERS[step]
        stray = set(list_parts(folder)) - {part_path(folder, p) for p in range(len(counts))}
        if stray:
            raise RunError(f"{min(stray)}: belongs to no partition of this run; remove it and run the command again")

    def record(self, step: str, seconds: float, **counts: object) -> None:
        """Write ``run.json``; called when a step is complete."""
        self._fits = ""
        self.summary["counts"] |= counts
        if seconds:
            self.summary["seconds"][step] = round(seconds, 2)
        if step in self.marks:
            self.summary["done"][step] = self.marks[step]
        self.summary |= self.provenance()
        # Tuples become lists: a run returns the same as the next look at its file.
        self.summary = json.loads(json.dumps(self.summary))
        text = json.dumps({**self.summary, "seal": seal(self.summary)}, indent=1)
        write_text(self.folder / SUMMARY, text + "\n")

    def receive(self, step: str, files: Iterable[Path], rows: int) -> None:
        """Write the receipt of a step that is one task, over the files that it wrote."""
        mark = self.marks[step]
        write_receipt(self.folder, Receipt(step, 0, mark, rows, files=hash_files(self.folder, files)))

    def provenance(self) -> dict:
        """Versions, settings and emulator: what every catalog carries."""
        packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
        settings = self.settings.model_dump_json(include=set(config.DECISIVE))
        return {
            "hotdask": self.version,
            "code": code_identity(),
            "emulator": self.emulator,
            "inputs": [{"files": batch.files, "hash": batch.inputs} for batch in self.batches],
            "fingerprint": self.marks["catalog"],
            "packages": packages,
            "settings": json.loads(settings),
        }


def read_summary(folder: str | Path) -> dict | None:
    """Content of ``run.json``; None if there is none.

    Raises
    ------
    RunError
        If it is not what was written.
    """
    path = Path(folder, SUMMARY)
    try:
        body = json.loads(path.read_bytes())
        if body.pop("seal") != seal(body):
            raise ValueError("its content changed after it was written")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({error}); the next command makes it again") from error
    return body


def known_summary(folder: str | Path) -> dict | None:
    """`read_summary`, or None where it is damaged: a run knows all of it from its receipts, but for times."""
    try:
        return read_summary(folder)
    except RunError:
        return None


def open_state(folder: str | Path, echo: Callable[[str], None] = print) -> State:
    """What a run knows about itself, with the settings and the inputs it was last given.

    Raises
    ------
    RunError
        If the folder is not that of a run.
    """
    folder = Path(folder)
    there = {config.SETTINGS: (folder / config.SETTINGS).exists(), INPUTS: bool(list_batches(folder, INPUTS))}
    missing = [name for name, found in there.items() if not found]
    if missing and list_receipts(folder, "settings"):
        raise RunError(f"{folder / missing[0]} is missing; give the command of the run again, which makes it again")
    if missing:
        raise RunError(f"{folder} holds no run (no {missing[0]}); give the --out folder of `hotdask run`")
    settings = config.load_settings(folder / config.SETTINGS)
    batches = read_batches(folder, settings.cube.partition_size)
    summary = known_summary(folder) or {}
    identity = summary.get("emulator")
    if identity is None:
        identity = maps.load_models(settings.fit, "cpu").id
    # What another version made may be looked at by this one.
    return State(folder, settings, batches, identity, echo, summary.get("hotdask", hotdask.__version__))
