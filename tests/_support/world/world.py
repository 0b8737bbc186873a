"""The scheduler alone, in a world that a random generator drives: no loop, no backend, no file.

`World` is everything around the scheduler: it creates futures, submits batches, reports the
outcomes of attempts in any order and more than once, advances the clock, and ends. The rules of the
contract are in `tests._support.world.invariants`, and are checked at each step and at the end.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count, product
from random import Random
from typing import Any, cast

from rhapsody.capabilities import Capabilities
from rhapsody.engine.configuration.options import EngineOptions
from rhapsody.engine.configuration.settings import NO_FALLBACK, Settings
from rhapsody.engine.core.backend_handles import BackendHandle
from rhapsody.engine.core.pushdown import PushDown
from rhapsody.engine.core.record import AttemptRecord, BlockRecord, Call, TaskRecord, record_of
from rhapsody.engine.core.scheduler import Scheduler
from rhapsody.engine.core.states import FutureState, WorkState
from rhapsody.engine.functions.task_function import CallKind, TaskFunction
from rhapsody.errors import TaskLostError
from rhapsody.plugins.specs import Stats
from rhapsody.states import TasksMainStates
from rhapsody.task import RetryPolicy, TaskDescription
from tests._support.world.invariants import BrokenInvariantError, Invariants

DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED, RUNNING = TasksMainStates.CANCELED, TasksMainStates.RUNNING

MAX_PENDING = 3


class TaskError(Exception):
    """Exception of tasks in a history."""


class Result:
    """A future without a loop; being settled twice breaks an invariant."""

    def __init__(self, uid: str) -> None:
        self.uid = self.name = uid
        self.outcome: tuple[str, Any] | None = None
        self._link: Any = None
        self.callbacks: list[Callable[[Any], object]] = []
        self.on_result: Callable[[Any], object] | None = None

    def settle(self, how: str, what: Any) -> None:
        if self.outcome is not None:
            raise BrokenInvariantError(f"{self.uid} is settled twice: {self.outcome}, {how} {what}")
        self.outcome = how, what

    def set_result(self, value: Any) -> None:
        self.settle("done", value)
        if self.on_result is not None:
            self.on_result(value)

    def set_cancelled(self, msg: Any) -> None:
        self.settle("cancelled", msg)

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self.callbacks.append(callback)

    def remove_done_callback(self, callback: Callable[[Any], object]) -> None:
        self.callbacks.remove(callback)

    def done(self) -> bool:
        return self.outcome is not None

    def cancelled(self) -> bool:
        return self.outcome is not None and self.outcome[0] == "cancelled"

    def exception(self) -> BaseException | None:
        assert self.outcome is not None
        return self.outcome[1] if self.outcome[0] == "failed" else None

    def get_loop(self) -> Any:
        return self

    def is_running(self) -> bool:
        return False


class Deadline:
    """A timer of the world's clock."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


def definition(kind: CallKind, **settings: Any) -> TaskFunction[Any, Any]:
    """A task of no engine."""
    no_engine: Any = None
    return TaskFunction(no_engine, kind, lambda: None, Settings().changed(settings), settings)


def _tasks() -> list[TaskFunction[Any, Any]]:
    """Definitions of every kind that makes a difference to the scheduler."""
    made = [
        definition(
            "function", **dict(zip(("retries", "timeout", "limit", "fallback"), given, strict=True))
        )
        for given in product(
            (0, (RetryPolicy(0, on=KeyError), RetryPolicy(1, wait=5.0))),
            (None, 10.0),
            ((), "license:1", ["license:1", "disk:2"]),
            (NO_FALLBACK, "fallback"),
        )
    ]
    made += [definition("executable", service=True, retries=tries) for tries in (0, 1)] * 3
    made += [definition("function", retries=tries, other_backends="second") for tries in (0, 1)] * 3
    return made + [definition("block")] * 3


TASKS = _tasks()
BACKENDS = [
    Capabilities(reports_running=reports, cancel_functions=level, cancel_services=level)
    for reports in (True, False)
    for level in ("running", "none")
]


