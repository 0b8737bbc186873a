"""Small backends, each with one fault, for the tests of the conformance kit."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import cloudpickle  # type: ignore[import-untyped]

from rhapsody.backends.base import CompletedExecutable, ManagedBackend
from rhapsody.data import plain_name
from rhapsody.errors import CapabilityError, DataError
from rhapsody.resources import memory_in_bytes
from rhapsody.sdk.calls import pack, result, unpack
from rhapsody.sdk.capture import CapturedOutput, recording, streams
from rhapsody.sdk.runner import Runner
from rhapsody.task import TaskDescription, task_kind
from tests._support.small_backend import SmallBackend

SMALL = SmallBackend.capabilities
LEAKED: list[Any] = []


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


class CallsBackTwice(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        super().task_state_cb(task, state)
        if state == "DONE":
            self.report_state(task, state)


class SaysItsEndInWords(SmallBackend):
    def seconds_left(self, task: Any = None) -> Any:
        return "10 min"


class NeverCallsBack(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        if state == "DONE":
            self.open_tasks.pop(task["uid"], None)
        else:
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


class NeedsTheFirstAttempt(SmallBackend):
    seen: frozenset[str] = frozenset()

    async def run_task(self, task: TaskDescription) -> Any:
        call = task["uid"].rpartition(".")[0]
        if task["attempt"] > 1 and call not in self.seen:
            raise KeyError(call)
        self.seen |= {call}
        return await super().run_task(task)


class ReportsRunningWhileItWaits(SmallBackend):
    def __init__(self) -> None:
        super().__init__()
        self.slot = asyncio.Semaphore(1)

    async def run_task(self, task: TaskDescription) -> Any:
        async with self.slot:
            return await super().run_task(task)


class ReportsRunningAtTheEnd(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        if state != "RUNNING":
            super().task_state_cb(task, "RUNNING")
            super().task_state_cb(task, state)


class ReportsTasksNobodySubmitted(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        super().task_state_cb(task, state)
        self.report_state({**task, "uid": "another"}, state)


class ChangesUids(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        if state != "RUNNING":
            del self.open_tasks[task["uid"]]
        self.report_state({**task, "uid": task["uid"].lower()}, state)


class ChangesSomeUids(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        super().task_state_cb(task, state)
        if state == "RUNNING":
            self.report_state({**task, "uid": task["uid"].lower()}, state)


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


class PrintsElsewhere(SmallBackend):
    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        other = cast("TaskDescription", {**task, "sandbox": task["sandbox"] + ".2"})
        return await super()._execute(other)


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


class StaysInItsSandbox(SmallBackend):
    async def run_task(self, task: TaskDescription) -> Any:
        task.pop("cwd", None)
        return await super().run_task(task)


class LeavesFilesBesideTheUsers(SmallBackend):
    async def run_task(self, task: TaskDescription) -> Any:
        if "cwd" in task:
            os.mkdir(f"{task['cwd']}/{task['uid']}")
        return await super().run_task(task)


class MakesWhatIsMissing(SmallBackend):
    async def run_task(self, task: TaskDescription) -> Any:
        if "cwd" in task:
            os.makedirs(task["cwd"], exist_ok=True)
        return await super().run_task(task)


class SharesOneSandbox(SmallBackend):
    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        task["sandbox"] = os.path.dirname(task["sandbox"])
        return await super()._execute(task)


class CopiesOut(SmallBackend):
    """No fault: gives what is in its sandboxes."""

    capabilities = dataclasses.replace(SMALL, copies_files_out=True)

    async def copy_file_out(self, task: Any, name: str, path: Path) -> None:
        try:
            shutil.copyfile(os.path.join(task["sandbox"], plain_name(name)), path)
        except OSError as error:
            raise DataError(f"no file {name!r}") from error


class CopiesOutWhatIsOutside(CopiesOut):
    async def copy_file_out(self, task: Any, name: str, path: Path) -> None:
        shutil.copyfile(os.path.join(task["sandbox"], name), path)


class CopiesNothingOut(CopiesOut):
    async def copy_file_out(self, task: Any, name: str, path: Path) -> None:
        shutil.copyfile(os.devnull, path)


class MakesPublicSandboxes(SmallBackend):
    async def _execute(self, task: TaskDescription) -> CompletedExecutable:
        os.makedirs(task["sandbox"], mode=0o755)
        return await super()._execute(task)


class IgnoresCancel(SmallBackend):
    async def cancel_task(self, uid: str) -> bool:
        return uid in self.open_tasks


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


class DoesNotInitializeItsBase(SmallBackend):
    def __init__(self) -> None:
        pass


class StartsSynchronously(SmallBackend):
    def start(self) -> None:  # type: ignore[override]
        pass


class BlocksTheLoopForGood(SmallBackend):
    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        time.sleep(60)  # noqa: ASYNC251 - the fault


class BlocksTheLoopAtShutdown(SmallBackend):
    async def stop(self) -> None:
        time.sleep(0.4)  # noqa: ASYNC251 - the fault


class WaitsForTheEnd(SmallBackend):
    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        await super().submit_tasks(tasks)
        uids = {task["uid"] for task in tasks}
        await asyncio.wait([run for run in asyncio.all_tasks() if run.get_name() in uids])


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


class Copying(SmallBackend):
    """No fault: functions and arguments are copies."""

    async def run_task(self, task: TaskDescription) -> Any:
        keys = ("function", "args", "kwargs")
        given: dict[str, Any] = {**task}
        copied = cloudpickle.loads(cloudpickle.dumps({key: given[key] for key in keys}))
        return await super().run_task(cast("TaskDescription", given | copied))


class UsesTheProtocol(SmallBackend):
    """No fault: calls use copies of classes, and results are of the program's classes."""

    async def run_task(self, task: TaskDescription) -> Any:
        value, error = result(task, unpack(Runner().run(pack(task))))
        if error is not None:
            raise error
        return value


