"""Promise 8: what may pass is tried again, a set number of times; what would fail again is not."""

from pathlib import Path

import pytest
from distributed import Client

from hotdask.cluster.tasks import RETRIES, run_tasks
from hotdask.errors import InputError, RunError
from hotdask.store.receipts import Receipt


def _fail(folder: str, partition: int, failures: int, error: type[Exception]) -> Receipt:
    """Fails the first times it is called; leaves a file for each call."""
    calls = len(list(Path(folder).glob(f"{partition}-*")))
    Path(folder, f"{partition}-{calls}").touch()
    if calls < failures:
        raise error(f"call {calls}")
    return Receipt("step", partition, "", 10, {})


def test_tasks_are_tried_a_few_times(client: Client, tmp_path: Path) -> None:
    failures = {0: 0, 1: 1, 2: 2, 3: 3, 4: 99}
    tasks = {p: (_fail, str(tmp_path), p, n, OSError) for p, n in failures.items()}
    tasks[5] = (_fail, str(tmp_path), 5, 1, InputError)
    with pytest.raises(RunError, match="3 of 6 step tasks failed; the others are done and kept") as caught:
        run_tasks(client, "step", tasks, total=60, done=0, rows=lambda receipt: receipt.rows)
    text = str(caught.value)
    assert "step 3: OSError: call 2 (tried 3 times)" in text
    assert "step 4: OSError: call 2 (tried 3 times)" in text
    assert "step 5: InputError: call 0 (would fail again)" in text
    assert isinstance(caught.value.__cause__, OSError)
    calls = {p: len(list(tmp_path.glob(f"{p}-*"))) for p in tasks}
    assert RETRIES == 2
    assert calls == {0: 1, 1: 2, 2: 3, 3: 3, 4: 3, 5: 1}