class World:
    """One history.

    Args:
        random: Says what happens.
        scheduler: The class of the scheduler.
    """

    LOST_RETRIES = 1

    def __init__(self, random: Random, scheduler: type[Scheduler] = Scheduler) -> None:
        self.random = random
        max_failures = 1 if random.random() < 0.1 else None
        observed, self.saves = random.random() < 0.2, random.random() < 0.3
        stub: Any = self
        self.scheduler = scheduler(
            stub,
            stub,
            stub,
            stub,
            PushDown(stub, {}, stub, stats := Stats(), allowed=False),
            stats,
            EngineOptions(
                lost_retries=self.LOST_RETRIES, max_failures=max_failures, max_pending=MAX_PENDING
            ),
            announced=observed,
            observed=observed,
            recording=self.saves,
        )
        self.scheduler.limits.declare((("license", 1), ("disk", 2)))
        self.backends = [self._backend("first"), self._backend("second")]
        self.obedient = random.random() < 0.7
        self.records: list[TaskRecord] = []
        self.calls: dict[TaskRecord, tuple[Any, ...]] = {}
        self.ready: list[TaskRecord] = []
        self.batch: list[TaskRecord] = []
        self.uids: list[str] = []
        self.blocks: list[BlockRecord] = []
        self.held: list[tuple[TaskRecord, Any]] = []
        self.foreign: list[Result] = []
        self.stops: Counter[TaskRecord] = Counter()
        self.submitted: Counter[tuple[TaskRecord, BackendHandle]] = Counter()
        self.recorded: dict[TaskRecord, Any] = {}
        self.clock = 0.0
        self.timers: list[tuple[float, int, TaskRecord | None, Deadline]] = []
        self.numbers = count()
        self.invariants = Invariants(self)

    def _backend(self, name: str) -> BackendHandle:
        backend: BackendHandle = object.__new__(BackendHandle)
        backend.name, backend.occupied, backend.dry = name, 0, False
        backend.capabilities = self.random.choice(BACKENDS)
        return backend

    def of(self, record: TaskRecord) -> BackendHandle:
        """The backend of a task's next attempt."""
        return self.backends[record.elsewhere() is not None]

    # What the scheduler asks for.

    def route(self, record: TaskRecord) -> None:
        if isinstance(record, BlockRecord):
            self.scheduler.run(record)
            self.blocks.append(record)
        else:
            self.ready.append(record)

    def stop(self, record: TaskRecord) -> None:
        self.stops[record] += 1

    def room(self, record: TaskRecord) -> None: ...

    def monotonic(self) -> float:
        return self.clock

    def after(self, delay: float, call: Callable[[], object]) -> Deadline:
        deadline = Deadline(call)
        record = getattr(call, "args", (None,))[0]
        heapq.heappush(self.timers, (self.clock + delay, next(self.numbers), record, deadline))
        return deadline

    def guarded(self, call: Callable[[], object]) -> None:
        call()

    def read(self, record: TaskRecord, main: TasksMainStates, report: Any) -> tuple[Any, Any]:
        if main is DONE and not record.call.task.settings.service:
            return report["return_value"], None
        return None, report.get("exception") or TaskError("it ended")

    def keep(self, record: TaskRecord, report: Any, *, succeeded: bool) -> None: ...

    def input_changed(self, record: TaskRecord, error: BaseException | None) -> None: ...

    def leave(self, record: TaskRecord) -> None: ...

    def now(self) -> float:
        return 0.0

    def announce(self, record: TaskRecord, when: float) -> None: ...

    def publish(
        self,
        record: TaskRecord,
        state: TasksMainStates,
        error: Any = None,
        *,
        retried: bool = False,
        when: float | None = None,
    ) -> None:
        self.invariants.published(record, state)

    def service_ended(self, record: TaskRecord, main: Any, report: Any) -> tuple[Any, Any]:
        return main, report.get("exception")

    def service_settled(self, record: TaskRecord, value: Any = None, error: Any = None) -> None:
        raise BrokenInvariantError(f"{record.future.uid} is settled twice")

    def save(self, record: TaskRecord, value: Any) -> None:
        self.scheduler.saved(record, value)

    def record(self, record: TaskRecord, value: Any) -> None:
        self.recorded[record] = value
        self.held.append((record, value))

    def fail(self, record: TaskRecord, error: BaseException) -> BaseException:
        record.future.settle("failed", error)  # type: ignore[attr-defined]
        return error

    # What happens.

    def call(self) -> None:
        """Calls a task or block, with anything as its dependencies, perhaps inside a block."""
        random = self.random
        dependencies: list[Any] = []
        if self.records and random.random() < 0.6:
            chosen = {random.choice(self.records[-6:]).future for _ in range(random.randint(1, 3))}
            dependencies = sorted(chosen, key=lambda one: one.uid)
        if random.random() < 0.1:
            self.foreign.append(Result(f"foreign.{len(self.foreign)}"))
            dependencies.append(self.foreign[-1])
        parent = random.choice(self.blocks) if self.blocks and random.random() < 0.3 else None
        if parent is not None and parent.state.future is not FutureState.PENDING:
            parent = None
        self.add(random.choice(TASKS), dependencies, parent)

    def add(
        self,
        task: TaskFunction[Any, Any],
        dependencies: Sequence[Any] = (),
        parent: BlockRecord | None = None,
    ) -> TaskRecord:
        """Makes a call."""
        number = len(self.records)
        future: Any = Result(f"{task.prefix}.{number:06d}")
        kind = BlockRecord if task.prefix == "block" else TaskRecord
        call = Call(task, task, number, (), None, None, tuple(dependencies))
        record = kind(self.scheduler, call, future)
        future.on_result = partial(self.invariants.succeeded, record)
        self.records.append(record)
        self.calls[record] = record.call.dependencies
        self.scheduler.add(record, parent)
        return record

    def submit(self) -> None:
        """Prepares what is ready, as far as there is room, and hands it over."""
        for backend in self.backends:
            self._submit(backend)

    def _submit(self, backend: BackendHandle) -> None:
        scheduler, random, batch = self.scheduler, self.random, []
        ready = [record for record in self.ready if self.of(record) is backend]
        self.ready = [record for record in self.ready if self.of(record) is not backend]
        room = MAX_PENDING - backend.occupied
        for record in ready:
            if record.state.work is not WorkState.READY:
                continue
            service = record.call.task.settings.service
            if not service and room <= 0:
                self.ready.append(record)
            elif record.call.task.settings.limit and not scheduler.limits.take(
                record, record.call.task.settings.limit
            ):
                continue
            elif random.random() < 0.05:
                scheduler.refuse(record, TaskError("cannot be prepared"))
            elif random.random() < 0.05:
                scheduler.recorded(record, "recorded")
            else:
                room -= not service
                self.prepare(record)
                batch.append(record)
        self.batch = batch = scheduler.submit(batch, backend)
        for record in batch:
            self.submitted[record, backend] += 1
            self.uids.append(record.attempt.uid)
            self.invariants.handed_over(record)
        while random.random() < 0.3:
            self.anything(during=True)
        self.batch = []
        if random.random() < 0.1:
            for record in batch:
                scheduler.reject(record, TaskLostError("not taken"))
        else:
            scheduler.accept(batch, backend)

    def prepare(self, record: TaskRecord) -> None:
        """Describes an attempt."""
        number = record.attempt.number + 1
        uid = f"world.{record.future.uid}.{number}"
        description = cast("TaskDescription", {"uid": uid})
        record.attempt = AttemptRecord(number, uid, self.of(record), description, None)
        if record.call.task.settings.timeout is not None:
            description["timeout"] = record.call.task.settings.timeout

    def report(self) -> None:
        """A backend says something of any attempt that there ever was, perhaps once more."""
        if not self.uids:
            return
        random = self.random
        recent = random.random() < 0.8 and self.scheduler.inflight
        uid = random.choice(list(self.scheduler.inflight) if recent else self.uids)
        record = self.scheduler.inflight.get(uid)
        if record is None:
            return
        if random.random() < 0.4:
            if (
                self.scheduler.run(record)
                and record.call.task.settings.service
                and random.random() < 0.7
            ):
                attempt = random.choice([uid, uid, "another"])
                self.scheduler.serve(record, attempt, attempt)
            return
        main = random.choice([DONE, DONE, FAILED, CANCELED])
        error = random.choice([TaskError("failed"), TaskLostError("lost")])
        report = {"return_value": uid} if main is DONE else {"exception": error}
        self.scheduler.end(record, main, report)

    def stopped(self) -> None:
        """A backend has stopped what it was asked to, or cannot."""
        asked = [record for record in self.scheduler.inflight.values() if self.stops[record]]
        if asked:
            record = self.random.choice(asked)
            if self.obedient or self.random.random() < 0.3:
                self.scheduler.end(record, CANCELED, {})
            else:
                self.scheduler.cannot_stop(record)

    def cancel_one(self) -> None:
        """A user cancels something."""
        if self.records:
            record = self.random.choice(self.records)
            if record_of(record.future) is record:
                self.scheduler.cancel(record)

    def wait(self) -> None:
        """Time goes by until the next deadline."""
        if self.timers:
            self.clock, _, _, deadline = heapq.heappop(self.timers)
            call, deadline.call = deadline.call, None
            if call is not None:
                call()

    def reveal(self) -> None:
        """A result has been recorded."""
        if self.held:
            record, value = self.held.pop(self.random.randrange(len(self.held)))
            self.scheduler.reveal(record, value)

    def end_block(self) -> None:
        """A block ends in some way."""
        if self.blocks:
            record = self.blocks.pop(self.random.randrange(len(self.blocks)))
            cancelled = self.stops[record] or self.random.random() < 0.1
            ends = [TaskError("of a block"), None, None]
            error = asyncio.CancelledError() if cancelled else self.random.choice(ends)
            self.scheduler.end_block(record, "value", error)

    def end_foreign(self) -> None:
        """A future that is not the engine's is done."""
        waiting = [one for one in self.foreign if not one.done()]
        if waiting:
            one = self.random.choice(waiting)
            how = self.random.choice(["done", "done", "failed", "cancelled"])
            one.settle(how, TaskError("foreign"))
            callbacks, one.callbacks = one.callbacks, []
            for callback in callbacks:
                callback(one)

    EVENTS = (
        (call, 5), (submit, 4), (report, 8), (stopped, 1), (cancel_one, 1), (wait, 2),
        (reveal, 2), (end_block, 1), (end_foreign, 1),
    )  # fmt: skip
    HAPPENS = tuple(event for event, weight in EVENTS for _ in range(weight))

    def anything(self, *, during: bool = False) -> None:
        """Something happens; `during` a submission nothing else is submitted."""
        event = self.random.choice(self.HAPPENS)
        if not (during and event is World.submit):
            event(self)

    def run(self, steps: int = 60) -> None:
        """Runs a history from its beginning to its end, and checks the invariants."""
        for _ in range(self.random.randint(1, steps)):
            self.anything()
            self.invariants.look()
        if self.random.random() < 0.5:
            self._run_dry()
        self._shut_down()
        self.invariants.look_at_the_end()

    def _run_dry(self) -> None:
        """Call nothing new and let backends obey: all tasks must end."""
        for _ in range(10_000):
            self.submit()
            while self.scheduler.inflight:
                uid = next(iter(self.scheduler.inflight))
                record = self.scheduler.inflight[uid]
                if record.state.work is WorkState.SERVING:
                    self.scheduler.cancel(record)
                self.scheduler.end(
                    record, CANCELED if self.stops[record] else DONE, {"return_value": uid}
                )
            self.reveal()
            self.end_block()
            self.end_foreign()
            self.wait()
            if not self.scheduler.live:
                return
        raise BrokenInvariantError(f"these never end: {self.scheduler.live}")

    def _shut_down(self) -> None:
        scheduler = self.scheduler
        scheduler.closing = True
        scheduler.interrupted = self.random.random() < 0.2
        if not scheduler.interrupted:
            while self.held:
                self.reveal()
            scheduler.cancel_all()
        for _ in range(self.random.randint(0, 3)):
            self.random.choice([World.report, World.stopped, World.end_block, World.wait])(self)
        scheduler.abandon()
        while self.held:
            self.reveal()
        while self.blocks:
            self.end_block()


def history(seed: int, scheduler: type[Scheduler] = Scheduler) -> None:
    """Runs the history of a seed.

    Raises:
        BrokenInvariantError: A rule of the contract was broken.
    """
    World(Random(seed), scheduler).run()
