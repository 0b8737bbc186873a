"""Whatever happens in whatever order: no future is lost, doubled or hanging.

A scripted backend reports anything at any time, from the loop and from threads, while
tasks are called, cancelled, retried, timed out and the engine is shut down. What must
hold all along and at the end is in `check` and `check_the_end`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rhapsody import (
    DependencyFailureError,
    RetryPolicy,
    TaskLostError,
    TaskTimeoutError,
    WorkflowEngine,
)
from rhapsody.task import TaskFuture
from rhapsody_testing import EventRecorder
from tests._support.scripted import RUNS_ALL, ManualClock, Scripted, in_thread, turns, within

TERMINAL = ("DONE", "FAILED", "CANCELED")
UNSTOPPABLE = dataclasses.replace(
    RUNS_ALL, cancel_functions="none", cancel_async_functions="none", cancel_services="none"
)
ALL = 30
"""Turns of the loop after which all that follows from something has happened."""


class Token:
    """An argument whose end can be seen."""


class OwnError(Exception):
    """Exception of failing tasks."""


@dataclass
class Call:
    """A call of a task or block.

    Attributes:
        future: What it returned.
        dependencies: The calls whose futures it got.
        token: A weak reference to its argument.
        settled: How it was settled, each time that it was.
    """

    future: TaskFuture[Any]
    dependencies: list[Call]
    token: weakref.ref[Token]
    settled: list[str] = field(default_factory=list)

    def outcome(self) -> str | None:
        """Return the state of the task."""
        if not self.future.done():
            return None
        if self.future.cancelled():
            return "cancelled"
        error = self.future.exception()
        return f"value {self.future.result()}" if error is None else repr(error)

    def serves(self) -> bool:
        """Return whether it is a service that was ready and has not ended for good."""
        return self.future.done() and self.future.task is not None


class History:
    """One history of an engine on a scripted backend; each method is something that happens."""

    def __init__(self) -> None:
        self.complaints: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, c: self.complaints.append(c))
        self.calls: list[Call] = []
        self.closed = False
        self.reported: set[str] = set()
        self.clock = ManualClock()
        self.events = EventRecorder()

    async def begin(
        self, *, stoppable: bool, obedient: bool, observed: bool, **options: Any
    ) -> None:
        self.backend = Scripted(capabilities=RUNS_ALL if stoppable else UNSTOPPABLE)
        if not (stoppable and obedient):
            self.backend.stopping = None
        self.flow = await WorkflowEngine.create(
            self.backend,
            clock=self.clock,
            handle_signals=False,
            observers=[self.events] if observed else [],
            **options,
        )

        @self.flow.function_task
        def part(*_: Any) -> Any: ...

        @self.flow.executable_task(service=True)
        async def server(*_: Any) -> str:
            return "serve"

        @self.flow.block
        async def block(token: Token, *dependencies: Any) -> Any:
            inner = [self.remember(part, [], {}), self.remember(part, [], {"retries": 1})]
            return await asyncio.gather(*[call.future for call in inner])

        self.tasks: dict[str, Any] = {"part": part, "server": server, "block": block}

    def remember(
        self, task: Any, dependencies: list[Call], options: dict[str, Any], after: bool = False
    ) -> Call:
        """Calls a task and keeps book of it."""
        token = Token()
        futures = [call.future for call in dependencies]
        if after:
            options, futures = {**options, "after": futures}, []
        future = task.options(**options)(token, *futures)
        call = Call(future, dependencies, weakref.ref(token))
        self.calls.append(call)
        call.future.add_done_callback(lambda _: call.settled.append(call.outcome() or "?"))
        return call

    # What users do.

    def call(
        self,
        kind: str,
        dependencies: list[int],
        retries: tuple[int, float],
        timeout: float | None,
        limit: str | None,
        after: bool,
        restarts: int,
    ) -> None:
        options: dict[str, Any] = {}
        if kind != "block":
            options = {"retries": RetryPolicy(*retries)}
            options |= {"timeout": timeout} if kind == "part" else {"restarts": restarts}
            options |= {"limit": limit} if limit and kind == "part" else {}
        if self.closed:
            with pytest.raises(RuntimeError, match="shut down"):
                self.tasks[kind].options(**options)(Token())
            return
        picked = [self.calls[-1 - n % len(self.calls)] for n in dependencies if self.calls]
        self.remember(self.tasks[kind], picked, options, after)

    def cancel(self, number: int) -> None:
        if not self.calls:
            return
        call = self.calls[-1 - number % len(self.calls)]
        before, served = call.outcome(), call.serves()
        cancelled = call.future.cancel()
        if before is None:
            assert cancelled
            assert call.future.cancelled()
        else:
            assert served or not cancelled
            assert call.outcome() == before

    async def shut_down(self) -> None:
        self.closed = True
        self.backend.gate.set()
        await within(self.flow.shutdown())
        assert all(call.future.done() for call in self.calls)

    # What the backend does.

    def report(self, number: int, state: str, threaded: bool) -> None:
        if not self.backend.tasks:
            return
        task = self.backend.tasks[-1 - number % len(self.backend.tasks)]
        if state == "DONE":
            task["return_value"] = task["uid"]
        elif state == "FAILED":
            task["exception"] = OwnError(task["uid"])
        elif state == "LOST":
            task["exception"], state = TaskLostError(task["uid"]), "FAILED"
        if state in TERMINAL:
            self.reported.add(task["uid"])
        if threaded:
            in_thread(self.backend.report, task, state)
        else:
            self.backend.report(task, state)

    def ready(self, number: int, threaded: bool) -> None:
        services = [task for task in self.backend.tasks if task["is_service"]]
        if services:
            task = services[-1 - number % len(services)]
            if threaded:
                in_thread(self.backend.ready, task, task["uid"])
            else:
                self.backend.ready(task, task["uid"])

    def report_unknown(self, state: str, threaded: bool) -> None:
        task: Any = {"uid": "nobody.task.000001.1", "name": "nobody"}
        if threaded:
            in_thread(self.backend.report, task, state)
        else:
            self.backend.report(task, state)

    def hold_submissions(self, hold: bool) -> None:
        (self.backend.gate.clear if hold else self.backend.gate.set)()

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    # What must hold.

    def check(self) -> None:
        """Holds whenever all that follows from what happened has happened."""
        assert not self.complaints, self.complaints
        for call in self.calls:
            outcome = call.outcome()
            assert call.settled == ([] if outcome is None else [outcome])
            if any(one.future.cancelled() for one in call.dependencies):
                assert call.future.cancelled()
            elif call.future.done() and not call.future.cancelled():
                assert all(one.future.done() for one in call.dependencies)
            if outcome is None and not self.backend.tasks:
                assert call.future.uid in self.flow.components
        if not self.flow.components:
            assert self.clock.waiting == 0

    async def finish(self) -> None:
        """Let everything end without a shutdown."""
        self.backend.gate.set()
        for _ in range(300):
            for call in self.calls:
                if call.serves():
                    call.future.cancel()
            for task in self.backend.tasks:
                if task["uid"] not in self.reported:
                    self.reported.add(task["uid"])
                    task["return_value"] = task["uid"]
                    self.backend.report(task, "DONE")
            await self.clock.advance(6)
            if not self.flow.components:
                return
        raise AssertionError(f"still there: {dict(self.flow.components)}")

    async def check_the_end(self) -> None:
        """Every future is settled, and each as its dependencies say."""
        for call in self.calls:
            assert call.future.done()
            await within(call.future.ended())
            assert call.future.task is call.future.block is None
            if not call.future.cancelled():
                self.check_outcome(call)
        stats = self.flow.stats
        assert stats.tasks == len(self.calls)
        outcomes = Counter(
            "cancelled" if one.future.cancelled() else one.future.exception() is None
            for one in self.calls
        )
        assert (stats.done, stats.failed, stats.cancelled) == (
            outcomes[True],
            outcomes[False],
            outcomes["cancelled"],
        )
        ends: dict[tuple[str, int], list[str]] = {}
        for event in self.events.events:
            if event.state in TERMINAL:
                ends.setdefault((event.uid, event.attempt), []).append(event.state)
        # A failed attempt is followed by a cancellation where its task waited for the next one.
        assert all(len(end) == 1 or end == ["FAILED", "CANCELED"] for end in ends.values()), ends
        flow = self.flow
        for view in (flow.components, flow.dependencies, flow.resolved, flow.running, flow.queue):
            assert not view

    def check_outcome(self, call: Call) -> None:
        """A future that was not cancelled has the result or the failure that was reported."""
        error = call.future.exception()
        failed = [one for one in call.dependencies if one.future.exception() is not None]
        if isinstance(error, DependencyFailureError) and "is no longer running" in str(error):
            assert any(one.future.name == "server" for one in call.dependencies)
            return
        assert isinstance(error, DependencyFailureError) == bool(failed)
        if isinstance(error, DependencyFailureError):
            names = dict.fromkeys(one.future.uid for one in failed)
            assert len(error.failed_dependencies) == len(names)
        elif error is not None:
            assert isinstance(error, OwnError | TaskLostError | TaskTimeoutError | RuntimeError)
        elif isinstance(call.future.result(), str):
            first = 1 if call.future.name == "server" else call.future.attempt
            attempts = range(first, call.future.attempt + 1)  # a service may be started again
            uids = [f"{self.flow.uid}.{call.future.uid}.{attempt}" for attempt in attempts]
            assert call.future.result() in uids

    def check_nothing_is_kept(self) -> None:
        """The engine is alive, its tasks' arguments are not."""
        tokens = [call.token for call in self.calls]
        self.calls.clear()
        self.backend.forget()
        self.events.events.clear()
        self.events.batches.clear()
        gc.collect()
        assert [token() for token in tokens if token() is not None] == []


