"""Base of the conformance kit: settings and fixtures, declaration of checks, and tasks to run.

The checks of each topic are methods of a class that derives from `Suite`; `BackendConformance`
derives from all these classes. The checks of one test class run on one event loop and share one
backend, which is replaced after a failed check. Only checks of starting and stopping create
additional backends.
"""

from __future__ import annotations

import asyncio
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

from rhapsody import Resources, TaskDescription, TasksMainStates, WorkflowEngine
from rhapsody.backends import CancelLevel, Capabilities
from rhapsody.plugins import AttemptId
from rhapsody.sdk import TaskKind, suggestion
from rhapsody_testing import _work
from rhapsody_testing._stacks import describe_wait
from rhapsody_testing._system import (
    ProcessSettings,
    RunningClock,
    holdings,
    leftovers,
    listed,
    scratch,
    settled,
)
from rhapsody_testing._tools import Driver, Finished, started

CONTRACT = "https://rhapsody.example/docs/plugins/contract.html"
"""Address of the page whose sections state the rules."""

DONE, FAILED = TasksMainStates.DONE, TasksMainStates.FAILED
CANCELED, RUNNING = TasksMainStates.CANCELED, TasksMainStates.RUNNING

KINDS: tuple[TaskKind, ...] = ("function", "async_function", "executable")

each_kind = pytest.mark.parametrize("kind", KINDS)
each_function_kind = pytest.mark.parametrize("kind", KINDS[:2])

_LONG = 600.0  # seconds after which the work of a task ends in any case

NewBackend = Callable[..., Awaitable[Any]]
"""`await new_backend()` creates a backend that is shut down at the end of the check."""

NewEngine = Callable[..., Awaitable[WorkflowEngine]]
"""`await new_engine(backend=None, **settings)` creates an engine.

If `backend` is `None`, the engine uses the shared backend.
"""


class Need(NamedTuple):
    """Condition under which a check applies.

    Attributes:
        reason: The reason that pytest shows if the condition is not met; may contain `{kind}`.
        met: Called with the test object and the value of the check's parameter `kind` (`None` if
            the check has no such parameter). Returns a true value if the condition is met.
    """

    reason: str
    met: Callable[[Suite, Any], object]


class Check(NamedTuple):
    """Declaration of a check, with the arguments of `check`."""

    section: str
    needs: tuple[str | Need, ...]
    dry: bool
    times: float
    fan: bool

    def why_skipped(self, suite: Suite, kind: Any) -> str:
        """Return the reason why the check does not apply, or an empty string if it applies."""
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
    section: str, *needs: str | Need, dry: bool = False, times: float = 1.0, fan: bool = False
) -> Callable[[Callable[..., Awaitable[None]]], Any]:
    """Declare a method as a check.

    Args:
        section: The anchor of the section of the contract that states the rule.
        needs: The names of capabilities that must be declared, and other conditions.
        dry: True if the check also applies to a backend that only pretends to run tasks.
        times: Time limit of the check, as a multiple of the class's `time_limit`.
        fan: True if the class's `fan` limits the number of tasks that the check runs.

    Returns:
        The decorator.
    """
    declaration = Check(section, needs, dry, times, fan)

    def decorate(body: Callable[..., Awaitable[None]]) -> Any:
        @functools.wraps(body)
        async def test(self: Suite, **fixtures: Any) -> None:
            __tracebackhide__ = True
            shared, limit = self._current, self.time_limit * times
            current = asyncio.current_task()
            assert current is not None
            waits: list[str] = []

            def expired() -> None:
                waits.append(describe_wait(current))

            try:
                async with shared.clock.within(limit, expired) as timer:
                    await body(self, **fixtures)
                    shared.judge()
            except pytest.skip.Exception:
                raise
            except BaseException as error:
                shared.failed = True
                note = f"The rule: {CONTRACT}#{section}"
                if isinstance(error, TimeoutError) and timer.expired():
                    fewer = f", or lower `fan` (now {self.fan}) for fewer tasks" if fan else ""
                    note = (
                        f"The check did not end within {limit:g} s{shared.status()}\n"
                        f"{''.join(waits)}\n"
                        "If these places make progress, the backend is only slow: raise "
                        f"`time_limit` (now {self.time_limit:g}){fewer}\n{note}"
                    )
                error.add_note(note)
                raise

        test.__dict__["check"] = declaration
        return pytest.mark.asyncio(loop_scope="class")(pytest.mark.usefixtures("_prepared")(test))

    return decorate


