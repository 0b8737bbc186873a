"""Execution of one task on a worker's thread, from the order to the reply.

The failure of a task is returned as its reply and not raised, so that Dask neither logs the failure
nor retries the task. An exception is raised only for tasks that Dask itself should retry.

Core runs, stops and captures programs and checks their readiness. This module adds the reaper,
which kills a program if its worker is killed, and the message to the backend that a service is
ready.

Each start of a task uses a new sandbox. If the workers see the engine's files, the sandbox is the
directory that the engine chose. Otherwise, it is in the worker's local directory: input files are
sent with the order, and output files are returned with the reply.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import subprocess
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from sys import getsizeof
from time import perf_counter, time
from typing import Any

from distributed import get_worker, secede

from rhapsody import BackendUnavailableError, CapabilityError, TaskDescription
from rhapsody.sdk import (
    RESERVED,
    CapturedOutput,
    Environment,
    Meter,
    Program,
    Runner,
    TaskProgram,
    TaskService,
    WorkerLoop,
    copy_all,
    copy_into,
    describe_error,
    link_into,
    make_sandbox,
    moved,
    seconds_of_building,
    sent_modules,
    task_context,
    task_environment,
    unpack_error,
    watching,
)
from rhapsody_dask.worker.messages import (
    CANCELED,
    DEPENDENCY,
    DONE,
    FAILED,
    OWN_FILES,
    GroupReplies,
    Order,
    Reply,
    Returned,
    TaskRaised,
    failure,
    pack,
    pack_files,
    packed_error,
    unpack,
    unpack_files,
    unpacked,
)
from rhapsody_dask.worker.site import Running, Site, site_of, supervisor


class _Thread(threading.local):
    """State of a worker's thread."""

    def __init__(self) -> None:
        self.loop = WorkerLoop()


_thread = _Thread()
_meter = Meter(shared=True)


def run_order(packed: bytes, values: Sequence[Any]) -> Reply:
    """Run one task; see `rhapsody_dask.worker.messages.run`."""
    order: Order = pickle.loads(packed)  # noqa: S301 - from our own backend
    site = site_of(get_worker(), order.session)
    if site is None:
        return failure(
            BackendUnavailableError(
                f"task {order.name!r}: Rhapsody's plugin is not active on worker "
                f"{get_worker().address}; the worker's log contains the reason"
            )
        )
    if any(isinstance(value, Reply) and value.kind != DONE for value in values):
        return Reply(DEPENDENCY)
    running = Running(site, order, values)
    if not site.begin(running):
        return Reply(CANCELED)
    try:
        if not _enter(running, order.more.get("cores", 1)):
            return Reply(CANCELED)
        reply = _run(running)
    finally:
        site.leave(running)
        site.end(running)
    if reply.kind == FAILED and "raises" in order.more and not running.cancelled:
        raise TaskRaised(reply, order.uid, describe_error(unpack_error(reply.payload)))
    site.attach(running, reply)
    return reply


MAX_GROUP_SECONDS = 0.1
"""Seconds after which a group starts no further calls."""

MAX_GROUP_SIZE = 10 << 20
"""Total size of replies in bytes above which a group starts no further calls."""


def run_group(packed: bytes) -> GroupReplies:
    """Run the calls of a group; see `rhapsody_dask.worker.messages.run_group`.

    Returns:
        The replies. Calls without a reply have not run.
    """
    order, calls = pickle.loads(packed)  # noqa: S301 - from our own backend
    site = site_of(get_worker(), order.session)
    replies: GroupReplies = {}
    if site is None:
        return replies
    group = Running(site, order, replies=replies)
    site.begin(group)
    try:
        if _enter(group, 1):
            site.note(group)
            size, end = 0, perf_counter() + MAX_GROUP_SECONDS
            for call in calls:
                begin = perf_counter()
                if begin > end or size > MAX_GROUP_SIZE:
                    break
                running = Running(site, pickle.loads(call))  # noqa: S301 - from our own backend
                if site.begin(running, group):
                    try:
                        reply = _run(running)
                    finally:
                        site.end(running)
                elif group.cancelled:
                    break
                else:
                    reply = Reply(CANCELED)
                replies[running.uid] = reply, perf_counter() - begin
                size += getsizeof(reply)
    finally:
        site.leave(group)
        site.end(group)
    return replies