class CachesFunctionsForGood(SmallBackend):
    """Sends each function once, even if the worker loses it."""

    async def run_task(self, task: TaskDescription) -> Any:
        function = task["function"]
        if function is not None:
            known = next((there for here, there in LEAKED if here is function), None)
            if known is None:
                known = cloudpickle.loads(cloudpickle.dumps(function))
                LEAKED.append((function, known))
            task["function"] = known
        return await super().run_task(task)


class HandsArgumentsOver(SmallBackend):
    """Says that it copies, and does not."""


class TakesOneAtATime(SmallBackend):
    """Fault: requests of a task to the backend's library wait for the task."""

    places = threading.Semaphore(1)

    async def run_task(self, task: TaskDescription) -> Any:
        def alone() -> Any:
            with self.places:
                return function(*task["args"], **task["kwargs"])

        function = task["function"]
        task["function"] = alone
        return await super().run_task(task)


def use_library() -> bool:
    """Needs a place, as a task that asks a scheduler for something does."""
    if not TakesOneAtATime.places.acquire(timeout=0.1):
        raise TimeoutError("no place for what it asked for")
    TakesOneAtATime.places.release()
    return True


class HonoursNoCores(SmallBackend):
    capabilities = dataclasses.replace(SMALL, resources=frozenset({"cores"}))


class RefusesWithoutSayingWhat(SmallBackend):
    capabilities = dataclasses.replace(SMALL, resources=frozenset({"memory"}))

    async def run_task(self, task: TaskDescription) -> Any:
        if "resources" in task:
            raise ValueError("no")
        return await super().run_task(task)


class KnowsSettings(SmallBackend):
    """No fault: knows one setting."""

    capabilities = dataclasses.replace(SMALL, task_settings=frozenset({"queue"}))


class TakesAnySetting(KnowsSettings):
    async def start(self) -> None:
        self.capabilities = SMALL


class BindsNoThreadCounts(SmallBackend):
    capabilities = dataclasses.replace(
        SMALL, resources=frozenset({"cores"}), binds=frozenset({"cores"})
    )


class IgnoresRanks(SmallBackend):
    capabilities = dataclasses.replace(SMALL, resources=frozenset({"ranks"}), mpi_functions=True)


class LeaksAProcess(SmallBackend):
    async def start(self) -> None:
        LEAKED.append(sleeper())


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


class ShutsDownSlowly(SmallBackend):
    async def stop(self) -> None:
        await asyncio.sleep(1.0)


class WritesHereAtItsStart(SmallBackend):
    async def start(self) -> None:
        with open("started.log", "w") as file:  # noqa: ASYNC230 - the fault
            file.write("here\n")


