"""The machine alone, in a world that a random generator drives: no loop, no backend, no file.

`World` is everything around the machine: it has the futures, hands batches over, reports what
became of attempts in any order and more than once, lets time go by, and ends. What the contract
promises is in `tests.core.machine.promises`, which looks at each step and at the end.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count, product
from random import Random
from typing import Any, cast

from rhapsody.capabilities import Capabilities
from rhapsody.engine.attach import Attached
from rhapsody.engine.attempts import Attempts
from rhapsody.engine.life import Future, Work
from rhapsody.engine.machine import Machine
from rhapsody.engine.node import Node
from rhapsody.engine.settings import NO_FALLBACK, Settings
from rhapsody.engine.tasks import CallKind, Task
from rhapsody.errors import TaskLostError
from rhapsody.retries import RetryPolicy
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription
from tests.core.machine.promises import BrokenPromiseError, Promises

DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED, RUNNING = TasksMainStates.CANCELED, TasksMainStates.RUNNING

MAX_PENDING = 3


class TaskError(Exception):
    """What tasks of a history raise."""


class Result:
    """A future without a loop; being settled twice breaks a promise."""

    def __init__(self, uid: str) -> None:
        self.uid = self.name = uid
        self.outcome: tuple[str, Any] | None = None
        self._node: Any = None
        self._outcome = self._backend = None
        self.followers: list[Node] = []

    def settle(self, how: str, what: Any) -> None:
        if self.outcome is not None:
            raise BrokenPromiseError(f"{self.uid} is settled twice: {self.outcome}, {how} {what}")
        self.outcome = how, what

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


class NothingHeld:
    """Backends of a history hold no values."""

    holds = False

    def is_at_rest(self, dependency: Any) -> bool:
        return False

    def with_values(self, node: Node) -> Sequence[asyncio.Future[Any]]:
        return node.dependencies

    def needs_values(self, node: Node) -> bool:
        return False

    def follow(self, node: Node) -> None: ...

    def hold(self, node: Node, report: Any) -> bool:
        return False

    def take_back(self, node: Node, report: Any) -> bool:
        return False

    is_held = dependency_settled = None


class Deadline:
    """A timer of the world's clock."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


def definition(kind: CallKind, **settings: Any) -> Task[Any, Any]:
    """A task of no engine."""
    nobody: Any = None
    return Task(nobody, kind, lambda: None, Settings().changed(settings))


