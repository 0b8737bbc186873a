"""The event loops that backends share between users' coroutines."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import warnings
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from rhapsody.sdk import loops
from rhapsody.sdk.loops import SharedLoop, WorkerLoop


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Let threads take turns as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switches")
def test_first_calls_of_many_threads_start_one_thread_and_none_is_lost() -> None:
    for _ in range(20):
        loop, together = SharedLoop("shared"), threading.Barrier(30)
        called: list[int] = []
        complete = threading.Event()

        def record(called: list[int] = called, complete: threading.Event = complete) -> None:
            called.append(threading.get_ident())
            if len(called) == 30:
                complete.set()

        def call(loop: SharedLoop = loop, together: threading.Barrier = together) -> None:
            together.wait(20)
            loop.call(record)

        threads = [threading.Thread(target=call) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert complete.wait(30), f"{len(called)} of 30 calls were made"
        assert len(set(called)) == 1
        loop.stop(5)


def test_a_call_after_the_end_starts_another_thread() -> None:
    loop = SharedLoop("shared")
    for _ in range(2):
        called = threading.Event()
        loop.call(called.set)
        assert called.wait(20)
        loop.stop(20)
    assert not [one for one in threading.enumerate() if one.name == "shared"]


def test_stop_is_quiet_if_a_coroutine_stops_the_loop_at_that_moment() -> None:
    loop, found = SharedLoop("shared"), SimpleQueue[asyncio.AbstractEventLoop]()
    loop.call(lambda: found.put(asyncio.get_running_loop()))
    of_thread = found.get(timeout=20)
    thread = next(one for one in threading.enumerate() if one.name == "shared")

    class Lock:
        """Let the thread end between the two steps of `stop`."""

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            of_thread.call_soon_threadsafe(of_thread.stop)
            thread.join(20)

    loop._lock = Lock()  # type: ignore[assignment]
    loop.stop(20)
    assert of_thread.is_closed()


def test_a_loop_that_is_collected_in_a_cycle_is_closed_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leave() -> None:
        made = [asyncio.SelectorEventLoop()]  # older than its owner: collected before it
        monkeypatch.setattr(loops, "_new_loop", made.pop)
        worker = WorkerLoop()
        worker.run(asyncio.sleep(0))
        cycle: list[object] = [worker]
        cycle.append(cycle)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leave()
        gc.collect()
    assert not caught