def _enter(running: Running, cores: float) -> bool:
    """Take the cores of a task; return False if the task was canceled while it waited for cores."""
    if cores == 0:
        secede()
        return True
    gate = running.site.gate
    running.waiting = waiting = gate.enter(cores)
    if running.cancelled:
        gate.cancel(waiting)
    waiting.turn.wait()
    if waiting.granted:
        running.cores = cores
    return waiting.granted


def _run(running: Running) -> Reply:
    """Run a task that has its cores, and return its reply."""
    site, order = running.site, running.order
    site.started(running)
    running.gpus = site.gate.take_gpus(order.more.get("gpus", 0))
    try:
        if "sandbox" in order.more:
            running.context.sandbox = _prepare(running)
        reply = _run_program(running) if order.function is None else _call(running)
        if "ship" in order.more:
            _return_files(running, reply)
    except BaseException as error:  # fails only this task
        reply = failure(error)
    finally:
        site.gate.return_gpus(running.gpus)
    reply.worker = site.address
    return reply


# Functions.


def _call(running: Running) -> Reply:
    site, order, sandbox = running.site, running.order, running.context.sandbox
    with (
        nullcontext() if order.modules is None else sent_modules().using(order.modules),
        _environment(running),
        CapturedOutput(sandbox, order.more.get("capture", True)) as output,
        task_context(running.context),
        watching(order.more.get("watch", ())) as opened,
    ):
        begin, start = _meter.begin(order.name), time()
        done, outcome, _ = _CallRunner(running).answer(order.name, order)
        interval = start, time()
        usage = _meter.end(order.name, begin)
        built = seconds_of_building()
    reply = Returned(DONE, *outcome) if done else Reply(FAILED, outcome)
    if running.cancelled:
        reply = Reply(CANCELED)
    more: dict[str, Any] = {"interval": interval}
    if order.more.get("cores") == 0:  # such a coroutine shares a thread
        usage = None
    if built is not None:
        more["interval"] = start + built, interval[1]
        usage = {**(usage or {}), "build_seconds": built}
    if output.stdout or output.stderr:
        more |= {"stdout": output.stdout, "stderr": output.stderr}
    if usage is not None:
        more["usage"] = usage
    if sandbox is not None:
        more["sandbox"] = sandbox
    if site.elsewhere is not None:
        more["directory"] = site.elsewhere
    if opened:
        more["opened"] = opened
    reply.more = more
    return reply


