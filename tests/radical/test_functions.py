"""Packing of calls, and unpacking of their results."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import cloudpickle  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsody_radical import call, functions
from rhapsody_radical.functions import completed
from rhapsody_radical.wire import is_plain
from tests._support.nonsense import little_memory, nonsense
from tests.radical import stand_ins
from tests.radical.calls import MIB, packed, same

DEFAULT_WORKER = """
import base64, pickle, sys
encoded = pickle.loads(base64.b64decode(sys.stdin.read()))
sys.stdout.write(pickle.loads(encoded["func"])(*encoded["args"]))
"""
"""Program that executes a function task in the same way as RAPTOR's default worker."""


def calls_of(function: Any, count: int) -> list[Any]:
    """Return the results of calls of one function that are packed together."""
    batch, values = functions.Batch(), []
    for number in range(count):
        words = {"function": function, "args": (number,), "kwargs": {}}
        task = completed(f"task.{number}", words, None)
        order = functions.pack(task, {}, capture=True, batch=batch)
        assert functions.unpack(call.run(functions.as_text(order)), task) is None
        values.append(task["return_value"])
    return values


@pytest.mark.parametrize("size", [0, 2 * call.LARGE])
def test_calls_packed_together_do_not_share_state(size: int) -> None:
    seen: list[Any] = [bytes(size)]

    def note(number: int) -> list[int]:
        seen.append(number)
        return seen[1:]

    assert calls_of(note, 3) == [[0], [1], [2]]


def test_a_function_is_pickled_once_per_batch() -> None:
    class Counted:
        pickled = 0

        def __reduce__(self) -> Any:
            Counted.pickled += 1
            return int, ()

    counted = Counted()

    def add(number: int) -> int:
        return number + int(cast("int", counted))

    assert calls_of(add, 3) == [0, 1, 2]
    assert Counted.pickled == 1


def test_a_function_is_sent_once_per_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(functions, "own_modules", lambda: None)
    constant, batch = os.urandom(20_000), functions.Batch()

    def measure(number: int) -> int:
        return len(constant) + number

    orders = []
    for number in range(100):
        words = {"function": measure, "args": (number,), "kwargs": {}}
        task = completed(f"task.{number}", words, None)
        orders.append(functions.pack(task, {}, capture=True, batch=batch))
    assert is_plain(orders)
    assert len(pickle.dumps(orders)) < 100_000


def test_a_forgotten_call_leaves_no_files(tmp_path: Path) -> None:
    packed(tmp_path, same, bytes(MIB))
    task, order = packed(tmp_path, same, bytes(MIB))  # over one that is still there
    call.run(order)
    assert len(list(tmp_path.iterdir())) == 1
    functions.forget(str(tmp_path), task["uid"])
    assert list(tmp_path.iterdir()) == []
    functions.forget(str(tmp_path), task["uid"])


def test_other_workers_run_calls_with_large_values(tmp_path: Path) -> None:
    task = completed("task.1", {"function": len, "args": (bytes(MIB),), "kwargs": {}}, None)
    order = functions.pack(task, {}, capture=True, directory=str(tmp_path))
    # In this process, unpickling would replace the methods of the original runner.
    reply = subprocess.run(
        [sys.executable, "-c", DEFAULT_WORKER],
        input=functions.python_task(order),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert functions.unpack(reply, task) is None
    assert task["return_value"] == MIB
    assert task["usage"]["cpu_seconds"] > 0


def test_two_backends_can_pack_their_first_calls_concurrently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both, dumps = threading.Barrier(2), cloudpickle.dumps

    def together(value: Any) -> Any:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        return dumps(value)

    monkeypatch.setattr("cloudpickle.dumps", together)
    functions._packed_runner.cache_clear()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: functions._runner(), range(2))
    assert first == second


@given(st.text(max_size=40) | nonsense(b"abc" * 20).map(lambda data: b64encode(data).decode()))
@settings(max_examples=50, deadline=None)
def test_a_malformed_result_fails_the_task(text: str) -> None:
    task: Any = {"uid": "task.1", "name": "one"}
    with little_memory():
        assert isinstance(functions.unpack(text, task), Exception)


@pytest.mark.parametrize(
    ("nodes", "per_node", "sizes"), [(1, 8, [7]), (1, 2, [1]), (3, 4, [3, 3, 3]), (3, 1, [1, 1])]
)
def test_workers_for_commands_leave_a_core_on_each_node(
    nodes: int, per_node: int, sizes: list[int]
) -> None:
    """A worker that needs a whole node could not start on the node of the master."""
    has = {"cores": per_node}.__getitem__
    pilot = stand_ins.pilot(nodes=nodes, cores=nodes * per_node, has=has)
    workers = functions.default_raptor(pilot, None, whole=True)["masters"][0]["workers"]
    assert [worker["cores_per_rank"] for worker in workers] == sizes
