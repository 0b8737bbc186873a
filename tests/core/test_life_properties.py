"""Whatever happens in whatever order: no future is lost, doubled or hanging (DESIGN 5).

A scripted backend reports anything at any time, from the loop and from threads, while
tasks are called, cancelled, retried, timed out and the engine is shut down. What must
hold all along and at the end is in `check` and `teardown`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import weakref
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from rhapsody import (
    DependencyFailureError,
    RetryPolicy,
    TaskLostError,
    TasksMainStates,
    TaskTimeoutError,
    WorkflowEngine,
)
from rhapsody.task import TaskFuture
from rhapsody.testing import EventRecorder
from tests.core.scripted import RUNS_ALL, ManualClock, Scripted, in_thread, turns, within

T = TypeVar("T")

TERMINAL = ("DONE", "FAILED", "CANCELED")
STATES = ("RUNNING", *TERMINAL, "NONSENSE")
UNSTOPPABLE = dataclasses.replace(
    RUNS_ALL, cancel_functions="none", cancel_async_functions="none", cancel_services="none"
)
indices = st.integers(0, 1000)


class Token:
    """An argument whose end can be seen."""


class OwnError(Exception):
    """What failing tasks raise."""


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
        """How it stands."""
        if not self.future.done():
            return None
        if self.future.cancelled():
            return "cancelled"
        error = self.future.exception()
        return f"value {self.future.result()}" if error is None else repr(error)


class Lives(RuleBasedStateMachine):
    """Random histories of an engine on a scripted backend."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.complaints: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.calls: list[Call] = []
        self.closed = False
        self.reported: Counter[str] = Counter()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs something on the loop, and lets all that follows from it happen."""

        async def and_turns() -> T:
            result = await within(coroutine)
            await turns()
            return result

        return self.loop.run_until_complete(and_turns())

    @initialize(
        stoppable=st.booleans(),
        obedient=st.booleans(),
        max_pending=st.sampled_from([None, 1, 3]),
        fail_fast=st.sampled_from([False, False, False, True]),
        observed=st.booleans(),
    )
    def begin(
        self,
        stoppable: bool,
        obedient: bool,
        max_pending: int | None,
        fail_fast: bool,
        observed: bool,
    ) -> None:
        async def create() -> None:
            self.backend = Scripted(RUNS_ALL if stoppable else UNSTOPPABLE)
            if not (stoppable and obedient):
                self.backend.stopping = None
            self.clock = ManualClock()
            self.events = EventRecorder()
            self.fail_fast = fail_fast
            self.flow = await WorkflowEngine.create(
                self.backend,
                clock=self.clock,
                max_pending=max_pending,
                fail_fast=fail_fast,
                handle_signals=False,
                observers=[self.events] if observed else [],
            )

            @self.flow.function_task
            def part(*_: Any, **__: Any) -> Any: ...

            @self.flow.executable_task(service=True)
            async def server(*_: Any, **__: Any) -> str:
                return "serve"

            @self.flow.block
            async def block(token: Token, *dependencies: Any) -> Any:
                inner = [self.remember(part, [], {}), self.remember(part, [], {"retries": 1})]
                return await asyncio.gather(*[call.future for call in inner])

            self.part: Any = part
            self.server: Any = server
            self.block: Any = block

        self.run(create())

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

    def picked(self, numbers: list[int]) -> list[Call]:
        return [self.calls[number % len(self.calls)] for number in numbers] if self.calls else []

    # What users do.

    @rule(
        kind=st.sampled_from(["part", "part", "part", "server", "block"]),
        dependencies=st.lists(indices, max_size=3),
        retries=st.sampled_from([0, 0, 1, 2]),
        wait=st.sampled_from([0, 5]),
        timeout=st.sampled_from([None, None, 10]),
        limit=st.sampled_from([None, None, None, "x:1"]),
        after=st.booleans(),
    )
    def call_a_task(
        self,
        kind: str,
        dependencies: list[int],
        retries: int,
        wait: float,
        timeout: float | None,
        limit: str | None,
        after: bool,
    ) -> None:
        options: dict[str, Any] = {}
        if kind == "part":
            options |= {"retries": RetryPolicy(retries, wait), "timeout": timeout}
            options |= {"limit": limit} if limit else {}
        task = getattr(self, kind)

        async def call() -> None:
            if self.closed:
                with pytest.raises(RuntimeError, match="shut down"):
                    task.options(**options)(Token())
            else:
                self.remember(task, self.picked(dependencies), options, after)

        self.run(call())

    @precondition(lambda self: self.calls)
    @rule(number=indices)
    def cancel(self, number: int) -> None:
        call = self.calls[number % len(self.calls)]

        async def cancel() -> None:
            before = call.outcome()
            serving = before is not None and call.future.state is TasksMainStates.RUNNING
            cancelled = call.future.cancel()
            if before is None:
                assert cancelled
                assert call.future.cancelled()
            elif not serving:
                assert not cancelled
            else:
                assert call.outcome() == before

        self.run(cancel())

    @precondition(lambda self: not self.closed)
    @rule()
    def shut_down(self) -> None:
        self.closed = True
        self.backend.gate.set()
        self.run(self.flow.shutdown())
        assert all(call.future.done() for call in self.calls)

    # What the backend does.

    @precondition(lambda self: self.backend.tasks)
    @rule(
        number=indices,
        state=st.sampled_from([*STATES, "LOST"]),
        threaded=st.booleans(),
        recent=st.booleans(),
    )
    def report(self, number: int, state: str, threaded: bool, recent: bool) -> None:
        tasks = self.backend.tasks
        task = tasks[-1 - number % min(3, len(tasks))] if recent else tasks[number % len(tasks)]
        if state == "DONE":
            task["return_value"] = task["uid"]
        elif state == "FAILED":
            task["exception"] = OwnError(task["uid"])
        elif state == "LOST":
            task["exception"], state = TaskLostError(task["uid"]), "FAILED"
        self.reported[task["uid"]] += state in TERMINAL

        async def report() -> None:
            if threaded:
                in_thread(self.backend.report, task, state)
            else:
                self.backend.report(task, state)

        self.run(report())

    @precondition(lambda self: any(task["is_service"] for task in self.backend.tasks))
    @rule(number=indices, threaded=st.booleans())
    def service_is_ready(self, number: int, threaded: bool) -> None:
        services = [task for task in self.backend.tasks if task["is_service"]]
        task = services[number % len(services)]

        async def report() -> None:
            if threaded:
                in_thread(self.backend.ready, task, task["uid"])
            else:
                self.backend.ready(task, task["uid"])

        self.run(report())

    @rule(state=st.sampled_from(STATES))
    def report_an_unknown_task(self, state: str) -> None:
        task: Any = {"uid": "nobody.task.000001.1", "name": "nobody"}
        self.run(asyncio.to_thread(self.backend.report, task, state))

    @rule(is_open=st.booleans())
    def hold_submissions(self, is_open: bool) -> None:
        (self.backend.gate.set if is_open else self.backend.gate.clear)()
        self.run(turns())

    @rule(seconds=st.sampled_from([1, 6, 11, 40]))
    def time_passes(self, seconds: float) -> None:
        self.run(self.clock.advance(seconds))

    # What must hold.

    @invariant()
    def check(self) -> None:
        assert not self.complaints, self.complaints
        for call in self.calls:
            outcome = call.outcome()
            assert call.settled == ([] if outcome is None else [outcome])
            if any(one.future.cancelled() for one in call.dependencies):
                assert call.future.cancelled()
            elif call.future.done() and not call.future.cancelled():
                assert all(one.future.done() for one in call.dependencies)

    def check_the_end(self) -> None:
        """Every future is settled, and each as its dependencies say."""
        for call in self.calls:
            assert call.future.done()
            self.run(call.future.ended())
            assert call.future.task is call.future.block is None
            if call.future.cancelled():
                continue
            error = call.future.exception()
            failed = [one for one in call.dependencies if one.future.exception() is not None]
            assert isinstance(error, DependencyFailureError) == bool(failed)
            if failed:
                assert isinstance(error, DependencyFailureError)
                names = list(dict.fromkeys(one.future.uid for one in failed))
                assert len(error.failed_dependencies) == len(names)
            elif error is None:
                value = call.future.result()
                if isinstance(value, str):
                    assert value == f"{self.flow.uid}.{call.future.uid}.{call.future.attempt}"
            else:
                assert isinstance(error, OwnError | TaskLostError | TaskTimeoutError | RuntimeError)
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

    def finish(self) -> None:
        """Lets everything end by itself, without a shutdown."""
        self.backend.gate.set()
        for _ in range(200):
            for call in self.calls:
                if call.future.done() and call.future.state is TasksMainStates.RUNNING:
                    self.cancel(self.calls.index(call))
            for task in self.backend.tasks:
                if self.reported[task["uid"]] < 1:
                    task["return_value"] = task["uid"]
                    self.reported[task["uid"]] += 1
                    self.backend.report(task, "DONE")
            self.run(self.clock.advance(50))
            if not self.flow.components:
                return
        raise AssertionError(f"still there: {dict(self.flow.components)}")

    def teardown(self) -> None:
        try:
            if hasattr(self, "flow"):
                self.end()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
        assert not self.complaints, self.complaints

    def end(self) -> None:
        if not self.closed:
            self.finish()
        self.check()
        self.check_the_end()
        flow = self.flow
        for view in (flow.components, flow.dependencies, flow.resolved, flow.running, flow.queue):
            assert not view
        assert self.clock.waiting == 0
        tokens = [call.token for call in self.calls]
        self.calls.clear()
        self.backend.forget()
        self.events.events.clear()
        self.events.batches.clear()
        gc.collect()
        assert [token() for token in tokens if token() is not None] == []
        if not self.closed:
            self.closed = True
            self.run(flow.shutdown())


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