class _CallRunner(Runner):
    """Runner of one call, whose arguments may contain values that Dask holds."""

    worker = "the worker"
    own_files = OWN_FILES
    forwards = True  # a result may stay here until other workers need it

    def __init__(self, running: Running) -> None:
        self.place = f"on worker {running.site.address}"
        self.session = running.site.session
        self._running = running

    def load(self, call: Order) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        packed: Any = call.function
        running, values = self._running, self._running.values
        try:
            # Unpickled for each task, so that calls do not share the function's data.
            function = unpack(packed if type(packed) is bytes else values[packed].payload)
            args, kwargs = unpacked(call.arguments, values, running.context.sandbox)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"task {call.name!r} needs the module {error.name!r}, which worker "
                f"{running.site.address} does not have. Install it there, or upload a single file "
                f"with `await backend.client.upload_file('{error.name}.py')`",
                name=error.name,
            ) from None
        if running.cancelled:
            raise asyncio.CancelledError
        return function, args, kwargs

    def building(self, begins: bool) -> None:
        running = self._running
        running.site.notify({"building": (running.uid, running.token, begins)})

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        waits_only = self._running.order.more.get("cores") == 0
        loop = self._running.site.waiting if waits_only else _thread.loop
        try:
            return loop.run(coroutine, self._started)
        finally:
            self._running.stop = None

    def _started(self, loop: Any, task: Any) -> None:
        """Make a coroutine cancellable from any thread."""
        # Cancel in the next iteration, because the coroutine must have started.
        self._running.stop_with(loop, partial(loop.call_soon, task.cancel))

    def pack(self, value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
        return pack(value)

    def pack_error(self, error: BaseException) -> bytes:
        return packed_error(error)


def _environment(running: Running) -> AbstractContextManager[None]:
    site, order = running.site, running.order
    variables = order.more.get("environment")
    if not variables:
        return nullcontext()
    if site.threads > 1 or order.more.get("cores") == 0:
        raise CapabilityError(
            f"task {order.name!r} sets environment variables, which it would share with other "
            f"tasks on worker {site.address}. Request at least one core, and start workers with "
            "one thread: DaskExecutionBackend({'threads': 1}) or `dask worker --nthreads 1`"
        )
    return Environment(variables)


# Sandboxes and programs.


def _prepare(running: Running) -> str:
    """Create the sandbox of a task that is starting, and put its input files there.

    Dask reruns the tasks of lost workers. A lost worker may only have lost its connection, and may
    still be writing to the task's sandbox. Each further start of the task therefore uses a
    directory inside the sandbox of the first start.

    Returns:
        The path of the sandbox.
    """
    more = running.order.more
    path: str = more["sandbox"]
    if "ship" in more:
        path = os.path.join(running.site.worker.local_directory, "rhapsody", running.uid)
    if os.path.lexists(path):
        path = os.path.join(path, f"{RESERVED}{running.token}")
    path = make_sandbox(path)
    for kind, *words in more.get("links", ()):
        if kind == "link":
            link_into(path, words[0], words[1])
        elif kind == "private":
            copy_into(path, words[0], words[1])
        elif kind == "undeclared":
            copy_all(words[0], path, words[1:])
        else:
            unpack_files(running.values[words[0]].payload, path)
    return path


def _return_files(running: Running, reply: Reply) -> None:
    """Move the files of a sandbox, except the inputs, to the reply."""
    sandbox = str(running.context.sandbox)
    names = set(os.listdir(sandbox)).difference(running.order.more.get("came", ()))
    files, left_out = pack_files((name, os.path.join(sandbox, name)) for name in sorted(names))
    reply.more = {**(reply.more or {}), "files": files, "left_out": left_out}
    shutil.rmtree(sandbox, ignore_errors=True)


def _run_program(running: Running) -> Reply:
    """Run a program on this thread and return its reply."""
    order, sandbox = running.order, str(running.context.sandbox)
    task: Any = {**order.more["program"], "uid": order.uid, "name": order.name, "sandbox": sandbox}
    former = order.more["sandbox"]
    if sandbox != former:  # the command may contain paths of the sandbox's files
        task["executable"] = moved(task["executable"], former, sandbox)
        if "arguments" in task:
            task["arguments"] = [moved(word, former, sandbox) for word in task["arguments"]]
    try:
        code = _thread.loop.run(_run_to_end(running, task))
    except Exception as error:  # it could not be started, or did not become ready
        reply = failure(error)
    else:
        reply = Reply(FAILED if code else DONE)
    if running.cancelled:
        reply = Reply(CANCELED)
    kept = ("stdout", "stderr", "exit_code", "sandbox", "usage")
    reply.more = {key: task[key] for key in kept if key in task}
    return reply


async def _run_to_end(running: Running, task: TaskDescription) -> int:
    """Run a program that other threads can stop.

    Returns:
        The exit code; 0 if the task was canceled before the program started.
    """
    site, more = running.site, running.order.more
    gpus = running.gpus if site.gate.gpus else None
    environment = task_environment(task, cores=more.get("cores", 1), gpus=gpus)
    if running.cancelled:
        return 0
    program: TaskProgram
    if more.get("service"):
        ready = partial(_notify_ready, site, task)
        program = TaskService(task, environment, ready=ready, launch=_launch)
    else:
        program = TaskProgram(task, environment, launch=_launch)
    running.stop_with(asyncio.get_running_loop(), partial(program.terminate, site.grace))
    try:
        return await program.wait(site.grace)
    finally:
        running.stop = None


def _notify_ready(site: Site, task: TaskDescription, value: Any) -> None:
    """Report to the backend that a service is ready, with its address or other readiness value."""
    if str(task.get("ready", "")).partition(":")[0] == "tcp":
        value = site.host, value[1]
    site.notify({"ready": (task["uid"], pack(value)[0])})


def _launch(command: Sequence[str], **options: Any) -> Program:
    """Start a program that ends with the worker, even if the worker is killed.

    Output that is not captured is discarded, because the worker's own streams are not the user's.

    Returns:
        The running program.
    """
    for name in ("stdout", "stderr"):
        if options[name] is None:
            options[name] = subprocess.DEVNULL
    return Program(command, reaper=supervisor, **options)
