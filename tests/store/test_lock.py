import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hotdask.errors import RunError
from hotdask.store.lock import hold


def test_a_second_holder_is_told_who_holds(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from hotdask.store.lock import hold\n"
        "with hold(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        before = {p: p.read_bytes() for p in tmp_path.iterdir()}
        with (
            pytest.raises(RunError, match=rf"is in use by process {other.pid} on \S+, since 20\S+; wait"),
            hold(tmp_path),
        ):
            pass
        assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    # The operating system has let go of it.
    with hold(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock.json").read_text()
    with hold(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/\.lock: cannot be locked"), hold(tmp_path / "file"):
        pass


def test_a_folder_that_cannot_be_written_is_named_though_its_lock_can() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, user = Path(name), os.geteuid()
        # As a killed command leaves it.
        for left in (".lock", ".lock.json"):
            (folder / left).touch()
            (folder / left).chmod(0o666)
        folder.chmod(0o555)
        if user == 0:
            # Permissions do not bind root.
            os.seteuid(65534)
        try:
            with (
                pytest.raises(RunError, match=rf"{folder}: \.lock\.json cannot be written \(Perm.*; mend"),
                hold(folder),
            ):
                pass
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
