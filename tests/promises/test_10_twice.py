"""Promise 10: the same task on two workers at once leaves what one leaves."""

from collections.abc import Callable
from pathlib import Path

import pytest
from distributed import Client

from hotdask.pipeline import maps
from hotdask.store.receipts import list_receipts, read_receipt, remove_receipt


@pytest.mark.parametrize("step", ["stage", "ingest", "fit"])
def test_twice_at_once_is_once(client: Client, finished, hashes: Callable, tmp_path: Path, step: str) -> None:
    settings = finished.copy(tmp_path / "RUN")
    folder = tmp_path / "RUN"
    before, receipt = hashes(folder), read_receipt(folder, step, 3)
    remove_receipt(folder, step, 3)
    for name in receipt.files:
        (folder / name).unlink(missing_ok=True)
    more = {
        "stage": (settings.input.classes,),
        "ingest": (),
        "fit": (settings, finished.summary["emulator"]),
    }[step]
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    assert len(workers) == 2
    twins = [
        client.submit(
            getattr(maps, step), str(folder), 3, receipt.fingerprint, *more, workers=[worker], pure=False, key=worker
        )
        for worker in workers
    ]
    made = client.gather(twins)
    assert [m.files for m in made] == [receipt.files] * 2
    assert read_receipt(folder, step, 3).files == receipt.files
    assert list_receipts(folder, step).keys() == list_receipts(finished.folder, step).keys()
    # Staged parts were gone, so they are what is new; of receipts only the times differ; nothing hidden is left.
    after = hashes(folder)
    assert {k for k in after if after[k] != before.get(k)} == {
        f"receipts/{step}/00003.json",
        *(receipt.files if step == "stage" else ()),
    }
    assert before.keys() <= after.keys()