class LeavesTasksAtShutdown(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        if self.state() != "shutting_down":
            super().task_state_cb(task, state)


class CannotBeShutDownTwice(SmallBackend):
    async def shutdown(self) -> None:
        if self.state() == "shutdown":
            raise RuntimeError("already shut down")
        await super().shutdown()


class SaysItIsIdle(SmallBackend):
    def state(self) -> Any:
        return "IDLE" if super().state() == "running" else super().state()


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
        LEAKED.append(sleeper())
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


class HangsOnAThread(SmallBackend):
    async def stop(self) -> None:
        await asyncio.to_thread(self.wait)

    def wait(self) -> None:
        threading.Event().wait(3)  # the loop waits for the thread when it is closed


class SetsAVariable(SmallBackend):
    async def start(self) -> None:
        os.environ["OMP_NUM_THREADS"] = "17"


class HandlesASignal(SmallBackend):
    async def start(self) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class ChangesTheUmask(SmallBackend):
    async def run_task(self, task: TaskDescription) -> Any:
        os.umask(0o027)
        return await super().run_task(task)


class ChangesTheDirectory(SmallBackend):
    async def stop(self) -> None:
        os.chdir("/")


class AddsToThePath(SmallBackend):
    async def start(self) -> None:
        sys.path.append("/of/the/backend")


class HandlesForks(SmallBackend):
    async def start(self) -> None:
        os.register_at_fork(before=lambda: None)


class TwoRoutes(SmallBackend):
    """No fault: coroutines without cores take a route of their own, and output is kept."""

    capabilities = dataclasses.replace(SMALL, resources=frozenset({"cores"}), captures_output=True)

    async def start(self) -> None:
        streams.acquire()

    async def stop(self) -> None:
        streams.release()

    async def run_task(self, task: TaskDescription) -> Any:
        if task["function"] is None:
            return await super().run_task(task)
        resources = task.get("resources")
        waits = task_kind(task) == "async_function" and resources and not resources.cores
        output = CapturedOutput(None, True)
        output.__enter__()
        try:
            return await (self.wait(task) if waits else super().run_task(task))
        finally:
            output.__exit__()
            task["stdout"], task["stderr"] = output.stdout or "", output.stderr or ""

    async def wait(self, task: TaskDescription) -> Any:
        return await super().run_task(task)


class LosesKeywordsOnOneRoute(TwoRoutes):
    async def wait(self, task: TaskDescription) -> Any:
        task["kwargs"] = {}
        return await super().wait(task)


class LosesOutputOnOneRoute(TwoRoutes):
    async def wait(self, task: TaskDescription) -> Any:
        with recording(None):
            return await super().wait(task)


class LosesTheEnvironmentOnOneRoute(TwoRoutes):
    async def wait(self, task: TaskDescription) -> Any:
        task.pop("environment", None)
        return await super().wait(task)


class ReplacesExceptionsOnOneRoute(TwoRoutes):
    async def wait(self, task: TaskDescription) -> Any:
        try:
            return await super().wait(task)
        except Exception as error:
            raise RuntimeError(str(error)) from error


class CannotCancelOnOneRoute(TwoRoutes):
    async def wait(self, task: TaskDescription) -> Any:
        work = asyncio.ensure_future(super().wait(task))
        LEAKED.append(work)
        return await asyncio.shield(work)


class DropsTracebacks(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        error = task.get("exception")
        if error is not None:
            error.__traceback__ = error.__cause__ = error.__context__ = None
        super().task_state_cb(task, state)


class RunsOneInFiftyTwice(SmallBackend):
    count = 0

    async def run_task(self, task: TaskDescription) -> Any:
        self.count += 1
        if self.count % 50 == 0:
            await super().run_task(task)
        return await super().run_task(task)


class KeepsEveryResult(SmallBackend):
    async def run_task(self, task: TaskDescription) -> Any:
        result = await super().run_task(task)
        LEAKED.append(result)
        return result


class BlocksTheLoopABit(SmallBackend):
    async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
        time.sleep(0.2)  # noqa: ASYNC251 - the fault
        await super().submit_tasks(tasks)


class LosesOneCompletion(SmallBackend):
    count = 0

    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        self.count += state == "DONE"
        if state == "DONE" and self.count == 50:
            self.open_tasks.pop(task["uid"], None)
        else:
            super().task_state_cb(task, state)


class WritesHereInATask(SmallBackend):
    async def run_task(self, task: TaskDescription) -> Any:
        Path("task.log").touch()  # noqa: ASYNC240 - the fault
        return await super().run_task(task)


class LeavesATemporaryDirectory(SmallBackend):
    async def start(self) -> None:
        tempfile.mkdtemp(prefix="session-")


class NamesNoWorker(SmallBackend):
    def task_state_cb(self, task: Any, state: Any, service_callback: Any = None) -> None:
        task.pop("worker", None)
        super().task_state_cb(task, state)


class IgnoresMemory(SmallBackend):
    """Refuses what exceeds its memory, and does not count it."""

    capabilities = dataclasses.replace(SMALL, resources=frozenset({"memory"}))

    async def run_task(self, task: TaskDescription) -> Any:
        resources = task.get("resources")
        if resources is not None and memory_in_bytes(resources.memory or 0) > 2**30:
            raise CapabilityError(f"memory={resources.memory} is more than there is")
        return await super().run_task(task)


class HasAPathOfItsOwn(SmallBackend):
    """Runs functions in a Python that does not get the program's `sys.path`."""

    async def run_task(self, task: TaskDescription) -> Any:
        function = task["function"]
        if function is None:
            return await super().run_task(task)
        path = [entry for entry in sys.path if not entry.startswith(tempfile.gettempdir()[:-1])]
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _CALL.format(path=path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        packed = cloudpickle.dumps((function, task["args"], task["kwargs"]))
        out, _ = await program.communicate(packed)
        if program.returncode:
            raise RuntimeError("the worker could not run it")
        return cloudpickle.loads(out)


_CALL = """
import asyncio, inspect, sys
sys.path[:] = {path!r}
import cloudpickle
function, args, kwargs = cloudpickle.load(sys.stdin.buffer)
value = function(*args, **kwargs)
if inspect.iscoroutine(value):
    value = asyncio.run(value)
sys.stdout.buffer.write(cloudpickle.dumps(value))
"""