def _tasks() -> list[Task[Any, Any]]:
    """Definitions of every kind that makes a difference to the machine."""
    made = [
        definition(
            "function", **dict(zip(("retries", "timeout", "limit", "fallback"), given, strict=True))
        )
        for given in product(
            (0, (RetryPolicy(0, on=KeyError), RetryPolicy(1, wait=5.0))),
            (None, 10.0),
            ((), "licence:1", ["licence:1", "disk:2"]),
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
        machine: The class of the machine.
    """

    LOST_RETRIES = 1

    def __init__(self, random: Random, machine: type[Machine] = Machine) -> None:
        self.random = random
        self.machine = machine(
            Attempts(None, self.LOST_RETRIES), max_failures=1 if random.random() < 0.1 else None
        )
        self.machine.connect(self, NothingHeld())  # type: ignore[arg-type]
        self.machine.observed = random.random() < 0.2
        self.records = self.machine.recording = random.random() < 0.3
        self.machine.limited = True
        self.machine.limits.declare((("licence", 1), ("disk", 2)))
        self.backends = [self._backend("first"), self._backend("second")]
        self.obedient = random.random() < 0.7
        self.nodes: list[Node] = []
        self.calls: dict[Node, tuple[Any, ...]] = {}
        self.ready: list[Node] = []
        self.batch: list[Node] = []
        self.uids: list[str] = []
        self.blocks: list[Node] = []
        self.held: list[tuple[Node, Any]] = []
        self.foreign: list[Result] = []
        self.stops: Counter[Node] = Counter()
        self.submitted: Counter[tuple[Node, Attached]] = Counter()
        self.recorded: dict[Node, Any] = {}
        self.clock = 0.0
        self.timers: list[tuple[float, int, Node | None, Deadline]] = []
        self.numbers = count()
        self.promises = Promises(self)

    def _backend(self, name: str) -> Attached:
        backend: Attached = object.__new__(Attached)
        backend.name, backend.occupied = name, 0
        backend.capabilities = self.random.choice(BACKENDS)
        return backend

    def of(self, node: Node) -> Attached:
        """The backend of a node's next attempt."""
        elsewhere = node.extra is not None and node.extra.elsewhere is not None
        return self.backends[elsewhere]

    # What the machine asks for.

    def route(self, node: Node) -> None:
        self.ready.append(node)

    def start_block(self, node: Node) -> None:
        self.machine.run(node)
        self.blocks.append(node)

    def stop(self, node: Node) -> None:
        self.stops[node] += 1

    def room(self, node: Node) -> None: ...

    def after(self, delay: float, call: Callable[[], object]) -> Deadline:
        deadline = Deadline(call)
        node = getattr(call, "args", (None,))[0]
        heapq.heappush(self.timers, (self.clock + delay, next(self.numbers), node, deadline))
        return deadline

    def follow(self, node: Node, dependency: Any) -> None:
        dependency.followers.append(node)

    def unfollow(self, node: Node, dependency: Any) -> None:
        dependency.followers.remove(node)

    def outcome(self, node: Node, main: TasksMainStates, report: Any) -> tuple[Any, Any]:
        if main is DONE and not node.task.settings.service:
            return report["return_value"], None
        return None, report.get("exception") or TaskError("it ended")

    def keep(self, node: Node, report: Any, *, succeeded: bool) -> None: ...

    def leave(self, node: Node) -> None: ...

    def publish(self, node: Node, state: TasksMainStates, error: Any = None) -> None:
        self.promises.published(node, state)

    def ended_by_itself(self, node: Node, main: Any, report: Any) -> tuple[Any, Any]:
        return main, report.get("exception")

    def record(self, node: Node, value: Any) -> None:
        self.recorded[node] = value
        self.held.append((node, value))

    def succeed(self, node: Node, value: Any) -> None:
        node.future.settle("done", value)  # type: ignore[attr-defined]
        self.promises.succeeded(node, value)

    def fail(self, node: Node, error: BaseException) -> BaseException:
        node.future.settle("failed", error)  # type: ignore[attr-defined]
        return error

    def cancel(self, node: Node, msg: Any) -> None:
        node.future.settle("cancelled", msg)  # type: ignore[attr-defined]

    # What happens.

    def call(self) -> None:
        """Calls a task or block, with anything as its dependencies, perhaps inside a block."""
        random = self.random
        dependencies: list[Any] = []
        if self.nodes and random.random() < 0.6:
            chosen = {random.choice(self.nodes[-6:]).future for _ in range(random.randint(1, 3))}
            dependencies = sorted(chosen, key=lambda one: one.uid)
        if random.random() < 0.1:
            self.foreign.append(Result(f"foreign.{len(self.foreign)}"))
            dependencies.append(self.foreign[-1])
        parent = random.choice(self.blocks) if self.blocks and random.random() < 0.3 else None
        if parent is not None and parent.life.future is not Future.PENDING:
            parent = None
        self.add(random.choice(TASKS), dependencies, parent)

    def add(
        self, task: Task[Any, Any], dependencies: Sequence[Any] = (), parent: Node | None = None
    ) -> Node:
        """Makes a call."""
        number = len(self.nodes)
        future: Any = Result(f"{task.prefix}.{number:06d}")
        node = Node(self.machine, task, future, number, (), None, None)
        node.dependencies = tuple(dependencies)
        future._node = node
        self.nodes.append(node)
        self.calls[node] = node.dependencies
        self.machine.add(node, parent)
        return node

    def submit(self) -> None:
        """Prepares what is ready, as far as there is room, and hands it over."""
        for backend in self.backends:
            self._submit(backend)

    def _submit(self, backend: Attached) -> None:
        machine, random, batch = self.machine, self.random, []
        ready = [node for node in self.ready if self.of(node) is backend]
        self.ready = [node for node in self.ready if self.of(node) is not backend]
        room = MAX_PENDING - backend.occupied
        for node in ready:
            if node.life.work is not Work.READY:
                continue
            service = node.task.settings.service
            if not service and room <= 0:
                self.ready.append(node)
            elif node.task.settings.limit and not machine.limits.take(
                node, node.task.settings.limit
            ):
                continue
            elif random.random() < 0.05:
                machine.refuse(node, TaskError("cannot be prepared"))
            elif random.random() < 0.05:
                machine.recorded(node, "recorded")
            else:
                room -= not service
                self.prepare(node)
                batch.append(node)
        self.batch = batch = machine.submit(batch, backend)
        for node in batch:
            self.submitted[node, backend] += 1
            self.uids.append(node.uid)
            self.promises.handed_over(node)
        while random.random() < 0.3:
            self.anything(during=True)
        self.batch = []
        if random.random() < 0.1:
            for node in batch:
                machine.reject(node, TaskLostError("not taken"))
        else:
            machine.accept(batch, backend)

    def prepare(self, node: Node) -> None:
        """Describes an attempt."""
        node.attempt += 1
        node.uid = f"world.{node.future.uid}.{node.attempt}"
        node.backend = self.of(node)
        node.description = cast("TaskDescription", {"uid": node.uid})
        if node.task.settings.timeout is not None:
            node.description["timeout"] = node.task.settings.timeout

    def report(self) -> None:
        """A backend says something of any attempt that there ever was, perhaps once more."""
        if not self.uids:
            return
        random = self.random
        recent = random.random() < 0.8 and self.machine.inflight
        uid = random.choice(list(self.machine.inflight) if recent else self.uids)
        node = self.machine.inflight.get(uid)
        if node is None:
            return
        if random.random() < 0.4:
            if self.machine.run(node) and node.task.settings.service and random.random() < 0.7:
                attempt = random.choice([uid, uid, "another"])
                self.machine.serve(node, attempt, attempt)
            return
        main = random.choice([DONE, DONE, FAILED, CANCELED])
        error = random.choice([TaskError("failed"), TaskLostError("lost")])
        report = {"return_value": uid} if main is DONE else {"exception": error}
        self.machine.end(node, main, report)

    def stopped(self) -> None:
        """A backend has stopped what it was asked to, or cannot."""
        asked = [node for node in self.machine.inflight.values() if self.stops[node]]
        if asked:
            node = self.random.choice(asked)
            if self.obedient or self.random.random() < 0.3:
                self.machine.end(node, CANCELED, {})
            else:
                self.machine.cannot_stop(node)

    def cancel_one(self) -> None:
        """A user cancels something."""
        if self.nodes:
            node = self.random.choice(self.nodes)
            if node.future._node is node:
                self.machine.cancel(node)

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
            node, value = self.held.pop(self.random.randrange(len(self.held)))
            self.machine.reveal(node, value)

    def end_block(self) -> None:
        """A block ends in some way."""
        if self.blocks:
            node = self.blocks.pop(self.random.randrange(len(self.blocks)))
            cancelled = self.stops[node] or self.random.random() < 0.1
            ends = [TaskError("of a block"), None, None]
            error = asyncio.CancelledError() if cancelled else self.random.choice(ends)
            self.machine.end_block(node, "value", error)

    def end_foreign(self) -> None:
        """A future that is not the engine's is done."""
        waiting = [one for one in self.foreign if not one.done()]
        if waiting:
            one = self.random.choice(waiting)
            how = self.random.choice(["done", "done", "failed", "cancelled"])
            one.settle(how, TaskError("foreign"))
            followers, one.followers = one.followers, []
            for node in followers:
                self.machine.graph.foreign_done(node, one)  # type: ignore[arg-type]

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
        """Runs a history from its beginning to its end, and looks that promises were kept."""
        for _ in range(self.random.randint(1, steps)):
            self.anything()
            self.promises.look()
        if self.random.random() < 0.5:
            self._run_dry()
        self._shut_down()
        self.promises.look_at_the_end()

    def _run_dry(self) -> None:
        """Nothing new is called, and backends do what they are told: all must end."""
        for _ in range(10_000):
            self.submit()
            while self.machine.inflight:
                uid = next(iter(self.machine.inflight))
                node = self.machine.inflight[uid]
                if node.life.work is Work.SERVING:
                    self.machine.cancel(node)
                self.machine.end(
                    node, CANCELED if self.stops[node] else DONE, {"return_value": uid}
                )
            self.reveal()
            self.end_block()
            self.end_foreign()
            self.wait()
            if not self.machine.graph.live:
                return
        raise BrokenPromiseError(f"these never end: {self.machine.graph.live}")

    def _shut_down(self) -> None:
        machine = self.machine
        machine.closing = True
        machine.interrupted = self.random.random() < 0.2
        if not machine.interrupted:
            while self.held:
                self.reveal()
            machine.cancel_all()
        for _ in range(self.random.randint(0, 3)):
            self.random.choice([World.report, World.stopped, World.end_block, World.wait])(self)
        machine.abandon()
        while self.held:
            self.reveal()


def history(seed: int, machine: type[Machine] = Machine) -> None:
    """Runs the history of a seed.

    Raises:
        BrokenPromiseError: A promise of the contract was broken.
    """
    World(Random(seed), machine).run()
