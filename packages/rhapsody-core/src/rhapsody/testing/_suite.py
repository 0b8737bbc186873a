"""Base of the conformance kit: settings, fixtures, declarations of checks, and their tasks.

Each topic has a class with its checks that derives from `Suite`; `BackendConformance` derives from
all of them. The checks of one test class run on one event loop and share one backend, which is
replaced after a failed check. Only checks of starting and stopping have backends of their own.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import inspect
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import pytest_asyncio

from rhapsody import WorkflowEngine
from rhapsody.backends.base import CancelLevel, Capabilities
from rhapsody.states import TasksMainStates
from rhapsody.task import Resources, TaskDescription, TaskKind
from rhapsody.testing import _work
from rhapsody.testing._system import Clock, Program, holdings, leftovers, listed, scratch, settled
from rhapsody.testing._tools import Driver, Finished, started

CONTRACT = "docs/reference/backend-contract.md"
"""Path of the page whose sections state the rules."""

DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED, RUNNING = TasksMainStates.CANCELED, TasksMainStates.RUNNING

KINDS: tuple[TaskKind, ...] = ("function", "async_function", "executable")

each_kind = pytest.mark.parametrize("kind", KINDS)
each_function_kind = pytest.mark.parametrize("kind", KINDS[:2])

_LONG = 600.0  # seconds after which the work of a task ends in any case

NewBackend = Callable[..., Awaitable[Any]]
"""`await new_backend()` creates a backend that is shut down at the end of the check."""

NewEngine = Callable[..., Awaitable[WorkflowEngine]]
"""`await new_engine(backend=None, **settings)` creates an engine; default: the shared backend."""


class Need(NamedTuple):
    """Condition for a check to apply.

    Attributes:
        reason: The reason that is shown if a check is skipped because of this condition; may
            contain `{kind}`.
        met: Returns a true value if the condition is met, given the test class and the kind of
            task, if there is one.
    """

    reason: str
    met: Callable[[Suite, Any], object]


class Check(NamedTuple):
    """Declaration of a check: the section of the contract that it tests, and its conditions."""

    section: str
    needs: tuple[str | Need, ...]
    dry: bool
    times: float

    def why_skipped(self, suite: Suite, kind: Any) -> str:
        """Return why the check does not apply, or an empty string."""
        if suite.dry and not self.dry:
            return "dry = True: the backend only pretends to run tasks"
        if kind is not None and not suite.capabilities.runs(kind):
            return f"the backend does not run tasks of kind {kind}"
        for need in self.needs:
            if isinstance(need, str):
                if getattr(suite.capabilities, need) in (False, None):
                    return f"the backend does not declare {need}"
            elif not need.met(suite, kind):
                return need.reason.format(kind=kind)
        return ""


def check(
    section: str, *needs: str | Need, dry: bool = False, times: float = 1.0
) -> Callable[[Callable[..., Awaitable[None]]], Any]:
    """Declare a method as a check.

    Args:
        section: The anchor of the section of the contract that states the rule.
        needs: Capabilities that must be declared, or other conditions.
        dry: True if the check also applies to a backend that only pretends to run tasks.
        times: Time limit of the check, as a multiple of the class's `time_limit`.

    Returns:
        The decorator.
    """
    declaration = Check(section, needs, dry, times)

    def decorate(body: Callable[..., Awaitable[None]]) -> Any:
        @functools.wraps(body)
        async def test(self: Suite, **fixtures: Any) -> None:
            __tracebackhide__ = True
            shared, limit = self._current, self.time_limit * times
            try:
                async with shared.clock.within(limit) as timer:
                    await body(self, **fixtures)
                    shared.judge()
            except pytest.skip.Exception:
                raise
            except BaseException as error:
                shared.failed = True
                note = f"The rule: {CONTRACT}#{section}"
                if isinstance(error, TimeoutError) and timer.expired():
                    note = (
                        f"The check did not end within {limit:g} s (`time_limit`); "
                        f"{shared.status()}\n{note}"
                    )
                error.add_note(note)
                raise

        test.__dict__["check"] = declaration
        return pytest.mark.asyncio(loop_scope="class")(pytest.mark.usefixtures("_prepared")(test))

    return decorate


def honors(resource: str) -> Need:
    """Require a resource among those that the backend declares."""
    reason = f"the backend does not declare the resource {resource!r}"
    return Need(reason, lambda suite, _: resource in suite.capabilities.resources)


def binds(resource: str) -> Need:
    """Require a resource among those that the backend declares to enforce."""
    reason = f"the backend does not declare that it enforces the resource {resource!r}"
    return Need(reason, lambda suite, _: resource in suite.capabilities.binds)


def cancels(level: CancelLevel, kind: TaskKind | None = None) -> Need:
    """Require that tasks of this kind, or of the check's kind, can be canceled to this level."""
    enough = ("running",) if level == "running" else ("queued", "running")
    return Need(
        f"the backend does not declare that it cancels a {level} {kind or '{kind}'}",
        lambda suite, given: suite.capabilities.cancellation(kind or given) in enough,
    )


