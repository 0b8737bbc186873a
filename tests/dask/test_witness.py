"""What a worker was running is known after it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from rhapsody_dask.worker.witness import PLACES, Witness, mark, path_of, running

ADDRESS = "tls://127.0.0.1:4711"


def test_what_was_running_is_known_and_what_has_ended_is_not(tmp_path: Path) -> None:
    witness = Witness(path_of(str(tmp_path), ADDRESS))
    first, _ = witness.note("first"), witness.note("second")
    witness.release(first)
    found = running(str(tmp_path), ADDRESS)
    assert mark("second") in found
    assert mark("first") not in found


def test_a_killed_process_leaves_its_notes(tmp_path: Path) -> None:
    program = f"""
import os, signal
from rhapsody_dask.worker.witness import Witness, path_of
Witness(path_of({str(tmp_path)!r}, {ADDRESS!r})).note("deadly")
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program])
    assert done.returncode == -signal.SIGKILL
    assert mark("deadly") in running(str(tmp_path), ADDRESS)


def test_a_worker_that_never_began_was_running_nothing(tmp_path: Path) -> None:
    assert not running(str(tmp_path), ADDRESS)


def test_places_are_used_again_and_more_than_there_are_go_unnoted(tmp_path: Path) -> None:
    witness = Witness(path_of(str(tmp_path), ADDRESS))
    places = [witness.note(str(n)) for n in range(PLACES)]
    assert witness.note("one too many") is None
    witness.release(None)
    witness.release(places[7])
    assert witness.note("again") == 7


PROGRAM = """
import asyncio, os, signal, sys
from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend

async def main(killed):
    backend = DaskExecutionBackend({"n_workers": 1, "threads": 1})
    async with WorkflowEngine.create(backend=backend) as flow:
        assert await flow.function_task(lambda x: 2 * x)(21) == 42
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
"""


def test_the_notes_of_a_killed_program_are_gone_after_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}

    def run(*arguments: str) -> int:
        command = [sys.executable, str(file), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, timeout=60).returncode

    assert run("killed") == -signal.SIGKILL
    assert [path.name for path in temporary.glob("dask-scratch-space/*/witnesses")]
    assert run() == 0
    assert not list(temporary.rglob("*witness*"))
    assert not list(temporary.glob("rhapsody*"))
