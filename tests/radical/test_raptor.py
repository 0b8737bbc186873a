"""Assignment of calls to the processes of a RAPTOR worker, without RADICAL-Pilot's channels."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from rhapsody_radical import functions
from rhapsody_radical.functions import completed

pytestmark = pytest.mark.timeout(60)

CORES, LIMIT = 2, 30.0


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A worker with two cores; its `results` are the groups that have ended."""
    monkeypatch.setenv("RADICAL_BASE", str(tmp_path / "radical"))
    # The source of all tests' modules would fill the connection to a process that is stopped.
    monkeypatch.setattr(functions, "own_modules", lambda: None)
    from rhapsody_radical.pilot import rp

    module = import_module("rhapsody_radical._raptor")

    class Results(SimpleQueue[Any]):
        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            super().put(json.loads(item["return_value"]))

    def without_channels(self: Any, raptor_id: str) -> None:
        self._uid, self._n_cores = raptor_id, CORES
        self._resources = {"cores": [0] * CORES}
        self._rlock, self._my_term = threading.Lock(), threading.Event()
        self._res_put = self.results = Results()
        self._states = SimpleNamespace(put=lambda *_: None)

    monkeypatch.setattr(rp.raptor.DefaultWorker, "__init__", without_channels)
    made = module.RhapsodyWorker("worker")
    yield made
    made.stop()


def call(number: int, function: Any, *args: Any) -> tuple[str, str, dict[str, str]]:
    """Pack a call of a group."""
    task = completed(str(number), {"function": function, "args": args}, None)
    return str(number), functions.as_text(functions.pack(task, {}, capture=True)), {}


def send(worker: Any, *calls: tuple[Any, ...]) -> None:
    """Send a group of calls; their uids are their numbers."""
    texts = [call(number, *each) for number, each in enumerate(calls)]
    words = {"function": json.dumps(texts), "metadata": {"rhapsody": "calls"}}
    worker._request_cb([{"uid": "group", "description": words}])


def outcomes(worker: Any) -> list[Any]:
    """Return the values of the calls of a group in order, or the type of error or `None`."""
    found: dict[int, Any] = {}
    for uid, text, error, cancelled in worker.results.get(timeout=LIMIT):
        task: Any = completed(uid, {}, None)
        if text is not None:
            assert functions.unpack(text, task) is None
        found[int(uid)] = None if cancelled else task.get("return_value", error)
    return [found[number] for number in sorted(found)]


def cancel(worker: Any, *numbers: int) -> None:
    message = {"cmd": "cancel_tasks", "arg": {"uids": [str(number) for number in numbers]}}
    worker._control_cb("control", message)


def hold(gate: Path, mark: Path) -> str:
    mark.touch()
    until = time.monotonic() + LIMIT
    while not gate.exists() and time.monotonic() < until:
        time.sleep(0.01)
    return mark.name


def exists(*paths: Path) -> bool:
    """Wait for files."""
    until = time.monotonic() + LIMIT
    while not all(path.exists() for path in paths) and time.monotonic() < until:
        time.sleep(0.01)
    return all(path.exists() for path in paths)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


SHORT = [(abs, -number) for number in range(60)]
"""Calls after which a process receives several at once."""


def test_no_call_waits_for_a_long_call_while_a_core_is_free(worker: Any, tmp_path: Path) -> None:
    gate, paths = tmp_path / "gate", [tmp_path / str(number) for number in range(60)]
    send(worker, *SHORT, (hold, gate, tmp_path / "mark"), *((Path.touch, path) for path in paths))
    assert exists(*paths)
    gate.touch()
    assert outcomes(worker) == [*range(60), "mark", *[None] * 60]


def test_calls_queued_behind_long_calls_are_canceled_before_they_start(
    worker: Any, tmp_path: Path
) -> None:
    gate, marks = tmp_path / "gate", [tmp_path / "one", tmp_path / "two"]
    paths = [tmp_path / str(number) for number in range(60)]
    touching = [(Path.touch, path) for path in paths]
    send(worker, *SHORT, *((hold, gate, mark) for mark in marks), *touching)
    assert exists(*marks)
    started = [path.exists() for path in paths]
    cancel(worker, *range(62, 122))
    gate.touch()
    assert outcomes(worker) == [*range(60), "one", "two", *[None] * 60]
    assert [path.exists() for path in paths] == started


def test_a_running_call_can_be_canceled(worker: Any, tmp_path: Path) -> None:
    gate, marks = tmp_path / "gate", [tmp_path / "one", tmp_path / "two"]
    send(worker, *((hold, gate, mark) for mark in marks), *SHORT)
    assert exists(*marks)
    cancel(worker, 0)
    gate.touch()
    assert outcomes(worker) == [None, "two", *range(60)]


def test_long_calls_start_in_order(worker: Any, tmp_path: Path) -> None:
    gate, marks = tmp_path / "gate", [tmp_path / str(number) for number in range(60)]
    send(worker, *((hold, gate, mark) for mark in marks))
    assert exists(*marks[:CORES])
    assert not any(mark.exists() for mark in marks[CORES:])
    gate.touch()
    assert outcomes(worker) == [mark.name for mark in marks]


def test_a_call_that_kills_its_process_fails_no_other(worker: Any) -> None:
    send(worker, *SHORT, (die,), *SHORT)
    found = outcomes(worker)
    assert found.pop(60).startswith("ChildProcessError")
    assert found == [*range(60), *range(60)]


def test_a_timeout_ends_only_its_own_call(worker: Any, tmp_path: Path) -> None:
    gate, marks = tmp_path / "gate", [tmp_path / "one", tmp_path / "two"]
    send(worker, *((hold, gate, mark) for mark in marks))
    assert exists(*marks)
    until = time.monotonic() + LIMIT
    while len(worker._busy) < 2 and time.monotonic() < until:  # a call may start before
        time.sleep(0.01)
    for process in worker._busy:
        worker._expire("1", process)
    worker._expire("former", worker._busy[0])
    gate.touch()
    one, two = outcomes(worker)
    assert (one, two.partition("(")[0]) == ("one", "TimeoutError")


def test_the_cores_of_calls_that_are_withdrawn_are_released(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call of a process that has not started it runs on other cores."""
    start = worker._process

    def stopped(cores: int) -> Any:
        monkeypatch.setattr(worker, "_process", start)
        process = start(cores)
        os.kill(process._pid, signal.SIGSTOP)
        return process

    monkeypatch.setattr(worker, "_process", stopped)
    with worker._change:
        send(worker, *SHORT)
        calls, others = worker._next(2), list(worker._waiting)
        worker._waiting.clear()
    threading.Thread(target=worker._call_all, args=(calls,)).start()
    until = time.monotonic() + LIMIT
    while not worker._busy and time.monotonic() < until:
        time.sleep(0.01)
    (process,) = worker._busy
    with worker._change:
        worker._waiting.extend(others)
        worker._change.notify_all()
    assert outcomes(worker) == [*range(60)]
    os.kill(process._pid, signal.SIGCONT)
    with worker._change:
        assert worker._change.wait_for(lambda: not any(worker._resources["cores"]), LIMIT)
