"""Processes of Rhapsody's RAPTOR worker, without RADICAL-Pilot."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from rhapsody_radical import functions
from rhapsody_radical.client.raptor import CALL_FILES, OWN_CLASSES
from tests.radical.calls import packed, same


def test_a_worker_runs_calls_without_an_installation_of_rhapsody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "own_modules", lambda: None)  # those of all tests are many
    for file in (OWN_CLASSES, *CALL_FILES):
        (tmp_path / file.name).symlink_to(file)  # as RADICAL-Pilot puts them into a sandbox

    def missing() -> Any:
        found = []
        for name in ("rhapsody", "rhapsody_radical"):
            try:
                import_module(name)
            except ImportError as error:
                found.append(str(error.name))
        raise LookupError(*found)

    task, order = packed(None, missing)
    program = (
        "import sys\n"
        "sys.modules['rhapsody'] = sys.modules['rhapsody_radical'] = None\n"
        "from _raptor import Server\n"
        "task = {'description': {'metadata': {'rhapsody': 'call'}, 'function': sys.argv[1]}}\n"
        "server = Server()\n"
        "process = server.start(1)\n"
        "process.send([task])\n"
        "print(process.receive())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, order],
        cwd=tmp_path,
        env={**os.environ, "RADICAL_BASE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    error = functions.unpack(said.split()[-1], task)
    assert type(error) is LookupError
    assert error.args == ("rhapsody", "rhapsody_radical")


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RADICAL_BASE", str(tmp_path / "radical"))
    from rhapsody_radical.pilot import rp  # noqa: F401 - else its import warns

    worker = import_module("rhapsody_radical._raptor")
    server = worker.Server()
    made = server.start(1)
    yield made
    made.kill()
    made.close()
    server.close()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[int]:
    """A pipe, `pipe` in the directory, that ends when its other side is closed."""
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def call_of(directory: Path, function: Any, *args: Any) -> dict[str, Any]:
    _, order = packed(directory, function, *args)
    return {"description": {"metadata": {"rhapsody": "call"}, "function": order}}


def asked(process: Any, directory: Path, function: Any, *args: Any) -> Any:
    process.send([call_of(directory, function, *args)])
    if (text := process.receive()) is not None:
        process.calls.popleft()
        assert process.receive() is None
    return text


def leave(how: str, path: str, ends: bool) -> None:
    """Let a process of the call's group hold a pipe."""
    descriptor = os.open(path, os.O_WRONLY)
    if how == "spawned":
        os.set_inheritable(descriptor, True)
        os.posix_spawn("/bin/sleep", ["sleep", "600"], os.environ)
    elif os.fork() == 0:
        time.sleep(600)
    os.close(descriptor)
    if ends:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("how", ["spawned", "forked"])
def test_killing_a_process_ends_everything_that_its_call_started(
    process: Any, held: int, tmp_path: Path, how: str
) -> None:
    assert asked(process, tmp_path, leave, how, str(tmp_path / "pipe"), True) is None
    process.kill()
    assert _ended(held)


def test_closing_a_process_does_not_end_what_its_call_started(
    process: Any, held: int, tmp_path: Path
) -> None:
    assert asked(process, tmp_path, leave, "spawned", str(tmp_path / "pipe"), False)
    assert asked(process, tmp_path, os.getpid)
    process.close()
    assert not _ended(held, 1.0)
    process.kill()
    assert _ended(held)


def test_a_failed_fork_loses_only_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = import_module("rhapsody_radical._raptor")
    forks, fork = [0], os.fork

    def failing() -> int:
        forks[0] += 1
        if forks[0] == 2:  # the first one makes the server, which makes the second
            raise BlockingIOError(errno.EAGAIN, "no more processes")
        return fork()

    monkeypatch.setattr(os, "fork", failing)
    server = worker.Server()
    try:
        with pytest.raises(ChildProcessError):
            server.start(1)
        made = server.start(1)
        assert asked(made, tmp_path, os.getpid) is not None
        made.close()
    finally:
        server.close()


def hold(gate: str, mark: str) -> str:
    """In a process: create a file, and wait for another."""
    Path(mark).touch()
    until = time.monotonic() + 20
    while not os.path.exists(gate) and time.monotonic() < until:
        time.sleep(0.01)
    return "held"


def test_calls_that_have_not_started_can_be_withdrawn(process: Any, tmp_path: Path) -> None:
    gate, mark = tmp_path / "gate", tmp_path / "mark"
    first, *others = (
        call_of(tmp_path, hold, str(gate), str(mark)),
        *(call_of(tmp_path, same, number) for number in range(3)),
    )
    process.send([first, *others])
    until = time.monotonic() + 20
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert process.withdraw() == others
    assert list(process.calls) == [first]
    gate.touch()
    assert process.receive()
    process.calls.clear()
    assert process.receive() is None
    assert process.alive
    assert process.withdraw() == []
    assert asked(process, tmp_path, same, 4)


def test_a_killed_process_loses_only_its_running_call(process: Any, tmp_path: Path) -> None:
    calls = [call_of(tmp_path, same, 1), call_of(tmp_path, os._exit, 3), call_of(tmp_path, same, 2)]
    process.send(calls)
    assert process.receive()
    process.calls.popleft()
    assert process.receive() is None
    assert process.withdraw() == calls[2:]
    assert list(process.calls) == calls[1:2]
    assert not process.alive


def _ended(held: int, patience: float = 20.0) -> bool:
    """Return True if a pipe ends in time."""
    return bool(select.select([held], [], [], patience)[0])
