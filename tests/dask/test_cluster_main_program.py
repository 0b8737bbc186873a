"""Main programs with and without a guard, which worker processes import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody_dask import cluster

BEGIN = """
import asyncio
from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend

print("read")

async def main():
    backend = DaskExecutionBackend({"n_workers": 1, "threads": 1})
    async with WorkflowEngine.create(backend=backend) as flow:
        print(await flow.function_task(lambda x: 2 * x)(21))
"""
PLAIN = BEGIN + "asyncio.run(main())\n"
GUARDED = BEGIN + 'if __name__ == "__main__":\n    asyncio.run(main())\n'


def _run(directory: Path, program: str) -> subprocess.CompletedProcess[str]:
    file = directory / "program.py"
    file.write_text(program)
    return subprocess.run(
        [sys.executable, file], cwd=directory, capture_output=True, text=True, timeout=100
    )


def test_a_program_without_a_guard_fails_before_a_worker_starts(tmp_path: Path) -> None:
    done = _run(tmp_path, PLAIN)
    assert done.returncode == 1
    assert done.stdout == "read\n"
    assert done.stderr.count("Traceback") == 1
    last = done.stderr.rstrip().rpartition("\n")[2]
    assert last.startswith(
        "rhapsody.errors.BackendUnavailableError: Dask's worker processes import"
    )
    assert 'under `if __name__ == "__main__":`' in last


def test_a_program_from_standard_input_fails_with_a_hint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable], input=GUARDED, cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    last = done.stderr.rstrip().rpartition("\n")[2]
    assert last.startswith("rhapsody.errors.BackendUnavailableError: Dask's worker processes")
    assert "Save it to a file" in last


def test_a_program_with_a_guard_runs(tmp_path: Path) -> None:
    done = _run(tmp_path, GUARDED)
    assert done.stdout.replace("read\n", "") == "42\n", done.stderr


def test_the_main_module_of_a_package_needs_no_guard(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    alone = """
from distributed import Client
with Client(n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
    print(client.submit(lambda x: 2 * x, 21).result())
"""
    (package / "__main__.py").write_text(PLAIN + alone)
    done = subprocess.run(
        [sys.executable, "-m", "package"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout == "read\n42\n42\n", done.stderr
    done = subprocess.run(
        [sys.executable, "package"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "read\n42\n42\n", done.stderr


BUSY = """
import asyncio, time
from rhapsody import WorkflowEngine
from rhapsody_dask import DaskExecutionBackend

async def main():
    backend = DaskExecutionBackend({"n_workers": 1, "threads": 1})
    async with WorkflowEngine.create(backend=backend) as flow:
        long = flow.executable_task(lambda: "sleep 600")()
        while not flow.running:
            await asyncio.sleep(0.01)
        print("running", flush=True)
        await long

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_workers_print_nothing_when_ctrl_c_ends_the_program(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(BUSY)
    process = subprocess.Popen(
        [sys.executable, file],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert err.count("KeyboardInterrupt") == 1, err
    assert "died" not in err


@pytest.mark.parametrize(
    ("program", "guarded"),
    [
        ("go()", False),
        ("if True:\n    go()", False),
        ("log = logging.getLogger(__name__)\ngo()", False),
        ("if __name__ == '__main__':\n    go()", True),
        ("if parent_process() is None:\n    go()", True),
        ("try:\n    if __name__ == '__main__':\n        go()\nfinally: ...", True),
        ("if __name__ != '__main__':\n    raise SystemExit\ngo()", True),
    ],
)
def test_a_guard_is_a_condition_on_the_name(program: str, guarded: bool) -> None:
    assert bool(cluster.GUARD.search(program)) is guarded