FUNCTIONS = Need(
    "the backend does not run functions", lambda suite, _: {*suite.kinds} - {"executable"}
)
COPIES = Need(
    "tasks share the program's memory (`shares_memory`)",
    lambda suite, _: (
        suite.separate_processes if suite.shares_memory is None else not suite.shares_memory
    ),
)
ISOLATED = Need(
    "separate_processes = False: functions share a process",
    lambda suite, _: suite.separate_processes,
)


@dataclass(slots=True)
class Shared:
    """State that the checks of one test class share.

    Attributes:
        clock: The clock that measures all time limits.
        program: The program's settings before any backend was created.
        parent: The directory that contains the sandboxes and files of all checks.
        backend: The backend, started; `None` before its first use and after a failed check.
        lives: Measurements of other backends, from their start to their shutdown.
        drivers: The drivers of the running check.
        known: The uids of submitted tasks, and of engines that submit tasks.
        errors: Unhandled errors of the loop.
        failed: True if the running check has failed.
    """

    clock: Clock
    program: Program
    parent: Path
    backend: Any = None
    lives: list[Any] = field(default_factory=list)
    drivers: list[Driver] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    failed: bool = False

    async def started(self, suite: Suite) -> Any:
        """Return the backend of the class, started."""
        async with self.clock.within(2 * suite.time_limit):
            backend = self.backend if self.backend is not None else await suite.make_backend()
            self.backend = await started(backend)
        return self.backend

    async def discard(self, limit: float) -> None:
        """Shut the backend down; the next check creates another."""
        backend, self.backend = self.backend, None
        if backend is not None:
            async with self.clock.within(limit):
                await backend.shutdown()

    def judge(self) -> None:
        """Fail if the backend broke a rule that applies during every check."""
        __tracebackhide__ = True
        for driver in self.drivers:
            for fault in driver.faults:
                raise AssertionError(f"{fault.rule}: {fault.detail}")
        for uid in self.strangers():
            raise AssertionError(f"the callback reported the task {uid!r}, which was not submitted")
        if self.errors:
            raise AssertionError(f"unhandled error on the event loop: {self.errors[0]}")
        if written := sorted(os.listdir()):
            for name in written:
                shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)
            raise AssertionError(
                f"the backend wrote {written} into the current directory; write files into "
                "`self.session.directory(...)`"
            )

    def status(self) -> str:
        """Describe the tasks that have not ended, and an unknown task that was reported."""
        unfinished = [text for driver in self.drivers for text in driver.unfinished()]
        words = f"no terminal state for {'; '.join(unfinished[:5])}" if unfinished else ""
        strangers = self.strangers()
        if strangers:
            words += f"; the callback reported {strangers[0]!r}, which was not submitted"
        return words or "all submitted tasks have ended"

    def strangers(self) -> list[str]:
        """Return the reported uids that neither a driver nor an engine submitted."""
        for driver in self.drivers:
            self.known.update(driver.uids())
        named = [uid for driver in self.drivers for uid in driver.strangers]
        return [
            uid
            for uid in named
            if uid not in self.known and uid.partition(".task.")[0] not in self.known
        ]

    def note_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Record an unhandled error of the loop."""
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")


class Suite:
    """Settings of a conformance test class, and the fixtures of its checks.

    Attributes:
        time_limit: Seconds that one check may take. Time in which this process could not run does
            not count. A few checks may take a multiple of `time_limit`.
        settle: Seconds to wait before concluding that something does not happen. Processes, threads
            and files have ten times as long to disappear.
        loop_gap: Seconds for which the backend may block the loop. The best of three tries counts.
        submission_gap: Seconds for which one submission of a few tasks, including their ends,
            may block the loop in total, over all pauses.
        shutdown_limit: Seconds that the shutdown of an idle backend may take; the better of two
            tries counts.
        big_bytes: Size of the big argument and the big result.
        output_bytes: Size of an executable's big output.
        fan: Number of tasks in the big fan.
        cycles: Number of starts and shutdowns during which nothing may accumulate.
        memory_growth: Bytes by which the process may grow in those cycles.
        growth_per_task: Bytes that the program may keep for each finished task. The results of
            the check's tasks are much larger.
        cores: Cores of the backend of `make_backend`. Required if `cores` is declared.
        cores_per_task: The maximum for one task, if that is less.
        gpus: GPUs of the backend. Required if `gpus` is declared.
        memory: Memory of the backend for tasks, in bytes or as text such as `"2 GiB"`. Required
            if `memory` is declared.
        memory_per_task: The maximum for one task, if that is less.
        dry: True if the backend only pretends to run tasks: checks of their effects are skipped.
        separate_processes: True if functions run in separate processes, so that a function that
            kills its process does not affect others.
        shares_memory: True if tasks receive the program's own function and argument objects, not
            copies. `None`: the opposite of `separate_processes`.
        closures: Number of functions that each hold `closure_bytes` and run one after the other.
        closure_bytes: Bytes that each of them holds. Above 32 MiB, the highest value of glibc's
            `M_MMAP_THRESHOLD`, memory is returned to the system as soon as it is freed.
        names_workers: True if the description of a finished task names the worker or host that ran
            it. Set it to `False` if the system behind the backend does not report that.
        leaves_behind: Patterns (`fnmatch`) of leftovers allowed after the shutdown, matched with
            `"process COMMAND"`, `"thread NAME"`, `"task NAME"`, `"file TARGET"` and
            `"temporary NAME"`.
        adds: Changes that the backend may make to the program while it runs: any of `"threads"`,
            `"children"`, `"descriptors"` and `"sys.path"`, which the shutdown must undo, and
            `"at-fork handlers"`, which cannot be removed.
        expected_failures: Checks that are known to fail, by name, with reasons. It is an error if
            one of them passes.
        create_args: Arguments for the class's `create`.
        create_kwargs: Keyword arguments for the class's `create`.
        work_dir: The directory for sandboxes and files, which the backend must see if it declares
            `shared_file_system`. Default: the system's temporary directory.
    """

    time_limit: ClassVar[float] = 30.0
    settle: ClassVar[float] = 0.2
    loop_gap: ClassVar[float] = 0.25
    submission_gap: ClassVar[float] = 0.1
    shutdown_limit: ClassVar[float] = 5.0
    big_bytes: ClassVar[int] = 5_000_000
    output_bytes: ClassVar[int] = 10_000_000
    fan: ClassVar[int] = 1_000
    cycles: ClassVar[int] = 6
    memory_growth: ClassVar[int] = 32 * 1024 * 1024
    growth_per_task: ClassVar[int] = 20_000
    cores: ClassVar[int | None] = None
    cores_per_task: ClassVar[int | None] = None
    gpus: ClassVar[int | None] = None
    memory: ClassVar[int | str | None] = None
    memory_per_task: ClassVar[int | str | None] = None
    names_workers: ClassVar[bool] = True
    dry: ClassVar[bool] = False
    separate_processes: ClassVar[bool] = False
    shares_memory: ClassVar[bool | None] = None
    closures: ClassVar[int] = 20
    closure_bytes: ClassVar[int] = 34_000_000
    leaves_behind: ClassVar[Sequence[str]] = ()
    adds: ClassVar[Set[str]] = frozenset({"threads", "children", "descriptors"})
    expected_failures: ClassVar[Mapping[str, str]] = {}
    create_args: ClassVar[Sequence[Any]] = ()
    create_kwargs: ClassVar[Mapping[str, Any]] = {}
    work_dir: ClassVar[Path | None] = None

    # During a check: what the backend declares, and a directory that is removed at the end.
    capabilities: Capabilities
    place: Path
    _current: Shared

    async def make_backend(self) -> Any:
        """Create the backend under test, started or not.

        Called on a running loop, several times per class.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define `async def make_backend(self)` to return a backend"
        )

    async def make_failing_backend(self) -> Any:
        """Create a backend whose start fails, or return `NotImplemented`."""
        return NotImplemented

    def library_function(self) -> Any:
        """Return a function for a task that uses the library behind the backend directly.

        For example, one that opens a client of the same cluster, computes something with it, and
        returns a true value. It takes no arguments and runs several times concurrently.

        Returns:
            The function, or `NotImplemented` if the backend has no library, or none that can be
            used inside a task.
        """
        return NotImplemented

    @pytest_asyncio.fixture(scope="class", loop_scope="class", name="shared")
    @classmethod
    async def _shared(cls) -> AsyncIterator[Shared]:
        # Resolved before `scratch` changes the current and the temporary directory.
        parent = Path(tempfile.gettempdir() if cls.work_dir is None else cls.work_dir).resolve()
        with scratch(), Clock() as clock:
            before = holdings()
            shared = Shared(clock, Program.now(), parent)
            asyncio.get_running_loop().set_exception_handler(shared.note_error)
            yield shared
            await shared.discard(cls.time_limit)
            left = await settled(
                lambda: leftovers(before, cls.leaves_behind, ["temporary"]),
                10 * cls.settle,
            )
            assert not left, listed(left)

    @pytest_asyncio.fixture(loop_scope="class")
    async def _prepared(
        self, request: pytest.FixtureRequest, shared: Shared
    ) -> AsyncIterator[None]:
        """Skip a check that does not apply, limit its time, and discard the backend if it fails."""
        check: Check = request.function.check
        name = request.node.name
        callspec = getattr(request.node, "callspec", None)
        kind = callspec.params.get("kind") if callspec is not None else None
        if shared.backend is None:
            shared.backend = await self.make_backend()
        self.capabilities = shared.backend.capabilities
        if reason := check.why_skipped(self, kind):
            pytest.skip(reason)
        expected = self.expected_failures
        if known := expected.get(name) or expected.get(request.node.originalname):
            request.node.add_marker(pytest.mark.xfail(reason=known, strict=True))
        # For code that blocks the loop. Other checks end at their own limit, whose clock stops
        # while the process cannot run.
        limit = pytest.mark.timeout(10 + 4 * self.time_limit * check.times, func_only=True)
        request.node.add_marker(limit, append=False)
        shared.strangers()  # tasks of a check that skipped itself may end during this one
        shared.failed, shared.drivers, shared.errors = False, [], []
        self._current = shared
        self.place = Path(tempfile.mkdtemp(prefix="rhapsody-kit-", dir=shared.parent))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(shared.program.directory)  # fixtures of the author may have changed it
            yield
        shutil.rmtree(self.place, ignore_errors=True)
        if shared.failed:
            with suppress(Exception):  # the failure is reported, not its consequences
                await shared.discard(self.time_limit)

    @pytest_asyncio.fixture(loop_scope="class", name="backend")
    async def _backend(self, shared: Shared) -> Any:
        return await shared.started(self)

    @pytest_asyncio.fixture(loop_scope="class", name="driver")
    async def _driver(self, backend: Any) -> AsyncIterator[Driver]:
        async with self.drive(backend) as driver:
            yield driver

    @property
    def kinds(self) -> list[TaskKind]:
        """The kinds of task that the backend runs, without services; functions come first."""
        return [kind for kind in KINDS if self.capabilities.runs(kind)]

    @property
    def routes(self) -> list[Route]:
        """Every form of call that the backend runs, without cores and with `cores=0`."""
        requests: list[tuple[str, Resources | None]] = [("", None)]
        if "cores" in self.capabilities.resources:
            requests.append((" with cores=0", Resources(cores=0)))
        return [
            Route(name + suffix, kind, wrap, request)
            for suffix, request in requests
            for name, kind, wrap in _FORMS
            if self.capabilities.runs(kind)
        ]

    def form(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, as a coroutine function if the backend runs no other functions."""
        if self.capabilities.sync_functions:
            return function

        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return function(*args, **kwargs)

        return coroutine

    def adder(self, flow: WorkflowEngine) -> Any:
        """Return a task that adds 1 to the sum of its arguments, of a kind that the backend has."""

        def total(*numbers: Any) -> int:
            # The results of a dry backend are not numbers.
            return 1 + sum(int(number) for number in numbers if str(number).strip().isdigit())

        if self.kinds[0] != "executable":
            return flow.function_task(self.form(total))

        @flow.executable_task
        async def total_command(*numbers: Any) -> str:
            return f"echo {total(*numbers)}"

        return total_command

    def drive(self, backend: Any) -> Driver:
        """Return a driver; the check fails at its end if the driver has recorded faults."""
        driver = Driver(backend, work_dir=self.place)
        self._current.drivers.append(driver)
        return driver

    @pytest_asyncio.fixture(loop_scope="class", name="new_backend")
    async def _new_backend(self, shared: Shared) -> AsyncIterator[NewBackend]:
        async with AsyncExitStack() as ends:

            async def shut_down(backend: Any) -> None:
                async with shared.clock.within(self.time_limit):
                    await backend.shutdown()

            async def new_backend() -> Any:
                backend = await self.make_backend()
                ends.push_async_callback(shut_down, backend)
                return backend

            yield new_backend

    @pytest_asyncio.fixture(loop_scope="class", name="new_engine")
    async def _new_engine(self, shared: Shared) -> AsyncIterator[NewEngine]:
        async with AsyncExitStack() as ends:

            async def new_engine(backend: Any = None, **settings: Any) -> WorkflowEngine:
                if backend is None:
                    backend = await shared.started(self)
                settings.setdefault("work_dir", self.place / f"engine.{len(shared.known)}")
                settings.setdefault("handle_signals", False)
                engine = await WorkflowEngine.create(backend, **settings)
                ends.push_async_callback(engine.shutdown, skip_execution_backend=True)
                shared.known.add(engine.uid)
                return engine

            yield new_engine

    @pytest_asyncio.fixture(loop_scope="class", name="flow")
    async def _flow(self, new_engine: NewEngine) -> WorkflowEngine:
        return await new_engine()


def require_unchanged(cls: type[Suite], base: type[Suite]) -> None:
    """Raise `TypeError` if a class replaces checks, or expects unknown checks to fail."""
    checks = {name: getattr(base, name) for name in dir(base) if name.startswith("test_")}
    for name, test in checks.items():
        if getattr(cls, name, None) is not test:
            raise TypeError(
                f"{cls.__name__} overrides the check {name!r}: rename your test, or, if the check "
                f'is known to fail, set `expected_failures = {{"{name}": "the reason"}}`'
            )
    for name, reason in cls.expected_failures.items():
        if name.partition("[")[0] not in checks:
            close = difflib.get_close_matches(name, checks, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"expected_failures: unknown check {name!r}{hint}")
        if not isinstance(reason, str) or not reason.strip():
            raise TypeError(f"expected_failures: {name!r} needs a reason, got {reason!r}")


async def state_of(backend: Any) -> str:
    """Return a backend's state; its `state` may be a coroutine function or not."""
    state = backend.state()
    return str(await state) if inspect.isawaitable(state) else str(state)


def call(
    driver: Driver, kind: TaskKind, name: str, /, *args: Any, **kwargs: Any
) -> TaskDescription:
    """Describe a call of a function of `_work`, or of its asynchronous variant."""
    suffix = "_async" if kind == "async_function" else ""
    return driver.call(getattr(_work, name + suffix), *args, **kwargs)


def quick(driver: Driver, kind: TaskKind) -> TaskDescription:
    """Describe a task that succeeds at once with the result 2."""
    return driver.command("echo 2") if kind == "executable" else call(driver, kind, "add", 1)


def failing(driver: Driver, kind: TaskKind) -> TaskDescription:
    """Describe a task that fails at once."""
    if kind == "executable":
        return driver.command("echo on purpose >&2; exit 3")
    return call(driver, kind, "fail", "on purpose")


async def cancel(driver: Driver, task: TaskDescription) -> None:
    """Cancel a task that has not ended, and wait for its end."""
    answer = await driver.cancel(task)
    assert answer is True, f"cancel_task returned {answer!r}"
    end = await driver.finished(task)
    assert end.state is CANCELED, str(end)


async def until(condition: Callable[[], object]) -> None:
    """Poll until a condition is true, for changes of which no notification arrives."""
    while not condition():
        await asyncio.sleep(0.01)


def text_of(path: Path) -> str | None:
    """Return the text of a file, `None` if it does not exist."""
    return path.read_text() if path.is_file() else None


class Ticking:
    """A task that appends to a file while it runs, until it is released or stopped.

    The file shows whether the work continues, independently of the backend's reports. When the
    check ends, the task's files are removed, which releases the task.

    Attributes:
        task: The description of the task.
        kind: The kind of the task.

    Args:
        driver: The driver that submits it.
        kind: The kind of the task.
        command: A shell command that an executable runs first.
    """

    def __init__(self, driver: Driver, kind: TaskKind, command: str = "") -> None:
        self._driver = driver
        task = driver.describe(f"ticking {kind}")
        self._ticks = driver.work_dir / f"{task['uid']}.ticks"
        self._gate = driver.work_dir / f"{task['uid']}.going"
        self._gate.touch()
        arguments = (str(self._ticks), str(self._gate), _LONG)
        if kind in ("function", "async_function", "function_service"):
            task["function"] = _work.tick_async if kind == "async_function" else _work.tick
            task["args"] = arguments
        else:
            task["executable"], *task["arguments"] = _work.tick_command(*arguments, command)
            driver.with_sandbox(task)
        task["is_service"] = kind in ("service", "function_service")
        self.task = task
        self.kind: TaskKind = kind

    @property
    def has_started(self) -> bool:
        """True if the task has ticked at least once."""
        return self._size() > 0

    async def began(self) -> None:
        """Wait until the task has ticked once."""
        await until(lambda: self.has_started)

    async def start(self) -> None:
        """Submit the task, and wait until it has ticked once."""
        await self._driver.submit(self.task)
        await self.began()

    def release(self) -> None:
        """Let it end."""
        self._gate.unlink(missing_ok=True)

    async def finish(self) -> Finished:
        """Release the task, and wait until it has ended."""
        self.release()
        return await self._driver.finished(self.task)

    async def is_still(self, watch: float = 0.2) -> bool:
        """Return True if the task no longer ticks."""
        size = self._size()
        await asyncio.sleep(watch)
        return self._size() == size

    def _size(self) -> int:
        return self._ticks.stat().st_size if self._ticks.exists() else 0


@dataclass(frozen=True, slots=True)
class Route:
    """Form of call with a request for cores; a backend may run each combination differently.

    Attributes:
        name: The name in messages.
        kind: The kind of task.
        wrap: Converts a function to this form.
        resources: The request, `None` for none.
    """

    name: str
    kind: TaskKind
    wrap: Callable[[Any], Any]
    resources: Resources | None

    def call(self, driver: Driver, name: str, /, *args: Any, **kwargs: Any) -> TaskDescription:
        """Describe a call of a function of `_work`."""
        return self.take(call(driver, self.kind, name, *args, **kwargs))

    def take(self, task: TaskDescription) -> TaskDescription:
        """Convert the function of a description to this form, and add the request."""
        task["function"] = self.wrap(task["function"])
        if self.resources is not None:
            task["resources"] = self.resources
        return task


_FORMS: list[tuple[str, TaskKind, Callable[[Any], Any]]] = [
    ("a function", "function", lambda function: function),
    ("a partial", "function", functools.partial),
    ("a method", "function", lambda function: _work.Holder(function).call),
    ("a callable object", "function", _work.Holder),
    ("a coroutine function", "async_function", lambda function: function),
    ("a partial of a coroutine function", "async_function", functools.partial),
    ("a coroutine method", "async_function", lambda f: _work.Holder(f).call_async),
]
