"""What a command cost: Dask's performance report, and the seconds of each kernel of each step."""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from distributed import Client, performance_report

from hotdask.store.atomic import write_text
from hotdask.store.receipts import Receipt, list_receipts
from hotdask.timing import OUTSIDE

FOLDER, REPORT, KERNELS = "profile", "dask-report.html", "kernels.json"
_RECEIPTS = {"ingest": ("stage", "ingest"), "fit": ("fit",)}


@dataclass(frozen=True)
class Kernel:
    """Seconds a kernel took in all tasks of one kind, which handled so many spectra."""

    task: str
    name: str
    spectra: int
    cpu: float
    wall: float

    @property
    def each(self) -> float:
        """CPU time of a spectrum [µs]."""
        return 1e6 * self.cpu / max(self.spectra, 1)


@dataclass(frozen=True)
class Step:
    """One step of a run.

    ``seconds`` and ``threads`` are of the whole step; ``workers`` and ``launcher`` the CPU seconds of all worker
    processes and of this one, which of a local cluster includes the scheduler; ``memory`` the largest a worker has been
    by the end of the step [MiB, resident]. Steps without receipts have no kernels.
    """

    name: str
    seconds: float
    threads: int
    workers: float
    launcher: float
    memory: float
    tasks: int
    kernels: tuple[Kernel, ...]

    @property
    def busy(self) -> float | None:
        """Share of the workers' time that tasks took."""
        return self._share(sum(k.wall for k in self.kernels), self.seconds * self.threads)

    @property
    def outside(self) -> float | None:
        """Share of the tasks' CPU seconds that is outside kernels."""
        return self._share(sum(k.cpu for k in self.kernels if k.name == OUTSIDE), sum(k.cpu for k in self.kernels))

    def _share(self, part: float, whole: float) -> float | None:
        return part / whole if self.kernels and whole else None

    def to_dict(self) -> dict:
        """JSON values."""
        kernels = [{**asdict(k), "cpu_us_per_spectrum": round(k.each, 1)} for k in self.kernels]
        return {**asdict(self), "busy": self.busy, "outside_kernels": self.outside, "kernels": kernels}


class Profile:
    """Collects the steps of one command."""

    def __init__(self, client: Client, folder: Path):
        self._client, self._folder = client, folder
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the block as one step."""
        before = self._receipts(name)
        workers = self._client.run(_usage)
        launcher, began = time.process_time(), time.monotonic()
        yield
        seconds, launcher = time.monotonic() - began, time.process_time() - launcher
        # A worker that died or came meanwhile has no beginning or no end.
        now = self._client.run(_usage)
        spent = sum(cpu - workers[w][0] for w, (cpu, _) in now.items() if w in workers)
        memory = max((peak for _, peak in now.values()), default=0.0)
        done = [receipt for receipt in self._receipts(name) if receipt not in before]
        threads = sum(w["nthreads"] for w in self._client.scheduler_info(n_workers=-1)["workers"].values())
        measured = (round(seconds, 3), threads, round(spent, 3), round(launcher, 3), round(memory, 1))
        self.steps.append(Step(name, *measured, len(done), sum_kernels(done)))

    def _receipts(self, step: str) -> list[Receipt]:
        return [r for task in _RECEIPTS.get(step, ()) for r in list_receipts(self._folder, task).values()]


def _usage() -> tuple[float, float]:
    """CPU seconds of this process, and the most memory it has held [MiB]."""
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    else:
        # Elsewhere the kernel's figure may be that of the process that started this one.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    return time.process_time(), peak


@contextmanager
def profiled(client: Client, folder: str | Path, echo: Callable[[str], None] = print) -> Iterator[Profile]:
    """Profile what a client does in the block.

    Leaves ``FOLDER/profile/dask-report.html``, which opens without a network and names paths of this machine, and
    ``kernels.json``; tells ``echo`` the table.
    """
    target = Path(folder, FOLDER)
    target.mkdir(exist_ok=True)
    with client.as_current(), performance_report(str(target / REPORT), mode="inline"):
        profile = Profile(client, Path(folder))
        yield profile
    text = json.dumps({"steps": [step.to_dict() for step in profile.steps]}, indent=1)
    write_text(target / KERNELS, text + "\n")
    echo(describe(profile.steps))
    echo(f"profile: {target / REPORT}, {target / KERNELS}")


def sum_kernels(receipts: list[Receipt]) -> tuple[Kernel, ...]:
    """Sum what receipts say about their kernels, in the order the kernels ran; the time outside them comes last."""
    rows: dict[str, int] = {}
    sums: dict[tuple[str, str], list[float]] = {}
    for receipt in receipts:
        rows[receipt.step] = rows.get(receipt.step, 0) + receipt.rows
        for name, cpu, wall in receipt.extra["kernels"]:
            total = sums.setdefault((receipt.step, name), [0.0, 0.0])
            total[0] += cpu
            total[1] += wall
    order = sorted(sums, key=lambda key: (list(rows).index(key[0]), key[1] == OUTSIDE))
    return tuple(Kernel(task, name, rows[task], *(round(s, 4) for s in sums[task, name])) for task, name in order)


def describe(steps: list[Step]) -> str:
    """The table for people."""
    lines = [f"{'task':<9}{'kernel':<18}{'CPU s':>9}{'wall s':>9}{'CPU µs/spectrum':>17}"]
    for step in steps:
        lines += [f"{k.task:<9}{k.name:<18}{k.cpu:>9.2f}{k.wall:>9.2f}{k.each:>17.0f}" for k in step.kernels]
        shares = "" if step.busy is None else f", {step.busy:.0%} of it in tasks"
        shares += "" if step.outside is None else f", {step.outside:.1%} of their CPU time outside kernels"
        lines.append(
            f"{step.name}: {step.seconds:.1f} s on {step.threads} threads{shares}; CPU {step.workers:.1f} s in the "
            f"workers, {step.launcher:.1f} s here; at most {step.memory:.0f} MiB a worker"
        )
    return "\n".join(lines)
