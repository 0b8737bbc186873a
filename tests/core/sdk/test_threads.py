"""Threads for blocking calls, and the mailbox between threads and a loop."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from functools import partial
from typing import Any

import pytest

from rhapsody.sdk import threads
from rhapsody.sdk.threads import Mailbox, ThreadPool

pytestmark = pytest.mark.asyncio


class Box:
    """A mailbox that collects, and an event that is set when `expected` items came."""

    def __init__(self, expected: int) -> None:
        self.items: list[Any] = []
        self.complete = asyncio.Event()
        self.expected = expected
        self.mailbox: Mailbox[Any] = Mailbox(asyncio.get_running_loop(), self.deliver)

    def deliver(self, item: Any) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.items.append(item)
        if len(self.items) >= self.expected:
            self.complete.set()

    async def wait(self) -> list[Any]:
        async with asyncio.timeout(20):
            await self.complete.wait()
        return self.items


def in_threads(*targets: Any) -> list[threading.Thread]:
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    return threads


async def test_every_item_of_every_thread_arrives_in_its_order() -> None:
    box = Box(4 * 5000)

    def put(thread: int) -> None:
        for number in range(5000):
            box.mailbox.put((thread, number))

    threads = in_threads(*(lambda thread=thread: put(thread) for thread in range(4)))
    items = await box.wait()
    for thread in threads:
        thread.join()
    for source in range(4):
        assert [number for of, number in items if of == source] == list(range(5000))
    assert len(box.mailbox) == 0


async def test_many_items_put_at_once_wake_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    wakes = 0
    threadsafe = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal wakes
        wakes += 1
        return threadsafe(*args, **kwargs)

    box = Box(1000)
    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    for number in range(1000):
        box.mailbox.put(number)
    assert wakes == 1
    assert await box.wait() == list(range(1000))


async def test_an_item_put_while_delivering_is_delivered() -> None:
    box = Box(2)
    deliver = box.deliver

    def again(item: Any) -> None:
        deliver(item)
        if item == "first":
            box.mailbox.put("second")

    box.mailbox = Mailbox(asyncio.get_running_loop(), again)
    box.mailbox.put("first")
    assert await box.wait() == ["first", "second"]


async def test_long_work_leaves_the_loop_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    turns: list[int] = []

    def now() -> float:
        nonlocal clock
        clock += threads.TIME_SLICE / 2
        return clock

    monkeypatch.setattr(threads, "perf_counter", now)
    box = Box(30)
    for number in range(30):
        box.mailbox.put(number)
    loop = asyncio.get_running_loop()

    def count() -> None:
        turns.append(len(box.items))
        if not box.complete.is_set():
            loop.call_soon(count)

    loop.call_soon(count)
    assert await box.wait() == list(range(30))
    assert len(turns) > 5
    assert all(after - before <= 4 for before, after in itertools.pairwise(turns))


async def test_a_receiver_that_raises_does_not_lose_the_others() -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context))
    box = Box(2)

    def picky(item: Any) -> None:
        if item == "bad":
            raise ValueError(item)
        box.deliver(item)

    box.mailbox = Mailbox(loop, picky)
    for item in ("one", "bad", "two"):
        box.mailbox.put(item)
    assert await box.wait() == ["one", "two"]
    assert isinstance(reported[0]["exception"], ValueError)


async def test_delivered_items_are_not_kept() -> None:
    class Item:
        pass

    box = Box(2)
    seen: list[Any] = []

    def deliver(item: Any) -> None:
        seen.append(weakref.ref(item))
        box.deliver(1)

    box.mailbox = Mailbox(asyncio.get_running_loop(), deliver)
    item = Item()
    box.mailbox.put(item)
    del item
    box.mailbox.put(Item())
    await box.wait()
    gc.collect()
    assert [reference() for reference in seen] == [None, None]


async def test_a_nested_drain_is_harmless() -> None:
    box = Box(5)
    deliver = box.deliver

    def nested(item: Any) -> None:
        deliver(item)
        box.mailbox.drain()

    box.mailbox = Mailbox(asyncio.get_running_loop(), nested)
    for number in range(5):
        box.mailbox.put(number)
    assert await box.wait() == list(range(5))


async def test_a_closed_loop_is_not_raised() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    box: Mailbox[int] = Mailbox(loop, print)
    box.put(1)
    box.put(2)
    assert len(box) == 0


async def test_an_empty_mailbox_does_not_wake_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    box = Box(1)
    box.mailbox.put(1)
    await box.wait()
    selector = loop._selector  # type: ignore[attr-defined]
    waits: list[Any] = []
    select = selector.select

    def counted(timeout: float | None) -> Any:
        waits.append(timeout)
        return select(timeout)

    monkeypatch.setattr(selector, "select", counted)
    await asyncio.sleep(0.1)  # in which nothing happens
    assert len(waits) <= 3


async def test_a_pool_makes_all_calls_on_at_most_its_number_of_threads() -> None:
    pool, used = ThreadPool(2, "pool"), set()

    def call() -> None:
        used.add(threading.current_thread())

    await asyncio.gather(*(pool.run(call) for _ in range(20)))
    assert len(used) <= 2
    pool.put(call)
    await pool.close()
    assert not any(thread.is_alive() for thread in used)


async def test_a_pool_hands_on_results_and_errors() -> None:
    pool = ThreadPool(1, "pool")
    assert await pool.run(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 // 0)
    await pool.close()


async def test_a_pool_makes_its_calls_at_the_end_if_no_thread_could_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any) -> threading.Thread:
        raise RuntimeError("can't start new thread")

    pool, made = ThreadPool(1, "pool"), []
    monkeypatch.setattr(threads, "start_thread", refuse)
    pool.put(lambda: made.append(1))
    with pytest.raises(RuntimeError, match="can't start"):
        await pool.run(made.clear)
    await pool.close()
    assert made == [1]


async def test_calls_that_nobody_waits_for_share_a_thread_unless_they_are_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = set()

    def call() -> None:
        used.add(threading.current_thread())

    monkeypatch.setattr(threads, "SLOW_CALL", 60)
    pool = ThreadPool(2, "pool")
    for _ in range(20):
        pool.start()
        pool.put(call)
    await pool.close()
    assert len(used) == 1

    monkeypatch.setattr(threads, "SLOW_CALL", 0)
    pool, both = ThreadPool(2, "pool"), threading.Barrier(2)
    pool.start()
    for each in (call, partial(both.wait, 20), partial(both.wait, 20)):
        pool.put(each)
    await pool.close()
    assert not both.broken


async def test_calls_are_made_while_an_earlier_one_hangs() -> None:
    for _ in range(50):  # the first thread may be about to take the call that hangs
        pool, hang = ThreadPool(2, "pool"), threading.Event()
        pool.start()
        pool.put(partial(hang.wait, 60))
        async with asyncio.timeout(30):
            assert [await pool.run(partial(int, number)) for number in range(3)] == [0, 1, 2]
        hang.set()
        await pool.close()
