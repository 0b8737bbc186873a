"""The conformance kit finds what is wrong: a backend with each fault, and what the kit says."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from rhapsody.backends.base import Capabilities, CompletedExecutable, ManagedBackend
from rhapsody.states import TasksMainStates
from rhapsody.task import TaskDescription
from rhapsody.testing import BackendConformance, ConformanceError
from tests.core.small_backend import SmallBackend

SMALL = SmallBackend.capabilities
LEAKED: list[Any] = []


class CallsBackTwice(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        super().task_state_cb(task, state)
        if state == "DONE":
            for callback in tuple(self._callbacks):
                callback(task, state)


class NeverCallsBack(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        if state != "DONE":
            super().task_state_cb(task, state)


class ReportsAnUnknownStateFromAThread(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        if state == "DONE":
            state = "FINISHED"
        report = super().task_state_cb
        thread = threading.Thread(target=report, args=(task, state))
        thread.start()
        thread.join()


class ReportsRunningAfterTheEnd(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        super().task_state_cb(task, state)
        if state == "DONE":
            super().task_state_cb(task, "RUNNING")


class ReportsTasksNobodySubmitted(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        super().task_state_cb(task, state)
        for callback in tuple(self._callbacks):
            callback({**task, "uid": "another"}, state)


class LosesResults(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        task.pop("return_value", None)
        super().task_state_cb(task, state)


class LosesStdout(SmallBackend):
    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        return (await super()._execute(task))._replace(stdout="")


class CutsOutput(SmallBackend):
    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        done = await super()._execute(task)
        return done._replace(stdout=done.stdout[:65536])


class MixesTheStreams(SmallBackend):
    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        done = await super()._execute(task)
        return done._replace(stdout=done.stdout + done.stderr)


class IgnoresExitCodes(SmallBackend):
    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        return (await super()._execute(task))._replace(exit_code=0)


class RunsListsThroughAShell(SmallBackend):
    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        if "arguments" in task:
            task["executable"] = " ".join([task["executable"] or "", *task.pop("arguments")])
        return await super()._execute(task)


class LosesTheEnvironment(SmallBackend):
    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        task.pop("environment", None)
        return await super()._execute(task)


class SharesOneSandbox(SmallBackend):
    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        task["sandbox"] = os.path.dirname(task["sandbox"])
        return await super()._execute(task)


class MakesPublicSandboxes(SmallBackend):
    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        os.makedirs(task["sandbox"], mode=0o755)
        return await super()._execute(task)


class IgnoresCancel(SmallBackend):
    async def cancel_task(self, uid: str) -> bool:
        return uid in self._open


class CancelsInNameOnly(SmallBackend):
    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        work = asyncio.ensure_future(super()._execute(task))
        LEAKED.append(work)
        return await asyncio.shield(work)


class CancelsWhatHasEnded(SmallBackend):
    async def cancel_task(self, uid: str) -> bool:
        await super().cancel_task(uid)
        return True


class MangleExceptions(SmallBackend):
    async def run_task(self, task: TaskDescription) -> Any:
        try:
            return await super().run_task(task)
        except Exception as error:
            raise RuntimeError(f"task failed: {error!r}") from None


class BlocksTheLoopAWhile(SmallBackend):
    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        time.sleep(0.4)  # noqa: ASYNC251 - the fault
        await super().submit_tasks(tasks)


class BlocksTheLoopForGood(SmallBackend):
    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        time.sleep(60)  # noqa: ASYNC251 - the fault


class BlocksTheLoopAtShutdown(SmallBackend):
    async def stop(self) -> None:
        time.sleep(0.4)  # noqa: ASYNC251 - the fault


class WaitsForTheEnd(SmallBackend):
    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        await super().submit_tasks(tasks)
        await asyncio.wait(list(self._runs.values()))


class RaisesForOneBadTask(SmallBackend):
    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        if any(task["name"] == "fail" for task in tasks):
            raise ValueError("a bad task")
        await super().submit_tasks(tasks)


class EmptiesTheBatch(SmallBackend):
    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        await super().submit_tasks(tasks)
        assert isinstance(tasks, list)
        tasks.clear()


class ChangesArguments(SmallBackend):
    async def run_task(self, task: TaskDescription) -> Any:
        for argument in task["args"]:
            if isinstance(argument, list):
                argument.sort()
        return await super().run_task(task)


class HonoursNoCores(SmallBackend):
    capabilities = dataclasses.replace(SMALL, resources=frozenset({"cores"}))


class RefusesWithoutSayingWhat(SmallBackend):
    capabilities = dataclasses.replace(SMALL, resources=frozenset({"memory"}))

    async def run_task(self, task: TaskDescription) -> Any:
        if "resources" in task:
            raise ValueError("no")
        return await super().run_task(task)


class BindsNoThreadCounts(SmallBackend):
    capabilities = dataclasses.replace(
        SMALL, resources=frozenset({"cores"}), binds=frozenset({"cores"})
    )


class LeaksAProcess(SmallBackend):
    async def start(self) -> None:
        LEAKED.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))


class LeaksAThread(SmallBackend):
    async def start(self) -> None:
        event = threading.Event()
        LEAKED.append(event)
        threading.Thread(target=event.wait, name="forgotten", daemon=True).start()


class LeaksAFile(SmallBackend):
    async def start(self) -> None:
        LEAKED.append(open(os.devnull))  # noqa: SIM115, ASYNC230 - the fault


class LeaksATask(SmallBackend):
    async def start(self) -> None:
        LEAKED.append(asyncio.create_task(asyncio.sleep(60), name="forgotten"))


class StaysInMemory(SmallBackend):
    async def start(self) -> None:
        LEAKED.append(self)


class FailsUnseen(SmallBackend):
    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        await super().submit_tasks(tasks)
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)


class HangsAtShutdown(SmallBackend):
    async def stop(self) -> None:
        await asyncio.sleep(60)


class LeavesTasksAtShutdown(SmallBackend):
    async def shutdown(self) -> None:
        self._callbacks.clear()
        await super().shutdown()


class CannotBeShutDownTwice(SmallBackend):
    async def shutdown(self) -> None:
        if self._state == "shutdown":
            raise RuntimeError("already shut down")
        await super().shutdown()


class SaysItIsIdle(SmallBackend):
    def state(self) -> Any:
        return "IDLE" if self._state == "running" else super().state()


class TakesTasksBeforeItsStart(SmallBackend):
    def require_running(self) -> None:
        pass


class StartsAnother(SmallBackend):
    def __await__(self) -> Any:
        async def start() -> SmallBackend:
            return await ManagedBackend.__aenter__(SmallBackend())

        return start().__await__()


class LeavesAProcessWhenItsStartFails(SmallBackend):
    async def start(self) -> None:
        LEAKED.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        raise ConnectionError("no such scheduler")


class ReadyTooEarly(SmallBackend):
    capabilities = dataclasses.replace(SMALL, services=True, cancel_services="running")

    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        def at_once(future: Any, task: Any, state: Any) -> None:
            future.set_result("ready")

        super().task_state_cb(task, state, at_once if task["is_service"] else None)


class MapsToNothing(SmallBackend):
    def get_task_states_map(self) -> Any:
        return {"DONE": "DONE"}


FAULTS: tuple[tuple[type[SmallBackend], str, str], ...] = (
    (
        CallsBackTwice,
        "test_each_task_is_reported_terminal_exactly_once",
        "C4: exactly one terminal callback per task: task 'add' was reported ['DONE', 'DONE']",
    ),
    (
        NeverCallsBack,
        "test_each_task_is_reported_terminal_exactly_once",
        "C4: exactly one terminal callback per task: not done within",
    ),
    (
        ReportsAnUnknownStateFromAThread,
        "test_every_reported_state_is_known",
        "C6: every reported state is known to get_task_states_map(): "
        "task 'add' was reported 'FINISHED'",
    ),
    (
        ReportsRunningAfterTheEnd,
        "test_it_runs_functions",
        "C4: nothing is reported after a task's terminal state: "
        "task 'add' was reported RUNNING after DONE",
    ),
    (
        ReportsTasksNobodySubmitted,
        "test_it_runs_functions",
        "C4: the callback names tasks that were submitted: 'another' was not",
    ),
    (
        LosesResults,
        "test_a_finished_task_holds_its_results",
        "C4: a finished task's dict holds its results: a DONE function has no ['return_value']",
    ),
    (LosesStdout, "test_a_string_is_run_by_a_shell", "C7.5: a string is run by a shell"),
    (
        CutsOutput,
        "test_big_output_comes_whole",
        "C7.5: big output comes whole, on both streams at once: of 200003 characters to stdout "
        "65536 came",
    ),
    (MixesTheStreams, "test_the_two_streams_are_kept_apart", "C7.5: stdout and stderr are kept"),
    (
        IgnoresExitCodes,
        "test_an_exit_code_fails_the_task",
        "C7.5: a non-zero exit code is FAILED, with exit_code and stderr",
    ),
    (RunsListsThroughAShell, "test_a_list_is_run_without_a_shell", "C7.5: a list is run without"),
    (LosesTheEnvironment, "test_the_environment_is_added", "C7.5: the environment given is added"),
    (
        SharesOneSandbox,
        "test_each_executable_has_its_own_directory",
        "C7.5: each executable runs in a directory of its own: ",
    ),
    (
        MakesPublicSandboxes,
        "test_a_sandbox_is_private",
        "C7.17: sandboxes are where the task says and private: the mode of ",
    ),
    (
        IgnoresCancel,
        "test_a_running_executable_is_stopped",
        "C4: a running executable is really stopped: not done within",
    ),
    (
        CancelsInNameOnly,
        "test_a_running_executable_is_stopped",
        "C4: a running executable is really stopped: "
        "a executable was reported CANCELED while its work goes on",
    ),
    (
        CancelsWhatHasEnded,
        "test_an_unknown_uid_is_not_cancelled",
        "C4: cancel_task of an unknown uid is False: it gave True",
    ),
    (
        MangleExceptions,
        "test_an_exception_keeps_type_and_message",
        "C7.10: an exception keeps its type, message and attributes: a KitError came back as "
        "RuntimeError(",
    ),
    (
        BlocksTheLoopAWhile,
        "test_the_loop_is_not_held_up_by_tasks",
        "C4: the loop is not held up by submitting and running: ",
    ),
    (
        BlocksTheLoopForGood,
        "test_it_runs_functions",
        "C7.4: a function runs with positional arguments, keywords and defaults: "
        "the loop was held up for more than",
    ),
    (
        BlocksTheLoopAtShutdown,
        "test_the_loop_is_not_held_up_by_start_and_shutdown",
        "C4: the loop is not held up by start and shutdown: ",
    ),
    (
        WaitsForTheEnd,
        "test_submitting_does_not_wait_for_the_end",
        "C4: submit_tasks returns when the tasks are accepted, not when they ended: not done",
    ),
    (
        RaisesForOneBadTask,
        "test_one_bad_task_does_not_spoil_its_batch",
        "C4: one task's problem is its FAILED callback, not a raise of submit_tasks: "
        "ValueError: a bad task",
    ),
    (
        EmptiesTheBatch,
        "test_the_batch_is_left_as_it_was",
        "C4: the batch handed over is the caller's: the list is not changed: of a list of 9 ",
    ),
    (
        ChangesArguments,
        "test_arguments_are_left_as_they_were",
        "C5: arguments are not changed by the backend: the caller's arguments were ",
    ),
    (
        HonoursNoCores,
        "test_cores_bound_what_runs_at_once",
        "C10: no more tasks run at once than their cores allow: on 2 cores 6 tasks of one core",
    ),
    (
        HonoursNoCores,
        "test_more_than_there_is_is_refused",
        "C10: a task that needs more than there is fails with CapabilityError: Resources(",
    ),
    (
        RefusesWithoutSayingWhat,
        "test_more_than_there_is_is_refused",
        "C10: a task that needs more than there is fails with CapabilityError: Resources(",
    ),
    (
        BindsNoThreadCounts,
        "test_cores_set_the_thread_counts",
        "C10: an executable's thread-count variables follow its cores: with 2 cores",
    ),
    (
        LeaksAProcess,
        "test_shutdown_leaves_nothing_behind",
        "C4: shutdown leaves no process, thread, task or file behind: left behind: process ",
    ),
    (
        LeaksAThread,
        "test_shutdown_leaves_nothing_behind",
        "C4: shutdown leaves no process, thread, task or file behind: "
        "left behind: thread forgotten",
    ),
    (
        LeaksAFile,
        "test_shutdown_leaves_nothing_behind",
        "C4: shutdown leaves no process, thread, task or file behind: left behind: file /dev/null",
    ),
    (
        LeaksATask,
        "test_shutdown_leaves_nothing_behind",
        "C4: shutdown leaves no process, thread, task or file behind: left behind: task forgotten",
    ),
    (
        LeaksAFile,
        "test_nothing_grows_over_cycles",
        "C4: nothing grows over start and stop cycles: after 4 cycles there are also file",
    ),
    (
        StaysInMemory,
        "test_nothing_grows_over_cycles",
        "C4: nothing grows over start and stop cycles: 4 of 4 backends that were shut down are ",
    ),
    (
        FailsUnseen,
        "test_it_runs_functions",
        "C4: nothing fails unseen on the loop: Exception in callback",
    ),
    (HangsAtShutdown, "test_shutdown_twice_is_harmless", "C4: shutdown may be called twice"),
    (HangsAtShutdown, "test_it_runs_functions", "C4: shutdown() ends: not within"),
    (
        LeavesTasksAtShutdown,
        "test_shutdown_ends_work_in_flight",
        "C4: shutdown with work in flight ends all of it, each task once: not done within",
    ),
    (
        CannotBeShutDownTwice,
        "test_shutdown_twice_is_harmless",
        "C4: shutdown may be called twice, and at once: RuntimeError: already shut down",
    ),
    (
        SaysItIsIdle,
        "test_its_state_is_a_known_word",
        "C4: state() is one of the five words, and may be awaited: it said ['IDLE']",
    ),
    (
        TakesTasksBeforeItsStart,
        "test_use_before_start_says_to_await_it",
        "C4: use before start is an error that says to await the backend: submit_tasks raised",
    ),
    (
        StartsAnother,
        "test_awaiting_starts_it_and_gives_it_back",
        "C4: awaiting a backend starts it and gives it back: await gave ",
    ),
    (
        LeavesAProcessWhenItsStartFails,
        "test_a_failed_start_leaves_nothing_running",
        "C4: a failed start leaves nothing running: left behind: process ",
    ),
    (
        ReadyTooEarly,
        "test_it_is_not_ready_too_early",
        "C7.6: it is not said to be ready before it is: it was ready before it had said so",
    ),
    (
        MapsToNothing,
        "test_its_states_map_has_the_canonical_states",
        "C6: get_task_states_map() is a StateMapper with the four canonical states: it is {",
    ),
)


class Quick(BackendConformance):
    """The kit with limits short enough to wait for a fault."""

    time_limit = 1.5
    settle = 0.1
    big_bytes = 100_000
    output_bytes = 200_000
    cycles = 4
    cores = 2


def kit_on(backend: type[SmallBackend]) -> BackendConformance:
    class OnFaulty(Quick):
        async def make_backend(self) -> SmallBackend:
            return backend()

        async def make_failing_backend(self) -> SmallBackend:
            return backend()

    return OnFaulty()


@pytest.fixture(autouse=True)
def _give_back() -> Any:
    yield
    for thing in LEAKED:
        match thing:
            case subprocess.Popen():
                thing.kill()
                thing.wait()
            case threading.Event():
                thing.set()
            case _ if hasattr(thing, "close"):
                thing.close()
    LEAKED.clear()


@pytest.mark.parametrize(
    ("backend", "check", "message"),
    FAULTS,
    ids=[f"{backend.__name__}-{check.removeprefix('test_')}" for backend, check, _ in FAULTS],
)
def test_a_planted_fault_is_found_and_its_clause_named(
    backend: type[SmallBackend], check: str, message: str
) -> None:
    with pytest.raises(ConformanceError) as raised:
        getattr(kit_on(backend), check)()
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("check", sorted({check for _, check, _ in FAULTS}))
def test_without_the_fault_the_same_check_passes_or_is_skipped(check: str) -> None:
    try:
        getattr(kit_on(SmallBackend), check)()
    except pytest.skip.Exception as skipped:
        assert "does not declare" in str(skipped)  # noqa: PT017
    except ConformanceError as error:
        # Its start does not fail, and it has nothing that could.
        assert check == "test_a_failed_start_leaves_nothing_running"  # noqa: PT017
        assert "did not fail" in str(error)  # noqa: PT017


def test_a_check_that_is_replaced_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"Mine replaces the check 'test_a_fan_runs'.*expected_fai"):

        class Mine(BackendConformance):
            def test_a_fan_runs(self) -> None:  # type: ignore[override]
                pass


def test_a_check_that_a_mixin_hides_is_an_error() -> None:
    class Mixin:
        test_a_fan_runs = None

    with pytest.raises(TypeError, match="replaces the check 'test_a_fan_runs'"):

        class Mine(Mixin, BackendConformance):  # type: ignore[misc]
            pass


def test_tests_of_the_authors_own_are_welcome() -> None:
    class Mine(BackendConformance):
        def test_something_else(self) -> None:
            pass

    assert Mine.test_something_else


def test_an_expected_failure_of_an_unknown_check_is_an_error() -> None:
    with pytest.raises(TypeError, match="no check 'test_a_fan_run'; did you mean 'test_a_fan_runs"):

        class Mine(BackendConformance):
            expected_failures: ClassVar[dict[str, str]] = {"test_a_fan_run": "reason"}


def test_an_expected_failure_needs_a_reason() -> None:
    with pytest.raises(TypeError, match="'test_a_fan_runs' needs a reason"):

        class Mine(BackendConformance):
            expected_failures: ClassVar[dict[str, str]] = {"test_a_fan_runs": " "}


def test_an_expected_failure_is_reported_as_such() -> None:
    class Mine(Quick):
        expected_failures: ClassVar[dict[str, str]] = {
            "test_an_exit_code_fails_the_task": "it never looks at them"
        }

        async def make_backend(self) -> SmallBackend:
            return IgnoresExitCodes()

    with pytest.raises(pytest.xfail.Exception, match="it never looks at them"):
        Mine().test_an_exit_code_fails_the_task()


def test_an_expected_failure_that_passes_is_an_error() -> None:
    class Mine(Quick):
        expected_failures: ClassVar[dict[str, str]] = {
            "test_an_exit_code_fails_the_task": "it never looks at them"
        }

        async def make_backend(self) -> SmallBackend:
            return SmallBackend()

    with pytest.raises(ConformanceError, match="passes, but expected_failures says 'it never look"):
        Mine().test_an_exit_code_fails_the_task()


def test_what_is_not_declared_is_skipped_with_the_reason() -> None:
    class ExecutablesOnly(SmallBackend):
        capabilities = Capabilities(functions=False, sync_functions=False)

    with pytest.raises(pytest.skip.Exception, match="the backend does not declare sync_functions"):
        kit_on(ExecutablesOnly).test_it_runs_functions()


def test_a_class_without_make_backend_says_what_to_write() -> None:
    class Mine(BackendConformance):
        pass

    with pytest.raises(ConformanceError, match="Mine must have `async def make_backend"):
        Mine().test_it_runs_functions()


def test_cores_must_be_said_where_they_are_declared() -> None:
    class Mine(Quick):
        cores = None

        async def make_backend(self) -> SmallBackend:
            return HonoursNoCores()

    with pytest.raises(ConformanceError, match=r"say in the test class how many .* `cores = ...`"):
        Mine().test_cores_bound_what_runs_at_once()


def test_the_callback_may_come_from_a_thread_before_submit_tasks_returned() -> None:
    class AnswersEarly(SmallBackend):
        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            self.require_running()

            def answer() -> None:
                for task in tasks:
                    self.accept(task)
                    task["return_value"] = sum(task["args"]) + 1
                    self.task_state_cb(task, TasksMainStates.DONE)

            thread = threading.Thread(target=answer)
            thread.start()
            thread.join()

    AnswersEarly.capabilities = Capabilities(executables=False, functions=False)
    kit = kit_on(AnswersEarly)
    kit.test_results_belong_to_their_tasks()
    kit.test_a_diamond_runs()
