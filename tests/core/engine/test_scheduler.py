"""The shortest history of each fault that the scheduler has had."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from rhapsody.engine.core.record import TaskRecord
from rhapsody.engine.core.states import WorkState
from rhapsody.errors import TaskTimeoutError
from tests._support.world.world import World, definition


class Script(World):
    """A world in which only the test makes things happen."""

    def __init__(self, *, max_failures: int | None = None) -> None:
        super().__init__(Random(0))
        self.scheduler.failures_left = max_failures

    def task(self, **settings: object) -> TaskRecord:
        """A task that was called."""
        return self.add(definition("function", **settings))

    def hand_over(self, *records: TaskRecord) -> None:
        """Tasks that are in the hands of the backend, which has not taken them yet."""
        for record in records:
            self.prepare(record)
        self.scheduler.submit(records, self.backends[0])


def test_what_is_cancelled_while_a_batch_is_put_together_is_not_in_it() -> None:
    script = Script(max_failures=1)
    first, second = script.task(), script.task()
    script.prepare(first)
    script.scheduler.refuse(second, LookupError())
    assert script.scheduler.submit([first], script.backends[0]) == []
    assert script.scheduler.inflight == {}


def test_a_task_that_is_refused_after_its_timeout_fails_with_the_timeout() -> None:
    script = Script()
    record = script.task(timeout=5)
    script.hand_over(record)
    script.scheduler.run(record)
    script.wait()
    script.scheduler.reject(record, OSError("no"))
    assert isinstance(record.future.exception(), TaskTimeoutError)
    assert not script.scheduler.live


def test_what_is_abandoned_gives_its_slot_and_its_limits_back() -> None:
    script = Script()
    script.scheduler.limits.declare((("license", 1),))
    record = script.task(limit="license:1")
    assert script.scheduler.limits.take(record, record.call.task.settings.limit)
    script.hand_over(record)
    script.scheduler.abandon()
    assert script.backends[0].occupied == 0
    assert script.scheduler.limits.take(script.task(limit="license:1"), (("license", 1),))


@pytest.mark.parametrize("cancelled", [False, True])
def test_the_end_of_a_block_that_was_abandoned_is_ignored(cancelled: bool) -> None:
    script = Script()
    record = script.add(definition("block"))
    script.scheduler.run(record)
    if cancelled:
        script.scheduler.cancel(record)
    script.scheduler.interrupted = True
    script.scheduler.abandon()
    assert record.future.cancelled()
    assert record.state.work is WorkState.LOST
    script.scheduler.end_block(record, None, asyncio.CancelledError())
    assert record.state.work is WorkState.LOST