def honors(resource: str) -> Need:
    """Return the condition that the backend declares a resource."""
    reason = f"the backend does not declare the resource {resource!r}"
    return Need(reason, lambda suite, _: resource in suite.capabilities.resources)


def binds(resource: str) -> Need:
    """Return the condition that the backend declares a resource as enforced."""
    reason = f"the backend does not declare that it enforces the resource {resource!r}"
    return Need(reason, lambda suite, _: resource in suite.capabilities.binds)


def cancels(level: CancelLevel, kind: TaskKind | None = None) -> Need:
    """Return the condition that the backend declares a cancel level for a kind of task.

    Args:
        level: `"queued"`, which `"running"` also satisfies, or `"running"`.
        kind: The kind of task, or `None` for the check's parameter `kind`.
    """
    enough = ("running",) if level == "running" else ("queued", "running")
    return Need(
        f"the backend does not declare that it can cancel a {level} {kind or '{kind}'}",
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
ENDS_WITH_PROGRAM = Need(
    "ends_with_program = False: tasks may outlive the program",
    lambda suite, _: suite.ends_with_program,
)
ISOLATED = Need(
    "separate_processes = False: functions share a process",
    lambda suite, _: suite.separate_processes,
)


@dataclass(slots=True)
class SharedState:
    """State that the checks of one test class share.

    Attributes:
        clock: The clock that measures all time limits.
        program: The settings of this process before any backend was created.
        parent: The directory that contains the sandboxes and files of all checks.
        backend: The shared backend; `None` before its first use and after a failed check.
        lives: Measurements of other backends that were started and shut down; see `Lifecycle`.
        drivers: The drivers of the running check.
        engines: The engines of the running check.
        known: The uids of tasks that drivers have submitted, and the uids of engines.
        errors: Unhandled errors of the loop during the running check.
        failed: True if the running check has failed.
    """

    clock: RunningClock
    program: ProcessSettings
    parent: Path
    backend: Any = None
    lives: list[Any] = field(default_factory=list)
    drivers: list[Driver] = field(default_factory=list)
    engines: list[WorkflowEngine] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    failed: bool = False

    async def started(self, suite: Suite) -> Any:
        """Return the shared backend, after creating and starting it if necessary."""
        async with self.clock.within(2 * suite.time_limit):
            backend = self.backend if self.backend is not None else await suite.make_backend()
            self.backend = await started(backend)
        return self.backend

    async def discard(self, limit: float) -> None:
        """Shut the shared backend down. The next check creates another one."""
        backend, self.backend = self.backend, None
        if backend is not None:
            async with self.clock.within(limit):
                await backend.shutdown()

    def judge(self) -> None:
        """Raise an error if the backend has broken a rule that applies to all checks."""
        __tracebackhide__ = True
        for driver in self.drivers:
            for fault in driver.faults:
                raise AssertionError(f"{fault.rule}: {fault.detail}")
        for uid in self.strangers():
            raise AssertionError(f"the callback reported task {uid!r}, which was not submitted")
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
        """Return the end of a message: a description of the tasks of the running check.

        It names the first unfinished tasks, and any reported task that was not submitted.
        """
        unfinished = [text for driver in self.drivers for text in driver.unfinished()]
        parts = []
        if count := sum(len(driver.uids()) for driver in self.drivers):
            parts.append(f"{count - len(unfinished)} of {count} submitted tasks have ended")
        if unfinished:
            parts.append(f"no terminal state for {'; '.join(unfinished[:5])}")
        parts += [f"tasks of {engine.uid}: {engine.stats}" for engine in self.engines]
        strangers = self.strangers()
        if strangers:
            parts.append(f"the callback reported task {strangers[0]!r}, which was not submitted")
        return "".join(f"; {part}" for part in parts)

    def strangers(self) -> list[str]:
        """Return the uids of reported tasks that neither a driver nor an engine has submitted."""
        for driver in self.drivers:
            self.known.update(driver.uids())
        named = [uid for driver in self.drivers for uid in driver.strangers]
        return [uid for uid in named if uid not in self.known and _engine_of(uid) not in self.known]

    def note_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Record an unhandled error of the loop."""
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")


class Suite:
    """Settings of a conformance test class, and the fixtures of its checks.

    Attributes:
        time_limit: Maximum number of seconds for one check; a few checks may take a multiple. Time
            in which this process could not run is not counted.
        settle: Number of seconds to wait before concluding that something does not happen. The wait
            for processes, threads and files to disappear is ten times as long.
        loop_gap: Maximum number of seconds for which the backend may block the loop. The best of
            three tries counts.
        submission_gap: Maximum number of seconds for which the submission of a few tasks and the
            handling of their ends may block the loop, summed over all pauses.
        shutdown_limit: Maximum number of seconds for the shutdown of an idle backend. The better
            of two tries counts.
        big_bytes: Size in bytes of the big argument and the big result.
        output_bytes: Size in bytes of an executable's big output.
        fan: Maximum number of independent tasks that a check runs together. Lower it if the backend
            needs more than about 0.1 s to start a task.
        cycles: Number of starts and shutdowns during which nothing may accumulate.
        memory_growth: Maximum number of bytes by which the process may grow in these cycles.
        growth_per_task: Maximum number of bytes that the process may keep for each finished task.
            The results of the tasks in this check are much larger.
        cores: Number of cores of the backend. Required if `cores` is declared.
        cores_per_task: Maximum number of cores for one task, if that is less than `cores`.
        gpus: Number of GPUs of the backend. Required if `gpus` is declared.
        memory: Memory of the backend for tasks, in bytes or as text such as `"2 GiB"`. Required
            if `memory` is declared.
        memory_per_task: Maximum memory for one task, if that is less than `memory`.
        dry: True if the backend only pretends to run tasks. If so, checks of the effects of tasks
            are skipped.
        separate_processes: True if functions run in separate processes, so that a function that
            kills its process does not affect other functions.
        shares_memory: True if tasks receive the program's own function and argument objects, not
            copies. `None`: the opposite of `separate_processes`.
        closures: Number of functions that each hold `closure_bytes` and run one after the other.
        closure_bytes: Number of bytes that each of these functions holds. Above 32 MiB, the highest
            value of glibc's `M_MMAP_THRESHOLD`, memory is returned to the system when it is freed.
        names_workers: True if the description of a finished task names the worker or host that ran
            it. Set it to `False` if the system behind the backend does not report workers.
        ends_with_program: True if tasks end when the program is killed. The check starts a program
            with a new backend. Set it to `False` if something else, such as a batch system, a
            cluster or `mpiexec`, starts and ends the processes of tasks.
        leaves_behind: Patterns (`fnmatch`) of resources that may remain after the shutdown. They
            are matched with `"process COMMAND"`, `"thread NAME"`, `"task NAME"`, `"file TARGET"`
            and `"temporary NAME"`.
        adds: Changes that the backend may make to the program while it runs: any of `"threads"`,
            `"children"`, `"descriptors"` and `"sys.path"`, which the shutdown must undo, and
            `"at-fork handlers"`, which cannot be removed.
        expected_failures: The checks that are known to fail: a mapping from their names to reasons.
            If one of them passes, it is reported as failed.
        create_args: Arguments for the `create` method of the backend's class.
        create_kwargs: Keyword arguments for the `create` method of the backend's class.
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
    ends_with_program: ClassVar[bool] = True
    leaves_behind: ClassVar[Sequence[str]] = ()
    adds: ClassVar[Set[str]] = frozenset({"threads", "children", "descriptors"})
    expected_failures: ClassVar[Mapping[str, str]] = {}
    create_args: ClassVar[Sequence[Any]] = ()
    create_kwargs: ClassVar[Mapping[str, Any]] = {}
    work_dir: ClassVar[Path | None] = None

    # Set during a check. `place` is a directory that is removed at the end of the check.
    capabilities: Capabilities
    place: Path
    _current: SharedState

    async def make_backend(self) -> Any:
        """Create the backend under test, started or not.

        Called on a running loop, several times per class.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define `async def make_backend(self)`, which returns a "
            "new backend"
        )

    async def make_failing_backend(self) -> Any:
        """Create a backend whose start fails, or return `NotImplemented`."""
        return NotImplemented

    def library_function(self) -> Any:
        """Return a function for a task that uses the library behind the backend directly.

        For example, the function opens a client of the same cluster and computes something with it.
        The function takes no arguments and returns a true value. It runs in several tasks at the
        same time.

        Returns:
            The function, or `NotImplemented` if there is no library that tasks can use.
        """
        return NotImplemented

    @pytest_asyncio.fixture(scope="class", loop_scope="class", name="shared")
    @classmethod
    async def _shared(cls) -> AsyncIterator[SharedState]:
        # Resolved before `scratch` changes the current directory and the temporary directory.
        parent = Path(tempfile.gettempdir() if cls.work_dir is None else cls.work_dir).resolve()
        with scratch(), RunningClock() as clock:
            before = holdings()
            shared = SharedState(clock, ProcessSettings.now(), parent)
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
        self, request: pytest.FixtureRequest, shared: SharedState
    ) -> AsyncIterator[None]:
        """Skip or prepare a check, limit its time, and discard the backend if the check fails."""
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
        # This limit is for code that blocks the loop. Otherwise the limit of `check` applies first,
        # except while the process cannot run, which stops its clock.
        limit = pytest.mark.timeout(10 + 4 * self.time_limit * check.times, func_only=True)
        request.node.add_marker(limit, append=False)
        shared.strangers()  # tasks of a check that skipped itself may end during this one
        shared.failed, shared.drivers, shared.engines, shared.errors = False, [], [], []
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
    async def _backend(self, shared: SharedState) -> Any:
        return await shared.started(self)

    @pytest_asyncio.fixture(loop_scope="class", name="driver")
    async def _driver(self, backend: Any) -> AsyncIterator[Driver]:
        async with self.drive(backend) as driver:
            yield driver

    @property
    def kinds(self) -> list[TaskKind]:
        """The kinds of tasks that the backend runs, except services. Functions come first."""
        return [kind for kind in KINDS if self.capabilities.runs(kind)]

    @property
    def routes(self) -> list[Route]:
        """All forms of calls that the backend runs, each without a request for resources.

        If the backend declares `cores`, each form is also included with a request for 0 cores.
        """
        requests: list[tuple[str, Resources | None]] = [("", None)]
        if "cores" in self.capabilities.resources:
            requests.append((" with cores=0", Resources(cores=0)))
        return [
            Route(name + suffix, kind, wrap, request)
            for suffix, request in requests
            for name, kind, wrap in _FORMS
            if self.capabilities.runs(kind)
        ]

    def few(self, usual: int) -> int:
        """Return the usual number of tasks, or a smaller one if `fan` is less than ten times it."""
        return max(2, min(usual, self.fan // 10))

    def form(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, as a coroutine function if the backend runs only such functions."""
        if self.capabilities.sync_functions:
            return function

        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return function(*args, **kwargs)

        return coroutine

    def adder(self, flow: WorkflowEngine) -> Any:
        """Return a task that adds 1 to the sum of its arguments.

        The task is of a kind that the backend runs.
        """

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
        """Return a driver. The check fails if the driver has recorded faults."""
        driver = Driver(backend, work_dir=self.place)
        self._current.drivers.append(driver)
        return driver

    @pytest_asyncio.fixture(loop_scope="class", name="new_backend")
    async def _new_backend(self, shared: SharedState) -> AsyncIterator[NewBackend]:
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
    async def _new_engine(self, shared: SharedState) -> AsyncIterator[NewEngine]:
        async with AsyncExitStack() as ends:

            async def new_engine(backend: Any = None, **settings: Any) -> WorkflowEngine:
                if backend is None:
                    backend = await shared.started(self)
                settings.setdefault("work_dir", self.place / f"engine.{len(shared.known)}")
                settings.setdefault("handle_signals", False)
                engine = await WorkflowEngine.create(backend, **settings)
                ends.push_async_callback(engine.shutdown, skip_execution_backend=True)
                shared.known.add(engine.uid)
                shared.engines.append(engine)
                return engine

            yield new_engine

    @pytest_asyncio.fixture(loop_scope="class", name="flow")
    async def _flow(self, new_engine: NewEngine) -> WorkflowEngine:
        return await new_engine()


def require_unchanged(cls: type[Suite], base: type[Suite]) -> None:
    """Raise `TypeError` if a class overrides checks or has invalid `expected_failures`."""
    checks = {name: getattr(base, name) for name in dir(base) if name.startswith("test_")}
    for name, test in checks.items():
        if getattr(cls, name, None) is not test:
            raise TypeError(
                f"{cls.__name__} overrides the check {name!r}: rename your test, or, if the check "
                f'is known to fail, set `expected_failures = {{"{name}": "the reason"}}`'
            )
    for name, reason in cls.expected_failures.items():
        if name.partition("[")[0] not in checks:
            hint = suggestion(name, checks)
            raise TypeError(f"expected_failures: unknown check {name!r}{hint}")
        if not isinstance(reason, str) or not reason.strip():
            raise TypeError(f"expected_failures: {name!r} needs a reason, got {reason!r}")


async def state_of(backend: Any) -> str:
    """Return a backend's state. The backend's `state` may return a string or an awaitable."""
    state = backend.state()
    return str(await state) if inspect.isawaitable(state) else str(state)


def call(
    driver: Driver, kind: TaskKind, name: str, /, *args: Any, **kwargs: Any
) -> TaskDescription:
    """Describe a call of a function of `_work`, or of the function's asynchronous variant."""
    suffix = "_async" if kind == "async_function" else ""
    return driver.call(getattr(_work, name + suffix), *args, **kwargs)


def quick(driver: Driver, kind: TaskKind) -> TaskDescription:
    """Describe a task that succeeds immediately, with the result 2."""
    return driver.command("echo 2") if kind == "executable" else call(driver, kind, "add", 1)


def failing(driver: Driver, kind: TaskKind) -> TaskDescription:
    """Describe a task that fails immediately."""
    if kind == "executable":
        return driver.command("echo on purpose >&2; exit 3")
    return call(driver, kind, "fail", "on purpose")


def _engine_of(uid: str) -> str | None:
    """Return the uid of the engine that a task belongs to, or `None` if the uid is not valid."""
    try:
        return AttemptId.of(uid).task.engine
    except ValueError:
        return None


async def cancel(driver: Driver, task: TaskDescription) -> None:
    """Cancel a task, wait until it has ended, and require that it was canceled."""
    answer = await driver.cancel(task)
    assert answer is True, (
        f"cancel_task must return True for a task that has not ended, got {answer!r}"
    )
    end = await driver.finished(task)
    assert end.state is CANCELED, str(end)


async def until(condition: Callable[[], object]) -> None:
    """Poll until a condition is true. Used if there is no notification of the change."""
    while not condition():
        await asyncio.sleep(0.01)


def text_of(path: Path) -> str | None:
    """Return the text of a file, or `None` if the file does not exist."""
    return path.read_text() if path.is_file() else None


class Ticking:
    """Task that appends to a file while it runs, until it is released or stopped.

    The file shows whether the work continues, independently of the backend's reports. When the
    check ends, the task's files are removed, which releases the task.

    Attributes:
        task: The description of the task.
        kind: The kind of the task.

    Args:
        driver: The driver that submits the task.
        kind: The kind of the task.
        command: Shell code that an executable runs first.
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
        """Wait until the task has ticked at least once."""
        await until(lambda: self.has_started)

    async def start(self) -> None:
        """Submit the task, and wait until it has ticked at least once."""
        await self._driver.submit(self.task)
        await self.began()

    def release(self) -> None:
        """Let the task end."""
        self._gate.unlink(missing_ok=True)

    async def finish(self) -> Finished:
        """Release the task, wait until it has ended, and return it."""
        self.release()
        return await self._driver.finished(self.task)

    async def is_still(self, watch: float = 0.2) -> bool:
        """Return True if the task does not tick during the next `watch` seconds."""
        size = self._size()
        await asyncio.sleep(watch)
        return self._size() == size

    def _size(self) -> int:
        return self._ticks.stat().st_size if self._ticks.exists() else 0


@dataclass(frozen=True, slots=True)
class Route:
    """Combination of a form of call and a request for cores, such as a method with `cores=0`.

    A backend may run each combination in a different way.

    Attributes:
        name: The name of the combination in messages.
        kind: The kind of task.
        wrap: Function that converts a function to this form.
        resources: The request for cores, or `None` for a call without a request.
    """

    name: str
    kind: TaskKind
    wrap: Callable[[Any], Any]
    resources: Resources | None

    def call(self, driver: Driver, name: str, /, *args: Any, **kwargs: Any) -> TaskDescription:
        """Describe a call, in this form, of a function of `_work`."""
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