numbers = st.integers(0, 12)
states = st.sampled_from(["RUNNING", "RUNNING", "DONE", "DONE", "FAILED", "CANCELED", "LOST", "?"])
threaded = st.sampled_from([False, False, True])


def happening(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Something that happens, and how many turns the loop makes before the next thing."""
    after = st.sampled_from([0, 1, 2, ALL, ALL])
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments), after)


calls = happening(
    "call",
    kind=st.sampled_from(["part", "part", "part", "server", "block"]),
    dependencies=st.lists(numbers, max_size=3),
    retries=st.sampled_from([(0, 0.0), (0, 0.0), (1, 0.0), (2, 5.0)]),
    timeout=st.sampled_from([None, None, 10.0]),
    limit=st.sampled_from([None, None, None, "x:1"]),
    after=st.booleans(),
    restarts=st.sampled_from([0, 1, 2]),
)
reports = happening("report", number=numbers, state=states, threaded=threaded)
happenings = st.one_of(
    calls,
    calls,
    reports,
    reports,
    reports,
    reports,
    happening("cancel", number=numbers),
    happening("ready", number=numbers, threaded=threaded),
    happening("report_unknown", state=states, threaded=threaded),
    happening("hold_submissions", hold=st.booleans()),
    happening("pass_time", seconds=st.sampled_from([1.0, 6.0, 11.0, 40.0])),
)
setups = st.fixed_dictionaries(
    {
        "stoppable": st.booleans(),
        "obedient": st.booleans(),
        "observed": st.booleans(),
        "max_pending": st.sampled_from([None, None, 1, 3]),
        "fail_fast": st.sampled_from([False, False, False, True]),
    }
)


async def live(setup: dict[str, Any], script: list[Any], shutdown_at: int | None) -> None:
    history = History()
    await history.begin(**setup)
    for position, (name, arguments, after) in enumerate(script):
        if position == shutdown_at:
            await history.shut_down()
        result = getattr(history, name)(**arguments)
        if result is not None:
            await result
        await turns(after)
        if after == ALL:
            history.check()
    await turns(ALL)
    if not history.closed:
        await history.finish()
    history.check()
    await history.check_the_end()
    history.check_nothing_is_kept()
    await history.flow.shutdown()
    assert not history.complaints, history.complaints


@given(
    setup=setups,
    script=st.lists(happenings, min_size=5, max_size=60),
    shutdown_at=st.none() | st.none() | st.integers(0, 60),
)
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_no_history_loses_doubles_or_hangs_a_future(
    setup: dict[str, Any], script: list[Any], shutdown_at: int | None
) -> None:
    asyncio.run(live(setup, script, shutdown_at))
