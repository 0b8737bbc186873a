"""Whole programs that end normally, without a shutdown or by Ctrl-C."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests._support.machine import working_in

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples/digits.py"

pytestmark = [pytest.mark.timeout(400), pytest.mark.long]

NO_SHUTDOWN = """
import asyncio
from rhapsody_testing import Driver
from rhapsody_radical import RadicalExecutionBackend

async def main():
    backend = await RadicalExecutionBackend()
    async with Driver(backend) as driver:
        task = driver.command("sleep 600")
        await driver.submit(task)
        await driver.running(task)

asyncio.run(main())
print("ended")
"""

PROFILED = """
import asyncio
from pathlib import Path
from rhapsody_testing import Driver
from rhapsody_radical import RadicalExecutionBackend

async def main():
    backend = RadicalExecutionBackend(keep_session=True)
    async with await backend, Driver(backend) as driver:
        task = driver.command("true")
        await driver.run_one(task)
    for place in (backend.session.path, backend.pilots[0].sandbox):
        print(any(task["uid"] in each.read_text() for each in Path(place).glob("*.prof")))

asyncio.run(main())
"""

ENGINE = """
import asyncio
from rhapsody import WorkflowEngine
from rhapsody_radical import RadicalExecutionBackend

async def main():
    async with WorkflowEngine.create(RadicalExecutionBackend()) as flow:
        @flow.executable_task
        async def wait():
            return "sleep 600"

        task = wait()
        while str(task.state) != "RUNNING":
            await asyncio.sleep(0.1)
        print("running", flush=True)
        await task

asyncio.run(main())
"""


def program(path: Path, text: str) -> subprocess.Popen[str]:
    """Start a program in its own process group, as a terminal does."""
    script = path / "program.py"
    script.write_text(text)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def said(output: str) -> list[str]:
    """Return the lines that a program printed, except warnings about waiting."""
    waits = (": not active after", ": closing, waiting for")
    return [line for line in output.splitlines() if not any(each in line for each in waits)]


def listing(directory: Path) -> set[str]:
    """The names in a directory."""
    return set(os.listdir(directory))


def test_a_program_without_a_shutdown_ends_and_leaves_nothing(tmp_path: Path) -> None:
    home = listing(Path.home())
    running = program(tmp_path, NO_SHUTDOWN)
    output, _ = running.communicate(timeout=200)
    assert running.returncode == 0, output
    assert said(output)[-1:] == ["ended"], output
    assert working_in(tmp_path) == []
    assert listing(Path.home()) == home
    assert listing(tmp_path) == {"program.py"}


def test_profiles_are_in_the_documented_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RADICAL_PROFILE", "TRUE")
    output, _ = program(tmp_path, PROFILED).communicate(timeout=200)
    assert said(output) == ["True", "True"]


def test_ctrl_c_ends_pilots_and_leaves_nothing(tmp_path: Path) -> None:
    running = program(tmp_path, ENGINE)
    assert running.stdout is not None
    lines = iter(running.stdout.readline, "")
    output = next((line for line in lines if said(line)), "")
    os.killpg(running.pid, signal.SIGINT)
    assert output == "running\n"
    output, _ = running.communicate(timeout=120)
    assert running.returncode in (130, -signal.SIGINT), output
    assert working_in(tmp_path) == []


SLOW = """
import asyncio, time
from rhapsody import WorkflowEngine
from rhapsody_radical import RadicalExecutionBackend

def close_slowly(objects):
    from rhapsody_radical.client.session import PilotSession
    close = PilotSession._close
    PilotSession._close = lambda self: (time.sleep(15), close(self))

async def main():
    backend = RadicalExecutionBackend()
    async with WorkflowEngine.create(backend):
        await backend.run_in_client(close_slowly)
        print("running", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_second_ctrl_c_ends_the_program_while_the_client_closes(tmp_path: Path) -> None:
    running = program(tmp_path, SLOW)
    assert running.stdout is not None
    lines = iter(running.stdout.readline, "")
    assert any(line == "running\n" for line in lines)
    running.send_signal(signal.SIGINT)
    assert any(": closing, waiting for" in line for line in lines)
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=8)
    assert running.returncode in (130, -signal.SIGINT), output
    patience = time.monotonic() + 60
    while working_in(tmp_path):
        assert time.monotonic() < patience, "the client does not end"
        time.sleep(0.1)
    assert list(tmp_path.glob(".rhapsody/**/rhapsody.*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    running = program(tmp_path, ENGINE)
    patience = time.monotonic() + 60
    while not list(tmp_path.glob(".rhapsody/radical.*/*")):
        assert time.monotonic() < patience, "the backend is not starting"
        time.sleep(0.02)
    running.send_signal(number)
    output, _ = running.communicate(timeout=120)
    assert running.returncode in (128 + number, -number), output
    assert working_in(tmp_path) == []
    left = {path.name for path in tmp_path.rglob("*") if not path.is_dir()}
    assert left <= {"program.py", "log.txt"}  # with a warning that names the session's directory


DIRECT = """
import asyncio
from rhapsody_radical import RadicalExecutionBackend

async def main():
    await RadicalExecutionBackend()

asyncio.run(main())
"""


def test_ctrl_c_during_a_start_without_an_engine_names_the_session(tmp_path: Path) -> None:
    running = program(tmp_path, DIRECT)
    patience = time.monotonic() + 60
    while not list(tmp_path.glob(".rhapsody/radical.*/*")):
        assert time.monotonic() < patience, "the backend is not starting"
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=120)
    assert running.returncode in (130, -signal.SIGINT), output
    assert f"the session's directory was {tmp_path}/.rhapsody/rhapsody." in output
    assert working_in(tmp_path) == []


@pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn: pip install it"
)
def test_the_digits_example_runs_from_the_command_line(tmp_path: Path) -> None:
    home = listing(Path.home())
    words = ["run", str(DIGITS), "-b", "radical_pilot", "-o", "resource=local.localhost"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "rhapsody", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    best = re.search(r"^ +1 +support vectors .* (0\.9\d+) ", done.stdout, re.MULTILINE)
    assert best, done.stdout
    assert float(best[1]) > 0.98
    assert working_in(tmp_path) == []
    assert listing(Path.home()) == home
    assert listing(tmp_path) <= {".rhapsody"}
